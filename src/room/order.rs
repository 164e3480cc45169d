//! The order in which events that came together are judged.

use std::collections::HashSet;

use crate::matrix::{
    event::{Event, whole_copies},
    identifiers::{EventId, RoomId},
};

/// The events of each room, in the order in which they came, each event once, with its content if any copy has it.
pub(super) fn by_room(events: &[Event]) -> Vec<(RoomId, Vec<Event>)> {
    let mut rooms: Vec<(RoomId, Vec<Event>)> = Vec::new();
    let mut whole = whole_copies(events);
    for event in events {
        let Some(event) = whole.remove(event.event_id()) else { continue };
        match rooms.iter_mut().find(|(room_id, _)| room_id == event.room_id()) {
            Some((_, events)) => events.push(event.clone()),
            None => rooms.push((event.room_id().clone(), vec![event.clone()])),
        }
    }
    rooms
}

/// Events such that each comes after those of its previous and auth events that are among them; else in the order given.
/// Events cannot cite each other in a circle, because an event's id is a hash of what it cites; in room versions 1 and 2,
/// where it is not, what stands in a circle keeps the order given.
pub(super) fn in_order(events: Vec<Event>) -> Vec<Event> {
    let mut left: HashSet<EventId> = events.iter().map(|event| event.event_id().clone()).collect();
    let mut waiting = events;
    let mut ordered = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let before = ordered.len();
        let mut still = Vec::new();
        for event in waiting {
            let blocked = event.prev_events().iter().chain(event.auth_events()).any(|id| left.contains(id));
            if blocked {
                still.push(event);
            } else {
                left.remove(event.event_id());
                ordered.push(event);
            }
        }
        if ordered.len() == before {
            ordered.extend(still);
            break;
        }
        waiting = still;
    }
    ordered
}
