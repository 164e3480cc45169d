//! Events: PDUs as they arrive, and events whose checks have passed.
//!
//! Spec: Server-Server API, "PDUs", "Checks performed on receipt of a PDU" (checks 1 to 3), "Size limits" of the
//! Client-Server API; rooms, "Event format".
//!
//! - [`ReceivedPdu`] has passed check 1, the format of its room version, and has its event id.
//! - [`Event`] has also passed checks 2 and 3 (signatures; content hash, redacted where that was wrong),
//!   was made here, or comes from the store, where nothing else is put. `clippy.toml` keeps [`Event::from_store`] to `store`.
//!
//! Checks 4 and later need other events: they are in [`super::auth_rules`] and `room`. An event does not tell their verdict,
//! because a verdict is an opinion that may change and belongs to a room: `room` and `store` pair the two
//! (`StoredEvent`, [`super::auth_rules::AuthEvent`], [`super::state_resolution::StateEvent`]).

use std::{collections::HashMap, rc::Rc};

use super::{
    base64, hashes,
    identifiers::{EventId, RoomId, UserId},
    json::{self, Object, Value},
    redaction,
    room_version::{EventIds, RoomVersion},
    signing::{self, SignatureError, SigningKey},
    state_content::Membership,
};

mod ancestor;
mod format;
mod received_pdu;

pub use ancestor::{Ancestor, Unusable};
use format::{Fields, read_event_id, read_room_id};
pub use received_pdu::ReceivedPdu;

/// The longest event in its canonical form, with signatures and without `unsigned`, in bytes.
pub const MAX_EVENT_BYTES: usize = 65_536;
/// The longest that we make. Synapse counts an empty `unsigned` with every event, and drops what is too long with it, and so lacks what
/// is built upon that.
pub const MAX_OWN_EVENT_BYTES: usize = MAX_EVENT_BYTES - r#","unsigned":{}"#.len();
/// The longest `sender`, `room_id`, `state_key`, `type` and event id.
const MAX_STRING: usize = 255;
/// The most `auth_events` of an event.
pub const MAX_AUTH_EVENTS: usize = 10;
/// The most `prev_events` of an event.
pub const MAX_PREV_EVENTS: usize = 20;

/// Why a PDU is dropped. It must not be stored; one that is to be stored as rejected is an [`Event`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// It is not JSON.
    #[error("the event is not JSON: {0}")]
    Json(json::Error),
    /// More arrays and objects stand inside each other than [`json::MAX_DEPTH`].
    #[error("it is nested too deep")]
    TooDeep,
    /// It holds a number that its room version forbids.
    #[error("the event is not canonical JSON: {0}")]
    Number(json::NumberError),
    /// This member is missing, or is not what its room version's event format says.
    #[error("`{0}` is missing or malformed")]
    Format(&'static str),
    /// This member, or the whole event, is longer than allowed.
    #[error("`{0}` is too large")]
    TooLarge(&'static str),
    /// It names more than 10 auth events or 20 previous events.
    #[error("more than 10 auth events or 20 previous events")]
    TooManyReferences,
    /// It is among its own auth events or previous events, as one whose sender gives it its ID may say.
    #[error("it cites itself")]
    CitesItself,
    /// This server must have signed it, and has not with any key that is known and was valid at the time.
    #[error("not signed by {0} with a known and valid key")]
    NotSigned(Box<str>),
    /// A signature of this server is malformed or wrong.
    #[error("the signature of {0} is wrong")]
    WrongSignature(Box<str>),
}

/// What check 3 on receipt of a PDU found: whether the content hash of an event is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentHash {
    /// The event is as its sender made it.
    Right,
    /// The content was altered, or redacted elsewhere; what is kept is the redacted event. A copy with the right hash is the
    /// same event, and says more.
    Wrong,
}

/// An event that has passed the checks that need no other event. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Event(Rc<EventData>);

#[derive(Debug)]
struct EventData {
    event_id: EventId,
    room_id: RoomId,
    fields: Fields,
    object: Object,
    json: String,
    oversized: Option<&'static str>,
    content_hash: ContentHash,
    version: &'static RoomVersion,
}

impl Event {
    /// Makes an event of this server out of all members but `hashes` and `signatures`. In room versions 1 and 2
    /// `event_id` must be among them.
    ///
    /// # Errors
    /// Where the outcome would not pass [`ReceivedPdu::from_value`], or be longer than [`MAX_OWN_EVENT_BYTES`].
    pub fn create(
        mut proto: Object,
        version: &'static RoomVersion,
        server: &str,
        key: &SigningKey,
    ) -> Result<Self, PduError> {
        proto.remove("signatures");
        hash_and_sign(&mut proto, version, server, key);
        let received = ReceivedPdu::from_value(Value::Object(proto), version)?;
        let is_too_long = received.event.json.len() > MAX_OWN_EVENT_BYTES;
        match received.event.oversized.or(is_too_long.then_some("event")) {
            Some(member) => Err(PduError::TooLarge(member)),
            None => Ok(Self(Rc::new(received.event))),
        }
    }

    /// Whether the event is signed by `server` with this key.
    pub fn has_signature(&self, server: &str, key_id: &str, key: &signing::VerifyKey) -> bool {
        let mut signatures = signing::signatures_of(&self.0.object, server).filter(|(id, _)| *id == key_id);
        let text = || redaction::signed_text(&self.0.object, self.0.version);
        signatures.any(|(_, signature)| key.verify_text(&text(), signature).is_ok())
    }

    /// The signature of `key` on the event.
    pub fn signature_by(&self, key: &SigningKey) -> String {
        key.sign_text(&redaction::signed_text(&self.0.object, self.0.version))
    }

    /// The event with the signature of `server` added, as for invites. The id stays the same.
    ///
    /// # Errors
    /// Where the event has no room for it.
    pub fn signed_by(&self, server: &str, key: &SigningKey) -> Result<Self, PduError> {
        self.with_added(server, key.key_id(), self.signature_by(key))
    }

    /// The event with a signature of `server` that another copy of it carries.
    ///
    /// # Errors
    /// Where it was not made by `key` on this event, or the event has no room for it.
    pub fn with_signature(
        &self,
        server: &str,
        key_id: &str,
        signature: &str,
        key: &signing::VerifyKey,
    ) -> Result<Self, PduError> {
        key.verify_text(&redaction::signed_text(&self.0.object, self.0.version), signature)
            .map_err(|_: SignatureError| PduError::WrongSignature(server.into()))?;
        self.with_added(server, key_id, signature.to_owned())
    }

    fn with_added(&self, server: &str, key_id: &str, signature: String) -> Result<Self, PduError> {
        let mut object = self.0.object.clone();
        signing::add_signature(&mut object, server, key_id, signature);
        let mut event = self.0.with_object(object);
        event.json = within_limit(event.json)?;
        Ok(Self(Rc::new(event)))
    }

    /// An event of the store, which holds only events that were checked before they were put there.
    ///
    /// # Errors
    /// Where the text is not an event of this version after all.
    #[expect(clippy::disallowed_methods, reason = "this one is kept to `store` likewise")]
    pub fn from_store(event_id: &str, json: &str, version: &'static RoomVersion) -> Result<Self, PduError> {
        Self::from_store_as(event_id, json, ContentHash::Right, version)
    }

    /// As [`Event::from_store`], with what check 3 found when the event came.
    ///
    /// # Errors
    /// As [`Event::from_store`].
    pub fn from_store_as(
        event_id: &str,
        json: &str,
        content_hash: ContentHash,
        version: &'static RoomVersion,
    ) -> Result<Self, PduError> {
        let value = json::parse(json.as_bytes()).map_err(PduError::Json)?;
        let mut object = value.into_object().ok_or(PduError::Format("event"))?;
        object.remove("unsigned");
        let event_id = EventId::parse_any_length(event_id).map_err(|_| PduError::Format("event_id"))?;
        let fields = Fields::read(&object, version)?;
        let room_id = read_room_id(&object, &fields, &event_id, version)?;
        let json = object.to_text();
        let mut event = EventData { event_id, fields, room_id, object, json, oversized: None, content_hash, version };
        event.oversized = event.check_string_sizes()?;
        Ok(Self(Rc::new(event)))
    }

    /// Whether its ID is the one that its version gives it. What was stored as of another version may have another.
    pub fn has_its_id(&self) -> bool {
        let signed_text = redaction::signed_text(&self.0.object, self.0.version);
        read_event_id(&self.0.object, &signed_text, self.0.version).is_ok_and(|id| id == self.0.event_id)
    }

    /// The event's id.
    pub fn event_id(&self) -> &EventId {
        &self.0.event_id
    }

    /// The room. Of a create event in room version 12 and later: the one that it makes.
    pub fn room_id(&self) -> &RoomId {
        &self.0.room_id
    }

    /// `sender`
    pub fn sender(&self) -> &UserId {
        &self.0.fields.sender
    }

    /// `type`
    pub fn event_type(&self) -> &str {
        &self.0.fields.event_type
    }

    /// `state_key`, which makes it a state event.
    pub fn state_key(&self) -> Option<&str> {
        self.0.fields.state_key.as_deref()
    }

    /// Whether it is the state event of this type and state key.
    pub fn is_state(&self, event_type: &str, state_key: &str) -> bool {
        // Most state keys are empty, and to compare nothing with nothing takes some processors long.
        let same_key = |own: &str| if state_key.is_empty() { own.is_empty() } else { own == state_key };
        self.event_type() == event_type && self.state_key().is_some_and(same_key)
    }

    /// `content`
    pub fn content(&self) -> &Object {
        self.0.content()
    }

    /// `content.membership`, for `m.room.member` events; `None` where it is not one of the protocol's.
    pub fn membership(&self) -> Option<Membership> {
        Membership::of(self.content())
    }

    /// `origin_server_ts`: milliseconds since the Unix epoch, as the sender's server claims.
    pub fn origin_server_ts(&self) -> i64 {
        self.0.fields.origin_server_ts
    }

    /// `depth`
    pub fn depth(&self) -> i64 {
        self.0.fields.depth
    }

    /// The ids in `auth_events`.
    pub fn auth_events(&self) -> &[EventId] {
        &self.0.fields.auth_events
    }

    /// The ids in `prev_events`.
    pub fn prev_events(&self) -> &[EventId] {
        &self.0.fields.prev_events
    }

    /// Whether its references are as few and as short as those of a received PDU must be, which history is not held to.
    pub fn has_limited_references(&self) -> bool {
        self.0.check_references().is_ok()
    }

    /// `redacts`, from where this room version has it.
    pub fn redacts(&self) -> Option<&str> {
        let holder = if self.0.version.redacts_in_content { self.content() } else { &self.0.object };
        holder.get("redacts")?.as_str()
    }

    /// The room version, by whose rules the event was read.
    pub fn version(&self) -> &'static RoomVersion {
        self.0.version
    }

    /// The event as another one names it in its `auth_events` or `prev_events`: its id; in room versions 1 and 2 a pair of
    /// its id and its reference hash.
    pub fn reference(&self) -> Value {
        let id = Value::String(self.event_id().as_str().into());
        if self.0.version.event_ids != EventIds::Given {
            return id;
        }
        let hash = hashes::reference_hash(&redaction::signed_text(&self.0.object, self.0.version));
        let mut hashes = Object::new();
        hashes.insert("sha256", base64::encode(&hash));
        Value::Array(vec![id, Value::Object(hashes)])
    }

    /// The whole PDU without `unsigned`.
    pub fn object(&self) -> &Object {
        &self.0.object
    }

    /// The canonical text of the whole PDU without `unsigned`: what is stored and what is sent.
    pub fn json(&self) -> &str {
        &self.0.json
    }

    /// Whether its content hash was right when it came, or else what is here is the redacted event.
    pub fn content_hash(&self) -> ContentHash {
        self.0.content_hash
    }

    /// Whether its content hash was wrong: the content was altered, or redacted elsewhere, and is not kept.
    pub fn is_altered(&self) -> bool {
        self.content_hash() == ContentHash::Wrong
    }

    /// Whether this is the same event as `other`, whatever content either copy has: its ID says so, but where whoever sends an
    /// event gives it its ID, which then binds nothing.
    pub fn is_copy_of(&self, other: &Self) -> bool {
        let text = |event: &Self| redaction::signed_text(&event.0.object, event.0.version);
        self.event_id() == other.event_id() && (self.has_binding_id() || text(self) == text(other))
    }

    /// Whether no other event can have its ID.
    pub fn has_binding_id(&self) -> bool {
        self.0.version.event_ids != EventIds::Given
    }

    /// Whether this is the whole event of which `held` is what was left without its content.
    pub fn completes(&self, held: &Self) -> bool {
        !self.is_altered() && held.is_altered() && self.is_copy_of(held)
    }

    /// A member of 256 bytes or more but at most 255 characters, which room versions up to 10 have let in: such an
    /// event is kept, but as rejected.
    pub fn oversized_member(&self) -> Option<&'static str> {
        self.0.oversized
    }

    /// The event as it is after its redaction. The id stays the same.
    #[must_use]
    pub fn redacted(&self) -> Self {
        Self(Rc::new(self.0.redacted()))
    }
}

/// Each of `events` once, with its content if any copy of it has that.
pub fn whole_copies<'a>(events: impl IntoIterator<Item = &'a Event>) -> HashMap<&'a EventId, &'a Event> {
    let mut copies: HashMap<&EventId, &Event> = HashMap::new();
    for event in events {
        let copy = copies.entry(event.event_id()).or_insert(event);
        if event.completes(copy) {
            *copy = event;
        }
    }
    copies
}

/// The id that a PDU would have were it well-formed, for what is said about one that is not.
pub fn id_of_malformed(pdu: &Value, version: &RoomVersion) -> Option<EventId> {
    let object = pdu.as_object()?;
    read_event_id(object, &redaction::signed_text(object, version), version).ok()
}

/// Adds its content hash and the signature of `server` to an event, whatever it is made of. As [`Event::create`] does,
/// which is to be preferred for its checks.
pub fn hash_and_sign(event: &mut Object, version: &RoomVersion, server: &str, key: &SigningKey) {
    let hash = base64::encode(&hashes::content_hash(event));
    event.insert("hashes", Object::from_iter([("sha256", hash)]));
    let signature = key.sign_text(&redaction::signed_text(event, version));
    signing::add_signature(event, server, key.key_id(), signature);
}

/// The text of an event, unless it is too long for one.
fn within_limit(json: String) -> Result<String, PduError> {
    if json.len() > MAX_EVENT_BYTES { Err(PduError::TooLarge("event")) } else { Ok(json) }
}

impl EventData {
    fn content(&self) -> &Object {
        const EMPTY: &Object = &Object::new();
        self.object.get("content").and_then(Value::as_object).unwrap_or(EMPTY)
    }

    fn redacted(&self) -> Self {
        self.with_object(redaction::redact(&self.object, self.version))
    }

    /// The same event with other contents, none of which are members that [`Fields`] or the id are made of.
    fn with_object(&self, object: Object) -> Self {
        Self {
            event_id: self.event_id.clone(),
            room_id: self.room_id.clone(),
            fields: self.fields.clone(),
            json: object.to_text(),
            object,
            oversized: self.oversized,
            content_hash: self.content_hash,
            version: self.version,
        }
    }

    /// Errs where it has more references than allowed, or one that is no event's ID for its length, or its own.
    fn check_references(&self) -> Result<(), PduError> {
        let Fields { auth_events, prev_events, .. } = &self.fields;
        if auth_events.len() > MAX_AUTH_EVENTS || prev_events.len() > MAX_PREV_EVENTS {
            return Err(PduError::TooManyReferences);
        }
        for (member, ids) in [("auth_events", auth_events), ("prev_events", prev_events)] {
            if ids.contains(&self.event_id) {
                return Err(PduError::CitesItself);
            }
            if ids.iter().any(|id| self.is_too_long(id.as_str())) {
                return Err(PduError::TooLarge(member));
            }
        }
        Ok(())
    }

    /// Errs where a string is longer than any server takes; otherwise names one that is longer than the spec allows.
    fn check_string_sizes(&self) -> Result<Option<&'static str>, PduError> {
        let mut oversized = None;
        for (member, text) in [
            ("sender", self.fields.sender.as_str()),
            ("room_id", self.room_id.as_str()),
            ("state_key", self.fields.state_key.as_deref().unwrap_or_default()),
            ("type", &self.fields.event_type),
            ("event_id", self.event_id.as_str()),
        ] {
            if text.len() <= MAX_STRING {
                continue;
            }
            if self.is_too_long(text) {
                return Err(PduError::TooLarge(member));
            }
            oversized = oversized.or(Some(member));
        }
        Ok(oversized)
    }

    /// Whether no server takes an event with this string in it.
    fn is_too_long(&self, text: &str) -> bool {
        text.len() > MAX_STRING && (self.version.strict_byte_limits || text.chars().count() > MAX_STRING)
    }
}
