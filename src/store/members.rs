//! The local users of a room.

use serde_json::json;

use super::{Store, written};
use crate::{
    matrix::{
        identifiers::{EventId, RoomId, ServerName, UserId},
        room_version::RoomVersion,
    },
    platform::{DatabaseError, Row, Rows, Statement},
};

const LOCAL_MEMBERS: &str =
    "SELECT user_id FROM local_memberships WHERE room_id = ?1 AND membership = 'join' ORDER BY user_id";

/// ?1: a list of [user, room]. The invite itself is the member of the state that came with it whose state key is the invited
/// user.
const INVITATIONS: &str = "\
    SELECT m.user_id, m.room_id, m.event_id, (SELECT j.value ->> 'sender' FROM json_each(m.invite_state) AS j \
      WHERE j.value ->> 'type' = 'm.room.member' AND j.value ->> 'state_key' = m.user_id LIMIT 1) AS inviter, \
      COALESCE(m.room_version, (SELECT j.value ->> '$.content.room_version' FROM json_each(m.invite_state) AS j \
      WHERE j.value ->> 'type' = 'm.room.create' LIMIT 1)) AS room_version, m.invite_state IS NOT NULL, \
      m.membership = 'knock', m.via \
    FROM json_each(?1) AS wanted JOIN local_memberships AS m \
      ON m.user_id = wanted.value ->> 0 AND m.room_id = wanted.value ->> 1 AND m.membership IN ('invite', 'knock')";

/// The same of the knocks that are being made.
const PENDING_KNOCKS: &str = "\
    SELECT p.user_id, p.room_id, p.knock, p.user_id AS inviter, p.room_version, 1 AS has_state, 1 AS is_knock, NULL AS via FROM json_each(?1) AS wanted \
      CROSS JOIN pending_knocks AS p ON p.user_id = wanted.value ->> 0 AND p.room_id = wanted.value ->> 1";

/// An invite to (or a knock on) a room that we need not be in.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// Who is invited,
    pub user_id: UserId,
    /// and to where.
    pub room_id: RoomId,
    /// The membership event.
    pub event_id: EventId,
    /// Who invited, where that is known; of a knock, who knocks.
    pub inviter: Option<UserId>,
    /// Whether it is a knock.
    pub is_knock: bool,
    /// The server through which a knock was made.
    pub via: Option<ServerName>,
    /// The version of the room, as who sent the invite says it, where that is known.
    pub room_version: Option<&'static RoomVersion>,
    /// Whether it came by itself: the room as we hold it, if we do, has not got it.
    pub is_outside: bool,
}

impl Store {
    /// The invite or knock that a local user has in a room.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn invitation(&self, user: &UserId, room_id: &RoomId) -> Result<Option<Invitation>, DatabaseError> {
        Ok(invitations(&self.query(invitation_statement(user, room_id)).await?)?.pop())
    }

    /// What may be ended of local users in these rooms, pairs of user and room: invites, and knocks, those that are being made among
    /// them. One call.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn invitations<'a>(
        &self,
        of: impl IntoIterator<Item = (&'a UserId, &'a RoomId)>,
    ) -> Result<Vec<Invitation>, DatabaseError> {
        let of = list(of);
        let statements = [INVITATIONS, PENDING_KNOCKS].map(|sql| Statement::new(sql, [of.as_str().into()]));
        invitations(&self.batch(statements.into()).await?.concat())
    }

    /// The local users who are joined to the room.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn local_members(&self, room_id: &RoomId) -> Result<Vec<UserId>, DatabaseError> {
        let rows = self.query(Statement::new(LOCAL_MEMBERS, [room_id.as_str().into()])).await?;
        rows.iter().map(|row| user_id(row.text(0)?)).collect()
    }
}

/// The invite or knock that a local user has in a room; read by [`invitations`].
pub(super) fn invitation_statement(user: &UserId, room_id: &RoomId) -> Statement {
    Statement::new(INVITATIONS, [list([(user, room_id)]).into()])
}

fn list<'a>(of: impl IntoIterator<Item = (&'a UserId, &'a RoomId)>) -> String {
    let of: Vec<_> = of.into_iter().map(|(user, room_id)| json!([user.as_str(), room_id.as_str()])).collect();
    json!(of).to_string()
}

pub(super) fn invitations(rows: &Rows) -> Result<Vec<Invitation>, DatabaseError> {
    let read = |row: &Row| {
        let shape = |what: &str, text: &str| DatabaseError::Shape(format!("{text:?} is no {what}"));
        let (room_id, event_id) = (row.text(1)?, row.text(2)?);
        Ok(Invitation {
            user_id: user_id(row.text(0)?)?,
            room_id: RoomId::parse(room_id).map_err(|_| shape("room ID", room_id))?,
            event_id: EventId::parse(event_id).map_err(|_| shape("event ID", event_id))?,
            inviter: row.optional_text(3)?.map(user_id).transpose()?,
            room_version: row.optional_text(4)?.and_then(RoomVersion::get),
            is_outside: row.integer(5)? != 0,
            is_knock: row.integer(6)? != 0,
            via: row.optional_text(7)?.map(|name| written(name, ServerName::parse)).transpose()?,
        })
    };
    rows.iter().map(read).collect()
}

fn user_id(text: &str) -> Result<UserId, DatabaseError> {
    UserId::parse(text).map_err(|_| DatabaseError::Shape(format!("{text:?} is not a user ID")))
}
