//! The vectors and examples of the spec's appendices.

use verge::matrix::{
    base64,
    event::hash_and_sign,
    identifiers::{EventId, IdentifierError, RoomAlias, RoomId, ServerName, UserId},
    json::{self, NumberError},
    room_version::RoomVersion,
    server_name::{Host, split},
};

use crate::generate::{SERVER, signing_key};

#[test]
fn unpadded_base64() {
    for (bytes, text) in
        [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("fooba", "Zm9vYmE")]
    {
        assert_eq!(base64::encode(bytes.as_bytes()), text);
        assert_eq!(base64::decode(text).unwrap(), bytes.as_bytes());
    }
    assert_eq!(base64::decode("Zg==").unwrap(), b"f", "padding is accepted");
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
        // Of the last example only the zero: the spec would write 1e10 without its exponent, but the spec's
        // own Python code, and so every Synapse, writes 10000000000.0. From room version 6 on neither may appear.
        (r#"{"a": -0}"#, r#"{"a":0}"#),
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
    for (text, signature) in [
        ("{}", "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
        (
            r#"{"one":1,"two":"Two"}"#,
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ] {
        let mut object = json::parse(text.as_bytes()).unwrap().into_object().unwrap();
        signing_key().sign_object(&mut object, SERVER);
        let signed = object.get("signatures").and_then(|all| all.get(SERVER)?.get("ed25519:1")?.as_str());
        assert_eq!(signed, Some(signature));
    }
}

#[test]
fn event_signing() {
    for (text, hash, signature) in [
        (
            r#"{"room_id":"!x:domain","sender":"@a:domain","origin":"domain","origin_server_ts":1000000,"signatures":{},
                "hashes":{},"type":"X","content":{},"prev_events":[],"auth_events":[],"depth":3,"unsigned":{"age_ts":1000000}}"#,
            "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
            "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        ),
        (
            r#"{"content":{"body":"Here is the message content"},"event_id":"$0:domain","origin":"domain",
                "origin_server_ts":1000000,"type":"m.room.message","room_id":"!r:domain","sender":"@u:domain",
                "signatures":{},"unsigned":{"age_ts":1000000}}"#,
            "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
            "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
        ),
    ] {
        let mut event = json::parse(text.as_bytes()).unwrap().into_object().unwrap();
        hash_and_sign(&mut event, RoomVersion::get("1").unwrap(), SERVER, &signing_key());
        let member = |path: [&str; 3]| {
            let outer = event.get(path[0])?.get(path[1])?;
            if path[2].is_empty() { outer.as_str() } else { outer.get(path[2])?.as_str() }
        };
        assert_eq!(member(["hashes", "sha256", ""]), Some(hash));
        assert_eq!(member(["signatures", SERVER, "ed25519:1"]), Some(signature));
    }
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
    let just_fits = format!("@{}:b", "é".repeat(126));
    assert_eq!(just_fits.len(), 255);
    assert!(UserId::parse(&just_fits).is_ok());
    assert_eq!(UserId::parse(&format!("@{}:bb", "é".repeat(126))), Err(IdentifierError::TooLong));

    assert_eq!(RoomId::parse("!a:example.org").unwrap().server_name(), Some("example.org"));
    let hashed = RoomId::parse("!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM").unwrap();
    assert_eq!(hashed.server_name(), None);
    assert_eq!(hashed.create_event_id(), "$31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM");
    assert_eq!(RoomId::of_create_event(&hashed.create_event_id()), hashed);
    assert!(EventId::parse("$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk").is_ok());
    assert!(EventId::parse("$").is_err() && EventId::parse("!a").is_err() && RoomId::parse("!").is_err());
    assert_eq!(RoomAlias::parse("#a b:example.org").unwrap().localpart(), "a b");
}
