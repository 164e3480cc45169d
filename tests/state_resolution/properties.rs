//! What must hold of any resolution, over generated rooms.

use verge::matrix::{
    room_version::RoomVersion,
    state_resolution::{Resolution, Step, Supplied, memory::Memory},
    state_trie::{NodeId, StateKeyHash},
};

use crate::{
    common::rooms::{Numbers, Random, Room},
    differential::{memory, plain},
};

fn each_room(mut check: impl FnMut(&Room, &Memory, &[NodeId], &mut Random)) {
    for version in RoomVersion::all() {
        for seed in 1_000..1_020 {
            let room = Room::generate(version, seed, 60, Numbers::Plain);
            let mut memory = memory(&room);
            let mut random = Random::new(seed);
            let roots: Vec<NodeId> = (0..4)
                .map(|_| {
                    let state = plain(&room, &random.pick(&room.events).after);
                    memory.snapshot(state.iter().map(|((t, k), id)| (StateKeyHash::new(t, k), id.as_str().into())))
                })
                .collect();
            check(&room, &memory, &roots, &mut random);
        }
    }
}

fn resolve(room: &Room, memory: &Memory, roots: &[NodeId]) -> NodeId {
    memory.resolve(room.version, room.events[0].event.room_id(), roots).unwrap().0.root
}

#[test]
fn the_order_of_states_and_repetitions_make_no_difference() {
    each_room(|room, memory, roots, random| {
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

#[test]
fn equal_states_resolve_to_themselves() {
    each_room(|room, memory, roots, _| {
        for root in roots {
            assert_eq!(resolve(room, memory, &[*root, *root]), *root);
        }
    });
}

#[test]
fn it_makes_no_difference_what_is_supplied_too_early() {
    each_room(|room, memory, roots, _| {
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
