//! An event with what was around it (Client-Server API, "Event Context").

use http::StatusCode;

use super::{
    auth::{self, Session},
    bundles::Bundles,
    events::{self, Telling},
    filters::EventFilter,
    messages::{self, Page},
    state,
    tokens::Token,
    visibility::{self, Reader, WholeReader},
};
use crate::{
    error::MatrixError,
    matrix::{
        identifiers::EventId,
        json::{Object, Value},
        state_trie::StateKeyHash,
    },
    router::{Call, Handled, raw_json_response},
    server::Server,
    store::{
        positions::TimelinePos,
        snapshots::StateReads,
        timeline::{SeenEvent, TimelineEvent},
    },
};

/// How many events there are around the event where the client does not say, and at most.
const LIMIT: (i64, i64) = (10, 100);

/// `GET /rooms/{roomId}/context/{eventId}`
pub(super) async fn context(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let event_id = EventId::parse(call.parameter(1)).map_err(|_| visibility::no_such_event())?;
    let limit = messages::limit_of(call, LIMIT.0)?.clamp(0, LIMIT.1);
    let filter = messages::filter_of(call)?;
    let reader = match filter.lazy_load_members {
        true => Reader::enter_for_event(server, &session, call.parameter(0)).await?,
        // The whole state is told.
        false => WholeReader::enter_for_event(server, &session, call.parameter(0)).await?.into_reader(),
    };
    let placed = server.store.timeline_event(&reader.room_id, &event_id, session.reader()).await?;
    let event = placed.filter(|event| event.pos <= reader.last).ok_or_else(visibility::no_such_event)?;
    // Whether they may see it is asked before anybody is asked for history.
    if !sees(server, &reader, &event).await? {
        return Err(visibility::no_such_event());
    }
    let page = |limit| Page { server, session: &session, reader: &reader, filter: &filter, limit };
    let (before, after) = (limit / 2, limit - limit / 2);
    let before =
        if before > 0 { page(before).backwards(event.pos.before(), TimelinePos::OLDEST).await?.0 } else { Vec::new() };
    let after = if after > 0 { page(after).forwards(event.pos, TimelinePos::END).await?.0 } else { Vec::new() };
    let around = Around { server, session: &session, reader: &reader, filter: &filter, before, event, after };
    Ok(raw_json_response(StatusCode::OK, around.answer().await?))
}

async fn sees(server: &Server, reader: &Reader, event: &TimelineEvent) -> Result<bool, MatrixError> {
    let mut reads = StateReads::default();
    reader.wants(std::slice::from_ref(event), &mut reads);
    let found = server.store.read_states(&reads).await?;
    Ok(reader.sees(event, &found))
}

/// What is answered with.
struct Around<'a> {
    server: &'a Server,
    session: &'a Session,
    reader: &'a Reader,
    filter: &'a EventFilter,
    before: Vec<TimelineEvent>,
    event: TimelineEvent,
    after: Vec<TimelineEvent>,
}

impl Around<'_> {
    /// The last event that the reader may see.
    async fn last_seen(&self) -> Result<&TimelineEvent, MatrixError> {
        let mut reads = StateReads::default();
        self.reader.wants(&self.after, &mut reads);
        let found = self.server.store.read_states(&reads).await?;
        Ok(self.after.iter().rfind(|event| self.reader.sees(event, &found)).unwrap_or(&self.event))
    }

    async fn answer(&self) -> Result<String, MatrixError> {
        let reader = self.reader;
        // The state at the last event that they may see; where that is not known, the one that they may see now.
        let state = self.last_seen().await?.seen.state_after.unwrap_or(reader.state);
        let mut reads = StateReads::default();
        let parts = [self.before.as_slice(), std::slice::from_ref(&self.event), &self.after];
        for events in parts {
            reader.wants(events, &mut reads);
            visibility::wants_replaced(events, &mut reads);
        }
        let senders = parts.into_iter().flatten().map(|event| event.seen.event.sender().as_str());
        let mut members: Vec<StateKeyHash> = senders.map(StateKeyHash::member).collect();
        members.sort();
        members.dedup();
        if self.filter.lazy_load_members {
            reads.but_members.push(state);
            reads.at.extend(members.iter().map(|key| (state, *key)));
        }
        let shown = parts.map(|events| (reader, events));
        let (found, bundles) = Bundles::read(self.server, self.session, &reads, &shown).await?;
        let now_ms = self.server.platform.clock.now_ms();
        let tell = |event: &TimelineEvent| bundles.timeline_event(reader, event, &found, now_ms);
        let told = |events: &[TimelineEvent]| -> Vec<Value> {
            events.iter().filter(|event| reader.sees(event, &found)).map(tell).collect()
        };
        let room_id = reader.room_id.as_str();
        let telling = Telling::alone(now_ms, true);
        let is_told = |seen: &SeenEvent| self.filter.event(room_id, &seen.event);
        let oldest = self.before.last().unwrap_or(&self.event);
        let last = self.after.last().unwrap_or(&self.event);
        let mut answer = Object::from_iter([
            ("end", Value::from(Token::at(last.pos).to_string())),
            ("event", tell(&self.event)),
            ("events_after", Value::Array(told(&self.after))),
            ("events_before", Value::Array(told(&self.before))),
            ("start", Value::from(Token::at(oldest.pos.before()).to_string())),
        ]);
        if self.filter.lazy_load_members {
            let needed = members.iter().filter_map(|key| found.at(state, *key));
            let held = found.but_members(state).iter().chain(needed).filter(|seen| is_told(seen));
            answer.insert("state", Value::Array(held.map(|seen| events::client_event(seen, telling)).collect()));
            return Ok(answer.to_text());
        }
        let mut text = answer.to_text();
        text.pop();
        text.push_str(",\"state\":");
        state::write_state(self.server, state, &mut text, &is_told).await?;
        text.push('}');
        Ok(text)
    }
}
