//! The cache of `/.well-known/matrix/server` answers (Server-Server API, "Resolving server names", step 3).
//!
//! What an answer means and how long it holds is decided in `federation::peers::well_known`.

use serde_json::json;

use super::{Store, json_lists, places::place};
use crate::platform::{DatabaseError, Row, SqlValue, Statement};

/// How many hosts are remembered.
const HOSTS: i64 = 16_384;

/// What is known of one host's `.well-known`. Times in milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WellKnownRow {
    /// The delegated server name; `None` where the host delegates to nobody, or could not be asked.
    pub delegated: Option<String>,
    /// Until when it is used without asking again.
    pub fresh_until_ts: i64,
    /// Until when it is used where asking again fails for a passing reason.
    pub usable_until_ts: i64,
    /// How many times in a row asking failed.
    pub failures: i64,
}

impl WellKnownRow {
    fn read(row: &Row) -> Result<Self, DatabaseError> {
        Ok(Self {
            delegated: row.optional_text(0)?.map(str::to_owned),
            fresh_until_ts: row.integer(1)?,
            usable_until_ts: row.integer(2)?,
            failures: row.integer(3)?,
        })
    }
}

impl Store {
    /// The row of `host`. One call.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn well_known(&self, host: &str) -> Result<Option<WellKnownRow>, DatabaseError> {
        const SELECT: &str = "SELECT delegated, fresh_until_ts, usable_until_ts, failures FROM well_known WHERE place = ?1 AND host = ?2";
        let rows = self.query(Statement::new(SELECT, [place(host, HOSTS).into(), host.into()])).await?;
        rows.first().map(WellKnownRow::read).transpose()
    }

    /// The rows of those of these hosts that have one. One call.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn well_known_of(&self, hosts: &[String]) -> Result<Vec<(String, WellKnownRow)>, DatabaseError> {
        const SELECT: &str = "SELECT w.delegated, w.fresh_until_ts, w.usable_until_ts, w.failures, w.host FROM json_each(?1) AS j \
             CROSS JOIN well_known AS w ON w.place = j.value ->> 0 AND w.host = j.value ->> 1";
        let lists = json_lists(hosts.iter().map(|host| json!([place(host, HOSTS), host]).to_string()));
        let answers = self.batch(lists.into_iter().map(|list| Statement::new(SELECT, [list.into()])).collect()).await?;
        let rows = answers.iter().flatten();
        rows.map(|row| Ok((row.text(4)?.to_owned(), WellKnownRow::read(row)?))).collect()
    }

    /// Writes the row of `host`. One call.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_well_known(&self, host: &str, row: &WellKnownRow) -> Result<(), DatabaseError> {
        const UPSERT: &str = "INSERT INTO well_known (place, host, delegated, fresh_until_ts, usable_until_ts, failures) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
             ON CONFLICT (place) DO UPDATE SET host = excluded.host, delegated = excluded.delegated, \
             fresh_until_ts = excluded.fresh_until_ts, usable_until_ts = excluded.usable_until_ts, \
             failures = excluded.failures";
        let parameters: [SqlValue; 6] = [
            place(host, HOSTS).into(),
            host.into(),
            row.delegated.as_deref().into(),
            row.fresh_until_ts.into(),
            row.usable_until_ts.into(),
            row.failures.into(),
        ];
        self.query(Statement::new(UPSERT, parameters)).await.map(drop)
    }
}
