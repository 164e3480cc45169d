//! The orders in which events are applied: reverse topological power ordering and mainline ordering.
//!
//! Spec: rooms, version 2 and version 12, "State resolution", "Definitions".

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{Index, Interrupt, Need, World};
use crate::matrix::hash_map::{HashMap, HashSet};
use crate::matrix::power_levels::{PowerLevel, PowerLevels};
use crate::matrix::state_content::Membership;
use crate::matrix::state_trie::StateKeyHash;

const POWER_LEVELS: &str = "m.room.power_levels";

/// The power events among `full_conflicted_set`, with those of their auth chains that are in it too, in
/// reverse topological power ordering.
pub(super) fn reverse_topological_power_ordering(full_conflicted_set: &[Index], world: &World) -> Vec<Index> {
    let mut in_set = vec![false; world.events.len()];
    for event in full_conflicted_set {
        in_set[*event] = true;
    }
    let cited_in_set = |event: Index| world.events.auth_events(event).iter().copied().filter(|cited| in_set[*cited]);
    let mut ranked: Vec<Index> =
        full_conflicted_set.iter().copied().filter(|event| is_power_event(*event, world)).collect();
    let mut seen = vec![false; world.events.len()];
    for event in &ranked {
        seen[*event] = true;
    }
    let mut next = 0;
    while let Some(event) = ranked.get(next).copied() {
        next += 1;
        ranked.extend(cited_in_set(event).filter(|cited| !std::mem::replace(&mut seen[*cited], true)));
    }
    ranked.sort_by_cached_key(|event| {
        let known = world.events.get(*event).map(|known| (known.event.origin_server_ts(), known.event.event_id()));
        (Reverse(sender_power_level(*event, world)), known)
    });

    // Kahn's algorithm, from the events that cite nothing in the set; the smallest candidate is the one of lowest rank.
    let mut ranks = vec![0; world.events.len()];
    for (rank, event) in ranked.iter().enumerate() {
        ranks[*event] = rank;
    }
    let mut cited_by: Vec<Vec<usize>> = vec![Vec::new(); ranked.len()];
    let mut cites: Vec<usize> = vec![0; ranked.len()];
    for (rank, event) in ranked.iter().enumerate() {
        let mut cited: Vec<usize> = cited_in_set(*event).map(|cited| ranks[cited]).collect();
        cited.sort_unstable();
        cited.dedup();
        for cited in &cited {
            cited_by[*cited].push(rank);
        }
        cites[rank] = cited.len();
    }
    let mut candidates: BinaryHeap<Reverse<usize>> = BinaryHeap::new();
    candidates.extend(cites.iter().enumerate().filter(|(_, cites)| **cites == 0).map(|(rank, _)| Reverse(rank)));
    let mut ordered = Vec::with_capacity(ranked.len());
    while let Some(Reverse(rank)) = candidates.pop() {
        ordered.push(ranked[rank]);
        for citing in &cited_by[rank] {
            cites[*citing] -= 1;
            if cites[*citing] == 0 {
                candidates.push(Reverse(*citing));
            }
        }
    }
    ordered
}

/// `events` in the mainline ordering based on a power levels event. Their auth events must be settled.
pub(super) fn mainline_ordering(
    events: Vec<Index>,
    power_levels: Option<Index>,
    world: &mut World,
) -> Result<Vec<Index>, Interrupt> {
    let first_ancestors: Vec<Option<Index>> =
        events.iter().map(|event| world.events.auth_event(*event, POWER_LEVELS, "")).collect();
    // The mainline is followed until it has met all of these, which as a rule is at once.
    let mut unmet: HashSet<Index> = first_ancestors.iter().flatten().copied().collect();
    let mut mainline: HashMap<Index, usize> = HashMap::default();
    let mut next = power_levels;
    while let Some(event) = next.filter(|event| !unmet.is_empty() && !mainline.contains_key(event)) {
        mainline.insert(event, mainline.len());
        unmet.remove(&event);
        if !unmet.is_empty() {
            next = world.cited_power_levels(event, &unmet)?;
        }
    }
    // Those beside the mainline have the position of the first ancestor that is on it.
    let mut positions = mainline;
    for start in unmet {
        let mut path = Vec::new();
        let mut next = Some(start);
        let mut seen = HashSet::default();
        let position = loop {
            let Some(event) = next.filter(|event| seen.insert(*event)) else { break usize::MAX };
            if let Some(position) = positions.get(&event) {
                break *position;
            }
            path.push(event);
            next = world.cited_power_levels(event, &HashSet::default())?;
        };
        positions.extend(path.into_iter().map(|event| (event, position)));
    }
    let position = |ancestor: Option<Index>| ancestor.and_then(|event| positions.get(&event)).copied();
    let mut ordered: Vec<(Reverse<usize>, Index)> = first_ancestors
        .into_iter()
        .zip(events)
        .map(|(ancestor, event)| (Reverse(position(ancestor).unwrap_or(usize::MAX)), event))
        .collect();
    let time_and_id =
        |event: Index| world.events.get(event).map(|known| (known.event.origin_server_ts(), known.event.event_id()));
    ordered.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| time_and_id(*x).cmp(&time_and_id(*y))));
    Ok(ordered.into_iter().map(|(_, event)| event).collect())
}

impl World {
    /// The power levels event in the auth events of another one. `others` are asked for along with it.
    fn cited_power_levels(&mut self, event: Index, others: &HashSet<Index>) -> Result<Option<Index>, Interrupt> {
        if !self.mainlines_supplied
            && !self.events.auth_events(event).iter().all(|cited| self.events.is_outlined(*cited))
        {
            // From then on whatever is not known is not a power levels event.
            self.mainlines_supplied = true;
            let events = others.iter().chain([&event]);
            let mainlines = events.filter_map(|event| self.events.event_id(*event).cloned()).collect();
            self.ask(Need { mainlines, ..Need::default() })?;
        }
        Ok(self.events.outlined_auth_event(event, StateKeyHash::new(POWER_LEVELS, "")))
    }
}

/// The level of the event's sender, as its own auth events have it.
fn sender_power_level(event: Index, world: &World) -> PowerLevel {
    let get = |index: Option<Index>| index.and_then(|index| world.events.get(index)).map(|known| &known.event);
    let create = world.events.create_by_room_id().or_else(|| world.events.auth_event(event, "m.room.create", ""));
    let power_levels = get(world.events.auth_event(event, POWER_LEVELS, ""));
    match (get(Some(event)), get(create)) {
        (Some(event), Some(create)) => PowerLevels::from_state(create, power_levels).user(event.sender().as_str()),
        _ => Ok(PowerLevel::from(0)),
    }
    .unwrap_or(PowerLevel::from(0))
}

/// Whether the event might take somebody's ability to do something away.
fn is_power_event(event: Index, world: &World) -> bool {
    let Some(known) = world.events.get(event) else { return false };
    let event = &known.event;
    match event.event_type() {
        "m.room.create" | POWER_LEVELS | "m.room.join_rules" => event.state_key() == Some(""),
        "m.room.member" => {
            matches!(event.membership(), Some(Membership::Leave | Membership::Ban))
                && event.state_key() != Some(event.sender().as_str())
        }
        _ => false,
    }
}
