//! How often a resolution asks, and what is too much for it, where a fork has long chains of auth events.

use serde_json::json;
use verge::matrix::{
    event::Event,
    identifiers::RoomId,
    room_version::RoomVersion,
    state_resolution::{Resolution, ResolutionError, Resolved, StateEvent, Step, Supplied, memory::Memory},
    state_trie::{NodeId, StateKeyHash},
};

const ALICE: &str = "@alice:a.example";
const BOB: &str = "@bob:b.example";

/// A room of Alice's, and what Bob does in it.
struct Chains {
    version: &'static RoomVersion,
    room_id: RoomId,
    memory: Memory,
    count: usize,
    first: Vec<(&'static str, &'static str, String)>,
}

impl Chains {
    fn new(version: &str) -> Self {
        let version = RoomVersion::get(version).unwrap();
        let create = format!("${:0>43}", "create");
        let room_id = if version.room_id_is_create_hash { create.replace('$', "!") } else { "!room:a.example".into() };
        let room_id = RoomId::parse(&room_id).unwrap();
        let mut room = Self { version, room_id, memory: Memory::default(), count: 0, first: Vec::new() };
        for (event_type, state_key, sender, content) in [
            ("m.room.create", "", ALICE, json!({ "creator": ALICE })),
            ("m.room.member", ALICE, ALICE, json!({ "membership": "join" })),
            ("m.room.power_levels", "", ALICE, json!({})),
            ("m.room.join_rules", "", ALICE, json!({ "join_rule": "public" })),
            ("m.room.member", BOB, BOB, json!({ "membership": "join" })),
        ] {
            let cited: Vec<String> = room.first.iter().map(|(_, _, id)| id.clone()).collect();
            let id = room.make(event_type, state_key, sender, &content, &cited);
            room.first.push((event_type, state_key, id));
        }
        room
    }

    #[expect(clippy::disallowed_methods, reason = "nothing here is checked")]
    fn make(
        &mut self,
        event_type: &str,
        state_key: &str,
        sender: &str,
        content: &serde_json::Value,
        cited: &[String],
    ) -> String {
        self.count += 1;
        let is_create = event_type == "m.room.create";
        let id = if is_create { format!("${:0>43}", "create") } else { format!("${:0>43}", self.count) };
        let implied = |id: &&String| !(self.version.room_id_is_create_hash && id.ends_with("create"));
        let mut event = json!({
            "type": event_type, "state_key": state_key, "sender": sender, "content": content, "depth": self.count,
            "origin_server_ts": self.count, "auth_events": cited.iter().filter(implied).collect::<Vec<_>>(),
            "prev_events": [], "hashes": {}, "signatures": {},
        });
        if !(is_create && self.version.room_id_is_create_hash) {
            event["room_id"] = json!(self.room_id.as_str());
        }
        let event = Event::from_store(&id, &event.to_string(), self.version).unwrap();
        self.memory.insert(StateEvent { event, rejected: false });
        id
    }

    fn id(&self, event_type: &str, state_key: &str) -> String {
        let found = self.first.iter().find(|(t, k, _)| *t == event_type && *k == state_key);
        found.unwrap().2.clone()
    }

    /// A profile change of Bob's that cites `cited` for his membership.
    fn profile(&mut self, cited: &str) -> String {
        let content = json!({ "membership": "join", "displayname": self.count.to_string() });
        let cited = [
            self.id("m.room.create", ""),
            self.id("m.room.power_levels", ""),
            self.id("m.room.join_rules", ""),
            cited.to_owned(),
        ];
        self.make("m.room.member", BOB, BOB, &content, &cited)
    }

    fn chain(&mut self, from: &str, length: usize) -> Vec<String> {
        let mut last = from.to_owned();
        (0..length)
            .map(|_| {
                last = self.profile(&last);
                last.clone()
            })
            .collect()
    }

    fn state(&mut self, bob: &str) -> NodeId {
        self.snapshot(&[("m.room.member", BOB, bob)])
    }

    /// The first state with these instead.
    fn snapshot(&mut self, changed: &[(&str, &str, &str)]) -> NodeId {
        let entries = self.first.iter().map(|(event_type, state_key, id)| {
            let changed = changed.iter().find(|(t, k, _)| t == event_type && k == state_key);
            (StateKeyHash::new(event_type, state_key), changed.map_or(id.as_str(), |(_, _, id)| *id).into())
        });
        self.memory.snapshot(entries)
    }

    /// What Bob's membership resolves to, and how many round trips it takes.
    fn resolve(&mut self, memberships: [&str; 2], outlines: bool) -> Result<(String, usize), ResolutionError> {
        let roots = memberships.map(|id| self.state(id));
        let (resolved, trips, _) = self.drive(&roots, outlines)?;
        self.memory.add_nodes(&resolved.nodes);
        let state = self.memory.state(resolved.root);
        let bob = state.into_iter().find(|known| known.event.is_state("m.room.member", BOB)).unwrap();
        Ok((bob.event.event_id().to_string(), trips))
    }

    /// What snapshots resolve to, how many round trips it takes, and how many citations it is told of.
    fn drive(&self, roots: &[NodeId], outlines: bool) -> Result<(Resolved, usize, usize), ResolutionError> {
        let mut resolution = Resolution::new(self.version, &self.room_id, roots);
        let mut supplied = Supplied::default();
        let (mut trips, mut citations) = (0, 0);
        loop {
            match resolution.step(supplied)? {
                Step::Done(resolved) => return Ok((resolved, trips, citations)),
                Step::Need(need) if outlines => supplied = self.memory.supply_outlines(&need),
                Step::Need(need) => supplied = self.memory.supply(&need),
            }
            trips += 1;
            citations += supplied.citations.len();
        }
    }
}

#[test]
fn the_number_of_round_trips_does_not_grow_with_a_chain() {
    for version in ["10", "11", "12"] {
        for length in [1, 10, 100, 1_000, 5_000] {
            for outlines in [false, true] {
                let mut room = Chains::new(version);
                let join = room.id("m.room.member", BOB);
                let end = room.chain(&join, length).pop().unwrap();
                let other = room.profile(&join);
                let (bob, trips) = room.resolve([&end, &other], outlines).unwrap();
                assert_eq!(bob, other, "the latest of one sender");
                assert!(trips <= 9, "version {version}: {trips} for {length}");
            }
        }
    }
}

/// Whether an event is in the shared auth chain is asked of what cites it, which may be a long chain too, of a fork that
/// nobody knows of any more.
#[test]
fn nor_with_chains_that_lost_before() {
    for version in ["10", "12"] {
        for length in [10, 300, 3_000] {
            let mut room = Chains::new(version);
            let join = room.id("m.room.member", BOB);
            let ours = room.chain(&join, length);
            for from in [&join, &ours[length / 2], &ours[length - 2]] {
                room.chain(from, length);
            }
            let other = room.profile(&join);
            let (bob, trips) = room.resolve([ours.last().unwrap(), &other], true).unwrap();
            assert_eq!(bob, other);
            assert!(trips <= 9, "version {version}: {trips} for {length}");
        }
    }
}

/// That the power levels from before a fork are in the shared auth chain, one page of what cites them says: all members do.
#[test]
fn a_fork_in_which_power_levels_change_twice_is_told_of_few_citations() {
    for version in ["10", "11", "12"] {
        let mut room = Chains::new(version);
        let [create, levels, rules] =
            ["m.room.create", "m.room.power_levels", "m.room.join_rules"].map(|of| room.id(of, ""));
        let (alice, bob) = (room.id("m.room.member", ALICE), room.id("m.room.member", BOB));
        for number in 0..500 {
            let user: &'static str = format!("@user{number}:b.example").leak();
            let cited = [create.clone(), levels.clone(), rules.clone()];
            let id = room.make("m.room.member", user, user, &json!({ "membership": "join" }), &cited);
            room.first.push(("m.room.member", user, id));
        }
        let roots = [1, 2].map(|fork| {
            let mut change = |users_default: i64, before: &str| {
                let cited = [create.clone(), before.to_owned(), alice.clone()];
                room.make("m.room.power_levels", "", ALICE, &json!({ "users_default": users_default }), &cited)
            };
            let first = change(fork, &levels);
            let last = change(fork + 2, &first);
            let cited = [create.clone(), first, rules.clone(), bob.clone()];
            let changed = room.make("m.room.member", BOB, BOB, &json!({ "membership": "join" }), &cited);
            room.snapshot(&[("m.room.power_levels", "", &last), ("m.room.member", BOB, &changed)])
        });
        for outlines in [false, true] {
            let (_, trips, citations) = room.drive(&roots, outlines).unwrap();
            assert!(citations <= 100, "version {version}: {citations} citations");
            assert!(trips <= 7, "version {version}: {trips} round trips");
        }
    }
}

/// What would take more memory than there is is not read.
#[test]
fn a_chain_without_end_is_too_large() {
    for version in ["11", "12"] {
        let mut room = Chains::new(version);
        let join = room.id("m.room.member", BOB);
        let end = room.chain(&join, 100_000).pop().unwrap();
        let other = room.profile(&join);
        assert_eq!(room.resolve([&end, &other], true).unwrap_err(), ResolutionError::TooLarge, "version {version}");
    }
}
