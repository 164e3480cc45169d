//! Positions in the streams: the timeline's, which sync reads, and the outbox's.

use crate::platform::{Statement, news::Subject};

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
