//! Cutting a room in which something goes wrong down to the events that it takes.

use std::{collections::BTreeSet, fmt::Display, ops::Range};

use verge::matrix::{
    event::{Event, MAX_PREV_EVENTS},
    identifiers::EventId,
    json::{Object, Value},
};

use super::rooms::{Room, RoomEvent, State, event_of};

/// Fails with the smallest room that `fails` still says something of. Of `room` it says `failure`.
pub fn report<F: Display>(room: Room, failure: F, fails: impl FnMut(&Room) -> Option<F>) -> ! {
    let length = room.events.len();
    let (room, failure) = shrink(room, failure, fails);
    let line = |event: &RoomEvent| format!("{}{}", if event.rejected { "rejected " } else { "" }, event.event.json());
    let events: Vec<String> = room.events.iter().map(line).collect();
    panic!(
        "version {}, VERGE_SEED={}, {} of {length} events: {failure}\n{}",
        room.version,
        room.seed,
        events.len(),
        events.join("\n")
    );
}

/// How many rooms are tried at most: each may cost an oracle's whole answer.
pub const MAX_TRIES: usize = 2_000;

/// The smallest room that `fails` still says something of, and what it says. Of `room` it says `failure`.
///
/// Delta debugging: runs of events are taken out, long ones first, with all that stands on them or from between it and
/// what they stood on, for as long as the room fails; until there is no single event that could go.
pub fn shrink<F>(room: Room, failure: F, mut fails: impl FnMut(&Room) -> Option<F>) -> (Room, F) {
    let mut smallest = (room, failure);
    let mut tries = MAX_TRIES;
    let mut size = smallest.0.events.len();
    while size > 0 {
        let mut shrunk = false;
        let mut end = smallest.0.events.len();
        // The first event creates the room, and stays.
        while end > 1 {
            let run = end.saturating_sub(size).max(1)..end;
            end = run.start;
            for followers in [Followers::Gone, Followers::Moved] {
                if tries == 0 {
                    return smallest;
                }
                tries -= 1;
                let room = without(&smallest.0, &run, followers);
                if let Some(failure) = fails(&room) {
                    smallest = (room, failure);
                    shrunk = true;
                    break;
                }
            }
        }
        if size > 1 || !shrunk {
            size /= 2;
        }
    }
    smallest
}

/// What becomes of the events that stand on one that is taken out.
#[derive(Clone, Copy, PartialEq)]
enum Followers {
    /// They go too.
    Gone,
    /// They stand on what it stood on.
    Moved,
}

/// The room without these events. The states of what is left, and the verdicts, are made anew.
fn without(room: &Room, removed: &Range<usize>, followers: Followers) -> Room {
    let mut remnant = Remnant {
        old: room,
        room: Room::new(room.version, room.seed, room.resolves()),
        places: Vec::new(),
        ancestors: Vec::new(),
    };
    for position in 0..room.events.len() {
        let gone = removed.contains(&position) || followers == Followers::Gone && remnant.lacks_a_reference(position);
        remnant.take(position, gone);
    }
    remnant.room
}

/// A room that is copied in part.
struct Remnant<'a> {
    old: &'a Room,
    room: Room,
    /// Of each event of the old room what stands in its place.
    places: Vec<Place>,
    /// Of each event of the new room those that it stands on, through whatever is between them.
    ancestors: Vec<BTreeSet<usize>>,
}

/// Positions in the new room.
enum Place {
    /// The event itself.
    Kept(usize),
    /// It was taken out: what it stood on.
    Gone(Vec<usize>),
}

impl Remnant<'_> {
    /// Whether an event of the old room cites one that was taken out.
    fn lacks_a_reference(&self, position: usize) -> bool {
        let event = &self.old.events[position].event;
        let mut cited = event.prev_events().iter().chain(event.auth_events());
        cited.any(|id| self.old.position(id).is_some_and(|cited| matches!(self.places[cited], Place::Gone(_))))
    }

    /// Takes over the next event, or leaves it out.
    fn take(&mut self, position: usize, gone: bool) {
        let prev_events = self.prev_events(position);
        if gone {
            return self.places.push(Place::Gone(prev_events));
        }
        let old = &self.old.events[position];
        let states = self.room.states_after(&prev_events);
        let places = &self.places;
        // Where states are drawn, the draw stays what it was.
        let state =
            self.room.merge(&states, |key, _, other| old.state.get(key).is_some_and(|old| is(&places[*old], other)));
        let event = self.rewritten(&old.event, &prev_events, &state);
        let place = match self.room.add(event, states, state) {
            Some(position) => {
                let mut ancestors: BTreeSet<usize> = prev_events.iter().copied().collect();
                ancestors.extend(prev_events.iter().flat_map(|position| &self.ancestors[*position]));
                self.ancestors.push(ancestors);
                Place::Kept(position)
            }
            None => Place::Gone(prev_events),
        };
        self.places.push(place);
    }

    /// What an event stands on in the new room: none that another one of them stands on already, as in the old room.
    fn prev_events(&self, position: usize) -> Vec<usize> {
        let mut found = Vec::new();
        for id in self.old.events[position].event.prev_events() {
            match &self.places[self.old.position(id).unwrap()] {
                Place::Kept(position) => found.push(*position),
                Place::Gone(positions) => found.extend(positions),
            }
        }
        let mut prev_events: Vec<usize> = Vec::new();
        for position in &found {
            if !prev_events.contains(position) && !found.iter().any(|other| self.ancestors[*other].contains(position)) {
                prev_events.push(*position);
            }
        }
        prev_events.truncate(MAX_PREV_EVENTS);
        prev_events
    }

    /// The event as it refers to the new room. Where an auth event is gone, the one that now has its key is cited.
    fn rewritten(&self, event: &Event, prev_events: &[usize], state: &State) -> Event {
        let now = |position: &usize| &self.room.events[*position].event;
        let cite = |event: &Event| (event.event_id().clone(), event.reference());
        let mut auth_events: Vec<(EventId, Value)> = Vec::new();
        let written = event.object().get("auth_events").and_then(Value::as_array).unwrap();
        for (id, reference) in event.auth_events().iter().zip(written) {
            match self.old.position(id).map(|old| (&self.old.events[old].event, &self.places[old])) {
                Some((_, Place::Kept(position))) => auth_events.push(cite(now(position))),
                Some((old, Place::Gone(_))) => {
                    let key = old.state_key().map(|key| (old.event_type().to_owned(), key.to_owned()));
                    let successor = key.and_then(|key| state.get(&key)).map(now);
                    let successor = successor.filter(|event| !auth_events.iter().any(|(id, _)| id == event.event_id()));
                    auth_events.extend(successor.map(cite));
                }
                // It is not of the room.
                None => auth_events.push((id.clone(), reference.clone())),
            }
        }
        let mut object = event.object().clone();
        let prev_events: Vec<(EventId, Value)> = prev_events.iter().map(now).map(cite).collect();
        for (member, old, new) in
            [("auth_events", event.auth_events(), auth_events), ("prev_events", event.prev_events(), prev_events)]
        {
            if !old.iter().eq(new.iter().map(|(id, _)| id)) {
                object.insert(member, new.into_iter().map(|(_, reference)| reference).collect::<Vec<Value>>());
            }
        }
        if let Some(new) = self.redacts(event) {
            let holder: &mut Object = match event.version().redacts_in_content {
                true => object.object_at("content"),
                false => &mut object,
            };
            holder.insert("redacts", new);
        }
        if object == *event.object() { event.clone() } else { event_of(object, event.version()) }
    }

    /// What the event that `event` redacts is called now, where it is kept.
    fn redacts(&self, event: &Event) -> Option<String> {
        let redacted = event.redacts()?;
        let old = self.old.events.iter().position(|event| event.event.event_id() == redacted)?;
        match self.places.get(old)? {
            Place::Kept(position) => Some(self.room.events[*position].event.event_id().to_string()),
            Place::Gone(_) => None,
        }
    }
}

fn is(place: &Place, position: usize) -> bool {
    matches!(place, Place::Kept(kept) if *kept == position)
}
