//! The state that tells somebody who is not in a room what it is (Client-Server API, "Stripped state").

use std::collections::BTreeSet;

use super::{
    json::{Object, Value},
    state_content::STRIPPED_STATE,
};

/// What is shown of a state, stripped; of members, only those of `parties`. One event for each key: the first, where there
/// are more.
pub fn shown<'a>(state: impl Iterator<Item = &'a Object>, parties: &[&str]) -> Vec<Object> {
    let mut stripped: Vec<Object> = state.filter_map(|event| strip(event, parties)).collect();
    let mut known = BTreeSet::new();
    stripped.retain(|event| {
        let text = |name: &str| event.get(name).and_then(Value::as_str).map(str::to_owned);
        known.insert((text("type"), text("state_key")))
    });
    stripped
}

/// Separates what came stripped in the state that describes a room of version 12 or later from what came as PDUs.
///
/// The state of such a room is to be told in PDUs. But servers that support the version since before that was specified tell
/// only `m.room.create` so, among them Synapse until July 2026. What is stripped is what the other server says, as all of it
/// was before version 12; of the create event no server need be believed, as the room ID is its hash.
pub fn separate_stripped(state: Vec<Value>) -> (Vec<Object>, Vec<Value>) {
    let is_stripped = |event: &Object| {
        !event.contains_key("hashes")
            && !event.contains_key("signatures")
            && event.get("type").and_then(Value::as_str) != Some("m.room.create")
    };
    let (mut stripped, mut pdus) = (Vec::new(), Vec::new());
    for event in state {
        match event {
            Value::Object(event) if is_stripped(&event) => stripped.push(event),
            other => pdus.push(other),
        }
    }
    (stripped, pdus)
}

fn strip(event: &Object, parties: &[&str]) -> Option<Object> {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    let (event_type, state_key, sender) = (text("type")?, text("state_key")?, text("sender")?);
    let is_shown = match event_type {
        "m.room.member" => parties.contains(&state_key),
        event_type => STRIPPED_STATE.contains(&event_type) && state_key.is_empty(),
    };
    if !is_shown {
        return None;
    }
    let content = event.get("content")?.as_object()?.clone();
    Some(Object::from_iter([
        ("content", Value::Object(content)),
        ("sender", Value::from(sender)),
        ("state_key", Value::from(state_key)),
        ("type", Value::from(event_type)),
    ]))
}
