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
    platform::{DAY_MS, DatabaseError, Statement},
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

/// Up to where all destinations that are not marked have had everything.
const SWEPT: &str = concat!(
    "UPDATE streams SET position = MAX(position, COALESCE( \
       (SELECT MIN(MAX(s.from_pos, COALESCE(d.cursor, 0))) ",
    lacking_news!(),
    "), (SELECT position FROM streams WHERE name = 'outbox'))) \
     WHERE name = 'outbox_swept' AND position < (SELECT position FROM streams WHERE name = 'outbox')"
);

/// For a server that has not taken its transaction for so long, in milliseconds, only the newest event of each room is kept.
const GIVEN_UP_MS: i64 = 30 * DAY_MS;

/// Where the slowest server begins that still has something to hear; all that was looked through where there is none. ?1: a server
/// whose transaction has been in flight since before this time has been given up.
const HEARD_BY_ALL: &str = "\
    SELECT MIN((SELECT position FROM streams WHERE name = 'outbox_swept'), COALESCE( \
      (SELECT MIN(MAX(s.from_pos, d.cursor)) FROM destinations AS d CROSS JOIN room_servers AS s ON s.server = d.destination \
         CROSS JOIN rooms AS r ON r.room_id = s.room_id \
       WHERE d.behind = 1 AND d.retry_at >= 0 AND COALESCE(d.txn_ts, ?1) >= ?1 \
         AND MIN(r.outbox_pos, COALESCE(s.to_pos, r.outbox_pos)) > MAX(s.from_pos, d.cursor)), \
      (SELECT position FROM streams WHERE name = 'outbox'))) AS pos";

/// The end of the next page, and how many rows it has. ?1: after which position, ?2: the last one to forget, ?3: how many rows at most.
macro_rules! page {
    () => {
        "FROM (SELECT pos FROM outbox WHERE pos > ?1 AND pos <= ?2 ORDER BY pos LIMIT ?3)"
    };
}

const PAGE_END: &str = concat!("SELECT MAX(pos) AS pos, COUNT(*) ", page!());

/// The newest event of a room stays as long as a server in it that was given up has not heard it: by it that server finds out, once it is
/// back, that it lacks what came before.
const FORGET: &str = concat!(
    "DELETE FROM outbox WHERE pos > ?1 AND pos <= (SELECT MAX(pos) ",
    page!(),
    ") AND NOT EXISTS (SELECT 1 FROM rooms AS r CROSS JOIN room_servers AS s ON s.room_id = r.room_id \
       CROSS JOIN destinations AS d ON d.destination = s.server \
     WHERE r.room_id = outbox.room_id AND r.outbox_pos = outbox.pos \
       AND s.from_pos < outbox.pos AND outbox.pos <= COALESCE(s.to_pos, outbox.pos) \
       AND d.behind = 1 AND d.cursor < outbox.pos AND (outbox.exclude IS NULL OR outbox.exclude <> d.destination))"
);

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

    /// Up to which position of the outbox every destination has had everything that has taken anything for a month.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn heard_by_all(&self, now: i64) -> Result<OutboxPos, DatabaseError> {
        let rows = self.query(Statement::new(HEARD_BY_ALL, [(now - GIVEN_UP_MS).into()])).await?;
        rows.first().map_or(Ok(OutboxPos::START), |row| OutboxPos::read(row, 0))
    }

    /// Forgets `slice` events of the outbox after the position `after`, as far as they are not after `last`, but for those by which
    /// somebody will find out that they lack others. After which position to go on; `None` where no more are left.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn forget_outbox(
        &self,
        after: OutboxPos,
        last: OutboxPos,
        slice: i64,
    ) -> Result<Option<OutboxPos>, DatabaseError> {
        let parameters = || [after.into(), last.into(), slice.into()];
        let statements = [PAGE_END, FORGET].map(|sql| Statement::new(sql, parameters()));
        let answers = self.batch(statements.into()).await?;
        let page = answers.first().and_then(|rows| rows.first()).ok_or_else(lacking)?;
        if page.integer(1)? < slice { Ok(None) } else { OutboxPos::read_optional(page, 0) }
    }
}
