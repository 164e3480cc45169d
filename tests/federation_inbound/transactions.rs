//! Transactions, and the first three checks on the receipt of their PDUs.

use std::{cell::Cell, rc::Rc};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use verge::{matrix::state_content::Membership, room::Draft, router::json_response};

use crate::{
    Scene, accepted,
    common::{
        homeserver::object,
        peer::{Peer, encode, event_id, request, send},
    },
    device_edus::{self, log_in},
    scene,
};

/// Bob's unsigned message at the end of the room.
fn message(scene: &Scene, body: &str) -> Value {
    let content = json!({ "msgtype": "m.text", "body": body });
    scene.theirs.draft(scene.world.now_ms(), &scene.bob, json!({ "type": "m.room.message", "content": content }))
}

/// Sends one PDU that must be refused with an error of its own, and change nothing.
fn refused(scene: &Scene, txn_id: &str, pdu: &Value) -> String {
    let before = accepted(&scene.a);
    let id = event_id(&scene.theirs.version, pdu);
    let (status, answer) = scene.peer.send(&scene.a, txn_id, std::slice::from_ref(pdu));
    assert_eq!(status, 200);
    assert_eq!(answer["pdus"].as_object().unwrap().len(), 1, "{answer}");
    scene.world.settle();
    assert_eq!(accepted(&scene.a), before);
    answer["pdus"][&id]["error"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn events_of_a_transaction_are_accepted_each_under_its_id() {
    for version in ["10", "11", "12"] {
        let mut scene = scene(version);
        let said: Vec<(String, Value)> =
            (0..50).map(|i| scene.theirs.say(&scene.peer, &scene.bob, &format!("message {i}"))).collect();
        // In no particular order.
        let pdus: Vec<Value> = said.iter().rev().map(|(_, event)| event.clone()).collect();
        let (status, answer) = scene.peer.send(&scene.a, "1", &pdus);
        assert_eq!(status, 200);
        for (id, _) in &said {
            assert_eq!(answer["pdus"][id], json!({}));
            assert!(scene.a.shows(id));
        }
        let room = scene.world.run(scene.a.rooms.room(&scene.room)).unwrap().unwrap();
        let extremities: Vec<_> = room.extremities.iter().map(|one| one.event_id.as_str()).collect();
        assert_eq!(extremities, [said[49].0.as_str()]);
    }
}

#[test]
fn a_transaction_is_processed_once() {
    let mut scene = scene("12");
    let (first, event) = scene.theirs.say(&scene.peer, &scene.bob, "once");
    let pdus = [event];
    let answer = scene.peer.send(&scene.a, "1", &pdus);
    let after = accepted(&scene.a);
    assert_eq!(scene.peer.send(&scene.a, "1", &pdus), answer);
    assert_eq!(accepted(&scene.a), after);
    // The ID names the transaction, whatever it holds.
    let (second, event) = scene.theirs.say(&scene.peer, &scene.bob, "never");
    assert_eq!(scene.peer.send(&scene.a, "1", std::slice::from_ref(&event)), answer);
    assert!(scene.a.shows(&first) && !scene.a.shows(&second));
    // Of another server it is another transaction; and an event that comes again is the same event.
    let other = Peer::new(&scene.world, "other.example");
    let (status, answer) = other.send(&scene.a, "1", &[pdus[0].clone(), event]);
    assert_eq!((status, answer), (200, json!({ "pdus": { first: {}, second.as_str(): {} } })));
    assert!(scene.a.shows(&second));
}

#[test]
fn a_transaction_of_too_much_or_of_the_wrong_shape_is_refused_whole() {
    let mut scene = scene("12");
    let (_, event) = scene.theirs.say(&scene.peer, &scene.bob, "hello");
    let before = accepted(&scene.a);
    let edu = json!({ "edu_type": "m.unknown", "content": {} });
    for (body, errcode) in [
        (json!({ "pdus": vec![event.clone(); 51] }), "M_INVALID_PARAM"),
        (json!({ "pdus": [event.clone()], "edus": vec![edu.clone(); 101] }), "M_INVALID_PARAM"),
        (json!({ "edus": [] }), "M_BAD_JSON"),
        (json!({ "pdus": {} }), "M_BAD_JSON"),
    ] {
        let (status, answer) = scene.peer.put(&scene.a, "/_matrix/federation/v1/send/1", &body);
        assert_eq!((status, answer["errcode"].as_str()), (400, Some(errcode)));
    }
    assert_eq!(accepted(&scene.a), before);
    // As many as allowed, malformed ones among them, and none of the malformed ones in the way.
    let mut edus = vec![edu; 97];
    edus.extend([json!(1), json!({}), json!({ "edu_type": "m.typing", "content": 1 })]);
    let body = json!({ "pdus": vec![event; 50], "edus": edus });
    let (status, answer) = scene.peer.put(&scene.a, "/_matrix/federation/v1/send/1", &body);
    assert_eq!((status, answer["pdus"].as_object().unwrap().len()), (200, 1));
}

/// So many arrays inside each other, as a text.
fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// A message of Bob's whose content has a member of so many nested arrays, and its ID.
fn deep_message(scene: &Scene, depth: usize) -> (String, Value) {
    let mut deep = message(scene, "deep");
    deep["content"]["x"] = (1..depth).fold(json!([]), |inner, _| json!([inner]));
    scene.peer.sign("12", deep)
}

#[test]
fn what_is_nested_too_deep_is_refused_by_itself() {
    let mut scene = scene("12");
    log_in(&scene, "PHONE");
    let (good, event) = scene.theirs.say(&scene.peer, &scene.bob, "hello");
    // An event and its content are two levels themselves, and 500 is the limit.
    let (deepest, deepest_event) = deep_message(&scene, 498);
    let (too_deep, too_deep_event) = deep_message(&scene, 600);
    let to_device = |id: &str, depth: usize| {
        let content = json!({ "x": (1..depth).fold(json!([]), |inner, _| json!([inner])) });
        device_edus::message(&scene, &scene.bob, id, "PHONE", content)
    };
    // There are five objects around what a message holds.
    let edus = [to_device("1", 600), to_device("2", 496), to_device("3", 495)];
    let body = json!({ "pdus": [event, too_deep_event, deepest_event], "edus": edus });
    let (status, answer) = scene.peer.put(&scene.a, "/_matrix/federation/v1/send/1", &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["pdus"].as_object().unwrap().len(), 3, "{answer}");
    assert_eq!((&answer["pdus"][&good], &answer["pdus"][&deepest]), (&json!({}), &json!({})));
    let error = answer["pdus"][&too_deep]["error"].as_str().unwrap();
    assert!(error.contains("nested too deep"), "{error}");
    assert!(scene.a.shows(&good) && scene.a.shows(&deepest) && !scene.a.shows(&too_deep));
    let messages = scene.a.database.rows("SELECT message FROM to_device_messages");
    assert!(messages.len() == 1 && messages[0][0].contains(&nested(495)), "{}", messages.len());
}

#[test]
fn no_depth_of_a_transaction_is_too_deep_to_be_answered() {
    let mut scene = scene("12");
    let (good, event) = scene.theirs.say(&scene.peer, &scene.bob, "hello");
    let body = |open: &str, close: &str| {
        let objects = |open: &str, close: &str, depth: usize| format!("{}0{}", open.repeat(depth), close.repeat(depth));
        let edus = [nested(5_000_000), objects(open, close, 100_000), objects("{\"edu_type\":", "}", 700)];
        format!("{{\"edus\":[{}],\"pdus\":[{event}],\"x\":{}}}", edus.join(","), nested(1_000))
    };
    let canonical = body("{\"a\":", ",\"b\":[1]}");
    let target = "/_matrix/federation/v1/send/1";
    let sent = scene.peer.put_text(&scene.a, target, &canonical);
    assert_eq!(sent, (200, json!({ "pdus": { good: {} } })));
    let target = "/_matrix/federation/v1/send/2";
    // Its sender signs it as canonical JSON, in whatever order it sends it.
    let other = body("{\"a\":[{}], \"b\" :[ 1] ,\"\\u0061\": ", "\n}");
    let authorization = scene.peer.text_authorization(&scene.a, target, &canonical);
    let (status, answer) = send(&scene.world, &scene.a, request(Method::PUT, target, &[&authorization], other));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn what_there_is_no_memory_for_is_left_out_by_itself() {
    let mut scene = scene("12");
    log_in(&scene, "PHONE");
    let (good, event) = scene.theirs.say(&scene.peer, &scene.bob, "hello");
    // Each takes ten times its length.
    let dense = |n: usize| {
        device_edus::message(&scene, &scene.bob, &n.to_string(), "PHONE", json!({ "x": vec![json!([0]); 15_000] }))
    };
    let small = device_edus::message(&scene, &scene.bob, "small", "PHONE", json!({ "n": 1 }));
    let edus: Vec<Value> = (0..99).map(dense).chain([small]).collect();
    let body = json!({ "pdus": [event], "edus": edus });
    let sent = scene.peer.put(&scene.a, "/_matrix/federation/v1/send/1", &body);
    assert_eq!(sent, (200, json!({ "pdus": { good: {} } })));
    let messages = |like: &str| {
        let rows =
            scene.a.database.rows(&format!("SELECT COUNT(*) FROM to_device_messages WHERE message LIKE '%{like}%'"));
        rows[0][0].parse::<usize>().unwrap()
    };
    assert_eq!(messages("\"n\":1"), 1);
    assert!((50..99).contains(&messages("[0]")), "{}", messages("[0]"));
}

#[test]
fn a_forged_or_missing_signature_drops_the_event() {
    let scene = scene("12");
    let (_, mut forged) = scene.peer.sign("12", message(&scene, "forged"));
    forged["depth"] = json!(99);
    let error = refused(&scene, "1", &forged);
    assert!(error.contains("peer.example"), "{error}");

    // Somebody else's user, whose server has not signed, member or not.
    let carol = "@carol:other.example";
    let mut event = message(&scene, "not mine");
    event["sender"] = json!(carol);
    let (_, unsigned) = scene.peer.sign("12", event);
    let error = refused(&scene, "2", &unsigned);
    assert!(error.contains("other.example"), "{error}");
}

#[test]
fn an_event_with_a_wrong_content_hash_is_stored_redacted() {
    for version in ["10", "11", "12"] {
        let scene = scene(version);
        let (id, mut event) = scene.peer.sign(version, message(&scene, "what was hashed"));
        event["content"]["body"] = json!("what was not");
        assert_eq!(event_id(version, &event), id);
        let (status, answer) = scene.peer.send(&scene.a, "1", &[event]);
        assert_eq!((status, answer), (200, json!({ "pdus": { id.as_str(): {} } })));
        let stored = scene.a.database.rows(&format!("SELECT json FROM events WHERE event_id = '{id}'"));
        let stored: Value = serde_json::from_str(&stored[0][0]).unwrap();
        assert_eq!(stored["content"], json!({}));
    }
}

/// Rooms v3, "Handling redactions": a redaction is an event like others, but redacts only what its sender's server sent, or
/// with the power to.
#[test]
fn a_redaction_of_somebody_elses_message_takes_power() {
    for version in ["10", "11", "12"] {
        let mut scene = scene(version);
        let text = object(json!({ "msgtype": "m.text", "body": "hers" }));
        let hers = scene.a.send(&scene.world, &scene.room, &scene.alice, Draft::message("m.room.message", text));
        let hers = hers.event_id().to_string();
        let (his, event) = scene.theirs.say(&scene.peer, &scene.bob, "his");
        assert_eq!(scene.peer.send(&scene.a, "1", &[event]).1["pdus"][&his], json!({}));

        let redact = |scene: &mut Scene, txn_id: &str, redacts: &str| {
            let mut fields = json!({ "type": "m.room.redaction", "content": {} });
            match version {
                "10" => fields["redacts"] = json!(redacts),
                _ => fields["content"]["redacts"] = json!(redacts),
            }
            let draft = scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields);
            let (id, event) = scene.peer.sign(version, draft);
            assert_eq!(
                scene.peer.send(&scene.a, txn_id, &[event]).1["pdus"][&id],
                json!({}),
                "it is an event like others"
            );
            scene.theirs.advance(&id);
            scene.world.settle();
            let stored = format!("SELECT ifnull(redacted_by, '') FROM events WHERE event_id = '{redacts}'");
            (id, scene.a.database.rows(&stored).remove(0).remove(0))
        };
        let (_, redacted_by) = redact(&mut scene, "2", &hers);
        assert_eq!(redacted_by, "", "version {version}: Bob has no power");
        let (id, redacted_by) = redact(&mut scene, "3", &his);
        assert_eq!(redacted_by, id, "version {version}: it is of his own server");

        let users = if version == "12" {
            json!({ &scene.bob: 50 })
        } else {
            json!({ scene.alice.as_str(): 100, &scene.bob: 50 })
        };
        let levels = Draft::state("m.room.power_levels", "", object(json!({ "users": users })));
        let levels = scene.a.send(&scene.world, &scene.room, &scene.alice, levels);
        let text = serde_json::from_str(levels.json()).unwrap();
        scene.theirs.state.insert(("m.room.power_levels".to_owned(), String::new()), text);
        scene.theirs.advance(levels.event_id().as_str());
        let (id, redacted_by) = redact(&mut scene, "4", &hers);
        assert_eq!(redacted_by, id, "version {version}: now he has it");
    }
}

#[test]
fn what_the_rules_forbid_is_rejected_and_changes_nothing() {
    let scene = scene("12");
    let name = json!({ "type": "m.room.name", "state_key": "", "content": { "name": "Bob's" } });
    let (id, event) = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &scene.bob, name));
    refused(&scene, "1", &event);
    assert!(!scene.a.shows(&id));
    // It is remembered, so that what cites it can be judged.
    let rejected = scene.a.database.rows(&format!("SELECT json FROM rejected_events WHERE event_id = '{id}'"));
    assert_eq!(rejected, [["NULL"]]);
}

#[test]
fn sizes_are_checked_to_the_byte() {
    let scene = scene("12");
    let length = |body: &str| scene.peer.sign("12", message(&scene, body)).1.to_string().len();
    let largest = "x".repeat(65_536 - length(""));
    assert_eq!(length(&largest), 65_536);
    let (_, too_large) = scene.peer.sign("12", message(&scene, &format!("{largest}x")));
    refused(&scene, "1", &too_large);
    let (id, event) = scene.peer.sign("12", message(&scene, &largest));
    let (_, answer) = scene.peer.send(&scene.a, "2", &[event]);
    assert_eq!(answer["pdus"][id], json!({}));
}

#[test]
fn malformed_events_get_an_answer_each_and_do_not_harm_the_others() {
    let mut scene = scene("12");
    let malformed: Vec<Value> = [
        json!({ "depth": "deep" }),
        json!({ "depth": -1 }),
        json!({ "auth_events": vec!["$x"; 11] }),
        json!({ "prev_events": vec!["$x"; 21] }),
        json!({ "type": "x".repeat(256) }),
    ]
    .into_iter()
    .map(|wrong| {
        let mut event = message(&scene, "malformed");
        for (name, value) in wrong.as_object().unwrap() {
            event[name] = value.clone();
        }
        scene.peer.sign("12", event).1
    })
    .collect();
    let (good, event) = scene.theirs.say(&scene.peer, &scene.bob, "well-formed");
    let mut pdus = vec![json!(1), json!({}), json!({ "room_id": 1 }), json!({ "room_id": scene.room.as_str() })];
    pdus.extend(malformed.clone());
    pdus.push(event);
    let before = accepted(&scene.a);
    let (status, answer) = scene.peer.send(&scene.a, "1", &pdus);
    assert_eq!(status, 200);
    assert_eq!(answer["pdus"][&good], json!({}));
    for event in &malformed {
        assert!(answer["pdus"][event_id("12", event)]["error"].is_string(), "{answer}");
    }
    assert_ne!(accepted(&scene.a), before);
    assert!(scene.a.shows(&good));
}

#[test]
fn events_of_rooms_that_we_are_not_in_are_not_taken() {
    let mut scene = scene("12");
    let (_, mut event) = scene.theirs.say(&scene.peer, &scene.bob, "elsewhere");
    event["room_id"] = json!("!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let before = accepted(&scene.a);
    assert_eq!(scene.peer.send(&scene.a, "1", &[event]), (200, json!({ "pdus": {} })));
    // Of a room that all of us have left, each is told.
    let leave = Draft::membership(scene.alice.as_str(), Membership::Leave, object(json!({})));
    assert_eq!(accepted(&scene.a), before);
    scene.a.send(&scene.world, &scene.room, &scene.alice, leave);
    scene.world.settle();
    let (id, event) = scene.theirs.say(&scene.peer, &scene.bob, "to nobody");
    let (status, answer) = scene.peer.send(&scene.a, "2", &[event]);
    assert_eq!(status, 200);
    assert!(answer["pdus"][&id]["error"].is_string(), "{answer}");
    assert!(!scene.a.shows(&id));
}

#[test]
fn missing_events_are_fetched_from_the_sender() {
    let mut scene = scene("12");
    let said: Vec<(String, Value)> =
        (0..4).map(|i| scene.theirs.say(&scene.peer, &scene.bob, &format!("message {i}"))).collect();
    let between: Vec<Value> = said[..3].iter().map(|(_, event)| event.clone()).collect();
    scene.peer.answers(move |request| {
        let asked = request.uri().path().contains("/get_missing_events/");
        asked.then(|| json_response(StatusCode::OK, &json!({ "events": between })))
    });
    let (status, answer) = scene.peer.send(&scene.a, "1", &[said[3].1.clone()]);
    assert_eq!((status, answer), (200, json!({ "pdus": { said[3].0.as_str(): {} } })));
    scene.world.settle();
    for (id, _) in &said {
        assert!(scene.a.shows(id), "{id} is not shown; {:?}", scene.world.logs());
    }
    assert!(scene.a.database.rows("SELECT 1 FROM staged_pdus").is_empty());
}

/// 50 of Bob's messages that cite, each in its own order, as many events as they may, whose IDs are `id` and a number.
fn citing(scene: &Scene, id: impl Fn(usize) -> String) -> Vec<(String, Value)> {
    let cite = |from: usize, count: usize| (from..from + count).map(&id).collect::<Vec<_>>();
    let event = |i: usize| {
        let mut event = message(scene, "citing");
        event["auth_events"] = json!(cite(100 * i, 10));
        event["prev_events"] = json!(cite(100 * i + 10, 20));
        scene.peer.sign(&scene.theirs.version, event)
    };
    (0..50).map(event).collect()
}

#[test]
fn references_longer_than_event_ids_refuse_the_event() {
    for version in ["10", "12"] {
        let scene = scene(version);
        let before = accepted(&scene.a);
        let sent = citing(&scene, |i| format!("${i}{}", "x".repeat(1_900)));
        let pdus: Vec<Value> = sent.iter().map(|(_, event)| event.clone()).collect();
        let (status, answer) = scene.peer.send(&scene.a, "1", &pdus);
        assert_eq!(status, 200, "{answer}");
        for (id, _) in &sent {
            let error = answer["pdus"][id]["error"].as_str().unwrap();
            assert!(error.contains("`auth_events` is too large"), "{error}");
        }
        assert_eq!(accepted(&scene.a), before);
    }
}

#[test]
fn references_that_take_more_room_than_they_have_bytes_do_no_harm() {
    let scene = scene("12");
    // 255 bytes, of which each but a few takes six in JSON: together more than the database takes in a parameter.
    let sent = citing(&scene, |i| format!("${i:04}{}", "\u{1}".repeat(250)));
    let pdus: Vec<Value> = sent.iter().map(|(_, event)| event.clone()).collect();
    let (status, answer) = scene.peer.send(&scene.a, "1", &pdus);
    assert_eq!(status, 200, "{answer}");
    for (id, _) in &sent {
        assert_eq!(answer["pdus"][id], json!({}));
    }
    scene.world.settle();
    assert!(!scene.world.logs().iter().any(|line| line.contains("parameter")), "{:?}", scene.world.logs());
}

#[test]
fn a_server_that_is_heard_from_gets_at_once_what_it_has_not_had() {
    let profile = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.example";
    let asks: [&dyn Fn(&Scene) -> u16; 5] = [
        &|scene| scene.peer.get(&scene.a, profile).0,
        &|scene| {
            let room = encode(scene.room.as_str());
            let event = encode(&scene.theirs.last);
            scene.peer.get(&scene.a, &format!("/_matrix/federation/v1/state_ids/{room}?event_id={event}")).0
        },
        &|scene| {
            let body = json!({ "earliest_events": [], "latest_events": [scene.theirs.last] });
            let target = format!("/_matrix/federation/v1/get_missing_events/{}", encode(scene.room.as_str()));
            scene.peer.post(&scene.a, &target, &body).0
        },
        &|scene| scene.peer.send(&scene.a, "1", &[]).0,
        // The answer to a repetition counts as well.
        &|scene| scene.peer.send(&scene.a, "0", &[]).0,
    ];
    for ask in asks {
        let scene = scene("12");
        assert_eq!(scene.peer.send(&scene.a, "0", &[]).0, 200);
        let is_up = Rc::new(Cell::new(false));
        let up = Rc::clone(&is_up);
        scene.peer.answers(move |request| {
            let status = if up.get() { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
            request.uri().path().contains("/v1/send/").then(|| json_response(status, &json!({ "pdus": {} })))
        });
        let received = || {
            let requests = scene.peer.received.borrow();
            requests.iter().filter(|request| request.uri().path().contains("/v1/send/")).count()
        };
        let said = scene.a.say(&scene.world, &scene.room, &scene.alice, "are you there?");
        scene.world.settle();
        let before = received();
        let failures = || scene.a.database.rows("SELECT failures FROM destinations WHERE destination = 'peer.example'");
        assert_eq!((before, failures()), (1, vec![vec!["1".to_owned()]]));
        // Nobody else is the server.
        let other = Peer::new(&scene.world, "other.example");
        assert_eq!(other.get(&scene.a, profile).0, 200);
        scene.world.settle();
        assert_eq!(received(), before);
        is_up.set(true);
        assert_eq!(ask(&scene), 200);
        scene.world.settle();
        assert_eq!((received(), failures()), (before + 1, vec![vec!["0".to_owned()]]));
        let requests = scene.peer.received.borrow();
        let body: Value = serde_json::from_slice(requests.last().unwrap().body()).unwrap();
        assert_eq!(event_id("12", &body["pdus"][0]), said.event_id().as_str());
        drop(requests);
        // Whom nobody thinks away costs no call and no row more.
        let cost = || (scene.a.database.calls.get(), scene.a.database.rows("SELECT total_changes()"));
        let (calls, changes) = cost();
        assert_eq!(scene.peer.get(&scene.a, profile).0, 200);
        scene.world.settle();
        assert_eq!(cost(), (calls + 1, changes));
    }
}

/// In the first room versions an event's ID is what its sender says: it could wait for itself.
#[test]
fn an_event_that_cites_itself_is_refused_at_once() {
    let scene = scene("12");
    for version in ["1", "2"] {
        let room = scene.a.public_room(&scene.world, &scene.alice, version);
        for member in ["prev_events", "auth_events"] {
            let reference = |id: &str| json!([id, { "sha256": "abc" }]);
            let id = format!("${member}{version}:peer.example");
            let mut event = json!({
                "event_id": id, "room_id": room.as_str(), "sender": scene.bob, "type": "m.room.message", "depth": 9,
                "origin_server_ts": scene.world.now_ms(), "content": { "msgtype": "m.text", "body": "I" },
                "auth_events": [reference("$auth:peer.example")], "prev_events": [reference("$before:peer.example")],
            });
            event[member].as_array_mut().unwrap().push(reference(&id));
            let (_, event) = scene.peer.sign(version, event);
            let (status, answer) = scene.peer.send(&scene.a, &id, &[event]);
            let error = answer["pdus"][&id]["error"].as_str().unwrap_or_default();
            assert!(status == 200 && error.contains("cites itself"), "{answer}");
            assert!(scene.a.database.rows("SELECT 1 FROM staged_pdus").is_empty());
        }
    }
}
