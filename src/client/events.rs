//! Events as clients see them (Client-Server API, "Room event format", "Stripped state").

use std::borrow::Cow;

use crate::{
    matrix::{
        event::Event,
        json::{Object, Value},
        state_content::Membership,
    },
    store::timeline::{SeenEvent, TimelineEvent},
};

/// What a client is told of an event beyond the event itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Telling<'a> {
    /// The time, for `age`.
    pub(super) now_ms: i64,
    /// Whether the event says in which room it is: not within `/sync`, where the place says it.
    pub(super) room_id: bool,
    /// The state event that it replaced.
    pub(super) replaces: Option<&'a SeenEvent>,
    /// What the reader was in the room with the event, where that is known.
    pub(super) membership: Option<Membership>,
    /// Whether events of erased users have their content.
    pub(super) erased: bool,
    /// What is told of the events that relate to it.
    pub(super) relations: Option<&'a Object>,
}

impl Telling<'_> {
    /// That an event is told at this time by itself, as one of its room's state.
    pub(super) fn alone(now_ms: i64, room_id: bool) -> Self {
        Self { now_ms, room_id, replaces: None, membership: None, erased: true, relations: None }
    }
}

/// An event of the timeline in the client format.
pub(super) fn timeline_event(event: &TimelineEvent, telling: Telling<'_>) -> Value {
    let mut object = client_object(&event.seen, telling);
    if let (Some(txn_id), Some(unsigned)) = (&event.txn_id, object.get_mut("unsigned").and_then(Value::as_object_mut)) {
        unsigned.insert("transaction_id", txn_id.as_str());
    }
    Value::Object(object)
}

/// An event in the client format.
pub(super) fn client_event(seen: &SeenEvent, telling: Telling<'_>) -> Value {
    Value::Object(client_object(seen, telling))
}

/// An event of a room that we are not in, as a client is shown it.
pub(super) fn stripped(event: &Object) -> Value {
    let keep = ["type", "state_key", "sender", "content", "origin_server_ts", "event_id"];
    let members = keep.into_iter().filter_map(|key| Some((key, event.get(key)?.clone())));
    Value::Object(members.collect())
}

/// `{"events": […]}`
pub(super) fn events_object(events: Vec<Value>) -> Object {
    [("events", Value::Array(events))].into_iter().collect()
}

fn client_object(seen: &SeenEvent, telling: Telling<'_>) -> Object {
    let event = shown(seen, telling.erased);
    let mut unsigned = Object::new();
    unsigned.insert("age", telling.now_ms.saturating_sub(event.origin_server_ts()));
    if let Some(replaced) = telling.replaces.map(|replaced| shown(replaced, telling.erased)) {
        unsigned.insert("prev_content", replaced.content().clone());
        unsigned.insert("prev_sender", replaced.sender().as_str());
        unsigned.insert("replaces_state", replaced.event_id().as_str());
    }
    if let Some(membership) = telling.membership {
        unsigned.insert("membership", membership.as_str());
    }
    if let Some(redaction) = &seen.redaction {
        let mut because = members(redaction, telling.room_id);
        let mut unsigned_of_it = Object::new();
        unsigned_of_it.insert("age", telling.now_ms.saturating_sub(redaction.origin_server_ts()));
        because.insert("unsigned", unsigned_of_it);
        unsigned.insert("redacted_because", because);
    }
    if let Some(relations) = telling.relations {
        unsigned.insert("m.relations", relations.clone());
    }
    let mut object = members(&event, telling.room_id);
    object.insert("unsigned", unsigned);
    object
}

/// The event, without its content where who sent it is erased and that is not shown.
fn shown(seen: &SeenEvent, erased: bool) -> Cow<'_, Event> {
    if seen.is_erased && !erased { Cow::Owned(seen.event.redacted()) } else { Cow::Borrowed(&seen.event) }
}

/// What the client format takes from an event.
fn members(event: &Event, room_id: bool) -> Object {
    let mut object = Object::new();
    object.insert("event_id", event.event_id().as_str());
    object.insert("type", event.event_type());
    object.insert("sender", event.sender().as_str());
    object.insert("origin_server_ts", event.origin_server_ts());
    if let Some(state_key) = event.state_key() {
        object.insert("state_key", state_key);
    }
    if room_id {
        object.insert("room_id", event.room_id().as_str());
    }
    let mut content = event.content().clone();
    // Room versions have `redacts` in one place; clients are served it in both.
    if event.event_type() == "m.room.redaction"
        && let Some(redacts) = event.redacts()
    {
        object.insert("redacts", redacts);
        content.insert("redacts", redacts);
    }
    object.insert("content", content);
    object
}
