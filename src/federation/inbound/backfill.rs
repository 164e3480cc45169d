//! Walks back through a room's graph (Server-Server API, "Backfilling and retrieving missing events").

use super::{
    answer::{self, ObjectText},
    authentication::Signed,
    malformed,
};
use crate::{
    error::MatrixError,
    matrix::{
        identifiers::EventId,
        json::{Object, Value},
    },
    router::Handled,
    server::Server,
};

/// The most events that one `backfill` answers with, and what Synapse asks for.
const MAX_BACKFILL: i64 = 100;
/// The most events that one `get_missing_events` answers with, as Synapse's.
const MAX_MISSING: i64 = 20;
/// How many a `get_missing_events` without `limit` gets.
const DEFAULT_MISSING: i64 = 10;
/// The most event IDs to walk from or to stop at; a server has no more forward extremities than that to tell us of.
const MAX_IDS: usize = 200;

/// `GET /_matrix/federation/v1/backfill/{roomId}?v=…&limit=…`: the events `v` and what precedes them.
pub(super) async fn backfill(server: &Server, request: Signed) -> Handled {
    let reader = answer::reader(server, &request).await?;
    let from = request.call.queries("v");
    if from.is_empty() {
        return Err(MatrixError::missing_param("`v` is missing."));
    }
    let limit = request.call.query("limit").ok_or_else(|| MatrixError::missing_param("`limit` is missing."))?;
    let limit: i64 = limit.parse().map_err(|_| MatrixError::invalid_param("`limit` is not a number."))?;
    let from = event_ids(from.iter().map(String::as_str))?;
    let events = reader.history(&from, &[], limit.clamp(1, MAX_BACKFILL)).await?;
    if events.is_empty() {
        // Synapse takes an empty list for the room's beginning. After an error it asks the next server.
        return Err(MatrixError::not_found("None of these events is held here."));
    }
    Ok(answer::transaction(server, events.iter().map(|event| &*event.text)))
}

/// `POST /_matrix/federation/v1/get_missing_events/{roomId}`: what lies between events that the asking server has and
/// events that it has heard of; the oldest first.
pub(super) async fn get_missing_events(server: &Server, request: Signed) -> Handled {
    let reader = answer::reader(server, &request).await?;
    let body = request.object()?;
    let latest = id_list(body, "latest_events")?;
    let earliest = id_list(body, "earliest_events")?;
    let integer = |name: &str, default: i64| match body.get(name) {
        None => Ok(default),
        Some(value) => value.as_i64().ok_or_else(|| malformed(name)),
    };
    let limit = integer("limit", DEFAULT_MISSING)?.clamp(0, MAX_MISSING);
    let min_depth = integer("min_depth", 0)?;
    let walked = limit.saturating_add(i64::try_from(latest.len()).unwrap_or(i64::MAX));
    let events = reader.history(&latest, &earliest, walked).await?;
    let wanted = events.iter().filter(|event| !latest.contains(&event.event_id) && event.depth >= min_depth);
    let deepest_first: Vec<&str> =
        wanted.take(usize::try_from(limit).unwrap_or(usize::MAX)).map(|event| &*event.text).collect();
    let mut answer = ObjectText::begin();
    answer.list("events", deepest_first.into_iter().rev());
    Ok(answer.response())
}

fn id_list(body: &Object, name: &str) -> Result<Vec<EventId>, MatrixError> {
    let items = body.get(name).and_then(Value::as_array).ok_or_else(|| malformed(name))?;
    let texts = items.iter().map(|item| item.as_str().ok_or_else(|| malformed(name)));
    event_ids(texts.collect::<Result<Vec<_>, _>>()?)
}

fn event_ids<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<EventId>, MatrixError> {
    let ids = texts.into_iter().take(MAX_IDS).map(EventId::parse).collect::<Result<_, _>>();
    ids.map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}
