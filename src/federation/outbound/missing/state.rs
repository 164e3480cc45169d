//! The state before the far edge of a gap, which other servers vouch for (Server-Server API, `state_ids`, `state`).

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::{look::Look, whom::Question};
use crate::{
    federation::{pdus, peers::endpoints::StateIds},
    matrix::{
        event::{Event, ReceivedPdu},
        identifiers::{EventId, ServerName},
    },
    room::{Claim, Lacking, RoomError},
};

/// About how many edges one round asks.
const MAX_EDGES_AT_ONCE: usize = 5;

/// How many servers' claims are taken together: what one of them leaves out, or holds on to, the other may know better.
const MAX_CLAIMS: usize = 2;

/// The most ids that the answer to `state_ids` may hold.
const MAX_STATE_IDS: usize = 100_000;

/// Where more events than this are missing, the whole state is asked for, and not each of them.
const MAX_SINGLE_EVENTS: usize = 60;

/// How many of them are asked for at a time.
const SINGLE_EVENTS_AT_A_TIME: usize = 4;

/// How long one event may take to come, in milliseconds.
const ONE_EVENT_MS: i64 = 10_000;

/// How long the ids of a state may take to come, and a state, in milliseconds.
const STATE_IDS_MS: i64 = 20_000;

/// The events that auth rules ask for, and no others are in an auth chain.
const AUTH_TYPES: [&str; 5] =
    ["m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules", "m.room.third_party_invite"];

/// What is known of an edge and of the states around it, from whomever.
struct Known {
    /// The edge itself, once somebody has given it.
    edge: Option<Event>,
    events: HashMap<EventId, Event>,
    /// The memory that is left for more.
    memory: usize,
}

/// What a server says that the state before an event is.
struct ClaimedIds {
    state: Vec<EventId>,
    auth_chain: Vec<EventId>,
}

impl Look<'_> {
    /// Asks for the states before events that others cite and that we lack, and takes them over. Whether any was believed.
    pub(super) async fn ask_for_states(&mut self, lacking: &[Lacking]) -> Result<bool, RoomError> {
        let mut edges: Vec<(EventId, EventId)> = Vec::new();
        for Lacking { event, previous, .. } in lacking {
            for edge in previous {
                if edges.len() < MAX_EDGES_AT_ONCE
                    && !edges.iter().any(|(known, _)| known == edge)
                    && self.whom.next(Question::StateBefore, edge, event.event_id()).await?.is_some()
                {
                    edges.push((edge.clone(), event.event_id().clone()));
                }
            }
        }
        let mut progress = false;
        for (edge, cited_by) in edges {
            progress |= self.place(&edge, &cited_by).await?;
        }
        Ok(progress)
    }

    /// Takes over what servers say that the state before `edge` is. Whether any of it was believed.
    async fn place(&mut self, edge: &EventId, cited_by: &EventId) -> Result<bool, RoomError> {
        let held = self.server.rooms.event(edge).await?;
        if held.as_ref().is_some_and(|held| held.event.room_id() != &self.room.room_id) {
            // Nobody's word makes another room's event one of this room.
            return Ok(false);
        }
        let edge_event = held.map(|stored| stored.event);
        let mut known = Known { edge: edge_event, events: HashMap::new(), memory: pdus::ANSWER_MEMORY };
        loop {
            let mut claims = Vec::new();
            while claims.len() < MAX_CLAIMS
                && let Some(name) = self.whom.next(Question::StateBefore, edge, cited_by).await?
            {
                self.whom.note(Question::StateBefore, edge, &name);
                match self.claim(&name, edge, cited_by, &mut known).await? {
                    Some(claim) => {
                        let events =
                            |ids: &[EventId]| ids.iter().filter_map(|id| known.events.get(id).cloned()).collect();
                        claims.push(Claim { state: events(&claim.state), auth_chain: events(&claim.auth_chain) });
                    }
                    None => self.whom.note_useless(Question::StateBefore, edge),
                }
            }
            let Some(event) = known.edge.clone().filter(|_| !claims.is_empty()) else { return Ok(false) };
            match self.server.rooms.place(&event, &claims).await {
                Ok(()) => return Ok(true),
                Err(RoomError::Invalid(why)) => {
                    let log = &self.server.platform.log;
                    log.warn(&format!("What is claimed of the state before {edge} is not believed: {why}"));
                    self.whom.note_useless(Question::StateBefore, edge);
                }
                Err(error) => return Err(error),
            }
        }
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
            server.platform.log.warn(&format!("{name} says that the state before {edge} is too large to be used."));
            return Ok(None);
        }
        let mut claim = ClaimedIds { state: pdu_ids, auth_chain: auth_chain_ids };
        if !self.load_held(name, edge, &mut claim, known).await? {
            return Ok(None);
        }
        let missing = claim.missing(known);
        if missing.len() > MAX_SINGLE_EVENTS {
            let request = server.federation.state(name, &room_id, edge);
            let Some(answer) = self.ask_for(self.left_ms(), name, edge, request).await else { return Ok(None) };
            let texts: Vec<Bytes> = answer.pdus.into_iter().chain(answer.auth_chain).collect();
            let mut wanted = missing.clone();
            wanted.extend(event.auth_events().iter().cloned());
            let distinct: HashSet<&EventId> = claim.state.iter().chain(&claim.auth_chain).collect();
            if texts.len() < distinct.len() || !self.add(name, &texts, &wanted, known).await? {
                // A state of which a part did not come is another state, and would be believed for ever.
                return Ok(None);
            }
        } else if !self.fetch_single(name, &missing, known).await? {
            return Ok(None);
        }
        // A copy may be refused, or withheld, that another server has.
        let missing = claim.missing(known);
        if !missing.is_empty()
            && missing.len() <= MAX_SINGLE_EVENTS
            && let Some(other) = self.whom.next(Question::StateBefore, edge, cited_by).await?
        {
            // The room does without what nobody has any more.
            let is_refused = |id: &EventId| self.refused.contains(&(id.clone(), name.clone()));
            let may_come_later = missing.iter().any(is_refused);
            if !self.fetch_single(&other, &missing, known).await? && may_come_later {
                return Ok(None);
            }
        }
        claim.prune(&event, known);
        Ok(Some(claim))
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
        let headers = self.server.store.headers(&ids).await?;
        let headers: HashMap<&EventId, _> = headers.iter().map(|header| (&header.event_id, header)).collect();
        let is_here = |id: &EventId| headers.get(id).is_none_or(|header| header.room_id == self.room.room_id);
        claim.state.retain(|id| is_here(id) && headers.get(id).is_none_or(|header| header.is_state));
        let is_auth = |event_type: &str| AUTH_TYPES.contains(&event_type);
        claim.auth_chain.retain(|id| is_here(id) && headers.get(id).is_none_or(|header| is_auth(&header.event_type)));
        let wanted: HashSet<&EventId> = claim.state.iter().chain(&claim.auth_chain).collect();
        ids.retain(|id| headers.contains_key(id) && wanted.contains(id));
        let takes = ids.iter().filter_map(|id| headers.get(id)).map(|header| pdus::memory_of_held(header.bytes)).sum();
        let Some(left) = known.memory.checked_sub(takes) else {
            let log = &self.server.platform.log;
            log.warn(&format!("What {name} says that the state before {edge} is takes more memory than there is."));
            return Ok(false);
        };
        known.memory = left;
        for stored in self.server.rooms.events(&ids).await? {
            known.events.insert(stored.event.event_id().clone(), stored.event);
        }
        Ok(true)
    }

    /// Asks a server for events one by one. `false` where one of them may come later: an event that it does not have is left
    /// out.
    async fn fetch_single(&mut self, name: &ServerName, ids: &[EventId], known: &mut Known) -> Result<bool, RoomError> {
        if ids.is_empty() {
            return Ok(true);
        }
        if !self.take_requests(ids.len()) {
            return Ok(false);
        }
        let mut texts: Vec<Bytes> = Vec::with_capacity(ids.len());
        let mut failure = None;
        {
            let look = &*self;
            let single =
                |id: EventId| async move { look.within(ONE_EVENT_MS, look.server.federation.event(name, &id)).await };
            let mut answers = stream::iter(ids.iter().cloned()).map(single).buffered(SINGLE_EVENTS_AT_A_TIME);
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(text) => texts.push(text),
                    Err(error) if error.is_worth_retrying() => {
                        failure = Some(error);
                        break;
                    }
                    // Its last word.
                    Err(_) => {}
                }
            }
        }
        if let Some(error) = failure {
            self.server.platform.log.warn(&format!("{name} does not give the events of a state: {error}"));
            self.whom.note_error(name, &error);
            return Ok(false);
        }
        self.add(name, &texts, ids, known).await
    }

    /// Adds events that a server gave and that `wanted` lead to. `false` where they take more memory than there is.
    async fn add(
        &mut self,
        name: &ServerName,
        texts: &[Bytes],
        wanted: &[EventId],
        known: &mut Known,
    ) -> Result<bool, RoomError> {
        let checked = self.check_within(&mut known.memory, name, texts, wanted, ReceivedPdu::auth_events).await?;
        let Some(events) = checked else { return Ok(false) };
        known.events.extend(events.into_iter().map(|event| (event.event_id().clone(), event)));
        Ok(true)
    }
}

impl ClaimedIds {
    /// The events of it that are not known yet, each once.
    fn missing(&self, known: &Known) -> Vec<EventId> {
        let mut seen = HashSet::new();
        let all = self.state.iter().chain(&self.auth_chain);
        all.filter(|id| !known.events.contains_key(*id) && seen.insert(*id)).cloned().collect()
    }

    /// Leaves of the auth chain only what the state and the edge lead to.
    fn prune(&mut self, edge: &Event, known: &Known) {
        let mut reached: HashSet<EventId> = HashSet::new();
        let mut waiting: Vec<&Event> = self.state.iter().filter_map(|id| known.events.get(id)).chain([edge]).collect();
        while let Some(event) = waiting.pop() {
            let implied = event.version().room_id_is_create_hash.then(|| event.room_id().create_event_id());
            for id in event.auth_events().iter().cloned().chain(implied) {
                if let Some(next) = known.events.get(&id)
                    && reached.insert(id)
                {
                    waiting.push(next);
                }
            }
        }
        self.auth_chain.retain(|id| reached.contains(id));
    }
}

fn cites_nothing(_: &ReceivedPdu) -> &[EventId] {
    &[]
}
