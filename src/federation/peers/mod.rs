//! Other homeservers, as whoever knows no room sees them: finding them, signing requests to them, fetching the keys that they
//! sign with.

pub mod destination;
pub mod discovery;
pub mod dns;
pub mod endpoints;
pub mod fleeting;
pub mod heard;
pub mod identity;
pub mod key_cache;
pub mod key_fetcher;
mod key_questions;
pub mod looks;
pub mod media;
pub mod membership;
pub mod policy;
pub mod queries;
pub mod requests;
pub mod retrieving;
pub mod room_before;
pub mod slow;
pub mod spaces;
pub mod user_keys;
pub mod well_known;
