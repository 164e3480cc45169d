//! Keys of devices (Client-Server API, "End-to-End Encryption", "Key management API").

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::json;

use super::{
    auth::{self, Session},
    body::{Body, check_device_id, lacks},
    device_lists,
    tokens::Token,
};
use crate::{
    error::MatrixError,
    federation::outbound::user_keys::{self, Failures},
    matrix::{
        device_keys::{DeviceKeys, KeyError, Usage, UserKeys, is_unsigned_key},
        identifiers::UserId,
        json::{Object, Value},
    },
    platform::DatabaseError,
    router::{Call, Handled, ok, raw_json_response},
    server::Server,
    store::{
        one_time_keys::{Claimed, KeyCounts, OneTimeKey, Wanted},
        user_keys::KeyReader,
    },
};

/// How many users or devices may be asked about at once.
const MAX_ASKED: usize = 5_000;
/// How many keys may be uploaded at once.
const MAX_UPLOADED: usize = 500;
/// How long other servers may take by default, and at most, in milliseconds.
const TIMEOUT_MS: (i64, i64) = (10_000, 30_000);
/// What clients look for among the counts even where there are none left.
const SIGNED_CURVE25519: &str = "signed_curve25519";

/// `POST /keys/upload`
pub(super) async fn upload(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of_keys(server, call).await?;
    let (user, device) = session.reader();
    check_device_id(device)?;
    let stored = server.store.device_keys(user, device).await?;
    let mut keys = stored.as_deref().and_then(DeviceKeys::stored);
    if let Some(uploaded) = body.object("device_keys")?.filter(|keys| !keys.is_empty()) {
        keys = Some(DeviceKeys::check(uploaded.clone(), user, device)?);
    }
    let one_time = one_time_keys(&body, "one_time_keys", &session, keys.as_ref())?;
    let mut fallback = one_time_keys(&body, "fallback_keys", &session, keys.as_ref())?;
    if fallback.is_empty() {
        fallback = one_time_keys(&body, "org.matrix.msc2732.fallback_keys", &session, keys.as_ref())?;
    }
    if let Some(keys) = keys.filter(|keys| Some(keys.object().to_text()) != stored) {
        let own = &server.config.server_name;
        let told = server.store.put_device_keys(own, &session.user, device, &keys).await?;
        server.flush_to_all(told.ok_or_else(|| auth::unknown_token("The device was logged out meanwhile.", false))?);
    }
    let now_ms = server.platform.clock.now_ms();
    let counts = server.store.put_one_time_keys((user, device), &one_time, &fallback, now_ms).await?;
    let counts = counts.ok_or_else(|| {
        let message = "A different one-time key with this ID has already been uploaded.";
        MatrixError::invalid_param(message)
    })?;
    ok(&json!({ "one_time_key_counts": told_counts(&counts) }))
}

/// The one-time keys that a device has left, by algorithm.
pub(super) fn told_counts(counts: &KeyCounts) -> BTreeMap<&str, i64> {
    let left = counts.one_time.iter().map(|(algorithm, count)| (algorithm.as_str(), *count));
    [(SIGNED_CURVE25519, 0)].into_iter().chain(left).collect()
}

/// The one-time keys in a member of the body, checked by the keys of their device.
pub(super) fn one_time_keys(
    body: &Body,
    member: &str,
    session: &Session,
    device: Option<&DeviceKeys>,
) -> Result<Vec<OneTimeKey>, MatrixError> {
    let Some(keys) = body.object(member)? else { return Ok(Vec::new()) };
    if keys.len() > MAX_UPLOADED {
        return Err(MatrixError::too_large("At most 500 keys can be uploaded at once."));
    }
    keys.iter()
        .map(|(id, key)| {
            match device {
                Some(device) => device.check_one_time_key(session.user.as_str(), id, key)?,
                None if is_unsigned_key(id, key)? => {}
                None => {
                    let message = "Upload the device's identity keys before its one-time keys.";
                    return Err(MatrixError::invalid_param(message));
                }
            }
            let (algorithm, name) = id.split_once(':').unwrap_or_default();
            Ok(OneTimeKey { algorithm: algorithm.to_owned(), key_id: name.to_owned(), key: key.to_text() })
        })
        .collect()
}

/// `POST /keys/query`
pub(super) async fn query(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let asked = body.object("device_keys")?.ok_or_else(|| lacks("device_keys"))?;
    if asked.len() > MAX_ASKED {
        return Err(MatrixError::too_large("At most 5000 users can be asked about at once."));
    }
    let (mut local, mut remote) = (BTreeMap::new(), BTreeMap::new());
    for (user, devices) in asked.iter() {
        let id = UserId::parse(user).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
        let devices = match devices {
            Value::Null => Some(Vec::new()),
            _ => devices.as_array().and_then(|list| list.iter().map(|id| id.as_str().map(str::to_owned)).collect()),
        };
        let devices = devices.ok_or_else(|| MatrixError::bad_json("Each user must map to a list of device IDs."))?;
        let of = if is_local(server, &id) { &mut local } else { &mut remote };
        of.insert(user.to_owned(), devices);
    }
    let user = session.user.as_str();
    let (mut keys, failures) = if remote.is_empty() {
        (server.store.local_keys(&local, KeyReader::User(user)).await?, Failures::default())
    } else {
        user_keys::query(server, user, &local, &remote, timeout(&body)?).await?
    };
    for user in local.keys() {
        keys.entry(user.clone()).or_default();
    }
    let mut answer = told_keys(keys);
    answer.insert("failures", told_failures(failures));
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

/// The members of an answer to a key query.
fn told_keys(keys: BTreeMap<String, UserKeys>) -> Object {
    let mut devices = Object::new();
    let mut cross_signing: BTreeMap<Usage, Object> =
        Usage::ALL.into_iter().map(|usage| (usage, Object::new())).collect();
    for (user, of) in keys {
        devices.insert(user.as_str(), of.devices.into_iter().collect::<Object>());
        for (usage, key) in of.cross_signing {
            cross_signing.entry(usage).or_default().insert(user.as_str(), key);
        }
    }
    let mut answer = Object::new();
    answer.insert("device_keys", devices);
    for (usage, keys) in cross_signing {
        answer.insert(format!("{}s", usage.member()), keys);
    }
    answer
}

fn told_failures(failures: Failures) -> Object {
    let told = |why: String| [("errcode", "M_UNKNOWN"), ("error", why.as_str())].into_iter().collect::<Object>();
    failures.into_iter().map(|(server, why)| (server.as_str().to_owned(), told(why))).collect()
}

/// `POST /keys/claim`
pub(super) async fn claim(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let asked = body.object("one_time_keys")?.ok_or_else(|| lacks("one_time_keys"))?;
    let wanted = wanted(asked)?;
    let (local, remote): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(user, _)| is_local(server, user));
    let mut local: Vec<Wanted> = local.into_iter().map(|(_, wanted)| wanted).collect();
    user_keys::bound_claims(server, session.user.as_str(), &mut local);
    let claimed = if local.is_empty() { Vec::new() } else { server.store.claim_keys(&local).await? };
    let mut keys = told_claimed(claimed)?;
    let mut failures = Failures::default();
    if !remote.is_empty() {
        let (theirs, failed) = user_keys::claim(server, &remote, timeout(&body)?).await;
        keys.extend(theirs);
        failures = failed;
    }
    let mut answer = Object::new();
    answer.insert("one_time_keys", keys.into_iter().collect::<Object>());
    answer.insert("failures", told_failures(failures));
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

/// What a claim asks for: `{user: {device: algorithm}}`.
fn wanted(asked: &Object) -> Result<Vec<(UserId, Wanted)>, MatrixError> {
    let mut wanted = Vec::new();
    for (user, devices) in asked.iter() {
        let id = UserId::parse(user).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
        let shape = || MatrixError::bad_json("Each user must map to an object of device IDs and algorithms.");
        for (device, algorithm) in devices.as_object().ok_or_else(shape)?.iter() {
            let algorithm = algorithm.as_str().ok_or_else(shape)?.to_owned();
            let (user_id, device_id) = (user.to_owned(), device.to_owned());
            wanted.push((id.clone(), Wanted { user_id, device_id, algorithm, only_fallback: false }));
        }
    }
    if wanted.len() > MAX_ASKED {
        return Err(MatrixError::too_large("At most 5000 keys can be claimed at once."));
    }
    Ok(wanted)
}

/// Keys as answers to claims hold them: by user, and device.
fn told_claimed(claimed: Vec<Claimed>) -> Result<BTreeMap<String, Object>, DatabaseError> {
    let mut told: BTreeMap<String, Object> = BTreeMap::new();
    for Claimed { user_id, device_id, key } in claimed {
        let (id, key) = user_keys::claimed_key(&key)?;
        told.entry(user_id).or_default().object_at(&device_id).insert(id, key);
    }
    Ok(told)
}

/// `GET /keys/changes?from=…&to=…`: up to now, whatever `to` says, as other servers answer: more is no harm.
pub(super) async fn changes(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let token = |name: &str| -> Result<Token, MatrixError> {
        let text = call.query(name).ok_or_else(|| MatrixError::missing_param(format!("The query lacks {name:?}.")))?;
        Token::parse(&text)
    };
    let from = token("from")?;
    token("to")?;
    let lists = device_lists::since(server, &session, from).await?;
    ok(&json!({ "changed": lists.changed, "left": lists.left }))
}

fn timeout(body: &Body) -> Result<u32, MatrixError> {
    let timeout = body.integer("timeout")?.unwrap_or(TIMEOUT_MS.0).clamp(1, TIMEOUT_MS.1);
    Ok(u32::try_from(timeout).unwrap_or(u32::MAX))
}

fn is_local(server: &Server, user: &UserId) -> bool {
    user.server_name() == server.config.server_name.as_str()
}

impl From<KeyError> for MatrixError {
    fn from(error: KeyError) -> Self {
        let message = format!("A key was rejected: {error}.");
        match error {
            KeyError::Malformed(_) => Self::invalid_param(message),
            KeyError::Signature { .. } => Self::new(StatusCode::BAD_REQUEST, "M_INVALID_SIGNATURE", message),
        }
    }
}
