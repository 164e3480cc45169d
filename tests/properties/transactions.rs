//! Transactions: whatever the body is, the answer is the spec's, each PDU has one of its own, and what is acknowledged is
//! kept.

use std::{collections::BTreeSet, rc::Rc};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::{Method, StatusCode};
use ruma_common::CanonicalJsonObject;
use serde_json::json;
use sha2::{Digest, Sha256};
use verge::{
    federation::outbound::membership,
    matrix::{
        auth_events,
        event::{Event, hash_and_sign},
        identifiers::ServerName,
        json::{self, Object, Value},
        room_version::{EventIds, RoomVersion},
        signing::SigningKey,
        x_matrix::SignedRequest,
    },
    router::json_response,
};

use crate::common::{
    homeserver::state_events,
    network::{Homeserver, World, signing_key},
    peer::{request, send},
    ruma,
    sqlite::Sqlite,
};

const US: &str = "a.example";
const THEM: &str = "b.example";
const TARGET: &str = "/_matrix/federation/v1/send/1";

thread_local! {
    static SCENE: Scene = Scene::new();
}

/// Whether the text is a transaction of which a PDU is taken.
pub(crate) fn holds(body: &[u8]) -> bool {
    SCENE.with(|scene| {
        let body = scene.completed(body);
        let (world, us) = scene.world();
        let (status, answer) = scene.send(&world, &us, &body);
        let (expected, errcode) = expected_status(&body);
        assert_eq!((status, answer["errcode"].as_str()), (expected, errcode), "{answer}");
        let taken = status == 200 && scene.takes(&us, &body, &answer["pdus"]);
        assert_eq!(scene.send(&world, &us, &body), (status, answer), "a transaction is processed once");
        // What is left to do after the answer comes to an end.
        world.settle();
        // The world has its servers, and they have it: one of them must let go.
        world.disconnect(US);
        taken
    })
}

/// A transaction is read whatever its depth.
fn read(body: &[u8]) -> Result<Value, json::Error> {
    json::parse_to_depth(body, json::MAX_DEPTH)
}

/// The status of the answer, and its errcode (Server-Server API, "Transactions"; Client-Server API, "API Standards").
fn expected_status(body: &[u8]) -> (u16, Option<&'static str>) {
    let Ok(body) = read(body) else { return (400, Some("M_NOT_JSON")) };
    let list = |name: &str| body.get(name).map(|list| list.as_array().map(<[Value]>::len));
    match (list("pdus"), list("edus")) {
        (Some(Some(pdus)), edus) if edus != Some(None) => match pdus > 50 || edus.flatten() > Some(100) {
            true => (400, Some("M_INVALID_PARAM")),
            false => (200, None),
        },
        _ => (400, Some("M_BAD_JSON")),
    }
}

fn is_kept(us: &Homeserver, id: &str) -> bool {
    let id = id.replace('\'', "''");
    let rows = |table: &str| us.database.rows(&format!("SELECT 1 FROM {table} WHERE event_id = '{id}'"));
    !rows("events").is_empty() || !rows("staged_pdus").is_empty()
}

/// Our server, which made rooms of several versions, and another one that has joined them all.
struct Scene {
    database: Sqlite,
    now: i64,
    rooms: Vec<TheirRoom>,
    key: SigningKey,
}

/// A room, as the other server sees it.
struct TheirRoom {
    id: String,
    version: &'static RoomVersion,
    state: Vec<Event>,
    /// The newest event, for others to stand on.
    last: Event,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let (us, them) = (world.server(US), world.server(THEM));
        let (alice, bob) = (us.user(&world, "alice"), them.user(&world, "bob"));
        let rooms = ["1", "5", "10", "12"].map(|id| {
            let room = us.public_room(&world, &alice, id);
            let via = vec![ServerName::parse(US).unwrap()];
            world.run(membership::join(&them, &bob, &room, via, Object::new())).unwrap();
            world.settle();
            let found = world.run(us.rooms.room(&room)).unwrap().unwrap();
            let state = world.run(state_events(&us, found.state));
            let last = &found.extremities[0].event_id;
            let last = state.iter().find(|event| event.event_id() == last).unwrap().clone();
            TheirRoom { id: room.to_string(), version: found.room_version, state, last }
        });
        let key = SigningKey::from_line(&signing_key(THEM)).unwrap();
        Self { database: us.database.clone(), now: world.now_ms(), rooms: rooms.into(), key }
    }

    /// The world as it was when all had joined, but for the other server: that one has nothing to say any more.
    fn world(&self) -> (World, Homeserver) {
        let world = World::new();
        world.advance(self.now - world.now_ms());
        let us = world.server_over(US, self.database.copy(), &[]);
        world.connect(THEM, Rc::new(|_| Box::pin(async { json_response(StatusCode::NOT_FOUND, &json!({})) })));
        (world, us)
    }

    fn send(&self, world: &World, us: &Homeserver, body: &[u8]) -> (u16, serde_json::Value) {
        let content = read(body).ok();
        let signed =
            SignedRequest { method: "PUT", uri: TARGET, origin: THEM, destination: US, content: content.as_ref() };
        send(world, us, request(Method::PUT, TARGET, &[&signed.authorization(&self.key)], body.to_vec()))
    }

    /// Whether a PDU is taken. Each has an answer, and what is taken is kept.
    fn takes(&self, us: &Homeserver, body: &[u8], answers: &serde_json::Value) -> bool {
        let answers = answers.as_object().unwrap();
        let ids = self.ids(body);
        assert!(ids.iter().all(|id| answers.contains_key(id)), "{ids:?}, but {answers:?}");
        let mut taken = false;
        for (id, answer) in answers {
            match answer.get("error") {
                Some(error) => assert!(error.is_string(), "{answer}"),
                None => {
                    assert_eq!(*answer, json!({}));
                    assert!(is_kept(us, id), "{id}");
                    taken = true;
                }
            }
        }
        taken
    }

    /// The body with PDUs that others could have sent: what they lack of an event is added.
    fn completed(&self, body: &[u8]) -> Vec<u8> {
        let Ok(Value::Object(mut transaction)) = json::parse(body) else { return body.to_vec() };
        let Some(Value::Array(pdus)) = transaction.get("pdus") else { return body.to_vec() };
        let pdus: Vec<Value> = pdus.iter().map(|pdu| self.completed_pdu(pdu)).collect();
        transaction.insert("pdus", pdus);
        transaction.to_text().into_bytes()
    }

    /// A room is named by its place in our list.
    fn completed_pdu(&self, pdu: &Value) -> Value {
        let room = pdu.get("room_id").and_then(Value::as_i64).and_then(|place| usize::try_from(place).ok());
        let (Value::Object(pdu), Some(room)) = (pdu, room.and_then(|place| self.rooms.get(place))) else {
            return pdu.clone();
        };
        let mut pdu = pdu.clone();
        let text = |name| pdu.get(name).and_then(Value::as_str).unwrap_or_default();
        let nothing = Object::new();
        let content = pdu.get("content").and_then(Value::as_object).unwrap_or(&nothing);
        let state_key = pdu.get("state_key").and_then(Value::as_str);
        let selection = auth_events::selection(room.version, text("type"), text("sender"), state_key, content);
        let is_selected = |event: &&Event| selection.iter().any(|(t, k)| event.is_state(t, k));
        let cited: Vec<Value> = room.state.iter().filter(is_selected).map(Event::reference).collect();
        let mut members = vec![
            ("auth_events", Value::from(cited)),
            ("depth", Value::from(room.last.depth() + 1)),
            ("origin_server_ts", Value::from(self.now)),
            ("prev_events", vec![room.last.reference()].into()),
        ];
        if room.version.event_ids == EventIds::Given {
            // Two events of one content are one event.
            let local = STANDARD_NO_PAD.encode(Sha256::digest(pdu.to_text()));
            members.push(("event_id", format!("${local}:{THEM}").into()));
        }
        pdu.insert("room_id", room.id.as_str());
        for (name, value) in members {
            if !pdu.contains_key(name) {
                pdu.insert(name, value);
            }
        }
        if !pdu.contains_key("signatures") {
            hash_and_sign(&mut pdu, room.version, THEM, &self.key);
        }
        pdu.into()
    }

    /// The IDs of the PDUs, as ruma makes them, as far as it does.
    fn ids(&self, body: &[u8]) -> BTreeSet<String> {
        let body = read(body).unwrap();
        let pdus = body.get("pdus").and_then(Value::as_array).unwrap();
        let id = |pdu: &Value| {
            let room_id = pdu.get("room_id")?.as_str()?;
            let version = self.rooms.iter().find(|room| room.id == room_id)?.version;
            if version.event_ids == EventIds::Given {
                return Some(pdu.get("event_id")?.as_str()?.to_owned())
                    .filter(|id| id.len() > 1 && id.starts_with('$'));
            }
            pdu.check_strict().ok()?;
            let object: CanonicalJsonObject = serde_json::from_str(&pdu.to_text()).ok()?;
            Some(format!("${}", ruma_signatures::reference_hash(&object, &ruma::rules(version)).ok()?))
        };
        pdus.iter().filter_map(id).collect()
    }
}
