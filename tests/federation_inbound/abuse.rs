//! What other servers can make us spend on users' devices, presence and reading: D1 calls and written rows, without those of indexes.
//! `ARCHITECTURE.md` has the figures as a table.

use std::rc::Rc;

use serde_json::{Value, json};

use crate::{
    Scene,
    common::{devices::Device, network::Homeserver, peer::Peer},
    device_edus::{bob_has_ten_thousand_devices, log_in, message, query},
    edus::{presence, receipt, typing},
    scene,
    user_keys::{claim, device},
};

/// Calls to the database, and rows that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) calls: u64,
    pub(crate) rows: u64,
}

/// What `work` costs the server, with all that it leaves to be done at once.
pub(crate) fn cost(world: &crate::World, server: &Homeserver, work: impl FnOnce()) -> Cost {
    let database = &server.database;
    let so_far = || (database.calls.get(), database.rows("SELECT total_changes()")[0][0].parse::<u64>().unwrap());
    world.settle();
    let (calls, rows) = so_far();
    work();
    world.settle();
    let (calls_now, rows_now) = so_far();
    Cost { calls: calls_now - calls, rows: rows_now - rows }
}

/// Sends a transaction of EDUs, and says what it cost.
fn send(scene: &Scene, peer: &Peer, txn_id: &str, edus: &[Value]) -> Cost {
    let body = json!({ "origin": peer.name, "origin_server_ts": scene.world.now_ms(), "pdus": [], "edus": edus });
    cost(&scene.world, &scene.a, || {
        let answer = peer.put(&scene.a, &format!("/_matrix/federation/v1/send/{txn_id}"), &body);
        assert_eq!(answer, (200, json!({ "pdus": {} })));
    })
}

/// A transaction without anything: the read, and the answer that is recorded.
const NOTHING: Cost = Cost { calls: 2, rows: 1 };

fn of(edu_type: &str, content: Value) -> Value {
    json!({ "edu_type": edu_type, "content": content })
}

#[test]
fn what_is_not_the_origins_to_say_costs_what_nothing_costs() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    let stranger = Peer::new(&scene.world, "stranger.example");
    let mallory = stranger.user("mallory");
    let (room, alice, bob) = (scene.room.to_string(), scene.alice.to_string(), scene.bob.clone());
    // The first transaction has the key fetched.
    send(&scene, &stranger, "first", &[]);
    assert_eq!(send(&scene, &stranger, "nothing", &[]), NOTHING);
    let read = |room: &str, user: &str| receipt(room, user, "$x", json!({ "ts": 1 }));
    let list = |user: &str| {
        of("m.device_list_update", json!({ "user_id": user, "device_id": "D", "stream_id": 1, "prev_id": [] }))
    };
    // Users of others, and a room that the origin is not in.
    let kinds: [(&str, Vec<Value>); 6] = [
        ("typing", vec![typing(&room, &alice, true), typing(&room, &bob, true), typing(&room, &mallory, true)]),
        ("receipts", vec![read(&room, &alice), read(&room, &bob), read(&room, &mallory)]),
        (
            "presence",
            vec![presence(&alice, "online", ""), presence(&bob, "online", ""), presence(&mallory, "online", "")],
        ),
        ("lists", vec![list(&alice), list(&bob), list(&mallory)]),
        ("signing", [&alice, &bob, &mallory].map(|user| of("m.signing_key_update", json!({ "user_id": user }))).into()),
        ("messages", vec![message(&scene, &alice, "a", "*", json!({})), message(&scene, &bob, "b", "*", json!({}))]),
    ];
    for (kind, some) in kinds {
        let edus: Vec<Value> = some.iter().cycle().take(100).cloned().collect();
        assert_eq!(send(&scene, &stranger, kind, &edus), NOTHING, "{kind}");
    }
    for table in ["typing", "receipts", "presence", "remote_device_lists", "to_device_messages", "received_to_device"] {
        assert!(scene.a.database.rows(&format!("SELECT * FROM {table}")).is_empty(), "{table}");
    }
}

/// A kind of EDUs: the one of each number, and what a hundred cost.
type Kind<'a> = (&'static str, Box<dyn Fn(usize) -> Value + 'a>, Cost);

#[test]
fn a_hundred_edus_of_64_kb_cost_three_calls_and_few_rows() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    let (room, bob) = (scene.room.to_string(), scene.bob.clone());
    send(&scene, &scene.peer, "first", &[]);
    let long = "x".repeat(60_000);
    let of_room = |n: usize| {
        let said = |event: &str| json!({ "event_ids": [event], "data": { "ts": n } });
        // Some 700 users, of whom one is in the room.
        let others = (0..700).map(|user| (format!("@a{user}:peer.example"), said("$somethingsomethingsomething")));
        let users: serde_json::Map<String, Value> = others.chain([(bob.clone(), said(&format!("$x{n}")))]).collect();
        of("m.receipt", json!({ &room: { "m.read": users } }))
    };
    let kinds: [Kind<'_>; 6] = [
        (
            "typing",
            Box::new(|n| {
                let mut edu = typing(&room, &bob, n % 2 == 1);
                edu["content"]["padding"] = json!(long);
                edu
            }),
            Cost { calls: 2, rows: 3 },
        ),
        ("receipts", Box::new(of_room), Cost { calls: 2, rows: 3 }),
        ("presence", Box::new(|n| presence(&bob, ["online", "unavailable"][n % 2], &long)), Cost { calls: 2, rows: 3 }),
        (
            "lists",
            Box::new(|n| {
                let keys = json!({ "padding": long });
                of(
                    "m.device_list_update",
                    json!({ "user_id": bob, "device_id": format!("D{n}"), "stream_id": n, "prev_id": [], "keys": keys }),
                )
            }),
            Cost { calls: 2, rows: 1 },
        ),
        (
            "signing",
            Box::new(|_| of("m.signing_key_update", json!({ "user_id": bob, "master_key": { "padding": long } }))),
            Cost { calls: 2, rows: 1 },
        ),
        (
            "messages",
            Box::new(|n| message(&scene, &bob, &format!("m{n}"), "*", json!({ "x": long }))),
            Cost { calls: 2, rows: 202 },
        ),
    ];
    let mut wrong = Vec::new();
    for (kind, edu, expected) in kinds {
        let edus: Vec<Value> = (0..100).map(edu).collect();
        assert!(edus.iter().all(|edu| edu.to_string().len() > 55_000), "{kind}");
        let cost = send(&scene, &scene.peer, kind, &edus);
        if cost != expected {
            wrong.push((kind, cost, expected));
        }
    }
    assert_eq!(wrong, []);
    // What waits for the device is what came, and no more than it may be.
    let waiting = scene.a.database.rows("SELECT count(*), SUM(length(message)) < 7000000 FROM to_device_messages");
    assert_eq!(waiting, [["100", "1"]]);
}

#[test]
fn a_user_of_ten_thousand_devices_costs_a_row() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    bob_has_ten_thousand_devices(&scene);
    let asked = || {
        scene.peer.received.borrow().iter().filter(|request| request.uri().path().contains("/user/devices/")).count()
    };
    let query = || {
        cost(&scene.world, &scene.a, || {
            assert_eq!(query(&scene, "PHONE")["device_keys"][&scene.bob].as_object().unwrap().len(), 10_000)
        })
    };
    let first = query();
    // It tells of each of them, a hundred at a time, over and over.
    let list = |n: usize| {
        of(
            "m.device_list_update",
            json!({ "user_id": scene.bob, "device_id": format!("DEVICE{n}"), "stream_id": n + 2, "prev_id": [n + 1] }),
        )
    };
    let told: Vec<Cost> = (0..100)
        .map(|part| {
            let edus: Vec<Value> = (0..100).map(|n| list(part * 100 + n)).collect();
            send(&scene, &scene.peer, &format!("part{part}"), &edus)
        })
        .collect();
    let most = told.iter().fold(Cost { calls: 0, rows: 0 }, |most, cost| Cost {
        calls: most.calls.max(cost.calls),
        rows: most.rows.max(cost.rows),
    });
    scene.world.advance(10_000);
    let again = query();
    assert_eq!(
        (first, most, again),
        (Cost { calls: 5, rows: 2 }, Cost { calls: 2, rows: 4 }, Cost { calls: 5, rows: 2 })
    );
    // All that came in between is one request, when somebody asks.
    assert_eq!(asked(), 2);
    assert_eq!(scene.a.database.rows("SELECT count(*), MAX(length(devices)) FROM remote_device_lists"), [["1", "2"]]);
}

#[test]
fn who_drains_one_time_keys_gets_twenty_an_hour() {
    let scene = scene("12");
    let (fallback, _) = device(&scene, 100, true).fallback_key("F");
    let left = || scene.a.database.rows("SELECT count(*) FROM one_time_keys")[0][0].parse::<u64>().unwrap();
    let strangers: Vec<Rc<Peer>> = (0..3).map(|n| Peer::new(&scene.world, &format!("s{n}.example"))).collect();
    for (n, stranger) in strangers.iter().enumerate() {
        // The first request has the key fetched.
        stranger.get(&scene.a, "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.example");
        let spent = cost(&scene.world, &scene.a, || {
            for _ in 0..20 {
                assert_eq!(claim(stranger, &scene).0, 200);
            }
        });
        assert_eq!((spent, left()), (Cost { calls: 20, rows: 20 }, 80 - 20 * n as u64));
        // Of these claims each gets the fallback key, which is marked as used once.
        let spent = cost(&scene.world, &scene.a, || {
            for _ in 0..200 {
                let (_, answer) = claim(stranger, &scene);
                assert!(answer["one_time_keys"][scene.alice.as_str()]["PHONE"].get(&fallback).is_some(), "{answer}");
            }
        });
        assert_eq!((spent.calls, spent.rows <= 200, left()), (200, true, 80 - 20 * n as u64), "{spent:?}");
    }
    // Whom she shares a room with still gets one.
    let (_, answer) = claim(&scene.peer, &scene);
    assert!(answer["one_time_keys"][scene.alice.as_str()]["PHONE"].get(&fallback).is_none(), "{answer}");
}

#[test]
fn a_presence_flood_costs_a_row_for_each_member_and_transaction() {
    let scene = scene("12");
    send(&scene, &scene.peer, "first", &[]);
    let strangers: Vec<String> = (0..50).map(|n| scene.peer.user(&format!("u{n}"))).collect();
    let flood = |round: usize| -> Vec<Value> {
        let state = ["online", "offline"][round % 2];
        let of_bob = (0..50).map(|n| presence(&scene.bob, state, &format!("{round} {n}")));
        strangers.iter().map(|user| presence(user, state, "")).chain(of_bob).collect()
    };
    for round in 0..20 {
        // The answer, the counter, and Bob.
        assert_eq!(send(&scene, &scene.peer, &format!("{round}"), &flood(round)), Cost { calls: 2, rows: 3 });
    }
    let rows = scene.a.database.rows("SELECT user_id FROM presence");
    assert_eq!(rows, [[scene.bob.clone()]]);
}

#[test]
fn a_device_that_nobody_has_costs_nothing_to_be_told_of() {
    let scene = scene("12");
    let users: Vec<String> = (0..100).map(|n| scene.peer.user(&format!("u{n}"))).collect();
    send(&scene, &scene.peer, "first", &[]);
    let edus: Vec<Value> = users
        .iter()
        .map(|user| {
            let keys = Device::new(user, "D").keys();
            of(
                "m.device_list_update",
                json!({ "user_id": user, "device_id": "D", "stream_id": 1, "prev_id": [], "keys": keys }),
            )
        })
        .collect();
    assert_eq!(send(&scene, &scene.peer, "1", &edus), NOTHING);
}
