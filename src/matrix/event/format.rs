//! Event format: the members that the protocol reads, and what each room version asks of them.
//!
//! Spec: rooms, "Event format" and "Event IDs" of versions 1, 3, 4, 6, 11 and 12.

use super::PduError;
use crate::matrix::{
    hashes,
    identifiers::{EventId, RoomId, UserId},
    json::{Object, Value},
    room_version::{EventIds, RoomVersion},
};

/// The members that the protocol itself reads.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) sender: UserId,
    pub(super) event_type: Box<str>,
    pub(super) state_key: Option<Box<str>>,
    pub(super) origin_server_ts: i64,
    pub(super) depth: i64,
    pub(super) auth_events: Vec<EventId>,
    pub(super) prev_events: Vec<EventId>,
    /// `content.join_authorised_via_users_server` of a membership event, where the room version knows it.
    pub(super) authoriser: Option<UserId>,
}

impl Fields {
    /// Reads and checks them.
    pub(super) fn read(object: &Object, version: &RoomVersion) -> Result<Self, PduError> {
        let text = |name| object.get(name).and_then(Value::as_str).ok_or(PduError::Format(name));
        let integer = |name| object.get(name).and_then(Value::as_i64).ok_or(PduError::Format(name));
        let ids = |name| -> Result<Vec<EventId>, PduError> {
            let items = object.get(name).and_then(Value::as_array).ok_or(PduError::Format(name))?;
            items.iter().map(|item| read_reference(item, version).ok_or(PduError::Format(name))).collect()
        };
        let content = object.get("content").and_then(Value::as_object).ok_or(PduError::Format("content"))?;
        let event_type = text("type")?;
        let authoriser = match content.get("join_authorised_via_users_server") {
            Some(user) if version.restricted && event_type == "m.room.member" => {
                let user = user.as_str().and_then(|user| UserId::parse_any_length(user).ok());
                Some(user.ok_or(PduError::Format("join_authorised_via_users_server"))?)
            }
            _ => None,
        };
        let state_key = match object.get("state_key") {
            None => None,
            Some(_) => Some(text("state_key")?.into()),
        };
        let depth = integer("depth")?;
        if depth < 0 {
            return Err(PduError::Format("depth"));
        }
        Ok(Self {
            sender: UserId::parse_any_length(text("sender")?).map_err(|_| PduError::Format("sender"))?,
            event_type: event_type.into(),
            state_key,
            origin_server_ts: integer("origin_server_ts")?,
            depth,
            auth_events: ids("auth_events")?,
            prev_events: ids("prev_events")?,
            authoriser,
        })
    }
}

/// One entry of `auth_events` or `prev_events`.
fn read_reference(item: &Value, version: &RoomVersion) -> Option<EventId> {
    let id = match version.event_ids {
        EventIds::Given => match item.as_array()? {
            [id, Value::Object(_)] => id,
            _ => return None,
        },
        _ => item,
    };
    EventId::parse_any_length(id.as_str()?).ok()
}

/// The event's id: its own in versions 1 and 2, with the server name whose signature is asked for; else the reference
/// hash, of the text that is signed.
pub(super) fn read_event_id(object: &Object, signed_text: &str, version: &RoomVersion) -> Result<EventId, PduError> {
    let id = match hashes::event_id(&hashes::reference_hash(signed_text), version.event_ids) {
        Some(id) => EventId::parse(&id),
        None => {
            let given = object.get("event_id").and_then(Value::as_str).unwrap_or_default();
            EventId::parse_with_domain(given)
        }
    };
    id.map_err(|_| PduError::Format("event_id"))
}

/// The room's id, which a create event of version 12 and later does not carry but make.
pub(super) fn read_room_id(
    object: &Object,
    fields: &Fields,
    event_id: &EventId,
    version: &RoomVersion,
) -> Result<RoomId, PduError> {
    match object.get("room_id") {
        None if version.room_id_is_create_hash
            && &*fields.event_type == "m.room.create"
            && fields.state_key.as_deref() == Some("") =>
        {
            Ok(RoomId::of_create_event(event_id))
        }
        room_id => room_id
            .and_then(Value::as_str)
            .and_then(|id| RoomId::parse_any_length(id).ok())
            .ok_or(PduError::Format("room_id")),
    }
}
