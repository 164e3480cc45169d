//! What local users ask for takes no more memory than what other servers do.

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use verge::{
    matrix::identifiers::{RoomId, UserId},
    router::{Request, Response},
};

use crate::{
    MIB,
    common::peer::request,
    home::{Home, User, quote},
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

/// A user who has said "hello" in a room of so many members more, whose names have so many bytes each.
fn in_a_large_room(members: usize, bytes: usize) -> (Home, User, String) {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let (room_id, user) = (RoomId::parse(&room).unwrap(), UserId::parse(&alice.id).unwrap());
    home.homeserver().enlarge(&home.world, &room_id, &user, members, 1);
    let (name, hash) = ("x".repeat(bytes), "x".repeat(43));
    home.database.rows(&format!(
        "UPDATE events SET event_type = 'm.room.member', state_key = '@u' || event_nid || ':hs.test', json = json_object( \
           'type', 'm.room.member', 'room_id', room_id, 'sender', '@u' || event_nid || ':hs.test', \
           'state_key', '@u' || event_nid || ':hs.test', 'depth', 1, 'origin_server_ts', 1, 'auth_events', json('[]'), \
           'prev_events', json('[]'), 'content', json_object('membership', 'join', 'displayname', '{name}'), \
           'hashes', json_object('sha256', '{hash}'), 'signatures', json_object('hs.test', json_object('ed25519:a', '{hash}{hash}'))) \
         WHERE event_type = 'm.large'"
    ));
    (home, alice, room)
}

/// The paths by which a user reads all of a room's state, or all members.
fn of_whole_state(home: &Home, room: &str) -> [String; 4] {
    let sql = "SELECT event_id FROM events WHERE json ->> '$.content.body' = 'hello'";
    let hello = home.database.rows(sql).remove(0).remove(0);
    let paths = ["state", "members", "joined_members", &format!("context/{}?limit=1", quote(&hello))];
    paths.map(|path| format!("/rooms/{}/{path}", quote(room)))
}

#[test]
fn a_state_is_in_memory_once_beside_what_a_user_reads_of_it() {
    let (home, alice, room) = in_a_large_room(6_000, 1_400);
    for path in of_whole_state(&home, &room) {
        let request = asks(&alice, Method::GET, &path, "");
        let (response, most, _) = measured(|| home.world.run(home.server.handle(request)));
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let answer: Value = serde_json::from_slice(response.body()).unwrap();
        assert!(answer.is_object() || answer.is_array());
        let bytes = response.body().len();
        assert!(bytes > 8_400_000, "{bytes}");
        assert!(most < 6_000 * 1_800 + 12 * MIB, "{path}: {} KiB for an answer of {} KiB", most / 1024, bytes / 1024);
        // What has no room beside other work has it when that is done.
        let in_work = home.homeserver().admission.reserve(11 * MIB, home.world.now_ms());
        let request = || home.server.handle(asks(&alice, Method::GET, &path, ""));
        let refused = home.world.run(request());
        assert_eq!(
            (refused.status(), &refused.headers()["retry-after"]),
            (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
        );
        drop(in_work);
        assert_eq!(home.world.run(request()).status(), StatusCode::OK);
    }
}

#[test]
fn a_state_of_long_events_is_given_to_no_user() {
    let (home, alice, room) = in_a_large_room(900, 60_000);
    for path in of_whole_state(&home, &room) {
        let request = asks(&alice, Method::GET, &path, "");
        let (response, most, _) = measured(|| home.world.run(home.server.handle(request)));
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(most < 12 * MIB, "{path}: {} KiB", most / 1024);
    }
}

const SEARCH: &str = r#"{"search_categories":{"room_events":{"search_term":"hello","include_state":true}}}"#;

#[test]
fn what_a_search_tells_of_a_large_room_has_its_room() {
    let (home, alice, _) = in_a_large_room(600, 1_000);
    let search = || home.world.run(home.server.handle(asks(&alice, Method::POST, "/search", SEARCH)));
    let in_work = home.homeserver().admission.reserve(13 * MIB, home.world.now_ms());
    assert_eq!(search().status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(in_work);
    let response = search();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.body().len() > 600_000);
}

#[test]
fn what_a_sync_tells_of_whole_states_has_its_room() {
    let home = Home::new();
    let alice = home.register("alice");
    let mut expected = [(); 2].map(|()| home.room(&alice, json!({})));
    for (room, n) in expected.iter().flat_map(|room| (0..13).map(move |n| (room, n))) {
        let path = format!("/rooms/{}/state/x.long/{n}", quote(room));
        assert_eq!(home.put(&alice, &path, json!({ "long": "x".repeat(60_000) })).0, 200);
    }
    let sync = |query: &str| {
        let response = home.world.run(home.server.handle(asks(&alice, Method::GET, &format!("/sync?{query}"), "")));
        let answer: Value = serde_json::from_slice(response.body()).unwrap();
        (response.status(), response.headers().get("retry-after").cloned(), answer)
    };
    let told = |answer: &Value| answer["rooms"]["join"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let busy = |mib: usize| home.homeserver().admission.reserve(mib * MIB, home.world.now_ms());
    let in_work = busy(13);
    let (status, retry, _) = sync("");
    assert_eq!((status, retry), (StatusCode::SERVICE_UNAVAILABLE, Some("1".parse().unwrap())));
    drop(in_work);
    // Where there is room for one of the two rooms, that one is told, and then the other.
    let in_work = busy(12);
    let (status, _, first) = sync("");
    assert_eq!((status, told(&first).len()), (StatusCode::OK, 1));
    let (status, _, second) = sync(&format!("since={}", first["next_batch"].as_str().unwrap()));
    assert_eq!((status, told(&second).len()), (StatusCode::OK, 1));
    drop(in_work);
    let mut rooms = [told(&first), told(&second)].concat();
    let (_, _, all) = sync("");
    rooms.sort();
    expected.sort();
    assert_eq!((&rooms[..], &told(&all)[..]), (&expected[..], &expected[..]));
    let events = |answer: &Value, room: &str| answer["rooms"]["join"][room]["state"]["events"].as_array().map(Vec::len);
    for room in &rooms {
        assert_eq!(events(&first, room).or(events(&second, room)), events(&all, room));
    }
}

/// Rooms share what may be told of their states.
#[test]
fn a_search_tells_no_more_of_the_states_of_many_rooms() {
    let home = Home::new();
    let alice = home.register("alice");
    for room in 0..4 {
        let id = home.room(&alice, json!({}));
        for n in 0..10 {
            let path = format!("/rooms/{}/state/x.long/{n}", quote(&id));
            assert_eq!(home.put(&alice, &path, json!({ "long": "x".repeat(60_000) })).0, 200);
        }
        home.say(&alice, &id, "hello", &room.to_string());
    }
    let response = home.world.run(home.server.handle(asks(&alice, Method::POST, "/search", SEARCH)));
    let answer: Value = serde_json::from_slice(response.body()).unwrap();
    let states = answer["search_categories"]["room_events"]["state"].as_object().unwrap();
    assert_eq!(states.len(), 4);
    assert!((600_000..1_800_000).contains(&response.body().len()), "{}", response.body().len());
}
