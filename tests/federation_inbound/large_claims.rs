//! Claims of large states before what others cite, where a gap is not filled.

use std::rc::Rc;

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

use crate::common::{
    large_room::LargeRoom,
    network::World,
    peer::{Peer, event_id},
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
