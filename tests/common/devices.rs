//! Devices that encrypt, as far as servers see it: keys that ruma signs.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ruma_common::{CanonicalJsonObject, CanonicalJsonValue};
use ruma_signatures::Ed25519KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A device of a user.
pub struct Device {
    pub user: String,
    pub id: String,
    key: Ed25519KeyPair,
}

/// A cross-signing key of a user.
pub struct CrossSigning {
    pub user: String,
    pub usage: &'static str,
    key: Ed25519KeyPair,
    /// The public part, by which it is named.
    pub public: String,
}

impl Device {
    pub fn new(user: &str, id: &str) -> Self {
        Self { user: user.to_owned(), id: id.to_owned(), key: key_pair(&format!("{user} {id}"), id) }
    }

    /// The device's signing key, unpadded base64.
    pub fn public(&self) -> String {
        STANDARD_NO_PAD.encode(self.key.public_key())
    }

    /// The identity keys, signed.
    pub fn keys(&self) -> Value {
        let (ed25519, curve25519) = (format!("ed25519:{}", self.id), format!("curve25519:{}", self.id));
        self.sign(json!({
            "user_id": self.user,
            "device_id": self.id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": { ed25519: self.public(), curve25519: base64_of(&format!("curve {}", self.id)) },
        }))
    }

    /// The one-time key of this name, signed: with its ID, and its value.
    pub fn one_time_key(&self, name: &str) -> (String, Value) {
        let key = self.sign(json!({ "key": base64_of(&format!("{} {name}", self.id)) }));
        (format!("signed_curve25519:{name}"), key)
    }

    /// The fallback key of this name, signed.
    pub fn fallback_key(&self, name: &str) -> (String, Value) {
        let key = self.sign(json!({ "key": base64_of(&format!("{} {name}", self.id)), "fallback": true }));
        (format!("signed_curve25519:{name}"), key)
    }

    /// So many one-time keys, as uploads hold them.
    pub fn one_time_keys(&self, count: usize) -> Value {
        (0..count).map(|n| self.one_time_key(&format!("K{n:04}"))).collect::<serde_json::Map<_, _>>().into()
    }

    pub fn sign(&self, object: Value) -> Value {
        sign(&self.user, &self.key, object)
    }
}

impl CrossSigning {
    pub fn new(user: &str, usage: &'static str) -> Self {
        Self::other(user, usage, "")
    }

    /// Another one, told by `salt`.
    pub fn other(user: &str, usage: &'static str, salt: &str) -> Self {
        let seed = format!("{user} {usage} {salt}");
        let public = STANDARD_NO_PAD.encode(key_pair(&seed, "any").public_key());
        Self { user: user.to_owned(), usage, key: key_pair(&seed, &public), public }
    }

    /// The key as it is uploaded, unsigned.
    pub fn unsigned(&self) -> Value {
        let key_id = format!("ed25519:{}", self.public);
        json!({ "user_id": self.user, "usage": [self.usage], "keys": { key_id: self.public } })
    }

    /// The key signed by `master`.
    pub fn signed_by(&self, master: &Self) -> Value {
        master.sign(self.unsigned())
    }

    pub fn sign(&self, object: Value) -> Value {
        sign(&self.user, &self.key, object)
    }
}

fn sign(user: &str, key: &Ed25519KeyPair, object: Value) -> Value {
    let mut object: CanonicalJsonObject = match CanonicalJsonValue::try_from(object).unwrap() {
        CanonicalJsonValue::Object(object) => object,
        other => panic!("{other:?} is not an object"),
    };
    ruma_signatures::sign_json(user, key, &mut object).unwrap();
    Value::from(CanonicalJsonValue::Object(object))
}

fn key_pair(seed: &str, version: &str) -> Ed25519KeyPair {
    // A PKCS#8 document: a fixed head and the seed.
    let mut document = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    document.extend(Sha256::digest(seed));
    Ed25519KeyPair::from_der(&document, version.to_owned()).unwrap()
}

fn base64_of(text: &str) -> String {
    STANDARD_NO_PAD.encode(Sha256::digest(text))
}
