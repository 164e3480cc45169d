//! Who is at the join of a large room: nobody else is, as long as whoever took it renews that.

use super::{
    Answers, Store,
    large_joins::{LargeJoin, large_join},
    members::{Invitation, invitation_statement, invitations},
    pending_joins::note_join_statement,
};
use crate::{
    matrix::identifiers::{RoomId, UserId},
    platform::{DatabaseError, Statement},
};

/// For so long, in milliseconds, at least, from the end of an attempt at a join, or from its start where it is cut off, the scheduled
/// trigger leaves that join alone, but for one whose whole answer is staged since: who let us in is asked for that no more often. The
/// longer the join has taken, the longer it is left, so that a server that does not answer leaves its user the time to come in
/// through another one, however long each attempt takes.
const PAUSE_MS: i64 = 2 * 60 * 1_000;

/// And at most: shorter than the note counts by which PDUs of the room are staged, and which each attempt renews to its end.
const LONGEST_PAUSE_MS: i64 = 8 * 60 * 1_000;

/// When the trigger may go on with a join whose attempt begins or ends. ?1: now. ?3 and ?4: after the shortest pause, and the longest.
macro_rules! after_pause {
    () => {
        "CASE WHEN completes OR is_read OR begun_ts = 0 THEN not_before ELSE MIN(MAX(?3, ?1 + (?1 - begun_ts) / 2), ?4) END"
    };
}

/// ?1: now. `$which` chooses one.
macro_rules! take {
    ($which:literal) => {
        concat!(
            "UPDATE large_joins SET lease_until = ?2, not_before = ",
            after_pause!(),
            " WHERE join_id = (SELECT j.join_id FROM large_joins AS j WHERE j.lease_until <= ?1 AND ",
            $which,
            " LIMIT 1) \
             RETURNING join_id, room_version, resident, event_id, json, begun_ts, is_read, kept_to, completes, attempts"
        )
    };
}

/// The one that nobody is at for longest.
const TAKE: &str = take!("j.not_before <= ?1 ORDER BY j.lease_until");

/// The user's, ?6, into the room ?5.
const TAKE_EARLIER: &str =
    take!("j.room_id = ?5 AND j.json ->> '$.sender' = ?6 AND NOT j.completes AND j.begun_ts > 0");

const PAUSE: &str = concat!("UPDATE large_joins SET not_before = ", after_pause!(), " WHERE join_id = ?2");

const IS_UNDER_WAY: &str = "\
    SELECT 1 AS is_under_way FROM large_joins \
    WHERE room_id = ?1 AND json ->> '$.sender' = ?2 AND NOT completes AND begun_ts > 0 LIMIT 1";

/// Also of one that has ended: whoever is at it forgets it.
const HOLD: &str = "UPDATE large_joins SET lease_until = ?2 WHERE join_id = ?1";

/// For ?3 where PDUs are staged by it, and for ?4 before that.
const HOLD_NOTE: &str = "\
    UPDATE pending_joins SET until_ts = CASE room_version WHEN '' THEN ?4 ELSE ?3 END WHERE room_id = ?1 AND join_id = ?2";

/// What has become of the join of a large room that a user began before.
#[derive(Debug)]
pub enum EarlierJoin {
    /// There is none.
    None,
    /// Somebody is at it.
    UnderWay,
    /// Nobody was at it, and now whoever asked is.
    Taken(Box<LargeJoin>),
}

impl Store {
    /// Takes a join that nobody is at.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn take_large_join(&self, now: i64, lease_until: i64) -> Result<Option<LargeJoin>, DatabaseError> {
        let parameters = [now.into(), lease_until.into(), (now + PAUSE_MS).into(), (now + LONGEST_PAUSE_MS).into()];
        self.query(Statement::new(TAKE, parameters)).await?.first().map(large_join).transpose()
    }

    /// Notes that an attempt at a join of a large room has ended, and the join has not got on.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn pause_large_join(&self, join_id: &str, now: i64) -> Result<(), DatabaseError> {
        let parameters = [now.into(), join_id.into(), (now + PAUSE_MS).into(), (now + LONGEST_PAUSE_MS).into()];
        self.query(Statement::new(PAUSE, parameters)).await.map(drop)
    }

    /// What a user who wants into a room has of it: their invite or knock, and the join of it, as a large room, that they began
    /// before. Where nobody is at that, whoever asks is until `lease_until`. Where there is none, the join `join_id` is noted for so long: from
    /// then on a leave ends it. One call.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn before_join(
        &self,
        user: &UserId,
        room_id: &RoomId,
        join_id: &str,
        now: i64,
        lease_until: i64,
    ) -> Result<(Option<Invitation>, EarlierJoin), DatabaseError> {
        let [room, name] = [room_id.as_str(), user.as_str()];
        let (pause, longest) = (now + PAUSE_MS, now + LONGEST_PAUSE_MS);
        let take = [now.into(), lease_until.into(), pause.into(), longest.into(), room.into(), name.into()];
        let statements = vec![
            invitation_statement(user, room_id),
            Statement::new(TAKE_EARLIER, take),
            Statement::new(IS_UNDER_WAY, [room.into(), name.into()]),
            note_join_statement(user, room_id, join_id, lease_until),
        ];
        let mut answers = Answers::new(self.batch(statements).await?);
        let (invited, taken, under_way) = (answers.rows()?, answers.rows()?, answers.rows()?);
        let earlier = match taken.first() {
            Some(row) => EarlierJoin::Taken(Box::new(large_join(row)?)),
            None if under_way.is_empty() => EarlierJoin::None,
            None => EarlierJoin::UnderWay,
        };
        Ok((invitations(&invited)?.pop(), earlier))
    }

    /// Has nobody else begin with a join before `lease_until`, and has PDUs of the room staged until `until_ts`. Of
    /// the join of a room that is not known to be large, or of what completes a state, one of both is not there.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn hold_join(
        &self,
        room_id: &RoomId,
        join_id: &str,
        lease_until: i64,
        until_ts: i64,
    ) -> Result<(), DatabaseError> {
        let hold = Statement::new(HOLD, [join_id.into(), lease_until.into()]);
        let note = [room_id.as_str().into(), join_id.into(), until_ts.into(), lease_until.into()];
        let note = Statement::new(HOLD_NOTE, note);
        self.batch(vec![hold, note]).await.map(drop)
    }
}
