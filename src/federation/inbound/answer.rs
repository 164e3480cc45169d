//! What several endpoints answer with, and the questions they ask first.

use http::StatusCode;

use super::authentication::Signed;
use crate::{
    error::MatrixError,
    matrix::identifiers::RoomId,
    router::{self, Response},
    server::Server,
    store::{
        events::{StoredEvent, shown_list},
        rooms::Room,
    },
};

/// The room that the path's first parameter names, which the origin must be in.
///
/// # Errors
/// 403 for an origin without joined members in it: also where we do not know the room, for that is nobody else's business.
pub(super) async fn room_of(server: &Server, request: &Signed) -> Result<Room, MatrixError> {
    let room_id = room_id(request.parameter(0))?;
    if !server.store.server_joined(&room_id, request.origin.name()).await? {
        return Err(not_in_room());
    }
    server.rooms.room(&room_id).await?.ok_or_else(not_in_room)
}

/// The room with this ID.
///
/// # Errors
/// 404 for a room that we do not know.
pub(super) async fn room(server: &Server, id: &str) -> Result<Room, MatrixError> {
    server.rooms.room(&room_id(id)?).await?.ok_or_else(unknown_room)
}

fn room_id(text: &str) -> Result<RoomId, MatrixError> {
    RoomId::parse(text).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}

/// 404: a room that we do not know, or are no longer in.
pub(super) fn unknown_room() -> MatrixError {
    MatrixError::not_found("This server is not in that room.")
}

/// 403: only servers in the room may ask.
pub(super) fn not_in_room() -> MatrixError {
    MatrixError::forbidden("Your server is not in this room.")
}

/// The `Transaction` shape in which `event` and `backfill` answer.
pub(super) fn transaction(server: &Server, events: &[StoredEvent]) -> Response {
    let origin = json_text(&server.config.server_name);
    let now = server.platform.clock.now_ms().to_string();
    raw_object(&[("origin", &origin), ("origin_server_ts", &now), ("pdus", &shown_list(events))])
}

/// A 200 response with an object whose values are JSON text already: PDUs are stored as text and leave as text.
pub(super) fn raw_object(members: &[(&str, &str)]) -> Response {
    router::raw_json_response(StatusCode::OK, object_text(members))
}

/// The text of an object whose values are JSON text already.
pub(super) fn object_text(members: &[(&str, &str)]) -> String {
    let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// The JSON text of a value that always has one: a string or a list of strings.
pub(super) fn json_text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
