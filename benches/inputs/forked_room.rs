//! Rooms that have forked: many members, of whom some change their profiles, are banned, or change settings and power
//! levels, in each fork.

// Each bench uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;

use serde_json::{Value, json};
use verge::matrix::{
    auth_events::selection,
    event::Event,
    identifiers::RoomId,
    json::Value as EventValue,
    room_version::RoomVersion,
    state_resolution::{Resolved, StateEvent, memory::Memory},
    state_trie::{Entry, NodeId, StateKeyHash},
};

/// `(type, state_key)` and the event id: a whole state.
pub(crate) type PlainState = BTreeMap<(String, String), String>;

/// A room that has forked, with the events of all forks and a snapshot of each.
pub(crate) struct ForkedRoom {
    pub(crate) version: &'static RoomVersion,
    pub(crate) events: Vec<Event>,
    pub(crate) forks: Vec<PlainState>,
    room_id: RoomId,
    members: usize,
    memory: Memory,
    roots: Vec<NodeId>,
}

const CREATOR: &str = "@creator:example.org";
const MODERATORS: usize = 20;

impl ForkedRoom {
    /// A room of `size` state events. The forks make `conflicts` events together, for the same keys.
    pub(crate) fn new(version: &str, size: usize, forks: usize, conflicts: usize) -> Self {
        let mut room = Self::empty(version, size);
        let state = room.grow();
        room.forks = (0..forks).map(|fork| room.fork(fork, conflicts / forks, state.clone())).collect();
        room.with_roots()
    }

    /// A room of `size` state events, in one fork of which a member changes their profile so many times, and once in the
    /// other.
    pub(crate) fn with_chain(version: &str, size: usize, length: usize) -> Self {
        let mut room = Self::empty(version, size);
        let state = room.grow();
        let member = user(MODERATORS);
        room.forks = [length, 1]
            .into_iter()
            .map(|changes| {
                let mut state = state.clone();
                for change in 0..changes {
                    let content = json!({ "membership": "join", "displayname": change.to_string() });
                    room.send(&mut state, "m.room.member", &member, &member, &content);
                }
                state
            })
            .collect();
        room.with_roots()
    }

    fn empty(version: &str, size: usize) -> Self {
        let version = RoomVersion::get(version).unwrap();
        let create_id = format!("${:0>43}", "create");
        let room_id =
            if version.room_id_is_create_hash { create_id.replace('$', "!") } else { "!room:example.org".into() };
        Self {
            version,
            events: Vec::new(),
            forks: Vec::new(),
            room_id: RoomId::parse(&room_id).unwrap(),
            members: size - 4,
            memory: Memory::default(),
            roots: Vec::new(),
        }
    }

    fn with_roots(mut self) -> Self {
        self.roots = self.forks.iter().map(|state| self.memory.snapshot(entries(state))).collect();
        self
    }

    pub(crate) fn resolve(&self) -> Resolved {
        self.memory.resolve(self.version, &self.room_id, &self.roots).unwrap().0
    }

    /// The state before the forks.
    fn grow(&mut self) -> PlainState {
        let mut state = PlainState::new();
        self.send(&mut state, "m.room.create", "", CREATOR, &json!({ "room_version": self.version.id }));
        self.send(&mut state, "m.room.member", CREATOR, CREATOR, &json!({ "membership": "join" }));
        self.send(&mut state, "m.room.power_levels", "", CREATOR, &self.power_levels(0));
        self.send(&mut state, "m.room.join_rules", "", CREATOR, &json!({ "join_rule": "public" }));
        for member in 0..self.members {
            let user = user(member);
            self.send(&mut state, "m.room.member", &user, &user, &json!({ "membership": "join" }));
        }
        state
    }

    /// The state after the `changes` that are made in one fork.
    fn fork(&mut self, fork: usize, changes: usize, mut state: PlainState) -> PlainState {
        for change in 0..changes {
            let moderator = user((fork + change) % MODERATORS);
            // Beyond the moderators, so that nobody's ban makes all else void.
            let member = user(MODERATORS + change % (self.members - MODERATORS));
            match change % 20 {
                0 => {
                    let levels = self.power_levels(fork + change + 1);
                    self.send(&mut state, "m.room.power_levels", "", CREATOR, &levels);
                }
                1 => self.send(&mut state, "m.room.member", &member, &moderator, &json!({ "membership": "ban" })),
                2..12 => {
                    let content = json!({ "membership": "join", "displayname": format!("in fork {fork}") });
                    self.send(&mut state, "m.room.member", &member, &member, &content);
                }
                _ => self.send(&mut state, "x.setting", &change.to_string(), &moderator, &json!({ "value": fork })),
            }
        }
        state
    }

    fn power_levels(&self, change: usize) -> Value {
        let mut users: BTreeMap<String, i64> = (0..MODERATORS).map(|moderator| (user(moderator), 50)).collect();
        if !self.version.privileged_creators {
            users.insert(CREATOR.to_owned(), 100);
        }
        json!({ "users": users, "events": { "x.setting": 0 }, "notifications": { "room": change } })
    }

    /// Sends a state event into a state.
    fn send(&mut self, state: &mut PlainState, event_type: &str, state_key: &str, sender: &str, content: &Value) {
        let number = self.events.len();
        let id = if event_type == "m.room.create" { "create".to_owned() } else { number.to_string() };
        let id = format!("${id:0>43}");
        let content_object = EventValue::from(content.clone()).into_object().unwrap();
        let selection = selection(self.version, event_type, sender, Some(state_key), &content_object);
        let auth_events: Vec<&String> =
            selection.iter().filter_map(|(t, k)| state.get(&((*t).to_owned(), (*k).to_owned()))).collect();
        let mut event = json!({
            "type": event_type, "state_key": state_key, "sender": sender, "content": content, "depth": number,
            "origin_server_ts": number, "auth_events": auth_events, "prev_events": [], "hashes": {}, "signatures": {},
        });
        if !(self.version.room_id_is_create_hash && event_type == "m.room.create") {
            event["room_id"] = json!(self.room_id.as_str());
        }
        let event = Event::from_store(&id, &event.to_string(), self.version).unwrap();
        state.insert((event_type.to_owned(), state_key.to_owned()), id);
        self.memory.insert(StateEvent { event: event.clone(), rejected: false });
        self.events.push(event);
    }
}

/// A state, for a snapshot of it.
pub(crate) fn entries(state: &PlainState) -> impl Iterator<Item = Entry> {
    state.iter().map(|((t, k), id)| (StateKeyHash::new(t, k), id.as_str().into()))
}

fn user(number: usize) -> String {
    format!("@user{number}:example.org")
}
