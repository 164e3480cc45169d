//! Single events, and the state and auth chains at them (Server-Server API, "Retrieving events" and "Retrieving event
//! authorisation information").
//!
//! Only servers with joined members in the room are answered.

use super::{
    answer::{self, json_text},
    authentication::Signed,
};
use crate::{
    error::MatrixError,
    matrix::{identifiers::EventId, state_trie::NodeId},
    router::Handled,
    server::Server,
    store::{
        events::{StateIds, StoredEvent},
        rooms::Room,
    },
};

/// `GET /_matrix/federation/v1/event/{eventId}`
pub(super) async fn event(server: &Server, request: Signed) -> Handled {
    let found = known_event(server, request.parameter(0)).await?;
    if !server.store.server_joined(found.event.room_id(), request.origin.name()).await? {
        return Err(answer::not_in_room());
    }
    Ok(answer::transaction(server, std::slice::from_ref(&found)))
}

/// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`: the event's whole auth chain.
pub(super) async fn event_auth(server: &Server, request: Signed) -> Handled {
    let room = answer::room_of(server, &request).await?;
    let found = event_in(server, &room, request.parameter(1)).await?;
    let ids = server.store.state_ids(NodeId::EMPTY, &[found.event.event_id().clone()]).await?;
    let auth_chain = server.store.pdu_list(&ids.auth_chain).await?;
    Ok(answer::raw_object(&[("auth_chain", &auth_chain)]))
}

/// `GET /_matrix/federation/v1/state/{roomId}?event_id=…`: the state before the event.
pub(super) async fn state(server: &Server, request: Signed) -> Handled {
    let ids = state_at(server, &request).await?;
    let auth_chain = server.store.pdu_list(&ids.auth_chain).await?;
    let state = server.store.pdu_list(&ids.state).await?;
    Ok(answer::raw_object(&[("auth_chain", &auth_chain), ("pdus", &state)]))
}

/// `GET /_matrix/federation/v1/state_ids/{roomId}?event_id=…`: the same as IDs.
pub(super) async fn state_ids(server: &Server, request: Signed) -> Handled {
    let ids = state_at(server, &request).await?;
    Ok(answer::raw_object(&[("auth_chain_ids", &json_text(&ids.auth_chain)), ("pdu_ids", &json_text(&ids.state))]))
}

async fn state_at(server: &Server, request: &Signed) -> Result<StateIds, MatrixError> {
    let room = answer::room_of(server, request).await?;
    let event_id =
        request.call.query("event_id").ok_or_else(|| MatrixError::missing_param("`event_id` is missing."))?;
    let found = event_in(server, &room, &event_id).await?;
    let root = found
        .state_before
        .ok_or_else(|| MatrixError::not_found(format!("The state at {event_id} is not known to this server.")))?;
    Ok(server.store.state_ids(root, &[]).await?)
}

async fn event_in(server: &Server, room: &Room, event_id: &str) -> Result<StoredEvent, MatrixError> {
    let found = known_event(server, event_id).await?;
    if *found.event.room_id() == room.room_id { Ok(found) } else { Err(unknown_event(event_id)) }
}

async fn known_event(server: &Server, event_id: &str) -> Result<StoredEvent, MatrixError> {
    let id = EventId::parse(event_id).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    server.store.events(&[id]).await?.pop().ok_or_else(|| unknown_event(event_id))
}

fn unknown_event(event_id: &str) -> MatrixError {
    MatrixError::not_found(format!("This server does not know the event {event_id}."))
}
