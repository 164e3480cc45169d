//! Gaps as a property: three honest servers and one that is not talk in a room of 150 state events while transactions are
//! lost, cut and doubled, users join behind the gap, servers go away and come back, and the one relays, alters, withholds, dawdles
//! and answers with old state, empty lists and errors, and builds upon what the rules forbid (`faults.rs`). When the network has healed and the honest servers have spoken, each of them shows every honest event that it
//! would show had nothing gone wrong, and has the state that it would have. Where what they have said rests on an event
//! that the malicious server has given to none of them, they cannot know that state, and find it when the event comes.
//!
//! Each seed is one world. `GAPS_SEED=7` repeats one and tells its story, `GAPS_SEEDS=5000` runs so many, and
//! `GAPS_FAULTS=lose,relay` allows these faults only (see `faults.rs`). A seed gives the same world each time; threads share
//! none.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod actors;
mod checks;
mod dice;
mod faults;
mod malice;
mod oracle;
mod signing;
mod wire;
mod world;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use common::setting;
use faults::Faults;
use oracle::Oracle;
use world::{Image, Scene};

/// The room versions of the worlds, by turns.
const VERSIONS: [&str; 3] = ["10", "11", "12"];

/// How a world ended.
struct Ending {
    faults: String,
    failures: Vec<String>,
    story: String,
}

#[test]
fn what_honest_users_say_is_seen_by_all_of_them() {
    let allowed = Faults::allowed();
    if let Ok(seed) = std::env::var("GAPS_SEED") {
        let ending = play(&mut BTreeMap::new(), seed.parse().unwrap(), &allowed);
        println!("{}", ending.story);
        assert!(ending.failures.is_empty(), "{}", ending.failures.join("\n"));
        return;
    }
    let (next, failed) = (AtomicU64::new(1), Mutex::new(BTreeMap::new()));
    let count = setting("GAPS_SEEDS", 300);
    let work = || {
        let mut images = BTreeMap::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > count {
                return;
            }
            let ending = play(&mut images, seed, &allowed);
            if !ending.failures.is_empty() {
                println!("GAPS_SEED={seed} ({}): {}", ending.faults, ending.failures[0]);
                failed.lock().unwrap().insert(seed, ending);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(2, usize::from).min(8);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {count} seeds failed; GAPS_SEED={}", failed.len(), failed.keys().next().unwrap());
}

#[test]
fn a_seed_gives_the_same_world_again() {
    let story = || play(&mut BTreeMap::new(), 5, &Faults::allowed()).story;
    assert_eq!(story(), story());
}

/// Plays one seed's world.
fn play(images: &mut BTreeMap<&'static str, Image>, seed: u64, allowed: &Faults) -> Ending {
    let version = VERSIONS[(seed % VERSIONS.len() as u64) as usize];
    let image = images.entry(version).or_insert_with(|| Image::new(version));
    let scene = Scene::new(image, seed, allowed);
    let played = catch_unwind(AssertUnwindSafe(|| {
        scene.live();
        let last = scene.heal()?;
        Ok(scene.failures(&Oracle::new(image, &scene, &last)?, &last))
    }));
    let failures = match played {
        Ok(Ok(failures)) => failures,
        Ok(Err(why)) => vec![why],
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map_or("a panic", String::as_str);
            vec![text.to_owned()]
        }
    };
    let mut story = scene.story.text();
    for line in scene.world.logs() {
        story.push_str(&format!("\nlog: {line}"));
    }
    let ending = Ending { faults: scene.faults.to_string(), failures, story };
    scene.world.end();
    ending
}
