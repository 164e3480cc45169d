//! Rooms that were joined by an answer without their members: how far it is with the rest.

use std::collections::HashSet;

use serde_json::json;

use super::{
    Store, json_list, json_lists, positions::advance_timeline, rooms::Extent, state_sql::node_id, sync::room_id,
};
use crate::{
    matrix::{
        identifiers::{EventId, RoomId, UserId},
        state_trie::NodeId,
    },
    platform::{DatabaseError, Row, Statement, news::Subject, turns::LIGHT_SLICE},
};

const BEGIN: &str = "\
    INSERT INTO partial_rooms (room_id, join_id, event_id) VALUES (?1, ?2, ?3) ON CONFLICT (room_id) DO UPDATE SET \
      join_id = excluded.join_id, event_id = excluded.event_id, stage = 0, whole_pos = 0";

/// Of a room that is joined anew by ?2 before its members were known, what was known of the states around its events is not going to
/// be whole, and is forgotten: they are history from now on.
const PART: &str = "\
    UPDATE events SET state_before = NULL, state_after = NULL, claimed = 0 WHERE event_id <> ?2 AND claimed AND event_nid IN ( \
      SELECT t.event_nid FROM partial_rooms AS p CROSS JOIN events AS j ON j.event_id = p.event_id \
        CROSS JOIN timeline AS t ON t.room_id = p.room_id AND t.pos >= j.pos WHERE p.room_id = ?1 AND p.stage IN (0, 3) \
      UNION ALL SELECT e.event_nid FROM partial_rooms AS p CROSS JOIN events AS e INDEXED BY events_claimed \
        ON e.room_id = p.room_id AND e.claimed AND (e.outlier OR e.soft_failed) WHERE p.room_id = ?1 AND p.stage IN (0, 3))";

const FORGET: &str = "DELETE FROM partial_rooms WHERE room_id = ?1";

const WHOLE: &str = "\
    UPDATE partial_rooms SET stage = 1, whole_pos = (SELECT position FROM streams WHERE name = 'events') \
    WHERE room_id = ?1";

const GIVE_UP: &str = "\
    UPDATE partial_rooms SET stage = 3, whole_pos = (SELECT position FROM streams WHERE name = 'events') \
    WHERE room_id = ?1 AND join_id = ?2 AND stage = 0";

/// Clients are told anew of what is known of the room.
const TELL: &str = "\
    UPDATE rooms SET latest_pos = p.whole_pos FROM partial_rooms AS p \
    WHERE rooms.room_id = ?1 AND p.room_id = rooms.room_id AND p.stage = 3 AND p.whole_pos > rooms.latest_pos";

const SETTLED: &str = "UPDATE partial_rooms SET stage = 2 WHERE room_id = ?1 AND stage = 1";

const FIND: &str = "SELECT join_id, event_id, stage FROM partial_rooms WHERE room_id = ?1";

const WITHOUT_MEMBERS: &str = "\
    SELECT p.room_id FROM json_each(?1) AS wanted CROSS JOIN partial_rooms AS p ON p.room_id = wanted.value WHERE p.stage = 0";

/// Which of the local users ?3 have been invited to the room ?1 by what is no part of the room as we have it, since our join ?2.
const INVITED_SINCE: &str = "\
    SELECT m.user_id FROM events AS j CROSS JOIN json_each(?3) AS w \
      CROSS JOIN local_memberships AS m ON m.user_id = w.value AND m.room_id = ?1 \
    WHERE j.event_id = ?2 AND m.membership = 'invite' AND m.outside_from IS NOT NULL AND m.pos > j.pos";

/// Events of the room ?1 with a state that rests on a claim: its forward extremities, which the current state is made of, and as
/// many of the newest of those in the timeline since the event ?2, and of those that have no place there, as ?3 says.
const CLAIMED: &str = "\
    SELECT e.event_nid, e.state_before, e.state_after FROM rooms AS r CROSS JOIN json_each(r.extremities) AS x \
      CROSS JOIN events AS e ON e.event_id = x.value ->> 0 \
    WHERE r.room_id = ?1 AND e.claimed AND e.state_after IS NOT NULL AND e.event_id <> ?2 \
    UNION ALL SELECT * FROM (SELECT e.event_nid, e.state_before, e.state_after FROM events AS j \
      CROSS JOIN timeline AS t ON t.room_id = ?1 AND t.pos > j.pos \
      CROSS JOIN events AS e ON e.event_nid = t.event_nid \
    WHERE j.event_id = ?2 AND e.claimed AND e.state_after IS NOT NULL ORDER BY t.pos DESC LIMIT ?3) \
    UNION ALL SELECT * FROM (SELECT e.event_nid, e.state_before, e.state_after FROM events AS e INDEXED BY events_claimed \
      WHERE e.room_id = ?1 AND e.claimed AND (e.outlier OR e.soft_failed) AND e.state_after IS NOT NULL LIMIT ?3)";

/// ?1: a list of [event, trie root of the state before it, and of that after it].
const MOVE: &str = "\
    UPDATE events SET \
      state_before = (SELECT value ->> 1 FROM json_each(?1) WHERE value ->> 0 = events.event_nid), \
      state_after = (SELECT value ->> 2 FROM json_each(?1) WHERE value ->> 0 = events.event_nid) \
    WHERE event_nid IN (SELECT value ->> 0 FROM json_each(?1))";

/// A room that was joined by an answer without its members.
#[derive(Debug, Clone)]
pub struct PartialRoom {
    /// The work that completes it.
    pub join_id: String,
    /// Our join.
    pub event_id: EventId,
    /// How much of its state is known now.
    pub extent: Extent,
    /// Whether its members are not going to be known: the rest of the state is too large.
    pub is_given_up: bool,
}

/// The states around an event, by their trie roots.
#[derive(Debug, Clone, Copy)]
pub struct StatesAround {
    /// The event's row.
    pub event_nid: i64,
    /// The state before it.
    pub before: NodeId,
    /// The state after it.
    pub after: NodeId,
}

impl Store {
    /// What is noted of the room, if it was joined so.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn partial_room(&self, room_id: &RoomId) -> Result<Option<PartialRoom>, DatabaseError> {
        let rows = self.query(Statement::new(FIND, [room_id.as_str().into()])).await?;
        let read = |row: &Row| {
            let shape = || DatabaseError::Shape("a room in part without a join".to_owned());
            Ok(PartialRoom {
                join_id: row.text(0)?.to_owned(),
                event_id: EventId::parse_any_length(row.text(1)?).map_err(|_| shape())?,
                extent: Extent::of(row.optional_integer(2)?),
                is_given_up: row.optional_integer(2)? == Some(3),
            })
        };
        rows.first().map(read).transpose()
    }

    /// Notes that the rest of the room's state is too large for us, which is news to those who have waited for it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn give_up_partial_room(&self, room_id: &RoomId, join_id: &str) -> Result<(), DatabaseError> {
        let statements = vec![
            advance_timeline(1, [Subject::Room(room_id.as_str().to_owned())]),
            Statement::new(GIVE_UP, [room_id.as_str().into(), join_id.into()]),
            Statement::new(TELL, [room_id.as_str().into()]),
        ];
        self.batch(statements).await.map(drop)
    }

    /// Which of these rooms were joined without their members, and have not got them yet.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn without_members(&self, rooms: &[RoomId]) -> Result<Vec<RoomId>, DatabaseError> {
        let rooms = json_list(rooms.iter().map(RoomId::as_str));
        let rows = self.query(Statement::new(WITHOUT_MEMBERS, [rooms.into()])).await?;
        rows.iter().map(|row| room_id(row.text(0)?)).collect()
    }

    /// The states that rest on claims around events of the room since the join: those of its forward extremities first, and of the
    /// newest `limit` of the others.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn claimed_states(
        &self,
        room_id: &RoomId,
        join: &EventId,
        limit: i64,
    ) -> Result<Vec<StatesAround>, DatabaseError> {
        let parameters = [room_id.as_str().into(), join.as_str().into(), limit.into()];
        let rows = self.query(Statement::new(CLAIMED, parameters)).await?;
        let mut states = Vec::with_capacity(rows.len());
        for row in &rows {
            let Some(before) = row.optional_text(1)? else { continue };
            let (event_nid, after) = (row.integer(0)?, node_id(row.text(2)?)?);
            states.push(StatesAround { event_nid, before: node_id(before)?, after });
        }
        Ok(states)
    }

    /// Which of these local users have been invited to the room since our join by events that have not become part of it here.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn invited_since(
        &self,
        room_id: &RoomId,
        join: &EventId,
        users: &[&UserId],
    ) -> Result<HashSet<String>, DatabaseError> {
        if users.is_empty() {
            return Ok(HashSet::new());
        }
        let users = json_list(users.iter().map(|user| user.as_str()));
        let parameters = [room_id.as_str().into(), join.as_str().into(), users.into()];
        let rows = self.query(Statement::new(INVITED_SINCE, parameters)).await?;
        rows.iter().map(|row| Ok(row.text(0)?.to_owned())).collect()
    }

    /// Notes that all of a room is settled that was judged while its members were not known.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn partial_room_is_settled(&self, room_id: &RoomId) -> Result<(), DatabaseError> {
        self.query(Statement::new(SETTLED, [room_id.as_str().into()])).await.map(drop)
    }
}

/// Notes that the room is joined by `event_id`, and members are lacking until the work `join_id` is done.
pub(crate) fn begin(room_id: &RoomId, join_id: &str, event_id: &EventId) -> [Statement; 2] {
    let begin = [room_id.as_str().into(), join_id.into(), event_id.as_str().into()];
    [part(room_id, event_id), Statement::new(BEGIN, begin)]
}

/// Notes that the room is joined by `event_id` with its whole state.
pub(crate) fn forget(room_id: &RoomId, event_id: &EventId) -> [Statement; 2] {
    [part(room_id, event_id), Statement::new(FORGET, [room_id.as_str().into()])]
}

fn part(room_id: &RoomId, event_id: &EventId) -> Statement {
    Statement::new(PART, [room_id.as_str().into(), event_id.as_str().into()])
}

/// Notes that the room's current state is whole by the commit to which this belongs.
pub(crate) fn is_whole(room_id: &RoomId) -> Statement {
    Statement::new(WHOLE, [room_id.as_str().into()])
}

/// Puts these states around the events.
pub(crate) fn put(states: &[StatesAround]) -> Vec<Statement> {
    let row = |states: &StatesAround| {
        json!([states.event_nid, states.before.to_string(), states.after.to_string()]).to_string()
    };
    // The list is walked for each of its events.
    let lists = states.chunks(LIGHT_SLICE).flat_map(|slice| json_lists(slice.iter().map(row)));
    lists.map(|list| Statement::new(MOVE, [list.into()])).collect()
}
