//! Other servers' users' devices and keys (Server-Server API, "Device Management", "End-to-End Encryption").

use std::collections::BTreeMap;

use super::{
    endpoints::{MIB, V1, missing, object},
    requests::{FederationClient, Limits, RequestError, path},
};
use crate::{
    matrix::{
        device_keys::{Usage, UserKeys},
        identifiers::{ServerName, UserId},
        json::{Object, Value},
    },
    store::one_time_keys::Wanted,
};

/// Users' keys.
const KEYS: Limits = Limits { timeout_ms: 10_000, max_response_bytes: 8 * MIB };

/// The answer of `user/devices`.
#[derive(Debug, Clone, PartialEq)]
pub struct UserDevices {
    /// The keys of the user and of the devices that have any.
    pub keys: UserKeys,
    /// The number of the newest update that they hold.
    pub stream_id: Option<i64>,
}

/// Every function's errors are [`RequestError`], as those of [`super::endpoints`].
#[allow(clippy::missing_errors_doc)]
impl FederationClient {
    /// `GET /_matrix/federation/v1/user/devices/{userId}`: the user's keys, as far as they are the user's.
    pub async fn user_devices(
        &self,
        server: &ServerName,
        user_id: &UserId,
        timeout_ms: u32,
    ) -> Result<UserDevices, RequestError> {
        let target = path(V1, &["user", "devices", user_id.as_str()]);
        let answer = object(&self.get(server, target, Limits { timeout_ms, ..KEYS }).await?)?;
        if answer.get("user_id").and_then(Value::as_str) != Some(user_id.as_str()) {
            return Err(missing("user_id"));
        }
        let devices = answer.get("devices").and_then(Value::as_array).ok_or_else(|| missing("devices"))?;
        let mut keys = UserKeys::default();
        for device in devices {
            let id = device.get("device_id").and_then(Value::as_str).unwrap_or_default();
            let mut of = device.get("keys").and_then(Value::as_object).cloned().unwrap_or_default();
            if let Some(name) = device.get("device_display_name").and_then(Value::as_str) {
                of.object_at("unsigned").insert("device_display_name", name);
            }
            keys.add_device(user_id.as_str(), id, &of);
        }
        for usage in [Usage::Master, Usage::SelfSigning] {
            let key = answer.get(usage.member()).and_then(Value::as_object);
            key.into_iter().for_each(|key| keys.add_cross_signing(user_id.as_str(), usage, key));
        }
        Ok(UserDevices { keys, stream_id: answer.get("stream_id").and_then(Value::as_i64) })
    }

    /// `POST /_matrix/federation/v1/user/keys/query`: the keys of `users`, as far as they are theirs.
    pub async fn query_user_keys(
        &self,
        server: &ServerName,
        users: &[String],
        timeout_ms: u32,
    ) -> Result<BTreeMap<String, UserKeys>, RequestError> {
        let asked: Object = users.iter().map(|user| (user.as_str(), Value::Array(Vec::new()))).collect();
        let content = Object::from_iter([("device_keys", asked)]);
        let target = path(V1, &["user", "keys", "query"]);
        let answer = object(&self.post(server, target, &content, Limits { timeout_ms, ..KEYS }).await?)?;
        let of = |member: &str, user: &str| answer.get(member).and_then(|of| of.get(user)).and_then(Value::as_object);
        let keys_of = |user: &String| {
            let mut keys = UserKeys::default();
            for (device, of) in of("device_keys", user).into_iter().flat_map(Object::iter) {
                keys.add_device(user, device, of.as_object().unwrap_or(&Object::new()));
            }
            for usage in [Usage::Master, Usage::SelfSigning] {
                let key = of(&format!("{}s", usage.member()), user);
                key.into_iter().for_each(|key| keys.add_cross_signing(user, usage, key));
            }
            (user.clone(), keys)
        };
        Ok(users.iter().map(keys_of).collect())
    }

    /// `POST /_matrix/federation/v1/user/keys/claim`: by user, device and key ID, the keys that were given out.
    pub async fn claim_user_keys(
        &self,
        server: &ServerName,
        wanted: &[Wanted],
        timeout_ms: u32,
    ) -> Result<Object, RequestError> {
        let mut asked = Object::new();
        for Wanted { user_id, device_id, algorithm, .. } in wanted {
            asked.object_at(user_id).insert(device_id.as_str(), algorithm.as_str());
        }
        let content = Object::from_iter([("one_time_keys", asked)]);
        let target = path(V1, &["user", "keys", "claim"]);
        let mut answer = object(&self.post(server, target, &content, Limits { timeout_ms, ..KEYS }).await?)?;
        answer.remove("one_time_keys").and_then(Value::into_object).ok_or_else(|| missing("one_time_keys"))
    }
}
