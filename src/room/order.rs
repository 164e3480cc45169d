//! The order in which events that came together are judged.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
};

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

/// Events, each once, such that each comes after those of its previous and auth events that are among them; else in the order given.
/// Events cannot cite each other in a circle, because an event's id is a hash of what it cites; in room versions 1 and 2,
/// where it is not, what stands in a circle comes last, in the order given.
pub(super) fn in_order(events: Vec<Event>) -> Vec<Event> {
    let mut by_id = whole_copies(&events);
    let (mut order, mut added) = (CitedFirst::default(), HashSet::new());
    for event in events.iter().filter(|event| added.insert(event.event_id())) {
        let cited = event.prev_events().iter().chain(event.auth_events());
        order.add(event.event_id(), cited.filter(|id| by_id.contains_key(*id)));
    }
    let mut ids: Vec<&EventId> = order.by_ref().collect();
    ids.extend(order.left());
    ids.into_iter().filter_map(|id| by_id.remove(id).cloned()).collect()
}

/// Puts what cites each other in order, one at a time: each after all that it cites, and else in the order in which they were
/// added. What cites something that is never added, or stands in a circle, does not come.
pub(super) struct CitedFirst<K> {
    /// Those that wait, with their places in the order given, and how many of those that they cite have not come.
    waiting: HashMap<K, (usize, usize)>,
    citing: HashMap<K, Vec<K>>,
    ready: BTreeMap<usize, K>,
    added: usize,
}

impl<K> Default for CitedFirst<K> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), citing: HashMap::new(), ready: BTreeMap::new(), added: 0 }
    }
}

impl<K: Copy + Eq + Hash> CitedFirst<K> {
    /// Adds what is there once, with all that it is to come after.
    pub(super) fn add(&mut self, item: K, cited: impl Iterator<Item = K>) {
        let cited: HashSet<K> = cited.collect();
        let place = self.added;
        self.added += 1;
        if cited.is_empty() {
            self.ready.insert(place, item);
            return;
        }
        self.waiting.insert(item, (place, cited.len()));
        for cited in cited {
            self.citing.entry(cited).or_default().push(item);
        }
    }

    /// What has not come, in the order in which it was added.
    fn left(self) -> Vec<K> {
        let mut left: Vec<(usize, K)> = self.waiting.into_iter().map(|(item, (place, _))| (place, item)).collect();
        left.sort_unstable_by_key(|(place, _)| *place);
        left.into_iter().map(|(_, item)| item).collect()
    }
}

impl<K: Copy + Eq + Hash> Iterator for CitedFirst<K> {
    type Item = K;

    fn next(&mut self) -> Option<K> {
        let (_, item) = self.ready.pop_first()?;
        for citing in self.citing.remove(&item).unwrap_or_default() {
            let Some((place, lacking)) = self.waiting.get_mut(&citing) else { continue };
            *lacking -= 1;
            if *lacking == 0 {
                self.ready.insert(*place, citing);
                self.waiting.remove(&citing);
            }
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::CitedFirst;

    fn order(cited: &[(u8, &[u8])]) -> (Vec<u8>, Vec<u8>) {
        let mut order = CitedFirst::default();
        for (item, cited) in cited {
            order.add(*item, cited.iter().copied());
        }
        (order.by_ref().collect(), order.left())
    }

    #[test]
    fn each_comes_after_what_it_cites_and_else_as_it_was_added() {
        let (found, left) = order(&[(4, &[3, 1]), (9, &[]), (1, &[2, 2]), (3, &[]), (2, &[]), (5, &[1])]);
        assert_eq!((found, left), (vec![9, 3, 2, 1, 4, 5], vec![]));
    }

    #[test]
    fn what_stands_in_a_circle_or_cites_what_is_not_there_is_left() {
        let (found, left) = order(&[(6, &[7]), (1, &[2]), (2, &[1]), (3, &[]), (5, &[2]), (4, &[3])]);
        assert_eq!((found, left), (vec![3, 4], vec![6, 1, 2, 5]));
    }
}
