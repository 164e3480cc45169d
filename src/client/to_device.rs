//! Messages to devices (Client-Server API, "Send-to-Device messaging").

use serde_json::json;

use super::{
    auth,
    body::{Body, MAX_DEPTH, check_device_id, lacks},
};
use crate::{
    error::MatrixError,
    federation::outbound::to_device,
    log::LogRecord,
    matrix::{
        identifiers::{MAX_LENGTH, UserId},
        json::{self, Object, Value},
    },
    router::{Call, Handled, ok},
    server::Server,
    store::to_device::{Inbox, ToDeviceMessage, ToDeviceRequest},
};

/// How many messages may be sent at once.
const MAX_MESSAGES: usize = 10_000;
/// The longest content of one, in bytes: another server takes no longer EDU.
const MAX_CONTENT_BYTES: usize = 60_000;

/// The messages that wait for a device, as it is told of them.
pub(super) fn told(server: &Server, inbox: &Inbox) -> Vec<Value> {
    let read = |message: &String| match json::parse(message.as_bytes()) {
        Ok(message) => Some(message),
        // The others must not wait for it.
        Err(error) => {
            let record = LogRecord::error("a message to a device is lost: what is stored cannot be read");
            server.platform.log.write(record.because(&error));
            None
        }
    };
    inbox.messages.iter().filter_map(read).collect()
}

/// `PUT /sendToDevice/{eventType}/{txnId}`
pub(super) async fn send(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (event_type, txn_id) = (call.parameter(0), call.parameter(1));
    if [event_type, txn_id].iter().any(|text| text.is_empty() || text.len() > MAX_LENGTH) {
        return Err(MatrixError::invalid_param("The type and the transaction ID must have between 1 and 255 bytes."));
    }
    let body = Body::of(server, call).await?;
    let asked = body.object("messages")?.ok_or_else(|| lacks("messages"))?;
    let (mut local, mut remote) = (Vec::new(), Vec::new());
    for (user, devices) in asked.iter() {
        let id = UserId::parse(user).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
        let shape = || MatrixError::bad_json("Each user must map to an object of device IDs and messages.");
        for (device, content) in devices.as_object().ok_or_else(shape)?.iter() {
            let content = content.as_object().ok_or_else(shape)?;
            if content.to_text().len() > MAX_CONTENT_BYTES {
                return Err(MatrixError::too_large("A message is too long."));
            }
            check_device_id(device)?;
            if !content.is_within_depth(MAX_DEPTH) {
                return Err(MatrixError::bad_json("A message must not be nested deeper than 100 levels."));
            }
            if id.server_name() == server.config.server_name.as_str() {
                local.push(message(&session.user, event_type, &id, device, content));
            } else {
                remote.push((id.clone(), device.to_owned(), content.clone()));
            }
        }
    }
    if local.len() + remote.len() > MAX_MESSAGES {
        return Err(MatrixError::too_large("At most 10000 messages can be sent at once."));
    }
    let edus = to_device::edus(server, &session.user, event_type, remote);
    let (user_id, device_id) = session.reader();
    let request = ToDeviceRequest { user_id, device_id, event_type, txn_id };
    let now_ms = server.platform.clock.now_ms();
    if server.store.send_to_devices(request, &local, edus.statements, now_ms).await? {
        server.flush_to_all(edus.destinations);
    }
    ok(&json!({}))
}

/// A message as its device is told it.
fn message(sender: &UserId, event_type: &str, user: &UserId, device: &str, content: &Object) -> ToDeviceMessage {
    ToDeviceMessage {
        user_id: user.to_string(),
        device_id: device.to_owned(),
        message: ToDeviceMessage::text(sender, event_type, content.clone()),
    }
}
