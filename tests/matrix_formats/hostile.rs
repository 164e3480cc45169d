//! No input panics, and what passes is consistent.

use verge::matrix::{
    event::{ReceivedPdu, hash_and_sign},
    identifiers::{EventId, RoomAlias, RoomId, ServerName, UserId},
    json,
    keys::{KeyRing, ServerKeys, check_notary_response, own_server_keys},
    room_version::{Redaction, RoomVersion},
    server_name,
    x_matrix::parse_all,
};

use crate::generate::{self, Random, SERVER, signing_key};

/// Changes some bytes of `text`: single ones, cuts, copies, and tokens that mean something.
fn mutated(random: &mut Random, text: &str) -> Vec<u8> {
    let tokens: [&[u8]; 14] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b"\\",
        b"\\ud800",
        b"null",
        b"-0",
        b"1e999",
        b"9223372036854775808",
        b":",
        b"\xff",
        b"$",
    ];
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(4) {
            0 if at < bytes.len() => bytes[at] = u8::try_from(random.below(256)).unwrap(),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, random.pick(&tokens).iter().copied())),
            _ => {
                let end = (at + random.below(20)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

#[test]
fn events_keys_and_json() {
    let keys = own_server_keys(SERVER, &signing_key(), &[], i64::MAX);
    let mut parsed = 0;
    for seed in 0..6000 {
        let mut random = Random(seed);
        let versions = RoomVersion::all();
        let version = versions[random.below(versions.len())];
        let mut event = generate::event(&mut random, version);
        hash_and_sign(&mut event, version, SERVER, &signing_key());
        let text = mutated(&mut random, &event.to_text());
        println!("seed {seed}");
        if let Ok(pdu) = ReceivedPdu::parse(&text, version) {
            parsed += 1;
            pdu.keys_to_fetch(&KeyRing::new());
            let id = pdu.event_id().clone();
            let mut ring = KeyRing::new();
            ring.add(&ServerKeys::parse_and_check(keys.clone(), SERVER, i64::MAX).unwrap());
            if let Ok(event) = pdu.verify(&ring) {
                let again = ReceivedPdu::parse(event.json().as_bytes(), version).unwrap();
                assert_eq!(*again.event_id(), id);
                // Before version 11 a redacted third-party invite looks like one that its sender should have signed.
                let unsigned_invite = event.membership() == Some("invite") && version.redaction < Redaction::V11;
                assert!(again.verify(&ring).is_ok() || unsigned_invite);
            }
        }
        if let Ok(value) = json::parse(&text) {
            let canonical = value.to_text();
            if value.check_loose().is_ok() {
                assert_eq!(json::parse(canonical.as_bytes()).unwrap().to_text(), canonical);
            }
        }
        let text = mutated(&mut random, &keys.to_text());
        if let Ok(json::Value::Object(object)) = json::parse(&text) {
            let _ = ServerKeys::parse_and_check(object.clone(), SERVER, 0);
            let _ = check_notary_response(object, SERVER, &KeyRing::new(), 0);
        }
    }
    assert!(parsed > 500, "the generator has to hit something: {parsed}");
}

#[test]
fn identifiers_and_headers() {
    for seed in 0..20_000 {
        let mut random = Random(seed);
        let text = mutated(&mut random, "@a:[2001:db8::1]:8448");
        let name = String::from_utf8_lossy(&text);
        let _ = (UserId::parse(&name), RoomId::parse(&name), EventId::parse(&name), RoomAlias::parse(&name));
        if let Ok(user) = UserId::parse(&name) {
            assert_eq!(format!("@{}:{}", user.localpart(), user.server_name()), name);
        }
        let text = mutated(&mut random, "[2001:db8::1]:8448");
        let name = String::from_utf8_lossy(&text);
        if let (Some(parts), Ok(parsed)) = (server_name::split(&name), ServerName::parse(&name)) {
            assert_eq!(parsed.parts(), parts);
            assert!(name.starts_with(parts.host_text));
        }
        let header = mutated(&mut random, r#"X-Matrix origin="a",key=ed25519:1,sig="\A",destination=b"#);
        let _ = parse_all([&*header]);
    }
}
