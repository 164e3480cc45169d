//! Single events, and the state and auth chains at them (Server-Server API, "Retrieving events" and "Retrieving event
//! authorisation information").
//!
//! Only servers with joined members in the room are answered: see [`crate::room::RemoteReader`].

use super::{
    answer::{self, ObjectText, json_text},
    authentication::Signed,
};
use crate::{
    error::MatrixError,
    matrix::identifiers::{EventId, RoomId},
    router::Handled,
    server::Server,
    store::remote_reads::Asked,
};

/// `GET /_matrix/federation/v1/event/{eventId}`
pub(super) async fn event(server: &Server, request: Signed) -> Handled {
    let event_id = answer::event_id(request.parameter(0))?;
    let text = server.rooms.event_text(request.origin.name(), &event_id).await?;
    Ok(answer::transaction(server, [text.as_str()]))
}

/// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`: the event's whole auth chain.
pub(super) async fn event_auth(server: &Server, request: Signed) -> Handled {
    let at = (answer::room_id(request.parameter(0))?, answer::event_id(request.parameter(1))?);
    let (reader, auth_chain) = server.rooms.auth_chain_of(asked(&request, &at)).await?;
    let mut answer = ObjectText::begin();
    reader.write(auth_chain, answer.member("auth_chain")).await?;
    Ok(answer.response())
}

/// `GET /_matrix/federation/v1/state/{roomId}?event_id=…`: the state before the event.
pub(super) async fn state(server: &Server, request: Signed) -> Handled {
    let at = at(&request)?;
    let (reader, texts) = server.rooms.state_at(asked(&request, &at)).await?;
    let mut answer = ObjectText::begin();
    reader.write(texts.auth_chain, answer.member("auth_chain")).await?;
    reader.write(texts.state, answer.member("pdus")).await?;
    Ok(answer.response())
}

/// `GET /_matrix/federation/v1/state_ids/{roomId}?event_id=…`: the same as IDs.
pub(super) async fn state_ids(server: &Server, request: Signed) -> Handled {
    let at = at(&request)?;
    let ids = server.rooms.state_ids_at(asked(&request, &at)).await?;
    let mut answer = ObjectText::begin();
    answer.member("auth_chain_ids").push_str(&json_text(&ids.auth_chain));
    answer.member("pdu_ids").push_str(&json_text(&ids.state));
    Ok(answer.response())
}

/// The room in the path, and the event in the query.
fn at(request: &Signed) -> Result<(RoomId, EventId), MatrixError> {
    let room_id = answer::room_id(request.parameter(0))?;
    let event_id = request.call.query("event_id");
    let event_id = event_id.ok_or_else(|| MatrixError::missing_param("`event_id` is missing."))?;
    Ok((room_id, answer::event_id(&event_id)?))
}

/// The origin asks for what is at this event of this room.
fn asked<'a>(request: &'a Signed, (room_id, event_id): &'a (RoomId, EventId)) -> Asked<'a> {
    Asked { server: request.origin.name(), room_id, event_id }
}
