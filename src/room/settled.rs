//! What is left when a room was settled as far as possible, and what other servers are asked about then.

use std::collections::BTreeMap;

use super::claimed_graph::Graph;
use crate::{
    matrix::identifiers::{EventId, ServerName},
    store::unsettled::{Node, Standing},
};

/// Of how many edges, and of how many events above them, other servers are asked in one look what the state before them was.
const EDGES_AT_ONCE: usize = 3;
const ABOVE_AT_ONCE: usize = 2;

/// Of how many events above edges others may be asked for one server: the first, upon which the others are built.
const MAX_ABOVE: usize = 100;

/// What is left when a room was settled as far as possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What rests on claims.
    pub left: Left,
    /// Events without a place whose history would show what is so: edges of gaps, and what is cited there.
    pub lacking: Vec<EventId>,
    /// Events before which the state is known by a claim alone, as what they cite is lacking, and on which verdicts against somebody rest.
    pub edges: Vec<EventId>,
    /// By the servers of those against whom a verdict is: what else may be asked about. Who has rejected an edge does not say what the state
    /// there was. But that server has accepted what its events cite, and what cites the edge at once, if it is its own.
    pub above: BTreeMap<ServerName, Vec<EventId>>,
}

/// Something that other servers are asked about: what the state was before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedAbout {
    /// The event.
    pub event_id: EventId,
    /// A server that should know.
    pub server: Option<ServerName>,
}

impl Settled {
    /// What to ask about in a look, which are counted from one, if there is much: however many edges there are, and whatever somebody
    /// makes others ask about, each server has its turn. Each comes first in time, too: asking about that may take all the time that there is.
    pub fn to_ask_about(&self, look: usize) -> Vec<AskedAbout> {
        let look = look.saturating_sub(1);
        let edges = in_turn(&self.edges, look).map(|id| AskedAbout { event_id: id.clone(), server: None });
        let mut asked: Vec<AskedAbout> = edges.collect();
        let servers: Vec<(&ServerName, &Vec<EventId>)> = self.above.iter().collect();
        let mut above: Vec<AskedAbout> = Vec::new();
        for turn in (look * ABOVE_AT_ONCE..).take(ABOVE_AT_ONCE) {
            let Some((server, events)) = turn.checked_rem(servers.len()).and_then(|at| servers.get(at)) else { break };
            let of_server = (turn / servers.len()).checked_rem(events.len()).and_then(|at| events.get(at));
            above.extend(of_server.map(|id| AskedAbout { event_id: id.clone(), server: Some((*server).clone()) }));
        }
        above.dedup();
        if (look / 2) % 2 == 1 {
            above.reverse();
        }
        if look % 2 == 1 {
            above.append(&mut asked);
            return above;
        }
        asked.append(&mut above);
        asked
    }
}

/// Some of the edges.
fn in_turn(edges: &[EventId], look: usize) -> impl Iterator<Item = &EventId> {
    let in_round = edges.len().div_ceil(EDGES_AT_ONCE).max(1);
    let (round, at) = (look / in_round, look % in_round);
    let begin = (at * EDGES_AT_ONCE + round).checked_rem(edges.len()).unwrap_or_default();
    let (before, after) = edges.split_at(begin);
    after.iter().chain(before).take(EDGES_AT_ONCE)
}

/// What rests on claims in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// States, and what was accepted by them.
    States,
    /// Verdicts that go against somebody, too.
    Verdicts,
    /// There is more to judge.
    More,
}

impl Graph {
    /// What is left to settle; what is `left`, where that is known.
    pub(super) fn settled(&self, left: Option<Left>) -> Settled {
        let open = || self.order.iter().filter_map(|id| self.nodes.get(id));
        let is_against =
            |node: &Node| matches!(node.standing, Standing::SoftFailed | Standing::Rejected { provisional: true });
        let left = left.unwrap_or_else(|| {
            if open().any(is_against) {
                Left::Verdicts
            } else if open().any(|node| node.claimed) {
                Left::States
            } else {
                Left::Nothing
            }
        });
        let is_edge = |node: &&Node| matches!(node.standing, Standing::Outlier | Standing::Unknown);
        let lacking = self.nodes.values().filter(is_edge).map(|node| node.event_id.clone());
        let mut lacking: Vec<EventId> = lacking.collect();
        lacking.sort();
        let below = self.reachable(open().filter(|node| is_against(node)).map(|node| node.event_id.clone()));
        let is_edge = |node: &&Node| {
            matches!(node.standing, Standing::Outlier | Standing::Accepted) && below.contains(&node.event_id)
        };
        let edges = self.order.iter().filter_map(|id| self.only_claimed(id)).filter(is_edge);
        let edges = edges.map(|node| node.event_id.clone()).collect();
        let mut above: BTreeMap<ServerName, Vec<EventId>> = BTreeMap::new();
        for node in open().filter(|node| is_against(node)) {
            let Some(server) = &node.server else { continue };
            let is_above = node.previous.iter().any(|id| self.only_claimed(id).is_some());
            let accepted = node.previous.iter().filter(|id| self.follows_from_claims(id));
            let of_server = above.entry(server.clone()).or_default();
            for id in is_above.then_some(&node.event_id).into_iter().chain(accepted) {
                if of_server.len() < MAX_ABOVE && !of_server.contains(id) {
                    of_server.push(id.clone());
                }
            }
        }
        above.retain(|_, events| !events.is_empty());
        Settled { left, lacking, edges, above }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use super::*;

    fn ids(name: &str, count: usize) -> Vec<EventId> {
        (0..count).map(|at| EventId::parse(&format!("${name}{at}")).unwrap()).collect()
    }

    #[test]
    fn each_edge_has_its_turn_and_comes_first_in_time() {
        for count in [0_usize, 1, 4, 5, 6, 10, 23, 80] {
            let edges = ids("edge", count);
            let settled = Settled { left: Left::Verdicts, lacking: Vec::new(), edges, above: BTreeMap::new() };
            let in_round = count.div_ceil(EDGES_AT_ONCE);
            let looks = 1..=(in_round * EDGES_AT_ONCE).max(1);
            let asked: Vec<Vec<AskedAbout>> = looks.map(|look| settled.to_ask_about(look)).collect();
            let first: HashSet<&EventId> = asked.iter().filter_map(|asked| Some(&asked.first()?.event_id)).collect();
            assert_eq!(first.len(), count, "{count}");
            // And all have their turn soon.
            let soon: HashSet<&EventId> = asked.iter().take(in_round).flatten().map(|one| &one.event_id).collect();
            assert_eq!(soon.len(), count, "{count}");
        }
    }

    #[test]
    fn who_has_much_asked_about_does_not_keep_another_server_from_its_turn() {
        let [evil, honest] = ["evil.example", "honest.example"].map(|name| ServerName::parse(name).unwrap());
        for (edges, of_evil, of_honest) in [(1, 400, 1), (400, 400, 3), (2, 0, 2), (0, 1, 1)] {
            let mut above = BTreeMap::from([(honest.clone(), ids("honest", of_honest))]);
            if of_evil > 0 {
                above.insert(evil.clone(), ids("evil", of_evil));
            }
            let settled = Settled { left: Left::Verdicts, lacking: Vec::new(), edges: ids("edge", edges), above };
            for look in 1..40 {
                let looks = (look..).take(4 * of_honest).map(|look| settled.to_ask_about(look));
                let first: Vec<AskedAbout> = looks.filter_map(|asked| asked.first().cloned()).collect();
                for id in ids("honest", of_honest) {
                    let wanted = AskedAbout { event_id: id, server: Some(honest.clone()) };
                    assert!(first.contains(&wanted), "{edges}, {of_evil}, {of_honest}, {look}: {first:?}");
                }
                assert!(settled.to_ask_about(look).len() <= EDGES_AT_ONCE + ABOVE_AT_ONCE);
            }
        }
    }
}
