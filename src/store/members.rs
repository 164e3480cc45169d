//! The local users of a room.

use super::Store;
use crate::{
    matrix::identifiers::{EventId, RoomId, UserId},
    platform::{DatabaseError, Statement},
};

const LOCAL_MEMBERS: &str =
    "SELECT user_id FROM local_memberships WHERE room_id = ?1 AND membership = 'join' ORDER BY user_id";

/// The invite itself is the member of the state that came with it whose state key is the invited user.
const INVITATION: &str = "\
    SELECT m.event_id, (SELECT j.value ->> 'sender' FROM json_each(m.invite_state) AS j \
      WHERE j.value ->> 'type' = 'm.room.member' AND j.value ->> 'state_key' = m.user_id LIMIT 1) AS inviter \
    FROM local_memberships AS m WHERE m.user_id = ?1 AND m.room_id = ?2 AND m.membership IN ('invite', 'knock')";

/// An invite to (or a knock on) a room that we need not be in.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// The membership event.
    pub event_id: EventId,
    /// Who invited, where that is known.
    pub inviter: Option<UserId>,
}

impl Store {
    /// The invite or knock that a local user has in a room.
    ///
    /// # Errors
    /// As the database says.
    pub async fn invitation(&self, user: &UserId, room_id: &RoomId) -> Result<Option<Invitation>, DatabaseError> {
        let rows = self.query(Statement::new(INVITATION, [user.as_str().into(), room_id.as_str().into()])).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let id = row.text(0)?;
        Ok(Some(Invitation {
            event_id: EventId::parse(id).map_err(|_| DatabaseError::Shape(format!("{id:?} is no event ID")))?,
            inviter: row.optional_text(1)?.map(user_id).transpose()?,
        }))
    }

    /// The local users who are joined to the room.
    ///
    /// # Errors
    /// As the database says.
    pub async fn local_members(&self, room_id: &RoomId) -> Result<Vec<UserId>, DatabaseError> {
        let rows = self.query(Statement::new(LOCAL_MEMBERS, [room_id.as_str().into()])).await?;
        rows.iter().map(|row| user_id(row.text(0)?)).collect()
    }
}

fn user_id(text: &str) -> Result<UserId, DatabaseError> {
    UserId::parse(text).map_err(|_| DatabaseError::Shape(format!("{text:?} is no user ID")))
}
