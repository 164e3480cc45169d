//! What a client is told when another server, asked on its behalf, refuses or cannot be reached.

use http::StatusCode;

use crate::{error::MatrixError, federation::peers::requests::RequestError, matrix::identifiers::ServerName};

/// The error codes that are passed on as they come, because a client can make sense of them (Server-Server API, `make_join`
/// and others: "The error should be passed through to clients").
const PASSED_ON: [&str; 8] = [
    "M_FORBIDDEN",
    "M_NOT_FOUND",
    "M_INCOMPATIBLE_ROOM_VERSION",
    "M_UNSUPPORTED_ROOM_VERSION",
    "M_UNABLE_TO_AUTHORISE_JOIN",
    "M_UNABLE_TO_GRANT_JOIN",
    "M_INVITE_BLOCKED",
    "M_LIMIT_EXCEEDED",
];

impl From<RequestError> for MatrixError {
    fn from(error: RequestError) -> Self {
        if let RequestError::Status { status, errcode, error: said, retry_after_ms } = &error
            && status.is_client_error()
            && let Some(errcode) = PASSED_ON.into_iter().find(|known| known == errcode)
        {
            let passed_on = Self::new(*status, errcode, said.clone()).because(&error);
            return match retry_after_ms {
                Some(ms) if *status == StatusCode::TOO_MANY_REQUESTS => passed_on.with("retry_after_ms", *ms),
                _ => passed_on,
            };
        }
        Self::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", format!("Another server is needed for this: {error}."))
            .because(&error)
    }
}

/// What the first of these servers answers that does not refuse, asked in turn. Where all do, the most telling error is passed on;
/// `otherwise` is said where there is no server to ask.
pub(super) async fn any_of<'n, T, E: Into<MatrixError>>(
    servers: &'n [ServerName],
    otherwise: &str,
    ask: impl AsyncFn(&'n ServerName) -> Result<T, E>,
) -> Result<T, MatrixError> {
    let mut refusal: Option<MatrixError> = None;
    for server in servers {
        match ask(server).await {
            Ok(answer) => return Ok(answer),
            Err(error) => {
                let error = error.into();
                // What a server says of the room tells more than that a server is away.
                let tells_more = |known: &MatrixError| known.status.is_server_error() && error.status.is_client_error();
                if refusal.as_ref().is_none_or(tells_more) {
                    refusal = Some(error);
                }
            }
        }
    }
    Err(refusal.unwrap_or_else(|| MatrixError::not_found(otherwise)))
}
