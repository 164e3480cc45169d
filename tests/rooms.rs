//! One room over time, over SQLite: local events, what they cost, and what they leave behind.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{collections::HashMap, rc::Rc};

use common::{network::World, sqlite::Sqlite};
use verge::{
    config::Config,
    error::MatrixError,
    matrix::{
        auth_rules,
        event::{Event, PduError, ReceivedPdu},
        identifiers::{EventId, RoomId, UserId},
        json::{self, Object, Value},
        room_version::{EventIds, RoomVersion},
        server_keys::KeyRing,
        state_content::Membership,
    },
    room::{Claim, Draft, NewRoom, RoomError},
    server::Server,
};

fn server(world: &World, name: &str) -> (Server, Sqlite) {
    let database = Sqlite::in_memory();
    let name = name.to_owned();
    let config = Config::parse(|variable| match variable {
        "SERVER_NAME" => Some(name.clone()),
        "SIGNING_KEY" => Some("ed25519 a_test YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1".to_owned()),
        _ => None,
    })
    .unwrap();
    (Server::new(Rc::new(config), world.platform(&name, database.clone())), database)
}

fn object(text: &str) -> Object {
    json::parse(text.as_bytes()).unwrap().into_object().unwrap()
}

fn new_room(version: &str, creator: &str) -> NewRoom {
    let version = RoomVersion::get(version).unwrap();
    let levels =
        if version.privileged_creators { "{}".to_owned() } else { format!(r#"{{"users":{{"{creator}":100}}}}"#) };
    NewRoom {
        version,
        create_content: Object::new(),
        drafts: vec![
            Draft::membership(creator, Membership::Join, Object::new()),
            Draft::state("m.room.power_levels", "", object(&levels)),
            Draft::state("m.room.join_rules", "", object(r#"{"join_rule":"public"}"#)),
        ],
    }
}

async fn send(server: &Server, room: &RoomId, user: &UserId, draft: Draft) -> Result<EventId, RoomError> {
    server.rooms.send(room, user, draft).await.map(|event| event.event_id().clone())
}

#[test]
fn a_room_of_every_version_is_made_and_takes_events() {
    for version in RoomVersion::all() {
        let world = World::new();
        let (server, database) = server(&world, "a.example");
        let alice = UserId::parse("@alice:a.example").unwrap();
        let bob = UserId::parse("@bob:a.example").unwrap();
        world.run(async {
            let (room, events) = server.rooms.create(&alice, &new_room(version.id, alice.as_str())).await.unwrap();
            assert_eq!(events.len(), 4);
            send(&server, &room, &alice, Draft::message("m.room.message", object(r#"{"body":"1"}"#))).await.unwrap();
            let refused = send(&server, &room, &bob, Draft::message("m.room.message", object(r#"{"body":"2"}"#))).await;
            assert!(matches!(refused, Err(RoomError::NotAllowed(_))), "{version}: {refused:?}");
            let name = Draft::state("m.room.name", "", object(r#"{"name":"One"}"#));
            let name = send(&server, &room, &alice, name).await.unwrap();
            let (row, state) =
                server.rooms.current(&room, &[("m.room.name", ""), ("m.room.topic", "")]).await.unwrap().unwrap();
            assert_eq!(state.iter().map(|event| event.event_id()).collect::<Vec<_>>(), [&name]);
            assert_eq!(row.extremities.len(), 1);
            assert_eq!(common::homeserver::state_events(&server, row.state).await.len(), 5);
            let join = Draft::membership(bob.as_str(), Membership::Join, Object::new());
            send(&server, &room, &bob, join).await.unwrap();
        });
        let members = database.rows("SELECT user_id, membership FROM local_memberships ORDER BY 1");
        assert_eq!(members, [["@alice:a.example", "join"], ["@bob:a.example", "join"]], "{version}");
        assert_eq!(database.rows("SELECT server, joined FROM room_servers"), [["a.example", "2"]]);
        assert_eq!(database.rows("SELECT count(*), count(DISTINCT pos) FROM timeline"), [["7", "7"]]);
        assert_eq!(database.rows("SELECT count(*) FROM gaps"), [["0"]]);
    }
}

#[test]
fn a_message_costs_two_calls() {
    let world = World::new();
    let (server, database) = server(&world, "a.example");
    let alice = UserId::parse("@alice:a.example").unwrap();
    world.run(async {
        let (room, _) = server.rooms.create(&alice, &new_room("12", alice.as_str())).await.unwrap();
        let before = database.calls.get();
        send(&server, &room, &alice, Draft::message("m.room.message", object(r#"{"body":"1"}"#))).await.unwrap();
        assert_eq!(database.calls.get() - before, 2);
    });
}

/// A commit that lost a race is tried again; one that breaks a rule of the tables would break it again.
#[test]
fn a_broken_constraint_that_is_no_lost_race_is_told_at_once() {
    let world = World::new();
    let (server, database) = server(&world, "a.example");
    let alice = UserId::parse("@alice:a.example").unwrap();
    world.run(async {
        let (room, _) = server.rooms.create(&alice, &new_room("12", alice.as_str())).await.unwrap();
        // The next event gets a position that is taken.
        database.rows("UPDATE streams SET position = 0 WHERE name = 'events'");
        let before = database.calls.get();
        let message = Draft::message("m.room.message", object(r#"{"body":"1"}"#));
        let refused = server.rooms.send(&room, &alice, message).await.unwrap_err();
        assert_eq!(database.calls.get() - before, 2, "{refused:?}");
        let RoomError::Corrupt(why) = &refused else { panic!("{refused:?}") };
        assert!(why.contains("timeline"), "{why}");
        let answer = MatrixError::from(refused);
        assert_eq!(answer.status, 500);
        assert!(answer.cause.unwrap().to_string().contains("timeline"));
    });
}

#[test]
fn a_redaction_takes_effect_on_what_its_sender_may_redact() {
    let world = World::new();
    let (server, database) = server(&world, "a.example");
    let alice = UserId::parse("@alice:a.example").unwrap();
    world.run(async {
        let (room, _) = server.rooms.create(&alice, &new_room("12", alice.as_str())).await.unwrap();
        let message = Draft::message("m.room.message", object(r#"{"body":"1"}"#));
        let message = send(&server, &room, &alice, message).await.unwrap();
        let mut redaction = Draft::message("m.room.redaction", Object::new());
        redaction.redacts = Some(message.to_string());
        let redaction = send(&server, &room, &alice, redaction).await.unwrap();
        let stored = server.rooms.event(&message).await.unwrap().unwrap();
        assert_eq!(stored.redacted_by.as_deref(), Some(redaction.as_str()));
    });
    assert_eq!(database.rows("SELECT count(*) FROM events WHERE redacted_by IS NOT NULL"), [["1"]]);
}

/// An event of `sender`, made outside of any room's rules: what a hostile server could sign.
fn forged(server: &Server, room: &RoomId, sender: &UserId, auth: &[EventId], previous: &[EventId]) -> Event {
    let ids = |ids: &[EventId]| Value::Array(ids.iter().map(|id| Value::from(id.as_str())).collect());
    let mut event = object(r#"{"type":"m.room.message","content":{"body":"forged"},"depth":100,"origin_server_ts":1}"#);
    event.insert("room_id", room.as_str());
    event.insert("sender", sender.as_str());
    event.insert("auth_events", ids(auth));
    event.insert("prev_events", ids(previous));
    let version = RoomVersion::get("12").unwrap();
    Event::create(event, version, server.config.server_name.as_str(), &server.config.signing_key).unwrap()
}

#[test]
fn the_state_of_another_room_has_no_say() {
    let world = World::new();
    let (server, database) = server(&world, "a.example");
    let (alice, bob) = (UserId::parse("@alice:a.example").unwrap(), UserId::parse("@bob:a.example").unwrap());
    let (room, event) = world.run(async {
        let (room, events) = server.rooms.create(&alice, &new_room("12", alice.as_str())).await.unwrap();
        let (other, _) = server.rooms.create(&bob, &new_room("12", bob.as_str())).await.unwrap();
        let other = server.rooms.room(&other).await.unwrap().unwrap();
        let auth: Vec<EventId> = events[1..3].iter().map(|event| event.event_id().clone()).collect();
        let event = forged(&server, &room, &alice, &auth, &[other.extremities[0].event_id.clone()]);
        let before = server.rooms.room(&room).await.unwrap().unwrap();
        let received =
            server.rooms.receive_fetched(&room, std::slice::from_ref(&event), &HashMap::new()).await.unwrap();
        assert_eq!(received.accepted, 0);
        let after = server.rooms.room(&room).await.unwrap().unwrap();
        assert_eq!((before.state, before.extremities), (after.state, after.extremities));
        (room, event)
    });
    let rejected = format!("SELECT room_id FROM rejected_events WHERE event_id = '{}'", event.event_id());
    assert_eq!(database.rows(&rejected), [[room.as_str()]]);
    assert!(database.rows(&format!("SELECT 1 FROM events WHERE event_id = '{}'", event.event_id())).is_empty());
}

#[test]
fn a_claim_about_the_state_before_an_event_rejects_nothing() {
    let world = World::new();
    let (server, database) = server(&world, "a.example");
    let alice = UserId::parse("@alice:a.example").unwrap();
    world.run(async {
        let (room, events) = server.rooms.create(&alice, &new_room("12", alice.as_str())).await.unwrap();
        let auth: Vec<EventId> = events[1..3].iter().map(|event| event.event_id().clone()).collect();
        let unknown =
            forged(&server, &room, &alice, &auth, &[EventId::parse(&format!("${}", "A".repeat(43))).unwrap()]);
        // "Nothing at all stood in the room before it."
        let refused = server.rooms.place(&unknown, &[Claim::default()]).await;
        assert!(matches!(refused, Err(RoomError::Invalid(_))), "{refused:?}");
        // Without its power levels, which the event cites, the state is not believed either.
        let claim = |events: &[Event]| Claim { state: events.to_vec(), auth_chain: events.to_vec(), stranger: None };
        let refused = server.rooms.place(&unknown, &[claim(&events[..1])]).await;
        assert!(matches!(refused, Err(RoomError::Invalid(_))), "{refused:?}");
        // The true one is.
        server.rooms.place(&unknown, &[claim(&events[..3])]).await.unwrap();
    });
    assert_eq!(database.rows("SELECT count(*) FROM rejected_events"), [["0"]]);
    assert_eq!(database.rows("SELECT outlier FROM events WHERE depth = 100"), [["1"]]);
}

/// Nothing in the rules before version 12, nor in state resolution, tells a room's create event from another of the same
/// server: that there is one already does.
#[test]
fn a_room_is_created_once() {
    for version in RoomVersion::all().iter().filter(|version| !version.room_id_is_create_hash) {
        let world = World::new();
        let (server, database) = server(&world, "a.example");
        let (alice, mallory) =
            (UserId::parse("@alice:a.example").unwrap(), UserId::parse("@mallory:a.example").unwrap());
        world.run(async {
            let (room, _) = server.rooms.create(&alice, &new_room(version.id, alice.as_str())).await.unwrap();
            let mut event = object(
                r#"{"type":"m.room.create","state_key":"","auth_events":[],"prev_events":[],"depth":1,"origin_server_ts":1}"#,
            );
            event.insert("content", object(&format!(r#"{{"creator":"{mallory}","room_version":"{}"}}"#, version.id)));
            event.insert("room_id", room.as_str());
            event.insert("sender", mallory.as_str());
            if version.event_ids == EventIds::Given {
                event.insert("event_id", "$second:a.example");
            }
            let name = server.config.server_name.as_str();
            let event = Event::create(event, version, name, &server.config.signing_key).unwrap();
            assert_eq!(auth_rules::check_auth_event_list(&event, |_| None), Ok(()), "the rules allow it");
            let before = server.rooms.room(&room).await.unwrap().unwrap();
            let received = server.rooms.receive_fetched(&room, std::slice::from_ref(&event), &HashMap::new()).await.unwrap();
            assert_eq!(received.accepted, 0, "version {version}");
            let after = server.rooms.room(&room).await.unwrap().unwrap();
            assert_eq!((before.state, before.extremities), (after.state, after.extremities));
        });
        let created = "SELECT sender FROM events WHERE event_type = 'm.room.create'";
        assert_eq!(database.rows(created), [["@alice:a.example"]], "version {version}");
    }
}

#[test]
fn an_invite_is_not_excused_from_a_signature_by_what_redaction_takes_away() {
    for version in RoomVersion::all().iter().filter(|version| version.id.parse::<u8>().unwrap() >= 3) {
        for third_party_invite in [r#""x""#, r#"{}"#, r#"{"signed":{"mxid":"@eve:evil.example","token":"t"}}"#] {
            let pdu = format!(
                r#"{{"type":"m.room.member","state_key":"@eve:evil.example","sender":"@admin:a.example",
                    "room_id":"!{room}","content":{{"membership":"invite","third_party_invite":{third_party_invite}}},
                    "depth":5,"origin_server_ts":1,"auth_events":[],"prev_events":[],
                    "hashes":{{"sha256":"{hash}"}},"signatures":{{}}}}"#,
                room = if version.room_id_is_create_hash { "A".repeat(43) } else { "a:a.example".to_owned() },
                hash = "A".repeat(43),
            );
            let pdu = ReceivedPdu::parse(pdu.as_bytes(), version).unwrap();
            match pdu.verify(&KeyRing::new()) {
                Err(error) => assert_eq!(error, PduError::NotSigned("a.example".into()), "{version}"),
                Ok(event) => assert!(
                    event.content().get("third_party_invite").is_some(),
                    "{version}: an ordinary invite in the name of {}",
                    event.sender()
                ),
            }
        }
    }
}

#[test]
fn a_list_longer_than_a_parameter_is_read_in_parts() {
    let world = World::new();
    let (server, database) = server(&world, "a.example");
    let alice = UserId::parse("@alice:a.example").unwrap();
    world.run(async {
        let (room, events) = server.rooms.create(&alice, &new_room("12", alice.as_str())).await.unwrap();
        // As many as the state of a room of 50,000 members.
        let mut ids: Vec<EventId> = (0..50_000).map(|i| EventId::parse(&format!("${i:043}")).unwrap()).collect();
        ids.push(events[0].event_id().clone());
        ids.insert(0, events[1].event_id().clone());
        let calls = database.calls.get();
        let mut held: Vec<EventId> =
            server.rooms.events(&ids).await.unwrap().iter().map(|stored| stored.event.event_id().clone()).collect();
        held.sort();
        let mut expected = vec![events[0].event_id().clone(), events[1].event_id().clone()];
        expected.sort();
        assert_eq!(held, expected);
        assert_eq!(database.calls.get() - calls, 1);
        // The same where events are to be judged that cite so many.
        let citing: Vec<Event> =
            ids[1..40_001].chunks(20).map(|previous| forged(&server, &room, &alice, &[], previous)).collect();
        let received = server.rooms.receive_fetched(&room, &citing, &HashMap::new()).await.unwrap();
        assert_eq!(received.missing.len(), 2_000);
    });
}
