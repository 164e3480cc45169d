//! Messages to devices, here and to another server.

use serde_json::{Value, json};

use crate::{
    common::network::World,
    home::{Home, User, quote, refused},
};

fn log_in(home: &Home, user: &str, device: &str) -> User {
    let identifier = json!({ "type": "m.id.user", "user": user });
    let body = json!({
        "type": "m.login.password", "identifier": identifier, "password": format!("{user}'s"), "device_id": device,
    });
    let (status, answer) = home.call(None, "POST", "/login", Some(body));
    assert_eq!(status, 200, "{answer}");
    User::of(&answer)
}

fn send(home: &Home, by: &User, txn_id: &str, messages: Value) {
    let answer = home.put(by, &format!("/sendToDevice/m.test/{txn_id}"), json!({ "messages": messages }));
    assert_eq!(answer, (200, json!({})));
}

/// Syncs from `since`, and returns the contents of the messages with the next position.
fn take(home: &Home, user: &User, since: &str) -> (Vec<Value>, String) {
    let answer = home.sync(user, &format!("since={since}"));
    let events = answer["to_device"]["events"].as_array().unwrap();
    let contents = events.iter().map(|event| event["content"].clone()).collect();
    (contents, answer["next_batch"].as_str().unwrap().to_owned())
}

fn start(home: &Home, user: &User) -> String {
    take(home, user, "").1
}

#[test]
fn a_message_waits_until_its_device_has_taken_it() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let since = start(&home, &bob);
    send(&home, &alice, "1", json!({ &bob.id: { &bob.device_id: { "n": 1 } } }));
    let answer = home.sync(&bob, &format!("since={since}"));
    let expected = json!([{ "type": "m.test", "sender": alice.id, "content": { "n": 1 } }]);
    assert_eq!(answer["to_device"]["events"], expected);
    let (again, next) = take(&home, &bob, &since);
    assert_eq!(again, [json!({ "n": 1 })], "an answer may be lost");
    send(&home, &alice, "2", json!({ &bob.id: { &bob.device_id: { "n": 2 } } }));
    let (second, next) = take(&home, &bob, &next);
    assert_eq!(second, [json!({ "n": 2 })]);
    assert_eq!(home.database.rows("SELECT count(*) FROM to_device_messages"), [["1"]], "the first was taken");
    assert_eq!(take(&home, &bob, &next).0, [] as [Value; 0]);
    assert!(home.database.rows("SELECT * FROM to_device_messages").is_empty());
    assert_eq!(take(&home, &bob, &since).0, [] as [Value; 0], "what was taken is gone");
}

#[test]
fn a_message_goes_to_the_devices_that_are_named() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let pad = log_in(&home, "bob", "PAD");
    let since: Vec<String> = [&bob, &pad].iter().map(|device| start(&home, device)).collect();
    let to = |device: &str, n: i64| json!({ &bob.id: { device: { "n": n } }, "@nobody:hs.test": { "*": {} } });
    send(&home, &alice, "1", to("PAD", 1));
    send(&home, &alice, "2", to("*", 2));
    send(&home, &alice, "3", to("NONE", 3));
    assert_eq!(take(&home, &bob, &since[0]).0, [json!({ "n": 2 })]);
    assert_eq!(take(&home, &pad, &since[1]).0, [json!({ "n": 1 }), json!({ "n": 2 })]);
    assert_eq!(take(&home, &alice, &start(&home, &alice)).0, [] as [Value; 0]);
    // A device that goes takes its messages along.
    assert_eq!(home.post(&pad, "/logout", json!({})).0, 200);
    assert_eq!(home.database.rows("SELECT DISTINCT device_id FROM to_device_messages"), [[bob.device_id.clone()]]);
}

#[test]
fn a_repeated_request_sends_nothing_again() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let since = start(&home, &bob);
    for n in 0..3 {
        send(&home, &alice, "same", json!({ &bob.id: { "*": { "n": n } } }));
    }
    // The ID is for one type, and one device.
    let other = "/sendToDevice/m.other/same";
    assert_eq!(home.put(&alice, other, json!({ "messages": { &bob.id: { "*": { "n": 3 } } } })).0, 200);
    send(&home, &log_in(&home, "alice", "PAD"), "same", json!({ &bob.id: { "*": { "n": 4 } } }));
    assert_eq!(take(&home, &bob, &since).0, [json!({ "n": 0 }), json!({ "n": 3 }), json!({ "n": 4 })]);
    home.world.advance(8 * 24 * 3_600_000);
    home.database.forget_old(home.world.now_ms());
    assert!(home.database.rows("SELECT * FROM sent_to_device").is_empty());
}

#[test]
fn many_messages_are_told_in_order_a_hundred_at_a_time() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let mut since = start(&home, &bob);
    for n in 0..250 {
        send(&home, &alice, &n.to_string(), json!({ &bob.id: { &bob.device_id: { "n": n } } }));
    }
    let mut told = Vec::new();
    for expected in [100, 100, 50, 0] {
        let (messages, next) = take(&home, &bob, &since);
        assert_eq!(messages.len(), expected);
        told.extend(messages);
        since = next;
    }
    assert_eq!(told, (0..250).map(|n| json!({ "n": n })).collect::<Vec<_>>());
    // Long ones are fewer.
    let long = "x".repeat(50_000);
    for n in 0..60 {
        send(&home, &alice, &format!("long{n}"), json!({ &bob.id: { &bob.device_id: { "n": n, "long": &long } } }));
    }
    let (messages, _) = take(&home, &bob, &since);
    assert!((30..45).contains(&messages.len()), "{}", messages.len());
}

#[test]
fn what_waits_for_a_device_is_bounded() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let since = start(&home, &bob);
    let long = "x".repeat(59_000);
    for n in 0..600 {
        send(&home, &alice, &n.to_string(), json!({ &bob.id: { &bob.device_id: { "n": n, "long": &long } } }));
    }
    let rows = home.database.rows("SELECT count(*), SUM(length(message)) FROM to_device_messages");
    let [count, length] = [0, 1].map(|column| rows[0][column].parse::<usize>().unwrap());
    assert!(count < 600 && (15_000_000..17_000_000).contains(&length), "{rows:?}");
    let (first, next) = take(&home, &bob, &since);
    assert_eq!(first[0]["n"], 0, "what came first stays");
    // What was taken makes room.
    take(&home, &bob, &next);
    send(&home, &alice, "more", json!({ &bob.id: { &bob.device_id: { "n": "more" } } }));
    let last = home.database.rows("SELECT message FROM to_device_messages ORDER BY pos DESC LIMIT 1");
    assert!(last[0][0].contains("\"more\""));
}

#[test]
fn malformed_requests_are_refused() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let path = "/sendToDevice/m.test/1";
    let long = "x".repeat(60_000);
    for (body, status, errcode) in [
        (json!({}), 400, "M_MISSING_PARAM"),
        (json!({ "messages": [] }), 400, "M_BAD_JSON"),
        (json!({ "messages": { &bob.id: [] } }), 400, "M_BAD_JSON"),
        (json!({ "messages": { &bob.id: { "*": "x" } } }), 400, "M_BAD_JSON"),
        (json!({ "messages": { "bob": { "*": {} } } }), 400, "M_INVALID_PARAM"),
        (json!({ "messages": { &bob.id: { "": {} } } }), 400, "M_INVALID_PARAM"),
        (json!({ "messages": { &bob.id: { "A\u{0}": {} } } }), 400, "M_INVALID_PARAM"),
        (json!({ "messages": { "@x:other.example": { "A\u{7f}": {} } } }), 400, "M_INVALID_PARAM"),
        (json!({ "messages": { &bob.id: { "*": { "x": long } } } }), 413, "M_TOO_LARGE"),
    ] {
        refused(&home.put(&alice, path, body), status, errcode);
    }
    let long = "x".repeat(256);
    let body = json!({ "messages": {} });
    refused(&home.put(&alice, &format!("/sendToDevice/m.test/{long}"), body.clone()), 400, "M_INVALID_PARAM");
    refused(&home.put(&alice, &format!("/sendToDevice/{long}/1"), body.clone()), 400, "M_INVALID_PARAM");
    refused(&home.call(None, "PUT", path, Some(body)), 401, "M_MISSING_TOKEN");
}

#[test]
fn a_thousand_messages_reach_another_server_once_and_in_order_through_outages() {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let pad = log_in(&two, "bob", "PAD");
    let mut since = start(&two, &bob);
    let mut told: Vec<Value> = Vec::new();
    for n in 0..1_000 {
        match n % 250 {
            50 => world.cut("one.test", "two.test"),
            100 => world.mend("one.test", "two.test"),
            150 => world.lose_answers("one.test", "two.test"),
            200 => world.mend("one.test", "two.test"),
            _ => {}
        }
        send(&one, &alice, &n.to_string(), json!({ &bob.id: { &bob.device_id: { "n": n }, "PAD": { "pad": n } } }));
        if n % 50 == 49 {
            world.settle();
            let (messages, next) = take(&two, &bob, &since);
            told.extend(messages);
            since = next;
        }
    }
    for _ in 0..10 {
        world.advance(3_600_000);
        world.run(one.server.scheduled());
        world.settle();
    }
    loop {
        let (messages, next) = take(&two, &bob, &since);
        since = next;
        if messages.is_empty() {
            break;
        }
        told.extend(messages);
    }
    let expected: Vec<Value> = (0..1_000).map(|n| json!({ "n": n })).collect();
    assert_eq!(told.len(), 1_000, "{:?}", world.logs());
    assert_eq!(told, expected);
    let waiting = two.database.rows("SELECT count(*) FROM to_device_messages WHERE device_id = 'PAD'");
    assert_eq!(waiting, [["1000"]], "for {}", pad.device_id);
    assert!(one.database.rows("SELECT * FROM edu_outbox").is_empty());
}

#[test]
fn a_sync_that_waits_hears_of_a_message_at_once() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let since = start(&home, &bob);
    let request = |method: &str, path: &str, user: &User, body: Value| {
        let request = http::Request::builder().method(method).uri(format!("/_matrix/client/v3{path}"));
        let body = bytes::Bytes::from(body.to_string());
        home.server.handle(request.header("Authorization", format!("Bearer {}", user.token)).body(body).unwrap())
    };
    let begun = home.world.now_ms();
    let path = format!("/sync?since={}&timeout=30000", quote(&since));
    let (answer, _) = home.world.run(async {
        futures_util::future::join(request("GET", &path, &bob, json!({})), async {
            verge::platform::Clock::sleep(&home.world, 2_000).await;
            let messages = json!({ "messages": { &bob.id: { "*": { "n": 1 } } } });
            request("PUT", "/sendToDevice/m.test/1", &alice, messages).await
        })
        .await
    });
    let answer: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(answer["to_device"]["events"][0]["content"], json!({ "n": 1 }));
    assert!(home.world.now_ms() - begun < 10_000);
}

#[test]
fn names_of_devices_count_for_how_long_an_edu_is() {
    let home = Home::with(&World::new(), "one.test", &[("REGISTRATION", "open")]);
    let alice = home.register("alice");
    let devices: serde_json::Map<String, Value> =
        (0..1_000).map(|n| (format!("{n:04}{}", "x".repeat(200)), json!({}))).collect();
    send(&home, &alice, "1", json!({ "@bob:two.test": devices }));
    let edus = home.database.rows("SELECT content FROM edu_outbox ORDER BY pos");
    assert!(edus.iter().all(|edu| edu[0].len() <= 65_536), "{} EDUs", edus.len());
    let sent = edus.iter().flat_map(|edu| {
        let content: Value = serde_json::from_str(&edu[0]).unwrap();
        content["messages"]["@bob:two.test"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    });
    assert_eq!(sent.collect::<Vec<_>>(), devices.keys().cloned().collect::<Vec<_>>());
}
