//! What is told of events without reading them.

use super::{Store, text_lists};
use crate::{
    matrix::identifiers::{EventId, RoomId},
    platform::{DatabaseError, Row, Statement},
};

/// What kind of event one that we hold is.
#[derive(Debug, Clone)]
pub struct Header {
    /// Its id.
    pub event_id: EventId,
    /// Its room.
    pub room_id: RoomId,
    /// Its type.
    pub event_type: String,
    /// Whether it is a state event.
    pub is_state: bool,
    /// How long its text is.
    pub bytes: usize,
    /// Whether the state after it is known.
    pub has_state: bool,
}

/// ?1: event ids as a JSON list.
const HEADERS: &str = "\
    SELECT e.event_id, e.room_id, e.event_type, e.state_key IS NOT NULL AS is_state, \
      length(CAST(e.json AS BLOB)) AS bytes, e.state_after IS NOT NULL AS has_state \
    FROM json_each(?1) AS wanted CROSS JOIN events AS e ON e.event_id = wanted.value";

impl Store {
    /// The headers of those of the events that we hold, in no order. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn headers(&self, ids: &[EventId]) -> Result<Vec<Header>, DatabaseError> {
        let lists = text_lists(ids);
        if lists.is_empty() {
            return Ok(Vec::new());
        }
        let ask = lists.into_iter().map(|list| Statement::new(HEADERS, [list.into()])).collect();
        self.batch(ask).await?.iter().flatten().map(header).collect()
    }
}

fn header(row: &Row) -> Result<Header, DatabaseError> {
    let shape = |what: &str| DatabaseError::Shape(format!("a stored event has {what}"));
    Ok(Header {
        event_id: EventId::parse_any_length(row.text(0)?).map_err(|_| shape("an invalid ID"))?,
        room_id: RoomId::parse(row.text(1)?).map_err(|_| shape("an invalid room ID"))?,
        event_type: row.text(2)?.to_owned(),
        is_state: row.integer(3)? != 0,
        bytes: usize::try_from(row.integer(4)?).unwrap_or(0),
        has_state: row.integer(5)? != 0,
    })
}
