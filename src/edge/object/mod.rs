//! The engine in which the whole server runs beside its data: a Durable Object that holds server and database, and a Worker in
//! front of it ([`front`]) that forwards to it what it cannot answer itself.

#[cfg(target_arch = "wasm32")]
mod database;
#[cfg(target_arch = "wasm32")]
mod distant;
#[cfg(target_arch = "wasm32")]
pub(super) mod front;
mod migrations;

#[cfg(target_arch = "wasm32")]
mod class {
    use std::{cell::OnceCell, rc::Rc};

    use worker::{
        Env,
        js_sys::Promise,
        wasm_bindgen::{self, JsValue, prelude::wasm_bindgen},
        wasm_bindgen_futures::{self, JsFuture},
        web_sys,
    };

    use super::{
        database::{ObjectDatabase, Storage},
        distant::{self, BATCH},
        front::SCHEDULED,
        migrations,
    };
    use crate::{
        config::Config,
        edge::{
            bucket::media,
            costs::Costs,
            events::{self, Settings, Unusable},
            message,
            runtime::{Console, SystemRandom, WorkerClock},
            transport::WorkerTransport,
        },
        log::LogRecord,
        platform::{
            Background, LocalBoxFuture, Log, Platform,
            news::{News, Waking},
        },
        program::Program,
        router::Answer,
        server::{Caches, Server},
    };

    #[wasm_bindgen]
    extern "C" {
        /// `ctx` of the object.
        #[derive(Clone)]
        pub type ObjectState;
        #[wasm_bindgen(method, structural, getter)]
        fn storage(this: &ObjectState) -> Storage;
        #[wasm_bindgen(method, structural, js_name = waitUntil)]
        fn wait_until(this: &ObjectState, work: &Promise);
    }

    /// The Durable Object class: one homeserver with its database, for as long as the platform lets it live. All its requests share
    /// it; a future may go on in the name of any of them.
    #[wasm_bindgen]
    pub struct Homeserver {
        state: ObjectState,
        env: Env,
        parts: OnceCell<Parts>,
    }

    /// What the object keeps for its lifetime.
    struct Parts {
        settings: Settings,
        news: Rc<dyn News>,
        caches: Caches,
        program: Program,
    }

    #[wasm_bindgen(wasm_bindgen_futures = worker::wasm_bindgen_futures, js_sys = worker::js_sys)]
    impl Homeserver {
        /// Made by the platform, with the object's `ctx` and the bindings.
        #[wasm_bindgen(constructor)]
        pub fn new(state: ObjectState, env: Env) -> Self {
            Self { state, env, parts: OnceCell::new() }
        }

        /// Answers what the Worker forwards.
        pub async fn fetch(&self, request: web_sys::Request) -> Result<web_sys::Response, JsValue> {
            if events::path(&request.url()) == BATCH {
                return self.run_batch(&request).await;
            }
            let response = match self.parts() {
                Err(why) => {
                    Console.write(*why);
                    events::unusable()
                }
                Ok(parts) => self.answer(parts, request).await,
            };
            message::outgoing(response).map_err(JsValue::from)
        }
    }

    impl Homeserver {
        /// Runs a batch for the Worker in front.
        async fn run_batch(&self, request: &web_sys::Request) -> Result<web_sys::Response, JsValue> {
            let batch = JsFuture::from(request.text()?).await?.as_string().unwrap_or_default();
            let answer = match self.parts() {
                Ok(parts) => distant::run(&*parts.program.platform.database, &batch).await,
                Err(why) => {
                    Console.write(*why);
                    String::new()
                }
            };
            web_sys::Response::new_with_opt_str(Some(&answer))
        }

        async fn answer(&self, parts: &Parts, request: web_sys::Request) -> Answer {
            // Each request counts for itself, where it is logged.
            let counted = parts.settings.config.log_costs.then(|| {
                let costs = Some(Rc::<Costs>::default());
                self.program(parts.settings.config.clone(), &parts.news, &parts.caches, costs)
            });
            let program = counted.as_ref().unwrap_or(&parts.program);
            if events::path(&request.url()) == SCHEDULED {
                program.scheduled().await;
                return events::done();
            }
            events::answer(program, request).await
        }

        /// What the object keeps, made by the first request that can: what was in its way may pass.
        fn parts(&self) -> Result<&Parts, Unusable> {
            if let Some(parts) = self.parts.get() {
                return Ok(parts);
            }
            let settings = Settings::read(&self.env)?;
            migrations::migrate(&ObjectDatabase::new(self.state.storage(), None)).map_err(|error| {
                Box::new(LogRecord::error("the database cannot be brought up to date").because(&error))
            })?;
            let news: Rc<dyn News> = Rc::new(Waking::new(Rc::new(WorkerClock)));
            let caches = Caches::default();
            let program = self.program(settings.config.clone(), &news, &caches, None);
            Ok(self.parts.get_or_init(|| Parts { settings, news, caches, program }))
        }

        /// The server, or the same one with its costs counted.
        fn program(
            &self,
            config: Rc<Config>,
            news: &Rc<dyn News>,
            caches: &Caches,
            costs: Option<Rc<Costs>>,
        ) -> Program {
            let platform = Platform {
                database: Rc::new(ObjectDatabase::new(self.state.storage(), costs)),
                transport: Rc::new(WorkerTransport),
                news: news.clone(),
                clock: Rc::new(WorkerClock),
                random: Rc::new(SystemRandom),
                background: Rc::new(ObjectLifetime(self.state.clone())),
                log: Rc::new(Console),
                // For what is to be deleted: bytes of media never come here.
                media: media(&self.env),
            };
            Server::with_caches(config, platform, caches.clone()).into()
        }
    }

    /// Work goes on for as long as the object lives.
    struct ObjectLifetime(ObjectState);

    impl Background for ObjectLifetime {
        fn spawn(&self, work: LocalBoxFuture<'static, ()>) {
            let promise = wasm_bindgen_futures::future_to_promise(async move {
                work.await;
                Ok(JsValue::UNDEFINED)
            });
            self.0.wait_until(&promise);
        }
    }
}
