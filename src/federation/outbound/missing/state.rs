//! The state before the far edge of a gap, which other servers vouch for (Server-Server API, `state_ids`, `state`).

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::{look::Look, whom::Question};
use crate::{
    federation::{
        pdus::{self, AnswerMemory},
        peers::{requests::within, retrieving::StateIds},
    },
    log::LogRecord,
    matrix::{
        event::{Event, ReceivedPdu},
        identifiers::{EventId, ServerName},
    },
    room::{AskedAbout, Claim, Lacking, RoomError},
};

/// How many edges are asked about before it is looked whether that was of use.
const MAX_EDGES_AT_ONCE: usize = 5;

/// How many servers' claims are taken together: what one of them leaves out, or holds on to, the other may know better.
const MAX_CLAIMS: usize = 2;

/// The most ids that the answer to `state_ids` may hold.
const MAX_STATE_IDS: usize = 100_000;

/// Where more events than this are missing, the whole state is asked for, and not each of them.
const MAX_SINGLE_EVENTS: usize = 60;

/// How many of them are asked for at a time.
const SINGLE_EVENTS_AT_A_TIME: usize = 4;

/// An event of which so many servers have given copies that fail the checks, and nobody a good one, is left out of a state.
const MIN_BAD_COPIES: usize = 2;

/// How long one event may take to come, in milliseconds.
const ONE_EVENT_MS: i64 = 10_000;

/// How long the ids of a state may take to come, and a state, in milliseconds.
const STATE_IDS_MS: i64 = 20_000;

/// The events that auth rules ask for, and no others are in an auth chain.
const AUTH_TYPES: [&str; 5] =
    ["m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules", "m.room.third_party_invite"];

/// What a server must be of no help with, for it to be asked about the state before an event.
#[derive(Clone, Copy)]
struct Helpless<'i> {
    /// It does not give these events, or no copy of use.
    events: &'i [EventId],
    /// Whether a copy counts too that lacks a key which may come yet.
    without_keys: bool,
}

impl Helpless<'_> {
    /// Nothing: any server is asked.
    const NOTHING: Self = Self { events: &[], without_keys: false };
}

/// What is known of an edge and of the states around it, from whomever.
struct Known {
    /// The edge itself, once somebody has given it.
    edge: Option<Event>,
    events: HashMap<EventId, Event>,
    /// Those that we held before, or have rejected: what they cite we know.
    held: HashSet<EventId>,
    /// The memory that is left for more.
    memory: AnswerMemory,
}

/// What a server says that the state before an event is.
struct ClaimedIds {
    state: Vec<EventId>,
    auth_chain: Vec<EventId>,
}

impl Look<'_> {
    /// Asks for the states before events that others cite and that we lack, and takes them over, until one is believed. Whether any
    /// was. Where none is, all have been asked for: an event may cite many that nobody gives.
    pub(super) async fn ask_for_states(&mut self, lacking: &[Lacking]) -> Result<bool, RoomError> {
        let mut tried: HashSet<EventId> = HashSet::new();
        loop {
            let mut edges: Vec<(EventId, EventId)> = Vec::new();
            for Lacking { event, previous, .. } in lacking {
                for edge in previous {
                    if edges.len() < MAX_EDGES_AT_ONCE
                        && !tried.contains(edge)
                        && self.whom.next(Question::StateBefore, edge, event.event_id()).await?.is_some()
                    {
                        tried.insert(edge.clone());
                        edges.push((edge.clone(), event.event_id().clone()));
                    }
                }
            }
            let mut progress = false;
            for (edge, cited_by) in &edges {
                progress |= self.place(edge, cited_by).await?;
            }
            if progress || edges.is_empty() || self.is_over() {
                return Ok(progress);
            }
        }
    }

    /// Takes over what servers say that the state before `edge` is. Whether any of it was believed.
    async fn place(&mut self, edge: &EventId, cited_by: &EventId) -> Result<bool, RoomError> {
        let held = self.server.rooms.event(edge).await?;
        if held.as_ref().is_some_and(|held| held.event.room_id() != &self.room.room_id) {
            // Nobody's word makes another room's event one of this room.
            return Ok(false);
        }
        let rooms = &self.server.rooms;
        let known = Known::of(held.map(|stored| stored.event));
        let take = async |event: &Event, claims: &[Claim]| rooms.place(event, claims).await;
        Ok(self.until_believed(edge, cited_by, Helpless::NOTHING, known, take).await?.is_some())
    }

    /// Asks what the state before an event was, which rests on a claim: whoever could say so before may have been the only one who
    /// answered. Whether it is another one now.
    pub(super) async fn ask_again(&mut self, AskedAbout { event_id, server }: &AskedAbout) -> Result<bool, RoomError> {
        let rooms = &self.server.rooms;
        let Some(event) = rooms.undecided_event(event_id).await? else { return Ok(false) };
        if let Some(server) = server {
            self.whom.should_know(event_id, server);
        }
        let take = async |event: &Event, claims: &[Claim]| rooms.claim_again(event, claims).await;
        let changed = self.until_believed(event_id, event_id, Helpless::NOTHING, Known::of(Some(event)), take).await?;
        Ok(changed.unwrap_or_default())
    }

    /// Asks for the states before events in hand themselves, where servers that know these do not give what the events cite, or no
    /// copy of it that we can use: what the room's rules forbid is given by nobody, and yet its sender may have built upon it; and a
    /// server whose keys only we cannot obtain does not end the room for us, once it was asked in vain for some time. Whether any event
    /// was judged so.
    pub(super) async fn ask_for_states_instead(&mut self, lacking: &[Lacking]) -> Result<bool, RoomError> {
        let mut progress = false;
        let have_waited = self.have_waited();
        let stuck = lacking.iter().filter(|lacking| lacking.auth.is_empty() && !lacking.previous.is_empty());
        for Lacking { event, previous, .. } in stuck {
            if self.is_over() {
                break;
            }
            let rooms = &self.server.rooms;
            let (id, known) = (event.event_id(), Known::of(Some(event.clone())));
            let take = async |event: &Event, claims: &[Claim]| rooms.judge_by_claims(event, claims).await;
            let helpless = Helpless { events: previous, without_keys: have_waited.contains(id) };
            progress |= self.until_believed(id, id, helpless, known, take).await?.is_some();
        }
        Ok(progress)
    }

    /// Asks servers what the state before `edge` is until `take` believes some of them: what that says, or `None` where nobody is
    /// believed. See [`Look::claims`].
    async fn until_believed<T>(
        &mut self,
        edge: &EventId,
        cited_by: &EventId,
        helpless: Helpless<'_>,
        mut known: Known,
        take: impl AsyncFn(&Event, &[Claim]) -> Result<T, RoomError>,
    ) -> Result<Option<T>, RoomError> {
        loop {
            let claims = self.claims(edge, cited_by, helpless, &mut known).await?;
            let Some(event) = known.edge.clone().filter(|_| !claims.is_empty()) else { return Ok(None) };
            match take(&event, &claims).await {
                Err(error @ RoomError::Invalid(_)) => self.doubt(edge, &error),
                taken => return taken.map(Some),
            }
        }
    }

    fn doubt(&mut self, edge: &EventId, error: &RoomError) {
        let record = LogRecord::warning("what is claimed of the state before an event is not believed");
        self.server.platform.log.write(record.room(&self.room.room_id).event(edge).because(error));
        self.whom.note_useless(Question::StateBefore, edge);
    }

    /// What servers say that the state before `edge` is: of those only that are so `helpless`.
    async fn claims(
        &mut self,
        edge: &EventId,
        cited_by: &EventId,
        helpless: Helpless<'_>,
        known: &mut Known,
    ) -> Result<Vec<Claim>, RoomError> {
        let mut claims = Vec::new();
        while claims.len() < MAX_CLAIMS
            && let Some(name) = self.whom.next(Question::StateBefore, edge, cited_by).await?
        {
            self.whom.note(Question::StateBefore, edge, &name);
            let gives_none = |id: &EventId| {
                self.whom.has_denied(&name, id)
                    || self.has_refused_for_good(id, &name)
                    || helpless.without_keys && self.has_refused(id, &name)
            };
            if !helpless.events.iter().all(gives_none) {
                continue;
            }
            match self.claim(&name, edge, cited_by, known).await? {
                Some(claim) => {
                    let events = |ids: &[EventId]| ids.iter().filter_map(|id| known.events.get(id).cloned()).collect();
                    let (state, auth_chain) = (events(&claim.state), events(&claim.auth_chain));
                    claims.push(Claim { state, auth_chain, stranger: self.stranger(&name).await? });
                }
                None => self.whom.note_useless(Question::StateBefore, edge),
            }
        }
        Ok(claims)
    }

    /// What a server says that the state before `edge` is; the events of it are then known. `None` where it does not say, or
    /// only in part.
    async fn claim(
        &mut self,
        name: &ServerName,
        edge: &EventId,
        cited_by: &EventId,
        known: &mut Known,
    ) -> Result<Option<ClaimedIds>, RoomError> {
        let server = self.server;
        let event = match known.edge.clone() {
            Some(event) => event,
            None if self.has_refused(edge, name) => return Ok(None),
            None => {
                let Some(text) = self.ask(name, edge, server.federation.event(name, edge)).await else {
                    return Ok(None);
                };
                let wanted = std::slice::from_ref(edge);
                let Some(event) = self.check(name, &[text], wanted, cites_nothing).await?.pop() else {
                    return Ok(None);
                };
                known.edge.insert(event).clone()
            }
        };
        let room_id = self.room.room_id.clone();
        let request = server.federation.state_ids(name, &room_id, edge);
        let Some(StateIds { pdu_ids, auth_chain_ids }) = self.ask_for(STATE_IDS_MS, name, edge, request).await else {
            return Ok(None);
        };
        if pdu_ids.len() + auth_chain_ids.len() > MAX_STATE_IDS {
            let record = LogRecord::warning("a state that a server claims is too large to be used");
            server.platform.log.write(record.room(&room_id).event(edge).destination(name));
            return Ok(None);
        }
        let mut claim = ClaimedIds { state: pdu_ids, auth_chain: auth_chain_ids };
        if !self.load_held(name, edge, &mut claim, known).await? {
            return Ok(None);
        }
        let listed = claim.missing(known);
        if !self.fetch(name, &event, &listed, known).await? {
            return Ok(None);
        }
        if !self.make_whole(name, &event, (cited_by, &listed), &claim, known).await? {
            // A state of which a part is lacking is another state.
            let record = LogRecord::warning("a state that a server claims cannot be obtained whole");
            server.platform.log.write(record.room(&room_id).event(edge).destination(name));
            return Ok(None);
        }
        claim.add_cited(&event, known);
        Ok(Some(claim))
    }

    /// Gets what is lacking of a claim from others in the room: a copy may be refused, or withheld, that another server has.
    /// `listed` was asked for of the server that claims it. `false` where something cannot be had.
    async fn make_whole(
        &mut self,
        name: &ServerName,
        edge: &Event,
        (cited_by, listed): (&EventId, &[EventId]),
        claim: &ClaimedIds,
        known: &mut Known,
    ) -> Result<bool, RoomError> {
        loop {
            let lacking = claim.lacking(edge, known);
            let Some(first) = lacking.first().cloned() else { return Ok(true) };
            if self.load_cited(&lacking, known).await? {
                continue;
            }
            if listed.contains(&first) {
                self.whom.note(Question::Event, &first, name);
            }
            let Some(other) = self.whom.next(Question::Event, &first, cited_by).await? else {
                // Of an event that several have, and nobody has a good copy of, no server can make use.
                return Ok(are_refused(&lacking, &self.refused));
            };
            self.whom.note(Question::Event, &first, &other);
            self.fetch(&other, edge, &lacking, known).await?;
            if !known.has(&first) {
                self.whom.note_useless(Question::Event, &first);
            }
        }
    }

    /// Asks a server for events of the state before `edge`. `false` where it has not answered, or what it gives takes more memory
    /// than there is; an event that it does not have is left out.
    async fn fetch(
        &mut self,
        name: &ServerName,
        edge: &Event,
        ids: &[EventId],
        known: &mut Known,
    ) -> Result<bool, RoomError> {
        let ids: Vec<EventId> = ids.iter().filter(|id| !self.has_refused(id, name)).cloned().collect();
        if ids.len() <= MAX_SINGLE_EVENTS {
            return self.fetch_single(name, &ids, known).await;
        }
        let (server, room_id) = (self.server, self.room.room_id.clone());
        let request = server.federation.state(name, &room_id, edge.event_id());
        let Some(answer) = self.ask_for(self.left_ms(), name, edge.event_id(), request).await else { return Ok(false) };
        let texts: Vec<Bytes> = answer.pdus.into_iter().chain(answer.auth_chain).collect();
        let wanted: Vec<EventId> = ids.iter().chain(edge.auth_events()).cloned().collect();
        self.add(name, &texts, &wanted, known).await
    }

    /// Loads those of the events that claimed ones cite that we hold. Whether any was: rejected ones count too.
    async fn load_cited(&self, ids: &[EventId], known: &mut Known) -> Result<bool, RoomError> {
        let headers = self.server.store.headers(self.server.platform.clock.as_ref(), ids).await?;
        let takes = headers.iter().map(|header| pdus::memory_of_held(header.bytes)).sum();
        if !known.memory.take(self.server, takes)? {
            return Ok(false);
        }
        let before = known.held.len();
        known.held.extend(headers.into_iter().map(|header| header.event_id));
        for rejected in self.server.store.rejected(self.server.platform.clock.as_ref(), ids).await? {
            known.held.insert(rejected.event_id);
        }
        for stored in self.server.rooms.events(ids).await? {
            known.events.insert(stored.event.event_id().clone(), stored.event);
        }
        Ok(known.held.len() > before)
    }

    /// Loads what we hold of a claim, and leaves out of it what cannot be part of a state: a claim must not make us load whatever
    /// we have. `false` where it takes more memory than there is.
    async fn load_held(
        &self,
        name: &ServerName,
        edge: &EventId,
        claim: &mut ClaimedIds,
        known: &mut Known,
    ) -> Result<bool, RoomError> {
        let mut ids: Vec<EventId> = claim.missing(known);
        let headers = self.server.store.headers(self.server.platform.clock.as_ref(), &ids).await?;
        let headers: HashMap<&EventId, _> = headers.iter().map(|header| (&header.event_id, header)).collect();
        let is_here = |id: &EventId| headers.get(id).is_none_or(|header| header.room_id == self.room.room_id);
        claim.state.retain(|id| is_here(id) && headers.get(id).is_none_or(|header| header.is_state));
        let is_auth = |event_type: &str| AUTH_TYPES.contains(&event_type);
        claim.auth_chain.retain(|id| is_here(id) && headers.get(id).is_none_or(|header| is_auth(&header.event_type)));
        let wanted: HashSet<&EventId> = claim.state.iter().chain(&claim.auth_chain).collect();
        ids.retain(|id| headers.contains_key(id) && wanted.contains(id));
        let takes = ids.iter().filter_map(|id| headers.get(id)).map(|header| pdus::memory_of_held(header.bytes)).sum();
        if !known.memory.take(self.server, takes)? {
            let record = LogRecord::warning("a state that a server claims takes more memory than there is");
            self.server.platform.log.write(record.room(&self.room.room_id).event(edge).destination(name));
            return Ok(false);
        }
        known.held.extend(ids.iter().cloned());
        for stored in self.server.rooms.events(&ids).await? {
            known.events.insert(stored.event.event_id().clone(), stored.event);
        }
        Ok(true)
    }

    /// Asks a server for events one by one. `false` where it is away, or fails at all of them; any that it does not give is left out.
    async fn fetch_single(&mut self, name: &ServerName, ids: &[EventId], known: &mut Known) -> Result<bool, RoomError> {
        if ids.is_empty() {
            return Ok(true);
        }
        if !self.take_requests(ids.len()) {
            return Ok(false);
        }
        let mut texts: Vec<Bytes> = Vec::with_capacity(ids.len());
        let (server, until) = (self.server, self.until);
        let single = |id: EventId| async move {
            let clock = server.platform.clock.as_ref();
            within(clock, ONE_EVENT_MS.min(until - clock.now_ms()), server.federation.event(name, &id)).await
        };
        let mut outcomes = stream::iter(ids.iter().cloned()).map(single).buffered(SINGLE_EVENTS_AT_A_TIME);
        while let Some(outcome) = outcomes.next().await {
            self.whom.note_standing(name, &outcome);
            match outcome {
                Ok(text) => texts.push(text),
                Err(error) if self.whom.is_set_aside(name) => {
                    let record = LogRecord::warning("a server does not give the events of a state");
                    server.platform.log.write(record.room(&self.room.room_id).destination(name).because(&error));
                    return Ok(false);
                }
                // It has no such event, or cannot give this one: another server may.
                Err(_) => {}
            }
        }
        self.add(name, &texts, ids, known).await
    }

    /// Adds events that a server gave and that `wanted` lead to; in the place of what is known comes only what completes it. `false`
    /// where they take more memory than there is.
    async fn add(
        &mut self,
        name: &ServerName,
        texts: &[Bytes],
        wanted: &[EventId],
        known: &mut Known,
    ) -> Result<bool, RoomError> {
        let checked = self.check_within(&mut known.memory, name, texts, wanted, ReceivedPdu::auth_events).await?;
        let Some(events) = checked else { return Ok(false) };
        for event in events {
            if known.events.get(event.event_id()).is_none_or(|had| event.completes(had)) {
                known.events.insert(event.event_id().clone(), event);
            }
        }
        Ok(true)
    }
}

impl ClaimedIds {
    /// The events of it that are not known yet, each once.
    fn missing(&self, known: &Known) -> Vec<EventId> {
        let mut seen = HashSet::new();
        let all = self.state.iter().chain(&self.auth_chain);
        all.filter(|id| !known.has(id) && seen.insert(*id)).cloned().collect()
    }

    /// The events that are lacking for the state to be whole: its own, and those that they and the edge lead to as auth events.
    fn lacking(&self, edge: &Event, known: &Known) -> Vec<EventId> {
        let reached = known.auth_chain(self.state.iter().filter_map(|id| known.events.get(id)).chain([edge]));
        let mut lacking: Vec<EventId> =
            self.state.iter().chain(&reached).filter(|id| !known.has(id)).cloned().collect();
        lacking.sort();
        lacking.dedup();
        lacking
    }

    /// Makes the auth chain what the state and the edge lead to.
    fn add_cited(&mut self, edge: &Event, known: &Known) {
        let from = self.state.iter().filter_map(|id| known.events.get(id)).chain([edge]);
        self.auth_chain = known.auth_chain(from).into_iter().collect();
        self.auth_chain.sort();
    }
}

impl Known {
    fn of(edge: Option<Event>) -> Self {
        Self { edge, events: HashMap::new(), held: HashSet::new(), memory: AnswerMemory::default() }
    }

    /// Whether the event needs not be asked for.
    fn has(&self, id: &EventId) -> bool {
        self.events.contains_key(id) || self.held.contains(id)
    }

    /// The ids of the auth events that events lead to, through those that are known.
    fn auth_chain<'a>(&'a self, from: impl Iterator<Item = &'a Event>) -> HashSet<EventId> {
        let mut reached: HashSet<EventId> = HashSet::new();
        let mut waiting: Vec<&Event> = from.collect();
        while let Some(event) = waiting.pop() {
            let implied = event.version().room_id_is_create_hash.then(|| event.room_id().create_event_id());
            for id in event.auth_events().iter().cloned().chain(implied) {
                // What a held event cites is held.
                let next = self.events.get(&id).filter(|_| !self.held.contains(&id));
                if reached.insert(id)
                    && let Some(next) = next
                {
                    waiting.push(next);
                }
            }
        }
        reached
    }
}

/// Whether enough servers have given copies of each of these events that failed the checks.
fn are_refused(ids: &[EventId], refused: &HashSet<(EventId, ServerName)>) -> bool {
    let mut givers: HashMap<&EventId, usize> = HashMap::new();
    for (id, _) in refused {
        *givers.entry(id).or_default() += 1;
    }
    ids.iter().all(|id| givers.get(id).is_some_and(|givers| *givers >= MIN_BAD_COPIES))
}

fn cites_nothing(_: &ReceivedPdu) -> &[EventId] {
    &[]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Two servers can give any number of bad copies. Counted for each event by itself, this would be billions of looks.
    #[test]
    fn bad_copies_of_many_events_are_counted_at_once() {
        let ids: Vec<EventId> = (0..50_000).map(|number| EventId::parse(&format!("${number}")).unwrap()).collect();
        let [one, other] = ["one.test", "other.test"].map(|name| ServerName::parse(name).unwrap());
        let by_both = ids.iter().flat_map(|id| [(id.clone(), one.clone()), (id.clone(), other.clone())]);
        let mut refused: HashSet<(EventId, ServerName)> = by_both.collect();
        assert!(are_refused(&ids, &refused));
        refused.remove(&(ids[7].clone(), other));
        assert!(!are_refused(&ids, &refused) && are_refused(&ids[8..], &refused) && are_refused(&ids[..7], &refused));
    }
}
