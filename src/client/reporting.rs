//! Reporting content (Client-Server API, "Reporting Content"): kept for the operator to read, and said in the log.

use http::StatusCode;
use serde_json::json;

use super::{auth, body::Body, membership, visibility::Reader};
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::identifiers::{EventId, UserId},
    router::{Call, Handled, ok},
    server::Server,
    store::reports::Report,
};

/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 4_096;

/// `POST /rooms/{roomId}/report/{eventId}`: for members only.
pub(super) async fn event(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let unknown = || MatrixError::not_found("The event was not found or you are not joined to the room.");
    let event_id = EventId::parse(call.parameter(1)).map_err(|_| unknown())?;
    let reader = match Reader::enter_joined(server, &session, call.parameter(0)).await {
        Err(error) if error.status == StatusCode::FORBIDDEN => return Err(unknown()),
        entered => entered?,
    };
    let stored = server.rooms.event(&event_id).await?.filter(|stored| *stored.event.room_id() == reader.room_id);
    let sender = stored.ok_or_else(unknown)?.event.sender().clone();
    let report = (Some(reader.room_id.as_str()), Some(event_id.as_str()), Some(sender.as_str()));
    keep(server, call, &session.user, report).await
}

/// `POST /rooms/{roomId}/report`
pub(super) async fn room(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let room_id = membership::room_id(call.parameter(0))?;
    if server.rooms.room(&room_id).await?.is_none() {
        return Err(MatrixError::not_found("The room was not found."));
    }
    keep(server, call, &session.user, (Some(room_id.as_str()), None, None)).await
}

/// `POST /users/{userId}/report`
pub(super) async fn user(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let user = UserId::parse(call.parameter(0));
    let user = user.map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    let is_ours = user.server_name() == server.config.server_name.as_str();
    if is_ours && server.store.profile(user.as_str()).await?.is_none() {
        return Err(MatrixError::not_found("The user was not found."));
    }
    keep(server, call, &session.user, (None, None, Some(user.as_str()))).await
}

async fn keep(
    server: &Server,
    call: &Call,
    reporter: &UserId,
    (room_id, event_id, user_id): (Option<&str>, Option<&str>, Option<&str>),
) -> Handled {
    let body = Body::optional(server, call).await?;
    let reason = body.text("reason")?.unwrap_or_default();
    if reason.len() > MAX_REASON_BYTES {
        return Err(MatrixError::too_large("The reason is too long."));
    }
    let now_ms = server.platform.clock.now_ms();
    server
        .store
        .keep_report(&Report { reporter: reporter.as_str(), room_id, event_id, user_id, reason, now_ms })
        .await?;
    server.platform.log.write(LogRecord::warning("a user has reported something; see the reports").user(reporter));
    ok(&json!({}))
}
