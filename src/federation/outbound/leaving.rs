//! Leaving a room through the servers that are in it (Server-Server API, "Leaving Rooms"), also for a user who was let in after they had left.

use super::templates::complete;
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        event::Event,
        identifiers::{RoomId, ServerName, UserId},
        json::Object,
        state_content::Membership,
    },
    server::Server,
    store::large_joins::LargeJoin,
};

/// Leaves a room that may have let the user in after they had left, be it that the answer was lost, unless they are back by now.
pub(super) async fn leave_behind<'n>(
    server: &Server,
    residents: impl Iterator<Item = &'n ServerName>,
    user: &UserId,
    room_id: &RoomId,
) -> Result<(), MatrixError> {
    if !server.store.wants_in(user, room_id).await? {
        leave_through_any(server, residents, user, room_id, &Object::new()).await;
    }
    Ok(())
}

/// Leaves a room for a user who has left while nobody was at their join: who let them in may not have heard of that. Whoever is invited
/// since is not in the room, and the invite is for them to answer.
pub(super) async fn leave_for_absent(server: &Server, large: &LargeJoin) -> Result<(), MatrixError> {
    let (user, room_id) = (large.join.sender(), large.room_id());
    if server.store.invitation(user, room_id).await?.is_none() {
        leave_behind(server, [&large.resident].into_iter(), user, room_id).await?;
    }
    Ok(())
}

/// Leaves the room through the first of these servers that helps: that one, and the leave.
pub(super) async fn leave_through_any<'n>(
    server: &Server,
    residents: impl Iterator<Item = &'n ServerName>,
    user: &UserId,
    room_id: &RoomId,
    content: &Object,
) -> Option<(&'n ServerName, Event)> {
    for resident in residents {
        match leave_through(server, resident, user, room_id, content.clone()).await {
            Ok(event) => return Some((resident, event)),
            Err(error) => {
                let record = LogRecord::warning("a room cannot be left through a server").room(room_id).user(user);
                server.platform.log.write(record.destination(resident).because(&error));
            }
        }
    }
    None
}

async fn leave_through(
    server: &Server,
    resident: &ServerName,
    user: &UserId,
    room_id: &RoomId,
    content: Object,
) -> Result<Event, MatrixError> {
    let template = server.federation.make_leave(resident, room_id, user).await?;
    let leave = complete(server, template, user, room_id, Membership::Leave, content)?;
    server.federation.send_leave(resident, room_id, leave.event_id(), leave.json()).await?;
    Ok(leave)
}
