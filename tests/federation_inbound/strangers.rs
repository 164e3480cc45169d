//! What is kept for good because servers send or give it that are not in a room: so much of each, and of all together, whatever they
//! do; and nothing of the room is lost by that.

use std::rc::Rc;

use http::StatusCode;
use serde_json::{Value, json};
use verge::{matrix::state_content::Membership, room::Draft, router::json_response};

use crate::{
    Scene,
    common::{
        homeserver::object,
        peer::{Peer, PeerRoom, encode, event_id},
    },
    flooding::{refused, sizes},
    missing::{asked, claims, gives, holds, is_empty_handed, takes},
    scene,
};

/// An event and its ID.
type Known = (String, Value);

const MIB: u64 = 1 << 20;

/// A long text, as a message or a name.
fn long(number: usize) -> String {
    format!("{number} {}", "x".repeat(60_000))
}

/// How many bytes are in all tables but those that have bounds of their own (see `flooding`).
fn kept(scene: &Scene) -> u64 {
    let own = ["passing_keys", "key_responses", "well_known", "transactions", "staged_pdus", "rejected_events"];
    sizes(&scene.a).into_iter().filter(|(table, _)| !own.contains(&table.as_str())).map(|(_, (_, bytes))| bytes).sum()
}

/// Makes it so that so many bytes are kept of the room, or of all, for the server, or for all strangers.
fn keeps(scene: &Scene, room: &str, server: &str, bytes: u64) {
    scene.a.database.rows(&format!("INSERT INTO kept_for_strangers VALUES ('{room}', '{server}', {bytes})"));
}

/// Makes it so that as much is kept of the room for all strangers as may be.
fn fill(scene: &Scene) {
    keeps(scene, scene.room.as_str(), "", 8 * MIB);
}

fn soft_failed(scene: &Scene) -> usize {
    scene.a.database.rows("SELECT 1 FROM events WHERE soft_failed").len()
}

/// Mallory, who has been banned, and the room as her server knew it.
struct Banned {
    scene: Scene,
    server: Rc<Peer>,
    room: PeerRoom,
    mallory: String,
}

impl Banned {
    fn new(version: &str) -> Self {
        let mut scene = scene(version);
        let (server, room) = scene.member("mallory.example", "mallory");
        let mallory = server.user("mallory");
        scene.put_out(&mallory, Membership::Ban);
        Self { scene, server, room, mallory }
    }

    /// What she says upon what was before the ban.
    fn says(&self, number: usize) -> Known {
        self.room.say_upon(&self.server, &self.mallory, &long(number), &[&self.room.last])
    }

    /// Sends her server's messages with these numbers, 20 at a time. How many of them were refused.
    fn floods(&self, numbers: std::ops::Range<usize>) -> usize {
        let events: Vec<Value> = numbers.clone().map(|number| self.says(number).1).collect();
        let mut count = 0;
        for (n, events) in events.chunks(20).enumerate() {
            let (status, answer) = self.server.send(&self.scene.a, &format!("{}-{n}", numbers.start), events);
            assert_eq!(status, 200);
            count += refused(&answer);
            self.scene.world.settle();
        }
        count
    }
}

impl Scene {
    /// Alice kicks or bans somebody, of which Bob's server hears.
    fn put_out(&mut self, user: &str, membership: Membership) {
        let draft = Draft::membership(user, membership, object(json!({})));
        let event = self.a.send(&self.world, &self.room, &self.alice, draft);
        self.world.settle();
        self.theirs.advance(event.event_id().as_str());
    }
}

#[test]
fn what_a_banned_server_goes_on_to_say_is_kept_within_bounds() {
    let banned = Banned::new("12");
    let before = kept(&banned.scene);
    let refused = banned.floods(0..60);
    let more = kept(&banned.scene) - before;
    assert!((MIB / 2..MIB).contains(&more), "{more} bytes");
    assert_eq!(refused + soft_failed(&banned.scene), 60);
    assert_eq!(banned.floods(60..80), 20);
    let scene = &banned.scene;
    let counted = |server: &str| {
        scene.a.database.rows(&format!("SELECT bytes FROM kept_for_strangers WHERE server = '{server}'"))[0].clone()
    };
    assert_eq!(counted("mallory.example"), counted(""));
    assert!(kept(scene) - before < MIB);
    // What is kept already may be sent again.
    let known = scene.a.database.rows("SELECT json FROM events WHERE soft_failed LIMIT 1")[0][0].clone();
    let (_, answer) = banned.server.send(&scene.a, "known", &[serde_json::from_str(&known).unwrap()]);
    assert!(answer["pdus"].as_object().unwrap().values().all(|result| *result == json!({})), "{answer}");
}

#[test]
fn servers_that_are_not_in_the_room_have_one_share_together() {
    let banned = Banned::new("12");
    keeps(&banned.scene, banned.scene.room.as_str(), "", 8 * MIB - 200_000);
    assert_eq!((banned.floods(0..20), soft_failed(&banned.scene)), (17, 3));
}

/// She invites a user of ours again and again: that is no transaction.
#[test]
fn what_a_banned_server_invites_is_kept_within_bounds() {
    let banned = Banned::new("10");
    let carol = banned.scene.a.user(&banned.scene.world, "carol");
    let before = kept(&banned.scene);
    for number in 0..40 {
        let content = json!({ "membership": "invite", "reason": long(number) });
        let now = banned.scene.world.now_ms();
        let draft = banned.room.draft_member(now, &banned.mallory, carol.as_str(), content);
        let (id, event) = banned.server.sign("10", draft);
        let target = format!("/_matrix/federation/v2/invite/{}/{}", encode(banned.scene.room.as_str()), encode(&id));
        let body = json!({ "room_version": "10", "event": event, "invite_room_state": [] });
        let (status, answer) = banned.server.put(&banned.scene.a, &target, &body);
        assert_eq!((status, answer["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{answer}");
    }
    let more = kept(&banned.scene) - before;
    assert!((MIB / 2..MIB).contains(&more), "{more} bytes");
}

/// What is held without its content takes no room, but its content can come at any time.
#[test]
fn what_a_banned_server_completes_is_kept_within_bounds() {
    let banned = Banned::new("12");
    let before = kept(&banned.scene);
    let events: Vec<Known> = (0..60).map(|number| banned.says(number)).collect();
    let send = |name: &str, pdus: &[Value]| {
        for (n, pdus) in pdus.chunks(20).enumerate() {
            assert_eq!(banned.server.send(&banned.scene.a, &format!("{name}{n}"), pdus).0, 200);
            banned.scene.world.settle();
        }
    };
    let altered = |(_, event): &Known| {
        let mut event = event.clone();
        event["content"] = json!({});
        event
    };
    send("altered", &events.iter().map(altered).collect::<Vec<Value>>());
    assert!((5..20).contains(&soft_failed(&banned.scene)));
    send("whole", &events.iter().map(|(_, event)| event.clone()).collect::<Vec<Value>>());
    let more = kept(&banned.scene) - before;
    assert!((MIB / 2..MIB).contains(&more), "{more} bytes");
}

/// Her server claims that another user of hers had not joined, and rejects for now what that one says; then it gives what shows that
/// they had: it is soft-failed, and no more than could be before.
#[test]
fn what_strangers_have_judged_again_is_kept_within_bounds() {
    let mut scene = scene("12");
    let (server, mut room) = scene.member("mallory.example", "mallory");
    let [mallory, other] = ["mallory", "other"].map(|user| server.user(user));
    let without: Vec<String> = room.state.values().map(|event| event_id("12", event)).collect();
    room = server.join(&scene.a, scene.room.as_str(), &other);
    scene.theirs.advance(&room.last);
    for user in [&mallory, &other] {
        scene.put_out(user, Membership::Ban);
    }
    let banned = Banned { scene, server, room: room.clone(), mallory };
    let before = kept(&banned.scene);
    let lost = room.say(&banned.server, &banned.mallory, "lost");
    let edge = room.say(&banned.server, &banned.mallory, "edge");
    let on_top = room.say_upon(&banned.server, &banned.mallory, "on top", &[&edge.0]);
    claims(&banned.server, &[&edge], without);
    takes(&banned.server, &banned.scene, "top", &on_top);
    banned.scene.world.settle();
    let events: Vec<Value> = (0..60).map(|n| room.say_upon(&banned.server, &other, &long(n), &[&edge.0]).1).collect();
    for (n, events) in events.chunks(20).enumerate() {
        assert_eq!(banned.server.send(&banned.scene.a, &format!("other{n}"), events).0, 200);
        banned.scene.world.settle();
    }
    let rejected = "SELECT COALESCE(SUM(length(json)), 0) FROM rejected_events WHERE provisional";
    let rejected: u64 = banned.scene.a.database.rows(rejected)[0][0].parse().unwrap();
    assert!((MIB / 2..MIB).contains(&rejected), "{rejected} bytes");
    takes(&banned.server, &banned.scene, "lost", &lost);
    banned.scene.world.settle();
    (0..4).for_each(|_| banned.scene.an_hour_passes());
    // By then they are kept for good.
    assert!(soft_failed(&banned.scene) > 8);
    let more = kept(&banned.scene) - before;
    assert!((MIB / 2..MIB).contains(&more), "{more} bytes");
}

#[test]
fn what_strangers_bring_is_bounded_over_all_rooms() {
    let banned = Banned::new("12");
    keeps(&banned.scene, "", "mallory.example", 16 * MIB - 200_000);
    assert_eq!((banned.floods(0..20), soft_failed(&banned.scene)), (17, 3));
    // Where all rooms together have what is kept of all, a little is kept of each.
    let banned = Banned::new("12");
    keeps(&banned.scene, "", "", 512 * MIB);
    assert_eq!((banned.floods(0..20), soft_failed(&banned.scene)), (18, 2));
}

/// Mallory was only kicked, and comes back: what comes with her join is taken, and then her server is in the room.
#[test]
fn what_comes_with_a_join_is_taken_of_whoever_has_brought_too_much() {
    for version in ["10", "12"] {
        let mut banned = Banned::new(version);
        banned.floods(0..40);
        let scene = &mut banned.scene;
        scene.put_out(&banned.mallory, Membership::Leave);
        let mut room = scene.theirs.clone();
        let draft =
            room.draft_member(scene.world.now_ms(), &banned.mallory, &banned.mallory, json!({ "membership": "join" }));
        let join = banned.server.sign(version, draft);
        room.state.insert(("m.room.member".to_owned(), banned.mallory.clone()), join.1.clone());
        room.advance(&join.0);
        // Her server has heard of nothing but what she went on to say; one thing she says upon that, and one beside.
        let hidden = banned.room.say_upon(&banned.server, &banned.mallory, &long(50), &[&banned.room.last]);
        let beside = banned.room.say_upon(&banned.server, &banned.mallory, &long(51), &[&banned.room.last]);
        let said = room.say_upon(&banned.server, &banned.mallory, "I am sorry", &[&room.last, &hidden.0]);
        room.advance(&said.0);
        let pdus = [&hidden, &beside, &join, &said].map(|event| event.1.clone());
        let (_, answer) = banned.server.send(&scene.a, "back", &pdus);
        let is_refused = |event: &Known| answer["pdus"][&event.0]["error"].is_string();
        assert_eq!([&hidden, &beside, &join, &said].map(is_refused), [false, true, false, false], "version {version}");
        scene.is_shown(&[join, said]);
        let before = kept(scene);
        let more = room.say(&banned.server, &banned.mallory, &long(0));
        takes(&banned.server, scene, "more", &more);
        scene.is_shown(&[more]);
        assert!(kept(scene) > before + 60_000);
    }
}

/// Bob's server does not know of the ban yet, or minds it not: what it builds upon must be had, and it gives it.
#[test]
fn what_a_server_in_the_room_has_built_upon_comes_from_there() {
    let banned = Banned::new("12");
    banned.floods(0..40);
    let mut scene = banned.scene;
    let refused = banned.room.say_upon(&banned.server, &banned.mallory, &long(40), &[&banned.room.last]);
    let (_, answer) = banned.server.send(&scene.a, "refused", std::slice::from_ref(&refused.1));
    assert!(answer["pdus"][&refused.0]["error"].is_string(), "{answer}");
    let last = scene.theirs.last.clone();
    let said = scene.theirs.say_upon(&scene.peer, &scene.bob, "on both", &[&last, &refused.0]);
    scene.theirs.advance(&said.0);
    holds(&scene.peer, &[refused.clone(), said.clone()]);
    takes(&scene.peer, &scene, "1", &said);
    scene.world.settle();
    scene.is_shown(&[said]);
    let hidden = format!("SELECT soft_failed FROM events WHERE event_id = '{}'", refused.0);
    assert_eq!(scene.a.database.rows(&hidden), [["1"]]);
}

/// Bob's server keeps whatever it is sent, and gives it when it is asked: that Mallory has sent only the last of it to us is no way round.
#[test]
fn what_others_keep_of_a_banned_server_is_kept_within_bounds() {
    let banned = Banned::new("12");
    let before = kept(&banned.scene);
    let mut room = banned.room.clone();
    let events: Vec<Known> = (0..60).map(|n| room.say(&banned.server, &banned.mallory, &long(n))).collect();
    is_empty_handed(&banned.server);
    holds(&banned.scene.peer, &events);
    takes(&banned.server, &banned.scene, "1", &events[59]);
    banned.scene.world.settle();
    assert!(asked(&banned.scene.peer, "/get_missing_events/") > 0);
    let more = kept(&banned.scene) - before;
    assert!((MIB / 2..MIB).contains(&more), "{more} bytes");
    // What is built upon it in the room is had nevertheless.
    let scene = banned.scene;
    let last = scene.theirs.last.clone();
    let said = scene.theirs.say_upon(&scene.peer, &scene.bob, "on both", &[&last, &events[59].0]);
    let held: Vec<Known> = events.into_iter().chain([said.clone()]).collect();
    holds(&scene.peer, &held);
    takes(&scene.peer, &scene, "2", &said);
    scene.world.settle();
    scene.is_shown(&[said]);
}

/// Nor is it one that Bob's server says what the state before each of her events was, whatever she gives these for a depth.
#[test]
fn events_before_which_others_know_the_state_are_kept_within_bounds() {
    let banned = Banned::new("12");
    let scene = &banned.scene;
    let before = kept(scene);
    let state: Vec<String> = banned.room.state.values().map(|event| event_id("12", event)).collect();
    is_empty_handed(&banned.server);
    for number in 0..40 {
        let mut room = banned.room.clone();
        let edge = room.say(&banned.server, &banned.mallory, &long(number));
        let on_top = room.say(&banned.server, &banned.mallory, &format!("on top of {number}"));
        claims(&scene.peer, &[&edge], state.clone());
        banned.server.send(&scene.a, &number.to_string(), std::slice::from_ref(&on_top.1));
        scene.world.settle();
    }
    assert!(asked(&scene.peer, "/state_ids/") > 10);
    let more = kept(scene) - before;
    assert!((MIB / 2..MIB).contains(&more), "{more} bytes");
}

/// Carol's server has sent what lacks an auth event, and Bob's what is built upon it: as much is kept for strangers as may be.
#[test]
fn what_a_member_has_built_upon_does_not_wait_for_a_stranger_s_share() {
    let scene = scene("12");
    fill(&scene);
    let server = Peer::new(&scene.world, "carol.example");
    let carol = server.user("carol");
    let join = chain(&scene, &server, &carol, 1).remove(0);
    let mut room = scene.theirs.clone();
    room.state.insert(("m.room.member".to_owned(), carol.clone()), join.1.clone());
    let said = room.say(&server, &carol, "hello");
    let answer = scene.theirs.say_upon(&scene.peer, &scene.bob, "on top", &[&said.0]);
    [&server, &scene.peer].into_iter().for_each(|peer| is_empty_handed(peer));
    for (sender, event) in [(&server, &said), (&scene.peer, &answer)] {
        takes(sender, &scene, "1", event);
        scene.world.settle();
    }
    let auth: Vec<Value> = room.state.values().cloned().collect();
    scene.peer.answers(move |request| {
        let is_asked = request.uri().path().contains("/event_auth/");
        is_asked.then(|| json_response(StatusCode::OK, &json!({ "auth_chain": auth })))
    });
    scene.an_hour_passes();
    scene.is_shown(&[answer]);
}

/// A chain of membership events of a user who has never been heard of, each with a long name, upon what nobody has.
fn chain(scene: &Scene, server: &Peer, user: &str, count: usize) -> Vec<Known> {
    let mut room = PeerRoom { last: "$lost".to_owned(), ..scene.theirs.clone() };
    let mut chain: Vec<Known> = Vec::new();
    for number in 0..count {
        let content = json!({ "membership": "join", "displayname": long(number) });
        let event = server.sign(&room.version, room.draft_member(scene.world.now_ms(), user, user, content));
        room.state.insert(("m.room.member".to_owned(), user.to_owned()), event.1.clone());
        room.advance(&event.0);
        chain.push(event);
    }
    chain
}

#[test]
fn auth_chains_that_strangers_give_are_kept_within_bounds() {
    let scene = scene("12");
    let server = Peer::new(&scene.world, "s0.evil.example");
    let before = kept(&scene);
    for attempt in 0..4 {
        let user = server.user(&format!("mallory{attempt}"));
        let chain = chain(&scene, &server, &user, if attempt == 0 { 10 } else { 50 });
        let mut room = scene.theirs.clone();
        room.state.insert(("m.room.member".to_owned(), user.clone()), chain.last().unwrap().1.clone());
        let said = room.say_upon(&server, &user, "hello", &[&room.last]);
        let auth: Vec<Value> =
            chain.iter().map(|(_, event)| event.clone()).chain(scene.theirs.state.values().cloned()).collect();
        server.answers(move |request| {
            let is_asked = request.uri().path().contains("/event_auth/");
            is_asked.then(|| json_response(StatusCode::OK, &json!({ "auth_chain": auth })))
        });
        takes(&server, &scene, &attempt.to_string(), &said);
        scene.world.settle();
        assert!(asked(&server, "/event_auth/") > attempt);
        let more = kept(&scene) - before;
        // The first is within the bound, and no other.
        assert!((MIB / 2..MIB).contains(&more), "{more} bytes");
    }
}

/// The server of somebody who was banned invents a gap, and what the state before it was.
#[test]
fn states_that_strangers_claim_are_kept_within_bounds() {
    let banned = Banned::new("12");
    let scene = &banned.scene;
    let before = kept(scene);
    for attempt in 0..4 {
        let users = if attempt == 0 { 10 } else { 40 };
        let others: Vec<Known> = (0..users)
            .map(|n| chain(scene, &banned.server, &banned.server.user(&format!("u{attempt}-{n}")), 1).remove(0))
            .collect();
        let mut room = banned.room.clone();
        let edge = room.say_upon(&banned.server, &banned.mallory, &format!("edge {attempt}"), &["$lost"]);
        room.advance(&edge.0);
        let said = room.say(&banned.server, &banned.mallory, "on top");
        let state: Vec<String> = room.state.values().map(|event| event_id("12", event)).collect();
        let state = state.into_iter().chain(others.iter().map(|(id, _)| id.clone())).collect();
        let held: Vec<&Known> = others.iter().chain([&edge]).collect();
        claims(&banned.server, &held, state);
        takes(&banned.server, scene, &attempt.to_string(), &said);
        scene.world.settle();
        assert!(asked(&banned.server, "/state_ids/") > attempt);
        let more = kept(scene) - before;
        assert!((MIB / 2..MIB).contains(&more), "{more} bytes");
    }
}

/// Carol's server has just come into the room, of which only it tells us: what it gives is her join, and so it is taken.
#[test]
fn a_join_behind_a_gap_is_taken_however_much_strangers_have_brought() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        fill(&scene);
        let server = Peer::new(&scene.world, "carol.example");
        let (events, _) = joins_and_talks(&mut scene, &server, 3);
        holds(&server, &events);
        takes(&server, &scene, "1", events.last().unwrap());
        scene.world.settle();
        scene.is_shown(&events);
    }
}

/// Her join is not given by anybody, and her server's word for the state after it is not taken any more; Bob's is.
#[test]
fn what_strangers_do_not_bring_any_more_is_asked_of_others() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        fill(&scene);
        let server = Peer::new(&scene.world, "carol.example");
        let (events, state) = joins_and_talks(&mut scene, &server, 4);
        let (join, edge, said) = (&events[0], &events[3], &events[4]);
        for peer in [&server, &scene.peer] {
            gives(peer, &[], &[edge, join], state.clone());
        }
        takes(&server, &scene, "1", said);
        scene.world.settle();
        scene.is_shown(std::slice::from_ref(said));
        assert!(asked(&server, "/state_ids/") > 0 && asked(&scene.peer, "/state_ids/") > 0);
        // Where it alone knows, it is not believed.
        let mut other = crate::scene(version);
        fill(&other);
        let server = Peer::new(&other.world, "carol.example");
        let (events, state) = joins_and_talks(&mut other, &server, 4);
        gives(&server, &[], &[&events[3], &events[0]], state);
        is_empty_handed(&other.peer);
        takes(&server, &other, "1", &events[4]);
        other.world.settle();
        assert!(!other.a.shows(&events[4].0));
    }
}

/// Another server that is not in the room relays what Carol said, and claims a state with much in it: Carol's server has its own share.
#[test]
fn what_a_stranger_claims_is_not_charged_to_another() {
    let mut scene = scene("12");
    let [server, evil] = ["carol.example", "evil.example"].map(|name| Peer::new(&scene.world, name));
    let (events, state) = joins_and_talks(&mut scene, &server, 4);
    let (join, edge, said) = (&events[0], &events[3], &events[4]);
    let junk: Vec<Known> = (0..40).map(|n| chain(&scene, &evil, &evil.user(&n.to_string()), 1).remove(0)).collect();
    let held: Vec<&Known> = junk.iter().chain([edge, join]).collect();
    [&server, &evil, &scene.peer].into_iter().for_each(|peer| is_empty_handed(peer));
    for (sender, txn_id) in [(&evil, "1"), (&server, "2")] {
        takes(sender, &scene, txn_id, said);
        scene.world.settle();
    }
    gives(&server, &[], &[edge, join], state.clone());
    gives(&evil, &[], &held, state.into_iter().chain(junk.iter().map(|(id, _)| id.clone())).collect());
    (0..2).for_each(|_| scene.an_hour_passes());
    assert!(asked(&evil, "/state_ids/") > 0 && asked(&server, "/state_ids/") > 0);
    scene.is_shown(std::slice::from_ref(said));
    let kept = |server: &str| {
        let sql = "SELECT COALESCE(SUM(bytes), 0) FROM kept_for_strangers WHERE room_id <> '' AND server";
        scene.a.database.rows(&format!("{sql} = '{server}'"))[0][0].parse::<u64>().unwrap()
    };
    assert_eq!(kept("evil.example"), 0);
    assert!((1_000..20_000).contains(&kept("carol.example")), "{}", kept("carol.example"));
}

/// Carol, of another server, joins by way of Bob's and says so many things: her join and those, and the state after the join.
fn joins_and_talks(scene: &mut Scene, server: &Peer, messages: usize) -> (Vec<Known>, Vec<String>) {
    let carol = server.user("carol");
    let draft = scene.theirs.draft_member(scene.world.now_ms(), &carol, &carol, json!({ "membership": "join" }));
    let join = server.sign(&scene.theirs.version, draft);
    scene.theirs.state.insert(("m.room.member".to_owned(), carol.clone()), join.1.clone());
    scene.theirs.advance(&join.0);
    let mut events = vec![join];
    events.extend((0..messages).map(|n| scene.theirs.say(server, &carol, &n.to_string())));
    (events, scene.theirs.state.values().map(|event| event_id(&scene.theirs.version, event)).collect())
}
