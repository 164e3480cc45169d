//! EDUs about devices: messages, device lists, cross-signing keys.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use http::StatusCode;
use serde_json::{Value, json};
use verge::{router::json_response, store::accounts::NewDevice};

use crate::{
    Scene,
    common::{
        devices::{CrossSigning, Device},
        homeserver::PASSWORD_HASH,
        peer::Peer,
    },
    scene,
};

/// Lets Alice log in with the device, whose access token is its name.
pub(crate) fn log_in(scene: &Scene, device_id: &str) {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use sha2::{Digest, Sha256};
    let device = NewDevice {
        user_id: scene.alice.to_string(),
        device_id: device_id.to_owned(),
        token_hash: URL_SAFE_NO_PAD.encode(Sha256::digest(device_id)),
        display_name: None,
        refresh: None,
        created_ts: 0,
    };
    assert!(scene.world.run(scene.a.store.log_in(&device, PASSWORD_HASH)).unwrap());
}

/// What the device hears of Bob's keys.
pub(crate) fn query(scene: &Scene, device_id: &str) -> Value {
    let body = json!({ "device_keys": { &scene.bob: [] } }).to_string();
    let request = http::Request::post("/_matrix/client/v3/keys/query");
    let request =
        request.header("Authorization", format!("Bearer {device_id}")).body(bytes::Bytes::from(body)).unwrap();
    serde_json::from_slice(scene.world.run(scene.a.handle(request)).body()).unwrap()
}

/// Sends a transaction of EDUs.
fn send(peer: &Peer, scene: &Scene, txn_id: &str, edus: &[Value]) {
    let body = json!({ "origin": peer.name, "origin_server_ts": scene.world.now_ms(), "pdus": [], "edus": edus });
    let (status, answer) = peer.put(&scene.a, &format!("/_matrix/federation/v1/send/{txn_id}"), &body);
    assert_eq!(status, 200, "{answer}");
}

pub(crate) fn message(scene: &Scene, sender: &str, message_id: &str, device: &str, content: Value) -> Value {
    let messages = json!({ scene.alice.as_str(): { device: content } });
    let content = json!({ "sender": sender, "type": "m.test", "message_id": message_id, "messages": messages });
    json!({ "edu_type": "m.direct_to_device", "content": content })
}

fn inbox(scene: &Scene) -> Vec<Value> {
    let rows = scene.a.database.rows("SELECT message FROM to_device_messages ORDER BY device_id, pos");
    rows.iter().map(|row| serde_json::from_str::<Value>(&row[0]).unwrap()["content"].clone()).collect()
}

#[test]
fn a_message_is_taken_once_however_often_it_comes() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    let edu = |id: &str, n: i64| message(&scene, &scene.bob, id, "PHONE", json!({ "n": n }));
    send(&scene.peer, &scene, "1", &[edu("a", 1), edu("b", 2), edu("a", 3)]);
    send(&scene.peer, &scene, "1", &[edu("c", 4)]);
    send(&scene.peer, &scene, "2", &[edu("b", 5), edu("d", 6)]);
    assert_eq!(inbox(&scene), [json!({ "n": 1 }), json!({ "n": 2 }), json!({ "n": 6 })]);
    let stored = scene.a.database.rows("SELECT message FROM to_device_messages LIMIT 1");
    let stored: Value = serde_json::from_str(&stored[0][0]).unwrap();
    assert_eq!(stored, json!({ "type": "m.test", "sender": scene.bob, "content": { "n": 1 } }));
    // Another server's names are its own.
    let other = Peer::new(&scene.world, "other.example");
    send(&other, &scene, "1", &[message(&scene, &other.user("eve"), "a", "*", json!({ "n": 7 }))]);
    assert_eq!(inbox(&scene).len(), 4);
    scene.world.advance(31 * 24 * 3_600_000);
    scene.a.database.forget_old(scene.world.now_ms());
    assert!(scene.a.database.rows("SELECT * FROM received_to_device").is_empty());
}

#[test]
fn messages_as_deep_as_a_client_may_send_go_out() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    let sent = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&sent);
    scene.peer.answers(move |request| {
        request.uri().path().strip_prefix("/_matrix/federation/v1/send/")?;
        seen.borrow_mut().push(String::from_utf8(request.body().to_vec()).unwrap());
        Some(json_response(StatusCode::OK, &json!({ "pdus": {} })))
    });
    // The content itself is the first level.
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels - 1), "]".repeat(levels - 1));
    let put = |levels: usize| {
        let messages = format!(r#"{{"{}":{{"*":{{"x":{}}}}}}}"#, scene.bob, nested(levels));
        let request = http::Request::put(format!("/_matrix/client/v3/sendToDevice/m.test/{levels}"));
        let request = request.header("Authorization", "Bearer PHONE");
        let request = request.body(bytes::Bytes::from(format!(r#"{{"messages":{messages}}}"#))).unwrap();
        let answer = scene.world.run(scene.a.handle(request));
        let body: Value = serde_json::from_slice(answer.body()).unwrap();
        (answer.status().as_u16(), body["errcode"].clone())
    };
    assert_eq!(put(101), (400, json!("M_BAD_JSON")));
    assert_eq!(put(100), (200, Value::Null));
    scene.world.settle();
    let deep = nested(100);
    assert!(sent.borrow().iter().any(|body| body.contains(&deep)), "{:?}", sent.borrow());
}

#[test]
fn only_what_speaks_for_its_own_users_to_ours_is_taken() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    let mut elsewhere = message(&scene, &scene.bob, "e", "PHONE", json!({}));
    elsewhere["content"]["messages"] = json!({ "@alice:other.example": { "PHONE": {} } });
    let mut nameless = message(&scene, &scene.bob, "n", "PHONE", json!({}));
    nameless["content"].as_object_mut().unwrap().remove("message_id");
    let mut shapeless = message(&scene, &scene.bob, "s", "PHONE", json!({}));
    shapeless["content"]["messages"] = json!({ scene.alice.as_str(): { "PHONE": [] } });
    let long = message(&scene, &scene.bob, "l", "PHONE", json!({ "x": "x".repeat(70_000) }));
    let edus = [
        message(&scene, scene.alice.as_str(), "f", "PHONE", json!({})),
        message(&scene, "@bob:other.example", "o", "PHONE", json!({})),
        message(&scene, &scene.bob, "d", "NONE", json!({})),
        elsewhere,
        nameless,
        shapeless,
        long,
    ];
    send(&scene.peer, &scene, "1", &edus);
    assert!(inbox(&scene).is_empty());
    send(&scene.peer, &scene, "2", &[message(&scene, &scene.bob, "good", "PHONE", json!({ "n": 1 }))]);
    assert_eq!(inbox(&scene), [json!({ "n": 1 })]);
}

#[test]
fn a_hundred_large_messages_to_everybody_are_bounded() {
    let scene = scene("12");
    for n in 0..5 {
        log_in(&scene, &format!("PHONE{n}"));
    }
    let calls = scene.a.database.calls.get();
    for round in 0..10 {
        let edu =
            |n: usize| message(&scene, &scene.bob, &format!("{round} {n}"), "*", json!({ "x": "x".repeat(60_000) }));
        let edus: Vec<Value> = (0..100).map(edu).collect();
        send(&scene.peer, &scene, &format!("{round}"), &edus);
    }
    assert!(scene.a.database.calls.get() - calls <= 30, "three calls a transaction");
    let rows = scene
        .a
        .database
        .rows("SELECT MAX(sum) FROM (SELECT SUM(length(message)) AS sum FROM to_device_messages GROUP BY device_id)");
    assert!(rows[0][0].parse::<i64>().unwrap() < 40_000_000, "{rows:?}");
}

/// So many rows are in the table.
fn count(scene: &Scene, table: &str) -> i64 {
    scene.a.database.rows(&format!("SELECT count(*) FROM {table}"))[0][0].parse().unwrap()
}

#[test]
fn what_reaches_nobody_leaves_nothing() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    let stranger = Peer::new(&scene.world, "stranger.example");
    let eve = stranger.user("eve");
    let to = |id: &str, messages: Value| {
        let content = json!({ "sender": eve, "type": "m.test", "message_id": id, "messages": messages });
        json!({ "edu_type": "m.direct_to_device", "content": content })
    };
    for round in 0..3 {
        let edus: Vec<Value> = (0..33)
            .flat_map(|n| {
                let id = |kind: &str| format!("{kind}{round}-{n}");
                [
                    to(&id("none"), json!({})),
                    to(&id("device"), json!({ scene.alice.as_str(): { "NONE": {} } })),
                    to(&id("user"), json!({ "@nobody:a.example": { "*": {} } })),
                ]
            })
            .collect();
        send(&stranger, &scene, &round.to_string(), &edus);
    }
    assert_eq!((count(&scene, "received_to_device"), count(&scene, "to_device_messages")), (0, 0));
    // Of messages with one name all that reach somebody are taken, in one transaction; the name is then known.
    let both = json!({ scene.alice.as_str(): { "NONE": {}, "PHONE": { "n": 1 } } });
    send(&stranger, &scene, "both", &[to("both", both.clone())]);
    send(&stranger, &scene, "again", &[to("both", both)]);
    assert_eq!(inbox(&scene), [json!({ "n": 1 })]);
}

#[test]
fn strangers_cannot_fill_an_inbox() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    let stranger = Peer::new(&scene.world, "stranger.example");
    let eve = stranger.user("eve");
    for round in 0..8 {
        let edu = |n: usize| message(&scene, &eve, &format!("{round} {n}"), "*", json!({ "x": "x".repeat(60_000) }));
        send(&stranger, &scene, &round.to_string(), &(0..100).map(edu).collect::<Vec<_>>());
    }
    let taken = count(&scene, "to_device_messages");
    // What is refused is not remembered either.
    assert_eq!(taken, count(&scene, "received_to_device"));
    let rows = scene.a.database.rows("SELECT SUM(length(message)) FROM to_device_messages");
    assert!((1_000_000..8_000_000).contains(&rows[0][0].parse::<i64>().unwrap()), "{rows:?}");
    // Those with whom we share a room are heard all the same.
    send(&scene.peer, &scene, "1", &[message(&scene, &scene.bob, "key", "PHONE", json!({ "n": 1 }))]);
    assert_eq!(inbox(&scene).last(), Some(&json!({ "n": 1 })));
}

/// Bob's devices, as his server tells of them.
struct Bob {
    device: Device,
    asked: Rc<Cell<usize>>,
    /// The number with which his server gives them.
    stream_id: Rc<Cell<i64>>,
}

/// Alice has asked for Bob's keys, which his server gives with this number.
fn held(scene: &Scene, stream_id: i64) -> Bob {
    log_in(scene, "PHONE");
    let device = Device::new(&scene.bob, "BOBS");
    let asked = Rc::new(Cell::new(0));
    let number = Rc::new(Cell::new(stream_id));
    let stream_id = number.clone();
    let (count, keys, bob) = (asked.clone(), device.keys(), scene.bob.clone());
    scene.peer.answers(move |request| {
        if !request.uri().path().contains("/user/devices/") {
            return None;
        }
        count.set(count.get() + 1);
        let devices = json!([{ "device_id": "BOBS", "keys": keys, "device_display_name": "Bob's" }]);
        let answer = json!({ "user_id": bob, "stream_id": number.get(), "devices": devices });
        Some(json_response(StatusCode::OK, &answer))
    });
    let answer = query(scene, "PHONE");
    assert_eq!(answer["device_keys"][&scene.bob]["BOBS"]["keys"], device.keys()["keys"], "{answer}");
    assert_eq!(asked.get(), 1);
    Bob { device, asked, stream_id }
}

fn update(scene: &Scene, stream_id: i64, prev_id: &[i64], device: &Device) -> Value {
    let content = json!({
        "user_id": scene.bob, "device_id": device.id, "stream_id": stream_id, "prev_id": prev_id, "keys": device.keys(),
    });
    json!({ "edu_type": "m.device_list_update", "content": content })
}

#[test]
fn an_update_that_follows_is_applied_and_any_other_has_the_list_fetched_once() {
    let scene = scene("12");
    let bob = held(&scene, 5);
    let new = Device::new(&scene.bob, "NEW");
    let devices = || query(&scene, "PHONE")["device_keys"][&scene.bob].as_object().unwrap().len();
    // Two in one transaction, the second following the first; and one that comes again.
    let gone = json!({ "user_id": scene.bob, "device_id": "GONE", "stream_id": 7, "prev_id": [6], "deleted": true });
    let gone = json!({ "edu_type": "m.device_list_update", "content": gone });
    send(&scene.peer, &scene, "1", &[update(&scene, 6, &[5], &new), gone]);
    send(&scene.peer, &scene, "2", &[update(&scene, 7, &[6], &Device::new(&scene.bob, "AGAIN"))]);
    assert_eq!((devices(), bob.asked.get()), (2, 1));
    let mut removed = update(&scene, 8, &[7], &new);
    removed["content"].as_object_mut().unwrap().remove("keys");
    removed["content"]["deleted"] = json!(true);
    send(&scene.peer, &scene, "3", &[removed]);
    assert_eq!((devices(), bob.asked.get()), (1, 1));
    // Gaps, and more of them.
    for n in 0..20 {
        send(&scene.peer, &scene, &format!("gap{n}"), &[update(&scene, 100 + 10 * n, &[95 + 10 * n], &new)]);
    }
    assert_eq!((devices(), bob.asked.get()), (1, 2));
    assert_eq!((devices(), bob.asked.get()), (1, 2));
    send(&scene.peer, &scene, "again", &[update(&scene, 300, &[290], &new)]);
    assert_eq!((devices(), bob.asked.get()), (2, 2), "it goes on from the newest that was heard of");
}

/// Bob's server is restored from a backup, or installed anew: its numbers begin lower than those that we have heard.
#[test]
fn a_server_whose_numbers_begin_anew_is_followed() {
    let scene = scene("12");
    let bob = held(&scene, 500);
    let devices = || {
        let answer = query(&scene, "PHONE");
        answer["device_keys"][&scene.bob].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    let new = |id: &str| Device::new(&scene.bob, id);
    send(&scene.peer, &scene, "1", &[update(&scene, 501, &[500], &new("LOST"))]);
    assert_eq!((devices(), bob.asked.get()), (vec!["BOBS".to_owned(), "LOST".to_owned()], 1));
    // The first that is heard of it names none before it, and all the same follows nothing that is held.
    bob.stream_id.set(3);
    send(&scene.peer, &scene, "2", &[update(&scene, 3, &[], &new("FIRST"))]);
    assert_eq!((devices(), bob.asked.get()), (vec!["BOBS".to_owned()], 2), "the list is fetched");
    for (n, id) in [(4, "SECOND"), (5, "THIRD")] {
        send(&scene.peer, &scene, &format!("new{n}"), &[update(&scene, n, &[n - 1], &new(id))]);
    }
    let expected = ["BOBS", "SECOND", "THIRD"].map(str::to_owned).to_vec();
    assert_eq!((devices(), bob.asked.get()), (expected, 2), "once, and then it is followed");
    // Within one transaction too.
    bob.stream_id.set(2);
    let edus = [update(&scene, 6, &[5], &new("SIXTH")), update(&scene, 2, &[1], &new("OTHER"))];
    send(&scene.peer, &scene, "both", &edus);
    assert_eq!((devices(), bob.asked.get()), (vec!["BOBS".to_owned()], 3));
    send(&scene.peer, &scene, "after", &[update(&scene, 3, &[2], &new("AFTER"))]);
    assert_eq!((devices(), bob.asked.get()), (vec!["AFTER".to_owned(), "BOBS".to_owned()], 3));
}

/// One server that shares a room with us sends as much as it likes: others are heard all the same.
#[test]
fn no_server_can_fill_an_inbox_alone() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    let other = Peer::new(&scene.world, "other.example");
    let carol = other.user("carol");
    other.join(&scene.a, scene.room.as_str(), &carol);
    let flood = |peer: &Peer, user: &str, rounds: std::ops::Range<usize>| {
        for round in rounds {
            let edu =
                |n: usize| message(&scene, user, &format!("{round} {n}"), "*", json!({ "x": "x".repeat(60_000) }));
            send(peer, &scene, &round.to_string(), &(0..100).map(edu).collect::<Vec<_>>());
        }
    };
    let length = || {
        let rows = scene.a.database.rows("SELECT SUM(length(message)) FROM to_device_messages");
        rows[0][0].parse::<i64>().unwrap()
    };
    flood(&scene.peer, &scene.bob, 0..8);
    assert!((12_000_000..17_000_000).contains(&length()), "{}", length());
    send(&other, &scene, "one", &[message(&scene, &carol, "one", "PHONE", json!({ "n": 1 }))]);
    assert_eq!(inbox(&scene).last(), Some(&json!({ "n": 1 })));
    // Two leave room for a third one.
    flood(&other, &carol, 0..4);
    assert!((20_000_000..24_000_000).contains(&length()), "{}", length());
    let third = Peer::new(&scene.world, "third.example");
    let dave = third.user("dave");
    third.join(&scene.a, scene.room.as_str(), &dave);
    send(&third, &scene, "one", &[message(&scene, &dave, "one", "PHONE", json!({ "n": 2 }))]);
    assert_eq!(inbox(&scene).last(), Some(&json!({ "n": 2 })));
}

#[test]
fn what_cannot_be_stored_of_an_edu_costs_no_other() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    *scene.a.database.refuses.borrow_mut() = Some("poison".to_owned());
    let presence = json!({ "push": [{ "user_id": scene.bob, "presence": "online", "last_active_ago": 0 }] });
    let edus = [
        message(&scene, &scene.bob, "a", "PHONE", json!({ "n": 1 })),
        message(&scene, &scene.bob, "b", "PHONE", json!({ "n": "poison" })),
        message(&scene, &scene.bob, "c", "PHONE", json!({ "n": 3 })),
        json!({ "edu_type": "m.presence", "content": presence }),
    ];
    send(&scene.peer, &scene, "1", &edus);
    assert_eq!(inbox(&scene), [json!({ "n": 1 }), json!({ "n": 3 })]);
    assert_eq!(count(&scene, "presence"), 1);
    // The transaction has been answered, and is not taken again.
    send(&scene.peer, &scene, "1", &edus);
    assert_eq!(inbox(&scene).len(), 2);
    let lost = scene.world.logs().iter().filter(|line| line.contains("an EDU cannot be stored")).count();
    assert_eq!(lost, 1);
}

/// A float that is beyond what a double holds: clients could not read what holds it.
#[test]
fn an_edu_with_a_number_that_nobody_can_read_is_skipped() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    let edus = [
        message(&scene, &scene.bob, "a", "PHONE", json!({ "n": ["INFINITE"] })),
        message(&scene, &scene.bob, "b", "PHONE", json!({ "n": 1.5 })),
    ];
    for (txn_id, number) in ["1e400", "-1e400"].into_iter().enumerate() {
        let body = json!({ "origin": scene.peer.name, "origin_server_ts": 0, "pdus": [], "edus": edus });
        let body = body.to_string().replace("\"INFINITE\"", number);
        let target = format!("/_matrix/federation/v1/send/infinite{txn_id}");
        let (status, answer) = scene.peer.put_text(&scene.a, &target, &body);
        assert_eq!(status, 200, "{answer}");
    }
    assert_eq!(inbox(&scene), [json!({ "n": 1.5 })]);
}

#[test]
fn keys_that_are_too_long_are_in_the_way_of_nothing_else() {
    let scene = scene("12");
    let bob = held(&scene, 5);
    let long = "x".repeat(2_100_000);
    let update_of = |n: i64, padding: &str| {
        let mut update = update(&scene, n, &[n - 1], &bob.device);
        update["content"]["keys"]["padding"] = json!(padding);
        update
    };
    let mut master = CrossSigning::new(&scene.bob, "master").unsigned();
    master["padding"] = json!(long);
    let signing = json!({ "user_id": scene.bob, "master_key": master });
    let signing = json!({ "edu_type": "m.signing_key_update", "content": signing });
    let told = message(&scene, &scene.bob, "a", "PHONE", json!({ "n": 1 }));
    send(&scene.peer, &scene, "1", &[update_of(6, &long), signing, told]);
    assert_eq!(inbox(&scene), [json!({ "n": 1 })]);
    let keys = |scene: &Scene| query(scene, "PHONE")["device_keys"][&scene.bob]["BOBS"]["keys"].clone();
    assert_eq!((keys(&scene), bob.asked.get()), (bob.device.keys()["keys"].clone(), 2));
    // Many that are together too long.
    let mut edus: Vec<Value> = (7..47).map(|n| update_of(n, &long[..60_000])).collect();
    edus.push(message(&scene, &scene.bob, "b", "PHONE", json!({ "n": 2 })));
    let other = Device::new(&scene.bob, "OTHER");
    let mut others: Vec<Value> = (0..40)
        .map(|n| {
            let device = Device::new(&scene.bob, &format!("OTHER{n}"));
            let mut update = update(&scene, 47 + n, &[46 + n], &device);
            update["content"]["keys"]["padding"] = json!(long[..60_000]);
            update
        })
        .collect();
    others.push(message(&scene, &scene.bob, "c", "PHONE", json!({ "n": 3 })));
    send(&scene.peer, &scene, "2", &edus);
    send(&scene.peer, &scene, "3", &others);
    assert_eq!(inbox(&scene).len(), 3);
    assert_eq!((keys(&scene), bob.asked.get()), (bob.device.keys()["keys"].clone(), 3));
    // And it goes on as before.
    send(&scene.peer, &scene, "4", &[update(&scene, 87, &[86], &other)]);
    assert!(query(&scene, "PHONE")["device_keys"][&scene.bob].get("OTHER").is_some());
    assert_eq!(bob.asked.get(), 3);
}

#[test]
fn keys_that_are_not_whose_they_say_have_the_list_fetched() {
    let scene = scene("12");
    let bob = held(&scene, 5);
    let mut wrong = update(&scene, 6, &[5], &bob.device);
    wrong["content"]["keys"]["user_id"] = json!("@eve:peer.example");
    send(&scene.peer, &scene, "1", &[wrong]);
    assert_eq!(query(&scene, "PHONE")["device_keys"][&scene.bob]["BOBS"]["keys"], bob.device.keys()["keys"]);
    assert_eq!(bob.asked.get(), 2);
    // Another server says nothing of Bob.
    let other = Peer::new(&scene.world, "other.example");
    send(&other, &scene, "1", &[update(&scene, 7, &[6], &Device::new(&scene.bob, "EVIL"))]);
    let answer = query(&scene, "PHONE");
    assert!(answer["device_keys"][&scene.bob].get("EVIL").is_none() && bob.asked.get() == 2, "{answer}");
}

#[test]
fn updates_of_users_whose_keys_nobody_wants_write_nothing() {
    let scene = scene("12");
    let lists = || {
        [
            "SELECT * FROM remote_device_lists",
            "SELECT * FROM device_list_changes",
            "SELECT * FROM streams WHERE name = 'device_lists'",
        ]
        .map(|sql| scene.a.database.rows(sql))
    };
    let before = lists();
    let edus: Vec<Value> = (0..100)
        .map(|n| {
            let device = Device::new(&scene.peer.user(&format!("user{n}")), "D");
            let content = json!({ "user_id": device.user, "device_id": "D", "stream_id": n, "prev_id": [], "keys": device.keys() });
            json!({ "edu_type": "m.device_list_update", "content": content })
        })
        .collect();
    send(&scene.peer, &scene, "1", &edus);
    assert_eq!(lists(), before);
}

#[test]
fn new_cross_signing_keys_are_held_and_only_the_users_own() {
    let scene = scene("12");
    let bob = held(&scene, 5);
    let master = CrossSigning::new(&scene.bob, "master");
    let self_signing = CrossSigning::new(&scene.bob, "self_signing");
    let edu = |user: &str, key: Value| {
        let content =
            json!({ "user_id": user, "master_key": key, "self_signing_key": self_signing.signed_by(&master) });
        json!({ "edu_type": "m.signing_key_update", "content": content })
    };
    send(&scene.peer, &scene, "1", &[edu(&scene.bob, master.unsigned())]);
    let evil = CrossSigning::other(&scene.peer.user("eve"), "master", "evil").unsigned();
    send(&scene.peer, &scene, "2", &[edu(&scene.bob, evil)]);
    let answer = query(&scene, "PHONE");
    assert_eq!(answer["master_keys"], json!({ &scene.bob: master.unsigned() }));
    assert_eq!(answer["self_signing_keys"], json!({ &scene.bob: self_signing.signed_by(&master) }));
    assert_eq!(bob.asked.get(), 1);
}

/// Bob's server says so to whoever asks.
pub(crate) fn bob_has_ten_thousand_devices(scene: &Scene) {
    let bob = scene.bob.clone();
    scene.peer.answers(move |request| {
        request.uri().path().contains("/user/devices/").then(|| {
            let device = |n: usize| {
                let id = format!("DEVICE{n}");
                let keys = json!({ "user_id": bob, "device_id": id, "algorithms": [], "keys": {}, "signatures": {} });
                json!({ "device_id": id, "keys": keys })
            };
            let devices: Vec<Value> = (0..10_000).map(device).collect();
            let answer = json!({ "user_id": bob, "stream_id": 1, "devices": devices });
            json_response(StatusCode::OK, &answer)
        })
    });
}

#[test]
fn a_list_of_ten_thousand_devices_is_answered_and_not_held() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    bob_has_ten_thousand_devices(&scene);
    for _ in 0..2 {
        let answer = query(&scene, "PHONE");
        assert_eq!(answer["device_keys"][&scene.bob].as_object().map(serde_json::Map::len), Some(10_000));
        scene.world.advance(10_000);
    }
    let rows = scene.a.database.rows("SELECT MAX(length(devices)) FROM remote_device_lists");
    assert_eq!(rows, [["2"]]);
}

#[test]
fn a_device_with_a_long_name_is_in_nobodys_way() {
    let scene = scene("12");
    log_in(&scene, "PHONE");
    let good = Device::new(&scene.bob, "GOOD");
    let (bob, keys) = (scene.bob.clone(), good.keys());
    let asked = Rc::new(Cell::new(0));
    let count = asked.clone();
    scene.peer.answers(move |request| {
        request.uri().path().contains("/user/devices/").then(|| {
            count.set(count.get() + 1);
            // Each quote is several characters on its way to the database.
            let id = "\"".repeat(240_000);
            let long = json!({ "user_id": bob, "device_id": id, "keys": { "padding": "\"".repeat(240_000) } });
            let devices = json!([{ "device_id": "GOOD", "keys": keys }, { "device_id": id, "keys": long }]);
            let answer = json!({ "user_id": bob, "stream_id": 1, "devices": devices });
            json_response(StatusCode::OK, &answer)
        })
    });
    for _ in 0..2 {
        let answer = query(&scene, "PHONE");
        let devices = answer["device_keys"][&scene.bob].as_object().unwrap();
        assert_eq!(devices.keys().collect::<Vec<_>>(), ["GOOD"]);
    }
    assert_eq!(asked.get(), 1, "what is left of the list is held");
}
