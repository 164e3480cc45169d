//! How often may be asked what anybody may ask without a token (Client-Server API, "Rate limiting").

use crate::{
    admission::{Kind, Rate, Turn, network_of_request},
    error::MatrixError,
    matrix::identifiers::UserId,
    router::Call,
    server::Server,
};

/// The longest name of an account that is told from others, in characters.
const MAX_NAME: usize = 255;

/// Counts a request against its sender's address.
///
/// # Errors
/// 429 `M_LIMIT_EXCEEDED` where it is one too many.
pub(super) fn by_address(server: &Server, call: &Call, kind: Kind, rate: Option<Rate>) -> Result<(), MatrixError> {
    take(server, kind, rate, &network_of_request(call.request.headers()))
}

/// Counts a request against the account that it names.
///
/// # Errors
/// 429 `M_LIMIT_EXCEEDED` where it is one too many.
pub(super) fn by_name(server: &Server, kind: Kind, rate: Option<Rate>, name: &str) -> Result<(), MatrixError> {
    // No network is written so.
    let who: String = "account ".chars().chain(name.chars().take(MAX_NAME)).collect();
    take(server, kind, rate, &who)
}

/// Counts a request against the user who makes it.
///
/// # Errors
/// 429 `M_LIMIT_EXCEEDED` where it is one too many.
pub(super) fn by_user(server: &Server, kind: Kind, rate: Option<Rate>, user: &UserId) -> Result<(), MatrixError> {
    take(server, kind, rate, user.as_str())
}

fn take(server: &Server, kind: Kind, rate: Option<Rate>, who: &str) -> Result<(), MatrixError> {
    let Some(rate) = rate else { return Ok(()) };
    match server.admission.take(kind, who, rate, 0, server.platform.clock.now_ms()) {
        Turn::Now | Turn::After(_) => Ok(()),
        Turn::Refused(ms) => Err(MatrixError::limit_exceeded(ms)),
    }
}
