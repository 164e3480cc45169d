//! Joins of rooms that are too large to be judged at once.

mod again;

use std::rc::Rc;

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use verge::{
    federation::outbound::membership,
    matrix::{
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::Object,
        state_content::Membership,
    },
    platform::{Clock, Database, Statement},
    room::Draft,
    router::json_response,
    server::Server,
};

use crate::common::{
    homeserver::object,
    large_room::LargeRoom,
    network::{Homeserver, Host, World},
    peer::Peer,
    sqlite::Sqlite,
};

/// How long one server may take.
const JOIN_MS: i64 = 10 * 60 * 1_000;

struct Large {
    world: World,
    b: Homeserver,
    bob: UserId,
    room: LargeRoom,
    room_id: RoomId,
}

fn large(members: usize) -> Large {
    Large::new(World::new(), members)
}

impl Large {
    fn new(world: World, members: usize) -> Self {
        let b = world.server("b.example");
        Self::over(world, b, members)
    }

    fn over(world: World, b: Homeserver, members: usize) -> Self {
        let bob = b.user(&world, "bob");
        let room = LargeRoom::new(&Peer::new(&world, "peer.example"), members);
        let room_id = RoomId::parse(&room.room_id).unwrap();
        Self { world, b, bob, room, room_id }
    }

    fn join(&self, server: &Server) -> Result<EventId, (u16, &'static str)> {
        self.join_via(server, &["peer.example"])
    }

    fn join_via(&self, server: &Server, via: &[&str]) -> Result<EventId, (u16, &'static str)> {
        let via = via.iter().map(|name| ServerName::parse(name).unwrap()).collect();
        let joined = self.world.run(membership::join(server, &self.bob, &self.room_id, via, Object::new()));
        joined.map_err(|error| (error.status.as_u16(), error.errcode))
    }

    fn count(&self, sql: &str) -> usize {
        self.b.database.rows(&format!("SELECT COUNT(*) FROM {sql}"))[0][0].parse().unwrap()
    }

    fn assert_nothing_left(&self) {
        for table in ["claimed_events", "large_joins", "pending_joins", "staged_pdus"] {
            assert_eq!(self.count(table), 0, "{table}");
        }
    }
}

#[test]
fn a_large_room_is_taken_over_as_a_small_one_is() {
    let mut large = large(3_000);
    let auth = large.room.auth();
    let auth: Vec<&str> = auth.iter().map(String::as_str).collect();
    // None of these is part of the state: not signed, forbidden, without what it cites, and what leads back to that.
    large.room.forge("@forged:peer.example");
    let by = "@member1:peer.example";
    let forbidden = large.room.event(by, "m.room.topic", "", json!({ "topic": "theirs" }), &auth);
    large.room.event(
        "@lost:peer.example",
        "m.room.member",
        "@lost:peer.example",
        json!({ "membership": "join" }),
        &["$unknown"],
    );
    let citing = [auth.as_slice(), &[forbidden.as_str()]].concat();
    large.room.event(
        "@late:peer.example",
        "m.room.member",
        "@late:peer.example",
        json!({ "membership": "join" }),
        &citing,
    );
    large.room.opens();
    let (before, steps) = (large.b.database.calls.get(), large.b.database.steps.get());
    let joined = large.join(&large.b).unwrap();
    let calls = large.b.database.calls.get() - before;
    let steps = (large.b.database.steps.get() - steps) / 3_010;
    large.world.settle();
    // Creation, power levels, join rules, who made it, 3,000 members, and Bob.
    assert_eq!(large.b.state(&large.world, &large.room_id).len(), 3_005);
    assert_eq!(large.b.membership(&large.world, &large.room_id, large.bob.as_str()).as_deref(), Some("join"));
    assert!(large.b.shows(joined.as_str()));
    for user in ["@forged:peer.example", "@lost:peer.example", "@late:peer.example"] {
        assert_eq!(large.b.membership(&large.world, &large.room_id, user), None, "{user}");
    }
    let servers = "SELECT server, joined FROM room_servers WHERE to_pos IS NULL ORDER BY server";
    assert_eq!(large.b.database.rows(servers), [["b.example", "1"], ["peer.example", "3001"]]);
    assert_eq!(large.b.database.wrong_member_counts(), [""; 0]);
    let rejected = large.b.database.rows("SELECT event_id, provisional FROM rejected_events WHERE provisional = 0");
    assert!(rejected.iter().any(|row| row[0] == forbidden), "{rejected:?}");
    large.assert_nothing_left();
    assert!(calls < 80, "{calls} calls");
    // What the database does for each of them does not grow with the room.
    assert!(steps < 5_000, "{steps} steps for each event");
    // Its progress is in the log.
    let logs = large.world.logs().join("\n");
    for step in ["checked", "judged", "kept"] {
        assert!(logs.contains(&format!("events of a large room are {step}")), "{logs}");
    }
    // And it is a room like any other.
    large.b.say(&large.world, &large.room_id, &large.bob, "hello");
}

/// The first server that is asked answers well, but never to the end: a byte just before each would be too late.
#[test]
fn who_drips_an_answer_does_not_keep_the_join_from_the_next_server() {
    let large = large(10);
    large.room.opens();
    large.room.opens_at(&Peer::new(&large.world, "evil.example"));
    large.world.drip("evil.example", "/v2/send_join/", 1, 119_000);
    let begun = large.world.now_ms();
    large.join_via(&large.b, &["evil.example", "peer.example"]).unwrap();
    let took = large.world.now_ms() - begun;
    assert!(took < JOIN_MS, "{took} ms");
    large.world.settle();
    large.assert_nothing_left();
}

/// Nor who sends what keeps nobody waiting for long, but goes on with it.
#[test]
fn who_sends_blanks_without_end_is_given_up() {
    let large = large(10);
    large.room.opens();
    let evil = Peer::new(&large.world, "evil.example");
    large.room.opens_at(&evil);
    let blanks = Bytes::from(" ".repeat(64 * 1_024 * 1_024));
    let host = large.world.host("evil.example").unwrap();
    large.world.connect(
        "evil.example",
        Rc::new(move |request| {
            let (host, blanks) = (Rc::clone(&host), blanks.clone());
            Box::pin(async move {
                let is_join = request.uri().path().contains("/v2/send_join/");
                if is_join { http::Response::new(blanks) } else { host(request).await }
            })
        }),
    );
    large.world.drip("evil.example", "/v2/send_join/", 64 * 1_024, 5_000);
    let begun = large.world.now_ms();
    large.join_via(&large.b, &["evil.example", "peer.example"]).unwrap();
    let took = large.world.now_ms() - begun;
    assert!(took <= JOIN_MS, "{took} ms");
}

/// Hosts that take every request and answer it when nobody waits any more.
fn tarpits(world: &World, prefix: &str, count: usize) -> Vec<String> {
    let clock = world.clone();
    let host: Host = Rc::new(move |_| {
        let clock = clock.clone();
        Box::pin(async move {
            clock.sleep(10_000).await;
            json_response(StatusCode::GATEWAY_TIMEOUT, &json!({}))
        })
    });
    let names: Vec<String> = (0..count).map(|at| format!("{prefix}{at}.example")).collect();
    names.iter().for_each(|name| world.connect(name, Rc::clone(&host)));
    names
}

/// Nor who names tens of thousands of servers that never answer, as though they were in the room.
#[test]
fn who_names_servers_that_never_answer_does_not_keep_the_join_from_the_next_server() {
    // The other dawdles besides, which takes the rest of the time that it has.
    for (pause, most) in [(None, JOIN_MS / 2 + 30_000), (Some(10_000), JOIN_MS + 30_000)] {
        let mut large = large(10);
        large.room.opens();
        for server in tarpits(&large.world, "tarpit", 40_000) {
            large.room.claim(&server);
        }
        large.room.opens_at(&Peer::new(&large.world, "evil.example"));
        if let Some(ms) = pause {
            large.world.drip("evil.example", "/v2/send_join/", 512 * 1_024, ms);
        }
        let begun = large.world.now_ms();
        large.join_via(&large.b, &["evil.example", "peer.example"]).unwrap();
        let took = large.world.now_ms() - begun;
        assert!(took <= most, "{took} ms");
        large.world.settle();
        large.assert_nothing_left();
        assert_eq!(large.b.state(&large.world, &large.room_id).len(), 15);
    }
}

/// However many there are of them, what the room stands on is checked.
#[test]
fn dead_servers_do_not_keep_us_out_of_the_room() {
    let mut large = large(10);
    for server in tarpits(&large.world, "dead", 200) {
        large.room.claim(&server);
    }
    large.room.opens();
    large.join(&large.b).unwrap();
    large.world.settle();
    assert_eq!(large.b.state(&large.world, &large.room_id).len(), 15);
    large.assert_nothing_left();
}

/// Nor does it count how much else they have sent: anybody may send that, and as many signatures as they like with it.
#[test]
fn servers_that_have_sent_much_do_not_come_before_those_of_the_room_s_rules() {
    for attempt in 0..5 {
        let mut large = large(10);
        for server in tarpits(&large.world, "dead", 40) {
            for at in 0..10 {
                large.room.claim_state(
                    &server,
                    "m.room.member",
                    &format!("@{at}:{server}"),
                    json!({ "membership": "invite" }),
                );
            }
        }
        large.room.opens_at(&Peer::new(&large.world, "resident.example"));
        let joined = large.join_via(&large.b, &["resident.example"]);
        assert!(joined.is_ok(), "{attempt}: {joined:?}");
        large.world.settle();
        assert_eq!(large.b.state(&large.world, &large.room_id).len(), 15);
    }
}

/// Members of servers that answer are not left out because those of others do not.
#[test]
fn dead_servers_keep_no_others_out_of_the_room() {
    let world = World::new();
    let b = world.server("b.example");
    let mut large = Large::over(world.clone(), b, 1_500);
    for server in tarpits(&world, "dead", 12) {
        large.room.claim(&server);
    }
    for at in 0..30 {
        large.room.member_of(&Peer::new(&world, &format!("other{at}.example")));
    }
    large.room.opens();
    large.join(&large.b).unwrap();
    world.settle();
    // Those of the room itself, the members and Bob; of the dead servers none.
    assert_eq!(large.b.state(&world, &large.room_id).len(), 1_500 + 30 + 5, "{:?}", world.logs().last());
    large.assert_nothing_left();
}

#[test]
fn a_large_room_of_a_server_on_a_slow_line_is_joined() {
    let large = large(3_000);
    large.room.opens();
    large.world.drip("peer.example", "/v2/send_join/", 8 * 1_024, 1_000);
    let begun = large.world.now_ms();
    large.join(&large.b).unwrap();
    let took = large.world.now_ms() - begun;
    assert!(took > 200_000, "{took} ms");
    large.world.settle();
    large.assert_nothing_left();
    assert_eq!(large.b.state(&large.world, &large.room_id).len(), 3_005);
}

/// Nobody waits for the rest of a state: as long as more of it comes, it may take longer than a join.
#[test]
fn the_rest_of_a_state_comes_over_a_slow_line_too() {
    let world = World::new();
    let b = world.server_over("b.example", Sqlite::in_memory(), &[("FASTER_JOINS", "on")]);
    let large = Large::over(world, b, 5_000);
    large.room.opens_in_part();
    large.world.drip("peer.example", "/v1/state/", 8 * 1_024, 1_500);
    large.join(&large.b).unwrap();
    let begun = large.world.now_ms();
    large.world.settle();
    let took = large.world.now_ms() - begun;
    assert!(took > JOIN_MS, "{took} ms");
    assert_eq!(large.b.state(&large.world, &large.room_id).len(), 5_005, "{:?}", large.world.logs());
    assert_eq!(large.world.traffic().iter().filter(|sent| sent.line.contains("/v1/state/")).count(), 1);
}

#[test]
fn others_have_their_turn_while_a_large_room_is_taken_over() {
    for members in [1_500, 5_000] {
        let world = World::new();
        // In an object, which does one thing at a time.
        world.wake_by_commits();
        let large = Large::new(world.clone(), members);
        large.room.opens();
        let before = world.pauses();
        large.join(&large.b).unwrap();
        let pauses = world.pauses() - before;
        let rows = world.most_rows();
        // An event comes with what it cites, and is forgotten in a page. How long 1,000 events are is read at once, with the first 50.
        assert!(rows.written <= 500 && rows.read <= 1_050, "{rows:?} of {members}");
        // They are parsed, checked, judged, and written.
        assert!(pauses >= 4 * members / 50, "{pauses} pauses of {members}");
        world.settle();
        large.assert_nothing_left();
        assert_eq!(large.b.state(&world, &large.room_id).len(), members + 5);
    }
}

#[test]
fn what_others_ask_of_the_database_meanwhile_does_not_count() {
    let world = World::new();
    world.wake_by_commits();
    let large = Large::new(world.clone(), 3_000);
    large.room.opens();
    let alice = large.b.user(&world, "alice");
    let room = large.b.public_room(&world, &alice, "11");
    let via = vec![ServerName::parse("peer.example").unwrap()];
    let joining = membership::join(&large.b, &large.bob, &large.room_id, via, Object::new());
    let speaking = async {
        // More than the calls of a request.
        for _ in 0..400 {
            let content = object(json!({ "msgtype": "m.text", "body": "hello" }));
            large.b.rooms.send(&room, &alice, Draft::message("m.room.message", content)).await.unwrap();
            world.pause().await;
        }
    };
    let calls = large.b.database.calls.get();
    let (joined, ()) = world.run(futures_util::future::join(joining, speaking));
    assert!(large.b.database.calls.get() - calls > 1_000);
    joined.unwrap();
    assert_eq!(large.b.membership(&world, &large.room_id, large.bob.as_str()).as_deref(), Some("join"));
}

#[test]
fn a_membership_costs_the_same_however_many_servers_have_been_in_the_room() {
    const FILL: &str = "\
        INSERT INTO room_servers (room_id, server, from_pos, to_pos, joined) \
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) \
        SELECT ?1, 's' || i || '.example', 0, 0, 0 FROM n";
    let world = World::new();
    let a = world.server("a.example");
    let room = a.public_room(&world, &a.user(&world, "alice"), "11");
    let steps_of_a_join = |name: &str| {
        let user = a.user(&world, name);
        let before = a.database.steps.get();
        a.send(&world, &room, &user, Draft::membership(user.as_str(), Membership::Join, Object::new()));
        a.database.steps.get() - before
    };
    let few = steps_of_a_join("bob");
    world.run(a.database.batch(vec![Statement::new(FILL, [room.as_str().into()])])).unwrap();
    let many = steps_of_a_join("carol");
    assert!(many < few + 2_000, "{few} steps with few servers, {many} with many");
}

#[test]
fn a_join_that_is_cut_off_again_and_again_goes_on() {
    let large = large(5_000);
    large.room.opens();
    // The request ends in the middle, as if its isolate were gone.
    assert!(large.join(&large.b.with_wall(9)).is_err());
    assert_eq!(large.count("large_joins"), 1);
    let staged = large.count("claimed_events");
    assert!((200..5_000).contains(&staged), "{staged}");
    let mut rounds = 0;
    while large.count("large_joins") > 0 {
        // Nothing of it counts before the end: there is no room, and what is kept stands nowhere.
        assert_eq!((large.count("rooms"), large.count("events WHERE NOT outlier")), (0, 0), "round {rounds}");
        assert_eq!(large.count("state_nodes"), 0);
        large.world.advance(3 * 60 * 1_000);
        let server = large.b.with_wall(17);
        large.world.run(server.sweep_large_joins(&server.meter.budget(13)));
        rounds += 1;
        assert!(rounds < 40, "{:?}", large.world.logs());
    }
    assert!(rounds > 2, "{rounds}");
    large.world.settle();
    assert_eq!(large.b.state(&large.world, &large.room_id).len(), 5_005);
    assert_eq!(large.b.membership(&large.world, &large.room_id, large.bob.as_str()).as_deref(), Some("join"));
    large.assert_nothing_left();
}

#[test]
fn a_join_that_is_given_up_leaves_nothing_behind() {
    let mut large = large(3_000);
    let auth = large.room.auth();
    let auth: Vec<&str> = auth.iter().map(String::as_str).collect();
    large.room.event("@member1:peer.example", "m.room.topic", "", json!({ "topic": "theirs" }), &auth);
    large.room.opens();
    assert!(large.join(&large.b.with_wall(9)).is_err());
    // It gets as far as that some is kept,
    for round in 0.. {
        assert!(round < 20, "{:?}", large.world.logs());
        if large.count("events") > 0 && large.count("rejected_events") > 0 {
            break;
        }
        large.world.advance(3 * 60 * 1_000);
        let server = large.b.with_wall(17);
        large.world.run(server.sweep_large_joins(&server.meter.budget(13)));
    }
    assert_eq!((large.count("large_joins"), large.count("rooms")), (1, 0));
    for table in ["citations", "server_members"] {
        assert!(large.count(table) > 0, "{table}");
    }
    // and no further for hours.
    large.world.advance(3 * 60 * 60 * 1_000);
    large.world.run(large.b.sweep_large_joins(&large.b.meter.budget(300)));
    large.assert_nothing_left();
    for table in ["events", "citations", "server_members", "rejected_events", "rooms", "state_nodes"] {
        assert_eq!(large.count(table), 0, "{table}");
    }
}

#[test]
fn a_large_answer_that_is_no_room_leaves_nothing_behind() {
    let mut large = large(3_000);
    // Bob is banned from it.
    let auth = large.room.auth();
    let creator = large.room.creator.clone();
    let auth = [auth[0].as_str(), auth[1].as_str(), creator.as_str()];
    let admin = "@admin:peer.example";
    let content = json!({ "membership": "ban" });
    large.room.event(admin, "m.room.member", large.bob.as_str(), content, &auth);
    large.room.opens();
    assert!(large.join(&large.b).is_err());
    large.world.settle();
    large.assert_nothing_left();
    for table in ["events", "rooms", "state_nodes", "timeline", "local_memberships"] {
        assert_eq!(large.count(table), 0, "{table}");
    }
}

/// Their client shows the invite as long as the join goes on.
#[test]
fn who_declines_an_invite_while_their_join_is_under_way_is_not_in_the_room() {
    // While the answer is still to be read, and when it is staged.
    for is_read in [0, 1] {
        let large = large(5_000);
        large.room.opens();
        large.room.invites(&large.b, large.bob.as_str());
        assert!(large.join(&large.b.with_wall(9)).is_err());
        while large.count("large_joins WHERE is_read") < is_read {
            large.world.advance(5 * 60 * 1_000);
            let server = large.b.with_wall(17);
            large.world.run(server.sweep_large_joins(&server.meter.budget(13)));
        }
        large.world.run(membership::leave(&large.b.server, &large.bob, &large.room_id, Object::new())).unwrap();
        let mut rounds = 0;
        while large.count("large_joins") > 0 {
            large.world.advance(5 * 60 * 1_000);
            large.world.run(large.b.sweep_large_joins(&large.b.meter.budget(300)));
            rounds += 1;
            assert!(rounds < 10, "{:?}", large.world.logs());
        }
        large.world.settle();
        let membership = "SELECT membership FROM local_memberships";
        assert_eq!((large.b.database.rows(membership), large.count("rooms")), (vec![vec!["leave".to_owned()]], 0));
        large.assert_nothing_left();
    }
}

/// Nor does it help whoever is at it that they have begun.
#[test]
fn who_declines_an_invite_while_their_join_is_at_work_is_not_in_the_room() {
    let large = large(3_000);
    large.room.opens();
    large.room.invites(&large.b, large.bob.as_str());
    // It is read for some minutes.
    large.world.drip("peer.example", "/v2/send_join/", 8 * 1_024, 1_000);
    let via = vec![ServerName::parse("peer.example").unwrap()];
    let joining = membership::join(&large.b, &large.bob, &large.room_id, via, Object::new());
    let leaving = async {
        while large.count("large_joins") == 0 {
            large.world.sleep(1_000).await;
        }
        membership::leave(&large.b, &large.bob, &large.room_id, Object::new()).await.unwrap();
    };
    let (joined, _) = large.world.run(futures_util::future::join(joining, leaving));
    assert_eq!(joined.unwrap_err().status, StatusCode::FORBIDDEN);
    large.world.advance(5 * 60 * 1_000);
    large.world.run(large.b.sweep_large_joins(&large.b.meter.budget(300)));
    large.world.settle();
    let membership = "SELECT membership FROM local_memberships";
    assert_eq!((large.b.database.rows(membership), large.count("rooms")), (vec![vec!["leave".to_owned()]], 0));
    large.assert_nothing_left();
}
