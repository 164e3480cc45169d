//! Joins that end before the user is in the room, as they leave. What is forgotten when that of a large room has ended: what the resident
//! server answered, and where no room has come of it, what was kept of that.

use super::{Answers, Store, json_list, large_joins::FORGET_PAGE, memberships::MembershipChange, text_lists};
use crate::{
    matrix::{
        identifiers::{EventId, RoomId, ServerName, UserId},
        state_content::Membership,
    },
    platform::{DatabaseError, Statement},
};

const END: &str = "UPDATE large_joins SET begun_ts = 0 WHERE join_id = ?1";

const LEAVE: &str = "UPDATE pending_joins SET has_left = 1 WHERE room_id = ?1 AND user_id = ?2 RETURNING join_id";

const LEAVE_LARGE: &str = "\
    UPDATE large_joins SET begun_ts = 0 WHERE room_id = ?1 AND json ->> '$.sender' = ?2 AND NOT completes RETURNING resident";

/// Those of the users in ?2, a JSON list, who are in the room ?1.
macro_rules! of_the_room {
    () => {
        "(SELECT l.user_id FROM json_each(?2) AS out CROSS JOIN local_memberships AS l \
          ON l.user_id = out.value AND l.room_id = ?1 WHERE l.membership = 'join')"
    };
}

const PUT_OUT: &str =
    concat!("UPDATE pending_joins SET has_left = 1 WHERE room_id = ?1 AND user_id IN ", of_the_room!());

const PUT_OUT_LARGE: &str = concat!(
    "UPDATE large_joins SET begun_ts = 0 WHERE room_id = ?1 AND NOT completes AND json ->> '$.sender' IN ",
    of_the_room!()
);

/// ?3: joins that have ended, as a JSON list.
const AFTER_JOINS: &str = "\
    SELECT event_id NOT IN (SELECT value FROM json_each(?3)) AS wants_in FROM local_memberships \
      WHERE user_id = ?2 AND room_id = ?1 AND membership = 'join' \
    UNION ALL SELECT 1 FROM pending_joins WHERE room_id = ?1 AND user_id = ?2 AND NOT has_left";

/// Whether the user ?2 is in the room ?1.
macro_rules! is_in {
    () => {
        "SELECT 1 AS is_in FROM local_memberships WHERE user_id = ?2 AND room_id = ?1 AND membership = 'join'"
    };
}

const IS_IN: &str = is_in!();

/// The commit of a leave that is being made fails by that.
const OUTRUN_LEAVE: &str = concat!(
    "UPDATE rooms SET version = version + 1 WHERE room_id = ?1 AND EXISTS \
       (SELECT 1 FROM pending_joins WHERE room_id = ?1 AND user_id = ?2 AND has_left) AND EXISTS (",
    is_in!(),
    ")"
);

const STAY: &str = concat!(
    "UPDATE pending_joins SET has_left = 0 WHERE room_id = ?1 AND user_id = ?2 AND has_left AND EXISTS (",
    is_in!(),
    ")"
);

/// Of the join ?2 into the room ?1. ?3: whether its answer is staged; whoever forgets that may have forgotten the note as well.
macro_rules! has_ended {
    () => {
        "EXISTS (SELECT 1 FROM pending_joins AS p WHERE p.room_id = ?1 AND p.join_id = ?2 AND p.has_left) \
           OR ?3 AND NOT EXISTS (SELECT 1 FROM large_joins AS j WHERE j.join_id = ?2 AND j.begun_ts > 0)"
    };
}

const HAS_ENDED: &str = concat!("SELECT 1 AS has_ended WHERE ", has_ended!());

/// Breaks a constraint where the join has ended: `join_id` is NOT NULL.
const STILL_OPEN: &str = concat!(
    "INSERT INTO large_joins (join_id, room_id, room_version, resident, event_id, json, begun_ts, lease_until) \
     SELECT NULL, '', '', '', '', '', 0, 0 WHERE ",
    has_ended!()
);

/// The column `$column` of the claimed events after ?2, up to ?3, of a room that has not become one, and that nobody else joins.
macro_rules! of_no_room {
    ($column:literal) => {
        concat!(
            "(SELECT ",
            $column,
            " FROM large_joins AS j CROSS JOIN claimed_events AS c \
               ON c.join_id = j.join_id AND c.event_id > ?2 AND c.event_id <= ?3 \
             WHERE j.join_id = ?1 AND NOT EXISTS (SELECT 1 FROM rooms AS r WHERE r.room_id = j.room_id) AND NOT EXISTS \
               (SELECT 1 FROM pending_joins AS p WHERE p.room_id = j.room_id AND p.join_id <> j.join_id AND p.room_version <> ''))"
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

/// What a user is in a room, some of whose joins have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterJoins {
    /// They are in it by another join, or join it and have not left since.
    WantsIn,
    /// They are in it by one of those joins: it came in by another way than the answer to it.
    InAllTheSame,
    /// They are not in it, as far as is known here.
    Out,
}

/// A join that is under way. It ends when its user leaves.
#[derive(Debug, Clone)]
pub struct JoinUnderWay {
    /// The name of the attempt.
    pub join_id: String,
    /// Whether its answer is staged.
    pub is_staged: bool,
}

impl JoinUnderWay {
    /// A join whose answer is staged, or as much of it as has come.
    pub fn staged(join_id: &str) -> Self {
        Self { join_id: join_id.to_owned(), is_staged: true }
    }

    /// A join that is in the room: what was staged of it may be forgotten because all is done.
    pub fn taken(join_id: &str) -> Self {
        Self { join_id: join_id.to_owned(), is_staged: false }
    }
}

impl Store {
    /// Ends the joins of the user into the room that are under way: nothing comes of them, and what is staged is forgotten when nobody is at
    /// it. The servers that are known to have let them in; `None` where there are no such joins.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn end_joins_of(
        &self,
        user: &UserId,
        room_id: &RoomId,
    ) -> Result<Option<Vec<ServerName>>, DatabaseError> {
        let mut answers = Answers::new(self.batch(end_joins(user, room_id).into()).await?);
        let (noted, large) = (answers.rows()?, answers.rows()?);
        let residents = large.iter().filter_map(|row| ServerName::parse(row.text(0).ok()?).ok()).collect();
        Ok((!noted.is_empty() || !large.is_empty()).then_some(residents))
    }

    /// What the user is in the room, where these `joins` of theirs have ended.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn after_joins(
        &self,
        user: &UserId,
        room_id: &RoomId,
        joins: &[EventId],
    ) -> Result<AfterJoins, DatabaseError> {
        let joins = json_list(joins.iter().map(EventId::as_str));
        let parameters = [room_id.as_str().into(), user.as_str().into(), joins.into()];
        let mut after = AfterJoins::Out;
        for row in self.query(Statement::new(AFTER_JOINS, parameters)).await? {
            if row.integer(0)? != 0 {
                return Ok(AfterJoins::WantsIn);
            }
            after = AfterJoins::InAllTheSame;
        }
        Ok(after)
    }

    /// Takes back that the user has left while they join the room, if they are in it, by a join that came in all the same, and want to be.
    /// Whether they are in it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn stay(&self, user: &UserId, room_id: &RoomId) -> Result<bool, DatabaseError> {
        let of_user = |sql| Statement::new(sql, [room_id.as_str().into(), user.as_str().into()]);
        let statements = [OUTRUN_LEAVE, STAY, IS_IN].map(of_user).to_vec();
        let mut answers = Answers::new(self.batch(statements).await?);
        answers.rows()?;
        answers.rows()?;
        Ok(!answers.rows()?.is_empty())
    }

    /// Whether nothing is to come of the join.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn has_join_ended(&self, room_id: &RoomId, join: &JoinUnderWay) -> Result<bool, DatabaseError> {
        Ok(!self.query(of_join(HAS_ENDED, room_id, join)).await?.is_empty())
    }

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

/// Ends the joins of the user into the room that are under way.
pub(crate) fn end_joins(user: &UserId, room_id: &RoomId) -> [Statement; 2] {
    [LEAVE, LEAVE_LARGE].map(|sql| Statement::new(sql, [room_id.as_str().into(), user.as_str().into()]))
}

/// Ends the joins that are under way of users who are in the room by another one, and whom these changes put out of it. They come after
/// this. Where a user is not in the room (an unban, an invite taken back), nothing is said of their join.
pub(super) fn put_out(room_id: &RoomId, changes: &[MembershipChange]) -> Vec<Statement> {
    let is_out = |change: &&MembershipChange| matches!(change.membership, Membership::Leave | Membership::Ban);
    let users = text_lists(changes.iter().filter(is_out).map(|change| change.user_id.as_str()));
    let each = |users: String| [PUT_OUT, PUT_OUT_LARGE].map(|sql| of_users(sql, room_id, &users));
    users.into_iter().flat_map(each).collect()
}

fn of_users(sql: &'static str, room_id: &RoomId, users: &str) -> Statement {
    Statement::new(sql, [room_id.as_str().into(), users.into()])
}

/// Has the batch to which it belongs come to nothing where the join has ended.
pub(crate) fn still_open(room_id: &RoomId, join: &JoinUnderWay) -> Statement {
    of_join(STILL_OPEN, room_id, join)
}

fn of_join(sql: &'static str, room_id: &RoomId, join: &JoinUnderWay) -> Statement {
    Statement::new(sql, [room_id.as_str().into(), join.join_id.as_str().into(), join.is_staged.into()])
}
