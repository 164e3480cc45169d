//! Cloudflare's runtime: the Worker's events, and the platform traits over what it offers. Nothing else uses it, but for
//! [`admission`](crate::admission), which reads two of its headers.
//!
//! There are two engines, and nothing above this layer knows which one runs. Over D1, `fetch` and `scheduled` make a
//! [`Program`](crate::program::Program) for each event, because an isolate may share plain values between its events, but never a
//! handle of one event's (a binding, a stream, a future) with another; what is known of other servers is kept for each isolate.
//! In a Durable Object (`object`) the program lives as long as the object, beside its database, and these events only
//! lead to it.
//!
//! Natively only what decides without the runtime is compiled, for its tests.

mod engine;
mod http1;
mod moving;
mod object;
mod sql_error;

#[cfg(target_arch = "wasm32")]
mod bucket;
#[cfg(target_arch = "wasm32")]
mod costs;
#[cfg(target_arch = "wasm32")]
mod d1;
#[cfg(target_arch = "wasm32")]
mod events;
#[cfg(target_arch = "wasm32")]
mod message;
#[cfg(target_arch = "wasm32")]
mod runtime;
#[cfg(target_arch = "wasm32")]
mod socket;
#[cfg(target_arch = "wasm32")]
mod sql_values;
#[cfg(target_arch = "wasm32")]
mod stream;
#[cfg(target_arch = "wasm32")]
mod transport;

#[cfg(target_arch = "wasm32")]
pub(crate) use worker_events::{fetch, scheduled};

#[cfg(target_arch = "wasm32")]
mod worker_events {
    use std::rc::Rc;

    use http::Method;
    use worker::{Context, Env, ScheduleContext, web_sys};

    use super::{
        bucket::media,
        costs::Costs,
        d1::D1,
        engine::Engine,
        events::{self, Settings, Unusable},
        message,
        moving::{self, endpoint},
        object::front,
        runtime::{Console, EventLifetime, SystemRandom, WorkerClock},
        transport::WorkerTransport,
    };
    use crate::{
        client,
        platform::{Background, Clock, Log, Platform, news::Polling},
        program::Program,
        router::Body,
        server::{Caches, Server},
    };

    thread_local! {
        /// Other servers' keys, without which each signed request would cost a round trip more, and where they are.
        static CACHES: Caches = Caches::default();
    }

    /// Answers one HTTP request.
    pub(crate) async fn fetch(
        request: web_sys::Request,
        env: Env,
        context: Context,
    ) -> worker::Result<web_sys::Response> {
        let url = request.url();
        let path = events::path(&url);
        let settings = Settings::read(&env);
        if let Ok(settings) = &settings {
            if settings.move_secret.is_some() {
                if path == moving::PATH {
                    return message::outgoing(path, endpoint::answer(&request, &env, settings).await.map(Body::Whole));
                }
                // Where a browser is refused this, its page is not told when to come again.
                let method = Method::from_bytes(request.method().as_bytes());
                if let Some(response) = method.ok().and_then(|method| client::preflight(&method, path)) {
                    return message::outgoing(path, response.map(Body::Whole));
                }
                if let Err(response) = endpoint::require_live(&env, settings).await {
                    return message::outgoing(path, response.map(Body::Whole));
                }
            }
            if settings.engine == Engine::Object {
                return front::fetch(request, &env, settings, context).await;
            }
        }
        let response = match settings {
            Ok(settings) => over_d1(request, &env, &settings, context).await,
            Err(why) => Err(why),
        };
        let response = response.unwrap_or_else(|why| {
            Console.write(*why);
            events::unusable()
        });
        message::outgoing(path, response)
    }

    async fn over_d1(
        request: web_sys::Request,
        env: &Env,
        settings: &Settings,
        context: Context,
    ) -> Result<crate::router::Answer, Unusable> {
        let background = Rc::new(EventLifetime::of_request(context));
        let costs = settings.config.log_costs.then(Rc::<Costs>::default);
        let program = program(env, settings, background, costs)?;
        Ok(events::answer(&program, request).await)
    }

    /// Does what the clock asks for, once a minute.
    pub(crate) async fn scheduled(env: Env, context: ScheduleContext) {
        let outcome = async {
            let settings = Settings::read(&env)?;
            if settings.move_secret.is_some() && endpoint::require_live(&env, &settings).await.is_err() {
                return Ok(());
            }
            match settings.engine {
                Engine::Object => front::scheduled(&env, &settings).await,
                Engine::D1 => {
                    let lifetime = Rc::new(EventLifetime::of_schedule(context));
                    let costs = settings.config.log_costs.then(Rc::<Costs>::default);
                    program(&env, &settings, lifetime, costs)?.scheduled().await;
                }
            }
            Ok::<_, Unusable>(())
        };
        if let Err(why) = outcome.await {
            Console.write(*why);
        }
    }

    /// The program for one event over D1. The error is for the log.
    fn program(
        env: &Env,
        settings: &Settings,
        background: Rc<dyn Background>,
        costs: Option<Rc<Costs>>,
    ) -> Result<Program, Unusable> {
        let clock: Rc<dyn Clock> = Rc::new(WorkerClock);
        let platform = Platform {
            database: Rc::new(D1::binding(env, costs)?),
            transport: Rc::new(WorkerTransport),
            news: Rc::new(Polling::new(clock.clone())),
            clock,
            random: Rc::new(SystemRandom),
            background,
            log: Rc::new(Console),
            media: media(env, CACHES.with(Caches::admission)),
        };
        Ok(Server::with_caches(settings.config.clone(), platform, CACHES.with(Clone::clone)).into())
    }
}
