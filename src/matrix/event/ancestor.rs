//! Events of a room's past as another server gives them, usable or not.

use super::{
    Event, MAX_PREV_EVENTS, MAX_STRING, ReceivedPdu,
    format::{Fields, read_event_id, read_room_id},
};
use crate::matrix::{
    identifiers::{EventId, RoomId},
    json::Value,
    redaction,
    room_version::RoomVersion,
};

/// An event that leads back to older ones.
#[derive(Debug, Clone)]
pub enum Ancestor {
    /// It can be judged.
    Event(Event),
    /// It cannot be used, but history goes on behind it.
    Unusable(Unusable),
}

/// What is known of an event that failed check 2, or whose auth events nobody gives us: its place in the graph, nothing that
/// could be judged, stored or shown. From room version 3 on its ID is a hash of it, so that whoever cites it vouches for its
/// place; before, nobody does but the server that gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    event_id: EventId,
    prev_events: Vec<EventId>,
    depth: i64,
    origin_server_ts: i64,
}

impl Ancestor {
    /// The event's ID.
    pub fn event_id(&self) -> &EventId {
        match self {
            Self::Event(event) => event.event_id(),
            Self::Unusable(unusable) => unusable.event_id(),
        }
    }

    /// The IDs in its `prev_events`.
    pub fn prev_events(&self) -> &[EventId] {
        match self {
            Self::Event(event) => event.prev_events(),
            Self::Unusable(unusable) => &unusable.prev_events,
        }
    }

    /// What orders it among others: its `depth`, then when it was sent, as its sender claims.
    pub fn age(&self) -> (i64, i64) {
        match self {
            Self::Event(event) => (event.depth(), event.origin_server_ts()),
            Self::Unusable(unusable) => (unusable.depth, unusable.origin_server_ts),
        }
    }

    /// The event, if it can be judged.
    pub fn into_event(self) -> Option<Event> {
        match self {
            Self::Event(event) => Some(event),
            Self::Unusable(_) => None,
        }
    }

    /// As [`Ancestor::into_event`], where it stays.
    pub fn event(&self) -> Option<&Event> {
        match self {
            Self::Event(event) => Some(event),
            Self::Unusable(_) => None,
        }
    }
}

impl Unusable {
    /// The place of an event that has failed check 2 or may yet fail it.
    pub fn of_pdu(pdu: &ReceivedPdu) -> Self {
        let fields = &pdu.event.fields;
        Self {
            event_id: pdu.event.event_id.clone(),
            prev_events: fields.prev_events.clone(),
            depth: fields.depth,
            origin_server_ts: fields.origin_server_ts,
        }
    }

    /// The place of a PDU that fails check 1 for what it says besides: nested too deep, or with numbers that are not allowed. `None`
    /// for what is no PDU of this room, and where it or what it cites could not be asked for.
    pub fn of_malformed(pdu: &Value, room_id: &RoomId, version: &'static RoomVersion) -> Option<Self> {
        let object = pdu.as_object()?;
        let fields = Fields::read(object, version).ok()?;
        let event_id = read_event_id(object, &redaction::signed_text(object, version), version).ok()?;
        let is_here = read_room_id(object, &fields, &event_id, version).ok()? == *room_id;
        let Fields { prev_events, depth, origin_server_ts, .. } = fields;
        let ids = || prev_events.iter().chain([&event_id]);
        let is_bounded = prev_events.len() <= MAX_PREV_EVENTS && ids().all(|id| id.as_str().len() <= MAX_STRING);
        (is_here && is_bounded).then_some(Self { event_id, prev_events, depth, origin_server_ts })
    }

    /// The event's ID.
    pub fn event_id(&self) -> &EventId {
        &self.event_id
    }

    /// The place of an event that cannot be judged.
    pub fn of_event(event: &Event) -> Self {
        Self {
            event_id: event.event_id().clone(),
            prev_events: event.prev_events().to_vec(),
            depth: event.depth(),
            origin_server_ts: event.origin_server_ts(),
        }
    }
}
