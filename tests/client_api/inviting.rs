//! Invites by an address that is not Matrix's, through an identity server of the test.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use ruma_events::room::third_party_invite::RoomThirdPartyInviteEventContent;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use verge::router::{Request, json_response};

use crate::{
    common::network::World,
    home::{Home, User, quote, refused},
};

/// An identity server that knows one address, and what it was asked.
struct Identity {
    /// What it answers instead, below this path.
    instead: RefCell<Option<(&'static str, u16, Value)>>,
    known: RefCell<Option<(String, String)>>,
    asked: RefCell<Vec<(String, Value)>>,
    tokens: Cell<u32>,
}

impl Identity {
    fn new(world: &World, host: &str) -> Rc<Self> {
        let (instead, known, asked) = Default::default();
        let identity = Rc::new(Self { instead, known, asked, tokens: Cell::new(0) });
        let itself = Rc::clone(&identity);
        world.connect(
            host,
            Rc::new(move |request| {
                let (status, answer) = itself.answer(&request);
                let response = json_response(StatusCode::from_u16(status).unwrap(), &answer);
                Box::pin(async move { response })
            }),
        );
        identity
    }

    fn answer(&self, request: &Request) -> (u16, Value) {
        let path = request.uri().path().strip_prefix("/_matrix/identity/v2/").unwrap();
        assert_eq!(request.headers()["authorization"], "Bearer s3cret-token");
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        self.asked.borrow_mut().push((format!("{} {path}", request.method()), body.clone()));
        if let Some((at, status, answer)) = &*self.instead.borrow()
            && *at == path
        {
            return (*status, answer.clone());
        }
        match path {
            "hash_details" => (200, json!({ "lookup_pepper": "pep", "algorithms": ["none", "sha256"] })),
            "lookup" => {
                assert_eq!((&body["algorithm"], &body["pepper"]), (&json!("sha256"), &json!("pep")));
                let mut mappings = json!({});
                if let Some((address, user)) = &*self.known.borrow() {
                    let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(format!("{address} email pep")));
                    if body["addresses"] == json!([hash]) {
                        mappings[hash] = json!(user);
                    }
                }
                (200, json!({ "mappings": mappings }))
            }
            "store-invite" => {
                self.tokens.set(self.tokens.get() + 1);
                let key =
                    |name: &str| json!({ "public_key": name, "key_validity_url": format!("https://id.test/{name}") });
                let keys = json!([key("long"), key("ephemeral")]);
                let token = format!("tok{}", self.tokens.get());
                (200, json!({ "token": token, "display_name": "d...@e...", "public_keys": keys }))
            }
            _ => (404, json!({ "errcode": "M_UNRECOGNIZED", "error": "?" })),
        }
    }

    fn instead(&self, path: &'static str, status: u16, answer: Value) {
        *self.instead.borrow_mut() = Some((path, status, answer));
    }
}

fn invite(home: &Home, user: &User, room: &str, change: Value) -> (u16, Value) {
    let mut body = json!({
        "id_server": "id.test", "id_access_token": "s3cret-token", "medium": "email", "address": "Dora@E.test",
    });
    body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    home.post(user, &format!("/rooms/{}/invite", quote(room)), body)
}

fn offers(home: &Home, user: &User, room: &str) -> Vec<Value> {
    let (_, state) = home.get(user, &format!("/rooms/{}/state", quote(room)));
    let is_offer = |event: &&Value| event["type"] == "m.room.third_party_invite";
    state.as_array().unwrap().iter().filter(is_offer).cloned().collect()
}

#[test]
fn whom_nobody_knows_is_offered_an_invite() {
    let home = Home::new();
    let identity = Identity::new(&home.world, "id.test");
    let alice = home.register("alice");
    home.put(&alice, &format!("/profile/{}/displayname", quote(&alice.id)), json!({ "displayname": "Alice" }));
    let room = home.room(&alice, json!({ "name": "Den" }));
    assert_eq!(invite(&home, &alice, &room, json!({})), (200, json!({})), "{:?}", home.world.logs());
    let offers = offers(&home, &alice, &room);
    assert_eq!((offers.len(), &offers[0]["state_key"], &offers[0]["sender"]), (1, &json!("tok1"), &json!(alice.id)));
    let content: RoomThirdPartyInviteEventContent = serde_json::from_value(offers[0]["content"].clone()).unwrap();
    assert_eq!((content.display_name.as_str(), content.public_keys.unwrap().len()), ("d...@e...", 2));
    assert_eq!(offers[0]["content"]["public_key"], "long");
    assert_eq!(offers[0]["content"]["key_validity_url"], "https://id.test/long");
    let asked = identity.asked.borrow();
    let lines: Vec<&str> = asked.iter().map(|(line, _)| line.as_str()).collect();
    assert_eq!(lines, ["GET hash_details", "POST lookup", "POST store-invite"]);
    let expected = json!({
        "address": "dora@e.test", "medium": "email", "room_id": room, "sender": alice.id, "room_name": "Den",
        "room_join_rules": "invite", "sender_display_name": "Alice",
    });
    assert_eq!(asked[2].1, expected);
    let logs = home.world.logs().join("\n");
    assert!(!logs.contains("s3cret-token") && !logs.contains("dora@e.test"), "{logs}");
}

#[test]
fn whom_the_identity_server_knows_is_invited() {
    let home = Home::new();
    let identity = Identity::new(&home.world, "id.test");
    let (alice, dora) = (home.register("alice"), home.register("dora"));
    *identity.known.borrow_mut() = Some(("dora@e.test".to_owned(), dora.id.clone()));
    let room = home.room(&alice, json!({}));
    assert_eq!(invite(&home, &alice, &room, json!({ "reason": "come" })), (200, json!({})));
    let path = format!("/rooms/{}/state/m.room.member/{}", quote(&room), quote(&dora.id));
    let member = home.get(&alice, &path).1;
    assert_eq!((&member["membership"], &member["reason"]), (&json!("invite"), &json!("come")));
    assert!(offers(&home, &alice, &room).is_empty());
}

#[test]
fn a_room_is_created_with_invites_by_address() {
    let home = Home::new();
    let identity = Identity::new(&home.world, "id.test");
    let alice = home.register("alice");
    let invite =
        json!({ "id_server": "id.test", "id_access_token": "s3cret-token", "medium": "email", "address": "d@e" });
    let room = home.room(&alice, json!({ "invite_3pid": [invite, invite] }));
    assert_eq!(offers(&home, &alice, &room).len(), 2);
    // The room is there, whoever cannot be invited to it.
    identity.instead("store-invite", 500, json!({}));
    let room = home.room(&alice, json!({ "invite_3pid": [invite] }));
    assert!(offers(&home, &alice, &room).is_empty());
    refused(&home.post(&alice, "/createRoom", json!({ "invite_3pid": [{}] })), 400, "M_MISSING_PARAM");
    refused(&home.post(&alice, "/createRoom", json!({ "invite_3pid": [1] })), 400, "M_BAD_JSON");
    let many = json!({ "invite_3pid": vec![invite; 21] });
    refused(&home.post(&alice, "/createRoom", many), 400, "M_INVALID_PARAM");
}

#[test]
fn what_is_wrong_with_an_invite_by_address_is_said() {
    let home = Home::new();
    let identity = Identity::new(&home.world, "id.test");
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "power_level_content_override": { "invite": 50 } }));
    let asked = |change: Value| invite(&home, &alice, &room, change);
    for name in ["id_server", "id_access_token", "medium", "address"] {
        refused(&asked(json!({ name: null })), 400, "M_MISSING_PARAM");
        refused(&asked(json!({ name: 7 })), 400, "M_BAD_JSON");
    }
    refused(&asked(json!({ "address": "" })), 400, "M_INVALID_PARAM");
    refused(&asked(json!({ "address": "x".repeat(501) })), 400, "M_INVALID_PARAM");
    refused(&asked(json!({ "id_server": "id.test/path" })), 400, "M_INVALID_PARAM");
    refused(&asked(json!({ "id_server": "https://id.test" })), 400, "M_INVALID_PARAM");
    // Who may not invite has nobody written to.
    refused(&invite(&home, &bob, &room, json!({})), 403, "M_FORBIDDEN");
    home.post(&alice, &format!("/rooms/{}/invite", quote(&room)), json!({ "user_id": bob.id }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    refused(&invite(&home, &bob, &room, json!({})), 403, "M_FORBIDDEN");
    assert!(identity.asked.borrow().is_empty());
    // What the identity server says.
    let said = |errcode: &str| json!({ "errcode": errcode, "error": "theirs" });
    for (path, status, answer, expected) in [
        ("store-invite", 403, said("M_TERMS_NOT_SIGNED"), (403, "M_TERMS_NOT_SIGNED")),
        ("store-invite", 400, said("M_THREEPID_IN_USE"), (400, "M_THREEPID_IN_USE")),
        ("store-invite", 400, said("M_UNRECOGNIZED"), (400, "M_UNRECOGNIZED")),
        ("store-invite", 400, said("M_OTHER"), (403, "M_FORBIDDEN")),
        ("hash_details", 401, said("M_UNKNOWN_TOKEN"), (403, "M_FORBIDDEN")),
        ("hash_details", 500, said("M_UNKNOWN"), (502, "M_UNKNOWN")),
        ("hash_details", 302, json!({}), (502, "M_UNKNOWN")),
        ("hash_details", 200, json!([]), (502, "M_UNKNOWN")),
        ("hash_details", 200, json!({ "lookup_pepper": "pep", "algorithms": ["none"] }), (502, "M_UNKNOWN")),
        ("hash_details", 200, json!({ "algorithms": ["sha256"] }), (502, "M_UNKNOWN")),
        ("hash_details", 200, json!({ "pad": "x".repeat(65_536) }), (502, "M_UNKNOWN")),
        ("lookup", 200, json!({}), (502, "M_UNKNOWN")),
        ("store-invite", 200, json!({ "token": "t", "display_name": "d", "public_keys": [] }), (502, "M_UNKNOWN")),
        ("store-invite", 200, json!({ "token": "t", "display_name": "d", "public_keys": [{}] }), (502, "M_UNKNOWN")),
        ("store-invite", 200, stored("", "d", 1), (502, "M_UNKNOWN")),
        ("store-invite", 200, stored("a b", "d", 1), (502, "M_UNKNOWN")),
        ("store-invite", 200, stored(&"t".repeat(256), "d", 1), (502, "M_UNKNOWN")),
        ("store-invite", 200, stored("t", &"d".repeat(256), 1), (502, "M_UNKNOWN")),
        ("store-invite", 200, stored("t", "d", 11), (502, "M_UNKNOWN")),
    ] {
        identity.instead(path, status, answer);
        refused(&asked(json!({})), expected.0, expected.1);
    }
    home.world.disconnect("id.test");
    refused(&asked(json!({})), 502, "M_UNKNOWN");
    assert!(offers(&home, &alice, &room).is_empty());
}

fn stored(token: &str, display_name: &str, keys: usize) -> Value {
    let key = json!({ "public_key": "k", "key_validity_url": "https://id.test/k" });
    json!({ "token": token, "display_name": display_name, "public_keys": vec![key; keys] })
}

/// A client must not lead a server into the network that it stands in.
#[test]
fn an_identity_server_in_a_private_network_is_not_asked() {
    let world = World::new();
    let home = Home::with(&world, "hs.public.org", &[("REGISTRATION", "open")]);
    let alice = home.register("alice");
    let room = home.room(&alice, json!({}));
    for name in ["localhost", "127.0.0.1:8080", "10.0.0.1", "[::1]", "id.test"] {
        refused(&invite(&home, &alice, &room, json!({ "id_server": name })), 400, "M_INVALID_PARAM");
    }
    assert!(world.traffic().is_empty());
}
