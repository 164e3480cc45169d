//! Every decision about generated rooms of every version, compared with Synapse's own code: ids, hashes, redaction, auth
//! events selection, authorisation rules and state resolution.
//!
//! `VERGE_ROOMS` is the number of rooms (2,400 by default) and `VERGE_SEED` the first seed (0). A failure names the version
//! and the seed, and shows as few of the room's events as it takes.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::thread;

use common::{
    rooms::{Numbers, Random, Resolver, Room, RoomEvent, State},
    setting, shrink,
    synapse::{Answer, Synapse},
};
use verge::matrix::{
    auth_events, auth_rules, base64, event::ReceivedPdu, hashes, json, redaction, room_version::RoomVersion,
};

const THREADS: u64 = 2;

#[test]
fn generated_rooms_agree_with_synapse() {
    let (rooms, first_seed) = (setting("VERGE_ROOMS", 2_400), setting("VERGE_SEED", 0));
    let seeds = rooms.div_ceil(RoomVersion::all().len() as u64);
    let compared: Vec<Counts> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let mut counts = Counts::default();
                    let Some(mut synapse) = Synapse::start() else { return counts };
                    for seed in (first_seed..first_seed + seeds).filter(|seed| seed % THREADS == thread) {
                        for version in RoomVersion::all() {
                            let length = 20 + seed as usize % 41;
                            let room = Room::generate(version, seed, length, Numbers::Floats);
                            if let Err(disagreement) = compare(&room, &mut synapse, &mut counts) {
                                let compare = |room: &Room| compare(room, &mut synapse, &mut Counts::default()).err();
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
    let sum = |of: fn(&Counts) -> usize| compared.iter().map(of).sum::<usize>();
    println!(
        "{} rooms: {} events accepted, {} rejected, {} states resolved",
        sum(|counts| counts.rooms),
        sum(|counts| counts.accepted),
        sum(|counts| counts.rejected),
        sum(|counts| counts.resolved)
    );
}

/// What was compared.
#[derive(Debug, Default)]
struct Counts {
    rooms: usize,
    accepted: usize,
    rejected: usize,
    resolved: usize,
}

/// Compares all that is decided about a room.
fn compare(room: &Room, synapse: &mut Synapse, counts: &mut Counts) -> Result<(), String> {
    let merges: Vec<&RoomEvent> = room.events.iter().filter(|event| event.states.len() > 1).collect();
    let states: Vec<Vec<&State>> =
        merges.iter().map(|event| event.states.iter().map(|state| &**state).collect()).collect();
    let answer = synapse.judge(room, &states);
    for (position, event) in room.events.iter().enumerate() {
        compare_event(room, event, position, &answer)
            .map_err(|what| format!("event {position}, {what}\n{}", event.event.json()))?;
        *(if event.rejected { &mut counts.rejected } else { &mut counts.accepted }) += 1;
    }
    let mut resolver = Resolver::new(room);
    for (position, states) in states.iter().enumerate() {
        let resolved = resolver.resolve(room, states).into_iter().map(|((event_type, state_key), event)| {
            (event_type, state_key, room.events[event].event.event_id().as_str().to_owned())
        });
        let (ours, theirs) = (resolved.collect::<Vec<_>>(), answer.resolved(position)?);
        if ours != theirs {
            let differing: Vec<_> = ours.iter().filter(|entry| !theirs.contains(entry)).collect();
            let expected: Vec<_> = theirs.iter().filter(|entry| !ours.contains(entry)).collect();
            let event = merges[position].event.event_id();
            return Err(format!("resolution before {event}: {differing:?} here, {expected:?} in Synapse"));
        }
        counts.resolved += 1;
    }
    counts.rooms += 1;
    Ok(())
}

fn compare_event(room: &Room, event: &RoomEvent, position: usize, synapse: &Answer) -> Result<(), String> {
    let ours = &event.event;
    let differ = |what: &str, ours: &str, theirs: &str| match ours == theirs {
        true => Ok(()),
        false => Err(format!("{what}: {ours} here, {theirs} in Synapse")),
    };
    differ("event ID", ours.event_id().as_str(), synapse.text(position, "id"))?;
    differ("content hash", &base64::encode(&hashes::content_hash(ours.object())), synapse.text(position, "hash"))?;
    let redacted = redaction::redact(ours.object(), ours.version()).to_text();
    differ("redacted", &redacted, synapse.text(position, "redacted"))?;
    let selected = auth_events::selection(
        ours.version(),
        ours.event_type(),
        ours.sender().as_str(),
        ours.state_key(),
        ours.content(),
    );
    let mut selected: Vec<_> = selected.into_iter().map(|(t, k)| (t.to_owned(), k.to_owned())).collect();
    selected.sort();
    let independent = auth_rules::check_auth_event_list(ours, |id| room.auth_event(id));
    let dependent = match ours.event_type() {
        // Rule 1 is a state-independent one, which we check with the others too.
        "m.room.create" => Ok(()),
        _ => auth_rules::check(ours, &room.with_events(&event.state)),
    };
    match synapse.keys(position) {
        Some(mut keys) => {
            // Synapse adds the event that the room ID implies.
            keys.retain(|key| !room.version.room_id_is_create_hash || key.0 != "m.room.create");
            differ("auth events", &format!("{selected:?}"), &format!("{keys:?}"))?;
            for (rules, verdict) in [("independent", independent), ("dependent", dependent)] {
                let theirs = synapse.refusal(position, rules);
                if verdict.is_err() != theirs.is_some() {
                    return Err(format!("state-{rules} rules: {verdict:?} here, {theirs:?} in Synapse"));
                }
            }
            Ok(())
        }
        // Synapse fails on malformed content while it selects, so before any rule.
        None if independent.is_ok() && dependent.is_ok() => Err("accepted here, malformed in Synapse".to_owned()),
        None => Ok(()),
    }
}

#[test]
fn a_failing_room_shrinks_to_the_events_that_it_takes() {
    type Shows = fn(&Room, &RoomEvent) -> bool;
    // What a room shows, and how many events that takes, the one that makes the room among them.
    let cases: [(Shows, usize); 3] = [
        (|_, event| event.event.membership() == Some("ban"), 2),
        (bans_as_creator, 3),
        // Two branches, and where they meet.
        (|_, event| event.states.len() > 1, 4),
    ];
    for (shows, length) in cases {
        let mut rooms = 0;
        for (version, seed) in RoomVersion::all().iter().flat_map(|version| (0..20).map(move |seed| (version, seed))) {
            let shows = |room: &Room| room.events.iter().any(|event| shows(room, event)).then_some(());
            let room = Room::generate(version, seed, 60, Numbers::Plain);
            if shows(&room).is_none() {
                continue;
            }
            let (smallest, ()) = shrink::shrink(room, (), shows);
            assert!(shows(&smallest).is_some());
            assert_eq!(smallest.events.len(), length, "version {version} seed {seed}");
            rooms += 1;
        }
        assert!(rooms > 20, "{rooms}");
    }
}

/// A shrunk room is a room: its events cite each other by the IDs that they have now, and its verdicts are those of the
/// rules.
#[test]
fn what_is_left_of_a_room_is_sound() {
    for version in RoomVersion::all() {
        for seed in 0..20 {
            let room = Room::generate(version, seed, 60, Numbers::Floats);
            let mut random = Random::new(seed);
            let mut tried = 0;
            let (smallest, ()) = shrink::shrink(room, (), |room| {
                tried += 1;
                assert_sound(room);
                random.percent(10).then_some(())
            });
            assert_sound(&smallest);
            assert!(tried <= shrink::MAX_TRIES);
        }
    }
}

fn assert_sound(room: &Room) {
    for event in &room.events {
        let value = json::parse(event.event.json().as_bytes()).unwrap();
        let received = ReceivedPdu::from_value(value, room.version).unwrap();
        assert_eq!(received.event_id(), event.event.event_id());
        let prev_events: Vec<_> = event.event.prev_events().iter().map(|id| room.position(id).unwrap()).collect();
        assert_eq!(event.states, room.states_after(&prev_events));
        let listed = auth_rules::check_auth_event_list(&event.event, |id| room.auth_event(id));
        let allowed = auth_rules::check(&event.event, &room.with_events(&event.state));
        assert_eq!(event.rejected, event.event.oversized_member().is_some() || listed.is_err() || allowed.is_err());
        assert!(event.rejected || event.event.auth_events().iter().all(|id| room.position(id).is_some()));
    }
}

fn bans_as_creator(room: &Room, event: &RoomEvent) -> bool {
    let by_creator = event.event.sender() == room.events[0].event.sender();
    event.event.membership() == Some("ban") && !event.rejected && by_creator
}
