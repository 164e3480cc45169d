//! Several servers in one room: what one does reaches the others, and forks end in the same state everywhere.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, rc::Rc};

use common::{network::World, sqlite::Sqlite};
use verge::{
    config::Config,
    federation::outbound::membership,
    matrix::{
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::{self, Object},
        room_version::RoomVersion,
        state_content::Membership,
    },
    program::Program,
    room::{Draft, NewRoom},
    server::Server,
    store::positions::OutboxPos,
};

fn server(world: &World, name: &str) -> (Rc<Program>, Sqlite) {
    let database = Sqlite::in_memory();
    let owned = name.to_owned();
    // Any 32 bytes are a seed; each server has its own.
    let seed = format!("{:A<43}", name.replace(['.', ':'], ""));
    let config = Config::parse(|variable| match variable {
        "SERVER_NAME" => Some(owned.clone()),
        "SIGNING_KEY" => Some(format!("ed25519 a_test {seed}")),
        _ => None,
    })
    .unwrap();
    let server = Rc::new(Program::from(Server::new(Rc::new(config), world.platform(name, database.clone()))));
    world.connect_server(name, &server);
    (server, database)
}

fn object(text: &str) -> Object {
    json::parse(text.as_bytes()).unwrap().into_object().unwrap()
}

fn user(id: &str) -> UserId {
    UserId::parse(id).unwrap()
}

fn public_room(version: &'static RoomVersion, creator: &UserId, moderator: &UserId) -> NewRoom {
    let creator_level = if version.privileged_creators { String::new() } else { format!(r#""{creator}":100,"#) };
    let levels = format!(r#"{{"users":{{{creator_level}"{moderator}":90}}}}"#);
    NewRoom {
        version,
        create_content: Object::new(),
        drafts: vec![
            Draft::membership(creator.as_str(), Membership::Join, Object::new()),
            Draft::state("m.room.power_levels", "", object(&levels)),
            Draft::state("m.room.join_rules", "", object(r#"{"join_rule":"public"}"#)),
        ],
    }
}

fn message(text: &str) -> Draft {
    Draft::message("m.room.message", object(&format!(r#"{{"body":"{text}","msgtype":"m.text"}}"#)))
}

async fn send(server: &Server, room: &RoomId, sender: &UserId, draft: Draft) -> EventId {
    let event = server.rooms.send(room, sender, draft).await.unwrap();
    server.flush(room);
    event.event_id().clone()
}

/// The current state: event IDs by type and state key.
async fn state(server: &Server, room: &RoomId) -> BTreeMap<(String, String), String> {
    let row = server.rooms.room(room).await.unwrap().unwrap();
    let state = common::homeserver::state_events(server, row.state).await;
    state
        .iter()
        .map(|event| {
            let key = (event.event_type().to_owned(), event.state_key().unwrap().to_owned());
            (key, event.event_id().to_string())
        })
        .collect()
}

fn timeline(database: &Sqlite) -> Vec<String> {
    let rows = database.rows(
        "SELECT e.event_id FROM timeline AS t JOIN events AS e USING (event_nid) WHERE e.event_type = 'm.room.message' \
         ORDER BY e.event_id",
    );
    rows.into_iter().flatten().collect()
}

#[test]
fn messages_of_both_sides_are_everywhere_once() {
    for version in RoomVersion::all() {
        let world = World::new();
        let (a, a_database) = server(&world, "a.example");
        let (b, b_database) = server(&world, "b.example");
        let (alice, bob) = (user("@alice:a.example"), user("@bob:b.example"));
        let mut sent = world.run(async {
            let (room, _) = a.rooms.create(&alice, &public_room(version, &alice, &bob)).await.unwrap();
            let via = vec![ServerName::parse("a.example").unwrap()];
            membership::join(&b, &bob, &room, via, Object::new()).await.unwrap();
            let mut sent = Vec::new();
            for n in 0..20 {
                sent.push(send(&a, &room, &alice, message(&format!("a{n}"))).await.to_string());
                sent.push(send(&b, &room, &bob, message(&format!("b{n}"))).await.to_string());
            }
            sent
        });
        world.settle();
        sent.sort();
        assert_eq!(timeline(&a_database), sent, "{version}: {:?}", world.logs());
        assert_eq!(timeline(&b_database), sent, "{version}: {:?}", world.logs());
    }
}

#[test]
fn a_fork_ends_in_the_same_state_on_both_sides() {
    for version in RoomVersion::all() {
        let world = World::new();
        let (a, _) = server(&world, "a.example");
        let (b, _) = server(&world, "b.example");
        let (alice, bob, carol) = (user("@alice:a.example"), user("@bob:b.example"), user("@carol:b.example"));
        let room = world.run(async {
            let (room, _) = a.rooms.create(&alice, &public_room(version, &alice, &bob)).await.unwrap();
            let via = vec![ServerName::parse("a.example").unwrap()];
            membership::join(&b, &bob, &room, via.clone(), Object::new()).await.unwrap();
            membership::join(&b, &carol, &room, via, Object::new()).await.unwrap();
            room
        });
        world.settle();
        world.cut("a.example", "b.example");
        // Alice bans whom Bob promotes, and both change the name.
        world.run(async {
            send(&a, &room, &alice, Draft::membership(carol.as_str(), Membership::Ban, Object::new())).await;
            send(&a, &room, &alice, Draft::state("m.room.name", "", object(r#"{"name":"A"}"#))).await;
            let creator = if version.privileged_creators { "" } else { r#""@alice:a.example":100,"# };
            let levels = format!(r#"{{"users":{{{creator}"@bob:b.example":90,"@carol:b.example":50}}}}"#);
            send(&b, &room, &bob, Draft::state("m.room.power_levels", "", object(&levels))).await;
            send(&b, &room, &bob, Draft::state("m.room.name", "", object(r#"{"name":"B"}"#))).await;
            send(&b, &room, &carol, Draft::state("m.room.topic", "", object(r#"{"topic":"C"}"#))).await;
        });
        world.settle();
        world.mend("a.example", "b.example");
        world.advance(3_600_000);
        for message_text in ["one", "two"] {
            world.run(async {
                a.scheduled().await;
                b.scheduled().await;
                send(&a, &room, &alice, message(message_text)).await;
                send(&b, &room, &bob, message(message_text)).await;
            });
            world.settle();
        }
        world.run(async {
            let (a_state, b_state) = (state(&a, &room).await, state(&b, &room).await);
            assert_eq!(a_state, b_state, "{version} {room}: {:?}", world.logs());
            let (_, members) = a.rooms.current(&room, &[("m.room.member", "@carol:b.example")]).await.unwrap().unwrap();
            assert_eq!(
                members[0].membership(),
                Some(Membership::Ban),
                "{version}: the ban holds against the promotion"
            );
        });
    }
}

#[test]
fn what_everybody_has_heard_is_forgotten_and_nothing_else() {
    let world = World::new();
    let (a, a_database) = server(&world, "a.example");
    let (b, _) = server(&world, "b.example");
    let (alice, bob) = (user("@alice:a.example"), user("@bob:b.example"));
    let version = RoomVersion::get("12").unwrap();
    let room = world.run(async {
        let (room, _) = a.rooms.create(&alice, &public_room(version, &alice, &bob)).await.unwrap();
        let via = vec![ServerName::parse("a.example").unwrap()];
        membership::join(&b, &bob, &room, via, Object::new()).await.unwrap();
        send(&a, &room, &alice, message("heard")).await;
        room
    });
    world.settle();
    world.cut("a.example", "b.example");
    world.run(async {
        send(&a, &room, &alice, message("not heard")).await;
    });
    world.settle();
    let forget = async || {
        a.store.note_swept(&a.config.server_name).await.unwrap();
        let last = a.store.heard_by_all(world.now_ms()).await.unwrap();
        assert!(a.store.forget_outbox(OutboxPos::START, last, 1_000).await.unwrap().is_none());
    };
    world.run(forget());
    assert_eq!(a_database.rows("SELECT count(*) FROM outbox"), [["1"]]);
    world.mend("a.example", "b.example");
    world.advance(3_600_000);
    world.run(async {
        a.scheduled().await;
        forget().await;
    });
    world.settle();
    assert_eq!(a_database.rows("SELECT count(*) FROM outbox"), [["0"]]);
}
