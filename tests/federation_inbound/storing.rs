//! PDUs that the database will never take: nobody is asked to repeat them, and they hold up nobody else's.

use http::StatusCode;
use serde_json::{Value, json};
use verge::router::json_response;

use crate::{common::peer::encode, scene};

const MARKER: &str = "more than fits";

#[test]
fn a_pdu_that_cannot_be_stored_is_refused_by_itself() {
    let mut scene = scene("12");
    let said: Vec<(String, Value)> = ["one", MARKER, "two"]
        .into_iter()
        .map(|body| {
            let here = scene.theirs.clone();
            let said = scene.theirs.say(&scene.peer, &scene.bob, body);
            // Nothing cites what cannot be stored.
            if body == MARKER {
                scene.theirs = here;
            }
            said
        })
        .collect();
    scene.a.database.refuses.replace(Some(MARKER.to_owned()));
    let pdus: Vec<Value> = said.iter().map(|(_, event)| event.clone()).collect();
    let (status, answer) = scene.peer.send(&scene.a, "1", &pdus);
    assert_eq!(status, 200, "{answer}");
    for (id, body) in said.iter().map(|(id, _)| id).zip(["one", MARKER, "two"]) {
        assert_eq!(answer["pdus"][id].get("error").is_some(), body == MARKER, "{answer}");
        assert_eq!(scene.a.shows(id), body != MARKER);
    }
    // The answer stands, also when the database would take it by then.
    scene.a.database.refuses.replace(None);
    assert_eq!(scene.peer.send(&scene.a, "1", &pdus), (200, answer));
    assert!(!scene.a.shows(&said[1].0));
    assert!(scene.world.logs().iter().any(|line| line.contains(&said[1].0)), "{:?}", scene.world.logs());
}

#[test]
fn a_fetched_event_that_cannot_be_stored_holds_up_no_other() {
    let mut scene = scene("12");
    let start = scene.theirs.clone();
    let bad = scene.theirs.say(&scene.peer, &scene.bob, MARKER);
    let behind_bad = scene.theirs.say(&scene.peer, &scene.bob, "behind it");
    let mut fork = start;
    fork.depth += 10;
    let good = fork.say(&scene.peer, &scene.bob, "good");
    let behind_good = fork.say(&scene.peer, &scene.bob, "behind the good one");
    scene.a.database.refuses.replace(Some(MARKER.to_owned()));
    let events = vec![bad.1, good.1];
    scene.peer.answers(move |request| {
        request
            .uri()
            .path()
            .contains("/get_missing_events/")
            .then(|| json_response(StatusCode::OK, &json!({ "events": events })))
    });
    let (status, answer) = scene.peer.send(&scene.a, "1", &[behind_bad.1, behind_good.1]);
    assert_eq!((status, &answer["pdus"][&behind_good.0]), (200, &json!({})));
    scene.world.settle();
    assert!(scene.a.shows(&good.0) && scene.a.shows(&behind_good.0), "{:?}", scene.world.logs());
    assert!(!scene.a.shows(&bad.0));
}

#[test]
fn what_cannot_be_stored_is_no_reason_to_come_again() {
    let scene = scene("12");
    scene.a.database.refuses.replace(Some("dave".to_owned()));
    // Whatever the request: an answer of 5xx would have it repeated.
    let dave = encode("@dave:a.example");
    let target = format!("/_matrix/federation/v1/query/profile?user_id={dave}");
    let (status, answer) = scene.peer.get(&scene.a, &target);
    assert!((400..500).contains(&status), "{status} {answer}");
}

/// What is stored and cannot be read is a fault of ours, which does not pass by being asked again.
#[test]
fn what_cannot_be_read_is_not_said_to_be_there_later() {
    let mut scene = scene("12");
    let said = scene.theirs.say(&scene.peer, &scene.bob, "hello");
    scene.a.database.rows("UPDATE rooms SET room_version = '?'");
    let target =
        format!("/_matrix/federation/v1/make_join/{}/{}", encode(scene.room.as_str()), encode("@zoe:peer.example"));
    let answers = [scene.peer.send(&scene.a, "1", &[said.1]), scene.peer.get(&scene.a, &target)];
    for (status, answer) in answers {
        assert_eq!((status, &answer["errcode"]), (500, &json!("M_UNKNOWN")), "{answer}");
    }
    let reason = |line: &String| line.contains("\"status\":500") && line.contains("a stored room has");
    assert_eq!(scene.world.logs().into_iter().filter(reason).count(), 2, "{:#?}", scene.world.logs());
}
