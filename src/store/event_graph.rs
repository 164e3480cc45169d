//! Where a room's timeline lacks history.

use std::collections::HashSet;

use super::{Store, event_id, events::cited, json_list, positions::TimelinePos};
use crate::{
    matrix::{
        identifiers::{EventId, RoomId},
        json::MAX_INTEGER,
    },
    platform::{DatabaseError, Rows, Statement},
};

/// The gaps `g` that history has closed meanwhile. What came late, and was soft-failed by what the room is now, closes none from before
/// we came into it: there it has a place.
macro_rules! closed {
    () => {
        "(EXISTS (SELECT 1 FROM events AS held WHERE held.event_id = g.event_id AND NOT held.outlier \
             AND (NOT held.soft_failed OR g.pos > (SELECT r.joined_pos FROM rooms AS r WHERE r.room_id = g.room_id))) \
         OR EXISTS (SELECT 1 FROM rejected_events AS x WHERE x.event_id = g.event_id))"
    };
}
pub(super) use closed;

/// The most events to walk back through from one that cites rejected or soft-failed events.
pub const MAX_WALK: usize = 200;

/// The most events at the newer end of a gap that are told: what one request asks for.
pub const MAX_LACKING: usize = 20;

/// The most events to walk back through to find what others are built upon.
pub const MAX_BUILT: i64 = 2_000;

/// The events ?1, a JSON list, and those that they name as previous ones through rejected and soft-failed events of the room ?3; ?2 at
/// most.
const BEHIND: &str = concat!(
    "WITH RECURSIVE behind(event_id) AS ( SELECT value FROM json_each(?1) UNION SELECT ",
    cited!("j"),
    " FROM behind CROSS JOIN json_each(COALESCE( \
         (SELECT x.graph FROM rejected_events AS x WHERE x.event_id = behind.event_id AND x.room_id = ?3), \
         (SELECT s.json FROM events AS s WHERE s.event_id = behind.event_id AND s.room_id = ?3 AND s.soft_failed)), '$.prev_events') AS j \
       LIMIT ?2 ) SELECT event_id FROM behind"
);

/// Those of the events ?5 that the events ?1, both JSON lists, lead back to in the room ?2, by a way on which ?4 events are at most, and
/// none above these of a depth of ?3 or less.
const BUILT_UPON: &str = concat!(
    "WITH RECURSIVE back(event_id) AS ( SELECT ",
    cited!("j"),
    " FROM json_each(?1) AS w CROSS JOIN events AS e ON e.event_id = w.value CROSS JOIN json_each(e.json, '$.prev_events') AS j \
       WHERE e.room_id = ?2 UNION SELECT ",
    cited!("j"),
    " FROM back CROSS JOIN events AS e ON e.event_id = back.event_id CROSS JOIN json_each(e.json, '$.prev_events') AS j \
       WHERE e.room_id = ?2 AND e.depth > ?3 LIMIT ?4 ) \
     SELECT event_id FROM back WHERE event_id IN (SELECT value FROM json_each(?5))"
);

/// ?1: the room, ?2 and ?3: the positions (after, up to and with), ?4: now, ?5: the most events, which are those that were asked for in
/// vain the least often. What has a name that no server answers to cannot be asked for.
/// Those that were passed over and are not due have places kept for them below the same position.
const NEWEST_GAP: &str = concat!(
    "WITH newest AS MATERIALIZED ( SELECT g.pos, g.event_id, g.attempts, g.passed, g.asked \
       FROM gaps AS g INDEXED BY gaps_by_asked WHERE g.room_id = ?1 AND g.pos > ?2 AND g.pos <= ?3 AND g.retry_at <= ?4 \
         AND length(CAST(g.event_id AS BLOB)) <= 255 AND NOT ",
    closed!(),
    " ORDER BY g.pos DESC, g.asked, g.event_id LIMIT ?5 ) \
     SELECT n.pos, n.event_id, n.attempts, n.passed, \
       (SELECT t.pos FROM timeline AS t WHERE t.room_id = ?1 AND t.pos < n.pos ORDER BY t.pos DESC LIMIT 1) AS below, \
       (SELECT count(*) FROM gaps AS w WHERE w.room_id = ?1 AND w.pos = n.pos AND w.retry_at > ?4) AS reserved, \
       EXISTS (SELECT 1 FROM timeline AS t CROSS JOIN events AS e ON e.event_nid = t.event_nid \
         WHERE t.room_id = ?1 AND t.pos = n.pos AND e.event_type = 'm.room.create') AS at_create, \
       n.pos <= (SELECT r.joined_pos FROM rooms AS r WHERE r.room_id = ?1) AS before_join, n.asked \
     FROM newest AS n ORDER BY n.pos DESC, n.asked, n.event_id"
);

/// Events that were passed over and are due are not asked for again before ?5.
const DEFER: &str = "UPDATE gaps SET retry_at = ?5 \
    WHERE room_id = ?1 AND pos > ?2 AND pos <= ?3 AND attempts > 0 AND retry_at <= ?4";

/// The events ?3, a JSON list, were asked for in vain.
const ASKED: &str = "UPDATE gaps SET asked = asked + 1 \
    WHERE room_id = ?1 AND pos = ?2 AND event_id IN (SELECT value FROM json_each(?3)) AND attempts = 0";

/// Those of the events ?2, a JSON list, that accepted redactions of the room ?1 name.
const NAMED_BY_REDACTIONS: &str = "\
    SELECT DISTINCT r.redacts FROM json_each(?2) AS wanted CROSS JOIN redactions AS r ON r.redacts = wanted.value \
    WHERE r.room_id = ?1";

/// Where the timeline lacks history.
#[derive(Debug, Clone)]
pub struct Gap {
    /// The position of the event after it.
    pub pos: TimelinePos,
    /// The position of the event before it, if any is held.
    pub below: Option<TimelinePos>,
    /// How many positions just before it are kept for events that were passed over.
    pub reserved: i64,
    /// Whether the event after it is the one that created the room: nothing that counts was before that.
    pub at_create: bool,
    /// Whether it is before the join by which we came into the room.
    pub before_join: bool,
    /// The events at its newer end, which the events after it cite; [`MAX_LACKING`] at most,
    pub missing: Vec<Lack>,
    /// and whether there are more.
    pub has_more: bool,
}

/// An event that is lacking in the timeline.
#[derive(Debug, Clone)]
pub struct Lack {
    /// The event.
    pub event_id: EventId,
    /// How often it was passed over: the history behind it is known then. 0 where it is not.
    pub attempts: i64,
    /// How many events in a row were passed over on the way to it.
    pub passed: i64,
    /// How often it was asked for in vain.
    pub asked: i64,
}

impl Gap {
    /// Whether history is not known behind it.
    pub fn is_open(&self) -> bool {
        self.missing.iter().any(|lack| lack.attempts == 0)
    }

    /// Whether it lacks an event that was not asked for with `tried`, the same gap before, nor in vain earlier.
    pub fn has_more_than(&self, tried: &Self) -> bool {
        let is_new = |lack: &Lack| lack.attempts == 0 && lack.asked == 0;
        let was_tried = |lack: &Lack| tried.missing.iter().any(|one| one.event_id == lack.event_id);
        self.missing.iter().any(|lack| is_new(lack) && !was_tried(lack))
    }

    /// The IDs of the events at its newer end.
    pub fn ids(&self) -> Vec<EventId> {
        self.missing.iter().map(|lack| lack.event_id.clone()).collect()
    }
}

impl Store {
    /// The events `ids` and those behind them, through rejected and soft-failed ones of the room; [`MAX_WALK`] at most.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn behind(&self, room_id: &RoomId, ids: &[EventId]) -> Result<Vec<EventId>, DatabaseError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let limit = i64::try_from(MAX_WALK).unwrap_or(i64::MAX);
        let parameters = [json_list(ids.iter().map(EventId::as_str)).into(), limit.into(), room_id.as_str().into()];
        let rows = self.query(Statement::new(BEHIND, parameters)).await?;
        rows.iter().map(|row| event_id(row, 0)).collect()
    }

    /// Those of `events`, none of less than this `depth`, that the events `above` are built upon, as far as [`MAX_BUILT`] events show it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn built_upon(
        &self,
        room_id: &RoomId,
        above: &[EventId],
        (events, depth): (&[EventId], i64),
    ) -> Result<HashSet<String>, DatabaseError> {
        let list = |ids: &[EventId]| json_list(ids.iter().map(EventId::as_str)).into();
        let depth = depth.min(MAX_INTEGER).into();
        let parameters = [list(above), room_id.as_str().into(), depth, MAX_BUILT.into(), list(events)];
        let rows = self.query(Statement::new(BUILT_UPON, parameters)).await?;
        rows.iter().map(|row| row.text(0).map(str::to_owned)).collect()
    }

    /// The newest gap in a room's timeline that ends at a position in (`after`, `to`], and for which there is to be asked `now`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn newest_gap(
        &self,
        room_id: &RoomId,
        (after, to): (TimelinePos, TimelinePos),
        now: i64,
    ) -> Result<Option<Gap>, DatabaseError> {
        gap(&self.query(newest_gap_statement(room_id, (after, to), now)).await?)
    }

    /// Notes that nobody could be asked `now` for events at the gap that were passed over; they are asked for again `later`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn defer_passed(&self, room_id: &RoomId, gap: &Gap, now: i64, later: i64) -> Result<(), DatabaseError> {
        let parameters = [room_id.as_str().into(), gap.pos.before().into(), gap.pos.into(), now.into(), later.into()];
        self.query(Statement::new(DEFER, parameters)).await.map(drop)
    }

    /// Notes that servers were asked for what is lacking at the gap, and gave nothing of it: next time other events come first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn asked_in_vain(&self, room_id: &RoomId, gap: &Gap) -> Result<(), DatabaseError> {
        let ids = json_list(gap.missing.iter().map(|lack| lack.event_id.as_str()));
        self.query(Statement::new(ASKED, [room_id.as_str().into(), gap.pos.into(), ids.into()])).await.map(drop)
    }

    /// Those of `ids` that accepted redactions of the room name.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn named_by_redactions(
        &self,
        room_id: &RoomId,
        ids: &[EventId],
    ) -> Result<HashSet<String>, DatabaseError> {
        let ids = json_list(ids.iter().map(EventId::as_str));
        let rows = self.query(Statement::new(NAMED_BY_REDACTIONS, [room_id.as_str().into(), ids.into()])).await?;
        rows.iter().map(|row| row.text(0).map(str::to_owned)).collect()
    }
}

pub(super) fn newest_gap_statement(room_id: &RoomId, (after, to): (TimelinePos, TimelinePos), now: i64) -> Statement {
    let most = i64::try_from(MAX_LACKING + 1).unwrap_or(i64::MAX);
    Statement::new(NEWEST_GAP, [room_id.as_str().into(), after.into(), to.into(), now.into(), most.into()])
}

/// The gap in rows of [`newest_gap_statement`].
pub(super) fn gap(rows: &Rows) -> Result<Option<Gap>, DatabaseError> {
    let mut gap: Option<Gap> = None;
    for row in rows {
        let pos = TimelinePos::read(row, 0)?;
        let Ok(event_id) = EventId::parse(row.text(1)?) else { continue };
        let gap = match &mut gap {
            Some(gap) => gap,
            None => gap.insert(Gap {
                pos,
                below: TimelinePos::read_optional(row, 4)?,
                reserved: row.integer(5)?,
                at_create: row.integer(6)? != 0,
                before_join: row.integer(7)? != 0,
                missing: Vec::new(),
                has_more: false,
            }),
        };
        if gap.pos == pos && gap.missing.len() == MAX_LACKING {
            gap.has_more = true;
        } else if gap.pos == pos {
            let (attempts, passed, asked) = (row.integer(2)?, row.integer(3)?, row.integer(8)?);
            gap.missing.push(Lack { event_id, attempts, passed, asked });
        }
    }
    Ok(gap)
}
