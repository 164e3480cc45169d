//! Registration, login, access tokens, and requests that belong to no endpoint.

use serde_json::json;

use crate::{
    common::network::World,
    home::{Home, User, quote, refused},
};

#[test]
fn a_client_may_come_from_any_web_page() {
    let home = Home::new();
    for (method, target) in [
        ("OPTIONS", "/_matrix/client/v3/sync"),
        ("OPTIONS", "/_matrix/client/v3/no/such/thing"),
        ("GET", "/_matrix/client/versions"),
        ("GET", "/_matrix/client/v3/sync"),
        ("GET", "/_matrix/client/v3/no/such/thing"),
    ] {
        let response = home.raw(method, target, None, "");
        let header = |name: &str| response.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!(header("Access-Control-Allow-Origin"), "*", "{method} {target}");
        assert!(header("Access-Control-Allow-Headers").contains("Authorization"));
        assert!(header("Access-Control-Allow-Methods").contains("PUT"));
        // When to ask again, where it is said.
        assert_eq!(header("Access-Control-Expose-Headers"), "Retry-After");
        if method == "OPTIONS" {
            assert!(response.status().is_success());
        }
    }
}

#[test]
fn what_does_not_exist_is_unrecognized() {
    let home = Home::new();
    for path in [
        "/_matrix/client/v3/nothing",
        "/_matrix/client/v3/user_directory",
        "/_matrix/client/v9/sync",
        "/_matrix/media/v3/nothing",
        "/_matrix/client/",
    ] {
        let response = home.raw("GET", path, None, "");
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!((response.status().as_u16(), body["errcode"].as_str()), (404, Some("M_UNRECOGNIZED")), "{path}");
    }
    refused(&home.call(None, "DELETE", "/login", None), 405, "M_UNRECOGNIZED");
    refused(&home.call(None, "PATCH", "/sync", None), 405, "M_UNRECOGNIZED");
}

#[test]
fn the_api_answers_by_its_former_name_too() {
    let home = Home::new();
    let response = home.raw("GET", "/_matrix/client/r0/login", None, "");
    assert_eq!(response.status().as_u16(), 200);
    let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(body, json!({ "flows": [{ "type": "m.login.password" }] }));
}

#[test]
fn registration_is_closed_unless_opened() {
    let home = Home::with(&World::new(), "hs.test", &[]);
    let body = json!({ "username": "eve", "password": "x", "auth": { "type": "m.login.dummy" } });
    refused(&home.call(None, "POST", "/register", Some(body)), 403, "M_FORBIDDEN");
    refused(&home.call(None, "GET", "/register/available?username=eve", None), 403, "M_FORBIDDEN");
}

#[test]
fn open_registration_takes_the_dummy_stage() {
    let home = Home::new();
    let (status, flows) =
        home.call(None, "POST", "/register", Some(json!({ "username": "alice", "password": "secret" })));
    assert_eq!(status, 401);
    assert_eq!(flows["flows"], json!([{ "stages": ["m.login.dummy"] }]));
    let session = flows["session"].as_str().unwrap();
    let body = json!({
        "username": "alice", "password": "secret", "device_id": "PHONE", "initial_device_display_name": "Phone",
        "auth": { "type": "m.login.dummy", "session": session },
    });
    let (status, answer) = home.call(None, "POST", "/register", Some(body));
    assert_eq!(status, 200, "{answer}");
    assert_eq!((answer["user_id"].as_str(), answer["device_id"].as_str()), (Some("@alice:hs.test"), Some("PHONE")));
    let alice = User::of(&answer);
    let (_, me) = home.get(&alice, "/account/whoami");
    assert_eq!(me, json!({ "user_id": "@alice:hs.test", "device_id": "PHONE", "is_guest": false }));
    // Neither the password nor the token is in the database.
    let stored = format!("{:?}", home.database.rows("SELECT * FROM users, devices"));
    assert!(stored.contains("$argon2id$") && !stored.contains("secret") && !stored.contains(&alice.token));
}

#[test]
fn registration_by_token_wants_the_token() {
    let variables = [("REGISTRATION", "token"), ("REGISTRATION_TOKEN", "let-me-in")];
    let home = Home::with(&World::new(), "hs.test", &variables);
    let register = |auth: serde_json::Value| {
        home.call(None, "POST", "/register", Some(json!({ "username": "bob", "password": "x", "auth": auth })))
    };
    let (status, flows) = home.call(None, "POST", "/register", Some(json!({})));
    assert_eq!(
        (status, &flows["flows"]),
        (401, &json!([{ "stages": ["m.login.registration_token", "m.login.dummy"] }]))
    );
    let (status, answer) = register(json!({ "type": "m.login.dummy" }));
    assert_eq!((status, answer["flows"].is_array()), (401, true));
    let (status, answer) = register(json!({ "type": "m.login.registration_token", "token": "wrong" }));
    assert_eq!((status, answer["errcode"].is_string(), answer["flows"].is_array()), (401, true, true));
    let (status, _) = register(json!({ "type": "m.login.registration_token", "token": "let-me-in" }));
    assert_eq!(status, 200);
    for (token, valid) in [("let-me-in", true), ("wrong", false)] {
        let path = format!("/_matrix/client/v1/register/m.login.registration_token/validity?token={token}");
        let response = home.raw("GET", &path, None, "");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(response.body()).unwrap(), json!({ "valid": valid }));
    }
}

#[test]
fn user_names_are_checked_before_anything_else() {
    let home = Home::new();
    home.register("alice");
    let invalid = ["Al ice", "al ice", "alice:evil.test", "_alice", "", "ålice", &"a".repeat(250), "a\u{0}b", "a@b"];
    for name in invalid {
        let body = json!({ "username": name, "password": "x" });
        refused(&home.call(None, "POST", "/register", Some(body)), 400, "M_INVALID_USERNAME");
    }
    let taken = json!({ "username": "alice", "password": "x" });
    refused(&home.call(None, "POST", "/register", Some(taken)), 400, "M_USER_IN_USE");
    let taken = json!({ "username": "alice", "password": "x", "auth": { "type": "m.login.dummy" } });
    refused(&home.call(None, "POST", "/register", Some(taken)), 400, "M_USER_IN_USE");
    refused(&home.call(None, "GET", "/register/available?username=alice", None), 400, "M_USER_IN_USE");
    refused(&home.call(None, "GET", "/register/available?username=%C3%85", None), 400, "M_INVALID_USERNAME");
    refused(&home.call(None, "GET", "/register/available", None), 400, "M_MISSING_PARAM");
    assert_eq!(home.call(None, "GET", "/register/available?username=bob", None), (200, json!({ "available": true })));
}

#[test]
fn who_names_no_user_gets_a_name_and_who_inhibits_login_no_token() {
    let home = Home::new();
    let body = json!({ "password": "x", "inhibit_login": true, "auth": { "type": "m.login.dummy" } });
    let (status, answer) = home.call(None, "POST", "/register", Some(body));
    assert_eq!(status, 200, "{answer}");
    assert!(answer["user_id"].as_str().unwrap().ends_with(":hs.test"));
    assert!(answer.get("access_token").is_none() && answer.get("device_id").is_none());
}

#[test]
fn there_are_no_guests() {
    let home = Home::new();
    refused(&home.call(None, "POST", "/register?kind=guest", Some(json!({}))), 403, "M_FORBIDDEN");
}

#[test]
fn login_takes_the_forms_that_clients_use() {
    let home = Home::new();
    home.register("alice");
    let password = |identity: serde_json::Value| {
        let mut body = json!({ "type": "m.login.password", "password": "alice's" });
        body.as_object_mut().unwrap().extend(identity.as_object().unwrap().clone());
        home.call(None, "POST", "/login", Some(body))
    };
    for identity in [
        json!({ "identifier": { "type": "m.id.user", "user": "alice" } }),
        json!({ "identifier": { "type": "m.id.user", "user": "@alice:hs.test" } }),
        json!({ "identifier": { "type": "m.id.user", "user": "Alice" } }),
        json!({ "user": "alice" }),
        json!({ "user": "@alice:hs.test" }),
    ] {
        let (status, answer) = password(identity.clone());
        assert_eq!((status, answer["user_id"].as_str()), (200, Some("@alice:hs.test")), "{identity} {answer}");
        assert_eq!(home.get(&User::of(&answer), "/account/whoami").0, 200);
    }
    refused(&password(json!({ "user": "@alice:elsewhere.test" })), 403, "M_FORBIDDEN");
    refused(&password(json!({ "user": "nobody" })), 403, "M_FORBIDDEN");
    refused(&password(json!({ "user": "alice", "password": "wrong" })), 403, "M_FORBIDDEN");
    refused(&password(json!({ "type": "m.login.token", "token": "x" })), 400, "M_UNKNOWN");
    refused(&password(json!({ "identifier": { "type": "m.id.phone" } })), 400, "M_UNKNOWN");
    refused(&password(json!({})), 400, "M_MISSING_PARAM");
    refused(&password(json!({ "user": 7 })), 400, "M_BAD_JSON");
}

#[test]
fn a_new_login_of_a_device_ends_its_old_token() {
    let home = Home::new();
    let first = home.register("alice");
    let body =
        json!({ "type": "m.login.password", "user": "alice", "password": "alice's", "device_id": first.device_id });
    let (_, answer) = home.call(None, "POST", "/login", Some(body));
    assert_eq!(answer["device_id"], json!(first.device_id));
    refused(&home.get(&first, "/account/whoami"), 401, "M_UNKNOWN_TOKEN");
    assert_eq!(home.get(&User::of(&answer), "/account/whoami").0, 200);
}

#[test]
fn tokens_are_wanted_and_end() {
    let home = Home::new();
    let alice = home.register("alice");
    refused(&home.call(None, "GET", "/account/whoami", None), 401, "M_MISSING_TOKEN");
    let unknown = home.call(Some("nonsense"), "GET", "/account/whoami", None);
    refused(&unknown, 401, "M_UNKNOWN_TOKEN");
    assert_eq!(unknown.1["soft_logout"], json!(false));
    // As older clients send it.
    let path = format!("/account/whoami?access_token={}", quote(&alice.token));
    assert_eq!(home.call(None, "GET", &path, None).0, 200);

    let body = json!({ "type": "m.login.password", "user": "alice", "password": "alice's" });
    let other = User::of(&home.call(None, "POST", "/login", Some(body.clone())).1);
    assert_eq!(home.post(&other, "/logout", json!({})), (200, json!({})));
    refused(&home.get(&other, "/account/whoami"), 401, "M_UNKNOWN_TOKEN");
    assert_eq!(home.get(&alice, "/account/whoami").0, 200);

    let other = User::of(&home.call(None, "POST", "/login", Some(body)).1);
    assert_eq!(home.post(&alice, "/logout/all", json!({})), (200, json!({})));
    for user in [alice, other] {
        refused(&home.get(&user, "/account/whoami"), 401, "M_UNKNOWN_TOKEN");
    }
}

#[test]
fn hostile_bodies_are_refused_with_a_reason() {
    let home = Home::new();
    let alice = home.register("alice");
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let bodies: [(Vec<u8>, &str); 7] = [
        (b"not json".to_vec(), "M_NOT_JSON"),
        (b"{\"a\":".to_vec(), "M_NOT_JSON"),
        (b"\xff\xfe{}".to_vec(), "M_NOT_JSON"),
        (b"".to_vec(), "M_NOT_JSON"),
        (deep.into_bytes(), "M_NOT_JSON"),
        (b"[]".to_vec(), "M_BAD_JSON"),
        (b"7".to_vec(), "M_BAD_JSON"),
    ];
    for (path, method) in [
        ("/createRoom", "POST"),
        ("/login", "POST"),
        ("/register", "POST"),
        ("/user/%40alice%3Ahs.test/filter", "POST"),
        ("/rooms/!x/state/m.room.name", "PUT"),
        ("/profile/%40alice%3Ahs.test/displayname", "PUT"),
    ] {
        for (body, errcode) in &bodies {
            let target = format!("/_matrix/client/v3{path}");
            let response = home.raw(method, &target, Some(&alice.token), body.clone());
            let answer: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!((response.status().as_u16(), answer["errcode"].as_str()), (400, Some(*errcode)), "{path}");
        }
    }
    let wrong_types = [
        json!({ "name": 7 }),
        json!({ "invite": "x" }),
        json!({ "invite": [7] }),
        json!({ "initial_state": [7] }),
        json!({ "initial_state": {} }),
        json!({ "creation_content": [] }),
        json!({ "is_direct": "yes" }),
        json!({ "power_level_content_override": 1 }),
        json!({ "initial_state": [{ "type": "x" }] }),
    ];
    for body in wrong_types {
        refused(&home.post(&alice, "/createRoom", body), 400, "M_BAD_JSON");
    }
}

/// They are read before it is known who asks.
#[test]
fn what_anybody_may_send_is_short() {
    let home = Home::new();
    let alice = home.register("alice");
    let (short, long) = ("x".repeat(60 * 1024), "x".repeat(100 * 1024));
    let login =
        |padding: &str| json!({ "type": "m.login.password", "user": "alice", "password": "alice's", "x": padding });
    let register = |padding: &str| json!({ "username": "bob", "auth": { "type": "m.login.dummy" }, "password": "b", "x": padding });
    let send = |path: &str, body| home.call(None, "POST", path, Some(body));
    refused(&send("/login", login(&long)), 413, "M_TOO_LARGE");
    refused(&send("/register", register(&long)), 413, "M_TOO_LARGE");
    assert_eq!(send("/login", login(&short)).0, 200);
    assert_eq!(send("/register", register(&short)).0, 200);
    // Of who has a token more is read.
    assert_eq!(home.post(&alice, "/createRoom", json!({ "x": long })).0, 200);
}
