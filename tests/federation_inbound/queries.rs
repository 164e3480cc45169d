//! Aliases and profiles.

use serde_json::json;
use verge::store::accounts::Shown;

use crate::{common::peer::encode, scene};

#[test]
fn an_alias_leads_to_its_room_and_servers() {
    let scene = scene("12");
    let alias = "#room:a.example";
    let (room, alice) = (scene.room.as_str(), scene.alice.as_str());
    assert!(scene.world.run(scene.a.store.put_alias(alias, room, alice, scene.world.now_ms())).unwrap());
    let query = |alias: &str| format!("/_matrix/federation/v1/query/directory?room_alias={}", encode(alias));
    let expected = json!({ "room_id": room, "servers": ["a.example", "peer.example"] });
    assert_eq!(scene.peer.get(&scene.a, &query(alias)), (200, expected));
    let errors = [
        (query("#nothing:a.example"), 404, "M_NOT_FOUND"),
        (query("#room:b.example"), 400, "M_INVALID_PARAM"),
        (query("room"), 400, "M_INVALID_PARAM"),
        ("/_matrix/federation/v1/query/directory".to_owned(), 400, "M_MISSING_PARAM"),
    ];
    for (target, status, errcode) in errors {
        let (got, answer) = scene.peer.get(&scene.a, &target);
        assert_eq!((got, answer["errcode"].as_str()), (status, Some(errcode)), "{target}");
    }
}

#[test]
fn a_profile_is_given_whole_or_by_field() {
    let scene = scene("12");
    let query = |user: &str, rest: &str| format!("/_matrix/federation/v1/query/profile?user_id={}{rest}", encode(user));
    let alice = scene.alice.as_str();
    for (field, value) in [(Shown::Name, "Alice"), (Shown::Picture, "mxc://a.example/picture")] {
        scene.world.run(scene.a.store.put_shown(alice, field, Some(value))).unwrap();
    }
    let pronouns = json!([{ "summary": "they/them", "n": 1 }]);
    for (name, value) in [("m.tz", json!("Europe/London")), ("org.example.pronouns", pronouns.clone())] {
        assert!(scene.world.run(scene.a.store.put_profile_field(alice, name, &value.to_string(), 65_535)).unwrap());
    }
    let whole = json!({
        "displayname": "Alice",
        "avatar_url": "mxc://a.example/picture",
        "m.tz": "Europe/London",
        "org.example.pronouns": pronouns,
    });
    assert_eq!(scene.peer.get(&scene.a, &query(alice, "")), (200, whole));
    assert_eq!(scene.peer.get(&scene.a, &query(alice, "&field=displayname")), (200, json!({ "displayname": "Alice" })));
    assert_eq!(scene.peer.get(&scene.a, &query(alice, "&field=m.tz")), (200, json!({ "m.tz": "Europe/London" })));
    assert_eq!(scene.peer.get(&scene.a, &query(alice, "&field=m.other")), (200, json!({})));
    for (user, status, errcode) in [
        ("@nobody:a.example", 404, "M_NOT_FOUND"),
        ("@alice:b.example", 400, "M_INVALID_PARAM"),
        ("alice", 400, "M_INVALID_PARAM"),
    ] {
        let (got, answer) = scene.peer.get(&scene.a, &query(user, ""));
        assert_eq!((got, answer["errcode"].as_str()), (status, Some(errcode)), "{user}");
    }
}

#[test]
fn what_nobody_can_be_asked_is_unrecognized() {
    let scene = scene("12");
    let (status, answer) =
        scene.peer.get(&scene.a, "/_matrix/federation/v1/query/shoe_size?user_id=%40alice%3Aa.example");
    assert_eq!((status, answer["errcode"].as_str()), (404, Some("M_UNRECOGNIZED")));
}
