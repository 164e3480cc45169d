//! EDUs about devices (Server-Server API, "Device Management", "End-to-End Encryption", "Send-to-device messaging").

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    matrix::{
        device_keys::{CrossSigningKey, Usage},
        edu::{DeviceListUpdate, DirectToDevice, SigningKeyUpdate},
        identifiers::{ServerName, UserId},
        json::{Object, Value},
    },
    platform::Statement,
    server::Server,
    store::{
        remote_updates::{self, ListUpdate, SigningUpdate},
        to_device::{self, ReceivedMessages, ToDeviceMessage},
    },
};

/// How many messages to devices are taken from one transaction; and the longest content of one, in bytes.
const MAX_MESSAGES: usize = 10_000;
const MAX_CONTENT_BYTES: usize = 65_536;

/// The EDUs of a transaction that are about devices.
#[derive(Default)]
pub(super) struct DeviceEdus {
    lists: BTreeMap<UserId, ListUpdate>,
    signing: Vec<SigningUpdate>,
    messages: Vec<ReceivedMessages>,
    names: BTreeSet<String>,
    count: usize,
    dropped: usize,
}

impl DeviceEdus {
    /// That a device has changed. Several changes of one user are one where each follows the one before it.
    pub(super) fn add_list_update(&mut self, update: DeviceListUpdate) {
        let DeviceListUpdate { user_id, device_id, stream_id, prev_id, device_display_name, deleted, keys } = update;
        let is_theirs = |keys: &Object| {
            let says = |name: &str, expected: &str| keys.get(name).and_then(Value::as_str) == Some(expected);
            says("user_id", user_id.as_str()) && says("device_id", &device_id)
        };
        let is_odd = keys.as_ref().is_some_and(|keys| !is_theirs(keys));
        let keys = keys.filter(|_| !deleted && !is_odd).map(|mut keys| {
            if let Some(name) = device_display_name {
                keys.object_at("unsigned").insert("device_display_name", name);
            }
            keys
        });
        match self.lists.get_mut(&user_id) {
            None => {
                let devices = vec![(device_id, keys)];
                let of = user_id.to_string();
                self.lists.insert(user_id, ListUpdate { user_id: of, prev_id, stream_id, devices, has_gap: is_odd });
            }
            Some(before) => {
                let follows = prev_id.is_empty() || prev_id.contains(&before.stream_id);
                before.has_gap |= is_odd || !follows;
                before.stream_id = before.stream_id.max(stream_id);
                before.devices.retain(|(device, _)| *device != device_id);
                before.devices.push((device_id, keys));
            }
        }
    }

    /// That cross-signing keys have changed.
    pub(super) fn add_signing_update(&mut self, update: SigningKeyUpdate) {
        let SigningKeyUpdate { user_id, master_key, self_signing_key } = update;
        let checked = |key: Option<Object>, usage| {
            let key = CrossSigningKey::check(key?, user_id.as_str(), usage).ok()?;
            Some(key.object().to_text())
        };
        self.signing.push(SigningUpdate {
            master_key: checked(master_key, Usage::Master),
            self_signing_key: checked(self_signing_key, Usage::SelfSigning),
            user_id: user_id.to_string(),
        });
    }

    /// Messages to devices, of which those for users of ours count.
    pub(super) fn add_messages(&mut self, own: &ServerName, edu: DirectToDevice) {
        let DirectToDevice { sender, event_type, message_id, messages } = edu;
        if !self.names.insert(message_id.clone()) {
            return;
        }
        let mut taken = Vec::new();
        for (user, device_id, content) in messages {
            if user.server_name() != own.as_str() {
                continue;
            }
            if self.count >= MAX_MESSAGES || content.to_text().len() > MAX_CONTENT_BYTES {
                self.dropped += 1;
                continue;
            }
            self.count += 1;
            let message = ToDeviceMessage::text(&sender, &event_type, content);
            taken.push(ToDeviceMessage { user_id: user.to_string(), device_id, message });
        }
        self.messages.push(ReceivedMessages { message_id, messages: taken });
    }

    /// How many messages were too many or too long to be taken.
    pub(super) fn dropped(&self) -> usize {
        self.dropped
    }

    /// What they come to.
    pub(super) fn statements(self, server: &Server, origin: &ServerName) -> Vec<Statement> {
        let lists: Vec<ListUpdate> = self.lists.into_values().collect();
        let mut statements = remote_updates::note(&lists, &self.signing);
        statements.extend(to_device::receive(origin, &self.messages, server.platform.clock.now_ms()));
        statements
    }
}
