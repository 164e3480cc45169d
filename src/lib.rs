//! Verge: the Matrix Server-Server API as one WebAssembly Worker at the edge.
//!
//! The map of the crate, from the pure core outwards. `ARCHITECTURE.md` has the order of imports that is tested, in which the
//! parts of [`federation`] stand on several steps.
//!
//! - [`matrix`]: the protocol as pure functions: no I/O, no clock, no async.
//! - [`log`]: what an operator reads.
//! - [`platform`]: the few things the world must provide: a database, an HTTP transport, a clock, randomness.
//! - [`admission`]: how many bytes and how often, bounded before any work is done.
//! - [`error`], [`config`]: what is answered, and what the operator has set.
//! - [`router`]: which handler a request is for, by its method and path.
//! - [`store`]: the server's SQL statements, typed.
//! - [`room`]: one room over time: receipt of PDUs, state snapshots, the event graph, local events.
//! - [`server`]: one homeserver as a value: configuration, platform, stores, what is known of other servers.
//! - [`media`]: uploads, and answers with media.
//! - [`federation`]: the Server-Server API, inbound and outbound.
//! - [`client`]: the part of the Client-Server API through which local users act.
//! - [`program`]: routes requests to the two APIs, and does what is due by the clock.
//! - `edge`: the platform over Cloudflare's runtime, and the two engines.
//!
//! On wasm32 the crate is the Worker, whose two events, `fetch` and `scheduled`, enter below. The class of the Durable Object,
//! which the runtime calls too, is in `edge::object`.

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
