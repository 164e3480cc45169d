//! The server's SQL statements, typed. `migrations/` defines the tables. `edge` has statements of its own only to move whole
//! databases and to apply migrations.
//!
//! The files share [`Store`], which runs statements, the types of positions in streams ([`positions`]), and the list of constraints that
//! somebody else may break first ([`races`]).
//!
//! Lists travel as one JSON parameter through `json_each`, so that a read or a write of fifty events is the same number of
//! round trips as one of a single event.
//!
//! D1's SQLite has no statistics of our tables, and may then read a whole table where it should look up a row. `CROSS JOIN`
//! fixes the order in which tables are read: it stands wherever a list or a walk leads to the rows of a table that grows.

// What the others share
pub mod answer_texts;
mod event_text;
pub mod places;
pub mod positions;
mod races;
mod slices;
pub mod state_sql;

// Rooms as they are judged and committed
pub mod altered;
pub mod commit;
mod committing;
pub mod event_graph;
pub mod events;
pub mod headers;
pub mod kept_for_strangers;
pub mod rejected;
mod resolution;
pub mod rooms;
pub mod unsettled;
pub mod vouched_rooms;

// Joins, invites, knocks
pub mod ended_joins;
pub mod held_joins;
pub mod invites;
pub mod large_joins;
pub mod new_shares;
pub mod partial_rooms;
pub mod pending_joins;
pub mod pending_knocks;
pub mod told_joins;

// Transactions from and to other servers
mod catching_up;
pub mod edu_outbox;
pub mod edus;
pub mod queue;
pub mod queue_sweep;
pub mod staging;
pub mod transactions;

// What other servers read, and what is known of them
pub mod history_visibility;
pub mod key_responses;
pub mod known_keys;
pub mod remote_reads;
pub mod well_known;

// Rooms as local users see them
pub mod aliases;
pub mod bundles;
pub mod by_time;
pub mod ignored;
pub mod members;
pub mod memberships;
pub mod relations;
pub mod search;
pub mod snapshots;
pub mod summaries;
pub mod sync;
pub mod sync_fleeting;
pub mod timeline;
pub mod unread;
pub mod user_directory;
mod whole_states;

// Typing, receipts, presence
pub mod presence;
pub mod presence_hearers;
pub mod receipts;
pub mod typing;

// Local users
pub mod account_data;
pub mod accounts;
pub mod departures;
pub mod profile_fields;
pub mod reports;

// Devices and end-to-end encryption
pub mod dehydrated;
pub mod device_lists;
pub mod devices;
pub mod key_backups;
mod key_changes;
pub mod one_time_keys;
pub mod remote_updates;
pub mod to_device;
pub mod user_keys;

// Media
pub mod media;
pub mod remote_media;

// Forgetting
pub mod forgetting;

use std::rc::Rc;

use crate::{
    admission::{Admission, Reservation},
    matrix::identifiers::EventId,
    platform::{Clock, Database, DatabaseError, Row, Rows, Statement},
};

/// The database of one server. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    database: Rc<dyn Database>,
    in_work: Option<(Rc<Admission>, Rc<dyn Clock>)>,
}

impl Store {
    /// A store over `database`, to which all migrations were applied.
    pub fn new(database: Rc<dyn Database>) -> Self {
        Self { database, in_work: None }
    }

    /// The same, of which long answers count with what else is in work.
    #[must_use]
    pub fn counting(self, admission: Rc<Admission>, clock: Rc<dyn Clock>) -> Self {
        Self { in_work: Some((admission, clock)), ..self }
    }

    /// Room for what is read into memory, and what is made of it; `None` where nobody counts that.
    ///
    /// # Errors
    /// [`DatabaseError::NoRoom`]
    fn room_for(&self, bytes: usize) -> Result<Option<Reservation>, DatabaseError> {
        let Some((admission, clock)) = &self.in_work else { return Ok(None) };
        admission.reserve_memory(bytes, clock.now_ms()).map(Some).ok_or(DatabaseError::NoRoom)
    }

    /// The time now, where what is in work is counted.
    fn now_ms(&self) -> Option<i64> {
        self.in_work.as_ref().map(|(_, clock)| clock.now_ms())
    }

    /// Runs `statements` as one atomic batch and one round trip; see [`Database::batch`].
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn batch(&self, statements: Vec<Statement>) -> Result<Vec<Rows>, DatabaseError> {
        let asked = statements.len();
        all_of(asked, self.database.batch(statements).await?)
    }

    /// Runs `batches` in order, each atomic; see [`Database::batches`].
    ///
    /// # Errors
    /// Where the database fails; some of them may then have taken effect.
    pub async fn batches(&self, batches: Vec<Vec<Statement>>) -> Result<Vec<Rows>, DatabaseError> {
        let asked = batches.iter().map(Vec::len).sum();
        all_of(asked, self.database.batches(batches).await?)
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn query(&self, statement: Statement) -> Result<Rows, DatabaseError> {
        Answers::new(self.batch(vec![statement]).await?).rows()
    }
}

/// The answers to a batch, each of which is taken in the order of its statements.
struct Answers(std::vec::IntoIter<Rows>);

impl Answers {
    fn new(answers: Vec<Rows>) -> Self {
        Self(answers.into_iter())
    }

    /// The next of them. No rows are an answer; no answer is an error, as it would say that there is nothing.
    fn rows(&mut self) -> Result<Rows, DatabaseError> {
        self.0.next().ok_or_else(lacking)
    }

    /// All that are left.
    fn rest(self) -> impl Iterator<Item = Rows> {
        self.0
    }
}

fn lacking() -> DatabaseError {
    DatabaseError::Shape("an answer is lacking".to_owned())
}

/// Each statement has its answer.
fn all_of(asked: usize, answers: Vec<Rows>) -> Result<Vec<Rows>, DatabaseError> {
    match answers.len() {
        given if given == asked => Ok(answers),
        given => Err(DatabaseError::Shape(format!("{given} answers to {asked} statements"))),
    }
}

/// What this server has written itself, read back. The error does not repeat it, as errors are logged.
fn written<'t, T, E>(text: &'t str, parse: impl FnOnce(&'t str) -> Result<T, E>) -> Result<T, DatabaseError> {
    let what = std::any::type_name::<T>();
    parse(text).map_err(|_| DatabaseError::Shape(format!("what was stored cannot be read as {what}")))
}

/// The longest JSON list to put into one parameter: D1 allows 2 MB, less a margin for multi-byte counting.
const MAX_LIST_BYTES: usize = 1_900_000;

/// A JSON list of texts, which are few. Where another server may have a say in how many there are, [`text_lists`].
pub(crate) fn json_list<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let items: Vec<&str> = items.into_iter().collect();
    // A list of strings always serialises.
    serde_json::to_string(&items).unwrap_or_default()
}

/// The event ID in a column of a row.
fn event_id(row: &Row, column: usize) -> Result<EventId, DatabaseError> {
    parse_event_id(row.text(column)?)
}

fn parse_event_id(text: &str) -> Result<EventId, DatabaseError> {
    EventId::parse_any_length(text).map_err(|_| DatabaseError::Shape(format!("{text:?} is no event ID")))
}

/// Texts as JSON lists, each below the limit of one parameter.
pub(crate) fn text_lists<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    json_lists(items.into_iter().map(|item| serde_json::Value::from(item.as_ref()).to_string()))
}

/// Joins items that are JSON text already into JSON lists, each below the limit of one parameter.
pub(crate) fn json_lists(items: impl IntoIterator<Item = String>) -> Vec<String> {
    join(&mut items.into_iter())
}

/// Not generic: it would be in the bundle again for each kind of items.
fn join(items: &mut dyn Iterator<Item = String>) -> Vec<String> {
    let mut lists = Vec::new();
    let mut list = String::from("[");
    for item in items {
        if list.len() > 1 && list.len() + item.len() + 2 > MAX_LIST_BYTES {
            list.push(']');
            lists.push(std::mem::replace(&mut list, String::from("[")));
        }
        if list.len() > 1 {
            list.push(',');
        }
        list.push_str(&item);
    }
    if list.len() > 1 {
        list.push(']');
        lists.push(list);
    }
    lists
}
