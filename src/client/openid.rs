//! Showing other services who one is (Client-Server API, "OpenID").

use serde_json::json;

use super::auth;
use crate::{
    error::MatrixError,
    matrix::openid,
    router::{Call, Handled, ok},
    server::Server,
};

/// How long a token holds, in seconds.
const EXPIRES_IN: i64 = 3_600;

/// `POST /user/{userId}/openid/request_token`
pub(super) async fn request_token(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    if *session.user.as_str() != *call.parameter(0) {
        return Err(MatrixError::forbidden("You can request an OpenID token only for yourself."));
    }
    let expires_ts = server.platform.clock.now_ms().saturating_add(EXPIRES_IN * 1_000);
    ok(&json!({
        "access_token": openid::token(&server.config.signing_key, &session.user, expires_ts),
        "token_type": "Bearer",
        "matrix_server_name": server.config.server_name,
        "expires_in": EXPIRES_IN,
    }))
}
