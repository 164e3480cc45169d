//! Differential tests against Synapse's own functions on generated events. Signatures are in `tests/differential`.

use serde_json::json;
use verge::matrix::{
    base64,
    event::{ReceivedPdu, hash_and_sign},
    hashes,
    json::Object,
    redaction,
    room_version::RoomVersion,
};

use crate::{
    common::synapse::{Answer, Synapse},
    generate::{self, Random, SERVER, signing_key},
};

const EVENTS: u64 = 150;

#[test]
fn ids_hashes_and_redaction_are_the_same() {
    let Some(mut synapse) = Synapse::start() else { return };
    for version in RoomVersion::all() {
        let events: Vec<Object> = (0..EVENTS).map(|seed| signed(version, seed)).collect();
        let answer = ask(&mut synapse, version, &events);
        for (position, event) in events.iter().enumerate() {
            let what = format!("version {version} seed {position}");
            let received = ReceivedPdu::from_value(event.clone().into(), version).unwrap();
            assert_eq!(received.event_id().as_str(), answer.text(position, "id"), "{what}");
            assert_eq!(base64::encode(&hashes::content_hash(event)), answer.text(position, "hash"), "{what}");
            assert_eq!(redaction::redact(event, version).to_text(), answer.text(position, "redacted"), "{what}");
        }
    }
}

/// The spec leaves three members out of the content hash. Synapse leaves out three more, which it once added itself; of an
/// event that has one at its top level the two servers redact one another's.
#[test]
fn the_content_hash_covers_what_synapse_leaves_out() {
    let Some(mut synapse) = Synapse::start() else { return };
    for version in RoomVersion::all() {
        let with = |member: &str| {
            let mut event = signed(version, 0);
            event.insert(member, 1);
            event
        };
        let events: Vec<Object> = ["age_ts", "destinations", "outlier", "other"].map(with).into();
        let answer = ask(&mut synapse, version, &events);
        for (position, event) in events.iter().enumerate() {
            let agrees = base64::encode(&hashes::content_hash(event)) == answer.text(position, "hash");
            assert_eq!(agrees, event.contains_key("other"), "version {version}");
        }
    }
}

fn signed(version: &RoomVersion, seed: u64) -> Object {
    let mut event = generate::event(&mut Random(seed), version);
    hash_and_sign(&mut event, version, SERVER, &signing_key());
    event
}

fn ask(synapse: &mut Synapse, version: &RoomVersion, events: &[Object]) -> Answer {
    let events: Vec<_> =
        events.iter().map(|event| json!({ "json": event.to_text(), "rejected": false, "state": [] })).collect();
    synapse.ask(&json!({ "version": version.id, "events": events, "resolve": [], "pdus": [] }))
}
