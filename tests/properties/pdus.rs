//! PDUs, in every room version: what is read of them, which signatures make events of them, and what the authorisation
//! rules of a small room say of them.

use std::{collections::BTreeMap, rc::Rc};

use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, canonical_json, room_version_rules::RoomVersionRules, serde::Base64,
};
use ruma_signatures::{JsonError, VerificationError, Verified};
use verge::matrix::{
    auth_events, auth_rules,
    event::{self, Event, MAX_EVENT_BYTES, PduError, ReceivedPdu, hash_and_sign},
    identifiers::EventId,
    json::{self, Object, Value},
    redaction,
    room_version::{EventIds, Redaction, RoomVersion},
    server_keys::{KeyRing, KnownKey},
    state_content::Membership,
};

use crate::{
    common::{
        generator::Numbers,
        rooms::{Room, State, try_event_of},
        ruma::{self, RumaEvent},
    },
    generate::{SERVER, signing_key},
};

thread_local! {
    static SCENES: Vec<Scene> = RoomVersion::all().iter().map(|version| Scene::new(version)).collect();
}

/// Whether the text is a PDU that a small room of some version accepts, once it stands in that room.
pub(crate) fn holds(text: &[u8]) -> bool {
    let Ok(value) = json::parse(text) else { return false };
    let mut accepted = false;
    SCENES.with(|scenes| {
        for scene in scenes {
            check_receipt(&value, scene);
            accepted |= scene.accepts(&value);
        }
    });
    accepted
}

/// Checks 1 to 3, on the PDU as it came, and as it is when those have signed it who have to.
fn check_receipt(value: &Value, scene: &Scene) {
    let version = scene.room.version;
    event::id_of_malformed(value, version);
    let in_history = ReceivedPdu::from_history(value.clone(), version);
    let pdu = match ReceivedPdu::from_value(value.clone(), version) {
        Ok(pdu) => pdu,
        Err(error) => {
            return assert!(
                in_history.is_err() || matches!(error, PduError::TooManyReferences | PduError::CitesItself)
            );
        }
    };
    assert_eq!(in_history.map(|pdu| pdu.event_id().clone()).as_ref(), Ok(pdu.event_id()));
    let mut object = value.as_object().unwrap().clone();
    object.remove("unsigned");
    check_format(&object, scene);
    check_identity(&object, &pdu, scene);
    verified(&object, &[SERVER], scene);
    check_signed(object, &pdu.required_servers(), scene);
}

/// What we read, ruma reads.
fn check_format(object: &Object, scene: &Scene) {
    let Some(theirs) = as_ruma(object) else { return };
    let Err(reason) = ruma_state_res::check_pdu_format(&theirs, &scene.rules.event_format) else { return };
    // The spec allows an event 65,536 bytes, ruma one less. What else ruma counts as a matter of format is for us one of
    // storing an event as rejected (strings too long, before version 11) or of the authorisation rules.
    let version = scene.room.version;
    let known = object.to_text().len() == MAX_EVENT_BYTES
        || !version.strict_byte_limits && reason.contains("string length")
        || version.room_id_is_create_hash && (reason.contains("`auth_events`") || reason.contains("`room_id`"));
    assert!(known, "version {version}: {reason}");
}

/// The id and the redacted event are ruma's, redaction keeps the id, and redacting twice is redacting once.
fn check_identity(object: &Object, pdu: &ReceivedPdu, scene: &Scene) {
    let version = scene.room.version;
    let redacted = redaction::redact(object, version);
    assert_eq!(redaction::redact(&redacted, version), redacted);
    let again = ReceivedPdu::from_value(redacted.clone().into(), version).unwrap();
    assert_eq!((again.event_id(), again.room_id()), (pdu.event_id(), pdu.room_id()));
    let given = version.event_ids == EventIds::Given;
    if given {
        assert_eq!(object.get("event_id").and_then(Value::as_str), Some(pdu.event_id().as_str()));
    }
    let invite = third_party_invite(object);
    let Some(theirs) = as_ruma(object) else { return };
    // Of a third_party_invite that is no object Synapse keeps nothing, and ruma everything.
    if invite.is_none_or(|invite| invite.as_object().is_some()) {
        assert_eq!(redacted.to_text(), redacted_by_ruma(&theirs, scene));
        if let (false, Ok(hash)) = (given, ruma_signatures::reference_hash(&theirs, &scene.rules)) {
            assert_eq!(pdu.event_id().as_str(), format!("${hash}"));
        }
    }
}

/// What the servers that must sign have signed is an event; what lacks one of the signatures, or was changed since, is none, or
/// a redacted one.
fn check_signed(mut object: Object, required: &[&str], scene: &Scene) {
    let Some(first) = required.first() else { return };
    let version = scene.room.version;
    let verify = |object: &Object| verified(object, required, scene);
    object.insert("signatures", Object::new());
    assert_eq!(verify(&object).unwrap().unwrap_err(), PduError::NotSigned((*first).into()));
    required.iter().for_each(|server| hash_and_sign(&mut object, version, server, &signing_key()));
    // The signatures may have made it too long.
    let Some(outcome) = verify(&object) else { return };
    assert_eq!(outcome.unwrap().json(), object.to_text());
    assert_eq!(verified(&object, &required[1..], scene).unwrap().unwrap_err(), PduError::NotSigned((*first).into()));

    let mut changed = object.clone();
    changed.insert("depth", 1 + object.get("depth").and_then(Value::as_i64).unwrap_or_default() % 2);
    assert_eq!(verify(&changed).unwrap().unwrap_err(), PduError::WrongSignature((*first).into()));
    let mut added = object.clone();
    added.object_at("content").insert("org.example.added", 1);
    let is_create = object.get("type").and_then(Value::as_str) == Some("m.room.create");
    match verify(&added) {
        Some(Ok(event)) => assert_eq!(event.json(), redaction::redact(&object, version).to_text()),
        // Of this one redaction keeps all content; of a third-party invite it leaves an ordinary one.
        Some(Err(error)) => {
            assert!(
                version.redaction >= Redaction::V11 && is_create || third_party_invite(&object).is_some(),
                "{error}"
            );
        }
        None => {}
    }
}

/// The outcome of checks 2 and 3 where the keys of `servers` are known: ruma's too. `None` of what fails check 1.
fn verified(object: &Object, servers: &[&str], scene: &Scene) -> Option<Result<Event, PduError>> {
    let version = scene.room.version;
    let pdu = ReceivedPdu::from_value(object.clone().into(), version).ok()?;
    let required: Vec<String> = pdu.required_servers().into_iter().map(str::to_owned).collect();
    let excused = !required.iter().any(|server| server == pdu.sender().server_name());
    let ours = pdu.verify(&ring(servers));
    assert!(ours.is_err() || required.iter().all(|server| servers.contains(&server.as_str())));
    let Some(theirs) = as_ruma(object).filter(|_| version.strict_json && object.to_text().len() < MAX_EVENT_BYTES)
    else {
        return Some(ours);
    };
    let key = Base64::parse(signing_key().public_base64()).unwrap();
    let keys = BTreeMap::from([(signing_key().key_id().to_owned(), key)]);
    let keys = servers.iter().map(|server| ((*server).to_owned(), keys.clone())).collect();
    let is_member = object.get("type").and_then(Value::as_str) == Some("m.room.member");
    match (&ours, ruma_signatures::verify_event(&keys, &theirs, &scene.rules)) {
        (Err(_), Err(_)) => {}
        // A third-party invite that is no object excuses from the signature in Synapse too, and leaves nothing when it is
        // redacted; the authorisation rules refuse it.
        _ if third_party_invite(object).is_some_and(|invite| invite.as_object().is_none()) => {}
        // Synapse's content hash leaves out members that it once added itself.
        (Ok(_), Ok(_)) if ["age_ts", "destinations", "outlier"].iter().any(|member| object.contains_key(member)) => {}
        (Ok(ours), Ok(Verified::All)) => assert_eq!(ours.json(), object.to_text()),
        (Ok(ours), Ok(_)) => assert_eq!(ours.json(), redacted_by_ruma(&theirs, scene)),
        // Without what excuses it from its sender's signature, a third-party invite is an ordinary invite; ruma takes it.
        (Err(_), Ok(Verified::Signatures)) if excused => {}
        // ruma looks for an authorising user in all types of events, the spec only in memberships.
        (Ok(_), Err(_)) if !is_member && vouched_for(object) => {}
        // What has a string of too many bytes, but no more characters than allowed, is stored as rejected.
        (Ok(ours), Err(_)) if ours.oversized_member().is_some() => {}
        // The membership that ruma does not read the authorisation rules refuse.
        (Ok(_), Err(VerificationError::Json(JsonError::Field(_)))) if is_member => {}
        (ours, theirs) => {
            panic!("version {version}: {:?} here, {theirs:?} in ruma", ours.as_ref().map(Event::json));
        }
    }
    Some(ours)
}

/// A room of one version, and its state, in which events are tried.
struct Scene {
    room: Room,
    state: Rc<State>,
    rules: RoomVersionRules,
    /// The room's events.
    theirs: Vec<Option<RumaEvent>>,
}

impl Scene {
    fn new(version: &'static RoomVersion) -> Self {
        let mut rooms = (0..).map(|seed| Room::generate(version, seed, 50, Numbers::Plain));
        let room = rooms.find(is_lively).unwrap();
        let theirs = room.events.iter().map(|event| RumaEvent::new(&event.event, event.rejected)).collect();
        Self { state: room.events.last().unwrap().after.clone(), rules: ruma::rules(version), theirs, room }
    }

    /// Whether the room's state allows the event, of which it takes what the sender decides.
    fn accepts(&self, pdu: &Value) -> bool {
        let Some(event) = pdu.as_object().and_then(|pdu| self.placed(pdu)) else { return false };
        let listed = auth_rules::check_auth_event_list(&event, |id| self.room.auth_event(id));
        let verdict = auth_rules::check(&event, &self.room.with_events(&self.state));
        // Whatever is selected may be cited.
        assert!(listed.is_ok() || event.event_type() == "m.room.create", "{listed:?}");
        // And it is all that counts, with the create event.
        let cited = event.auth_events().iter().map(|id| self.room.auth_event(id).unwrap().event.clone());
        let cited: Vec<Event> = cited.chain([self.room.events[0].event.clone()]).collect();
        assert_eq!(auth_rules::check(&event, cited.as_slice()), verdict);
        let accepted = listed.is_ok() && verdict.is_ok();
        // ruma has no other numbers than those of canonical JSON.
        if event.object().check_strict().is_ok()
            && let Some(theirs) = self.verdict_of_ruma(&event)
            && theirs.is_ok() != accepted
        {
            let state = self.room.with_events(&self.state);
            let known = theirs.as_ref().is_err_and(|reason| accepted && ruma::is_too_strict(&event, &state, reason));
            assert!(known, "{}: {listed:?}, {verdict:?} here, {theirs:?} in ruma\n{}", self.room.version, event.json());
        }
        accepted
    }

    /// The event at the end of this room.
    fn placed(&self, pdu: &Object) -> Option<Event> {
        let version = self.room.version;
        let text = |name| pdu.get(name).and_then(Value::as_str);
        let (event_type, sender) = (text("type")?, text("sender")?);
        let content = pdu.get("content")?.as_object()?;
        let reference = |position: &usize| self.room.events[*position].event.reference();
        let selection = auth_events::selection(version, event_type, sender, text("state_key"), content);
        let cited = selection.iter().filter_map(|(t, k)| self.state.get(&((*t).to_owned(), (*k).to_owned())));
        let cited: Vec<Value> = cited.map(reference).collect();
        let last = (0..self.room.events.len()).rfind(|position| !self.room.events[*position].rejected)?;
        let mut object = pdu.clone();
        object.insert("auth_events", cited);
        object.insert("prev_events", vec![reference(&last)]);
        object.insert("room_id", self.room.events[0].event.room_id());
        for (member, value) in [("depth", Value::from(50)), ("origin_server_ts", Value::from(1_700_000_000_000))] {
            if object.get(member).is_none() {
                object.insert(member, value);
            }
        }
        if version.event_ids == EventIds::Given && text("event_id").is_none() {
            object.insert("event_id", format!("$placed:{}", sender.split_once(':')?.1));
        }
        object.remove("unsigned");
        try_event_of(object, version).ok()
    }

    fn verdict_of_ruma(&self, event: &Event) -> Option<Result<(), String>> {
        let find = |id: &str| self.theirs[self.room.position(&EventId::parse(id).ok()?)?].as_ref();
        let of_state = |event_type: &str, state_key: &str| {
            self.theirs[*self.state.get(&(event_type.to_owned(), state_key.to_owned()))?].as_ref()
        };
        Some(ruma::verdict(self.room.version, &RumaEvent::new(event, false)?, find, of_state))
    }
}

/// Whether a room has, at its end, something of all that the rules ask for.
fn is_lively(room: &Room) -> bool {
    let state = &room.events.last().unwrap().after;
    let events = || state.values().map(|position| &room.events[*position].event);
    let members =
        |membership: &str| events().filter(|event| event.membership() == Membership::parse(membership)).count();
    let has = |event_type: &str| events().any(|event| event.event_type() == event_type);
    let federates = room.events[0].event.content().get("m.federate") != Some(&Value::Bool(false));
    members("join") > 2
        && members("ban") > 0
        && members("invite") > 0
        && federates
        && has("m.room.power_levels")
        && has("m.room.join_rules")
        && has("m.room.third_party_invite")
}

fn vouched_for(object: &Object) -> bool {
    object.get("content").is_some_and(|content| content.get("join_authorised_via_users_server").is_some())
}

fn third_party_invite(object: &Object) -> Option<&Value> {
    object.get("content")?.get("third_party_invite")
}

fn ring(servers: &[&str]) -> KeyRing {
    let mut keys = KeyRing::new();
    for server in servers {
        let known = KnownKey {
            key: signing_key().verify_key(),
            valid_until_ts: i64::MAX,
            expired_ts: None,
            fetched_ts: i64::MAX,
        };
        keys.insert(server, signing_key().key_id(), known);
    }
    keys
}

/// The object in ruma's terms, which has no other numbers than those of canonical JSON, and is nested less deep.
fn as_ruma(object: &Object) -> Option<CanonicalJsonObject> {
    let text = object.to_text();
    let theirs: CanonicalJsonObject = serde_json::from_str(&text).ok()?;
    let written = CanonicalJsonValue::from(theirs.clone()).to_string();
    (written == text).then_some(theirs)
}

fn redacted_by_ruma(object: &CanonicalJsonObject, scene: &Scene) -> String {
    let redacted = canonical_json::redact(object.clone(), &scene.rules.redaction, None).unwrap();
    CanonicalJsonValue::from(redacted).to_string()
}
