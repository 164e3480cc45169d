//! Invites that are taken back and knocks that are rejected (Client-Server API, `m.room.member`: from `invite` or `knock` to
//! `leave` or `ban` by somebody else).
//!
//! A user who is invited to a room that nobody here is in hears of it as the room's members do, in a transaction. It is the only
//! event of such a room that means something here. Whether the room allows it we cannot tell: of an invite only the inviter
//! is believed. A knock may be rejected by anybody with the power to; an event that cites the knock's is believed.

use crate::{
    error::MatrixError,
    federation::pdus,
    matrix::{
        event::ReceivedPdu,
        identifiers::{RoomId, UserId},
        json::Value,
        state_content::Membership,
    },
    room::KnownRooms,
    server::Server,
    store::members::Invitation,
};

/// Takes from `pdus` those that end the invite of a local user to a room that nobody here is in, and remembers those of them
/// that the inviter sent.
///
/// # Errors
/// Where the database fails.
pub(super) async fn take(server: &Server, rooms: &KnownRooms, pdus: &mut [Value]) -> Result<(), MatrixError> {
    let candidates = pdus.iter_mut().filter_map(|pdu| Some((invited(server, rooms, pdu)?, pdu)));
    let candidates: Vec<((UserId, RoomId), &mut Value)> = candidates.collect();
    if candidates.is_empty() {
        return Ok(());
    }
    let invitations = server.store.invitations(candidates.iter().map(|((user, room_id), _)| (user, room_id))).await?;
    let mut received = Vec::new();
    let mut of = Vec::new();
    for ((user, room_id), pdu) in candidates {
        let known = || invitations.iter().filter(|known| known.user_id == user && known.room_id == room_id);
        let mut is_read = false;
        for invitation in known() {
            // An invite may name another version than the room has; it speaks for itself alone.
            let Some(version) = rooms.version(&room_id).or(invitation.room_version) else { continue };
            is_read = true;
            if let Ok(read) = ReceivedPdu::from_value(pdu.clone(), version)
                && ends(&read, invitation)
            {
                received.push(read);
                of.push(invitation);
                break;
            }
        }
        // Where somebody is joining at this moment, it will be an event of the room like any other.
        if is_read && !rooms.is_joining(&room_id) {
            *pdu = Value::Null;
        }
    }
    for (outcome, invitation) in pdus::verify(server, received).await?.into_iter().zip(of) {
        if let Ok(event) = outcome {
            server.rooms.invite_ended(&invitation.user_id, &invitation.event_id, &event).await?;
        }
    }
    Ok(())
}

/// The local user whom the PDU puts out of a room that nobody here is in, and that room.
fn invited(server: &Server, rooms: &KnownRooms, pdu: &Value) -> Option<(UserId, RoomId)> {
    let text = |name: &str| pdu.get(name).and_then(Value::as_str);
    let membership = Membership::of(pdu.get("content")?.as_object()?)?;
    let is_out = matches!(membership, Membership::Leave | Membership::Ban);
    if text("type")? != "m.room.member" || !is_out || text("sender") == text("state_key") {
        return None;
    }
    let (user, room_id) = (UserId::parse(text("state_key")?).ok()?, RoomId::parse(text("room_id")?).ok()?);
    let is_ours = user.server_name() == server.config.server_name.as_str();
    (is_ours && rooms.ours(&room_id).is_none()).then_some((user, room_id))
}

/// Whether the PDU is about this invite and no other, and the inviter's; or about this knock.
fn ends(pdu: &ReceivedPdu, invitation: &Invitation) -> bool {
    let may_end = invitation.is_knock || Some(pdu.sender()) == invitation.inviter.as_ref();
    may_end && pdu.auth_events().contains(&invitation.event_id)
}
