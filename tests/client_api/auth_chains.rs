//! History whose auth events are not held: they are asked for, and take no more memory than there is.

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use verge::router::json_response;

use crate::{
    common::peer::{Peer, PeerRoom},
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
            let fields = json!({ "type": "m.room.member", "state_key": user, "content": content });
            let mut draft = theirs.draft(peer.world.now_ms(), &user, fields);
            let rules = theirs.state_id("m.room.join_rules", "").unwrap();
            draft["auth_events"].as_array_mut().unwrap().push(json!(rules));
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

fn scene(profiles: (usize, usize)) -> Scene {
    let mut visited = visited("11");
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
    tells_only_and(peer, &before, history, move |request| {
        let target = percent_decode_str(request.uri().path()).decode_utf8().unwrap();
        let mut chains = chains.iter().filter(|_| target.contains("/event_auth/"));
        let (_, chain) = chains.find(|(id, _)| target.ends_with(id.as_str()))?;
        Some(json_response(StatusCode::OK, chain))
    });
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
    let scene = scene((0, 1));
    assert_eq!(scene.alice_finds(), [4, 4, 4], "{:?}", scene.visited.home.world.logs());
    assert_eq!(scene.asked(), 3, "one for each of the guests");
}

/// Each takes 36 MB, of the 56 MB that there are.
#[test]
fn auth_chains_that_take_too_much_memory_together_are_left_out() {
    let scene = scene((100, 60_000));
    let mut found = scene.alice_finds();
    found.sort_unstable();
    assert_eq!(found, [0, 0, 4], "{:?}", scene.visited.home.world.logs());
}
