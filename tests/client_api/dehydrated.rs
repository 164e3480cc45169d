//! Dehydrated devices.

use serde_json::{Value, json};

use crate::{
    common::devices::Device,
    home::{Answer, Home, User, refused},
};

const PATH: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

fn call(home: &Home, user: &User, method: &str, rest: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let response = home.raw(method, &format!("{PATH}{rest}"), Some(&user.token), body);
    (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
}

fn get(home: &Home, user: &User) -> Answer {
    call(home, user, "GET", "", &Value::Null)
}

fn request(user: &User, id: &str) -> Value {
    let device = Device::new(&user.id, id);
    json!({
        "device_id": id, "device_data": { "algorithm": "m.dehydration.v2", "pickle": "x" }, "device_keys": device.keys(),
        "one_time_keys": device.one_time_keys(2), "initial_device_display_name": "Asleep",
    })
}

fn put(home: &Home, user: &User, id: &str) -> Answer {
    call(home, user, "PUT", "", &request(user, id))
}

fn message(home: &Home, from: &User, to: &User, device: &str, n: u32) {
    let body = json!({ "messages": { &to.id: { device: { "n": n } } } });
    assert_eq!(home.put(from, &format!("/sendToDevice/m.test/{device}{n}"), body).0, 200);
}

fn numbers(answer: &Value) -> Vec<i64> {
    answer["events"].as_array().unwrap().iter().map(|event| event["content"]["n"].as_i64().unwrap()).collect()
}

#[test]
fn a_dehydrated_device_takes_messages_for_the_next() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    refused(&get(&home, &alice), 404, "M_NOT_FOUND");
    refused(&call(&home, &alice, "DELETE", "", &Value::Null), 404, "M_NOT_FOUND");
    refused(&call(&home, &alice, "POST", "/SLEEP/events", &json!({})), 404, "M_NOT_FOUND");
    assert_eq!(put(&home, &alice, "SLEEP"), (200, json!({ "device_id": "SLEEP" })));
    let told = json!({ "device_id": "SLEEP", "device_data": { "algorithm": "m.dehydration.v2", "pickle": "x" } });
    assert_eq!(get(&home, &alice), (200, told));
    refused(&get(&home, &bob), 404, "M_NOT_FOUND");
    // Others see its keys and claim some.
    let keys = home.post(&bob, "/keys/query", json!({ "device_keys": { &alice.id: [] } })).1;
    assert!(keys["device_keys"][&alice.id]["SLEEP"].is_object(), "{keys}");
    let wanted = json!({ "one_time_keys": { &alice.id: { "SLEEP": "signed_curve25519" } } });
    assert!(home.post(&bob, "/keys/claim", wanted).1["one_time_keys"][&alice.id]["SLEEP"].is_object());
    for n in 0..130 {
        message(&home, &bob, &alice, "SLEEP", n);
    }
    let events = |next: Value| {
        let (status, answer) = call(&home, &alice, "POST", "/SLEEP/events", &next);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let first = events(json!({}));
    assert_eq!(numbers(&first), (0..100).collect::<Vec<_>>());
    assert_eq!(numbers(&events(json!({}))), numbers(&first), "they stay until they are acknowledged");
    let second = events(json!({ "next_batch": first["next_batch"] }));
    assert_eq!(numbers(&second), (100..130).collect::<Vec<_>>());
    let last = events(json!({ "next_batch": second["next_batch"] }));
    assert_eq!((numbers(&last), &last["next_batch"]), (vec![], &second["next_batch"]));
    refused(&call(&home, &alice, "POST", "/OTHER/events", &json!({})), 403, "M_FORBIDDEN");
    refused(&call(&home, &alice, "POST", "/SLEEP/events", &json!({ "next_batch": "x" })), 400, "M_INVALID_PARAM");
    refused(&call(&home, &bob, "POST", "/SLEEP/events", &json!({})), 404, "M_NOT_FOUND");
}

#[test]
fn another_takes_its_place_and_nothing_of_it_is_left() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    for id in ["ONE", "ONE", "TWO"] {
        assert_eq!(put(&home, &alice, id).0, 200);
        message(&home, &bob, &alice, id, 1);
    }
    assert_eq!(get(&home, &alice).1["device_id"], "TWO");
    let devices = |column: &str, table: &str| {
        home.database.rows(&format!("SELECT DISTINCT {column} FROM {table} WHERE device_id IN ('ONE', 'TWO')"))
    };
    for table in ["devices", "device_keys", "one_time_keys", "to_device_messages", "dehydrated_devices"] {
        assert_eq!(devices("device_id", table), [["TWO"]], "{table}");
    }
    assert_eq!(call(&home, &alice, "DELETE", "", &Value::Null), (200, json!({ "device_id": "TWO" })));
    for table in ["devices", "device_keys", "one_time_keys", "to_device_messages", "dehydrated_devices"] {
        assert!(devices("device_id", table).is_empty(), "{table}");
    }
    // It goes as any other device, too.
    assert_eq!(put(&home, &alice, "SIX").0, 200);
    assert_eq!(home.post(&alice, "/logout/all", json!({})).0, 200);
    assert!(home.database.rows("SELECT * FROM dehydrated_devices").is_empty());
}

/// One that nobody knows of would get messages for ever.
#[test]
fn of_two_at_the_same_time_one_is_left() {
    let home = Home::new();
    let alice = home.register("alice");
    home.world.interleave();
    for n in 0..20 {
        let bodies = ["ONE", "OTHER"].map(|name| request(&alice, &format!("{name}{n}")));
        let puts = bodies.iter().map(|body| {
            let put = http::Request::put(PATH).header("Authorization", format!("Bearer {}", alice.token));
            home.server.handle(put.body(bytes::Bytes::from(body.to_string())).unwrap())
        });
        let answers = home.world.run(futures_util::future::join_all(puts));
        assert!(answers.iter().any(|answer| answer.status() == 200));
        let left = home.database.rows("SELECT device_id FROM devices WHERE token_hash LIKE 'none%'");
        assert_eq!(left, home.database.rows("SELECT device_id FROM dehydrated_devices"));
        assert_eq!(left.len(), 1);
    }
}

#[test]
fn dehydrated_devices_are_refused_as_documented() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let good = request(&alice, "SLEEP");
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        call(&home, &alice, "PUT", "", &body)
    };
    for name in ["device_id", "device_data", "device_keys"] {
        refused(&with(name, Value::Null), 400, "M_MISSING_PARAM");
    }
    refused(&with("device_data", json!({})), 400, "M_MISSING_PARAM");
    refused(&with("device_data", json!({ "algorithm": "x", "pickle": "x".repeat(70_000) })), 413, "M_TOO_LARGE");
    refused(&with("device_id", json!("")), 400, "M_INVALID_PARAM");
    refused(&with("device_id", json!("x".repeat(256))), 400, "M_INVALID_PARAM");
    refused(&with("device_keys", Device::new(&bob.id, "SLEEP").keys()), 400, "M_INVALID_PARAM");
    refused(&with("one_time_keys", Device::new(&bob.id, "SLEEP").one_time_keys(1)), 400, "M_INVALID_SIGNATURE");
    refused(&put(&home, &alice, &alice.device_id), 400, "M_INVALID_PARAM");
    assert!(home.database.rows("SELECT * FROM dehydrated_devices").is_empty());
    assert_eq!(home.raw("GET", PATH, None, "").status(), 401);
    // What is refused takes no device's place.
    assert_eq!(put(&home, &alice, "SLEEP").0, 200);
    refused(&put(&home, &alice, &alice.device_id), 400, "M_INVALID_PARAM");
    assert_eq!(get(&home, &alice).1["device_id"], "SLEEP");
    assert_eq!(home.get(&alice, "/account/whoami").0, 200);
}
