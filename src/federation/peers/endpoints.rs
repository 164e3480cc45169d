//! A typed function for each endpoint of the Server-Server API that this server calls. Those of transactions, keys, versions and
//! policy servers are here, with what all have in common; the others are in [`super::membership`], [`super::retrieving`],
//! [`super::queries`], [`super::user_keys`] and [`super::media`].
//!
//! PDUs are returned as the text in which they came, unverified: a slice of the response for each, for
//! `matrix::event::ReceivedPdu`. PDUs that are sent are given as canonical JSON, so that the body is canonical too.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::requests::{Call, FederationClient, Limits, RequestError, path};
use crate::matrix::{
    identifiers::ServerName,
    json::{self, Object, Value},
    signing::POLICY_KEY_ID,
};

pub(super) const V1: &str = "/_matrix/federation/v1";

pub(super) const KIB: usize = 1024;
pub(super) const MIB: usize = 1024 * KIB;

/// Answers of a few members.
pub(super) const SMALL: Limits = Limits { timeout_ms: 10_000, max_response_bytes: 128 * KIB };
/// Templates of events, and single events (64 KiB, and as much again for their envelope).
pub(super) const ONE_EVENT: Limits = Limits { timeout_ms: 20_000, max_response_bytes: 256 * KIB };
/// Lists of names or keys.
pub(super) const LIST: Limits = Limits { timeout_ms: 10_000, max_response_bytes: MIB };
/// Up to a hundred events.
pub(super) const EVENTS: Limits = Limits { timeout_ms: 30_000, max_response_bytes: 8 * MIB };
/// The verdicts on a transaction; the receiver may fetch missing events before it answers.
const TRANSACTION: Limits = Limits { timeout_ms: 60_000, max_response_bytes: MIB };
/// The same for a transaction that carries only what is worth nothing when it is late.
const FLEETING: Limits = Limits { timeout_ms: 10_000, max_response_bytes: MIB };

/// What `send` carries.
#[derive(Debug, Clone, Copy)]
pub struct Transaction<'a> {
    /// When it was made, in milliseconds since the epoch.
    pub origin_server_ts: i64,
    /// At most 50 events, as canonical JSON.
    pub pdus: &'a [&'a str],
    /// At most 100 EDUs.
    pub edus: &'a [Value],
}

/// A key, and until when it should be valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyQuery {
    /// Whose key.
    pub server: ServerName,
    /// Which key, such as `ed25519:a_AbCd`.
    pub key_id: String,
    /// Until when it should be valid, in milliseconds since the epoch.
    pub minimum_valid_until_ts: i64,
}

/// Every function's errors are [`RequestError`]: the server could not be reached, refused, or answered something else
/// than the spec's answer.
#[allow(clippy::missing_errors_doc)]
impl FederationClient {
    /// `GET /_matrix/federation/v1/version`: the software's name and version.
    pub async fn version(&self, server: &ServerName) -> Result<Object, RequestError> {
        let body = self.get(server, path(V1, &["version"]), SMALL).await?;
        object(&body)?.remove("server").and_then(Value::into_object).ok_or_else(|| missing("server"))
    }

    /// `PUT /_matrix/federation/v1/send/{txnId}`: the transaction is done; what it says of single PDUs, where it says
    /// that they failed, by event ID.
    pub async fn send_transaction(
        &self,
        server: &ServerName,
        txn_id: &str,
        transaction: Transaction<'_>,
    ) -> Result<BTreeMap<String, String>, RequestError> {
        verdicts(&self.send(server, &self.transaction(txn_id, &transaction, TRANSACTION)).await?)
    }

    /// The same with EDUs that are worth nothing when they are late: it waits for the answer no longer than that, and takes
    /// no more time in all, discovery included.
    pub async fn send_fleeting(
        &self,
        server: &ServerName,
        txn_id: &str,
        origin_server_ts: i64,
        edus: &[Value],
    ) -> Result<(), RequestError> {
        let transaction = Transaction { origin_server_ts, pdus: &[], edus };
        let call = self.transaction(txn_id, &transaction, FLEETING);
        verdicts(&self.send_in_time(server, &call).await?).map(drop)
    }

    fn transaction(&self, txn_id: &str, transaction: &Transaction<'_>, limits: Limits) -> Call {
        let Transaction { origin_server_ts, pdus, edus } = transaction;
        let edus = match edus {
            [] => String::new(),
            edus => format!(r#""edus":{},"#, Value::Array(edus.to_vec()).to_text()),
        };
        let origin = Value::from(self.server_name().as_str()).to_text();
        let pdus = pdus.join(",");
        let body = format!(r#"{{{edus}"origin":{origin},"origin_server_ts":{origin_server_ts},"pdus":[{pdus}]}}"#);
        Call { method: Method::PUT, target: path(V1, &["send", txn_id]), body: Some(body), limits }
    }

    /// `POST /_matrix/policy/v1/sign`: the signature of `server` as a policy server on this PDU.
    pub async fn policy_sign(&self, server: &ServerName, pdu: &str) -> Result<String, RequestError> {
        let target = "/_matrix/policy/v1/sign".to_owned();
        let call = Call { method: Method::POST, target, body: Some(pdu.to_owned()), limits: SMALL };
        let body = self.send(server, &call).await?;
        let answer: BTreeMap<String, BTreeMap<String, String>> = decode(&body)?;
        let signature = answer.get(server.as_str()).and_then(|keys| keys.get(POLICY_KEY_ID));
        signature.cloned().ok_or_else(|| missing(POLICY_KEY_ID))
    }

    /// `GET /_matrix/key/v2/server`: the server's own keys, unverified.
    pub async fn server_keys(&self, server: &ServerName) -> Result<Object, RequestError> {
        object(&self.get(server, "/_matrix/key/v2/server".to_owned(), SMALL).await?)
    }

    /// `POST /_matrix/key/v2/query`: other servers' keys as `notary` knows them, unverified.
    pub async fn query_keys(&self, notary: &ServerName, queries: &[KeyQuery]) -> Result<Object, RequestError> {
        let mut servers: BTreeMap<&str, Object> = BTreeMap::new();
        for query in queries {
            let criteria = Object::from_iter([("minimum_valid_until_ts", query.minimum_valid_until_ts)]);
            servers.entry(query.server.as_str()).or_default().insert(query.key_id.as_str(), criteria);
        }
        let content = Object::from_iter([("server_keys", servers.into_iter().collect::<Object>())]);
        object(&self.post(notary, "/_matrix/key/v2/query".to_owned(), &content, EVENTS).await?)
    }

    pub(super) async fn get(&self, server: &ServerName, target: String, limits: Limits) -> Result<Bytes, RequestError> {
        self.send(server, &Call { method: Method::GET, target, body: None, limits }).await
    }

    pub(super) async fn post(
        &self,
        server: &ServerName,
        target: String,
        content: &Object,
        limits: Limits,
    ) -> Result<Bytes, RequestError> {
        let call = Call { method: Method::POST, target, body: Some(content.to_text()), limits };
        self.send(server, &call).await
    }
}

pub(super) fn decode<'a, T: Deserialize<'a>>(body: &'a Bytes) -> Result<T, RequestError> {
    // The error's own sentence would quote the answer.
    serde_json::from_slice(body).map_err(|error| {
        RequestError::BadResponse(format!(
            "{:?} error at line {} column {}",
            error.classify(),
            error.line(),
            error.column()
        ))
    })
}

fn value(body: &Bytes) -> Result<Value, RequestError> {
    json::parse(body).map_err(|error| RequestError::BadResponse(error.to_string()))
}

/// An object, of which parts may be handed on to clients: no number in it is beyond what they can read.
pub(super) fn object(body: &Bytes) -> Result<Object, RequestError> {
    let object = value(body)?.into_object();
    let object = object.ok_or_else(|| RequestError::BadResponse("it is not an object".to_owned()))?;
    object.check_loose().map_err(|error| RequestError::BadResponse(error.to_string()))?;
    Ok(object)
}

/// The part of `body` that `raw` is, without a copy.
pub(super) fn slice(body: &Bytes, raw: &RawValue) -> Bytes {
    body.slice_ref(raw.get().as_bytes())
}

pub(super) fn missing(name: &str) -> RequestError {
    RequestError::BadResponse(format!("`{name}` is missing or of the wrong kind"))
}

/// What the answer to a transaction says of single PDUs.
fn verdicts(body: &Bytes) -> Result<BTreeMap<String, String>, RequestError> {
    // What is no object is not the server's word: a proxy's page for visitors, say.
    if !decode::<&RawValue>(body)?.get().starts_with('{') {
        return Err(RequestError::BadResponse("it is not an object".to_owned()));
    }
    // Any object completes the transaction, whatever it says.
    let answer = object(body).unwrap_or_default();
    let verdicts = answer.get("pdus").and_then(Value::as_object);
    let errors = verdicts
        .into_iter()
        .flat_map(Object::iter)
        .filter_map(|(id, verdict)| Some((id.to_owned(), verdict.get("error")?.as_str()?.to_owned())));
    Ok(errors.collect())
}
