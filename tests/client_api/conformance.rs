//! What clients and conformance suites stumbled over: small rules of the Client-Server API, each with its boundary.

use serde_json::{Value, json};
use verge::router::Response;

use crate::{
    common::network::World,
    home::{Home, User, quote, refused, request_of},
    joining::hang_up_after,
};

fn put_state(home: &Home, user: &User, room: &str, kind: &str, content: Value) -> (u16, Value) {
    home.put(user, &format!("/rooms/{}/state/{kind}/", quote(room)), content)
}

fn get_state(home: &Home, user: &User, room: &str, kind: &str) -> (u16, Value) {
    home.get(user, &format!("/rooms/{}/state/{kind}/", quote(room)))
}

fn json_of(response: &Response) -> Value {
    serde_json::from_slice(response.body()).unwrap()
}

/// "API Versions": clients act on what is listed, from v1.11 on by asking for authenticated media.
#[test]
fn versions_claim_nothing_that_is_not_there() {
    let home = Home::new();
    let answer = json_of(&home.raw("GET", "/_matrix/client/versions", None, ""));
    let versions: Vec<&str> = answer["versions"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert!(versions.contains(&"v1.11") && !versions.contains(&"v1.12"), "{answer}");
}

/// "Well-known URI": where clients find the server; nothing tells them not to encrypt.
#[test]
fn well_known_leads_clients_to_the_server() {
    let home = Home::new();
    let response = home.raw("GET", "/.well-known/matrix/client", None, "");
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    assert_eq!(response.headers()["content-type"], "application/json");
    let answer = json_of(&response);
    assert_eq!(answer["m.homeserver"], json!({ "base_url": "https://hs.test" }));
    assert!(answer.get("io.element.e2ee").is_none(), "clients may encrypt: {answer}");
    let world = World::new();
    let variables = [("WELL_KNOWN_SERVER", "matrix.hs.test:8443"), ("REGISTRATION", "open")];
    let delegated = Home::with(&world, "hs.test", &variables);
    let answer = json_of(&delegated.raw("GET", "/.well-known/matrix/client", None, ""));
    assert_eq!(answer["m.homeserver"]["base_url"], "https://matrix.hs.test:8443");
    let elsewhere = Home::with(&World::new(), "hs.test", &[("CLIENT_BASE_URL", "https://client.hs.test/")]);
    let answer = json_of(&elsewhere.raw("GET", "/.well-known/matrix/client", None, ""));
    assert_eq!(answer["m.homeserver"]["base_url"], "https://client.hs.test");
    let preflight = elsewhere.raw("OPTIONS", "/.well-known/matrix/client", None, "");
    assert_eq!(
        (preflight.status().as_u16(), &preflight.headers()["access-control-allow-origin"]),
        (200, &"*".parse().unwrap())
    );
}

/// "Push Notifications" and "Third-party Networks": clients ask on their settings pages, and show nothing where that fails.
#[test]
fn nothing_is_pushed_and_no_other_network_is_reached() {
    let home = Home::new();
    let alice = home.register("alice");
    assert_eq!(home.get(&alice, "/pushers"), (200, json!({ "pushers": [] })));
    assert_eq!(home.get(&alice, "/thirdparty/protocols"), (200, json!({})));
    let pusher = json!({
        "kind": "http", "app_id": "org.example.app", "pushkey": "key", "app_display_name": "App", "lang": "en",
        "device_display_name": "Phone", "data": { "url": "https://push.example/_matrix/push/v1/notify" },
    });
    refused(&home.post(&alice, "/pushers/set", pusher.clone()), 403, "M_FORBIDDEN");
    assert_eq!(home.get(&alice, "/pushers").1, json!({ "pushers": [] }));
    let gone = json!({ "kind": null, "app_id": "org.example.app", "pushkey": "key" });
    assert_eq!(home.post(&alice, "/pushers/set", gone), (200, json!({})));
    for lacking in ["app_id", "pushkey", "kind"] {
        let mut body = pusher.clone();
        body.as_object_mut().unwrap().remove(lacking);
        refused(&home.post(&alice, "/pushers/set", body), 400, "M_MISSING_PARAM");
    }
    for (method, path) in [("GET", "/pushers"), ("POST", "/pushers/set"), ("GET", "/thirdparty/protocols")] {
        refused(&home.call(None, method, path, (method == "POST").then(|| pusher.clone())), 401, "M_MISSING_TOKEN");
    }
}

/// "Profiles": no token is needed, whoever the user is.
#[test]
fn profiles_are_read_without_a_token() {
    let world = World::new();
    let home = Home::with(&world, "hs.test", &[("REGISTRATION", "open")]);
    let other = Home::with(&world, "other.test", &[("REGISTRATION", "open")]);
    let alice = home.register("alice");
    home.put(&alice, &format!("/profile/{}/displayname", quote(&alice.id)), json!({ "displayname": "Alice" }));
    for asked in [&home, &other] {
        let (status, answer) = asked.call(None, "GET", &format!("/profile/{}", quote(&alice.id)), None);
        assert_eq!((status, &answer), (200, &json!({ "displayname": "Alice" })));
    }
    refused(&other.call(None, "GET", &format!("/profile/{}", quote("@nobody:hs.test")), None), 404, "M_NOT_FOUND");
}

/// "Login", "Register": local parts are lower case, however they are typed.
#[test]
fn capitals_in_user_names_are_folded() {
    let home = Home::new();
    let alice = home.register("Alice");
    assert_eq!(alice.id, "@alice:hs.test");
    let body = json!({ "username": "aLICE", "password": "x", "auth": { "type": "m.login.dummy" } });
    refused(&home.call(None, "POST", "/register", Some(body)), 400, "M_USER_IN_USE");
    refused(&home.call(None, "GET", "/register/available?username=ALICE", None), 400, "M_USER_IN_USE");
    for name in ["alice", "ALICE", "@Alice:hs.test"] {
        let identifier = json!({ "type": "m.id.user", "user": name });
        let body = json!({ "type": "m.login.password", "identifier": identifier, "password": "Alice's" });
        let (status, answer) = home.call(None, "POST", "/login", Some(body));
        assert_eq!((status, answer["user_id"].as_str()), (200, Some("@alice:hs.test")), "{name}: {answer}");
    }
}

/// "Token-authenticated registration", in the two stages that Synapse asks for and matrix-nio sends.
#[test]
fn registration_by_token_takes_a_second_stage() {
    let home = Home::with(&World::new(), "hs.test", &[("REGISTRATION", "token"), ("REGISTRATION_TOKEN", "s3cret")]);
    let register = |name: &str, auth: Option<Value>| {
        let mut body = json!({ "username": name, "password": "p" });
        if let Some(auth) = auth {
            body["auth"] = auth;
        }
        home.call(None, "POST", "/register", Some(body))
    };
    let (status, first) = register("alice", None);
    assert_eq!(status, 401);
    assert_eq!(first["flows"], json!([{ "stages": ["m.login.registration_token", "m.login.dummy"] }]));
    let session = first["session"].as_str().unwrap();
    let dummy = || json!({ "type": "m.login.dummy", "session": session });
    let token = |token: &str| json!({ "type": "m.login.registration_token", "token": token, "session": session });
    // The second stage alone is nothing.
    let (status, answer) = register("alice", Some(dummy()));
    assert_eq!((status, &answer["completed"]), (401, &json!([])), "{answer}");
    let (status, answer) = register("alice", Some(token("wrong")));
    assert_eq!((status, answer["errcode"].as_str()), (401, Some("M_UNAUTHORIZED")));
    let (status, answer) = register("alice", Some(dummy()));
    assert_eq!((status, &answer["completed"]), (401, &json!([])), "{answer}");
    let (status, answer) = register("alice", Some(token("s3cret")));
    assert_eq!((status, &answer["completed"]), (401, &json!(["m.login.registration_token"])), "{answer}");
    assert_eq!((answer["session"].as_str(), answer.get("errcode")), (Some(session), None));
    let (status, answer) = register("alice", Some(dummy()));
    assert_eq!((status, answer["user_id"].as_str()), (200, Some("@alice:hs.test")), "{answer}");
    // A session is good for one account, and not for ever.
    assert_eq!(register("bob", Some(dummy())).0, 401);
    assert_eq!(register("bob", Some(token("s3cret"))).0, 401);
    home.world.advance(2 * 60 * 60 * 1_000);
    assert_eq!(register("bob", Some(dummy())).0, 401);
    // Who sends the token at once has seen no flows, and is done.
    let auth = json!({ "type": "m.login.registration_token", "token": "s3cret" });
    assert_eq!(register("carol", Some(auth)).0, 200);
}

/// "Redactions": what is redacted may be known to others only.
#[test]
fn an_event_that_is_not_held_can_be_redacted() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let unknown = "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let path = format!("/rooms/{}/redact/{}/t1", quote(&room), quote(unknown));
    let (status, answer) = home.put(&alice, &path, json!({}));
    assert_eq!(status, 200, "{answer}");
    let (_, event) =
        home.get(&alice, &format!("/rooms/{}/event/{}", quote(&room), quote(answer["event_id"].as_str().unwrap())));
    assert_eq!(event["redacts"], unknown);
}

/// "Getting events for a room": nobody is told of an event that they may not see.
#[test]
fn an_event_that_one_may_not_see_is_not_found() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({}));
    let event = home.say(&alice, &room, "hello", "t1");
    let path = format!("/rooms/{}/event/{}", quote(&room), quote(&event));
    refused(&home.get(&bob, &path), 404, "M_NOT_FOUND");
    let nowhere = format!("/rooms/{}/event/{}", quote("!nowhere:hs.test"), quote(&event));
    refused(&home.get(&bob, &nowhere), 404, "M_NOT_FOUND");
    assert_eq!(home.get(&alice, &path).0, 200);
}

/// A room has one create event.
#[test]
fn a_second_create_event_is_refused() {
    let home = Home::new();
    let alice = home.register("alice");
    for version in ["10", "12"] {
        let room = home.room(&alice, json!({ "room_version": version }));
        let content = json!({ "room_version": version, "creator": alice.id });
        refused(&put_state(&home, &alice, &room, "m.room.create", content), 400, "M_INVALID_PARAM");
    }
}

/// Room version 12, "Authorization rules": creators stand above all levels, and no event names theirs.
#[test]
fn power_levels_that_name_a_creator_are_refused() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "room_version": "12" }));
    let (_, mut levels) = get_state(&home, &alice, &room, "m.room.power_levels");
    levels["users"][&alice.id] = json!(100);
    refused(&put_state(&home, &alice, &room, "m.room.power_levels", levels.clone()), 400, "M_BAD_JSON");
    let before =
        home.post(&alice, "/createRoom", json!({ "power_level_content_override": levels, "room_version": "12" }));
    refused(&before, 400, "M_BAD_JSON");
    let old = home.room(&alice, json!({ "room_version": "11" }));
    let (_, levels) = get_state(&home, &alice, &old, "m.room.power_levels");
    assert_eq!(levels["users"][&alice.id], 100);
}

/// `m.room.power_levels`: levels are integers. Old room versions take strings from other servers, not from clients.
#[test]
fn power_levels_as_strings_are_refused_in_every_version() {
    let home = Home::new();
    let alice = home.register("alice");
    for version in ["1", "6", "9", "10", "12"] {
        let room = home.room(&alice, json!({ "room_version": version }));
        let (_, levels) = get_state(&home, &alice, &room, "m.room.power_levels");
        let wrong = [
            ("/ban", json!("50")),
            ("/users", json!({ "@bob:hs.test": "10" })),
            ("/events", json!({ "m.room.name": "10" })),
            ("/notifications", json!({ "room": "10" })),
            ("/events_default", json!(1.5)),
            ("/users", json!([])),
        ];
        for (name, value) in wrong {
            let mut changed = levels.clone();
            changed[&name[1..]] = value;
            let answer = put_state(&home, &alice, &room, "m.room.power_levels", changed);
            refused(&answer, 400, "M_BAD_JSON");
        }
        let wish = json!({ "room_version": version, "power_level_content_override": { "kick": "50" } });
        refused(&home.post(&alice, "/createRoom", wish), 400, "M_BAD_JSON");
        let event = json!({ "type": "m.room.power_levels", "content": { "users": { &alice.id: "100" } } });
        let wish = json!({ "room_version": version, "initial_state": [event] });
        refused(&home.post(&alice, "/createRoom", wish), 400, "M_BAD_JSON");
    }
}

/// "Creation": what the presets say of guests.
#[test]
fn presets_say_who_may_come_as_a_guest() {
    let home = Home::new();
    let alice = home.register("alice");
    for (preset, expected) in
        [("private_chat", "can_join"), ("trusted_private_chat", "can_join"), ("public_chat", "forbidden")]
    {
        let room = home.room(&alice, json!({ "preset": preset }));
        assert_eq!(
            get_state(&home, &alice, &room, "m.room.guest_access").1,
            json!({ "guest_access": expected }),
            "{preset}"
        );
    }
}

/// "Creation": the power levels of `initial_state` are the room's first, so that they may raise the creator's own.
#[test]
fn initial_state_may_raise_the_creators_level() {
    let home = Home::new();
    let alice = home.register("alice");
    let content = json!({ "users": { &alice.id: 9001 }, "state_default": 9000 });
    let event = json!({ "type": "m.room.power_levels", "state_key": "", "content": content });
    let wish = json!({ "room_version": "11", "name": "High", "initial_state": [event] });
    let room = home.room(&alice, wish);
    assert_eq!(get_state(&home, &alice, &room, "m.room.power_levels").1, content);
    assert_eq!(get_state(&home, &alice, &room, "m.room.name").1, json!({ "name": "High" }));
    let (_, page) = home.get(&alice, &format!("/rooms/{}/messages?dir=f&limit=50", quote(&room)));
    let types: Vec<&str> = page["chunk"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(types.iter().filter(|kind| **kind == "m.room.power_levels").count(), 1, "{types:?}");
}

/// The same state set again by the same user makes no event.
#[test]
fn setting_the_same_state_again_changes_nothing() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "room_version": "11", "preset": "trusted_private_chat", "invite": [bob.id] }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let set =
        |user: &User, content: Value| put_state(&home, user, &room, "org.example.k", content).1["event_id"].clone();
    let first = set(&alice, json!({ "a": 1, "b": [true] }));
    assert_eq!(set(&alice, json!({ "b": [true], "a": 1 })), first);
    let other = set(&alice, json!({ "a": 2 }));
    assert_ne!(other, first);
    // By somebody else it is news, and what was replaced meanwhile may be set again.
    let bobs = set(&bob, json!({ "a": 2 }));
    assert_ne!(bobs, other);
    assert_ne!(set(&alice, json!({ "a": 1, "b": [true] })), first);
}

/// "Room aliases": an alias that is gone is no longer what the room is called.
#[test]
fn a_deleted_alias_leaves_the_canonical_alias_event() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "room_alias_name": "main", "preset": "public_chat" }));
    let alias = |name: &str| format!("/directory/room/{}", quote(&format!("#{name}:hs.test")));
    for name in ["second", "third"] {
        assert_eq!(home.put(&alice, &alias(name), json!({ "room_id": room })).0, 200);
    }
    let content = json!({ "alias": "#main:hs.test", "alt_aliases": ["#second:hs.test", "#third:hs.test"] });
    assert_eq!(put_state(&home, &alice, &room, "m.room.canonical_alias", content).0, 200);
    let canonical = || get_state(&home, &alice, &room, "m.room.canonical_alias").1;
    let delete = |user: &User, name: &str| home.call(Some(&user.token), "DELETE", &alias(name), None);
    assert_eq!(delete(&alice, "second").0, 200);
    assert_eq!(canonical(), json!({ "alias": "#main:hs.test", "alt_aliases": ["#third:hs.test"] }));
    assert_eq!(delete(&alice, "main").0, 200);
    assert_eq!(canonical(), json!({ "alt_aliases": ["#third:hs.test"] }));
    // Who made an alias may delete it without power over the event, which then stays.
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    assert_eq!(home.put(&bob, &alias("bobs"), json!({ "room_id": room })).0, 200);
    let content = json!({ "alt_aliases": ["#bobs:hs.test"] });
    assert_eq!(put_state(&home, &alice, &room, "m.room.canonical_alias", content.clone()).0, 200);
    assert_eq!(delete(&bob, "bobs").0, 200);
    assert_eq!(canonical(), content);
    refused(&home.call(None, "GET", &alias("bobs"), None), 404, "M_NOT_FOUND");
}

#[test]
fn a_deleted_alias_leaves_the_event_though_the_client_hangs_up() {
    let mut deleted = 0;
    for turns in 0..20 {
        let world = World::new();
        world.interleave();
        let home = Home::with(&world, "hs.test", &[("REGISTRATION", "open")]);
        let alice = home.register("alice");
        let room = home.room(&alice, json!({ "room_alias_name": "main" }));
        let alias = format!("/directory/room/{}", quote("#main:hs.test"));
        hang_up_after(&home, request_of(&alice, "DELETE", &alias, ""), turns);
        world.settle();
        if home.call(None, "GET", &alias, None).0 == 404 {
            deleted += 1;
            let canonical = get_state(&home, &alice, &room, "m.room.canonical_alias").1;
            assert_eq!(canonical, json!({}), "after {turns} turns");
        }
    }
    assert!(deleted > 5, "{deleted}");
}

/// "Filtering": `senders`, and a `limit` of no events.
#[test]
fn filters_honour_senders_and_a_limit_of_none() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    home.say(&alice, &room, "from alice", "t1");
    home.say(&bob, &room, "from bob", "t1");
    let sync = |filter: Value, since: &str| home.sync(&alice, &format!("filter={}{since}", quote(&filter.to_string())));
    let senders = |answer: &Value, part: &str| -> Vec<String> {
        let events = answer["rooms"]["join"][&room][part]["events"].as_array().cloned().unwrap_or_default();
        events.iter().map(|event| event["sender"].as_str().unwrap().to_owned()).collect()
    };
    let bobs = json!({ "senders": [bob.id] });
    let answer = sync(json!({ "room": { "timeline": bobs, "state": bobs } }), "");
    assert_eq!(senders(&answer, "timeline"), [&*bob.id, &bob.id]);
    assert!(senders(&answer, "state").iter().all(|sender| *sender == bob.id));
    let answer = sync(json!({ "room": { "timeline": { "senders": [] } } }), "");
    assert_eq!(senders(&answer, "timeline"), [""; 0]);
    let none = json!({ "room": { "timeline": { "limit": 0 } } });
    let answer = sync(none.clone(), "");
    let timeline = &answer["rooms"]["join"][&room]["timeline"];
    assert_eq!((&timeline["events"], &timeline["limited"]), (&json!([]), &json!(true)), "{answer}");
    assert!(senders(&answer, "state").len() > 5);
    // What is left out can be paged to, and comes no more.
    let from = timeline["prev_batch"].as_str().unwrap();
    let (_, page) = home.get(&alice, &format!("/rooms/{}/messages?dir=b&limit=2&from={from}", quote(&room)));
    assert_eq!(page["chunk"][0]["content"]["body"], "from bob");
    let since = format!("&since={}", answer["next_batch"].as_str().unwrap());
    let answer = sync(none, &since);
    assert_eq!(answer["rooms"]["join"].as_object().map_or(0, serde_json::Map::len), 0, "{answer}");
    let filter = quote(&json!({ "senders": [bob.id] }).to_string());
    let (_, page) = home.get(&alice, &format!("/rooms/{}/messages?dir=b&filter={filter}", quote(&room)));
    let chunk = page["chunk"].as_array().unwrap();
    assert!(chunk.len() == 2 && chunk.iter().all(|event| event["sender"] == *bob.id), "{page}");
}
