//! Creating rooms, sending to them, reading them.

use serde_json::{Value, json};

use crate::home::{Home, User, quote, refused};

fn state(home: &Home, user: &User, room: &str, kind: &str, key: &str) -> Value {
    let (status, content) = home.get(user, &format!("/rooms/{}/state/{kind}/{}", quote(room), quote(key)));
    assert_eq!(status, 200, "{content}");
    content
}

fn types(events: &Value) -> Vec<&str> {
    events.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect()
}

#[test]
fn a_room_is_created_with_all_that_was_asked_for() {
    for version in ["10", "11", "12"] {
        let home = Home::new();
        let (alice, bob) = (home.register("alice"), home.register("bob"));
        let room = home.room(
            &alice,
            json!({
                "room_version": version, "preset": "public_chat", "visibility": "public", "room_alias_name": "pub",
                "name": "The Pub", "topic": "Beer", "invite": [bob.id], "creation_content": { "m.federate": false },
                "power_level_content_override": { "events_default": 10 },
                "initial_state": [
                    { "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" } },
                    { "type": "m.room.name", "content": { "name": "overridden" } },
                    { "type": "org.example.extra", "state_key": "k", "content": { "x": 1 } },
                ],
            }),
        );
        let state = |kind: &str, key: &str| state(&home, &alice, &room, kind, key);
        let create = state("m.room.create", "");
        assert_eq!((create["room_version"].as_str(), &create["m.federate"]), (Some(version), &json!(false)));
        assert_eq!(create.get("creator").is_some(), version == "10");
        assert_eq!(state("m.room.name", ""), json!({ "name": "The Pub" }));
        assert_eq!(state("m.room.topic", "")["topic"], "Beer");
        assert_eq!(state("m.room.join_rules", ""), json!({ "join_rule": "public" }));
        assert_eq!(state("m.room.guest_access", ""), json!({ "guest_access": "forbidden" }));
        assert_eq!(state("m.room.history_visibility", ""), json!({ "history_visibility": "world_readable" }));
        assert_eq!(state("m.room.canonical_alias", ""), json!({ "alias": "#pub:hs.test" }));
        assert_eq!(state("org.example.extra", "k"), json!({ "x": 1 }));
        assert_eq!(state("m.room.member", &bob.id)["membership"], "invite");
        let levels = state("m.room.power_levels", "");
        assert_eq!(levels["events_default"], 10);
        assert_eq!(levels["users"].get(&alice.id).is_some(), version != "12", "creators of 12 must not be named");
        let tombstone = levels["events"]["m.room.tombstone"].as_i64().unwrap();
        assert!(version != "12" || tombstone > levels["state_default"].as_i64().unwrap());
        let (_, directory) = home.call(None, "GET", "/directory/room/%23pub%3Ahs.test", None);
        assert_eq!(directory, json!({ "room_id": room, "servers": ["hs.test"] }));
        let (_, visibility) = home.call(None, "GET", &format!("/directory/list/room/{}", quote(&room)), None);
        assert_eq!(visibility, json!({ "visibility": "public" }));
        // In the order of the spec.
        let (_, page) = home.get(&alice, &format!("/rooms/{}/messages?dir=f&limit=50", quote(&room)));
        let order = types(&page["chunk"]);
        let expected = [
            "m.room.create",
            "m.room.member",
            "m.room.power_levels",
            "m.room.canonical_alias",
            "m.room.join_rules",
            "m.room.guest_access",
            "m.room.history_visibility",
            "org.example.extra",
            "m.room.name",
            "m.room.topic",
            "m.room.member",
        ];
        assert_eq!(order, expected);
    }
}

#[test]
fn presets_differ() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let private = home.room(&alice, json!({}));
    assert_eq!(state(&home, &alice, &private, "m.room.join_rules", ""), json!({ "join_rule": "invite" }));
    assert_eq!(state(&home, &alice, &private, "m.room.guest_access", ""), json!({ "guest_access": "can_join" }));
    let trusted =
        json!({ "preset": "trusted_private_chat", "invite": [bob.id], "is_direct": true, "room_version": "11" });
    let trusted = home.room(&alice, trusted);
    assert_eq!(state(&home, &alice, &trusted, "m.room.power_levels", "")["users"][&bob.id], 100);
    assert_eq!(state(&home, &alice, &trusted, "m.room.member", &bob.id)["is_direct"], true);
    let trusted = home.room(&alice, json!({ "preset": "trusted_private_chat", "invite": [bob.id] }));
    assert_eq!(state(&home, &alice, &trusted, "m.room.create", "")["additional_creators"], json!([bob.id]));
}

#[test]
fn rooms_that_cannot_be_are_refused() {
    let home = Home::new();
    let alice = home.register("alice");
    let create = |body: Value| home.post(&alice, "/createRoom", body);
    refused(&create(json!({ "room_version": "99" })), 400, "M_UNSUPPORTED_ROOM_VERSION");
    refused(&create(json!({ "preset": "castle" })), 400, "M_INVALID_PARAM");
    refused(&create(json!({ "invite": ["bob"] })), 400, "M_INVALID_PARAM");
    refused(&create(json!({ "room_alias_name": "a:b" })), 400, "M_INVALID_PARAM");
    let no_power = json!({ "power_level_content_override": { "users": {} }, "name": "x", "room_version": "11" });
    refused(&create(no_power), 400, "M_INVALID_ROOM_STATE");
    home.room(&alice, json!({ "room_alias_name": "mine" }));
    refused(&create(json!({ "room_alias_name": "mine" })), 400, "M_ROOM_IN_USE");
    refused(&home.call(None, "POST", "/createRoom", Some(json!({}))), 401, "M_MISSING_TOKEN");
}

#[test]
fn a_repeated_send_makes_one_event() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let first = home.say(&alice, &room, "hello", "t1");
    let calls = home.database.calls.get();
    assert_eq!(home.say(&alice, &room, "hello", "t1"), first);
    assert_eq!(home.database.calls.get() - calls, 1, "a repetition is found with the token");
    assert_ne!(home.say(&alice, &room, "hello", "t2"), first);
    // The ID is unique for the endpoint and the device.
    let (_, other) = home.put(&alice, &format!("/rooms/{}/send/org.example/t1", quote(&room)), json!({}));
    assert_ne!(other["event_id"], json!(first));
    let body = json!({ "type": "m.login.password", "user": "alice", "password": "alice's" });
    let laptop = User::of(&home.call(None, "POST", "/login", Some(body)).1);
    assert_ne!(home.say(&laptop, &room, "hello", "t1"), first);
    assert_eq!(home.database.rows("SELECT count(*) FROM events WHERE event_type = 'm.room.message'"), [["3"]]);
}

#[test]
fn the_same_send_twice_at_once_makes_one_event() {
    let home = Home::new();
    home.world.interleave();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    for round in 0..20 {
        let request = || {
            http::Request::put(format!("/_matrix/client/v3/rooms/{}/send/m.room.message/r{round}", quote(&room)))
                .header("Authorization", format!("Bearer {}", alice.token))
                .body(bytes::Bytes::from_static(b"{\"body\":\"x\"}"))
                .unwrap()
        };
        let both = futures_util::future::join(home.server.handle(request()), home.server.handle(request()));
        let (one, other) = home.world.run(both);
        assert_eq!((one.status().as_u16(), one.body()), (200, other.body()));
    }
    assert_eq!(home.database.rows("SELECT count(*) FROM events WHERE event_type = 'm.room.message'"), [["20"]]);
}

#[test]
fn a_send_is_few_round_trips() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    home.say(&alice, &room, "warm", "t0");
    home.world.settle();
    let calls = home.database.calls.get();
    home.say(&alice, &room, "hello", "t1");
    assert!(home.database.calls.get() - calls <= 4, "{}", home.database.calls.get() - calls);
}

#[test]
fn only_who_may_sends() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let path = |what: &str| format!("/rooms/{}/{what}", quote(&room));
    refused(&home.put(&bob, &path("send/m.room.message/1"), json!({})), 403, "M_FORBIDDEN");
    refused(&home.put(&bob, "/rooms/%21nowhere%3Ahs.test/send/m.room.message/1", json!({})), 403, "M_FORBIDDEN");
    refused(&home.put(&bob, "/rooms/nonsense/send/m.room.message/1", json!({})), 400, "M_INVALID_PARAM");
    assert_eq!(home.post(&bob, &path("join"), json!({})).0, 200);
    assert_eq!(home.put(&bob, &path("send/m.room.message/1"), json!({})).0, 200);
    refused(&home.put(&bob, &path("state/m.room.name"), json!({ "name": "x" })), 403, "M_FORBIDDEN");
    refused(&home.put(&alice, &path("send/m.room.message/2"), json!({ "f": 1.5 })), 400, "M_BAD_JSON");
    let long = json!({ "body": "x".repeat(70_000) });
    refused(&home.put(&alice, &path("send/m.room.message/3"), long), 413, "M_TOO_LARGE");
    let long_type = format!("send/{}/4", "t".repeat(300));
    let (status, answer) = home.put(&alice, &path(&long_type), json!({}));
    assert!(status == 413 || status == 400, "{status} {answer}");
}

#[test]
fn state_is_put_and_read_with_any_key() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let path = |what: &str| format!("/rooms/{}/state{what}", quote(&room));
    for (put, get, content) in [
        ("/m.room.name", "/m.room.name/", json!({ "name": "a" })),
        ("/m.room.name/", "/m.room.name", json!({ "name": "b" })),
        ("/org.example/a%2Fb%20%3F", "/org.example/a%2Fb%20%3F", json!({ "c": [1, { "d": null }] })),
    ] {
        let (status, answer) = home.put(&alice, &path(put), content.clone());
        assert_eq!(status, 200, "{answer}");
        assert_eq!(home.get(&alice, &path(get)), (200, content.clone()));
        let (_, event) = home.get(&alice, &format!("{}?format=event", path(get)));
        assert_eq!((&event["content"], &event["event_id"]), (&content, &answer["event_id"]));
        assert_eq!((&event["room_id"], &event["sender"]), (&json!(room), &json!(alice.id)));
    }
    refused(&home.get(&alice, &path("/org.example/none")), 404, "M_NOT_FOUND");
    let (_, all) = home.get(&alice, &path(""));
    assert_eq!(all.as_array().unwrap().len(), 8, "{all}");
    for event in all.as_array().unwrap() {
        for forbidden in ["auth_events", "prev_events", "hashes", "signatures", "depth"] {
            assert!(event.get(forbidden).is_none(), "clients see no {forbidden}");
        }
    }
    let bob = home.register("bob");
    refused(&home.get(&bob, &path("")), 403, "M_FORBIDDEN");
    refused(&home.get(&bob, &path("/m.room.name")), 403, "M_FORBIDDEN");
}

#[test]
fn a_canonical_alias_must_stand_for_the_room() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    home.room(&alice, json!({ "room_alias_name": "other" }));
    let path = format!("/rooms/{}/state/m.room.canonical_alias", quote(&room));
    refused(&home.put(&alice, &path, json!({ "alias": "#none:hs.test" })), 400, "M_BAD_ALIAS");
    refused(&home.put(&alice, &path, json!({ "alt_aliases": ["#other:hs.test"] })), 400, "M_BAD_ALIAS");
    refused(&home.put(&alice, &path, json!({ "alias": "nonsense" })), 400, "M_INVALID_PARAM");
    assert_eq!(home.put(&alice, "/directory/room/%23good%3Ahs.test", json!({ "room_id": room })).0, 200);
    assert_eq!(home.put(&alice, &path, json!({ "alias": "#good:hs.test" })).0, 200);
    assert_eq!(home.put(&alice, &path, json!({})).0, 200);
}

#[test]
fn what_a_canonical_alias_event_names_may_stay_though_the_alias_is_gone() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let alias = |name: &str| format!("/directory/room/{}", quote(&format!("#{name}:hs.test")));
    let path = format!("/rooms/{}/state/m.room.canonical_alias", quote(&room));
    for name in ["first", "second", "third"] {
        assert_eq!(home.put(&bob, &alias(name), json!({ "room_id": room })).0, 200);
    }
    let named = json!({ "alias": "#first:hs.test", "alt_aliases": ["#second:hs.test"] });
    assert_eq!(home.put(&alice, &path, named).0, 200);
    // He may not change the event that names them.
    for name in ["first", "second"] {
        assert_eq!(home.call(Some(&bob.token), "DELETE", &alias(name), None).0, 200);
    }
    let more = json!({ "alias": "#first:hs.test", "alt_aliases": ["#second:hs.test", "#third:hs.test"] });
    let (status, answer) = home.put(&alice, &path, more);
    assert_eq!(status, 200, "{answer}");
    refused(&home.put(&alice, &path, json!({ "alias": "#none:hs.test" })), 400, "M_BAD_ALIAS");
    assert_eq!(home.put(&alice, &path, json!({ "alt_aliases": ["#first:hs.test"] })).0, 200);
    refused(&home.put(&alice, &path, json!({ "alias": "#second:hs.test" })), 400, "M_BAD_ALIAS");
}

#[test]
fn a_redacted_event_is_served_redacted() {
    for version in ["10", "12"] {
        let home = Home::new();
        let (alice, bob) = (home.register("alice"), home.register("bob"));
        let room = home.room(&alice, json!({ "preset": "public_chat", "room_version": version }));
        home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
        let event_id = home.say(&alice, &room, "secret", "t1");
        let redact = |user: &User, txn: &str| {
            let path = format!("/rooms/{}/redact/{}/{txn}", quote(&room), quote(&event_id));
            home.put(user, &path, json!({ "reason": "oops" }))
        };
        refused(&redact(&bob, "r1"), 403, "M_FORBIDDEN");
        let (status, answer) = redact(&alice, "r1");
        assert_eq!(status, 200, "{answer}");
        assert_eq!(redact(&alice, "r1").1, answer, "idempotent");
        let path = format!("/rooms/{}/event/{}", quote(&room), quote(&event_id));
        let (_, event) = home.get(&bob, &path);
        assert_eq!(event["content"], json!({}));
        let because = &event["unsigned"]["redacted_because"];
        assert_eq!(because["event_id"], answer["event_id"]);
        assert_eq!((&because["redacts"], &because["content"]["redacts"]), (&json!(event_id), &json!(event_id)));
        assert_eq!(because["content"]["reason"], "oops");
        let elsewhere = home.room(&alice, json!({ "room_version": version }));
        let other = format!("/rooms/{}/redact/{}/r2", quote(&elsewhere), quote(&event_id));
        refused(&home.put(&alice, &other, json!({})), 404, "M_NOT_FOUND");
        let (_, page) = home.get(&bob, &format!("/rooms/{}/messages?dir=b&limit=2", quote(&room)));
        assert_eq!(types(&page["chunk"]), ["m.room.redaction", "m.room.message"]);
        assert_eq!(page["chunk"][1]["content"], json!({}));
    }
}

#[test]
fn who_has_the_power_redacts_for_others() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
    let event_id = home.say(&bob, &room, "rude", "t1");
    let path = format!("/rooms/{}/redact/{}/r1", quote(&room), quote(&event_id));
    assert_eq!(home.put(&alice, &path, json!({})).0, 200);
    let (_, event) = home.get(&bob, &format!("/rooms/{}/event/{}", quote(&room), quote(&event_id)));
    assert_eq!(event["content"], json!({}));
}

#[test]
fn a_redaction_that_is_put_as_state_needs_the_same_power() {
    for version in ["10", "12"] {
        let home = Home::new();
        let (alice, bob) = (home.register("alice"), home.register("bob"));
        let levels = json!({ "state_default": 0 });
        let body = json!({ "preset": "public_chat", "room_version": version, "power_level_content_override": levels });
        let room = home.room(&alice, body);
        home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
        let [first, second] = ["t1", "t2"].map(|txn_id| home.say(&alice, &room, "hers", txn_id));
        let path = format!("/rooms/{}/state/m.room.redaction/x", quote(&room));
        let content = |event_id: &str| {
            let (_, event) = home.get(&bob, &format!("/rooms/{}/event/{}", quote(&room), quote(event_id)));
            event["content"].clone()
        };
        refused(&home.put(&bob, &path, json!({ "redacts": first })), 403, "M_FORBIDDEN");
        refused(&home.put(&bob, &path, json!({})), 400, "M_MISSING_PARAM");
        assert_eq!(content(&first)["body"], "hers", "{version}");
        // Whoever may redact can do it so, one event after the other.
        for event_id in [&first, &second] {
            let (status, answer) = home.put(&alice, &path, json!({ "redacts": event_id }));
            assert_eq!(status, 200, "{answer}");
            assert_eq!(content(event_id), json!({}), "{version}");
        }
    }
}

#[test]
fn messages_go_both_ways_page_by_page() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let said: Vec<String> = (0..25).map(|i| home.say(&alice, &room, "x", &format!("t{i}"))).collect();
    for (dir, mut expected) in [("b", said.iter().rev().cloned().collect::<Vec<_>>()), ("f", said.clone())] {
        let (mut seen, mut from, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let filter = quote(r#"{"types":["m.room.mess*"],"not_senders":["@x:y"]}"#);
            let path = format!("/rooms/{}/messages?dir={dir}&limit=10&filter={filter}{from}", quote(&room));
            let (status, page) = home.get(&alice, &path);
            assert_eq!(status, 200, "{page}");
            let chunk = page["chunk"].as_array().unwrap();
            seen.extend(chunk.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()));
            pages += 1;
            let Some(end) = page["end"].as_str() else { break };
            from = format!("&from={end}");
            assert!(pages < 10);
        }
        assert_eq!(seen, std::mem::take(&mut expected), "{dir}");
    }
    let messages = |query: &str| home.get(&alice, &format!("/rooms/{}/messages?{query}", quote(&room)));
    let (_, newest) = messages("dir=b&limit=5");
    let (_, older) = messages(&format!("dir=b&limit=5&from={}", newest["end"].as_str().unwrap()));
    // Back again from where the second page ended, up to where it began.
    let (start, end) = (newest["end"].as_str().unwrap(), older["end"].as_str().unwrap());
    let (_, again) = messages(&format!("dir=f&limit=50&from={end}&to={start}"));
    let mut chunk = again["chunk"].as_array().unwrap().clone();
    chunk.reverse();
    assert_eq!(json!(chunk), older["chunk"]);
    let (_, whole) = messages("dir=b&limit=1000");
    assert!(whole.get("end").is_none(), "the room's creation is its beginning");
    assert_eq!(whole["chunk"].as_array().unwrap().last().unwrap()["type"], "m.room.create");
    refused(&messages("limit=5"), 400, "M_MISSING_PARAM");
    refused(&messages("dir=x"), 400, "M_INVALID_PARAM");
    refused(&messages("dir=b&from=nonsense"), 400, "M_INVALID_PARAM");
    refused(&messages("dir=b&limit=many"), 400, "M_INVALID_PARAM");
    refused(&messages("dir=b&filter=%7B"), 400, "M_NOT_JSON");
    let count = |filter: Value| {
        let (status, page) = messages(&format!("dir=b&limit=100&filter={}", quote(&filter.to_string())));
        assert_eq!(status, 200, "{page}");
        page["chunk"].as_array().unwrap().len()
    };
    let all = count(json!({}));
    assert_eq!(count(json!({ "types": ["m.room.message"] })), 25);
    assert_eq!(count(json!({ "not_types": ["m.room.message"] })), all - 25);
    assert_eq!(count(json!({ "not_types": ["*.message"] })), all - 25);
    assert_eq!(count(json!({ "types": ["*"], "not_types": ["m.room.message", "m.room.c*"] })), all - 26);
    assert_eq!(count(json!({ "types": ["m.room.messag?", "m.room.[m]essage", "x".repeat(200)] })), 0);
    assert_eq!(count(json!({ "types": [] })), 0);
    assert_eq!(count(json!({ "senders": [alice.id] })), all);
    assert_eq!(count(json!({ "not_senders": [alice.id] })), 0);
    assert_eq!(count(json!({ "contains_url": true })), 0);
    assert_eq!(count(json!({ "contains_url": false })), all);
    let long = json!({ "types": [format!("{}*", "x".repeat(50))] }).to_string();
    refused(&messages(&format!("dir=b&filter={}", quote(&long))), 400, "M_INVALID_PARAM");
    let bob = home.register("bob");
    refused(&home.get(&bob, &format!("/rooms/{}/messages?dir=b", quote(&room))), 403, "M_FORBIDDEN");
}

#[test]
fn members_are_listed() {
    let home = Home::new();
    let (alice, bob, carol) = (home.register("alice"), home.register("bob"), home.register("carol"));
    let room = home.room(&alice, json!({ "preset": "public_chat", "invite": [carol.id] }));
    let before = home.sync(&alice, "")["next_batch"].as_str().unwrap().to_owned();
    home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
    let members = |query: &str| {
        let (status, answer) = home.get(&alice, &format!("/rooms/{}/members?{query}", quote(&room)));
        assert_eq!(status, 200, "{answer}");
        let mut users: Vec<String> =
            answer["chunk"].as_array().unwrap().iter().map(|e| e["state_key"].as_str().unwrap().to_owned()).collect();
        users.sort();
        users
    };
    assert_eq!(members(""), [&*alice.id, &bob.id, &carol.id]);
    assert_eq!(members("membership=join"), [&*alice.id, &bob.id]);
    assert_eq!(members("not_membership=join"), [&*carol.id]);
    assert_eq!(members("membership=join&not_membership=leave"), [&*alice.id, &bob.id, &carol.id], "either of them");
    assert_eq!(members("membership=invite&not_membership=join"), [&*carol.id]);
    assert_eq!(members(&format!("at={before}")), [&*alice.id, &carol.id]);
    let path = |what: &str| format!("/rooms/{}/{what}", quote(&room));
    refused(&home.get(&alice, &path("members?membership=friend")), 400, "M_INVALID_PARAM");
    refused(&home.get(&carol, &path("members")), 403, "M_FORBIDDEN");
    let (_, joined) = home.get(&alice, &path("joined_members"));
    let expected = json!({ "display_name": "alice", "avatar_url": null });
    assert_eq!(joined["joined"].as_object().unwrap().len(), 2);
    assert_eq!(joined["joined"][&alice.id], expected);
    refused(&home.get(&carol, &path("joined_members")), 403, "M_FORBIDDEN");
    assert_eq!(home.get(&alice, "/joined_rooms"), (200, json!({ "joined_rooms": [room] })));
    assert_eq!(home.get(&carol, "/joined_rooms"), (200, json!({ "joined_rooms": [] })));
}

/// A first sync that holds all of a room begins before the room does.
#[test]
fn members_before_the_room_are_those_of_its_beginning() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let answer = home.sync(&alice, "");
    let timeline = &answer["rooms"]["join"][&room]["timeline"];
    assert_eq!(timeline["events"][0]["type"], "m.room.create");
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    for user in [&alice, &bob] {
        let path = format!("/rooms/{}/members?at={}", quote(&room), timeline["prev_batch"].as_str().unwrap());
        let (status, answer) = home.get(user, &path);
        let chunk = answer["chunk"].as_array().unwrap();
        assert_eq!((status, chunk.len(), &chunk[0]["state_key"]), (200, 1, &json!(alice.id)), "{answer}");
    }
}

/// Tokens are not hard to guess.
#[test]
fn members_of_a_time_are_told_to_those_who_may_see_it() {
    let home = Home::new();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| home.register(name));
    for (visibility, sees) in [("joined", false), ("invited", false), ("shared", true)] {
        let given = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": visibility } }]);
        let room = home.room(&alice, json!({ "preset": "public_chat", "initial_state": given }));
        let join = format!("/join/{}", quote(&room));
        assert_eq!(home.post(&carol, &join, json!({})).0, 200);
        let token = |user: &User| home.sync(user, "")["next_batch"].as_str().unwrap().to_owned();
        let early = token(&alice);
        assert_eq!(home.post(&carol, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
        assert_eq!(home.post(&bob, &join, json!({})).0, 200);
        let during = token(&bob);
        home.say(&alice, &room, "hello", "t");
        let at = |user: &User, token: &str| {
            let (status, answer) = home.get(user, &format!("/rooms/{}/members?at={token}", quote(&room)));
            (status, answer["chunk"].as_array().map(Vec::len))
        };
        assert_eq!(at(&alice, &early), (200, Some(2)));
        assert_eq!(at(&bob, &early), if sees { (200, Some(2)) } else { (403, None) }, "{visibility}");
        assert_eq!(at(&bob, &during), (200, Some(3)), "{visibility}");
        assert_eq!(at(&carol, &early), (200, Some(2)), "{visibility}: she was there");
        assert_eq!(at(&carol, &during), (200, Some(2)), "{visibility}: up to where she left");
    }
}

#[test]
fn history_is_seen_as_its_visibility_says() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    for (visibility, sees) in [("joined", false), ("invited", false), ("shared", true), ("world_readable", true)] {
        let given = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": visibility } }]);
        let room = home.room(&alice, json!({ "preset": "public_chat", "initial_state": given }));
        let early = home.say(&alice, &room, "early", "t1");
        let event = |user: &User, id: &str| home.get(user, &format!("/rooms/{}/event/{}", quote(&room), quote(id))).0;
        assert_eq!(event(&bob, &early) == 200, visibility == "world_readable", "{visibility}: before the join");
        home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
        let during = home.say(&alice, &room, "during", "t2");
        assert_eq!(event(&bob, &early) == 200, sees, "{visibility}");
        assert_eq!(event(&bob, &during), 200);
        home.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({}));
        let late = home.say(&alice, &room, "late", "t3");
        assert_eq!(event(&bob, &during), 200, "{visibility}: what was seen stays seen");
        assert_eq!(event(&bob, &late) == 200, visibility == "world_readable", "{visibility}: after the leave");
        let (_, page) = home.get(&bob, &format!("/rooms/{}/messages?dir=b&limit=100", quote(&room)));
        let ids: Vec<&str> =
            page["chunk"].as_array().unwrap().iter().map(|e| e["event_id"].as_str().unwrap()).collect();
        assert_eq!(ids.contains(&early.as_str()), sees, "{visibility}");
        assert_eq!(ids.contains(&late.as_str()), visibility == "world_readable");
    }
}

#[test]
fn invited_is_not_yet_a_member() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "invite": [bob.id] }));
    home.say(&alice, &room, "inside", "t1");
    for what in ["state", "messages?dir=b", "members"] {
        refused(&home.get(&bob, &format!("/rooms/{}/{what}", quote(&room))), 403, "M_FORBIDDEN");
    }
    home.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({}));
    refused(&home.get(&bob, &format!("/rooms/{}/messages?dir=b", quote(&room))), 403, "M_FORBIDDEN");
}

#[test]
fn events_are_no_deeper_than_they_can_be_read() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let path = |kind: &str| format!("/rooms/{}/state/{kind}/", quote(&room));
    let nested = |depth: usize| json!({ "x": (2..depth).fold(json!([]), |inner, _| json!([inner])) });
    // The event itself is one level more.
    refused(&home.put(&alice, &path("m.too_deep"), nested(500)), 400, "M_BAD_JSON");
    assert_eq!(home.put(&alice, &path("m.deep"), nested(499)).0, 200);
    assert_eq!(home.put(&alice, &path("m.other"), json!({})).0, 200);
    assert_eq!(home.get(&alice, &format!("/rooms/{}/state/m.too_deep/", quote(&room))).0, 404);
}
