//! This server as the policy server of rooms (Server-Server API, "Policy Servers"; Client-Server API, "Policy Servers").
//!
//! It signs what its operator's rule does not refuse, for servers in rooms that name it. What it signs it must have seen whole, and
//! from its sender.

use http::StatusCode;
use serde_json::json;

use super::{authentication::Signed, malformed};
use crate::{
    config::PolicyConfig,
    error::MatrixError,
    federation::pdus,
    matrix::{
        event::{PduError, ReceivedPdu},
        identifiers::RoomId,
        json::Value,
        policy_server::is_exempt,
        signing::POLICY_KEY_ID,
    },
    router::{self, Call, Handled},
    server::Server,
};

/// `POST /_matrix/policy/v1/sign`: our signature on an event, or why it gets none.
pub(super) async fn sign(server: &Server, request: Signed) -> Handled {
    let PolicyConfig { key, rule } = server.config.policy.as_ref().ok_or_else(unsupported)?;
    let (origin, pdu) = request.into_object()?;
    let room_id = pdu.get("room_id").and_then(Value::as_str).and_then(|id| RoomId::parse(id).ok());
    let room_id = room_id.ok_or_else(|| malformed("room_id"))?;
    let room = server.rooms.guarded_room(origin.name(), &room_id).await?;
    let pdu = ReceivedPdu::from_value(Value::Object(pdu), room.room_version).map_err(improper)?;
    let event = match pdus::verify(server, vec![pdu]).await?.pop() {
        Some(Ok(event)) => event,
        _ => return Err(refused("The event is not signed by its sender's server.")),
    };
    if is_exempt(&event) {
        return Err(refused("m.room.policy events are not checked by policy servers."));
    }
    if let Some(why) = rule.refusal(&event) {
        return Err(refused(why));
    }
    router::ok(&json!({ server.config.server_name.as_str(): { POLICY_KEY_ID: event.signature_by(key) } }))
}

/// `GET /.well-known/matrix/policy_server`: the key that rooms name.
pub(super) async fn well_known(server: &Server, _: &Call) -> Handled {
    let not_one = || MatrixError::not_found("This server is not a policy server.");
    let policy = server.config.policy.as_ref().ok_or_else(not_one)?;
    router::ok(&json!({ "public_keys": { "ed25519": policy.key.public_base64() } }))
}

fn unsupported() -> MatrixError {
    MatrixError::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", "This server is not a policy server.")
}

/// 400 `M_FORBIDDEN`: the event is not for that room.
fn refused(why: &str) -> MatrixError {
    MatrixError::new(StatusCode::BAD_REQUEST, "M_FORBIDDEN", why)
}

/// 400 `M_BAD_JSON`: the event has not the form of events of its room.
fn improper(error: PduError) -> MatrixError {
    MatrixError::bad_json(format!("The event is malformed: {error}."))
}
