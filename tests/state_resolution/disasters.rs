//! What state resolution is there to prevent, case by case: each says who must win, and ruma and Synapse are asked too.

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{LazyLock, Mutex},
};

use serde_json::{Value, json};
use verge::matrix::{
    auth_events,
    json::{Object, Value as JsonValue},
    room_version::{RoomVersion, StateResolution},
    state_resolution::StateEvent,
};

use crate::{
    by_ruma::{PlainState, RumaRoom},
    common::{
        rooms::{Key, Room, RoomEvent, State, event_of},
        synapse::Synapse,
    },
    differential::{memory, plain, resolve_plain},
};

const ALICE: &str = "@alice:a.example";
const BOB: &str = "@bob:b.example";
const CAROL: &str = "@carol:c.example";
const EVE: &str = "@eve:e.example";
const MALLORY: &str = "@mallory:a.example";

/// One process for all cases: it takes seconds to start.
static SYNAPSE: LazyLock<Mutex<Option<Synapse>>> = LazyLock::new(|| Mutex::new(Synapse::start()));

/// A join rule is in one state and its predecessor in the other; everybody else's membership cites either. Algorithm 2 loses
/// both (MSC4297, problem A).
#[test]
fn state_reset_by_an_unconflicted_departure() {
    for version in versions(2..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("carol", &mut state, CAROL);
        let old = state.clone();
        room.join_rules("invite", &mut state, "invite");
        room.member("alice leaves", &mut state, ALICE, ALICE, "leave");
        let (mut one, mut other) = (state.clone(), state.clone());
        room.join("bob again", &mut one, BOB);
        room.join("carol again", &mut other, CAROL);
        one.insert(member(CAROL), old[&member(CAROL)]);
        other.insert(member(BOB), old[&member(BOB)]);
        other.insert(key("m.room.join_rules"), old[&key("m.room.join_rules")]);

        let join_rules = match version.state_resolution {
            StateResolution::V2_1 => Some("invite"),
            _ => None,
        };
        room.resolves(
            &[&one, &other],
            &[
                (key("m.room.join_rules"), join_rules),
                (member(ALICE), Some("alice leaves")),
                (member(BOB), Some("bob again")),
                (member(CAROL), Some("carol again")),
            ],
        );
    }
}

/// One state still has the first power levels, the other the third; the second, which explains the third, is in neither.
/// Algorithm 2 goes back to the first (MSC4297, problem B).
#[test]
fn state_reset_to_power_levels_that_a_state_never_left() {
    for version in versions(2..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("carol", &mut state, CAROL);
        let first = state[&key("m.room.power_levels")];
        room.power_levels("second", &mut state, ALICE, &[(BOB, 50)]);
        room.power_levels("third", &mut state, BOB, &[(BOB, 50), (CAROL, 50)]);
        let (mut one, mut other) = (state.clone(), state);
        room.join("zara", &mut one, "@zara:a.example");
        room.join("eve", &mut other, EVE);
        room.join("eve again", &mut other, EVE);
        other.insert(key("m.room.power_levels"), first);

        let power_levels = match version.state_resolution {
            StateResolution::V2_1 => "third",
            _ => "first",
        };
        room.resolves(
            &[&one, &other],
            &[
                (key("m.room.power_levels"), Some(power_levels)),
                (member("@zara:a.example"), Some("zara")),
                (member(EVE), Some("eve again")),
            ],
        );
    }
}

/// A moderator who is being demoted promotes an accomplice on another branch, and dates it back.
#[test]
fn power_level_takeover() {
    for version in versions(2..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[(BOB, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("eve", &mut state, EVE);
        let (mut one, mut other) = (state.clone(), state);
        room.power_levels("promotion", &mut other, BOB, &[(BOB, 50), (EVE, 50)]);
        room.send("eve's topic", &mut other, "m.room.topic", "", EVE, json!({ "topic": "mine" }));
        room.member("alice banned", &mut other, EVE, CAROL, "ban");
        room.power_levels("demotion", &mut one, ALICE, &[(BOB, 0)]);
        room.resolves(
            &[&one, &other],
            &[
                (key("m.room.power_levels"), Some("demotion")),
                (key("m.room.topic"), None),
                (member(CAROL), None),
                (member(EVE), Some("eve")),
            ],
        );
    }
}

/// Who was banned joins again on a branch that has not seen the ban, and does things there.
#[test]
fn banned_user_returns_through_a_fork() {
    for version in versions(2..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[(EVE, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("eve", &mut state, EVE);
        room.send("old topic", &mut state, "m.room.topic", "", ALICE, json!({ "topic": "ours" }));
        let (mut banned, mut unaware) = (state.clone(), state);
        room.join("eve again", &mut unaware, EVE);
        room.send("eve's topic", &mut unaware, "m.room.topic", "", EVE, json!({ "topic": "mine" }));
        room.send("eve's setting", &mut unaware, "x.setting", "", EVE, json!({}));
        room.member("ban", &mut banned, ALICE, EVE, "ban");
        room.resolves(
            &[&banned, &unaware],
            &[(member(EVE), Some("ban")), (key("m.room.topic"), Some("old topic")), (key("x.setting"), None)],
        );
    }
}

/// The room is closed while somebody who has not heard of it joins.
#[test]
fn join_rules_change_races_a_join() {
    for version in versions(2..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        let (mut closed, mut unaware) = (state.clone(), state);
        room.join("eve", &mut unaware, EVE);
        room.join_rules("invite", &mut closed, "invite");
        room.resolves(&[&closed, &unaware], &[(key("m.room.join_rules"), Some("invite")), (member(EVE), None)]);
    }
}

/// Somebody on the creator's server claims to have created the room, and has a state to go with it.
#[test]
fn conflicting_create_events() {
    for version in versions(2..=11) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        let mut forged = State::new();
        let content = json!({ "room_version": version.id, "creator": MALLORY });
        room.send("forged", &mut forged, "m.room.create", "", MALLORY, content);
        room.member("mallory", &mut forged, MALLORY, MALLORY, "join");
        room.power_levels("mallory's levels", &mut forged, MALLORY, &[(MALLORY, 100)]);
        // Nothing in the algorithm tells the true one, so the later one stands. What keeps the forged one out is that it is
        // never accepted into a state. ruma takes the creator of whichever event it happens to look at first.
        room.resolves_as_in_synapse(&[&state, &forged], &[(key("m.room.create"), Some("forged"))]);
    }
}

/// An event that is accepted cites one that was rejected; nothing may follow from the rejected one.
#[test]
fn accepted_event_cites_a_rejected_one() {
    for version in versions(2..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        let (mut one, mut other) = (state.clone(), state);
        let real = one[&key("m.room.power_levels")];
        room.power_levels("usurpation", &mut one, BOB, &[(BOB, 100)]);
        room.reject("usurpation");
        room.send("bob's topic", &mut one, "m.room.topic", "", BOB, json!({ "topic": "mine" }));
        one.insert(key("m.room.power_levels"), real);
        room.send("alice's topic", &mut other, "m.room.topic", "", ALICE, json!({ "topic": "ours" }));
        room.resolves(
            &[&one, &other],
            &[(key("m.room.topic"), Some("alice's topic")), (key("m.room.power_levels"), Some("first"))],
        );
    }
}

/// An event that others cite was never received. It is as if they did not cite it; neither oracle can do without.
#[test]
fn auth_chain_cut_short() {
    for version in versions(2..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[(BOB, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.power_levels("second", &mut state, ALICE, &[(BOB, 50), (EVE, 10)]);
        let (mut one, mut other) = (state.clone(), state);
        room.power_levels("third", &mut one, ALICE, &[(BOB, 50), (EVE, 20)]);
        room.send("bob's topic", &mut other, "m.room.topic", "", BOB, json!({ "topic": "b" }));
        room.send("alice's topic", &mut one, "m.room.topic", "", ALICE, json!({ "topic": "a" }));
        room.lose("first");
        let resolved = room.resolve(&[&one, &other]);
        assert_eq!(room.label(&resolved, &key("m.room.power_levels")), Some("third"), "version {version}");
        // By mainline ordering the topic that was set under the older power levels comes first, so the other one stays.
        assert_eq!(room.label(&resolved, &key("m.room.topic")), Some("alice's topic"), "version {version}");
    }
}

/// A room whose events have names.
struct Scene {
    room: Room,
    room_id: String,
    labels: BTreeMap<String, usize>,
    lost: Vec<usize>,
}

impl Scene {
    fn new(version: &'static RoomVersion) -> Self {
        let room = Room::new(version, 0, false);
        Self { room, room_id: "!room:a.example".to_owned(), labels: BTreeMap::new(), lost: Vec::new() }
    }

    /// A room that Alice made, with her and the `first` power levels in it.
    fn create(&mut self, users: &[(&str, i64)]) -> State {
        let mut state = State::new();
        let mut content = json!({ "room_version": self.room.version.id });
        if !self.room.version.creator_is_sender {
            content["creator"] = json!(ALICE);
        }
        self.send("create", &mut state, "m.room.create", "", ALICE, content);
        if self.room.version.room_id_is_create_hash {
            self.room_id = self.room.events[0].event.room_id().to_string();
        }
        self.join("alice", &mut state, ALICE);
        self.power_levels("first", &mut state, ALICE, users);
        state
    }

    fn join(&mut self, label: &str, state: &mut State, user: &str) {
        self.member(label, state, user, user, "join");
    }

    fn join_rules(&mut self, label: &str, state: &mut State, join_rule: &str) {
        self.send(label, state, "m.room.join_rules", "", ALICE, json!({ "join_rule": join_rule }));
    }

    fn member(&mut self, label: &str, state: &mut State, sender: &str, user: &str, membership: &str) {
        let content = json!({ "membership": membership, "displayname": label });
        self.send(label, state, "m.room.member", user, sender, content);
    }

    fn power_levels(&mut self, label: &str, state: &mut State, sender: &str, users: &[(&str, i64)]) {
        let mut users: BTreeMap<&str, i64> = users.iter().copied().collect();
        if !self.room.version.privileged_creators && sender != MALLORY {
            users.insert(ALICE, 100);
        }
        self.send(label, state, "m.room.power_levels", "", sender, json!({ "users": users }));
    }

    /// Sends a state event into a state, whether it is allowed or not.
    fn send(
        &mut self,
        label: &str,
        state: &mut State,
        event_type: &str,
        state_key: &str,
        sender: &str,
        content: Value,
    ) {
        let version = self.room.version;
        let position = self.room.events.len();
        let content = JsonValue::from(content).into_object().unwrap();
        let selection = auth_events::selection(version, event_type, sender, Some(state_key), &content);
        let auth: Vec<&RoomEvent> = selection
            .iter()
            .filter_map(|(t, k)| state.get(&((*t).to_owned(), (*k).to_owned())))
            .map(|position| &self.room.events[*position])
            .collect();
        let given_ids = version.id == "1" || version.id == "2";
        let refer = |event: &RoomEvent| match given_ids {
            true => json!([event.event.event_id().as_str(), { "sha256": "" }]),
            false => json!(event.event.event_id().as_str()),
        };
        let mut event = json!({
            "type": event_type, "state_key": state_key, "sender": sender, "depth": position + 1,
            "origin_server_ts": 1_700_000_000_000_i64 + position as i64,
            "auth_events": auth.iter().map(|event| refer(event)).collect::<Vec<_>>(),
            "prev_events": if event_type == "m.room.create" { Vec::new() } else { vec![refer(&self.room.events[position - 1])] },
        });
        if given_ids {
            event["event_id"] = json!(format!("${position}:a.example"));
        }
        if !(version.room_id_is_create_hash && event_type == "m.room.create") {
            event["room_id"] = json!(self.room_id);
        }
        let mut object: Object = JsonValue::from(event).into_object().unwrap();
        object.insert("content", content);
        let event = event_of(object, version);
        state.insert((event_type.to_owned(), state_key.to_owned()), position);
        let states = Rc::new(state.clone());
        self.labels.insert(label.to_owned(), position);
        self.room.events.push(RoomEvent {
            event,
            states: vec![],
            state: states.clone(),
            rejected: false,
            after: states,
        });
    }

    fn reject(&mut self, label: &str) {
        self.room.events[self.labels[label]].rejected = true;
    }

    fn lose(&mut self, label: &str) {
        self.lost.push(self.labels[label]);
    }

    fn resolve(&self, states: &[&State]) -> PlainState {
        let mut all = memory(&self.room);
        if !self.lost.is_empty() {
            all = Default::default();
            for (_, event) in self.room.events.iter().enumerate().filter(|(position, _)| !self.lost.contains(position))
            {
                all.insert(StateEvent { event: event.event.clone(), rejected: event.rejected });
            }
        }
        let states: Vec<PlainState> = states.iter().map(|state| plain(&self.room, state)).collect();
        resolve_plain(all, self.room.version, self.room.events[0].event.room_id(), &states)
    }

    /// The name of the event at a key.
    fn label(&self, state: &PlainState, key: &Key) -> Option<&str> {
        let id = state.get(key)?;
        let named = |position: &usize| self.room.events[*position].event.event_id().as_str() == id;
        self.labels.iter().find(|(_, position)| named(position)).map(|(label, _)| label.as_str())
    }

    /// States resolve so, by us, by ruma and by Synapse.
    fn resolves(&self, states: &[&State], expected: &[(Key, Option<&str>)]) {
        let version = self.room.version;
        let resolved = self.resolves_as_in_synapse(states, expected);
        let plain: Vec<PlainState> = states.iter().map(|state| plain(&self.room, state)).collect();
        let events = self.room.events.iter().map(|event| (&event.event, event.rejected));
        assert_eq!(
            RumaRoom::new(version, events).unwrap().resolve(&plain).unwrap(),
            resolved,
            "ruma, version {version}"
        );
    }

    /// States resolve so, by us and by Synapse.
    fn resolves_as_in_synapse(&self, states: &[&State], expected: &[(Key, Option<&str>)]) -> PlainState {
        let version = self.room.version;
        let resolved = self.resolve(states);
        for (key, label) in expected {
            assert_eq!(self.label(&resolved, key), *label, "version {version}, {key:?}");
        }
        if let Some(synapse) = SYNAPSE.lock().unwrap().as_mut() {
            let answer = synapse.judge(&self.room, &[states.to_vec()]);
            let theirs = answer.resolved(0).unwrap().into_iter().map(|(t, k, id)| ((t, k), id)).collect();
            assert_eq!(resolved, theirs, "Synapse, version {version}");
        }
        resolved
    }
}

fn versions(range: std::ops::RangeInclusive<u32>) -> impl Iterator<Item = &'static RoomVersion> {
    range.map(|id| RoomVersion::get(&id.to_string()).unwrap())
}

fn key(event_type: &str) -> Key {
    (event_type.to_owned(), String::new())
}

fn member(user: &str) -> Key {
    ("m.room.member".to_owned(), user.to_owned())
}
