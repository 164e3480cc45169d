//! The vectors and examples of the spec's appendices.

use verge::matrix::{
    base64,
    event::{Event, PduError, ReceivedPdu, hash_and_sign},
    hashes::content_hash,
    identifiers::{EventId, IdentifierError, RoomAlias, RoomId, ServerName, UserId},
    json::{self, NumberError, Object},
    redaction::redact,
    room_version::{EventIds, Redaction, RoomVersion},
    server_keys::{KeyRing, KnownKey},
    server_name::{Host, split, zone},
    signing::{SignatureError, VerifyKey, signatures_of},
};

use crate::generate::{SERVER, signing_key};

#[test]
fn unpadded_base64() {
    for (bytes, text) in [
        ("", ""),
        ("f", "Zg"),
        ("fo", "Zm8"),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg"),
        ("fooba", "Zm9vYmE"),
        ("foobar", "Zm9vYmFy"),
    ] {
        assert_eq!(base64::encode(bytes.as_bytes()), text);
        assert_eq!(base64::decode(text).unwrap(), bytes.as_bytes());
    }
    assert_eq!(base64::decode("Zg==").unwrap(), b"f", "padding is accepted");
}

/// The spec has no vector but the two alphabets, which differ in their last two characters.
#[test]
fn url_safe_unpadded_base64() {
    let alphabet = |last: &str| format!("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789{last}");
    let bytes = base64::decode(&alphabet("+/")).unwrap();
    assert_eq!(bytes.len(), 48);
    assert_eq!(base64::encode(&bytes), alphabet("+/"));
    assert_eq!(base64::encode_url_safe(&bytes), alphabet("-_"));
    // Hashes and signatures are in the standard alphabet by the spec, and Synapse reads either, and both in one text.
    for last in ["-_", "+_", "-/"] {
        assert_eq!(base64::decode(&alphabet(last)), Some(bytes.clone()));
    }
    assert_eq!(base64::encode_url_safe(b"f"), "Zg");
}

#[test]
fn canonical_json() {
    for (text, canonical) in [
        ("{}", "{}"),
        ("{\n    \"one\": 1,\n    \"two\": \"Two\"\n}", r#"{"one":1,"two":"Two"}"#),
        (r#"{"b": "2", "a": "1"}"#, r#"{"a":"1","b":"2"}"#),
        (r#"{"b":"2","a":"1"}"#, r#"{"a":"1","b":"2"}"#),
        (
            r#"{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe",
                "three_pids": [{"medium": "email", "address": "john.doe@example.org"},
                {"medium": "msisdn", "address": "123456789"}]}}}"#,
            r#"{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}"#,
        ),
        (r#"{"a": "日本語"}"#, r#"{"a":"日本語"}"#),
        (r#"{"本": 2, "日": 1}"#, r#"{"日":1,"本":2}"#),
        (r#"{"a": "\u65E5"}"#, r#"{"a":"日"}"#),
        (r#"{"a": null}"#, r#"{"a":null}"#),
        // The last example. The spec would write 10000000000, but the spec's own Python code, and so every Synapse, writes
        // a float, and events of versions 1 to 5 hash as that. From room version 6 on neither number may appear.
        ("{\n    \"a\": -0,\n    \"b\": 1e10\n}", r#"{"a":0,"b":10000000000.0}"#),
        // The grammar's escapes.
        (r#""\b\t\n\f\r\"\\\/\u0007\u001f\u007f""#, "\"\\b\\t\\n\\f\\r\\\"\\\\/\\u0007\\u001f\u{7f}\""),
    ] {
        assert_eq!(json::parse(text.as_bytes()).unwrap().to_text(), canonical);
    }
}

#[test]
fn strict_numbers() {
    let check = |text: &str| json::parse(text.as_bytes()).unwrap().check_strict();
    for text in ["[9007199254740991]", "{\"a\":-9007199254740991}", "0"] {
        assert_eq!(check(text), Ok(()), "{text}");
    }
    for text in ["9007199254740992", "-9007199254740992", "99999999999999999999"] {
        assert_eq!(check(text), Err(NumberError::OutOfRange), "{text}");
    }
    for text in ["1.0", "1e10", "-0", "[[0.5]]"] {
        assert_eq!(check(text), Err(NumberError::NotAnInteger), "{text}");
    }
}

#[test]
fn json_signing() {
    for (text, signed) in [
        (
            "{}",
            r#"{"signatures": {"domain": {
                "ed25519:1": "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"}}}"#,
        ),
        (
            r#"{"one": 1, "two": "Two"}"#,
            r#"{"one": 1, "signatures": {"domain": {
                "ed25519:1": "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"}},
                "two": "Two"}"#,
        ),
    ] {
        let (mut object, signed) = (object(text), object(signed));
        assert_eq!(verify_json(&signed, SERVER, &signing_key().verify_key()), Ok(()));
        signing_key().sign_object(&mut object, SERVER);
        assert_eq!(object, signed);
        object.insert("three", 3);
        assert_eq!(verify_json(&object, SERVER, &signing_key().verify_key()), Err(SignatureError::Wrong));
    }
    // What the section before shows is no vector: the signature is not by the key.
    let shown = object(
        r#"{"name": "example.org", "signing_keys": {"ed25519:1": "XSl0kuyvrXNj6A+7/tkrB9sxSbRi08Of5uRhxOqZtEQ"},
        "unsigned": {"age_ts": 922834800000}, "signatures": {"example.org": {
        "ed25519:1": "s76RUgajp8w172am0zQb/iPTHsRnb4SkrzGoeCOSFfcBY2V/1c8QfrmdXHpvnc2jK5BD1WiJIxiMW95fMjK7Bw"}}}"#,
    );
    let key = VerifyKey::from_base64("XSl0kuyvrXNj6A+7/tkrB9sxSbRi08Of5uRhxOqZtEQ").unwrap();
    assert_eq!(verify_json(&shown, "example.org", &key), Err(SignatureError::Wrong));
}

/// Checks the one signature of `server` as the spec tells to: over the object without `signatures` and `unsigned`.
fn verify_json(object: &Object, server: &str, key: &VerifyKey) -> Result<(), SignatureError> {
    let (_, signature) = signatures_of(object, server).next().unwrap();
    let mut covered = object.clone();
    covered.remove("signatures");
    covered.remove("unsigned");
    key.verify_text(&covered.to_text(), signature)
}

fn object(text: &str) -> Object {
    json::parse(text.as_bytes()).unwrap().into_object().unwrap()
}

const MINIMAL_EVENT: &str = r#"{"room_id":"!x:domain","sender":"@a:domain","origin":"domain","origin_server_ts":1000000,
    "signatures":{},"hashes":{},"type":"X","content":{},"prev_events":[],"auth_events":[],"depth":3,
    "unsigned":{"age_ts":1000000}}"#;
const SIGNED_MINIMAL_EVENT: &str = r#"{"auth_events":[],"content":{},"depth":3,
    "hashes":{"sha256":"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"},"origin":"domain","origin_server_ts":1000000,
    "prev_events":[],"room_id":"!x:domain","sender":"@a:domain","signatures":{"domain":{
    "ed25519:1":"KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"}},"type":"X",
    "unsigned":{"age_ts":1000000}}"#;
const EVENT_WITH_CONTENT: &str = r#"{"content":{"body":"Here is the message content"},"event_id":"$0:domain","origin":"domain",
    "origin_server_ts":1000000,"type":"m.room.message","room_id":"!r:domain","sender":"@u:domain","signatures":{},
    "unsigned":{"age_ts":1000000}}"#;
const SIGNED_EVENT_WITH_CONTENT: &str = r#"{"content":{"body":"Here is the message content"},"event_id":"$0:domain",
    "hashes":{"sha256":"onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g"},"origin":"domain","origin_server_ts":1000000,
    "type":"m.room.message","room_id":"!r:domain","sender":"@u:domain","signatures":{"domain":{
    "ed25519:1":"Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA"}},
    "unsigned":{"age_ts":1000000}}"#;

/// In the versions that the vectors are of: from version 11 on redaction takes `origin` away, so that it is not signed.
#[test]
fn event_signing() {
    for version in RoomVersion::all().iter().filter(|version| version.redaction < Redaction::V11) {
        for (text, signed) in [(MINIMAL_EVENT, SIGNED_MINIMAL_EVENT), (EVENT_WITH_CONTENT, SIGNED_EVENT_WITH_CONTENT)] {
            let (mut event, signed) = (object(text), object(signed));
            hash_and_sign(&mut event, version, SERVER, &signing_key());
            assert_eq!(event, signed, "version {version}");
            let hash = signed.get("hashes").and_then(|hashes| hashes.get("sha256")?.as_str());
            assert_eq!(hash.and_then(base64::decode).unwrap(), content_hash(&signed));
            verify_json(&redact(&signed, version), SERVER, &signing_key().verify_key()).unwrap();
        }
    }
}

/// The first vector is a whole event from version 3 on.
#[test]
fn a_signed_event_passes_the_checks() {
    let mut ring = KeyRing::new();
    let key = signing_key().verify_key();
    ring.insert(
        SERVER,
        "ed25519:1",
        KnownKey { key, valid_until_ts: i64::MAX, expired_ts: None, fetched_ts: i64::MAX },
    );
    for version in RoomVersion::all() {
        let received = ReceivedPdu::parse(SIGNED_MINIMAL_EVENT.as_bytes(), version);
        match version.event_ids {
            EventIds::Given => assert_eq!(received.unwrap_err(), PduError::Format("event_id")),
            _ if version.redaction >= Redaction::V11 => {
                assert_eq!(received.unwrap().verify(&ring).unwrap_err(), PduError::WrongSignature(SERVER.into()));
            }
            _ => {
                let event = received.unwrap().verify(&ring).unwrap();
                let mut signed = object(SIGNED_MINIMAL_EVENT);
                signed.remove("unsigned");
                assert_eq!(event.json(), signed.to_text(), "version {version}");
                let mut damaged = signed;
                damaged.insert("depth", 4);
                let received = ReceivedPdu::from_value(damaged.into(), version).unwrap();
                assert_eq!(received.verify(&ring).unwrap_err(), PduError::WrongSignature(SERVER.into()));
            }
        }
    }
}

const EXAMPLE_BASE: &str = r#"{"room_id": "!UcYsUzyxTGDxLBEvLy:example.org", "sender": "@alice:example.com",
    "origin_server_ts": 1404838188000, "depth": 12, "type": "m.room.message", "content": {"key": "value"},
    "hashes": {"sha256": "thishashcoversallfieldsincasethisisredacted"}, "signatures": {"example.com": {"ed25519:key_version":
    "these86bytesofbase64signaturecoveressentialfieldsincludinghashessocancheckredactedpdus"}}, "unsigned": {"age": 4612}}"#;
const REFERENCES_V1: &str = r#"{"event_id": "$a4ecee13e2accdadf56c1025:example.com",
    "auth_events": [["$af232176:example.org", {"sha256": "abase64encodedsha256hashshouldbe43byteslong"}]],
    "prev_events": [["$af232176:example.org", {"sha256": "abase64encodedsha256hashshouldbe43byteslong"}]]}"#;
const REFERENCES_V3: &str = r#"{"auth_events": ["$base64encodedeventid", "$adifferenteventid"],
    "prev_events": ["$base64encodedeventid", "$adifferenteventid"], "redacts": "$some/old+event"}"#;
const REFERENCES_V4: &str = r#"{"auth_events": ["$urlsafe_base64_encoded_eventid", "$a-different-event-id"],
    "prev_events": ["$urlsafe_base64_encoded_eventid", "$a-different-event-id"]}"#;
const REDACTS_V4: &str = r#"{"redacts": "$some-old_event"}"#;
const ROOM_ID_V12: &str = r#"{"room_id": "!Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT-xyIuqDnpYQ"}"#;
const JOIN: &str = r#"{"signatures": {"example.com": {"ed25519:key_version":
    "these86bytesofbase64signaturecoveressentialfieldsincludinghashessocancheckredactedpdus"},
    "resident.example.com": {"ed25519:other_key_version": "a different signature"}}, "type": "m.room.member",
    "state_key": "@alice:example.com",
    "content": {"membership": "join", "join_authorised_via_users_server": "@arbitrary:resident.example.com"}}"#;

/// The example of each event format. Its hashes and signatures are placeholders.
#[test]
fn examples_of_the_event_formats() {
    for version in RoomVersion::all() {
        let number: u32 = version.id.parse().unwrap();
        let parts = match number {
            1..=2 => vec![REFERENCES_V1],
            3 => vec![REFERENCES_V3],
            4..=10 => vec![REFERENCES_V4, REDACTS_V4],
            11 => vec![REFERENCES_V4],
            _ => vec![REFERENCES_V4, ROOM_ID_V12],
        };
        let example = |more: &[&str]| {
            parts.iter().chain(more).flat_map(|part| object(part)).fold(
                object(EXAMPLE_BASE),
                |mut whole, (key, value)| {
                    whole.insert(key, value);
                    whole
                },
            )
        };
        let received = ReceivedPdu::from_value(example(&[]).into(), version).unwrap();
        assert_eq!(received.required_servers(), ["example.com"], "version {version}");
        if version.event_ids == EventIds::Given {
            assert_eq!(*received.event_id(), "$a4ecee13e2accdadf56c1025:example.com");
        }
        let event = Event::from_store(received.event_id().as_str(), &example(&[]).to_text(), version).unwrap();
        let cited = match version.event_ids {
            EventIds::Given => vec!["$af232176:example.org"],
            EventIds::HashBase64 => vec!["$base64encodedeventid", "$adifferenteventid"],
            EventIds::HashUrlSafe => vec!["$urlsafe_base64_encoded_eventid", "$a-different-event-id"],
        };
        assert_eq!((event.auth_events(), event.prev_events()), (&*ids(&cited), &*ids(&cited)));
        let redacts = match number {
            3 => Some("$some/old+event"),
            4..=10 => Some("$some-old_event"),
            _ => None,
        };
        assert_eq!(event.redacts(), redacts, "version {version}");
        if version.restricted {
            let join = ReceivedPdu::from_value(example(&[JOIN]).into(), version).unwrap();
            assert_eq!(join.required_servers(), ["example.com", "resident.example.com"]);
        }
    }
}

fn ids(ids: &[&str]) -> Vec<EventId> {
    ids.iter().map(|id| EventId::parse(id).unwrap()).collect()
}

#[test]
fn zones_of_server_names() {
    let alike = |names: &[&str]| names.iter().all(|name| zone(name) == zone(names[0]));
    assert!(alike(&["example.org", "a.example.org", "A.b.Example.Org:8448", "example.org.", "example.org:1"]));
    assert!(alike(&["localhost", "LOCALHOST:8448"]));
    assert!(alike(&["1.2.3.4", "1.2.3.4:8448"]));
    assert!(alike(&["[2001:db8:1::1]", "[2001:db8:1:ffff::7]:8448"]));
    let others = ["example.org", "example.com", "org", "myexample.org", "1.2.3.4", "1.2.3.5", "[2001:db8:2::1]"];
    assert!(others.iter().all(|one| others.iter().all(|other| one == other || zone(one) != zone(other))));
}

#[test]
fn server_names() {
    let parts = |name| split(name).map(|parts| (parts.host, parts.port));
    assert_eq!(parts("matrix.org"), Some((Host::Dns("matrix.org"), None)));
    assert_eq!(parts("matrix.org:8888"), Some((Host::Dns("matrix.org"), Some(8888))));
    assert_eq!(parts("1.2.3.4"), Some((Host::Ipv4([1, 2, 3, 4].into()), None)));
    assert_eq!(parts("1.2.3.4:1234"), Some((Host::Ipv4([1, 2, 3, 4].into()), Some(1234))));
    let ipv6 = Host::Ipv6("1234:5678::abcd".parse().unwrap());
    assert_eq!(parts("[1234:5678::abcd]"), Some((ipv6, None)));
    assert_eq!(parts("[1234:5678::abcd]:5678"), Some((ipv6, Some(5678))));
    // Numbers that make no address make a name: the grammar has it, and its dns-name too.
    for name in ["1.2.3.256", "01.2.3.4", "1.2.3", "1.2.3.4.5"] {
        assert_eq!(parts(name), Some((Host::Dns(name), None)));
    }
    assert!(parts("localhost").is_some() && parts("X-1.example").is_some());
    let long = "a".repeat(256);
    for name in [
        "",
        ":8448",
        "a:",
        "a:123456",
        "a:70000",
        "a:1:2",
        "a:+1",
        "a b",
        "a_b",
        "é.example",
        "a/b",
        "@a",
        "[::1",
        "::1",
        "[::1]a",
        "[1.2.3.4]",
        "[]",
        "[::1]:",
        &long,
    ] {
        assert_eq!(parts(name), None, "{name}");
    }
    let name = ServerName::parse("[::1]:8448").unwrap();
    assert!(name.is_ip_literal() && name.port() == Some(8448) && name.host() == "[::1]");
    assert_eq!(ServerName::parse(&format!("{long}a")), Err(IdentifierError::TooLong));
    assert_ne!(ServerName::parse("matrix.org").unwrap(), ServerName::parse("MATRIX.org").unwrap());
}

#[test]
fn identifiers() {
    let user = UserId::parse("@alice:example.org:8448").unwrap();
    assert_eq!((user.localpart(), user.server_name()), ("alice", "example.org:8448"));
    assert!(user.is_strict());
    for historical in ["@:example.org", "@Älice #1:example.org", "@\u{1}:example.org"] {
        assert!(!UserId::parse(historical).unwrap().is_strict(), "{historical}");
    }
    for wrong in ["", "@", "alice:example.org", "@alice", "@alice:", "@alice:a b", "@a\0b:example.org", "#a:b"] {
        assert!(UserId::parse(wrong).is_err(), "{wrong}");
    }
    assert_eq!(["@x:bad_host", "@x:", "@:"].map(UserId::check_form), [Ok(()); 3]);
    for wrong in ["", "@", "alice:example.org", "@alice", "@a\0b:example.org", "@a:b\0", "#a:b"] {
        assert!(UserId::check_form(wrong).is_err(), "{wrong}");
    }
    let just_fits = format!("@{}:b", "é".repeat(126));
    assert_eq!(just_fits.len(), 255);
    assert!(UserId::parse(&just_fits).is_ok());
    assert_eq!(UserId::parse(&format!("@{}:bb", "é".repeat(126))), Err(IdentifierError::TooLong));

    assert_eq!(RoomId::parse("!a:example.org").unwrap().server_name(), Some("example.org"));
    let hashed = RoomId::parse("!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM").unwrap();
    assert_eq!(hashed.server_name(), None);
    assert_eq!(hashed.create_event_id(), "$31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM");
    assert_eq!(RoomId::of_create_event(&hashed.create_event_id()), hashed);
    for id in [
        "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk",
        "$CD66HAED5npg6074c6pDtLKalHjVfYb2q4Q3LZgrW6o",
        "$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg",
    ] {
        assert_eq!(EventId::parse(id).unwrap().server_name(), None);
        // They are hashes in the alphabets of version 3 and of version 4.
        let hash = base64::decode(&id[1..].replace('-', "+").replace('_', "/")).unwrap();
        assert_eq!(hash.len(), 32);
        assert_eq!(if id.contains('-') { base64::encode_url_safe(&hash) } else { base64::encode(&hash) }, id[1..]);
    }
    assert!(EventId::parse("$").is_err() && EventId::parse("!a").is_err() && RoomId::parse("!").is_err());
    assert_eq!(RoomAlias::parse("#a b:example.org").unwrap().localpart(), "a b");
}
