//! Device keys, one-time keys and fallback keys; whose keys have changed.

use std::collections::BTreeSet;

use ruma_common::encryption::{DeviceKeys, OneTimeKey};
use serde_json::{Value, json};
use verge::matrix::{self, identifiers::UserId};

use crate::{
    common::{
        devices::{CrossSigning, Device},
        homeserver::object,
        network::World,
    },
    home::{Home, User, quote, refused, request_of},
};

/// The device with which `user` is logged in.
fn device(user: &User) -> Device {
    Device::new(&user.id, &user.device_id)
}

fn upload(home: &Home, user: &User, body: Value) -> Value {
    let (status, answer) = home.post(user, "/keys/upload", body);
    assert_eq!(status, 200, "{answer}");
    answer["one_time_key_counts"].clone()
}

fn claim(home: &Home, by: &User, of: &User) -> Value {
    let wanted = json!({ "one_time_keys": { &of.id: { &of.device_id: "signed_curve25519" } } });
    let (status, answer) = home.post(by, "/keys/claim", wanted);
    assert_eq!(status, 200, "{answer}");
    answer["one_time_keys"][&of.id][&of.device_id].clone()
}

fn encrypted_room(home: &Home, creator: &User) -> String {
    let encryption =
        json!({ "type": "m.room.encryption", "state_key": "", "content": { "algorithm": "m.megolm.v1.aes-sha2" } });
    home.room(creator, json!({ "preset": "public_chat", "initial_state": [encryption] }))
}

pub fn join(home: &Home, user: &User, room: &str) {
    let (status, answer) = home.post(user, &format!("/join/{}?server_name=one.test", quote(room)), json!({}));
    assert_eq!(status, 200, "{answer}");
}

pub fn leave(home: &Home, user: &User, room: &str) {
    assert_eq!(home.post(user, &format!("/rooms/{}/leave", quote(room)), json!({})).0, 200);
}

pub fn next(answer: &Value) -> String {
    answer["next_batch"].as_str().unwrap().to_owned()
}

/// Who has changed by an answer, and who has left.
pub fn lists(answer: &Value) -> (BTreeSet<String>, BTreeSet<String>) {
    let of = |name: &str| {
        let users = answer["device_lists"][name].as_array().unwrap();
        users.iter().map(|user| user.as_str().unwrap().to_owned()).collect()
    };
    (of("changed"), of("left"))
}

/// Who is new to `user` since then, and who has left.
pub fn told(home: &Home, user: &User, since: &mut String) -> (BTreeSet<String>, BTreeSet<String>) {
    let answer = home.sync(user, &format!("since={since}"));
    let (status, changes) = home.get(user, &format!("/keys/changes?from={since}&to={}", next(&answer)));
    assert_eq!(status, 200, "{changes}");
    let told = lists(&answer);
    assert_eq!(lists(&json!({ "device_lists": changes })), told, "/keys/changes says the same");
    *since = next(&answer);
    told
}

pub fn ids(users: &[&User]) -> BTreeSet<String> {
    users.iter().map(|user| user.id.clone()).collect()
}

#[test]
fn keys_come_back_as_they_were_uploaded() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let phone = device(&alice);
    let counts = upload(&home, &alice, json!({ "device_keys": phone.keys(), "one_time_keys": phone.one_time_keys(3) }));
    assert_eq!(counts, json!({ "signed_curve25519": 3 }));
    assert_eq!(home.put(&alice, &format!("/devices/{}", alice.device_id), json!({ "display_name": "Phone" })).0, 200);
    let (status, answer) = home.post(&bob, "/keys/query", json!({ "device_keys": { &alice.id: [], &bob.id: [] } }));
    assert_eq!(status, 200, "{answer}");
    let mut keys = answer["device_keys"][&alice.id][&alice.device_id].clone();
    serde_json::from_value::<DeviceKeys>(keys.clone()).unwrap();
    assert_eq!(keys["unsigned"].take(), json!({ "device_display_name": "Phone" }));
    keys.as_object_mut().unwrap().remove("unsigned");
    assert_eq!(keys, phone.keys());
    assert_eq!(answer["device_keys"][&bob.id], json!({}), "who has uploaded none has none");
    assert_eq!(answer["failures"], json!({}));
    // One of several devices, and one that is not there.
    for (devices, expected) in [(json!([alice.device_id]), 1), (json!(["NONE"]), 0)] {
        let (_, answer) = home.post(&bob, "/keys/query", json!({ "device_keys": { &alice.id: devices } }));
        assert_eq!(answer["device_keys"][&alice.id].as_object().unwrap().len(), expected);
    }
}

#[test]
fn only_a_devices_own_keys_are_taken() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let phone = device(&alice);
    let upload = |body: Value| home.post(&alice, "/keys/upload", body);
    // One-time keys before there is anything to check them by.
    refused(&upload(json!({ "one_time_keys": phone.one_time_keys(1) })), 400, "M_INVALID_PARAM");
    let mut tampered = phone.keys();
    tampered["algorithms"] = json!(["m.other"]);
    let mut unsigned = phone.keys();
    unsigned.as_object_mut().unwrap().remove("signatures");
    let mut no_ed25519 = phone.keys();
    no_ed25519["keys"].as_object_mut().unwrap().remove(&format!("ed25519:{}", phone.id));
    let mut foreign_key = phone.keys();
    foreign_key["keys"]["ed25519:OTHER"] = json!(phone.public());
    for (keys, errcode) in [
        (device(&bob).keys(), "M_INVALID_PARAM"),
        (Device::new(&alice.id, "OTHER").keys(), "M_INVALID_PARAM"),
        (tampered, "M_INVALID_SIGNATURE"),
        (unsigned, "M_INVALID_SIGNATURE"),
        (no_ed25519, "M_INVALID_PARAM"),
        (phone.sign(foreign_key), "M_INVALID_PARAM"),
    ] {
        refused(&upload(json!({ "device_keys": keys })), 400, errcode);
    }
    assert_eq!(upload(json!({ "device_keys": phone.keys() })).0, 200);
    let (id, mut key) = phone.one_time_key("A");
    key["key"] = json!("another");
    let others = Device::new(&alice.id, "OTHER").one_time_keys(1);
    let too_many = phone.one_time_keys(501);
    let too_long = phone.sign(json!({ "key": "x".repeat(10_000) }));
    for (keys, status, errcode) in [
        (json!({ id: key }), 400, "M_INVALID_SIGNATURE"),
        (others, 400, "M_INVALID_SIGNATURE"),
        (json!({ "signed_curve25519:": phone.one_time_key("A").1 }), 400, "M_INVALID_PARAM"),
        (json!({ "curve25519": "key" }), 400, "M_INVALID_PARAM"),
        (json!({ "curve25519:A": 1 }), 400, "M_INVALID_PARAM"),
        (json!({ "signed_curve25519:A": too_long }), 400, "M_INVALID_PARAM"),
        (too_many, 413, "M_TOO_LARGE"),
    ] {
        refused(&upload(json!({ "one_time_keys": keys })), status, errcode);
        refused(&upload(json!({ "fallback_keys": keys })), status, errcode);
    }
    refused(&home.call(None, "POST", "/keys/upload", Some(json!({}))), 401, "M_MISSING_TOKEN");
    assert_eq!(upload(json!({})), (200, json!({ "one_time_key_counts": { "signed_curve25519": 0 } })));
    assert!(home.database.rows("SELECT * FROM one_time_keys").is_empty());
}

/// They would fail over what tells them of it, or could not store it.
#[test]
fn keys_that_other_servers_may_be_unable_to_read_are_refused() {
    let home = Home::new();
    home.register("alice");
    let alice = log_in_without_keys(&home, "alice", "PHONE");
    let deep = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({ "x": inner }));
    // The body and its member are the first two levels.
    let phone = Device::new(&alice.id, &alice.device_id);
    let mut keys = phone.keys();
    keys["unsigned"] = deep(98);
    assert_eq!(upload(&home, &alice, json!({ "device_keys": keys })), json!({ "signed_curve25519": 0 }));
    keys["unsigned"] = deep(99);
    refused(&home.post(&alice, "/keys/upload", json!({ "device_keys": keys })), 400, "M_BAD_JSON");
    let (id, mut key) = phone.one_time_key("1");
    key["unsigned"] = deep(98);
    refused(&home.post(&alice, "/keys/upload", json!({ "one_time_keys": { id: key } })), 400, "M_BAD_JSON");
    let mut master = CrossSigning::new(&alice.id, "master").unsigned();
    master["unsigned"] = deep(99);
    refused(&home.post(&alice, "/keys/device_signing/upload", json!({ "master_key": master })), 400, "M_BAD_JSON");
    // Nor does anybody have such a device.
    let identifier = json!({ "type": "m.id.user", "user": "alice" });
    let odd = json!({
        "type": "m.login.password", "identifier": identifier, "password": "alice's", "device_id": "A\u{0}",
    });
    refused(&home.call(None, "POST", "/login", Some(odd)), 400, "M_INVALID_PARAM");
}

#[test]
fn a_one_time_key_of_a_known_name_must_be_the_same() {
    let home = Home::new();
    let alice = home.register("alice");
    let phone = device(&alice);
    let body = json!({ "device_keys": phone.keys(), "one_time_keys": phone.one_time_keys(2) });
    assert_eq!(upload(&home, &alice, body.clone()), json!({ "signed_curve25519": 2 }));
    assert_eq!(upload(&home, &alice, body), json!({ "signed_curve25519": 2 }), "again");
    let (id, other) = phone.one_time_key("K0000");
    let other = phone.sign(json!({ "key": other["key"], "extra": 1 }));
    let (new, key) = phone.one_time_key("NEW");
    refused(
        &home.post(&alice, "/keys/upload", json!({ "one_time_keys": { id: other, new: key } })),
        400,
        "M_INVALID_PARAM",
    );
    assert_eq!(upload(&home, &alice, json!({})), json!({ "signed_curve25519": 2 }), "nothing of it was stored");
}

#[test]
fn a_one_time_key_is_given_out_once_and_then_the_fallback_key() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let phone = device(&alice);
    let (fallback, key) = phone.fallback_key("F");
    upload(
        &home,
        &alice,
        json!({
            "device_keys": phone.keys(), "one_time_keys": phone.one_time_keys(2), "fallback_keys": { &fallback: &key },
        }),
    );
    let first = home.sync(&alice, "");
    assert_eq!(first["device_one_time_keys_count"], json!({ "signed_curve25519": 2 }));
    assert_eq!(first["device_unused_fallback_key_types"], json!(["signed_curve25519"]));
    let claimed: Vec<Value> = (0..4).map(|_| claim(&home, &bob, &alice)).collect();
    let one_time = |name: &str| {
        let (id, key) = phone.one_time_key(name);
        json!({ id: key })
    };
    // In the order in which they came.
    assert_eq!(claimed, [one_time("K0000"), one_time("K0001"), json!({ &fallback: &key }), json!({ &fallback: &key })]);
    for keys in claimed {
        for key in keys.as_object().unwrap().values() {
            serde_json::from_value::<OneTimeKey>(key.clone()).unwrap();
        }
    }
    let counts = |home: &Home| {
        let answer = home.sync(&alice, &format!("since={}", next(&first)));
        (answer["device_one_time_keys_count"].clone(), answer["device_unused_fallback_key_types"].clone())
    };
    assert_eq!(counts(&home), (json!({ "signed_curve25519": 0 }), json!([])));
    // The same fallback key again stays used, another one is not.
    upload(&home, &alice, json!({ "fallback_keys": { &fallback: &key } }));
    assert_eq!(counts(&home).1, json!([]));
    let (other, key) = phone.fallback_key("G");
    upload(&home, &alice, json!({ "fallback_keys": { &other: &key } }));
    assert_eq!(counts(&home).1, json!(["signed_curve25519"]));
    assert_eq!(claim(&home, &bob, &alice), json!({ other: key }));
}

#[test]
fn what_is_not_there_cannot_be_claimed() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    assert_eq!(claim(&home, &bob, &alice), Value::Null);
    for body in [
        json!({ "one_time_keys": { &alice.id: "x" } }),
        json!({ "one_time_keys": { &alice.id: { "D": 1 } } }),
        json!({ "one_time_keys": [] }),
    ] {
        refused(&home.post(&bob, "/keys/claim", body), 400, "M_BAD_JSON");
    }
    refused(&home.post(&bob, "/keys/claim", json!({})), 400, "M_MISSING_PARAM");
    refused(&home.post(&bob, "/keys/claim", json!({ "one_time_keys": { "alice": {} } })), 400, "M_INVALID_PARAM");
    refused(&home.post(&bob, "/keys/query", json!({})), 400, "M_MISSING_PARAM");
    refused(&home.post(&bob, "/keys/query", json!({ "device_keys": { "alice": [] } })), 400, "M_INVALID_PARAM");
    refused(&home.post(&bob, "/keys/query", json!({ "device_keys": { &alice.id: [1] } })), 400, "M_BAD_JSON");
    refused(&home.call(None, "POST", "/keys/claim", Some(json!({}))), 401, "M_MISSING_TOKEN");
    refused(&home.call(None, "POST", "/keys/query", Some(json!({}))), 401, "M_MISSING_TOKEN");
}

/// Whoever has got hold of an account must not use up what its contacts' devices have uploaded.
#[test]
fn a_user_who_drains_a_device_gets_its_fallback_key() {
    let home = Home::new();
    let (alice, bob, carol) = (home.register("alice"), home.register("bob"), home.register("carol"));
    let phone = device(&alice);
    let keys: serde_json::Map<_, _> = (0..50).map(|n| phone.one_time_key(&format!("{n}"))).collect();
    let (fallback, key) = phone.fallback_key("F");
    let fallback_keys = json!({ &fallback: key });
    upload(
        &home,
        &alice,
        json!({ "device_keys": phone.keys(), "one_time_keys": keys, "fallback_keys": fallback_keys }),
    );
    let is_fallback = |claimed: &Value| claimed.get(&fallback).is_some();
    assert!((0..20).all(|_| !is_fallback(&claim(&home, &bob, &alice))));
    assert!((0..5).all(|_| is_fallback(&claim(&home, &bob, &alice))));
    assert!(!is_fallback(&claim(&home, &carol, &alice)));
    assert_eq!(upload(&home, &alice, json!({})), json!({ "signed_curve25519": 29 }));
    home.world.advance(3_600_000);
    assert!(!is_fallback(&claim(&home, &bob, &alice)));
}

#[test]
fn a_device_keeps_a_bounded_number_of_one_time_keys() {
    let home = Home::new();
    let alice = home.register("alice");
    let phone = device(&alice);
    upload(&home, &alice, json!({ "device_keys": phone.keys() }));
    for round in 0..3 {
        let keys: serde_json::Map<_, _> = (0..500).map(|n| phone.one_time_key(&format!("{round}-{n}"))).collect();
        upload(&home, &alice, json!({ "one_time_keys": keys }));
    }
    assert_eq!(upload(&home, &alice, json!({})), json!({ "signed_curve25519": 1_000 }));
}

#[test]
fn a_device_keeps_a_bounded_number_of_fallback_keys() {
    let home = Home::new();
    let alice = home.register("alice");
    upload(&home, &alice, json!({ "device_keys": device(&alice).keys() }));
    for round in 0..3 {
        let keys: serde_json::Map<_, _> =
            (0..100).map(|n| (format!("kind{round}-{n}:A"), json!(format!("key{n}")))).collect();
        upload(&home, &alice, json!({ "fallback_keys": keys }));
    }
    let kept = || home.database.rows("SELECT algorithm FROM fallback_keys");
    assert_eq!(kept().len(), 10);
    // What is kept can be replaced.
    let mut first = kept().remove(0).remove(0);
    first.push_str(":B");
    upload(&home, &alice, json!({ "fallback_keys": { first: "other" } }));
    assert_eq!(home.database.rows("SELECT 1 FROM fallback_keys WHERE key_id = 'B' AND key = '\"other\"'").len(), 1);
    assert_eq!(kept().len(), 10);
}

/// A device that has lost its identity makes another under the same name: what the old one has signed is of no use to anybody.
#[test]
fn new_identity_keys_end_what_the_old_ones_have_signed() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let old = device(&alice);
    let (id, fallback) = old.fallback_key("F");
    upload(
        &home,
        &alice,
        json!({ "device_keys": old.keys(), "one_time_keys": old.one_time_keys(5), "fallback_keys": { id: fallback } }),
    );
    // The same keys with another signature are no new identity.
    let mut same = old.keys();
    same["algorithms"] = json!(["m.megolm.v1.aes-sha2"]);
    same.as_object_mut().unwrap().remove("signatures");
    assert_eq!(upload(&home, &alice, json!({ "device_keys": old.sign(same) })), json!({ "signed_curve25519": 5 }));
    let mut new = Device::new("@another:hs.test", &alice.device_id);
    new.user.clone_from(&alice.id);
    let counts = upload(&home, &alice, json!({ "device_keys": new.keys() }));
    assert_eq!(counts, json!({ "signed_curve25519": 0 }));
    assert_eq!(claim(&home, &bob, &alice), Value::Null);
    let counts = upload(&home, &alice, json!({ "one_time_keys": new.one_time_keys(2) }));
    assert_eq!(counts, json!({ "signed_curve25519": 2 }));
    assert_ne!(claim(&home, &bob, &alice), Value::Null);
}

#[test]
fn new_keys_are_told_to_those_who_share_a_room() {
    let home = Home::new();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| home.register(name));
    let room = encrypted_room(&home, &alice);
    join(&home, &bob, &room);
    let since = [&alice, &bob, &carol].map(|user| next(&home.sync(user, "")));
    let phone = device(&alice);
    upload(&home, &alice, json!({ "device_keys": phone.keys() }));
    let told = |user: &User, since: &str| lists(&home.sync(user, &format!("since={since}")));
    assert_eq!(told(&bob, &since[1]), (ids(&[&alice]), ids(&[])));
    assert_eq!(told(&alice, &since[0]), (ids(&[&alice]), ids(&[])), "also to their own devices");
    assert_eq!(told(&carol, &since[2]), (ids(&[]), ids(&[])), "and to nobody else");
    // The same keys again are no news.
    let since = next(&home.sync(&bob, ""));
    upload(&home, &alice, json!({ "device_keys": phone.keys(), "one_time_keys": phone.one_time_keys(1) }));
    assert_eq!(told(&bob, &since), (ids(&[]), ids(&[])));
    // A new name, and that the device is gone, are.
    assert_eq!(home.put(&alice, &format!("/devices/{}", alice.device_id), json!({ "display_name": "New" })).0, 200);
    let (changed, now) = {
        let answer = home.sync(&bob, &format!("since={since}"));
        (lists(&answer).0, next(&answer))
    };
    assert_eq!(changed, ids(&[&alice]));
    assert_eq!(home.post(&alice, "/logout", json!({})).0, 200);
    assert_eq!(told(&bob, &now), (ids(&[&alice]), ids(&[])));
    let (_, answer) = home.post(&bob, "/keys/query", json!({ "device_keys": { &alice.id: [] } }));
    assert_eq!(answer["device_keys"], json!({ &alice.id: {} }));
    assert_eq!(claim(&home, &bob, &alice), Value::Null, "its one-time keys are gone with it");
}

#[test]
fn a_sync_that_waits_wakes_for_those_it_concerns_only() {
    let home = Home::new();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| home.register(name));
    let room = encrypted_room(&home, &alice);
    join(&home, &bob, &room);
    let since = [&bob, &carol].map(|user| next(&home.sync(user, "")));
    let keys = json!({ "device_keys": device(&alice).keys() }).to_string();
    let start = home.world.now_ms();
    let wait = |user: &User, since: &str| {
        let path = format!("/sync?since={since}&timeout=20000");
        let answer = home.server.handle(request_of(user, "GET", &path, ""));
        async {
            let answer: Value = serde_json::from_slice(answer.await.body()).unwrap();
            (lists(&answer).0, home.world.now_ms() - start)
        }
    };
    let (bobs, carols, _) = home.world.run(async {
        futures_util::future::join3(wait(&bob, &since[0]), wait(&carol, &since[1]), async {
            verge::platform::Clock::sleep(&home.world, 3_000).await;
            home.server.handle(request_of(&alice, "POST", "/keys/upload", keys)).await
        })
        .await
    });
    assert_eq!(bobs.0, ids(&[&alice]));
    assert!((3_000..10_000).contains(&bobs.1), "{}", bobs.1);
    assert_eq!(carols.0, ids(&[]));
    assert!(carols.1 >= 20_000, "{}", carols.1);
}

#[test]
fn a_sync_that_waited_counts_the_keys_that_are_left_then() {
    let home = Home::new();
    let alice = home.register("alice");
    let phone = device(&alice);
    upload(&home, &alice, json!({ "device_keys": phone.keys() }));
    let mut since = next(&home.sync(&alice, ""));
    let (id, key) = phone.fallback_key("F");
    let keys = json!({ "one_time_keys": phone.one_time_keys(5), "fallback_keys": { id: key } }).to_string();
    for (news, count, unused) in [(true, 5, json!(["signed_curve25519"])), (false, 0, json!([]))] {
        let (answer, ()) = home.world.run(async {
            let path = format!("/sync?since={since}&timeout=20000");
            let waiting = home.server.handle(request_of(&alice, "GET", &path, ""));
            let meanwhile = async {
                verge::platform::Clock::sleep(&home.world, 3_000).await;
                let (path, body) = match news {
                    true => ("/keys/upload", keys.clone()),
                    // Nothing of which a sync tells.
                    false => {
                        let wanted = json!({ &alice.id: { &phone.id: "signed_curve25519" } });
                        ("/keys/claim", json!({ "one_time_keys": wanted }).to_string())
                    }
                };
                for _ in 0..if news { 1 } else { 6 } {
                    home.server.handle(request_of(&alice, "POST", path, body.clone())).await;
                }
                if news {
                    let body = json!({ "messages": { &alice.id: { "*": { "n": 1 } } } }).to_string();
                    home.server.handle(request_of(&alice, "PUT", "/sendToDevice/k/t", body)).await;
                }
            };
            futures_util::future::join(waiting, meanwhile).await
        });
        let answer: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(answer["device_one_time_keys_count"], json!({ "signed_curve25519": count }), "{answer}");
        assert_eq!(answer["device_unused_fallback_key_types"], unused);
        since = next(&answer);
    }
}

#[test]
fn who_comes_into_an_encrypted_room_is_new_and_who_goes_has_left() {
    let home = Home::new();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| home.register(name));
    let (room, plain) = (encrypted_room(&home, &alice), home.room(&alice, json!({ "preset": "public_chat" })));
    let mut since = [&alice, &bob].map(|user| next(&home.sync(user, "")));
    let mut told = |of: usize| told(&home, [&alice, &bob][of], &mut since[of]);
    join(&home, &bob, &plain);
    assert_eq!(told(0), (ids(&[&bob]), ids(&[])), "though nobody encrypts there yet");
    assert_eq!(told(1), (ids(&[&alice, &bob]), ids(&[])));
    join(&home, &bob, &room);
    assert_eq!(told(0), (ids(&[&bob]), ids(&[])));
    assert_eq!(told(1), (ids(&[&alice, &bob]), ids(&[])), "for who comes all are new");
    // Somebody who comes and goes between two syncs, among so many events that the timeline has a gap.
    join(&home, &carol, &room);
    for n in 0..20 {
        home.say(&alice, &room, "x", &format!("x{n}"));
    }
    assert_eq!(told(0), (ids(&[&carol]), ids(&[])));
    leave(&home, &carol, &room);
    assert_eq!(told(0), (ids(&[]), ids(&[&carol])));
    // Who still shares another room has not left.
    leave(&home, &bob, &room);
    assert_eq!(told(0), (ids(&[]), ids(&[])));
    assert_eq!(told(1), (ids(&[]), ids(&[])), "for who goes nobody has left who shares another room");
    leave(&home, &bob, &plain);
    assert_eq!(told(0), (ids(&[]), ids(&[&bob])), "the last room that they shared, whether it was encrypted or not");
    assert_eq!(told(1), (ids(&[]), ids(&[&alice])));
    refused(&home.get(&alice, "/keys/changes?to=s1_e1"), 400, "M_MISSING_PARAM");
    refused(&home.get(&alice, "/keys/changes?from=s1_e1"), 400, "M_MISSING_PARAM");
    refused(&home.get(&alice, "/keys/changes?from=x&to=s1_e1"), 400, "M_INVALID_PARAM");
}

#[test]
fn who_shares_a_room_that_nobody_encrypts_is_kept_up_to_date() {
    let home = Home::new();
    let [alice, bob] = ["alice", "bob"].map(|name| home.register(name));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let mut since = next(&home.sync(&alice, ""));
    let mut told = || told(&home, &alice, &mut since);
    let changes = |seed: &str| {
        let mut phone = Device::new(&format!("@{seed}:hs.test"), &bob.device_id);
        phone.user.clone_from(&bob.id);
        upload(&home, &bob, json!({ "device_keys": phone.keys() }));
    };
    changes("one");
    assert_eq!(told(), (ids(&[]), ids(&[])));
    join(&home, &bob, &room);
    assert_eq!(told(), (ids(&[&bob]), ids(&[])));
    // While they share none she hears of nothing, and of all of it when they do again, ...
    leave(&home, &bob, &room);
    assert_eq!(told(), (ids(&[]), ids(&[&bob])));
    changes("two");
    assert_eq!(told(), (ids(&[]), ids(&[])));
    join(&home, &bob, &room);
    assert_eq!(told(), (ids(&[&bob]), ids(&[])));
    // ... whether it was she who went,
    leave(&home, &alice, &room);
    assert_eq!(told(), (ids(&[]), ids(&[&bob])));
    changes("three");
    join(&home, &alice, &room);
    assert_eq!(told(), (ids(&[&alice, &bob]), ids(&[])));
    // or whether he was back before she looked.
    leave(&home, &bob, &room);
    changes("four");
    join(&home, &bob, &room);
    assert_eq!(told(), (ids(&[&bob]), ids(&[])));
}

#[test]
fn keys_of_other_servers_users_are_asked_for_there_and_held() {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let phone = device(&bob);
    let keys = json!({ "device_keys": phone.keys(), "one_time_keys": phone.one_time_keys(2) });
    upload(&two, &bob, keys);
    let query = |home: &Home| {
        let (status, answer) =
            home.post(&alice, "/keys/query", json!({ "device_keys": { &bob.id: [] }, "timeout": 2_000 }));
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let asked = || world.traffic().iter().filter(|sent| sent.line.contains("/user/")).count();
    // Nobody shares a room: each query asks.
    for times in 1..3 {
        let answer = query(&one);
        assert_eq!(answer["device_keys"][&bob.id][&phone.id], phone.keys(), "{answer}");
        assert_eq!(asked(), times);
    }
    assert!(one.database.rows("SELECT * FROM remote_device_lists").is_empty());
    // One-time keys are the other server's to give out.
    let (id, key) = phone.one_time_key("K0000");
    assert_eq!(claim(&one, &alice, &bob), json!({ id: key }));
    let room = encrypted_room(&one, &alice);
    join(&two, &bob, &room);
    world.settle();
    let before = asked();
    for _ in 0..3 {
        assert_eq!(query(&one)["device_keys"][&bob.id][&phone.id], phone.keys());
    }
    assert_eq!(asked(), before + 1, "it is held where a room is shared");
    // Not those of a room that was left and joined again: what changed meanwhile was not told.
    leave(&two, &bob, &room);
    join(&two, &bob, &room);
    world.settle();
    query(&one);
    assert_eq!(asked(), before + 2);
    // A server that is away is a failure, not an error.
    world.cut("one.test", "two.test");
    assert_eq!(query(&one)["device_keys"][&bob.id][&phone.id], phone.keys());
    let other = json!({ "device_keys": { "@other:two.test": [] }, "timeout": 2_000 });
    let (status, answer) = one.post(&alice, "/keys/query", other);
    assert_eq!((status, &answer["device_keys"]), (200, &json!({})));
    assert!(answer["failures"]["two.test"].is_object(), "{answer}");
    let wanted = json!({ "one_time_keys": { &bob.id: { &bob.device_id: "signed_curve25519" } }, "timeout": 2_000 });
    let (status, answer) = one.post(&alice, "/keys/claim", wanted);
    assert_eq!((status, &answer["one_time_keys"]), (200, &json!({})));
    assert!(answer["failures"]["two.test"].is_object(), "{answer}");
}

/// Two servers, with Alice on one and Bob on the other in an encrypted room; and Bob's device.
pub fn two() -> (World, [Home; 2], [User; 2], Device, String) {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = encrypted_room(&one, &alice);
    join(&two, &bob, &room);
    let phone = device(&bob);
    upload(&two, &bob, json!({ "device_keys": phone.keys() }));
    world.settle();
    (world, [one, two], [alice, bob], phone, room)
}

/// How often somebody was asked for keys.
pub fn asked(world: &World) -> usize {
    world.traffic().iter().filter(|sent| sent.line.contains("/federation/v1/user/")).count()
}

fn devices_of(home: &Home, by: &User, of: &User) -> BTreeSet<String> {
    let (status, answer) = home.post(by, "/keys/query", json!({ "device_keys": { &of.id: [] } }));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["failures"], json!({}));
    answer["device_keys"][&of.id].as_object().unwrap().keys().cloned().collect()
}

fn log_in(home: &Home, user: &str, device: &str) -> User {
    let user = log_in_without_keys(home, user, device);
    upload(home, &user, json!({ "device_keys": Device::new(&user.id, device).keys() }));
    user
}

fn log_in_without_keys(home: &Home, user: &str, device: &str) -> User {
    let identifier = json!({ "type": "m.id.user", "user": user });
    let body = json!({
        "type": "m.login.password", "identifier": identifier, "password": format!("{user}'s"), "device_id": device,
    });
    User::of(&home.call(None, "POST", "/login", Some(body)).1)
}

#[test]
fn changed_devices_are_told_to_other_servers_and_held_without_asking_again() {
    let (world, [one, two], [alice, bob], phone, _) = two();
    let names = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<String>>();
    assert_eq!(devices_of(&one, &alice, &bob), names(&[&phone.id]));
    let (before, mut since) = (asked(&world), next(&one.sync(&alice, "")));
    let mut told = || {
        world.settle();
        let answer = one.sync(&alice, &format!("since={since}"));
        since = next(&answer);
        lists(&answer).0
    };
    let pad = log_in(&two, "bob", "PAD");
    assert_eq!(told(), ids(&[&bob]));
    assert_eq!(devices_of(&one, &alice, &bob), names(&[&phone.id, "PAD"]));
    assert_eq!(two.post(&pad, "/logout", json!({})).0, 200);
    assert_eq!(told(), ids(&[&bob]));
    assert_eq!(devices_of(&one, &alice, &bob), names(&[&phone.id]));
    let master = CrossSigning::new(&bob.id, "master");
    assert_eq!(two.post(&bob, "/keys/device_signing/upload", json!({ "master_key": master.unsigned() })).0, 200);
    assert_eq!(told(), ids(&[&bob]));
    let (_, answer) = one.post(&alice, "/keys/query", json!({ "device_keys": { &bob.id: [] } }));
    assert_eq!(answer["master_keys"][&bob.id], master.unsigned());
    assert_eq!(asked(&world), before, "all of it was told: {:?}", world.logs());
}

#[test]
fn the_keys_of_a_device_that_was_logged_out_meanwhile_are_told_to_nobody() {
    let (world, [_, two], [_, bob], phone, _) = two();
    let pad = log_in(&two, "bob", "PAD");
    assert_eq!(two.post(&pad, "/logout", json!({})).0, 200);
    world.settle();
    let kept = || two.database.rows("SELECT * FROM device_list_changes");
    let before = kept();
    let keys = Device::new(&bob.id, "PAD").keys();
    let keys = matrix::device_keys::DeviceKeys::check(object(keys), &bob.id, "PAD").unwrap();
    let (own, user) = (&two.server.config.server_name, UserId::parse(&bob.id).unwrap());
    // As a request does that has seen the access token before.
    let told = world.run(two.server.store.put_device_keys(own, &user, "PAD", &keys)).unwrap();
    assert_eq!(told, None);
    assert_eq!(two.database.rows("SELECT content FROM edu_outbox"), Vec::<Vec<String>>::new());
    assert_eq!(kept(), before);
    assert_eq!(two.database.rows("SELECT device_id FROM device_keys"), [[phone.id]]);
}

#[test]
fn whoever_shares_a_room_knows_that_a_device_is_gone_that_got_keys_meanwhile() {
    let (world, [one, two], [alice, bob], phone, _) = two();
    assert_eq!(devices_of(&one, &alice, &bob), [phone.id.clone()].into());
    world.interleave();
    let mut refused = 0;
    for n in 0..40 {
        let name = format!("PAD{n}");
        let pad = log_in_without_keys(&two, "bob", &name);
        let keys = json!({ "device_keys": Device::new(&pad.id, &name).keys() });
        let upload = two.posting(&pad, "/keys/upload", &keys);
        let (upload, logout) = world.run(futures_util::future::join(upload, two.posting(&pad, "/logout", &json!({}))));
        assert!(logout == 200 && (upload == 200 || upload == 401), "{logout} {upload}");
        refused += usize::from(upload == 401);
        world.settle();
        assert_eq!(devices_of(&one, &alice, &bob), [phone.id.clone()].into(), "{name}, {upload}");
    }
    assert!((1..40).contains(&refused), "{refused}: either comes first at times");
}

#[test]
fn what_was_missed_is_asked_for_once_however_much_and_by_whomever() {
    let (world, [one, two], [alice, bob], phone, room) = two();
    let others: Vec<User> = (0..10).map(|n| one.register(&format!("user{n}"))).collect();
    others.iter().for_each(|user| join(&one, user, &room));
    world.settle();
    devices_of(&one, &alice, &bob);
    let since = next(&one.sync(&alice, ""));
    world.cut("one.test", "two.test");
    let pads: Vec<User> = (0..5).map(|n| log_in(&two, "bob", &format!("PAD{n}"))).collect();
    assert_eq!(two.post(&pads[0], "/logout", json!({})).0, 200);
    world.settle();
    world.mend("one.test", "two.test");
    for _ in 0..3 {
        world.advance(3_600_000);
        world.run(two.server.scheduled());
        world.settle();
    }
    assert!(two.database.rows("SELECT * FROM edu_outbox").is_empty());
    let answer = one.sync(&alice, &format!("since={since}"));
    assert_eq!(lists(&answer).0.iter().filter(|user| **user == bob.id).count(), 1, "{answer}");
    let before = asked(&world);
    let query = json!({ "device_keys": { &bob.id: [] } }).to_string();
    let requests = others.iter().chain([&alice]).map(|user| {
        let request = http::Request::post("/_matrix/client/v3/keys/query");
        let request = request.header("Authorization", format!("Bearer {}", user.token));
        one.server.handle(request.body(bytes::Bytes::from(query.clone())).unwrap())
    });
    for answer in world.run(futures_util::future::join_all(requests)) {
        let answer: Value = serde_json::from_slice(answer.body()).unwrap();
        let devices = answer["device_keys"][&bob.id].as_object().unwrap();
        assert_eq!(devices.len(), 5, "{answer}");
        assert!(devices.contains_key(&phone.id) && !devices.contains_key("PAD0"));
    }
    assert_eq!(asked(&world), before + 1, "one request for eleven clients and six changes");
    // From here on it follows again.
    log_in(&two, "bob", "LAST");
    world.settle();
    assert!(devices_of(&one, &alice, &bob).contains("LAST"));
    assert_eq!(asked(&world), before + 1);
}

#[test]
fn both_sides_catch_up_with_lists_after_half_an_hour() {
    let (world, [one, two], [alice, bob], phone, _) = two();
    let mut of_bob: BTreeSet<String> = [phone.id.clone()].into();
    let mut of_alice = BTreeSet::new();
    assert_eq!((devices_of(&one, &alice, &bob), devices_of(&two, &bob, &alice)), (of_bob.clone(), of_alice.clone()));
    let since = (next(&one.sync(&alice, "")), next(&two.sync(&bob, "")));
    let triggers = |minutes: usize| {
        for _ in 0..minutes {
            world.advance(60_000);
            world.run(async { futures_util::future::join(one.server.scheduled(), two.server.scheduled()).await });
            world.settle();
        }
    };
    world.cut("one.test", "two.test");
    for minute in 0..30 {
        let name = format!("MINUTE{minute}");
        let (hers, his) = (log_in(&one, "alice", &name), log_in(&two, "bob", &name));
        // Some do not stay.
        for (home, user, names) in [(&one, hers, &mut of_alice), (&two, his, &mut of_bob)] {
            if minute % 3 == 0 {
                assert_eq!(home.post(&user, "/logout", json!({})).0, 200);
            } else {
                names.insert(name.clone());
            }
        }
        triggers(1);
    }
    // However much has changed, the first EDU is in flight, and the newest waits.
    for home in [&one, &two] {
        assert_eq!(home.database.rows("SELECT COUNT(*) FROM edu_outbox"), [["2"]]);
    }
    let before = asked(&world);
    world.mend("one.test", "two.test");
    // By then the longest pause is over.
    triggers(60);
    for (home, user, other, since) in [(&one, &alice, &bob, since.0), (&two, &bob, &alice, since.1)] {
        assert!(home.database.rows("SELECT * FROM edu_outbox").is_empty());
        let (changed, left) = lists(&home.sync(user, &format!("since={since}")));
        assert!(changed.contains(&other.id) && left.is_empty(), "{changed:?} {left:?}");
    }
    assert_eq!((devices_of(&one, &alice, &bob), devices_of(&two, &bob, &alice)), (of_bob, of_alice));
    assert_eq!(asked(&world), before + 2, "one request of each side");
}

#[test]
fn who_has_signed_a_key_elsewhere_sees_it_signed_however_it_is_had() {
    let (world, [one, two], [alice, bob], phone, _) = two();
    let stranger = two.register("stranger");
    let key = |user: &User, usage| CrossSigning::new(&user.id, usage);
    let (master, signer) = (key(&alice, "master"), key(&alice, "user_signing"));
    let hers = json!({ "master_key": master.unsigned(), "user_signing_key": signer.signed_by(&master) });
    assert_eq!(one.post(&alice, "/keys/device_signing/upload", hers).0, 200);
    let self_signing = key(&bob, "self_signing");
    for user in [&bob, &stranger] {
        let (master, signing) = (key(user, "master"), key(user, "self_signing"));
        let theirs = json!({ "master_key": master.unsigned(), "self_signing_key": signing.signed_by(&master) });
        assert_eq!(two.post(user, "/keys/device_signing/upload", theirs).0, 200);
        world.settle();
        let signed = json!({ &user.id: { &master.public: signer.sign(master.unsigned()) } });
        assert_eq!(one.post(&alice, "/keys/signatures/upload", signed), (200, json!({ "failures": {} })));
    }
    let signature = |user: &User| {
        let (_, answer) = one.post(&alice, "/keys/query", json!({ "device_keys": { &user.id: [] } }));
        let signatures = answer["master_keys"][&user.id]["signatures"].clone();
        signatures[&alice.id][format!("ed25519:{}", signer.public)].is_string()
    };
    assert!(signature(&bob), "as it is held");
    assert!(signature(&stranger), "of whom nothing is held");
    // Of signatures others hear only that there are some, so that the list is fetched anew.
    let signed = json!({ &bob.id: { &phone.id: self_signing.sign(phone.keys()) } });
    assert_eq!(two.post(&bob, "/keys/signatures/upload", signed), (200, json!({ "failures": {} })));
    world.settle();
    let before = asked(&world);
    assert!(signature(&bob), "as it is fetched");
    assert_eq!(asked(&world), before + 1);
    assert!(signature(&bob), "as it is held then");
    assert_eq!(asked(&world), before + 1);
}

#[test]
fn who_was_away_hears_of_all_cross_signing_keys() {
    let (world, [one, two], [alice, bob], ..) = two();
    devices_of(&one, &alice, &bob);
    let key = |usage: &'static str, salt: &str| CrossSigning::other(&bob.id, usage, salt);
    let upload = |mut body: Value| {
        let identifier = json!({ "type": "m.id.user", "user": "bob" });
        body["auth"] = json!({ "type": "m.login.password", "identifier": identifier, "password": "bob's" });
        assert_eq!(two.post(&bob, "/keys/device_signing/upload", body).0, 200);
        world.settle();
    };
    world.cut("one.test", "two.test");
    let master = key("master", "2");
    let last = key("self_signing", "3").signed_by(&master);
    // The first waits to be sent again as it is; the others, of which only the last may be left, are of different keys.
    upload(json!({ "master_key": key("master", "1").unsigned() }));
    upload(json!({ "master_key": master.unsigned(), "self_signing_key": key("self_signing", "2").signed_by(&master) }));
    upload(json!({ "self_signing_key": last }));
    world.mend("one.test", "two.test");
    for _ in 0..3 {
        world.advance(3_600_000);
        world.run(two.server.scheduled());
        world.settle();
    }
    let (_, answer) = one.post(&alice, "/keys/query", json!({ "device_keys": { &bob.id: [] } }));
    assert_eq!(answer["self_signing_keys"], json!({ &bob.id: last }));
    assert_eq!(answer["master_keys"], json!({ &bob.id: master.unsigned() }));
}
