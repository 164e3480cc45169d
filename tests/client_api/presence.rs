//! Presence, within one server and between two.

use ruma_common::serde::Raw;
use ruma_events::presence::PresenceEvent;
use serde_json::{Value, json};

use crate::{
    home::{Home, User, next, quote, refused},
    typing::{apart, together},
};

fn set(home: &Home, user: &User, body: Value) -> (u16, Value) {
    home.put(user, &path(user), body)
}

fn path(user: &User) -> String {
    format!("/presence/{}/status", quote(&user.id))
}

/// Users, states and status messages in a sync's answer, each event as ruma reads it.
fn told(answer: &Value) -> Vec<[String; 3]> {
    let events = answer["presence"]["events"].as_array().unwrap();
    let read = |event: &Value| {
        let raw: Raw<PresenceEvent> = serde_json::from_value(event.clone()).unwrap();
        let read = raw.deserialize().unwrap_or_else(|error| panic!("{event}: {error}"));
        let content = read.content;
        [read.sender.to_string(), content.presence.to_string(), content.status_msg.unwrap_or_default()]
    };
    events.iter().map(read).collect()
}

fn of(user: &User, state: &str, status: &str) -> [String; 3] {
    [user.id.as_str(), state, status].map(str::to_owned)
}

#[test]
fn who_shares_a_room_sees_it() {
    let (home, alice, bob, _) = together();
    let stranger = home.register("stranger");
    let (of_alice, of_stranger) = (next(&home.sync(&alice, "")), next(&home.sync(&stranger, "")));
    let body = json!({ "presence": "unavailable", "status_msg": "at lunch" });
    assert_eq!(set(&home, &bob, body), (200, json!({})));
    home.world.advance(3_000);
    let answer = home.sync(&alice, &of_alice);
    assert_eq!(told(&answer), [of(&bob, "unavailable", "at lunch")]);
    assert_eq!(told(&home.sync(&alice, &next(&answer))), [[""; 3]; 0]);
    assert_eq!(told(&home.sync(&alice, "")), [of(&bob, "unavailable", "at lunch")]);
    assert_eq!(told(&home.sync(&stranger, &of_stranger)), [[""; 3]; 0]);
    let expected = json!({
        "presence": "unavailable", "status_msg": "at lunch", "last_active_ago": 3_000, "currently_active": false,
    });
    assert_eq!(home.get(&alice, &path(&bob)), (200, expected.clone()));
    assert_eq!(home.get(&bob, &path(&bob)), (200, expected));
    refused(&home.get(&stranger, &path(&bob)), 403, "M_FORBIDDEN");
    refused(&home.get(&bob, &path(&alice)), 404, "M_NOT_FOUND");
    // Who is not there is not told of at first.
    set(&home, &bob, json!({ "presence": "offline" }));
    assert_eq!(told(&home.sync(&alice, &of_alice)), [of(&bob, "offline", "")]);
    assert_eq!(told(&home.sync(&alice, "")), [[""; 3]; 0]);
}

#[test]
fn filters_are_heeded() {
    let (home, alice, bob, _) = together();
    let since = next(&home.sync(&alice, ""));
    set(&home, &bob, json!({ "presence": "online" }));
    for filter in
        [json!({ "not_types": ["m.*"] }), json!({ "not_senders": [bob.id] }), json!({ "senders": [alice.id] })]
    {
        let filter = quote(&json!({ "presence": filter }).to_string());
        assert_eq!(told(&home.sync(&alice, &format!("{since}&filter={filter}"))), [[""; 3]; 0]);
    }
    assert_eq!(told(&home.sync(&alice, &since)), [of(&bob, "online", "")]);
}

#[test]
fn what_is_wrong_is_refused() {
    let (home, alice, bob, _) = together();
    let online = json!({ "presence": "online" });
    refused(&home.put(&alice, &path(&bob), online.clone()), 403, "M_FORBIDDEN");
    refused(&home.call(None, "PUT", &path(&bob), Some(online)), 401, "M_MISSING_TOKEN");
    refused(&home.call(None, "GET", &path(&bob), None), 401, "M_MISSING_TOKEN");
    refused(&home.get(&bob, "/presence/bob/status"), 400, "M_INVALID_PARAM");
    refused(&set(&home, &bob, json!({})), 400, "M_MISSING_PARAM");
    refused(&set(&home, &bob, json!({ "presence": "busy" })), 400, "M_INVALID_PARAM");
    refused(&set(&home, &bob, json!({ "presence": 1 })), 400, "M_BAD_JSON");
    refused(&set(&home, &bob, json!({ "presence": "online", "status_msg": 1 })), 400, "M_BAD_JSON");
    let long = "x".repeat(1_025);
    refused(&set(&home, &bob, json!({ "presence": "online", "status_msg": long })), 400, "M_INVALID_PARAM");
    assert_eq!(home.database.rows("SELECT * FROM presence"), [[""; 0]; 0]);
}

#[test]
fn it_goes_to_the_other_server_both_ways_and_only_what_is_news() {
    let (one, alice, two, bob, _) = apart();
    for (from, user, to, other) in [(&one, &alice, &two, &bob), (&two, &bob, &one, &alice)] {
        let since = next(&to.sync(other, ""));
        set(from, user, json!({ "presence": "online", "status_msg": "here" }));
        from.world.settle();
        assert_eq!(told(&to.sync(other, &since)), [of(user, "online", "here")]);
        let sent = from.world.traffic().len();
        set(from, user, json!({ "presence": "online", "status_msg": "here" }));
        from.world.settle();
        assert_eq!(from.world.traffic().len(), sent);
    }
}
