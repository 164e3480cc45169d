//! What users have not read: counts in syncs, and the list of notifications.

use serde_json::{Value, json};

use crate::{
    home::{Home, User, next, quote, refused},
    typing::{apart, together, types},
    visited::{Visited, visited},
};

fn send(home: &Home, user: &User, room: &str, kind: &str, content: Value, txn: &str) -> String {
    let (status, answer) = home.put(user, &format!("/rooms/{}/send/{kind}/{txn}", quote(room)), content);
    assert_eq!(status, 200, "{answer}");
    answer["event_id"].as_str().unwrap().to_owned()
}

fn read(home: &Home, user: &User, room: &str, kind: &str, event: &str, thread: Option<&str>) {
    let body = thread.map_or(json!({}), |thread| json!({ "thread_id": thread }));
    let path = format!("/rooms/{}/receipt/{kind}/{}", quote(room), quote(event));
    assert_eq!(home.post(user, &path, body).0, 200);
}

fn pair(counts: &Value) -> (i64, i64) {
    (counts["notification_count"].as_i64().unwrap(), counts["highlight_count"].as_i64().unwrap())
}

/// What a first sync counts: notifications and highlights.
fn counts(home: &Home, user: &User, room: &str) -> (i64, i64) {
    pair(&home.sync(user, "")["rooms"]["join"][room]["unread_notifications"])
}

fn by_thread(home: &Home, user: &User, room: &str) -> (i64, Vec<(String, i64)>) {
    let filter = quote(&json!({ "room": { "timeline": { "unread_thread_notifications": true } } }).to_string());
    let answer = home.sync(user, &format!("filter={filter}"));
    let room = &answer["rooms"]["join"][room];
    let threads = room.get("unread_thread_notifications").map(|threads| threads.as_object().unwrap());
    assert!(threads.is_none_or(|threads| !threads.is_empty()), "where nothing is unread nothing is said of threads");
    let threads = threads.into_iter().flatten().map(|(thread, counts)| (thread.clone(), pair(counts).0)).collect();
    (pair(&room["unread_notifications"]).0, threads)
}

fn rows(home: &Home) -> String {
    home.database.rows("SELECT count(*) FROM unread_counts")[0][0].clone()
}

#[test]
fn messages_of_others_count_until_they_are_read() {
    let (home, alice, bob, room) = together();
    let mut since = next(&home.sync(&bob, ""));
    let mut told = |user: &User| {
        let answer = home.sync(user, &since);
        since = next(&answer);
        pair(&answer["rooms"]["join"][&room]["unread_notifications"])
    };
    let said: Vec<String> = (0..3).map(|n| home.say(&alice, &room, "hello", &format!("a{n}"))).collect();
    assert_eq!(told(&bob), (3, 0), "with the events themselves");
    assert_eq!(counts(&home, &alice, &room), (0, 0), "one's own do not count");
    read(&home, &bob, &room, "m.read", &said[0], None);
    assert_eq!(told(&bob), (2, 0), "in the sync that tells of the receipt");
    read(&home, &bob, &room, "m.read.private", &said[1], None);
    assert_eq!(told(&bob), (1, 0));
    // Back is no way.
    read(&home, &bob, &room, "m.read", &said[1], None);
    assert_eq!(counts(&home, &bob, &room), (1, 0));
    // Whoever answers has read.
    home.say(&bob, &room, "hi", "b1");
    assert_eq!(counts(&home, &bob, &room), (0, 0));
    assert_eq!(counts(&home, &alice, &room), (1, 0));
    // Who comes later has nothing unread of what was before.
    let carol = home.register("carol");
    home.post(&carol, &format!("/join/{}", quote(&room)), json!({}));
    assert_eq!(counts(&home, &carol, &room), (0, 0));
    home.say(&alice, &room, "welcome", "a9");
    assert_eq!((counts(&home, &carol, &room), counts(&home, &bob, &room)), ((1, 0), (1, 0)));
}

#[test]
fn rules_decide_what_counts() {
    let (home, alice, bob, room) = together();
    let message = |more: Value| {
        let mut content = json!({ "msgtype": "m.text", "body": "hello" });
        content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        content
    };
    let mentions = |content: Value| message(json!({ "m.mentions": content }));
    let original = send(&home, &alice, &room, "m.room.message", message(json!({})), "1");
    assert_eq!(counts(&home, &bob, &room), (1, 0));
    send(&home, &alice, &room, "m.room.message", message(json!({ "msgtype": "m.notice" })), "2");
    let annotation = json!({ "rel_type": "m.annotation", "event_id": original, "key": "x" });
    send(&home, &alice, &room, "m.reaction", json!({ "m.relates_to": annotation }), "3");
    let replacement = json!({ "m.relates_to": { "rel_type": "m.replace", "event_id": original } });
    send(&home, &alice, &room, "m.room.message", message(replacement), "4");
    let state =
        |kind: &str, content: Value| home.put(&alice, &format!("/rooms/{}/state/{kind}/", quote(&room)), content).0;
    assert_eq!(state("m.room.topic", json!({ "topic": "x" })), 200);
    assert_eq!(counts(&home, &bob, &room), (1, 0), "notices, reactions, edits and state do not count");
    send(&home, &alice, &room, "m.room.message", mentions(json!({ "user_ids": [bob.id] })), "5");
    assert_eq!(counts(&home, &bob, &room), (2, 1));
    // Only who has the power mentions the room.
    let carol = home.register("carol");
    home.post(&carol, &format!("/join/{}", quote(&room)), json!({}));
    send(&home, &carol, &room, "m.room.message", mentions(json!({ "room": true })), "1");
    assert_eq!(counts(&home, &bob, &room), (3, 1));
    send(&home, &alice, &room, "m.room.message", mentions(json!({ "room": true })), "6");
    assert_eq!(counts(&home, &bob, &room), (4, 2));
    // A rule with the display name needs the state, too.
    let condition = json!({ "actions": [], "conditions": [{ "kind": "contains_display_name" }] });
    assert_eq!(home.put(&bob, "/pushrules/global/override/name", condition).0, 200);
    send(&home, &alice, &room, "m.room.message", message(json!({ "body": "so, Bob, what now?" })), "7");
    assert_eq!(counts(&home, &bob, &room), (4, 2));
    send(&home, &alice, &room, "m.room.message", message(json!({ "body": "bobsleigh" })), "8");
    assert_eq!(counts(&home, &bob, &room), (5, 2));
    // What is redacted counts no more, and a muted room not at all.
    let path = format!("/rooms/{}/redact/{}/9", quote(&room), quote(&original));
    assert_eq!(home.put(&alice, &path, json!({})).0, 200);
    assert_eq!(counts(&home, &bob, &room), (4, 2));
    assert_eq!(home.put(&bob, &format!("/pushrules/global/room/{}", quote(&room)), json!({ "actions": [] })).0, 200);
    assert_eq!(counts(&home, &bob, &room), (2, 2), "but for mentions, which are overrides");
}

/// The server sends a new name into all rooms of a user, who has looked at none of them for that.
#[test]
fn a_new_name_of_ones_own_has_read_nothing() {
    let (home, alice, bob, room) = together();
    let mention = json!({ "msgtype": "m.text", "body": "x", "m.mentions": { "user_ids": [bob.id] } });
    send(&home, &alice, &room, "m.room.message", mention, "1");
    let since = next(&home.sync(&bob, ""));
    assert_eq!(counts(&home, &bob, &room), (1, 1));
    let path = format!("/profile/{}/displayname", quote(&bob.id));
    assert_eq!(home.put(&bob, &path, json!({ "displayname": "Bobby" })).0, 200);
    home.world.settle();
    let told = home.sync(&bob, &since);
    let told = &told["rooms"]["join"][&room];
    assert_eq!(told["timeline"]["events"][0]["content"]["displayname"], "Bobby");
    assert_eq!(pair(&told["unread_notifications"]), (1, 1));
    assert_eq!(counts(&home, &bob, &room), (1, 1));
    // Whatever else they send, they send there.
    let path = format!("/rooms/{}/send/m.reaction/2", quote(&room));
    assert_eq!(home.put(&bob, &path, json!({})).0, 200);
    assert_eq!(counts(&home, &bob, &room), (0, 0));
}

/// Clients of before v1.7 name people in the text alone.
#[test]
fn a_name_in_the_text_highlights_where_nothing_says_who_is_mentioned() {
    let (home, alice, bob, room) = together();
    let path = format!("/profile/{}/displayname", quote(&bob.id));
    assert_eq!(home.put(&bob, &path, json!({ "displayname": "Bobby B" })).0, 200);
    let carol = home.register("carol");
    home.post(&carol, &format!("/join/{}", quote(&room)), json!({}));
    home.world.settle();
    let (mut said, mut highlighted) = (0, 0);
    for (user, body, highlights) in [
        (&alice, "thanks, bobby b!", true),
        (&alice, "Bobby Bee", false),
        (&alice, "Hello @bob:hs.test!", true),
        (&alice, "bobsleigh", false),
        (&alice, "look, @room", true),
        // Only who has the power calls the room.
        (&carol, "look, @room", false),
    ] {
        for mentions in [None, Some(json!({}))] {
            let mut content = json!({ "msgtype": "m.text", "body": body });
            let is_silent = mentions.is_none();
            mentions.into_iter().for_each(|mentions| content["m.mentions"] = mentions);
            send(&home, user, &room, "m.room.message", content, &format!("t{said}"));
            said += 1;
            highlighted += i64::from(highlights && is_silent);
            assert_eq!(counts(&home, &bob, &room), (said, highlighted), "{body}");
        }
    }
    let (_, listed) = home.get(&bob, "/notifications?only=highlight");
    assert_eq!(listed["notifications"].as_array().unwrap().len(), 3);
    for (kind, id) in [("content", ".m.rule.contains_user_name"), ("override", ".m.rule.contains_display_name")] {
        let path = format!("/pushrules/global/{kind}/{id}/enabled");
        assert_eq!(home.put(&bob, &path, json!({ "enabled": false })).0, 200);
        highlighted -= 1;
        assert_eq!(counts(&home, &bob, &room), (said, highlighted), "{id}");
    }
}

/// What rules ask of rooms is read for all of them together.
#[test]
fn names_in_texts_cost_one_call_for_all_rooms() {
    let (home, alice, bob, room) = together();
    let mut rooms = vec![room];
    for _ in 0..9 {
        rooms.push(home.room(&alice, json!({ "preset": "public_chat" })));
        assert_eq!(home.post(&bob, &format!("/join/{}", quote(rooms.last().unwrap())), json!({})).0, 200);
    }
    let cost = |path: &str| {
        home.world.settle();
        let before = home.database.calls.get();
        let (status, answer) = home.get(&bob, path);
        assert_eq!(status, 200, "{answer}");
        home.database.calls.get() - before
    };
    let mut said = 0;
    let mut costs = |content: Value| {
        let since = next(&home.sync(&bob, ""));
        for room in &rooms {
            said += 1;
            send(&home, &alice, room, "m.room.message", content.clone(), &format!("t{said}"));
        }
        (cost(&format!("/sync?{since}")), cost("/notifications?limit=10"))
    };
    let without = costs(json!({ "msgtype": "m.text", "body": "bob", "m.mentions": {} }));
    let with = costs(json!({ "msgtype": "m.text", "body": "bob" }));
    assert_eq!(with, (without.0 + 1, without.1 + 1));
    for room in &rooms {
        assert_eq!(counts(&home, &bob, room), (2, 1));
    }
}

#[test]
fn threads_count_by_themselves() {
    let (home, alice, bob, room) = together();
    let root = home.say(&alice, &room, "root", "1");
    let related = |kind: &str, to: &str| json!({ "msgtype": "m.text", "body": "x", "m.relates_to": { "rel_type": kind, "event_id": to } });
    let first = send(&home, &alice, &room, "m.room.message", related("m.thread", &root), "2");
    let second = send(&home, &alice, &room, "m.room.message", related("m.thread", &root), "3");
    // Related to one that is in the thread, by two steps; and to the root, which is in none.
    let step = send(&home, &alice, &room, "m.room.message", related("m.reference", &second), "4");
    let last = send(&home, &alice, &room, "m.room.message", related("m.reference", &step), "5");
    send(&home, &alice, &room, "m.room.message", related("m.reference", &root), "6");
    assert_eq!(by_thread(&home, &bob, &room), (2, vec![(root.clone(), 4)]));
    assert_eq!(counts(&home, &bob, &room), (6, 0), "who does not ask for threads is told the sum");
    read(&home, &bob, &room, "m.read", &first, Some(&root));
    assert_eq!(by_thread(&home, &bob, &room), (2, vec![(root.clone(), 3)]));
    read(&home, &bob, &room, "m.read", &root, Some("main"));
    assert_eq!(by_thread(&home, &bob, &room), (1, vec![(root.clone(), 3)]));
    // Whoever writes in a thread has read the thread alone.
    send(&home, &bob, &room, "m.room.message", related("m.thread", &root), "b");
    assert_eq!(by_thread(&home, &bob, &room), (1, vec![]));
    let more = send(&home, &alice, &room, "m.room.message", related("m.thread", &root), "7");
    assert_eq!(by_thread(&home, &bob, &room), (1, vec![(root, 1)]));
    read(&home, &bob, &room, "m.read", &more, None);
    assert_eq!(by_thread(&home, &bob, &room), (0, vec![]));
    assert!(!last.is_empty());
    // What others put there as a relation counts, whatever it is.
    for (txn, relation) in
        [json!(1), json!({ "rel_type": "m.thread", "event_id": 5 }), json!({ "rel_type": [], "event_id": {} })]
            .into_iter()
            .enumerate()
    {
        let content = json!({ "msgtype": "m.text", "body": "x", "m.relates_to": relation });
        let path = format!("/rooms/{}/send/m.room.message/odd{txn}", quote(&room));
        home.put(&alice, &path, content);
    }
    assert_eq!(home.get(&bob, "/sync").0, 200);
}

/// Clients take all threads of a room for read that a sync tells of without a word on them.
#[test]
fn what_is_unread_is_told_of_whenever_the_room_is() {
    let (home, alice, bob, room) = together();
    let root = home.say(&alice, &room, "root", "1");
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let content = json!({ "msgtype": "m.text", "body": "x", "m.relates_to": relation });
    let reply = send(&home, &alice, &room, "m.room.message", content, "2");
    for threads in [true, false] {
        let filter = json!({ "room": { "timeline": { "unread_thread_notifications": threads } } });
        let filter = quote(&filter.to_string());
        let since = std::cell::RefCell::new(next(&home.sync(&bob, "")));
        let told = || {
            let answer = home.sync(&bob, &format!("{}&filter={filter}", since.borrow()));
            since.replace(next(&answer));
            let room = &answer["rooms"]["join"][&room];
            assert_eq!(room["timeline"]["events"], json!([]), "nothing else has happened: {answer}");
            (pair(&room["unread_notifications"]).0, room["unread_thread_notifications"].clone())
        };
        let expected = match threads {
            true => (1, json!({ &root: { "notification_count": 1, "highlight_count": 0 } })),
            false => (2, Value::Null),
        };
        types(&home, &alice, &room, json!({ "typing": true }));
        assert_eq!(told(), expected);
        types(&home, &alice, &room, json!({ "typing": false }));
        assert_eq!(told(), expected);
        read(&home, &alice, &room, "m.read", if threads { &root } else { &reply }, None);
        assert_eq!(told(), expected);
        let tag = format!("/user/{}/rooms/{}/tags/u.{threads}", quote(&bob.id), quote(&room));
        assert_eq!(home.put(&bob, &tag, json!({})).0, 200);
        assert_eq!(told(), expected);
    }
}

/// What was counted in steps is what is counted at once, whatever happened; and rows are written now and then alone.
#[test]
fn counting_in_steps_is_counting_at_once() {
    let (home, alice, bob, room) = together();
    let mut seed = 5_u32;
    let mut dice = |sides: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % sides
    };
    let mut said: Vec<String> = Vec::new();
    let (mut base, mut read_round) = (0, 0);
    for round in 0..60 {
        for n in 0..dice(30) {
            let txn = format!("r{round}n{n}");
            let mut content = json!({ "msgtype": "m.text", "body": "x" });
            // What is in a thread begins none.
            if dice(3) == 0 && said.len() >= 3 {
                let root = &said[dice(3)];
                content["m.relates_to"] = json!({ "rel_type": "m.thread", "event_id": root });
            }
            let user = if dice(12) == 0 { &bob } else { &alice };
            said.push(send(&home, user, &room, "m.room.message", content, &txn));
        }
        if dice(2) == 0 && said.len() > 10 {
            let event = said[said.len() - 1 - dice(10)].clone();
            let thread = [None, Some("main"), Some(said[dice(3)].as_str())][dice(3)];
            read(&home, &bob, &room, ["m.read", "m.read.private"][dice(2)], &event, thread);
        }
        if dice(6) == 0 && said.len() > 10 {
            let event = &said[said.len() - 1 - dice(5)];
            home.put(&alice, &format!("/rooms/{}/redact/{}/x{round}", quote(&room), quote(event)), json!({}));
        }
        let stepwise = by_thread(&home, &bob, &room);
        let remove = verge::platform::Statement::new("DELETE FROM unread_counts", []);
        // Redactions are events, too.
        if said.len() - base + round - read_round < 90 {
            let kept = home.database.rows("SELECT user_id, room_id, receipts_pos, upto, counts FROM unread_counts");
            home.world.run(home.server.store.query(remove)).unwrap();
            assert_eq!(by_thread(&home, &bob, &room), stepwise, "round {round}");
            home.world
                .run(home.server.store.query(verge::platform::Statement::new("DELETE FROM unread_counts", [])))
                .unwrap();
            for row in kept {
                let insert = "INSERT INTO unread_counts (user_id, room_id, receipts_pos, upto, counts) VALUES (?1, ?2, ?3, ?4, ?5)";
                let numbers = [row[2].parse::<i64>().unwrap(), row[3].parse().unwrap()];
                let [user, room, text] = [&row[0], &row[1], &row[4]].map(|text| text.as_str().into());
                let row = [user, room, numbers[0].into(), numbers[1].into(), text];
                home.world.run(home.server.store.query(verge::platform::Statement::new(insert, row))).unwrap();
            }
        } else {
            (base, read_round) = (said.len(), round);
            let last = said.last().unwrap().clone();
            read(&home, &bob, &room, "m.read", &last, None);
        }
    }
}

#[test]
fn counting_costs_rows_now_and_then_alone() {
    let (home, alice, bob, room) = together();
    let mut since = next(&home.sync(&bob, ""));
    for n in 0..19 {
        home.say(&alice, &room, "x", &format!("a{n}"));
        since = next(&home.sync(&bob, &since));
    }
    assert_eq!(rows(&home), "0", "messages and syncs write nothing");
    for n in 0..131 {
        home.say(&alice, &room, "x", &format!("b{n}"));
        if n % 10 == 0 {
            since = next(&home.sync(&bob, &since));
        }
    }
    assert_eq!(rows(&home), "1");
    assert_eq!(counts(&home, &bob, &room), (150, 0), "more than are read at once, as they were counted on the way");
    // Nobody who does not sync costs anything.
    assert_eq!(home.database.rows("SELECT DISTINCT user_id FROM unread_counts"), [[bob.id.clone()]]);
    let remove = verge::platform::Statement::new("DELETE FROM unread_counts", []);
    home.world.run(home.server.store.query(remove)).unwrap();
    assert_eq!(counts(&home, &bob, &room), (100, 0), "who counts at once counts the newest");
    // Who leaves and comes back begins anew.
    assert_eq!(home.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    assert_eq!(counts(&home, &bob, &room), (0, 0));
}

#[test]
fn messages_of_another_server_count_too() {
    let (home, alice, two, bob, room) = apart();
    home.say(&alice, &room, "hello", "1");
    home.world.settle();
    assert_eq!(counts(&two, &bob, &room), (1, 0));
}

/// What an encrypted message says nobody but its readers knows: each counts, as the default rules have it, here and on another
/// server, until it is read; what is in a thread counts there.
#[test]
fn encrypted_messages_count() {
    let (home, alice, two, bob, room) = apart();
    let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    let path = format!("/rooms/{}/state/m.room.encryption", quote(&room));
    assert_eq!(home.put(&alice, &path, encryption).0, 200);
    let carol = home.register("carol");
    assert_eq!(home.post(&carol, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let secret = |more: Value| {
        let mut content = json!({ "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "session_id": "s" });
        content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        content
    };
    let root = send(&home, &alice, &room, "m.room.encrypted", secret(json!({})), "1");
    send(&home, &alice, &room, "m.room.encrypted", secret(json!({})), "2");
    let relation = json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": root } });
    send(&home, &alice, &room, "m.room.encrypted", secret(relation), "3");
    home.world.settle();
    for (home, user) in [(&home, &carol), (&two, &bob)] {
        assert_eq!(counts(home, user, &room), (3, 0));
        assert_eq!(by_thread(home, user, &room), (2, vec![(root.clone(), 1)]));
        read(home, user, &room, "m.read", &root, Some("main"));
        assert_eq!(by_thread(home, user, &room), (1, vec![(root.clone(), 1)]));
    }
    assert_eq!(counts(&home, &alice, &room), (0, 0));
}

#[test]
fn notifications_are_listed_over_all_rooms() {
    let (home, alice, bob, room) = together();
    let other = home.room(&alice, json!({ "preset": "public_chat" }));
    home.say(&alice, &other, "before bob", "0");
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&other)), json!({})).0, 200);
    let mut said: Vec<(String, String)> = Vec::new();
    for n in 0..6 {
        let room = if n % 2 == 0 { &room } else { &other };
        let mut content = json!({ "msgtype": "m.text", "body": n.to_string() });
        if n == 3 {
            content["m.mentions"] = json!({ "user_ids": [bob.id] });
        }
        said.push((room.clone(), send(&home, &alice, room, "m.room.message", content, &format!("n{n}"))));
        home.say(&bob, room, "own", &format!("o{n}"));
    }
    said.reverse();
    let listed = |query: &str| {
        let (status, answer) = home.get(&bob, &format!("/notifications{query}"));
        assert_eq!(status, 200, "{answer}");
        let list = answer["notifications"].as_array().unwrap().iter();
        let list: Vec<(String, String)> = list
            .map(|one| {
                assert!(
                    one["ts"].is_i64() && one["read"].is_boolean() && one["event"].get("room_id").is_none(),
                    "{one}"
                );
                assert_eq!(one["actions"][0], "notify");
                (one["room_id"].as_str().unwrap().to_owned(), one["event"]["event_id"].as_str().unwrap().to_owned())
            })
            .collect();
        (list, answer["next_token"].as_str().map(str::to_owned))
    };
    assert_eq!(listed(""), (said.clone(), None));
    assert_eq!(listed("?only=highlight"), (vec![said[2].clone()], None));
    let (first, token) = listed("?limit=4");
    let (second, end) = listed(&format!("?limit=4&from={}", token.unwrap()));
    assert_eq!((first.as_slice(), second.as_slice(), end), (&said[..4], &said[4..], None));
    // What is read.
    let read_of = || {
        let (_, answer) = home.get(&bob, "/notifications");
        let list = answer["notifications"].as_array().unwrap().iter();
        list.map(|one| one["read"].as_bool().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(read_of(), [false; 6]);
    let (room, event) = &said[3];
    read(&home, &bob, room, "m.read.private", event, None);
    assert_eq!(read_of(), [false, false, false, true, false, true]);
    // Nobody else's, and none of rooms that were left.
    assert_eq!(home.post(&bob, &format!("/rooms/{}/leave", quote(&other)), json!({})).0, 200);
    assert_eq!(listed("").0.len(), 3);
    refused(&home.call(None, "GET", "/notifications", None), 401, "M_MISSING_TOKEN");
    for query in ["limit=x", "from=x", "limit=-1"] {
        refused(&home.get(&bob, &format!("/notifications?{query}")), 400, "M_INVALID_PARAM");
    }
    let stranger = home.register("stranger");
    assert_eq!(home.get(&stranger, "/notifications"), (200, json!({ "notifications": [] })));
}

/// What is older than the user's join in one room ends that room's list and no other's.
#[test]
fn notifications_go_on_beyond_a_join() {
    let (home, alice, bob, room) = together();
    let mut said: Vec<String> = (0..70).map(|n| home.say(&alice, &room, "x", &format!("a{n}"))).collect();
    let other = home.room(&alice, json!({ "preset": "public_chat" }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&other)), json!({})).0, 200);
    said.extend((0..70).map(|n| home.say(&alice, &other, "x", &format!("b{n}"))));
    said.reverse();
    for limit in [20, 100] {
        let (mut listed, mut from) = (Vec::new(), String::new());
        loop {
            let (status, answer) = home.get(&bob, &format!("/notifications?limit={limit}{from}"));
            assert_eq!(status, 200, "{answer}");
            let list = answer["notifications"].as_array().unwrap().iter();
            listed.extend(list.map(|one| one["event"]["event_id"].as_str().unwrap().to_owned()));
            let Some(token) = answer["next_token"].as_str() else { break };
            from = format!("&from={token}");
        }
        assert!(listed == said, "{limit} at once: {} of {}", listed.len(), said.len());
    }
}

/// What comes late is new here, however deep in the room it says it is.
#[test]
fn what_came_late_can_be_read() {
    for version in ["10", "12"] {
        let Visited { home, alice, room, peer, bob, mut theirs, server } = visited(version);
        let late = theirs.say(&peer, &bob, "I was cut off");
        let ours: Vec<String> = (0..20).map(|n| home.say(&alice, &room, "hello?", &format!("t{n}"))).collect();
        read(&home, &alice, &room, "m.read", &ours[19], None);
        assert_eq!(peer.send(&server, "1", &[late.1]).0, 200);
        assert_eq!(counts(&home, &alice, &room), (1, 0), "{version}");
        read(&home, &alice, &room, "m.read", &late.0, None);
        assert_eq!(counts(&home, &alice, &room), (0, 0), "{version}");
        // Back is still no way.
        read(&home, &alice, &room, "m.read", &ours[19], None);
        assert_eq!(counts(&home, &alice, &room), (0, 0), "{version}");
    }
}

/// A thread is known by its replies, too: other servers may have begun it before our users came.
#[test]
fn a_thread_whose_root_is_not_held_can_be_read() {
    for version in ["10", "12"] {
        let visited = visited(version);
        let Visited { home, alice, room, peer, bob, theirs, .. } = &visited;
        let root = format!("${}", "r".repeat(43));
        let relation = json!({ "rel_type": "m.thread", "event_id": root });
        let content = json!({ "msgtype": "m.text", "body": "x", "m.relates_to": relation });
        let fields = json!({ "type": "m.room.message", "content": content });
        let (reply, pdu) = peer.sign(version, theirs.draft(home.world.now_ms(), bob, fields));
        visited.send("1", &[pdu]);
        assert_eq!(by_thread(home, alice, room), (0, vec![(root.clone(), 1)]), "{version}");
        read(home, alice, room, "m.read", &reply, Some(&root));
        assert_eq!(by_thread(home, alice, room), (0, vec![]), "{version}");
        // Of what nobody has written in nothing is kept.
        read(home, alice, room, "m.read", &reply, Some(&format!("${}", "o".repeat(43))));
        assert_eq!(home.database.rows("SELECT thread_id FROM receipts"), [[root]], "{version}");
    }
}
