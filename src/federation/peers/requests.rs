//! Signed requests to other homeservers: Server-Server API, "Request Authentication", and "Server discovery" for where
//! they go. There is a typed function for each endpoint: [`super::endpoints`] says where.
//!
//! What is signed is what is sent: the path and query are built once as a string, the body once as canonical JSON.

use std::{fmt, pin::pin, rc::Rc};

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    destination::{Destination, DiscoveryError},
    discovery::{Discovery, DiscoveryCache},
    well_known,
};
use crate::{
    config::Config,
    log::Reason,
    matrix::{
        identifiers::ServerName,
        json::{self, MAX_DEPTH, Value},
        x_matrix::SignedRequest,
    },
    platform::{
        Clock, Platform, StreamedResponse, TransportError,
        media::{self, ByteStream, Whole},
    },
};

const USER_AGENT: &str = concat!("Verge/", env!("CARGO_PKG_VERSION"));

/// For so long, in milliseconds, discovery goes on where there is no time to send any more: what gave no answer in all the time is
/// remembered then, and does not take it again.
const REMEMBERING_MS: u32 = 1_000;

/// Sends signed requests as one homeserver.
pub struct FederationClient {
    platform: Platform,
    discovery: Discovery,
    config: Rc<Config>,
}

/// Why a request did not bring what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is no such request: it is too long, or what was to be sent is not JSON.
    #[error("the request cannot be made: {0}")]
    Invalid(String),
    /// The server's name leads nowhere.
    #[error(transparent)]
    Discovery(DiscoveryError),
    /// The platform cannot make the connection that the server asks for: to an IP literal, for a certificate of another
    /// name than the host's (SRV), or to a port that it does not reach.
    #[error("this platform cannot connect to the server: {0}")]
    Unsupported(String),
    /// The server was not reached, not trusted, or gave no whole answer in time.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// The server answered with an error.
    #[error("the server answers {} {errcode}: {error}", .status.as_u16())]
    Status {
        /// The HTTP status.
        status: StatusCode,
        /// `errcode`; empty where the answer is no Matrix error.
        errcode: String,
        /// `error`; empty where the answer is no Matrix error.
        error: String,
        /// `room_version`, which goes with `M_INCOMPATIBLE_ROOM_VERSION`.
        room_version: Option<String>,
        /// For how long it asks to be left alone: the `Retry-After` header, else `retry_after_ms` of the body.
        retry_after_ms: Option<i64>,
    },
    /// The server answered with something else than the spec's answer, or with too much.
    #[error("the server's answer cannot be used: {0}")]
    BadResponse(String),
}

impl Reason for RequestError {
    fn reason(&self) -> String {
        match self {
            // Its own words are something else.
            Self::Status { status, errcode, .. } => format!("the server answers {} {errcode}", status.as_u16()),
            error => error.to_string(),
        }
    }

    fn said(&self) -> Option<&str> {
        match self {
            Self::Status { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl RequestError {
    /// Whether the same request may well succeed later: the server was away, overloaded or failing, or could not check
    /// our signature (401) because it could not reach us. Anything else is its last word.
    pub fn is_worth_retrying(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::UNAUTHORIZED | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    )
            }
            Self::Invalid(_) | Self::Discovery(_) | Self::Unsupported(_) | Self::BadResponse(_) => false,
        }
    }

    /// Whether the server does not know the endpoint: `M_UNRECOGNIZED`, or from older servers a bare 404 or 405. Then
    /// an older version of the endpoint may do.
    pub(super) fn is_unknown_endpoint(&self) -> bool {
        match self {
            Self::Status { status, errcode, .. } => match status.as_u16() {
                404 | 405 => errcode.is_empty() || errcode == "M_UNRECOGNIZED",
                400 => errcode == "M_UNRECOGNIZED",
                _ => false,
            },
            _ => false,
        }
    }
}

/// A request to be signed and sent.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    /// Path and query, percent-encoded, as signed and sent.
    pub(super) target: String,
    /// The body as canonical JSON.
    pub(super) body: Option<String>,
    pub(super) limits: Limits,
}

/// What one request may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// All of it together, after discovery unless that is said to be in it.
    pub(super) timeout_ms: u32,
    /// The longest body that is read.
    pub(super) max_response_bytes: usize,
}

impl FederationClient {
    /// A client that signs with the name and key of `config`.
    pub fn new(platform: Platform, config: Rc<Config>, cache: Rc<DiscoveryCache>) -> Self {
        let resolver = Some(config.dns_over_https.clone());
        let discovery = Discovery::new(&platform, config.server_name.as_str(), resolver, cache);
        Self { platform, discovery, config }
    }

    /// The name that requests are signed with.
    pub fn server_name(&self) -> &ServerName {
        &self.config.server_name
    }

    /// Learns in one call what the database knows of where these servers are, to which requests are sent soon.
    pub async fn look_up(&self, servers: &[ServerName]) {
        self.discovery.look_up(servers.iter().map(ServerName::as_str)).await;
    }

    /// Sends `call` to `destination` and reads the body of its 200.
    ///
    /// Where there are several ways to the server, the next is tried after one that fails; every endpoint of the
    /// federation may be asked twice.
    pub(super) async fn send(&self, destination: &ServerName, call: &Call) -> Result<Bytes, RequestError> {
        let routes = self.routes(destination).await?;
        self.send_along(&routes, destination, call).await
    }

    /// As [`FederationClient::send`], with all the call's time for discovery as well: for whoever has others to tell.
    pub(super) async fn send_in_time(&self, destination: &ServerName, call: &Call) -> Result<Bytes, RequestError> {
        let (clock, timeout_ms) = (&self.platform.clock, call.limits.timeout_ms);
        let deadline = clock.now_ms() + i64::from(timeout_ms);
        let late = || RequestError::Unreachable("it was not found in time".to_owned());
        let finding = pin!(self.routes(destination));
        let found = select(finding, clock.sleep(timeout_ms + REMEMBERING_MS)).await;
        let Either::Left((routes, _)) = found else { return Err(late()) };
        let left = u32::try_from(deadline - clock.now_ms()).ok().filter(|left| *left > 0);
        let limits = Limits { timeout_ms: left.ok_or_else(late)?, ..call.limits };
        self.send_along(&routes?, destination, &Call { limits, ..call.clone() }).await
    }

    async fn send_along(
        &self,
        routes: &[Destination],
        destination: &ServerName,
        call: &Call,
    ) -> Result<Bytes, RequestError> {
        let (transport, limit) = (&self.platform.transport, call.limits.max_response_bytes);
        let request = self.sign(destination, call)?;
        let exchange = async |route: &Destination, request: &http::Request<Bytes>, timeout_ms| {
            let answer = transport.send(route.request(request.clone(), timeout_ms, limit)).await;
            read(answered(answer)?, self.platform.clock.now_ms()).map_err(Attempt::Done)
        };
        self.along_routes(routes, &request, call.limits.timeout_ms, exchange).await
    }

    /// Sends `call` to `destination`, and gives the body of its 200 as it comes. All of it together may be as long as the call's
    /// limits say, each [`LEAST_BYTES`] may let us wait for their time, and all of it for `whole_ms`.
    pub(super) async fn open(
        &self,
        destination: &ServerName,
        call: &Call,
        whole_ms: u32,
    ) -> Result<OpenBody, RequestError> {
        let (transport, clock, limits) = (&self.platform.transport, &self.platform.clock, call.limits);
        let request = self.sign(destination, call)?;
        let exchange = async |route: &Destination, request: &http::Request<Bytes>, timeout_ms| {
            let request = route.request(request.clone(), timeout_ms, limits.max_response_bytes);
            let (head, stream) = answered(transport.open(request).await)?.into_parts();
            let mut body = OpenBody::new(stream, clock.clone(), limits, whole_ms);
            if head.status == StatusCode::OK {
                return Ok(body);
            }
            let mut text = Vec::new();
            while text.len() < MAX_ERROR_BYTES
                && let Some(piece) = body.next().await.map_err(Attempt::Done)?
            {
                text.extend_from_slice(&piece);
            }
            Err(refusal(Response::from_parts(head, text.into()), clock.now_ms()))
        };
        let routes = self.routes(destination).await?;
        self.along_routes(&routes, &request, call.limits.timeout_ms, exchange).await
    }

    /// Sends `call` to `destination`, signed or as anybody might, and answers as soon as the head of a 200 or of a redirect is
    /// there. Several ways to the server are tried as by [`FederationClient::send`].
    pub(super) async fn open_file(
        &self,
        destination: &ServerName,
        call: &Call,
        is_signed: bool,
    ) -> Result<StreamedResponse, RequestError> {
        let request = if is_signed { self.sign(destination, call)? } else { unsigned(call)? };
        let exchange = async |route: &Destination, request: &http::Request<Bytes>, timeout_ms| {
            self.open_along(route, request, Limits { timeout_ms, ..call.limits }).await
        };
        let routes = self.routes(destination).await?;
        self.along_routes(&routes, &request, call.limits.timeout_ms, exchange).await
    }

    /// Opens an `https` URL that another server names, as anybody might. It leads into a private network only where this server may
    /// connect to one.
    pub(super) async fn open_url(&self, url: &str, limits: Limits) -> Result<StreamedResponse, RequestError> {
        let invalid = || RequestError::BadResponse("an address that is no https URL".to_owned());
        let uri: http::Uri = url.parse().map_err(|_| invalid())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(invalid)?;
        let route = self.discovery.web(authority.as_str()).map_err(RequestError::Discovery)?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let agent = HeaderValue::from_static(USER_AGENT);
        let request = http::Request::get(target).header(header::USER_AGENT, agent).body(Bytes::new());
        let opened = self.open_along(&route, &request.map_err(|_| invalid())?, limits).await;
        opened.map_err(|attempt| match attempt {
            Attempt::Next(error) | Attempt::Done(error) => error,
        })
    }

    /// The head of a 200 or of a redirect.
    async fn open_along(
        &self,
        route: &Destination,
        request: &http::Request<Bytes>,
        limits: Limits,
    ) -> Result<StreamedResponse, Attempt> {
        let request = route.request(request.clone(), limits.timeout_ms, limits.max_response_bytes);
        let response = answered(self.platform.transport.open(request).await)?;
        if matches!(response.status().as_u16(), 200 | 301 | 302 | 303 | 307 | 308) {
            return Ok(response);
        }
        let (head, mut stream) = response.into_parts();
        let said = media::read_all(&mut *stream, MAX_ERROR_BYTES).await.unwrap_or_default();
        Err(refusal(Response::from_parts(head, said.into()), self.platform.clock.now_ms()))
    }

    /// A body that is in memory already.
    pub(super) fn opened(&self, body: Bytes, limits: Limits) -> OpenBody {
        OpenBody::new(Box::new(Whole::new(body)), self.platform.clock.clone(), limits, limits.timeout_ms)
    }

    async fn routes(&self, destination: &ServerName) -> Result<Vec<Destination>, RequestError> {
        self.discovery.resolve(destination.as_str()).await.map_err(RequestError::Discovery)
    }

    /// What `exchange` brings along the first of the routes that leads to the server.
    async fn along_routes<T>(
        &self,
        routes: &[Destination],
        request: &http::Request<Bytes>,
        timeout_ms: u32,
        exchange: impl AsyncFn(&Destination, &http::Request<Bytes>, u32) -> Result<T, Attempt>,
    ) -> Result<T, RequestError> {
        let deadline = self.platform.clock.now_ms() + i64::from(timeout_ms);
        let mut failure = None;
        for (index, route) in routes.iter().enumerate() {
            let left = deadline - self.platform.clock.now_ms();
            let share = left / i64::try_from(routes.len() - index).unwrap_or(1);
            let timeout_ms = u32::try_from(share).ok().filter(|ms| *ms > 0).unwrap_or(1);
            let mut outcome = exchange(route, request, timeout_ms).await;
            if let (Err(Attempt::Next(RequestError::Unsupported(_))), Some(route)) =
                (&outcome, route.under_its_own_name())
            {
                outcome = exchange(&route, request, timeout_ms).await;
            }
            match outcome {
                Ok(answer) => return Ok(answer),
                Err(Attempt::Done(error)) => return Err(error),
                // The first failure tells most.
                Err(Attempt::Next(error)) => drop(failure.get_or_insert(error)),
            }
        }
        Err(failure.unwrap_or_else(|| RequestError::Unreachable("there is no way to it".to_owned())))
    }

    /// `call` as it goes over the wire.
    fn sign(&self, destination: &ServerName, call: &Call) -> Result<http::Request<Bytes>, RequestError> {
        // What is in it may be nested as deep as anything, so the whole is deeper.
        let read = |body: &str| json::parse_to_depth(body.as_bytes(), MAX_DEPTH);
        let content = call.body.as_deref().map(read).transpose();
        let content = content.map_err(|error| RequestError::Invalid(format!("its body is not JSON: {error}")))?;
        let authorization = SignedRequest {
            method: call.method.as_str(),
            uri: &call.target,
            origin: self.config.server_name.as_str(),
            destination: destination.as_str(),
            content: content.as_ref(),
        }
        .authorization(&self.config.signing_key);
        let authorization = HeaderValue::try_from(authorization);
        let authorization = authorization.map_err(|error| RequestError::Invalid(error.to_string()))?;
        let mut request = unsigned(call)?;
        request.headers_mut().insert(header::AUTHORIZATION, authorization);
        Ok(request)
    }
}

/// What is told of an answer that is not the one that is hoped for.
fn refusal(response: Response<Bytes>, now_ms: i64) -> Attempt {
    let failed = read(response, now_ms).err();
    Attempt::Done(failed.unwrap_or_else(|| RequestError::BadResponse("no body".to_owned())))
}

/// The request as anybody might send it.
fn unsigned(call: &Call) -> Result<http::Request<Bytes>, RequestError> {
    let mut request = http::Request::builder()
        .method(call.method.clone())
        .uri(&call.target)
        .header(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    if call.body.is_some() {
        request = request.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let body = call.body.clone().map(Bytes::from).unwrap_or_default();
    request.body(body).map_err(|error| RequestError::Invalid(error.to_string()))
}

/// The longest body of an error that is read where the body comes as a stream.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// The most characters that are read of each text of an error: logs hold them, and clients are told them.
const MAX_ERROR_TEXT: usize = 500;

/// Of a body that is read as it comes, at least so many bytes, or the end, must come in each span of waiting as long as the call's
/// time: in two minutes that is what a modem brought. Were any piece enough, a byte every two minutes would go on for years.
const LEAST_BYTES: usize = 512 * 1024;

/// The body of an answer, as it comes. Only the time in which we wait for it counts against its server, not what we do with what
/// has come.
pub(super) struct OpenBody {
    stream: Box<dyn ByteStream>,
    clock: Rc<dyn Clock>,
    limits: Limits,
    whole_ms: u32,
    read: usize,
    /// How many bytes have come since the time for the next of them began anew, and what is left of that time,
    came: usize,
    left_ms: i64,
    /// and of the time for all of it.
    left_in_all_ms: i64,
}

/// The answer to a request, unless it takes longer than so many milliseconds.
///
/// # Errors
/// What the request fails by; [`RequestError::Unreachable`] where it takes longer.
pub async fn within<T>(
    clock: &dyn Clock,
    ms: i64,
    request: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, RequestError> {
    match select(pin!(request), clock.sleep(u32::try_from(ms.max(1)).unwrap_or(1))).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(RequestError::Unreachable("no answer in time".to_owned())),
    }
}

impl OpenBody {
    fn new(stream: Box<dyn ByteStream>, clock: Rc<dyn Clock>, limits: Limits, whole_ms: u32) -> Self {
        let (left_ms, left_in_all_ms) = (i64::from(limits.timeout_ms), i64::from(whole_ms));
        Self { stream, clock, limits, whole_ms, read: 0, came: 0, left_ms, left_in_all_ms }
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RequestError> {
        let begun = self.clock.now_ms();
        let left = u32::try_from(self.left_ms.min(self.left_in_all_ms)).unwrap_or(0);
        let piece = match select(self.stream.next(), self.clock.sleep(left)).await {
            Either::Left((piece, _)) if left > 0 => piece.transpose(),
            _ => return Err(RequestError::Unreachable("its answer does not go on".to_owned())),
        };
        let piece = piece.map_err(|_| RequestError::Unreachable("its answer broke off".to_owned()))?;
        let (length, waited) = (piece.as_ref().map_or(0, Bytes::len), self.clock.now_ms() - begun);
        self.read += length;
        if self.read > self.limits.max_response_bytes {
            return Err(RequestError::BadResponse(TransportError::TooLarge.to_string()));
        }
        self.came += length;
        self.left_ms -= waited;
        self.left_in_all_ms -= waited;
        if self.came >= LEAST_BYTES {
            (self.came, self.left_ms) = (0, i64::from(self.limits.timeout_ms));
        }
        Ok(piece)
    }

    /// What has come is worth waiting for more: the time for all of it begins anew.
    pub(super) fn go_on(&mut self) {
        self.left_in_all_ms = i64::from(self.whole_ms);
    }
}

/// Why one route to a server did not bring an answer.
enum Attempt {
    /// It does not lead there: another one may.
    Next(RequestError),
    /// No other one would do better.
    Done(RequestError),
}

/// The answer of whoever is at the end of a route, if that is the server.
fn answered<B>(answer: Result<Response<B>, TransportError>) -> Result<Response<B>, Attempt> {
    match answer {
        // What the networks in front of a server answer where the server itself is not reached.
        Ok(response) if (520..=530).contains(&response.status().as_u16()) => {
            let why = format!("its proxy answers {}", response.status().as_u16());
            Err(Attempt::Next(RequestError::Unreachable(why)))
        }
        Ok(response) => Ok(response),
        Err(TransportError::Unsupported(why)) => Err(Attempt::Next(RequestError::Unsupported(why))),
        Err(error @ TransportError::TooLarge) => Err(Attempt::Done(RequestError::BadResponse(error.to_string()))),
        Err(error) => Err(Attempt::Next(RequestError::Unreachable(error.to_string()))),
    }
}

/// The body of a 200, else the error that the response, received at `now`, is.
fn read(response: Response<Bytes>, now: i64) -> Result<Bytes, RequestError> {
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(response.into_body());
    }
    let body = json::parse(response.body()).unwrap_or(Value::Null);
    let text = |name| Some(body.get(name)?.as_str()?.chars().take(MAX_ERROR_TEXT).collect::<String>());
    Err(RequestError::Status {
        status,
        errcode: text("errcode").unwrap_or_default(),
        error: text("error").unwrap_or_default(),
        room_version: text("room_version"),
        retry_after_ms: retry_after(response.headers(), now)
            .or_else(|| body.get("retry_after_ms").and_then(Value::as_i64)),
    })
}

/// `Retry-After` (RFC 9110, section 10.2.3), a number of seconds or a date, in milliseconds from `now`.
fn retry_after(headers: &HeaderMap, now: i64) -> Option<i64> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let from_seconds = well_known::seconds(value).map(|seconds| seconds * 1_000);
    from_seconds.or_else(|| Some((well_known::http_date_ms(value)? - now).max(0)))
}

/// `prefix` and one percent-encoded segment for each of `segments`.
pub(super) fn path(prefix: &str, segments: &[&str]) -> String {
    segments.iter().fold(prefix.to_owned(), |path, segment| format!("{path}/{}", encode(segment)))
}

/// `path` with a query.
pub(super) fn with_query<'a>(path: String, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    if pairs.is_empty() { path } else { format!("{path}?{}", pairs.join("&")) }
}

/// Everything but RFC 3986's unreserved characters, as other homeservers do.
fn encode(text: &str) -> impl fmt::Display + '_ {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, RESERVED)
}
