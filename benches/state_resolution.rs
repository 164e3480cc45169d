//! State resolution beside ruma's, on the same rooms in the same run.
//!
//! A room of many members is forked; each fork changes memberships, settings and some power levels, and bans a few. The
//! snapshots, ruma's state maps, and the index of citations are there before: servers store them. `ruma` is everything
//! that ruma's caller has to do, building auth chains and the conflicted state subgraph included; `ruma, chains given` is
//! its crate alone.
//!

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../tests/state_resolution/by_ruma.rs"]
mod by_ruma;
#[path = "../tests/common/mod.rs"]
mod common;

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use by_ruma::{PlainState, RumaRoom, to_ruma};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use verge::matrix::{
    event::Event,
    identifiers::RoomId,
    room_version::RoomVersion,
    state_resolution::{StateEvent, memory::Memory},
    state_trie::{NodeId, StateKeyHash},
};

fn resolution(criterion: &mut Criterion) {
    for version in ["11", "12"] {
        for size in [1_000, 100_000] {
            let mut room = ForkedRoom::new(version, size);
            for forks in [2, 8] {
                for conflicts in [10, 100, 1_000, 10_000] {
                    // As many as the room can hold.
                    if conflicts > size * forks / 2 {
                        continue;
                    }
                    let case = room.fork(forks, conflicts);
                    let mut group = criterion.benchmark_group(format!("v{version}/{size} events/{forks} forks"));
                    group
                        .sample_size(10)
                        .warm_up_time(Duration::from_millis(200))
                        .measurement_time(Duration::from_secs(1));
                    group.bench_function(BenchmarkId::new("verge", conflicts), |bencher| {
                        bencher
                            .iter(|| black_box(room.memory.resolve(room.version, &room.room_id, &case.roots).unwrap()));
                    });
                    let maps: Vec<_> = case.states.iter().map(to_ruma).collect();
                    let ruma = RumaRoom::new(room.version, room.events.iter().map(|event| (event, false))).unwrap();
                    group.bench_function(BenchmarkId::new("ruma", conflicts), |bencher| {
                        bencher.iter(|| {
                            let chains = ruma.chains(&maps);
                            black_box(ruma.resolve_with(&maps, chains, |set| ruma.subgraph(set)).unwrap())
                        });
                    });
                    let conflicted = case.conflicted();
                    let (chains, subgraph) = (ruma.chains(&maps), ruma.subgraph(&conflicted));
                    group.bench_function(BenchmarkId::new("ruma, chains given", conflicts), |bencher| {
                        bencher.iter_batched(
                            || chains.clone(),
                            |chains| black_box(ruma.resolve_with(&maps, chains, |_| subgraph.clone()).unwrap()),
                            criterion::BatchSize::PerIteration,
                        );
                    });
                    group.finish();
                    let (resolved, trips) = room.memory.resolve(room.version, &room.room_id, &case.roots).unwrap();
                    let theirs = ruma.resolve_with(&maps, chains, |_| subgraph.clone()).unwrap();
                    assert_eq!(
                        room.root_of(theirs.into_iter().map(|((t, k), id)| ((t.to_string(), k), id.to_string()))),
                        resolved.root
                    );
                    println!("{trips} round trips");
                    room.forget_fork();
                }
            }
        }
    }
}

/// A room in one state, and events of its forks.
struct ForkedRoom {
    version: &'static RoomVersion,
    room_id: RoomId,
    memory: Memory,
    /// Without the events of forks.
    before_fork: (Memory, usize),
    events: Vec<Event>,
    state: PlainState,
    members: usize,
    clock: i64,
}

struct Case {
    states: Vec<PlainState>,
    roots: Vec<NodeId>,
}

const CREATOR: &str = "@creator:example.org";
const MODERATORS: usize = 20;

impl ForkedRoom {
    fn new(version: &str, size: usize) -> Self {
        let version = RoomVersion::get(version).unwrap();
        let create_id = format!("${:0>43}", "create");
        let room_id =
            if version.room_id_is_create_hash { create_id.replace('$', "!") } else { "!room:example.org".to_owned() };
        let mut room = Self {
            version,
            room_id: RoomId::parse(&room_id).unwrap(),
            memory: Memory::default(),
            before_fork: (Memory::default(), 0),
            events: Vec::new(),
            state: PlainState::new(),
            members: size - 4,
            clock: 0,
        };
        let mut state = PlainState::new();
        room.send(&mut state, "m.room.create", "", CREATOR, &json!({ "room_version": version.id }));
        room.send(&mut state, "m.room.member", CREATOR, CREATOR, &json!({ "membership": "join" }));
        room.send(&mut state, "m.room.power_levels", "", CREATOR, &room.power_levels(0));
        room.send(&mut state, "m.room.join_rules", "", CREATOR, &json!({ "join_rule": "public" }));
        for member in 0..room.members {
            let user = user(member);
            room.send(&mut state, "m.room.member", &user, &user, &json!({ "membership": "join" }));
        }
        room.state = state;
        room.before_fork = (room.memory.clone(), room.events.len());
        room
    }

    fn power_levels(&self, change: usize) -> Value {
        let mut users: BTreeMap<String, i64> = (0..MODERATORS).map(|moderator| (user(moderator), 50)).collect();
        if !self.version.privileged_creators {
            users.insert(CREATOR.to_owned(), 100);
        }
        json!({ "users": users, "events": { "x.setting": 0 }, "notifications": { "room": change } })
    }

    /// Sends a state event into a state.
    fn send(&mut self, state: &mut PlainState, event_type: &str, state_key: &str, sender: &str, content: &Value) {
        self.clock += 1;
        let id = match event_type {
            "m.room.create" => format!("${:0>43}", "create"),
            _ => format!("${:0>43}", self.clock),
        };
        let content_object = verge::matrix::json::Value::from(content.clone()).into_object().unwrap();
        let selection =
            verge::matrix::auth_events::selection(self.version, event_type, sender, Some(state_key), &content_object);
        let auth_events: Vec<&String> =
            selection.iter().filter_map(|(t, k)| state.get(&((*t).to_owned(), (*k).to_owned()))).collect();
        let mut event = json!({
            "type": event_type, "state_key": state_key, "sender": sender, "content": content, "depth": self.clock,
            "origin_server_ts": self.clock, "auth_events": auth_events, "prev_events": [], "hashes": {}, "signatures": {},
        });
        if !(self.version.room_id_is_create_hash && event_type == "m.room.create") {
            event["room_id"] = json!(self.room_id.as_str());
        }
        let event = Event::from_store(&id, &event.to_string(), self.version).unwrap();
        state.insert((event_type.to_owned(), state_key.to_owned()), id);
        self.memory.insert(StateEvent { event: event.clone(), rejected: false });
        self.events.push(event);
    }

    /// Forks the room; the forks make `conflicts` events together, for the same keys.
    fn fork(&mut self, forks: usize, conflicts: usize) -> Case {
        let mut states = Vec::new();
        for fork in 0..forks {
            let mut state = self.state.clone();
            for change in 0..conflicts / forks {
                let moderator = user((fork + change) % MODERATORS);
                // Beyond the moderators, so that nobody's ban makes all else void.
                let member = user(MODERATORS + change % (self.members - MODERATORS));
                match change % 20 {
                    0 => {
                        let levels = self.power_levels(fork + change + 1);
                        self.send(&mut state, "m.room.power_levels", "", CREATOR, &levels);
                    }
                    1 => self.send(&mut state, "m.room.member", &member, &moderator, &json!({ "membership": "ban" })),
                    2..12 => {
                        let content = json!({ "membership": "join", "displayname": format!("in fork {fork}") });
                        self.send(&mut state, "m.room.member", &member, &member, &content);
                    }
                    _ => self.send(&mut state, "x.setting", &change.to_string(), &moderator, &json!({ "value": fork })),
                }
            }
            states.push(state);
        }
        let roots = states.iter().map(|state| self.snapshot(state)).collect();
        Case { states, roots }
    }

    fn forget_fork(&mut self) {
        self.memory = self.before_fork.0.clone();
        self.events.truncate(self.before_fork.1);
    }

    fn snapshot(&mut self, state: &PlainState) -> NodeId {
        self.memory.snapshot(state.iter().map(|((t, k), id)| (StateKeyHash::new(t, k), id.as_str().into())))
    }

    fn root_of(&mut self, state: impl Iterator<Item = ((String, String), String)>) -> NodeId {
        self.snapshot(&state.collect())
    }
}

impl Case {
    fn conflicted(&self) -> ruma_state_res::StateMap<Vec<ruma_common::OwnedEventId>> {
        let mut values: BTreeMap<&(String, String), Vec<&String>> = BTreeMap::new();
        for (key, id) in self.states.iter().flatten() {
            values.entry(key).or_default().push(id);
        }
        values.retain(|_, ids| ids.len() < self.states.len() || ids.iter().any(|id| id != &ids[0]));
        let parse = |id: &String| id.as_str().try_into().unwrap();
        values
            .into_iter()
            .map(|((t, k), ids)| ((t.as_str().into(), k.clone()), ids.into_iter().map(parse).collect()))
            .collect()
    }
}

fn user(number: usize) -> String {
    format!("@user{number}:example.org")
}

criterion_group!(benches, resolution);
criterion_main!(benches);
