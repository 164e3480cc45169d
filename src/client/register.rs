//! Registration (Client-Server API, "Legacy API": "Account registration", "User-Interactive Authentication
//! API").
//!
//! Open registration has one stage, so that its sessions have nothing to remember. Registration by token has a second one,
//! `m.login.dummy`, as Synapse has and clients expect: a session is stored between the two, once it has shown the token, so
//! that nobody else can make this server store any.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use serde_json::json;

use super::{
    body::Body,
    login::{DeviceWish, random_letters},
    passwords::Hashing,
    throttle,
};
use crate::{
    admission::Kind,
    config::{Registration, is_same_secret},
    error::MatrixError,
    matrix::identifiers::UserId,
    router::{Call, Handled, Response, json_response, ok},
    server::Server,
};

const DUMMY: &str = "m.login.dummy";
const REGISTRATION_TOKEN: &str = "m.login.registration_token";

/// For so long, in milliseconds, a session that has shown the token may go on to its second stage.
const SESSION_MS: i64 = 60 * 60 * 1_000;
/// The longest session ID, in bytes. Ours are shorter.
const MAX_SESSION_BYTES: usize = 64;

/// `POST /register`
pub(super) async fn register(server: &Server, call: &Call) -> Handled {
    match call.query("kind").as_deref() {
        None | Some("user") => {}
        Some("guest") => return Err(MatrixError::forbidden("Guest accounts are not supported.")),
        Some(_) => return Err(MatrixError::invalid_param("Unknown kind of account.")),
    }
    throttle::by_address(server, call, Kind::Registration, server.config.rates.registration)?;
    let stages: &[&str] = match server.config.registration {
        Registration::Open => &[DUMMY],
        Registration::Token(_) => &[REGISTRATION_TOKEN, DUMMY],
        _ => return Err(MatrixError::forbidden("Registration is closed on this server.")),
    };
    let body = Body::of(server, call).await?;
    let device = DeviceWish::read(&body)?;
    let inhibit_login = body.flag("inhibit_login")?;
    let user = match body.text("username")? {
        Some(name) => Some(new_user_id(server, name)?),
        None => None,
    };
    let auth = body.object("auth")?.map(Body::part).unwrap_or_default();
    let progress = authenticate(server, &auth).await?;
    if !matches!(progress, Progress::Done) {
        // Whoever asks before authenticating is told at once that the name is not available.
        if let Some(user) = &user {
            must_be_free(server, user).await?;
        }
        return Ok(unfinished(server, stages, auth.text("session")?, &progress));
    }
    let user = match user {
        Some(user) => user,
        None => new_user_id(server, &random_letters(&*server.platform.random, 12))?,
    };
    let password = Hashing::in_answer_to(call).hash(body.required_text("password")?, &*server.platform.random)?;
    let now_ms = server.platform.clock.now_ms();
    if inhibit_login {
        if !server.store.create_user(user.as_str(), &password, now_ms, None).await? {
            return Err(in_use());
        }
        return ok(&json!({ "user_id": user, "home_server": server.config.server_name }));
    }
    let (device, tokens) = device.make(server, &user);
    if !server.store.create_user(user.as_str(), &password, now_ms, Some(&device)).await? {
        return Err(in_use());
    }
    ok(&tokens.told(server, &device))
}

/// `GET /register/available`
pub(super) async fn available(server: &Server, call: &Call) -> Handled {
    if server.config.registration == Registration::Closed {
        return Err(MatrixError::forbidden("Registration is closed on this server."));
    }
    throttle::by_address(server, call, Kind::NameQuery, server.config.rates.login)?;
    let name = call.query("username").ok_or_else(|| MatrixError::missing_param("The query lacks \"username\"."))?;
    must_be_free(server, &new_user_id(server, &name)?).await?;
    ok(&json!({ "available": true }))
}

/// `GET /_matrix/client/v1/register/m.login.registration_token/validity`
pub(super) async fn token_validity(server: &Server, call: &Call) -> Handled {
    let Registration::Token(expected) = &server.config.registration else {
        return Err(MatrixError::forbidden("This server does not use registration tokens."));
    };
    throttle::by_address(server, call, Kind::TokenValidity, server.config.rates.token_validity)?;
    let token = call.query("token").ok_or_else(|| MatrixError::missing_param("The query lacks \"token\"."))?;
    ok(&json!({ "valid": is_same_secret(&token, expected) }))
}

/// How far a registration has authenticated itself.
enum Progress {
    /// All stages are done.
    Done,
    /// These are.
    Completed(&'static [&'static str]),
    /// A stage was tried in vain: `errcode` and a sentence.
    Failed(&'static str, &'static str),
}

/// What `auth` brings a registration.
async fn authenticate(server: &Server, auth: &Body) -> Result<Progress, MatrixError> {
    let session = auth.text("session")?;
    match (auth.text("type")?, &server.config.registration) {
        (None, _) => Ok(Progress::Completed(&[])),
        (Some(DUMMY), Registration::Open) => Ok(Progress::Done),
        (Some(REGISTRATION_TOKEN), Registration::Token(expected)) => {
            if !is_same_secret(auth.required_text("token")?, expected) {
                return Ok(Progress::Failed("M_UNAUTHORIZED", "The registration token is not valid."));
            }
            // Who shows the token at once has not been told of a second stage.
            let Some(session) = session else { return Ok(Progress::Done) };
            if session.len() > MAX_SESSION_BYTES {
                return Ok(Progress::Failed("M_UNKNOWN", "There is no such session."));
            }
            server.store.note_registration(session, server.platform.clock.now_ms() + SESSION_MS).await?;
            Ok(Progress::Completed(&[REGISTRATION_TOKEN]))
        }
        (Some(DUMMY), Registration::Token(_)) => {
            let now_ms = server.platform.clock.now_ms();
            let shown = match session {
                Some(session) => server.store.take_registration(session, now_ms).await?,
                None => false,
            };
            Ok(if shown { Progress::Done } else { Progress::Completed(&[]) })
        }
        _ => Ok(Progress::Failed("M_FORBIDDEN", "This stage is not part of any flow offered here.")),
    }
}

/// The 401 of the User-Interactive Authentication API to a registration that has not completed `stages`.
fn unfinished(server: &Server, stages: &[&str], session: Option<&str>, progress: &Progress) -> Response {
    let new_session = || {
        let mut bytes = [0; 16];
        server.platform.random.fill(&mut bytes);
        URL_SAFE_NO_PAD.encode(bytes)
    };
    let completed = if let Progress::Completed(completed) = progress { *completed } else { &[] };
    let mut answer = json!({
        "flows": [{ "stages": stages }],
        "params": {},
        "completed": completed,
        "session": session.map_or_else(new_session, str::to_owned),
    });
    if let (Progress::Failed(errcode, error), Some(object)) = (progress, answer.as_object_mut()) {
        object.insert("errcode".to_owned(), (*errcode).into());
        object.insert("error".to_owned(), (*error).into());
    }
    json_response(StatusCode::UNAUTHORIZED, &answer)
}

/// The ID of a new user, in lower case however it was typed. Local parts that begin with `_` belong to application services by
/// custom.
fn new_user_id(server: &Server, name: &str) -> Result<UserId, MatrixError> {
    let name = name.to_ascii_lowercase();
    let invalid = || {
        let message = "User names may hold a-z, 0-9 and ._=-/+, must not begin with _, and have a limited length.";
        MatrixError::new(StatusCode::BAD_REQUEST, "M_INVALID_USERNAME", message)
    };
    let user = UserId::parse(&format!("@{name}:{}", server.config.server_name)).map_err(|_| invalid())?;
    // A name with a colon would be another local part, on another server.
    if user.localpart() != name.as_str() || !user.is_strict() || name.starts_with('_') {
        return Err(invalid());
    }
    Ok(user)
}

async fn must_be_free(server: &Server, user: &UserId) -> Result<(), MatrixError> {
    if server.store.profile(user.as_str()).await?.is_some() { Err(in_use()) } else { Ok(()) }
}

fn in_use() -> MatrixError {
    MatrixError::new(StatusCode::BAD_REQUEST, "M_USER_IN_USE", "This user name is taken.")
}
