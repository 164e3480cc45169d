//! Server-Server API, "Receipts".

use super::{EduError, EduType, Reader};
use crate::matrix::{
    identifiers::{EventId, MAX_LENGTH, RoomId, UserId},
    json::{MAX_INTEGER, Object, Value},
};

/// The longest ID of a thread, in bytes: it is an event's, or `main`.
pub const MAX_THREAD_ID: usize = MAX_LENGTH;

/// The type of a receipt that is kept as one. (`m.fully_read` is account data.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReceiptType {
    /// `m.read`, which everybody in the room is told of.
    Read,
    /// `m.read.private`, which nobody but the user is told of.
    ReadPrivate,
}

impl ReceiptType {
    /// Its name in the protocol.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "m.read",
            Self::ReadPrivate => "m.read.private",
        }
    }
}

/// Up to where a user has read a room, or a thread of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The room.
    pub room_id: RoomId,
    /// The user.
    pub user_id: UserId,
    /// Whom it is for.
    pub receipt_type: ReceiptType,
    /// The thread; `None` for a receipt that is of no thread.
    pub thread_id: Option<String>,
    /// The event up to which they have read.
    pub event_id: EventId,
    /// When, in milliseconds since the epoch.
    pub ts: i64,
}

/// The public receipts in an `m.receipt`; other types are never sent to other servers.
pub(super) fn read(reader: &mut Reader<'_>, content: Object) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    for (room, types) in content {
        let users = types.into_object().and_then(|mut types| types.remove(ReceiptType::Read.as_str()));
        let (Ok(room_id), Some(users)) = (RoomId::parse(&room), users.and_then(Value::into_object)) else {
            reader.skip(EduError::Malformed("content"));
            continue;
        };
        for (user, said) in users.iter() {
            match one(reader, &room_id, user, said) {
                Ok(receipt) => receipts.push(receipt),
                Err(error) => reader.skip(error),
            }
        }
    }
    receipts
}

fn one(reader: &Reader<'_>, room_id: &RoomId, user: &str, said: &Value) -> Result<Receipt, EduError> {
    let user_id = reader.user(Some(user), "m.read")?;
    // Of several the last: servers send one.
    let event_id = said.get("event_ids").and_then(Value::as_array).and_then(|ids| ids.last()?.as_str());
    let event_id = event_id.and_then(|id| EventId::parse(id).ok()).ok_or(EduError::Malformed("event_ids"))?;
    let data = said.get("data").and_then(Value::as_object).ok_or(EduError::Malformed("data"))?;
    let ts = data.get("ts").and_then(Value::as_i64).filter(|ts| (0..=MAX_INTEGER).contains(ts));
    let thread_id = super::optional(data, "thread_id", |id| {
        id.as_str().filter(|id| !id.is_empty() && id.len() <= MAX_THREAD_ID).map(str::to_owned)
    })?;
    Ok(Receipt {
        room_id: room_id.clone(),
        user_id,
        receipt_type: ReceiptType::Read,
        thread_id,
        event_id,
        ts: ts.ok_or(EduError::Malformed("ts"))?,
    })
}

/// The EDUs that tell of receipts: one, as a rule. It has place for one receipt of a user in a room; those of further threads
/// take one more each.
pub fn receipt_edus<'a>(receipts: impl IntoIterator<Item = &'a Receipt>) -> Vec<Value> {
    let mut contents: Vec<Object> = Vec::new();
    for receipt in receipts {
        let has_place = |content: &Object| {
            let room = content.get(receipt.room_id.as_str());
            let users = room.and_then(|room| room.get(ReceiptType::Read.as_str()));
            users.is_none_or(|users| users.get(receipt.user_id.as_str()).is_none())
        };
        let at = contents.iter().position(has_place).unwrap_or_else(|| {
            contents.push(Object::new());
            contents.len() - 1
        });
        if let Some(content) = contents.get_mut(at) {
            add(content, receipt);
        }
    }
    contents.into_iter().map(|content| EduType::Receipt.with(content)).collect()
}

fn add(content: &mut Object, receipt: &Receipt) {
    let mut data = Object::new();
    data.insert("ts", receipt.ts);
    if let Some(thread_id) = &receipt.thread_id {
        data.insert("thread_id", thread_id.as_str());
    }
    let mut said = Object::new();
    said.insert("event_ids", Value::Array(vec![Value::from(&receipt.event_id)]));
    said.insert("data", data);
    let mut room = content.remove(receipt.room_id.as_str()).and_then(Value::into_object).unwrap_or_default();
    let read = ReceiptType::Read.as_str();
    let mut users = room.remove(read).and_then(Value::into_object).unwrap_or_default();
    users.insert(receipt.user_id.as_str(), said);
    room.insert(read, users);
    content.insert(receipt.room_id.as_str(), room);
}
