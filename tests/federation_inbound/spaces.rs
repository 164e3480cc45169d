//! Our spaces, as another server walks through them.

use ruma_federation_api::space::get_hierarchy;
use serde_json::{Value, json};
use verge::{
    matrix::{identifiers::RoomId, room_version::RoomVersion, state_content::Membership},
    room::{Draft, NewRoom},
};

use crate::{
    Scene,
    common::{homeserver::object, peer::encode, ruma::read_answer},
    scene,
};

fn space(scene: &Scene, create: Value, join_rules: Value) -> RoomId {
    let new = NewRoom {
        version: RoomVersion::get("12").unwrap(),
        create_content: object(create),
        drafts: vec![
            Draft::membership(scene.alice.as_str(), Membership::Join, object(json!({}))),
            Draft::state("m.room.join_rules", "", object(join_rules)),
        ],
    };
    scene.world.advance(1);
    scene.world.run(scene.a.rooms.create(&scene.alice, &new)).unwrap().0
}

fn public_space(scene: &Scene) -> RoomId {
    space(scene, json!({ "type": "m.space" }), json!({ "join_rule": "public" }))
}

fn lead(scene: &Scene, space: &RoomId, child: &str, content: Value) {
    scene.world.advance(1);
    scene.a.send(&scene.world, space, &scene.alice, Draft::state("m.space.child", child, object(content)));
}

fn via() -> Value {
    json!({ "via": ["a.example"] })
}

fn ask(scene: &Scene, room: &RoomId, query: &str) -> (u16, Value) {
    scene.peer.get(&scene.a, &format!("/_matrix/federation/v1/hierarchy/{}{query}", encode(room.as_str())))
}

fn told(scene: &Scene, room: &RoomId, query: &str) -> Value {
    let (status, answer) = ask(scene, room, query);
    assert_eq!(status, 200, "{answer}");
    read_answer::<get_hierarchy::v1::Response>(&answer);
    answer
}

fn ids<'a>(rooms: &'a Value, name: &str) -> Vec<&'a str> {
    rooms.as_array().unwrap().iter().map(|room| room[name].as_str().unwrap()).collect()
}

#[test]
fn a_space_is_told_with_its_children() {
    let scene = scene("12");
    let space = public_space(&scene);
    let private = scene.a.room(&scene.world, &scene.alice, "12", json!({ "join_rule": "invite" }));
    let inner = public_space(&scene);
    let name = Draft::state("m.room.name", "", object(json!({ "name": "Everything" })));
    scene.a.send(&scene.world, &space, &scene.alice, name);
    lead(&scene, &space, private.as_str(), via());
    lead(&scene, &space, scene.room.as_str(), json!({ "via": ["a.example"], "suggested": true }));
    lead(&scene, &space, inner.as_str(), json!({ "via": ["a.example"], "order": "first" }));
    lead(&scene, &space, "!elsewhere", json!({ "via": ["b.example"], "order": "\u{7f}" }));
    // None of these leads anywhere.
    lead(&scene, &space, "!gone", json!({}));
    lead(&scene, &space, "!empty", json!({ "via": [] }));
    lead(&scene, &space, "!wrong", json!({ "via": "a.example" }));
    lead(&scene, &space, "no room", via());
    let answer = told(&scene, &space, "");
    let room = &answer["room"];
    assert_eq!((room["name"].as_str(), room["room_type"].as_str()), (Some("Everything"), Some("m.space")));
    assert_eq!((room["room_version"].as_str(), room["num_joined_members"].as_i64()), (Some("12"), Some(1)));
    let order = [inner.as_str(), private.as_str(), scene.room.as_str(), "!elsewhere"];
    assert_eq!(ids(&room["children_state"], "state_key"), order);
    assert!(room["children_state"].as_array().unwrap().iter().all(|event| event.as_object().unwrap().len() == 5));
    assert_eq!(ids(&answer["children"], "room_id"), [inner.as_str(), scene.room.as_str()]);
    assert_eq!(answer["inaccessible_children"], json!([private.as_str()]));
    let suggested = told(&scene, &space, "?suggested_only=true");
    assert_eq!(ids(&suggested["room"]["children_state"], "state_key"), [scene.room.as_str()]);
    assert_eq!(ids(&suggested["children"], "room_id"), [scene.room.as_str()]);
    assert_eq!(suggested["inaccessible_children"], json!([]));
    // A room that is no space leads nowhere, whatever its state says.
    lead(&scene, &scene.room, inner.as_str(), via());
    assert_eq!(told(&scene, &scene.room, "")["room"]["children_state"], json!([]));
}

#[test]
fn only_who_could_join_or_read_is_told() {
    let scene = scene("12");
    let status = |room: &RoomId| {
        let (status, answer) = ask(&scene, room, "");
        assert!(status == 200 || answer["errcode"] == "M_NOT_FOUND", "{answer}");
        status
    };
    let room = |rules: Value| scene.a.room(&scene.world, &scene.alice, "12", rules);
    let invite = json!({ "join_rule": "invite" });
    assert_eq!(status(&RoomId::parse("!nowhere").unwrap()), 404);
    assert_eq!(status(&room(json!({ "join_rule": "knock" }))), 200);
    assert_eq!(status(&room(json!({ "join_rule": "knock_restricted", "allow": [] }))), 200);
    let private = room(invite.clone());
    assert_eq!(status(&private), 404);
    // A user of theirs is invited.
    let dave = Draft::membership(&scene.peer.user("dave"), Membership::Invite, object(json!({})));
    scene.a.send(&scene.world, &private, &scene.alice, dave);
    assert_eq!(status(&private), 200);
    let readable = room(invite.clone());
    let content = object(json!({ "history_visibility": "world_readable" }));
    scene.a.send(&scene.world, &readable, &scene.alice, Draft::state("m.room.history_visibility", "", content));
    assert_eq!(status(&readable), 200);
    // Members of a room that they are in may join.
    let restricted = |id: &str| {
        let allow = json!([{ "type": "m.room_membership", "room_id": id }]);
        room(json!({ "join_rule": "restricted", "allow": allow }))
    };
    let theirs = restricted(scene.room.as_str());
    assert_eq!(told(&scene, &theirs, "")["room"]["allowed_room_ids"], json!([scene.room.as_str()]));
    assert_eq!(status(&restricted(readable.as_str())), 404);
    assert_eq!(status(&space(&scene, json!({ "m.federate": false }), json!({ "join_rule": "public" }))), 404);
    // Who is in a room is told of it, whatever its rules are.
    let rules = Draft::state("m.room.join_rules", "", object(invite));
    scene.a.send(&scene.world, &scene.room, &scene.alice, rules);
    assert_eq!(status(&scene.room), 200);
    // We have left it.
    let knock = room(json!({ "join_rule": "knock" }));
    let leave = Draft::membership(scene.alice.as_str(), Membership::Leave, object(json!({})));
    scene.a.send(&scene.world, &knock, &scene.alice, leave);
    assert_eq!(status(&knock), 404);
    let (status, answer) = ask(&scene, &scene.room, "?suggested_only=yes");
    assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_INVALID_PARAM")));
    let (status, answer) = scene.peer.get(&scene.a, "/_matrix/federation/v1/hierarchy/room");
    assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_INVALID_PARAM")));
}

#[test]
fn a_large_space_is_told_in_bounds() {
    let scene = scene("12");
    let space = public_space(&scene);
    let calls = || {
        let before = scene.a.database.calls.get();
        told(&scene, &space, "");
        scene.a.database.calls.get() - before
    };
    lead(&scene, &space, scene.room.as_str(), via());
    let of_one = calls();
    for n in 0..250 {
        lead(&scene, &space, &format!("!n{n}"), via());
    }
    let long = json!({ "via": ["a.example"], "junk": "x".repeat(10_000), "order": "0" });
    lead(&scene, &space, "!long", long);
    assert_eq!(calls(), of_one);
    let answer = told(&scene, &space, "");
    assert_eq!(answer["room"]["children_state"].as_array().unwrap().len(), 200);
    assert!(answer["children"].as_array().unwrap().len() <= 50);
}

#[test]
fn no_child_is_lost_among_those_that_were_removed() {
    let scene = scene("12");
    let space = public_space(&scene);
    let living: Vec<String> = (0..20).map(|n| format!("!living{n}")).collect();
    for n in 0..600 {
        lead(&scene, &space, &format!("!gone{n}"), json!({}));
    }
    living.iter().for_each(|child| lead(&scene, &space, child, via()));
    for n in 600..1_200 {
        lead(&scene, &space, &format!("!gone{n}"), json!({}));
    }
    let children = || {
        let answer = told(&scene, &space, "");
        ids(&answer["room"]["children_state"], "state_key").iter().map(|id| (*id).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(children(), living);
    // Nor the first ones among more than are told of.
    for n in 0..1_200 {
        lead(&scene, &space, &format!("!later{n}"), json!({ "via": ["a.example"], "order": "\u{e9}" }));
    }
    lead(&scene, &space, "!second", json!({ "via": ["a.example"], "order": "b" }));
    lead(&scene, &space, "!first", json!({ "via": ["a.example"], "order": "B" }));
    let children = children();
    assert_eq!(children.len(), 200);
    assert_eq!(children[..2], ["!first", "!second"]);
    assert_eq!(children[2..22], living);
    assert_eq!(children[22..25], ["!later0", "!later1", "!later2"]);
}

#[test]
fn each_space_is_read_with_its_own_children() {
    let scene = scene("12");
    let spaces: Vec<RoomId> = (0..8).map(|_| public_space(&scene)).collect();
    for space in &spaces {
        (0..150).for_each(|n| lead(&scene, space, &format!("!n{n}"), via()));
    }
    let rooms = scene.world.run(scene.a.rooms.space_rooms(&spaces)).unwrap();
    assert_eq!(rooms.iter().map(|room| room.children.len()).collect::<Vec<_>>(), [150; 8]);
}
