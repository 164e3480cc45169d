//! What every endpoint refuses alike: other methods, requests that nobody signed for us, bodies that are no JSON objects.

use http::Method;
use serde_json::{Value, json};

use super::{BAD_JSON, NOT_JSON, OTHER_METHOD, Row, Stage, TOO_LARGE, UNAUTHORIZED, UNRECOGNIZED};
use crate::common::peer::{encode, request};

/// An endpoint, and a request that it would at least read.
struct Endpoint {
    method: Method,
    target: String,
    is_signed: bool,
}

impl Endpoint {
    fn has_body(&self) -> bool {
        self.method != Method::GET
    }
}

/// The 38 endpoints, but for `query/{queryType}`, which there is none of.
fn endpoints(stage: &Stage) -> Vec<Endpoint> {
    let (room, event) = (encode(stage.room.as_str()), encode(&stage.theirs.last));
    let user = encode(&stage.peer.user("dave"));
    let alice = encode(stage.alice.as_str());
    let public = [
        (Method::GET, "/.well-known/matrix/server".to_owned()),
        (Method::GET, "/_matrix/federation/v1/version".to_owned()),
        (Method::GET, "/_matrix/key/v2/server".to_owned()),
        (Method::GET, "/_matrix/key/v2/query/peer.example".to_owned()),
        (Method::POST, "/_matrix/key/v2/query".to_owned()),
        (Method::PUT, "/_matrix/federation/v1/3pid/onbind".to_owned()),
        (Method::GET, "/_matrix/federation/v1/openid/userinfo?access_token=x".to_owned()),
    ];
    let signed = [
        (Method::PUT, "v1/send/1".to_owned()),
        (Method::GET, format!("v1/event_auth/{room}/{event}")),
        (Method::GET, format!("v1/backfill/{room}?v={event}&limit=1")),
        (Method::POST, format!("v1/get_missing_events/{room}")),
        (Method::GET, format!("v1/event/{event}")),
        (Method::GET, format!("v1/state/{room}?event_id={event}")),
        (Method::GET, format!("v1/state_ids/{room}?event_id={event}")),
        (Method::GET, format!("v1/timestamp_to_event/{room}?ts=1&dir=f")),
        (Method::GET, format!("v1/make_join/{room}/{user}?ver=12")),
        (Method::PUT, format!("v1/send_join/{room}/{event}")),
        (Method::PUT, format!("v2/send_join/{room}/{event}")),
        (Method::GET, format!("v1/make_knock/{room}/{user}?ver=12")),
        (Method::PUT, format!("v1/send_knock/{room}/{event}")),
        (Method::PUT, format!("v1/invite/{room}/{event}")),
        (Method::PUT, format!("v2/invite/{room}/{event}")),
        (Method::GET, format!("v1/make_leave/{room}/{user}")),
        (Method::PUT, format!("v1/send_leave/{room}/{event}")),
        (Method::PUT, format!("v2/send_leave/{room}/{event}")),
        (Method::PUT, format!("v1/exchange_third_party_invite/{room}")),
        (Method::GET, "v1/publicRooms".to_owned()),
        (Method::POST, "v1/publicRooms".to_owned()),
        (Method::GET, format!("v1/hierarchy/{room}")),
        (Method::GET, "v1/query/directory?room_alias=%23room%3Aa.example".to_owned()),
        (Method::GET, format!("v1/query/profile?user_id={alice}")),
        (Method::GET, format!("v1/user/devices/{alice}")),
        (Method::POST, "v1/user/keys/claim".to_owned()),
        (Method::POST, "v1/user/keys/query".to_owned()),
        (Method::GET, format!("v1/media/download/{}", stage.text)),
        (Method::GET, format!("v1/media/thumbnail/{}?width=1&height=1", stage.text)),
        (Method::POST, "/_matrix/policy/v1/sign".to_owned()),
    ];
    let public = public.map(|(method, target)| Endpoint { method, target, is_signed: false });
    let signed = signed.map(|(method, rest)| Endpoint { method, target: super::federation(&rest), is_signed: true });
    let all: Vec<Endpoint> = public.into_iter().chain(signed).collect();
    assert_eq!(all.len(), 37);
    all
}

pub(super) fn rows(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    for endpoint in endpoints(stage) {
        of_any_endpoint(stage, &endpoint, &mut rows);
        if endpoint.is_signed {
            of_signed_endpoint(stage, &endpoint, &mut rows);
        }
        if endpoint.has_body() {
            of_endpoint_with_body(stage, &endpoint, &mut rows);
        }
    }
    for path in [
        "/_matrix/federation/v1/nothing",
        "/_matrix/federation/v1/query/shoe_size?user_id=%40alice%3Aa.example",
        "/_matrix/federation/v3/send_join/%21r/%24e",
        "/_matrix/federation/v1/event/%24a/b",
        "/_matrix/federation/unstable/nothing",
        "/_matrix/key/v3/server",
        "/_matrix/policy/v1/nothing",
        "/.well-known/matrix/nothing",
        "/",
    ] {
        rows.push(stage.unsigned("there is no such endpoint", Method::GET, path, &Value::Null, UNRECOGNIZED));
    }
    rows
}

fn of_any_endpoint(stage: &Stage, endpoint: &Endpoint, rows: &mut Vec<Row>) {
    // Before anything is asked of a signature.
    let name = format!("instead of {}", endpoint.method);
    rows.push(stage.unsigned(&name, Method::DELETE, &endpoint.target, &Value::Null, OTHER_METHOD));
}

fn of_signed_endpoint(stage: &Stage, endpoint: &Endpoint, rows: &mut Vec<Row>) {
    let Endpoint { method, target, .. } = endpoint;
    let body = endpoint.has_body().then(|| json!({}));
    let text = body.as_ref().map_or_else(String::new, Value::to_string);
    let signed = |peer: &crate::common::peer::Peer, target: &str, destination: &str| {
        peer.authorization(method.as_str(), target, destination, body.as_ref())
    };
    let good = signed(&stage.peer, target, "a.example");
    let of_another = signed(&stage.stranger, target, "a.example").replace("stranger.example", "peer.example");
    for (name, header) in [
        ("for another server", signed(&stage.peer, target, "b.example")),
        ("for another path", signed(&stage.peer, &format!("{target}x"), "a.example")),
        ("signed by another server", of_another),
        ("by a key that is not its server's", good.replace("ed25519:peer", "ed25519:other")),
        ("by a key that has expired", signed(&stage.expired, target, "a.example")),
        ("in our own name", good.replace("peer.example", "a.example")),
        ("by a client's token", format!("Bearer {}", stage.token)),
    ] {
        let request = request(method.clone(), target, &[&header], text.clone());
        rows.push(stage.row(&format!("{method} {name}"), &stage.a, request, UNAUTHORIZED));
    }
    let unsigned = request(method.clone(), target, &[], text.clone());
    rows.push(stage.row("unsigned", &stage.a, unsigned, UNAUTHORIZED));
    // The grammar of the header is wrong, which is no matter of who one is.
    let malformed = request(method.clone(), target, &["X-Matrix origin=peer.example,key=k"], text);
    rows.push(stage.row("with half a header", &stage.a, malformed, (400, "M_UNAUTHORIZED")));
}

fn of_endpoint_with_body(stage: &Stage, endpoint: &Endpoint, rows: &mut Vec<Row>) {
    let Endpoint { method, target, .. } = endpoint;
    // A body that is read is checked against the signature, and one that is no JSON cannot be.
    let header = stage.peer.authorization(method.as_str(), target, "a.example", Some(&json!([])));
    let limit = verge::router::max_body_bytes(target);
    // A transaction is read however deep it is, and this one is a list.
    let nested = if target.contains("/v1/send/") { BAD_JSON } else { NOT_JSON };
    for (name, body, refusal) in [
        ("what is no JSON", "{\"pdus\": [".to_owned(), NOT_JSON),
        ("no body", String::new(), NOT_JSON),
        ("a body nested ten thousand deep", format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)), nested),
        ("a list", "[]".to_owned(), BAD_JSON),
        ("a body that is too long", format!("{{\"x\":\"{}\"}}", "x".repeat(limit)), TOO_LARGE),
    ] {
        let headers: &[&str] = if endpoint.is_signed { &[&header] } else { &[] };
        let mut request = request(method.clone(), target, headers, body);
        // What anybody may send is counted by address.
        request.headers_mut().insert("cf-connecting-ip", "203.0.113.1".parse().unwrap());
        rows.push(stage.row(name, &stage.a, request, refusal));
    }
}
