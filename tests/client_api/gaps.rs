//! Paging back over history that this server never had: after a rejoin, and where too much was missed.

use std::{collections::BTreeSet, rc::Rc};

use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    federation::peers::endpoints::Transaction,
    matrix::identifiers::{EventId, ServerName},
    router::json_response,
};

use crate::{
    common::network::World,
    holes::alter,
    home::{Home, User, quote},
    visited::{Visited, visited},
};

/// Alice on one server, Bob on another, who has joined her room through it.
pub struct Scene {
    pub one: Home,
    pub two: Home,
    pub alice: User,
    pub bob: User,
    pub room: String,
}

pub fn scene(version: &str) -> Scene {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "preset": "public_chat", "room_version": version }));
    let scene = Scene { one, two, alice, bob, room };
    scene.says(0..5);
    scene.join();
    scene.says(5..8);
    scene
}

impl Scene {
    pub fn says(&self, numbers: std::ops::Range<usize>) {
        for i in numbers {
            self.one.say(&self.alice, &self.room, &format!("m{i}"), &format!("t{i}"));
        }
        self.one.world.settle();
    }

    pub fn join(&self) {
        let path = format!("/join/{}?via=one.test", quote(&self.room));
        let (status, answer) = self.two.post(&self.bob, &path, json!({}));
        assert_eq!(status, 200, "{answer}");
        self.two.world.settle();
    }

    /// Alice's server sends nothing of what it has, now or ever.
    pub fn forget_to_send(&self) {
        self.one.database.rows("DELETE FROM outbox");
    }

    pub fn synced(&self, since: &Value) -> Value {
        let synced = self.two.sync(&self.bob, &format!("since={}", since["next_batch"].as_str().unwrap()));
        synced["rooms"]["join"][&self.room]["timeline"].clone()
    }

    pub fn leave(&self) {
        let path = format!("/rooms/{}/leave", quote(&self.room));
        assert_eq!(self.two.post(&self.bob, &path, json!({})).0, 200);
        self.two.world.settle();
    }

    /// The requests for history so far.
    pub fn backfills(&self) -> usize {
        self.two.world.traffic().iter().filter(|sent| sent.line.contains("/backfill/")).count()
    }
}

pub fn ids(events: &Value) -> Vec<String> {
    events.as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

/// All that is found paging back from `from`.
pub fn back(home: &Home, user: &User, room: &str, from: Option<&str>, limit: usize, more: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut from = from.map(str::to_owned);
    for _ in 0..100 {
        let from_query = from.map(|token| format!("&from={token}")).unwrap_or_default();
        let path = format!("/rooms/{}/messages?dir=b&limit={limit}{from_query}{more}", quote(room));
        let (status, page) = home.get(user, &path);
        assert_eq!(status, 200, "{page}");
        found.extend(ids(&page["chunk"]));
        // Where the end is the start, a client has come no further, and stops.
        let end = page["end"].as_str().filter(|end| page["start"] != **end).map(str::to_owned);
        if end.is_none() {
            return found;
        }
        from = end;
    }
    panic!("the history has no end")
}

#[test]
fn what_happened_between_a_leave_and_a_rejoin_is_paged_back_to() {
    for version in ["1", "10", "12"] {
        for limit in [7, 1_000] {
            let scene = scene(version);
            let leave = format!("/rooms/{}/leave", quote(&scene.room));
            assert_eq!(scene.two.post(&scene.bob, &leave, json!({})).0, 200);
            scene.two.world.settle();
            let before = scene.two.sync(&scene.bob, "");
            scene.says(8..58);
            scene.join();
            scene.says(58..60);
            let timeline = scene.synced(&before);
            assert_eq!(timeline["limited"], true, "there is a gap before it");
            let told = ids(&timeline["events"]);
            assert_eq!(told.len(), 3, "the join, and what came after it: {timeline}");

            // Alice has it all.
            let all = back(&scene.one, &scene.alice, &scene.room, None, 1_000, "");
            let from = timeline["prev_batch"].as_str();
            assert_eq!(back(&scene.two, &scene.bob, &scene.room, from, limit, ""), all[3..], "{version}");
            assert_eq!(back(&scene.two, &scene.bob, &scene.room, None, limit, ""), all, "{version}");
            // What was fetched is kept, in its order, which is the same the other way round.
            let asked = scene.backfills();
            assert_eq!(back(&scene.two, &scene.bob, &scene.room, None, 7, ""), all);
            let (_, forwards) =
                scene.two.get(&scene.bob, &format!("/rooms/{}/messages?dir=f&limit=1000", quote(&scene.room)));
            assert!(ids(&forwards["chunk"]).iter().rev().eq(&all));
            assert_eq!(scene.backfills(), asked);
            assert!(scene.two.database.rows("SELECT 1 FROM gaps").is_empty());
            assert_eq!(scene.two.database.wrong_member_counts(), [""; 0]);
        }
    }
}

/// What another server answers takes memory that others' requests may have.
#[test]
fn history_for_which_there_is_no_room_is_asked_for_again() {
    let scene = scene("12");
    let leave = format!("/rooms/{}/leave", quote(&scene.room));
    assert_eq!(scene.two.post(&scene.bob, &leave, json!({})).0, 200);
    scene.two.world.settle();
    for i in 8..48 {
        scene.one.say(&scene.alice, &scene.room, &"m".repeat(50_000), &format!("t{i}"));
    }
    scene.one.world.settle();
    scene.join();
    let all = back(&scene.one, &scene.alice, &scene.room, None, 1_000, "");
    let gaps = || scene.two.database.rows("SELECT * FROM gaps");
    let before = gaps();
    // As if a transaction were in work that is as long as they may be.
    let in_work = scene.two.server.admission.reserve(13 * 1024 * 1024, scene.two.world.now_ms()).unwrap();
    let shown = back(&scene.two, &scene.bob, &scene.room, None, 1_000, "");
    assert!(scene.backfills() > 0 && shown.len() < all.len(), "{}", shown.len());
    let still = gaps();
    assert!(!still.is_empty() && still.iter().all(|gap| before.contains(gap)), "{still:?}");
    drop(in_work);
    assert_eq!(back(&scene.two, &scene.bob, &scene.room, None, 1_000, ""), all);
}

/// While Bob's server was away Carol has come, said something and gone, and so did Alice say something before and after it.
struct Visit {
    scene: Scene,
    three: Home,
    carol: User,
    said: String,
    /// All that Alice finds.
    all: Vec<String>,
}

impl Visit {
    fn new(version: &str) -> Self {
        let scene = scene(version);
        let (world, room) = (&scene.one.world, quote(&scene.room));
        let three = Home::with(world, "three.test", &[("REGISTRATION", "open")]);
        let carol = three.register("carol");
        scene.leave();
        // Who has joined again has done so after having left.
        world.advance(60_000);
        assert_eq!(three.post(&carol, &format!("/join/{room}?via=one.test"), json!({})).0, 200);
        scene.says(8..10);
        let said = three.say(&carol, &scene.room, "hello", "t");
        world.settle();
        scene.says(10..12);
        assert_eq!(three.post(&carol, &format!("/rooms/{room}/leave"), json!({})).0, 200);
        world.settle();
        scene.join();
        let all = back(&scene.one, &scene.alice, &scene.room, None, 1_000, "");
        assert!(all.contains(&said));
        Self { scene, three, carol, said, all }
    }

    fn bob_finds(&self) -> Vec<String> {
        back(&self.scene.two, &self.scene.bob, &self.scene.room, None, 1_000, "")
    }

    /// Carol's server sends what she said to Bob's, again or late, and hours pass.
    fn arrives(&self) {
        let world = &self.scene.one.world;
        let id = EventId::parse(&self.said).unwrap();
        let event = world.run(self.three.server.rooms.event(&id)).unwrap().unwrap().event;
        let transaction = Transaction { origin_server_ts: world.now_ms(), pdus: &[event.json()], edus: &[] };
        let to = ServerName::parse("two.test").unwrap();
        world.run(self.three.server.federation.send_transaction(&to, "again", transaction)).unwrap();
        for _ in 0..3 {
            world.settle();
            world.advance(3_600_000);
            world.run(self.scene.two.server.scheduled());
        }
        assert!(self.scene.two.database.rows("SELECT 1 FROM staged_pdus").is_empty());
    }

    /// Alice's server gives no events of a gap, and says of the state before it that Carol was never there.
    fn lies(&self) {
        let joined = format!("SELECT event_id FROM events WHERE state_key = '{}'", self.carol.id);
        let hers: Vec<String> = self.scene.one.database.rows(&joined).into_iter().flatten().collect();
        alter(&self.scene.one, "", move |answer| {
            if let Some(ids) = answer.get_mut("pdu_ids") {
                ids.as_array_mut().unwrap().retain(|id| hers.iter().all(|her| id != her));
            } else if answer.get("events").is_some() {
                answer["events"] = json!([]);
            }
        });
    }

    fn hides_nothing(&self) {
        assert!(self.scene.two.database.rows("SELECT 1 FROM events WHERE soft_failed").is_empty());
    }
}

/// Carol's server repeats a transaction; and those who are asked may say that she was never there.
#[test]
fn what_was_put_into_a_gap_stays_when_it_is_sent_again() {
    for (version, lies) in [("1", false), ("10", false), ("12", false), ("10", true), ("12", true)] {
        let visit = Visit::new(version);
        assert_eq!(visit.bob_finds(), visit.all, "{version}");
        if lies {
            visit.lies();
        }
        visit.arrives();
        assert_eq!(visit.bob_finds(), visit.all, "{version}");
        visit.hides_nothing();
    }
}

/// It comes before anybody pages back, when she is in the room no more.
#[test]
fn what_came_late_has_its_place_in_the_gap_before_our_join() {
    for version in ["1", "10", "12"] {
        let visit = Visit::new(version);
        visit.arrives();
        // What came before it is with it, where it came.
        let (found, all): (BTreeSet<_>, BTreeSet<_>) =
            (visit.bob_finds().into_iter().collect(), visit.all.iter().cloned().collect());
        assert_eq!(found, all, "{version}");
        visit.hides_nothing();
        assert!(visit.scene.two.database.rows("SELECT 1 FROM gaps").is_empty());
    }
}

#[test]
fn a_gap_too_wide_to_be_fetched_at_once_is_paged_back_over() {
    let scene = scene("12");
    let before = scene.two.sync(&scene.bob, "");
    scene.one.world.cut("one.test", "two.test");
    scene.says(8..208);
    scene.forget_to_send();
    scene.one.world.mend("one.test", "two.test");
    scene.one.world.advance(3_600_000);
    scene.says(208..209);
    scene.two.world.settle();
    let all = back(&scene.one, &scene.alice, &scene.room, None, 1_000, "");

    let timeline = scene.synced(&before);
    assert_eq!(ids(&timeline["events"]).last(), all.first(), "{:?}", scene.two.world.logs());
    assert_eq!(timeline["limited"], true);
    let from = timeline["prev_batch"].as_str();
    let told = ids(&timeline["events"]).len();
    assert!(told < 200);
    assert_eq!(back(&scene.two, &scene.bob, &scene.room, from, 30, ""), all[told..]);
    assert_eq!(back(&scene.two, &scene.bob, &scene.room, None, 30, ""), all);
    // Who syncs only now is told of no gap.
    let timeline = scene.synced(&before);
    assert!(ids(&timeline["events"]).iter().rev().eq(&all[..10]), "{timeline}");
    // The room goes on as if nothing had been missed.
    scene.says(209..211);
    assert_eq!(back(&scene.two, &scene.bob, &scene.room, None, 1_000, "").len(), all.len() + 2);
    assert!(scene.two.database.rows("SELECT 1 FROM gaps").is_empty());
}

#[test]
fn where_nobody_can_fill_a_gap_the_page_goes_on_behind_it() {
    let scene = scene("12");
    let leave = format!("/rooms/{}/leave", quote(&scene.room));
    assert_eq!(scene.two.post(&scene.bob, &leave, json!({})).0, 200);
    scene.two.world.settle();
    let had = back(&scene.two, &scene.bob, &scene.room, None, 100, "");
    scene.says(8..20);
    scene.join();
    scene.one.world.cut("one.test", "two.test");
    let found = back(&scene.two, &scene.bob, &scene.room, None, 2, "");
    assert_eq!(found[1..], had);
    scene.one.world.mend("one.test", "two.test");
    let all = back(&scene.one, &scene.alice, &scene.room, None, 1_000, "");
    assert_eq!(back(&scene.two, &scene.bob, &scene.room, None, 2, ""), all);
}

#[test]
fn a_page_of_what_is_rare_goes_on_to_the_beginning() {
    let scene = scene("12");
    scene.two.post(&scene.bob, &format!("/rooms/{}/leave", quote(&scene.room)), json!({}));
    scene.two.world.settle();
    scene.says(8..508);
    scene.join();
    let all = back(&scene.one, &scene.alice, &scene.room, None, 1_000, "");
    let filter = format!("&filter={}", quote(r#"{"types":["m.room.create"]}"#));
    let found = back(&scene.two, &scene.bob, &scene.room, None, 20, &filter);
    assert_eq!(found[..], all[all.len() - 1..]);
}

#[test]
fn what_several_events_cite_stands_before_all_of_them() {
    let Visited { home, alice, room, peer, bob, mut theirs, server } = visited("11");
    let world = home.world.clone();
    let lost = theirs.say(&peer, &bob, "lost");
    let missed = theirs.say(&peer, &bob, "missed");
    let fork = theirs.clone();
    let (first, second) = (theirs.say(&peer, &bob, "first"), fork.clone().say(&peer, &bob, "second"));
    // The peer has lost all but that event and the state before it, and later finds its history again.
    let state: Vec<String> = theirs.state.values().map(|event| crate::common::peer::event_id("11", event)).collect();
    let (event, history) = (missed.1.clone(), [missed.1.clone(), lost.1.clone()]);
    let found = Rc::new(std::cell::Cell::new(false));
    let finds = Rc::clone(&found);
    peer.answers(move |request| {
        let path = request.uri().path();
        let body = if path.contains("/get_missing_events/") {
            json!({ "events": [] })
        } else if path.contains("/state_ids/") {
            json!({ "pdu_ids": state, "auth_chain_ids": state })
        } else if path.contains("/v1/event/") {
            json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": [event] })
        } else if path.contains("/backfill/") && finds.get() {
            json!({ "origin": "peer.example", "origin_server_ts": 1, "pdus": history })
        } else {
            return None;
        };
        Some(json_response(StatusCode::OK, &body))
    });
    for (txn_id, event) in [("1", &first.1), ("2", &second.1)] {
        let (status, answer) = peer.send(&server, txn_id, std::slice::from_ref(event));
        assert_eq!(status, 200, "{answer}");
        world.settle();
    }
    let newest = [second.0.clone(), first.0.clone()];
    let history = back(&home, &alice, &room, None, 10, "");
    assert_eq!(history[..2], newest, "{:?}", world.logs());
    assert!(!history.contains(&missed.0));
    found.set(true);
    let history = back(&home, &alice, &room, None, 10, "");
    assert_eq!(history[..2], newest);
    assert_eq!(history[2..4], [missed.0.clone(), lost.0.clone()]);
    assert!(home.database.rows("SELECT 1 FROM gaps").is_empty());
    // The state around it is known as before, so that what cites it is still judged.
    let third = fork.clone().say(&peer, &bob, "third");
    let (_, answer) = peer.send(&server, "3", &[third.1]);
    assert_eq!(answer["pdus"][&third.0], json!({}));
    assert_eq!(back(&home, &alice, &room, None, 10, "")[0], third.0);
}

/// The events of a page back from the newest event, by ID.
pub fn newest(home: &Home, user: &User, room: &str) -> std::collections::BTreeMap<String, Value> {
    let (status, page) = home.get(user, &format!("/rooms/{}/messages?dir=b&limit=1000", quote(room)));
    assert_eq!(status, 200, "{page}");
    let events = page["chunk"].as_array().unwrap().iter();
    events.map(|event| (event["event_id"].as_str().unwrap().to_owned(), event.clone())).collect()
}

#[test]
fn a_redaction_that_was_missed_takes_effect_when_it_is_paged_back_to() {
    // Between events that Bob's server has, or while it was not in the room.
    for (version, away) in [("10", false), ("12", false), ("10", true), ("12", true)] {
        let scene = scene(version);
        let bobs = scene.two.say(&scene.bob, &scene.room, "Bob's", "b1");
        let kept = scene.two.say(&scene.bob, &scene.room, "Bob's other", "b2");
        scene.two.world.settle();
        if away {
            scene.leave();
        }
        scene.one.world.cut("one.test", "two.test");
        scene.says(8..20);
        let hers = scene.one.say(&scene.alice, &scene.room, "secret", "s1");
        for redacted in [&bobs, &hers] {
            let path = format!("/rooms/{}/redact/{}/r{}", quote(&scene.room), quote(redacted), quote(redacted));
            assert_eq!(scene.one.put(&scene.alice, &path, json!({})).0, 200);
        }
        scene.says(20..120);
        scene.forget_to_send();
        scene.one.world.mend("one.test", "two.test");
        scene.one.world.advance(3_600_000);
        if away {
            scene.join();
        }
        scene.says(120..121);
        scene.two.world.settle();
        back(&scene.two, &scene.bob, &scene.room, None, 1_000, "");
        let seen = newest(&scene.two, &scene.bob, &scene.room);
        for redacted in [&bobs, &hers] {
            assert_eq!(seen[redacted]["content"], json!({}), "{version}");
            assert_eq!(seen[redacted]["unsigned"]["redacted_because"]["sender"], json!(scene.alice.id));
        }
        assert_eq!(seen[&kept]["content"]["body"], "Bob's other");
    }
}

/// What power somebody has now says nothing of what they had then. Synapse judges history by what was before it alone.
#[test]
fn a_redaction_that_was_missed_takes_effect_though_its_sender_has_lost_the_power() {
    for version in ["1", "10", "12"] {
        let scene = scene(version);
        let carol = scene.one.register("carol");
        let (status, answer) = scene.one.post(&carol, &format!("/join/{}", quote(&scene.room)), json!({}));
        assert_eq!(status, 200, "{answer}");
        let bobs = scene.two.say(&scene.bob, &scene.room, "Bob's", "b1");
        let kept = scene.two.say(&scene.bob, &scene.room, "Bob's other", "b2");
        scene.two.world.settle();
        scene.leave();
        scene.one.world.cut("one.test", "two.test");
        scene.says(8..20);
        let path = format!("/rooms/{}/state/m.room.power_levels/", quote(&scene.room));
        let gives_carol = |power: i64| {
            let mut levels = scene.one.get(&scene.alice, &path).1;
            levels["users"][&carol.id] = json!(power);
            assert_eq!(scene.one.put(&scene.alice, &path, levels).0, 200);
        };
        let redacts = |redacted: &str| {
            let path = format!("/rooms/{}/redact/{}/r{}", quote(&scene.room), quote(redacted), quote(redacted));
            scene.one.put(&carol, &path, json!({})).0
        };
        gives_carol(50);
        assert_eq!(redacts(&bobs), 200);
        gives_carol(0);
        assert_eq!(redacts(&kept), 403);
        scene.says(20..120);
        scene.forget_to_send();
        scene.one.world.mend("one.test", "two.test");
        scene.one.world.advance(3_600_000);
        scene.join();
        scene.says(120..121);
        scene.two.world.settle();
        back(&scene.two, &scene.bob, &scene.room, None, 1_000, "");
        let seen = newest(&scene.two, &scene.bob, &scene.room);
        assert_eq!(seen[&bobs]["content"], json!({}), "{version}");
        assert_eq!(seen[&bobs]["unsigned"]["redacted_because"]["sender"], json!(carol.id));
        assert_eq!(seen[&kept]["content"]["body"], "Bob's other");
    }
}

/// Whether it takes its place in the room, as what was before it is held, or is an outlier, as nobody has that.
#[test]
fn what_comes_after_its_redaction_as_an_auth_event_is_redacted_too() {
    for is_outlier in [false, true] {
        let Visited { home, alice, room, peer, bob, mut theirs, server } = visited("11");
        let world = home.world.clone();
        // A fork in which Bob has another name, and the redaction of that event, which we know of first.
        let member = json!({ "membership": "join", "displayname": "Not Bob" });
        let mut fields = json!({ "type": "m.room.member", "state_key": bob, "content": member });
        if is_outlier {
            fields["prev_events"] = json!([format!("${}", "A".repeat(43))]);
        }
        let (named_id, named) = peer.sign("11", theirs.draft(world.now_ms(), &bob, fields));
        let fields = json!({ "type": "m.room.redaction", "content": { "redacts": named_id } });
        let (redaction_id, redaction) = peer.sign("11", theirs.draft(world.now_ms(), &bob, fields));
        assert_eq!(peer.send(&server, "1", &[redaction]).1["pdus"][&redaction_id], json!({}));
        theirs.advance(&redaction_id);
        theirs.state.insert(("m.room.member".to_owned(), bob.clone()), named.clone());
        let chain: Vec<Value> = theirs.state.values().cloned().collect();
        peer.answers(move |request| {
            let is_asked = request.uri().path().contains("/event_auth/");
            is_asked.then(|| json_response(StatusCode::OK, &json!({ "auth_chain": chain })))
        });
        let (said, event) = theirs.say(&peer, &bob, "by another name");
        assert_eq!(peer.send(&server, "2", &[event]).0, 200);
        world.settle();
        assert!(newest(&home, &alice, &room).contains_key(&said), "{:?}", world.logs());
        let held = format!("SELECT outlier, redacted_by FROM events WHERE event_id = '{named_id}'");
        assert_eq!(home.database.rows(&held), [[i32::from(is_outlier).to_string(), redaction_id]]);
    }
}

#[test]
fn a_redaction_without_power_is_shown_to_nobody() {
    for version in ["10", "11"] {
        let Visited { home, alice, room, peer, bob, mut theirs, server } = visited(version);
        let world = home.world.clone();
        let hers = home.say(&alice, &room, "hers", "t1");
        let own_room = home.room(&alice, json!({ "room_version": version }));
        let elsewhere = home.say(&alice, &own_room, "in another room", "t2");
        theirs.advance(&hers);
        let (own, said) = theirs.say(&peer, &bob, "Bob's own");
        let before = home.sync(&alice, "");
        let mut redact = |event_id: &str| {
            let fields = if version == "10" {
                json!({ "type": "m.room.redaction", "content": {}, "redacts": event_id })
            } else {
                json!({ "type": "m.room.redaction", "content": { "redacts": event_id } })
            };
            let redaction = peer.sign(version, theirs.draft(world.now_ms(), &bob, fields));
            theirs.advance(&redaction.0);
            redaction
        };
        let (powerless, allowed, astray) = (redact(&hers), redact(&own), redact(&elsewhere));
        let (status, answer) = peer.send(&server, "1", &[said, powerless.1, allowed.1, astray.1]);
        assert_eq!((status, &answer["pdus"][&powerless.0]), (200, &json!({})), "{answer}");
        world.settle();
        let since = format!("since={}", before["next_batch"].as_str().unwrap());
        for query in [since.as_str(), ""] {
            let synced = home.sync(&alice, query);
            let timeline = synced["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
            let told = |id: &str| timeline.iter().any(|event| event["event_id"] == json!(id));
            let all = [&powerless.0, &allowed.0, &astray.0].map(|id| told(id));
            assert_eq!(all, [false, true, false], "{version}, {query}: {synced}");
        }
        let seen = newest(&home, &alice, &room);
        assert!(!seen.contains_key(&powerless.0) && seen.contains_key(&allowed.0), "{version}: {seen:?}");
        assert_eq!((&seen[&hers]["content"]["body"], &seen[&own]["content"]), (&json!("hers"), &json!({})));
        let one = |id: &str| home.get(&alice, &format!("/rooms/{}/event/{}", quote(&room), quote(id)));
        assert_eq!((one(&powerless.0).0, one(&allowed.0).0), (404, 200));
    }
}
