//! Asking other servers for an event by when it was sent (Server-Server API, "Retrieving events").

use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        identifiers::{EventId, RoomId},
        json::MAX_INTEGER,
    },
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

/// What another server of the room says is the nearest event, and when it says that it was sent.
///
/// # Errors
/// Where the database fails. Servers that do not answer are no error.
pub async fn ask(
    server: &Server,
    room_id: &RoomId,
    ts: i64,
    direction: Direction,
) -> Result<Option<(String, i64)>, MatrixError> {
    let mut servers = server.rooms.servers(room_id).await?;
    servers.retain(|name| *name != server.config.server_name);
    for resident in servers.iter().take(MAX_SERVERS) {
        match server.federation.timestamp_to_event(resident, room_id, ts, direction == Direction::Forwards).await {
            Ok((event_id, sent)) => {
                let in_direction = if direction == Direction::Forwards { sent >= ts } else { sent <= ts };
                if let (true, Ok(event_id)) = (in_direction, EventId::parse(&event_id)) {
                    return Ok(Some((event_id.to_string(), sent)));
                }
            }
            Err(error) => {
                let record = LogRecord::warning("no event by its time from a server").room(room_id);
                server.platform.log.write(record.destination(resident).because(&error));
            }
        }
    }
    Ok(None)
}
