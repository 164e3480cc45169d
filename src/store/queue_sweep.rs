//! Whom the scheduled trigger must send to: whoever has not had all of the outbox, or has EDUs waiting, and is not being sent to.
//!
//! Who has failed, or was left with a rest, is marked as `behind`. Whoever else lacks something lacks it since a short time
//! ago: what was committed since then was sent at once, unless that was cut off. So only the rooms with news after a
//! position up to which all is done or marked, `outbox_swept`, are looked at, and not all rooms there are.

use super::{
    Store,
    edu_outbox::LACKING_EDUS,
    lacking,
    positions::OutboxPos,
    queue::{is_free, names},
};
use crate::{
    matrix::identifiers::ServerName,
    platform::{DatabaseError, Statement},
};

/// The servers `s` that lack news and are not marked, each with its destination `d`; ?1 is this server's name. (The `+` keeps SQLite from reading
/// the index of all of the outbox for the sake of its order.)
macro_rules! lacking_news {
    () => {
        "FROM (SELECT o.room_id AS room_id, MAX(o.pos) AS pos FROM outbox AS o \
             WHERE o.pos > (SELECT position FROM streams WHERE name = 'outbox_swept') GROUP BY +o.room_id) AS r \
           CROSS JOIN room_servers AS s ON s.room_id = r.room_id LEFT JOIN destinations AS d ON d.destination = s.server \
         WHERE s.server <> ?1 AND COALESCE(d.behind, 0) = 0 \
           AND MIN(r.pos, COALESCE(s.to_pos, r.pos)) > MAX(s.from_pos, COALESCE(d.cursor, 0))"
    };
}

/// ?2: now, ?3: how many at most.
const LACKING_NEWS: &str = concat!(
    "SELECT s.server, MIN(MAX(s.from_pos, COALESCE(d.cursor, 0))) AS since ",
    lacking_news!(),
    " AND ",
    is_free!(),
    " GROUP BY s.server ORDER BY since LIMIT ?3"
);

/// ?2: now, ?3: how many at most.
const BEHIND: &str = concat!(
    "SELECT d.destination FROM destinations AS d WHERE d.behind = 1 AND ?1 <> d.destination AND ",
    "d.retry_at <= ?2 AND d.lease_until <= unixepoch() * 1000 ORDER BY d.retry_at LIMIT ?3"
);

/// Up to where nobody lacks anything who is not marked.
const SWEPT: &str = concat!(
    "UPDATE streams SET position = MAX(position, COALESCE( \
       (SELECT MIN(MAX(s.from_pos, COALESCE(d.cursor, 0))) ",
    lacking_news!(),
    "), (SELECT position FROM streams WHERE name = 'outbox'))) \
     WHERE name = 'outbox_swept' AND position < (SELECT position FROM streams WHERE name = 'outbox')"
);

/// Up to where the slowest of those begins that still have something to hear; all that was looked through where nobody has.
const HEARD_BY_ALL: &str = "\
    SELECT MIN((SELECT position FROM streams WHERE name = 'outbox_swept'), COALESCE( \
      (SELECT MIN(MAX(s.from_pos, d.cursor)) FROM destinations AS d CROSS JOIN room_servers AS s ON s.server = d.destination \
         CROSS JOIN rooms AS r ON r.room_id = s.room_id \
       WHERE d.behind = 1 AND d.retry_at >= 0 \
         AND MIN(r.outbox_pos, COALESCE(s.to_pos, r.outbox_pos)) > MAX(s.from_pos, d.cursor)), \
      (SELECT position FROM streams WHERE name = 'outbox'))) AS pos";

/// ?1: the last position to forget, ?2: how many positions at most.
const FORGET: &str = "DELETE FROM outbox WHERE pos <= MIN(?1, (SELECT MIN(pos) FROM outbox WHERE pos > 0) + ?2 - 1)";

const OLDEST: &str = "SELECT MIN(pos) AS pos FROM outbox WHERE pos > 0";

impl Store {
    /// Up to `limit` servers that lack news, as many that EDUs wait for, and as many that are behind, and may be tried at
    /// `now`: of the first and the last those that have waited for longest, first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn overdue(&self, own: &ServerName, now: i64, limit: i64) -> Result<Vec<ServerName>, DatabaseError> {
        let parameters = || [own.as_str().into(), now.into(), limit.into()];
        let statements = [LACKING_NEWS, LACKING_EDUS, BEHIND].map(|sql| Statement::new(sql, parameters()));
        let answers = self.batch(statements.into()).await?;
        let mut lists = answers.iter().map(names).collect::<Result<Vec<_>, _>>()?;
        lists.iter_mut().for_each(|list| list.reverse());
        // In turns: many of the one kind must not be in the way of the other.
        let mut servers: Vec<ServerName> = Vec::new();
        while lists.iter().any(|list| !list.is_empty()) {
            for next in lists.iter_mut().filter_map(Vec::pop) {
                if !servers.contains(&next) {
                    servers.push(next);
                }
            }
        }
        Ok(servers)
    }

    /// Notes up to where nobody lacks anything who is not marked as being behind.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn note_swept(&self, own: &ServerName) -> Result<(), DatabaseError> {
        self.query(Statement::new(SWEPT, [own.as_str().into()])).await.map(drop)
    }

    /// Up to which position of the outbox every destination has had everything.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn heard_by_all(&self) -> Result<OutboxPos, DatabaseError> {
        let rows = self.query(Statement::new(HEARD_BY_ALL, [])).await?;
        rows.first().map_or(Ok(OutboxPos::START), |row| OutboxPos::read(row, 0))
    }

    /// Forgets the oldest `slice` positions of the outbox, as far as they are not after `last`. Whether there are more.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn forget_outbox(&self, last: OutboxPos, slice: i64) -> Result<bool, DatabaseError> {
        let statements = vec![Statement::new(FORGET, [last.into(), slice.into()]), Statement::new(OLDEST, [])];
        let oldest = self.batch(statements).await?.pop().ok_or_else(lacking)?;
        let oldest = oldest.first().map_or(Ok(None), |row| OutboxPos::read_optional(row, 0))?;
        Ok(oldest.is_some_and(|oldest| oldest <= last))
    }
}
