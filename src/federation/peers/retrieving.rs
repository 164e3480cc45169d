//! Events that a room has already (Server-Server API, "Backfilling and retrieving missing events", "Retrieving events",
//! "Retrieving event authorisation information").

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    endpoints::{EVENTS, MIB, ONE_EVENT, SMALL, V1, decode, missing, object, slice},
    requests::{Call, FederationClient, Limits, RequestError, path, with_query},
    room_before::{BODY_MS, JOIN, RoomBefore},
};
use crate::matrix::{
    identifiers::{EventId, RoomId, ServerName},
    json::{Object, Value},
};

/// A room's state, or its event IDs.
const STATE: Limits = Limits { timeout_ms: 60_000, max_response_bytes: 20 * MIB };

/// The answer of `state`: the state before an event. PDUs are unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomState {
    /// The state events.
    pub pdus: Vec<Bytes>,
    /// Their auth chain.
    pub auth_chain: Vec<Bytes>,
}

/// The answer of `state_ids`: the state before an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateIds {
    /// The state events.
    pub pdu_ids: Vec<EventId>,
    /// Their auth chain.
    pub auth_chain_ids: Vec<EventId>,
}

/// Every function's errors are [`RequestError`], as those of [`super::endpoints`].
#[allow(clippy::missing_errors_doc)]
impl FederationClient {
    /// `GET /_matrix/federation/v1/event/{eventId}`.
    pub async fn event(&self, server: &ServerName, event_id: &EventId) -> Result<Bytes, RequestError> {
        let body = self.get(server, path(V1, &["event", event_id.as_str()]), ONE_EVENT).await?;
        let answer: Pdus<'_> = decode(&body)?;
        answer.pdus.first().map(|pdu| slice(&body, pdu)).ok_or_else(|| missing("pdus"))
    }

    /// `GET /_matrix/federation/v1/state/{roomId}?event_id=`.
    pub async fn state(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<RoomState, RequestError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            pdus: Vec<&'a RawValue>,
            #[serde(borrow)]
            auth_chain: Vec<&'a RawValue>,
        }
        let target = before_event("state", room_id, event_id);
        let body = self.get(server, target, STATE).await?;
        let answer: Answer<'_> = decode(&body)?;
        Ok(RoomState { pdus: slices(&body, &answer.pdus), auth_chain: slices(&body, &answer.auth_chain) })
    }

    /// `GET /_matrix/federation/v1/state/{roomId}?event_id=`, for a state of any size.
    pub async fn open_state(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<RoomBefore, RequestError> {
        let target = before_event("state", room_id, event_id);
        let call = Call { method: Method::GET, target, body: None, limits: JOIN };
        Ok(RoomBefore::new(RoomBefore::STATE, self.open(server, &call, BODY_MS).await?))
    }

    /// `GET /_matrix/federation/v1/state_ids/{roomId}?event_id=`.
    pub async fn state_ids(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<StateIds, RequestError> {
        let target = before_event("state_ids", room_id, event_id);
        let answer = object(&self.get(server, target, STATE).await?)?;
        let ids = |name: &str| -> Result<Vec<EventId>, RequestError> {
            let ids = answer.get(name).and_then(Value::as_array).ok_or_else(|| missing(name))?;
            let parsed = ids.iter().map(|id| id.as_str().and_then(|id| EventId::parse(id).ok()));
            parsed.collect::<Option<_>>().ok_or_else(|| missing(name))
        };
        Ok(StateIds { pdu_ids: ids("pdu_ids")?, auth_chain_ids: ids("auth_chain_ids")? })
    }

    /// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`: the event's auth chain.
    pub async fn event_auth(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<Vec<Bytes>, RequestError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            auth_chain: Vec<&'a RawValue>,
        }
        let body = self.get(server, path(V1, &["event_auth", room_id.as_str(), event_id.as_str()]), STATE).await?;
        let answer: Answer<'_> = decode(&body)?;
        Ok(slices(&body, &answer.auth_chain))
    }

    /// `GET /_matrix/federation/v1/backfill/{roomId}`: up to `limit` events, `from` and those before them.
    pub async fn backfill(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        from: &[EventId],
        limit: usize,
    ) -> Result<Vec<Bytes>, RequestError> {
        let limit = limit.to_string();
        let from = from.iter().map(|id| ("v", id.as_str()));
        let target = with_query(path(V1, &["backfill", room_id.as_str()]), from.chain([("limit", limit.as_str())]));
        let body = self.get(server, target, EVENTS).await?;
        let answer: Pdus<'_> = decode(&body)?;
        Ok(slices(&body, &answer.pdus))
    }

    /// `POST /_matrix/federation/v1/get_missing_events/{roomId}`: up to `limit` events between `earliest` and `latest`.
    pub async fn get_missing_events(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        earliest: &[EventId],
        latest: &[EventId],
        limit: i64,
        min_depth: i64,
    ) -> Result<Vec<Bytes>, RequestError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            events: Vec<&'a RawValue>,
        }
        let ids = |ids: &[EventId]| Value::Array(ids.iter().map(|id| Value::from(id.as_str())).collect());
        let mut content = Object::new();
        content.insert("earliest_events", ids(earliest));
        content.insert("latest_events", ids(latest));
        content.insert("limit", limit);
        content.insert("min_depth", min_depth);
        let target = path(V1, &["get_missing_events", room_id.as_str()]);
        let body = self.post(server, target, &content, EVENTS).await?;
        let answer: Answer<'_> = decode(&body)?;
        Ok(slices(&body, &answer.events))
    }

    /// `GET /_matrix/federation/v1/timestamp_to_event/{roomId}?ts=&dir=`: the event's ID, and when it was sent.
    pub async fn timestamp_to_event(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        ts: i64,
        forwards: bool,
    ) -> Result<(String, i64), RequestError> {
        let ts = ts.to_string();
        let pairs = [("ts", ts.as_str()), ("dir", if forwards { "f" } else { "b" })];
        let target = with_query(path(V1, &["timestamp_to_event", room_id.as_str()]), pairs);
        let answer = object(&self.get(server, target, SMALL).await?)?;
        let event_id = answer.get("event_id").and_then(Value::as_str).ok_or_else(|| missing("event_id"))?;
        let sent = answer.get("origin_server_ts").and_then(Value::as_i64);
        Ok((event_id.to_owned(), sent.ok_or_else(|| missing("origin_server_ts"))?))
    }
}

/// The target of an endpoint that tells of the state before an event.
fn before_event(endpoint: &str, room_id: &RoomId, event_id: &EventId) -> String {
    with_query(path(V1, &[endpoint, room_id.as_str()]), [("event_id", event_id.as_str())])
}

/// `{"pdus": […]}`
#[derive(Deserialize)]
struct Pdus<'a> {
    #[serde(borrow)]
    pdus: Vec<&'a RawValue>,
}

fn slices(body: &Bytes, raw: &[&RawValue]) -> Vec<Bytes> {
    raw.iter().map(|raw| slice(body, raw)).collect()
}
