//! EDUs about devices (Server-Server API, "Device Management", "End-to-End Encryption", "Send-to-device messaging").

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    matrix::{
        device_keys::{CrossSigningKey, MAX_KEYS_BYTES, Usage},
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
/// How long the changes of one user's devices may be that are taken from one transaction, in bytes, and how many may come before
/// one. Of longer ones it is only noted that there were some, so that the list is asked for.
const MAX_CHANGES_BYTES: usize = 500_000;
const MAX_PREVIOUS: usize = 100;

/// The EDUs of a transaction that are about devices.
#[derive(Default)]
pub(super) struct DeviceEdus {
    /// By user; with the length of what was taken.
    lists: BTreeMap<UserId, (ListUpdate, usize)>,
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
        let mut is_odd = keys.as_ref().is_some_and(|keys| !is_theirs(keys)) || prev_id.len() > MAX_PREVIOUS;
        let keys = keys.filter(|_| !deleted && !is_odd).map(|mut keys| {
            if let Some(name) = device_display_name {
                keys.object_at("unsigned").insert("device_display_name", name);
            }
            keys
        });
        let length = keys.as_ref().map_or(0, |keys| keys.to_text().len());
        is_odd |= length > MAX_KEYS_BYTES;
        let (list, taken) = self.lists.entry(user_id).or_insert_with_key(|user_id| {
            let user_id = user_id.to_string();
            let prev_id = if is_odd { Vec::new() } else { prev_id.clone() };
            (ListUpdate { user_id, prev_id, stream_id, devices: Vec::new(), has_gap: false }, 0)
        });
        let follows = prev_id.is_empty() || prev_id.contains(&list.stream_id) || list.devices.is_empty();
        list.has_gap |= is_odd || !follows || *taken + length > MAX_CHANGES_BYTES;
        list.stream_id = list.stream_id.max(stream_id);
        list.devices.retain(|(device, _)| *device != device_id);
        if list.has_gap {
            // What has changed is seen in the whole list.
            list.devices.clear();
        } else {
            *taken += length;
            list.devices.push((device_id, keys));
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
        let lists: Vec<ListUpdate> = self.lists.into_values().map(|(list, _)| list).collect();
        let mut statements = remote_updates::note(&lists, &self.signing);
        let own = &server.config.server_name;
        statements.extend(to_device::receive(own, origin, &self.messages, server.platform.clock.now_ms()));
        statements
    }
}
