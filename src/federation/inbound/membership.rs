//! What the handshakes of joining, knocking and leaving share (Server-Server API, "Joining Rooms" and so on): a template
//! is asked for, filled in and signed elsewhere, and comes back to be admitted to the room.

use super::{answer, authentication::Signed, malformed};
use crate::{
    error::MatrixError,
    federation::pdus,
    matrix::{
        event::{Event, ReceivedPdu},
        identifiers::{ServerName, UserId},
        json::{Object, Value},
        state_content::Membership,
    },
    room::{Draft, Extent, Room, RoomError},
    router::{self, Handled},
    server::Server,
};

/// The user in the path's second parameter, who must be one of the origin's.
///
/// # Errors
/// 400 for what is not a user ID, 403 for another server's user.
pub(super) fn user_of_origin(request: &Signed) -> Result<UserId, MatrixError> {
    let user = UserId::parse(request.parameter(1)).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    if user.server_name() == request.origin.name().as_str() {
        Ok(user)
    } else {
        Err(MatrixError::forbidden("A server may ask only for its own users."))
    }
}

/// The room in the path's first parameter, with members of ours in it, of which we know who is in it.
///
/// # Errors
/// 404 for a room that we do not know or are no longer in, or of which members are not known here yet, 403 where its server ACL keeps the origin out.
pub(super) async fn resident_room(server: &Server, request: &Signed) -> Result<Room, MatrixError> {
    let room_id = answer::room_id(request.parameter(0))?;
    let room = server.rooms.room_for(request.origin.name(), &room_id).await?;
    check_members_known(&room)?;
    Ok(room)
}

/// Nobody is let into a room of which we do not know who is in it, or banned from it.
///
/// # Errors
/// 404, so that another server is asked.
pub(super) fn check_members_known(room: &Room) -> Result<(), MatrixError> {
    match room.extent {
        Extent::Partial => Err(MatrixError::not_found(RoomError::MembersUnknown.to_string())),
        Extent::Whole | Extent::Settling => Ok(()),
    }
}

/// Answers `make_join`, `make_knock` and `make_leave`: the event that would make `user`'s membership `membership`, unsigned.
pub(super) async fn template(
    server: &Server,
    room: &Room,
    user: &UserId,
    membership: Membership,
    content: Object,
) -> Handled {
    let draft = Draft::membership(user.as_str(), membership, content);
    let (event, version) = server.rooms.template(&room.room_id, user, &draft).await?;
    router::ok(&Object::from_iter([("event", Value::Object(event)), ("room_version", Value::from(version.id))]))
}

/// The checks and the commit of `send_knock` and `send_leave`. The event comes back, perhaps with the signature of the room's policy
/// server.
///
/// # Errors
/// As [`checked`]; 403 where the room's rules do not allow the event.
pub(super) async fn admit(server: &Server, request: Signed, membership: Membership) -> Result<Event, MatrixError> {
    let (origin, event) = checked(server, request, membership).await?;
    let admitted = server.rooms.admit(&origin, &event).await?;
    server.flush(event.room_id());
    Ok(admitted.event)
}

/// The event that `send_join`, `send_knock` and `send_leave` bring, perhaps with our signature, and whose it is: checked, as far as
/// that goes without what is in the room.
///
/// # Errors
/// As [`resident_room`]; 400 `M_INVALID_PARAM` where the event is not what the endpoint is for, or not signed as it must be.
pub(super) async fn checked(
    server: &Server,
    request: Signed,
    membership: Membership,
) -> Result<(ServerName, Event), MatrixError> {
    let room = resident_room(server, &request).await?;
    let event_id = request.parameter(1).to_owned();
    let (origin, object) = request.into_object()?;
    let text = |name: &str| object.get(name).and_then(Value::as_str).ok_or_else(|| malformed(name));
    let content = object.get("content").and_then(Value::as_object).ok_or_else(|| malformed("content"))?;
    let sender = UserId::parse(text("sender")?).map_err(|_| malformed("sender"))?;
    let refusal = if text("room_id")? != room.room_id.as_str() {
        Some("The event is not of the room in the path.")
    } else if text("type")? != "m.room.member" {
        Some("The event is not of type m.room.member.")
    } else if Membership::of(content) != Some(membership) {
        Some("The event's membership is not the one that this endpoint is for.")
    } else if sender.server_name() != origin.name().as_str() {
        Some("The event's sender is not a user of your server.")
    } else if text("state_key")? != sender.as_str() {
        Some("The event's state key is not its sender.")
    } else {
        None
    };
    if let Some(refusal) = refusal {
        return Err(MatrixError::invalid_param(refusal));
    }
    let countersign = server.rooms.must_countersign(&room, &sender, content).await?;
    let mut pdu = ReceivedPdu::from_value(Value::Object(object), room.room_version).map_err(pdus::refused)?;
    if countersign {
        pdu.sign(server.config.server_name.as_str(), &server.config.signing_key).map_err(pdus::refused)?;
    }
    if *pdu.event_id() != *event_id {
        return Err(MatrixError::invalid_param("The event's ID is not the one in the path."));
    }
    Ok((origin.name().clone(), pdus::verify_one(server, pdu).await?))
}
