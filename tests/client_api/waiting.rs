//! Waiting for news: on one engine a commit wakes those whom it concerns, on the other they look again and again.

use std::future::Future;

use futures_util::future::join;
use serde_json::{Value, json};
use verge::platform::Clock;

use crate::{
    common::{
        devices::{CrossSigning, Device},
        network::{Homeserver, World},
        peer::Peer,
    },
    home::{Home, User, next, quote, request_of},
};

/// A server in which commits wake those who wait, or do not.
fn home(wakes: bool) -> Home {
    let world = World::new();
    if wakes {
        world.wake_by_commits();
    }
    Home::with(&world, "hs.test", &[("REGISTRATION", "open")])
}

/// What a sync answers that waits for half a minute since `since` while `meanwhile` is done after 3 s, how long it waited, and
/// how many calls to the database both made.
fn wait<T>(home: &Home, user: &User, since: &str, meanwhile: impl Future<Output = T>) -> (Value, i64, u64) {
    let sync = request_of(user, "GET", &format!("/sync?{since}&timeout=30000"), "");
    let (began, calls) = (home.world.now_ms(), home.database.calls.get());
    let sync = async {
        let answer = home.server.handle(sync).await;
        (answer, home.world.now_ms() - began)
    };
    let later = async {
        home.world.sleep(3_000).await;
        meanwhile.await
    };
    let ((answer, waited), _) = home.world.run(join(sync, later));
    assert_eq!(answer.status(), 200);
    (serde_json::from_slice(answer.body()).unwrap(), waited, home.database.calls.get() - calls)
}

async fn act(home: &Home, user: &User, method: &str, path: &str, body: &str) {
    let answer = home.server.handle(request_of(user, method, path, body.to_owned())).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
}

#[test]
fn looks_at_the_database_become_rarer_while_nothing_happens() {
    let home = home(false);
    let alice = home.register("alice");
    let since = next(&home.sync(&alice, ""));
    let (_, waited, calls) = wait(&home, &alice, &since, async {});
    assert_eq!(waited, 30_000);
    // After 0, 0.25, 0.75, 1.75, 3.75, 7.75, 12.75, 17.75, 22.75, 27.75 and 30 seconds; one for who asks, and one for the keys that
    // the device has left.
    assert_eq!(calls, 13);
}

#[test]
fn a_commit_wakes_those_whom_it_concerns_at_once() {
    let home = home(true);
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
    let settings = format!("/user/{}/account_data/m.direct", quote(&alice.id));
    let mut since = next(&home.sync(&alice, ""));
    let send = format!("/rooms/{}/send/m.room.message/t1", quote(&room));
    let deeds: [(&User, &str, &str, &str, &str); 4] = [
        (&bob, "PUT", &send, r#"{"body":"hello"}"#, "/rooms/join"),
        (&bob, "POST", "/createRoom", &format!(r#"{{"invite":["{}"]}}"#, alice.id), "/rooms/invite"),
        (&alice, "PUT", &settings, r#"{"a":["b"]}"#, "/account_data/events"),
        (&bob, "POST", &format!("/rooms/{}/leave", quote(&room)), "{}", "/rooms/join"),
    ];
    for (user, method, path, body, news) in deeds {
        let (answer, waited, _) = wait(&home, &alice, &since, act(&home, user, method, path, body));
        assert_eq!(waited, 3_000, "{path}");
        let told = answer.pointer(news).unwrap();
        assert!(told.as_object().map_or_else(|| !told.as_array().unwrap().is_empty(), |o| !o.is_empty()), "{answer}");
        since = next(&answer);
    }
}

#[test]
fn changed_keys_of_another_servers_user_wake_at_once() {
    let world = World::new();
    world.wake_by_commits();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "preset": "public_chat" }));
    let (status, answer) = two.post(&bob, &format!("/join/{}?via=one.test", quote(&room)), json!({}));
    assert_eq!(status, 200, "{answer}");
    world.settle();
    assert_eq!(one.post(&alice, "/keys/query", json!({ "device_keys": { &bob.id: [] } })).0, 200);
    let keys = Device::new(&bob.id, &bob.device_id).keys();
    let master = CrossSigning::new(&bob.id, "master").unsigned();
    let mut since = next(&one.sync(&alice, ""));
    for (path, body) in [
        ("/keys/upload", json!({ "device_keys": keys })),
        ("/keys/device_signing/upload", json!({ "master_key": master })),
    ] {
        let body = body.to_string();
        let (answer, waited, _) = wait(&one, &alice, &since, act(&two, &bob, "POST", path, &body));
        assert_eq!((waited, &answer["device_lists"]["changed"]), (3_000, &json!([bob.id])), "{path}");
        since = next(&answer);
    }
}

#[test]
fn what_concerns_others_wakes_nobody_else() {
    let home = home(true);
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&bob, json!({}));
    let since = next(&home.sync(&alice, ""));
    let quiet = wait(&home, &alice, &since, async {}).2;
    assert!(quiet <= 5, "who asks, a look, what to listen to, a last look, keys: {quiet}");
    let began = home.database.calls.get();
    home.say(&bob, &room, "x", "t0");
    home.world.settle();
    let message = home.database.calls.get() - began;
    let send = format!("/rooms/{}/send/m.room.message/t1", quote(&room));
    let (answer, waited, calls) = wait(&home, &alice, &since, act(&home, &bob, "PUT", &send, "{}"));
    assert_eq!((waited, calls), (30_000, quiet + message));
    assert_eq!(answer["rooms"]["join"], json!({}));
}

#[test]
fn who_has_just_joined_hears_of_the_room_in_the_same_wait() {
    let home = home(true);
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&bob, json!({ "preset": "public_chat" }));
    let since = next(&home.sync(&alice, ""));
    let join = format!("/join/{}", quote(&room));
    let (answer, waited, _) = wait(&home, &alice, &since, act(&home, &alice, "POST", &join, "{}"));
    assert_eq!(waited, 3_000);
    let send = format!("/rooms/{}/send/m.room.message/t1", quote(&room));
    let (answer, waited, _) = wait(&home, &alice, &next(&answer), act(&home, &bob, "PUT", &send, "{}"));
    assert_eq!(waited, 3_000);
    assert!(answer["rooms"]["join"][&room].is_object());
}

/// Whatever comes between a look at the database and the wait after it.
#[test]
fn nothing_is_missed_between_a_look_and_a_wait() {
    for seed in 1..=40 {
        let world = World::seeded(seed);
        world.wake_by_commits();
        let home = Home::with(&world, "hs.test", &[("REGISTRATION", "open")]);
        let alice = home.register("alice");
        let room = home.room(&alice, json!({}));
        let since = next(&home.sync(&alice, ""));
        world.interleave();
        let sync = home.server.handle(request_of(&alice, "GET", &format!("/sync?{since}&timeout=30000"), ""));
        let send = format!("/rooms/{}/send/m.room.message/t1", quote(&room));
        let began = world.now_ms();
        let (answer, ()) = world.run(join(sync, act(&home, &alice, "PUT", &send, "{}")));
        let answer: Value = serde_json::from_slice(answer.body()).unwrap();
        assert!(answer["rooms"]["join"][&room].is_object(), "seed {seed}");
        assert_eq!(world.now_ms(), began, "seed {seed}");
    }
}

/// What another server sends and changes nothing wakes nobody.
#[test]
fn what_changes_nothing_wakes_nobody() {
    let home = home(true);
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let here = Homeserver { server: home.server.clone(), database: home.database.clone() };
    let peer = Peer::new(&home.world, "peer.example");
    let (bob, eve) = (peer.user("bob"), peer.user("eve"));
    let seen = peer.join(&here, &room, &bob).last;
    let eves = Device::new(&eve, "EVES");
    let presence = |user: &str| json!({ "push": [{ "user_id": user, "presence": "online", "last_active_ago": 0 }] });
    let receipt = json!({ &room: { "m.read": { &bob: { "event_ids": [seen], "data": { "ts": 1 } } } } });
    let update =
        |id: i64| json!({ "user_id": eve, "device_id": "EVES", "stream_id": id, "prev_id": [], "keys": eves.keys() });
    let message = |id: &str| {
        let messages = json!({ &alice.id: { "NONE": {} } });
        json!({ "sender": bob, "type": "m.test", "message_id": id, "messages": messages })
    };
    let transaction = |n: i64| {
        let edus = [
            ("m.presence", presence(&bob)),
            ("m.presence", presence(&eve)),
            ("m.receipt", receipt.clone()),
            ("m.device_list_update", update(n)),
            ("m.direct_to_device", message(&format!("m{n}"))),
        ];
        let edus = edus.map(|(kind, content)| json!({ "edu_type": kind, "content": content }));
        let body = json!({ "origin": peer.name, "origin_server_ts": 0, "pdus": [], "edus": edus });
        peer.request(&here, http::Method::PUT, &format!("/_matrix/federation/v1/send/{n}"), Some(&body))
    };
    let send = async |n: i64| assert_eq!(here.handle(transaction(n)).await.status(), 200);
    home.world.run(send(1));
    home.world.settle();
    let since = next(&home.sync(&alice, ""));
    let began = home.database.calls.get();
    home.world.run(send(2));
    home.world.settle();
    let cost = home.database.calls.get() - began;
    let quiet = wait(&home, &alice, &since, async {}).2;
    let (answer, waited, calls) = wait(&home, &alice, &since, send(3));
    assert_eq!((waited, calls), (30_000, quiet + cost), "{answer}");
}
