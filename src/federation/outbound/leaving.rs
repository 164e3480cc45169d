//! Leaving a room through the servers that are in it (Server-Server API, "Leaving Rooms"), also for a user who was let in after they had left.

use super::templates::complete;
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::Object,
        state_content::Membership,
    },
    server::Server,
    store::large_joins::LargeJoin,
};

/// Leaves a room that may have let the user in after they had left, by one of these `joins`, be it that the answer was lost. Where they
/// are back, or invited anew, or were put out meanwhile, the servers cite that, and nothing is left.
pub(super) async fn leave_behind<'n>(
    server: &Server,
    residents: impl Iterator<Item = &'n ServerName>,
    user: &UserId,
    room_id: &RoomId,
    joins: &[EventId],
) -> Result<(), MatrixError> {
    if !server.store.wants_in(user, room_id).await? {
        leave_through_any(server, residents, user, room_id, &Object::new(), Some(joins)).await;
    }
    Ok(())
}

/// Leaves a room for a user who has left while nobody was at their join: who let them in may not have heard of that.
pub(super) async fn leave_for_absent(server: &Server, large: &LargeJoin) -> Result<(), MatrixError> {
    let (user, room_id) = (large.join.sender(), large.room_id());
    let joins = std::slice::from_ref(large.join.event_id());
    leave_behind(server, [&large.resident].into_iter(), user, room_id, joins).await
}

/// Leaves the room through the first of these servers that helps: that one, and the leave. Where only some `joins` are to be taken back,
/// those servers help by which the user is in the room through one of them.
pub(super) async fn leave_through_any<'n>(
    server: &Server,
    residents: impl Iterator<Item = &'n ServerName>,
    user: &UserId,
    room_id: &RoomId,
    content: &Object,
    joins: Option<&[EventId]>,
) -> Option<(&'n ServerName, Event)> {
    for resident in residents {
        match leave_through(server, resident, user, room_id, content.clone(), joins).await {
            Ok(Some(event)) => return Some((resident, event)),
            Ok(None) => {}
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
    joins: Option<&[EventId]>,
) -> Result<Option<Event>, MatrixError> {
    let template = server.federation.make_leave(resident, room_id, user).await?;
    let leave = complete(server, template, user, room_id, Membership::Leave, content)?;
    // The membership that the leave ends is one of those by which it is allowed.
    if joins.is_some_and(|joins| !leave.auth_events().iter().any(|id| joins.contains(id))) {
        return Ok(None);
    }
    server.federation.send_leave(resident, room_id, leave.event_id(), leave.json()).await?;
    Ok(Some(leave))
}
