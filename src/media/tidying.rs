//! Forgetting media that nobody asks for, and what is left of uploads that never came to an end.

use super::{local_key, store, thumbnails};
use crate::{
    error::MatrixError,
    platform::{Budget, DAY_MS, media::MediaStore},
    server::Server,
    store::remote_media::{Forgettable, RemoteName},
};

/// How often a request looks for 100 files to forget: where all of them are tiny, whoever comes next goes on.
const MOST_LOOKS: usize = 10;

/// Does all of it that the calls to the database allow. The bytes go first: what is then cut off is done again the next time. Whether
/// nothing is left.
///
/// # Errors
/// Where the database or the store fails.
pub async fn tidy(server: &Server, budget: &Budget) -> Result<bool, MatrixError> {
    let Some(bucket) = server.platform.media.clone() else { return Ok(true) };
    let now = server.platform.clock.now_ms();
    loop {
        if budget.is_spent() {
            return Ok(false);
        }
        let over = server.store.uploads_that_are_over(now).await?;
        if over.is_empty() {
            break;
        }
        bucket.delete(over.iter().map(|media_id| local_key(media_id)).collect()).await?;
        server.store.forget_uploads(&over, now).await?;
    }
    let Some(days) = server.config.media.remote_days else { return Ok(true) };
    forget_remote(server, &*bucket, budget, now - i64::from(days) * DAY_MS).await
}

async fn forget_remote(
    server: &Server,
    bucket: &dyn MediaStore,
    budget: &Budget,
    before: i64,
) -> Result<bool, MatrixError> {
    while !budget.is_spent() {
        let unused = server.store.unused_remote_media(before, server.platform.clock.now_ms()).await?;
        if unused.is_empty() {
            return Ok(true);
        }
        let names: Vec<RemoteName> = unused.into_iter().map(|unused| unused.name).collect();
        forget(server, bucket, &names, before).await?;
    }
    Ok(false)
}

/// Forgets so many bytes of other servers' media, or as many as a request may spend time on, those first that nobody has asked for
/// for longest.
///
/// # Errors
/// Where the database or the store fails.
pub async fn make_room(server: &Server, bytes: i64) -> Result<(), MatrixError> {
    let bucket = store(server)?;
    let mut needed = bytes;
    for _ in 0..MOST_LOOKS {
        if needed <= 0 {
            break;
        }
        let now = server.platform.clock.now_ms();
        let unused = server.store.unused_kept_media(now + 1, now).await?;
        let mut names = Vec::new();
        let mut last_ts = 0;
        for Forgettable { name, size, last_access_ts } in unused {
            if needed <= 0 {
                break;
            }
            needed -= size;
            last_ts = last_access_ts;
            names.push(name);
        }
        if names.is_empty() {
            break;
        }
        // What somebody asks for in between stays known, and its bytes are fetched anew.
        forget(server, &*bucket, &names, last_ts + 1).await?;
    }
    Ok(())
}

/// Forgets those of these files that nobody has asked for since `before`, and their thumbnails. The bytes go first.
async fn forget(
    server: &Server,
    bucket: &dyn MediaStore,
    names: &[RemoteName],
    before: i64,
) -> Result<(), MatrixError> {
    // The store takes a thousand keys at a time.
    let keys = names.iter().map(remote_key);
    let keys = keys.flat_map(|key| thumbnails::keys(&key).chain([key.clone()]).collect::<Vec<_>>());
    bucket.delete(keys.collect()).await?;
    server.store.forget_remote_media(names, before, server.platform.clock.now_ms()).await?;
    Ok(())
}

/// The key of another server's media.
pub fn remote_key(name: &RemoteName) -> String {
    format!("remote/{}/{}", name.origin, name.media_id)
}
