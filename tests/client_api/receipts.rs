//! Receipts and read markers, within one server and between two.

use serde_json::{Value, json};

use crate::{
    home::{Home, User, next, quote, refused},
    typing::{apart, ephemeral, together},
};

fn read(home: &Home, user: &User, room: &str, kind: &str, event: &str, body: Value) -> (u16, Value) {
    home.post(user, &format!("/rooms/{}/receipt/{kind}/{}", quote(room), quote(event)), body)
}

/// The receipts in a sync's answer: event, type, user and thread of each.
fn told(answer: &Value, room: &str) -> Vec<[String; 4]> {
    let mut told = Vec::new();
    for event in ephemeral(answer, room).iter().filter(|event| event["type"] == "m.receipt") {
        for (event_id, types) in event["content"].as_object().unwrap() {
            for (kind, users) in types.as_object().unwrap() {
                for (user, data) in users.as_object().unwrap() {
                    assert!(data["ts"].is_i64());
                    let thread = data["thread_id"].as_str().unwrap_or_default();
                    told.push([event_id, kind, user, thread].map(str::to_owned));
                }
            }
        }
    }
    told.sort();
    told
}

fn one(event: &str, kind: &str, user: &User, thread: &str) -> Vec<[String; 4]> {
    vec![[event, kind, &user.id, thread].map(str::to_owned)]
}

#[test]
fn everybody_in_the_room_sees_who_has_read_and_only_oneself_what_is_private() {
    let (home, alice, bob, room) = together();
    let said: Vec<String> = (0..3).map(|n| home.say(&alice, &room, "hello", &n.to_string())).collect();
    let (of_alice, of_bob) = (next(&home.sync(&alice, "")), next(&home.sync(&bob, "")));
    assert_eq!(read(&home, &bob, &room, "m.read", &said[1], json!({})), (200, json!({})));
    assert_eq!(read(&home, &bob, &room, "m.read.private", &said[2], json!({})), (200, json!({})));
    assert_eq!(told(&home.sync(&alice, &of_alice), &room), one(&said[1], "m.read", &bob, ""));
    let mut both = one(&said[1], "m.read", &bob, "");
    both.extend(one(&said[2], "m.read.private", &bob, ""));
    both.sort();
    assert_eq!(told(&home.sync(&bob, &of_bob), &room), both);
    // A client that knows nothing is told all.
    assert_eq!(told(&home.sync(&alice, ""), &room), one(&said[1], "m.read", &bob, ""));
    assert_eq!(told(&home.sync(&bob, ""), &room), both);
    // Back is no way for a receipt, and no news.
    let since = next(&home.sync(&alice, &of_alice));
    assert_eq!(read(&home, &bob, &room, "m.read", &said[0], json!({})).0, 200);
    assert_eq!(home.sync(&alice, &since)["rooms"]["join"], json!({}));
}

#[test]
fn each_thread_has_its_receipt() {
    let (home, alice, bob, room) = together();
    let root = home.say(&alice, &room, "root", "1");
    let since = next(&home.sync(&alice, ""));
    for thread in [json!({}), json!({ "thread_id": "main" }), json!({ "thread_id": root })] {
        assert_eq!(read(&home, &bob, &room, "m.read", &root, thread).0, 200);
    }
    let mut all: Vec<_> = ["", "main", &root].iter().flat_map(|thread| one(&root, "m.read", &bob, thread)).collect();
    all.sort();
    assert_eq!(told(&home.sync(&alice, &since), &room), all);
}

#[test]
fn each_thread_has_its_receipt_on_another_server_too() {
    let (one, alice, two, bob, room) = apart();
    let root = one.say(&alice, &room, "root", "1");
    one.world.settle();
    for (home, reader, other, seer) in [(&two, &bob, &one, &alice), (&one, &alice, &two, &bob)] {
        let since = next(&other.sync(seer, ""));
        for thread in [json!({}), json!({ "thread_id": "main" }), json!({ "thread_id": root })] {
            assert_eq!(read(home, reader, &room, "m.read", &root, thread).0, 200);
        }
        one.world.settle();
        let mut all: Vec<_> =
            ["", "main", &root].iter().flat_map(|thread| self::one(&root, "m.read", reader, thread)).collect();
        all.sort();
        let seen = told(&other.sync(seer, &since), &room);
        assert_eq!(seen.into_iter().filter(|[_, _, user, _]| *user == reader.id).collect::<Vec<_>>(), all);
    }
}

#[test]
fn markers_are_set_together() {
    let (home, alice, bob, room) = together();
    let said = home.say(&alice, &room, "hello", "1");
    let (of_alice, of_bob) = (next(&home.sync(&alice, "")), next(&home.sync(&bob, "")));
    let path = format!("/rooms/{}/read_markers", quote(&room));
    let body = json!({ "m.fully_read": said, "m.read": said, "m.read.private": said });
    assert_eq!(home.post(&bob, &path, body), (200, json!({})));
    assert_eq!(told(&home.sync(&alice, &of_alice), &room), one(&said, "m.read", &bob, ""));
    let answer = home.sync(&bob, &of_bob);
    assert_eq!(told(&answer, &room).len(), 2);
    let marker = json!([{ "type": "m.fully_read", "content": { "event_id": said } }]);
    assert_eq!(answer["rooms"]["join"][&room]["account_data"]["events"], marker);
    // By its own endpoint, too.
    let later = home.say(&alice, &room, "later", "2");
    assert_eq!(read(&home, &bob, &room, "m.fully_read", &later, json!({})).0, 200);
    let path = format!("/user/{}/rooms/{}/account_data/m.fully_read", quote(&bob.id), quote(&room));
    assert_eq!(home.get(&bob, &path), (200, json!({ "event_id": later })));
    // It goes forwards only, whichever of several devices is behind, and nobody is told where it stays.
    let since = next(&home.sync(&bob, ""));
    for event in [&said, &later] {
        assert_eq!(read(&home, &bob, &room, "m.fully_read", event, json!({})), (200, json!({})));
        let markers = format!("/rooms/{}/read_markers", quote(&room));
        assert_eq!(home.post(&bob, &markers, json!({ "m.fully_read": event })), (200, json!({})));
        assert_eq!(home.get(&bob, &path), (200, json!({ "event_id": later })));
    }
    assert_eq!(home.sync(&bob, &since)["rooms"]["join"], json!({}));
    // Where it is unknown where it stands, or where it is set to, it goes there.
    let last = home.say(&alice, &room, "last", "3");
    for event in ["$unknown", &said, &last] {
        assert_eq!(read(&home, &bob, &room, "m.fully_read", event, json!({})).0, 200);
        assert_eq!(home.get(&bob, &path), (200, json!({ "event_id": event })));
    }
    assert_eq!(home.post(&bob, &format!("/rooms/{}/read_markers", quote(&room)), json!({})), (200, json!({})));
}

#[test]
fn what_is_wrong_is_refused() {
    let (home, alice, bob, room) = together();
    let stranger = home.register("stranger");
    let said = home.say(&alice, &room, "hello", "1");
    let markers = format!("/rooms/{}/read_markers", quote(&room));
    refused(&read(&home, &stranger, &room, "m.read", &said, json!({})), 403, "M_FORBIDDEN");
    refused(&home.post(&stranger, &markers, json!({ "m.read": said })), 403, "M_FORBIDDEN");
    refused(&home.call(None, "POST", &markers, Some(json!({}))), 401, "M_MISSING_TOKEN");
    refused(&read(&home, &bob, &room, "m.seen", &said, json!({})), 400, "M_INVALID_PARAM");
    refused(&read(&home, &bob, &room, "m.read", "event", json!({})), 400, "M_INVALID_PARAM");
    refused(&home.post(&bob, &markers, json!({ "m.read": "event" })), 400, "M_INVALID_PARAM");
    refused(&home.post(&bob, &markers, json!({ "m.read": 1 })), 400, "M_BAD_JSON");
    for thread in [json!(""), json!(1), json!("thread")] {
        refused(&read(&home, &bob, &room, "m.read", &said, json!({ "thread_id": thread })), 400, "M_INVALID_PARAM");
    }
    refused(&read(&home, &bob, &room, "m.fully_read", &said, json!({ "thread_id": "main" })), 400, "M_INVALID_PARAM");
    assert_eq!(home.database.rows("SELECT * FROM receipts"), [[""; 0]; 0]);
}

#[test]
fn a_room_that_is_newly_joined_comes_with_its_receipts() {
    let (home, alice, bob, room) = together();
    let said = home.say(&alice, &room, "hello", "1");
    read(&home, &bob, &room, "m.read", &said, json!({}));
    read(&home, &bob, &room, "m.read.private", &said, json!({}));
    let carol = home.register("carol");
    let since = next(&home.sync(&carol, ""));
    home.post(&carol, &format!("/join/{}", quote(&room)), json!({}));
    let answer = home.sync(&carol, &since);
    assert_eq!(told(&answer, &room), one(&said, "m.read", &bob, ""));
    assert_eq!(home.sync(&carol, &next(&answer))["rooms"]["join"], json!({}));
}

/// Receipts of this many strangers.
fn crowd(home: &Home, room: &str, event: &str, size: usize) {
    let receipts = verge::platform::Statement::new(
        "INSERT INTO receipts (room_id, user_id, receipt_type, thread_id, event_id, ts, pos) \
         SELECT ?1, '@a' || value || ':x', 'm.read', '', ?2, 1, 1 FROM json_each(?3)",
        [room.into(), event.into(), json!((0..size).collect::<Vec<_>>()).to_string().into()],
    );
    home.world.run(home.server.store.batch(vec![receipts])).unwrap();
}

/// What others have read does not push out up to where one has read oneself.
#[test]
fn ones_own_receipts_are_told_whatever_others_have_read() {
    let (home, alice, bob, room) = together();
    let other = home.room(&alice, json!({ "preset": "public_chat" }));
    home.post(&bob, &format!("/join/{}", quote(&other)), json!({}));
    for room in [&room, &other] {
        let said = home.say(&alice, room, "hello", "1");
        read(&home, &bob, room, "m.read", &said, json!({}));
        crowd(&home, room, &said, 5_001);
    }
    let answer = home.sync(&bob, "");
    for room in [&room, &other] {
        let told = told(&answer, room);
        assert!(told.iter().any(|[_, _, user, _]| *user == bob.id), "{room}: {}", told.len());
    }
}

/// Receipts of one user in this many threads.
fn threads(home: &Home, room: &str, event: &str, count: usize) {
    let receipts = verge::platform::Statement::new(
        "INSERT INTO receipts (room_id, user_id, receipt_type, thread_id, event_id, ts, pos) \
         SELECT ?1, '@0:x', 'm.read', '$' || value, ?2, 1, 1 FROM json_each(?3)",
        [room.into(), event.into(), json!((0..count).collect::<Vec<_>>()).to_string().into()],
    );
    home.world.run(home.server.store.batch(vec![receipts])).unwrap();
}

/// Nor does what many have read in one room, or one user in many threads of it, push out what is told of the others.
#[test]
fn rooms_that_come_after_a_very_large_one_have_their_receipts() {
    let (home, alice, bob, _) = together();
    let mut rooms: Vec<String> = (0..4).map(|_| home.room(&alice, json!({ "preset": "public_chat" }))).collect();
    rooms.sort();
    let since = next(&home.sync(&bob, ""));
    for (at, room) in rooms.iter().enumerate() {
        home.post(&bob, &format!("/join/{}", quote(room)), json!({}));
        let said = home.say(&alice, room, "hello", "1");
        crowd(&home, room, &said, if at == 1 { 6_000 } else { 40 });
        if at == 1 {
            threads(&home, room, &said, 2_500);
        }
    }
    for query in ["", &since] {
        let answer = home.sync(&bob, query);
        let count = |room: &String| told(&answer, room).len();
        let expected = [40, 5_000 - 40, 40, 40];
        assert_eq!(rooms.iter().map(count).collect::<Vec<_>>(), expected, "{query}");
    }
}

#[test]
fn many_are_told_page_by_page_and_none_is_lost() {
    let (home, alice, bob, room) = together();
    let since = next(&home.sync(&alice, ""));
    let rows: Vec<Value> = (1..2_500).map(|n| json!(n)).collect();
    let far = verge::platform::Statement::new(
        "INSERT INTO receipts (room_id, user_id, receipt_type, thread_id, event_id, ts, pos) \
         SELECT '!elsewhere:x', '@u' || value || ':x', 'm.read', '', '$e', 1, value FROM json_each(?1)",
        [json!(rows).to_string().into()],
    );
    let advance = verge::platform::Statement::new("UPDATE streams SET position = 2500 WHERE name = 'receipts'", []);
    home.world.run(home.server.store.batch(vec![far, advance])).unwrap();
    let said = home.say(&alice, &room, "hello", "1");
    read(&home, &bob, &room, "m.read", &said, json!({}));
    let mut since = next(&home.sync(&alice, &since));
    let mut pages = 0;
    let found = loop {
        let answer = home.sync(&alice, &format!("{since}&timeout=1000"));
        since = next(&answer);
        pages += 1;
        let found = told(&answer, &room);
        if !found.is_empty() || pages == 5 {
            break found;
        }
    };
    assert_eq!(found, one(&said, "m.read", &bob, ""));
}

#[test]
fn they_go_to_the_other_server_but_for_the_private_ones() {
    let (home, alice, two, bob, room) = apart();
    let said = home.say(&alice, &room, "hello", "1");
    home.world.settle();
    let since = next(&home.sync(&alice, ""));
    let thread = json!({ "thread_id": "main" });
    for (kind, thread) in [("m.read.private", json!({})), ("m.read", json!({})), ("m.read", thread)] {
        assert_eq!(read(&two, &bob, &room, kind, &said, thread).0, 200);
    }
    two.world.settle();
    let mut all = one(&said, "m.read", &bob, "");
    all.extend(one(&said, "m.read", &bob, "main"));
    assert_eq!(told(&home.sync(&alice, &since), &room), all);
    assert_eq!(home.database.rows("SELECT count(*) FROM receipts"), [["2"]]);
}
