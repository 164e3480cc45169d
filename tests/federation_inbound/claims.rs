//! What servers say of the state before an event whose ancestors nobody gives.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use http::StatusCode;
use serde_json::{Value, json};
use verge::router::{Request, json_response};

use crate::{
    Scene,
    common::peer::{Peer, event_id},
    extremities::empower,
    missing::{answer_of, asked, claims, gives, holds, is_empty_handed, not_found, sends, takes},
    scene,
    settling::claims_what_is_old,
};

/// An event and its ID.
type Known = (String, Value);

/// The server tells which states were before these events, and no others, and gives the `known` ones.
fn knows_states(server: &Peer, states: Vec<(String, Vec<String>)>, known: Vec<Known>) {
    server.answers(move |request| {
        let target = request.uri().to_string();
        let asked_about = states.iter().find(|(id, _)| target.ends_with(&id[1..]));
        if let Some((_, state)) = asked_about.filter(|_| target.contains("/state_ids/")) {
            return Some(json_response(StatusCode::OK, &json!({ "pdu_ids": state, "auth_chain_ids": [] })));
        }
        answer_of(&known, request).or_else(|| target.contains("/federation/v1/").then(not_found))
    });
}

/// A server may claim a state of long ago, or one without what it dislikes.
#[test]
fn two_servers_are_asked_for_the_state_before_a_gap() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let mut state: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
    let dave = scene.peer.user("dave");
    let join = scene.becomes(&dave, "join");
    let said = scene.say(2);
    claims(&scene.peer, &[&said[0]], state.clone());
    state.push(join.0.clone());
    claims(&third, &[&said[0], &join], state);
    takes(&scene.peer, &scene, "1", &said[1]);
    scene.world.settle();
    scene.is_shown(&said[1..]);
    assert_eq!((asked(&scene.peer, "/state_ids/"), asked(&third, "/state_ids/")), (1, 1));
    assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
}

/// While the others are away, one server claims a state of long ago, by which what Dave says is rejected, be it much later; and nobody
/// ever gives the history that would show what is so.
#[test]
fn who_could_not_say_what_the_state_before_a_gap_was_is_asked_later() {
    for (version, hours) in [("10", 0), ("12", 0), ("12", 20), ("12", 47)] {
        let mut scene = scene(version);
        let (third, _) = scene.member("third.example", "carol");
        let (old, bob, dave) = (scene.state(), scene.bob.clone(), scene.peer.user("dave"));
        let [_, join, edge] = [scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.says(&bob, "the edge")];
        claims_what_is_old(&scene, &[join.clone(), edge.clone()], &old, &Rc::new(Cell::new(false)));
        let state = old.iter().map(|event| event_id(version, event)).chain([join.0.clone()]).collect();
        claims(&third, &[&edge, &join], state);
        scene.world.cut("a.example", "third.example");
        let [heard, said] = [scene.says(&bob, "on top of it"), scene.says(&dave, "am I heard?")];
        scene.receives(&heard.0, &heard);
        (0..hours).for_each(|_| scene.an_hour_passes());
        scene.receives(&said.0, &said);
        (0..2).for_each(|_| scene.an_hour_passes());
        assert_eq!([&heard, &said].map(|event| scene.a.shows(&event.0)), [true, false]);
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE provisional"), 1);

        scene.world.mend("a.example", "third.example");
        scene.an_hour_passes();
        scene.is_shown(&[said]);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events"), 0);
        let asked_so_far = asked(&third, "/state_ids/");
        (0..3).for_each(|_| scene.an_hour_passes());
        assert_eq!(asked(&third, "/state_ids/"), asked_so_far, "there is no need");
    }
}

/// Bob's server, which claims what is old, gives one further event of a long history whenever it is asked for that.
#[test]
fn who_gives_little_history_each_time_does_not_keep_us_from_asking_others() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let (old, bob, dave) = (scene.state(), scene.bob.clone(), scene.peer.user("dave"));
    let join = scene.becomes(&dave, "join");
    let history = scene.say(101);
    let edge = history.last().cloned().unwrap();
    let chain = [old.clone(), vec![join.1.clone()]].concat();
    let old: Vec<String> = old.iter().map(|event| event_id("12", event)).collect();
    let known = [history, vec![join.clone()]].concat();
    let claimed = old.clone();
    scene.peer.answers(move |request| {
        let target = request.uri().to_string();
        let body = if target.contains("/get_missing_events/") {
            json!({ "events": [] })
        } else if target.contains("/state_ids/") {
            json!({ "pdu_ids": claimed, "auth_chain_ids": [] })
        } else if target.contains("/event_auth/") {
            json!({ "auth_chain": chain })
        } else if target.contains("/backfill/") {
            // Who is in the gap is not told.
            let events =
                known.iter().filter(|(id, event)| target.contains(&id[1..]) && !event["state_key"].is_string());
            json!({ "pdus": events.map(|(_, event)| event).take(1).collect::<Vec<_>>() })
        } else {
            return answer_of(&known, request);
        };
        Some(json_response(StatusCode::OK, &body))
    });
    claims(&third, &[&edge, &join], [old, vec![join.0.clone()]].concat());
    scene.world.cut("a.example", "third.example");
    let [heard, said] = [scene.says(&bob, "on top of it"), scene.says(&dave, "am I heard?")];
    [&heard, &said].into_iter().for_each(|event| scene.receives(&event.0, event));
    scene.an_hour_passes();
    assert_eq!([&heard, &said].map(|event| scene.a.shows(&event.0)), [true, false]);
    assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE provisional"), 1);
    assert_eq!(asked(&scene.peer, "/backfill/"), 5);

    scene.world.mend("a.example", "third.example");
    (0..4).for_each(|_| scene.an_hour_passes());
    scene.is_shown(&[said]);
}

/// Bob's server leaves Dave's join out of what it claims, and `third`, which knows better, is not reached: what Bob and Dave say then.
fn dave_is_not_heard(scene: &mut Scene, third: &Peer) -> [(String, Value); 2] {
    let (old, bob, dave) = (scene.state(), scene.bob.clone(), scene.peer.user("dave"));
    let [_, join, edge] = [scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.says(&bob, "the edge")];
    claims_what_is_old(scene, &[join.clone(), edge.clone()], &old, &Rc::new(Cell::new(false)));
    let state = old.iter().map(|event| event_id("12", event)).chain([join.0.clone()]).collect();
    claims(third, &[&edge, &join], state);
    scene.world.cut("a.example", "third.example");
    let [heard, said] = [scene.says(&bob, "on top of it"), scene.says(&dave, "am I heard?")];
    [&heard, &said].into_iter().for_each(|event| scene.receives(&event.0, event));
    [heard, said]
}

/// Each hour more becomes known of the room, as members can see to: then it is looked at as if for the first time. Nor does any server say
/// in time that it has no history.
#[test]
fn who_lets_more_be_known_each_time_does_not_keep_us_from_asking_others() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let _theirs = [("fourth.example", "erin"), ("fifth.example", "frank")].map(|(host, user)| scene.member(host, user));
    let [heard, said] = dave_is_not_heard(&mut scene, &third);
    for host in ["peer.example", "third.example", "fourth.example", "fifth.example"] {
        scene.world.answer_late(host, "/backfill/", 40_000);
    }
    scene.world.mend("a.example", "third.example");
    assert_eq!([&heard, &said].map(|event| scene.a.shows(&event.0)), [true, false]);
    for _ in 0..3 {
        scene.a.database.rows("UPDATE unsettled_rooms SET attempts = 0, since = 0, retry_at = 0");
        scene.an_hour_passes();
    }
    scene.is_shown(&[said]);
}

/// Mallory, who has left, says more of what is hidden, as the room rests on a claim, than is judged again at a time; Bob's server relays it.
#[test]
fn who_has_very_much_hidden_does_not_keep_us_from_asking_others() {
    const MINUTES: usize = 20;
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let (mallory, hers) = scene.member("mallory.example", "mallory");
    let her = mallory.user("mallory");
    let draft = hers.draft_member(scene.world.now_ms(), &her, &her, json!({ "membership": "leave" }));
    let leave = mallory.sign("12", draft);
    scene.receives("leave", &leave);
    scene.theirs.advance(&leave.0);
    let [heard, said] = dave_is_not_heard(&mut scene, &third);
    let hidden: Vec<Value> = (0..850).map(|n| hers.say_upon(&mallory, &her, &n.to_string(), &[&hers.last]).1).collect();
    // Of a server that is not in the room any more so much would not be kept.
    for (n, pdus) in hidden.chunks(50).enumerate() {
        assert_eq!(scene.peer.send(&scene.a, &format!("hidden{n}"), pdus).0, 200);
    }
    scene.world.settle();
    assert_eq!([&heard, &said].map(|event| scene.a.shows(&event.0)), [true, false]);
    assert_eq!(scene.rows("SELECT 1 FROM events WHERE soft_failed AND claimed"), hidden.len());

    scene.world.mend("a.example", "third.example");
    let asked_so_far = asked(&third, "/state_ids/");
    let is_corrected = (0..MINUTES).any(|_| {
        scene.time_passes(60_000);
        scene.a.shows(&said.0)
    });
    assert!(is_corrected, "in {MINUTES} minutes");
    assert_eq!(scene.a.membership(&scene.world, &scene.room, &scene.peer.user("dave")).as_deref(), Some("join"));
    // Not in each of the looks at which there was more.
    let asked = asked(&third, "/state_ids/") - asked_so_far;
    assert!((1..=4).contains(&asked), "{asked} times");
}

/// Who has withheld an event that the rules forbid gives it later, and claims what is old before it, and what was built upon it. The
/// others have rejected it, and know the state before what was built upon that.
#[test]
fn who_has_rejected_an_event_is_asked_what_the_state_was_after_it() {
    for (version, edge, withheld) in [
        ("10", "said", 0),
        ("12", "said", 5),
        ("10", "joins", 0),
        ("12", "joins", 5),
        ("10", "has left", 0),
        ("12", "has left", 5),
    ] {
        let mut scene = scene(version);
        let (third, _) = scene.member("third.example", "carol");
        let [bob, dave, erin] = ["bob", "dave", "erin"].map(|name| scene.peer.user(name));
        let was_here = scene.becomes(&erin, "join");
        scene.receives("erin", &was_here);
        scene.world.advance(1);
        let old = scene.state();
        let [_, join, leave] = [scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.becomes(&erin, "leave")];
        let state: Vec<String> = scene.state().iter().map(|event| event_id(version, event)).collect();
        scene.world.advance(1);
        let key = ("m.room.member".to_owned(), erin.clone());
        let edge = match edge {
            "said" => scene.says(&bob, "the edge"),
            "joins" => scene.becomes(&bob, "join"),
            _ => {
                scene.theirs.state.insert(key.clone(), was_here.1.clone());
                let said = scene.says(&erin, "the edge");
                scene.theirs.state.insert(key, leave.1.clone());
                said
            }
        };
        claims_what_is_old(&scene, &[join.clone(), edge.clone()], &old, &Rc::new(Cell::new(false)));
        let on_top = scene.say(withheld + 1);
        let heard = on_top.last().cloned().unwrap();
        let known = [heard, join.clone(), leave.clone()];
        knows_states(&third, vec![(known[0].0.clone(), state)], known.to_vec());
        on_top.iter().for_each(|event| scene.receives(&event.0, event));
        let said = scene.says(&dave, "am I heard?");
        scene.receives("said", &said);
        scene.is_shown(&on_top);
        let why = format!("{version}, {}, {withheld}: {:#?}", edge.1, scene.world.logs());
        assert!(asked(&scene.peer, "/state_ids/") > 0, "{why}");
        assert!(!scene.a.shows(&said.0), "{why}");
        (0..3).for_each(|_| scene.an_hour_passes());
        assert!(scene.a.shows(&said.0), "{why}");
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events"), 0, "{why}");
        let memberships = [&dave, &erin].map(|user| scene.a.membership(&scene.world, &scene.room, user));
        assert_eq!(memberships.each_ref().map(Option::as_deref), [Some("join"), Some("leave")], "{why}");

        // And so it stays, without being asked about any more.
        scene.world.cut("a.example", "third.example");
        let more = [scene.says(&bob, "further"), scene.says(&dave, "still heard")];
        more.iter().for_each(|event| scene.receives(&event.0, event));
        (0..20).for_each(|_| scene.an_hour_passes());
        scene.is_shown(&[&[said], &more[..]].concat());
        assert_eq!(scene.rows("SELECT 1 FROM claims_beside"), 1, "{why}");
    }
}

/// Bob says who may join.
pub(crate) fn bob_admits(scene: &mut Scene, rule: &str) -> Known {
    scene.world.advance(1);
    let fields = json!({ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": rule } });
    let draft = scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields);
    let rules = scene.peer.sign(&scene.theirs.version, draft);
    scene.theirs.state.insert(("m.room.join_rules".to_owned(), String::new()), rules.1.clone());
    scene.theirs.advance(&rules.0);
    rules
}

/// Dave joins right upon such an event, by the rules of then; his server, which has let him in, knows what the state was.
#[test]
fn who_joins_upon_what_others_have_rejected_is_asked_about() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        empower(&mut scene);
        let (third, _) = scene.member("third.example", "carol");
        let (bob, dave) = (scene.bob.clone(), third.user("dave"));
        let closed = bob_admits(&mut scene, "invite");
        scene.receives("closed", &closed);
        let old = scene.state();
        let _lost = scene.says(&bob, "lost");
        let open = bob_admits(&mut scene, "public");
        let edge = scene.says(&bob, "the edge");
        scene.world.advance(1);
        let before_join: Vec<String> = scene.state().iter().map(|event| event_id(version, event)).collect();
        let draft = scene.theirs.draft_member(scene.world.now_ms(), &dave, &dave, json!({ "membership": "join" }));
        let join = third.sign(version, draft);
        scene.theirs.state.insert(("m.room.member".to_owned(), dave.clone()), join.1.clone());
        scene.theirs.advance(&join.0);
        let heard = scene.says(&bob, "on top of it");
        let said = scene.theirs.say(&third, &dave, "am I heard?");
        claims_what_is_old(&scene, &[open.clone(), edge, join.clone()], &old, &Rc::new(Cell::new(false)));
        let after_join = [before_join.clone(), vec![join.0.clone()]].concat();
        let states = vec![(join.0.clone(), before_join), (heard.0.clone(), after_join)];
        knows_states(&third, states, vec![join.clone(), heard.clone(), open]);
        scene.world.cut("a.example", "third.example");
        [&join, &heard, &said].into_iter().for_each(|event| scene.receives(&event.0, event));
        let why = format!("{version}: {:#?}", scene.world.logs());
        assert_eq!([&heard, &said].map(|event| scene.a.shows(&event.0)), [true, false], "{why}");
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE provisional"), 2, "{why}");
        scene.world.mend("a.example", "third.example");
        (0..4).for_each(|_| scene.an_hour_passes());
        scene.is_shown(&[said]);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"), "{why}");
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events"), 0, "{why}");
    }
}

/// What Dave says, who is banned, stays rejected, whatever is claimed. What was claimed there first stands beside what is claimed later.
#[test]
fn who_is_asked_about_what_stays_rejected_takes_nothing_out_of_what_was_claimed() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        empower(&mut scene);
        let (third, _) = scene.member("third.example", "carol");
        let [bob, dave, erin, frank] = ["bob", "dave", "erin", "frank"].map(|name| scene.peer.user(name));
        let was_here = scene.becomes(&dave, "join");
        scene.world.advance(1);
        let draft = scene.theirs.draft_member(scene.world.now_ms(), &bob, &dave, json!({ "membership": "ban" }));
        let banned = scene.peer.sign(version, draft);
        let key = ("m.room.member".to_owned(), dave.clone());
        scene.theirs.state.insert(key.clone(), banned.1.clone());
        scene.theirs.advance(&banned.0);
        [&was_here, &banned].into_iter().for_each(|event| scene.receives(&event.0, event));
        let old = scene.state();
        let joins = [&erin, &frank].map(|user| scene.becomes(user, "join"));
        let edge = scene.says(&bob, "the edge");
        scene.theirs.state.insert(key, was_here.1.clone());
        let [forbidden, said] = [&dave, &erin].map(|user| scene.says(user, "am I heard?"));
        let known = [&joins[..], std::slice::from_ref(&edge)].concat();
        claims_what_is_old(&scene, &known, &old, &Rc::new(Cell::new(false)));
        scene.world.cut("a.example", "third.example");
        [&forbidden, &said].into_iter().for_each(|event| scene.receives(&event.0, event));
        assert!(!scene.a.shows(&said.0));

        scene.world.mend("a.example", "third.example");
        for (_, event) in &joins {
            // Where Dave was not banned yet.
            let state = old.iter().filter(|event| **event != banned.1).chain([event, &was_here.1]);
            let state: Vec<String> = state.map(|event| event_id(version, event)).collect();
            knows_states(&third, vec![(forbidden.0.clone(), state)], known.clone());
            (0..4).for_each(|_| scene.an_hour_passes());
            assert_eq!([&forbidden, &said].map(|event| scene.a.shows(&event.0)), [false, true], "{version}");
        }
        let memberships = [&dave, &erin, &frank].map(|user| scene.a.membership(&scene.world, &scene.room, user));
        assert_eq!(memberships.each_ref().map(Option::as_deref), [Some("ban"), Some("join"), Some("join")]);
        // Nor is it forgotten when the asking has an end.
        scene.world.cut("a.example", "third.example");
        (0..60).for_each(|_| scene.an_hour_passes());
        assert_eq!(scene.rows("SELECT 1 FROM unsettled_rooms"), 0);
        let more = scene.says(&bob, "further");
        scene.receives(&more.0, &more);
        (0..3).for_each(|_| scene.an_hour_passes());
        scene.is_shown(&[said, more]);
    }
}

/// Who set the topic has left since: by what resolving gives for a topic that one side has and the other has not, there would be none.
#[test]
fn who_is_asked_later_takes_nothing_out_of_what_was_claimed() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let (third, _) = scene.member("third.example", "carol");
        let users = if version == "12" { json!({}) } else { json!({ scene.alice.as_str(): 100 }) };
        scene.alice_sets("m.room.power_levels", json!({ "users": users, "events": { "m.room.topic": 0 } }));
        let (bob, dave, erin) = (scene.bob.clone(), scene.peer.user("dave"), scene.peer.user("erin"));
        let mut set = vec![scene.becomes(&erin, "join")];
        let topic = json!({ "type": "m.room.topic", "state_key": "", "content": { "topic": "what Erin likes" } });
        let topic = scene.peer.sign(version, scene.theirs.draft(scene.world.now_ms(), &erin, topic));
        scene.theirs.state.insert(("m.room.topic".to_owned(), String::new()), topic.1.clone());
        scene.theirs.advance(&topic.0);
        set.extend([topic.clone(), scene.becomes(&erin, "leave")]);
        set.iter().for_each(|event| scene.receives(&event.0, event));
        scene.is_shown(&set);

        let old = scene.state();
        let [_, join, edge] = [scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.says(&bob, "the edge")];
        claims_what_is_old(&scene, &[join.clone(), edge.clone()], &old, &Rc::new(Cell::new(false)));
        let without = old.iter().map(|event| event_id(version, event)).filter(|id| *id != topic.0);
        claims(&third, &[&edge, &join], without.chain([join.0.clone()]).collect());
        scene.world.cut("a.example", "third.example");
        let [heard, said] = [scene.says(&bob, "on top of it"), scene.says(&dave, "am I heard?")];
        [&heard, &said].into_iter().for_each(|event| scene.receives(&event.0, event));
        scene.world.mend("a.example", "third.example");
        scene.an_hour_passes();
        scene.is_shown(&[heard, said]);
        let current = scene.a.rooms.current(&scene.room, &[("m.room.topic", "")]);
        let (_, current) = scene.world.run(current).unwrap().unwrap();
        assert_eq!(current.first().map(|event| event.event_id().as_str()), Some(topic.0.as_str()), "version {version}");
    }
}

/// Nobody is asked without end, be it that they say something else each time: once an hour, for two days, of either event.
#[test]
fn what_a_claim_rejects_is_asked_about_for_two_days() {
    for says in ["the same", "something new", "something altered", "what is forbidden"] {
        let mut scene = scene("12");
        let (third, mut theirs) = scene.member("third.example", "carol");
        let (carol, erin) = (third.user("carol"), scene.peer.user("erin"));
        let was_here = scene.becomes(&erin, "join");
        let has_left = scene.becomes(&erin, "leave");
        [&was_here, &has_left].into_iter().for_each(|event| scene.receives(&event.0, event));
        theirs.state.insert(("m.room.member".to_owned(), erin.clone()), was_here.1);
        let (old, bob, dave) = (scene.state(), scene.bob.clone(), scene.peer.user("dave"));
        let [_, join, edge] = [scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.says(&bob, "the edge")];
        claims_what_is_old(&scene, &[join.clone(), edge.clone()], &old, &Rc::new(Cell::new(false)));
        let old: Vec<String> = old.iter().map(|event| event_id("12", event)).collect();
        let (signs, clock) = ([Rc::clone(&scene.peer), Rc::clone(&third)], scene.world.clone());
        theirs.last = edge.0.clone();
        let newest = RefCell::new(None);
        let events = [edge.clone(), join.clone()];
        third.answers(move |request| {
            let path = request.uri().path();
            if !path.contains("/state_ids/") {
                let newest: Vec<Known> = newest.borrow().iter().chain(&events).cloned().collect();
                return answer_of(&newest, request).or_else(|| path.contains("/federation/v1/").then(not_found));
            }
            let mut state = old.clone();
            let (now, user) = (clock.now_ms(), signs[0].user(&clock.now_ms().to_string()));
            let member = match says {
                "the same" => None,
                "something new" => {
                    let content = json!({ "membership": "join", "displayname": user });
                    Some(signs[1].sign("12", theirs.draft_member(now, &carol, &carol, content)))
                }
                "something altered" => {
                    let content = json!({ "membership": "join", "displayname": user });
                    let mut member = signs[1].sign("12", theirs.draft_member(now, &carol, &carol, content));
                    member.1["content"]["displayname"] = json!("altered");
                    Some(member)
                }
                // What nobody says who is not in the room.
                _ => {
                    let content = json!({ "membership": "invite" });
                    Some(signs[0].sign("12", theirs.draft_member(now, &erin, &user, content)))
                }
            };
            state.extend(member.as_ref().map(|member| member.0.clone()));
            newest.replace(member);
            Some(json_response(StatusCode::OK, &json!({ "pdu_ids": state, "auth_chain_ids": [] })))
        });
        let [heard, said] = [scene.says(&bob, "on top of it"), scene.says(&dave, "am I heard?")];
        [&heard, &said].into_iter().for_each(|event| scene.receives(&event.0, event));
        let after = |hours: i64| {
            (0..hours * 6).for_each(|_| scene.time_passes(600_000));
            asked(&third, "/state_ids/")
        };
        let asked_so_far = after(50);
        assert!(!scene.a.shows(&said.0));
        // Of a few events an hour.
        assert!((2..=300).contains(&asked_so_far), "{says}: {asked_so_far}");
        assert_eq!(after(50), asked_so_far, "{says}");
    }
}

/// A server that tells truly which events make a state may give one of them altered. Its own server has it whole.
#[test]
fn state_that_is_given_altered_for_a_claim_is_made_whole() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        empower(&mut scene);
        let (third, mut theirs) = scene.member("third.example", "carol");
        let mut state: Vec<String> = scene.theirs.state.values().map(|event| event_id(version, event)).collect();
        state.push(theirs.last.clone());
        // Nobody gives what the ACL follows.
        scene.say(1);
        let content = json!({ "allow": ["*"], "deny": ["mallory.example"] });
        let fields = json!({ "type": "m.room.server_acl", "state_key": "", "content": content });
        let (id, acl) = scene.peer.sign(version, scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields));
        state.push(id.clone());
        theirs.advance(&id);
        let carol = third.user("carol");
        let said = ["one", "two"].map(|text| theirs.say(&third, &carol, text));
        let mut altered = acl.clone();
        altered["content"]["deny"] = json!([]);
        claims(&third, &[&said[0], &(id.clone(), altered)], state);
        holds(&scene.peer, &[(id.clone(), acl)]);
        takes(&third, &scene, "1", &said[1]);
        scene.world.settle();
        scene.is_shown(&said[1..]);
        let current = scene.a.rooms.current(&scene.room, &[("m.room.server_acl", "")]);
        let (_, current) = scene.world.run(current).unwrap().unwrap();
        assert_eq!(current[0].event_id().as_str(), id);
        let held: Value = serde_json::from_str(current[0].json()).unwrap();
        assert_eq!(held["content"], content, "{:#?}", scene.world.logs());
    }
}

/// A server that claims what came later rejects nothing: neither Dave's leave, which would stand before itself, nor what he has said
/// before it.
#[test]
fn a_state_that_comes_after_an_event_is_not_the_state_before_it() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let (third, _) = scene.member("third.example", "carol");
        let dave = scene.peer.user("dave");
        let join = scene.becomes(&dave, "join");
        takes(&scene.peer, &scene, "0", &join);
        scene.world.advance(1_000);
        let ids = |scene: &Scene| scene.theirs.state.values().map(|event| event_id(version, event)).collect();
        let before: Vec<String> = ids(&scene);
        let said = scene.say(2);
        let dave_says = scene.theirs.clone().say(&scene.peer, &dave, "good-bye");
        let leave = scene.becomes(&dave, "leave");
        claims(&scene.peer, &[&said[1]], before);
        claims(&third, &[&said[1], &leave], ids(&scene));
        for (txn_id, event) in [("1", &dave_says), ("2", &leave)] {
            takes(&scene.peer, &scene, txn_id, event);
            scene.world.settle();
        }
        assert_eq!(asked(&third, "/state_ids/"), 1);
        scene.is_shown(&[dave_says, leave]);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("leave"));
    }
}

/// As above, where it cannot be seen in the claim that it comes after the event.
#[test]
fn what_is_claimed_to_stand_before_itself_is_judged_by_what_it_cites() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        let (third, _) = scene.member("third.example", "carol");
        let dave = scene.peer.user("dave");
        let join = scene.becomes(&dave, "join");
        takes(&scene.peer, &scene, "0", &join);
        scene.world.advance(1_000);
        let said = scene.say(3);
        let leave = scene.becomes(&dave, "leave");
        is_empty_handed(&scene.peer);
        let after = scene.theirs.state.values().map(|event| event_id(version, event)).collect();
        claims(&third, &[&said[1], &leave], after);
        for (txn_id, event) in [("1", &said[2]), ("2", &leave)] {
            takes(&scene.peer, &scene, txn_id, event);
            scene.world.settle();
            scene.is_shown(std::slice::from_ref(event));
        }
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("leave"));
    }
}

/// Bob has invited Dave, and left. That is known as part of a claimed state, and so of the current one, before the invite comes by
/// itself: who has left may have invited somebody before.
#[test]
fn what_stands_in_the_current_state_is_not_forbidden_by_it() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        empower(&mut scene);
        let carol = scene.peer.user("carol");
        let join = scene.becomes(&carol, "join");
        takes(&scene.peer, &scene, "0", &join);
        // The place of the invite is not known before this has come.
        let before = scene.theirs.say(&scene.peer, &carol, "before it");
        // Of what differs between two states, what came later counts.
        scene.world.advance(1);
        let dave = scene.peer.user("dave");
        let content = json!({ "membership": "invite" });
        let invite = scene.theirs.draft_member(scene.world.now_ms(), &scene.bob, &dave, content);
        let invite = scene.peer.sign(version, invite);
        scene.theirs.state.insert(("m.room.member".to_owned(), dave.clone()), invite.1.clone());
        scene.theirs.advance(&invite.0);
        scene.world.advance(1);
        let leave = scene.becomes(&scene.bob.clone(), "leave");
        let state = scene.theirs.state.values().map(|event| event_id(version, event)).collect();
        let said = ["one", "two", "three"].map(|text| scene.theirs.say(&scene.peer, &carol, text));
        claims(&scene.peer, &[&said[1], &invite, &leave], state);
        takes(&scene.peer, &scene, "1", &said[2]);
        scene.world.settle();
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("invite"));
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &scene.bob).as_deref(), Some("leave"));
        assert!(!scene.a.shows(&invite.0));
        takes(&scene.peer, &scene, "2", &before);
        takes(&scene.peer, &scene, "3", &invite);
        scene.world.settle();
        scene.is_shown(&[before, invite]);
    }
}

/// Who has rejected an event gives it to nobody, and shows what was built upon it nevertheless.
#[test]
fn what_cites_an_event_that_nobody_gives_is_judged_by_the_state_before_it() {
    let mut scene = scene("12");
    let (third, _) = scene.member("third.example", "carol");
    let state: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
    let said = scene.say(3);
    // Nobody who has what follows says that nobody gives the first one: it may still come.
    is_empty_handed(&scene.peer);
    gives(&third, &[&said[1]], &[&said[0], &said[1]], Vec::new());
    takes(&scene.peer, &scene, "1", &said[2]);
    scene.world.settle();
    assert!(said.iter().all(|(id, _)| !scene.a.shows(id)));
    gives(&third, &[&said[1]], &[&said[1]], state);
    scene.world.advance(60 * 60 * 1_000);
    scene.world.run(scene.a.scheduled());
    scene.world.settle();
    scene.is_shown(&said[1..]);
    assert!(!scene.a.shows(&said[0].0));
    // When it comes, it is what it would have been.
    takes(&scene.peer, &scene, "2", &said[0]);
    scene.world.settle();
    scene.is_shown(&said);
}

/// However many of those it cites.
#[test]
fn what_cites_many_events_that_nobody_gives_is_judged_all_the_same() {
    for (version, count) in [("10", 6), ("12", 20)] {
        let mut scene = scene(version);
        let (third, _) = scene.member("third.example", "carol");
        let state: Vec<String> = scene.theirs.state.values().map(|event| event_id(version, event)).collect();
        let lost = (0..count).map(|n| scene.theirs.clone().say(&scene.peer, &scene.bob, &format!("lost {n}")).0);
        let lost: Vec<String> = lost.collect();
        let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
        let built = scene.theirs.say_upon(&scene.peer, &scene.bob, "built upon all of them", &lost);
        scene.theirs.advance(&built.0);
        let said = scene.say(1);
        is_empty_handed(&scene.peer);
        gives(&third, &[&built], &[&built], state);
        takes(&scene.peer, &scene, "1", &said[0]);
        scene.world.settle();
        scene.is_shown(&[built, said[0].clone()]);
    }
}

/// Bob lets Dave in, who joins: the invite is an auth event of the join, and no part of the state. One server claims the state and
/// withholds either of them; as long as nobody gives it, the state is not believed without.
#[test]
fn a_claimed_state_is_believed_whole_or_not_at_all() {
    for withheld in ["join", "invite"] {
        let mut scene = scene("12");
        let (third, _) = scene.member("third.example", "carol");
        let dave = scene.peer.user("dave");
        let mut state: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
        let content = json!({ "membership": "invite" });
        let draft = scene.theirs.draft_member(scene.world.now_ms(), &scene.bob, &dave, content);
        let invite = scene.peer.sign("12", draft);
        scene.theirs.state.insert(("m.room.member".to_owned(), dave.clone()), invite.1.clone());
        scene.theirs.advance(&invite.0);
        let content = json!({ "membership": "join" });
        let draft = scene.theirs.draft_member(scene.world.now_ms(), &dave, &dave, content);
        let join = scene.peer.sign("12", draft);
        scene.theirs.advance(&join.0);
        let said = scene.say(2);
        state.push(join.0.clone());
        let (given, kept) = if withheld == "join" { (&invite, &join) } else { (&join, &invite) };
        claims(&scene.peer, &[&said[0], given], state);
        is_empty_handed(&third);
        takes(&scene.peer, &scene, "1", &said[1]);
        scene.world.settle();
        assert!(!scene.a.shows(&said[1].0), "without the {withheld}");
        // Somebody has it.
        holds(&third, std::slice::from_ref(kept));
        scene.world.advance(3_600_000);
        scene.world.run(scene.a.scheduled());
        scene.world.settle();
        scene.is_shown(&said[1..]);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
    }
}

#[test]
fn a_claimed_state_makes_us_load_no_more_than_a_state() {
    let mut scene = scene("12");
    let messages: Vec<Known> =
        (0..100).map(|_| scene.theirs.say(&scene.peer, &scene.bob, &"x".repeat(20_000))).collect();
    sends(&scene, &messages);
    let other = scene.a.public_room(&scene.world, &scene.alice, "12");
    let elsewhere = scene.a.say(&scene.world, &other, &scene.alice, "secret").event_id().to_string();
    let said = scene.say(2);
    let mut state: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
    // What is no state of this room, though we hold it, makes no difference.
    state.extend(messages.iter().map(|(id, _)| id.clone()).chain([elsewhere]));
    claims(&scene.peer, &[&said[0]], state);
    let before = scene.a.database.read.get();
    takes(&scene.peer, &scene, "said", &said[1]);
    scene.world.settle();
    scene.is_shown(&said[1..]);
    // Of each message we read what it is, and not itself.
    let read = scene.a.database.read.get() - before;
    assert!(read < 200_000, "{read} bytes were read");
}

/// The room's members say much of themselves, and we hold it all. A claimed state names them, or holds an event that cites them.
#[test]
fn what_is_held_of_a_claimed_state_counts_against_the_memory_for_it() {
    for (members, is_cited) in [(100, false), (100, true), (170, false), (170, true)] {
        let mut scene = scene("12");
        let rules = scene.theirs.state_id("m.room.join_rules", "").unwrap();
        let others: Vec<String> = scene.theirs.state.values().map(|event| event_id("12", event)).collect();
        let joins: Vec<Known> = (0..members)
            .map(|n| {
                let user = scene.peer.user(&format!("member{n}"));
                let content = json!({ "membership": "join", "about": "x".repeat(60_000) });
                let fields = json!({ "type": "m.room.member", "state_key": user, "content": content });
                let mut draft = scene.theirs.draft(scene.world.now_ms(), &user, fields);
                draft["auth_events"].as_array_mut().unwrap().push(json!(rules));
                let join = scene.peer.sign("12", draft);
                scene.theirs.advance(&join.0);
                join
            })
            .collect();
        sends(&scene, &joins);
        let ids: Vec<String> = joins.iter().map(|(id, _)| id.clone()).collect();
        let fields = json!({ "type": "m.room.topic", "state_key": "", "content": {}, "auth_events": ids });
        let citing = scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields));
        let named = if is_cited { vec![citing.0.clone()] } else { ids };
        let said = scene.say(2);
        claims(&scene.peer, &[&said[0], &citing], [others, named].concat());
        let before = scene.a.database.read.get();
        takes(&scene.peer, &scene, "said", &said[1]);
        scene.world.settle();
        let read = scene.a.database.read.get() - before;
        let fits = members == 100;
        assert_eq!(scene.a.shows(&said[1].0), fits, "{members} members, cited: {is_cited}: {:#?}", scene.world.logs());
        if !fits {
            assert!(read < 1_000_000, "{read} bytes were read, cited: {is_cited}");
            let why = match is_cited {
                false => "a state that a server claims takes more memory than there is",
                true => "a state that a server claims cannot be obtained whole",
            };
            assert!(scene.world.logs().iter().any(|line| line.contains(why)), "{:#?}", scene.world.logs());
        }
    }
}

#[test]
fn a_claimed_state_without_end_is_not_used() {
    let mut scene = scene("12");
    let said = scene.say(2);
    let state: Vec<String> = (0..120_000).map(|i| format!("${i:043}")).collect();
    claims(&scene.peer, &[&said[0]], state);
    takes(&scene.peer, &scene, "1", &said[1]);
    scene.world.settle();
    assert!(!scene.a.shows(&said[1].0));
    assert_eq!((asked(&scene.peer, "/state_ids/"), asked(&scene.peer, "/v1/state/")), (1, 0));
}

/// Bob's server fails in the midst of the state that it claims, and goes on failing for a while. What Carol's has sent in the same room
/// is judged in the same look, whichever comes first.
#[test]
fn a_server_that_fails_ends_only_what_it_has_sent() {
    for bob_is_first in [true, false] {
        let mut scene = scene("12");
        let (third, mut hers) = scene.member("third.example", "carol");
        let state: Vec<String> = hers.state.values().map(|event| event_id("12", event)).collect();
        let dave = scene.peer.user("dave");
        let join = scene.becomes(&dave, "join");
        let of_bob = scene.say(2);
        let of_carol = ["the edge", "after it"].map(|text| hers.say(&third, &third.user("carol"), text));
        is_empty_handed(&scene.peer);
        is_empty_handed(&third);
        let mut sent = [(&scene.peer, &of_bob[1]), (&third, &of_carol[1])];
        sent.sort_by_key(|(peer, _)| (peer.name == "peer.example") != bob_is_first);
        for (peer, event) in sent {
            takes(peer, &scene, "1", event);
            scene.world.settle();
            scene.world.advance(1);
        }
        assert_eq!(scene.a.database.rows("SELECT count(*) FROM staged_pdus"), [["2"]]);

        let fails = Rc::new(Cell::new(true));
        let give = |events: Vec<Known>, state: Vec<String>, fails: Rc<Cell<bool>>| {
            move |request: &Request| {
                let target = request.uri().to_string();
                if target.contains("/get_missing_events/") {
                    return Some(json_response(StatusCode::OK, &json!({ "events": [] })));
                }
                // Neither says anything of the other's edge.
                if target.contains("/state_ids/") && target.contains(&events[0].0[1..]) {
                    let body = json!({ "pdu_ids": state, "auth_chain_ids": [] });
                    return Some(json_response(StatusCode::OK, &body));
                }
                if fails.get() && events.get(1).is_some_and(|(id, _)| target.ends_with(&id[1..])) {
                    let error = json!({ "errcode": "M_UNKNOWN", "error": "?" });
                    return Some(json_response(StatusCode::SERVICE_UNAVAILABLE, &error));
                }
                let answer = answer_of(&events, request);
                answer.or_else(|| target.contains("/_matrix/federation/v1/").then(not_found))
            }
        };
        let with_dave = [state.clone(), vec![join.0.clone()]].concat();
        scene.peer.answers(give(vec![of_bob[0].clone(), join.clone()], with_dave, Rc::clone(&fails)));
        third.answers(give(vec![of_carol[0].clone()], state, Rc::default()));
        let an_hour_passes = || {
            scene.world.advance(3_600_000);
            scene.world.run(scene.a.scheduled());
            scene.world.settle();
        };
        an_hour_passes();
        let logs = scene.world.logs();
        assert!(logs.iter().any(|line| line.contains("a server does not give the events of a state")), "{logs:#?}");
        assert!(scene.a.shows(&of_carol[1].0), "{logs:#?}");
        assert_eq!(scene.a.database.rows("SELECT event_id FROM staged_pdus"), [[of_bob[1].0.clone()]]);
        fails.set(false);
        an_hour_passes();
        scene.is_shown(&[of_bob[1].clone(), of_carol[1].clone()]);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
    }
}
