//! History with events in it that cannot be used: it goes on behind them.

use std::{collections::HashMap, rc::Rc};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use verge::router::json_response;

use crate::{
    common::peer::{Peer, PeerRoom, event_id},
    gaps::{Scene, back, scene},
    home::{Home, User, quote},
    visited::{Visited, tells_only, visited},
};

/// From now on what `home` answers to requests whose path holds `path` has passed through `alter`.
pub fn alter(home: &Home, path: &'static str, alter: impl Fn(&mut Value) + 'static) {
    let (server, alter) = (Rc::clone(&home.server), Rc::new(alter));
    home.world.connect(
        home.server.config.server_name.as_str(),
        Rc::new(move |request| {
            let (server, alter) = (Rc::clone(&server), Rc::clone(&alter));
            Box::pin(async move {
                let is_meant = request.uri().path().contains(path);
                let response = server.handle(request).await;
                if !is_meant || response.status() != StatusCode::OK {
                    return response;
                }
                let mut body: Value = serde_json::from_slice(response.body()).unwrap();
                alter(&mut body);
                response.map(|_| Bytes::from(body.to_string()))
            })
        }),
    );
}

/// The message `body` among `pdus`.
pub fn message<'a>(pdus: &'a mut Value, body: &str) -> Option<&'a mut Value> {
    pdus.as_array_mut().unwrap().iter_mut().find(|pdu| pdu["content"]["body"] == body)
}

/// Makes one character of an event's signatures another one.
fn spoil_signatures(event: &mut Value) {
    for of_server in event["signatures"].as_object_mut().unwrap().values_mut() {
        for signature in of_server.as_object_mut().unwrap().values_mut() {
            let text = signature.as_str().unwrap();
            let first = if text.starts_with('A') { "B" } else { "A" };
            *signature = json!(format!("{first}{}", &text[1..]));
        }
    }
}

fn spoil(home: &Home, body: &'static str) {
    alter(home, "/backfill/", move |answer| {
        if let Some(event) = message(&mut answer["pdus"], body) {
            spoil_signatures(event);
        }
    });
}

impl Scene {
    /// What Alice sees, but not the message `body`.
    fn all_but(&self, body: &str) -> Vec<String> {
        let mut all = Vec::new();
        let seen = crate::gaps::newest(&self.one, &self.alice, &self.room);
        all.extend(back(&self.one, &self.alice, &self.room, None, 1_000, ""));
        all.retain(|id| seen[id]["content"]["body"] != body);
        all
    }

    /// A third server, whose user joins Alice's room.
    fn carol_joins(&self) -> (Home, User) {
        let three = Home::with(&self.one.world, "three.test", &[("REGISTRATION", "open")]);
        let carol = three.register("carol");
        let join = format!("/join/{}?via=one.test", quote(&self.room));
        assert_eq!(three.post(&carol, &join, json!({})).0, 200);
        self.one.world.settle();
        (three, carol)
    }

    /// A peer, whose user joins it through Alice's server.
    fn zoe_joins(&self) -> (Rc<Peer>, String, PeerRoom) {
        let peer = Peer::new(&self.one.world, "peer.example");
        let zoe = peer.user("zoe");
        let theirs = peer.join(&self.one.homeserver(), &self.room, &zoe);
        (peer, zoe, theirs)
    }

    fn bob_finds(&self, limit: usize) -> Vec<String> {
        back(&self.two, &self.bob, &self.room, None, limit, "")
    }
}

#[test]
fn a_wrong_signature_does_not_end_history() {
    for version in ["10", "12"] {
        let scene = scene(version);
        scene.leave();
        scene.says(8..48);
        scene.join();
        spoil(&scene.one, "m28");
        let without = scene.all_but("m28");
        assert_eq!(scene.bob_finds(7), without, "{version}");
        // It is not asked for again at once,
        let asked = scene.backfills();
        assert_eq!(scene.bob_finds(1_000), without);
        assert_eq!(scene.backfills(), asked);
        // but later, more and more seldom,
        for _ in 0..30 {
            scene.two.world.advance(24 * 3_600_000);
            assert_eq!(scene.bob_finds(1_000), without);
        }
        assert!(scene.backfills() - asked <= 8, "{}", scene.backfills() - asked);
        assert!(scene.two.database.rows("SELECT 1 FROM gaps").is_empty());
    }
}

#[test]
fn what_was_passed_over_takes_its_place_when_it_comes() {
    let scene = scene("12");
    scene.leave();
    scene.says(8..48);
    scene.join();
    spoil(&scene.one, "m28");
    assert_eq!(scene.bob_finds(10), scene.all_but("m28"));
    scene.two.world.connect_server("one.test", &scene.one.server);
    scene.two.world.advance(3_600_000);
    assert_eq!(scene.bob_finds(1_000), scene.all_but(""));
    assert!(scene.two.database.rows("SELECT 1 FROM gaps").is_empty());
}

#[test]
fn another_server_has_a_good_copy() {
    for version in ["1", "11"] {
        let scene = scene(version);
        scene.carol_joins();
        scene.leave();
        scene.says(8..48);
        scene.join();
        alter(&scene.one, "/backfill/", |answer| {
            if let Some(event) = message(&mut answer["pdus"], "m28") {
                spoil_signatures(event);
            }
            if let Some(event) = message(&mut answer["pdus"], "m30") {
                event["content"]["body"] = json!("altered");
            }
        });
        assert_eq!(scene.bob_finds(10), scene.all_but(""), "{version}");
        let seen = crate::gaps::newest(&scene.two, &scene.bob, &scene.room);
        for body in ["m28", "m30"] {
            assert!(seen.values().any(|event| event["content"]["body"] == body), "{body}");
        }
    }
}

/// The ID of a room of version 12 names no server that would be asked before all others.
#[test]
fn no_server_is_asked_for_its_name_alone() {
    let scene = scene("12");
    for name in ["a1.test", "a2.test", "a3.test", "a4.test"] {
        let useless = Home::with(&scene.one.world, name, &[("REGISTRATION", "open")]);
        let mallory = useless.register("mallory");
        assert_eq!(useless.post(&mallory, &format!("/join/{}?via=one.test", quote(&scene.room)), json!({})).0, 200);
        alter(&useless, "/backfill/", |answer| answer["pdus"] = json!([]));
    }
    scene.one.world.settle();
    scene.leave();
    scene.says(8..48);
    scene.join();
    let has_found = |_| {
        scene.one.world.advance(3_600_000);
        scene.bob_finds(1_000) == scene.all_but("")
    };
    assert!((0..12).any(has_found), "four servers gave nothing, and the fifth was not asked");
}

/// In versions 1 and 2 whoever relays an event may say of it what he likes, but for its signature.
#[test]
fn where_nothing_binds_an_id_two_servers_must_say_what_was_before_it() {
    let scene = scene("1");
    let (three, _) = scene.carol_joins();
    scene.leave();
    scene.says(8..48);
    scene.join();
    spoil(&scene.one, "m28");
    spoil(&three, "m28");
    scene.one.world.cut("two.test", "three.test");
    let path = format!("/rooms/{}/messages?dir=b&limit=1000", quote(&scene.room));
    let (_, page) = scene.two.get(&scene.bob, &path);
    let newest = page["chunk"].as_array().unwrap().iter().filter(|event| event["content"]["body"].is_string()).count();
    assert!(newest < 28, "{newest}");
    scene.one.world.mend("two.test", "three.test");
    scene.one.world.advance(3_600_000);
    assert_eq!(scene.bob_finds(1_000), scene.all_but("m28"));
}

#[test]
fn events_of_a_dead_server_do_not_end_history() {
    let scene = scene("12");
    scene.leave();
    let three = Home::with(&scene.one.world, "three.test", &[("REGISTRATION", "open")]);
    let carol = three.register("carol");
    scene.says(8..20);
    let join = format!("/join/{}?via=one.test", quote(&scene.room));
    assert_eq!(three.post(&carol, &join, json!({})).0, 200);
    for i in 0..3 {
        three.say(&carol, &scene.room, &format!("c{i}"), &format!("c{i}"));
        three.say(&carol, &scene.room, &format!("d{i}"), &format!("d{i}"));
        scene.one.world.settle();
        scene.says(20 + 10 * i..30 + 10 * i);
    }
    scene.one.world.disconnect("three.test");
    scene.join();
    let all = scene.all_but("");
    let alices = crate::gaps::newest(&scene.one, &scene.alice, &scene.room);
    let without: Vec<String> = all.iter().filter(|id| alices[*id]["sender"] != json!(carol.id)).cloned().collect();
    assert_eq!(all.len(), without.len() + 7);
    assert_eq!(scene.bob_finds(10), without);
    scene.one.world.connect_server("three.test", &three.server);
    scene.one.world.advance(24 * 3_600_000);
    scene.bob_finds(1_000);
    assert_eq!(scene.bob_finds(1_000), all, "{:?}", scene.one.world.logs());
    assert!(scene.two.database.rows("SELECT 1 FROM gaps").is_empty());
}

#[test]
fn history_that_nobody_can_be_asked_for_now_may_be_asked_for_later() {
    let scene = scene("12");
    scene.one.world.cut("one.test", "two.test");
    let messages = format!("/rooms/{}/messages?dir=b&limit=100", quote(&scene.room));
    let (_, page) = scene.two.get(&scene.bob, &messages);
    let end = page["end"].as_str().expect("history goes on").to_owned();
    // Here a client may stop for now: it has come no further.
    let (_, page) = scene.two.get(&scene.bob, &format!("{messages}&from={end}"));
    assert_eq!((&page["start"], &page["end"], &page["chunk"]), (&json!(end), &json!(end), &json!([])));
    scene.one.world.mend("one.test", "two.test");
    scene.one.world.advance(3_600_000);
    let older = back(&scene.two, &scene.bob, &scene.room, Some(&end), 5, "");
    assert_eq!(older.last(), scene.all_but("").last());
}

/// From now on the peer has lost all of its room but `history`, of which it gives on backfill what it is asked for, back by the first
/// previous event of each; and `edges`, with the state before each of them.
fn tells_what_is_asked_for(peer: &Peer, theirs: &PeerRoom, history: Vec<Value>, edges: Vec<Value>) {
    let version = theirs.version.clone();
    let by_id = |events: Vec<Value>| -> HashMap<String, Value> {
        events.into_iter().map(|event| (event_id(&version, &event), event)).collect()
    };
    let (history, edges) = (by_id(history), by_id(edges));
    let state: Vec<String> = theirs.state.values().map(|event| event_id(&version, event)).collect();
    peer.answers(move |request| {
        let target =
            percent_encoding::percent_decode_str(&request.uri().to_string()).decode_utf8().unwrap().into_owned();
        let edge = || edges.iter().find(|(id, _)| target.ends_with(*id)).map(|(_, event)| event);
        let body = if target.contains("/get_missing_events/") {
            json!({ "events": [] })
        } else if target.contains("/state_ids/") && edge().is_some() {
            json!({ "pdu_ids": state, "auth_chain_ids": state })
        } else if target.contains("/v1/event/")
            && let Some(edge) = edge()
        {
            json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": [edge] })
        } else if target.contains("/backfill/") {
            let mut asked = target.split(['?', '&']).filter_map(|pair| pair.strip_prefix("v="));
            let mut at = asked.find(|id| history.contains_key(*id)).map(str::to_owned);
            let mut pdus = Vec::new();
            while let Some(event) = at.and_then(|id| history.get(&id)).filter(|_| pdus.len() < 100) {
                pdus.push(event.clone());
                at = event["prev_events"][0].as_str().map(str::to_owned);
            }
            json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": pdus })
        } else {
            return Some(json_response(
                StatusCode::NOT_FOUND,
                &json!({ "errcode": "M_NOT_FOUND", "error": "Not here." }),
            ));
        };
        Some(json_response(StatusCode::OK, &body))
    });
}

/// A chain of events that nobody has signed costs a bounded number of requests and rows.
#[test]
fn what_is_made_up_is_not_followed_for_ever() {
    let Visited { home, alice, room, peer, bob, mut theirs, server } = visited("11");
    let world = home.world.clone();
    // The newest event cites the end of a chain whose oldest events nobody ever reaches.
    let (tip, depth) = (theirs.last.clone(), theirs.depth);
    let mut chain: Vec<Value> = Vec::new();
    for i in 0..5_000 {
        theirs.depth = depth + i;
        let (id, mut event) = theirs.clone().say(&peer, &bob, "made up");
        spoil_signatures(&mut event);
        theirs.last = id;
        chain.push(event);
    }
    let (said, event) = theirs.say_upon(&peer, &bob, "hello", &[&theirs.last, &tip]);
    let first = chain.last().unwrap().clone();
    let good = peer.sign("11", {
        let mut good = first.clone();
        good.as_object_mut().unwrap().remove("signatures");
        good
    });
    tells_what_is_asked_for(&peer, &theirs, chain, vec![good.1]);
    assert_eq!(peer.send(&server, "1", &[event]).0, 200);
    world.settle();
    assert!(crate::gaps::newest(&home, &alice, &room).contains_key(&said), "{:?}", world.logs());
    let found = back(&home, &alice, &room, None, 1_000, "");
    assert!(found.len() < 20, "the room itself");
    let asked = world.traffic().iter().filter(|sent| sent.line.contains("/backfill/")).count();
    assert!((5..20).contains(&asked), "{asked}");
    let rows = home.database.rows("SELECT 1 FROM gaps").len();
    assert!(rows < 700, "{rows}");
}

/// However many events that are nowhere stand beside the one that history goes on with.
#[test]
fn events_that_nobody_gives_do_not_stand_before_those_that_are_given() {
    let Visited { home, alice, room, peer, bob, mut theirs, server } = visited("12");
    let missed: Vec<(String, Value)> = (0..5).map(|n| theirs.say(&peer, &bob, &format!("missed {n}"))).collect();
    // No other ID comes before these.
    let nowhere: Vec<String> = (10..48).map(|n| format!("${}{n}", "-".repeat(41))).collect();
    let mut upon = |nowhere: &[String], last: &str| {
        let previous: Vec<&str> = nowhere.iter().map(String::as_str).chain([last]).collect();
        let said = theirs.say_upon(&peer, &bob, "cites what is nowhere", &previous);
        theirs.advance(&said.0);
        said
    };
    let first = upon(&nowhere[..19], &missed[4].0);
    let second = upon(&nowhere[19..], &first.0);
    let history = missed.iter().chain([&first]).map(|(_, event)| event.clone());
    tells_what_is_asked_for(&peer, &theirs, history.collect(), vec![first.1.clone(), second.1.clone()]);
    assert_eq!(peer.send(&server, "1", &[second.1]).0, 200);
    home.world.settle();
    let found = back(&home, &alice, &room, None, 100, "");
    let mut expected = vec![&second.0, &first.0];
    expected.extend(missed.iter().rev().map(|(id, _)| id));
    assert_eq!(found.iter().take(7).collect::<Vec<_>>(), expected, "{:?}", home.world.logs());
}

/// History may hold events that cite more than an event may; and IDs that are longer than any.
#[test]
fn what_cites_very_much_that_is_nowhere_ends_no_history() {
    let short: Vec<String> = (100..240).map(|n| format!("${}{n}", "-".repeat(40))).collect();
    let long: Vec<String> = (10..48).map(|n| format!("${}{n}", "-".repeat(300))).collect();
    for nowhere in [short, long] {
        let Visited { home, alice, room, peer, bob, mut theirs, server } = visited("12");
        let missed: Vec<(String, Value)> = (0..5).map(|n| theirs.say(&peer, &bob, &format!("missed {n}"))).collect();
        let previous: Vec<&str> = nowhere.iter().map(String::as_str).chain([&*missed[4].0]).collect();
        let cites = theirs.say_upon(&peer, &bob, "cites what is nowhere", &previous);
        theirs.advance(&cites.0);
        let said = theirs.say(&peer, &bob, "said");
        let history = missed.iter().chain([&cites]).map(|(_, event)| event.clone());
        tells_what_is_asked_for(&peer, &theirs, history.collect(), vec![said.1.clone()]);
        assert_eq!(peer.send(&server, "1", &[said.1]).0, 200);
        home.world.settle();
        let create = event_id("12", &theirs.state[&("m.room.create".to_owned(), String::new())]);
        let mut expected = vec![said.0, cites.0];
        expected.extend(missed.into_iter().rev().map(|(id, _)| id));
        // What is held is found at once, and what is given soon.
        let visits = (0..5).map(|_| {
            let found = back(&home, &alice, &room, None, 100, "");
            assert_eq!(found.last(), Some(&create), "{:?}", home.world.logs());
            found
        });
        assert!(visits.into_iter().any(|found| found.starts_with(&expected)), "{:?}", home.world.logs());
    }
}

/// An event that cites what we hold as rejected is rejected too, and history goes on behind it.
#[test]
fn an_event_that_cites_a_rejected_one_does_not_end_history() {
    let Visited { home, alice, room, peer, bob, mut theirs, server } = visited("11");
    let world = home.world.clone();
    let fields = json!({ "type": "m.room.name", "state_key": "", "content": { "name": "Bob's" } });
    let (rejected, event) = peer.sign("11", theirs.draft(world.now_ms(), &bob, fields));
    let (_, answer) = peer.send(&server, "1", &[event]);
    assert!(answer["pdus"][&rejected]["error"].is_string(), "{answer}");
    let missed = theirs.say(&peer, &bob, "missed");
    let content = json!({ "msgtype": "m.text", "body": "cites" });
    let mut draft = theirs.draft(world.now_ms(), &bob, json!({ "type": "m.room.message", "content": content }));
    draft["auth_events"].as_array_mut().unwrap().push(json!(rejected));
    let citing = peer.sign("11", draft);
    theirs.advance(&citing.0);
    let edge = theirs.say(&peer, &bob, "edge");
    let said = theirs.say(&peer, &bob, "said");
    tells_only(&peer, &theirs, vec![edge.1.clone(), citing.1.clone(), missed.1.clone()]);
    assert_eq!(peer.send(&server, "2", &[said.1]).0, 200);
    world.settle();
    let found = back(&home, &alice, &room, None, 10, "");
    assert_eq!(found[..3], [said.0, edge.0, missed.0], "{:?}", world.logs());
    assert!(home.database.rows("SELECT 1 FROM gaps").is_empty());
}

/// Other servers have other limits, and what they have accepted is built upon.
#[test]
fn what_is_nested_too_deep_for_us_does_not_end_history() {
    for version in ["10", "12"] {
        let Visited { home, alice, room, peer, bob, mut theirs, server } = visited(version);
        let missed: Vec<(String, Value)> = (0..5).map(|n| theirs.say(&peer, &bob, &format!("missed {n}"))).collect();
        let content = json!({ "body": "deep", "x": (0..600).fold(json!([]), |inner, _| json!([inner])) });
        let fields = json!({ "type": "m.room.message", "content": content });
        let deep = peer.sign(version, theirs.draft(home.world.now_ms(), &bob, fields));
        theirs.advance(&deep.0);
        let edge = theirs.say(&peer, &bob, "edge");
        let said = theirs.say(&peer, &bob, "said");
        let history = missed.iter().chain([&deep, &edge]).map(|(_, event)| event.clone());
        tells_what_is_asked_for(&peer, &theirs, history.collect(), vec![edge.1.clone()]);
        assert_eq!(peer.send(&server, "1", &[said.1]).0, 200);
        home.world.settle();
        let found = back(&home, &alice, &room, None, 100, "");
        let mut expected = vec![said.0, edge.0];
        expected.extend(missed.into_iter().rev().map(|(id, _)| id));
        assert_eq!(found[..7], expected, "{:?}", home.world.logs());
    }
}

/// What is behind an event that is not shown is history all the same.
#[test]
fn a_gap_behind_a_soft_failed_event_is_paged_back_to() {
    let Visited { home, alice, room, peer, bob, server, .. } = visited("11");
    let world = home.world.clone();
    let carol = peer.user("carol");
    let mut theirs = peer.join(&server, &room, &carol);
    world.settle();
    let ban = format!("/rooms/{}/ban", quote(&room));
    assert_eq!(home.post(&alice, &ban, json!({ "user_id": bob })).0, 200);
    world.settle();
    // The peer has not heard of it.
    let missed = theirs.say(&peer, &carol, "missed");
    let edge = theirs.say(&peer, &carol, "edge");
    let hidden = theirs.say(&peer, &bob, "too late");
    let said = theirs.say(&peer, &carol, "said");
    tells_only(&peer, &theirs, vec![edge.1.clone(), missed.1.clone()]);
    assert_eq!(peer.send(&server, "1", &[hidden.1, said.1]).0, 200);
    world.settle();
    let found = back(&home, &alice, &room, None, 10, "");
    assert!(!found.contains(&hidden.0), "Bob is banned");
    for id in [&said.0, &edge.0, &missed.0] {
        assert!(found.contains(id), "{id} {:?}", world.logs());
    }
}

/// Where somebody has cited the room's first event late, a server may give it early: it is the first all the same.
#[test]
fn the_first_event_of_a_room_ends_its_history_wherever_it_is_cited() {
    for version in ["10", "12"] {
        let scene = scene(version);
        scene.leave();
        scene.says(8..158);
        let (peer, zoe, theirs) = scene.zoe_joins();
        let create = theirs.state[&("m.room.create".to_owned(), String::new())].clone();
        let previous = [&*event_id(version, &create), &theirs.last];
        let (id, cites) = theirs.say_upon(&peer, &zoe, "it all began here", &previous);
        assert_eq!(peer.send(&scene.one.homeserver(), "1", &[cites]), (200, json!({ "pdus": { id: {} } })));
        scene.says(158..162);
        scene.join();
        alter(&scene.one, "/backfill/", move |answer| {
            let pdus = answer["pdus"].as_array_mut().unwrap();
            if !pdus.contains(&create) {
                pdus.insert(0, create.clone());
            }
        });
        let all = scene.all_but("");
        assert!(all.len() > 50);
        assert_eq!(scene.bob_finds(7), all, "{version}");
        // So it is for who was never there before.
        let (three, carol) = scene.carol_joins();
        assert_eq!(back(&three, &carol, &scene.room, None, 7, ""), scene.all_but(""), "{version}");
    }
}

/// What is behind an event that was cited late is found where the history ends.
#[test]
fn the_first_event_of_a_room_is_found_behind_what_was_cited_late() {
    for version in ["10", "12"] {
        let scene = scene(version);
        let first = scene.all_but("");
        let [.., second, create] = &first[..] else { panic!("{first:?}") };
        scene.leave();
        scene.says(8..158);
        let (peer, zoe, theirs) = scene.zoe_joins();
        let (id, cites) = theirs.say_upon(&peer, &zoe, "it went on here", &[second, &theirs.last]);
        let target = format!("/_matrix/federation/v1/event/{}", quote(second));
        let (_, answer) = peer.get(&scene.one.homeserver(), &target);
        let early = answer["pdus"][0].clone();
        assert_eq!(peer.send(&scene.one.homeserver(), "1", &[cites]), (200, json!({ "pdus": { id: {} } })));
        scene.says(158..162);
        scene.join();
        alter(&scene.one, "/backfill/", move |answer| {
            let pdus = answer["pdus"].as_array_mut().unwrap();
            if !pdus.contains(&early) {
                pdus.insert(0, early.clone());
            }
        });
        let (mut found, mut all) = (scene.bob_finds(7), scene.all_but(""));
        assert_eq!(found.last(), Some(create), "{version}");
        found.sort();
        all.sort();
        assert_eq!(found, all, "{version}");
    }
}

/// Where more is lacking than one request asks for, what leads to the first event does not end history before the rest.
#[test]
fn the_first_event_of_a_room_comes_after_all_that_is_lacking() {
    for version in ["10", "12"] {
        let scene = scene(version);
        let (peer, zoe, theirs) = scene.zoe_joins();
        scene.says(8..28);
        let (one, newest) = (scene.one.homeserver(), scene.all_but("").remove(0));
        // They are asked for before the newest one.
        let forks = (0..).map(|n| theirs.say_upon(&peer, &zoe, &format!("fork {n}"), &[&theirs.last]));
        let forks: Vec<(String, Value)> = forks.filter(|(id, _)| *id < newest).take(22).collect();
        let ids: Vec<&str> = forks.iter().map(|(id, _)| id.as_str()).collect();
        let first = theirs.say_upon(&peer, &zoe, "cites most", &[&ids[..19], &[&newest]].concat());
        let second = theirs.say_upon(&peer, &zoe, "cites the others", &[&ids[19..], &[&first.0]].concat());
        for (n, (id, event)) in forks.iter().chain([&first, &second]).enumerate() {
            let answer = peer.send(&one, &n.to_string(), std::slice::from_ref(event));
            assert_eq!(answer, (200, json!({ "pdus": { id: {} } })));
        }
        scene.one.world.settle();
        let (three, carol) = scene.carol_joins();
        // The first answer ends with those that cite them.
        alter(&scene.one, "/backfill/", |answer| {
            let pdus = answer["pdus"].as_array_mut().unwrap();
            if let Some(at) = pdus.iter().position(|pdu| pdu["content"]["body"] == "cites most") {
                pdus.truncate(at + 1);
            }
        });
        let (mut found, mut all) = (back(&three, &carol, &scene.room, None, 100, ""), scene.all_but(""));
        assert_eq!(found.last(), all.last(), "{version}");
        found.sort();
        all.sort();
        assert_eq!(found, all, "{version}");
    }
}

/// An event that nobody gives is no reason to go on asking for what is before the first one.
#[test]
fn history_ends_though_something_in_it_is_nowhere() {
    for version in ["10", "12"] {
        let scene = scene(version);
        let (peer, zoe, theirs) = scene.zoe_joins();
        let create = event_id(version, &theirs.state[&("m.room.create".to_owned(), String::new())]);
        // What the rules forbid: who has rejected it gives it to nobody.
        let name = json!({ "type": "m.room.name", "state_key": "", "content": { "name": "Zoe's" } });
        let (forbidden, event) = peer.sign(version, theirs.draft(scene.one.world.now_ms(), &zoe, name));
        assert_eq!(peer.send(&scene.one.homeserver(), "1", &[event]).0, 200);
        let (built, event) = theirs.say_upon(&peer, &zoe, "built upon it", &[&forbidden, &theirs.last]);
        assert_eq!(peer.send(&scene.one.homeserver(), "2", &[event]), (200, json!({ "pdus": { built: {} } })));
        scene.says(8..12);
        let (three, carol) = scene.carol_joins();
        let found = back(&three, &carol, &scene.room, None, 7, "");
        assert_eq!(found, scene.all_but(""), "{version}");
        assert_eq!(found.last(), Some(&create), "{version}");
        let path = format!("/rooms/{}/messages?dir=b&limit=1000", quote(&scene.room));
        assert_eq!(three.get(&carol, &path).1.get("end"), None, "{version}");
    }
}
