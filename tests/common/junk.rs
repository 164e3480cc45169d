//! Events with something in their content that does not belong there.

use verge::matrix::{
    event::Event,
    json::{self, Value},
};

use super::{generator::Random, rooms::try_event_of};

/// The event with something else in one place of its content.
pub fn with_junk(event: &Event, random: &mut Random) -> Event {
    let junk = ["null", "true", "-1", "1e9", "\"\"", "\"@\"", r#""\u0000:""#, "[]", "[[{}]]", "{}", "{\"@a:b\":{}}"];
    let junk = json::parse(random.pick(&junk).as_bytes()).unwrap();
    let mut object = event.object().clone();
    spoil(object.get_mut("content").unwrap(), junk, random);
    if object.get("content").and_then(Value::as_object).is_none() {
        object.insert("content", json::Object::new());
    }
    try_event_of(object, event.version()).unwrap_or_else(|_| event.clone())
}

/// Puts the junk in the place of a value, or of one somewhere within it.
fn spoil(value: &mut Value, junk: Value, random: &mut Random) {
    if let Value::Object(object) = value
        && !object.is_empty()
        && random.percent(70)
    {
        let key = object.keys().nth(random.below(object.len())).unwrap().to_owned();
        return spoil(object.get_mut(&key).unwrap(), junk, random);
    }
    *value = junk;
}
