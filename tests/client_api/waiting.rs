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
    visited::visited,
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

/// A filter of rooms leaves out what happens in them, not whose keys have changed.
#[test]
fn changed_keys_of_who_shares_only_a_room_that_is_left_out_wake_at_once() {
    let home = home(true);
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&bob, json!({ "preset": "public_chat" }));
    home.post(&alice, &format!("/join/{}", quote(&room)), json!({}));
    let filter = json!({ "room": { "not_rooms": [room] } }).to_string();
    let asked = format!("{}&filter={}", next(&home.sync(&alice, "")), quote(&filter));
    let body = json!({ "device_keys": Device::new(&bob.id, &bob.device_id).keys() }).to_string();
    let (answer, waited, _) = wait(&home, &alice, &asked, act(&home, &bob, "POST", "/keys/upload", &body));
    assert_eq!((waited, &answer["device_lists"]["changed"]), (3_000, &json!([bob.id])), "{answer}");
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

/// As in Synapse: what the filter leaves out is no news. The wait goes on, and what comes next is told without it.
#[test]
fn what_the_filter_leaves_out_ends_no_wait() {
    for wakes in [true, false] {
        let home = home(wakes);
        let (alice, bob) = (home.register("alice"), home.register("bob"));
        let rooms = [0, 1].map(|_| home.room(&bob, json!({ "preset": "public_chat" })));
        for room in &rooms {
            home.post(&alice, &format!("/join/{}", quote(room)), json!({}));
        }
        let [left_out, kept] = &rooms;
        let since = next(&home.sync(&alice, ""));
        let send = |room: &str, txn: &str| format!("/rooms/{}/send/m.room.message/{txn}", quote(room));
        let settings = format!("/user/{}/rooms/{}/account_data/m.x", quote(&alice.id), quote(left_out));
        let before = home.database.calls.get();
        home.say(&bob, left_out, "x", "t0");
        home.world.settle();
        let message = home.database.calls.get() - before;
        for (nth, (filter, sets)) in [
            (json!({ "not_rooms": [left_out] }), false),
            (json!({ "rooms": [kept] }), false),
            (json!({ "not_rooms": [left_out] }), true),
            (json!({ "account_data": { "not_types": ["m.*"] } }), true),
            (json!({ "timeline": { "not_rooms": [left_out] } }), false),
            (json!({ "timeline": { "types": ["m.reaction"] } }), false),
            (json!({ "timeline": { "not_senders": [bob.id] } }), false),
        ]
        .into_iter()
        .enumerate()
        {
            let case = format!("{wakes} {filter}");
            let since = next(&home.sync(&alice, &since));
            let asked = format!("{since}&filter={}", quote(&json!({ "room": filter }).to_string()));
            let quiet = wait(&home, &alice, &asked, async {}).2;
            let txn = send(left_out, &format!("t{nth}a"));
            let (by, path) = if sets { (&alice, &settings) } else { (&bob, &txn) };
            let body = json!({ "nth": nth }).to_string();
            let (answer, waited, calls) = wait(&home, &alice, &asked, act(&home, by, "PUT", path, &body));
            assert_eq!(waited, 30_000, "{case}");
            let timeline = &answer["rooms"]["join"][left_out]["timeline"]["events"];
            assert!(timeline.as_array().is_none_or(Vec::is_empty), "{case}: {answer}");
            assert!(calls <= quiet + message + 3, "{case}: {calls} of {quiet} and {message}");
            // It has moved on.
            assert_eq!(home.sync(&alice, &next(&answer))["rooms"]["join"], json!({}), "{case}");
            // What is let through is told at once, though something was passed over before it.
            let act = async {
                act(&home, by, "PUT", &format!("{path}b"), &body).await;
                home.world.sleep(6_000).await;
                act(&home, &alice, "PUT", &send(kept, &format!("t{nth}c")), r#"{"body":"kept"}"#).await;
            };
            let types = json!({ "timeline": { "types": ["m.reaction"] } });
            if filter != types {
                let (answer, waited, _) = wait(&home, &alice, &asked, act);
                assert!((9_000..=14_000).contains(&waited), "{case}: {waited}");
                let events = &answer["rooms"]["join"][kept]["timeline"]["events"];
                assert_eq!(events[0]["content"]["body"], "kept", "{case}: {answer}");
            }
        }
    }
}

/// However much it is in one wait: each look begins where the one before has ended.
#[test]
fn very_much_that_the_filter_leaves_out_ends_no_wait() {
    for wakes in [true, false] {
        let home = home(wakes);
        let (alice, bob) = (home.register("alice"), home.register("bob"));
        let room = home.room(&bob, json!({ "preset": "public_chat" }));
        home.post(&alice, &format!("/join/{}", quote(&room)), json!({}));
        let filter = json!({ "room": { "timeline": { "types": ["m.reaction"] } } }).to_string();
        let asked = format!("{}&filter={}", next(&home.sync(&alice, "")), quote(&filter));
        let send = |kind: &str, txn: usize| format!("/rooms/{}/send/{kind}/t{txn}", quote(&room));
        let (answer, waited, _) = wait(&home, &alice, &asked, async {
            for txn in 0..501 {
                act(&home, &bob, "PUT", &send("m.room.message", txn), "{}").await;
                if txn % 250 == 249 {
                    home.world.sleep(6_000).await;
                }
            }
            home.world.sleep(6_000).await;
            act(&home, &bob, "PUT", &send("m.reaction", 501), "{}").await;
        });
        assert!((21_000..=26_000).contains(&waited), "{wakes}: {waited}");
        let timeline = &answer["rooms"]["join"][&room]["timeline"];
        assert_eq!((timeline["events"].as_array().map(Vec::len), &timeline["limited"]), (Some(1), &json!(false)));
        assert_eq!(timeline["events"][0]["type"], "m.reaction", "{wakes}: {answer}");
    }
}

/// Nor what an ignored user says; what they do to the room's state is told.
#[test]
fn what_ignored_users_say_ends_no_wait() {
    for wakes in [true, false] {
        let home = home(wakes);
        let (alice, bob) = (home.register("alice"), home.register("bob"));
        let room = home.room(&bob, json!({ "preset": "public_chat" }));
        home.post(&alice, &format!("/join/{}", quote(&room)), json!({}));
        let list = format!("/user/{}/account_data/m.ignored_user_list", quote(&alice.id));
        assert_eq!(home.put(&alice, &list, json!({ "ignored_users": { &bob.id: {} } })).0, 200);
        let before = home.database.calls.get();
        home.say(&bob, &room, "x", "t0");
        home.world.settle();
        let message = home.database.calls.get() - before;
        let since = next(&home.sync(&alice, ""));
        let quiet = wait(&home, &alice, &since, async {}).2;
        let send = |txn: &str| format!("/rooms/{}/send/m.room.message/{txn}", quote(&room));
        let (answer, waited, calls) =
            wait(&home, &alice, &since, act(&home, &bob, "PUT", &send("t1"), r#"{"body":"ignored"}"#));
        assert_eq!((waited, &answer["rooms"]["join"]), (30_000, &json!({})), "{wakes}");
        assert!(calls <= quiet + message + 3, "{wakes}: {calls} of {quiet} and {message}");
        // It has moved on.
        assert_eq!(home.sync(&alice, &next(&answer))["rooms"]["join"], json!({}), "{wakes}");
        let topic = format!("/rooms/{}/state/m.room.topic", quote(&room));
        let others: [(&User, &str, &str); 2] =
            [(&alice, &send("t2"), r#"{"body":"said"}"#), (&bob, &topic, r#"{"topic":"x"}"#)];
        for (by, path, body) in others {
            let since = next(&home.sync(&alice, &since));
            let (answer, waited, _) = wait(&home, &alice, &since, async {
                act(&home, &bob, "PUT", &send(&format!("a{}", path.len())), r#"{"body":"ignored"}"#).await;
                home.world.sleep(6_000).await;
                act(&home, by, "PUT", path, body).await;
            });
            assert!((9_000..=14_000).contains(&waited), "{wakes} {path}: {waited}");
            let told = &answer["rooms"]["join"][&room]["timeline"]["events"];
            assert_eq!((told.as_array().map(Vec::len), &told[0]["sender"]), (Some(1), &json!(by.id)), "{answer}");
        }
    }
}

/// Clients would believe it, and so it is told to none.
#[test]
fn a_redaction_without_effect_ends_no_wait() {
    let mut room = visited("11");
    let said = room.home.say(&room.alice, &room.room, "hers", "t1");
    room.home.world.settle();
    room.theirs.advance(&said);
    let fields = json!({ "type": "m.room.redaction", "content": { "redacts": said } });
    let draft = room.theirs.draft(room.home.world.now_ms(), &room.bob, fields);
    let (_, redaction) = room.peer.sign("11", draft);
    let body = json!({ "origin": room.peer.name, "origin_server_ts": 0, "pdus": [redaction] });
    let since = next(&room.home.sync(&room.alice, ""));
    let (answer, waited, _) = wait(&room.home, &room.alice, &since, async {
        let path = "/_matrix/federation/v1/send/1";
        let request = room.peer.request(&room.server, http::Method::PUT, path, Some(&body));
        assert_eq!(room.server.handle(request).await.status(), 200);
    });
    assert_eq!(room.home.database.rows("SELECT count(*) FROM redactions"), [["1"]]);
    assert_eq!((waited, &answer["rooms"]["join"]), (30_000, &json!({})));
    assert_eq!(room.content(&said)["body"], "hers");
}

/// A change of state is told though the timeline is not.
#[test]
fn state_that_the_filter_lets_through_ends_a_wait() {
    let home = home(true);
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let filter = json!({ "room": { "timeline": { "types": ["m.reaction"] } } }).to_string();
    let asked = format!("{}&filter={}", next(&home.sync(&alice, "")), quote(&filter));
    let topic = format!("/rooms/{}/state/m.room.topic", quote(&room));
    let (answer, waited, _) = wait(&home, &alice, &asked, act(&home, &alice, "PUT", &topic, r#"{"topic":"x"}"#));
    assert_eq!(waited, 3_000);
    assert_eq!(answer["rooms"]["join"][&room]["state"]["events"][0]["type"], "m.room.topic", "{answer}");
}
