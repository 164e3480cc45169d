//! Invites by third-party identifier: offered here and redeemed by other servers, and the other way round. The identity
//! server's keys and signatures are ruma's.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::{Method, StatusCode};
use ruma_common::CanonicalJsonValue;
use ruma_events::room::member::RoomMemberEventContent;
use ruma_signatures::Ed25519KeyPair;
use serde_json::{Value, json};
use verge::{
    matrix::{
        identifiers::{RoomId, UserId},
        state_content::Membership,
    },
    room::Draft,
    router::json_response,
};

use crate::{
    Scene, accepted,
    common::{
        homeserver::object,
        network::{Homeserver, World},
        peer::{Peer, encode, request, send},
    },
    scene,
};

const IDENTITY: &str = "id.example";

/// An identity server, of which only keys and their validity are asked.
pub(crate) struct Identity {
    key: Ed25519KeyPair,
    valid: Rc<Cell<bool>>,
    asked: Rc<RefCell<Vec<String>>>,
}

impl Identity {
    pub(crate) fn new(world: &World) -> Self {
        let key = key(7);
        let (valid, asked) = (Rc::new(Cell::new(true)), Rc::new(RefCell::default()));
        let (is_valid, seen): (_, Rc<RefCell<Vec<String>>>) = (Rc::clone(&valid), Rc::clone(&asked));
        world.connect(
            IDENTITY,
            Rc::new(move |request| {
                seen.borrow_mut().push(request.uri().to_string());
                let response = json_response(StatusCode::OK, &json!({ "valid": is_valid.get() }));
                Box::pin(async move { response })
            }),
        );
        Self { key, valid, asked }
    }

    fn public_key(&self) -> String {
        STANDARD_NO_PAD.encode(self.key.public_key())
    }

    pub(crate) fn offer(&self) -> Value {
        let (key, url) = (self.public_key(), "https://id.example/_matrix/identity/v2/pubkey/isvalid");
        let listed = json!([{ "public_key": key, "key_validity_url": url }]);
        json!({ "display_name": "b...@e...", "public_key": key, "key_validity_url": url, "public_keys": listed })
    }

    pub(crate) fn signed(&self, mxid: &str, token: &str) -> Value {
        signed_by(&self.key, mxid, token)
    }
}

fn key(seed: u8) -> Ed25519KeyPair {
    let mut document = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    document.extend([seed; 32]);
    Ed25519KeyPair::from_der(&document, "0".to_owned()).unwrap()
}

fn signed_by(key: &Ed25519KeyPair, mxid: &str, token: &str) -> Value {
    let signed = CanonicalJsonValue::try_from(json!({ "mxid": mxid, "token": token })).unwrap();
    let CanonicalJsonValue::Object(mut signed) = signed else { panic!("{signed:?}") };
    ruma_signatures::sign_json(IDENTITY, key, &mut signed).unwrap();
    Value::from(CanonicalJsonValue::Object(signed))
}

fn member(world: &World, server: &Homeserver, room: &RoomId, user: &str) -> Value {
    let (_, state) = world.run(server.rooms.current(room, &[("m.room.member", user)])).unwrap().unwrap();
    let member: Value = serde_json::from_str(state[0].json()).unwrap();
    member["content"].clone()
}

pub(crate) fn offer(world: &World, server: &Homeserver, room: &RoomId, user: &UserId, token: &str, content: Value) {
    server.send(world, room, user, Draft::state("m.room.third_party_invite", token, object(content)));
}

fn partial(scene: &Scene, target: &str, signed: &Value) -> Value {
    json!({
        "type": "m.room.member", "room_id": scene.room, "sender": scene.alice, "state_key": target,
        "content": { "membership": "invite", "third_party_invite": { "display_name": "x", "signed": signed } },
    })
}

fn exchange(scene: &Scene, body: &Value) -> (u16, Value) {
    let target = format!("/_matrix/federation/v1/exchange_third_party_invite/{}", encode(scene.room.as_str()));
    scene.peer.put(&scene.a, &target, body)
}

/// A room of Alice's, in which she has offered an invite by the token `tok`, and the identity server.
fn offered() -> (Scene, Identity) {
    let scene = scene("11");
    scene.peer.answers(|request| {
        let is_transaction = request.uri().path().starts_with("/_matrix/federation/v1/send/");
        is_transaction.then(|| json_response(StatusCode::OK, &json!({ "pdus": {} })))
    });
    let identity = Identity::new(&scene.world);
    offer(&scene.world, &scene.a, &scene.room, &scene.alice, "tok", identity.offer());
    scene.world.settle();
    (scene, identity)
}

/// The peer signs the invites of its users that reach it.
fn countersigns(peer: &Rc<Peer>) {
    let itself = Rc::downgrade(peer);
    peer.answers(move |request| {
        request.uri().path().starts_with("/_matrix/federation/v2/invite/").then(|| {
            let body: Value = serde_json::from_slice(request.body()).unwrap();
            let version = body["room_version"].as_str().unwrap();
            let (_, event) = itself.upgrade().unwrap().sign_only(version, body["event"].clone());
            json_response(StatusCode::OK, &json!({ "event": event }))
        })
    });
}

#[test]
fn an_invite_is_exchanged_for_what_an_identity_server_has_signed() {
    let (scene, identity) = offered();
    countersigns(&scene.peer);
    let carol = scene.peer.user("carol");
    let (status, answer) = exchange(&scene, &partial(&scene, &carol, &identity.signed(&carol, "tok")));
    assert_eq!((status, &answer), (200, &json!({})), "{:?}", scene.world.logs());
    scene.world.settle();
    let member = member(&scene.world, &scene.a, &scene.room, &carol);
    assert_eq!(member["membership"], "invite");
    assert_eq!(member["third_party_invite"]["signed"]["mxid"], json!(carol));
    assert_eq!(member["third_party_invite"]["display_name"], "b...@e...", "as the offer has it");
    let asked = identity.asked.borrow();
    let asked: Vec<_> =
        asked.iter().map(|target| percent_encoding::percent_decode_str(target).decode_utf8_lossy()).collect();
    assert_eq!(asked, [format!("/_matrix/identity/v2/pubkey/isvalid?public_key={}", identity.public_key())]);
}

/// The rules would let an invite replace a join.
#[test]
fn an_exchange_invites_nobody_who_is_invited_or_in_the_room() {
    let (scene, identity) = offered();
    countersigns(&scene.peer);
    let carol = scene.peer.user("carol");
    let body = partial(&scene, &carol, &identity.signed(&carol, "tok"));
    for membership in ["invite", "join"] {
        if membership == "join" {
            scene.peer.join(&scene.a, scene.room.as_str(), &carol);
        } else {
            assert_eq!(exchange(&scene, &body), (200, json!({})));
        }
        scene.world.settle();
        let before = accepted(&scene.a);
        assert_eq!(exchange(&scene, &body), (200, json!({})));
        scene.world.settle();
        assert_eq!(accepted(&scene.a), before);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &carol).as_deref(), Some(membership));
    }
}

#[test]
fn nothing_but_what_was_offered_and_signed_is_exchanged() {
    let (scene, identity) = offered();
    countersigns(&scene.peer);
    let carol = scene.peer.user("carol");
    let good = partial(&scene, &carol, &identity.signed(&carol, "tok"));
    let before = accepted(&scene.a);
    let refused = |change: &dyn Fn(&mut Value), expected: (u16, &str)| {
        let mut body = good.clone();
        change(&mut body);
        let (status, answer) = exchange(&scene, &body);
        assert_eq!((status, answer["errcode"].as_str().unwrap_or_default()), expected, "{answer} {body}");
        assert_eq!(accepted(&scene.a), before, "{body}");
    };
    let invalid = (400, "M_INVALID_PARAM");
    let forbidden = (403, "M_FORBIDDEN");
    for name in ["type", "room_id", "sender", "state_key", "content"] {
        refused(&|body| drop(body.as_object_mut().unwrap().remove(name)), (400, "M_BAD_JSON"));
        refused(&|body| body[name] = json!(7), (400, "M_BAD_JSON"));
    }
    refused(&|body| body["type"] = json!("m.room.topic"), invalid);
    refused(&|body| body["room_id"] = json!("!other:a.example"), invalid);
    refused(&|body| body["content"]["membership"] = json!("join"), invalid);
    refused(&|body| body["content"]["third_party_invite"] = json!({}), (400, "M_BAD_JSON"));
    refused(&|body| body["content"]["third_party_invite"]["signed"]["token"] = json!(1), invalid);
    // Of another user, or one of another server.
    refused(&|body| body["state_key"] = json!(scene.peer.user("mallory")), invalid);
    refused(&|body| body["state_key"] = json!("@carol:other.example"), forbidden);
    // By whom or what was never offered.
    refused(&|body| body["sender"] = json!(scene.bob), forbidden);
    refused(&|body| *body = partial(&scene, &carol, &identity.signed(&carol, "other")), forbidden);
    // Signed by nobody, or by the peer.
    refused(&|body| body["content"]["third_party_invite"]["signed"]["signatures"] = json!({}), forbidden);
    let theirs = signed_by(&key(8), &carol, "tok");
    refused(&|body| body["content"]["third_party_invite"]["signed"] = theirs.clone(), forbidden);
    assert!(identity.asked.borrow().is_empty(), "nobody is asked in vain");
    // Signed by a key that is valid no longer, or of which nobody can tell.
    identity.valid.set(false);
    refused(&|_| {}, forbidden);
    identity.valid.set(true);
    scene.world.disconnect(IDENTITY);
    refused(&|_| {}, (502, "M_UNKNOWN"));
    // In a room that is not here.
    let target = "/_matrix/federation/v1/exchange_third_party_invite/%21other%3Aa.example";
    assert_eq!(scene.peer.put(&scene.a, target, &good).0, 404);
    let unsigned = request(Method::PUT, target, &[], good.to_string());
    assert_eq!(send(&scene.world, &scene.a, unsigned).0, 401);
}

/// A redaction takes the keys away. Synapse judges by what is left too.
#[test]
fn an_offer_that_was_redacted_lets_nobody_in() {
    let (scene, identity) = offered();
    countersigns(&scene.peer);
    let (_, state) =
        scene.world.run(scene.a.rooms.current(&scene.room, &[("m.room.third_party_invite", "tok")])).unwrap().unwrap();
    let mut redaction = Draft::message("m.room.redaction", object(json!({})));
    redaction.redacts = Some(state[0].event_id().to_string());
    scene.a.send(&scene.world, &scene.room, &scene.alice, redaction);
    let carol = scene.peer.user("carol");
    let before = accepted(&scene.a);
    let (status, answer) = exchange(&scene, &partial(&scene, &carol, &identity.signed(&carol, "tok")));
    assert_eq!((status, answer["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{answer}");
    assert_eq!(accepted(&scene.a), before);
    assert!(identity.asked.borrow().is_empty(), "nobody is asked in vain");
}

#[test]
fn a_key_in_a_private_network_is_not_asked_for() {
    let world = World::new();
    let a = world.server("a.public.org");
    let alice = a.user(&world, "alice");
    let room = a.public_room(&world, &alice, "11");
    let peer = Peer::new(&world, "peer.public.org");
    peer.join(&a, room.as_str(), &peer.user("bob"));
    let identity = Identity::new(&world);
    for (token, url) in [
        ("one", "https://127.0.0.1/isvalid"),
        ("two", "https://localhost/isvalid"),
        ("three", "http://id.public.org/isvalid"),
        ("four", "https://user@id.public.org/isvalid"),
        ("five", "junk"),
    ] {
        let mut offered = identity.offer();
        offered["key_validity_url"] = json!(url);
        offered["public_keys"] = json!([]);
        offer(&world, &a, &room, &alice, token, offered);
        let carol = peer.user("carol");
        let body = json!({
            "type": "m.room.member", "room_id": room, "sender": alice, "state_key": carol,
            "content": { "membership": "invite", "third_party_invite": { "signed": identity.signed(&carol, token) } },
        });
        let target = format!("/_matrix/federation/v1/exchange_third_party_invite/{}", encode(room.as_str()));
        let before = world.traffic().len();
        assert_eq!(peer.put(&a, &target, &body).0, 502, "{url}");
        assert_eq!(world.traffic().len(), before, "{url}");
    }
}

fn on_bind(world: &World, to: &Homeserver, body: &Value) -> (u16, Value) {
    send(world, to, request(Method::PUT, "/_matrix/federation/v1/3pid/onbind", &[], body.to_string()))
}

pub(crate) fn binding(user: &str, room: &str, sender: &str, signed: &Value) -> Value {
    let invite = json!({
        "medium": "email", "address": "b@e.example", "mxid": user, "room_id": room, "sender": sender, "signed": signed,
    });
    json!({ "medium": "email", "address": "b@e.example", "mxid": user, "invites": [invite] })
}

#[test]
fn a_binding_redeems_an_invite_in_a_room_that_we_are_in() {
    let (scene, identity) = offered();
    let dora = scene.a.user(&scene.world, "dora");
    let signed = identity.signed(dora.as_str(), "tok");
    let body = binding(dora.as_str(), scene.room.as_str(), scene.alice.as_str(), &signed);
    let (status, answer) = on_bind(&scene.world, &scene.a, &body);
    assert_eq!((status, &answer), (200, &json!({})), "{:?}", scene.world.logs());
    let member = member(&scene.world, &scene.a, &scene.room, dora.as_str());
    assert_eq!((&member["membership"], &member["third_party_invite"]["signed"]), (&json!("invite"), &signed));
    scene.world.settle();
    // The other servers hear of it.
    let told = scene.peer.received.borrow();
    let told = told.iter().filter(|request| request.uri().path().starts_with("/_matrix/federation/v1/send/"));
    assert!(told.into_iter().any(|request| String::from_utf8_lossy(request.body()).contains("\"token\":\"tok\"")));
    // Whoever has seen the invite can tell of it again, and the identity server does where it has missed our answer.
    let join = Draft::membership(dora.as_str(), Membership::Join, object(json!({})));
    for membership in ["invite", "join"] {
        if membership == "join" {
            scene.a.send(&scene.world, &scene.room, &dora, join.clone());
        }
        let before = accepted(&scene.a);
        assert_eq!(on_bind(&scene.world, &scene.a, &body), (200, json!({})));
        assert_eq!(accepted(&scene.a), before);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, dora.as_str()).as_deref(), Some(membership));
    }
}

/// As Sydent does, and Synapse expects.
#[test]
fn a_binding_may_be_posted() {
    let (scene, identity) = offered();
    let dora = scene.a.user(&scene.world, "dora");
    let signed = identity.signed(dora.as_str(), "tok");
    let body = binding(dora.as_str(), scene.room.as_str(), scene.alice.as_str(), &signed);
    let posted = request(Method::POST, "/_matrix/federation/v1/3pid/onbind", &[], body.to_string());
    assert_eq!(send(&scene.world, &scene.a, posted), (200, json!({})));
    let member = member(&scene.world, &scene.a, &scene.room, dora.as_str());
    assert_eq!(member["membership"], "invite");
}

#[test]
fn a_binding_redeems_invites_elsewhere_by_asking_who_offered_them() {
    let (scene, identity) = offered();
    let b = scene.world.server("b.example");
    let dora = b.user(&scene.world, "dora");
    let signed = identity.signed(dora.as_str(), "tok");
    let body = binding(dora.as_str(), scene.room.as_str(), scene.alice.as_str(), &signed);
    let (status, answer) = on_bind(&scene.world, &b, &body);
    assert_eq!((status, &answer), (200, &json!({})), "{:?}", scene.world.logs());
    let member = member(&scene.world, &scene.a, &scene.room, dora.as_str());
    assert_eq!(member["membership"], "invite");
    assert_eq!(b.database.rows("SELECT membership FROM local_memberships"), [["invite"]]);
    // Again it changes nothing, and whose identifier it is not is told so.
    assert_eq!(on_bind(&scene.world, &b, &body).0, 200);
    let before = accepted(&b);
    let other = scene.peer.user("carol");
    for (change, expected) in [
        (json!({ "mxid": other }), (400, "M_INVALID_PARAM")),
        (json!({ "mxid": 1 }), (400, "M_BAD_JSON")),
        (json!({ "invites": {} }), (400, "M_BAD_JSON")),
        (json!({ "invites": vec![body["invites"][0].clone(); 21] }), (400, "M_INVALID_PARAM")),
        (json!({ "mxid": "@nobody:b.example", "invites": [] }), (404, "M_NOT_FOUND")),
        (json!({ "mxid": other, "invites": [] }), (400, "M_INVALID_PARAM")),
    ] {
        let mut changed = body.clone();
        changed.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (status, answer) = on_bind(&scene.world, &b, &changed);
        assert_eq!((status, answer["errcode"].as_str().unwrap_or_default()), expected, "{changed}");
    }
    for member in ["sender", "room_id", "mxid", "signed"] {
        let mut changed = body.clone();
        changed["invites"][0].as_object_mut().unwrap().remove(member);
        assert_eq!(on_bind(&scene.world, &b, &changed).0, 400, "{member}");
    }
    assert_eq!(accepted(&b), before);
    // An address may tell of so many, whatever they are.
    let statuses: Vec<u16> = (0..20).map(|_| on_bind(&scene.world, &b, &json!({})).0).collect();
    assert_eq!(statuses.last(), Some(&429), "{statuses:?}");
}

/// What we ask for is what ruma reads.
#[test]
fn an_exchange_is_asked_for_as_the_specification_says() {
    let world = World::new();
    let b = world.server("b.example");
    let dora = b.user(&world, "dora");
    let peer = Peer::new(&world, "peer.example");
    peer.answers(|request| {
        let path = request.uri().path();
        let room = path.strip_prefix("/_matrix/federation/v1/exchange_third_party_invite/")?;
        assert_eq!(room, "%21room%3Apeer.example");
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        let content: RoomMemberEventContent = serde_json::from_value(body["content"].clone()).unwrap();
        assert_eq!(content.third_party_invite.unwrap().signed.deserialize().unwrap().token, "tok");
        assert_eq!((&body["type"], &body["room_id"]), (&json!("m.room.member"), &json!("!room:peer.example")));
        assert_eq!((&body["sender"], &body["state_key"]), (&json!("@bob:peer.example"), &json!("@dora:b.example")));
        Some(json_response(StatusCode::OK, &json!({})))
    });
    let identity = Identity::new(&world);
    let signed = identity.signed(dora.as_str(), "tok");
    let body = binding(dora.as_str(), "!room:peer.example", &peer.user("bob"), &signed);
    assert_eq!(on_bind(&world, &b, &body), (200, json!({})), "{:?}", world.logs());
    peer.answers(|request| {
        let error = json!({ "errcode": "M_FORBIDDEN", "error": "no" });
        request.uri().path().contains("exchange").then(|| json_response(StatusCode::FORBIDDEN, &error))
    });
    assert_eq!(on_bind(&world, &b, &body).0, 403);
    world.disconnect("peer.example");
    assert_eq!(on_bind(&world, &b, &body).0, 502);
}
