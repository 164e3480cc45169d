//! What local users ask for takes no more memory than what other servers do.

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use verge::router::{Request, Response};

use crate::{
    MIB,
    common::peer::request,
    home::{Home, User},
    measured,
};

/// The user's request.
fn asks(user: &User, method: Method, path: &str, body: &str) -> Request {
    let mut request = request(method, &format!("/_matrix/client/v3{path}"), &[], body.to_owned());
    request.headers_mut().insert("authorization", format!("Bearer {}", user.token).parse().unwrap());
    request
}

/// A user whose backup was asked to take so many times 900 KB of letters of four bytes each, and the request for its keys.
fn with_backup(times: usize) -> (Home, Request) {
    let home = Home::new();
    let alice = home.register("alice");
    let (_, version) = home.post(&alice, "/room_keys/version", json!({ "algorithm": "x", "auth_data": {} }));
    let path = format!("/room_keys/keys?version={}", version["version"].as_str().unwrap());
    let key = json!({
        "first_message_index": 0, "forwarded_count": 0, "is_verified": false,
        "session_data": { "ciphertext": "𐍈".repeat(15_000) },
    });
    for time in 0..times {
        let sessions: serde_json::Map<String, Value> = (0..15).map(|n| (format!("{time}-{n}"), key.clone())).collect();
        let body = json!({ "rooms": { format!("!r{}:hs.test", time % 7): { "sessions": sessions } } });
        let (status, answer) = home.put(&alice, &path, body);
        assert!(status == 200 || answer["errcode"] == "M_TOO_LARGE", "{answer}");
    }
    (home, asks(&alice, Method::GET, &path, ""))
}

#[test]
fn a_full_backup_is_in_memory_once_beside_what_is_read_of_it() {
    let (home, request) = with_backup(40);
    let (response, most, _) = measured(|| home.world.run(home.server.handle(request)));
    assert_eq!(response.status(), StatusCode::OK);
    let bytes = response.body().len();
    assert!((22_000_000..24_100_000).contains(&bytes), "{bytes}");
    assert!(most < bytes + 12 * MIB, "{} KiB for an answer of {} KiB", most / 1024, bytes / 1024);
}

#[test]
fn a_third_large_backup_is_refused_while_there_is_no_room_for_it() {
    let (home, request) = with_backup(16);
    home.world.interleave();
    let all = join_all([(), (), ()].map(|()| home.server.handle(request.clone())));
    let mut answers = home.world.run(all);
    answers.sort_by_key(Response::status);
    assert_eq!(answers.iter().map(|answer| answer.status().as_u16()).collect::<Vec<_>>(), [200, 200, 503]);
    assert_eq!(answers[2].headers()["retry-after"], "1");
    // It has room when other work is done.
    assert_eq!(home.world.run(home.server.handle(request)).status(), StatusCode::OK);
}
