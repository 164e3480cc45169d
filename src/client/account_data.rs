//! Account data (Client-Server API, "Client Config").

use serde_json::json;

use super::{auth, body::Body, filters::own};
use crate::{
    error::MatrixError,
    matrix::{
        identifiers::RoomId,
        json::{self, Object, Value},
        push::Ruleset,
    },
    platform::DatabaseError,
    router::{Call, Handled, ok, raw_json_response},
    server::Server,
    store::receipts::FULLY_READ,
};

/// The longest content of one type, in bytes.
pub(super) const MAX_CONTENT_BYTES: usize = 65_536;
/// The longest type, in bytes.
const MAX_TYPE_BYTES: usize = 255;
/// Types that the server itself keeps, and clients set elsewhere.
const SERVERS_OWN: [&str; 2] = [FULLY_READ, PUSH_RULES];
/// The type that holds the user's push rules.
pub(super) const PUSH_RULES: &str = "m.push_rules";
/// How often a change is tried again when somebody else has made one at the same time.
const MAX_ATTEMPTS: usize = 20;

/// `GET /user/{userId}/account_data/{type}`
pub(super) async fn get(server: &Server, call: &Call) -> Handled {
    read(server, call, "", call.parameter(1)).await
}

/// `PUT /user/{userId}/account_data/{type}`
pub(super) async fn put(server: &Server, call: &Call) -> Handled {
    write(server, call, "", call.parameter(1)).await
}

/// `GET /user/{userId}/rooms/{roomId}/account_data/{type}`
pub(super) async fn get_in_room(server: &Server, call: &Call) -> Handled {
    read(server, call, room_id(call)?, call.parameter(2)).await
}

/// `PUT /user/{userId}/rooms/{roomId}/account_data/{type}`
pub(super) async fn put_in_room(server: &Server, call: &Call) -> Handled {
    write(server, call, room_id(call)?, call.parameter(2)).await
}

async fn read(server: &Server, call: &Call, room_id: &str, event_type: &str) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    let content = server.store.account_data(session.user.as_str(), room_id, event_type).await?;
    let content = told(session.user.as_str(), (room_id, event_type), content.as_deref())?;
    let content = content.ok_or_else(|| MatrixError::not_found("There is no account data of this type."))?;
    Ok(raw_json_response(http::StatusCode::OK, content.to_text()))
}

/// Account data as it is kept, which is an object. That it cannot be read must not look as if there were none: the next change would
/// then be made of nothing.
pub(super) fn object(content: &str) -> Result<Object, DatabaseError> {
    let object = json::parse(content.as_bytes()).ok().and_then(Value::into_object);
    object.ok_or_else(|| DatabaseError::Shape("account data that is no object".to_owned()))
}

/// The push rules of a user of whom `content` is kept.
pub(super) fn push_rules(user_id: &str, content: Option<&str>) -> Result<Ruleset, DatabaseError> {
    Ok(Ruleset::of(user_id, content.map(object).transpose()?.as_ref()))
}

/// What a client is told of one type of account data: everybody has push rules.
pub(super) fn told(
    user_id: &str,
    (room_id, event_type): (&str, &str),
    content: Option<&str>,
) -> Result<Option<Object>, DatabaseError> {
    match (room_id, event_type) {
        ("", PUSH_RULES) => Ok(Some(push_rules(user_id, content)?.to_object())),
        _ => content.map(object).transpose(),
    }
}

/// Changes one type of account data by what it is: `change` makes the new content of the old one, or nothing where it stays. Asks
/// for it again where somebody else changes it at the same time.
pub(super) async fn change(
    server: &Server,
    (user_id, room_id, event_type): (&str, &str, &str),
    change: impl Fn(Option<&str>) -> Result<Option<String>, MatrixError>,
) -> Result<(), MatrixError> {
    for _ in 0..MAX_ATTEMPTS {
        let old = server.store.account_data(user_id, room_id, event_type).await?;
        let Some(new) = change(old.as_deref())? else { return Ok(()) };
        // What stands deeper in the new content than in the request may stand too deep to be read again.
        if json::parse(new.as_bytes()).is_err() {
            return Err(MatrixError::bad_json("It is nested too deeply to be kept."));
        }
        if server.store.replace_account_data((user_id, room_id, event_type), old.as_deref(), &new).await? {
            return Ok(());
        }
    }
    Err(MatrixError::too_busy())
}

async fn write(server: &Server, call: &Call, room_id: &str, event_type: &str) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    if SERVERS_OWN.contains(&event_type) {
        let message = "This type of account data is set through its own endpoint.";
        return Err(MatrixError::new(http::StatusCode::METHOD_NOT_ALLOWED, "M_BAD_JSON", message));
    }
    let content = Body::of(server, call).await?.into_object().to_text();
    if content.len() > MAX_CONTENT_BYTES || event_type.len() > MAX_TYPE_BYTES {
        return Err(MatrixError::too_large("The account data is too long."));
    }
    if !server.store.put_account_data(session.user.as_str(), room_id, event_type, &content).await? {
        return Err(MatrixError::too_large("There is too much account data of this room already."));
    }
    ok(&json!({}))
}

/// The room in the path of account data.
pub(super) fn room_id(call: &Call) -> Result<&str, MatrixError> {
    let text = call.parameter(1);
    RoomId::parse(text).map(|_| text).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}
