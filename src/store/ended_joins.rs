//! What is forgotten when the join of a large room has ended: what the resident server answered, and where no room has come of it,
//! what was kept of that.

use super::{Store, large_joins::FORGET_PAGE};
use crate::platform::{DatabaseError, Statement};

const END: &str = "UPDATE large_joins SET begun_ts = 0 WHERE join_id = ?1";

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
