//! The events that a resolution has heard of, each under a small number.
//!
//! Of most events only the outline is ever known: where they stand among the others. Whole events are read where their
//! content is looked at, and how long they may be together is bounded before they are.

use super::{ChainsWanted, Need, Outline, ResolutionError, StateEvent};
use crate::matrix::{
    auth_rules::AuthState,
    event::Event,
    hash_map::HashMap,
    identifiers::{EventId, RoomId},
    room_version::RoomVersion,
    state_trie::StateKeyHash,
};

/// The types that auth events selection selects (Server-Server API, "Auth events selection").
const CITED_TYPES: [&str; 5] =
    ["m.room.create", "m.room.join_rules", "m.room.member", "m.room.power_levels", "m.room.third_party_invite"];

/// An event's number in [`Events`].
pub(super) type Index = usize;

#[derive(Debug)]
pub(super) struct Events {
    room_id: RoomId,
    /// The create event by the room's id, from room version 12 on.
    create: Option<Index>,
    indices: HashMap<EventId, Index>,
    slots: Vec<Slot>,
    /// Whole events that the next step needs.
    wanted: Vec<Index>,
    /// What was asked for in the step before: whole events, and outlines.
    asked: Vec<Index>,
    asked_outlines: Vec<Index>,
    /// How long the texts of the whole events are.
    bytes: usize,
}

/// The longest texts, together, of the whole events of one resolution. In memory they take about five times that.
const MAX_BYTES: usize = 12 << 20;
/// How many whole events may be asked for without knowing how long they are.
const MAX_UNMEASURED: usize = 128;
/// The most events to hear of.
const MAX_EVENTS: usize = 200_000;

#[derive(Debug)]
struct Slot {
    event_id: EventId,
    content: Content,
    key: Option<StateKeyHash>,
}

#[derive(Debug)]
enum Content {
    /// Nobody asked for it.
    Unknown,
    /// It does not exist, or is not a state event of this room.
    Absent,
    /// Where it stands; not what it says.
    Outline {
        auth_events: Box<[Index]>,
        citable: bool,
        length: usize,
    },
    Event {
        event: StateEvent,
        auth_events: Box<[Index]>,
    },
}

impl Events {
    pub(super) fn new(version: &'static RoomVersion, room_id: &RoomId) -> Self {
        let mut events = Self {
            room_id: room_id.clone(),
            create: None,
            indices: HashMap::default(),
            slots: Vec::new(),
            wanted: Vec::new(),
            asked: Vec::new(),
            asked_outlines: Vec::new(),
            bytes: 0,
        };
        if version.room_id_is_create_hash {
            events.create = Some(events.index(&room_id.create_event_id()));
        }
        events
    }

    /// Takes what was supplied. What was asked for and did not come does not exist.
    pub(super) fn accept(&mut self, supplied: Vec<StateEvent>, outlines: Vec<Outline>) {
        for event in supplied {
            let index = self.index(event.event.event_id());
            if !matches!(self.slots.get(index), Some(Slot { content: Content::Event { .. }, .. })) {
                self.put(index, event);
            }
        }
        for outline in outlines {
            let index = self.index(&outline.event_id);
            if !matches!(self.slots.get(index), Some(Slot { content: Content::Unknown, .. })) {
                continue;
            }
            let auth_events = outline.auth_events.iter().map(|id| self.index(id)).collect();
            let is_ours = *outline.room_id == *self.room_id.as_str();
            if let Some(slot) = self.slots.get_mut(index).filter(|_| is_ours) {
                slot.key = Some(StateKeyHash::new(&outline.event_type, &outline.state_key));
                let citable = CITED_TYPES.contains(&&*outline.event_type);
                slot.content = Content::Outline { auth_events, citable, length: outline.length };
            }
        }
        for index in std::mem::take(&mut self.asked) {
            if let Some(slot @ Slot { content: Content::Unknown | Content::Outline { .. }, .. }) =
                self.slots.get_mut(index)
            {
                slot.content = Content::Absent;
            }
        }
        for index in std::mem::take(&mut self.asked_outlines) {
            if let Some(slot @ Slot { content: Content::Unknown, .. }) = self.slots.get_mut(index) {
                slot.content = Content::Absent;
            }
        }
    }

    /// Takes an event as it is now, whatever was known of it.
    pub(super) fn put(&mut self, index: Index, event: StateEvent) {
        let content = if event.event.room_id() == &self.room_id && event.event.state_key().is_some() {
            let auth_events = event.event.auth_events().iter().map(|id| self.index(id)).collect();
            self.bytes += event.event.json().len();
            Content::Event { event, auth_events }
        } else {
            Content::Absent
        };
        if let Some(slot) = self.slots.get_mut(index) {
            slot.content = content;
        }
    }

    pub(super) fn index(&mut self, event_id: &EventId) -> Index {
        if let Some(index) = self.indices.get(event_id) {
            return *index;
        }
        let index = self.slots.len();
        self.indices.insert(event_id.clone(), index);
        self.slots.push(Slot { event_id: event_id.clone(), content: Content::Unknown, key: None });
        index
    }

    pub(super) fn index_of_text(&mut self, event_id: &str) -> Result<Index, ResolutionError> {
        if let Some(index) = self.indices.get(event_id) {
            return Ok(*index);
        }
        let parsed = EventId::parse_any_length(event_id);
        Ok(self.index(&parsed.map_err(|_| ResolutionError::MalformedEventId(event_id.into()))?))
    }

    pub(super) fn index_of_optional_text(&mut self, event_id: Option<&str>) -> Result<Option<Index>, ResolutionError> {
        event_id.map(|event_id| self.index_of_text(event_id)).transpose()
    }

    /// How many events were heard of; indices are below it.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn event_id(&self, index: Index) -> Option<&EventId> {
        self.slots.get(index).map(|slot| &slot.event_id)
    }

    pub(super) fn get(&self, index: Index) -> Option<&StateEvent> {
        match self.slots.get(index) {
            Some(Slot { content: Content::Event { event, .. }, .. }) => Some(event),
            _ => None,
        }
    }

    /// The event, unless it was rejected.
    pub(super) fn accepted(&self, index: Index) -> Option<&Event> {
        self.get(index).filter(|event| !event.rejected).map(|event| &event.event)
    }

    /// The auth events of an event; none where it is not known.
    pub(super) fn auth_events(&self, index: Index) -> &[Index] {
        match self.slots.get(index) {
            Some(Slot {
                content: Content::Event { auth_events, .. } | Content::Outline { auth_events, .. }, ..
            }) => auth_events,
            _ => &[],
        }
    }

    /// Whether there is such an event, as far as is known.
    pub(super) fn exists(&self, index: Index) -> bool {
        matches!(self.slots.get(index), Some(Slot { content: Content::Event { .. } | Content::Outline { .. }, .. }))
    }

    /// Whether it is known what the event cites, or that it does not exist.
    pub(super) fn is_outlined(&self, index: Index) -> bool {
        !matches!(self.slots.get(index), Some(Slot { content: Content::Unknown, .. }))
    }

    /// Sees to it that the whole event is known in the next step, if it exists. Whether it is already.
    pub(super) fn want(&mut self, index: Index) -> bool {
        let known =
            !matches!(self.slots.get(index), Some(Slot { content: Content::Unknown | Content::Outline { .. }, .. }));
        if !known {
            self.wanted.push(index);
        }
        known
    }

    /// Asks for the outlines of events and of their auth chains, `limit` at most.
    pub(super) fn want_chains(&mut self, from: &[Index], limit: usize, need: &mut Need) {
        if from.is_empty() {
            return;
        }
        let limit = limit.max(from.len());
        let ids = from.iter().filter_map(|index| self.slots.get(*index)).map(|slot| slot.event_id.clone());
        let chains = need.chains.get_or_insert(ChainsWanted { from: Vec::new(), limit: 0 });
        chains.from.extend(ids);
        chains.limit = chains.limit.saturating_add(limit);
        self.asked_outlines.extend(from);
    }

    /// Asks for the whole events that are wanted. Where there are many of which it is not known how long they are, that is
    /// asked for instead.
    pub(super) fn ask_wanted(&mut self, need: &mut Need) -> Result<(), ResolutionError> {
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.sort_unstable();
        wanted.dedup();
        let mut bytes = self.bytes;
        let mut unmeasured = Vec::new();
        for index in &wanted {
            match self.slots.get(*index) {
                Some(Slot { content: Content::Outline { length, .. }, .. }) => bytes += length,
                _ => unmeasured.push(*index),
            }
        }
        if bytes > MAX_BYTES || self.slots.len() > MAX_EVENTS {
            return Err(ResolutionError::TooLarge);
        }
        if unmeasured.len() > MAX_UNMEASURED {
            // With most of what they cite, which is likely to be needed next.
            self.want_chains(&unmeasured, unmeasured.len().saturating_mul(4), need);
            return Ok(());
        }
        need.events.extend(wanted.iter().filter_map(|index| self.slots.get(*index)).map(|slot| slot.event_id.clone()));
        self.asked = wanted;
        Ok(())
    }

    /// The key of a state event that is known, or of which a citation told.
    pub(super) fn key(&mut self, index: Index) -> Option<StateKeyHash> {
        let slot = self.slots.get_mut(index)?;
        if slot.key.is_none()
            && let Content::Event { event, .. } = &slot.content
        {
            slot.key = Some(StateKeyHash::of(&event.event)?);
        }
        slot.key
    }

    pub(super) fn set_key(&mut self, index: Index, key: StateKeyHash) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.key = Some(key);
        }
    }

    /// Whether the event is known to be of a type that no accepted event has in its `auth_events`.
    pub(super) fn is_uncitable(&self, index: Index) -> bool {
        match self.slots.get(index) {
            Some(Slot { content: Content::Outline { citable, .. }, .. }) => !citable,
            Some(Slot { content: Content::Event { event, .. }, .. }) => {
                !CITED_TYPES.contains(&event.event.event_type())
            }
            _ => false,
        }
    }

    /// The create event that the room's id names, from room version 12 on.
    pub(super) fn create_by_room_id(&self) -> Option<Index> {
        self.create
    }

    /// The event of this type and state key in the auth events of an event, which were read. Of several the last one
    /// counts.
    pub(super) fn auth_event(&self, index: Index, event_type: &str, state_key: &str) -> Option<Index> {
        let of_that_key =
            |index: &Index| self.get(*index).is_some_and(|other| other.event.is_state(event_type, state_key));
        self.auth_events(index).iter().copied().rev().find(of_that_key)
    }

    /// As [`Events::auth_event`], by the outlines.
    pub(super) fn outlined_auth_event(&mut self, index: Index, key: StateKeyHash) -> Option<Index> {
        let auth_events = self.auth_events(index).to_vec();
        auth_events.into_iter().rev().find(|index| self.exists(*index) && self.key(*index) == Some(key))
    }
}

/// Events by type and state key.
#[derive(Debug, Default)]
pub(super) struct StateMap(HashMap<Box<str>, HashMap<Box<str>, Index>>);

impl StateMap {
    pub(super) fn get(&self, event_type: &str, state_key: &str) -> Option<Index> {
        self.0.get(event_type)?.get(state_key).copied()
    }

    pub(super) fn contains(&self, event_type: &str, state_key: &str) -> bool {
        self.get(event_type, state_key).is_some()
    }

    pub(super) fn insert(&mut self, event_type: &str, state_key: &str, event: Index) {
        if !self.0.contains_key(event_type) {
            self.0.insert(event_type.into(), HashMap::default());
        }
        if let Some(events) = self.0.get_mut(event_type) {
            match events.get_mut(state_key) {
                Some(value) => *value = event,
                None => {
                    events.insert(state_key.into(), event);
                }
            }
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = Index> {
        self.0.values().flat_map(HashMap::values).copied()
    }
}

/// The state that an event is judged by during a resolution: what is resolved so far, then the state that the resolution
/// began with, then, if `auth_events_of` is given, that event's own auth events. Rejected events are passed over.
pub(super) struct StateSoFar<'a> {
    pub(super) events: &'a Events,
    pub(super) resolved: &'a StateMap,
    pub(super) initial: &'a StateMap,
    pub(super) auth_events_of: Option<Index>,
}

impl AuthState for StateSoFar<'_> {
    fn get(&self, event_type: &str, state_key: &str) -> Option<&Event> {
        if let Some(create) = self.events.create
            && event_type == "m.room.create"
        {
            return self.events.accepted(create);
        }
        let resolved = self.resolved.get(event_type, state_key).or_else(|| self.initial.get(event_type, state_key));
        if let Some(event) = resolved.and_then(|index| self.events.accepted(index)) {
            return Some(event);
        }
        let auth_events = self.events.auth_events(self.auth_events_of?);
        let mut accepted = auth_events.iter().rev().filter_map(|index| self.events.accepted(*index));
        accepted.find(|event| event.is_state(event_type, state_key))
    }
}
