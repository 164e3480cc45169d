//! What the log says of other servers' requests and PDUs, and of what they answer.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use verge::router::json_response;

use crate::{
    Scene,
    common::{
        network::World,
        peer::{Peer, PeerRoom, encode, event_id},
        sqlite::Sqlite,
    },
    scene,
};

/// The lines of our server's log that `what` names.
fn lines(scene: &Scene, what: &str) -> Vec<Value> {
    let logs = scene.world.logs();
    let ours = logs.iter().filter_map(|line| line.strip_prefix("a.example: "));
    ours.map(|line| serde_json::from_str(line).unwrap()).filter(|line: &Value| line["what"] == what).collect()
}

#[test]
fn every_pdu_that_is_not_taken_is_logged() {
    let mut scene = scene("12");
    // Its sender has not the power.
    let name = json!({ "type": "m.room.name", "state_key": "", "content": { "name": "c0ntent" } });
    let (rejected, event) = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &scene.bob, name));
    // Nobody signed it.
    let content = json!({ "msgtype": "m.text", "body": "c0ntent" });
    let unsigned = scene.theirs.draft(
        scene.world.now_ms(),
        &scene.bob,
        json!({ "type": "m.room.message", "content": content, "hashes": {}, "signatures": {} }),
    );
    let dropped = event_id("12", &unsigned);
    let (said, good) = scene.theirs.say(&scene.peer, &scene.bob, "c0ntent");
    let (status, answer) = scene.peer.send(&scene.a, "txn1", &[event, unsigned, good]);
    assert_eq!((status, &answer["pdus"][&said]), (200, &json!({})));
    scene.world.settle();
    for (what, id) in [("a PDU is rejected", &rejected), ("a PDU is dropped", &dropped)] {
        let told = lines(&scene, what);
        let [line] = told.as_slice() else { panic!("{what}: {told:?}") };
        assert_eq!(line["event"], json!(id));
        assert_eq!((&line["room"], &line["origin"]), (&json!(scene.room), &json!("peer.example")));
        assert!(line["reason"].is_string(), "{line}");
        assert!(answer["pdus"][id]["error"].is_string());
    }
    assert!(!scene.world.logs().concat().contains("c0ntent"));
    assert!(!scene.world.logs().concat().contains(&said));
}

#[test]
fn requests_of_servers_are_logged_with_who_and_what() {
    let world = World::new();
    let a = world.server_over("a.example", Sqlite::in_memory(), &[("LOG_COSTS", "1")]);
    let alice = a.user(&world, "alice");
    let room = a.public_room(&world, &alice, "12");
    let peer = Peer::new(&world, "peer.example");
    let bob = peer.user("bob");
    let theirs: PeerRoom = peer.join(&a, room.as_str(), &bob);
    world.settle();
    let scene = Scene { world, a, alice, room, peer, bob, theirs };
    let target = format!("/_matrix/federation/v1/state_ids/{}?event_id=%24query-v4lue", encode(scene.room.as_str()));
    let request = scene.peer.request(&scene.a, Method::GET, &target, None);
    let signature = request.headers()["Authorization"].to_str().unwrap().to_owned();
    let (status, _) = scene.peer.ask(&scene.a, request);
    let log = scene.world.logs();
    let line: Value = serde_json::from_str(log.last().unwrap().strip_prefix("a.example: ").unwrap()).unwrap();
    assert_eq!(line["endpoint"], json!("/_matrix/federation/v1/state_ids/{roomId}"));
    assert_eq!((&line["origin"], &line["room"]), (&json!("peer.example"), &json!(scene.room)));
    assert_eq!(line["status"], json!(status));
    assert!(line["calls"].as_u64().unwrap() > 0);
    let sig = signature.split("sig=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(!log.concat().contains("query-v4lue") && !log.concat().contains(sig));
    scene.peer.send(&scene.a, "txn-7", &[]);
    let sent = lines(&scene, "request");
    assert_eq!(sent.last().unwrap()["transaction"], json!("txn-7"));
}

#[test]
fn an_answer_that_cannot_be_read_is_not_quoted() {
    let mut scene = scene("12");
    scene.peer.answers(|request| {
        let asked = request.uri().path().starts_with("/_matrix/federation/v1/get_missing_events/");
        asked.then(|| json_response(StatusCode::OK, &json!({ "events": "c0ntent" })))
    });
    scene.theirs.say(&scene.peer, &scene.bob, "withheld");
    let (cites_it, event) = scene.theirs.say(&scene.peer, &scene.bob, "hello");
    scene.peer.send(&scene.a, "1", &[event]);
    scene.world.settle();
    let told = lines(&scene, "a server does not give what an event cites");
    let [line, ..] = told.as_slice() else { panic!("{:?}", scene.world.logs()) };
    assert_eq!((&line["destination"], &line["level"]), (&json!("peer.example"), &json!("warning")));
    assert_eq!((&line["room"], &line["event"]), (&json!(scene.room), &json!(cites_it)));
    assert!(line["reason"].as_str().unwrap().contains("cannot be used"), "{line}");
    assert!(!scene.world.logs().concat().contains("c0ntent"), "{:?}", scene.world.logs());
}
