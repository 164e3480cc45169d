//! Finding the handler of a request: tables of the spec's own path templates, and what a handler is given.

use std::{
    borrow::Cow,
    cell::{OnceCell, RefCell},
    fmt,
    rc::Rc,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;

use crate::{
    admission::{Admission, READ_MS, Reservation, Whose, network_of_request},
    error::MatrixError,
    log::LogRecord,
    matrix::{
        identifiers::{EventId, RoomId, ServerName},
        json::{self, MAX_DEPTH},
    },
    platform::{
        BodyError, Clock, LocalBoxFuture, UnreadBody,
        media::{self, ByteStream, Whole},
    },
};

/// How deep the PDUs and EDUs of a transaction stand: in a list in an object. Each may be nested as deep as anything.
const LISTS_DEPTH: usize = 2;

/// A request with its whole body.
pub type Request = http::Request<Bytes>;

/// A request as it arrives: its body is read when it is known who sends it.
pub type Incoming = http::Request<RequestBody>;

/// The body of a request.
pub enum RequestBody {
    /// It was read.
    Read(Bytes),
    /// It still comes.
    Unread(Box<dyn UnreadBody>),
}

impl From<Bytes> for RequestBody {
    fn from(bytes: Bytes) -> Self {
        Self::Read(bytes)
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read(_) => "Read",
            Self::Unread(_) => "Unread",
        })
    }
}

/// A response, with its whole body.
pub type Response = http::Response<Bytes>;

/// A response as it leaves: its body may come piece by piece.
pub type Answer = http::Response<Body>;

/// The body of a response.
pub enum Body {
    /// It is there.
    Whole(Bytes),
    /// It comes piece by piece.
    Streamed(StreamedBody),
}

/// A body that comes piece by piece, between two parts that are there.
pub struct StreamedBody {
    /// What comes first.
    pub before: Bytes,
    /// What follows.
    pub stream: Box<dyn ByteStream>,
    /// How many bytes `stream` brings.
    pub length: u64,
    /// What comes last.
    pub after: Bytes,
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

impl Body {
    /// The whole of it, in memory.
    ///
    /// # Errors
    /// Where it breaks off.
    pub async fn whole(self) -> Result<Bytes, BodyError> {
        match self {
            Self::Whole(bytes) => Ok(bytes),
            Self::Streamed(StreamedBody { before, mut stream, after, .. }) => {
                let middle = media::read_all(&mut *stream, usize::MAX).await?;
                Ok([&before[..], &middle, &after].concat().into())
            }
        }
    }
}

/// What every handler returns.
pub type Handled = Result<Response, MatrixError>;

/// What handlers of endpoints return whose answers are streamed.
pub type Streamed = Result<Answer, MatrixError>;

/// A handler of such an endpoint.
pub type StreamHandler<S> = for<'a> fn(&'a S, &'a Call) -> LocalBoxFuture<'a, Streamed>;

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
    /// The request as it arrived, without its body.
    pub request: http::Request<()>,
    body: RefCell<CallBody>,
    /// The server that it says it is from.
    origin: OnceCell<ServerName>,
    /// The percent-decoded values of the template's braces, in order.
    parameters: Vec<String>,
}

/// The body of a call, read once.
#[derive(Debug)]
enum CallBody {
    Waiting(RequestBody),
    Read(Bytes, Rc<Reservation>),
    /// Somebody reads it, or it could not be read.
    Gone,
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

    /// The members of the query of `publicRooms`, as its body has them where it is a `POST`.
    ///
    /// # Errors
    /// 400 `M_INVALID_PARAM` for a number or a boolean that is none.
    pub fn published_query(&self) -> Result<json::Object, MatrixError> {
        let invalid = |name: &str| MatrixError::invalid_param(format!("`{name}` is malformed."));
        let mut query = json::Object::new();
        if let Some(limit) = self.query("limit") {
            query.insert("limit", limit.parse::<i64>().map_err(|_| invalid("limit"))?);
        }
        if let Some(all) = self.query("include_all_networks") {
            query.insert("include_all_networks", all.parse::<bool>().map_err(|_| invalid("include_all_networks"))?);
        }
        for name in ["since", "third_party_instance_id"] {
            if let Some(text) = self.query(name) {
                query.insert(name, text);
            }
        }
        Ok(query)
    }

    /// Notes that it says that it is from this server, so that its body counts among that one's.
    pub fn names_origin(&self, origin: &ServerName) {
        self.origin.get_or_init(|| origin.clone());
    }

    /// The body, which is read the first time.
    ///
    /// # Errors
    /// 413 `M_TOO_LARGE` for one over the server's limit, 503 where too much is in work, 400 where it breaks off, 408 where it does
    /// not come in time.
    pub async fn bytes(&self, admission: &Admission, clock: &dyn Clock) -> Result<Bytes, MatrixError> {
        let waiting = match self.body.replace(CallBody::Gone) {
            CallBody::Waiting(waiting) => waiting,
            CallBody::Read(bytes, reservation) => {
                self.body.replace(CallBody::Read(bytes.clone(), reservation));
                return Ok(bytes);
            }
            CallBody::Gone => return Err(broken_off()),
        };
        let limit = max_body_bytes(self.request.uri().path());
        let announced = match &waiting {
            RequestBody::Read(bytes) => Some(bytes.len()),
            RequestBody::Unread(_) => announced_length(self.request.headers()),
        };
        let whose = Whose {
            origin: self.origin.get().map_or_else(String::new, |origin| origin.as_str().to_owned()),
            network: network_of_request(self.request.headers()),
        };
        let longest = announced.unwrap_or(limit).min(limit);
        let reservation =
            admission.reserve_to_read(longest, whose, clock.now_ms()).ok_or_else(MatrixError::too_busy)?;
        let bytes = match waiting {
            RequestBody::Read(bytes) if bytes.len() > limit => Err(BodyError::TooLong),
            RequestBody::Read(bytes) => Ok(bytes),
            RequestBody::Unread(body) => in_time(clock, body.read(limit)).await?,
        };
        let bytes = bytes.map_err(refused_body)?;
        if !reservation.is_read(bytes.len(), clock.now_ms()) {
            return Err(MatrixError::too_busy());
        }
        self.body.replace(CallBody::Read(bytes.clone(), Rc::new(reservation)));
        Ok(bytes)
    }

    /// How long the body is that was read; 0 for none.
    pub fn body_length(&self) -> usize {
        match &*self.body.borrow() {
            CallBody::Read(bytes, _) => bytes.len(),
            CallBody::Waiting(_) | CallBody::Gone => 0,
        }
    }

    /// What the body, once it was read, takes of what may be in work, for as long as somebody has this.
    pub fn in_work(&self) -> Option<Rc<Reservation>> {
        match &*self.body.borrow() {
            CallBody::Read(_, reservation) => Some(Rc::clone(reservation)),
            CallBody::Waiting(_) | CallBody::Gone => None,
        }
    }

    /// The body piece by piece, and how long it is where that is known. It can be taken once, if nobody has read it.
    ///
    /// # Errors
    /// 400 where it is gone.
    pub fn stream(&self) -> Result<(Box<dyn ByteStream>, Option<u64>), MatrixError> {
        match self.body.replace(CallBody::Gone) {
            CallBody::Waiting(RequestBody::Unread(body)) => {
                let length = announced_length(self.request.headers()).and_then(|length| u64::try_from(length).ok());
                Ok((body.stream(), length))
            }
            CallBody::Waiting(RequestBody::Read(bytes)) | CallBody::Read(bytes, _) => {
                let length = u64::try_from(bytes.len()).ok();
                Ok((Box::new(Whole::new(bytes)), length))
            }
            CallBody::Gone => Err(broken_off()),
        }
    }

    /// The body as JSON. A transaction is read whatever its depth, as what is in it is refused by itself; and where it takes too much
    /// memory, each of its PDUs and EDUs is a [`json::Value::Unread`].
    ///
    /// # Errors
    /// As [`Call::bytes`]; 400 `M_NOT_JSON` for one that is not JSON, or is nested too deep.
    pub async fn json(&self, admission: &Admission, clock: &dyn Clock) -> Result<json::Value, MatrixError> {
        let bytes = self.bytes(admission, clock).await?;
        let value = match is_transaction(self.request.uri().path()) {
            true => match json::parse_to_depth(&bytes, LISTS_DEPTH + MAX_DEPTH) {
                Err(error) if error.is_too_large() => json::parse_to_depth(&bytes, LISTS_DEPTH),
                read => read,
            },
            false => json::parse(&bytes),
        };
        value.map_err(|error| match error.is_too_large() {
            true => too_large(),
            false => MatrixError::not_json(format!("The body is not JSON: {error}.")),
        })
    }
}

/// The path of the same endpoint as the Client-Server API calls it now: what it calls `v3` was `r0` before.
pub fn newest_path(path: &str) -> Cow<'_, str> {
    for api in ["client", "media"] {
        if let Some(rest) = path.strip_prefix(&format!("/_matrix/{api}/r0/")) {
            return format!("/_matrix/{api}/v3/{rest}").into();
        }
    }
    path.into()
}

/// Whether requests for `path` bring or take media, whose bytes must pass where they are not held.
pub fn is_of_media(path: &str) -> bool {
    const PREFIXES: [&str; 3] = ["/_matrix/media/", "/_matrix/client/v1/media/", "/_matrix/federation/v1/media/"];
    PREFIXES.iter().any(|prefix| path.starts_with(prefix))
}

/// How long a body is that comes with these headers, as they say.
pub fn announced_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large() -> MatrixError {
    MatrixError::too_large("The request body is larger than this server reads.")
}

fn broken_off() -> MatrixError {
    MatrixError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", "The request body was interrupted.")
}

/// What is read of a body, as long as there is time for it.
///
/// # Errors
/// 408 where it does not come in time.
pub async fn in_time<T>(clock: &dyn Clock, reading: impl Future<Output = T> + Unpin) -> Result<T, MatrixError> {
    match select(reading, clock.sleep(READ_MS)).await {
        Either::Left((read, _)) => Ok(read),
        Either::Right(_) => {
            const MESSAGE: &str = "The request body was not received in time.";
            Err(MatrixError::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", MESSAGE))
        }
    }
}

/// The refusal of a body that could not be read.
pub fn refused_body(error: BodyError) -> MatrixError {
    match error {
        BodyError::TooLong => too_large(),
        BodyError::Broken => broken_off(),
    }
}

/// Whether requests for `path` are transactions of other servers.
fn is_transaction(path: &str) -> bool {
    path.starts_with("/_matrix/federation/v1/send/")
}

/// The longest body that is read of a request for `path`.
///
/// A transaction may hold 50 PDUs of 65,536 bytes and 100 EDUs, in JSON that its sender need not write canonically, and an
/// invite some state events. No other request needs to be long.
pub fn max_body_bytes(path: &str) -> usize {
    const MIB: usize = 1024 * 1024;
    if is_transaction(path) {
        13 * MIB
    } else if ["v1", "v2"].iter().any(|v| path.starts_with(&format!("/_matrix/federation/{v}/invite/"))) {
        2 * MIB
    } else if ["/login", "/register", "/refresh"].iter().any(|end| path.ends_with(end)) {
        // Anybody may send these.
        MIB / 16
    } else if path == "/_matrix/key/v2/query" {
        // These too, and they name some hundreds of keys.
        MIB / 8
    } else {
        MIB
    }
}

/// A route that a request asked for.
#[derive(Clone)]
pub struct Found<'r, H> {
    /// The route.
    pub route: &'r Route<H>,
    /// The decoded values of its template's braces, in order.
    pub parameters: Vec<String>,
}

impl<H> Found<'_, H> {
    /// What the log may show of the request: which endpoint, and which room, event and transaction are named in its path.
    pub fn describe(&self, record: LogRecord) -> LogRecord {
        let Route { method, template, .. } = self.route;
        let names = template.split('/').filter(|segment| segment.starts_with('{'));
        names.zip(&self.parameters).fold(record.endpoint(method, template), |record, (name, value)| match name {
            "{roomId}" | "{roomIdOrAlias}" => match RoomId::parse(value) {
                Ok(room_id) => record.room(&room_id),
                Err(_) => record,
            },
            "{eventId}" => match EventId::parse(value) {
                Ok(event_id) => record.event(&event_id),
                Err(_) => record,
            },
            "{txnId}" if template.starts_with("/_matrix/federation/") => record.transaction(value),
            _ => record,
        })
    }
}

/// Finds the route for `method` and `path` (still percent-encoded) and the decoded values of its braces.
///
/// # Errors
/// 404 `M_UNRECOGNIZED` where no template matches, 405 `M_UNRECOGNIZED` where one does with another method.
pub fn find<'r, H>(routes: &'r [Route<H>], method: &Method, path: &str) -> Result<Found<'r, H>, MatrixError> {
    let mut other_method = false;
    for route in routes {
        if let Some(parameters) = matches(route.template, path) {
            if route.method == *method {
                return Ok(Found { route, parameters });
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
pub fn call(request: Incoming, parameters: Vec<String>) -> Call {
    let (parts, body) = request.into_parts();
    let (request, body) = (http::Request::from_parts(parts, ()), RefCell::new(CallBody::Waiting(body)));
    Call { request, body, origin: OnceCell::new(), parameters }
}

/// The answer to a request, and what the log shows of an error.
pub fn answer(handled: Streamed, record: LogRecord) -> (Answer, LogRecord) {
    match handled {
        Ok(response) => (response, record),
        Err(error) => (error_response(&error).map(Body::Whole), error.describe(record)),
    }
}

/// An answer that is whole, as one that might not be.
pub fn whole(handled: Handled) -> Streamed {
    Ok(handled?.map(Body::Whole))
}

/// The answer that an error is.
pub fn error_response(error: &MatrixError) -> Response {
    let mut response = json_response(error.status, &error.body());
    if let Some(ms) = error.retry_after_ms {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000)));
    }
    response
}

/// A JSON response with `status`.
pub fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => raw_json_response(status, body),
        // Strings, numbers and maps with names as keys always serialise.
        Err(_) => raw_json_response(StatusCode::INTERNAL_SERVER_ERROR, MatrixError::internal().body().to_string()),
    }
}

/// A response whose `body` is JSON text already.
pub fn raw_json_response(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
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
