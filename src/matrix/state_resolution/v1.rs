//! Algorithm 1, of room version 1.
//!
//! Spec: rooms, version 1, "State resolution". Known to reset rooms to older states; it is kept as it is, bugs and all,
//! because all servers in a room must come to the same state.

use std::{cmp::Reverse, collections::BTreeMap};

use sha1::{Digest, Sha1};

use super::{
    Conflicts, Index, Interrupt, Known, Need, Outcome, World,
    events::{StateMap, StateSoFar},
};
use crate::matrix::{auth_events, auth_rules, event::Event, state_trie::StateKeyHash};

/// The resolved state, where it is not what all states agree on.
pub(super) fn resolve(world: &mut World, conflicts: &Conflicts) -> Result<Outcome, Interrupt> {
    // Where states have different events there is a conflict; where one state has none there is not.
    let mut conflicted: BTreeMap<StateKeyHash, Vec<Index>> = BTreeMap::new();
    let mut agreed: BTreeMap<StateKeyHash, Index> = BTreeMap::new();
    for (key, values) in conflicts.by_key() {
        let mut events: Vec<Index> = values.iter().flatten().copied().collect();
        events.sort_unstable();
        events.dedup();
        match events.as_slice() {
            [event] => {
                agreed.insert(key, *event);
            }
            _ => {
                conflicted.insert(key, events);
            }
        }
    }
    let unconflicted = prepare(world, conflicts, &conflicted, &agreed)?;

    let mut resolved = StateMap::default();
    let mut result = agreed;
    let mut others: Vec<(StateKeyHash, Vec<Index>)> = Vec::new();
    let mut by_type: [Vec<(StateKeyHash, Vec<Index>)>; 3] = Default::default();
    for (key, mut events) in conflicted {
        events.retain(|index| event(*index, world).is_some());
        sort(&mut events, world);
        match events.as_slice() {
            [] => continue,
            // The others are not known, and so there is no conflict.
            [event] => {
                result.insert(key, *event);
                continue;
            }
            [first, ..] => match event(*first, world).map(|event| (event.event_type(), event.state_key())) {
                Some(("m.room.power_levels", Some(""))) => by_type[0].push((key, events)),
                Some(("m.room.join_rules", _)) => by_type[1].push((key, events)),
                Some(("m.room.member", _)) => by_type[2].push((key, events)),
                _ => others.push((key, events)),
            },
        }
    }
    for conflicts in by_type {
        // Each of a type is judged by what the types before have come to.
        let winners: Vec<(StateKeyHash, Index)> = conflicts
            .into_iter()
            .filter_map(|(key, events)| Some((key, last_allowed(&events, &resolved, &unconflicted, world)?)))
            .collect();
        for (key, winner) in winners {
            if let Some(event) = event(winner, world) {
                resolved.insert(event.event_type(), event.state_key().unwrap_or_default(), winner);
            }
            result.insert(key, winner);
        }
    }
    for (key, events) in others {
        let allowed = |index: &&Index| is_allowed(**index, &resolved, &unconflicted, world);
        if let Some(winner) = events.iter().rev().find(allowed).or(events.first()) {
            result.insert(key, *winner);
        }
    }

    Ok(conflicts.keys.iter().map(|key| (*key, result.get(key).copied())).collect())
}

/// Gets the conflicted events, and the unconflicted state at the keys by which they are judged, which is the result.
fn prepare(
    world: &mut World,
    conflicts: &Conflicts,
    conflicted: &BTreeMap<StateKeyHash, Vec<Index>>,
    agreed: &BTreeMap<StateKeyHash, Index>,
) -> Result<StateMap, Interrupt> {
    for event in conflicted.values().flatten() {
        world.events.want(*event);
    }
    world.ask(Need::default())?;
    let mut keys = Vec::new();
    for event in conflicted.values().flatten().filter_map(|index| event(*index, world)) {
        let sender = event.sender().as_str();
        let selection =
            auth_events::selection(world.version, event.event_type(), sender, event.state_key(), event.content());
        keys.extend(selection.into_iter().map(|(event_type, state_key)| (event_type, state_key.to_owned())));
    }
    keys.sort_unstable();
    keys.dedup();
    let mut need = Need::default();
    let mut unconflicted = StateMap::default();
    for (event_type, state_key) in keys {
        let key = StateKeyHash::new(event_type, &state_key);
        let event = if conflicts.contains(&key) {
            agreed.get(&key).copied()
        } else {
            match world.in_base(key, &mut need)? {
                Known::Yes(event) => event,
                Known::NotYet => None,
            }
        };
        if let Some(event) = event {
            world.events.want(event);
            unconflicted.insert(event_type, &state_key, event);
        }
    }
    world.ask(need)?;
    Ok(unconflicted)
}

/// By ascending depth, then descending SHA-1 of the event id.
fn sort(events: &mut [Index], world: &World) {
    events.sort_by_cached_key(|index| {
        event(*index, world).map(|event| (event.depth(), Reverse(Sha1::digest(event.event_id().as_str()).to_vec())))
    });
}

/// The last event of the list up to which each is allowed by the one before.
fn last_allowed(events: &[Index], resolved: &StateMap, unconflicted: &StateMap, world: &World) -> Option<Index> {
    let (first, rest) = events.split_first()?;
    let first_event = event(*first, world)?;
    // The winner so far takes the place of its key in the state.
    let mut so_far = StateMap::default();
    let mut winner = *first;
    so_far.insert(first_event.event_type(), first_event.state_key()?, winner);
    for index in rest {
        let state = Layers {
            over: &so_far,
            state: StateSoFar { events: &world.events, resolved, initial: unconflicted, auth_events_of: None },
        };
        if auth_rules::check(event(*index, world)?, &state).is_err() {
            break;
        }
        winner = *index;
        so_far.insert(first_event.event_type(), first_event.state_key()?, winner);
    }
    Some(winner)
}

fn is_allowed(index: Index, resolved: &StateMap, unconflicted: &StateMap, world: &World) -> bool {
    let state = StateSoFar { events: &world.events, resolved, initial: unconflicted, auth_events_of: None };
    event(index, world).is_some_and(|event| auth_rules::check(event, &state).is_ok())
}

/// An event. Rejected ones take no part in this algorithm.
fn event(index: Index, world: &World) -> Option<&Event> {
    world.events.accepted(index)
}

/// A state with some entries laid over it.
struct Layers<'a> {
    over: &'a StateMap,
    state: StateSoFar<'a>,
}

impl auth_rules::AuthState for Layers<'_> {
    fn get(&self, event_type: &str, state_key: &str) -> Option<&Event> {
        match self.over.get(event_type, state_key) {
            Some(index) => self.state.events.accepted(index),
            None => self.state.get(event_type, state_key),
        }
    }
}
