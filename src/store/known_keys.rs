//! Other servers' signing keys, and when they were asked for.
//!
//! A key that has verified an event which is kept is kept with it: it may be asked for when its server is long gone. Others have
//! a fixed number of places ([`super::places`]), for anybody can sign a request in the name of a server that they make up.
//!
//! Which response counts and when to ask again is decided in `matrix::server_keys` and `federation::peers::key_fetcher`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    Store, json_lists, key_responses,
    places::{first_place, place, place_within},
};
use crate::{
    matrix::{
        event::Event,
        json::MAX_INTEGER,
        server_keys::{KnownKey, ServerKeys},
        signing::{self, VerifyKey},
    },
    platform::{DatabaseError, Row, Statement},
};

/// When a server's keys may be asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyFetch {
    /// How many times in a row asking did not bring what was needed.
    pub failures: i64,
    /// Not before this time, in milliseconds since the epoch.
    pub retry_at: i64,
}

/// One key that the store holds.
#[derive(Debug, Clone)]
pub struct StoredKey {
    /// Whose it is.
    pub server: String,
    /// Its id.
    pub key_id: String,
    /// The key.
    pub key: KnownKey,
    /// Whether it has verified an event that is kept, and so is kept itself. Others give way to what comes later.
    pub is_kept: bool,
}

/// What the store knows of some servers.
#[derive(Debug, Clone, Default)]
pub struct StoredKeys {
    /// Their keys.
    pub keys: Vec<StoredKey>,
    /// Server, and when it may be asked again.
    pub fetches: Vec<(String, KeyFetch)>,
}

/// How many servers have places for keys that verified no event that is kept.
const PASSING_SERVERS: i64 = 4_096;
/// How many servers are remembered that were asked in vain.
const FETCHES: i64 = 16_384;

/// ?1: a list of [server, its first place].
const SELECT_KEYS: &str = "\
    SELECT k.server, k.key_id, k.public_key, k.valid_until_ts, k.expired_ts, k.fetched_ts, 1 AS is_kept \
    FROM json_each(?1) AS wanted CROSS JOIN server_keys AS k ON k.server = wanted.value ->> 0 \
    UNION ALL \
    SELECT p.server, p.key_id, p.public_key, p.valid_until_ts, p.expired_ts, p.fetched_ts, 0 \
    FROM json_each(?1) AS wanted CROSS JOIN passing_keys AS p \
      ON p.place BETWEEN wanted.value ->> 1 AND (wanted.value ->> 1) + 7 AND p.server = wanted.value ->> 0";

/// ?1: a list of [place, server].
const SELECT_FETCHES: &str = "\
    SELECT f.server, f.failures, f.retry_at FROM json_each(?1) AS wanted \
    CROSS JOIN key_fetches AS f ON f.place = wanted.value ->> 0 AND f.server = wanted.value ->> 1";

/// The server's own word replaces what is known. A notary's word adds to what is known that it expired or is valid longer; it
/// neither exchanges a key nor revives an expired one. As [`KnownKey::gives_way_to`].
const RENEW_KEYS: &str = "\
    INSERT INTO server_keys (server, key_id, public_key, valid_until_ts, expired_ts, fetched_ts) \
    SELECT k.server, k.key_id, said.value ->> 2, said.value ->> 3, said.value ->> 4, said.value ->> 5 \
    FROM json_each(?1) AS said CROSS JOIN server_keys AS k \
      ON k.server = said.value ->> 0 AND k.key_id = said.value ->> 1 WHERE true \
    ON CONFLICT (server, key_id) DO UPDATE SET public_key = excluded.public_key, \
      valid_until_ts = excluded.valid_until_ts, expired_ts = excluded.expired_ts, fetched_ts = excluded.fetched_ts \
    WHERE CASE WHEN ?2 THEN excluded.fetched_ts >= fetched_ts ELSE excluded.public_key = public_key \
      AND expired_ts IS NULL AND (excluded.expired_ts IS NOT NULL OR excluded.valid_until_ts > valid_until_ts) END";

const UPSERT_FETCHES: &str = "\
    INSERT INTO key_fetches (place, server, failures, retry_at) \
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?1) WHERE true \
    ON CONFLICT (place) DO UPDATE SET server = excluded.server, failures = excluded.failures, retry_at = excluded.retry_at";

const PUT_PASSING: &str = "\
    INSERT INTO passing_keys (place, server, key_id, public_key, valid_until_ts, expired_ts, fetched_ts) \
    SELECT value ->> 6, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5 FROM json_each(?1) \
    WHERE NOT EXISTS (SELECT 1 FROM server_keys AS k WHERE k.server = value ->> 0 AND k.key_id = value ->> 1) \
    ON CONFLICT (place) DO UPDATE SET server = excluded.server, key_id = excluded.key_id, \
      public_key = excluded.public_key, valid_until_ts = excluded.valid_until_ts, expired_ts = excluded.expired_ts, \
      fetched_ts = excluded.fetched_ts";

/// ?1: a list of [place, server, key id], of which nothing is written where the key is kept already. A server may have kept a
/// hundred.
const KEEP: &str = "\
    INSERT INTO server_keys (server, key_id, public_key, valid_until_ts, expired_ts, fetched_ts) \
    SELECT p.server, p.key_id, p.public_key, p.valid_until_ts, p.expired_ts, p.fetched_ts \
    FROM json_each(?1) AS signed CROSS JOIN passing_keys AS p \
      ON p.place = signed.value ->> 0 AND p.server = signed.value ->> 1 AND p.key_id = signed.value ->> 2 \
    WHERE (SELECT count(*) FROM server_keys AS k WHERE k.server = p.server) < 100 \
    ON CONFLICT (server, key_id) DO NOTHING";

/// Keeps the keys that have verified `events`, which are kept; for the batch that commits them.
pub(super) fn keep_keys_of<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<Statement> {
    let mut signed = BTreeSet::new();
    for event in events {
        let server = event.sender().server_name();
        let key_ids = signing::signatures_of(event.object(), server).map(|(key_id, _)| key_id);
        signed.extend(key_ids.map(|key_id| (server, key_id)));
    }
    let rows = signed
        .into_iter()
        .map(|(server, key_id)| json!([place_within(server, key_id, PASSING_SERVERS), server, key_id]).to_string());
    json_lists(rows).into_iter().map(|list| Statement::new(KEEP, [list.into()])).collect()
}

impl Store {
    /// What is known of the keys of `servers`, and when they may be asked. One call.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn keys(&self, servers: &[&str]) -> Result<StoredKeys, DatabaseError> {
        let wanted = json_lists(servers.iter().map(|server| places_of(server)));
        let lists = wanted.len();
        let mut statements: Vec<Statement> =
            wanted.into_iter().map(|list| Statement::new(SELECT_KEYS, [list.into()])).collect();
        let fetches = servers.iter().map(|server| json!([place(server, FETCHES), server]).to_string());
        statements.extend(json_lists(fetches).into_iter().map(|list| Statement::new(SELECT_FETCHES, [list.into()])));
        let answers = self.batch(statements).await?;
        let (keys, fetches) = answers.split_at_checked(lists).unwrap_or((&answers, &[]));
        Ok(StoredKeys {
            keys: keys.iter().flatten().map(read_key).collect::<Result<_, _>>()?,
            fetches: fetches.iter().flatten().map(read_fetch).collect::<Result<_, _>>()?,
        })
    }

    /// Takes over what servers say of themselves, and notaries of others, of those keys that are kept; remembers `passing` as
    /// [`Store::put_passing_keys`] does, and when servers may be asked again. One call, none where there is nothing to write.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn renew_keys(
        &self,
        from_servers: &[ServerKeys],
        from_notaries: &[ServerKeys],
        passing: &[(&str, &str, KnownKey)],
        fetches: &[(&str, KeyFetch)],
    ) -> Result<(), DatabaseError> {
        let mut statements = Vec::new();
        for (responses, own_word) in [(from_servers, true), (from_notaries, false)] {
            let rows = responses.iter().flat_map(|response| {
                let keys = response.keys.iter();
                keys.map(|(key_id, key)| json!(columns(&response.server_name, key_id, key)).to_string())
            });
            let lists = json_lists(rows).into_iter();
            statements.extend(lists.map(|rows| Statement::new(RENEW_KEYS, [rows.into(), own_word.into()])));
        }
        statements.extend(put_passing(passing));
        let rows = fetches
            .iter()
            .map(|(server, fetch)| json!([place(server, FETCHES), server, fetch.failures, fetch.retry_at]).to_string());
        statements.extend(json_lists(rows).into_iter().map(|rows| Statement::new(UPSERT_FETCHES, [rows.into()])));
        if statements.is_empty() {
            return Ok(());
        }
        self.batch(statements).await.map(drop)
    }

    /// Remembers keys (server, key id, key) that have verified something, and the responses that told of them as they came, for
    /// as long as nothing else takes their places. One call, none for nothing.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_passing_keys(
        &self,
        keys: &[(&str, &str, KnownKey)],
        responses: &[ServerKeys],
    ) -> Result<(), DatabaseError> {
        let mut statements = put_passing(keys);
        statements.extend(responses.iter().flat_map(key_responses::keep));
        if statements.is_empty() { Ok(()) } else { self.batch(statements).await.map(drop) }
    }
}

fn put_passing(keys: &[(&str, &str, KnownKey)]) -> Vec<Statement> {
    let rows = keys.iter().map(|(server, key_id, key)| {
        let mut columns = columns(server, key_id, key).to_vec();
        columns.push(json!(place_within(server, key_id, PASSING_SERVERS)));
        json!(columns).to_string()
    });
    json_lists(rows).into_iter().map(|list| Statement::new(PUT_PASSING, [list.into()])).collect()
}

/// The server and the first of its places.
fn places_of(server: &str) -> String {
    json!([server, first_place(server, PASSING_SERVERS)]).to_string()
}

fn columns(server: &str, key_id: &str, key: &KnownKey) -> [Value; 6] {
    let (valid_until_ts, expired_ts) = (within_range(key.valid_until()), key.expired_ts.map(within_range));
    let public_key = key.key.to_base64();
    [json!(server), json!(key_id), json!(public_key), json!(valid_until_ts), json!(expired_ts), json!(key.fetched_ts)]
}

fn read_key(row: &Row) -> Result<StoredKey, DatabaseError> {
    let key = VerifyKey::from_base64(row.text(2)?)
        .ok_or_else(|| DatabaseError::Shape("a stored public key is not a key".to_owned()))?;
    let known = KnownKey {
        key,
        valid_until_ts: row.integer(3)?,
        expired_ts: row.optional_integer(4)?,
        fetched_ts: row.integer(5)?,
    };
    Ok(StoredKey {
        server: row.text(0)?.to_owned(),
        key_id: row.text(1)?.to_owned(),
        key: known,
        is_kept: row.integer(6)? != 0,
    })
}

fn read_fetch(row: &Row) -> Result<(String, KeyFetch), DatabaseError> {
    Ok((row.text(0)?.to_owned(), KeyFetch { failures: row.integer(1)?, retry_at: row.integer(2)? }))
}

/// A time that somebody else chose, within what the database keeps exactly.
fn within_range(ts: i64) -> i64 {
    ts.clamp(-MAX_INTEGER, MAX_INTEGER)
}
