//! Spaces and the rooms that they lead to, here and elsewhere.

use http::StatusCode;
use serde_json::{Value, json};
use verge::router::json_response;

use crate::{
    common::{network::World, peer::Peer},
    home::{Answer, Home, User, quote, refused},
};

fn two() -> (Home, Home, User, User) {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    (one, two, alice, bob)
}

fn space(home: &Home, user: &User, name: &str, preset: &str) -> String {
    home.room(user, json!({ "creation_content": { "type": "m.space" }, "name": name, "preset": preset }))
}

fn room(home: &Home, user: &User, name: &str, preset: &str) -> String {
    home.room(user, json!({ "name": name, "preset": preset }))
}

fn lead(home: &Home, user: &User, space: &str, child: &str, content: Value) {
    let path = format!("/rooms/{}/state/m.space.child/{}", quote(space), quote(child));
    let (status, answer) = home.put(user, &path, content);
    assert_eq!(status, 200, "{answer}");
    home.world.advance(1);
}

fn v1(home: &Home, user: Option<&User>, path: &str) -> Answer {
    let target = format!("/_matrix/client/v1{path}");
    let response = home.raw("GET", &target, user.map(|user| user.token.as_str()), "");
    (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
}

fn hierarchy(home: &Home, user: &User, space: &str, query: &str) -> Answer {
    v1(home, Some(user), &format!("/rooms/{}/hierarchy?{query}", quote(space)))
}

fn names((status, answer): &Answer) -> Vec<String> {
    assert_eq!(*status, 200, "{answer}");
    let rooms = answer["rooms"].as_array().unwrap();
    assert!(rooms.iter().all(|room| room["children_state"].is_array() && room["num_joined_members"].is_i64()));
    rooms.iter().map(|room| room["name"].as_str().unwrap_or_default().to_owned()).collect()
}

const ONE: &str = "one.test";

#[test]
fn a_space_here_is_walked_through_the_deepest_first() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let top = space(&home, &alice, "Top", "public_chat");
    let inner = space(&home, &alice, "Inner", "public_chat");
    let deep = room(&home, &alice, "Deep", "public_chat");
    let secret = room(&home, &alice, "Secret", "private_chat");
    let last = room(&home, &alice, "Last", "public_chat");
    let via = json!({ "via": ["hs.test"] });
    lead(&home, &alice, &top, &inner, via.clone());
    lead(&home, &alice, &inner, &deep, json!({ "via": ["hs.test"], "suggested": true }));
    // A circle ends.
    lead(&home, &alice, &inner, &top, via.clone());
    lead(&home, &alice, &top, &secret, via.clone());
    lead(&home, &alice, &top, &last, json!({ "via": ["hs.test"], "suggested": true }));
    assert_eq!(names(&hierarchy(&home, &alice, &top, "")), ["Top", "Inner", "Deep", "Secret", "Last"]);
    assert_eq!(names(&hierarchy(&home, &bob, &top, "")), ["Top", "Inner", "Deep", "Last"]);
    assert_eq!(names(&hierarchy(&home, &bob, &top, "max_depth=1")), ["Top", "Inner", "Last"]);
    assert_eq!(names(&hierarchy(&home, &bob, &top, "max_depth=0")), ["Top"]);
    let suggested = hierarchy(&home, &bob, &top, "suggested_only=true");
    assert_eq!(names(&suggested), ["Top", "Last"]);
    assert_eq!(suggested.1["rooms"][0]["children_state"].as_array().unwrap().len(), 1);
    // Who is invited sees what they are invited to.
    assert_eq!(home.post(&alice, &format!("/rooms/{}/invite", quote(&secret)), json!({ "user_id": bob.id })).0, 200);
    assert_eq!(names(&hierarchy(&home, &bob, &top, "")), ["Top", "Inner", "Deep", "Secret", "Last"]);
    assert_eq!(names(&hierarchy(&home, &bob, &secret, "")), ["Secret"]);
}

#[test]
fn pages_go_on_where_they_end() {
    let home = Home::new();
    let alice = home.register("alice");
    let top = space(&home, &alice, "Top", "public_chat");
    let via = json!({ "via": ["hs.test"] });
    let mut expected = vec!["Top".to_owned()];
    for n in 0..4 {
        let name = format!("Space {n}");
        let inner = space(&home, &alice, &name, "public_chat");
        lead(&home, &alice, &top, &inner, via.clone());
        expected.push(name);
        for m in 0..3 {
            let name = format!("Room {n}.{m}");
            let leaf = room(&home, &alice, &name, "public_chat");
            lead(&home, &alice, &inner, &leaf, via.clone());
            expected.push(name);
        }
    }
    for limit in [1, 2, 5, 16, 17, 18] {
        let mut all = Vec::new();
        let mut page = hierarchy(&home, &alice, &top, &format!("limit={limit}"));
        loop {
            let told = names(&page);
            assert!(told.len() <= limit);
            all.extend(told);
            let Some(next) = page.1["next_batch"].as_str() else { break };
            page = hierarchy(&home, &alice, &top, &format!("limit={limit}&from={}", quote(next)));
        }
        assert_eq!(all, expected, "{limit}");
    }
    let next = quote(hierarchy(&home, &alice, &top, "limit=3").1["next_batch"].as_str().unwrap());
    for changed in ["max_depth=2", "suggested_only=true"] {
        refused(&hierarchy(&home, &alice, &top, &format!("{changed}&from={next}")), 400, "M_INVALID_PARAM");
    }
    for query in ["from=x", "from=a5~!nowhere", "from=a5~x", "limit=0", "limit=x", "max_depth=-1", "suggested_only=1"] {
        refused(&hierarchy(&home, &alice, &top, query), 400, "M_INVALID_PARAM");
    }
}

#[test]
fn rooms_elsewhere_are_asked_for() {
    let (one, two, alice, bob) = two();
    let theirs = space(&one, &alice, "Theirs", "public_chat");
    let open = room(&one, &alice, "Open", "public_chat");
    let secret = room(&one, &alice, "Secret", "private_chat");
    for child in [&open, &secret] {
        lead(&one, &alice, &theirs, child, json!({ "via": [ONE] }));
    }
    let ours = space(&two, &bob, "Ours", "private_chat");
    lead(&two, &bob, &ours, &theirs, json!({ "via": [ONE] }));
    let own = room(&two, &bob, "Own", "private_chat");
    lead(&two, &bob, &ours, &own, json!({ "via": ["two.test"] }));
    assert_eq!(names(&hierarchy(&two, &bob, &ours, "")), ["Ours", "Theirs", "Open", "Own"]);
    let asked = || two.world.traffic().iter().filter(|sent| sent.line.contains("/hierarchy/")).count();
    // One question told of the space and of what it leads to; it is not asked again for a while.
    assert_eq!(asked(), 1);
    assert_eq!(names(&hierarchy(&two, &bob, &ours, "")), ["Ours", "Theirs", "Open", "Own"]);
    assert_eq!(asked(), 1);
    two.world.advance(10 * 60_000);
    // Without anybody to ask, what is known here is told.
    two.world.disconnect(ONE);
    assert_eq!(names(&hierarchy(&two, &bob, &ours, "")), ["Ours", "Own"]);
}

/// Anybody may be asked about any room.
#[test]
fn what_a_server_says_of_a_room_is_for_those_who_would_ask_it() {
    let (one, two, alice, bob) = two();
    let (carol, mallory) = (two.register("carol"), Peer::new(&two.world, "mallory.test"));
    let theirs = space(&one, &alice, "Theirs", "public_chat");
    let lie = json!({ "room_id": theirs, "name": "Lie", "num_joined_members": 1, "world_readable": true,
        "guest_can_join": true, "children_state": [] });
    mallory.answers(move |request| {
        let answer = json!({ "room": lie, "children": [], "inaccessible_children": [] });
        request.uri().path().contains("/hierarchy/").then(|| json_response(StatusCode::OK, &answer))
    });
    let is_asked = |to: &str| [ONE, "mallory.test"].contains(&to);
    let questions = || two.world.traffic().into_iter().filter(|sent| sent.line.contains("/hierarchy/"));
    let asked = || questions().filter(|sent| is_asked(&sent.to)).count();
    assert_eq!(names(&hierarchy(&two, &bob, &theirs, "via=mallory.test")), ["Lie"]);
    assert_eq!(names(&hierarchy(&two, &carol, &theirs, "via=one.test")), ["Theirs"]);
    assert_eq!(names(&hierarchy(&two, &carol, &theirs, "via=nobody.test&via=one.test")), ["Theirs"]);
    assert_eq!(asked(), 2, "each is asked once");
    // A fourth server is not asked, and what it has said before does not count either.
    let last = "via=nobody.test&via=nowhere.test&via=none.test&via=one.test";
    refused(&hierarchy(&two, &carol, &theirs, last), 403, "M_FORBIDDEN");
    // What others say does not drive out what is known.
    assert_eq!(names(&hierarchy(&two, &bob, &theirs, "via=mallory.test")), ["Lie"]);
    assert_eq!(names(&hierarchy(&two, &carol, &theirs, "via=one.test")), ["Theirs"]);
    assert_eq!(asked(), 2);
}

#[test]
fn the_first_room_may_be_elsewhere_too() {
    let (one, two, alice, bob) = two();
    let theirs = space(&one, &alice, "Theirs", "public_chat");
    let open = room(&one, &alice, "Open", "public_chat");
    lead(&one, &alice, &theirs, &open, json!({ "via": [ONE] }));
    refused(&hierarchy(&two, &bob, &theirs, ""), 403, "M_FORBIDDEN");
    refused(&hierarchy(&two, &bob, &theirs, "via=nobody.test"), 403, "M_FORBIDDEN");
    assert_eq!(names(&hierarchy(&two, &bob, &theirs, "via=one.test")), ["Theirs", "Open"]);
    let secret = space(&one, &alice, "Secret", "private_chat");
    refused(&hierarchy(&two, &bob, &secret, "via=one.test"), 403, "M_FORBIDDEN");
    refused(&hierarchy(&two, &bob, "!nowhere", ""), 403, "M_FORBIDDEN");
    refused(&v1(&two, None, "/rooms/!nowhere/hierarchy"), 401, "M_MISSING_TOKEN");
}

#[test]
fn a_room_is_summed_up() {
    let (one, two, alice, bob) = two();
    let hall =
        one.room(&alice, json!({ "preset": "public_chat", "name": "Hall", "room_alias_name": "hall", "topic": "All" }));
    let secret = room(&one, &alice, "Secret", "private_chat");
    let summary = |home: &Home, user: &User, room: &str, query: &str| {
        v1(home, Some(user), &format!("/room_summary/{}?{query}", quote(room)))
    };
    let (status, answer) = summary(&one, &alice, &hall, "");
    let expected = json!({ "room_id": hall, "name": "Hall", "topic": "All", "canonical_alias": "#hall:one.test",
        "join_rule": "public", "num_joined_members": 1, "guest_can_join": false, "world_readable": false,
        "room_version": "12", "membership": "join" });
    assert_eq!((status, answer), (200, expected));
    let (status, answer) = summary(&two, &bob, "#hall:one.test", "");
    assert_eq!((status, &answer["name"], &answer["membership"]), (200, &json!("Hall"), &json!("leave")), "{answer}");
    refused(&summary(&two, &bob, &secret, "via=one.test"), 404, "M_NOT_FOUND");
    refused(&summary(&two, &bob, "!nowhere", ""), 404, "M_NOT_FOUND");
    refused(&summary(&two, &bob, "nowhere", ""), 400, "M_INVALID_PARAM");
    refused(&v1(&two, None, &format!("/room_summary/{}", quote(&hall))), 401, "M_MISSING_TOKEN");
    // Who is invited is told what they are invited to.
    assert_eq!(one.post(&alice, &format!("/rooms/{}/invite", quote(&secret)), json!({ "user_id": bob.id })).0, 200);
    let (status, answer) = summary(&two, &bob, &secret, "");
    assert_eq!((status, &answer["name"], &answer["membership"]), (200, &json!("Secret"), &json!("invite")), "{answer}");
}
