//! Rule 1: `m.room.create`.

use super::AuthError;
use crate::matrix::{event::Event, identifiers::UserId, json::Value, room_version::RoomVersion};

/// Judges a create event, which depends on nothing but itself.
pub(super) fn check(event: &Event) -> Result<(), AuthError> {
    let version = event.version();
    let content = event.content();
    if !event.prev_events().is_empty() {
        return Err(AuthError::CreateHasPrevEvents);
    }
    if version.room_id_is_create_hash {
        if event.object().contains_key("room_id") {
            return Err(AuthError::CreateHasRoomId);
        }
    } else if event.room_id().server_name() != Some(event.sender().server_name()) {
        return Err(AuthError::CreateForAnotherServer);
    }
    if let Some(room_version) = content.get("room_version")
        && room_version.as_str().and_then(RoomVersion::get).is_none()
    {
        return Err(AuthError::UnknownRoomVersion);
    }
    if !version.creator_is_sender && !content.contains_key("creator") {
        return Err(AuthError::NoCreator);
    }
    if version.privileged_creators
        && let Some(creators) = content.get("additional_creators")
    {
        let is_user_id = |creator: &Value| creator.as_str().is_some_and(UserId::is_valid);
        if !creators.as_array().is_some_and(|creators| creators.iter().all(is_user_id)) {
            return Err(AuthError::AdditionalCreators);
        }
    }
    Ok(())
}
