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

/// How many responses are kept, each of which may be so long.
const SLOTS: u16 = 4_096;
const MAX_BYTES: usize = 16 * 1024;

/// What a server published of its keys.
#[derive(Debug, Clone)]
pub struct KeyResponse {
    /// Whose keys they are.
    pub server: String,
    /// All of it, with the server's own signatures.
    pub object: Object,
    /// Until when its current keys are valid.
    pub valid_until_ts: i64,
}

/// ?1: a list of [slot, server].
const SELECT: &str = "\
    SELECT k.server, k.response, k.valid_until_ts FROM json_each(?1) AS wanted \
    CROSS JOIN key_responses AS k ON k.slot = wanted.value ->> 0 WHERE k.server = wanted.value ->> 1";

const KEEP: &str = "\
    INSERT INTO key_responses (slot, server, response, valid_until_ts, fetched_ts) VALUES (?1, ?2, ?3, ?4, ?5) \
    ON CONFLICT (slot) DO UPDATE SET server = excluded.server, response = excluded.response, \
      valid_until_ts = excluded.valid_until_ts, fetched_ts = excluded.fetched_ts";

impl Store {
    /// What these servers published, as far as it is kept.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn key_responses(&self, servers: &[&str]) -> Result<Vec<KeyResponse>, DatabaseError> {
        let pairs = servers.iter().map(|server| json!([slot(server), server]).to_string());
        let statements = json_lists(pairs).into_iter().map(|list| Statement::new(SELECT, [list.into()])).collect();
        self.batch(statements).await?.iter().flatten().map(response).collect()
    }

    /// Keeps what servers published, of which the signatures were checked.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn keep_key_responses(&self, responses: &[ServerKeys]) -> Result<(), DatabaseError> {
        let statements: Vec<Statement> = responses.iter().filter_map(keep).collect();
        if statements.is_empty() { Ok(()) } else { self.batch(statements).await.map(drop) }
    }
}

/// Keeps one response, unless it is too long to be kept.
pub(super) fn keep(keys: &ServerKeys) -> Option<Statement> {
    let fetched_ts = keys.keys.first()?.1.fetched_ts;
    let text = keys.object.to_text();
    let valid_until_ts = keys.valid_until_ts.min(fetched_ts.saturating_add(MAX_VALIDITY_MS)).max(-MAX_INTEGER);
    (text.len() <= MAX_BYTES).then(|| {
        let server = &*keys.server_name;
        let parameters = [slot(server).into(), server.into(), text.into(), valid_until_ts.into(), fetched_ts.into()];
        Statement::new(KEEP, parameters)
    })
}

fn response(row: &Row) -> Result<KeyResponse, DatabaseError> {
    let object = json::parse(row.text(1)?.as_bytes()).ok().and_then(Value::into_object);
    Ok(KeyResponse {
        server: row.text(0)?.to_owned(),
        object: object.ok_or_else(|| DatabaseError::Shape("a kept key response is no object".to_owned()))?,
        valid_until_ts: row.integer(2)?,
    })
}

fn slot(server: &str) -> i64 {
    let digest = Sha256::digest(server);
    i64::from(u16::from_be_bytes([digest[0], digest[1]]) % SLOTS)
}
