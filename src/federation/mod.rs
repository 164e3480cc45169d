//! See the submodules.

pub mod outbound;
