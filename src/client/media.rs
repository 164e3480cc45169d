//! Media (Client-Server API, "Content repository").

use http::{StatusCode, header};
use serde_json::json;

use super::{auth, throttle};
use crate::{
    admission::Kind,
    error::MatrixError,
    federation::outbound::media::{self as remote, Found},
    matrix::{
        identifiers::{ServerName, UserId},
        media::{MAX_FILENAME, content_type, is_media_id},
    },
    media::{
        self, Held, NotGiven, serving, thumbnails,
        uploading::{self, NewFile, Target},
    },
    router::{Answer, Call, Handled, Streamed, ok},
    server::Server,
    store::{media::LocalMedia, remote_media::RemoteName},
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

/// The endpoints by which media were had without a token. Nothing here is older than the freeze of these; of what is still to be
/// uploaded they say so, without waiting for it.
pub(super) async fn frozen(server: &Server, call: &Call) -> Handled {
    let (origin, media_id) = (call.parameter(0), call.parameter(1));
    if origin == server.config.server_name.as_str() && is_media_id(media_id) {
        let found = server.store.local_media(media_id, server.platform.clock.now_ms()).await?;
        if matches!(found, Some(LocalMedia::Awaited)) {
            return Err(MatrixError::not_yet_uploaded());
        }
    }
    Err(MatrixError::not_found("Media is only served to logged-in users: use /_matrix/client/v1/media."))
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}`
pub(super) async fn download(server: &Server, call: &Call) -> Streamed {
    give(server, call, None).await
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}`
pub(super) async fn download_as(server: &Server, call: &Call) -> Streamed {
    give(server, call, Some(call.parameter(2)).filter(|name| name.len() <= MAX_FILENAME)).await
}

/// `GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}`
pub(super) async fn thumbnail(server: &Server, call: &Call) -> Streamed {
    let asked = Asked::of(server, call).await?;
    let wanted = thumbnails::wanted(call)?;
    let headers = call.request.headers();
    let answer = asked.give(server, async |held| serving::thumbnail(server, held, wanted, headers).await).await;
    answer.map_err(|why| {
        // What another server has is not ours to have made smaller.
        let is_theirs = matches!(why, NotGiven::TooLarge) && asked.name.origin != server.config.server_name;
        let mut error = why.answer();
        if is_theirs {
            error.status = StatusCode::BAD_GATEWAY;
        }
        error
    })
}

async fn give(server: &Server, call: &Call, filename: Option<&str>) -> Streamed {
    let asked = Asked::of(server, call).await?;
    let headers = call.request.headers();
    let answer = asked.give(server, async |held| serving::answer(server, held, filename, headers).await).await;
    answer.map_err(NotGiven::answer)
}

/// Media that somebody asks for who is logged in.
struct Asked {
    user: UserId,
    name: RemoteName,
    patience: u32,
}

impl Asked {
    /// What the path names.
    async fn of(server: &Server, call: &Call) -> Result<Self, MatrixError> {
        let user = auth::session(server, call).await?.user;
        let origin = ServerName::parse(call.parameter(0));
        let origin = origin.map_err(|_| MatrixError::invalid_param("Invalid server name."))?;
        let media_id = call.parameter(1).to_owned();
        if !is_media_id(&media_id) {
            return Err(MatrixError::invalid_param("Invalid media ID."));
        }
        let patience = media::patience(call.query("timeout_ms").as_deref())?;
        Ok(Self { user, name: RemoteName { origin, media_id }, patience })
    }

    /// What `serve` makes of the media.
    async fn give(
        &self,
        server: &Server,
        serve: impl AsyncFn(&Held) -> Result<Answer, NotGiven>,
    ) -> Result<Answer, NotGiven> {
        let held = self.find(server).await?;
        match serve(&held).await {
            Err(NotGiven::Gone) => {
                // The bytes have gone from the store, which may lose what can be had again.
                serve(&self.find_anew(server, &held).await?).await
            }
            answer => answer,
        }
    }

    /// The media, fetched where they are another server's.
    async fn find(&self, server: &Server) -> Result<Held, MatrixError> {
        if self.name.origin == server.config.server_name {
            return media::local(server, &self.name.media_id, self.patience).await;
        }
        match remote::find(server, &self.name).await? {
            Found::Here(held) => Ok(held),
            Found::Missing => {
                self.count(server)?;
                remote::fetch(server, &self.name, &self.user).await
            }
        }
    }

    /// The same, where the bytes have gone that were held.
    async fn find_anew(&self, server: &Server, held: &Held) -> Result<Held, MatrixError> {
        let lost = held.fetched_ts.ok_or_else(media::unknown)?;
        self.count(server)?;
        remote::fetch_anew(server, &self.name, lost, &self.user).await
    }

    /// Counts a fetch against who asks for it.
    fn count(&self, server: &Server) -> Result<(), MatrixError> {
        throttle::by_user(server, Kind::RemoteMedia, server.config.rates.remote_media, &self.user)
    }
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
