//! What must hold of any resolution, over generated rooms.

use std::{collections::BTreeSet, rc::Rc};

use verge::matrix::{
    auth_events,
    event::Event,
    room_version::RoomVersion,
    state_resolution::{Need, Resolution, StateEvent, Step, Supplied, memory::Memory},
    state_trie::{NodeId, StateKeyHash},
};

use crate::common::{
    generator::{Numbers, Random},
    junk::with_junk,
    rooms::{Key, Resolver, Room, RoomEvent},
};

fn each_room(mut check: impl FnMut(&Room, &mut Random)) {
    for version in RoomVersion::all() {
        for seed in 1_000..1_020 {
            let room = Room::generate(version, seed, 60, Numbers::Floats);
            check(&room, &mut Random::new(seed));
        }
    }
}

/// Checks each room and four states of it.
fn each_room_with_states(mut check: impl FnMut(&Room, &Memory, &[NodeId], &mut Random)) {
    each_room(|room, random| {
        let mut memory = memory(room);
        let roots = roots(room, &mut memory, random);
        check(room, &memory, &roots, random);
    });
}

fn memory(room: &Room) -> Memory {
    let mut memory = Memory::default();
    for event in &room.events {
        memory.insert(StateEvent { event: event.event.clone(), rejected: event.rejected });
    }
    memory
}

fn roots(room: &Room, memory: &mut Memory, random: &mut Random) -> Vec<NodeId> {
    let states = (0..4).map(|_| room.plain(&random.pick(&room.events).after));
    let entries = |((t, k), id): (&(String, String), &String)| (StateKeyHash::new(t, k), id.as_str().into());
    states.map(|state| memory.snapshot(state.iter().map(entries))).collect()
}

fn resolve(room: &Room, memory: &Memory, roots: &[NodeId]) -> NodeId {
    memory.resolve(room.version, room.events[0].event.room_id(), roots).unwrap().0.root
}

#[test]
fn the_order_of_states_and_repetitions_make_no_difference() {
    each_room_with_states(|room, memory, roots, random| {
        let expected = resolve(room, memory, roots);
        let mut shuffled = roots.to_vec();
        shuffled.push(*random.pick(roots));
        for i in 0..shuffled.len() {
            shuffled.swap(i, random.below(roots.len()));
        }
        shuffled.extend(roots);
        assert_eq!(resolve(room, memory, &shuffled), expected, "version {} seed {}", room.version, room.seed);
    });
}

/// Equal states are one snapshot, which no algorithm is asked about.
#[test]
fn equal_states_resolve_to_themselves() {
    each_room_with_states(|room, memory, roots, _| {
        for root in roots {
            assert_eq!(resolve(room, memory, &[*root, *root]), *root);
        }
    });
}

/// A state and the one after an event that it allows resolve to the latter, where the event takes no other's place and cites
/// what the state has: there is nothing for it to lose against.
#[test]
fn a_state_and_the_next_one_resolve_to_the_next_one() {
    let mut checked = 0;
    each_room(|room, _| {
        let mut resolver = Resolver::new(room, &BTreeSet::new());
        for event in room.events.iter().filter(|event| !event.rejected && is_new(room, event)) {
            let resolved = resolver.resolve(room, &[&event.state, &event.after]);
            assert!(resolved == *event.after, "version {} seed {}: {}", room.version, room.seed, event.event.json());
            checked += 1;
        }
    });
    assert!(checked > 1_000, "{checked}");
}

fn is_new(room: &Room, event: &RoomEvent) -> bool {
    let in_state = |(t, k): (&str, &str)| {
        let position = event.state.get(&(t.to_owned(), k.to_owned()))?;
        Some(room.events[*position].event.event_id())
    };
    let e = &event.event;
    let selected = auth_events::selection(e.version(), e.event_type(), e.sender().as_str(), e.state_key(), e.content());
    let selected: BTreeSet<_> = selected.into_iter().filter_map(in_state).collect();
    let cited: BTreeSet<_> = e.auth_events().iter().collect();
    e.state_key().is_some_and(|key| in_state((e.event_type(), key)).is_none()) && selected == cited
}

#[test]
fn it_makes_no_difference_what_is_supplied_too_early() {
    each_room_with_states(|room, memory, roots, _| {
        let expected = resolve(room, memory, roots);
        let room_id = room.events[0].event.room_id();
        let mut resolution = Resolution::new(room.version, room_id, roots);
        let mut supplied: Supplied = memory.everything();
        let root = loop {
            match resolution.step(supplied).unwrap() {
                Step::Done(resolved) => break resolved.root,
                Step::Need(need) => {
                    assert!(need.differing.is_empty() && need.nodes.is_empty() && need.paths.is_empty());
                    supplied = memory.supply(&need);
                }
            }
        };
        assert_eq!(root, expected, "version {} seed {}", room.version, room.seed);
    });
}

/// Snapshots that are not stored yet cannot be compared where they are stored.
#[test]
fn it_makes_no_difference_whether_the_snapshots_are_compared_for_it() {
    each_room_with_states(|room, memory, roots, _| {
        let expected = resolve(room, memory, roots);
        let mut resolution = Resolution::new(room.version, room.events[0].event.room_id(), roots);
        let mut supplied = Supplied::default();
        let root = loop {
            match resolution.step(supplied).unwrap() {
                Step::Done(resolved) => break resolved.root,
                Step::Need(need) => supplied = memory.supply(&Need { differing: Vec::new(), ..need }),
            }
        };
        assert_eq!(root, expected, "version {} seed {}", room.version, room.seed);
    });
}

#[test]
fn it_makes_no_difference_whether_events_are_outlined_first() {
    each_room_with_states(|room, memory, roots, _| {
        let expected = resolve(room, memory, roots);
        let mut resolution = Resolution::new(room.version, room.events[0].event.room_id(), roots);
        let mut supplied = Supplied::default();
        let root = loop {
            match resolution.step(supplied).unwrap() {
                Step::Done(resolved) => break resolved.root,
                Step::Need(need) => supplied = memory.supply_outlines(&need),
            }
        };
        assert_eq!(root, expected, "version {} seed {}", room.version, room.seed);
    });
}

/// What one resolution has learnt serves the next, also when there are new events meanwhile.
#[test]
fn it_makes_no_difference_what_was_learnt_before() {
    each_room(|room, random| {
        let (first, then) = room.events.split_at(room.events.len() / 2);
        let mut known = Memory::default();
        let state_event = |event: &RoomEvent| StateEvent { event: event.event.clone(), rejected: event.rejected };
        first.iter().for_each(|event| known.insert(state_event(event)));
        let entries = |((t, k), id): (&(String, String), &String)| (StateKeyHash::new(t, k), id.as_str().into());
        let mut states = |of: &[RoomEvent], memory: &mut Memory| -> Vec<NodeId> {
            let states = (0..3).map(|_| room.plain(&random.pick(of).after));
            states.map(|state| memory.snapshot(state.iter().map(entries))).collect()
        };
        let room_id = room.events[0].event.room_id();
        let mut facts = None;
        for events in [first, &room.events[..]] {
            let roots = states(events, &mut known);
            let mut resolution = match facts.take() {
                Some(facts) => Resolution::with(room.version, &roots, facts),
                None => Resolution::new(room.version, room_id, &roots),
            };
            let mut supplied = Supplied::default();
            let root = loop {
                match resolution.step(supplied).unwrap() {
                    Step::Done(resolved) => break resolved.root,
                    Step::Need(need) => supplied = known.supply_outlines(&need),
                }
            };
            assert_eq!(root, resolve(room, &known, &roots), "version {} seed {}", room.version, room.seed);
            let mut learnt = resolution.into_facts();
            for event in then {
                known.insert(state_event(event));
                learnt.learn(state_event(event), true);
            }
            facts = Some(learnt);
        }
    });
}

/// Whatever stands in the content of the events, and however little they have to do with the states that they stand in, there
/// is a resolution.
#[test]
fn no_content_makes_it_panic() {
    each_room(|room, random| {
        let junk: Vec<Event> = room
            .events
            .iter()
            .map(|event| if random.percent(40) { with_junk(&event.event, random) } else { event.event.clone() })
            .collect();
        let mut memory = Memory::default();
        for event in &junk {
            memory.insert(StateEvent { event: event.clone(), rejected: random.percent(10) });
        }
        let roots: Vec<NodeId> = (0..4)
            .map(|_| {
                let state = Rc::clone(&random.pick(&room.events).after);
                let mut entry = |((t, k), position): (&Key, &usize)| {
                    // Some keys hold what is not of their type at all.
                    let position = if random.percent(5) { random.below(junk.len()) } else { *position };
                    (StateKeyHash::new(t, k), junk[position].event_id().as_str().into())
                };
                let entries: Vec<_> = state.iter().map(&mut entry).collect();
                memory.snapshot(entries)
            })
            .collect();
        // An error is a verdict too.
        let _ = memory.resolve(room.version, room.events[0].event.room_id(), &roots);
    });
}
