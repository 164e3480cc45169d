//! Where a room's timeline lacks history.

use super::Store;
use crate::{
    matrix::identifiers::{EventId, RoomId},
    platform::{DatabaseError, Rows, Statement},
};

/// The gaps `g` that history has closed meanwhile.
macro_rules! closed {
    () => {
        "EXISTS (SELECT 1 FROM events AS held WHERE held.event_id = g.event_id AND NOT held.outlier)"
    };
}
pub(super) use closed;

/// ?1: the room, ?2 and ?3: the positions (after, up to and with). The events are at most what one request asks for.
const NEWEST_GAP: &str = concat!(
    "SELECT g.pos, g.event_id, \
       (SELECT t.pos FROM timeline AS t WHERE t.room_id = ?1 AND t.pos < g.pos ORDER BY t.pos DESC LIMIT 1) AS below \
     FROM gaps AS g WHERE g.room_id = ?1 AND g.pos > ?2 AND g.pos <= ?3 AND NOT ",
    closed!(),
    " ORDER BY g.pos DESC, g.event_id LIMIT 20"
);

/// Where the timeline lacks history.
#[derive(Debug, Clone)]
pub struct Gap {
    /// The position of the event after it.
    pub pos: i64,
    /// The position of the event before it, if any is held.
    pub below: Option<i64>,
    /// The events at its newer end, which the events after it cite.
    pub missing: Vec<EventId>,
}

impl Store {
    /// The newest gap in a room's timeline that ends at a position in (`after`, `to`].
    ///
    /// # Errors
    /// As the database says.
    pub async fn newest_gap(&self, room_id: &RoomId, (after, to): (i64, i64)) -> Result<Option<Gap>, DatabaseError> {
        gap(&self.query(newest_gap_statement(room_id, (after, to))).await?)
    }
}

pub(super) fn newest_gap_statement(room_id: &RoomId, (after, to): (i64, i64)) -> Statement {
    Statement::new(NEWEST_GAP, [room_id.as_str().into(), after.into(), to.into()])
}

/// The gap in rows of [`newest_gap_statement`]. What has a name that no server answers to cannot be asked for.
pub(super) fn gap(rows: &Rows) -> Result<Option<Gap>, DatabaseError> {
    let mut gap: Option<Gap> = None;
    for row in rows {
        let pos = row.integer(0)?;
        let Ok(event_id) = EventId::parse(row.text(1)?) else { continue };
        let gap = match &mut gap {
            Some(gap) => gap,
            None => gap.insert(Gap { pos, below: row.optional_integer(2)?, missing: Vec::new() }),
        };
        if gap.pos == pos {
            gap.missing.push(event_id);
        }
    }
    Ok(gap)
}
