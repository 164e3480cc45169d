//! Server-Server API, "Device Management", "End-to-End Encryption", "Send-to-device messaging".

use super::{EduError, EduType, Reader, optional, text};
use crate::matrix::{
    device_keys::is_device_id,
    identifiers::UserId,
    json::{Object, Value},
};

/// The longest ID of a message to devices, in characters; and the longest name of a device, in bytes.
pub const MAX_MESSAGE_ID: usize = 32;
const MAX_DEVICE_ID: usize = 255;

/// That a device of a user has changed.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceListUpdate {
    /// The user.
    pub user_id: UserId,
    /// The device.
    pub device_id: String,
    /// The number of this change in the sender's order.
    pub stream_id: i64,
    /// The numbers of the changes of this user's devices that came before; who lacks one of them asks for the whole
    /// list, and so does everybody where there are none.
    pub prev_id: Vec<i64>,
    /// What the user calls the device.
    pub device_display_name: Option<String>,
    /// Whether the device is gone.
    pub deleted: bool,
    /// Its identity keys.
    pub keys: Option<Object>,
}

impl DeviceListUpdate {
    pub(super) fn read(reader: &Reader<'_>, mut content: Object) -> Result<Self, EduError> {
        let user_id = reader.user(text(&content, "user_id"), "user_id")?;
        let device_id = text(&content, "device_id").filter(|id| is_device_id(id));
        let prev_id = optional(&content, "prev_id", |ids| ids.as_array()?.iter().map(Value::as_i64).collect())?;
        Ok(Self {
            user_id,
            device_id: device_id.ok_or(EduError::Malformed("device_id"))?.to_owned(),
            stream_id: content.get("stream_id").and_then(Value::as_i64).ok_or(EduError::Malformed("stream_id"))?,
            prev_id: prev_id.unwrap_or_default(),
            device_display_name: optional(&content, "device_display_name", |name| name.as_str().map(str::to_owned))?,
            deleted: optional(&content, "deleted", Value::as_bool)?.unwrap_or(false),
            keys: object(&mut content, "keys")?,
        })
    }

    /// The content of the EDU that says so.
    pub fn content(&self) -> Object {
        let mut content = Object::new();
        content.insert("user_id", &self.user_id);
        content.insert("device_id", self.device_id.as_str());
        content.insert("stream_id", self.stream_id);
        content.insert("prev_id", Value::Array(self.prev_id.iter().map(|id| Value::from(*id)).collect()));
        if let Some(name) = &self.device_display_name {
            content.insert("device_display_name", name.as_str());
        }
        if self.deleted {
            content.insert("deleted", true);
        }
        if let Some(keys) = &self.keys {
            content.insert("keys", keys.clone());
        }
        content
    }
}

/// That a user's cross-signing keys have changed.
#[derive(Debug, Clone, PartialEq)]
pub struct SigningKeyUpdate {
    /// The user.
    pub user_id: UserId,
    /// The master key.
    pub master_key: Option<Object>,
    /// The key that signs the user's devices.
    pub self_signing_key: Option<Object>,
}

impl SigningKeyUpdate {
    pub(super) fn read(reader: &Reader<'_>, mut content: Object) -> Result<Self, EduError> {
        Ok(Self {
            user_id: reader.user(text(&content, "user_id"), "user_id")?,
            master_key: object(&mut content, "master_key")?,
            self_signing_key: object(&mut content, "self_signing_key")?,
        })
    }

    /// The content of the EDU that says so.
    pub fn content(&self) -> Object {
        let mut content = Object::new();
        content.insert("user_id", &self.user_id);
        for (name, key) in [("master_key", &self.master_key), ("self_signing_key", &self.self_signing_key)] {
            if let Some(key) = key {
                content.insert(name, key.clone());
            }
        }
        content
    }
}

/// Messages of one user to devices.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectToDevice {
    /// The user.
    pub sender: UserId,
    /// The type of the messages.
    pub event_type: String,
    /// What tells the messages from others of the sender's server: they may come twice.
    pub message_id: String,
    /// The contents, by user and device; the device `*` stands for all of the user's.
    pub messages: Vec<(UserId, String, Object)>,
}

impl DirectToDevice {
    /// Messages with something malformed among them are no such EDU; whether the users are ours is for the caller to find
    /// out.
    pub(super) fn read(reader: &Reader<'_>, mut content: Object) -> Result<Self, EduError> {
        let sender = reader.user(text(&content, "sender"), "sender")?;
        let event_type = text(&content, "type").filter(|kind| kind.len() <= MAX_DEVICE_ID);
        let event_type = event_type.ok_or(EduError::Malformed("type"))?.to_owned();
        let message_id = text(&content, "message_id").filter(|id| id.chars().count() <= MAX_MESSAGE_ID);
        let message_id = message_id.ok_or(EduError::Malformed("message_id"))?.to_owned();
        let by_user = content.remove("messages").and_then(Value::into_object);
        let mut messages = Vec::new();
        for (user, by_device) in by_user.ok_or(EduError::Malformed("messages"))? {
            let user = UserId::parse(&user).map_err(|_| EduError::Malformed("messages"))?;
            for (device, message) in by_device.into_object().ok_or(EduError::Malformed("messages"))? {
                let message = message.into_object().ok_or(EduError::Malformed("messages"))?;
                if device.is_empty() || device.len() > MAX_DEVICE_ID {
                    return Err(EduError::Malformed("messages"));
                }
                messages.push((user.clone(), device.into(), message));
            }
        }
        Ok(Self { sender, event_type, message_id, messages })
    }

    /// The content of the EDU that carries them.
    pub fn content(&self) -> Object {
        let mut by_user = Object::new();
        for (user, device, message) in &self.messages {
            let mut devices = by_user.remove(user.as_str()).and_then(Value::into_object).unwrap_or_default();
            devices.insert(device.as_str(), message.clone());
            by_user.insert(user.as_str(), devices);
        }
        let mut content = Object::new();
        content.insert("sender", &self.sender);
        content.insert("type", self.event_type.as_str());
        content.insert("message_id", self.message_id.as_str());
        content.insert("messages", by_user);
        content
    }
}

/// A member that is an object; `null` counts as missing.
fn object(content: &mut Object, key: &'static str) -> Result<Option<Object>, EduError> {
    match content.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.into_object().map(Some).ok_or(EduError::Malformed(key)),
    }
}

impl EduType {
    /// Whether an EDU of this type must reach its destination, however long that is away.
    pub const fn is_durable(self) -> bool {
        matches!(self, Self::DeviceListUpdate | Self::SigningKeyUpdate | Self::DirectToDevice)
    }
}
