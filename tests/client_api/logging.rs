//! What the log says of requests, and what it never says.

use serde_json::{Value, json};

use crate::{
    common::network::World,
    home::{Home, User, quote},
};

const SECRETS: [&str; 6] = ["pass-w0rd", "registration-s3cret", "c0ntent", "query-v4lue", "w4lk-in", "t0ken"];

fn home(variables: &[(&str, &str)]) -> Home {
    let token = [("REGISTRATION", "token"), ("REGISTRATION_TOKEN", "registration-s3cret")];
    Home::with(&World::new(), "hs.test", &[&token, variables].concat())
}

fn register(home: &Home) -> User {
    let auth = json!({ "type": "m.login.registration_token", "token": "registration-s3cret" });
    let body = json!({ "username": "alice", "password": "pass-w0rd" });
    let (_, asked) = home.call(None, "POST", "/register", Some(body.clone()));
    let with = |mut auth: Value| {
        let mut body = body.clone();
        auth["session"] = asked["session"].clone();
        body["auth"] = auth;
        home.call(None, "POST", "/register", Some(body))
    };
    let answer = match with(auth) {
        (200, answer) => answer,
        _ => with(json!({ "type": "m.login.dummy" })).1,
    };
    User::of(&answer)
}

/// The lines of the log so far.
fn lines(home: &Home) -> Vec<String> {
    home.world.logs().iter().map(|line| line.split_once(": ").unwrap().1.to_owned()).collect()
}

#[test]
fn each_request_is_one_line_without_its_query_token_or_body() {
    let home = home(&[("LOG_COSTS", "1")]);
    let alice = register(&home);
    let room = home.room(&alice, json!({ "name": "c0ntent" }));
    let event = home.say(&alice, &room, "c0ntent", "1");
    let in_room = |rest: &str| format!("/_matrix/client/v3/rooms/{}/{rest}", quote(&room));
    let login = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": "pass-w0rd",
    });
    let wrong = login.to_string().replace("w0rd", "w0rd!");
    let in_query = format!("/_matrix/client/v3/account/whoami?access_token={}", alice.token);
    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=registration-s3cret";
    for (method, target, body, status, endpoint) in [
        ("POST", "/_matrix/client/v3/login", login.to_string(), 200, "/_matrix/client/v3/login"),
        ("POST", "/_matrix/client/v3/login", wrong, 403, "/_matrix/client/v3/login"),
        ("GET", &in_query, String::new(), 200, "/_matrix/client/v3/account/whoami"),
        (
            "GET",
            "/_matrix/client/r0/account/whoami?access_token=t0ken",
            String::new(),
            401,
            "/_matrix/client/v3/account/whoami",
        ),
        ("GET", validity, String::new(), 200, validity.split('?').next().unwrap()),
        (
            "PUT",
            &in_room("send/m.room.message/query-v4lue"),
            json!({ "body": "c0ntent" }).to_string(),
            200,
            "/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}",
        ),
        (
            "GET",
            &in_room(&format!("event/{}?a=query-v4lue", quote(&event))),
            String::new(),
            200,
            "/_matrix/client/v3/rooms/{roomId}/event/{eventId}",
        ),
        ("GET", &in_room("messages?dir=query-v4lue"), String::new(), 400, "/_matrix/client/v3/rooms/{roomId}/messages"),
        ("POST", "/_matrix/client/v3/createRoom", "[\"c0ntent\"".to_owned(), 400, "/_matrix/client/v3/createRoom"),
        ("GET", "/_matrix/client/v3/w4lk-in/t0ken?token=t0ken", String::new(), 404, ""),
    ] {
        let before = lines(&home).len();
        let by_header = !target.contains("access_token");
        let answer = home.raw(method, target, Some(alice.token.as_str()).filter(|_| by_header), body);
        assert_eq!(answer.status().as_u16(), status, "{target}: {:?}", answer.body());
        home.world.settle();
        let new = lines(&home).split_off(before);
        let [line] = new.as_slice() else { panic!("{target} has the lines {new:?}") };
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&line["what"], &line["level"], &line["status"]),
            (&json!("request"), &json!("info"), &json!(status))
        );
        assert_eq!(line["endpoint"].as_str().unwrap_or_default(), endpoint);
        assert_eq!(line["method"].as_str(), Some(method).filter(|_| !endpoint.is_empty()));
        assert!(line["duration_ms"].is_u64() && line["calls"].is_u64() && line["rows_read"].is_u64(), "{line}");
        assert_eq!(line["room"].as_str(), Some(room.as_str()).filter(|_| endpoint.contains("{roomId}")));
        assert_eq!(line["event"].as_str(), Some(event.as_str()).filter(|_| endpoint.contains("{eventId}")));
        assert_eq!(line["errcode"].is_string(), status >= 400);
    }
    let log = lines(&home).join("\n");
    assert!(!log.contains('?') && !log.contains(&alice.token), "{log}");
    for secret in SECRETS {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[test]
fn a_request_that_fails_is_logged_in_any_case_and_shows_nothing_of_the_database() {
    let home = home(&[]);
    let alice = register(&home);
    assert_eq!(lines(&home), [""; 0], "nothing is logged that an operator has not asked for");
    // A column that holds something else than the schema says.
    home.database.rows("UPDATE streams SET position = 't0ken'");
    let answer = home.raw("GET", "/_matrix/client/v3/sync?dialect=query-v4lue", Some(&alice.token), "");
    let text = String::from_utf8(answer.body().to_vec()).unwrap();
    assert_eq!(answer.status().as_u16(), 500, "{text}");
    let all = lines(&home);
    let [line] = all.as_slice() else { panic!("{all:?}") };
    for shown in [line, &text] {
        assert!(SECRETS.iter().all(|secret| !shown.contains(secret)), "{shown}");
    }
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["level"], &line["endpoint"]), (&json!("error"), &json!("/_matrix/client/v3/sync")));
    assert!(line["reason"].as_str().unwrap().contains("not an integer"), "{line}");
}
