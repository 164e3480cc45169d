//! Access tokens that expire, and refresh tokens.

use serde_json::{Value, json};

use crate::home::{Answer, Home, User, refused};

const HOUR_MS: i64 = 60 * 60 * 1_000;

struct Pair {
    access: String,
    refresh: String,
}

fn pair((status, answer): &Answer) -> Pair {
    assert_eq!((*status, &answer["expires_in_ms"]), (200, &json!(HOUR_MS)), "{answer}");
    let text = |name: &str| answer[name].as_str().unwrap().to_owned();
    Pair { access: text("access_token"), refresh: text("refresh_token") }
}

fn login(home: &Home, name: &str, device: &str, more: Value) -> Answer {
    let mut body =
        json!({ "type": "m.login.password", "user": name, "password": format!("{name}'s"), "device_id": device });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    home.call(None, "POST", "/login", Some(body))
}

fn refresh(home: &Home, token: &str) -> Answer {
    home.call(None, "POST", "/refresh", Some(json!({ "refresh_token": token })))
}

fn whoami(home: &Home, token: &str) -> Answer {
    home.call(Some(token), "GET", "/account/whoami", None)
}

#[track_caller]
fn gone(home: &Home, token: &str, soft_logout: bool) {
    let answer = whoami(home, token);
    refused(&answer, 401, "M_UNKNOWN_TOKEN");
    assert_eq!(answer.1["soft_logout"], soft_logout);
}

fn user() -> (Home, User) {
    let home = Home::new();
    let alice = home.register("alice");
    (home, alice)
}

#[test]
fn who_asks_for_a_refresh_token_gets_one_and_others_do_not() {
    let (home, alice) = user();
    let plain = login(&home, "alice", "A", json!({}));
    assert_eq!((plain.0, plain.1.get("refresh_token"), plain.1.get("expires_in_ms")), (200, None, None));
    assert_eq!(login(&home, "alice", "A", json!({ "refresh_token": false })).1.get("refresh_token"), None);
    refused(&login(&home, "alice", "A", json!({ "refresh_token": "yes" })), 400, "M_BAD_JSON");
    let body =
        json!({ "username": "bob", "password": "b", "refresh_token": true, "auth": { "type": "m.login.dummy" } });
    let of_bob = pair(&home.call(None, "POST", "/register", Some(body)));
    let of_alice = pair(&login(&home, "alice", "B", json!({ "refresh_token": true })));
    home.world.advance(HOUR_MS - 1);
    assert_eq!(whoami(&home, &of_alice.access).1["device_id"], "B");
    home.world.advance(1);
    gone(&home, &of_alice.access, true);
    gone(&home, &of_bob.access, true);
    assert_eq!(whoami(&home, &alice.token).0, 200, "other tokens do not expire");
    // Also where a transaction is asked for together with the token.
    let answer = home.call(Some(&of_bob.access), "PUT", "/rooms/!r:hs.test/send/m.x/1", Some(json!({})));
    refused(&answer, 401, "M_UNKNOWN_TOKEN");
    assert_eq!(answer.1["soft_logout"], true);
    // The device is still there and goes on with a new pair.
    let next = pair(&refresh(&home, &of_alice.refresh));
    assert_eq!(whoami(&home, &next.access).1["device_id"], "B");
}

#[test]
fn old_tokens_hold_until_one_of_the_next_is_used() {
    let (home, _) = user();
    let first = pair(&login(&home, "alice", "A", json!({ "refresh_token": true })));
    // The answer is lost, and asked for again.
    let lost = pair(&refresh(&home, &first.refresh));
    assert_eq!(whoami(&home, &first.access).0, 200);
    let second = pair(&refresh(&home, &first.refresh));
    assert_eq!(whoami(&home, &first.access).0, 200);
    gone(&home, &lost.access, false);
    refused(&refresh(&home, &lost.refresh), 401, "M_UNKNOWN_TOKEN");
    assert_eq!(whoami(&home, &second.access).0, 200);
    gone(&home, &first.access, false);
    refused(&refresh(&home, &first.refresh), 401, "M_UNKNOWN_TOKEN");
    // The next refresh token ends those before it as well.
    let third = pair(&refresh(&home, &second.refresh));
    let fourth = pair(&refresh(&home, &third.refresh));
    gone(&home, &second.access, false);
    refused(&refresh(&home, &second.refresh), 401, "M_UNKNOWN_TOKEN");
    assert_eq!(whoami(&home, &third.access).0, 200, "it holds until the fourth is used");
    assert_eq!(whoami(&home, &fourth.access).0, 200);
    gone(&home, &third.access, false);
    // One that has expired, and is then used by a transaction.
    home.world.advance(HOUR_MS);
    gone(&home, &fourth.access, true);
    let fifth = pair(&refresh(&home, &fourth.refresh));
    refused(
        &home.call(Some(&fifth.access), "PUT", "/rooms/!r:hs.test/send/m.x/1", Some(json!({}))),
        403,
        "M_FORBIDDEN",
    );
    gone(&home, &fourth.access, false);
}

#[test]
fn they_end_with_the_device_and_with_a_new_login() {
    let (home, _) = user();
    let first = pair(&login(&home, "alice", "A", json!({ "refresh_token": true })));
    let next = pair(&refresh(&home, &first.refresh));
    let plain = login(&home, "alice", "A", json!({}));
    for token in [&first.refresh, &next.refresh] {
        refused(&refresh(&home, token), 401, "M_UNKNOWN_TOKEN");
    }
    gone(&home, &next.access, false);
    home.world.advance(2 * HOUR_MS);
    assert_eq!(whoami(&home, plain.1["access_token"].as_str().unwrap()).0, 200);
    let second = pair(&login(&home, "alice", "A", json!({ "refresh_token": true })));
    assert_eq!(home.call(Some(&second.access), "POST", "/logout", Some(json!({}))).0, 200);
    refused(&refresh(&home, &second.refresh), 401, "M_UNKNOWN_TOKEN");
}

/// Who signs out has often not been there for longer than a token lasts.
#[test]
fn an_expired_token_ends_its_device_and_does_nothing_else() {
    let (home, alice) = user();
    for path in ["/logout", "/logout/all"] {
        let pair = pair(&login(&home, "alice", "A", json!({ "refresh_token": true })));
        home.world.advance(HOUR_MS);
        gone(&home, &pair.access, true);
        assert_eq!(home.call(Some(&pair.access), "POST", path, Some(json!({}))), (200, json!({})));
        gone(&home, &pair.access, false);
        refused(&refresh(&home, &pair.refresh), 401, "M_UNKNOWN_TOKEN");
        refused(&home.call(Some(&pair.access), "POST", path, Some(json!({}))), 401, "M_UNKNOWN_TOKEN");
    }
    gone(&home, &alice.token, false);
}

#[test]
fn what_is_wrong_is_refused() {
    let (home, alice) = user();
    refused(&home.call(None, "POST", "/refresh", Some(json!({}))), 400, "M_MISSING_PARAM");
    refused(&home.call(None, "POST", "/refresh", Some(json!({ "refresh_token": 1 }))), 400, "M_BAD_JSON");
    for token in ["", "x", &alice.token, &"x".repeat(10_000)] {
        let answer = refresh(&home, token);
        refused(&answer, 401, "M_UNKNOWN_TOKEN");
        assert_eq!(answer.1["soft_logout"], false);
    }
    let secret = home.database.rows("SELECT token_hash, refresh_hash, next_token_hash, next_refresh_hash FROM devices");
    let pair = pair(&login(&home, "alice", "A", json!({ "refresh_token": true })));
    assert!(!format!("{secret:?}").contains(&pair.refresh));
}
