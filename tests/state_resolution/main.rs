//! State resolution in the disasters that it is there to prevent, where the oracles differ, and as properties that must always
//! hold. `tests/differential` compares it over generated rooms.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod by_ruma;
mod chains;
mod differences;
mod disasters;
mod properties;
mod scene;
