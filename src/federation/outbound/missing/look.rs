//! One look at the staged PDUs of a room.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::whom::{Question, Whom};
use crate::{
    federation::{
        pdus::{self, AnswerMemory, Refused},
        peers::requests::{RequestError, within},
    },
    log::LogRecord,
    matrix::{
        event::{Event, ReceivedPdu},
        identifiers::{EventId, ServerName},
        room_version::RoomVersion,
    },
    room::{Extent, Lacking, Room, RoomError},
    server::Server,
    store::staging::{StagedBy, Waiting},
};

/// How often a look judges what it has.
const MAX_ROUNDS: usize = 40;

/// How many requests one look makes.
const MAX_REQUESTS: usize = 300;

/// How many requests for auth events, or about states, one round may make.
const MAX_ASKED_AT_ONCE: usize = 5;

/// How long a server may take to give some events, in milliseconds. A look has not much more.
const SOME_EVENTS_MS: i64 = 10_000;

/// How long a staged PDU waits at most for keys that are lacking for what it leads to, in milliseconds: whether a server can be asked for
/// them, others can have a say in.
const WAIT_FOR_KEYS_MS: i64 = 6 * 60 * 60 * 1_000;

/// How many copies of no use are kept in mind.
const MAX_REFUSED: usize = 50_000;

/// See the module.
pub(super) struct Look<'s> {
    pub(super) server: &'s Server,
    pub(super) room: Room,
    pub(super) whom: Whom<'s>,
    /// Events not judged yet: staged ones, and those fetched because others cite them.
    pub(super) events: Vec<Event>,
    /// Those that have been judged.
    judged: Vec<EventId>,
    /// Who has sent or given those that only servers did which are not in the room,
    brought_by: HashMap<EventId, ServerName>,
    /// and those that were too much to be kept for them.
    too_much: Vec<EventId>,
    /// Servers that are in the room.
    members: HashSet<ServerName>,
    /// The depth of the event by which we came into the room. What is less deep is history, unless it is built upon what came since: who
    /// sends an event may give it any depth.
    pub(super) first_depth: i64,
    /// The servers that gave history where they were asked for events that are less deep.
    pub(super) gave_history: HashSet<ServerName>,
    /// Copies of events that failed the checks, and who gave them.
    pub(super) refused: HashSet<(EventId, ServerName)>,
    /// Those of them that failed for want of a key which may come yet: its server may be away for a while, and what is passed over then
    /// might be missed for good.
    lacks_key: HashSet<(EventId, ServerName)>,
    /// The staged PDUs that have waited for so long that no key is waited for.
    has_waited: Vec<EventId>,
    requests: usize,
    pub(super) until: i64,
    /// What the events of the last answer take.
    in_hand: AnswerMemory,
}

/// What became of the events that a look had in hand.
pub(super) struct Looked {
    /// Those that could not be judged.
    pub(super) left: HashSet<EventId>,
    /// Those that were.
    pub(super) judged: Vec<EventId>,
    /// Those that were not taken, as enough is kept for who brought them.
    pub(super) too_much: Vec<EventId>,
}

impl<'s> Look<'s> {
    /// A look at nothing yet, which ends at `until`.
    pub(super) fn new(server: &'s Server, room: Room, first_depth: i64, until: i64) -> Self {
        let whom = Whom::new(server, &room.room_id);
        let (events, refused, lacks_key, has_waited) = Default::default();
        let (brought_by, too_much, members) = Default::default();
        let in_hand = AnswerMemory::default();
        let (judged, requests) = (Vec::new(), MAX_REQUESTS);
        Self {
            server,
            room,
            whom,
            events,
            judged,
            brought_by,
            too_much,
            members,
            first_depth,
            gave_history: HashSet::new(),
            refused,
            lacks_key,
            has_waited,
            requests,
            until,
            in_hand,
        }
    }

    /// The room's version.
    pub(super) fn version(&self) -> &'static RoomVersion {
        self.room.room_version
    }

    /// Which of the servers that sent staged PDUs are not in the room: while we were joining it we could not tell.
    pub(super) async fn strangers_among(&self, staged: &[Waiting]) -> Result<HashSet<ServerName>, RoomError> {
        let by_strangers = staged.iter().filter(|staged| staged.by == StagedBy::Stranger);
        let senders: HashSet<&ServerName> = by_strangers.flat_map(|staged| &staged.senders).collect();
        let kept = self.server.store.kept_for_strangers(&self.room.room_id, &Vec::from_iter(senders)).await?;
        Ok(kept.into_keys().collect())
    }

    /// Takes in hand a staged PDU; `strangers` are those of all senders who are not in the room.
    pub(super) fn add_staged(&mut self, event: Event, staged: &Waiting, strangers: &HashSet<ServerName>) {
        self.whom.sent(&event, &staged.senders);
        if self.server.platform.clock.now_ms() - staged.received_ts >= WAIT_FOR_KEYS_MS {
            self.has_waited.push(event.event_id().clone());
        }
        if staged.by == StagedBy::Stranger
            && let Some(sender) = staged.senders.first()
            && staged.senders.iter().all(|sender| strangers.contains(sender))
        {
            self.brought_by.insert(event.event_id().clone(), sender.clone());
        }
        self.events.push(event);
    }

    /// What became of the events.
    pub(super) fn into_looked(self) -> Looked {
        let left = self.events.iter().map(|event| event.event_id().clone()).collect();
        Looked { left, judged: self.judged, too_much: self.too_much }
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
        self.free_what_others_need();
        let received = self.server.rooms.receive_fetched(&self.room.room_id, &self.events, &self.brought_by).await?;
        let mut missing = received.missing;
        let in_hand: HashSet<EventId> = missing.iter().map(|lacking| lacking.event.event_id().clone()).collect();
        for id in &received.too_much {
            if let Some(server) = self.brought_by.remove(id) {
                self.whom.ask_no_more(&server);
            }
            // Where a server in the room has built upon it, that one gives it.
            self.whom.forget(id);
        }
        self.events.retain(|event| !received.too_much.contains(event.event_id()));
        self.too_much.extend(received.too_much);
        let judged = self.events.extract_if(.., |event| !in_hand.contains(event.event_id()));
        self.judged.extend(judged.map(|event| event.event_id().clone()));
        for lacking in &mut missing {
            lacking.previous.retain(|id| !in_hand.contains(id));
            lacking.auth.retain(|id| !in_hand.contains(id));
        }
        missing.retain(|lacking| !lacking.previous.is_empty() || !lacking.auth.is_empty());
        Ok(missing)
    }

    /// What events in hand lead to that a server in the room has sent, or given for another reason, is no stranger's.
    fn free_what_others_need(&mut self) {
        if self.brought_by.is_empty() {
            return;
        }
        let in_hand: HashMap<&EventId, &Event> = self.events.iter().map(|event| (event.event_id(), event)).collect();
        let mut waiting: Vec<&Event> = Vec::from_iter(&self.events);
        waiting.retain(|event| !self.brought_by.contains_key(event.event_id()));
        while let Some(event) = waiting.pop() {
            for id in event.prev_events().iter().chain(event.auth_events()) {
                if self.brought_by.remove(id).is_some() {
                    waiting.extend(in_hand.get(id).copied());
                }
            }
        }
    }

    /// Asks for auth chains of events that lack auth events, until one is of use. Whether one was.
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

    /// Asks a server for the auth chain of `event`. Whether anything came of it.
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
        let is_useful = !chain.is_empty() && {
            let stranger = self.on_account_of(name, std::slice::from_ref(id)).await?;
            server.rooms.add_auth_events(&room_id, &chain, stranger.as_ref()).await?
        };
        if !is_useful {
            self.whom.note_useless(Question::AuthChain, id);
        }
        Ok(is_useful)
    }

    /// The server, if it is not in the room. While we do not know who is, it is.
    pub(super) async fn stranger(&mut self, name: &ServerName) -> Result<Option<ServerName>, RoomError> {
        if self.room.extent == Extent::Partial || self.members.contains(name) {
            return Ok(None);
        }
        // It may have come in meanwhile.
        let is_member = self.server.store.server_joined(&self.room.room_id, name).await?;
        if is_member {
            self.members.insert(name.clone());
        }
        Ok((!is_member).then(|| name.clone()))
    }

    /// For which server that is not in the room something is kept that `name` gives for the sake of these events: itself, or, as a server
    /// in the room has whatever it was sent, the one that alone has brought them all.
    async fn on_account_of(
        &mut self,
        name: &ServerName,
        for_events: &[EventId],
    ) -> Result<Option<ServerName>, RoomError> {
        if let Some(stranger) = self.stranger(name).await? {
            return Ok(Some(stranger));
        }
        let brought_by: Option<Vec<&ServerName>> = for_events.iter().map(|id| self.brought_by.get(id)).collect();
        match brought_by.and_then(|servers| servers.first().map(|server| (*server).clone())) {
            Some(server) => self.stranger(&server).await,
            None => Ok(None),
        }
    }

    /// Notes that a server has given these events for the sake of those that lead to them.
    pub(super) async fn note_given(
        &mut self,
        name: &ServerName,
        ids: &[EventId],
        for_events: &[EventId],
    ) -> Result<(), RoomError> {
        if ids.is_empty() {
            return Ok(());
        }
        if let Some(stranger) = self.on_account_of(name, for_events).await? {
            self.brought_by.extend(ids.iter().map(|id| (id.clone(), stranger.clone())));
        }
        Ok(())
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
        let outcome = self.within(ms, request).await;
        self.whom.note_outcome(name, about, &outcome);
        match outcome {
            Ok(answer) => Some(answer),
            Err(error) => {
                let record = LogRecord::warning("a server does not give what an event cites").room(&self.room.room_id);
                self.server.platform.log.write(record.event(about).destination(name).because(&error));
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
        within(self.server.platform.clock.as_ref(), ms.min(self.left_ms()), request).await
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

    /// As [`Look::has_refused`], and no key can be waited for that would make it another copy.
    pub(super) fn has_refused_for_good(&self, id: &EventId, name: &ServerName) -> bool {
        self.has_refused(id, name) && !self.lacks_key.contains(&(id.clone(), name.clone()))
    }

    /// The events in hand by which staged PDUs that have waited for long enough lead to what is lacking.
    pub(super) fn have_waited(&self) -> HashSet<EventId> {
        let in_hand: HashMap<&EventId, &Event> = self.events.iter().map(|event| (event.event_id(), event)).collect();
        let mut waiting: Vec<&EventId> = self.has_waited.iter().collect();
        let mut have_waited = HashSet::new();
        while let Some(id) = waiting.pop() {
            if let Some(event) = in_hand.get(id)
                && have_waited.insert(id.clone())
            {
                waiting.extend(event.prev_events());
            }
        }
        have_waited
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
        let mut malformed: Vec<EventId> = Vec::new();
        let mut takes: HashMap<EventId, usize> = HashMap::with_capacity(texts.len());
        for (done, text) in texts.iter().enumerate() {
            pdus::turn(server, done).await;
            let before = memory.left();
            match memory.parse(server, text.as_ref(), &self.room.room_id, self.version())? {
                Ok(Some(pdu)) => {
                    takes.insert(pdu.event_id().clone(), before - memory.left());
                    received.push(pdu);
                }
                Ok(None) => {
                    let (room_id, memory) = (&self.room.room_id, memory.left());
                    let place = pdus::place_of_malformed(text.as_ref(), room_id, self.version(), memory);
                    malformed.extend(place.map(|place| place.event_id().clone()));
                }
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
        if !malformed.is_empty() {
            let asked_for: HashSet<&EventId> = wanted.iter().chain(received.iter().flat_map(cites)).collect();
            malformed.retain(|id| asked_for.contains(id));
            let room = MAX_REFUSED.saturating_sub(self.refused.len());
            self.refused.extend(malformed.into_iter().take(room).map(|id| (id, name.clone())));
        }
        received.retain(|pdu| !self.has_refused(pdu.event_id(), name));
        let ids: Vec<EventId> = received.iter().map(|pdu| pdu.event_id().clone()).collect();
        let mut events = Vec::with_capacity(ids.len());
        let outcomes = pdus::verify_fetched(server, received).await?;
        let without_keys = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()?.lacks_key_of.clone());
        let may_come = server.keys.may_come(without_keys.collect()).await?;
        for (id, outcome) in ids.into_iter().zip(outcomes) {
            match outcome {
                Ok(event) => events.push(event),
                Err(Refused { error, lacks_key_of }) => {
                    let record = LogRecord::warning("a copy of an event that a server gave is not used");
                    let record = record.room(&self.room.room_id).event(&id).destination(name).because(&error);
                    server.platform.log.write(record);
                    if lacks_key_of.is_some_and(|server| may_come.contains(&server)) {
                        self.lacks_key.insert((id.clone(), name.clone()));
                    }
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
