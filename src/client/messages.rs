//! Paging through a room, and single events of it (Client-Server API, "Getting events for a room").

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;

use super::{
    auth::{self, Session},
    bundles::Bundles,
    events::{self, Telling},
    filters::EventFilter,
    tokens::Token,
    visibility::{self, Reader},
};
use crate::{
    error::MatrixError,
    federation::outbound::backfill,
    matrix::{
        identifiers::EventId,
        json::{Object, Value},
        state_content::Membership,
        state_trie::StateKeyHash,
    },
    router::{Call, Handled, raw_json_response},
    server::Server,
    store::{
        event_graph::Gap,
        positions::TimelinePos,
        snapshots::{StateFound, StateReads},
        timeline::{PageRead, SeenEvent, TimelineEvent},
    },
};

/// How many events a page has where the client does not say, and at most.
const LIMIT: (i64, i64) = (10, 1_000);
/// How often other servers are asked for one page.
const MAX_BACKFILLS: usize = 3;

/// `GET /rooms/{roomId}/messages`
pub(super) async fn messages(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    // Whoever may not read the room is told so, whatever else is wrong.
    let reader = Reader::enter(server, &session, call.parameter(0)).await?;
    let backwards = match call.query("dir").as_deref() {
        Some("b") => true,
        Some("f") => false,
        Some(_) => return Err(MatrixError::invalid_param("\"dir\" must be b or f.")),
        None => return Err(MatrixError::missing_param("The query lacks \"dir\".")),
    };
    let limit = limit_of(call, LIMIT.0)?.clamp(1, LIMIT.1);
    let filter = filter_of(call)?;
    let (from, to) = (token_of(call, "from")?, token_of(call, "to")?);
    let from = match from {
        Some(token) => token.events,
        None if backwards => server.store.newest_position().await?,
        None => TimelinePos::OLDEST,
    };
    let page = Page { server, session: &session, reader: &reader, filter: &filter, limit };
    let (events, end) = if backwards {
        page.backwards(from, to.map_or(TimelinePos::OLDEST, |to| to.events)).await?
    } else {
        page.forwards(from, to.map_or(TimelinePos::END, |to| to.events)).await?
    };
    page.answer(from, events, end).await
}

/// How many events the client asks for, or as many as `default`.
///
/// # Errors
/// 400 `M_INVALID_PARAM`
pub(super) fn limit_of(call: &Call, default: i64) -> Result<i64, MatrixError> {
    let Some(text) = call.query("limit") else { return Ok(default) };
    text.parse().map_err(|_| MatrixError::invalid_param("\"limit\" must be an integer."))
}

/// The token in the query by this name, if there is one.
///
/// # Errors
/// Those of [`Token::parse`].
pub(super) fn token_of(call: &Call, name: &str) -> Result<Option<Token>, MatrixError> {
    call.query(name).filter(|text| !text.is_empty()).map(|text| Token::parse(&text)).transpose()
}

/// The filter by which the client asks for events.
///
/// # Errors
/// 400 `M_INVALID_PARAM` for one that the database does not take, and those of [`EventFilter::parse`].
pub(super) fn filter_of(call: &Call) -> Result<EventFilter, MatrixError> {
    let filter = EventFilter::parse(call.query("filter").as_deref())?;
    if filter.page().is_too_complex() {
        return Err(MatrixError::invalid_param("A type with a wildcard is too long."));
    }
    Ok(filter)
}

/// `GET /rooms/{roomId}/event/{eventId}`
pub(super) async fn event(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let event_id = EventId::parse(call.parameter(1)).map_err(|_| visibility::no_such_event())?;
    let reader = Reader::enter_for_event(server, &session, call.parameter(0)).await?;
    let now_ms = server.platform.clock.now_ms();
    let placed = server.store.timeline_event(&reader.room_id, &event_id, session.reader()).await?;
    let text = match placed {
        Some(event) if event.pos <= reader.last => {
            let events = [event];
            let mut reads = StateReads::default();
            reader.wants(&events, &mut reads);
            visibility::wants_replaced(&events, &mut reads);
            let (found, bundles) = Bundles::read(server, &session, &reads, &[(&reader, &events)]).await?;
            let [event] = &events;
            if !reader.sees(event, &found) {
                return Err(visibility::no_such_event());
            }
            bundles.timeline_event(&reader, event, &found, now_ms).to_text()
        }
        Some(_) => return Err(visibility::no_such_event()),
        // The state that came with a join has no place in the timeline, but who sees the state sees it.
        None => {
            let stored = server.rooms.event(&event_id).await?.map(|stored| stored.event);
            let stored = stored.filter(|event| *event.room_id() == reader.room_id);
            let key = stored.as_ref().and_then(StateKeyHash::of);
            let key = key.ok_or_else(visibility::no_such_event)?;
            let reads = StateReads { at: vec![(reader.state, key)], ..StateReads::default() };
            let found = server.store.read_states(&reads).await?;
            let seen = found.at(reader.state, key).filter(|seen| *seen.event.event_id() == event_id);
            let telling = Telling::alone(now_ms, true);
            events::client_event(seen.ok_or_else(visibility::no_such_event)?, telling).to_text()
        }
    };
    Ok(raw_json_response(StatusCode::OK, text))
}

/// What pages are read for.
pub(super) struct Page<'a> {
    pub(super) server: &'a Server,
    pub(super) session: &'a Session,
    pub(super) reader: &'a Reader,
    pub(super) filter: &'a EventFilter,
    pub(super) limit: i64,
}

impl Page<'_> {
    /// Events up to position `from`, the newest first, and where the next page begins, unless there is none. Where history
    /// is lacking between them, other servers are asked for it.
    pub(super) async fn backwards(
        &self,
        from: TimelinePos,
        to: TimelinePos,
    ) -> Result<(Vec<TimelineEvent>, Option<TimelinePos>), MatrixError> {
        let from = from.min(self.reader.last);
        // Only members have history fetched for them.
        let mut gaps_to = if self.reader.joined { from.after() } else { to };
        let (mut fillings, mut unfilled) = (0, None);
        loop {
            let (mut events, gap) = self.read((to, from), true, gaps_to).await?;
            let last = events.last().filter(|_| events.len() as i64 >= self.limit).map(|event| event.pos);
            let Some(gap) = gap.filter(|gap| last.is_none_or(|last| gap.pos > last)) else {
                let begun = events.last().is_some_and(|event| event.seen.event.is_state("m.room.create", ""));
                // What nobody could be asked for now may come later: the next page begins with it.
                let behind = unfilled.filter(|gap: &Gap| gap.below.is_none() && gap.is_open() && !gap.at_create);
                let next = last.filter(|_| !begun).or(behind.map(|gap| gap.pos));
                return Ok((events, next.map(TimelinePos::before)));
            };
            let tried = unfilled.as_ref().filter(|tried: &&Gap| tried.pos == gap.pos);
            // Where very many events are nowhere, each request asks for only some of them.
            let is_enough = fillings == MAX_BACKFILLS && gap.below.is_some();
            if tried.is_some_and(|tried| is_enough || !gap.has_more_than(tried)) {
                gaps_to = gap.pos.before();
                unfilled = Some(gap);
                continue;
            }
            if fillings == MAX_BACKFILLS {
                // The next page begins with the gap.
                events.retain(|event| event.pos >= gap.pos);
                return Ok((events, Some(gap.pos.before())));
            }
            fillings += 1;
            if !self.fill(&gap).await? {
                if !gap.has_more {
                    gaps_to = gap.pos.before();
                }
                unfilled = Some(gap);
            }
        }
    }

    /// Events after position `from`, the oldest first, and where the next page begins. At the newest event there may be
    /// more at any time.
    pub(super) async fn forwards(
        &self,
        from: TimelinePos,
        to: TimelinePos,
    ) -> Result<(Vec<TimelineEvent>, Option<TimelinePos>), MatrixError> {
        let (events, _) = self.read((from, to.min(self.reader.last)), false, from).await?;
        let end = events.last().map(|event| event.pos);
        Ok((events, end))
    }

    async fn read(
        &self,
        (after, to): (TimelinePos, TimelinePos),
        backwards: bool,
        gaps_to: TimelinePos,
    ) -> Result<(Vec<TimelineEvent>, Option<Gap>), MatrixError> {
        let room_id = &self.reader.room_id;
        if !self.filter.room(room_id.as_str()) {
            return Ok((Vec::new(), None));
        }
        let (user_id, device_id) = self.session.reader();
        let (limit, filter) = (self.limit, self.filter.page());
        let now = self.server.platform.clock.now_ms();
        let read = PageRead { room_id, after, to, backwards, gaps_to, now, limit, user_id, device_id, filter };
        Ok(self.server.store.page(&read).await?)
    }

    async fn fill(&self, gap: &Gap) -> Result<bool, MatrixError> {
        let Some(room) = self.server.rooms.room(&self.reader.room_id).await? else { return Ok(false) };
        let limit = usize::try_from(self.limit).unwrap_or(100).clamp(20, 100);
        let filled = backfill::backfill(self.server, &room, gap, limit).await?;
        if filled {
            self.server.settle(&self.reader.room_id);
        }
        Ok(filled)
    }

    async fn answer(&self, from: TimelinePos, events: Vec<TimelineEvent>, end: Option<TimelinePos>) -> Handled {
        let mut reads = StateReads::default();
        self.reader.wants(&events, &mut reads);
        visibility::wants_replaced(&events, &mut reads);
        let mut senders: BTreeMap<&str, Sender<'_>> = BTreeMap::new();
        if self.filter.lazy_load_members {
            for event in &events {
                senders.entry(event.seen.event.sender().as_str()).or_insert(Sender { first: event });
            }
            senders.values().for_each(|sender| sender.wants(self.reader, &mut reads));
        }
        let (found, bundles) =
            Bundles::read(self.server, self.session, &reads, &[(self.reader, events.as_slice())]).await?;
        let now_ms = self.server.platform.clock.now_ms();
        let seen: Vec<&TimelineEvent> = events.iter().filter(|event| self.reader.sees(event, &found)).collect();
        let chunk = seen.iter().map(|event| bundles.timeline_event(self.reader, event, &found, now_ms));
        let mut answer = Object::new();
        answer.insert("chunk", Value::Array(chunk.collect()));
        answer.insert("start", Token::at(from).to_string());
        if let Some(end) = end {
            answer.insert("end", Token::at(end).to_string());
        }
        if self.filter.lazy_load_members {
            let shown: BTreeSet<&str> = seen.iter().map(|event| event.seen.event.sender().as_str()).collect();
            senders.retain(|user, _| shown.contains(user));
            let state = senders.values().filter_map(|sender| sender.told(self.reader, &found, now_ms)).collect();
            answer.insert("state", Value::Array(state));
        }
        Ok(raw_json_response(StatusCode::OK, answer.to_text()))
    }
}

/// Somebody of whose events a page tells.
struct Sender<'a> {
    /// The first of these events in the order of the page.
    first: &'a TimelineEvent,
}

impl Sender<'_> {
    fn key(&self) -> StateKeyHash {
        StateKeyHash::member(self.first.seen.event.sender().as_str())
    }

    fn wants(&self, reader: &Reader, reads: &mut StateReads) {
        let states = self.first.seen.state_before.into_iter().chain([reader.state]);
        reads.at.extend(states.map(|state| (state, self.key())));
    }

    /// The membership before the first event: whoever has left since had a name then, and what changes it later in the page
    /// is told there. Whoever comes in with that event is told by it; and where the state then is not known, or not to be seen,
    /// by the state that the reader sees now.
    fn told(&self, reader: &Reader, found: &StateFound, now_ms: i64) -> Option<Value> {
        let telling = Telling::alone(now_ms, true);
        let SeenEvent { event, state_before, .. } = &self.first.seen;
        // Who is put out of a room that they had left is shown that, and nothing of who did it.
        if reader.sees_at(*state_before, self.first.pos, found) {
            let before = state_before.and_then(|state| found.at(state, self.key()));
            let comes = event.is_state("m.room.member", event.sender().as_str())
                && event.membership() == Some(Membership::Join);
            if let Some(then) = before.or(comes.then_some(&self.first.seen)) {
                return Some(events::client_event(
                    then,
                    Telling { erased: reader.reads(self.first, found), ..telling },
                ));
            }
        }
        found.at(reader.state, self.key()).map(|seen| events::client_event(seen, telling))
    }
}
