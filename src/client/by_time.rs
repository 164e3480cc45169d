//! Jumping to a date (Client-Server API, "Getting events for a room": `timestamp_to_event`).

use serde_json::json;

use super::{auth, visibility::Reader};
use crate::{
    error::MatrixError,
    federation::outbound::{backfill, by_time},
    router::{Call, Handled, ok},
    server::Server,
    store::{
        by_time::{Direction, Moment},
        event_graph::Gap,
        snapshots::StateReads,
        timeline::TimelineEvent,
    },
};

/// How often other servers are asked for history on the way to what was asked for, and for how much at once.
const MAX_BACKFILLS: usize = 6;
const AT_ONCE: usize = 100;

/// `GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event`
pub(super) async fn timestamp_to_event(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (ts, direction) = by_time::wanted(call)?;
    let reader = Reader::enter(server, &session, call.parameter(0)).await?;
    let search = Search { server, reader, ts, direction };
    let mut elsewhere = None;
    for round in 0..=MAX_BACKFILLS {
        let nearest = server.store.nearest(&search.reader.room_id, ts, direction, search.reader.last).await?;
        let (moment, events) = nearest.map_or_else(Default::default, |(moment, events)| (Some(moment), events));
        let here = search.nearest_seen(&events).await?;
        let gap = search.gap_at(moment).await?;
        // Where history is lacking, somebody else may know of something nearer.
        if let (0, Some(_)) = (round, &gap) {
            let told = by_time::ask(server, &search.reader.room_id, ts, direction).await?;
            elsewhere = told.filter(|(_, told)| here.as_ref().is_none_or(|(_, held)| search.is_nearer(*told, *held)));
        }
        let is_there = match (&elsewhere, &here) {
            (None, _) => true,
            (Some((wanted, _)), Some((held, _))) => wanted == held,
            (Some(_), None) => false,
        };
        let moved = !is_there && round < MAX_BACKFILLS && search.fill(gap).await?;
        if moved {
            continue;
        }
        let found = elsewhere.filter(|(_, told)| here.as_ref().is_none_or(|(_, held)| search.is_nearer(*told, *held)));
        let (event_id, found_ts) = found.or(here).ok_or_else(|| search.nothing())?;
        return ok(&json!({ "event_id": event_id, "origin_server_ts": found_ts }));
    }
    Err(search.nothing())
}

struct Search<'a> {
    server: &'a Server,
    reader: Reader,
    ts: i64,
    direction: Direction,
}

impl Search<'_> {
    /// The first of the events that the user may see, and when it was sent.
    async fn nearest_seen(&self, events: &[TimelineEvent]) -> Result<Option<(String, i64)>, MatrixError> {
        if events.is_empty() {
            return Ok(None);
        }
        let reader = &self.reader;
        let mut reads = StateReads::default();
        reader.wants(events, &mut reads);
        let found = self.server.store.read_states(&reads).await?;
        let seen = events.iter().find(|event| reader.sees(event, &found)).map(|event| &event.seen.event);
        Ok(seen.map(|event| (event.event_id().to_string(), event.origin_server_ts())))
    }

    /// The gap in history in which the time is. Only for members others are asked.
    async fn gap_at(&self, moment: Option<Moment>) -> Result<Option<Gap>, MatrixError> {
        let Some(moment) = moment.filter(|moment| self.reader.joined && !moment.is_newest) else { return Ok(None) };
        let now = self.server.platform.clock.now_ms();
        let gap = self.server.store.newest_gap(&self.reader.room_id, (moment.pos.before(), moment.pos), now).await?;
        Ok(gap.filter(|gap| gap.is_open() && !gap.at_create))
    }

    async fn fill(&self, gap: Option<Gap>) -> Result<bool, MatrixError> {
        let room = self.server.rooms.room(&self.reader.room_id).await?;
        match room.zip(gap) {
            Some((room, gap)) => backfill::backfill(self.server, &room, &gap, AT_ONCE).await,
            None => Ok(false),
        }
    }

    /// Whether something sent at `one` is nearer than something sent at `other`.
    fn is_nearer(&self, one: i64, other: i64) -> bool {
        match self.direction {
            Direction::Forwards => one >= self.ts && one < other,
            Direction::Backwards => one <= self.ts && one > other,
        }
    }

    fn nothing(&self) -> MatrixError {
        let direction = match self.direction {
            Direction::Forwards => "forward",
            Direction::Backwards => "backward",
        };
        MatrixError::not_found(format!("Unable to find event from {} in {direction} direction", self.ts))
    }
}
