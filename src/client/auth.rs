//! Who makes a request: access tokens (Client-Server API, "Using access tokens").
//!
//! A token is 256 random bits. Only its SHA-256 is stored: the token has too much entropy to be guessed from it, and
//! whoever reads the database cannot act as a user.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{StatusCode, header::AUTHORIZATION};
use sha2::{Digest, Sha256};

use crate::{
    error::MatrixError, matrix::identifiers::UserId, platform::Random, router::Call, server::Server,
    store::accounts::TokenRow,
};

/// The user and device that make a request.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// The user.
    pub(super) user: UserId,
    /// The device.
    pub(super) device_id: String,
}

impl Session {
    /// User and device as the store's reads take them.
    pub(super) fn reader(&self) -> (&str, &str) {
        (self.user.as_str(), &self.device_id)
    }
}

/// Who makes the request. One round trip.
///
/// # Errors
/// 401 `M_MISSING_TOKEN` without an access token, 401 `M_UNKNOWN_TOKEN` with one that is not, or no longer, known, or has expired.
pub(super) async fn session(server: &Server, call: &Call) -> Result<Session, MatrixError> {
    let hash = token_hash(&token(call)?);
    known(server, &hash, server.store.token(&hash).await?).await
}

/// As [`session`], where the token may have expired as well: enough to end what it stands for, and for nothing else.
///
/// # Errors
/// As [`session`], but for expired tokens.
pub(super) async fn session_to_end(server: &Server, call: &Call) -> Result<Session, MatrixError> {
    of_row(server.store.token(&token_hash(&token(call)?)).await?.ok_or_else(unknown)?)
}

/// As [`session`], with the event that this device made before with the transaction ID `txn_id` at `endpoint`. One round
/// trip too.
///
/// # Errors
/// As [`session`].
pub(super) async fn session_and_transaction(
    server: &Server,
    call: &Call,
    endpoint: &str,
    txn_id: &str,
) -> Result<(Session, Option<String>), MatrixError> {
    let hash = token_hash(&token(call)?);
    let (row, event_id) = server.store.token_and_transaction(&hash, endpoint, txn_id).await?.unzip();
    Ok((known(server, &hash, row).await?, event_id.flatten()))
}

/// Makes a new access token.
pub(super) fn new_token(random: &dyn Random) -> String {
    let mut bytes = [0; 32];
    random.fill(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What is stored of an access token.
pub(super) fn token_hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(token.as_bytes()))
}

/// Whom a token speaks for that is known and has not expired. The first that came from a refresh token ends those before it.
async fn known(server: &Server, hash: &str, row: Option<TokenRow>) -> Result<Session, MatrixError> {
    let row = row.ok_or_else(unknown)?;
    if row.expires_ts.is_some_and(|expires| expires <= server.platform.clock.now_ms()) {
        return Err(unknown_token("The access token has expired.", true));
    }
    if row.is_next {
        server.store.take_next_tokens(hash).await?;
    }
    of_row(row)
}

fn of_row(row: TokenRow) -> Result<Session, MatrixError> {
    let user = UserId::parse(&row.user_id).map_err(|_| MatrixError::internal())?;
    Ok(Session { user, device_id: row.device_id })
}

fn unknown() -> MatrixError {
    unknown_token("Unknown access token.", false)
}

/// 401 `M_UNKNOWN_TOKEN`; `soft_logout` where the device is still there, so that the client may keep what it has.
pub(super) fn unknown_token(sentence: &str, soft_logout: bool) -> MatrixError {
    MatrixError::new(StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN", sentence).with("soft_logout", soft_logout)
}

/// The token in the `Authorization` header or, as older clients send it, in the query.
fn token(call: &Call) -> Result<String, MatrixError> {
    let header = call.request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer =
        header.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let token = bearer.map(|(_, token)| token.trim().to_owned()).or_else(|| call.query("access_token"));
    token
        .filter(|token| !token.is_empty())
        .ok_or_else(|| MatrixError::new(StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN", "No access token was given."))
}
