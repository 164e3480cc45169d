//! The events between ours and those that lack previous events (Server-Server API, `get_missing_events`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{look::Look, whom::Question};
use crate::{
    matrix::{
        event::{Event, ReceivedPdu},
        identifiers::{EventId, ServerName},
    },
    room::{Lacking, Room, RoomError},
};

/// How many events are asked for to fill a gap; Synapse gives no more, whatever it is asked for.
const GAP_LIMIT: usize = 20;

/// How many events, and of how many bytes, one look has in hand; those that would be more are not fetched.
const MAX_EVENTS: usize = 500;
const MAX_EVENT_BYTES: usize = 16 * 1024 * 1024;

/// How many events a server may give that are less deep than the one by which we came into the room, before it is seen whether they are
/// built upon what we hold: history has no end.
const MAX_LESS_DEEP: usize = 5 * GAP_LIMIT;

impl Look<'_> {
    /// Asks for the events between ours and those that lack previous events, until some come. Whether any did.
    pub(super) async fn ask_for_events_between(&mut self, lacking: &[Lacking]) -> Result<bool, RoomError> {
        loop {
            let mut groups: BTreeMap<ServerName, Vec<EventId>> = BTreeMap::new();
            for Lacking { event, .. } in lacking.iter().filter(|lacking| !lacking.previous.is_empty()) {
                let id = event.event_id();
                if let Some(name) = self.whom.next(Question::EventsBefore, id, id).await? {
                    groups.entry(name).or_default().push(id.clone());
                }
            }
            if groups.is_empty() {
                return Ok(false);
            }
            let mut progress = false;
            for (name, latest) in groups {
                if self.is_over() {
                    return Ok(progress);
                }
                if !self.whom.is_set_aside(&name) {
                    progress |= self.fill_gap(&name, latest).await?;
                }
            }
            if progress {
                return Ok(true);
            }
        }
    }

    /// Asks a server for the events between ours and `latest`, page by page. Whether any came.
    async fn fill_gap(&mut self, name: &ServerName, latest: Vec<EventId>) -> Result<bool, RoomError> {
        let before = self.events.len();
        self.fetch_between(name, latest.clone()).await?;
        let came = self.events.len() > before;
        self.leave_out_history(name, before).await?;
        for event in self.events.iter().skip(before) {
            self.whom.given(event, name);
        }
        let progress = self.events.len() > before;
        if came && !progress {
            latest.iter().for_each(|id| self.whom.note_useless(Question::EventsBefore, id));
        }
        Ok(progress)
    }

    /// Takes in hand what a server gives that is between our events and `latest`, and what is history too.
    async fn fetch_between(&mut self, name: &ServerName, mut latest: Vec<EventId>) -> Result<(), RoomError> {
        let (server, room_id, before) = (self.server, self.room.room_id.clone(), self.events.len());
        let room = server.rooms.room(&room_id).await?.ok_or(RoomError::UnknownRoom)?;
        let earliest: Vec<EventId> = room.extremities.iter().map(|one| one.event_id.clone()).take(GAP_LIMIT).collect();
        while let Some(first) = latest.first().cloned()
            && !self.is_over()
        {
            latest.truncate(GAP_LIMIT);
            for id in &latest {
                self.whom.note(Question::EventsBefore, id, name);
            }
            let limit = i64::try_from(GAP_LIMIT).unwrap_or(0);
            let min_depth = self.min_depth(name, &room, &latest);
            let request = server.federation.get_missing_events(name, &room_id, &earliest, &latest, limit, min_depth);
            let Some(mut texts) = self.ask(name, &first, request).await else { return Ok(()) };
            let is_full = texts.len() >= GAP_LIMIT;
            texts.truncate(GAP_LIMIT);
            let cited = self.events.iter().filter(|event| latest.contains(event.event_id()));
            let cited: Vec<EventId> = cited.flat_map(Event::prev_events).cloned().collect();
            let mut fetched = self.check(name, &texts, &cited, ReceivedPdu::prev_events).await?;
            // Many servers take no notice of it.
            fetched.retain(|event| event.depth() >= min_depth);
            let new = self.add_fetched(fetched);
            self.note_given(name, &new, &latest).await?;
            if new.is_empty() {
                latest.iter().for_each(|id| self.whom.note_useless(Question::EventsBefore, id));
            }
            let less_deep = self.events.iter().skip(before).filter(|event| event.depth() < self.first_depth).count();
            if new.is_empty() || !is_full || less_deep >= MAX_LESS_DEEP {
                // All that this server knows: who asks again asks another one.
                new.iter().for_each(|id| self.whom.note(Question::EventsBefore, id, name));
                return Ok(());
            }
            latest = self.far_ends(&new).await?;
        }
        Ok(())
    }

    /// The least depth of events to ask a server for.
    fn min_depth(&self, name: &ServerName, room: &Room, latest: &[EventId]) -> i64 {
        let latest = self.events.iter().filter(|event| latest.contains(event.event_id())).map(Event::depth);
        let mut depths = latest.chain(room.extremities.iter().map(|one| one.depth));
        let is_less_deep = depths.any(|depth| depth < self.first_depth);
        if is_less_deep && !self.gave_history.contains(name) { 0 } else { self.first_depth }
    }

    /// Takes events in hand that a server has given, as far as they are new. Answers which.
    fn add_fetched(&mut self, fetched: Vec<Event>) -> Vec<EventId> {
        let mut bytes: usize = self.events.iter().map(|event| event.json().len()).sum();
        let mut in_hand: HashSet<EventId> = self.events.iter().map(|event| event.event_id().clone()).collect();
        let mut new = Vec::new();
        for event in fetched {
            bytes += event.json().len();
            let fits = self.events.len() < MAX_EVENTS && bytes <= MAX_EVENT_BYTES;
            // What is new keeps to the limits of a received PDU.
            if fits
                && event.has_limited_references()
                && !self.whom.knows(event.event_id())
                && in_hand.insert(event.event_id().clone())
            {
                new.push(event.event_id().clone());
                self.events.push(event);
            }
        }
        new
    }

    /// Lets go of those of the events in hand, from this one on, that are history; `giver` has given them.
    async fn leave_out_history(&mut self, giver: &ServerName, from: usize) -> Result<(), RoomError> {
        let first_depth = self.first_depth;
        let is_less_deep = |event: &Event| event.depth() < first_depth;
        if !self.events.iter().skip(from).any(is_less_deep) {
            return Ok(());
        }
        let fetched = self.events.split_off(from);
        let cited: BTreeSet<&EventId> = fetched.iter().flat_map(Event::prev_events).collect();
        let cited: Vec<EventId> = cited.into_iter().cloned().collect();
        let mut new = self.server.store.since_we_came(&self.room.room_id, &cited).await?;
        new.extend(self.events.iter().map(|event| event.event_id().clone()));
        let mut citing: HashMap<EventId, Vec<EventId>> = HashMap::new();
        let mut waiting: HashMap<EventId, Event> = HashMap::new();
        for event in fetched {
            let id = event.event_id().clone();
            if !is_less_deep(&event) {
                new.push(id);
                self.events.push(event);
                continue;
            }
            for previous in event.prev_events() {
                citing.entry(previous.clone()).or_default().push(id.clone());
            }
            waiting.insert(id, event);
        }
        while let Some(id) = new.pop() {
            for id in citing.remove(&id).into_iter().flatten() {
                if let Some(event) = waiting.remove(&id) {
                    self.events.push(event);
                    new.push(id);
                }
            }
        }
        if !waiting.is_empty() {
            self.gave_history.insert(giver.clone());
        }
        Ok(())
    }

    /// Those of `new` that cite as previous events what is neither in hand nor held.
    async fn far_ends(&self, new: &[EventId]) -> Result<Vec<EventId>, RoomError> {
        let in_hand: HashSet<&EventId> = self.events.iter().map(Event::event_id).collect();
        let new: Vec<&Event> = self.events.iter().filter(|event| new.contains(event.event_id())).collect();
        let cited = new.iter().flat_map(|event| event.prev_events()).filter(|id| !in_hand.contains(id));
        let cited: Vec<EventId> = cited.cloned().collect();
        let held = self.server.store.headers(self.server.platform.clock.as_ref(), &cited).await?;
        let held: HashSet<EventId> = held.into_iter().filter(|held| held.has_state).map(|held| held.event_id).collect();
        let is_far = |event: &&&Event| event.prev_events().iter().any(|id| !in_hand.contains(id) && !held.contains(id));
        Ok(new.iter().filter(is_far).map(|event| event.event_id().clone()).collect())
    }
}
