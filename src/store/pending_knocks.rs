//! Knocks that are being made through another server: what rejects one before its answer has come waits for that.

use super::{Store, memberships::MembershipChange};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId},
    },
    platform::{DatabaseError, Statement},
};

const BEGIN_KNOCK: &str = "\
    INSERT INTO pending_knocks (user_id, room_id, knock, room_version, until_ts) VALUES (?1, ?2, ?3, ?4, ?5) \
    ON CONFLICT (user_id, room_id, knock) DO UPDATE SET until_ts = excluded.until_ts";

const END_KNOCK: &str = "DELETE FROM pending_knocks WHERE user_id = ?1 AND room_id = ?2 AND knock = ?3";

/// ?4: what the membership became, ?5: by which event, ?6: what clients are told of it. What came first stays.
const REJECT: &str = "\
    UPDATE pending_knocks SET membership = ?4, event_id = ?5, told = ?6 \
    WHERE user_id = ?1 AND room_id = ?2 AND knock = ?3 AND membership IS NULL";

/// Once the knock is remembered: of which version the room is.
const KEEP_VERSION: &str = "\
    UPDATE local_memberships SET room_version = (SELECT p.room_version FROM pending_knocks AS p \
      WHERE p.user_id = ?1 AND p.room_id = ?2 AND p.knock = ?3) \
    WHERE user_id = ?1 AND room_id = ?2 AND event_id = ?3 AND membership = 'knock'";

/// The same: it has ended by what was noted, if anything was.
const END_REJECTED: &str = "\
    UPDATE local_memberships SET (membership, event_id, invite_state, outside_bytes, via) = ( \
        SELECT p.membership, p.event_id, p.told, length(p.told), NULL FROM pending_knocks AS p \
        WHERE p.user_id = ?1 AND p.room_id = ?2 AND p.knock = ?3) \
    WHERE user_id = ?1 AND room_id = ?2 AND event_id = ?3 AND membership = 'knock' AND EXISTS ( \
      SELECT 1 FROM pending_knocks AS p WHERE p.user_id = ?1 AND p.room_id = ?2 AND p.knock = ?3 AND p.membership IS NOT NULL)";

impl Store {
    /// Notes that the knock is being sent until `until_ts`: what rejects it is remembered.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn begin_knock(&self, knock: &Event, until_ts: i64) -> Result<(), DatabaseError> {
        let [user, room, id] = [knock.sender().as_str(), knock.room_id().as_str(), knock.event_id().as_str()];
        let parameters = [user.into(), room.into(), id.into(), knock.version().id.into(), until_ts.into()];
        self.query(Statement::new(BEGIN_KNOCK, parameters)).await.map(drop)
    }

    /// Takes back what [`Store::begin_knock`] has noted, where the knock was not taken.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn end_knock(&self, knock: &Event) -> Result<(), DatabaseError> {
        let [user, room, id] = [knock.sender().as_str(), knock.room_id().as_str(), knock.event_id().as_str()];
        self.query(Statement::new(END_KNOCK, [user.into(), room.into(), id.into()])).await.map(drop)
    }
}

/// Ends what was noted of a knock, in the batch that remembers it and after that; `knock` is the change of the membership by it.
pub(crate) fn knocked(room_id: &RoomId, knock: &MembershipChange) -> Vec<Statement> {
    let of = || [knock.user_id.as_str().into(), room_id.as_str().into(), knock.event_id.as_str().into()];
    [KEEP_VERSION, END_REJECTED, END_KNOCK].map(|sql| Statement::new(sql, of())).into()
}

/// Notes what has rejected the knock, where it is still being made.
pub(crate) fn reject(room_id: &RoomId, knock: &EventId, change: &MembershipChange) -> Statement {
    let parameters = [
        change.user_id.as_str().into(),
        room_id.as_str().into(),
        knock.as_str().into(),
        change.membership.as_str().into(),
        change.event_id.as_str().into(),
        change.invite_state.as_deref().into(),
    ];
    Statement::new(REJECT, parameters)
}
