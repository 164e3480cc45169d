//! The part of a room's graph that rests on other servers' claims, in the order in which it can be judged again.

use std::collections::{HashMap, HashSet};

use super::{order::CitedFirst, withdrawn::Withdrawn};
use crate::{
    matrix::identifiers::EventId,
    store::unsettled::{Node, Standing},
};

/// How many events are judged and committed together.
pub(super) const SLICE: usize = 100;

/// What rests on claims, in the order in which it can be judged.
pub(super) struct Graph {
    pub(super) nodes: HashMap<EventId, Node>,
    /// Those that rest on claims, or have no state yet: each after those of its previous events that do.
    pub(super) order: Vec<EventId>,
    /// Those of them whose previous events all have a state,
    pub(super) ready: HashSet<EventId>,
    /// and a firm one, when they have been judged.
    firm: HashSet<EventId>,
    /// Those on which the room is built: that lead to its forward extremities.
    pub(super) adopted: HashSet<EventId>,
    /// What does not belong into the claimed states of those that are not ready,
    pub(super) withdrawn: Withdrawn,
    /// and those of them before which it stands.
    pub(super) holding: HashSet<EventId>,
}

impl Graph {
    pub(super) fn new(nodes: Vec<Node>, extremities: impl Iterator<Item = EventId>) -> Self {
        let nodes: HashMap<EventId, Node> = nodes.into_iter().map(|node| (node.event_id.clone(), node)).collect();
        let order = order(&nodes);
        let (ready, firm, adopted, holding) = Default::default();
        let mut graph = Self { nodes, order, ready, firm, adopted, withdrawn: Withdrawn::default(), holding };
        graph.adopted = graph.reachable(extremities);
        let mut stateful: HashSet<&EventId> = HashSet::new();
        for id in &graph.order {
            let Some(node) = graph.nodes.get(id) else { continue };
            let known = |id: &EventId| graph.nodes.get(id).is_some_and(|node| !is_open(node) && node.has_state);
            if !node.previous.is_empty() && node.previous.iter().all(|id| stateful.contains(id) || known(id)) {
                graph.ready.insert(id.clone());
                if node.previous.iter().all(|id| graph.firm.contains(id) || known(id)) {
                    graph.firm.insert(id.clone());
                }
            }
            if node.has_state || graph.ready.contains(id) {
                stateful.insert(id);
            }
        }
        graph
    }

    /// The events and all that they cite, as far as that is here.
    pub(super) fn reachable(&self, from: impl Iterator<Item = EventId>) -> HashSet<EventId> {
        let mut waiting: Vec<EventId> = from.collect();
        let mut reached: HashSet<EventId> = HashSet::new();
        while let Some(id) = waiting.pop() {
            if let Some(node) = self.nodes.get(&id) {
                waiting.extend(node.previous.iter().filter(|id| !reached.contains(*id)).cloned());
            }
            reached.insert(id);
        }
        reached
    }

    /// The next events of the order, from this place on, that are to be judged again; and the place after them. `changed` are
    /// events of which something has become different.
    pub(super) fn slice(&self, begin: usize, changed: &HashSet<EventId>) -> (Vec<EventId>, usize) {
        let (mut slice, mut in_slice) = (Vec::new(), HashSet::new());
        for (at, id) in self.order.iter().enumerate().skip(begin) {
            if slice.len() == SLICE {
                return (slice, at);
            }
            if self.holding.contains(id) {
                in_slice.insert(id);
                slice.push(id.clone());
            }
            let Some(node) = self.nodes.get(id).filter(|_| self.ready.contains(id)) else { continue };
            let rests_on_new = node.previous.iter().any(|id| changed.contains(id) || in_slice.contains(id));
            let may_change = !node.has_state || !matches!(node.standing, Standing::Accepted) || self.firm.contains(id);
            if rests_on_new || may_change {
                in_slice.insert(id);
                slice.push(id.clone());
            }
        }
        (slice, self.order.len())
    }

    /// The event, if it has a state, but for the time being none that follows from those of its previous events.
    pub(super) fn only_claimed(&self, id: &EventId) -> Option<&Node> {
        self.nodes.get(id).filter(|node| node.has_state && !self.ready.contains(id))
    }
}

/// Whether an event rests on claims, or has a place and no state yet.
fn is_open(node: &Node) -> bool {
    match node.standing {
        Standing::Unknown => false,
        Standing::Outlier => node.has_state,
        Standing::Accepted => node.claimed || !node.has_state,
        Standing::SoftFailed => node.claimed,
        Standing::Rejected { provisional } => node.claimed || provisional,
    }
}

/// Those that are open, each after the open ones that it cites.
fn order(nodes: &HashMap<EventId, Node>) -> Vec<EventId> {
    let mut open: Vec<&Node> = nodes.values().filter(|node| is_open(node)).collect();
    open.sort_unstable_by_key(|node| (node.depth, &node.event_id));
    let mut order = CitedFirst::default();
    for node in open {
        let cited = node.previous.iter().filter(|id| nodes.get(*id).is_some_and(is_open));
        order.add(&node.event_id, cited);
    }
    order.cloned().collect()
}
