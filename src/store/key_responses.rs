//! What other servers published of their keys, word for word: what a notary passes on.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Store, json_lists};
use crate::{
    matrix::{
        json::{self, MAX_INTEGER, Object, Value},
        server_keys::{MAX_VALIDITY_MS, ServerKeys},
    },
    platform::{DatabaseError, Row, Statement},
};

/// How many servers' responses are kept, each of which may be so long. As many places follow for what servers published earlier.
const SLOTS: u16 = 4_096;
const MAX_BYTES: usize = 16 * 1024;
/// How many bytes of responses are read at once, which take six times as much memory: others are left out.
const MAX_READ: i64 = 2 * 1024 * 1024;

/// What a server published of its keys.
#[derive(Debug, Clone)]
pub struct KeyResponse {
    /// Whose keys they are.
    pub server: String,
    /// All of it, with the server's own signatures.
    pub object: Object,
    /// Until when its current keys are valid.
    pub valid_until_ts: i64,
    /// Whether it is the newest that we have had.
    pub is_newest: bool,
}

/// ?1: a list of [slot, server], ?2: of how many bytes, the first ones; ?3: where the slots for what is earlier begin.
const SELECT: &str = "\
    WITH measured(slot, place, upto) AS ( \
      SELECT k.slot, wanted.key, SUM(octet_length(k.response)) OVER (ORDER BY wanted.key) FROM json_each(?1) AS wanted \
      CROSS JOIN key_responses AS k ON k.slot = wanted.value ->> 0 WHERE k.server = wanted.value ->> 1) \
    SELECT k.server, k.response, k.valid_until_ts, k.slot < ?3 FROM measured AS m \
    CROSS JOIN key_responses AS k ON k.slot = m.slot WHERE m.upto <= ?2 ORDER BY m.place";

/// Keeps what is to be replaced, where it lists a key that the new response does not. ?1: its slot, ?2: the server, ?3: the IDs of the
/// keys in the new response, ?4: the slot for what is earlier.
const KEEP_EARLIER: &str = "\
    INSERT INTO key_responses (slot, server, response, valid_until_ts, fetched_ts) \
    SELECT ?4, server, response, valid_until_ts, fetched_ts FROM key_responses WHERE slot = ?1 AND server = ?2 AND EXISTS ( \
      SELECT 1 FROM (SELECT key FROM json_each(response, '$.verify_keys') \
        UNION ALL SELECT key FROM json_each(response, '$.old_verify_keys')) WHERE key NOT IN (SELECT value FROM json_each(?3))) \
    ON CONFLICT (slot) DO UPDATE SET server = excluded.server, response = excluded.response, \
      valid_until_ts = excluded.valid_until_ts, fetched_ts = excluded.fetched_ts";

const KEEP: &str = "\
    INSERT INTO key_responses (slot, server, response, valid_until_ts, fetched_ts) VALUES (?1, ?2, ?3, ?4, ?5) \
    ON CONFLICT (slot) DO UPDATE SET server = excluded.server, response = excluded.response, \
      valid_until_ts = excluded.valid_until_ts, fetched_ts = excluded.fetched_ts";

impl Store {
    /// What these servers published, as far as it is kept, and is not too much: of each the newest first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn key_responses(&self, servers: &[&str]) -> Result<Vec<KeyResponse>, DatabaseError> {
        let newest = servers.iter().map(|server| (slot(server), server));
        let places = newest.chain(servers.iter().map(|server| (earlier_slot(server), server)));
        let lists = json_lists(places.map(|place| json!(place).to_string()));
        let of_list = |list: String| Statement::new(SELECT, [list.into(), MAX_READ.into(), i64::from(SLOTS).into()]);
        let statements = lists.into_iter().map(of_list).collect();
        self.batch(statements).await?.iter().flatten().map(response).collect()
    }

    /// Keeps what servers published, of which the signatures were checked.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn keep_key_responses(&self, responses: &[ServerKeys]) -> Result<(), DatabaseError> {
        let statements: Vec<Statement> = responses.iter().flat_map(keep).collect();
        if statements.is_empty() { Ok(()) } else { self.batch(statements).await.map(drop) }
    }
}

/// Keeps one response, unless it is too long to be kept, and what its server published before, if that has keys which this one
/// lacks: whoever verifies an old event needs them, and asks a notary when their server does not list them any more.
pub(super) fn keep(keys: &ServerKeys) -> Vec<Statement> {
    let Some((_, key)) = keys.keys.first() else { return Vec::new() };
    let text = keys.object.to_text();
    if text.len() > MAX_BYTES {
        return Vec::new();
    }
    let valid_until_ts = keys.valid_until_ts.min(key.fetched_ts.saturating_add(MAX_VALIDITY_MS)).max(-MAX_INTEGER);
    let server = &*keys.server_name;
    let listed = ["verify_keys", "old_verify_keys"].into_iter().filter_map(|name| keys.object.get(name)?.as_object());
    let ids = super::json_list(listed.flat_map(|keys| keys.iter().map(|(id, _)| id)));
    let earlier = [slot(server).into(), server.into(), ids.into(), earlier_slot(server).into()];
    let parameters = [slot(server).into(), server.into(), text.into(), valid_until_ts.into(), key.fetched_ts.into()];
    vec![Statement::new(KEEP_EARLIER, earlier), Statement::new(KEEP, parameters)]
}

fn response(row: &Row) -> Result<KeyResponse, DatabaseError> {
    let object = json::parse(row.text(1)?.as_bytes()).ok().and_then(Value::into_object);
    Ok(KeyResponse {
        server: row.text(0)?.to_owned(),
        object: object.ok_or_else(|| DatabaseError::Shape("a kept key response is no object".to_owned()))?,
        valid_until_ts: row.integer(2)?,
        is_newest: row.integer(3)? != 0,
    })
}

fn slot(server: &str) -> i64 {
    let digest = Sha256::digest(server);
    i64::from(u16::from_be_bytes([digest[0], digest[1]]) % SLOTS)
}

fn earlier_slot(server: &str) -> i64 {
    slot(server) + i64::from(SLOTS)
}
