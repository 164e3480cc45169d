//! Questions about rooms and users that need no room in common (Server-Server API, "Querying for information", "Published Room
//! Directory", "Spaces").

use bytes::Bytes;

use super::{
    endpoints::{LIST, SMALL, V1, missing, object},
    requests::{FederationClient, RequestError, path, with_query},
};
use crate::matrix::{
    identifiers::{RoomAlias, RoomId, ServerName, UserId},
    json::{Object, Value},
};

/// The answer of `query/directory`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedAlias {
    /// The room.
    pub room_id: RoomId,
    /// Servers through which it may be joined; what is not a server name is left out.
    pub servers: Vec<ServerName>,
}

/// Every function's errors are [`RequestError`], as those of [`super::endpoints`].
#[allow(clippy::missing_errors_doc)]
impl FederationClient {
    /// `GET /_matrix/federation/v1/query/directory?room_alias=`.
    pub async fn query_directory(&self, server: &ServerName, alias: &RoomAlias) -> Result<ResolvedAlias, RequestError> {
        let target = with_query(path(V1, &["query", "directory"]), [("room_alias", alias.as_str())]);
        let answer = object(&self.get(server, target, LIST).await?)?;
        let room_id = answer.get("room_id").and_then(Value::as_str).and_then(|id| RoomId::parse(id).ok());
        let servers = answer.get("servers").and_then(Value::as_array).unwrap_or_default();
        Ok(ResolvedAlias {
            room_id: room_id.ok_or_else(|| missing("room_id"))?,
            servers: servers.iter().filter_map(|name| ServerName::parse(name.as_str()?).ok()).collect(),
        })
    }

    /// `POST /_matrix/federation/v1/publicRooms`, or `GET` where `query` has no `filter`: the answer as it is, an object.
    pub async fn public_rooms(&self, server: &ServerName, query: &Object) -> Result<Object, RequestError> {
        let target = path(V1, &["publicRooms"]);
        if query.contains_key("filter") {
            return object(&self.post(server, target, query, LIST).await?);
        }
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_text(), str::to_owned);
        let pairs: Vec<(&str, String)> = query.iter().map(|(name, value)| (name, text(value))).collect();
        let target = with_query(target, pairs.iter().map(|(name, value)| (*name, value.as_str())));
        object(&self.get(server, target, LIST).await?)
    }

    /// `GET /_matrix/federation/v1/hierarchy/{roomId}`: the answer as it is.
    pub async fn hierarchy(&self, server: &ServerName, room_id: &RoomId) -> Result<Bytes, RequestError> {
        self.get(server, path(V1, &["hierarchy", room_id.as_str()]), LIST).await
    }

    /// `GET /_matrix/federation/v1/query/profile?user_id=`: the whole profile, or one `field` of it.
    pub async fn query_profile(
        &self,
        server: &ServerName,
        user_id: &UserId,
        field: Option<&str>,
    ) -> Result<Object, RequestError> {
        let pairs = [("user_id", user_id.as_str())].into_iter().chain(field.map(|field| ("field", field)));
        object(&self.get(server, with_query(path(V1, &["query", "profile"]), pairs), SMALL).await?)
    }
}
