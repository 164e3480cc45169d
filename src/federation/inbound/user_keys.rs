//! Users' devices and their keys (Server-Server API, "Device Management", "End-to-End Encryption").
//!
//! Any server may ask, as at other homeservers: whoever wants to write to a user must be able to encrypt. What a device is called
//! is not told, for it may say where its user lives.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::json;

use super::{authentication::Signed, malformed};
use crate::{
    error::MatrixError,
    federation::outbound::user_keys::{bound_claims, claimed_key},
    matrix::{
        device_keys::{Usage, UserKeys},
        identifiers::UserId,
        json::{Object, Value},
    },
    router::{self, Handled, raw_json_response},
    server::Server,
    store::{
        one_time_keys::{Claimed, Wanted},
        user_keys::KeyReader,
    },
};

/// How many users or devices may be asked about at once.
const MAX_ASKED: usize = 5_000;

/// `GET /_matrix/federation/v1/user/devices/{userId}`
pub(super) async fn devices(server: &Server, request: Signed) -> Handled {
    let user = own_user(server, request.parameter(0))?;
    let list = server.store.device_list(user.as_str()).await?;
    let (stream_id, keys) = list.ok_or_else(|| MatrixError::not_found("There is no such user."))?;
    let device = |(device_id, keys): (String, Object)| {
        Value::Object([("device_id", Value::from(device_id)), ("keys", Value::Object(keys))].into_iter().collect())
    };
    let mut answer = Object::new();
    answer.insert("user_id", &user);
    answer.insert("stream_id", stream_id.get());
    answer.insert("devices", keys.devices.into_iter().map(device).collect::<Vec<_>>());
    for (usage, key) in keys.cross_signing {
        answer.insert(usage.member(), key);
    }
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

/// `POST /_matrix/federation/v1/user/keys/query`
pub(super) async fn query(server: &Server, request: Signed) -> Handled {
    let asked =
        request.object()?.get("device_keys").and_then(Value::as_object).ok_or_else(|| malformed("device_keys"))?;
    if asked.len() > MAX_ASKED {
        return Err(MatrixError::too_large("At most 5000 users can be asked about at once."));
    }
    let mut wanted = BTreeMap::new();
    for (user, devices) in asked.iter() {
        own_user(server, user)?;
        let devices = devices.as_array().map(|ids| ids.iter().map(|id| id.as_str().map(str::to_owned)).collect());
        let devices: Option<Vec<String>> = devices.unwrap_or_else(|| Some(Vec::new()));
        wanted.insert(user.to_owned(), devices.ok_or_else(|| malformed("device_keys"))?);
    }
    let mut keys = server.store.local_keys(&wanted, KeyReader::Server).await?;
    let (mut devices, mut cross_signing) = (Object::new(), BTreeMap::<Usage, Object>::new());
    for user in wanted.into_keys() {
        let UserKeys { devices: of, cross_signing: cross } = keys.remove(&user).unwrap_or_default();
        devices.insert(user.as_str(), of.into_iter().collect::<Object>());
        for (usage, key) in cross {
            cross_signing.entry(usage).or_default().insert(user.as_str(), key);
        }
    }
    let mut answer = Object::from_iter([("device_keys", devices)]);
    for usage in [Usage::Master, Usage::SelfSigning] {
        answer.insert(format!("{}s", usage.member()), cross_signing.remove(&usage).unwrap_or_default());
    }
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

/// `POST /_matrix/federation/v1/user/keys/claim`
pub(super) async fn claim(server: &Server, request: Signed) -> Handled {
    let asked =
        request.object()?.get("one_time_keys").and_then(Value::as_object).ok_or_else(|| malformed("one_time_keys"))?;
    let mut wanted = Vec::new();
    for (user, devices) in asked.iter() {
        own_user(server, user)?;
        for (device, algorithm) in devices.as_object().ok_or_else(|| malformed("one_time_keys"))?.iter() {
            let algorithm = algorithm.as_str().ok_or_else(|| malformed("one_time_keys"))?.to_owned();
            let (user_id, device_id) = (user.to_owned(), device.to_owned());
            wanted.push(Wanted { user_id, device_id, algorithm, only_fallback: false });
        }
    }
    if wanted.len() > MAX_ASKED {
        return Err(MatrixError::too_large("At most 5000 keys can be claimed at once."));
    }
    bound_claims(server, request.origin.name().as_str(), &mut wanted);
    let claimed = if wanted.is_empty() { Vec::new() } else { server.store.claim_keys(&wanted).await? };
    let mut keys = Object::new();
    for Claimed { user_id, device_id, key } in claimed {
        let (id, key) = claimed_key(&key)?;
        keys.object_at(&user_id).object_at(&device_id).insert(id, key);
    }
    router::ok(&json!({ "one_time_keys": keys }))
}

fn own_user(server: &Server, text: &str) -> Result<UserId, MatrixError> {
    let user = UserId::parse(text).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    if user.server_name() != server.config.server_name.as_str() {
        return Err(MatrixError::invalid_param("The user is not one of this server's."));
    }
    Ok(user)
}
