//! An event with what was around it, and what a user was in the room then.

use serde_json::{Value, json};

use crate::home::{Home, quote, refused};

fn bodies(events: &Value) -> Vec<&str> {
    events.as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

#[test]
fn an_event_is_shown_with_its_neighbours() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "name": "Hall" }));
    let said: Vec<String> = (0..20).map(|n| home.say(&alice, &room, &format!("m{n}"), &format!("t{n}"))).collect();
    let context = |n: usize, query: &str| {
        let path = format!("/rooms/{}/context/{}?{query}", quote(&room), quote(&said[n]));
        let (status, answer) = home.get(&alice, &path);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let middle = context(10, "");
    assert_eq!(middle["event"]["content"]["body"], "m10");
    assert_eq!(bodies(&middle["events_before"]), ["m9", "m8", "m7", "m6", "m5"]);
    assert_eq!(bodies(&middle["events_after"]), ["m11", "m12", "m13", "m14", "m15"]);
    assert!(middle["state"].as_array().unwrap().iter().any(|event| event["content"]["name"] == "Hall"));
    // The tokens lead on in both directions.
    let page = |from: &Value, dir: &str| {
        let from = quote(from.as_str().unwrap());
        home.get(&alice, &format!("/rooms/{}/messages?dir={dir}&limit=2&from={from}", quote(&room))).1
    };
    assert_eq!(bodies(&page(&middle["start"], "b")["chunk"]), ["m4", "m3"]);
    assert_eq!(bodies(&page(&middle["end"], "f")["chunk"]), ["m16", "m17"]);
    let alone = context(10, "limit=0");
    assert_eq!((&alone["events_before"], &alone["events_after"]), (&json!([]), &json!([])));
    assert_eq!(bodies(&page(&alone["start"], "b")["chunk"]), ["m9", "m8"]);
    let three = context(10, "limit=3");
    assert_eq!((bodies(&three["events_before"]), bodies(&three["events_after"])), (vec!["m9"], vec!["m11", "m12"]));
    assert_eq!(context(19, "")["events_after"], json!([]));
    let filter = quote(&json!({ "not_types": ["m.room.message"], "lazy_load_members": true }).to_string());
    let filtered = context(10, &format!("filter={filter}"));
    assert_eq!(filtered["event"]["content"]["body"], "m10");
    assert!(bodies(&filtered["events_before"]).is_empty() && bodies(&filtered["events_after"]).is_empty());
    let members = |answer: &Value| {
        let state = answer["state"].as_array().unwrap();
        state.iter().filter(|event| event["type"] == "m.room.member").count()
    };
    assert_eq!((members(&middle), members(&filtered)), (1, 1));
}

#[test]
fn only_what_may_be_seen_has_a_context() {
    let home = Home::new();
    let (alice, bob, carol) = (home.register("alice"), home.register("bob"), home.register("carol"));
    let history = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } }]);
    let room = home.room(&alice, json!({ "preset": "public_chat", "initial_state": history }));
    let before = home.say(&alice, &room, "before", "t1");
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let after = home.say(&alice, &room, "after", "t2");
    let path = |event: &str| format!("/rooms/{}/context/{}", quote(&room), quote(event));
    refused(&home.get(&bob, &path(&before)), 404, "M_NOT_FOUND");
    let (status, answer) = home.get(&bob, &path(&after));
    assert_eq!((status, bodies(&answer["events_before"])), (200, vec![]));
    refused(&home.get(&carol, &path(&after)), 404, "M_NOT_FOUND");
    refused(&home.get(&bob, &path("$nothing")), 404, "M_NOT_FOUND");
    refused(&home.get(&bob, &format!("{}?limit=x", path(&after))), 400, "M_INVALID_PARAM");
    refused(&home.get(&bob, &format!("{}?filter=x", path(&after))), 400, "M_NOT_JSON");
    refused(&home.call(None, "GET", &path(&after), None), 401, "M_MISSING_TOKEN");
}

#[test]
fn the_state_is_not_that_of_a_time_that_the_reader_may_not_see() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let history = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } }]);
    let room = home.room(&alice, json!({ "preset": "public_chat", "topic": "open", "initial_state": history }));
    let join = || assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let topic = |text: &str| {
        let path = format!("/rooms/{}/state/m.room.topic", quote(&room));
        assert_eq!(home.put(&alice, &path, json!({ "topic": text })).0, 200);
    };
    join();
    let seen = home.say(&alice, &room, "seen", "t1");
    assert_eq!(home.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
    topic("hidden");
    home.say(&alice, &room, "hidden too", "t2");
    topic("open again");
    join();
    for limit in [4, 6] {
        let path = format!("/rooms/{}/context/{}?limit={limit}", quote(&room), quote(&seen));
        let (status, answer) = home.get(&bob, &path);
        assert_eq!(status, 200, "{answer}");
        let topics: Vec<&str> =
            answer["state"].as_array().unwrap().iter().filter_map(|event| event["content"]["topic"].as_str()).collect();
        assert_eq!(topics, ["open"], "{answer}");
    }
}

#[test]
fn events_say_what_the_reader_was_then() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let since = home.sync(&bob, "")["next_batch"].as_str().unwrap().to_owned();
    home.say(&alice, &room, "before", "t1");
    assert_eq!(home.post(&alice, &format!("/rooms/{}/invite", quote(&room)), json!({ "user_id": bob.id })).0, 200);
    home.say(&alice, &room, "invited", "t2");
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let last = home.say(&alice, &room, "joined", "t3");
    let expected = [("before", "leave"), ("invited", "invite"), ("joined", "join")];
    let check = |events: &Value| {
        let told = events.as_array().unwrap().iter().filter_map(|event| {
            Some((event["content"]["body"].as_str()?.to_owned(), event["unsigned"]["membership"].as_str()?.to_owned()))
        });
        let mut told: Vec<_> = told.collect();
        told.sort();
        assert_eq!(told, expected.map(|(body, membership)| (body.to_owned(), membership.to_owned())), "{events}");
        let own = events.as_array().unwrap().iter().filter(|event| event["state_key"] == json!(bob.id));
        assert!(own.clone().count() > 0);
        assert!(own.clone().all(|event| event["unsigned"]["membership"] == event["content"]["membership"]));
    };
    check(&home.get(&bob, &format!("/rooms/{}/messages?dir=b&limit=50", quote(&room))).1["chunk"]);
    let sync = home.sync(&bob, &format!("since={since}"));
    check(&sync["rooms"]["join"][&room]["timeline"]["events"]);
    let (_, event) = home.get(&bob, &format!("/rooms/{}/event/{}", quote(&room), quote(&last)));
    assert_eq!(event["unsigned"]["membership"], "join");
    // A later sync tells of a member without asking what they were.
    home.say(&alice, &room, "later", "t4");
    let sync = home.sync(&bob, &format!("since={}", sync["next_batch"].as_str().unwrap()));
    let events = &sync["rooms"]["join"][&room]["timeline"]["events"];
    assert_eq!((events.as_array().unwrap().len(), &events[0]["unsigned"]["membership"]), (1, &json!("join")));
}

#[test]
fn an_event_is_found_at_the_same_cost_in_a_long_room() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    let say = |n: usize| home.say(&alice, &room, &format!("m{n}"), &format!("t{n}"));
    let said: Vec<String> = (0..30).map(say).collect();
    let cost = || {
        let before = home.database.steps.get();
        for kind in ["event", "context"] {
            let path = format!("/rooms/{}/{kind}/{}?limit=2", quote(&room), quote(&said[25]));
            assert_eq!(home.get(&alice, &path).0, 200);
        }
        home.database.steps.get() - before
    };
    cost();
    let short = cost();
    (30..330).for_each(|n| drop(say(n)));
    let long = cost();
    assert!(long <= short + short / 20, "{short} steps in a room of 30 messages, {long} in one of 330");
}
