//! Events and rooms to measure on.

// Each bench uses a part of it.
#![allow(dead_code)]

use serde_json::{Value as Json, json};
use verge::matrix::{
    auth_events,
    auth_rules::{self, AuthError, AuthEvent},
    event::{Event, hash_and_sign, id_of_malformed},
    identifiers::EventId,
    json::{Object, Value},
    room_version::RoomVersion,
    server_keys::{KeyRing, KnownKey},
    signing::SigningKey,
};

/// The server of all users.
pub(crate) const SERVER: &str = "example.org";
/// The seed of its key, in unpadded base64.
pub(crate) const SEED: &str = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";

/// Who has created rooms.
const CREATOR: &str = "@creator:example.org";
/// Who has a power level of 100 in them.
pub(crate) const ADMIN: &str = "@user0:example.org";
/// Who is in them.
pub(crate) const MEMBER: &str = "@user1:example.org";
/// Who is not in them.
pub(crate) const NEWCOMER: &str = "@newcomer:example.org";

/// The server's key, `ed25519:1`.
pub(crate) fn signing_key() -> SigningKey {
    SigningKey::from_line(&format!("ed25519 1 {SEED}")).unwrap()
}

/// The server's key, to verify with.
pub(crate) fn key_ring() -> KeyRing {
    let mut keys = KeyRing::new();
    let key = signing_key().verify_key();
    keys.insert(
        SERVER,
        "ed25519:1",
        KnownKey { key, valid_until_ts: i64::MAX, expired_ts: None, fetched_ts: i64::MAX },
    );
    keys
}

/// The room version with this identifier.
pub(crate) fn version(id: &str) -> &'static RoomVersion {
    RoomVersion::get(id).unwrap()
}

/// A room, with as much of its state as decides who may do what.
pub(crate) struct Room {
    pub(crate) version: &'static RoomVersion,
    pub(crate) state: Vec<Event>,
}

impl Room {
    /// A room whose power levels list so many users.
    pub(crate) fn new(version: &'static RoomVersion, users: usize, join_rule: &str) -> Self {
        let mut room = Self { version, state: Vec::new() };
        let create = json!({ "room_version": version.id, "creator": CREATOR });
        room.add("m.room.create", "", CREATOR, create);
        for user in [ADMIN, MEMBER] {
            room.add("m.room.member", user, user, json!({ "membership": "join" }));
        }
        room.add("m.room.power_levels", "", ADMIN, power_levels(users));
        let mut join_rules = json!({ "join_rule": join_rule });
        if join_rule == "restricted" {
            join_rules["allow"] = json!([{ "type": "m.room_membership", "room_id": "!space:example.org" }]);
        }
        room.add("m.room.join_rules", "", ADMIN, join_rules);
        room
    }

    fn add(&mut self, event_type: &str, state_key: &str, sender: &str, content: Json) {
        self.state.push(self.event(self.pdu(event_type, Some(state_key), sender, content, 0)));
    }

    /// A signed PDU of the room; another one for each number.
    pub(crate) fn pdu(
        &self,
        event_type: &str,
        state_key: Option<&str>,
        sender: &str,
        content: Json,
        number: i64,
    ) -> Object {
        let content = Value::from(content).into_object().unwrap();
        let keys = auth_events::selection(self.version, event_type, sender, state_key, &content);
        let cited = keys.iter().filter_map(|(t, k)| self.state.iter().find(|event| event.is_state(t, k)));
        let cited: Vec<Value> = cited.map(|event| Value::from(event.event_id())).collect();
        let previous: Vec<Value> = self.state.last().map(|event| Value::from(event.event_id())).into_iter().collect();
        let mut event = Object::from_iter([
            ("auth_events", Value::from(cited)),
            ("content", content.into()),
            ("depth", 1_234.into()),
            ("origin", SERVER.into()),
            ("origin_server_ts", (1_700_000_000_000 + number).into()),
            ("prev_events", previous.into()),
            ("sender", sender.into()),
            ("type", event_type.into()),
        ]);
        match self.state.first() {
            Some(create) => drop(event.insert("room_id", create.room_id())),
            None if self.version.room_id_is_create_hash => {}
            None => drop(event.insert("room_id", "!room:example.org")),
        }
        if let Some(state_key) = state_key {
            event.insert("state_key", state_key);
        }
        hash_and_sign(&mut event, self.version, SERVER, &signing_key());
        event
    }

    /// A signed message whose PDU has so many bytes; another one for each number.
    pub(crate) fn message(&self, bytes: usize, number: i64) -> Object {
        let with_body =
            |body: &str| self.pdu("m.room.message", None, MEMBER, json!({ "body": body, "msgtype": "m.text" }), number);
        with_body(&text_of_bytes(bytes - with_body("").to_text().len()))
    }

    /// The event that a PDU is.
    pub(crate) fn event(&self, pdu: Object) -> Event {
        let pdu = Value::from(pdu);
        // Not through the checks of a received PDU: power levels of 10,000 users are longer than an event may be.
        Event::from_store(id_of_malformed(&pdu, self.version).unwrap().as_str(), &pdu.to_text(), self.version).unwrap()
    }

    /// Checks the list of auth events of an event.
    pub(crate) fn check_auth_events(&self, event: &Event) -> Result<(), AuthError> {
        let find = |id: &EventId| {
            let event = self.state.iter().find(|event| event.event_id() == id)?;
            Some(AuthEvent { event, rejected: false })
        };
        auth_rules::check_auth_event_list(event, find)
    }

    /// Checks an event by the room's state.
    pub(crate) fn check_by_state(&self, event: &Event) -> Result<(), AuthError> {
        auth_rules::check(event, self.state.as_slice())
    }
}

/// What clients and servers make of a room's power levels, for so many users.
pub(crate) fn power_levels(users: usize) -> Json {
    let level = |number: usize| (format!("@user{number}:{SERVER}"), json!(if number == 0 { 100 } else { 50 }));
    json!({
        "ban": 50,
        "events": {
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.encryption": 100,
            "m.room.history_visibility": 100,
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": 100,
        },
        "events_default": 0,
        "historical": 100,
        "invite": 50,
        "kick": 50,
        "redact": 50,
        "state_default": 50,
        "users": (0..users).map(level).collect::<serde_json::Map<_, _>>(),
        "users_default": 0,
    })
}

/// The text of an event as another server might send it, with the members of each object in any order.
pub(crate) fn as_sent(value: &Value) -> String {
    match value {
        Value::Object(object) => {
            let mut members: Vec<_> = object.iter().collect();
            // By their last letters.
            members.sort_by_key(|(key, _)| key.bytes().rev().collect::<Vec<_>>());
            let text = |(key, value): (&str, &Value)| format!("{}:{}", Value::from(key).to_text(), as_sent(value));
            format!("{{{}}}", members.into_iter().map(text).collect::<Vec<_>>().join(","))
        }
        _ => value.to_text(),
    }
}

/// A text that takes so many bytes in JSON, some of them for escapes and for characters beyond ASCII.
fn text_of_bytes(bytes: usize) -> String {
    const SENTENCE: &str =
        "She said \"see you the day after tomorrow, in Zürich\",\nand went to fetch her things from the attic. ";
    let length = Value::from(SENTENCE).to_text().len() - 2;
    SENTENCE.repeat(bytes / length) + &"x".repeat(bytes % length)
}
