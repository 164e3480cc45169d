//! Which events relate to which: the index, its pages, and the threads of a room.
//!
//! The index has a row for each event in the timeline that relates to another one, and none for others. Rows come and go in the
//! batch that gives an event its place, redacts it or takes it out of the timeline. What is read of it is bounded by the limit of the
//! page, times the types of relations that the room knows; of what relates indirectly, by [`MAX_WALK`] and [`MAX_LOOK`].

use serde_json::json;

use super::{
    Store, json_lists,
    positions::TimelinePos,
    timeline::{SeenEvent, TimelineEvent, seen_columns, seen_joins},
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId},
        relation::Relation,
    },
    platform::{DatabaseError, Row, SqlValue, Statement},
};

/// How far relations of relations are followed: `walk` and `look` have so many levels.
pub const MAX_DEPTH: i64 = 3;
/// Where fewer events relate to one, on each level, all of them are looked at for each page.
const MAX_WALK: i64 = 2_500;
/// Where there are more: of how many events of the timeline it is looked at for a page whether they are among them.
const MAX_LOOK: i64 = 1_500;

/// The ignored users of ?`user`, who never are among them.
macro_rules! ignored {
    ($user:literal) => {
        concat!(
            "ignored(user_id) AS ( SELECT j.key FROM account_data AS a CROSS JOIN json_each(a.content, '$.ignored_users') AS j \
               WHERE a.user_id = ",
            $user,
            " AND a.room_id = '' AND a.event_type = 'm.ignored_user_list' AND j.key <> ",
            $user,
            " )"
        )
    };
}
pub(super) use ignored;

/// ?1: a list of [event, type of relation, parent]. Of events in the timeline.
const RELATE: &str = "\
    INSERT INTO relations (room_id, rel_type, parent, pos, event_nid, event_type, sender) \
    SELECT ?2, value ->> 1, value ->> 2, e.pos, e.event_nid, e.event_type, e.sender \
    FROM json_each(?1) CROSS JOIN events AS e ON e.event_id = value ->> 0 \
    WHERE e.room_id = ?2 AND e.pos IS NOT NULL AND e.redacted_by IS NULL \
    ON CONFLICT (room_id, rel_type, parent, pos) DO NOTHING";

/// ?1: a list of events that no longer relate to anything; ?3: only those that are redacted.
const PART: &str = "\
    DELETE FROM relations WHERE (room_id, rel_type, parent, pos) IN ( \
      SELECT ?2, e.json ->> '$.content.\"m.relates_to\".rel_type', e.json ->> '$.content.\"m.relates_to\".event_id', e.pos \
      FROM json_each(?1) AS gone CROSS JOIN events AS e ON e.event_id = gone.value \
      WHERE e.room_id = ?2 AND (e.redacted_by IS NOT NULL OR NOT ?3))";

/// The types of relations of the room ?1: those of the specification, and a thousand others by name. ?3, where that is given.
macro_rules! kinds {
    () => {
        "named(rel_type) AS ( SELECT * FROM (SELECT k.rel_type FROM relations AS k WHERE ?3 IS NULL AND k.room_id = ?1 \
             ORDER BY k.rel_type LIMIT 1) \
           UNION ALL SELECT (SELECT k.rel_type FROM relations AS k WHERE k.room_id = ?1 AND k.rel_type > named.rel_type \
             ORDER BY k.rel_type LIMIT 1) FROM named WHERE named.rel_type IS NOT NULL LIMIT 1000 ), \
         kind(rel_type) AS MATERIALIZED ( SELECT ?3 WHERE ?3 IS NOT NULL UNION SELECT value FROM \
             json_each('[\"m.annotation\",\"m.reference\",\"m.replace\",\"m.thread\"]') WHERE ?3 IS NULL \
           UNION SELECT rel_type FROM named WHERE rel_type IS NOT NULL )"
    };
}

/// The events of `found`. ?8 user, ?9 device.
macro_rules! events_of_found {
    () => {
        concat!(
            " SELECT ",
            seen_columns!(),
            ", found.pos AS place, txn.txn_id FROM found CROSS JOIN events AS e ON e.event_nid = found.event_nid ",
            seen_joins!(),
            "LEFT JOIN client_transactions AS txn ON txn.event_id = e.event_id AND txn.user_id = ?8 AND txn.device_id = ?9"
        )
    };
}

/// Whether these relations count. ?3: the type of relations, ?4: that of events, each NULL for all. Not what users have sent whom
/// the reader ignores.
macro_rules! counts {
    ($relation:literal) => {
        concat!(
            "(?3 IS NULL OR ",
            $relation,
            ".rel_type = ?3) AND (?4 IS NULL OR ",
            $relation,
            ".event_type = ?4) AND ",
            $relation,
            ".sender NOT IN (SELECT user_id FROM ignored)"
        )
    };
}

/// A page of what relates to the event ?2 of the room ?1, of positions after ?5 up to ?6 and with it; ?7 at most. Of each type of
/// relations not more is read than that. There is one bound at either end, as of two the planner takes the one, and asks for
/// each row whether it is within the other.
macro_rules! children {
    ($order:literal, $within:literal, $end:literal) => {
        concat!(
            "WITH RECURSIVE ",
            ignored!("?8"),
            ", ",
            kinds!(),
            ", found(pos, event_nid) AS ( \
               SELECT r.pos, r.event_nid FROM kind CROSS JOIN relations AS r \
                 ON r.room_id = ?1 AND r.rel_type = kind.rel_type AND r.parent = ?2 AND r.pos ",
            $within,
            " COALESCE((SELECT x.pos FROM relations AS x WHERE x.room_id = ?1 AND x.rel_type = kind.rel_type AND x.parent = ?2 \
               AND x.pos > ?5 AND x.pos <= ?6 AND ",
            counts!("x"),
            " ORDER BY x.pos ",
            $order,
            " LIMIT 1 OFFSET ?7), ",
            $end,
            ") WHERE ",
            counts!("r"),
            " ORDER BY r.pos ",
            $order,
            " LIMIT ?7 )",
            events_of_found!(),
            " ORDER BY place ",
            $order
        )
    };
}

/// What relates to the events of $above that count; ?10 rows at most.
macro_rules! related_to_these {
    ($above:literal) => {
        concat!(
            "SELECT above.level + 1, r.pos, r.event_nid, ",
            counts!("r"),
            " FROM ",
            $above,
            " AS above CROSS JOIN events AS e ON e.event_nid = above.event_nid CROSS JOIN usual CROSS JOIN relations AS r \
               ON r.room_id = ?1 AND r.rel_type = usual.rel_type AND r.parent = e.event_id WHERE above.counts LIMIT ?10"
        )
    };
}

/// A row of no event, which says that not all was looked for, or up to where.
macro_rules! no_event {
    ($pos:literal, $where:literal) => {
        concat!(" UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, ", $pos, ", NULL ", $where)
    };
}

/// As [`children`], and what relates to that, [`MAX_DEPTH`] levels deep: all of it, wherever it stands, as an event of the page may
/// relate through one of another page. `usual`: the types by which more than the first level is looked for. Where a level has ?10
/// events or more, there is a row of no event and nothing else; no level is read where the first one has.
macro_rules! walk {
    ($order:literal) => {
        concat!(
            "WITH RECURSIVE ",
            ignored!("?8"),
            ", ",
            kinds!(),
            ", usual(rel_type) AS MATERIALIZED ( SELECT rel_type FROM kind \
               ORDER BY rel_type NOT IN ('m.annotation', 'm.reference', 'm.replace', 'm.thread'), rel_type LIMIT 20 ), \
             direct(size) AS MATERIALIZED ( SELECT count(*) FROM (SELECT 1 FROM kind CROSS JOIN relations AS r \
               ON r.room_id = ?1 AND r.rel_type = kind.rel_type AND r.parent = ?2 LIMIT ?10) ), \
             level1(level, pos, event_nid, counts) AS MATERIALIZED ( SELECT 1, r.pos, r.event_nid, ",
            counts!("r"),
            " FROM direct CROSS JOIN kind CROSS JOIN relations AS r \
               ON r.room_id = ?1 AND r.rel_type = kind.rel_type AND r.parent = ?2 WHERE direct.size < ?10 ), \
             level2(level, pos, event_nid, counts) AS MATERIALIZED ( ",
            related_to_these!("level1"),
            " ), level3(level, pos, event_nid, counts) AS MATERIALIZED ( ",
            related_to_these!("level2"),
            " ), walked(level, pos, event_nid, counts) AS MATERIALIZED ( \
               SELECT * FROM level1 UNION ALL SELECT * FROM level2 UNION ALL SELECT * FROM level3 ), \
             whole(is_whole) AS MATERIALIZED ( SELECT (SELECT size FROM direct) < ?10 \
               AND NOT EXISTS (SELECT 1 FROM walked GROUP BY level HAVING count(*) >= ?10) ), \
             found(pos, event_nid) AS ( \
               SELECT pos, event_nid FROM whole CROSS JOIN walked WHERE is_whole AND counts AND pos > ?5 AND pos <= ?6 \
               GROUP BY pos ORDER BY pos ",
            $order,
            " LIMIT ?7 )",
            events_of_found!(),
            no_event!("NULL", "FROM whole WHERE NOT is_whole"),
            " ORDER BY place ",
            $order
        )
    };
}

/// What the event in $event relates to, as $relation.
macro_rules! relation_of {
    ($relation:literal, $event:literal) => {
        concat!(
            $relation,
            ".room_id = ?1 AND ",
            $relation,
            ".rel_type = ",
            $event,
            ".json ->> '$.content.\"m.relates_to\".rel_type' AND ",
            $relation,
            ".parent = ",
            $event,
            ".json ->> '$.content.\"m.relates_to\".event_id' AND ",
            $relation,
            ".pos = ",
            $event,
            ".pos AND ",
            counts!($relation)
        )
    };
}

/// As [`walk`], the other way round: of each of the next ?10 events of the timeline it is asked whether it relates to the event.
/// Where there may be more behind them, a row of no event has the position of the last one.
macro_rules! look {
    ($order:literal, $within:literal, $end:literal) => {
        concat!(
            "WITH ",
            ignored!("?8"),
            ", last(pos) AS MATERIALIZED ( SELECT x.pos FROM timeline AS x WHERE x.room_id = ?1 AND x.pos > ?5 AND x.pos <= ?6 \
               ORDER BY x.pos ",
            $order,
            " LIMIT 1 OFFSET ?10 - 1 ), found(pos, event_nid) AS ( \
               SELECT t.pos, t.event_nid FROM timeline AS t CROSS JOIN events AS one ON one.event_nid = t.event_nid \
                 CROSS JOIN relations AS r ON ",
            relation_of!("r", "one"),
            " LEFT JOIN events AS two ON r.parent <> ?2 AND two.event_id = r.parent LEFT JOIN relations AS s ON ",
            relation_of!("s", "two"),
            " LEFT JOIN events AS three ON s.parent <> ?2 AND three.event_id = s.parent LEFT JOIN relations AS u ON ",
            relation_of!("u", "three"),
            " WHERE t.room_id = ?1 AND t.pos ",
            $within,
            " COALESCE((SELECT pos FROM last), ",
            $end,
            ") AND ?2 IN (r.parent, s.parent, u.parent) ORDER BY t.pos ",
            $order,
            " LIMIT ?7 )",
            events_of_found!(),
            no_event!("pos", "FROM last"),
            " ORDER BY place ",
            $order
        )
    };
}

const OLDER: &str = children!("DESC", "<= ?6 AND r.pos >=", "?5 + 1");
const NEWER: &str = children!("ASC", "> ?5 AND r.pos <=", "?6");
const OLDER_DEEP: &str = walk!("DESC");
const NEWER_DEEP: &str = walk!("ASC");
const OLDER_OF_MANY: &str = look!("DESC", "<= ?6 AND t.pos >=", "?5 + 1");
const NEWER_OF_MANY: &str = look!("ASC", "> ?5 AND t.pos <=", "?6");

/// The threads of the room ?1, those with the newest event first: their roots. ?2: the user, ?3: the last
/// position that counts, ?4: that up to which a thread's newest event is, ?5: whether only threads are wanted that the user takes
/// part in, ?6: how many.
const THREADS: &str = concat!(
    "WITH RECURSIVE ",
    ignored!("?2"),
    ", root(event_id) AS ( \
       SELECT * FROM (SELECT r.parent FROM relations AS r WHERE r.room_id = ?1 AND r.rel_type = 'm.thread' \
         ORDER BY r.parent LIMIT 1) \
       UNION ALL SELECT (SELECT r.parent FROM relations AS r WHERE r.room_id = ?1 AND r.rel_type = 'm.thread' \
         AND r.parent > root.event_id ORDER BY r.parent LIMIT 1) FROM root WHERE root.event_id IS NOT NULL ), \
     newest(event_id, pos) AS ( \
       SELECT root.event_id, (SELECT r.pos FROM relations AS r WHERE r.room_id = ?1 AND r.rel_type = 'm.thread' \
         AND r.parent = root.event_id AND r.pos <= ?3 AND r.sender NOT IN (SELECT user_id FROM ignored) \
         ORDER BY r.pos DESC LIMIT 1) FROM root ), \
     found(event_nid, pos) AS ( \
       SELECT e.event_nid, newest.pos FROM newest CROSS JOIN events AS e ON e.event_id = newest.event_id \
       WHERE newest.pos <= ?4 AND e.room_id = ?1 AND e.pos <= ?3 \
         AND (NOT ?5 OR e.sender = ?2 OR EXISTS (SELECT 1 FROM relations AS r WHERE r.room_id = ?1 AND r.rel_type = 'm.thread' \
           AND r.parent = newest.event_id AND r.pos <= ?3 AND r.sender = ?2)) \
       ORDER BY newest.pos DESC LIMIT ?6 ) SELECT ",
    seen_columns!(),
    ", e.pos, txn.txn_id, e.sender IN (SELECT user_id FROM ignored) AS is_ignored, found.pos AS newest \
     FROM found CROSS JOIN events AS e ON e.event_nid = found.event_nid ",
    seen_joins!(),
    "LEFT JOIN client_transactions AS txn ON txn.event_id = e.event_id AND txn.user_id = ?2 AND txn.device_id = ?7 \
     ORDER BY found.pos DESC"
);

/// ?1 the room, ?2 the parent, ?3 the user, ?4 the type of the event, ?5 the key of the annotation.
const IS_ANNOTATED: &str = "\
    SELECT r.pos FROM relations AS r CROSS JOIN events AS e ON e.event_nid = r.event_nid \
    WHERE r.room_id = ?1 AND r.rel_type = 'm.annotation' AND r.parent = ?2 AND r.sender = ?3 AND r.event_type = ?4 \
      AND e.json ->> '$.content.\"m.relates_to\".key' = ?5 LIMIT 1";

/// Statements that note what events relate to, once they have their places and are redacted.
pub(super) fn relate<'e>(room_id: &RoomId, events: impl Iterator<Item = &'e Event>) -> Vec<Statement> {
    let rows = events.filter_map(|event| {
        let Relation { rel_type, parent } = Relation::of(event)?;
        Some(json!([event.event_id().as_str(), rel_type, parent]).to_string())
    });
    let lists = json_lists(rows).into_iter();
    lists.map(|list| Statement::new(RELATE, [list.into(), room_id.as_str().into()])).collect()
}

/// Statements by which events relate to nothing any more.
pub(super) fn part<'e>(room_id: &RoomId, ids: impl Iterator<Item = &'e str>) -> Vec<Statement> {
    parting(room_id, ids, false)
}

/// As [`part`], of those events that are redacted.
pub(super) fn part_redacted<'e>(room_id: &RoomId, ids: impl Iterator<Item = &'e str>) -> Vec<Statement> {
    parting(room_id, ids, true)
}

fn parting<'e>(room_id: &RoomId, ids: impl Iterator<Item = &'e str>, only_redacted: bool) -> Vec<Statement> {
    let lists = json_lists(ids.map(|id| json!(id).to_string())).into_iter();
    lists.map(|list| Statement::new(PART, [list.into(), room_id.as_str().into(), only_redacted.into()])).collect()
}

/// Which of the events to read that relate to one.
#[derive(Debug, Clone, Copy)]
pub struct RelationsRead<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// The event.
    pub parent: &'a EventId,
    /// How they relate to it; `None` for any way.
    pub rel_type: Option<&'a str>,
    /// The events' type; `None` for all.
    pub event_type: Option<&'a str>,
    /// Events after this position,
    pub after: TimelinePos,
    /// up to this one and with it.
    pub to: TimelinePos,
    /// The newest first.
    pub backwards: bool,
    /// The most events.
    pub limit: i64,
    /// Whether events that relate to it through others count: up to [`MAX_DEPTH`].
    pub deep: bool,
    /// The reading user and device.
    pub reader: (&'a str, &'a str),
}

/// Events that relate to one.
#[derive(Debug, Clone, Default)]
pub struct Related {
    /// In the order that was asked for.
    pub events: Vec<TimelineEvent>,
    /// Where no more was looked for: there may be more behind this position.
    pub looked_to: Option<TimelinePos>,
}

impl Related {
    fn of_rows(rows: &[Row]) -> Result<Self, DatabaseError> {
        let mut related = Self::default();
        for row in rows {
            match row.optional_text(0)? {
                Some(_) => related.events.push(TimelineEvent::of_row(row)?),
                None => related.looked_to = TimelinePos::read_optional(row, SeenEvent::COLUMNS)?,
            }
        }
        Ok(related)
    }
}

/// Which threads of a room to read.
#[derive(Debug, Clone, Copy)]
pub struct ThreadsRead<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// The last position that the reader may see.
    pub last: TimelinePos,
    /// The position up to which a thread's newest event is.
    pub to: TimelinePos,
    /// Whether only those are wanted that the reader takes part in.
    pub participated: bool,
    /// The most threads.
    pub limit: i64,
    /// The reading user and device.
    pub reader: (&'a str, &'a str),
}

/// A thread of a room.
#[derive(Debug, Clone)]
pub struct ThreadRoot {
    /// The event that it begins with.
    pub root: TimelineEvent,
    /// The position of the newest event of it.
    pub newest: TimelinePos,
    /// Whether the reader ignores who has sent it.
    pub is_ignored: bool,
}

impl Store {
    /// A page of the events that relate to one.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn related(&self, read: &RelationsRead<'_>) -> Result<Related, DatabaseError> {
        let (user_id, device_id) = read.reader;
        let parameters: [SqlValue; 9] = [
            read.room_id.as_str().into(),
            read.parent.as_str().into(),
            read.rel_type.into(),
            read.event_type.into(),
            read.after.into(),
            read.to.into(),
            read.limit.into(),
            user_id.into(),
            device_id.into(),
        ];
        if !read.deep {
            let sql = if read.backwards { OLDER } else { NEWER };
            return Related::of_rows(&self.query(Statement::new(sql, parameters)).await?);
        }
        let bounded = |bound: i64| -> Vec<SqlValue> { parameters.iter().cloned().chain([bound.into()]).collect() };
        let sql = if read.backwards { OLDER_DEEP } else { NEWER_DEEP };
        let rows = self.query(Statement::new(sql, bounded(MAX_WALK))).await?;
        match rows.first() {
            Some(row) if row.optional_text(0)?.is_none() => {}
            _ => return Related::of_rows(&rows),
        }
        let sql = if read.backwards { OLDER_OF_MANY } else { NEWER_OF_MANY };
        Related::of_rows(&self.query(Statement::new(sql, bounded(MAX_LOOK))).await?)
    }

    /// A page of the threads of a room whose roots are in its timeline.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn threads(&self, read: &ThreadsRead<'_>) -> Result<Vec<ThreadRoot>, DatabaseError> {
        let (user_id, device_id) = read.reader;
        let parameters: [SqlValue; 7] = [
            read.room_id.as_str().into(),
            user_id.into(),
            read.last.into(),
            read.to.into(),
            read.participated.into(),
            read.limit.into(),
            device_id.into(),
        ];
        let rows = self.query(Statement::new(THREADS, parameters)).await?;
        const MORE: usize = SeenEvent::COLUMNS + 2;
        let thread = |row: &Row| {
            let root = TimelineEvent::of_row(row)?;
            Ok(ThreadRoot { root, is_ignored: row.integer(MORE)? != 0, newest: TimelinePos::read(row, MORE + 1)? })
        };
        rows.iter().map(thread).collect()
    }

    /// Whether a user has annotated an event in this way before, with an event of this type.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn is_annotated(
        &self,
        room_id: &RoomId,
        parent: &str,
        user_id: &str,
        (event_type, key): (&str, &str),
    ) -> Result<bool, DatabaseError> {
        let parameters = [room_id.as_str().into(), parent.into(), user_id.into(), event_type.into(), key.into()];
        Ok(!self.query(Statement::new(IS_ANNOTATED, parameters)).await?.is_empty())
    }
}
