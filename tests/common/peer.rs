//! Another homeserver, of which only the wire is real: requests and events are signed by `ruma-signatures`, and what it
//! answers is what a test says.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{Method, StatusCode};
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, RoomVersionId, room_version_rules::RoomVersionRules, serde::Base64,
};
use ruma_signatures::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use verge::router::{Request, Response, json_response};

use super::network::{Homeserver, World};

/// The room versions that it knows.
const VERSIONS: &str = "ver=1&ver=2&ver=8&ver=9&ver=10&ver=11&ver=12";

/// What a peer answers to requests that it does not answer by itself.
pub type Answers = Box<dyn Fn(&Request) -> Option<Response>>;

/// See the module.
pub struct Peer {
    pub name: String,
    pub world: World,
    key: Ed25519KeyPair,
    /// When its keys cease to be valid, from now; negative for expired ones.
    pub key_validity_ms: Cell<i64>,
    /// The requests it got, the newest last.
    pub received: RefCell<Vec<Request>>,
    answers: RefCell<Answers>,
}

/// A room as a peer sees it that joined: what its events cite.
#[derive(Clone)]
pub struct PeerRoom {
    pub room_id: String,
    pub version: String,
    /// By type and state key.
    pub state: BTreeMap<(String, String), Value>,
    /// The newest event.
    pub last: String,
    pub depth: i64,
}

impl Peer {
    /// A peer called `name` in the world.
    pub fn new(world: &World, name: &str) -> Rc<Self> {
        // A PKCS#8 document: a fixed head and the seed.
        let mut document = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        document.extend(Sha256::digest(name));
        let peer = Rc::new(Self {
            name: name.to_owned(),
            world: world.clone(),
            key: Ed25519KeyPair::from_der(&document, "peer".to_owned()).unwrap(),
            key_validity_ms: Cell::new(3_600_000),
            received: RefCell::default(),
            answers: RefCell::new(Box::new(|_| None)),
        });
        let itself = Rc::clone(&peer);
        world.connect(
            name,
            Rc::new(move |request| {
                let itself = Rc::clone(&itself);
                Box::pin(async move { itself.answer(request) })
            }),
        );
        peer
    }

    /// From now on `answers` is asked what to answer.
    pub fn answers(&self, answers: impl Fn(&Request) -> Option<Response> + 'static) {
        *self.answers.borrow_mut() = Box::new(answers);
    }

    fn answer(&self, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        let scripted = (self.answers.borrow())(&request);
        self.received.borrow_mut().push(request);
        if let Some(response) = scripted {
            return response;
        }
        match path.as_str() {
            "/_matrix/key/v2/server" => json_response(StatusCode::OK, &self.server_keys()),
            "/.well-known/matrix/server" => {
                json_response(StatusCode::OK, &json!({ "m.server": format!("{}:443", self.name) }))
            }
            _ => json_response(StatusCode::NOT_FOUND, &json!({ "errcode": "M_UNRECOGNIZED", "error": "?" })),
        }
    }

    fn server_keys(&self) -> Value {
        let public = STANDARD_NO_PAD.encode(self.key.public_key());
        let mut keys = object(json!({
            "server_name": self.name,
            "verify_keys": { "ed25519:peer": { "key": public } },
            "old_verify_keys": {},
            "valid_until_ts": self.world.now_ms() + self.key_validity_ms.get(),
        }));
        ruma_signatures::sign_json(&self.name, &self.key, &mut keys).unwrap();
        value(keys)
    }

    /// The public part of its key.
    pub fn public_key(&self) -> Vec<u8> {
        self.key.public_key().to_vec()
    }

    /// The user `localpart` of this peer.
    pub fn user(&self, localpart: &str) -> String {
        format!("@{localpart}:{}", self.name)
    }

    /// The `Authorization` header of a request to `destination`.
    pub fn authorization(&self, method: &str, target: &str, destination: &str, body: Option<&Value>) -> String {
        let mut signed = json!({ "method": method, "uri": target, "origin": self.name, "destination": destination });
        if let Some(body) = body {
            signed["content"] = body.clone();
        }
        let signature = match CanonicalJsonValue::try_from(signed.clone()) {
            Ok(CanonicalJsonValue::Object(mut signed)) => {
                ruma_signatures::sign_json(&self.name, &self.key, &mut signed).unwrap();
                value(signed)["signatures"][&self.name]["ed25519:peer"].as_str().unwrap().to_owned()
            }
            // Numbers that ruma does not sign.
            _ => self.key.sign(signed.to_string().as_bytes()).base64(),
        };
        format!(
            "X-Matrix origin=\"{}\",destination=\"{destination}\",key=\"ed25519:peer\",sig=\"{signature}\"",
            self.name
        )
    }

    /// A signed request to `to`; `target` is the path and query as on the wire.
    pub fn request(&self, to: &Homeserver, method: Method, target: &str, body: Option<&Value>) -> Request {
        let authorization = self.authorization(method.as_str(), target, to.config.server_name.as_str(), body);
        let text = body.map_or_else(String::new, Value::to_string);
        request(method, target, &[&authorization], text)
    }

    /// Sends a signed `GET` and returns status and body.
    pub fn get(&self, to: &Homeserver, target: &str) -> (u16, Value) {
        self.ask(to, self.request(to, Method::GET, target, None))
    }

    /// Sends a signed `PUT` and returns status and body.
    pub fn put(&self, to: &Homeserver, target: &str, body: &Value) -> (u16, Value) {
        self.ask(to, self.request(to, Method::PUT, target, Some(body)))
    }

    /// Sends a signed `PUT` with a body that is given as canonical JSON, which may hold what a [`Value`] cannot.
    pub fn put_text(&self, to: &Homeserver, target: &str, body: &str) -> (u16, Value) {
        let authorization = self.text_authorization(to, target, body);
        self.ask(to, request(Method::PUT, target, &[&authorization], body.to_owned()))
    }

    /// The `Authorization` of a `PUT` with a body whose canonical text this is.
    pub fn text_authorization(&self, to: &Homeserver, target: &str, body: &str) -> String {
        let destination = to.config.server_name.as_str();
        let signed = format!(
            "{{\"content\":{body},\"destination\":\"{destination}\",\"method\":\"PUT\",\"origin\":\"{}\",\"uri\":\"{target}\"}}",
            self.name
        );
        let signature = self.key.sign(signed.as_bytes()).base64();
        format!(
            "X-Matrix origin=\"{}\",destination=\"{destination}\",key=\"ed25519:peer\",sig=\"{signature}\"",
            self.name
        )
    }

    /// Sends a signed `POST` and returns status and body.
    pub fn post(&self, to: &Homeserver, target: &str, body: &Value) -> (u16, Value) {
        self.ask(to, self.request(to, Method::POST, target, Some(body)))
    }

    /// Sends `request` as it is and returns status and body.
    pub fn ask(&self, to: &Homeserver, request: Request) -> (u16, Value) {
        send(&self.world, to, request)
    }

    /// Sends a transaction of `pdus` and returns status and body.
    pub fn send(&self, to: &Homeserver, txn_id: &str, pdus: &[Value]) -> (u16, Value) {
        let body = json!({ "origin": self.name, "origin_server_ts": self.world.now_ms(), "pdus": pdus });
        self.put(to, &format!("/_matrix/federation/v1/send/{txn_id}"), &body)
    }

    /// Hashes and signs `event`, and returns it with its ID.
    pub fn sign(&self, version: &str, event: Value) -> (String, Value) {
        let mut event = object(self.with_id(version, event));
        ruma_signatures::hash_and_sign_event(&self.name, &self.key, &mut event, &rules(version).redaction).unwrap();
        let event = value(event);
        (event_id(version, &event), event)
    }

    /// `event` with an ID that we give it, where its version has that and nobody has yet.
    fn with_id(&self, version: &str, mut event: Value) -> Value {
        if gives_ids(version) && event.get("event_id").is_none() {
            let (hash, _) = self.sign("4", event.clone());
            event["event_id"] = json!(format!("{hash}:{}", self.name));
        }
        event
    }

    /// Signs `event`, whatever its content hash is.
    pub fn sign_only(&self, version: &str, event: Value) -> (String, Value) {
        let mut event = object(event);
        ruma_signatures::sign_event(&self.name, &self.key, &mut event, &rules(version).redaction).unwrap();
        let event = value(event);
        (event_id(version, &event), event)
    }

    /// Joins `user` to the room through `resident`.
    pub fn join(&self, resident: &Homeserver, room_id: &str, user: &str) -> PeerRoom {
        let (room, joined) = self.try_join(resident, room_id, user);
        assert_eq!(joined.0, 200, "{}", joined.1);
        room.unwrap()
    }

    /// As [`Peer::join`], with the answer of the request that refused, or of `send_join`.
    pub fn try_join(&self, resident: &Homeserver, room_id: &str, user: &str) -> (Option<PeerRoom>, (u16, Value)) {
        let target = format!("/_matrix/federation/v1/make_join/{}/{}?{VERSIONS}", encode(room_id), encode(user));
        let (status, template) = self.get(resident, &target);
        if status != 200 {
            return (None, (status, template));
        }
        let version = template["room_version"].as_str().unwrap().to_owned();
        let mut event = template["event"].clone();
        event["origin_server_ts"] = json!(self.world.now_ms());
        // They name the resident server: no room version has the one, and the other is ours to give.
        for name in ["origin", "event_id"] {
            event.as_object_mut().unwrap().remove(name);
        }
        let (id, event) = self.sign(&version, event);
        let target = format!("/_matrix/federation/v2/send_join/{}/{}", encode(room_id), encode(&id));
        let (status, answer) = self.put(resident, &target, &event);
        if status != 200 {
            return (None, (status, answer));
        }
        let mut state = BTreeMap::new();
        let joined = answer["event"].clone();
        for event in answer["state"].as_array().unwrap().iter().chain([&joined]) {
            let key = |name: &str| event[name].as_str().unwrap().to_owned();
            state.insert((key("type"), key("state_key")), event.clone());
        }
        let room = PeerRoom {
            room_id: room_id.to_owned(),
            depth: joined["depth"].as_i64().unwrap(),
            version,
            state,
            last: id,
        };
        (Some(room), (status, answer))
    }
}

impl PeerRoom {
    /// An unsigned event of `sender` at the end of the room; what `fields` holds (`type`, `content`, `state_key`, …) is
    /// added, or replaces what is there.
    pub fn draft(&self, now_ms: i64, sender: &str, fields: Value) -> Value {
        let mut auth = vec![("m.room.power_levels", ""), ("m.room.member", sender)];
        if self.version != "12" {
            auth.push(("m.room.create", ""));
        }
        let auth: Vec<String> = auth.into_iter().filter_map(|(t, k)| self.state_id(t, k)).collect();
        let mut event = json!({
            "room_id": self.room_id,
            "sender": sender,
            "origin_server_ts": now_ms,
            "auth_events": auth,
            "prev_events": [self.last],
            "depth": self.depth + 1,
        });
        for (name, value) in fields.as_object().unwrap() {
            event[name] = value.clone();
        }
        if gives_ids(&self.version) {
            for name in ["auth_events", "prev_events"] {
                for cited in event[name].as_array_mut().unwrap() {
                    *cited = json!([cited, { "sha256": "" }]);
                }
            }
        }
        event
    }

    /// As [`PeerRoom::draft`], of what `user` becomes. Whoever joins or is invited cites the room's join rules.
    pub fn draft_member(&self, now_ms: i64, sender: &str, user: &str, content: Value) -> Value {
        let cites_rules = matches!(content["membership"].as_str(), Some("join" | "invite"));
        let fields = json!({ "type": "m.room.member", "state_key": user, "content": content });
        let mut draft = self.draft(now_ms, sender, fields);
        if cites_rules {
            let rules = json!(self.state_id("m.room.join_rules", "").unwrap());
            let rules = if gives_ids(&self.version) { json!([rules, { "sha256": "" }]) } else { rules };
            draft["auth_events"].as_array_mut().unwrap().push(rules);
        }
        draft
    }

    /// The ID of a state event.
    pub fn state_id(&self, event_type: &str, state_key: &str) -> Option<String> {
        let event = self.state.get(&(event_type.to_owned(), state_key.to_owned()))?;
        Some(event_id(&self.version, event))
    }

    /// A signed message at the end of the room, which is from now on the newest event.
    pub fn say(&mut self, peer: &Peer, sender: &str, body: &str) -> (String, Value) {
        let said = self.say_upon(peer, sender, body, &[&self.last]);
        self.advance(&said.0);
        said
    }

    /// A signed message that cites these as previous events, and nothing else.
    pub fn say_upon(&self, peer: &Peer, sender: &str, body: &str, previous: &[&str]) -> (String, Value) {
        let content = json!({ "msgtype": "m.text", "body": body });
        let fields = json!({ "type": "m.room.message", "content": content, "prev_events": previous });
        peer.sign(&self.version, self.draft(peer.world.now_ms(), sender, fields))
    }

    /// Makes `event_id` the newest event.
    pub fn advance(&mut self, event_id: &str) {
        self.last = event_id.to_owned();
        self.depth += 1;
    }
}

/// A request that nobody signed but for what `authorizations` say.
pub fn request(method: Method, target: &str, authorizations: &[&str], body: impl Into<Bytes>) -> Request {
    let mut request = http::Request::builder().method(method).uri(target);
    for authorization in authorizations {
        request = request.header(http::header::AUTHORIZATION, *authorization);
    }
    request.body(body.into()).unwrap()
}

/// Sends a request and returns status and body.
pub fn send(world: &World, to: &Homeserver, request: Request) -> (u16, Value) {
    let response = world.run(to.handle(request));
    let body = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
    (response.status().as_u16(), body)
}

/// Whether the sender of an event gives it its ID.
fn gives_ids(version: &str) -> bool {
    matches!(version, "1" | "2")
}

/// The event ID of an event, as ruma makes it where it is made.
pub fn event_id(version: &str, event: &Value) -> String {
    if gives_ids(version) {
        return event["event_id"].as_str().unwrap().to_owned();
    }
    let hash = ruma_signatures::reference_hash(&object(event.clone()), &rules(version)).unwrap();
    format!("${hash}")
}

/// Checks with ruma that every one of `servers` has signed the event.
pub fn assert_signed(version: &str, event: &Value, keys: &[(&str, &str, Vec<u8>)]) {
    let mut map = BTreeMap::new();
    for (server, key_id, key) in keys {
        let keys = BTreeMap::from([((*key_id).to_owned(), Base64::new(key.clone()))]);
        map.insert((*server).to_owned(), keys);
    }
    let verified = ruma_signatures::verify_event(&map, &object(event.clone()), &rules(version)).unwrap();
    assert_eq!(verified, ruma_signatures::Verified::All);
}

/// Percent-encodes a path segment.
pub fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn rules(version: &str) -> RoomVersionRules {
    RoomVersionId::try_from(version).unwrap().rules().unwrap()
}

fn object(value: Value) -> CanonicalJsonObject {
    match CanonicalJsonValue::try_from(value).unwrap() {
        CanonicalJsonValue::Object(object) => object,
        other => panic!("{other:?} is not an object"),
    }
}

fn value(object: CanonicalJsonObject) -> Value {
    Value::from(CanonicalJsonValue::Object(object))
}

/// Checks with ruma that `server` has signed the JSON object with this key, unpadded base64.
pub fn assert_signed_json(signed: &Value, server: &str, key_id: &str, key: &str) {
    let keys = BTreeMap::from([(key_id.to_owned(), Base64::parse(key).unwrap())]);
    ruma_signatures::verify_json(&BTreeMap::from([(server.to_owned(), keys)]), &object(signed.clone())).unwrap();
}
