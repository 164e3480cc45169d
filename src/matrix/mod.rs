//! The protocol as pure functions: no I/O, no clock, no async.

pub mod json;
