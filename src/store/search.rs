//! Searching what users have said: a bounded look through the timelines of their rooms, the newest first.
//!
//! There is no index of words. FTS5 would write three or four rows more for each message (its content's size, its part of the
//! index, and the segments that merging writes again), where a message PDU is three rows in all, and `wrangler d1 export` refuses
//! databases with virtual tables, which is how operators move one. A look reads two rows for each of some
//! 10,000 events (60 ms of SQLite) and nothing while nobody searches; where there is more, the next page goes on behind it.

use serde_json::json;

use super::{
    Store,
    ignored::is_ignored,
    memberships::stored,
    positions::TimelinePos,
    relations::ignored,
    timeline::{TimelineEvent, root, seen_columns, seen_joins},
};
use crate::{
    matrix::{identifiers::RoomId, state_content::Membership, state_trie::NodeId},
    platform::{DatabaseError, SqlValue, Statement},
};

/// How many of a user's rooms are searched, those with the newest events.
const MAX_ROOMS: i64 = 1_000;
/// How many events a look reads, as far as rooms are alike.
const MAX_LOOK: i64 = 10_000;
/// How many of them it finds.
pub const MAX_FOUND: i64 = 200;

/// A room that a user is in, or was.
#[derive(Debug, Clone)]
pub struct OwnRoom {
    /// The room.
    pub room_id: RoomId,
    /// Whether they are in it now.
    pub joined: bool,
    /// Else the position up to which they were.
    pub joined_until: Option<TimelinePos>,
    /// The state now, or when they left.
    pub state: NodeId,
}

/// What to look for.
#[derive(Debug, Clone)]
pub struct Look<'a> {
    /// The rooms, each with the last position that counts.
    pub rooms: &'a [(RoomId, TimelinePos)],
    /// The position from which on, back.
    pub from: TimelinePos,
    /// The types of events.
    pub types: &'a [&'static str],
    /// Three ways to write a text that the events have, in lower case as far as ASCII goes.
    pub texts: &'a [String; 3],
    /// The reading user and device.
    pub reader: (&'a str, &'a str),
}

/// What was found.
#[derive(Debug)]
pub struct Looked {
    /// The events, the newest first.
    pub events: Vec<TimelineEvent>,
    /// The position down to which was looked; [`TimelinePos::OLDEST`] where there is no more.
    pub down_to: TimelinePos,
}

/// ?1: the user, ?2: how many rooms. With the newest position there is.
const OWN_ROOMS: &str = "\
    SELECT m.room_id, m.membership, m.joined_until, r.state, (SELECT s.state FROM room_states AS s WHERE s.room_id = m.room_id \
      AND s.pos <= m.joined_until ORDER BY s.pos DESC LIMIT 1) AS state_when_left, p.position \
    FROM streams AS p CROSS JOIN local_memberships AS m CROSS JOIN rooms AS r ON r.room_id = m.room_id \
    WHERE p.name = 'events' AND m.user_id = ?1 AND m.forgotten_ts IS NULL \
      AND (m.membership = 'join' OR m.membership IN ('leave', 'ban') AND m.joined_until IS NOT NULL) \
    ORDER BY r.latest_pos DESC LIMIT ?2";

/// `bound`: down to where events are read, so that it is not more than ?3 and one of any room. ?1: a list of [room, last position],
/// ?2: from where on.
macro_rules! bound {
    () => {
        "room(room_id, last) AS ( SELECT value ->> 0, MIN(value ->> 1, ?2) FROM json_each(?1) ), \
         bound(low) AS ( SELECT MAX(COALESCE((SELECT t.pos FROM timeline AS t WHERE t.room_id = room.room_id \
           AND t.pos <= room.last ORDER BY t.pos DESC LIMIT 1 OFFSET ?3), -9007199254740991)) FROM room )"
    };
}

const BOUND: &str = concat!("WITH ", bound!(), " SELECT low FROM bound");

/// ?4: a list of types, ?5 to ?7: texts of which one is there, ?8: how many, ?9 user, ?10 device. Not what ignored users
/// have sent.
const LOOK: &str = concat!(
    "WITH ",
    bound!(),
    ", ",
    ignored!("?9"),
    ", found(event_nid, pos) AS ( \
       SELECT t.event_nid, t.pos FROM bound CROSS JOIN room \
         CROSS JOIN timeline AS t ON t.room_id = room.room_id AND t.pos > bound.low AND t.pos <= room.last \
         CROSS JOIN events AS e ON e.event_nid = t.event_nid \
       WHERE e.event_type IN (SELECT value FROM json_each(?4)) AND e.redacted_by IS NULL \
         AND e.sender NOT IN (SELECT user_id FROM ignored) AND (e.event_type = 'm.room.topic' \
         OR instr(lower(e.json ->> CASE e.event_type WHEN 'm.room.name' THEN '$.content.name' ELSE '$.content.body' END), ?5) \
         OR instr(lower(e.json ->> CASE e.event_type WHEN 'm.room.name' THEN '$.content.name' ELSE '$.content.body' END), ?6) \
         OR instr(lower(e.json ->> CASE e.event_type WHEN 'm.room.name' THEN '$.content.name' ELSE '$.content.body' END), ?7)) \
       ORDER BY t.pos DESC LIMIT ?8 ) SELECT ",
    seen_columns!(),
    ", found.pos, txn.txn_id FROM found CROSS JOIN events AS e ON e.event_nid = found.event_nid ",
    seen_joins!(),
    "LEFT JOIN client_transactions AS txn ON txn.event_id = e.event_id AND txn.user_id = ?9 AND txn.device_id = ?10 \
     ORDER BY found.pos DESC"
);

/// The events around one. ?1: the room, ?2: the position, ?3: how many before it, ?4: how many after it,
/// ?5: the user, ?6: the last position. Not what is hidden from the user.
const AROUND: &str = concat!(
    "WITH found(event_nid, pos) AS ( \
       SELECT * FROM (SELECT t.event_nid, t.pos FROM timeline AS t CROSS JOIN events AS e ON e.event_nid = t.event_nid \
         WHERE t.room_id = ?1 AND t.pos < ?2 AND NOT ",
    is_ignored!(),
    " ORDER BY t.pos DESC LIMIT ?3) \
       UNION ALL SELECT * FROM (SELECT t.event_nid, t.pos FROM timeline AS t CROSS JOIN events AS e ON e.event_nid = t.event_nid \
         WHERE t.room_id = ?1 AND t.pos > ?2 AND t.pos <= ?6 AND NOT ",
    is_ignored!(),
    " ORDER BY t.pos LIMIT ?4) ) SELECT ",
    seen_columns!(),
    ", found.pos, NULL AS txn_id FROM found CROSS JOIN events AS e ON e.event_nid = found.event_nid ",
    seen_joins!(),
    "ORDER BY found.pos"
);

impl Store {
    /// The rooms of a user, and the newest position there is.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn own_rooms(&self, user_id: &str) -> Result<(Vec<OwnRoom>, TimelinePos), DatabaseError> {
        let rows = self.query(Statement::new(OWN_ROOMS, [user_id.into(), MAX_ROOMS.into()])).await?;
        let newest = rows.first().map_or(Ok(TimelinePos::START), |row| TimelinePos::read(row, 5))?;
        let mut rooms = Vec::new();
        for row in &rows {
            let joined = stored(row.text(1)?)? == Membership::Join;
            let state = root(row, if joined { 3 } else { 4 })?;
            rooms.push(OwnRoom {
                room_id: RoomId::parse(row.text(0)?)
                    .map_err(|_| DatabaseError::Shape("a membership in no room".to_owned()))?,
                joined,
                joined_until: TimelinePos::read_optional(row, 2)?,
                state: state.unwrap_or(NodeId::EMPTY),
            });
        }
        Ok((rooms, newest))
    }

    /// Looks for events.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn look(&self, look: &Look<'_>) -> Result<Looked, DatabaseError> {
        let rooms = look.rooms.iter().map(|(room_id, last)| json!([room_id.as_str(), last]));
        let rooms = json!(rooms.collect::<Vec<_>>()).to_string();
        let each = (MAX_LOOK / i64::try_from(look.rooms.len().max(1)).unwrap_or(MAX_LOOK)).max(50);
        let window = || [SqlValue::from(rooms.as_str()), look.from.into(), (each - 1).into()];
        let [first, second, third] = look.texts.each_ref().map(|text| SqlValue::from(text.as_str()));
        let (user_id, device_id) = look.reader;
        let types = json!(look.types).to_string();
        let more = [types.into(), first, second, third, MAX_FOUND.into(), user_id.into(), device_id.into()];
        let parameters: Vec<SqlValue> = window().into_iter().chain(more).collect();
        let answers = self.batch(vec![Statement::new(BOUND, window()), Statement::new(LOOK, parameters)]).await?;
        let [bound, found] = answers.as_slice() else {
            return Err(DatabaseError::Shape("two answers were expected".to_owned()));
        };
        let bound = bound.first().map_or(Ok(None), |row| TimelinePos::read_optional(row, 0))?;
        let mut down_to = bound.unwrap_or(TimelinePos::OLDEST);
        let events: Vec<TimelineEvent> = found.iter().map(TimelineEvent::of_row).collect::<Result<_, _>>()?;
        if let Some(last) = events.last().filter(|_| events.len() as i64 == MAX_FOUND) {
            down_to = last.pos.before();
        }
        Ok(Looked { events, down_to })
    }

    /// The events around some events, the oldest first: so many before and after each. Of each its room, its position, and the last
    /// position that counts. Not what is hidden from the user. In one round trip, none for none.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn around_each(
        &self,
        events: &[(&RoomId, TimelinePos, TimelinePos)],
        (before, after): (i64, i64),
        user_id: &str,
    ) -> Result<Vec<Vec<TimelineEvent>>, DatabaseError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let ask = |(room_id, pos, last): &(&RoomId, TimelinePos, TimelinePos)| {
            let (room_id, pos, last) = (room_id.as_str().into(), (*pos).into(), (*last).into());
            Statement::new(AROUND, [room_id, pos, before.into(), after.into(), user_id.into(), last])
        };
        let answers = self.batch(events.iter().map(ask).collect()).await?;
        answers.iter().map(|rows| rows.iter().map(TimelineEvent::of_row).collect()).collect()
    }
}
