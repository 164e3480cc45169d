//! Events as they are stored: their text, the version of their room, and whether that text is whole.

use crate::{
    matrix::{
        event::{ContentHash, Event},
        room_version::RoomVersion,
    },
    platform::DatabaseError,
};

/// The event of this id and text in a room of this version, as they are stored, for whoever is shown it.
pub(super) fn read(event_id: &str, json: &str, version: &str) -> Result<Event, DatabaseError> {
    read_as(event_id, json, ContentHash::Right, version)
}

/// What the column `hash_wrong` says.
pub(super) fn content_hash(hash_wrong: i64) -> ContentHash {
    if hash_wrong == 0 { ContentHash::Right } else { ContentHash::Wrong }
}

/// What it says of the event.
pub(super) fn hash_wrong(event: &Event) -> i64 {
    i64::from(event.is_altered())
}

#[expect(clippy::disallowed_methods, reason = "only checked events are stored")]
pub(super) fn read_as(
    event_id: &str,
    json: &str,
    content_hash: ContentHash,
    version: &str,
) -> Result<Event, DatabaseError> {
    let version = RoomVersion::get(version)
        .ok_or_else(|| DatabaseError::Shape(format!("a stored room has the unknown version {version:?}")))?;
    Event::from_store_as(event_id, json, content_hash, version)
        .map_err(|error| DatabaseError::Shape(format!("the stored event {event_id} cannot be read: {error}")))
}
