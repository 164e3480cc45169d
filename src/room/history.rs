//! Events from before what we hold whose state another server vouches for, and events that others cite as auth events.
//!
//! Server-Server API, "Backfilling and retrieving missing events".

use std::collections::HashSet;

use super::{
    RoomError, Rooms,
    outliers::{Held, judge_outliers},
    view::View,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId},
    },
    store::commit::{Committed, Guard, RoomCommit},
};

impl Rooms {
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
            let held = Held::in_view(&view, ids.iter());
            let is_new = |event: &&Event| match view.stored(event.event_id()) {
                Some(held) => event.completes(&held.event),
                None => !view.knows(event.event_id()),
            };
            let mut given: Vec<&Event> = events.iter().filter(is_new).collect();
            // An event that lacks an auth event would count as rejected for ever, and with it what cites it.
            loop {
                let at_hand: HashSet<&EventId> = given.iter().map(|event| event.event_id()).collect();
                let complete =
                    |event: &&Event| event.auth_events().iter().all(|id| at_hand.contains(id) || view.knows(id));
                let kept: Vec<&Event> = given.iter().copied().filter(complete).collect();
                if kept.len() == given.len() {
                    break;
                }
                given = kept;
            }
            if given.is_empty() {
                return Ok(Committed::Done(()));
            }
            let judged = judge_outliers(room_id, held, given.into_iter());
            let unchanged = RoomCommit::unchanged(&room);
            let commit = RoomCommit { guard: Guard::Free, events: judged.new, rejected: judged.rejected, ..unchanged };
            Ok(self.store.commit(&[commit], Vec::new()).await?)
        })
        .await
    }
}
