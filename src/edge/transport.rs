//! [`Transport`] over the runtime's `fetch`, and over TLS sockets for what `fetch` cannot say.

use std::{future::Future, net::IpAddr};

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::StatusCode;
use worker::{
    Delay,
    js_sys::Uint8Array,
    wasm_bindgen::{JsCast, JsValue},
    wasm_bindgen_futures::JsFuture,
    web_sys,
};

use super::{
    message, socket,
    stream::{self, Excess, ReadError, RuntimeStream, describe},
};
use crate::platform::{
    LocalBoxFuture, OutboundRequest, StreamedResponse, Transport, TransportError,
    media::{ByteStream, Whole},
};

/// Outbound HTTPS as the platform has it.
pub(super) struct WorkerTransport;

impl Transport for WorkerTransport {
    fn send(&self, request: OutboundRequest) -> LocalBoxFuture<'_, Result<http::Response<Bytes>, TransportError>> {
        Box::pin(send(request))
    }

    fn open(&self, request: OutboundRequest) -> LocalBoxFuture<'_, Result<StreamedResponse, TransportError>> {
        Box::pin(open(request))
    }
}

async fn send(request: OutboundRequest) -> Result<http::Response<Bytes>, TransportError> {
    let Some(authority) = authority_for_fetch(&request)? else { return socket::exchange(request).await };
    let whole = async {
        let limit = request.max_response_bytes;
        let (head, body, _abort) = fetch(&authority, &request).await?;
        let body = match body {
            Some(body) => stream::read_all(&body, limit, Excess::Cancelled).await.map_err(|error| match error {
                ReadError::TooLong => TransportError::TooLarge,
                ReadError::Broken(why) => TransportError::Failed(why),
            })?,
            None => Vec::new(),
        };
        Ok(head.map(|()| Bytes::from(body)))
    };
    in_time(&request, whole).await
}

async fn open(request: OutboundRequest) -> Result<StreamedResponse, TransportError> {
    let Some(authority) = authority_for_fetch(&request)? else { return socket::open(request).await };
    let opened = async {
        let (head, body, abort) = fetch(&authority, &request).await?;
        let stream: Box<dyn ByteStream> = match body {
            Some(body) => Box::new(RuntimeStream::guarded(body, abort)),
            None => Box::new(Whole::new(Bytes::new())),
        };
        Ok(head.map(|()| stream))
    };
    in_time(&request, opened).await
}

/// Host and port for `fetch`; `None` where it must be a socket.
fn authority_for_fetch(request: &OutboundRequest) -> Result<Option<String>, TransportError> {
    if !request.connect_host.eq_ignore_ascii_case(&request.tls_name) {
        return Err(TransportError::Unsupported(format!(
            "it can only connect to {} as {} where both are the same name",
            request.connect_host, request.tls_name
        )));
    }
    if request.connect_port == 25 {
        return Err(TransportError::Unsupported("it cannot connect to port 25".to_owned()));
    }
    // `fetch` takes the Host header from the URL, and in production refuses IP literals (error 1003).
    let authority = authority(&request.connect_host, request.connect_port);
    let host_header = request.host_header.strip_suffix(":443").unwrap_or(&request.host_header);
    let is_ip = request.connect_host.parse::<IpAddr>().is_ok();
    Ok((!is_ip && authority.eq_ignore_ascii_case(host_header)).then_some(authority))
}

async fn in_time<T>(
    request: &OutboundRequest,
    work: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    let timeout = Delay::from(std::time::Duration::from_millis(request.timeout_ms.into()));
    match select(Box::pin(work), Box::pin(timeout)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => Err(TransportError::TimedOut),
    }
}

/// The head of the answer, its body where it has one, and what ends the exchange when it is dropped.
async fn fetch(
    authority: &str,
    request: &OutboundRequest,
) -> Result<(http::Response<()>, Option<web_sys::ReadableStream>, AbortOnDrop), TransportError> {
    let abort = AbortOnDrop(web_sys::AbortController::new().map_err(|error| failed(&error))?);
    let path = request.request.uri().path_and_query().map_or("/", |path| path.as_str());
    let url = format!("https://{authority}{path}");
    let init = web_sys::RequestInit::new();
    init.set_method(request.request.method().as_str());
    init.set_redirect(web_sys::RequestRedirect::Manual);
    init.set_signal(Some(&abort.0.signal()));
    let headers = message::write_headers(request.request.headers())
        .map_err(|_| TransportError::Failed("a request header is not one".to_owned()))?;
    init.set_headers(&headers);
    if !request.request.body().is_empty() {
        init.set_body(&Uint8Array::from(request.request.body().as_ref()));
    }
    let outgoing = web_sys::Request::new_with_str_and_init(&url, &init).map_err(|error| failed(&error))?;
    // The URL parser resolves `.` and `..` and escapes some characters. What was signed must be what is sent.
    if message::path_and_query(&outgoing.url()).as_ref() != Some(request.request.uri()) {
        return Err(TransportError::Unsupported("it cannot send this path exactly as it is".to_owned()));
    }
    let global: web_sys::WorkerGlobalScope = worker::js_sys::global().unchecked_into();
    let response: web_sys::Response =
        JsFuture::from(global.fetch_with_request(&outgoing)).await.map_err(|error| failed(&error))?.unchecked_into();

    let status = response.status();
    if (520..=530).contains(&status) {
        // In production the edge answers so in the place of a server that it cannot reach or does not trust.
        return Err(TransportError::Failed(format!("the server could not be reached (status {status})")));
    }
    let mut head = http::Response::new(());
    *head.status_mut() =
        StatusCode::from_u16(status).map_err(|_| TransportError::Failed(format!("status {status}")))?;
    message::read_headers(&response.headers(), head.headers_mut());
    Ok((head, response.body(), abort))
}

/// Host and port as they stand in a URL.
fn authority(host: &str, port: u16) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    if port == 443 { host } else { format!("{host}:{port}") }
}

fn failed(error: &JsValue) -> TransportError {
    TransportError::Failed(describe(error))
}

/// Frees the connection when nobody waits for the answer any more.
struct AbortOnDrop(web_sys::AbortController);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
