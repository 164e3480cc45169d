//! Tags of rooms (Client-Server API, "Room Tagging"). They are kept as the room's account data `m.tag`.

use serde_json::json;

use super::{
    account_data::{self, MAX_CONTENT_BYTES, room_id},
    auth,
    body::Body,
    filters::own,
};
use crate::{
    error::MatrixError,
    matrix::json::{Object, Value},
    platform::DatabaseError,
    router::{Call, Handled, ok},
    server::Server,
};

/// The type that holds the tags of a room.
pub(super) const TAGS: &str = "m.tag";
/// The longest name of a tag, in bytes.
const MAX_NAME: usize = 255;

/// `GET /user/{userId}/rooms/{roomId}/tags`
pub(super) async fn list(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    let content = server.store.account_data(session.user.as_str(), room_id(call)?, TAGS).await?;
    let mut content = read(content.as_deref())?;
    ok(&Object::from_iter([("tags", Value::Object(std::mem::take(content.object_at("tags"))))]))
}

/// `PUT /user/{userId}/rooms/{roomId}/tags/{tag}`
pub(super) async fn put(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    let (room_id, name) = (room_id(call)?, call.parameter(2));
    let tag = Body::of(server, call).await?.into_object();
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(MatrixError::invalid_param("The name of a tag has 1 to 255 bytes."));
    }
    let order = match tag.get("order") {
        Some(Value::Integer(number)) => (0..=1).contains(number),
        Some(Value::Number(text)) => text.parse::<f64>().is_ok_and(|number| (0.0..=1.0).contains(&number)),
        Some(_) => false,
        None => true,
    };
    if !order {
        return Err(MatrixError::invalid_param("\"order\" must be a number between 0 and 1."));
    }
    let change = |old: Option<&str>| {
        let mut content = read(old)?;
        content.object_at("tags").insert(name, tag.clone());
        let text = content.to_text();
        if text.len() > MAX_CONTENT_BYTES {
            return Err(MatrixError::too_large("The room has too many tags, or too large ones."));
        }
        Ok(Some(text))
    };
    account_data::change(server, (session.user.as_str(), room_id, TAGS), change).await?;
    ok(&json!({}))
}

/// `DELETE /user/{userId}/rooms/{roomId}/tags/{tag}`
pub(super) async fn delete(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    let (room_id, name) = (room_id(call)?, call.parameter(2));
    let change = |old: Option<&str>| {
        let mut content = read(old)?;
        Ok(content.object_at("tags").remove(name).map(|_| content.to_text()))
    };
    account_data::change(server, (session.user.as_str(), room_id, TAGS), change).await?;
    ok(&json!({}))
}

/// The content as it is kept, which clients may set by themselves.
fn read(content: Option<&str>) -> Result<Object, DatabaseError> {
    content.map_or_else(|| Ok(Object::new()), account_data::object)
}
