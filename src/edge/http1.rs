//! HTTP/1.1 messages over a byte stream (RFC 9112): one request, one bounded response, no second one.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use httparse::Status;

use crate::platform::TransportError;

/// The longest status line with headers, and the longest line between two chunks.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;

/// `request` as it goes over the wire, asking the server to close the connection after the answer.
pub(super) fn request(request: &http::Request<Bytes>, host_header: &str) -> Vec<u8> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let mut bytes = format!(
        "{} {path} HTTP/1.1\r\nHost: {host_header}\r\nConnection: close\r\nAccept-Encoding: identity\r\n",
        request.method()
    )
    .into_bytes();
    let body = request.body();
    if !body.is_empty() || matches!(*request.method(), Method::POST | Method::PUT) {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    for (name, value) in request.headers() {
        if ![header::HOST, header::CONNECTION, header::ACCEPT_ENCODING, header::CONTENT_LENGTH].contains(name) {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// Takes a response apart as it arrives.
pub(super) struct ResponseParser {
    /// What has arrived and is not understood yet.
    pending: Vec<u8>,
    answers_head: bool,
    limit: usize,
    head: Option<(StatusCode, HeaderMap)>,
    /// `None` before the head is there.
    framing: Option<Framing>,
    /// What of the body was understood and not taken yet.
    body: Vec<u8>,
    /// How long the body is so far.
    length: usize,
}

/// How the end of the body is found (RFC 9112, section 6.3), and how far it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// After this many bytes.
    Length(usize),
    /// By a chunk of no bytes; this is what comes next.
    Chunked(Chunk),
    /// By the end of the connection.
    UntilClose,
    /// It was found.
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size,
    /// So many bytes of the chunk are left.
    Bytes(usize),
    LineBreak,
}

impl ResponseParser {
    /// For the response to a request with `method`, with a body of at most `limit` bytes.
    pub(super) fn new(method: &Method, limit: usize) -> Self {
        Self {
            pending: Vec::new(),
            answers_head: *method == Method::HEAD,
            limit,
            head: None,
            framing: None,
            body: Vec::new(),
            length: 0,
        }
    }

    /// Takes the next bytes.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        self.pending.extend_from_slice(bytes);
        while self.framing.is_none() {
            if !self.read_head()? {
                return Ok(());
            }
        }
        while self.read_body()? {}
        Ok(())
    }

    /// The connection has ended.
    pub(super) fn end(&mut self) -> Result<(), TransportError> {
        match self.framing {
            Some(Framing::UntilClose | Framing::Ended) => {
                self.framing = Some(Framing::Ended);
                Ok(())
            }
            _ => Err(failed("the connection ended before the answer did")),
        }
    }

    /// Whether nothing of the answer is still to come.
    pub(super) fn is_whole(&self) -> bool {
        self.framing == Some(Framing::Ended)
    }

    /// The head, once it is there; it can be taken once.
    pub(super) fn take_head(&mut self) -> Option<http::Response<()>> {
        let (status, headers) = self.head.take()?;
        let mut response = http::Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Some(response)
    }

    /// What of the body has come since it was taken last.
    pub(super) fn take_body(&mut self) -> Bytes {
        std::mem::take(&mut self.body).into()
    }

    /// Reads one head out of `pending`; `false` where it is not complete. An interim (1xx) head is skipped.
    fn read_head(&mut self) -> Result<bool, TransportError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let length = match parsed.parse(&self.pending) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) if self.pending.len() > MAX_HEAD_BYTES => return Err(TransportError::TooLarge),
            Ok(Status::Partial) => return Ok(false),
            Err(error) => return Err(failed(&format!("the answer is not HTTP: {error}"))),
        };
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(|| failed("no status"))?;
        let mut map = HeaderMap::new();
        for parsed in parsed.headers.iter() {
            let name = HeaderName::from_bytes(parsed.name.as_bytes());
            let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(parsed.value)) else {
                return Err(failed("the answer has a malformed header"));
            };
            map.append(name, value);
        }
        self.pending.drain(..length);
        if status.is_informational() {
            // 101 would mean another protocol, which was not asked for.
            return if status == StatusCode::SWITCHING_PROTOCOLS { Err(failed("status 101")) } else { Ok(true) };
        }
        self.framing = Some(self.framing(status, &map)?);
        self.head = Some((status, map));
        Ok(true)
    }

    fn framing(&self, status: StatusCode, headers: &HeaderMap) -> Result<Framing, TransportError> {
        if self.answers_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Framing::Length(0));
        }
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
            && encoding != "identity"
        {
            return Err(failed("the answer is compressed, which was not asked for"));
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next() {
            let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
            return if chunked {
                Ok(Framing::Chunked(Chunk::Size))
            } else {
                Err(failed("an unknown transfer encoding"))
            };
        }
        let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        let Some(length) = lengths.next() else { return Ok(Framing::UntilClose) };
        if lengths.any(|other| other != length) {
            return Err(failed("two different content lengths"));
        }
        let digits = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let length = digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| failed("no content length"))?;
        if length > self.limit { Err(TransportError::TooLarge) } else { Ok(Framing::Length(length)) }
    }

    /// Moves what it can from `pending` to `body`; whether there may be more to move. Trailers are not read.
    fn read_body(&mut self) -> Result<bool, TransportError> {
        let next = match self.framing {
            None | Some(Framing::Ended) => return Ok(false),
            Some(Framing::UntilClose) => {
                let all = self.pending.len();
                self.move_bytes(all)?;
                return Ok(false);
            }
            Some(Framing::Length(left)) => match left - self.move_bytes(left)? {
                0 => Framing::Ended,
                left => {
                    self.framing = Some(Framing::Length(left));
                    return Ok(false);
                }
            },
            Some(Framing::Chunked(Chunk::Bytes(left))) => match left - self.move_bytes(left)? {
                0 => Framing::Chunked(Chunk::LineBreak),
                left => {
                    self.framing = Some(Framing::Chunked(Chunk::Bytes(left)));
                    return Ok(false);
                }
            },
            Some(Framing::Chunked(Chunk::LineBreak)) => match self.pending.get(..2) {
                None => return Ok(false),
                Some(b"\r\n") => {
                    self.pending.drain(..2);
                    Framing::Chunked(Chunk::Size)
                }
                Some(_) => return Err(failed("a malformed chunk")),
            },
            Some(Framing::Chunked(Chunk::Size)) => {
                let (line, size) = match httparse::parse_chunk_size(&self.pending) {
                    Ok(Status::Complete(found)) => found,
                    Ok(Status::Partial) if self.pending.len() > MAX_HEAD_BYTES => return Err(TransportError::TooLarge),
                    Ok(Status::Partial) => return Ok(false),
                    Err(_) => return Err(failed("a malformed chunk")),
                };
                self.pending.drain(..line);
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                if size > self.limit.saturating_sub(self.length) {
                    return Err(TransportError::TooLarge);
                }
                if size == 0 { Framing::Ended } else { Framing::Chunked(Chunk::Bytes(size)) }
            }
        };
        self.framing = Some(next);
        Ok(next != Framing::Ended)
    }

    /// Moves at most so many bytes from `pending` to `body`; how many it were.
    fn move_bytes(&mut self, most: usize) -> Result<usize, TransportError> {
        let count = self.pending.len().min(most);
        if count > self.limit.saturating_sub(self.length) {
            return Err(TransportError::TooLarge);
        }
        self.body.extend(self.pending.drain(..count));
        self.length += count;
        Ok(count)
    }
}

fn failed(why: &str) -> TransportError {
    TransportError::Failed(why.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Feeds `wire` in pieces of `step` bytes, then the end of the connection.
    fn parse(wire: &[u8], step: usize, limit: usize) -> Result<http::Response<Bytes>, TransportError> {
        let mut parser = ResponseParser::new(&Method::GET, limit);
        for piece in wire.chunks(step) {
            parser.receive(piece)?;
            if parser.is_whole() {
                return Ok(whole(parser));
            }
        }
        parser.end()?;
        Ok(whole(parser))
    }

    fn whole(mut parser: ResponseParser) -> http::Response<Bytes> {
        let head = parser.take_head().unwrap();
        head.map(|()| parser.take_body())
    }

    #[test]
    fn every_framing_gives_the_body_however_it_is_cut() {
        // The chunked body is that of RFC 9112, section 7.1, with an extension and a trailer.
        let answers: [&[u8]; 4] = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nHello World",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nHello \r\n5;a=b\r\nWorld\r\n0\r\nX: y\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\nHello World",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:11\r\n\r\nHello World",
        ];
        for wire in answers {
            for step in [1, 2, 7, wire.len()] {
                let response = parse(wire, step, 11).unwrap();
                assert_eq!(response.status(), 200);
                assert_eq!(response.body().as_ref(), b"Hello World", "{}", String::from_utf8_lossy(wire));
                assert_eq!(parse(wire, step, 10).unwrap_err(), TransportError::TooLarge);
            }
        }
    }

    #[test]
    fn answers_without_a_body_end_with_their_head() {
        let response = parse(b"HTTP/1.1 204 No Content\r\n\r\n", 3, 0).unwrap();
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        let mut parser = ResponseParser::new(&Method::HEAD, 0);
        parser.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n").unwrap();
        assert!(parser.is_whole());
        let response = whole(parser);
        assert_eq!(response.headers()[header::CONTENT_LENGTH], "99");
    }

    #[test]
    fn a_body_is_handed_on_as_it_comes_whatever_its_framing() {
        for head in ["Content-Length: 1000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nf4240\r\n", "\r\n"] {
            let mut parser = ResponseParser::new(&Method::GET, 1_000_000);
            parser.receive(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes()).unwrap();
            assert_eq!(parser.take_head().unwrap().status(), StatusCode::OK);
            for _ in 0..100 {
                assert!(!parser.is_whole());
                parser.receive(&[7; 10_000]).unwrap();
                assert_eq!((parser.take_body().len(), parser.pending.len()), (10_000, 0), "{head}");
            }
            if head.starts_with('T') {
                parser.receive(b"\r\n0\r\n\r\n").unwrap();
            }
            parser.end().unwrap();
            assert!(parser.is_whole() && parser.take_body().is_empty());
        }
    }

    #[test]
    fn broken_answers_are_refused() {
        for wire in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nHello"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nHello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nHelloXX0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nHello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nHello",
            b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nHello",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nHello",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/1.1 200 OK\r\n",
        ] {
            let refused = parse(wire, 4, 1000);
            assert!(matches!(refused, Err(TransportError::Failed(_))), "{}", String::from_utf8_lossy(wire));
        }
        let endless_head = [&b"HTTP/1.1 200 OK\r\nX: "[..], &[b'a'; 80_000]].concat();
        assert_eq!(parse(&endless_head, 4096, 1000).unwrap_err(), TransportError::TooLarge);
    }

    #[test]
    fn a_request_has_its_own_host_and_length() {
        let put = http::Request::put("/_matrix/federation/v1/send/1?x=%21")
            .header("Host", "forged")
            .header("Authorization", "X-Matrix origin=a")
            .body(Bytes::from_static(b"{}"))
            .unwrap();
        let bytes = request(&put, "example.org");
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Request::new(&mut headers);
        let head = parsed.parse(&bytes).unwrap().unwrap();
        assert_eq!((parsed.method, parsed.path), (Some("PUT"), Some("/_matrix/federation/v1/send/1?x=%21")));
        let values = |name: &str| {
            parsed.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value).collect::<Vec<_>>()
        };
        assert_eq!(values("host"), [b"example.org"]);
        assert_eq!(values("content-length"), [b"2"]);
        assert_eq!(values("authorization"), [b"X-Matrix origin=a"]);
        assert_eq!(&bytes[head..], b"{}");
    }
}
