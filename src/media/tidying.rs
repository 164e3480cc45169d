//! Forgetting media that nobody asks for, and what is left of uploads that never came to an end.

use super::{local_key, thumbnails};
use crate::{
    error::MatrixError,
    platform::{Budget, media::MediaStore},
    server::Server,
    store::remote_media::RemoteName,
};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// Does all of it that the calls to the database allow. The bytes go first: what is then cut off is done again the next time.
///
/// # Errors
/// Where the database or the store fails.
pub async fn tidy(server: &Server, budget: &Budget) -> Result<(), MatrixError> {
    let Some(bucket) = server.platform.media.clone() else { return Ok(()) };
    let now = server.platform.clock.now_ms();
    while !budget.is_spent() {
        let over = server.store.uploads_that_are_over(now).await?;
        if over.is_empty() {
            break;
        }
        bucket.delete(over.iter().map(|media_id| local_key(media_id)).collect()).await?;
        server.store.forget_uploads(&over, now).await?;
    }
    let Some(days) = server.config.media.remote_days else { return Ok(()) };
    forget_remote(server, &*bucket, budget, now - i64::from(days) * DAY_MS).await
}

async fn forget_remote(
    server: &Server,
    bucket: &dyn MediaStore,
    budget: &Budget,
    before: i64,
) -> Result<(), MatrixError> {
    while !budget.is_spent() {
        let unused = server.store.unused_remote_media(before).await?;
        if unused.is_empty() {
            break;
        }
        // Of each file and its thumbnails: the store takes a thousand keys at a time.
        let keys = unused
            .iter()
            .map(remote_key)
            .flat_map(|key| thumbnails::keys(&key).chain([key.clone()]).collect::<Vec<_>>());
        bucket.delete(keys.collect()).await?;
        server.store.forget_remote_media(&unused, before).await?;
    }
    Ok(())
}

/// The key of another server's media.
pub fn remote_key(name: &RemoteName) -> String {
    format!("remote/{}/{}", name.origin, name.media_id)
}
