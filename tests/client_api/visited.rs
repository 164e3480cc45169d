//! A room here that a user of a peer has joined.

use std::rc::Rc;

use http::StatusCode;
use serde_json::{Value, json};
use verge::router::{Request, Response, json_response};

use crate::{
    common::{
        network::{Homeserver, World},
        peer::{Peer, PeerRoom, event_id},
    },
    home::{Home, User, quote},
};

/// Alice's room, in which Bob of a peer is.
pub struct Visited {
    pub home: Home,
    pub alice: User,
    pub room: String,
    pub peer: Rc<Peer>,
    pub bob: String,
    pub theirs: PeerRoom,
    pub server: Homeserver,
}

pub fn visited(version: &str) -> Visited {
    let world = World::new();
    let home = Home::with(&world, "hs.test", &[("REGISTRATION", "open")]);
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "preset": "public_chat", "room_version": version }));
    let peer = Peer::new(&world, "peer.example");
    let bob = peer.user("bob");
    let server = home.homeserver();
    let theirs = peer.join(&server, &room, &bob);
    world.settle();
    Visited { home, alice, room, peer, bob, theirs, server }
}

impl Visited {
    pub fn send(&self, txn_id: &str, pdus: &[Value]) {
        let (status, answer) = self.peer.send(&self.server, txn_id, pdus);
        assert_eq!(status, 200, "{answer}");
        self.home.world.settle();
    }

    pub fn content(&self, event_id: &str) -> Value {
        let path = format!("/rooms/{}/event/{}", quote(&self.room), quote(event_id));
        let (status, event) = self.home.get(&self.alice, &path);
        assert_eq!(status, 200, "{event}");
        event["content"].clone()
    }
}

/// From now on the peer has lost all of its room but `history`, the newest first, and the state before the first of it.
pub fn tells_only(peer: &Peer, theirs: &PeerRoom, history: Vec<Value>) {
    tells_only_and(peer, theirs, history, |_| None);
}

/// As [`tells_only`], where `more` does not answer.
pub fn tells_only_and(
    peer: &Peer,
    theirs: &PeerRoom,
    history: Vec<Value>,
    more: impl Fn(&Request) -> Option<Response> + 'static,
) {
    let state: Vec<String> = theirs.state.values().map(|event| event_id(&theirs.version, event)).collect();
    peer.answers(move |request| {
        if let Some(response) = more(request) {
            return Some(response);
        }
        let path = request.uri().path();
        let body = if path.contains("/get_missing_events/") {
            json!({ "events": [] })
        } else if path.contains("/state_ids/") {
            json!({ "pdu_ids": state, "auth_chain_ids": state })
        } else if path.contains("/v1/event/") {
            json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": [history[0]] })
        } else if path.contains("/backfill/") {
            json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": history })
        } else {
            return None;
        };
        Some(json_response(StatusCode::OK, &body))
    });
}
