//! Requests and responses of the runtime as the values of the `http` crate, and back.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use worker::{
    js_sys::{Array, Uint8Array},
    wasm_bindgen::{JsCast, JsValue},
    wasm_bindgen_futures::{self, JsFuture},
    web_sys,
};

use super::stream::{self, Excess, FixedLength, ReadError, RuntimeStream};
use crate::{
    client,
    error::MatrixError,
    platform::{
        BodyError, LocalBoxFuture, UnreadBody,
        media::{ByteStream, Whole},
    },
    router::{Answer, Body, Incoming, RequestBody, StreamedBody, announced_length},
};

/// A longer body is taken piece by piece, so that it is not in memory twice: as the runtime has it, and as we do.
const MAX_BYTES_AT_ONCE: usize = 1024 * 1024;

/// The request, its body not read yet.
///
/// # Errors
/// 400 where the request cannot be represented.
pub(super) fn incoming(request: web_sys::Request) -> Result<Incoming, MatrixError> {
    let head = head(&request)?;
    let length = announced_length(head.headers());
    Ok(head.map(|()| RequestBody::Unread(Box::new(Unread { request, length }))))
}

/// The request without its body.
///
/// # Errors
/// 400 where the request cannot be represented.
pub(super) fn head(request: &web_sys::Request) -> Result<http::Request<()>, MatrixError> {
    let malformed = |what: &str| MatrixError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", format!("Malformed {what}."));
    let mut head = http::Request::new(());
    *head.method_mut() = Method::from_bytes(request.method().as_bytes()).map_err(|_| malformed("request method"))?;
    *head.uri_mut() = path_and_query(&request.url()).ok_or_else(|| malformed("request path"))?;
    read_headers(&request.headers(), head.headers_mut());
    Ok(head)
}

/// The body of a request that the runtime has.
struct Unread {
    request: web_sys::Request,
    /// As its header says.
    length: Option<usize>,
}

impl UnreadBody for Unread {
    fn read(self: Box<Self>, limit: usize) -> LocalBoxFuture<'static, Result<Bytes, BodyError>> {
        Box::pin(async move {
            body(&self.request, self.length, limit).await.map_err(|error| match error {
                ReadError::TooLong => BodyError::TooLong,
                ReadError::Broken(_) => BodyError::Broken,
            })
        })
    }

    fn stream(self: Box<Self>) -> Box<dyn ByteStream> {
        match self.request.body() {
            Some(body) => Box::new(RuntimeStream::new(body)),
            None => Box::new(Whole::new(Bytes::new())),
        }
    }
}

/// The response to a request for `path` as the runtime sends it, whoever has made it.
pub(super) fn outgoing(path: &str, mut response: Answer) -> worker::Result<web_sys::Response> {
    client::allow_other_origins(path, response.headers_mut());
    let (parts, body) = response.into_parts();
    let headers = write_headers(&parts.headers)?;
    let init = web_sys::ResponseInit::new();
    init.set_status(parts.status.as_u16());
    init.set_headers(&headers);
    let body = match body {
        Body::Whole(bytes) => bytes,
        Body::Streamed(body) => {
            let stream = streamed(body)?;
            return Ok(web_sys::Response::new_with_opt_readable_stream_and_init(Some(&stream), &init)?);
        }
    };
    // The runtime refuses even an empty body with these.
    let null_body =
        matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
    let body = (!null_body).then(|| Uint8Array::from(body.as_ref()));
    Ok(web_sys::Response::new_with_opt_js_u8_array_and_init(body.as_ref(), &init)?)
}

/// A stream of the runtime through which the body goes while the response is sent. Its length is known, so that whoever is sent it
/// sees where it breaks off.
fn streamed(body: StreamedBody) -> worker::Result<web_sys::ReadableStream> {
    let StreamedBody { before, stream, length, after } = body;
    let fixed = FixedLength::new(before.len() as u64 + length + after.len() as u64)?;
    let (readable, writable) = (fixed.readable(), fixed.writable());
    wasm_bindgen_futures::spawn_local(async move {
        // What fails here fails the stream, and so the response.
        if let Err(error) = write(&writable, &before, stream, &after).await {
            let _ = JsFuture::from(writable.abort_with_reason(&error)).await;
        }
    });
    Ok(readable)
}

async fn write(
    to: &web_sys::WritableStream,
    before: &[u8],
    mut stream: Box<dyn ByteStream>,
    after: &[u8],
) -> Result<(), JsValue> {
    write_bytes(to, before).await?;
    if stream.as_any().is::<RuntimeStream>() {
        if let Ok(stream) = stream.into_any().downcast::<RuntimeStream>() {
            JsFuture::from(stream.pipe_to(to, false)?).await?;
        }
    } else {
        while let Some(bytes) = stream.next().await {
            write_bytes(to, &bytes.map_err(|_| "the stream broke off")?).await?;
        }
    }
    write_bytes(to, after).await?;
    JsFuture::from(to.close()).await.map(drop)
}

async fn write_bytes(to: &web_sys::WritableStream, bytes: &[u8]) -> Result<(), JsValue> {
    if bytes.is_empty() {
        return Ok(());
    }
    let writer = to.get_writer()?;
    let written = JsFuture::from(writer.write_with_chunk(&Uint8Array::from(bytes))).await;
    writer.release_lock();
    written.map(drop)
}

/// Adds every header of the runtime's `headers` to `to`; values that are no header values are left out.
///
/// The runtime joins the values of a name that was sent more than once with `, `.
pub(super) fn read_headers(headers: &web_sys::Headers, to: &mut http::HeaderMap) {
    for entry in headers.entries().into_iter().flatten() {
        let entry: Array = entry.unchecked_into();
        let (Some(name), Some(value)) = (entry.get(0).as_string(), entry.get(1).as_string()) else { continue };
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
        {
            to.append(name, value);
        }
    }
}

/// The runtime's form of `headers`.
pub(super) fn write_headers(headers: &http::HeaderMap) -> worker::Result<web_sys::Headers> {
    let written = web_sys::Headers::new()?;
    for (name, value) in headers {
        written.append(name.as_str(), &String::from_utf8_lossy(value.as_bytes()))?;
    }
    Ok(written)
}

/// Path and query of an absolute URL, byte for byte as they stand in it.
///
/// `Request.url` is what the sender wrote, with its percent-encodings as they were (`%21`, `%2D`, `%2f`, `%7E`) and
/// empty segments kept; only `.` and `..` segments, `%2e` among them, are resolved, and characters that may not stand in
/// a URL are escaped. No path of the API holds either, and a signature over such a one does not verify.
pub(super) fn path_and_query(url: &str) -> Option<Uri> {
    let (_, after_scheme) = url.split_once("://")?;
    let path = after_scheme.find(['/', '?']).map_or("/", |start| &after_scheme[start..]);
    let path = path.split_once('#').map_or(path, |(path, _)| path);
    if path.starts_with('?') { format!("/{path}").parse().ok() } else { path.parse().ok() }
}

async fn body(request: &web_sys::Request, length: Option<usize>, limit: usize) -> Result<Bytes, ReadError> {
    let Some(body) = request.body() else { return Ok(Bytes::new()) };
    if length.is_some_and(|length| length <= limit.min(MAX_BYTES_AT_ONCE)) {
        // HTTP holds the sender to the length it has announced, so the whole can be taken at once.
        let broken = |error: JsValue| ReadError::Broken(stream::describe(&error));
        let buffer = JsFuture::from(request.array_buffer().map_err(broken)?).await.map_err(broken)?;
        return Ok(Uint8Array::new(&buffer).to_vec().into());
    }
    // The platform itself ends a body of more than 100 MB (on its smaller plans), so there is an end to this.
    stream::read_all(&body, limit, Excess::Discarded).await.map(Bytes::from)
}
