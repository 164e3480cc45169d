//! Messages to devices of local users, which wait until the device has taken them.
//!
//! What may wait for a device is bounded, so that nobody can fill the database for one that never comes back: while that much
//! waits, further messages are not kept. What came first stays, as nobody should be able to push it out.

use serde_json::json;

use super::{
    Store, json_lists,
    positions::{advance_for, count},
    races::Race,
};
use crate::{
    matrix::{
        identifiers::{ServerName, UserId},
        json::Object,
    },
    platform::{DatabaseError, Rows, Statement, news::Subject},
};

/// A message to devices of a local user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToDeviceMessage {
    /// The user.
    pub user_id: String,
    /// The device; `*` for all of them.
    pub device_id: String,
    /// What the device is told, as JSON: type, sender and content.
    pub message: String,
}

/// A request of a device to send messages, as it named it.
#[derive(Debug, Clone, Copy)]
pub struct ToDeviceRequest<'a> {
    /// The user,
    pub user_id: &'a str,
    /// and device.
    pub device_id: &'a str,
    /// The type of the messages.
    pub event_type: &'a str,
    /// What the device calls the request.
    pub txn_id: &'a str,
}

/// Messages from another server, as it named them.
#[derive(Debug, Clone)]
pub struct ReceivedMessages {
    /// Its name for them.
    pub message_id: String,
    /// The messages.
    pub messages: Vec<ToDeviceMessage>,
}

/// What waits for a device, as far as one sync tells it.
#[derive(Debug, Default)]
pub struct Inbox {
    /// The messages, oldest first.
    pub messages: Vec<String>,
    /// The position of the last of them, if there are any; others may come after it.
    pub told_upto: Option<i64>,
}

/// How much may wait for a device, in characters, with [`OVERHEAD`] for each message.
const MAX_WAITING: i64 = 32_000_000;
const OVERHEAD: i64 = 1_000;
/// How many messages a sync tells, and how long they are together.
const MAX_TOLD: i64 = 100;
const MAX_TOLD_LENGTH: i64 = 2_000_000;

/// How much waits for the device `d`.
macro_rules! waiting {
    ($of:literal) => {
        concat!(
            "COALESCE((SELECT x.upto FROM to_device_messages AS x WHERE x.user_id = ",
            $of,
            ".user_id AND x.device_id = ",
            $of,
            ".device_id ORDER BY x.pos DESC LIMIT 1), 0)"
        )
    };
}

/// Puts messages into inboxes. `$from`: where messages come from, as `m`, a list of [user, device, message, …] with keys in order,
/// and a condition. ?2: how much may wait, ?3: what a message counts for besides its length.
macro_rules! deliver {
    ($condition:literal) => {
        concat!(
            "INSERT INTO to_device_messages (user_id, device_id, pos, upto, message) \
             SELECT d.user_id, d.device_id, s.position + m.key + 1, ",
            waiting!("d"),
            " + SUM(length(m.value ->> 2) + ?3) OVER (PARTITION BY d.user_id, d.device_id ORDER BY m.key), m.value ->> 2 \
             FROM json_each(?1) AS m CROSS JOIN streams AS s ON s.name = 'to_device' \
               CROSS JOIN devices AS d ON d.user_id = m.value ->> 0 AND (m.value ->> 1 = '*' OR d.device_id = m.value ->> 1) \
             WHERE ",
            waiting!("d"),
            " - COALESCE((SELECT x.upto FROM to_device_messages AS x WHERE x.user_id = d.user_id AND x.device_id = d.device_id \
                ORDER BY x.pos LIMIT 1), 0) < ?2 ",
            $condition
        )
    };
}

/// ?1: a list of [user, device, message].
const SEND: &str = deliver!("");

/// ?1: a list of [user, device, message, the sender's name for it], ?4: the server that has sent them.
const RECEIVE: &str = deliver!(
    "AND NOT EXISTS (SELECT 1 FROM received_to_device AS r WHERE r.origin = ?4 AND r.message_id = m.value ->> 3)"
);

const SENT: &str = "\
    INSERT INTO sent_to_device (user_id, device_id, event_type, txn_id, created_ts) VALUES (?1, ?2, ?3, ?4, ?5)";

/// ?1: the server, ?2: a list of its names for messages, ?3: now.
const RECEIVED: &str = "\
    INSERT INTO received_to_device (origin, message_id, received_ts) SELECT ?1, value, ?3 FROM json_each(?2) WHERE true \
    ON CONFLICT (origin, message_id) DO NOTHING";

/// ?3: the position from which the device syncs.
const ACKNOWLEDGED: &str = "DELETE FROM to_device_messages WHERE user_id = ?1 AND device_id = ?2 AND pos <= ?3";

/// ?3: since, ?4: how many, ?5: how long together; one is told however long it is.
const WAITING: &str = "\
    SELECT pos, message FROM ( \
      SELECT pos, message, upto - FIRST_VALUE(upto) OVER (ORDER BY pos) AS length FROM ( \
        SELECT m.pos, m.message, m.upto FROM streams AS s \
          CROSS JOIN to_device_messages AS m ON m.user_id = ?1 AND m.device_id = ?2 AND m.pos > ?3 \
        WHERE s.name = 'to_device' AND s.position > ?3 ORDER BY m.pos LIMIT ?4)) \
    WHERE length <= ?5 ORDER BY pos";

impl ToDeviceMessage {
    /// What a device is told.
    pub fn text(sender: &UserId, event_type: &str, content: Object) -> String {
        let mut message = Object::new();
        message.insert("type", event_type);
        message.insert("sender", sender);
        message.insert("content", content);
        message.to_text()
    }
}

impl Store {
    /// Sends messages to devices of local users, with what else belongs into the batch. A request that was made before does nothing:
    /// `false`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn send_to_devices(
        &self,
        request: ToDeviceRequest<'_>,
        messages: &[ToDeviceMessage],
        also: Vec<Statement>,
        now_ms: i64,
    ) -> Result<bool, DatabaseError> {
        let ToDeviceRequest { user_id, device_id, event_type, txn_id } = request;
        let parameters = [user_id.into(), device_id.into(), event_type.into(), txn_id.into(), now_ms.into()];
        let mut statements = vec![Statement::new(SENT, parameters)];
        for list in json_lists(messages.iter().map(|of| json!([of.user_id, of.device_id, of.message]).to_string())) {
            statements.push(Statement::new(SEND, [list.into(), MAX_WAITING.into(), OVERHEAD.into()]));
            statements.push(moved(messages));
        }
        statements.extend(also);
        match self.batch(statements).await {
            Ok(_) => Ok(true),
            Err(error) if Race::SentToDevice.has_lost(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Statements that put what `origin` has sent into inboxes, unless it has sent it before.
pub fn receive(origin: &ServerName, received: &[ReceivedMessages], now_ms: i64) -> Vec<Statement> {
    let messages: Vec<_> =
        received.iter().flat_map(|of| of.messages.iter().map(|message| (message, &of.message_id))).collect();
    let item = |(of, id): &(&ToDeviceMessage, &String)| json!([of.user_id, of.device_id, of.message, id]).to_string();
    let all: Vec<ToDeviceMessage> = messages.iter().map(|(message, _)| (*message).clone()).collect();
    let mut statements = Vec::new();
    for list in json_lists(messages.iter().map(item)) {
        let parameters = [list.into(), MAX_WAITING.into(), OVERHEAD.into(), origin.as_str().into()];
        statements.push(Statement::new(RECEIVE, parameters));
        statements.push(moved(&all));
    }
    for ids in super::text_lists(received.iter().map(|of| &of.message_id)) {
        statements.push(Statement::new(RECEIVED, [origin.as_str().into(), ids.into(), now_ms.into()]));
    }
    statements
}

/// Moves the stream on by as many messages as there are: more than were put into a list, which does no harm.
fn moved(messages: &[ToDeviceMessage]) -> Statement {
    let users = messages.iter().map(|message| Subject::User(message.user_id.clone()));
    advance_for("to_device", count(messages.len()), users)
}

/// What waits for a device after `since`; what is not after it has been taken and goes. [`read_inbox`] reads the answers.
pub(super) fn inbox(user_id: &str, device_id: &str, since: i64) -> [Statement; 2] {
    let device = || [user_id.into(), device_id.into(), since.into()];
    let [user, id, after] = device();
    [
        Statement::new(ACKNOWLEDGED, device()),
        Statement::new(WAITING, [user, id, after, MAX_TOLD.into(), MAX_TOLD_LENGTH.into()]),
    ]
}

/// Reads the second answer to [`inbox`].
pub(super) fn read_inbox(rows: &Rows) -> Result<Inbox, DatabaseError> {
    let messages = rows.iter().map(|row| row.text(1).map(str::to_owned)).collect::<Result<_, _>>()?;
    Ok(Inbox { messages, told_upto: rows.last().map(|row| row.integer(0)).transpose()? })
}
