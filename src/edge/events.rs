//! What answering one event takes in either engine.

use std::{cell::RefCell, rc::Rc};

use http::StatusCode;
use worker::{Env, web_sys};

use super::{engine::Engine, message};
use crate::{
    config::Config,
    error::MatrixError,
    log::{LogRecord, Reason, Why},
    program::Program,
    router::{Answer, Body, error_response, json_response},
};

/// What the operator has set, as both engines need it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Settings {
    /// The server's.
    pub(super) config: Rc<Config>,
    /// `ENGINE`: where the server runs.
    pub(super) engine: Engine,
    /// `MOVE_SECRET`: lets `npm run move` move the data to the other engine. While it is set, each request asks first whether the
    /// data is here.
    pub(super) move_secret: Option<Rc<str>>,
}

/// The shortest secret that nobody guesses.
const MIN_SECRET: usize = 32;

/// Why the server cannot work, as the log is told.
pub(super) type Unusable = Box<LogRecord>;

fn refused(why: &impl Reason) -> Unusable {
    Box::new(LogRecord::error("the configuration is refused").because(why))
}

thread_local! {
    /// The settings, once an event has found them sound. Variables cannot change while an isolate lives.
    static SETTINGS: RefCell<Option<Settings>> = const { RefCell::new(None) };
}

impl Settings {
    /// The settings of this deployment; the error is for the log.
    pub(super) fn read(env: &Env) -> Result<Self, Unusable> {
        if let Some(settings) = SETTINGS.with_borrow(Clone::clone) {
            return Ok(settings);
        }
        let variable = |name: &str| env.var(name).ok().map(|value| value.to_string());
        let config = Config::parse(variable).map_err(|error| refused(&error))?;
        let engine = match variable("ENGINE").as_deref() {
            None | Some("" | "d1") => Engine::D1,
            Some("object") => Engine::Object,
            Some(_) => return Err(refused(&Why::stated("ENGINE must be `d1` or `object`."))),
        };
        let move_secret = variable("MOVE_SECRET").filter(|secret| !secret.is_empty());
        if move_secret.as_ref().is_some_and(|secret| secret.len() < MIN_SECRET) {
            return Err(refused(&Why::stated("MOVE_SECRET must have at least 32 characters.")));
        }
        let settings = Self { config: Rc::new(config), engine, move_secret: move_secret.map(Into::into) };
        SETTINGS.set(Some(settings.clone()));
        Ok(settings)
    }
}

/// The program's answer.
pub(super) async fn answer(program: &Program, request: web_sys::Request) -> Answer {
    match message::incoming(request) {
        Ok(request) => program.respond(request).await,
        Err(error) => program.refuse(&error),
    }
}

/// The answer of a server that cannot work; the log says why.
pub(super) fn unusable() -> Answer {
    error_response(&MatrixError::internal()).map(Body::Whole)
}

/// The answer to what is asked for its effect only.
pub(super) fn done() -> Answer {
    json_response(StatusCode::OK, &serde_json::json!({})).map(Body::Whole)
}

/// The path of a URL.
pub(super) fn path(url: &str) -> &str {
    let after_host = url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|start| &rest[start..]));
    after_host.and_then(|rest| rest.split(['?', '#']).next()).unwrap_or("/")
}
