//! The fields of profiles, here and over the federation.

use serde_json::{Value, json};

use crate::{
    common::{network::World, peer::Peer},
    home::{Home, User, quote, refused},
};

fn field(user: &User, name: &str) -> String {
    format!("/profile/{}/{}", quote(&user.id), quote(name))
}

fn profile(home: &Home, user: &str) -> (u16, Value) {
    home.call(None, "GET", &format!("/profile/{}", quote(user)), None)
}

#[test]
fn fields_of_any_shape_are_kept_and_removed() {
    let home = Home::new();
    let alice = home.register("alice");
    let values = [
        ("m.tz", json!("Europe/London")),
        ("org.example.languages", json!(["de", { "level": 3 }])),
        ("org.example.none", json!(null)),
        ("org.example.a-b_c.d1", json!({ "deep": [[[]]], "n": 9_007_199_254_740_991_i64 })),
    ];
    for (name, value) in &values {
        assert_eq!(home.put(&alice, &field(&alice, name), json!({ *name: value })), (200, json!({})), "{name}");
        let answer = home.call(None, "GET", &field(&alice, name), None);
        assert_eq!(answer, (200, json!({ *name: value })));
    }
    home.put(&alice, &field(&alice, "m.tz"), json!({ "m.tz": "Asia/Tokyo" }));
    let mut expected: serde_json::Map<_, _> =
        values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    expected.insert("m.tz".to_owned(), "Asia/Tokyo".into());
    expected.insert("displayname".to_owned(), "alice".into());
    assert_eq!(profile(&home, &alice.id), (200, Value::Object(expected)));
    // What is not there is as good as removed.
    for (name, _) in values.iter().chain([&("m.nothing", json!(1))]) {
        assert_eq!(home.call(Some(&alice.token), "DELETE", &field(&alice, name), None), (200, json!({})), "{name}");
        refused(&home.call(None, "GET", &field(&alice, name), None), 404, "M_NOT_FOUND");
    }
    assert_eq!(profile(&home, &alice.id), (200, json!({ "displayname": "alice" })));
    let (_, capabilities) = home.get(&alice, "/capabilities");
    assert_eq!(capabilities["capabilities"]["m.profile_fields"], json!({ "enabled": true }));
}

#[test]
fn rooms_are_told_of_a_name_that_is_removed() {
    let home = Home::new();
    let alice = home.register("alice");
    let (_, room) = home.post(&alice, "/createRoom", json!({}));
    let member =
        format!("/rooms/{}/state/m.room.member/{}", quote(room["room_id"].as_str().unwrap()), quote(&alice.id));
    assert_eq!(home.get(&alice, &member).1["displayname"], "alice");
    home.put(&alice, &field(&alice, "avatar_url"), json!({ "avatar_url": "mxc://hs.test/a" }));
    assert_eq!(home.call(Some(&alice.token), "DELETE", &field(&alice, "displayname"), None), (200, json!({})));
    assert_eq!(home.get(&alice, &member).1, json!({ "membership": "join", "avatar_url": "mxc://hs.test/a" }));
    assert_eq!(profile(&home, &alice.id), (200, json!({ "avatar_url": "mxc://hs.test/a" })));
}

#[test]
fn fields_are_refused_as_documented() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let put = |name: &str, body: Value| home.put(&alice, &field(&alice, name), body);
    for name in ["tz", "M.tz", ".tz", "m.", "m..tz", "m.t z", "1.tz", "m.tz\u{e9}", "display_name", "m/tz"] {
        refused(&put(name, json!({ name: 1 })), 400, "M_INVALID_PARAM");
        refused(&home.call(Some(&alice.token), "DELETE", &field(&alice, name), None), 400, "M_INVALID_PARAM");
    }
    let long = |length: usize| format!("m.{}", "x".repeat(length - 2));
    refused(&put(&long(256), json!({ long(256): 1 })), 400, "M_KEY_TOO_LARGE");
    assert_eq!(put(&long(255), json!({ long(255): 1 })).0, 200);
    refused(&put("m.tz", json!({ "m.other": 1 })), 400, "M_MISSING_PARAM");
    refused(&put("displayname", json!({ "displayname": 7 })), 400, "M_BAD_JSON");
    // Nothing is taken away by a body that says nothing of it.
    assert_eq!(put("displayname", json!({ "displayname": "Alice" })).0, 200);
    for body in [json!({}), json!({ "avatar_url": "mxc://hs.test/a" })] {
        refused(&put("displayname", body), 400, "M_MISSING_PARAM");
    }
    refused(&put("avatar_url", json!({})), 400, "M_MISSING_PARAM");
    assert_eq!(profile(&home, &alice.id).1["displayname"], "Alice");
    refused(&home.put(&bob, &field(&alice, "m.tz"), json!({ "m.tz": "x" })), 403, "M_FORBIDDEN");
    refused(&home.call(Some(&bob.token), "DELETE", &field(&alice, "m.tz"), None), 403, "M_FORBIDDEN");
    refused(&home.call(None, "PUT", &field(&alice, "m.tz"), Some(json!({ "m.tz": "x" }))), 401, "M_MISSING_TOKEN");
    refused(&home.call(None, "DELETE", &field(&alice, "m.tz"), None), 401, "M_MISSING_TOKEN");
}

#[test]
fn a_profile_has_less_than_64_kib() {
    let home = Home::new();
    let alice = home.register("alice");
    let put = |name: &str, length: usize| {
        home.put(&alice, &field(&alice, name), json!({ name: "\u{e9}".repeat(length / 2) }))
    };
    assert_eq!(put("m.one", 30_000).0, 200);
    assert_eq!(put("m.two", 30_000).0, 200);
    refused(&put("m.three", 6_000), 400, "M_PROFILE_TOO_LARGE");
    // In the place of another it may be as long.
    refused(&put("m.two", 36_000), 400, "M_PROFILE_TOO_LARGE");
    assert_eq!(put("m.two", 35_400).0, 200);
    // Names and pictures count, too.
    let name = json!({ "displayname": "\u{1}".repeat(60) });
    refused(&home.put(&alice, &field(&alice, "displayname"), name), 400, "M_PROFILE_TOO_LARGE");
    let (status, whole) = profile(&home, &alice.id);
    assert!(status == 200 && whole.to_string().len() < 65_536, "{}", whole.to_string().len());
    assert_eq!(home.call(Some(&alice.token), "DELETE", &field(&alice, "m.one"), None).0, 200);
    assert_eq!(put("m.three", 6_000).0, 200);
}

#[test]
fn fields_are_had_from_other_servers_and_go_when_their_user_is_erased() {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (home, other) = (Home::with(&world, "hs.test", &open), Home::with(&world, "other.test", &open));
    let (alice, bob) = (home.register("alice"), other.register("bob"));
    home.put(&alice, &field(&alice, "m.tz"), json!({ "m.tz": "Europe/London" }));
    home.put(&alice, &field(&alice, "org.example.x"), json!({ "org.example.x": { "y": [1] } }));
    let whole = json!({ "displayname": "alice", "m.tz": "Europe/London", "org.example.x": { "y": [1] } });
    assert_eq!(other.get(&bob, &format!("/profile/{}", quote(&alice.id))), (200, whole));
    assert_eq!(other.get(&bob, &field(&alice, "org.example.x")), (200, json!({ "org.example.x": { "y": [1] } })));
    refused(&other.get(&bob, &field(&alice, "m.nothing")), 404, "M_NOT_FOUND");
    let auth = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": "alice's" });
    let ended = home.post(&alice, "/account/deactivate", json!({ "auth": auth, "erase": true }));
    assert_eq!(ended.0, 200, "{}", ended.1);
    assert_eq!(home.database.rows("SELECT * FROM profile_fields"), Vec::<Vec<String>>::new());
    assert_eq!(other.get(&bob, &format!("/profile/{}", quote(&alice.id))), (200, json!({})));
}

#[test]
fn what_another_server_says_of_names_are_texts() {
    let world = World::new();
    let home = Home::with(&world, "hs.test", &[("REGISTRATION", "open")]);
    let (alice, peer) = (home.register("alice"), Peer::new(&world, "peer.test"));
    peer.answers(|request| {
        let profile = json!({ "displayname": 7, "avatar_url": null, "m.tz": null, "m.list": [null], "m.flag": false });
        let is_query = request.uri().path() == "/_matrix/federation/v1/query/profile";
        is_query.then(|| verge::router::json_response(http::StatusCode::OK, &profile))
    });
    let expected = json!({ "m.list": [null], "m.flag": false });
    assert_eq!(home.get(&alice, &format!("/profile/{}", quote("@x:peer.test"))), (200, expected));
}

#[test]
fn strangers_have_other_servers_asked_at_a_rate() {
    let world = World::new();
    let home = Home::with(&world, "hs.test", &[("REGISTRATION", "open"), ("PROFILE_RATE", "3/60")]);
    let (alice, peer) = (home.register("alice"), Peer::new(&world, "peer.test"));
    peer.answers(|request| {
        let is_query = request.uri().path() == "/_matrix/federation/v1/query/profile";
        is_query.then(|| verge::router::json_response(http::StatusCode::OK, &json!({ "displayname": "X" })))
    });
    let target = |n: usize| format!("/profile/{}", quote(&format!("@u{n}:peer.test")));
    for n in 0..3 {
        assert_eq!(home.call(None, "GET", &target(n), None).0, 200);
    }
    let asked = || peer.received.borrow().len();
    let before = asked();
    for n in 3..50 {
        refused(&home.call(None, "GET", &target(n), None), 429, "M_LIMIT_EXCEEDED");
        refused(&home.call(None, "GET", &format!("{}/displayname", target(n)), None), 429, "M_LIMIT_EXCEEDED");
    }
    assert_eq!(asked(), before);
    // Who is logged in is known, and what is here costs nobody else anything.
    assert_eq!(home.get(&alice, &target(99)).0, 200);
    assert_eq!(profile(&home, &alice.id).0, 200);
    world.advance(20_000);
    assert_eq!(home.call(None, "GET", &target(100), None).0, 200);
}
