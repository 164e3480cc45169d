//! Profiles (Client-Server API, "Profiles").

use serde_json::{Map, json};

use super::{
    auth,
    body::{Body, member_content},
    filters::own,
    membership,
};
use crate::{
    error::MatrixError,
    federation::outbound::directory,
    matrix::identifiers::UserId,
    router::{Call, Handled, ok},
    server::Server,
};

/// The longest display name or avatar URI, in bytes, so that a membership event stays small.
const MAX_FIELD_BYTES: usize = 2_048;

/// `GET /profile/{userId}`
pub(super) async fn get(server: &Server, call: &Call) -> Handled {
    ok(&profile_of(server, call).await?)
}

/// `GET /profile/{userId}/{keyName}`
pub(super) async fn get_field(server: &Server, call: &Call) -> Handled {
    let profile = profile_of(server, call).await?;
    let name = call.parameter(1);
    let value = profile.get(name).ok_or_else(|| MatrixError::not_found("The profile has no such field."))?;
    ok(&json!({ name: value }))
}

/// `PUT /profile/{userId}/{keyName}`, which also tells the rooms that the user is in.
pub(super) async fn put_field(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    let name = call.parameter(1);
    let body = Body::of(server, call).await?;
    let value = body.text(name)?.filter(|value| !value.is_empty()).map(str::to_owned);
    if value.as_ref().is_some_and(|value| value.len() > MAX_FIELD_BYTES) {
        return Err(MatrixError::too_large("The value is too long."));
    }
    let mut profile = server.store.profile(session.user.as_str()).await?.unwrap_or_default();
    match name {
        "displayname" => profile.displayname = value,
        "avatar_url" => profile.avatar_url = value,
        _ => return Err(MatrixError::forbidden("This server keeps no such profile field.")),
    }
    server.store.put_profile(session.user.as_str(), &profile).await?;
    membership::tell_profile(server, &session.user, &profile).await?;
    ok(&json!({}))
}

async fn profile_of(server: &Server, call: &Call) -> Result<Map<String, serde_json::Value>, MatrixError> {
    let user = UserId::parse(call.parameter(0)).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    let content = if user.server_name() == server.config.server_name.as_str() {
        let profile = server.store.profile(user.as_str()).await?;
        member_content(&profile.ok_or_else(|| MatrixError::not_found("There is no such user."))?)
    } else {
        directory::profile(server, &user).await?
    };
    let known = content.iter().filter_map(|(name, value)| Some((name.to_owned(), value.as_str()?.into())));
    Ok(known.collect())
}
