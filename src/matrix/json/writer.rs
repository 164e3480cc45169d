//! The writer of canonical JSON. Objects are sorted already, so it only walks.

use std::fmt::Write;

use super::{Object, Value, float, scan::plain_length};

/// Appends the canonical text of `value`.
pub(in crate::matrix) fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Integer(number) => write_integer(out, *number),
        Value::Number(text) => float::write(out, text),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(out, item);
            }
            out.push(']');
        }
        Value::Object(object) => write_object(out, object),
        Value::Unread(text) => out.push_str(text),
    }
}

/// Appends the canonical text of `object`.
pub(super) fn write_object(out: &mut String, object: &Object) {
    write_members(out, object, |out, key, value| {
        write_member(out, key, value);
        true
    });
}

/// Appends an object of those members for which `write` returns true; for others it must append nothing.
pub(in crate::matrix) fn write_members(
    out: &mut String,
    object: &Object,
    mut write: impl FnMut(&mut String, &str, &Value) -> bool,
) {
    out.push('{');
    let start = out.len();
    for (key, value) in object.iter() {
        let before = out.len();
        if before > start {
            out.push(',');
        }
        if !write(out, key, value) {
            out.truncate(before);
        }
    }
    out.push('}');
}

/// Appends one member of an object.
pub(in crate::matrix) fn write_member(out: &mut String, key: &str, value: &Value) {
    write_string(out, key);
    out.push(':');
    write_value(out, value);
}

/// Appends a string with its quotes: control characters, quotes and backslashes escaped in the shortest way, the
/// rest as it is.
pub(in crate::matrix) fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    loop {
        // What must be escaped is ASCII, so both of its sides are character boundaries.
        let (plain, escaped) = rest.split_at(plain_length(rest.as_bytes()));
        out.push_str(plain);
        let Some(byte) = escaped.bytes().next() else { break };
        rest = escaped.get(1..).unwrap_or_default();
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            0x08 => out.push_str("\\b"),
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            0x0c => out.push_str("\\f"),
            b'\r' => out.push_str("\\r"),
            // Writing to a String does not fail.
            control => drop(write!(out, "\\u{control:04x}")),
        }
    }
    out.push('"');
}

fn write_integer(out: &mut String, number: i64) {
    if number < 0 {
        out.push('-');
    }
    write_digits(out, number.unsigned_abs());
}

fn write_digits(out: &mut String, number: u64) {
    if number >= 10 {
        write_digits(out, number / 10);
    }
    out.push(char::from(b'0' + (number % 10) as u8));
}
