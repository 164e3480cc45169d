//! Altered copies of events of which the rules read what is lost: they keep nobody out once a whole copy comes.

use std::rc::Rc;

use http::StatusCode;
use serde_json::{Value, json};
use verge::{room::Draft, router::json_response};

use crate::{
    Scene,
    common::{
        homeserver::object,
        peer::{Peer, event_id},
    },
    missing::{answer_of, not_found, takes},
    scene,
    third_party_invites::Identity,
};

/// An event and its ID.
type Known = (String, Value);

/// A room of version 8 that nobody joins but whom Carol of a third server lets in. There redaction drops who has let somebody in.
struct Restricted {
    scene: Scene,
    third: Rc<Peer>,
    carol: String,
}

fn restricted() -> Restricted {
    let mut scene = scene("8");
    let (third, hers) = scene.member("third.example", "carol");
    let carol = third.user("carol");
    let key = ("m.room.member".to_owned(), carol.clone());
    scene.theirs.state.insert(key.clone(), hers.state[&key].clone());
    let allow = json!([{ "type": "m.room_membership", "room_id": "!elsewhere:third.example" }]);
    let rules = json!({ "join_rule": "restricted", "allow": allow });
    let draft = Draft::state("m.room.join_rules", "", object(rules));
    let rules = scene.a.send(&scene.world, &scene.room, &scene.alice, draft);
    let key = ("m.room.join_rules".to_owned(), String::new());
    scene.theirs.state.insert(key, serde_json::from_str(rules.json()).unwrap());
    scene.theirs.advance(rules.event_id().as_str());
    scene.world.settle();
    Restricted { scene, third, carol }
}

impl Restricted {
    /// Somebody on Bob's server, and how they join, as Carol lets them.
    fn let_in(&mut self, name: &str) -> (String, Known) {
        let Self { scene, third, carol } = self;
        let user = scene.peer.user(name);
        let content = json!({ "membership": "join", "join_authorised_via_users_server": carol });
        let fields = json!({ "type": "m.room.member", "state_key": user, "content": content });
        let mut draft = scene.theirs.draft(scene.world.now_ms(), &user, fields);
        for (event_type, state_key) in [("m.room.join_rules", ""), ("m.room.member", carol.as_str())] {
            let id = scene.theirs.state_id(event_type, state_key).unwrap();
            draft["auth_events"].as_array_mut().unwrap().push(json!(id));
        }
        let (_, join) = scene.peer.sign("8", draft);
        let (id, join) = third.sign_only("8", join);
        scene.theirs.state.insert(("m.room.member".to_owned(), user.clone()), join.clone());
        scene.theirs.advance(&id);
        (user, (id, join))
    }

    fn membership(&self, user: &str) -> Option<String> {
        self.scene.a.membership(&self.scene.world, &self.scene.room, user)
    }

    fn rejected(&self) -> Vec<Vec<String>> {
        self.scene.a.database.rows("SELECT event_id FROM rejected_events")
    }
}

fn altered((id, event): &Known) -> Known {
    let mut event = event.clone();
    event["content"]["displayname"] = json!("altered");
    (id.clone(), event)
}

/// Who relays an event may do so before its own server does.
#[test]
fn who_was_let_in_is_in_though_an_altered_copy_came_first() {
    let mut room = restricted();
    let (dave, join) = room.let_in("dave");
    let said = ["one", "two"].map(|text| room.scene.theirs.say(&room.scene.peer, &dave, text));
    let refused = |answer: (u16, Value), id: &str| assert!(answer.1["pdus"][id]["error"].is_string(), "{answer:?}");
    refused(room.third.send(&room.scene.a, "1", &[altered(&join).1]), &join.0);
    // Nor does it come in again and again.
    refused(room.third.send(&room.scene.a, "2", &[altered(&join).1]), &join.0);
    refused(room.scene.peer.send(&room.scene.a, "1", &[said[0].1.clone()]), &said[0].0);
    room.scene.world.settle();
    assert_eq!(room.membership(&dave), None);
    takes(&room.scene.peer, &room.scene, "2", &join);
    room.scene.world.settle();
    assert_eq!(room.membership(&dave).as_deref(), Some("join"));
    room.scene.peer.send(&room.scene.a, "3", &[said[1].1.clone()]);
    room.scene.world.settle();
    room.scene.world.run(room.scene.a.scheduled());
    room.scene.world.settle();
    room.scene.is_shown(&said);
    assert!(room.rejected().is_empty());
}

/// Carol has the whole copy, and builds upon it. Dave builds upon that alone.
#[test]
fn what_was_built_upon_an_altered_copy_is_judged_by_the_whole_one() {
    let mut room = restricted();
    let (dave, join) = room.let_in("dave");
    let hers = room.scene.theirs.say(&room.third, &room.carol, "welcome");
    let his = room.scene.theirs.say(&room.scene.peer, &dave, "thanks");
    let (_, answer) = room.third.send(&room.scene.a, "1", &[altered(&join).1]);
    assert!(answer["pdus"][&join.0]["error"].is_string(), "{answer}");
    takes(&room.third, &room.scene, "2", &hers);
    room.scene.world.settle();
    room.scene.world.run(room.scene.a.scheduled());
    for (txn_id, event) in [("1", &join), ("2", &his)] {
        room.scene.peer.send(&room.scene.a, txn_id, std::slice::from_ref(&event.1));
        room.scene.world.settle();
    }
    room.scene.world.run(room.scene.a.scheduled());
    room.scene.world.settle();
    room.scene.is_shown(&[join, hers, his]);
    assert_eq!(room.membership(&dave).as_deref(), Some("join"));
    assert!(room.rejected().is_empty());
    assert_eq!(room.scene.a.database.rows("SELECT SUM(claimed) FROM events"), [["0"]]);
    assert!(room.scene.a.database.rows("SELECT room_id FROM unsettled_rooms").is_empty());
}

/// It waits for what it cites, and an altered copy is judged before it.
#[test]
fn a_whole_copy_that_waits_is_not_lost_to_an_altered_one() {
    let mut room = restricted();
    let before = room.scene.theirs.say(&room.scene.peer, &room.scene.bob, "before");
    let (dave, join) = room.let_in("dave");
    room.scene.peer.send(&room.scene.a, "1", std::slice::from_ref(&join.1));
    room.scene.world.settle();
    assert_eq!(room.membership(&dave), None);
    room.third.send(&room.scene.a, "1", &[before.1, altered(&join).1]);
    for _ in 0..3 {
        room.scene.world.advance(3_600_000);
        room.scene.world.run(room.scene.a.scheduled());
        room.scene.world.settle();
    }
    assert_eq!(room.membership(&dave).as_deref(), Some("join"), "{:?}", room.rejected());
}

/// Nothing more can be found of them before a whole copy comes; and what room there is for texts is for what may be judged again.
#[test]
fn altered_copies_of_what_is_forbidden_are_not_kept_and_not_judged_again() {
    let Restricted { scene, third, carol } = restricted();
    for at in 0..20 {
        let users: serde_json::Map<_, _> = (0..500).map(|n| (format!("@{at}{n}:third.example"), json!(100))).collect();
        let fields = json!({ "type": "m.room.power_levels", "state_key": "", "content": { "users": users } });
        let (id, mut levels) = third.sign("8", scene.theirs.draft(scene.world.now_ms(), &carol, fields));
        levels["content"]["x"] = json!("added");
        let (_, answer) = third.send(&scene.a, &at.to_string(), &[levels]);
        assert!(answer["pdus"][&id]["error"].is_string(), "{answer}");
    }
    scene.world.settle();
    let rows = |sql| scene.a.database.rows(sql);
    assert_eq!(rows("SELECT COUNT(*), SUM(hash_wrong), SUM(bytes) FROM rejected_events"), [["20", "20", "0"]]);
    assert!(rows("SELECT room_id FROM unsettled_rooms").is_empty());
}

/// Carol's server tells truly which events make the state before hers, and gives one anew of those that are held, altered: in place of one
/// that nobody has, together with one that cites it.
#[test]
fn a_claim_does_not_put_altered_copies_in_the_place_of_what_is_held() {
    let mut room = restricted();
    let (dave, join) = room.let_in("dave");
    takes(&room.scene.peer, &room.scene, "1", &join);
    room.scene.world.settle();
    let his = room.scene.theirs.clone().say(&room.scene.peer, &dave, "I am in");

    let Restricted { scene, third, carol } = &mut room;
    let fields = json!({ "type": "m.room.member", "state_key": dave, "content": { "membership": "leave" } });
    let mut draft = scene.theirs.draft(scene.world.now_ms(), carol, fields);
    draft["auth_events"].as_array_mut().unwrap().push(json!(join.0));
    let leave = third.sign("8", draft);
    let state: Vec<String> = scene.theirs.state.values().map(|event| event_id("8", event)).collect();
    let said = ["lost", "the edge", "after it"].map(|text| scene.theirs.say(third, carol, text));
    let (edge, nowhere) = (said[1].clone(), "$nowhere");
    let (given, chain) = ([edge, leave.clone()], json!([leave.0, nowhere]));
    let (_, anew) = altered(&join);
    third.answers(move |request| {
        let path = request.uri().path();
        let body = if path.contains("/get_missing_events/") {
            json!({ "events": [] })
        } else if path.contains("/state_ids/") {
            json!({ "pdu_ids": state, "auth_chain_ids": chain })
        } else if path.ends_with(&nowhere[1..]) {
            json!({ "pdus": [anew] })
        } else {
            let answer = answer_of(&given, request);
            return answer.or_else(|| path.contains("/_matrix/federation/v1/").then(not_found));
        };
        Some(json_response(StatusCode::OK, &body))
    });
    takes(third, scene, "1", &said[2]);
    scene.world.settle();
    scene.is_shown(&said[2..]);
    assert!(!room.rejected().contains(&vec![join.0]), "{:#?}", room.scene.world.logs());
    takes(&room.scene.peer, &room.scene, "2", &his);
    room.scene.world.settle();
    room.scene.is_shown(&[his]);
    assert_eq!(room.membership(&dave).as_deref(), Some("join"));
}

/// What offers an invite has lost by whom it may be redeemed, and whoever redeems it is forbidden until it comes whole.
#[test]
fn what_an_altered_event_forbids_is_judged_again_when_that_is_whole() {
    let mut scene = scene("10");
    let (third, hers) = scene.member("third.example", "carol");
    let carol = third.user("carol");
    let key = ("m.room.member".to_owned(), carol.clone());
    scene.theirs.state.insert(key.clone(), hers.state[&key].clone());
    let (identity, dave) = (Identity::new(&scene.world), third.user("dave"));
    let fields = json!({ "type": "m.room.third_party_invite", "state_key": "tok", "content": identity.offer() });
    let offer = third.sign("10", scene.theirs.draft(scene.world.now_ms(), &carol, fields));
    scene.theirs.advance(&offer.0);
    let signed = identity.signed(&dave, "tok");
    let content = json!({ "membership": "invite", "third_party_invite": { "display_name": "x", "signed": signed } });
    let fields = json!({ "type": "m.room.member", "state_key": dave, "content": content });
    let mut draft = scene.theirs.draft(scene.world.now_ms(), &carol, fields);
    let rules = scene.theirs.state_id("m.room.join_rules", "").unwrap();
    draft["auth_events"].as_array_mut().unwrap().extend([json!(offer.0), json!(rules)]);
    let invite = third.sign("10", draft);
    takes(&third, &scene, "1", &altered(&offer));
    let (_, answer) = third.send(&scene.a, "2", &[invite.1]);
    assert!(answer["pdus"][&invite.0]["error"].is_string(), "{answer}");
    takes(&third, &scene, "3", &offer);
    scene.world.settle();
    scene.world.run(scene.a.scheduled());
    scene.world.settle();
    assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("invite"));
}
