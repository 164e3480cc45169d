//! The protocol as pure functions: no I/O, no clock, no async.

pub mod auth_events;
pub mod auth_rules;
pub mod base64;
pub mod event;
pub mod hashes;
pub mod identifiers;
pub mod json;
pub mod keys;
pub mod power_levels;
pub mod redaction;
pub mod room_version;
pub mod server_name;
pub mod signing;
pub mod state_resolution;
pub mod state_trie;
pub mod x_matrix;
