//! Presence (Client-Server API, "Presence").

use serde_json::json;

use super::{auth, body::Body, filters::own};
use crate::{
    error::MatrixError,
    matrix::{
        edu::{MAX_STATUS, Presence},
        identifiers::UserId,
    },
    router::{Call, Handled, ok, raw_json_response},
    server::Server,
    store::presence::PresenceRow,
};

/// `PUT /presence/{userId}/status`
pub(super) async fn put(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    let body = Body::of(server, call).await?;
    let presence = Presence::parse(body.required_text("presence")?).ok_or_else(|| {
        MatrixError::invalid_param("\"presence\" must be \"online\", \"unavailable\" or \"offline\".")
    })?;
    let status_msg = body.text("status_msg")?;
    if status_msg.is_some_and(|status| status.chars().count() > MAX_STATUS) {
        return Err(MatrixError::invalid_param(format!("\"status_msg\" is longer than {MAX_STATUS} characters.")));
    }
    let now = server.platform.clock.now_ms();
    let row = PresenceRow {
        user_id: session.user,
        presence,
        status_msg: status_msg.map(str::to_owned),
        last_active_ts: now,
        currently_active: presence == Presence::Online,
    };
    server.put_presence(&row, now).await?;
    ok(&json!({}))
}

/// `GET /presence/{userId}/status`
pub(super) async fn get(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let of = UserId::parse(call.parameter(0)).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    let found = server.store.presence(&session.user, &of).await?;
    let (row, is_shown) = found.ok_or_else(|| MatrixError::not_found("Nothing is known of this user's presence."))?;
    if !is_shown {
        return Err(MatrixError::forbidden("You share no room with this user."));
    }
    let content = row.update(server.platform.clock.now_ms()).content();
    Ok(raw_json_response(http::StatusCode::OK, content.to_text()))
}
