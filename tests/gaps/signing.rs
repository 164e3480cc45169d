//! Requests and events in the name of any server of the world, signed by `ruma-signatures`: what stands between servers must
//! sign anew what it has altered.

use bytes::Bytes;
use http::header::AUTHORIZATION;
use ruma_common::{CanonicalJsonObject, CanonicalJsonValue, RoomVersionId};
use ruma_signatures::Ed25519KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use verge::router::Request;

use crate::common::peer::event_id;

/// A request from one server to another.
pub fn request(from: &str, to: &str, method: &str, target: &str, body: Option<&Value>) -> Request {
    let mut signed = json!({ "method": method, "uri": target, "origin": from, "destination": to });
    if let Some(body) = body {
        signed["content"] = body.clone();
    }
    let mut signed = object(signed);
    ruma_signatures::sign_json(from, &key(from), &mut signed).unwrap();
    let signed = Value::from(CanonicalJsonValue::Object(signed));
    let signature = signed["signatures"][from]["ed25519:auto"].as_str().unwrap();
    let header = format!("X-Matrix origin=\"{from}\",destination=\"{to}\",key=\"ed25519:auto\",sig=\"{signature}\"");
    let text = body.map_or_else(Bytes::new, |body| body.to_string().into());
    http::Request::builder().method(method).uri(target).header(AUTHORIZATION, header).body(text).unwrap()
}

/// An event with its hash and the server's signature, and its ID.
pub fn event(server: &str, version: &str, event: Value) -> (String, Value) {
    let rules = RoomVersionId::try_from(version).unwrap().rules().unwrap();
    let mut event = object(event);
    ruma_signatures::hash_and_sign_event(server, &key(server), &mut event, &rules.redaction).unwrap();
    let event = Value::from(CanonicalJsonValue::Object(event));
    let id = event_id(version, &event);
    (id, event)
}

/// The key that [`crate::common::network::signing_key`] gives the server.
fn key(name: &str) -> Ed25519KeyPair {
    // A PKCS#8 document: a fixed head and the seed.
    let mut document = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    document.extend(Sha256::digest(name));
    Ed25519KeyPair::from_der(&document, "auto".to_owned()).unwrap()
}

fn object(value: Value) -> CanonicalJsonObject {
    match CanonicalJsonValue::try_from(value).unwrap() {
        CanonicalJsonValue::Object(object) => object,
        other => panic!("{other:?} is not an object"),
    }
}
