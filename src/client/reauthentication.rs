//! Asking a user who is logged in for the password again (Client-Server API, "User-Interactive Authentication API").
//!
//! There is one flow with one stage, so that a session has nothing to remember.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use serde_json::json;

use super::{auth::Session, body::Body, login, passwords::Hashing, throttle};
use crate::{
    admission::Kind,
    error::MatrixError,
    router::{Call, Response, json_response},
    server::Server,
};

const PASSWORD: &str = "m.login.password";

/// Whether the `auth` of the body of `call` proves that the user of `session` makes the request; else the answer that asks for it.
///
/// # Errors
/// 400 where `auth` is malformed, 429 where passwords are tried too often.
pub(super) async fn confirm(
    server: &Server,
    call: &Call,
    session: &Session,
    body: &Body,
) -> Result<Result<(), Response>, MatrixError> {
    let Some(auth) = body.object("auth")?.map(Body::part) else {
        return Ok(Err(ask(server, None, None)));
    };
    let id = auth.text("session")?;
    match auth.text("type")? {
        Some(PASSWORD) => {}
        Some(_) => return Ok(Err(ask(server, id, Some("This stage is not part of any flow offered here.")))),
        None => return Ok(Err(ask(server, id, None))),
    }
    let password = auth.required_text("password")?;
    let named = login::local_user(server, &login::user_name(&auth)?);
    if named.as_ref() != Some(&session.user) {
        return Ok(Err(ask(server, id, Some("The user name or the password is wrong."))));
    }
    throttle::by_name(server, Kind::Login, server.config.rates.login, session.user.localpart())?;
    let stored = server.store.credentials(session.user.as_str()).await?;
    if Hashing::in_answer_to(call).matches(password, stored.password()) {
        return Ok(Ok(()));
    }
    Ok(Err(ask(server, id, Some("The user name or the password is wrong."))))
}

/// The 401 that names the flow, and why what was tried is not enough.
fn ask(server: &Server, session: Option<&str>, failed: Option<&str>) -> Response {
    let new_session = || {
        let mut bytes = [0; 16];
        server.platform.random.fill(&mut bytes);
        URL_SAFE_NO_PAD.encode(bytes)
    };
    let mut answer = json!({
        "flows": [{ "stages": [PASSWORD] }],
        "params": {},
        "completed": [],
        "session": session.map_or_else(new_session, str::to_owned),
    });
    if let (Some(sentence), Some(object)) = (failed, answer.as_object_mut()) {
        object.insert("errcode".to_owned(), "M_FORBIDDEN".into());
        object.insert("error".to_owned(), sentence.into());
    }
    json_response(StatusCode::UNAUTHORIZED, &answer)
}
