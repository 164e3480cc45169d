//! The format of events in each room version, and the limits on it.

use verge::matrix::{
    event::{Event, MAX_EVENT_BYTES, PduError, ReceivedPdu, Unusable, hash_and_sign},
    identifiers::RoomId,
    json::{self, MAX_DEPTH, NumberError, Object, Value},
    room_version::{EventIds, RoomVersion},
};

use crate::generate::{SERVER, signing_key};

fn version(id: &str) -> &'static RoomVersion {
    RoomVersion::get(id).unwrap()
}

fn message(version: &RoomVersion) -> Object {
    let text = r#"{"auth_events":[],"content":{"body":"x"},"depth":1,"origin_server_ts":1,"prev_events":[],
        "room_id":"!r:domain","sender":"@u:domain","type":"m.room.message","signatures":{},"hashes":{}}"#;
    let mut event = json::parse(text.as_bytes()).unwrap().into_object().unwrap();
    if version.event_ids == EventIds::Given {
        event.insert("event_id", "$e:domain");
    }
    event
}

fn parse(event: Object, version: &'static RoomVersion) -> Result<ReceivedPdu, PduError> {
    ReceivedPdu::from_value(Value::Object(event), version)
}

#[test]
fn every_member_is_needed_and_of_its_type() {
    for version in RoomVersion::all() {
        assert!(parse(message(version), version).is_ok());
        let mut members = vec![
            ("auth_events", Value::from("[]")),
            ("content", Value::Array(Vec::new())),
            ("depth", Value::from(-1)),
            ("hashes", Value::Null),
            ("origin_server_ts", Value::from("1")),
            ("prev_events", vec![Value::from("e")].into()),
            ("room_id", Value::from("r:domain")),
            ("sender", Value::from("u")),
            ("signatures", Value::Bool(false)),
            ("type", Value::from(1)),
        ];
        if version.event_ids == EventIds::Given {
            members.push(("event_id", Value::from("e")));
        }
        for (member, wrong) in members {
            let mut event = message(version);
            event.remove(member);
            assert_eq!(parse(event.clone(), version).unwrap_err(), PduError::Format(member));
            event.insert(member, wrong);
            assert_eq!(parse(event, version).unwrap_err(), PduError::Format(member));
        }
        let mut event = message(version);
        event.insert("state_key", Value::Null);
        assert_eq!(parse(event, version).unwrap_err(), PduError::Format("state_key"));
        assert_eq!(ReceivedPdu::from_value(Value::Array(Vec::new()), version).unwrap_err(), PduError::Format("event"));
    }
}

/// An id without a domain would need no server's signature but the sender's, whoever gave it.
#[test]
fn given_event_ids_name_a_server() {
    for version in RoomVersion::all().iter().filter(|version| version.event_ids == EventIds::Given) {
        let with_id = |id: &str| {
            let mut event = message(version);
            event.insert("event_id", id);
            parse(event, version).map(|event| event.event_id().server_name().map(str::to_owned))
        };
        assert_eq!(with_id("$e:domain:8448"), Ok(Some("domain:8448".to_owned())));
        for id in ["$e", "$", "$e:", "$e:a b", "$e:domain:port", "$e:@domain"] {
            assert_eq!(with_id(id), Err(PduError::Format("event_id")), "{version} {id}");
        }
    }
}

#[test]
fn references_have_the_form_of_their_version() {
    let pairs = json::parse(br#"[["$a:domain", {"sha256": "x"}]]"#).unwrap();
    let ids = json::parse(br#"["$a"]"#).unwrap();
    for version in RoomVersion::all() {
        let given = version.event_ids == EventIds::Given;
        for member in ["auth_events", "prev_events"] {
            for (form, right) in [(&pairs, given), (&ids, !given)] {
                let mut event = message(version);
                event.insert(member, form.clone());
                assert_eq!(parse(event, version).is_ok(), right, "{version} {member}");
            }
        }
    }
}

#[test]
fn only_create_events_of_version_12_may_lack_a_room_id() {
    for version in RoomVersion::all() {
        let mut event = message(version);
        event.insert("type", "m.room.create");
        event.insert("state_key", "");
        event.remove("room_id");
        match parse(event, version) {
            Ok(event) => {
                assert_eq!(version.id, "12");
                assert_eq!(event.room_id().as_str()[1..], event.event_id().as_str()[1..]);
            }
            Err(error) => assert!(version.id != "12" && error == PduError::Format("room_id")),
        }
    }
}

#[test]
fn an_event_may_have_65536_bytes() {
    for id in ["5", "12"] {
        let version = version(id);
        let event_of = |length: usize| {
            let mut event = message(version);
            let missing = length - event.to_text().len();
            event.object_at("content").insert("body", "x".repeat(missing + 1));
            assert_eq!(event.to_text().len(), length);
            // Neither white space nor `unsigned` counts.
            event.insert("unsigned", Object::from_iter([("age", 1)]));
            event
        };
        assert!(parse(event_of(MAX_EVENT_BYTES), version).is_ok());
        assert_eq!(parse(event_of(65_537), version).unwrap_err(), PduError::TooLarge("event"));
    }
}

/// What cannot be used has a place in history where it and what it cites can be asked for.
#[test]
fn a_malformed_event_has_a_place_within_bounds() {
    for version in RoomVersion::all().iter().filter(|version| version.event_ids != EventIds::Given) {
        let room = RoomId::parse("!r:domain").unwrap();
        let place = |change: &dyn Fn(&mut Object)| {
            let mut event = message(version);
            event.object_at("content").insert("x", i64::MAX);
            change(&mut event);
            Unusable::of_malformed(&Value::Object(event), &room, version)
        };
        let previous = |ids: Vec<String>| Value::Array(ids.into_iter().map(Value::from).collect());
        assert!(place(&|_| {}).is_some());
        let cites = |length: usize, count: usize| {
            place(&|event| {
                drop(event.insert("prev_events", previous(vec![format!("${}", "x".repeat(length - 1)); count])))
            })
        };
        assert!(cites(255, 20).is_some() && cites(256, 1).is_none() && cites(20, 21).is_none());
        assert!(place(&|event| drop(event.insert("room_id", "!other:domain"))).is_none());
        assert!(place(&|event| drop(event.remove("depth"))).is_none());
    }
}

/// Synapse counts `unsigned`, which it always adds, and would drop a longer one.
#[test]
fn an_event_of_ours_leaves_room_for_unsigned() {
    let version = version("12");
    let key = signing_key();
    let make = |length: usize| {
        let mut event = message(version);
        hash_and_sign(&mut event, version, SERVER, &key);
        let missing = length - event.to_text().len();
        event.object_at("content").insert("body", "x".repeat(missing + 1));
        Event::create(event, version, SERVER, &key)
    };
    let longest = make(65_536 - r#","unsigned":{}"#.len()).unwrap();
    let mut sent = longest.object().clone();
    sent.insert("unsigned", Object::new());
    assert_eq!(sent.to_text().len(), 65_536);
    assert_eq!(make(65_537 - r#","unsigned":{}"#.len()).unwrap_err(), PduError::TooLarge("event"));
}

/// Signatures are part of what is sent on, so nobody would take an event that they made too long.
#[test]
fn a_countersignature_must_fit_too() {
    let key = signing_key();
    let signature = format!(r#","other":{{"ed25519:1":"{}"}}"#, "x".repeat(86)).len();
    for version in RoomVersion::all() {
        let event_of = |length: usize| {
            let mut event = message(version);
            hash_and_sign(&mut event, version, SERVER, &key);
            let missing = length - event.to_text().len();
            event.object_at("content").insert("body", "x".repeat(missing + 1));
            hash_and_sign(&mut event, version, SERVER, &key);
            event
        };
        let made = |length: usize| Event::create(event_of(length), version, SERVER, &key).unwrap();
        let by_other = |event: &Event| {
            let mut redacted = event.redacted().object().clone();
            key.sign_object(&mut redacted, "other");
            let signature = redacted.get("signatures").and_then(|all| all.get("other")?.get("ed25519:1")?.as_str());
            signature.unwrap().to_owned()
        };
        for (room, fits) in [(signature, true), (signature - 1, false)] {
            let event = made(MAX_EVENT_BYTES - room);
            assert_eq!(event.json().len(), MAX_EVENT_BYTES - room);
            let mut pdu = parse(event.object().clone(), version).unwrap();
            let outcomes = [
                pdu.sign("other", &key),
                event.signed_by("other", &key).map(drop),
                event.with_signature("other", "ed25519:1", &by_other(&event), &key.verify_key()).map(drop),
            ];
            let expected = if fits { Ok(()) } else { Err(PduError::TooLarge("event")) };
            assert!(outcomes.iter().all(|outcome| *outcome == expected), "{version} {room}: {outcomes:?}");
        }
    }
}

#[test]
fn strings_may_have_255_bytes() {
    for (member, prefix, suffix) in
        [("type", "", ""), ("state_key", "", ""), ("sender", "@", ":domain"), ("room_id", "!", ":domain")]
    {
        for version in RoomVersion::all() {
            let stored = |character: &str, length: usize| {
                let mut event = message(version);
                let rest = length - prefix.len() - suffix.len();
                event.insert(member, format!("{prefix}{}{suffix}", character.repeat(rest)));
                hash_and_sign(&mut event, version, SERVER, &signing_key());
                parse(event, version)?;
                let mut event = message(version);
                event.insert(member, format!("{prefix}{}{suffix}", character.repeat(rest)));
                Ok(Event::from_store("$e", &event.to_text(), version)?.oversized_member())
            };
            assert_eq!(stored("a", 255), Ok(None));
            assert_eq!(stored("a", 256), Err(PduError::TooLarge(member)));
            // 255 characters, but more bytes.
            let lenient = !matches!(version.id, "11" | "12");
            let expected = if lenient { Ok(Some(member)) } else { Err(PduError::TooLarge(member)) };
            assert_eq!(stored("é", 255), expected, "{version} {member}");
            let created = Event::create(
                {
                    let mut event = message(version);
                    event.insert(member, format!("{prefix}{}{suffix}", "é".repeat(200)));
                    event
                },
                version,
                SERVER,
                &signing_key(),
            );
            assert_eq!(created.unwrap_err(), PduError::TooLarge(member), "we never make one");
        }
    }
}

#[test]
fn references_are_limited_except_in_history() {
    for version in RoomVersion::all() {
        for (member, most) in [("auth_events", 10), ("prev_events", 20)] {
            let event_with = |count: usize| {
                let mut event = message(version);
                let id = match version.event_ids {
                    EventIds::Given => vec![Value::from("$a:b"), Object::new().into()].into(),
                    _ => Value::from("$a"),
                };
                event.insert(member, vec![id; count]);
                event
            };
            assert!(parse(event_with(most), version).is_ok());
            assert_eq!(parse(event_with(most + 1), version).unwrap_err(), PduError::TooManyReferences);
            assert!(ReceivedPdu::from_history(event_with(most + 1).into(), version).is_ok());
        }
    }
}

#[test]
fn depth_and_other_numbers_are_limited_by_version() {
    for version in RoomVersion::all() {
        let with_depth = |text: &str| {
            let mut event = message(version);
            event.insert("depth", json::parse(text.as_bytes()).unwrap());
            parse(event, version).map(drop)
        };
        assert_eq!(with_depth("9007199254740991"), Ok(()));
        let strict = version.strict_json;
        let out_of_range = PduError::Number(NumberError::OutOfRange);
        assert_eq!(with_depth("9223372036854775807"), if strict { Err(out_of_range.clone()) } else { Ok(()) });
        let beyond = if strict { out_of_range } else { PduError::Format("depth") };
        assert_eq!(with_depth("9223372036854775808"), Err(beyond));
        assert!(with_depth("1.0").is_err());

        let mut event = message(version);
        event.insert("content", json::parse(b"{\"a\":[0.5]}").unwrap());
        let expected = if strict { Err(PduError::Number(NumberError::NotAnInteger)) } else { Ok(()) };
        assert_eq!(parse(event, version).map(drop), expected);
        let mut event = message(version);
        event.insert("content", json::parse(b"{\"a\":1e999}").unwrap());
        assert!(parse(event, version).is_err(), "no server can hash infinity");
    }
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(json::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
    assert!(json::parse(nested(MAX_DEPTH + 1).as_bytes()).is_err());
    // All that walks a value must have room for the deepest one on WebAssembly's stack of 1 MiB, though the frames of a test are larger.
    let deepest = nested(MAX_DEPTH);
    let walk = move || {
        let value = json::parse(deepest.as_bytes()).unwrap();
        assert!(value.clone() == value && value.check_strict().is_ok() && value.check_loose().is_ok());
        assert_eq!(value.to_text(), deepest);
        assert_eq!(serde_json::to_string(&value).unwrap(), deepest);
    };
    std::thread::Builder::new().stack_size(1024 * 1024).spawn(walk).unwrap().join().unwrap();
    let walk = move || {
        for text in [nested(5_000_000), format!("{}0{}", "{\"\":".repeat(1_000_000), "}".repeat(1_000_000))] {
            let value = json::parse_to_depth(text.as_bytes(), MAX_DEPTH).unwrap();
            assert!(value.clone() == value && value.check_strict().is_ok() && value.check_loose().is_ok());
            assert!(!value.is_within_depth(MAX_DEPTH) && value.to_text() == text);
        }
    };
    std::thread::Builder::new().stack_size(1024 * 1024).spawn(walk).unwrap().join().unwrap();
    assert!(json::parse("[".repeat(1_000_000).as_bytes()).is_err());
    assert!(json::parse_to_depth("[".repeat(1_000_000).as_bytes(), MAX_DEPTH).is_err());
    assert!(json::parse("{\"a\":".repeat(10_000).as_bytes()).is_err());
}

#[test]
fn what_is_not_read_is_written_canonically() {
    for (text, expected) in [
        (r#"[ [ ] , { } ]"#, r#"[[],{}]"#),
        (r#"{"b":1,"a":1,"b":[2],"a":{"x":1,"x":2},"b":[3]}"#, r#"{"a":{"x":2},"b":[3]}"#),
        (
            r#"{"\u0062":{"d":1,"c":[{"f":0,"e":{}}]},"a\"":{"b":1,"a":[1, 2]}}"#,
            r#"{"a\"":{"a":[1,2],"b":1},"b":{"c":[{"e":{},"f":0}],"d":1}}"#,
        ),
        (r#"[1E3,-0,"\u00e4\u0001\/",true,false,null]"#, r#"[1000.0,0,"ä\u0001/",true,false,null]"#),
    ] {
        for depth in 0..4 {
            assert_eq!(json::parse_to_depth(text.as_bytes(), depth).unwrap().to_text(), expected, "{depth}");
        }
    }
    for text in [
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1}",
        "{\"a\":1]",
        "{\"a\"}",
        "{\"a\":1,}",
        "{1:1}",
        "[\"",
        "[",
        "[[]",
        "[tru]",
        "[01]",
        "[] 1",
    ] {
        assert!(json::parse_to_depth(text.as_bytes(), 0).is_err(), "{text}");
    }
}

#[test]
fn of_equal_keys_the_last_stands() {
    let value = json::parse(br#"{"b":1,"a":1,"b":2,"a":{"x":1,"x":2},"b":3}"#).unwrap();
    assert_eq!(value.to_text(), r#"{"a":{"x":2},"b":3}"#);
}

#[test]
fn redacts_is_where_its_version_has_it() {
    for version in RoomVersion::all() {
        let mut event = message(version);
        event.insert("redacts", "$top");
        event.object_at("content").insert("redacts", "$content");
        let event = Event::from_store("$e", &event.to_text(), version).unwrap();
        let expected = if matches!(version.id, "11" | "12") { "$content" } else { "$top" };
        assert_eq!(event.redacts(), Some(expected));
    }
}

#[test]
fn references_are_no_longer_than_event_ids_except_in_history() {
    for version in RoomVersion::all() {
        for member in ["auth_events", "prev_events"] {
            let event_with = |id: String| {
                let mut event = message(version);
                let id = match version.event_ids {
                    EventIds::Given => vec![Value::from(id), Object::new().into()].into(),
                    _ => Value::from(id),
                };
                event.insert(member, vec![id]);
                event
            };
            let id = |character: &str, length: usize| format!("${}", character.repeat(length - 1));
            assert!(parse(event_with(id("a", 255)), version).is_ok());
            for long in [id("a", 256), id("é", 256), id("a", 60_000)] {
                assert_eq!(parse(event_with(long.clone()), version).unwrap_err(), PduError::TooLarge(member));
                assert!(ReceivedPdu::from_history(event_with(long).into(), version).is_ok());
            }
            // 255 characters, but more bytes: such event IDs are in rooms of versions 1 and 2.
            let lenient = !matches!(version.id, "11" | "12");
            assert_eq!(parse(event_with(id("é", 255)), version).is_ok(), lenient, "{version}");
        }
    }
}
