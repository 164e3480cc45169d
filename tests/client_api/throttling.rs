//! Rate limiting of what anybody may ask.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    common::network::{RATES, World},
    home::{Answer, Home, refused},
};

fn home(variables: &[(&str, &str)]) -> Home {
    Home::with(&World::new(), "hs.test", variables)
}

fn from(home: &Home, address: &str, method: &str, target: &str, body: &Value) -> Answer {
    let request = http::Request::builder().method(method).uri(target).header("CF-Connecting-IP", address);
    let response = home.world.run(home.server.handle(request.body(bytes::Bytes::from(body.to_string())).unwrap()));
    let value: Value = serde_json::from_slice(response.body()).unwrap();
    if response.status() == 429 {
        let seconds: i64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert_eq!(seconds, (value["retry_after_ms"].as_i64().unwrap() + 999) / 1_000);
    }
    (response.status().as_u16(), value)
}

fn log_in(home: &Home, address: &str, user: &str, password: &str) -> Answer {
    let identifier = json!({ "type": "m.id.user", "user": user });
    let body = json!({ "type": "m.login.password", "identifier": identifier, "password": password });
    from(home, address, "POST", "/_matrix/client/v3/login", &body)
}

#[test]
fn log_ins_are_limited_by_address_and_by_account() {
    let home = home(&[("REGISTRATION", "open"), ("LOGIN_RATE", "3/60")]);
    home.register("alice");
    for _ in 0..3 {
        refused(&log_in(&home, "203.0.113.1", "bob", "guess"), 403, "M_FORBIDDEN");
    }
    // Whatever name is tried from that address, and whoever is tried from others.
    refused(&log_in(&home, "203.0.113.1", "alice", "alice's"), 429, "M_LIMIT_EXCEEDED");
    assert_eq!(log_in(&home, "203.0.113.2", "alice", "alice's").0, 200);
    for name in ["BOB", "@bob:hs.test", "@Bob:hs.test"] {
        refused(&log_in(&home, "203.0.113.3", name, "guess"), 429, "M_LIMIT_EXCEEDED");
    }
    // An IPv6 network counts as one.
    for i in 0..3 {
        refused(&log_in(&home, &format!("2001:db8::{i}"), &format!("user{i}"), "guess"), 403, "M_FORBIDDEN");
    }
    refused(&log_in(&home, "2001:db8::ffff", "alice", "alice's"), 429, "M_LIMIT_EXCEEDED");
    home.world.advance(20_000);
    assert_eq!(log_in(&home, "203.0.113.1", "alice", "alice's").0, 200);
}

#[test]
fn a_guess_costs_no_hashing_once_it_is_refused() {
    let home = home(&[("REGISTRATION", "open"), ("LOGIN_RATE", "1/3600")]);
    home.register("alice");
    refused(&log_in(&home, "203.0.113.1", "alice", "guess"), 403, "M_FORBIDDEN");
    let calls = home.database.calls.get();
    for _ in 0..1_000 {
        refused(&log_in(&home, "203.0.113.1", "alice", "guess"), 429, "M_LIMIT_EXCEEDED");
    }
    assert_eq!(home.database.calls.get(), calls);
}

#[test]
fn registrations_and_questions_about_tokens_are_limited() {
    let variables = [
        ("REGISTRATION", "token"),
        ("REGISTRATION_TOKEN", "s3cret"),
        ("REGISTRATION_RATE", "2/60"),
        ("TOKEN_VALIDITY_RATE", "2/60"),
    ];
    let home = home(&variables);
    let valid = "/_matrix/client/v1/register/m.login.registration_token/validity?token=guess";
    for _ in 0..2 {
        assert_eq!(from(&home, "203.0.113.1", "POST", "/_matrix/client/v3/register", &json!({})).0, 401);
        assert_eq!(from(&home, "203.0.113.1", "GET", valid, &json!({})).0, 200);
    }
    refused(&from(&home, "203.0.113.1", "POST", "/_matrix/client/v3/register", &json!({})), 429, "M_LIMIT_EXCEEDED");
    refused(&from(&home, "203.0.113.1", "GET", valid, &json!({})), 429, "M_LIMIT_EXCEEDED");
    assert_eq!(from(&home, "203.0.113.2", "POST", "/_matrix/client/v3/register", &json!({})).0, 401);
}

#[test]
fn names_and_refresh_tokens_are_not_guessed_without_end() {
    let home = home(&[("REGISTRATION", "open"), ("LOGIN_RATE", "2/60")]);
    let free = "/_matrix/client/v3/register/available?username=alice";
    let refresh = "/_matrix/client/v3/refresh";
    let guess = json!({ "refresh_token": "guess" });
    for _ in 0..2 {
        assert_eq!(from(&home, "203.0.113.1", "GET", free, &json!({})).0, 200);
        assert_eq!(from(&home, "203.0.113.1", "POST", refresh, &guess).0, 401);
    }
    for (method, path) in [("GET", free), ("POST", refresh)] {
        let answer = from(&home, "203.0.113.1", method, path, &guess);
        refused(&answer, 429, "M_LIMIT_EXCEEDED");
        assert!(answer.1["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{answer:?}");
    }
    // Neither uses up the other one, nor log-ins, and nobody else is concerned.
    assert_eq!(from(&home, "203.0.113.2", "GET", free, &json!({})).0, 200);
    assert_eq!(from(&home, "203.0.113.1", "POST", "/_matrix/client/v3/login", &json!({ "type": "?" })).0, 400);
}

#[test]
fn the_directory_is_not_read_without_end_by_whoever_has_no_token() {
    let home = home(&[("REGISTRATION", "open"), ("PROFILE_RATE", "2/60")]);
    let alice = home.register("alice");
    let directory = "/_matrix/client/v3/publicRooms";
    let read = |address: &str, path: &str| from(&home, address, "GET", path, &json!({}));
    for _ in 0..2 {
        assert_eq!(read("203.0.113.1", directory).0, 200);
    }
    let calls = home.database.calls.get();
    let answer = read("203.0.113.1", directory);
    refused(&answer, 429, "M_LIMIT_EXCEEDED");
    assert_eq!(home.database.calls.get(), calls);
    // A wrong token is none.
    refused(&read("203.0.113.1", &format!("{directory}?access_token=guess")), 429, "M_LIMIT_EXCEEDED");
    assert_eq!(read("203.0.113.2", directory).0, 200);
    for _ in 0..3 {
        assert_eq!(home.get(&alice, "/publicRooms").0, 200);
    }
    home.world.advance(answer.1["retry_after_ms"].as_i64().unwrap());
    assert_eq!(read("203.0.113.1", directory).0, 200);
}

/// The names that end in `_RATE` between quotation marks.
fn rates(text: &str) -> BTreeSet<&str> {
    text.split('"').filter(|piece| piece.len() > 5 && piece.ends_with("_RATE")).collect()
}

#[test]
fn without_limits_no_rate_is_left() {
    let settings = rates(include_str!("../../src/config/mod.rs"));
    assert!(settings.contains("LOGIN_RATE"), "{settings:?}");
    assert_eq!(rates(include_str!("../../scripts/dev.mjs")), settings, "`npm run dev` turns these off");
    assert_eq!(BTreeSet::from(RATES), settings, "the tests' servers turn these off");
}
