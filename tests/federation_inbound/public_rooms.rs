//! Our published room directory, as another server reads it.

use ruma_federation_api::directory::{get_public_rooms, get_public_rooms_filtered};
use serde_json::{Value, json};
use verge::{
    matrix::{identifiers::RoomId, state_content::Membership},
    room::Draft,
};

use crate::{
    Scene,
    common::{homeserver::object, peer::encode, ruma::read_answer},
    scene,
};

const TARGET: &str = "/_matrix/federation/v1/publicRooms";

fn publish(scene: &Scene, room: &RoomId) {
    scene.world.run(scene.a.store.publish_room(room.as_str(), true)).unwrap();
}

fn named(scene: &Scene, name: &str) -> RoomId {
    let room = scene.a.public_room(&scene.world, &scene.alice, "12");
    let content = object(json!({ "name": name }));
    scene.a.send(&scene.world, &room, &scene.alice, Draft::state("m.room.name", "", content));
    publish(scene, &room);
    room
}

fn ids(answer: &Value) -> Vec<String> {
    read_answer::<get_public_rooms::v1::Response>(answer);
    read_answer::<get_public_rooms_filtered::v1::Response>(answer);
    answer["chunk"].as_array().unwrap().iter().map(|room| room["room_id"].as_str().unwrap().to_owned()).collect()
}

fn list(scene: &Scene, query: &str) -> Value {
    let (status, answer) = scene.peer.get(&scene.a, &format!("{TARGET}{query}"));
    assert_eq!(status, 200, "{answer}");
    answer
}

fn search(scene: &Scene, body: Value) -> Value {
    let (status, answer) = scene.peer.post(&scene.a, TARGET, &body);
    assert_eq!(status, 200, "{answer}");
    answer
}

#[test]
fn published_rooms_are_listed_with_what_they_are() {
    let scene = scene("12");
    assert_eq!(list(&scene, ""), json!({ "chunk": [] }));
    let state = [
        ("m.room.name", json!({ "name": "The hall" })),
        ("m.room.topic", json!({ "topic": "Everything" })),
        ("m.room.avatar", json!({ "url": "mxc://a.example/hall" })),
        ("m.room.canonical_alias", json!({ "alias": "#hall:a.example" })),
        ("m.room.history_visibility", json!({ "history_visibility": "world_readable" })),
        ("m.room.guest_access", json!({ "guest_access": "can_join" })),
    ];
    for (event_type, content) in state {
        scene.a.send(&scene.world, &scene.room, &scene.alice, Draft::state(event_type, "", object(content)));
    }
    publish(&scene, &scene.room);
    let expected = json!({ "room_id": scene.room.as_str(), "num_joined_members": 2, "name": "The hall",
        "topic": "Everything", "avatar_url": "mxc://a.example/hall", "canonical_alias": "#hall:a.example",
        "world_readable": true, "guest_can_join": true, "join_rule": "public" });
    let answer = list(&scene, "");
    assert_eq!(answer, json!({ "chunk": [expected] }));
    ids(&answer);
}

#[test]
fn what_nobody_elsewhere_can_enter_is_not_listed() {
    let scene = scene("12");
    let private = scene.a.room(&scene.world, &scene.alice, "12", json!({ "join_rule": "invite" }));
    let knock = scene.a.room(&scene.world, &scene.alice, "12", json!({ "join_rule": "knock" }));
    let restricted = scene.a.room(&scene.world, &scene.alice, "12", json!({ "join_rule": "restricted", "allow": [] }));
    for room in [&private, &knock, &restricted] {
        publish(&scene, room);
    }
    assert_eq!(ids(&list(&scene, "")), [knock.as_str()]);
    // Who has left a room cannot tell what it is.
    let leave = Draft::membership(scene.alice.as_str(), Membership::Leave, object(json!({})));
    scene.a.send(&scene.world, &knock, &scene.alice, leave);
    assert!(ids(&list(&scene, "")).is_empty());
    let own = verge::room::NewRoom {
        version: verge::matrix::room_version::RoomVersion::get("12").unwrap(),
        create_content: object(json!({ "m.federate": false })),
        drafts: vec![
            Draft::membership(scene.alice.as_str(), Membership::Join, object(json!({}))),
            Draft::state("m.room.join_rules", "", object(json!({ "join_rule": "public" }))),
        ],
    };
    let (own, _) = scene.world.run(scene.a.rooms.create(&scene.alice, &own)).unwrap();
    publish(&scene, &own);
    assert!(ids(&list(&scene, "")).is_empty());
}

#[test]
fn pages_lead_on_and_back() {
    let scene = scene("12");
    let mut all: Vec<String> = (0..7).map(|n| named(&scene, &format!("Room {n}")).to_string()).collect();
    all.sort();
    all.reverse();
    let mut page = list(&scene, "?limit=3");
    let mut seen = vec![ids(&page)];
    assert!(page.get("prev_batch").is_none(), "the first page");
    while let Some(next) = page["next_batch"].as_str() {
        page = list(&scene, &format!("?limit=3&since={}", encode(next)));
        seen.push(ids(&page));
    }
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    assert_eq!(seen.concat(), all);
    let mut back = vec![ids(&page)];
    while let Some(prev) = page["prev_batch"].as_str() {
        page = search(&scene, json!({ "limit": 3, "since": prev }));
        back.push(ids(&page));
    }
    back.reverse();
    assert_eq!(back.concat(), all);
    // Forwards again from where paging back has ended.
    let next = page["next_batch"].as_str().unwrap();
    assert_eq!(ids(&list(&scene, &format!("?since={}", encode(next)))), all[back[0].len()..]);
    assert_eq!(ids(&list(&scene, "?limit=0")), all);
    // A room that is published meanwhile is in its place, and none is told twice.
    let first = list(&scene, "?limit=4");
    let more = named(&scene, "Another").to_string();
    let rest = list(&scene, &format!("?since={}", encode(first["next_batch"].as_str().unwrap())));
    let mut told = [ids(&first), ids(&rest)].concat();
    told.retain(|id| *id != more);
    assert_eq!(told, all);
}

#[test]
fn rooms_are_searched_by_words_and_types() {
    let scene = scene("12");
    let (cheese, bread) = (named(&scene, "CHEESE"), named(&scene, "Bread"));
    let topic = Draft::state("m.room.topic", "", object(json!({ "topic": "with Cheese" })));
    scene.a.send(&scene.world, &bread, &scene.alice, topic);
    let space = verge::room::NewRoom {
        version: verge::matrix::room_version::RoomVersion::get("12").unwrap(),
        create_content: object(json!({ "type": "m.space" })),
        drafts: vec![
            Draft::membership(scene.alice.as_str(), Membership::Join, object(json!({}))),
            Draft::state("m.room.join_rules", "", object(json!({ "join_rule": "public" }))),
        ],
    };
    let (space, _) = scene.world.run(scene.a.rooms.create(&scene.alice, &space)).unwrap();
    publish(&scene, &space);
    let found = |filter: Value| {
        let mut found = ids(&search(&scene, json!({ "filter": filter })));
        found.sort();
        found
    };
    let sorted = |rooms: &[&RoomId]| {
        let mut rooms: Vec<String> = rooms.iter().map(|room| room.to_string()).collect();
        rooms.sort();
        rooms
    };
    assert_eq!(found(json!({ "generic_search_term": "cheese" })), sorted(&[&cheese, &bread]));
    assert_eq!(found(json!({ "generic_search_term": "brea" })), sorted(&[&bread]));
    assert_eq!(found(json!({ "generic_search_term": "wine" })), sorted(&[]));
    assert_eq!(found(json!({ "room_types": ["m.space"] })), sorted(&[&space]));
    assert_eq!(found(json!({ "room_types": [null] })), sorted(&[&cheese, &bread]));
    assert_eq!(found(json!({ "room_types": [null, "m.space"] })), sorted(&[&cheese, &bread, &space]));
    assert_eq!(found(json!({ "room_types": [] })), sorted(&[]));
    assert_eq!(found(json!({})), sorted(&[&cheese, &bread, &space]));
}

#[test]
fn what_is_no_query_is_refused() {
    let scene = scene("12");
    let refused = |(status, answer): (u16, Value)| {
        assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_INVALID_PARAM")), "{answer}");
    };
    for query in
        ["limit=many", "limit=-1", "since=x", "since=", "third_party_instance_id=irc", "include_all_networks=2"]
    {
        refused(scene.peer.get(&scene.a, &format!("{TARGET}?{query}")));
    }
    let bodies = [
        json!({ "limit": "3" }),
        json!({ "since": 1 }),
        json!({ "filter": [] }),
        json!({ "filter": { "generic_search_term": 1 } }),
        json!({ "filter": { "generic_search_term": "x".repeat(2_000) } }),
        json!({ "filter": { "room_types": "m.space" } }),
        json!({ "filter": { "room_types": [1] } }),
        json!({ "include_all_networks": "yes" }),
        json!({ "third_party_instance_id": "irc" }),
    ];
    for body in bodies {
        refused(scene.peer.post(&scene.a, TARGET, &body));
    }
    assert!(ids(&list(&scene, "?include_all_networks=true")).is_empty());
}

#[test]
fn a_page_costs_what_it_shows() {
    let scene = scene("12");
    let calls = |query: &str| {
        let before = scene.a.database.calls.get();
        list(&scene, query);
        scene.a.database.calls.get() - before
    };
    named(&scene, "One");
    let of_one = calls("?limit=1");
    for n in 0..30 {
        named(&scene, &format!("Room {n}"));
    }
    assert_eq!(calls("?limit=1"), of_one);
    assert_eq!(calls("?limit=20"), of_one);
    // However much a search leaves out, it reads no more rooms than so many.
    let scan = |term: &str| {
        let before = scene.a.database.calls.get();
        let page = search(&scene, json!({ "filter": { "generic_search_term": term } }));
        (page["chunk"].as_array().unwrap().len(), scene.a.database.calls.get() - before)
    };
    assert_eq!(scan("nowhere"), (0, of_one + 2));
}
