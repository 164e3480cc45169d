//! History whose auth events are not held: they are asked for, and take no more memory than there is.

use std::{cell::RefCell, rc::Rc};

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use verge::router::{Request, json_response};

use crate::{
    common::peer::{Peer, PeerRoom, event_id},
    gaps::back,
    visited::{Visited, tells_only_and, visited},
};

/// What a guest of the peer's says in history of which neither the guest nor the joins are known here.
struct Guest {
    /// Their memberships, the oldest first.
    memberships: Vec<Value>,
    /// What they say, with its IDs.
    said: Vec<(String, Value)>,
}

impl Guest {
    /// Joins the room as the peer has it and changes the profile a number of times, each of so many bytes.
    fn joins(peer: &Peer, theirs: &mut PeerRoom, name: &str, (times, bytes): (usize, usize)) -> Self {
        let user = peer.user(name);
        let mut memberships = Vec::new();
        for number in 0..=times {
            let content =
                json!({ "membership": "join", "displayname": format!("{name} {number}"), "x": "x".repeat(bytes) });
            let draft = theirs.draft_member(peer.world.now_ms(), &user, &user, content);
            let (id, event) = peer.sign(&theirs.version, draft);
            theirs.advance(&id);
            theirs.state.insert(("m.room.member".to_owned(), user.clone()), event.clone());
            memberships.push(event);
        }
        Self { memberships, said: Vec::new() }
    }
}

/// Three guests have joined the peer's room and each said four things, of which the peer gives history from there on only; and
/// then Bob speaks, whose message comes here.
struct Scene {
    visited: Visited,
    guests: Vec<Guest>,
}

/// How the peer answers where it is asked for auth events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gives {
    /// Auth chains, but no event by its ID.
    Chains,
    /// Both.
    All,
    /// Events by their IDs, and this answer to who asks for chains.
    ByIdOnly(StatusCode),
    /// Both, but what is no chain for the messages of this guest.
    AllBut(usize),
    /// Chains, but whichever server is asked for history first has only this answer to who asks it for them.
    NotWhoIsFirst(StatusCode),
}

fn scene(profiles: (usize, usize), gives: Gives) -> Scene {
    scene_in(visited("11"), &[], profiles, gives)
}

/// As [`scene`], where another server answers as the peer does.
fn scene_of_two(gives: Gives) -> Scene {
    let mut visited = visited("11");
    let other = Peer::new(&visited.home.world, "other.example");
    visited.theirs = other.join(&visited.server, &visited.room, &other.user("olga"));
    visited.home.world.settle();
    scene_in(visited, &[other], (0, 1), gives)
}

fn scene_in(mut visited: Visited, others: &[Rc<Peer>], profiles: (usize, usize), gives: Gives) -> Scene {
    let Visited { peer, bob, theirs, server, home, .. } = &mut visited;
    let before = theirs.clone();
    let names = ["carol", "dora", "emil"];
    let mut guests: Vec<Guest> = names.iter().map(|name| Guest::joins(peer, theirs, name, profiles)).collect();
    let mut history = Vec::new();
    for number in 0..4 {
        for (guest, name) in guests.iter_mut().zip(names) {
            let said = theirs.say(peer, &peer.user(name), &format!("{name} {number}"));
            history.insert(0, said.1.clone());
            guest.said.push(said);
        }
    }
    let edge = theirs.say(peer, bob, "edge");
    history.insert(0, edge.1);
    let said = theirs.say(peer, bob, "said");
    let base: Vec<Value> = before.state.values().cloned().collect();
    let chains: Vec<(String, Value)> = guests
        .iter()
        .flat_map(|guest| {
            let chain: Vec<Value> = base.iter().chain(&guest.memberships).cloned().collect();
            guest.said.iter().map(move |(id, _)| (id.clone(), json!({ "auth_chain": chain })))
        })
        .collect();
    let memberships: Vec<Value> = guests.iter().flat_map(|guest| guest.memberships.clone()).collect();
    let bad: Vec<String> = match gives {
        Gives::AllBut(guest) => guests[guest].said.iter().map(|(id, _)| id.clone()).collect(),
        _ => Vec::new(),
    };
    let first: RefCell<Option<String>> = RefCell::default();
    let answers = Rc::new(move |name: &str, request: &Request| {
        let target = percent_decode_str(request.uri().path()).decode_utf8().unwrap();
        if target.contains("/backfill/") {
            first.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        let mut chains = chains.iter().filter(|_| target.contains("/event_auth/"));
        if let Some((id, chain)) = chains.find(|(id, _)| target.ends_with(id.as_str())) {
            let refusal = match gives {
                Gives::NotWhoIsFirst(status) => Some(status).filter(|_| first.borrow().as_deref() == Some(name)),
                Gives::ByIdOnly(status) => Some(status),
                _ => None,
            };
            if let Some(status) = refusal {
                return Some(json_response(status, &json!({ "errcode": "M_UNKNOWN", "error": "Not from here." })));
            }
            let nothing = json!({});
            return Some(json_response(StatusCode::OK, if bad.contains(id) { &nothing } else { chain }));
        }
        let gives_events = matches!(gives, Gives::All | Gives::ByIdOnly(_) | Gives::AllBut(_));
        let mut by_id = memberships.iter().filter(|_| gives_events && target.contains("/v1/event/"));
        let event = by_id.find(|event| target.ends_with(&event_id("11", event)))?;
        let answer = json!({ "origin": name, "origin_server_ts": 1, "pdus": [event] });
        Some(json_response(StatusCode::OK, &answer))
    });
    for one in others.iter().chain([&*peer]) {
        let (name, answers) = (one.name.clone(), Rc::clone(&answers));
        tells_only_and(one, &before, history.clone(), move |request| answers(&name, request));
    }
    let (status, answer) = peer.send(server, "1", &[said.1]);
    assert_eq!(status, 200, "{answer}");
    home.world.settle();
    Scene { visited, guests }
}

impl Scene {
    /// How many things of each guest Alice finds.
    fn alice_finds(&self) -> Vec<usize> {
        let Visited { home, alice, room, .. } = &self.visited;
        let found = back(home, alice, room, None, 100, "");
        self.guests.iter().map(|guest| guest.said.iter().filter(|(id, _)| found.contains(id)).count()).collect()
    }

    /// The requests for auth chains so far.
    fn asked(&self) -> usize {
        self.visited.home.world.traffic().iter().filter(|sent| sent.line.contains("/event_auth/")).count()
    }
}

/// What one chain holds the next may hold, too.
#[test]
fn auth_chains_are_asked_for_as_long_as_something_is_lacking() {
    let scene = scene((0, 1), Gives::Chains);
    assert_eq!(scene.alice_finds(), [4, 4, 4], "{:?}", scene.visited.home.world.logs());
    assert_eq!(scene.asked(), 3, "one for each of the guests");
}

/// A busy room has many guests, of whom no more than a join is lacking.
#[test]
fn what_one_auth_chain_does_not_hold_is_asked_for_by_its_id() {
    let scene = scene((0, 1), Gives::All);
    assert_eq!(scene.alice_finds(), [4, 4, 4], "{:?}", scene.visited.home.world.logs());
    assert_eq!(scene.asked(), 1);
}

/// It may be too long for the server, or be lost there. In each round some of the profiles are lacking.
#[test]
fn what_is_in_an_auth_chain_that_a_server_fails_to_give_is_asked_for_by_its_id() {
    let scene = scene((3, 1), Gives::ByIdOnly(StatusCode::INTERNAL_SERVER_ERROR));
    assert_eq!(scene.alice_finds(), [4, 4, 4], "{:?}", scene.visited.home.world.logs());
    assert_eq!(scene.asked(), 1, "no other chain is asked for");
}

/// Whoever is overloaded, or whose server is not there, is left alone.
#[test]
fn a_server_that_is_away_is_not_asked_for_auth_events_by_their_ids() {
    let away = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ];
    for status in away {
        let scene = scene((0, 1), Gives::ByIdOnly(status));
        let world = &scene.visited.home.world;
        let asked_by_id = || world.traffic().iter().filter(|sent| sent.line.contains("/v1/event/")).count();
        let before = asked_by_id();
        scene.alice_finds();
        assert_eq!((scene.asked(), asked_by_id() - before), (1, 0), "{status}");
    }
}

/// Whichever of them that is.
#[test]
fn an_auth_chain_that_is_none_keeps_no_others_from_being_asked_for() {
    for bad in 0..3 {
        let scene = scene((1, 1), Gives::AllBut(bad));
        let mut found = scene.alice_finds();
        found.remove(bad);
        assert_eq!(found, [4, 4], "{bad} {:?}", scene.visited.home.world.logs());
    }
}

/// Each takes 36 MB, of the 56 MB that there are.
#[test]
fn auth_chains_that_take_too_much_memory_together_are_left_out() {
    let scene = scene((100, 60_000), Gives::Chains);
    let mut found = scene.alice_finds();
    found.sort_unstable();
    assert_eq!(found, [0, 0, 4], "{:?}", scene.visited.home.world.logs());
}

/// Alice waits for the page.
#[test]
fn auth_chains_are_not_asked_for_without_end() {
    let scene = scene((0, 1), Gives::Chains);
    let world = &scene.visited.home.world;
    world.answer_late("peer.example", "/event_auth/", 40_000);
    let before = world.now_ms();
    scene.alice_finds();
    let took = world.now_ms() - before;
    assert_eq!((scene.asked(), took), (2, 80_000));
}

/// Whoever gives history need not have all that its events cite.
#[test]
fn auth_chains_that_one_server_does_not_give_are_asked_for_of_others() {
    for status in [StatusCode::NOT_FOUND, StatusCode::INTERNAL_SERVER_ERROR] {
        let scene = scene_of_two(Gives::NotWhoIsFirst(status));
        assert_eq!(scene.alice_finds(), [4, 4, 4], "{status} {:?}", scene.visited.home.world.logs());
        // One server is asked for those of eight events, the other for one of each guest.
        assert!(scene.asked() <= 8 + 3, "{}", scene.asked());
    }
}

/// Whichever of them is asked first.
#[test]
fn a_server_that_gives_no_auth_chain_in_time_leaves_some_of_the_time_to_others() {
    for slow in ["peer.example", "other.example"] {
        let scene = scene_of_two(Gives::Chains);
        let world = &scene.visited.home.world;
        world.answer_late(slow, "/event_auth/", 100_000);
        let before = world.now_ms();
        assert_eq!(scene.alice_finds(), [4, 4, 4], "{slow} {:?}", world.logs());
        assert!(world.now_ms() - before <= 30_000, "{slow} {}", world.now_ms() - before);
    }
}
