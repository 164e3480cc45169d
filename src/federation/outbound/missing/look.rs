//! One look at the staged PDUs of a room.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    pin::pin,
};

use futures_util::future::{Either, select};

use super::whom::{Question, Whom};
use crate::{
    federation::{
        pdus::{self, AnswerMemory},
        peers::requests::RequestError,
    },
    log::LogRecord,
    matrix::{
        event::{Event, ReceivedPdu},
        identifiers::{EventId, ServerName},
        room_version::RoomVersion,
    },
    room::{Lacking, Room, RoomError},
    server::Server,
};

/// How often a look judges what it has.
const MAX_ROUNDS: usize = 40;

/// How many events are asked for to fill a gap; Synapse gives no more, whatever it is asked for.
const GAP_LIMIT: usize = 20;

/// How many events, and of how many bytes, one look has in hand; those that would be more are not fetched.
const MAX_EVENTS: usize = 500;
const MAX_EVENT_BYTES: usize = 16 * 1024 * 1024;

/// How many events a server may give that are less deep than the one by which we came into the room, before it is seen whether they are
/// built upon what we hold: history has no end.
const MAX_LESS_DEEP: usize = 5 * GAP_LIMIT;

/// How many requests one look makes.
const MAX_REQUESTS: usize = 300;

/// How many requests for auth events, or about states, one round may make.
const MAX_ASKED_AT_ONCE: usize = 5;

/// How long a server may take to give some events, in milliseconds. A look has not much more.
const SOME_EVENTS_MS: i64 = 10_000;

/// See the module.
pub(super) struct Look<'s> {
    pub(super) server: &'s Server,
    pub(super) room: Room,
    pub(super) whom: Whom<'s>,
    /// Events not judged yet: staged ones, and those fetched because others cite them.
    events: Vec<Event>,
    /// Those that have been judged.
    judged: Vec<EventId>,
    /// The depth of the event by which we came into the room. What is less deep is history, unless it is built upon what came since: who
    /// sends an event may give it any depth.
    first_depth: i64,
    /// The servers that gave history where they were asked for events that are less deep.
    gave_history: HashSet<ServerName>,
    /// Copies of events that failed the checks, and who gave them.
    pub(super) refused: HashSet<(EventId, ServerName)>,
    requests: usize,
    until: i64,
    /// What the events of the last answer take.
    in_hand: AnswerMemory,
}

impl<'s> Look<'s> {
    /// A look at nothing yet, which ends at `until`.
    pub(super) fn new(server: &'s Server, room: Room, first_depth: i64, until: i64) -> Self {
        let whom = Whom::new(server, &room.room_id);
        let (events, refused) = (Vec::new(), HashSet::new());
        let in_hand = AnswerMemory::default();
        let (judged, requests) = (Vec::new(), MAX_REQUESTS);
        Self {
            server,
            room,
            whom,
            events,
            judged,
            first_depth,
            gave_history: HashSet::new(),
            refused,
            requests,
            until,
            in_hand,
        }
    }

    /// The room's version.
    pub(super) fn version(&self) -> &'static RoomVersion {
        self.room.room_version
    }

    /// Takes in hand a staged PDU that these servers have sent.
    pub(super) fn add_staged(&mut self, event: Event, senders: &[ServerName]) {
        self.whom.sent(&event, senders);
        self.events.push(event);
    }

    /// The events that could not be judged, and those that were.
    pub(super) fn into_left_and_judged(self) -> (HashSet<EventId>, Vec<EventId>) {
        (self.events.iter().map(|event| event.event_id().clone()).collect(), self.judged)
    }

    /// Judges and fetches in turns, until all events are judged or nothing more can be obtained.
    ///
    /// # Errors
    /// Where the database fails. What a server does not give, or nobody believes, is no error.
    pub(super) async fn run(&mut self) -> Result<(), RoomError> {
        for _ in 0..MAX_ROUNDS {
            let requests = self.requests;
            let lacking = self.judge().await?;
            if lacking.is_empty() || self.is_over() {
                return Ok(());
            }
            let progress = self.ask_for_auth_events(&lacking).await?
                || self.ask_for_events_between(&lacking).await?
                || self.ask_for_states(&lacking).await?
                || self.ask_for_states_instead(&lacking).await?;
            if !progress {
                if self.requests < requests {
                    // While others were asked, it may have come by itself.
                    self.judge().await?;
                }
                return Ok(());
            }
        }
        Ok(())
    }

    pub(super) fn is_over(&self) -> bool {
        self.requests == 0 || self.server.platform.clock.now_ms() >= self.until
    }

    /// Judges what is in hand. Answers with what cannot be judged and is not helped by helping another event in hand.
    async fn judge(&mut self) -> Result<Vec<Lacking>, RoomError> {
        let received = self.server.rooms.receive_fetched(&self.room.room_id, &self.events).await?;
        let mut missing = received.missing;
        let in_hand: HashSet<EventId> = missing.iter().map(|lacking| lacking.event.event_id().clone()).collect();
        let judged = self.events.extract_if(.., |event| !in_hand.contains(event.event_id()));
        self.judged.extend(judged.map(|event| event.event_id().clone()));
        for lacking in &mut missing {
            lacking.previous.retain(|id| !in_hand.contains(id));
            lacking.auth.retain(|id| !in_hand.contains(id));
        }
        missing.retain(|lacking| !lacking.previous.is_empty() || !lacking.auth.is_empty());
        Ok(missing)
    }

    /// Asks for auth chains of events that lack auth events, until one comes. Whether one did.
    async fn ask_for_auth_events(&mut self, lacking: &[Lacking]) -> Result<bool, RoomError> {
        loop {
            let (mut asked, mut progress) = (0, false);
            for Lacking { event, .. } in lacking.iter().filter(|lacking| !lacking.auth.is_empty()) {
                if asked == MAX_ASKED_AT_ONCE || self.is_over() {
                    break;
                }
                let id = event.event_id();
                let Some(name) = self.whom.next(Question::AuthChain, id, id).await? else { continue };
                asked += 1;
                progress |= self.fetch_auth_chain(&name, event).await?;
            }
            if progress || asked == 0 {
                return Ok(progress);
            }
        }
    }

    /// Asks a server for the auth chain of `event`. Whether any of it came.
    async fn fetch_auth_chain(&mut self, name: &ServerName, event: &Event) -> Result<bool, RoomError> {
        let id = event.event_id();
        self.whom.note(Question::AuthChain, id, name);
        let server = self.server;
        let room_id = self.room.room_id.clone();
        let Some(texts) = self.ask(name, id, server.federation.event_auth(name, &room_id, id)).await else {
            return Ok(false);
        };
        let mut cited = event.auth_events().to_vec();
        if self.version().room_id_is_create_hash {
            cited.push(room_id.create_event_id());
        }
        let chain = self.check(name, &texts, &cited, ReceivedPdu::auth_events).await?;
        if chain.is_empty() {
            self.whom.note_useless(Question::AuthChain, id);
            return Ok(false);
        }
        server.rooms.add_auth_events(&room_id, &chain).await?;
        Ok(true)
    }

    /// Asks for the events between ours and those that lack previous events, until some come. Whether any did.
    async fn ask_for_events_between(&mut self, lacking: &[Lacking]) -> Result<bool, RoomError> {
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
                if !self.whom.has_failed(&name) {
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

    /// What a server answers to a request about the event `about`; `None` where it does not give it.
    pub(super) async fn ask<T>(
        &mut self,
        name: &ServerName,
        about: &EventId,
        request: impl Future<Output = Result<T, RequestError>>,
    ) -> Option<T> {
        self.ask_for(SOME_EVENTS_MS, name, about, request).await
    }

    /// As [`Look::ask`], for an answer that may take this many milliseconds.
    pub(super) async fn ask_for<T>(
        &mut self,
        ms: i64,
        name: &ServerName,
        about: &EventId,
        request: impl Future<Output = Result<T, RequestError>>,
    ) -> Option<T> {
        self.requests = self.requests.checked_sub(1)?;
        match self.within(ms, request).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                let record = LogRecord::warning("a server does not give what an event cites").room(&self.room.room_id);
                self.server.platform.log.write(record.event(about).destination(name).because(&error));
                self.whom.note_error(name, about, &error);
                None
            }
        }
    }

    /// The answer to a request, unless it takes longer than this many milliseconds, or than the look may.
    pub(super) async fn within<T>(
        &self,
        ms: i64,
        request: impl Future<Output = Result<T, RequestError>>,
    ) -> Result<T, RequestError> {
        let clock = &self.server.platform.clock;
        let ms = u32::try_from(ms.min(self.until - clock.now_ms()).max(1)).unwrap_or(1);
        match select(pin!(request), clock.sleep(ms)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(RequestError::Unreachable("no answer in time".to_owned())),
        }
    }

    /// The milliseconds that are left.
    pub(super) fn left_ms(&self) -> i64 {
        self.until - self.server.platform.clock.now_ms()
    }

    /// Takes requests out of what the look may make; `false` where they would be too many.
    pub(super) fn take_requests(&mut self, count: usize) -> bool {
        match self.requests.checked_sub(count) {
            Some(left) => {
                self.requests = left;
                true
            }
            None => false,
        }
    }

    /// Whether the copy of the event that this server has given failed the checks: it has no other.
    pub(super) fn has_refused(&self, id: &EventId, name: &ServerName) -> bool {
        self.refused.contains(&(id.clone(), name.clone()))
    }

    /// Checks the PDUs that a server has given: format, signatures, hashes. Those that fail are left out, and those to which
    /// `wanted` do not lead by what `cites` says: nobody asked for them.
    pub(super) async fn check<T: AsRef<[u8]>>(
        &mut self,
        name: &ServerName,
        texts: &[T],
        wanted: &[EventId],
        cites: fn(&ReceivedPdu) -> &[EventId],
    ) -> Result<Vec<Event>, RoomError> {
        // Until the next answer is checked, what becomes of this one is in hand.
        self.in_hand = AnswerMemory::default();
        let mut memory = AnswerMemory::default();
        let checked = self.check_within(&mut memory, name, texts, wanted, cites).await?;
        self.in_hand = memory;
        Ok(checked.unwrap_or_default())
    }

    /// As [`Look::check`], within this much memory, from which what the events take is subtracted; `None` where it is too little.
    pub(super) async fn check_within<T: AsRef<[u8]>>(
        &mut self,
        memory: &mut AnswerMemory,
        name: &ServerName,
        texts: &[T],
        wanted: &[EventId],
        cites: fn(&ReceivedPdu) -> &[EventId],
    ) -> Result<Option<Vec<Event>>, RoomError> {
        let server = self.server;
        let left = memory.left();
        let mut received = Vec::with_capacity(texts.len());
        let mut takes: HashMap<EventId, usize> = HashMap::with_capacity(texts.len());
        for text in texts {
            let before = memory.left();
            match memory.parse(server, text.as_ref(), &self.room.room_id, self.version())? {
                Ok(Some(pdu)) => {
                    takes.insert(pdu.event_id().clone(), before - memory.left());
                    received.push(pdu);
                }
                Ok(None) => {}
                Err(error) => {
                    let record = LogRecord::warning("events that a server gave are not used");
                    let record = record.room(&self.room.room_id).destination(name).because(&error);
                    server.platform.log.write(record);
                    memory.give_back(left);
                    return Ok(None);
                }
            }
        }
        let mut received = reachable(received, wanted, cites);
        received.retain(|pdu| !self.has_refused(pdu.event_id(), name));
        let ids: Vec<EventId> = received.iter().map(|pdu| pdu.event_id().clone()).collect();
        let mut events = Vec::with_capacity(ids.len());
        for (id, outcome) in ids.into_iter().zip(pdus::verify(server, received).await?) {
            match outcome {
                Ok(event) => events.push(event),
                Err(error) => {
                    let record = LogRecord::warning("a copy of an event that a server gave is not used");
                    let record = record.room(&self.room.room_id).event(&id).destination(name).because(&error);
                    server.platform.log.write(record);
                    self.refused.insert((id, name.clone()));
                }
            }
        }
        // What is not used is let go of.
        let kept: usize = events.iter().filter_map(|event| takes.get(event.event_id())).sum();
        memory.give_back(left - kept);
        Ok(Some(events))
    }
}

/// Those of `received` to which `wanted` lead by what `cites` says, each once. The id of a PDU binds what it cites, whether its
/// signatures are good or not.
fn reachable(
    received: Vec<ReceivedPdu>,
    wanted: &[EventId],
    cites: fn(&ReceivedPdu) -> &[EventId],
) -> Vec<ReceivedPdu> {
    let mut waiting: BTreeMap<EventId, ReceivedPdu> =
        received.into_iter().map(|pdu| (pdu.event_id().clone(), pdu)).collect();
    let mut reached: Vec<ReceivedPdu> = wanted.iter().filter_map(|id| waiting.remove(id)).collect();
    let mut next = 0;
    while let Some(pdu) = reached.get(next) {
        let more: Vec<ReceivedPdu> = cites(pdu).iter().filter_map(|id| waiting.remove(id)).collect();
        reached.extend(more);
        next += 1;
    }
    reached
}
