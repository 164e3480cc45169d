//! Other servers' keys, asked of us as their notary.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::{Method, StatusCode};
use ruma_common::CanonicalJsonValue;
use ruma_federation_api::discovery::{get_remote_server_keys, get_remote_server_keys_batch};
use ruma_signatures::Ed25519KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use verge::router::json_response;

use crate::common::{
    network::{Homeserver, World},
    peer::{Peer, assert_signed_json, request, send},
    ruma::read_answer,
    sqlite::Sqlite,
};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

fn get(world: &World, a: &Homeserver, target: &str) -> (u16, Value) {
    send(world, a, request(Method::GET, &format!("/_matrix/key/v2/query/{target}"), &[], ""))
}

fn post(world: &World, a: &Homeserver, body: &Value) -> (u16, Value) {
    send(world, a, request(Method::POST, "/_matrix/key/v2/query", &[], body.to_string()))
}

/// The names in an answer, which must be well-formed.
fn names((status, answer): &(u16, Value)) -> Vec<String> {
    assert_eq!(*status, 200, "{answer}");
    read_answer::<get_remote_server_keys_batch::v2::Response>(answer);
    read_answer::<get_remote_server_keys::v2::Response>(answer);
    answer["server_keys"].as_array().unwrap().iter().map(|keys| keys["server_name"].as_str().unwrap().into()).collect()
}

fn asked(peer: &Peer) -> usize {
    peer.received.borrow().iter().filter(|request| request.uri().path() == "/_matrix/key/v2/server").count()
}

fn own_public_key(world: &World, a: &Homeserver) -> String {
    let keys = send(world, a, request(Method::GET, "/_matrix/key/v2/server", &[], "")).1;
    keys["verify_keys"]["ed25519:auto"]["key"].as_str().unwrap().to_owned()
}

#[test]
fn keys_are_given_with_both_signatures() {
    let world = World::new();
    let a = world.server("a.example");
    let peer = Peer::new(&world, "peer.example");
    let answer = get(&world, &a, "peer.example");
    assert_eq!(names(&answer), ["peer.example"]);
    let keys = &answer.1["server_keys"][0];
    let public = STANDARD_NO_PAD.encode(peer.public_key());
    assert_eq!(keys["verify_keys"]["ed25519:peer"]["key"], public);
    // ruma wants a key for each signature that there is.
    let signed_by = |server: &str| {
        let mut keys = keys.clone();
        keys["signatures"].as_object_mut().unwrap().retain(|name, _| name == server);
        keys
    };
    assert_signed_json(&signed_by("peer.example"), "peer.example", "ed25519:peer", &public);
    assert_signed_json(&signed_by("a.example"), "a.example", "ed25519:auto", &own_public_key(&world, &a));
    // Our own are given, too, for whoever asks; nobody need be asked for them.
    let own = get(&world, &a, "a.example");
    assert_eq!(names(&own), ["a.example"]);
    assert_signed_json(&own.1["server_keys"][0], "a.example", "ed25519:auto", &own_public_key(&world, &a));
}

#[test]
fn a_server_is_asked_again_only_when_its_keys_must_be_valid_for_longer() {
    let world = World::new();
    let a = world.server("a.example");
    let peer = Peer::new(&world, "peer.example");
    let until = |ms: i64| format!("peer.example?minimum_valid_until_ts={}", world.now_ms() + ms);
    assert_eq!(names(&get(&world, &a, "peer.example")), ["peer.example"]);
    assert_eq!(names(&get(&world, &a, &until(HOUR - MINUTE))), ["peer.example"]);
    assert_eq!(asked(&peer), 1);
    peer.key_validity_ms.set(4 * HOUR);
    world.advance(2 * MINUTE);
    let answer = get(&world, &a, &until(3 * HOUR));
    assert_eq!(answer.1["server_keys"][0]["valid_until_ts"], world.now_ms() + 4 * HOUR);
    assert_eq!(asked(&peer), 2);
    // What cannot be had is no reason to ask more than once a minute.
    for _ in 0..5 {
        assert_eq!(names(&get(&world, &a, &until(5 * HOUR))), ["peer.example"]);
    }
    assert_eq!(asked(&peer), 2);
    world.advance(2 * MINUTE);
    get(&world, &a, &until(5 * HOUR));
    assert_eq!(asked(&peer), 3);
}

#[test]
fn keys_of_a_server_that_is_gone_are_given_as_they_were() {
    let world = World::new();
    let a = world.server("a.example");
    let peer = Peer::new(&world, "peer.example");
    // Somebody else's request had us learn them.
    let target = "/_matrix/federation/v1/query/profile?user_id=%40nobody%3Aa.example";
    assert_eq!(peer.get(&a, target).0, 404);
    world.disconnect("peer.example");
    world.advance(30 * 24 * HOUR);
    let body = json!({ "server_keys": { "peer.example": { "ed25519:peer": {} }, "nobody.example": {} } });
    assert_eq!(names(&post(&world, &a, &body)), ["peer.example"]);
    // Without any of its own there is nothing to give.
    assert!(names(&get(&world, &a, "nobody.example")).is_empty());
}

#[test]
fn a_key_that_its_server_no_longer_lists_is_given_beside_the_new_one() {
    let world = World::new();
    let a = world.server("a.example");
    let peer = Peer::new(&world, "peer.example");
    let publishes = |id: &str| {
        let mut document = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        document.extend([id.as_bytes()[0]; 32]);
        let key = Ed25519KeyPair::from_der(&document, id.to_owned()).unwrap();
        let (world, name) = (world.clone(), format!("ed25519:{id}"));
        peer.answers(move |request| {
            let keys = json!({
                "server_name": "peer.example", "valid_until_ts": world.now_ms() + HOUR, "old_verify_keys": {},
                "verify_keys": { name.as_str(): { "key": STANDARD_NO_PAD.encode(key.public_key()) }, "other:1": { "key": "" } },
            });
            let CanonicalJsonValue::Object(mut keys) = keys.try_into().unwrap() else { unreachable!() };
            ruma_signatures::sign_json("peer.example", &key, &mut keys).unwrap();
            let asks = request.uri().path() == "/_matrix/key/v2/server";
            asks.then(|| json_response(StatusCode::OK, &serde_json::to_value(keys).unwrap()))
        });
    };
    let lists = |criteria: Value| {
        let (status, answer) = post(&world, &a, &json!({ "server_keys": { "peer.example": criteria } }));
        assert_eq!(status, 200, "{answer}");
        let of = |keys: &Value| keys["verify_keys"].as_object().unwrap().keys().next().unwrap().clone();
        answer["server_keys"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    publishes("1");
    assert_eq!(lists(json!({})), ["ed25519:1"]);
    publishes("2");
    // Whoever verifies an old event asks for the old key, until later than it was ever valid.
    let old = || json!({ "ed25519:1": { "minimum_valid_until_ts": world.now_ms() + 2 * HOUR } });
    for _ in 0..3 {
        world.advance(2 * MINUTE);
        assert_eq!(lists(old()), ["ed25519:2", "ed25519:1"]);
    }
    assert_eq!(lists(json!({ "ed25519:2": {} })), ["ed25519:2"]);
    assert_eq!(a.database.rows("SELECT slot FROM key_responses").len(), 2);
    // Where another name has taken the newer one's place, what there was before is not taken for what there is.
    a.database.rows("DELETE FROM key_responses WHERE slot < 4096");
    world.advance(2 * MINUTE);
    assert_eq!(lists(json!({})), ["ed25519:2"]);
}

/// Whoever has servers of their own has us keep long responses of them, and then asks for all at once.
#[test]
fn no_more_is_answered_than_there_is_memory_for() {
    let world = World::new();
    let a = world.server("a.example");
    let names: Vec<String> = (0..500).map(|n| format!("n{n}.example")).collect();
    let until = world.now_ms() + HOUR;
    let mut kept = std::collections::BTreeSet::new();
    for name in &names {
        let digest = Sha256::digest(name);
        let slot = i64::from(u16::from_be_bytes([digest[0], digest[1]]) % 4096);
        for (slot, id) in [(slot, "ed25519:2"), (slot + 4096, "ed25519:1")] {
            let keys = json!({ "server_name": name, "verify_keys": { id: { "key": "x".repeat(15_000) } } });
            a.database
                .rows(&format!("INSERT OR REPLACE INTO key_responses VALUES ({slot}, '{name}', '{keys}', {until}, 0)"));
        }
        kept.insert(slot);
    }
    assert!(kept.len() > 450);
    let both = json!({ "ed25519:1": {}, "ed25519:2": {} });
    let all: Value = names.iter().map(|name| (name.clone(), both.clone())).collect::<serde_json::Map<_, _>>().into();
    let response = world.run(a.handle(request(
        Method::POST,
        "/_matrix/key/v2/query",
        &[],
        json!({ "server_keys": all }).to_string(),
    )));
    assert_eq!(response.status(), 200);
    assert!((1_500_000..3_000_000).contains(&response.body().len()), "{}", response.body().len());
}

#[test]
fn many_servers_are_asked_about_at_once() {
    let world = World::new();
    let a = world.server("a.example");
    let peers: Vec<_> = ["p1.example", "p2.example"].iter().map(|name| Peer::new(&world, name)).collect();
    assert_eq!(post(&world, &a, &json!({ "server_keys": {} })), (200, json!({ "server_keys": [] })));
    let both = json!({ "server_keys": { "p1.example": {}, "p2.example": { "ed25519:peer": { "minimum_valid_until_ts": 5 } } } });
    assert_eq!(names(&post(&world, &a, &both)), ["p1.example", "p2.example"]);
    assert_eq!(names(&post(&world, &a, &both)), ["p1.example", "p2.example"]);
    assert_eq!(peers.iter().map(|peer| asked(peer)).collect::<Vec<_>>(), [1, 1]);
    // A key that it has not is looked for, and the answer holds what there is.
    world.advance(2 * MINUTE);
    let other = json!({ "server_keys": { "p1.example": { "ed25519:other": {} } } });
    assert_eq!(names(&post(&world, &a, &other)), ["p1.example"]);
    assert_eq!(asked(&peers[0]), 2);
}

#[test]
fn what_is_no_question_is_refused() {
    let world = World::new();
    let a = world.server("a.example");
    let refused = |(status, answer): (u16, Value), errcode: &str| {
        assert_eq!((status, answer["errcode"].as_str()), (400, Some(errcode)), "{answer}");
    };
    refused(get(&world, &a, "not%20a%20name"), "M_INVALID_PARAM");
    refused(get(&world, &a, "peer.example?minimum_valid_until_ts=soon"), "M_INVALID_PARAM");
    refused(post(&world, &a, &json!({})), "M_BAD_JSON");
    refused(post(&world, &a, &json!([])), "M_BAD_JSON");
    refused(post(&world, &a, &json!({ "server_keys": [] })), "M_BAD_JSON");
    refused(post(&world, &a, &json!({ "server_keys": { "p.example": [] } })), "M_BAD_JSON");
    refused(post(&world, &a, &json!({ "server_keys": { "p.example": { "ed25519:1": 1 } } })), "M_BAD_JSON");
    let wrong = json!({ "server_keys": { "p.example": { "ed25519:1": { "minimum_valid_until_ts": "x" } } } });
    refused(post(&world, &a, &wrong), "M_BAD_JSON");
    refused(send(&world, &a, request(Method::POST, "/_matrix/key/v2/query", &[], "{")), "M_NOT_JSON");
    let long = json!({ "server_keys": {}, "x": "x".repeat(200_000) });
    assert_eq!(post(&world, &a, &long).0, 413);
    assert!(names(&post(&world, &a, &json!({ "server_keys": { "no name": {} } }))).is_empty());
}

#[test]
fn keys_that_their_server_did_not_sign_are_not_passed_on() {
    let world = World::new();
    let a = world.server("a.example");
    let peer = Peer::new(&world, "peer.example");
    let valid_until_ts = world.now_ms() + HOUR;
    for server_name in ["peer.example", "other.example"] {
        peer.answers(move |request| {
            let unsigned = json!({ "server_name": server_name, "valid_until_ts": valid_until_ts, "old_verify_keys": {},
                "verify_keys": { "ed25519:1": { "key": "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI" } } });
            (request.uri().path() == "/_matrix/key/v2/server").then(|| json_response(StatusCode::OK, &unsigned))
        });
        assert!(names(&get(&world, &a, "peer.example")).is_empty());
        world.advance(2 * MINUTE);
    }
    assert_eq!(asked(&peer), 2);
    assert!(a.database.rows("SELECT server FROM key_responses").is_empty());
}

#[test]
fn strangers_have_us_ask_only_so_many_servers_and_keep_only_so_much() {
    let world = World::new();
    let a = world.server_over("a.example", Sqlite::in_memory(), &[("NOTARY_RATE", "30/60")]);
    let questions = || world.traffic().iter().filter(|sent| sent.line.contains("/key/v2/server")).count();
    let names: Vec<String> = (0..200).map(|n| format!("n{n}.example")).collect();
    let _peers: Vec<_> = names.iter().map(|name| Peer::new(&world, name)).collect();
    let all: Value = names.iter().map(|name| (name.clone(), json!({}))).collect::<serde_json::Map<_, _>>().into();
    for _ in 0..5 {
        assert_eq!(post(&world, &a, &json!({ "server_keys": all })).0, 200);
    }
    assert_eq!(questions(), 30);
    assert!(a.database.rows("SELECT server FROM key_responses").len() <= 30);
    // Another's rate is another's.
    let mut other = request(Method::GET, "/_matrix/key/v2/query/n150.example", &[], "");
    other.headers_mut().insert("cf-connecting-ip", "203.0.113.9".parse().unwrap());
    assert_eq!(self::names(&send(&world, &a, other)), ["n150.example"]);
    // However many servers there are, the places are as many as they are; a name takes the place of another.
    let keep = |name: &str| {
        let target = format!("{name}?minimum_valid_until_ts=0");
        world.advance(2_000);
        get(&world, &a, &target)
    };
    let mut slots = std::collections::BTreeSet::new();
    for name in &names {
        keep(name);
        slots.insert(a.database.rows(&format!("SELECT slot FROM key_responses WHERE server = '{name}'")));
    }
    assert!(a.database.rows("SELECT slot FROM key_responses WHERE slot NOT BETWEEN 0 AND 4095").is_empty());
    assert!(slots.len() > 150);
}

#[test]
fn requests_at_the_same_time_ask_once() {
    let world = World::new();
    let a = world.server("a.example");
    let peer = Peer::new(&world, "peer.example");
    world.interleave();
    let ask = || a.handle(request(Method::GET, "/_matrix/key/v2/query/peer.example", &[], ""));
    let answers = world.run(futures_util::future::join_all((0..6).map(|_| ask())));
    for answer in answers {
        let body: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(names(&(answer.status().as_u16(), body)), ["peer.example"]);
    }
    assert_eq!(asked(&peer), 1);
}
