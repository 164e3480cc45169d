//! Other servers' signing keys, and when they were asked for.
//!
//! Which response counts and when to ask again is decided in `matrix::server_keys` and `federation::peers::key_fetcher`.

use std::collections::BTreeSet;

use serde_json::json;

use super::{Store, json_lists, key_responses};
use crate::{
    matrix::{
        json::MAX_INTEGER,
        server_keys::{KnownKey, ServerKeys},
        signing::VerifyKey,
    },
    platform::{DatabaseError, Row, Rows, Statement},
};

/// When a server's keys may be asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyFetch {
    /// How many times in a row asking did not bring what was needed.
    pub failures: i64,
    /// Not before this time, in milliseconds since the epoch.
    pub retry_at: i64,
}

/// What the store knows of some keys and their servers.
#[derive(Debug, Clone, Default)]
pub struct StoredKeys {
    /// Server, key id and key.
    pub keys: Vec<(String, String, KnownKey)>,
    /// Server, and when it may be asked again.
    pub fetches: Vec<(String, KeyFetch)>,
}

const SELECT_KEYS: &str = "SELECT k.server, k.key_id, k.public_key, k.valid_until_ts, k.expired_ts, k.fetched_ts \
     FROM json_each(?1) AS wanted JOIN server_keys AS k \
     ON k.server = json_extract(wanted.value, '$[0]') AND k.key_id = json_extract(wanted.value, '$[1]')";

const SELECT_FETCHES: &str = "SELECT f.server, f.failures, f.retry_at \
     FROM json_each(?1) AS wanted JOIN key_fetches AS f ON f.server = wanted.value";

/// The server's own word replaces what is known. A notary's word adds keys, and to known ones it adds that they
/// expired or are valid longer; it neither exchanges a key nor revives an expired one.
const UPSERT_KEYS: &str = "INSERT INTO server_keys (server, key_id, public_key, valid_until_ts, expired_ts, fetched_ts) \
     SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), \
     json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]') FROM json_each(?1) WHERE true \
     ON CONFLICT (server, key_id) DO UPDATE SET public_key = excluded.public_key, \
     valid_until_ts = excluded.valid_until_ts, expired_ts = excluded.expired_ts, fetched_ts = excluded.fetched_ts \
     WHERE CASE WHEN ?2 THEN excluded.fetched_ts >= fetched_ts ELSE excluded.public_key = public_key \
     AND expired_ts IS NULL AND (excluded.expired_ts IS NOT NULL OR excluded.valid_until_ts > valid_until_ts) END";

const UPSERT_FETCHES: &str = "INSERT INTO key_fetches (server, failures, retry_at) \
     SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') \
     FROM json_each(?1) WHERE true \
     ON CONFLICT (server) DO UPDATE SET failures = excluded.failures, retry_at = excluded.retry_at";

impl Store {
    /// The keys of `wanted` (server and key id) that are known, and when their servers may be asked. One call.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn keys(&self, wanted: &[(&str, &str)]) -> Result<StoredKeys, DatabaseError> {
        let mut statements = select_keys(wanted);
        let lists = statements.len();
        statements.extend(select_fetches(wanted));
        let answers = self.batch(statements).await?;
        let (keys, fetches) = answers.split_at_checked(lists).unwrap_or((&answers, &[]));
        Ok(StoredKeys {
            keys: read_keys(keys)?,
            fetches: fetches.iter().flatten().map(read_fetch).collect::<Result<_, _>>()?,
        })
    }

    /// Stores checked responses of servers about themselves, these also as they came, and of notaries about others, and when
    /// servers may be asked again. Answers with what is then known of `wanted`. One call.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_keys(
        &self,
        from_servers: &[ServerKeys],
        from_notaries: &[ServerKeys],
        fetches: &[(&str, KeyFetch)],
        wanted: &[(&str, &str)],
    ) -> Result<Vec<(String, String, KnownKey)>, DatabaseError> {
        let mut statements = Vec::new();
        for (responses, own_word) in [(from_servers, true), (from_notaries, false)] {
            let rows = responses.iter().flat_map(|response| {
                response.keys.iter().map(|(key_id, key)| {
                    let public_key = key.key.to_base64();
                    let expired_ts = key.expired_ts.map(within_range);
                    let valid_until_ts = within_range(key.valid_until());
                    json!([response.server_name, key_id, public_key, valid_until_ts, expired_ts, key.fetched_ts])
                        .to_string()
                })
            });
            let lists = json_lists(rows).into_iter();
            statements.extend(lists.map(|rows| Statement::new(UPSERT_KEYS, [rows.into(), own_word.into()])));
        }
        statements.extend(from_servers.iter().filter_map(key_responses::keep));
        let rows = fetches.iter().map(|(server, fetch)| json!([server, fetch.failures, fetch.retry_at]).to_string());
        statements.extend(json_lists(rows).into_iter().map(|rows| Statement::new(UPSERT_FETCHES, [rows.into()])));
        let writes = statements.len();
        statements.extend(select_keys(wanted));
        let answers = self.batch(statements).await?;
        read_keys(answers.get(writes..).unwrap_or_default())
    }
}

fn select_keys(wanted: &[(&str, &str)]) -> Vec<Statement> {
    let pairs = wanted.iter().map(|pair| json!(pair).to_string());
    json_lists(pairs).into_iter().map(|list| Statement::new(SELECT_KEYS, [list.into()])).collect()
}

fn select_fetches(wanted: &[(&str, &str)]) -> Vec<Statement> {
    let servers: BTreeSet<_> = wanted.iter().map(|(server, _)| *server).collect();
    let servers = servers.into_iter().map(|server| json!(server).to_string());
    json_lists(servers).into_iter().map(|list| Statement::new(SELECT_FETCHES, [list.into()])).collect()
}

fn read_keys(answers: &[Rows]) -> Result<Vec<(String, String, KnownKey)>, DatabaseError> {
    answers.iter().flatten().map(read_key).collect()
}

fn read_key(row: &Row) -> Result<(String, String, KnownKey), DatabaseError> {
    let key = VerifyKey::from_base64(row.text(2)?)
        .ok_or_else(|| DatabaseError::Shape("a stored public key is not a key".to_owned()))?;
    let known = KnownKey {
        key,
        valid_until_ts: row.integer(3)?,
        expired_ts: row.optional_integer(4)?,
        fetched_ts: row.integer(5)?,
    };
    Ok((row.text(0)?.to_owned(), row.text(1)?.to_owned(), known))
}

fn read_fetch(row: &Row) -> Result<(String, KeyFetch), DatabaseError> {
    Ok((row.text(0)?.to_owned(), KeyFetch { failures: row.integer(1)?, retry_at: row.integer(2)? }))
}

/// A time that somebody else chose, within what the database keeps exactly.
fn within_range(ts: i64) -> i64 {
    ts.clamp(-MAX_INTEGER, MAX_INTEGER)
}
