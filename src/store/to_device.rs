//! Messages to devices of local users, which wait until the device has taken them.
//!
//! What may wait for a device is bounded, so that nobody can fill the database for one that never comes back: while that much
//! waits, further messages are not kept. What came first stays, as nobody should be able to push it out; and nobody can fill it
//! all, so that others find room.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    Store, json_lists,
    positions::{ToDevicePos, advance, advance_for, count},
    races::Race,
};
use crate::{
    matrix::{
        identifiers::{ServerName, UserId},
        json::Object,
    },
    platform::{DatabaseError, Rows, SqlValue, Statement, news::Subject},
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
    pub told_upto: Option<ToDevicePos>,
}

/// How much may wait for a device, in characters, with [`OVERHEAD`] for each message. What one origin has there may be no more than
/// what is left free: one alone fills half of it, two a third each, and whoever comes next finds room.
const MAX_WAITING: i64 = 32_000_000;
/// The same where the origin is a server that shares no room with us.
const MAX_WAITING_FOR_STRANGERS: i64 = 4_000_000;
const OVERHEAD: i64 = 1_000;
/// How many messages a sync tells, and how long they are together.
const MAX_TOLD: i64 = 100;
const MAX_TOLD_LENGTH: i64 = 2_000_000;

/// A running total, `$column`, in what waits for the device `d` and meets `$condition`, as of the first row by `$order`.
macro_rules! upto {
    ($column:literal, $index:literal, $condition:literal, $order:literal) => {
        concat!(
            "COALESCE((SELECT x.",
            $column,
            " FROM to_device_messages AS x",
            $index,
            " WHERE x.user_id = d.user_id AND x.device_id = d.device_id",
            $condition,
            " ORDER BY x.pos",
            $order,
            " LIMIT 1), 0)"
        )
    };
}

/// The same of what waits from ?3.
macro_rules! upto_of_origin {
    ($order:literal) => {
        upto!("origin_upto", " INDEXED BY to_device_messages_by_origin", " AND x.origin = ?3", $order)
    };
}

/// Puts messages into inboxes: those of ?1, a list of [user, device, message, …], that meet `$condition`. `$nth`: the how manieth of
/// all each is, from 0; `$most`: how much may wait. ?2: what a message counts for besides its length, ?3: the origin. Once one finds
/// no room, those after it find none either, so that the totals have no gaps.
macro_rules! deliver {
    ($nth:literal, $most:literal, $condition:literal) => {
        concat!(
            "INSERT INTO to_device_messages (user_id, device_id, pos, upto, origin, origin_upto, message) \
             SELECT n.user_id, n.device_id, n.pos, n.newest + n.length, ?3, n.newest_of_origin + n.length, n.message FROM ( \
               SELECT d.user_id, d.device_id, s.position + ",
            $nth,
            " + 1 AS pos, m.value ->> 2 AS message, \
                 SUM(length(m.value ->> 2) + ?2) OVER (PARTITION BY d.user_id, d.device_id ORDER BY m.key) AS length, ",
            upto!("upto", "", "", " DESC"),
            " AS newest, ",
            upto!("upto", "", "", ""),
            " AS oldest, ",
            upto_of_origin!(" DESC"),
            " AS newest_of_origin, ",
            upto_of_origin!(""),
            " AS oldest_of_origin \
               FROM json_each(?1) AS m CROSS JOIN streams AS s ON s.name = 'to_device' \
                 CROSS JOIN devices AS d ON d.user_id = m.value ->> 0 AND (m.value ->> 1 = '*' OR d.device_id = m.value ->> 1) ",
            $condition,
            ") AS n WHERE n.newest - n.oldest + n.newest_of_origin - n.oldest_of_origin + 2 * n.length <= ",
            $most
        )
    };
}

/// ?1: a list of [user, device, message], ?3: the user who sends, ?4: how much may wait.
const SEND: &str = deliver!("m.key", "?4", "");

/// ?1: a list of [user, device, message, the sender's name for it, the how manieth it is], ?3: the server that has sent them, ?4:
/// how much may wait, ?5: this server's name, ?6: how much may wait for strangers.
const RECEIVE: &str = deliver!(
    "(m.value ->> 4)",
    "CASE WHEN EXISTS (SELECT 1 FROM room_servers AS theirs CROSS JOIN room_servers AS own ON own.room_id = theirs.room_id \
       AND own.server = ?5 AND own.to_pos IS NULL WHERE theirs.server = ?3 AND theirs.to_pos IS NULL) THEN ?4 ELSE ?6 END",
    "WHERE NOT EXISTS (SELECT 1 FROM received_to_device AS r WHERE r.origin = ?3 AND r.message_id = m.value ->> 3)"
);

const SENT: &str = "\
    INSERT INTO sent_to_device (user_id, device_id, event_type, txn_id, created_ts) VALUES (?1, ?2, ?3, ?4, ?5)";

/// After all of [`RECEIVE`], and before the stream moves on: the names of those that have come into an inbox. ?1: a list as for it,
/// without the messages; ?2: the server, ?3: now.
const RECEIVED: &str = "\
    INSERT INTO received_to_device (origin, message_id, received_ts) SELECT ?2, m.value ->> 3, ?3 \
    FROM json_each(?1) AS m CROSS JOIN streams AS s ON s.name = 'to_device' \
      CROSS JOIN devices AS d ON d.user_id = m.value ->> 0 AND (m.value ->> 1 = '*' OR d.device_id = m.value ->> 1) \
      CROSS JOIN to_device_messages AS t ON t.user_id = d.user_id AND t.device_id = d.device_id \
        AND t.pos = s.position + (m.value ->> 4) + 1 \
    WHERE true ON CONFLICT (origin, message_id) DO NOTHING RETURNING message_id";

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
            statements.push(Statement::new(SEND, [list.into(), OVERHEAD.into(), user_id.into(), MAX_WAITING.into()]));
            statements.push(advance_for("to_device", count(messages.len()), users(messages.iter())));
        }
        statements.extend(also);
        match self.batch(statements).await {
            Ok(_) => Ok(true),
            Err(error) if Race::SentToDevice.has_lost(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Statements that put what `origin` has sent into inboxes, unless it has sent it before. `own` is this server's name.
pub fn receive(own: &ServerName, origin: &ServerName, received: &[ReceivedMessages], now_ms: i64) -> Vec<Statement> {
    let named = received.iter().flat_map(|of| of.messages.iter().map(|message| (message, &of.message_id)));
    let messages: Vec<(usize, (&ToDeviceMessage, &String))> = named.enumerate().collect();
    if messages.is_empty() {
        return Vec::new();
    }
    let whole =
        messages.iter().map(|(nth, (of, id))| json!([of.user_id, of.device_id, of.message, id, nth]).to_string());
    let mut statements = Vec::new();
    for list in json_lists(whole) {
        let (most, for_strangers) = (MAX_WAITING.into(), MAX_WAITING_FOR_STRANGERS.into());
        let (origin, own) = (origin.as_str().into(), own.as_str().into());
        let parameters: [SqlValue; 6] = [list.into(), OVERHEAD.into(), origin, most, own, for_strangers];
        statements.push(Statement::new(RECEIVE, parameters));
    }
    let named = messages.iter().map(|(nth, (of, id))| json!([of.user_id, of.device_id, null, id, nth]).to_string());
    for list in json_lists(named) {
        let received = Statement::new(RECEIVED, [list.into(), origin.as_str().into(), now_ms.into()]);
        // Nobody need look who has been told nothing.
        statements.push(received.concerning_if_any(users(messages.iter().map(|(_, (message, _))| *message))));
    }
    // By more than were put into inboxes, which does no harm.
    statements.push(advance("to_device", count(messages.len())));
    statements
}

/// Whom messages are for.
fn users<'m>(messages: impl Iterator<Item = &'m ToDeviceMessage>) -> impl Iterator<Item = Subject> {
    let users: BTreeSet<&str> = messages.map(|message| message.user_id.as_str()).collect();
    users.into_iter().map(|user| Subject::User(user.to_owned())).collect::<Vec<_>>().into_iter()
}

/// What waits for a device after `since`; what is not after it has been taken and goes. [`read_inbox`] reads the answers.
pub(super) fn inbox(user_id: &str, device_id: &str, since: ToDevicePos) -> [Statement; 2] {
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
    Ok(Inbox { messages, told_upto: rows.last().map(|row| ToDevicePos::read(row, 0)).transpose()? })
}
