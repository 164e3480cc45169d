//! Local users, their devices with the access tokens, and their profiles.

use super::{
    Store,
    devices::Devices,
    ignored::{INVITE_PERMISSION, InvitePermission},
    races::Race,
};
use crate::{
    matrix::identifiers::{ServerName, UserId},
    platform::{DatabaseError, Row, Statement},
};

/// Breaks a constraint where the password is not the one with the hash ?2: `password` is NOT NULL.
const CHANGE_PASSWORD: &str = "UPDATE users SET password = CASE password WHEN ?2 THEN ?3 END WHERE user_id = ?1";

/// Who a valid access token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// The full user ID.
    pub user_id: String,
    /// The device that the token was made for.
    pub device_id: String,
    /// When it expires, in milliseconds since the epoch; `None`: never.
    pub expires_ts: Option<i64>,
    /// Whether it came from a refresh token and was not used before.
    pub is_next: bool,
}

/// What is kept of a refresh token and the access token that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// SHA-256 of the refresh token.
    pub refresh_hash: String,
    /// When the access token expires, in milliseconds since the epoch.
    pub expires_ts: i64,
}

/// What a user logs in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// There is no such user.
    Unknown,
    /// The user has deactivated the account.
    Deactivated,
    /// The hash of the password.
    Password(String),
}

impl Credentials {
    /// The hash of the password, where there is one.
    pub fn password(&self) -> Option<&str> {
        match self {
            Self::Password(hash) => Some(hash),
            Self::Unknown | Self::Deactivated => None,
        }
    }
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
    /// What the access token can be made anew with, where the client wants that.
    pub refresh: Option<Refresh>,
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

/// A field of a profile that rooms are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// `displayname`
    Name,
    /// `avatar_url`
    Picture,
}

impl Shown {
    /// What the field is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Name => "displayname",
            Self::Picture => "avatar_url",
        }
    }
}

/// The device whose access token has the hash ?1.
macro_rules! of_token {
    () => {
        "(SELECT user_id, device_id, expires_ts, 0 AS is_next FROM devices WHERE token_hash = ?1 \
          UNION ALL SELECT user_id, device_id, next_expires_ts, 1 FROM devices WHERE next_token_hash = ?1)"
    };
}
pub(super) use of_token;

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
        statements.extend(device.map(|device| put_device(device, password)));
        match self.batch(statements).await {
            Ok(_) => Ok(true),
            Err(error) if Race::UserTaken.has_lost(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What `user_id` logs in with.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn credentials(&self, user_id: &str) -> Result<Credentials, DatabaseError> {
        let rows =
            self.query(Statement::new("SELECT password FROM users WHERE user_id = ?1", [user_id.into()])).await?;
        let Some(row) = rows.first() else { return Ok(Credentials::Unknown) };
        let password = row.text(0)?;
        Ok(if password.is_empty() { Credentials::Deactivated } else { Credentials::Password(password.to_owned()) })
    }

    /// Changes a password, where it is still the one with the hash `old`, and deletes all devices but `only` with it, if that is given:
    /// also those that log in meanwhile. Returns the servers that are to be told of them; `None` where the password is another one.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn change_password(
        &self,
        own: &ServerName,
        user: &UserId,
        (old, new): (&str, &str),
        only: Option<&str>,
    ) -> Result<Option<Vec<ServerName>>, DatabaseError> {
        let change = Statement::new(CHANGE_PASSWORD, [user.as_str().into(), old.into(), new.into()]);
        let outcome = match only {
            None => self.query(change).await.map(|_| Vec::new()),
            Some(only) => self.delete_devices_after(vec![change], own, user, Devices::AllBut(only)).await,
        };
        match outcome {
            Err(error) if Race::PasswordChanged.has_lost(&error) => Ok(None),
            outcome => outcome.map(Some),
        }
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

    /// Logs a device in, where the password is still the one with the hash `password`. `false` where it is not.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn log_in(&self, device: &NewDevice, password: &str) -> Result<bool, DatabaseError> {
        Ok(!self.query(put_device(device, password)).await?.is_empty())
    }

    /// Who the access token with this hash speaks for.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn token(&self, token_hash: &str) -> Result<Option<TokenRow>, DatabaseError> {
        const SELECT: &str =
            concat!("SELECT d.user_id, d.device_id, d.expires_ts, d.is_next FROM ", of_token!(), " AS d");
        let rows = self.query(Statement::new(SELECT, [token_hash.into()])).await?;
        rows.first().map(token_row).transpose()
    }

    /// Has the next pair of tokens take the place of the one before, of which one is used.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn take_next_tokens(&self, token_hash: &str) -> Result<(), DatabaseError> {
        const TAKE: &str = "UPDATE devices SET token_hash = next_token_hash, expires_ts = next_expires_ts, \
               refresh_hash = next_refresh_hash, next_token_hash = NULL, next_expires_ts = NULL, next_refresh_hash = NULL \
             WHERE next_token_hash = ?1";
        self.query(Statement::new(TAKE, [token_hash.into()])).await.map(drop)
    }

    /// Exchanges the refresh token with the hash `used` for the next pair of tokens. `false` where it is not known.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn refresh(&self, used: &str, token_hash: &str, next: &Refresh) -> Result<bool, DatabaseError> {
        const TAKE: &str = "UPDATE devices SET token_hash = next_token_hash, expires_ts = next_expires_ts, \
               refresh_hash = next_refresh_hash, next_token_hash = NULL, next_expires_ts = NULL, next_refresh_hash = NULL \
             WHERE next_refresh_hash = ?1";
        const NEXT: &str = "UPDATE devices SET next_token_hash = ?2, next_expires_ts = ?3, next_refresh_hash = ?4 \
             WHERE refresh_hash = ?1 RETURNING user_id";
        let parameters = [used.into(), token_hash.into(), next.expires_ts.into(), next.refresh_hash.as_str().into()];
        let answers = self.batch(vec![Statement::new(TAKE, [used.into()]), Statement::new(NEXT, parameters)]).await?;
        Ok(answers.last().is_some_and(|rows| !rows.is_empty()))
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

    /// The profile of a local user who is to be invited, and whether they want to be; `None` where there is no such user, or none
    /// any more.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn invitee(&self, user_id: &str) -> Result<Option<(Profile, InvitePermission)>, DatabaseError> {
        const SELECT: &str = "SELECT u.displayname, u.avatar_url, (SELECT a.content FROM account_data AS a \
               WHERE a.user_id = u.user_id AND a.room_id = '' AND a.event_type = ?2) AS permission \
             FROM users AS u WHERE u.user_id = ?1 AND u.password <> ''";
        let rows = self.query(Statement::new(SELECT, [user_id.into(), INVITE_PERMISSION.into()])).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let profile = Profile {
            displayname: row.optional_text(0)?.map(str::to_owned),
            avatar_url: row.optional_text(1)?.map(str::to_owned),
        };
        Ok(Some((profile, row.optional_text(2)?.map(InvitePermission::of).unwrap_or_default())))
    }

    /// The profile of a user who is logged in here.
    ///
    /// # Errors
    /// Where there is no such user, and where the database fails.
    pub async fn own_profile(&self, user_id: &str) -> Result<Profile, DatabaseError> {
        let profile = self.profile(user_id).await?;
        profile.ok_or_else(|| DatabaseError::Shape("a session of a user whom there is not".to_owned()))
    }

    /// Sets a field of a local user's profile that rooms are told, or removes it. The other one stays as it is: it may be set at the
    /// same time.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_shown(&self, user_id: &str, field: Shown, value: Option<&str>) -> Result<(), DatabaseError> {
        let update = match field {
            Shown::Name => "UPDATE users SET displayname = ?2 WHERE user_id = ?1",
            Shown::Picture => "UPDATE users SET avatar_url = ?2 WHERE user_id = ?1",
        };
        self.query(Statement::new(update, [user_id.into(), value.into()])).await.map(drop)
    }
}

/// The first columns of a row of [`of_token`].
pub(super) fn token_row(row: &Row) -> Result<TokenRow, DatabaseError> {
    Ok(TokenRow {
        user_id: row.text(0)?.to_owned(),
        device_id: row.text(1)?.to_owned(),
        expires_ts: row.optional_integer(2)?,
        is_next: row.integer(3)? != 0,
    })
}

fn put_device(device: &NewDevice, password: &str) -> Statement {
    const UPSERT: &str = "INSERT INTO devices (user_id, device_id, token_hash, display_name, created_ts, expires_ts, refresh_hash) \
         SELECT user_id, ?2, ?3, ?4, ?5, ?6, ?7 FROM users WHERE user_id = ?1 AND password = ?8 \
         ON CONFLICT (user_id, device_id) DO UPDATE SET token_hash = excluded.token_hash, expires_ts = excluded.expires_ts, \
           refresh_hash = excluded.refresh_hash, next_token_hash = NULL, next_expires_ts = NULL, next_refresh_hash = NULL \
         RETURNING device_id";
    let refresh = device.refresh.as_ref();
    Statement::new(
        UPSERT,
        [
            device.user_id.as_str().into(),
            device.device_id.as_str().into(),
            device.token_hash.as_str().into(),
            device.display_name.as_deref().into(),
            device.created_ts.into(),
            refresh.map(|refresh| refresh.expires_ts).into(),
            refresh.map(|refresh| refresh.refresh_hash.as_str()).into(),
            password.into(),
        ],
    )
}
