//! What strangers can write: every table is looked at, and holds no more than is said here that a flood may leave in it.
//!
//! A stranger is a server that is in no room of ours. It can sign requests, in any number of names, and it can be asked for what
//! it cites.

use std::{collections::BTreeMap, rc::Rc};

use serde_json::{Value, json};
use verge::{
    federation::outbound::membership,
    matrix::{
        identifiers::{RoomId, UserId},
        json::Object,
    },
    program::Program,
    server::{Caches, Server},
};

use crate::{
    Scene, accepted,
    common::{
        network::{Homeserver, World},
        peer::{Peer, PeerRoom, encode, event_id, request},
        sqlite::Sqlite,
    },
    scene,
};

/// The most rows and bytes that `strangers` may leave in a table, whatever they send.
fn bound(table: &str, strangers: u64) -> (u64, u64) {
    match table {
        // A row each that is always there.
        "streams" | "walks" => (0, 100),
        "passing_keys" => (8 * strangers, 8 * strangers * 800),
        // What a notary passes on: what a server publishes now, and what it published before.
        "key_responses" => (2 * strangers.min(4_096), 2 * 17_000 * strangers.min(4_096)),
        "well_known" => (16_384, 16_384 * 600),
        // Eight answers of 50 PDUs, each with an ID and a sentence.
        "transactions" => (8 * strangers, 8 * strangers * 16_384),
        // 20 PDUs and 256 KB of a server, all that goes with them included; 200 and 2 MB in a room.
        "staged_pdus" => ((20 * strangers).min(200), (300_000 * strangers).min(2_500_000)),
        // 500 of a server in a room, without their content, with the IDs of at most 20 events before each.
        "rejected_events" => ((500 * strangers).min(5_000), (500 * 2_000 * strangers).min(5_000 * 2_000)),
        // 300 invites of a user, 16 MB of a server; and 300 that gave way to others.
        "local_memberships" => (600, (16 * 1024 * 1024 * strangers).min(300 * (3 * 65_536))),
        // Accepted events write there, and local users, or we do for their sake: strangers do not. Whoever lets them into a
        // table says here what bounds it.
        _ => (0, 0),
    }
}

/// The rows and bytes of every table.
pub(crate) fn sizes(server: &Homeserver) -> BTreeMap<String, (u64, u64)> {
    let database = &server.database;
    let tables = database.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'");
    let size = |table: &String| {
        let columns = database.rows(&format!("SELECT name FROM pragma_table_info('{table}')"));
        let lengths = columns.iter().map(|column| format!("COALESCE(length(CAST({} AS BLOB)), 0)", column[0]));
        let bytes = lengths.collect::<Vec<_>>().join(" + ");
        let row = database.rows(&format!("SELECT count(*), COALESCE(SUM({bytes}), 0) FROM {table}"));
        (row[0][0].parse().unwrap(), row[0][1].parse().unwrap())
    };
    tables.iter().map(|table| (table[0].clone(), size(&table[0]))).collect()
}

/// How many PDUs of a transaction were refused, by its answer.
pub(crate) fn refused(answer: &Value) -> usize {
    answer["pdus"].as_object().unwrap().values().filter(|result| result["error"].is_string()).count()
}

fn strangers(scene: &Scene, count: usize) -> Vec<Rc<Peer>> {
    (0..count).map(|n| Peer::new(&scene.world, &format!("s{n}.evil.example"))).collect()
}

/// An invite of Alice by the stranger, to a room of its own; `number` tells it from others.
fn invite(scene: &Scene, stranger: &Peer, number: usize, topic: &str) -> (u16, Value) {
    invite_user(scene, stranger, &scene.alice, number, topic)
}

fn invite_user(scene: &Scene, stranger: &Peer, user: &UserId, number: usize, topic: &str) -> (u16, Value) {
    let room_id = format!("!r{number}:{}", stranger.name);
    let invite = json!({
        "type": "m.room.member", "state_key": user.as_str(), "sender": stranger.user("mallory"),
        "room_id": room_id, "origin_server_ts": 1, "depth": 5, "auth_events": ["$auth"], "prev_events": ["$previous"],
        "content": { "membership": "invite" },
    });
    let invite = stranger.sign("11", invite).1;
    let topic = json!({
        "type": "m.room.topic", "state_key": "", "sender": stranger.user("mallory"), "content": { "topic": topic },
        "unsigned": { "padding": topic }, "signatures": { "padding": topic },
    });
    let target = format!("/_matrix/federation/v2/invite/{}/{}", encode(&room_id), encode(&event_id("11", &invite)));
    let body = json!({ "room_version": "11", "event": invite, "invite_room_state": [topic] });
    stranger.put(&scene.a, &target, &body)
}

/// An EDU of the stranger about its own user, of one kind or another.
fn edu(scene: &Scene, stranger: &Peer, n: usize) -> Value {
    let (user, room) = (stranger.user(&format!("u{n}")), scene.room.as_str());
    let receipt = json!({ "event_ids": ["$event"], "data": { "ts": 1 } });
    let messages = [
        json!({}),
        json!({ scene.alice.as_str(): { format!("NONE{n}"): {} } }),
        json!({ "@nobody:a.example": { "*": { "n": n } } }),
    ];
    let (edu_type, content) = match n % 6 {
        0 => ("m.typing", json!({ "room_id": room, "user_id": user, "typing": true })),
        1 => ("m.receipt", json!({ room: { "m.read": { &user: receipt } } })),
        2 => ("m.presence", json!({ "push": [{ "user_id": user, "presence": "online" }] })),
        3 => ("m.device_list_update", json!({ "user_id": user, "device_id": "D", "stream_id": n, "prev_id": [] })),
        4 => ("m.signing_key_update", json!({ "user_id": user })),
        _ => {
            let messages = &messages[n / 6 % 3];
            let id = format!("m{n}");
            ("m.direct_to_device", json!({ "sender": user, "type": "m.test", "message_id": id, "messages": messages }))
        }
    };
    json!({ "edu_type": edu_type, "content": content })
}

#[test]
fn every_table_is_bounded() {
    let scene = scene("11");
    let before = sizes(&scene.a);
    let shown = accepted(&scene.a);
    let strangers = strangers(&scene, 3);
    let long = "x".repeat(30_000);
    for (s, stranger) in strangers.iter().enumerate() {
        let mallory = stranger.user("mallory");
        // Requests that are not theirs to sign, in names with keys and in names without.
        let target = "/_matrix/federation/v1/event/$x";
        for n in 0..30 {
            let header = stranger.authorization("GET", target, "a.example", None);
            let forged = header.replace(&stranger.name, &format!("u{s}-{n}.evil.example"));
            let other_key = header.replace("ed25519:peer", &format!("ed25519:{n}"));
            for header in [&forged, &other_key] {
                let response = scene.world.run(scene.a.handle(request(http::Method::GET, target, &[header], "")));
                assert_eq!(response.status(), 401);
            }
        }
        // What they have no business to say in Alice's room: of it some can be judged, and some cites what nobody has;
        // and of rooms of which we know nothing.
        let event = |n: usize, kind: usize| {
            let content = json!({ "body": format!("{n} {long}") });
            let fields = json!({ "type": "m.room.message", "content": content });
            let mut draft = scene.theirs.draft(scene.world.now_ms(), &mallory, fields);
            match kind {
                0 => {}
                1 => draft["prev_events"] = json!([format!("${}", "p".repeat(40 + n % 3)), format!("$p{n}")]),
                _ => draft["room_id"] = json!(format!("!r{n}:{}", stranger.name)),
            }
            stranger.sign("11", draft).1
        };
        for n in 0..60 {
            let pdus: Vec<Value> = (0..12).map(|i| event(12 * n + i, i % 3)).collect();
            let (status, answer) = stranger.send(&scene.a, &format!("{n}{}", "t".repeat(200)), &pdus);
            assert_eq!(status, 200, "{answer}");
        }
        // And EDUs, which concern nobody.
        for n in 0..5 {
            let edus: Vec<Value> = (0..100).map(|i| edu(&scene, stranger, 100 * n + i)).collect();
            let body = json!({ "origin": stranger.name, "origin_server_ts": 1, "pdus": [], "edus": edus });
            let (status, answer) = stranger.put(&scene.a, &format!("/_matrix/federation/v1/send/edus{n}"), &body);
            assert_eq!(status, 200, "{answer}");
        }
        for n in 0..150 {
            let (status, answer) = invite(&scene, stranger, n, &long);
            assert!(status == 200 || answer["errcode"] == "M_FORBIDDEN", "{answer}");
        }
        scene.world.settle();
    }
    let mut touched = Vec::new();
    for (table, after) in sizes(&scene.a) {
        let grown = (after.0.saturating_sub(before[&table].0), after.1.saturating_sub(before[&table].1));
        let bound = bound(&table, 3);
        assert!(grown.0 <= bound.0 && grown.1 <= bound.1, "{table} grew by {grown:?}, which is more than {bound:?}");
        if grown.0 > 0 {
            touched.push(table);
        }
    }
    let expected = [
        "key_responses",
        "local_memberships",
        "passing_keys",
        "rejected_events",
        "staged_pdus",
        "transactions",
        "well_known",
    ];
    assert_eq!(touched, expected);
    // Nothing of it counts, but the invites.
    let is_room = |index: usize| ![3, 6].contains(&index);
    let of_rooms = |all: Vec<Vec<Vec<String>>>| -> Vec<Vec<Vec<String>>> {
        all.into_iter().enumerate().filter(|(index, _)| is_room(*index)).map(|(_, rows)| rows).collect()
    };
    assert_eq!(of_rooms(accepted(&scene.a)), of_rooms(shown));
}

#[test]
fn keys_of_members_are_kept() {
    let scene = scene("11");
    let servers = |table: &str| scene.a.database.rows(&format!("SELECT DISTINCT server FROM {table}")).concat();
    // Bob's join is an event of the room.
    assert_eq!(servers("server_keys"), ["peer.example"]);
    let stranger = &strangers(&scene, 1)[0];
    stranger.get(&scene.a, "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.example");
    assert_eq!(servers("server_keys"), ["peer.example"]);
    assert!(servers("passing_keys").contains(&stranger.name));
}

/// A server whose writes fail is ended, and what takes its place may have its memory.
#[test]
fn keys_that_were_not_written_in_the_end_are_written_by_the_successor() {
    let world = World::new();
    let config = world.server("a.example").config.clone();
    let peer = Peer::new(&world, "peer.example");
    let keys_after_a_transaction = |caches: Caches| {
        let database = Sqlite::in_memory();
        let platform = world.platform("a.example", database.clone());
        let server = Rc::new(Program::from(Server::with_caches(config.clone(), platform, caches)));
        assert_eq!(peer.send(&Homeserver { server, database: database.clone() }, "t1", &[]).0, 200);
        database.rows("SELECT p.server, p.key_id, r.server FROM passing_keys AS p, key_responses AS r")
    };
    let caches = Caches::default();
    let written = keys_after_a_transaction(caches.clone());
    assert_eq!(written, [["peer.example", "ed25519:peer", "peer.example"]]);
    assert_eq!(keys_after_a_transaction(caches.for_successor()), written);
}

#[test]
fn a_server_has_a_hundred_keys_kept() {
    let scene = scene("11");
    for (peer, before) in strangers(&scene, 2).iter().zip([99, 100]) {
        // Keys that have verified events before.
        scene.a.database.rows(&format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {before}) \
             INSERT INTO server_keys (server, key_id, public_key, valid_until_ts, expired_ts, fetched_ts) \
             SELECT '{}', 'ed25519:' || n, (SELECT public_key FROM server_keys LIMIT 1), 1, 1, 1 FROM n",
            peer.name
        ));
        let mallory = peer.user("mallory");
        let mut theirs = peer.join(&scene.a, scene.room.as_str(), &mallory);
        let kept = |what: &str| {
            scene.a.database.rows(&format!("SELECT 1 FROM server_keys WHERE server = '{}'{what}", peer.name)).len()
        };
        assert_eq!((kept(""), kept(" AND key_id = 'ed25519:peer'")), (100, 100 - before));
        // Whoever has more is heard all the same.
        let (id, event) = theirs.say(peer, &mallory, "hello");
        assert_eq!(peer.send(&scene.a, "1", &[event]).0, 200);
        assert!(scene.a.shows(&id));
        assert_eq!(kept(""), 100);
    }
}

#[test]
fn a_server_in_the_room_has_so_many_bytes_of_events_that_wait() {
    let scene = scene("11");
    let other = Peer::new(&scene.world, "other.example");
    let theirs = other.join(&scene.a, scene.room.as_str(), &other.user("zoe"));
    scene.world.settle();
    // Whose previous events nobody has.
    let long = "x".repeat(60_000);
    let event = |peer: &Peer, room: &PeerRoom, user: &str, n: usize| {
        let content = json!({ "body": format!("{n} {long}") });
        let fields = json!({ "type": "m.room.message", "content": content, "prev_events": [format!("$no{n:041}")] });
        peer.sign("11", room.draft(scene.world.now_ms(), user, fields)).1
    };
    let staged = |origin: &str| -> Vec<usize> {
        let sql = "SELECT count(*), COALESCE(SUM(bytes), 0), COALESCE(SUM(length(json)), 0) FROM staged_pdus";
        let row = scene.a.database.rows(&format!("{sql} WHERE origin = '{origin}'")).remove(0);
        row.iter().map(|number| number.parse().unwrap()).collect()
    };
    let mut too_much = 0;
    for txn in 0..4 {
        let pdus: Vec<Value> = (0..40).map(|n| event(&scene.peer, &scene.theirs, &scene.bob, 40 * txn + n)).collect();
        let (status, answer) = scene.peer.send(&scene.a, &txn.to_string(), &pdus);
        assert_eq!(status, 200);
        too_much += refused(&answer);
        scene.world.settle();
    }
    let [count, bytes, length] = staged("peer.example")[..] else { panic!("three columns") };
    assert_eq!((count + too_much, bytes), (160, length));
    assert!(bytes <= 8 * 1024 * 1024 && bytes > 8 * 1024 * 1024 - 65_536, "{bytes}");
    // Another server is not concerned.
    let (_, answer) = other.send(&scene.a, "1", &[event(&other, &theirs, &other.user("zoe"), 200)]);
    assert_eq!((refused(&answer), staged("other.example")[0]), (0, 1), "{answer}");
}

#[test]
fn a_user_has_so_many_invites_that_wait_for_an_answer() {
    let scene = scene("11");
    let strangers = strangers(&scene, 4);
    let taken = |stranger: &Rc<Peer>| (0..160).filter(|n| invite(&scene, stranger, *n, "short").0 == 200).count();
    // None may have more than half, nor more than any of the others when all places are taken.
    let taken: Vec<usize> = strangers[..3].iter().map(taken).collect();
    assert_eq!(taken, [150, 149, 100]);
    let waiting =
        "SELECT outside_from, count(*) FROM local_memberships WHERE membership = 'invite' GROUP BY 1 ORDER BY 1";
    let waiting = scene.a.database.rows(waiting).concat();
    assert_eq!(waiting, ["s0.evil.example", "100", "s1.evil.example", "100", "s2.evil.example", "100"]);
    let position = || scene.a.database.rows("SELECT position FROM streams WHERE name = 'events'");
    let before = position();
    let (status, answer) = invite(&scene, &strangers[0], 150, "short");
    assert_eq!((status, answer["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{answer}");
    // Nobody's sync is woken by it.
    assert_eq!(position(), before);
    // The same one again is nothing more.
    assert_eq!(invite(&scene, &strangers[2], 7, "short").0, 200);
    assert_eq!(position(), before);
    // One that gave way has no other right to come again.
    assert_eq!(invite(&scene, &strangers[0], 0, "short").0, 403);
    assert_eq!(position(), before);
    // One that is answered makes room for another.
    let room_id = RoomId::parse("!r3:s2.evil.example").unwrap();
    scene.world.run(membership::leave(&scene.a, &scene.alice, &room_id, Object::new())).unwrap();
    assert_eq!(invite(&scene, &strangers[2], 150, "short").0, 403);
    assert_eq!(invite(&scene, &strangers[3], 0, "short").0, 200);
    assert_eq!(invite(&scene, &strangers[2], 150, "short").0, 403);
    assert_eq!(invite(&scene, &strangers[3], 1, "short").0, 200);
}

/// Below some names anybody may have one: whoever fills the zone ends no invite of those who were there before.
#[test]
fn who_fills_a_zone_ends_no_invite_of_another_in_it() {
    let scene = scene("11");
    let invites = |name: &str| invite(&scene, &Peer::new(&scene.world, name), 0, "short").0;
    assert_eq!(invites("friend.free.example"), 200);
    for n in 0..299 {
        assert_eq!(invites(&format!("s{n}.free.example")), 200);
    }
    assert_eq!((invites("late.free.example"), invites("other.example")), (403, 200));
    let ended = "SELECT outside_from FROM local_memberships WHERE membership <> 'invite' AND outside_from IS NOT NULL";
    assert_eq!(scene.a.database.rows(ended), [["s298.free.example"]]);
}

/// However many names somebody has, whoever has invited the user less often finds a place.
#[test]
fn invites_of_many_servers_together_keep_no_other_out() {
    let scene = scene("11");
    let named = |name: &str| Peer::new(&scene.world, name);
    let invites = |name: &str, count: usize| {
        let peer = named(name);
        (0..count).filter(|n| invite(&scene, &peer, *n, "short").0 == 200).count()
    };
    let pending = |name: &str| {
        let pending = "SELECT count(*) FROM local_memberships WHERE membership = 'invite' AND outside_from LIKE";
        scene.a.database.rows(&format!("{pending} '%{name}'"))[0][0].parse::<usize>().unwrap()
    };
    assert_eq!(invites("early.example", 1) + invites("other.example", 1), 2);
    // One zone, whatever its servers are called; they keep out each other no more than anybody else.
    for n in 0..200 {
        invites(&format!("s{n}.evil.example"), 2);
    }
    assert_eq!(pending(""), 300);
    let since = scene.a.database.rows("SELECT position FROM streams WHERE name = 'events'")[0][0].clone();
    assert_eq!(invites("late.example", 3), 3);
    assert_eq!((pending("late.example"), pending("evil.example"), pending("")), (3, 295, 300));
    // The oldest of a server that has most have ended, which syncs tell of.
    let ended = "SELECT room_id, invite_state FROM local_memberships WHERE membership = 'leave' AND pos >";
    let ended = scene.a.database.rows(&format!("{ended} {since} ORDER BY pos"));
    assert_eq!(ended, [50, 51, 52].map(|n| vec![format!("!r0:s{n}.evil.example"), "[]".to_owned()]));
    // Several zones have as much as each other in the end, and who had one invite still has it.
    for n in 0..9 {
        invites(&format!("many{n}.example"), 60);
    }
    assert_eq!(pending(""), 300);
    for name in ["early.example", "other.example"] {
        assert_eq!(pending(name), 1, "{name}");
    }
    let most = (0..9).map(|n| pending(&format!("many{n}.example"))).chain([pending("evil.example")]);
    assert!(most.into_iter().all(|count| (29..=30).contains(&count)));
    assert_eq!(invites("later.example", 3), 3);
}

#[test]
fn a_server_has_so_many_bytes_of_invites_that_wait_for_an_answer() {
    let scene = scene("11");
    let strangers = strangers(&scene, 2);
    let long = "x".repeat(65_000);
    let carol = scene.a.user(&scene.world, "carol");
    let invited =
        |user: &UserId| (0..150).filter(|n| invite_user(&scene, &strangers[0], user, *n, &long).0 == 200).count();
    let taken = (invited(&scene.alice), invited(&carol));
    assert!(taken.0 == 150 && (100..=110).contains(&taken.1), "{taken:?}");
    // Other servers are not concerned.
    assert_eq!(invite(&scene, &strangers[1], 0, &long).0, 200);
}

#[test]
fn invites_that_have_ended_are_forgotten() {
    let scene = scene("11");
    let stranger = &strangers(&scene, 1)[0];
    for n in 0..310 {
        assert_eq!(invite(&scene, stranger, n, "short").0, 200);
        let room_id = RoomId::parse(&format!("!r{n}:{}", stranger.name)).unwrap();
        scene.world.run(membership::leave(&scene.a, &scene.alice, &room_id, Object::new())).unwrap();
    }
    let left = scene.a.database.rows("SELECT room_id FROM local_memberships WHERE membership = 'leave' ORDER BY pos");
    assert_eq!((left.len(), left[0][0].as_str()), (300, "!r10:s0.evil.example"));
    // The room that Alice is in is not among them.
    assert_eq!(scene.a.database.rows("SELECT 1 FROM local_memberships WHERE membership = 'join'").len(), 1);
}
