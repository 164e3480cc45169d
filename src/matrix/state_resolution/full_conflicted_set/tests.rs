#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::json;

use super::super::{Need, Resolution, StateEvent, Step, Supplied, memory::Memory};
use crate::matrix::{
    event::Event,
    identifiers::{EventId, RoomId},
    room_version::{RoomVersion, StateResolution},
    state_trie::{NodeId, StateKeyHash},
};

/// Reproducible numbers without a dependency (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) as usize % limit
    }
}

type Ids = BTreeSet<EventId>;
type State = BTreeMap<(String, String), EventId>;

/// A graph of citations without regard to who may do what, and states that share much and differ in some.
struct Graph {
    version: &'static RoomVersion,
    room_id: RoomId,
    auth_events: HashMap<EventId, Vec<EventId>>,
    memory: Memory,
    states: Vec<State>,
}

impl Graph {
    fn random(version: &'static RoomVersion, seed: u64) -> Self {
        let mut random = Random(seed);
        let room_id = RoomId::parse(&format!("!{:0>43}", 0)).unwrap();
        let mut graph =
            Self { version, room_id, auth_events: HashMap::new(), memory: Memory::default(), states: Vec::new() };
        let size = 20 + random.below(180);
        let users = 3 + random.below(30);
        // Who is cited by very many, so that its citations come in several pages.
        let hub = random.below(size / 4 + 1);
        let mut ids: Vec<EventId> = Vec::new();
        let mut keys: Vec<(String, String)> = Vec::new();
        for number in 0..size {
            let id = EventId::parse(&format!("${:0>43}", (number * 7919) % 100_003)).unwrap();
            let (event_type, state_key) = match random.below(10) {
                0 | 1 => ("m.room.power_levels", String::new()),
                2 => ("m.room.join_rules", String::new()),
                3 => ("m.room.third_party_invite", random.below(3).to_string()),
                _ => ("m.room.member", format!("@user{}:example.org", random.below(users))),
            };
            let mut cited: Vec<EventId> = Vec::new();
            for _ in 0..random.below(4).min(number) {
                // Mostly recent events, as in real rooms.
                let back = if random.below(3) == 0 { number } else { number.min(8) };
                cited.push(ids[number - 1 - random.below(back)].clone());
            }
            if number > hub && random.below(2) == 0 {
                cited.push(ids[hub].clone());
            }
            cited.sort();
            cited.dedup();
            let json = json!({
                "type": event_type, "state_key": state_key, "sender": "@user:example.org", "content": {},
                "room_id": graph.room_id.as_str(), "depth": 1, "origin_server_ts": 1, "prev_events": [],
                "auth_events": cited.iter().map(EventId::as_str).collect::<Vec<_>>(), "hashes": {}, "signatures": {},
            });
            let event = Event::from_store(id.as_str(), &json.to_string(), version).unwrap();
            graph.memory.insert(StateEvent { event, rejected: false });
            graph.auth_events.insert(id.clone(), cited);
            ids.push(id);
            keys.push((event_type.to_owned(), state_key));
        }
        let mut shared = State::new();
        for (number, key) in keys.iter().enumerate() {
            if random.below(3) > 0 {
                shared.insert(key.clone(), ids[number].clone());
            }
        }
        for _ in 0..2 + random.below(3) {
            let mut state = shared.clone();
            for _ in 0..random.below(8) {
                let number = random.below(size);
                match random.below(5) {
                    0 => state.remove(&keys[number]),
                    _ => state.insert(keys[number].clone(), ids[number].clone()),
                };
            }
            graph.states.push(state);
        }
        graph
    }

    /// Events, and all that they stand on.
    fn chain<'a>(&'a self, events: impl IntoIterator<Item = &'a EventId>) -> Ids {
        let mut chain = Ids::new();
        let mut stack: Vec<&EventId> = events.into_iter().collect();
        while let Some(id) = stack.pop() {
            if chain.insert(id.clone()) {
                stack.extend(self.auth_events.get(id).into_iter().flatten());
            }
        }
        chain
    }

    /// Straight from the definitions.
    fn by_definition(&self) -> Ids {
        let keys: BTreeSet<_> = self.states.iter().flat_map(State::keys).collect();
        let mut conflicted = Ids::new();
        for key in keys {
            let values: Vec<Option<&EventId>> = self.states.iter().map(|state| state.get(key)).collect();
            if values.iter().any(|value| *value != values[0]) {
                conflicted.extend(values.into_iter().flatten().cloned());
            }
        }
        let chains: Vec<Ids> = self.states.iter().map(|state| self.chain(state.values())).collect();
        let in_all = |id: &EventId| chains.iter().all(|chain| chain.contains(id));
        let mut set: Ids = chains.iter().flatten().filter(|id| !in_all(id)).cloned().collect();
        if self.version.state_resolution == StateResolution::V2_1 {
            let leads = |id: &EventId| !self.chain([id]).is_disjoint(&conflicted);
            set.extend(self.chain(&conflicted).into_iter().filter(leads));
        }
        set.extend(conflicted);
        set
    }

    fn by_walking(&self, supply: impl Fn(&Memory, &Need) -> Supplied) -> Ids {
        let mut memory = self.memory.clone();
        let mut snapshot = |state: &State| {
            let entry = |((t, k), id): (&(String, String), &EventId)| (StateKeyHash::new(t, k), id.as_str().into());
            memory.snapshot(state.iter().map(entry))
        };
        let roots: Vec<NodeId> = self.states.iter().map(&mut snapshot).collect();
        let mut resolution = Resolution::new(self.version, &self.room_id, &roots);
        let mut supplied = Supplied::default();
        while let Step::Need(need) = resolution.step(supplied).unwrap() {
            supplied = supply(&memory, &need);
        }
        let found = resolution.full_conflicted_set.found.unwrap_or_default();
        found.iter().filter_map(|index| resolution.world.events.event_id(*index)).cloned().collect()
    }
}

#[test]
fn the_walk_finds_what_the_definition_says() {
    let mut found = 0;
    for version in ["11", "12"] {
        for seed in 0..400 {
            let graph = Graph::random(RoomVersion::get(version).unwrap(), seed);
            let expected = graph.by_definition();
            found += expected.len();
            assert_eq!(graph.by_walking(Memory::supply), expected, "version {version} seed {seed}");
            assert_eq!(graph.by_walking(Memory::supply_outlines), expected, "version {version} seed {seed}");
        }
    }
    assert!(found > 8_000, "the graphs are too easy: {found} events in their full conflicted sets");
}
