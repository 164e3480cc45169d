//! Media that local users upload: what is known of them. Their bytes are elsewhere ([`crate::platform::media`]).

use super::{Store, json_list, lacking};
use crate::platform::{DatabaseError, Row, SqlValue, Statement};

/// What is known of media whose bytes are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaRow {
    /// How many bytes.
    pub size: i64,
    /// What they are said to be.
    pub content_type: String,
    /// How the file is called.
    pub filename: Option<String>,
}

/// A media ID of this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalMedia {
    /// Its bytes are there.
    Here(MediaRow),
    /// It is reserved, and its bytes are still awaited.
    Awaited,
}

/// Bounds on what a user may have.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many bytes.
    pub bytes: i64,
    /// How many IDs whose bytes are awaited.
    pub awaited: i64,
}

/// An upload that begins.
#[derive(Debug, Clone, Copy)]
pub struct NewUpload<'a> {
    /// Where it goes.
    pub media_id: &'a str,
    /// Whose it is.
    pub user_id: &'a str,
    /// Its own name, which no other upload has; `None` where the ID is only reserved.
    pub upload: Option<&'a str>,
    /// How many bytes it brings at least.
    pub length: i64,
    /// Now.
    pub now: i64,
    /// Until when it must have ended; where the ID is only reserved, until when one must begin.
    pub until: i64,
}

impl NewUpload<'_> {
    /// The parameters ?1 to ?7 of [`RESERVE`] and [`BEGIN`].
    fn parameters(&self, bytes_allowed: i64) -> Vec<SqlValue> {
        vec![
            self.media_id.into(),
            self.user_id.into(),
            self.now.into(),
            self.until.into(),
            self.upload.into(),
            self.length.into(),
            bytes_allowed.into(),
        ]
    }
}

/// Why an upload cannot begin, or does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadRefusal {
    /// There is no such ID, or it is not reserved any more.
    Unknown,
    /// It is another user's.
    NotTheirs,
    /// Its bytes are there, or on their way.
    Taken,
    /// The user has as many bytes as they may.
    Quota,
    /// The user has as many reserved IDs as they may.
    TooManyAwaited,
}

/// ?1 ID, ?2 user, ?3 now, ?4 until, ?5 upload, ?6 bytes to come, ?7 bytes allowed, ?8 awaited IDs allowed.
const RESERVE: &str = "\
    INSERT INTO local_media (media_id, user_id, created_ts, until_ts, upload, upload_until) \
    SELECT ?1, ?2, ?3, ?4, ?5, CASE WHEN ?5 IS NULL THEN NULL ELSE ?4 END \
    WHERE COALESCE((SELECT bytes FROM media_usage WHERE user_id = ?2), 0) + ?6 <= ?7 \
      AND (SELECT COUNT(*) FROM (SELECT 1 FROM local_media AS m WHERE m.user_id = ?2 AND m.until_ts > ?3 AND m.size IS NULL \
        LIMIT ?8)) < ?8 \
    RETURNING media_id";
/// ?1 ID, ?2 user, ?3 now, ?4 until, ?5 upload, ?6 bytes to come, ?7 bytes allowed.
const BEGIN: &str = "\
    UPDATE local_media SET upload = ?5, upload_until = ?4 \
    WHERE media_id = ?1 AND user_id = ?2 AND until_ts > ?3 AND size IS NULL AND COALESCE(upload_until, 0) <= ?3 \
      AND COALESCE((SELECT bytes FROM media_usage WHERE user_id = ?2), 0) + ?6 <= ?7 \
    RETURNING media_id";
/// ?1 ID, ?2 now.
const STANDING: &str = "\
    SELECT user_id, size, until_ts > ?2, COALESCE(upload_until, 0) > ?2 AS is_under_way FROM local_media WHERE media_id = ?1";
/// ?1 user.
const USAGE: &str = "SELECT bytes FROM media_usage WHERE user_id = ?1";
/// ?1 ID, ?2 upload, ?3 size, ?4 type, ?5 filename, ?6 bytes allowed.
const FINISH: &str = "\
    UPDATE local_media SET size = ?3, content_type = ?4, filename = ?5 \
    WHERE media_id = ?1 AND upload = ?2 AND size IS NULL \
      AND COALESCE((SELECT bytes FROM media_usage AS u WHERE u.user_id = local_media.user_id), 0) + ?3 <= ?6 \
    RETURNING media_id";
/// ?1 ID, ?2 upload. Counts what the statement before has kept: `upload_until` says that it was not counted yet.
const COUNT: &str = "\
    INSERT INTO media_usage (user_id, bytes) \
    SELECT user_id, size FROM local_media \
    WHERE media_id = ?1 AND upload = ?2 AND size IS NOT NULL AND upload_until IS NOT NULL \
    ON CONFLICT (user_id) DO UPDATE SET bytes = bytes + excluded.bytes";
/// ?1 ID, ?2 upload.
const COUNTED: &str = "\
    UPDATE local_media SET upload_until = NULL WHERE media_id = ?1 AND upload = ?2 AND size IS NOT NULL";
/// ?1 ID, ?2 upload.
const ABANDON: &str = "\
    UPDATE local_media SET upload = NULL, upload_until = NULL WHERE media_id = ?1 AND upload = ?2 AND size IS NULL";
/// ?1 ID, ?2 upload.
const DROP: &str = "DELETE FROM local_media WHERE media_id = ?1 AND upload = ?2 AND size IS NULL";
/// ?1 now. Of each user few are awaited, in an index that holds no others.
const OVER: &str = "\
    SELECT m.media_id FROM local_media AS m \
    WHERE m.size IS NULL AND m.user_id > '' AND m.until_ts <= ?1 AND COALESCE(m.upload_until, 0) <= ?1 LIMIT 1000";
/// ?1 IDs, ?2 now.
const FORGET: &str = "\
    DELETE FROM local_media WHERE media_id IN (SELECT value FROM json_each(?1)) \
      AND size IS NULL AND until_ts <= ?2 AND COALESCE(upload_until, 0) <= ?2";
/// ?1 ID, ?2 now.
const SELECT: &str = "\
    SELECT size, content_type, filename FROM local_media \
    WHERE media_id = ?1 AND (size IS NOT NULL OR until_ts > ?2 OR upload_until > ?2)";

impl Store {
    /// Reserves an ID, for an upload that begins at once where the upload has a name.
    ///
    /// # Errors
    /// Where the database fails; inside, where the user has as much as they may.
    pub async fn reserve_media(
        &self,
        new: NewUpload<'_>,
        bounds: Bounds,
    ) -> Result<Result<(), UploadRefusal>, DatabaseError> {
        let mut parameters = new.parameters(bounds.bytes);
        parameters.push(bounds.awaited.into());
        let statements = vec![Statement::new(RESERVE, parameters), Statement::new(USAGE, [new.user_id.into()])];
        let answers = self.batch(statements).await?;
        let [reserved, usage] = answers.as_slice() else { return Err(lacking()) };
        let used = usage.first().map_or(Ok(0), |row| row.integer(0))?;
        Ok(match reserved.is_empty() {
            false => Ok(()),
            true if used.saturating_add(new.length) > bounds.bytes => Err(UploadRefusal::Quota),
            true => Err(UploadRefusal::TooManyAwaited),
        })
    }

    /// Begins an upload to an ID that was reserved before.
    ///
    /// # Errors
    /// Where the database fails; inside, where it cannot begin.
    pub async fn begin_upload(
        &self,
        new: NewUpload<'_>,
        bounds: Bounds,
    ) -> Result<Result<(), UploadRefusal>, DatabaseError> {
        // Why it cannot begin is read first, for the update changes it.
        let standing = Statement::new(STANDING, [new.media_id.into(), new.now.into()]);
        let statements = vec![standing, Statement::new(BEGIN, new.parameters(bounds.bytes))];
        let answers = self.batch(statements).await?;
        let [standing, begun] = answers.as_slice() else { return Err(lacking()) };
        if !begun.is_empty() {
            return Ok(Ok(()));
        }
        let Some(row) = standing.first() else { return Ok(Err(UploadRefusal::Unknown)) };
        let (is_here, is_reserved, is_under_way) =
            (row.optional_integer(1)?.is_some(), row.integer(2)? != 0, row.integer(3)? != 0);
        Ok(Err(match (row.text(0)? == new.user_id, is_here || is_under_way, is_reserved) {
            (false, _, _) => UploadRefusal::NotTheirs,
            (_, true, _) => UploadRefusal::Taken,
            (_, _, false) => UploadRefusal::Unknown,
            _ => UploadRefusal::Quota,
        }))
    }

    /// Ends an upload whose bytes are there, and counts them. `false` where it does not count: its time was over and another has
    /// begun, or the user has more by now than they may.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn finish_upload(
        &self,
        media_id: &str,
        upload: &str,
        row: &MediaRow,
        bytes_allowed: i64,
    ) -> Result<bool, DatabaseError> {
        let parameters: [SqlValue; 6] = [
            media_id.into(),
            upload.into(),
            row.size.into(),
            row.content_type.as_str().into(),
            row.filename.as_deref().into(),
            bytes_allowed.into(),
        ];
        let named = || [media_id.into(), upload.into()];
        let statements =
            vec![Statement::new(FINISH, parameters), Statement::new(COUNT, named()), Statement::new(COUNTED, named())];
        Ok(self.batch(statements).await?.first().is_some_and(|rows| !rows.is_empty()))
    }

    /// Gives up an upload. The ID stays reserved where it was before the upload began.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn give_up_upload(&self, media_id: &str, upload: &str, was_reserved: bool) -> Result<(), DatabaseError> {
        let parameters = [media_id.into(), upload.into()];
        let statement =
            if was_reserved { Statement::new(ABANDON, parameters) } else { Statement::new(DROP, parameters) };
        self.query(statement).await.map(drop)
    }

    /// Up to 1,000 IDs whose bytes were awaited and have not come in time.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn uploads_that_are_over(&self, now: i64) -> Result<Vec<String>, DatabaseError> {
        let rows = self.query(Statement::new(OVER, [now.into()])).await?;
        rows.iter().map(|row| row.text(0).map(str::to_owned)).collect()
    }

    /// Forgets those of these IDs whose bytes have not come in time.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn forget_uploads(&self, media_ids: &[String], now: i64) -> Result<(), DatabaseError> {
        let list = json_list(media_ids.iter().map(String::as_str));
        self.query(Statement::new(FORGET, [list.into(), now.into()])).await.map(drop)
    }

    /// What is known of a media ID of this server; `None` where there is no such.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn local_media(&self, media_id: &str, now: i64) -> Result<Option<LocalMedia>, DatabaseError> {
        let rows = self.query(Statement::new(SELECT, [media_id.into(), now.into()])).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let here = media_row(row)?;
        Ok(Some(here.map_or(LocalMedia::Awaited, LocalMedia::Here)))
    }
}

/// Size, type and name in the first three columns; `None` where the bytes are not there.
pub(super) fn media_row(row: &Row) -> Result<Option<MediaRow>, DatabaseError> {
    let Some(size) = row.optional_integer(0)? else { return Ok(None) };
    let content_type = row.text(1)?.to_owned();
    Ok(Some(MediaRow { size, content_type, filename: row.optional_text(2)?.map(str::to_owned) }))
}
