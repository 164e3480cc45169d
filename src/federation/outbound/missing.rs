//! Fetching what received events cite and we do not hold (Server-Server API, "Backfilling and retrieving missing
//! events"), so that staged PDUs can be judged.
//!
//! In this order: the events between ours and the staged ones (`get_missing_events`); the auth events of an event that
//! lacks some (`event_auth`); and where the gap is too wide, the state before its far edge (`state_ids`, then `state` or
//! single events). Every fetched event is checked as a received one; what the sender says about the room's state is
//! judged by the room's rules.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt, stream};

use crate::{
    federation::{pdus, peers::requests::RequestError},
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
        room_version::RoomVersion,
    },
    room::{Lacking, Room, RoomError},
    server::Server,
    store::staging::{StagedPdu, stage},
};

/// How many staged PDUs of a room are looked at together.
const STAGED_AT_ONCE: i64 = 200;

/// How many rounds of fetching one look at a room may take.
const MAX_ROUNDS: usize = 24;

/// How often a gap is filled with events before the state at its far edge is asked for.
const MAX_GAP_ROUNDS: usize = 4;

/// How many events are asked for to fill a gap; other servers give fewer as they please.
const GAP_LIMIT: i64 = 50;

/// How many events one look judges together; those that would be more are not fetched.
const MAX_AT_ONCE: usize = 500;

/// Of more missing state events than this the whole state is asked for, not one by one.
const MAX_SINGLE_EVENTS: usize = 60;

/// How many requests for auth events or for a state one round may make.
const MAX_ASKED_AT_ONCE: usize = 5;

/// For so long, in milliseconds, what a staged PDU cites is looked for: two days.
const GIVE_UP_AFTER_MS: i64 = 2 * 24 * 60 * 60 * 1_000;

/// The pause after the first look in vain, in milliseconds; it grows with each, up to the longest.
const PAUSE_MS: i64 = 15_000;
const LONGEST_PAUSE_MS: i64 = 60 * 60 * 1_000;

/// While somebody looks, nobody else does, for this long in milliseconds.
const LOOK_MS: i64 = 2 * 60 * 1_000;

/// Why what is missing could not be had.
enum Failure {
    Request(RequestError),
    Room(RoomError),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Request(error) => error.fmt(f),
            Self::Room(error) => error.fmt(f),
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl From<RoomError> for Failure {
    fn from(error: RoomError) -> Self {
        Self::Room(error)
    }
}

impl Server {
    /// Starts judging the staged PDUs of the room, and fetching what they cite. Called after a commit that staged some,
    /// and when a join of the room has ended.
    pub fn fetch_missing(&self, room_id: &RoomId) {
        let (server, room_id) = (self.clone(), room_id.clone());
        self.platform.background.spawn(Box::pin(async move {
            server.judge_staged(&room_id).await;
        }));
    }

    /// Judges an event that `origin` has let into a room that we are in too, after fetching what it cites. Where that cannot
    /// be had now it is looked for later, as for any other event.
    ///
    /// # Errors
    /// [`RoomError::NotAllowed`] where the room does not allow it, and as the database says.
    pub(super) async fn judge_given(&self, origin: &ServerName, event: &Event) -> Result<(), RoomError> {
        let received_ts = self.platform.clock.now_ms();
        self.store.batch(stage(std::iter::once(StagedPdu { event, origin, received_ts }))).await?;
        self.judge_staged(event.room_id()).await;
        match self.rooms.receive_own(event).await {
            Err(RoomError::MissingEvents(_)) => Ok(()),
            judged => judged,
        }
    }

    /// Looks again at all staged PDUs that are due.
    pub async fn sweep_staged(&self) {
        match self.store.rooms_waiting(self.platform.clock.now_ms()).await {
            Ok(rooms) => {
                for room_id in rooms {
                    self.judge_staged(&room_id).await;
                }
            }
            Err(error) => self.platform.log.warn(&format!("The staged PDUs cannot be read: {error}")),
        }
    }

    async fn judge_staged(&self, room_id: &RoomId) {
        if let Err(error) = self.try_judge_staged(room_id).await {
            self.platform.log.warn(&format!("The staged PDUs of {room_id} cannot be judged: {error}"));
        }
    }

    async fn try_judge_staged(&self, room_id: &RoomId) -> Result<(), Failure> {
        let now = self.platform.clock.now_ms();
        let Some(room) = self.rooms.room(room_id).await?.filter(|room| room.local_joined > 0) else {
            // Nobody here is in the room any more, or yet.
            let abandoned = self.store.abandon(&self.config.server_name, room_id, now).await;
            return Ok(abandoned.map_err(RoomError::from)?);
        };
        let waiting = self.store.waiting(room_id, STAGED_AT_ONCE, now).await.map_err(RoomError::from)?;
        if waiting.is_empty() {
            return Ok(());
        }
        // Before the work: one that is cut off must not be begun again at once, for ever.
        let ids: Vec<&str> = waiting.iter().map(|staged| staged.event_id.as_str()).collect();
        self.store.begin_look(room_id, &ids, now + LOOK_MS).await.map_err(RoomError::from)?;
        let all: Vec<String> = waiting.iter().map(|staged| staged.event_id.clone()).collect();
        let first_depth = self.store.first_depth(room_id).await.map_err(RoomError::from)?;
        let mut work = Work {
            server: self,
            room,
            first_depth,
            events: Vec::new(),
            origins: HashMap::new(),
            asked: HashSet::new(),
            failed: HashSet::new(),
        };
        for staged in &waiting {
            let event = staged.event(work.room.room_version);
            if let (Ok(event), Ok(origin)) = (event, ServerName::parse(&staged.origin)) {
                work.origins.insert(event.event_id().clone(), origin);
                work.events.push(event);
            }
        }
        let outcome = work.run().await;
        let left: HashSet<EventId> = work.events.iter().map(|event| event.event_id().clone()).collect();
        let mut done: Vec<String> = all.into_iter().filter(|id| !left.iter().any(|left| left.as_str() == id)).collect();
        let now = self.platform.clock.now_ms();
        let mut left_waiting = Vec::new();
        for staged in waiting.iter().filter(|staged| left.iter().any(|left| left.as_str() == staged.event_id)) {
            let id = staged.event_id.as_str();
            if now - staged.received_ts > GIVE_UP_AFTER_MS {
                self.platform.log.warn(&format!("{id} in {room_id} is given up: what it cites cannot be had"));
                done.push(id.to_owned());
            } else {
                left_waiting.push(id);
            }
        }
        self.store.unstage(room_id, &done).await.map_err(RoomError::from)?;
        if !left_waiting.is_empty() {
            let pauses = (PAUSE_MS, LONGEST_PAUSE_MS);
            self.store.pause(room_id, &left_waiting, now, pauses).await.map_err(RoomError::from)?;
        }
        outcome
    }
}

/// One look at the staged PDUs of a room.
struct Work<'s> {
    server: &'s Server,
    room: Room,
    /// Events not judged yet: staged ones, and those fetched because others cite them.
    events: Vec<Event>,
    /// Whom to ask about each event: the server that sent it, or that sent what cites it.
    origins: HashMap<EventId, ServerName>,
    /// What was asked for already, so that no answer is asked for twice.
    asked: HashSet<(&'static str, EventId)>,
    /// Servers that did not answer, and are left alone for the rest of the look.
    failed: HashSet<ServerName>,
    /// The depth of the event by which we came into the room; what was before it is history.
    first_depth: i64,
}

impl Work<'_> {
    /// Judges and fetches in turns, until all events are judged or nothing more can be had.
    async fn run(&mut self) -> Result<(), Failure> {
        let mut gap_rounds = 0;
        for _ in 0..MAX_ROUNDS {
            let received = self.server.rooms.receive_fetched(&self.room.room_id, &self.events).await?;
            let at_hand: HashSet<EventId> = received.missing.iter().map(|l| l.event.event_id().clone()).collect();
            self.events.retain(|event| at_hand.contains(event.event_id()));
            // What waits for another waiting event is helped by helping that one.
            let lacking: Vec<&Lacking> = received
                .missing
                .iter()
                .filter(|l| l.previous.iter().chain(&l.auth).any(|id| !at_hand.contains(id)))
                .collect();
            if lacking.is_empty() {
                return Ok(());
            }
            let mut progress = false;
            let lacks_auth = |l: &Lacking| l.auth.iter().any(|id| !at_hand.contains(id));
            let mut asked = 0;
            for lacking in &lacking {
                let id = lacking.event.event_id();
                if asked < MAX_ASKED_AT_ONCE && lacks_auth(lacking) && self.whom_to_ask("auth", id, id).is_some() {
                    asked += 1;
                    let outcome = self.fetch_auth_events(&lacking.event).await;
                    progress |= self.unless_failed(id, outcome)?;
                }
            }
            if !progress && gap_rounds < MAX_GAP_ROUNDS {
                gap_rounds += 1;
                for origin in self.origins_of(&lacking) {
                    let asked: Vec<&Lacking> =
                        lacking.iter().filter(|l| self.origin(l.event.event_id()) == Some(&origin)).copied().collect();
                    let Some(first) = asked.first() else { continue };
                    let outcome = self.fill_gap(&origin, &asked).await;
                    progress |= self.unless_failed(first.event.event_id(), outcome)?;
                }
            }
            if !progress {
                let edges: Vec<(EventId, EventId)> = lacking
                    .iter()
                    .flat_map(|l| l.previous.iter().map(|id| (id.clone(), l.event.event_id().clone())))
                    .filter(|(id, cited_by)| !at_hand.contains(id) && self.whom_to_ask("state", id, cited_by).is_some())
                    .collect();
                for (edge, cited_by) in edges.into_iter().take(MAX_ASKED_AT_ONCE) {
                    let outcome = self.fetch_state(&edge, &cited_by).await;
                    progress |= self.unless_failed(&cited_by, outcome)?;
                }
            }
            if !progress {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A server that does not answer, or answers nonsense, costs only what it sent.
    fn unless_failed(&mut self, event_id: &EventId, outcome: Result<bool, Failure>) -> Result<bool, Failure> {
        match outcome {
            Err(Failure::Request(error)) => {
                if let Some(origin) = self.origins.get(event_id) {
                    self.server.platform.log.warn(&format!("{origin} does not give what {event_id} cites: {error}"));
                    self.failed.insert(origin.clone());
                }
                Ok(false)
            }
            Err(Failure::Room(RoomError::Invalid(why))) => {
                self.server.platform.log.warn(&format!("What {event_id} cites is not believed: {why}"));
                Ok(false)
            }
            other => other,
        }
    }

    /// Whom to ask for `what` of an event that the event `cited_by` cites; `None` where it was asked for already.
    fn whom_to_ask(&self, what: &'static str, event_id: &EventId, cited_by: &EventId) -> Option<&ServerName> {
        self.origin(cited_by).filter(|_| !self.asked.contains(&(what, event_id.clone())))
    }

    /// The server that sent an event, unless it has failed to answer.
    fn origin(&self, event_id: &EventId) -> Option<&ServerName> {
        self.origins.get(event_id).filter(|origin| !self.failed.contains(*origin))
    }

    /// Whom to ask about these events, each server once.
    fn origins_of(&self, lacking: &[&Lacking]) -> Vec<ServerName> {
        let mut origins: Vec<ServerName> =
            lacking.iter().filter_map(|l| self.origin(l.event.event_id())).cloned().collect();
        origins.sort();
        origins.dedup();
        origins
    }

    /// Asks for the events between ours and those that lack previous events. Whether any came.
    async fn fill_gap(&mut self, origin: &ServerName, lacking: &[&Lacking]) -> Result<bool, Failure> {
        let latest: Vec<EventId> =
            lacking.iter().filter(|l| !l.previous.is_empty()).map(|l| l.event.event_id().clone()).take(20).collect();
        if latest.is_empty() {
            return Ok(false);
        }
        let room = self.server.rooms.room(&self.room.room_id).await?.ok_or(RoomError::UnknownRoom)?;
        let earliest: Vec<EventId> = room.extremities.iter().map(|(id, _)| id.clone()).take(20).collect();
        let mut texts = self
            .server
            .federation
            .get_missing_events(origin, &self.room.room_id, &earliest, &latest, GAP_LIMIT, self.first_depth)
            .await?;
        texts.truncate(usize::try_from(GAP_LIMIT).unwrap_or(0));
        let mut fetched = self.check(&texts).await?;
        // History stays history, and what is new keeps to the limits of a received PDU.
        fetched.retain(|event| event.depth() >= self.first_depth && event.has_limited_references());
        let mut new = false;
        for event in fetched {
            if self.events.len() < MAX_AT_ONCE && !self.origins.contains_key(event.event_id()) {
                self.origins.insert(event.event_id().clone(), origin.clone());
                self.events.push(event);
                new = true;
            }
        }
        Ok(new)
    }

    /// Asks for the auth chain of `event`. Whether it was asked for the first time.
    async fn fetch_auth_events(&mut self, event: &Event) -> Result<bool, Failure> {
        let id = event.event_id();
        let Some(origin) = self.whom_to_ask("auth", id, id).cloned() else { return Ok(false) };
        self.asked.insert(("auth", id.clone()));
        let texts = self.server.federation.event_auth(&origin, &self.room.room_id, id).await?;
        let chain = self.check(&texts).await?;
        self.server.rooms.add_auth_events(&self.room.room_id, &chain).await?;
        Ok(!chain.is_empty())
    }

    /// Asks for the event `edge` and the state before it, and takes both over. Whether it was asked for the first time.
    async fn fetch_state(&mut self, edge: &EventId, cited_by: &EventId) -> Result<bool, Failure> {
        let Some(origin) = self.whom_to_ask("state", edge, cited_by).cloned() else { return Ok(false) };
        self.asked.insert(("state", edge.clone()));
        let held = self.server.rooms.event(edge).await?;
        let event = match held {
            // What was rejected stays so, and nobody's word makes another room's event one of this room.
            Some(stored) if stored.rejected.is_some() || stored.event.room_id() != &self.room.room_id => {
                return Ok(false);
            }
            Some(stored) => stored.event,
            None => match self.single(&origin, edge).await? {
                Some(event) => event,
                None => return Ok(false),
            },
        };
        let ids = self.server.federation.state_ids(&origin, &self.room.room_id, edge).await?;
        let mut known: HashMap<EventId, Event> = HashMap::new();
        let wanted: Vec<EventId> = ids.pdu_ids.iter().chain(&ids.auth_chain_ids).cloned().collect();
        for stored in self.server.rooms.events(&wanted).await? {
            known.insert(stored.event.event_id().clone(), stored.event);
        }
        let missing: Vec<EventId> = wanted.iter().filter(|id| !known.contains_key(*id)).cloned().collect();
        let fetched = if missing.len() > MAX_SINGLE_EVENTS {
            let state = self.server.federation.state(&origin, &self.room.room_id, edge).await?;
            let texts: Vec<_> = state.pdus.into_iter().chain(state.auth_chain).collect();
            let distinct: HashSet<&EventId> = wanted.iter().collect();
            if texts.len() < distinct.len() { None } else { self.check_all(&texts).await? }
        } else {
            let single = |id: EventId| {
                let (server, origin) = (self.server, origin.clone());
                async move { server.federation.event(&origin, &id).await }
            };
            let answers: Vec<_> = stream::iter(missing).map(single).buffered(4).collect().await;
            let mut texts = Vec::with_capacity(answers.len());
            for answer in answers {
                match answer {
                    Ok(text) => texts.push(text),
                    Err(error) if error.is_worth_retrying() => return Err(error.into()),
                    // Its last word: a room stands without an event that nobody has any more.
                    Err(_) => {}
                }
            }
            self.check_all(&texts).await?
        };
        // A state of which a part did not come is another state, and would be believed for ever.
        let Some(fetched) = fetched else { return Ok(false) };
        known.extend(fetched.into_iter().map(|event| (event.event_id().clone(), event)));
        let pick = |ids: &[EventId]| ids.iter().filter_map(|id| known.get(id).cloned()).collect::<Vec<Event>>();
        self.server.rooms.place(&event, &pick(&ids.pdu_ids), &pick(&ids.auth_chain_ids)).await?;
        Ok(true)
    }

    async fn single(&self, origin: &ServerName, event_id: &EventId) -> Result<Option<Event>, Failure> {
        let text = self.server.federation.event(origin, event_id).await?;
        let event = self.check(&[text]).await?.pop();
        Ok(event.filter(|event| event.event_id() == event_id))
    }

    /// As [`Work::check`]; `None` where they take more memory than there is.
    async fn check_all<T: AsRef<[u8]>>(&self, texts: &[T]) -> Result<Option<Vec<Event>>, Failure> {
        let version: &'static RoomVersion = self.room.room_version;
        let checked = pdus::verify_history(self.server, &self.room.room_id, version, texts).await;
        Ok(checked.map_err(RoomError::from)?)
    }

    /// Checks fetched PDUs: format, signatures, hashes. Those that fail are left out.
    async fn check<T: AsRef<[u8]>>(&self, texts: &[T]) -> Result<Vec<Event>, Failure> {
        Ok(self.check_all(texts).await?.unwrap_or_default())
    }
}
