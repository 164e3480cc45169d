//! The resident server's side of the join handshake (Server-Server API, "Joining Rooms").

use http::StatusCode;

use super::{
    answer::{self, ObjectText, json_text},
    authentication::Signed,
    membership,
};
use crate::{error::MatrixError, matrix::state_content::Membership, router::Handled, server::Server};

/// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}?ver=…`
pub(super) async fn make_join(server: &Server, request: Signed) -> Handled {
    let user = membership::user_of_origin(&request)?;
    let entrance = server.rooms.entrance(&answer::room_id(request.parameter(0))?, &user).await?;
    let entrance = entrance.filter(|found| found.room.local_joined > 0).ok_or_else(answer::unknown_room)?;
    entrance.admit(request.origin.name())?;
    let room = &entrance.room;
    membership::check_members_known(room)?;
    let mut versions = request.call.queries("ver");
    if versions.is_empty() {
        versions.push("1".to_owned());
    }
    if !versions.iter().any(|version| version == room.room_version.id) {
        return Err(incompatible(room.room_version.id));
    }
    let content = server.rooms.content_of_join(&entrance).await?;
    membership::template(server, room, &user, Membership::Join, content).await
}

/// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`
pub(super) async fn send_join(server: &Server, request: Signed) -> Handled {
    let omits = request.call.query("omit_members").as_deref() == Some("true");
    joined(server, request, ObjectText::begin(), omits).await
}

/// `PUT /_matrix/federation/v1/send_join/{roomId}/{eventId}`: the same, wrapped in a list.
pub(super) async fn send_join_v1(server: &Server, request: Signed) -> Handled {
    joined(server, request, ObjectText::begin_v1(), false).await
}

/// `omits_members`: whether the other server asks for a state without its members.
async fn joined(server: &Server, request: Signed, mut answer: ObjectText, omits_members: bool) -> Handled {
    let (origin, join) = membership::checked(server, request, Membership::Join).await?;
    let (admitted, told) = server.rooms.admit_join(&origin, &join, omits_members).await?;
    server.flush(join.room_id());
    let servers = json_text(&told.servers);
    let reader = server.rooms.remote_reader(&origin, join.room_id()).await?;
    let (texts, members_omitted) = reader.state_of_join(&admitted, told).await?;
    answer.member("event").push_str(admitted.event.json());
    answer.member("members_omitted").push_str(if members_omitted { "true" } else { "false" });
    answer.member("origin").push_str(&json_text(&server.config.server_name));
    answer.member("servers_in_room").push_str(&servers);
    // What is long comes last: there is room made for just that.
    reader.write(texts.auth_chain, answer.member("auth_chain")).await?;
    reader.write(texts.state, answer.member("state")).await?;
    Ok(answer.response())
}

/// 400: a room of a version that the other side does not know.
pub(super) fn incompatible(room_version: &str) -> MatrixError {
    let message = format!("The room's version is {room_version}, which is not among those supported.");
    MatrixError::new(StatusCode::BAD_REQUEST, "M_INCOMPATIBLE_ROOM_VERSION", message).with("room_version", room_version)
}
