//! Single events, states, auth chains and history.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    Scene,
    common::{
        homeserver::object,
        peer::{Peer, encode, event_id},
    },
    scene,
};
use verge::{
    federation::outbound::membership,
    matrix::{identifiers::ServerName, json::Object},
    room::Draft,
};

fn room_path(scene: &Scene, endpoint: &str) -> String {
    format!("/_matrix/federation/v1/{endpoint}/{}", encode(scene.room.as_str()))
}

fn ids(version: &str, events: &Value) -> Vec<String> {
    events.as_array().unwrap().iter().map(|event| event_id(version, event)).collect()
}

#[test]
fn an_event_is_given_to_servers_in_the_room() {
    for version in ["10", "11", "12"] {
        let scene = scene(version);
        let said = scene.a.say(&scene.world, &scene.room, &scene.alice, "hello");
        let target = format!("/_matrix/federation/v1/event/{}", encode(said.event_id().as_str()));
        let (status, answer) = scene.peer.get(&scene.a, &target);
        assert_eq!((status, answer["origin"].as_str()), (200, Some("a.example")));
        assert!(answer["origin_server_ts"].is_i64());
        assert_eq!(ids(version, &answer["pdus"]), [said.event_id().as_str()]);
        assert_eq!(answer["pdus"][0]["content"]["body"], "hello");

        let (status, answer) = Peer::new(&scene.world, "stranger.example").get(&scene.a, &target);
        assert_eq!((status, answer["errcode"].as_str()), (403, Some("M_FORBIDDEN")));
        let (status, answer) = scene.peer.get(&scene.a, "/_matrix/federation/v1/event/%24unknown");
        assert_eq!((status, answer["errcode"].as_str()), (404, Some("M_NOT_FOUND")));

        // Redacted, it is given as redacted, and is the same event still.
        let mut redaction = Draft::message("m.room.redaction", object(json!({})));
        redaction.redacts = Some(said.event_id().to_string());
        scene.a.send(&scene.world, &scene.room, &scene.alice, redaction);
        let (_, answer) = scene.peer.get(&scene.a, &target);
        assert_eq!(answer["pdus"][0]["content"], json!({}));
        assert_eq!(ids(version, &answer["pdus"]), [said.event_id().as_str()]);
    }
}

#[test]
fn the_state_at_an_event_is_that_before_it() {
    for version in ["10", "12"] {
        let scene = scene(version);
        let before: BTreeSet<String> =
            scene.a.state(&scene.world, &scene.room).into_iter().map(|(_, _, id)| id).collect();
        let name = Draft::state("m.room.name", "", object(json!({ "name": "A room" })));
        let name = scene.a.send(&scene.world, &scene.room, &scene.alice, name);
        let at = format!("?event_id={}", encode(name.event_id().as_str()));
        let (status, answer) = scene.peer.get(&scene.a, &(room_path(&scene, "state") + &at));
        assert_eq!(status, 200);
        let state: BTreeSet<String> = ids(version, &answer["pdus"]).into_iter().collect();
        assert_eq!(state, before);
        // Every auth event of what was given is given.
        let chain: BTreeSet<String> = ids(version, &answer["auth_chain"]).into_iter().collect();
        let given = answer["pdus"].as_array().unwrap().iter().chain(answer["auth_chain"].as_array().unwrap());
        for auth_event in given.flat_map(|event| event["auth_events"].as_array().unwrap()) {
            assert!(chain.contains(auth_event.as_str().unwrap()));
        }
        let (status, by_id) = scene.peer.get(&scene.a, &(room_path(&scene, "state_ids") + &at));
        assert_eq!(status, 200);
        let set = |value: &Value| -> BTreeSet<String> {
            value.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
        };
        assert_eq!((set(&by_id["pdu_ids"]), set(&by_id["auth_chain_ids"])), (state, chain));
    }
}

#[test]
fn a_state_is_told_without_reading_its_events() {
    let scene = scene("12");
    let name = Draft::state("m.room.name", "", object(json!({ "name": "A room" })));
    let name = scene.a.send(&scene.world, &scene.room, &scene.alice, name);
    let mut redaction = Draft::message("m.room.redaction", object(json!({})));
    redaction.redacts = Some(name.event_id().to_string());
    let last = scene.a.send(&scene.world, &scene.room, &scene.alice, redaction);
    let at = format!("?event_id={}", encode(last.event_id().as_str()));
    let (_, before) = scene.peer.get(&scene.a, &(room_path(&scene, "state_ids") + &at));
    let (_, state) = scene.peer.get(&scene.a, &(room_path(&scene, "state") + &at));
    let find = |state: &Value, kind: &str| {
        let events = state["pdus"].as_array().unwrap();
        events.iter().find(|event| event["type"] == kind).unwrap().clone()
    };
    assert_eq!(find(&state, "m.room.name")["content"], json!({}), "redacted, it is given as redacted");

    // What could not be read is told as it is.
    scene
        .a
        .database
        .rows("UPDATE events SET json = json_set(json, '$.depth', 'deep') WHERE event_type = 'm.room.join_rules'");
    let (status, after) = scene.peer.get(&scene.a, &(room_path(&scene, "state_ids") + &at));
    assert_eq!((status, &after), (200, &before));
    let calls = scene.a.database.calls.get();
    let (status, state) = scene.peer.get(&scene.a, &(room_path(&scene, "state") + &at));
    assert_eq!((status, &find(&state, "m.room.join_rules")["depth"]), (200, &json!("deep")));
    assert_eq!(scene.a.database.calls.get() - calls, 1);
}

/// An event of a room that only Alice and Carol are in.
fn secret(scene: &Scene) -> String {
    let carol = scene.a.user(&scene.world, "carol");
    let private = scene.a.room(&scene.world, &carol, "11", json!({ "join_rule": "invite" }));
    scene.a.say(&scene.world, &private, &carol, "the secret").event_id().to_string()
}

#[test]
fn a_rejected_event_opens_no_other_room() {
    let mut scene = scene("11");
    let secret = secret(&scene);
    let before = scene.theirs.last.clone();
    let message = json!({ "type": "m.room.message", "content": { "body": "hello" } });
    let mut draft = scene.theirs.draft(scene.world.now_ms(), &scene.bob, message);
    draft["auth_events"].as_array_mut().unwrap().push(secret.as_str().into());
    let (rejected, pdu) = scene.peer.sign("11", draft);
    let (status, answer) = scene.peer.send(&scene.a, "1", &[pdu]);
    assert_eq!(status, 200, "{answer}");
    assert!(!scene.a.shows(&rejected));
    let room = encode(scene.room.as_str());
    let event = encode(&rejected);
    for target in [
        format!("event/{event}"),
        format!("event_auth/{room}/{event}"),
        format!("state/{room}?event_id={event}"),
        format!("state_ids/{room}?event_id={event}"),
        format!("backfill/{room}?v={event}&limit=10"),
    ] {
        let (status, answer) = scene.peer.get(&scene.a, &format!("/_matrix/federation/v1/{target}"));
        assert!(!answer.to_string().contains("secret"), "{target}: {answer}");
        let history = status == 200 && target.starts_with("backfill");
        assert!(history || (status, answer["errcode"].as_str()) == (404, Some("M_NOT_FOUND")), "{target}: {answer}");
        assert!(!history || !ids("11", &answer["pdus"]).contains(&rejected));
    }
    // What a good event cites is walked over where it is rejected, and what is behind it is told.
    scene.theirs.last = rejected.clone();
    let message = json!({ "type": "m.room.message", "content": { "body": "after it" } });
    let (after, pdu) = scene.peer.sign("11", scene.theirs.draft(scene.world.now_ms(), &scene.bob, message));
    assert_eq!(scene.peer.send(&scene.a, "2", &[pdu]).1["pdus"][&after], json!({}));
    assert!(scene.a.shows(&after));
    let (_, answer) =
        scene.peer.get(&scene.a, &format!("{}?v={}&limit=2", room_path(&scene, "backfill"), encode(&after)));
    assert_eq!(ids("11", &answer["pdus"]), [after.clone(), before.clone()]);
    let wanted = json!({ "earliest_events": [], "latest_events": [after], "limit": 1 });
    let (_, answer) = scene.peer.post(&scene.a, &room_path(&scene, "get_missing_events"), &wanted);
    assert_eq!(ids("11", &answer["events"]), [before]);
}

#[test]
fn whatever_an_event_cites_only_its_own_room_is_read() {
    let scene = scene("11");
    let secret = secret(&scene);
    let said = scene.a.say(&scene.world, &scene.room, &scene.alice, "hello");
    let last = scene.a.say(&scene.world, &scene.room, &scene.alice, "again");
    // As if a check had let through what cites another room.
    for member in ["auth_events", "prev_events"] {
        scene.a.database.rows(&format!(
            "UPDATE events SET json = json_set(json, '$.{member}', json_insert(json -> '$.{member}', '$[#]', '{secret}')) \
             WHERE event_type <> 'm.room.create' AND room_id = '{}'",
            scene.room
        ));
    }
    let (room, event) = (encode(scene.room.as_str()), encode(last.event_id().as_str()));
    for target in [
        format!("event_auth/{room}/{event}"),
        format!("state/{room}?event_id={event}"),
        format!("state_ids/{room}?event_id={event}"),
        format!("backfill/{room}?v={event}&limit=100"),
        format!("backfill/{room}?v={}&v={}&limit=100", encode(&secret), encode(said.event_id().as_str())),
    ] {
        let (status, answer) = scene.peer.get(&scene.a, &format!("/_matrix/federation/v1/{target}"));
        assert_eq!(status, 200, "{target}: {answer}");
        let told = ["auth_chain", "pdus"].map(|list| answer[list].to_string());
        assert!(!told.iter().any(|list| list.contains("the secret")), "{target}: {answer}");
        assert!(!answer["auth_chain_ids"].to_string().contains(&secret), "{target}: {answer}");
    }
    let wanted = json!({ "earliest_events": [], "latest_events": [last.event_id().as_str(), secret], "limit": 20 });
    let (_, answer) = scene.peer.post(&scene.a, &room_path(&scene, "get_missing_events"), &wanted);
    assert!(!answer.to_string().contains("the secret"), "{answer}");
}

#[test]
fn every_read_takes_two_round_trips_at_most() {
    let scene = scene("12");
    let last = scene.a.say(&scene.world, &scene.room, &scene.alice, "hello");
    scene.world.run(scene.a.store.put_alias("#room:a.example", scene.room.as_str(), "", 0)).unwrap();
    let (room, event) = (encode(scene.room.as_str()), encode(last.event_id().as_str()));
    let calls = |target: &str, most: u64| {
        let before = scene.a.database.calls.get();
        let (status, answer) = scene.peer.get(&scene.a, &format!("/_matrix/federation/v1/{target}"));
        assert_eq!(status, 200, "{target}: {answer}");
        let calls = scene.a.database.calls.get() - before;
        assert!(calls <= most, "{target}: {calls}");
    };
    calls(&format!("event/{event}"), 1);
    calls(&format!("event_auth/{room}/{event}"), 1);
    calls(&format!("state/{room}?event_id={event}"), 1);
    calls(&format!("state_ids/{room}?event_id={event}"), 1);
    calls(&format!("backfill/{room}?v={event}&limit=10"), 2);
    calls("query/directory?room_alias=%23room%3Aa.example", 2);
    calls("query/profile?user_id=%40alice%3Aa.example", 1);
    calls("user/devices/%40alice%3Aa.example", 1);
    calls(&format!("timestamp_to_event/{room}?ts=1&dir=f"), 2);
    calls(&format!("make_join/{room}/{}?ver=12", encode(&scene.peer.user("eve"))), 2);
    calls(&format!("make_leave/{room}/{}", encode(&scene.bob)), 2);
    let before = scene.a.database.calls.get();
    let wanted = json!({ "earliest_events": [], "latest_events": [last.event_id().as_str()] });
    assert_eq!(scene.peer.post(&scene.a, &room_path(&scene, "get_missing_events"), &wanted).0, 200);
    assert!(scene.a.database.calls.get() - before <= 2);
}

#[test]
fn a_large_state_is_read_in_parts() {
    let scene = scene("12");
    let last = scene.a.say(&scene.world, &scene.room, &scene.alice, "hello");
    let others = scene.a.state(&scene.world, &scene.room).len();
    scene.a.give_state(&scene.world, &last, 6_000, 10);
    let before = scene.a.database.calls.get();
    let at = format!("?event_id={}", encode(last.event_id().as_str()));
    let (status, answer) = scene.peer.get(&scene.a, &(room_path(&scene, "state") + &at));
    assert_eq!((status, answer["pdus"].as_array().unwrap().len()), (200, 6_000 + others));
    assert_eq!(scene.a.database.calls.get() - before, 3);

    // Nothing of it is read for a server that is not in the room.
    let stranger = Peer::new(&scene.world, "stranger.example");
    let steps = |peer: &Peer, target: &str| {
        let before = scene.a.database.steps.get();
        let status = peer.get(&scene.a, target).0;
        (status, scene.a.database.steps.get() - before)
    };
    let (id, room) = (encode(last.event_id().as_str()), &scene);
    for target in
        [room_path(room, "state") + &at, room_path(room, "state_ids") + &at, room_path(room, "event_auth") + "/" + &id]
    {
        // What is remembered of the stranger's keys is asked for once.
        steps(&stranger, &target);
        let ((told, ours), (refused, theirs)) = (steps(&scene.peer, &target), steps(&stranger, &target));
        assert_eq!((told, refused), (200, 403), "{target}");
        assert!(theirs < 500 && theirs < ours, "{target}: {theirs} of {ours}");
    }
}

#[test]
fn an_auth_chain_is_closed() {
    let scene = scene("11");
    let said = scene.a.say(&scene.world, &scene.room, &scene.alice, "hello");
    let target = format!("{}/{}", room_path(&scene, "event_auth"), encode(said.event_id().as_str()));
    let (status, answer) = scene.peer.get(&scene.a, &target);
    assert_eq!(status, 200);
    let chain: BTreeSet<String> = ids("11", &answer["auth_chain"]).into_iter().collect();
    let auth_events =
        answer["auth_chain"].as_array().unwrap().iter().flat_map(|e| e["auth_events"].as_array().unwrap());
    let cited: BTreeSet<String> = auth_events
        .map(|id| id.as_str().unwrap().to_owned())
        .chain(said.auth_events().iter().map(ToString::to_string))
        .collect();
    assert_eq!(chain, cited);
}

#[test]
fn only_servers_in_the_room_are_told_anything_of_it() {
    let scene = scene("12");
    let stranger = Peer::new(&scene.world, "stranger.example");
    let last = encode(&scene.theirs.last);
    let unknown = "%21unknown%3Aa.example";
    for endpoint in ["state", "state_ids", "backfill"] {
        let query = format!("?event_id={last}&v={last}&limit=1");
        let (status, answer) = stranger.get(&scene.a, &(room_path(&scene, endpoint) + &query));
        assert_eq!((status, answer["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{endpoint}");
        // Whether we know a room is not told either.
        let told = stranger.get(&scene.a, &format!("/_matrix/federation/v1/{endpoint}/{unknown}{query}"));
        assert_eq!(told, (status, answer), "{endpoint}");
        let (status, answer) = scene.peer.get(&scene.a, &room_path(&scene, endpoint));
        assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_MISSING_PARAM")), "{endpoint}");
    }
    let wanted = json!({ "earliest_events": [], "latest_events": [scene.theirs.last] });
    for room in [encode(scene.room.as_str()), unknown.to_owned()] {
        let path = |endpoint: &str| format!("/_matrix/federation/v1/{endpoint}/{room}");
        assert_eq!(stranger.get(&scene.a, &format!("{}/{last}", path("event_auth"))).0, 403);
        assert_eq!(stranger.post(&scene.a, &path("get_missing_events"), &wanted).0, 403);
    }
    // A server that has left is told nothing more.
    let leave = json!({ "type": "m.room.member", "state_key": scene.bob, "content": { "membership": "leave" } });
    let (_, leave) = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &scene.bob, leave));
    assert_eq!(scene.peer.send(&scene.a, "1", &[leave]).0, 200);
    assert_eq!(scene.peer.get(&scene.a, &(room_path(&scene, "state_ids") + &format!("?event_id={last}"))).0, 403);
    // An event of one room is not found in another.
    let other = scene.a.public_room(&scene.world, &scene.alice, "12");
    let theirs = scene.peer.join(&scene.a, other.as_str(), &scene.bob);
    let target =
        |event: &str| format!("/_matrix/federation/v1/state_ids/{}?event_id={}", encode(other.as_str()), encode(event));
    assert_eq!(scene.peer.get(&scene.a, &target(&theirs.last)).0, 200);
    assert_eq!(scene.peer.get(&scene.a, &target(&scene.theirs.last)).0, 404);
}

#[test]
fn history_is_walked_from_the_newest_back() {
    for version in ["10", "12"] {
        let scene = scene(version);
        let said: Vec<String> = (0..30)
            .map(|i| scene.a.say(&scene.world, &scene.room, &scene.alice, &i.to_string()).event_id().to_string())
            .collect();
        let backfill = |from: &str, limit: &str| {
            let target = format!("{}?v={}&limit={limit}", room_path(&scene, "backfill"), encode(from));
            let (status, answer) = scene.peer.get(&scene.a, &target);
            assert_eq!(status, 200, "{answer}");
            ids(version, &answer["pdus"])
        };
        let newest: Vec<String> = said.iter().rev().cloned().collect();
        assert_eq!(backfill(&said[29], "4"), newest[..4]);
        assert_eq!(backfill(&said[10], "2"), newest[19..21]);
        // To the very beginning, and no further.
        let all = backfill(&said[29], "1000");
        assert_eq!(all[..30], newest);
        let rows = scene.a.database.rows("SELECT count(*) FROM events WHERE NOT outlier");
        assert_eq!(all.len().to_string(), rows[0][0]);
        // Whoever gets an error asks the next server; an empty list would be the beginning.
        let target = format!("{}?v=%24unknown&limit=5", room_path(&scene, "backfill"));
        let (status, answer) = scene.peer.get(&scene.a, &target);
        assert_eq!((status, answer["errcode"].as_str()), (404, Some("M_NOT_FOUND")));
        let target = format!("{}?v={}&limit=x", room_path(&scene, "backfill"), encode(&said[0]));
        assert_eq!(scene.peer.get(&scene.a, &target).0, 400);

        let missing = |earliest: &[&String], latest: &[&String], more: Value| {
            let mut body = json!({ "earliest_events": earliest, "latest_events": latest });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let (status, answer) = scene.peer.post(&scene.a, &room_path(&scene, "get_missing_events"), &body);
            assert_eq!(status, 200, "{answer}");
            ids(version, &answer["events"])
        };
        assert_eq!(missing(&[&said[3]], &[&said[8]], json!({})), said[4..8]);
        assert_eq!(missing(&[&said[3]], &[&said[8]], json!({ "limit": 2 })), said[6..8]);
        assert_eq!(missing(&[], &[&said[29]], json!({})), said[19..29]);
        assert_eq!(missing(&[], &[&said[29]], json!({ "limit": 1000 })), said[9..29]);
        let depth = scene
            .world
            .run(scene.a.store.events(scene.a.platform.clock.as_ref(), &[said[26].as_str().parse_id()]))
            .unwrap()[0]
            .event
            .depth();
        assert_eq!(missing(&[], &[&said[29]], json!({ "min_depth": depth })), said[26..29]);
        let malformed = json!({ "earliest_events": 1, "latest_events": [] });
        assert_eq!(scene.peer.post(&scene.a, &room_path(&scene, "get_missing_events"), &malformed).0, 400);
    }
}

trait ParseId {
    fn parse_id(&self) -> verge::matrix::identifiers::EventId;
}

impl ParseId for str {
    fn parse_id(&self) -> verge::matrix::identifiers::EventId {
        verge::matrix::identifiers::EventId::parse(self).unwrap()
    }
}

#[test]
fn what_is_held_only_as_state_is_history_too() {
    for version in ["10", "12"] {
        let scene = scene(version);
        let b = scene.world.server("b.example");
        let carol = b.user(&scene.world, "carol");
        let via = vec![ServerName::parse("a.example").unwrap()];
        scene.world.run(membership::join(&b, &carol, &scene.room, via, Object::new())).unwrap();
        scene.world.settle();
        let held = "SELECT event_id FROM events WHERE outlier ORDER BY depth DESC";
        let outliers: Vec<String> = b.database.rows(held).into_iter().map(|row| row[0].clone()).collect();
        assert_eq!(outliers[0], scene.theirs.last);
        assert_eq!(outliers.len(), 6);

        let target = format!("{}?v={}&limit=100", room_path(&scene, "backfill"), encode(&outliers[0]));
        let (status, answer) = scene.peer.get(&b, &target);
        assert_eq!((status, ids(version, &answer["pdus"])), (200, outliers.clone()));
        let joins = format!("SELECT event_id FROM local_memberships WHERE user_id = '{carol}'");
        let body = json!({ "earliest_events": [outliers[5]], "latest_events": [b.database.rows(&joins)[0][0]] });
        let (status, answer) = scene.peer.post(&b, &room_path(&scene, "get_missing_events"), &body);
        let oldest_first: Vec<String> = outliers[..5].iter().rev().cloned().collect();
        assert_eq!((status, ids(version, &answer["events"])), (200, oldest_first));
    }
}
