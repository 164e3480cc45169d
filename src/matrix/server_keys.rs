//! Server keys: which key of a server may verify what, and the key responses that they come from and that we give.
//!
//! Spec: Server-Server API, "Retrieving server keys"; rooms, "Signing key validity period" of version 5. Fetching is
//! for `federation`, keeping for `store`.

use std::collections::BTreeMap;

use super::{
    json::{Object, Value},
    room_version::RoomVersion,
    signing::{self, SignatureError, SigningKey, VerifyKey},
};

/// A `valid_until_ts` further ahead than this from when the key was fetched counts as this: 7 days, in milliseconds.
pub const MAX_VALIDITY_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// The most `verify_keys`, and the most `old_verify_keys`, that one server may have.
const MAX_KEYS: usize = 200;
/// The most servers in one response of a notary.
const MAX_SERVERS: usize = 1000;

/// A key of some server, and when it may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    /// The public key.
    pub key: VerifyKey,
    /// `valid_until_ts` of the response that listed it, in milliseconds since the epoch.
    pub valid_until_ts: i64,
    /// When it stopped being used, if it is one of `old_verify_keys`.
    pub expired_ts: Option<i64>,
    /// When we fetched it.
    pub fetched_ts: i64,
}

/// Keys of any number of servers, to verify with.
#[derive(Debug, Clone, Default)]
pub struct KeyRing {
    servers: BTreeMap<Box<str>, BTreeMap<Box<str>, KnownKey>>,
}

/// The keys of one server, from a response whose signatures were checked.
#[derive(Debug, Clone)]
pub struct ServerKeys {
    /// Whose keys they are.
    pub server_name: Box<str>,
    /// Until when the response says that its `verify_keys` are valid.
    pub valid_until_ts: i64,
    /// Key ids and keys, old ones among them.
    pub keys: Vec<(Box<str>, KnownKey)>,
    /// The response itself, to be passed on when we are the notary.
    pub object: Object,
}

/// Why a key response is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// This member is missing or malformed.
    #[error("`{0}` is missing or malformed")]
    Format(&'static str),
    /// The keys are another server's.
    #[error("the keys are those of {0:?}")]
    WrongServer(Box<str>),
    /// None of the keys that it lists has signed it, or one has signed it wrongly.
    #[error("not signed by the server itself: {0}")]
    SelfSignature(SignatureError),
    /// The notary has not signed it with a current key, or wrongly.
    #[error("not signed by the notary: {0}")]
    NotarySignature(SignatureError),
    /// It lists more keys or servers than we read.
    #[error("more keys or servers than this server reads")]
    TooMany,
}

impl KnownKey {
    /// Whether it may verify an event of this room version, sent at `origin_server_ts`.
    pub fn is_valid_for_event(&self, origin_server_ts: i64, version: &RoomVersion) -> bool {
        match self.expired_ts {
            // In every version. An event of the very millisecond in which the key expired is taken, as Synapse does.
            Some(expired_ts) => origin_server_ts <= expired_ts,
            None => !version.enforce_key_validity || origin_server_ts <= self.valid_until(),
        }
    }

    /// Whether it may verify a request, or a response, now.
    pub fn is_valid_now(&self, now: i64) -> bool {
        self.expired_ts.is_none() && now <= self.valid_until()
    }

    /// Whether this is to be forgotten for what a later response says of the same server and key id. The server's own word
    /// counts; a notary's only where it says that the key has expired, or is valid longer.
    pub fn gives_way_to(&self, later: &Self, own_word: bool) -> bool {
        if own_word {
            return later.fetched_ts >= self.fetched_ts;
        }
        let is_news = later.expired_ts.is_some() || later.valid_until() > self.valid_until();
        later.key == self.key && self.expired_ts.is_none() && is_news
    }

    /// Until when it is valid, if it is a current key: the lesser of what its server says and 7 days after the fetch.
    pub fn valid_until(&self) -> i64 {
        self.valid_until_ts.min(self.fetched_ts.saturating_add(MAX_VALIDITY_MS))
    }
}

impl KeyRing {
    /// A ring without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key. Of two that differ only in validity the one that is valid longer stays.
    pub fn insert(&mut self, server: &str, key_id: &str, key: KnownKey) {
        let keys = self.servers.entry(server.into()).or_default();
        match keys.get(key_id) {
            Some(known) if known.key == key.key && known.reach() > key.reach() => {}
            _ => drop(keys.insert(key_id.into(), key)),
        }
    }

    /// Adds the keys of a checked response.
    pub fn add(&mut self, keys: &ServerKeys) {
        for (key_id, key) in &keys.keys {
            self.insert(&keys.server_name, key_id, key.clone());
        }
    }

    /// The key `key_id` of `server`, whether or not it is still valid.
    pub fn get(&self, server: &str, key_id: &str) -> Option<&KnownKey> {
        self.servers.get(server)?.get(key_id)
    }
}

impl KnownKey {
    fn reach(&self) -> i64 {
        self.expired_ts.unwrap_or_else(|| self.valid_until())
    }
}

impl ServerKeys {
    /// Reads what `GET /_matrix/key/v2/server` of the server `expected` gave at `now`, or an entry of a notary's response.
    ///
    /// Current keys count only if they signed the response themselves, so that nobody can claim another's key.
    ///
    /// # Errors
    /// Where it is malformed, another server's, or not signed by itself.
    pub fn parse_and_check(object: Object, expected: &str, now: i64) -> Result<Self, KeyError> {
        let server_name = object.get("server_name").and_then(Value::as_str).ok_or(KeyError::Format("server_name"))?;
        if server_name != expected {
            return Err(KeyError::WrongServer(server_name.into()));
        }
        let valid_until_ts =
            object.get("valid_until_ts").and_then(Value::as_i64).ok_or(KeyError::Format("valid_until_ts"))?;
        let listed = object.get("verify_keys").and_then(Value::as_object).ok_or(KeyError::Format("verify_keys"))?;
        let mut keys = Vec::new();
        let signed_text = signing::signed_text(&object);
        for (key_id, entry) in known_keys(listed)? {
            let key = read_key(entry).ok_or(KeyError::Format("verify_keys"))?;
            let signature = signing::signatures_of(&object, server_name).find(|(id, _)| *id == key_id);
            if let Some((_, signature)) = signature {
                key.verify_text(&signed_text, signature).map_err(KeyError::SelfSignature)?;
                keys.push((key_id.into(), KnownKey { key, valid_until_ts, expired_ts: None, fetched_ts: now }));
            }
        }
        if keys.is_empty() {
            return Err(KeyError::SelfSignature(SignatureError::Missing));
        }
        for (key_id, old) in read_old_keys(&object)? {
            // A key that is listed as both is a current one.
            if !listed.contains_key(&key_id) {
                let (key, expired_ts) = (old.key, Some(old.expired_ts));
                keys.push((key_id, KnownKey { key, valid_until_ts, expired_ts, fetched_ts: now }));
            }
        }
        Ok(Self { server_name: expected.into(), valid_until_ts, keys, object })
    }
}

/// Reads what a notary answered at `now` to `/_matrix/key/v2/query`: an outcome for each entry of `server_keys`.
///
/// An entry counts if it is signed both by the notary, with a key of `notary_keys`, and by the server that it is about.
///
/// # Errors
/// Where the response as a whole is malformed.
pub fn check_notary_response(
    response: Object,
    notary: &str,
    notary_keys: &KeyRing,
    now: i64,
) -> Result<Vec<Result<ServerKeys, KeyError>>, KeyError> {
    let entries = response.into_iter().find_map(|(key, value)| (&*key == "server_keys").then_some(value));
    let entries = entries.and_then(Value::into_array).ok_or(KeyError::Format("server_keys"))?;
    if entries.len() > MAX_SERVERS {
        return Err(KeyError::TooMany);
    }
    let check = |entry: Value| {
        let object = entry.into_object().ok_or(KeyError::Format("server_keys"))?;
        check_notary_signature(&object, notary, notary_keys, now)?;
        let server = object.get("server_name").and_then(Value::as_str).ok_or(KeyError::Format("server_name"))?;
        let server = server.to_owned();
        ServerKeys::parse_and_check(object, &server, now)
    };
    Ok(entries.into_iter().map(check).collect())
}

fn check_notary_signature(object: &Object, notary: &str, keys: &KeyRing, now: i64) -> Result<(), KeyError> {
    let mut outcome = Err(KeyError::NotarySignature(SignatureError::Missing));
    let signed_text = signing::signed_text(object);
    for (key_id, signature) in signing::signatures_of(object, notary) {
        if let Some(known) = keys.get(notary, key_id).filter(|known| known.is_valid_now(now)) {
            known.key.verify_text(&signed_text, signature).map_err(KeyError::NotarySignature)?;
            outcome = Ok(());
        }
    }
    outcome
}

/// A key that a server used once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldKey {
    /// The public key.
    pub key: VerifyKey,
    /// When it was used last, in milliseconds since the epoch.
    pub expired_ts: i64,
}

/// Reads the `old_verify_keys` of `object`, which may be missing, with their key ids.
///
/// # Errors
/// Where they are malformed or too many.
pub fn read_old_keys(object: &Object) -> Result<Vec<(Box<str>, OldKey)>, KeyError> {
    let malformed = || KeyError::Format("old_verify_keys");
    let Some(listed) = object.get("old_verify_keys") else { return Ok(Vec::new()) };
    let read = |(key_id, entry): (&str, &Value)| {
        let key = read_key(entry).ok_or_else(malformed)?;
        let expired_ts = entry.get("expired_ts").and_then(Value::as_i64).ok_or_else(malformed)?;
        Ok((key_id.into(), OldKey { key, expired_ts }))
    };
    known_keys(listed.as_object().ok_or_else(malformed)?)?.map(read).collect()
}

/// Our own answer to `GET /_matrix/key/v2/server`, signed. `old_verify_keys` are key ids and keys that the server used before.
pub fn own_server_keys(
    server_name: &str,
    key: &SigningKey,
    old_verify_keys: &[(Box<str>, OldKey)],
    valid_until_ts: i64,
) -> Object {
    let old_verify_keys = old_verify_keys.iter().map(|(key_id, old)| {
        let members = [("expired_ts", Value::from(old.expired_ts)), ("key", Value::from(old.key.to_base64()))];
        (key_id.clone(), Object::from_iter(members))
    });
    let verify_key = Object::from_iter([("key", key.public_base64())]);
    let mut object = Object::from_iter([
        ("old_verify_keys", Value::from(Object::from_iter(old_verify_keys))),
        ("server_name", Value::from(server_name)),
        ("valid_until_ts", Value::from(valid_until_ts)),
        ("verify_keys", Value::from(Object::from_iter([(key.key_id(), verify_key)]))),
    ]);
    key.sign_object(&mut object, server_name);
    object
}

/// The entries of `verify_keys` or `old_verify_keys` whose algorithm we know.
fn known_keys(listed: &Object) -> Result<impl Iterator<Item = (&str, &Value)>, KeyError> {
    if listed.len() > MAX_KEYS {
        return Err(KeyError::TooMany);
    }
    Ok(listed.iter().filter(|(key_id, _)| signing::is_known_algorithm(key_id)))
}

fn read_key(entry: &Value) -> Option<VerifyKey> {
    VerifyKey::from_base64(entry.get("key")?.as_str()?)
}
