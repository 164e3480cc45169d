//! Rule 5.4.1: an invite that redeems an earlier invite by third-party identifier.
//!
//! The identity server has signed who the identifier belongs to; the keys it may use stand in the room's
//! `m.room.third_party_invite`. It vouches for this pairing only, so the inviting member needs no power any more.

use super::{AuthError, Room};
use crate::matrix::{
    event::Event,
    json::{Object, Value},
    signing::{self, VerifyKey},
    state_content::Membership,
};

/// How many pairs of a signature and a key are tried, and how many keys are read. The two events could name a million, in
/// each of the 50 events of a transaction. An identity server signs once and lists its own key twice and one that it made
/// for the invite: three pairs.
const MAX_ATTEMPTS: usize = 20;

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
    if is_signed_by_any(signed, public_keys(offer.content())) {
        Ok(())
    } else {
        Err(AuthError::ThirdPartyInviteUnsigned)
    }
}

/// The keys of `public_key` and `public_keys`.
fn public_keys(content: &Object) -> impl Iterator<Item = &str> {
    let listed = content.get("public_keys").and_then(Value::as_array).into_iter().flatten();
    content
        .get("public_key")
        .into_iter()
        .chain(listed.filter_map(|key| key.get("public_key")))
        .filter_map(Value::as_str)
}

fn is_signed_by_any<'a>(signed: &Object, keys: impl Iterator<Item = &'a str>) -> bool {
    let signatures: Vec<&str> = signatures(signed).collect();
    let message = signing::signed_text(signed);
    keys.take(MAX_ATTEMPTS)
        .filter_map(VerifyKey::from_base64)
        .flat_map(|key| signatures.iter().map(move |signature| (key.clone(), signature)))
        .take(MAX_ATTEMPTS)
        .any(|(key, signature)| key.verify_text(&message, signature).is_ok())
}

/// The Ed25519 signatures, whoever they are attributed to.
fn signatures(signed: &Object) -> impl Iterator<Item = &str> {
    let servers = signed.get("signatures").and_then(Value::as_object).into_iter().flat_map(Object::values);
    let of_server = servers.filter_map(Value::as_object).flat_map(Object::iter);
    of_server.filter(|(key_id, _)| signing::is_known_algorithm(key_id)).filter_map(|(_, signature)| signature.as_str())
}
