//! What is left when a room was settled as far as possible, and what other servers are asked about then.

use std::collections::BTreeMap;

use super::claimed_graph::Graph;
use crate::{
    matrix::identifiers::{EventId, ServerName},
    store::unsettled::{Node, Standing},
};

/// Of how many edges other servers are asked in one look what the state before them was. Of events above them there are four more.
const EDGES_AT_ONCE: usize = 3;

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
    /// makes others ask about, each server has its turn, and those that are in the room have turns of their own. Each comes first in time,
    /// too: asking about that may take all the time that there is.
    pub fn to_ask_about(&self, look: usize, is_resident: impl Fn(&ServerName) -> bool) -> Vec<AskedAbout> {
        let look = look.saturating_sub(1);
        let edges = edges_in_turn(&self.edges, look).map(|id| AskedAbout { event_id: id.clone(), server: None });
        let edges: Vec<AskedAbout> = edges.collect();
        let (residents, others): (Vec<_>, Vec<_>) = self.above.iter().partition(|(server, _)| is_resident(server));
        // The first place goes round more slowly: each of them has it when it comes before the edges.
        let [of_residents, of_others] = [residents, others].map(|servers| {
            let mut of_servers: Vec<AskedAbout> =
                [look / 4, look].into_iter().filter_map(|turn| in_turn(&servers, turn)).collect();
            of_servers.dedup();
            of_servers
        });
        let (first, last) = match look % 4 {
            3 if !of_others.is_empty() => (of_others, of_residents),
            _ => (of_residents, of_others),
        };
        let asked = if look.is_multiple_of(2) { [edges, first, last] } else { [first, edges, last] };
        asked.concat()
    }
}

/// Some of the edges.
fn edges_in_turn(edges: &[EventId], look: usize) -> impl Iterator<Item = &EventId> {
    let in_round = edges.len().div_ceil(EDGES_AT_ONCE).max(1);
    let (round, at) = (look / in_round, look % in_round);
    let begin = (at * EDGES_AT_ONCE + round).checked_rem(edges.len()).unwrap_or_default();
    let (before, after) = edges.split_at(begin);
    after.iter().chain(before).take(EDGES_AT_ONCE)
}

/// One of what is to be asked about for these servers.
fn in_turn(servers: &[(&ServerName, &Vec<EventId>)], turn: usize) -> Option<AskedAbout> {
    let (server, events) = servers.get(turn.checked_rem(servers.len())?)?;
    let event_id = events.get((turn / servers.len()).checked_rem(events.len())?)?;
    Some(AskedAbout { event_id: event_id.clone(), server: Some((*server).clone()) })
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
            let asked: Vec<Vec<AskedAbout>> = looks.map(|look| settled.to_ask_about(look, |_| true)).collect();
            let first: HashSet<&EventId> = asked.iter().filter_map(|asked| Some(&asked.first()?.event_id)).collect();
            assert_eq!(first.len(), count, "{count}");
            // And all have their turn soon.
            let soon: HashSet<&EventId> = asked.iter().take(in_round).flatten().map(|one| &one.event_id).collect();
            assert_eq!(soon.len(), count, "{count}");
        }
    }

    #[test]
    fn who_has_much_asked_about_does_not_keep_another_server_from_its_turn() {
        let server = |name: &str, n: usize| ServerName::parse(&format!("{name}{n}.example")).unwrap();
        let (made_up, residents) = (400, 2);
        for (edges, counts) in [(1, [400, 1]), (3, [1, 2]), (400, [400, 3]), (2, [0, 2]), (0, [1, 1]), (3, [2, 4])] {
            let mut above: BTreeMap<ServerName, Vec<EventId>> = BTreeMap::new();
            above.extend((0..made_up).map(|n| (server("made-up", n), ids(&format!("made-up{n}-"), 1))));
            above.extend((0..residents).map(|n| (server("resident", n), ids(&format!("resident{n}-"), counts[n]))));
            above.retain(|_, events| !events.is_empty());
            let settled = Settled { left: Left::Verdicts, lacking: Vec::new(), edges: ids("edge", edges), above };
            let is_resident = |server: &ServerName| server.as_str().starts_with("resident");
            for look in 1..40 {
                let asked = |count: usize| (look..).take(count).map(|look| settled.to_ask_about(look, is_resident));
                let first: Vec<EventId> =
                    asked(8 * counts[1]).filter_map(|asked| Some(asked.first()?.event_id.clone())).collect();
                for id in ids("resident1-", counts[1]) {
                    assert!(first.contains(&id), "{edges}, {counts:?}, {look}: {first:?}");
                }
                assert!(asked(1).all(|asked| asked.len() <= EDGES_AT_ONCE + 4));
            }
            let asked = (1..=4 * made_up).map(|look| settled.to_ask_about(look, is_resident));
            let first: HashSet<EventId> = asked.filter_map(|asked| Some(asked.first()?.event_id.clone())).collect();
            assert_eq!(first.iter().filter(|id| id.as_str().starts_with("$made-up")).count(), made_up);
            // Nor does that take so long where they are not very many.
            let asked = (1..=made_up).flat_map(|look| settled.to_ask_about(look, is_resident));
            let all: HashSet<EventId> = asked.map(|asked| asked.event_id).collect();
            assert_eq!(all.iter().filter(|id| id.as_str().starts_with("$made-up")).count(), made_up);
        }
    }
}
