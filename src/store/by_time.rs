//! Events by when they were sent. There is no index of that, which would be one more row for each event: the timeline is in
//! the order of time but for what came late, and is searched like a dictionary.

use super::{
    Store,
    positions::TimelinePos,
    timeline::{TimelineEvent, seen_columns, seen_joins},
};
use crate::{
    matrix::identifiers::RoomId,
    platform::{DatabaseError, Row, Statement},
};

/// Which way to look from a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// For what was sent then or later.
    Forwards,
    /// For what was sent then or earlier.
    Backwards,
}

/// Where a time is in a room's timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The position of the first event after it, as far as most events around it tell; or of the newest event.
    pub pos: TimelinePos,
    /// Whether all of the timeline was before it.
    pub is_newest: bool,
}

/// ?1 the room, ?2 the time. Halves the range of positions until one is left. Of the five events from the middle on, most
/// decide: anybody may send an event that says it is of another time. Each step is two rows, one that looks and one that goes.
const MOMENT: &str = "\
    WITH RECURSIVE search(low, high, is_early) AS ( \
      SELECT (SELECT t.pos FROM timeline AS t WHERE t.room_id = ?1 ORDER BY t.pos LIMIT 1), \
        (SELECT t.pos FROM timeline AS t WHERE t.room_id = ?1 ORDER BY t.pos DESC LIMIT 1), NULL \
      UNION ALL \
      SELECT CASE WHEN is_early THEN low + (high - low) / 2 + 1 ELSE low END, \
        CASE WHEN is_early = 0 THEN low + (high - low) / 2 ELSE high END, \
        CASE WHEN is_early IS NULL THEN ( \
          SELECT SUM(sample.ts < ?2) * 2 > COUNT(*) FROM ( \
            SELECT e.origin_server_ts AS ts FROM timeline AS t CROSS JOIN events AS e ON e.event_nid = t.event_nid \
            WHERE t.room_id = ?1 AND t.pos >= search.low + (search.high - search.low) / 2 ORDER BY t.pos LIMIT 5 \
          ) AS sample) END \
      FROM search WHERE low < high \
    ) SELECT t.pos, e.origin_server_ts < ?2 FROM search \
      CROSS JOIN timeline AS t ON t.room_id = ?1 AND t.pos >= search.low \
      CROSS JOIN events AS e ON e.event_nid = t.event_nid WHERE search.low >= search.high ORDER BY t.pos LIMIT 1";

/// ?1 the room, ?2 the time, ?3 the position around which to look, ?4 whether forwards, ?5 the last position.
const AROUND: &str = concat!(
    "WITH around(pos, event_nid) AS ( \
       SELECT * FROM (SELECT t.pos, t.event_nid FROM timeline AS t WHERE t.room_id = ?1 AND t.pos < ?3 AND t.pos <= ?5 \
         ORDER BY t.pos DESC LIMIT 50) \
       UNION ALL \
       SELECT * FROM (SELECT t.pos, t.event_nid FROM timeline AS t WHERE t.room_id = ?1 AND t.pos >= ?3 AND t.pos <= ?5 \
         ORDER BY t.pos LIMIT 50) \
     ) SELECT ",
    seen_columns!(),
    ", around.pos, NULL AS txn_id FROM around CROSS JOIN events AS e ON e.event_nid = around.event_nid ",
    seen_joins!(),
    " WHERE CASE WHEN ?4 THEN e.origin_server_ts >= ?2 ELSE e.origin_server_ts <= ?2 END \
      ORDER BY abs(e.origin_server_ts - ?2), CASE WHEN ?4 THEN around.pos ELSE -around.pos END LIMIT 20"
);

impl Store {
    /// Where `ts` is in the room's timeline; `None` for an empty one.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn moment(&self, room_id: &RoomId, ts: i64) -> Result<Option<Moment>, DatabaseError> {
        let rows = self.query(Statement::new(MOMENT, [room_id.as_str().into(), ts.into()])).await?;
        let moment = |row: &Row| Ok(Moment { pos: TimelinePos::read(row, 0)?, is_newest: row.integer(1)? != 0 });
        rows.first().map(moment).transpose()
    }

    /// The events around a moment that are in this direction of `ts`, up to the position `last`, the nearest first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn around(
        &self,
        room_id: &RoomId,
        moment: Moment,
        ts: i64,
        direction: Direction,
        last: TimelinePos,
    ) -> Result<Vec<TimelineEvent>, DatabaseError> {
        let forwards = direction == Direction::Forwards;
        let parameters = [room_id.as_str().into(), ts.into(), moment.pos.into(), forwards.into(), last.into()];
        self.query(Statement::new(AROUND, parameters)).await?.iter().map(TimelineEvent::of_row).collect()
    }
}
