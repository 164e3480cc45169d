//! The narrow waist: what the world must provide to a homeserver.
//!
//! `edge` implements these traits with D1, `fetch`, sockets and the platform's clock; the tests implement them with
//! SQLite and an in-memory network, so that a whole server is a value of which one process can hold ten.
//!
//! The traits are used as `Rc<dyn …>`: a boxed future costs nothing beside a round trip, and nothing above this module
//! is generic, which keeps both the wasm and the signatures small. Nothing here is `Send`: an isolate has one thread.

pub mod media;
pub mod news;
pub mod turns;

use std::{
    cell::Cell,
    future::{self, Future},
    pin::Pin,
    rc::Rc,
};

use bytes::Bytes;
use futures_util::FutureExt;

pub use self::media::BodyError;
use self::media::{ByteStream, MediaStore, Whole};
use crate::log::{Cost, LogRecord, Reason};

/// A future that borrows for `'a` and stays on its thread.
pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// All that one server needs of the world. Cheap to clone.
#[derive(Clone)]
pub struct Platform {
    /// The SQL database.
    pub database: Rc<dyn Database>,
    /// Outbound HTTPS.
    pub transport: Rc<dyn Transport>,
    /// Waiting until something has moved.
    pub news: Rc<dyn News>,
    /// Wall clock and timers.
    pub clock: Rc<dyn Clock>,
    /// Cryptographically secure randomness.
    pub random: Rc<dyn Random>,
    /// Work that goes on after the answer.
    pub background: Rc<dyn Background>,
    /// Where operators read what happened.
    pub log: Rc<dyn Log>,
    /// Where media are kept; `None` where the deployment has no place for them.
    pub media: Option<Rc<dyn MediaStore>>,
}

impl Platform {
    /// Runs `work` to its end even where whoever waits for it goes away. A client that hangs up ends its request, but what
    /// other servers have taken part in must not stay half done.
    pub async fn to_the_end<T: Clone + 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        let work = work.boxed_local().shared();
        let also = work.clone();
        self.background.spawn(Box::pin(async move {
            also.await;
        }));
        work.await
    }
}

/// An SQL database (SQLite dialect).
pub trait Database {
    /// Runs `statements` in order as one atomic transaction and one round trip: all of them take effect, or none does.
    /// Answers with the rows of each statement, in order. The columns of a statement must have distinct names that are
    /// no numbers: D1 gives rows as JavaScript objects.
    fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>>;

    /// Runs `batches` in order, each as one atomic transaction. Where one fails, those before it may have taken effect, and none
    /// after it does. Answers as [`Database::batch`] would to all their statements. For long work that counts for nothing before
    /// all of it is done: it is one call, and where a transaction keeps all others waiting they have their turn between two.
    fn batches(&self, batches: Vec<Vec<Statement>>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        self.batch(batches.into_iter().flatten().collect())
    }

    /// What has been asked of it so far, where somebody counts that.
    fn cost(&self) -> Cost {
        Cost::default()
    }
}

/// A database whose calls are counted: the platform allows so many for an event, and to use them up in one place would let all
/// others fail.
pub struct Meter {
    database: Rc<dyn Database>,
    calls: Cell<u64>,
    wall: Option<u64>,
}

impl Meter {
    /// Counts the calls to `database`.
    pub fn new(database: Rc<dyn Database>) -> Self {
        Self { database, calls: Cell::new(0), wall: None }
    }

    /// Counts the calls to `database`, and makes no more than `wall` of them: further ones fail as if it were away. Work that
    /// looks at its [`Budget`] ends before that.
    pub fn with_wall(database: Rc<dyn Database>, wall: u64) -> Self {
        Self { database, calls: Cell::new(0), wall: Some(wall) }
    }

    /// So many calls from now on, by whomever.
    pub fn budget(self: &Rc<Self>, calls: u64) -> Budget {
        Budget { meter: self.clone(), until: self.calls.get().saturating_add(calls) }
    }

    fn count(&self) -> Result<(), DatabaseError> {
        if self.wall.is_some_and(|wall| self.calls.get() >= wall) {
            return Err(DatabaseError::Unavailable("the calls of this event are used up".to_owned()));
        }
        self.calls.set(self.calls.get() + 1);
        Ok(())
    }
}

impl Database for Meter {
    fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        if statements.is_empty() {
            return Box::pin(future::ready(Ok(Vec::new())));
        }
        match self.count() {
            Ok(()) => self.database.batch(statements),
            Err(error) => Box::pin(future::ready(Err(error))),
        }
    }

    fn batches(&self, batches: Vec<Vec<Statement>>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        if batches.iter().all(Vec::is_empty) {
            return Box::pin(future::ready(Ok(Vec::new())));
        }
        match self.count() {
            Ok(()) => self.database.batches(batches),
            Err(error) => Box::pin(future::ready(Err(error))),
        }
    }

    fn cost(&self) -> Cost {
        Cost { calls: self.calls.get(), ..self.database.cost() }
    }
}

/// How many calls to the database some work may make. Whoever has something to do asks before each part of it.
#[derive(Clone)]
pub struct Budget {
    meter: Rc<Meter>,
    until: u64,
}

impl Budget {
    /// Whether nothing more should be begun.
    pub fn is_spent(&self) -> bool {
        self.meter.calls.get() >= self.until
    }
}

/// One SQL statement with its parameters, bound to `?1`, `?2`, … (at most 100).
#[derive(Debug, Clone)]
pub struct Statement {
    /// The SQL text; constants, so that nothing a remote server sent can become SQL.
    pub sql: &'static str,
    /// Values for `?1`, `?2`, ….
    pub parameters: Vec<SqlValue>,
    /// Who may be waiting for what it does.
    pub concerns: Vec<Subject>,
    /// Whether it has done nothing where it returns no row.
    pub needs_row: bool,
}

impl Statement {
    /// A statement with its parameters.
    pub fn new(sql: &'static str, parameters: impl Into<Vec<SqlValue>>) -> Self {
        Self { sql, parameters: parameters.into(), concerns: Vec::new(), needs_row: false }
    }

    /// The statement, of which those are told who wait for news of these.
    #[must_use]
    pub fn concerning(mut self, subjects: impl IntoIterator<Item = Subject>) -> Self {
        self.concerns.extend(subjects);
        self
    }

    /// As [`Statement::concerning`], of a statement that returns a row where it has changed something.
    #[must_use]
    pub fn concerning_if_any(mut self, subjects: impl IntoIterator<Item = Subject>) -> Self {
        self.needs_row = true;
        self.concerning(subjects)
    }
}

/// A value that goes into or comes out of SQL. Blobs are not used: D1 returns them as arrays of numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum SqlValue {
    /// `NULL`.
    Null,
    /// An integer within ±(2^53-1): beyond that D1 rounds.
    Integer(i64),
    /// Text; at most 2 MB.
    Text(String),
}

impl From<i64> for SqlValue {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<bool> for SqlValue {
    fn from(value: bool) -> Self {
        Self::Integer(value.into())
    }
}

impl From<&str> for SqlValue {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for SqlValue {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl<T: Into<Self>> From<Option<T>> for SqlValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The rows that one statement returned.
pub type Rows = Vec<Row>;

/// One row: its values, in the order of the statement's columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Row(pub Vec<SqlValue>);

impl Row {
    /// The text in column `index`.
    ///
    /// # Errors
    /// [`DatabaseError::Shape`] where the column is missing or not text.
    pub fn text(&self, index: usize) -> Result<&str, DatabaseError> {
        match self.0.get(index) {
            Some(SqlValue::Text(text)) => Ok(text),
            other => Err(DatabaseError::Shape(format!("column {index} is {}, not text", kind(other)))),
        }
    }

    /// The text in column `index`, `None` for `NULL`.
    ///
    /// # Errors
    /// [`DatabaseError::Shape`] where the column is missing or neither text nor `NULL`.
    pub fn optional_text(&self, index: usize) -> Result<Option<&str>, DatabaseError> {
        match self.0.get(index) {
            Some(SqlValue::Null) => Ok(None),
            _ => self.text(index).map(Some),
        }
    }

    /// The integer in column `index`.
    ///
    /// # Errors
    /// [`DatabaseError::Shape`] where the column is missing or not an integer.
    pub fn integer(&self, index: usize) -> Result<i64, DatabaseError> {
        match self.0.get(index) {
            Some(SqlValue::Integer(integer)) => Ok(*integer),
            other => Err(DatabaseError::Shape(format!("column {index} is {}, not an integer", kind(other)))),
        }
    }

    /// The integer in column `index`, `None` for `NULL`.
    ///
    /// # Errors
    /// [`DatabaseError::Shape`] where the column is missing or neither an integer nor `NULL`.
    pub fn optional_integer(&self, index: usize) -> Result<Option<i64>, DatabaseError> {
        match self.0.get(index) {
            Some(SqlValue::Null) => Ok(None),
            _ => self.integer(index).map(Some),
        }
    }
}

/// What a value is, without showing it: errors are logged.
fn kind(value: Option<&SqlValue>) -> &'static str {
    match value {
        None => "missing",
        Some(SqlValue::Null) => "NULL",
        Some(SqlValue::Integer(_)) => "an integer",
        Some(SqlValue::Text(_)) => "text",
    }
}

/// Why a batch failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// A constraint did not hold, so nothing of the batch took effect: how a commit learns that it lost a race, unless we are
    /// at fault. The text holds the sentence by which SQLite names the constraint.
    #[error("database constraint: {0}")]
    Constraint(String),
    /// The database will never take such a batch: it is too large, or makes no sense to it. Nothing of it took effect, and
    /// nothing is gained by trying again.
    #[error("refused by the database: {0}")]
    Refused(String),
    /// The database could not be reached or failed. The batch may or may not have taken effect.
    #[error("database unavailable: {0}")]
    Unavailable(String),
    /// Too much is in work for what would be read; nothing was asked.
    #[error("there is no room for the answer now")]
    NoRoom,
    /// The database answered with something else than the schema promises.
    #[error("database answer of an unexpected shape: {0}")]
    Shape(String),
}

impl Reason for DatabaseError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

/// Outbound HTTPS. Certificates are always verified; redirects are never followed.
pub trait Transport {
    /// Sends one request and reads the whole answer, within the request's limits.
    fn send(&self, request: OutboundRequest) -> LocalBoxFuture<'_, Result<http::Response<Bytes>, TransportError>>;

    /// Sends one request, and answers as soon as the answer's head is there; its body comes piece by piece. The request's time
    /// is for the head alone, and its limit for a platform that cannot do so and reads the whole at once. To drop the stream
    /// ends the exchange.
    fn open(&self, request: OutboundRequest) -> LocalBoxFuture<'_, Result<StreamedResponse, TransportError>> {
        Box::pin(async {
            let whole = |bytes| -> Box<dyn ByteStream> { Box::new(Whole::new(bytes)) };
            Ok(self.send(request).await?.map(whole))
        })
    }
}

/// An answer whose body comes piece by piece.
pub type StreamedResponse = http::Response<Box<dyn ByteStream>>;

/// One HTTPS request, and exactly where and as whom to reach its server.
#[derive(Debug, Clone)]
pub struct OutboundRequest {
    /// The host to connect to: a DNS name or an IP literal (IPv6 without brackets).
    pub connect_host: String,
    /// The TCP port to connect to.
    pub connect_port: u16,
    /// The name that the server's certificate must be valid for (IPv6 without brackets).
    pub tls_name: String,
    /// The value of the `Host` header.
    pub host_header: String,
    /// Method, path and query (sent exactly as they stand in the URI), further headers, body.
    pub request: http::Request<Bytes>,
    /// How long connecting, sending and reading may take together, in milliseconds.
    pub timeout_ms: u32,
    /// The longest body to read, in bytes; a longer one is [`TransportError::TooLarge`].
    pub max_response_bytes: usize,
}

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Not resolved, not reached, not trusted, or cut off.
    #[error("{0}")]
    Failed(String),
    /// No whole answer within the time limit.
    #[error("no answer in time")]
    TimedOut,
    /// The answer is longer than the limit.
    #[error("the answer is too large")]
    TooLarge,
    /// The platform cannot make such a connection; the sentence says why.
    #[error("this platform cannot connect: {0}")]
    Unsupported(String),
}

impl Reason for TransportError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

/// Whom news concern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Whoever is in the room with this ID.
    Room(String),
    /// The local user with this ID: what is theirs alone, and their memberships.
    User(String),
    /// Whoever is told of others' presence.
    Presence,
    /// Whoever shares a room with other servers' users, of whose keys some have changed.
    Keys,
}

/// How news reach whoever waits for them.
pub trait News {
    /// Tells those who listen that something has moved which concerns these.
    fn announce(&self, subjects: &[Subject]);
    /// A listener, who hears of everything from now on.
    fn listen(&self) -> Box<dyn Listener>;
}

/// Somebody who waits for news.
pub trait Listener {
    /// Whether it is any use to say what it should listen to: it costs a read to find that out.
    fn is_choosy(&self) -> bool;
    /// From now on it hears only of what concerns one of these. What it has heard before counts.
    fn listen_to(&mut self, subjects: Vec<Subject>);
    /// Waits until there may be news that were not there when this was called before (or, the first time, when the listener was
    /// made), at most this many milliseconds.
    fn next(&mut self, longest_ms: u32) -> LocalBoxFuture<'_, ()>;
}

/// The body of a request that arrived, which nobody has read.
pub trait UnreadBody {
    /// Reads it to its end: at most `limit` bytes; of a longer one none are kept.
    fn read(self: Box<Self>, limit: usize) -> LocalBoxFuture<'static, Result<Bytes, BodyError>>;

    /// Reads it piece by piece.
    fn stream(self: Box<Self>) -> Box<dyn ByteStream>;
}

/// A day in milliseconds.
pub const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// Wall clock and timers.
pub trait Clock {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;
    /// A future that is ready after `ms` milliseconds.
    fn sleep(&self, ms: u32) -> LocalBoxFuture<'static, ()>;
    /// A future that is ready after others have had their turn. Long work waits for it now and then.
    fn pause(&self) -> LocalBoxFuture<'static, ()> {
        self.sleep(0)
    }
}

/// Cryptographically secure randomness.
pub trait Random {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// Work that goes on after the answer was given.
pub trait Background {
    /// Runs `work` beside the request, for as long as the platform allows (30 s after the answer at the edge).
    /// Whatever it does must also be done by the scheduled trigger if it is cut off.
    fn spawn(&self, work: LocalBoxFuture<'static, ()>);
}

/// Where operators read what happened.
pub trait Log {
    /// Writes one line.
    fn write(&self, record: LogRecord);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_value_of_the_wrong_kind_is_not_quoted() {
        let row = Row(vec![SqlValue::Text("s3cret".to_owned()), SqlValue::Integer(4_711)]);
        let told = [row.integer(0).unwrap_err(), row.text(1).unwrap_err(), row.text(2).unwrap_err()];
        assert_eq!(
            told.map(|error| error.to_string()),
            [
                "database answer of an unexpected shape: column 0 is text, not an integer",
                "database answer of an unexpected shape: column 1 is an integer, not text",
                "database answer of an unexpected shape: column 2 is missing, not text",
            ]
        );
    }
}
