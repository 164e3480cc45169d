//! Talking to other homeservers: finding them, signing requests to them, fetching the keys they sign with.

pub mod discovery;
pub mod dns;
pub mod endpoints;
pub mod keys;
pub mod queue;
pub mod requests;
pub mod well_known;
