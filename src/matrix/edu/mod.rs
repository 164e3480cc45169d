//! EDUs, what servers tell each other besides events: read from a transaction, and written for one.
//!
//! Spec: Server-Server API, "EDUs" and the sections of their types: "Typing Notifications", "Receipts", "Presence", "Device
//! Management", "End-to-End Encryption", "Send-to-device messaging".
//!
//! An [`Edu`] speaks only for users of the server that it came from: [`Reader`] makes no other. Whether they are in the room
//! that it is about is for the caller to find out.

mod devices;
mod presence;
mod receipts;
mod typing;

pub use devices::{DeviceListUpdate, DirectToDevice, MAX_MESSAGE_ID, SigningKeyUpdate};
pub use presence::{MAX_STATUS, Presence, PresenceUpdate};
pub use receipts::{MAX_THREAD_ID, Receipt, ReceiptType, receipt_edus};
pub use typing::Typing;

use super::{
    identifiers::{ServerName, UserId},
    json::{MAX_DEPTH, Object, Value},
};

/// `edu_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EduType {
    /// Who is typing.
    Typing,
    /// Up to where users have read.
    Receipt,
    /// Who is there.
    Presence,
    /// That a device of a user has changed.
    DeviceListUpdate,
    /// That a user's cross-signing keys have changed.
    SigningKeyUpdate,
    /// Messages to devices.
    DirectToDevice,
}

impl EduType {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Typing,
        Self::Receipt,
        Self::Presence,
        Self::DeviceListUpdate,
        Self::SigningKeyUpdate,
        Self::DirectToDevice,
    ];

    /// The type of this name; `None` for another text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Its name in the protocol.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Typing => "m.typing",
            Self::Receipt => "m.receipt",
            Self::Presence => "m.presence",
            Self::DeviceListUpdate => "m.device_list_update",
            Self::SigningKeyUpdate => "m.signing_key_update",
            Self::DirectToDevice => "m.direct_to_device",
        }
    }

    /// An EDU of this type, as transactions carry it.
    pub fn with(self, content: Object) -> Value {
        let members = [("edu_type", Value::from(self.as_str())), ("content", Value::Object(content))];
        Value::Object(members.into_iter().collect())
    }
}

/// An EDU that speaks for users of its origin alone.
#[derive(Debug, Clone, PartialEq)]
pub enum Edu {
    /// `m.typing`
    Typing(Typing),
    /// `m.receipt`
    Receipts(Vec<Receipt>),
    /// `m.presence`
    Presence(Vec<PresenceUpdate>),
    /// `m.device_list_update`
    DeviceListUpdate(DeviceListUpdate),
    /// `m.signing_key_update`
    SigningKeyUpdate(SigningKeyUpdate),
    /// `m.direct_to_device`
    DirectToDevice(DirectToDevice),
}

/// Why an EDU, or a part of one, is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EduError {
    /// It lacks something, or has something else there.
    #[error("`{0}` is missing or malformed")]
    Malformed(&'static str),
    /// It speaks for a user of another server than it came from.
    #[error("it is about a user of another server")]
    Foreign,
    /// Of what it came with there is more than can be held.
    #[error("there is no memory for it")]
    TooLarge,
    /// More arrays and objects stand inside each other than [`MAX_DEPTH`].
    #[error("it is nested too deep")]
    TooDeep,
    /// It holds a number that is beyond what a double holds, which other JSON readers fail on.
    #[error("a number in it is too large")]
    Number,
}

/// Reads the EDUs of one server.
#[derive(Debug)]
pub struct Reader<'a> {
    origin: &'a ServerName,
    skipped: usize,
    first: Option<EduError>,
}

impl<'a> Reader<'a> {
    /// A reader of what `origin` has sent.
    pub fn new(origin: &'a ServerName) -> Self {
        Self { origin, skipped: 0, first: None }
    }

    /// Reads an EDU. `None` where nothing of it is of use: it is of an unknown type, which is no fault, or it is skipped.
    pub fn read(&mut self, edu: Value) -> Option<Edu> {
        match self.try_read(edu) {
            Ok(edu) => edu,
            Err(error) => {
                self.skip(error);
                None
            }
        }
    }

    /// How many EDUs, or parts of them, were skipped, and why the first one was.
    pub fn skipped(&self) -> Option<(usize, EduError)> {
        Some((self.skipped, self.first?))
    }

    fn try_read(&mut self, edu: Value) -> Result<Option<Edu>, EduError> {
        if let Value::Unread(_) = edu {
            return Err(EduError::TooLarge);
        }
        let mut edu = edu.into_object().ok_or(EduError::Malformed("edus"))?;
        let kind = edu.get("edu_type").and_then(Value::as_str).ok_or(EduError::Malformed("edu_type"))?;
        let Some(kind) = EduType::parse(kind) else { return Ok(None) };
        let content = edu.remove("content").and_then(Value::into_object).ok_or(EduError::Malformed("content"))?;
        // It is the second level.
        if !content.is_within_depth(MAX_DEPTH - 1) {
            return Err(EduError::TooDeep);
        }
        content.check_loose().map_err(|_| EduError::Number)?;
        Ok(match kind {
            EduType::Typing => Some(Edu::Typing(Typing::read(self, &content)?)),
            EduType::Receipt => some(receipts::read(self, content)).map(Edu::Receipts),
            EduType::Presence => some(presence::read(self, content)?).map(Edu::Presence),
            EduType::DeviceListUpdate => Some(Edu::DeviceListUpdate(DeviceListUpdate::read(self, content)?)),
            EduType::SigningKeyUpdate => Some(Edu::SigningKeyUpdate(SigningKeyUpdate::read(self, content)?)),
            EduType::DirectToDevice => Some(Edu::DirectToDevice(DirectToDevice::read(self, content)?)),
        })
    }

    fn skip(&mut self, error: EduError) {
        self.skipped += 1;
        self.first.get_or_insert(error);
    }

    /// A user of the origin.
    fn user(&self, text: Option<&str>, what: &'static str) -> Result<UserId, EduError> {
        let user = text.and_then(|text| UserId::parse(text).ok()).ok_or(EduError::Malformed(what))?;
        if user.server_name() == self.origin.as_str() { Ok(user) } else { Err(EduError::Foreign) }
    }
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}

fn text<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

/// A member that may be missing; `null` counts as missing.
fn optional<T>(object: &Object, key: &'static str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, EduError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read(value).map(Some).ok_or(EduError::Malformed(key)),
    }
}
