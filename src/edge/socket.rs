//! One HTTPS request over a TLS socket: for IP literals, and for a `Host` header that differs from where to connect.

use std::{any::Any, future::Future, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, FutureExt, select};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use worker::{Delay, SecureTransport, Socket};

use super::http1::{self, ResponseParser};
use crate::platform::{
    BodyError, LocalBoxFuture, OutboundRequest, StreamedResponse, TransportError, media::ByteStream,
};

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// Sends `request` and reads the answer. The runtime verifies the certificate for the host that it connects to.
pub(super) async fn exchange(request: OutboundRequest) -> Result<http::Response<Bytes>, TransportError> {
    let limit = request.max_response_bytes;
    let whole = async {
        let mut answer = Exchange::begin(&request, limit)?;
        let head = answer.head(&request).await?;
        while !answer.parser.is_whole() {
            answer.read_on().await?;
        }
        Ok(head.map(|()| answer.parser.take_body()))
    };
    in_time(&request, whole).await
}

/// Sends `request` and reads the head of the answer, whose body comes as it is read.
pub(super) async fn open(request: OutboundRequest) -> Result<StreamedResponse, TransportError> {
    let opened = async {
        let mut answer = Exchange::begin(&request, usize::MAX)?;
        let head = answer.head(&request).await?;
        let stream: Box<dyn ByteStream> = Box::new(answer);
        Ok(head.map(|()| stream))
    };
    in_time(&request, opened).await
}

async fn in_time<T>(
    request: &OutboundRequest,
    work: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    let timeout = Delay::from(Duration::from_millis(request.timeout_ms.into()));
    match select(Box::pin(work), Box::pin(timeout)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => Err(TransportError::TimedOut),
    }
}

/// A request that was sent over a connection of its own, and as much of the answer as has come.
struct Exchange {
    socket: Socket,
    parser: ResponseParser,
    buffer: Vec<u8>,
}

impl Exchange {
    fn begin(request: &OutboundRequest, limit: usize) -> Result<Self, TransportError> {
        let socket = Socket::builder()
            .secure_transport(SecureTransport::On)
            .connect(&*request.connect_host, request.connect_port)
            .map_err(|error| TransportError::Failed(error.to_string()))?;
        let parser = ResponseParser::new(request.request.method(), limit);
        Ok(Self { socket, parser, buffer: vec![0; READ_BYTES] })
    }

    /// Sends the request and reads the answer's head.
    async fn head(&mut self, request: &OutboundRequest) -> Result<http::Response<()>, TransportError> {
        let bytes = http1::request(&request.request, &request.host_header);
        self.socket.write_all(&bytes).await.map_err(failed)?;
        loop {
            if let Some(head) = self.parser.take_head() {
                return Ok(head);
            }
            self.read_on().await?;
        }
    }

    async fn read_on(&mut self) -> Result<(), TransportError> {
        let count = self.socket.read(&mut self.buffer).await.map_err(failed)?;
        match count {
            0 => self.parser.end(),
            count => self.parser.receive(self.buffer.get(..count).unwrap_or_default()),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // The first poll asks the runtime to close, and nobody needs to wait until it has. A TLS handshake that the other side never
        // ends, though, the runtime has no way to end: it goes with the event, and in an object when the other side hangs up.
        let _ = self.socket.close().now_or_never();
    }
}

impl ByteStream for Exchange {
    fn next(&mut self) -> LocalBoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async {
            loop {
                let bytes = self.parser.take_body();
                if !bytes.is_empty() {
                    return Some(Ok(bytes));
                }
                if self.parser.is_whole() {
                    return None;
                }
                if self.read_on().await.is_err() {
                    return Some(Err(BodyError::Broken));
                }
            }
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn failed(error: std::io::Error) -> TransportError {
    TransportError::Failed(error.to_string())
}
