//! Local users, their devices with the access tokens, and their profiles.

use super::{Store, races::Race};
use crate::platform::{DatabaseError, Statement};

/// Who a valid access token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// The full user ID.
    pub user_id: String,
    /// The device that the token was made for.
    pub device_id: String,
}

/// A new login: what a row of `devices` holds.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// The full user ID.
    pub user_id: String,
    /// The device; an existing one loses its access token.
    pub device_id: String,
    /// SHA-256 of the new access token.
    pub token_hash: String,
    /// Ignored for a device that exists.
    pub display_name: Option<String>,
    /// Milliseconds since the epoch.
    pub created_ts: i64,
}

/// A user's display name and avatar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// `displayname`
    pub displayname: Option<String>,
    /// `avatar_url`, an `mxc:` URI.
    pub avatar_url: Option<String>,
}

impl Store {
    /// Creates a user, and logs them in where `device` is given. `false` where the user ID is taken.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn create_user(
        &self,
        user_id: &str,
        password: &str,
        now_ms: i64,
        device: Option<&NewDevice>,
    ) -> Result<bool, DatabaseError> {
        const INSERT: &str = "INSERT INTO users (user_id, password, displayname, created_ts) VALUES (?1, ?2, ?3, ?4)";
        let localpart = user_id.split(':').next().and_then(|local| local.get(1..)).unwrap_or_default();
        let mut statements =
            vec![Statement::new(INSERT, [user_id.into(), password.into(), localpart.into(), now_ms.into()])];
        statements.extend(device.map(put_device));
        match self.batch(statements).await {
            Ok(_) => Ok(true),
            Err(error) if Race::UserTaken.has_lost(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The password hash of `user_id`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn password_hash(&self, user_id: &str) -> Result<Option<String>, DatabaseError> {
        let rows =
            self.query(Statement::new("SELECT password FROM users WHERE user_id = ?1", [user_id.into()])).await?;
        rows.first().map(|row| row.text(0).map(str::to_owned)).transpose()
    }

    /// Notes until when the registration `session` may go on, which has shown the registration token.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn note_registration(&self, session: &str, until_ts: i64) -> Result<(), DatabaseError> {
        const NOTE: &str = "INSERT INTO registrations (session, until_ts) VALUES (?1, ?2) \
             ON CONFLICT (session) DO UPDATE SET until_ts = excluded.until_ts";
        self.query(Statement::new(NOTE, [session.into(), until_ts.into()])).await.map(drop)
    }

    /// Whether the registration `session` has shown the registration token and may go on at `now_ms`; it may do so once.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn take_registration(&self, session: &str, now_ms: i64) -> Result<bool, DatabaseError> {
        const TAKE: &str = "DELETE FROM registrations WHERE session = ?1 RETURNING until_ts";
        let rows = self.query(Statement::new(TAKE, [session.into()])).await?;
        rows.first().map_or(Ok(false), |row| Ok(row.integer(0)? > now_ms))
    }

    /// Logs a device in.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn log_in(&self, device: &NewDevice) -> Result<(), DatabaseError> {
        self.query(put_device(device)).await.map(drop)
    }

    /// Who the access token with this hash speaks for.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn token(&self, token_hash: &str) -> Result<Option<TokenRow>, DatabaseError> {
        const SELECT: &str = "SELECT user_id, device_id FROM devices WHERE token_hash = ?1";
        let rows = self.query(Statement::new(SELECT, [token_hash.into()])).await?;
        rows.first()
            .map(|row| Ok(TokenRow { user_id: row.text(0)?.to_owned(), device_id: row.text(1)?.to_owned() }))
            .transpose()
    }

    /// The profile of a local user; `None` where there is no such user.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn profile(&self, user_id: &str) -> Result<Option<Profile>, DatabaseError> {
        const SELECT: &str = "SELECT displayname, avatar_url FROM users WHERE user_id = ?1";
        let rows = self.query(Statement::new(SELECT, [user_id.into()])).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(Profile {
            displayname: row.optional_text(0)?.map(str::to_owned),
            avatar_url: row.optional_text(1)?.map(str::to_owned),
        }))
    }

    /// Sets both members of a local user's profile.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_profile(&self, user_id: &str, profile: &Profile) -> Result<(), DatabaseError> {
        const UPDATE: &str = "UPDATE users SET displayname = ?2, avatar_url = ?3 WHERE user_id = ?1";
        let parameters = [user_id.into(), profile.displayname.as_deref().into(), profile.avatar_url.as_deref().into()];
        self.query(Statement::new(UPDATE, parameters)).await.map(drop)
    }
}

fn put_device(device: &NewDevice) -> Statement {
    const UPSERT: &str = "INSERT INTO devices (user_id, device_id, token_hash, display_name, created_ts) \
         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (user_id, device_id) DO UPDATE SET token_hash = excluded.token_hash";
    Statement::new(
        UPSERT,
        [
            device.user_id.as_str().into(),
            device.device_id.as_str().into(),
            device.token_hash.as_str().into(),
            device.display_name.as_deref().into(),
            device.created_ts.into(),
        ],
    )
}
