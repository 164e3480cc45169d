//! What the scheduled trigger sees to: whoever has not had all of the outbox, and what is too old to be kept.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    rc::Rc,
};

use futures_util::future::select;
use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    matrix::{
        identifiers::{RoomId, UserId},
        json::Object,
        state_content::Membership,
    },
    platform::Clock,
    room::Draft,
    router::json_response,
};

use crate::common::network::{Homeserver, World};

/// What a Worker may ask of D1 in one event.
const MOST_CALLS: u64 = 1_000;

const HOUR_MS: i64 = 3_600_000;

struct Room {
    world: World,
    a: Homeserver,
    alice: UserId,
    room: RoomId,
}

fn room() -> Room {
    let world = World::new();
    let a = world.server("a.example");
    let alice = a.user(&world, "alice");
    let room = a.public_room(&world, &alice, "12");
    Room { world, a, alice, room }
}

impl Room {
    /// From now on users of these servers are in the room.
    fn fill(&self, servers: impl IntoIterator<Item = String>) {
        self.fill_room(&self.room, servers);
    }

    fn fill_room(&self, room: &RoomId, servers: impl IntoIterator<Item = String>) {
        for server in servers {
            let sql = format!(
                "INSERT INTO room_servers (room_id, server, from_pos, joined) \
                 SELECT '{room}', '{server}', position, 1 FROM streams WHERE name = 'outbox'",
            );
            self.a.database.rows(&sql);
        }
    }

    fn say(&self, body: &str) {
        self.a.say(&self.world, &self.room, &self.alice, body);
    }

    /// A minute passes; how many calls to the database the scheduled trigger makes then.
    fn minute(&self) -> u64 {
        self.world.advance(60_000);
        let before = self.a.database.calls.get();
        self.world.run(self.a.scheduled());
        self.world.settle();
        self.a.database.calls.get() - before
    }

    /// A day passes, at whose end an hour begins.
    fn day(&self) {
        self.world.advance(24 * HOUR_MS - self.world.now_ms() % HOUR_MS - 60_000);
        self.minute();
    }

    fn count(&self, sql: &str) -> i64 {
        self.a.database.rows(sql)[0][0].parse().unwrap()
    }
}

/// Answers everything with 200 after `ms`, and notes when transactions came.
fn slow(world: &World, host: &str, ms: u32) -> Rc<RefCell<Vec<i64>>> {
    let came: Rc<RefCell<Vec<i64>>> = Rc::default();
    let (notes, clock) = (Rc::clone(&came), world.clone());
    world.connect(
        host,
        Rc::new(move |request| {
            let (notes, clock) = (Rc::clone(&notes), clock.clone());
            Box::pin(async move {
                if !request.uri().path().contains("/v1/send/") {
                    return json_response(StatusCode::NOT_FOUND, &json!({}));
                }
                notes.borrow_mut().push(clock.now_ms());
                clock.sleep(ms).await;
                json_response(StatusCode::OK, &json!({ "pdus": {} }))
            })
        }),
    );
    came
}

#[test]
fn a_local_event_costs_what_its_room_is_and_not_what_the_server_holds() {
    let cost = |others: usize| {
        let scene = room();
        scene.fill((0..5).map(|n| format!("s{n}.example")));
        (0..5).for_each(|n| drop(slow(&scene.world, &format!("s{n}.example"), 1)));
        let sql = format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {others}) \
             INSERT INTO room_servers (room_id, server, from_pos, joined) \
             SELECT '!r' || (n / 20) || ':other.example', 's' || (n % 20) || '.example', 0, 1 FROM n"
        );
        scene.a.database.rows(&sql);
        let sql = format!(
            "WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {others} / 20) \
             INSERT INTO rooms (room_id, room_version, version, extremities, state, latest_pos, outbox_pos) \
             SELECT '!r' || n || ':other.example', '12', 1, '[]', '', 0, 0 FROM n"
        );
        scene.a.database.rows(&sql);
        scene.say("first");
        scene.world.settle();
        let steps = |work: &dyn Fn()| {
            let before = scene.a.database.steps.get();
            work();
            scene.a.database.steps.get() - before
        };
        let event = steps(&|| {
            scene.say("second");
            scene.world.settle();
        });
        // The second one, as the first looks at the outbox from its beginning.
        scene.minute();
        let sweep = steps(&|| {
            scene.minute();
        });
        (event, sweep)
    };
    let (few, many) = (cost(100), cost(20_000));
    assert!(many.0 < few.0 * 11 / 10, "a local event: {few:?}, {many:?}");
    assert!(many.1 < few.1 * 11 / 10, "the scheduled trigger: {few:?}, {many:?}");
}

#[test]
fn everybody_has_a_turn_within_the_calls_of_an_event() {
    let scene = room();
    scene.fill((0..600).map(|n| format!("s{n}.example")));
    scene.say("hello");
    scene.world.settle();
    let tried = || scene.count("SELECT count(*) FROM destinations WHERE failures > 0");
    let mut minutes = 0;
    while tried() < 600 {
        let calls = scene.minute();
        assert!(calls < MOST_CALLS, "{calls} calls");
        minutes += 1;
        assert!(minutes < 60, "{} of 600 had a turn in an hour", tried());
    }
    // And so it goes on: who waits for longest comes first.
    let turns = || scene.a.database.rows("SELECT destination, failures FROM destinations");
    let before: BTreeMap<String, i64> =
        turns().into_iter().map(|row| (row[0].clone(), row[1].parse().unwrap())).collect();
    for _ in 0..20 {
        let calls = scene.minute();
        assert!(calls < MOST_CALLS, "{calls} calls");
    }
    for row in turns() {
        assert!(row[1].parse::<i64>().unwrap() > before[&row[0]], "{} had no further turn in 20 minutes", row[0]);
    }
    // Nobody who was away is forgotten for it.
    let came: Vec<_> = (0..600).map(|n| slow(&scene.world, &format!("s{n}.example"), 1)).collect();
    for _ in 0..61 {
        scene.minute();
    }
    assert!(came.iter().all(|came| came.borrow().len() == 1));
    assert_eq!(scene.count("SELECT count(*) FROM destinations WHERE behind"), 0);
    assert_eq!(scene.count("SELECT count(*) FROM outbox"), 0);
}

#[test]
fn who_takes_long_keeps_nobody_waiting() {
    let scene = room();
    let slow_ones: Vec<_> = (0..6).map(|n| slow(&scene.world, &format!("slow{n}.example"), 20_000)).collect();
    let last = slow(&scene.world, "z.example", 1);
    scene.fill((0..6).map(|n| format!("slow{n}.example")).chain(["z.example".to_owned()]));
    // Nothing is sent at once.
    let room_id = &scene.room;
    for n in 0..500 {
        let content = crate::common::homeserver::object(json!({ "body": n }));
        let draft = Draft::message("m.room.message", content);
        scene.world.run(scene.a.rooms.send(room_id, &scene.alice, draft)).unwrap();
    }
    let begun = scene.world.now_ms();
    scene.world.run(scene.a.scheduled());
    let waited = last.borrow()[0] - begun;
    assert!(waited <= 60_000, "{waited} ms");
    // They have had ten transactions each all the same, some of them later.
    for _ in 0..10 {
        scene.minute();
    }
    for came in slow_ones {
        assert_eq!(came.borrow().len(), 10);
    }
    assert_eq!(scene.count("SELECT count(*) FROM destinations WHERE behind"), 0);
}

/// Ten servers answer, but each after 55 s, and their names come first: what is said reaches the others in time nevertheless, that is
/// within the 30 s for which work may go on after an answer.
#[test]
fn who_takes_long_and_has_an_early_name_keeps_nobody_waiting() {
    let scene = room();
    let names: Vec<String> = ('a'..='j').map(|letter| format!("0{letter}.evil")).collect();
    let slow_ones: Vec<_> = names.iter().map(|name| slow(&scene.world, name, 55_000)).collect();
    let last = slow(&scene.world, "z.example", 1);
    scene.fill(names.into_iter().chain(["z.example".to_owned()]));
    scene.say("how long each takes is not known yet");
    scene.world.settle();
    assert_eq!(last.borrow().len(), 1);
    for n in 1..=10 {
        let begun = scene.world.now_ms();
        scene.say("hello");
        scene.world.settle();
        let waited = last.borrow()[n] - begun;
        assert!(waited < 30_000, "{waited} ms, the {n}th time");
    }
    // They are not left out for it.
    assert!(slow_ones.iter().all(|came| came.borrow().len() == 11));
}

/// Nobody comes first by a name.
#[test]
fn who_is_sent_to_first_is_drawn() {
    let scene = room();
    let names: Vec<String> = (0..20).map(|n| format!("s{n:02}.example")).collect();
    let came: Vec<_> = names.iter().map(|name| slow(&scene.world, name, 1)).collect();
    scene.fill(names);
    let mut first = BTreeSet::new();
    for n in 0..10 {
        scene.say("hello");
        scene.world.settle();
        let at = |came: &Rc<RefCell<Vec<i64>>>| came.borrow()[n];
        let earliest = came.iter().map(at).min();
        first.extend(came.iter().enumerate().filter(|(_, came)| Some(at(came)) == earliest).map(|(n, _)| n));
    }
    assert!(first.len() > 10, "{first:?}");
}

#[test]
fn what_a_cut_off_event_left_is_sent_by_the_trigger() {
    let scene = room();
    let came = slow(&scene.world, "b.example", 1);
    scene.fill(["b.example".to_owned()]);
    // The event that commits is cut off before anything is sent, over and over.
    for n in 0..3 {
        let content = crate::common::homeserver::object(json!({ "body": n }));
        let draft = Draft::message("m.room.message", content);
        scene.world.run(scene.a.rooms.send(&scene.room, &scene.alice, draft)).unwrap();
        assert_eq!(came.borrow().len(), n);
        scene.minute();
        assert_eq!(came.borrow().len(), n + 1);
    }
}

#[test]
fn the_lease_of_who_was_cut_off_while_sending_runs_out() {
    let mut scene = room();
    let came = slow(&scene.world, "b.example", 50_000);
    scene.fill(["b.example".to_owned()]);
    let content = crate::common::homeserver::object(json!({ "body": "under a lease" }));
    let draft = Draft::message("m.room.message", content);
    scene.world.run(scene.a.rooms.send(&scene.room, &scene.alice, draft)).unwrap();
    let (program, world) = (scene.a.server.clone(), scene.world.clone());
    scene.world.run(async {
        let sending = pin!(program.scheduled());
        let begun = pin!(async {
            while came.borrow().is_empty() {
                world.sleep(1).await;
            }
        });
        select(sending, begun).await;
    });
    scene.world.end();

    let came = slow(&scene.world, "b.example", 1);
    scene.a = scene.world.server_over("a.example", scene.a.database.clone(), &[]);
    scene.minute();
    assert_eq!(came.borrow().len(), 0, "it may still be sending");
    scene.minute();
    assert_eq!(came.borrow().len(), 1);
}

/// Who leaves begins no sending that the calls for it could end midway.
#[test]
fn a_departure_is_told_by_the_queue() {
    let scene = room();
    let bob = scene.a.user(&scene.world, "bob");
    let join = Draft::membership(bob.as_str(), Membership::Join, Object::new());
    scene.world.run(scene.a.rooms.send(&scene.room, &bob, join)).unwrap();
    scene.minute();
    let names: Vec<String> = (0..45).map(|n| format!("s{n}.example")).collect();
    let came: Vec<_> = names.iter().map(|name| slow(&scene.world, name, 1)).collect();
    scene.fill(names);
    let own = &scene.a.config.server_name;
    scene.world.run(scene.a.store.deactivate(own, &bob, false, scene.world.now_ms())).unwrap();
    scene.minute();
    assert_eq!(scene.count("SELECT count(*) FROM departures"), 0);
    assert_eq!(scene.count("SELECT count(*) FROM destinations WHERE lease_owner IS NOT NULL"), 0);
    assert!(!scene.world.logs().iter().any(|log| log.contains("used up")), "{:?}", scene.world.logs());
    scene.minute();
    assert!(came.iter().all(|came| came.borrow().len() == 1), "all have heard of it, once");
}

#[test]
fn what_is_old_is_forgotten_a_slice_at_a_time() {
    let scene = room();
    let database = &scene.a.database;
    let now = scene.world.now_ms();
    let (old, new) = (now - 30 * 24 * HOUR_MS, now - HOUR_MS);
    let numbers = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 10000)";
    // Every seventh is new.
    let ts = format!("CASE n % 7 WHEN 0 THEN {new} ELSE {old} END");
    for insert in [
        format!(
            "INSERT INTO client_transactions SELECT '@u' || (n % 9), 'D' || (n % 3), 'send', n, '$e' || n, {ts} FROM n"
        ),
        "INSERT INTO outbox SELECT n, '!gone:a.example', n, NULL FROM n".to_owned(),
        format!(
            "INSERT INTO pending_joins SELECT '!p' || n || ':b.example', 'id', '12', {ts}, '@bob:b.example', 0 FROM n"
        ),
    ] {
        database.rows(&format!("{numbers} {insert}"));
    }
    database.rows("UPDATE streams SET position = 10000 WHERE name = 'outbox'");
    database.most_changed.set(0);
    for _ in 0..130 {
        let calls = scene.minute();
        assert!(calls < MOST_CALLS, "{calls} calls");
    }
    assert!(database.most_changed.get() <= 1_000, "{} rows at once", database.most_changed.get());
    assert_eq!(scene.count("SELECT count(*) FROM client_transactions"), 1_428);
    assert_eq!(scene.count("SELECT count(*) FROM outbox"), 0);
    // Those are over for an hour.
    assert_eq!(scene.count("SELECT count(*) FROM pending_joins"), 0);
}

/// Whatever the tables take, the outbox goes as fast as it comes, and uploads that never came to an end.
#[test]
fn full_tables_keep_nothing_else_from_being_forgotten() {
    let scene = room();
    let database = &scene.a.database;
    let now = scene.world.now_ms() + 24 * HOUR_MS;
    let numbers =
        |count: usize| format!("WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})");
    for values in [
        format!("client_transactions SELECT '@u:a.example', 'D', 'send', n, '$e' || n, {now} FROM n"),
        format!("sent_to_device SELECT '@u:a.example', 'D', 'm.test', n, {now} FROM n"),
        format!("received_to_device SELECT 'b.example', n, {now} FROM n"),
        format!("registrations SELECT n, {now} FROM n"),
        format!(
            "pending_knocks SELECT '@u:a.example', '!r' || n || ':b.example', 'k', '12', {now}, NULL, NULL, NULL FROM n"
        ),
        format!("typing SELECT '!r:a.example', '@u' || n || ':a.example', {now}, -n FROM n"),
        format!(
            "presence SELECT '@u' || n || ':b.example', 'online', NULL, {now}, 1, '[]', -n, NULL, NULL, NULL, NULL, NULL, NULL FROM n"
        ),
    ] {
        database.rows(&format!("{} INSERT INTO {values}", numbers(10_000)));
    }
    scene.day();
    // What comes is swept in the last minute of an hour.
    for _ in 0..58 {
        scene.minute();
    }
    let outbox = || scene.count("SELECT count(*) FROM outbox");
    let end = || scene.count("SELECT position FROM streams WHERE name = 'outbox'");
    let before = outbox();
    for hour in 0..3 {
        let from = end();
        database.rows(&format!(
            "{} INSERT INTO outbox SELECT n + {from}, '!gone:a.example', n, NULL FROM n",
            numbers(15_000)
        ));
        database.rows("UPDATE streams SET position = position + 15000 WHERE name = 'outbox'");
        database.rows(&format!(
            "INSERT INTO local_media (media_id, user_id, created_ts, until_ts) VALUES ('m{hour}', '@u:a.example', 1, 2)"
        ));
        for _ in 0..60 {
            let calls = scene.minute();
            assert!(calls < MOST_CALLS, "{calls} calls");
        }
        assert_eq!(scene.count("SELECT count(*) FROM local_media"), 0, "in hour {hour}");
        assert!(outbox() <= before, "{} rows of the outbox, in hour {hour}", outbox());
    }
    assert_eq!(database.rows("SELECT name FROM walks WHERE name LIKE '%_left'"), [[""; 1]; 0]);
}

/// The newest events of rooms in which a server is away are many, and they stay.
#[test]
fn what_is_kept_of_the_outbox_is_looked_through_a_slice_an_hour() {
    let scene = room();
    let database = &scene.a.database;
    scene.fill(["dead.example".to_owned()]);
    scene.say("hello");
    scene.world.settle();
    // As if each of them were a room of its own.
    let columns = database.rows("SELECT name FROM pragma_table_info('rooms')").concat();
    let like = |own: &str, number: &str| {
        let of = |column: &String| match column.as_str() {
            "room_id" => format!("'!r' || {number} || ':a.example'"),
            "outbox_pos" => number.to_owned(),
            _ => format!("r.{column}"),
        };
        let values: Vec<String> = columns.iter().map(of).collect();
        format!("INSERT INTO rooms SELECT {} FROM n CROSS JOIN rooms AS r WHERE r.room_id = '{own}'", values.join(", "))
    };
    let numbers = "WITH RECURSIVE n(n) AS (SELECT 100 UNION ALL SELECT n + 1 FROM n WHERE n < 9099)";
    for insert in [
        like(scene.room.as_str(), "n"),
        "INSERT INTO outbox SELECT n, '!r' || n || ':a.example', n, NULL FROM n".to_owned(),
        "INSERT INTO room_servers (room_id, server, from_pos, joined) \
         SELECT '!r' || n || ':a.example', 'dead.example', 0, 1 FROM n"
            .to_owned(),
    ] {
        database.rows(&format!("{numbers} {insert}"));
    }
    database.rows("UPDATE streams SET position = 9099 WHERE name LIKE 'outbox%'");
    database.rows(
        "UPDATE destinations SET behind = 1, cursor = 0, txn_id = 'x', txn_ts = 0 WHERE destination LIKE 'dead%'",
    );
    let hour = || {
        scene.world.advance(HOUR_MS - scene.world.now_ms() % HOUR_MS - 60_000);
        scene.minute()
    };
    scene.day();
    assert_eq!(scene.count("SELECT count(*) FROM outbox WHERE pos >= 100"), 9_000);
    let (second, third) = (hour(), hour());
    database.rows("DELETE FROM outbox WHERE pos >= 100");
    let without = hour();
    assert!(second <= without && third <= without, "{second}, {third} and {without} calls");
    // What is of no use any more is found all the same.
    database.rows(&format!("{numbers} INSERT INTO outbox SELECT n, '!gone:a.example', n, NULL FROM n"));
    for _ in 0..10 {
        hour();
    }
    assert_eq!(scene.count("SELECT count(*) FROM outbox WHERE pos >= 100"), 0);
    // Where many rooms have news each hour, what they had before goes as fast as it comes.
    for n in 1..=5 {
        let pos = format!("(n + {n} * 100000)");
        database.rows(&format!("{numbers} INSERT INTO outbox SELECT {pos}, '!r' || n || ':a.example', n, NULL FROM n"));
        database.rows(&format!(
            "{numbers} UPDATE rooms SET outbox_pos = {pos} FROM n WHERE room_id = '!r' || n || ':a.example'"
        ));
        database.rows(&format!("UPDATE streams SET position = {n} * 100000 + 9099 WHERE name LIKE 'outbox%'"));
        hour();
    }
    let kept = scene.count("SELECT count(*) FROM outbox WHERE pos >= 100");
    assert!(kept <= 19_000, "{kept}");
}

/// A server that never answers holds the outbox of no room for ever; when it is back, it hears of the rooms that it is in.
#[test]
fn what_one_server_has_not_heard_for_a_month_is_not_kept_for_it() {
    let scene = room();
    let other = scene.a.public_room(&scene.world, &scene.alice, "12");
    let quiet = scene.a.public_room(&scene.world, &scene.alice, "12");
    let came = slow(&scene.world, "up.example", 1);
    for (room, server) in [(&scene.room, "dead.example"), (&quiet, "dead.example"), (&other, "up.example")] {
        scene.fill_room(room, [server.to_owned()]);
    }
    scene.a.say(&scene.world, &quiet, &scene.alice, "the last word");
    scene.day();
    for day in 0..60 {
        for room in [&scene.room, &other] {
            scene.a.say(&scene.world, room, &scene.alice, &day.to_string());
        }
        scene.world.settle();
        scene.day();
        if day == 20 {
            let held = scene.count("SELECT count(*) FROM outbox");
            assert!(held >= 42, "{held}: it may well be back");
        }
    }
    assert_eq!(came.borrow().len(), 60);
    scene.day();
    // The newest event of each of its rooms.
    assert_eq!(
        scene.a.database.rows("SELECT room_id FROM outbox ORDER BY pos"),
        [[quiet.to_string()], [scene.room.to_string()]]
    );
    let got: Rc<RefCell<Vec<String>>> = Rc::default();
    let seen = Rc::clone(&got);
    scene.world.connect(
        "dead.example",
        Rc::new(move |request| {
            let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
            let pdus = body["pdus"].as_array().into_iter().flatten();
            seen.borrow_mut().extend(pdus.map(|pdu| pdu["content"]["body"].as_str().unwrap().to_owned()));
            Box::pin(async { json_response(StatusCode::OK, &json!({ "pdus": {} })) })
        }),
    );
    scene.day();
    assert_eq!(*got.borrow(), ["the last word", "59"]);
    scene.day();
    assert_eq!(scene.count("SELECT count(*) FROM outbox"), 0);
    assert_eq!(scene.count("SELECT count(*) FROM destinations WHERE behind"), 0);
}
