//! The published room directories of this and of other servers.

use http::StatusCode;
use serde_json::{Value, json};
use verge::router::json_response;

use crate::{
    common::{network::World, peer::Peer},
    home::{Home, quote, refused},
};

fn ids(answer: &Value) -> Vec<&str> {
    answer["chunk"].as_array().unwrap().iter().map(|room| room["room_id"].as_str().unwrap()).collect()
}

#[test]
fn rooms_are_published_when_made_or_later_and_taken_out_again() {
    let home = Home::new();
    let alice = home.register("alice");
    let public = home.room(&alice, json!({ "visibility": "public", "name": "Public" }));
    home.room(&alice, json!({ "preset": "public_chat", "name": "Unlisted" }));
    let (_, answer) = home.call(None, "GET", "/publicRooms", None);
    assert_eq!(ids(&answer), [public.as_str()]);
    assert_eq!((&answer["chunk"][0]["name"], &answer["chunk"][0]["num_joined_members"]), (&json!("Public"), &json!(1)));
    let list = format!("/directory/list/room/{}", quote(&public));
    assert_eq!(home.put(&alice, &list, json!({ "visibility": "private" })).0, 200);
    assert_eq!(home.post(&alice, "/publicRooms", json!({})).1, json!({ "chunk": [] }));
    assert_eq!(home.put(&alice, &list, json!({})).0, 200);
    let search = json!({ "filter": { "generic_search_term": "PUB" } });
    assert_eq!(ids(&home.post(&alice, "/publicRooms", search).1), [public.as_str()]);
    // Rooms that are not there, and who may not.
    let bob = home.register("bob");
    home.post(&bob, &format!("/join/{}", quote(&public)), json!({}));
    refused(&home.put(&bob, &list, json!({ "visibility": "private" })), 403, "M_FORBIDDEN");
    refused(&home.put(&alice, "/directory/list/room/!nowhere", json!({})), 404, "M_NOT_FOUND");
    refused(&home.get(&alice, "/directory/list/room/!nowhere"), 404, "M_NOT_FOUND");
    refused(&home.call(None, "PUT", &list, Some(json!({}))), 401, "M_MISSING_TOKEN");
    refused(&home.call(None, "POST", "/publicRooms", Some(json!({}))), 401, "M_MISSING_TOKEN");
    refused(&home.get(&alice, "/publicRooms?limit=x"), 400, "M_INVALID_PARAM");
}

#[test]
fn the_largest_rooms_come_first() {
    let home = Home::new();
    let users: Vec<_> = ["alice", "bob", "carol"].iter().map(|name| home.register(name)).collect();
    let room = |_| home.room(&users[0], json!({ "visibility": "public", "preset": "public_chat" }));
    let mut rooms: Vec<String> = (0..4).map(room).collect();
    rooms.sort();
    let join = |user: usize, room: &str| {
        assert_eq!(home.post(&users[user], &format!("/join/{}", quote(room)), json!({})).0, 200);
    };
    join(1, &rooms[1]);
    join(1, &rooms[2]);
    join(2, &rooms[1]);
    let order = |of: [usize; 4]| of.map(|n| rooms[n].as_str());
    assert_eq!(ids(&home.get(&users[0], "/publicRooms").1), order([1, 2, 3, 0]));
    // One after the other, and as members go and a room is listed anew.
    let (_, first) = home.get(&users[0], "/publicRooms?limit=2");
    let next = quote(first["next_batch"].as_str().unwrap());
    assert_eq!(ids(&home.get(&users[0], &format!("/publicRooms?since={next}")).1), order([1, 2, 3, 0])[2..]);
    for user in [1, 2] {
        assert_eq!(home.post(&users[user], &format!("/rooms/{}/leave", quote(&rooms[1])), json!({})).0, 200);
    }
    let list = format!("/directory/list/room/{}", quote(&rooms[2]));
    for visibility in ["private", "public"] {
        assert_eq!(home.put(&users[0], &list, json!({ "visibility": visibility })).0, 200);
    }
    assert_eq!(ids(&home.get(&users[0], "/publicRooms").1), order([2, 3, 1, 0]));
}

#[test]
fn another_servers_directory_is_read_through_ours() {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let mut rooms: Vec<String> =
        (0..3).map(|n| one.room(&alice, json!({ "visibility": "public", "name": format!("Room {n}") }))).collect();
    rooms.sort();
    rooms.reverse();
    let (status, first) = two.get(&bob, "/publicRooms?server=one.test&limit=2");
    assert_eq!((status, ids(&first)), (200, vec![rooms[0].as_str(), rooms[1].as_str()]), "{first}");
    let next = quote(first["next_batch"].as_str().unwrap());
    let (_, rest) = two.get(&bob, &format!("/publicRooms?server=one.test&limit=2&since={next}"));
    assert_eq!(ids(&rest), [rooms[2].as_str()]);
    let search = json!({ "filter": { "generic_search_term": "room 1" } });
    let (_, found) = two.post(&bob, "/publicRooms?server=one.test", search);
    assert_eq!(found["chunk"].as_array().unwrap().len(), 1);
    assert_eq!(found["chunk"][0]["name"], "Room 1");
    // Itself it asks without the network.
    assert_eq!(one.get(&alice, "/publicRooms?server=one.test").1["chunk"].as_array().unwrap().len(), 3);
    // Nobody else may have us ask others.
    refused(&two.call(None, "GET", "/publicRooms?server=one.test", None), 401, "M_MISSING_TOKEN");
    refused(&two.get(&bob, "/publicRooms?server=not%20a%20name"), 400, "M_INVALID_PARAM");
    refused(&two.get(&bob, "/publicRooms?server=nobody.test"), 502, "M_UNKNOWN");
}

#[test]
fn what_another_server_says_is_not_believed_to_be_well_formed() {
    let home = Home::new();
    let alice = home.register("alice");
    let peer = Peer::new(&home.world, "peer.example");
    let good = json!({ "room_id": "!good", "num_joined_members": 1, "world_readable": false, "guest_can_join": false });
    let chunk = json!([1, {}, { "room_id": 1 }, { "room_id": "!bad", "num_joined_members": "1" }, good]);
    let answer = json!({ "chunk": chunk, "next_batch": 7, "total_room_count_estimate": "x", "more": {} });
    let body = std::rc::Rc::new(std::cell::RefCell::new(answer));
    let said = body.clone();
    peer.answers(move |request| {
        request.uri().path().ends_with("/publicRooms").then(|| json_response(StatusCode::OK, &*said.borrow()))
    });
    assert_eq!(home.get(&alice, "/publicRooms?server=peer.example").1, json!({ "chunk": [good] }));
    for junk in [json!({}), json!([]), json!({ "chunk": {} })] {
        *body.borrow_mut() = junk;
        refused(&home.get(&alice, "/publicRooms?server=peer.example"), 502, "M_UNKNOWN");
    }
}
