//! What answering one event takes in either engine.

use std::{cell::RefCell, rc::Rc};

use http::StatusCode;
use worker::{Env, console_log, web_sys};

use super::{costs::Costs, message};
use crate::{
    config::Config,
    error::MatrixError,
    program::Program,
    router::{Response, error_response, json_response},
};

/// What the operator has set, as both engines need it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Settings {
    /// The server's.
    pub(super) config: Rc<Config>,
    /// `ENGINE`: where the server runs.
    pub(super) engine: Engine,
    /// `LOG_COSTS`: whether each request's costs are logged.
    pub(super) log_costs: bool,
}

/// Where the server runs, and over which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    /// In any isolate of the Worker, over D1.
    D1,
    /// In one Durable Object, over the SQLite database beside it.
    Object,
}

thread_local! {
    /// The settings, once an event has found them sound. Variables cannot change while an isolate lives.
    static SETTINGS: RefCell<Option<Settings>> = const { RefCell::new(None) };
}

impl Settings {
    /// The settings of this deployment; the error is a sentence for the log.
    pub(super) fn read(env: &Env) -> Result<Self, String> {
        if let Some(settings) = SETTINGS.with_borrow(Clone::clone) {
            return Ok(settings);
        }
        let variable = |name: &str| env.var(name).ok().map(|value| value.to_string());
        let config = Config::parse(variable).map_err(|error| format!("The configuration is refused: {error}"))?;
        let engine = match variable("ENGINE").as_deref() {
            None | Some("" | "d1") => Engine::D1,
            Some("object") => Engine::Object,
            Some(other) => {
                return Err(format!("The configuration is refused: ENGINE must be d1 or object, not {other:?}."));
            }
        };
        let log_costs = variable("LOG_COSTS").is_some_and(|value| value == "1");
        let settings = Self { config: Rc::new(config), engine, log_costs };
        SETTINGS.set(Some(settings.clone()));
        Ok(settings)
    }
}

/// The program's answer.
pub(super) async fn answer(program: &Program, request: web_sys::Request) -> Response {
    match message::incoming(request) {
        Ok(request) => program.handle(request).await,
        Err(error) => error_response(&error),
    }
}

/// The program's answer, and a log line with what it cost.
pub(super) async fn answer_with_costs(program: &Program, request: web_sys::Request, costs: &Costs) -> Response {
    // Never the query: older clients send their access token in it.
    let line = format!("{} {}", request.method(), path(&request.url()));
    let response = answer(program, request).await;
    console_log!("{}", costs.line(&format!("{} {line}", response.status().as_u16())));
    response
}

/// Does what the clock asks for, with a log line of what it cost where costs are counted.
pub(super) async fn scheduled(program: &Program, costs: Option<&Costs>) {
    program.scheduled().await;
    if let Some(costs) = costs {
        console_log!("{}", costs.line("scheduled"));
    }
}

/// The answer of a server that cannot work; the log says why.
pub(super) fn unusable() -> Response {
    error_response(&MatrixError::internal())
}

/// The answer to what is asked for its effect only.
pub(super) fn done() -> Response {
    json_response(StatusCode::OK, &serde_json::json!({}))
}

/// The path of a URL.
pub(super) fn path(url: &str) -> &str {
    let after_host = url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|start| &rest[start..]));
    after_host.and_then(|rest| rest.split(['?', '#']).next()).unwrap_or("/")
}
