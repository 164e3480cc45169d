//! Knocking on rooms that other servers hold (Server-Server API, "Knocking upon a room").

use super::{
    membership::{check_content, residents_by},
    refusals::{any_of, of_handshake},
    templates::complete,
};
use crate::{
    error::MatrixError,
    federation::pdus,
    log::LogRecord,
    matrix::{
        event::{Event, ReceivedPdu},
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::{Object, Value},
        room_version::RoomVersion,
        state_content::Membership,
        stripped_state::{separate_stripped, shown},
    },
    server::Server,
};

/// The most events that are looked at of the state that describes a room: each may take a key to check.
const MAX_ROOM_STATE: usize = 100;

/// For how long what rejects a knock may wait for its answer, in milliseconds, where the attempt is cut off.
const KNOCK_MS: i64 = 10 * 60 * 1_000;

/// Has `user` knock on a room that nobody here is in, through one of the servers `via` or the one in the room ID.
/// `content_extra` is what the membership says besides: display name, avatar, reason.
///
/// # Errors
/// What the servers say, 404 where none is known, 502 where none can be reached; as [`check_content`].
pub async fn knock(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    via: Vec<ServerName>,
    content_extra: Object,
) -> Result<EventId, MatrixError> {
    check_content(&content_extra)?;
    let (knocking, user, room_id) = (server.clone(), user.clone(), room_id.clone());
    let work = async move {
        let invitation = knocking.store.invitation(&user, &room_id).await?;
        let residents = residents_by(&knocking, invitation.as_ref(), &room_id, via).await?;
        let ended: Vec<EventId> = invitation.into_iter().map(|invitation| invitation.event_id).collect();
        any_of(&residents, "No server is known through which to knock on that room.", async |resident| {
            knock_through(&knocking, resident, &user, &room_id, content_extra.clone(), &ended).await
        })
        .await
    };
    server.platform.to_the_end(work).await
}

/// `ended`: the invite that the user had before, of which the room knows nothing if it lets them knock.
async fn knock_through(
    server: &Server,
    resident: &ServerName,
    user: &UserId,
    room_id: &RoomId,
    content: Object,
    ended: &[EventId],
) -> Result<EventId, MatrixError> {
    let versions: Vec<&str> =
        RoomVersion::all().iter().filter(|version| version.knock).map(|version| version.id).collect();
    let template = server.federation.make_knock(resident, room_id, user, &versions).await.map_err(of_handshake)?;
    let knock = complete(server, template, user, room_id, Membership::Knock, content)?;
    // From here on the room's servers may reject it.
    server.store.begin_knock(&knock, server.platform.clock.now_ms() + KNOCK_MS).await?;
    let state = match server.federation.send_knock(resident, room_id, knock.event_id(), knock.json()).await {
        Ok(state) => state,
        Err(error) => {
            server.store.end_knock(&knock).await?;
            return Err(of_handshake(error));
        }
    };
    // The room knows of it now, whatever the server says of the room.
    let state = described(server, &knock, state).await?;
    server.rooms.knocked_elsewhere(&knock, state, resident, ended).await?;
    // The resident server does not send us what it has from us.
    if server.rooms.servers(room_id).await?.contains(&server.config.server_name)
        && let Err(error) = server.judge_given(resident, &knock).await
    {
        let record = LogRecord::error("a knock cannot be taken").room(room_id).user(user).event(knock.event_id());
        server.platform.log.write(record.because(&error));
    }
    Ok(knock.event_id().clone())
}

/// The state by which the resident server describes the room, stripped.
///
/// From room version 12 on it must be events of the room, signed as events are; what is no such event is left out, unless it
/// came stripped ([`separate_stripped`]). Before, servers sent it stripped already, and it is taken as what it is: what that
/// server says.
async fn described(server: &Server, knock: &Event, mut state: Vec<Value>) -> Result<Vec<Object>, MatrixError> {
    let version = knock.version();
    let parties = [knock.sender().as_str()];
    state.truncate(MAX_ROOM_STATE);
    if !version.room_id_is_create_hash {
        return Ok(shown(state.iter().filter_map(Value::as_object), &parties));
    }
    let (stripped, events) = separate_stripped(state);
    let events = events.into_iter().filter_map(|event| ReceivedPdu::from_history(event, version).ok());
    let events = events.filter(|event| event.room_id() == knock.room_id()).collect();
    let events: Vec<Event> = pdus::verify(server, events).await?.into_iter().flatten().collect();
    // Of a key that came twice, the event counts.
    Ok(shown(events.iter().map(Event::object).chain(&stripped), &parties))
}
