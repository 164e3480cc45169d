//! EDUs about devices (Server-Server API, "Device Management", "End-to-End Encryption", "Send-to-device messaging").

use std::collections::{BTreeMap, BTreeSet};

use super::part::Part;
use crate::{
    matrix::{
        device_keys::{CrossSigningKey, MAX_KEYS_BYTES, Usage},
        edu::{DeviceListUpdate, DirectToDevice, SigningKeyUpdate},
        identifiers::{ServerName, UserId},
        json::{Object, Value},
    },
    platform::Statement,
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
    signing: BTreeMap<UserId, SigningUpdate>,
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
            let prev_id = prev_id.iter().copied().take(MAX_PREVIOUS).collect();
            (ListUpdate { user_id, prev_id, stream_id, devices: Vec::new(), has_gap: false }, 0)
        });
        let follows = prev_id.contains(&list.stream_id) || list.devices.is_empty();
        if prev_id.is_empty() {
            // Nobody can tell what it follows: the list is fetched, whatever came before.
            list.prev_id.clear();
        }
        // A lower number than the one before: that server counts anew.
        let is_earlier = stream_id < list.stream_id;
        list.has_gap |= is_odd || is_earlier || !follows || *taken + length > MAX_CHANGES_BYTES;
        list.stream_id = stream_id;
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
        let master_key = checked(master_key, Usage::Master);
        let self_signing_key = checked(self_signing_key, Usage::SelfSigning);
        let none =
            |user_id: &UserId| SigningUpdate { user_id: user_id.to_string(), master_key: None, self_signing_key: None };
        // Of several about one user the newest keys count.
        let update = self.signing.entry(user_id).or_insert_with_key(none);
        update.master_key = master_key.or(update.master_key.take());
        update.self_signing_key = self_signing_key.or(update.self_signing_key.take());
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

    /// Those that count: all, as each is about users of its origin.
    pub(super) fn judged(self) -> JudgedDeviceEdus {
        JudgedDeviceEdus {
            lists: self.lists.into_values().map(|(list, _)| list).collect(),
            signing: self.signing.into_values().collect(),
            messages: self.messages,
        }
    }
}

/// The EDUs about devices that count.
#[derive(Debug)]
pub(super) struct JudgedDeviceEdus {
    lists: Vec<ListUpdate>,
    signing: Vec<SigningUpdate>,
    messages: Vec<ReceivedMessages>,
}

impl JudgedDeviceEdus {
    pub(super) fn count(&self) -> usize {
        self.lists.len() + self.signing.len() + self.messages.len()
    }

    /// What those come to that are in the part.
    pub(super) fn statements(&self, of: &mut Part, own: &ServerName, origin: &ServerName, now: i64) -> Vec<Statement> {
        let mut statements = remote_updates::note(of.take(&self.lists), of.take(&self.signing));
        statements.extend(to_device::receive(own, origin, of.take(&self.messages), now));
        statements
    }
}
