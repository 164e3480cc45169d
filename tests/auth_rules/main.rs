//! The authorisation rules, rule by rule, and against `ruma-state-res` on generated rooms of every version.
//!
//! `VERGE_SEED` is the first seed of those rooms. A failure names the version and the seed, and shows as few of the room's
//! events as it takes.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../common/mod.rs"]
mod common;
mod rules;
mod scene;

use common::{
    generator::{Numbers, Random},
    rooms::{Room, RoomEvent, try_event_of},
    ruma::{self, RumaEvent},
    setting, shrink,
};
use ruma_state_res::auth_types_for_event;
use verge::matrix::{
    auth_events, auth_rules,
    event::Event,
    identifiers::EventId,
    json::{self, Value},
    room_version::RoomVersion,
};

const ROOMS_OF_A_VERSION: u64 = 60;

#[test]
fn generated_rooms_agree_with_ruma() {
    let mut counts = Counts::default();
    let first = setting("VERGE_SEED", 0);
    for version in RoomVersion::all() {
        for seed in first..first + ROOMS_OF_A_VERSION {
            let room = Room::generate(version, seed, 60, Numbers::Plain);
            if let Err(disagreement) = compare(&room, &mut counts) {
                shrink::report(room, disagreement, |room| compare(room, &mut Counts::default()).err());
            }
        }
    }
    let Counts { compared, accepted, rejected } = counts;
    println!("{compared} events compared, {accepted} accepted, {rejected} rejected");
    assert!(accepted > compared / 4 && rejected > compared / 10);
}

/// What was compared.
#[derive(Default)]
struct Counts {
    compared: usize,
    accepted: usize,
    rejected: usize,
}

/// Compares the verdict on each event of a room, and the auth events selected for it.
fn compare(room: &Room, counts: &mut Counts) -> Result<(), String> {
    let oracle = Oracle::new(room);
    for (position, event) in room.events.iter().enumerate() {
        let Some(theirs) = oracle.verdict(position) else { continue };
        let ours = verdict(room, event);
        counts.compared += 1;
        *(if ours.is_ok() { &mut counts.accepted } else { &mut counts.rejected }) += 1;
        let is_known = |reason: &String| {
            ours.is_ok() && ruma::is_too_strict(&event.event, &room.with_events(&event.state), reason)
        };
        if ours.is_ok() != theirs.is_ok() && !theirs.as_ref().is_err_and(is_known) {
            return Err(format!("event {position}: {ours:?} here, {theirs:?} in ruma"));
        }
        oracle.compare_selection(position)?;
    }
    Ok(())
}

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

/// The event with something else in one place of its content.
fn with_junk(event: &Event, random: &mut Random) -> Event {
    let junk = ["null", "true", "-1", "1e9", "\"\"", "\"@\"", r#""\u0000:""#, "[]", "[[{}]]", "{}", "{\"@a:b\":{}}"];
    let junk = json::parse(random.pick(&junk).as_bytes()).unwrap();
    let mut object = event.object().clone();
    spoil(object.get_mut("content").unwrap(), junk, random);
    if object.get("content").and_then(Value::as_object).is_none() {
        object.insert("content", json::Object::new());
    }
    try_event_of(object, event.version()).unwrap_or_else(|_| event.clone())
}

/// Puts the junk in the place of a value, or of one somewhere within it.
fn spoil(value: &mut Value, junk: Value, random: &mut Random) {
    if let Value::Object(object) = value
        && !object.is_empty()
        && random.percent(70)
    {
        let key = object.keys().nth(random.below(object.len())).unwrap().to_owned();
        return spoil(object.get_mut(&key).unwrap(), junk, random);
    }
    *value = junk;
}

fn verdict(room: &Room, event: &RoomEvent) -> Result<(), String> {
    auth_rules::check_auth_event_list(&event.event, |id| room.auth_event(id)).map_err(|error| error.to_string())?;
    auth_rules::check(&event.event, &room.with_events(&event.state)).map_err(|error| error.to_string())
}

struct Oracle<'a> {
    room: &'a Room,
    rules: ruma_common::room_version_rules::RoomVersionRules,
    events: Vec<Option<RumaEvent>>,
}

impl<'a> Oracle<'a> {
    fn new(room: &'a Room) -> Self {
        let events = room.events.iter().map(|event| RumaEvent::new(&event.event, event.rejected)).collect();
        Self { room, rules: ruma::rules(room.version), events }
    }

    /// `None` where ruma does not read the event, or one that it needs.
    fn verdict(&self, position: usize) -> Option<Result<(), String>> {
        let event = self.events[position].as_ref()?;
        let state = &self.room.events[position].state;
        let find = |id: &str| self.events[self.room.position(&EventId::parse(id).ok()?)?].as_ref();
        let of_state = |event_type: &str, state_key: &str| {
            self.events[*state.get(&(event_type.to_owned(), state_key.to_owned()))?].as_ref()
        };
        Some(ruma::verdict(self.room.version, event, find, of_state))
    }

    fn compare_selection(&self, position: usize) -> Result<(), String> {
        let Some(event) = &self.events[position] else { return Ok(()) };
        let ours = &self.room.events[position].event;
        let theirs = auth_types_for_event(
            ruma_state_res::Event::event_type(event),
            ruma_state_res::Event::sender(event),
            ours.state_key(),
            ruma_state_res::Event::content(event),
            &self.rules.authorization,
        );
        // Content that ruma does not read selects nothing there.
        let Ok(mut theirs) = theirs.map(|keys| keys.into_iter().map(|(t, k)| (t.to_string(), k)).collect::<Vec<_>>())
        else {
            return Ok(());
        };
        let selected = auth_events::selection(
            ours.version(),
            ours.event_type(),
            ours.sender().as_str(),
            ours.state_key(),
            ours.content(),
        );
        let mut selected: Vec<_> = selected.into_iter().map(|(t, k)| (t.to_owned(), k.to_owned())).collect();
        selected.sort();
        theirs.sort();
        match selected == theirs {
            true => Ok(()),
            false => Err(format!("event {position} selects {selected:?} here, {theirs:?} in ruma")),
        }
    }
}
