//! Looks for missing events beside each other, and beside all else.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use futures_util::future::{join, join_all};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use verge::{
    matrix::identifiers::RoomId,
    platform::Clock,
    room::Draft,
    router::{Request, json_response},
};

use crate::{
    Scene,
    common::{
        homeserver::object,
        network::World,
        peer::{Peer, PeerRoom},
    },
    missing::{answer_of, holds, is_empty_handed, not_found, takes},
    scene, scene_in,
};

/// An event and its ID.
type Known = (String, Value);

#[test]
fn others_have_their_turn_while_a_wide_gap_is_filled() {
    let world = World::new();
    // In an object, which does one thing at a time.
    world.wake_by_commits();
    let mut scene = scene_in(world, "12");
    let said = scene.say(330);
    holds(&scene.peer, &said);
    takes(&scene.peer, &scene, "1", &said[329]);
    scene.world.settle();
    scene.is_shown(&said);
    let rows = scene.world.most_rows();
    assert!(rows.written <= 400, "{rows:?}");
}

/// Four servers send transaction after transaction to one room, and a gap in it is filled; Alice speaks in another one. In the
/// object one thing is done after the other: what she says waits for one transaction of each, and one slice of what is filled.
#[test]
fn a_flood_in_one_room_does_not_hold_up_another() {
    const TRANSACTIONS: usize = 12;
    let world = World::new();
    world.wake_by_commits();
    let mut scene = scene_in(world.clone(), "12");
    let quiet = scene.a.public_room(&world, &scene.alice, "12");
    let flood: Vec<_> = (0..4).map(|n| scene.member(&format!("flood{n}.example"), "mallory")).collect();
    let said = scene.say(400);
    holds(&scene.peer, &said);
    let steps = || scene.a.database.steps.get();
    let of_bob = format!("SELECT count(*) FROM events WHERE sender = '{}'", scene.bob);
    let filled = || scene.a.database.rows(&of_bob)[0][0].parse::<usize>().unwrap();
    let speak = async || {
        let content = object(json!({ "msgtype": "m.text", "body": "hello" }));
        scene.a.rooms.send(&quiet, &scene.alice, Draft::message("m.room.message", content)).await.unwrap();
    };
    let mut requests: Vec<Vec<Request>> = Vec::new();
    for (peer, mut theirs) in flood {
        let mallory = peer.user("mallory");
        let transaction = |n: usize| {
            let pdus: Vec<Value> = (0..50).map(|i| theirs.say(&peer, &mallory, &format!("{n}.{i}")).1).collect();
            let body = json!({ "origin": peer.name, "origin_server_ts": world.now_ms(), "pdus": pdus });
            peer.request(&scene.a, Method::PUT, &format!("/_matrix/federation/v1/send/{n}"), Some(&body))
        };
        requests.push((0..=TRANSACTIONS).map(transaction).collect());
    }
    // What each takes by itself.
    let before = steps();
    world.run(speak());
    let spoken = steps() - before;
    let mut sent = 0;
    for requests in &mut requests {
        let before = steps();
        assert_eq!(world.run(scene.a.handle(requests.remove(0))).status(), 200);
        sent = sent.max(steps() - before);
    }
    takes(&scene.peer, &scene, "1", &said[399]);
    let done = Cell::new(0);
    let flooding = join_all(requests.into_iter().map(|requests| {
        let (scene, world, done) = (&scene, &world, &done);
        async move {
            for request in requests {
                assert_eq!(scene.a.handle(request).await.status(), 200);
                done.set(done.get() + 1);
                // So long it takes until the next one is there.
                world.pause().await;
            }
        }
    }));
    let speaking = async {
        let (mut most_steps, mut most_done, mut most_filled) = (0, 0, 0);
        for _ in 0..TRANSACTIONS {
            let before = (steps(), done.get(), filled());
            // It stands behind what has come before it.
            world.pause().await;
            speak().await;
            most_steps = most_steps.max(steps() - before.0);
            most_done = most_done.max(done.get() - before.1);
            most_filled = most_filled.max(filled() - before.2);
        }
        (most_steps, most_done, most_filled)
    };
    let (_, (most_steps, most_done, most_filled)) = world.run(join(flooding, speaking));
    assert!(most_done <= 4, "{most_done} transactions");
    // Of the gap, a slice is as much as two transactions; all of it is as much as eight.
    assert!(most_filled <= 100, "{most_filled} events of the gap");
    assert!(
        most_steps <= spoken + 8 * sent,
        "{most_steps} steps, where alone it takes {spoken}, and a transaction {sent}"
    );
    world.settle();
    scene.is_shown(&said);
}

/// Rooms of Alice's that Bob has joined.
fn rooms(scene: &Scene, count: usize) -> Vec<PeerRoom> {
    let rooms: Vec<RoomId> = (0..count).map(|_| scene.a.public_room(&scene.world, &scene.alice, "12")).collect();
    let rooms = rooms.iter().map(|room| scene.peer.join(&scene.a, room.as_str(), &scene.bob)).collect();
    scene.world.settle();
    rooms
}

#[test]
fn a_transaction_that_is_staged_costs_three_round_trips_whatever_the_number_of_its_rooms() {
    let scene = scene("12");
    let staged: Vec<Value> = rooms(&scene, 5)
        .iter_mut()
        .map(|room| {
            room.say(&scene.peer, &scene.bob, "missing");
            room.say(&scene.peer, &scene.bob, "staged").1
        })
        .collect();
    // So that keys are known.
    assert_eq!(scene.peer.send(&scene.a, "1", &[]).0, 200);
    let calls = scene.a.database.calls.get();
    assert_eq!(scene.peer.send(&scene.a, "2", &staged).0, 200);
    assert_eq!(scene.a.database.calls.get() - calls, 3);
    assert_eq!(scene.a.database.rows("SELECT count(*) FROM staged_pdus"), [["5"]]);
}

/// A host that holds `events`, counts how many requests for missing events it has at a time, and takes so many milliseconds
/// for each.
fn slow(world: &World, name: &str, events: Vec<Known>, ms: u32) -> Rc<Cell<usize>> {
    let (most, now) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (clock, counted) = (world.clone(), Rc::clone(&most));
    world.connect(
        name,
        Rc::new(move |request| {
            let (clock, now, most) = (clock.clone(), Rc::clone(&now), Rc::clone(&counted));
            let answer = answer_of(&events, &request).unwrap_or_else(not_found);
            Box::pin(async move {
                now.set(now.get() + 1);
                most.set(most.get().max(now.get()));
                clock.sleep(ms).await;
                now.set(now.get() - 1);
                answer
            })
        }),
    );
    most
}

#[test]
fn at_most_two_rooms_are_looked_at_at_a_time() {
    let scene = scene("12");
    let (mut all, mut staged) = (Vec::new(), Vec::new());
    for room in &mut rooms(&scene, 6) {
        all.push(room.say(&scene.peer, &scene.bob, "missing"));
        all.push(room.say(&scene.peer, &scene.bob, "staged"));
        staged.push(all[all.len() - 1].1.clone());
    }
    assert_eq!(scene.peer.send(&scene.a, "1", &[]).0, 200);
    let most = slow(&scene.world, "peer.example", all.clone(), 2_000);
    assert_eq!(scene.peer.send(&scene.a, "2", &staged).0, 200);
    scene.world.settle();
    assert_eq!(most.get(), 2);
    // Those that found two running are looked at all the same, without anybody's doing.
    scene.is_shown(&all);
}

#[test]
fn the_scheduled_trigger_looks_at_rooms_side_by_side_and_at_those_first_that_wait_longest() {
    let scene = scene("12");
    let mut rooms = rooms(&scene, 60);
    is_empty_handed(&scene.peer);
    let (mut all, mut order) = (Vec::new(), Vec::new());
    for (number, room) in rooms.iter_mut().enumerate() {
        all.push(room.say(&scene.peer, &scene.bob, "missing"));
        all.push(room.say(&scene.peer, &scene.bob, "staged"));
        order.push(room.room_id.clone());
        takes(&scene.peer, &scene, &number.to_string(), &all[all.len() - 1]);
        scene.world.settle();
        scene.world.advance(1_000);
    }
    // Of 60 rooms all are found, though none but the trigger looks.
    let asked = Rc::new(RefCell::new(Vec::new()));
    let (events, rooms_asked) = (all.clone(), Rc::clone(&asked));
    scene.world.connect(
        "peer.example",
        Rc::new(move |request| {
            let path = request.uri().path().to_owned();
            if path.contains("/get_missing_events/") {
                rooms_asked.borrow_mut().push(path);
            }
            let answer = answer_of(&events, &request).unwrap_or_else(not_found);
            Box::pin(async move { answer })
        }),
    );
    scene.world.advance(3_600_000);
    // Once does not do: there are no more calls to the database for it than the jobs of an event have together.
    for _ in 0..3 {
        scene.world.run(scene.a.scheduled());
        scene.world.advance(60_000);
    }
    scene.is_shown(&all);
    let asked: Vec<String> = asked.borrow().clone();
    let position = |room: &String| asked.iter().position(|path| path.contains(&room[1..])).unwrap();
    assert!(order.iter().map(position).is_sorted());
}

#[test]
fn a_server_that_never_answers_keeps_no_other_room_from_being_looked_at() {
    let mut scene = scene("12");
    let mut others = rooms(&scene, 3);
    let lost = scene.say(2);
    let third = Peer::new(&scene.world, "third.example");
    let mut theirs = Vec::new();
    scene.world.disconnect("peer.example");
    takes(&third, &scene, "0", &lost[1]);
    scene.world.settle();
    // So its turn is the first.
    scene.world.advance(1_000);
    for (number, room) in others.iter_mut().enumerate() {
        theirs.push(room.say(&scene.peer, &scene.bob, "missing"));
        theirs.push(room.say(&scene.peer, &scene.bob, "staged"));
        let staged = [theirs[theirs.len() - 1].1.clone()];
        assert_eq!(third.send(&scene.a, &format!("1{number}"), &staged).0, 200);
    }
    scene.world.settle();
    // Bob's server answers about all rooms but one.
    let (clock, events, dead) = (scene.world.clone(), theirs.clone(), scene.room.to_string());
    let came: Rc<RefCell<Vec<(i64, bool)>>> = Rc::default();
    let notes = Rc::clone(&came);
    scene.world.connect(
        "peer.example",
        Rc::new(move |request| {
            let (clock, waits) = (clock.clone(), request.uri().path().contains(&dead[1..]));
            notes.borrow_mut().push((clock.now_ms(), waits));
            let answer = answer_of(&events, &request).unwrap_or_else(not_found);
            Box::pin(async move {
                if waits {
                    clock.sleep(3_600_000).await;
                }
                answer
            })
        }),
    );
    scene.world.advance(600_000);
    let begun = scene.world.now_ms();
    scene.world.run(scene.a.scheduled());
    assert!(scene.world.now_ms() - begun < 130_000);
    for (id, _) in &theirs {
        assert!(scene.a.shows(id), "{:#?}", scene.world.logs());
    }
    // Nor has it made them wait for an answer that does not come.
    let came = came.borrow();
    assert!(came[0].1 && came.iter().all(|(at, waits)| *waits || at - begun < 1_000), "{begun}: {came:?}");
}

#[test]
fn a_server_that_never_answers_keeps_nothing_from_being_sent() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let lost = scene.say(2);
    scene.world.disconnect("peer.example");
    takes(&third, &scene, "0", &lost[1]);
    scene.world.settle();
    slow(&scene.world, "peer.example", Vec::new(), 3_600_000);
    let sent: Rc<RefCell<Vec<i64>>> = Rc::default();
    let (clock, notes) = (scene.world.clone(), Rc::clone(&sent));
    third.answers(move |request| {
        request.uri().path().contains("/v1/send/").then(|| {
            notes.borrow_mut().push(clock.now_ms());
            json_response(StatusCode::OK, &json!({ "pdus": {} }))
        })
    });
    // The event that commits it is cut off before anything is sent.
    let draft = Draft::message("m.room.message", object(json!({ "body": "hello" })));
    scene.world.run(scene.a.rooms.send(&scene.room, &scene.alice, draft)).unwrap();
    scene.world.advance(600_000);
    let begun = scene.world.now_ms();
    scene.world.run(scene.a.scheduled());
    assert!(scene.world.now_ms() - begun >= 10_000, "it was waited for the answer");
    let sent = sent.borrow();
    assert!(sent.len() == 1 && sent[0] - begun < 1_000, "{begun}: {sent:?}");
}
