//! Third-party invites that are redeemed (Server-Server API, "Third-party invites").

use serde_json::json;

use super::{answer, authentication::Signed, malformed, membership};
use crate::{
    admission::{Kind, Rate, Turn, network_of_request},
    error::MatrixError,
    federation::outbound::third_party_invites::{self, Redeemed},
    log::LogRecord,
    matrix::{
        identifiers::{RoomId, UserId},
        json::{Object, Value},
        state_content::Membership,
    },
    router::{Call, Handled, ok},
    server::Server,
};

/// How many invites one binding may redeem: for each a server may have to be asked.
const MAX_INVITES: usize = 20;
/// How many bindings an address may tell of. Anybody may, as identity servers have no name that requests are signed with.
const RATE: Rate = Rate { burst: 20, seconds: 60 };

/// `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`
pub(super) async fn exchange(server: &Server, request: Signed) -> Handled {
    let room = membership::resident_room(server, &request).await?;
    let (origin, event) = request.into_object()?;
    let text = |name: &str| event.get(name).and_then(Value::as_str).ok_or_else(|| malformed(name));
    let user = |name: &str| UserId::parse(text(name)?).map_err(|_| malformed(name));
    let (sender, target) = (user("sender")?, user("state_key")?);
    let content = event.get("content").and_then(Value::as_object).ok_or_else(|| malformed("content"))?;
    let refusal = if text("room_id")? != room.room_id.as_str() {
        "The event is not of the room in the path."
    } else if text("type")? != "m.room.member" {
        "The event is not of type m.room.member."
    } else if Membership::of(content) != Some(Membership::Invite) {
        "The event is not an invite."
    } else if target.server_name() != origin.name().as_str() {
        return Err(MatrixError::forbidden("A server may ask only for its own users."));
    } else {
        ""
    };
    if !refusal.is_empty() {
        return Err(MatrixError::invalid_param(refusal));
    }
    let signed = content.get("third_party_invite").and_then(|invite| invite.get("signed")).and_then(Value::as_object);
    let signed = signed.ok_or_else(|| malformed("third_party_invite"))?.clone();
    let invite = Redeemed::new(room.room_id, sender, target, signed)?;
    third_party_invites::issue(server, &invite).await?;
    ok(&json!({}))
}

/// `PUT /_matrix/federation/v1/3pid/onbind`, or `POST`
pub(super) async fn on_bind(server: &Server, call: &Call) -> Handled {
    let now = server.platform.clock.now_ms();
    let who = network_of_request(call.request.headers());
    if let Turn::Refused(ms) = server.admission.take(Kind::Bindings, &who, RATE, 0, now) {
        return Err(MatrixError::limit_exceeded(ms));
    }
    let binding = call.json(&server.admission, server.platform.clock.as_ref()).await?;
    let user = binding.get("mxid").and_then(Value::as_str).and_then(|user| UserId::parse(user).ok());
    let user = user.ok_or_else(|| malformed("mxid"))?;
    let invites = binding.get("invites").and_then(Value::as_array).ok_or_else(|| malformed("invites"))?;
    if invites.len() > MAX_INVITES {
        return Err(MatrixError::invalid_param("`invites` holds more than 20 invites."));
    }
    let invites = invites.iter().map(|invite| bound(&user, invite)).collect::<Result<Vec<_>, _>>()?;
    if user.server_name() != server.config.server_name.as_str() {
        return Err(MatrixError::invalid_param("`mxid` is not a user of this server."));
    }
    if server.store.profile(user.as_str()).await?.is_none() {
        return Err(MatrixError::not_found("There is no such user on this server."));
    }
    let (redeeming, bound) = (server.clone(), user.clone());
    let work = async move {
        let mut failure = None;
        for invite in &invites {
            // The others may succeed.
            if let Err(error) = third_party_invites::redeem(&redeeming, invite).await {
                let record = LogRecord::warning("a third-party invite cannot be redeemed").user(&bound);
                redeeming.platform.log.write(record.because(&error));
                failure = Some(error);
            }
        }
        failure
    };
    match server.platform.to_the_end(work).await {
        None => ok(&json!({})),
        Some(failure) => Err(failure),
    }
}

/// One of the invites that a binding redeems, which must be of the bound user.
fn bound(user: &UserId, invite: &Value) -> Result<Redeemed, MatrixError> {
    let text = |name: &str| invite.get(name).and_then(Value::as_str).ok_or_else(|| malformed(name));
    let sender = UserId::parse(text("sender")?).map_err(|_| malformed("sender"))?;
    let room_id: RoomId = answer::room_id(text("room_id")?)?;
    if text("mxid")? != user.as_str() {
        return Err(MatrixError::invalid_param("`invites` holds an invite of another user."));
    }
    let signed: Option<&Object> = invite.get("signed").and_then(Value::as_object);
    Redeemed::new(room_id, sender, user.clone(), signed.ok_or_else(|| malformed("signed"))?.clone())
}
