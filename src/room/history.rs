//! Events from before what we hold: history that a local user pages back to, and events whose state another server
//! vouches for.
//!
//! Server-Server API, "Backfilling and retrieving missing events".

use std::collections::HashSet;

use super::{
    Room, RoomError, Rooms,
    remote::{StateIndex, check_create, judge_outliers_with, snapshot},
    view::View,
};
use crate::{
    matrix::{
        auth_rules::{self, AuthEvent},
        event::Event,
        identifiers::{EventId, RoomId},
    },
    store::commit::{Before, Committed, Missing, NewEvent, Place, RoomCommit},
};

impl Rooms {
    /// Puts history into the gap that ends at the position `gap_pos` of the room's timeline. `events` were asked for
    /// because events after the gap cite them; what does not lead there from the gap's newer end is left out. Signatures and
    /// hashes were checked; each event is judged by its auth events. `auth_events` are those that came with them.
    ///
    /// Says whether any event has found a place.
    ///
    /// # Errors
    /// [`RoomError::MissingEvents`] where auth events are lacking, [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn fill(
        &self,
        room_id: &RoomId,
        gap_pos: i64,
        events: &[Event],
        auth_events: &[Event],
    ) -> Result<bool, RoomError> {
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let mut ids: Vec<EventId> = events.iter().map(|event| event.event_id().clone()).collect();
            ids.extend(events.iter().flat_map(|event| event.prev_events().iter().cloned()));
            ids.extend(events.iter().chain(auth_events).flat_map(|event| event.auth_events().iter().cloned()));
            if let Some(first) = events.first()
                && first.version().room_id_is_create_hash
            {
                ids.push(room_id.create_event_id());
            }
            let room = view.load_rooms(vec![room_id.clone()], &[], ids, Vec::new()).await?.pop();
            let room = room.ok_or(RoomError::UnknownRoom)?;
            let gap = self.store.newest_gap(room_id, (gap_pos - 1, gap_pos)).await?;
            let Some(gap) = gap else { return Ok(Committed::Done(false)) };
            let mut history = connected(&gap.missing, events, |id| view.is_placed(id));
            // At the oldest end of the timeline there is room without end.
            let end = if gap.below.is_some() { gap.pos } else { gap.pos.min(0) };
            let room_left = gap.below.map_or(i64::MAX, |below| end - below - 1);
            history.truncate(usize::try_from(room_left).unwrap_or(usize::MAX));
            let new = self.judge_history(&view, &room, end, &history, auth_events)?;
            let placed: HashSet<&EventId> =
                new.iter().filter(|new| new.place != Place::Outlier).map(|new| new.event.event_id()).collect();
            if placed.is_empty() {
                return Ok(Committed::Done(false));
            }
            let oldest = new.iter().filter_map(|new| match new.place {
                Place::Filled(pos) => Some(pos),
                _ => None,
            });
            let oldest = oldest.min().unwrap_or(gap.pos);
            let previous =
                history.iter().filter(|event| placed.contains(event.event_id())).flat_map(Event::prev_events);
            let lacking: HashSet<&EventId> =
                previous.filter(|id| !placed.contains(*id) && !view.is_placed(id)).collect();
            let missing =
                lacking.into_iter().map(|id| Missing { event_id: id.clone(), before: Before::Position(oldest) });
            let (missing, filled) = (missing.collect(), Some((gap.pos, oldest)));
            let commit = RoomCommit { missing, filled, ..unchanged(&room, new, Vec::new()) };
            Ok(self.store.commit(&[commit], Vec::new()).await?.with(true))
        })
        .await
    }

    /// Takes over the state before `event` from another server that vouches for it (`/state_ids`), so that what cites
    /// `event` can be judged. The event must be allowed by its auth events and by that state; it is shown to nobody.
    ///
    /// # Errors
    /// [`RoomError::MissingEvents`], [`RoomError::Invalid`], [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn place(&self, event: &Event, state: &[Event], auth_chain: &[Event]) -> Result<(), RoomError> {
        let given = auth_chain.iter().chain(state);
        let known = self.held_auth_events(given.clone()).await?;
        let outliers = judge_outliers_with(event.room_id(), known.into_iter(), given);
        let good: Vec<&Event> = state
            .iter()
            .filter(|event| outliers.by_id.get(event.event_id()).is_some_and(|(_, rejected)| rejected.is_none()))
            .collect();
        let snapshot = snapshot(&good)?;
        check_create(&good, event.version())?;
        let state_events: Vec<Event> = good.iter().map(|event| (*event).clone()).collect();
        let find = |id: &EventId| {
            let (event, rejected) = outliers.by_id.get(id)?;
            Some(AuthEvent { event, rejected: rejected.is_some() })
        };
        // A claim rejects nothing: where the event does not fit the state that is claimed, the claim is not believed.
        auth_rules::check_auth_event_list(event, find)
            .and_then(|()| auth_rules::check(event, &StateIndex::new(&state_events)))
            .map_err(|error| {
                RoomError::Invalid(format!("The state before {} forbids it: {error}.", event.event_id()))
            })?;
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let ids = vec![event.event_id().clone()];
            let room = view.load_rooms(vec![event.room_id().clone()], &[], ids, Vec::new()).await?.pop();
            let room = room.ok_or(RoomError::UnknownRoom)?;
            if view.stored(event.event_id()).is_some_and(|stored| stored.state_after.is_some()) {
                return Ok(Committed::Done(()));
            }
            for (id, text) in &snapshot.nodes {
                view.add_made(*id, text.clone())?;
            }
            let after = view.with_event(snapshot.root, event).await?;
            let mut new = outliers.new.clone();
            new.retain(|outlier| outlier.event.event_id() != event.event_id());
            new.push(NewEvent {
                event: event.clone(),
                place: Place::Edge,
                rejected: None,
                soft_failed: false,
                state_before: Some(snapshot.root),
                state_after: Some(after),
                outbox: None,
            });
            Ok(self.store.commit(&[unchanged(&room, new, view.take_made())], Vec::new()).await?)
        })
        .await
    }

    /// Takes in events that others cite as auth events; each is judged by its own auth events, which are here or among
    /// `events`. Those whose auth events are lacking stay out.
    ///
    /// # Errors
    /// [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn add_auth_events(&self, room_id: &RoomId, events: &[Event]) -> Result<(), RoomError> {
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let cited = events.iter().flat_map(|event| event.auth_events().iter().chain([event.event_id()]));
            let mut ids: Vec<EventId> = cited.cloned().collect();
            if events.iter().any(|event| event.version().room_id_is_create_hash) {
                ids.push(room_id.create_event_id());
            }
            let room = view.load_rooms(vec![room_id.clone()], &[], ids.clone(), Vec::new()).await?.pop();
            let room = room.ok_or(RoomError::UnknownRoom)?;
            let held = ids.iter().filter_map(|id| view.stored(id)).filter(|stored| stored.rejected.is_none());
            let known: Vec<Event> = held.map(|stored| stored.event.clone()).collect();
            let mut given: Vec<&Event> =
                events.iter().filter(|event| view.stored(event.event_id()).is_none()).collect();
            // An event that lacks an auth event would count as rejected for ever, and with it what cites it.
            loop {
                let at_hand: HashSet<&EventId> = given.iter().map(|event| event.event_id()).collect();
                let complete = |event: &&Event| {
                    event.auth_events().iter().all(|id| at_hand.contains(id) || view.stored(id).is_some())
                };
                let kept: Vec<&Event> = given.iter().copied().filter(complete).collect();
                if kept.len() == given.len() {
                    break;
                }
                given = kept;
            }
            if given.is_empty() {
                return Ok(Committed::Done(()));
            }
            let judged = judge_outliers_with(room_id, known.into_iter(), given.into_iter());
            Ok(self.store.commit(&[unchanged(&room, judged.new, Vec::new())], Vec::new()).await?)
        })
        .await
    }

    /// Judges history, given newest first, by the auth events of each, which are here or among `auth_events`. It goes
    /// just before the position `end`.
    fn judge_history(
        &self,
        view: &View<'_>,
        room: &Room,
        end: i64,
        history: &[Event],
        auth_events: &[Event],
    ) -> Result<Vec<NewEvent>, RoomError> {
        let mut missing: Vec<EventId> = Vec::new();
        let given: HashSet<&EventId> = history.iter().chain(auth_events).map(Event::event_id).collect();
        let mut known: Vec<Event> = Vec::new();
        for event in history.iter().chain(auth_events) {
            for id in event.auth_events() {
                match view.stored(id) {
                    Some(stored) if stored.rejected.is_none() => known.push(stored.event.clone()),
                    Some(_) => {}
                    None if given.contains(id) => {}
                    None => missing.push(id.clone()),
                }
            }
        }
        if let Some(stored) = view.stored(&room.room_id.create_event_id()) {
            known.push(stored.event.clone());
        }
        if !missing.is_empty() {
            missing.sort();
            missing.dedup();
            return Err(RoomError::MissingEvents(missing));
        }
        // Known events were accepted before and are so again by the same rules, given their own auth events; those that
        // are not at hand are judged by what is stored.
        let judged = judge_outliers_with(&room.room_id, known.into_iter(), history.iter().chain(auth_events));
        let mut new: Vec<NewEvent> = Vec::new();
        let mut pos = end;
        for event in history {
            let Some((_, rejected)) = judged.by_id.get(event.event_id()) else { continue };
            pos -= i64::from(rejected.is_none());
            // The state around it may be known, as another server vouched for it.
            let stored = view.stored(event.event_id());
            new.push(NewEvent {
                event: event.clone(),
                place: if rejected.is_some() { Place::Hidden } else { Place::Filled(pos) },
                rejected: rejected.clone(),
                soft_failed: false,
                state_before: stored.and_then(|stored| stored.state_before),
                state_after: stored.and_then(|stored| stored.state_after),
                outbox: None,
            });
        }
        let history: HashSet<&EventId> = history.iter().map(Event::event_id).collect();
        new.extend(judged.new.into_iter().filter(|new| !history.contains(new.event.event_id())));
        Ok(new)
    }
}

/// Those of `events` that `missing` lead back to, newest first, not past those that have a place already.
fn connected(missing: &[EventId], events: &[Event], is_placed: impl Fn(&EventId) -> bool) -> Vec<Event> {
    let mut reached: HashSet<EventId> = missing.iter().cloned().collect();
    let mut waiting: Vec<&Event> = events.iter().filter(|event| !is_placed(event.event_id())).collect();
    let mut connected = Vec::new();
    loop {
        // Of what is reached the greatest depth comes first: depth orders honest history, and orders only the view of it.
        waiting.sort_by_key(|event| std::cmp::Reverse((event.depth(), event.origin_server_ts())));
        let Some(index) = waiting.iter().position(|event| reached.contains(event.event_id())) else {
            return connected;
        };
        let event = waiting.remove(index);
        reached.extend(event.prev_events().iter().cloned());
        connected.push(event.clone());
    }
}

/// A commit that adds events and leaves the room as it is.
fn unchanged(room: &Room, events: Vec<NewEvent>, nodes: Vec<crate::store::events::NodeText>) -> RoomCommit {
    RoomCommit {
        room_id: room.room_id.clone(),
        from_version: Some(room.version),
        room_version: room.room_version,
        extremities: room.extremities.clone(),
        state: room.state,
        states: Vec::new(),
        events,
        nodes,
        joined: Vec::new(),
        memberships: Vec::new(),
        redactions: Vec::new(),
        missing: Vec::new(),
        filled: None,
        joins_anew: false,
    }
}
