//! Rooms whose state is, before our join, what a resident server vouched for.

use super::{
    Store,
    event_graph::closed,
    events::cited,
    text_lists,
    unsettled::{Node, node, nodes},
};
use crate::{
    matrix::identifiers::{EventId, RoomId},
    platform::{DatabaseError, Statement},
};

/// In a room with more events than that what was vouched for is believed, whatever its history shows.
const MAX_HISTORY: usize = 2_000;

/// How often the history is looked at, where it turns out that not all of it can be judged by itself.
const MAX_LOOKS: i64 = 8;

const VOUCH: &str = "INSERT INTO vouched_rooms (room_id) VALUES (?1) ON CONFLICT (room_id) DO UPDATE SET looks = 0";

const LOOKED: &str = "UPDATE vouched_rooms SET looks = looks + 1 WHERE room_id = ?1";

const FORGET_LOOKED: &str = "DELETE FROM vouched_rooms WHERE room_id = ?1 AND looks >= ?2";

const FORGET: &str = "DELETE FROM vouched_rooms WHERE room_id = ?1";

/// All that the forward extremities of the room ?1 are built upon, ?2 events at most, if it is one of those and has no gap.
const HISTORY: &str = concat!(
    "WITH RECURSIVE graph(event_id) AS ( \
       SELECT x.value ->> 0 FROM vouched_rooms AS v CROSS JOIN rooms AS r ON r.room_id = v.room_id \
         CROSS JOIN json_each(r.extremities) AS x \
       WHERE v.room_id = ?1 AND NOT EXISTS (SELECT 1 FROM gaps AS g WHERE g.room_id = v.room_id AND NOT ",
    closed!(),
    ") \
       UNION SELECT ",
    cited!("j"),
    "  FROM graph CROSS JOIN json_each(COALESCE( \
         (SELECT x.graph FROM rejected_events AS x WHERE x.event_id = graph.event_id AND x.room_id = ?1), \
         (SELECT e.json FROM events AS e WHERE e.event_id = graph.event_id AND e.room_id = ?1)), '$.prev_events') AS j \
       LIMIT ?2 ) ",
    nodes!()
);

/// ?1: a list of events.
const CLAIM: &str = "\
    UPDATE events SET claimed = 1 \
    WHERE event_id IN (SELECT value FROM json_each(?1)) AND state_after IS NOT NULL AND NOT claimed";

/// As [`CLAIM`], of those that were rejected.
const CLAIM_REJECTED: &str = "\
    UPDATE rejected_events SET claimed = 1 WHERE event_id IN (SELECT value FROM json_each(?1)) AND NOT claimed";

/// The history of a room whose state a resident server vouched for.
#[derive(Debug, Clone)]
pub enum VouchedHistory {
    /// It is not held as a whole, or nobody vouched for anything.
    Unknown,
    /// It is held, down to the room's creation if nothing is lacking behind what was rejected.
    Held(Vec<Node>),
    /// It is too long to be gone through.
    TooLong,
}

impl Store {
    /// What the room's forward extremities are built upon, if a resident server vouched for its state and there is no gap.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn vouched_history(&self, room_id: &RoomId) -> Result<VouchedHistory, DatabaseError> {
        let limit = i64::try_from(MAX_HISTORY + 1).unwrap_or(i64::MAX);
        let rows = self.query(Statement::new(HISTORY, [room_id.as_str().into(), limit.into()])).await?;
        Ok(match rows.len() {
            0 => VouchedHistory::Unknown,
            length if length > MAX_HISTORY => VouchedHistory::TooLong,
            _ => VouchedHistory::Held(rows.iter().map(node).collect::<Result<_, _>>()?),
        })
    }

    /// Notes that the history was looked at, and shows nothing as yet.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn looked_at_vouched(&self, room_id: &RoomId) -> Result<(), DatabaseError> {
        let forget = Statement::new(FORGET_LOOKED, [room_id.as_str().into(), MAX_LOOKS.into()]);
        self.batch(vec![Statement::new(LOOKED, [room_id.as_str().into()]), forget]).await.map(drop)
    }

    /// Notes that the room's state is believed for good.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn believe_vouched(&self, room_id: &RoomId) -> Result<(), DatabaseError> {
        self.query(forget(room_id)).await.map(drop)
    }
}

/// Notes that a resident server vouched for the room's state before our join.
pub fn vouch(room_id: &RoomId) -> Statement {
    Statement::new(VOUCH, [room_id.as_str().into()])
}

/// Takes the states around these events of the room, which are its whole history, for what was claimed.
pub fn take_for_claimed(room_id: &RoomId, events: &[EventId]) -> Vec<Statement> {
    let lists = text_lists(events.iter().map(EventId::as_str));
    let each = |sql: &'static str| lists.iter().map(move |list| Statement::new(sql, [list.as_str().into()]));
    each(CLAIM).chain(each(CLAIM_REJECTED)).chain([forget(room_id)]).collect()
}

fn forget(room_id: &RoomId) -> Statement {
    Statement::new(FORGET, [room_id.as_str().into()])
}
