//! What we ask of other servers for our rooms and users, and what we tell them: joins and invites, missing events and
//! history, directories, the transaction queue. How a server is found and asked at all is in [`super::peers`].

pub mod backfill;
pub mod by_time;
mod completing;
mod copies;
mod countersigning;
pub mod directory;
mod fleeting;
mod join_answers;
pub mod knocking;
mod large_joins;
mod leaving;
pub mod media;
pub mod membership;
mod missing;
mod pauses;
pub mod queue;
mod refusals;
mod residents;
mod settling;
pub mod spaces;
mod standing;
mod templates;
pub mod third_party_invites;
pub mod to_device;
pub mod user_keys;
