//! Knocking on rooms here and elsewhere.

use std::{cell::RefCell, rc::Rc};

use http::StatusCode;
use serde_json::{Value, json};
use verge::{platform::Clock, router::json_response};

use crate::{
    common::{network::World, peer::Peer},
    home::{Home, User, quote, refused},
};

fn two() -> (Home, Home, User, User) {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    (one, two, alice, bob)
}

fn club(home: &Home, user: &User, version: &str) -> String {
    let rules = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }]);
    home.room(
        user,
        json!({ "name": "The club", "initial_state": rules, "room_alias_name": "club", "room_version": version }),
    )
}

fn knocks(home: &Home, user: &User) -> Value {
    home.sync(user, "")["rooms"]["knock"].clone()
}

fn membership(home: &Home, reader: &User, room: &str, of: &User) -> Value {
    let path = format!("/rooms/{}/state/m.room.member/{}", quote(room), quote(&of.id));
    home.get(reader, &path).1
}

fn events<'a>(sync: &'a Value, kind: &str, room: &str) -> &'a [Value] {
    sync["rooms"][kind][room][format!("{kind}_state")]["events"].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn a_knock_on_a_room_here_is_shown_and_accepted() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = club(&home, &alice, "12");
    let since = home.sync(&bob, "")["next_batch"].as_str().unwrap().to_owned();
    let (status, answer) = home.post(&bob, "/knock/%23club%3Ahs.test", json!({ "reason": "I brought cake" }));
    assert_eq!((status, &answer), (200, &json!({ "room_id": room })));
    assert_eq!(membership(&home, &alice, &room, &bob)["reason"], "I brought cake");
    let sync = home.sync(&bob, &format!("since={since}"));
    let shown = events(&sync, "knock", &room);
    assert!(shown.iter().any(|event| event["content"]["name"] == "The club"), "{sync}");
    assert!(shown.iter().any(|event| event["content"]["membership"] == "knock"), "{sync}");
    // Who knocks reads nothing yet, and may come in when invited.
    refused(&home.get(&bob, &format!("/rooms/{}/messages?dir=b", quote(&room))), 403, "M_FORBIDDEN");
    refused(&home.post(&bob, &format!("/join/{}", quote(&room)), json!({})), 403, "M_FORBIDDEN");
    assert_eq!(home.post(&alice, &format!("/rooms/{}/invite", quote(&room)), json!({ "user_id": bob.id })).0, 200);
    assert_eq!(knocks(&home, &bob), json!({}));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    refused(&home.post(&bob, &format!("/knock/{}", quote(&room)), json!({})), 403, "M_FORBIDDEN");
}

#[test]
fn a_knock_elsewhere_is_accepted() {
    for version in ["7", "11", "12"] {
        let (one, two, alice, bob) = two();
        let room = club(&one, &alice, version);
        let (status, answer) = two.post(&bob, "/knock/%23club%3Aone.test", json!({ "reason": "please" }));
        assert_eq!((status, &answer), (200, &json!({ "room_id": room })), "{:?}", one.world.logs());
        one.world.settle();
        assert_eq!(membership(&one, &alice, &room, &bob)["membership"], "knock");
        let sync = two.sync(&bob, "");
        let shown = events(&sync, "knock", &room);
        assert!(shown.iter().any(|event| event["content"]["name"] == "The club"), "{sync}");
        let own: Vec<_> = shown.iter().filter(|event| event["state_key"] == json!(bob.id)).collect();
        assert_eq!((own.len(), &own[0]["content"]["membership"]), (1, &json!("knock")), "{sync}");
        assert!(shown.iter().all(|event| event.get("signatures").is_none()), "stripped");
        let (status, answer) =
            one.post(&alice, &format!("/rooms/{}/invite", quote(&room)), json!({ "user_id": bob.id }));
        assert_eq!(status, 200, "{answer}");
        one.world.settle();
        let sync = two.sync(&bob, "");
        assert!(!events(&sync, "invite", &room).is_empty(), "{sync}");
        assert_eq!(sync["rooms"]["knock"], json!({}));
        let (status, answer) = two.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
        assert_eq!(status, 200, "{answer} {:?}", two.world.logs());
        one.world.settle();
        assert_eq!(membership(&one, &alice, &room, &bob)["membership"], "join");
    }
}

/// Who is asked at once may be invited before the server that knocked has heard that its knock was taken.
#[test]
fn an_invite_that_comes_before_the_answer_to_a_knock_stays() {
    for version in ["11", "12"] {
        let (one, two, alice, bob) = two();
        let room = club(&one, &alice, version);
        let path = format!("/rooms/{}/invite", quote(&room));
        let invite = RefCell::new(Some(one.posting(&alice, &path, &json!({ "user_id": bob.id }))));
        one.world.tap(Rc::new(move |passing| {
            let is_knock = passing.request.uri().path().contains("/send_knock/");
            let invite = is_knock.then(|| invite.take()).flatten();
            Box::pin(async move {
                let answer = (passing.host)(passing.request).await;
                if let Some(invite) = invite {
                    assert_eq!(invite.await, 200);
                }
                Ok(answer)
            })
        }));
        assert_eq!(two.post(&bob, &format!("/knock/{}?via=one.test", quote(&room)), json!({})).0, 200);
        assert_eq!(membership(&one, &alice, &room, &bob)["membership"], "invite");
        let sync = two.sync(&bob, "");
        assert!(!events(&sync, "invite", &room).is_empty(), "{version}: {}", sync["rooms"]);
        assert_eq!(two.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
        one.world.end();
    }
}

/// A knock may be rejected before the server that knocked has heard that it was taken.
#[test]
fn a_knock_that_is_rejected_before_its_answer_comes_has_ended() {
    for (version, action, expected) in [("11", "kick", "leave"), ("12", "kick", "leave"), ("12", "ban", "ban")] {
        let (one, two, alice, bob) = two();
        let room = club(&one, &alice, version);
        // Some server says by an invite that the room is of another version.
        two.database.rows(&format!(
            "INSERT INTO local_memberships (user_id, room_id, membership, event_id, pos, invite_state, outside_from) \
             SELECT '{}', '{room}', 'invite', '$other:evil.test', position, \
               '[{{\"type\":\"m.room.create\",\"content\":{{\"room_version\":\"1\"}}}}]', 'evil.test' \
             FROM streams WHERE name = 'events'",
            bob.id
        ));
        let since = two.sync(&bob, "")["next_batch"].as_str().unwrap().to_owned();
        let path = format!("/rooms/{}/{action}", quote(&room));
        let kick = RefCell::new(Some(one.posting(&alice, &path, &json!({ "user_id": bob.id }))));
        let clock = one.world.clone();
        one.world.tap(Rc::new(move |passing| {
            let is_knock = passing.request.uri().path().contains("/send_knock/");
            let (kick, clock) = (is_knock.then(|| kick.take()).flatten(), clock.clone());
            Box::pin(async move {
                let answer = (passing.host)(passing.request).await;
                if let Some(kick) = kick {
                    assert_eq!(kick.await, 200);
                    clock.sleep(5_000).await;
                }
                Ok(answer)
            })
        }));
        assert_eq!(two.post(&bob, &format!("/knock/{}?via=one.test", quote(&room)), json!({})).0, 200);
        one.world.settle();
        assert_eq!(membership(&one, &alice, &room, &bob)["membership"], expected);
        let sync = two.sync(&bob, &format!("since={since}"));
        let told = &sync["rooms"]["leave"][&room]["timeline"]["events"][0];
        assert_eq!((&told["content"]["membership"], &told["sender"]), (&json!(expected), &json!(alice.id)), "{sync}");
        assert_eq!(knocks(&two, &bob), json!({}));
        assert!(two.database.rows("SELECT 1 FROM pending_knocks").is_empty());
        one.world.end();
    }
}

#[test]
fn a_knock_elsewhere_is_rejected() {
    let cases = [("12", "kick", "leave", true), ("12", "ban", "ban", true), ("11", "kick", "leave", false)];
    for (version, action, expected, is_told) in cases {
        let (one, two, alice, bob) = two();
        let room = club(&one, &alice, version);
        one.world.tap(Rc::new(move |passing| {
            let tells_nothing = !is_told && passing.request.uri().path().contains("/send_knock/");
            Box::pin(async move {
                let answer = (passing.host)(passing.request).await;
                let nothing = || json_response(StatusCode::OK, &json!({ "knock_room_state": [] }));
                Ok(if tells_nothing { nothing() } else { answer })
            })
        }));
        assert_eq!(two.post(&bob, &format!("/knock/{}?via=one.test", quote(&room)), json!({})).0, 200);
        let since = two.sync(&bob, "")["next_batch"].as_str().unwrap().to_owned();
        let path = format!("/rooms/{}/{action}", quote(&room));
        assert_eq!(one.post(&alice, &path, json!({ "user_id": bob.id })).0, 200);
        one.world.settle();
        let sync = two.sync(&bob, &format!("since={since}"));
        let told = &sync["rooms"]["leave"][&room]["timeline"]["events"][0];
        assert_eq!((&told["content"]["membership"], &told["sender"]), (&json!(expected), &json!(alice.id)), "{sync}");
        assert_eq!(knocks(&two, &bob), json!({}));
    }
}

#[test]
fn a_knock_elsewhere_is_taken_back() {
    // The room ID of version 12 names no server: what is remembered is through whom the knock was made.
    for version in ["7", "12"] {
        let (one, two, alice, bob) = two();
        let room = club(&one, &alice, version);
        assert_eq!(two.post(&bob, &format!("/knock/{}?via=one.test", quote(&room)), json!({})).0, 200);
        assert_eq!(two.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
        one.world.settle();
        assert_eq!(membership(&one, &alice, &room, &bob)["membership"], "leave", "{:?}", two.world.logs());
        assert_eq!(knocks(&two, &bob), json!({}));
        // Once more, by the state endpoint, and in vain: the server is gone.
        let path = format!("/rooms/{}/state/m.room.member/{}", quote(&room), quote(&bob.id));
        one.world.disconnect("one.test");
        let (status, answer) = two.put(&bob, &path, json!({ "membership": "knock" }));
        assert!(status == 404 || status == 502, "{answer}");
        assert_eq!(knocks(&two, &bob), json!({}));
    }
}

#[test]
fn who_may_not_knock_is_told_why() {
    let (one, two, alice, bob) = two();
    let room = one.room(&alice, json!({}));
    let club = club(&one, &alice, "12");
    refused(&two.post(&bob, &format!("/knock/{}?via=one.test", quote(&room)), json!({})), 403, "M_FORBIDDEN");
    assert_eq!(one.post(&alice, &format!("/rooms/{}/ban", quote(&club)), json!({ "user_id": bob.id })).0, 200);
    refused(&two.post(&bob, "/knock/%23club%3Aone.test", json!({})), 403, "M_FORBIDDEN");
    refused(&two.post(&bob, "/knock/%23nothing%3Aone.test", json!({})), 404, "M_NOT_FOUND");
    refused(&two.post(&bob, "/knock/!nowhere", json!({})), 404, "M_NOT_FOUND");
    refused(&two.post(&bob, "/knock/nowhere", json!({})), 400, "M_INVALID_PARAM");
    refused(&two.call(None, "POST", "/knock/!nowhere", Some(json!({}))), 401, "M_MISSING_TOKEN");
    let long = json!({ "reason": "x".repeat(3_000) });
    refused(&two.post(&bob, "/knock/%23club%3Aone.test", long), 413, "M_TOO_LARGE");
    assert_eq!(knocks(&two, &bob), json!({}));
}

#[test]
fn only_a_template_of_the_knock_is_signed_and_no_badly_signed_state_is_shown() {
    let home = Home::new();
    let alice = home.register("alice");
    let peer = Peer::new(&home.world, "peer.example");
    let room = "!somewhere";
    let template = json!({ "type": "m.room.member", "room_id": room, "sender": alice.id, "state_key": alice.id,
        "content": { "membership": "knock" }, "auth_events": [], "prev_events": ["$x"], "depth": 3 });
    let given = Rc::new(RefCell::new(template.clone()));
    let stripped = |kind: &str, content: Value| json!({ "type": kind, "state_key": "", "sender": "@bob:peer.example", "content": content });
    let name = json!({ "type": "m.room.name", "state_key": "", "sender": "@bob:peer.example", "room_id": room,
        "content": { "name": "Signed" }, "auth_events": [], "prev_events": ["$x"], "depth": 2, "origin_server_ts": 1 });
    let mut elsewhere = name.clone();
    elsewhere["room_id"] = json!("!other");
    let mut forged = peer.sign("12", name.clone()).1;
    forged["depth"] = json!(1);
    // A server that does not yet tell all of it in events sends the rest stripped; beside an event it does not count.
    let state = json!([
        stripped("m.room.name", json!({ "name": "Stripped" })),
        stripped("m.room.topic", json!({ "topic": "Stripped" })),
        forged,
        peer.sign("12", elsewhere).1,
        peer.sign("12", name).1,
        7
    ]);
    let said = given.clone();
    peer.answers(move |request| {
        let path = request.uri().path();
        let body = if path.contains("/make_knock/") {
            json!({ "room_version": "12", "event": *said.borrow() })
        } else if path.contains("/send_knock/") {
            json!({ "knock_room_state": state })
        } else {
            return None;
        };
        Some(json_response(StatusCode::OK, &body))
    });
    let knock = || home.post(&alice, "/knock/!somewhere?via=peer.example", json!({}));
    let changes: [(&str, Value); 4] = [
        ("type", json!("m.room.topic")),
        ("room_id", json!("!other")),
        ("sender", json!("@bob:peer.example")),
        ("content", json!({ "membership": "join" })),
    ];
    for (name, value) in changes {
        given.borrow_mut()[name] = value;
        refused(&knock(), 502, "M_UNKNOWN");
        *given.borrow_mut() = template.clone();
    }
    assert!(!peer.received.borrow().iter().any(|request| request.uri().path().contains("/send_knock/")));
    assert_eq!(knock().0, 200);
    let sync = home.sync(&alice, "");
    let shown: Vec<_> = events(&sync, "knock", room).iter().map(|event| event["content"].clone()).collect();
    assert_eq!(shown[..2], [json!({ "name": "Signed" }), json!({ "topic": "Stripped" })]);
    assert_eq!((shown.len(), &shown[2]["membership"]), (3, &json!("knock")));
}
