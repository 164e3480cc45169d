//! A room of thousands of members, as a peer answers it to a join.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use verge::router::json_response;

use super::{
    network::Homeserver,
    peer::{Peer, encode, event_id},
};

const VERSION: &str = "11";

/// See the module.
pub struct LargeRoom {
    peer: Rc<Peer>,
    pub room_id: String,
    state: Vec<Value>,
    /// The IDs of what every member cites: creation, power levels, join rules.
    auth: Vec<String>,
    /// The ID of the membership of who made it.
    pub creator: String,
    /// The newest membership of others' users.
    others: Rc<RefCell<BTreeMap<String, String>>>,
    /// Their joins, by their IDs.
    joins: Rc<RefCell<BTreeMap<String, Value>>>,
}

impl LargeRoom {
    /// A room of the peer with so many members besides who made it.
    pub fn new(peer: &Rc<Peer>, members: usize) -> Self {
        Self::with(peer, members, json!({ "room_version": VERSION }))
    }

    /// The same, which goes on with another one.
    pub fn following(peer: &Rc<Peer>, members: usize, predecessor: &str) -> Self {
        Self::with(peer, members, json!({ "room_version": VERSION, "predecessor": { "room_id": predecessor } }))
    }

    fn with(peer: &Rc<Peer>, members: usize, creation: Value) -> Self {
        let (admin, room_id) = (peer.user("admin"), format!("!large:{}", peer.name));
        let (state, auth, creator, others, joins) = Default::default();
        let mut room = Self { peer: Rc::clone(peer), room_id, state, auth, creator, others, joins };
        let create = room.event(&admin, "m.room.create", "", creation, &[]);
        let joined = json!({ "membership": "join" });
        let creator = room.event(&admin, "m.room.member", &admin, joined, &[&create]);
        let levels = json!({ "users": { &admin: 100 } });
        let levels = room.event(&admin, "m.room.power_levels", "", levels, &[&create, &creator]);
        let rules = json!({ "join_rule": "public" });
        let rules = room.event(&admin, "m.room.join_rules", "", rules, &[&create, &creator, &levels]);
        room.auth = vec![create, levels, rules];
        room.creator = creator;
        for at in 0..members {
            room.member(&peer.user(&format!("member{at}")));
        }
        room
    }

    /// Adds a state event, and returns its ID.
    pub fn event(&mut self, sender: &str, kind: &str, key: &str, content: Value, auth: &[&str]) -> String {
        let previous: Vec<String> = auth.last().map(|id| (*id).to_owned()).into_iter().collect();
        let (id, event) = self.peer.sign(VERSION, json!({
            "type": kind, "state_key": key, "sender": sender, "room_id": self.room_id, "content": content,
            "auth_events": auth, "prev_events": previous, "depth": self.state.len() + 1, "origin_server_ts": 1_600_000_000_000_i64,
        }));
        self.state.push(event);
        id
    }

    /// Adds a member who has joined.
    pub fn member(&mut self, user: &str) -> String {
        let content = json!({
            "membership": "join", "displayname": user, "avatar_url": format!("mxc://{}/{}", self.peer.name, "x".repeat(24)),
        });
        let auth = self.auth.clone();
        let auth: Vec<&str> = auth.iter().map(String::as_str).collect();
        self.event(user, "m.room.member", user, content, &auth)
    }

    /// Adds a member who is a user of another server, whose key has signed it.
    pub fn member_of(&mut self, other: &Rc<Peer>) {
        let own = std::mem::replace(&mut self.peer, Rc::clone(other));
        self.member(&other.user("guest"));
        self.peer = own;
    }

    /// Adds what looks like a member on `server`, with a signature that nobody made.
    pub fn claim(&mut self, server: &str) {
        self.claim_state(server, "m.room.member", &format!("@guest:{server}"), json!({ "membership": "join" }));
    }

    /// Adds what looks like state that a user on `server` has sent, likewise.
    pub fn claim_state(&mut self, server: &str, kind: &str, key: &str, content: Value) {
        let (user, depth) = (format!("@guest:{server}"), self.state.len() + 1);
        self.state.push(json!({
            "type": kind, "state_key": key, "sender": user, "room_id": self.room_id, "content": content,
            "auth_events": self.auth, "prev_events": [self.auth[2]], "depth": depth, "origin_server_ts": 1_600_000_000_000_i64,
            "hashes": { "sha256": "A".repeat(43) }, "signatures": { server: { "ed25519:1": "A".repeat(86) } },
        }));
    }

    /// Adds those members to the state whom it has let in.
    pub fn adds_who_came_in(&mut self) {
        self.state.extend(self.joins.borrow().values().cloned());
    }

    /// What every member cites.
    pub fn auth(&self) -> Vec<String> {
        self.auth.clone()
    }

    /// The state events, those first that every member cites.
    pub fn state(&self) -> &[Value] {
        &self.state
    }

    /// Adds an event that is not signed as it must be.
    pub fn forge(&mut self, user: &str) {
        self.member(user);
        let forged = self.state.last_mut().unwrap();
        forged["depth"] = json!(99_999);
    }

    /// The peer invites a user of `to`.
    pub fn invites(&self, to: &Homeserver, user: &str) {
        let auth = [self.auth.as_slice(), std::slice::from_ref(&self.creator)].concat();
        let (id, invite) = self.peer.sign(VERSION, json!({
            "type": "m.room.member", "state_key": user, "sender": self.peer.user("admin"), "room_id": self.room_id,
            "content": { "membership": "invite" }, "auth_events": auth, "prev_events": ["$previous"], "depth": 99_999,
            "origin_server_ts": self.peer.world.now_ms(),
        }));
        let target = format!("/_matrix/federation/v2/invite/{}/{}", encode(&self.room_id), encode(&id));
        let body = json!({ "room_version": VERSION, "event": invite, "invite_room_state": [] });
        assert_eq!(self.peer.put(to, &target, &body).0, 200);
        self.others.borrow_mut().insert(user.to_owned(), id);
    }

    /// From now on the peer lets users of others join.
    pub fn opens(&self) {
        self.opens_at(&self.peer);
    }

    /// From now on this peer lets users of others join.
    pub fn opens_at(&self, peer: &Peer) {
        self.answers_at(peer, json!({ "auth_chain": self.state[..4], "state": self.state }));
    }

    /// From now on the peer lets users of others join by an answer without the members, which it gives where it is asked for the state.
    pub fn opens_in_part(&self) {
        self.answers_at(&self.peer, json!({
            "auth_chain": self.state[..4], "state": self.state[..4], "members_omitted": true, "servers_in_room": [self.peer.name],
        }));
    }

    fn answers_at(&self, peer: &Peer, joined: Value) {
        let (room_id, auth, joined) = (self.room_id.clone(), self.auth.clone(), Bytes::from(joined.to_string()));
        let (others, joins) = (Rc::clone(&self.others), Rc::clone(&self.joins));
        let state = Bytes::from(json!({ "auth_chain": self.state[..4], "pdus": self.state }).to_string());
        peer.answers(move |request| {
            let path = request.uri().path();
            if path.contains("/v2/send_leave/") {
                return Some(json_response(StatusCode::OK, &json!({})));
            }
            let templates = [("make_join", "join"), ("make_leave", "leave")].into_iter();
            let mut template = templates.filter_map(|(name, membership)| {
                Some((path.strip_prefix(&format!("/_matrix/federation/v1/{name}/"))?, membership))
            });
            if let Some((rest, membership)) = template.next() {
                let user = rest.split('/').nth(1).unwrap().replace("%40", "@").replace("%3A", ":");
                let now = others.borrow().get(&user).filter(|_| membership == "leave").cloned();
                let auth: Vec<String> = auth.iter().cloned().chain(now).collect();
                let event = json!({
                    "type": "m.room.member", "room_id": room_id, "sender": user, "state_key": user, "depth": 100_000,
                    "auth_events": auth, "prev_events": ["$previous"], "content": { "membership": membership },
                });
                return Some(json_response(StatusCode::OK, &json!({ "room_version": VERSION, "event": event })));
            }
            if path.contains("/v2/send_join/") {
                let join: Value = serde_json::from_slice(request.body()).unwrap();
                let id = event_id(VERSION, &join);
                others.borrow_mut().insert(join["sender"].as_str().unwrap().to_owned(), id.clone());
                joins.borrow_mut().insert(id, join);
            }
            if let Some(id) = path.strip_prefix("/_matrix/federation/v1/event/") {
                let join = joins.borrow().get(&id.replace("%24", "$")).cloned()?;
                return Some(json_response(StatusCode::OK, &json!({ "pdus": [join] })));
            }
            let answer =
                [("/v2/send_join/", &joined), ("/v1/state/", &state)].into_iter().find(|(part, _)| path.contains(part));
            answer.map(|(_, answer)| http::Response::new(answer.clone()))
        });
    }
}
