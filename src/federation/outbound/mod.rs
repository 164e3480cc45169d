//! Talking to other homeservers: finding them, signing requests to them, fetching the keys they sign with.

pub mod backfill;
pub mod directory;
pub mod discovery;
pub mod dns;
pub mod endpoints;
pub mod key_fetcher;
pub mod membership;
mod missing;
pub mod queue;
mod refusals;
pub mod requests;
pub mod well_known;
