//! The Server-Server API.
//!
//! - [`inbound`]: what other servers ask of us, a file for each section of the spec.
//! - [`outbound`]: what we ask of them: joining and leaving, missing events, the transaction queue.
//! - [`peers`]: how they are found and asked at all: discovery, signed requests, their keys.
//! - [`pdus`]: the checks on PDUs that need keys, for both directions.

pub mod inbound;
pub mod outbound;
pub mod pdus;
pub mod peers;
