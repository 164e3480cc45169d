//! One HTTPS request over a TLS socket: for IP literals, and for a `Host` header that differs from where to connect.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, FutureExt, select};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use worker::{Delay, SecureTransport, Socket};

use super::http1::{self, ResponseParser};
use crate::platform::{OutboundRequest, TransportError};

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// Sends `request` and reads the answer. The runtime verifies the certificate for the host that it connects to.
pub(super) async fn exchange(request: OutboundRequest) -> Result<http::Response<Bytes>, TransportError> {
    let mut socket = Socket::builder()
        .secure_transport(SecureTransport::On)
        .connect(&*request.connect_host, request.connect_port)
        .map_err(|error| TransportError::Failed(error.to_string()))?;
    let timeout = Delay::from(Duration::from_millis(request.timeout_ms.into()));
    let outcome = match select(Box::pin(talk(&mut socket, &request)), Box::pin(timeout)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => Err(TransportError::TimedOut),
    };
    // The first poll asks the runtime to close; nobody needs to wait until it has.
    let _ = socket.close().now_or_never();
    outcome
}

async fn talk(socket: &mut Socket, request: &OutboundRequest) -> Result<http::Response<Bytes>, TransportError> {
    let failed = |error: std::io::Error| TransportError::Failed(error.to_string());
    let bytes = http1::request(&request.request, &request.host_header);
    socket.write_all(&bytes).await.map_err(failed)?;
    let mut parser = ResponseParser::new(request.request.method(), request.max_response_bytes);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = socket.read(&mut buffer).await.map_err(failed)?;
        let (received, ended) = (buffer.get(..count).unwrap_or_default(), count == 0);
        if let Some(response) = if ended { parser.end()? } else { parser.receive(received)? } {
            return Ok(response);
        }
    }
}
