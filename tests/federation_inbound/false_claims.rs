//! What a server claims of a room's state may leave out what it dislikes, and what its events cite may be known to nobody. What
//! we know of the state ourselves counts beside the claim.

use std::rc::Rc;

use http::StatusCode;
use serde_json::{Value, json};
use verge::{room::Draft, router::json_response};

use crate::{
    Scene,
    common::{
        homeserver::object,
        peer::{Peer, PeerRoom, event_id},
    },
    extremities::empower,
    scene,
};

/// An event and its ID.
type Known = (String, Value);

/// Mallory, of a server of her own, has joined the room; Bob may ban.
struct Attack {
    scene: Scene,
    mallory: Rc<Peer>,
    user: String,
    /// As she joined it.
    hers: PeerRoom,
}

impl Attack {
    fn new(version: &str) -> Self {
        let mut scene = scene(version);
        empower(&mut scene);
        let mallory = Peer::new(&scene.world, "mallory.example");
        let user = mallory.user("mallory");
        let hers = mallory.join(&scene.a, scene.room.as_str(), &user);
        let key = ("m.room.member".to_owned(), user.clone());
        scene.theirs.state.insert(key.clone(), hers.state[&key].clone());
        scene.theirs.advance(&hers.last);
        scene.world.settle();
        claims(&scene.peer, None);
        let old: Vec<Value> = hers.state.values().cloned().collect();
        claims(&mallory, Some((version.to_owned(), old)));
        Self { scene, mallory, user, hers }
    }

    /// Bob bans Mallory.
    fn ban(&mut self) -> Known {
        let scene = &mut self.scene;
        let ban = json!({ "type": "m.room.member", "state_key": self.user, "content": { "membership": "ban" } });
        let mut ban = scene.theirs.draft(scene.world.now_ms(), &scene.bob, ban);
        let target = scene.theirs.state_id("m.room.member", &self.user).unwrap();
        ban["auth_events"].as_array_mut().unwrap().push(json!(target));
        let (id, event) = scene.peer.sign(&self.hers.version, ban);
        scene.theirs.advance(&id);
        (id, event)
    }

    /// An event of Mallory's that cites these as previous events.
    fn makes(&self, mut fields: Value, previous: &[&Known]) -> Known {
        fields["prev_events"] = previous.iter().map(|(id, _)| json!(id)).collect();
        let draft = self.hers.draft(self.scene.world.now_ms(), &self.user, fields);
        self.mallory.sign(&self.hers.version, draft)
    }

    fn says(&self, text: &str, previous: &[&Known]) -> Known {
        self.makes(json!({ "type": "m.room.message", "content": { "msgtype": "m.text", "body": text } }), previous)
    }

    /// What nobody will ever see.
    fn withheld(&self) -> Known {
        let join = (self.hers.last.clone(), Value::Null);
        self.says("withheld", &[&join])
    }

    fn receives(&self, from: &Peer, event: &Known) {
        let txn_id = &event.0[1..9];
        assert_eq!(from.send(&self.scene.a, txn_id, std::slice::from_ref(&event.1)).0, 200);
        self.scene.world.settle();
    }

    /// Our server asks all whom it can for what is lacking.
    fn hours_pass(&self) {
        for _ in 0..4 {
            self.scene.world.advance(3_600_000);
            self.scene.world.run(self.scene.a.scheduled());
            self.scene.world.settle();
        }
    }

    fn membership(&self) -> Option<String> {
        self.scene.a.membership(&self.scene.world, &self.scene.room, &self.user)
    }

    fn shows(&self, event: &Known) -> bool {
        self.scene.a.shows(&event.0)
    }

    /// The IDs of the current state events of this type.
    fn state(&self, event_type: &str) -> Vec<String> {
        let state = self.scene.a.state(&self.scene.world, &self.scene.room);
        state.into_iter().filter(|(of_type, ..)| of_type == event_type).map(|(.., id)| id).collect()
    }

    /// Mallory is banned, whatever else she sends and whoever of the others speaks.
    fn stays_banned(&mut self) {
        assert_eq!(self.membership().as_deref(), Some("ban"));
        self.hours_pass();
        assert_eq!(self.membership().as_deref(), Some("ban"));
        let scene = &self.scene;
        scene.a.say(&scene.world, &scene.room, &scene.alice, "good riddance");
        self.hours_pass();
        assert_eq!(self.membership().as_deref(), Some("ban"));
    }
}

/// The peer gives no event from now on, and says that the state before each is this one, if any.
fn claims(peer: &Peer, state: Option<(String, Vec<Value>)>) {
    peer.answers(move |request| {
        let path = request.uri().path();
        let of_state = |body: &dyn Fn(&str, &[Value]) -> Value| {
            let (version, events) = state.as_ref()?;
            Some(json_response(StatusCode::OK, &body(version, events)))
        };
        let ids = |version: &str, events: &[Value]| -> Vec<String> {
            events.iter().map(|event| event_id(version, event)).collect()
        };
        let answer = if path.contains("/get_missing_events/") {
            Some(json_response(StatusCode::OK, &json!({ "events": [] })))
        } else if path.contains("/event_auth/") {
            of_state(&|_, events| json!({ "auth_chain": events }))
        } else if path.contains("/state_ids/") {
            of_state(&|version, events| json!({ "pdu_ids": ids(version, events), "auth_chain_ids": [] }))
        } else if path.contains("/v1/state/") {
            of_state(&|_, events| json!({ "pdus": events, "auth_chain": [] }))
        } else {
            None
        };
        let not_found = json!({ "errcode": "M_NOT_FOUND", "error": "?" });
        let is_asked = path.contains("/_matrix/federation/v1/");
        answer.or_else(|| is_asked.then(|| json_response(StatusCode::NOT_FOUND, &not_found)))
    });
}

#[test]
fn a_ban_that_an_event_cites_is_not_claimed_away() {
    for version in ["10", "12"] {
        let mut attack = Attack::new(version);
        let (ban, withheld) = (attack.ban(), attack.withheld());
        attack.receives(&attack.scene.peer, &ban);
        assert_eq!(attack.membership().as_deref(), Some("ban"));
        let first = attack.says("I am back", &[&ban, &withheld]);
        attack.receives(&attack.mallory, &first);
        attack.hours_pass();
        let second = attack.says("for good", &[&first]);
        attack.receives(&attack.mallory, &second);
        attack.hours_pass();
        assert!(!attack.shows(&first) && !attack.shows(&second), "version {version}");
        attack.stays_banned();
        assert!(!attack.shows(&first) && !attack.shows(&second));
    }
}

/// What Mallory sends cites the ban, and comes before it.
#[test]
fn a_ban_that_comes_after_what_cites_it_counts() {
    for version in ["10", "12"] {
        let mut attack = Attack::new(version);
        let (ban, withheld) = (attack.ban(), attack.withheld());
        let first = attack.says("you cannot ban me", &[&ban, &withheld]);
        attack.receives(&attack.mallory, &first);
        attack.hours_pass();
        // Nobody knows better yet.
        assert!(attack.shows(&first), "{:#?}", attack.scene.world.logs());
        attack.receives(&attack.scene.peer, &ban);
        assert_eq!(attack.membership().as_deref(), Some("ban"), "version {version}");
        for previous in [vec![&first], vec![&first, &ban], vec![&first, &withheld], vec![&ban, &withheld]] {
            let next = attack.says("I am back", &previous);
            attack.receives(&attack.mallory, &next);
            attack.hours_pass();
            assert!(!attack.shows(&next), "version {version}, {} cited", previous.len());
            assert_eq!(attack.membership().as_deref(), Some("ban"), "version {version}, {} cited", previous.len());
        }
        attack.stays_banned();
    }
}

/// Between what Mallory says and the ban is an event of hers that the rules forbid, or one that is soft-failed: what cites that one
/// takes the place of what it cites.
#[test]
fn a_ban_is_not_claimed_away_through_what_is_not_shown() {
    for (version, forbidden) in [("10", true), ("12", true), ("10", false), ("12", false)] {
        let mut attack = Attack::new(version);
        let (ban, withheld) = (attack.ban(), attack.withheld());
        let between = match forbidden {
            true => {
                let name = json!({ "type": "m.room.name", "state_key": "", "content": { "name": "mine" } });
                attack.makes(name, &[&ban, &withheld])
            }
            false => attack.says("between", &[&ban, &withheld]),
        };
        if !forbidden {
            // Mallory leaves, so that what she says is soft-failed. Of two memberships that differ the later one counts.
            attack.scene.world.advance(1);
            let leave =
                json!({ "type": "m.room.member", "state_key": attack.user, "content": { "membership": "leave" } });
            let join = (attack.hers.last.clone(), Value::Null);
            let leave = attack.makes(leave, &[&join]);
            attack.receives(&attack.mallory, &leave);
        }
        attack.receives(&attack.mallory, &between);
        attack.hours_pass();
        assert!(!attack.shows(&between));
        attack.receives(&attack.scene.peer, &ban);
        assert_eq!(attack.membership().as_deref(), Some("ban"), "version {version}");
        let next = attack.says("I am back", &[&between]);
        attack.receives(&attack.mallory, &next);
        attack.hours_pass();
        assert!(!attack.shows(&next), "version {version}, forbidden: {forbidden}");
        attack.stays_banned();
    }
}

/// Alice takes from Mallory the power that she had.
#[test]
fn lost_power_is_not_claimed_back() {
    for version in ["10", "12"] {
        let mut attack = Attack::new(version);
        let scene = &mut attack.scene;
        let levels = |mallory: i64| {
            let mut users = json!({ &scene.bob: 50, &attack.user: mallory });
            if version != "12" {
                users[scene.alice.as_str()] = json!(100);
            }
            json!({ "users": users })
        };
        let send = |content: Value| {
            let draft = Draft::state("m.room.power_levels", "", object(content));
            scene.a.send(&scene.world, &scene.room, &scene.alice, draft)
        };
        let given = send(levels(50));
        let old: Value = serde_json::from_str(given.json()).unwrap();
        let taken = send(levels(0));
        scene.world.settle();
        attack.hers.state.insert(("m.room.power_levels".to_owned(), String::new()), old);
        let state: Vec<Value> = attack.hers.state.values().cloned().collect();
        claims(&attack.mallory, Some((version.to_owned(), state)));
        let taken: Known = (taken.event_id().to_string(), Value::Null);
        let named = attack.state("m.room.name");
        let name = json!({ "type": "m.room.name", "state_key": "", "content": { "name": "mine" } });
        let mine = attack.makes(name, &[&taken, &attack.withheld()]);
        attack.receives(&attack.mallory, &mine);
        attack.hours_pass();
        assert!(!attack.shows(&mine), "version {version}");
        assert_eq!(attack.state("m.room.power_levels"), std::slice::from_ref(&taken.0));
        assert_eq!(attack.state("m.room.name"), named);
    }
}
