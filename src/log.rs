//! What an operator reads: one JSON object a line.
//!
//! A [`LogRecord`] is made of identifiers, numbers, sentences that stand in the source, and of what errors say as [`Reason`].
//! It takes no other text, so that no content of an event, no key, no token and no query of a URL can come into the log.

use std::fmt;

use http::{Method, StatusCode};
use serde::{Serialize, Serializer};

use crate::matrix::{
    auth_rules::AuthError,
    edu::{EduError, EduType},
    event::PduError,
    identifiers::{EventId, RoomId, ServerName, UserId},
    json,
    server_keys::KeyError,
};

/// The most characters of a reason, and of what another server says. Others have a hand in both.
const MAX_TEXT: usize = 300;

/// Why something went wrong, for an operator. Whoever implements this vouches that the text holds nothing that a user wrote, no
/// key, no token, and no query of a URL.
pub trait Reason {
    /// The reason, as a sentence or a part of one.
    fn reason(&self) -> String;

    /// What another server says of it, in its own words.
    fn said(&self) -> Option<&str> {
        None
    }
}

/// A reason that is kept until it is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    reason: String,
    said: Option<String>,
}

impl Why {
    /// The reason that an error gives.
    pub fn of(error: &impl Reason) -> Self {
        Self { reason: cut(&error.reason()), said: error.said().map(cut) }
    }

    /// A reason that stands in the source.
    pub fn stated(sentence: &'static str) -> Self {
        Self { reason: sentence.to_owned(), said: None }
    }
}

impl Reason for Why {
    fn reason(&self) -> String {
        self.reason.clone()
    }

    fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Reason for PduError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

impl Reason for AuthError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

impl Reason for KeyError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

impl Reason for EduError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

impl Reason for json::Error {
    fn reason(&self) -> String {
        self.to_string()
    }
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What happens all the time.
    Info,
    /// Something that an operator may have to do with: mostly another server's failure.
    Warning,
    /// A failure of this server.
    Error,
}

/// Another server's own words, where it gives nothing else.
#[derive(Debug, Clone)]
pub struct Said(pub String);

impl Reason for Said {
    fn reason(&self) -> String {
        String::new()
    }

    fn said(&self) -> Option<&str> {
        Some(&self.0)
    }
}

/// What work has cost at the database, as the platform charges for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Calls.
    pub calls: u64,
    /// Rows read, where they are counted.
    pub rows_read: u64,
    /// Rows written, where they are counted.
    pub rows_written: u64,
}

impl Cost {
    /// What came on top of an earlier cost.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(before.calls),
            rows_read: self.rows_read.saturating_sub(before.rows_read),
            rows_written: self.rows_written.saturating_sub(before.rows_written),
        }
    }
}

/// One line of the log. `Display` writes it as JSON.
#[derive(Debug, Clone, Serialize)]
pub struct LogRecord {
    level: Level,
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    method: Option<Method>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<RoomId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    edu: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<ServerName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<ServerName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errcode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statement: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_in_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows_read: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows_written: Option<u64>,
}

impl LogRecord {
    /// What happens all the time.
    pub const fn info(what: &'static str) -> Self {
        Self::new(Level::Info, what)
    }

    /// Something that an operator may have to do with.
    pub const fn warning(what: &'static str) -> Self {
        Self::new(Level::Warning, what)
    }

    /// A failure of this server.
    pub const fn error(what: &'static str) -> Self {
        Self::new(Level::Error, what)
    }

    const fn new(level: Level, what: &'static str) -> Self {
        Self {
            level,
            what,
            method: None,
            endpoint: None,
            room: None,
            event: None,
            edu: None,
            user: None,
            origin: None,
            destination: None,
            transaction: None,
            count: None,
            status: None,
            errcode: None,
            reason: None,
            said: None,
            statement: None,
            retry_in_ms: None,
            duration_ms: None,
            calls: None,
            rows_read: None,
            rows_written: None,
        }
    }

    /// How much it matters.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The endpoint that was asked: its method and path template, never the path.
    #[must_use]
    pub fn endpoint(mut self, method: &Method, template: &'static str) -> Self {
        (self.method, self.endpoint) = (Some(method.clone()), Some(template));
        self
    }

    /// The room that it is about.
    #[must_use]
    pub fn room(mut self, room_id: &RoomId) -> Self {
        self.room = Some(room_id.clone());
        self
    }

    /// The event that it is about.
    #[must_use]
    pub fn event(mut self, event_id: &EventId) -> Self {
        self.event = Some(event_id.clone());
        self
    }

    /// The type of the EDU that it is about.
    #[must_use]
    pub fn edu(mut self, edu_type: EduType) -> Self {
        self.edu = Some(edu_type.as_str());
        self
    }

    /// The user whom it is about.
    #[must_use]
    pub fn user(mut self, user_id: &UserId) -> Self {
        self.user = Some(user_id.clone());
        self
    }

    /// The server that it comes from.
    #[must_use]
    pub fn origin(mut self, server: &ServerName) -> Self {
        self.origin = Some(server.clone());
        self
    }

    /// The server that was asked, or sent something.
    #[must_use]
    pub fn destination(mut self, server: &ServerName) -> Self {
        self.destination = Some(server.clone());
        self
    }

    /// The ID of a transaction between servers.
    #[must_use]
    pub fn transaction(mut self, txn_id: &str) -> Self {
        self.transaction = Some(cut(txn_id));
        self
    }

    /// How many there were of what the sentence names.
    #[must_use]
    pub fn count(mut self, count: usize) -> Self {
        self.count = Some(count);
        self
    }

    /// The status that was answered, and a failure of ours by it.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status.as_u16());
        if status.is_server_error() {
            self.level = Level::Error;
        }
        self
    }

    /// The error code that was answered.
    #[must_use]
    pub fn errcode(mut self, errcode: &'static str) -> Self {
        self.errcode = Some(errcode);
        self
    }

    /// The reason, and what another server said, as the error tells them.
    #[must_use]
    pub fn because(mut self, error: &impl Reason) -> Self {
        self.reason = Some(cut(&error.reason())).filter(|reason| !reason.is_empty());
        self.said = error.said().filter(|said| !said.is_empty()).map(cut);
        self
    }

    /// The text of the SQL statement, without its parameters.
    #[must_use]
    pub fn statement(mut self, sql: &'static str) -> Self {
        self.statement = Some(sql);
        self
    }

    /// In how many milliseconds it is tried again.
    #[must_use]
    pub fn retry_in(mut self, ms: i64) -> Self {
        self.retry_in_ms = Some(ms);
        self
    }

    /// How long it took, in milliseconds.
    #[must_use]
    pub fn duration(mut self, ms: i64) -> Self {
        self.duration_ms = Some(ms);
        self
    }

    /// What it cost.
    #[must_use]
    pub fn cost(mut self, cost: Cost) -> Self {
        self.calls = Some(cost.calls);
        self.rows_read = Some(cost.rows_read);
        self.rows_written = Some(cost.rows_written);
        self
    }
}

impl fmt::Display for LogRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

fn as_text<S: Serializer>(method: &Option<Method>, serializer: S) -> Result<S::Ok, S::Error> {
    method.as_ref().map(Method::as_str).serialize(serializer)
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}
