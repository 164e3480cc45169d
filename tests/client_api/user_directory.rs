//! Finding users.

use serde_json::{Value, json};

use crate::{
    gaps::scene,
    home::{Answer, Home, User, quote, refused},
};

fn search(home: &Home, user: &User, body: Value) -> Answer {
    home.post(user, "/user_directory/search", body)
}

fn found(home: &Home, user: &User, term: &str) -> Vec<String> {
    let (status, answer) = search(home, user, json!({ "search_term": term }));
    assert_eq!(status, 200, "{answer}");
    answer["results"].as_array().unwrap().iter().map(|user| user["user_id"].as_str().unwrap().to_owned()).collect()
}

fn call(home: &Home, user: &User, name: &str) {
    let path = format!("/profile/{}/displayname", quote(&user.id));
    assert_eq!(home.put(user, &path, json!({ "displayname": name })).0, 200);
}

#[test]
fn users_are_found_by_id_and_name_where_a_room_shows_them() {
    let home = Home::new();
    let [alice, bob, carol, dave] = ["alice", "bob", "carol", "dave"].map(|name| home.register(name));
    call(&home, &bob, "Björn ÅNGSTRÖM");
    let shared = home.room(&alice, json!({ "invite": [bob.id] }));
    assert!(found(&home, &alice, "bob").is_empty(), "an invite is no membership");
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&shared)), json!({})).0, 200);
    for term in ["bob", "BOB", "@bob:hs.test", "björn", "ångström", "Ö", "rn"] {
        assert_eq!(found(&home, &alice, term), [bob.id.as_str()], "{term}");
    }
    let (_, answer) = search(&home, &alice, json!({ "search_term": "bob" }));
    assert_eq!(
        answer,
        json!({ "results": [{ "user_id": bob.id, "display_name": "Björn ÅNGSTRÖM" }], "limited": false })
    );
    assert!(found(&home, &alice, "alice").is_empty(), "nobody looks for themselves");
    // Members of private rooms are not shown outside; those of public ones, and of such as everybody may read, are.
    assert!(found(&home, &carol, "bob").is_empty());
    let secret = home.room(&dave, json!({}));
    assert!(found(&home, &carol, "dave").is_empty());
    let history = json!({ "history_visibility": "world_readable" });
    assert_eq!(home.put(&dave, &format!("/rooms/{}/state/m.room.history_visibility", quote(&secret)), history).0, 200);
    assert_eq!(found(&home, &carol, "dave"), [dave.id.as_str()]);
    let public = home.room(&bob, json!({ "preset": "public_chat" }));
    assert_eq!(found(&home, &carol, "bob"), [bob.id.as_str()]);
    // Who has left is gone.
    assert_eq!(home.post(&bob, &format!("/rooms/{}/leave", quote(&public)), json!({})).0, 200);
    assert!(found(&home, &carol, "bob").is_empty());
}

/// What one is called in a single room is said there alone.
#[test]
fn users_of_this_server_are_called_as_their_profiles_say() {
    let home = Home::new();
    let [alice, bob] = ["alice", "bob"].map(|name| home.register(name));
    call(&home, &alice, "Alice Cooper");
    home.room(&alice, json!({ "preset": "public_chat" }));
    let private = home.room(&bob, json!({ "invite": [alice.id] }));
    assert_eq!(home.post(&alice, &format!("/join/{}", quote(&private)), json!({})).0, 200);
    home.world.advance(1_000);
    let path = format!("/rooms/{}/state/m.room.member/{}", quote(&private), quote(&alice.id));
    let member = json!({ "membership": "join", "displayname": "Freddy", "avatar_url": "mxc://hs.test/freddy" });
    assert_eq!(home.put(&alice, &path, member).0, 200);
    let expected = json!([{ "user_id": alice.id, "display_name": "Alice Cooper" }]);
    // By whatever name she is found.
    for term in ["alice", "@alice:hs.test", "cooper", "freddy"] {
        let (_, answer) = search(&home, &bob, json!({ "search_term": term }));
        assert_eq!(answer["results"], expected, "{term}");
    }
}

#[test]
fn the_nearest_come_first_and_no_more_than_asked_for() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    for name in ["sam", "samuel", "xsam", "eve"] {
        let user = home.register(name);
        if name == "eve" {
            call(&home, &user, "The Sam");
        }
        home.post(&user, &format!("/join/{}", quote(&room)), json!({}));
    }
    assert_eq!(found(&home, &alice, "sam"), ["@sam:hs.test", "@samuel:hs.test", "@eve:hs.test", "@xsam:hs.test"]);
    let (_, answer) = search(&home, &alice, json!({ "search_term": "sam", "limit": 2 }));
    assert_eq!((answer["results"].as_array().unwrap().len(), &answer["limited"]), (2, &json!(true)));
    let (_, answer) = search(&home, &alice, json!({ "search_term": "sam", "limit": 4 }));
    assert_eq!(answer["limited"], false);
    let (_, answer) = search(&home, &alice, json!({ "search_term": "", "limit": -1 }));
    assert_eq!(answer, json!({ "results": [], "limited": false }));
    assert_eq!(search(&home, &alice, json!({ "search_term": "x".repeat(300) })).1["results"], json!([]));
}

#[test]
fn users_of_other_servers_are_found_in_shared_rooms() {
    let scene = scene("10");
    assert_eq!(found(&scene.two, &scene.bob, "alice"), [scene.alice.id.as_str()]);
    assert_eq!(found(&scene.one, &scene.alice, "two.test"), [scene.bob.id.as_str()]);
}

#[test]
fn user_searches_are_refused_as_documented() {
    let home = Home::new();
    let alice = home.register("alice");
    refused(&search(&home, &alice, json!({})), 400, "M_MISSING_PARAM");
    refused(&search(&home, &alice, json!({ "search_term": 5 })), 400, "M_BAD_JSON");
    refused(&search(&home, &alice, json!({ "search_term": "x", "limit": "many" })), 400, "M_BAD_JSON");
    refused(&home.call(None, "POST", "/user_directory/search", Some(json!({}))), 401, "M_MISSING_TOKEN");
}
