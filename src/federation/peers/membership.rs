//! The handshakes by which users join, knock, are invited and leave (Server-Server API, "Joining Rooms", "Knocking upon a room",
//! "Inviting to a room", "Leaving Rooms (Rejecting Invites)", "Third-party invites").

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    endpoints::{KIB, LIST, MIB, ONE_EVENT, SMALL, V1, decode, missing, object, slice},
    requests::{Call, FederationClient, Limits, RequestError, path, with_query},
    room_before::{BODY_MS, JOIN, RoomBefore},
};
use crate::matrix::{
    identifiers::{EventId, RoomId, ServerName, UserId},
    json::{self, MAX_DEPTH, Object, Value},
};

const V2: &str = "/_matrix/federation/v2";

/// The state of a room that is being joined, from servers that have version 1 only: it is read whole.
const JOIN_V1: Limits = Limits { timeout_ms: 120_000, max_response_bytes: 20 * MIB };
/// Invites that another server makes before it answers.
const EXCHANGE: Limits = Limits { timeout_ms: 60_000, max_response_bytes: 128 * KIB };

/// A membership event to complete: the answer of `make_join`, `make_knock` and `make_leave`.
#[derive(Debug, Clone, PartialEq)]
pub struct MembershipTemplate {
    /// The room's version (`1` where the server does not say).
    pub room_version: String,
    /// The unsigned event.
    pub event: Object,
}

/// Every function's errors are [`RequestError`], as those of [`super::endpoints`].
#[allow(clippy::missing_errors_doc)]
impl FederationClient {
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
        match self.open(server, &call(target, JOIN), BODY_MS).await {
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

    async fn make(
        &self,
        server: &ServerName,
        segments: &[&str],
        versions: &[&str],
    ) -> Result<MembershipTemplate, RequestError> {
        let target = with_query(path(V1, segments), versions.iter().map(|version| ("ver", *version)));
        template(&self.get(server, target, ONE_EVENT).await?)
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
    // The events of the state may be as deep as anything, so a list of them is deeper.
    let read = |text: &str| {
        let value = json::parse_to_depth(text.as_bytes(), MAX_DEPTH);
        value.map_err(|error| RequestError::Invalid(error.to_string()))
    };
    let mut event =
        read(pdu)?.into_object().ok_or_else(|| RequestError::Invalid("an invite is no object".to_owned()))?;
    event.insert("unsigned", Object::from_iter([("invite_room_state", read(invite_room_state)?)]));
    Ok(event.to_text())
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
