//! Media: what local users upload, and what is shown of it. Bytes go from the network into the store and from there into the
//! network; what is known of them is in the database ([`crate::store::media`]).

mod metadata;
mod motion;
pub mod parts;
pub mod pixels;
pub mod serving;
pub mod thumbnails;
pub mod tidying;
pub mod uploading;
mod webp;
mod webp_partitions;
mod webp_tables;

use std::rc::Rc;

use http::StatusCode;

use crate::{
    error::MatrixError,
    platform::{
        Clock,
        media::{MediaError, MediaStore},
    },
    server::Server,
    store::media::{LocalMedia, MediaRow},
};

/// For how long somebody waits for media to be uploaded who does not say, and at most, in milliseconds.
const WAIT_MS: (u32, u32) = (20_000, 60_000);
/// The first pause between two looks, and the longest, in milliseconds.
const PAUSE_MS: (u32, u32) = (250, 2_000);

/// What `take` gives, which is asked until it does, with a pause between two looks; `None` where nothing came of it for so long.
async fn when_there_is_room<T>(
    clock: &dyn Clock,
    longest_ms: u32,
    pause_ms: u32,
    mut take: impl FnMut(i64) -> Option<T>,
) -> Option<T> {
    let begun = clock.now_ms();
    loop {
        let now = clock.now_ms();
        if let Some(taken) = take(now) {
            return Some(taken);
        }
        if now - begun >= i64::from(longest_ms) {
            return None;
        }
        clock.sleep(pause_ms).await;
    }
}

/// Media whose bytes are in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Under which key.
    pub key: String,
    /// Tells these bytes from all that were ever kept under the same key.
    pub version: String,
    /// When they were fetched from another server; `None` for this one's own.
    pub fetched_ts: Option<i64>,
    /// What is known of them.
    pub row: MediaRow,
}

impl Held {
    /// How many bytes.
    pub fn size(&self) -> u64 {
        u64::try_from(self.row.size).unwrap_or_default()
    }
}

/// Where the bytes are.
///
/// # Errors
/// 501 where the deployment has no place for media.
pub fn store(server: &Server) -> Result<Rc<dyn MediaStore>, MatrixError> {
    server.platform.media.clone().ok_or_else(|| {
        let message = "This server keeps no media: no bucket is bound to it as MEDIA.";
        MatrixError::new(StatusCode::NOT_IMPLEMENTED, "M_UNKNOWN", message)
    })
}

/// Why media that are held are not given.
#[derive(Debug)]
pub enum NotGiven {
    /// The bytes are gone from the store.
    Gone,
    /// The file is too large to make a thumbnail of.
    TooLarge,
    /// All else, as it is answered.
    Refused(MatrixError),
}

impl<E: Into<MatrixError>> From<E> for NotGiven {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

impl NotGiven {
    /// The error that whoever asked is answered with.
    pub fn answer(self) -> MatrixError {
        match self {
            Self::Gone => unknown(),
            Self::TooLarge => MatrixError::too_large("This is too large to make a thumbnail of."),
            Self::Refused(error) => error,
        }
    }
}

/// 404: no such media.
pub fn unknown() -> MatrixError {
    MatrixError::not_found("There is no such media.")
}

/// For how long to wait for media to be uploaded, as the parameter `timeout_ms` says.
///
/// # Errors
/// 400 for what is no number.
pub fn patience(timeout_ms: Option<&str>) -> Result<u32, MatrixError> {
    let Some(given) = timeout_ms else { return Ok(WAIT_MS.0) };
    let ms: u64 = given.parse().map_err(|_| MatrixError::invalid_param("`timeout_ms` must be a number."))?;
    Ok(u32::try_from(ms).unwrap_or(u32::MAX).min(WAIT_MS.1))
}

/// Media of this server. Where they are still awaited, waits for them so long.
///
/// # Errors
/// 404 `M_NOT_FOUND`, 504 `M_NOT_YET_UPLOADED`.
pub async fn local(server: &Server, media_id: &str, patience_ms: u32) -> Result<Held, MatrixError> {
    let clock = &server.platform.clock;
    let until = clock.now_ms() + i64::from(patience_ms);
    let mut pause = PAUSE_MS.0;
    loop {
        let now = clock.now_ms();
        match server.store.local_media(media_id, now).await? {
            None => return Err(unknown()),
            Some(LocalMedia::Here(row)) => {
                return Ok(Held { key: local_key(media_id), version: media_id.to_owned(), fetched_ts: None, row });
            }
            Some(LocalMedia::Awaited) if now >= until => return Err(MatrixError::not_yet_uploaded()),
            Some(LocalMedia::Awaited) => {
                clock.sleep(pause.min(u32::try_from(until - now).unwrap_or(pause))).await;
                pause = (pause * 2).min(PAUSE_MS.1);
            }
        }
    }
}

/// The key of this server's media.
pub fn local_key(media_id: &str) -> String {
    format!("local/{media_id}")
}

impl From<MediaError> for MatrixError {
    fn from(error: MediaError) -> Self {
        match error {
            MediaError::TooLong => Self::too_large("This is larger than what this server keeps."),
            MediaError::Broken => Self::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", "The upload was interrupted."),
            MediaError::NoRoom | MediaError::GaveWay => Self::too_busy(),
            MediaError::Unavailable(_) => {
                Self::unavailable("The media store could not be used; try again.").because(&error)
            }
        }
    }
}
