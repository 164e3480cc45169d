//! Verge: the Matrix Server-Server API as one WebAssembly Worker at the edge.
//!
//! The map of the crate, from the pure core outwards; dependencies point only towards the core:
//!
//! - [`matrix`]: the protocol as pure functions: no I/O, no clock, no async.
//! - [`platform`]: the few things the world must provide: a database, an HTTP transport, a clock, randomness.
//! - [`store`]: every SQL statement, typed.
//! - [`room`]: one room over time: receipt of PDUs, state snapshots, the event graph, local events.
//! - [`federation`]: the Server-Server API, inbound and outbound.
//! - [`client`]: the part of the Client-Server API through which local users act.
//! - [`server`]: one homeserver as a value: configuration, platform, and the routing of requests.
//! - `edge` (wasm32 only): the only place that names Cloudflare.

pub mod client;
pub mod error;
pub mod federation;
pub mod matrix;
pub mod platform;
pub mod room;
pub mod router;
pub mod server;
pub mod store;

#[cfg(target_arch = "wasm32")]
mod edge;
