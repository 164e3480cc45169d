//! Algorithms 2 and 2.1.
//!
//! Spec: rooms, version 2 and version 12, "State resolution", "Algorithm"; the numbers are its steps.

use super::{
    Conflicts, Index, Interrupt, Known, Need, Outcome, StateResolution, World,
    events::{StateMap, StateSoFar},
    ordering,
};
use crate::matrix::{auth_events, auth_rules};

/// The resolved state, where it is not what all states agree on.
pub(super) fn resolve(
    world: &mut World,
    conflicts: &Conflicts,
    full_conflicted_set: &[Index],
) -> Result<Outcome, Interrupt> {
    let unconflicted = prepare(world, conflicts, full_conflicted_set)?;

    // 1 and 2: the power events, on the unconflicted state map, or in algorithm 2.1 on an empty one.
    let power_events = ordering::reverse_topological_power_ordering(full_conflicted_set, world);
    let mut resolved = StateMap::default();
    iterative_auth_checks(&power_events, &unconflicted, &mut resolved, world);

    // 3 and 4: all others.
    let mut is_power_event = vec![false; world.events.len()];
    power_events.iter().filter_map(|event| is_power_event.get_mut(*event).map(|is| *is = true)).for_each(drop);
    let others =
        full_conflicted_set.iter().copied().filter(|event| is_power_event.get(*event) == Some(&false)).collect();
    let power_levels = resolved.get("m.room.power_levels", "").or_else(|| unconflicted.get("m.room.power_levels", ""));
    let others = ordering::mainline_ordering(others, power_levels, world)?;
    iterative_auth_checks(&others, &unconflicted, &mut resolved, world);

    // 5: where the states agree, they are right.
    outcome(&resolved, world, conflicts)
}

/// Gets everything that the auth checks will look at: the auth events of all events in the full conflicted set, and, in
/// algorithm 2, the unconflicted state at the keys by which they are judged, which is the result.
fn prepare(world: &mut World, conflicts: &Conflicts, full_conflicted_set: &[Index]) -> Result<StateMap, Interrupt> {
    let mut need = Need::default();
    let mut unconflicted = StateMap::default();
    if let Some(create) = world.events.create_by_room_id() {
        world.events.want(create);
    }
    let mut whole = true;
    for event in full_conflicted_set {
        whole &= world.events.want(*event);
        for cited in world.events.auth_events(*event).to_vec() {
            world.events.want(cited);
        }
    }
    if !whole {
        world.ask(std::mem::take(&mut need))?;
    }
    if world.version.state_resolution == StateResolution::V2 {
        // The empty entry keeps a key from being looked up again for the next event.
        let mut looked_up = StateMap::default();
        let add_power_levels = [("m.room.power_levels".to_owned(), String::new())];
        let mut keys: Vec<(String, String)> = add_power_levels.to_vec();
        for event in full_conflicted_set {
            let Some(known) = world.events.get(*event) else { continue };
            let event = &known.event;
            let selection = auth_events::selection(
                world.version,
                event.event_type(),
                event.sender().as_str(),
                event.state_key(),
                event.content(),
            );
            for (event_type, state_key) in selection {
                if !looked_up.contains(event_type, state_key) {
                    looked_up.insert(event_type, state_key, 0);
                    keys.push((event_type.to_owned(), state_key.to_owned()));
                }
            }
        }
        for (event_type, state_key) in keys {
            let key = super::StateKeyHash::new(&event_type, &state_key);
            if !conflicts.contains(&key)
                && let Known::Yes(Some(event)) = world.in_base(key, &mut need)?
            {
                world.events.want(event);
                unconflicted.insert(&event_type, &state_key, event);
            }
        }
    }
    world.ask(need)?;
    Ok(unconflicted)
}

/// The iterative auth checks algorithm.
fn iterative_auth_checks(events: &[Index], initial: &StateMap, resolved: &mut StateMap, world: &World) {
    for index in events {
        let Some(known) = world.events.get(*index) else { continue };
        let state = StateSoFar { events: &world.events, resolved, initial, auth_events_of: Some(*index) };
        if auth_rules::check(&known.event, &state).is_ok() {
            resolved.insert(known.event.event_type(), known.event.state_key().unwrap_or_default(), *index);
        }
    }
}

fn outcome(resolved: &StateMap, world: &mut World, conflicts: &Conflicts) -> Result<Outcome, Interrupt> {
    // A conflicted key without an event that is allowed is left without one.
    let mut outcome: Outcome = conflicts.keys.iter().map(|key| (*key, None)).collect();
    let mut need = Need::default();
    for event in resolved.values() {
        let Some(key) = world.events.key(event) else { continue };
        let conflicted = conflicts.contains(&key);
        if conflicted || matches!(world.in_base(key, &mut need)?, Known::Yes(None)) {
            outcome.insert(key, Some(event));
        }
    }
    world.ask(need)?;
    Ok(outcome)
}
