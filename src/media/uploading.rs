//! Uploads of local users (Client-Server API, "Content repository").
//!
//! An ID is a row before any byte comes, so that what is left of an upload that was cut off is found and deleted
//! ([`super`]'s tidying). One upload to an ID runs at a time, under a name of its own; it counts once its bytes are in the store.

use std::rc::Rc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::{Either, select};
use http::StatusCode;

use super::{local_key, store, unknown};
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::identifiers::UserId,
    platform::{
        DAY_MS,
        media::{ByteStream, MediaError, MediaStore, NewObject},
    },
    server::Server,
    store::media::{Bounds, LocalMedia, MediaRow, NewUpload, UploadRefusal},
};

/// For how long an ID is reserved.
const RESERVED_MS: i64 = DAY_MS;
/// How many reserved IDs a user may have.
const MAX_AWAITED: i64 = 100;
/// How long an upload may take, and for how long no other may begin in its place: longer, so that two never write at once.
const LONGEST_MS: u32 = 55 * 60 * 1_000;
const LEASE_MS: i64 = 60 * 60 * 1_000;

/// A file as it comes.
pub struct NewFile {
    /// What it is said to be.
    pub content_type: String,
    /// How it is called.
    pub filename: Option<String>,
    /// Its bytes.
    pub stream: Box<dyn ByteStream>,
    /// How many they are, where that is known.
    pub length: Option<u64>,
}

/// Where an upload goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// To a new ID.
    New,
    /// To this ID, which the user has reserved.
    Reserved(&'a str),
}

/// Reserves a media ID; answers with it, and until when an upload to it may begin.
///
/// # Errors
/// 403 where the user has as many bytes as they may, 429 where they have too many reserved IDs.
pub async fn reserve(server: &Server, user: &UserId) -> Result<(String, i64), MatrixError> {
    store(server)?;
    let (media_id, now) = (new_id(server), server.platform.clock.now_ms());
    let until = now + RESERVED_MS;
    let new = NewUpload { media_id: &media_id, user_id: user.as_str(), upload: None, length: 0, now, until };
    server.store.reserve_media(new, bounds(server)).await?.map_err(refusal)?;
    Ok((media_id, until))
}

/// Takes an upload; answers with its media ID.
///
/// # Errors
/// 413 for what is too large, 403 where the user has as many bytes as they may or the ID is another's, 404 where it is not
/// reserved, 409 `M_CANNOT_OVERWRITE_MEDIA` where its bytes are there, 400 where the upload breaks off.
pub async fn upload(server: &Server, user: &UserId, target: Target<'_>, file: NewFile) -> Result<String, MatrixError> {
    let bucket = store(server)?;
    let max_size = server.config.media.max_size;
    if file.length.is_some_and(|length| length > max_size) {
        return Err(MediaError::TooLong.into());
    }
    let (upload, now) = (new_id(server), server.platform.clock.now_ms());
    let length = file.length.and_then(|length| i64::try_from(length).ok()).unwrap_or(0);
    let until = now + LEASE_MS;
    let begin = |media_id| NewUpload { media_id, user_id: user.as_str(), upload: Some(&upload), length, now, until };
    let media_id = match target {
        Target::New => {
            let media_id = new_id(server);
            server.store.reserve_media(begin(&media_id), bounds(server)).await?.map_err(refusal)?;
            media_id
        }
        Target::Reserved(media_id) => {
            server.store.begin_upload(begin(media_id), bounds(server)).await?.map_err(refusal)?;
            media_id.to_owned()
        }
    };
    let was_reserved = target != Target::New;
    let upload = Upload {
        server: server.clone(),
        bucket,
        user_id: user.clone(),
        media_id: media_id.clone(),
        upload,
        was_reserved,
    };
    // A client that hangs up must not leave behind what it began.
    server.platform.to_the_end(async move { upload.take(file).await }).await?;
    Ok(media_id)
}

/// An upload that has begun.
struct Upload {
    server: Server,
    bucket: Rc<dyn MediaStore>,
    user_id: UserId,
    media_id: String,
    upload: String,
    was_reserved: bool,
}

impl Upload {
    async fn take(self, file: NewFile) -> Result<(), MatrixError> {
        let config = &self.server.config.media;
        let object = NewObject {
            stream: file.stream,
            length: file.length,
            limit: config.max_size.min(config.quota),
            content_type: file.content_type.clone(),
            sender: self.user_id.as_str().to_owned(),
        };
        let putting = self.bucket.put(local_key(&self.media_id), object);
        let put = match select(putting, self.server.platform.clock.sleep(LONGEST_MS)).await {
            Either::Left((put, _)) => put,
            Either::Right(_) => Err(MediaError::Broken),
        };
        let size = match put {
            Ok(size) => size,
            Err(error) => {
                self.give_up().await;
                return Err(error.into());
            }
        };
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let row = MediaRow { size, content_type: file.content_type, filename: file.filename };
        let finished =
            self.server.store.finish_upload(&self.media_id, &self.upload, &row, bounds(&self.server).bytes).await;
        if finished.is_err() && self.was_reserved {
            // Whether it counts is not known. If it does not, the next try need not wait until this one's time is over.
            self.let_go().await;
        }
        if finished? {
            return Ok(());
        }
        // Only what is not another upload's may go.
        let now = self.server.platform.clock.now_ms();
        if let Some(LocalMedia::Here(_)) = self.server.store.local_media(&self.media_id, now).await? {
            return Err(refusal(UploadRefusal::Taken));
        }
        self.give_up().await;
        Err(refusal(UploadRefusal::Quota))
    }

    /// Deletes the bytes, and then the row that leads to them: of a store whose answer was lost it is not known whether it has kept
    /// them.
    async fn give_up(&self) {
        let deleted = self.bucket.delete(vec![local_key(&self.media_id)]).await;
        if let Err(error) = &deleted {
            let record = LogRecord::error("the bytes of an upload that broke off cannot be deleted").because(error);
            self.server.platform.log.write(record);
        }
        // The row of an ID that was reserved stays in any case, until it is tidied with what may be left of its bytes.
        if deleted.is_ok() || self.was_reserved {
            self.let_go().await;
        }
    }

    /// What cannot be let go of now is forgotten when its time is over.
    async fn let_go(&self) {
        if let Err(error) = self.server.store.give_up_upload(&self.media_id, &self.upload, self.was_reserved).await {
            let record = LogRecord::error("an upload that broke off cannot be given up").because(&error);
            self.server.platform.log.write(record);
        }
    }
}

fn bounds(server: &Server) -> Bounds {
    Bounds { bytes: i64::try_from(server.config.media.quota).unwrap_or(i64::MAX), awaited: MAX_AWAITED }
}

/// 144 random bits: nobody finds media whose ID they were not told.
fn new_id(server: &Server) -> String {
    let mut bytes = [0; 18];
    server.platform.random.fill(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

fn refusal(why: UploadRefusal) -> MatrixError {
    match why {
        UploadRefusal::Unknown => unknown(),
        UploadRefusal::NotTheirs => MatrixError::forbidden("This media ID was made by somebody else."),
        UploadRefusal::Taken => {
            let message = "This media ID has its content already, or it is being uploaded.";
            MatrixError::new(StatusCode::CONFLICT, "M_CANNOT_OVERWRITE_MEDIA", message)
        }
        UploadRefusal::Quota => MatrixError::forbidden("This upload would exceed your upload quota."),
        UploadRefusal::TooManyAwaited => {
            let mut error = MatrixError::limit_exceeded(60_000);
            error.message = "Too many media IDs of yours await their content.".to_owned();
            error
        }
    }
}
