//! Canonical JSON: what is read is written in one way, which says the same, and is what ruma writes.

use ruma_common::CanonicalJsonValue;
use verge::matrix::json::{self, Value};

/// Whether the text has a canonical form in room version 6 and later.
pub(crate) fn holds(text: &[u8]) -> bool {
    let theirs = serde_json::from_slice::<CanonicalJsonValue>(text);
    let value = match json::parse(text) {
        Ok(value) => value,
        Err(error) => {
            let is_deep = error.to_string().starts_with("nested too deep");
            assert!(
                is_deep || (0..4).all(|depth| json::parse_to_depth(text, depth).as_ref() == Err(&error)),
                "{error}"
            );
            assert!(theirs.is_err(), "{error}, but ruma reads it");
            return false;
        }
    };
    let canonical = value.to_text();
    // However little of it becomes values, it says the same.
    for depth in 0..4 {
        assert_eq!(json::parse_to_depth(text, depth).unwrap().to_text(), canonical, "to the depth {depth}");
    }
    if value.check_loose().is_ok() {
        let again = json::parse(canonical.as_bytes()).unwrap();
        assert!(is_same(&value, &again), "{canonical}");
        assert_eq!(again.to_text(), canonical);
    }
    let strict = value.check_strict().is_ok();
    if strict {
        assert_eq!(value.check_loose(), Ok(()));
        // The way in which answers are written.
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        assert_eq!(json::parse(pretty.as_bytes()).as_ref(), Ok(&value));
    }
    match &theirs {
        _ if !serde_reads(&value, 0) => {}
        Ok(theirs) => {
            assert!(strict);
            assert_eq!(theirs.to_string(), canonical);
            assert_eq!(Value::from(serde_json::from_slice::<serde_json::Value>(text).unwrap()), value);
        }
        Err(error) if strict => {
            // Of a key that is said twice the first value goes, whatever it is; ruma stumbles over some numbers there.
            assert!(error.to_string().starts_with("number out of range"), "{error}");
            assert_eq!(serde_json::from_str::<CanonicalJsonValue>(&canonical).unwrap().to_string(), canonical);
        }
        Err(_) => {}
    }
    strict
}

/// Whether two values say the same: floats as the doubles that they are read as.
fn is_same(one: &Value, other: &Value) -> bool {
    let is_float = |number: &str| number.contains(['.', 'e', 'E']);
    match (one, other) {
        (Value::Number(one), Value::Integer(0)) => &**one == "-0",
        (Value::Number(one), Value::Number(other)) if is_float(one) && is_float(other) => {
            one.parse::<f64>().unwrap().to_bits() == other.parse::<f64>().unwrap().to_bits()
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.keys().eq(other.keys()) && one.values().zip(other.values()).all(|(one, other)| is_same(one, other))
        }
        (one, other) => one == other,
    }
}

/// Whether `serde_json` reads the value as what it is. It refuses what is nested 128 levels deep, and takes objects with a key
/// of its own for something else; what we read is no less JSON for that.
fn serde_reads(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth < 127 && items.iter().all(|item| serde_reads(item, depth + 1)),
        Value::Object(object) => {
            let own = |key: &str| key.starts_with("$serde_json::private::");
            depth < 127 && object.iter().all(|(key, value)| !own(key) && serde_reads(value, depth + 1))
        }
        _ => true,
    }
}
