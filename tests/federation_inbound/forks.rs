//! Forks in rooms whose state is a trie of many nodes, most of which nobody has read when it comes to resolving.

use serde_json::{Value, json};
use verge::room::Draft;

use crate::{Scene, common::homeserver::object, scene};

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
