//! Key responses: our own, other servers', and those of notaries.

use verge::matrix::{
    json::{self, Object, Value},
    server_keys::{
        KeyError, KeyRing, KnownKey, MAX_VALIDITY_MS, OldKey, ServerKeys, check_notary_response, own_server_keys,
        read_old_keys,
    },
    signing::{SignatureError, SigningKey},
};

use crate::generate::signing_key;

const NOW: i64 = 1_700_000_000_000;

fn other_key(version: &str) -> SigningKey {
    SigningKey::from_line(&format!("ed25519 {version} AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")).unwrap()
}

fn response() -> Object {
    let old = (Box::from("ed25519:old"), OldKey { key: other_key("old").verify_key(), expired_ts: NOW - 5 });
    own_server_keys("origin", &signing_key(), &[old], NOW + 1000)
}

fn resigned(change: impl FnOnce(&mut Object)) -> Object {
    let mut object = response();
    object.remove("signatures");
    change(&mut object);
    signing_key().sign_object(&mut object, "origin");
    object
}

#[test]
fn our_own_response_is_right_for_ruma_and_for_us() {
    let object = response();
    let theirs = serde_json::from_str(&object.to_text()).unwrap();
    let key = ruma_common::serde::Base64::parse(signing_key().public_base64()).unwrap();
    let known = [("origin".to_owned(), [("ed25519:1".to_owned(), key)].into())].into();
    ruma_signatures::verify_json(&known, &theirs).unwrap();

    let keys = ServerKeys::parse_and_check(object, "origin", NOW).unwrap();
    assert_eq!((keys.valid_until_ts, keys.keys.len()), (NOW + 1000, 2));
    let mut ring = KeyRing::new();
    ring.add(&keys);
    assert!(ring.get("origin", "ed25519:1").unwrap().is_valid_now(NOW));
    assert!(!ring.get("origin", "ed25519:old").unwrap().is_valid_now(NOW - 10), "old keys sign no requests");
    assert_eq!(ring.get("origin", "ed25519:other"), None);
}

#[test]
fn responses_that_do_not_hold_are_refused() {
    let check = |object: Object| ServerKeys::parse_and_check(object, "origin", NOW).map(|keys| keys.keys.len());
    let wrong = ServerKeys::parse_and_check(response(), "victim", NOW).unwrap_err();
    assert_eq!(wrong, KeyError::WrongServer("origin".into()));
    for member in ["server_name", "verify_keys", "valid_until_ts"] {
        assert_eq!(check(resigned(|object| drop(object.remove(member)))), Err(KeyError::Format(member)));
    }
    let mut changed = response();
    changed.insert("valid_until_ts", NOW + 2000);
    assert_eq!(check(changed), Err(KeyError::SelfSignature(SignatureError::Wrong)));
    let mut unsigned = response();
    unsigned.remove("signatures");
    assert_eq!(check(unsigned), Err(KeyError::SelfSignature(SignatureError::Missing)));

    // A key that has not signed is not taken over; unknown algorithms are skipped.
    let claimed = Object::from_iter([("key", other_key("x").public_base64())]);
    let object = resigned(|object| {
        object.object_at("verify_keys").insert("ed25519:x", claimed.clone());
        object.object_at("verify_keys").insert("rsa:1", Value::Null);
    });
    assert_eq!(check(object), Ok(2));
    let many = (0..201).map(|at| (format!("ed25519:{at}"), claimed.clone())).collect::<Object>();
    assert_eq!(check(resigned(|object| drop(object.insert("verify_keys", many)))), Err(KeyError::TooMany));
    let no_time = Object::from_iter([("ed25519:o", claimed)]);
    let object = resigned(|object| drop(object.insert("old_verify_keys", no_time)));
    assert_eq!(check(object), Err(KeyError::Format("old_verify_keys")));
    assert_eq!(check(resigned(|object| drop(object.remove("old_verify_keys")))), Ok(1));
}

#[test]
fn validity_ends_after_seven_days_whatever_the_server_says() {
    let key = |valid_until_ts| KnownKey {
        key: signing_key().verify_key(),
        valid_until_ts,
        expired_ts: None,
        fetched_ts: NOW,
    };
    assert!(key(NOW + 5).is_valid_now(NOW + 5) && !key(NOW + 5).is_valid_now(NOW + 6));
    assert!(key(i64::MAX).is_valid_now(NOW + MAX_VALIDITY_MS));
    assert!(!key(i64::MAX).is_valid_now(NOW + MAX_VALIDITY_MS + 1));
}

#[test]
fn a_ring_keeps_the_key_that_is_valid_longer_and_follows_a_change() {
    let known = |key: &SigningKey, valid_until_ts| KnownKey {
        key: key.verify_key(),
        valid_until_ts,
        expired_ts: None,
        fetched_ts: NOW,
    };
    let mut ring = KeyRing::new();
    ring.insert("a", "ed25519:1", known(&signing_key(), NOW + 10));
    ring.insert("a", "ed25519:1", known(&signing_key(), NOW + 5));
    assert_eq!(ring.get("a", "ed25519:1").unwrap().valid_until(), NOW + 10);
    ring.insert("a", "ed25519:1", known(&other_key("1"), NOW + 5));
    assert_eq!(ring.get("a", "ed25519:1").unwrap().key, other_key("1").verify_key());
}

#[test]
fn notaries_must_sign_and_so_must_the_origin() {
    let notary = other_key("n");
    let mut ring = KeyRing::new();
    let known = KnownKey { key: notary.verify_key(), valid_until_ts: NOW + 10, expired_ts: None, fetched_ts: NOW };
    ring.insert("notary", "ed25519:n", known);

    let mut good = response();
    notary.sign_object(&mut good, "notary");
    let not_by_notary = response();
    let mut not_by_origin = response();
    not_by_origin.remove("signatures");
    notary.sign_object(&mut not_by_origin, "notary");
    let mut forged = response();
    signing_key().sign_object(&mut forged, "notary");
    forged.object_at("signatures").object_at("notary").insert("ed25519:n", "AAAA");

    let entries = [good, not_by_notary, not_by_origin, forged].map(Value::from);
    let mut entries = Vec::from(entries);
    entries.push(Value::Null);
    let body = Object::from_iter([("server_keys", entries)]);
    let mut outcomes = check_notary_response(body.clone(), "notary", &ring, NOW).unwrap();
    let good = outcomes.remove(0).unwrap();
    assert_eq!((&*good.server_name, good.keys.len()), ("origin", 2));
    let errors: Vec<_> = outcomes.into_iter().map(Result::unwrap_err).collect();
    assert_eq!(
        errors,
        [
            KeyError::NotarySignature(SignatureError::Missing),
            KeyError::SelfSignature(SignatureError::Missing),
            KeyError::NotarySignature(SignatureError::Malformed),
            KeyError::Format("server_keys"),
        ]
    );
    let expired = check_notary_response(body, "notary", &ring, NOW + 11).unwrap();
    assert!(expired.iter().all(Result::is_err), "the notary's key is no longer valid");
    assert!(check_notary_response(Object::new(), "notary", &ring, NOW).is_err());
}

#[test]
fn old_keys_are_read_as_they_are_configured() {
    let text = format!(
        r#"{{"old_verify_keys":{{"ed25519:a":{{"expired_ts":7,"key":"{}"}}}}}}"#,
        other_key("a").public_base64()
    );
    let object = json::parse(text.as_bytes()).unwrap().into_object().unwrap();
    let keys = read_old_keys(&object).unwrap();
    assert_eq!((&*keys[0].0, keys[0].1.expired_ts), ("ed25519:a", 7));
    assert_eq!(read_old_keys(&Object::new()).unwrap(), []);
}
