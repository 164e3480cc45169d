//! Rooms and users of other servers, as local users reach them.

use std::{cell::RefCell, rc::Rc};

use http::StatusCode;
use serde_json::{Value, json};
use verge::{platform::TransportError, router::json_response};

use crate::{
    common::network::{Passing, Wire, World},
    home::{Home, User, quote, refused},
};

fn two() -> (Home, Home) {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open))
}

fn bodies(page: &Value) -> Vec<&str> {
    page["chunk"].as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

#[test]
fn a_room_elsewhere_is_joined_read_back_and_left() {
    let (one, two) = two();
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "preset": "public_chat", "room_alias_name": "hall", "name": "Hall" }));
    for i in 0..30 {
        one.say(&alice, &room, &format!("m{i}"), &format!("t{i}"));
    }
    let start = two.sync(&bob, "");
    let (status, answer) = two.post(&bob, "/join/%23hall%3Aone.test", json!({}));
    assert_eq!((status, &answer["room_id"]), (200, &json!(room)), "{answer} {:?}", two.world.logs());
    two.world.settle();
    let since = start["next_batch"].as_str().unwrap();
    let joined = two.sync(&bob, &format!("since={since}"));
    let hall = &joined["rooms"]["join"][&room];
    assert!(hall.is_object(), "{joined}");
    let named = hall["state"]["events"].as_array().unwrap().iter().any(|e| e["content"]["name"] == "Hall");
    assert!(named, "{hall}");
    assert_eq!(hall["summary"]["m.joined_member_count"], 2);
    // Back to the creation, page by page.
    let mut from = hall["timeline"]["prev_batch"].as_str().map(str::to_owned);
    let (mut said, mut types) = (Vec::new(), Vec::new());
    while let Some(token) = from {
        let path = format!("/rooms/{}/messages?dir=b&limit=7&from={token}", quote(&room));
        let (status, page) = two.get(&bob, &path);
        assert_eq!(status, 200, "{page}");
        said.extend(bodies(&page).into_iter().map(str::to_owned));
        types.extend(page["chunk"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap().to_owned()));
        from = page["end"].as_str().map(str::to_owned);
        assert!(types.len() < 100);
    }
    let expected: Vec<String> = (0..30).rev().map(|i| format!("m{i}")).collect();
    assert_eq!(said, expected, "{:?}", two.world.logs());
    assert_eq!(types.last().unwrap(), "m.room.create");
    // Both ways.
    two.say(&bob, &room, "hello from two", "b1");
    one.world.settle();
    let (_, page) = one.get(&alice, &format!("/rooms/{}/messages?dir=b&limit=1", quote(&room)));
    assert_eq!(bodies(&page), ["hello from two"]);
    assert_eq!(two.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
    two.world.settle();
    let (_, members) = one.get(&alice, &format!("/rooms/{}/joined_members", quote(&room)));
    assert_eq!(members["joined"].as_object().unwrap().len(), 1);
}

fn invited(home: &Home, user: &User) -> Value {
    home.sync(user, "")["rooms"]["invite"].clone()
}

/// Of more invites than a user may have, one ends that is of the zone that has sent most.
#[test]
fn an_invite_that_gives_way_to_another_has_ended() {
    let (one, two) = two();
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    two.database.rows(&format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 300) \
         INSERT INTO local_memberships (user_id, room_id, membership, event_id, pos, invite_state, outside_from) \
         SELECT '{}', '!r' || n || ':evil.test', 'invite', '$i' || n, n, '[]', 's' || n || '.evil.test' FROM n",
        bob.id
    ));
    two.database.rows("UPDATE streams SET position = 300 WHERE name = 'events'");
    let since = two.sync(&bob, "")["next_batch"].as_str().unwrap().to_owned();
    assert_eq!(invited(&two, &bob).as_object().unwrap().len(), 300);
    let room = one.room(&alice, json!({ "invite": [bob.id] }));
    let sync = two.sync(&bob, &format!("since={since}"));
    assert!(sync["rooms"]["invite"][&room].is_object(), "{sync}");
    let left = sync["rooms"]["leave"].as_object().unwrap();
    assert_eq!(left.keys().collect::<Vec<_>>(), ["!r300:evil.test"], "{sync}");
    assert_eq!(left["!r300:evil.test"]["timeline"]["events"], json!([]));
    let now = invited(&two, &bob);
    assert!(now.as_object().unwrap().len() == 300 && now["!r300:evil.test"].is_null(), "{now}");
    assert_eq!(two.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
}

#[test]
fn users_elsewhere_are_invited_accept_and_reject() {
    let (one, two) = two();
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    for accepts in [true, false] {
        let room = one.room(&alice, json!({ "name": "Den" }));
        let body = json!({ "user_id": bob.id, "reason": "come" });
        let (status, answer) = one.post(&alice, &format!("/rooms/{}/invite", quote(&room)), body);
        assert_eq!(status, 200, "{answer} {:?}", one.world.logs());
        one.world.settle();
        let invite = invited(&two, &bob);
        let events = invite[&room]["invite_state"]["events"].as_array().unwrap();
        assert!(events.iter().any(|event| event["content"]["name"] == "Den"), "{invite}");
        assert!(events.iter().all(|event| event.get("signatures").is_none()), "stripped");
        assert!(events.iter().any(|event| event["state_key"] == json!(bob.id)));
        if accepts {
            let (status, answer) = two.post(&bob, &format!("/rooms/{}/join", quote(&room)), json!({}));
            assert_eq!(status, 200, "{answer} {:?}", two.world.logs());
        } else {
            let leave = format!("/rooms/{}/leave", quote(&room));
            // What can be no event is refused before anything has ended.
            refused(&two.post(&bob, &leave, json!({ "reason": "no ".repeat(30_000) })), 413, "M_TOO_LARGE");
            let (status, answer) = two.post(&bob, &leave, json!({ "reason": "no time" }));
            assert_eq!(status, 200, "{answer} {:?}", two.world.logs());
        }
        two.world.settle();
        assert_eq!(invited(&two, &bob), json!({}));
        let path = format!("/rooms/{}/state/m.room.member/{}", quote(&room), quote(&bob.id));
        let (expected, reason) = if accepts { ("join", Value::Null) } else { ("leave", json!("no time")) };
        let member = one.get(&alice, &path).1;
        assert_eq!((&member["membership"], &member["reason"]), (&json!(expected), &reason), "{:?}", one.world.logs());
    }
}

#[test]
fn an_invite_from_a_dead_server_can_be_rejected() {
    let (one, two) = two();
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "invite": [bob.id] }));
    one.world.settle();
    let before = two.sync(&bob, "");
    assert!(before["rooms"]["invite"][&room].is_object(), "{:?}", one.world.logs());
    one.world.disconnect("one.test");
    let (status, answer) = two.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({ "reason": "no time" }));
    assert_eq!(status, 200, "{answer}");
    let after = two.sync(&bob, &format!("since={}", before["next_batch"].as_str().unwrap()));
    let told = &after["rooms"]["leave"][&room]["timeline"]["events"];
    let content = json!({ "membership": "leave", "reason": "no time" });
    assert_eq!((&told[0]["content"], &told[0]["sender"]), (&content, &json!(bob.id)), "{after}");
    let invite = before["rooms"]["invite"][&room]["invite_state"]["events"].as_array().unwrap();
    assert!(told[0]["event_id"].is_string());
    assert!(invite.iter().all(|event| event["event_id"] != told[0]["event_id"]), "it is another event");
    assert_eq!(invited(&two, &bob), json!({}));
}

#[test]
fn an_invite_that_comes_while_an_older_one_is_rejected_stays() {
    // Where the new invite comes, whether what is asked there is answered, and whether the new one is left to the user.
    let cases = [("/make_leave/", false, true), ("/send_leave/", true, true), ("/make_leave/", true, false)];
    for (part, is_answered, stays) in cases {
        let (one, two) = two();
        let (alice, bob) = (one.register("alice"), two.register("bob"));
        let room = one.room(&alice, json!({}));
        let path = format!("/rooms/{}/invite", quote(&room));
        assert_eq!(one.post(&alice, &path, json!({ "user_id": bob.id })).0, 200);
        let again = json!({ "user_id": bob.id, "reason": "once more" });
        let again = RefCell::new(Some(one.posting(&alice, &path, &again)));
        let wire: Wire = Rc::new(move |Passing { request, host, .. }| {
            let is_sent = request.uri().path().contains("/send_leave/");
            let again = request.uri().path().contains(part).then(|| again.take()).flatten();
            Box::pin(async move {
                let Some(again) = again else { return Ok(host(request).await) };
                let left = if is_sent { Some(host(request.clone()).await) } else { None };
                assert_eq!(again.await, 200);
                match left {
                    Some(answer) => Ok(answer),
                    None if is_answered => Ok(host(request).await),
                    None => Err(TransportError::TimedOut),
                }
            })
        });
        one.world.tap(wire);
        assert_eq!(two.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
        let case = format!("{part}, answered: {is_answered}");
        let told = member(&one, &alice, &room, &bob.id)["membership"].clone();
        assert_eq!(told, if stays { "invite" } else { "leave" }, "{case}");
        assert_eq!(invited(&two, &bob)[&room].is_object(), stays, "{case}");
        if stays {
            assert_eq!(two.post(&bob, &format!("/rooms/{}/join", quote(&room)), json!({})).0, 200, "{case}");
        }
        one.world.end();
    }
}

#[test]
fn an_invite_ends_with_the_event_that_ended_it() {
    for rescinded in [true, false] {
        let (one, two) = two();
        let (alice, bob) = (one.register("alice"), two.register("bob"));
        let room = one.room(&alice, json!({ "invite": [bob.id] }));
        one.world.settle();
        let before = two.sync(&bob, "");
        let (home, user, path) = if rescinded { (&one, &alice, "kick") } else { (&two, &bob, "leave") };
        let body = if rescinded { json!({ "user_id": bob.id, "reason": "no" }) } else { json!({}) };
        let (status, answer) = home.post(user, &format!("/rooms/{}/{path}", quote(&room)), body);
        assert_eq!(status, 200, "{answer}");
        one.world.settle();
        let (_, member) =
            one.get(&alice, &format!("/rooms/{}/state/m.room.member/{}?format=event", quote(&room), quote(&bob.id)));
        let since = before["next_batch"].as_str().unwrap();
        let include = quote(r#"{"room":{"include_leave":true}}"#);
        for query in [format!("since={since}"), format!("filter={include}"), String::new()] {
            let answer = two.sync(&bob, &query);
            let left = &answer["rooms"]["leave"][&room];
            if query.is_empty() && !rescinded {
                assert!(left.is_null(), "what one does oneself one is not told anew: {answer}");
                continue;
            }
            let told = left["timeline"]["events"].as_array().unwrap();
            assert_eq!(told.len(), 1, "{query}: {answer}");
            assert_eq!(told[0]["content"]["membership"], "leave");
            assert_eq!(told[0]["sender"], json!(user.id), "{query}: {member}");
            assert_eq!(told[0]["state_key"], json!(bob.id));
        }
    }
}

#[test]
fn profiles_and_aliases_elsewhere() {
    let (one, two) = two();
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "room_alias_name": "hall" }));
    let (_, profile) = two.get(&bob, "/profile/%40alice%3Aone.test");
    assert_eq!(profile, json!({ "displayname": "alice" }), "{:?}", two.world.logs());
    let (_, alias) = two.get(&bob, "/directory/room/%23hall%3Aone.test");
    assert_eq!(alias["room_id"], json!(room));
    refused(&two.get(&bob, "/directory/room/%23none%3Aone.test"), 404, "M_NOT_FOUND");
    refused(&two.get(&bob, "/profile/%40none%3Aone.test"), 404, "M_NOT_FOUND");
    let (status, answer) = two.get(&bob, "/directory/room/%23hall%3Anowhere.test");
    assert!(status == 502 || status == 404 || status == 504, "{status} {answer}");
}

#[test]
fn a_room_of_nobodys_is_not_found() {
    let (_, two) = two();
    let bob = two.register("bob");
    let (status, answer) = two.post(&bob, "/join/%21abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG", json!({}));
    assert_eq!((status, answer["errcode"].as_str()), (404, Some("M_NOT_FOUND")), "{answer}");
    refused(&two.post(&bob, "/join/nonsense", json!({})), 400, "M_INVALID_PARAM");
}

#[test]
fn members_of_another_room_may_join_a_restricted_one() {
    let (one, two) = two();
    let (alice, carol, bob) = (one.register("alice"), one.register("carol"), two.register("bob"));
    let club = one.room(&alice, json!({ "preset": "public_chat" }));
    let rules = json!({ "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": club }] });
    let state = json!([{ "type": "m.room.join_rules", "content": rules }]);
    let back_room = one.room(&alice, json!({ "initial_state": state }));
    refused(&one.post(&carol, &format!("/join/{}", quote(&back_room)), json!({})), 403, "M_FORBIDDEN");
    for (home, user) in [(&one, &carol), (&two, &bob)] {
        for room in [&club, &back_room] {
            let path = format!("/join/{}?via=one.test", quote(room));
            let (status, answer) = home.post(user, &path, json!({}));
            assert_eq!(status, 200, "{answer} {:?}", home.world.logs());
        }
    }
}

fn put_member(home: &Home, user: &User, room: &str, target: &str, content: Value) -> (u16, Value) {
    home.put(user, &format!("/rooms/{}/state/m.room.member/{}", quote(room), quote(target)), content)
}

fn member(home: &Home, user: &User, room: &str, target: &str) -> Value {
    home.get(user, &format!("/rooms/{}/state/m.room.member/{}", quote(room), quote(target))).1
}

#[test]
fn nobody_comes_into_a_restricted_room_by_naming_who_might_have_let_them_in() {
    for version in ["10", "12"] {
        let home = Home::new();
        let (alice, carol) = (home.register("alice"), home.register("carol"));
        let club = home.room(&alice, json!({ "preset": "public_chat" }));
        let rules = json!({ "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": club }] });
        let state = json!([{ "type": "m.room.join_rules", "content": rules }]);
        let room = home.room(&alice, json!({ "initial_state": state, "room_version": version }));
        let join = json!({ "membership": "join", "join_authorised_via_users_server": alice.id, "displayname": "Caz" });
        refused(&put_member(&home, &carol, &room, &carol.id, join.clone()), 403, "M_FORBIDDEN");
        assert_eq!(member(&home, &alice, &room, &carol.id)["errcode"], "M_NOT_FOUND");
        // Who meets the condition joins this way too, and this server says who vouches.
        home.post(&carol, &format!("/join/{}", quote(&club)), json!({}));
        let mut lie = join.clone();
        lie["join_authorised_via_users_server"] = json!(carol.id);
        let (status, answer) = put_member(&home, &carol, &room, &carol.id, lie);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(member(&home, &alice, &room, &carol.id), join);
        // And changes what the room knows of them, for which nobody vouches.
        let (status, answer) = put_member(&home, &carol, &room, &carol.id, join.clone());
        assert_eq!((status, answer["event_id"].is_string()), (200, true), "{answer}");
        assert_eq!(member(&home, &alice, &room, &carol.id), json!({ "membership": "join", "displayname": "Caz" }));
    }
}

#[test]
fn a_membership_that_is_put_as_state_is_asked_of_the_server_that_it_concerns() {
    let (one, two) = two();
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({}));
    let invite = json!({ "membership": "invite", "reason": "come" });
    let (status, answer) = put_member(&one, &alice, &room, &bob.id, invite.clone());
    assert_eq!((status, answer["event_id"].is_string()), (200, true), "{answer}");
    assert!(invited(&two, &bob)[&room].is_object(), "{:?}", one.world.logs());
    let signed = one.database.rows("SELECT json FROM events WHERE json LIKE '%\"membership\":\"invite\"%'");
    assert!(signed[0][0].contains("\"two.test\":{\"ed25519:"), "not countersigned: {}", signed[0][0]);
    // Rejected, and accepted, in a room that nobody there is in.
    let (status, answer) = put_member(&two, &bob, &room, &bob.id, json!({ "membership": "leave" }));
    assert_eq!((status, answer["event_id"].is_string()), (200, true), "{answer}");
    assert_eq!(member(&one, &alice, &room, &bob.id)["membership"], "leave");
    assert_eq!(put_member(&one, &alice, &room, &bob.id, invite.clone()).0, 200);
    let (status, answer) = put_member(&two, &bob, &room, &bob.id, json!({ "membership": "join" }));
    assert_eq!((status, answer["event_id"].is_string()), (200, true), "{answer} {:?}", two.world.logs());
    assert_eq!(member(&one, &alice, &room, &bob.id), json!({ "membership": "join", "displayname": "bob" }));
    // Nobody is invited whose server does not hear of it.
    let zoe = "@zoe:nowhere.test";
    refused(&put_member(&one, &alice, &room, zoe, invite.clone()), 502, "M_UNKNOWN");
    assert_eq!(member(&one, &alice, &room, zoe)["errcode"], "M_NOT_FOUND");
    let given = |membership: &str| {
        let content = json!({ "membership": membership });
        let state = json!([{ "type": "m.room.member", "state_key": zoe, "content": content }]);
        one.post(&alice, "/createRoom", json!({ "initial_state": state }))
    };
    refused(&given("invite"), 400, "M_INVALID_PARAM");
    let (status, answer) = given("ban");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(member(&one, &alice, answer["room_id"].as_str().unwrap(), zoe)["membership"], "ban");
    // What needs no other server.
    let kick = json!({ "membership": "leave", "reason": "enough" });
    refused(&put_member(&two, &bob, &room, &alice.id, kick.clone()), 403, "M_FORBIDDEN");
    assert_eq!(put_member(&one, &alice, &room, &bob.id, kick.clone()).0, 200);
    assert_eq!(member(&one, &alice, &room, &bob.id), kick);
    refused(&put_member(&one, &alice, &room, "bob", kick), 400, "M_INVALID_PARAM");
    refused(&put_member(&one, &alice, &room, &bob.id, json!({})), 400, "M_MISSING_PARAM");
    refused(&put_member(&one, &alice, &room, &bob.id, json!({ "membership": 1 })), 400, "M_BAD_JSON");
    let message = format!("/rooms/{}/send/m.room.member/1", quote(&room));
    refused(&one.put(&alice, &message, json!({ "membership": "join" })), 403, "M_FORBIDDEN");
}

#[test]
fn an_invite_that_is_taken_back_is_taken_back_elsewhere_too() {
    let (one, two) = two();
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let body = json!({ "user_id": bob.id });
    let transactions = || one.world.traffic().iter().filter(|sent| sent.line.contains("/v1/send/")).count();
    for (how, version) in [("kick", "10"), ("ban", "12")] {
        let room = one.room(&alice, json!({ "room_version": version }));
        let path = |what: &str| format!("/rooms/{}/{what}", quote(&room));
        // A second time to a room that two.test has been in.
        for is_second in [false, true] {
            assert_eq!(one.post(&alice, &path("invite"), body.clone()).0, 200);
            let before = two.sync(&bob, "");
            assert!(before["rooms"]["invite"][&room].is_object(), "{:?}", one.world.logs());
            assert_eq!(one.post(&alice, &path(how), body.clone()).0, 200);
            one.world.settle();
            let since = before["next_batch"].as_str().unwrap();
            let after = two.sync(&bob, &format!("since={since}"));
            assert!(after["rooms"]["leave"][&room].is_object(), "{how} {is_second}: {after} {:?}", one.world.logs());
            assert_eq!(invited(&two, &bob), json!({}));
            // Nothing else of the room is told, also when there is more to tell.
            let sent = transactions();
            one.say(&alice, &room, "we are alone", &format!("{how}-{is_second}"));
            one.world.settle();
            assert_eq!(transactions(), sent);
            if is_second {
                break;
            }
            if how == "ban" {
                assert_eq!(one.post(&alice, &path("unban"), body.clone()).0, 200);
            }
            assert_eq!(one.post(&alice, &path("invite"), body.clone()).0, 200);
            assert_eq!(two.post(&bob, &path("join"), json!({})).0, 200, "{:?}", two.world.logs());
            assert_eq!(two.post(&bob, &path("leave"), json!({})).0, 200);
            one.world.settle();
        }
    }
}

#[test]
fn nobody_elsewhere_is_invited_to_a_room_that_does_not_federate() {
    for version in ["10", "12"] {
        let (one, two) = two();
        let (alice, bob, carol) = (one.register("alice"), two.register("bob"), one.register("carol"));
        let closed = json!({ "m.federate": false });
        let body = json!({ "room_version": version, "creation_content": closed, "invite": [bob.id] });
        let room = one.room(&alice, body);
        let invite = format!("/rooms/{}/invite", quote(&room));
        refused(&one.post(&alice, &invite, json!({ "user_id": bob.id })), 403, "M_FORBIDDEN");
        let content = json!({ "membership": "invite" });
        refused(&put_member(&one, &alice, &room, &bob.id, content), 403, "M_FORBIDDEN");
        one.world.settle();
        assert_eq!(invited(&two, &bob), json!({}));
        assert_eq!(member(&one, &alice, &room, &bob.id)["errcode"], "M_NOT_FOUND");
        assert!(!one.world.traffic().iter().any(|sent| sent.line.contains("/invite/")));
        assert_eq!(one.post(&alice, &invite, json!({ "user_id": carol.id })).0, 200);
    }
}

#[test]
fn what_was_redacted_leaves_redacted() {
    for version in ["10", "12"] {
        let (one, two) = two();
        let (alice, bob) = (one.register("alice"), two.register("bob"));
        let room = one.room(&alice, json!({ "preset": "public_chat", "room_version": version }));
        let redact = |event_id: &str| {
            let path = format!("/rooms/{}/redact/{}/r{}", quote(&room), quote(event_id), quote(event_id));
            let (status, answer) = one.put(&alice, &path, json!({}));
            assert_eq!(status, 200, "{answer}");
        };
        let (_, topic) =
            one.put(&alice, &format!("/rooms/{}/state/m.room.topic", quote(&room)), json!({ "topic": "the secret" }));
        redact(topic["event_id"].as_str().unwrap());
        // Whom we invite is not told what was taken back.
        let (status, answer) =
            one.post(&alice, &format!("/rooms/{}/invite", quote(&room)), json!({ "user_id": bob.id }));
        assert_eq!(status, 200, "{answer}");
        let shown = invited(&two, &bob)[&room]["invite_state"]["events"].clone();
        let topic = shown.as_array().unwrap().iter().find(|event| event["type"] == "m.room.topic").unwrap();
        assert_eq!(topic["content"], json!({}));
        // Nor is who was away meanwhile.
        assert_eq!(two.post(&bob, &format!("/rooms/{}/join", quote(&room)), json!({})).0, 200);
        one.world.settle();
        one.world.cut("one.test", "two.test");
        let said = one.say(&alice, &room, "the other secret", "t1");
        let kept = one.say(&alice, &room, "no secret", "t2");
        one.world.settle();
        redact(&said);
        one.world.mend("one.test", "two.test");
        one.world.advance(60_000);
        one.world.run(one.server.scheduled());
        one.world.settle();
        let held = |event_id: &str| {
            two.database.rows(&format!("SELECT json FROM events WHERE event_id = '{event_id}'"))[0][0].clone()
        };
        assert!(!held(&said).contains("secret"), "{}", held(&said));
        assert!(held(&kept).contains("no secret"));
    }
}

#[test]
fn servers_without_the_newer_endpoint_are_invited_by_the_older() {
    let (one, two) = two();
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    // What an older server answers to an endpoint that it does not know.
    let wire: Wire = Rc::new(|passing: Passing| {
        Box::pin(async move {
            if passing.request.uri().path().starts_with("/_matrix/federation/v2/invite/") {
                let body = json!({ "errcode": "M_UNRECOGNIZED", "error": "?" });
                return Ok(json_response(StatusCode::NOT_FOUND, &body));
            }
            Ok((passing.host)(passing.request).await)
        })
    });
    one.world.tap(wire);
    for (version, status) in [("2", 200), ("11", 502)] {
        let room = one.room(&alice, json!({ "name": "Den", "room_version": version }));
        let body = json!({ "user_id": bob.id });
        let (got, answer) = one.post(&alice, &format!("/rooms/{}/invite", quote(&room)), body);
        assert_eq!(got, status, "{version}: {answer}");
        one.world.settle();
        let invite = &invited(&two, &bob)[&room];
        assert_eq!(invite.is_object(), status == 200, "{invite}");
        if status == 200 {
            let events = invite["invite_state"]["events"].as_array().unwrap();
            assert!(events.iter().any(|event| event["content"]["name"] == "Den"), "{invite}");
            let (got, answer) = two.post(&bob, &format!("/rooms/{}/join", quote(&room)), json!({}));
            assert_eq!(got, 200, "{answer}");
        }
    }
}
