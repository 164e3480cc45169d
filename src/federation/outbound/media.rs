//! Other servers' media (Server-Server API, "Content Repository"): fetched when somebody here asks for them, by one at a time,
//! and kept.

use futures_util::future::{Either, select};
use http::StatusCode;

use crate::{
    error::MatrixError,
    federation::peers::{media::RemoteFile, requests::RequestError},
    log::LogRecord,
    matrix::identifiers::UserId,
    media::{
        Held, store,
        tidying::{make_room, remote_key},
        unknown,
    },
    platform::{
        DAY_MS,
        media::{MediaError, NewObject},
    },
    server::Server,
    store::{
        media::MediaRow,
        remote_media::{Claim, Claimant, Failure, RemoteMedia, RemoteName},
    },
};

/// How long a fetch may take, and for how long nobody else begins one: longer, so that two never write at once.
const LONGEST_MS: u32 = 170_000;
const LEASE_MS: i64 = 180_000;
/// For so long nobody asks again for what could not be had, and for what is still being uploaded.
const PAUSE_MS: i64 = 30_000;
const SHORT_PAUSE_MS: i64 = 2_000;
/// The same for what is too large: files do not change.
const LONG_PAUSE_MS: i64 = 60 * 60 * 1_000;
/// For so long somebody waits who wants what another one fetches, in milliseconds.
const WAIT_MS: i64 = 90_000;
/// The first pause between two looks, and the longest, in milliseconds.
const LOOK_MS: (u32, u32) = (250, 2_000);
/// What counts as fetched of a file that broke off, in bytes, or all that it may have if that is less.
const BROKEN_OFF: u64 = 1024 * 1024;

/// Whether media have to be fetched before they can be shown.
pub enum Found {
    /// They are here.
    Here(Held),
    /// They are not; who wants them must fetch them, or wait for who does.
    Missing,
}

/// Media of another server that are here, or could not be had a moment ago.
///
/// # Errors
/// The reason why they could not be had.
pub async fn find(server: &Server, name: &RemoteName) -> Result<Found, MatrixError> {
    store(server)?;
    let now = server.platform.clock.now_ms();
    match server.store.remote_media(name, now).await? {
        RemoteMedia::Here { row, fetched_ts, last_access_ts } => {
            // That somebody asks for it is noted once a day.
            if now - last_access_ts >= DAY_MS {
                server.store.touch_remote_media(name, now).await?;
            }
            Ok(Found::Here(held(name, row, fetched_ts)))
        }
        RemoteMedia::Failed(failure) => Err(refusal(failure)),
        RemoteMedia::OnTheWay | RemoteMedia::Lacking => Ok(Found::Missing),
    }
}

/// Fetches media of another server for a local user, or waits until whoever is fetching it has done so.
///
/// # Errors
/// 404 `M_NOT_FOUND`, 504 `M_NOT_YET_UPLOADED` as their server says, 502 `M_TOO_LARGE` for what is larger than what is kept,
/// 502 where the server does not give them, 429 where the user has had as much fetched as they may, 503 where there is no room.
pub async fn fetch(server: &Server, name: &RemoteName, user: &UserId) -> Result<Held, MatrixError> {
    let until = server.platform.clock.now_ms() + WAIT_MS;
    loop {
        if let Some(lease) = claim(server, name, user).await? {
            let (at, named) = (server.clone(), name.clone());
            // Who asked may go away; others may wait for it by then.
            return server.platform.to_the_end(async move { fetch_claimed(&at, &named, lease).await }).await;
        }
        if let Some(held) = fetched_elsewhere(server, name, until).await? {
            return Ok(held);
        }
    }
}

/// Media that somebody else fetches; `None` where it is the caller's turn: they had no room, their isolate died, or the media were
/// forgotten since.
async fn fetched_elsewhere(server: &Server, name: &RemoteName, until: i64) -> Result<Option<Held>, MatrixError> {
    let mut pause = LOOK_MS.0;
    loop {
        let now = server.platform.clock.now_ms();
        match server.store.remote_media(name, now).await? {
            RemoteMedia::Here { row, fetched_ts, .. } => return Ok(Some(held(name, row, fetched_ts))),
            RemoteMedia::Failed(failure) => return Err(refusal(failure)),
            RemoteMedia::OnTheWay if now < until => {
                server.platform.clock.sleep(pause).await;
                pause = (pause * 2).min(LOOK_MS.1);
            }
            RemoteMedia::OnTheWay => return Err(refusal(Failure::Unreachable)),
            RemoteMedia::Lacking if now < until => return Ok(None),
            RemoteMedia::Lacking => return Err(MatrixError::too_busy()),
        }
    }
}

/// The same for media that are held, but whose bytes have gone from the store, which may lose what can be had again.
///
/// # Errors
/// As [`fetch`].
pub async fn fetch_anew(
    server: &Server,
    name: &RemoteName,
    fetched_ts: i64,
    user: &UserId,
) -> Result<Held, MatrixError> {
    server.store.lose_remote_media(name, fetched_ts).await?;
    fetch(server, name, user).await
}

/// Until when the caller may fetch media; `None` where somebody else does.
async fn claim(server: &Server, name: &RemoteName, user: &UserId) -> Result<Option<i64>, MatrixError> {
    let media = &server.config.media;
    let bytes = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let mut made_room = false;
    loop {
        let now = server.platform.clock.now_ms();
        let until = now + LEASE_MS;
        let claimant = Claimant {
            user_id: user.as_str(),
            now,
            until,
            max_size: bytes(media.max_size),
            quota: bytes(media.remote_quota),
            space: bytes(media.remote_space),
        };
        let wait_ms = match server.store.claim_remote_media(name, claimant).await? {
            Claim::Taken => return Ok(Some(until)),
            Claim::Elsewhere => return Ok(None),
            Claim::NoSpace(needed) if !made_room => {
                made_room = true;
                make_room(server, needed).await?;
                continue;
            }
            // On the next day more may be fetched.
            Claim::Quota => DAY_MS - now.rem_euclid(DAY_MS),
            Claim::Patience | Claim::NoSpace(_) => i64::from(LOOK_MS.1),
        };
        return Err(MatrixError::limit_exceeded(u32::try_from(wait_ms).unwrap_or(u32::MAX)));
    }
}

async fn fetch_claimed(server: &Server, name: &RemoteName, until: i64) -> Result<Held, MatrixError> {
    let fetching = Box::pin(into_the_store(server, name));
    let fetched = match select(fetching, server.platform.clock.sleep(LONGEST_MS)).await {
        Either::Left((fetched, _)) => fetched,
        Either::Right(_) => Err(Trouble::TooSlow),
    };
    let now = server.platform.clock.now_ms();
    match fetched {
        Ok(row) => {
            server.store.keep_remote_media(name, until, &row, now).await?;
            Ok(held(name, row, now))
        }
        Err(trouble) => {
            let failure = trouble.failure();
            let pause = match failure {
                // That is not their doing, and soon over.
                _ if matches!(trouble, Trouble::Store(MediaError::NoRoom)) => 0,
                Failure::NotYetUploaded => SHORT_PAUSE_MS,
                Failure::TooLarge => LONG_PAUSE_MS,
                Failure::NotFound | Failure::Unreachable | Failure::GaveWay => PAUSE_MS,
            };
            let most = server.config.media.max_size;
            let bytes = match &trouble {
                Trouble::Store(MediaError::TooLong) => most,
                // How much has come nobody knows. If it counted as all that might have, a server could use up a user's bytes with
                // answers that break off at once, which the user's client asks for by itself.
                Trouble::Store(MediaError::Broken | MediaError::GaveWay) | Trouble::TooSlow => most.min(BROKEN_OFF),
                Trouble::Of(_) | Trouble::Announced | Trouble::Store(_) => 0,
            };
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            server.store.fail_remote_media(name, until, now, (failure, now + pause), bytes).await?;
            if let Trouble::Store(error @ (MediaError::Unavailable(_) | MediaError::NoRoom)) = trouble {
                return Err(error.into());
            }
            if let (Failure::Unreachable, Trouble::Of(error)) = (failure, &trouble) {
                let record = LogRecord::warning("media cannot be fetched").destination(&name.origin);
                server.platform.log.write(record.because(error));
            }
            Err(refusal(failure))
        }
    }
}

/// Why media did not get into the store.
enum Trouble {
    /// Their server did not give them.
    Of(RequestError),
    /// They take too long.
    TooSlow,
    /// They are too large, as their server says before they come.
    Announced,
    /// The store did not take them.
    Store(MediaError),
}

impl Trouble {
    fn failure(&self) -> Failure {
        match self {
            Self::Announced | Self::Store(MediaError::TooLong) => Failure::TooLarge,
            Self::Of(RequestError::Status { errcode, .. }) if errcode == "M_NOT_YET_UPLOADED" => {
                Failure::NotYetUploaded
            }
            Self::Of(RequestError::Status { errcode, .. }) if errcode == "M_TOO_LARGE" => Failure::TooLarge,
            Self::Of(RequestError::Status { status, .. }) if *status == StatusCode::NOT_FOUND => Failure::NotFound,
            Self::Store(MediaError::GaveWay) => Failure::GaveWay,
            Self::Of(_) | Self::TooSlow | Self::Store(_) => Failure::Unreachable,
        }
    }
}

async fn into_the_store(server: &Server, name: &RemoteName) -> Result<MediaRow, Trouble> {
    let bucket = server.platform.media.clone();
    let bucket = bucket.ok_or_else(|| Trouble::Store(MediaError::Unavailable("there is none".to_owned())))?;
    let file = server.federation.download_media(&name.origin, &name.media_id).await.map_err(Trouble::Of)?;
    let RemoteFile { content_type, filename, stream, length, at_least } = file;
    let limit = server.config.media.max_size;
    if at_least.max(length).is_some_and(|bytes| bytes > limit) {
        return Err(Trouble::Announced);
    }
    let sender = name.origin.as_str().to_owned();
    let object = NewObject { stream, length, limit, content_type: content_type.clone(), sender };
    let size = bucket.put(remote_key(name), object).await.map_err(Trouble::Store)?;
    Ok(MediaRow { size: i64::try_from(size).unwrap_or(i64::MAX), content_type, filename })
}

fn held(name: &RemoteName, row: MediaRow, fetched_ts: i64) -> Held {
    // Fetched anew they may be others.
    Held {
        key: remote_key(name),
        version: format!("{}-{fetched_ts}", name.media_id),
        fetched_ts: Some(fetched_ts),
        row,
    }
}

fn refusal(failure: Failure) -> MatrixError {
    let gateway = |errcode, message: &str| MatrixError::new(StatusCode::BAD_GATEWAY, errcode, message);
    match failure {
        Failure::NotFound => unknown(),
        Failure::NotYetUploaded => MatrixError::not_yet_uploaded(),
        Failure::TooLarge => gateway("M_TOO_LARGE", "This is larger than what this server keeps."),
        Failure::GaveWay => MatrixError::too_busy(),
        Failure::Unreachable => gateway("M_UNKNOWN", "The media's own server does not give them."),
    }
}
