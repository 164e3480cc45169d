//! What anybody may ask, and paths that nobody can.

use http::Method;
use serde_json::{Value, json};

use crate::common::{
    network::{Homeserver, World},
    peer::{request, send},
    sqlite::Sqlite,
};

fn get(world: &World, server: &Homeserver, target: &str) -> (u16, Value) {
    send(world, server, request(Method::GET, target, &[], ""))
}

#[test]
fn discovery_and_version_are_answered() {
    let world = World::new();
    let a = world.server("a.example");
    assert_eq!(get(&world, &a, "/.well-known/matrix/server"), (200, json!({ "m.server": "a.example:443" })));
    let (status, version) = get(&world, &a, "/_matrix/federation/v1/version");
    assert_eq!((status, version["server"]["name"].as_str()), (200, Some("Verge")));
    let delegating = world.server_over("b.example", Sqlite::in_memory(), &[("WELL_KNOWN_SERVER", "c.example:8443")]);
    assert_eq!(get(&world, &delegating, "/.well-known/matrix/server").1, json!({ "m.server": "c.example:8443" }));
}

#[test]
fn keys_are_signed_and_always_valid_for_a_while() {
    let world = World::new();
    let old = r#"{"ed25519:old": {"key": "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI", "expired_ts": 1700000000000}}"#;
    let a = world.server_over("a.example", Sqlite::in_memory(), &[("OLD_SIGNING_KEYS", old)]);
    for target in ["/_matrix/key/v2/server", "/_matrix/key/v2/server/ed25519%3Aauto", "/_matrix/key/v2/server/"] {
        // A month later the same server answers with a validity that lies ahead again.
        world.advance(30 * 24 * 3_600_000);
        let (status, keys) = get(&world, &a, target);
        assert_eq!((status, keys["server_name"].as_str()), (200, Some("a.example")));
        let validity = keys["valid_until_ts"].as_i64().unwrap() - world.now_ms();
        assert!((3_600_000..=7 * 24 * 3_600_000).contains(&validity), "{validity}");
        assert_eq!(keys["old_verify_keys"]["ed25519:old"]["expired_ts"], 1_700_000_000_000_i64);
        let public = keys["verify_keys"]["ed25519:auto"]["key"].as_str().unwrap().to_owned();
        crate::common::peer::assert_signed_json(&keys, "a.example", "ed25519:auto", &public);
    }
}

#[test]
fn what_does_not_exist_is_unrecognized_before_anything_else_is_asked() {
    let world = World::new();
    let a = world.server("a.example");
    let cases = [
        (404, Method::GET, "/_matrix/federation/v1/nothing"),
        (404, Method::GET, "/_matrix/federation/v3/event/$x"),
        (404, Method::PUT, "/_matrix/federation/v1/send"),
        (404, Method::GET, "/_matrix/federation/v1/event/a/b"),
        (404, Method::GET, "/_matrix/key/v3/server"),
        (404, Method::GET, "/_matrix/media/nothing"),
        (404, Method::GET, "/_matrix/client/nothing"),
        (405, Method::DELETE, "/_matrix/federation/v1/version"),
        (405, Method::POST, "/_matrix/federation/v1/send/1"),
        (405, Method::PUT, "/_matrix/federation/v1/event/$x"),
        (405, Method::PUT, "/_matrix/federation/v1/media/download/x"),
        (405, Method::DELETE, "/_matrix/client/v1/media/thumbnail/a.example/x"),
        (405, Method::POST, "/_matrix/key/v2/server"),
        (405, Method::GET, "/_matrix/key/v2/query"),
    ];
    for (status, method, target) in cases {
        let (got, body) = send(&world, &a, request(method, target, &[], ""));
        assert_eq!((got, body["errcode"].as_str()), (status, Some("M_UNRECOGNIZED")), "{target}");
    }
}
