//! Whose events a user does not want to see (Client-Server API, "Ignoring Users").

use std::collections::BTreeSet;

use crate::{
    matrix::json::{self, Value},
    platform::{DatabaseError, Rows, Statement},
};

/// The type of account data that names them.
pub(super) const IGNORED: &str = "m.ignored_user_list";

/// ?1 user, ?2 type, ?3: the 'events' position up to which there is nothing new; then nothing is read.
const SELECT: &str = "\
    SELECT a.content FROM streams AS s CROSS JOIN account_data AS a \
    WHERE s.name = 'events' AND s.position > ?3 AND a.user_id = ?1 AND a.room_id = '' AND a.event_type = ?2";

/// Whether `e` is hidden from the user ?5, to whom their own events are never.
macro_rules! is_ignored {
    () => {
        "(e.state_key IS NULL AND e.sender <> ?5 AND e.sender IN (SELECT i.key FROM account_data AS a \
          CROSS JOIN json_each(a.content, '$.ignored_users') AS i \
          WHERE a.user_id = ?5 AND a.room_id = '' AND a.event_type = 'm.ignored_user_list'))"
    };
}
pub(super) use is_ignored;

/// The users whom a user ignores.
#[derive(Debug, Default)]
pub struct IgnoredUsers(BTreeSet<String>);

impl IgnoredUsers {
    /// Reads what `user_id` keeps.
    pub fn of(user_id: &str, content: &str) -> Self {
        let list = json::parse(content.as_bytes()).ok().and_then(Value::into_object);
        let list = list.and_then(|mut list| list.remove("ignored_users")?.into_object()).unwrap_or_default();
        Self(list.keys().filter(|ignored| *ignored != user_id).map(str::to_owned).collect())
    }

    /// Whether this user is ignored.
    pub fn has(&self, user_id: &str) -> bool {
        self.0.contains(user_id)
    }

    /// Whether an event of this sender is hidden: the state of rooms is the same for all.
    pub fn hides(&self, sender: &str, is_state: bool) -> bool {
        !is_state && self.has(sender)
    }
}

/// Asks for whom a user ignores, where anything is new in the stream of events since `checked`.
pub(super) fn ask(user_id: &str, checked: i64) -> Statement {
    Statement::new(SELECT, [user_id.into(), IGNORED.into(), checked.into()])
}

/// The answer to [`ask`].
pub(super) fn read(user_id: &str, rows: &Rows) -> Result<IgnoredUsers, DatabaseError> {
    rows.first().map_or(Ok(IgnoredUsers::default()), |row| Ok(IgnoredUsers::of(user_id, row.text(0)?)))
}
