//! The two hashes of an event, and the event id that one of them is.
//!
//! Spec: Server-Server API, "Calculating the content hash for an event", "Calculating the reference hash for an
//! event"; rooms, "Event IDs".

use sha2::{Digest, Sha256};

use super::{
    base64,
    json::{Object, write_member},
    room_version::EventIds,
};

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// The canonical text of a whole event, and its content hash: of the same text but for a few members.
pub(super) fn text_and_content_hash(event: &Object) -> (String, Hash) {
    let mut text = String::with_capacity(2048);
    let mut hasher = Sha256::new();
    let mut hashed_before = false;
    text.push('{');
    hasher.update(b"{");
    for (index, (key, value)) in event.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        let start = text.len();
        write_member(&mut text, key, value);
        if is_hashed(key) {
            if hashed_before {
                hasher.update(b",");
            }
            hasher.update(text.as_bytes().get(start..).unwrap_or_default());
            hashed_before = true;
        }
    }
    text.push('}');
    hasher.update(b"}");
    (text, hasher.finalize().into())
}

/// The content hash of an event.
pub fn content_hash(event: &Object) -> Hash {
    text_and_content_hash(event).1
}

/// The reference hash, given the text that [`super::redaction::signed_text`] makes.
pub(super) fn reference_hash(signed_text: &str) -> Hash {
    Sha256::digest(signed_text.as_bytes()).into()
}

/// The event id that a reference hash makes. `None` in room versions where the event carries its id.
pub(super) fn event_id(hash: &Hash, format: EventIds) -> Option<String> {
    match format {
        EventIds::Given => None,
        EventIds::HashBase64 => Some(format!("${}", base64::encode(hash))),
        EventIds::HashUrlSafe => Some(format!("${}", base64::encode_url_safe(hash))),
    }
}

/// Whether the content hash covers this member.
fn is_hashed(key: &str) -> bool {
    !matches!(key, "hashes" | "signatures" | "unsigned")
}
