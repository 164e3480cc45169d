//! Room aliases and profiles (Server-Server API, "Querying for information").

use serde_json::json;

use super::authentication::Signed;
use crate::{
    error::MatrixError,
    matrix::{
        identifiers::{RoomAlias, RoomId, UserId},
        json::Object,
    },
    platform::DatabaseError,
    router::{self, Handled},
    server::Server,
};

/// `GET /_matrix/federation/v1/query/directory?room_alias=…`
pub(super) async fn directory(server: &Server, request: Signed) -> Handled {
    let alias = RoomAlias::parse(&required(&request, "room_alias")?).map_err(|error| invalid("room_alias", error))?;
    if alias.server_name() != server.config.server_name.as_str() {
        return Err(MatrixError::invalid_param("The alias is not one of this server's."));
    }
    let found = server.store.alias(alias.as_str()).await?;
    let found = found.ok_or_else(|| MatrixError::not_found("Room alias not found."))?;
    let room_id = RoomId::parse(&found.room_id);
    let room_id = room_id.map_err(|_| DatabaseError::Shape("an alias of what is no room ID".to_owned()))?;
    let servers = server.store.servers(&room_id).await?;
    router::ok(&json!({ "room_id": room_id, "servers": servers }))
}

/// `GET /_matrix/federation/v1/query/profile?user_id=…&field=…`
pub(super) async fn profile(server: &Server, request: Signed) -> Handled {
    let user = UserId::parse(&required(&request, "user_id")?).map_err(|error| invalid("user_id", error))?;
    if user.server_name() != server.config.server_name.as_str() {
        return Err(MatrixError::invalid_param("The user is not one of this server's."));
    }
    let found = server.store.whole_profile(user.as_str()).await?;
    let found = found.ok_or_else(|| MatrixError::not_found("User does not exist."))?;
    let field = request.call.query("field");
    let is_asked = |name: &str| field.as_deref().is_none_or(|field| field == name);
    let answer: Object = found.into_iter().filter(|(name, _)| is_asked(name)).collect();
    Ok(router::raw_json_response(http::StatusCode::OK, answer.to_text()))
}

fn required(request: &Signed, name: &str) -> Result<String, MatrixError> {
    request.call.query(name).ok_or_else(|| MatrixError::missing_param(format!("`{name}` is missing.")))
}

fn invalid(name: &str, error: impl std::fmt::Display) -> MatrixError {
    MatrixError::invalid_param(format!("`{name}`: {error}."))
}
