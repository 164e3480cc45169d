//! PDUs as they arrive: checks 1 to 3 on receipt (Server-Server API, "Checks performed on receipt of a PDU").

use std::rc::Rc;

use super::{
    ContentHash, Event, EventData, PduError,
    format::{Fields, read_event_id, read_room_id},
    within_limit,
};
use crate::matrix::{
    base64, hashes,
    identifiers::{EventId, RoomId, UserId},
    json::{self, Value},
    redaction,
    room_version::{EventIds, RoomVersion},
    server_keys::KeyRing,
    signing::{self, POLICY_KEY_ID, SignatureError, SigningKey},
    state_content::Membership,
};

/// A PDU of the right format, with its event id, whose signatures and hash nobody has checked.
#[derive(Debug)]
pub struct ReceivedPdu {
    pub(super) event: EventData,
    /// What is signed, for check 2.
    signed_text: String,
    /// The content hash that the event ought to have, for check 3.
    content_hash: hashes::Hash,
}

impl ReceivedPdu {
    /// Check 1, on the text of a PDU.
    ///
    /// # Errors
    /// Where the PDU is to be dropped.
    pub fn parse(text: &[u8], version: &'static RoomVersion) -> Result<Self, PduError> {
        Self::from_value(json::parse(text).map_err(PduError::Json)?, version)
    }

    /// Check 1, on a PDU that was parsed as part of a larger text.
    ///
    /// # Errors
    /// Where the PDU is to be dropped.
    pub fn from_value(pdu: Value, version: &'static RoomVersion) -> Result<Self, PduError> {
        let pdu = Self::from_history(pdu, version)?;
        pdu.event.check_references()?;
        Ok(pdu)
    }

    /// As [`ReceivedPdu::from_value`] for events that others have accepted already (backfill, state, auth chains): rooms
    /// hold old events with more or longer references to auth events and previous events than are allowed now.
    ///
    /// # Errors
    /// Where the PDU is to be dropped.
    pub fn from_history(pdu: Value, version: &'static RoomVersion) -> Result<Self, PduError> {
        let Value::Object(mut object) = pdu else { return Err(PduError::Format("event")) };
        object.remove("unsigned");
        if !object.is_within_depth(json::MAX_DEPTH) {
            return Err(PduError::TooDeep);
        }
        if version.strict_json { object.check_strict() } else { object.check_loose() }.map_err(PduError::Number)?;
        let fields = Fields::read(&object, version)?;
        for name in ["hashes", "signatures"] {
            object.get(name).and_then(Value::as_object).ok_or(PduError::Format(name))?;
        }
        let (json, content_hash) = hashes::text_and_content_hash(&object);
        let json = within_limit(json)?;
        let signed_text = redaction::signed_text(&object, version);
        let event_id = read_event_id(&object, &signed_text, version)?;
        let room_id = read_room_id(&object, &fields, &event_id, version)?;
        let right = ContentHash::Right; // until check 3
        let mut event =
            EventData { event_id, fields, room_id, object, json, oversized: None, content_hash: right, version };
        event.oversized = event.check_string_sizes()?;
        Ok(Self { event, signed_text, content_hash })
    }

    /// The event's id.
    pub fn event_id(&self) -> &EventId {
        &self.event.event_id
    }

    /// The room that the event says it is in.
    pub fn room_id(&self) -> &RoomId {
        &self.event.room_id
    }

    /// The event's sender.
    pub fn sender(&self) -> &UserId {
        &self.event.fields.sender
    }

    /// Whether it is a membership that the user has sent themselves, as most of a large room's state is.
    pub fn is_own_membership(&self) -> bool {
        let fields = &self.event.fields;
        &*fields.event_type == "m.room.member" && fields.state_key.as_deref() == Some(fields.sender.as_str())
    }

    /// Whether it says by which rules the room goes: only those with the power send such, or who has made the room.
    pub fn is_rule_of_room(&self) -> bool {
        let fields = &self.event.fields;
        fields.state_key.as_deref() == Some("")
            && matches!(&*fields.event_type, "m.room.create" | "m.room.power_levels" | "m.room.join_rules")
    }

    /// `auth_events`
    pub fn auth_events(&self) -> &[EventId] {
        &self.event.fields.auth_events
    }

    /// `prev_events`
    pub fn prev_events(&self) -> &[EventId] {
        &self.event.fields.prev_events
    }

    /// `origin_server_ts`
    pub fn origin_server_ts(&self) -> i64 {
        self.event.fields.origin_server_ts
    }

    /// The room version, by whose rules the PDU was read.
    pub fn version(&self) -> &'static RoomVersion {
        self.event.version
    }

    /// The servers that must have signed the event (Server-Server API, "Validating hashes and signatures on received
    /// events"), each once.
    pub fn required_servers(&self) -> Vec<&str> {
        let event = &self.event;
        let content = event.content();
        let member = &*event.fields.event_type == "m.room.member";
        let sender_server = event.fields.sender.server_name();
        let mut servers = Vec::new();
        // Whoever completes a third-party invite sends it in the name of the user who made it.
        let invite = Membership::of(content) == Some(Membership::Invite);
        if !(member && invite && content.contains_key("third_party_invite")) {
            servers.push(sender_server);
        }
        if event.version.event_ids == EventIds::Given {
            servers.extend(event.event_id.server_name().filter(|server| *server != sender_server));
        }
        // Whose user let the sender of a restricted join in vouches for it, whatever else the event says: auth rule 4.2.
        let authoriser = event.fields.authoriser.as_ref().map(UserId::server_name);
        if let Some(server) = authoriser.filter(|server| !servers.contains(server)) {
            servers.push(server);
        }
        servers
    }

    /// Adds the signature of `server`, which vouches for the event: that of a restricted join is due before the others
    /// can be checked.
    ///
    /// # Errors
    /// Where the event has no room for it.
    pub fn sign(&mut self, server: &str, key: &SigningKey) -> Result<(), PduError> {
        signing::add_signature(&mut self.event.object, server, key.key_id(), key.sign_text(&self.signed_text));
        self.event.json = within_limit(self.event.object.to_text())?;
        Ok(())
    }

    /// The keys that must be known before [`ReceivedPdu::verify`] can pass: server names and key ids, for those required
    /// servers of which `keys` has no key that was valid when the event was sent. Of a server that has not signed there are none.
    pub fn keys_to_fetch(&self, keys: &KeyRing) -> Vec<(&str, Vec<&str>)> {
        let missing = |server| {
            let key_ids: Vec<&str> = self.signatures_of(server).map(|(key_id, _)| key_id).collect();
            let known = key_ids.iter().any(|key_id| self.usable_key(keys, server, key_id).is_some());
            (!known && !key_ids.is_empty()).then_some((server, key_ids))
        };
        self.required_servers().into_iter().filter_map(missing).collect()
    }

    /// Checks 2 and 3: every required server has signed, with keys that were valid at the time; and the content hash
    /// is right, or else the event is the redacted one.
    ///
    /// Signatures with keys that are unknown or were not valid are skipped, all others must be right.
    ///
    /// # Errors
    /// Where the event is to be dropped.
    pub fn verify(self, keys: &KeyRing) -> Result<Event, PduError> {
        for server in self.required_servers() {
            self.verify_signatures_of(server, keys)?;
        }
        let hash = self.event.object.get("hashes").and_then(|hashes| hashes.get("sha256"));
        let hash = hash.and_then(Value::as_str).ok_or(PduError::Format("hashes"))?;
        let right = base64::decode(hash).is_some_and(|hash| hash == self.content_hash);
        if right {
            return Ok(Event(Rc::new(self.event)));
        }
        let sender_server = self.event.fields.sender.server_name();
        let vouched_for = self.required_servers().contains(&sender_server);
        let mut redacted = self.event.redacted();
        redacted.content_hash = ContentHash::Wrong;
        if !vouched_for && redacted.content().get("third_party_invite").is_none() {
            // Without what excused it from its sender's signature it is an ordinary invite in the sender's name.
            self.verify_signatures_of(sender_server, keys)?;
        }
        Ok(Event(Rc::new(redacted)))
    }

    fn verify_signatures_of(&self, server: &str, keys: &KeyRing) -> Result<(), PduError> {
        let mut signed = false;
        for (key_id, signature) in self.signatures_of(server) {
            if let Some(key) = self.usable_key(keys, server, key_id) {
                key.verify_text(&self.signed_text, signature)
                    .map_err(|_: SignatureError| PduError::WrongSignature(server.into()))?;
                signed = true;
            }
        }
        if signed { Ok(()) } else { Err(PduError::NotSigned(server.into())) }
    }

    /// The signatures of a server by keys that it may have published: that of a room's policy server is by the key that the room
    /// names, and is no other's business, unless it is all that there is.
    fn signatures_of(&self, server: &str) -> impl Iterator<Item = (&str, &str)> {
        let signatures = || signing::signatures_of(&self.event.object, server);
        let is_all = signatures().all(|(key_id, _)| key_id == POLICY_KEY_ID);
        signatures().filter(move |(key_id, _)| is_all || *key_id != POLICY_KEY_ID)
    }

    fn usable_key<'k>(&self, keys: &'k KeyRing, server: &str, key_id: &str) -> Option<&'k signing::VerifyKey> {
        let known = keys.get(server, key_id)?;
        known.is_valid_for_event(self.event.fields.origin_server_ts, self.event.version).then_some(&known.key)
    }
}
