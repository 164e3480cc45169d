//! Fetching what staged PDUs cite: who is asked for it, what is believed, and how much of it there may be.

use std::{collections::BTreeMap, rc::Rc};

use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    platform::Clock,
    router::{Request, Response, json_response},
};

use crate::{
    Scene,
    common::peer::{Peer, PeerRoom, event_id},
    scene,
};

/// An event and its ID.
type Known = (String, Value);

pub(crate) fn not_found() -> Response {
    json_response(StatusCode::NOT_FOUND, &json!({ "errcode": "M_NOT_FOUND", "error": "?" }))
}

/// What a server answers that holds `events` and the room's state before them.
pub(crate) fn answer_of(events: &[Known], request: &Request) -> Option<Response> {
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
pub(crate) fn holds(peer: &Peer, events: &[Known]) {
    let events = events.to_vec();
    peer.answers(move |request| answer_of(&events, request));
}

/// From now on Bob's server has these events, and says of each that the state before it is the one that is now.
fn holds_with_states(scene: &Scene, events: &[Known]) {
    let events = events.to_vec();
    let state: Vec<String> = scene.theirs.state.values().map(|event| event_id(&scene.theirs.version, event)).collect();
    scene.peer.answers(move |request| match request.uri().path().contains("/state_ids/") {
        true => Some(json_response(StatusCode::OK, &json!({ "pdu_ids": state, "auth_chain_ids": state }))),
        false => answer_of(&events, request),
    });
}

/// From now on the peer answers, but has nothing to say.
pub(crate) fn is_empty_handed(peer: &Peer) {
    peer.answers(|request| {
        let path = request.uri().path();
        if path.contains("/get_missing_events/") {
            return Some(json_response(StatusCode::OK, &json!({ "events": [] })));
        }
        path.contains("/_matrix/federation/v1/").then(not_found)
    });
}

/// From now on the peer has lost all but these events and what it says that the state before them is.
pub(crate) fn claims(peer: &Peer, events: &[&Known], state: Vec<String>) {
    gives(peer, &[], events, state);
}

/// As [`claims`]; and these events are between what anybody has and what they have heard of.
pub(crate) fn gives(peer: &Peer, between: &[&Known], events: &[&Known], state: Vec<String>) {
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

/// How many requests the peer has got whose path holds `part`.
pub(crate) fn asked(peer: &Peer, part: &str) -> usize {
    peer.received.borrow().iter().filter(|request| request.uri().path().contains(part)).count()
}

impl Scene {
    /// Another peer, whose user has joined the room too.
    pub(crate) fn member(&mut self, name: &str, localpart: &str) -> (Rc<Peer>, PeerRoom) {
        let peer = Peer::new(&self.world, name);
        let theirs = peer.join(&self.a, self.room.as_str(), &peer.user(localpart));
        self.world.settle();
        // Bob's server has heard of it.
        self.theirs.advance(&theirs.last);
        (peer, theirs)
    }

    /// So many messages of Bob's.
    pub(crate) fn say(&mut self, count: usize) -> Vec<Known> {
        (0..count).map(|i| self.theirs.say(&self.peer, &self.bob, &format!("message {i}"))).collect()
    }

    fn minutes(&self, minutes: usize) {
        for _ in 0..minutes {
            self.world.advance(60_000);
            self.world.run(self.a.scheduled());
            self.world.settle();
        }
    }

    pub(crate) fn is_shown(&self, events: &[Known]) {
        for (id, _) in events {
            assert!(self.a.shows(id), "{id} is not shown; {:#?}", self.world.logs());
        }
        assert!(self.a.database.rows("SELECT 1 FROM staged_pdus").is_empty());
    }
}

pub(crate) fn takes(peer: &Peer, scene: &Scene, txn_id: &str, event: &Known) {
    let answer = peer.send(&scene.a, txn_id, std::slice::from_ref(&event.1));
    assert_eq!(answer, (200, json!({ "pdus": { event.0.as_str(): {} } })));
}

/// Bob's server sends all of these, in as many transactions as that takes.
pub(crate) fn sends(scene: &Scene, events: &[Known]) {
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

/// What cites what came late, and what cites that in its turn: in hours nobody gave any of it, and its turn is not soon.
#[test]
fn what_waits_is_judged_when_what_it_cites_comes_by_itself() {
    let mut scene = scene("12");
    is_empty_handed(&scene.peer);
    let said = scene.say(3);
    takes(&scene.peer, &scene, "1", &said[1]);
    takes(&scene.peer, &scene, "2", &said[2]);
    scene.world.settle();
    for _ in 0..20 {
        scene.world.advance(3_600_000);
        scene.world.run(scene.a.scheduled());
    }
    assert!(!scene.a.shows(&said[1].0));
    takes(&scene.peer, &scene, "3", &said[0]);
    scene.world.settle();
    scene.is_shown(&said);
}

#[test]
fn what_waits_is_judged_when_what_it_cites_comes_while_it_is_asked_for() {
    let mut scene = scene("12");
    let said = scene.say(2);
    let clock = scene.world.clone();
    scene.world.connect(
        "peer.example",
        Rc::new(move |_| {
            let clock = clock.clone();
            Box::pin(async move {
                clock.sleep(5_000).await;
                not_found()
            })
        }),
    );
    takes(&scene.peer, &scene, "1", &said[1]);
    // By then it is asked for.
    scene.world.run(scene.world.sleep(1_000));
    takes(&scene.peer, &scene, "2", &said[0]);
    scene.world.settle();
    scene.is_shown(&said);
}

/// Who holds a PDU back does not have us ask anybody again with each other one that comes.
#[test]
fn what_comes_makes_nobody_be_asked_for_what_does_not_cite_it() {
    let mut scene = scene("12");
    is_empty_handed(&scene.peer);
    let said = |scene: &mut Scene, txn_id: &str| {
        let before = (asked(&scene.peer, ""), scene.a.database.calls.get());
        let said = scene.theirs.say(&scene.peer, &scene.bob, txn_id);
        takes(&scene.peer, scene, txn_id, &said);
        scene.world.settle();
        assert!(scene.a.shows(&said.0));
        (asked(&scene.peer, "") - before.0, scene.a.database.calls.get() - before.1)
    };
    // So that keys are known.
    said(&mut scene, "1");
    let alone = said(&mut scene, "2");
    let fork = scene.theirs.clone();
    let lost = scene.say(2);
    takes(&scene.peer, &scene, "3", &lost[1]);
    scene.world.settle();
    scene.theirs = fork;
    assert_eq!(said(&mut scene, "4"), alone);
    assert_eq!(said(&mut scene, "5"), alone);
    assert_eq!(scene.a.database.rows("SELECT event_id FROM staged_pdus"), [[lost[1].0.clone()]]);
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

/// Who sends an event gives it what depth they like, and all that is built upon it alone counts on from there. It is new all the same,
/// and what was before we came is not, wherever it is cited.
#[test]
fn what_is_new_is_new_at_whatever_depth() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let mut before = scene.theirs.clone();
        scene.theirs.depth += 40;
        // As if we had come into the room now.
        let here = scene.say(1);
        takes(&scene.peer, &scene, "1", &here[0]);
        scene.a.database.rows("UPDATE rooms SET joined_pos = (SELECT MAX(pos) FROM timeline) RETURNING 1");
        let history: Vec<Known> = (0..3).map(|i| before.say(&scene.peer, &scene.bob, &format!("old {i}"))).collect();
        scene.theirs.depth = -1;
        let shallow = scene.say(1);
        assert_eq!(shallow[0].1["depth"], 0);
        takes(&scene.peer, &scene, "2", &shallow[0]);
        let mut missed = scene.say(45);
        let previous = [&*scene.theirs.last, &before.last];
        missed.push(scene.theirs.say_upon(&scene.peer, &scene.bob, "cites what is old", &previous));
        holds_with_states(&scene, &[&history[..], &missed].concat());
        takes(&scene.peer, &scene, "3", missed.last().unwrap());
        scene.world.settle();
        scene.is_shown(&missed);
        for (id, _) in &history {
            assert!(!scene.a.shows(id), "{id} was before we came");
        }
    }
}

/// Somebody has said something while we came into the room, upon what was before.
#[test]
fn history_is_not_asked_for_page_by_page() {
    let mut scene = scene("12");
    let mut before = scene.theirs.clone();
    let history: Vec<Known> = (0..200).map(|i| before.say(&scene.peer, &scene.bob, &format!("old {i}"))).collect();
    scene.theirs.depth += 200;
    // As if we had come into the room now.
    let here = scene.say(1);
    takes(&scene.peer, &scene, "1", &here[0]);
    scene.a.database.rows("UPDATE rooms SET joined_pos = (SELECT MAX(pos) FROM timeline) RETURNING 1");
    let meanwhile = before.say(&scene.peer, &scene.bob, "meanwhile");
    let previous = [&*scene.theirs.last, &meanwhile.0];
    let cites = scene.theirs.say_upon(&scene.peer, &scene.bob, "cites both", &previous);
    holds_with_states(&scene, &[&history[..], &[meanwhile.clone(), cites.clone()]].concat());
    takes(&scene.peer, &scene, "2", &cites);
    scene.world.settle();
    scene.is_shown(&[meanwhile, cites]);
    assert!(history.iter().all(|(id, _)| !scene.a.shows(id)));
    let asked = asked(&scene.peer, "/get_missing_events/");
    assert!(asked <= 3, "{asked} times");
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

/// Others may have its keys.
fn whose_keys_are_lacking(comes_back: bool) {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let hidden = Peer::new(&scene.world, "hidden.example");
    scene.world.connect("hidden.example", Rc::new(|_| Box::pin(async { not_found() })));
    let dave = hidden.user("dave");
    let content = json!({ "membership": "join" });
    let join = hidden.sign("12", scene.theirs.draft_member(scene.world.now_ms(), &dave, &dave, content));
    scene.theirs.state.insert(("m.room.member".to_owned(), dave.clone()), join.1.clone());
    scene.theirs.advance(&join.0);
    let hello = scene.theirs.say(&hidden, &dave, "hello");
    let said = scene.say(3);
    let all: Vec<Known> = [join, hello].into_iter().chain(said.iter().cloned()).collect();
    holds_with_states(&scene, &all);
    holds(&third, &all);
    takes(&scene.peer, &scene, "1", &said[2]);
    scene.world.settle();
    // They may only be lacking for a while.
    scene.minutes(50);
    assert!(said.iter().all(|(id, _)| !scene.a.shows(id)));
    if comes_back {
        // It has the same key.
        Peer::new(&scene.world, "hidden.example");
    }
    scene.minutes(80);
    scene.is_shown(&said);
    assert!(all[..2].iter().all(|(id, _)| scene.a.shows(id) == comes_back));
    let is_member = !scene.a.database.rows("SELECT 1 FROM room_servers WHERE server = 'hidden.example'").is_empty();
    assert_eq!(is_member, comes_back);

    // The next time nobody waits for what does not come.
    let again = scene.theirs.say(&hidden, &dave, "hello again");
    let more = scene.say(2);
    let all = [all, vec![again.clone()], more.clone()].concat();
    holds_with_states(&scene, &all);
    holds(&third, &all);
    takes(&scene.peer, &scene, "2", &more[1]);
    scene.world.settle();
    scene.is_shown(&more);
    assert_eq!(scene.a.shows(&again.0), comes_back);
}

/// No key is waited for that would not help, or that nobody is asked for.
#[test]
fn what_no_key_helps_does_not_end_the_room() {
    let signature = "x".repeat(86);
    let signatures = [
        json!({ "other.example": { "ed25519:1": signature } }),
        json!({ "peer.example": { format!("ed25519:{}", "x".repeat(250)): signature } }),
    ];
    for signatures in signatures {
        let mut scene = scene("12");
        let (third, _) = scene.member("third.example", "carol");
        let mut said = scene.say(3);
        said[0].1["signatures"] = signatures;
        holds_with_states(&scene, &said);
        holds(&third, &said);
        takes(&scene.peer, &scene, "1", &said[2]);
        scene.world.settle();
        scene.is_shown(&said[1..]);
    }
}

/// Other servers may take their keys to be valid for that long.
#[test]
fn an_event_of_next_year_does_not_end_the_room() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let fields = json!({ "type": "m.room.message", "content": { "body": "early" } });
    let now = scene.world.now_ms();
    let early = scene.peer.sign("12", scene.theirs.draft(now + 365 * 24 * 3_600_000, &scene.bob, fields));
    scene.theirs.advance(&early.0);
    let said = scene.say(2);
    let all = [vec![early.clone()], said.clone()].concat();
    holds_with_states(&scene, &all);
    holds(&third, &all);
    takes(&scene.peer, &scene, "1", &said[1]);
    scene.world.settle();
    scene.is_shown(&said);
    assert!(!scene.a.shows(&early.0));
}

/// Whoever signs with a key that only others are given must not have it waited for by showing us another one each time.
#[test]
fn no_key_is_waited_for_for_longer_than_some_hours() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let mut said = scene.say(3);
    // Of a server that is known, and says nothing of this key.
    said[0].1["signatures"] = json!({ "peer.example": { "ed25519:hidden": "x".repeat(86) } });
    holds_with_states(&scene, &said);
    holds(&third, &said);
    takes(&scene.peer, &scene, "1", &said[2]);
    scene.world.settle();
    for _ in 0..8 * 60 {
        // As if all was found each time.
        scene.a.database.rows("UPDATE key_fetches SET failures = 0");
        scene.minutes(1);
    }
    scene.is_shown(&said[1..]);
}

#[test]
fn a_server_whose_keys_we_cannot_obtain_does_not_end_the_room() {
    whose_keys_are_lacking(false);
}

#[test]
fn a_server_whose_keys_are_lacking_for_a_while_is_waited_for() {
    whose_keys_are_lacking(true);
}

/// Other servers have other limits.
#[test]
fn what_is_nested_too_deep_for_us_does_not_end_the_room() {
    let mut scene = scene("12");
    let content = json!({ "body": "deep", "x": (0..600).fold(json!([]), |inner, _| json!([inner])) });
    let fields = json!({ "type": "m.room.message", "content": content });
    let deep = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields));
    scene.theirs.advance(&deep.0);
    let said = scene.say(3);
    holds_with_states(&scene, &[&[deep][..], &said].concat());
    takes(&scene.peer, &scene, "1", &said[2]);
    scene.world.settle();
    scene.is_shown(&said);
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
