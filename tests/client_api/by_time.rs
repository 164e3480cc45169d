//! Jumping to a date.

use serde_json::{Value, json};

use crate::{
    common::network::World,
    home::{Answer, Home, User, quote, refused},
};

fn ask(home: &Home, user: Option<&User>, room: &str, query: &str) -> Answer {
    let target = format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?{query}", quote(room));
    let response = home.raw("GET", &target, user.map(|user| user.token.as_str()), "");
    (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
}

#[test]
fn members_find_events_by_their_time() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let history = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } }]);
    let room = home.room(&alice, json!({ "preset": "public_chat", "initial_state": history }));
    let mut sent = Vec::new();
    for n in 0..10 {
        home.world.advance(60_000);
        let id = home.say(&alice, &room, &format!("m{n}"), &format!("t{n}"));
        sent.push((home.world.now_ms(), id));
        if n == 4 {
            assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
        }
    }
    for (ts, id) in &sent {
        let expected = json!({ "event_id": id, "origin_server_ts": ts });
        assert_eq!(ask(&home, Some(&alice), &room, &format!("ts={}&dir=f", ts - 30_000)), (200, expected));
    }
    // Who may not see what was before them is not told of it.
    let (status, answer) = ask(&home, Some(&bob), &room, &format!("ts={}&dir=f", sent[0].0));
    assert_eq!(status, 200, "{answer}");
    assert!(answer["origin_server_ts"].as_i64().unwrap() >= sent[4].0, "{answer}");
    assert!(sent.iter().take(5).all(|(_, id)| answer["event_id"] != json!(id)));
    // What was before the room began to hide it they may see.
    let (_, answer) = ask(&home, Some(&bob), &room, &format!("ts={}&dir=b", sent[3].0));
    assert!(answer["origin_server_ts"].as_i64().unwrap() < sent[0].0, "{answer}");
    refused(&ask(&home, Some(&alice), &room, &format!("ts={}&dir=f", sent[9].0 + 1)), 404, "M_NOT_FOUND");
    refused(&ask(&home, Some(&alice), &room, "ts=1&dir=x"), 400, "M_INVALID_PARAM");
    refused(&ask(&home, Some(&alice), &room, "dir=f"), 400, "M_MISSING_PARAM");
    refused(&ask(&home, None, &room, "ts=1&dir=f"), 401, "M_MISSING_TOKEN");
    let carol = home.register("carol");
    refused(&ask(&home, Some(&carol), &room, "ts=1&dir=f"), 403, "M_FORBIDDEN");
    refused(&ask(&home, Some(&carol), "!nowhere", "ts=1&dir=f"), 403, "M_FORBIDDEN");
}

/// Bob at `two` has joined a room at `one` in which something was sent each minute, most of which is not at `two`.
struct Joined {
    world: World,
    one: Home,
    two: Home,
    bob: User,
    room: String,
    /// When each message was sent, and its event ID.
    sent: Vec<(i64, String)>,
}

fn joined_late() -> Joined {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "preset": "public_chat" }));
    let mut sent = Vec::new();
    for n in 0..150 {
        world.advance(60_000);
        sent.push((world.now_ms(), one.say(&alice, &room, &format!("m{n}"), &format!("t{n}"))));
    }
    assert_eq!(two.post(&bob, &format!("/join/{}?via=one.test", quote(&room)), json!({})).0, 200);
    world.settle();
    Joined { world, one, two, bob, room, sent }
}

#[test]
fn what_is_lacking_here_is_asked_for_elsewhere() {
    let Joined { world, one, two, bob, room, sent } = joined_late();
    let asked = || world.traffic().iter().filter(|sent| sent.line.contains("/timestamp_to_event/")).count();
    let (ts, id) = &sent[20];
    let expected = json!({ "event_id": id, "origin_server_ts": ts });
    assert_eq!(ask(&two, Some(&bob), &room, &format!("ts={}&dir=f", ts - 1)), (200, expected.clone()));
    // And it is there to be looked at, with what is around it.
    let (status, event) = two.get(&bob, &format!("/rooms/{}/event/{}", quote(&room), quote(id)));
    assert_eq!((status, &event["content"]["body"]), (200, &json!("m20")));
    assert_eq!(asked(), 1);
    // Now that it is here nobody is asked.
    assert_eq!(ask(&two, Some(&bob), &room, &format!("ts={}&dir=b", ts + 1)), (200, expected));
    assert_eq!(asked(), 1);
    // With nobody to ask, what is here is given.
    one.world.disconnect("one.test");
    let (status, answer) = ask(&two, Some(&bob), &room, "ts=0&dir=f");
    assert_eq!(status, 200, "{answer}");
    assert_ne!(answer["event_id"], Value::Null);
}

/// A server names an event that is nowhere, or one that was sent at another time than it says: only what it shows is told.
#[test]
fn what_another_server_names_and_does_not_show_is_not_told() {
    for is_there in [false, true] {
        let Joined { world, two, bob, room, sent, .. } = joined_late();
        let ts = sent[20].0 - 10;
        let named = if is_there { sent[30].1.clone() } else { format!("${}", "A".repeat(43)) };
        let answer = json!({ "event_id": named, "origin_server_ts": ts });
        world.tap(std::rc::Rc::new(move |passing| {
            let lie = passing.request.uri().path().contains("/timestamp_to_event/");
            let lie = lie.then(|| verge::router::json_response(http::StatusCode::OK, &answer));
            Box::pin(async move {
                match lie {
                    Some(lie) => Ok(lie),
                    None => Ok((passing.host)(passing.request).await),
                }
            })
        }));
        let (status, answer) = ask(&two, Some(&bob), &room, &format!("ts={ts}&dir=f"));
        assert_eq!(status, 200, "{answer}");
        assert_ne!(answer["event_id"], json!(named));
        assert!(world.traffic().iter().any(|sent| sent.line.contains("/timestamp_to_event/")));
        world.end();
    }
}
