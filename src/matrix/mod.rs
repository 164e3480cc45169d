//! The protocol as pure functions: no I/O, no clock, no async.
//!
//! - What everything is made of: [`json`] (and canonical JSON), [`json_stream`], [`base64`], [`identifiers`], [`server_name`].
//! - What differs between room versions, in one table: [`room_version`].
//! - Events: [`event`] (check 1 to 3 on receipt), its format, [`redaction`], [`hashes`]; what it relates to: [`relation`].
//! - Signatures: [`signing`], [`server_keys`] (whose, and valid when), [`x_matrix`] (on requests).
//! - End-to-end encryption, as far as a server checks it: [`device_keys`].
//! - Which events count: [`auth_events`], [`auth_rules`], [`power_levels`].
//! - What state decides: [`state_content`]; what of it is shown outside: [`stripped_state`];
//!   [`server_acl`] (which servers may take part, by [`glob`]s), [`history_visibility`], [`policy_server`], [`third_party_invite`].
//! - Showing other services who one is: [`openid`].
//! - State: [`state_trie`] (snapshots), [`state_resolution`].
//! - What servers tell each other besides events: [`edu`].
//! - Of which events a user is notified: [`push`].
//! - Names of media: [`media`], and how servers send them: [`multipart`].
//! - Maps that are looked up in often enough to count: [`hash_map`].

pub mod auth_events;
pub mod auth_rules;
pub mod base64;
pub mod device_keys;
pub mod edu;
pub mod event;
pub mod glob;
mod hash_map;
pub mod hashes;
pub mod history_visibility;
pub mod identifiers;
pub mod json;
pub mod json_stream;
pub mod media;
pub mod multipart;
pub mod openid;
pub mod policy_server;
pub mod power_levels;
pub mod push;
pub mod redaction;
pub mod relation;
pub mod room_version;
pub mod server_acl;
pub mod server_keys;
pub mod server_name;
pub mod signing;
pub mod state_content;
pub mod state_resolution;
pub mod state_trie;
pub mod stripped_state;
pub mod third_party_invite;
pub mod x_matrix;
