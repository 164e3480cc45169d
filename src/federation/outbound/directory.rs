//! Asking other servers about their aliases and users (Server-Server API, "Querying for information").

use crate::{
    error::MatrixError,
    matrix::{
        identifiers::{RoomAlias, RoomId, ServerName, UserId},
        json::Object,
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

pub(super) fn server_of(name: &str) -> Result<ServerName, MatrixError> {
    ServerName::parse(name).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}
