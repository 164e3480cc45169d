//! The user's own devices.

use serde_json::{Value, json};

use crate::{
    common::devices::Device,
    home::{Home, User, refused},
};

fn log_in(home: &Home, user: &str, device: &str) -> User {
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": user },
        "password": format!("{user}'s"), "device_id": device, "initial_device_display_name": format!("{device}'s name"),
    });
    let (status, answer) = home.call(None, "POST", "/login", Some(body));
    assert_eq!(status, 200, "{answer}");
    User::of(&answer)
}

/// What proves that `user` makes a request.
fn auth(user: &str, password: &str) -> Value {
    json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": user }, "password": password })
}

#[test]
fn devices_are_listed_and_renamed() {
    let home = Home::new();
    home.register("alice");
    let (phone, bob) = (log_in(&home, "alice", "PHONE"), home.register("bob"));
    let (_, answer) = home.get(&phone, "/devices");
    let devices = answer["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2, "{answer}");
    let named = json!({ "device_id": "PHONE", "display_name": "PHONE's name" });
    assert!(devices.contains(&named), "{answer}");
    assert_eq!(home.get(&phone, "/devices/PHONE"), (200, named));
    assert_eq!(home.put(&phone, "/devices/PHONE", json!({ "display_name": "Mine" })), (200, json!({})));
    assert_eq!(home.put(&phone, "/devices/PHONE", json!({})), (200, json!({})), "nothing to change");
    assert_eq!(home.get(&phone, "/devices/PHONE").1["display_name"], "Mine");
    refused(&home.get(&bob, "/devices/PHONE"), 404, "M_NOT_FOUND");
    refused(&home.put(&bob, "/devices/PHONE", json!({ "display_name": "Bob's" })), 404, "M_NOT_FOUND");
    refused(&home.put(&bob, "/devices/PHONE", json!({})), 404, "M_NOT_FOUND");
    refused(&home.put(&phone, "/devices/PHONE", json!({ "display_name": "x".repeat(256) })), 400, "M_INVALID_PARAM");
    refused(&home.put(&phone, "/devices/PHONE", json!({ "display_name": 1 })), 400, "M_BAD_JSON");
    for (method, path) in [("GET", "/devices"), ("GET", "/devices/PHONE"), ("PUT", "/devices/PHONE")] {
        refused(&home.call(None, method, path, Some(json!({}))), 401, "M_MISSING_TOKEN");
    }
}

#[test]
fn deleting_a_device_wants_the_password() {
    let home = Home::new();
    let alice = home.register("alice");
    home.register("bob");
    let phone = log_in(&home, "alice", "PHONE");
    let keys = Device::new(&phone.id, "PHONE");
    let body = json!({ "device_keys": keys.keys(), "one_time_keys": keys.one_time_keys(2) });
    assert_eq!(home.post(&phone, "/keys/upload", body).0, 200);
    let delete = |body: Value| home.call(Some(&alice.token), "DELETE", "/devices/PHONE", Some(body));
    let (status, asked) = home.call(Some(&alice.token), "DELETE", "/devices/PHONE", None);
    assert_eq!((status, &asked["flows"]), (401, &json!([{ "stages": ["m.login.password"] }])), "{asked}");
    assert!(asked["session"].is_string() && asked["errcode"].is_null());
    for (auth, errcode) in [
        (auth("alice", "wrong"), json!("M_FORBIDDEN")),
        (auth("bob", "bob's"), json!("M_FORBIDDEN")),
        (json!({ "type": "m.login.dummy" }), json!("M_FORBIDDEN")),
        (json!({ "session": asked["session"] }), Value::Null),
    ] {
        let (status, answer) = delete(json!({ "auth": auth }));
        assert_eq!((status, &answer["errcode"], answer["flows"].is_array()), (401, &errcode, true), "{answer}");
    }
    assert_eq!(home.get(&phone, "/account/whoami").0, 200);
    let mut right = auth("alice", "alice's");
    right["session"] = asked["session"].clone();
    assert_eq!(delete(json!({ "auth": right })), (200, json!({})));
    refused(&home.get(&phone, "/account/whoami"), 401, "M_UNKNOWN_TOKEN");
    refused(&home.get(&alice, "/devices/PHONE"), 404, "M_NOT_FOUND");
    for table in ["device_keys", "one_time_keys", "fallback_keys"] {
        assert!(home.database.rows(&format!("SELECT * FROM {table}")).is_empty(), "{table}");
    }
    assert_eq!(delete(json!({ "auth": auth("@alice:hs.test", "alice's") })), (200, json!({})), "it is gone already");
}

#[test]
fn several_devices_are_deleted_at_once_and_only_ones_own() {
    let home = Home::new();
    let alice = home.register("alice");
    let (phone, pad, bob) = (log_in(&home, "alice", "PHONE"), log_in(&home, "alice", "PAD"), home.register("bob"));
    let bobs = log_in(&home, "bob", "PHONE");
    let body = |devices: Value| json!({ "devices": devices, "auth": auth("alice", "alice's") });
    assert_eq!(home.post(&alice, "/delete_devices", json!({ "devices": ["PHONE"] })).0, 401);
    refused(&home.post(&alice, "/delete_devices", body(json!("PHONE"))), 400, "M_BAD_JSON");
    refused(&home.post(&alice, "/delete_devices", json!({})), 400, "M_MISSING_PARAM");
    assert_eq!(home.post(&alice, "/delete_devices", body(json!(["PHONE", "PAD", bob.device_id]))), (200, json!({})));
    for gone in [&phone, &pad] {
        refused(&home.get(gone, "/devices"), 401, "M_UNKNOWN_TOKEN");
    }
    for there in [&alice, &bob, &bobs] {
        assert_eq!(home.get(there, "/account/whoami").0, 200);
    }
}

#[test]
fn logging_out_everywhere_takes_all_keys_along() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    for user in [&alice, &bob] {
        let keys = Device::new(&user.id, &user.device_id);
        let body = json!({ "device_keys": keys.keys(), "one_time_keys": keys.one_time_keys(1) });
        assert_eq!(home.post(user, "/keys/upload", body).0, 200);
    }
    assert_eq!(home.post(&alice, "/logout/all", json!({})), (200, json!({})));
    for table in ["devices", "device_keys", "one_time_keys"] {
        let left = home.database.rows(&format!("SELECT DISTINCT user_id FROM {table}"));
        assert_eq!(left, [[bob.id.clone()]], "{table}");
    }
}
