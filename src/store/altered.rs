//! Events that are held without their content, because the copy that came was altered.

use super::{Store, commit::NewEvent};
use crate::{
    matrix::identifiers::{EventId, RoomId, UserId},
    platform::{DatabaseError, Statement},
};

/// Those of the room ?1 that count, and are not redacted as far as we know: what has a place, and what may stand in a state. Of members
/// only names are lost there, and a room may have very many that were redacted before we came.
macro_rules! altered {
    () => {
        " FROM events AS e INDEXED BY events_altered \
          WHERE e.room_id = ?1 AND e.hash_wrong AND e.redacted_by IS NULL \
            AND (NOT e.outlier OR (e.state_key IS NOT NULL AND e.event_type <> 'm.room.member')) \
            AND NOT EXISTS (SELECT 1 FROM redactions AS r WHERE r.redacts = e.event_id AND r.room_id = e.room_id)"
    };
}

/// ?2 of them at most, the newest first.
const ALTERED: &str = concat!("SELECT e.event_id, e.sender", altered!(), " ORDER BY e.event_nid DESC LIMIT ?2");

const UNSETTLE: &str = concat!(
    "INSERT INTO unsettled_rooms (room_id) SELECT ?1 WHERE EXISTS (SELECT 1",
    altered!(),
    ") ON CONFLICT (room_id) DO UPDATE SET retry_at = 0, attempts = 0, since = 0"
);

/// An event that is held without its content.
#[derive(Debug, Clone)]
pub struct Altered {
    /// The event.
    pub event_id: EventId,
    /// Its sender.
    pub sender: UserId,
}

/// Whether a whole copy of the event is to be asked for. See [`ALTERED`].
pub(super) fn is_altered(new: &NewEvent) -> bool {
    let counts = || new.event.state_key().is_some() && new.event.event_type() != "m.room.member";
    new.event.is_altered() && (!new.place.is_outlier() || counts())
}

/// Notes that whole copies are to be asked for in a room that we come into, if any are: what it holds may have been written before.
pub(super) fn unsettle_altered(room_id: &RoomId) -> Statement {
    Statement::new(UNSETTLE, [room_id.as_str().into()])
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
