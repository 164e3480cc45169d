//! What of a user's rooms is not read: the events behind what was counted before, and the user's own receipts.
//!
//! Nothing is kept for each event and user. What a sync counts is at most [`WINDOW`] events of a room, and mostly those that are
//! new.

use std::collections::{BTreeMap, HashMap};

use serde_json::json;

use super::{
    Answers, Store,
    ignored::{IGNORED, IgnoredUsers},
    json_list, json_lists,
    positions::{ReceiptsPos, TimelinePos},
    sync::room_id,
    timeline::{SeenEvent, TimelineEvent, root, seen_columns, seen_joins},
    written,
};
use crate::{
    matrix::{identifiers::RoomId, state_trie::NodeId},
    platform::{DatabaseError, Rows, SqlValue, Statement},
};

/// How many events of a room are counted at most, the newest.
pub const WINDOW: i64 = 100;
/// How long the contents of these may be together, in characters.
const MAX_WINDOW: i64 = 131_072;
/// How many of a user's receipts are read.
const MAX_RECEIPTS: i64 = 2_000;
/// The account data by which events are judged, besides whom the user ignores.
const PUSH_RULES: &str = "m.push_rules";

/// By thread, how many events notify and how many of them are highlighted.
pub type Counts = BTreeMap<String, (i64, i64)>;

/// What is known of a room besides its events.
#[derive(Debug, Clone, Copy)]
pub struct RoomFacts {
    /// The root of the current state.
    pub state: NodeId,
    /// How many are joined.
    pub member_count: i64,
}

/// What to count in a room from.
#[derive(Debug)]
pub struct UnreadRoom {
    /// The room.
    pub facts: RoomFacts,
    /// The newest of the user's receipts in it; [`ReceiptsPos::START`] for none.
    pub receipts_pos: ReceiptsPos,
    /// What was counted before, where the user has set no receipt since.
    pub counted: Option<Counts>,
    /// The events behind, oldest first.
    pub events: Vec<UnreadEvent>,
    /// The user's receipts: the event and the thread, which is empty where the receipt is of all.
    pub receipts: Vec<(String, String)>,
}

/// An event that may count.
#[derive(Debug)]
pub struct UnreadEvent {
    /// Its position.
    pub pos: TimelinePos,
    /// Its ID.
    pub event_id: String,
    /// Its type.
    pub event_type: String,
    /// Its state key.
    pub state_key: Option<String>,
    /// Its sender.
    pub sender: String,
    /// Its content, as JSON text; `None` where it was redacted.
    pub content: Option<String>,
    /// The root of the thread that it is in.
    pub thread: Option<String>,
}

/// What a user wants to be notified of.
#[derive(Debug, Default)]
pub struct Settings {
    /// The user's push rules, as they are kept.
    pub push_rules: Option<String>,
    /// Whom the user ignores.
    pub ignored: IgnoredUsers,
}

/// What [`Store::unread`] reads: all that unread counts are made of.
#[derive(Debug, Default)]
pub struct UnreadFound {
    /// What the user wants.
    pub settings: Settings,
    /// The rooms that the user is in.
    pub rooms: HashMap<RoomId, UnreadRoom>,
}

/// What was counted in a room.
#[derive(Debug)]
pub struct Counted {
    /// The room.
    pub room_id: RoomId,
    /// See [`UnreadRoom::receipts_pos`].
    pub receipts_pos: ReceiptsPos,
    /// Up to which position.
    pub upto: TimelinePos,
    /// What.
    pub counts: Counts,
}

/// An event of which a user may have been notified.
#[derive(Debug)]
pub struct Notified {
    /// The room.
    pub room_id: RoomId,
    /// The event.
    pub event: TimelineEvent,
    /// Whether the user has read it.
    pub is_read: bool,
}

/// The thread of `e`, beside `thread_joins`: where a relation leads to one within three steps.
macro_rules! thread {
    () => {
        "CASE 'm.thread' WHEN e.json ->> '$.content.\"m.relates_to\".rel_type' THEN e.json ->> '$.content.\"m.relates_to\".event_id' \
          WHEN p.json ->> '$.content.\"m.relates_to\".rel_type' THEN p.json ->> '$.content.\"m.relates_to\".event_id' \
          WHEN q.json ->> '$.content.\"m.relates_to\".rel_type' THEN q.json ->> '$.content.\"m.relates_to\".event_id' \
          WHEN r.json ->> '$.content.\"m.relates_to\".rel_type' THEN r.json ->> '$.content.\"m.relates_to\".event_id' END"
    };
}

/// The events that `e` relates to, as far as none of them is in a thread.
macro_rules! thread_joins {
    () => {
        " LEFT JOIN events AS p ON p.event_id = e.json ->> '$.content.\"m.relates_to\".event_id' AND p.room_id = e.room_id \
            AND e.json ->> '$.content.\"m.relates_to\".rel_type' <> 'm.thread' \
          LEFT JOIN events AS q ON q.event_id = p.json ->> '$.content.\"m.relates_to\".event_id' AND q.room_id = e.room_id \
            AND p.json ->> '$.content.\"m.relates_to\".rel_type' <> 'm.thread' \
          LEFT JOIN events AS r ON r.event_id = q.json ->> '$.content.\"m.relates_to\".event_id' AND r.room_id = e.room_id \
            AND q.json ->> '$.content.\"m.relates_to\".rel_type' <> 'm.thread' "
    };
}

/// The rooms of ?2, pairs of ID and whether they are counted anew, that ?1 is in, with what was counted in them before.
macro_rules! counted {
    () => {
        "counted(room_id, low, receipts_pos, counts, is_counted) AS ( \
           SELECT room_id, CASE WHEN is_counted THEN upto ELSE max(joined, COALESCE( \
               (SELECT max(x.pos) FROM receipts AS o CROSS JOIN events AS x ON x.event_id = o.event_id AND x.room_id = o.room_id \
                WHERE o.room_id = found.room_id AND o.user_id = ?1 AND o.thread_id = ''), joined)) END, \
             receipts_pos, counts, is_counted FROM ( \
             SELECT room_id, joined, receipts_pos, upto, counts, \
               COALESCE(NOT anew AND upto >= joined AND counted_for = receipts_pos, 0) AS is_counted FROM ( \
               SELECT m.room_id, m.pos AS joined, c.upto, c.counts, c.receipts_pos AS counted_for, asked.value ->> 1 AS anew, \
                 COALESCE((SELECT max(o.pos) FROM receipts AS o WHERE o.room_id = m.room_id AND o.user_id = m.user_id), 0) \
                   AS receipts_pos \
               FROM json_each(?2) AS asked CROSS JOIN local_memberships AS m \
                   ON m.user_id = ?1 AND m.room_id = asked.value ->> 0 AND m.membership = 'join' \
                 LEFT JOIN unread_counts AS c ON c.user_id = m.user_id AND c.room_id = m.room_id)) AS found)"
    };
}

const ROOMS: &str = concat!(
    "WITH ",
    counted!(),
    " SELECT r.room_id, r.state, r.joined, counted.receipts_pos, CASE WHEN counted.is_counted THEN counted.counts END AS counts \
     FROM counted CROSS JOIN rooms AS r ON r.room_id = counted.room_id"
);

/// ?3 the position up to which is counted, ?4 how many events of a room, ?5 how long their contents may be.
const EVENTS: &str = concat!(
    "WITH ",
    counted!(),
    ", place(room_id, pos, event_nid, bytes) AS ( \
       SELECT t.room_id, t.pos, t.event_nid, \
         SUM(length(e.json -> '$.content')) OVER (PARTITION BY t.room_id ORDER BY t.pos DESC) \
       FROM counted CROSS JOIN timeline AS t ON t.room_id = counted.room_id AND t.pos <= ?3 \
         AND t.pos > max(counted.low, COALESCE((SELECT x.pos FROM timeline AS x WHERE x.room_id = counted.room_id \
           AND x.pos <= ?3 AND x.pos > counted.low ORDER BY x.pos DESC LIMIT 1 OFFSET ?4), counted.low)) \
         CROSS JOIN events AS e ON e.event_nid = t.event_nid \
     ) SELECT place.room_id, place.pos, e.event_id, e.event_type, e.state_key, e.sender, \
       CASE WHEN e.redacted_by IS NULL THEN e.json -> '$.content' END AS content, ",
    thread!(),
    " AS thread FROM place CROSS JOIN events AS e ON e.event_nid = place.event_nid",
    thread_joins!(),
    "WHERE place.bytes <= ?5 ORDER BY place.room_id, place.pos"
);

const RECEIPTS: &str = "\
    SELECT o.room_id, o.event_id, o.thread_id \
    FROM json_each(?2) AS asked CROSS JOIN receipts AS o ON o.room_id = asked.value ->> 0 AND o.user_id = ?1 \
    ORDER BY o.pos DESC LIMIT ?3";

const SETTINGS: &str = "\
    SELECT event_type, content FROM account_data WHERE user_id = ?1 AND room_id = '' AND event_type IN (?2, ?3)";

/// ?1 user, ?2: a list of [room, receipts, position, counts].
const REMEMBER: &str = "\
    INSERT INTO unread_counts (user_id, room_id, receipts_pos, upto, counts) \
    SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?2) WHERE true \
    ON CONFLICT (user_id, room_id) DO UPDATE \
      SET receipts_pos = excluded.receipts_pos, upto = excluded.upto, counts = excluded.counts";

const FACTS: &str = "\
    SELECT r.room_id, r.state, r.joined FROM json_each(?1) AS asked CROSS JOIN rooms AS r ON r.room_id = asked.value";

/// The newest events before the position ?2 in the rooms that ?1 is in, ?3 at most. The timelines are merged: the walk stands in
/// each of them and goes on where it stands at the newest event. It ends behind the user's join, at NULL, which comes last.
const NOTIFIED: &str = concat!(
    "WITH RECURSIVE walk(room_id, pos, low) AS ( \
       SELECT m.room_id, (SELECT max(t.pos) FROM timeline AS t WHERE t.room_id = m.room_id AND t.pos > m.pos AND t.pos < ?2), m.pos \
       FROM local_memberships AS m WHERE m.user_id = ?1 AND m.membership = 'join' \
       UNION ALL \
       SELECT walk.room_id, (SELECT max(t.pos) FROM timeline AS t \
         WHERE t.room_id = walk.room_id AND t.pos > walk.low AND t.pos < walk.pos), walk.low \
       FROM walk WHERE walk.pos IS NOT NULL ORDER BY 2 DESC LIMIT ?3 \
     ) SELECT ",
    seen_columns!(),
    ", walk.pos, NULL AS txn_id, walk.room_id, EXISTS (SELECT 1 FROM receipts AS o CROSS JOIN events AS x ON x.event_id = o.event_id \
         WHERE o.room_id = e.room_id AND o.user_id = ?1 AND x.pos >= walk.pos AND o.thread_id IN ('', COALESCE(",
    thread!(),
    ", 'main'))) AS is_read \
     FROM walk CROSS JOIN timeline AS place ON place.room_id = walk.room_id AND place.pos = walk.pos \
       CROSS JOIN events AS e ON e.event_nid = place.event_nid",
    thread_joins!(),
    seen_joins!(),
    "WHERE walk.pos IS NOT NULL ORDER BY walk.pos DESC"
);

impl Store {
    /// Reads what is to be counted of rooms up to the position `to`; anew, where the flag beside a room says so. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn unread(
        &self,
        user_id: &str,
        rooms: &[(&RoomId, bool)],
        to: TimelinePos,
    ) -> Result<UnreadFound, DatabaseError> {
        let asked: Vec<_> = rooms.iter().map(|(room_id, anew)| json!([room_id.as_str(), i64::from(*anew)])).collect();
        let asked = SqlValue::from(json!(asked).to_string());
        let window: [SqlValue; 5] = [user_id.into(), asked.clone(), to.into(), WINDOW.into(), MAX_WINDOW.into()];
        let answers = self
            .batch(vec![
                ask_settings(user_id),
                Statement::new(ROOMS, [user_id.into(), asked.clone()]),
                Statement::new(EVENTS, window),
                Statement::new(RECEIPTS, [user_id.into(), asked, MAX_RECEIPTS.into()]),
            ])
            .await?;
        let mut answers = Answers::new(answers);
        let mut next = || answers.rows();
        let mut found = UnreadFound { settings: settings(user_id, &next()?)?, rooms: HashMap::new() };
        for row in next()? {
            let counts = row.optional_text(4)?.map(|text| written(text, serde_json::from_str)).transpose()?;
            let room = UnreadRoom {
                facts: facts(root(&row, 1)?, row.integer(2)?)?,
                receipts_pos: ReceiptsPos::read(&row, 3)?,
                counted: counts,
                events: Vec::new(),
                receipts: Vec::new(),
            };
            found.rooms.insert(room_id(row.text(0)?)?, room);
        }
        for row in next()? {
            let Some(room) = found.rooms.get_mut(&room_id(row.text(0)?)?) else { continue };
            room.events.push(UnreadEvent {
                pos: TimelinePos::read(&row, 1)?,
                event_id: row.text(2)?.to_owned(),
                event_type: row.text(3)?.to_owned(),
                state_key: row.optional_text(4)?.map(str::to_owned),
                sender: row.text(5)?.to_owned(),
                content: row.optional_text(6)?.map(str::to_owned),
                // Whoever sends an event may name anything there.
                thread: row.optional_text(7).ok().flatten().map(str::to_owned),
            });
        }
        for row in next()? {
            if let Some(room) = found.rooms.get_mut(&room_id(row.text(0)?)?) {
                room.receipts.push((row.text(1)?.to_owned(), row.text(2)?.to_owned()));
            }
        }
        Ok(found)
    }

    /// Remembers what was counted.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn remember_counts(&self, user_id: &str, counted: &[Counted]) -> Result<(), DatabaseError> {
        let rows = counted.iter().map(|Counted { room_id, receipts_pos, upto, counts }| {
            json!([room_id.as_str(), receipts_pos, upto, json!(counts).to_string()]).to_string()
        });
        let statements: Vec<Statement> =
            json_lists(rows).into_iter().map(|list| Statement::new(REMEMBER, [user_id.into(), list.into()])).collect();
        if statements.is_empty() {
            return Ok(());
        }
        self.batch(statements).await.map(drop)
    }

    /// The newest events before a position in the rooms that a user is in. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn notified(
        &self,
        user_id: &str,
        before: TimelinePos,
        limit: i64,
    ) -> Result<Vec<Notified>, DatabaseError> {
        let rows = self.query(Statement::new(NOTIFIED, [user_id.into(), before.into(), limit.into()])).await?;
        rows.iter()
            .map(|row| {
                let room_id = room_id(row.text(SeenEvent::COLUMNS + 2)?)?;
                let is_read = row.integer(SeenEvent::COLUMNS + 3)? != 0;
                Ok(Notified { room_id, event: TimelineEvent::of_row(row)?, is_read })
            })
            .collect()
    }

    /// What a user wants to be notified of, and what is known of rooms. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn room_facts(
        &self,
        user_id: &str,
        rooms: impl IntoIterator<Item = &RoomId>,
    ) -> Result<(Settings, HashMap<RoomId, RoomFacts>), DatabaseError> {
        let rooms = json_list(rooms.into_iter().map(RoomId::as_str));
        let answers = self.batch(vec![ask_settings(user_id), Statement::new(FACTS, [rooms.into()])]).await?;
        let mut answers = Answers::new(answers);
        let settings = settings(user_id, &answers.rows()?)?;
        let found = answers.rows()?;
        let found = found.iter().map(|row| Ok((room_id(row.text(0)?)?, facts(root(row, 1)?, row.integer(2)?)?)));
        Ok((settings, found.collect::<Result<_, DatabaseError>>()?))
    }
}

fn ask_settings(user_id: &str) -> Statement {
    Statement::new(SETTINGS, [user_id.into(), PUSH_RULES.into(), IGNORED.into()])
}

fn settings(user_id: &str, rows: &Rows) -> Result<Settings, DatabaseError> {
    let mut settings = Settings::default();
    for row in rows {
        match row.text(0)? {
            IGNORED => settings.ignored = IgnoredUsers::of(user_id, row.text(1)?)?,
            _ => settings.push_rules = Some(row.text(1)?.to_owned()),
        }
    }
    Ok(settings)
}

fn facts(state: Option<NodeId>, member_count: i64) -> Result<RoomFacts, DatabaseError> {
    let state = state.ok_or_else(|| DatabaseError::Shape("a room without state".to_owned()))?;
    Ok(RoomFacts { state, member_count })
}
