//! Request authentication.

use http::Method;
use serde_json::{Value, json};

use crate::{
    accepted,
    common::{
        network::{Homeserver, World},
        peer::{Peer, request, send},
    },
    scene,
};

const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.example";

fn world() -> (World, Homeserver, std::rc::Rc<Peer>) {
    let world = World::new();
    let a = world.server("a.example");
    a.user(&world, "alice");
    let peer = Peer::new(&world, "peer.example");
    (world, a, peer)
}

/// Status and errcode of a `GET` of Alice's profile with these headers.
fn with_headers(world: &World, a: &Homeserver, headers: &[&str]) -> (u16, Value) {
    let (status, body) = send(world, a, request(Method::GET, PROFILE, headers, ""));
    (status, body["errcode"].clone())
}

#[test]
fn a_signed_request_is_answered() {
    let (world, a, peer) = world();
    assert_eq!(peer.get(&a, PROFILE), (200, json!({ "displayname": "alice" })));
    // The key is asked for once.
    assert_eq!(peer.get(&a, PROFILE).0, 200);
    let asked = peer.received.borrow().iter().filter(|request| request.uri().path().contains("key")).count();
    assert_eq!(asked, 1);

    let good = peer.authorization("GET", PROFILE, "a.example", None);
    // Older servers do not name the destination, but sign it.
    let without_destination = good.replace("destination=\"a.example\",", "");
    assert_ne!(good, without_destination);
    assert_eq!(with_headers(&world, &a, &[&without_destination]).0, 200);
    // Headers of other schemes are none of ours; names are case-insensitive; bare values may hold colons.
    let odd = good.replace("origin=", "ORIGIN = ").replace("key=\"ed25519:peer\"", "key=ed25519:peer");
    assert_eq!(with_headers(&world, &a, &["Bearer x", &odd]).0, 200);
    // A server that signs with several keys sends several headers.
    let unknown_key = good.replace("ed25519:peer", "ed25519:other");
    assert_eq!(with_headers(&world, &a, &[&unknown_key, &good]).0, 200);
    // The runtime joins them.
    assert_eq!(with_headers(&world, &a, &[&format!("{unknown_key}, {good}")]).0, 200);
}

#[test]
fn what_is_not_signed_for_us_is_refused_before_any_key_is_asked_for() {
    let (world, a, peer) = world();
    let good = peer.authorization("GET", PROFILE, "a.example", None);
    let other = Peer::new(&world, "other.example").authorization("GET", PROFILE, "a.example", None);
    let ours = good.replace("origin=\"peer.example\"", "origin=\"a.example\"");
    let elsewhere = peer.authorization("GET", PROFILE, "b.example", None);
    let unauthorized = json!("M_UNAUTHORIZED");
    assert_eq!(with_headers(&world, &a, &[]), (401, unauthorized.clone()));
    assert_eq!(with_headers(&world, &a, &["Bearer token"]), (401, unauthorized.clone()));
    assert_eq!(with_headers(&world, &a, &[&elsewhere]), (401, unauthorized.clone()));
    assert_eq!(with_headers(&world, &a, &[&good, &elsewhere]), (401, unauthorized.clone()));
    assert_eq!(with_headers(&world, &a, &[&ours]), (401, unauthorized.clone()));
    for malformed in
        ["X-Matrix", "X-Matrix nonsense", "X-Matrix origin=\"peer.example\",key=\"k\"", "X-Matrix origin=,"]
    {
        let (status, errcode) = with_headers(&world, &a, &[malformed]);
        assert!(matches!(status, 400 | 401), "{malformed}: {status}");
        assert_eq!(errcode, unauthorized);
    }
    let (status, errcode) = with_headers(&world, &a, &[&good, &other]);
    assert!(matches!(status, 400 | 401), "{status}");
    assert_eq!(errcode, unauthorized);
    assert!(peer.received.borrow().is_empty(), "a key was asked for");
}

#[test]
fn a_wrong_signature_is_refused() {
    let (world, a, peer) = world();
    let unauthorized = (401, json!("M_UNAUTHORIZED"));
    let good = peer.authorization("GET", PROFILE, "a.example", None);
    assert_eq!(with_headers(&world, &a, &[&good]).0, 200);
    // Of another path, of the same path written otherwise, of another method, by a key that nobody has.
    let target = PROFILE.replace("%40", "@");
    assert_eq!(with_headers(&world, &a, &[&peer.authorization("GET", &target, "a.example", None)]), unauthorized);
    assert_eq!(with_headers(&world, &a, &[&peer.authorization("PUT", PROFILE, "a.example", None)]), unauthorized);
    assert_eq!(with_headers(&world, &a, &[&good.replace("ed25519:peer", "ed25519:nokey")]), unauthorized);
    assert_eq!(with_headers(&world, &a, &[&good.replace("sig=\"", "sig=\"A")]), unauthorized);
    let mallory = Peer::new(&world, "mallory.example").authorization("GET", PROFILE, "a.example", None);
    assert_eq!(with_headers(&world, &a, &[&mallory.replace("mallory.example", "peer.example")]), unauthorized);
    // Of another body.
    let target = "/_matrix/federation/v1/send/1";
    let (signed, sent) = (json!({ "pdus": [] }), json!({ "pdus": [], "edus": [] }));
    let header = peer.authorization("PUT", target, "a.example", Some(&signed));
    let (status, body) = send(&world, &a, request(Method::PUT, target, &[&header], sent.to_string()));
    assert_eq!((status, body["errcode"].clone()), unauthorized);
}

#[test]
fn an_expired_key_signs_no_requests() {
    let (_, a, peer) = world();
    peer.key_validity_ms.set(-1);
    let (status, body) = peer.get(&a, PROFILE);
    assert_eq!((status, body["errcode"].as_str()), (401, Some("M_UNAUTHORIZED")));
    // A server whose keys cannot be had is as unknown.
    let (world, a, peer) = world();
    world.cut("a.example", "peer.example");
    assert_eq!(peer.get(&a, PROFILE).0, 401);
}

#[test]
fn a_body_that_cannot_be_read_gets_its_own_error() {
    let scene = scene("12");
    let before = accepted(&scene.a);
    let target = "/_matrix/federation/v1/send/1";
    let header = scene.peer.authorization("PUT", target, "a.example", Some(&json!({})));
    let deep = || format!("{{\"pdus\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let errcode_at = |target: &str, body: String| {
        let (status, answer) = send(&scene.world, &scene.a, request(Method::PUT, target, &[&header], body));
        (status, answer["errcode"].as_str().unwrap().to_owned())
    };
    let errcode = |body: String| errcode_at(target, body);
    assert_eq!(errcode("no JSON".to_owned()), (400, "M_NOT_JSON".to_owned()));
    assert_eq!(errcode(String::new()), (400, "M_NOT_JSON".to_owned()));
    // Of a transaction what is too deep is refused by itself, if the whole is signed.
    assert_eq!(errcode(deep()), (401, "M_UNAUTHORIZED".to_owned()));
    let invite = "/_matrix/federation/v2/invite/!room:a.example/$invite";
    assert_eq!(errcode_at(invite, deep()), (400, "M_NOT_JSON".to_owned()));
    assert_eq!(errcode("[]".to_owned()), (400, "M_BAD_JSON".to_owned()));
    let too_long = request(Method::PUT, target, &[&header], vec![b' '; 13 * 1024 * 1024 + 1]);
    let (status, answer) = send(&scene.world, &scene.a, too_long);
    assert_eq!((status, answer["errcode"].as_str()), (413, Some("M_TOO_LARGE")));
    assert_eq!(accepted(&scene.a), before);
}
