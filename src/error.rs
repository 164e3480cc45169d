//! Errors as the API answers them: one status and one `errcode` for each, decided here.

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::{
    log::{LogRecord, Reason, Why},
    platform::DatabaseError,
};

/// A standard error response (Client-Server API, "Standard error response"; used by the Server-Server API too).
#[derive(Debug, Clone)]
pub struct MatrixError {
    /// HTTP status.
    pub status: StatusCode,
    /// `errcode`, such as `M_FORBIDDEN`.
    pub errcode: &'static str,
    /// One sentence for the person who reads it.
    pub message: String,
    /// Further members of the body, such as `room_version` or `soft_logout`.
    pub extra: Map<String, Value>,
    /// After how many milliseconds the same may be asked again, where that is known.
    pub retry_after_ms: Option<u32>,
    /// What went wrong inside, for the log only.
    pub cause: Option<Box<Why>>,
}

impl MatrixError {
    /// An error of any kind.
    pub fn new(status: StatusCode, errcode: &'static str, message: impl Into<String>) -> Self {
        Self { status, errcode, message: message.into(), extra: Map::new(), retry_after_ms: None, cause: None }
    }

    /// With what went wrong inside, for the log only.
    #[must_use]
    pub fn because(mut self, cause: &impl Reason) -> Self {
        self.cause = Some(Box::new(Why::of(cause)));
        self
    }

    /// With the time after which the same may be asked again.
    #[must_use]
    pub fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// 429 `M_LIMIT_EXCEEDED`: too often; after `ms` milliseconds it may be asked again.
    pub fn limit_exceeded(ms: u32) -> Self {
        let message = "This was asked for too often; try again later.";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED", message).with("retry_after_ms", ms).retry_after(ms)
    }

    /// With one more member in the body.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// 400 `M_NOT_JSON`: the body is not JSON.
    pub fn not_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_NOT_JSON", message)
    }

    /// 400 `M_BAD_JSON`: the body is JSON of the wrong shape.
    pub fn bad_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_BAD_JSON", message)
    }

    /// 400 `M_INVALID_PARAM`: a parameter has the wrong value.
    pub fn invalid_param(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_INVALID_PARAM", message)
    }

    /// 400 `M_MISSING_PARAM`: a parameter is missing.
    pub fn missing_param(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_MISSING_PARAM", message)
    }

    /// 401 `M_UNAUTHORIZED`: the request is not, or wrongly, signed.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "M_UNAUTHORIZED", message)
    }

    /// 403 `M_FORBIDDEN`: understood and refused.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "M_FORBIDDEN", message)
    }

    /// 403 `M_INVITE_BLOCKED`: the user does not want to be invited.
    pub fn invite_blocked() -> Self {
        let message = "This user does not want to be invited.";
        Self::new(StatusCode::FORBIDDEN, "M_INVITE_BLOCKED", message)
    }

    /// 404 `M_NOT_FOUND`: no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "M_NOT_FOUND", message)
    }

    /// 413 `M_TOO_LARGE`: the body or event is too large.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message)
    }

    /// 504 `M_NOT_YET_UPLOADED`: the bytes of media are still awaited.
    pub fn not_yet_uploaded() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED", "This has not been uploaded yet.")
    }

    /// 502 `M_UNKNOWN`: another server's answer cannot be used.
    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", message)
    }

    /// 504 `M_UNKNOWN`: what other servers have to give first has not come in time.
    pub fn gateway_timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "M_UNKNOWN", message)
    }

    /// 503 `M_UNKNOWN`: what is lacking now may be there when it is asked again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", message).retry_after(1_000)
    }

    /// 503 `M_UNKNOWN`: there is no room now for what this would take.
    pub fn too_busy() -> Self {
        Self::unavailable("This server is too busy at the moment; try again shortly.")
    }

    /// 500 `M_UNKNOWN` without any detail: what went wrong is for the log only.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", "Internal server error.")
    }

    /// What the log shows of it: never the message, which may quote the request.
    pub fn describe(&self, record: LogRecord) -> LogRecord {
        let record = record.errcode(self.errcode);
        match &self.cause {
            Some(cause) => record.because(&**cause),
            None => record,
        }
    }

    /// The body of the response.
    pub fn body(&self) -> Value {
        let mut body = json!({ "errcode": self.errcode, "error": self.message });
        if let Some(object) = body.as_object_mut() {
            object.extend(self.extra.clone());
        }
        body
    }
}

impl std::fmt::Display for MatrixError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status.as_u16(), self.errcode, self.message)?;
        self.cause.as_ref().map_or(Ok(()), |cause| write!(f, " ({cause})"))
    }
}

impl std::error::Error for MatrixError {}

impl Reason for MatrixError {
    /// Without the message, which may quote the request.
    fn reason(&self) -> String {
        let cause = self.cause.as_ref().map_or_else(String::new, |cause| format!(" ({cause})"));
        format!("{} {}{cause}", self.status.as_u16(), self.errcode)
    }

    fn said(&self) -> Option<&str> {
        self.cause.as_ref().and_then(|cause| cause.said())
    }
}

impl From<DatabaseError> for MatrixError {
    /// 503, so that the sender repeats the request and nothing is lost; 413 or 500 where that would end as before.
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Refused(_) => Self::too_large("This is larger than the database accepts."),
            DatabaseError::Constraint(_) | DatabaseError::Shape(_) => Self::internal(),
            DatabaseError::NoRoom => return Self::too_busy(),
            DatabaseError::Unavailable(_) => Self::unavailable("The database is unavailable at the moment; try again."),
        }
        .because(&error)
    }
}
