//! Events that come without a place in our graph: as auth events of others, or as part of a state that another server vouches
//! for. Each is judged by its auth events alone (check 4).

use std::collections::HashMap;

use super::{
    RoomError, Rooms,
    checks::{may_mislead, rejected_auth_event},
    judge::Rejection,
    order::CitedFirst,
    view::View,
};
use crate::{
    matrix::{
        auth_rules::{self, AuthEvent},
        event::{Event, whole_copies},
        identifiers::{EventId, RoomId},
        room_version::RoomVersion,
        state_trie::NodeId,
    },
    platform::{
        Clock, Statement,
        turns::{LIGHT_SLICE, SLICE, turn},
    },
    store::{
        commit::{Committed, Guard, NewEvent, RoomCommit},
        events::NodeText,
        rejected::{NewRejected, RejectedEvent},
    },
};

/// What we hold of the events that are given, and of those that they cite.
#[derive(Default)]
pub(super) struct Held {
    /// Events that were accepted.
    pub(super) events: Vec<Event>,
    /// Events that were rejected.
    pub(super) rejected: Vec<RejectedEvent>,
}

/// What became of an event.
pub(super) enum Outlier {
    Accepted(Event),
    Rejected {
        /// Whether better evidence may overturn that.
        provisional: bool,
    },
}

/// Events outside our graph, judged.
#[derive(Default)]
pub(super) struct Outliers {
    /// Those to keep.
    pub(super) new: Vec<NewEvent>,
    /// Those to remember as rejected.
    pub(super) rejected: Vec<NewRejected>,
    /// Those of `new` that were rejected before, because of what is known better now.
    pub(super) readmitted: Vec<EventId>,
    /// What became of each, those that were held included.
    pub(super) by_id: HashMap<EventId, Outlier>,
}

impl Rooms {
    /// What we hold of the auth events of `events` that are not among them, and in place of those of them that are altered, or are other
    /// events with the same IDs; and which of all these we have rejected.
    pub(super) async fn held_of<'a>(&self, events: impl Iterator<Item = &'a Event> + Clone) -> Result<Held, RoomError> {
        let doubtful = events.clone().filter(|event| event.is_altered() || !event.has_binding_id());
        let doubtful: HashMap<&EventId, &Event> = doubtful.map(|event| (event.event_id(), event)).collect();
        let mut ids: Vec<EventId> = events.clone().map(Event::event_id).cloned().collect();
        ids.sort();
        let given = ids.len();
        let cited = events.flat_map(Event::auth_events).filter(|id| ids.binary_search(id).is_err());
        let mut lacking: Vec<EventId> = cited.cloned().collect();
        lacking.sort();
        lacking.dedup();
        ids.extend(lacking);
        let clock = self.clock.as_ref();
        let rejected = self.store.rejected(clock, &ids).await?;
        let held = self.store.events(clock, ids.get(given..).unwrap_or_default()).await?;
        let mut events: Vec<Event> = held.into_iter().map(|stored| stored.event).collect();
        // Most of them are what we hold, and are not in memory twice.
        for ids in doubtful.keys().map(|id| (*id).clone()).collect::<Vec<EventId>>().chunks(SLICE) {
            let held = self.store.events(clock, ids).await?.into_iter().map(|stored| stored.event);
            let differs = |held: &Event| {
                doubtful.get(held.event_id()).is_some_and(|given| given.is_altered() || !given.is_copy_of(held))
            };
            events.extend(held.filter(differs));
        }
        Ok(Held { events, rejected })
    }
}

/// What is kept before anything refers to it.
#[derive(Default)]
pub(super) struct Apart {
    /// Events that stand nowhere.
    pub(super) new: Vec<NewEvent>,
    /// Those that are rejected for good,
    pub(super) rejected: Vec<NewRejected>,
    /// and those that are so no more.
    pub(super) readmitted: Vec<EventId>,
    /// The nodes of a snapshot.
    pub(super) nodes: Vec<NodeText>,
    /// Whether who keeps it has the room in hand, and settles it afterwards.
    pub(super) is_settling: bool,
}

impl Rooms {
    /// Keeps so much of the room, a slice at a time, and runs `others` at last. Where it is cut off, what is kept does no harm.
    pub(super) async fn keep_apart(
        &self,
        room_id: &RoomId,
        version: &'static RoomVersion,
        apart: Apart,
        others: Vec<Statement>,
    ) -> Result<(), RoomError> {
        let Apart { new, rejected, readmitted, nodes, is_settling } = apart;
        let commit = || {
            let new = RoomCommit::new(room_id.clone(), version, NodeId::EMPTY);
            RoomCommit { guard: Guard::Free, is_settling, ..new }
        };
        let mut commits: Vec<RoomCommit> = slices(new).map(|events| RoomCommit { events, ..commit() }).collect();
        commits.extend(slices(readmitted).map(|readmitted| RoomCommit { readmitted, ..commit() }));
        commits.extend(slices(rejected).map(|rejected| RoomCommit { rejected, ..commit() }));
        commits.extend(slices(nodes).map(|nodes| RoomCommit { nodes, ..commit() }));
        match self.store.commit_apart(self.clock.as_ref(), &commits, others).await? {
            Committed::Done(()) => Ok(()),
            Committed::Lost => Err(RoomError::Busy),
        }
    }
}

fn slices<T>(items: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter();
    std::iter::from_fn(move || Some(items.by_ref().take(SLICE).collect()).filter(|slice: &Vec<T>| !slice.is_empty()))
}

impl Held {
    /// What was read of the events `ids`.
    pub(super) fn in_view<'a>(view: &View<'_>, ids: impl Iterator<Item = &'a EventId> + Clone) -> Self {
        Self {
            events: ids.clone().filter_map(|id| Some(view.stored(id)?.event.clone())).collect(),
            rejected: ids.filter_map(|id| view.rejected(id)).cloned().collect(),
        }
    }
}

/// Judges `events` of a room, auth events first. What was rejected for good stays so, unless that was an altered copy and a whole one
/// has come; a provisional rejection counts no longer once its event comes again.
pub(super) async fn judge_outliers<'a>(
    clock: &dyn Clock,
    room_id: &RoomId,
    held: Held,
    events: impl Iterator<Item = &'a Event>,
) -> Outliers {
    let mut waiting: HashMap<EventId, Event> =
        whole_copies(events).into_iter().map(|(id, event)| (id.clone(), event.clone())).collect();
    let mut outliers = Outliers::default();
    for event in held.events {
        // A whole copy of one that is held without its content takes its place.
        if waiting.get(event.event_id()).is_some_and(|given| given.completes(&event)) {
            continue;
        }
        waiting.remove(event.event_id());
        outliers.by_id.insert(event.event_id().clone(), Outlier::Accepted(event));
    }
    for rejected in held.rejected {
        let is_same = |given: &Event| rejected.event.as_ref().is_none_or(|rejected| given.is_copy_of(rejected));
        let is_made_whole = |given: &Event| given.has_binding_id() && rejected.is_altered_copy_of(given);
        let counts_no_longer = |given: &Event| (rejected.provisional && is_same(given)) || is_made_whole(given);
        let given = waiting.get(&rejected.event_id);
        if given.is_some_and(counts_no_longer) {
            // The copy that we have may be the better one.
            if let Some(held) = rejected.event.filter(|held| given.is_some_and(|given| held.completes(given))) {
                waiting.insert(rejected.event_id.clone(), held);
            }
            outliers.readmitted.push(rejected.event_id);
        } else {
            waiting.remove(&rejected.event_id);
            let provisional = rejected.may_be_overturned();
            outliers.by_id.insert(rejected.event_id, Outlier::Rejected { provisional });
        }
    }
    let (mut given, create): (Vec<&EventId>, EventId) = (waiting.keys().collect(), room_id.create_event_id());
    // No event cites the create event from room version 12 on, and all need it.
    given.sort_unstable_by_key(|id| (**id != create, *id));
    let mut order = CitedFirst::default();
    for (added, id) in given.into_iter().enumerate() {
        turn(clock, added, LIGHT_SLICE).await;
        let cited = waiting.get(id).into_iter().flat_map(Event::auth_events);
        order.add(id, cited.filter(|id| waiting.contains_key(*id)));
    }
    // What stands in a circle does not come: nothing allows it.
    for (judged, event) in order.filter_map(|id| waiting.get(id)).enumerate() {
        turn(clock, judged, SLICE).await;
        outliers.judge(room_id, event.clone());
    }
    let Outliers { by_id, readmitted, .. } = &mut outliers;
    readmitted.retain(|id| matches!(by_id.get(id), Some(Outlier::Accepted(_))));
    outliers
}

impl Outliers {
    /// The event, if it was accepted.
    pub(super) fn accepted(&self, id: &EventId) -> Option<&Event> {
        match self.by_id.get(id)? {
            Outlier::Accepted(event) => Some(event),
            Outlier::Rejected { .. } => None,
        }
    }

    /// An event that lacks an auth event is left out: as a rejected one it would count for ever, and with it what cites it.
    fn judge(&mut self, room_id: &RoomId, event: Event) {
        if event.auth_events().iter().any(|id| !self.by_id.contains_key(id)) {
            return;
        }
        let id = event.event_id().clone();
        if event.room_id() != room_id {
            // What becomes of it in its own room is not for this one to say: nothing of it is kept.
            self.by_id.insert(id, Outlier::Rejected { provisional: false });
            return;
        }
        let outcome = match self.broken_rule(&event) {
            Some(Rejection { why, provisional }) => {
                let (reason, state_before, claimed) = (why, None, provisional);
                self.rejected.push(NewRejected { event, reason, state_before, claimed, provisional });
                Outlier::Rejected { provisional }
            }
            None => {
                self.new.push(NewEvent::outlier(event.clone()));
                Outlier::Accepted(event)
            }
        };
        self.by_id.insert(id, outcome);
    }

    /// Check 4: which rule `event` breaks by its auth events, if any. All of them must be known. A whole copy need not break one that
    /// an altered copy breaks.
    pub(super) fn broken_rule(&self, event: &Event) -> Option<Rejection> {
        if let Some(member) = event.oversized_member() {
            return Some(Rejection::for_good(format!("`{member}` is too long")));
        }
        let rejected = event.auth_events().iter().filter_map(|id| match self.by_id.get(id) {
            Some(Outlier::Rejected { provisional }) => Some((id, *provisional)),
            _ => None,
        });
        if let Some(rejection) = rejected_auth_event(rejected) {
            return Some(rejection);
        }
        let find = |id: &EventId| Some(AuthEvent { event: self.accepted(id)?, rejected: false });
        let mut auth_events: Vec<Event> =
            event.auth_events().iter().filter_map(|id| self.accepted(id).cloned()).collect();
        if event.version().room_id_is_create_hash
            && let Some(create) = self.accepted(&event.room_id().create_event_id())
        {
            auth_events.push(create.clone());
        }
        if let Err(error) = auth_rules::check_auth_event_list(event, find) {
            return Some(Rejection::for_good(error.to_string()));
        }
        let error = auth_rules::check(event, auth_events.as_slice()).err()?;
        Some(Rejection { why: error.to_string(), provisional: may_mislead(&auth_events, event) })
    }
}
