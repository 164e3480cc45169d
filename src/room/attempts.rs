//! Committing in spite of others: whoever loses a race reads again, judges again and tries again.

use super::{RoomError, Rooms};
use crate::store::commit::Committed;

/// How many times a commit that lost to another one is tried again before the caller is told to come back.
const ATTEMPTS: usize = 30;

/// The longest pause before the second attempt, in milliseconds; it doubles with each further one. About what a commit
/// takes.
const FIRST_PAUSE_MS: u32 = 8;

/// The longest pause before any attempt, in milliseconds. Short, because an attempt that has lost often must not come less often than
/// those that have just arrived.
const LONGEST_PAUSE_MS: u32 = 250;

impl Rooms {
    /// Calls `attempt`, which reads, judges and commits, until its commit takes effect; returns what it returned.
    ///
    /// # Errors
    /// [`RoomError::Busy`] when other commits came first again and again, and whatever `attempt` fails with.
    pub(super) async fn until_committed<T>(
        &self,
        mut attempt: impl AsyncFnMut() -> Result<Committed<T>, RoomError>,
    ) -> Result<T, RoomError> {
        for number in 0..ATTEMPTS {
            self.give_way(number).await;
            if let Committed::Done(value) = attempt().await? {
                return Ok(value);
            }
        }
        Err(RoomError::Busy)
    }

    /// Waits before another attempt, at random and longer each time. Without it those who lose to each other meet again
    /// at once, and the slowest of them, a transaction of many PDUs, loses for ever.
    async fn give_way(&self, attempt: usize) {
        let Some(doublings) = attempt.checked_sub(1) else { return };
        let doublings = u32::try_from(doublings).unwrap_or(u32::MAX);
        let longest = FIRST_PAUSE_MS.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST_PAUSE_MS);
        let mut random = [0; 4];
        self.random.fill(&mut random);
        self.clock.sleep(u32::from_le_bytes(random) % (longest + 1)).await;
    }
}
