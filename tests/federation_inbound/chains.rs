//! Forks with long chains of auth events on one side, which any member can make.

use serde_json::{Value, json};
use verge::matrix::{
    event::Event,
    json::Value as JsonValue,
    room_version::{EventIds, RoomVersion},
};

use crate::{Scene, accepted, common::rooms::event_of, scene};

impl Scene {
    /// A profile change of Bob's after `previous` that cites his membership `cited`.
    fn profile(&self, number: usize, previous: &str, cited: &str, padding: usize) -> (String, Value) {
        let content =
            json!({ "membership": "join", "displayname": format!("Bob {number}"), "x.padding": "x".repeat(padding) });
        let fields =
            json!({ "type": "m.room.member", "state_key": self.bob, "content": content, "prev_events": [previous] });
        let theirs = &self.theirs;
        let mut draft = theirs.draft(self.world.now_ms() + number as i64, &self.bob, fields);
        let mut auth_events = vec![theirs.state_id("m.room.power_levels", ""), Some(cited.to_owned())];
        auth_events.push(theirs.state_id("m.room.join_rules", ""));
        if theirs.version != "12" {
            auth_events.push(theirs.state_id("m.room.create", ""));
        }
        draft["auth_events"] = json!(auth_events);
        draft["depth"] = json!(theirs.depth + 1 + number as i64);
        self.peer.sign(&theirs.version, draft)
    }

    /// A chain of profile changes from the end of the room.
    fn chain(&self, length: usize, padding: usize) -> Vec<(String, Value)> {
        let join = self.theirs.state_id("m.room.member", &self.bob).unwrap();
        let (mut previous, mut cited) = (self.theirs.last.clone(), join);
        (0..length)
            .map(|number| {
                let made = self.profile(number, &previous, &cited, padding);
                (previous, cited) = (made.0.clone(), made.0.clone());
                made
            })
            .collect()
    }

    /// Sends events in transactions of fifty at most, and returns the most database calls that one took.
    fn arrive_all(&self, name: &str, events: &[(String, Value)]) -> u64 {
        let mut most = 0;
        for (number, events) in events.chunks(50).enumerate() {
            let pdus: Vec<Value> = events.iter().map(|(_, event)| event.clone()).collect();
            let before = self.a.database.calls.get();
            let (status, answer) = self.peer.send(&self.a, &format!("{name}{number}"), &pdus);
            most = most.max(self.a.database.calls.get() - before);
            assert_eq!(status, 200, "{answer} {:?}", self.world.logs());
            for (id, _) in events {
                assert_eq!(answer["pdus"][id], json!({}));
            }
            self.world.settle();
        }
        most
    }

    fn bobs_membership(&self) -> String {
        let key = ("m.room.member", self.bob.as_str());
        let (_, state) = self.world.run(self.a.rooms.current(&self.room, &[key])).unwrap().unwrap();
        state[0].event_id().to_string()
    }

    fn extremities(&self) -> String {
        self.a.database.rows("SELECT extremities FROM rooms")[0][0].clone()
    }
}

#[test]
fn a_long_chain_on_one_side_of_a_fork_takes_few_calls() {
    for version in ["10", "11", "12"] {
        let scene = scene(version);
        let join = scene.theirs.state_id("m.room.member", &scene.bob).unwrap();
        let chain = scene.chain(5_000, 0);
        scene.arrive_all("chain", &chain);
        let end = chain.last().unwrap().0.clone();
        // The other side, from the beginning of the chain, is the latest by its own word, and so it wins.
        let fork = scene.profile(6_000, &scene.theirs.last, &join, 0);
        let calls = scene.arrive_all("fork", std::slice::from_ref(&fork));
        assert!(calls <= 12, "version {version}: the fork took {calls} calls");
        assert!(scene.extremities().contains(&fork.0) && scene.extremities().contains(&end));
        assert_eq!(scene.bobs_membership(), fork.0, "version {version}");
        let mut merge = scene.theirs.clone();
        merge.depth += 7_000;
        let draft = json!({
            "type": "m.room.message", "content": { "body": "both" }, "prev_events": [fork.0, end],
            "auth_events": [scene.theirs.state_id("m.room.power_levels", ""), fork.0],
        });
        let mut draft = merge.draft(scene.world.now_ms(), &scene.bob, draft);
        if version != "12" {
            draft["auth_events"].as_array_mut().unwrap().push(json!(scene.theirs.state_id("m.room.create", "")));
        }
        let merge = scene.peer.sign(version, draft);
        let calls = scene.arrive_all("merge", std::slice::from_ref(&merge));
        assert!(calls <= 12, "version {version}: the merge took {calls} calls");
        assert!(scene.a.shows(&merge.0) && !scene.extremities().contains(&fork.0));
    }
}

/// Each event of the growing side is a state resolution of its own.
#[test]
fn a_side_of_a_fork_that_grows_takes_few_calls() {
    for version in ["11", "12"] {
        let scene = scene(version);
        let join = scene.theirs.state_id("m.room.member", &scene.bob).unwrap();
        let fork = scene.profile(6_000, &scene.theirs.last, &join, 0);
        scene.arrive_all("fork", &[fork]);
        let calls = scene.arrive_all("chain", &scene.chain(400, 0));
        assert!(calls <= 20, "version {version}: {calls} calls");
    }
}

/// What cannot matter to a resolution is not read for it: these would fill the memory three times over.
#[test]
fn a_chain_of_long_events_takes_no_more() {
    for version in ["11", "12"] {
        let scene = scene(version);
        let join = scene.theirs.state_id("m.room.member", &scene.bob).unwrap();
        scene.arrive_all("chain", &scene.chain(500, 60_000));
        let fork = scene.profile(6_000, &scene.theirs.last, &join, 0);
        let calls = scene.arrive_all("fork", std::slice::from_ref(&fork));
        assert!(calls <= 12, "version {version}: {calls} calls");
        assert_eq!(scene.bobs_membership(), fork.0, "version {version}");
    }
}

/// Changes of Bob's profile, each of which cites the one before as an auth event, and the first one `cited`.
fn citing_in_a_row(scene: &Scene, length: usize, cited: &str) -> Vec<Event> {
    let version = RoomVersion::get(&scene.theirs.version).unwrap();
    let mut events: Vec<Event> = Vec::new();
    for number in 0..length {
        let content = json!({ "membership": "join", "displayname": format!("Bob {number}") });
        let fields = json!({ "type": "m.room.member", "state_key": scene.bob, "content": content, "prev_events": [] });
        let mut draft = scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields);
        let cited = events.last().map_or(cited, |event| event.event_id().as_str()).to_owned();
        let is_given = version.event_ids == EventIds::Given;
        draft["auth_events"] = if is_given { json!([[cited, { "sha256": "" }]]) } else { json!([cited]) };
        if is_given {
            draft["event_id"] = json!(format!("$n{number}:peer.example"));
        }
        events.push(event_of(JsonValue::from(draft).into_object().unwrap(), version));
    }
    events
}

/// Nothing of a chain can be judged that begins with what nobody gives, or of a circle, which events can stand in that are given
/// their IDs. If each of them took a look at all others, it would be minutes until others had their turn.
#[test]
fn auth_events_that_lead_to_nothing_are_left_out_at_once() {
    const LENGTH: usize = 5_000;
    let last = format!("$n{}:peer.example", LENGTH - 1);
    for (version, first) in [("1", "$nobody:peer.example"), ("11", "$nobody"), ("2", last.as_str())] {
        let scene = scene(version);
        let events = citing_in_a_row(&scene, LENGTH, first);
        let (before, held) = (scene.world.pauses(), accepted(&scene.a));
        // Nor is it of any use.
        assert!(
            !scene.world.run(scene.a.rooms.add_auth_events(&scene.room, &events, None)).unwrap(),
            "{version}, {first}"
        );
        let pauses = scene.world.pauses() - before;
        assert!(pauses >= (LENGTH - 1) / 500, "{version}, {first}: {pauses} pauses");
        assert_eq!(accepted(&scene.a), held);
        assert!(scene.a.database.rows("SELECT 1 FROM rejected_events").is_empty());
    }
}
