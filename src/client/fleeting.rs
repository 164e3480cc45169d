//! What a sync tells besides events and account data: who is typing, up to where users have read, who is there (Client-Server
//! API, "Syncing", "Typing Notifications", "Receipts", "Presence").

use std::collections::BTreeMap;

use super::filters::Filter;
use crate::{
    matrix::{
        identifiers::RoomId,
        json::{Object, Value},
    },
    store::{
        receipts::ReceiptRow,
        sync_fleeting::{FleetingAt, FleetingFound},
    },
};

/// What there is to tell, as far as the client wants it.
pub(super) struct Fleeting {
    /// Up to where.
    pub(super) at: FleetingAt,
    /// Whether there may be more at once.
    pub(super) is_cut: bool,
    typing: BTreeMap<RoomId, Vec<String>>,
    known: BTreeMap<RoomId, Vec<ReceiptRow>>,
    of_new_rooms: BTreeMap<RoomId, Vec<ReceiptRow>>,
    presence: Vec<Value>,
}

impl Fleeting {
    /// What `filter` lets through of what was found at `now`.
    pub(super) fn of(found: FleetingFound, filter: &Filter, now: i64) -> Self {
        let FleetingFound { typing, receipts, presence, .. } = &found;
        let is_cut = typing.page_end.is_some() || receipts.page_end.is_some() || presence.page_end.is_some();
        let mut typing = found.typing.rooms;
        typing.retain(|room_id, _| wants(filter, room_id, "m.typing"));
        let presence = found.presence.users.into_iter();
        let presence = presence.filter(|row| filter.presence.sent("m.presence", row.user_id.as_str()));
        let presence = presence.map(|row| {
            let mut event = Object::new();
            event.insert("type", "m.presence");
            event.insert("sender", &row.user_id);
            event.insert("content", row.update(now).content());
            Value::Object(event)
        });
        Self {
            at: found.at,
            is_cut,
            typing,
            known: by_room(found.receipts.known, filter),
            of_new_rooms: by_room(found.receipts.of_new_rooms, filter),
            presence: presence.collect(),
        }
    }

    /// Tells `receipts` as well, of rooms of which the client is told as of newly joined ones.
    pub(super) fn tell_anew(&mut self, receipts: Vec<ReceiptRow>, filter: &Filter) {
        for (room_id, mut receipts) in by_room(receipts, filter) {
            let is_known = |row: &ReceiptRow| self.known.get(&room_id).is_some_and(|known| known.contains(row));
            receipts.retain(|row| !is_known(row));
            self.of_new_rooms.insert(room_id, receipts);
        }
    }

    /// Whether there is nothing. Receipts of new rooms come with those rooms.
    pub(super) fn is_empty(&self) -> bool {
        self.typing.is_empty() && self.known.is_empty() && self.presence.is_empty()
    }

    /// The rooms that the client knows and of which something is told.
    pub(super) fn rooms(&self) -> impl Iterator<Item = &RoomId> {
        self.typing.keys().chain(self.known.keys())
    }

    /// The rooms that the client knows in which this user has read on.
    pub(super) fn read_by(&self, user_id: &str) -> impl Iterator<Item = &RoomId> {
        let own = move |receipts: &[ReceiptRow]| receipts.iter().any(|receipt| receipt.user_id == user_id);
        self.known.iter().filter(move |(_, receipts)| own(receipts)).map(|(room_id, _)| room_id)
    }

    /// The events of a room's `ephemeral`.
    pub(super) fn events(&self, room_id: &RoomId) -> Vec<Value> {
        let mut events = Vec::new();
        if let Some(users) = self.typing.get(room_id) {
            let users = users.iter().map(|user| Value::from(user.as_str())).collect();
            let content: Object = [("user_ids", Value::Array(users))].into_iter().collect();
            events.push(event("m.typing", content));
        }
        let receipts = [&self.known, &self.of_new_rooms].into_iter().filter_map(|rooms| rooms.get(room_id)).flatten();
        events.extend(receipt_contents(receipts).into_iter().map(|content| event("m.receipt", content)));
        events
    }

    /// The events of `presence`.
    pub(super) fn presence(&self) -> Vec<Value> {
        self.presence.clone()
    }
}

/// Those of `receipts` that the client wants.
fn by_room(receipts: Vec<ReceiptRow>, filter: &Filter) -> BTreeMap<RoomId, Vec<ReceiptRow>> {
    let mut rooms: BTreeMap<RoomId, Vec<ReceiptRow>> = BTreeMap::new();
    for receipt in receipts {
        if wants(filter, &receipt.room_id, "m.receipt") {
            rooms.entry(receipt.room_id.clone()).or_default().push(receipt);
        }
    }
    rooms
}

fn wants(filter: &Filter, room_id: &RoomId, event_type: &str) -> bool {
    let room = room_id.as_str();
    filter.room(room) && filter.ephemeral.room(room) && filter.ephemeral.event_type(event_type)
}

fn event(event_type: &str, content: Object) -> Value {
    let members = [("type", Value::from(event_type)), ("content", Value::Object(content))];
    Value::Object(members.into_iter().collect())
}

/// Receipts by type and user,
type ByType<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Object>>;
/// and those by event.
type ByEvent<'a> = BTreeMap<&'a str, ByType<'a>>;

/// The contents of `m.receipt` events that tell of these: one, as a rule. It has place for one receipt of a user and type at an
/// event; further ones, of another thread, take one more.
fn receipt_contents<'a>(receipts: impl Iterator<Item = &'a ReceiptRow>) -> Vec<Object> {
    let mut contents: Vec<ByEvent<'_>> = Vec::new();
    for receipt in receipts {
        let ReceiptRow { event_id, receipt_type, user_id, .. } = receipt;
        let mut data = Object::new();
        data.insert("ts", receipt.ts);
        if let Some(thread_id) = &receipt.thread_id {
            data.insert("thread_id", thread_id.as_str());
        }
        let has_place = |content: &ByEvent<'_>| {
            let types = content.get(event_id.as_str());
            types.and_then(|types| types.get(receipt_type.as_str())?.get(user_id.as_str())).is_none()
        };
        let at = contents.iter().position(has_place).unwrap_or_else(|| {
            contents.push(ByEvent::new());
            contents.len() - 1
        });
        if let Some(content) = contents.get_mut(at) {
            let types = content.entry(event_id.as_str()).or_default();
            types.entry(receipt_type.as_str()).or_default().insert(user_id.as_str(), data);
        }
    }
    let users = |users: BTreeMap<&str, Object>| users.into_iter().collect::<Object>();
    let types = |types: ByType<'_>| types.into_iter().map(|(kind, of)| (kind, users(of))).collect::<Object>();
    contents
        .into_iter()
        .map(|events| events.into_iter().map(|(event_id, of)| (event_id, types(of))).collect::<Object>())
        .collect()
}
