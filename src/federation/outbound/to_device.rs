//! Messages to devices of other servers' users (Server-Server API, "Send-to-device messaging").

use std::collections::BTreeMap;

use crate::{
    matrix::{
        edu::{DirectToDevice, EduType},
        identifiers::{ServerName, UserId},
        json::Object,
    },
    platform::Statement,
    server::Server,
    store::edu_outbox::{self, DurableEdu},
};

/// How long the messages of one EDU are together, in bytes; one may be longer. Each counts for its users' and devices' names and so
/// much besides its content.
const MAX_EDU_BYTES: usize = 50_000;
const OVERHEAD: usize = 16;

/// A message: for a device of a user.
pub type Message = (UserId, String, Object);

/// What is to be sent.
pub struct ToDeviceEdus {
    /// What puts it into the queue, for the batch of the request that sends it.
    pub statements: Vec<Statement>,
    /// Whom it is for.
    pub destinations: Vec<ServerName>,
}

/// Messages of `sender` to devices, each for a user, as EDUs: their servers tell them apart by names of ours, and so take each
/// once.
pub fn edus(server: &Server, sender: &UserId, event_type: &str, messages: Vec<Message>) -> ToDeviceEdus {
    let mut by_server: BTreeMap<ServerName, Vec<Vec<Message>>> = BTreeMap::new();
    let mut lengths: BTreeMap<ServerName, usize> = BTreeMap::new();
    for message in messages {
        let Ok(destination) = ServerName::parse(message.0.server_name()) else { continue };
        let (user, device, content) = &message;
        let length = content.to_text().len() + user.as_str().len() + device.len() + OVERHEAD;
        let sum = lengths.entry(destination.clone()).or_default();
        let edus = by_server.entry(destination).or_default();
        *sum += length;
        match edus.last_mut() {
            Some(last) if *sum <= MAX_EDU_BYTES => last.push(message),
            _ => {
                *sum = length;
                edus.push(vec![message]);
            }
        }
    }
    let destinations: Vec<ServerName> = by_server.keys().cloned().collect();
    let edu = |destination: &ServerName, messages| DurableEdu {
        destination: destination.clone(),
        edu_type: EduType::DirectToDevice,
        about: None,
        content: DirectToDevice {
            sender: sender.clone(),
            event_type: event_type.to_owned(),
            message_id: server.random_id(),
            messages,
        }
        .content(),
    };
    let edus: Vec<DurableEdu> = by_server
        .into_iter()
        .flat_map(|(destination, edus)| edus.into_iter().map(|one| edu(&destination, one)).collect::<Vec<_>>())
        .collect();
    ToDeviceEdus { statements: edu_outbox::append(&edus), destinations }
}
