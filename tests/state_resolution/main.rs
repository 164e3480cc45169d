//! State resolution against implementations that we did not write, in the disasters that it is there to prevent, and as
//! properties that must always hold.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod by_ruma;
mod differential;
mod disasters;
mod properties;
