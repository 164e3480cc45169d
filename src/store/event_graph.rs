//! Walking back through a room's event graph, and where it ends.

use super::{
    Store,
    events::{StoredEvent, cited, event_columns, stored_event},
    json_list,
};
use crate::{
    matrix::identifiers::{EventId, RoomId},
    platform::{DatabaseError, Rows, Statement},
};

/// The events ?1 (a JSON list) of the room ?2 and their ancestors, the deepest first, not past the events ?3 (a JSON
/// list), at most ?4. `ORDER BY` in a recursive query makes its queue a priority queue.
const WALK_BACK: &str = concat!(
    "WITH RECURSIVE walk(event_id, depth) AS ( \
       SELECT s.event_id, s.depth FROM json_each(?1) AS start JOIN events AS s ON s.event_id = start.value \
         WHERE s.room_id = ?2 AND s.event_id NOT IN (SELECT value FROM json_each(?3)) \
       UNION \
       SELECT p.event_id, p.depth FROM walk JOIN events AS s ON s.event_id = walk.event_id, \
           json_each(s.json, '$.prev_events') AS j JOIN events AS p ON p.event_id = ",
    cited!("j"),
    " WHERE p.room_id = ?2 AND p.event_id NOT IN (SELECT value FROM json_each(?3)) \
       ORDER BY 2 DESC LIMIT ?4 \
     ) SELECT ",
    event_columns!(),
    " FROM walk JOIN events AS e ON e.event_id = walk.event_id JOIN rooms AS r ON r.room_id = e.room_id \
      WHERE e.rejected IS NULL ORDER BY e.depth DESC, e.event_id"
);

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

    /// The events `from` of a room and what precedes them in the graph, the deepest first: at most `limit`, and neither
    /// the events of `until` nor what only they lead to. Rejected events are walked through and left out. Outliers count
    /// too: they precede the others, and whoever asks may find nobody else who has them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn walk_back(
        &self,
        room_id: &RoomId,
        from: &[EventId],
        until: &[EventId],
        limit: i64,
    ) -> Result<Vec<StoredEvent>, DatabaseError> {
        let ids = |ids: &[EventId]| json_list(ids.iter().map(EventId::as_str));
        let parameters = [ids(from).into(), room_id.as_str().into(), ids(until).into(), limit.into()];
        self.query(Statement::new(WALK_BACK, parameters)).await?.iter().map(stored_event).collect()
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
