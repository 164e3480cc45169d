//! Profiles (Client-Server API, "Profiles").

use http::StatusCode;
use serde_json::json;

use super::{
    auth,
    body::{Body, lacks},
    filters::own,
    profile_in_rooms, throttle,
};
use crate::{
    admission::Kind,
    error::MatrixError,
    federation::outbound::directory,
    matrix::{
        identifiers::{MAX_LENGTH, UserId},
        json::{Object, Value},
    },
    router::{Call, Handled, ok, raw_json_response},
    server::Server,
    store::accounts::Shown,
};

/// The longest display name or avatar URI, in bytes, so that a membership event stays small.
const MAX_FIELD_BYTES: usize = 2_048;
/// How many bytes a profile may have.
const MAX_PROFILE_BYTES: i64 = 65_535;

/// A field of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field<'n> {
    /// One that rooms are told.
    Shown(Shown),
    /// Any other.
    Other(&'n str),
}

impl<'n> Field<'n> {
    /// The field of this name, which is namespaced where it is not one of the two.
    ///
    /// # Errors
    /// 400 for what is too long or no name.
    fn parse(name: &'n str) -> Result<Self, MatrixError> {
        if name.len() > MAX_LENGTH {
            let message = "The name of a profile field may be at most 255 bytes long.";
            return Err(MatrixError::new(StatusCode::BAD_REQUEST, "M_KEY_TOO_LARGE", message));
        }
        let is_part = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
        };
        match name {
            "displayname" => Ok(Self::Shown(Shown::Name)),
            "avatar_url" => Ok(Self::Shown(Shown::Picture)),
            _ if name.starts_with(|first: char| first.is_ascii_lowercase())
                && name.contains('.')
                && name.split('.').all(is_part) =>
            {
                Ok(Self::Other(name))
            }
            _ => Err(MatrixError::invalid_param("This is not a valid name for a profile field.")),
        }
    }
}

/// `GET /profile/{userId}`
pub(super) async fn get(server: &Server, call: &Call) -> Handled {
    Ok(raw_json_response(StatusCode::OK, profile_of(server, call).await?.to_text()))
}

/// `GET /profile/{userId}/{keyName}`
pub(super) async fn get_field(server: &Server, call: &Call) -> Handled {
    let profile = profile_of(server, call).await?;
    let name = call.parameter(1);
    let value = profile.get(name).ok_or_else(|| MatrixError::not_found("The profile has no such field."))?;
    Ok(raw_json_response(StatusCode::OK, Object::from_iter([(name, value.clone())]).to_text()))
}

/// `PUT /profile/{userId}/{keyName}`, which also tells the rooms that the user is in of a new name or picture.
pub(super) async fn put_field(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    let name = call.parameter(1);
    let field = Field::parse(name)?;
    let body = Body::of(server, call).await?;
    if let Field::Shown(field) = field {
        if !body.has(name) {
            return Err(lacks(name));
        }
        let value = body.text(name)?.filter(|value| !value.is_empty()).map(str::to_owned);
        return put_shown(server, &session.user, field, value).await;
    }
    let body = body.into_object();
    let value = body.get(name).ok_or_else(|| lacks(name))?;
    if !server.store.put_profile_field(session.user.as_str(), name, &value.to_text(), MAX_PROFILE_BYTES).await? {
        return Err(profile_too_large());
    }
    ok(&json!({}))
}

/// `DELETE /profile/{userId}/{keyName}`
pub(super) async fn delete_field(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    match Field::parse(call.parameter(1))? {
        Field::Other(name) => server.store.remove_profile_field(session.user.as_str(), name).await?,
        Field::Shown(field) => return put_shown(server, &session.user, field, None).await,
    }
    ok(&json!({}))
}

/// Sets what rooms are told of a user.
async fn put_shown(server: &Server, user: &UserId, field: Shown, value: Option<String>) -> Handled {
    if value.as_ref().is_some_and(|value| value.len() > MAX_FIELD_BYTES) {
        return Err(MatrixError::too_large("The value is too long."));
    }
    if let Some(value) = &value {
        let mut whole = server.store.whole_profile(user.as_str()).await?.unwrap_or_default();
        whole.insert(field.name(), value.as_str());
        if i64::try_from(whole.to_text().len()).unwrap_or(i64::MAX) > MAX_PROFILE_BYTES {
            return Err(profile_too_large());
        }
    }
    server.store.put_shown(user.as_str(), field, value.as_deref()).await?;
    profile_in_rooms::tell_profile(server, user).await?;
    ok(&json!({}))
}

fn profile_too_large() -> MatrixError {
    MatrixError::new(StatusCode::BAD_REQUEST, "M_PROFILE_TOO_LARGE", "A profile must have less than 64 KiB.")
}

/// The profile of any user. Other servers are asked for whoever is logged in, and for others at a rate.
async fn profile_of(server: &Server, call: &Call) -> Result<Object, MatrixError> {
    let user = UserId::parse(call.parameter(0)).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    if user.server_name() == server.config.server_name.as_str() {
        let profile = server.store.whole_profile(user.as_str()).await?;
        return profile.ok_or_else(|| MatrixError::not_found("There is no such user."));
    }
    if auth::session(server, call).await.is_err() {
        throttle::by_address(server, call, Kind::RemoteProfile, server.config.rates.remote_profile)?;
    }
    let profile = directory::profile(server, &user).await?;
    // Names and pictures are texts, whatever their server says; that a field is not set it may say by `null`.
    let is_text = |name: &str| matches!(name, "displayname" | "avatar_url");
    let is_set = |name: &str, value: &Value| value.as_str().is_some() || !is_text(name) && *value != Value::Null;
    Ok(profile.into_iter().filter(|(name, value)| is_set(name, value)).collect())
}
