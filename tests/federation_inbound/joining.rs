//! The join handshake with us as the resident server.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::Method;
use ruma_federation_api::membership::create_join_event;
use serde_json::{Value, json};
use verge::{matrix::state_content::Membership, room::Draft};

use crate::{
    Scene, accepted,
    common::{
        homeserver::object,
        network::{Homeserver, World},
        peer::{Peer, assert_signed, encode, event_id},
        ruma::read_answer,
    },
    scene,
};

fn make_join(room: &str, user: &str, versions: &str) -> String {
    format!("/_matrix/federation/v1/make_join/{}/{}{versions}", encode(room), encode(user))
}

/// Bob's signed join, or what `change` makes of it before it is signed.
fn signed_join(scene: &Scene, user: &str, change: impl Fn(&mut Value)) -> (String, Value) {
    let version = &scene.theirs.version;
    let target = make_join(scene.room.as_str(), user, &format!("?ver={version}"));
    let (status, template) = scene.peer.get(&scene.a, &target);
    assert_eq!(status, 200, "{template}");
    let mut event = template["event"].clone();
    change(&mut event);
    scene.peer.sign(version, event)
}

fn send_join(scene: &Scene, event_id: &str, event: &Value) -> (u16, Value) {
    let target = format!("/_matrix/federation/v2/send_join/{}/{}", encode(scene.room.as_str()), encode(event_id));
    scene.peer.put(&scene.a, &target, event)
}

fn errcode(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["errcode"].as_str().unwrap_or_default())
}

#[test]
fn a_template_is_about_who_asked_and_fits_the_room() {
    for version in ["10", "11", "12"] {
        let scene = scene(version);
        let dave = scene.peer.user("dave");
        let (status, answer) =
            scene.peer.get(&scene.a, &make_join(scene.room.as_str(), &dave, "?ver=1&ver=10&ver=11&ver=12"));
        assert_eq!((status, answer["room_version"].as_str()), (200, Some(version)));
        let event = &answer["event"];
        assert_eq!(event["type"], "m.room.member");
        assert_eq!((event["sender"].as_str(), event["state_key"].as_str()), (Some(&*dave), Some(&*dave)));
        assert_eq!(event["room_id"], scene.room.as_str());
        assert_eq!(event["content"], json!({ "membership": "join" }));
        assert_eq!(event["prev_events"], json!([scene.theirs.last]));
        assert!(event.get("signatures").is_none());
    }
}

#[test]
fn a_template_is_refused_where_nobody_could_use_it() {
    let scene = scene("12");
    let room = scene.room.as_str();
    let dave = scene.peer.user("dave");
    let get = |target: &str| scene.peer.get(&scene.a, target);
    let incompatible = get(&make_join(room, &dave, "?ver=10&ver=11"));
    assert_eq!(errcode(&incompatible), (400, "M_INCOMPATIBLE_ROOM_VERSION"));
    assert_eq!(incompatible.1["room_version"], "12");
    // Who names no version knows version 1.
    assert_eq!(errcode(&get(&make_join(room, &dave, ""))), (400, "M_INCOMPATIBLE_ROOM_VERSION"));
    assert_eq!(errcode(&get(&make_join("!nothing:a.example", &dave, "?ver=12"))), (404, "M_NOT_FOUND"));
    assert_eq!(errcode(&get(&make_join("room", &dave, "?ver=12"))), (400, "M_INVALID_PARAM"));
    assert_eq!(errcode(&get(&make_join(room, "@carol:other.example", "?ver=12"))), (403, "M_FORBIDDEN"));
    let ban = Draft::membership(&dave, Membership::Ban, object(json!({})));
    scene.a.send(&scene.world, &scene.room, &scene.alice, ban);
    assert_eq!(errcode(&get(&make_join(room, &dave, "?ver=12"))), (403, "M_FORBIDDEN"));
    let closed = scene.a.room(&scene.world, &scene.alice, "12", json!({ "join_rule": "invite" }));
    let erin = scene.peer.user("erin");
    assert_eq!(errcode(&get(&make_join(closed.as_str(), &erin, "?ver=12"))), (403, "M_FORBIDDEN"));
    // A room that nobody here is in any more.
    let leave = Draft::membership(scene.alice.as_str(), Membership::Leave, object(json!({})));
    scene.a.send(&scene.world, &scene.room, &scene.alice, leave);
    assert_eq!(errcode(&get(&make_join(room, &erin, "?ver=12"))), (404, "M_NOT_FOUND"));
}

#[test]
fn a_join_is_answered_with_the_room_before_it() {
    for version in ["10", "12"] {
        let scene = scene(version);
        let before = scene.a.state(&scene.world, &scene.room);
        let dave = scene.peer.user("dave");
        let (id, join) = signed_join(&scene, &dave, |_| {});
        let (status, answer) = send_join(&scene, &id, &join);
        assert_eq!(status, 200, "{answer}");
        let mut state: Vec<_> = answer["state"].as_array().unwrap().iter().map(|e| event_id(version, e)).collect();
        let mut expected: Vec<_> = before.into_iter().map(|(_, _, id)| id).collect();
        state.sort();
        expected.sort();
        assert_eq!(state, expected);
        let chain: Vec<_> = answer["auth_chain"].as_array().unwrap().iter().map(|e| event_id(version, e)).collect();
        for auth_event in join["auth_events"].as_array().unwrap() {
            assert!(chain.contains(&auth_event.as_str().unwrap().to_owned()));
        }
        assert_eq!(answer["event"], join);
        assert_eq!((&answer["members_omitted"], &answer["origin"]), (&json!(false), &json!("a.example")));
        assert_eq!(answer["servers_in_room"], json!(["a.example", "peer.example"]));
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("join"));
        assert!(scene.a.shows(&id));
        // It may be sent again.
        assert_eq!(send_join(&scene, &id, &join).0, 200);
    }
}

/// The IDs in a list of events.
fn ids(version: &str, events: &Value) -> BTreeSet<String> {
    events.as_array().unwrap().iter().map(|event| event_id(version, event)).collect()
}

#[test]
fn members_are_left_out_where_that_is_asked_for() {
    for version in ["10", "12"] {
        for named in [false, true] {
            let scene = scene(version);
            for n in 0..10 {
                scene.peer.join(&scene.a, scene.room.as_str(), &scene.peer.user(&format!("user{n}")));
            }
            if named {
                let name = Draft::state("m.room.name", "", object(json!({ "name": "The hall" })));
                scene.a.send(&scene.world, &scene.room, &scene.alice, name);
            }
            let before = scene.a.state(&scene.world, &scene.room);
            let (id, join) = signed_join(&scene, &scene.peer.user("dave"), |_| {});
            let room = encode(scene.room.as_str());
            let target = format!("/_matrix/federation/v2/send_join/{room}/{}?omit_members=true", encode(&id));
            let (status, answer) = scene.peer.put(&scene.a, &target, &join);
            assert_eq!(status, 200, "{answer}");
            read_answer::<create_join_event::v2::Response>(&answer);
            assert_eq!(answer["members_omitted"], true);
            assert_eq!(answer["servers_in_room"], json!(["a.example", "peer.example"]));
            let (state, chain) = (ids(version, &answer["state"]), ids(version, &answer["auth_chain"]));
            let is_member = |event: &&Value| event["type"] == "m.room.member";
            let heroes = answer["state"].as_array().unwrap().iter().filter(is_member).count();
            assert_eq!(heroes, if named { 0 } else { 5 });
            let others = before.iter().filter(|(kind, _, _)| kind != "m.room.member");
            assert!(others.map(|(_, _, id)| id).all(|id| state.contains(id)));
            // Nothing is told twice, and all that the events rest on is told.
            assert!(state.is_disjoint(&chain));
            let told = answer["state"].as_array().unwrap().iter().chain(answer["auth_chain"].as_array().unwrap());
            for event in told.chain([&join]) {
                for cited in event["auth_events"].as_array().unwrap() {
                    let cited = cited.as_str().unwrap();
                    assert!(state.contains(cited) || chain.contains(cited), "{cited} of {event}");
                }
            }
            // Who does not ask for it is told of all.
            let target = format!("/_matrix/federation/v2/send_join/{room}/{}?omit_members=false", encode(&id));
            let (_, whole) = scene.peer.put(&scene.a, &target, &join);
            assert_eq!(whole["members_omitted"], false);
            assert_eq!(ids(version, &whole["state"]).len(), before.len());
        }
    }
}

/// Whoever knows the ID of a room may send what is no join, or one that the room does not let in.
#[test]
fn nothing_of_the_state_is_read_for_who_is_not_let_in() {
    let scene = scene("12");
    scene.a.enlarge(&scene.world, &scene.room, &scene.alice, 6_000, 10);
    let stranger = Peer::new(&scene.world, "stranger.example");
    let target = make_join(scene.room.as_str(), &stranger.user("mallory"), "?ver=12");
    let template = stranger.get(&scene.a, &target).1["event"].clone();
    let (id, join) = stranger.sign("12", template);
    let changes = |event_type: &str, content: Value| {
        let change = Draft::state(event_type, "", object(content));
        // Of two join rules of one time neither is the later one.
        scene.world.advance(1);
        scene.a.send(&scene.world, &scene.room, &scene.alice, change);
        scene.world.settle();
    };
    let room = encode(scene.room.as_str());
    let is_refused = |expected: u16, body: &Value| {
        for (version, query) in [("v1", ""), ("v2", ""), ("v2", "?omit_members=true")] {
            let target = format!("/_matrix/federation/{version}/send_join/{room}/{}{query}", encode(&id));
            let before = scene.a.database.steps.get();
            let (status, answer) = stranger.put(&scene.a, &target, body);
            let steps = scene.a.database.steps.get() - before;
            assert_eq!(status, expected, "{}", answer["error"]);
            assert!(steps < 10_000, "{steps} for {expected} {version}{query}");
        }
    };
    is_refused(400, &json!({}));
    changes("m.room.join_rules", json!({ "join_rule": "invite" }));
    is_refused(403, &join);
    changes("m.room.server_acl", json!({ "allow": ["*"], "deny": ["stranger.example"] }));
    is_refused(403, &join);
    let leave = Draft::membership(scene.alice.as_str(), Membership::Leave, object(json!({})));
    scene.a.send(&scene.world, &scene.room, &scene.alice, leave);
    is_refused(404, &join);
}

/// The state there is resolved for it, and stored only with it.
#[test]
fn a_join_that_cites_some_of_the_forks_is_answered_with_the_state_there() {
    for query in ["", "?omit_members=true"] {
        let scene = scene("12");
        let auth = ["m.room.power_levels", "m.room.join_rules"].map(|kind| scene.theirs.state_id(kind, "").unwrap());
        let join = |name: &str, previous: &[&String]| {
            let user = scene.peer.user(name);
            let content = json!({ "membership": "join" });
            let fields = json!({
                "type": "m.room.member", "state_key": user, "content": content, "auth_events": auth, "prev_events": previous,
            });
            scene.peer.sign("12", scene.theirs.draft(scene.world.now_ms(), &user, fields))
        };
        let forks = ["carol", "dan", "erin"].map(|name| join(name, &[&scene.theirs.last]));
        let pdus = forks.clone().map(|(_, event)| event);
        assert_eq!(scene.peer.send(&scene.a, "forks", &pdus).0, 200);
        let (id, event) = join("dave", &[&forks[0].0, &forks[1].0]);
        let room = encode(scene.room.as_str());
        let target = format!("/_matrix/federation/v2/send_join/{room}/{}{query}", encode(&id));
        let (status, answer) = scene.peer.put(&scene.a, &target, &event);
        assert_eq!((status, &answer["members_omitted"]), (200, &json!(!query.is_empty())), "{answer}");
        let state = ids("12", &answer["state"]);
        assert_eq!(forks.map(|(id, _)| state.contains(&id)), [true, true, false], "{query}");
    }
}

#[test]
fn a_join_takes_few_round_trips() {
    let scene = scene("12");
    for (query, most) in [("", 6), ("?omit_members=true", 8)] {
        let (id, join) = signed_join(&scene, &scene.peer.user(&format!("user{most}")), |_| {});
        let room = encode(scene.room.as_str());
        let target = format!("/_matrix/federation/v2/send_join/{room}/{}{query}", encode(&id));
        let before = scene.a.database.calls.get();
        assert_eq!(scene.peer.put(&scene.a, &target, &join).0, 200);
        let calls = scene.a.database.calls.get() - before;
        assert!(calls <= most, "{query}: {calls}");
    }
}

#[test]
fn older_servers_get_the_answer_in_a_list() {
    let scene = scene("12");
    let (id, join) = signed_join(&scene, &scene.peer.user("dave"), |_| {});
    let target = format!("/_matrix/federation/v1/send_join/{}/{}", encode(scene.room.as_str()), encode(&id));
    let (status, answer) = scene.peer.put(&scene.a, &target, &join);
    assert_eq!((status, &answer[0]), (200, &json!(200)));
    assert!(answer[1]["state"].is_array() && answer[1]["auth_chain"].is_array());
}

#[test]
fn only_a_join_of_a_user_of_the_origin_is_let_in() {
    let scene = scene("12");
    let dave = scene.peer.user("dave");
    let before = accepted(&scene.a);
    let refused = |change: &dyn Fn(&mut Value)| {
        let (id, event) = signed_join(&scene, &dave, change);
        let answer = send_join(&scene, &id, &event);
        assert_eq!(errcode(&answer), (400, "M_INVALID_PARAM"), "{event}");
    };
    refused(&|event| event["type"] = json!("m.room.name"));
    refused(&|event| event["content"]["membership"] = json!("leave"));
    refused(&|event| event["state_key"] = json!("@other:peer.example"));
    refused(&|event| event["sender"] = json!("@carol:other.example"));
    refused(&|event| event["room_id"] = json!("!other:a.example"));
    // Another ID than the event's, a signature that is not the server's, a body that is no event.
    let (id, join) = signed_join(&scene, &dave, |_| {});
    assert_eq!(errcode(&send_join(&scene, "$other", &join)), (400, "M_INVALID_PARAM"));
    let mut forged = join.clone();
    forged["depth"] = json!(1);
    let forged_id = event_id("12", &forged);
    assert_eq!(errcode(&send_join(&scene, &forged_id, &forged)), (400, "M_INVALID_PARAM"));
    assert_eq!(send_join(&scene, &id, &json!({})).0, 400);
    // Somebody else's server with somebody else's join.
    let other = Peer::new(&scene.world, "other.example");
    let target = format!("/_matrix/federation/v2/send_join/{}/{}", encode(scene.room.as_str()), encode(&id));
    assert_eq!(errcode(&other.put(&scene.a, &target, &join)), (400, "M_INVALID_PARAM"));
    // What the rules forbid.
    let (id, event) = signed_join(&scene, &dave, |event| event["auth_events"] = json!([]));
    assert_eq!(errcode(&send_join(&scene, &id, &event)), (403, "M_FORBIDDEN"));
    assert_eq!(accepted(&scene.a), before);
}

#[test]
fn the_rest_of_the_room_is_told_of_a_join() {
    let scene = scene("12");
    let other = Peer::new(&scene.world, "other.example");
    let carol = other.user("carol");
    let theirs = other.join(&scene.a, scene.room.as_str(), &carol);
    scene.world.settle();
    let sent = |peer: &Peer| -> Vec<String> {
        let received = peer.received.borrow();
        let transactions = received.iter().filter(|request| request.method() == Method::PUT);
        transactions
            .flat_map(|request| {
                let body: Value = serde_json::from_slice(request.body()).unwrap();
                body["pdus"].as_array().unwrap().iter().map(|event| event_id("12", event)).collect::<Vec<_>>()
            })
            .collect()
    };
    assert!(sent(&scene.peer).contains(&theirs.last));
    // Who brought it has it.
    assert!(!sent(&other).contains(&theirs.last));
}

/// Alice's room that members of another one, `condition`, may join.
fn restricted(world: &World, a: &Homeserver, alice: &verge::matrix::identifiers::UserId, condition: &str) -> String {
    let rules = json!({
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": condition }, { "type": "unknown" }, 1],
    });
    a.room(world, alice, "10", rules).to_string()
}

#[test]
fn a_member_of_the_right_room_joins_a_restricted_one_with_our_signature() {
    let scene = scene("10");
    let room = restricted(&scene.world, &scene.a, &scene.alice, scene.room.as_str());
    let (joined, (_, answer)) = scene.peer.try_join(&scene.a, &room, &scene.bob);
    assert!(joined.is_some(), "{answer}");
    let event = &answer["event"];
    assert_eq!(event["content"]["join_authorised_via_users_server"], scene.alice.as_str());
    let key = |text: &str| STANDARD_NO_PAD.decode(text).unwrap();
    let ours = key(&scene.a.config.signing_key.public_base64());
    let theirs = scene.peer.public_key();
    assert_signed("10", event, &[("a.example", "ed25519:auto", ours), ("peer.example", "ed25519:peer", theirs)]);
    // Who is in none of the rooms may not.
    let (joined, answer) = scene.peer.try_join(&scene.a, &room, &scene.peer.user("dave"));
    assert!(joined.is_none());
    assert_eq!(errcode(&answer), (403, "M_FORBIDDEN"));
    // Who is invited needs nobody to vouch.
    let erin = scene.peer.user("erin");
    let invite = Draft::membership(&erin, Membership::Invite, object(json!({})));
    let room_id = verge::matrix::identifiers::RoomId::parse(&room).unwrap();
    scene.a.send(&scene.world, &room_id, &scene.alice, invite);
    let (joined, (_, answer)) = scene.peer.try_join(&scene.a, &room, &erin);
    assert!(joined.is_some(), "{answer}");
    assert!(answer["event"]["content"].get("join_authorised_via_users_server").is_none());
}

#[test]
fn where_we_cannot_vouch_another_server_is_to_be_tried() {
    let scene = scene("10");
    let room = restricted(&scene.world, &scene.a, &scene.alice, "!elsewhere:b.example");
    let (_, answer) = scene.peer.try_join(&scene.a, &room, &scene.bob);
    assert_eq!(errcode(&answer), (400, "M_UNABLE_TO_AUTHORISE_JOIN"));
    // The condition is met, and nobody here may invite.
    let room = restricted(&scene.world, &scene.a, &scene.alice, scene.room.as_str());
    let room_id = verge::matrix::identifiers::RoomId::parse(&room).unwrap();
    let levels = object(json!({ "users": { scene.alice.as_str(): 50 }, "invite": 60 }));
    scene.a.send(&scene.world, &room_id, &scene.alice, Draft::state("m.room.power_levels", "", levels));
    let (_, answer) = scene.peer.try_join(&scene.a, &room, &scene.bob);
    assert_eq!(errcode(&answer), (400, "M_UNABLE_TO_GRANT_JOIN"));
    // A join that says that another server's user vouches is not for us to sign.
    let forged = signed_join(&scene, &scene.peer.user("dave"), |event| {
        event["content"]["join_authorised_via_users_server"] = json!("@carol:other.example");
    });
    assert_eq!(errcode(&send_join(&scene, &forged.0, &forged.1)), (400, "M_INVALID_PARAM"));
}

/// Its answer may have been lost; but it names the servers in the room, and tells its state.
#[test]
fn a_join_that_comes_again_is_answered_while_it_holds() {
    for version in ["10", "12"] {
        for membership in [Membership::Leave, Membership::Ban] {
            let scene = scene(version);
            let (id, event) = signed_join(&scene, &scene.peer.user("dave"), |_| {});
            let first = send_join(&scene, &id, &event);
            assert_eq!(first.0, 200, "{}", first.1);
            let again = send_join(&scene, &id, &event);
            assert_eq!((again.0, &again.1["state"]), (200, &first.1["state"]));
            // Also by whoever of the server is in the room still.
            let remove = |user: &str| {
                let removed = Draft::membership(user, membership, object(json!({})));
                scene.a.send(&scene.world, &scene.room, &scene.alice, removed);
                scene.world.settle();
            };
            remove(&scene.peer.user("dave"));
            assert_eq!(errcode(&send_join(&scene, &id, &event)), (403, "M_FORBIDDEN"), "{version}, {membership}");
            remove(&scene.bob);
            let refused = send_join(&scene, &id, &event);
            assert_eq!(errcode(&refused), (403, "M_FORBIDDEN"), "{version}, {membership}");
            assert!(refused.1.get("state").is_none() && refused.1.get("servers_in_room").is_none());
            // Without a ban the user may come back, by a join of that day.
            if membership == Membership::Leave {
                let (id, event) = signed_join(&scene, &scene.peer.user("dave"), |_| {});
                assert_eq!(send_join(&scene, &id, &event).0, 200);
            }
        }
    }
}
