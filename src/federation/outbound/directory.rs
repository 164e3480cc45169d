//! Asking other servers about their aliases, users and published rooms (Server-Server API, "Querying for information",
//! "Published Room Directory").

use crate::{
    error::MatrixError,
    matrix::{
        identifiers::{RoomAlias, RoomId, ServerName, UserId},
        json::{Object, Value},
    },
    server::Server,
};

/// The room that another server's `alias` stands for, and servers through which it may be joined: the alias's own first, as it
/// is most likely to answer.
///
/// # Errors
/// 404 where that server knows no such alias, 502 where it cannot be asked.
pub async fn resolve_alias(server: &Server, alias: &RoomAlias) -> Result<(RoomId, Vec<ServerName>), MatrixError> {
    let directory = server_of(alias.server_name())?;
    let resolved = server.federation.query_directory(&directory, alias).await?;
    let mut servers = resolved.servers;
    if let Some(at) = servers.iter().position(|name| *name == directory) {
        let own = servers.remove(at);
        servers.insert(0, own);
    }
    Ok((resolved.room_id, servers))
}

/// The profile of another server's user.
///
/// # Errors
/// 404 where that server knows no such user, 403 where it does not tell, 502 where it cannot be asked.
pub async fn profile(server: &Server, user: &UserId) -> Result<Object, MatrixError> {
    Ok(server.federation.query_profile(&server_of(user.server_name())?, user, None).await?)
}

/// A page of another server's published room directory, of which what is malformed is left out.
///
/// # Errors
/// What that server says, 502 where it cannot be asked.
pub async fn public_rooms(server: &Server, of: &ServerName, query: &Object) -> Result<Object, MatrixError> {
    let mut page = server.federation.public_rooms(of, query).await?;
    let chunk = page.remove("chunk").and_then(Value::into_array);
    let chunk = chunk.ok_or_else(|| MatrixError::bad_gateway("Another server's room directory is malformed."))?;
    let rooms = chunk.into_iter().filter(|room| {
        room.get("room_id").and_then(Value::as_str).is_some_and(|id| RoomId::parse(id).is_ok())
            && room.get("num_joined_members").is_some_and(|joined| joined.as_i64().is_some())
            && ["world_readable", "guest_can_join"].iter().all(|name| room.get(name).and_then(Value::as_bool).is_some())
    });
    let mut answer = Object::from_iter([("chunk", Value::Array(rooms.collect()))]);
    for name in ["next_batch", "prev_batch"] {
        if let Some(token) = page.get(name).and_then(Value::as_str) {
            answer.insert(name, token);
        }
    }
    if let Some(count) = page.get("total_room_count_estimate").and_then(Value::as_i64) {
        answer.insert("total_room_count_estimate", count);
    }
    Ok(answer)
}

pub(super) fn server_of(name: &str) -> Result<ServerName, MatrixError> {
    ServerName::parse(name).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}
