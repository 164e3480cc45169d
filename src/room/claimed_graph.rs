//! The part of a room's graph that rests on other servers' claims, in the order in which it can be judged again.

use std::collections::{HashMap, HashSet};

use super::{order::CitedFirst, withdrawn::Withdrawn};
use crate::{
    matrix::{identifiers::EventId, state_trie::NodeId},
    store::unsettled::{Node, Standing},
};

/// How many events are judged and committed together.
pub(super) const SLICE: usize = 100;

/// How many events are resolved anew in a pass to see whether they are as they should be: each takes some calls to the database.
const MAX_DOUBTFUL: usize = 16;

/// What rests on claims, in the order in which it can be judged.
pub(super) struct Graph {
    pub(super) nodes: HashMap<EventId, Node>,
    /// Those that rest on claims, or have no state yet: each after those of its previous events that do.
    pub(super) order: Vec<EventId>,
    /// At which of them judging begins: behind the last one it goes on with the first.
    first: usize,
    /// Those of them whose previous events all have a state,
    pub(super) ready: HashSet<EventId>,
    /// and a firm one, when they have been judged.
    firm: HashSet<EventId>,
    /// Those with another state before them than that after their previous event: it has changed, and that was not carried on.
    outdated: HashSet<EventId>,
    /// Some of those with several previous events, and different states after these: whether they are outdated is not seen but by
    /// resolving these states.
    doubtful: HashSet<EventId>,
    /// Those on which the room is built: that lead to its forward extremities.
    pub(super) adopted: HashSet<EventId>,
    /// What does not belong into the claimed states of those that are not ready,
    pub(super) withdrawn: Withdrawn,
    /// and those before which it stands, or is claimed to stand beside what they cite.
    pub(super) holding: HashSet<EventId>,
}

impl Graph {
    /// Which events are doubtful, where they are very many, changes with each `attempt`.
    pub(super) fn new(nodes: Vec<Node>, extremities: impl Iterator<Item = EventId>, attempt: usize) -> Self {
        let nodes: HashMap<EventId, Node> = nodes.into_iter().map(|node| (node.event_id.clone(), node)).collect();
        let order = order(&nodes);
        let (ready, firm, outdated, doubtful, adopted, withdrawn, holding) = Default::default();
        let mut graph = Self { nodes, order, first: 0, ready, firm, outdated, doubtful, adopted, withdrawn, holding };
        graph.adopted = graph.reachable(extremities);
        let mut stateful: HashSet<&EventId> = HashSet::new();
        for id in &graph.order {
            let Some(node) = graph.nodes.get(id) else { continue };
            let known =
                |id: &EventId| graph.nodes.get(id).is_some_and(|node| !is_open(node) && node.state_after.is_some());
            if !node.previous.is_empty() && node.previous.iter().all(|id| stateful.contains(id) || known(id)) {
                graph.ready.insert(id.clone());
                // By no judgement of an altered copy does the state after it become firm.
                if !node.rejected_altered && node.previous.iter().all(|id| graph.firm.contains(id) || known(id)) {
                    graph.firm.insert(id.clone());
                }
            }
            if node.state_after.is_some() || graph.ready.contains(id) {
                stateful.insert(id);
            }
        }
        graph.doubt(attempt);
        graph
    }

    /// Finds what does not follow from what is before it, whoever left it so: who settled before may have come to an end in between, and
    /// others have committed meanwhile.
    fn doubt(&mut self, attempt: usize) {
        let mut doubtful = Vec::new();
        for id in self.order.iter().filter(|id| self.ready.contains(*id)) {
            let Some(node) = self.nodes.get(id).filter(|node| !self.is_unsettled(node)) else { continue };
            match self.after_previous(node).as_deref() {
                None => {}
                Some([after]) if node.state_before == Some(*after) => {}
                Some([_]) => drop(self.outdated.insert(id.clone())),
                Some(_) => doubtful.push(id.clone()),
            }
        }
        // Most of them are as they should be: they must not take the time of all else.
        let begin = attempt.saturating_mul(MAX_DOUBTFUL).checked_rem(doubtful.len()).unwrap_or_default();
        doubtful.rotate_left(begin);
        self.doubtful = doubtful.into_iter().take(MAX_DOUBTFUL).collect();
    }

    /// The states after the previous events, where all are known, and what was claimed beside these, each once.
    fn after_previous(&self, node: &Node) -> Option<Vec<NodeId>> {
        let after = node.previous.iter().map(|id| self.nodes.get(id)?.state_after);
        let mut after: Vec<NodeId> = after.collect::<Option<_>>()?;
        after.extend(self.beside(&node.event_id));
        after.sort_unstable();
        after.dedup();
        Some(after)
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

    /// Has judging begin at this place of the order, counted on from its end if it has not so many. What is left is the same, and in
    /// the same order, wherever that is.
    pub(super) fn begin_at(&mut self, place: usize) {
        self.first = place.checked_rem(self.order.len()).unwrap_or_default();
    }

    /// The next events, so many after that with which judging begins, that are to be judged again; and how many are passed then.
    /// `changed` are events of which something has become different.
    pub(super) fn slice(&self, begin: usize, changed: &HashSet<EventId>) -> (Vec<EventId>, usize) {
        let (mut slice, mut in_slice) = (Vec::new(), HashSet::new());
        let (before, from_first) = self.order.split_at(self.first.min(self.order.len()));
        for (at, id) in from_first.iter().chain(before).enumerate().skip(begin) {
            if slice.len() == SLICE {
                return (slice, at);
            }
            let Some(node) = self.nodes.get(id) else { continue };
            let is_ready = self.ready.contains(id);
            let rests_on_new = node.previous.iter().any(|id| changed.contains(id) || in_slice.contains(id));
            let may_change = self.is_unsettled(node) || self.outdated.contains(id) || self.doubtful.contains(id);
            let is_certain = self.holding.contains(id) || is_ready && rests_on_new;
            if is_certain || is_ready && may_change {
                // What rests on an altered copy goes on so. If this one is found to be allowed after all, it is outdated in the next pass.
                if is_certain || !node.rejected_altered {
                    in_slice.insert(id);
                }
                slice.push(id.clone());
            }
        }
        (slice, self.order.len())
    }

    /// Whether an event that is ready may be judged otherwise though nothing before it has changed.
    fn is_unsettled(&self, node: &Node) -> bool {
        let is_accepted = matches!(node.standing, Standing::Accepted);
        node.state_after.is_none() || !is_accepted || self.firm.contains(&node.event_id)
    }

    /// Whether the event was accepted by a state that follows from claims.
    pub(super) fn follows_from_claims(&self, id: &EventId) -> bool {
        let is_so = |node: &Node| node.standing == Standing::Accepted && node.claimed;
        self.ready.contains(id) && self.nodes.get(id).is_some_and(is_so)
    }

    /// What counts beside the states after the event's previous events.
    pub(super) fn beside(&self, id: &EventId) -> Option<NodeId> {
        self.nodes.get(id).filter(|_| !self.firm.contains(id)).and_then(|node| node.beside)
    }

    /// Whether all that is open will be firm when it has been judged.
    pub(super) fn is_whole(&self) -> bool {
        self.order.iter().all(|id| self.firm.contains(id))
    }

    /// The event, if it has a state, but for the time being none that follows from those of its previous events.
    pub(super) fn only_claimed(&self, id: &EventId) -> Option<&Node> {
        self.nodes.get(id).filter(|node| node.state_after.is_some() && !self.ready.contains(id))
    }
}

/// Whether an event rests on claims, or has a place and no state yet.
fn is_open(node: &Node) -> bool {
    match node.standing {
        Standing::Unknown => false,
        Standing::Outlier => node.state_after.is_some(),
        Standing::Accepted => node.claimed || node.state_after.is_none(),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::matrix::identifiers::ServerName;

    fn id(name: &str) -> EventId {
        EventId::parse_any_length(&format!("${name}")).unwrap()
    }

    /// An event that was accepted by what is claimed; `before` and `after` name the states.
    fn node(name: &str, depth: usize, previous: &[&str], [before, after]: [usize; 2]) -> Node {
        let state = |number: usize| NodeId::parse(&format!("{number:0>22}"));
        Node {
            event_id: id(name),
            depth: i64::try_from(depth).unwrap(),
            previous: previous.iter().map(|name| id(name)).collect(),
            state_before: state(before),
            state_after: state(after),
            claimed: true,
            standing: Standing::Accepted,
            rejected_altered: false,
            beside: None,
            server: None,
        }
    }

    /// All that is judged again in one pass, of which nothing is found to be different.
    fn judged(nodes: &[Node], attempt: usize) -> Vec<EventId> {
        let graph = Graph::new(nodes.to_vec(), std::iter::empty(), attempt);
        let (mut judged, mut begin) = (Vec::new(), 0);
        while begin < graph.order.len() {
            let (slice, end) = graph.slice(begin, &HashSet::new());
            judged.extend(slice);
            begin = end;
        }
        judged
    }

    #[test]
    fn what_does_not_follow_from_what_is_before_it_is_judged_again() {
        let nodes = [
            node("edge", 1, &["lost"], [1, 1]),
            node("left", 2, &["edge"], [1, 1]),
            node("right", 2, &["edge"], [1, 1]),
            node("topic", 2, &["edge"], [1, 2]),
            node("outdated", 2, &["edge"], [3, 3]),
            node("merge", 3, &["left", "right"], [1, 1]),
            node("outdated merge", 3, &["left", "right"], [3, 3]),
            node("doubtful merge", 3, &["left", "topic"], [2, 2]),
        ];
        assert_eq!(judged(&nodes, 1), ["outdated", "doubtful merge", "outdated merge"].map(id));
    }

    /// However many of them hold what was withdrawn, be it beside the states after what they cite.
    #[test]
    fn a_slice_has_each_event_once_and_no_more_than_that() {
        let edge = node("edge", 1, &["lost"], [1, 1]);
        let standing = Standing::Rejected { provisional: true };
        let rejected = |n: usize| Node { standing, ..node(&n.to_string(), 2, &["edge"], [1, 1]) };
        let mut graph = Graph::new((0..150).map(rejected).chain([edge]).collect(), std::iter::empty(), 1);
        graph.holding = graph.order.iter().cloned().collect();
        let (slice, end) = graph.slice(0, &HashSet::new());
        assert_eq!((slice.len(), end), (SLICE, SLICE));
        assert_eq!(slice, graph.order[..SLICE]);
        assert_eq!(graph.slice(end, &HashSet::new()).0, graph.order[SLICE..]);
    }

    /// Or those that others are asked about would not have their turns.
    #[test]
    fn what_is_left_is_the_same_wherever_judging_begins() {
        let (standing, server) = (Standing::Rejected { provisional: true }, ServerName::parse("peer.example").ok());
        let edges = (0..5).map(|n| node(&format!("edge{n}"), n, &["lost"], [1, 1]));
        let rejected = (0..5).map(|n| {
            let rejected = node(&format!("rejected{n}"), n + 1, &[&format!("edge{n}")], [1, 1]);
            Node { standing, server: server.clone(), ..rejected }
        });
        let mut graph = Graph::new(edges.chain(rejected).collect(), std::iter::empty(), 1);
        let left = graph.settled(None);
        assert_eq!((left.edges.len(), left.above.values().flatten().count()), (5, 5));
        let all = graph.slice(0, &HashSet::new()).0;
        for place in [0, 1, 7, 9, 10, 123] {
            graph.begin_at(place);
            assert_eq!(graph.settled(None), left);
            let (mut slice, end) = graph.slice(0, &HashSet::new());
            assert_eq!((slice.len(), end), (5, 10));
            let first = slice.iter().position(|id| *id == all[0]).unwrap();
            slice.rotate_left(first);
            assert_eq!(slice, all, "{place}");
        }
    }

    /// A whole copy may never come, and the room goes on.
    #[test]
    fn what_was_built_upon_a_rejected_altered_copy_is_not_judged_each_time() {
        let firm = Node { claimed: false, ..node("firm", 1, &[], [1, 1]) };
        let standing = Standing::Rejected { provisional: true };
        let altered = Node { standing, rejected_altered: true, ..node("altered", 2, &["firm"], [1, 1]) };
        let built = (3..9).map(|n| {
            let before = if n == 3 { "altered".to_owned() } else { (n - 1).to_string() };
            node(&n.to_string(), n, &[&before], [1, 1])
        });
        assert_eq!(judged(&[firm, altered].into_iter().chain(built).collect::<Vec<_>>(), 1), [id("altered")]);
    }

    /// Each of them has sides with different states, and needs to be resolved to be known to be as it should.
    #[test]
    fn of_very_many_merges_each_attempt_judges_others() {
        let merges = 2 * MAX_DOUBTFUL + MAX_DOUBTFUL / 2;
        let mut nodes = vec![node("left", 1, &["lost"], [1, 1]), node("right", 1, &["lost"], [2, 2])];
        nodes.extend((0..merges).map(|n| node(&format!("merge{n}"), 2, &["left", "right"], [3, 3])));
        let mut found: HashSet<EventId> = HashSet::new();
        for attempt in 0..3 {
            let judged = judged(&nodes, attempt);
            assert_eq!(judged.len(), MAX_DOUBTFUL);
            found.extend(judged);
        }
        assert_eq!(found.len(), merges);
    }
}
