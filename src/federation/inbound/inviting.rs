//! The invited user's server's side of an invite (Server-Server API, "Inviting to a room").
//!
//! We countersign what is shown to be an invite of one of our users by a user of the origin, and nothing else.

use super::{
    answer::{self, ObjectText},
    authentication::{Origin, Signed},
    joining, malformed,
};
use crate::{
    error::MatrixError,
    federation::{outbound::membership, pdus},
    matrix::{
        event::{Event, PduError, ReceivedPdu},
        identifiers::{RoomId, UserId},
        json::{Object, Value},
        room_version::{EventIds, RoomVersion},
        state_content::Membership,
        stripped_state::{separate_stripped, shown},
    },
    router::Handled,
    server::Server,
};

/// The most events of `invite_room_state` that are looked at: each may take a key to check.
const MAX_ROOM_STATE: usize = 100;

/// `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`
pub(super) async fn invite(server: &Server, request: Signed) -> Handled {
    let (room_id, event_id) = (answer::room_id(request.parameter(0))?, request.parameter(1).to_owned());
    let (origin, mut body) = request.into_object()?;
    let version = body.get("room_version").and_then(Value::as_str).ok_or_else(|| malformed("room_version"))?;
    let version = RoomVersion::get(version).ok_or_else(|| joining::incompatible(version))?;
    let pdu = body.remove("event").and_then(Value::into_object).ok_or_else(|| malformed("event"))?;
    let room_state = body.remove("invite_room_state").and_then(Value::into_array).unwrap_or_default();
    let given = Given { room_id, event_id, version, pdu, room_state };
    given.accept(server, &origin, ObjectText::begin()).await
}

/// `PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`: the event itself, of a room of version 1 or 2. These have the same
/// form of events.
pub(super) async fn invite_v1(server: &Server, request: Signed) -> Handled {
    let (room_id, event_id) = (answer::room_id(request.parameter(0))?, request.parameter(1).to_owned());
    let (origin, mut pdu) = request.into_object()?;
    let known = server.rooms.room(&room_id).await?.map(|room| room.room_version);
    let version = known.or_else(|| RoomVersion::get("1")).ok_or_else(MatrixError::internal)?;
    if version.event_ids != EventIds::Given {
        return Err(joining::incompatible(version.id));
    }
    let mut unsigned = pdu.remove("unsigned").and_then(Value::into_object).unwrap_or_default();
    let room_state = unsigned.remove("invite_room_state").and_then(Value::into_array).unwrap_or_default();
    let given = Given { room_id, event_id, version, pdu, room_state };
    given.accept(server, &origin, ObjectText::begin_v1()).await
}

/// An invite as it is given to us.
struct Given {
    room_id: RoomId,
    event_id: String,
    version: &'static RoomVersion,
    pdu: Object,
    room_state: Vec<Value>,
}

impl Given {
    async fn accept(self, server: &Server, origin: &Origin, mut answer: ObjectText) -> Handled {
        let Self { room_id, event_id, version, pdu, room_state } = self;
        check_purpose(server, origin, &pdu)?;
        let pdu = ReceivedPdu::from_value(Value::Object(pdu), version).map_err(pdus::refused)?;
        if *pdu.room_id() != room_id || *pdu.event_id() != *event_id {
            return Err(MatrixError::invalid_param("The event is not the one that the path names."));
        }
        let invite = pdus::verify_one(server, pdu).await?;
        let room_state = check_room_state(server, &invite, room_state).await?;
        membership::local_invitee(server, invite.state_key().unwrap_or_default()).await?;
        let invite = invite.signed_by(server.config.server_name.as_str(), &server.config.signing_key);
        let invite = invite.map_err(pdus::refused)?;
        server.rooms.receive_invite(origin.name(), &invite, room_state).await?;
        answer.member("event").push_str(invite.json());
        Ok(answer.response())
    }
}

/// What the spec demands of the event before it may be signed.
fn check_purpose(server: &Server, origin: &Origin, pdu: &Object) -> Result<(), MatrixError> {
    let user = |name: &str| pdu.get(name).and_then(Value::as_str).and_then(|user| UserId::parse(user).ok());
    let content = pdu.get("content").and_then(Value::as_object).ok_or_else(|| malformed("content"))?;
    let is_user_of = |user: Option<UserId>, server: &str| user.is_some_and(|user| user.server_name() == server);
    let refusal = if pdu.get("type").and_then(Value::as_str) != Some("m.room.member") {
        "The event is not of type m.room.member."
    } else if Membership::of(content) != Some(Membership::Invite) {
        "The event is not an invite."
    } else if !is_user_of(user("sender"), origin.name().as_str()) {
        "The event's sender is not a user of your server."
    } else if !is_user_of(user("state_key"), server.config.server_name.as_str()) {
        "The invited user is not a user of this server."
    } else {
        return Ok(());
    };
    Err(MatrixError::invalid_param(refusal))
}

/// The state that came with the invite, stripped to what users are shown.
///
/// From room version 12 on it must be events of the room, signed as events are, the create event among them; what is no such
/// event is refused, unless it came stripped ([`separate_stripped`]). Before, servers sent it stripped already, and it is taken
/// as what it is: what the inviter's server says.
async fn check_room_state(server: &Server, invite: &Event, state: Vec<Value>) -> Result<Vec<Object>, MatrixError> {
    let version = invite.version();
    let parties = [invite.sender().as_str(), invite.state_key().unwrap_or_default()];
    if state.len() > MAX_ROOM_STATE {
        return Err(MatrixError::invalid_param("`invite_room_state` holds more than 100 events."));
    }
    if !version.room_id_is_create_hash {
        return Ok(shown(state.iter().filter_map(Value::as_object), &parties));
    }
    let (stripped, events) = separate_stripped(state);
    let events = events.into_iter().map(|event| ReceivedPdu::from_history(event, version));
    let unusable =
        |error: PduError| MatrixError::invalid_param(format!("`invite_room_state` cannot be used: {error}."));
    let events = events.collect::<Result<Vec<_>, _>>().map_err(unusable)?;
    if events.iter().any(|event| event.room_id() != invite.room_id()) {
        return Err(MatrixError::invalid_param("`invite_room_state` holds an event of another room."));
    }
    let events = pdus::verify(server, events).await?.into_iter().collect::<Result<Vec<_>, _>>().map_err(unusable)?;
    if !events.iter().any(|event| event.is_state("m.room.create", "")) {
        return Err(MatrixError::invalid_param("`invite_room_state` lacks the m.room.create event."));
    }
    // Of a key that came twice, the event counts.
    Ok(shown(events.iter().map(Event::object).chain(&stripped), &parties))
}
