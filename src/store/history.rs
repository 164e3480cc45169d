//! Walking back through a room's event graph.

use super::{
    Store,
    events::{StoredEvent, cited, event_columns, stored_event},
    json_list,
};
use crate::{
    matrix::identifiers::{EventId, RoomId},
    platform::{DatabaseError, Statement},
};

/// The events ?1 (a JSON list) of the room ?2 and their ancestors, the deepest first, not past the events ?3 (a JSON
/// list), at most ?4. `ORDER BY` in a recursive query makes its queue a priority queue.
const WALK_BACK: &str = concat!(
    "WITH RECURSIVE walk(event_id, depth) AS ( \
       SELECT s.event_id, s.depth FROM json_each(?1) AS start JOIN events AS s ON s.event_id = start.value \
         WHERE s.room_id = ?2 AND s.event_id NOT IN (SELECT value FROM json_each(?3)) \
       UNION \
       SELECT p.event_id, p.depth FROM walk JOIN events AS s ON s.event_id = walk.event_id, \
           json_each(s.json, '$.prev_events') AS j JOIN events AS p ON p.event_id = ",
    cited!("j"),
    " WHERE p.room_id = ?2 AND p.event_id NOT IN (SELECT value FROM json_each(?3)) \
       ORDER BY 2 DESC LIMIT ?4 \
     ) SELECT ",
    event_columns!(),
    " FROM walk JOIN events AS e ON e.event_id = walk.event_id JOIN rooms AS r ON r.room_id = e.room_id \
      WHERE e.rejected IS NULL ORDER BY e.depth DESC, e.event_id"
);

impl Store {
    /// The events `from` of a room and what precedes them in the graph, the deepest first: at most `limit`, and neither
    /// the events of `until` nor what only they lead to. Rejected events are walked through and left out. Outliers count
    /// too: they precede the others, and whoever asks may find nobody else who has them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn walk_back(
        &self,
        room_id: &RoomId,
        from: &[EventId],
        until: &[EventId],
        limit: i64,
    ) -> Result<Vec<StoredEvent>, DatabaseError> {
        let ids = |ids: &[EventId]| json_list(ids.iter().map(EventId::as_str));
        let parameters = [ids(from).into(), room_id.as_str().into(), ids(until).into(), limit.into()];
        self.query(Statement::new(WALK_BACK, parameters)).await?.iter().map(stored_event).collect()
    }
}
