//! Taking over what other servers claim of the state before an event whose ancestors we lack.
//!
//! Server-Server API, "Retrieving event authorisation information".

use std::collections::HashSet;

use super::{
    Room, RoomError, Rooms,
    believed::{Believed, Claim, Known},
    checks::auth_keys,
    judge::{Judgement, Rejection, Source},
    policy::ASKING_MS,
    view::View,
};
use crate::{
    matrix::{event::Event, identifiers::EventId, state_trie::NodeId},
    store::{
        commit::{Committed, Guard, NewEvent, Place, RoomCommit, Unsettled},
        events::StoredEvent,
        rejected::{NewRejected, RejectedEvent},
    },
};

impl Rooms {
    /// Takes over the state before `event` from other servers that vouch for it, so that what cites `event` can be judged. The
    /// event is shown to nobody. Where the claims differ, what they resolve to counts: an old state that one server makes
    /// out to be the newest does no harm.
    ///
    /// # Errors
    /// [`RoomError::Invalid`] where no claim can be believed, [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn place(&self, event: &Event, claims: &[Claim]) -> Result<(), RoomError> {
        let believed = self.believed(event, claims, Known::Nothing).await?;
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let Some(claimed) = self.take_claims(&mut view, event, &believed, Known::Nothing).await? else {
                return Ok(Committed::Done(()));
            };
            let Claimed { room, mut commit, .. } = claimed;
            if view.state_after(event.event_id()).is_some() {
                return Ok(self.store.commit(&[commit], Vec::new()).await?);
            }
            let before = resolve(&mut view, &room, None, &believed).await?;
            let rejection = believed.claims.iter().find_map(|examined| examined.rejection.clone());
            let is_against = rejection.as_ref().is_some_and(|rejection| rejection.provisional);
            let why = if is_against { Unsettled::Against } else { Unsettled::Claimed };
            commit.unsettled = commit.unsettled.max(Some(why));
            match rejection {
                Some(Rejection { why: reason, provisional }) => commit.rejected.push(NewRejected {
                    event: event.clone(),
                    reason,
                    state_before: Some(before),
                    claimed: true,
                    provisional,
                }),
                None => commit.events.push(NewEvent {
                    event: event.clone(),
                    place: Place::Edge,
                    soft_failed: false,
                    claimed: true,
                    state_before: Some(before),
                    state_after: Some(view.with_event(before, event).await?),
                    outbox: None,
                }),
            }
            commit.nodes.extend(view.take_made());
            Ok(self.store.commit(&[commit], Vec::new()).await?)
        })
        .await
    }

    /// Judges `event` by the state before it that other servers claim, as nobody gives its previous events: who has rejected an event
    /// gives it to nobody, and yet its sender may have built upon it, and others upon that. The gap stays until what is lacking comes.
    ///
    /// # Errors
    /// [`RoomError::Invalid`] where no claim can be believed, [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn judge_by_claims(&self, event: &Event, claims: &[Claim]) -> Result<(), RoomError> {
        let believed = self.believed(event, claims, Known::Nothing).await?;
        let Some(claimed) = self.claimed_state(event, &believed, Known::Nothing).await? else { return Ok(()) };
        let ask_until = self.clock.now_ms() + ASKING_MS;
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let mut ids: Vec<EventId> = event.prev_events().iter().chain(event.auth_events()).cloned().collect();
            ids.extend([event.event_id().clone(), event.room_id().create_event_id()]);
            let room = view.load_rooms(vec![event.room_id().clone()], &auth_keys(event), ids, Vec::new()).await?.pop();
            let mut judgement = Judgement::new(room.ok_or(RoomError::UnknownRoom)?);
            judgement.claimed_before.insert(event.event_id().clone(), claimed.before);
            self.judge_signed(&mut judgement, &mut view, event, &Source::Transaction, ask_until).await?;
            if judgement.is_unchanged() {
                return Ok(Committed::Done(()));
            }
            judgement.unsettled.get_or_insert(Unsettled::Claimed);
            let commit = self.commit_of(&mut view, judgement).await?;
            Ok(self.store.commit(&[commit], Vec::new()).await?)
        })
        .await
    }

    /// Takes what further servers claim of the state before `event` beside what was claimed of it before, which counts where they have
    /// nothing: what all come to together is the state then, and what rests on it is to be settled. Whether that is another state.
    ///
    /// # Errors
    /// [`RoomError::Invalid`] where no claim can be believed, [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn claim_again(&self, event: &Event, claims: &[Claim]) -> Result<bool, RoomError> {
        let mut believed = self.believed(event, claims, Known::Claim).await?;
        believed.claims.retain(|examined| !examined.is_for_nothing(Known::Claim));
        if believed.claims.is_empty() {
            return Err(RoomError::Invalid(format!("The states before {} forbid it.", event.event_id())));
        }
        // It was judged, by what is to be found out.
        believed.placeable.retain(|placeable| placeable.event_id() != event.event_id());
        let Some(ClaimedState { so_far: Some(so_far), before, has_placed }) =
            self.claimed_state(event, &believed, Known::Claim).await?
        else {
            return Ok(false);
        };
        if so_far == before {
            return Ok(has_placed);
        }
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let ids = vec![event.event_id().clone(), event.room_id().create_event_id()];
            let room = view.load_rooms(vec![event.room_id().clone()], &auth_keys(event), ids, Vec::new()).await?.pop();
            let mut judgement = Judgement::new(room.ok_or(RoomError::UnknownRoom)?);
            if !judgement.replace_claim(&mut view, event, so_far, before).await? {
                return Ok(Committed::Done(has_placed));
            }
            let guard = Guard::Moves(judgement.room.version);
            let mut commit = self.commit_of(&mut view, judgement).await?;
            commit.guard = guard;
            commit.is_settling = true;
            Ok(self.store.commit(&[commit], Vec::new()).await?.with(true))
        })
        .await
    }

    /// Keeps what claims bring, and what they come to. `None` where more is known of the state than they are for.
    async fn claimed_state(
        &self,
        event: &Event,
        believed: &Believed,
        known: Known,
    ) -> Result<Option<ClaimedState>, RoomError> {
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let Some(claimed) = self.take_claims(&mut view, event, believed, known).await? else {
                return Ok(Committed::Done(None));
            };
            let Claimed { room, mut commit, has_placed } = claimed;
            let so_far = match known {
                Known::Nothing => None,
                Known::Claim => claimed_before(&view, event.event_id()),
            };
            commit.is_settling = so_far.is_some();
            let before = resolve(&mut view, &room, so_far, believed).await?;
            commit.nodes.extend(view.take_made());
            let claimed = ClaimedState { so_far, before, has_placed };
            Ok(self.store.commit(&[commit], Vec::new()).await?.with(Some(claimed)))
        })
        .await
    }

    /// The room, and the commit that takes in what claims about the state before `event` bring; `None` where more is known of that
    /// state than they are for.
    async fn take_claims(
        &self,
        view: &mut View<'_>,
        event: &Event,
        believed: &Believed,
        known: Known,
    ) -> Result<Option<Claimed>, RoomError> {
        let cited = |event: &Event| event.prev_events().iter().chain(event.auth_events()).cloned().collect::<Vec<_>>();
        let placeable = &believed.placeable;
        let mut ids: Vec<EventId> = placeable.iter().chain([event]).flat_map(cited).collect();
        ids.extend(placeable.iter().chain([event]).map(|event| event.event_id().clone()));
        ids.extend(believed.brought().map(|new| new.event.event_id().clone()));
        ids.extend(believed.forbidden().map(|rejected| rejected.event.event_id().clone()));
        ids.push(event.room_id().create_event_id());
        let room = view.load_rooms(vec![event.room_id().clone()], &[], ids, Vec::new()).await?.pop();
        let room = room.ok_or(RoomError::UnknownRoom)?;
        let is_for_it = match known {
            Known::Nothing => view.state_after(event.event_id()).is_none(),
            Known::Claim => claimed_before(view, event.event_id()).is_some(),
        };
        if !is_for_it {
            return Ok(None);
        }
        let unchanged = RoomCommit { guard: Guard::Holds(room.version), ..RoomCommit::unchanged(&room) };
        // Of some of it we hold what came before, and need nobody's word.
        let judged = self.judge_placed(view, room.clone(), placeable).await?;
        let has_placed = judged.is_some();
        let mut commit = judged.unwrap_or(unchanged);
        if commit.guard == Guard::Free {
            commit.guard = Guard::Holds(room.version);
        }
        let done: HashSet<EventId> = commit.events.iter().map(|new| new.event.event_id().clone()).collect();
        // Not what was judged again meanwhile, or just now.
        let again: HashSet<&EventId> = commit.rejected.iter().map(|rejected| rejected.event.event_id()).collect();
        let is_overturned =
            |id: &&EventId| view.rejected(id).is_some_and(RejectedEvent::may_be_overturned) && !again.contains(*id);
        let readmitted: HashSet<EventId> = believed.readmitted().filter(is_overturned).cloned().collect();
        // What is rejected by now stands in the claimed state all the same. So it is held, until settling takes it out of there.
        let is_rejected = |id: &&EventId| view.rejected(id).is_some() && !readmitted.contains(*id);
        let rejected: Vec<EventId> =
            believed.brought().map(|new| new.event.event_id()).filter(is_rejected).cloned().collect();
        if !rejected.is_empty() {
            commit.unsettled.get_or_insert(Unsettled::Claimed);
            commit.unplaced.extend(rejected);
        }
        for examined in &believed.claims {
            commit.copies.extend(view.copies(examined.outliers.new.iter().map(|new| &new.event)));
            let new = examined.outliers.new.iter().filter(|new| !done.contains(new.event.event_id()));
            commit.events.extend(new.cloned());
        }
        readmitted.iter().for_each(|id| view.readmit(id));
        commit.readmitted.extend(readmitted);
        // Some of it may have come by itself meanwhile.
        let has_state = |id: &EventId| view.stored(id).is_some_and(|held| held.state_after.is_some());
        commit.rejected.extend(believed.forbidden().filter(|one| !has_state(one.event.event_id())).cloned());
        Ok(Some(Claimed { room, commit, has_placed }))
    }
}

impl Judgement {
    /// Makes `before` the state before `event`, of which `so_far` was claimed; `false` where it is another one by now. Whoever asked for
    /// it settles the room.
    async fn replace_claim(
        &mut self,
        view: &mut View<'_>,
        event: &Event,
        so_far: NodeId,
        before: NodeId,
    ) -> Result<bool, RoomError> {
        if claimed_before(view, event.event_id()) != Some(so_far) {
            return Ok(false);
        }
        // Where what it cites is held, the state follows from that each time the room is settled.
        self.beside.push((event.event_id().clone(), before));
        let Some(stored) = view.stored(event.event_id()).filter(|_| view.rejected(event.event_id()).is_none()).cloned()
        else {
            return Ok(true);
        };
        let after = view.with_event(before, event).await?;
        self.new.push(NewEvent {
            event: stored.event.clone(),
            place: if stored.outlier { Place::Edge } else { Place::Hidden },
            soft_failed: stored.soft_failed,
            claimed: true,
            state_before: Some(before),
            state_after: Some(after),
            outbox: None,
        });
        view.put(StoredEvent { state_before: Some(before), state_after: Some(after), ..stored });
        self.follow_extremities(view).await?;
        Ok(true)
    }
}

/// The state before an event that is part of the room, or was rejected for the time being, if it rests on a claim.
fn claimed_before(view: &View<'_>, id: &EventId) -> Option<NodeId> {
    match view.rejected(id) {
        Some(rejected) => rejected.state_before.filter(|_| rejected.claimed && rejected.provisional),
        None => view.stored(id).filter(|stored| stored.claimed && stored.state_after.is_some())?.state_before,
    }
}

/// What claims bring besides the state that they are about.
struct Claimed {
    room: Room,
    commit: RoomCommit,
    /// Whether any of it was judged by what we hold before it.
    has_placed: bool,
}

/// What claims of the state before an event come to.
struct ClaimedState {
    /// What was claimed of it before, if that counts beside them.
    so_far: Option<NodeId>,
    /// What it is now.
    before: NodeId,
    /// See [`Claimed`].
    has_placed: bool,
}

/// What the claims come to together, and with what was claimed `so_far`.
async fn resolve(
    view: &mut View<'_>,
    room: &Room,
    so_far: Option<NodeId>,
    Believed { claims, .. }: &Believed,
) -> Result<NodeId, RoomError> {
    let mut roots: Vec<NodeId> = so_far.into_iter().collect();
    let is_one = roots.len() + claims.len() == 1;
    for claim in claims {
        let root = view.add_snapshot(&claim.snapshot)?;
        roots.push(match so_far {
            // What was set by somebody who has left since does not stand where one side has nothing in its place.
            Some(so_far) => view.filled_in(root, so_far).await?,
            None => root,
        });
        if !is_one {
            let new = claim.outliers.new.iter().map(|new| &new.event).filter(|event| !view.knows(event.event_id()));
            for event in new.cloned().collect::<Vec<Event>>() {
                view.put(StoredEvent {
                    event,
                    outlier: true,
                    rejected: false,
                    soft_failed: false,
                    redacted_by: None,
                    claimed: false,
                    state_before: None,
                    state_after: None,
                });
            }
        }
    }
    // Claims that differ in more than can be resolved: the first is of the server that should know best.
    let first = roots.first().copied().unwrap_or(NodeId::EMPTY);
    Ok(view.resolve(room, roots).await?.unwrap_or(first))
}
