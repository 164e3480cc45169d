//! Servers that a room's ACL keeps out.

use serde_json::{Value, json};
use verge::{
    federation::outbound::membership,
    matrix::{
        event::Event,
        identifiers::{RoomId, ServerName},
        json::Object,
    },
    room::Draft,
};

use crate::{
    Scene, accepted,
    common::{
        homeserver::object,
        network::World,
        peer::{Peer, encode},
    },
    edus,
    extremities::empower,
    scene,
};

/// Alice sets the room's ACL.
fn set_acl(scene: &Scene, content: Value) -> Event {
    let acl = Draft::state("m.room.server_acl", "", object(content));
    scene.a.send(&scene.world, &scene.room, &scene.alice, acl)
}

fn deny_peer(scene: &Scene) -> Event {
    set_acl(scene, json!({ "allow": ["*"], "deny": ["PEER.*"] }))
}

fn assert_forbidden(what: &str, (status, answer): (u16, Value)) {
    assert_eq!((status, answer["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{what}: {answer}");
}

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

#[test]
fn a_denied_server_is_refused_by_every_endpoint_that_the_spec_lists() {
    for version in ["10", "12"] {
        let scene = scene(version);
        let (room, dave) = (encode(scene.room.as_str()), scene.peer.user("dave"));
        let last = scene.a.say(&scene.world, &scene.room, &scene.alice, "hello");
        let event = encode(last.event_id().as_str());
        // Templates from before the ACL, to be filled in.
        let template = |kind: &str, user: &str| {
            let target = format!("/_matrix/federation/v1/make_{kind}/{room}/{}?ver={version}", encode(user));
            let (status, answer) = scene.peer.get(&scene.a, &target);
            assert_eq!(status, 200, "{answer}");
            scene.peer.sign(version, answer["event"].clone())
        };
        let (join_id, join) = template("join", &dave);
        let (leave_id, leave) = template("leave", &scene.bob);
        let acl = deny_peer(&scene);
        let before = accepted(&scene.a);

        for target in [
            format!("state/{room}?event_id={event}"),
            format!("state_ids/{room}?event_id={event}"),
            format!("event_auth/{room}/{event}"),
            format!("backfill/{room}?v={event}&limit=10"),
            format!("make_join/{room}/{}?ver={version}", encode(&dave)),
            format!("make_leave/{room}/{}", encode(&scene.bob)),
        ] {
            assert_forbidden(&target, scene.peer.get(&scene.a, &format!("/_matrix/federation/v1/{target}")));
        }
        let wanted = json!({ "earliest_events": [], "latest_events": [last.event_id().as_str()] });
        let target = format!("/_matrix/federation/v1/get_missing_events/{room}");
        assert_forbidden(&target, scene.peer.post(&scene.a, &target, &wanted));
        for (kind, id, pdu) in [("send_join", &join_id, &join), ("send_leave", &leave_id, &leave)] {
            for prefix in ["v1", "v2"] {
                let target = format!("/_matrix/federation/{prefix}/{kind}/{room}/{}", encode(id));
                assert_forbidden(&target, scene.peer.put(&scene.a, &target, pdu));
            }
        }
        assert_eq!(accepted(&scene.a), before);
        // This one is not on the list: a server that was sent the ACL can look up what it cites.
        let target = format!("/_matrix/federation/v1/event/{}", encode(acl.event_id().as_str()));
        assert_eq!(scene.peer.get(&scene.a, &target).0, 200);

        // Another server is none of its business, and the peer may come back.
        let other = Peer::new(&scene.world, "other.example");
        other.join(&scene.a, scene.room.as_str(), &other.user("carol"));
        set_acl(&scene, json!({ "allow": ["*"] }));
        let target = format!("/_matrix/federation/v2/send_join/{room}/{}", encode(&join_id));
        assert_eq!(scene.peer.put(&scene.a, &target, &join).0, 200);
    }
}

#[test]
fn each_pdu_of_a_transaction_is_judged_by_the_acl_of_its_room() {
    let mut scene = scene("12");
    let open = scene.a.public_room(&scene.world, &scene.alice, "12");
    let mut theirs = scene.peer.join(&scene.a, open.as_str(), &scene.bob);
    scene.world.settle();
    deny_peer(&scene);
    let (denied, first) = scene.theirs.say(&scene.peer, &scene.bob, "one");
    // What cites an event that we lack would have to wait.
    let draft = scene.theirs.draft(
        scene.world.now_ms(),
        &scene.bob,
        json!({
            "type": "m.room.message", "content": { "body": "two" }, "prev_events": ["$unknown"],
        }),
    );
    let (waiting, second) = scene.peer.sign("12", draft);
    let (taken, third) = theirs.say(&scene.peer, &scene.bob, "three");
    let calls = scene.a.database.calls.get();
    let (status, answer) = scene.peer.send(&scene.a, "1", &[first.clone(), second, third]);
    assert_eq!((status, scene.a.database.calls.get() - calls), (200, 3));
    for id in [&denied, &waiting] {
        assert!(answer["pdus"][id]["error"].as_str().unwrap().contains("ACL"), "{answer}");
        assert!(!scene.a.shows(id));
    }
    assert_eq!(answer["pdus"][&taken], json!({}));
    assert!(scene.a.shows(&taken));
    assert!(scene.a.database.rows("SELECT 1 FROM staged_pdus").is_empty());
    assert!(scene.a.database.rows("SELECT 1 FROM rejected_events").is_empty(), "an ACL rejects no event");

    // It is about who sends, not about who made the event.
    let relay = Peer::new(&scene.world, "relay.example");
    relay.join(&scene.a, scene.room.as_str(), &relay.user("eve"));
    let (_, answer) = relay.send(&scene.a, "2", &[first]);
    assert_eq!(answer["pdus"][&denied], json!({}));
    assert!(scene.a.shows(&denied));
}

#[test]
fn edus_count_in_rooms_whose_acl_allows_their_server() {
    let scene = scene("11");
    let open = scene.a.public_room(&scene.world, &scene.alice, "11");
    let rooms = [scene.room.clone(), open.clone(), RoomId::parse("!unknown").unwrap()];
    let allowing = |server: &str| {
        let calls = scene.a.database.calls.get();
        let allowing = scene.world.run(scene.a.rooms.allowing(&name(server), &rooms)).unwrap();
        assert_eq!(scene.a.database.calls.get() - calls, 1);
        rooms.iter().map(|room| allowing.contains(room)).collect::<Vec<_>>()
    };
    assert_eq!(allowing("peer.example"), [true, true, false]);
    deny_peer(&scene);
    assert_eq!(allowing("peer.example:8448"), [false, true, false]);
    assert_eq!(allowing("a.peer.example"), [true, true, false]);
}

#[test]
fn a_redacted_acl_allows_nobody() {
    let scene = scene("12");
    let acl = set_acl(&scene, json!({ "allow": ["*"] }));
    let (_, state) =
        scene.world.run(scene.a.rooms.current(&scene.room, &[("m.room.server_acl", "")])).unwrap().unwrap();
    assert_eq!(state.len(), 1);
    let room = scene.room.clone();
    let allowed = || {
        let allowing = scene.world.run(scene.a.rooms.allowing(&name("peer.example"), std::slice::from_ref(&room)));
        !allowing.unwrap().is_empty()
    };
    assert!(allowed());
    let mut redaction = Draft::message("m.room.redaction", object(json!({})));
    redaction.redacts = Some(acl.event_id().to_string());
    scene.a.send(&scene.world, &scene.room, &scene.alice, redaction);
    assert!(!allowed());
}

/// Whoever relays an ACL may alter it, and what is left then has no list of whom it allows.
#[test]
fn an_acl_that_came_altered_keeps_nobody_out_until_it_comes_whole() {
    let mut scene = scene("12");
    empower(&mut scene);
    let relay = Peer::new(&scene.world, "relay.example");
    relay.join(&scene.a, scene.room.as_str(), &relay.user("eve"));
    let content = json!({ "allow": ["*"], "deny": ["relay.example"] });
    let fields = json!({ "type": "m.room.server_acl", "state_key": "", "content": content });
    let (id, acl) = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields));
    scene.theirs.advance(&id);
    let mut altered = acl.clone();
    altered["content"]["deny"] = json!(["peer.example"]);
    assert_eq!(relay.send(&scene.a, "1", &[altered]).1["pdus"][&id], json!({}));
    let (said, event) = scene.theirs.say(&scene.peer, &scene.bob, "hello");
    let typing = edus::typing(scene.room.as_str(), &scene.bob, true);
    let body = json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": [event], "edus": [typing] });
    let (status, answer) = scene.peer.put(&scene.a, "/_matrix/federation/v1/send/2", &body);
    assert_eq!((status, &answer["pdus"][&said]), (200, &json!({})), "{answer}");
    assert!(scene.a.shows(&said));
    assert_eq!(scene.a.database.rows("SELECT user_id FROM typing"), [[scene.bob.clone()]]);
    let (room, event) = (encode(scene.room.as_str()), encode(&said));
    let state =
        |peer: &Peer| peer.get(&scene.a, &format!("/_matrix/federation/v1/state_ids/{room}?event_id={event}")).0;
    assert_eq!((state(&scene.peer), state(&relay)), (200, 200));
    scene.peer.send(&scene.a, "3", &[acl]);
    assert_eq!((state(&scene.peer), state(&relay)), (200, 403));
}

#[test]
fn an_invite_to_a_room_that_we_are_in_is_under_its_acl() {
    let scene = scene("12");
    scene.a.user(&scene.world, "dora");
    let invite = json!({
        "type": "m.room.member", "state_key": "@dora:a.example", "content": { "membership": "invite" },
    });
    let (id, event) = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &scene.bob, invite));
    let create = scene.theirs.state[&("m.room.create".to_owned(), String::new())].clone();
    let body = json!({ "room_version": "12", "event": event, "invite_room_state": [create] });
    let target = format!("/_matrix/federation/v2/invite/{}/{}", encode(scene.room.as_str()), encode(&id));
    deny_peer(&scene);
    let before = accepted(&scene.a);
    assert_forbidden("invite", scene.peer.put(&scene.a, &target, &body));
    assert_eq!(accepted(&scene.a), before);
    set_acl(&scene, json!({ "allow": ["*"] }));
    let (status, answer) = scene.peer.put(&scene.a, &target, &body);
    assert_eq!(status, 200, "{answer}");
}

/// While we join a room we cannot know its ACL; what came meanwhile is under it when we do.
#[test]
fn what_a_denied_server_sent_while_we_joined_is_dropped() {
    let world = World::new();
    let (a, b) = (world.server("a.example"), world.server("b.example"));
    let (alice, bob) = (a.user(&world, "alice"), b.user(&world, "bob"));
    let room = a.public_room(&world, &alice, "12");
    let peer = Peer::new(&world, "peer.example");
    let mallory = peer.user("mallory");
    let mut theirs = peer.join(&a, room.as_str(), &mallory);
    let acl = Draft::state("m.room.server_acl", "", object(json!({ "allow": ["*"], "deny": ["peer.example"] })));
    a.send(&world, &room, &alice, acl);
    let (id, pdu) = theirs.say(&peer, &mallory, "from the denied");
    let known = "INSERT INTO pending_joins (room_id, join_id, room_version, until_ts) VALUES ";
    b.database.rows(&format!("{known}('{room}', 'an attempt', '12', {})", world.now_ms() + 600_000));
    let (status, answer) = peer.send(&b, "1", &[pdu]);
    assert_eq!((status, &answer["pdus"][&id]), (200, &json!({})));
    assert_eq!(b.database.rows("SELECT event_id FROM staged_pdus"), [[id.clone()]]);
    b.database.rows("DELETE FROM pending_joins");
    let via = vec![name("a.example")];
    world.run(membership::join(&b, &bob, &room, via, Object::new())).unwrap();
    world.settle();
    assert_eq!(b.membership(&world, &room, bob.as_str()).as_deref(), Some("join"));
    assert!(!b.shows(&id));
    assert!(b.database.rows("SELECT event_id FROM staged_pdus").is_empty());
    let told = |line: &String| line.contains("a staged PDU is dropped") && line.contains(&id);
    assert!(world.logs().iter().any(told), "{:#?}", world.logs());
}
