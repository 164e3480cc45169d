//! Rooms that we are joining: what others send of them meanwhile is staged.

use super::{Answers, Store, json_list};
use crate::{
    matrix::{
        identifiers::{RoomId, UserId},
        room_version::RoomVersion,
    },
    platform::{DatabaseError, Row, Statement},
};

/// ?1: rooms as a JSON list, ?2: now. The table comes first, as it is nearly empty. Of a join that has no version yet nothing is sent
/// that others could tell us of.
const JOINING: &str = "\
    SELECT j.room_id, j.room_version FROM pending_joins AS j CROSS JOIN json_each(?1) AS wanted \
    WHERE j.room_id = wanted.value AND j.until_ts > ?2 AND j.room_version <> ''";

/// Before a server is asked for a template, which says the version. Unless a large join of the user goes on.
const NOTE_JOIN: &str = "\
    INSERT INTO pending_joins (room_id, join_id, room_version, until_ts, user_id) \
    SELECT ?1, ?2, '', ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM large_joins AS j \
      WHERE j.room_id = ?1 AND j.json ->> '$.sender' = ?4 AND NOT j.completes AND j.begun_ts > 0)";

/// Unless what is held of the room is of another version.
const BEGIN_JOIN: &str = "\
    INSERT INTO pending_joins (room_id, join_id, room_version, until_ts, user_id) \
    SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS (SELECT 1 FROM rooms WHERE room_id = ?1 AND room_version <> ?3) \
    ON CONFLICT (room_id, join_id) DO UPDATE \
      SET room_version = excluded.room_version, until_ts = excluded.until_ts, user_id = excluded.user_id \
    RETURNING has_left";

const END_JOIN: &str = "DELETE FROM pending_joins WHERE room_id = ?1 AND join_id = ?2 AND NOT has_left";

/// Nothing is staged by it any more.
const KEEP_ENDED: &str =
    "UPDATE pending_joins SET room_version = '' WHERE room_id = ?1 AND join_id = ?2 RETURNING join_id";

const FORGET_JOIN: &str = "DELETE FROM pending_joins WHERE room_id = ?1 AND join_id = ?2";

/// How a join begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BegunJoin {
    /// PDUs of the room are staged from now on.
    Begun,
    /// The user has left since the join was noted, or since an earlier attempt of it.
    HasLeft,
    /// What is held of the room is of another version.
    OtherVersion,
}

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

/// Notes that the user joins the room, as far as they might leave meanwhile: nothing is staged yet.
pub(super) fn note_join_statement(user: &UserId, room_id: &RoomId, join_id: &str, until_ts: i64) -> Statement {
    Statement::new(NOTE_JOIN, [room_id.as_str().into(), join_id.into(), until_ts.into(), user.as_str().into()])
}

impl Store {
    /// Notes a join that is begun anew, as [`Store::before_join`] does another one.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn note_join(
        &self,
        user: &UserId,
        room_id: &RoomId,
        join_id: &str,
        until_ts: i64,
    ) -> Result<(), DatabaseError> {
        self.query(note_join_statement(user, room_id, join_id, until_ts)).await.map(drop)
    }

    /// Notes that the user joins the room until `until_ts`: PDUs of it are staged.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn begin_join(
        &self,
        user: &UserId,
        room_id: &RoomId,
        join_id: &str,
        version: &RoomVersion,
        until_ts: i64,
    ) -> Result<BegunJoin, DatabaseError> {
        let [user, room] = [user.as_str(), room_id.as_str()];
        let parameters = [room.into(), join_id.into(), version.id.into(), until_ts.into(), user.into()];
        Ok(match self.query(Statement::new(BEGIN_JOIN, parameters)).await?.first() {
            None => BegunJoin::OtherVersion,
            Some(row) if row.integer(0)? != 0 => BegunJoin::HasLeft,
            Some(_) => BegunJoin::Begun,
        })
    }

    /// Takes back what is noted of the join. Whether the user has left since: that stays noted, as they may take it back, until it is
    /// [`forgotten`](Store::forget_join) when the room has heard of it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn end_join(&self, room_id: &RoomId, join_id: &str) -> Result<bool, DatabaseError> {
        let of_join = |sql| Statement::new(sql, [room_id.as_str().into(), join_id.into()]);
        let mut answers = Answers::new(self.batch(vec![of_join(END_JOIN), of_join(KEEP_ENDED)]).await?);
        answers.rows()?;
        Ok(!answers.rows()?.is_empty())
    }

    /// Forgets all that is noted of the join.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn forget_join(&self, room_id: &RoomId, join_id: &str) -> Result<(), DatabaseError> {
        self.query(Statement::new(FORGET_JOIN, [room_id.as_str().into(), join_id.into()])).await.map(drop)
    }
}
