//! Who has given somebody an OpenID token (Server-Server API, "OpenID").

use http::StatusCode;
use serde_json::json;

use crate::{
    error::MatrixError,
    matrix::openid,
    router::{self, Call, Handled},
    server::Server,
};

/// `GET /_matrix/federation/v1/openid/userinfo?access_token=…`
pub(super) async fn userinfo(server: &Server, call: &Call) -> Handled {
    let refused = |errcode, message: &str| MatrixError::new(StatusCode::UNAUTHORIZED, errcode, message);
    let token = call.query("access_token");
    let token = token.ok_or_else(|| refused("M_MISSING_TOKEN", "The query lacks \"access_token\"."))?;
    let key = server.config.signing_key.verify_key();
    let user = openid::user(&key, &token, server.platform.clock.now_ms());
    let user = user.ok_or_else(|| refused("M_UNKNOWN_TOKEN", "Access token unknown or expired."))?;
    router::ok(&json!({ "sub": user }))
}
