//! Users who have deactivated their accounts.

use super::{Store, devices::Devices};
use crate::{
    matrix::{
        identifiers::{RoomId, ServerName, UserId},
        state_content::Membership,
    },
    platform::{DatabaseError, Statement},
};

/// What belongs to a user alone and goes with the account. ?1 user.
const DELETIONS: [&str; 12] = [
    "DELETE FROM account_data WHERE user_id = ?1",
    "DELETE FROM filters WHERE user_id = ?1",
    "DELETE FROM unread_counts WHERE user_id = ?1",
    "DELETE FROM key_backup_sessions WHERE user_id = ?1",
    "DELETE FROM key_backups WHERE user_id = ?1",
    "DELETE FROM key_backup_versions WHERE user_id = ?1",
    "DELETE FROM key_signatures WHERE user_id = ?1",
    "DELETE FROM key_signatures WHERE signer = ?1",
    "DELETE FROM cross_signing_keys WHERE user_id = ?1",
    "DELETE FROM presence WHERE user_id = ?1",
    "DELETE FROM receipts WHERE user_id = ?1 AND receipt_type = 'm.read.private' \
       AND room_id IN (SELECT room_id FROM local_memberships WHERE user_id = ?1)",
    "DELETE FROM forgotten_rooms WHERE user_id = ?1",
];

/// Notes the rooms of the user ?1, before they go.
const ERASE: &str = "\
    INSERT INTO erased_users (room_id, user_id) \
    SELECT room_id, user_id FROM local_memberships WHERE user_id = ?1 \
    UNION SELECT room_id, user_id FROM forgotten_rooms WHERE user_id = ?1";

/// ?1 user.
const ERASE_PROFILE: &str = "DELETE FROM profile_fields WHERE user_id = ?1";

/// ?1: a list of users.
const DEPART_AT_ONCE: &str = "\
    INSERT INTO departures (user_id, retry_at) \
    SELECT u.user_id, 0 FROM json_each(?1) AS j CROSS JOIN users AS u ON u.user_id = j.value WHERE u.password = '' \
    ON CONFLICT (user_id) DO UPDATE SET retry_at = 0";

/// Has those of a list of users who enter a room, or are invited to it, leave it again who have deactivated their accounts while
/// another server was letting them in, while a large room was taken over, or while the invite was made.
pub(super) fn depart_at_once(users: String) -> Statement {
    Statement::new(DEPART_AT_ONCE, [users.into()])
}

impl Store {
    /// Ends an account: nobody logs in with it any more, its devices and what was its user's alone are deleted, and its rooms are to
    /// be left from `now` on. `is_erased`: who the user was called goes, too, and what they have sent is kept from those who come
    /// later. Returns the servers that are to be told of the devices.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn deactivate(
        &self,
        own: &ServerName,
        user: &UserId,
        is_erased: bool,
        now: i64,
    ) -> Result<Vec<ServerName>, DatabaseError> {
        const END: &str = "UPDATE users SET password = '', displayname = CASE WHEN ?2 THEN NULL ELSE displayname END, \
               avatar_url = CASE WHEN ?2 THEN NULL ELSE avatar_url END WHERE user_id = ?1";
        const DEPART: &str =
            "INSERT INTO departures (user_id, retry_at) VALUES (?1, ?2) ON CONFLICT (user_id) DO NOTHING";
        let user_id = user.as_str();
        let mut statements = vec![
            Statement::new(END, [user_id.into(), is_erased.into()]),
            Statement::new(DEPART, [user_id.into(), now.into()]),
        ];
        if is_erased {
            statements.push(Statement::new(ERASE, [user_id.into()]));
            statements.push(Statement::new(ERASE_PROFILE, [user_id.into()]));
        }
        statements.extend(DELETIONS.into_iter().map(|sql| Statement::new(sql, [user_id.into()])));
        self.delete_devices_after(statements, own, user, Devices::All).await
    }

    /// Takes a user in hand who has rooms to leave, for so many milliseconds; those first who have waited longest. Says how often
    /// that was done before.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn take_departure(&self, now: i64, for_ms: i64) -> Result<Option<(UserId, i64)>, DatabaseError> {
        const TAKE: &str = "UPDATE departures SET retry_at = ?2, attempts = attempts + 1 WHERE user_id = \
             (SELECT user_id FROM departures WHERE retry_at <= ?1 ORDER BY retry_at LIMIT 1) \
             RETURNING user_id, attempts - 1 AS attempts";
        let rows = self.query(Statement::new(TAKE, [now.into(), now.saturating_add(for_ms).into()])).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let user = UserId::parse(row.text(0)?);
        let user = user.map_err(|_| DatabaseError::Shape("a user ID that is none".to_owned()))?;
        Ok(Some((user, row.integer(1)?)))
    }

    /// Puts off what is left to do for a user.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_off_departure(&self, user: &UserId, until: i64) -> Result<(), DatabaseError> {
        const PUT_OFF: &str = "UPDATE departures SET retry_at = ?2 WHERE user_id = ?1";
        self.query(Statement::new(PUT_OFF, [user.as_str().into(), until.into()])).await.map(drop)
    }

    /// Notes that a user has left all rooms, or that nothing more is done for it; unless the user has entered one since
    /// [`Store::take_departure`].
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn end_departure(&self, user: &UserId) -> Result<(), DatabaseError> {
        const END: &str = "DELETE FROM departures WHERE user_id = ?1 AND retry_at > 0";
        self.query(Statement::new(END, [user.as_str().into()])).await.map(drop)
    }

    /// The rooms that a user has to leave: joined ones, invites and knocks.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn rooms_to_leave(&self, user: &UserId) -> Result<Vec<RoomId>, DatabaseError> {
        let mut rooms = Vec::new();
        for membership in [Membership::Join, Membership::Invite, Membership::Knock] {
            rooms.extend(self.rooms_of(user, membership).await?);
        }
        Ok(rooms)
    }
}
