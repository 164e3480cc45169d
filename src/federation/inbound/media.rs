//! Media of this server's users, for any other server (Server-Server API, "Content Repository"): a part with JSON, then one with
//! the bytes.

use http::{HeaderValue, Response, header};

use super::authentication::Signed;
use crate::{
    error::MatrixError,
    matrix::media::is_media_id,
    media::{self, Held, NotGiven, serving, thumbnails},
    router::{Body, Streamed, StreamedBody},
    server::Server,
};

/// `GET /_matrix/federation/v1/media/download/{mediaId}`
pub(super) async fn download(server: &Server, request: Signed) -> Streamed {
    let held = find(server, &request).await?;
    let (head, body) = serving::part_of_multipart(server, &held).await.map_err(NotGiven::answer)?;
    Ok(multipart(server, &head, body))
}

/// `GET /_matrix/federation/v1/media/thumbnail/{mediaId}`
pub(super) async fn thumbnail(server: &Server, request: Signed) -> Streamed {
    let wanted = thumbnails::wanted(&request.call)?;
    let held = find(server, &request).await?;
    let (head, body) = serving::thumbnail_part(server, &held, wanted).await.map_err(NotGiven::answer)?;
    Ok(multipart(server, &head, body))
}

/// The file that the path names.
async fn find(server: &Server, request: &Signed) -> Result<Held, MatrixError> {
    let media_id = request.parameter(0);
    if !is_media_id(media_id) {
        return Err(MatrixError::invalid_param("Invalid media ID."));
    }
    let patience = media::patience(request.call.query("timeout_ms").as_deref())?;
    media::local(server, media_id, patience).await
}

/// `body` as the second part, under `head`.
fn multipart(server: &Server, head: &str, body: StreamedBody) -> crate::router::Answer {
    // 128 random bits: no file holds them.
    let mut bytes = [0; 16];
    server.platform.random.fill(&mut bytes);
    let boundary: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let before = format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n{head}").into();
    let after = format!("\r\n--{boundary}--\r\n").into();
    let mut response = Response::new(Body::Streamed(StreamedBody { before, after, ..body }));
    let content_type = HeaderValue::from_str(&format!("multipart/mixed; boundary={boundary}"));
    let content_type = content_type.unwrap_or(HeaderValue::from_static("multipart/mixed"));
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
