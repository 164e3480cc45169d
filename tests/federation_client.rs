//! Requests to other servers (Server-Server API, "Request Authentication" and each endpoint): what goes over the wire,
//! byte by byte, and what is made of the answers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{future::Future, rc::Rc};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use common::{
    internet::{Internet, RESOLVER, page},
    sqlite::Sqlite,
};
use ed25519_dalek::{Signature, SigningKey};
use futures_executor::block_on;
use http::StatusCode;
use serde_json::json;
use verge::{
    config::Config,
    federation::peers::{
        destination::DiscoveryError,
        endpoints::Transaction,
        requests::{FederationClient, RequestError},
        room_before::{JoinPiece, RoomBefore},
    },
    matrix::{
        identifiers::{EventId, RoomAlias, RoomId, ServerName, UserId},
        json::Value,
    },
    platform::TransportError,
};

const SEED: [u8; 32] = [7; 32];

fn client(internet: &Rc<Internet>) -> FederationClient {
    let config = Config::parse(|variable| match variable {
        "SERVER_NAME" => Some("us.org".to_owned()),
        "SIGNING_KEY" => Some(format!("ed25519 a_b {}", STANDARD_NO_PAD.encode(SEED))),
        "DNS_OVER_HTTPS" => Some(RESOLVER.to_owned()),
        _ => None,
    });
    FederationClient::new(internet.platform(&Sqlite::in_memory()), Rc::new(config.unwrap()), Rc::default())
}

fn b() -> ServerName {
    ServerName::parse("b.org:8448").unwrap()
}

fn room() -> RoomId {
    RoomId::parse("!r/ö:b.org").unwrap()
}

fn user() -> UserId {
    UserId::parse("@u+v:us.org").unwrap()
}

fn event(id: &str) -> EventId {
    EventId::parse(id).unwrap()
}

/// One call against a server that answers everything with `answer`: what was sent, and what came of it.
fn exchange<T, F: Future<Output = T>>(answer: &'static str, call: impl FnOnce(Rc<FederationClient>) -> F) -> (Sent, T) {
    let internet = Internet::new();
    internet.serve("https://b.org:8448", move |_| Ok(page(200, &[], answer)));
    let outcome = block_on(call(Rc::new(client(&internet))));
    let requests = internet.requests.borrow();
    assert_eq!(requests.len(), 1, "{:?}", internet.asked.borrow());
    let request = &requests[0].request;
    let sent = Sent {
        line: format!("{} {}", request.method(), request.uri()),
        body: String::from_utf8(request.body().to_vec()).unwrap(),
        authorization: request.headers()["authorization"].to_str().unwrap().to_owned(),
        limit: requests[0].max_response_bytes,
    };
    let is_json = request.headers().get("content-type").is_some_and(|kind| kind == "application/json");
    assert_eq!(is_json, !sent.body.is_empty());
    (sent, outcome)
}

struct Sent {
    line: String,
    body: String,
    authorization: String,
    limit: usize,
}

const PDU: &str = r#"{"type":"m.room.member","depth":1}"#;

#[test]
fn the_signature_covers_what_is_sent() {
    let (sent, _) = exchange("{}", |client| async move {
        client.send_leave(&b(), &room(), &event("$e:x/ü"), r#"{"a":"ü\n","b":[1,-2]}"#).await
    });
    assert_eq!(sent.line, "PUT /_matrix/federation/v2/send_leave/%21r%2F%C3%B6%3Ab.org/%24e%3Ax%2F%C3%BC");
    let start = r#"X-Matrix origin="us.org",key="ed25519:a_b",sig=""#;
    let signature = sent.authorization.strip_prefix(start).unwrap();
    let signature = signature.strip_suffix(r#"",destination="b.org:8448""#).unwrap();
    let signed = concat!(
        r#"{"content":{"a":"ü\n","b":[1,-2]},"destination":"b.org:8448","method":"PUT","origin":"us.org","#,
        r#""uri":"/_matrix/federation/v2/send_leave/%21r%2F%C3%B6%3Ab.org/%24e%3Ax%2F%C3%BC"}"#
    );
    verify(signed, signature);
}

#[test]
fn a_request_without_a_body_has_no_content() {
    let (sent, _) = exchange("{}", |client| async move { client.version(&b()).await });
    let signature = sent.authorization.split('"').nth(5).unwrap().to_owned();
    let signed =
        r#"{"destination":"b.org:8448","method":"GET","origin":"us.org","uri":"/_matrix/federation/v1/version"}"#;
    verify(signed, &signature);
}

fn verify(text: &str, signature: &str) {
    let signature = STANDARD_NO_PAD.decode(signature).unwrap();
    let signature = Signature::from_slice(&signature).unwrap();
    SigningKey::from_bytes(&SEED).verifying_key().verify_strict(text.as_bytes(), &signature).unwrap();
}

#[test]
fn version() {
    let (sent, answer) =
        exchange(
            r#"{"server": {"name": "Conduit", "version": "1"}}"#,
            |client| async move { client.version(&b()).await },
        );
    assert_eq!(sent.line, "GET /_matrix/federation/v1/version");
    assert_eq!(answer.unwrap().get("name").and_then(Value::as_str), Some("Conduit"));
}

#[test]
fn make_join() {
    let (sent, answer) =
        exchange(r#"{"room_version": "12", "event": {"type": "m.room.member"}}"#, |client| async move {
            client.make_join(&b(), &room(), &user(), &["1", "org.example.x", "12"]).await
        });
    let path = "/_matrix/federation/v1/make_join/%21r%2F%C3%B6%3Ab.org/%40u%2Bv%3Aus.org";
    assert_eq!(sent.line, format!("GET {path}?ver=1&ver=org.example.x&ver=12"));
    let answer = answer.unwrap();
    assert_eq!(answer.room_version, "12");
    assert_eq!(answer.event.to_text(), r#"{"type":"m.room.member"}"#);
}

#[test]
fn make_leave_of_a_server_that_names_no_version() {
    let (sent, answer) =
        exchange(r#"{"event": {}}"#, |client| async move { client.make_leave(&b(), &room(), &user()).await });
    assert_eq!(sent.line, "GET /_matrix/federation/v1/make_leave/%21r%2F%C3%B6%3Ab.org/%40u%2Bv%3Aus.org");
    assert_eq!(answer.unwrap().room_version, "1");
}

#[test]
fn send_join() {
    // PDUs keep every byte: their order, their blanks, their doubled members, their nesting.
    let answer = r#"{"origin": "b.org", "event": {"a" : 1},
        "state": [ { "z":1.50, "a":2, "z" : 3 } , {}], "auth_chain": [{"deep":[[[["\u00e4"]]]]}],
        "members_omitted": false, "servers_in_room": ["b.org"], "unknown": {"x": [1e400]}}"#;
    let (sent, answer) = exchange(answer, |client| async move {
        let answer = client.send_join(&b(), &room(), &event("$e"), PDU, false).await;
        pieces(answer.unwrap()).await
    });
    assert_eq!(sent.line, "PUT /_matrix/federation/v2/send_join/%21r%2F%C3%B6%3Ab.org/%24e");
    assert_eq!(sent.body, PDU);
    assert_eq!(sent.limit, 256 << 20);
    let nothing = r#"{"auth_chain": [], "state": []}"#;
    let (sent, _) = exchange(nothing, |client| async move {
        pieces(client.send_join(&b(), &room(), &event("$e"), PDU, true).await.unwrap()).await
    });
    assert!(sent.line.ends_with("/%24e?omit_members=true"), "{}", sent.line);
    let text = |text: &str| text.as_bytes().to_vec();
    let expected = [
        JoinPiece::Join(text(r#"{"a" : 1}"#)),
        JoinPiece::State(text(r#"{ "z":1.50, "a":2, "z" : 3 }"#)),
        JoinPiece::State(text("{}")),
        JoinPiece::AuthChain(text(r#"{"deep":[[[["\u00e4"]]]]}"#)),
        JoinPiece::Servers(vec![ServerName::parse("b.org").unwrap()]),
    ];
    assert_eq!(answer.unwrap(), expected);
    for (answer, expected) in [
        (r#"{"auth_chain": [], "members_omitted": true, "state": []}"#, Ok(vec![JoinPiece::MembersOmitted])),
        // Not every server says which servers are in the room.
        (r#"{"auth_chain": [], "servers_in_room": null, "state": []}"#, Ok(vec![JoinPiece::Servers(Vec::new())])),
        (r#"{"auth_chain": []}"#, Err("`state` is missing or of the wrong kind")),
        (r#"{"auth_chain": [], "state": {}}"#, Err("it is not a JSON object of the form that was asked for")),
        (r#"{"auth_chain": [], "state": ["#, Err("it is not a JSON object of the form that was asked for")),
    ] {
        let (_, answer) = exchange(answer, |client| async move {
            pieces(client.send_join(&b(), &room(), &event("$e"), PDU, false).await.unwrap()).await
        });
        assert_eq!(answer, expected.map_err(|why| RequestError::BadResponse(why.to_owned())));
    }
}

async fn pieces(mut answer: RoomBefore) -> Result<Vec<JoinPiece>, RequestError> {
    let mut pieces = Vec::new();
    while let Some(piece) = answer.next().await? {
        pieces.push(piece);
    }
    Ok(pieces)
}

#[test]
fn a_pdu_nested_ten_thousand_deep_is_only_passed_on() {
    let deep: &'static str = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)).leak();
    let answer: &'static str = format!(r#"{{"pdus": [{{"x": {deep}}}]}}"#).leak();
    let (_, answer) = exchange(answer, |client| async move { client.backfill(&b(), &room(), &[event("$e")], 1).await });
    assert_eq!(answer.unwrap(), [format!(r#"{{"x": {deep}}}"#)]);
}

#[test]
fn invite() {
    let (sent, answer) = exchange(r#"{"event": {"signed": true}}"#, |client| async move {
        let state = r#"[{"type":"m.room.create"},{"type":"m.room.name"}]"#;
        client.invite(&b(), &room(), &event("$e"), "12", PDU, state).await
    });
    assert_eq!(sent.line, "PUT /_matrix/federation/v2/invite/%21r%2F%C3%B6%3Ab.org/%24e");
    let body: serde_json::Value = serde_json::from_str(&sent.body).unwrap();
    let expected = json!({
        "room_version": "12",
        "event": { "type": "m.room.member", "depth": 1 },
        "invite_room_state": [{ "type": "m.room.create" }, { "type": "m.room.name" }],
    });
    assert_eq!(body, expected);
    assert_eq!(answer.unwrap(), r#"{"signed": true}"#);
}

#[test]
fn single_event() {
    let (sent, answer) =
        exchange(r#"{"origin": "b.org", "origin_server_ts": 1, "pdus": [{"x": 1}]}"#, |client| async move {
            client.event(&b(), &event("$a-_Z")).await
        });
    assert_eq!(sent.line, "GET /_matrix/federation/v1/event/%24a-_Z");
    assert_eq!(answer.unwrap(), r#"{"x": 1}"#);
}

#[test]
fn state() {
    let (sent, answer) = exchange(r#"{"pdus": [{"s": 1}], "auth_chain": [{"a": 1}]}"#, |client| async move {
        client.state(&b(), &room(), &event("$e")).await
    });
    assert_eq!(sent.line, "GET /_matrix/federation/v1/state/%21r%2F%C3%B6%3Ab.org?event_id=%24e");
    assert!(sent.limit < 50 << 20);
    let answer = answer.unwrap();
    assert_eq!((answer.pdus, answer.auth_chain), (vec![Bytes::from(r#"{"s": 1}"#)], vec![Bytes::from(r#"{"a": 1}"#)]));
}

#[test]
fn state_ids() {
    let (sent, answer) = exchange(r#"{"pdu_ids": ["$s"], "auth_chain_ids": ["$a", "$b"]}"#, |client| async move {
        client.state_ids(&b(), &room(), &event("$e")).await
    });
    assert_eq!(sent.line, "GET /_matrix/federation/v1/state_ids/%21r%2F%C3%B6%3Ab.org?event_id=%24e");
    let answer = answer.unwrap();
    assert_eq!((answer.pdu_ids, answer.auth_chain_ids), (vec![event("$s")], vec![event("$a"), event("$b")]));
}

#[test]
fn event_auth() {
    let (sent, answer) = exchange(r#"{"auth_chain": [{"a": 1}, {"b": 2}]}"#, |client| async move {
        client.event_auth(&b(), &room(), &event("$e")).await
    });
    assert_eq!(sent.line, "GET /_matrix/federation/v1/event_auth/%21r%2F%C3%B6%3Ab.org/%24e");
    assert_eq!(answer.unwrap(), [r#"{"a": 1}"#, r#"{"b": 2}"#]);
}

#[test]
fn backfill() {
    let (sent, answer) = exchange(r#"{"pdus": [{"a": 1}]}"#, |client| async move {
        client.backfill(&b(), &room(), &[event("$e"), event("$f")], 100).await
    });
    assert_eq!(sent.line, "GET /_matrix/federation/v1/backfill/%21r%2F%C3%B6%3Ab.org?v=%24e&v=%24f&limit=100");
    assert_eq!(answer.unwrap(), [r#"{"a": 1}"#]);
}

#[test]
fn get_missing_events() {
    let (sent, answer) = exchange(r#"{"events": [{"a": 1}]}"#, |client| async move {
        client.get_missing_events(&b(), &room(), &[event("$e")], &[event("$l")], 10, -1).await
    });
    assert_eq!(sent.line, "POST /_matrix/federation/v1/get_missing_events/%21r%2F%C3%B6%3Ab.org");
    let body: serde_json::Value = serde_json::from_str(&sent.body).unwrap();
    let expected = json!({ "earliest_events": ["$e"], "latest_events": ["$l"], "limit": 10, "min_depth": -1 });
    assert_eq!(body, expected);
    assert_eq!(answer.unwrap(), [r#"{"a": 1}"#]);
}

#[test]
fn query_directory() {
    let (sent, answer) =
        exchange(r#"{"room_id": "!r", "servers": ["b.org", "not a name", 1, "c.org:1"]}"#, |client| async move {
            client.query_directory(&b(), &RoomAlias::parse("#a b:b.org").unwrap()).await
        });
    assert_eq!(sent.line, "GET /_matrix/federation/v1/query/directory?room_alias=%23a%20b%3Ab.org");
    let answer = answer.unwrap();
    assert_eq!(answer.room_id.as_str(), "!r");
    assert_eq!(answer.servers.iter().map(ServerName::as_str).collect::<Vec<_>>(), ["b.org", "c.org:1"]);
}

#[test]
fn query_profile() {
    let (sent, answer) = exchange(r#"{"displayname": "U"}"#, |client| async move {
        client.query_profile(&b(), &user(), Some("displayname")).await
    });
    assert_eq!(sent.line, "GET /_matrix/federation/v1/query/profile?user_id=%40u%2Bv%3Aus.org&field=displayname");
    assert_eq!(answer.unwrap().get("displayname").and_then(Value::as_str), Some("U"));
    let (sent, _) = exchange("{}", |client| async move { client.query_profile(&b(), &user(), None).await });
    assert_eq!(sent.line, "GET /_matrix/federation/v1/query/profile?user_id=%40u%2Bv%3Aus.org");
}

#[test]
fn send_transaction() {
    let answer = r#"{"pdus": {"$good": {}, "$bad": {"error": "No."}}}"#;
    let (sent, answer) = exchange(answer, |client| async move {
        let edus = [Value::from(json!({ "edu_type": "m.typing" }))];
        let transaction = Transaction { origin_server_ts: 17, pdus: &[PDU, r#"{"x":1.5}"#], edus: &edus };
        client.send_transaction(&b(), "txn/1", transaction).await
    });
    assert_eq!(sent.line, "PUT /_matrix/federation/v1/send/txn%2F1");
    let body = format!(
        r#"{{"edus":[{{"edu_type":"m.typing"}}],"origin":"us.org","origin_server_ts":17,"pdus":[{PDU},{{"x":1.5}}]}}"#
    );
    assert_eq!(sent.body, body);
    assert_eq!(answer.unwrap().into_iter().collect::<Vec<_>>(), [("$bad".to_owned(), "No.".to_owned())]);
}

#[test]
fn any_object_completes_a_transaction() {
    let send = |answer: &'static str| {
        exchange(answer, |client| async move {
            client.send_transaction(&b(), "1", Transaction { origin_server_ts: 17, pdus: &[], edus: &[] }).await
        })
    };
    for answer in ["{}", " {\"pdus\": [1.5, \"\\ud800\"]}\n", "{\"pdus\": {}, \"pdus\": null}"] {
        let (sent, errors) = send(answer);
        assert_eq!(sent.body, r#"{"origin":"us.org","origin_server_ts":17,"pdus":[]}"#);
        assert!(errors.unwrap().is_empty(), "{answer}");
    }
    for answer in ["<html>", "", "[]", "null", "{", "{} {}"] {
        let (_, errors) = send(answer);
        assert!(matches!(errors, Err(RequestError::BadResponse(_))), "{answer}: {errors:?}");
    }
}

/// Answers of other shapes than the spec's.
#[test]
fn bad_answers() {
    for answer in [
        "",
        "<html>",
        "[]",
        "null",
        "{}",
        r#"{"pdus": {}}"#,
        r#"{"pdus": []}"#,
        "{\"pdus\": [\"\u{1}\"",
        r#"{"pdus": [1]"#,
    ] {
        let (_, pdu) = exchange(answer, |client| async move { client.event(&b(), &event("$e")).await });
        assert!(matches!(pdu, Err(RequestError::BadResponse(_))), "{answer}: {pdu:?}");
        let (_, state) = exchange(answer, |client| async move { client.state(&b(), &room(), &event("$e")).await });
        assert!(matches!(state, Err(RequestError::BadResponse(_))), "{answer}: {state:?}");
        let (_, ids) = exchange(answer, |client| async move { client.state_ids(&b(), &room(), &event("$e")).await });
        assert!(matches!(ids, Err(RequestError::BadResponse(_))), "{answer}: {ids:?}");
        let (_, template) = exchange(answer, |client| async move { client.make_leave(&b(), &room(), &user()).await });
        assert!(matches!(template, Err(RequestError::BadResponse(_))), "{answer}: {template:?}");
    }
}

/// Which errors are worth a repetition: status, body, errcode, whether.
#[test]
fn errors() {
    let cases = [
        (400, r#"{"errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "x"}"#, "M_INCOMPATIBLE_ROOM_VERSION", false),
        (401, r#"{"errcode": "M_UNAUTHORIZED", "error": "x"}"#, "M_UNAUTHORIZED", true),
        (403, r#"{"errcode": "M_FORBIDDEN", "error": "x"}"#, "M_FORBIDDEN", false),
        (404, r#"{"errcode": "M_NOT_FOUND", "error": "x"}"#, "M_NOT_FOUND", false),
        (408, "", "", true),
        (413, "", "", false),
        (429, r#"{"errcode": "M_LIMIT_EXCEEDED", "error": "x", "retry_after_ms": 17}"#, "M_LIMIT_EXCEEDED", true),
        (500, "<html>", "", true),
        (503, r#"["errcode"]"#, "", true),
        (302, "", "", false),
        (204, "", "", false),
    ];
    for (status, body, errcode, worth) in cases {
        let (_, error) = exchange_status(status, body);
        let RequestError::Status { status: seen, errcode: code, retry_after_ms, .. } = &error else {
            panic!("{status}: {error:?}")
        };
        assert_eq!((seen.as_u16(), code.as_str()), (status, errcode));
        assert_eq!(*retry_after_ms, (status == 429).then_some(17));
        assert_eq!(error.is_worth_retrying(), worth, "{status}");
    }
}

fn exchange_status(status: u16, body: &'static str) -> (Rc<Internet>, RequestError) {
    let internet = Internet::new();
    internet.serve("https://b.org:8448", move |_| Ok(page(status, &[], body)));
    let error = block_on(client(&internet).send_join(&b(), &room(), &event("$e"), PDU, true)).err().unwrap();
    (internet, error)
}

#[test]
fn what_a_proxy_answers_for_a_dead_server() {
    for status in [520, 522, 526, 530] {
        let (_, error) = exchange_status(status, "error code: 1003");
        assert!(matches!(error, RequestError::Unreachable(_)) && error.is_worth_retrying(), "{error:?}");
    }
}

/// Version 1 of an endpoint where the server does not know version 2, and only there.
#[test]
fn older_servers() {
    for (status, body, falls_back) in [
        (404, r#"{"errcode": "M_UNRECOGNIZED", "error": "x"}"#, true),
        (405, r#"{"errcode": "M_UNRECOGNIZED", "error": "x"}"#, true),
        (400, r#"{"errcode": "M_UNRECOGNIZED", "error": "x"}"#, true),
        (404, "404 page not found", true),
        (404, r#"{"errcode": "M_NOT_FOUND", "error": "x"}"#, false),
        (403, r#"{"errcode": "M_FORBIDDEN", "error": "x"}"#, false),
        (500, "", false),
    ] {
        let internet = Internet::new();
        internet.serve("https://b.org:8448", move |request| {
            let v1 = request.request.uri().path().starts_with("/_matrix/federation/v1/send_join/");
            let wrapped = r#"[200, {"state": [{"s": 1}], "auth_chain": []}]"#;
            Ok(if v1 { page(200, &[], wrapped) } else { page(status, &[], body) })
        });
        let answer = block_on(client(&internet).send_join(&b(), &room(), &event("$e"), PDU, true));
        assert_eq!(answer.is_ok(), falls_back, "{status} {body}");
        assert_eq!(internet.requests.borrow().len(), if falls_back { 2 } else { 1 });
        if let Ok(answer) = answer {
            assert_eq!(block_on(pieces(answer)), Ok(vec![JoinPiece::State(br#"{"s": 1}"#.to_vec())]));
        }
    }
}

fn with_two_targets() -> Rc<Internet> {
    let internet = Internet::new();
    let records = ["1 0 1 first.org.", "2 0 2 second.org."].map(str::to_owned).to_vec();
    internet.srv.borrow_mut().insert("_matrix-fed._tcp.b.org".to_owned(), Ok(records));
    internet
}

const VERSION: &str = r#"{"server": {"name": "x", "version": "y"}}"#;

fn ask(internet: &Rc<Internet>) -> Result<(), RequestError> {
    block_on(client(internet).version(&ServerName::parse("b.org").unwrap())).map(drop)
}

#[test]
fn the_next_target_where_one_fails() {
    let internet = with_two_targets();
    internet.serve("https://second.org:2", |request| {
        assert_eq!((&*request.tls_name, &*request.host_header), ("b.org", "b.org"));
        Ok(page(200, &[], VERSION))
    });
    assert_eq!(ask(&internet), Ok(()));
    assert_eq!(internet.times_asked("first.org:1"), 1);
}

#[test]
fn an_answer_is_an_answer() {
    let internet = with_two_targets();
    internet.serve("https://first.org:1", |_| Ok(page(500, &[], "")));
    internet.serve("https://second.org:2", |_| Ok(page(200, &[], VERSION)));
    assert!(matches!(ask(&internet), Err(RequestError::Status { .. })));
    assert_eq!(internet.times_asked("second.org"), 0);
}

#[test]
fn the_first_failure_where_all_fail() {
    let internet = with_two_targets();
    internet.serve("https://second.org:2", |_| Err(TransportError::TimedOut));
    let error = ask(&internet).unwrap_err();
    assert_eq!(error, RequestError::Unreachable("https://first.org:1 is not there".to_owned()));
    assert!(error.is_worth_retrying());
}

#[test]
fn targets_share_the_time() {
    let internet = with_two_targets();
    internet.serve("https://first.org:1", |_| Err(TransportError::TimedOut));
    ask(&internet).unwrap_err();
    let requests = internet.requests.borrow();
    let times: Vec<_> =
        requests.iter().filter(|r| r.tls_name == "b.org" && r.connect_port < 3).map(|r| r.timeout_ms).collect();
    assert_eq!(times, [5_000, 10_000]);
}

/// Where the platform cannot ask for a certificate of another name, the server's own name on the same port.
#[test]
fn a_platform_without_tls_names() {
    let internet = with_two_targets();
    internet.tls_names.set(false);
    internet.serve("https://b.org:2", |request| {
        assert_eq!((&*request.tls_name, &*request.host_header), ("b.org", "b.org"));
        Ok(page(200, &[], VERSION))
    });
    assert_eq!(ask(&internet), Ok(()));
    let asked = internet.asked.borrow();
    let asked: Vec<_> = asked.iter().filter(|asked| asked.ends_with("/version")).collect();
    let path = "/_matrix/federation/v1/version";
    let expected = ["first.org:1", "b.org:1", "second.org:2", "b.org:2"].map(|at| format!("GET https://{at}{path}"));
    assert_eq!(asked, expected.iter().collect::<Vec<_>>());
}

#[test]
fn what_the_platform_cannot_do() {
    let internet = Internet::new();
    internet.serve("https://1.2.3.4:8448", |_| Err(TransportError::Unsupported("no IP literals".to_owned())));
    let error = block_on(client(&internet).version(&ServerName::parse("1.2.3.4").unwrap())).unwrap_err();
    assert_eq!(error, RequestError::Unsupported("no IP literals".to_owned()));
    assert!(!error.is_worth_retrying());
}

#[test]
fn ourselves() {
    let error = block_on(client(&Internet::new()).version(&ServerName::parse("us.org").unwrap())).unwrap_err();
    assert_eq!(error, RequestError::Discovery(DiscoveryError::Ourselves));
}

#[test]
fn an_answer_that_is_too_long() {
    let internet = Internet::new();
    internet.serve("https://b.org:8448", |request| {
        let response = http::Response::builder().status(StatusCode::OK);
        Ok(response.body(Bytes::from(vec![b' '; request.max_response_bytes + 1])).unwrap())
    });
    let error = block_on(client(&internet).version(&b())).unwrap_err();
    assert!(matches!(error, RequestError::BadResponse(_)) && !error.is_worth_retrying());
}

#[test]
fn a_request_that_is_too_long() {
    let internet = Internet::new();
    let events: Vec<_> = (0..2000).map(|number| event(&format!("${number:0>43}"))).collect();
    let error = block_on(client(&internet).backfill(&b(), &room(), &events, 10)).unwrap_err();
    assert!(matches!(error, RequestError::Invalid(_)), "{error:?}");
    assert!(internet.requests.borrow().is_empty());
}
