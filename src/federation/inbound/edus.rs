//! A transaction's EDUs (Server-Server API, "EDUs"): which of them count, and what they come to.
//!
//! What they come to is written in the batch that records the transaction's answer: a transaction that is repeated does not do
//! it again, and one that was not recorded has done nothing. An EDU that is malformed, or about somebody who is not its origin's
//! to speak for, is skipped; the log has one line for all of a transaction.

use std::{collections::HashSet, hash::Hash, ops::Range};

use super::{
    device_edus::{DeviceEdus, JudgedDeviceEdus},
    part::Part,
};
use crate::{
    log::LogRecord,
    matrix::{
        edu::{Edu, PresenceUpdate, Reader, Receipt, Typing},
        identifiers::{RoomId, ServerName, UserId},
        json::Value,
    },
    platform::Statement,
    room::Effects,
    server::Server,
    store::{
        edus::{EduQuestions, EduRooms},
        presence::{self, PresenceRow},
        receipts, typing,
    },
};

/// How many receipts and users' typing, and how many users' presence, are taken from one transaction, the newest of each user. The
/// specification's limits would let it hold tens of thousands, each a row to be written.
const MAX_IN_ROOMS: usize = 500;
const MAX_PRESENCES: usize = 50;

/// For how long, in milliseconds, a user of another server is taken to be typing who is not said to have ceased. Servers
/// repeat it more often.
const TYPING_MS: i64 = 60_000;

/// The EDUs of a transaction that speak for users of its origin.
pub(super) struct Received {
    origin: ServerName,
    typing: Vec<Typing>,
    receipts: Vec<Receipt>,
    presence: Vec<PresenceUpdate>,
    devices: DeviceEdus,
}

impl Received {
    /// Reads the EDUs of a transaction.
    pub(super) fn read(server: &Server, origin: &ServerName, txn_id: &str, edus: Vec<Value>) -> Self {
        let mut reader = Reader::new(origin);
        let (mut typing, mut receipts, mut presence) = (Vec::new(), Vec::new(), Vec::new());
        let mut devices = DeviceEdus::default();
        for edu in edus {
            match reader.read(edu) {
                Some(Edu::Typing(one)) => typing.push(one),
                Some(Edu::Receipts(some)) => receipts.extend(some),
                Some(Edu::Presence(some)) => presence.extend(some),
                Some(Edu::DeviceListUpdate(update)) => devices.add_list_update(update),
                Some(Edu::SigningKeyUpdate(update)) => devices.add_signing_update(update),
                Some(Edu::DirectToDevice(messages)) => devices.add_messages(&server.config.server_name, messages),
                None => {}
            }
        }
        if let Some((count, why)) = reader.skipped() {
            let record = LogRecord::warning("EDUs are skipped").origin(origin).transaction(txn_id);
            server.platform.log.write(record.count(count).because(&why));
        }
        let mut too_many = devices.dropped() > 0;
        let typing = newest(typing, MAX_IN_ROOMS, &mut too_many, |one| (one.room_id.clone(), one.user_id.clone()));
        let receipts = newest(receipts, MAX_IN_ROOMS - typing.len(), &mut too_many, |one| {
            (one.room_id.clone(), one.user_id.clone(), one.receipt_type.as_str(), one.thread_id.clone())
        });
        let presence = newest(presence, MAX_PRESENCES, &mut too_many, |one| one.user_id.clone());
        if too_many {
            let record = LogRecord::warning("EDUs are too many or too long; of each kind some are taken");
            server.platform.log.write(record.origin(origin).transaction(txn_id));
        }
        Self { origin: origin.clone(), typing, receipts, presence, devices }
    }

    /// What must be known to judge them.
    pub(super) fn questions(&self) -> EduQuestions {
        let typing = self.typing.iter().map(|typing| (typing.room_id.clone(), typing.user_id.clone()));
        let receipts = self.receipts.iter().map(|receipt| (receipt.room_id.clone(), receipt.user_id.clone()));
        EduQuestions::new(typing.chain(receipts).collect())
    }

    /// Those that count. An EDU about a room counts if its user is in the room, and the room's ACL allows its origin.
    pub(super) fn judged(self, server: &Server, rooms: &EduRooms) -> Judged {
        let Self { origin, typing, receipts, presence, devices } = self;
        let now = server.platform.clock.now_ms();
        let counts = |room_id: &RoomId, user_id: &UserId| rooms.allows(room_id, &origin) && rooms.has(room_id, user_id);
        let typing = typing.into_iter().filter(|typing| counts(&typing.room_id, &typing.user_id));
        let typing = typing
            .map(|typing| {
                let until = if typing.is_typing { now + TYPING_MS } else { now };
                (typing, until)
            })
            .collect();
        let receipts = receipts.into_iter().filter(|receipt| counts(&receipt.room_id, &receipt.user_id)).collect();
        let presence = presence.into_iter().map(|update| PresenceRow::of(update, now)).collect();
        let devices = devices.judged();
        Judged { own: server.config.server_name.clone(), origin, now, typing, receipts, presence, devices }
    }
}

/// The EDUs of a transaction that count.
#[derive(Debug)]
pub(super) struct Judged {
    own: ServerName,
    origin: ServerName,
    now: i64,
    typing: Vec<(Typing, i64)>,
    receipts: Vec<Receipt>,
    presence: Vec<PresenceRow>,
    devices: JudgedDeviceEdus,
}

impl Effects for Judged {
    fn count(&self) -> usize {
        self.typing.len() + self.receipts.len() + self.presence.len() + self.devices.count()
    }

    fn statements(&self, of: Range<usize>) -> Vec<Statement> {
        let mut of = Part::new(of);
        let mut statements = typing::note(of.take(&self.typing), self.now);
        statements.extend(receipts::note(of.take(&self.receipts)));
        statements.extend(presence::note(&self.own, &self.origin, of.take(&self.presence), self.now));
        statements.extend(self.devices.statements(&mut of, &self.own, &self.origin, self.now));
        statements
    }
}

/// The last of each key, `most` at most, in their order; whether there were more goes to `too_many`. What comes before it in the same
/// transaction would be a row written in vain.
fn newest<T, K: Hash + Eq>(list: Vec<T>, most: usize, too_many: &mut bool, key: impl Fn(&T) -> K) -> Vec<T> {
    let (mut seen, mut kept) = (HashSet::new(), Vec::new());
    for one in list.into_iter().rev() {
        if seen.insert(key(&one)) {
            if kept.len() == most {
                *too_many = true;
                break;
            }
            kept.push(one);
        }
    }
    kept.reverse();
    kept
}
