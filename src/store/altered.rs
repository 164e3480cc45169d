//! Events that are held without their content, because the copy that came was altered.

use super::Store;
use crate::{
    matrix::identifiers::{EventId, RoomId, UserId},
    platform::{DatabaseError, Statement},
};

/// Those of the room ?1 that have a place and are not redacted, as far as we know: ?2 at most, the newest first.
const ALTERED: &str = "\
    SELECT e.event_id, e.sender FROM events AS e INDEXED BY events_altered \
    WHERE e.room_id = ?1 AND e.hash_wrong AND e.redacted_by IS NULL AND NOT e.outlier \
      AND NOT EXISTS (SELECT 1 FROM redactions AS r WHERE r.redacts = e.event_id AND r.room_id = e.room_id) \
    ORDER BY e.event_nid DESC LIMIT ?2";

/// An event that is held without its content.
#[derive(Debug, Clone)]
pub struct Altered {
    /// The event.
    pub event_id: EventId,
    /// Its sender.
    pub sender: UserId,
}

impl Store {
    /// Events of the room that are held without their content, and that nobody has redacted; `limit` at most, the newest first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn altered(&self, room_id: &RoomId, limit: i64) -> Result<Vec<Altered>, DatabaseError> {
        let rows = self.query(Statement::new(ALTERED, [room_id.as_str().into(), limit.into()])).await?;
        let mut altered = Vec::with_capacity(rows.len());
        for row in &rows {
            if let (Ok(event_id), Ok(sender)) = (EventId::parse(row.text(0)?), UserId::parse(row.text(1)?)) {
                altered.push(Altered { event_id, sender });
            }
        }
        Ok(altered)
    }
}
