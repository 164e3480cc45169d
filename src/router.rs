//! Finding the handler of a request: tables of the spec's own path templates, and what a handler is given.

use bytes::Bytes;
use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

use crate::{error::MatrixError, matrix::json, platform::LocalBoxFuture};

/// A request as it arrived, with its body read.
pub type Request = http::Request<Bytes>;

/// A response, with its whole body.
pub type Response = http::Response<Bytes>;

/// Marks a request (as an extension) whose body was longer than the server reads; the body is then empty.
#[derive(Debug, Clone, Copy)]
pub struct BodyTooLarge;

/// What every handler returns.
pub type Handled = Result<Response, MatrixError>;

/// A handler: an async function from a call to a response. `S` is what handlers work with, the server.
pub type Handler<S> = for<'a> fn(&'a S, &'a Call) -> LocalBoxFuture<'a, Handled>;

/// One endpoint: a method, the spec's path template such as `/_matrix/federation/v1/send/{txnId}`, its handler.
pub struct Route<H> {
    /// The HTTP method.
    pub method: Method,
    /// The path template; a segment in braces matches any one segment.
    pub template: &'static str,
    /// What answers.
    pub handler: H,
}

/// A request whose path matched a template.
#[derive(Debug)]
pub struct Call {
    /// The request as it arrived.
    pub request: Request,
    /// The percent-decoded values of the template's braces, in order.
    parameters: Vec<String>,
}

impl Call {
    /// The value of the template's `index`th brace, percent-decoded; empty where the template has no such brace.
    pub fn parameter(&self, index: usize) -> &str {
        self.parameters.get(index).map_or("", String::as_str)
    }

    /// The first value of the query parameter `name`, decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        self.queries(name).into_iter().next()
    }

    /// All values of the query parameter `name`, decoded, in order.
    pub fn queries(&self, name: &str) -> Vec<String> {
        query_pairs(self.request.uri().query().unwrap_or("")).filter(|(key, _)| key == name).map(|(_, v)| v).collect()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// 413 `M_TOO_LARGE` for a body over the server's limit, 400 `M_NOT_JSON` for one that is not JSON.
    pub fn json(&self) -> Result<json::Value, MatrixError> {
        body_json(&self.request)
    }
}

/// The longest body that is read of a request for `path`.
///
/// A transaction may hold 50 PDUs of 65,536 bytes and 100 EDUs, in JSON that its sender need not write canonically, and an
/// invite some state events. No other request needs to be long.
pub fn max_body_bytes(path: &str) -> usize {
    const MIB: usize = 1024 * 1024;
    if path.starts_with("/_matrix/federation/v1/send/") {
        13 * MIB
    } else if path.starts_with("/_matrix/federation/v2/invite/") {
        2 * MIB
    } else {
        MIB
    }
}

/// The body of `request` as JSON; see [`Call::json`].
///
/// # Errors
/// 413 `M_TOO_LARGE` or 400 `M_NOT_JSON`.
pub fn body_json(request: &Request) -> Result<json::Value, MatrixError> {
    let too_large = || MatrixError::too_large("The request body is larger than this server reads.");
    let is_too_large = request.extensions().get::<BodyTooLarge>().is_some();
    if is_too_large || request.body().len() > max_body_bytes(request.uri().path()) {
        return Err(too_large());
    }
    json::parse(request.body()).map_err(|error| match error.is_too_large() {
        true => too_large(),
        false => MatrixError::not_json(format!("The body is not JSON: {error}.")),
    })
}

/// Finds the route for `method` and `path` (still percent-encoded) and the decoded values of its braces.
///
/// # Errors
/// 404 `M_UNRECOGNIZED` where no template matches, 405 `M_UNRECOGNIZED` where one does with another method.
pub fn find<'r, H>(routes: &'r [Route<H>], method: &Method, path: &str) -> Result<(&'r H, Vec<String>), MatrixError> {
    let mut other_method = false;
    for route in routes {
        if let Some(parameters) = matches(route.template, path) {
            if route.method == *method {
                return Ok((&route.handler, parameters));
            }
            other_method = true;
        }
    }
    Err(if other_method {
        MatrixError::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", "This method is not allowed here.")
    } else {
        MatrixError::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", "There is no such endpoint.")
    })
}

/// Makes a call of a request whose path matched.
pub fn call(request: Request, parameters: Vec<String>) -> Call {
    Call { request, parameters }
}

/// A JSON response with `status`.
pub fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    // Serialising strings, numbers and maps into memory cannot fail.
    let body = serde_json::to_vec(body).unwrap_or_default();
    raw_json_response(status, body)
}

/// A response whose `body` is JSON text already.
pub fn raw_json_response(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// 200 with a JSON body.
pub fn ok(body: &impl serde::Serialize) -> Handled {
    Ok(json_response(StatusCode::OK, body))
}

fn matches(template: &str, path: &str) -> Option<Vec<String>> {
    let mut parameters = Vec::new();
    let mut segments = path.split('/');
    for expected in template.split('/') {
        let segment = segments.next()?;
        if expected.starts_with('{') {
            // An empty last segment is a value too: `state/{eventType}/` names the empty state key.
            parameters.push(percent_decode_str(segment).decode_utf8().ok()?.into_owned());
        } else if expected != segment {
            return None;
        }
    }
    segments.next().is_none().then_some(parameters)
}

fn query_pairs(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    query.split('&').filter(|pair| !pair.is_empty()).map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    })
}
