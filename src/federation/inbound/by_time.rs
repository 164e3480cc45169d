//! Events by when they were sent (Server-Server API, "Retrieving events").

use serde_json::json;

use super::{answer, authentication::Signed};
use crate::{
    error::MatrixError,
    federation::outbound::by_time,
    router::{self, Handled},
    server::Server,
};

/// `GET /_matrix/federation/v1/timestamp_to_event/{roomId}?ts=…&dir=…`
pub(super) async fn timestamp_to_event(server: &Server, request: Signed) -> Handled {
    let (ts, direction) = by_time::wanted(&request.call)?;
    let reader = answer::reader(server, &request).await?;
    let found = reader.nearest(ts, direction).await?;
    let (event_id, ts) = found.ok_or_else(|| MatrixError::not_found("There is no event in that direction."))?;
    router::ok(&json!({ "event_id": event_id, "origin_server_ts": ts }))
}
