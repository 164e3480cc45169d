//! Signatures on JSON objects, and the keys that make and check them.
//!
//! Spec: appendices, "Signing JSON". Events are signed in their redacted form: see [`super::event`]. When a key may
//! be used is for [`super::server_keys`].

use ed25519_dalek::{Signature, Signer, Verifier};

use super::{
    base64,
    json::{Object, Value, write_member, write_members},
};

/// The one algorithm that there is, as it stands in key ids.
const ALGORITHM: &str = "ed25519";

/// The id of the key with which policy servers sign, always. Which key it is the room says, and not the server.
pub const POLICY_KEY_ID: &str = "ed25519:policy_server";

/// A private signing key of this server. Neither `Debug` nor any other method shows the private part.
pub struct SigningKey {
    key_id: Box<str>,
    key: ed25519_dalek::SigningKey,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyKey(ed25519_dalek::VerifyingKey);

/// Why a line is not a signing key. Says nothing of what the line holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// Not three words.
    #[error("a signing key is one line of three words: `ed25519 <version> <base64 seed>`")]
    Shape,
    /// The first word is not `ed25519`.
    #[error("the first word of a signing key must be `ed25519`")]
    Algorithm,
    /// The second word, the key's version, is empty or holds other characters than `[a-zA-Z0-9_]`.
    #[error("the version of a signing key may hold only letters, digits and underscores")]
    Version,
    /// The third word is not 32 bytes in unpadded base64.
    #[error("the seed of a signing key must be 32 bytes in unpadded base64")]
    Seed,
}

/// Why an object does not count as signed by a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is no signature of this server with this key.
    #[error("there is no signature")]
    Missing,
    /// The signature is not base64 of 64 bytes.
    #[error("the signature is malformed")]
    Malformed,
    /// The signature is of another object or by another key.
    #[error("the signature is wrong")]
    Wrong,
}

impl SigningKey {
    /// Reads a line as Synapse's `signing.key` has it: `ed25519 <version> <unpadded base64 of the 32 byte seed>`.
    ///
    /// # Errors
    /// Where it is not of that form.
    pub fn from_line(line: &str) -> Result<Self, SigningKeyError> {
        let mut words = line.split_whitespace();
        let (Some(algorithm), Some(version), Some(seed), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(SigningKeyError::Shape);
        };
        if algorithm != ALGORITHM {
            return Err(SigningKeyError::Algorithm);
        }
        if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(SigningKeyError::Version);
        }
        let seed = base64::decode(seed).and_then(|seed| seed.try_into().ok()).ok_or(SigningKeyError::Seed)?;
        let key = ed25519_dalek::SigningKey::from_bytes(&seed);
        Ok(Self { key_id: format!("{ALGORITHM}:{version}").into(), key })
    }

    /// The signing key identifier, such as `ed25519:a_AbCd`.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The public part.
    pub fn verify_key(&self) -> VerifyKey {
        VerifyKey(self.key.verifying_key())
    }

    /// The public part in unpadded base64, as `verify_keys` has it.
    pub fn public_base64(&self) -> String {
        self.verify_key().to_base64()
    }

    /// Signs `object`, of which `signatures` and `unsigned` are not covered, and adds the signature to it.
    pub fn sign_object(&self, object: &mut Object, server: &str) {
        let signature = self.sign_text(&signed_text(object));
        add_signature(object, server, &self.key_id, signature);
    }

    /// The signature of a text, in unpadded base64.
    pub fn sign_text(&self, text: &str) -> String {
        base64::encode(&self.key.sign(text.as_bytes()).to_bytes())
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl VerifyKey {
    /// Reads a key of 32 bytes in unpadded base64. `None` where it is not one, or is one that Synapse would not take.
    pub fn from_base64(text: &str) -> Option<Self> {
        let bytes: [u8; 32] = base64::decode(text)?.try_into().ok()?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes).ok()?;
        (!key.is_weak() && is_canonical(&bytes)).then_some(Self(key))
    }

    /// The key in unpadded base64.
    pub fn to_base64(&self) -> String {
        base64::encode(self.0.as_bytes())
    }

    /// Checks a signature in base64 on a text.
    ///
    /// Strictly, which is what libsodium does and so all Synapses do: no small-order points, no second form of the
    /// same signature. Servers that disagreed on such a signature would disagree on the room. A key of small order
    /// never becomes a [`VerifyKey`]; `verify` compares R with the one form that it computes, so only R's order is left.
    ///
    /// # Errors
    /// Where it is malformed or wrong.
    pub fn verify_text(&self, text: &str, signature: &str) -> Result<(), SignatureError> {
        let signature = base64::decode(signature).ok_or(SignatureError::Malformed)?;
        let signature = Signature::from_slice(&signature).map_err(|_| SignatureError::Malformed)?;
        if is_of_small_order(signature.r_bytes()) {
            return Err(SignatureError::Wrong);
        }
        self.0.verify(text.as_bytes(), &signature).map_err(|_| SignatureError::Wrong)
    }
}

/// The key ids and signatures of `server` on `object`, of the algorithm that we know.
pub fn signatures_of<'a>(object: &'a Object, server: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let signatures = object.get("signatures").and_then(|signatures| signatures.get(server)).and_then(Value::as_object);
    signatures
        .into_iter()
        .flat_map(Object::iter)
        .filter(|(key_id, _)| is_known_algorithm(key_id))
        // One that is not a string is as wrong as any other that does not decode.
        .map(|(key_id, signature)| (key_id, signature.as_str().unwrap_or_default()))
}

/// Whether a signing key identifier is of the algorithm that we know.
pub(super) fn is_known_algorithm(key_id: &str) -> bool {
    key_id.strip_prefix(ALGORITHM).is_some_and(|version| version.starts_with(':'))
}

/// Adds one signature to those that are there.
pub(super) fn add_signature(object: &mut Object, server: &str, key_id: &str, signature: String) {
    object.object_at("signatures").object_at(server).insert(key_id, signature);
}

/// The canonical text that a signature on `object` covers.
pub(super) fn signed_text(object: &Object) -> String {
    let mut out = String::with_capacity(1024);
    write_members(&mut out, object, |out, key, value| {
        let covered = key != "signatures" && key != "unsigned";
        if covered {
            write_member(out, key, value);
        }
        covered
    });
    out
}

/// The y coordinates of the eight points of small order: 1, -1, 0, and two of order 8. The highest bit is for x.
const SMALL_ORDER: [[u8; 32]; 5] = [
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
    [0; 32],
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
];

/// Whether this is a point of small order. Forms that are not canonical need not be told, for no R that is computed has one; to
/// look costs less than to decompress it.
fn is_of_small_order(point: &[u8; 32]) -> bool {
    let [y @ .., last] = point;
    SMALL_ORDER.iter().any(|[other @ .., other_last]| y == other && last & 0x7f == *other_last)
}

/// Whether the encoded y coordinate is below 2^255 - 19: libsodium refuses the few keys that could be written in two ways.
fn is_canonical(key: &[u8; 32]) -> bool {
    let [first, middle @ .., last] = key;
    *first < 0xed || *last & 0x7f != 0x7f || middle.iter().any(|byte| *byte != 0xff)
}
