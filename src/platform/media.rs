//! Bytes that come piece by piece, and where media are kept: files of any size, which are never in memory as a whole.

use std::{any::Any, future};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

use crate::log::Reason;

/// Why a body could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// It is longer than the limit.
    TooLong,
    /// It broke off.
    Broken,
}

/// Bytes that come piece by piece.
pub trait ByteStream {
    /// The next piece; `None` at the end.
    fn next(&mut self) -> LocalBoxFuture<'_, Option<Result<Bytes, BodyError>>>;

    /// The stream as whoever made it knows it: what the platform made it can pass on without looking at it.
    fn as_any(&self) -> &dyn Any;

    /// As [`ByteStream::as_any`], to keep it.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

/// A stream of one piece, which is in memory already.
#[derive(Debug)]
pub struct Whole(Option<Bytes>);

impl Whole {
    /// A stream of these bytes.
    pub fn new(bytes: Bytes) -> Self {
        Self(Some(bytes))
    }

    /// All that nobody has read.
    pub fn into_bytes(self) -> Bytes {
        self.0.unwrap_or_default()
    }
}

impl ByteStream for Whole {
    fn next(&mut self) -> LocalBoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(future::ready(self.0.take().filter(|bytes| !bytes.is_empty()).map(Ok)))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// What is to be kept.
pub struct NewObject {
    /// Its bytes.
    pub stream: Box<dyn ByteStream>,
    /// How many they are, where that is known. What comes is held to it.
    pub length: Option<u64>,
    /// How many they may be.
    pub limit: u64,
    /// What they are.
    pub content_type: String,
    /// Who sends them, a local user or another server; empty for this one itself.
    pub sender: String,
}

/// What was kept.
pub struct StoredObject {
    /// Its bytes, or those of the range that was asked for.
    pub stream: Box<dyn ByteStream>,
    /// How many the whole has.
    pub size: u64,
    /// What they are.
    pub content_type: String,
}

/// A part of an object that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// Where media are kept: objects by their keys.
pub trait MediaStore {
    /// Keeps an object, whole or not at all, in the place of one with the same key. Answers with its size.
    fn put(&self, key: String, object: NewObject) -> LocalBoxFuture<'_, Result<u64, MediaError>>;

    /// The object with this key, or a range of it that lies within; `None` where there is none.
    fn get(
        &self,
        key: String,
        range: Option<ByteRange>,
    ) -> LocalBoxFuture<'_, Result<Option<StoredObject>, MediaError>>;

    /// Deletes objects, at most 1,000; those that there are not do no harm.
    fn delete(&self, keys: Vec<String>) -> LocalBoxFuture<'_, Result<(), MediaError>>;
}

/// Why an object was not kept or not had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// It is longer than its limit.
    #[error("the object is too long")]
    TooLong,
    /// What brought it broke off, or brought another number of bytes than was said.
    #[error("the object broke off")]
    Broken,
    /// There is no room now for what must be in memory of it.
    #[error("no room beside what else is in work")]
    NoRoom,
    /// It had to give way to others when much of it may have come.
    #[error("the object gave way to others")]
    GaveWay,
    /// The store failed.
    #[error("the media store fails: {0}")]
    Unavailable(String),
}

impl Reason for MediaError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

impl From<BodyError> for MediaError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLong => Self::TooLong,
            BodyError::Broken => Self::Broken,
        }
    }
}

/// All of a stream, where it is no longer than `limit`.
///
/// # Errors
/// Where it is longer, or breaks off.
pub async fn read_all(stream: &mut dyn ByteStream, limit: usize) -> Result<Vec<u8>, BodyError> {
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        if bytes.len() + piece.len() > limit {
            return Err(BodyError::TooLong);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
