//! Asking other servers for an event by when it was sent (Server-Server API, "Retrieving events").

use crate::{
    error::MatrixError,
    federation::pdus,
    log::LogRecord,
    matrix::{
        identifiers::{EventId, RoomId, ServerName},
        json::MAX_INTEGER,
    },
    room::Room,
    router::Call,
    server::Server,
    store::by_time::Direction,
};

/// How many servers are asked.
const MAX_SERVERS: usize = 2;

/// The time and the direction that a request for `timestamp_to_event` names, `ts` and `dir`.
///
/// # Errors
/// 400 `M_MISSING_PARAM` and `M_INVALID_PARAM`.
pub fn wanted(call: &Call) -> Result<(i64, Direction), MatrixError> {
    let required =
        |name: &str| call.query(name).ok_or_else(|| MatrixError::missing_param(format!("The query lacks {name:?}.")));
    let ts: i64 = required("ts")?.parse().map_err(|_| MatrixError::invalid_param("\"ts\" must be an integer."))?;
    // Beyond what the database tells exactly there is nothing.
    let ts = ts.clamp(-MAX_INTEGER, MAX_INTEGER);
    match required("dir")?.as_str() {
        "f" => Ok((ts, Direction::Forwards)),
        "b" => Ok((ts, Direction::Backwards)),
        _ => Err(MatrixError::invalid_param("\"dir\" must be f or b.")),
    }
}

/// The event that another server of the room says is the nearest, and when it was sent. It must show the event: whoever names one
/// that is not of this room, or was not sent when they say, is not believed.
///
/// # Errors
/// Where the database fails. Servers that do not answer are no error.
pub async fn ask(
    server: &Server,
    room_id: &RoomId,
    ts: i64,
    direction: Direction,
) -> Result<Option<(String, i64)>, MatrixError> {
    let Some(room) = server.rooms.room(room_id).await? else { return Ok(None) };
    for resident in &server.some_residents(room_id, MAX_SERVERS).await? {
        match server.federation.timestamp_to_event(resident, room_id, ts, direction == Direction::Forwards).await {
            Ok((event_id, sent)) => {
                let in_direction = if direction == Direction::Forwards { sent >= ts } else { sent <= ts };
                let Some(event_id) = EventId::parse(&event_id).ok().filter(|_| in_direction) else { continue };
                if shows(server, resident, &room, &event_id, sent).await? {
                    return Ok(Some((event_id.to_string(), sent)));
                }
            }
            Err(error) => {
                let record = LogRecord::warning("a server gives no event for a time").room(room_id);
                server.platform.log.write(record.destination(resident).because(&error));
            }
        }
    }
    Ok(None)
}

/// Whether the server gives an event of this ID that its sender's server has signed, in this room and at this time.
async fn shows(
    server: &Server,
    resident: &ServerName,
    room: &Room,
    event_id: &EventId,
    sent: i64,
) -> Result<bool, MatrixError> {
    let text = match server.federation.event(resident, event_id).await {
        Ok(text) => text,
        Err(error) => {
            let record = LogRecord::warning("a server does not show the event that it names").room(&room.room_id);
            server.platform.log.write(record.destination(resident).event(event_id).because(&error));
            return Ok(false);
        }
    };
    let events = pdus::verify_history(server, &room.room_id, room.room_version, &[text]).await?.unwrap_or_default();
    Ok(events.iter().any(|event| event.event_id() == event_id && event.origin_server_ts() == sent))
}
