//! What other servers claim of a room's state, where we cannot know it ourselves: at our join, and before an event whose
//! ancestors we lack. Which claims are believed, and what they bring.
//!
//! Server-Server API, "Joining Rooms" and "Retrieving event authorisation information".

use std::{
    collections::{HashMap, HashSet},
    mem,
    rc::Rc,
};

use super::{
    RoomError, Rooms,
    checks::fill_in,
    judge::Rejection,
    order::CitedFirst,
    outliers::{Apart, Outliers, judge_outliers},
};
use crate::{
    matrix::{
        auth_rules,
        event::Event,
        identifiers::{EventId, ServerName},
        json::Value,
        room_version::RoomVersion,
        state_trie::{self, StateKeyHash},
    },
    platform::turns::SLICE,
    store::{commit::NewEvent, headers::Header, rejected::NewRejected},
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
    /// See [`Claim`].
    pub(super) stranger: Option<ServerName>,
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

/// What is known of the state before an event of which more is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing.
    Nothing,
    /// What others have claimed.
    Claim,
}

/// Claims that can be believed.
pub(super) struct Believed {
    /// What is new of each, where that is little: else it is kept already, but for what was rejected for now.
    pub(super) claims: Vec<Examined>,
    /// Events of them, or the one that they are about, whose place we know.
    pub(super) placeable: Vec<Event>,
}

impl Believed {
    /// The events that the claims bring and that are not kept already.
    pub(super) fn brought(&self) -> impl Iterator<Item = &NewEvent> {
        self.claims.iter().flat_map(|examined| &examined.outliers.new)
    }

    /// Those of them that were rejected for now.
    pub(super) fn readmitted(&self) -> impl Iterator<Item = &EventId> {
        self.claims.iter().flat_map(|examined| &examined.outliers.readmitted)
    }

    /// Those that are to be remembered as rejected, likewise.
    pub(super) fn forbidden(&self) -> impl Iterator<Item = &NewRejected> {
        self.claims.iter().flat_map(|examined| &examined.outliers.rejected)
    }
}

impl Rooms {
    /// The claims about the state before `event` that can be believed. Where they bring much, that is kept already: it counts for
    /// nothing until the state is referred to. Those of strangers bring no more than may be kept for them.
    pub(super) async fn believed(&self, event: &Event, claims: &[Claim], known: Known) -> Result<Believed, RoomError> {
        let mut believed = Vec::new();
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
                Ok(examined) => believed.push(examined),
                Err(error @ RoomError::Invalid(_)) => doubt = error,
                Err(error) => return Err(error),
            }
        }
        if believed.is_empty() {
            return Err(doubt);
        }
        let (mut placeable, is_held) = self.leave_what_is_new(event, &mut believed).await?;
        let refused = self.charge_claims((event, is_held), known, &believed).await?;
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
        Ok(Examined { stranger: claim.stranger.clone(), outliers, state, snapshot, rejection, forbids })
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
