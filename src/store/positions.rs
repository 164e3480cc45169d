//! Positions in the streams, a type for each: the timelines', which sync reads, the outbox's, and those of what else clients are told.

use serde::Serialize;

use crate::platform::{DatabaseError, Row, SqlValue, Statement, news::Subject};

/// A position in one stream, which means nothing in another one.
macro_rules! position {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
        pub struct $name(i64);

        impl $name {
            /// Where the stream begins: before all that has been written to it.
            pub const START: Self = Self(0);
            /// The largest: within what the database holds exactly.
            pub const MAX: Self = Self(MAX);

            /// The position that was written down as this number: in a token, or in a table.
            pub const fn new(number: i64) -> Self {
                Self(number)
            }

            /// The number to write down.
            pub const fn get(self) -> i64 {
                self.0
            }

            /// The position in column `column`.
            ///
            /// # Errors
            /// As [`Row::integer`].
            pub fn read(row: &Row, column: usize) -> Result<Self, DatabaseError> {
                row.integer(column).map(Self)
            }

            /// The position in column `column`, `None` for `NULL`.
            ///
            /// # Errors
            /// As [`Row::optional_integer`].
            pub fn read_optional(row: &Row, column: usize) -> Result<Option<Self>, DatabaseError> {
                Ok(row.optional_integer(column)?.map(Self))
            }
        }

        impl From<$name> for SqlValue {
            fn from(position: $name) -> Self {
                position.0.into()
            }
        }
    };
}

position! {
    /// A place in the timelines: those of all rooms have one stream, `events`, so it is the order of commits over all of them, and
    /// up to where a sync has told of events. New events are 2^20 apart; history fills the places between them, and
    /// what is older than all that came by commits counts down from [`TimelinePos::START`].
    TimelinePos
}
position! {
    /// A position in the outbox, of the events that other servers must hear of.
    OutboxPos
}
position! {
    /// A position in the stream of account data.
    AccountDataPos
}
position! {
    /// A position in the stream of changes of users' keys; other servers hear it as the `stream_id` of a local user's list.
    DeviceListsPos
}
position! {
    /// A position in the stream of messages to devices.
    ToDevicePos
}
position! {
    /// A position in the stream of typing.
    TypingPos
}
position! {
    /// A position in the stream of receipts.
    ReceiptsPos
}
position! {
    /// A position in the stream of presence.
    PresencePos
}

impl TimelinePos {
    /// The oldest that there can be.
    pub const OLDEST: Self = Self(-MAX);
    /// Beyond every one that is given out.
    pub const END: Self = Self(i64::MAX >> 11);
    /// Before every one, the oldest too.
    pub const NOWHERE: Self = Self(i64::MIN);

    /// The last one before it.
    #[must_use]
    pub const fn before(self) -> Self {
        self.back_by(1)
    }

    /// The first one after it.
    #[must_use]
    pub const fn after(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The one before it by so many places.
    #[must_use]
    pub const fn back_by(self, places: i64) -> Self {
        Self(self.0.saturating_sub(places))
    }

    /// How many places there are between `older` and it.
    pub fn places_after(self, older: Self) -> i64 {
        self.0.saturating_sub(older.0).saturating_sub(1).max(0)
    }
}

/// How far positions of the timeline are apart: in between is room for what is filled into a gap. The positions last for
/// four billion events.
const STEP: i64 = 1 << 20;

/// The largest position: within what the database holds exactly.
pub(super) const MAX: i64 = (1 << 53) - 1;

const ADVANCE: &str = "UPDATE streams SET position = position + ?2 WHERE name = ?1";

/// Moves a stream on by this many positions, of which nobody waits to hear.
pub(super) fn advance(stream: &'static str, by: i64) -> Statement {
    Statement::new(ADVANCE, [stream.into(), by.into()])
}

/// Moves a stream that clients wait for on by this many positions, with news that concern these.
pub(super) fn advance_for(stream: &'static str, by: i64, subjects: impl IntoIterator<Item = Subject>) -> Statement {
    advance(stream, by).concerning(subjects)
}

/// Moves the timeline's stream on by this many events.
pub(super) fn advance_timeline(events: usize, subjects: impl IntoIterator<Item = Subject>) -> Statement {
    advance_for("events", STEP.saturating_mul(count(events)), subjects)
}

/// How far before the end of the stream an event stands when this many events of its commit come after it.
pub(super) fn from_end(later: usize) -> i64 {
    STEP.saturating_mul(count(later))
}

/// A number of things in memory, of which there are never so many.
pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
