//! State resolution over events and snapshots in memory: for tests, benches and tools. It also shows how a caller answers
//! a [`Need`].

use std::{collections::BTreeMap, ops::Bound};

use super::{Citation, Need, Resolution, ResolutionError, Resolved, StateEvent, Step, Supplied};
use crate::matrix::{
    hash_map::{HashMap, HashSet},
    identifiers::{EventId, RoomId},
    room_version::RoomVersion,
    state_trie::{self, Entry, NodeId, Nodes, StateKeyHash},
};

/// A room's events and snapshots.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    nodes: Nodes,
    events: HashMap<EventId, StateEvent>,
    /// The events that cite an event, with their keys.
    citations: HashMap<EventId, BTreeMap<EventId, StateKeyHash>>,
}

impl Memory {
    /// Adds a state event.
    pub fn insert(&mut self, event: StateEvent) {
        let event_id = event.event.event_id().clone();
        if let Some(state_key) = event.event.state_key() {
            let key = StateKeyHash::new(event.event.event_type(), state_key);
            for cited in event.event.auth_events() {
                self.citations.entry(cited.clone()).or_default().insert(event_id.clone(), key);
            }
        }
        self.events.insert(event_id, event);
    }

    /// Adds a snapshot and gives its root.
    pub fn snapshot(&mut self, entries: impl IntoIterator<Item = Entry>) -> NodeId {
        let built = state_trie::build(entries);
        self.add_nodes(&built.nodes);
        built.root
    }

    /// Adds nodes, such as those of a [`Resolved`].
    pub fn add_nodes(&mut self, nodes: &[(NodeId, String)]) {
        for (id, text) in nodes {
            // What is malformed stays missing.
            let _ = self.nodes.insert_text(*id, text);
        }
    }

    /// The events of a snapshot; none where one of its nodes is missing.
    pub fn state(&self, root: NodeId) -> Vec<&StateEvent> {
        let entries = state_trie::entries(root, &self.nodes).unwrap_or_default();
        entries.iter().filter_map(|(_, event_id)| self.events.get(&EventId::parse(event_id).ok()?)).collect()
    }

    /// All nodes and events there are, for a caller that has them at hand.
    pub fn everything(&self) -> Supplied {
        Supplied { nodes: self.nodes.clone(), events: self.events.values().cloned().collect(), citations: Vec::new() }
    }

    /// Resolves snapshots; also how many round trips it would have taken.
    ///
    /// # Errors
    /// Where a node is missing.
    pub fn resolve(
        &self,
        version: &'static RoomVersion,
        room_id: &RoomId,
        roots: &[NodeId],
    ) -> Result<(Resolved, usize), ResolutionError> {
        let mut resolution = Resolution::new(version, room_id, roots);
        let mut supplied = Supplied::default();
        let mut trips = 0;
        loop {
            match resolution.step(supplied)? {
                Step::Done(resolved) => return Ok((resolved, trips)),
                Step::Need(need) => supplied = self.supply(&need),
            }
            trips += 1;
        }
    }

    /// Answers a [`Need`].
    pub fn supply(&self, need: &Need) -> Supplied {
        let mut nodes = Nodes::default();
        nodes.copy_from(&self.nodes, &need.nodes);
        nodes.copy_differing(&self.nodes, &need.differing);
        for (root, key) in &need.paths {
            nodes.copy_path(&self.nodes, *root, key);
        }
        let mut wanted: HashSet<&EventId> = need.events.iter().collect();
        for event in need.events.iter().filter_map(|event_id| self.events.get(event_id)) {
            wanted.extend(event.event.auth_events());
        }
        self.collect(&need.chains, |_| true, &mut wanted);
        self.collect(&need.mainlines, |event| event.event.is_state("m.room.power_levels", ""), &mut wanted);
        let mut citations = Vec::new();
        for wanted in &need.citations {
            let Some(all) = self.citations.get(&wanted.cited) else { continue };
            let after = wanted.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
            for (citing, key) in all.range((after, Bound::Unbounded)).take(wanted.limit) {
                citations.push(Citation { cited: wanted.cited.clone(), citing: citing.clone(), key: *key });
                nodes.copy_path(&self.nodes, wanted.root, key);
            }
        }
        let events = wanted.into_iter().filter_map(|event_id| self.events.get(event_id)).cloned().collect();
        Supplied { nodes, events, citations }
    }

    fn collect<'a>(
        &'a self,
        from: &'a [EventId],
        follow: impl Fn(&StateEvent) -> bool,
        into: &mut HashSet<&'a EventId>,
    ) {
        let mut queue: Vec<&EventId> = from.iter().collect();
        let mut seen: HashSet<&EventId> = from.iter().collect();
        while let Some(event_id) = queue.pop() {
            into.insert(event_id);
            let Some(event) = self.events.get(event_id) else { continue };
            for cited in event.event.auth_events() {
                if self.events.get(cited).is_some_and(&follow) && seen.insert(cited) {
                    queue.push(cited);
                }
            }
        }
    }
}
