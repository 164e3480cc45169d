//! Knocking, with us as the resident server.

use ruma_federation_api::membership::{create_knock_event, prepare_knock_event};
use serde_json::{Value, json};
use verge::{
    matrix::{identifiers::RoomId, state_content::Membership},
    room::Draft,
};

use crate::{
    Scene, accepted,
    common::{
        homeserver::object,
        peer::{encode, event_id},
        ruma::read_answer,
    },
    scene,
};

fn knockable(scene: &Scene, version: &str) -> RoomId {
    scene.a.room(&scene.world, &scene.alice, version, json!({ "join_rule": "knock" }))
}

fn make_knock(scene: &Scene, room: &RoomId, user: &str, query: &str) -> (u16, Value) {
    let target = format!("/_matrix/federation/v1/make_knock/{}/{}{query}", encode(room.as_str()), encode(user));
    scene.peer.get(&scene.a, &target)
}

fn send_knock(scene: &Scene, room: &RoomId, id: &str, event: &Value) -> (u16, Value) {
    let target = format!("/_matrix/federation/v1/send_knock/{}/{}", encode(room.as_str()), encode(id));
    scene.peer.put(&scene.a, &target, event)
}

fn refused((status, answer): (u16, Value), expected: u16, errcode: &str) {
    assert_eq!((status, answer["errcode"].as_str()), (expected, Some(errcode)), "{answer}");
}

#[test]
fn a_knock_is_let_in_and_the_room_described() {
    for version in ["7", "9", "10", "11", "12"] {
        let scene = scene("12");
        let room = knockable(&scene, version);
        let name = Draft::state("m.room.name", "", object(json!({ "name": "The club" })));
        scene.a.send(&scene.world, &room, &scene.alice, name);
        let dave = scene.peer.user("dave");
        let (status, template) = make_knock(&scene, &room, &dave, &format!("?ver=1&ver={version}"));
        assert_eq!((status, template["room_version"].as_str()), (200, Some(version)), "{template}");
        read_answer::<prepare_knock_event::v1::Response>(&template);
        let (id, knock) = scene.peer.sign(version, template["event"].clone());
        let (status, answer) = send_knock(&scene, &room, &id, &knock);
        assert_eq!(status, 200, "{version}: {answer}");
        read_answer::<create_knock_event::v1::Response>(&answer);
        // Whole events of the room, the create event among them.
        let state = answer["knock_room_state"].as_array().unwrap();
        let types: Vec<_> = state.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(types.len(), 3, "{types:?}");
        assert!(
            types.contains(&"m.room.create") && types.contains(&"m.room.name") && types.contains(&"m.room.join_rules")
        );
        assert!(state.iter().all(|event| event["signatures"]["a.example"].is_object()));
        let held = scene.a.state(&scene.world, &room);
        for event in state {
            let id = event_id(version, event);
            assert!(held.iter().any(|(_, _, held)| *held == id), "{event}");
        }
        assert_eq!(scene.a.membership(&scene.world, &room, &dave).as_deref(), Some("knock"));
        // It is taken back as an invite is rejected.
        let target = format!("/_matrix/federation/v1/make_leave/{}/{}", encode(room.as_str()), encode(&dave));
        let (id, leave) = scene.peer.sign(version, scene.peer.get(&scene.a, &target).1["event"].clone());
        let target = format!("/_matrix/federation/v2/send_leave/{}/{}", encode(room.as_str()), encode(&id));
        assert_eq!(scene.peer.put(&scene.a, &target, &leave), (200, json!({})));
        assert_eq!(scene.a.membership(&scene.world, &room, &dave).as_deref(), Some("leave"));
    }
}

#[test]
fn rooms_that_are_restricted_too_can_be_knocked_on() {
    for (version, status) in [("9", 403), ("10", 200), ("12", 200)] {
        let scene = scene("12");
        let rules = json!({ "join_rule": "knock_restricted", "allow": [] });
        let room = scene.a.room(&scene.world, &scene.alice, version, rules);
        let dave = scene.peer.user("dave");
        assert_eq!(make_knock(&scene, &room, &dave, &format!("?ver={version}")).0, status);
    }
}

#[test]
fn only_who_may_knock_is_given_a_template() {
    let scene = scene("12");
    let room = knockable(&scene, "12");
    let dave = scene.peer.user("dave");
    let make = |room: &RoomId, user: &str, query: &str| make_knock(&scene, room, user, query);
    refused(make(&RoomId::parse("!nowhere").unwrap(), &dave, "?ver=12"), 404, "M_NOT_FOUND");
    refused(make(&room, "@carol:other.example", "?ver=12"), 403, "M_FORBIDDEN");
    refused(make(&room, "dave", "?ver=12"), 400, "M_INVALID_PARAM");
    // Anybody may join this one, so that nobody need knock.
    refused(make(&scene.room, &dave, "?ver=12"), 403, "M_FORBIDDEN");
    let old = knockable(&scene, "6");
    refused(make(&old, &dave, "?ver=6"), 403, "M_FORBIDDEN");
    for query in ["", "?ver=7&ver=11"] {
        let (status, answer) = make(&room, &dave, query);
        assert_eq!(answer["room_version"], "12");
        refused((status, answer), 400, "M_INCOMPATIBLE_ROOM_VERSION");
    }
    let ban = Draft::membership(&dave, Membership::Ban, object(json!({})));
    scene.a.send(&scene.world, &room, &scene.alice, ban);
    refused(make(&room, &dave, "?ver=12"), 403, "M_FORBIDDEN");
    // A room that we have left is one that we do not know.
    let leave = Draft::membership(scene.alice.as_str(), Membership::Leave, object(json!({})));
    scene.a.send(&scene.world, &room, &scene.alice, leave);
    refused(make(&room, &scene.peer.user("erin"), "?ver=12"), 404, "M_NOT_FOUND");
}

#[test]
fn what_is_no_knock_of_theirs_is_refused() {
    let scene = scene("12");
    let room = knockable(&scene, "12");
    let dave = scene.peer.user("dave");
    let template = make_knock(&scene, &room, &dave, "?ver=12").1["event"].clone();
    let before = accepted(&scene.a);
    let send = |change: &dyn Fn(&mut Value)| {
        let mut event = template.clone();
        change(&mut event);
        let (id, event) = scene.peer.sign("12", event);
        send_knock(&scene, &room, &id, &event)
    };
    let invalid = "M_INVALID_PARAM";
    refused(send(&|event| event["type"] = json!("m.room.topic")), 400, invalid);
    refused(send(&|event| event["content"]["membership"] = json!("join")), 400, invalid);
    refused(send(&|event| event["sender"] = json!("@carol:other.example")), 400, invalid);
    refused(send(&|event| event["state_key"] = json!("@erin:peer.example")), 400, invalid);
    refused(send(&|event| event["room_id"] = json!(scene.room.as_str())), 400, invalid);
    let (id, knock) = scene.peer.sign("12", template.clone());
    refused(send_knock(&scene, &room, "$other", &knock), 400, invalid);
    refused(send_knock(&scene, &RoomId::parse("!nowhere").unwrap(), &id, &knock), 404, "M_NOT_FOUND");
    let mut unsigned = knock.clone();
    unsigned["signatures"] = json!({});
    refused(send_knock(&scene, &room, &id, &unsigned), 400, invalid);
    assert_eq!(accepted(&scene.a), before);
    // Somebody was quicker: the rules forbid it by now.
    let ban = Draft::membership(&dave, Membership::Ban, object(json!({})));
    scene.a.send(&scene.world, &room, &scene.alice, ban);
    refused(send_knock(&scene, &room, &id, &knock), 403, "M_FORBIDDEN");
    assert_eq!(scene.a.membership(&scene.world, &room, &dave).as_deref(), Some("ban"));
}
