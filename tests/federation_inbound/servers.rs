//! Whole servers of ours with each other: joining, talking, inviting, leaving, paging back.

use std::rc::Rc;

use serde_json::json;
use verge::{
    federation::outbound::{backfill, directory, membership},
    matrix::{
        identifiers::{RoomAlias, RoomId, ServerName, UserId},
        json::Object,
        state_content::Membership,
    },
    room::Draft,
    store::positions::TimelinePos,
};

use crate::common::{
    homeserver::object,
    network::{Homeserver, World},
};

/// All positions of a timeline.
const EVERYWHERE: (TimelinePos, TimelinePos) = (TimelinePos::OLDEST, TimelinePos::MAX);

fn via(names: &[&str]) -> Vec<ServerName> {
    names.iter().map(|name| ServerName::parse(name).unwrap()).collect()
}

/// Joins, which must succeed, and waits until everybody has heard of it.
fn join(world: &World, server: &Homeserver, user: &UserId, room: &RoomId, names: &[&str]) {
    let joined = world.run(membership::join(server, user, room, via(names), Object::new()));
    joined.unwrap_or_else(|error| panic!("{error}; {:?}", world.logs()));
    world.settle();
}

/// What each server holds as the room's state must be the same.
fn assert_same_state(world: &World, room: &RoomId, servers: &[&Homeserver]) {
    let states: Vec<_> = servers.iter().map(|server| server.state(world, room)).collect();
    assert!(!states[0].is_empty());
    for state in &states[1..] {
        assert_eq!(*state, states[0]);
    }
}

fn local_membership(server: &Homeserver, user: &UserId, room: &RoomId) -> Option<String> {
    let sql = format!("SELECT membership FROM local_memberships WHERE user_id = '{user}' AND room_id = '{room}'");
    server.database.rows(&sql).first().map(|row| row[0].clone())
}

#[test]
fn three_servers_in_one_room_hear_of_everything() {
    for version in ["10", "11", "12"] {
        let world = World::new();
        let (a, b, c) = (world.server("a.example"), world.server("b.example"), world.server("c.example"));
        let (alice, bob, carol) = (a.user(&world, "alice"), b.user(&world, "bob"), c.user(&world, "carol"));
        let room = a.public_room(&world, &alice, version);
        join(&world, &b, &bob, &room, &["a.example"]);
        join(&world, &c, &carol, &room, &["b.example"]);
        assert_same_state(&world, &room, &[&a, &b, &c]);
        let mut said = Vec::new();
        for i in 0..5 {
            for (server, user) in [(&a, &alice), (&b, &bob), (&c, &carol)] {
                said.push(server.say(&world, &room, user, &i.to_string()).event_id().to_string());
            }
        }
        world.settle();
        for id in &said {
            for server in [&a, &b, &c] {
                assert!(server.shows(id), "{id} is missing in {}; {:?}", server.config.server_name, world.logs());
            }
        }
        let leave = Draft::membership(bob.as_str(), Membership::Leave, Object::new());
        b.send(&world, &room, &bob, leave);
        world.settle();
        for server in [&a, &c] {
            assert_eq!(server.membership(&world, &room, bob.as_str()).as_deref(), Some("leave"));
        }
        assert_same_state(&world, &room, &[&a, &b, &c]);
        // Nothing is sent any more to a server that is not in the room.
        let later = a.say(&world, &room, &alice, "later").event_id().to_string();
        world.settle();
        assert!(c.shows(&later) && !b.shows(&later));
        // It may come back.
        join(&world, &b, &bob, &room, &["c.example"]);
        assert_same_state(&world, &room, &[&a, &b, &c]);
    }
}

#[test]
fn a_join_finds_its_way_through_any_resident_server() {
    let world = World::new();
    let (a, b, c) = (world.server("a.example"), world.server("b.example"), world.server("c.example"));
    let (alice, bob, carol) = (a.user(&world, "alice"), b.user(&world, "bob"), c.user(&world, "carol"));
    let room = a.public_room(&world, &alice, "12");
    join(&world, &b, &bob, &room, &["a.example"]);
    // Nobody answers there, there, nobody is in the room, and there the room is.
    let d = world.server("d.example");
    d.user(&world, "dora");
    // They know each other's keys from requests.
    assert!(world.run(directory::profile(&a, &carol)).is_ok());
    assert!(world.run(directory::profile(&c, &alice)).is_ok());
    world.cut("a.example", "c.example");
    join(&world, &c, &carol, &room, &["nowhere.example", "a.example", "d.example", "b.example"]);
    assert_eq!(c.membership(&world, &room, carol.as_str()).as_deref(), Some("join"));
    // Whoever cannot be reached by c hears of it from b.
    assert_eq!(a.membership(&world, &room, carol.as_str()).as_deref(), Some("join"));
    // The most telling of several errors is passed on; without any server to ask there is nothing to say.
    let error = world.run(membership::join(&d, &carol, &room, via(&["nowhere.example"]), Object::new())).unwrap_err();
    assert_eq!(error.status, 502);
    let error = world.run(membership::join(&d, &carol, &room, Vec::new(), Object::new())).unwrap_err();
    assert_eq!((error.status.as_u16(), error.errcode), (404, "M_NOT_FOUND"));
    let closed = a.room(&world, &alice, "12", json!({ "join_rule": "invite" }));
    let dora = UserId::parse("@dora:d.example").unwrap();
    let names = via(&["nowhere.example", "a.example", "b.example"]);
    let error = world.run(membership::join(&d, &dora, &closed, names, Object::new())).unwrap_err();
    assert_eq!((error.status.as_u16(), error.errcode), (403, "M_FORBIDDEN"));
    assert!(d.state(&world, &closed).is_empty());
}

#[test]
fn an_invite_is_accepted_or_rejected() {
    for version in ["10", "12"] {
        let world = World::new();
        let (a, b) = (world.server("a.example"), world.server("b.example"));
        let (alice, bob, carol) = (a.user(&world, "alice"), b.user(&world, "bob"), b.user(&world, "carol"));
        let room = a.room(&world, &alice, version, json!({ "join_rule": "invite" }));
        for user in [&bob, &carol] {
            let invited = world.run(membership::invite(&a, &alice, user, &room, object(json!({ "reason": "please" }))));
            invited.unwrap_or_else(|error| panic!("{error}; {:?}", world.logs()));
            assert_eq!(a.membership(&world, &room, user.as_str()).as_deref(), Some("invite"));
            assert_eq!(local_membership(&b, user, &room).as_deref(), Some("invite"));
        }
        // Whose invite it is says where to go.
        join(&world, &b, &bob, &room, &[]);
        assert_eq!(local_membership(&b, &bob, &room).as_deref(), Some("join"));
        let invite = b.database.rows("SELECT json FROM events WHERE json LIKE '%please%' LIMIT 1");
        assert!(invite[0][0].contains("\"b.example\":{\"ed25519:auto\""), "not countersigned: {}", invite[0][0]);
        let erin = b.user(&world, "erin");
        world.run(membership::invite(&a, &alice, &erin, &room, Object::new())).unwrap();
        world.settle();
        assert_eq!(local_membership(&b, &erin, &room).as_deref(), Some("invite"));
        assert_same_state(&world, &room, &[&a, &b]);

        // In a room that nobody of theirs is in, rejecting goes through the inviter's server.
        let other = a.room(&world, &alice, version, json!({ "join_rule": "invite" }));
        world.run(membership::invite(&a, &alice, &carol, &other, Object::new())).unwrap();
        world.run(membership::leave(&b, &carol, &other, Object::new())).unwrap();
        assert_eq!(a.membership(&world, &other, carol.as_str()).as_deref(), Some("leave"));
        assert_eq!(local_membership(&b, &carol, &other).as_deref(), Some("leave"));
        assert!(world.run(membership::leave(&b, &carol, &other, Object::new())).unwrap().is_none());
        // Where that server is away, the invite is gone nevertheless.
        world.run(membership::invite(&a, &alice, &bob, &other, Object::new())).unwrap();
        world.cut("a.example", "b.example");
        world.run(membership::leave(&b, &bob, &other, Object::new())).unwrap();
        assert_eq!(local_membership(&b, &bob, &other).as_deref(), Some("leave"));
        // And nobody is invited whose server does not know of it.
        let error = world.run(membership::invite(&a, &alice, &carol, &other, Object::new())).unwrap_err();
        assert_eq!(error.status, 502);
        assert_eq!(a.membership(&world, &other, carol.as_str()).as_deref(), Some("leave"));
    }
}

/// Who has just answered is there, though it was not when its keys were looked for.
#[test]
fn a_server_that_is_there_again_signs_an_invite() {
    let world = World::new();
    let (a, b) = (world.server("a.example"), world.server("b.example"));
    let (alice, bob) = (a.user(&world, "alice"), b.user(&world, "bob"));
    let room = a.public_room(&world, &alice, "12");
    world.disconnect("b.example");
    world.run(membership::join(&b, &bob, &room, via(&["a.example"]), Object::new())).unwrap_err();
    assert!(world.logs().iter().any(|line| line.contains("no keys from a server")), "{:?}", world.logs());
    world.connect_server("b.example", &b.server);
    let invited = world.run(membership::invite(&a, &alice, &bob, &room, Object::new()));
    invited.unwrap_or_else(|error| panic!("{error}; {:?}", world.logs()));
    world.settle();
    assert_eq!(local_membership(&b, &bob, &room).as_deref(), Some("invite"));
}

#[test]
fn history_is_fetched_page_by_page_to_the_beginning() {
    for version in ["10", "12"] {
        let world = World::new();
        let (a, b) = (world.server("a.example"), world.server("b.example"));
        let (alice, bob) = (a.user(&world, "alice"), b.user(&world, "bob"));
        let room = a.public_room(&world, &alice, version);
        // Somebody who was here once: their membership is no part of the state's auth chain.
        let zoe = a.user(&world, "zoe");
        a.send(&world, &room, &zoe, Draft::membership(zoe.as_str(), Membership::Join, Object::new()));
        let mut said: Vec<String> =
            (0..40).map(|i| a.say(&world, &room, &zoe, &i.to_string()).event_id().to_string()).collect();
        let renamed = Draft::membership(zoe.as_str(), Membership::Join, object(json!({ "displayname": "Zoe" })));
        a.send(&world, &room, &zoe, renamed);
        said.extend((0..40).map(|i| a.say(&world, &room, &alice, &i.to_string()).event_id().to_string()));
        join(&world, &b, &bob, &room, &["a.example"]);
        assert!(!b.shows(&said[79]));
        let mut pages = 0;
        loop {
            let found = world.run(b.rooms.room(&room)).unwrap().unwrap();
            let Some(gap) = world.run(b.store.newest_gap(&room, EVERYWHERE, world.now_ms())).unwrap() else { break };
            assert!(world.run(backfill::backfill(&b, &found, &gap, 25)).unwrap());
            pages += 1;
            assert!(pages < 20);
        }
        assert!(pages >= 4, "{pages}");
        let timeline =
            "SELECT e.event_id FROM timeline AS t JOIN events AS e ON e.event_nid = t.event_nid ORDER BY t.pos";
        assert_eq!(b.database.rows(timeline), a.database.rows(timeline));
        // With nobody left to ask it is no error.
        world.cut("a.example", "b.example");
        let carol = b.user(&world, "carol");
        let other = a.public_room(&world, &alice, version);
        world.mend("a.example", "b.example");
        join(&world, &b, &carol, &other, &["a.example"]);
        world.cut("a.example", "b.example");
        let found = world.run(b.rooms.room(&other)).unwrap().unwrap();
        let gap = world.run(b.store.newest_gap(&other, EVERYWHERE, world.now_ms())).unwrap().unwrap();
        assert!(!world.run(backfill::backfill(&b, &found, &gap, 25)).unwrap());
    }
}

#[test]
fn a_restricted_room_is_joined_with_a_resident_servers_signature() {
    let world = World::new();
    let (a, b) = (world.server("a.example"), world.server("b.example"));
    let (alice, bob) = (a.user(&world, "alice"), b.user(&world, "bob"));
    let space = a.public_room(&world, &alice, "12");
    let rules = json!({
        "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": space.as_str() }],
    });
    let room = a.room(&world, &alice, "12", rules);
    let error = world.run(membership::join(&b, &bob, &room, via(&["a.example"]), Object::new())).unwrap_err();
    assert_eq!(error.errcode, "M_FORBIDDEN");
    join(&world, &b, &bob, &space, &["a.example"]);
    join(&world, &b, &bob, &room, &["a.example"]);
    assert_same_state(&world, &room, &[&a, &b]);
    let rows = b.database.rows(
        "SELECT json FROM events WHERE json LIKE '%join_authorised_via_users_server%' AND sender = '@bob:b.example'",
    );
    assert!(rows[0][0].contains("\"a.example\":{\"ed25519:auto\""));
}

#[test]
fn aliases_and_profiles_of_other_servers_are_asked_for() {
    let world = World::new();
    let (a, b) = (world.server("a.example"), world.server("b.example"));
    let alice = a.user(&world, "alice");
    let room = a.public_room(&world, &alice, "12");
    let put = a.store.put_alias("#room:a.example", room.as_str(), alice.as_str(), world.now_ms());
    assert!(world.run(put).unwrap());
    let alias = |text| RoomAlias::parse(text).unwrap();
    let resolved = world.run(directory::resolve_alias(&b, &alias("#room:a.example"))).unwrap();
    assert_eq!(resolved, (room, via(&["a.example"])));
    let error = world.run(directory::resolve_alias(&b, &alias("#other:a.example"))).unwrap_err();
    assert_eq!((error.status.as_u16(), error.errcode), (404, "M_NOT_FOUND"));
    let error = world.run(directory::resolve_alias(&b, &alias("#room:nowhere.example"))).unwrap_err();
    assert_eq!(error.status, 502);
    let profile = world.run(directory::profile(&b, &alice)).unwrap();
    assert_eq!(profile.to_text(), r#"{"displayname":"alice"}"#);
    let nobody = UserId::parse("@nobody:a.example").unwrap();
    assert_eq!(world.run(directory::profile(&b, &nobody)).unwrap_err().errcode, "M_NOT_FOUND");
}

#[test]
fn two_servers_that_hear_each_other_but_no_answers_pause() {
    let world = World::new();
    let (a, b) = (world.server("a.example"), world.server("b.example"));
    let (alice, bob) = (a.user(&world, "alice"), b.user(&world, "bob"));
    let room = a.public_room(&world, &alice, "12");
    join(&world, &b, &bob, &room, &["a.example"]);
    world.lose_answers("a.example", "b.example");
    let sent = {
        let world = world.clone();
        move || world.traffic().iter().filter(|sent| sent.line.contains("/send/")).count()
    };
    let before = sent();
    // So that a test that fails ends.
    let (count, mended) = (sent.clone(), world.clone());
    world.tap(Rc::new(move |passing| {
        if count() > before + 400 {
            mended.mend("a.example", "b.example");
        }
        Box::pin(async move { Ok((passing.host)(passing.request).await) })
    }));
    let said = [a.say(&world, &room, &alice, "to b"), b.say(&world, &room, &bob, "to a")];
    for _ in 0..10 {
        world.settle();
        world.advance(60_000);
        world.run(a.scheduled());
        world.run(b.scheduled());
    }
    assert!(a.shows(said[1].event_id().as_str()) && b.shows(said[0].event_id().as_str()));
    let tried = sent() - before;
    assert!((4..=40).contains(&tried), "{tried} transactions in ten minutes");
    // When the answers come through, all is well again.
    world.mend("a.example", "b.example");
    world.advance(3_600_000);
    world.run(a.scheduled());
    world.run(b.scheduled());
    world.settle();
    let last = sent();
    a.say(&world, &room, &alice, "again");
    world.settle();
    assert_eq!(sent(), last + 1);
}
