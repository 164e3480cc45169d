//! The forward extremities while events are judged: what a new one replaces, also through rejected and soft-failed ones
//! (Server-Server API, "Rejection", "Soft failure"), and which are kept.

use super::{
    RoomError,
    judge::{Judgement, power_keys},
    view::View,
};
use crate::{
    matrix::{
        auth_rules::AuthState,
        event::Event,
        identifiers::EventId,
        power_levels::{Level, PowerLevels, is_creator},
        state_trie::NodeId,
    },
    store::{event_graph::MAX_WALK, rooms::Extremity},
};

/// The most forward extremities to keep. More would make each state resolution dearer; an event that would be one more is
/// accepted without becoming one.
const MAX_EXTREMITIES: usize = 40;

/// The most to keep where the further ones are state events of those who have been given power: forks of others must not keep
/// a ban from taking effect.
const MAX_WITH_POWER: usize = 80;

impl Judgement {
    /// Makes `event`, whose state after it is known, a forward extremity in place of those that it builds upon, also through
    /// rejected or soft-failed ones; it becomes none where it came late and another one cites it. Where the state before it is
    /// only `claimed`, that of what it does not cite itself may be no part of it, and stays beside it. Returns all that it builds
    /// upon, which are then read.
    pub(super) async fn extend(
        &mut self,
        view: &mut View<'_>,
        event: &Event,
        claimed: bool,
    ) -> Result<Vec<EventId>, RoomError> {
        let behind = behind(view, event).await?;
        view.load_events(&behind).await?;
        let replaced = if claimed { event.prev_events() } else { &behind };
        let before = self.extremities.len();
        self.extremities.retain(|one| !replaced.contains(&one.event_id) && one.event_id != *event.event_id());
        if self.is_built_upon(view, event.event_id()).await? {
            return Ok(behind);
        }
        // What is held is never dropped for what claims to be newer: a flood of forks would roll the state back.
        if before < MAX_EXTREMITIES || self.extremities.len() < before {
            self.extremities.push(Extremity::of(event));
        } else if event.state_key().is_some() && self.has_been_given_power(view, event).await? {
            self.drop_redundant(view).await?;
            if self.extremities.len() < MAX_WITH_POWER {
                self.extremities.push(Extremity::of(event));
            }
        }
        Ok(behind)
    }

    /// Whether a forward extremity cites the event as a previous one, unless the state before that one is only claimed: what
    /// another server claims may leave out a ban. Costs nothing beside resolving their states, which is next.
    async fn is_built_upon(&self, view: &mut View<'_>, event_id: &EventId) -> Result<bool, RoomError> {
        let ids = self.load_extremities(view).await?;
        Ok(ids
            .iter()
            .filter_map(|id| view.stored(id).filter(|stored| !stored.claimed))
            .any(|stored| stored.event.prev_events().contains(event_id)))
    }

    /// The forward extremities, which are then read.
    pub(super) async fn load_extremities(&self, view: &mut View<'_>) -> Result<Vec<EventId>, RoomError> {
        let ids: Vec<EventId> = self.extremities.iter().map(|one| one.event_id.clone()).collect();
        view.load_events(&ids).await?;
        Ok(ids)
    }

    /// What the current state would become with `event`, before which the state is claimed to be `before`; the current state, where
    /// that is too much to be resolved.
    pub(super) async fn state_with(
        &self,
        view: &mut View<'_>,
        event: &Event,
        before: NodeId,
    ) -> Result<NodeId, RoomError> {
        // What it cites itself is part of the state before it; what is behind that may be left out of a claim.
        let ids = self.load_extremities(view).await?;
        let others = ids.iter().filter(|id| !event.prev_events().contains(id));
        let roots = others.filter_map(|id| view.stored(id)?.state_after).chain([before]).collect();
        Ok(view.resolve(&self.room, roots).await?.unwrap_or(self.state))
    }

    /// Whether the sender of `event` has more power in the current state than whoever comes.
    async fn has_been_given_power(&self, view: &mut View<'_>, event: &Event) -> Result<bool, RoomError> {
        let state = view.state(self.state, &power_keys()).await?;
        let Some(create) = AuthState::get(state.as_slice(), "m.room.create", "") else { return Ok(false) };
        let levels = PowerLevels::from_state(create, AuthState::get(state.as_slice(), "m.room.power_levels", ""));
        let sender = event.sender().as_str();
        let has = match (levels.user(sender), levels.level(Level::UsersDefault)) {
            (Ok(has), Ok(everybody)) => has > everybody,
            _ => false,
        };
        Ok(has || event.version().privileged_creators && is_creator(create, sender))
    }

    /// Drops an extremity after which the state is what it is after another one: nothing of the current state goes with it.
    async fn drop_redundant(&mut self, view: &mut View<'_>) -> Result<(), RoomError> {
        let ids = self.load_extremities(view).await?;
        let states: Vec<Option<NodeId>> =
            ids.iter().map(|id| view.stored(id).and_then(|stored| stored.state_after)).collect();
        let redundant =
            states.iter().enumerate().position(|(at, state)| states.iter().skip(at + 1).any(|s| s == state));
        if let Some(at) = redundant {
            self.extremities.remove(at);
        }
        Ok(())
    }
}

/// The events that `event` builds upon, also through rejected and soft-failed ones. One round trip where there are such that
/// were not read yet.
pub(super) async fn behind(view: &mut View<'_>, event: &Event) -> Result<Vec<EventId>, RoomError> {
    let mut behind: Vec<EventId> = event.prev_events().to_vec();
    let mut unread = Vec::new();
    let mut next = 0;
    while next < behind.len().min(MAX_WALK) {
        let id = &behind[next];
        next += 1;
        let further: Vec<EventId> = match (view.rejected(id), view.stored(id)) {
            (Some(rejected), _) => rejected.prev_events.clone(),
            (None, Some(stored)) if stored.soft_failed => stored.event.prev_events().to_vec(),
            _ => continue,
        };
        for id in further {
            if !view.is_read(&id) {
                unread.push(id.clone());
            }
            if !behind.contains(&id) {
                behind.push(id);
            }
        }
    }
    behind.extend(view.behind(event.room_id(), &unread).await?);
    Ok(behind)
}
