//! Copies of events whose content was altered on the way: they are kept without their content until a good one comes.

use std::{cell::Cell, rc::Rc};

use http::StatusCode;
use serde_json::{Value, json};
use verge::router::json_response;

use crate::{
    gaps::{Scene, newest, scene},
    holes::{alter, message},
    home::{Home, User, quote},
    visited::visited,
};

fn tampered(event: &Value) -> Value {
    let mut event = event.clone();
    event["content"]["body"] = json!("altered");
    event
}

#[test]
fn a_good_copy_takes_the_place_of_an_altered_one() {
    let mut room = visited("11");
    let (id, event) = room.theirs.say(&room.peer, &room.bob, "as it was said");
    room.send("1", &[tampered(&event)]);
    assert_eq!(room.content(&id), json!({}));
    let position = room.home.sync(&room.alice, "")["next_batch"].clone();
    room.send("2", std::slice::from_ref(&event));
    assert_eq!(room.content(&id)["body"], "as it was said");
    assert_eq!(newest(&room.home, &room.alice, &room.room)[&id]["content"]["body"], "as it was said");
    assert_eq!(room.home.sync(&room.alice, "")["next_batch"], position, "it is nothing new");
    room.send("3", &[tampered(&event)]);
    assert_eq!(room.content(&id)["body"], "as it was said");
    // Both at once.
    let (id, event) = room.theirs.say(&room.peer, &room.bob, "again");
    room.send("4", &[tampered(&event), event]);
    assert_eq!(room.content(&id)["body"], "again");
}

/// In versions 1 and 2 whoever sends an event gives it its ID.
#[test]
fn another_event_with_its_id_is_no_whole_copy_of_an_altered_one() {
    for version in ["1", "2"] {
        let mut room = visited(version);
        let read = |path: &str| {
            let (status, answer) = room.home.get(&room.alice, &format!("/rooms/{}/{path}", quote(&room.room)));
            assert_eq!(status, 200, "{answer}");
            answer
        };
        let levels = read("state/m.room.power_levels");
        let content = json!({ "users": { &room.bob: 100 } });
        let fields = json!({ "type": "m.room.power_levels", "state_key": "", "content": content });
        let mut other = room.theirs.draft(room.home.world.now_ms(), &room.bob, fields);
        let (id, event) = room.theirs.say(&room.peer, &room.bob, "as it was said");
        other["event_id"] = json!(id);
        let (_, other) = room.peer.sign(version, other);
        room.send("1", &[tampered(&event)]);
        let altered = read(&format!("event/{}", quote(&id)));
        assert_eq!((&altered["type"], &altered["content"]), (&json!("m.room.message"), &json!({})));
        room.send("2", std::slice::from_ref(&other));
        assert_eq!(read(&format!("event/{}", quote(&id))), altered, "version {version}");
        assert_eq!(read("state/m.room.power_levels"), levels);
        room.send("3", &[event]);
        room.send("4", &[other]);
        let whole = read(&format!("event/{}", quote(&id)));
        assert_eq!((&whole["type"], &whole["content"]["body"]), (&json!("m.room.message"), &json!("as it was said")));
    }
}

#[test]
fn a_redaction_that_was_altered_takes_effect_when_it_comes_whole() {
    // In version 10 the hash covers what is redacted, and the signature does not.
    let mut room = visited("10");
    let (said, event) = room.theirs.say(&room.peer, &room.bob, "a slip");
    room.send("1", &[event]);
    let fields = json!({ "type": "m.room.redaction", "content": {}, "redacts": said });
    let draft = room.theirs.draft(room.home.world.now_ms(), &room.bob, fields);
    let (redaction_id, redaction) = room.peer.sign("10", draft);
    let mut altered = redaction.clone();
    altered["redacts"] = json!("$nothing");
    room.send("2", &[altered]);
    assert_eq!(room.content(&said)["body"], "a slip");
    room.send("3", &[redaction]);
    assert_eq!(room.content(&said), json!({}));
    let seen = &newest(&room.home, &room.alice, &room.room)[&said];
    assert_eq!(seen["unsigned"]["redacted_because"]["event_id"], json!(redaction_id));
}

/// Bob has no power to redact what others say. Without what it redacts, his redaction in version 1 is none of his own message.
#[test]
fn a_redaction_that_was_altered_is_not_rejected_for_ever() {
    for version in ["1", "2"] {
        let mut room = visited(version);
        let (said, event) = room.theirs.say(&room.peer, &room.bob, "a slip");
        room.send("1", &[event]);
        let now = room.home.world.now_ms();
        let fields = json!({ "type": "m.room.redaction", "content": {}, "redacts": said });
        let (id, redaction) = room.peer.sign(version, room.theirs.draft(now, &room.bob, fields));
        let mut altered = redaction.clone();
        altered["redacts"] = json!("$nothing:peer.example");
        let (_, answer) = room.peer.send(&room.server, "2", &[altered]);
        assert!(answer["pdus"][&id]["error"].is_string(), "{answer}");
        assert_eq!(room.content(&said)["body"], "a slip");
        room.send("3", &[redaction]);
        assert_eq!(room.content(&said), json!({}), "version {version}");
        let seen = &newest(&room.home, &room.alice, &room.room)[&said];
        assert_eq!(seen["unsigned"]["redacted_because"]["event_id"], json!(id));
    }
}

#[test]
fn a_good_copy_takes_the_place_of_an_altered_one_that_waits() {
    let mut room = visited("12");
    let (_, missed) = room.theirs.say(&room.peer, &room.bob, "missed");
    let (id, event) = room.theirs.say(&room.peer, &room.bob, "as it was said");
    let gives = Rc::new(Cell::new(false));
    let given = Rc::clone(&gives);
    room.peer.answers(move |request| {
        let is_asked = request.uri().path().contains("/get_missing_events/") && given.get();
        is_asked.then(|| json_response(StatusCode::OK, &json!({ "events": [missed] })))
    });
    room.send("1", &[tampered(&event)]);
    gives.set(true);
    room.home.world.advance(3_600_000);
    room.send("2", &[event]);
    assert_eq!(room.content(&id)["body"], "as it was said", "{:?}", room.home.world.logs());
}

#[test]
fn a_state_event_that_was_altered_is_made_whole_by_joining_anew() {
    let scene = scene("11");
    let topic = |text: &str| {
        let path = format!("/rooms/{}/state/m.room.topic", quote(&scene.room));
        assert_eq!(scene.one.put(&scene.alice, &path, json!({ "topic": text })).0, 200);
        scene.one.world.settle();
    };
    let read = || {
        let path = format!("/rooms/{}/state/m.room.topic", quote(&scene.room));
        scene.two.get(&scene.bob, &path).1["topic"].clone()
    };
    scene.leave();
    topic("ours");
    let alters = alters_state(&scene, &["m.room.topic"]);
    scene.join();
    assert_eq!(read(), Value::Null);
    scene.leave();
    alters.set(false);
    scene.join();
    assert_eq!(read(), "ours");
}

/// Alice sets state of her room.
fn sets(scene: &Scene, event_type: &str, content: &Value) -> String {
    let path = format!("/rooms/{}/state/{event_type}", quote(&scene.room));
    let (status, answer) = scene.one.put(&scene.alice, &path, content.clone());
    assert_eq!(status, 200, "{answer}");
    scene.one.world.settle();
    answer["event_id"].as_str().unwrap().to_owned()
}

/// How many single events Bob's server has asked for.
fn asked_for(scene: &Scene) -> usize {
    scene.two.world.traffic().iter().filter(|sent| sent.line.contains("/v1/event/")).count()
}

/// From now on, while `alters` is set, other servers are given this state otherwise than it was sent.
fn alters_state(scene: &Scene, event_types: &'static [&'static str]) -> Rc<Cell<bool>> {
    let alters = Rc::new(Cell::new(true));
    let given = Rc::clone(&alters);
    alter(&scene.one, "/federation/", move |answer| {
        let lists = ["state", "pdus"].map(|list| answer[list].as_array().cloned().map(|events| (list, events)));
        for (list, mut events) in lists.into_iter().flatten().filter(|_| given.get()) {
            for event in &mut events {
                if event_types.iter().any(|event_type| event["type"] == *event_type) {
                    event["content"]["altered"] = json!(true);
                }
            }
            answer[list] = json!(events);
        }
    });
    alters
}

#[test]
fn state_that_was_altered_is_asked_for_until_it_is_whole() {
    for version in ["1", "10", "12"] {
        let scene = scene(version);
        let read = |event_type: &str| {
            scene.two.get(&scene.bob, &format!("/rooms/{}/state/{event_type}", quote(&scene.room))).1
        };
        scene.leave();
        let topic = json!({ "topic": "ours" });
        let acl = json!({ "allow": ["*"], "deny": ["mallory.example"] });
        sets(&scene, "m.room.topic", &topic);
        sets(&scene, "m.room.server_acl", &acl);
        let alters = alters_state(&scene, &["m.room.topic", "m.room.server_acl"]);
        scene.join();
        assert_eq!((read("m.room.topic"), read("m.room.server_acl")), (json!({}), json!({})));
        // What is sent meanwhile comes in.
        let since = scene.two.sync(&scene.bob, "");
        scene.one.say(&scene.alice, &scene.room, "meanwhile", "m");
        scene.one.world.settle();
        assert_eq!(scene.synced(&since)["events"][0]["content"]["body"], "meanwhile");
        alters.set(false);
        scene.two.world.advance(60_000);
        scene.two.world.run(scene.two.homeserver().scheduled());
        assert_eq!((read("m.room.topic"), read("m.room.server_acl")), (topic, acl));
        assert!(scene.two.database.rows("SELECT room_id FROM unsettled_rooms").is_empty());
    }
}

/// What cites our own leave could be judged as if it were new.
#[test]
fn state_that_comes_whole_gets_no_place_at_the_end_of_the_room() {
    let scene = scene("12");
    scene.leave();
    sets(&scene, "m.room.topic", &json!({ "topic": "ours" }));
    scene.says(8..20);
    let alters = alters_state(&scene, &["m.room.topic"]);
    scene.join();
    let since = scene.two.sync(&scene.bob, "");
    alters.set(false);
    scene.two.world.advance(60_000);
    scene.two.world.run(scene.two.homeserver().scheduled());
    let path = format!("/rooms/{}/state/m.room.topic", quote(&scene.room));
    assert_eq!(scene.two.get(&scene.bob, &path).1, json!({ "topic": "ours" }));
    assert_eq!(scene.synced(&since)["events"], Value::Null);
    assert_eq!(scene.two.database.rows("SELECT json_array_length(extremities) FROM rooms"), [["1"]]);
    // It has its place where it was sent.
    let ids = |home: &Home, user: &User| -> Vec<String> {
        let (status, page) = home.get(user, &format!("/rooms/{}/messages?dir=b&limit=14", quote(&scene.room)));
        assert_eq!(status, 200, "{page}");
        page["chunk"].as_array().unwrap().iter().map(|event| event["event_id"].to_string()).collect()
    };
    assert_eq!(ids(&scene.two, &scene.bob), ids(&scene.one, &scene.alice));
}

/// What was redacted before we came is given without its content by every server, and we cannot know why.
#[test]
fn state_that_nobody_has_whole_does_not_keep_other_state_from_being_asked_for() {
    let scene = scene("12");
    scene.leave();
    let topic = json!({ "topic": "ours" });
    sets(&scene, "m.room.topic", &topic);
    let alters = alters_state(&scene, &["m.room.topic"]);
    scene.join();
    scene.leave();
    for n in 0..30 {
        let id = sets(&scene, &format!("com.example.{n}"), &json!({ "a": "slip" }));
        let path = format!("/rooms/{}/redact/{}/r{n}", quote(&scene.room), quote(&id));
        assert_eq!(scene.one.put(&scene.alice, &path, json!({})).0, 200);
    }
    scene.join();
    let path = format!("/rooms/{}/state/m.room.topic", quote(&scene.room));
    assert_eq!(scene.two.get(&scene.bob, &path).1, json!({}));
    alters.set(false);
    scene.two.world.advance(60_000);
    let before = asked_for(&scene);
    let asked = || asked_for(&scene) - before;
    for _ in 0..3 {
        scene.two.world.run(scene.two.homeserver().scheduled());
        scene.two.world.advance(10 * 60 * 1_000);
    }
    assert_eq!(scene.two.get(&scene.bob, &path).1, topic);
    assert!(asked() <= 3 * 20, "{}", asked());
    for _ in 0..60 {
        scene.two.world.run(scene.two.homeserver().scheduled());
        scene.two.world.advance(3_600_000);
    }
    assert!(asked() <= 24 * 20, "{}", asked());
    assert!(scene.two.database.rows("SELECT room_id FROM unsettled_rooms").is_empty());
}

#[test]
fn what_every_server_gives_altered_is_not_asked_for_on_and_on() {
    let scene = scene("12");
    scene.leave();
    scene.says(8..28);
    scene.join();
    alter(&scene.one, "/backfill/", |answer| {
        if let Some(event) = message(&mut answer["pdus"], "m18") {
            event["content"]["body"] = json!("altered");
        }
    });
    let page = || newest(&scene.two, &scene.bob, &scene.room);
    let history = page();
    assert_eq!(history.len(), newest(&scene.one, &scene.alice, &scene.room).len());
    assert_eq!(history.values().filter(|event| event["content"] == json!({})).count(), 1);
    let asked = scene.backfills();
    scene.two.world.advance(24 * 3_600_000);
    assert!(page().keys().eq(history.keys()));
    assert_eq!(scene.backfills(), asked);
}

/// Of a room that is held, nothing of another version could be read.
#[test]
fn nobody_joins_anew_by_another_version() {
    let scene = scene("11");
    scene.leave();
    let before = scene.two.database.rows("SELECT event_id FROM events");
    let asked = Rc::new(Cell::new(0));
    let asks = Rc::clone(&asked);
    let server = Rc::clone(&scene.one.server);
    scene.one.world.connect(
        "one.test",
        Rc::new(move |request| {
            asks.set(asks.get() + usize::from(request.uri().path().contains("/send_join/")));
            let is_template = request.uri().path().contains("/make_join/");
            let server = Rc::clone(&server);
            Box::pin(async move {
                let response = server.handle(request).await;
                if !is_template {
                    return response;
                }
                let mut template: Value = serde_json::from_slice(response.body()).unwrap();
                template["room_version"] = json!("10");
                json_response(StatusCode::OK, &template)
            })
        }),
    );
    let (status, answer) = scene.two.post(&scene.bob, &format!("/join/{}?via=one.test", quote(&scene.room)), json!({}));
    assert_eq!((status, &answer["errcode"]), (502, &json!("M_UNKNOWN")), "{answer}");
    assert_eq!(asked.get(), 0);
    assert_eq!(scene.two.database.rows("SELECT event_id FROM events"), before);
    scene.one.world.connect_server("one.test", &scene.one.server);
    scene.join();
}
