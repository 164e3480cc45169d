//! The endpoint by which an operator moves the data, and what all others ask before they answer anything.

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use worker::{Env, wasm_bindgen_futures::JsFuture, web_sys};

use super::{
    marker::{Marker, State},
    side::Side,
    steps::{Move, MoveError},
};
use crate::{
    config::is_same_secret,
    edge::{
        d1::D1,
        engine::Engine,
        events::{Settings, Unusable},
        object::{migrations::MIGRATIONS, stub::ObjectSide},
        runtime::Console,
        stream::describe,
    },
    error::MatrixError,
    log::LogRecord,
    platform::{DatabaseError, Log},
    router::{Response, error_response, json_response},
};

/// How many steps are made for one request.
const STEPS: usize = 20;
/// After so many milliseconds a request may be repeated that came while the data is not here.
const RETRY_MS: u32 = 30_000;

/// What is asked for.
#[derive(Deserialize)]
struct Asked {
    from: Engine,
    to: Engine,
    #[serde(default)]
    cancel: bool,
}

/// Whether the request shows the secret, without which nobody may do this.
pub(in crate::edge) fn is_allowed(request: &web_sys::Request, settings: &Settings) -> bool {
    let given = request.headers().get("authorization").ok().flatten();
    let given = given.as_deref().and_then(|value| value.strip_prefix("Bearer "));
    matches!((given, &settings.move_secret), (Some(given), Some(expected)) if is_same_secret(given, expected))
}

/// The body of a request, as JSON.
pub(in crate::edge) async fn json_of(request: &web_sys::Request) -> Option<Value> {
    let text = JsFuture::from(request.text().ok()?).await.ok()?;
    serde_json::from_str(&text.as_string()?).ok()
}

/// Answers `npm run move`: some steps of the move, and how far it is then.
pub(in crate::edge) async fn answer(request: &web_sys::Request, env: &Env, settings: &Settings) -> Response {
    if !is_allowed(request, settings) {
        return error_response(&MatrixError::forbidden("This requires MOVE_SECRET."));
    }
    let asked = json_of(request).await.and_then(|json| serde_json::from_value::<Asked>(json).ok());
    let Some(asked) = asked.filter(|asked| asked.to == asked.from.other()) else {
        return error_response(&MatrixError::bad_json("\"from\" and \"to\" must be \"d1\" and \"object\"."));
    };
    let (d1, object) = match (D1::binding(env, None), ObjectSide::of(env, settings)) {
        (Ok(d1), Ok(object)) => (d1, object),
        (Err(_), _) => return refused("there is no D1 database bound as DB; wrangler.toml must bind one"),
        (_, Err(_)) => return refused("there is no Durable Object bound as OBJECT; wrangler.toml must bind one"),
    };
    let (d1, object): (&dyn Side, &dyn Side) = (&d1, &object);
    let (source, target) = if asked.from == Engine::D1 { (d1, object) } else { (object, d1) };
    let migrations = MIGRATIONS.iter().map(|(name, _)| *name).collect();
    let work = Move { from: asked.from, configured: settings.engine, migrations, source, target };
    if asked.cancel {
        return match work.cancel().await {
            Ok(()) => json_response(StatusCode::OK, &json!({ "steps": [{ "phase": "cancelled", "rows": 0 }] })),
            Err(error) => failed(&error),
        };
    }
    let mut steps = Vec::new();
    while steps.len() < STEPS {
        match work.step().await {
            Ok(progress) => {
                let is_done = progress.is_done();
                steps.push(progress);
                if is_done {
                    break;
                }
            }
            // What was done before is told; the next request comes to the same point.
            Err(_) if !steps.is_empty() => break,
            Err(error) => return failed(&error),
        }
    }
    json_response(StatusCode::OK, &json!({ "steps": steps }))
}

fn failed(error: &MoveError) -> Response {
    match error {
        MoveError::Refused(why) => refused(why),
        MoveError::Failed(error) => {
            Console.write(LogRecord::error("a step of the move fails").because(error));
            error_response(&MatrixError::from(error.clone()).retry_after(1_000))
        }
    }
}

fn refused(why: &str) -> Response {
    error_response(&MatrixError::new(StatusCode::CONFLICT, "M_UNKNOWN", why))
}

/// Asks the database of the engine that the settings name whether it is live.
///
/// # Errors
/// The answer to give where it is not, or cannot be asked.
pub(in crate::edge) async fn require_live(env: &Env, settings: &Settings) -> Result<(), Response> {
    let marker = match settings.engine {
        Engine::D1 => Marker::read(&D1::binding(env, None).map_err(unusable)?).await,
        Engine::Object => match ObjectSide::of(env, settings) {
            Ok(object) => Marker::read(&object).await,
            Err(error) => Err(DatabaseError::Unavailable(describe(&error))),
        },
    };
    match marker {
        Ok(marker) => marker.map_or(Ok(()), |marker| live(&marker, settings.engine)),
        Err(error) => Err(error_response(&MatrixError::from(error).retry_after(RETRY_MS))),
    }
}

/// Whether requests may be answered from a database that says this.
///
/// # Errors
/// The answer to give where not.
pub(in crate::edge) fn live(marker: &Marker, engine: Engine) -> Result<(), Response> {
    let why = match (marker.state, engine) {
        (State::Live, _) => return Ok(()),
        (State::Left, Engine::D1) => "the data has moved to the engine `object`; ENGINE must be `object`",
        (State::Left, Engine::Object) => "the data has moved to the engine `d1`; ENGINE must be `d1`",
        (State::Leaving, _) => "the data is being moved to the other engine",
        (State::Emptying | State::Arriving | State::Checking | State::Whole, _) => {
            "the data is being moved to this engine, and not all of it is here"
        }
    };
    Console.write(LogRecord::warning(why));
    const MESSAGE: &str = "This server is being moved; try again later.";
    let error = MatrixError::unavailable(MESSAGE).retry_after(RETRY_MS);
    Err(error_response(&error))
}

fn unusable(why: Unusable) -> Response {
    Console.write(*why);
    error_response(&MatrixError::internal())
}
