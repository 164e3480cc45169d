//! Rule 5.4.1: an invite that redeems an earlier invite by third-party identifier.
//!
//! The identity server has signed who the identifier belongs to; the keys it may use stand in the room's
//! `m.room.third_party_invite`. It vouches for this pairing only, so the inviting member needs no power any more.

use super::{AuthError, Room};
use crate::matrix::{event::Event, json::Value, state_content::Membership, third_party_invite::signer};

/// Judges an invite of `target` whose content has `third_party_invite`.
pub(super) fn check(event: &Event, target: &str, invite: &Value, room: &Room<'_>) -> Result<(), AuthError> {
    if room.membership(target) == Membership::Ban {
        return Err(AuthError::TargetBanned);
    }
    let signed = invite.get("signed").and_then(Value::as_object).ok_or(AuthError::ThirdPartyInviteMalformed)?;
    let (Some(mxid), Some(token)) = (signed.get("mxid"), signed.get("token").and_then(Value::as_str)) else {
        return Err(AuthError::ThirdPartyInviteMalformed);
    };
    if mxid.as_str() != Some(target) {
        return Err(AuthError::ThirdPartyInviteOfAnotherUser);
    }
    let offer = room.state.get("m.room.third_party_invite", token).ok_or(AuthError::ThirdPartyInviteUnknown)?;
    if offer.sender() != event.sender() {
        return Err(AuthError::ThirdPartyInviteUnknown);
    }
    signer(signed, offer.content()).map(|_| ()).ok_or(AuthError::ThirdPartyInviteUnsigned)
}
