//! What `/sync` reads: everything new for one user since a position, in one round trip that costs next to nothing
//! while nothing is new on the whole server.

use std::collections::HashMap;

use super::{
    Store,
    event_graph::closed,
    timeline::{SeenEvent, TimelineEvent, room_version, root, seen_columns, seen_joins},
};
use crate::{
    matrix::{identifiers::RoomId, room_version::RoomVersion, state_trie::NodeId},
    platform::{DatabaseError, SqlValue, Statement},
};

/// What to read.
#[derive(Debug, Clone, Copy)]
pub struct SyncRead<'a> {
    /// The reading user,
    pub user_id: &'a str,
    /// and device.
    pub device_id: &'a str,
    /// The 'events' position up to which the client knows everything; 0 when it knows nothing.
    pub since: i64,
    /// The 'events' position up to which there is known to be nothing new for the user; at least `since`.
    pub checked: i64,
    /// The 'account_data' position up to which the client knows everything.
    pub account_data_since: i64,
    /// All joined rooms, whether there is anything new in them or not.
    pub all_joined: bool,
    /// The rooms that the user left long ago of their own will too, where the client knows nothing.
    pub include_leave: bool,
    /// The most timeline events of a room; one more is read, to tell whether there are more.
    pub limit: i64,
}

/// What was read.
#[derive(Debug, Default)]
pub struct SyncFound {
    /// The newest 'events' position.
    pub events: i64,
    /// The newest 'account_data' position.
    pub account_data: i64,
    /// The rooms with something new.
    pub rooms: Vec<SyncRoom>,
    /// By room, the new events.
    pub timelines: HashMap<RoomId, NewEvents>,
    /// New account data: room (empty for none), type, content.
    pub changed_account_data: Vec<(String, String, String)>,
}

/// The new events of a room since the last gap in its timeline.
#[derive(Debug, Default)]
pub struct NewEvents {
    /// The events, oldest first.
    pub events: Vec<TimelineEvent>,
    /// Whether there is a gap just before them.
    pub after_gap: bool,
}

/// A room with something new for the user.
#[derive(Debug)]
pub struct SyncRoom {
    /// The room.
    pub room_id: RoomId,
    /// The user's membership.
    pub membership: String,
    /// The membership event.
    pub event_id: String,
    /// The position at which the membership became so.
    pub pos: i64,
    /// For an invite to a room that we are not in: the state that came with it, a JSON list; once the invite has ended, the
    /// event that ended it.
    pub invite_state: Option<String>,
    /// The rules and the current state, where we know the room.
    pub room: Option<(&'static RoomVersion, NodeId)>,
    /// The state as it was at the client's position.
    pub state_since: Option<NodeId>,
    /// Of somebody who was joined and is so no more: the position up to which they were, their leaving with it.
    pub joined_until: Option<i64>,
    /// The state as it was at that position.
    pub state_when_left: Option<NodeId>,
}

/// The user's rooms with something new. ?1 user, ?2 since, ?3 checked, ?4 all joined, ?5 include left; who was put out is
/// always told. The stream comes first, so that nothing is read while it has not moved.
macro_rules! rooms_with_news {
    () => {
        "FROM streams AS s CROSS JOIN local_memberships AS m LEFT JOIN rooms AS r ON r.room_id = m.room_id \
         WHERE s.name = 'events' AND (s.position > ?3 OR ?4) AND m.user_id = ?1 \
           AND (m.pos > ?2 OR m.membership = 'join' AND (?4 OR r.latest_pos > ?2)) \
           AND (?2 > 0 OR m.membership IN ('join', 'invite', 'knock') OR ?5 OR m.user_id <> COALESCE( \
             (SELECT k.sender FROM events AS k WHERE k.event_id = m.event_id), m.invite_state ->> '$[0].sender'))"
    };
}

const ROOMS: &str = concat!(
    "SELECT m.room_id, m.membership, m.event_id, m.pos, m.invite_state, r.room_version, r.state, \
       (SELECT x.state FROM room_states AS x WHERE x.room_id = m.room_id AND x.pos <= ?2 ORDER BY x.pos DESC LIMIT 1), \
       m.joined_until, (SELECT x.state FROM room_states AS x WHERE x.room_id = m.room_id AND x.pos <= m.joined_until \
         ORDER BY x.pos DESC LIMIT 1) ",
    rooms_with_news!()
);

/// ?6 the device, ?7 how many events. A room that the user has newly joined is shown from before the join on.
const TIMELINES: &str = concat!(
    "WITH mine(room_id, low, high) AS ( \
       SELECT m.room_id, CASE WHEN m.membership = 'join' AND m.pos > ?2 THEN -9007199254740991 ELSE ?2 END, \
         CASE m.membership WHEN 'join' THEN s.position ELSE m.pos END ",
    rooms_with_news!(),
    " AND m.membership IN ('join', 'leave', 'ban')) SELECT ",
    seen_columns!(),
    ", t.pos, txn.txn_id, t.room_id, \
       EXISTS (SELECT 1 FROM gaps AS g WHERE g.room_id = t.room_id AND g.pos = t.pos AND g.attempts = 0 AND NOT ",
    closed!(),
    ") AS after_gap FROM mine CROSS JOIN timeline AS t ON t.room_id = mine.room_id AND t.pos <= mine.high \
       AND t.pos > max(mine.low, COALESCE((SELECT x.pos FROM timeline AS x WHERE x.room_id = mine.room_id \
         AND x.pos <= mine.high ORDER BY x.pos DESC LIMIT 1 OFFSET ?7), mine.low)) \
     CROSS JOIN events AS e ON e.event_nid = t.event_nid ",
    seen_joins!(),
    "LEFT JOIN client_transactions AS txn ON txn.event_id = e.event_id AND txn.user_id = ?1 AND txn.device_id = ?6 \
     ORDER BY t.room_id, t.pos"
);

const POSITIONS: &str = "SELECT name, position FROM streams WHERE name IN ('events', 'account_data')";

/// ?1 the user, ?2 the 'account_data' position, ?3 and ?4 since and checked. Of rooms that the user is in; of those newly
/// joined, all that there is.
const ACCOUNT_DATA: &str = "\
    SELECT a.room_id, a.event_type, a.content FROM streams AS s CROSS JOIN account_data AS a \
      LEFT JOIN local_memberships AS m ON m.user_id = a.user_id AND m.room_id = a.room_id \
    WHERE s.name = 'account_data' AND s.position > ?2 AND a.user_id = ?1 AND a.pos > ?2 \
      AND (a.room_id = '' OR m.membership = 'join') \
    UNION \
    SELECT a.room_id, a.event_type, a.content FROM streams AS s CROSS JOIN local_memberships AS m \
      CROSS JOIN account_data AS a ON a.user_id = m.user_id AND a.room_id = m.room_id \
    WHERE s.name = 'events' AND s.position > ?4 AND m.user_id = ?1 AND m.membership = 'join' AND m.pos > ?3";

impl SyncFound {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty() && self.changed_account_data.is_empty()
    }
}

impl Store {
    /// Reads what is new for a user.
    ///
    /// # Errors
    /// As the database says.
    pub async fn sync(&self, read: &SyncRead<'_>) -> Result<SyncFound, DatabaseError> {
        let selection: [SqlValue; 5] = [
            read.user_id.into(),
            read.since.into(),
            read.checked.into(),
            read.all_joined.into(),
            read.include_leave.into(),
        ];
        let mut timelines = selection.to_vec();
        timelines.extend([read.device_id.into(), SqlValue::from(read.limit.saturating_add(1))]);
        let answers = self
            .batch(vec![
                Statement::new(POSITIONS, []),
                Statement::new(ROOMS, selection),
                Statement::new(TIMELINES, timelines),
                Statement::new(
                    ACCOUNT_DATA,
                    [read.user_id.into(), read.account_data_since.into(), read.since.into(), read.checked.into()],
                ),
            ])
            .await?;
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or_default();
        let mut found = SyncFound::default();
        for row in next() {
            let position = row.integer(1)?;
            match row.text(0)? {
                "events" => found.events = position,
                _ => found.account_data = position,
            }
        }
        for row in next() {
            let version = row.optional_text(5)?.map(room_version).transpose()?;
            found.rooms.push(SyncRoom {
                room_id: room_id(row.text(0)?)?,
                membership: row.text(1)?.to_owned(),
                event_id: row.text(2)?.to_owned(),
                pos: row.integer(3)?,
                invite_state: row.optional_text(4)?.map(str::to_owned),
                room: version.zip(root(&row, 6)?),
                state_since: root(&row, 7)?,
                joined_until: row.optional_integer(8)?,
                state_when_left: root(&row, 9)?,
            });
        }
        for row in next() {
            let room = room_id(row.text(SeenEvent::COLUMNS + 2)?)?;
            let new = found.timelines.entry(room).or_default();
            if row.integer(SeenEvent::COLUMNS + 3)? != 0 {
                *new = NewEvents { events: Vec::new(), after_gap: true };
            }
            new.events.push(TimelineEvent::of_row(&row)?);
        }
        for row in next() {
            let text = |column| row.text(column).map(str::to_owned);
            found.changed_account_data.push((text(0)?, text(1)?, text(2)?));
        }
        Ok(found)
    }
}

fn room_id(text: &str) -> Result<RoomId, DatabaseError> {
    RoomId::parse(text).map_err(|_| DatabaseError::Shape(format!("{text:?} is no room ID")))
}
