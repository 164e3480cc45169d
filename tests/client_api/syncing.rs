//! `/sync`.

use serde_json::{Value, json};

use verge::platform::Statement;

use crate::home::{Home, User, next, quote, refused};

fn bodies(room: &Value) -> Vec<&str> {
    let events = room["timeline"]["events"].as_array().unwrap();
    events.iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

pub fn state_of<'a>(room: &'a Value, kind: &str) -> Vec<&'a Value> {
    room["state"]["events"].as_array().unwrap().iter().filter(|event| event["type"] == kind).collect()
}

#[test]
fn a_first_sync_tells_everything_and_the_next_what_is_new() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "name": "Den", "preset": "public_chat" }));
    for i in 0..15 {
        home.say(&alice, &room, &format!("m{i}"), &format!("t{i}"));
    }
    let first = home.sync(&alice, "");
    let joined = &first["rooms"]["join"][&room];
    assert_eq!(bodies(joined), ["m5", "m6", "m7", "m8", "m9", "m10", "m11", "m12", "m13", "m14"]);
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(state_of(joined, "m.room.name")[0]["content"]["name"], "Den");
    assert_eq!(state_of(joined, "m.room.create").len(), 1);
    assert_eq!(joined["summary"]["m.joined_member_count"], 1);
    for member in ["account_data", "ephemeral", "unread_notifications", "state", "timeline"] {
        assert!(joined[member].is_object(), "{member}");
    }
    // What is older is behind prev_batch.
    let before = joined["timeline"]["prev_batch"].as_str().unwrap();
    let (_, page) = home.get(&alice, &format!("/rooms/{}/messages?dir=b&limit=2&from={before}", quote(&room)));
    assert_eq!(page["chunk"][0]["content"]["body"], "m4");

    let quiet = home.sync(&alice, &next(&first));
    assert_eq!(quiet["rooms"]["join"], json!({}));
    home.say(&alice, &room, "new", "t99");
    home.put(&alice, &format!("/rooms/{}/state/m.room.name", quote(&room)), json!({ "name": "Lair" }));
    home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
    let second = home.sync(&alice, &next(&quiet));
    let joined = &second["rooms"]["join"][&room];
    let events = joined["timeline"]["events"].as_array().unwrap();
    assert_eq!(events.len(), 3, "{joined}");
    assert_eq!(events[0]["unsigned"]["transaction_id"], "t99");
    assert!(events[0]["unsigned"]["age"].is_i64() && events[0].get("room_id").is_none());
    assert_eq!(events[1]["unsigned"]["prev_content"], json!({ "name": "Den" }));
    assert_eq!(events[2]["state_key"], json!(bob.id));
    assert_eq!(joined["timeline"]["limited"], false);
    assert_eq!(joined["state"]["events"], json!([]), "the timeline tells it");
    assert_eq!(joined["summary"]["m.joined_member_count"], 2);
    // Another device does not get this one's transaction IDs.
    let login = json!({ "type": "m.login.password", "user": "alice", "password": "alice's" });
    let laptop = User::of(&home.call(None, "POST", "/login", Some(login)).1);
    let theirs = home.sync(&laptop, &next(&quiet));
    assert!(theirs["rooms"]["join"][&room]["timeline"]["events"][0]["unsigned"].get("transaction_id").is_none());
}

#[test]
fn a_gap_is_told_with_the_state_that_changed_in_it() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let first = home.sync(&alice, "");
    let topic = |text: &str| {
        home.put(&alice, &format!("/rooms/{}/state/m.room.topic", quote(&room)), json!({ "topic": text }));
    };
    topic("one");
    home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
    for i in 0..12 {
        home.say(&alice, &room, &format!("m{i}"), &format!("t{i}"));
    }
    let filter = quote(r#"{"room":{"timeline":{"limit":4}}}"#);
    let second = home.sync(&alice, &format!("{}&filter={filter}", next(&first)));
    let joined = &second["rooms"]["join"][&room];
    assert_eq!(bodies(joined), ["m8", "m9", "m10", "m11"]);
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(state_of(joined, "m.room.topic")[0]["content"]["topic"], "one");
    assert_eq!(state_of(joined, "m.room.member")[0]["state_key"], json!(bob.id));
    assert_eq!(joined["state"]["events"].as_array().unwrap().len(), 2, "only what changed");
    // The state after the timeline, for clients that ask for it.
    topic("two");
    let third = home.sync(&alice, &format!("{}&use_state_after=true", next(&second)));
    let joined = &third["rooms"]["join"][&room];
    assert!(joined.get("state").is_none());
    assert_eq!(joined["state_after"]["events"][0]["content"]["topic"], "two");
    let full = home.sync(&alice, &format!("{}&full_state=true", next(&third)));
    assert_eq!(state_of(&full["rooms"]["join"][&room], "m.room.create").len(), 1);
}

#[test]
fn state_changes_that_a_filter_keeps_from_the_timeline_are_state() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let first = home.sync(&alice, "");
    home.put(&alice, &format!("/rooms/{}/state/m.room.topic", quote(&room)), json!({ "topic": "x" }));
    home.say(&alice, &room, "hi", "t1");
    let filter = quote(r#"{"room":{"timeline":{"types":["m.room.message"]}}}"#);
    let joined = &home.sync(&alice, &format!("{}&filter={filter}", next(&first)))["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["events"].as_array().unwrap().len(), 1);
    assert_eq!(state_of(joined, "m.room.topic").len(), 1);
    let other = quote(r#"{"room":{"not_rooms":["ROOM"]}}"#.replace("ROOM", &room).as_str());
    assert_eq!(home.sync(&alice, &format!("{}&filter={other}", next(&first)))["rooms"]["join"], json!({}));
}

#[test]
fn a_timeline_is_as_long_as_what_the_filter_lets_through() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let first = home.sync(&alice, "");
    let filter = quote(r#"{"room":{"timeline":{"limit":1,"types":["m.room.message"]}}}"#);
    let told = |since: &str| {
        let answer = home.sync(&alice, &format!("{since}&filter={filter}"));
        let den = &answer["rooms"]["join"][&room];
        let state: Vec<Value> = state_of(den, "m.room.topic").into_iter().cloned().collect();
        (bodies(den).join(" "), den["timeline"]["limited"].clone(), state.len(), next(&answer))
    };
    let path = |kind: &str| format!("/rooms/{}/{kind}", quote(&room));
    home.say(&alice, &room, "one", "t1");
    home.put(&alice, &path("state/m.room.topic"), json!({ "topic": "x" }));
    for number in 0..12 {
        assert_eq!(home.put(&alice, &path(&format!("send/x.other/{number}")), json!({})).0, 200);
    }
    let (bodies, limited, topics, since) = told(&next(&first));
    assert_eq!((&*bodies, limited, topics), ("one", json!(false), 1));
    assert_eq!(told("").0, "one", "at first, too");
    home.say(&alice, &room, "two", "t2");
    home.say(&alice, &room, "three", "t3");
    home.put(&alice, &path("send/x.other/last"), json!({}));
    let (bodies, limited, topics, _) = told(&since);
    assert_eq!((&*bodies, limited, topics), ("three", json!(true), 0));
}

#[test]
fn a_filter_that_lets_little_through_does_not_walk_through_a_long_room() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    home.say(&alice, &room, "one", "t1");
    let path = |kind: &str| format!("/rooms/{}/{kind}", quote(&room));
    let fill = |numbers: std::ops::Range<i32>| {
        for number in numbers {
            assert_eq!(home.put(&alice, &path(&format!("send/x.other/{number}")), json!({})).0, 200);
        }
    };
    let filter = quote(r#"{"room":{"timeline":{"types":["m.room.message"]}}}"#);
    let steps = |query: &str| {
        let before = home.database.steps.get();
        let answer = home.sync(&alice, query);
        (home.database.steps.get() - before, answer["rooms"]["join"][&room]["timeline"].clone())
    };
    // What the filter costs, when it is counted how much is not read.
    let sync = || {
        let ((without, _), (with, timeline)) = (steps(""), steps(&format!("filter={filter}")));
        (with.saturating_sub(without), timeline)
    };
    fill(0..490);
    let (_, timeline) = sync();
    assert_eq!((&timeline["limited"], &timeline["events"][0]["content"]["body"]), (&json!(false), &json!("one")));
    fill(490..510);
    let (small, timeline) = sync();
    assert_eq!((&timeline["limited"], &timeline["events"]), (&json!(true), &json!([])));
    // What was left out is behind prev_batch.
    let from = timeline["prev_batch"].as_str().unwrap();
    let only = quote(r#"{"types":["m.room.message"]}"#);
    let (_, page) = home.get(&alice, &path(&format!("messages?dir=b&from={from}&filter={only}")));
    assert_eq!(page["chunk"][0]["content"]["body"], "one");
    fill(510..900);
    let (large, _) = sync();
    assert!(large < small * 11 / 10, "{small} steps in a room of 517 events, {large} in one of 907");
}

#[test]
fn invites_joins_and_leaves() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let start = home.sync(&bob, "");
    let room = home.room(&alice, json!({ "name": "Den", "invite": [bob.id] }));
    home.say(&alice, &room, "before", "t0");
    let invited = home.sync(&bob, &next(&start));
    let events = invited["rooms"]["invite"][&room]["invite_state"]["events"].as_array().unwrap();
    let find = |kind: &str, key: &str| events.iter().find(|e| e["type"] == kind && e["state_key"] == key);
    assert_eq!(find("m.room.name", "").unwrap()["content"]["name"], "Den");
    let own = find("m.room.member", &bob.id).unwrap();
    assert_eq!((&own["content"]["membership"], &own["sender"]), (&json!("invite"), &json!(alice.id)));
    let inviter = find("m.room.member", &alice.id).expect("who invites");
    assert_eq!((&inviter["content"]["displayname"], &inviter["sender"]), (&json!("alice"), &json!(alice.id)));
    assert_eq!((&invited["rooms"]["join"], &invited["rooms"]["leave"]), (&json!({}), &json!({})));
    assert_eq!(home.sync(&bob, &next(&invited))["rooms"]["invite"], json!({}), "told once");

    home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
    home.say(&alice, &room, "hi bob", "t1");
    let joined = home.sync(&bob, &next(&invited));
    let den = &joined["rooms"]["join"][&room];
    assert_eq!(state_of(den, "m.room.create").len(), 1, "the whole state: {den}");
    let timeline = den["timeline"]["events"].as_array().unwrap();
    assert!(timeline.iter().any(|event| event["content"]["name"] == "Den"), "and what the timeline tells");
    assert!(bodies(den).ends_with(&["before", "hi bob"]), "{:?}", bodies(den));

    home.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({}));
    home.say(&alice, &room, "bob is gone", "t2");
    let left = home.sync(&bob, &next(&joined));
    let den = &left["rooms"]["leave"][&room];
    assert_eq!(bodies(den), [""; 0]);
    let last = den["timeline"]["events"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["content"]["membership"], &last["state_key"]), (&json!("leave"), &json!(bob.id)));
    assert_eq!(home.sync(&bob, &next(&left))["rooms"]["leave"], json!({}), "told once");
    assert_eq!(home.sync(&bob, "")["rooms"]["leave"], json!({}), "a first sync tells of no old leaves");
    let include = quote(r#"{"room":{"include_leave":true}}"#);
    assert!(home.sync(&bob, &format!("filter={include}"))["rooms"]["leave"][&room].is_object());
}

#[test]
fn a_new_profile_is_no_new_room() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let first = home.sync(&alice, "");
    home.put(&alice, &format!("/profile/{}/displayname", quote(&alice.id)), json!({ "displayname": "A" }));
    let second = home.sync(&alice, &next(&first));
    let joined = &second["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["events"].as_array().unwrap().len(), 1);
    assert_eq!(joined["state"]["events"], json!([]));
    assert_eq!(joined["timeline"]["events"][0]["unsigned"]["prev_content"]["displayname"], "alice");
}

#[test]
fn a_sync_waits_for_news_and_no_longer_than_asked() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let first = home.sync(&alice, "");
    let began = home.world.now_ms();
    let calls = home.database.calls.get();
    let quiet = home.sync(&alice, &format!("{}&timeout=5000", next(&first)));
    assert_eq!(home.world.now_ms() - began, 5000);
    assert_eq!(quiet["rooms"]["join"], json!({}));
    assert!(home.database.calls.get() - calls < 20, "{}", home.database.calls.get() - calls);
    // News that come while it waits end the wait.
    let request = http::Request::get(format!("/_matrix/client/v3/sync?{}&timeout=30000", next(&quiet)))
        .header("Authorization", format!("Bearer {}", alice.token))
        .body(bytes::Bytes::new())
        .unwrap();
    let send = http::Request::put(format!("/_matrix/client/v3/rooms/{}/send/m.room.message/t1", quote(&room)))
        .header("Authorization", format!("Bearer {}", alice.token))
        .body(bytes::Bytes::from_static(b"{\"body\":\"at last\"}"))
        .unwrap();
    let began = home.world.now_ms();
    let later = async {
        use verge::platform::Clock;
        home.world.sleep(3_000).await;
        home.server.handle(send).await
    };
    let (answer, _) = home.world.run(futures_util::future::join(home.server.handle(request), later));
    let answer: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(bodies(&answer["rooms"]["join"][&room]), ["at last"]);
    assert!(home.world.now_ms() - began <= 4_000, "{}", home.world.now_ms() - began);
}

#[test]
fn a_sync_of_new_messages_is_few_round_trips() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let first = home.sync(&alice, "");
    home.say(&alice, &room, "x", "t1");
    home.world.settle();
    let calls = home.database.calls.get();
    let second = home.sync(&alice, &next(&first));
    assert_eq!(home.database.calls.get() - calls, 3, "who asks, what is new, and what is not read");
    assert_eq!(bodies(&second["rooms"]["join"][&room]), ["x"]);
}

#[test]
fn account_data_is_synced() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let first = home.sync(&alice, "");
    home.put(&alice, &format!("/user/{}/account_data/m.direct", quote(&alice.id)), json!({ "a": 1 }));
    let tag = format!("/user/{}/rooms/{}/account_data/m.tag", quote(&alice.id), quote(&room));
    home.put(&alice, &tag, json!({ "b": 2 }));
    let second = home.sync(&alice, &next(&first));
    assert_eq!(second["account_data"]["events"], json!([{ "type": "m.direct", "content": { "a": 1 } }]));
    let events = &second["rooms"]["join"][&room]["account_data"]["events"];
    assert_eq!(*events, json!([{ "type": "m.tag", "content": { "b": 2 } }]));
    let third = home.sync(&alice, &next(&second));
    assert_eq!((&third["account_data"]["events"], &third["rooms"]["join"]), (&json!([]), &json!({})));
    let fresh = home.sync(&alice, "");
    let types: Vec<&Value> = fresh["account_data"]["events"].as_array().unwrap().iter().map(|e| &e["type"]).collect();
    assert_eq!(types, ["m.direct", "m.push_rules"]);
    assert_eq!(fresh["rooms"]["join"][&room]["account_data"]["events"].as_array().unwrap().len(), 1);
}

#[test]
fn what_a_sync_cannot_understand_it_refuses() {
    let home = Home::new();
    let alice = home.register("alice");
    let sync = |query: &str| home.get(&alice, &format!("/sync?{query}"));
    refused(&sync("since=nonsense"), 400, "M_INVALID_PARAM");
    refused(&sync("since=s72594_4483_1934"), 400, "M_INVALID_PARAM");
    refused(&sync("timeout=soon"), 400, "M_INVALID_PARAM");
    refused(&sync("full_state=maybe"), 400, "M_INVALID_PARAM");
    refused(&sync("filter=%7B"), 400, "M_NOT_JSON");
    refused(&sync("filter=none"), 400, "M_INVALID_PARAM");
    refused(&home.call(None, "GET", "/sync", None), 401, "M_MISSING_TOKEN");
}

#[test]
fn a_gap_in_a_room_of_much_state_is_told_exactly() {
    let home = Home::new();
    let alice = home.register("alice");
    let given: Vec<Value> = (0..95)
        .map(|i| json!({ "type": "org.example", "state_key": format!("k{i}"), "content": { "n": i } }))
        .collect();
    let room = home.room(&alice, json!({ "initial_state": given }));
    let put = |key: &str, n: i64| {
        let (status, answer) =
            home.put(&alice, &format!("/rooms/{}/state/org.example/{key}", quote(&room)), json!({ "n": n }));
        assert_eq!(status, 200, "{answer}");
    };
    (95..190).for_each(|i| put(&format!("k{i}"), i));
    let (_, whole) = home.get(&alice, &format!("/rooms/{}/state", quote(&room)));
    assert_eq!(whole.as_array().unwrap().len(), 190 + 6);
    let (_, one) = home.get(&alice, &format!("/rooms/{}/state/org.example/k123", quote(&room)));
    assert_eq!(one, json!({ "n": 123 }));
    let first = home.sync(&alice, "");
    let joined = &first["rooms"]["join"][&room];
    assert_eq!(joined["state"]["events"].as_array().unwrap().len() + 10, 190 + 6, "ten are in the timeline");

    put("k7", 1007);
    put("k150", 1150);
    (190..195).for_each(|i| put(&format!("k{i}"), i));
    for i in 0..3 {
        home.say(&alice, &room, "x", &format!("t{i}"));
    }
    let filter = quote(r#"{"room":{"timeline":{"limit":3}}}"#);
    let second = home.sync(&alice, &format!("{}&filter={filter}", next(&first)));
    let mut changed: Vec<i64> = state_of(&second["rooms"]["join"][&room], "org.example")
        .iter()
        .map(|event| event["content"]["n"].as_i64().unwrap())
        .collect();
    changed.sort_unstable();
    assert_eq!(changed, [190, 191, 192, 193, 194, 1007, 1150]);
    assert_eq!(second["rooms"]["join"][&room]["state"]["events"].as_array().unwrap().len(), 7);
}

#[test]
fn a_repeated_invite_is_told_again() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "invite": [bob.id] }));
    let first = home.sync(&bob, "");
    assert!(first["rooms"]["invite"][&room].is_object());
    let body = json!({ "user_id": bob.id, "reason": "please" });
    assert_eq!(home.post(&alice, &format!("/rooms/{}/invite", quote(&room)), body).0, 200);
    let second = home.sync(&bob, &next(&first));
    let events = second["rooms"]["invite"][&room]["invite_state"]["events"].as_array().unwrap();
    assert!(events.iter().any(|event| event["content"]["reason"] == "please"), "{second}");
    assert_eq!(home.sync(&bob, &next(&second))["rooms"]["invite"], json!({}));
}

/// Syncs until there is no more to come, and gives all answers.
fn in_parts(home: &Home, user: &User, since: &str) -> Vec<Value> {
    let mut answers: Vec<Value> = Vec::new();
    let mut query = since.to_owned();
    loop {
        let answer = home.sync(user, &query);
        assert!(answer.to_string().len() < 20_000_000, "an answer of {} bytes", answer.to_string().len());
        let next = answer["next_batch"].as_str().unwrap().to_owned();
        answers.push(answer);
        // Only a token that names a room says that there is more.
        if !next.contains("_m") {
            return answers;
        }
        assert!(answers.len() < 60, "no end in sight");
        query = format!("since={next}");
    }
}

#[test]
fn a_flood_of_invites_is_told_in_parts() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let before = home.sync(&bob, "");
    let name = "x".repeat(900_000);
    for number in 0..56 {
        let state = json!([{
            "type": "m.room.member", "state_key": bob.id, "sender": "@eve:evil.example",
            "content": { "membership": "invite", "displayname": name },
        }]);
        const INSERT: &str = "INSERT INTO local_memberships (user_id, room_id, membership, event_id, pos, invite_state) \
             SELECT ?1, ?2, 'invite', '$invite', position, ?3 FROM streams WHERE name = 'events'";
        let parameters = [bob.id.as_str().into(), format!("!{number}:evil.example").into(), state.to_string().into()];
        let statements = vec![
            Statement::new("UPDATE streams SET position = position + 1 WHERE name = 'events'", []),
            Statement::new(INSERT, parameters),
        ];
        home.world.run(home.server.store.batch(statements)).unwrap();
    }
    let room = home.room(&alice, json!({ "invite": [bob.id] }));
    for since in [String::new(), format!("since={}", before["next_batch"].as_str().unwrap())] {
        let answers = in_parts(&home, &bob, &since);
        let mut told: Vec<String> =
            answers.iter().flat_map(|answer| answer["rooms"]["invite"].as_object().unwrap().keys().cloned()).collect();
        told.sort();
        let mut expected: Vec<String> = (0..56).map(|number| format!("!{number}:evil.example")).collect();
        expected.push(room.clone());
        expected.sort();
        assert_eq!(told, expected);
        let last = answers.last().unwrap()["next_batch"].as_str().unwrap();
        assert_eq!(home.sync(&bob, &format!("since={last}"))["rooms"]["invite"], json!({}));
    }
}

#[test]
fn a_first_sync_of_large_rooms_is_told_in_parts() {
    let home = Home::new();
    let alice = home.register("alice");
    let rooms: Vec<String> = (0..18)
        .map(|_| {
            let room = home.room(&alice, json!({}));
            for number in 0..20 {
                let path = format!("/rooms/{}/state/x.large/{number}", quote(&room));
                assert_eq!(home.put(&alice, &path, json!({ "x": "x".repeat(60_000) })).0, 200);
            }
            home.say(&alice, &room, "before", "t1");
            room
        })
        .collect();
    let mut answers = Vec::new();
    let mut query = String::new();
    for part in 0.. {
        let answer = home.sync(&alice, &query);
        assert!(answer.to_string().len() < 20_000_000);
        let next = answer["next_batch"].as_str().unwrap().to_owned();
        answers.push(answer);
        if part == 0 {
            // In rooms that were told, and in rooms that were not.
            rooms.iter().for_each(|room| drop(home.say(&alice, room, "between", "t2")));
            let path = format!("/user/{}/rooms/{}/account_data/m.tag", quote(&alice.id), quote(&rooms[0]));
            assert_eq!(home.put(&alice, &path, json!({ "tags": {} })).0, 200);
        } else if !next.contains("_m") {
            answers.push(home.sync(&alice, &format!("since={next}")));
            break;
        }
        query = format!("since={next}");
    }
    assert!(answers.len() > 3, "in {} parts", answers.len());
    for room in &rooms {
        let told: Vec<&Value> =
            answers.iter().map(|answer| &answer["rooms"]["join"][room]).filter(|room| room.is_object()).collect();
        let bodies: Vec<&str> = told
            .iter()
            .flat_map(|room| room["timeline"]["events"].as_array().unwrap())
            .filter_map(|event| event["content"]["body"].as_str())
            .collect();
        assert_eq!(bodies, ["before", "between"], "each once");
        let states: usize = told
            .iter()
            .flat_map(|room| {
                let timeline = room["timeline"]["events"].as_array().unwrap();
                room["state"]["events"].as_array().unwrap().iter().chain(timeline)
            })
            .filter(|event| event["type"] == "x.large")
            .count();
        assert_eq!(states, 20, "the state is whole and told once");
    }
    let tags =
        answers.iter().filter(|answer| !answer["rooms"]["join"][&rooms[0]]["account_data"]["events"][0].is_null());
    // Of a room of the rest, which came with it already, once more: it is what it is now, not an event.
    assert!(tags.count() >= 1);
}

/// All answers of a sync from `since` on, until nothing is left to tell; each has at most so many bytes.
fn all_parts(home: &Home, user: &User, since: &str, filter: &str, most: usize) -> Vec<Value> {
    let mut answers: Vec<Value> = Vec::new();
    let mut since = since.to_owned();
    loop {
        let answer = home.sync(user, &format!("since={since}&filter={filter}"));
        let length = answer.to_string().len();
        assert!(length <= most, "an answer of {length} bytes");
        let next = answer["next_batch"].as_str().unwrap().to_owned();
        answers.push(answer);
        if next == since {
            return answers;
        }
        assert!(answers.len() < 50, "it goes on for ever");
        since = next;
    }
}

fn told<'a>(answers: &'a [Value], room: &'a str, part: &'a str) -> impl Iterator<Item = &'a Value> {
    let rooms = answers.iter().map(move |answer| &answer["rooms"]["join"][room]);
    rooms.filter_map(move |room| room[part]["events"].as_array()).flatten()
}

#[test]
fn a_state_without_end_is_told_in_parts() {
    let home = Home::new();
    let alice = home.register("alice");
    let rooms: Vec<String> = (0..3).map(|_| home.room(&alice, json!({}))).collect();
    let fill = |room: &str, numbers: std::ops::Range<usize>, letter: &str| {
        for number in numbers {
            let path = format!("/rooms/{}/state/x.large/{number}", quote(room));
            assert_eq!(home.put(&alice, &path, json!({ "x": letter.repeat(60_000) })).0, 200);
        }
    };
    fill(&rooms[1], 0..150, "a");
    let filter = quote(&json!({ "room": { "timeline": { "limit": 1 } } }).to_string());
    let first = all_parts(&home, &alice, "", &filter, 6_000_000);
    let check = |answers: &[Value], count: usize| {
        let mut keys: Vec<&str> = told(answers, &rooms[1], "state")
            .chain(told(answers, &rooms[1], "timeline"))
            .filter(|event| event["type"] == "x.large")
            .map(|event| event["state_key"].as_str().unwrap())
            .collect();
        keys.sort_unstable();
        assert_eq!(keys.len(), count);
        keys.dedup();
        assert_eq!(keys.len(), count, "each is told once");
    };
    check(&first, 150);
    for room in &rooms {
        let is_create = |event: &&Value| event["type"] == "m.room.create";
        assert_eq!(told(&first, room, "state").filter(is_create).count(), 1);
    }
    let since = first.last().unwrap()["next_batch"].as_str().unwrap();
    fill(&rooms[1], 20..120, "b");
    rooms.iter().for_each(|room| drop(home.say(&alice, room, "after", "t1")));
    let second = all_parts(&home, &alice, since, &filter, 6_000_000);
    check(&second, 100);
    for room in &rooms {
        let bodies: Vec<&Value> = told(&second, room, "timeline").map(|event| &event["content"]["body"]).collect();
        assert_eq!(bodies, ["after"]);
    }
}

/// The rooms have little state, so that nothing else ends an answer.
#[test]
fn a_first_sync_of_long_timelines_is_told_in_parts() {
    let home = Home::new();
    let alice = home.register("alice");
    let rooms: Vec<String> = (0..18).map(|_| home.room(&alice, json!({}))).collect();
    let long = "x".repeat(60_000);
    let bodies: Vec<String> = (0..10).map(|number| format!("{number} {long}")).collect();
    for room in &rooms {
        let say = |(number, body): (usize, &String)| home.say(&alice, room, body, &format!("t{number}"));
        bodies.iter().enumerate().for_each(|message| drop(say(message)));
    }
    let answers = all_parts(&home, &alice, "", "", 6_500_000);
    for room in &rooms {
        let told: Vec<&str> =
            told(&answers, room, "timeline").filter_map(|event| event["content"]["body"].as_str()).collect();
        assert!(told == bodies, "{} of {room}", told.len());
    }
}

#[test]
fn account_data_without_end_is_told_in_parts() {
    let home = Home::new();
    let alice = home.register("alice");
    let since = home.sync(&alice, "")["next_batch"].as_str().unwrap().to_owned();
    let room = home.room(&alice, json!({}));
    let put = |path: &str, number: usize| {
        let path = format!("/user/{}/{path}account_data/x.{number}", quote(&alice.id));
        home.put(&alice, &path, json!({ "x": "x".repeat(60_000) }))
    };
    for number in 0..70 {
        assert_eq!(put("", number).0, 200);
    }
    for since in ["", &since] {
        let answers = all_parts(&home, &alice, since, "", 3_500_000);
        let mut types: Vec<&str> = answers
            .iter()
            .flat_map(|answer| answer["account_data"]["events"].as_array().unwrap())
            .filter_map(|event| event["type"].as_str().filter(|kind| kind.starts_with("x.")))
            .collect();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), 70);
    }
    // Of a room it is told all at once to who is new in it.
    let in_room = format!("rooms/{}/", quote(&room));
    let taken = (0..100).take_while(|number| put(&in_room, *number).0 == 200).count();
    assert!((10..20).contains(&taken), "{taken}");
    refused(&put(&in_room, 99), 413, "M_TOO_LARGE");
    assert_eq!(put(&in_room, 0).0, 200);
}

#[test]
fn invites_to_rooms_that_we_are_in_are_told_in_parts() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let long = "x".repeat(60_000);
    for _ in 0..30 {
        let topic = json!([{ "type": "m.room.topic", "content": { "topic": long } }]);
        home.room(&alice, json!({ "name": long, "initial_state": topic, "invite": [bob.id] }));
    }
    let answers = all_parts(&home, &bob, "", "", 3_000_000);
    let invites: usize = answers.iter().map(|answer| answer["rooms"]["invite"].as_object().unwrap().len()).sum();
    assert_eq!(invites, 30);
}

#[test]
fn a_change_of_a_member_costs_the_same_in_a_large_room() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat", "name": "Hall" }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let change = |what: &str, user: &str| {
        let path = format!("/rooms/{}/{what}", quote(&room));
        assert_eq!(home.post(&alice, &path, json!({ "user_id": user })).0, 200);
    };
    // The cost of a sync that tells of one more invite, and what it says.
    let cost = |invited: &str| {
        let invited = home.register(invited);
        let since = home.sync(&bob, "")["next_batch"].as_str().unwrap().to_owned();
        change("invite", &invited.id);
        let before = home.database.steps.get();
        let answer = home.sync(&bob, &format!("since={since}"));
        let summary = answer["rooms"]["join"][&room]["summary"].clone();
        (home.database.steps.get() - before, summary)
    };
    let ban = |number: usize| change("ban", &format!("@guest{number}:elsewhere.test"));
    (0..30).for_each(ban);
    cost("carol");
    let (small, summary) = cost("dave");
    assert_eq!(summary, json!({ "m.joined_member_count": 2, "m.invited_member_count": 2 }));
    (30..400).for_each(ban);
    let (large, summary) = cost("erin");
    assert_eq!(summary, json!({ "m.joined_member_count": 2, "m.invited_member_count": 3 }));
    // A snapshot of more entries has a level more.
    assert!(large < small * 3 / 2, "{small} steps in a room of 34 members, {large} in one of 405");
}
