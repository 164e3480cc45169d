//! Rooms from a seed: forked and merged graphs of what people do (`drafts`).
//!
//! The events are built by the real hash and ID functions and are unsigned. In half of the rooms the state before an
//! event with several prev events is resolved; in the others one of the candidates for each key that differs is drawn.
//! What the rooms serve for is to compare what implementations decide given a state, and any state will do; it need not
//! be a fair one.

use std::rc::Rc;

use ed25519_dalek::SigningKey;
use serde_json::json;
use verge::matrix::{
    auth_events,
    event::{Event, MAX_PREV_EVENTS},
    json::{Object, Value},
    room_version::{EventIds, RoomVersion},
};

use super::{
    drafts::{Draft, LEVELS, NAMED_LEVELS},
    rooms::{Room, RoomEvent, State, USERS, event_of},
};

/// What a generated room is like.
#[derive(Clone, Copy)]
pub struct Options {
    /// Which numbers stand in it.
    pub numbers: Numbers,
    /// Whether it always has join rules and power levels, and those name every level, so that what an absent one counts as is
    /// never in question.
    pub complete: bool,
    /// How its events stand to each other.
    pub graph: Graph,
}

/// Which numbers stand in power levels and in the content of other events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// Integers, and in power levels strings, where the version has them.
    Plain,
    /// Floats too, and integers of any size, where the version has them.
    Floats,
}

/// How the events of a room stand to each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Graph {
    /// They fork and merge all the time.
    Usual,
    /// They mostly follow one another.
    Deep,
    /// They mostly stand side by side, and up to 20 branches meet at once.
    Wide,
}

/// A small generator of random numbers (SplitMix64): the same on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// True in this many of a hundred cases.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

const SERVERS: [&str; 3] = ["a.example", "b.example", "c.example:8448"];

impl Room {
    /// The room of version `version` and at most `length` events that this seed gives.
    pub fn generate(version: &'static RoomVersion, seed: u64, length: usize, numbers: Numbers) -> Self {
        Self::generate_with(version, seed, length, Options { numbers, complete: false, graph: Graph::Usual })
    }

    /// As [`Room::generate`], of a certain kind.
    pub fn generate_with(version: &'static RoomVersion, seed: u64, length: usize, options: Options) -> Self {
        let mut generator = Generator::new(version, seed, options);
        for _ in generator.room.events.len()..length {
            generator.step();
        }
        generator.room
    }
}

pub(super) struct Generator {
    pub(super) random: Random,
    pub(super) room: Room,
    room_id: String,
    /// Positions of events that nothing follows yet.
    tips: Vec<usize>,
    /// The first event at which the room may fork. What comes before is as an honest server makes it.
    first_fork: Option<usize>,
    /// The identity server's key, and one that nobody trusts.
    pub(super) keys: [SigningKey; 2],
    pub(super) options: Options,
}

impl Generator {
    fn new(version: &'static RoomVersion, seed: u64, options: Options) -> Self {
        let mut random = Random::new(seed ^ version.id.parse::<u64>().unwrap() << 56);
        let keys = [random.next(), random.next()].map(|half| {
            let mut bytes = [7; 32];
            bytes[..8].copy_from_slice(&half.to_le_bytes());
            SigningKey::from_bytes(&bytes)
        });
        let room = Room::new(version, seed, random.percent(50));
        let room_id = "!room:a.example".to_owned();
        let mut generator = Self { random, room, room_id, tips: Vec::new(), first_fork: None, keys, options };
        generator.start();
        generator.first_fork = Some(if options.complete { generator.room.events.len() - 1 } else { 0 });
        generator
    }

    fn start(&mut self) {
        let creator = USERS[0];
        let version = self.room.version;
        let mut content = json!({ "room_version": version.id });
        if !version.creator_is_sender {
            content["creator"] = json!(creator);
        }
        if version.privileged_creators && self.random.percent(40) {
            content["additional_creators"] = json!([self.random.pick(&USERS), "@nobody:d.example"]);
        }
        if self.random.percent(10) {
            content["m.federate"] = json!(self.random.percent(30));
        }
        self.add(Draft::new("m.room.create", creator, Some(""), content), &[]);
        if version.room_id_is_create_hash {
            self.room_id = self.room.events[0].event.room_id().to_string();
        }
        self.add_to_tips(Draft::new("m.room.member", creator, Some(creator), json!({ "membership": "join" })));
        let complete = self.options.complete;
        if complete || self.random.percent(90) {
            let mut users = json!({ USERS[1]: 50 });
            if !version.privileged_creators {
                users[creator] = json!(100);
            }
            let mut content = json!({ "users": users, "events": { "m.room.name": 50 } });
            for name in NAMED_LEVELS {
                if complete || self.random.percent(50) {
                    content[name] = json!(if name.ends_with("s_default") { 0 } else { *self.random.pick(&LEVELS) });
                }
            }
            self.add_to_tips(Draft::new("m.room.power_levels", creator, Some(""), content));
        }
        if complete || self.random.percent(90) {
            let content = self.join_rules();
            self.add_to_tips(Draft::new("m.room.join_rules", creator, Some(""), content));
        }
    }

    fn step(&mut self) {
        let prev_events = self.prev_events();
        let states = self.room.states_after(&prev_events);
        let state = self.merge(&states);
        let mut draft = self.draft(&state);
        self.spare_remote_targets(&mut draft);
        self.push(draft, &prev_events, states, state);
    }

    fn add_to_tips(&mut self, draft: Draft) {
        let tips = self.tips.clone();
        self.add(draft, &tips);
    }

    fn add(&mut self, draft: Draft, prev_events: &[usize]) {
        let states = self.room.states_after(prev_events);
        let state = self.merge(&states);
        self.push(draft, prev_events, states, state);
    }

    /// Where the next event stands: mostly after one or all of the tips, at times after an old event, which forks.
    fn prev_events(&mut self) -> Vec<usize> {
        let (forks, behind, keeps_one, most) = match self.options.graph {
            Graph::Usual => (20, 12, 60, 5),
            Graph::Deep => (5, 12, 60, 5),
            Graph::Wide => (50, 60, 95, MAX_PREV_EVENTS),
        };
        if self.random.percent(forks) {
            let first = self.first_fork.unwrap_or_default();
            let recent = (self.room.events.len() - first).min(behind);
            let position = self.room.events.len() - 1 - self.random.below(recent);
            if !self.room.events[position].rejected {
                return vec![position];
            }
        }
        let mut prev_events = self.tips.clone();
        if self.random.percent(keeps_one) {
            let kept = *self.random.pick(&prev_events);
            prev_events = vec![kept];
        }
        prev_events.truncate(most);
        prev_events
    }

    fn merge(&mut self, states: &[Rc<State>]) -> Rc<State> {
        self.room.merge(states, |_, _, _| self.random.percent(50))
    }

    fn push(&mut self, draft: Draft, prev_events: &[usize], states: Vec<Rc<State>>, state: Rc<State>) {
        let mut event = self.build(&draft, prev_events, &state);
        // A redaction without `redacts` is a case of its own in the tests of the rules.
        let is_redactable = match draft.event_type {
            "m.room.redaction" => false,
            "m.room.power_levels" => !self.options.complete,
            _ => !self.room.events.is_empty(),
        };
        if self.random.percent(3) && is_redactable {
            event = event.redacted();
        }
        let Some(position) = self.room.add(event, states, state) else { return };
        if !self.room.events[position].rejected {
            self.tips.retain(|tip| !prev_events.contains(tip));
            self.tips.push(position);
        }
    }

    fn build(&mut self, draft: &Draft, prev_events: &[usize], state: &State) -> Event {
        let version = self.room.version;
        let keys = auth_events::selection(
            version,
            draft.event_type,
            &draft.sender,
            draft.state_key.as_deref(),
            &draft.content,
        );
        let selected = keys.iter().filter_map(|(t, k)| state.get(&((*t).to_owned(), (*k).to_owned())));
        let mut auth: Vec<usize> = selected.copied().collect();
        let mut unknown = None;
        let honest = self.options.complete && self.first_fork.is_none();
        if self.random.percent(6) && !auth.is_empty() && !honest {
            match self.random.below(6) {
                0 => drop(auth.remove(self.random.below(auth.len()))),
                1 => auth.push(*self.random.pick(&auth)),
                2 => auth.push(self.random.below(self.room.events.len())),
                3 => unknown = Some(reference_to_nothing(version)),
                4 => unknown = Some(self.random.pick(&self.room.foreign).reference()),
                _ => {
                    // Another event of the same key: an old one, or one of a fork.
                    let replaced = self.random.below(auth.len());
                    let old = self.room.events[auth[replaced]].event.clone();
                    let same_key = |event: &RoomEvent| {
                        event.event.event_type() == old.event_type() && event.event.state_key() == old.state_key()
                    };
                    let others: Vec<_> =
                        (0..self.room.events.len()).filter(|i| same_key(&self.room.events[*i])).collect();
                    auth[replaced] = *self.random.pick(&others);
                }
            }
        }
        let references = |positions: &[usize]| -> Vec<Value> {
            positions.iter().map(|position| self.room.events[*position].event.reference()).collect()
        };
        let mut depth =
            prev_events.iter().map(|position| self.room.events[*position].event.depth()).max().unwrap_or(0) + 1;
        if self.random.percent(2) {
            depth = self.random.below(100) as i64;
        }
        let timestamp = 1_700_000_000_000 + self.room.events.len() as i64 / 4 + self.random.below(3) as i64;
        let auth_events: Vec<Value> = references(&auth).into_iter().chain(unknown).collect();
        let prev_events = references(prev_events);
        let mut event = Object::new();
        if self.random.percent(5) {
            // What earlier servers added, and what is in no version of the spec.
            let members = [
                ("origin", json!(self.random.pick(&SERVERS))),
                ("membership", json!("join")),
                ("prev_state", json!([])),
                ("replaces_state", json!("$replaced")),
                ("org.example.unknown", json!({ "b": [null, true], "a": "\u{2028}\"\\" })),
            ];
            let (member, value) = self.random.pick(&members).clone();
            event.insert(member, Value::from(value));
        }
        event.insert("type", draft.event_type);
        event.insert("sender", draft.sender.as_str());
        event.insert("content", self.with_more(draft.content.clone()));
        event.insert("depth", depth);
        event.insert("origin_server_ts", timestamp);
        event.insert("prev_events", prev_events);
        event.insert("auth_events", auth_events);
        if let Some(state_key) = &draft.state_key {
            event.insert("state_key", state_key.as_str());
        }
        if let Some(redacts) = &draft.redacts {
            event.insert("redacts", redacts.as_str());
        }
        if !(version.room_id_is_create_hash && draft.event_type == "m.room.create") {
            event.insert("room_id", self.room_id.as_str());
        }
        if version.event_ids == EventIds::Given {
            let own = draft.sender.split_once(':').unwrap().1;
            let server = if self.random.percent(90) { own } else { *self.random.pick(&SERVERS) };
            // None that there is: an event that cites one would seem to cite itself.
            let is_taken = |id: &str| self.room.events.iter().any(|known| known.event.event_id().as_str() == id);
            let id = loop {
                let id = format!("${:04x}:{server}", self.random.below(0x10000));
                if !is_taken(&id) {
                    break id;
                }
            };
            event.insert("event_id", id);
        }
        event_of(event, version)
    }

    /// The content, at times with a member more that no rule asks for.
    fn with_more(&mut self, mut content: Object) -> Object {
        if self.random.percent(10) {
            let number = match self.unusual_numbers() {
                true => self.number(),
                false => Value::from(self.random.next() as i64 >> 10),
            };
            content.insert("x.number", Value::Array(vec![number]));
        }
        if self.random.percent(5) {
            content.insert("reason", "because\n");
        }
        content
    }
}

/// How an event cites one that does not exist.
fn reference_to_nothing(version: &RoomVersion) -> Value {
    match version.event_ids {
        EventIds::Given => json!(["$nothing:a.example", { "sha256": "AAAA" }]).into(),
        EventIds::HashBase64 | EventIds::HashUrlSafe => json!(format!("${}", "A".repeat(43))).into(),
    }
}
