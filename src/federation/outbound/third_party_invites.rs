//! Invites by third-party identifier, when it is known whose it is (Server-Server API, "Third-party invites").
//!
//! The invite is made by whoever is in the room: by this server, or by that of the user who offered it, which is asked to.
//! An identity server has signed whose the identifier is, by a key that the offer in the room's state names; before an invite
//! is made, and only then, it is asked whether that key is still valid.

use super::{membership, refusals::any_of};
use crate::{
    error::MatrixError,
    federation::peers::identity::IdentityServers,
    log::LogRecord,
    matrix::{
        event::Event,
        identifiers::{RoomId, ServerName, UserId},
        json::{Object, Value},
        state_content::Membership,
        third_party_invite::{OfferedKey, signer},
    },
    room::{Draft, Extent},
    server::Server,
    store::events::StoredEvent,
};

/// An invite by third-party identifier that is redeemed.
#[derive(Debug, Clone)]
pub struct Redeemed {
    room_id: RoomId,
    sender: UserId,
    target: UserId,
    token: String,
    signed: Object,
}

impl Redeemed {
    /// The invite to the room by which `sender` has offered `target` to come in, with what an identity server has signed.
    ///
    /// # Errors
    /// 400 `M_INVALID_PARAM` where that is about somebody else.
    pub fn new(room_id: RoomId, sender: UserId, target: UserId, signed: Object) -> Result<Self, MatrixError> {
        let token = signed.get("token").and_then(Value::as_str).map(str::to_owned);
        let token = token.ok_or_else(|| MatrixError::invalid_param("`signed` lacks the token."))?;
        if signed.get("mxid").and_then(Value::as_str) != Some(target.as_str()) {
            return Err(MatrixError::invalid_param("`signed` is not about the invited user."));
        }
        Ok(Self { room_id, sender, target, token, signed })
    }

    /// What the invite says besides the membership.
    fn content(&self, display_name: &str) -> Object {
        let signed = Value::Object(self.signed.clone());
        let invite = Object::from_iter([("display_name", Value::from(display_name)), ("signed", signed)]);
        Object::from_iter([("third_party_invite", invite)])
    }
}

/// Makes the invite of a local user to whom an identifier was bound, or has a server that is in the room make it.
///
/// # Errors
/// 403 where the room has no such offer or the rules do not allow it, 502 where no server that could make it was reached.
pub async fn redeem(server: &Server, invite: &Redeemed) -> Result<(), MatrixError> {
    let is_here = server.rooms.room(&invite.room_id).await?.is_some_and(|room| room.local_joined > 0);
    if is_here {
        return issue(server, invite).await;
    }
    let mut content = invite.content("");
    content.insert("membership", Membership::Invite.as_str());
    let event = Object::from_iter([
        ("content", Value::Object(content)),
        ("room_id", Value::from(&invite.room_id)),
        ("sender", Value::from(&invite.sender)),
        ("state_key", Value::from(&invite.target)),
        ("type", Value::from("m.room.member")),
    ]);
    let mut servers: Vec<ServerName> = Vec::new();
    for name in [Some(invite.sender.server_name()), invite.room_id.server_name()].into_iter().flatten() {
        if let Ok(name) = ServerName::parse(name)
            && name != server.config.server_name
            && !servers.contains(&name)
        {
            servers.push(name);
        }
    }
    any_of(&servers, "No server is known that could invite to that room.", async |name| {
        server.federation.exchange_third_party_invite(name, &invite.room_id, &event).await
    })
    .await
}

/// Makes the invite in a room that this server is in, in the name of whoever offered it, and tells the invited user's server.
/// Whoever is in the room or invited already stays what they are: the offer stands on, and anybody can tell of the binding again.
///
/// # Errors
/// 403 where the room has no such offer, where it is not signed by a key of the offer that is still valid, or where the rules
/// do not allow it; 502 where the identity server or the user's server cannot be asked.
pub async fn issue(server: &Server, invite: &Redeemed) -> Result<(), MatrixError> {
    let (room_id, sender, target) = (&invite.room_id, &invite.sender, &invite.target);
    let (offered, member) = (("m.room.third_party_invite", invite.token.as_str()), ("m.room.member", target.as_str()));
    let state = server.rooms.current_stored(room_id, &[offered, member]).await?.map(|(_, state)| state);
    let state: Vec<Event> = state.iter().flatten().map(StoredEvent::shown_event).collect();
    let find = |(event_type, state_key)| state.iter().find(|event| event.is_state(event_type, state_key));
    let offer = find(offered).filter(|offer| *offer.sender() == *sender);
    let offer = offer.ok_or_else(|| MatrixError::forbidden("That user has offered no such invite."))?;
    let key = signer(&invite.signed, offer.content());
    let key = key.ok_or_else(|| MatrixError::forbidden("The invite is not signed by any of the offered keys."))?;
    // The rules would let the invite replace a join.
    if find(member).is_some_and(is_in_or_invited) {
        return Ok(());
    }
    check_validity(server, invite, key).await?;
    // While the identity server was asked, another request may have redeemed the same offer, and its invite been accepted.
    if has_come(server, room_id, member).await? {
        return Ok(());
    }
    let display_name = offer.content().get("display_name").and_then(Value::as_str).unwrap_or_default();
    let content = invite.content(display_name);
    if target.server_name() == server.config.server_name.as_str() {
        membership::local_invitee(server, target.as_str()).await?;
        server.rooms.send(room_id, sender, Draft::membership(target.as_str(), Membership::Invite, content)).await?;
        server.flush(room_id);
        return Ok(());
    }
    membership::invite(server, sender, target, room_id, content).await.map(|_| ())
}

fn is_in_or_invited(member: &Event) -> bool {
    matches!(Membership::of(member.content()), Some(Membership::Join | Membership::Invite))
}

/// Whether the user whose membership is `member` is in the room or invited by now. Where not all members of the room are known yet, it
/// waits for them: who is not known to be in it may be.
async fn has_come(server: &Server, room_id: &RoomId, member: (&str, &str)) -> Result<bool, MatrixError> {
    let read = async || server.rooms.current(room_id, &[member]).await;
    let mut current = read().await?;
    if current.as_ref().is_some_and(|(room, state)| room.extent == Extent::Partial && state.is_empty()) {
        server.until_whole(room_id).await?;
        current = read().await?;
    }
    Ok(current.is_some_and(|(_, state)| state.iter().any(is_in_or_invited)))
}

/// Refuses what is signed by a key of the offer that is no longer valid.
async fn check_validity(server: &Server, invite: &Redeemed, key: OfferedKey<'_>) -> Result<(), MatrixError> {
    match IdentityServers::new(&server.platform, &server.config).is_valid(key).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(MatrixError::forbidden("The key that signed for this user is no longer valid.")),
        Err(error) => {
            let record = LogRecord::warning("the key of a third-party invite cannot be checked");
            server.platform.log.write(record.room(&invite.room_id).user(&invite.target).because(&error));
            Err(MatrixError::bad_gateway("It could not be checked whether the signing key is still valid."))
        }
    }
}
