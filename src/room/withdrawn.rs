//! Taking what was rejected for good out of the states that other servers had claimed with it in them.
//!
//! What comes with a claim is judged by its auth events alone; when its place is known, the state there may forbid it. Then the
//! claim said too much. In such a state the event gives way to what stood under its key before it, as if it had never been. States
//! that follow from those of previous events need no such thing: settling makes them anew.

use std::collections::{HashMap, HashSet};

use super::{
    RoomError,
    judge::{Judgement, key},
    view::{StateAt, StateKey, View},
};
use crate::{
    matrix::{
        identifiers::EventId,
        state_trie::{Change, NodeId, StateKeyHash},
    },
    store::{
        commit::{NewEvent, Place},
        events::StoredEvent,
        unsettled::RejectedState,
    },
};

/// The state events of a room that were held, as part of what was claimed or otherwise, and then rejected for good.
#[derive(Default)]
pub(super) struct Withdrawn(HashMap<EventId, (StateKey, Option<NodeId>)>);

impl Withdrawn {
    pub(super) fn new(events: Vec<RejectedState>) -> Self {
        let by_id =
            |event: RejectedState| (event.event_id, (key(&event.event_type, &event.state_key), event.state_before));
        Self(events.into_iter().map(by_id).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The snapshot `root` with what stood there before in place of them.
    async fn taken_out_of(&self, view: &mut View<'_>, root: NodeId) -> Result<NodeId, RoomError> {
        let mut keys: Vec<StateKey> = self.0.values().map(|(key, _)| key.clone()).collect();
        keys.sort();
        keys.dedup();
        let mut changes: Vec<Change> = Vec::new();
        for (key, id) in view.state_ids(root, &keys).await? {
            if self.0.contains_key(&id) {
                let before = self.before(view, id).await?;
                changes.push((StateKeyHash::new(&key.0, &key.1), before.map(|id| id.as_str().into())));
            }
        }
        if changes.is_empty() { Ok(root) } else { view.update(root, &changes).await }
    }

    /// What stood under the key of the rejected event `id` before it.
    async fn before(&self, view: &mut View<'_>, mut id: EventId) -> Result<Option<EventId>, RoomError> {
        let mut seen = HashSet::new();
        while let Some((key, before)) = self.0.get(&id) {
            let Some(before) = before.filter(|_| seen.insert(id)) else { return Ok(None) };
            let Some((_, next)) = view.state_ids(before, std::slice::from_ref(key)).await?.pop() else {
                return Ok(None);
            };
            id = next;
        }
        Ok(Some(id))
    }
}

impl Judgement {
    /// Takes the withdrawn events out of the state that is claimed before the event `id`. Whether any of them was there.
    pub(super) async fn withdraw(
        &mut self,
        view: &mut View<'_>,
        id: &EventId,
        withdrawn: &Withdrawn,
    ) -> Result<bool, RoomError> {
        let rejected = view.rejected(id).map(|rejected| (rejected.state_before, rejected.claimed));
        let stored = view.stored(id).cloned();
        let claimed = rejected.map_or(stored.as_ref().and_then(|stored| stored.state_before), |(before, _)| before);
        let Some(claimed) = claimed else { return Ok(false) };
        let before = withdrawn.taken_out_of(view, claimed).await?;
        if before == claimed {
            return Ok(false);
        }
        if let Some((_, claimed)) = rejected {
            self.place_rejected(view, id, StateAt { root: before, claimed });
        } else if let Some(stored) = stored {
            let after = view.with_event(before, &stored.event).await?;
            let place = if stored.outlier { Place::Edge } else { Place::Hidden };
            self.new.push(NewEvent {
                event: stored.event.clone(),
                place,
                soft_failed: stored.soft_failed,
                claimed: stored.claimed,
                state_before: Some(before),
                state_after: Some(after),
                outbox: None,
            });
            view.put(StoredEvent { state_before: Some(before), state_after: Some(after), ..stored });
        }
        Ok(true)
    }
}
