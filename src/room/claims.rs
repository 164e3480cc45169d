//! What other servers claim of a room's state, where we cannot know it ourselves: at our join, and before an event whose
//! ancestors we lack.
//!
//! Server-Server API, "Joining Rooms" and "Retrieving event authorisation information".

use std::{
    collections::{HashMap, HashSet},
    mem,
    rc::Rc,
};

use super::{
    Room, RoomError, Rooms,
    checks::{auth_keys, fill_in},
    judge::{Judgement, Rejection, Source},
    order::CitedFirst,
    outliers::{Apart, Outliers, judge_outliers},
    policy::ASKING_MS,
    view::View,
};
use crate::{
    matrix::{
        auth_rules,
        event::Event,
        identifiers::{EventId, ServerName},
        json::Value,
        room_version::RoomVersion,
        state_trie::{self, NodeId, StateKeyHash},
    },
    platform::turns::SLICE,
    store::{
        commit::{Committed, Guard, NewEvent, Place, RoomCommit, Unsettled},
        events::StoredEvent,
        headers::Header,
        rejected::{NewRejected, RejectedEvent},
    },
};

/// The state before an event, as another server claims it (`/state_ids`, `/send_join`). Signatures and hashes of all events
/// were checked.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// The events of the state.
    pub state: Vec<Event>,
    /// Their auth chain.
    pub auth_chain: Vec<Event>,
    /// The server that claims it, where that is not in the room: what it brings counts as that one's.
    pub stranger: Option<ServerName>,
}

impl Claim {
    /// An event of the state that is built upon the event before which the state is said to have been, as far as its events show
    /// that by themselves.
    fn comes_after(&self, id: &EventId) -> Option<&Event> {
        let mut given: Vec<&Event> = self.auth_chain.iter().chain(&self.state).collect();
        given.sort_by_key(|event| event.depth());
        let mut after = HashSet::from([id]);
        for event in given {
            if event.prev_events().iter().any(|id| after.contains(id)) {
                after.insert(event.event_id());
            }
        }
        self.state.iter().find(|event| event.event_id() != id && after.contains(event.event_id()))
    }
}

/// A claim whose events were judged.
pub(super) struct Examined {
    /// All its events.
    pub(super) outliers: Outliers,
    /// Those of the state that the rules allow.
    pub(super) state: Vec<Event>,
    pub(super) snapshot: state_trie::Updated,
    /// Why the event before which the state was is forbidden by its auth events, if it is.
    pub(super) rejection: Option<Rejection>,
    /// Why the state forbids the event, if it does.
    pub(super) forbids: Option<String>,
}

impl Examined {
    /// Whether it brings so much that it is kept before it is taken.
    pub(super) fn is_kept_apart(&self) -> bool {
        self.outliers.new.len() + self.outliers.rejected.len() > SLICE
    }

    /// Whether it cannot be taken: beside what was claimed before counts only what allows the event.
    pub(super) fn is_for_nothing(&self, known: Known) -> bool {
        known == Known::Claim && (self.rejection.is_some() || self.forbids.is_some())
    }
}

/// What a claim is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coverage {
    /// All of the state.
    Whole,
    /// The state without its members, or with some of them.
    WithoutMembers,
}

impl Rooms {
    /// Judges the events of a claim about the state before `event`: each by its auth events, in order. What the rules forbid,
    /// or was rejected before, stays out of the state.
    ///
    /// # Errors
    /// [`RoomError::Invalid`] where this is no state of a room of this version.
    pub(super) async fn examine(
        &self,
        event: &Event,
        claim: &Claim,
        coverage: Coverage,
    ) -> Result<Examined, RoomError> {
        let given = claim.auth_chain.iter().chain(&claim.state).filter(|given| given.event_id() != event.event_id());
        let held = self.held_of(given.clone().chain([event])).await?;
        let outliers = judge_outliers(self.clock.as_ref(), event.room_id(), held, given).await;
        let accepted = claim.state.iter().filter_map(|event| outliers.accepted(event.event_id()));
        let state: Vec<Event> = accepted.cloned().collect();
        let snapshot = snapshot(&state)?;
        check_create(&state, event.version())?;
        let rejection = outliers.broken_rule(event);
        let mut by_state = state.clone();
        if coverage == Coverage::WithoutMembers {
            let cited = event.auth_events().iter().filter_map(|id| outliers.accepted(id));
            fill_in(&mut by_state, event, cited);
        }
        let forbids = auth_rules::check(event, &StateIndex::new(&by_state)).err().map(|error| error.to_string());
        Ok(Examined { outliers, state, snapshot, rejection, forbids })
    }

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

    /// The claims about the state before `event` that can be believed. Where they bring much, that is kept already: it counts for
    /// nothing until the state is referred to. Those of strangers bring no more than may be kept for them.
    async fn believed(&self, event: &Event, claims: &[Claim], known: Known) -> Result<Believed, RoomError> {
        let (mut believed, mut strangers) = (Vec::new(), Vec::new());
        let mut doubt = RoomError::Invalid(format!("Nobody claims anything of the state before {}.", event.event_id()));
        for claim in claims {
            if let Some(later) = claim.comes_after(event.event_id()) {
                doubt = RoomError::Invalid(format!("The state has {}, which comes after the event.", later.event_id()));
                continue;
            }
            match self.examine(event, claim, Coverage::Whole).await {
                // A claim rejects nothing: where the event does not fit the state that is claimed, the claim is not believed.
                Ok(Examined { rejection: None, forbids: Some(why), .. }) => {
                    doubt = RoomError::Invalid(format!("The state before {} forbids it: {why}.", event.event_id()));
                }
                Ok(examined) => {
                    believed.push(examined);
                    strangers.push(claim.stranger.as_ref());
                }
                Err(error @ RoomError::Invalid(_)) => doubt = error,
                Err(error) => return Err(error),
            }
        }
        if believed.is_empty() {
            return Err(doubt);
        }
        let (mut placeable, is_held) = self.leave_what_is_new(event, &mut believed).await?;
        let refused = self.charge_claims((event, is_held), known, &believed, &strangers).await?;
        if !refused.is_empty() {
            let (mut left, mut dropped) = (Vec::new(), Vec::new());
            for (number, examined) in believed.into_iter().enumerate() {
                if refused.contains(&number) { dropped.push(examined) } else { left.push(examined) }
            }
            believed = left;
            if believed.is_empty() {
                return Err(RoomError::Invalid("Enough is kept of the room for those who claim it.".to_owned()));
            }
            let ids = |claims: &[Examined]| -> HashSet<EventId> {
                let new = claims.iter().flat_map(|examined| &examined.outliers.new);
                new.map(|new| new.event.event_id().clone()).collect()
            };
            let (dropped, left) = (ids(&dropped), ids(&believed));
            placeable.retain(|event| !dropped.contains(event.event_id()) || left.contains(event.event_id()));
        }
        for examined in &mut believed {
            let is_kept_apart = examined.is_kept_apart();
            let Outliers { new, rejected, readmitted, .. } = &mut examined.outliers;
            if is_kept_apart {
                // What was rejected for now stays so until the claim is taken, which may come to nothing.
                let readmitted: HashSet<&EventId> = readmitted.iter().collect();
                let waits = |new: &NewEvent| readmitted.contains(new.event.event_id());
                let (waiting, apart) = mem::take(new).into_iter().partition(waits);
                *new = waiting;
                let apart = Apart {
                    new: apart,
                    rejected: mem::take(rejected),
                    nodes: mem::take(&mut examined.snapshot.nodes),
                    is_settling: known == Known::Claim,
                    ..Apart::default()
                };
                self.keep_apart(event.room_id(), event.version(), apart, Vec::new()).await?;
            }
        }
        Ok(Believed { claims: believed, placeable })
    }

    /// Leaves of what claims bring only what we do not hold; nor do they reject what we hold with a state of its own. Returns `event`
    /// with those of their events whose place we know, as we hold what came before them, and which have not taken it; and whether we hold
    /// it.
    async fn leave_what_is_new(&self, event: &Event, claims: &mut [Examined]) -> Result<(Vec<Event>, bool), RoomError> {
        let clock = self.clock.as_ref();
        let new = claims.iter().flat_map(|examined| &examined.outliers.new).map(|new| &new.event);
        let mut brought: Vec<&Event> = new.chain([event]).collect();
        let mut seen = HashSet::new();
        brought.retain(|event| seen.insert(event.event_id()));
        let previous: HashSet<&EventId> = brought.iter().flat_map(|event| event.prev_events()).collect();
        let forbidden = claims.iter().flat_map(|examined| &examined.outliers.rejected);
        let mut ids: HashSet<&EventId> = forbidden.map(|rejected| rejected.event.event_id()).collect();
        ids.extend(seen.union(&previous));
        let held = self.store.headers(clock, &ids.into_iter().cloned().collect::<Vec<_>>()).await?;
        let held: HashMap<EventId, Header> = held.into_iter().map(|one| (one.event_id.clone(), one)).collect();
        let rejected = self.store.rejected(clock, &previous.into_iter().cloned().collect::<Vec<_>>()).await?;
        let is_held = held.contains_key(event.event_id());
        let rejected = rejected.iter().filter(|rejected| rejected.state_before.is_some());
        let with_state = held.values().filter(|header| header.has_state).map(|header| &header.event_id);
        let known: HashSet<&EventId> = rejected.map(|rejected| &rejected.event_id).chain(with_state).collect();
        let stands = |id: &EventId| held.get(id).is_some_and(|header| header.has_state && !header.is_outlier);
        brought.retain(|event| !stands(event.event_id()));
        let mut order = CitedFirst::default();
        for event in &brought {
            order.add(event.event_id(), event.prev_events().iter().filter(|id| !known.contains(id)));
        }
        let mut unplaced: HashMap<&EventId, &Event> =
            brought.into_iter().map(|event| (event.event_id(), event)).collect();
        let placeable = order.filter_map(|id| unplaced.remove(id).cloned()).collect();
        for examined in claims {
            let Outliers { new, readmitted, rejected, .. } = &mut examined.outliers;
            rejected.retain(|rejected| held.get(rejected.event.event_id()).is_none_or(|header| !header.has_state));
            let readmitted: HashSet<&EventId> = readmitted.iter().collect();
            let is_new = |id: &EventId| !held.contains_key(id) || readmitted.contains(id);
            new.retain(|new| is_new(new.event.event_id()));
        }
        Ok((placeable, is_held))
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

/// What is known of the state before an event of which more is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing.
    Nothing,
    /// What others have claimed.
    Claim,
}

/// The state before an event that is part of the room, or was rejected for the time being, if it rests on a claim.
fn claimed_before(view: &View<'_>, id: &EventId) -> Option<NodeId> {
    match view.rejected(id) {
        Some(rejected) => rejected.state_before.filter(|_| rejected.claimed && rejected.provisional),
        None => view.stored(id).filter(|stored| stored.claimed && stored.state_after.is_some())?.state_before,
    }
}

/// Claims that can be believed.
struct Believed {
    /// What is new of each, where that is little: else it is kept already, but for what was rejected for now.
    claims: Vec<Examined>,
    /// Events of them, or the one that they are about, whose place we know.
    placeable: Vec<Event>,
}

impl Believed {
    /// The events that the claims bring and that are not kept already.
    fn brought(&self) -> impl Iterator<Item = &NewEvent> {
        self.claims.iter().flat_map(|examined| &examined.outliers.new)
    }

    /// Those of them that were rejected for now.
    fn readmitted(&self) -> impl Iterator<Item = &EventId> {
        self.claims.iter().flat_map(|examined| &examined.outliers.readmitted)
    }

    /// Those that are to be remembered as rejected, likewise.
    fn forbidden(&self) -> impl Iterator<Item = &NewRejected> {
        self.claims.iter().flat_map(|examined| &examined.outliers.rejected)
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

/// The snapshot of a whole state.
fn snapshot(state: &[Event]) -> Result<state_trie::Updated, RoomError> {
    let mut entries: HashMap<StateKeyHash, Rc<str>> = HashMap::new();
    for event in state {
        let Some(key) = StateKeyHash::of(event) else {
            return Err(RoomError::Invalid(format!("{} in the state is not a state event.", event.event_id())));
        };
        let id: Rc<str> = event.event_id().as_str().into();
        if entries.insert(key, id.clone()).is_some_and(|other| other != id) {
            return Err(RoomError::Invalid(format!(
                "The state has two events for {:?}, {:?}.",
                event.event_type(),
                event.state_key().unwrap_or_default()
            )));
        }
    }
    Ok(state_trie::build(entries))
}

/// The state of a room has a create event, of the version that we were told.
pub(super) fn check_create(state: &[Event], version: &RoomVersion) -> Result<(), RoomError> {
    let create = state
        .iter()
        .find(|event| event.is_state("m.room.create", ""))
        .ok_or_else(|| RoomError::Invalid("The state has no valid create event.".to_owned()))?;
    let stated = create.content().get("room_version").map_or(Some("1"), Value::as_str);
    if stated != Some(version.id) {
        return Err(RoomError::Invalid(format!("The room is not of version {version}, as the resident server said.")));
    }
    Ok(())
}

/// A whole state, to look up by key.
struct StateIndex<'a>(HashMap<(&'a str, &'a str), &'a Event>);

impl<'a> StateIndex<'a> {
    fn new(state: &'a [Event]) -> Self {
        Self(state.iter().filter_map(|event| Some(((event.event_type(), event.state_key()?), event))).collect())
    }
}

impl auth_rules::AuthState for StateIndex<'_> {
    fn get(&self, event_type: &str, state_key: &str) -> Option<&Event> {
        self.0.get(&(event_type, state_key)).copied()
    }
}
