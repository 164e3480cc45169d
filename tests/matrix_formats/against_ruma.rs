//! Differential tests against `ruma-common` and `ruma-signatures` on generated events, whose numbers are plain integers: ruma
//! has no others.

use std::collections::BTreeMap;

use ruma_common::{CanonicalJsonObject, CanonicalJsonValue, RoomVersionId, canonical_json, serde::Base64};
use ruma_signatures::{Ed25519KeyPair, Verified};
use verge::matrix::{
    base64,
    event::{Event, PduError, ReceivedPdu, hash_and_sign},
    hashes,
    json::{self, Object, Value},
    redaction,
    room_version::{EventIds, RoomVersion},
    server_keys::{KeyRing, KnownKey},
};

use crate::generate::{self, Random, SEED, SERVER, signing_key};

const EVENTS: u64 = 300;

fn for_generated_events(mut check: impl FnMut(&'static RoomVersion, Object, &mut Random)) {
    for version in RoomVersion::all() {
        for seed in 0..EVENTS {
            let mut random = Random(seed);
            let event = generate::event(&mut random, version);
            println!("version {version} seed {seed}");
            check(version, event, &mut random);
        }
    }
}

fn to_ruma(object: &Object) -> CanonicalJsonObject {
    serde_json::from_str(&object.to_text()).unwrap()
}

fn from_ruma(object: &CanonicalJsonObject) -> String {
    CanonicalJsonValue::from(object.clone()).to_string()
}

fn rules(version: &RoomVersion) -> ruma_common::room_version_rules::RoomVersionRules {
    RoomVersionId::try_from(version.id).unwrap().rules().unwrap()
}

fn ruma_key() -> Ed25519KeyPair {
    // A PKCS#8 document: a fixed head and the seed.
    let mut document = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    document.extend(base64::decode(SEED).unwrap());
    Ed25519KeyPair::from_der(&document, "1".to_owned()).unwrap()
}

fn keys() -> KeyRing {
    let mut keys = KeyRing::new();
    let key = signing_key().verify_key();
    let known = KnownKey { key, valid_until_ts: i64::MAX, expired_ts: None, fetched_ts: i64::MAX };
    keys.insert(SERVER, "ed25519:1", known);
    keys
}

#[test]
fn canonical_json_and_redaction_are_the_same() {
    for_generated_events(|version, event, _| {
        assert_eq!(event.to_text(), from_ruma(&to_ruma(&event)));
        let redacted = redaction::redact(&event, version);
        let expected = canonical_json::redact(to_ruma(&event), &rules(version).redaction, None).unwrap();
        // Of a third_party_invite that is no object Synapse keeps nothing, and ruma everything.
        let invite = event.get("content").and_then(|content| content.get("third_party_invite"));
        if invite.is_none_or(|invite| invite.as_object().is_some()) {
            assert_eq!(redacted.to_text(), from_ruma(&expected));
        }
        assert_eq!(redaction::redact(&redacted, version), redacted, "twice is once");
    });
}

#[test]
fn hashes_ids_and_signatures_are_the_same() {
    for_generated_events(|version, mut event, _| {
        let mut ruma = to_ruma(&event);
        assert_eq!(
            base64::encode(&hashes::content_hash(&event)),
            ruma_signatures::content_hash(&ruma).unwrap().encode()
        );
        ruma_signatures::hash_and_sign_event(SERVER, &ruma_key(), &mut ruma, &rules(version).redaction).unwrap();
        hash_and_sign(&mut event, version, SERVER, &signing_key());
        assert_eq!(event.to_text(), from_ruma(&ruma));
        let id = ruma_signatures::reference_hash(&ruma, &rules(version)).unwrap();
        let received = ReceivedPdu::parse(event.to_text().as_bytes(), version).unwrap();
        if version.event_ids == EventIds::Given {
            let stored = Event::from_store(received.event_id().as_str(), &event.to_text(), version).unwrap();
            let reference = Object::from_iter([("sha256", id)]);
            assert_eq!(stored.reference(), Value::from(vec![Value::from(received.event_id()), reference.into()]));
            return;
        }
        assert_eq!(received.event_id().as_str(), format!("${id}"));
        if !event.contains_key("room_id") {
            assert_eq!(received.room_id().as_str(), format!("!{id}"));
        }
    });
}

/// The spec leaves three members out of the content hash, and so does ruma.
#[test]
fn the_content_hash_covers_all_but_three_members() {
    for_generated_events(|version, event, random| {
        let hash = hashes::content_hash(&event);
        let member = random.pick(&["age_ts", "destinations", "outlier"]);
        let mut with_member = event.clone();
        with_member.insert(member, 1);
        assert_ne!(hashes::content_hash(&with_member), hash, "{member}");
        assert_eq!(
            base64::encode(&hashes::content_hash(&with_member)),
            ruma_signatures::content_hash(&to_ruma(&with_member)).unwrap().encode()
        );
        // What is hashed last and first, so that a separator would be seen.
        let mut without = event.clone();
        for member in ["hashes", "signatures", "unsigned"] {
            without.insert(member, Object::from_iter([("a", 1)]));
        }
        assert_eq!(hashes::content_hash(&without), hash, "version {version}");
    });
}

#[test]
fn damaged_events_are_judged_the_same() {
    let mut outcomes = BTreeMap::new();
    for_generated_events(|version, mut event, random| {
        // ruma looks for it in all types of events, the spec only in memberships.
        event.object_at("content").remove("join_authorised_via_users_server");
        hash_and_sign(&mut event, version, SERVER, &signing_key());
        let wrong = Value::from(base64::encode(&[7; 64]));
        match random.below(8) {
            0 => drop(event.object_at("content").insert("body", "another")),
            1 => drop(event.object_at("content").insert("membership", "join")),
            2 => drop(event.insert("depth", 1_234_567_890)),
            3 => drop(event.insert("org.example.added", 1)),
            4 => drop(event.object_at("signatures").object_at(SERVER).insert("ed25519:1", wrong)),
            5 => drop(event.object_at("signatures").object_at(SERVER).insert("ed25519:unknown", wrong)),
            6 => drop(event.object_at("signatures").remove(SERVER)),
            _ => drop(event.object_at("hashes").insert("sha256", "not base64!")),
        }
        let mut known = BTreeMap::new();
        known.insert("ed25519:1".to_owned(), Base64::parse(signing_key().public_base64()).unwrap());
        let ring = BTreeMap::from([(SERVER.to_owned(), known)]);
        let expected = ruma_signatures::verify_event(&ring, &to_ruma(&event), &rules(version));
        let verified = ReceivedPdu::parse(event.to_text().as_bytes(), version).unwrap().verify(&keys());
        let content = event.get("content").unwrap();
        let is_third_party_invite = content.get("third_party_invite").is_some()
            && content.get("membership").and_then(Value::as_str) == Some("invite");
        if version.event_ids == EventIds::Given && is_third_party_invite {
            // ruma asks the server of the id, also where it is the sender's: see `signatures`.
            return;
        }
        let outcome = match &expected {
            Ok(Verified::All) => {
                assert_eq!(verified.unwrap().json(), event.to_text());
                "whole"
            }
            // Redacted, a third-party invite of these versions is an ordinary invite, which ruma takes without its sender's
            // signature and this server does not: anybody could invite in anybody's name.
            Ok(Verified::Signatures) if is_third_party_invite && verified.is_err() => {
                let redacted = canonical_json::redact(to_ruma(&event), &rules(version).redaction, None).unwrap();
                assert!(from_ruma(&redacted).contains(r#""content":{"membership":"invite"}"#));
                "not excused"
            }
            Ok(Verified::Signatures) => {
                let redacted = canonical_json::redact(to_ruma(&event), &rules(version).redaction, None).unwrap();
                assert_eq!(verified.unwrap().json(), from_ruma(&redacted));
                "redacted"
            }
            Err(_) => {
                let error = verified.unwrap_err();
                assert!(matches!(error, PduError::NotSigned(_) | PduError::WrongSignature(_)), "{error}");
                "dropped"
            }
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
    });
    let many = |outcome| outcomes.get(outcome).is_some_and(|count| *count > 50);
    assert!(many("whole") && many("redacted") && many("dropped"), "{outcomes:?}");
    assert!(outcomes.contains_key("not excused"), "{outcomes:?}");
}

#[test]
fn made_stored_redacted_and_countersigned_events_keep_their_id() {
    for_generated_events(|version, proto, _| {
        let event = Event::create(proto, version, SERVER, &signing_key()).unwrap();
        let received = ReceivedPdu::parse(event.json().as_bytes(), version).unwrap();
        assert_eq!((received.event_id(), received.room_id()), (event.event_id(), event.room_id()));
        let verified = received.verify(&keys()).unwrap();
        assert_eq!(verified.json(), event.json());
        let stored = Event::from_store(event.event_id().as_str(), event.json(), version).unwrap();
        assert_eq!((stored.json(), stored.room_id()), (event.json(), event.room_id()));
        for changed in [event.redacted(), event.signed_by("other", &signing_key()).unwrap()] {
            let received = ReceivedPdu::parse(changed.json().as_bytes(), version).unwrap();
            assert_eq!((received.event_id(), received.room_id()), (event.event_id(), event.room_id()));
            assert!(received.verify(&keys()).is_ok());
        }
        assert_eq!(event.redacted().redacted().json(), event.redacted().json());
        let given = matches!(version.event_ids, EventIds::Given);
        assert_eq!(given, event.event_id().server_name().is_some());
    });
}

#[test]
fn reading_what_was_written_gives_the_same() {
    let mut random = Random(1);
    for _ in 0..3000 {
        let value = generate::value(&mut random, 5);
        let text = value.to_text();
        assert_eq!(json::parse(text.as_bytes()).unwrap(), value);
        let theirs: CanonicalJsonValue = serde_json::from_str(&text).unwrap();
        assert_eq!(theirs.to_string(), text);
        assert_eq!(Value::from(serde_json::from_str::<serde_json::Value>(&text).unwrap()), value);
        assert_eq!(json::parse(serde_json::to_string_pretty(&value).unwrap().as_bytes()).unwrap(), value);
    }
}
