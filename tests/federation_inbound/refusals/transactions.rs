//! Transactions that are none; and those whose events are refused, each with a sentence of its own.

use std::{collections::BTreeMap, rc::Rc};

use http::Method;
use serde_json::{Value, json};

use super::{BAD_JSON, INVALID, Row, Stage, changed, everything, is_sentence};
use crate::common::peer::{Peer, event_id};

/// The tables that note a transaction whose events are refused: what it was answered, and what cites a rejected event must know.
const NOTES: [&str; 2] = ["rejected_events", "transactions"];

pub(super) fn rows(stage: &Stage) -> Vec<Row> {
    let pdu = json!({ "type": "m.room.message" });
    let edu = json!({ "edu_type": "m.other", "content": {} });
    let long = format!("v1/send/{}", "x".repeat(256));
    let cases = [
        ("without an ID", "v1/send/", json!({ "pdus": [] }), INVALID),
        ("with an ID that is too long", &long, json!({ "pdus": [] }), INVALID),
        ("without PDUs", "v1/send/1", json!({ "edus": [] }), BAD_JSON),
        ("with PDUs that are no list", "v1/send/1", json!({ "pdus": {} }), BAD_JSON),
        ("with PDUs that are null", "v1/send/1", json!({ "pdus": null }), BAD_JSON),
        ("with EDUs that are no list", "v1/send/1", json!({ "pdus": [], "edus": {} }), BAD_JSON),
        ("with 51 PDUs", "v1/send/1", json!({ "pdus": vec![pdu; 51] }), INVALID),
        ("with 101 EDUs", "v1/send/1", json!({ "pdus": [], "edus": vec![edu; 101] }), INVALID),
    ];
    cases.iter().map(|(name, rest, body, refusal)| stage.put(name, &stage.peer, rest, body, *refusal)).collect()
}

/// Events at the end of `room`, each of which breaks a rule, with the peer that sends it.
fn refused_events(stage: &Stage) -> BTreeMap<&'static str, (Rc<Peer>, String, Value)> {
    let mut events = BTreeMap::new();
    let message = || json!({ "type": "m.room.message", "content": { "msgtype": "m.text", "body": "x" } });
    let of = |sender: &str, fields: Value| stage.theirs.draft(stage.world.now_ms(), sender, fields);
    let mut add = |name: &'static str, peer: &Rc<Peer>, event: Value| {
        let mut event = event;
        event["origin_server_ts"] = json!(stage.world.now_ms() + i64::try_from(events.len()).unwrap());
        let (id, event) = peer.sign("12", event);
        events.insert(name, (Rc::clone(peer), id, event));
    };
    let bob = |fields: Value| of(&stage.bob, fields);
    let state =
        |kind: &str, key: &str, content: Value| bob(json!({ "type": kind, "state_key": key, "content": content }));
    let changed = |name: &str, value: Value| {
        let mut event = bob(message());
        event[name] = value;
        event
    };
    let peer = &stage.peer;
    add("of our user", peer, of(stage.alice.as_str(), message()));
    add("of another server's user", peer, of("@x:stranger.example", message()));
    add("of who is not in the room", peer, of(&stage.peer.user("nobody"), message()));
    add("of who is banned", peer, of(&stage.mallory, message()));
    add("without auth events", peer, changed("auth_events", json!([])));
    add("with an auth event of another room", peer, {
        let mut event = bob(message());
        let other = stage.state_id(&stage.other, "m.room.join_rules", "");
        event["auth_events"].as_array_mut().unwrap().push(json!(other));
        event
    });
    add("with an auth event twice", peer, {
        let mut event = bob(message());
        let first = event["auth_events"][0].clone();
        event["auth_events"].as_array_mut().unwrap().push(first);
        event
    });
    add("with a depth that is a text", peer, changed("depth", json!("7")));
    add("with a depth below 0", peer, changed("depth", json!(-1)));
    add("with 21 previous events", peer, changed("prev_events", json!(vec!["$e"; 21])));
    add("with a type that is too long", peer, changed("type", json!("x".repeat(256))));
    add("a second beginning", peer, state("m.room.create", "", json!({ "room_version": "12" })));
    add("power levels by who has none", peer, state("m.room.power_levels", "", json!({ "users_default": 100 })));
    add("a name by who may not give one", peer, state("m.room.name", "", json!({ "name": "Bob's" })));
    add("a ban by who may not ban", peer, state("m.room.member", stage.alice.as_str(), json!({ "membership": "ban" })));
    add("a join of somebody else", peer, state("m.room.member", "@x:peer.example", json!({ "membership": "join" })));
    add("a membership that is none", peer, state("m.room.member", &stage.bob, json!({ "membership": "guest" })));
    add("a member who is none", peer, state("m.room.member", "bob", json!({ "membership": "invite" })));
    add("another user's state", peer, state("m.custom", "@x:peer.example", json!({})));
    add(
        "an invite of who is there",
        peer,
        state("m.room.member", stage.alice.as_str(), json!({ "membership": "invite" })),
    );
    let erin = stage.gone.user("erin");
    add("of who has left", &stage.gone, of(&erin, message()));
    let carol = stage.denied.user("carol");
    let theirs = stage.shut_to.draft(stage.world.now_ms(), &carol, message());
    add("of a server that the ACL denies", &stage.denied, theirs);
    let mut altered = |name: &'static str, change: &dyn Fn(&mut Value)| {
        let mut event = peer.sign("12", bob(message())).1;
        change(&mut event);
        events.insert(name, (Rc::clone(peer), event_id("12", &event), event));
    };
    altered("altered after it was signed", &|event| event["depth"] = json!(99));
    // ruma signs nothing so long.
    altered("of more than 65536 bytes", &|event| event["content"]["body"] = json!("x".repeat(65_537)));
    altered("without a signature", &|event| {
        event["depth"] = json!(98);
        event["signatures"] = json!({});
    });
    altered("signed by another server", &|event| {
        event["depth"] = json!(97);
        event["signatures"] = json!({ "stranger.example": event["signatures"]["peer.example"] });
    });
    altered("with a signature that is none", &|event| {
        event["depth"] = json!(96);
        event["signatures"]["peer.example"]["ed25519:peer"] = json!("x");
    });
    events
}

#[test]
fn events_that_must_be_refused_get_a_sentence_and_change_nothing() {
    let stage = Stage::new();
    let mut before = everything(&stage.a);
    let mut faults = Vec::new();
    for (name, (peer, id, event)) in refused_events(&stage) {
        let (status, answer) = peer.send(&stage.a, &name.replace(' ', "_"), &[event]);
        stage.world.settle();
        assert_eq!(status, 200, "{name}: {answer}");
        let error = answer["pdus"][&id]["error"].as_str();
        if !error.is_some_and(is_sentence) || answer["pdus"].as_object().unwrap().len() != 1 {
            faults.push(format!("{name}: {answer}"));
        }
        let after = everything(&stage.a);
        let mut differ = changed(&before, &after);
        differ.retain(|table| !NOTES.contains(&table.as_str()));
        if !differ.is_empty() {
            faults.push(format!("{name}: changed {differ:?}"));
        }
        before = after;
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The same request once more: a server that has not heard our answer sends it again.
#[test]
fn what_comes_again_is_answered_as_before_and_changes_nothing() {
    let mut stage = Stage::new();
    let (bob, dave) = (stage.bob.clone(), stage.peer.user("dave"));
    let (said, message) = stage.theirs.say(&stage.peer, &bob, "once");
    let body = json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": [message] });
    let invited = stage.peer.user("invited");
    let invite = verge::room::Draft::membership(&invited, super::Membership::Invite, super::Object::new());
    stage.a.send(&stage.world, &stage.room, &stage.alice, invite);
    let template = |kind: &str, room: &str, user: &str| {
        let target =
            format!("/_matrix/federation/v1/make_{kind}/{}/{}?ver=12", super::encode(room), super::encode(user));
        stage.peer.sign("12", stage.peer.get(&stage.a, &target).1["event"].clone())
    };
    let event = |endpoint: &str, kind: &str, room: &str, user: &str| {
        let (id, event) = template(kind, room, user);
        (format!("{endpoint}/{}/{}", super::encode(room), super::encode(&id)), event)
    };
    let (room, knockable) = (stage.room.as_str(), stage.knockable.as_str());
    let requests = [
        ("v1/send/once".to_owned(), body),
        event("v2/send_leave", "leave", room, &invited),
        event("v2/send_join", "join", room, &dave),
        event("v1/send_knock", "knock", knockable, &dave),
    ];
    for (rest, body) in requests {
        let request = || stage.peer.request(&stage.a, Method::PUT, &super::federation(&rest), Some(&body));
        let first = stage.peer.ask(&stage.a, request());
        assert_eq!(first.0, 200, "{rest}: {}", first.1);
        stage.world.settle();
        let before = everything(&stage.a);
        for _ in 0..2 {
            assert_eq!(stage.peer.ask(&stage.a, request()), first, "{rest}");
            stage.world.settle();
            assert_eq!(changed(&before, &everything(&stage.a)), [] as [&str; 0], "{rest}");
        }
    }
    assert!(stage.a.shows(&said));
}
