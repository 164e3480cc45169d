//! Events from before what we hold whose state another server vouches for, and events that others cite as auth events.
//!
//! Server-Server API, "Backfilling and retrieving missing events".

use std::collections::HashSet;

use super::{
    Room, RoomError, Rooms,
    judge::{Judgement, Source},
    order::in_order,
    outliers::{Held, judge_outliers},
    policy::ASKING_MS,
    strangers::leave_what_comes_in,
    view::View,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
    },
    store::commit::{Committed, Guard, RoomCommit, Unsettled},
};

impl Rooms {
    /// Takes in events that others cite as auth events; each is judged by its own auth events, which are here or among
    /// `events`. Those whose auth events are lacking stay out. One whose place we know, as we hold what came before it, takes it
    /// and is judged like any other: what cites it may be all that we ever hear of it.
    ///
    /// Says whether anything came of them. Where enough is kept for `stranger`, a server that is not in the room and gives
    /// them or needs them, only its join is taken of them.
    ///
    /// # Errors
    /// [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn add_auth_events(
        &self,
        room_id: &RoomId,
        events: &[Event],
        stranger: Option<&ServerName>,
    ) -> Result<bool, RoomError> {
        let mut is_charged = false;
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let cited =
                |event: &Event| event.auth_events().iter().chain(event.prev_events()).cloned().collect::<Vec<_>>();
            let mut ids: Vec<EventId> = events.iter().flat_map(cited).collect();
            ids.extend(events.iter().map(|event| event.event_id().clone()));
            if events.iter().any(|event| event.version().room_id_is_create_hash) {
                ids.push(room_id.create_event_id());
            }
            let room = view.load_rooms(vec![room_id.clone()], &[], ids.clone(), Vec::new()).await?.pop();
            let room = room.ok_or(RoomError::UnknownRoom)?;
            let unchanged = RoomCommit { guard: Guard::Free, ..RoomCommit::unchanged(&room) };
            let mut commit = self.judge_placed(&mut view, room, events).await?.unwrap_or(unchanged);
            let placed = (commit.copies.len(), commit.rejected.len(), commit.readmitted.len());
            let held = Held::in_view(&view, ids.iter());
            let altered = held.rejected.iter().filter(|rejected| rejected.is_altered());
            let altered: HashSet<EventId> = altered.map(|rejected| rejected.event_id.clone()).collect();
            let is_new = |event: &&Event| match view.stored(event.event_id()) {
                Some(held) => event.completes(&held.event),
                None => view.rejected(event.event_id()).is_none_or(|rejected| rejected.is_altered_copy_of(event)),
            };
            let given = || events.iter().filter(is_new);
            commit.copies.extend(view.copies(given()));
            let judged = judge_outliers(self.clock.as_ref(), room_id, held, given()).await;
            let mut judged_anew = judged.rejected.iter().map(|one| one.event.event_id()).chain(&judged.readmitted);
            if judged_anew.any(|id| altered.contains(id)) {
                // What was built upon the altered copy may count on what state is after it.
                commit.unsettled = Some(Unsettled::KnownBetter);
            }
            commit.events.extend(judged.new);
            commit.rejected.extend(judged.rejected);
            commit.readmitted.extend(judged.readmitted);
            let is_empty = commit.events.is_empty() && commit.rejected.is_empty() && commit.readmitted.is_empty();
            if is_empty && commit.copies.is_empty() && commit.redactions.is_empty() && commit.rejected_at.is_empty() {
                return Ok(Committed::Done(false));
            }
            if let Some(stranger) = stranger.filter(|_| !is_charged) {
                is_charged = self.may_keep(&commit, stranger).await?;
                if !is_charged {
                    if !leave_what_comes_in(&mut commit, stranger) {
                        return Ok(Committed::Done(false));
                    }
                    commit.copies.truncate(placed.0);
                    commit.rejected.truncate(placed.1);
                    commit.readmitted.truncate(placed.2);
                }
            }
            Ok(self.store.commit(&[commit], Vec::new()).await?.with(true))
        })
        .await
    }
}

impl Rooms {
    /// Judges those of `events` like any other whose place we know, as we hold what came before them; all that they cite must
    /// have been read. The commit that comes of it, if anything does.
    pub(super) async fn judge_placed(
        &self,
        view: &mut View<'_>,
        room: Room,
        events: &[Event],
    ) -> Result<Option<RoomCommit>, RoomError> {
        if room.local_joined == 0 {
            return Ok(None);
        }
        let mut judgement = Judgement::new(room);
        let ask_until = self.clock.now_ms() + ASKING_MS;
        for event in in_order(events.to_vec()) {
            if event.room_id() == &judgement.room.room_id && can_be_judged(view, &event) {
                self.judge_signed(&mut judgement, view, &event, &Source::Transaction, ask_until).await?;
            }
        }
        Ok(if judgement.is_unchanged() { None } else { Some(self.commit_of(view, judgement).await?) })
    }
}

/// Whether we hold what an event cites, and so can judge it by the state before it.
fn can_be_judged(view: &View<'_>, event: &Event) -> bool {
    !event.prev_events().is_empty()
        && event.has_limited_references()
        && event.prev_events().iter().all(|id| view.state_after(id).is_some())
        && event.auth_events().iter().all(|id| view.knows(id))
}
