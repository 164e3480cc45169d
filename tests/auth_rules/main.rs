//! The authorisation rules, rule by rule. `tests/differential` compares them over generated rooms.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../common/mod.rs"]
mod common;
mod rules;
mod scene;

use common::{
    generator::{Numbers, Random},
    junk::with_junk,
    rooms::Room,
};
use verge::matrix::{auth_rules, event::Event, room_version::RoomVersion};

/// Whatever stands in the content of an event, or of the state that it is judged by, there is a verdict.
#[test]
fn no_content_makes_the_rules_panic() {
    let mut random = Random::new(1);
    let (mut accepted, mut rejected) = (0, 0);
    for version in RoomVersion::all() {
        for seed in 0..20 {
            let room = Room::generate(version, seed, 40, Numbers::Floats);
            for event in &room.events {
                let mut state: Vec<Event> =
                    event.state.values().map(|position| room.events[*position].event.clone()).collect();
                if random.percent(50) && !state.is_empty() {
                    let spoiled = random.below(state.len());
                    state[spoiled] = with_junk(&state[spoiled], &mut random);
                }
                let event = with_junk(&event.event, &mut random);
                let verdict = auth_rules::check_auth_event_list(&event, |id| room.auth_event(id))
                    .and_then(|()| auth_rules::check(&event, state.as_slice()));
                *(if verdict.is_ok() { &mut accepted } else { &mut rejected }) += 1;
            }
        }
    }
    assert!(accepted > 100 && rejected > 1_000, "{accepted} accepted, {rejected} rejected");
}
