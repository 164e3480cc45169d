//! Typing notifications (Client-Server API, "Typing Notifications").

use serde_json::json;

use super::{
    auth,
    body::{Body, lacks},
    filters::own,
};
use crate::{
    error::MatrixError,
    federation::peers::fleeting::FleetingEdu,
    matrix::{edu::Typing, identifiers::RoomId},
    router::{Call, Handled, ok},
    server::Server,
    store::typing,
};

/// For how long somebody is taken to be typing who does not say, and at most; in milliseconds.
const DEFAULT_MS: i64 = 30_000;
const LONGEST_MS: i64 = 120_000;

/// `PUT /rooms/{roomId}/typing/{userId}`
pub(super) async fn put(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(1))?;
    let body = Body::of(server, call).await?;
    let is_typing = body.maybe("typing")?.ok_or_else(|| lacks("typing"))?;
    let timeout = body.integer("timeout")?.unwrap_or(DEFAULT_MS).clamp(1, LONGEST_MS);
    let room_id = room_id(call)?;
    let now = server.platform.clock.now_ms();
    let audience = server.audience(&room_id, &session.user, now).await?;
    if !audience.is_joined {
        return Err(MatrixError::forbidden("You are not in this room."));
    }
    let typing = Typing { room_id, user_id: session.user, is_typing };
    server.tell(&audience.servers, &[FleetingEdu::Typing(typing.clone())]);
    // Where nobody else here is in the room there is nobody to read it.
    if audience.others_here {
        let until = if is_typing { now + timeout } else { now };
        server.store.batch(typing::note(&[(typing, until)], now)).await?;
    }
    ok(&json!({}))
}

/// The room of the path's first parameter.
pub(super) fn room_id(call: &Call) -> Result<RoomId, MatrixError> {
    RoomId::parse(call.parameter(0)).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}
