//! Events that come over a gap: what came before them reaches us only in part, or only by another server's claim.

use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    federation::outbound::membership,
    matrix::{identifiers::ServerName, json::Object},
    router::json_response,
};

use crate::{
    Scene,
    common::peer::{encode, event_id},
    scene,
};

/// Carol, of Bob's server, joins, and says so many things, of which nothing reaches us yet: her join, and what she says.
fn carol_talks(scene: &mut Scene, messages: usize) -> (Value, Vec<(String, Value)>) {
    let carol = scene.peer.user("carol");
    let draft = scene.theirs.draft_member(scene.world.now_ms(), &carol, &carol, json!({ "membership": "join" }));
    let (id, join) = scene.peer.sign(&scene.theirs.version, draft);
    scene.theirs.state.insert(("m.room.member".to_owned(), carol.clone()), join.clone());
    scene.theirs.advance(&id);
    let said = (0..messages).map(|n| scene.theirs.say(&scene.peer, &carol, &n.to_string())).collect();
    (join, said)
}

/// Carol's join comes only as an auth event of what she says. We hold what came before it, so that it takes its place.
#[test]
fn an_auth_event_whose_place_is_known_takes_it() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let (join, said) = carol_talks(&mut scene, 2);
        let mut chain: Vec<Value> = scene.theirs.state.values().cloned().collect();
        chain.retain(|event| event["type"] != "m.room.history_visibility");
        let between = vec![said[0].1.clone()];
        scene.peer.answers(move |request| {
            let path = request.uri().path();
            let body = if path.contains("/get_missing_events/") {
                json!({ "events": between })
            } else if path.contains("/event_auth/") {
                json!({ "auth_chain": chain })
            } else {
                return None;
            };
            Some(json_response(StatusCode::OK, &body))
        });
        scene.peer.send(&scene.a, "1", &[said[1].1.clone()]);
        scene.world.settle();
        let join = event_id(version, &join);
        for id in [&join, &said[0].0, &said[1].0] {
            assert!(scene.a.shows(id), "version {version}: {:?}", scene.world.logs());
        }
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &scene.peer.user("carol")).as_deref(), Some("join"));
    }
}

/// Carol has said more than anybody gives us. Whether she may speak says the state that is claimed beyond the gap, and not
/// ours, which has never heard of her.
#[test]
fn who_joined_behind_a_gap_is_heard() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let (join, said) = carol_talks(&mut scene, 30);
        let state: Vec<String> = scene.theirs.state.values().map(|event| event_id(version, event)).collect();
        let mut events: Vec<(String, Value)> = said.clone();
        events.push((event_id(version, &join), join));
        let between: Vec<Value> = said[9..29].iter().map(|(_, event)| event.clone()).collect();
        let chain: Vec<Value> = scene.theirs.state.values().cloned().collect();
        scene.peer.answers(move |request| {
            let path = request.uri().path();
            let body = if path.contains("/get_missing_events/") {
                let body: Value = serde_json::from_slice(request.body()).unwrap();
                let first = event_id(version, &between[0]);
                let events = if body["latest_events"] == json!([first]) { json!([]) } else { json!(between) };
                json!({ "events": events })
            } else if path.contains("/event_auth/") {
                let auth: Vec<&Value> =
                    chain.iter().filter(|event| event["state_key"] != "@carol:peer.example").collect();
                json!({ "auth_chain": auth })
            } else if path.contains("/state_ids/") {
                json!({ "pdu_ids": state, "auth_chain_ids": [] })
            } else if path.contains("/state/") {
                json!({ "pdus": chain, "auth_chain": [] })
            } else {
                let (_, event) =
                    events.iter().find(|(id, _)| path.ends_with(&encode(id)) || path.ends_with(&id[1..]))?;
                json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": [event] })
            };
            Some(json_response(StatusCode::OK, &body))
        });
        scene.peer.send(&scene.a, "1", &[said[29].1.clone()]);
        scene.world.settle();
        let soft_failed = scene.a.database.rows("SELECT event_id FROM events WHERE soft_failed");
        assert_eq!(soft_failed, Vec::<Vec<String>>::new(), "version {version}");
        for (id, _) in &said[10..] {
            assert!(scene.a.shows(id), "version {version}: {:?}", scene.world.logs());
        }
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &scene.peer.user("carol")).as_deref(), Some("join"));
    }
}

/// Whoever joined later knows the room's first event only as a part of the state, and nobody tells what the state after it was.
#[test]
fn what_cites_the_create_event_keeps_nobody_waiting() {
    for version in ["10", "11", "12"] {
        let mut scene = scene(version);
        let b = scene.world.server("b.example");
        let zoe = b.user(&scene.world, "zoe");
        let via = vec![ServerName::parse("a.example").unwrap()];
        let joined = membership::join(&b, &zoe, &scene.room, via, Object::new());
        scene.theirs.advance(scene.world.run(joined).unwrap().as_str());
        scene.world.settle();
        let create = scene.theirs.state_id("m.room.create", "").unwrap();
        let previous = [create.as_str(), &scene.theirs.last];
        let (id, event) = scene.theirs.say_upon(&scene.peer, &scene.bob, "it all began here", &previous);
        for server in [&scene.a, &b] {
            scene.peer.send(server, "1", std::slice::from_ref(&event));
        }
        scene.world.settle();
        let said = scene.a.say(&scene.world, &scene.room, &scene.alice, "go on");
        scene.world.settle();
        for shown in [id.as_str(), said.event_id().as_str()] {
            assert!(b.shows(shown), "version {version}, {shown}: {:#?}", scene.world.logs());
        }
        assert_eq!(b.state(&scene.world, &scene.room), scene.a.state(&scene.world, &scene.room));
        // The room's beginning is not where that was said.
        let gaps = b.database.rows(&format!("SELECT 1 FROM gaps WHERE event_id = '{create}'"));
        assert!(gaps.is_empty(), "version {version}");
    }
}
