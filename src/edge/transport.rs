//! [`Transport`] over the runtime's `fetch`, and over TLS sockets for what `fetch` cannot say.

use std::net::IpAddr;

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
    stream::{self, Excess, ReadError, describe},
};
use crate::platform::{LocalBoxFuture, OutboundRequest, Transport, TransportError};

/// Outbound HTTPS as the platform has it.
pub(super) struct WorkerTransport;

impl Transport for WorkerTransport {
    fn send(&self, request: OutboundRequest) -> LocalBoxFuture<'_, Result<http::Response<Bytes>, TransportError>> {
        Box::pin(send(request))
    }
}

async fn send(request: OutboundRequest) -> Result<http::Response<Bytes>, TransportError> {
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
    if is_ip || !authority.eq_ignore_ascii_case(host_header) {
        return socket::exchange(request).await;
    }
    let timeout = Delay::from(std::time::Duration::from_millis(request.timeout_ms.into()));
    let abort = AbortOnDrop(web_sys::AbortController::new().map_err(|error| failed(&error))?);
    match select(Box::pin(fetch(&authority, &request, &abort.0.signal())), Box::pin(timeout)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => Err(TransportError::TimedOut),
    }
}

async fn fetch(
    authority: &str,
    request: &OutboundRequest,
    signal: &web_sys::AbortSignal,
) -> Result<http::Response<Bytes>, TransportError> {
    let path = request.request.uri().path_and_query().map_or("/", |path| path.as_str());
    let url = format!("https://{authority}{path}");
    let init = web_sys::RequestInit::new();
    init.set_method(request.request.method().as_str());
    init.set_redirect(web_sys::RequestRedirect::Manual);
    init.set_signal(Some(signal));
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
    let body = match response.body() {
        Some(body) => stream::read_all(&body, request.max_response_bytes, Excess::Cancelled).await.map_err(
            |error| match error {
                ReadError::TooLong => TransportError::TooLarge,
                ReadError::Broken(why) => TransportError::Failed(why),
            },
        )?,
        None => Vec::new(),
    };
    let mut answer = http::Response::new(Bytes::from(body));
    *answer.status_mut() =
        StatusCode::from_u16(status).map_err(|_| TransportError::Failed(format!("status {status}")))?;
    message::read_headers(&response.headers(), answer.headers_mut());
    Ok(answer)
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
