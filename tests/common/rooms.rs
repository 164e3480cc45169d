//! Whole rooms: their events, each with the states around it and what became of it. `generator` makes them from a seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use serde_json::json;
use verge::matrix::{
    auth_rules::{self, AuthEvent, AuthState},
    base64,
    event::{Event, PduError, ReceivedPdu},
    hashes,
    identifiers::EventId,
    json::{Object, Value},
    room_version::{EventIds, RoomVersion},
    state_resolution::{StateEvent, memory::Memory},
    state_trie::StateKeyHash,
};

/// `(type, state_key)`.
pub type Key = (String, String);
/// A state: the position of its events in [`Room::events`].
pub type State = BTreeMap<Key, usize>;

/// A room.
pub struct Room {
    /// What it was generated from.
    pub seed: u64,
    /// Its version.
    pub version: &'static RoomVersion,
    /// Its events, each after those that it refers to; the first creates the room.
    pub events: Vec<RoomEvent>,
    /// Events of another room, which some of its events cite.
    pub foreign: Vec<Event>,
    /// Resolves states where several meet; `None` where they are drawn.
    resolver: Option<Resolver>,
}

/// An event, and how the room stood before it.
pub struct RoomEvent {
    /// The event.
    pub event: Event,
    /// The states after each of its prev events.
    pub states: Vec<Rc<State>>,
    /// The state that it is judged by.
    pub state: Rc<State>,
    /// Whether it broke a rule.
    pub rejected: bool,
    /// The state after it.
    pub after: Rc<State>,
}

impl Room {
    /// A room without events, in which states that meet are resolved, or drawn.
    pub fn new(version: &'static RoomVersion, seed: u64, resolves: bool) -> Self {
        let foreign = foreign_room(version);
        Self { seed, version, events: Vec::new(), foreign, resolver: resolves.then(Resolver::default) }
    }

    /// Whether states that meet are resolved.
    pub fn resolves(&self) -> bool {
        self.resolver.is_some()
    }

    /// The states after events.
    pub fn states_after(&self, events: &[usize]) -> Vec<Rc<State>> {
        events.iter().map(|position| self.events[*position].after.clone()).collect()
    }

    /// The state that an event is judged by which stands where these meet. Where it is drawn, `draws` says for a key
    /// whether to change from the first position to the second.
    pub fn merge(&mut self, states: &[Rc<State>], mut draws: impl FnMut(&Key, usize, usize) -> bool) -> Rc<State> {
        if let [state] = states {
            return state.clone();
        }
        if !states.is_empty()
            && let Some(mut resolver) = self.resolver.take()
        {
            let states: Vec<&State> = states.iter().map(|state| &**state).collect();
            let resolved = resolver.resolve(self, &states);
            self.resolver = Some(resolver);
            return Rc::new(resolved);
        }
        let mut merged = State::new();
        for state in states {
            for (key, position) in state.iter() {
                match merged.get_mut(key) {
                    Some(chosen) if chosen != position && draws(key, *chosen, *position) => *chosen = *position,
                    Some(_) => {}
                    None => {
                        merged.insert(key.clone(), *position);
                    }
                }
            }
        }
        Rc::new(merged)
    }

    /// Judges an event and adds it, unless it is there already; the position is then `None`.
    pub fn add(&mut self, event: Event, states: Vec<Rc<State>>, state: Rc<State>) -> Option<usize> {
        if self.position(event.event_id()).is_some() {
            return None;
        }
        let find = |id: &EventId| self.auth_event(id);
        let rejected = event.oversized_member().is_some()
            || auth_rules::check_auth_event_list(&event, find).is_err()
            || auth_rules::check(&event, &self.with_events(&state)).is_err();
        let position = self.events.len();
        let mut after = state.clone();
        if let (false, Some(state_key)) = (rejected, event.state_key()) {
            let key = (event.event_type().to_owned(), state_key.to_owned());
            Rc::make_mut(&mut after).insert(key, position);
        }
        let event = RoomEvent { event, states, state, rejected, after };
        if let Some(resolver) = &mut self.resolver {
            resolver.insert(&event, rejected);
        }
        self.events.push(event);
        Some(position)
    }

    /// The position of an event.
    pub fn position(&self, id: &EventId) -> Option<usize> {
        self.events.iter().position(|event| event.event.event_id() == id)
    }

    /// An event with what became of it, as the authorisation rules ask for it.
    pub fn auth_event(&self, id: &EventId) -> Option<AuthEvent<'_>> {
        match self.position(id) {
            Some(position) => {
                let found = &self.events[position];
                Some(AuthEvent { event: &found.event, rejected: found.rejected })
            }
            None => {
                let event = self.foreign.iter().find(|event| event.event_id() == id)?;
                Some(AuthEvent { event, rejected: false })
            }
        }
    }

    /// A state by event ids.
    pub fn plain(&self, state: &State) -> BTreeMap<Key, String> {
        let id = |position: &usize| self.events[*position].event.event_id().to_string();
        state.iter().map(|(key, position)| (key.clone(), id(position))).collect()
    }

    /// A state with its events.
    pub fn with_events<'a>(&'a self, state: &'a State) -> StateOf<'a> {
        StateOf { room: self, state }
    }
}

/// The events of a room, ready to resolve its states.
#[derive(Default)]
pub struct Resolver(Memory);

impl Resolver {
    /// With all events of a room, and these of them rejected besides those that are.
    pub fn new(room: &Room, rejected: &BTreeSet<usize>) -> Self {
        let mut resolver = Self::default();
        for (position, event) in room.events.iter().enumerate() {
            resolver.insert(event, event.rejected || rejected.contains(&position));
        }
        resolver
    }

    fn insert(&mut self, event: &RoomEvent, rejected: bool) {
        self.0.insert(StateEvent { event: event.event.clone(), rejected });
    }

    /// What the states resolve to.
    pub fn resolve(&mut self, room: &Room, states: &[&State]) -> State {
        let entry = |((event_type, state_key), position): (&Key, &usize)| {
            (StateKeyHash::new(event_type, state_key), room.events[*position].event.event_id().as_str().into())
        };
        let roots: Vec<_> = states.iter().map(|state| self.0.snapshot(state.iter().map(entry))).collect();
        let room_id = room.events[0].event.room_id();
        let (resolved, _) = self.0.resolve(room.version, room_id, &roots).unwrap();
        self.0.add_nodes(&resolved.nodes);
        let events = self.0.state(resolved.root).into_iter().map(|event| &event.event);
        let key = |event: &Event| (event.event_type().to_owned(), event.state_key().unwrap().to_owned());
        events.map(|event| (key(event), room.position(event.event_id()).unwrap())).collect()
    }
}

/// A state of a room, as the authorisation rules ask for it.
#[derive(Clone, Copy)]
pub struct StateOf<'a> {
    room: &'a Room,
    state: &'a State,
}

impl AuthState for StateOf<'_> {
    fn get(&self, event_type: &str, state_key: &str) -> Option<&Event> {
        let position = self.state.get(&(event_type.to_owned(), state_key.to_owned()))?;
        Some(&self.room.events[*position].event)
    }
}

/// Those who are in generated rooms.
pub(super) const USERS: [&str; 7] = [
    "@alice:a.example",
    "@bob:a.example",
    "@carol:b.example",
    "@dave:c.example:8448",
    "@erin:b.example",
    "@Fräulein /=:b.example",
    "@:a.example",
];

/// Another room with the same people in it: its events have the types and state keys that events of the room cite.
fn foreign_room(version: &'static RoomVersion) -> Vec<Event> {
    let (alice, bob) = (USERS[0], USERS[1]);
    let mut events: Vec<Event> = Vec::new();
    let mut room_id = "!elsewhere:a.example".to_owned();
    for (event_type, sender, state_key, content) in [
        ("m.room.create", alice, "", json!({ "creator": alice, "room_version": version.id, "x.elsewhere": true })),
        ("m.room.member", alice, alice, json!({ "membership": "join" })),
        ("m.room.power_levels", alice, "", json!({ "users_default": 100 })),
        ("m.room.join_rules", alice, "", json!({ "join_rule": "public" })),
        ("m.room.member", bob, bob, json!({ "membership": "join" })),
    ] {
        let is_create = event_type == "m.room.create";
        let cited =
            events.iter().filter(|event| !version.room_id_is_create_hash || event.event_type() != "m.room.create");
        let mut event = Object::from_iter([
            ("auth_events", Value::Array(cited.map(Event::reference).collect())),
            ("content", Value::from(content)),
            ("depth", Value::from(events.len() as i64)),
            ("origin_server_ts", Value::from(1_700_000_000_000_i64)),
            ("prev_events", Value::Array(events.last().map(Event::reference).into_iter().collect())),
            ("sender", Value::from(sender)),
            ("state_key", Value::from(state_key)),
            ("type", Value::from(event_type)),
        ]);
        if version.event_ids == EventIds::Given {
            event.insert("event_id", format!("$elsewhere{}:a.example", events.len()));
        }
        if !(is_create && version.room_id_is_create_hash) {
            event.insert("room_id", room_id.as_str());
        }
        events.push(event_of(event, version));
        if is_create {
            room_id = events[0].room_id().to_string();
        }
    }
    events
}

/// The event that an object describes, but for its hashes and signatures.
pub fn event_of(object: Object, version: &'static RoomVersion) -> Event {
    try_event_of(object, version).unwrap()
}

/// As [`event_of`], of an object that may have another form than an event's.
pub fn try_event_of(mut object: Object, version: &'static RoomVersion) -> Result<Event, PduError> {
    let hash = base64::encode(&hashes::content_hash(&object));
    object.insert("hashes", Value::from(json!({ "sha256": hash })));
    object.insert("signatures", Object::new());
    let pdu = ReceivedPdu::from_value(Value::from(object.clone()), version)?;
    Event::from_store(pdu.event_id().as_str(), &object.to_text(), version)
}
