//! A small room to try one event in, with ruma's and Synapse's opinion beside ours.

use std::{
    ops::RangeInclusive,
    sync::{Mutex, OnceLock},
};

use ruma_state_res::{check_state_dependent_auth_rules, check_state_independent_auth_rules};
use serde_json::{Value as Json, json};
use verge::matrix::{
    auth_rules::{self, AuthError, AuthEvent},
    event::Event,
    identifiers::EventId,
    json::{Object, Value},
    room_version::{EventIds, RoomVersion},
};

use crate::common::{
    rooms::event_of,
    ruma::{self, RumaEvent},
    synapse::Synapse,
};

pub const ALICE: &str = "@alice:a.example";
pub const BOB: &str = "@bob:a.example";
pub const CAROL: &str = "@carol:b.example";
pub const DAVE: &str = "@dave:b.example";
pub const SERVER_A: &str = "a.example";

/// The versions of a range.
pub fn versions(range: RangeInclusive<usize>) -> impl Iterator<Item = &'static RoomVersion> {
    range.map(|number| RoomVersion::get(&number.to_string()).unwrap())
}

/// The state of a room: created by Alice, who has joined, as have Bob, with power 50, and Carol. Dave has not.
#[derive(Clone)]
pub struct Scene {
    version: &'static RoomVersion,
    state: Vec<Event>,
    ruma_reads: bool,
    ruma_differs: bool,
    synapse_differs: bool,
}

/// The one Synapse that all tests ask.
fn synapse() -> Option<&'static Mutex<Synapse>> {
    static SYNAPSE: OnceLock<Option<Mutex<Synapse>>> = OnceLock::new();
    SYNAPSE.get_or_init(|| Synapse::start().map(Mutex::new)).as_ref()
}

impl Scene {
    pub fn new(version: &'static RoomVersion) -> Self {
        let mut content = json!({ "room_version": version.id });
        if !version.creator_is_sender {
            content["creator"] = json!(ALICE);
        }
        Self::created_with(version, content)
    }

    /// The room with this content in its create event.
    pub fn created_with(version: &'static RoomVersion, create: Json) -> Self {
        let scene = Self { version, state: Vec::new(), ruma_reads: true, ruma_differs: false, synapse_differs: false };
        let mut levels = json!({ "users": { ALICE: 100, BOB: 50 }, "invite": 10, "users_default": 10 });
        if version.privileged_creators {
            levels["users"] = json!({ BOB: 50 });
        }
        scene
            .with("m.room.create", "", ALICE, create)
            .member(ALICE, "join")
            .member(BOB, "join")
            .member(CAROL, "join")
            .with("m.room.power_levels", "", ALICE, levels)
            .join_rule("invite")
    }

    /// The room after one more state event.
    pub fn with(mut self, event_type: &str, state_key: &str, sender: &str, content: Json) -> Self {
        let event = self.event(event_type, sender, Some(state_key), content);
        self.state.retain(|old| !old.is_state(event_type, state_key));
        self.state.push(event);
        self
    }

    pub fn without(mut self, event_type: &str, state_key: &str) -> Self {
        self.state.retain(|old| !old.is_state(event_type, state_key));
        self
    }

    pub fn member(self, user: &str, membership: &str) -> Self {
        self.with("m.room.member", user, user, json!({ "membership": membership }))
    }

    pub fn join_rule(self, rule: &str) -> Self {
        self.with("m.room.join_rules", "", ALICE, json!({ "join_rule": rule }))
    }

    /// The room with this property of its power levels.
    pub fn level(self, property: &str, value: Json) -> Self {
        let mut content = self.power_levels();
        content.insert(property, value);
        let content = serde_json::from_str(&content.to_text()).unwrap();
        self.with("m.room.power_levels", "", ALICE, content)
    }

    pub fn power_levels(&self) -> Object {
        self.get("m.room.power_levels", "").unwrap().content().clone()
    }

    /// The spec decides against ruma in what is asked next.
    pub fn where_ruma_differs(mut self) -> Self {
        self.ruma_differs = true;
        self
    }

    /// What is asked next is not shown to ruma, whose numbers end at 2^53 and have no fraction.
    pub fn without_ruma(mut self) -> Self {
        self.ruma_reads = false;
        self
    }

    /// The spec decides against Synapse in what is asked next.
    pub fn where_synapse_differs(mut self) -> Self {
        self.synapse_differs = true;
        self
    }

    pub fn get(&self, event_type: &str, state_key: &str) -> Option<&Event> {
        self.state.iter().find(|event| event.is_state(event_type, state_key))
    }

    pub fn events(&self) -> &[Event] {
        &self.state
    }

    pub fn create_id(&self) -> &str {
        self.get("m.room.create", "").unwrap().event_id().as_str()
    }

    /// An event of the room.
    pub fn event(&self, event_type: &str, sender: &str, state_key: Option<&str>, content: Json) -> Event {
        self.event_with(event_type, sender, state_key, content, json!({}))
    }

    /// An event of the room with these members, which replace others.
    pub fn event_with(
        &self,
        event_type: &str,
        sender: &str,
        state_key: Option<&str>,
        content: Json,
        members: Json,
    ) -> Event {
        let create = self.state.first();
        let mut event = json!({
            "type": event_type, "sender": sender, "content": content, "depth": 5, "origin_server_ts": 5,
            "prev_events": [], "auth_events": [],
        });
        if event_type != "m.room.create" {
            event["prev_events"] = self.references(&["$prev:a.example"]);
        }
        match create {
            Some(create) => event["room_id"] = json!(create.room_id()),
            None if !self.version.room_id_is_create_hash => event["room_id"] = json!("!room:a.example"),
            None => {}
        }
        if let Some(state_key) = state_key {
            event["state_key"] = json!(state_key);
        }
        if self.version.event_ids == EventIds::Given {
            let key = format!("{event_type}{}", state_key.unwrap_or_default());
            let local: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
            event["event_id"] = json!(format!("${local}:{}", sender.split_once(':').unwrap().1));
        }
        for (name, value) in members.as_object().unwrap() {
            event[name] = value.clone();
        }
        event_of(Value::from(event).into_object().unwrap(), self.version)
    }

    /// Event IDs as `prev_events` and `auth_events` hold them.
    pub fn references(&self, ids: &[&str]) -> Json {
        let reference = |id: &&str| match self.version.event_ids {
            EventIds::Given => json!([id, { "sha256": "AAAA" }]),
            _ => json!(id),
        };
        ids.iter().map(reference).collect()
    }

    /// What the state says of an event, here and in ruma and Synapse, which agree unless they are said to differ.
    pub fn judge(&self, event: &Event) -> Result<(), AuthError> {
        let verdict = auth_rules::check(event, self.state.as_slice());
        if let Some(theirs) = self.ruma_reads.then(|| self.ruma(event)).flatten() {
            let agrees = theirs.is_ok() == verdict.is_ok();
            assert!(agrees != self.ruma_differs, "{}: {verdict:?}, {theirs:?} in ruma: {}", self.version, event.json());
        }
        if let Some(theirs) = self.synapse(event) {
            let agrees = theirs.is_ok() == verdict.is_ok();
            assert!(
                agrees != self.synapse_differs,
                "{}: {verdict:?}, {theirs:?} in Synapse: {}",
                self.version,
                event.json()
            );
        }
        verdict
    }

    fn synapse(&self, event: &Event) -> Option<Result<(), String>> {
        let mut events: Vec<_> =
            self.state.iter().map(|event| json!({ "json": event.json(), "rejected": false, "state": null })).collect();
        let position = events.len();
        let state: Vec<usize> = (0..position).collect();
        events.push(json!({ "json": event.json(), "rejected": false, "state": state }));
        let request = json!({ "version": self.version.id, "events": events, "resolve": [], "pdus": [] });
        let answer = synapse()?.lock().unwrap_or_else(std::sync::PoisonError::into_inner).ask(&request);
        // The rules of create events are all state-independent there.
        let rules = if event.event_type() == "m.room.create" { "independent" } else { "dependent" };
        Some(answer.refusal(position, rules).map_or(Ok(()), |reason| Err(reason.to_owned())))
    }

    fn ruma(&self, event: &Event) -> Option<Result<(), String>> {
        let rules = ruma::rules(self.version).authorization;
        if event.event_type() == "m.room.create" {
            return Some(check_state_independent_auth_rules(&rules, RumaEvent::new(event, false)?, |_| {
                None::<RumaEvent>
            }));
        }
        let find = |event_type: &ruma_events::StateEventType, state_key: &str| {
            let event = self.get(&event_type.to_string(), state_key)?;
            Some(RumaEvent::new(event, false).unwrap())
        };
        Some(check_state_dependent_auth_rules(&rules, RumaEvent::new(event, false)?, find))
    }

    /// What the rules say of the list `auth_events` of an event, here and in ruma.
    pub fn judge_list(&self, event: &Event, others: &[(Event, bool)]) -> Result<(), AuthError> {
        let find = |id: &EventId| {
            let of_state = self.state.iter().map(|event| (event, false));
            let mut all = others.iter().map(|(event, rejected)| (event, *rejected)).chain(of_state);
            all.find(|(event, _)| event.event_id() == id).map(|(event, rejected)| AuthEvent { event, rejected })
        };
        let verdict = auth_rules::check_auth_event_list(event, find);
        let theirs = check_state_independent_auth_rules(
            &ruma::rules(self.version).authorization,
            RumaEvent::new(event, false).unwrap(),
            |id| {
                let found = find(&EventId::parse(id.as_str()).unwrap())?;
                RumaEvent::new(found.event, found.rejected)
            },
        );
        assert_eq!(verdict.is_ok(), theirs.is_ok(), "{}: {verdict:?}, {theirs:?} in ruma", self.version);
        verdict
    }

    /// The verdict on a state event.
    pub fn state(&self, event_type: &str, sender: &str, state_key: &str, content: Json) -> Result<(), AuthError> {
        self.judge(&self.event(event_type, sender, Some(state_key), content))
    }

    /// The verdict on a message event.
    pub fn message(&self, event_type: &str, sender: &str) -> Result<(), AuthError> {
        self.judge(&self.event(event_type, sender, None, json!({})))
    }

    /// The verdict on a membership event.
    pub fn membership(&self, sender: &str, target: &str, membership: &str) -> Result<(), AuthError> {
        self.state("m.room.member", sender, target, json!({ "membership": membership }))
    }

    /// The verdict on power levels that differ from the room's in one property.
    pub fn change_level(&self, sender: &str, property: &str, value: Json) -> Result<(), AuthError> {
        let mut content = self.power_levels();
        content.insert(property, value);
        self.change_levels(sender, content)
    }

    /// The verdict on power levels.
    pub fn change_levels(&self, sender: &str, content: Object) -> Result<(), AuthError> {
        let mut event = self.event("m.room.power_levels", sender, Some(""), json!({})).object().clone();
        event.insert("content", content);
        self.judge(&event_of(event, self.version))
    }
}
