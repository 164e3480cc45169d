//! The Worker in front of the object. What can be answered without data (routes that do not exist, requests that say nothing of
//! who sends them, versions and keys) is answered here, and what is too long or does not come is refused here; all else goes on to
//! the object when all of it is there. Two kinds of requests the Worker answers itself, over the object's database
//! ([`super::distant`]): those of media, whose bytes the object never sees, and those that take a password, whose hashing would
//! keep the object's one thread from all others.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
};

use bytes::Bytes;
use futures_util::{FutureExt, future};
use http::Method;
use worker::{
    Context, Env,
    js_sys::Uint8Array,
    wasm_bindgen::{JsCast, JsValue},
    wasm_bindgen_futures::JsFuture,
    web_sys,
};

use crate::{
    admission::{Reservation, Whose, network_of_request},
    client,
    config::Config,
    edge::{
        bucket::media,
        events::{self, Settings},
        message,
        object::{distant::DistantDatabase, stub::object},
        runtime::{Console, EventLifetime, SystemRandom, WorkerClock},
        stream::{self, Excess, ReadError, describe},
        transport::WorkerTransport,
    },
    error::MatrixError,
    log::LogRecord,
    platform::{
        Background, BodyError, Clock, Database, DatabaseError, LocalBoxFuture, Log, OutboundRequest, Platform, Rows,
        Statement, Transport, TransportError, UnreadBody,
        media::{ByteRange, ByteStream, MediaError, MediaStore, NewObject, StoredObject},
        news::Polling,
    },
    program::Program,
    router::{self, Answer, Body, RequestBody},
    server::{Caches, Server},
};

/// The path by which the scheduled trigger reaches the object. No request from outside does: it is of no route, and the front
/// answers such requests itself.
pub(super) const SCHEDULED: &str = "/scheduled";

thread_local! {
    /// What this isolate holds of bodies, and knows of other servers for what it does itself.
    static CACHES: Caches = Caches::default();
}

/// Answers one HTTP request, or lets the object do so.
pub(in crate::edge) async fn fetch(
    request: web_sys::Request,
    env: &Env,
    settings: &Settings,
    context: Context,
) -> worker::Result<web_sys::Response> {
    let url = request.url();
    let response = match without_data(&request, settings) {
        Some(response) => response,
        None if is_answered_here(&request) => match over_object(env, settings, context) {
            Ok(program) => events::answer(&program, request).await,
            Err(error) => unreachable(&error),
        },
        None => match whole(request).await {
            Err(error) => router::error_response(&error).map(Body::Whole),
            Ok((request, _reservation)) => match forward(&request, env, &settings.config).await {
                Ok(response) => return Ok(response),
                Err(error) => unreachable(&error),
            },
        },
    };
    message::outgoing(events::path(&url), response)
}

/// Lets the object do what the clock asks for.
pub(in crate::edge) async fn scheduled(env: &Env, settings: &Settings) {
    let init = web_sys::RequestInit::new();
    init.set_method("POST");
    let outcome = match web_sys::Request::new_with_str_and_init(&format!("https://object{SCHEDULED}"), &init) {
        Ok(request) => forward(&request, env, &settings.config).await.map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        unreachable(&error);
    }
}

async fn forward(request: &web_sys::Request, env: &Env, config: &Config) -> Result<web_sys::Response, JsValue> {
    let response = JsFuture::from(object(env, config)?.fetch(request)?).await?;
    Ok(response.unchecked_into())
}

/// Whether the object is asked for rows only.
fn is_answered_here(request: &web_sys::Request) -> bool {
    let (url, method) = (request.url(), Method::from_bytes(request.method().as_bytes()));
    let path = events::path(&url);
    router::is_of_media(path) || method.is_ok_and(|method| client::may_hash(&method, path))
}

/// The program that answers requests here, in the Worker.
fn over_object(env: &Env, settings: &Settings, context: Context) -> Result<Program, JsValue> {
    let clock: Rc<dyn Clock> = Rc::new(WorkerClock);
    let platform = Platform {
        database: Rc::new(DistantDatabase::new(object(env, &settings.config)?)),
        transport: Rc::new(WorkerTransport),
        news: Rc::new(Polling::new(clock.clone())),
        clock,
        random: Rc::new(SystemRandom),
        background: Rc::new(EventLifetime::of_request(context)),
        log: Rc::new(Console),
        media: media(env, CACHES.with(Caches::admission)),
    };
    Ok(Server::with_caches(settings.config.clone(), platform, CACHES.with(Clone::clone)).into())
}

/// The answer where the object gives none: it is reset, moved or overloaded. Other servers repeat what they get this for.
fn unreachable(error: &JsValue) -> Answer {
    let error = DatabaseError::Unavailable(describe(error));
    Console.write(LogRecord::error("the object does not answer").because(&error));
    let error = MatrixError::unavailable("This server cannot be reached for a moment; try again.");
    router::error_response(&error).map(Body::Whole)
}

/// The answer that needs nothing but the request's head and the configuration, where there is one.
fn without_data(request: &web_sys::Request, settings: &Settings) -> Option<Answer> {
    let asked = Rc::new(Asked::default());
    let clock: Rc<dyn Clock> = Rc::new(WorkerClock);
    let platform = Platform {
        database: asked.clone(),
        transport: asked.clone(),
        news: Rc::new(Polling::new(clock.clone())),
        clock,
        random: Rc::new(SystemRandom),
        background: asked.clone(),
        log: asked.clone(),
        media: Some(asked.clone()),
    };
    // What it lets in, it counts from nothing: the object counts what reaches it.
    let program = Program::from(Server::new(settings.config.clone(), platform));
    let incoming = match message::head(request) {
        Ok(head) => head.map(|()| RequestBody::Unread(Box::new(Later(asked.clone())))),
        Err(error) => return Some(router::error_response(&error).map(Body::Whole)),
    };
    // It waits for nothing but what it may not have.
    let answer = program.respond(incoming).now_or_never();
    let answer = answer.filter(|_| !asked.0.get())?;
    asked.1.take().into_iter().for_each(|record| Console.write(record));
    Some(answer)
}

/// A world without data, which remembers that it was asked for something and never answers, and what was logged: where the object
/// answers in the end, it has its own to say.
#[derive(Default)]
struct Asked(Cell<bool>, RefCell<Vec<LogRecord>>);

impl Asked {
    fn never<T: 'static>(&self) -> LocalBoxFuture<'static, T> {
        self.0.set(true);
        Box::pin(future::pending())
    }
}

impl Database for Asked {
    fn batch(&self, _: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        self.never()
    }
}

impl Transport for Asked {
    fn send(&self, _: OutboundRequest) -> LocalBoxFuture<'_, Result<http::Response<Bytes>, TransportError>> {
        self.never()
    }
}

impl Background for Asked {
    fn spawn(&self, _: LocalBoxFuture<'static, ()>) {
        self.0.set(true);
    }
}

impl Log for Asked {
    fn write(&self, record: LogRecord) {
        self.1.borrow_mut().push(record);
    }
}

struct Later(Rc<Asked>);

impl UnreadBody for Later {
    fn read(self: Box<Self>, _: usize) -> LocalBoxFuture<'static, Result<Bytes, BodyError>> {
        self.0.never()
    }

    fn stream(self: Box<Self>) -> Box<dyn ByteStream> {
        self
    }
}

impl ByteStream for Later {
    fn next(&mut self) -> LocalBoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        self.0.never()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl MediaStore for Asked {
    fn put(&self, _: String, _: NewObject) -> LocalBoxFuture<'_, Result<u64, MediaError>> {
        self.never()
    }

    fn get(&self, _: String, _: Option<ByteRange>) -> LocalBoxFuture<'_, Result<Option<StoredObject>, MediaError>> {
        self.never()
    }

    fn delete(&self, _: Vec<String>) -> LocalBoxFuture<'_, Result<(), MediaError>> {
        self.never()
    }
}

/// The request with all of its body, and what that takes here: the object never waits for what a sender holds back.
///
/// # Errors
/// 413 for one that is too long, 400 where it breaks off, 408 where it does not come in time, 503 where this isolate holds too much.
async fn whole(request: web_sys::Request) -> Result<(web_sys::Request, Option<Reservation>), MatrixError> {
    let Some(body) = request.body() else { return Ok((request, None)) };
    let head = message::head(&request)?;
    let limit = router::max_body_bytes(head.uri().path());
    let announced = router::announced_length(head.headers());
    // Of what is too long nothing is kept.
    let keep = announced.map_or(limit, |length| if length > limit { 0 } else { length });
    let whose = Whose { network: network_of_request(head.headers()), ..Whose::default() };
    let admission = CACHES.with(Caches::admission);
    let reservation = admission.reserve_to_read(keep, whose, WorkerClock.now_ms());
    let reservation = reservation.ok_or_else(MatrixError::too_busy)?;
    let broken = || router::refused_body(BodyError::Broken);
    let (length, body): (usize, JsValue) = if let Some(length) = announced.filter(|length| *length <= limit) {
        // HTTP holds the sender to the length it has announced. The bytes stay with the runtime, which passes them on.
        let bytes = JsFuture::from(request.array_buffer().map_err(|_| broken())?);
        (length, router::in_time(&WorkerClock, bytes).await?.map_err(|_| broken())?)
    } else {
        // The rest of what is too long is read and thrown away, so that the sender lives to read the answer.
        let bytes = pin!(stream::read_all(&body, keep, Excess::Discarded));
        let bytes = router::in_time(&WorkerClock, bytes).await?.map_err(|error| match error {
            ReadError::TooLong => router::refused_body(BodyError::TooLong),
            ReadError::Broken(_) => broken(),
        })?;
        (bytes.len(), Uint8Array::from(&bytes[..]).into())
    };
    if !reservation.is_passed_on(length, WorkerClock.now_ms()) {
        return Err(MatrixError::too_busy());
    }
    let init = web_sys::RequestInit::new();
    if head.method() != Method::GET && head.method() != Method::HEAD {
        init.set_body(&body);
    }
    init.set_method(head.method().as_str());
    init.set_headers(&request.headers());
    init.set_redirect(web_sys::RequestRedirect::Manual);
    let request = web_sys::Request::new_with_str_and_init(&request.url(), &init).map_err(|_| broken())?;
    Ok((request, Some(reservation)))
}
