//! A room whose events have names, to resolve some states of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::{LazyLock, Mutex},
};

use serde_json::{Value, json};
use verge::matrix::{
    auth_events,
    event::Event,
    json::{Object, Value as JsonValue},
    room_version::{EventIds, RoomVersion, StateResolution},
};

use crate::{
    by_ruma::{PlainState, RumaRoom},
    common::{
        rooms::{Key, Resolver, Room, RoomEvent, State, event_of},
        synapse::Synapse,
    },
};

pub(crate) const ALICE: &str = "@alice:a.example";
pub(crate) const BOB: &str = "@bob:b.example";
pub(crate) const CAROL: &str = "@carol:c.example";
pub(crate) const EVE: &str = "@eve:e.example";
pub(crate) const MALLORY: &str = "@mallory:a.example";

/// One process for all cases: it takes seconds to start.
static SYNAPSE: LazyLock<Mutex<Option<Synapse>>> = LazyLock::new(|| Mutex::new(Synapse::start()));

/// Who is asked too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Oracle {
    Ruma,
    Synapse,
}

pub(crate) struct Scene {
    room: Room,
    room_id: String,
    labels: BTreeMap<String, usize>,
    lost: BTreeSet<usize>,
}

impl Scene {
    pub(crate) fn new(version: &'static RoomVersion) -> Self {
        let room = Room::new(version, 0, false);
        Self { room, room_id: "!room:a.example".to_owned(), labels: BTreeMap::new(), lost: BTreeSet::new() }
    }

    /// A room that Alice made, with her and the `first` power levels in it.
    pub(crate) fn create(&mut self, users: &[(&str, i64)]) -> State {
        let mut state = self.create_with(json!({}));
        self.power_levels("first", &mut state, ALICE, users);
        state
    }

    /// A room that Alice made, with her and without power levels. The create event has this in its content too.
    pub(crate) fn create_with(&mut self, content: Value) -> State {
        let mut state = State::new();
        let mut content = content;
        content["room_version"] = json!(self.room.version.id);
        if !self.room.version.creator_is_sender {
            content["creator"] = json!(ALICE);
        }
        self.send("create", &mut state, "m.room.create", "", ALICE, content);
        if self.room.version.room_id_is_create_hash {
            self.room_id = self.room.events[0].event.room_id().to_string();
        }
        self.join("alice", &mut state, ALICE);
        state
    }

    pub(crate) fn join(&mut self, label: &str, state: &mut State, user: &str) {
        self.member(label, state, user, user, "join");
    }

    pub(crate) fn join_rules(&mut self, label: &str, state: &mut State, join_rule: &str) {
        self.send(label, state, "m.room.join_rules", "", ALICE, json!({ "join_rule": join_rule }));
    }

    pub(crate) fn member(&mut self, label: &str, state: &mut State, sender: &str, user: &str, membership: &str) {
        let content = json!({ "membership": membership, "displayname": label });
        self.send(label, state, "m.room.member", user, sender, content);
    }

    pub(crate) fn topic(&mut self, label: &str, state: &mut State, sender: &str) {
        self.send(label, state, "m.room.topic", "", sender, json!({ "topic": label }));
    }

    /// Power levels that list these users, and Alice unless she is a creator who outranks them anyway.
    pub(crate) fn power_levels(&mut self, label: &str, state: &mut State, sender: &str, users: &[(&str, i64)]) {
        let mut users: BTreeMap<&str, i64> = users.iter().copied().collect();
        if !self.room.version.privileged_creators && sender != MALLORY {
            users.entry(ALICE).or_insert(100);
        }
        self.send(label, state, "m.room.power_levels", "", sender, json!({ "users": users }));
    }

    /// Sends a state event into a state, whether it is allowed or not.
    pub(crate) fn send(
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
        let cited = selection.iter().filter_map(|(t, k)| state.get(&((*t).to_owned(), (*k).to_owned())));
        let reference = |position: usize| self.room.events[position].event.reference();
        let auth_events: Vec<JsonValue> = cited.map(|position| reference(*position)).collect();
        let previous = (event_type != "m.room.create").then(|| reference(position - 1));
        let mut event = Object::from_iter([
            ("auth_events", JsonValue::Array(auth_events)),
            ("content", JsonValue::from(content)),
            ("depth", JsonValue::from(position as i64 + 1)),
            ("origin_server_ts", JsonValue::from(1_700_000_000_000_i64 + position as i64)),
            ("prev_events", JsonValue::Array(previous.into_iter().collect())),
            ("sender", JsonValue::from(sender)),
            ("state_key", JsonValue::from(state_key)),
            ("type", JsonValue::from(event_type)),
        ]);
        if version.event_ids == EventIds::Given {
            event.insert("event_id", format!("${position}:a.example"));
        }
        if !(version.room_id_is_create_hash && event_type == "m.room.create") {
            event.insert("room_id", self.room_id.as_str());
        }
        let event = event_of(event, version);
        state.insert((event_type.to_owned(), state_key.to_owned()), position);
        let states = Rc::new(state.clone());
        self.labels.insert(label.to_owned(), position);
        let (states, state, after) = (vec![], Rc::clone(&states), states);
        self.room.events.push(RoomEvent { event, states, state, rejected: false, after });
    }

    pub(crate) fn reject(&mut self, label: &str) {
        self.room.events[self.labels[label]].rejected = true;
    }

    /// The event was never received.
    pub(crate) fn lose(&mut self, label: &str) {
        self.lost.insert(self.labels[label]);
    }

    /// States resolve so, by us, by ruma (but for version 1, which it does not have) and by Synapse.
    pub(crate) fn resolves(&self, states: &[&State], expected: &[(Key, Option<&str>)]) {
        match self.room.version.state_resolution {
            StateResolution::V1 => self.resolves_as_in(&[Oracle::Synapse], states, expected),
            _ => self.resolves_as_in(&[Oracle::Ruma, Oracle::Synapse], states, expected),
        }
    }

    /// States resolve so, by us and by these.
    pub(crate) fn resolves_as_in(&self, oracles: &[Oracle], states: &[&State], expected: &[(Key, Option<&str>)]) {
        let version = self.room.version;
        let (room, states) = self.received(states);
        let resolved =
            room.plain(&Resolver::new(&room, &BTreeSet::new()).resolve(&room, &states.iter().collect::<Vec<_>>()));
        for (key, label) in expected {
            assert_eq!(self.label(&resolved, key), *label, "version {version}, {key:?}");
        }
        for oracle in oracles {
            if let Some(theirs) = ask(*oracle, &room, &states) {
                assert_eq!(theirs.unwrap(), resolved, "{oracle:?}, version {version}");
            }
        }
    }

    /// States resolve so by us, and otherwise by this oracle.
    pub(crate) fn resolves_unlike(&self, oracle: Oracle, states: &[&State], expected: &[(Key, Option<&str>)]) {
        self.resolves_as_in(&[], states, expected);
        let (room, states) = self.received(states);
        if let Some(theirs) = ask(oracle, &room, &states) {
            let agrees =
                theirs.is_ok_and(|theirs| expected.iter().all(|(key, label)| self.label(&theirs, key) == *label));
            assert!(!agrees, "{oracle:?}, version {}", self.room.version);
        }
    }

    /// The name of the event at a key.
    fn label(&self, state: &PlainState, key: &Key) -> Option<&str> {
        let id = state.get(key)?;
        let named = |position: &usize| self.room.events[*position].event.event_id().as_str() == id;
        self.labels.iter().find(|(_, position)| named(position)).map(|(label, _)| label.as_str())
    }

    /// The room without what was never received, and states of it.
    fn received(&self, states: &[&State]) -> (Room, Vec<State>) {
        let mut room = Room::new(self.room.version, 0, false);
        let position = |old: &usize| old - self.lost.range(..old).count();
        let state = |state: &State| -> State { state.iter().map(|(key, old)| (key.clone(), position(old))).collect() };
        let empty = Rc::new(State::new());
        for (old, event) in self.room.events.iter().enumerate().filter(|(old, _)| !self.lost.contains(old)) {
            debug_assert_eq!(room.events.len(), position(&old));
            let (event, rejected): (Event, bool) = (event.event.clone(), event.rejected);
            let (state, after) = (Rc::clone(&empty), Rc::clone(&empty));
            room.events.push(RoomEvent { event, states: vec![], state, rejected, after });
        }
        (room, states.iter().map(|old| state(old)).collect())
    }
}

/// What an oracle says, if it is there.
fn ask(oracle: Oracle, room: &Room, states: &[State]) -> Option<Result<PlainState, String>> {
    match oracle {
        Oracle::Ruma => {
            let plain: Vec<PlainState> = states.iter().map(|state| room.plain(state)).collect();
            let events = room.events.iter().map(|event| (&event.event, event.rejected));
            Some(RumaRoom::new(room.version, events).unwrap().resolve(&plain))
        }
        Oracle::Synapse => {
            let mut synapse = SYNAPSE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let answer = synapse.as_mut()?.judge(room, &[states.iter().collect()], &[]);
            let theirs = answer.resolved(0).map_err(str::to_owned);
            Some(theirs.map(|all| all.into_iter().map(|(t, k, id)| ((t, k), id)).collect()))
        }
    }
}

pub(crate) fn versions(range: std::ops::RangeInclusive<u32>) -> impl Iterator<Item = &'static RoomVersion> {
    range.map(|id| RoomVersion::get(&id.to_string()).unwrap())
}

pub(crate) fn key(event_type: &str) -> Key {
    (event_type.to_owned(), String::new())
}

pub(crate) fn member(user: &str) -> Key {
    ("m.room.member".to_owned(), user.to_owned())
}
