//! Who must have signed an event, and with keys valid when.

use curve25519_dalek::{
    Scalar,
    constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION},
};
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use sha2::{Digest, Sha512};
use verge::matrix::{
    base64,
    event::{PduError, ReceivedPdu, hash_and_sign},
    hashes,
    json::{self, Object},
    room_version::RoomVersion,
    server_keys::{KeyRing, KnownKey, MAX_VALIDITY_MS},
    signing::{SigningKey, SigningKeyError, VerifyKey},
};

use crate::generate::{SEED, signing_key};

const SENT: i64 = 1_000_000_000_000;

fn event(version: &RoomVersion, members: &str) -> Object {
    let text = format!(
        r#"{{"auth_events":[],"content":{{}},"depth":1,"event_id":"$e:ids","hashes":{{}},"origin_server_ts":{SENT},
        "prev_events":[],"room_id":"!r:room","sender":"@u:sender","signatures":{{}},"type":"m.room.member",{members}}}"#
    );
    let mut event = json::parse(text.as_bytes()).unwrap().into_object().unwrap();
    if !matches!(version.id, "1" | "2") {
        event.remove("event_id");
    }
    event
}

fn ring(servers: &[&str]) -> KeyRing {
    let mut keys = KeyRing::new();
    for server in servers {
        keys.insert(server, "ed25519:1", known(i64::MAX, None, SENT));
    }
    keys
}

fn known(valid_until_ts: i64, expired_ts: Option<i64>, fetched_ts: i64) -> KnownKey {
    KnownKey { key: signing_key().verify_key(), valid_until_ts, expired_ts, fetched_ts }
}

#[test]
fn the_servers_that_the_spec_names_must_have_signed() {
    let join = r#""content":{"membership":"join"}"#;
    let restricted = r#""content":{"membership":"join","join_authorised_via_users_server":"@b:authoriser"}"#;
    let same = r#""content":{"membership":"join","join_authorised_via_users_server":"@b:sender"}"#;
    let invite = r#""content":{"membership":"invite"}"#;
    let third_party = r#""content":{"membership":"invite","third_party_invite":{}}"#;
    // Rule 4.2 is about every membership. Synapse looks at joins only.
    let leave = r#""content":{"membership":"leave","join_authorised_via_users_server":"@b:authoriser"}"#;
    let authorised_invite = r#""content":{"membership":"invite","third_party_invite":{},
        "join_authorised_via_users_server":"@b:authoriser"}"#;
    let message = r#""type":"m.room.message","content":{"membership":"invite","third_party_invite":{}}"#;
    for version in RoomVersion::all() {
        let early = matches!(version.id, "1" | "2");
        for (members, expected) in [
            (join, vec!["sender"]),
            (restricted, if version.restricted { vec!["sender", "authoriser"] } else { vec!["sender"] }),
            (same, vec!["sender"]),
            (leave, if version.restricted { vec!["sender", "authoriser"] } else { vec!["sender"] }),
            (authorised_invite, if version.restricted { vec!["authoriser"] } else { vec![] }),
            (invite, vec!["sender"]),
            (third_party, vec![]),
            (message, vec!["sender"]),
        ] {
            let mut expected = expected;
            if early {
                expected.push("ids");
            }
            let mut event = event(version, members);
            hash_and_sign(&mut event, version, "nobody", &signing_key());
            for server in &expected {
                hash_and_sign(&mut event, version, server, &signing_key());
            }
            let received = || ReceivedPdu::from_value(event.clone().into(), version).unwrap();
            let mut required = received().required_servers().into_iter().map(str::to_owned).collect::<Vec<_>>();
            required.sort();
            let mut sorted = expected.clone();
            sorted.sort_unstable();
            assert_eq!(required, sorted, "{version} {members}");
            assert!(received().verify(&ring(&expected)).is_ok(), "{version} {members}");
            for missing in &expected {
                let others: Vec<_> = expected.iter().copied().filter(|server| server != missing).collect();
                let received = received();
                assert_eq!(received.keys_to_fetch(&ring(&others)), [(*missing, vec!["ed25519:1"])]);
                assert_eq!(received.verify(&ring(&others)).unwrap_err(), PduError::NotSigned((*missing).into()));
            }
        }
    }
}

/// The server of the event id must sign "if it differs from the originating server", and that one need not sign a third-party
/// invite. ruma asks the server of the id all the same.
#[test]
fn an_id_of_the_senders_server_asks_for_no_signature() {
    for version in RoomVersion::all().iter().filter(|version| matches!(version.id, "1" | "2")) {
        let mut event = event(version, r#""content":{"membership":"invite","third_party_invite":{}}"#);
        event.insert("event_id", "$e:sender");
        hash_and_sign(&mut event, version, "nobody", &signing_key());
        let received = ReceivedPdu::from_value(event.clone().into(), version).unwrap();
        assert_eq!(received.required_servers(), [""; 0]);
        assert!(received.verify(&ring(&[])).is_ok());
        let theirs = serde_json::from_str(&event.to_text()).unwrap();
        let rules = ruma_common::RoomVersionId::try_from(version.id).unwrap().rules().unwrap();
        let asked = ruma_signatures::required_server_signatures_to_verify_event(&theirs, &rules.signatures).unwrap();
        assert_eq!(asked.iter().map(|server| server.as_str()).collect::<Vec<_>>(), ["sender"]);
    }
}

/// A hash that is no base64 is not equal to the right one, so the event is redacted. Synapse drops it.
#[test]
fn a_malformed_content_hash_redacts_the_event() {
    for version in RoomVersion::all() {
        for hash in ["not base64!", "A", ""] {
            let mut event = event(version, r#""type":"m.room.message","content":{"body":"x"}"#);
            event.object_at("hashes").insert("sha256", hash);
            let mut signed = verge::matrix::redaction::redact(&event, version);
            for server in ["sender", "ids"] {
                signing_key().sign_object(&mut signed, server);
            }
            event.insert("signatures", signed.get("signatures").unwrap().clone());
            let received = ReceivedPdu::from_value(event.into(), version).unwrap();
            assert_eq!(
                received.verify(&ring(&["sender", "ids"])).unwrap().json(),
                signed.to_text(),
                "{version} {hash}"
            );
        }
    }
}

/// As Synapse reads them, which takes both alphabets in one text. What else Python passes over is no base64 here.
#[test]
fn hashes_signatures_and_keys_are_read_in_both_alphabets() {
    let url_safe = |text: &str| text.replace('+', "-").replace('/', "_");
    for version in RoomVersion::all() {
        // Until both have what the alphabets write otherwise, whatever the version.
        for number in 0.. {
            let members = format!(r#""type":"m.room.message","content":{{"body":"{number}"}}"#);
            let mut event = event(version, &members);
            let hash = base64::encode(&hashes::content_hash(&event));
            event.object_at("hashes").insert("sha256", url_safe(&hash));
            let mut signed = verge::matrix::redaction::redact(&event, version);
            for server in ["sender", "ids"] {
                signing_key().sign_object(&mut signed, server);
            }
            let signatures = signed.get("signatures").unwrap();
            let signature = signatures.get("sender").unwrap().get("ed25519:1").unwrap().as_str().unwrap().to_owned();
            if hash == url_safe(&hash) || signature == url_safe(&signature) {
                continue;
            }
            let mut verify = |signature: &str| {
                for server in ["sender", "ids"] {
                    event.object_at("signatures").object_at(server).insert("ed25519:1", signature);
                }
                let received = ReceivedPdu::from_value(event.clone().into(), version).unwrap();
                received.verify(&ring(&["sender", "ids"])).map(|taken| taken.json() == event.to_text())
            };
            assert_eq!(verify(&url_safe(&signature)), Ok(true), "{version}");
            assert_eq!(verify(&signature.replace('+', "-")), Ok(true), "{version}");
            for between in [" ", "\n", "!"] {
                let (start, end) = signature.split_at(40);
                assert!(verify(&format!("{start}{between}{end}")).is_err(), "{version}");
            }
            break;
        }
    }
    let key = signing_key().verify_key();
    assert_eq!(VerifyKey::from_base64(&url_safe(&key.to_base64())), Some(key));
}

#[test]
fn a_malformed_authorising_user_drops_the_event() {
    for version in RoomVersion::all() {
        for user in ["1", "\"b\"", "\"@b\"", "null"] {
            let members = format!(r#""content":{{"membership":"join","join_authorised_via_users_server":{user}}}"#);
            let outcome = ReceivedPdu::from_value(event(version, &members).into(), version);
            assert_eq!(outcome.is_err(), version.restricted, "{version} {user}");
        }
    }
}

#[test]
fn keys_verify_only_what_was_sent_while_they_were_valid() {
    let day = MAX_VALIDITY_MS / 7;
    for version in RoomVersion::all() {
        let mut event = event(version, r#""content":{"membership":"join"},"event_id":"$e:sender""#);
        if !matches!(version.id, "1" | "2") {
            event.remove("event_id");
        }
        hash_and_sign(&mut event, version, "sender", &signing_key());
        let ignored = matches!(version.id, "1" | "2" | "3" | "4");
        for (key, valid) in [
            (known(SENT, None, SENT), true),
            (known(SENT - 1, None, SENT), ignored),
            (known(i64::MAX, None, SENT - 7 * day), true),
            (known(i64::MAX, None, SENT - 7 * day - 1), ignored),
            (known(0, Some(SENT + 1), SENT + 100 * day), true),
            // Versions 1 to 4 are told to ignore `valid_until_ts`. That a key of `old_verify_keys` verifies nothing that was
            // sent after it expired is said of all versions. Synapse does not look at either in versions 1 to 4.
            (known(i64::MAX, Some(SENT - 1), SENT), false),
        ] {
            let mut keys = KeyRing::new();
            keys.insert("sender", "ed25519:1", key.clone());
            let received = ReceivedPdu::from_value(event.clone().into(), version).unwrap();
            assert_eq!(received.keys_to_fetch(&keys).is_empty(), valid, "{version} {key:?}");
            assert_eq!(received.verify(&keys).is_ok(), valid, "{version} {key:?}");
        }
    }
}

#[test]
fn signing_keys_are_read_from_synapses_line_and_never_shown() {
    let line = format!("ed25519 a_AbCd {SEED}");
    let key = SigningKey::from_line(&format!("{line}\n")).unwrap();
    assert_eq!(key.key_id(), "ed25519:a_AbCd");
    // From the spec's seed; the public key as PyNaCl derives it.
    assert_eq!(key.public_base64(), "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI");
    assert!(!format!("{key:?}").contains(SEED) && !format!("{key:#?}").contains("60"));
    for (line, error) in [
        ("", SigningKeyError::Shape),
        ("ed25519 a_AbCd", SigningKeyError::Shape),
        (&format!("{line} more"), SigningKeyError::Shape),
        (&format!("rsa a {SEED}"), SigningKeyError::Algorithm),
        (&format!("ed25519 a-b {SEED}"), SigningKeyError::Version),
        ("ed25519 a AAAA", SigningKeyError::Seed),
        ("ed25519 a not!base64", SigningKeyError::Seed),
    ] {
        assert_eq!(SigningKey::from_line(line).unwrap_err(), error);
    }
}

#[test]
fn keys_that_libsodium_refuses_are_refused() {
    let key = |bytes: [u8; 32]| VerifyKey::from_base64(&base64::encode(&bytes));
    // Small order: the identity, and the point of order 2.
    let mut identity = [0; 32];
    identity[0] = 1;
    assert_eq!(key(identity), None);
    let mut minus_one = [0xff; 32];
    (minus_one[0], minus_one[31]) = (0xec, 0x7f);
    assert_eq!(key(minus_one), None);
    // y = 3 written as 3 + p.
    let mut not_canonical = [0xff; 32];
    (not_canonical[0], not_canonical[31]) = (0xf0, 0x7f);
    assert_eq!(key(not_canonical), None);
    assert!(VerifyKey::from_base64("AAAA").is_none() && VerifyKey::from_base64("").is_none());
}

/// Signatures whose R is of small order, which `verify` takes and `verify_strict` and libsodium do not.
#[test]
fn signatures_that_libsodium_refuses_are_refused() {
    let secret = Scalar::from(1_234_567_u64);
    // A key of mixed order: with it the R of a signature can be any point of small order.
    let public = (ED25519_BASEPOINT_POINT * secret + EIGHT_TORSION[1]).compress();
    let dalek = VerifyingKey::from_bytes(public.as_bytes()).unwrap();
    let ours = VerifyKey::from_base64(&base64::encode(public.as_bytes())).unwrap();
    for point in EIGHT_TORSION {
        let r = point.compress();
        let (text, signature) = (0..)
            .find_map(|number: u64| {
                let text = number.to_string();
                let hash = Sha512::new().chain_update(r.as_bytes()).chain_update(public.as_bytes()).chain_update(&text);
                let challenge = Scalar::from_bytes_mod_order_wide(&hash.finalize().into());
                let signature = Signature::from_components(*r.as_bytes(), (challenge * secret).to_bytes());
                dalek.verify(text.as_bytes(), &signature).is_ok().then_some((text, signature))
            })
            .unwrap();
        assert!(dalek.verify_strict(text.as_bytes(), &signature).is_err());
        assert!(ours.verify_text(&text, &base64::encode(&signature.to_bytes())).is_err(), "{:?}", r.as_bytes());
    }
}

/// Whatever else is done to a signature or its key, there is the same verdict as that of `verify_strict`.
#[test]
fn damaged_signatures_are_judged_as_strictly() {
    let ours = signing_key().verify_key();
    let dalek = VerifyingKey::from_bytes(&base64::decode(&ours.to_base64()).unwrap().try_into().unwrap()).unwrap();
    let signature = base64::decode(&signing_key().sign_text("text")).unwrap();
    // The order of the group, which added to s gives a second form of the same signature.
    let order = (Scalar::ZERO - Scalar::ONE).to_bytes();
    let mut second_form = signature.clone();
    let mut carry = 1;
    for (byte, more) in second_form[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(more) + carry;
        (*byte, carry) = ((sum & 0xff) as u8, sum >> 8);
    }
    let mut signatures = vec![signature.clone(), second_form];
    for bit in 0..512 {
        let mut damaged = signature.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        signatures.push(damaged);
    }
    for (number, signature) in signatures.iter().enumerate() {
        let strict = Signature::from_slice(signature).is_ok_and(|s| dalek.verify_strict(b"text", &s).is_ok());
        assert_eq!(strict, number == 0);
        assert_eq!(ours.verify_text("text", &base64::encode(signature)).is_ok(), strict, "{number}");
    }
}
