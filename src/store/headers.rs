//! What is told of events without reading them.

use super::{Store, slices::by_ids};
use crate::{
    matrix::identifiers::{EventId, RoomId},
    platform::{Clock, DatabaseError, Row, turns::LIGHT_SLICE},
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
    /// Whether it has no place in the graph.
    pub is_outlier: bool,
}

/// ?1: event ids as a JSON list.
const HEADERS: &str = "\
    SELECT e.event_id, e.room_id, e.event_type, e.state_key IS NOT NULL AS is_state, \
      length(CAST(e.json AS BLOB)) AS bytes, e.state_after IS NOT NULL AS has_state, e.outlier \
    FROM json_each(?1) AS wanted CROSS JOIN events AS e ON e.event_id = wanted.value";

impl Store {
    /// The headers of those of the events that we hold, in no order. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn headers(&self, clock: &dyn Clock, ids: &[EventId]) -> Result<Vec<Header>, DatabaseError> {
        self.read_in_slices(clock, LIGHT_SLICE, by_ids(ids, HEADERS), header).await
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
        is_outlier: row.integer(6)? != 0,
    })
}
