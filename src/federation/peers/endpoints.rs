//! One typed function for each endpoint of the Server-Server API that this server calls, but for those of [`super::queries`],
//! [`super::user_keys`] and [`super::media`].
//!
//! PDUs are returned as the text in which they came, unverified: a slice of the response for each, for
//! `matrix::event::ReceivedPdu`. PDUs that are sent are given as canonical JSON, so that the body is canonical too.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::requests::{Call, FederationClient, Limits, OpenBody, RequestError, path, with_query};
use crate::matrix::{
    identifiers::{EventId, RoomId, ServerName, UserId},
    json::{self, Object, Value},
    json_stream::{ObjectReader, Piece, Wanted as WantedMembers},
    signing::POLICY_KEY_ID,
};

pub(super) const V1: &str = "/_matrix/federation/v1";
const V2: &str = "/_matrix/federation/v2";

const KIB: usize = 1024;
pub(super) const MIB: usize = 1024 * KIB;

/// Answers of a few members.
pub(super) const SMALL: Limits = Limits { timeout_ms: 10_000, max_response_bytes: 128 * KIB };
/// Templates of events, and single events (64 KiB, and as much again for their envelope).
const ONE_EVENT: Limits = Limits { timeout_ms: 20_000, max_response_bytes: 256 * KIB };
/// Lists of names or keys.
pub(super) const LIST: Limits = Limits { timeout_ms: 10_000, max_response_bytes: MIB };
/// Up to a hundred events.
const EVENTS: Limits = Limits { timeout_ms: 30_000, max_response_bytes: 8 * MIB };
/// A room's state, or its event IDs.
const STATE: Limits = Limits { timeout_ms: 60_000, max_response_bytes: 20 * MIB };
/// The state of a room that is being joined, which is read as it comes, and from older servers whole.
const JOIN: Limits = Limits { timeout_ms: 120_000, max_response_bytes: 256 * MIB };
const JOIN_V1: Limits = Limits { timeout_ms: 120_000, max_response_bytes: 20 * MIB };
/// Invites that another server makes before it answers.
const EXCHANGE: Limits = Limits { timeout_ms: 60_000, max_response_bytes: 128 * KIB };
/// The verdicts on a transaction; the receiver may fetch missing events before it answers.
const TRANSACTION: Limits = Limits { timeout_ms: 60_000, max_response_bytes: MIB };

/// A membership event to complete: the answer of `make_join`, `make_knock` and `make_leave`.
#[derive(Debug, Clone, PartialEq)]
pub struct MembershipTemplate {
    /// The room's version (`1` where the server does not say).
    pub room_version: String,
    /// The unsigned event.
    pub event: Object,
}

/// The answer of `send_join`, or of `state`, as it comes: the room before an event, in any order. PDUs are unverified.
pub struct RoomBefore {
    wanted: WantedMembers,
    body: OpenBody,
    unread: Bytes,
    reader: ObjectReader,
    pieces: VecDeque<Piece>,
}

/// A part of such an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinPiece {
    /// The join event, with the resident server's signature where the join is restricted.
    Join(Vec<u8>),
    /// An event of the state before.
    State(Vec<u8>),
    /// An event of the auth chain of the state and the event.
    AuthChain(Vec<u8>),
    /// Members are missing from the state.
    MembersOmitted,
    /// The servers in the room; what is no name is left out.
    Servers(Vec<ServerName>),
}

impl RoomBefore {
    const SEND_JOIN: WantedMembers = WantedMembers {
        items_of: &["state", "auth_chain"],
        whole: &["event", "members_omitted", "servers_in_room"],
        // Some 20,000 servers. An event is shorter by far, with whatever is not part of it.
        max_text: 512 * KIB,
    };
    const STATE: WantedMembers =
        WantedMembers { items_of: &["pdus", "auth_chain"], whole: &[], max_text: Self::SEND_JOIN.max_text };

    fn new(wanted: WantedMembers, body: OpenBody) -> Self {
        Self { wanted, body, unread: Bytes::new(), reader: ObjectReader::new(wanted), pieces: VecDeque::new() }
    }

    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// Where the answer breaks off or is not one.
    pub async fn next(&mut self) -> Result<Option<JoinPiece>, RequestError> {
        let bad = |error: &dyn std::fmt::Display| RequestError::BadResponse(error.to_string());
        loop {
            if let Some(Piece { member, text }) = self.pieces.pop_front() {
                return Ok(Some(match member {
                    "state" | "pdus" => JoinPiece::State(text),
                    "auth_chain" => JoinPiece::AuthChain(text),
                    "event" => JoinPiece::Join(text),
                    "servers_in_room" => JoinPiece::Servers(server_names(&text)),
                    _ if text == b"true" => JoinPiece::MembersOmitted,
                    _ => continue,
                }));
            }
            if self.unread.is_empty() {
                match self.body.next().await? {
                    Some(bytes) => self.unread = bytes,
                    None => {
                        self.reader.end().map_err(|error| bad(&error))?;
                        let lacks = self.wanted.items_of.iter().find(|name| !self.reader.has_read(name));
                        return lacks.map_or(Ok(None), |name| Err(missing(name)));
                    }
                }
            }
            let bytes = self.unread.split_to(self.unread.len().min(64 * KIB));
            let mut pieces = Vec::new();
            self.reader.read(&bytes, &mut pieces).map_err(|error| bad(&error))?;
            self.pieces.extend(pieces);
        }
    }
}

/// The names of servers in a JSON list; none where it is something else, as of servers that do not say.
fn server_names(text: &[u8]) -> Vec<ServerName> {
    let names: Vec<String> = serde_json::from_slice(text).unwrap_or_default();
    names.iter().filter_map(|name| ServerName::parse(name).ok()).collect()
}

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

    /// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}` with each of `versions` as `ver`.
    pub async fn make_join(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        user_id: &UserId,
        versions: &[&str],
    ) -> Result<MembershipTemplate, RequestError> {
        self.make(server, &["make_join", room_id.as_str(), user_id.as_str()], versions).await
    }

    /// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`, or v1 where the server has no v2. `omits_members`: whether the
    /// server is asked to leave members out of the state.
    pub async fn send_join(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        pdu: &str,
        omits_members: bool,
    ) -> Result<RoomBefore, RequestError> {
        let segments = ["send_join", room_id.as_str(), event_id.as_str()];
        let target = match omits_members {
            true => with_query(path(V2, &segments), [("omit_members", "true")]),
            false => path(V2, &segments),
        };
        let call = |target, limits| Call { method: Method::PUT, target, body: Some(pdu.to_owned()), limits };
        match self.open(server, &call(target, JOIN)).await {
            Err(error) if error.is_unknown_endpoint() => {
                let body = self.send(server, &call(path(V1, &segments), JOIN_V1)).await?;
                let (_, wrapped): (u16, &RawValue) = decode(&body)?;
                let body = self.opened(slice(&body, wrapped), JOIN_V1);
                Ok(RoomBefore::new(RoomBefore::SEND_JOIN, body))
            }
            body => Ok(RoomBefore::new(RoomBefore::SEND_JOIN, body?)),
        }
    }

    /// `GET /_matrix/federation/v1/make_knock/{roomId}/{userId}` with each of `versions` as `ver`.
    pub async fn make_knock(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        user_id: &UserId,
        versions: &[&str],
    ) -> Result<MembershipTemplate, RequestError> {
        self.make(server, &["make_knock", room_id.as_str(), user_id.as_str()], versions).await
    }

    /// `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`: the state that describes the room, unverified.
    pub async fn send_knock(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        pdu: &str,
    ) -> Result<Vec<Value>, RequestError> {
        let target = path(V1, &["send_knock", room_id.as_str(), event_id.as_str()]);
        let call = Call { method: Method::PUT, target, body: Some(pdu.to_owned()), limits: LIST };
        let mut answer = object(&self.send(server, &call).await?)?;
        // Older servers call it so.
        let state = answer.remove("knock_room_state").or_else(|| answer.remove("knock_state_events"));
        state.and_then(Value::into_array).ok_or_else(|| missing("knock_room_state"))
    }

    /// `GET /_matrix/federation/v1/make_leave/{roomId}/{userId}`.
    pub async fn make_leave(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        user_id: &UserId,
    ) -> Result<MembershipTemplate, RequestError> {
        let path = path(V1, &["make_leave", room_id.as_str(), user_id.as_str()]);
        template(&self.get(server, path, ONE_EVENT).await?)
    }

    /// `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`, or v1 where the server has no v2.
    pub async fn send_leave(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        pdu: &str,
    ) -> Result<(), RequestError> {
        let segments = ["send_leave", room_id.as_str(), event_id.as_str()];
        self.put_v2_or_v1(server, &segments, pdu, SMALL).await.map(drop)
    }

    /// `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`, or v1 where the server has no v2 and the room is of a version
    /// that v1 knows: the invite with the invited server's signature.
    /// `invite_room_state` is a JSON list of whole PDUs, the create event among them.
    pub async fn invite(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        room_version: &str,
        pdu: &str,
        invite_room_state: &str,
    ) -> Result<Bytes, RequestError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            event: &'a RawValue,
        }
        let segments = ["invite", room_id.as_str(), event_id.as_str()];
        let call = |prefix, body| Call {
            method: Method::PUT,
            target: path(prefix, &segments),
            body: Some(body),
            limits: ONE_EVENT,
        };
        let version = Value::from(room_version).to_text();
        let body = format!(r#"{{"event":{pdu},"invite_room_state":{invite_room_state},"room_version":{version}}}"#);
        match self.send(server, &call(V2, body)).await {
            Err(error) if error.is_unknown_endpoint() && matches!(room_version, "1" | "2") => {
                let body = self.send(server, &call(V1, invite_v1(pdu, invite_room_state)?)).await?;
                let (_, answer): (u16, Answer<'_>) = decode(&body)?;
                Ok(slice(&body, answer.event))
            }
            answer => {
                let body = answer?;
                let answer: Answer<'_> = decode(&body)?;
                Ok(slice(&body, answer.event))
            }
        }
    }

    /// `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`, with a part of a membership event.
    pub async fn exchange_third_party_invite(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event: &Object,
    ) -> Result<(), RequestError> {
        let target = path(V1, &["exchange_third_party_invite", room_id.as_str()]);
        let call = Call { method: Method::PUT, target, body: Some(event.to_text()), limits: EXCHANGE };
        self.send(server, &call).await.map(drop)
    }

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
        let target = with_query(path(V1, &["state", room_id.as_str()]), [("event_id", event_id.as_str())]);
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
        let target = with_query(path(V1, &["state", room_id.as_str()]), [("event_id", event_id.as_str())]);
        let call = Call { method: Method::GET, target, body: None, limits: JOIN };
        Ok(RoomBefore::new(RoomBefore::STATE, self.open(server, &call).await?))
    }

    /// `GET /_matrix/federation/v1/state_ids/{roomId}?event_id=`.
    pub async fn state_ids(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<StateIds, RequestError> {
        let target = with_query(path(V1, &["state_ids", room_id.as_str()]), [("event_id", event_id.as_str())]);
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

    /// `PUT /_matrix/federation/v1/send/{txnId}`: the transaction is done; what it says of single PDUs, where it says
    /// that they failed, by event ID.
    pub async fn send_transaction(
        &self,
        server: &ServerName,
        txn_id: &str,
        transaction: Transaction<'_>,
    ) -> Result<BTreeMap<String, String>, RequestError> {
        let Transaction { origin_server_ts, pdus, edus } = transaction;
        let edus = match edus {
            [] => String::new(),
            edus => format!(r#""edus":{},"#, Value::Array(edus.to_vec()).to_text()),
        };
        let origin = Value::from(self.server_name().as_str()).to_text();
        let pdus = pdus.join(",");
        let body = format!(r#"{{{edus}"origin":{origin},"origin_server_ts":{origin_server_ts},"pdus":[{pdus}]}}"#);
        let call =
            Call { method: Method::PUT, target: path(V1, &["send", txn_id]), body: Some(body), limits: TRANSACTION };
        let body = self.send(server, &call).await?;
        // A 200 completes the transaction, whatever its body says.
        let answer = object(&body).unwrap_or_default();
        let verdicts = answer.get("pdus").and_then(Value::as_object);
        let errors = verdicts
            .into_iter()
            .flat_map(Object::iter)
            .filter_map(|(id, verdict)| Some((id.to_owned(), verdict.get("error")?.as_str()?.to_owned())));
        Ok(errors.collect())
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

    async fn make(
        &self,
        server: &ServerName,
        segments: &[&str],
        versions: &[&str],
    ) -> Result<MembershipTemplate, RequestError> {
        let target = with_query(path(V1, segments), versions.iter().map(|version| ("ver", *version)));
        template(&self.get(server, target, ONE_EVENT).await?)
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

    /// The body of version 2 of an endpoint, or what version 1 wraps as `[200, body]`.
    async fn put_v2_or_v1(
        &self,
        server: &ServerName,
        segments: &[&str],
        pdu: &str,
        limits: Limits,
    ) -> Result<Bytes, RequestError> {
        let call =
            |prefix| Call { method: Method::PUT, target: path(prefix, segments), body: Some(pdu.to_owned()), limits };
        match self.send(server, &call(V2)).await {
            Err(error) if error.is_unknown_endpoint() => {
                let body = self.send(server, &call(V1)).await?;
                let (_, wrapped): (u16, &RawValue) = decode(&body)?;
                Ok(slice(&body, wrapped))
            }
            answer => answer,
        }
    }
}

/// An invite as version 1 has it: the event, with the room's state in `unsigned`.
fn invite_v1(pdu: &str, invite_room_state: &str) -> Result<String, RequestError> {
    let read = |text: &str| json::parse(text.as_bytes()).map_err(|error| RequestError::Invalid(error.to_string()));
    let mut event =
        read(pdu)?.into_object().ok_or_else(|| RequestError::Invalid("an invite is no object".to_owned()))?;
    event.insert("unsigned", Object::from_iter([("invite_room_state", read(invite_room_state)?)]));
    Ok(event.to_text())
}

/// `{"pdus": […]}`
#[derive(Deserialize)]
struct Pdus<'a> {
    #[serde(borrow)]
    pdus: Vec<&'a RawValue>,
}

fn decode<'a, T: Deserialize<'a>>(body: &'a Bytes) -> Result<T, RequestError> {
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

fn template(body: &Bytes) -> Result<MembershipTemplate, RequestError> {
    let mut answer = object(body)?;
    let room_version = match answer.get("room_version") {
        Some(version) => version.as_str().ok_or_else(|| missing("room_version"))?.to_owned(),
        None => "1".to_owned(),
    };
    let event = answer.remove("event").and_then(Value::into_object).ok_or_else(|| missing("event"))?;
    Ok(MembershipTemplate { room_version, event })
}

/// The part of `body` that `raw` is, without a copy.
fn slice(body: &Bytes, raw: &RawValue) -> Bytes {
    body.slice_ref(raw.get().as_bytes())
}

fn slices(body: &Bytes, raw: &[&RawValue]) -> Vec<Bytes> {
    raw.iter().map(|raw| slice(body, raw)).collect()
}

pub(super) fn missing(name: &str) -> RequestError {
    RequestError::BadResponse(format!("`{name}` is missing or of the wrong kind"))
}
