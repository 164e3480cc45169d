//! Servers that answer some questions, or all, with 500: as Synapse does where it cannot work out a state, or fails at one event.

use http::StatusCode;
use serde_json::{Value, json};
use verge::router::{Request, Response, json_response};

use crate::{
    Scene,
    common::peer::{Peer, event_id},
    missing::{answer_of, asked, holds, is_empty_handed, not_found, takes},
    scene,
};

/// An event and its ID.
type Known = (String, Value);

fn error(status: StatusCode) -> Response {
    json_response(status, &json!({ "errcode": "M_UNKNOWN", "error": "?" }))
}

/// From now on the peer has these events and says that this is the state before them, but answers so where `fails_at`.
fn fails(
    peer: &Peer,
    status: StatusCode,
    events: &[Known],
    state: &[String],
    fails_at: impl Fn(&Request) -> bool + 'static,
) {
    let (events, state) = (events.to_vec(), state.to_vec());
    peer.answers(move |request| {
        let path = request.uri().path();
        if fails_at(request) {
            return Some(error(status));
        }
        if path.contains("/state_ids/") {
            return Some(json_response(StatusCode::OK, &json!({ "pdu_ids": state, "auth_chain_ids": [] })));
        }
        answer_of(&events, request).or_else(|| path.contains("/_matrix/federation/v1/").then(not_found))
    });
}

fn state_of(scene: &Scene) -> Vec<String> {
    scene.theirs.state.values().map(|event| event_id(&scene.theirs.version, event)).collect()
}

/// It may fail at long chains only, or at events that it would have to look for.
#[test]
fn a_server_that_fails_at_one_question_is_asked_others() {
    for (question, version) in [("/event_auth/", "10"), ("/event_auth/", "12"), ("/get_missing_events/", "12")] {
        for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE] {
            let mut scene = scene(version);
            let (state, bob) = (state_of(&scene), scene.bob.clone());
            let events = if question == "/event_auth/" {
                let dave = scene.peer.user("dave");
                [scene.becomes(&dave, "join"), scene.says(&dave, "hello")]
            } else {
                [scene.says(&bob, "before"), scene.says(&bob, "hello")]
            };
            let fails_at = move |request: &Request| request.uri().path().contains(question);
            fails(&scene.peer, status, &events, &state, fails_at);
            takes(&scene.peer, &scene, "1", &events[1]);
            scene.world.settle();
            let is_there = status == StatusCode::INTERNAL_SERVER_ERROR;
            let logs = scene.world.logs();
            assert_eq!(scene.a.shows(&events[1].0), is_there, "{question}, {status}: {logs:#?}");
            assert_eq!(asked(&scene.peer, question), 1);
        }
    }
}

/// Dave, whose join is part of the state that Bob's server claims, comes with what Carol's gives.
#[test]
fn what_a_server_fails_to_give_of_the_state_that_it_claims_is_asked_for_of_others() {
    for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE] {
        let mut scene = scene("12");
        let (third, _) = scene.member("third.example", "carol");
        let mut state = state_of(&scene);
        let dave = scene.peer.user("dave");
        let join = scene.becomes(&dave, "join");
        state.push(join.0.clone());
        let said = scene.say(2);
        let at = join.0[1..].to_owned();
        let held = [said[0].clone(), join.clone()];
        fails(&scene.peer, status, &held, &state, move |request| request.uri().path().ends_with(&at));
        // It knows nothing of what Bob says.
        holds(&third, std::slice::from_ref(&join));
        takes(&scene.peer, &scene, "1", &said[1]);
        scene.world.settle();
        let is_there = status == StatusCode::INTERNAL_SERVER_ERROR;
        assert_eq!(scene.a.shows(&said[1].0), is_there, "{status}: {:#?}", scene.world.logs());
        let membership = scene.a.membership(&scene.world, &scene.room, &dave);
        assert_eq!(membership.as_deref(), is_there.then_some("join"));
    }
}

/// However many events of however large a state cite what it fails to give.
#[test]
fn a_server_that_fails_at_everything_is_soon_left_alone() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let said = scene.say(20);
    is_empty_handed(&third);
    scene.peer.answers(|request| {
        request.uri().path().contains("/federation/v1/").then(|| error(StatusCode::INTERNAL_SERVER_ERROR))
    });
    let asked_so_far = || asked(&scene.peer, "/federation/v1/");
    let before = asked_so_far();
    let sent: Vec<Value> = said.iter().step_by(2).skip(1).map(|(_, event)| event.clone()).collect();
    assert_eq!(scene.peer.send(&scene.a, "1", &sent).0, 200);
    scene.world.settle();
    assert_eq!(asked_so_far() - before, 3, "{:#?}", scene.world.traffic());

    // All that it gives is the IDs of a state.
    let state: Vec<String> = state_of(&scene).into_iter().chain((0..50).map(|i| format!("${i:043}"))).collect();
    let edge = said[17].clone();
    let at = edge.0[1..].to_owned();
    fails(&scene.peer, StatusCode::INTERNAL_SERVER_ERROR, &[edge], &state, move |request| {
        let path = request.uri().path();
        path.contains("/v1/event/") && !path.ends_with(&at)
    });
    let asked_for = || asked(&scene.peer, "/v1/event/");
    let before = asked_for();
    scene.world.advance(3_600_000);
    scene.world.run(scene.a.scheduled());
    scene.world.settle();
    // Some were under way when it was set aside.
    assert!((3..=9).contains(&(asked_for() - before)), "{}", asked_for() - before);
}

/// Eight messages come altered, and Bob's server fails to give the newest of them, which is asked for first, or any.
#[test]
fn a_server_that_fails_to_give_one_whole_copy_is_asked_for_others() {
    for fails_at_all in [false, true] {
        let mut scene = scene("12");
        let said = scene.say(8);
        let altered = said.iter().map(|(_, event)| {
            let mut event = event.clone();
            event["content"]["body"] = json!("what he never said");
            event
        });
        let altered: Vec<Value> = altered.collect();
        let newest = said[7].0[1..].to_owned();
        fails(&scene.peer, StatusCode::INTERNAL_SERVER_ERROR, &said, &[], move |request| {
            let path = request.uri().path();
            path.contains("/v1/event/") && (fails_at_all || path.ends_with(&newest))
        });
        assert_eq!(scene.peer.send(&scene.a, "1", &altered).0, 200);
        scene.world.settle();
        scene.an_hour_passes();
        let without = scene.a.database.rows("SELECT count(*) FROM events WHERE json ->> '$.content' = '{}'");
        let expected = if fails_at_all { ("8", 3) } else { ("1", 8) };
        assert_eq!((without[0][0].as_str(), asked(&scene.peer, "/v1/event/")), expected);
    }
}
