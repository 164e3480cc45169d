//! Tables with a fixed number of places, for what strangers can make us remember and what can be had again.
//!
//! Where something is kept follows from a hash of its name; what comes later to the same place takes it over. Such a table
//! stays as it is under any flood, without a count and without an index. A row says whose it is, so that one of another
//! name at the same place is not taken for it.

use sha2::{Digest, Sha256};

/// How many places a name has that holds several things.
pub(super) const EACH: i64 = 8;

/// The place of `name` among so many.
pub fn place(name: &str, places: i64) -> i64 {
    let hash = Sha256::digest(name);
    // Of 48 bits, so that it is an integer for the database too.
    let number = hash.iter().take(6).fold(0, |number, byte| number << 8 | i64::from(*byte));
    number % places.max(1)
}

/// The first of the [`EACH`] places of `name`, where there are so many names.
pub(super) fn first_place(name: &str, names: i64) -> i64 {
    place(name, names) * EACH
}

/// The place of `item` among those of `name`.
pub(super) fn place_within(name: &str, item: &str, names: i64) -> i64 {
    first_place(name, names) + place(item, EACH)
}
