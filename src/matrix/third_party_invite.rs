//! Invites by third-party identifier: what `m.room.third_party_invite` offers, and who has signed for it (Server-Server API,
//! "Verifying the invite").

use super::{
    json::{Object, Value},
    signing::{self, VerifyKey},
};

/// How many pairs of a signature and a key are tried, and how many keys are read. The two events could name a million, in
/// each of the 50 events of a transaction. An identity server signs once and lists its own key twice and one that it made
/// for the invite: three pairs.
const MAX_ATTEMPTS: usize = 20;

/// A key with which an identity server may sign that somebody owns the identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferedKey<'a> {
    /// The public key, as it is written.
    pub public_key: &'a str,
    /// Where to ask whether it is still valid; a key without one is valid for ever.
    pub key_validity_url: Option<&'a str>,
}

/// The key among those of the offer `content` that has signed `signed`, if one has.
pub fn signer<'a>(signed: &Object, content: &'a Object) -> Option<OfferedKey<'a>> {
    let signatures: Vec<&str> = signatures(signed).collect();
    let message = signing::signed_text(signed);
    offered_keys(content)
        .take(MAX_ATTEMPTS)
        .filter_map(|offered| Some((offered, VerifyKey::from_base64(offered.public_key)?)))
        .flat_map(|(offered, key)| signatures.iter().map(move |signature| (offered, key.clone(), signature)))
        .take(MAX_ATTEMPTS)
        .find(|(_, key, signature)| key.verify_text(&message, signature).is_ok())
        .map(|(offered, ..)| offered)
}

/// The keys of `public_key` and `public_keys`.
fn offered_keys(content: &Object) -> impl Iterator<Item = OfferedKey<'_>> {
    let listed = content.get("public_keys").and_then(Value::as_array).into_iter().flatten();
    let listed = listed.filter_map(Value::as_object);
    std::iter::once(content).chain(listed).filter_map(|key| {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        Some(OfferedKey { public_key: text("public_key")?, key_validity_url: text("key_validity_url") })
    })
}

/// The Ed25519 signatures, whoever they are attributed to.
fn signatures(signed: &Object) -> impl Iterator<Item = &str> {
    let servers = signed.get("signatures").and_then(Value::as_object).into_iter().flat_map(Object::values);
    let of_server = servers.filter_map(Value::as_object).flat_map(Object::iter);
    of_server.filter(|(key_id, _)| signing::is_known_algorithm(key_id)).filter_map(|(_, signature)| signature.as_str())
}
