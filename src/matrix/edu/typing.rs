//! Server-Server API, "Typing Notifications".

use super::{EduError, EduType, Reader, text};
use crate::matrix::{
    identifiers::{RoomId, UserId},
    json::{Object, Value},
};

/// Whether a user is typing in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typing {
    /// The room.
    pub room_id: RoomId,
    /// The user.
    pub user_id: UserId,
    /// Whether they are.
    pub is_typing: bool,
}

impl Typing {
    pub(super) fn read(reader: &Reader<'_>, content: &Object) -> Result<Self, EduError> {
        let room_id = text(content, "room_id").and_then(|id| RoomId::parse(id).ok());
        Ok(Self {
            room_id: room_id.ok_or(EduError::Malformed("room_id"))?,
            user_id: reader.user(text(content, "user_id"), "user_id")?,
            is_typing: content.get("typing").and_then(Value::as_bool).ok_or(EduError::Malformed("typing"))?,
        })
    }

    /// The EDU that says so.
    pub fn edu(&self) -> Value {
        let mut content = Object::new();
        content.insert("room_id", &self.room_id);
        content.insert("user_id", &self.user_id);
        content.insert("typing", self.is_typing);
        EduType::Typing.with(content)
    }
}
