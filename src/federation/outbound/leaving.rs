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
    platform::DatabaseError,
    room::{Draft, RoomError},
    server::Server,
    store::{ended_joins::AfterJoins, large_joins::LargeJoin},
};

/// How long one server may take to say what membership a leave ends, in milliseconds.
const ASKING_MS: i64 = 30_000;

/// Joins of a user into a room that have ended.
#[derive(Clone, Copy)]
pub(super) struct EndedJoins<'a> {
    /// Those that are known.
    pub(super) joins: &'a [EventId],
    /// Whether they have ended because the user left. Otherwise a user who is in the room by one of them stays there.
    pub(super) has_left: bool,
}

impl EndedJoins<'_> {
    /// What the user is in the room, as far as is known here.
    async fn come_to(&self, server: &Server, user: &UserId, room_id: &RoomId) -> Result<AfterJoins, DatabaseError> {
        let unwanted = if self.has_left { self.joins } else { &[] };
        server.store.after_joins(user, room_id, unwanted).await
    }
}

/// Leaves a room that may have let the user in after they had left, by one of these joins or an earlier one, be it that the answer was
/// lost. Where they are back, or invited anew, or were put out meanwhile, the servers cite that, and nothing is left.
pub(super) async fn leave_behind<'n>(
    server: &Server,
    residents: impl Iterator<Item = &'n ServerName>,
    user: &UserId,
    room_id: &RoomId,
    ended: EndedJoins<'_>,
) -> Result<(), MatrixError> {
    match ended.come_to(server, user, room_id).await? {
        AfterJoins::WantsIn => return Ok(()),
        AfterJoins::InAllTheSame if leave_here(server, user, room_id, ended).await => return Ok(()),
        AfterJoins::InAllTheSame | AfterJoins::Out => {}
    }
    if let Some((resident, left)) =
        leave_through_any(server, residents, user, room_id, &Object::new(), Some(ended)).await
    {
        take_leave(server, resident, &left).await?;
    }
    Ok(())
}

/// Leaves a room, which this server holds, for a user who is in it by one of these joins all the same: the room's other servers hear of that
/// like of any event. `false` where it cannot be done, or something else has come first.
async fn leave_here(server: &Server, user: &UserId, room_id: &RoomId, ended: EndedJoins<'_>) -> bool {
    let draft = Draft::membership(user.as_str(), Membership::Leave, Object::new());
    let is_over = async || Ok(ended.come_to(server, user, room_id).await? != AfterJoins::InAllTheSame);
    match server.rooms.send_with(room_id, user, draft, |_| Vec::new(), async || Ok(false), is_over).await {
        Ok(_) => {
            server.flush(room_id);
            true
        }
        Err(RoomError::Duplicate) => false,
        Err(error) => {
            let record = LogRecord::warning("a room cannot be left here").room(room_id).user(user);
            server.platform.log.write(record.because(&error));
            false
        }
    }
}

/// Leaves a room whose join has ended while nobody waited for it, as the user has left or as it was given up: who let them in may not have
/// heard of that.
pub(super) async fn leave_for_absent(server: &Server, large: &LargeJoin, has_left: bool) -> Result<(), MatrixError> {
    let (user, room_id) = (large.join.sender(), large.room_id());
    let joins = std::slice::from_ref(large.join.event_id());
    let leaving = leave_behind(server, [&large.resident].into_iter(), user, room_id, EndedJoins { joins, has_left });
    // What is noted of the leave is held meanwhile, as the user may take it back.
    server.holding(room_id, &large.join_id, leaving).await?;
    if has_left {
        server.store.forget_join(room_id, &large.join_id).await?;
    }
    Ok(())
}

/// Takes a leave that `resident` has let into the room, where we are in that, too: it does not send us what it has from us.
pub(super) async fn take_leave(server: &Server, resident: &ServerName, left: &Event) -> Result<(), MatrixError> {
    let room_id = left.room_id();
    if server.rooms.servers(room_id).await?.contains(&server.config.server_name)
        && let Err(error) = server.judge_given(resident, left).await
    {
        let record = LogRecord::error("a leave cannot be taken").room(room_id).user(left.sender());
        server.platform.log.write(record.event(left.event_id()).because(&error));
    }
    Ok(())
}

/// Leaves the room through the first of these servers that helps: that one, and the leave. Where only joins that have ended are to be
/// taken back, those servers help by which the user is in the room.
pub(super) async fn leave_through_any<'n>(
    server: &Server,
    residents: impl Iterator<Item = &'n ServerName>,
    user: &UserId,
    room_id: &RoomId,
    content: &Object,
    ended: Option<EndedJoins<'_>>,
) -> Option<(&'n ServerName, Event)> {
    for resident in residents {
        match leave_through(server, resident, user, room_id, content.clone(), ended).await {
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
    ended: Option<EndedJoins<'_>>,
) -> Result<Option<Event>, MatrixError> {
    let template = server.federation.make_leave(resident, room_id, user).await?;
    let leave = complete(server, template, user, room_id, Membership::Leave, content)?;
    // They may have come back while the server was asked.
    if let Some(ended) = ended
        && (!takes_back_join(server, resident, &leave, ended.joins).await?
            || ended.come_to(server, user, room_id).await? == AfterJoins::WantsIn)
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
