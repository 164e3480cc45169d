//! What users have set for a room, in the one that goes on with it (Client-Server API, "Room Upgrades").

use super::{
    account_data::{self, MAX_CONTENT_BYTES},
    tags::TAGS,
};
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        identifiers::{RoomId, UserId},
        json::Value,
    },
    platform::DatabaseError,
    room::{Entrance, RoomError},
    server::Server,
};

/// The account data that says which rooms are direct chats, and with whom.
const DIRECT: &str = "m.direct";

/// To be called when a user has come into a room in which they never were: where it goes on with one in which they were, what they
/// have set for that holds in it. They are in the room whether or not this succeeds.
pub(super) async fn has_entered(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    entrance: Result<Option<Entrance>, RoomError>,
) {
    let settings = async {
        match entrance?.and_then(|entrance| entrance.predecessor()) {
            Some(old) if server.store.was_in(&old, user).await? => bring_settings(server, user, &old, room_id).await,
            _ => Ok(()),
        }
    };
    log_unsettled(server, user, room_id, settings.await);
}

/// What the user has set for the room `old` holds in `new` too, as far as nothing is set there: tags, push rules, and with whom it is a
/// direct chat.
///
/// # Errors
/// Where the database fails.
pub(super) async fn bring_settings(
    server: &Server,
    user: &UserId,
    old: &RoomId,
    new: &RoomId,
) -> Result<(), MatrixError> {
    let (user, old, new) = (user.as_str(), old.as_str(), new.as_str());
    let rules = |stored: Option<&str>| {
        let mut rules = account_data::push_rules(user, stored)?;
        // A user who has as many as there may be keeps those.
        Ok(rules.follow(old, new).unwrap_or(false).then(|| rules.to_object().to_text()))
    };
    account_data::change(server, (user, "", account_data::PUSH_RULES), rules).await?;
    let chats = |stored: Option<&str>| Ok(stored.map(|stored| follow_chats(stored, old, new)).transpose()?.flatten());
    account_data::change(server, (user, "", DIRECT), chats).await?;
    let Some(tags) = server.store.account_data(user, old, TAGS).await? else { return Ok(()) };
    let tags = |stored: Option<&str>| Ok(stored.is_none().then(|| tags.clone()));
    account_data::change(server, (user, new, TAGS), tags).await
}

/// The direct chats with `new` beside `old` wherever that is one; `None` where it is none, or there are as many as there may be.
fn follow_chats(stored: &str, old: &str, new: &str) -> Result<Option<String>, DatabaseError> {
    let mut chats = account_data::object(stored)?;
    let mut changes = false;
    // Clients write it: what is no list of rooms stays what it is.
    chats.retain(|_, rooms| {
        if let Value::Array(rooms) = rooms {
            let has = |room_id: &str| rooms.iter().any(|room| room.as_str() == Some(room_id));
            if has(old) && !has(new) {
                rooms.push(Value::from(new));
                changes = true;
            }
        }
        true
    });
    Ok(changes.then(|| chats.to_text()).filter(|text| text.len() <= MAX_CONTENT_BYTES))
}

/// Writes down that settings do not hold where they should.
pub(super) fn log_unsettled(server: &Server, user: &UserId, room_id: &RoomId, settings: Result<(), MatrixError>) {
    if let Err(error) = settings {
        let record = LogRecord::warning("what a user has set for a room does not hold in its successor");
        server.platform.log.write(record.room(room_id).user(user).because(&error));
    }
}
