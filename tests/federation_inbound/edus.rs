//! What a transaction's EDUs come to: typing, receipts and presence of users of its origin.

use ruma_federation_api::transactions::edu::Edu;
use serde_json::{Value, json};
use verge::room::Draft;

use crate::{
    Scene,
    common::{
        homeserver::object,
        peer::{Peer, encode},
    },
    scene,
};

/// Sends a transaction of EDUs, each checked to be one by ruma.
fn send(scene: &Scene, peer: &Peer, txn_id: &str, edus: &[Value]) {
    for edu in edus {
        serde_json::from_value::<Edu>(edu.clone()).unwrap_or_else(|error| panic!("{edu}: {error}"));
    }
    put(scene, peer, txn_id, edus);
}

/// As [`send`], whatever they are.
fn put(scene: &Scene, peer: &Peer, txn_id: &str, edus: &[Value]) {
    let body = json!({ "origin": peer.name, "origin_server_ts": scene.world.now_ms(), "pdus": [], "edus": edus });
    let answer = peer.put(&scene.a, &format!("/_matrix/federation/v1/send/{}", encode(txn_id)), &body);
    assert_eq!(answer, (200, json!({ "pdus": {} })));
}

pub(crate) fn typing(room: &str, user: &str, is_typing: bool) -> Value {
    json!({ "edu_type": "m.typing", "content": { "room_id": room, "user_id": user, "typing": is_typing } })
}

pub(crate) fn receipt(room: &str, user: &str, event_id: &str, data: Value) -> Value {
    let said = json!({ "event_ids": [event_id], "data": data });
    json!({ "edu_type": "m.receipt", "content": { room: { "m.read": { user: said } } } })
}

pub(crate) fn presence(user: &str, state: &str, status: &str) -> Value {
    let update = json!({
        "user_id": user, "presence": state, "status_msg": status, "last_active_ago": 5_000, "currently_active": true,
    });
    json!({ "edu_type": "m.presence", "content": { "push": [update] } })
}

fn typists(scene: &Scene) -> Vec<Vec<String>> {
    let now = scene.world.now_ms();
    scene.a.database.rows(&format!("SELECT room_id, user_id FROM typing WHERE until_ts > {now} ORDER BY 1, 2"))
}

fn receipts(scene: &Scene) -> Vec<Vec<String>> {
    scene.a.database.rows("SELECT user_id, receipt_type, thread_id, event_id, ts FROM receipts ORDER BY 1, 2, 3")
}

fn presences(scene: &Scene) -> Vec<Vec<String>> {
    scene.a.database.rows("SELECT user_id, presence, status_msg, rooms FROM presence ORDER BY 1")
}

/// All that EDUs may change.
fn all(scene: &Scene) -> Vec<Vec<Vec<String>>> {
    ["typing", "receipts", "presence", "streams"]
        .map(|table| scene.a.database.rows(&format!("SELECT * FROM {table} ORDER BY 1, 2")))
        .into()
}

#[test]
fn a_member_types_reads_and_is_there() {
    let mut scene = scene("12");
    let (room, bob) = (scene.room.to_string(), scene.bob.clone());
    let (said, event) = scene.theirs.say(&scene.peer, &bob, "hello");
    scene.peer.send(&scene.a, "said", &[event]);
    let edus = [
        typing(&room, &bob, true),
        receipt(&room, &bob, &said, json!({ "ts": 7 })),
        receipt(&room, &bob, &said, json!({ "ts": 8, "thread_id": "main" })),
        presence(&bob, "online", "here"),
    ];
    send(&scene, &scene.peer, "1", &edus);
    assert_eq!(typists(&scene), [[room.as_str(), &bob]]);
    assert_eq!(receipts(&scene), [[bob.as_str(), "m.read", "", &said, "7"], [&bob, "m.read", "main", &said, "8"]]);
    assert_eq!(presences(&scene), [[bob.as_str(), "online", "here", &json!([room]).to_string()]]);
    send(&scene, &scene.peer, "2", &[typing(&room, &bob, false), presence(&bob, "offline", "gone")]);
    assert_eq!(typists(&scene), [[""; 2]; 0]);
    assert_eq!(presences(&scene)[0][1..3], ["offline", "gone"]);
    // Who is not said to have ceased has, after a while.
    send(&scene, &scene.peer, "3", &[typing(&room, &bob, true)]);
    scene.world.advance(61_000);
    assert_eq!(typists(&scene), [[""; 2]; 0]);
    assert_eq!(scene.world.logs(), [""; 0]);
}

/// Their server may have vanished. It says so again where they stay, which is no news.
#[test]
fn of_whom_their_server_tells_nothing_more_is_gone_after_half_an_hour() {
    let scene = scene("12");
    let bob = scene.bob.clone();
    let begun = scene.world.now_ms();
    let says = |state: &str| {
        let ago = scene.world.now_ms() - begun;
        let update = json!({ "user_id": bob, "presence": state, "last_active_ago": ago, "currently_active": false });
        let edu = json!({ "edu_type": "m.presence", "content": { "push": [update] } });
        send(&scene, &scene.peer, &scene.world.now_ms().to_string(), &[edu]);
    };
    let found = || scene.a.database.rows("SELECT presence, pos, last_active_ts FROM presence").remove(0);
    let minutes = |count| {
        for _ in 0..count {
            scene.world.advance(60_000);
            scene.world.run(scene.a.scheduled());
            scene.world.settle();
        }
    };
    let began = begun.to_string();
    let sent = || scene.world.traffic().iter().filter(|sent| sent.line.contains("/send/")).count();
    let before = sent();
    for (state, pos, gone) in [("unavailable", "1", "2"), ("online", "3", "4")] {
        says(state);
        minutes(25);
        says(state);
        minutes(29);
        assert_eq!(found(), [state, pos, &began]);
        minutes(2);
        assert_eq!(found(), ["offline", gone, &began]);
    }
    // What is said is true however late it comes, and who is not there does not end.
    says("offline");
    minutes(31);
    assert_eq!(found(), ["offline", "4", &began]);
    assert_eq!(sent(), before, "others hear of it from their server");
}

#[test]
fn all_who_are_gone_with_their_servers_end() {
    let scene = scene("12");
    let now = scene.world.now_ms();
    scene.a.database.rows(&format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 350) \
         INSERT INTO presence (user_id, presence, last_active_ts, currently_active, rooms, pos, heard_until) \
         SELECT '@u' || n || ':b.example', 'online', {now}, 1, '[]', -n, n FROM n"
    ));
    scene.world.run(scene.a.scheduled());
    assert_eq!(
        scene.a.database.rows("SELECT presence, count(*), count(DISTINCT pos), min(pos), max(pos) FROM presence"),
        [["offline", "350", "350", "1", "350"]]
    );
    assert_eq!(scene.a.database.rows("SELECT position FROM streams WHERE name = 'presence'"), [["350"]]);
}

#[test]
fn a_transaction_that_is_repeated_does_nothing_again() {
    let scene = scene("12");
    let (room, bob) = (scene.room.to_string(), scene.bob.clone());
    send(&scene, &scene.peer, "1", &[typing(&room, &bob, true), presence(&bob, "online", "")]);
    send(&scene, &scene.peer, "2", &[typing(&room, &bob, false), presence(&bob, "offline", "")]);
    let after = all(&scene);
    send(&scene, &scene.peer, "1", &[typing(&room, &bob, true), presence(&bob, "online", "")]);
    assert_eq!(all(&scene), after);
}

#[test]
fn users_of_other_servers_and_who_is_not_in_the_room_do_not_count() {
    let scene = scene("12");
    let (room, bob) = (scene.room.to_string(), scene.bob.clone());
    let before = all(&scene);
    let (alice, eve) = (scene.alice.to_string(), scene.peer.user("eve"));
    let read = |room: &str, user: &str| receipt(room, user, "$x", json!({ "ts": 1 }));
    // Not the origin's to speak for.
    put(&scene, &scene.peer, "1", &[typing(&room, &alice, true), read(&room, &alice), presence(&alice, "online", "")]);
    // Not in the room; not in any; and a room that we do not know.
    put(&scene, &scene.peer, "2", &[typing(&room, &eve, true), read(&room, &eve), presence(&eve, "online", "")]);
    put(&scene, &scene.peer, "3", &[typing("!unknown:a.example", &bob, true), read("!unknown:a.example", &bob)]);
    // A server that is not in the room.
    let other = Peer::new(&scene.world, "other.example");
    let carol = other.user("carol");
    put(&scene, &other, "4", &[typing(&room, &carol, true), read(&room, &carol), presence(&carol, "online", "")]);
    assert_eq!(all(&scene), before);
    let skipped: Vec<String> =
        scene.world.logs().into_iter().filter(|line| line.contains("EDUs are skipped")).collect();
    assert_eq!(skipped.len(), 1, "{skipped:?}");
    assert!(
        skipped[0].contains(r#""origin":"peer.example","transaction":"1","count":3"#)
            && skipped[0].contains("another server"),
        "{skipped:?}"
    );
}

#[test]
fn who_has_left_does_not_count_any_more() {
    let mut scene = scene("12");
    let (room, bob) = (scene.room.to_string(), scene.bob.clone());
    let fields = json!({ "type": "m.room.member", "state_key": bob, "content": { "membership": "leave" } });
    let (id, leave) = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &bob, fields));
    // In the transaction that says so they still do: EDUs are judged by the state before it.
    scene.peer.send(&scene.a, "1", &[leave]);
    scene.theirs.advance(&id);
    let before = all(&scene);
    send(
        &scene,
        &scene.peer,
        "2",
        &[typing(&room, &bob, true), receipt(&room, &bob, "$x", json!({ "ts": 1 })), presence(&bob, "online", "")],
    );
    assert_eq!(all(&scene), before);
}

#[test]
fn a_server_that_the_rooms_acl_denies_does_not_count() {
    for (content, counts) in [
        (json!({ "allow": ["*"], "deny": ["peer.*"] }), false),
        (json!({ "allow": ["a.example"] }), false),
        (json!({ "allow": ["*"], "deny": ["other.example"] }), true),
    ] {
        let scene = scene("12");
        let (room, bob) = (scene.room.to_string(), scene.bob.clone());
        let acl = Draft::state("m.room.server_acl", "", object(content));
        scene.a.send(&scene.world, &scene.room, &scene.alice, acl);
        scene.world.settle();
        send(&scene, &scene.peer, "1", &[typing(&room, &bob, true), receipt(&room, &bob, "$x", json!({ "ts": 1 }))]);
        assert_eq!((typists(&scene).len(), receipts(&scene).len()), if counts { (1, 1) } else { (0, 0) });
    }
}

#[test]
fn a_receipt_moves_forwards_only() {
    let mut scene = scene("12");
    let (room, bob) = (scene.room.to_string(), scene.bob.clone());
    let said: Vec<(String, Value)> = (0..3).map(|n| scene.theirs.say(&scene.peer, &bob, &n.to_string())).collect();
    let pdus: Vec<Value> = said.iter().map(|(_, event)| event.clone()).collect();
    scene.peer.send(&scene.a, "said", &pdus);
    for (txn_id, at, expected) in [("1", 1, 1), ("2", 0, 1), ("3", 2, 2), ("4", 1, 2)] {
        send(&scene, &scene.peer, txn_id, &[receipt(&room, &bob, &said[at].0, json!({ "ts": 1 }))]);
        assert_eq!(receipts(&scene)[0][3], said[expected].0);
    }
    // An event that we do not hold may well be the newest.
    send(&scene, &scene.peer, "5", &[receipt(&room, &bob, "$unknown", json!({ "ts": 1 }))]);
    assert_eq!(receipts(&scene)[0][3], "$unknown");
}

#[test]
fn malformed_and_unknown_edus_are_skipped_and_the_others_count() {
    let scene = scene("12");
    let (room, bob) = (scene.room.to_string(), scene.bob.clone());
    let before = all(&scene);
    let data = |data: Value| json!({ "event_ids": ["$x"], "data": data });
    let read = |said: Value| json!({ "edu_type": "m.receipt", "content": { &room: { "m.read": { &bob: said } } } });
    let of = |kind: &str, content: Value| json!({ "edu_type": kind, "content": content });
    let malformed = [
        json!(1),
        json!(null),
        json!({}),
        json!({ "edu_type": 1, "content": {} }),
        json!({ "edu_type": "m.typing" }),
        of("m.typing", json!([])),
        of("m.typing", json!({ "room_id": room, "user_id": bob })),
        of("m.typing", json!({ "room_id": room, "user_id": bob, "typing": "true" })),
        of("m.typing", json!({ "room_id": 1, "user_id": bob, "typing": true })),
        of("m.typing", json!({ "room_id": room, "user_id": "bob", "typing": true })),
        of("m.receipt", json!({ &room: [] })),
        of("m.receipt", json!({ "room": { "m.read": {} } })),
        of("m.receipt", json!({ &room: { "m.read.private": { &bob: data(json!({ "ts": 1 })) } } })),
        read(json!(1)),
        read(json!({ "data": { "ts": 1 } })),
        read(json!({ "event_ids": [], "data": { "ts": 1 } })),
        read(json!({ "event_ids": ["x"], "data": { "ts": 1 } })),
        read(json!({ "event_ids": ["$x"] })),
        read(data(json!({ "ts": "1" }))),
        read(data(json!({ "ts": -1 }))),
        read(data(json!({ "ts": 1, "thread_id": "" }))),
        read(data(json!({ "ts": 1, "thread_id": 1 }))),
        read(data(json!({ "ts": 1, "thread_id": "$".repeat(256) }))),
        of("m.presence", json!({})),
        of("m.presence", json!({ "push": [1] })),
        of("m.presence", json!({ "push": [{ "user_id": bob, "presence": "busy" }] })),
        of("m.presence", json!({ "push": [{ "user_id": bob, "presence": "online", "last_active_ago": "1" }] })),
        of("m.device_list_update", json!({ "user_id": bob })),
        of("m.signing_key_update", json!({ "user_id": bob, "master_key": 1 })),
        of("m.direct_to_device", json!({ "sender": bob, "type": "m.x", "message_id": "1", "messages": { "x": {} } })),
    ];
    put(&scene, &scene.peer, "1", &malformed);
    let line = format!(r#""origin":"peer.example","transaction":"1","count":{}"#, malformed.len());
    assert!(scene.world.logs().iter().any(|logged| logged.contains(&line)), "{:?}", scene.world.logs());
    put(&scene, &scene.peer, "2", &[of("m.unknown", json!({})), of("org.example.unknown", json!({ "room_id": 1 }))]);
    assert_eq!(scene.world.logs().len(), 1);
    // A thread that nobody has begun is no fault, but no thread either.
    send(&scene, &scene.peer, "3", &[read(data(json!({ "ts": 1, "thread_id": "$nothing" })))]);
    assert_eq!(all(&scene), before);
    let mut edus = malformed.to_vec();
    edus.push(typing(&room, &bob, true));
    put(&scene, &scene.peer, "4", &edus);
    assert_eq!(typists(&scene), [[room.as_str(), &bob]]);
}

#[test]
fn edus_cost_no_call_more_and_who_goes_on_typing_one_row() {
    let scene = scene("12");
    let (room, bob) = (scene.room.to_string(), scene.bob.clone());
    put(&scene, &scene.peer, "0", &[]);
    let calls = |txn_id: &str, edus: &[Value]| {
        scene.world.settle();
        let before = scene.a.database.calls.get();
        send(&scene, &scene.peer, txn_id, edus);
        scene.a.database.calls.get() - before
    };
    let none = calls("1", &[]);
    let edus =
        [typing(&room, &bob, true), receipt(&room, &bob, "$x", json!({ "ts": 1 })), presence(&bob, "online", "")];
    assert_eq!(calls("2", &edus), none);
    let streams = || scene.a.database.rows("SELECT * FROM streams ORDER BY 1");
    let before = streams();
    scene.world.advance(20_000);
    calls("3", &edus);
    assert_eq!(streams(), before, "nothing is news");
    scene.world.advance(45_000);
    assert_eq!(typists(&scene).len(), 1);
}

#[test]
fn a_flood_is_bounded() {
    let scene = scene("12");
    let (room, bob) = (scene.room.to_string(), scene.bob.clone());
    // As many receipts as 64 KB hold, 100 times; of users who are not there but for one.
    let users: serde_json::Map<String, Value> = (0..600)
        .map(|n| (format!("@u{n}:peer.example"), json!({ "event_ids": ["$x"], "data": { "ts": 1 } })))
        .chain([(bob.clone(), json!({ "event_ids": ["$x"], "data": { "ts": 1 } }))])
        .collect();
    let receipts = json!({ "edu_type": "m.receipt", "content": { &room: { "m.read": users } } });
    let push: Vec<Value> = (0..500)
        .map(
            |n| json!({ "user_id": format!("@u{n}:peer.example"), "presence": "online", "status_msg": "x".repeat(60) }),
        )
        .chain([json!({ "user_id": bob, "presence": "online", "status_msg": "x".repeat(5_000) })])
        .collect();
    let presence = json!({ "edu_type": "m.presence", "content": { "push": push } });
    let edus: Vec<Value> = (0..50).flat_map(|_| [receipts.clone(), presence.clone()]).collect();
    let steps = scene.a.database.steps.get();
    put(&scene, &scene.peer, "1", &edus);
    let steps = scene.a.database.steps.get() - steps;
    assert!(steps < 400_000, "{steps}");
    assert_eq!(scene.a.database.rows("SELECT count(*) FROM presence"), [["1"]]);
    assert_eq!(scene.a.database.rows("SELECT length(status_msg) FROM presence"), [["1024"]]);
    assert!(scene.world.logs().iter().any(|line| line.contains("too many")));
}
