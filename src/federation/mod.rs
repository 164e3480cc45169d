//! The Server-Server API.
//!
//! - [`inbound`]: what other servers ask of us, a file for each section of the spec.
//! - [`outbound`]: what we ask of them: discovery, signed requests, keys, the transaction queue, joining and leaving.
//! - [`pdus`]: the checks on PDUs that need keys, for both.

pub mod inbound;
pub mod outbound;
pub mod pdus;
