//! Media (Client-Server API, "Content repository").

use http::header;
use serde_json::json;

use super::{auth, throttle};
use crate::{
    admission::Kind,
    error::MatrixError,
    matrix::{
        identifiers::ServerName,
        media::{MAX_FILENAME, content_type, is_media_id},
    },
    media::{
        self, Held, serving,
        uploading::{self, NewFile, Target},
    },
    router::{Call, Handled, Streamed, ok},
    server::Server,
};

/// `POST /_matrix/media/v3/upload`
pub(super) async fn upload(server: &Server, call: &Call) -> Handled {
    let media_id = take(server, call, Target::New).await?;
    ok(&json!({ "content_uri": uri(server, &media_id) }))
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`
pub(super) async fn upload_to(server: &Server, call: &Call) -> Handled {
    let (origin, media_id) = (call.parameter(0), call.parameter(1));
    // Who asks is found out first; whose ID it is, then.
    let target = if origin == server.config.server_name.as_str() { media_id } else { "" };
    take(server, call, Target::Reserved(target)).await?;
    ok(&json!({}))
}

/// `POST /_matrix/media/v1/create`
pub(super) async fn create(server: &Server, call: &Call) -> Handled {
    let user = auth::session(server, call).await?.user;
    throttle::by_user(server, Kind::Upload, server.config.rates.upload, &user)?;
    let (media_id, until) = uploading::reserve(server, &user).await?;
    ok(&json!({ "content_uri": uri(server, &media_id), "unused_expires_at": until }))
}

/// `GET /_matrix/client/v1/media/config`
pub(super) async fn config(server: &Server, call: &Call) -> Handled {
    auth::session(server, call).await?;
    // Where there is no place for media, nothing is small enough.
    let size = if server.platform.media.is_some() { server.config.media.max_size } else { 0 };
    ok(&json!({ "m.upload.size": size }))
}

/// The endpoints by which media were had without a token. Nothing here is older than the freeze of these.
pub(super) async fn frozen(_: &Server, _: &Call) -> Handled {
    Err(MatrixError::not_found("Media are given to who is logged in: ask /_matrix/client/v1/media."))
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}`
pub(super) async fn download(server: &Server, call: &Call) -> Streamed {
    let held = find(server, call).await?;
    serving::answer(server, &held, None, call.request.headers()).await
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}`
pub(super) async fn download_as(server: &Server, call: &Call) -> Streamed {
    let held = find(server, call).await?;
    let filename = Some(call.parameter(2)).filter(|name| name.len() <= MAX_FILENAME);
    serving::answer(server, &held, filename, call.request.headers()).await
}

/// The media that the path names, for whoever is logged in.
async fn find(server: &Server, call: &Call) -> Result<Held, MatrixError> {
    auth::session(server, call).await?;
    let origin = ServerName::parse(call.parameter(0));
    let origin = origin.map_err(|_| MatrixError::invalid_param("This is no server name."))?;
    let media_id = call.parameter(1);
    if !is_media_id(media_id) {
        return Err(MatrixError::invalid_param("This is no media ID."));
    }
    let patience = media::patience(call.query("timeout_ms").as_deref())?;
    if origin != server.config.server_name {
        return Err(media::unknown());
    }
    media::local(server, media_id, patience).await
}

async fn take(server: &Server, call: &Call, target: Target<'_>) -> Result<String, MatrixError> {
    let user = auth::session(server, call).await?.user;
    throttle::by_user(server, Kind::Upload, server.config.rates.upload, &user)?;
    let filename = call.query("filename").filter(|name| !name.is_empty());
    if filename.as_ref().is_some_and(|name| name.len() > MAX_FILENAME) {
        return Err(MatrixError::invalid_param("The name of the file is too long."));
    }
    let given = call.request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type(given).to_owned();
    let (stream, length) = call.stream()?;
    uploading::upload(server, &user, target, NewFile { content_type, filename, stream, length }).await
}

fn uri(server: &Server, media_id: &str) -> String {
    format!("mxc://{}/{media_id}", server.config.server_name)
}
