//! Other servers' media: what is known of them. Their bytes are elsewhere ([`crate::platform::media`]).

use super::{
    Store, lacking,
    media::{MediaRow, media_row},
};
use crate::{
    matrix::identifiers::ServerName,
    platform::{DAY_MS, DatabaseError, Row, SqlValue, Statement},
};

/// Media of another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteMedia {
    /// The bytes are there.
    Here {
        /// What is known of them.
        row: MediaRow,
        /// When they were fetched.
        fetched_ts: i64,
        /// When somebody has asked for them, to the day.
        last_access_ts: i64,
    },
    /// Somebody fetches them.
    OnTheWay,
    /// They could not be had a moment ago.
    Failed(Failure),
    /// They must be fetched.
    Lacking,
}

/// Why media could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Their server does not have them.
    NotFound,
    /// Their server still waits for them.
    NotYetUploaded,
    /// They are larger than what is kept here.
    TooLarge,
    /// They gave way to others that had no room beside them.
    GaveWay,
    /// Their server was not reached, or gave no answer that can be used.
    Unreachable,
}

const FAILURES: [(Failure, &str); 5] = [
    (Failure::NotFound, "not_found"),
    (Failure::NotYetUploaded, "not_yet_uploaded"),
    (Failure::TooLarge, "too_large"),
    (Failure::GaveWay, "gave_way"),
    (Failure::Unreachable, "unreachable"),
];

impl Failure {
    fn as_str(self) -> &'static str {
        FAILURES.iter().find(|(failure, _)| *failure == self).map_or("", |(_, text)| text)
    }

    fn parse(text: &str) -> Self {
        FAILURES.iter().find(|(_, written)| *written == text).map_or(Self::Unreachable, |(failure, _)| *failure)
    }
}

/// Media by which they are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteName {
    /// Whose they are.
    pub origin: ServerName,
    /// What they are called there.
    pub media_id: String,
}

/// What a claim to fetch media came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The caller fetches them.
    Taken,
    /// Somebody else does, or has.
    Elsewhere,
    /// The user may have no more fetched on this day.
    Quota,
    /// The user has so much on its way that more would not be within their quota if all of it came.
    Patience,
    /// So many bytes must be forgotten first.
    NoSpace(i64),
}

/// Who wants media to be fetched, and what bounds that. Each file on its way counts as the largest that there may be.
#[derive(Debug, Clone, Copy)]
pub struct Claimant<'a> {
    /// The local user.
    pub user_id: &'a str,
    /// Now.
    pub now: i64,
    /// Until when they must be here.
    pub until: i64,
    /// The largest file.
    pub max_size: i64,
    /// How many bytes the user may have fetched in a day.
    pub quota: i64,
    /// How many bytes are kept of all.
    pub space: i64,
}

/// Media that may be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgettable {
    /// What they are called.
    pub name: RemoteName,
    /// How many bytes are here.
    pub size: i64,
    /// When somebody asked for them; they are not forgotten where somebody has since.
    pub last_access_ts: i64,
}

/// ?1 origin, ?2 ID.
const SELECT: &str = "\
    SELECT size, content_type, filename, fetched_ts, last_access_ts, fetching_until, failure FROM remote_media \
    WHERE origin = ?1 AND media_id = ?2";
/// ?1 origin, ?2 ID, ?3 until, ?4 now, ?5 user, ?6 day, ?7 the largest file, ?8 bytes allowed to the user in a day, ?9 bytes kept of all.
const CLAIM: &str = "\
    INSERT INTO remote_media (origin, media_id, fetching_until, fetching_for, last_access_ts) \
    SELECT ?1, ?2, ?3, ?5, ?4 \
    WHERE COALESCE((SELECT bytes FROM remote_media_fetched AS f WHERE f.user_id = ?5 AND f.day = ?6), 0) \
        + (1 + (SELECT COUNT(*) FROM remote_media AS m WHERE m.fetching_for = ?5 AND m.fetching_until > ?4)) * ?7 <= ?8 \
      AND COALESCE((SELECT bytes FROM remote_media_kept AS k WHERE k.one = 1), 0) \
        + (1 + (SELECT COUNT(*) FROM remote_media AS m WHERE m.fetching_for > '' AND m.fetching_until > ?4)) * ?7 <= ?9 \
    ON CONFLICT (origin, media_id) DO UPDATE SET fetching_until = excluded.fetching_until, fetching_for = excluded.fetching_for, \
      failure = NULL, last_access_ts = excluded.last_access_ts \
    WHERE remote_media.fetching_until <= ?4 AND remote_media.size IS NULL \
    RETURNING media_id";
/// ?1 origin, ?2 ID, ?3 now, ?4 user, ?5 day. What a claim rests on: whether nobody else has it, what the user has had on this day, how
/// many files are on their way for them, what is kept of all, how many files are on their way for all.
const STANDING: &str = "\
    SELECT NOT EXISTS (SELECT 1 FROM remote_media AS m WHERE m.origin = ?1 AND m.media_id = ?2 \
        AND (m.fetching_until > ?3 OR m.size IS NOT NULL)) AS is_free, \
      COALESCE((SELECT bytes FROM remote_media_fetched AS f WHERE f.user_id = ?4 AND f.day = ?5), 0) AS had, \
      (SELECT COUNT(*) FROM remote_media AS m WHERE m.fetching_for = ?4 AND m.fetching_until > ?3) AS theirs, \
      COALESCE((SELECT bytes FROM remote_media_kept AS k WHERE k.one = 1), 0) AS kept, \
      (SELECT COUNT(*) FROM remote_media AS m WHERE m.fetching_for > '' AND m.fetching_until > ?3) AS everybodys";
/// ?1 origin, ?2 ID, ?3 until, ?4 day, ?5 bytes. Counts for whoever has claimed them what has come.
const CHARGE: &str = "\
    INSERT INTO remote_media_fetched (user_id, day, bytes) \
    SELECT fetching_for, ?4, ?5 FROM remote_media \
    WHERE origin = ?1 AND media_id = ?2 AND fetching_until = ?3 AND fetching_for IS NOT NULL \
    ON CONFLICT (user_id) DO UPDATE SET bytes = CASE day WHEN excluded.day THEN bytes ELSE 0 END + excluded.bytes, day = excluded.day";
/// ?1 origin, ?2 ID, ?3 until, ?4 bytes.
const COUNT: &str = "\
    INSERT INTO remote_media_kept (one, bytes) \
    SELECT 1, ?4 FROM remote_media \
    WHERE origin = ?1 AND media_id = ?2 AND fetching_until = ?3 AND fetching_for IS NOT NULL \
    ON CONFLICT (one) DO UPDATE SET bytes = bytes + excluded.bytes";
/// ?1 origin, ?2 ID, ?3 until, ?4 now, ?5 size, ?6 type, ?7 name.
const KEEP: &str = "\
    UPDATE remote_media SET size = ?5, content_type = ?6, filename = ?7, fetched_ts = ?4, fetching_until = 0, fetching_for = NULL \
    WHERE origin = ?1 AND media_id = ?2 AND fetching_until = ?3 AND fetching_for IS NOT NULL";
/// ?1 origin, ?2 ID, ?3 until, ?4 until when nobody asks again, ?5 why.
const FAIL: &str = "\
    UPDATE remote_media SET fetching_until = ?4, failure = ?5, fetching_for = NULL \
    WHERE origin = ?1 AND media_id = ?2 AND fetching_until = ?3 AND fetching_for IS NOT NULL";
/// ?1 origin, ?2 ID, ?3 when they were fetched.
const COUNT_LOST: &str = "\
    UPDATE remote_media_kept \
    SET bytes = MAX(0, bytes - COALESCE((SELECT size FROM remote_media WHERE origin = ?1 AND media_id = ?2 AND fetched_ts = ?3), 0)) \
    WHERE one = 1";
/// ?1 origin, ?2 ID, ?3 when they were fetched.
const LOSE: &str =
    "DELETE FROM remote_media WHERE origin = ?1 AND media_id = ?2 AND fetched_ts = ?3 AND size IS NOT NULL";
/// ?1 origin, ?2 ID, ?3 now.
const TOUCH: &str = "UPDATE remote_media SET last_access_ts = ?3 WHERE origin = ?1 AND media_id = ?2";

/// ?1 the time before which nobody has asked, ?2 now. Those come first for which nobody has asked for longest.
const UNUSED: &str = "\
    SELECT m.origin, m.media_id, COALESCE(m.size, 0), m.last_access_ts FROM remote_media AS m \
    WHERE m.last_access_ts < ?1 AND m.fetching_until <= ?2 ORDER BY m.last_access_ts LIMIT 100";
/// As [`UNUSED`], of what takes up space.
const UNUSED_AND_KEPT: &str = "\
    SELECT m.origin, m.media_id, m.size, m.last_access_ts \
    FROM remote_media AS m INDEXED BY remote_media_kept_by_access \
    WHERE m.size > 0 AND m.last_access_ts < ?1 AND m.fetching_until <= ?2 ORDER BY m.last_access_ts LIMIT 100";
/// ?1 pairs of origin and ID, ?2 the time before which nobody has asked, ?3 now.
const COUNT_FORGOTTEN: &str = "\
    UPDATE remote_media_kept SET bytes = MAX(0, bytes - COALESCE(( \
      SELECT SUM(m.size) FROM json_each(?1) AS j CROSS JOIN remote_media AS m \
      WHERE m.origin = j.value ->> 0 AND m.media_id = j.value ->> 1 AND m.last_access_ts < ?2 AND m.fetching_until <= ?3), 0)) \
    WHERE one = 1";
/// ?1 pairs of origin and ID, ?2 the time before which nobody has asked, ?3 now.
const FORGET: &str = "\
    DELETE FROM remote_media \
    WHERE (origin, media_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?1)) \
      AND last_access_ts < ?2 AND fetching_until <= ?3";

impl Store {
    /// What is known of another server's media at `now`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn remote_media(&self, name: &RemoteName, now: i64) -> Result<RemoteMedia, DatabaseError> {
        let rows =
            self.query(Statement::new(SELECT, [name.origin.as_str().into(), name.media_id.as_str().into()])).await?;
        let Some(row) = rows.first() else { return Ok(RemoteMedia::Lacking) };
        if let Some(found) = media_row(row)? {
            return Ok(RemoteMedia::Here { row: found, fetched_ts: row.integer(3)?, last_access_ts: row.integer(4)? });
        }
        Ok(match (row.integer(5)? > now, row.optional_text(6)?) {
            (false, _) => RemoteMedia::Lacking,
            (true, None) => RemoteMedia::OnTheWay,
            (true, Some(failure)) => RemoteMedia::Failed(Failure::parse(failure)),
        })
    }

    /// Takes it upon the caller to fetch media, where nobody else does and their bounds allow it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn claim_remote_media(&self, name: &RemoteName, by: Claimant<'_>) -> Result<Claim, DatabaseError> {
        let Claimant { user_id, now, until, max_size, quota, space } = by;
        let (origin, media_id, day) = (name.origin.as_str(), name.media_id.as_str(), now.div_euclid(DAY_MS));
        let claim: [SqlValue; 9] = [
            origin.into(),
            media_id.into(),
            until.into(),
            now.into(),
            user_id.into(),
            day.into(),
            max_size.into(),
            quota.into(),
            space.into(),
        ];
        let standing = [origin.into(), media_id.into(), now.into(), user_id.into(), day.into()];
        let answers = self.batch(vec![Statement::new(CLAIM, claim), Statement::new(STANDING, standing)]).await?;
        let [claimed, standing] = answers.as_slice() else { return Err(lacking()) };
        if !claimed.is_empty() {
            return Ok(Claim::Taken);
        }
        let Some(row) = standing.first() else { return Ok(Claim::Elsewhere) };
        let number = |column| row.integer(column);
        let (had, theirs, kept, everybodys) = (number(1)?, number(2)?, number(3)?, number(4)?);
        let with_one_more = |on_the_way: i64| on_the_way.saturating_add(1).saturating_mul(max_size);
        Ok(if number(0)? == 0 {
            Claim::Elsewhere
        } else if had.saturating_add(max_size) > quota {
            Claim::Quota
        } else if had.saturating_add(with_one_more(theirs)) > quota {
            Claim::Patience
        } else {
            Claim::NoSpace(kept.saturating_add(with_one_more(everybodys)).saturating_sub(space))
        })
    }

    /// Notes that the media are here which the caller has claimed until `until`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn keep_remote_media(
        &self,
        name: &RemoteName,
        until: i64,
        row: &MediaRow,
        now: i64,
    ) -> Result<(), DatabaseError> {
        let claimed = || [name.origin.as_str().into(), name.media_id.as_str().into(), until.into()];
        let with = |more: &[SqlValue]| claimed().into_iter().chain(more.iter().cloned()).collect::<Vec<_>>();
        let kept = [now.into(), row.size.into(), row.content_type.as_str().into(), row.filename.as_deref().into()];
        let statements = vec![
            charge(name, until, now, row.size),
            Statement::new(COUNT, with(&[row.size.into()])),
            Statement::new(KEEP, with(&kept)),
        ];
        self.batch(statements).await.map(drop)
    }

    /// Notes at `now` why the media could not be had which the caller has claimed until `until`, until when nobody asks again, and how
    /// many bytes have come all the same.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn fail_remote_media(
        &self,
        name: &RemoteName,
        until: i64,
        now: i64,
        (failure, again): (Failure, i64),
        bytes: i64,
    ) -> Result<(), DatabaseError> {
        let parameters = [
            name.origin.as_str().into(),
            name.media_id.as_str().into(),
            until.into(),
            again.into(),
            failure.as_str().into(),
        ];
        let charged = (bytes > 0).then(|| charge(name, until, now, bytes));
        let statements = charged.into_iter().chain([Statement::new(FAIL, parameters)]).collect();
        self.batch(statements).await.map(drop)
    }

    /// Forgets media that were fetched at that time, and whose bytes are not in the store any more.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn lose_remote_media(&self, name: &RemoteName, fetched_ts: i64) -> Result<(), DatabaseError> {
        let lost = || [name.origin.as_str().into(), name.media_id.as_str().into(), fetched_ts.into()];
        self.batch(vec![Statement::new(COUNT_LOST, lost()), Statement::new(LOSE, lost())]).await.map(drop)
    }

    /// Up to 100 files that nobody has asked for since `before`, those first that nobody has asked for for longest.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn unused_remote_media(&self, before: i64, now: i64) -> Result<Vec<Forgettable>, DatabaseError> {
        self.forgettable(UNUSED, before, now).await
    }

    /// As [`Store::unused_remote_media`], but only of what takes up space.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn unused_kept_media(&self, before: i64, now: i64) -> Result<Vec<Forgettable>, DatabaseError> {
        self.forgettable(UNUSED_AND_KEPT, before, now).await
    }

    async fn forgettable(&self, sql: &'static str, before: i64, now: i64) -> Result<Vec<Forgettable>, DatabaseError> {
        let rows = self.query(Statement::new(sql, [before.into(), now.into()])).await?;
        let malformed = |_| DatabaseError::Shape("a malformed server name".to_owned());
        let forgettable = |row: &Row| {
            let origin = ServerName::parse(row.text(0)?).map_err(malformed)?;
            let name = RemoteName { origin, media_id: row.text(1)?.to_owned() };
            Ok(Forgettable { name, size: row.integer(2)?, last_access_ts: row.integer(3)? })
        };
        rows.iter().map(forgettable).collect()
    }

    /// Forgets those of these files that nobody has asked for since `before`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn forget_remote_media(&self, names: &[RemoteName], before: i64, now: i64) -> Result<(), DatabaseError> {
        let pairs: Vec<_> = names.iter().map(|name| (name.origin.as_str(), name.media_id.as_str())).collect();
        // Lists of strings always serialise.
        let list = serde_json::to_string(&pairs).unwrap_or_default();
        let parameters = || [list.as_str().into(), before.into(), now.into()];
        let statements = vec![Statement::new(COUNT_FORGOTTEN, parameters()), Statement::new(FORGET, parameters())];
        self.batch(statements).await.map(drop)
    }

    /// Notes that somebody has asked for media at `now`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn touch_remote_media(&self, name: &RemoteName, now: i64) -> Result<(), DatabaseError> {
        let parameters = [name.origin.as_str().into(), name.media_id.as_str().into(), now.into()];
        self.query(Statement::new(TOUCH, parameters)).await.map(drop)
    }
}

/// Counts bytes that have come by `now` against whoever has claimed them until `until`.
fn charge(name: &RemoteName, until: i64, now: i64, bytes: i64) -> Statement {
    let day = now.div_euclid(DAY_MS);
    let parameters =
        [name.origin.as_str().into(), name.media_id.as_str().into(), until.into(), day.into(), bytes.into()];
    Statement::new(CHARGE, parameters)
}
