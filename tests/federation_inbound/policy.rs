//! Policy servers: rooms that use one, and this server as one.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::StatusCode;
use ruma_common::{CanonicalJsonObject, CanonicalJsonValue, RoomVersionId, ServerName as RumaName};
use ruma_federation_api::policy::sign_event;
use ruma_signatures::Ed25519KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use verge::{
    error::MatrixError,
    federation::outbound::membership,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::Object,
        state_content::Membership,
    },
    room::{Draft, RoomError},
    router::json_response,
};

use crate::{
    Scene, accepted,
    common::{
        homeserver::object,
        network::{Homeserver, World},
        peer::{Peer, assert_signed, encode},
        ruma::read_answer,
        sqlite::Sqlite,
    },
    scene,
    settling::claims_what_is_old,
};

/// The name under which policy servers sign.
const KEY_ID: &str = "ed25519:policy_server";

/// The seed of the key of the policy server `name`.
fn seed(name: &str) -> Vec<u8> {
    Sha256::digest(format!("policy {name}")).to_vec()
}

fn key(name: &str) -> Ed25519KeyPair {
    let mut document = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    document.extend(seed(name));
    Ed25519KeyPair::from_der(&document, "policy_server".to_owned()).unwrap()
}

/// The signature of the policy server `name` on an event, as ruma makes it.
fn signature(name: &str, version: &str, event: &Value) -> String {
    let rules = RoomVersionId::try_from(version).unwrap().rules().unwrap();
    let mut event: CanonicalJsonObject = match CanonicalJsonValue::try_from(event.clone()).unwrap() {
        CanonicalJsonValue::Object(object) => object,
        other => panic!("{other:?}"),
    };
    ruma_signatures::sign_event(name, &key(name), &mut event, &rules.redaction).unwrap();
    let event = Value::from(CanonicalJsonValue::Object(event));
    event["signatures"][name][KEY_ID].as_str().unwrap().to_owned()
}

fn signed(name: &str, version: &str, mut event: Value) -> Value {
    event["signatures"][name][KEY_ID] = signature(name, version, &event).into();
    event
}

/// What `m.room.policy` says of the policy server `name`.
fn names(name: &str) -> Value {
    // In the alphabet that the examples of the spec have.
    let public = STANDARD_NO_PAD.encode(key(name).public_key()).replace('+', "-").replace('/', "_");
    json!({ "via": name, "public_keys": { "ed25519": public } })
}

fn policy(name: &str) -> Draft {
    Draft::state("m.room.policy", "", object(names(name)))
}

fn forbidden(why: &str) -> Value {
    json!({ "errcode": "M_FORBIDDEN", "error": why })
}

/// A scene whose room has a policy server, which wants no spam.
struct Guarded {
    scene: Scene,
    guard: Rc<Peer>,
}

fn guarded(version: &'static str) -> Guarded {
    let mut scene = scene(version);
    let (guard, watcher) = scene.member("policy.example", "watcher");
    let key = ("m.room.member".to_owned(), guard.user("watcher"));
    scene.theirs.state.insert(key.clone(), watcher.state[&key].clone());
    guard.answers(move |request| {
        if request.uri().path() != "/_matrix/policy/v1/sign" {
            return None;
        }
        let event: Value = serde_json::from_slice(request.body()).unwrap();
        assert!(event["type"] != "m.room.policy" || event["state_key"] != "");
        if event["content"].to_string().contains("spam") {
            return Some(json_response(StatusCode::BAD_REQUEST, &forbidden("No spam here, please")));
        }
        let signature = signature("policy.example", version, &event);
        Some(json_response(StatusCode::OK, &json!({ "policy.example": { KEY_ID: signature } })))
    });
    scene.alice_sets("m.room.policy", names("policy.example"));
    let guarded = Guarded { scene, guard };
    assert_eq!(guarded.asked(), 0, "it is not asked about the event that names it, nor before");
    guarded
}

impl Guarded {
    /// How often the policy server was asked for a signature.
    fn asked(&self) -> usize {
        let received = self.guard.received.borrow();
        received.iter().filter(|request| request.uri().path() == "/_matrix/policy/v1/sign").count()
    }

    fn send(&self, draft: Draft) -> Result<Event, RoomError> {
        let Scene { world, a, room, alice, .. } = &self.scene;
        world.run(a.rooms.send(room, alice, draft))
    }

    fn say(&self, body: &str) -> Result<Event, RoomError> {
        self.send(Draft::message("m.room.message", object(json!({ "msgtype": "m.text", "body": body }))))
    }

    /// A message of Bob's, which his server sends without asking anybody.
    fn bob_says(&mut self, txn_id: &str, body: &str, change: impl Fn(Value) -> Value) -> String {
        let Scene { a, peer, bob, theirs, world, .. } = &mut self.scene;
        let (id, pdu) = theirs.say(peer, bob, body);
        let (status, answer) = peer.send(a, txn_id, &[change(pdu)]);
        assert_eq!((status, &answer["pdus"][&id]), (200, &json!({})));
        world.settle();
        id
    }

    fn stored(&self, id: &str) -> Value {
        let id = EventId::parse(id).unwrap();
        let stored = self.scene.world.run(self.scene.a.rooms.event(&id)).unwrap().unwrap();
        serde_json::from_str(stored.event.json()).unwrap()
    }

    fn assert_soft_failed(&self, id: &str) {
        assert!(!self.scene.a.shows(id));
        let sql = format!("SELECT soft_failed FROM events WHERE event_id = '{id}'");
        assert_eq!(self.scene.a.database.rows(&sql), [["1"]]);
    }
}

fn assert_signed_by_guard(version: &str, event: &Value, own: (&str, &str, Vec<u8>)) {
    assert_signed(version, event, &[own, ("policy.example", KEY_ID, key("policy.example").public_key().to_vec())]);
}

#[test]
fn what_local_users_send_is_signed_by_the_policy_server_or_not_sent() {
    for version in ["10", "12"] {
        let guarded = guarded(version);
        let ours = STANDARD_NO_PAD.decode(guarded.scene.a.config.signing_key.public_base64()).unwrap();
        let name = Draft::state("m.room.name", "", object(json!({ "name": "A room" })));
        let with_key = Draft::state("m.room.policy", "other", object(json!({})));
        for (number, draft) in [name, with_key].into_iter().enumerate() {
            let event = guarded.send(draft).unwrap();
            assert_eq!(guarded.asked(), number + 1);
            let event = guarded.stored(event.event_id().as_str());
            assert_signed_by_guard(version, &event, ("a.example", "ed25519:auto", ours.clone()));
        }
        let before = accepted(&guarded.scene.a);
        let refused = MatrixError::from(guarded.say("spam").unwrap_err());
        assert_eq!((refused.status, refused.body()), (StatusCode::BAD_REQUEST, forbidden("No spam here, please")));
        assert_eq!(accepted(&guarded.scene.a), before);
        // What names another policy server, or none, gets past it.
        guarded.send(Draft::state("m.room.policy", "", object(json!({})))).unwrap();
        guarded.say("spam").unwrap();
        assert_eq!(guarded.asked(), 3);
    }
}

#[test]
fn a_room_uses_the_policy_server_that_its_state_names_while_it_is_there() {
    let guarded = guarded("12");
    for content in [
        json!({ "via": "policy.example" }),
        json!({ "via": "policy.example", "public_keys": { "ed25519": "short" } }),
        json!({ "via": "policy.example", "public_keys": { "other": "x" } }),
        json!({ "via": 7, "public_keys": { "ed25519": STANDARD_NO_PAD.encode(key("policy.example").public_key()) } }),
    ] {
        guarded.send(Draft::state("m.room.policy", "", object(content))).unwrap();
        guarded.say("spam").unwrap();
    }
    guarded.send(policy("absent.example")).unwrap();
    guarded.say("spam").unwrap();
    guarded.send(policy("policy.example")).unwrap();
    assert!(guarded.say("spam").is_err());
    let asked = guarded.asked();
    let watcher = guarded.guard.user("watcher");
    let kick = Draft::membership(&watcher, Membership::Leave, object(json!({})));
    guarded.send(kick).unwrap();
    guarded.say("spam").unwrap();
    assert_eq!(guarded.asked(), asked + 1, "only about the kick");
}

#[test]
fn what_is_received_without_its_signature_is_taken_when_the_policy_server_signs_it() {
    for version in ["11", "12"] {
        let mut guarded = guarded(version);
        let signed_already = guarded.bob_says("1", "hello", |pdu| signed("policy.example", version, pdu));
        assert!(guarded.scene.a.shows(&signed_already));
        assert_eq!(guarded.asked(), 0);
        let calls = guarded.scene.a.database.calls.get();
        let unsigned = guarded.bob_says("2", "hello again", |pdu| pdu);
        assert!(guarded.scene.a.database.calls.get() > calls);
        assert!(guarded.scene.a.shows(&unsigned));
        let theirs = guarded.scene.peer.public_key();
        let stored = guarded.stored(&unsigned);
        assert_signed_by_guard(version, &stored, ("peer.example", "ed25519:peer", theirs));
        // A signature by another key may be by one that the room named before.
        let stale = guarded.bob_says("3", "and again", |mut pdu| {
            pdu["signatures"]["policy.example"] = json!({ KEY_ID: signature("other.example", version, &pdu) });
            pdu
        });
        assert!(guarded.scene.a.shows(&stale));
        assert_eq!(guarded.asked(), 2);
        assert!(guarded.scene.a.database.rows("SELECT 1 FROM staged_pdus").is_empty());
    }
}

#[test]
fn what_the_policy_server_refuses_is_soft_failed() {
    let mut guarded = guarded("12");
    let spam = guarded.bob_says("1", "spam", |pdu| pdu);
    guarded.assert_soft_failed(&spam);
    assert_eq!(guarded.asked(), 1);
    // What cites it is judged by itself.
    let after = guarded.bob_says("2", "no more of it", |pdu| pdu);
    assert!(guarded.scene.a.shows(&after));
    // And what comes again is known.
    let (_, pdu) = guarded.scene.peer.sign("12", guarded.stored(&spam));
    guarded.scene.peer.send(&guarded.scene.a, "3", &[pdu]);
    guarded.scene.world.settle();
    guarded.assert_soft_failed(&spam);
    assert_eq!(guarded.asked(), 2);
}

/// Dave has left by the time that it is known what the state was when he spoke, and Bob's server has built upon what he said: what the
/// room is now does not keep that out, and the policy server does.
#[test]
fn what_the_policy_server_refuses_stays_hidden_where_claims_are_settled() {
    for version in ["10", "12"] {
        for refused in [true, false] {
            let mut guarded = guarded(version);
            let scene = &mut guarded.scene;
            let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
            let join = scene.becomes(&dave, "join");
            scene.receives("join", &join);
            // Of two memberships that conflict the later one counts.
            scene.world.advance(1_000);
            let (old, remembers) = (scene.state(), Rc::new(Cell::new(false)));
            let events = [scene.says(&bob, "lost"), scene.says(&bob, "the edge")];
            claims_what_is_old(scene, &events, &old, &remembers);
            let mut said = scene.theirs.say_upon(&scene.peer, &dave, "spam, or not", &[&events[1].0]);
            let leave = scene.becomes(&dave, "leave");
            let upon = scene.theirs.say_upon(&scene.peer, &bob, "on top of it", &[&said.0, &leave.0]);
            if refused {
                [&said, &leave].into_iter().for_each(|event| scene.receives(&event.0, event));
            } else {
                said.1 = signed("policy.example", version, said.1);
                [&leave, &said].into_iter().for_each(|event| scene.receives(&event.0, event));
            }
            scene.receives("upon", &upon);
            assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("leave"));
            assert_eq!([&said, &upon].map(|event| scene.a.shows(&event.0)), [false, true]);
            assert_eq!(scene.rows("SELECT 1 FROM events WHERE soft_failed AND claimed"), 1);
            remembers.set(true);
            scene.pages_back();
            let edge = format!("SELECT claimed FROM events WHERE event_id = '{}'", events[1].0);
            assert_eq!(scene.a.database.rows(&edge), [["0"]], "{:#?}", scene.world.logs());
            let shown = [&said, &upon].map(|event| scene.a.shows(&event.0));
            assert_eq!(shown, [!refused, true], "version {version}, refused: {refused}");
            if refused {
                guarded.assert_soft_failed(&said.0);
            }
        }
    }
}

#[test]
fn a_policy_server_that_is_away_is_left_alone_for_a_while() {
    let mut guarded = guarded("12");
    guarded.guard.answers(|_| Some(json_response(StatusCode::INTERNAL_SERVER_ERROR, &json!({}))));
    let lost = guarded.bob_says("1", "hello", |pdu| pdu);
    guarded.assert_soft_failed(&lost);
    assert_eq!(guarded.asked(), 1);
    let before = accepted(&guarded.scene.a);
    let error = MatrixError::from(guarded.say("hello").unwrap_err());
    assert_eq!((error.status, guarded.asked()), (StatusCode::BAD_GATEWAY, 1));
    assert_eq!(accepted(&guarded.scene.a), before);
    guarded.scene.world.advance(6_000);
    assert!(guarded.say("hello").is_err());
    guarded.scene.world.advance(6_000);
    assert!(guarded.say("hello").is_err());
    assert_eq!(guarded.asked(), 2, "for longer each time");
    guarded.guard.answers(|request| {
        let event: Value = serde_json::from_slice(request.body()).ok()?;
        let signature = signature("policy.example", "12", &event);
        Some(json_response(StatusCode::OK, &json!({ "policy.example": { KEY_ID: signature } })))
    });
    guarded.scene.world.advance(60_000);
    guarded.say("hello").unwrap();
}

#[test]
fn a_policy_server_keeps_nobody_in_the_room() {
    for (status, answer) in
        [(StatusCode::BAD_REQUEST, forbidden("Nobody leaves")), (StatusCode::BAD_GATEWAY, json!({}))]
    {
        let guarded = guarded("12");
        let Scene { world, a, room, alice, .. } = &guarded.scene;
        let [carol, dave] = ["carol", "dave"].map(|name| a.user(world, name));
        let member = |sender: &UserId, of: &UserId, membership: Membership| {
            world.run(a.rooms.send(room, sender, Draft::membership(of.as_str(), membership, Object::new())))
        };
        member(&carol, &carol, Membership::Join).unwrap();
        member(alice, &dave, Membership::Invite).unwrap();
        let before = guarded.asked();
        guarded.guard.answers(move |_| Some(json_response(status, &answer)));
        // What concerns others, and what else they say of themselves, waits for the signature.
        for (sender, of, membership) in
            [(alice, &carol, Membership::Leave), (&dave, &dave, Membership::Join), (alice, &carol, Membership::Ban)]
        {
            assert!(matches!(member(sender, of, membership), Err(RoomError::Unsigned(_))), "{of} {membership:?}");
        }
        for user in [&carol, &dave] {
            world.advance(600_000);
            let left = member(user, user, Membership::Leave).unwrap_or_else(|error| panic!("{status}: {error}"));
            assert_eq!(a.membership(world, room, user.as_str()).as_deref(), Some("leave"));
            let stored = guarded.stored(left.event_id().as_str());
            assert_eq!(stored["signatures"].as_object().unwrap().len(), 1, "{stored}");
        }
        assert!(guarded.asked() > before + 2, "it is asked all the same");
    }
}

#[test]
fn an_answer_that_is_no_signature_of_it_does_not_count() {
    for answer in [
        json!({}),
        json!({ "policy.example": {} }),
        json!({ "policy.example": { KEY_ID: "no signature" } }),
        json!({ "policy.example": { KEY_ID: signature("policy.example", "12", &json!({ "other": 1, "type": "x" })) } }),
        json!({ "other.example": { KEY_ID: "x" } }),
        json!([]),
    ] {
        let guarded = guarded("12");
        let given = answer.clone();
        guarded.guard.answers(move |_| Some(json_response(StatusCode::OK, &given)));
        assert!(guarded.say("hello").is_err(), "{answer}");
    }
}

#[test]
fn who_joins_through_us_is_signed_for() {
    let guarded = guarded("12");
    let Scene { a, room, .. } = &guarded.scene;
    let other = Peer::new(&guarded.scene.world, "other.example");
    let theirs = other.join(a, room.as_str(), &other.user("carol"));
    assert_eq!(guarded.asked(), 1);
    let join = guarded.stored(&theirs.last);
    assert_signed_by_guard("12", &join, ("other.example", "ed25519:peer", other.public_key()));
    let target =
        format!("/_matrix/federation/v1/make_join/{}/{}?ver=12", encode(room.as_str()), encode(&other.user("dan")));
    let mut template = other.get(a, &target).1["event"].clone();
    template["content"]["displayname"] = json!("spam");
    let (id, event) = other.sign("12", template);
    let before = accepted(a);
    let target = format!("/_matrix/federation/v2/send_join/{}/{}", encode(room.as_str()), encode(&id));
    assert_eq!(other.put(a, &target, &event), (400, forbidden("No spam here, please")));
    assert_eq!(accepted(a), before);
}

/// A server of ours that is a policy server, and Alice's room there, which names it.
pub(crate) fn policy_server(world: &World) -> (Homeserver, UserId, RoomId) {
    let line = format!("ed25519 policy_server {}", STANDARD_NO_PAD.encode(seed("a.example")));
    let variables = [
        ("POLICY_SIGNING_KEY", line.as_str()),
        ("POLICY_BLOCKED_SERVERS", "evil.example, *.evil.example"),
        ("POLICY_BLOCKED_WORDS", "Spam, buy now"),
    ];
    let a = world.server_over("a.example", Sqlite::in_memory(), &variables);
    let alice = a.user(world, "alice");
    let room = a.public_room(world, &alice, "12");
    a.send(world, &room, &alice, policy("a.example"));
    (a, alice, room)
}

#[test]
fn this_server_is_a_policy_server_where_its_operator_says_so() {
    let world = World::new();
    let (a, alice, room) = policy_server(&world);
    let peer = Peer::new(&world, "peer.example");
    let bob = peer.user("bob");
    let theirs = peer.join(&a, room.as_str(), &bob);
    let draft = |fields: Value| theirs.draft(world.now_ms(), &bob, fields);
    let message = |body: &str| json!({ "type": "m.room.message", "content": { "msgtype": "m.text", "body": body } });
    let ask = |event: &Value| peer.post(&a, "/_matrix/policy/v1/sign", event);

    let (_, event) = peer.sign("12", draft(message("Hello, spammers! Spamalot")));
    let (status, answer) = ask(&event);
    let by_ruma = read_answer::<sign_event::v1::Response>(&answer);
    let own = <&RumaName>::try_from("a.example").unwrap();
    assert_eq!(by_ruma.ed25519_signature(own), answer["a.example"][KEY_ID].as_str());
    assert_eq!((status, &answer), (200, &json!({ "a.example": { KEY_ID: signature("a.example", "12", &event) } })));
    let mut both = event.clone();
    both["signatures"]["a.example"] = answer["a.example"].clone();
    let keys = [
        ("peer.example", "ed25519:peer", peer.public_key()),
        ("a.example", KEY_ID, key("a.example").public_key().to_vec()),
    ];
    assert_signed("12", &both, &keys);

    let refused = |what: &str, event: &Value, status: u16, errcode: &str| {
        let (got, answer) = ask(event);
        assert_eq!((got, answer["errcode"].as_str()), (status, Some(errcode)), "{what}: {answer}");
    };
    for body in ["SPAM", "some (spam)!", "You can buy now, or later"] {
        refused(body, &peer.sign("12", draft(message(body))).1, 400, "M_FORBIDDEN");
    }
    let deep = json!({ "type": "m.room.message", "content": { "m.new_content": [{ "x": { "body": "spam" } }] } });
    refused("deep", &peer.sign("12", draft(deep)).1, 400, "M_FORBIDDEN");
    let names_another = json!({ "type": "m.room.policy", "state_key": "", "content": {} });
    refused("m.room.policy", &peer.sign("12", draft(names_another)).1, 400, "M_FORBIDDEN");
    let mut altered = event.clone();
    altered["content"]["body"] = json!("something else");
    refused("altered", &altered, 400, "M_FORBIDDEN");
    let mut forged = event.clone();
    forged["depth"] = json!(77);
    refused("forged", &forged, 400, "M_FORBIDDEN");
    let mut malformed = event.clone();
    malformed.as_object_mut().unwrap().remove("auth_events");
    refused("malformed", &malformed, 400, "M_BAD_JSON");
    refused("no room", &json!({ "type": "m.room.message" }), 400, "M_BAD_JSON");
    let mut elsewhere = event.clone();
    elsewhere["room_id"] = json!("!unknown");
    refused("unknown room", &elsewhere, 404, "M_NOT_FOUND");
    let open = a.public_room(&world, &alice, "12");
    elsewhere["room_id"] = json!(open.as_str());
    refused("a room that names no policy server", &elsewhere, 404, "M_NOT_FOUND");

    let stranger = Peer::new(&world, "stranger.example");
    let (status, answer) = stranger.post(&a, "/_matrix/policy/v1/sign", &event);
    assert_eq!((status, answer["errcode"].as_str()), (403, Some("M_FORBIDDEN")));
    let evil = Peer::new(&world, "a.evil.example");
    let mallory = evil.user("mallory");
    let target = format!("/_matrix/federation/v1/make_join/{}/{}?ver=12", encode(room.as_str()), encode(&mallory));
    let (_, join) = evil.sign("12", evil.get(&a, &target).1["event"].clone());
    refused("a blocked server", &join, 400, "M_FORBIDDEN");
    let acl = Draft::state("m.room.server_acl", "", object(json!({ "allow": ["*"], "deny": ["peer.example"] })));
    a.send(&world, &room, &alice, acl);
    refused("denied by the ACL", &event, 403, "M_FORBIDDEN");

    // Its own users are under the same rule.
    let content = |body: &str| Draft::message("m.room.message", object(json!({ "body": body })));
    let said = world.run(a.rooms.send(&room, &alice, content("hello"))).unwrap();
    let said: Value = serde_json::from_str(said.json()).unwrap();
    assert_eq!(said["signatures"]["a.example"].as_object().unwrap().len(), 2);
    assert!(world.run(a.rooms.send(&room, &alice, content("spam"))).is_err());
}

#[test]
fn a_server_that_is_no_policy_server_says_so() {
    let world = World::new();
    let (a, _, _) = policy_server(&world);
    let b = world.server("b.example");
    let peer = Peer::new(&world, "peer.example");
    let (status, answer) = peer.get(&a, "/.well-known/matrix/policy_server");
    let public = STANDARD_NO_PAD.encode(key("a.example").public_key());
    assert_eq!((status, answer), (200, json!({ "public_keys": { "ed25519": public } })));
    assert_eq!(peer.get(&b, "/.well-known/matrix/policy_server").0, 404);
    let (status, answer) = peer.post(&b, "/_matrix/policy/v1/sign", &json!({ "room_id": "!room" }));
    assert_eq!((status, answer["errcode"].as_str()), (404, Some("M_UNRECOGNIZED")));
}

#[test]
fn one_of_our_servers_asks_the_other() {
    let world = World::new();
    let (a, alice, room) = policy_server(&world);
    let b = world.server("b.example");
    let bob = b.user(&world, "bob");
    let via = vec![ServerName::parse("a.example").unwrap()];
    world.run(membership::join(&b, &bob, &room, via, Object::new())).unwrap();
    world.settle();
    let said = b.say(&world, &room, &bob, "hello");
    let answered = a.say(&world, &room, &alice, "hello yourself");
    world.settle();
    assert!(a.shows(said.event_id().as_str()) && b.shows(answered.event_id().as_str()), "{:?}", world.logs());
    let signatures: BTreeMap<String, Value> =
        serde_json::from_value(serde_json::from_str::<Value>(said.json()).unwrap()["signatures"].clone()).unwrap();
    assert_eq!(signatures.keys().collect::<Vec<_>>(), ["a.example", "b.example"]);
    let spam = Draft::message("m.room.message", object(json!({ "body": "spam" })));
    let refused = MatrixError::from(world.run(b.rooms.send(&room, &bob, spam)).unwrap_err());
    assert_eq!((refused.status, refused.body()["errcode"].as_str()), (StatusCode::BAD_REQUEST, Some("M_FORBIDDEN")));
}
