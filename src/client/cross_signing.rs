//! Cross-signing keys and signatures on keys (Client-Server API, "Cross-signing").

use std::collections::BTreeMap;

use serde_json::json;

use super::{auth, body::Body, reauthentication::confirm};
use crate::{
    error::MatrixError,
    federation::outbound::user_keys,
    matrix::{
        device_keys::{CrossSigningKey, DeviceKeys, KeyError, Usage, UserKeys},
        identifiers::UserId,
        json::{Object, Value},
    },
    router::{Call, Handled, ok},
    server::Server,
    store::user_keys::{KeyReader, KeysPut, NewSignature},
};

/// How many signatures may be uploaded at once.
const MAX_SIGNATURES: usize = 1_000;
/// How long another server may take to say what its user's master key is, in milliseconds.
const TIMEOUT_MS: u32 = 10_000;

/// `POST /keys/device_signing/upload`. Replacing keys wants the password again; the first ones, and those that are there already,
/// do not.
pub(super) async fn upload(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of_keys(server, call).await?;
    let user = session.user.as_str();
    let mut uploaded = BTreeMap::new();
    for usage in Usage::ALL {
        if let Some(key) = body.object(usage.member())? {
            uploaded.insert(usage, CrossSigningKey::check(key.clone(), user, usage)?);
        }
    }
    check_device_signatures(server, user, uploaded.get(&Usage::Master)).await?;
    loop {
        let texts = server.store.cross_signing_keys(user).await?;
        let stored: BTreeMap<Usage, CrossSigningKey> =
            texts.iter().filter_map(|(usage, text)| Some((*usage, CrossSigningKey::stored(text)?))).collect();
        let new = new_keys(&uploaded, &stored, user)?;
        if new.is_empty() {
            return ok(&json!({}));
        }
        if stored.contains_key(&Usage::Master)
            && let Err(ask) = confirm(server, call, &session, &body).await?
        {
            return Ok(ask);
        }
        let own = &server.config.server_name;
        match server.store.put_cross_signing_keys(own, &session.user, &new, &stored, texts.get(&Usage::Master)).await? {
            KeysPut::Done(told) => {
                server.flush_to_all(told);
                return ok(&json!({}));
            }
            KeysPut::NamesDevice => {
                let message = "A device of the user has the name of one of the keys.";
                return Err(MatrixError::forbidden(message));
            }
            // Another master key has come meanwhile, which wants the password.
            KeysPut::OtherMaster => {}
        }
    }
}

/// Those of the uploaded keys that are not stored already.
fn new_keys(
    uploaded: &BTreeMap<Usage, CrossSigningKey>,
    stored: &BTreeMap<Usage, CrossSigningKey>,
    user: &str,
) -> Result<BTreeMap<Usage, CrossSigningKey>, MatrixError> {
    let master = uploaded.get(&Usage::Master).or_else(|| stored.get(&Usage::Master));
    let master = master.ok_or_else(|| MatrixError::missing_param("A master key must be uploaded first."))?;
    for (_, key) in uploaded.iter().filter(|(usage, _)| **usage != Usage::Master) {
        key.check_signed_by(master, user)?;
    }
    let is_stored = |usage: &Usage, key: &CrossSigningKey| stored.get(usage).is_some_and(|held| held.is(key.object()));
    let mut new = uploaded.clone();
    // With a new master key the others are new as well: it has signed them.
    if uploaded.get(&Usage::Master).is_none_or(|master| is_stored(&Usage::Master, master)) {
        new.retain(|usage, key| !is_stored(usage, key));
    }
    Ok(new)
}

/// A master key may come signed by devices of its user; what claims to be such a signature must be one.
async fn check_device_signatures(
    server: &Server,
    user: &str,
    master: Option<&CrossSigningKey>,
) -> Result<(), MatrixError> {
    let Some(master) = master else { return Ok(()) };
    let signers = signing_keys(master.object(), user);
    let devices = signers.filter(|key_id| *key_id != master.key_id()).filter_map(|key_id| key_id.split_once(':'));
    let devices: Vec<String> = devices.map(|(_, device)| device.to_owned()).collect();
    if devices.is_empty() {
        return Ok(());
    }
    let wanted = BTreeMap::from([(user.to_owned(), devices.clone())]);
    let keys = server.store.local_keys(&wanted, KeyReader::Server).await?;
    for device in devices {
        let keys = keys.get(user).and_then(|of| of.devices.get(&device));
        let keys = keys.and_then(|keys| DeviceKeys::check(keys.clone(), user, &device).ok());
        let keys = keys.ok_or_else(|| MatrixError::invalid_param("The master key is signed by an unknown device."))?;
        keys.check_master_key(user, master.object())?;
    }
    Ok(())
}

/// `POST /keys/signatures/upload`
pub(super) async fn upload_signatures(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let signed = Body::of(server, call).await?.into_object();
    let user = session.user.as_str();
    let count = signed.values().filter_map(Value::as_object).map(Object::len).sum::<usize>();
    if count > MAX_SIGNATURES {
        return Err(MatrixError::too_large("At most 1000 keys can be signed at once."));
    }
    let mut targets = BTreeMap::new();
    for (of, keys) in signed.iter() {
        let id = UserId::parse(of).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
        targets.insert(of.to_owned(), id);
        keys.as_object().ok_or_else(|| MatrixError::bad_json("Each user must map to an object of keys."))?;
    }
    let known = known_keys(server, user, &targets).await?;
    let mut signatures = Vec::new();
    let mut failures: BTreeMap<&str, BTreeMap<&str, serde_json::Value>> = BTreeMap::new();
    for (of, keys) in signed.iter() {
        for (name, key) in keys.as_object().into_iter().flat_map(Object::iter) {
            let key = key.as_object().cloned().unwrap_or_default();
            match new_signatures(user, of, name, &key, &known) {
                Ok(new) => signatures.extend(new),
                Err(error) => {
                    failures.entry(of).or_default().insert(name, error.body());
                }
            }
        }
    }
    if !signatures.is_empty() {
        let told = server.store.add_signatures(&server.config.server_name, &session.user, &signatures).await?;
        server.flush_to_all(told);
    }
    ok(&json!({ "failures": failures }))
}

/// The keys of the user and of those whose keys are signed.
async fn known_keys(
    server: &Server,
    user: &str,
    targets: &BTreeMap<String, UserId>,
) -> Result<BTreeMap<String, UserKeys>, MatrixError> {
    let own = server.config.server_name.as_str();
    let is_local = |id: &UserId| id.server_name() == own;
    let of = |local: bool| {
        targets.iter().filter(move |(_, id)| is_local(id) == local).map(|(id, _)| (id.clone(), Vec::new()))
    };
    let mut local: BTreeMap<_, _> = of(true).collect();
    local.insert(user.to_owned(), Vec::new());
    let remote: BTreeMap<_, _> = of(false).collect();
    if remote.is_empty() {
        return Ok(server.store.local_keys(&local, KeyReader::User(user)).await?);
    }
    Ok(user_keys::query(server, user, &local, &remote, TIMEOUT_MS).await?.0)
}

/// The signatures of `user` on the key `name` of the user `of` that are new, each checked.
fn new_signatures(
    user: &str,
    of: &str,
    name: &str,
    signed: &Object,
    known: &BTreeMap<String, UserKeys>,
) -> Result<Vec<NewSignature>, MatrixError> {
    let mine = known.get(user);
    let my = |usage| mine.and_then(|keys| cross_signing_key(keys, usage));
    let theirs = known.get(of);
    let is_mine = user == of;
    let unknown = || MatrixError::not_found("There is no such key.");
    let master = theirs.and_then(|keys| cross_signing_key(keys, Usage::Master)).filter(|key| key.public() == name);
    let mut new = Vec::new();
    let mut take = |key_id: &str| {
        let signature = signed.get("signatures")?.get(user)?.get(key_id)?.as_str()?.to_owned();
        let (user_id, key_name) = (of.to_owned(), name.to_owned());
        new.push(NewSignature { user_id, key_name, key_id: key_id.to_owned(), signature });
        Some(())
    };
    if let Some(master) = master {
        if !master.is(signed) {
            return Err(other_key());
        }
        if is_mine {
            let by_itself = master.key_id();
            for key_id in signing_keys(signed, user).filter(|key_id| **key_id != *by_itself) {
                let device = key_id.split_once(':').map(|(_, device)| device).unwrap_or_default();
                let keys = theirs.and_then(|keys| keys.devices.get(device)).ok_or_else(unknown)?;
                DeviceKeys::check(keys.clone(), user, device)?.check_master_key(user, signed)?;
                take(key_id);
            }
        } else {
            let signer = my(Usage::UserSigning).ok_or_else(unknown)?;
            signer.check_signature_on(user, signed, "the master key")?;
            take(&signer.key_id());
        }
    } else if is_mine {
        let keys = theirs.and_then(|keys| keys.devices.get(name)).ok_or_else(unknown)?;
        if !DeviceKeys::check(keys.clone(), user, name)?.is(signed) {
            return Err(other_key());
        }
        let signer = my(Usage::SelfSigning).ok_or_else(unknown)?;
        signer.check_signature_on(user, signed, "the device keys")?;
        take(&signer.key_id());
    } else {
        return Err(unknown());
    }
    Ok(new)
}

fn cross_signing_key(keys: &UserKeys, usage: Usage) -> Option<CrossSigningKey> {
    CrossSigningKey::stored(&keys.cross_signing.get(&usage)?.to_text())
}

/// The IDs of the keys with which `user` has signed an object.
fn signing_keys<'a>(signed: &'a Object, user: &str) -> impl Iterator<Item = &'a str> {
    let of = signed.get("signatures").and_then(|signatures| signatures.get(user)).and_then(Value::as_object);
    of.into_iter().flat_map(Object::keys)
}

/// What is signed is not what this server holds.
fn other_key() -> MatrixError {
    KeyError::Malformed("it is not the key that this server holds".to_owned()).into()
}
