//! Generated inputs: what is written here is valid, or nearly so; [`mutated`](crate::generate::mutated) does the rest.

use serde_json::json;
use verge::matrix::{
    event::hash_and_sign,
    json::{Object, Value},
    room_version::RoomVersion,
    x_matrix::SignedRequest,
};

use crate::{
    common::{generator::Numbers, rooms::Room},
    generate::{self, Random, SERVER, signing_key},
};

/// JSON, written in one of the ways in which others may write it.
pub(crate) fn json(random: &mut Random) -> Vec<u8> {
    let value = generate::value(random, 5);
    let mut text = String::new();
    write_oddly(&mut text, &value, random);
    text.into_bytes()
}

/// A server name.
pub(crate) fn server_name(random: &mut Random) -> Vec<u8> {
    let host = match random.below(6) {
        0 => (0..=random.below(5)).map(|_| random.below(300).to_string()).collect::<Vec<_>>().join("."),
        1 => {
            let forms = ["::", "::1", "2001:db8::1", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4", "FE80::a", "1:2:3:4:5:6:7::"];
            format!("[{}]", random.pick(&forms))
        }
        2 => "a".repeat(random.below(262)),
        _ => {
            let labels = ["matrix", "example", "X-1", "xn--bcher-kva", "org", "1", "0x7f", "-", "", "A"];
            (0..=random.below(4)).map(|_| random.pick(&labels)).collect::<Vec<_>>().join(".")
        }
    };
    let port = match random.below(5) {
        0 => format!(":{}", random.below(70_000)),
        1 => format!(":{:0width$}", random.below(9_000), width = random.below(8)),
        2 => random.pick(&["", ":", ":+1", ":-1", ":1:2"]).to_owned(),
        _ => String::new(),
    };
    format!("{host}{port}").into_bytes()
}

/// An `Authorization` header.
pub(crate) fn x_matrix(random: &mut Random) -> Vec<u8> {
    let origin = String::from_utf8(server_name(random)).unwrap();
    let own = SignedRequest {
        method: "PUT",
        uri: "/_matrix/federation/v1/send/1",
        origin: &origin,
        destination: "own.example",
        content: None,
    };
    let written = own.authorization(&signing_key());
    if random.chance(20) {
        return written.into_bytes();
    }
    let signature = written.split('"').nth(5).unwrap().to_owned();
    let destination = random.pick(&["own.example", "other.example:8448", "[::1]", "", "b c"]).to_owned();
    let mut parameters = vec![
        ("origin", origin),
        ("key", random.pick(&["ed25519:1", "ed25519:a_b", "ed25519:", "rsa:1", "1"]).to_owned()),
        ("sig", if random.chance(50) { signature } else { random.pick(&["ABCDEF+/", "AA==", "A", "!"]).to_owned() }),
    ];
    if random.chance(70) {
        parameters.push(("destination", destination));
    }
    if random.chance(20) {
        parameters.push((random.pick(&["other", "origin", "KEY"]), "x".to_owned()));
    }
    let blank = |random: &mut Random| random.pick(&["", "", "", " ", "\t"]);
    let mut text = random.pick(&["X-Matrix ", "X-Matrix ", "x-matrix  ", "X-MATRIX "]).to_owned();
    while !parameters.is_empty() {
        let (name, value) = parameters.remove(random.below(parameters.len()));
        let name = if random.chance(20) { name.to_uppercase() } else { name.to_owned() };
        let value = match random.below(4) {
            0 => value,
            1 => format!("\"{}\"", value.chars().map(|c| format!("\\{c}")).collect::<String>()),
            _ => format!("\"{value}\""),
        };
        let comma = if parameters.is_empty() { "" } else { "," };
        text += &format!("{name}{}={}{value}{}{comma}{}", blank(random), blank(random), blank(random), blank(random));
    }
    text.into_bytes()
}

/// A PDU: one of a generated room, or one of any content; at times at the limits of what an event may be.
pub(crate) fn pdu(random: &mut Random) -> Vec<u8> {
    let versions = RoomVersion::all();
    let version = versions[random.below(versions.len())];
    let mut event = if random.chance(70) {
        let room = Room::generate(version, random.next(), 30, Numbers::Floats);
        room.events[random.below(room.events.len())].event.object().clone()
    } else {
        generate::event(random, version)
    };
    if random.chance(10) {
        stretch(&mut event, random);
    }
    if random.chance(30) {
        hash_and_sign(&mut event, version, SERVER, &signing_key());
    }
    event.to_text().into_bytes()
}

/// Makes a list, a string or the whole of an event about as long as it may be, or longer.
fn stretch(event: &mut Object, random: &mut Random) {
    let filler = random.pick(&["x", "é"]);
    match random.below(3) {
        0 => {
            let member = random.pick(&["auth_events", "prev_events"]);
            if let Some(first) = event.get(member).and_then(Value::as_array).and_then(|items| items.first()).cloned() {
                event.insert(member, vec![first; random.below(25)]);
            }
        }
        1 => {
            let member = random.pick(&["type", "state_key", "sender", "room_id", "event_id"]);
            let text = event.get(member).and_then(Value::as_str).unwrap_or_default();
            let missing = (250 + random.below(10)).saturating_sub(text.len()) / filler.len();
            let at = text.chars().next().map_or(0, char::len_utf8);
            let text = format!("{}{}{}", &text[..at], filler.repeat(missing), &text[at..]);
            event.insert(member, text);
        }
        _ => {
            let missing = (65_300 + random.below(300)).saturating_sub(event.to_text().len()) / filler.len();
            event.object_at("content").insert("body", filler.repeat(missing));
        }
    }
}

/// The body of a transaction.
pub(crate) fn transaction(random: &mut Random) -> Vec<u8> {
    let pdus: Vec<Value> = (0..random.below(5)).map(|_| draft(random)).collect();
    let mut body = Object::from_iter([("pdus", Value::from(pdus))]);
    if random.chance(70) {
        body.insert("origin", "b.example");
        body.insert("origin_server_ts", 1);
    }
    if random.chance(40) {
        let edus = [json!({ "edu_type": "m.typing", "content": {} }), json!(1), json!({ "edu_type": "m.unknown" })];
        body.insert("edus", vec![Value::from(edus[random.below(edus.len())].clone())]);
    }
    if random.chance(5) {
        let key = random.pick(&["pdus", "edus", "origin"]);
        body.insert(key, generate::value(random, 2));
    }
    if random.chance(5) {
        let many = vec![draft(random); 45 + random.below(10)];
        body.insert(random.pick(&["pdus", "edus"]), many);
    }
    body.to_text().into_bytes()
}

/// What a sender decides of an event, mostly, and at times more.
fn draft(random: &mut Random) -> Value {
    let (event_type, state_key, content) = match random.below(8) {
        0 => ("m.room.member", Some("@bob:b.example"), json!({ "membership": "join", "displayname": "Bob" })),
        1 => ("m.room.member", Some("@carol:b.example"), json!({ "membership": "invite" })),
        2 => ("m.room.member", Some("@bob:b.example"), json!({ "membership": "leave" })),
        3 => ("m.room.topic", Some(""), json!({ "topic": "x" })),
        4 => ("m.room.redaction", None, json!({ "redacts": "$x" })),
        5 => ("m.room.power_levels", Some(""), json!({ "users": { "@bob:b.example": 100 } })),
        _ => ("m.room.message", None, json!({ "body": "hello", "msgtype": "m.text" })),
    };
    let mut draft = json!({ "type": event_type, "content": content, "sender": "@bob:b.example" });
    if let Some(state_key) = state_key {
        draft["state_key"] = json!(state_key);
    }
    if random.chance(90) {
        // By its place: the rooms are called otherwise in every run.
        draft["room_id"] = json!(random.below(4));
    }
    let mut draft = Value::from(draft).into_object().unwrap();
    for _ in 0..random.below(3) {
        let members = [
            "content",
            "depth",
            "origin_server_ts",
            "sender",
            "state_key",
            "prev_events",
            "auth_events",
            "hashes",
            "signatures",
            "unsigned",
            "redacts",
            "event_id",
            "room_id",
            "type",
        ];
        let member = random.pick(&members);
        match random.below(6) {
            0 => drop(draft.remove(member)),
            1 => drop(draft.insert(member, generate::value(random, 2))),
            2 => drop(draft.insert("prev_events", vec![Value::from("$missing"); random.below(22)])),
            3 => drop(draft.object_at("content").insert("n", 5)),
            _ => {}
        }
    }
    draft.into()
}

/// Appends JSON that says `value`, with white space, escapes, members in any order and keys said twice.
fn write_oddly(out: &mut String, value: &Value, random: &mut Random) {
    let blank = |random: &mut Random| if random.chance(10) { random.pick(&[" ", "\n", "\t", "\r\n "]) } else { "" };
    *out += blank(random);
    match value {
        Value::String(text) => write_string_oddly(out, text, random),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                *out += if index > 0 { "," } else { "" };
                write_oddly(out, item, random);
            }
            out.push(']');
        }
        Value::Object(object) => {
            let mut members: Vec<_> = object.iter().collect();
            if let Some(twice) = members.first().copied().filter(|_| random.chance(10)) {
                members.push(twice);
            }
            let first = random.below(members.len().max(1));
            members.rotate_left(first);
            out.push('{');
            for (index, (key, value)) in members.into_iter().enumerate() {
                *out += if index > 0 { "," } else { "" };
                write_string_oddly(out, key, random);
                *out += blank(random);
                out.push(':');
                write_oddly(out, value, random);
            }
            out.push('}');
        }
        Value::Integer(_) if random.chance(5) => {
            *out += random.pick(&[
                "-0",
                "1.0",
                "1e2",
                "-0.0",
                "0.1e-7",
                "9007199254740992",
                "123456789012345678901",
                "1E400",
            ]);
        }
        other => *out += &other.to_text(),
    }
    *out += blank(random);
}

fn write_string_oddly(out: &mut String, text: &str, random: &mut Random) {
    if random.chance(80) {
        return *out += &Value::from(text).to_text();
    }
    out.push('"');
    for unit in text.encode_utf16() {
        *out += &format!("\\u{unit:04X}");
    }
    out.push('"');
}
