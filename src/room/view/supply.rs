//! What the steps of a state resolution need: from the database, and from this work, which is not there yet.

use std::collections::{HashMap, HashSet};

use super::{View, state_event};
use crate::{
    matrix::{
        identifiers::{EventId, RoomId},
        state_resolution::{Citation, Facts, Need, Supplied},
        state_trie::{self, NodeId, StateKeyHash},
    },
    platform::turns::LIGHT_SLICE,
    room::RoomError,
};

/// How many events a state resolution reads in one call: others wait meanwhile, and each call takes its time.
const EVENTS_IN_CONFLICT: usize = 4 * LIGHT_SLICE;

impl View<'_> {
    /// What a step of a state resolution needs: from the database, and from this work, which is not there yet.
    pub(in crate::room) async fn supply(&mut self, need: &Need) -> Result<Supplied, RoomError> {
        let mut asked = self.of_stored(need.clone());
        asked.paths.retain(|(root, _)| !self.nodes.contains(*root));
        let mut own = HashSet::new();
        for list in [&mut asked.events, &mut asked.mainlines] {
            self.follow_judged(list, &mut own);
        }
        if let Some(chains) = &mut asked.chains {
            let before = chains.from.len();
            self.follow_judged(&mut chains.from, &mut own);
            chains.limit += chains.from.len() - before;
        }
        let further = asked.events.split_off(asked.events.len().min(EVENTS_IN_CONFLICT));
        let mut supplied = self.store.supply(&asked).await?;
        for events in further.chunks(EVENTS_IN_CONFLICT) {
            let need = Need { events: events.to_vec(), ..Need::default() };
            supplied.events.extend(self.store.supply(&need).await?.events);
        }
        // Of an event that the database has too, what this work has found comes first, and counts.
        supplied.events.extend(own.iter().filter_map(|id| self.events.get(id)).map(state_event));
        supplied.events.reverse();
        self.nodes.extend(std::mem::take(&mut supplied.nodes));
        self.add_citations(need, &mut supplied);
        let roots: HashMap<&EventId, NodeId> =
            need.citations.iter().map(|wanted| (&wanted.cited, wanted.root)).collect();
        let ascents = need.ascents.as_ref().map(|ascents| ascents.root);
        let cited = supplied
            .citations
            .iter()
            .filter_map(|citation| Some((roots.get(&citation.cited).copied().or(ascents)?, citation.key)));
        let mut paths: Vec<(NodeId, StateKeyHash)> = need.paths.iter().copied().chain(cited).collect();
        paths.sort_unstable();
        paths.dedup();
        self.read_paths(&paths).await?;
        supplied.nodes = self.nodes.clone();
        Ok(supplied)
    }

    /// `need`, with nothing in it that the database cannot tell: it compares only snapshots that it has, and would take all of
    /// one for different from another that it has not.
    pub(super) fn of_stored(&self, mut need: Need) -> Need {
        need.differing.retain(|root| !self.made.contains_key(root));
        if need.differing.len() < 2 {
            need.differing.clear();
        }
        // These come with what differs below them.
        need.nodes.retain(|id| !need.differing.contains(id));
        need
    }

    /// What the first step of a resolution may know without asking.
    pub(in crate::room) fn at_hand(&self) -> Supplied {
        Supplied { nodes: self.nodes.clone(), ..Supplied::default() }
    }

    /// What the snapshots `roots`, sorted, resolve to, where this work has found that out.
    pub(in crate::room) fn resolved(&self, roots: &[NodeId]) -> Option<NodeId> {
        self.resolved.get(roots).copied()
    }

    /// Takes what the last resolution has learnt of the room's events, if that was in this room.
    pub(in crate::room) fn take_facts(&mut self, room_id: &RoomId) -> Option<Facts> {
        self.facts.take().filter(|(of, _)| of == room_id).map(|(_, facts)| facts)
    }

    /// Keeps what a resolution has learnt for the next one.
    pub(in crate::room) fn note_facts(&mut self, room_id: &RoomId, facts: Facts) {
        self.facts = Some((room_id.clone(), facts));
    }

    /// Keeps a resolution for as long as this work goes on.
    pub(in crate::room) fn note_resolved(&mut self, roots: Vec<NodeId>, root: NodeId) {
        self.resolved.insert(roots, root);
    }

    /// Adds to `list` what its events of this work cite, and so on through events of this work, which are put into `own`.
    fn follow_judged(&self, list: &mut Vec<EventId>, own: &mut HashSet<EventId>) {
        let mut seen: HashSet<EventId> = list.iter().cloned().collect();
        let mut next = 0;
        while let Some(id) = list.get(next).cloned() {
            next += 1;
            let Some(event) = self.judged.get(&id) else { continue };
            list.extend(event.auth_events().iter().filter(|id| seen.insert((*id).clone())).cloned());
            own.insert(id);
        }
    }

    /// Adds the citations by events of this work to those of the database, in the order and number asked for.
    fn add_citations(&self, need: &Need, supplied: &mut Supplied) {
        let mut own: HashMap<&EventId, Vec<Citation>> = HashMap::new();
        for event in self.judged.values() {
            let Some(key) = StateKeyHash::of(event) else { continue };
            for cited in event.auth_events() {
                let citation = Citation { cited: cited.clone(), citing: event.event_id().clone(), key };
                own.entry(cited).or_default().push(citation);
            }
        }
        let mut limits: HashMap<EventId, usize> = HashMap::new();
        for wanted in &need.citations {
            limits.insert(wanted.cited.clone(), wanted.limit);
            let after = |citation: &&Citation| wanted.after.as_ref().is_none_or(|after| citation.citing > *after);
            supplied.citations.extend(own.get(&wanted.cited).into_iter().flatten().filter(after).cloned());
        }
        if let Some(ascents) = &need.ascents {
            let mut visited: HashSet<EventId> = supplied.visited.iter().cloned().collect();
            let mut next = 0;
            while let Some(cited) = supplied.visited.get(next).cloned() {
                next += 1;
                for citation in own.get(&cited).into_iter().flatten() {
                    // The database cannot tell of those that it does not hold, and nothing there cites them.
                    if self.unheld.contains(&citation.citing) && visited.insert(citation.citing.clone()) {
                        supplied.visited.push(citation.citing.clone());
                    }
                    supplied.citations.push(citation.clone());
                }
                limits.insert(cited, ascents.page);
            }
        }
        let citations = &mut supplied.citations;
        citations.sort_by(|a, b| (&a.cited, &a.citing).cmp(&(&b.cited, &b.citing)));
        citations.dedup();
        let mut taken: HashMap<EventId, usize> = HashMap::new();
        citations.retain(|citation| {
            let taken = taken.entry(citation.cited.clone()).or_default();
            *taken += 1;
            *taken <= limits.get(&citation.cited).copied().unwrap_or(0)
        });
    }

    /// Reads the nodes on the way to keys that are missing. The first nodes of a way may be of this work; what is missing
    /// below them is stored.
    async fn read_paths(&mut self, paths: &[(NodeId, StateKeyHash)]) -> Result<(), RoomError> {
        let missing = |(root, key): &(NodeId, StateKeyHash)| {
            let (node, level) = state_trie::first_missing(*root, key, &self.nodes)?;
            Some((node, level, *key))
        };
        let missing: Vec<_> = paths.iter().filter_map(missing).collect();
        if !missing.is_empty() {
            let nodes = self.store.paths_from(&missing).await?;
            self.nodes.extend(nodes);
        }
        Ok(())
    }
}
