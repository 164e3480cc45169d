//! Verge: the Matrix Server-Server API as one WebAssembly Worker at the edge.
//!
//! The map of the crate, from the pure core outwards; dependencies point only towards the core:
//!
//! - [`matrix`]: the protocol as pure functions: no I/O, no clock, no async.
//! - [`platform`]: the few things the world must provide: a database, an HTTP transport, a clock, randomness.
//! - [`error`], [`log`], [`config`]: what is answered and told, and what the operator has set.
//! - [`admission`]: how many bytes and how often, bounded before any work is done.
//! - [`store`]: every SQL statement, typed.
//! - [`room`]: one room over time: receipt of PDUs, state snapshots, the event graph, local events.
//! - [`federation`]: the Server-Server API, inbound and outbound.
//! - [`client`]: the part of the Client-Server API through which local users act.
//! - [`media`]: uploads, and answers with media.
//! - [`router`]: which handler a request is for, by its method and path.
//! - [`server`]: one homeserver as a value: configuration, platform, stores, what is known of other servers.
//! - [`program`]: routes requests to the two APIs, and does what is due by the clock.
//! - `edge`: the only place that names Cloudflare.
//!
//! On wasm32 the crate is the Worker, whose two events, `fetch` and `scheduled`, enter below.

pub mod admission;
pub mod client;
pub mod config;
pub mod error;
pub mod federation;
pub mod log;
pub mod matrix;
pub mod media;
pub mod platform;
pub mod program;
pub mod room;
pub mod router;
pub mod server;
pub mod store;

#[cfg(any(test, target_arch = "wasm32"))]
mod edge;

#[cfg(target_arch = "wasm32")]
use worker::{Context, Env, ScheduleContext, ScheduledEvent, event, web_sys};

#[cfg(target_arch = "wasm32")]
#[event(start)]
fn start() {
    console_error_panic_hook::set_once();
}

#[cfg(target_arch = "wasm32")]
#[event(fetch)]
async fn fetch(request: web_sys::Request, env: Env, context: Context) -> worker::Result<web_sys::Response> {
    edge::fetch(request, env, context).await
}

#[cfg(target_arch = "wasm32")]
#[event(scheduled)]
async fn scheduled(_: ScheduledEvent, env: Env, context: ScheduleContext) {
    edge::scheduled(env, context).await;
}
