//! The gate through which other servers read our rooms.
//!
//! Every endpoint that tells another server something of what is in a room goes through a [`RemoteReader`], which only this file makes,
//! and gets from it only what that server may see. Here alone it is decided who may read. What a space tells of its rooms to those
//! who are not in them yet is decided in [`super::spaces`], as it rests on who may join.

use std::fmt;

use super::{
    Admitted, RoomError, Rooms,
    acl::acl_of,
    remote_visibility::{Moment, visible},
    resident::ToldOfJoin,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
    },
    platform::DatabaseError,
    store::{
        answer_texts::EventTexts,
        by_time::Direction,
        events::StoredEvent,
        history_visibility::Restrictions,
        positions::TimelinePos,
        remote_reads::{Asked, AtEvent, ShownEvent, Standing, StateIds, StateTexts},
        rooms::Extent,
        timeline::TimelineEvent,
    },
};

/// How many looks further there are where a server may see none of the events nearest to a time.
const MAX_LOOKS: usize = 5;

/// A server in a room that it may read: proof that it was let in.
pub struct RemoteReader<'r> {
    rooms: &'r Rooms,
    server: ServerName,
    room_id: RoomId,
    /// What the server may not see.
    restrictions: Restrictions,
    /// Whether the states before its events are whole.
    extent: Extent,
}

/// Why another server is not told what it asked for.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadRefusal {
    /// It has no joined members in the room. The same is said of a room that we do not know, which is nobody's business.
    NotInRoom,
    /// The room's server ACL keeps it out.
    Denied,
    /// We do not hold the event, or have rejected it.
    UnknownEvent,
    /// We do not know the state at the event.
    UnknownState,
    /// There is more of it than one answer of ours has room for.
    TooLarge,
    /// Something failed here.
    Failed(RoomError),
}

#[expect(clippy::disallowed_methods, reason = "this is the gate")]
impl Rooms {
    /// Lets `server` into a room that it may read. One round trip.
    ///
    /// # Errors
    /// [`ReadRefusal::NotInRoom`], [`ReadRefusal::Denied`]
    pub async fn remote_reader(&self, server: &ServerName, room_id: &RoomId) -> Result<RemoteReader<'_>, ReadRefusal> {
        let standing = self.store.standing(server, room_id).await?;
        self.admit_reader(server, room_id, &standing)
    }

    /// The IDs of the state before an event of a room that the server may read, and of that state's auth chain. One round trip.
    ///
    /// # Errors
    /// [`ReadRefusal::NotInRoom`], [`ReadRefusal::Denied`], [`ReadRefusal::UnknownEvent`], [`ReadRefusal::UnknownState`]
    pub async fn state_ids_at(&self, asked: Asked<'_>) -> Result<StateIds, ReadRefusal> {
        let (reader, event, ids) = self.admit_reader_at(asked, self.store.state_ids_before(asked).await?)?;
        reader.has_whole_state(&event).map(|()| ids)
    }

    /// As [`Rooms::state_ids_at`], the events themselves.
    ///
    /// # Errors
    /// As [`Rooms::state_ids_at`].
    pub async fn state_at(&self, asked: Asked<'_>) -> Result<(RemoteReader<'_>, StateTexts), ReadRefusal> {
        let (reader, event, texts) = self.admit_reader_at(asked, self.store.state_texts_before(asked).await?)?;
        reader.has_whole_state(&event).map(|()| (reader, texts))
    }

    /// The auth chain of an event of a room that the server may read. One round trip.
    ///
    /// # Errors
    /// [`ReadRefusal::NotInRoom`], [`ReadRefusal::Denied`], [`ReadRefusal::UnknownEvent`]
    pub async fn auth_chain_of(&self, asked: Asked<'_>) -> Result<(RemoteReader<'_>, EventTexts), ReadRefusal> {
        let (reader, _, texts) = self.admit_reader_at(asked, self.store.event_auth_texts(asked).await?)?;
        Ok((reader, texts))
    }

    /// The text of an event of any room that `server` may read, redacted where it was, or where the server may not see it. A server
    /// ACL does not keep it from that, as the spec has it. One round trip where the room never restricted its history.
    ///
    /// # Errors
    /// [`ReadRefusal::NotInRoom`], [`ReadRefusal::UnknownEvent`]
    pub async fn event_text(&self, server: &ServerName, event_id: &EventId) -> Result<String, ReadRefusal> {
        let found = self.store.event_and_joined(server, event_id).await?;
        let (stored, joined, restrictions) = found.ok_or(ReadRefusal::UnknownEvent)?;
        if !joined {
            return Err(ReadRefusal::NotInRoom);
        }
        let room_id = stored.event.room_id().clone();
        // It is asked for an event only, and for none of its state.
        let reader =
            RemoteReader { rooms: self, server: server.clone(), room_id, restrictions, extent: Extent::Partial };
        let moment = Moment { event: &stored.event, before: stored.state_before, is_outlier: stored.outlier };
        let sees = reader.sees(&[moment]).await?;
        Ok(if sees.contains(&true) { stored.shown().into_owned() } else { stored.event.redacted().json().to_owned() })
    }

    fn admit_reader_at<T>(
        &self,
        asked: Asked<'_>,
        found: AtEvent<T>,
    ) -> Result<(RemoteReader<'_>, StoredEvent, T), ReadRefusal> {
        let reader = self.admit_reader(asked.server, asked.room_id, &found.standing)?;
        Ok((reader, found.event.ok_or(ReadRefusal::UnknownEvent)?, found.read))
    }

    fn admit_reader(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        standing: &Standing,
    ) -> Result<RemoteReader<'_>, ReadRefusal> {
        if !standing.joined {
            return Err(ReadRefusal::NotInRoom);
        }
        if !acl_of(standing.acl.as_ref()).allows(server) {
            return Err(ReadRefusal::Denied);
        }
        let restrictions = standing.restrictions.clone();
        let (server, room_id, extent) = (server.clone(), room_id.clone(), standing.extent);
        Ok(RemoteReader { rooms: self, server, room_id, restrictions, extent })
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the gate")]
impl RemoteReader<'_> {
    /// Whether the state before the event is known, and all of it.
    fn has_whole_state(&self, event: &StoredEvent) -> Result<(), ReadRefusal> {
        let is_whole = event.state_before.is_some() && self.extent == Extent::Whole;
        is_whole.then_some(()).ok_or(ReadRefusal::UnknownState)
    }

    /// What a server is given that has just joined: the state before its join and the auth chain of that and of the join, whose
    /// auth events are part of the state or of its chain, unless the join was made on another branch. And whether members are left
    /// out. One round trip where all is told, else none but where the state has become another one since that was settled.
    ///
    /// # Errors
    /// Only where something failed here.
    pub async fn state_of_join(
        &self,
        Admitted { event: join, state_before }: &Admitted,
        told: ToldOfJoin,
    ) -> Result<(StateTexts, bool), ReadRefusal> {
        let without = match told.without {
            Some(_) if told.root != *state_before => self.rooms.without_members(join, *state_before).await?.events,
            without => without,
        };
        if let Some(ids) = without {
            let texts = |ids: &[EventId]| EventTexts::of(&self.room_id, ids, told.held.as_ref());
            return Ok((StateTexts { state: texts(&ids.state), auth_chain: texts(&ids.auth_chain) }, true));
        }
        let whole =
            self.rooms.store.state_texts(&self.room_id, *state_before, join.event_id(), told.held.as_ref()).await?;
        Ok((whole, false))
    }

    /// The event nearest to `ts` in this direction, and when it was sent. One round trip where the room never restricted its history,
    /// else up to four; and where none of the nearest events may be seen, up to four more for each look further.
    ///
    /// # Errors
    /// Only where something failed here.
    pub async fn nearest(&self, ts: i64, direction: Direction) -> Result<Option<(EventId, i64)>, ReadRefusal> {
        let found = self.rooms.store.nearest(&self.room_id, ts, direction, TimelinePos::END).await?;
        let Some((moment, events)) = found else { return Ok(None) };
        let mut nearest = self.first_seen(&events).await?;
        let (mut looks, mut pos) = (0, moment.pos);
        let is_restricted = !self.restrictions.is_empty();
        while nearest.is_none() && is_restricted && looks < MAX_LOOKS {
            let at = (pos, ts, direction);
            let turns = self.rooms.store.turns(&self.room_id, at, &self.server, &self.restrictions.erased).await?;
            let Some((turns, next)) = turns else { break };
            nearest = self.first_seen(&turns).await?;
            (looks, pos) = (looks + 1, next);
        }
        Ok(nearest)
    }

    /// The first of the events that the server may see, and when it was sent.
    async fn first_seen(&self, events: &[TimelineEvent]) -> Result<Option<(EventId, i64)>, ReadRefusal> {
        let moments = events.iter().map(|event| {
            let before = event.seen.state_before;
            Moment { event: &event.seen.event, before, is_outlier: false }
        });
        let moments: Vec<Moment<'_>> = moments.collect();
        let seen = self.sees(&moments).await?;
        let first = moments.iter().zip(seen).find(|(_, seen)| *seen);
        Ok(first.map(|(Moment { event, .. }, _)| (event.event_id().clone(), event.origin_server_ts())))
    }

    /// Appends a JSON list of the events to `answer`.
    ///
    /// # Errors
    /// [`ReadRefusal::TooLarge`], and where something failed here.
    pub async fn write(&self, texts: EventTexts, answer: &mut String) -> Result<(), ReadRefusal> {
        let fits = self.rooms.store.write_texts(texts, answer).await?;
        fits.then_some(()).ok_or(ReadRefusal::TooLarge)
    }

    /// Of each of these events whether the server may see it. No round trip where the room never restricted its history and nobody
    /// was erased who was there; else two, or three.
    ///
    /// # Errors
    /// Only where something failed here.
    async fn sees(&self, moments: &[Moment<'_>]) -> Result<Vec<bool>, ReadRefusal> {
        if self.restrictions.is_empty() {
            return Ok(vec![true; moments.len()]);
        }
        Ok(visible(&self.rooms.store, &self.room_id, (&self.server, &self.restrictions), moments).await?)
    }

    /// The events `from` and what precedes them, the deepest first: at most `limit`, and neither the events of `until` nor
    /// what only they lead to. What the server may not see is redacted. One round trip where the room never restricted its history.
    ///
    /// # Errors
    /// Only where something failed here.
    pub async fn history(
        &self,
        from: &[EventId],
        until: &[EventId],
        limit: i64,
    ) -> Result<Vec<ShownEvent>, ReadRefusal> {
        let mut shown = self.rooms.store.walk_back(&self.room_id, from, until, limit).await?;
        if self.restrictions.is_empty() {
            return Ok(shown);
        }
        let events = shown.iter().map(ShownEvent::event).collect::<Result<Vec<Event>, _>>()?;
        let moments = events.iter().zip(&shown).map(|(event, shown)| {
            let (before, is_outlier) = (shown.state_before, shown.is_outlier);
            Moment { event, before, is_outlier }
        });
        let moments: Vec<Moment<'_>> = moments.collect();
        let seen = self.sees(&moments).await?;
        for ((shown, event), _) in shown.iter_mut().zip(&events).zip(seen).filter(|(_, seen)| !seen) {
            event.redacted().json().clone_into(&mut shown.text);
        }
        Ok(shown)
    }
}

impl fmt::Debug for RemoteReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.server, self.room_id)
    }
}

impl From<DatabaseError> for ReadRefusal {
    fn from(error: DatabaseError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<RoomError> for ReadRefusal {
    fn from(error: RoomError) -> Self {
        Self::Failed(error)
    }
}
