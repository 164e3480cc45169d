//! The account itself: its password, its end, and the third-party identifiers that it does not have (Client-Server API,
//! "Account management", "Adding Account Administrative Contact Information").

use http::StatusCode;
use serde_json::json;

use super::{
    auth,
    body::Body,
    membership::{self, Left},
    passwords::{self, Hashing},
    reauthentication::confirm,
};
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        identifiers::{RoomId, UserId},
        json::Object,
    },
    platform::Budget,
    router::{Call, Handled, ok},
    server::Server,
    store::accounts::Credentials,
};

/// For so long, in milliseconds, a user who leaves all rooms is taken in hand.
const IN_HAND_MS: i64 = 2 * 60 * 1_000;
/// How often it is tried to leave rooms: with pauses that grow, over a week. Then they are given up.
const MAX_ATTEMPTS: i64 = 40;
/// The first pause, in milliseconds; it doubles up to the longest.
const PAUSE_MS: i64 = 60_000;
const LONGEST_PAUSE_MS: i64 = 6 * 60 * 60 * 1_000;
/// How long a run of the scheduled trigger may begin with further rooms, in milliseconds.
const SWEEP_MS: i64 = 50_000;
/// How many calls to the database the work after the answer may make, and how many more to tell others of it. The platform allows
/// 1,000 for each request.
const CALLS: u64 = 500;
const SEND_CALLS: u64 = 300;

/// `POST /account/password`, which wants the old password.
pub(super) async fn password(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let logs_out = body.maybe("logout_devices")?.unwrap_or(true);
    let new = body.required_text("new_password")?;
    passwords::check(new)?;
    let old = server.store.credentials(session.user.as_str()).await?;
    if let Err(ask) = confirm(server, call, &session, &body).await? {
        return Ok(ask);
    }
    let hash = Hashing::in_answer_to(call).hash(new, &*server.platform.random)?;
    // Where it has changed since, it was another that the client has shown.
    let Credentials::Password(old) = old else { return Err(MatrixError::forbidden("This account has no password.")) };
    let own = &server.config.server_name;
    // One batch: who is cut off after the password could not ask for the rest with the old one.
    let changed =
        server.store.change_password(own, &session.user, (&old, &hash), logs_out.then_some(&session.device_id)).await?;
    server.flush_to_all(changed.ok_or_else(|| MatrixError::forbidden("The password was changed at the same time."))?);
    ok(&json!({}))
}

/// `POST /account/deactivate`, which wants the password.
pub(super) async fn deactivate(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let is_erased = body.flag("erase")?;
    body.text("id_server")?;
    if let Err(ask) = confirm(server, call, &session, &body).await? {
        return Ok(ask);
    }
    let now = server.platform.clock.now_ms();
    let told = server.store.deactivate(&server.config.server_name, &session.user, is_erased, now).await?;
    server.flush_to_all(told);
    let server = server.counted_apart();
    let background = server.platform.background.clone();
    background.spawn(Box::pin(async move {
        let left = sweep_departures(&server, &server.meter.budget(CALLS)).await;
        server.flush_now(&left, &server.meter.budget(SEND_CALLS)).await;
    }));
    ok(&json!({ "id_server_unbind_result": "success" }))
}

/// Has users leave their rooms who have deactivated their accounts, as far as `budget` reaches. What cannot be left now, as another
/// server does not answer, is tried again later. Returns the rooms whose other servers are to hear of it.
pub async fn sweep_departures(server: &Server, budget: &Budget) -> Vec<RoomId> {
    let begun = server.platform.clock.now_ms();
    let is_time = || !budget.is_spent() && server.platform.clock.now_ms() < begun + SWEEP_MS;
    let mut left = Vec::new();
    while is_time() {
        let taken = server.store.take_departure(server.platform.clock.now_ms(), IN_HAND_MS).await;
        let outcome = match taken {
            Ok(None) => break,
            Ok(Some((user, attempts))) => depart(server, &user, attempts, &is_time, &mut left).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = outcome {
            let record = LogRecord::error("a deactivated user's rooms cannot be left");
            server.platform.log.write(error.describe(record));
            break;
        }
    }
    left
}

async fn depart(
    server: &Server,
    user: &UserId,
    attempts: i64,
    is_time: &impl Fn() -> bool,
    left: &mut Vec<RoomId>,
) -> Result<(), MatrixError> {
    let mut left_out = false;
    for room_id in server.store.rooms_to_leave(user).await? {
        if !is_time() {
            return Ok(server.store.put_off_departure(user, server.platform.clock.now_ms()).await?);
        }
        match membership::leave_unsent(server, user, &room_id, Object::new()).await {
            Ok(Left::Here(_)) => left.push(room_id),
            Ok(Left::Elsewhere(_)) => {}
            Err(error) => {
                let record = LogRecord::error("a deactivated user cannot leave a room").room(&room_id);
                server.platform.log.write(error.describe(record));
                left_out = true;
            }
        }
    }
    if !left_out || attempts >= MAX_ATTEMPTS {
        return Ok(server.store.end_departure(user).await?);
    }
    let pause = PAUSE_MS.saturating_mul(1 << attempts.clamp(0, 20)).min(LONGEST_PAUSE_MS);
    Ok(server.store.put_off_departure(user, server.platform.clock.now_ms().saturating_add(pause)).await?)
}

/// `GET /account/3pid`: this server knows none.
pub(super) async fn third_party_ids(server: &Server, call: &Call) -> Handled {
    auth::session(server, call).await?;
    ok(&json!({ "threepids": [] }))
}

/// `POST /account/3pid`, `…/add` and `…/bind`: none can be added.
pub(super) async fn add_third_party_id(server: &Server, call: &Call) -> Handled {
    auth::session(server, call).await?;
    Err(MatrixError::forbidden("This server keeps no third-party identifiers."))
}

/// `POST /account/3pid/delete`: there is none that would be bound anywhere.
pub(super) async fn delete_third_party_id(server: &Server, call: &Call) -> Handled {
    unbound(server, call, "success").await
}

/// `POST /account/3pid/unbind`: this server has bound none, and knows no identity server.
pub(super) async fn unbind_third_party_id(server: &Server, call: &Call) -> Handled {
    unbound(server, call, "no-support").await
}

async fn unbound(server: &Server, call: &Call, result: &str) -> Handled {
    auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    body.required_text("medium")?;
    body.required_text("address")?;
    ok(&json!({ "id_server_unbind_result": result }))
}

/// `POST …/requestToken` of an identifier for an account: this server sends no messages to any.
pub(super) async fn request_token(_: &Server, _: &Call) -> Handled {
    let message = "This server allows no third-party identifiers.";
    Err(MatrixError::new(StatusCode::FORBIDDEN, "M_THREEPID_DENIED", message))
}

/// `POST /account/password/…/requestToken`: there is no account with this identifier.
pub(super) async fn request_password_token(_: &Server, _: &Call) -> Handled {
    let message = "No account has this third-party identifier.";
    Err(MatrixError::new(StatusCode::BAD_REQUEST, "M_THREEPID_NOT_FOUND", message))
}
