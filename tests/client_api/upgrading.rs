//! Rooms that go on in another one of a newer version.

use serde_json::{Value, json};
use verge::{
    matrix::identifiers::{RoomId, UserId},
    program::Program,
};

use crate::{
    common::{large_room::LargeRoom, network::World, peer::Peer},
    home::{Answer, Home, User, quote, refused, request_of},
    joining::{answer_late, hang_up, hang_up_after},
    visited::{Visited, visited},
};

fn upgrade(home: &Home, user: &User, room: &str, body: Value) -> Answer {
    home.post(user, &format!("/rooms/{}/upgrade", quote(room)), body)
}

fn state(home: &Home, user: &User, room: &str, kind: &str) -> Value {
    home.get(user, &format!("/rooms/{}/state/{kind}", quote(room))).1
}

#[test]
fn what_a_room_is_goes_along() {
    for (from, to) in [("6", "10"), ("10", "12"), ("12", "12"), ("12", "11")] {
        let home = Home::new();
        let (alice, bob, carol) = (home.register("alice"), home.register("bob"), home.register("carol"));
        let initial = json!([
            { "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" } },
            { "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } },
            { "type": "m.room.server_acl", "content": { "allow": ["*"], "deny": ["evil.example"] } },
            { "type": "org.example.other", "content": { "x": 1 } },
        ]);
        let room = home.room(
            &alice,
            json!({ "preset": "public_chat", "room_version": from, "name": "Hall",
            "topic": "All", "room_alias_name": "hall", "visibility": "public", "initial_state": initial }),
        );
        for user in [&bob, &carol] {
            assert_eq!(home.post(user, &format!("/join/{}", quote(&room)), json!({})).0, 200);
        }
        let ban = json!({ "user_id": carol.id, "reason": "noise" });
        assert_eq!(home.post(&alice, &format!("/rooms/{}/ban", quote(&room)), ban).0, 200);
        let last = home.say(&alice, &room, "the last word", "t");
        let (status, answer) = upgrade(&home, &alice, &room, json!({ "new_version": to }));
        assert_eq!(status, 200, "{from} to {to}: {answer}");
        let new = answer["replacement_room"].as_str().unwrap();
        let tombstone = state(&home, &alice, &room, "m.room.tombstone");
        assert_eq!(tombstone["replacement_room"], new);
        let create = state(&home, &alice, new, "m.room.create");
        assert_eq!((&create["room_version"], &create["predecessor"]["room_id"]), (&json!(to), &json!(room)));
        assert_eq!(create["predecessor"]["event_id"], json!(last));
        for kind in [
            "m.room.name",
            "m.room.topic",
            "m.room.history_visibility",
            "m.room.encryption",
            "m.room.server_acl",
            "m.room.join_rules",
            "m.room.guest_access",
            "m.room.canonical_alias",
        ] {
            assert_eq!(state(&home, &alice, new, kind), state(&home, &alice, &room, kind), "{kind}");
        }
        assert_eq!(state(&home, &alice, new, "org.example.other")["errcode"], "M_NOT_FOUND");
        let banned = state(&home, &alice, new, &format!("m.room.member/{}", quote(&carol.id)));
        assert_eq!((&banned["membership"], &banned["reason"]), (&json!("ban"), &json!("noise")));
        refused(&home.post(&carol, &format!("/join/{}", quote(new)), json!({})), 403, "M_FORBIDDEN");
        // Nobody else came along by themselves.
        let members = home.get(&alice, &format!("/rooms/{}/joined_members", quote(new))).1;
        assert_eq!(members["joined"].as_object().unwrap().len(), 1);
        // The alias and the place in the directory are the new room's.
        assert_eq!(home.get(&alice, "/directory/room/%23hall%3Ahs.test").1["room_id"], new);
        assert_eq!(home.get(&alice, "/publicRooms").1["chunk"][0]["room_id"], new);
        let levels = state(&home, &alice, new, "m.room.power_levels");
        match to {
            "12" => {
                assert_eq!(levels["users"], json!({}));
                assert_eq!(levels["events"]["m.room.tombstone"], 150);
            }
            "11" => assert_eq!(levels["users"][&alice.id], 150, "as much as what she could do before takes"),
            _ => assert_eq!(levels["users"][&alice.id], 100),
        }
        // The old room has fallen silent.
        let path = format!("/rooms/{}/send/m.room.message/x", quote(&room));
        refused(&home.put(&bob, &path, json!({ "msgtype": "m.text", "body": "hello?" })), 403, "M_FORBIDDEN");
        assert_eq!(home.post(&bob, &format!("/join/{}", quote(new)), json!({})).0, 200);
        let (status, answer) = upgrade(&home, &alice, new, json!({ "new_version": "12" }));
        assert_eq!(status, 200, "{from} to {to}, and on: {answer}");
    }
}

/// Before version 10 levels may be texts.
#[test]
fn a_room_whose_levels_are_texts_falls_silent() {
    let Visited { home, alice, room, peer, bob, theirs, server } = visited("9");
    let users = json!({ &alice.id: 100, &bob: 100 });
    let path = format!("/rooms/{}/state/m.room.power_levels", quote(&room));
    let (status, set) = home.put(&alice, &path, json!({ "users": users }));
    assert_eq!(status, 200, "{set}");
    let content = json!({ "users": users, "users_default": "60", "events_default": "90", "invite": "100" });
    let mut draft = theirs.draft(
        home.world.now_ms(),
        &bob,
        json!({
            "type": "m.room.power_levels", "state_key": "", "content": content, "prev_events": [set["event_id"]],
        }),
    );
    let own = draft["auth_events"].as_array_mut().unwrap();
    own[0] = set["event_id"].clone();
    let (id, event) = peer.sign("9", draft);
    assert_eq!(peer.send(&server, "1", &[event]).1["pdus"][&id], json!({}));
    assert_eq!(upgrade(&home, &alice, &room, json!({ "new_version": "11" })).0, 200);
    let levels = state(&home, &alice, &room, "m.room.power_levels");
    assert_eq!((&levels["events_default"], &levels["invite"]), (&json!(90), &json!(100)));
}

#[test]
fn spaces_lead_on_and_creators_are_those_who_are_named() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let space = home.room(&alice, json!({ "creation_content": { "type": "m.space" }, "room_version": "11" }));
    for (child, content) in [("!one", json!({ "via": ["hs.test"] })), ("!gone", json!({}))] {
        let path = format!("/rooms/{}/state/m.space.child/{}", quote(&space), quote(child));
        assert_eq!(home.put(&alice, &path, content).0, 200);
    }
    let levels = json!({ "users": { &alice.id: 100, &bob.id: 100 } });
    assert_eq!(home.put(&alice, &format!("/rooms/{}/state/m.room.power_levels", quote(&space)), levels).0, 200);
    let body = json!({ "new_version": "12", "additional_creators": [bob.id] });
    let (status, answer) = upgrade(&home, &alice, &space, body);
    assert_eq!(status, 200, "{answer}");
    let new = answer["replacement_room"].as_str().unwrap();
    let create = state(&home, &alice, new, "m.room.create");
    assert_eq!((&create["type"], &create["additional_creators"]), (&json!("m.space"), &json!([bob.id])));
    assert_eq!(state(&home, &alice, new, "m.room.power_levels")["users"], json!({}));
    assert_eq!(state(&home, &alice, new, "m.space.child/!one")["via"], json!(["hs.test"]));
    assert_eq!(state(&home, &alice, new, "m.space.child/!gone")["errcode"], "M_NOT_FOUND");
}

#[test]
fn only_who_may_end_a_room_upgrades_it() {
    let home = Home::new();
    let (alice, bob, carol) = (home.register("alice"), home.register("bob"), home.register("carol"));
    let room = home.room(&alice, json!({ "preset": "public_chat", "room_version": "10" }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let rooms = || home.database.rows("SELECT room_id FROM rooms").len();
    let before = rooms();
    let newer = json!({ "new_version": "11" });
    refused(&upgrade(&home, &bob, &room, newer.clone()), 403, "M_FORBIDDEN");
    // Nobody outside is told whether there is such a room.
    assert_eq!(upgrade(&home, &carol, &room, newer.clone()), upgrade(&home, &carol, "!nowhere:hs.test", newer.clone()));
    for nowhere in ["!nowhere", "!nowhere:hs.test"] {
        refused(&upgrade(&home, &alice, nowhere, newer.clone()), 404, "M_NOT_FOUND");
    }
    refused(&upgrade(&home, &alice, &room, json!({ "new_version": "99" })), 400, "M_UNSUPPORTED_ROOM_VERSION");
    refused(&upgrade(&home, &alice, &room, json!({})), 400, "M_MISSING_PARAM");
    let junk = json!({ "new_version": "12", "additional_creators": ["bob"] });
    refused(&upgrade(&home, &alice, &room, junk), 400, "M_INVALID_PARAM");
    let path = format!("/rooms/{}/upgrade", quote(&room));
    refused(&home.call(None, "POST", &path, Some(newer.clone())), 401, "M_MISSING_TOKEN");
    assert_eq!(rooms(), before);
    // Somebody with half the creator's power may, where the room lets them, and has no more of it in the new one.
    let levels = json!({ "users": { &alice.id: 100, &bob.id: 50 }, "events": { "m.room.tombstone": 50,
        "m.room.history_visibility": 100, "m.room.power_levels": 100 } });
    assert_eq!(home.put(&alice, &format!("/rooms/{}/state/m.room.power_levels", quote(&room)), levels.clone()).0, 200);
    let (status, answer) = upgrade(&home, &bob, &room, newer);
    assert_eq!(status, 200, "{answer}");
    let new = answer["replacement_room"].as_str().unwrap();
    assert_eq!(state(&home, &bob, new, "m.room.power_levels"), levels);
}

/// Members choose how much state there is.
#[test]
fn what_does_not_go_along_is_not_read() {
    let home = Home::new();
    let (alice, carol) = (home.register("alice"), home.register("carol"));
    let body = json!({ "creation_content": { "type": "m.space" }, "room_version": "11", "topic": "All" });
    let room = home.room(&alice, body);
    let child = format!("/rooms/{}/state/m.space.child/!one", quote(&room));
    assert_eq!(home.put(&alice, &child, json!({ "via": ["hs.test"] })).0, 200);
    for user in [carol.id.as_str(), "@dave:hs.test"] {
        let ban = json!({ "user_id": user, "reason": "noise" });
        assert_eq!(home.post(&alice, &format!("/rooms/{}/ban", quote(&room)), ban).0, 200);
    }
    // As another server may let its users say it.
    home.database.rows(
        "UPDATE events SET json = json_set(json, '$.content.reason', printf('%.*c', 60000, 'x')) \
         WHERE event_type = 'm.room.member' AND state_key = '@dave:hs.test'",
    );
    let (room_id, sender) = (RoomId::parse(&room).unwrap(), UserId::parse(&alice.id).unwrap());
    home.homeserver().enlarge(&home.world, &room_id, &sender, 1_000, 20_000);
    let before = home.database.read.get();
    let (status, answer) = upgrade(&home, &alice, &room, json!({ "new_version": "12" }));
    assert_eq!(status, 200, "{answer}");
    let read = home.database.read.get() - before;
    assert!(read < 1_000_000, "{read} bytes");
    let new = answer["replacement_room"].as_str().unwrap();
    assert_eq!(state(&home, &alice, new, "m.room.topic")["topic"], "All");
    assert_eq!(state(&home, &alice, new, "m.space.child/!one")["via"], json!(["hs.test"]));
    let ban = |user: &str| state(&home, &alice, new, &format!("m.room.member/{}", quote(user)));
    assert_eq!((&ban(&carol.id)["membership"], &ban(&carol.id)["reason"]), (&json!("ban"), &json!("noise")));
    // Whoever was banned stays so; what was said of it may be too long.
    let long = ban("@dave:hs.test");
    assert_eq!((&long["membership"], long.get("reason")), (&json!("ban"), None));
}

/// Makes the events by which a room was enlarged children of a space, with this content in SQL.
fn make_children(home: &Home, content: &str) {
    home.database.rows(&format!(
        "UPDATE events SET event_type = 'm.space.child', state_key = '!' || event_nid, json = ( \
           SELECT json_set(m.json, '$.type', 'm.space.child', '$.state_key', '!' || events.event_nid, '$.content', {content}) \
           FROM events AS m WHERE m.room_id = events.room_id AND m.event_type = 'm.room.power_levels' LIMIT 1) \
         WHERE sender = '@large:a.example'"
    ));
}

/// What is removed from a space, or names no room or no server to join through, is no child of it.
#[test]
fn a_space_leads_on_to_all_its_children_and_to_nothing_else() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let body = json!({ "creation_content": { "type": "m.space" }, "room_version": "11", "preset": "public_chat",
        "power_level_content_override": { "users": { &alice.id: 100, &bob.id: 50 } } });
    let space = home.room(&alice, body);
    let put_by = |user: &User, child: &str, content: &Value| {
        let path = format!("/rooms/{}/state/m.space.child/{}", quote(&space), quote(child));
        assert_eq!(home.put(user, &path, content.clone()).0, 200);
    };
    let put = |child: &str, content: &Value| put_by(&alice, child, content);
    let of = |bytes: usize| json!({ "via": ["hs.test"], "order": "1", "org.x": "x".repeat(bytes) });
    let children: Vec<(String, Value)> = (0..40).map(|n| (format!("!r{n}"), of(n))).collect();
    children.iter().for_each(|(child, content)| put(child, content));
    put("!long", &of(20_000));
    put("!closed", &json!({ "order": "1", "via": [] }));
    put("!nowhere", &json!({ "order": "1" }));
    // What only he may say.
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&space)), json!({})).0, 200);
    put_by(&bob, &bob.id, &of(1));
    // What fits into no event of a room in which events have longer places.
    put("!longest", &of(63_000));
    let (room_id, sender) = (RoomId::parse(&space).unwrap(), UserId::parse(&alice.id).unwrap());
    home.homeserver().enlarge(&home.world, &room_id, &sender, 1_100, 10);
    make_children(&home, "json('{}')");
    let (status, answer) = upgrade(&home, &alice, &space, json!({ "new_version": "12" }));
    assert_eq!(status, 200, "{answer}");
    let new = answer["replacement_room"].as_str().unwrap();
    for (child, content) in children.iter().chain([&("!long".to_owned(), of(20_000))]) {
        assert_eq!(state(&home, &alice, new, &format!("m.space.child/{child}")), *content, "{child}");
    }
    let sql = format!("SELECT state_key FROM events WHERE room_id = '{new}' AND event_type = 'm.space.child'");
    assert_eq!(home.database.rows(&sql).len(), 41);
}

/// Older rooms let numbers be fractions.
#[test]
fn a_child_that_no_newer_room_can_hold_keeps_no_space_from_being_upgraded() {
    let home = Home::new();
    let alice = home.register("alice");
    let space = home.room(&alice, json!({ "creation_content": { "type": "m.space" }, "room_version": "5" }));
    for (child, number) in [("!one", json!(1)), ("!half", json!(0.5))] {
        let path = format!("/rooms/{}/state/m.space.child/{}", quote(&space), quote(child));
        assert_eq!(home.put(&alice, &path, json!({ "via": ["hs.test"], "org.x": number })).0, 200);
    }
    for (version, half) in [("11", json!(null)), ("4", json!(0.5))] {
        let (status, answer) = upgrade(&home, &alice, &space, json!({ "new_version": version }));
        assert_eq!(status, 200, "{answer}");
        let new = answer["replacement_room"].as_str().unwrap();
        assert_eq!(state(&home, &alice, new, "m.space.child/!one")["org.x"], 1);
        assert_eq!(state(&home, &alice, new, "m.space.child/!half")["org.x"], half);
    }
}

/// A space may have more than a room is made of at once.
#[test]
fn of_a_large_space_so_many_children_go_along_as_fit() {
    let home = Home::new();
    let alice = home.register("alice");
    let space = home.room(&alice, json!({ "creation_content": { "type": "m.space" }, "room_version": "11" }));
    let (room_id, sender) = (RoomId::parse(&space).unwrap(), UserId::parse(&alice.id).unwrap());
    home.homeserver().enlarge(&home.world, &room_id, &sender, 1_000, 10);
    for (rest, least, most) in [(10, 200, 200), (50_000, 15, 20)] {
        make_children(&home, &format!("json_object('via', json_array('hs.test'), 'x', printf('%.*c', {rest}, 'x'))"));
        let before = home.database.read.get();
        let (status, answer) = upgrade(&home, &alice, &space, json!({ "new_version": "12" }));
        assert_eq!(status, 200, "{answer}");
        let read = home.database.read.get() - before;
        assert!(read < 1_500_000, "{read} bytes");
        let new = answer["replacement_room"].as_str().unwrap();
        let sql = format!("SELECT state_key FROM events WHERE room_id = '{new}' AND event_type = 'm.space.child'");
        let along = home.database.rows(&sql).len();
        assert!((least..=most).contains(&along), "{along}");
    }
}

#[test]
fn no_room_is_replaced_by_itself() {
    for version in ["10", "12"] {
        let home = Home::new();
        let alice = home.register("alice");
        let room = home.room(&alice, json!({ "room_version": version }));
        let to = |replacement: &str| json!({ "body": "moved", "replacement_room": replacement });
        let path = |rest: &str| format!("/rooms/{}/{rest}", quote(&room));
        refused(&home.put(&alice, &path("state/m.room.tombstone"), to(&room)), 400, "M_INVALID_PARAM");
        refused(&home.put(&alice, &path("send/m.room.tombstone/1"), to(&room)), 400, "M_INVALID_PARAM");
        assert_eq!(state(&home, &alice, &room, "m.room.tombstone")["errcode"], "M_NOT_FOUND");
        assert_eq!(home.put(&alice, &path("state/m.room.tombstone"), to("!other:hs.test")).0, 200);
    }
}

/// A client may upgrade a room by hand, too.
#[test]
fn what_its_creator_has_set_goes_along_into_a_room_that_names_its_predecessor() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let old = home.room(&alice, json!({ "preset": "public_chat" }));
    let rule = |room: &str| format!("/pushrules/global/room/{}", quote(room));
    for user in [&alice, &bob] {
        assert_eq!(home.put(user, &rule(&old), json!({ "actions": [] })).0, 200);
        let tags = |room: &str| format!("/user/{}/rooms/{}/tags", quote(&user.id), quote(room));
        assert_eq!(home.put(user, &format!("{}/m.favourite", tags(&old)), json!({})).0, 200);
        let predecessor = json!({ "predecessor": { "room_id": old, "event_id": "$last" } });
        let new = home.room(user, json!({ "creation_content": predecessor }));
        // Bob was never in the old room.
        let (status, expected) =
            if user.id == alice.id { (200, json!({ "m.favourite": {} })) } else { (404, json!({})) };
        assert_eq!(home.get(user, &rule(&new)).0, status, "{}", user.id);
        assert_eq!(home.get(user, &tags(&new)).1["tags"], expected, "{}", user.id);
    }
}

/// What users have set for the old room holds in the new one: for who upgrades it, and for who comes later.
#[test]
fn what_users_have_set_goes_along() {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob, eve) = (one.register("alice"), one.register("bob"), one.register("eve"));
    let (carol, dave) = (two.register("carol"), two.register("dave"));
    let alice_id = alice.id.clone();
    let room = one.room(&alice, json!({ "preset": "public_chat", "room_version": "10" }));
    let rule = |room: &str| format!("/pushrules/global/room/{}", quote(room));
    let tags = |user: &User, room: &str| format!("/user/{}/rooms/{}/tags", quote(&user.id), quote(room));
    let members = [(&one, &alice), (&one, &bob), (&two, &carol), (&two, &dave)];
    for (home, user) in members.into_iter().chain([(&one, &eve)]) {
        if user.id != alice.id && user.id != eve.id {
            assert_eq!(home.post(user, &format!("/join/{}?via=one.test", quote(&room)), json!({})).0, 200);
        }
        assert_eq!(home.put(user, &rule(&room), json!({ "actions": [] })).0, 200);
        assert_eq!(home.put(user, &format!("{}/m.favourite", tags(user, &room)), json!({ "order": 0.5 })).0, 200);
        world.settle();
    }
    // As clients mute a room.
    let mute = |room: &str| format!("/pushrules/global/override/{}", quote(room));
    let condition = |room: &str| json!({ "kind": "event_match", "key": "room_id", "pattern": room });
    assert_eq!(one.put(&alice, &mute(&room), json!({ "actions": [], "conditions": [condition(&room)] })).0, 200);
    // Bob takes it for a chat with Alice, and with somebody of whom he knows the new room already.
    let direct = |user: &User| format!("/user/{}/account_data/m.direct", quote(&user.id));
    let of_bob = |alice: Value| json!({ &alice_id: alice, "@other:x": ["!other:x"], "u.text": room, "u.object": { &room: [room] } });
    assert_eq!(one.put(&bob, &direct(&bob), of_bob(json!(["!first:x", room, "!last:x", 1]))).0, 200);
    assert_eq!(two.put(&carol, &direct(&carol), json!({ &alice_id: ["!other:x"] })).0, 200);
    // Who has left is one who was there.
    assert_eq!(two.post(&dave, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
    world.settle();
    let (status, answer) = upgrade(&one, &alice, &room, json!({ "new_version": "12" }));
    assert_eq!(status, 200, "{answer}");
    world.settle();
    let new = answer["replacement_room"].as_str().unwrap();
    for (home, user) in members {
        if user.id != alice.id {
            assert_eq!(home.get(user, &rule(new)).0, 404);
            if user.id == bob.id {
                // What one has set for the new room already stays.
                assert_eq!(home.put(user, &format!("{}/u.new", tags(user, new)), json!({})).0, 200);
            }
            let (status, answer) = home.post(user, &format!("/join/{}?via=one.test", quote(new)), json!({}));
            assert_eq!(status, 200, "{answer} {:?}", world.logs());
        }
        let (status, told) = home.get(user, &rule(new));
        assert_eq!((status, &told["actions"]), (200, &json!([])), "{} {told}", user.id);
        let expected =
            if user.id == bob.id { json!({ "u.new": {} }) } else { json!({ "m.favourite": { "order": 0.5 } }) };
        assert_eq!(home.get(user, &tags(user, new)).1["tags"], expected, "{}", user.id);
    }
    assert_eq!(one.get(&alice, &mute(new)).1["conditions"], json!([condition(new)]));
    let chats = of_bob(json!(["!first:x", room, "!last:x", 1, new]));
    assert_eq!(one.get(&bob, &direct(&bob)), (200, chats));
    assert_eq!(two.get(&carol, &direct(&carol)), (200, json!({ &alice_id: ["!other:x"] })), "it was no chat of hers");
    assert_eq!(one.get(&alice, &direct(&alice)).0, 404);
    // It is said once: who changes it there and comes back finds it changed.
    assert_eq!(two.call(Some(&carol.token), "DELETE", &rule(new), None).0, 200);
    for what in ["leave", "join"] {
        assert_eq!(two.post(&carol, &format!("/rooms/{}/{what}?via=one.test", quote(new)), json!({})).0, 200);
        world.settle();
    }
    assert_eq!(two.get(&carol, &rule(new)).0, 404);
    assert_eq!(one.post(&eve, &format!("/join/{}", quote(new)), json!({})).0, 200);
    assert_eq!(one.get(&eve, &rule(new)).0, 404, "she was never in the old room");
    assert_eq!(one.get(&eve, &tags(&eve, new)).1["tags"], json!({}));
}

#[test]
fn what_users_have_set_goes_along_when_they_hang_up_before_they_are_in() {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "preset": "public_chat" }));
    assert_eq!(two.post(&bob, &format!("/join/{}?via=one.test", quote(&room)), json!({})).0, 200);
    let tags = |room: &str| format!("/user/{}/rooms/{}/tags", quote(&bob.id), quote(room));
    assert_eq!(two.put(&bob, &format!("{}/m.favourite", tags(&room)), json!({})).0, 200);
    let (_, answer) = upgrade(&one, &alice, &room, json!({ "new_version": "12" }));
    world.settle();
    let new = answer["replacement_room"].as_str().unwrap();
    answer_late(&one, "one.test", "/send_join/");
    hang_up(&two, &bob, &format!("/join/{}?via=one.test", quote(new)), "{}");
    world.settle();
    assert_eq!(two.get(&bob, &tags(new)).1["tags"], json!({ "m.favourite": {} }), "{:?}", world.logs());
}

#[test]
fn what_users_have_set_goes_along_into_a_room_that_takes_minutes_to_join() {
    let world = World::new();
    let home = Home::with(&world, "two.test", &[("REGISTRATION", "open")]);
    let bob = home.register("bob");
    let old = home.room(&bob, json!({}));
    let tags = |room: &str| format!("/user/{}/rooms/{}/tags", quote(&bob.id), quote(room));
    assert_eq!(home.put(&bob, &format!("{}/m.favourite", tags(&old)), json!({})).0, 200);
    let large = LargeRoom::following(&Peer::new(&world, "peer.example"), 3_000, &old);
    large.opens();
    let join = request_of(&bob, "POST", &format!("/join/{}?via=peer.example", quote(&large.room_id)), "{}");
    // Its request may make so many calls to the database that it gets no further than the staging of the answer.
    let status = world.run(Program::from(home.server.with_wall(16)).handle(join)).status();
    assert!(!status.is_success(), "{status}");
    world.settle();
    let joining = || !home.database.rows("SELECT 1 FROM large_joins").is_empty();
    assert!(joining());
    for _ in 0..30 {
        world.advance(60_000);
        world.run(home.server.scheduled());
        world.settle();
    }
    assert!(!joining());
    assert_eq!(home.get(&bob, "/joined_rooms").1["joined_rooms"].as_array().unwrap().len(), 2);
    assert_eq!(home.get(&bob, &tags(&large.room_id)).1["tags"], json!({ "m.favourite": {} }), "{:?}", world.logs());
}

/// An upgrade in a world where everything takes its turns, whose client hangs up after so many of them.
struct Interrupted {
    home: Home,
    alice: User,
    room: String,
}

fn interrupted(turns: usize) -> Interrupted {
    let world = World::new();
    world.interleave();
    let home = Home::with(&world, "one.test", &[("REGISTRATION", "open")]);
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "preset": "public_chat", "room_alias_name": "here" }));
    let path = format!("/rooms/{}/upgrade", quote(&room));
    let upgrade = request_of(&alice, "POST", &path, r#"{ "new_version": "12" }"#);
    hang_up_after(&home, upgrade, turns);
    Interrupted { home, alice, room }
}

impl Interrupted {
    fn successors(&self) -> Vec<Vec<String>> {
        self.home.database.rows(&format!("SELECT room_id FROM rooms WHERE room_id <> '{}'", self.room))
    }
}

#[test]
fn an_upgrade_runs_on_when_the_client_hangs_up() {
    let mut begun = 0;
    // Whenever that is: there is one successor in the end or none, and the old room names it.
    for turns in 0..30 {
        let upgrade = interrupted(turns);
        let Interrupted { home, alice, room } = &upgrade;
        home.world.settle();
        let rooms = upgrade.successors();
        let Some([new]) = rooms.first().map(Vec::as_slice) else { continue };
        assert_eq!(rooms.len(), 1);
        begun += 1;
        let tombstone = home.get(alice, &format!("/rooms/{}/state/m.room.tombstone", quote(room))).1;
        assert_eq!(tombstone["replacement_room"], json!(new), "after {turns} turns: {tombstone}");
        let alias = home.get(alice, &format!("/directory/room/{}", quote("#here:one.test"))).1;
        assert_eq!(alias["room_id"], json!(new), "after {turns} turns");
    }
    assert!(begun > 5, "{begun}");
}

#[test]
fn an_alias_leads_to_the_successor_as_soon_as_the_old_room_does() {
    let (mut turns, mut named) = (0, 0);
    // Up to well after the old room has named it.
    while named < 20 {
        turns += 1;
        let upgrade = interrupted(turns);
        // Where the isolate ends, too.
        upgrade.home.world.end();
        let tombstones = upgrade.home.database.rows("SELECT 1 FROM events WHERE event_type = 'm.room.tombstone'");
        named += tombstones.len();
        assert!(turns < 1_000, "it is never named");
        let leads_to = upgrade.home.database.rows("SELECT room_id FROM room_aliases");
        let expected = if tombstones.is_empty() { vec![vec![upgrade.room.clone()]] } else { upgrade.successors() };
        assert_eq!(leads_to, expected, "after {turns} turns");
    }
}
