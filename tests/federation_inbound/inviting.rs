//! Invites of our users by other servers.

use std::{cell::Cell, rc::Rc};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::StatusCode;
use serde_json::{Value, json};
use verge::{federation::outbound::membership, matrix::json::Object, router::json_response};

use crate::{
    Scene, accepted,
    common::{
        network::{Homeserver, World},
        peer::{Peer, assert_signed, encode, event_id},
    },
    scene,
};

/// A room of the peer, of which our server knows nothing, and an invite to it.
struct Invited {
    a: Homeserver,
    peer: Rc<Peer>,
    version: &'static str,
    room_id: String,
    create: Value,
    invite: Value,
}

fn invited(version: &'static str) -> Invited {
    let world = World::new();
    let a = world.server("a.example");
    a.user(&world, "alice");
    let peer = Peer::new(&world, "peer.example");
    let bob = peer.user("bob");
    let mut create = json!({
        "type": "m.room.create", "state_key": "", "sender": bob, "origin_server_ts": world.now_ms(), "depth": 1,
        "auth_events": [], "prev_events": [], "content": { "room_version": version },
    });
    if version == "10" {
        create["content"]["creator"] = json!(bob);
    }
    if version != "12" {
        create["room_id"] = json!("!room:peer.example");
    }
    let (create_id, create) = peer.sign(version, create);
    let room_id = if version == "12" { create_id.replace('$', "!") } else { "!room:peer.example".to_owned() };
    let invite = json!({
        "type": "m.room.member", "state_key": "@alice:a.example", "sender": bob, "room_id": room_id,
        "origin_server_ts": world.now_ms(), "depth": 5, "auth_events": ["$auth"], "prev_events": ["$previous"],
        "content": { "membership": "invite" },
    });
    Invited { a, peer, version, room_id, create, invite }
}

impl Invited {
    fn send(&self, event: Value, room_state: &Value) -> (u16, Value) {
        let id = event_id(self.version, &event);
        let target = format!("/_matrix/federation/v2/invite/{}/{}", encode(&self.room_id), encode(&id));
        let body = json!({ "room_version": self.version, "event": event, "invite_room_state": room_state });
        self.peer.put(&self.a, &target, &body)
    }

    fn signed(&self, change: impl Fn(&mut Value)) -> Value {
        let mut invite = self.invite.clone();
        change(&mut invite);
        self.peer.sign(self.version, invite).1
    }
}

#[test]
fn an_invite_is_signed_and_shown_to_the_invited() {
    for version in ["10", "11", "12"] {
        let invited = invited(version);
        let (_, name) = invited.peer.sign(version, json!({
            "type": "m.room.name", "state_key": "", "sender": invited.peer.user("bob"), "room_id": invited.room_id,
            "origin_server_ts": 1, "depth": 2, "auth_events": [], "prev_events": [], "content": { "name": "Theirs" },
        }));
        let invite = invited.signed(|_| {});
        let (status, answer) = invited.send(invite.clone(), &json!([invited.create, name]));
        assert_eq!(status, 200, "{answer}");
        let ours = STANDARD_NO_PAD.decode(invited.a.config.signing_key.public_base64()).unwrap();
        let theirs = invited.peer.public_key();
        let keys = [("a.example", "ed25519:auto", ours), ("peer.example", "ed25519:peer", theirs)];
        assert!(answer["event"]["signatures"]["a.example"].is_object());
        assert_signed(version, &answer["event"], &keys);
        let mut without_ours = answer["event"].clone();
        without_ours["signatures"].as_object_mut().unwrap().remove("a.example");
        assert_eq!(without_ours, invite);
        let rows = invited.a.database.rows("SELECT user_id, room_id, membership, invite_state FROM local_memberships");
        assert_eq!(rows[0][..3], ["@alice:a.example".to_owned(), invited.room_id.clone(), "invite".to_owned()]);
        let shown: Value = serde_json::from_str(&rows[0][3]).unwrap();
        assert!(shown.as_array().unwrap().iter().any(|event| event["content"]["name"] == "Theirs"));
    }
}

#[test]
fn nothing_but_an_invite_of_our_user_by_theirs_is_signed() {
    let invited = invited("12");
    let before = accepted(&invited.a);
    let state = json!([invited.create]);
    let refused = |event: Value, state: &Value, expected: (u16, &str)| {
        let (status, answer) = invited.send(event, state);
        assert_eq!((status, answer["errcode"].as_str().unwrap_or_default()), expected, "{answer}");
        assert!(answer.get("event").is_none());
    };
    let invalid = (400, "M_INVALID_PARAM");
    refused(invited.signed(|event| event["type"] = json!("m.room.topic")), &state, invalid);
    refused(invited.signed(|event| event["content"]["membership"] = json!("join")), &state, invalid);
    refused(invited.signed(|event| event["sender"] = json!("@carol:other.example")), &state, invalid);
    refused(invited.signed(|event| event["state_key"] = json!("@alice:b.example")), &state, invalid);
    refused(invited.signed(|event| event["room_id"] = json!("!other:peer.example")), &state, invalid);
    refused(invited.signed(|event| event["state_key"] = json!("@nobody:a.example")), &state, (404, "M_NOT_FOUND"));
    let mut forged = invited.signed(|_| {});
    forged["depth"] = json!(6);
    refused(forged, &state, invalid);
    // The room's state must be the room's, with its beginning, and signed.
    let invite = invited.signed(|_| {});
    refused(invite.clone(), &json!([]), invalid);
    let stripped = json!({ "type": "m.room.create", "state_key": "", "sender": "@bob:peer.example", "content": {} });
    refused(invite.clone(), &json!([stripped]), invalid);
    let mut forged = invited.create.clone();
    forged["depth"] = json!(2);
    refused(invite.clone(), &json!([forged]), invalid);
    let target = format!("/_matrix/federation/v2/invite/{}/$other", encode(&invited.room_id));
    let body = json!({ "room_version": "12", "event": invite, "invite_room_state": state });
    assert_eq!(invited.peer.put(&invited.a, &target, &body).0, 400);
    let body = json!({ "room_version": "99", "event": {}, "invite_room_state": [] });
    let (status, answer) = invited.peer.put(&invited.a, &target, &body);
    assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_INCOMPATIBLE_ROOM_VERSION")));
    assert_eq!(accepted(&invited.a), before);
}

#[test]
fn what_is_shown_of_the_room_is_one_event_for_each_key() {
    for version in ["11", "12"] {
        let invited = invited(version);
        let bob = invited.peer.user("bob");
        let event = |kind: &str, key: &str, content: Value| {
            let event = json!({
                "type": kind, "state_key": key, "sender": bob, "room_id": invited.room_id, "content": content,
                "origin_server_ts": 1, "depth": 2, "auth_events": [], "prev_events": [],
            });
            invited.peer.sign(version, event).1
        };
        let names = (0..20).map(|i| event("m.room.name", "", json!({ "name": format!("{i}{}", "x".repeat(40_000)) })));
        let mut state: Vec<Value> = names.collect();
        state.push(event("m.room.topic", "elsewhere", json!({ "topic": "nobody's" })));
        state.push(event("m.room.member", &bob, json!({ "membership": "join" })));
        state.push(invited.create.clone());
        let (status, answer) = invited.send(invited.signed(|_| {}), &json!(state));
        assert_eq!(status, 200, "{answer}");
        let rows = invited.a.database.rows("SELECT invite_state FROM local_memberships");
        let shown: Value = serde_json::from_str(&rows[0][0]).unwrap();
        let keys: Vec<_> =
            shown.as_array().unwrap().iter().map(|e| (e["type"].clone(), e["state_key"].clone())).collect();
        let expected = [
            ("m.room.name", ""),
            ("m.room.member", &bob),
            ("m.room.create", ""),
            ("m.room.member", "@alice:a.example"),
        ];
        assert_eq!(keys, expected.map(|(kind, key)| (json!(kind), json!(key))));
        assert!(shown[0]["content"]["name"].as_str().unwrap().starts_with("0x"));
    }
}

#[test]
fn older_servers_may_send_the_state_stripped() {
    let stripped = |kind: &str, content: Value| json!({ "type": kind, "state_key": "", "sender": "@bob:peer.example", "content": content });
    let name = stripped("m.room.name", json!({ "name": "Theirs" }));
    let is_shown = |invited: &Invited, state: Value| {
        let (status, answer) = invited.send(invited.signed(|_| {}), &state);
        assert_eq!(status, 200, "{answer}");
        let rows = invited.a.database.rows("SELECT invite_state FROM local_memberships");
        assert!(rows[0][0].contains("Theirs"));
    };
    is_shown(&invited("11"), json!([name, 1, {}]));
    // Such servers, Synapse until July 2026 among them, tell the create event of version 12 whole, and nothing else.
    let invited = invited("12");
    let member = stripped("m.room.member", json!({ "membership": "join" }));
    is_shown(&invited, json!([invited.create, name, member]));
    // What is signed may be altered no more than before.
    let mut forged = invited.create.clone();
    forged["depth"] = json!(2);
    let (status, answer) = invited.send(invited.signed(|_| {}), &json!([forged, name]));
    assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_INVALID_PARAM")));
}

#[test]
fn what_is_kept_of_an_invite_is_stripped_and_as_much_as_fits() {
    for version in ["11", "12"] {
        let invited = invited(version);
        let bob = invited.peer.user("bob");
        let event = |kind: &str, content: Value| {
            let event = json!({
                "type": kind, "state_key": "", "sender": bob, "room_id": invited.room_id, "content": content,
                "origin_server_ts": 1, "depth": 2, "auth_events": [], "prev_events": [],
            });
            invited.peer.sign(version, event).1
        };
        let topic = event("m.room.topic", json!({ "topic": "x".repeat(50_000) }));
        let avatar = event("m.room.avatar", json!({ "url": "x".repeat(50_000) }));
        let name = event("m.room.name", json!({ "name": "Theirs" }));
        let invite = invited.signed(|invite| invite["padding"] = json!("x".repeat(60_000)));
        let (status, answer) = invited.send(invite, &json!([topic, avatar, name, invited.create]));
        assert_eq!(status, 200, "{answer}");
        let rows = invited.a.database.rows("SELECT invite_state FROM local_memberships");
        let shown: Value = serde_json::from_str(&rows[0][0]).unwrap();
        let types: Vec<&str> = shown.as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["m.room.topic", "m.room.name", "m.room.create", "m.room.member"]);
        for event in shown.as_array().unwrap() {
            let members: Vec<&String> = event.as_object().unwrap().keys().collect();
            assert_eq!(members, ["content", "sender", "state_key", "type"]);
        }
        assert!(rows[0][0].len() < 65_536);
    }
}

#[test]
fn an_invite_is_taken_back_by_the_inviter_and_nobody_else() {
    // Before room version 12 nothing need be told of the room but its version.
    for (version, is_told) in [("10", true), ("10", false), ("11", true), ("11", false), ("12", true)] {
        let invited = invited(version);
        let invite = invited.signed(|_| {});
        let state = if is_told { json!([invited.create]) } else { json!([]) };
        assert_eq!(invited.send(invite.clone(), &state).0, 200);
        let membership = || invited.a.database.rows("SELECT membership FROM local_memberships");
        let sent = Cell::new(0);
        let leave = |change: &dyn Fn(&mut Value)| {
            let mut leave = invited.invite.clone();
            leave["content"]["membership"] = json!("leave");
            leave["auth_events"].as_array_mut().unwrap().push(json!(event_id(version, &invite)));
            change(&mut leave);
            invited.peer.sign(version, leave).1
        };
        let send = |leave: Value| {
            sent.set(sent.get() + 1);
            let (status, answer) = invited.peer.send(&invited.a, &sent.get().to_string(), &[leave]);
            assert_eq!((status, answer), (200, json!({ "pdus": {} })));
        };
        send(leave(&|leave| leave["sender"] = json!("@mallory:peer.example")));
        send(leave(&|leave| leave["auth_events"] = json!(["$other"])));
        send(leave(&|leave| leave["content"]["membership"] = json!("knock")));
        send(leave(&|leave| leave["state_key"] = json!("@nobody:a.example")));
        send(leave(&|leave| leave["room_id"] = json!("!other:peer.example")));
        let mut forged = leave(&|_| {});
        forged["depth"] = json!(7);
        send(forged);
        assert_eq!(membership(), [["invite"]]);
        let position = || invited.a.database.rows("SELECT position FROM streams WHERE name = 'events'");
        let before = position();
        send(leave(&|_| {}));
        assert_eq!(membership(), [["leave"]], "{version} {is_told}");
        assert_ne!(position(), before, "sync must notice");
        // An old leave does not end a new invite.
        let again = invited.signed(|invite| invite["depth"] = json!(9));
        assert_eq!(invited.send(again, &state).0, 200);
        send(leave(&|_| {}));
        assert_eq!(membership(), [["invite"]]);
    }
}

/// The ID that an event of room version 1 or 2 carries.
const OLD_ID: &str = "$invite:peer.example";

/// An invite of room version 2 as older servers send it, with its target.
fn old_invite(invited: &Invited, change: impl Fn(&mut Value)) -> (String, Value) {
    let bob = invited.peer.user("bob");
    let mut invite = json!({
        "type": "m.room.member", "state_key": "@alice:a.example", "sender": bob, "room_id": "!old:peer.example",
        "origin_server_ts": 1, "depth": 5, "event_id": OLD_ID, "content": { "membership": "invite" },
        "auth_events": [["$auth:peer.example", { "sha256": "abc" }]],
        "prev_events": [["$previous:peer.example", { "sha256": "abc" }]],
    });
    change(&mut invite);
    let mut invite = invited.peer.sign("2", invite).1;
    let name = json!({ "type": "m.room.name", "state_key": "", "sender": bob, "content": { "name": "Theirs" } });
    invite["unsigned"] = json!({ "invite_room_state": [name] });
    (format!("/_matrix/federation/v1/invite/{}/{}", encode("!old:peer.example"), encode(OLD_ID)), invite)
}

#[test]
fn older_servers_send_the_event_itself() {
    let invited = invited("11");
    let (target, invite) = old_invite(&invited, |_| {});
    let (status, answer) = invited.peer.put(&invited.a, &target, &invite);
    assert_eq!((status, &answer[0]), (200, &json!(200)), "{answer}");
    let signed = &answer[1]["event"];
    assert_eq!(signed["event_id"], OLD_ID);
    assert!(signed["signatures"]["a.example"].is_object() && signed["signatures"]["peer.example"].is_object());
    let rows = invited.a.database.rows("SELECT membership, invite_state FROM local_memberships");
    assert_eq!(rows[0][0], "invite");
    assert!(rows[0][1].contains("Theirs"));
    // And take it back.
    let (_, leave) = old_invite(&invited, |event| {
        event["content"]["membership"] = json!("leave");
        event["event_id"] = json!("$leave:peer.example");
        event["auth_events"] = json!([[OLD_ID, { "sha256": "abc" }]]);
    });
    assert_eq!(invited.peer.send(&invited.a, "1", &[leave]), (200, json!({ "pdus": {} })));
    assert_eq!(invited.a.database.rows("SELECT membership FROM local_memberships"), [["leave"]]);
}

#[test]
fn nothing_but_an_old_invite_is_taken_as_one() {
    let invited = invited("11");
    let before = accepted(&invited.a);
    let refused = |(target, event): (String, Value), errcode: &str| {
        let (status, answer) = invited.peer.put(&invited.a, &target, &event);
        assert_eq!((status, answer["errcode"].as_str()), (400, Some(errcode)), "{answer}");
    };
    let invalid = "M_INVALID_PARAM";
    refused(old_invite(&invited, |event| event["content"]["membership"] = json!("join")), invalid);
    refused(old_invite(&invited, |event| event["sender"] = json!("@carol:other.example")), invalid);
    refused(old_invite(&invited, |event| event["state_key"] = json!("@alice:b.example")), invalid);
    refused(old_invite(&invited, |event| event["room_id"] = json!("!other:peer.example")), invalid);
    let (target, mut forged) = old_invite(&invited, |_| {});
    forged["depth"] = json!(6);
    refused((target.clone(), forged), invalid);
    // An event of a newer room has no ID to be known by.
    refused((target, invited.signed(|_| {})), invalid);
    assert_eq!(accepted(&invited.a), before);
}

/// An event in the form of another version than the room's, at the room's end: version 1 names events by pairs, and gives its own ID.
fn of_version(scene: &Scene, version: &str, fields: Value) -> Value {
    let mut event = scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields);
    if version == "1" {
        event["event_id"] = json!("$one:peer.example");
        for name in ["auth_events", "prev_events"] {
            let pair = |id: &Value| json!([id, { "sha256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU" }]);
            event[name] = event[name].as_array().unwrap().iter().map(pair).collect();
        }
    }
    event
}

/// What is read by the rules of the room's version must be of that version, or nobody here could read the room again.
#[test]
fn no_invite_of_another_version_comes_into_a_room() {
    for (room_version, version) in [("10", "1"), ("11", "10"), ("12", "11")] {
        let mut scene = scene(room_version);
        let carol = scene.a.user(&scene.world, "carol");
        let fields = json!({
            "type": "m.room.member", "state_key": carol.as_str(), "content": { "membership": "invite" }, "origin": "peer.example",
        });
        let (id, invite) = scene.peer.sign(version, of_version(&scene, version, fields));
        let id = invite["event_id"].as_str().unwrap_or(&id);
        let before = accepted(&scene.a);
        let target = format!("/_matrix/federation/v2/invite/{}/{}", encode(scene.room.as_str()), encode(id));
        let body = json!({ "room_version": version, "event": invite, "invite_room_state": [] });
        let (status, answer) = scene.peer.put(&scene.a, &target, &body);
        let says = format!("The room is of version {room_version}, and the event of version {version}.");
        assert_eq!((status, &answer["errcode"], &answer["error"]), (400, &json!("M_INVALID_PARAM"), &json!(says)));
        assert_eq!(accepted(&scene.a), before);
        scene.a.say(&scene.world, &scene.room, &scene.alice, "still here");
        let (_, said) = scene.theirs.say(&scene.peer, &scene.bob, "and I");
        assert_eq!(scene.peer.send(&scene.a, "1", &[said]).0, 200);
    }
}

/// The template of a leave comes from another server, too.
#[test]
fn no_leave_of_another_version_comes_into_a_room() {
    for version in ["1", "11"] {
        no_leave_comes_into_a_room_of_version_10(version);
    }
}

fn no_leave_comes_into_a_room_of_version_10(version: &str) {
    let scene = scene("10");
    let carol = scene.a.user(&scene.world, "carol");
    let fields = json!({
        "type": "m.room.member", "state_key": carol.as_str(), "content": { "membership": "invite" },
        "prev_events": ["$47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"],
    });
    let (id, invite) = scene.peer.sign("10", of_version(&scene, "10", fields));
    let target = format!("/_matrix/federation/v2/invite/{}/{}", encode(scene.room.as_str()), encode(&id));
    let body = json!({ "room_version": "10", "event": invite, "invite_room_state": [] });
    assert_eq!(scene.peer.put(&scene.a, &target, &body).0, 200);

    let events = || scene.a.database.rows("SELECT event_id FROM events ORDER BY event_id");
    let before = events();
    let fields = json!({ "type": "m.room.member", "sender": carol.as_str(), "state_key": carol.as_str(), "content": { "membership": "leave" } });
    let template = json!({ "room_version": version, "event": of_version(&scene, version, fields) });
    scene.peer.answers(move |request| match request.uri().path() {
        path if path.contains("/make_leave/") => Some(json_response(StatusCode::OK, &template)),
        path if path.contains("/send_leave/") => Some(json_response(StatusCode::OK, &json!({}))),
        _ => None,
    });
    scene.world.run(membership::leave(&scene.a.server, &carol, &scene.room, Object::new())).unwrap();
    scene.world.settle();
    assert_eq!(
        scene.a.database.rows("SELECT membership FROM local_memberships WHERE user_id LIKE '@carol:%'"),
        [["leave"]]
    );
    // Not even as rejected, which would keep the ID from an event that has it by right.
    assert_eq!(events(), before);
    assert!(scene.a.database.rows("SELECT event_id FROM rejected_events").is_empty());
    scene.a.say(&scene.world, &scene.room, &scene.alice, "still here");
}
