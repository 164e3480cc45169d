//! Presence (Client-Server API, "Presence").

use serde_json::json;

use super::{auth, body::Body, filters::own};
use crate::{
    admission::{Kind, Rate, Turn},
    error::MatrixError,
    log::LogRecord,
    matrix::{
        edu::{MAX_STATUS, Presence},
        identifiers::UserId,
    },
    router::{Call, Handled, ok, raw_json_response},
    server::Server,
    store::presence::PresenceRow,
};

/// How often syncs of one client that say the same are noted: fewer would let their user go, more cost a row each.
const NOTED: Rate = Rate { burst: 1, seconds: 240 };

/// What a sync's parameter `set_presence` has its user be; `None` where they are not to be shown as there. Whoever says nothing is not
/// either: it would be a row and a transaction to each server for clients that know nothing of it.
///
/// # Errors
/// 400 for what is no presence.
pub(super) fn asked(call: &Call) -> Result<Option<Presence>, MatrixError> {
    let Some(text) = call.query("set_presence") else { return Ok(None) };
    let presence = Presence::parse(&text).ok_or_else(|| {
        MatrixError::invalid_param("\"set_presence\" must be \"online\", \"unavailable\" or \"offline\".")
    })?;
    Ok(Some(presence).filter(|presence| *presence != Presence::Offline))
}

/// Notes, beside the sync, what it has its user be.
pub(super) fn note(server: &Server, user: &UserId, presence: Presence) {
    let now = server.platform.clock.now_ms();
    let who = json!([user.as_str(), presence.as_str()]).to_string();
    if server.admission.take(Kind::Presence, &who, NOTED, 0, now) != Turn::Now {
        return;
    }
    let (server, user) = (server.counted_apart(), user.clone());
    server.platform.background.clone().spawn(Box::pin(async move {
        if let Err(error) = server.put_presence_of_sync(&user, presence, now).await {
            server.platform.log.write(LogRecord::error("presence cannot be stored").because(&error));
        }
    }));
}

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
    let Some((row, is_shown)) = found else {
        if of == session.user {
            return ok(&json!({ "presence": Presence::Offline.as_str() }));
        }
        return Err(MatrixError::not_found("Nothing is known of this user's presence."));
    };
    // Of another server's user it is known what rooms they were in when that server last told of them.
    if !is_shown && !shares(server, &session.user, &of).await? {
        return Err(MatrixError::forbidden("You share no room with this user."));
    }
    let content = row.update(server.platform.clock.now_ms()).content();
    Ok(raw_json_response(http::StatusCode::OK, content.to_text()))
}

/// Whether two users, the first a local one, share a room now.
async fn shares(server: &Server, user: &UserId, with: &UserId) -> Result<bool, MatrixError> {
    let own = server.config.server_name.as_str();
    Ok(!server.store.sharing(own, user.as_str(), [with.to_string()].into()).await?.is_empty())
}
