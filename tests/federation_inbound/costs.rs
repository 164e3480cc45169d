//! What people cost: D1 calls and written rows, without those of indexes, of an encrypted room of 50 members on 10 servers.
//! `ARCHITECTURE.md` has the figures as a table.

use std::rc::Rc;

use http::StatusCode;
use serde_json::{Value, json};
use verge::{matrix::identifiers::UserId, room::Draft, router::json_response};

use crate::{
    Scene,
    abuse::{Cost, cost},
    common::{homeserver::object, peer::Peer},
    device_edus::{log_in, query},
    edus::receipt,
    scene,
};

struct Room {
    scene: Scene,
    /// The other servers.
    peers: Vec<Rc<Peer>>,
    /// Their members, five of each server.
    members: Vec<(Rc<Peer>, String)>,
    /// Those of this server.
    locals: Vec<UserId>,
}

fn room() -> Room {
    let scene = scene("12");
    let mut peers = vec![Rc::clone(&scene.peer)];
    peers.extend((1..9).map(|n| Peer::new(&scene.world, &format!("p{n}.example"))));
    let mut members = vec![(Rc::clone(&scene.peer), scene.bob.clone())];
    for peer in &peers {
        peer.answers(|request| {
            let is_sent = request.uri().path().starts_with("/_matrix/federation/v1/send/");
            is_sent.then(|| json_response(StatusCode::OK, &json!({ "pdus": {} })))
        });
        for n in 0..5 {
            let user = peer.user(&format!("m{n}"));
            if !(Rc::ptr_eq(peer, &scene.peer) && n == 0) {
                peer.join(&scene.a, scene.room.as_str(), &user);
                members.push((Rc::clone(peer), user));
            }
        }
    }
    let mut locals = vec![scene.alice.clone()];
    for n in 1..5 {
        let user = scene.a.user(&scene.world, &format!("l{n}"));
        let join = Draft::membership(user.as_str(), verge::matrix::state_content::Membership::Join, object(json!({})));
        scene.a.send(&scene.world, &scene.room, &user, join);
        locals.push(user);
    }
    let encryption = Draft::state("m.room.encryption", "", object(json!({ "algorithm": "m.megolm.v1.aes-sha2" })));
    scene.a.send(&scene.world, &scene.room, &scene.alice, encryption);
    log_in(&scene, "PHONE");
    scene.world.settle();
    assert_eq!((peers.len() + 1, members.len() + locals.len()), (10, 50));
    Room { scene, peers, members, locals }
}

impl Room {
    fn cost(&self, work: impl FnOnce()) -> Cost {
        cost(&self.scene.world, &self.scene.a, work)
    }

    /// A request of Alice's phone.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let request = http::Request::builder().method(method).uri(format!("/_matrix/client/v3{path}"));
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = request.header("Authorization", "Bearer PHONE").body(bytes::Bytes::from(body)).unwrap();
        let response = self.scene.world.run(self.scene.a.handle(request));
        let answer = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(response.status(), 200, "{answer}");
        answer
    }
}

#[test]
fn an_encrypted_room_of_fifty_costs_what_the_table_says() {
    let room = room();
    let scene = &room.scene;
    let quoted = crate::common::peer::encode(scene.room.as_str());
    let content = json!({ "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x".repeat(600), "session_id": "s", "device_id": "PHONE" });
    let mut event_id = String::new();
    let mut figures = Vec::new();
    // All that is known once is known.
    for n in 0..2 {
        let sent = room.cost(|| {
            let answer = room.ask("PUT", &format!("/rooms/{quoted}/send/m.room.encrypted/{n}"), &content);
            event_id = answer["event_id"].as_str().unwrap().to_owned();
        });
        if n == 1 {
            figures.push(("sent to nine servers", sent));
        }
    }
    // Every other member reads it: a transaction of each server, with its five receipts.
    let read = room.cost(|| {
        for peer in &room.peers {
            let of_peer = room.members.iter().filter(|(server, _)| Rc::ptr_eq(server, peer));
            let edus: Vec<Value> =
                of_peer.map(|(_, user)| receipt(scene.room.as_str(), user, &event_id, json!({ "ts": 1 }))).collect();
            let body = json!({ "origin": peer.name, "origin_server_ts": 1, "pdus": [], "edus": edus });
            assert_eq!(peer.put(&scene.a, "/_matrix/federation/v1/send/read", &body).0, 200);
        }
    });
    figures.push(("45 receipts of nine servers", read));
    figures.push((
        "a receipt here, told to nine servers",
        room.cost(|| {
            room.ask(
                "POST",
                &format!("/rooms/{quoted}/receipt/m.read/{}", crate::common::peer::encode(&event_id)),
                &json!({}),
            );
        }),
    ));
    let typing = format!("/rooms/{quoted}/typing/{}", crate::common::peer::encode(scene.alice.as_str()));
    figures.push((
        "typing begun",
        room.cost(|| drop(room.ask("PUT", &typing, &json!({ "typing": true, "timeout": 30_000 })))),
    ));
    figures.push(("typing ceased", room.cost(|| drop(room.ask("PUT", &typing, &json!({ "typing": false }))))));
    figures.push((
        "a message to a device elsewhere",
        room.cost(|| {
            let messages = json!({ "messages": { &scene.bob: { "D": { "n": 1 } } } });
            room.ask("PUT", "/sendToDevice/m.test/1", &messages);
        }),
    ));
    figures.push((
        "a message to a device here",
        room.cost(|| {
            let messages = json!({ "messages": { scene.alice.as_str(): { "PHONE": { "n": 1 } } } });
            room.ask("PUT", "/sendToDevice/m.test/2", &messages);
        }),
    ));
    let bob = scene.bob.clone();
    scene.peer.answers(move |request| {
        let answer = json!({ "user_id": bob, "stream_id": 1, "devices": [] });
        request.uri().path().contains("/user/devices/").then(|| json_response(StatusCode::OK, &answer))
    });
    figures.push(("keys of a user elsewhere, the first time", room.cost(|| drop(query(scene, "PHONE")))));
    figures.push(("the same, held", room.cost(|| drop(query(scene, "PHONE")))));
    let mut next = room.ask("GET", "/sync", &Value::Null)["next_batch"].as_str().unwrap().to_owned();
    let mut sync = || {
        let answer = room.ask("GET", &format!("/sync?since={next}&timeout=30000"), &Value::Null);
        answer["next_batch"].as_str().unwrap().clone_into(&mut next);
    };
    sync();
    let begun = scene.world.now_ms();
    let idle = room.cost(|| (0..120).for_each(|_| sync()));
    assert_eq!(scene.world.now_ms() - begun, 3_600_000, "an hour");
    let of = |calls, rows| Cost { calls, rows };
    let expected = [of(22, 52), of(18, 63), of(3, 2), of(3, 2), of(3, 2), of(4, 9), of(2, 3), of(5, 2), of(2, 0)];
    assert_eq!(figures.iter().map(|(_, cost)| *cost).collect::<Vec<_>>(), expected, "{figures:#?}");
    assert_eq!(idle, of(1_560, 0));
    assert_eq!(room.locals.len(), 5);
}
