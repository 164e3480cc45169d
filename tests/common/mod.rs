//! What several test binaries share.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

pub mod contract;
pub mod devices;
pub mod drafts;
pub mod generator;
pub mod homeserver;
pub mod internet;
pub mod invariants;
pub mod junk;
pub mod large_room;
pub mod media;
pub mod network;
pub mod peer;
pub mod rooms;
pub mod ruma;
pub mod shrink;
pub mod signed;
pub mod sqlite;
pub mod synapse;
pub mod webp;

/// How many, or from which seed on: the number that an environment variable gives.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}
