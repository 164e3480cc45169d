//! Every decision about generated rooms of every version, compared with Synapse's own code and with ruma's: ids, hashes,
//! signatures, redaction, auth events selection, authorisation rules and state resolution.
//!
//! `VERGE_ROOMS` is the number of rooms (2,400 by default) and `VERGE_SEED` the first seed (0). A failure names the version
//! and the seed, and shows as few of the room's events as it takes.
//!
//! Both oracles see every room, with these exceptions: versions 1 to 5 have unusual numbers in a quarter of the rooms, which
//! ruma does not read; version 1's state resolution is Synapse's alone; and ruma resolves the states of complete rooms only
//! (`Options::complete`), as its authorisation rules differ where something is absent. `auth_rules::rules` and
//! `state_resolution::differences` have each such difference as a case.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../state_resolution/by_ruma.rs"]
mod by_ruma;
#[path = "../common/mod.rs"]
mod common;
mod counts;
mod events;
mod resolution;
mod shrinking;
mod signatures;

use std::{env, thread};

use common::{
    generator::{Graph, Numbers, Options},
    rooms::{Room, State},
    setting, shrink,
    signed::SignedPdu,
    synapse::Synapse,
};
use counts::Counts;
use verge::matrix::room_version::RoomVersion;

const THREADS: u64 = 2;
const ROOMS: u64 = 2_400;

#[test]
fn generated_rooms_agree_with_synapse_and_ruma() {
    let (rooms, first_seed) = (setting("VERGE_ROOMS", ROOMS), setting("VERGE_SEED", 0));
    let seeds = rooms.div_ceil(RoomVersion::all().len() as u64);
    let counts: Vec<Counts> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let mut counts = Counts::default();
                    let mut synapse = Synapse::start();
                    for seed in (first_seed..first_seed + seeds).filter(|seed| seed % THREADS == thread) {
                        for version in RoomVersion::all() {
                            let (room, options) = generate(version, seed);
                            if let Err(disagreement) = compare(&room, options, synapse.as_mut(), &mut counts) {
                                let mut ignored = Counts::default();
                                let compare =
                                    |room: &Room| compare(room, options, synapse.as_mut(), &mut ignored).err();
                                shrink::report(room, disagreement, compare);
                            }
                        }
                    }
                    counts
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let counts = counts.into_iter().fold(Counts::default(), Counts::add);
    println!("{counts}");
    if rooms >= ROOMS {
        counts.assert_enough(env::var("VERGE_SYNAPSE_PYTHON").is_ok());
    }
}

/// The room of a seed, and of what kind it is.
fn generate(version: &'static RoomVersion, seed: u64) -> (Room, Options) {
    let numbers = if !version.strict_json && seed % 4 == 3 { Numbers::Floats } else { Numbers::Plain };
    let (graph, length) = match seed % 21 {
        7 => (Graph::Deep, 150),
        14 => (Graph::Wide, 100),
        _ => (Graph::Usual, 20 + seed as usize % 41),
    };
    let options = Options { numbers, complete: !seed.is_multiple_of(4), graph };
    (Room::generate_with(version, seed, length, options), options)
}

/// Compares all that is decided about a room.
fn compare(room: &Room, options: Options, synapse: Option<&mut Synapse>, counts: &mut Counts) -> Result<(), String> {
    let merges = resolution::merges(room);
    let signed = SignedPdu::some_of(room.events.iter().map(|event| &event.event), room.seed);
    let states: Vec<Vec<&State>> = merges.iter().map(|merge| merge.states.iter().collect()).collect();
    let answer = synapse.map(|synapse| synapse.judge(room, &states, &signed));
    let answer = answer.as_ref();
    events::compare(room, options, answer, counts)?;
    signatures::compare(&signed, options, answer, counts)?;
    resolution::compare(room, options, &merges, answer, counts)?;
    counts.count(if options.graph == Graph::Deep { "deep rooms" } else { "other rooms" });
    Ok(())
}
