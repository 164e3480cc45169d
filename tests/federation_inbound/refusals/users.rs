//! Aliases, profiles, devices, keys, tokens, media, and the signature of a policy server.

use http::Method;
use serde_json::{Value, json};

use super::{BAD_JSON, FORBIDDEN, INVALID, MISSING, NOT_FOUND, Refusal, Row, Stage, TOO_LARGE, UNRECOGNIZED};
use crate::common::peer::encode;

pub(super) fn rows(stage: &Stage) -> Vec<Row> {
    let mut rows = of_queries(stage);
    rows.extend(of_keys(stage));
    rows.extend(of_a_notary(stage));
    rows.extend(of_tokens(stage));
    rows.extend(of_media(stage));
    rows.extend(of_a_policy_server(stage));
    rows
}

fn of_queries(stage: &Stage) -> Vec<Row> {
    let cases = [
        ("an alias that there is not", "v1/query/directory?room_alias=%23nothing%3Aa.example", NOT_FOUND),
        ("another server's alias", "v1/query/directory?room_alias=%23room%3Ab.example", INVALID),
        ("no alias", "v1/query/directory?room_alias=room", INVALID),
        ("nothing", "v1/query/directory", MISSING),
        ("a user that there is not", "v1/query/profile?user_id=%40nobody%3Aa.example", NOT_FOUND),
        ("another server's user", "v1/query/profile?user_id=%40dora%3Ab.example", INVALID),
        ("no user", "v1/query/profile?user_id=dora", INVALID),
        ("nothing", "v1/query/profile?field=displayname", MISSING),
        ("a user that there is not", "v1/user/devices/%40nobody%3Aa.example", NOT_FOUND),
        ("another server's user", "v1/user/devices/%40dora%3Ab.example", INVALID),
        ("no user", "v1/user/devices/dora", INVALID),
    ];
    // Any server may ask.
    cases.iter().map(|(name, rest, refusal)| stage.get(name, &stage.stranger, rest, *refusal)).collect()
}

fn of_keys(stage: &Stage) -> Vec<Row> {
    let alice = stage.alice.as_str();
    let many: serde_json::Map<String, Value> = (0..5_001).map(|n| (format!("@u{n}:a.example"), json!([]))).collect();
    let devices: serde_json::Map<String, Value> = (0..5_001).map(|n| (format!("D{n}"), json!("x"))).collect();
    let cases: [(&str, &str, Value, Refusal); 14] = [
        ("query", "nobody's", json!({}), BAD_JSON),
        ("query", "a list of users", json!({ "device_keys": [alice] }), BAD_JSON),
        ("query", "a device that is a number", json!({ "device_keys": { alice: [1] } }), BAD_JSON),
        ("query", "another server's user", json!({ "device_keys": { "@x:b.example": [] } }), INVALID),
        ("query", "who is no user", json!({ "device_keys": { "alice": [] } }), INVALID),
        (
            "query",
            "one user of ours and one of theirs",
            json!({ "device_keys": { alice: [], "@x:b.example": [] } }),
            INVALID,
        ),
        ("query", "5001 users", json!({ "device_keys": many }), TOO_LARGE),
        ("claim", "nobody's", json!({}), BAD_JSON),
        ("claim", "a list of users", json!({ "one_time_keys": [alice] }), BAD_JSON),
        ("claim", "a list of devices", json!({ "one_time_keys": { alice: ["D"] } }), BAD_JSON),
        ("claim", "an algorithm that is a number", json!({ "one_time_keys": { alice: { "D": 1 } } }), BAD_JSON),
        ("claim", "another server's user", json!({ "one_time_keys": { "@x:b.example": { "D": "x" } } }), INVALID),
        ("claim", "who is no user", json!({ "one_time_keys": { "alice": { "D": "x" } } }), INVALID),
        ("claim", "5001 devices", json!({ "one_time_keys": { alice: devices } }), TOO_LARGE),
    ];
    let row = |(endpoint, name, body, refusal): &(&str, &str, Value, Refusal)| {
        stage.post(name, &stage.stranger, &format!("v1/user/keys/{endpoint}"), body, *refusal)
    };
    cases.iter().map(row).collect()
}

fn of_a_notary(stage: &Stage) -> Vec<Row> {
    let query = "/_matrix/key/v2/query";
    let of_server = |criteria: Value| json!({ "server_keys": { "peer.example": criteria } });
    let long = format!("{query}/{}", "x".repeat(300));
    let gets = [
        ("no server", format!("{query}/not%20a%20name"), INVALID),
        ("a server whose name is too long", long, INVALID),
        ("a time that is none", format!("{query}/peer.example?minimum_valid_until_ts=soon"), INVALID),
    ];
    let posts = [
        ("nobody's", json!({})),
        ("a list of servers", json!({ "server_keys": ["peer.example"] })),
        ("a list of keys", of_server(json!(["ed25519:peer"]))),
        ("a number for what is asked of a key", of_server(json!({ "ed25519:peer": 1 }))),
        ("a time that is a text", of_server(json!({ "ed25519:peer": { "minimum_valid_until_ts": "x" } }))),
    ];
    let gets =
        gets.iter().map(|(name, target, refusal)| stage.unsigned(name, Method::GET, target, &Value::Null, *refusal));
    let posts = posts.iter().map(|(name, body)| stage.unsigned(name, Method::POST, query, body, BAD_JSON));
    gets.chain(posts).collect()
}

fn of_tokens(stage: &Stage) -> Vec<Row> {
    let target = "/_matrix/federation/v1/openid/userinfo";
    let unknown = (401, "M_UNKNOWN_TOKEN");
    let with = |token: &str| format!("{target}?access_token={}", encode(token));
    let altered = stage.expired_token.replacen(|c: char| c.is_ascii_digit(), "0", 1);
    [
        ("no token", target.to_owned(), (401, "M_MISSING_TOKEN")),
        ("a token that is none", with("junk"), unknown),
        ("a token of nothing", with(""), unknown),
        ("a client's token", with(&stage.token), unknown),
        ("a token that has expired", with(&stage.expired_token), unknown),
        ("a token that was altered", with(&format!("{altered}x")), unknown),
    ]
    .iter()
    .map(|(name, target, refusal)| stage.unsigned(name, Method::GET, target, &Value::Null, *refusal))
    .collect()
}

fn of_media(stage: &Stage) -> Vec<Row> {
    let Stage { text, awaited, .. } = stage;
    let not_yet = (504, "M_NOT_YET_UPLOADED");
    let cases = [
        ("that there is not", "v1/media/download/nothing".to_owned(), NOT_FOUND),
        ("on a way out of its folder", "v1/media/download/..%2F..%2Fetc".to_owned(), INVALID),
        ("with a time that is none", format!("v1/media/download/{text}?timeout_ms=x"), INVALID),
        ("with a time below 0", format!("v1/media/download/{awaited}?timeout_ms=-1"), INVALID),
        ("that has not come yet", format!("v1/media/download/{awaited}?timeout_ms=0"), not_yet),
        ("that there is not", "v1/media/thumbnail/nothing?width=1&height=1".to_owned(), NOT_FOUND),
        ("on a way out", "v1/media/thumbnail/..%2F..%2Fetc?width=1&height=1".to_owned(), INVALID),
        ("that has not come yet", format!("v1/media/thumbnail/{awaited}?width=1&height=1&timeout_ms=0"), not_yet),
        ("of what is no image", format!("v1/media/thumbnail/{text}?width=32&height=32"), (400, "M_UNKNOWN")),
        ("without a width", format!("v1/media/thumbnail/{text}?height=32"), MISSING),
        ("without a height", format!("v1/media/thumbnail/{text}?width=32"), MISSING),
        ("of no height", format!("v1/media/thumbnail/{text}?width=32&height=0"), INVALID),
        ("of a width below 0", format!("v1/media/thumbnail/{text}?width=-32&height=32"), INVALID),
        ("of half a width", format!("v1/media/thumbnail/{text}?width=1.5&height=32"), INVALID),
        ("by a method that there is not", format!("v1/media/thumbnail/{text}?width=32&height=32&method=x"), INVALID),
    ];
    cases.iter().map(|(name, rest, refusal)| stage.get(name, &stage.stranger, rest, *refusal)).collect()
}

fn of_a_policy_server(stage: &Stage) -> Vec<Row> {
    let target = "/_matrix/policy/v1/sign";
    let refused = (400, "M_FORBIDDEN");
    let event = |body: &str| {
        json!({
            "type": "m.room.message", "room_id": stage.guarded, "sender": stage.bob, "depth": 9, "origin_server_ts": 1,
            "auth_events": ["$a"], "prev_events": ["$p"], "content": { "msgtype": "m.text", "body": body },
        })
    };
    let changed = |name: &str, value: Value| {
        let mut event = event("hello");
        event[name] = value;
        stage.peer.sign("12", event).1
    };
    let good = stage.peer.sign("12", event("hello")).1;
    let mut altered = good.clone();
    altered["content"]["body"] = json!("something else");
    let mut unsigned = good.clone();
    unsigned["signatures"] = json!({});
    let mut lacking = good.clone();
    lacking.as_object_mut().unwrap().remove("auth_events");
    let policy = json!({ "type": "m.room.policy", "state_key": "", "content": {} });
    let mut naming = event("hello");
    naming.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
    let naming = stage.peer.sign("12", naming).1;
    let spam = stage.peer.sign("12", event("buy now")).1;
    let cases: [(&str, Value, Refusal); 10] = [
        ("of what the operator blocks", spam, refused),
        ("of what was altered", altered, refused),
        ("of what nobody signed", unsigned, refused),
        ("of another server's user", changed("sender", json!("@x:stranger.example")), refused),
        ("of what names a policy server", naming, refused),
        ("of what lacks its auth events", lacking, BAD_JSON),
        ("of nothing", json!({}), BAD_JSON),
        ("of an event of no room", changed("room_id", json!("room")), BAD_JSON),
        ("in a room that there is not", changed("room_id", json!("!nowhere")), NOT_FOUND),
        ("in a room that names no policy server", changed("room_id", json!(stage.room)), NOT_FOUND),
    ];
    let mut rows: Vec<Row> =
        cases.iter().map(|(name, body, refusal)| stage.post(name, &stage.peer, target, body, *refusal)).collect();
    rows.push(stage.post("for a server that is not in the room", &stage.stranger, target, &good, FORBIDDEN));
    let request = stage.peer.request(&stage.b, Method::POST, target, Some(&good));
    rows.push(stage.row("by a server that is none", &stage.b, request, UNRECOGNIZED));
    rows
}
