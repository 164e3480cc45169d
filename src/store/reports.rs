//! What local users reported.

use super::{Store, positions::advance};
use crate::platform::{DatabaseError, Statement};

/// What a user reported.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// Who.
    pub reporter: &'a str,
    /// The room, unless it is about a user.
    pub room_id: Option<&'a str>,
    /// The event, if it is about one.
    pub event_id: Option<&'a str>,
    /// The user, or the sender of the event.
    pub user_id: Option<&'a str>,
    /// Why.
    pub reason: &'a str,
    /// When, in milliseconds since the epoch.
    pub now_ms: i64,
}

/// A thousand of them are kept.
const KEEP: &str = "\
    INSERT INTO reports (place, number, reporter, room_id, event_id, user_id, reason, reported_ts) \
    SELECT s.position % 1000, s.position, ?1, ?2, ?3, ?4, ?5, ?6 FROM streams AS s WHERE s.name = 'reports' \
    ON CONFLICT (place) DO UPDATE SET number = excluded.number, reporter = excluded.reporter, room_id = excluded.room_id, \
      event_id = excluded.event_id, user_id = excluded.user_id, reason = excluded.reason, reported_ts = excluded.reported_ts";

impl Store {
    /// Keeps a report, in the place of one long before it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn keep_report(&self, report: &Report<'_>) -> Result<(), DatabaseError> {
        let parameters = [
            report.reporter.into(),
            report.room_id.into(),
            report.event_id.into(),
            report.user_id.into(),
            report.reason.into(),
            report.now_ms.into(),
        ];
        self.batch(vec![advance("reports", 1), Statement::new(KEEP, parameters)]).await.map(drop)
    }
}
