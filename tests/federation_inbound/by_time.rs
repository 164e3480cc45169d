//! Events by when they were sent, as another server asks for them.

use ruma_federation_api::event::get_event_by_timestamp;
use serde_json::{Value, json};

use crate::{
    Scene,
    common::{peer::encode, ruma::read_answer},
    scene,
};

fn ask(scene: &Scene, query: &str) -> (u16, Value) {
    let target = format!("/_matrix/federation/v1/timestamp_to_event/{}{query}", encode(scene.room.as_str()));
    scene.peer.get(&scene.a, &target)
}

fn nearest(scene: &Scene, ts: i64, dir: &str) -> Option<String> {
    let (status, answer) = ask(scene, &format!("?ts={ts}&dir={dir}"));
    if status == 404 {
        assert_eq!(answer["errcode"], "M_NOT_FOUND");
        return None;
    }
    assert_eq!(status, 200, "{answer}");
    read_answer::<get_event_by_timestamp::v1::Response>(&answer);
    Some(answer["event_id"].as_str().unwrap().to_owned())
}

#[test]
fn the_nearest_event_in_either_direction_is_named() {
    let scene = scene("12");
    let mut sent = Vec::new();
    for n in 0..60 {
        scene.world.advance(10_000);
        let event = scene.a.say(&scene.world, &scene.room, &scene.alice, &format!("m{n}"));
        sent.push((event.origin_server_ts(), event.event_id().to_string()));
    }
    for (ts, id) in &sent {
        for (asked, dir) in [(*ts, "f"), (*ts, "b"), (ts - 4_000, "f"), (ts + 4_000, "b"), (ts - 9_999, "f")] {
            assert_eq!(nearest(&scene, asked, dir).as_ref(), Some(id), "{asked} {dir}");
        }
    }
    let (first, last) =
        (scene.a.database.rows("SELECT MIN(origin_server_ts) FROM events")[0][0].parse::<i64>().unwrap(), sent[59].0);
    assert!(nearest(&scene, first - 1, "f").is_some() && nearest(&scene, first - 1, "b").is_none());
    assert!(nearest(&scene, last + 1, "f").is_none() && nearest(&scene, last + 1, "b").is_some());
    assert!(nearest(&scene, i64::MAX, "f").is_none() && nearest(&scene, i64::MIN, "b").is_none());
    assert!(nearest(&scene, i64::MAX, "b").is_some() && nearest(&scene, i64::MIN, "f").is_some());
}

#[test]
fn events_that_lie_about_their_time_do_not_hide_the_others() {
    let mut scene = scene("12");
    let mut honest = Vec::new();
    for n in 0..80 {
        scene.world.advance(10_000);
        let event = scene.a.say(&scene.world, &scene.room, &scene.alice, &format!("m{n}"));
        honest.push((event.origin_server_ts(), event.event_id().to_string()));
        if n % 3 == 0 {
            // Of a year ago, or of a year from now.
            let ts = scene.world.now_ms() + if n % 2 == 0 { 1 } else { -1 } * 365 * 24 * 3_600_000;
            let content = json!({ "msgtype": "m.text", "body": "lie" });
            let draft = scene.theirs.draft(ts, &scene.bob, json!({ "type": "m.room.message", "content": content }));
            let (id, event) = scene.peer.sign("12", draft);
            assert_eq!(scene.peer.send(&scene.a, &n.to_string(), &[event]).0, 200);
            scene.theirs.advance(&id);
        }
    }
    for (ts, id) in &honest {
        assert_eq!(nearest(&scene, *ts, "f").as_ref(), Some(id));
        assert_eq!(nearest(&scene, *ts + 5_000, "b").as_ref(), Some(id));
    }
}

#[test]
fn a_question_costs_what_its_answer_costs() {
    let scene = scene("12");
    let calls = || {
        let before = scene.a.database.calls.get();
        nearest(&scene, scene.world.now_ms(), "b");
        scene.a.database.calls.get() - before
    };
    // Wherever in the room that is.
    let steps = |ts: i64| {
        let before = scene.a.database.steps.get();
        assert!(nearest(&scene, ts, "f").is_some());
        scene.a.database.steps.get() - before
    };
    let of_few = calls();
    let mut steps_of_few = 0;
    for n in 0..400 {
        scene.a.say(&scene.world, &scene.room, &scene.alice, &format!("m{n}"));
        if n == 100 {
            steps_of_few = steps(1);
        }
    }
    assert_eq!(calls(), of_few);
    let steps_of_many = steps(1);
    assert!(steps_of_many < steps_of_few + steps_of_few / 2, "{steps_of_few} {steps_of_many}");
}

#[test]
fn only_members_servers_are_answered() {
    let scene = scene("12");
    let refused = |(status, answer): (u16, Value), expected: u16, errcode: &str| {
        assert_eq!((status, answer["errcode"].as_str()), (expected, Some(errcode)), "{answer}");
    };
    refused(ask(&scene, "?dir=f"), 400, "M_MISSING_PARAM");
    refused(ask(&scene, "?ts=1"), 400, "M_MISSING_PARAM");
    refused(ask(&scene, "?ts=1&dir=x"), 400, "M_INVALID_PARAM");
    refused(ask(&scene, "?ts=now&dir=f"), 400, "M_INVALID_PARAM");
    let private = scene.a.room(&scene.world, &scene.alice, "12", json!({ "join_rule": "invite" }));
    for room in [private.as_str(), "!nowhere"] {
        let target = format!("/_matrix/federation/v1/timestamp_to_event/{}?ts=1&dir=f", encode(room));
        refused(scene.peer.get(&scene.a, &target), 403, "M_FORBIDDEN");
    }
}
