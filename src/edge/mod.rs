//! The only place that names Cloudflare: the Worker's events, and the platform traits over what the runtime offers.
//!
//! `fetch` and `scheduled` make a [`Program`](crate::program::Program) for each event, because an isolate may share plain values between its
//! events, but never a handle of one event's (a binding, a stream, a future) with another. What every event reads
//! alike is kept for each isolate: the configuration, parsed once, and what is known of other servers.
//!
//! Natively only `http1` and `d1_error` are compiled, for their tests.

mod d1_error;
mod http1;

#[cfg(target_arch = "wasm32")]
mod database;
#[cfg(target_arch = "wasm32")]
mod message;
#[cfg(target_arch = "wasm32")]
mod runtime;
#[cfg(target_arch = "wasm32")]
mod socket;
#[cfg(target_arch = "wasm32")]
mod stream;
#[cfg(target_arch = "wasm32")]
mod transport;

#[cfg(target_arch = "wasm32")]
pub(crate) use worker_events::{fetch, scheduled};

#[cfg(target_arch = "wasm32")]
mod worker_events {
    use std::{cell::RefCell, rc::Rc};

    use worker::{Context, Env, ScheduleContext, web_sys};

    use super::{
        database::D1,
        message,
        runtime::{Console, EventLifetime, SystemRandom, WorkerClock},
        transport::WorkerTransport,
    };
    use crate::{
        config::Config,
        error::MatrixError,
        platform::{Background, Clock, Log, Platform, news::Polling},
        program::Program,
        router::{Response, json_response},
        server::{Caches, Server},
    };

    thread_local! {
        /// The configuration, once an event has found it sound. Variables cannot change while an isolate lives.
        static CONFIG: RefCell<Option<Rc<Config>>> = const { RefCell::new(None) };
        /// Other servers' keys, without which each signed request would cost a round trip more, and where they are.
        static CACHES: Caches = Caches::default();
    }

    /// Answers one HTTP request.
    pub(crate) async fn fetch(
        request: web_sys::Request,
        env: Env,
        context: Context,
    ) -> worker::Result<web_sys::Response> {
        let background = Rc::new(EventLifetime::of_request(context));
        let response = match program(&env, background) {
            Ok((program, costs)) => {
                // Never the query: older clients send their access token in it.
                let line = format!("{} {}", request.method(), path(&request.url()));
                let response = match message::incoming(request) {
                    Ok(request) => program.handle(request).await,
                    Err(error) => refusal(&error),
                };
                if let Some(database) = costs {
                    worker::console_log!("{}", database.costs(&format!("{} {line}", response.status().as_u16())));
                }
                response
            }
            Err(why) => {
                Console.warn(&why);
                refusal(&MatrixError::internal())
            }
        };
        message::outgoing(response)
    }

    /// Does what the clock asks for, once a minute.
    pub(crate) async fn scheduled(env: Env, context: ScheduleContext) {
        match program(&env, Rc::new(EventLifetime::of_schedule(context))) {
            Ok((program, _)) => program.scheduled().await,
            Err(why) => Console.warn(&why),
        }
    }

    /// The program for one event, with its database once more where `LOG_COSTS` asks for what each request cost.
    /// The error is a sentence for the log.
    fn program(env: &Env, background: Rc<dyn Background>) -> Result<(Program, Option<Rc<D1>>), String> {
        let variable = |name: &str| env.var(name).ok().map(|value| value.to_string());
        let config = configuration(&variable)?;
        let log_costs = variable("LOG_COSTS").is_some_and(|value| value == "1");
        let database = Rc::new(D1::binding(env, "DB", log_costs)?);
        let clock: Rc<dyn Clock> = Rc::new(WorkerClock);
        let platform = Platform {
            database: database.clone(),
            transport: Rc::new(WorkerTransport),
            news: Rc::new(Polling::new(clock.clone())),
            clock,
            random: Rc::new(SystemRandom),
            background,
            log: Rc::new(Console),
        };
        let server = Server::with_caches(config, platform, CACHES.with(Clone::clone));
        Ok((server.into(), log_costs.then_some(database)))
    }

    fn configuration(variable: &dyn Fn(&str) -> Option<String>) -> Result<Rc<Config>, String> {
        if let Some(config) = CONFIG.with_borrow(Clone::clone) {
            return Ok(config);
        }
        let config = Config::parse(variable).map_err(|error| format!("The configuration is refused: {error}"))?;
        let config = Rc::new(config);
        CONFIG.set(Some(config.clone()));
        Ok(config)
    }

    fn path(url: &str) -> &str {
        let after_host = url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|start| &rest[start..]));
        after_host.and_then(|rest| rest.split(['?', '#']).next()).unwrap_or("/")
    }

    fn refusal(error: &MatrixError) -> Response {
        json_response(error.status, &error.body())
    }
}
