//! Fetching what received events cite and we do not hold (Server-Server API, "Backfilling and retrieving missing
//! events"), so that staged PDUs can be judged.
//!
//! In this order: the events between ours and the staged ones (`get_missing_events`); the auth events of an event that
//! lacks some (`event_auth`); and where the gap is too wide, the state before its far edge (`state_ids`, then `state` or
//! single events). Every fetched event is checked as a received one; what the sender says about the room's state is
//! judged by the room's rules.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt, stream};

use super::requests::RequestError;
use crate::{
    federation::pdus,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
        room_version::RoomVersion,
    },
    room::{Lacking, Room, RoomError},
    server::Server,
};

/// How many staged PDUs of a room are looked at together.
const STAGED_AT_ONCE: i64 = 200;

/// How many rounds of fetching one look at a room may take.
const MAX_ROUNDS: usize = 24;

/// How often a gap is filled with events before the state at its far edge is asked for.
const MAX_GAP_ROUNDS: usize = 4;

/// How many events are asked for to fill a gap; other servers give fewer as they please.
const GAP_LIMIT: i64 = 50;

/// Of more missing state events than this the whole state is asked for, not one by one.
const MAX_SINGLE_EVENTS: usize = 60;

/// After so many looks in vain a staged PDU is given up.
const MAX_ATTEMPTS: i64 = 12;

/// The pause after the first look in vain, in milliseconds; it grows with each.
const PAUSE_MS: i64 = 15_000;

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
    /// Starts fetching what the staged PDUs of the room cite. Called after a commit that staged some.
    pub fn fetch_missing(&self, room_id: &RoomId) {
        let (server, room_id) = (self.clone(), room_id.clone());
        self.platform.background.spawn(Box::pin(async move {
            server.judge_staged(&room_id).await;
        }));
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
        let waiting = self.store.waiting(room_id, STAGED_AT_ONCE).await.map_err(RoomError::from)?;
        let all: Vec<String> = waiting.iter().map(|staged| staged.event_id.clone()).collect();
        let Some(room) = self.rooms.room(room_id).await?.filter(|room| room.local_joined > 0) else {
            // Nobody here is in the room any more.
            return Ok(self.store.unstage(room_id, &all).await.map_err(RoomError::from)?);
        };
        let mut work = Work { server: self, room, events: Vec::new(), origins: HashMap::new(), asked: HashSet::new() };
        let mut attempts: HashMap<EventId, i64> = HashMap::new();
        for staged in &waiting {
            let event = Event::from_store(&staged.event_id, &staged.json, work.room.room_version);
            if let (Ok(event), Ok(origin)) = (event, ServerName::parse(&staged.origin)) {
                attempts.insert(event.event_id().clone(), staged.attempts);
                work.origins.insert(event.event_id().clone(), origin);
                work.events.push(event);
            }
        }
        let outcome = work.run().await;
        let left: HashSet<EventId> = work.events.iter().map(|event| event.event_id().clone()).collect();
        let done: Vec<String> = all.into_iter().filter(|id| !left.iter().any(|left| left.as_str() == id)).collect();
        self.store.unstage(room_id, &done).await.map_err(RoomError::from)?;
        let now = self.platform.clock.now_ms();
        for (event_id, tried) in attempts.into_iter().filter(|(id, _)| left.contains(id)) {
            let ids = [event_id.clone()];
            if tried + 1 >= MAX_ATTEMPTS {
                self.platform.log.warn(&format!("{event_id} in {room_id} is given up: what it cites cannot be had"));
                self.store.unstage(room_id, &[event_id.to_string()]).await.map_err(RoomError::from)?;
            } else {
                let retry_at = now + PAUSE_MS * (tried + 1) * (tried + 1);
                self.store.delay(room_id, &ids, retry_at).await.map_err(RoomError::from)?;
            }
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
            let without_auth: Vec<&Lacking> =
                lacking.iter().filter(|l| l.auth.iter().any(|id| !at_hand.contains(id))).copied().collect();
            for lacking in &without_auth {
                progress |= self.fetch_auth_events(&lacking.event).await?;
            }
            if !progress && gap_rounds < MAX_GAP_ROUNDS {
                gap_rounds += 1;
                progress = self.fill_gap(&lacking).await?;
            }
            if !progress {
                let edges: Vec<(EventId, EventId)> = lacking
                    .iter()
                    .flat_map(|l| l.previous.iter().map(|id| (id.clone(), l.event.event_id().clone())))
                    .filter(|(id, _)| !at_hand.contains(id))
                    .collect();
                for (edge, cited_by) in edges {
                    progress |= self.fetch_state(&edge, &cited_by).await?;
                }
            }
            if !progress {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Asks for the events between ours and those that lack previous events. Whether any came.
    async fn fill_gap(&mut self, lacking: &[&Lacking]) -> Result<bool, Failure> {
        let Some(origin) = lacking.first().and_then(|l| self.origins.get(l.event.event_id())).cloned() else {
            return Ok(false);
        };
        let latest: Vec<EventId> = lacking
            .iter()
            .filter(|l| self.origins.get(l.event.event_id()) == Some(&origin) && !l.previous.is_empty())
            .map(|l| l.event.event_id().clone())
            .take(20)
            .collect();
        if latest.is_empty() {
            return Ok(false);
        }
        let room = self.server.rooms.room(&self.room.room_id).await?.ok_or(RoomError::UnknownRoom)?;
        let earliest: Vec<EventId> = room.extremities.iter().map(|(id, _)| id.clone()).take(20).collect();
        let texts = self
            .server
            .federation
            .get_missing_events(&origin, &self.room.room_id, &earliest, &latest, GAP_LIMIT, 0)
            .await?;
        let fetched = self.check(&texts).await?;
        let mut new = false;
        for event in fetched {
            if !self.origins.contains_key(event.event_id()) {
                self.origins.insert(event.event_id().clone(), origin.clone());
                self.events.push(event);
                new = true;
            }
        }
        Ok(new)
    }

    /// Asks for the auth chain of `event`. Whether it was asked for the first time.
    async fn fetch_auth_events(&mut self, event: &Event) -> Result<bool, Failure> {
        let Some(origin) = self.origins.get(event.event_id()).cloned() else { return Ok(false) };
        if !self.asked.insert(("auth", event.event_id().clone())) {
            return Ok(false);
        }
        let texts = self.server.federation.event_auth(&origin, &self.room.room_id, event.event_id()).await?;
        let chain = self.check(&texts).await?;
        self.server.rooms.add_auth_events(&self.room.room_id, &chain).await?;
        Ok(!chain.is_empty())
    }

    /// Asks for the event `edge` and the state before it, and takes both over. Whether it was asked for the first time.
    async fn fetch_state(&mut self, edge: &EventId, cited_by: &EventId) -> Result<bool, Failure> {
        let Some(origin) = self.origins.get(cited_by).cloned() else { return Ok(false) };
        if !self.asked.insert(("state", edge.clone())) {
            return Ok(false);
        }
        let held = self.server.rooms.event(edge).await?;
        let event = match held {
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
            self.check(&texts).await?
        } else {
            let single = |id: EventId| {
                let (server, origin) = (self.server, origin.clone());
                async move { server.federation.event(&origin, &id).await }
            };
            let texts: Vec<_> = stream::iter(missing).map(single).buffered(4).collect().await;
            let texts: Vec<_> = texts.into_iter().flatten().collect();
            self.check(&texts).await?
        };
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

    /// Checks fetched PDUs: format, signatures, hashes. Those that fail are left out.
    async fn check<T: AsRef<[u8]>>(&self, texts: &[T]) -> Result<Vec<Event>, Failure> {
        let version: &'static RoomVersion = self.room.room_version;
        let checked = pdus::verify_history(self.server, &self.room.room_id, version, texts).await;
        Ok(checked.map_err(RoomError::from)?)
    }
}
