//! Other servers' media: what is known of them. Their bytes are elsewhere ([`crate::platform::media`]).

use super::{
    Store,
    media::{MediaRow, media_row},
};
use crate::{
    matrix::identifiers::ServerName,
    platform::{DatabaseError, Row, Statement},
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
    /// Their server was not reached, or gave no answer that can be used.
    Unreachable,
}

const FAILURES: [(Failure, &str); 4] = [
    (Failure::NotFound, "not_found"),
    (Failure::NotYetUploaded, "not_yet_uploaded"),
    (Failure::TooLarge, "too_large"),
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

/// ?1 origin, ?2 ID.
const SELECT: &str = "\
    SELECT size, content_type, filename, fetched_ts, last_access_ts, fetching_until, failure FROM remote_media \
    WHERE origin = ?1 AND media_id = ?2";
/// ?1 origin, ?2 ID, ?3 until, ?4 now, ?5 when the bytes were fetched that have gone.
const CLAIM: &str = "\
    INSERT INTO remote_media (origin, media_id, fetching_until, last_access_ts) VALUES (?1, ?2, ?3, ?4) \
    ON CONFLICT (origin, media_id) DO UPDATE SET fetching_until = excluded.fetching_until, failure = NULL, size = NULL, \
      last_access_ts = excluded.last_access_ts \
    WHERE remote_media.fetching_until <= ?4 AND (remote_media.size IS NULL OR remote_media.fetched_ts = ?5) \
    RETURNING media_id";
/// ?1 origin, ?2 ID, ?3 until, ?4 now, ?5 size, ?6 type, ?7 name.
const KEEP: &str = "\
    UPDATE remote_media SET size = ?5, content_type = ?6, filename = ?7, fetched_ts = ?4, fetching_until = 0 \
    WHERE origin = ?1 AND media_id = ?2 AND fetching_until = ?3";
/// ?1 origin, ?2 ID, ?3 until, ?4 until when nobody asks again, ?5 why.
const FAIL: &str = "\
    UPDATE remote_media SET fetching_until = ?4, failure = ?5 WHERE origin = ?1 AND media_id = ?2 AND fetching_until = ?3";
/// ?1 origin, ?2 ID, ?3 now.
const TOUCH: &str = "UPDATE remote_media SET last_access_ts = ?3 WHERE origin = ?1 AND media_id = ?2";

/// ?1 the time before which nobody has asked.
const UNUSED: &str = "\
    SELECT m.origin, m.media_id FROM remote_media AS m \
    WHERE m.last_access_ts < ?1 AND m.fetching_until < ?1 LIMIT 100";
/// ?1 pairs of origin and ID, ?2 the time before which nobody has asked.
const FORGET: &str = "\
    DELETE FROM remote_media \
    WHERE (origin, media_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?1)) \
      AND last_access_ts < ?2 AND fetching_until < ?2";

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

    /// Takes it upon the caller to fetch media by `until`; `false` where somebody else does or has. `lost` says when the bytes
    /// were fetched that are not in the store any more.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn claim_remote_media(
        &self,
        name: &RemoteName,
        now: i64,
        until: i64,
        lost: Option<i64>,
    ) -> Result<bool, DatabaseError> {
        let parameters =
            [name.origin.as_str().into(), name.media_id.as_str().into(), until.into(), now.into(), lost.into()];
        Ok(!self.query(Statement::new(CLAIM, parameters)).await?.is_empty())
    }

    /// Notes that the media are there which the caller has claimed until `until`.
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
        let parameters = [
            name.origin.as_str().into(),
            name.media_id.as_str().into(),
            until.into(),
            now.into(),
            row.size.into(),
            row.content_type.as_str().into(),
            row.filename.as_deref().into(),
        ];
        self.query(Statement::new(KEEP, parameters)).await.map(drop)
    }

    /// Notes why the media could not be had which the caller has claimed until `until`, and until when nobody asks again.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn fail_remote_media(
        &self,
        name: &RemoteName,
        until: i64,
        again: i64,
        failure: Failure,
    ) -> Result<(), DatabaseError> {
        let parameters = [
            name.origin.as_str().into(),
            name.media_id.as_str().into(),
            until.into(),
            again.into(),
            failure.as_str().into(),
        ];
        self.query(Statement::new(FAIL, parameters)).await.map(drop)
    }

    /// Up to 100 files that nobody has asked for since.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn unused_remote_media(&self, before: i64) -> Result<Vec<RemoteName>, DatabaseError> {
        let rows = self.query(Statement::new(UNUSED, [before.into()])).await?;
        let malformed = |_| DatabaseError::Shape("a malformed server name".to_owned());
        let name = |row: &Row| {
            let origin = ServerName::parse(row.text(0)?).map_err(malformed)?;
            Ok(RemoteName { origin, media_id: row.text(1)?.to_owned() })
        };
        rows.iter().map(name).collect()
    }

    /// Forgets those of these files that nobody has asked for since.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn forget_remote_media(&self, names: &[RemoteName], before: i64) -> Result<(), DatabaseError> {
        let pairs: Vec<_> = names.iter().map(|name| (name.origin.as_str(), name.media_id.as_str())).collect();
        // Lists of strings always serialise.
        let list = serde_json::to_string(&pairs).unwrap_or_default();
        self.query(Statement::new(FORGET, [list.into(), before.into()])).await.map(drop)
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
