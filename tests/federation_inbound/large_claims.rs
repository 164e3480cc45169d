//! Claims of large states before what others cite, where a gap is not filled.

use std::{cell::Cell, rc::Rc};

use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    federation::outbound::membership,
    matrix::{
        identifiers::{RoomId, ServerName},
        json::Object,
    },
    router::json_response,
};

use crate::{
    claims::bob_admits,
    common::{
        large_room::LargeRoom,
        network::World,
        peer::{Peer, event_id},
    },
    extremities::empower,
    missing::{answer_of, asked, not_found},
    scene,
    settling::claims_what_is_old,
};

const VERSION: &str = "11";

/// A room, in which we have been since it was small, has many members more, of whom none has reached us.
#[test]
fn others_have_their_turn_while_a_large_state_is_taken_over() {
    for members in [1_200, 4_000] {
        let world = World::new();
        // In an object, which does one thing at a time.
        world.wake_by_commits();
        let b = world.server("b.example");
        let bob = b.user(&world, "bob");
        let peer = Peer::new(&world, "peer.example");
        let mut room = LargeRoom::new(&peer, 3);
        room.opens();
        let room_id = RoomId::parse(&room.room_id).unwrap();
        let via = vec![ServerName::parse("peer.example").unwrap()];
        world.run(membership::join(&b, &bob, &room_id, via, Object::new())).unwrap();
        world.settle();
        for at in 0..members {
            room.member(&peer.user(&format!("late{at}")));
        }
        let edge = says(&peer, &room, "unseen", "$nobody");
        let said = says(&peer, &room, "seen", &edge.0);
        answers(&peer, room.state().to_vec(), edge);
        let before = world.pauses();
        assert_eq!(peer.send(&b, "1", std::slice::from_ref(&said.1)).0, 200);
        world.settle();
        let (pauses, rows) = (world.pauses() - before, world.most_rows());
        assert!(b.shows(&said.0), "{:?}", world.logs());
        assert_eq!(b.state(&world, &room_id).len(), members + 8);
        // Of what is read, the outlines of those on which the states differ, for resolving these, come in one answer.
        assert!(rows.written <= 600 && rows.read <= members + 1_200, "{rows:?} of {members}");
        assert!(pauses >= 3 * members / 50, "{pauses} pauses of {members}");
    }
}

fn says(peer: &Peer, room: &LargeRoom, body: &str, previous: &str) -> (String, Value) {
    let creator = room.creator.clone();
    let auth: Vec<String> = room.auth().into_iter().take(2).chain([creator]).collect();
    peer.sign(VERSION, json!({
        "type": "m.room.message", "sender": peer.user("admin"), "room_id": room.room_id, "content": { "msgtype": "m.text", "body": body },
        "auth_events": auth, "prev_events": [previous], "depth": 200_000, "origin_server_ts": 1_600_000_000_001_i64,
    }))
}

/// The peer gives no history, but the event `edge` and the state before it.
fn answers(peer: &Rc<Peer>, state: Vec<Value>, (edge_id, edge): (String, Value)) {
    peer.answers(move |request| {
        let path = request.uri().path();
        let body = if path.contains("/get_missing_events/") {
            json!({ "events": [] })
        } else if path.contains("/state_ids/") {
            let ids: Vec<String> = state.iter().map(|event| event_id(VERSION, event)).collect();
            json!({ "pdu_ids": ids, "auth_chain_ids": ids[..4] })
        } else if path.contains("/v1/state/") {
            json!({ "pdus": state, "auth_chain": state[..4] })
        } else if path.ends_with(&edge_id[1..]) {
            json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": [edge] })
        } else {
            return None;
        };
        Some(json_response(StatusCode::OK, &body))
    });
}

/// Who may join has changed in a gap, and by the state that is claimed behind it Dave may not. Nor may Mallory, whose server claims a
/// large state before what she says, with Dave's join in it: as hers is rejected, that is not believed.
#[test]
fn a_large_claim_that_is_not_believed_takes_back_no_rejection() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        empower(&mut scene);
        let mallory = Peer::new(&scene.world, "mallory.example");
        let (bob, dave, her) = (scene.bob.clone(), scene.peer.user("dave"), mallory.user("mallory"));
        let closed = bob_admits(&mut scene, "invite");
        scene.receives("closed", &closed);
        let (old, remembers) = (scene.state(), Rc::new(Cell::new(false)));
        let [lost, open, edge] =
            [scene.says(&bob, "lost"), bob_admits(&mut scene, "public"), scene.says(&bob, "the edge")];
        claims_what_is_old(&scene, &[lost, open, edge], &old, &remembers);
        scene.world.advance(1);

        let mut hers = scene.theirs.clone();
        let joins = |user: &str, nonce: &str| {
            let content = json!({ "membership": "join", "displayname": nonce });
            hers.draft_member(scene.world.now_ms(), user, user, content)
        };
        let her_join = mallory.sign(version, joins(&her, "mallory"));
        let made_up: Vec<(String, Value)> = (0..120)
            .map(|n| {
                let mut join = joins(&mallory.user(&format!("puppet{n}")), "puppet");
                join["prev_events"] = json!([format!("${n:043}")]);
                mallory.sign(version, join)
            })
            .collect();
        hers.state.insert(("m.room.member".to_owned(), her.clone()), her_join.1.clone());
        // So that it is asked about after her join.
        hers.depth += 1;
        let she_says = hers.say(&mallory, &her, "believe me");
        let [join, said] = [scene.becomes(&dave, "join"), scene.says(&dave, "am I heard?")];
        let state: Vec<Value> = scene.state().into_iter().chain(made_up.iter().map(|(_, join)| join.clone())).collect();
        let (about, claimed) = (she_says.0.clone(), state.clone());
        let ids: Vec<String> = state.iter().map(|event| event_id(version, event)).collect();
        mallory.answers(move |request| {
            let target = request.uri().to_string();
            let body = match target.contains(&about[1..]) {
                true if target.contains("/state_ids/") => json!({ "pdu_ids": ids, "auth_chain_ids": [] }),
                true if target.contains("/v1/state/") => json!({ "pdus": claimed, "auth_chain": [] }),
                _ => return answer_of(&[], request).or_else(|| target.contains("/federation/v1/").then(not_found)),
            };
            Some(json_response(StatusCode::OK, &body))
        });
        [&join, &her_join, &she_says, &said].into_iter().for_each(|event| scene.receives(&event.0, event));
        (0..4).for_each(|_| scene.an_hour_passes());

        let why = format!("{version}: {:#?}", scene.world.logs());
        assert!(asked(&mallory, "/v1/state/") > 0, "{why}");
        assert!(why.contains("what is claimed of the state before an event is not believed"), "{why}");
        let is_held = |id: &str| scene.rows(&format!("SELECT 1 FROM events WHERE event_id = '{id}'")) == 1;
        assert!(made_up.iter().all(|(id, _)| is_held(id)), "{why}");
        let rejected = format!("SELECT 1 FROM rejected_events WHERE event_id = '{}' AND provisional", join.0);
        assert_eq!(scene.rows(&rejected), 1, "{why}");
        // Or who claims it later would not be asked for it.
        assert!(!is_held(&join.0), "{why}");

        remembers.set(true);
        scene.an_hour_passes();
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"), "{why}");
        scene.is_shown(&[join, said]);
    }
}
