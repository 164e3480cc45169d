//! Memberships, aliases, profiles, filters and account data.

use std::rc::Rc;

use serde_json::{Value, json};
use verge::{
    platform::{Database, DatabaseError, LocalBoxFuture, Rows, Statement},
    store::Store,
};

use crate::home::{Home, User, quote, refused};

fn membership(home: &Home, user: &User, room: &str, of: &User) -> Value {
    home.get(user, &format!("/rooms/{}/state/m.room.member/{}", quote(room), quote(&of.id))).1["membership"].clone()
}

#[test]
fn the_life_of_a_membership() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({}));
    let of_room =
        |user: &User, what: &str, body: Value| home.post(user, &format!("/rooms/{}/{what}", quote(&room)), body);
    let bobs = json!({ "user_id": bob.id, "reason": "because" });
    refused(&of_room(&bob, "join", json!({})), 403, "M_FORBIDDEN");
    refused(&of_room(&bob, "leave", json!({})), 403, "M_FORBIDDEN");
    assert_eq!(of_room(&alice, "invite", bobs.clone()), (200, json!({})));
    assert_eq!(membership(&home, &alice, &room, &bob), "invite");
    assert_eq!(of_room(&bob, "join", json!({ "reason": "why not" })), (200, json!({ "room_id": room })));
    assert_eq!(membership(&home, &alice, &room, &bob), "join");
    // A second join changes nothing.
    let count = || home.database.rows("SELECT count(*) FROM events");
    let before = count();
    assert_eq!(of_room(&bob, "join", json!({})).0, 200);
    assert_eq!(count(), before);
    refused(&of_room(&alice, "invite", bobs.clone()), 403, "M_FORBIDDEN");
    refused(&of_room(&bob, "kick", json!({ "user_id": alice.id })), 403, "M_FORBIDDEN");
    assert_eq!(of_room(&alice, "kick", bobs.clone()).0, 200);
    assert_eq!(membership(&home, &alice, &room, &bob), "leave");
    let (_, event) =
        home.get(&alice, &format!("/rooms/{}/state/m.room.member/{}?format=event", quote(&room), quote(&bob.id)));
    assert_eq!((&event["sender"], &event["content"]["reason"]), (&json!(alice.id), &json!("because")));
    refused(&of_room(&alice, "kick", bobs.clone()), 403, "M_FORBIDDEN");
    refused(&of_room(&alice, "unban", bobs.clone()), 403, "M_FORBIDDEN");
    assert_eq!(of_room(&alice, "ban", bobs.clone()).0, 200);
    assert_eq!(membership(&home, &alice, &room, &bob), "ban");
    refused(&of_room(&alice, "invite", bobs.clone()), 403, "M_FORBIDDEN");
    refused(&of_room(&alice, "kick", bobs.clone()), 403, "M_FORBIDDEN");
    assert_eq!(of_room(&alice, "unban", bobs.clone()).0, 200);
    assert_eq!(membership(&home, &alice, &room, &bob), "leave");
    refused(&of_room(&alice, "invite", json!({})), 400, "M_MISSING_PARAM");
    refused(&of_room(&alice, "invite", json!({ "user_id": "bob" })), 400, "M_INVALID_PARAM");
    refused(&of_room(&alice, "invite", json!({ "user_id": "@nobody:hs.test" })), 404, "M_NOT_FOUND");
}

#[test]
fn leaving_and_forgetting() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
    let of_room = |what: &str| home.post(&bob, &format!("/rooms/{}/{what}", quote(&room)), json!({}));
    refused(&of_room("forget"), 400, "M_UNKNOWN");
    assert_eq!(of_room("leave"), (200, json!({})));
    assert_eq!(of_room("leave"), (200, json!({})), "a repetition");
    assert_eq!(home.get(&bob, &format!("/rooms/{}/messages?dir=b", quote(&room))).0, 200);
    assert_eq!(of_room("forget"), (200, json!({})));
    // Whatever they ask.
    for query in ["?dir=b", "", "?dir=b&limit=many", "?dir=b&filter=x"] {
        refused(&home.get(&bob, &format!("/rooms/{}/messages{query}", quote(&room))), 403, "M_FORBIDDEN");
    }
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
}

#[test]
fn aliases_are_made_resolved_and_removed() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let alias = "/directory/room/%23den%3Ahs.test";
    refused(&home.call(None, "GET", alias, None), 404, "M_NOT_FOUND");
    refused(&home.put(&bob, alias, json!({ "room_id": room })), 403, "M_FORBIDDEN");
    assert_eq!(home.put(&alice, alias, json!({ "room_id": room })), (200, json!({})));
    let (status, answer) = home.put(&alice, alias, json!({ "room_id": room }));
    assert_eq!((status, answer["errcode"].is_string()), (409, true));
    assert_eq!(home.call(None, "GET", alias, None), (200, json!({ "room_id": room, "servers": ["hs.test"] })));
    assert_eq!(home.post(&bob, "/join/%23den%3Ahs.test", json!({})), (200, json!({ "room_id": room })));
    let (_, listed) = home.get(&bob, &format!("/rooms/{}/aliases", quote(&room)));
    assert_eq!(listed, json!({ "aliases": ["#den:hs.test"] }));
    refused(&home.call(Some(&bob.token), "DELETE", alias, None), 403, "M_FORBIDDEN");
    assert_eq!(home.call(Some(&alice.token), "DELETE", alias, None), (200, json!({})));
    refused(&home.call(Some(&alice.token), "DELETE", alias, None), 404, "M_NOT_FOUND");
    refused(&home.post(&bob, "/join/%23den%3Ahs.test", json!({})), 404, "M_NOT_FOUND");
    refused(
        &home.put(&alice, "/directory/room/%23x%3Aelsewhere.test", json!({ "room_id": room })),
        400,
        "M_INVALID_PARAM",
    );
    refused(&home.put(&alice, "/directory/room/nonsense", json!({ "room_id": room })), 400, "M_INVALID_PARAM");
    let list = format!("/directory/list/room/{}", quote(&room));
    refused(&home.put(&bob, &list, json!({ "visibility": "public" })), 403, "M_FORBIDDEN");
    assert_eq!(home.put(&alice, &list, json!({ "visibility": "public" })).0, 200);
    assert_eq!(home.call(None, "GET", &list, None).1, json!({ "visibility": "public" }));
    assert_eq!(home.put(&alice, &list, json!({ "visibility": "private" })).0, 200);
    assert_eq!(home.call(None, "GET", &list, None).1, json!({ "visibility": "private" }));
}

#[test]
fn a_new_profile_reaches_the_rooms() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({}));
    let path = |what: &str| format!("/profile/{}{what}", quote(&alice.id));
    assert_eq!(home.call(None, "GET", &path(""), None), (200, json!({ "displayname": "alice" })));
    assert_eq!(home.put(&alice, &path("/displayname"), json!({ "displayname": "Alice A." })), (200, json!({})));
    assert_eq!(home.put(&alice, &path("/avatar_url"), json!({ "avatar_url": "mxc://x/y" })), (200, json!({})));
    let both = json!({ "displayname": "Alice A.", "avatar_url": "mxc://x/y" });
    assert_eq!(home.call(None, "GET", &path(""), None), (200, both));
    assert_eq!(home.call(None, "GET", &path("/displayname"), None), (200, json!({ "displayname": "Alice A." })));
    let member = format!("/rooms/{}/state/m.room.member/{}", quote(&room), quote(&alice.id));
    let expected = json!({ "membership": "join", "displayname": "Alice A.", "avatar_url": "mxc://x/y" });
    assert_eq!(home.get(&alice, &member), (200, expected));
    // A room that is joined later gets it at once.
    let later = home.room(&alice, json!({}));
    let member = format!("/rooms/{}/state/m.room.member/{}", quote(&later), quote(&alice.id));
    assert_eq!(home.get(&alice, &member).1["displayname"], "Alice A.");
    assert_eq!(home.put(&alice, &path("/avatar_url"), json!({ "avatar_url": "" })).0, 200);
    refused(&home.call(None, "GET", &path("/avatar_url"), None), 404, "M_NOT_FOUND");
    refused(&home.put(&bob, &path("/displayname"), json!({ "displayname": "x" })), 403, "M_FORBIDDEN");
    refused(&home.put(&alice, &path("/displayname"), json!({ "displayname": 7 })), 400, "M_BAD_JSON");
    refused(&home.call(None, "GET", "/profile/%40none%3Ahs.test", None), 404, "M_NOT_FOUND");
    // Asked for from a server that is not there.
    refused(&home.call(None, "GET", "/profile/%40x%3Aelsewhere.test", None), 502, "M_UNKNOWN");
    refused(&home.call(None, "GET", "/profile/nonsense", None), 400, "M_INVALID_PARAM");
}

#[test]
fn filters_are_kept() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let path = format!("/user/{}/filter", quote(&alice.id));
    let filter = json!({ "room": { "timeline": { "limit": 3, "types": ["m.*"] } } });
    let (status, answer) = home.post(&alice, &path, filter.clone());
    assert_eq!(status, 200, "{answer}");
    let id = answer["filter_id"].as_str().unwrap();
    assert!(!id.starts_with('{'));
    assert_eq!(home.post(&alice, &path, filter.clone()).1, answer, "the same filter has one ID");
    assert_eq!(home.get(&alice, &format!("{path}/{id}")), (200, filter));
    refused(&home.get(&alice, &format!("{path}/none")), 404, "M_NOT_FOUND");
    refused(&home.get(&bob, &format!("{path}/{id}")), 403, "M_FORBIDDEN");
    refused(&home.post(&bob, &path, json!({})), 403, "M_FORBIDDEN");
    for wrong in [
        json!({ "room": 7 }),
        json!({ "room": { "timeline": { "limit": "x" } } }),
        json!({ "room": { "timeline": { "types": "m.room" } } }),
    ] {
        refused(&home.post(&alice, &path, wrong), 400, "M_BAD_JSON");
    }
}

#[test]
fn filters_name_rooms_and_users_by_their_ids() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let path = format!("/user/{}/filter", quote(&alice.id));
    let inline =
        |place: &str, filter: &Value| home.get(&alice, &format!("{place}?dir=b&filter={}", quote(&filter.to_string())));
    let messages = format!("/rooms/{}/messages", quote(&room));
    let context = format!("/rooms/{}/context/{}", quote(&room), quote(&home.say(&alice, &room, "x", "t")));
    let search = |filter: &Value| {
        let criteria = json!({ "search_term": "x", "filter": filter });
        home.post(&alice, "/search", json!({ "search_categories": { "room_events": criteria } }))
    };
    for (name, wrong, right) in [
        ("rooms", "not_a_room_id", "!old:hs.test"),
        ("not_rooms", "#alias:hs.test", "!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM"),
        ("senders", "not_a_sender_id", "@Old User/\u{e9}:hs.test"),
        ("not_senders", "@alice", "@:hs.test"),
    ] {
        for (id, is_right) in [(wrong, false), (right, true)] {
            let part = json!({ name: [id] });
            let mut wholes = vec![
                json!({ "room": { "timeline": part } }),
                json!({ "room": { "state": part } }),
                json!({ "room": { "ephemeral": part } }),
                json!({ "room": { "account_data": part } }),
                json!({ "presence": part }),
                json!({ "account_data": part }),
            ];
            if name.ends_with("rooms") {
                wholes.push(json!({ "room": part }));
            }
            let stored = wholes.iter().map(|whole| home.post(&alice, &path, whole.clone()));
            let synced = wholes.iter().map(|whole| inline("/sync", whole));
            let paged = [inline(&messages, &part), inline(&context, &part), search(&part)];
            for answer in stored.chain(synced).chain(paged) {
                if is_right {
                    assert_eq!(answer.0, 200, "{id} {}", answer.1);
                } else {
                    refused(&answer, 400, "M_INVALID_PARAM");
                }
            }
        }
    }
    // One that was stored before that was looked at goes on to hold.
    let old = r#"{"room":{"rooms":["nowhere"],"timeline":{"senders":["nobody"]}}}"#;
    home.world.run(home.server.store.put_filter(&alice.id, "old", old)).unwrap();
    assert_eq!(home.sync(&alice, "filter=old")["rooms"]["join"], json!({}));
}

#[test]
fn account_data_is_kept() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({}));
    let global = format!("/user/{}/account_data/m.direct", quote(&alice.id));
    let local = format!("/user/{}/rooms/{}/account_data/m.tag", quote(&alice.id), quote(&room));
    for path in [&global, &local] {
        refused(&home.get(&alice, path), 404, "M_NOT_FOUND");
        assert_eq!(home.put(&alice, path, json!({ "x": ["y"] })), (200, json!({})));
        assert_eq!(home.get(&alice, path), (200, json!({ "x": ["y"] })));
        refused(&home.get(&bob, path), 403, "M_FORBIDDEN");
        refused(&home.put(&bob, path, json!({})), 403, "M_FORBIDDEN");
        refused(&home.put(&alice, path, json!({ "x": "y".repeat(70_000) })), 413, "M_TOO_LARGE");
    }
    let push = format!("/user/{}/account_data/m.push_rules", quote(&alice.id));
    assert_eq!(home.put(&alice, &push, json!({})).0, 405);
}

#[test]
fn too_much_account_data_of_a_room_can_be_made_less() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let path = |kind: &str| format!("/user/{}/rooms/{}/account_data/{kind}", quote(&alice.id), quote(&room));
    // From before there was a bound.
    let long = json!({ "x": "y".repeat(60_000) });
    for number in 0..20 {
        let insert = Statement::new(
            "INSERT INTO account_data (user_id, room_id, event_type, content, pos) VALUES (?1, ?2, ?3, ?4, 1)",
            [alice.id.as_str().into(), room.as_str().into(), format!("u.{number}").into(), long.to_string().into()],
        );
        home.world.run(home.server.store.query(insert)).unwrap();
    }
    refused(&home.put(&alice, &path("u.new"), json!({})), 413, "M_TOO_LARGE");
    refused(&home.put(&alice, &path("u.0"), json!({ "x": "y".repeat(60_001) })), 413, "M_TOO_LARGE");
    assert_eq!(home.get(&alice, &path("u.0")), (200, long));
    for number in 0..4 {
        let of_type = path(&format!("u.{number}"));
        assert_eq!(home.put(&alice, &of_type, json!({})), (200, json!({})), "{number}");
        assert_eq!(home.get(&alice, &of_type), (200, json!({})));
    }
    assert_eq!(home.put(&alice, &path("u.new"), json!({})), (200, json!({})));
}

#[test]
fn what_clients_ask_when_they_start() {
    let home = Home::new();
    let alice = home.register("alice");
    let response = home.raw("GET", "/_matrix/client/versions", None, "");
    let versions: Value = serde_json::from_slice(response.body()).unwrap();
    assert!(versions["versions"].as_array().unwrap().contains(&json!("v1.1")));
    let (_, capabilities) = home.get(&alice, "/capabilities");
    let versions = &capabilities["capabilities"]["m.room_versions"];
    assert_eq!(versions["default"], "12");
    assert_eq!(versions["available"]["10"], "stable");
    refused(&home.call(None, "GET", "/capabilities", None), 401, "M_MISSING_TOKEN");
    assert!(home.get(&alice, "/pushrules/").1["global"]["override"].is_array());
    assert_eq!(home.get(&alice, "/voip/turnServer"), (200, json!({})));
}

#[test]
fn a_new_profile_is_told_to_many_rooms_at_once() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let versions = ["10", "11", "12"].into_iter().cycle();
    let rooms: Vec<String> =
        versions.take(30).map(|version| home.room(&alice, json!({ "room_version": version }))).collect();
    let shared = home.room(&alice, json!({ "preset": "public_chat", "room_version": "11" }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&shared)), json!({})).0, 200);
    home.world.settle();
    let before = home.database.calls.get();
    let name = format!("/profile/{}/displayname", quote(&alice.id));
    assert_eq!(home.put(&alice, &name, json!({ "displayname": "Alicia" })).0, 200);
    let calls = home.database.calls.get() - before;
    home.world.settle();
    for room in rooms.iter().chain([&shared]) {
        let member = format!("/rooms/{}/state/m.room.member/{}", quote(room), quote(&alice.id));
        let expected = json!({ "membership": "join", "displayname": "Alicia" });
        assert_eq!(home.get(&alice, &member).1, expected, "{:?}", home.world.logs());
    }
    // Two for each 25 rooms, and what reads the session, the profile and the rooms.
    assert!(calls <= 12, "{calls}");
    // Nothing changes where it is the same already.
    let count = || home.database.rows("SELECT count(*) FROM events");
    let events = count();
    assert_eq!(home.put(&alice, &name, json!({ "displayname": "Alicia" })).0, 200);
    assert_eq!(count(), events);
}

/// A database that answers to nothing.
struct Silent;

impl Database for Silent {
    fn batch(&self, _: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

#[test]
fn no_answer_of_the_database_is_not_an_answer_of_no_rows() {
    let found = futures_executor::block_on(Store::new(Rc::new(Silent)).profile("@alice:hs.test"));
    assert!(matches!(found, Err(DatabaseError::Shape(_))), "{found:?}");
}
