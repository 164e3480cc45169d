//! That what a failure shows is small, and a room still.

use verge::matrix::{auth_rules, event::ReceivedPdu, json, room_version::RoomVersion, state_content::Membership};

use crate::common::{
    generator::{Numbers, Random},
    rooms::{Room, RoomEvent},
    shrink,
};

#[test]
fn a_failing_room_shrinks_to_the_events_that_it_takes() {
    type Shows = fn(&Room, &RoomEvent) -> bool;
    // What a room shows, and how many events that takes, the one that makes the room among them.
    let cases: [(Shows, usize); 3] = [
        (|_, event| event.event.membership() == Some(Membership::Ban), 2),
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
    event.event.membership() == Some(Membership::Ban) && !event.rejected && by_creator
}
