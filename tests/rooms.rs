//! One room over time, over SQLite: local events, what they cost, and what they leave behind.
#![allow(clippy::unwrap_used)]

mod common;

use std::rc::Rc;

use common::{network::World, sqlite::Sqlite};
use verge::{
    config::Config,
    matrix::{
        identifiers::{EventId, RoomId, UserId},
        json::{self, Object},
        room_version::RoomVersion,
    },
    room::{Draft, NewRoom, RoomError},
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
            Draft::membership(creator, "join", Object::new()),
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
            assert_eq!(server.rooms.whole_state(row.state).await.unwrap().len(), 5);
            let join = Draft::membership(bob.as_str(), "join", Object::new());
            send(&server, &room, &bob, join).await.unwrap();
        });
        let members = database.rows("SELECT user_id, membership FROM local_memberships ORDER BY 1");
        assert_eq!(members, [["@alice:a.example", "join"], ["@bob:a.example", "join"]], "{version}");
        assert_eq!(database.rows("SELECT server, joined FROM room_servers"), [["a.example", "2"]]);
        assert_eq!(database.rows("SELECT count(*), min(pos), max(pos) FROM timeline"), [["7", "1", "7"]]);
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
