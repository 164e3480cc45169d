//! Rooms that we are joining: what others send of them meanwhile is staged.

use super::{Store, json_list};
use crate::{
    matrix::{identifiers::RoomId, room_version::RoomVersion},
    platform::{DatabaseError, Row, Statement},
};

/// ?1: rooms as a JSON list, ?2: now. The table comes first, as it is nearly empty.
const JOINING: &str = "\
    SELECT j.room_id, j.room_version FROM pending_joins AS j CROSS JOIN json_each(?1) AS wanted \
    WHERE j.room_id = wanted.value AND j.until_ts > ?2";

/// Unless what is held of the room is of another version.
const BEGIN_JOIN: &str = "\
    INSERT INTO pending_joins (room_id, join_id, room_version, until_ts) \
    SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM rooms WHERE room_id = ?1 AND room_version <> ?3) \
    ON CONFLICT (room_id, join_id) DO UPDATE SET room_version = excluded.room_version, until_ts = excluded.until_ts \
    RETURNING join_id";

const END_JOIN: &str = "DELETE FROM pending_joins WHERE room_id = ?1 AND join_id = ?2";

/// Those of `ids` that are being joined at `now`; read by [`joining`].
pub(super) fn joining_statement(ids: &[RoomId], now: i64) -> Statement {
    Statement::new(JOINING, [json_list(ids.iter().map(RoomId::as_str)).into(), now.into()])
}

/// A room that is being joined, with the version that it is said to have.
pub(super) fn joining(row: &Row) -> Result<(RoomId, &'static RoomVersion), DatabaseError> {
    let shape = || DatabaseError::Shape("a pending join of an invalid room ID or an unknown version".to_owned());
    let room_id = RoomId::parse(row.text(0)?).map_err(|_| shape())?;
    Ok((room_id, RoomVersion::get(row.text(1)?).ok_or_else(shape)?))
}

impl Store {
    /// Notes that the room is being joined until `until_ts`: PDUs of it are staged. `false`, and nothing, where what is held of the
    /// room is of another version.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn begin_join(
        &self,
        room_id: &RoomId,
        join_id: &str,
        version: &RoomVersion,
        until_ts: i64,
    ) -> Result<bool, DatabaseError> {
        let parameters = [room_id.as_str().into(), join_id.into(), version.id.into(), until_ts.into()];
        self.query(Statement::new(BEGIN_JOIN, parameters)).await.map(|begun| !begun.is_empty())
    }

    /// Takes back what [`Store::begin_join`] has noted.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn end_join(&self, room_id: &RoomId, join_id: &str) -> Result<(), DatabaseError> {
        self.query(Statement::new(END_JOIN, [room_id.as_str().into(), join_id.into()])).await.map(drop)
    }
}
