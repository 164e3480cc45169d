//! How much a server may have us keep that we cannot judge yet.
//!
//! What waits is written to the database and makes us ask other servers, on nobody's word but the sender's: each server has
//! a budget, and who is not in the room by our state a small one. While we are joining a room we cannot tell who is in it.

use std::collections::HashMap;

use crate::{
    matrix::identifiers::RoomId,
    store::staging::{Amount, StagedAlready, StagedBy, StagedOfRoom},
};

const KIB: usize = 1024;

/// How much may wait of one server.
const OF_SERVER: Amount = Amount { pdus: 1_000, bytes: 8 * KIB * KIB };

/// How much of that in rooms that the server is not in: a join of which we have not heard, and what came after it.
const OF_STRANGER: Amount = Amount { pdus: 20, bytes: 256 * KIB };

/// How much may wait of one room from servers that are not in it, whatever their number.
const OF_STRANGERS_IN_ROOM: Amount = Amount { pdus: 200, bytes: 2 * KIB * KIB };

/// The same while we are joining the room.
const IN_ROOM_BEING_JOINED: Amount = Amount { pdus: 3_000, bytes: 24 * KIB * KIB };

/// What one server may still stage with one transaction.
pub(super) struct Allowance {
    by_origin: Amount,
    as_stranger: Amount,
    rooms: HashMap<RoomId, StagedOfRoom>,
}

impl Allowance {
    /// What is left beside what is staged already.
    pub(super) fn new(already: &StagedAlready) -> Self {
        Self { by_origin: already.by_origin, as_stranger: already.as_stranger, rooms: already.rooms.clone() }
    }

    /// Takes a PDU of so many bytes out of it; `joining` says whether we are joining its room. Answers what the
    /// server is to the room, or with `None` where the PDU would be too much.
    pub(super) fn take(&mut self, room_id: &RoomId, joining: bool, bytes: usize) -> Option<StagedBy> {
        let room = self.rooms.entry(room_id.clone()).or_default();
        let by = if joining || !room.is_member { StagedBy::Stranger } else { StagedBy::Member };
        let by_origin = self.by_origin.and(bytes, OF_SERVER)?;
        if by == StagedBy::Stranger {
            let limit = if joining { IN_ROOM_BEING_JOINED } else { OF_STRANGERS_IN_ROOM };
            let by_strangers = room.by_strangers.and(bytes, limit)?;
            let limit = if joining { OF_SERVER } else { OF_STRANGER };
            self.as_stranger = self.as_stranger.and(bytes, limit)?;
            room.by_strangers = by_strangers;
        }
        self.by_origin = by_origin;
        Some(by)
    }
}

impl Amount {
    /// One PDU of so many bytes more, where that is within `limit`.
    fn and(self, bytes: usize, limit: Self) -> Option<Self> {
        let sum = Self { pdus: self.pdus + 1, bytes: self.bytes + bytes };
        (sum.pdus <= limit.pdus && sum.bytes <= limit.bytes).then_some(sum)
    }
}
