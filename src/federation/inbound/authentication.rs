//! Who sent a request (Server-Server API, "Request Authentication").
//!
//! Nothing is read or kept for a sender who has not shown a key: first the header's form and destination, then the
//! origin's keys, which may have to be fetched from a server that dawdles, and only then the body, within what this isolate
//! can hold.

use std::cell::Cell;

use http::Method;

use super::malformed;
use crate::{
    admission::{Kind, Turn, network_of_request},
    error::MatrixError,
    matrix::{
        identifiers::ServerName,
        json::{Object, Value},
        server_keys::KeyRing,
        x_matrix::{self, SignedRequest, XMatrixError},
    },
    router::Call,
    server::Server,
};

/// For so long, in milliseconds, a request of an origin that asks too often waits before it is refused.
const PATIENCE_MS: u32 = 5_000;

/// A body of more bytes waits for one turn only.
const LONG: usize = 64 * 1024;

/// The server that a request is proven to come from. Only [`authenticate`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(ServerName);

impl Origin {
    /// The server's name.
    pub fn name(&self) -> &ServerName {
        &self.0
    }
}

/// A request whose signature was checked.
#[derive(Debug)]
pub(super) struct Signed {
    /// Who signed it.
    pub(super) origin: Origin,
    /// The request, and the values of its path's parameters.
    pub(super) call: Call,
    /// The body, for requests that have one.
    content: Option<Object>,
}

impl Signed {
    /// The value of the path's `index`th parameter.
    pub(super) fn parameter(&self, index: usize) -> &str {
        self.call.parameter(index)
    }

    /// The body of a `PUT` or `POST`.
    ///
    /// # Errors
    /// 400 for other requests, which have none.
    pub(super) fn object(&self) -> Result<&Object, MatrixError> {
        self.content.as_ref().ok_or_else(|| malformed("body"))
    }

    /// As [`Signed::object`], without a copy.
    ///
    /// # Errors
    /// 400 for other requests, which have none.
    pub(super) fn into_object(self) -> Result<(Origin, Object), MatrixError> {
        Ok((self.origin, self.content.ok_or_else(|| malformed("body"))?))
    }
}

/// Checks that the request is signed by the server that it says it is from.
///
/// # Errors
/// 401 `M_UNAUTHORIZED` where it is not, or is meant for another server; 400 `M_UNAUTHORIZED` for a malformed header;
/// 413, 408 and 400 for a body that cannot be read, 503 for one for which there is no room.
pub(super) async fn authenticate(server: &Server, call: Call) -> Result<Signed, MatrixError> {
    let own_name = server.config.server_name.as_str();
    let headers = call.request.headers().get_all(http::header::AUTHORIZATION);
    let headers = x_matrix::parse_all(headers.iter().map(http::HeaderValue::as_bytes))?;
    x_matrix::check_destination(&headers, own_name)?;
    let origin = headers.first().map(|header| header.origin.clone()).ok_or(XMatrixError::Missing)?;
    if origin == own_name {
        return Err(MatrixError::unauthorized("A server does not send requests to itself."));
    }
    let key_ids: Vec<&str> = headers.iter().map(|header| header.key_id.as_str()).collect();
    let (keys, refused) = keys_of(server, &call, &origin, &key_ids).await?;
    let checked = x_matrix::check_keys(&headers, &keys, server.platform.clock.now_ms());
    checked.map_err(|error| refused.map_or_else(|| error.into(), MatrixError::limit_exceeded))?;
    call.names_origin(&origin);
    let content = match *call.request.method() {
        Method::GET => None,
        // All other endpoints have a body, which is an object.
        _ => Some(call.json(&server.admission, server.platform.clock.as_ref()).await?),
    };
    if content.as_ref().is_some_and(|content| content.as_object().is_none()) {
        return Err(MatrixError::bad_json("The body is not a JSON object."));
    }
    let uri = call.request.uri();
    let request = SignedRequest {
        method: call.request.method().as_str(),
        uri: uri.path_and_query().map_or(uri.path(), |target| target.as_str()),
        origin: origin.as_str(),
        destination: own_name,
        content: content.as_ref(),
    };
    let now = server.platform.clock.now_ms();
    x_matrix::verify(&headers, &request, &keys, now)?;
    let have_verified = key_ids.iter().map(|key_id| (origin.as_str(), *key_id));
    let is_valid = |(server, key_id): &(&str, &str)| keys.get(server, key_id).is_some_and(|key| key.is_valid_now(now));
    server.keys.have_verified(&have_verified.filter(is_valid).collect::<Vec<_>>()).await?;
    wait_for_turn(server, &origin, call.body_length()).await?;
    Ok(Signed { origin: Origin(origin), call, content: content.and_then(Value::into_object) })
}

/// The keys of a server that somebody at the request's address says they are. Names can be made up at will, and each that is not
/// known has us ask for its keys: where that address has named too many, nobody is asked, and it may try again in so many
/// milliseconds.
async fn keys_of(
    server: &Server,
    call: &Call,
    origin: &ServerName,
    key_ids: &[&str],
) -> Result<(KeyRing, Option<u32>), MatrixError> {
    let refused = Cell::new(None);
    let may_be_asked = || {
        let Some(rate) = server.config.rates.notary else { return true };
        let (who, now) = (network_of_request(call.request.headers()), server.platform.clock.now_ms());
        if let Turn::After(ms) | Turn::Refused(ms) = server.admission.take(Kind::UnknownOrigin, &who, rate, 0, now) {
            refused.set(Some(ms));
        }
        refused.get().is_none()
    };
    let keys = server.keys.for_request(origin, key_ids, &may_be_asked).await?;
    Ok((keys, refused.get()))
}

/// Lets an origin that asks too often wait, one request after the other: who sends one at a time is never refused. What waits is in
/// memory: where it is long, no more than one waits.
///
/// # Errors
/// 429 `M_LIMIT_EXCEEDED` where more would have to wait than one could bear.
async fn wait_for_turn(server: &Server, origin: &ServerName, length: usize) -> Result<(), MatrixError> {
    let Some(rate) = server.config.rates.federation else { return Ok(()) };
    let now = server.platform.clock.now_ms();
    // Never less than the rate takes for one request, so that one at a time always has its turn.
    let patience = if length > LONG { rate.ms_for_one() } else { PATIENCE_MS.max(rate.ms_for_one()) };
    match server.admission.take(Kind::Federation, origin.as_str(), rate, patience, now) {
        Turn::Now => Ok(()),
        Turn::After(ms) => {
            server.platform.clock.sleep(ms).await;
            Ok(())
        }
        Turn::Refused(ms) => Err(MatrixError::limit_exceeded(ms)),
    }
}

impl From<XMatrixError> for MatrixError {
    fn from(error: XMatrixError) -> Self {
        let mut answer = Self::unauthorized(error.to_string());
        if error == XMatrixError::Malformed {
            answer.status = http::StatusCode::BAD_REQUEST;
        }
        answer
    }
}
