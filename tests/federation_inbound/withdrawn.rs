//! What was rejected, or is, and stands in a state that another server claims: it counts for nothing there, and is taken out.

use http::Method;
use serde_json::{Value, json};
use verge::room::Draft;

use crate::{
    Scene,
    common::{
        homeserver::object,
        peer::{encode, event_id, request},
    },
    missing::claims,
    scene,
};

/// Who may come into a room.
pub(crate) fn admits(scene: &mut Scene, rule: &str) {
    let draft = Draft::state("m.room.join_rules", "", object(json!({ "join_rule": rule })));
    let event = scene.a.send(&scene.world, &scene.room, &scene.alice, draft);
    scene.world.settle();
    let key = ("m.room.join_rules".to_owned(), String::new());
    scene.theirs.state.insert(key, serde_json::from_str(event.json()).unwrap());
    scene.theirs.advance(event.event_id().as_str());
}

/// A membership of Dave's, by himself and the state as Bob's server has it.
fn of_dave(scene: &Scene, mut fields: Value) -> (String, Value) {
    let dave = scene.peer.user("dave");
    scene.world.advance(1);
    fields["type"] = json!("m.room.member");
    fields["state_key"] = json!(dave);
    let mut draft = scene.theirs.draft(scene.world.now_ms(), &dave, fields);
    let rules = scene.theirs.state_id("m.room.join_rules", "").unwrap();
    if draft["content"]["membership"] == "join" {
        draft["auth_events"].as_array_mut().unwrap().push(json!(rules));
    }
    scene.peer.sign(&scene.theirs.version, draft)
}

/// Dave has joined, and left; then the room was closed, and opened again. In between he came back against the rules, by an event whose
/// auth events allow it: that is `back`, which follows `previous`, or else the closing.
pub(crate) struct Returned {
    pub(crate) scene: Scene,
    dave: String,
    join: (String, Value),
    pub(crate) back: (String, Value),
}

impl Returned {
    fn new(mut scene: Scene, previous: impl FnOnce(&Scene) -> Option<String>) -> Self {
        let dave = scene.peer.user("dave");
        let key = ("m.room.member".to_owned(), dave.clone());
        let join = of_dave(&scene, json!({ "content": { "membership": "join" } }));
        scene.theirs.state.insert(key.clone(), join.1.clone());
        scene.theirs.advance(&join.0);
        let leave = of_dave(&scene, json!({ "content": { "membership": "leave" } }));
        scene.theirs.state.insert(key, leave.1.clone());
        scene.theirs.advance(&leave.0);
        assert_eq!(scene.peer.send(&scene.a, "0", &[join.1.clone(), leave.1]).0, 200);
        let open = scene.theirs.state.clone();
        admits(&mut scene, "invite");
        let closed = std::mem::replace(&mut scene.theirs.state, open);
        let previous = previous(&scene).unwrap_or_else(|| scene.theirs.last.clone());
        let back = of_dave(&scene, json!({ "content": { "membership": "join" }, "prev_events": [previous] }));
        scene.theirs.state = closed;
        Self { scene, dave, join, back }
    }

    /// Dave's coming back follows a message that comes only later: that is returned too.
    pub(crate) fn after_what_is_lacking(scene: Scene) -> ((String, Value), Self) {
        let mut before = None;
        let returned = Self::new(scene, |scene| {
            let said = scene.theirs.clone().say(&scene.peer, &scene.bob, "before it");
            Some(before.insert(said).0.clone())
        });
        (before.unwrap(), returned)
    }

    /// The state before an edge, in which Dave is back, as Bob's server claims it; what Bob says behind that edge is accepted.
    pub(crate) fn claims_that_dave_is_back(&mut self) -> (String, Value) {
        let scene = &mut self.scene;
        admits(scene, "public");
        let version = scene.theirs.version.clone();
        let of_others = scene.theirs.state.iter().filter(|((_, key), _)| *key != self.dave);
        let mut state: Vec<String> = of_others.map(|(_, event)| event_id(&version, event)).collect();
        state.push(self.back.0.clone());
        let mut say = |text: &str| scene.theirs.say(&scene.peer, &scene.bob, text);
        let [_, edge, said] = ["lost", "the edge", "after it"].map(&mut say);
        claims(&scene.peer, &[&edge, &self.back], state);
        self.receives("said", &said);
        assert!(self.scene.a.shows(&said.0), "{:#?}", self.scene.world.logs());
        said
    }

    pub(crate) fn receives(&self, txn_id: &str, event: &(String, Value)) -> Value {
        let (status, answer) = self.scene.peer.send(&self.scene.a, txn_id, std::slice::from_ref(&event.1));
        assert_eq!(status, 200);
        self.scene.world.settle();
        answer["pdus"][&event.0].clone()
    }

    /// What Dave says at the end of the room, which cites the membership that he had at first.
    fn dave_says(&mut self, text: &str) -> (String, Value) {
        let scene = &mut self.scene;
        let key = ("m.room.member".to_owned(), self.dave.clone());
        let now = scene.theirs.state.insert(key.clone(), self.join.1.clone()).unwrap();
        let said = scene.theirs.say(&scene.peer, &self.dave, text);
        scene.theirs.state.insert(key, now);
        said
    }

    /// Whether Bob's server is told that Dave is back, and how many are said to be in the room.
    fn bobs_server_is_told(&self) -> (bool, String) {
        let scene = &self.scene;
        let said = scene.a.say(&scene.world, &scene.room, &scene.alice, "who is here?");
        (self.is_back_before(said.event_id().as_str()), scene.a.database.rows("SELECT joined FROM rooms")[0][0].clone())
    }

    /// Whether the state before the event, as Bob's server is told it, holds that Dave is back.
    fn is_back_before(&self, event_id: &str) -> bool {
        let Self { scene, back, .. } = self;
        let (room, id) = (encode(scene.room.as_str()), encode(event_id));
        let (status, state) =
            scene.peer.get(&scene.a, &format!("/_matrix/federation/v1/state_ids/{room}?event_id={id}"));
        assert_eq!(status, 200, "{state}");
        state["pdu_ids"].as_array().unwrap().contains(&json!(back.0))
    }

    pub(crate) fn membership(&self) -> Option<String> {
        self.scene.a.membership(&self.scene.world, &self.scene.room, &self.dave)
    }
}

#[test]
fn a_claimed_state_is_taken_over_without_what_was_rejected() {
    for version in ["10", "12"] {
        let mut returned = Returned::new(scene(version), |_| None);
        let result = returned.receives("back", &returned.back);
        assert!(result["error"].is_string());
        let (said, _) = returned.claims_that_dave_is_back();
        assert_eq!(returned.membership().as_deref(), Some("leave"), "version {version}");
        assert!(!returned.is_back_before(&said), "version {version}");
        let event = returned.dave_says("I am back");
        let result = returned.receives("dave", &event);
        assert!(result["error"].is_string(), "version {version}: {result}");
        assert!(!returned.scene.a.shows(&event.0));
        assert_eq!(returned.membership().as_deref(), Some("leave"));
    }
}

/// What came before the event comes only when the state that holds it was taken over.
#[test]
fn what_is_rejected_when_it_stands_in_a_state_counts_for_nothing_there() {
    for version in ["10", "12"] {
        let (before, mut returned) = Returned::after_what_is_lacking(scene(version));
        returned.claims_that_dave_is_back();
        assert_eq!(returned.membership().as_deref(), Some("join"), "version {version}");
        assert_eq!(returned.receives("before", &before), json!({}));
        let result = returned.receives("back", &returned.back);
        assert!(result["error"].is_string(), "version {version}: {:#?}", returned.scene.world.logs());
        let event = returned.dave_says("I am back");
        let result = returned.receives("dave", &event);
        assert!(result["error"].is_string(), "version {version}: {result}");
        assert!(!returned.scene.a.shows(&event.0));
        assert_ne!(returned.membership().as_deref(), Some("join"));
    }
}

/// As above: neither those who use the room nor other servers are told that Dave is in it, but that he has left.
#[test]
fn what_is_rejected_when_it_stands_in_a_state_is_shown_in_it_to_nobody() {
    for version in ["10", "12"] {
        let (before, mut returned) = Returned::after_what_is_lacking(scene(version));
        returned.claims_that_dave_is_back();
        assert_eq!(returned.receives("before", &before), json!({}));
        assert!(returned.receives("back", &returned.back)["error"].is_string());
        let Returned { scene, dave, .. } = &returned;
        (0..3).for_each(|_| scene.an_hour_passes());
        let client = |method, path: String, token: &str, body: &Value| {
            let authorization = format!("Bearer {token}");
            let authorizations: &[&str] = if token.is_empty() { &[] } else { &[&authorization] };
            let body = if method == Method::GET { String::new() } else { body.to_string() };
            let request = request(method, &format!("/_matrix/client/v3{path}"), authorizations, body);
            let (status, answer) = scene.peer.ask(&scene.a, request);
            assert_eq!(status, 200, "{path}: {answer}");
            answer
        };
        let zoe = json!({ "username": "zoe", "password": "secret", "auth": { "type": "m.login.dummy" } });
        let zoe = client(Method::POST, "/register".to_owned(), "", &zoe);
        let (token, room) = (zoe["access_token"].as_str().unwrap(), encode(scene.room.as_str()));
        client(Method::POST, format!("/rooms/{room}/join"), token, &json!({}));
        let joined = client(Method::GET, format!("/rooms/{room}/joined_members"), token, &Value::Null);
        let (is_told, count) = returned.bobs_server_is_told();
        let found = (joined["joined"].get(dave).is_some(), is_told, count.as_str());
        // Alice, Bob, Zoe.
        assert_eq!(found, (false, false, "3"), "version {version}");
        // It is looked for no more.
        assert!(scene.a.database.rows("SELECT 1 FROM rejected_events WHERE may_stand").is_empty());
        // What stood there before.
        assert_eq!(returned.membership().as_deref(), Some("leave"), "version {version}");
    }
}

/// The state in which it stands was claimed when others were asked again, before an event that follows from what is claimed before it.
#[test]
fn what_is_rejected_is_taken_out_of_what_was_claimed_beside_other_states() {
    for version in ["10", "12"] {
        let (before, mut returned) = Returned::after_what_is_lacking(scene(version));
        admits(&mut returned.scene, "public");
        let scene = &mut returned.scene;
        let id = |event: &Value| event_id(version, event);
        let state: Vec<String> = scene.theirs.state.values().map(id).collect();
        let of_others = scene.theirs.state.iter().filter(|((_, key), _)| *key != returned.dave);
        let with_dave: Vec<String> = of_others.map(|(_, event)| id(event)).chain([returned.back.0.clone()]).collect();
        let bob = scene.bob.clone();
        let [_, edge, said] = ["lost", "the edge", "after it"].map(|text| scene.says(&bob, text));
        claims(&scene.peer, &[&edge], state);
        returned.receives("said", &said);
        // What follows has a verdict that rests on the claim, so that others are asked about what it cites.
        let event = returned.dave_says("I am back");
        returned.receives("dave", &event);
        assert!(!returned.is_back_before(&said.0));
        claims(&returned.scene.peer, &[&edge, &returned.back], with_dave);
        (0..2).for_each(|_| returned.scene.an_hour_passes());
        assert!(returned.is_back_before(&said.0), "version {version}: {:#?}", returned.scene.world.logs());

        assert_eq!(returned.receives("before", &before), json!({}));
        assert!(returned.receives("back", &returned.back)["error"].is_string());
        (0..3).for_each(|_| returned.scene.an_hour_passes());
        assert!(!returned.is_back_before(&said.0), "version {version}");
        assert_eq!(returned.bobs_server_is_told(), (false, "2".to_owned()), "version {version}");
        assert_eq!(returned.membership().as_deref(), Some("leave"), "version {version}");
        assert!(returned.scene.a.database.rows("SELECT 1 FROM rejected_events WHERE may_stand").is_empty());
    }
}

/// What is rejected in the very moment in which the state is taken over, as we hold what came before it.
#[test]
fn what_is_rejected_as_it_comes_with_a_claim_is_taken_out_of_the_state() {
    for version in ["10", "12"] {
        let mut returned = Returned::new(scene(version), |_| None);
        let (said, _) = returned.claims_that_dave_is_back();
        let scene = &returned.scene;
        assert_eq!(scene.a.database.rows("SELECT 1 FROM rejected_events").len(), 1, "version {version}");
        (0..3).for_each(|_| scene.an_hour_passes());
        assert!(!returned.is_back_before(&said), "version {version}");
        // Nor does it stop the room where nothing is remembered of it any more.
        scene.a.database.rows("DELETE FROM rejected_events");
        assert_eq!(returned.membership().as_deref(), Some("leave"), "version {version}");
        let event = returned.dave_says("I am back");
        let result = returned.receives("dave", &event);
        assert!(result["error"].is_string(), "version {version}: {result}");
    }
}

/// It was rejected by a server that did not yet note that it may stand in states, and whose database is migrated.
#[test]
fn what_was_rejected_before_that_was_noted_is_taken_out_of_states_too() {
    for version in ["10", "12"] {
        let (before, mut returned) = Returned::after_what_is_lacking(scene(version));
        returned.claims_that_dave_is_back();
        assert_eq!(returned.receives("before", &before), json!({}));
        let database = returned.scene.a.database.clone();
        let older = "CREATE TRIGGER older AFTER UPDATE OF may_stand ON rejected_events WHEN NEW.may_stand BEGIN \
            UPDATE rejected_events SET may_stand = 0 WHERE event_id = NEW.event_id; END";
        database.rows(older);
        assert!(returned.receives("back", &returned.back)["error"].is_string());
        let settle = |returned: &Returned| (0..3).for_each(|_| returned.scene.an_hour_passes());
        settle(&returned);
        assert_eq!(returned.bobs_server_is_told(), (true, "3".to_owned()), "version {version}");
        // Nobody was to look again.
        ["DROP TRIGGER older", "DELETE FROM unsettled_rooms"].iter().for_each(|sql| drop(database.rows(sql)));

        let migration = include_str!("../../migrations/0058_rejected_that_stood.sql");
        migration.split_terminator(";\n").for_each(|sql| drop(database.rows(sql)));
        settle(&returned);
        assert_eq!(returned.bobs_server_is_told(), (false, "2".to_owned()), "version {version}");
        assert_eq!(returned.membership().as_deref(), Some("leave"), "version {version}");
        assert!(database.rows("SELECT 1 FROM rejected_events WHERE may_stand").is_empty());
    }
}
