//! Profiles as a whole (Client-Server API, "Profiles"): a user's name and picture, and the fields beside them.

use super::{Store, lacking};
use crate::{
    matrix::json::{self, Object},
    platform::{DatabaseError, Statement},
};

/// What a field takes beside its name and value: two quotes, a colon and a comma.
const AROUND: i64 = 4;

/// ?1 user.
const OWN: &str = "SELECT displayname, avatar_url FROM users WHERE user_id = ?1";
/// ?1 user.
const FIELDS: &str = "SELECT name, value FROM profile_fields WHERE user_id = ?1";
/// ?1 user, ?2 name, ?3 value, ?4 how many bytes the whole may have, ?5 what a field takes beside its name and value.
const PUT: &str = "\
    INSERT INTO profile_fields (user_id, name, value) \
    SELECT u.user_id, ?2, ?3 FROM users AS u \
    WHERE u.user_id = ?1 AND length(CAST(?2 || ?3 AS BLOB)) + 3 * ?5 + 21 \
        + length(CAST(json_quote(COALESCE(u.displayname, '')) || json_quote(COALESCE(u.avatar_url, '')) AS BLOB)) \
        + COALESCE((SELECT SUM(length(CAST(f.name || f.value AS BLOB)) + ?5) FROM profile_fields AS f \
          WHERE f.user_id = ?1 AND f.name <> ?2), 0) <= ?4 \
    ON CONFLICT (user_id, name) DO UPDATE SET value = excluded.value RETURNING name";
/// ?1 user, ?2 name.
const REMOVE: &str = "DELETE FROM profile_fields WHERE user_id = ?1 AND name = ?2";

impl Store {
    /// The whole profile of a local user; `None` where there is no such user.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn whole_profile(&self, user_id: &str) -> Result<Option<Object>, DatabaseError> {
        let answers =
            self.batch(vec![Statement::new(OWN, [user_id.into()]), Statement::new(FIELDS, [user_id.into()])]).await?;
        let [own, fields] = answers.as_slice() else { return Err(lacking()) };
        let Some(own) = own.first() else { return Ok(None) };
        let mut profile = Object::new();
        for (column, name) in ["displayname", "avatar_url"].into_iter().enumerate() {
            if let Some(text) = own.optional_text(column)? {
                profile.insert(name, text);
            }
        }
        for row in fields {
            if let Ok(value) = json::parse(row.text(1)?.as_bytes()) {
                profile.insert(row.text(0)?, value);
            }
        }
        Ok(Some(profile))
    }

    /// Sets a field of a local user's profile, which is neither their name nor their picture, to a value in JSON. `false` where the
    /// profile would then have more than `max_bytes`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_profile_field(
        &self,
        user_id: &str,
        name: &str,
        value: &str,
        max_bytes: i64,
    ) -> Result<bool, DatabaseError> {
        let parameters = [user_id.into(), name.into(), value.into(), max_bytes.into(), AROUND.into()];
        Ok(!self.query(Statement::new(PUT, parameters)).await?.is_empty())
    }

    /// Removes such a field, where it is there.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn remove_profile_field(&self, user_id: &str, name: &str) -> Result<(), DatabaseError> {
        self.query(Statement::new(REMOVE, [user_id.into(), name.into()])).await.map(drop)
    }
}
