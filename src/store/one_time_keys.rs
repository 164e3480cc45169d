//! One-time keys and fallback keys: each one-time key is given out once, by the statement that deletes it.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Store, json_lists, lacking};
use crate::platform::{DatabaseError, Rows, Statement};

/// A one-time or fallback key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneTimeKey {
    /// Its algorithm.
    pub algorithm: String,
    /// Its name, without the algorithm.
    pub key_id: String,
    /// The key, as JSON.
    pub key: String,
}

/// A key that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Of which user,
    pub user_id: String,
    /// and device,
    pub device_id: String,
    /// of which algorithm.
    pub algorithm: String,
    /// Whether only a fallback key is given out.
    pub only_fallback: bool,
}

/// A key that was given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Of which user,
    pub user_id: String,
    /// and device.
    pub device_id: String,
    /// The key.
    pub key: OneTimeKey,
}

/// What is left of a device's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// By algorithm, how many one-time keys there are.
    pub one_time: BTreeMap<String, i64>,
    /// The algorithms of which there is a fallback key that was never given out.
    pub unused_fallback: Vec<String>,
}

/// How many one-time keys of a device are kept. Clients upload some fifty.
const MAX_KEYS: i64 = 1_000;

/// ?1 user, ?2 device, ?3 a list of [algorithm, key ID, key], ?4 when, ?5 the most. A key that is there with another content
/// breaks the constraint, so that nothing of the batch is stored. Keys of a device that is gone are not.
const PUT_ONE_TIME_KEYS: &str = "\
    INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, key, uploaded_ts) \
    SELECT d.user_id, d.device_id, k.value ->> 0, k.value ->> 1, k.value ->> 2, ?4 \
    FROM json_each(?3) AS k CROSS JOIN devices AS d ON d.user_id = ?1 AND d.device_id = ?2 WHERE true \
    LIMIT (SELECT MAX(0, ?5 - count(*)) FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2) \
    ON CONFLICT (user_id, device_id, algorithm, key_id) DO UPDATE SET key = NULL WHERE key <> excluded.key";

/// The sentence of the constraint that [`PUT_ONE_TIME_KEYS`] breaks.
const OTHER_CONTENT: &str = "NOT NULL constraint failed: one_time_keys.key";

/// Of how many algorithms fallback keys of a device are kept. Clients have one.
const MAX_FALLBACK_KEYS: i64 = 10;

/// ?1 user, ?2 device, ?3 a list of [algorithm, key ID, key], ?4 the most. The same key again stays used.
const PUT_FALLBACK_KEYS: &str = "\
    INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, key, used) \
    SELECT d.user_id, d.device_id, k.value ->> 0, k.value ->> 1, k.value ->> 2, 0 \
    FROM json_each(?3) AS k CROSS JOIN devices AS d ON d.user_id = ?1 AND d.device_id = ?2 \
    WHERE (SELECT count(*) FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2) + k.key < ?4 \
      OR EXISTS (SELECT 1 FROM fallback_keys AS f \
        WHERE f.user_id = ?1 AND f.device_id = ?2 AND f.algorithm = k.value ->> 0) \
    ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET key_id = excluded.key_id, key = excluded.key, used = 0 \
      WHERE key_id <> excluded.key_id OR key <> excluded.key";

/// Whether the device ?2 of ?1 has other identity keys than ?3.
macro_rules! has_other_identity {
    () => {
        "EXISTS (SELECT 1 FROM device_keys AS k WHERE k.user_id = ?1 AND k.device_id = ?2 AND k.keys ->> '$.keys' <> ?3 ->> '$.keys')"
    };
}

const DROP_ONE_TIME_KEYS: &str =
    concat!("DELETE FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2 AND ", has_other_identity!());

const DROP_FALLBACK_KEYS: &str =
    concat!("DELETE FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2 AND ", has_other_identity!());

const COUNTS: &str = "\
    SELECT algorithm, count(*) AS left FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2 GROUP BY algorithm";

const UNUSED_FALLBACK: &str =
    "SELECT algorithm FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2 AND used = 0 ORDER BY algorithm";

/// Whether of what is `wanted` only a fallback key can be given out. In the same batch as [`CLAIM`], before it.
macro_rules! falls_back {
    () => {
        "(wanted.value ->> 3 OR NOT EXISTS (SELECT 1 FROM one_time_keys AS k WHERE k.user_id = wanted.value ->> 0 \
           AND k.device_id = wanted.value ->> 1 AND k.algorithm = wanted.value ->> 2))"
    };
}

/// ?1, here and below: a list of [user, device, algorithm, whether only a fallback key is given out].
const FALL_BACK: &str = concat!(
    "SELECT f.user_id, f.device_id, f.algorithm, f.key_id, f.key FROM json_each(?1) AS wanted \
       CROSS JOIN fallback_keys AS f ON f.user_id = wanted.value ->> 0 AND f.device_id = wanted.value ->> 1 \
         AND f.algorithm = wanted.value ->> 2 \
     WHERE ",
    falls_back!()
);

const USE_UP: &str = concat!(
    "UPDATE fallback_keys SET used = 1 WHERE used = 0 AND (user_id, device_id, algorithm) IN ( \
       SELECT wanted.value ->> 0, wanted.value ->> 1, wanted.value ->> 2 FROM json_each(?1) AS wanted WHERE ",
    falls_back!(),
    ")"
);

/// The oldest key of each kind that is wanted. A device without a fallback key gives out what it has.
const CLAIM: &str = "\
    DELETE FROM one_time_keys WHERE (user_id, device_id, algorithm, key_id) IN ( \
      SELECT wanted.value ->> 0, wanted.value ->> 1, wanted.value ->> 2, ( \
        SELECT k.key_id FROM one_time_keys AS k WHERE k.user_id = wanted.value ->> 0 AND k.device_id = wanted.value ->> 1 \
          AND k.algorithm = wanted.value ->> 2 ORDER BY k.uploaded_ts, k.key_id LIMIT 1) \
      FROM json_each(?1) AS wanted WHERE NOT (wanted.value ->> 3 AND EXISTS ( \
        SELECT 1 FROM fallback_keys AS f WHERE f.user_id = wanted.value ->> 0 AND f.device_id = wanted.value ->> 1 \
          AND f.algorithm = wanted.value ->> 2))) \
    RETURNING user_id, device_id, algorithm, key_id, key";

impl Store {
    /// Stores keys of a device and says what it has then. `None`, and nothing is stored, where a one-time key of that name is
    /// there with another content.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_one_time_keys(
        &self,
        (user_id, device_id): (&str, &str),
        one_time: &[OneTimeKey],
        fallback: &[OneTimeKey],
        now_ms: i64,
    ) -> Result<Option<KeyCounts>, DatabaseError> {
        let lists = |keys: &[OneTimeKey]| {
            json_lists(keys.iter().map(|key| json!([key.algorithm, key.key_id, key.key]).to_string()))
        };
        let device = || [user_id.into(), device_id.into()];
        let mut statements: Vec<Statement> = lists(one_time)
            .into_iter()
            .map(|list| {
                let [user, device] = device();
                Statement::new(PUT_ONE_TIME_KEYS, [user, device, list.into(), now_ms.into(), MAX_KEYS.into()])
            })
            .collect();
        statements.extend(lists(fallback).into_iter().map(|list| {
            let [user, device] = device();
            Statement::new(PUT_FALLBACK_KEYS, [user, device, list.into(), MAX_FALLBACK_KEYS.into()])
        }));
        statements.extend(counts(user_id, device_id));
        match self.batch(statements).await {
            Ok(answers) => match &answers[..] {
                [.., left, unused] => read_counts(left, unused).map(Some),
                _ => Err(lacking()),
            },
            Err(DatabaseError::Constraint(why)) if why.contains(OTHER_CONTENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What keys a device has left.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn key_counts(&self, user_id: &str, device_id: &str) -> Result<KeyCounts, DatabaseError> {
        match self.batch(counts(user_id, device_id).into()).await?.as_slice() {
            [counts, unused] => read_counts(counts, unused),
            _ => Err(DatabaseError::Shape("two answers were expected".to_owned())),
        }
    }

    /// Gives out a key for each that is wanted, as far as there are any: a one-time key, else the fallback key. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn claim_keys(&self, wanted: &[Wanted]) -> Result<Vec<Claimed>, DatabaseError> {
        let item = |Wanted { user_id, device_id, algorithm, only_fallback }: &Wanted| {
            json!([user_id, device_id, algorithm, i64::from(*only_fallback)]).to_string()
        };
        let statements = json_lists(wanted.iter().map(item))
            .into_iter()
            .flat_map(|list| [FALL_BACK, USE_UP, CLAIM].map(|sql| Statement::new(sql, [list.as_str().into()])))
            .collect();
        let rows = self.batch(statements).await?.concat();
        rows.iter()
            .map(|row| {
                let text = |column| row.text(column).map(str::to_owned);
                let key = OneTimeKey { algorithm: text(2)?, key_id: text(3)?, key: text(4)? };
                Ok(Claimed { user_id: text(0)?, device_id: text(1)?, key })
            })
            .collect()
    }
}

/// Before a device gets these keys: if they are another identity, what the one before has signed goes, as it would be given out to
/// those who cannot verify it.
pub(super) fn end_with_identity(user_id: &str, device_id: &str, keys: &str) -> [Statement; 2] {
    [DROP_ONE_TIME_KEYS, DROP_FALLBACK_KEYS]
        .map(|sql| Statement::new(sql, [user_id.into(), device_id.into(), keys.into()]))
}

/// What a device has; [`read_counts`] reads the answers.
pub(super) fn counts(user_id: &str, device_id: &str) -> [Statement; 2] {
    [COUNTS, UNUSED_FALLBACK].map(|sql| Statement::new(sql, [user_id.into(), device_id.into()]))
}

/// Reads the answers to [`counts`].
pub(super) fn read_counts(counts: &Rows, unused: &Rows) -> Result<KeyCounts, DatabaseError> {
    Ok(KeyCounts {
        one_time: counts
            .iter()
            .map(|row| Ok((row.text(0)?.to_owned(), row.integer(1)?)))
            .collect::<Result<_, DatabaseError>>()?,
        unused_fallback: unused
            .iter()
            .map(|row| row.text(0).map(str::to_owned))
            .collect::<Result<_, DatabaseError>>()?,
    })
}
