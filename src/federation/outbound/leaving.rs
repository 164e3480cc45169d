//! Leaving a room through the servers that are in it (Server-Server API, "Leaving Rooms"), also for a user who was let in after they had left.

use super::templates::complete;
use crate::{
    error::MatrixError,
    federation::{
        pdus::{self, AnswerMemory},
        peers::requests::within,
    },
    log::LogRecord,
    matrix::{
        event::{Event, ReceivedPdu},
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::Object,
        state_content::Membership,
    },
    server::Server,
    store::large_joins::LargeJoin,
};

/// How long one server may take to say what membership a leave ends, in milliseconds.
const ASKING_MS: i64 = 30_000;

/// Leaves a room that may have let the user in after they had left, by one of these `joins` or an earlier one, be it that the answer was
/// lost. Where they are back, or invited anew, or were put out meanwhile, the servers cite that, and nothing is left.
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

/// Leaves a room whose join has ended while nobody waited for it, as the user has left or as it was given up: who let them in may not have
/// heard of that.
pub(super) async fn leave_for_absent(server: &Server, large: &LargeJoin) -> Result<(), MatrixError> {
    let (user, room_id) = (large.join.sender(), large.room_id());
    let joins = std::slice::from_ref(large.join.event_id());
    leave_behind(server, [&large.resident].into_iter(), user, room_id, joins).await
}

/// Leaves the room through the first of these servers that helps: that one, and the leave. Where only joins are to be taken back, of which
/// these are known, those servers help by which the user is in the room.
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
    // They may have come back while the server was asked.
    if let Some(joins) = joins
        && (!takes_back_join(server, resident, &leave, joins).await? || server.store.wants_in(user, room_id).await?)
    {
        return Ok(None);
    }
    server.federation.send_leave(resident, room_id, leave.event_id(), leave.json()).await?;
    Ok(Some(leave))
}

/// Whether the membership that the leave ends is a join: one of these, or one of which nothing is known here any more, as its answer was
/// lost. It is one of the events by which the leave is allowed.
async fn takes_back_join(
    server: &Server,
    resident: &ServerName,
    leave: &Event,
    joins: &[EventId],
) -> Result<bool, MatrixError> {
    if leave.auth_events().iter().any(|id| joins.contains(id)) {
        return Ok(true);
    }
    let clock = server.platform.clock.as_ref();
    let until = clock.now_ms() + ASKING_MS;
    for id in leave.auth_events() {
        let text = match within(clock, until - clock.now_ms(), server.federation.event(resident, id)).await {
            Err(error) if error.is_worth_retrying() => return Err(error.into()),
            Err(_) => continue,
            Ok(text) => text,
        };
        let pdu = AnswerMemory::default().parse(server, &text, leave.room_id(), leave.version())?.ok().flatten();
        let is_theirs =
            |pdu: &ReceivedPdu| pdu.event_id() == id && pdu.is_own_membership() && pdu.sender() == leave.sender();
        let Some(pdu) = pdu.filter(is_theirs) else { continue };
        // Nobody but this server can have signed it.
        let membership = pdus::verify_one(server, pdu).await?;
        return Ok(membership.membership() == Some(Membership::Join));
    }
    Ok(false)
}
