//! The keys that users and devices publish for end-to-end encryption, as far as a server checks them: that they are whose they
//! say, and signed by whom they must be.
//!
//! Spec: Client-Server API, "End-to-End Encryption" ("Key algorithms", "Device keys", "Cross-signing").

use std::collections::BTreeMap;

use super::{
    json::{self, Object, Value},
    signing::{SignatureError, VerifyKey, signatures_of, signed_text},
};

/// The longest key, device ID, algorithm or signature name, in bytes.
const MAX_NAME: usize = 255;

/// The longest keys of a device, and the longest cross-signing key, with their signatures, in bytes: everybody who shares a room
/// is told of them.
pub const MAX_KEYS_BYTES: usize = 65_536;

/// The longest one-time or fallback key, in bytes: thousands of them may be claimed together.
const MAX_ONE_TIME_KEY_BYTES: usize = 8_192;

/// Why a key is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is not of the form that the spec gives it.
    #[error("{0}")]
    Malformed(String),
    /// It is not signed as it must be.
    #[error("{what}: {why}")]
    Signature {
        /// Which key.
        what: String,
        /// What is wrong.
        why: SignatureError,
    },
}

/// The identity keys of a device, signed by it.
#[derive(Debug, Clone)]
pub struct DeviceKeys {
    object: Object,
    signing_key: VerifyKey,
}

/// What a cross-signing key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usage {
    /// The user's other cross-signing keys.
    Master,
    /// The user's own devices.
    SelfSigning,
    /// Other users' master keys.
    UserSigning,
}

/// A cross-signing key.
#[derive(Debug, Clone)]
pub struct CrossSigningKey {
    object: Object,
    public: String,
    key: VerifyKey,
}

/// All keys of one user, with the signatures on them that the reader may see.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UserKeys {
    /// The identity keys of the devices, by device ID.
    pub devices: BTreeMap<String, Object>,
    /// The cross-signing keys.
    pub cross_signing: BTreeMap<Usage, Object>,
}

impl DeviceKeys {
    /// Checks what a device says are its keys.
    ///
    /// # Errors
    /// Where they are another device's, malformed, or not signed by the device's own key.
    pub fn check(mut object: Object, user: &str, device: &str) -> Result<Self, KeyError> {
        object.remove("unsigned");
        let says = |name: &str, expected: &str| object.get(name).and_then(Value::as_str) == Some(expected);
        if !says("user_id", user) || !says("device_id", device) {
            return Err(malformed("the device keys are those of another user or device"));
        }
        check_length(&object)?;
        object.check_strict().map_err(|error| malformed(&error.to_string()))?;
        texts(object.get("algorithms")).ok_or_else(|| malformed("\"algorithms\" must be a list of strings"))?;
        let keys =
            object.get("keys").and_then(Value::as_object).ok_or_else(|| malformed("\"keys\" must be an object"))?;
        for (key_id, key) in keys.iter() {
            let (_, of) = key_id.split_once(':').ok_or_else(|| malformed("a key ID has no algorithm"))?;
            if of != device || key_id.len() > 2 * MAX_NAME || key.as_str().is_none() {
                return Err(malformed(
                    "the ID of each key must be its algorithm and the device ID, and the key a string",
                ));
            }
        }
        let keys = Self::of_object(object)?;
        let key_id = keys.key_id().to_owned();
        verify(&keys.object, user, &key_id, &keys.signing_key, "the device keys")?;
        Ok(keys)
    }

    /// Reads keys that were checked before. `None` where they were not.
    pub fn stored(text: &str) -> Option<Self> {
        Self::of_object(json::parse(text.as_bytes()).ok()?.into_object()?).ok()
    }

    fn of_object(object: Object) -> Result<Self, KeyError> {
        let device = object.get("device_id").and_then(Value::as_str).unwrap_or_default();
        let key = object.get("keys").and_then(|keys| keys.get(&format!("ed25519:{device}"))).and_then(Value::as_str);
        let key = key.and_then(VerifyKey::from_base64);
        let signing_key = key.ok_or_else(|| malformed("the device has no Ed25519 key"))?;
        Ok(Self { object, signing_key })
    }

    /// The whole object, without what others add to it.
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// The name of the key with which the device signs.
    pub fn key_id(&self) -> String {
        format!("ed25519:{}", self.object.get("device_id").and_then(Value::as_str).unwrap_or_default())
    }

    /// Whether `signed` is the same but for signatures.
    pub fn is(&self, signed: &Object) -> bool {
        signed_text(&self.object) == signed_text(signed)
    }

    /// Checks a one-time or fallback key of this device, `key_id` being its algorithm and name.
    ///
    /// # Errors
    /// Where it is malformed, or of a signed kind and not signed by the device.
    pub fn check_one_time_key(&self, user: &str, key_id: &str, key: &Value) -> Result<(), KeyError> {
        if is_unsigned_key(key_id, key)? {
            return Ok(());
        }
        let object = key.as_object().ok_or_else(|| malformed("a one-time key must be an object"))?;
        verify(object, user, &self.key_id(), &self.signing_key, key_id)
    }

    /// Checks this device's signature on a master key.
    ///
    /// # Errors
    /// Where there is none, or it is wrong.
    pub fn check_master_key(&self, user: &str, master: &Object) -> Result<(), KeyError> {
        verify(master, user, &self.key_id(), &self.signing_key, "the master key")
    }
}

/// Whether a one-time key is of a kind that needs no signature.
///
/// # Errors
/// Where its ID or the key itself is malformed.
pub fn is_unsigned_key(key_id: &str, key: &Value) -> Result<bool, KeyError> {
    let (algorithm, name) = key_id.split_once(':').unwrap_or_default();
    if algorithm.is_empty() || name.is_empty() || algorithm.len() > MAX_NAME || name.len() > MAX_NAME {
        return Err(malformed("the ID of a one-time key must be its algorithm and a name"));
    }
    if key.to_text().len() > MAX_ONE_TIME_KEY_BYTES {
        return Err(malformed("a one-time key is too long"));
    }
    match key {
        Value::String(_) => Ok(true),
        Value::Object(object) if object.get("key").is_some_and(|key| key.as_str().is_some()) => {
            object.check_strict().map_err(|error| malformed(&error.to_string()))?;
            Ok(!algorithm.starts_with("signed_"))
        }
        _ => Err(malformed("a one-time key must be a string, or an object with a \"key\"")),
    }
}

impl Usage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Master, Self::SelfSigning, Self::UserSigning];

    /// As it stands in `usage`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::SelfSigning => "self_signing",
            Self::UserSigning => "user_signing",
        }
    }

    /// The member of requests that holds such a key.
    pub fn member(self) -> &'static str {
        match self {
            Self::Master => "master_key",
            Self::SelfSigning => "self_signing_key",
            Self::UserSigning => "user_signing_key",
        }
    }

    /// The usage of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|usage| usage.as_str() == text)
    }
}

impl CrossSigningKey {
    /// Checks the form of a cross-signing key of `user`. Who must have signed it is for [`CrossSigningKey::check_signed_by`].
    ///
    /// # Errors
    /// Where it is another user's, for another usage, or malformed.
    pub fn check(mut object: Object, user: &str, usage: Usage) -> Result<Self, KeyError> {
        object.remove("unsigned");
        if object.get("user_id").and_then(Value::as_str) != Some(user) {
            return Err(malformed("the cross-signing key is another user's"));
        }
        check_length(&object)?;
        object.check_strict().map_err(|error| malformed(&error.to_string()))?;
        let usages = texts(object.get("usage")).unwrap_or_default();
        if !usages.contains(&usage.as_str()) {
            return Err(malformed("the cross-signing key is for another usage"));
        }
        Self::of_object(object)
            .ok_or_else(|| malformed("a cross-signing key must hold one Ed25519 key, named by itself"))
    }

    /// Reads a key that was checked before. `None` where it was not.
    pub fn stored(text: &str) -> Option<Self> {
        Self::of_object(json::parse(text.as_bytes()).ok()?.into_object()?)
    }

    fn of_object(object: Object) -> Option<Self> {
        let public = {
            let mut keys = object.get("keys").and_then(Value::as_object)?.iter();
            let (Some((key_id, key)), None) = (keys.next(), keys.next()) else { return None };
            key.as_str().filter(|public| key_id.strip_prefix("ed25519:") == Some(public))?.to_owned()
        };
        let key = VerifyKey::from_base64(&public)?;
        Some(Self { object, public, key })
    }

    /// The whole object.
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// The public part, by which others name it.
    pub fn public(&self) -> &str {
        &self.public
    }

    /// The name of the key with which it signs.
    pub fn key_id(&self) -> String {
        format!("ed25519:{}", self.public)
    }

    /// Whether `signed` is the same but for signatures.
    pub fn is(&self, signed: &Object) -> bool {
        signed_text(&self.object) == signed_text(signed)
    }

    /// Checks this key's signature, as `user`, on `object`.
    ///
    /// # Errors
    /// Where there is none, or it is wrong.
    pub fn check_signature_on(&self, user: &str, object: &Object, what: &str) -> Result<(), KeyError> {
        verify(object, user, &self.key_id(), &self.key, what)
    }

    /// Checks that `master`, of the same `user`, has signed this key.
    ///
    /// # Errors
    /// Where it has not.
    pub fn check_signed_by(&self, master: &Self, user: &str) -> Result<(), KeyError> {
        master.check_signature_on(user, &self.object, "the cross-signing key")
    }
}

/// Whether this can be the ID of a device: what others cannot store is none, or it would hold up all that is sent together with it.
pub fn is_device_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.contains(char::is_control)
}

impl UserKeys {
    /// Adds what another server says are the keys of a device, if they are that device's. Whether it has signed them is for
    /// clients to check, who trust no server.
    pub fn add_device(&mut self, user: &str, device: &str, keys: &Object) {
        let says = |name: &str, expected: &str| keys.get(name).and_then(Value::as_str) == Some(expected);
        if says("user_id", user) && says("device_id", device) && is_device_id(device) {
            self.devices.insert(device.to_owned(), keys.clone());
        }
    }

    /// Adds what another server says is a cross-signing key of a user, if it is that user's.
    pub fn add_cross_signing(&mut self, user: &str, usage: Usage, key: &Object) {
        if let Ok(key) = CrossSigningKey::check(key.clone(), user, usage) {
            self.cross_signing.insert(usage, key.object().clone());
        }
    }

    /// Adds a signature to the key that is called `key_name`, a device ID or the public part of the master key.
    pub fn add_signature(&mut self, signer: &str, key_name: &str, key_id: &str, signature: &str) {
        let is_master = |key: &Object| {
            let keys = key.get("keys").and_then(Value::as_object);
            keys.is_some_and(|keys| keys.values().any(|key| key.as_str() == Some(key_name)))
        };
        let master = self.cross_signing.get_mut(&Usage::Master).filter(|key| is_master(key));
        if let Some(key) = master.or_else(|| self.devices.get_mut(key_name)) {
            key.object_at("signatures").object_at(signer).insert(key_id, signature);
        }
    }
}

fn verify(object: &Object, user: &str, key_id: &str, key: &VerifyKey, what: &str) -> Result<(), KeyError> {
    let signature = signatures_of(object, user).find(|(id, _)| *id == key_id).map(|(_, signature)| signature);
    let checked = match signature {
        Some(signature) => key.verify_text(&signed_text(object), signature),
        None => Err(SignatureError::Missing),
    };
    checked.map_err(|why| KeyError::Signature { what: what.to_owned(), why })
}

fn check_length(keys: &Object) -> Result<(), KeyError> {
    if keys.to_text().len() > MAX_KEYS_BYTES { Err(malformed("they are too long")) } else { Ok(()) }
}

fn texts(value: Option<&Value>) -> Option<Vec<&str>> {
    value?.as_array()?.iter().map(Value::as_str).collect()
}

fn malformed(sentence: &str) -> KeyError {
    KeyError::Malformed(sentence.to_owned())
}
