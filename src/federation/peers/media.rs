//! Media of other servers (Server-Server API, "Content Repository"), as they come: a head, then bytes piece by piece.

use std::any::Any;

use bytes::Bytes;
use http::{Method, StatusCode, header};

use super::requests::{Call, FederationClient, Limits, RequestError, path, with_query};
use crate::{
    matrix::{
        identifiers::ServerName,
        media,
        multipart::{ContentHead, Multipart, MultipartError, Piece},
    },
    platform::{
        LocalBoxFuture, StreamedResponse,
        media::{BodyError, ByteStream},
    },
};

const V1: &str = "/_matrix/federation/v1";
/// As media were had before there was an endpoint for servers; many still answer nothing else.
const LEGACY: &str = "/_matrix/media/v3";

/// Until the head of an answer is there, with the time that the server may wait for an upload.
const LIMITS: Limits = Limits { timeout_ms: 30_000, max_response_bytes: 128 * 1024 * 1024 };
/// For how long a server should wait for an upload.
const TIMEOUT_MS: &str = "20000";
/// How many addresses one after the other may lead to the bytes.
const MAX_REDIRECTS: usize = 3;
/// How many bytes of a multipart may be other than the file: boundaries, two heads, and the JSON before it.
const MAX_AROUND: u64 = 64 * 1024;

/// A file of another server.
pub struct RemoteFile {
    /// What it is said to be.
    pub content_type: String,
    /// How it is called.
    pub filename: Option<String>,
    /// Its bytes.
    pub stream: Box<dyn ByteStream>,
    /// How many they are, where that is known.
    pub length: Option<u64>,
    /// How many they are at least, where that follows from what they come in.
    pub at_least: Option<u64>,
}

impl FederationClient {
    /// `GET /_matrix/federation/v1/media/download/{mediaId}`, or where the server has no such endpoint, the one that clients used.
    ///
    /// # Errors
    /// Where the server cannot be reached, refuses, or answers something else.
    pub async fn download_media(&self, server: &ServerName, media_id: &str) -> Result<RemoteFile, RequestError> {
        let query = [("timeout_ms", TIMEOUT_MS)];
        let target = with_query(path(V1, &["media", "download", media_id]), query);
        let call = Call { method: Method::GET, target, body: None, limits: LIMITS };
        match self.open_file(server, &call, true).await {
            Ok(response) => self.content_of(response).await,
            Err(error) if error.is_unknown_endpoint() => {
                let query = [("allow_remote", "false"), ("allow_redirect", "true"), ("timeout_ms", TIMEOUT_MS)];
                let target = with_query(path(LEGACY, &["download", server.as_str(), media_id]), query);
                let call = Call { method: Method::GET, target, body: None, limits: LIMITS };
                let response = self.open_file(server, &call, false).await?;
                self.followed(response).await
            }
            Err(error) => Err(error),
        }
    }

    /// The file in a `multipart/mixed`, or at the address that stands in its place.
    async fn content_of(&self, response: StreamedResponse) -> Result<RemoteFile, RequestError> {
        let unusable = |error: MultipartError| RequestError::BadResponse(error.to_string());
        if response.status() != StatusCode::OK {
            return Err(RequestError::BadResponse(format!("status {}", response.status().as_u16())));
        }
        let content_type = text(&response, header::CONTENT_TYPE).unwrap_or_default();
        let mut parser = Multipart::new(&content_type).map_err(unusable)?;
        let announced = length(&response);
        let mut stream = response.into_body();
        let head = loop {
            match parser.piece().map_err(unusable)? {
                Some(Piece::Head(head)) => break head,
                Some(_) => return Err(unusable(MultipartError::Malformed)),
                None => match stream.next().await {
                    Some(Ok(bytes)) => parser.receive(&bytes),
                    _ => return Err(unusable(MultipartError::Malformed)),
                },
            }
        };
        let ContentHead { content_type, disposition, location } = head;
        if let Some(location) = location {
            let response = self.open_url(&location, LIMITS).await?;
            return self.followed(response).await;
        }
        Ok(RemoteFile {
            content_type: media::content_type(content_type.as_deref()).to_owned(),
            filename: disposition.as_deref().and_then(media::filename),
            stream: Box::new(Content { parser, stream }),
            length: None,
            at_least: announced.map(|bytes| bytes.saturating_sub(MAX_AROUND)),
        })
    }

    /// The file that a response is, or that the addresses lead to by which it is answered.
    async fn followed(&self, mut response: StreamedResponse) -> Result<RemoteFile, RequestError> {
        for _ in 0..MAX_REDIRECTS {
            if response.status() == StatusCode::OK {
                break;
            }
            let location = text(&response, header::LOCATION);
            let location = location.ok_or_else(|| RequestError::BadResponse("a redirect to nowhere".to_owned()))?;
            response = self.open_url(&location, LIMITS).await?;
        }
        if response.status() != StatusCode::OK {
            return Err(RequestError::BadResponse("too many redirects".to_owned()));
        }
        Ok(RemoteFile {
            content_type: media::content_type(text(&response, header::CONTENT_TYPE).as_deref()).to_owned(),
            filename: text(&response, header::CONTENT_DISPOSITION).as_deref().and_then(media::filename),
            length: length(&response),
            at_least: None,
            stream: response.into_body(),
        })
    }
}

/// How long a body is, where its head says so.
fn length(response: &StreamedResponse) -> Option<u64> {
    // What was compressed on the way is longer than it says.
    let is_plain = response.headers().get(header::CONTENT_ENCODING).is_none();
    text(response, header::CONTENT_LENGTH).filter(|_| is_plain)?.parse().ok()
}

fn text(response: &StreamedResponse, name: header::HeaderName) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// The bytes of the second part.
struct Content {
    parser: Multipart,
    stream: Box<dyn ByteStream>,
}

impl ByteStream for Content {
    fn next(&mut self) -> LocalBoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async {
            loop {
                match self.parser.piece() {
                    Ok(Some(Piece::Bytes(bytes))) => return Some(Ok(bytes.into())),
                    Ok(Some(Piece::End)) => return None,
                    Ok(Some(Piece::Head(_))) | Err(_) => return Some(Err(BodyError::Broken)),
                    Ok(None) => match self.stream.next().await {
                        Some(Ok(bytes)) => self.parser.receive(&bytes),
                        // Without its last boundary it is not whole.
                        Some(Err(_)) | None => return Some(Err(BodyError::Broken)),
                    },
                }
            }
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
