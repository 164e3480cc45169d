//! Fetching what staged PDUs cite: who is asked for it, what is believed, and how much of it there may be.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use futures_util::future::{join, join_all};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use verge::{
    matrix::identifiers::RoomId,
    platform::Clock,
    room::Draft,
    router::{Request, Response, json_response},
};

use crate::{
    Scene,
    common::{
        homeserver::object,
        network::World,
        peer::{Peer, PeerRoom, event_id},
    },
    scene, scene_in,
};

/// An event and its ID.
type Known = (String, Value);

fn not_found() -> Response {
    json_response(StatusCode::NOT_FOUND, &json!({ "errcode": "M_NOT_FOUND", "error": "?" }))
}

/// What a server answers that holds `events` and the room's state before them.
fn answer_of(events: &[Known], request: &Request) -> Option<Response> {
    let by_id: BTreeMap<&str, &Value> = events.iter().map(|(id, event)| (id.as_str(), event)).collect();
    let path = request.uri().path();
    let previous = |event: &Value| -> Vec<String> {
        event["prev_events"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    };
    if path.contains("/get_missing_events/") {
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        let limit = body["limit"].as_u64().unwrap().min(20) as usize;
        let ids = |name: &str| -> Vec<String> {
            body[name].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
        };
        let earliest = ids("earliest_events");
        let mut found: Vec<&Value> = Vec::new();
        let mut waiting: Vec<String> = ids("latest_events")
            .iter()
            .filter_map(|id| by_id.get(id.as_str()))
            .flat_map(|event| previous(event))
            .collect();
        while let Some(id) = waiting.pop()
            && found.len() < limit
        {
            let Some(event) = by_id.get(id.as_str()) else { continue };
            if !earliest.contains(&id) && !found.contains(event) {
                found.push(event);
                waiting.extend(previous(event));
            }
        }
        return Some(json_response(StatusCode::OK, &json!({ "events": found })));
    }
    if path.contains("/v1/event/") {
        let event = by_id.iter().find(|(id, _)| path.ends_with(&id[1..]));
        let Some((_, event)) = event else { return Some(not_found()) };
        return Some(json_response(StatusCode::OK, &json!({ "pdus": [event] })));
    }
    None
}

/// From now on the peer has these events.
fn holds(peer: &Peer, events: &[Known]) {
    let events = events.to_vec();
    peer.answers(move |request| answer_of(&events, request));
}

/// From now on the peer answers, but has nothing to say.
fn is_empty_handed(peer: &Peer) {
    peer.answers(|request| {
        let path = request.uri().path();
        if path.contains("/get_missing_events/") {
            return Some(json_response(StatusCode::OK, &json!({ "events": [] })));
        }
        path.contains("/_matrix/federation/v1/").then(not_found)
    });
}

/// How many requests the peer has got whose path holds `part`.
fn asked(peer: &Peer, part: &str) -> usize {
    peer.received.borrow().iter().filter(|request| request.uri().path().contains(part)).count()
}

impl Scene {
    /// Another peer, whose user has joined the room too.
    fn member(&mut self, name: &str, localpart: &str) -> (Rc<Peer>, PeerRoom) {
        let peer = Peer::new(&self.world, name);
        let theirs = peer.join(&self.a, self.room.as_str(), &peer.user(localpart));
        self.world.settle();
        // Bob's server has heard of it.
        self.theirs.advance(&theirs.last);
        (peer, theirs)
    }

    /// So many messages of Bob's.
    fn say(&mut self, count: usize) -> Vec<Known> {
        (0..count).map(|i| self.theirs.say(&self.peer, &self.bob, &format!("message {i}"))).collect()
    }

    fn is_shown(&self, events: &[Known]) {
        for (id, _) in events {
            assert!(self.a.shows(id), "{id} is not shown; {:#?}", self.world.logs());
        }
        assert!(self.a.database.rows("SELECT 1 FROM staged_pdus").is_empty());
    }
}

fn takes(peer: &Peer, scene: &Scene, txn_id: &str, event: &Known) {
    let answer = peer.send(&scene.a, txn_id, std::slice::from_ref(&event.1));
    assert_eq!(answer, (200, json!({ "pdus": { event.0.as_str(): {} } })));
}

/// Bob's server sends all of these, in as many transactions as that takes.
fn sends(scene: &Scene, events: &[Known]) {
    for (number, events) in events.chunks(50).enumerate() {
        let pdus: Vec<Value> = events.iter().map(|(_, event)| event.clone()).collect();
        assert_eq!(scene.peer.send(&scene.a, &number.to_string(), &pdus).0, 200);
        scene.world.settle();
        assert!(events.iter().all(|(id, _)| scene.a.shows(id)));
    }
}

#[test]
fn the_sender_s_own_server_is_asked_whoever_relays_an_event() {
    let mut scene = scene("12");
    let (relay, _) = scene.member("relay.example", "mallory");
    is_empty_handed(&relay);
    let said = scene.say(3);
    holds(&scene.peer, &said);
    takes(&relay, &scene, "1", &said[2]);
    scene.world.settle();
    scene.is_shown(&said);
    assert_eq!((asked(&scene.peer, "/get_missing_events/"), asked(&relay, "/get_missing_events/")), (1, 0));
}

#[test]
fn others_in_the_room_are_asked_where_the_sender_s_server_is_gone() {
    let mut scene = scene("12");
    let (relay, _) = scene.member("relay.example", "mallory");
    let (third, _) = scene.member("third.example", "carol");
    is_empty_handed(&relay);
    let said = scene.say(3);
    holds(&third, &said);
    scene.world.disconnect("peer.example");
    takes(&relay, &scene, "1", &said[2]);
    scene.world.settle();
    scene.is_shown(&said);
}

/// They are not in the room, and none of them is the sender's server: nobody asks them for another reason.
#[test]
fn all_who_sent_an_event_are_remembered_and_asked() {
    let mut scene = scene("12");
    let said = scene.say(2);
    scene.world.disconnect("peer.example");
    let senders = ["one.example", "two.example", "three.example"].map(|name| Peer::new(&scene.world, name));
    senders.iter().for_each(|sender| is_empty_handed(sender));
    holds(&senders[2], &said);
    for sender in &senders {
        assert!(!scene.a.shows(&said[1].0));
        takes(sender, &scene, "1", &said[1]);
        scene.world.settle();
    }
    scene.is_shown(&said);
    let looks = senders.each_ref().map(|sender| asked(sender, "/get_missing_events/"));
    assert_eq!(looks, [3, 2, 1], "each of them at each look, until one has it");
}

#[test]
fn what_its_own_server_sends_when_it_is_back_is_looked_for_at_once() {
    let mut scene = scene("12");
    let (relay, _) = scene.member("relay.example", "mallory");
    is_empty_handed(&relay);
    let said = scene.say(2);
    scene.world.disconnect("peer.example");
    takes(&relay, &scene, "1", &said[1]);
    scene.world.settle();
    assert!(!scene.a.shows(&said[1].0));
    // It sends it as if for the first time.
    let back = Peer::new(&scene.world, "peer.example");
    holds(&back, &said);
    takes(&back, &scene, "1", &said[1]);
    scene.world.settle();
    scene.is_shown(&said);
}

#[test]
fn a_server_in_the_room_takes_the_place_of_strangers() {
    let mut scene = scene("12");
    scene.world.disconnect("peer.example");
    let said = scene.say(2);
    let senders = || scene.a.database.rows("SELECT origin, also, stranger FROM staged_pdus");
    for number in 0..7 {
        let stranger = Peer::new(&scene.world, &format!("stranger{number}.example"));
        takes(&stranger, &scene, "1", &said[1]);
        scene.world.settle();
    }
    let [origin, also, stranger] = &senders()[0][..] else { panic!() };
    assert_eq!((origin.as_str(), stranger.as_str()), ("stranger0.example", "1"));
    assert_eq!(serde_json::from_str::<Vec<String>>(also).unwrap().len(), 4);
    let back = Peer::new(&scene.world, "peer.example");
    is_empty_handed(&back);
    takes(&back, &scene, "1", &said[1]);
    scene.world.settle();
    assert_eq!(senders(), [["peer.example", "[]", "0"]]);
}

#[test]
fn a_server_that_does_not_give_the_auth_chain_may_give_the_rest() {
    let mut scene = scene("12");
    let carol = scene.peer.user("carol");
    let join = scene.becomes(&carol, "join");
    let said = scene.theirs.say(&scene.peer, &carol, "hello");
    let events = [join, said];
    // `event_auth` is answered with 404.
    holds(&scene.peer, &events);
    takes(&scene.peer, &scene, "1", &events[1]);
    scene.world.settle();
    scene.is_shown(&events);
    assert_eq!(asked(&scene.peer, "/event_auth/"), 1);
}

#[test]
fn a_wide_gap_is_filled_page_by_page() {
    let mut scene = scene("12");
    let said = scene.say(130);
    holds(&scene.peer, &said);
    let version = || scene.a.database.rows("SELECT version FROM rooms")[0][0].parse::<i64>().unwrap();
    let before = version();
    takes(&scene.peer, &scene, "1", &said[129]);
    scene.world.settle();
    scene.is_shown(&said);
    // Judged in slices: what one has brought stays, wherever a look is cut off.
    assert_eq!(version() - before, 2);
    assert_eq!(asked(&scene.peer, "/get_missing_events/"), 7);
}

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
        let (mut most_steps, mut most_done) = (0, 0);
        for _ in 0..TRANSACTIONS {
            let before = (steps(), done.get());
            // It stands behind what has come before it.
            world.pause().await;
            speak().await;
            most_steps = most_steps.max(steps() - before.0);
            most_done = most_done.max(done.get() - before.1);
        }
        (most_steps, most_done)
    };
    let (_, (most_steps, most_done)) = world.run(join(flooding, speaking));
    assert!(most_done <= 4, "{most_done} transactions");
    // Of the gap, a slice is as much as a transaction.
    assert!(
        most_steps <= spoken + 6 * sent,
        "{most_steps} steps, where alone it takes {spoken}, and a transaction {sent}"
    );
    world.settle();
    scene.is_shown(&said);
}

/// A state that is claimed is what to fall back on where nobody knows what was between.
#[test]
fn other_servers_are_asked_for_the_rest_of_a_gap() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let said = scene.say(30);
    // The sender's own server has lost what is old.
    holds(&scene.peer, &said[20..]);
    holds(&third, &said);
    takes(&scene.peer, &scene, "1", &said[29]);
    scene.world.settle();
    scene.is_shown(&said);
}

#[test]
fn a_server_that_never_answers_costs_only_its_time() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let said = scene.say(3);
    holds(&third, &said);
    takes(&scene.peer, &scene, "1", &said[0]);
    let (clock, begun) = (scene.world.clone(), scene.world.now_ms());
    scene.world.connect(
        "peer.example",
        Rc::new(move |request| {
            // What we send it is another matter.
            let (clock, waits) = (clock.clone(), !request.uri().path().contains("/send/"));
            Box::pin(async move {
                if waits {
                    clock.sleep(3_600_000).await;
                }
                not_found()
            })
        }),
    );
    takes(&third, &scene, "1", &said[2]);
    scene.world.settle();
    scene.is_shown(&said);
    assert!(scene.world.now_ms() - begun < 30_000);
}

/// The event with one character of its signature another one.
fn wrongly_signed((id, event): &Known) -> Known {
    let mut event = event.clone();
    let signature = &mut event["signatures"]["peer.example"]["ed25519:peer"];
    let text = signature.as_str().unwrap().to_owned();
    *signature = json!(format!("{}{}", if text.starts_with('A') { 'B' } else { 'A' }, &text[1..]));
    assert_eq!(event_id("12", &event), *id);
    (id.clone(), event)
}

#[test]
fn a_copy_that_is_refused_is_asked_for_of_another_server() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let said = scene.say(3);
    let mut tampered = said.clone();
    tampered[1] = wrongly_signed(&said[1]);
    holds(&scene.peer, &tampered);
    holds(&third, &said);
    takes(&scene.peer, &scene, "1", &said[2]);
    scene.world.settle();
    scene.is_shown(&said);
    assert_eq!(asked(&scene.peer, "/get_missing_events/"), 1);
}

#[test]
fn who_has_given_a_bad_copy_is_not_asked_for_the_event_itself() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let state: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
    let said = scene.say(2);
    let tampered = wrongly_signed(&said[0]);
    gives(&scene.peer, &[&tampered], &[&tampered], state.clone());
    claims(&third, &[&said[0]], state);
    takes(&scene.peer, &scene, "1", &said[1]);
    scene.world.settle();
    scene.is_shown(&said[1..]);
    let id = &said[0].0[1..];
    assert_eq!((asked(&scene.peer, id), asked(&third, id)), (0, 1));
}

#[test]
fn what_nobody_asked_for_is_not_kept() {
    let mut scene = scene("12");
    let carol = scene.peer.user("carol");
    // Good events all, but no part of what is asked for.
    let fork = scene.theirs.clone();
    let extra: Vec<Known> = (0..5)
        .map(|i| {
            let fields = json!({ "type": "m.room.message", "content": { "body": format!("extra {i}") } });
            scene.peer.sign("12", fork.draft(scene.world.now_ms(), &scene.bob, fields))
        })
        .collect();
    let join = scene.becomes(&carol, "join");
    let said = scene.theirs.say(&scene.peer, &carol, "hello");
    let (given, chain) = (vec![join.1.clone()], join.1.clone());
    let all: Vec<Value> = given.into_iter().chain(extra.iter().map(|(_, event)| event.clone())).collect();
    scene.peer.answers(move |request| {
        let path = request.uri().path();
        let body = if path.contains("/get_missing_events/") {
            json!({ "events": all })
        } else if path.contains("/event_auth/") {
            let more: Vec<&Value> = all.iter().chain([&chain]).collect();
            json!({ "auth_chain": more })
        } else {
            return None;
        };
        Some(json_response(StatusCode::OK, &body))
    });
    takes(&scene.peer, &scene, "1", &said);
    scene.world.settle();
    scene.is_shown(&[join, said]);
    for (id, _) in &extra {
        let rows = scene.a.database.rows(&format!("SELECT 1 FROM events WHERE event_id = '{id}'"));
        assert!(rows.is_empty(), "{id} was kept");
    }
}

/// From now on the peer has lost all but these events and what it says that the state before them is.
pub(crate) fn claims(peer: &Peer, events: &[&Known], state: Vec<String>) {
    gives(peer, &[], events, state);
}

/// As [`claims`]; and these events are between what anybody has and what they have heard of.
fn gives(peer: &Peer, between: &[&Known], events: &[&Known], state: Vec<String>) {
    let events: Vec<Known> = events.iter().map(|event| (*event).clone()).collect();
    let between: Vec<Value> = between.iter().map(|(_, event)| event.clone()).collect();
    peer.answers(move |request| {
        let path = request.uri().path();
        let body = if path.contains("/get_missing_events/") {
            json!({ "events": between })
        } else if path.contains("/state_ids/") {
            json!({ "pdu_ids": state, "auth_chain_ids": state })
        } else {
            let answer = answer_of(&events, request);
            return answer.or_else(|| path.contains("/_matrix/federation/v1/").then(not_found));
        };
        Some(json_response(StatusCode::OK, &body))
    });
}

/// A server may claim a state of long ago, or one without what it dislikes.
#[test]
fn two_servers_are_asked_for_the_state_before_a_gap() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let mut state: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
    let dave = scene.peer.user("dave");
    let join = scene.becomes(&dave, "join");
    let said = scene.say(2);
    claims(&scene.peer, &[&said[0]], state.clone());
    state.push(join.0.clone());
    claims(&third, &[&said[0], &join], state);
    takes(&scene.peer, &scene, "1", &said[1]);
    scene.world.settle();
    scene.is_shown(&said[1..]);
    assert_eq!((asked(&scene.peer, "/state_ids/"), asked(&third, "/state_ids/")), (1, 1));
    assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
}

/// A server that claims what came later rejects nothing: neither Dave's leave, which would stand before itself, nor what he has said
/// before it.
#[test]
fn a_state_that_comes_after_an_event_is_not_the_state_before_it() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let (third, _) = scene.member("third.example", "carol");
        let dave = scene.peer.user("dave");
        let join = scene.becomes(&dave, "join");
        takes(&scene.peer, &scene, "0", &join);
        scene.world.advance(1_000);
        let ids = |scene: &Scene| scene.theirs.state.values().map(|event| event_id(version, event)).collect();
        let before: Vec<String> = ids(&scene);
        let said = scene.say(2);
        let dave_says = scene.theirs.clone().say(&scene.peer, &dave, "good-bye");
        let leave = scene.becomes(&dave, "leave");
        claims(&scene.peer, &[&said[1]], before);
        claims(&third, &[&said[1], &leave], ids(&scene));
        for (txn_id, event) in [("1", &dave_says), ("2", &leave)] {
            takes(&scene.peer, &scene, txn_id, event);
            scene.world.settle();
        }
        assert_eq!(asked(&third, "/state_ids/"), 1);
        scene.is_shown(&[dave_says, leave]);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("leave"));
    }
}

/// As above, where it cannot be seen in the claim that it comes after the event.
#[test]
fn what_is_claimed_to_stand_before_itself_is_judged_by_what_it_cites() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let (third, _) = scene.member("third.example", "carol");
        let dave = scene.peer.user("dave");
        let join = scene.becomes(&dave, "join");
        takes(&scene.peer, &scene, "0", &join);
        scene.world.advance(1_000);
        let said = scene.say(3);
        let leave = scene.becomes(&dave, "leave");
        is_empty_handed(&scene.peer);
        let after = scene.theirs.state.values().map(|event| event_id(version, event)).collect();
        claims(&third, &[&said[1], &leave], after);
        for (txn_id, event) in [("1", &said[2]), ("2", &leave)] {
            takes(&scene.peer, &scene, txn_id, event);
            scene.world.settle();
            scene.is_shown(std::slice::from_ref(event));
        }
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("leave"));
    }
}

/// Who has rejected an event gives it to nobody, and shows what was built upon it nevertheless.
#[test]
fn what_cites_an_event_that_nobody_gives_is_judged_by_the_state_before_it() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let state: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
    let said = scene.say(3);
    // Nobody who has what follows says that nobody gives the first one: it may still come.
    is_empty_handed(&scene.peer);
    gives(&third, &[&said[1]], &[&said[0], &said[1]], Vec::new());
    takes(&scene.peer, &scene, "1", &said[2]);
    scene.world.settle();
    assert!(said.iter().all(|(id, _)| !scene.a.shows(id)));
    gives(&third, &[&said[1]], &[&said[1]], state);
    scene.world.advance(60 * 60 * 1_000);
    scene.world.run(scene.a.scheduled());
    scene.world.settle();
    scene.is_shown(&said[1..]);
    assert!(!scene.a.shows(&said[0].0));
    // When it comes, it is what it would have been.
    takes(&scene.peer, &scene, "2", &said[0]);
    scene.world.settle();
    scene.is_shown(&said);
}

/// Bob lets Dave in, who joins: the invite is an auth event of the join, and no part of the state. One server claims the state and
/// withholds either of them; as long as nobody gives it, the state is not believed without.
#[test]
fn a_claimed_state_is_believed_whole_or_not_at_all() {
    for withheld in ["join", "invite"] {
        let mut scene = scene("12");
        let (third, _) = scene.member("third.example", "carol");
        let dave = scene.peer.user("dave");
        let mut state: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
        let invite = json!({ "type": "m.room.member", "state_key": dave, "content": { "membership": "invite" } });
        let mut draft = scene.theirs.draft(scene.world.now_ms(), &scene.bob, invite);
        let rules = scene.theirs.state_id("m.room.join_rules", "").unwrap();
        draft["auth_events"].as_array_mut().unwrap().push(json!(rules));
        let invite = scene.peer.sign("12", draft);
        scene.theirs.state.insert(("m.room.member".to_owned(), dave.clone()), invite.1.clone());
        scene.theirs.advance(&invite.0);
        let join = json!({ "type": "m.room.member", "state_key": dave, "content": { "membership": "join" } });
        let mut draft = scene.theirs.draft(scene.world.now_ms(), &dave, join);
        draft["auth_events"].as_array_mut().unwrap().push(json!(rules));
        let join = scene.peer.sign("12", draft);
        scene.theirs.advance(&join.0);
        let said = scene.say(2);
        state.push(join.0.clone());
        let (given, kept) = if withheld == "join" { (&invite, &join) } else { (&join, &invite) };
        claims(&scene.peer, &[&said[0], given], state);
        is_empty_handed(&third);
        takes(&scene.peer, &scene, "1", &said[1]);
        scene.world.settle();
        assert!(!scene.a.shows(&said[1].0), "without the {withheld}");
        // Somebody has it.
        holds(&third, std::slice::from_ref(kept));
        scene.world.advance(3_600_000);
        scene.world.run(scene.a.scheduled());
        scene.world.settle();
        scene.is_shown(&said[1..]);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
    }
}

#[test]
fn a_claimed_state_makes_us_load_no_more_than_a_state() {
    let mut scene = scene("12");
    let messages: Vec<Known> =
        (0..100).map(|_| scene.theirs.say(&scene.peer, &scene.bob, &"x".repeat(20_000))).collect();
    sends(&scene, &messages);
    let other = scene.a.public_room(&scene.world, &scene.alice, "12");
    let elsewhere = scene.a.say(&scene.world, &other, &scene.alice, "secret").event_id().to_string();
    let said = scene.say(2);
    let mut state: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
    // What is no state of this room, though we hold it, makes no difference.
    state.extend(messages.iter().map(|(id, _)| id.clone()).chain([elsewhere]));
    claims(&scene.peer, &[&said[0]], state);
    let before = scene.a.database.read.get();
    takes(&scene.peer, &scene, "said", &said[1]);
    scene.world.settle();
    scene.is_shown(&said[1..]);
    // Of each message we read what it is, and not itself.
    let read = scene.a.database.read.get() - before;
    assert!(read < 200_000, "{read} bytes were read");
}

/// The room's members say much of themselves, and we hold it all. A claimed state names them, or holds an event that cites them.
#[test]
fn what_is_held_of_a_claimed_state_counts_against_the_memory_for_it() {
    for (members, is_cited) in [(100, false), (100, true), (170, false), (170, true)] {
        let mut scene = scene("12");
        let rules = scene.theirs.state_id("m.room.join_rules", "").unwrap();
        let others: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
        let joins: Vec<Known> = (0..members)
            .map(|n| {
                let user = scene.peer.user(&format!("member{n}"));
                let content = json!({ "membership": "join", "about": "x".repeat(60_000) });
                let fields = json!({ "type": "m.room.member", "state_key": user, "content": content });
                let mut draft = scene.theirs.draft(scene.world.now_ms(), &user, fields);
                draft["auth_events"].as_array_mut().unwrap().push(json!(rules));
                let join = scene.peer.sign("12", draft);
                scene.theirs.advance(&join.0);
                join
            })
            .collect();
        sends(&scene, &joins);
        let ids: Vec<String> = joins.iter().map(|(id, _)| id.clone()).collect();
        let fields = json!({ "type": "m.room.topic", "state_key": "", "content": {}, "auth_events": ids });
        let citing = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields));
        let named = if is_cited { vec![citing.0.clone()] } else { ids };
        let said = scene.say(2);
        claims(&scene.peer, &[&said[0], &citing], [others, named].concat());
        let before = scene.a.database.read.get();
        takes(&scene.peer, &scene, "said", &said[1]);
        scene.world.settle();
        let read = scene.a.database.read.get() - before;
        let fits = members == 100;
        assert_eq!(scene.a.shows(&said[1].0), fits, "{members} members, cited: {is_cited}: {:#?}", scene.world.logs());
        if !fits {
            assert!(read < 1_000_000, "{read} bytes were read, cited: {is_cited}");
            let why = match is_cited {
                false => "a state that a server claims takes more memory than there is",
                true => "a state that a server claims cannot be obtained whole",
            };
            assert!(scene.world.logs().iter().any(|line| line.contains(why)), "{:#?}", scene.world.logs());
        }
    }
}

/// Bob's server fails in the midst of the state that it claims, and goes on failing for a while. What Carol's has sent in the same room
/// is judged in the same look, whichever comes first.
#[test]
fn a_server_that_fails_ends_only_what_it_has_sent() {
    for bob_is_first in [true, false] {
        let mut scene = scene("12");
        let (third, mut hers) = scene.member("third.example", "carol");
        let state: Vec<String> = hers.state.values().map(|event| event_id("12", event)).collect();
        let dave = scene.peer.user("dave");
        let join = scene.becomes(&dave, "join");
        let of_bob = scene.say(2);
        let of_carol = ["the edge", "after it"].map(|text| hers.say(&third, &third.user("carol"), text));
        is_empty_handed(&scene.peer);
        is_empty_handed(&third);
        let mut sent = [(&scene.peer, &of_bob[1]), (&third, &of_carol[1])];
        sent.sort_by_key(|(peer, _)| (peer.name == "peer.example") != bob_is_first);
        for (peer, event) in sent {
            takes(peer, &scene, "1", event);
            scene.world.settle();
            scene.world.advance(1);
        }
        assert_eq!(scene.a.database.rows("SELECT count(*) FROM staged_pdus"), [["2"]]);

        let fails = Rc::new(Cell::new(true));
        let give = |events: Vec<Known>, state: Vec<String>, fails: Rc<Cell<bool>>| {
            move |request: &Request| {
                let target = request.uri().to_string();
                if target.contains("/get_missing_events/") {
                    return Some(json_response(StatusCode::OK, &json!({ "events": [] })));
                }
                // Neither says anything of the other's edge.
                if target.contains("/state_ids/") && target.contains(&events[0].0[1..]) {
                    let body = json!({ "pdu_ids": state, "auth_chain_ids": [] });
                    return Some(json_response(StatusCode::OK, &body));
                }
                if fails.get() && events.get(1).is_some_and(|(id, _)| target.ends_with(&id[1..])) {
                    let error = json!({ "errcode": "M_UNKNOWN", "error": "?" });
                    return Some(json_response(StatusCode::INTERNAL_SERVER_ERROR, &error));
                }
                let answer = answer_of(&events, request);
                answer.or_else(|| target.contains("/_matrix/federation/v1/").then(not_found))
            }
        };
        let with_dave = [state.clone(), vec![join.0.clone()]].concat();
        scene.peer.answers(give(vec![of_bob[0].clone(), join.clone()], with_dave, Rc::clone(&fails)));
        third.answers(give(vec![of_carol[0].clone()], state, Rc::default()));
        let an_hour_passes = || {
            scene.world.advance(3_600_000);
            scene.world.run(scene.a.scheduled());
            scene.world.settle();
        };
        an_hour_passes();
        let logs = scene.world.logs();
        assert!(logs.iter().any(|line| line.contains("a server does not give the events of a state")), "{logs:#?}");
        assert!(scene.a.shows(&of_carol[1].0), "{logs:#?}");
        assert_eq!(scene.a.database.rows("SELECT event_id FROM staged_pdus"), [[of_bob[1].0.clone()]]);
        fails.set(false);
        an_hour_passes();
        scene.is_shown(&[of_bob[1].clone(), of_carol[1].clone()]);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
    }
}

#[test]
fn a_claimed_state_without_end_is_not_used() {
    let mut scene = scene("12");
    let said = scene.say(2);
    let state: Vec<String> = (0..120_000).map(|i| format!("${i:043}")).collect();
    claims(&scene.peer, &[&said[0]], state);
    takes(&scene.peer, &scene, "1", &said[1]);
    scene.world.settle();
    assert!(!scene.a.shows(&said[1].0));
    assert_eq!((asked(&scene.peer, "/state_ids/"), asked(&scene.peer, "/v1/state/")), (1, 0));
}

/// Events of a user whose server is not in the room by our state, which cite what nobody knows.
fn of_stranger(scene: &Scene, stranger: &Peer, count: usize, bytes: usize) -> Vec<Value> {
    (0..count)
        .map(|i| {
            let content = json!({ "body": "x".repeat(bytes) });
            let fields =
                json!({ "type": "m.room.message", "content": content, "prev_events": [format!("$no{i:041}")] });
            stranger.sign("12", scene.theirs.draft(scene.world.now_ms(), &stranger.user("x"), fields)).1
        })
        .collect()
}

#[test]
fn strangers_may_stage_little() {
    let scene = scene("12");
    let staged = || {
        let rows = scene.a.database.rows("SELECT count(*), COALESCE(SUM(length(json)), 0) FROM staged_pdus");
        (rows[0][0].parse::<usize>().unwrap(), rows[0][1].parse::<usize>().unwrap())
    };
    let small = Peer::new(&scene.world, "small.example");
    for txn_id in ["1", "2", "3"] {
        let pdus = of_stranger(&scene, &small, 50, 10 + txn_id.len());
        assert_eq!(small.send(&scene.a, txn_id, &pdus).0, 200);
        scene.world.settle();
    }
    assert_eq!(staged().0, 20);
    let large = Peer::new(&scene.world, "large.example");
    let before = staged().1;
    let (status, answer) = large.send(&scene.a, "1", &of_stranger(&scene, &large, 10, 60_000));
    assert_eq!(status, 200);
    let refused = answer["pdus"].as_object().unwrap().values().filter(|result| result["error"].is_string()).count();
    assert_eq!(refused, 6, "{answer}");
    assert!(staged().1 - before <= 256 * 1024);
    // However many they are.
    for number in 0..15 {
        let stranger = Peer::new(&scene.world, &format!("stranger{number}.example"));
        assert_eq!(stranger.send(&scene.a, "1", &of_stranger(&scene, &stranger, 50, 10)).0, 200);
        scene.world.settle();
    }
    assert_eq!(staged().0, 200);
    // Who is in the room may have more waiting.
    let mut of_member = of_stranger(&scene, &scene.peer, 50, 10);
    for (number, event) in of_member.iter_mut().enumerate() {
        let fields = json!({ "type": "m.room.message", "content": {}, "prev_events": [format!("$m{number:042}")] });
        *event = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields)).1;
    }
    assert_eq!(scene.peer.send(&scene.a, "1", &of_member).0, 200);
    assert_eq!(staged().0, 250);
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
