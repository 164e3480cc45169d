//! Events from before what we hold whose state another server vouches for, and events that others cite as auth events.
//!
//! Server-Server API, "Backfilling and retrieving missing events".

use std::collections::HashSet;

use super::{
    RoomError, Rooms,
    remote::{StateIndex, accepted, check_create, judge_outliers_with, snapshot},
    view::View,
};
use crate::{
    matrix::{
        auth_rules::{self, AuthEvent},
        event::{ContentHash, Event},
        identifiers::{EventId, RoomId},
    },
    store::commit::{Committed, NewEvent, Place, RoomCommit},
};

impl Rooms {
    /// Takes over the state before `event` from another server that vouches for it (`/state_ids`), so that what cites
    /// `event` can be judged. The event must be allowed by its auth events and by that state; it is shown to nobody.
    ///
    /// # Errors
    /// [`RoomError::MissingEvents`], [`RoomError::Invalid`], [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn place(&self, event: &Event, state: &[Event], auth_chain: &[Event]) -> Result<(), RoomError> {
        let given = auth_chain.iter().chain(state);
        let known = self.held_auth_events(given.clone()).await?;
        let outliers = judge_outliers_with(event.room_id(), accepted(known), given);
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
            let commit = RoomCommit { events: new, nodes: view.take_made(), ..RoomCommit::unchanged(&room) };
            Ok(self.store.commit(&[commit], Vec::new()).await?)
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
            let is_given = |held: &Event| {
                held.content_hash() == ContentHash::Wrong && events.iter().any(|event| event.completes(held))
            };
            let known: Vec<Event> = held.map(|stored| stored.event.clone()).filter(|event| !is_given(event)).collect();
            let mut given: Vec<&Event> = events
                .iter()
                .filter(|event| view.stored(event.event_id()).is_none_or(|held| event.completes(&held.event)))
                .collect();
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
            let judged = judge_outliers_with(room_id, accepted(known), given.into_iter());
            let commit = RoomCommit { events: judged.new, ..RoomCommit::unchanged(&room) };
            Ok(self.store.commit(&[commit], Vec::new()).await?)
        })
        .await
    }
}
