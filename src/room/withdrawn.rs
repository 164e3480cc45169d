//! Taking what was rejected for good out of the states that other servers had claimed with it in them.
//!
//! What comes with a claim is judged by its auth events alone; when its place is known, the state there may forbid it. Then the
//! claim said too much. In such a state the event gives way to what stood under its key before it, as if it had never been. States
//! that follow from those of previous events alone need no such thing: settling makes them anew.

use std::collections::HashSet;

use super::{
    RoomError,
    view::{TypeAndKey, View, type_and_key},
};
use crate::{
    matrix::{
        identifiers::EventId,
        state_trie::{Change, NodeId, StateKeyHash},
    },
    store::unsettled::RejectedState,
};

/// How many rejected events in a row stood under one key before each other, at most.
const MAX_IN_A_ROW: usize = 16;

/// How many states are looked through at once.
const STATES_AT_ONCE: usize = 100;

/// State events of a room that were held, as part of what was claimed or otherwise, and then rejected for good.
#[derive(Default)]
pub(super) struct Withdrawn {
    ids: HashSet<EventId>,
    keys: Vec<TypeAndKey>,
}

impl Withdrawn {
    pub(super) fn new(events: Vec<RejectedState>) -> Self {
        let mut keys: Vec<TypeAndKey> =
            events.iter().map(|event| type_and_key(&event.event_type, &event.state_key)).collect();
        keys.sort();
        keys.dedup();
        Self { ids: events.into_iter().map(|event| event.event_id).collect(), keys }
    }

    pub(super) fn ids(&self) -> Vec<EventId> {
        self.ids.iter().cloned().collect()
    }

    /// In which of these snapshots any of them stands.
    pub(super) async fn standing_in(
        &self,
        view: &mut View<'_>,
        roots: impl Iterator<Item = NodeId>,
    ) -> Result<HashSet<NodeId>, RoomError> {
        let roots: HashSet<NodeId> = roots.collect();
        let mut holding = HashSet::new();
        if self.ids.is_empty() {
            return Ok(holding);
        }
        for roots in roots.into_iter().collect::<Vec<_>>().chunks(STATES_AT_ONCE) {
            view.load_states(roots, &self.keys).await?;
            for root in roots {
                let found = view.state_ids(*root, &self.keys).await?;
                if found.iter().any(|(_, id)| self.ids.contains(id)) {
                    holding.insert(*root);
                }
            }
        }
        Ok(holding)
    }

    /// The snapshot `root` with what stood there before in place of them.
    pub(super) async fn taken_out_of(&self, view: &mut View<'_>, root: NodeId) -> Result<NodeId, RoomError> {
        if self.ids.is_empty() {
            return Ok(root);
        }
        let mut changes: Vec<Change> = Vec::new();
        for (key, id) in view.state_ids(root, &self.keys).await? {
            if self.ids.contains(&id) {
                let before = before(view, &key, id).await?;
                changes.push((StateKeyHash::new(&key.0, &key.1), before.map(|id| id.as_str().into())));
            }
        }
        if changes.is_empty() { Ok(root) } else { view.update(root, &changes).await }
    }
}

/// What stood under the key of the rejected event `id` before it, and was not rejected itself.
async fn before(view: &mut View<'_>, key: &TypeAndKey, mut id: EventId) -> Result<Option<EventId>, RoomError> {
    for _ in 0..MAX_IN_A_ROW {
        view.load_events(std::slice::from_ref(&id)).await?;
        let Some(rejected) = view.rejected(&id).filter(|rejected| !rejected.provisional) else { return Ok(Some(id)) };
        let Some(root) = rejected.state_before else { return Ok(None) };
        match view.state_ids(root, std::slice::from_ref(key)).await?.pop() {
            Some((_, before)) => id = before,
            None => return Ok(None),
        }
    }
    Ok(None)
}
