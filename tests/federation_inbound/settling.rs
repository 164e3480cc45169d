//! What rests on a claimed state is judged again when the history is held that shows what the state was.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    federation::outbound::{backfill::backfill, membership},
    matrix::{
        identifiers::{EventId, ServerName},
        json::Object,
        state_content::Membership,
    },
    room::Draft,
    router::json_response,
    store::positions::TimelinePos,
};

use crate::{
    Scene,
    common::{
        homeserver::object,
        peer::{Peer, encode, event_id},
    },
    scene,
};

/// An event and its ID.
pub(crate) type Known = (String, Value);

/// Bob's server holds these events, gives of what was between them and ours only what it `remembers` (by `backfill`), and claims
/// before each of them the state with which Bob joined.
pub(crate) fn claims_what_is_old(scene: &Scene, events: &[Known], old: &[Value], remembers: &Rc<Cell<bool>>) {
    let by_id: BTreeMap<String, Value> = events.iter().cloned().collect();
    let version = scene.theirs.version.clone();
    let old_ids: Vec<String> = old.iter().map(|event| event_id(&version, event)).collect();
    let chain: Vec<Value> =
        old.iter().chain(by_id.values().filter(|event| event["state_key"].is_string())).cloned().collect();
    let remembers = Rc::clone(remembers);
    scene.peer.answers(move |request| {
        let target = request.uri().to_string();
        let body = if target.contains("/get_missing_events/") {
            json!({ "events": [] })
        } else if target.contains("/event_auth/") {
            json!({ "auth_chain": chain })
        } else if target.contains("/state_ids/") {
            json!({ "pdu_ids": old_ids, "auth_chain_ids": [] })
        } else if target.contains("/v1/event/") {
            let (_, event) = by_id.iter().find(|(id, _)| target.ends_with(&id[1..]))?;
            json!({ "pdus": [event] })
        } else if target.contains("/backfill/") {
            let mut found: Vec<&Value> = Vec::new();
            let mut waiting: Vec<String> = by_id.keys().filter(|id| target.contains(&id[1..])).cloned().collect();
            while let Some(id) = waiting.pop()
                && remembers.get()
                && found.len() < 100
            {
                let Some(event) = by_id.get(&id).filter(|event| !found.contains(event)) else { continue };
                found.push(event);
                waiting
                    .extend(event["prev_events"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()));
            }
            json!({ "pdus": found })
        } else {
            return None;
        };
        Some(json_response(StatusCode::OK, &body))
    });
}

/// In a gap Dave, of Bob's server, has joined: that server claims before its edge the state in which he had not.
struct Gap {
    scene: Scene,
    bob: String,
    dave: String,
    /// Whether Bob's server gives what is in the gap.
    remembers: Rc<Cell<bool>>,
}

impl Gap {
    fn new(version: &str) -> Self {
        let mut scene = scene(version);
        let (old, remembers) = (scene.state(), Rc::new(Cell::new(false)));
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let events = [scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.says(&bob, "the edge")];
        claims_what_is_old(&scene, &events, &old, &remembers);
        Self { scene, bob, dave, remembers }
    }
}

impl Scene {
    /// A membership event of a user of Bob's server by themselves.
    pub(crate) fn becomes(&mut self, user: &str, membership: &str) -> Known {
        let content = json!({ "membership": membership });
        let draft = self.theirs.draft_member(self.world.now_ms(), user, user, content);
        let (id, event) = self.peer.sign(&self.theirs.version, draft);
        self.theirs.state.insert(("m.room.member".to_owned(), user.to_owned()), event.clone());
        self.theirs.advance(&id);
        (id, event)
    }

    pub(crate) fn says(&mut self, user: &str, text: &str) -> Known {
        self.theirs.say(&self.peer, user, text)
    }

    pub(crate) fn state(&self) -> Vec<Value> {
        self.theirs.state.values().cloned().collect()
    }

    pub(crate) fn receives(&self, txn_id: &str, event: &Known) {
        assert_eq!(self.peer.send(&self.a, txn_id, std::slice::from_ref(&event.1)).0, 200);
        self.world.settle();
    }

    pub(crate) fn an_hour_passes(&self) {
        self.time_passes(3_600_000);
    }

    /// So many milliseconds, after which the scheduled trigger comes.
    pub(crate) fn time_passes(&self, ms: i64) {
        self.world.advance(ms);
        self.world.run(self.a.scheduled());
        self.world.settle();
    }

    /// A user pages back over all gaps.
    pub(crate) fn pages_back(&self) {
        for _ in 0..10 {
            let now = self.world.now_ms();
            let room = self.world.run(self.a.rooms.room(&self.room)).unwrap().unwrap();
            let gap = self
                .world
                .run(self.a.store.newest_gap(&self.room, (TimelinePos::START, TimelinePos::END), now))
                .unwrap();
            let Some(gap) = gap else { break };
            if !self.world.run(backfill(&self.a, &room, &gap, 100)).unwrap() {
                break;
            }
        }
        self.a.settle(&self.room);
        self.world.settle();
    }

    /// Alice leaves; what her membership was before goes to `old`. Returns the ID of the event.
    pub(crate) fn alice_leaves(&mut self, old: &mut Vec<Value>) -> String {
        let leave = Draft::membership(self.alice.as_str(), Membership::Leave, Object::new());
        let leave = self.a.send(&self.world, &self.room, &self.alice, leave);
        self.world.settle();
        let key = ("m.room.member".to_owned(), self.alice.to_string());
        old.extend(self.theirs.state.insert(key, serde_json::from_str(leave.json()).unwrap()));
        leave.event_id().to_string()
    }

    /// Alice sets something of the room, of which Bob's server hears.
    pub(crate) fn alice_sets(&mut self, event_type: &str, content: Value) {
        let event = self.a.send(&self.world, &self.room, &self.alice, Draft::state(event_type, "", object(content)));
        self.world.settle();
        let key = (event_type.to_owned(), String::new());
        self.theirs.state.insert(key, serde_json::from_str(event.json()).unwrap());
        self.theirs.advance(event.event_id().as_str());
    }

    /// Alice joins through Bob's server.
    pub(crate) fn alice_comes_back(&mut self) {
        let via = vec![ServerName::parse("peer.example").unwrap()];
        let joined = membership::join(&self.a, &self.alice, &self.room, via, Object::new());
        self.theirs.advance(self.world.run(joined).unwrap().as_str());
        self.world.settle();
    }

    pub(crate) fn rows(&self, sql: &str) -> usize {
        self.a.database.rows(sql).len()
    }

    pub(crate) fn rests_on_nothing_claimed(&self) {
        for sql in [
            "SELECT 1 FROM events WHERE claimed",
            "SELECT 1 FROM rejected_events WHERE claimed OR provisional",
            "SELECT 1 FROM events WHERE soft_failed",
        ] {
            assert_eq!(self.rows(sql), 0, "{sql}: {:#?}", self.world.logs());
        }
        assert_eq!(self.a.database.wrong_member_counts(), [""; 0]);
        // And nobody looks for more.
        self.an_hour_passes();
        assert_eq!(self.rows("SELECT 1 FROM unsettled_rooms"), 0);
    }
}

/// What Bob says at the end of the gap cites the create event as well, which whoever joined later holds as a part of the state alone.
#[test]
fn what_cites_the_create_event_is_settled_too() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        // As if we had joined the room.
        let create = scene.theirs.state_id("m.room.create", "").unwrap();
        for sql in [
            "DELETE FROM timeline WHERE event_nid = (SELECT event_nid FROM events WHERE event_type = 'm.room.create')",
            "UPDATE events SET outlier = 1, pos = NULL, state_before = NULL, state_after = NULL \
             WHERE event_type = 'm.room.create'",
        ] {
            scene.rows(sql);
        }
        let (old, remembers) = (scene.state(), Rc::new(Cell::new(false)));
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let events = [scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.says(&bob, "the edge")];
        claims_what_is_old(&scene, &events, &old, &remembers);
        let previous = [create.as_str(), &scene.theirs.last];
        let cites = scene.theirs.say_upon(&scene.peer, &bob, "it all began here", &previous);
        scene.theirs.advance(&cites.0);
        scene.receives("1", &cites);
        assert!(scene.a.shows(&cites.0), "version {version}: {:#?}", scene.world.logs());
        let said = scene.says(&dave, "am I heard?");
        scene.receives("2", &said);
        assert!(!scene.a.shows(&said.0));
        remembers.set(true);
        scene.an_hour_passes();
        assert!(scene.a.shows(&said.0), "version {version}: {:#?}", scene.world.logs());
        scene.rests_on_nothing_claimed();
    }
}

/// Dave joins in a gap, and by the claimed state he has not: what he says is rejected, until the gap is filled, which takes
/// several answers and commits.
#[test]
fn a_rejection_by_a_claim_is_taken_back() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let (old, remembers) = (scene.state(), Rc::new(Cell::new(false)));
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let mut events: Vec<Known> = (0..150).map(|i| scene.says(&bob, &format!("{i}"))).collect();
        events.push(scene.becomes(&dave, "join"));
        events.extend((0..80).map(|i| scene.says(&dave, &format!("{i}"))));
        events.push(scene.says(&bob, "the edge"));
        let said = scene.says(&dave, "am I heard?");
        claims_what_is_old(&scene, &events, &old, &remembers);
        scene.receives("1", &said);
        assert!(!scene.a.shows(&said.0));
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE provisional"), 1);
        // Whoever rests on the claim too has the same fate.
        let again = scene.says(&dave, "and now?");
        scene.receives("2", &again);
        assert!(!scene.a.shows(&again.0));
        let meanwhile = scene.says(&bob, "meanwhile");
        scene.receives("3", &meanwhile);
        assert!(scene.a.shows(&meanwhile.0));

        remembers.set(true);
        scene.an_hour_passes();
        for (id, _) in events.iter().chain([&said, &again, &meanwhile]) {
            assert!(scene.a.shows(id), "version {version}: {:#?}", scene.world.logs());
        }
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
        scene.rests_on_nothing_claimed();
        let after = scene.says(&dave, "after it");
        scene.receives("4", &after);
        assert!(scene.a.shows(&after.0));
    }
}

/// Dave joins in a gap, and nobody else speaks after it: the history between our extremity and what he says becomes known.
#[test]
fn who_joined_in_a_gap_is_heard_when_it_is_filled() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let (old, remembers) = (scene.state(), Rc::new(Cell::new(false)));
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let events = [scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.says(&bob, "the edge")];
        let said = scene.says(&dave, "am I heard?");
        claims_what_is_old(&scene, &events, &old, &remembers);
        scene.receives("1", &said);
        assert!(!scene.a.shows(&said.0));
        remembers.set(true);
        scene.an_hour_passes();
        assert!(scene.a.shows(&said.0), "version {version}: {:#?}", scene.world.logs());
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
        scene.rests_on_nothing_claimed();
    }
}

/// As above; of what Dave says an altered copy came first.
#[test]
fn an_altered_copy_that_was_rejected_by_a_claim_gives_way_to_a_good_one() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let (old, remembers) = (scene.state(), Rc::new(Cell::new(false)));
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let mut events = vec![scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.says(&bob, "the edge")];
        let said = scene.says(&dave, "as it was said");
        claims_what_is_old(&scene, &events, &old, &remembers);
        let mut altered = said.clone();
        altered.1["content"]["body"] = json!("altered");
        scene.receives("1", &altered);
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE provisional AND json IS NOT NULL"), 1);

        remembers.set(true);
        events.push(said.clone());
        claims_what_is_old(&scene, &events, &old, &remembers);
        for _ in 0..3 {
            scene.an_hour_passes();
        }
        let event = scene.world.run(scene.a.rooms.event(&EventId::parse(&said.0).unwrap())).unwrap().unwrap();
        assert_eq!(event.event.content().get("body").and_then(|body| body.as_str()), Some("as it was said"));
        assert!(scene.a.shows(&said.0), "version {version}: {:#?}", scene.world.logs());
        scene.rests_on_nothing_claimed();
    }
}

/// Up to room version 5 a depth may be more than the database gives as a number.
#[test]
fn what_is_deeper_than_canonical_json_allows_is_settled_too() {
    let Gap { mut scene, dave, remembers, .. } = Gap::new("10");
    let said = scene.says(&dave, "am I heard?");
    scene.receives("1", &said);
    assert!(!scene.a.shows(&said.0));
    for sql in ["UPDATE events SET depth = depth + (1 << 60)", "UPDATE rejected_events SET depth = depth + (1 << 60)"] {
        scene.rows(sql);
    }
    remembers.set(true);
    scene.an_hour_passes();
    assert!(scene.a.shows(&said.0), "{:#?}", scene.world.logs());
    scene.rests_on_nothing_claimed();
}

/// What a claim alone forbids is kept to be judged again, up to so many bytes; what was more is judged when it comes again.
#[test]
fn a_room_has_so_many_bytes_of_rejections_by_a_claim() {
    let Gap { mut scene, bob, dave, remembers } = Gap::new("12");
    let first = scene.says(&dave, "am I heard?");
    scene.receives("1", &first);
    let long = "x".repeat(60_000);
    let mut said = vec![first];
    for txn_id in ["2", "3"] {
        let more: Vec<Known> = (0..40).map(|n| scene.says(&dave, &format!("{n} {long}"))).collect();
        let pdus: Vec<Value> = more.iter().map(|(_, event)| event.clone()).collect();
        let (_, answer) = scene.peer.send(&scene.a, txn_id, &pdus);
        assert!(more.iter().all(|(id, _)| answer["pdus"][id]["error"].is_string()));
        said.extend(more);
    }
    // Whatever else the room goes on with.
    let meanwhile = scene.says(&bob, "meanwhile");
    scene.receives("4", &meanwhile);
    let bytes = "SELECT SUM(bytes), COALESCE(SUM(length(json)), 0) FROM rejected_events WHERE provisional";
    let bytes = scene.a.database.rows(bytes).remove(0);
    let kept: usize = bytes[0].parse().unwrap();
    assert_eq!(bytes[0], bytes[1]);
    assert!(kept <= 4 * 1024 * 1024 && kept > 4 * 1024 * 1024 - 65_536, "{kept}");
    // That it was rejected is known of each.
    assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE provisional"), said.len());

    let whole = scene.rows("SELECT 1 FROM rejected_events WHERE json IS NOT NULL");
    remembers.set(true);
    scene.an_hour_passes();
    for (n, (id, _)) in said.iter().enumerate() {
        assert_eq!(scene.a.shows(id), n < whole, "{n} of {whole}");
    }
    let rest: Vec<Value> = said[whole..].iter().map(|(_, event)| event.clone()).collect();
    assert_eq!(scene.peer.send(&scene.a, "again", &rest).0, 200);
    scene.world.settle();
    assert!(said.iter().all(|(id, _)| scene.a.shows(id)));
    scene.rests_on_nothing_claimed();
}

/// It comes again as often as would fill what a room has for such.
#[test]
fn a_rejection_by_a_claim_that_comes_again_takes_no_more_room() {
    let Gap { mut scene, dave, remembers, .. } = Gap::new("12");
    let said = scene.says(&dave, &format!("am I heard? {}", "x".repeat(60_000)));
    for number in 0..80 {
        scene.receives(&format!("again{number}"), &said);
    }
    let next = scene.says(&dave, "and now?");
    scene.receives("next", &next);
    assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE provisional AND json IS NOT NULL"), 2);
    remembers.set(true);
    scene.an_hour_passes();
    assert!(scene.a.shows(&said.0) && scene.a.shows(&next.0), "{:#?}", scene.world.logs());
    scene.rests_on_nothing_claimed();
}

/// Anybody in the room may send them again: none of them loses the room that it has.
#[test]
fn a_rejection_by_a_claim_that_comes_again_is_kept_as_before() {
    let Gap { mut scene, dave, remembers, .. } = Gap::new("12");
    let first = scene.says(&dave, "am I heard?");
    scene.receives("first", &first);
    let long = "x".repeat(60_000);
    let said: Vec<Known> = (0..80).map(|n| scene.says(&dave, &format!("{n} {long}"))).collect();
    let pdus: Vec<Value> = said.iter().map(|(_, event)| event.clone()).collect();
    let sends = |txn_id: &str, pdus: &[Value]| assert_eq!(scene.peer.send(&scene.a, txn_id, pdus).0, 200);
    let kept = || {
        let sql = "SELECT event_id FROM rejected_events WHERE provisional AND json IS NOT NULL";
        scene.a.database.rows(sql).into_iter().flatten().collect::<BTreeSet<String>>()
    };
    // So many are kept whole that there is room for no more.
    pdus.chunks(40).enumerate().for_each(|(n, pdus)| sends(&format!("first{n}"), pdus));
    let before = kept();
    assert!((60..75).contains(&before.len()), "{}", before.len());
    // One of them comes as often as would fill it, and then all of them.
    for n in 0..70 {
        sends(&format!("one{n}"), &pdus[..1]);
        assert_eq!(before.difference(&kept()).count(), 0, "of the one that came again nothing is kept");
    }
    pdus.chunks(40).enumerate().for_each(|(n, pdus)| sends(&format!("again{n}"), pdus));
    assert_eq!(before.difference(&kept()).count(), 0, "of all that came again less is kept");
    let bytes = scene.a.database.rows("SELECT SUM(bytes) FROM rejected_events")[0][0].parse::<usize>().unwrap();
    assert!(bytes <= 4 * 1024 * 1024, "{bytes}");

    remembers.set(true);
    scene.an_hour_passes();
    assert!(before.iter().all(|id| scene.a.shows(id)));
}

/// By the claimed state Dave is not in the room, and nothing shows it but the history.
#[test]
fn a_claimed_state_gives_way_to_the_true_one() {
    for version in ["10", "12"] {
        let Gap { mut scene, bob, dave, remembers } = Gap::new(version);
        let said: Vec<Known> = (0..5).map(|i| scene.says(&bob, &format!("{i}"))).collect();
        for (number, said) in said.iter().enumerate() {
            scene.receives(&number.to_string(), said);
            assert!(scene.a.shows(&said.0));
        }
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave), None);
        remembers.set(true);
        scene.pages_back();
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
        scene.rests_on_nothing_claimed();
        let last = scene.a.database.rows("SELECT x.value ->> 0 FROM rooms, json_each(rooms.extremities) AS x");
        assert_eq!(last, [[said[4].0.clone()]]);
    }
}

/// What Dave says cites, besides the edge, what others have gone on from by several events.
#[test]
fn what_is_built_upon_is_no_extremity_again() {
    for between in [0, 1, 2, 5] {
        let mut scene = scene("12");
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let join = scene.becomes(&dave, "join");
        scene.receives("1", &join);
        let first = scene.says(&bob, "first");
        scene.receives("2", &first);
        // Of two memberships that conflict the later one counts.
        scene.world.advance(1_000);
        scene.theirs.advance(&join.0);
        let (old, remembers) = (scene.state(), Rc::new(Cell::new(false)));
        let left = [scene.says(&bob, "lost"), scene.becomes(&dave, "leave"), scene.says(&bob, "the edge")];
        claims_what_is_old(&scene, &left, &old, &remembers);
        scene.theirs.state.insert(("m.room.member".to_owned(), dave.clone()), join.1.clone());
        let fields = json!({ "type": "m.room.message", "content": { "body": "I have left" }, "prev_events": [first.0, left[2].0] });
        let draft = scene.theirs.draft(scene.world.now_ms(), &dave, fields);
        let bad = scene.peer.sign("12", draft);
        scene.receives("3", &bad);
        assert!(scene.a.shows(&bad.0));
        // Bob's server goes on from where it was, as if it had lost what it said.
        scene.theirs.advance(&first.0);
        let good: Vec<Known> = (0..=between).map(|i| scene.says(&bob, &format!("good {i}"))).collect();
        for (number, good) in good.iter().enumerate() {
            scene.receives(&format!("good{number}"), good);
        }
        remembers.set(true);
        scene.pages_back();
        assert!(!scene.a.shows(&bad.0));
        let ends = scene.a.database.rows("SELECT x.value ->> 0 FROM rooms, json_each(rooms.extremities) AS x");
        let ends: BTreeSet<String> = ends.into_iter().flatten().collect();
        assert_eq!(ends, BTreeSet::from([left[2].0.clone(), good[between].0.clone()]), "{between} between");
        scene.rests_on_nothing_claimed();
    }
}

/// By the claimed state Dave is still in the room. What he says after he has left goes, and what is built upon it stays.
#[test]
fn what_was_allowed_by_a_claim_alone_is_rejected() {
    for cited in [false, true] {
        let mut scene = scene("12");
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let join = scene.becomes(&dave, "join");
        scene.receives("1", &join);
        let (old, remembers) = (scene.state(), Rc::new(Cell::new(false)));
        let left = [scene.says(&bob, "lost"), scene.becomes(&dave, "leave"), scene.says(&bob, "the edge")];
        claims_what_is_old(&scene, &left, &old, &remembers);
        scene.theirs.state.insert(("m.room.member".to_owned(), dave.clone()), join.1.clone());
        let bad = scene.says(&dave, "I have left");
        scene.receives("2", &bad);
        assert!(scene.a.shows(&bad.0));
        let good = scene.says(&bob, "on top of it");
        if cited {
            scene.receives("3", &good);
        }
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
        remembers.set(true);
        scene.pages_back();
        assert!(!scene.a.shows(&bad.0));
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("leave"));
        let last = scene.a.database.rows("SELECT x.value ->> 0 FROM rooms, json_each(rooms.extremities) AS x");
        assert_eq!(last, [[if cited { good.0.clone() } else { left[2].0.clone() }]]);
        scene.rests_on_nothing_claimed();
        if !cited {
            scene.receives("3", &good);
        }
        assert!(scene.a.shows(&good.0));
    }
}

/// From now on Bob's server has lost all but these events, and lets Alice in again: `old` is what it has of the room's state and its
/// auth chain besides.
pub(crate) fn lets_alice_in(scene: &Scene, events: &[&Known], old: &[Value]) {
    let alice = scene.alice.as_str();
    let template = scene.theirs.draft_member(scene.world.now_ms(), alice, alice, json!({ "membership": "join" }));
    let template = json!({ "room_version": scene.theirs.version, "event": template });
    let state = scene.state();
    let ids: Vec<String> = state.iter().map(|event| event_id(&scene.theirs.version, event)).collect();
    let answer = json!({ "state": state, "auth_chain": old });
    let history: Vec<Known> = events.iter().map(|event| (*event).clone()).collect();
    scene.peer.answers(move |request| {
        let target = request.uri().to_string();
        let body = if target.contains("/make_join/") {
            template.clone()
        } else if target.contains("/send_join/") {
            answer.clone()
        } else if target.contains("/backfill/") {
            json!({ "pdus": history.iter().map(|(_, event)| event).collect::<Vec<_>>() })
        } else if target.contains("/get_missing_events/") {
            json!({ "events": [] })
        } else if target.contains("/state_ids/") {
            json!({ "pdu_ids": ids, "auth_chain_ids": [] })
        } else if target.contains("/v1/event/") {
            let (_, event) = history.iter().find(|(id, _)| target.ends_with(&id[1..]))?;
            json!({ "pdus": [event] })
        } else {
            return None;
        };
        Some(json_response(StatusCode::OK, &body))
    });
}

/// Nobody ever gives what was in a gap. By the state that is claimed there what Dave says is rejected; then Alice leaves, and comes back.
struct CameBack {
    scene: Scene,
    /// The server of Carol, who is in the room all the time.
    third: Rc<Peer>,
    dave: String,
    /// What Bob says at the edge of the gap, and on top of it.
    edge: Known,
    heard: Known,
    /// What Dave says, which is rejected, and what Bob says on top of that; Alice's join cites the one or the other.
    said: Known,
    last: Known,
}

impl CameBack {
    fn new(version: &str, cites_last: bool) -> Self {
        let mut scene = scene(version);
        scene.alice_sets("m.room.history_visibility", json!({ "history_visibility": "joined" }));
        let (third, hers) = scene.member("third.example", "carol");
        let key = ("m.room.member".to_owned(), third.user("carol"));
        scene.theirs.state.insert(key.clone(), hers.state[&key].clone());
        let mut old = scene.state();
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let events = [scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.says(&bob, "the edge")];
        claims_what_is_old(&scene, &events, &old, &Rc::new(Cell::new(false)));
        let heard = scene.says(&bob, "on top of it");
        scene.receives("1", &heard);
        assert!(scene.a.shows(&heard.0));
        let said = scene.says(&dave, "am I heard?");
        scene.receives("2", &said);
        assert!(!scene.a.shows(&said.0));
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE provisional"), 1);

        let leave = scene.alice_leaves(&mut old);
        let fields = json!({
            "type": "m.room.message", "content": { "body": "on top of that" },
            "prev_events": [said.0, leave],
        });
        let last = scene.peer.sign(version, scene.theirs.draft(scene.world.now_ms(), &bob, fields));
        scene.theirs.advance(if cites_last { &last.0 } else { &said.0 });
        let [.., edge] = events;
        lets_alice_in(&scene, &[&last, &said, &heard, &edge], &old);
        scene.alice_comes_back();
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
        Self { scene, third, dave, edge, heard, said, last }
    }
}

/// Whoever joins the room anew knows its state from then on: what was rejected by the claimed one is history like any other.
#[test]
fn a_rejection_by_a_claim_ends_when_the_room_is_joined_anew() {
    for (version, cites_last) in [("10", true), ("12", true), ("10", false), ("12", false)] {
        let CameBack { mut scene, dave, edge, heard, said, last, .. } = CameBack::new(version, cites_last);
        scene.pages_back();
        let after = scene.says(&dave, "after it");
        scene.receives("3", &after);
        scene.an_hour_passes();
        let last = cites_last.then_some(&last);
        for (id, _) in [&edge, &heard, &said, &after].into_iter().chain(last) {
            assert!(scene.a.shows(id), "version {version}: {:#?}", scene.world.logs());
        }
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events"), 0);
    }
}

/// What Dave says before he hears that Alice is back cites what was rejected, and Bob's server says what the state was there.
#[test]
fn what_was_claimed_before_the_room_was_joined_anew_rejects_nothing() {
    for (version, pages_back) in [("10", true), ("12", true), ("10", false), ("12", false)] {
        let CameBack { scene, dave, edge, said, last, .. } = CameBack::new(version, true);
        let fields = json!({
            "type": "m.room.message", "content": { "body": "and now?" }, "prev_events": [said.0],
        });
        let fork = scene.peer.sign(version, scene.theirs.draft(scene.world.now_ms(), &dave, fields));
        if pages_back {
            scene.pages_back();
            for (id, _) in [&edge, &said, &last] {
                assert!(scene.a.shows(id), "version {version}: {:#?}", scene.world.logs());
            }
        }
        scene.receives("3", &fork);
        scene.an_hour_passes();
        assert!(!pages_back || scene.a.shows(&said.0), "version {version}: {:#?}", scene.world.logs());
        assert!(scene.a.shows(&fork.0), "version {version}, {pages_back}: {:#?}", scene.world.logs());
    }
}

/// What was shown by a claimed state stays for those who were there to see, here and elsewhere.
#[test]
fn who_may_see_what_was_shown_does_not_change_when_the_room_is_joined_anew() {
    for version in ["10", "12"] {
        let CameBack { scene, third, heard, .. } = CameBack::new(version, true);
        let (status, answer) = third.get(&scene.a, &format!("/_matrix/federation/v1/event/{}", encode(&heard.0)));
        assert_eq!((status, &answer["pdus"][0]["content"]["body"]), (200, &json!("on top of it")), "version {version}");
    }
}

/// What a claimed state holds, and what we know to come after what we hold, is an event like any other.
#[test]
fn what_comes_with_a_claim_and_has_its_place_takes_it() {
    let mut scene = scene("12");
    let (old, bob, dave) = (scene.state(), scene.bob.clone(), scene.peer.user("dave"));
    let join = scene.becomes(&dave, "join");
    let events = [join.clone(), scene.says(&bob, "lost"), scene.says(&bob, "the edge")];
    let said = scene.says(&bob, "after it");
    let mut state = old;
    state.push(join.1.clone());
    claims_what_is_old(&scene, &events, &state, &Rc::new(Cell::new(false)));
    scene.receives("1", &said);
    assert!(scene.a.shows(&join.0) && scene.a.shows(&said.0), "{:#?}", scene.world.logs());
    assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
}

/// Somebody relays what Bob says with another content, before Bob's server can. What is kept of it has none, until Bob's server
/// answers.
#[test]
fn an_altered_copy_gives_way_to_a_whole_one_that_is_asked_for() {
    let mut scene = scene("12");
    let relay = Peer::new(&scene.world, "relay.example");
    relay.join(&scene.a, scene.room.as_str(), &relay.user("mallory"));
    scene.world.settle();
    let bob = scene.bob.clone();
    let said = scene.says(&bob, "what I said");
    let mut altered = said.1.clone();
    altered["content"]["body"] = json!("what I never said");
    scene.world.disconnect("peer.example");
    assert_eq!(relay.send(&scene.a, "1", &[altered]), (200, json!({ "pdus": { said.0.as_str(): {} } })));
    let content = |scene: &Scene| {
        let rows =
            scene.a.database.rows(&format!("SELECT json ->> '$.content' FROM events WHERE event_id = '{}'", said.0));
        rows[0][0].clone()
    };
    scene.an_hour_passes();
    assert_eq!(content(&scene), "{}");
    // Its own server is back, and has no reason to send it.
    let back = Peer::new(&scene.world, "peer.example");
    let event = said.1.clone();
    back.answers(move |request| {
        let is_asked = request.uri().path().contains("/v1/event/");
        is_asked.then(|| json_response(StatusCode::OK, &json!({ "pdus": [event] })))
    });
    scene.an_hour_passes();
    assert!(content(&scene).contains("what I said"), "{:#?}", scene.world.logs());
    assert!(scene.a.shows(&said.0));
    scene.an_hour_passes();
    assert_eq!(scene.rows("SELECT 1 FROM unsettled_rooms"), 0);
}

/// Whoever settles a room may have looked before something new came that is to be settled.
#[test]
fn what_comes_while_a_room_is_settled_is_not_forgotten() {
    let mut scene = scene("12");
    let (bob, room) = (scene.bob.clone(), scene.room.clone());
    let alter = |scene: &mut Scene, txn_id: &str| {
        let mut altered = scene.says(&bob, "what I said").1;
        altered["content"]["body"] = json!("what I never said");
        assert_eq!(scene.peer.send(&scene.a, txn_id, &[altered]).0, 200);
    };
    alter(&mut scene, "1");
    let now = scene.world.now_ms();
    let until = now + 1_000;
    assert!(scene.world.run(scene.a.store.begin_settling(&room, now, until)).unwrap().is_some());
    alter(&mut scene, "2");
    scene.world.run(scene.a.store.end_settling(&room, until, None)).unwrap();
    assert_eq!(scene.rows("SELECT 1 FROM unsettled_rooms"), 1);
    // Nobody has it in hand now.
    scene.world.advance(10_000);
    let now = scene.world.now_ms();
    assert!(scene.world.run(scene.a.store.begin_settling(&room, now, now + 1_000)).unwrap().is_some());
    scene.world.run(scene.a.store.end_settling(&room, now + 1_000, None)).unwrap();
    assert_eq!(scene.rows("SELECT 1 FROM unsettled_rooms"), 0);
}

/// What a redaction has taken is not asked for.
#[test]
fn what_was_redacted_is_not_asked_for() {
    let mut scene = scene("12");
    let bob = scene.bob.clone();
    let said = scene.says(&bob, "regretted");
    let mut altered = said.1.clone();
    altered["content"] = json!({});
    let fields = json!({ "type": "m.room.redaction", "content": { "redacts": said.0 } });
    let draft = scene.theirs.draft(scene.world.now_ms(), &bob, fields);
    let redaction = scene.peer.sign("12", draft);
    assert_eq!(scene.peer.send(&scene.a, "1", &[altered, redaction.1]).0, 200);
    scene.world.settle();
    scene.an_hour_passes();
    let asked =
        scene.peer.received.borrow().iter().filter(|request| request.uri().path().contains("/v1/event/")).count();
    assert_eq!(asked, 0);
    assert_eq!(scene.rows("SELECT 1 FROM unsettled_rooms"), 0);
}
