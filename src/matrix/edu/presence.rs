//! Server-Server API, "Presence".

use super::{EduError, EduType, Reader, optional, text};
use crate::matrix::{
    identifiers::UserId,
    json::{MAX_INTEGER, Object, Value},
};

/// The longest status message that is kept, in characters.
pub const MAX_STATUS: usize = 1_024;

/// `presence` (Client-Server API, "Presence").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// There.
    Online,
    /// Away.
    Unavailable,
    /// Not there, or not to be seen.
    Offline,
}

impl Presence {
    /// The state of this name; `None` for another text.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Online, Self::Unavailable, Self::Offline].into_iter().find(|presence| presence.as_str() == text)
    }

    /// Its name in the protocol.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Unavailable => "unavailable",
            Self::Offline => "offline",
        }
    }
}

/// What a user's presence has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceUpdate {
    /// The user.
    pub user_id: UserId,
    /// Whether they are there.
    pub presence: Presence,
    /// What they say to it.
    pub status_msg: Option<String>,
    /// For how long they had done nothing, in milliseconds, when it was said.
    pub last_active_ago: i64,
    /// Whether they are at it just now.
    pub currently_active: bool,
}

/// The updates in an `m.presence`.
pub(super) fn read(reader: &mut Reader<'_>, mut content: Object) -> Result<Vec<PresenceUpdate>, EduError> {
    let push = content.remove("push").and_then(Value::into_array).ok_or(EduError::Malformed("push"))?;
    let mut updates = Vec::new();
    for update in &push {
        match one(reader, update) {
            Ok(update) => updates.push(update),
            Err(error) => reader.skip(error),
        }
    }
    Ok(updates)
}

fn one(reader: &Reader<'_>, update: &Value) -> Result<PresenceUpdate, EduError> {
    let update = update.as_object().ok_or(EduError::Malformed("push"))?;
    let presence = text(update, "presence").and_then(Presence::parse).ok_or(EduError::Malformed("presence"))?;
    let status = optional(update, "status_msg", |status| status.as_str().map(str::to_owned))?;
    let ago = optional(update, "last_active_ago", Value::as_i64)?.unwrap_or(0);
    Ok(PresenceUpdate {
        user_id: reader.user(text(update, "user_id"), "user_id")?,
        presence,
        status_msg: status.map(|status| status.chars().take(MAX_STATUS).collect()),
        last_active_ago: ago.clamp(0, MAX_INTEGER),
        currently_active: optional(update, "currently_active", Value::as_bool)?.unwrap_or(false),
    })
}

impl PresenceUpdate {
    /// The EDU that tells of all of these.
    pub fn edu<'a>(updates: impl IntoIterator<Item = &'a Self>) -> Value {
        let push = updates.into_iter().map(|update| {
            let mut object = update.content();
            object.insert("user_id", &update.user_id);
            Value::Object(object)
        });
        let mut content = Object::new();
        content.insert("push", Value::Array(push.collect()));
        EduType::Presence.with(content)
    }

    /// All but the user, as clients are told it too.
    pub fn content(&self) -> Object {
        let mut content = Object::new();
        content.insert("presence", self.presence.as_str());
        content.insert("last_active_ago", self.last_active_ago);
        content.insert("currently_active", self.currently_active);
        if let Some(status) = &self.status_msg {
            content.insert("status_msg", status.as_str());
        }
        content
    }
}
