//! What has changed in a room that is settled is carried on to its end, whatever comes between: the events that one run has time for,
//! an error, and what others commit meanwhile.

use futures_util::future::join;
use http::Method;
use serde_json::{Value, json};
use verge::room::{Draft, Left};

use crate::{
    Scene,
    common::{homeserver::object, network::World},
    scene, scene_in,
    withdrawn::Returned,
};

/// An event and its ID.
type Known = (String, Value);

/// By the state before an edge Dave is in the room; what came between makes his coming back one that was forbidden, and comes when
/// the room has gone on from that state.
struct Taken {
    returned: Returned,
    before: Known,
}

impl Taken {
    fn new(scene: Scene) -> Self {
        let (before, mut returned) = Returned::after_what_is_lacking(scene);
        returned.claims_that_dave_is_back();
        Self { returned, before }
    }

    fn sends(&self, txn_id: &str, events: &[Known]) {
        let scene = &self.returned.scene;
        for (number, events) in events.chunks(50).enumerate() {
            let pdus: Vec<Value> = events.iter().map(|(_, event)| event.clone()).collect();
            let (status, answer) = scene.peer.send(&scene.a, &format!("{txn_id}{number}"), &pdus);
            assert_eq!(status, 200);
            assert!(events.iter().all(|(id, _)| answer["pdus"][id] == json!({})), "{answer}");
        }
        scene.world.settle();
    }

    /// Two events of Bob's beside each other, one of which changes the state.
    fn forks(&mut self) -> [Known; 2] {
        let scene = &mut self.returned.scene;
        let profile = json!({ "membership": "join", "displayname": "Bob" });
        let profile = scene.theirs.draft_member(scene.world.now_ms(), &scene.bob, &scene.bob, profile);
        let profile = scene.peer.sign(&scene.theirs.version, profile);
        let said = scene.theirs.say(&scene.peer, &scene.bob, "beside it");
        [profile, said]
    }

    /// A message of Bob's that cites these.
    fn merges(&mut self, previous: &[Known]) -> Known {
        let scene = &mut self.returned.scene;
        let previous: Vec<&str> = previous.iter().map(|(id, _)| id.as_str()).collect();
        let fields = json!({ "type": "m.room.message", "content": { "body": "both" }, "prev_events": previous });
        let draft = scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields);
        let merge = scene.peer.sign(&scene.theirs.version, draft);
        scene.theirs.advance(&merge.0);
        merge
    }

    fn is_found_out(&self) {
        let Self { returned, before } = self;
        assert_eq!(returned.membership().as_deref(), Some("join"));
        assert_eq!(returned.receives("before", before), json!({}));
        assert!(returned.receives("back", &returned.back)["error"].is_string());
        // It counts for nothing, and what it displaced is still lacking.
        assert_eq!(returned.membership(), None);
    }

    /// The room is settled so far as it can be; `attempt` is the first one's number.
    fn is_settled(&self, attempt: usize) {
        let scene = &self.returned.scene;
        let left = |attempt| scene.world.run(scene.a.rooms.settle(&scene.room, attempt)).unwrap().left;
        assert!((attempt..attempt + 10).any(|attempt| left(attempt) != Left::More), "it comes to no end");
    }

    /// As if Dave had never come back.
    fn is_out(&self, of: &str) {
        let Returned { scene, back, .. } = &self.returned;
        assert_eq!(self.returned.membership().as_deref(), Some("leave"), "{of}: {:#?}", scene.world.logs());
        let state = scene.a.state(&scene.world, &scene.room);
        assert!(state.iter().all(|(.., id)| *id != back.0), "{of}");
        assert_eq!(scene.a.database.wrong_member_counts(), [""; 0], "{of}");
        assert_eq!(scene.a.database.rows("SELECT joined FROM rooms"), [["2"]], "{of}");
    }
}

/// More has been said since than one run judges again: the first begins with the oldest, or else with what comes last.
#[test]
fn what_is_taken_out_of_a_state_is_taken_out_of_all_that_followed() {
    let mut taken = Taken::new(scene("12"));
    let said = taken.returned.scene.say(850);
    taken.sends("said", &said);
    taken.is_found_out();
    let found_out = taken.returned.scene.a.database.copy();
    for attempt in [0, 1] {
        let scene = &mut taken.returned.scene;
        scene.a = scene.world.server_over("a.example", found_out.copy(), &[]);
        taken.is_settled(attempt);
        taken.is_out(&format!("attempt {attempt}"));
    }
}

/// The run that begins it fails at the merge of a fork, when the sides of the fork may have been settled.
#[test]
fn what_is_settled_in_part_is_settled_further() {
    for between in 92..=100 {
        let mut taken = Taken::new(scene("12"));
        let mut said = taken.returned.scene.say(between);
        let sides = taken.forks();
        let merge = taken.merges(&sides);
        said.extend(sides);
        said.push(merge.clone());
        said.extend(taken.returned.scene.say(1));
        taken.sends("said", &said);
        taken.is_found_out();
        let scene = &taken.returned.scene;
        *scene.a.database.refuses.borrow_mut() = Some(format!("[\"{}\"", merge.0));
        assert!(scene.world.run(scene.a.rooms.settle(&scene.room, 1)).is_err(), "{between} between");
        *scene.a.database.refuses.borrow_mut() = None;
        taken.is_settled(1);
        taken.is_out(&format!("{between} between"));
    }
}

/// Bob goes on from the end of what is settled, or Alice from that and what she had before the gap.
#[test]
fn what_comes_while_a_room_is_settled_follows_it() {
    for (seed, by_alice) in (1..=20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut taken = Taken::new(scene_in(World::seeded(seed), "12"));
        taken.is_found_out();
        let scene = &mut taken.returned.scene;
        let (id, said) = scene.theirs.say(&scene.peer, &scene.bob, "meanwhile");
        let body = json!({ "origin": scene.peer.name, "origin_server_ts": scene.world.now_ms(), "pdus": [said] });
        let target = "/_matrix/federation/v1/send/meanwhile";
        scene.world.interleave();
        let settled = scene.a.rooms.settle(&scene.room, 1);
        let speaks = async {
            if by_alice {
                let draft = Draft::message("m.room.message", object(json!({ "body": "meanwhile" })));
                scene.a.rooms.send(&scene.room, &scene.alice, draft).await.unwrap();
            } else {
                let answer = scene.a.handle(scene.peer.request(&scene.a, Method::PUT, target, Some(&body))).await;
                let answer: Value = serde_json::from_slice(answer.body()).unwrap();
                assert_eq!(answer["pdus"][&id], json!({}), "seed {seed}");
            }
        };
        let (settled, ()) = scene.world.run(join(settled, speaks));
        assert_ne!(settled.unwrap().left, Left::More);
        taken.is_out(&format!("seed {seed}, by Alice: {by_alice}"));
    }
}
