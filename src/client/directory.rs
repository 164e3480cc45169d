//! Room aliases and the published room directory (Client-Server API, "Room aliases", "Published room directory").

use serde_json::json;

use super::{auth, body::Body, visibility::Reader};
use crate::{
    error::MatrixError,
    federation::outbound::directory,
    log::LogRecord,
    matrix::{
        identifiers::{RoomAlias, RoomId, ServerName},
        json::Value,
        power_levels::PowerLevels,
        state_content::Membership,
    },
    room::Draft,
    router::{Call, Handled, ok},
    server::Server,
};

/// `GET /directory/room/{roomAlias}`
pub(super) async fn get(server: &Server, call: &Call) -> Handled {
    let alias = alias(call.parameter(0))?;
    // Only our own users may make this server ask others.
    if !is_own(server, &alias) {
        auth::session(server, call).await?;
    }
    let (room_id, servers) = resolve(server, &alias).await?;
    ok(&json!({ "room_id": room_id, "servers": servers }))
}

/// `PUT /directory/room/{roomAlias}`
pub(super) async fn put(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let alias = alias(call.parameter(0))?;
    if !is_own(server, &alias) {
        return Err(MatrixError::invalid_param("The alias does not belong to this server."));
    }
    let body = Body::of(server, call).await?;
    let reader = Reader::enter_joined(server, &session, body.required_text("room_id")?).await?;
    let now_ms = server.platform.clock.now_ms();
    let made = server.store.put_alias(alias.as_str(), reader.room_id.as_str(), session.user.as_str(), now_ms).await?;
    if made {
        ok(&json!({}))
    } else {
        Err(MatrixError::new(http::StatusCode::CONFLICT, "M_UNKNOWN", "The alias is taken."))
    }
}

/// `DELETE /directory/room/{roomAlias}`: for the user who made it, and those who may change the room's canonical alias.
pub(super) async fn delete(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let alias = alias(call.parameter(0))?;
    let row = if is_own(server, &alias) { server.store.alias(alias.as_str()).await? } else { None };
    let row = row.ok_or_else(|| MatrixError::not_found("There is no such alias on this server."))?;
    if row.creator != session.user.as_str() {
        let room_id = RoomId::parse(&row.room_id).map_err(|_| MatrixError::internal())?;
        may_set_alias(server, &session, &room_id).await?;
    }
    let deleting = server.clone();
    // Who comes again after hanging up is told that there is no such alias, and the room's event would go on naming it.
    let work = async move { remove(&deleting, &session, &alias, &row.room_id).await };
    server.platform.to_the_end(work).await?;
    ok(&json!({}))
}

/// Removes an alias, and takes it out of the room's event.
async fn remove(server: &Server, session: &auth::Session, alias: &RoomAlias, room_id: &str) -> Result<(), MatrixError> {
    server.store.remove_alias(alias.as_str()).await?;
    if let Err(error) = leave_canonical_alias(server, session, alias, room_id).await {
        // The alias is gone in any case: the user who made it need not have power over the room's event.
        let record = LogRecord::warning("a deleted alias stays in the room's canonical alias event").because(&error);
        server.platform.log.write(match RoomId::parse(room_id) {
            Ok(room_id) => record.room(&room_id),
            Err(_) => record,
        });
    }
    Ok(())
}

/// Takes a deleted alias out of the room's `m.room.canonical_alias` event, as far as the user may change that.
async fn leave_canonical_alias(
    server: &Server,
    session: &auth::Session,
    alias: &RoomAlias,
    room_id: &str,
) -> Result<(), MatrixError> {
    const TYPE: &str = "m.room.canonical_alias";
    let room_id = RoomId::parse(room_id).map_err(|_| MatrixError::internal())?;
    let current = server.rooms.current(&room_id, &[(TYPE, "")]).await?;
    let Some(mut content) = current.and_then(|(_, state)| Some(state.first()?.content().clone())) else {
        return Ok(());
    };
    let is_alias = |value: &Value| value.as_str() == Some(alias.as_str());
    let mut names_it = content.get("alias").is_some_and(is_alias);
    if names_it {
        content.remove("alias");
    }
    if let Some(others) = content.get("alt_aliases").and_then(Value::as_array)
        && others.iter().any(is_alias)
    {
        names_it = true;
        let others = others.iter().filter(|other| !is_alias(other)).cloned().collect();
        content.insert("alt_aliases", Value::Array(others));
    }
    if names_it {
        server.rooms.send(&room_id, &session.user, Draft::state(TYPE, "", content)).await?;
        server.flush(&room_id);
    }
    Ok(())
}

/// `GET /rooms/{roomId}/aliases`
pub(super) async fn of_room(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let reader = Reader::enter(server, &session, call.parameter(0)).await?;
    ok(&json!({ "aliases": server.store.aliases_of(reader.room_id.as_str()).await? }))
}

/// `GET /directory/list/room/{roomId}`
pub(super) async fn get_visibility(server: &Server, call: &Call) -> Handled {
    let room_id = known_room(server, call).await?;
    let published = server.store.is_published(room_id.as_str()).await?;
    ok(&json!({ "visibility": if published { "public" } else { "private" } }))
}

/// `PUT /directory/list/room/{roomId}`
pub(super) async fn put_visibility(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::optional(server, call).await?;
    let published = match body.text("visibility")? {
        None | Some("public") => true,
        Some("private") => false,
        Some(_) => return Err(MatrixError::invalid_param("\"visibility\" must be public or private.")),
    };
    let room_id = known_room(server, call).await?;
    let reader = Reader::enter_joined(server, &session, room_id.as_str()).await?;
    may_set_alias(server, &session, &reader.room_id).await?;
    server.store.publish_room(reader.room_id.as_str(), published).await?;
    ok(&json!({}))
}

/// The room in the path, which this server knows.
///
/// # Errors
/// 404 `M_NOT_FOUND` for others.
async fn known_room(server: &Server, call: &Call) -> Result<RoomId, MatrixError> {
    let unknown = || MatrixError::not_found("There is no such room.");
    let room_id = RoomId::parse(call.parameter(0)).map_err(|_| unknown())?;
    server.rooms.room(&room_id).await?.map(|room| room.room_id).ok_or_else(unknown)
}

/// The room that an alias stands for, and servers through which it may be joined.
///
/// # Errors
/// 404 `M_NOT_FOUND` where there is no such alias; what another server says.
pub(super) async fn resolve(server: &Server, alias: &RoomAlias) -> Result<(RoomId, Vec<ServerName>), MatrixError> {
    if !is_own(server, alias) {
        return directory::resolve_alias(server, alias).await;
    }
    let row = server.store.alias(alias.as_str()).await?;
    let row = row.ok_or_else(|| MatrixError::not_found("There is no such alias."))?;
    let room_id = RoomId::parse(&row.room_id).map_err(|_| MatrixError::internal())?;
    let servers = server.rooms.servers(&room_id).await?;
    Ok((room_id, servers))
}

fn is_own(server: &Server, alias: &RoomAlias) -> bool {
    alias.server_name() == server.config.server_name.as_str()
}

fn alias(text: &str) -> Result<RoomAlias, MatrixError> {
    RoomAlias::parse(text).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}

async fn may_set_alias(server: &Server, session: &auth::Session, room_id: &RoomId) -> Result<(), MatrixError> {
    let keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", session.user.as_str())];
    let (_, state) =
        server.rooms.current(room_id, &keys).await?.ok_or_else(|| MatrixError::not_found("Unknown room."))?;
    let joined =
        state.iter().any(|event| event.event_type() == "m.room.member" && event.membership() == Some(Membership::Join));
    let find = |event_type| state.iter().find(|event| event.event_type() == event_type);
    let allowed = find("m.room.create").is_some_and(|create| {
        let levels = PowerLevels::from_state(create, find("m.room.power_levels"));
        let levels = (levels.user(session.user.as_str()), levels.event("m.room.canonical_alias", true));
        matches!(levels, (Ok(has), Ok(needs)) if has >= needs)
    });
    if joined && allowed { Ok(()) } else { Err(MatrixError::forbidden("You may not change the aliases of this room.")) }
}
