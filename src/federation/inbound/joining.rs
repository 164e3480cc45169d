//! The resident server's side of the join handshake (Server-Server API, "Joining Rooms").

use http::StatusCode;

use super::{
    answer::{json_text, object_text},
    authentication::Signed,
    membership,
};
use crate::{
    error::MatrixError,
    matrix::identifiers::{RoomId, ServerName},
    router::{self, Handled},
    server::Server,
};

/// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}?ver=…`
pub(super) async fn make_join(server: &Server, request: Signed) -> Handled {
    let user = membership::user_of_origin(&request)?;
    let room = membership::resident_room(server, &request).await?;
    let mut versions = request.call.queries("ver");
    if versions.is_empty() {
        versions.push("1".to_owned());
    }
    if !versions.iter().any(|version| version == room.room_version.id) {
        return Err(incompatible(room.room_version.id));
    }
    let content = server.rooms.content_of_join(&room, &user).await?;
    membership::template(server, &room, &user, "join", content).await
}

/// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`
pub(super) async fn send_join(server: &Server, request: Signed) -> Handled {
    let body = joined(server, request).await?;
    Ok(router::raw_json_response(StatusCode::OK, body))
}

/// `PUT /_matrix/federation/v1/send_join/{roomId}/{eventId}`: the same, wrapped in a list.
pub(super) async fn send_join_v1(server: &Server, request: Signed) -> Handled {
    let body = joined(server, request).await?;
    Ok(router::raw_json_response(StatusCode::OK, format!("[200,{body}]")))
}

async fn joined(server: &Server, request: Signed) -> Result<String, MatrixError> {
    let servers = servers_before(server, &request).await?;
    let (join, admitted) = membership::admit(server, request, "join").await?;
    // The auth chain of the join itself, too: its auth events are part of the state or of that state's chain, unless the
    // join was made on another branch.
    let ids = server.store.state_ids(admitted.state_before, std::slice::from_ref(join.event_id())).await?;
    let auth_chain = server.store.pdu_list(&ids.auth_chain).await?;
    let state = server.store.pdu_list(&ids.state).await?;
    // Members are never left out, whatever `omit_members` says: nothing of it is larger for us to send than to leave out.
    Ok(object_text(&[
        ("auth_chain", &auth_chain),
        ("event", join.json()),
        ("members_omitted", "false"),
        ("origin", &json_text(&server.config.server_name)),
        ("servers_in_room", &json_text(&servers)),
        ("state", &state),
    ]))
}

/// The servers with joined members before the join.
async fn servers_before(server: &Server, request: &Signed) -> Result<Vec<ServerName>, MatrixError> {
    match RoomId::parse(request.parameter(0)) {
        Ok(room_id) => Ok(server.store.servers(&room_id).await?),
        Err(error) => Err(MatrixError::invalid_param(format!("{error}."))),
    }
}

/// 400: a room of a version that the other side does not know.
pub(super) fn incompatible(room_version: &str) -> MatrixError {
    let message = format!("The room's version is {room_version}, which is not among those supported.");
    MatrixError::new(StatusCode::BAD_REQUEST, "M_INCOMPATIBLE_ROOM_VERSION", message).with("room_version", room_version)
}
