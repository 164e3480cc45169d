//! What becomes of events that a room's rules forbid: who can have them, what rests on them, and how much of them is kept.

use std::rc::Rc;

use futures_util::future::{join, join_all, join3};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use verge::{
    matrix::{identifiers::EventId, json::Object, room_version::RoomVersion, state_content::Membership},
    platform::Statement,
    room::{Draft, NewRoom},
    router::{Request, json_response},
};

use crate::{
    Scene,
    common::{
        homeserver::object,
        network::World,
        peer::{Peer, encode, event_id},
    },
    extremities::empower,
    scene, scene_in,
};

/// Something that Bob has not the power for.
fn forbidden(scene: &Scene, name: &str) -> (String, Value) {
    let fields = json!({ "type": "m.room.name", "state_key": "", "content": { "name": name } });
    scene.peer.sign(&scene.theirs.version, scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields))
}

fn is_remembered(scene: &Scene, id: &str) -> bool {
    !scene.a.database.rows(&format!("SELECT 1 FROM rejected_events WHERE event_id = '{id}'")).is_empty()
}

#[test]
fn what_was_rejected_is_given_to_nobody() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let before = scene.theirs.last.clone();
        let (bad, event) = forbidden(&scene, "Bob's");
        let (_, answer) = scene.peer.send(&scene.a, "1", &[event]);
        assert!(answer["pdus"][&bad]["error"].is_string());
        scene.theirs.advance(&bad);
        let (good, event) = scene.theirs.say(&scene.peer, &scene.bob, "on top of it");
        let (_, answer) = scene.peer.send(&scene.a, "2", &[event]);
        assert_eq!(answer["pdus"][&good], json!({}));
        assert!(scene.a.shows(&good));

        let (room, id) = (encode(scene.room.as_str()), encode(&bad));
        for target in [
            format!("event/{id}"),
            format!("event_auth/{room}/{id}"),
            format!("state/{room}?event_id={id}"),
            format!("state_ids/{room}?event_id={id}"),
        ] {
            let (status, answer) = scene.peer.get(&scene.a, &format!("/_matrix/federation/v1/{target}"));
            assert_eq!((status, answer["errcode"].as_str()), (404, Some("M_NOT_FOUND")), "{target}: {answer}");
        }
        let ids = |events: &Value| -> Vec<String> {
            let events = events.as_array().unwrap().iter();
            events.map(|event| event_id(version, event)).collect()
        };
        // What it builds upon is had through it.
        let target = format!("/_matrix/federation/v1/backfill/{room}?v={}&limit=50", encode(&good));
        let found = ids(&scene.peer.get(&scene.a, &target).1["pdus"]);
        assert!(found.contains(&good) && found.contains(&before) && !found.contains(&bad), "{found:?}");
        let body = json!({ "latest_events": [good], "earliest_events": [], "limit": 20 });
        let target = format!("/_matrix/federation/v1/get_missing_events/{room}");
        let found = ids(&scene.peer.post(&scene.a, &target, &body).1["events"]);
        assert!(found.contains(&before) && !found.contains(&bad), "{found:?}");
    }
}

/// Bob names a message of a room in which he is not.
#[test]
fn a_rejected_event_leads_into_no_other_room() {
    let scene = scene("12");
    let private = scene.a.room(&scene.world, &scene.alice, "12", json!({ "join_rule": "invite" }));
    let secret = scene.a.say(&scene.world, &private, &scene.alice, "secret");
    let mut draft =
        scene.theirs.draft(scene.world.now_ms(), &scene.bob, json!({ "type": "m.room.message", "content": {} }));
    draft["auth_events"].as_array_mut().unwrap().push(json!(secret.event_id().as_str()));
    let (id, event) = scene.peer.sign("12", draft);
    let (_, answer) = scene.peer.send(&scene.a, "1", &[event]);
    assert!(answer["pdus"][&id]["error"].is_string());
    let target = format!("/_matrix/federation/v1/event_auth/{}/{}", encode(scene.room.as_str()), encode(&id));
    assert_eq!(scene.peer.get(&scene.a, &target).0, 404);
    // Nor does it count as rejected in its own room because it is none of the other.
    scene.world.run(scene.a.rooms.add_auth_events(&scene.room, std::slice::from_ref(&secret), None)).unwrap();
    assert!(!is_remembered(&scene, secret.event_id().as_str()));
    let later = scene.a.say(&scene.world, &private, &scene.alice, "later");
    assert!(scene.a.shows(later.event_id().as_str()));
}

/// Bob's outlier cites an event of his that was rejected, and a message cites the outlier: both are rejected, and the room
/// goes on.
#[test]
fn what_cites_a_rejected_event_is_rejected_and_blocks_nothing() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let levels =
            json!({ "type": "m.room.power_levels", "state_key": "", "content": { "users": { &scene.bob: 100 } } });
        let (bad, levels) = scene.peer.sign(version, scene.theirs.draft(scene.world.now_ms(), &scene.bob, levels));
        let (_, answer) = scene.peer.send(&scene.a, "1", std::slice::from_ref(&levels));
        assert!(answer["pdus"][&bad]["error"].is_string());

        let cite = |draft: &mut Value, old: &str, new: &str| {
            let auth_events = draft["auth_events"].as_array_mut().unwrap();
            let at = auth_events.iter().position(|id| id == old).unwrap();
            auth_events[at] = json!(new);
        };
        let profile = json!({
            "type": "m.room.member", "state_key": &scene.bob, "content": { "membership": "join", "displayname": "B" },
            "prev_events": [format!("${}", "A".repeat(43))],
        });
        let mut profile = scene.theirs.draft(scene.world.now_ms(), &scene.bob, profile);
        cite(&mut profile, &scene.theirs.state_id("m.room.power_levels", "").unwrap(), &bad);
        let (outlier, profile) = scene.peer.sign(version, profile);
        let message = json!({ "type": "m.room.message", "content": { "body": "x" } });
        let mut message = scene.theirs.draft(scene.world.now_ms(), &scene.bob, message);
        cite(&mut message, &scene.theirs.state_id("m.room.member", &scene.bob).unwrap(), &outlier);
        let (citing, message) = scene.peer.sign(version, message);

        let chain = vec![profile, levels];
        scene.peer.answers(move |request| {
            let is_asked = request.uri().path().contains("/event_auth/");
            is_asked.then(|| json_response(StatusCode::OK, &json!({ "auth_chain": chain })))
        });
        scene.peer.send(&scene.a, "2", &[message]);
        scene.world.settle();
        assert!(is_remembered(&scene, &outlier) && is_remembered(&scene, &citing), "{:?}", scene.world.logs());
        assert_eq!(scene.a.database.rows("SELECT event_id FROM staged_pdus"), Vec::<Vec<String>>::new());
        scene.theirs.advance(&citing);
        let (next, event) = scene.theirs.say(&scene.peer, &scene.bob, "next");
        scene.peer.send(&scene.a, "3", &[event]);
        assert!(scene.a.shows(&next), "version {version}");
        // A state that holds the outlier is taken over without it.
        let claimed = scene.world.run(scene.a.rooms.events(&[EventId::parse(&outlier).unwrap()])).unwrap();
        assert!(claimed.is_empty());
    }
}

/// However much a server sends that is rejected, what is kept of it has an end; the oldest goes first.
#[test]
fn the_memory_of_rejected_events_is_bounded() {
    let scene = scene("12");
    let other = Peer::new(&scene.world, "other.example");
    let zoe = other.user("zoe");
    let theirs = other.join(&scene.a, scene.room.as_str(), &zoe);
    scene.world.settle();
    let long = "x".repeat(2_000);
    let fields = json!({ "type": "m.room.topic", "state_key": "", "content": { "topic": long } });
    let (of_other, event) = other.sign("12", theirs.draft(scene.world.now_ms(), &zoe, fields));
    other.send(&scene.a, "1", &[event]);
    let mut sent = Vec::new();
    for txn in 0..12 {
        let events: Vec<(String, Value)> = (0..50).map(|n| forbidden(&scene, &format!("{txn} {n} {long}"))).collect();
        let pdus: Vec<Value> = events.iter().map(|(_, event)| event.clone()).collect();
        let (_, answer) = scene.peer.send(&scene.a, &txn.to_string(), &pdus);
        assert!(events.iter().all(|(id, _)| answer["pdus"][id]["error"].is_string()));
        sent.extend(events);
    }
    let kept = "SELECT server, count(*), SUM(length(reason) + length(graph)) < 200000, SUM(bytes) \
                FROM rejected_events GROUP BY server ORDER BY server";
    assert_eq!(scene.a.database.rows(kept), [["other.example", "1", "1", "0"], ["peer.example", "500", "1", "0"]]);
    assert!(is_remembered(&scene, &of_other));
    for (n, (id, _)) in sent.iter().enumerate() {
        assert_eq!(is_remembered(&scene, id), n >= 100, "{n}");
    }
    assert_eq!(
        scene.a.database.rows(
            "SELECT count(*) FROM citations AS c WHERE NOT EXISTS \
        (SELECT 1 FROM events AS e WHERE e.event_id = c.citing)"
        ),
        [["0"]]
    );
    // What was forgotten is judged again, as before.
    let (_, answer) = scene.peer.send(&scene.a, "again", &[sent[0].1.clone()]);
    assert!(answer["pdus"][&sent[0].0]["error"].is_string());
}

/// As many servers have sent what is remembered that none of them comes near its own limit.
#[test]
fn a_room_has_so_many_rejected_events_that_are_remembered() {
    let mut scene = scene("12");
    let remember = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 5000) \
        INSERT INTO rejected_events (event_id, room_id, server, depth, reason, graph, claimed, provisional, bytes, \
          of_room, of_server) \
        SELECT '$old' || n, ?1, 's' || n % 100 || '.example', 1, 'it is old', '{\"prev_events\":[]}', 0, 0, 0, \
          n, n / 100 + 1 FROM n";
    let room = scene.room.as_str().into();
    scene.world.run(scene.a.store.batch(vec![Statement::new(remember, [room])])).unwrap();
    let (bad, event) = forbidden(&scene, "Bob's");
    let (_, answer) = scene.peer.send(&scene.a, "1", &[event]);
    assert!(answer["pdus"][&bad]["error"].is_string());
    assert_eq!(scene.a.database.rows("SELECT count(*) FROM rejected_events"), [["5000"]]);
    // The oldest gives way.
    let remembered = ["$old1", "$old2", "$old5000", &bad].map(|id| is_remembered(&scene, id));
    assert_eq!(remembered, [false, true, true, true]);
    scene.theirs.advance(&bad);
    let (good, event) = scene.theirs.say(&scene.peer, &scene.bob, "on top of it");
    scene.peer.send(&scene.a, "2", &[event]);
    assert!(scene.a.shows(&good));
}

/// Up to room version 9 a power level may be a string of any number of digits, and a reason quotes it.
#[test]
fn a_reason_is_not_kept_at_any_length() {
    let world = World::new();
    let a = world.server("a.example");
    let alice = a.user(&world, "alice");
    let power = "9".repeat(30_000);
    let levels = json!({ "users": { alice.as_str(): power }, "events": { "m.room.name": power } });
    let new = NewRoom {
        version: RoomVersion::get("9").unwrap(),
        create_content: Object::new(),
        drafts: vec![
            Draft::membership(alice.as_str(), Membership::Join, Object::new()),
            Draft::state("m.room.power_levels", "", object(levels)),
            Draft::state("m.room.join_rules", "", object(json!({ "join_rule": "public" }))),
        ],
    };
    let (room, _) = world.run(a.rooms.create(&alice, &new)).unwrap();
    let peer = Peer::new(&world, "peer.example");
    let bob = peer.user("bob");
    let theirs = peer.join(&a, room.as_str(), &bob);
    world.settle();
    let scene = Scene { world, a, alice, room, peer, bob, theirs };
    let (bad, event) = forbidden(&scene, "Bob's");
    scene.peer.send(&scene.a, "1", &[event]);
    assert!(is_remembered(&scene, &bad));
    let kept = scene.a.database.rows("SELECT reason, length(reason) FROM rejected_events").remove(0);
    assert!(kept[0].starts_with("the power level is 0 and must be 999"), "{kept:?}");
    assert_eq!(kept[1], "500");
}

fn put(scene: &Scene, peer: &Peer, txn_id: &str, pdus: &[Value]) -> Request {
    let body = json!({ "origin": peer.name, "origin_server_ts": scene.world.now_ms(), "pdus": pdus });
    peer.request(&scene.a, Method::PUT, &format!("/_matrix/federation/v1/send/{txn_id}"), Some(&body))
}

/// What Bob's server sends of his, at once.
fn put_all(scene: &Scene, honest: &[(String, Value)]) -> Request {
    let pdus: Vec<Value> = honest.iter().map(|(_, event)| event.clone()).collect();
    put(scene, &scene.peer, "honest", &pdus)
}

async fn alice_says_three(scene: &Scene) {
    for n in 0..3 {
        let draft = Draft::message("m.room.message", object(json!({ "body": n.to_string() })));
        scene.a.rooms.send(&scene.room, &scene.alice, draft).await.unwrap();
    }
}

/// Whoever sends what is rejected keeps nobody else from committing.
#[test]
fn junk_starves_no_writer() {
    for seed in 1..=20 {
        let mut scene = scene_in(World::seeded(seed), "12");
        let mallory = Peer::new(&scene.world, "mallory.example");
        let user = mallory.user("mallory");
        let theirs = mallory.join(&scene.a, scene.room.as_str(), &user);
        scene.theirs.advance(&theirs.last);
        scene.world.settle();
        let junk: Vec<Value> = (0..50)
            .map(|n| {
                let fields = json!({ "type": "m.room.name", "state_key": "", "content": { "name": n.to_string() } });
                mallory.sign("12", theirs.draft(scene.world.now_ms(), &user, fields)).1
            })
            .collect();
        let honest: Vec<(String, Value)> =
            (0..50).map(|n| scene.theirs.say(&scene.peer, &scene.bob, &n.to_string())).collect();
        // What has to be read for each was read: keys, and nothing else.
        let junk = junk.into_iter().enumerate();
        let junk = junk.map(|(n, event)| scene.a.handle(put(&scene, &mallory, &n.to_string(), &[event])));
        let junk: Vec<_> = junk.collect();
        let transaction = scene.a.handle(put_all(&scene, &honest));
        let local = alice_says_three(&scene);
        scene.world.interleave();
        let lost = scene.a.database.lost.get();
        let (junk, answer, ()) = scene.world.run(join3(join_all(junk), transaction, local));
        assert!(junk.iter().all(|answer| answer.status() == 200));
        assert_eq!(answer.status(), 200, "seed {seed}");
        for (id, _) in &honest {
            assert!(scene.a.shows(id), "seed {seed}");
        }
        let lost = scene.a.database.lost.get() - lost;
        assert!(lost <= 2, "seed {seed}: {lost} commits were lost");
        assert_eq!(scene.a.database.rows("SELECT count(*) FROM rejected_events"), [["50"]]);
    }
}

fn version_of_room(scene: &Scene) -> i64 {
    scene.a.database.rows("SELECT version FROM rooms")[0][0].parse().unwrap()
}

/// Mallory has left, and goes on to send what she could have sent before. Her server's transactions are received by another isolate,
/// whose lost commits are counted by themselves.
#[test]
fn what_is_soft_failed_starves_no_writer() {
    let mut lost_of_junk = 0;
    for seed in 1..=10 {
        let mut scene = scene_in(World::seeded(seed), "12");
        let mallory = Peer::new(&scene.world, "mallory.example");
        let user = mallory.user("mallory");
        let theirs = mallory.join(&scene.a, scene.room.as_str(), &user);
        // Of the two memberships the later one counts wherever they conflict.
        scene.world.advance(1_000);
        let fields = json!({ "type": "m.room.member", "state_key": user, "content": { "membership": "leave" } });
        let (left, event) = mallory.sign("12", theirs.draft(scene.world.now_ms(), &user, fields));
        assert_eq!(mallory.send(&scene.a, "left", &[event]).0, 200);
        scene.theirs.advance(&left);
        scene.world.settle();
        let junk: Vec<(String, Value)> =
            (0..50).map(|n| theirs.clone().say(&mallory, &user, &format!("junk {n}"))).collect();
        let honest: Vec<(String, Value)> =
            (0..50).map(|n| scene.theirs.say(&scene.peer, &scene.bob, &n.to_string())).collect();
        let mut database = scene.a.database.clone();
        database.lost = Rc::default();
        let lost_there = Rc::clone(&database.lost);
        let isolate = scene.world.server_over("a.example", database, &[]);
        assert_eq!(mallory.send(&isolate, "keys", &[]).0, 200);
        let junk_sent: Vec<_> = junk
            .iter()
            .enumerate()
            .map(|(n, (_, event))| isolate.handle(put(&scene, &mallory, &n.to_string(), std::slice::from_ref(event))))
            .collect();
        let transaction = scene.a.handle(put_all(&scene, &honest));
        let local = alice_says_three(&scene);
        let (version, lost) = (version_of_room(&scene), scene.a.database.lost.get());
        scene.world.interleave();
        let (answers, answer, ()) = scene.world.run(join3(join_all(junk_sent), transaction, local));
        assert!(answers.iter().all(|answer| answer.status() == 200) && answer.status() == 200, "seed {seed}");
        for (id, _) in &honest {
            assert!(scene.a.shows(id), "seed {seed}");
        }
        for (id, _) in &junk {
            let found = scene.a.database.rows(&format!("SELECT soft_failed FROM events WHERE event_id = '{id}'"));
            assert_eq!(found, [["1"]], "seed {seed}");
        }
        // The transaction loses to each of the three messages, and one of them to it, at the most.
        let lost = scene.a.database.lost.get() - lost;
        assert!(lost <= 4, "seed {seed}: {lost} commits were lost");
        assert_eq!(version_of_room(&scene) - version, 4, "seed {seed}");
        lost_of_junk += lost_there.get();
    }
    assert!(lost_of_junk > 0, "nothing was going on at the same time");
}

/// Bob lost the power to name the room, and an event of before comes before Alice gives it back, after that, or at the same time. It is
/// soft-failed only where it was committed first.
#[test]
fn what_is_soft_failed_is_judged_again_when_the_state_changes_meanwhile() {
    let orders = ["before", "after"].map(|order| (1, order)).into_iter();
    let mut raced = 0;
    for (seed, order) in orders.chain((1..=60).map(|seed| (seed, "at the same time"))) {
        let mut scene = scene_in(World::seeded(seed), "12");
        empower(&mut scene);
        let fields = json!({ "type": "m.room.name", "state_key": "", "content": { "name": "Bob's" } });
        let (id, event) = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields));
        let levels = |level: i64| {
            let content = json!({ "users": { &scene.bob: level } });
            Draft::state("m.room.power_levels", "", object(content))
        };
        scene.a.send(&scene.world, &scene.room, &scene.alice, levels(0));
        scene.world.settle();
        assert_eq!(scene.peer.send(&scene.a, "keys", &[]).0, 200);
        let transaction = scene.a.handle(put(&scene, &scene.peer, "name", &[event]));
        let lost = scene.a.database.lost.get();
        let given_back = scene.a.rooms.send(&scene.room, &scene.alice, levels(50));
        let (answer, given_back) = match order {
            "before" => (scene.world.run(transaction), scene.world.run(given_back)),
            "after" => {
                let given_back = scene.world.run(given_back);
                (scene.world.run(transaction), given_back)
            }
            _ => {
                scene.world.interleave();
                scene.world.run(join(transaction, given_back))
            }
        };
        assert_eq!(answer.status(), 200);
        let given_back = given_back.unwrap();
        let committed = |id: &str| -> i64 {
            let found = scene.a.database.rows(&format!("SELECT event_nid FROM events WHERE event_id = '{id}'"));
            found[0][0].parse().unwrap()
        };
        let comes_first = committed(&id) < committed(given_back.event_id().as_str());
        assert_eq!(scene.a.shows(&id), !comes_first, "seed {seed}, {order}");
        match order {
            "before" => assert!(comes_first),
            "after" => assert!(!comes_first),
            _ => raced += usize::from(!comes_first && scene.a.database.lost.get() > lost),
        }
    }
    assert!(raced > 0, "none has lost a race");
}
