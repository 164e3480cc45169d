//! What a client is told when another server, asked on its behalf, refuses or cannot be reached.

use http::StatusCode;

use crate::{error::MatrixError, federation::peers::requests::RequestError, matrix::identifiers::ServerName};

/// The error codes that are passed on as they come whatever a client has asked for, because it can make sense of them.
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

/// Those that are passed on besides where a user wants into a room. Others could mean something else to a client, as that it is logged
/// out.
const OF_HANDSHAKES: [&str; 8] = [
    "M_BAD_JSON",
    "M_BAD_STATE",
    "M_GUEST_ACCESS_FORBIDDEN",
    "M_INVALID_PARAM",
    "M_MISSING_PARAM",
    "M_NOT_JSON",
    "M_RESOURCE_LIMIT_EXCEEDED",
    "M_SERVER_NOT_TRUSTED",
];

/// What a client is told whose user is refused a join or a knock. Spec, `make_join` and `make_knock`: "The error should be passed
/// through to clients so that they may give better feedback to users."
pub(super) fn of_handshake(error: RequestError) -> MatrixError {
    if let RequestError::Status { status, errcode, error: said, .. } = &error
        && matches!(*status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)
        && !PASSED_ON.contains(&errcode.as_str())
        // Without a code it is no Matrix error; and that the server has no such endpoint says nothing of the room.
        && !matches!(errcode.as_str(), "" | "M_UNRECOGNIZED")
    {
        let errcode = OF_HANDSHAKES.into_iter().find(|known| known == errcode).unwrap_or("M_UNKNOWN");
        return MatrixError::new(*status, errcode, said.clone()).because(&error);
    }
    error.into()
}

/// As [`of_handshake`], where it is the event of our own making that is refused. What that lacks or has wrong, the client's
/// request does not. Spec, `send_join`: "the Client-Server API request SHOULD fail with a 5xx error rather than being passed
/// through".
pub(super) fn of_our_event(error: RequestError) -> MatrixError {
    match &error {
        RequestError::Status { errcode, .. } if matches!(errcode.as_str(), "M_INVALID_PARAM" | "M_MISSING_PARAM") => {
            error.into()
        }
        _ => of_handshake(error),
    }
}

impl From<RequestError> for MatrixError {
    fn from(error: RequestError) -> Self {
        if let RequestError::Status { status, errcode, error: said, room_version, retry_after_ms } = &error
            && status.is_client_error()
            && let Some(errcode) = PASSED_ON.into_iter().find(|known| known == errcode)
        {
            let passed_on = Self::new(*status, errcode, said.clone()).because(&error);
            return match (retry_after_ms, room_version) {
                (Some(ms), _) if *status == StatusCode::TOO_MANY_REQUESTS => passed_on.with("retry_after_ms", *ms),
                (_, Some(version)) if errcode == "M_INCOMPATIBLE_ROOM_VERSION" => {
                    passed_on.with("room_version", version.as_str())
                }
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
