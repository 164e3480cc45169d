//! What is decided about each event.

use ruma_common::{CanonicalJsonObject, CanonicalJsonValue, canonical_json, room_version_rules::RoomVersionRules};
use ruma_state_res::auth_types_for_event;
use verge::matrix::{
    auth_events, auth_rules, base64, event::Event, hashes, identifiers::EventId, json::Object, redaction,
    room_version::EventIds,
};

use crate::{
    common::{
        generator::{Numbers, Options},
        rooms::{Room, RoomEvent},
        ruma::{self, RumaEvent},
        synapse::Answer,
    },
    counts::Counts,
};

pub(crate) fn compare(
    room: &Room,
    options: Options,
    synapse: Option<&Answer>,
    counts: &mut Counts,
) -> Result<(), String> {
    let ruma = (options.numbers == Numbers::Plain).then(|| Ruma::new(room));
    for (position, event) in room.events.iter().enumerate() {
        let verdict = Verdict::new(room, event);
        let ours = Ours { room, event, verdict: &verdict };
        let with_synapse = synapse.map_or(Ok(()), |synapse| ours.compare_with_synapse(position, synapse));
        let with_ruma = ruma.as_ref().map_or(Ok(false), |ruma| ours.compare_with_ruma(position, ruma));
        let by_ruma =
            with_synapse.and(with_ruma).map_err(|what| format!("event {position}, {what}\n{}", event.event.json()))?;
        counts.event(room, event, by_ruma);
    }
    Ok(())
}

/// What the authorisation rules say here.
struct Verdict {
    independent: Result<(), auth_rules::AuthError>,
    dependent: Result<(), auth_rules::AuthError>,
}

impl Verdict {
    fn new(room: &Room, event: &RoomEvent) -> Self {
        Self {
            independent: auth_rules::check_auth_event_list(&event.event, |id| room.auth_event(id)),
            dependent: match event.event.event_type() {
                // Rule 1 is a state-independent one, which we check with the others too.
                "m.room.create" => Ok(()),
                _ => auth_rules::check(&event.event, &room.with_events(&event.state)),
            },
        }
    }
}

struct Ours<'a> {
    room: &'a Room,
    event: &'a RoomEvent,
    verdict: &'a Verdict,
}

impl Ours<'_> {
    fn compare_with_synapse(&self, position: usize, synapse: &Answer) -> Result<(), String> {
        let event = &self.event.event;
        differ("event ID", event.event_id().as_str(), synapse.text(position, "id"))?;
        differ("content hash", &content_hash(event), synapse.text(position, "hash"))?;
        differ("redacted", &redacted(event), synapse.text(position, "redacted"))?;
        let oversized = event.oversized_member();
        let refused = synapse.refusal(position, "size");
        if oversized.is_some() != refused.is_some() {
            return Err(format!("size: {oversized:?} here, {refused:?} in Synapse"));
        }
        let Verdict { independent, dependent } = self.verdict;
        let Some(mut keys) = synapse.keys(position) else {
            // Synapse fails on malformed content while it selects, so before any rule.
            let accepted = independent.is_ok() && dependent.is_ok();
            return if accepted { Err("accepted here, malformed in Synapse".to_owned()) } else { Ok(()) };
        };
        // Synapse adds the event that the room ID implies.
        keys.retain(|key| !self.room.version.room_id_is_create_hash || key.0 != "m.room.create");
        differ("auth events", &format!("{:?}", selection(event)), &format!("{keys:?}"))?;
        for (rules, verdict) in [("independent", independent), ("dependent", dependent)] {
            let theirs = synapse.refusal(position, rules);
            if verdict.is_err() != theirs.is_some() {
                return Err(format!("state-{rules} rules: {verdict:?} here, {theirs:?} in Synapse"));
            }
        }
        Ok(())
    }

    /// Says whether ruma read the event and so judged it.
    fn compare_with_ruma(&self, position: usize, ruma: &Ruma<'_>) -> Result<bool, String> {
        let event = &self.event.event;
        ruma.compare_identity(event)?;
        let Some(theirs) = ruma.verdict(position) else { return Ok(false) };
        let ours = self.verdict.independent.as_ref().and(self.verdict.dependent.as_ref());
        let too_strict = |reason: &String| {
            ours.is_ok() && ruma::is_too_strict(event, &self.room.with_events(&self.event.state), reason)
        };
        if ours.is_ok() != theirs.is_ok() && !theirs.as_ref().is_err_and(too_strict) {
            return Err(format!("{ours:?} here, {theirs:?} in ruma"));
        }
        ruma.compare_selection(position, event)?;
        Ok(true)
    }
}

/// A room as ruma takes it.
struct Ruma<'a> {
    room: &'a Room,
    rules: RoomVersionRules,
    events: Vec<Option<RumaEvent>>,
    foreign: Vec<RumaEvent>,
}

impl<'a> Ruma<'a> {
    fn new(room: &'a Room) -> Self {
        let events = room.events.iter().map(|event| RumaEvent::new(&event.event, event.rejected)).collect();
        let foreign = room.foreign.iter().map(|event| RumaEvent::new(event, false).unwrap()).collect();
        Self { room, rules: ruma::rules(room.version), events, foreign }
    }

    /// `None` where ruma does not read the event.
    fn verdict(&self, position: usize) -> Option<Result<(), String>> {
        let state = &self.room.events[position].state;
        let find = |id: &str| match self.room.position(&EventId::parse(id).ok()?) {
            Some(position) => self.events[position].as_ref(),
            None => self.foreign.iter().find(|event| ruma_state_res::Event::event_id(*event).as_str() == id),
        };
        let of_state = |event_type: &str, state_key: &str| {
            self.events[*state.get(&(event_type.to_owned(), state_key.to_owned()))?].as_ref()
        };
        Some(ruma::verdict(self.room.version, self.events[position].as_ref()?, find, of_state))
    }

    fn compare_identity(&self, event: &Event) -> Result<(), String> {
        let theirs = to_ruma(event.object());
        let hash = ruma_signatures::content_hash(&theirs).unwrap().encode();
        differ_from_ruma("content hash", &content_hash(event), &hash)?;
        // Of a third_party_invite that is no object Synapse keeps nothing, and ruma everything.
        let invite = event.content().get("third_party_invite");
        if invite.is_some_and(|invite| invite.as_object().is_none()) {
            return Ok(());
        }
        let reference = ruma_signatures::reference_hash(&theirs, &self.rules).unwrap();
        let reference_hash = event.reference();
        match event.version().event_ids {
            EventIds::Given => {
                let ours = reference_hash.as_array().and_then(|pair| pair.get(1)?.get("sha256")?.as_str());
                differ_from_ruma("reference hash", ours.unwrap(), &reference)?;
            }
            _ => differ_from_ruma("event ID", event.event_id().as_str(), &format!("${reference}"))?,
        }
        let theirs = canonical_json::redact(theirs, &self.rules.redaction, None).unwrap();
        differ_from_ruma("redacted", &redacted(event), &CanonicalJsonValue::from(theirs).to_string())
    }

    fn compare_selection(&self, position: usize, ours: &Event) -> Result<(), String> {
        let Some(event) = &self.events[position] else { return Ok(()) };
        let theirs = auth_types_for_event(
            ruma_state_res::Event::event_type(event),
            ruma_state_res::Event::sender(event),
            ours.state_key(),
            ruma_state_res::Event::content(event),
            &self.rules.authorization,
        );
        // Content that ruma does not read selects nothing there.
        let Ok(theirs) = theirs else { return Ok(()) };
        let mut theirs: Vec<_> = theirs.into_iter().map(|(t, k)| (t.to_string(), k)).collect();
        theirs.sort();
        differ_from_ruma("auth events", &format!("{:?}", selection(ours)), &format!("{theirs:?}"))
    }
}

/// The event as ruma takes it, who reads no unusual numbers.
pub(crate) fn to_ruma(object: &Object) -> CanonicalJsonObject {
    serde_json::from_str(&object.to_text()).unwrap()
}

fn content_hash(event: &Event) -> String {
    base64::encode(&hashes::content_hash(event.object()))
}

fn redacted(event: &Event) -> String {
    redaction::redact(event.object(), event.version()).to_text()
}

fn selection(event: &Event) -> Vec<(String, String)> {
    let selected = auth_events::selection(
        event.version(),
        event.event_type(),
        event.sender().as_str(),
        event.state_key(),
        event.content(),
    );
    let mut selected: Vec<_> = selected.into_iter().map(|(t, k)| (t.to_owned(), k.to_owned())).collect();
    selected.sort();
    selected
}

fn differ(what: &str, ours: &str, theirs: &str) -> Result<(), String> {
    if ours == theirs { Ok(()) } else { Err(format!("{what}: {ours} here, {theirs} in Synapse")) }
}

fn differ_from_ruma(what: &str, ours: &str, theirs: &str) -> Result<(), String> {
    if ours == theirs { Ok(()) } else { Err(format!("{what}: {ours} here, {theirs} in ruma")) }
}
