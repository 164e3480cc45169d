//! Keys of users, as other servers ask for them.

use std::collections::BTreeSet;

use ruma_common::api::{IncomingResponse, IncomingResponseExt};
use ruma_federation_api::{
    device::get_devices,
    keys::{claim_keys, get_keys},
};
use serde_json::{Value, json};
use verge::store::accounts::NewDevice;

use crate::{
    Scene,
    common::{
        devices::{CrossSigning, Device},
        homeserver::PASSWORD_HASH,
        peer::{Peer, encode},
    },
    scene,
};

/// Alice's device, with its keys.
pub(crate) fn device(scene: &Scene, one_time_keys: usize, has_fallback: bool) -> Device {
    let device = Device::new(scene.alice.as_str(), "PHONE");
    let row = NewDevice {
        user_id: scene.alice.to_string(),
        device_id: device.id.clone(),
        token_hash: verge_token_hash("secret"),
        display_name: Some("Alice's phone".to_owned()),
        refresh: None,
        created_ts: 0,
    };
    assert!(scene.world.run(scene.a.store.log_in(&row, PASSWORD_HASH)).unwrap());
    let mut body = json!({ "device_keys": device.keys(), "one_time_keys": device.one_time_keys(one_time_keys) });
    if has_fallback {
        let (id, key) = device.fallback_key("F");
        body["fallback_keys"] = json!({ id: key });
    }
    let request = http::Request::post("/_matrix/client/v3/keys/upload").header("Authorization", "Bearer secret");
    let request = request.body(bytes::Bytes::from(body.to_string())).unwrap();
    assert_eq!(scene.world.run(scene.a.handle(request)).status(), 200);
    device
}

/// As the server keeps tokens.
fn verge_token_hash(token: &str) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use sha2::{Digest, Sha256};
    URL_SAFE_NO_PAD.encode(Sha256::digest(token))
}

/// The answer as ruma reads it.
fn read<T: IncomingResponse>(answer: &Value) -> T
where
    T::EndpointError: std::fmt::Debug,
{
    T::try_from_http_response(http::Response::new(answer.to_string().as_bytes())).unwrap()
}

pub(crate) fn claim(peer: &Peer, scene: &Scene) -> (u16, Value) {
    let wanted = json!({ "one_time_keys": { scene.alice.as_str(): { "PHONE": "signed_curve25519" } } });
    peer.post(&scene.a, "/_matrix/federation/v1/user/keys/claim", &wanted)
}

#[test]
fn keys_are_given_to_any_server_without_what_devices_are_called() {
    let scene = scene("12");
    let phone = device(&scene, 1, false);
    let alice = scene.alice.as_str();
    let keys = [
        CrossSigning::new(alice, "master"),
        CrossSigning::new(alice, "self_signing"),
        CrossSigning::new(alice, "user_signing"),
    ];
    let body = json!({
        "master_key": keys[0].unsigned(),
        "self_signing_key": keys[1].signed_by(&keys[0]),
        "user_signing_key": keys[2].signed_by(&keys[0]),
    });
    let request =
        http::Request::post("/_matrix/client/v3/keys/device_signing/upload").header("Authorization", "Bearer secret");
    let request = request.body(bytes::Bytes::from(body.to_string())).unwrap();
    assert_eq!(scene.world.run(scene.a.handle(request)).status(), 200);
    let stranger = Peer::new(&scene.world, "stranger.example");
    let target = "/_matrix/federation/v1/user/keys/query";
    let (status, answer) = stranger.post(&scene.a, target, &json!({ "device_keys": { alice: [] } }));
    assert_eq!(status, 200, "{answer}");
    read::<get_keys::v1::Response>(&answer);
    let expected = json!({
        "device_keys": { alice: { "PHONE": phone.keys() } },
        "master_keys": { alice: keys[0].unsigned() },
        "self_signing_keys": { alice: keys[1].signed_by(&keys[0]) },
    });
    assert_eq!(answer, expected);
    let (_, answer) = stranger.post(&scene.a, target, &json!({ "device_keys": { alice: ["NONE"] } }));
    assert_eq!(answer["device_keys"], json!({ alice: {} }));

    let (status, answer) = stranger.get(&scene.a, &format!("/_matrix/federation/v1/user/devices/{}", encode(alice)));
    assert_eq!(status, 200, "{answer}");
    read::<get_devices::v1::Response>(&answer);
    assert!(answer["stream_id"].as_i64().unwrap() > 0);
    assert_eq!(answer["devices"], json!([{ "device_id": "PHONE", "keys": phone.keys() }]));
    assert_eq!((&answer["master_key"], &answer["user_id"]), (&keys[0].unsigned(), &json!(alice)));
    assert!(!answer.to_string().contains("Alice's phone") && answer.get("user_signing_key").is_none());
}

#[test]
fn only_own_users_are_asked_about() {
    let scene = scene("12");
    let v1 = "/_matrix/federation/v1/user";
    for user in ["@alice:elsewhere.example", "alice"] {
        let asked = [
            scene.peer.get(&scene.a, &format!("{v1}/devices/{}", encode(user))),
            scene.peer.post(&scene.a, &format!("{v1}/keys/query"), &json!({ "device_keys": { user: [] } })),
            scene.peer.post(&scene.a, &format!("{v1}/keys/claim"), &json!({ "one_time_keys": { user: { "D": "x" } } })),
        ];
        for (status, answer) in asked {
            assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_INVALID_PARAM")), "{answer}");
        }
    }
    let (status, answer) = scene.peer.get(&scene.a, &format!("{v1}/devices/{}", encode("@nobody:a.example")));
    assert_eq!((status, answer["errcode"].as_str()), (404, Some("M_NOT_FOUND")));
    for (target, body) in [
        ("keys/query", json!({})),
        ("keys/query", json!({ "device_keys": [] })),
        ("keys/query", json!({ "device_keys": { scene.alice.as_str(): [1] } })),
        ("keys/claim", json!({})),
        ("keys/claim", json!({ "one_time_keys": { scene.alice.as_str(): [] } })),
        ("keys/claim", json!({ "one_time_keys": { scene.alice.as_str(): { "D": 1 } } })),
    ] {
        let (status, answer) = scene.peer.post(&scene.a, &format!("{v1}/{target}"), &body);
        assert_eq!(status, 400, "{target} {body} {answer}");
    }
}

#[test]
fn a_server_gets_so_many_one_time_keys_and_then_the_fallback_key() {
    let scene = scene("12");
    let phone = device(&scene, 100, true);
    let (fallback, key) = phone.fallback_key("F");
    let mut given = BTreeSet::new();
    for n in 0..60 {
        let (status, answer) = claim(&scene.peer, &scene);
        assert_eq!(status, 200, "{answer}");
        read::<claim_keys::v1::Response>(&answer);
        let keys = answer["one_time_keys"][scene.alice.as_str()]["PHONE"].as_object().unwrap().clone();
        let (id, value) = keys.iter().next().unwrap();
        if n < 20 {
            assert!(given.insert(id.clone()), "{id} was given out before");
        } else {
            assert_eq!((id, value), (&fallback, &key));
        }
    }
    // Others still get theirs, and later it does too.
    let other = Peer::new(&scene.world, "other.example");
    let is_one_time = |(_, answer): (u16, Value)| {
        let keys = answer["one_time_keys"][scene.alice.as_str()]["PHONE"].as_object().unwrap().clone();
        !keys.contains_key(&fallback)
    };
    assert!(is_one_time(claim(&other, &scene)));
    scene.world.advance(3_600_000);
    assert!(is_one_time(claim(&scene.peer, &scene)));
}

#[test]
fn asking_for_devices_that_do_not_exist_brings_no_further_one_time_keys() {
    let scene = scene("12");
    let (fallback, _) = device(&scene, 100, true).fallback_key("F");
    for _ in 0..20 {
        assert_eq!(claim(&scene.peer, &scene).0, 200);
    }
    // Enough names to fill all that is remembered of who has claimed what.
    for round in 0..3 {
        let devices: serde_json::Map<String, Value> =
            (0..5_000).map(|n| (format!("{round}-{n}"), json!("signed_curve25519"))).collect();
        let wanted = json!({ "one_time_keys": { scene.alice.as_str(): devices } });
        let answer = scene.peer.post(&scene.a, "/_matrix/federation/v1/user/keys/claim", &wanted);
        assert_eq!(answer, (200, json!({ "one_time_keys": {} })));
    }
    let (_, answer) = claim(&scene.peer, &scene);
    let given = answer["one_time_keys"][scene.alice.as_str()]["PHONE"].as_object().unwrap();
    assert_eq!(given.keys().collect::<Vec<_>>(), [&fallback]);
    let left = scene.a.database.rows("SELECT count(*) FROM one_time_keys");
    assert_eq!(left, [["80"]]);
}

#[test]
fn there_is_nothing_to_give_out_where_there_is_nothing() {
    let scene = scene("12");
    assert_eq!(claim(&scene.peer, &scene), (200, json!({ "one_time_keys": {} })));
    let none = json!({ "one_time_keys": {} });
    assert_eq!(scene.peer.post(&scene.a, "/_matrix/federation/v1/user/keys/claim", &none), (200, none));
}

/// Where there is no fallback key, one-time keys are all that there is to begin a session by.
#[test]
fn a_device_without_a_fallback_key_gives_out_all_that_it_has() {
    let scene = scene("12");
    device(&scene, 30, false);
    let mut given = BTreeSet::new();
    for _ in 0..30 {
        let (status, answer) = claim(&scene.peer, &scene);
        let key =
            answer["one_time_keys"][scene.alice.as_str()]["PHONE"].as_object().and_then(|keys| keys.keys().next());
        assert!(status == 200 && key.is_some_and(|key| given.insert(key.clone())), "{status} {answer} after {given:?}");
    }
    assert_eq!(claim(&scene.peer, &scene), (200, json!({ "one_time_keys": {} })));
}
