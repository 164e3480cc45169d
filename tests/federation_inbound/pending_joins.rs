//! What other servers send of a room between their hearing of our join and our having taken the room over.

use std::{cell::Cell, rc::Rc};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use verge::{
    federation::outbound::membership,
    matrix::{
        identifiers::{RoomId, ServerName, UserId},
        json::Object,
        room_version::RoomVersion,
    },
    platform::Clock,
    room::Draft,
    router::json_response,
    store::pending_joins::BegunJoin,
};

use crate::{
    Scene,
    common::{
        homeserver::object,
        network::{Homeserver, World},
        peer::event_id,
    },
    scene,
};

fn via(names: &[&str]) -> Vec<ServerName> {
    names.iter().map(|name| ServerName::parse(name).unwrap()).collect()
}

/// From now on `resident` answers to `send_join` five seconds late, and `sender` has said something in the meantime. Where
/// `fails`, what it answers is no use.
fn answer_joins_late(world: &World, resident: &Homeserver, room: &RoomId, sender: &UserId, fails: bool) {
    let name = resident.config.server_name.to_string();
    let (server, clock) = (Rc::clone(&resident.server), world.clone());
    let (room, sender) = (room.clone(), sender.clone());
    world.connect(
        &name,
        Rc::new(move |request| {
            let (server, clock, room, sender) = (Rc::clone(&server), clock.clone(), room.clone(), sender.clone());
            Box::pin(async move {
                let joins = request.uri().path().contains("/send_join/");
                let response = server.handle(request).await;
                if !joins {
                    return response;
                }
                assert_eq!(response.status(), 200);
                let content = object(json!({ "msgtype": "m.text", "body": "meanwhile" }));
                server.rooms.send(&room, &sender, Draft::message("m.room.message", content)).await.unwrap();
                server.flush(&room);
                clock.sleep(5_000).await;
                let error = json!({ "errcode": "M_UNKNOWN", "error": "?" });
                if fails { json_response(StatusCode::INTERNAL_SERVER_ERROR, &error) } else { response }
            })
        }),
    );
}

fn said_meanwhile(server: &Homeserver) -> String {
    server.database.rows("SELECT event_id FROM events WHERE json LIKE '%meanwhile%'")[0][0].clone()
}

fn transactions(world: &World, from: &str, to: &str) -> usize {
    let sent = world.traffic();
    sent.iter().filter(|sent| sent.from == from && sent.to == to && sent.line.contains("/v1/send/")).count()
}

/// Whether the one transaction that `server` got was taken, every PDU of it.
fn took_all(server: &Homeserver) -> bool {
    server.database.rows("SELECT response LIKE '%:{}}}' FROM transactions") == [["1"]]
}

/// Nothing is left of a join, whatever became of it.
fn assert_nothing_left(server: &Homeserver) {
    for table in ["staged_pdus", "pending_joins"] {
        assert!(server.database.rows(&format!("SELECT 1 FROM {table}")).is_empty(), "{table}");
    }
}

#[test]
fn what_is_sent_while_a_join_is_answered_is_part_of_the_room() {
    for version in ["1", "10", "12"] {
        let world = World::new();
        let (a, b) = (world.server("a.example"), world.server("b.example"));
        let (alice, bob) = (a.user(&world, "alice"), b.user(&world, "bob"));
        let room = a.public_room(&world, &alice, version);
        answer_joins_late(&world, &a, &room, &alice, false);
        world.run(membership::join(&b, &bob, &room, via(&["a.example"]), Object::new())).unwrap();
        world.settle();
        assert!(b.shows(&said_meanwhile(&a)), "{:?}", world.logs());
        // It came once, was taken at once, and nothing that cites it has come since.
        assert_eq!(transactions(&world, "a.example", "b.example"), 1);
        assert!(took_all(&b));
        assert!(!world.logs().iter().any(|line| line.contains("did not take")), "{:?}", world.logs());
        assert_nothing_left(&b);
    }
}

#[test]
fn what_is_sent_during_an_attempt_that_failed_is_kept_for_the_next() {
    let world = World::new();
    let (a, b, c) = (world.server("a.example"), world.server("b.example"), world.server("c.example"));
    let (alice, bob, carol) = (a.user(&world, "alice"), b.user(&world, "bob"), c.user(&world, "carol"));
    let room = a.public_room(&world, &alice, "12");
    world.run(membership::join(&c, &carol, &room, via(&["a.example"]), Object::new())).unwrap();
    world.settle();
    answer_joins_late(&world, &a, &room, &alice, true);
    world.run(membership::join(&b, &bob, &room, via(&["a.example", "c.example"]), Object::new())).unwrap();
    world.settle();
    assert!(b.shows(&said_meanwhile(&a)), "{:?}", world.logs());
    assert_eq!(transactions(&world, "a.example", "b.example"), 1);
    assert_nothing_left(&b);
}

#[test]
fn a_join_that_fails_leaves_nothing_behind() {
    let world = World::new();
    let (a, b) = (world.server("a.example"), world.server("b.example"));
    let (alice, bob) = (a.user(&world, "alice"), b.user(&world, "bob"));
    let room = a.public_room(&world, &alice, "12");
    answer_joins_late(&world, &a, &room, &alice, true);
    let error = world.run(membership::join(&b, &bob, &room, via(&["a.example"]), Object::new())).unwrap_err();
    assert_eq!(error.status, 502);
    world.settle();
    assert_eq!(transactions(&world, "a.example", "b.example"), 1);
    assert!(took_all(&b));
    assert_nothing_left(&b);
    assert!(b.database.rows("SELECT 1 FROM events").is_empty());
}

/// Our server `b.example`, which is joining the room for a minute, as one that is said to have this version.
fn joining(scene: &Scene, version: &str) -> Homeserver {
    let b = scene.world.server("b.example");
    let version = RoomVersion::get(version).unwrap();
    let until = scene.world.now_ms() + 60_000;
    let user = UserId::parse("@joining:b.example").unwrap();
    let begun = scene.world.run(b.store.begin_join(&user, &scene.room, "begun", version, until)).unwrap();
    assert_eq!(begun, BegunJoin::Begun);
    b
}

#[test]
fn what_waits_for_a_join_was_checked_and_goes_with_it() {
    let mut scene = scene("12");
    let b = joining(&scene, "12");
    let staged = || b.database.rows("SELECT event_id, origin FROM staged_pdus ORDER BY event_id");

    let (id, event) = scene.theirs.say(&scene.peer, &scene.bob, "hello");
    let mut forged = event.clone();
    forged["depth"] = json!(99);
    let (status, answer) = scene.peer.send(&b, "1", &[event, forged.clone()]);
    assert_eq!((status, &answer["pdus"][&id]), (200, &json!({})), "{answer}");
    assert!(answer["pdus"][event_id("12", &forged)]["error"].is_string(), "{answer}");
    scene.world.settle();
    assert_eq!(staged(), [[id.as_str(), "peer.example"]]);
    // The scheduled trigger leaves it alone for as long as the join may take.
    scene.world.advance(59_000);
    scene.world.run(b.scheduled());
    assert_eq!(staged().len(), 1);

    // One server may not fill the table.
    b.database.rows(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 999) \
         INSERT INTO staged_pdus (room_id, event_id, origin, json, received_ts) \
         SELECT '!other', '$' || n, 'peer.example', '{}', 0 FROM n",
    );
    let (id, event) = scene.theirs.say(&scene.peer, &scene.bob, "too much");
    let (_, answer) = scene.peer.send(&b, "2", &[event]);
    assert!(answer["pdus"][&id]["error"].is_string(), "{answer}");
    assert_eq!(staged().len(), 1_000);

    // A join that was cut off counts no longer once its time is up.
    scene.world.advance(2_000);
    scene.world.run(b.scheduled());
    scene.world.settle();
    let (_, event) = scene.theirs.say(&scene.peer, &scene.bob, "too late");
    assert_eq!(scene.peer.send(&b, "3", &[event]), (200, json!({ "pdus": {} })));
    scene.world.advance(3_600_000 - scene.world.now_ms() % 3_600_000);
    scene.world.run(b.scheduled());
    assert_nothing_left(&b);
}

/// One server that lets us in may say that a room has another version than it has, and then keep us waiting.
#[test]
fn what_was_read_by_another_version_is_not_taken_under_the_id_that_it_makes() {
    let mut scene = scene("10");
    let b = joining(&scene, "3");
    let carol = b.user(&scene.world, "carol");
    let said: Vec<(String, Value)> =
        (0..8).map(|number| scene.theirs.say(&scene.peer, &scene.bob, &format!("message {number}"))).collect();
    let events: Vec<Value> = said.iter().map(|(_, event)| event.clone()).collect();
    for (txn_id, server) in [("1", &b), ("2", &scene.a)] {
        assert_eq!(scene.peer.send(server, txn_id, &events).0, 200);
    }
    // As what was staged before it was noted by which version.
    b.database.rows("UPDATE staged_pdus SET room_version = NULL");
    scene.world.run(membership::join(&b, &carol, &scene.room, via(&["a.example"]), Object::new())).unwrap();
    scene.world.settle();
    scene.a.say(&scene.world, &scene.room, &scene.alice, "and on");
    scene.world.settle();
    let ids = |server: &Homeserver| server.database.rows("SELECT event_id FROM events").concat();
    let true_ids = ids(&scene.a);
    let others: Vec<String> = ids(&b).into_iter().filter(|id| !true_ids.contains(id)).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// A message with a fraction, which the first versions take, and its ID: the hash of its content is right.
fn with_a_fraction(scene: &Scene) -> (String, Value) {
    let fields = json!({ "type": "m.room.message", "content": { "body": "x" } });
    let mut draft = scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields);
    draft["content"]["n"] = json!(1.5);
    let text = verge::matrix::json::parse(draft.to_string().as_bytes()).unwrap().to_text();
    draft["hashes"] = json!({ "sha256": STANDARD_NO_PAD.encode(Sha256::digest(text)) });
    let content = draft["content"].take();
    draft["content"] = json!({});
    let (id, mut event) = scene.peer.sign_only("5", draft);
    event["content"] = content;
    (id, event)
}

/// Most versions give an event the same ID, and only some of them refuse a fraction.
#[test]
fn what_was_checked_by_another_version_is_not_taken() {
    let mut scene = scene("10");
    let b = joining(&scene, "5");
    let carol = b.user(&scene.world, "carol");
    let (id, fraction) = with_a_fraction(&scene);
    let (_, answer) = scene.peer.send(&b, "1", &[fraction]);
    assert_eq!(answer["pdus"][&id], json!({}), "{answer}");
    assert_eq!(b.database.rows("SELECT event_id, hash_wrong FROM staged_pdus"), [[id.as_str(), "0"]]);
    // One that both versions take is taken when it comes again by the right one.
    let (good, event) = scene.theirs.say(&scene.peer, &scene.bob, "good");
    scene.peer.send(&b, "2", std::slice::from_ref(&event));
    scene.peer.send(&scene.a, "1", std::slice::from_ref(&event));
    b.database.rows("UPDATE pending_joins SET room_version = '10'");
    scene.peer.send(&b, "3", &[event]);
    let versions = b.database.rows("SELECT room_version FROM staged_pdus ORDER BY room_version");
    assert_eq!(versions, [["10"], ["5"]]);
    scene.world.run(membership::join(&b, &carol, &scene.room, via(&["a.example"]), Object::new())).unwrap();
    scene.world.settle();
    let ids = b.database.rows("SELECT event_id FROM events UNION ALL SELECT event_id FROM rejected_events").concat();
    assert!(ids.contains(&good) && !ids.contains(&id));
    assert!(b.database.rows("SELECT event_id FROM staged_pdus").is_empty());
}

/// Who is in a room that we are joining is not known yet: each server may have much waiting, and all of them together so much.
#[test]
fn what_waits_for_a_join_is_bounded_whatever_the_number_of_servers() {
    let mut scene = scene("12");
    let b = joining(&scene, "12");
    // What other servers have sent.
    let fill = |count: usize, bytes: usize| {
        b.database.rows("DELETE FROM staged_pdus");
        b.database.rows(&format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count}) \
             INSERT INTO staged_pdus (room_id, event_id, origin, json, received_ts, stranger, bytes) \
             SELECT '{}', '$' || n, 'server' || n % 30 || '.example', '{{}}', 0, 1, {bytes} FROM n",
            scene.room
        ));
    };
    let mut sends = |txn_id: &str, count: usize, length: usize| {
        let body = "x".repeat(length);
        let pdus: Vec<Value> = (0..count).map(|_| scene.theirs.say(&scene.peer, &scene.bob, &body).1).collect();
        let (status, answer) = scene.peer.send(&b, txn_id, &pdus);
        assert_eq!(status, 200);
        let results = answer["pdus"].as_object().unwrap();
        assert_eq!(results.len(), count);
        let taken = results.values().filter(|result| result["error"].is_null()).count();
        let staged = b.database.rows("SELECT count(*) FROM staged_pdus WHERE origin = 'peer.example'");
        (taken, staged[0][0].parse::<usize>().unwrap())
    };
    fill(2_970, 1_000);
    assert_eq!(sends("1", 50, 10), (30, 30));
    assert_eq!(sends("2", 1, 10), (0, 30));
    // 24 MiB, less ten events of 60,000 bytes and some more.
    fill(400, (24 * 1024 * 1024 - 650_000) / 400);
    assert_eq!(sends("3", 12, 60_000), (10, 10));
    assert_eq!(sends("4", 1, 60_000), (0, 10));
    assert_eq!(sends("5", 1, 10), (1, 11));
}

#[test]
fn a_second_user_comes_in_through_a_server_that_knows_more_than_we_do() {
    for version in ["1", "10", "12"] {
        let world = World::new();
        let (a, b, c) = (world.server("a.example"), world.server("b.example"), world.server("c.example"));
        let (alice, dave) = (a.user(&world, "alice"), c.user(&world, "dave"));
        let (bob, carol) = (b.user(&world, "bob"), b.user(&world, "carol"));
        let room = a.public_room(&world, &alice, version);
        world.run(membership::join(&c, &dave, &room, via(&["a.example"]), Object::new())).unwrap();
        world.settle();
        world.cut("a.example", "c.example");
        a.say(&world, &room, &alice, "here");
        c.say(&world, &room, &dave, "there");
        world.settle();
        // As at the same time: neither knows of the other's.
        world.run(membership::join(&b, &bob, &room, via(&["a.example"]), Object::new())).unwrap();
        let joined = world.run(membership::join(&b, &carol, &room, via(&["c.example"]), Object::new()));
        assert!(joined.is_ok(), "{joined:?} {:?}", world.logs());
        for user in [&bob, &carol] {
            assert_eq!(b.membership(&world, &room, user.as_str()).as_deref(), Some("join"));
        }
        world.settle();
        assert_nothing_left(&b);
        world.mend("a.example", "c.example");
        world.advance(3_600_000);
        for server in [&a, &c, &b] {
            world.run(server.scheduled());
            world.settle();
        }
        let state = b.state(&world, &room);
        assert!(a.state(&world, &room) == state && c.state(&world, &room) == state, "{:?}", world.logs());
    }
}

#[test]
fn a_second_user_comes_in_by_a_join_that_the_first_one_s_answer_holds() {
    let world = World::new();
    let (a, b) = (world.server("a.example"), world.server("b.example"));
    let (alice, bob, carol) = (a.user(&world, "alice"), b.user(&world, "bob"), b.user(&world, "carol"));
    let room = a.public_room(&world, &alice, "12");
    // Bob's join is let in first, and its answer comes last.
    let (servers, is_first) = ((a.clone(), b.clone()), Cell::new(true));
    let (alice, second, joined) = (alice, carol.clone(), room.clone());
    world.connect(
        "a.example",
        Rc::new(move |request| {
            let late = request.uri().path().contains("/send_join/") && is_first.replace(false);
            let ((a, b), alice, carol, room) = (servers.clone(), alice.clone(), second.clone(), joined.clone());
            Box::pin(async move {
                let answer = a.handle(request).await;
                if late {
                    let text = object(json!({ "body": "between" }));
                    a.rooms.send(&room, &alice, Draft::message("m.room.message", text)).await.unwrap();
                    membership::join(&b, &carol, &room, via(&["a.example"]), Object::new()).await.unwrap();
                }
                answer
            })
        }),
    );
    let joined = world.run(membership::join(&b, &bob, &room, via(&["a.example"]), Object::new()));
    assert!(joined.is_ok(), "{joined:?} {:?}", world.logs());
    for user in [&bob, &carol] {
        assert_eq!(b.membership(&world, &room, user.as_str()).as_deref(), Some("join"));
    }
    world.settle();
    assert_nothing_left(&b);
}

/// A second user's join that is cut off, or that goes on for hours, holds up nothing of a room that we are in.
#[test]
fn what_waits_in_a_room_that_we_are_in_waits_for_no_join() {
    let mut scene = scene("12");
    let away = || json_response(StatusCode::BAD_GATEWAY, &json!({}));
    scene.peer.answers(move |request| request.uri().path().contains("/federation/").then(away));
    let lost = scene.theirs.say(&scene.peer, &scene.bob, "lost");
    let (id, said) = scene.theirs.say(&scene.peer, &scene.bob, "said");
    scene.peer.send(&scene.a, "1", &[said]);
    scene.world.settle();
    assert!(!scene.a.shows(&id));
    let note = "INSERT INTO pending_joins (room_id, join_id, room_version, until_ts) VALUES ";
    scene.a.database.rows(&format!("{note}('{}', 'cut off', '12', {})", scene.room, scene.world.now_ms() + 7_200_000));
    scene.peer.answers(move |request| {
        let is_asked = request.uri().path().contains("/get_missing_events/");
        is_asked.then(|| json_response(StatusCode::OK, &json!({ "events": [lost.1] })))
    });
    scene.world.advance(3_600_000);
    scene.world.run(scene.a.scheduled());
    scene.world.settle();
    assert!(scene.a.shows(&id), "{:?}", scene.world.logs());
}

#[test]
fn a_transaction_of_a_known_room_costs_three_round_trips_and_few_rows() {
    let mut scene = scene("12");
    let mut pdus: Vec<Value> = (0..50).map(|_| scene.theirs.say(&scene.peer, &scene.bob, "hello").1).collect();
    scene.peer.send(&scene.a, "1", &[pdus.remove(0)]);
    scene.world.settle();
    let written = || scene.a.database.rows("SELECT total_changes()")[0][0].parse::<usize>().unwrap();
    for (txn_id, pdus) in [("2", &pdus[..1]), ("3", &pdus[1..])] {
        let (calls, rows) = (scene.a.database.calls.get(), written());
        scene.peer.send(&scene.a, txn_id, pdus);
        scene.world.settle();
        assert_eq!(scene.a.database.calls.get() - calls, 3);
        // Each event and its place; and the stream, the room and the transaction.
        assert_eq!(written() - rows, 2 * pdus.len() + 3);
    }
}
