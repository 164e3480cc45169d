//! The engine in which the whole server runs beside its data: a Durable Object that holds server and database, and a Worker in
//! front of it ([`front`]) that forwards to it what it cannot answer itself.

#[cfg(target_arch = "wasm32")]
mod database;
#[cfg(target_arch = "wasm32")]
mod distant;
#[cfg(target_arch = "wasm32")]
pub(super) mod front;
pub(super) mod migrations;
mod reads;
#[cfg(target_arch = "wasm32")]
mod side;
#[cfg(target_arch = "wasm32")]
pub(super) mod stub;
mod wire;

#[cfg(target_arch = "wasm32")]
mod class {
    use std::{cell::OnceCell, rc::Rc};

    use http::StatusCode;
    use serde_json::json;
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
        stub::DATABASE,
    };
    use crate::{
        config::Config,
        edge::{
            bucket::media,
            costs::Costs,
            engine::Engine,
            events::{self, Settings, Unusable},
            message,
            moving::{
                endpoint,
                marker::Marker,
                side::{Side, read_statements, write_rows},
            },
            runtime::{Console, SystemRandom, WorkerClock},
            transport::WorkerTransport,
        },
        error::MatrixError,
        log::LogRecord,
        platform::{
            Background, Clock, LocalBoxFuture, Log, Platform,
            news::{News, Waking},
        },
        program::Program,
        router::{Answer, Body, Response, error_response, json_response},
        server::{Caches, Server},
    };

    thread_local! {
        /// What is known of other servers. It outlives the object: the platform ends one that nobody has asked for ten seconds, and the
        /// next one, most often in the same isolate, would have to find all servers again.
        static CACHES: Caches = Caches::default();
    }

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
            let url = request.url();
            let path = events::path(&url);
            let response = match path {
                DATABASE => self.moving(&request).await.map(Body::Whole),
                BATCH => return self.run_batch(&request).await,
                _ => self.live(request).await,
            };
            message::outgoing(path, response).map_err(JsValue::from)
        }
    }

    impl Homeserver {
        /// Runs a batch for the Worker in front. Its bytes count with all else that the object works on: each isolate in front bounds
        /// what it works on itself, but there may be many.
        async fn run_batch(&self, request: &web_sys::Request) -> Result<web_sys::Response, JsValue> {
            let answer = match self.live_parts().await {
                Ok(parts) => {
                    let length = distant::length(request);
                    match parts.program.admission.reserve(length, WorkerClock.now_ms()) {
                        Some(_reservation) => {
                            let work = JsFuture::from(request.text()?).await?.as_string().unwrap_or_default();
                            let counted = self.counted(parts);
                            let program = counted.as_ref().unwrap_or(&parts.program);
                            distant::run(&*program.platform.database, &work).await
                        }
                        None => distant::too_busy(),
                    }
                }
                Err(_) => String::new(),
            };
            web_sys::Response::new_with_opt_str(Some(&answer))
        }

        /// Answers where the data is here.
        async fn live(&self, request: web_sys::Request) -> Answer {
            match self.live_parts().await {
                Ok(parts) => self.answer(parts, request).await,
                Err(response) => *response,
            }
        }

        /// What the object keeps, where the data is here. While it is not, the database is left as it is, without migrations, too.
        ///
        /// # Errors
        /// The answer where it is not, or where the server cannot work.
        async fn live_parts(&self) -> Result<&Parts, Box<Answer>> {
            let database = self.database();
            let marker = match self.parts.get() {
                Some(_) => Marker::read_there(&database).await,
                None => Marker::read(&database).await,
            };
            let marker = marker.map_err(|error| {
                Console.write(LogRecord::error("the database cannot be read").because(&error));
                Box::new(events::unusable())
            })?;
            if let Some(marker) = marker {
                endpoint::live(&marker, Engine::Object).map_err(|response| Box::new(response.map(Body::Whole)))?;
            }
            self.parts().map_err(|why| {
                Console.write(*why);
                Box::new(events::unusable())
            })
        }

        /// Lets a move use the database.
        async fn moving(&self, request: &web_sys::Request) -> Response {
            let is_allowed = Settings::read(&self.env).is_ok_and(|settings| endpoint::is_allowed(request, &settings));
            if !is_allowed {
                return error_response(&MatrixError::forbidden("This takes the secret MOVE_SECRET."));
            }
            let asked = endpoint::json_of(request).await.unwrap_or_default();
            let database = self.database();
            let done = match read_statements(&asked["statements"]) {
                Some(statements) => {
                    database.batch(statements).await.map(|results| json!({ "results": write_rows(&results) }))
                }
                None => database.migrate().await.map(|()| json!({})),
            };
            let answer = done.unwrap_or_else(|error| json!({ "error": error.to_string() }));
            json_response(StatusCode::OK, &answer)
        }

        fn database(&self) -> ObjectDatabase {
            ObjectDatabase::new(self.state.storage(), None)
        }

        async fn answer(&self, parts: &Parts, request: web_sys::Request) -> Answer {
            let counted = self.counted(parts);
            let program = counted.as_ref().unwrap_or(&parts.program);
            if events::path(&request.url()) == SCHEDULED {
                program.scheduled().await;
                return events::done();
            }
            events::answer(program, request).await
        }

        /// The server with the costs of one request counted for themselves, where they are logged.
        fn counted(&self, parts: &Parts) -> Option<Program> {
            parts.settings.config.log_costs.then(|| {
                let costs = Some(Rc::<Costs>::default());
                self.program(parts.settings.config.clone(), &parts.news, &parts.caches, costs)
            })
        }

        /// What the object keeps, made by the first request that can: what was in its way may pass.
        fn parts(&self) -> Result<&Parts, Unusable> {
            if let Some(parts) = self.parts.get() {
                return Ok(parts);
            }
            let settings = Settings::read(&self.env)?;
            migrations::migrate(&self.database()).map_err(|error| {
                Box::new(LogRecord::error("the database cannot be brought up to date").because(&error))
            })?;
            let news: Rc<dyn News> = Rc::new(Waking::new(Rc::new(WorkerClock)));
            let caches = CACHES.with(Caches::for_successor);
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
                media: media(&self.env, caches.admission()),
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
