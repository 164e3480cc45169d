//! Registration (Client-Server API, "Legacy account registration", "User-Interactive Authentication API").
//!
//! Each flow has one stage, so that a session has nothing to remember: its ID is given out and not stored.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    body::Body,
    login::{DeviceWish, random_letters},
    passwords,
};
use crate::{
    config::Registration,
    error::MatrixError,
    matrix::identifiers::UserId,
    router::{Call, Handled, json_response, ok},
    server::Server,
};

const DUMMY: &str = "m.login.dummy";
const REGISTRATION_TOKEN: &str = "m.login.registration_token";

/// `POST /register`
pub(super) async fn register(server: &Server, call: &Call) -> Handled {
    match call.query("kind").as_deref() {
        None | Some("user") => {}
        Some("guest") => return Err(MatrixError::forbidden("This server has no guests.")),
        Some(_) => return Err(MatrixError::invalid_param("Unknown kind of account.")),
    }
    let stage = match server.config.registration {
        Registration::Open => DUMMY,
        Registration::Token(_) => REGISTRATION_TOKEN,
        _ => return Err(MatrixError::forbidden("Registration is closed on this server.")),
    };
    let body = Body::of(call)?;
    let device = DeviceWish::read(&body)?;
    let inhibit_login = body.flag("inhibit_login")?;
    let user = match body.text("username")? {
        Some(name) => Some(new_user_id(server, name)?),
        None => None,
    };
    let auth = body.object("auth")?.map(Body::part);
    if let Some(refusal) = refuse(server, stage, auth.as_ref())? {
        // Whoever asks before authenticating is told at once that the name cannot be had.
        if let Some(user) = &user {
            must_be_free(server, user).await?;
        }
        return Ok(refusal);
    }
    let user = match user {
        Some(user) => user,
        None => new_user_id(server, &random_letters(&*server.platform.random, 12).to_lowercase())?,
    };
    let password = passwords::hash(body.required_text("password")?, &*server.platform.random)?;
    let now_ms = server.platform.clock.now_ms();
    if inhibit_login {
        if !server.store.create_user(user.as_str(), &password, now_ms, None).await? {
            return Err(in_use());
        }
        return ok(&json!({ "user_id": user, "home_server": server.config.server_name }));
    }
    let (device, token) = device.make(server, &user);
    if !server.store.create_user(user.as_str(), &password, now_ms, Some(&device)).await? {
        return Err(in_use());
    }
    ok(&json!({
        "user_id": user,
        "access_token": token,
        "device_id": device.device_id,
        "home_server": server.config.server_name,
    }))
}

/// `GET /register/available`
pub(super) async fn available(server: &Server, call: &Call) -> Handled {
    if server.config.registration == Registration::Closed {
        return Err(MatrixError::forbidden("Registration is closed on this server."));
    }
    let name = call.query("username").ok_or_else(|| MatrixError::missing_param("The query lacks \"username\"."))?;
    must_be_free(server, &new_user_id(server, &name)?).await?;
    ok(&json!({ "available": true }))
}

/// `GET /_matrix/client/v1/register/m.login.registration_token/validity`
pub(super) async fn token_validity(server: &Server, call: &Call) -> Handled {
    let Registration::Token(expected) = &server.config.registration else {
        return Err(MatrixError::forbidden("This server does not register by token."));
    };
    let token = call.query("token").ok_or_else(|| MatrixError::missing_param("The query lacks \"token\"."))?;
    ok(&json!({ "valid": same(&token, expected) }))
}

/// The answer of the User-Interactive Authentication API where `auth` does not complete `stage`; `None` where it does.
fn refuse(server: &Server, stage: &str, auth: Option<&Body>) -> Result<Option<crate::router::Response>, MatrixError> {
    let given = match auth {
        Some(auth) => auth.text("type")?,
        None => None,
    };
    let mut answer = json!({
        "flows": [{ "stages": [stage] }],
        "params": {},
        "completed": [],
        "session": match auth {
            Some(auth) => auth.text("session")?.map(str::to_owned),
            None => None,
        }.unwrap_or_else(|| {
            let mut bytes = [0; 16];
            server.platform.random.fill(&mut bytes);
            URL_SAFE_NO_PAD.encode(bytes)
        }),
    });
    let problem = match (given, &server.config.registration, auth) {
        (None, ..) => None,
        (Some(DUMMY), Registration::Open, _) => return Ok(None),
        (Some(REGISTRATION_TOKEN), Registration::Token(expected), Some(auth)) => {
            if same(auth.required_text("token")?, expected) {
                return Ok(None);
            }
            Some(("M_UNAUTHORIZED", "The registration token is not valid."))
        }
        _ => Some(("M_FORBIDDEN", "This stage belongs to no flow of this server.")),
    };
    if let (Some((errcode, error)), Some(object)) = (problem, answer.as_object_mut()) {
        object.insert("errcode".to_owned(), errcode.into());
        object.insert("error".to_owned(), error.into());
    }
    Ok(Some(json_response(StatusCode::UNAUTHORIZED, &answer)))
}

/// Compares in a time that says nothing about where the two differ.
fn same(given: &str, expected: &str) -> bool {
    Sha256::digest(given.as_bytes()) == Sha256::digest(expected.as_bytes())
}

/// The ID of a new user: local parts that begin with `_` belong to application services by custom.
fn new_user_id(server: &Server, name: &str) -> Result<UserId, MatrixError> {
    let invalid = || {
        let message = "User names may hold a-z, 0-9 and ._=-/+, must not begin with _, and have a limited length.";
        MatrixError::new(StatusCode::BAD_REQUEST, "M_INVALID_USERNAME", message)
    };
    let user = UserId::parse(&format!("@{name}:{}", server.config.server_name)).map_err(|_| invalid())?;
    // A name with a colon would be another local part, on another server.
    if user.localpart() != name || !user.is_strict() || name.starts_with('_') {
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
