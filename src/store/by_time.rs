//! Events by when they were sent. There is no index of that, which would be one more row for each event: the timeline is in
//! the order of time but for what came late, and is searched like a dictionary.

use std::collections::BTreeSet;

use super::{
    Answers, Store, json_list,
    positions::TimelinePos,
    timeline::{SeenEvent, TimelineEvent, seen_columns, seen_joins},
};
use crate::{
    matrix::identifiers::{RoomId, ServerName},
    platform::{DatabaseError, SqlValue, Statement},
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

/// Where the time ?2 is in the timeline of the room ?1. Halves the range of positions until one is left. Of the five events from the
/// middle on, most decide: anybody may send an event that says it is of another time. Each step is two rows, one that looks and one
/// that goes.
macro_rules! with_moment {
    () => {
        "WITH RECURSIVE search(low, high, is_early) AS ( \
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
         ), moment(pos, is_newest) AS MATERIALIZED ( \
           SELECT t.pos, e.origin_server_ts < ?2 FROM search \
             CROSS JOIN timeline AS t ON t.room_id = ?1 AND t.pos = (SELECT n.pos FROM timeline AS n \
               WHERE n.room_id = ?1 AND n.pos >= search.low ORDER BY n.pos LIMIT 1) \
             CROSS JOIN events AS e ON e.event_nid = t.event_nid WHERE search.low >= search.high)"
    };
}

/// ?1 the room, ?2 the time.
const MOMENT: &str = concat!(with_moment!(), " SELECT pos, is_newest FROM moment");

/// ?1 the room, ?2 the time, ?3 whether forwards, ?4 the last position. It searches once more: that is less than another round trip.
const AROUND: &str = concat!(
    with_moment!(),
    ", around(pos, event_nid) AS ( \
       SELECT * FROM (SELECT t.pos, t.event_nid FROM timeline AS t \
         WHERE t.room_id = ?1 AND t.pos < (SELECT pos FROM moment) AND t.pos <= ?4 ORDER BY t.pos DESC LIMIT 50) \
       UNION ALL \
       SELECT * FROM (SELECT t.pos, t.event_nid FROM timeline AS t \
         WHERE t.room_id = ?1 AND t.pos >= (SELECT pos FROM moment) AND t.pos <= ?4 ORDER BY t.pos LIMIT 50) \
     ) SELECT ",
    seen_columns!(),
    ", around.pos, NULL AS txn_id FROM around CROSS JOIN events AS e ON e.event_nid = around.event_nid ",
    seen_joins!(),
    " WHERE CASE WHEN ?3 THEN e.origin_server_ts >= ?2 ELSE e.origin_server_ts <= ?2 END \
      ORDER BY abs(e.origin_server_ts - ?2), CASE WHEN ?3 THEN around.pos ELSE -around.pos END LIMIT 20"
);

/// Those of the next events of a timeline that tell what a server may see of all of them. What that is changes with the visibility, and
/// as the server's users come and go: the events that do so, what the server's users have sent, and of those in between the first of
/// each kind, as erased users' are seen by another rule, and none whose state is not known. The nearest in time come first, each
/// with the position up to where it was looked.
///
/// ?1 the room, ?2 the time, ?3 the position at which to begin, ?4 the server, ?5 the erased users, a JSON list, ?6 how many events are
/// looked at, and ?7 how many are read.
macro_rules! turns {
    ($on:literal, $order:literal, $first:literal, $last:literal) => {
        concat!(
            "WITH looked_at(pos, event_nid) AS ( \
               SELECT t.pos, t.event_nid FROM timeline AS t WHERE t.room_id = ?1 AND t.pos ",
            $on,
            " ?3 ORDER BY t.pos ",
            $order,
            " LIMIT ?6 \
             ), marked(pos, event_nid, is_in_time, kind, is_turn) AS ( \
               SELECT looked_at.pos, e.event_nid, e.origin_server_ts ",
            $on,
            " ?2, (e.sender IN (SELECT value FROM json_each(?5))) * 2 + (e.state_before IS NULL), \
                 e.event_type = 'm.room.history_visibility' OR substr(e.sender, instr(e.sender, ':') + 1) = ?4 \
                 OR (e.event_type = 'm.room.member' AND substr(e.state_key, instr(e.state_key, ':') + 1) = ?4) \
               FROM looked_at CROSS JOIN events AS e ON e.event_nid = looked_at.event_nid \
             ), parted(pos, event_nid, is_in_time, kind, is_turn, part) AS ( \
               SELECT pos, event_nid, is_in_time, kind, is_turn, SUM(is_turn) OVER (ORDER BY pos) FROM marked \
             ), turn(pos, event_nid) AS ( \
               SELECT ",
            $first,
            "(pos), event_nid FROM parted WHERE is_in_time GROUP BY part, is_turn, kind ORDER BY 1 ",
            $order,
            " LIMIT ?7 \
             ) SELECT ",
            seen_columns!(),
            ", turn.pos, NULL AS txn_id, CASE WHEN (SELECT COUNT(*) FROM turn) < ?7 THEN (SELECT ",
            $last,
            "(pos) FROM looked_at) ELSE (SELECT ",
            $last,
            "(pos) FROM turn) END AS upto \
              FROM turn CROSS JOIN events AS e ON e.event_nid = turn.event_nid ",
            seen_joins!(),
            " ORDER BY abs(e.origin_server_ts - ?2), turn.pos ",
            $order
        )
    };
}

const TURNS_AFTER: &str = turns!(">=", "", "MIN", "MAX");
const TURNS_BEFORE: &str = turns!("<=", "DESC", "MAX", "MIN");

/// How many events of a timeline are looked at, and how many are read, at once.
const AT_ONCE: i64 = 2_000;
const MAX_TURNS: i64 = 100;

impl Store {
    /// Where `ts` is in the room's timeline, and the events around that are in this direction of it, up to the position `last`, the
    /// nearest first; `None` for an empty timeline. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn nearest(
        &self,
        room_id: &RoomId,
        ts: i64,
        direction: Direction,
        last: TimelinePos,
    ) -> Result<Option<(Moment, Vec<TimelineEvent>)>, DatabaseError> {
        let (room, forwards) = (room_id.as_str(), direction == Direction::Forwards);
        let moment = Statement::new(MOMENT, [room.into(), ts.into()]);
        let around = Statement::new(AROUND, [room.into(), ts.into(), forwards.into(), last.into()]);
        let mut answers = Answers::new(self.batch(vec![moment, around]).await?);
        let (found, events) = (answers.rows()?, answers.rows()?);
        let Some(row) = found.first() else { return Ok(None) };
        let moment = Moment { pos: TimelinePos::read(row, 0)?, is_newest: row.integer(1)? != 0 };
        Ok(Some((moment, events.iter().map(TimelineEvent::of_row).collect::<Result<_, _>>()?)))
    }

    /// Of the next events from `pos` on in this direction, and in that of `ts`, those that tell which of them `server` may see, the nearest
    /// first, and where to go on; `None` where there are no more.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn turns(
        &self,
        room_id: &RoomId,
        (pos, ts, direction): (TimelinePos, i64, Direction),
        server: &ServerName,
        erased: &BTreeSet<String>,
    ) -> Result<Option<(Vec<TimelineEvent>, TimelinePos)>, DatabaseError> {
        let sql = match direction {
            Direction::Forwards => TURNS_AFTER,
            Direction::Backwards => TURNS_BEFORE,
        };
        let erased = json_list(erased.iter().map(String::as_str));
        let of: [SqlValue; 5] = [room_id.as_str().into(), ts.into(), pos.into(), server.as_str().into(), erased.into()];
        let parameters: Vec<SqlValue> = of.into_iter().chain([AT_ONCE.into(), MAX_TURNS.into()]).collect();
        let rows = self.query(Statement::new(sql, parameters)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let upto = TimelinePos::read(row, SeenEvent::COLUMNS + 2)?;
        let next = match direction {
            Direction::Forwards => upto.after(),
            Direction::Backwards => upto.before(),
        };
        Ok(Some((rows.iter().map(TimelineEvent::of_row).collect::<Result<_, _>>()?, next)))
    }
}
