//! Fetching a room's history from other servers when local users page back beyond what we hold (Server-Server API,
//! "Backfilling and retrieving missing events").

use std::collections::HashSet;

use futures_util::future::join_all;

use crate::{
    error::MatrixError,
    federation::pdus,
    matrix::{
        event::Event,
        identifiers::{EventId, ServerName},
    },
    room::{Room, RoomError},
    server::Server,
    store::event_graph::Gap,
};

/// How many events to ask for at once; other servers answer with no more.
const MAX_LIMIT: usize = 100;
/// How many servers to ask before giving up for now.
const MAX_SERVERS: usize = 4;
/// How often to ask for auth events that turn out to be lacking, and for how many events' at once.
const AUTH_ROUNDS: usize = 12;
const AUTH_AT_ONCE: usize = 8;

/// Fetches up to `limit` events into a gap in the room's timeline, from its newer end on. Says whether there are any new
/// ones; if not, no server could help.
///
/// # Errors
/// As the room layer says. Servers that do not answer are no error.
pub async fn backfill(server: &Server, room: &Room, gap: &Gap, limit: usize) -> Result<bool, MatrixError> {
    let limit = limit.clamp(1, MAX_LIMIT);
    for resident in candidates(server, room).await? {
        let mut texts = match server.federation.backfill(&resident, &room.room_id, &gap.missing, limit).await {
            Ok(texts) => texts,
            Err(error) => {
                server.platform.log.warn(&format!("backfill of {} from {resident}: {error}", room.room_id));
                continue;
            }
        };
        texts.truncate(limit);
        let events = pdus::verify_history(server, &room.room_id, room.room_version, &texts).await?.unwrap_or_default();
        if place(server, room, gap, &resident, events).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The servers to ask: whoever made the room knows most of it.
async fn candidates(server: &Server, room: &Room) -> Result<Vec<ServerName>, MatrixError> {
    let mut servers = server.rooms.servers(&room.room_id).await?;
    servers.retain(|name| *name != server.config.server_name);
    if let Some(at) = servers.iter().position(|name| Some(name.as_str()) == room.room_id.server_name()) {
        servers.swap(0, at);
    }
    servers.truncate(MAX_SERVERS);
    Ok(servers)
}

/// Gives `events` their place in the room, with the auth events that they take; says whether any found one. Those whose
/// auth events are not to be had are left out.
async fn place(
    server: &Server,
    room: &Room,
    gap: &Gap,
    resident: &ServerName,
    mut events: Vec<Event>,
) -> Result<bool, MatrixError> {
    let mut auth_events: Vec<Event> = Vec::new();
    for round in 0..=AUTH_ROUNDS {
        if events.is_empty() {
            return Ok(false);
        }
        let missing = match server.rooms.fill(&room.room_id, gap.pos, &events, &auth_events).await {
            Err(RoomError::MissingEvents(missing)) => missing,
            placed => return Ok(placed?),
        };
        let missing: HashSet<EventId> = missing.into_iter().collect();
        let before = auth_events.len();
        if round < AUTH_ROUNDS {
            let citing = events.iter().chain(&auth_events).filter(|event| cites(event, &missing));
            let citing: Vec<EventId> = citing.take(AUTH_AT_ONCE).map(|event| event.event_id().clone()).collect();
            let more = fetch_auth_chains(server, room, resident, &citing).await?;
            let mut known: HashSet<EventId> = auth_events.iter().map(|event| event.event_id().clone()).collect();
            auth_events.extend(more.into_iter().filter(|event| known.insert(event.event_id().clone())));
        }
        if auth_events.len() == before {
            // Nothing more is to be had.
            events.retain(|event| !cites(event, &missing));
            auth_events.retain(|event| !cites(event, &missing));
        }
    }
    Ok(false)
}

fn cites(event: &Event, missing: &HashSet<EventId>) -> bool {
    event.auth_events().iter().any(|id| missing.contains(id))
}

async fn fetch_auth_chains(
    server: &Server,
    room: &Room,
    resident: &ServerName,
    ids: &[EventId],
) -> Result<Vec<Event>, MatrixError> {
    let fetch = |id| server.federation.event_auth(resident, &room.room_id, id);
    let texts: Vec<_> = join_all(ids.iter().map(fetch)).await.into_iter().flatten().flatten().collect();
    Ok(pdus::verify_history(server, &room.room_id, room.room_version, &texts).await?.unwrap_or_default())
}
