//! Dehydrated devices (MSC3814), which the specification does not have yet: clients use the unstable prefix.

use http::StatusCode;
use serde_json::json;

use super::{
    auth,
    body::{Body, check_device_id, lacks},
    keys, login, to_device,
    tokens::Token,
};
use crate::{
    error::MatrixError,
    matrix::{
        device_keys::DeviceKeys,
        json::{self, Object, Value},
    },
    platform::DatabaseError,
    router::{Call, Handled, ok, raw_json_response},
    server::Server,
    store::{dehydrated::DehydratedDevice, positions::ToDevicePos},
};

/// The longest data of a device, in bytes.
const MAX_DATA_BYTES: usize = 65_536;

/// `GET …/dehydrated_device`
pub(super) async fn get(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let device = server.store.dehydrated_device(session.user.as_str()).await?.ok_or_else(none)?;
    let data = json::parse(device.device_data.as_bytes());
    let data = data.map_err(|_| DatabaseError::Shape("a dehydrated device that is no JSON".to_owned()))?;
    let answer = Object::from_iter([("device_id", Value::from(device.device_id)), ("device_data", data)]);
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

/// `PUT …/dehydrated_device`: it takes the place of the one before.
pub(super) async fn put(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of_keys(server, call).await?;
    let device_id = body.required_text("device_id")?;
    check_device_id(device_id)?;
    let data = body.object("device_data")?.ok_or_else(|| lacks("device_data"))?;
    if data.get("algorithm").and_then(Value::as_str).is_none() {
        return Err(lacks("algorithm"));
    }
    let device_data = data.to_text();
    if device_data.len() > MAX_DATA_BYTES {
        return Err(MatrixError::too_large("The data of a dehydrated device may be at most 65536 bytes long."));
    }
    let display_name = body.text("initial_device_display_name")?;
    if display_name.is_some_and(|name| name.len() > login::MAX_DEVICE_TEXT) {
        return Err(MatrixError::invalid_param("A device's name must have at most 255 bytes."));
    }
    let user = session.user.as_str();
    let device_keys = body.object("device_keys")?.ok_or_else(|| lacks("device_keys"))?;
    let device_keys = DeviceKeys::check(device_keys.clone(), user, device_id)?;
    let one_time = keys::one_time_keys(&body, "one_time_keys", &session, Some(&device_keys))?;
    let fallback = keys::one_time_keys(&body, "fallback_keys", &session, Some(&device_keys))?;
    let now_ms = server.platform.clock.now_ms();
    let device = DehydratedDevice { device_id: device_id.to_owned(), device_data };
    loop {
        let before = server.store.dehydrated_device(user).await?;
        let takes_over = before.as_ref().is_some_and(|before| before.device_id == device_id);
        if !takes_over && !server.store.devices(user, Some(device_id)).await?.is_empty() {
            return Err(MatrixError::invalid_param("Another device already has this ID."));
        }
        if let Some(before) = before {
            login::delete_devices(server, &session.user, Some(&[before.device_id.as_str()])).await?;
        }
        // Another may have come meanwhile, which this one takes the place of as well.
        if server.store.put_dehydrated_device(user, &device, display_name, now_ms).await? {
            break;
        }
    }
    let own = &server.config.server_name;
    let told = server.store.put_device_keys(own, &session.user, device_id, &device_keys).await?;
    server.flush_to_all(told.ok_or_else(|| MatrixError::not_found("The device was deleted at the same time."))?);
    let put = server.store.put_one_time_keys((user, device_id), &one_time, &fallback, now_ms).await?;
    put.ok_or_else(MatrixError::internal)?;
    ok(&json!({ "device_id": device_id }))
}

/// `DELETE …/dehydrated_device`
pub(super) async fn delete(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let device = server.store.dehydrated_device(session.user.as_str()).await?.ok_or_else(none)?;
    login::delete_devices(server, &session.user, Some(&[device.device_id.as_str()])).await?;
    ok(&json!({ "device_id": device.device_id }))
}

/// `POST …/dehydrated_device/{deviceId}/events`: the messages that wait for it. Those before `next_batch` have been taken.
pub(super) async fn events(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::optional(server, call).await?;
    let since =
        body.text("next_batch")?.map(Token::parse).transpose()?.map_or(ToDevicePos::START, |token| token.to_device);
    let user = session.user.as_str();
    let device = server.store.dehydrated_device(user).await?.ok_or_else(none)?;
    if device.device_id != call.parameter(0) {
        return Err(MatrixError::forbidden("This is not your dehydrated device."));
    }
    let inbox = server.store.inbox(user, &device.device_id, since).await?;
    let events = to_device::told(server, &inbox);
    let next = Token { to_device: inbox.told_upto.unwrap_or(since), ..Token::default() };
    let answer = Object::from_iter([("events", Value::Array(events)), ("next_batch", Value::from(next.to_string()))]);
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

fn none() -> MatrixError {
    MatrixError::not_found("You have no dehydrated device.")
}
