//! The devices of the user who asks (Client-Server API, "Device Management").

use serde_json::json;

use super::{
    auth,
    body::{Body, lacks},
    login::{self, MAX_DEVICE_TEXT},
    reauthentication::confirm,
};
use crate::{
    error::MatrixError,
    router::{Call, Handled, ok},
    server::Server,
    store::devices::Device,
};

/// How many devices may be deleted at once.
const MAX_DELETED: usize = 1_000;

/// `GET /devices`
pub(super) async fn list(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let devices = server.store.devices(session.user.as_str(), None).await?;
    ok(&json!({ "devices": devices.iter().map(told).collect::<Vec<_>>() }))
}

/// `GET /devices/{deviceId}`
pub(super) async fn get(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let devices = server.store.devices(session.user.as_str(), Some(call.parameter(0))).await?;
    ok(&told(devices.first().ok_or_else(no_such_device)?))
}

/// `PUT /devices/{deviceId}`
pub(super) async fn rename(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let (user, device) = (session.user.as_str(), call.parameter(0));
    let Some(name) = body.text("display_name")? else {
        let devices = server.store.devices(user, Some(device)).await?;
        return devices.first().map_or_else(|| Err(no_such_device()), |_| ok(&json!({})));
    };
    if name.len() > MAX_DEVICE_TEXT {
        return Err(MatrixError::invalid_param("\"display_name\" must have at most 255 bytes."));
    }
    if !server.store.rename_device(&server.config.server_name, &session.user, device, name).await? {
        return Err(no_such_device());
    }
    ok(&json!({}))
}

/// `DELETE /devices/{deviceId}`, which wants the password again. A device that is not there is as good as deleted.
pub(super) async fn delete(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::optional(server, call).await?;
    if let Err(ask) = confirm(server, call, &session, &body).await? {
        return Ok(ask);
    }
    login::delete_devices(server, &session.user, Some(&[call.parameter(0)])).await?;
    ok(&json!({}))
}

/// `POST /delete_devices`, which wants the password again.
pub(super) async fn delete_several(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let devices = body.texts("devices")?.ok_or_else(|| lacks("devices"))?;
    if devices.len() > MAX_DELETED {
        return Err(MatrixError::invalid_param("At most 1000 devices can be deleted at once."));
    }
    if let Err(ask) = confirm(server, call, &session, &body).await? {
        return Ok(ask);
    }
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    login::delete_devices(server, &session.user, Some(&devices)).await?;
    ok(&json!({}))
}

fn told(device: &Device) -> serde_json::Value {
    let mut told = json!({ "device_id": device.device_id });
    if let (Some(name), Some(object)) = (&device.display_name, told.as_object_mut()) {
        object.insert("display_name".to_owned(), name.as_str().into());
    }
    told
}

fn no_such_device() -> MatrixError {
    MatrixError::not_found("There is no such device.")
}
