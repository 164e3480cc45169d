//! Formats and identity of events, of keys and of requests, against what we did not write: the spec's vectors
//! and examples, ruma and Synapse.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod against_ruma;
mod against_synapse;
#[path = "../common/mod.rs"]
mod common;
mod generate;
mod hostile;
mod keys;
mod limits;
mod malformed;
mod server_acls;
mod signatures;
mod vectors;
mod x_matrix;
