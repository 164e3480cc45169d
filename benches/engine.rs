//! The engine beside ruma, on the same inputs in the same run: `verge` and `ruma` of each group. State resolution has a
//! bench of its own. `npm run bench:engine` runs both and prints one table.
//!
//! What each side does:
//!
//! - **canonical JSON**: a text into a value, and that into its canonical text. `json::parse` and `Value::to_text`; ruma
//!   reads a `CanonicalJsonObject` and writes it, with `serde_json`. The texts are not sorted.
//! - **reference hash**: of a parsed event. `id_of_malformed`, which also makes the checked event ID of it, and
//!   `ruma_signatures::reference_hash`.
//! - **sign**: content hash and signature, both added to a parsed event. `hash_and_sign` and
//!   `ruma_signatures::hash_and_sign_event`.
//! - **verify**: one signature and the content hash of a parsed event. `ruma_signatures::verify_event` does this and no
//!   more. `ReceivedPdu::from_value` and `ReceivedPdu::verify` also check the event's format and sizes and make the
//!   event ID, and they refuse the malleable signatures that ruma takes (`verify_strict`). Their keys
//!   are parsed once, ruma parses its key for each signature.
//! - **receive**: from the text of a PDU to a verified event with its ID. `ReceivedPdu::parse` and `ReceivedPdu::verify`;
//!   ruma reads a `CanonicalJsonObject`, and then `reference_hash` and `verify_event`.
//! - **auth check**: the rules about the list of auth events, and those about the state, once each.
//!   `check_auth_event_list` and `check`; `check_state_independent_auth_rules` and `check_state_dependent_auth_rules`.
//!   Both get their events ready-made, ours parsed and ruma's as its trait asks for them (content as text), and find
//!   them in a list of five. An event of the size that is allowed lists some 2,000 users; 10,000 is beyond that.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../tests/common/ruma.rs"]
#[allow(dead_code, unreachable_pub)]
mod by_ruma;
mod inputs;

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use by_ruma::{RumaEvent, rules};
use criterion::{BatchSize, Bencher, Criterion, criterion_group, criterion_main};
use inputs::{ADMIN, MEMBER, NEWCOMER, Room, SEED, SERVER, as_sent, key_ring, power_levels, signing_key, version};
use ruma_common::{CanonicalJsonObject, EventId, serde::Base64};
use ruma_events::StateEventType;
use ruma_signatures::{Ed25519KeyPair, PublicKeyMap, Verified};
use ruma_state_res::{Event as _, check_state_dependent_auth_rules, check_state_independent_auth_rules};
use serde_json::json;
use verge::matrix::{
    base64,
    event::{Event, ReceivedPdu, hash_and_sign, id_of_malformed},
    json::{self, Object, Value},
};

fn canonical_json(criterion: &mut Criterion) {
    let room = Room::new(version("12"), 1, "public");
    for (name, event) in [
        ("membership", membership(&room)),
        ("message of 1 KB", room.message(1_000, 0)),
        ("message of 10 KB", room.message(10_000, 0)),
        ("message of 60 KB", room.message(60_000, 0)),
        ("power levels of 10 KB", levels_of(&room, 330)),
        ("power levels of 60 KB", levels_of(&room, 2_150)),
    ] {
        let text = as_sent(&event.into());
        let ours = || json::parse(black_box(text.as_bytes())).unwrap().to_text();
        let theirs = || {
            let value: CanonicalJsonObject = serde_json::from_str(black_box(&text)).unwrap();
            serde_json::to_string(&value).unwrap()
        };
        assert_eq!(ours(), theirs());
        compare(criterion, &format!("canonical JSON/{name}"), |b| b.iter(ours), |b| b.iter(theirs));
    }
}

fn reference_hash(criterion: &mut Criterion) {
    for version in ["10", "12"].map(version) {
        let (room, rules) = (Room::new(version, 1, "public"), rules(version));
        for (name, event) in [
            ("membership", membership(&room)),
            ("message of 1 KB", room.message(1_000, 0)),
            ("power levels of 60 KB", levels_of(&room, 2_150)),
        ] {
            let ruma_event = to_ruma(&event);
            let event = Value::from(event);
            let ours = || id_of_malformed(black_box(&event), version).unwrap();
            let theirs = || ruma_signatures::reference_hash(black_box(&ruma_event), &rules).unwrap();
            assert_eq!(ours().as_str(), format!("${}", theirs()));
            compare(criterion, &format!("reference hash/v{version}/{name}"), |b| b.iter(ours), |b| b.iter(theirs));
        }
    }
}

fn sign(criterion: &mut Criterion) {
    let (key, ruma_key) = (signing_key(), ruma_key());
    for version in ["10", "12"].map(version) {
        let rules = rules(version).redaction;
        let mut event = Room::new(version, 1, "public").message(1_000, 0);
        let mut ruma_event = to_ruma(&event);
        compare(
            criterion,
            &format!("sign/v{version}/message of 1 KB"),
            |b| b.iter(|| hash_and_sign(black_box(&mut event), version, SERVER, &key)),
            |b| {
                b.iter(|| {
                    let event = black_box(&mut ruma_event);
                    ruma_signatures::hash_and_sign_event(SERVER, &ruma_key, event, &rules).unwrap();
                });
            },
        );
        assert_eq!(event.to_text(), serde_json::to_string(&ruma_event).unwrap());
    }
}

fn verify(criterion: &mut Criterion) {
    let (keys, ruma_keys) = (key_ring(), ruma_keys());
    for version in ["10", "12"].map(version) {
        let (room, rules) = (Room::new(version, 1, "public"), rules(version));
        for count in [1, 50] {
            let events: Vec<Object> = (0..count).map(|number| room.message(1_000, number)).collect();
            let ruma_events: Vec<_> = events.iter().map(to_ruma).collect();
            let events: Vec<Value> = events.into_iter().map(Value::from).collect();
            let ours = |events: Vec<Value>| {
                for event in events {
                    black_box(ReceivedPdu::from_value(event, version).unwrap().verify(&keys).unwrap());
                }
            };
            let theirs = || {
                for event in black_box(&ruma_events) {
                    let verified = ruma_signatures::verify_event(&ruma_keys, event, &rules).unwrap();
                    assert_eq!(verified, Verified::All);
                }
            };
            compare(
                criterion,
                &format!("verify/v{version}/{count} of 1 KB"),
                |b| b.iter_batched(|| events.clone(), ours, BatchSize::SmallInput),
                |b| b.iter(theirs),
            );
        }
    }
}

fn receive(criterion: &mut Criterion) {
    let (keys, ruma_keys) = (key_ring(), ruma_keys());
    for version in ["10", "12"].map(version) {
        let rules = rules(version);
        let text = as_sent(&Room::new(version, 1, "public").message(1_000, 0).into());
        let ours = || ReceivedPdu::parse(black_box(text.as_bytes()), version).unwrap().verify(&keys).unwrap();
        let theirs = || {
            let event: CanonicalJsonObject = serde_json::from_str(black_box(&text)).unwrap();
            let id = ruma_signatures::reference_hash(&event, &rules).unwrap();
            (ruma_signatures::verify_event(&ruma_keys, &event, &rules).unwrap(), id, event)
        };
        compare(criterion, &format!("receive/v{version}/message of 1 KB"), |b| b.iter(ours), |b| b.iter(theirs));
    }
}

fn auth_check(criterion: &mut Criterion) {
    for version in ["6", "10", "11", "12"].map(version) {
        for (users, size) in [(1, "small"), (10_000, "10,000 users")] {
            let room = Room::new(version, users, "public");
            let join = json!({ "membership": "join", "displayname": "A newcomer" });
            let mut restricted_join = join.clone();
            restricted_join["join_authorised_via_users_server"] = json!(ADMIN);
            let mut changed = power_levels(users);
            changed["users"][MEMBER] = json!(25);
            let invite = json!({ "membership": "invite" });
            for (name, pdu) in [
                ("message", room.message(1_000, 0)),
                ("join", room.pdu("m.room.member", Some(NEWCOMER), NEWCOMER, join, 0)),
                ("invite", room.pdu("m.room.member", Some(NEWCOMER), ADMIN, invite, 0)),
                ("power level change", room.pdu("m.room.power_levels", Some(""), ADMIN, changed, 0)),
            ] {
                compare_auth_checks(criterion, &format!("auth check/v{version}/{name}, {size}"), &room, pdu);
            }
            if version.restricted {
                let room = Room::new(version, users, "restricted");
                let pdu = room.pdu("m.room.member", Some(NEWCOMER), NEWCOMER, restricted_join, 0);
                compare_auth_checks(criterion, &format!("auth check/v{version}/restricted join, {size}"), &room, pdu);
            }
        }
    }
}

fn compare_auth_checks(criterion: &mut Criterion, what: &str, room: &Room, pdu: Object) {
    let event = room.event(pdu);
    let (ruma_room, ruma_event) = (RoomOfRuma::new(room), RumaEvent::new(&event, false).unwrap());
    let ours = || {
        let event = black_box(&event);
        room.check_auth_events(event).and_then(|()| room.check_by_state(event))
    };
    let theirs = || ruma_room.check(black_box(&ruma_event));
    assert_eq!((ours(), theirs()), (Ok(()), Ok(())));
    compare(criterion, what, |b| b.iter(ours), |b| b.iter(theirs));
}

/// A [`Room`] as ruma takes it.
struct RoomOfRuma {
    rules: ruma_common::room_version_rules::AuthorizationRules,
    state: Vec<(StateEventType, RumaEvent)>,
}

impl RoomOfRuma {
    fn new(room: &Room) -> Self {
        let to_ruma = |event: &Event| (event.event_type().into(), RumaEvent::new(event, false).unwrap());
        Self { rules: rules(room.version).authorization, state: room.state.iter().map(to_ruma).collect() }
    }

    fn check(&self, event: &RumaEvent) -> Result<(), String> {
        let by_id = |id: &EventId| self.state.iter().map(|(_, event)| event).find(|event| event.event_id() == id);
        let by_key = |event_type: &StateEventType, state_key: &str| {
            // As ours, without comparing nothing with nothing: some processors take long for it.
            let same_key = |own: &str| if state_key.is_empty() { own.is_empty() } else { own == state_key };
            let mut state = self.state.iter();
            let found = state.find(|(t, event)| t == event_type && event.state_key().is_some_and(same_key));
            found.map(|(_, event)| event)
        };
        check_state_independent_auth_rules(&self.rules, event, by_id)?;
        check_state_dependent_auth_rules(&self.rules, event, by_key)
    }
}

/// Measures the two in one group.
fn compare(
    criterion: &mut Criterion,
    what: &str,
    verge: impl FnMut(&mut Bencher<'_>),
    ruma: impl FnMut(&mut Bencher<'_>),
) {
    let mut group = criterion.benchmark_group(what);
    group.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
    group.bench_function("verge", verge);
    group.bench_function("ruma", ruma);
    group.finish();
}

fn membership(room: &Room) -> Object {
    room.pdu("m.room.member", Some(MEMBER), MEMBER, json!({ "membership": "leave" }), 0)
}

fn levels_of(room: &Room, users: usize) -> Object {
    room.pdu("m.room.power_levels", Some(""), ADMIN, power_levels(users), 0)
}

fn to_ruma(event: &Object) -> CanonicalJsonObject {
    serde_json::from_str(&event.to_text()).unwrap()
}

fn ruma_key() -> Ed25519KeyPair {
    // A PKCS#8 document: a fixed head and the seed.
    let mut document = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    document.extend(base64::decode(SEED).unwrap());
    Ed25519KeyPair::from_der(&document, "1".to_owned()).unwrap()
}

fn ruma_keys() -> PublicKeyMap {
    let key = Base64::parse(signing_key().public_base64()).unwrap();
    BTreeMap::from([(SERVER.to_owned(), BTreeMap::from([("ed25519:1".to_owned(), key)]))])
}

criterion_group!(benches, canonical_json, reference_hash, sign, verify, receive, auth_check);
criterion_main!(benches);
