//! What clients are told of a room of which it is not known yet who is in it.

use std::{cell::Cell, rc::Rc};

use bytes::Bytes;
use futures_util::future::join;
use http::StatusCode;
use serde_json::{Value, json};
use verge::{platform::Clock, router::json_response};

use crate::{
    common::network::World,
    home::{Home, User, next, quote, refused},
};

/// A room of `one.test` with members, which Bob of `two.test` has joined; who is in it is known from when `gives` is set.
struct Joined {
    one: Home,
    two: Home,
    alice: User,
    carol: User,
    bob: User,
    room: String,
    gives: Rc<Cell<bool>>,
    /// Where Bob's syncs stood before.
    before: String,
}

fn joined(visibility: Value) -> Joined {
    let world = World::new();
    world.wake_by_commits();
    let one = Home::with(&world, "one.test", &[("REGISTRATION", "open")]);
    let two = Home::with(&world, "two.test", &[("REGISTRATION", "open"), ("FASTER_JOINS", "on")]);
    let [alice, carol] = ["alice", "carol"].map(|name| one.register(name));
    let bob = two.register("bob");
    let before = next(&two.sync(&bob, ""));
    let room = one.room(&alice, json!({ "preset": "public_chat", "name": "The hall", "initial_state": [visibility] }));
    for n in 0..8 {
        let member = one.register(&format!("member{n}"));
        assert_eq!(one.post(&member, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    }
    assert_eq!(one.post(&carol, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let gives = Rc::new(Cell::new(false));
    let (server, given) = (Rc::clone(&one.server), Rc::clone(&gives));
    world.connect(
        "one.test",
        Rc::new(move |request| {
            let (server, given) = (Rc::clone(&server), Rc::clone(&given));
            Box::pin(async move {
                let is_state = request.uri().path().starts_with("/_matrix/federation/v1/state/");
                if is_state && !given.get() {
                    let error = json!({ "errcode": "M_UNKNOWN", "error": "?" });
                    return json_response(StatusCode::BAD_GATEWAY, &error);
                }
                server.handle(request).await
            })
        }),
    );
    let (status, answer) = two.post(&bob, &format!("/join/{}?via=one.test", quote(&room)), json!({}));
    assert_eq!(status, 200, "{answer}");
    world.settle();
    Joined { one, two, alice, carol, bob, room, gives, before }
}

fn open() -> Value {
    json!({ "type": "m.room.history_visibility", "content": { "history_visibility": "shared" } })
}

/// A request that a test sends while it does something else.
fn get(user: &User, path: &str) -> http::Request<Bytes> {
    http::Request::builder()
        .uri(format!("/_matrix/client/v3{path}"))
        .header("Authorization", format!("Bearer {}", user.token))
        .body(Bytes::new())
        .unwrap()
}

impl Joined {
    fn path(&self, rest: &str) -> String {
        format!("/rooms/{}/{rest}", quote(&self.room))
    }

    /// The members are had.
    fn completes(&self) {
        self.gives.set(true);
        self.two.world.advance(60 * 60 * 1_000);
        self.two.world.run(self.two.server.scheduled());
        self.two.world.settle();
    }

    /// The users whose memberships a sync tells, in the state and the timeline of the room.
    fn told(&self, answer: &Value) -> Vec<String> {
        let room = &answer["rooms"]["join"][&self.room];
        let events = ["state", "timeline"].into_iter().flat_map(|part| room[part]["events"].as_array().cloned());
        let members = events.flatten().filter(|event| event["type"] == "m.room.member");
        let mut users: Vec<String> = members.map(|event| event["state_key"].as_str().unwrap().to_owned()).collect();
        users.sort();
        users
    }
}

#[test]
fn a_room_is_told_at_once_and_anew_when_its_members_are_there() {
    let lazy = format!("&filter={}", quote(r#"{"room":{"state":{"lazy_load_members":true}}}"#));
    let joined = joined(open());
    let (one, two, bob) = (&joined.one, &joined.two, &joined.bob);
    let first = two.sync(bob, &format!("{}{lazy}", joined.before));
    let room = &first["rooms"]["join"][&joined.room];
    assert!(room["state"]["events"].as_array().unwrap().iter().any(|event| event["type"] == "m.room.name"));
    assert!(joined.told(&first).contains(&bob.id));
    assert!(!joined.told(&first).contains(&joined.carol.id));
    // They talk.
    let said = one.say(&joined.carol, &joined.room, "hello", "t1");
    two.say(bob, &joined.room, "hello yourself", "t2");
    two.world.settle();
    let second = two.sync(bob, &format!("{}{lazy}", next(&first)));
    let timeline = second["rooms"]["join"][&joined.room]["timeline"]["events"].as_array().unwrap();
    assert!(timeline.iter().any(|event| event["event_id"] == said.as_str()), "{second}");
    joined.completes();
    let third = two.sync(bob, &format!("{}{lazy}", next(&second)));
    let room = &third["rooms"]["join"][&joined.room];
    assert_eq!((&room["summary"]["m.joined_member_count"], &room["timeline"]["limited"]), (&json!(11), &json!(false)));
    // And once.
    let fourth = two.sync(bob, &format!("{}{lazy}", next(&third)));
    assert_eq!(fourth["rooms"]["join"], json!({}));
    // Who says up to where they know the room is told who is in it, and not who was known to be.
    let at = quote(next(&first).strip_prefix("since=").unwrap());
    let (status, members) = two.get(bob, &joined.path(&format!("members?at={at}")));
    assert_eq!((status, members["chunk"].as_array().map(Vec::len)), (200, Some(11)));
}

#[test]
fn who_loads_all_members_is_told_of_a_room_when_they_are_there() {
    let joined = joined(open());
    let (one, two, bob) = (&joined.one, &joined.two, &joined.bob);
    let first = two.sync(bob, &joined.before);
    assert_eq!(first["rooms"]["join"], json!({}));
    let said = one.say(&joined.carol, &joined.room, "hello", "t1");
    let dave = one.register("dave");
    assert_eq!(one.post(&dave, &format!("/join/{}", quote(&joined.room)), json!({})).0, 200);
    two.world.settle();
    let second = two.sync(bob, &next(&first));
    assert_eq!(second["rooms"]["join"], json!({}));
    joined.completes();
    let third = two.sync(bob, &next(&second));
    let members = joined.told(&third);
    assert!(members.len() == 12 && members.contains(&dave.id), "{third}");
    // Of none of them he has heard before, whoever they were that were known.
    assert_eq!(third["device_lists"]["changed"], json!(members), "{third}");
    let at = |answer: &Value| next(answer).strip_prefix("since=").unwrap().to_owned();
    let (_, changes) = two.get(bob, &format!("/keys/changes?from={}&to={}", at(&second), at(&third)));
    assert_eq!(changes["changed"], json!(members));
    let timeline = &third["rooms"]["join"][&joined.room]["timeline"];
    assert_eq!(timeline["limited"], true);
    // What was said meanwhile is found by paging back.
    let from = quote(timeline["prev_batch"].as_str().unwrap());
    let (_, page) = two.get(bob, &joined.path(&format!("messages?dir=b&from={from}")));
    assert!(page["chunk"].as_array().unwrap().iter().any(|event| event["event_id"] == said.as_str()), "{page}");
}

#[test]
fn who_asks_for_the_members_waits_for_them() {
    let joined = joined(open());
    let (two, bob, world) = (&joined.two, &joined.bob, &joined.two.world);
    for path in ["members", "joined_members", "state"] {
        let before = world.now_ms();
        refused(&two.get(bob, &joined.path(path)), 504, "M_UNKNOWN");
        assert!((25_000..60_000).contains(&(world.now_ms() - before)), "{path}");
    }
    // What is known needs no waiting.
    let name = two.get(bob, &joined.path("state/m.room.name/"));
    assert_eq!(name, (200, json!({ "name": "The hall" })));
    for (path, body) in [
        ("kick", json!({ "user_id": joined.carol.id })),
        ("ban", json!({ "user_id": joined.carol.id })),
        ("invite", json!({ "user_id": joined.carol.id })),
    ] {
        refused(&two.post(bob, &joined.path(path), body), 504, "M_UNKNOWN");
    }
    // While somebody waits, they come.
    joined.gives.set(true);
    let waiting = two.server.handle(get(bob, &joined.path("joined_members")));
    world.advance(60 * 60 * 1_000);
    let (response, ()) = world.run(join(waiting, two.server.scheduled()));
    assert_eq!(response.status(), 200, "{:?}", world.logs());
    let answer: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(answer["joined"].as_object().unwrap().len(), 11);
    // Bob has no power there.
    refused(&two.post(bob, &joined.path("kick"), json!({ "user_id": joined.carol.id })), 403, "M_FORBIDDEN");
    refused(&two.post(bob, &joined.path("invite"), json!({ "user_id": joined.carol.id })), 403, "M_FORBIDDEN");
}

#[test]
fn what_others_may_not_see_stays_hidden_while_it_is_not_known_who_is_there() {
    let hidden = json!({ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } });
    let joined = joined(hidden);
    let (one, two) = (&joined.one, &joined.two);
    let said = two.say(&joined.bob, &joined.room, "between us", "t1");
    two.world.settle();
    // By the sender's own server it is told whole to whom it was sent; who asks for it later must have been there.
    let event = |home: &Home, user: &User| home.get(user, &joined.path(&format!("event/{}", quote(&said))));
    assert_eq!(event(two, &joined.bob).1["content"]["body"], "between us");
    assert_eq!(event(one, &joined.alice).1["content"]["body"], "between us");
    joined.completes();
    assert_eq!(event(two, &joined.bob).1["content"]["body"], "between us");
}

/// Whoever loads all members has not heard of the room yet: what is said of it besides would be a room without a state to them.
#[test]
fn nothing_of_a_room_is_told_before_it_is_and_nothing_is_lost() {
    let joined = joined(open());
    let (one, two, bob) = (&joined.one, &joined.two, &joined.bob);
    let first = two.sync(bob, &joined.before);
    let said = one.say(&joined.carol, &joined.room, "hello", "t1");
    two.world.settle();
    let receipt = joined.path(&format!("receipt/m.read/{}", quote(&said)));
    assert_eq!(one.post(&joined.alice, &receipt, json!({})).0, 200);
    // By a client of his that loads members lazily, say.
    assert_eq!(two.post(bob, &receipt, json!({})).0, 200);
    let tags = format!("/user/{}/rooms/{}/tags/u.work", quote(&bob.id), quote(&joined.room));
    assert_eq!(two.put(bob, &tags, json!({ "order": 0.5 })).0, 200);
    two.world.settle();
    let second = two.sync(bob, &next(&first));
    assert_eq!(second["rooms"]["join"], json!({}));
    joined.completes();
    let third = two.sync(bob, &next(&second));
    let account_data = &third["rooms"]["join"][&joined.room]["account_data"]["events"];
    assert_eq!(account_data[0]["content"], json!({ "tags": { "u.work": { "order": 0.5 } } }), "{third}");
    let ephemeral = &third["rooms"]["join"][&joined.room]["ephemeral"]["events"];
    let read: Vec<&String> = ephemeral[0]["content"][&said]["m.read"].as_object().unwrap().keys().collect();
    // Of Alice it was not known yet that she is there.
    assert_eq!(read, [&bob.id], "{third}");
    assert_eq!(two.sync(bob, &next(&third))["rooms"]["join"], json!({}));
}

#[test]
fn the_state_around_an_event_is_told_when_it_is_whole() {
    let joined = joined(open());
    let (two, bob) = (&joined.two, &joined.bob);
    let said = two.say(bob, &joined.room, "hello", "t1");
    let context = joined.path(&format!("context/{}?limit=1", quote(&said)));
    refused(&two.get(bob, &context), 504, "M_UNKNOWN");
    let lazy = quote(r#"{"lazy_load_members":true}"#);
    let (status, answer) = two.get(bob, &format!("{context}&filter={lazy}"));
    assert_eq!(status, 200, "{answer}");
    // Bob may not do that, which is known.
    refused(&two.post(bob, &joined.path("upgrade"), json!({ "new_version": "12" })), 403, "M_FORBIDDEN");
    joined.completes();
    let (_, answer) = two.get(bob, &context);
    let members = answer["state"].as_array().unwrap().iter().filter(|event| event["type"] == "m.room.member");
    assert_eq!(members.count(), 11);
}

/// When nobody of ours is in the room any more, no more of it is going to be known.
#[test]
fn who_has_left_does_not_wait() {
    let joined = joined(json!({
        "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" }
    }));
    let (two, bob) = (&joined.two, &joined.bob);
    refused(&two.get(bob, &joined.path("members")), 504, "M_UNKNOWN");
    assert_eq!(two.post(bob, &joined.path("leave"), json!({})).0, 200);
    two.world.settle();
    let before = two.world.now_ms();
    let (status, answer) = two.get(bob, &joined.path("members"));
    assert_eq!((status, two.world.now_ms()), (200, before), "{answer}");
}

/// Whoever loads all members was told nothing of the room while they were not known, though a sync has gone by.
#[test]
fn a_room_that_is_left_before_its_members_are_there_is_told_whole() {
    for lazy in [false, true] {
        let joined = joined(open());
        let (two, bob) = (&joined.two, &joined.bob);
        let filter = if lazy { quote(r#"{"room":{"state":{"lazy_load_members":true}}}"#) } else { quote("{}") };
        let sync = |since: &str| two.sync(bob, &format!("{since}&filter={filter}"));
        let first = sync(&joined.before);
        assert_eq!(first["rooms"]["join"].get(&joined.room).is_some(), lazy);
        assert_eq!(two.post(bob, &joined.path("leave"), json!({})).0, 200);
        two.world.settle();
        let second = sync(&next(&first));
        let left = &second["rooms"]["leave"][&joined.room];
        let state = left["state"]["events"].as_array().unwrap();
        let is_whole = state.iter().any(|event| event["type"] == "m.room.create");
        assert_eq!((is_whole, &left["timeline"]["limited"]), (!lazy, &json!(!lazy)), "{left}");
        assert_eq!(left["timeline"]["events"].as_array().unwrap().last().unwrap()["content"]["membership"], "leave");
        assert_eq!(sync(&next(&second))["rooms"]["leave"], json!({}), "and once");
    }
}

/// The rest of the room's state is more than a server takes over.
#[test]
fn a_room_whose_members_will_not_be_known_is_told_as_far_as_it_is_known() {
    let joined = joined(open());
    let (one, two, bob, world) = (&joined.one, &joined.two, &joined.bob, &joined.two.world);
    let first = two.sync(bob, &joined.before);
    assert_eq!(first["rooms"]["join"], json!({}));
    let now = world.now_ms() + 3_600_000;
    let large = world.run(two.server.store.take_large_join(now, now)).unwrap().unwrap();
    // Who waits is told at once.
    let begun = world.now_ms();
    let waiting = two.server.handle(get(bob, &format!("/sync?{}&timeout=30000", next(&first))));
    let giving_up = async {
        world.sleep(3_000).await;
        two.server.rooms.give_up_completing(&large).await.unwrap();
    };
    let (answer, ()) = world.run(join(waiting, giving_up));
    assert_eq!(world.now_ms() - begun, 3_000);
    let answer: Value = serde_json::from_slice(answer.body()).unwrap();
    let room = &answer["rooms"]["join"][&joined.room];
    assert!(room["state"]["events"].as_array().unwrap().iter().any(|event| event["type"] == "m.room.name"), "{answer}");
    assert!(joined.told(&answer).contains(&bob.id));
    world.run(two.server.store.end_large_join(&large.join_id)).unwrap();
    let said = one.say(&joined.carol, &joined.room, "hello", "t1");
    world.settle();
    let answer = two.sync(bob, &next(&answer));
    let room = &answer["rooms"]["join"][&joined.room];
    let timeline = room["timeline"]["events"].as_array().unwrap();
    assert!(timeline.iter().any(|event| event["event_id"] == said.as_str()));
    assert_eq!(two.sync(bob, &next(&answer))["rooms"]["join"], json!({}));
    // Nobody waits for what does not come.
    let before = world.now_ms();
    refused(&two.get(bob, &joined.path("members")), 504, "M_UNKNOWN");
    assert_eq!(world.now_ms(), before);
    joined.completes();
    refused(&two.get(bob, &joined.path("members")), 504, "M_UNKNOWN");
    let mine = two.say(bob, &joined.room, "hello yourself", "t2");
    world.settle();
    assert_eq!(one.get(&joined.alice, &joined.path(&format!("event/{}", quote(&mine)))).0, 200);
}
