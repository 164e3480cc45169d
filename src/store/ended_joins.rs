//! What is forgotten when the join of a large room has ended: what the resident server answered, and where no room has come of it,
//! what was kept of that.

use super::{Store, large_joins::FORGET_PAGE};
use crate::{
    matrix::identifiers::{RoomId, ServerName, UserId},
    platform::{DatabaseError, Statement},
};

const END: &str = "UPDATE large_joins SET begun_ts = 0 WHERE join_id = ?1";

const END_OF_USER: &str = "\
    UPDATE large_joins SET begun_ts = 0 WHERE room_id = ?1 AND json ->> '$.sender' = ?2 AND NOT completes";

const RESIDENTS: &str = "\
    SELECT resident FROM large_joins WHERE room_id = ?1 AND json ->> '$.sender' = ?2 AND NOT completes";

const IS_OPEN: &str = "SELECT 1 AS is_open FROM large_joins WHERE join_id = ?1 AND begun_ts > 0";

/// Breaks a constraint where the join has ended: `join_id` is NOT NULL.
const STILL_OPEN: &str = "\
    INSERT INTO large_joins (join_id, room_id, room_version, resident, event_id, json, begun_ts, lease_until) \
    SELECT NULL, '', '', '', '', '', 0, 0 WHERE NOT EXISTS \
      (SELECT 1 FROM large_joins AS j WHERE j.join_id = ?1 AND j.begun_ts > 0)";

/// The column `$column` of the claimed events after ?2, up to ?3, of a room that has not become one, and that nobody else joins.
macro_rules! of_no_room {
    ($column:literal) => {
        concat!(
            "(SELECT ",
            $column,
            " FROM large_joins AS j CROSS JOIN claimed_events AS c \
               ON c.join_id = j.join_id AND c.event_id > ?2 AND c.event_id <= ?3 \
             WHERE j.join_id = ?1 AND NOT EXISTS (SELECT 1 FROM rooms AS r WHERE r.room_id = j.room_id) AND NOT EXISTS \
               (SELECT 1 FROM pending_joins AS p WHERE p.room_id = j.room_id AND p.join_id <> j.join_id))"
        )
    };
}

const FORGET_OUTLIERS: &str = concat!("DELETE FROM events WHERE outlier AND event_id IN ", of_no_room!("c.event_id"));

const FORGET_CITATIONS: &str = concat!("DELETE FROM citations WHERE cited IN ", of_no_room!("c.event_id"));

const FORGET_REJECTED: &str = concat!("DELETE FROM rejected_events WHERE event_id IN ", of_no_room!("c.event_id"));

const FORGET_MEMBERS: &str = concat!(
    "DELETE FROM server_members WHERE (room_id, server, user_id) IN ",
    of_no_room!("j.room_id, substr(c.member, instr(c.member, ':') + 1), c.member")
);

const FORGET_RESTRICTED: &str = concat!("DELETE FROM restricted_history WHERE room_id IN ", of_no_room!("j.room_id"));

const FORGET_EACH_PAGE: [&str; 6] =
    [FORGET_OUTLIERS, FORGET_CITATIONS, FORGET_REJECTED, FORGET_MEMBERS, FORGET_RESTRICTED, FORGET_PAGE];

const FORGET: &str = "DELETE FROM large_joins WHERE join_id = ?1";

impl Store {
    /// The servers through which the user joins the room, where that goes on over several steps.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn joining_through(&self, user: &UserId, room_id: &RoomId) -> Result<Vec<ServerName>, DatabaseError> {
        let rows = self.query(Statement::new(RESIDENTS, [room_id.as_str().into(), user.as_str().into()])).await?;
        Ok(rows.iter().filter_map(|row| ServerName::parse(row.text(0).ok()?).ok()).collect())
    }

    /// Whether the join of a large room is under way still.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn is_join_open(&self, join_id: &str) -> Result<bool, DatabaseError> {
        Ok(!self.query(Statement::new(IS_OPEN, [join_id.into()])).await?.is_empty())
    }

    /// Forgets a join that has ended, and all that came with its answer; where no room has come of it, what is kept of that, too.
    /// Where this is cut off, the join [`has_ended`](super::large_joins::LargeJoin::has_ended).
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn end_large_join(&self, join_id: &str) -> Result<(), DatabaseError> {
        let of_join = |sql| Statement::new(sql, [join_id.into()]);
        let mut batches = vec![vec![of_join(END)]];
        batches.extend(self.pages_of_join(join_id, &FORGET_EACH_PAGE).await?);
        batches.push(vec![of_join(FORGET)]);
        self.batches(batches).await.map(drop)
    }
}

/// Ends the joins of the user into the room that go on over several steps: what is staged of them is forgotten when nobody is at it.
pub(crate) fn end_joins_of(user: &UserId, room_id: &RoomId) -> Statement {
    Statement::new(END_OF_USER, [room_id.as_str().into(), user.as_str().into()])
}

/// Has the batch to which it belongs come to nothing where the join has ended.
pub(crate) fn still_open(join_id: &str) -> Statement {
    Statement::new(STILL_OPEN, [join_id.into()])
}
