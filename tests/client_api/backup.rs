//! Backups of room keys.

use serde_json::{Value, json};

use crate::home::{Home, User, refused};

const VERSION: &str = "/room_keys/version";

fn begin(home: &Home, user: &User) -> String {
    let body = json!({ "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": { "public_key": "abc" } });
    let (status, answer) = home.post(user, VERSION, body);
    assert_eq!(status, 200, "{answer}");
    answer["version"].as_str().unwrap().to_owned()
}

fn key(first: i64, forwarded: i64, verified: bool, text: &str) -> Value {
    json!({
        "first_message_index": first, "forwarded_count": forwarded, "is_verified": verified,
        "session_data": { "ciphertext": text },
    })
}

fn delete(home: &Home, user: &User, path: &str) -> (u16, Value) {
    home.call(Some(&user.token), "DELETE", path, None)
}

#[test]
fn versions_are_made_read_changed_and_deleted() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    refused(&home.get(&alice, VERSION), 404, "M_NOT_FOUND");
    let first = begin(&home, &alice);
    let expected = json!({
        "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": { "public_key": "abc" },
        "version": first, "etag": "0", "count": 0,
    });
    assert_eq!(home.get(&alice, VERSION), (200, expected.clone()));
    let second = begin(&home, &alice);
    assert_ne!(first, second);
    assert_eq!(home.get(&alice, VERSION).1["version"], json!(second));
    assert_eq!(home.get(&alice, &format!("{VERSION}/{first}")), (200, expected));
    refused(&home.get(&bob, &format!("{VERSION}/{first}")), 404, "M_NOT_FOUND");
    let change = |version: &str, body: Value| home.put(&alice, &format!("{VERSION}/{version}"), body);
    let body = json!({ "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": { "signatures": {} } });
    assert_eq!(change(&second, body.clone()), (200, json!({})));
    assert_eq!(home.get(&alice, VERSION).1["auth_data"], json!({ "signatures": {} }));
    let mut wrong = body.clone();
    wrong["algorithm"] = json!("m.other");
    refused(&change(&second, wrong), 400, "M_INVALID_PARAM");
    let mut wrong = body.clone();
    wrong["version"] = json!(first);
    refused(&change(&second, wrong), 400, "M_INVALID_PARAM");
    for missing in ["99", "0", "-1", "x", ""] {
        refused(&change(missing, body.clone()), 404, "M_NOT_FOUND");
        refused(&home.get(&alice, &format!("{VERSION}/{missing}")), 404, "M_NOT_FOUND");
    }
    assert_eq!(delete(&home, &alice, &format!("{VERSION}/{second}")), (200, json!({})));
    refused(&delete(&home, &alice, &format!("{VERSION}/{second}")), 404, "M_NOT_FOUND");
    assert_eq!(home.get(&alice, VERSION).1["version"], json!(first), "the one before is the newest");
    assert!(!["1".to_owned(), second].contains(&begin(&home, &alice)), "numbers are not used again");
    refused(&home.post(&alice, VERSION, json!({ "auth_data": {} })), 400, "M_MISSING_PARAM");
    refused(&home.post(&alice, VERSION, json!({ "algorithm": "x" })), 400, "M_MISSING_PARAM");
    refused(&home.post(&alice, VERSION, json!({ "algorithm": "x", "auth_data": [] })), 400, "M_BAD_JSON");
    for (method, path) in
        [("POST", VERSION), ("GET", VERSION), ("GET", "/room_keys/version/1"), ("DELETE", "/room_keys/version/1")]
    {
        refused(&home.call(None, method, path, Some(json!({}))), 401, "M_MISSING_TOKEN");
    }
}

#[test]
fn keys_come_back_as_they_were_put_all_by_room_and_singly() {
    let home = Home::new();
    let alice = home.register("alice");
    let version = begin(&home, &alice);
    let at = |path: &str| format!("/room_keys/keys{path}?version={version}");
    let (room, other) = ("/%21room%3Ahs.test", "/%21other%3Ahs.test");
    assert_eq!(home.get(&alice, &at("")), (200, json!({ "rooms": {} })));
    assert_eq!(home.get(&alice, &at(room)), (200, json!({ "sessions": {} })));
    refused(&home.get(&alice, &at(&format!("{room}/s1"))), 404, "M_NOT_FOUND");
    let [a, b, c] = ["a", "b", "c"].map(|text| key(1, 0, false, text));
    let all = json!({ "rooms": { "!room:hs.test": { "sessions": { "s1": a, "s2": b } } } });
    assert_eq!(home.put(&alice, &at(""), all), (200, json!({ "etag": "1", "count": 2 })));
    assert_eq!(home.put(&alice, &at(other), json!({ "sessions": { "s1": c } })).1, json!({ "etag": "2", "count": 3 }));
    let slash = format!("{room}/a%2Fb");
    assert_eq!(home.put(&alice, &at(&slash), key(1, 0, true, "𐍈")).1, json!({ "etag": "3", "count": 4 }));
    let of_room = json!({ "a/b": key(1, 0, true, "𐍈"), "s1": a, "s2": b });
    let rooms = json!({ "!room:hs.test": { "sessions": of_room }, "!other:hs.test": { "sessions": { "s1": c } } });
    assert_eq!(home.get(&alice, &at("")), (200, json!({ "rooms": rooms })));
    assert_eq!(home.get(&alice, &at(room)), (200, json!({ "sessions": of_room })));
    assert_eq!(home.get(&alice, &at(&format!("{room}/s2"))), (200, b));
    assert_eq!(home.get(&alice, VERSION).1["count"], 4);
    assert_eq!(delete(&home, &alice, &at(&slash)), (200, json!({ "etag": "4", "count": 3 })));
    assert_eq!(delete(&home, &alice, &at(&slash)), (200, json!({ "etag": "4", "count": 3 })), "nothing is left of it");
    assert_eq!(delete(&home, &alice, &at(room)), (200, json!({ "etag": "5", "count": 1 })));
    assert_eq!(delete(&home, &alice, &at("")), (200, json!({ "etag": "6", "count": 0 })));
    assert_eq!(home.database.rows("SELECT sessions, length FROM key_backups"), [["0", "0"]]);
}

#[test]
fn a_better_key_stays() {
    let home = Home::new();
    let alice = home.register("alice");
    let version = begin(&home, &alice);
    let path = format!("/room_keys/keys/%21room%3Ahs.test/s?version={version}");
    let mut etag = 0;
    for (better, key) in [
        (true, key(5, 5, false, "first")),
        (false, key(5, 5, false, "no better")),
        (false, key(6, 0, false, "decrypts less")),
        (false, key(5, 6, false, "was forwarded more")),
        (true, key(5, 4, false, "was forwarded less")),
        (true, key(4, 9, false, "decrypts more")),
        (true, key(9, 9, true, "is verified 𐍈")),
        (false, key(0, 0, false, "is not")),
    ] {
        etag += i64::from(better);
        assert_eq!(
            home.put(&alice, &path, key.clone()),
            (200, json!({ "etag": etag.to_string(), "count": 1 })),
            "{key}"
        );
        assert_eq!(home.get(&alice, &path).1 == key, better, "{key}");
    }
    let lengths = || {
        let sql = "SELECT length, (SELECT SUM(octet_length(session_data) + 250) FROM key_backup_sessions) \
            FROM key_backups WHERE sessions > 0";
        home.database.rows(sql).remove(0)
    };
    let [counted, held] = lengths().try_into().unwrap();
    assert_eq!(counted, held);
    // What was counted in characters is counted anew.
    home.database.rows("UPDATE key_backups SET length = length - 3");
    begin(&home, &alice);
    let migration = include_str!("../../migrations/0060_backups_in_bytes.sql");
    migration.split_terminator(";\n").for_each(|sql| drop(home.database.rows(sql)));
    assert_eq!(lengths(), [held.clone(), held]);
    assert_eq!(home.database.rows("SELECT length FROM key_backups WHERE sessions = 0"), [["0"]]);
}

#[test]
fn only_the_newest_version_takes_keys() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let old = begin(&home, &alice);
    let new = begin(&home, &alice);
    let path = |version: &str| format!("/room_keys/keys/%21room%3Ahs.test/s?version={version}");
    let answer = home.put(&alice, &path(&old), key(0, 0, false, "x"));
    refused(&answer, 403, "M_WRONG_ROOM_KEYS_VERSION");
    assert_eq!(answer.1["current_version"], json!(new));
    refused(&home.put(&bob, &path(&new), key(0, 0, false, "x")), 404, "M_NOT_FOUND");
    for (method, body) in [("GET", None), ("DELETE", None)] {
        for version in ["99", "x"] {
            refused(&home.call(Some(&alice.token), method, &path(version), body.clone()), 404, "M_NOT_FOUND");
        }
        refused(&home.call(Some(&bob.token), method, &path(&new), body.clone()), 404, "M_NOT_FOUND");
        refused(&home.call(Some(&alice.token), method, "/room_keys/keys", body.clone()), 400, "M_MISSING_PARAM");
        refused(&home.call(None, method, &path(&new), body), 401, "M_MISSING_TOKEN");
    }
    refused(&home.call(None, "PUT", &path(&new), Some(key(0, 0, false, "x"))), 401, "M_MISSING_TOKEN");
    for (name, value, errcode) in [
        ("first_message_index", json!(-1), "M_INVALID_PARAM"),
        ("first_message_index", json!("1"), "M_BAD_JSON"),
        ("forwarded_count", Value::Null, "M_MISSING_PARAM"),
        ("is_verified", json!(1), "M_BAD_JSON"),
        ("session_data", json!("x"), "M_BAD_JSON"),
        ("session_data", Value::Null, "M_MISSING_PARAM"),
    ] {
        let mut wrong = key(0, 0, false, "x");
        wrong[name] = value;
        refused(&home.put(&alice, &path(&new), wrong), 400, errcode);
    }
    let in_no_room = format!("/room_keys/keys/room/s?version={new}");
    refused(&home.put(&alice, &in_no_room, key(0, 0, false, "x")), 400, "M_INVALID_PARAM");
    refused(&home.put(&alice, &path(&new), key(0, 0, false, &"x".repeat(65_536))), 413, "M_TOO_LARGE");
    assert!(home.database.rows("SELECT * FROM key_backup_sessions").is_empty());
}

#[test]
fn a_backup_is_bounded_and_read_whole_whatever_it_holds() {
    let home = Home::new();
    let alice = home.register("alice");
    let version = begin(&home, &alice);
    let path = format!("/room_keys/keys?version={version}");
    let put = |round: usize, count: usize, length: usize| {
        let text = "x".repeat(length);
        let room = |n: usize| format!("!r{}:hs.test", n % 7);
        let mut rooms = serde_json::Map::new();
        for n in 0..count {
            let sessions = rooms.entry(room(n)).or_insert_with(|| json!({ "sessions": {} }));
            sessions["sessions"][format!("{round}-{n}")] = key(0, 0, false, &text);
        }
        home.put(&alice, &path, json!({ "rooms": rooms }))
    };
    for round in 0..5 {
        assert_eq!(put(round, 900, 10).0, 200);
    }
    let (status, answer) = home.get(&alice, &path);
    let read: usize =
        answer["rooms"].as_object().unwrap().values().map(|room| room["sessions"].as_object().unwrap().len()).sum();
    assert_eq!((status, read), (200, 4_500));
    let mut round = 5;
    while put(round, 15, 60_000).0 == 200 {
        round += 1;
        assert!(round < 100, "it is full at last");
    }
    refused(&put(round, 15, 60_000), 413, "M_TOO_LARGE");
    let rows =
        home.database.rows("SELECT length, sessions, (SELECT count(*) FROM key_backup_sessions) FROM key_backups");
    assert!((22_000_000..=24_000_000).contains(&rows[0][0].parse::<i64>().unwrap()), "{rows:?}");
    assert_eq!(rows[0][1], rows[0][2]);
}

/// Clients ask for the one key that they lack.
#[test]
fn a_key_and_a_rooms_keys_are_read_without_the_others() {
    let home = Home::new();
    let alice = home.register("alice");
    let version = begin(&home, &alice);
    let path = |rest: &str| format!("/room_keys/keys{rest}?version={version}");
    let mine = key(0, 0, false, "mine");
    assert_eq!(home.put(&alice, &path("/!m:hs.test/m"), mine.clone()).0, 200);
    home.database.rows(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 6000) \
         INSERT INTO key_backup_sessions SELECT s.user_id, s.version, r.value, s.session_id || n, 0, 0, 0, s.session_data \
         FROM key_backup_sessions AS s CROSS JOIN n CROSS JOIN json_each('[\"!a:hs.test\",\"!z:hs.test\"]') AS r",
    );
    let call = |method: &str, rest: &str| {
        let before = home.database.steps.get();
        let (status, answer) = home.call(Some(&alice.token), method, &path(rest), None);
        assert_eq!(status, 200, "{answer}");
        (answer, home.database.steps.get() - before)
    };
    let read = |rest: &str| call("GET", rest);
    for (rest, expected) in [("/!m:hs.test/m", mine.clone()), ("/!m:hs.test", json!({ "sessions": { "m": mine } }))] {
        let (answer, steps) = read(rest);
        assert_eq!(answer, expected);
        assert!(steps < 2_000, "{rest}: {steps}");
    }
    // Page by page, each goes on where the one before has ended.
    let sessions = |room: &Value| room["sessions"].as_object().unwrap().len();
    assert_eq!(sessions(&read("/!z:hs.test").0), 6_000);
    let all = read("").0["rooms"].as_object().unwrap().values().map(sessions).sum::<usize>();
    assert_eq!(all, 12_001);
    let of_z = home.database.rows("SELECT session_id FROM key_backup_sessions WHERE room_id = '!z:hs.test' LIMIT 1");
    let one_of_many = format!("/!z:hs.test/{}", of_z[0][0]);
    assert!(read(&one_of_many).1 < 2_000);
    // Nor are they looked at when one is deleted.
    let rows = |of: &str| home.database.rows(&format!("SELECT count(*) FROM key_backup_sessions {of}"))[0][0].clone();
    for (rest, left) in [(one_of_many.as_str(), "12000"), ("/!m:hs.test", "11999")] {
        let steps = call("DELETE", rest).1;
        assert!(steps < 2_000, "{rest}: {steps}");
        assert_eq!(rows(""), left);
    }
    call("DELETE", "/!z:hs.test");
    assert_eq!((rows(""), rows("WHERE room_id = '!z:hs.test'")), ("6000".to_owned(), "0".to_owned()));
    call("DELETE", "");
    assert_eq!(rows(""), "0");
}

#[test]
fn a_user_keeps_a_bounded_number_of_versions() {
    let home = Home::new();
    let alice = home.register("alice");
    let versions: Vec<String> = (0..10).map(|_| begin(&home, &alice)).collect();
    let body = json!({ "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {} });
    for _ in 0..3 {
        refused(&home.post(&alice, VERSION, body.clone()), 413, "M_TOO_LARGE");
    }
    assert_eq!(home.get(&alice, VERSION).1["version"], json!(versions[9]));
    assert_eq!(delete(&home, &alice, &format!("{VERSION}/{}", versions[0])), (200, json!({})));
    let new = begin(&home, &alice);
    assert!(!versions.contains(&new));
    let bob = home.register("bob");
    begin(&home, &bob);
}
