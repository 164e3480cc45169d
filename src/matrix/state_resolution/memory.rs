//! State resolution over events and snapshots in memory: for tests, benches and tools. It also shows how a caller answers
//! a [`Need`].

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use super::{
    Citation, MAX_CITATIONS, Need, Outline, Resolution, ResolutionError, Resolved, StateEvent, Step, Supplied,
};
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
        if let Some(key) = StateKeyHash::of(&event.event) {
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
        let (nodes, events) = (self.nodes.clone(), self.events.values().cloned().collect());
        Supplied { nodes, events, ..Supplied::default() }
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
        let mut is_cut = false;
        if let Some(chains) = &need.chains {
            is_cut = self.collect(&chains.from, |_| true, chains.limit, &mut wanted);
        }
        self.collect(&need.mainlines, |event| event.event.is_state("m.room.power_levels", ""), usize::MAX, &mut wanted);
        let mut citations = Vec::new();
        for wanted in &need.citations {
            let citing = self.citing(&wanted.cited, wanted.after.as_ref(), wanted.limit);
            for citation in citing {
                nodes.copy_path(&self.nodes, wanted.root, &citation.key);
                citations.push(citation);
            }
        }
        let mut visited = Vec::new();
        if let Some(ascents) = &need.ascents {
            let mut seen: HashSet<EventId> = ascents.from.iter().cloned().collect();
            visited.clone_from(&ascents.from);
            let mut next = 0;
            while let Some(cited) = visited.get(next).cloned() {
                next += 1;
                for citation in self.citing(&cited, None, ascents.page) {
                    if visited.len() < ascents.limit && seen.insert(citation.citing.clone()) {
                        visited.push(citation.citing.clone());
                    }
                    nodes.copy_path(&self.nodes, ascents.root, &citation.key);
                    citations.push(citation);
                }
            }
            citations.truncate(MAX_CITATIONS);
        }
        let events = wanted.into_iter().filter_map(|event_id| self.events.get(event_id)).cloned().collect();
        Supplied { nodes, events, outlines: Vec::new(), is_cut, citations, visited }
    }

    /// As [`Memory::supply`], with outlines where these will do.
    pub fn supply_outlines(&self, need: &Need) -> Supplied {
        let mut supplied = self.supply(need);
        let is_whole: HashSet<&EventId> = need.events.iter().collect();
        let (whole, others) =
            supplied.events.into_iter().partition(|event: &StateEvent| is_whole.contains(event.event.event_id()));
        supplied.events = whole;
        supplied.outlines = others.iter().filter_map(outline).collect();
        supplied
    }

    /// The state events that cite an event.
    fn citing(&self, cited: &EventId, after: Option<&EventId>, limit: usize) -> impl Iterator<Item = Citation> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let all = self
            .citations
            .get(cited)
            .into_iter()
            .flat_map(move |all| all.range::<EventId, _>((after, Bound::Unbounded)));
        all.take(limit).map(|(citing, key)| Citation { cited: cited.clone(), citing: citing.clone(), key: *key })
    }

    /// Adds events and what they cite. Whether there were as many as the limit allows.
    fn collect<'a>(
        &'a self,
        from: &'a [EventId],
        follow: impl Fn(&StateEvent) -> bool,
        limit: usize,
        into: &mut HashSet<&'a EventId>,
    ) -> bool {
        let mut queue: VecDeque<&EventId> = from.iter().collect();
        let mut seen: HashSet<&EventId> = from.iter().collect();
        let mut left = limit;
        while let Some(event_id) = queue.pop_front().filter(|_| left > 0) {
            left -= 1;
            into.insert(event_id);
            let Some(event) = self.events.get(event_id) else { continue };
            for cited in event.event.auth_events() {
                if self.events.get(cited).is_some_and(&follow) && seen.insert(cited) {
                    queue.push_back(cited);
                }
            }
        }
        left == 0
    }
}

fn outline(known: &StateEvent) -> Option<Outline> {
    let event = &known.event;
    Some(Outline {
        event_id: event.event_id().clone(),
        room_id: event.room_id().as_str().into(),
        event_type: event.event_type().into(),
        state_key: event.state_key()?.into(),
        auth_events: event.auth_events().to_vec(),
        length: event.json().len(),
    })
}
