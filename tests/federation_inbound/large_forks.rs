//! Forks in rooms whose state is a trie of many nodes, most of which nobody has read when it comes to resolving.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    matrix::{
        event::Event,
        room_version::RoomVersion,
        state_resolution::{StateEvent, memory::Memory},
        state_trie::{NodeId, StateKeyHash},
    },
    room::Draft,
    router::json_response,
};

use crate::{
    Scene,
    common::{generator::Random, homeserver::object, peer::event_id},
    scene,
};

/// Bob has the power to change everything in a room of so many settings.
fn large_room(version: &str, settings: usize) -> Scene {
    let mut scene = scene(version);
    let users =
        if version == "12" { json!({ &scene.bob: 50 }) } else { json!({ scene.alice.as_str(): 100, &scene.bob: 50 }) };
    let mut send = |event_type: &str, state_key: &str, content: Value| {
        let draft = Draft::state(event_type, state_key, object(content));
        let event = scene.a.send(&scene.world, &scene.room, &scene.alice, draft);
        scene
            .theirs
            .state
            .insert((event_type.to_owned(), state_key.to_owned()), serde_json::from_str(event.json()).unwrap());
        scene.theirs.advance(event.event_id().as_str());
    };
    send("m.room.power_levels", "", json!({ "users": users }));
    for number in 0..settings {
        send("x.setting", &number.to_string(), json!({ "value": 0 }));
    }
    scene.world.settle();
    scene
}

impl Scene {
    /// A state event of Bob's after `prev_events`.
    fn change(&self, prev_events: &[&str], state_key: &str, value: &str) -> (String, Value) {
        let fields = json!({
            "type": "x.setting", "state_key": state_key, "content": { "value": value }, "prev_events": prev_events,
        });
        self.peer.sign(&self.theirs.version, self.theirs.draft(self.world.now_ms(), &self.bob, fields))
    }

    /// Sends a transaction of events, all of which must be accepted.
    fn arrive(&self, txn_id: &str, events: &[&(String, Value)]) {
        let pdus: Vec<Value> = events.iter().map(|(_, event)| event.clone()).collect();
        let (status, answer) = self.peer.send(&self.a, txn_id, &pdus);
        assert_eq!(status, 200, "{answer}");
        for (id, _) in events {
            assert_eq!(answer["pdus"][id], json!({}));
        }
        self.world.settle();
    }

    fn setting(&self, state_key: &str) -> String {
        let (_, state) =
            self.world.run(self.a.rooms.current(&self.room, &[("x.setting", state_key)])).unwrap().unwrap();
        state[0].event_id().to_string()
    }
}

#[test]
fn changes_in_two_forks_both_count() {
    for version in ["10", "11", "12"] {
        for settings in [1, 200, 1_500] {
            let scene = large_room(version, settings);
            let fork = scene.theirs.last.clone();
            let changes: Vec<(String, Value)> =
                (0..6).map(|number| scene.change(&[&fork], &format!("new {number}"), "changed")).collect();
            // One that follows in the transaction makes a state that is not stored yet, and forks with one that is.
            let follows = scene.change(&[&changes[0].0], "follows", "0");
            scene.arrive("1", &[&changes[0]]);
            scene.arrive("2", &[&changes[1], &changes[2]]);
            scene.arrive("3", &[&follows, &changes[3]]);
            let merge = scene.change(&[&follows.0, &changes[1].0, &changes[2].0], "merge", "1");
            let merges_all = scene.change(&[&merge.0, &changes[3].0, &changes[4].0], "merges all", "2");
            scene.arrive("4", &[&merge]);
            scene.arrive("5", &[&changes[4], &changes[5], &merges_all]);
            for (number, (id, _)) in changes.iter().enumerate() {
                assert_eq!(scene.setting(&format!("new {number}")), *id, "version {version}, {settings} settings");
            }
            for (state_key, (id, _)) in [("follows", &follows), ("merge", &merge), ("merges all", &merges_all)] {
                assert_eq!(scene.setting(state_key), *id, "version {version}, {settings} settings");
            }
        }
    }
}

/// The engine over a room's events in memory, which knows nothing of databases, rooms and transactions.
struct Engine<'a> {
    scene: &'a Scene,
    memory: Memory,
    /// The state after each event.
    after: BTreeMap<String, NodeId>,
}

impl<'a> Engine<'a> {
    /// Of all events so far, up to `last`.
    fn new(scene: &'a Scene, last: &str) -> Self {
        let mut engine = Self { scene, memory: Memory::default(), after: BTreeMap::new() };
        for row in scene.a.database.rows("SELECT event_id, json FROM events") {
            engine.know(&row[0], &row[1]);
        }
        let state = scene.a.state(&scene.world, &scene.room);
        let entries = state.iter().map(|(t, k, id)| (StateKeyHash::new(t, k), id.as_str().into()));
        let root = engine.memory.snapshot(entries);
        engine.after.insert(last.to_owned(), root);
        engine
    }

    #[expect(clippy::disallowed_methods, reason = "the server has checked them")]
    fn know(&mut self, event_id: &str, json: &str) {
        let version = RoomVersion::get(&self.scene.theirs.version).unwrap();
        let event = Event::from_store(event_id, json, version).unwrap();
        if event.state_key().is_some() {
            self.memory.insert(StateEvent { event, rejected: false });
        }
    }

    /// The state after `events`, resolved.
    fn state<'e>(&mut self, events: impl IntoIterator<Item = &'e String>) -> NodeId {
        let roots: Vec<NodeId> = events.into_iter().map(|id| self.after[id]).collect();
        let version = RoomVersion::get(&self.scene.theirs.version).unwrap();
        let (resolved, _) = self.memory.resolve(version, &self.scene.room, &roots).unwrap();
        self.memory.add_nodes(&resolved.nodes);
        resolved.root
    }

    /// A state event of Bob's after `prev_events`, which cites what that state has for it.
    fn change(&mut self, prev_events: &BTreeSet<String>, depth: usize, fields: Value) -> (String, Value) {
        let before = self.state(prev_events);
        let id_of = |event: &StateEvent| event.event.event_id().to_string();
        let at = |t: &str, k: &str| {
            self.memory.state(before).into_iter().find(|event| event.event.is_state(t, k)).map(id_of)
        };
        let mut auth_events = vec![at("m.room.power_levels", ""), at("m.room.member", &self.scene.bob)];
        if self.scene.theirs.version != "12" {
            auth_events.push(at("m.room.create", ""));
        }
        let (now, theirs) = (self.scene.world.now_ms(), &self.scene.theirs);
        let mut draft = theirs.draft(now + depth as i64, &self.scene.bob, fields);
        draft["auth_events"] = json!(auth_events);
        draft["prev_events"] = json!(prev_events);
        draft["depth"] = json!(theirs.depth + depth as i64);
        let (id, event) = self.scene.peer.sign(&theirs.version, draft);
        self.know(&id, &event.to_string());
        let key = |event: &Event| StateKeyHash::new(event.event_type(), event.state_key().unwrap());
        let mut entries: BTreeMap<StateKeyHash, String> =
            self.memory.state(before).into_iter().map(|known| (key(&known.event), id_of(known))).collect();
        let changed = StateKeyHash::new(event["type"].as_str().unwrap(), event["state_key"].as_str().unwrap());
        entries.insert(changed, id.clone());
        let root = self.memory.snapshot(entries.into_iter().map(|(key, id)| (key, id.as_str().into())));
        self.after.insert(id.clone(), root);
        (id, event)
    }
}

/// However a room forks, and in whatever transactions it arrives, its state is the one that the engine alone resolves.
#[test]
fn random_forks_end_in_the_state_that_the_engine_resolves() {
    for (version, seed) in ["10", "12"].into_iter().flat_map(|version| (0..6).map(move |seed| (version, seed))) {
        let scene = large_room(version, 150);
        let mut random = Random::new(seed);
        let mut engine = Engine::new(&scene, &scene.theirs.last);
        let mut events = vec![scene.theirs.last.clone()];
        let mut tips = BTreeSet::from([scene.theirs.last.clone()]);
        let mut depth = 0;
        for txn in 0..12 {
            let mut arriving = Vec::new();
            for _ in 0..=random.below(6) {
                depth += 1;
                let newest = &events[events.len().saturating_sub(8)..];
                let prev_events: BTreeSet<String> =
                    (0..=random.below(3)).map(|_| random.pick(newest).clone()).collect();
                let fields = match random.below(8) {
                    0 => {
                        let mut users = json!({ &scene.bob: 50 });
                        if version == "10" {
                            users[scene.alice.as_str()] = json!(100);
                        }
                        let content = json!({ "users": users, "notifications": { "room": random.below(50) } });
                        json!({ "type": "m.room.power_levels", "state_key": "", "content": content })
                    }
                    1 => json!({ "type": "m.room.name", "state_key": "", "content": { "name": depth.to_string() } }),
                    _ => {
                        let state_key = random.below(300).to_string();
                        json!({ "type": "x.setting", "state_key": state_key, "content": { "value": depth } })
                    }
                };
                let event = engine.change(&prev_events, depth, fields);
                tips.retain(|id| !prev_events.contains(id));
                tips.insert(event.0.clone());
                events.push(event.0.clone());
                arriving.push(event);
            }
            scene.arrive(&txn.to_string(), &arriving.iter().collect::<Vec<_>>());
            let found = scene.a.database.rows("SELECT state FROM rooms");
            assert_eq!(found, [[engine.state(&tips).to_string()]], "version {version}, seed {seed}, transaction {txn}");
        }
    }
}

/// Other servers' word for a state counts for as long as the room does: a part of it that is only late must not be left out.
#[test]
fn a_state_is_taken_over_whole_or_not_at_all() {
    let mut scene = large_room("12", 1);
    let unseen = scene.change(&[&scene.theirs.last], "unseen", "by us");
    scene.theirs.advance(&unseen.0);
    let edge = scene.theirs.say(&scene.peer, &scene.bob, "unseen too");
    let seen = scene.theirs.say(&scene.peer, &scene.bob, "seen");
    let mut state: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
    state.push(unseen.0.clone());
    let is_late = Rc::new(Cell::new(true));
    let (late, events) = (Rc::clone(&is_late), [unseen.clone(), edge.clone()]);
    scene.peer.answers(move |request| {
        let path = request.uri().path();
        let (status, body) = if path.contains("/get_missing_events/") {
            (StatusCode::OK, json!({ "events": [] }))
        } else if path.contains("/state_ids/") {
            (StatusCode::OK, json!({ "pdu_ids": state, "auth_chain_ids": [] }))
        } else if path.ends_with(&events[0].0[1..]) && late.get() {
            (StatusCode::SERVICE_UNAVAILABLE, json!({ "errcode": "M_UNKNOWN", "error": "Later." }))
        } else {
            let (_, event) = events.iter().find(|(id, _)| path.ends_with(&id[1..]))?;
            (StatusCode::OK, json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": [event] }))
        };
        Some(json_response(status, &body))
    });
    scene.arrive("1", &[&seen]);
    assert!(!scene.a.shows(&seen.0), "{:?}", scene.world.logs());
    is_late.set(false);
    scene.world.advance(3_600_000);
    scene.world.run(scene.a.scheduled());
    scene.world.settle();
    assert!(scene.a.shows(&seen.0), "{:?}", scene.world.logs());
    assert_eq!(scene.setting("unseen"), unseen.0);
}
