//! How long it is until what other servers did not give is looked for again, and for how long that goes on.

use crate::platform::DAY_MS;

/// The pause after the first attempt, and the longest, in milliseconds.
pub(super) const BOUNDS_MS: (i64, i64) = (15_000, 60 * 60 * 1_000);

/// For so long, in milliseconds, what is lacking is looked for.
pub(super) const GIVE_UP_AFTER_MS: i64 = 2 * DAY_MS;

/// The pause after so many attempts, in milliseconds: it grows with their square, up to the longest.
pub(super) fn after(attempts: i64) -> i64 {
    let (first, longest) = BOUNDS_MS;
    first.saturating_mul(attempts.saturating_mul(attempts)).min(longest)
}
