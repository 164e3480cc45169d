//! A homeserver for these tests, and users who speak to it.

use std::rc::Rc;

use bytes::Bytes;
use serde_json::{Value, json};
use verge::{config::Config, platform::Platform, program::Program, router::Response, server::Server};

use crate::common::{
    network::{Homeserver, RATES, World},
    sqlite::Sqlite,
};

/// One server in a world of its own or of others.
pub struct Home {
    pub world: World,
    pub server: Rc<Program>,
    pub database: Sqlite,
}

/// A user who is logged in.
#[derive(Clone)]
pub struct User {
    pub id: String,
    pub token: String,
    pub device_id: String,
}

/// Status and body.
pub type Answer = (u16, Value);

impl Home {
    /// A server `hs.test` with open registration.
    pub fn new() -> Self {
        Self::with(&World::new(), "hs.test", &[("REGISTRATION", "open")])
    }

    pub fn with(world: &World, name: &str, variables: &[(&str, &str)]) -> Self {
        Self::on(world, name, variables, Sqlite::in_memory())
    }

    /// On a database that may hold something.
    pub fn on(world: &World, name: &str, variables: &[(&str, &str)], database: Sqlite) -> Self {
        let platform = world.platform(name, database.clone());
        Self::over(world, name, variables, database, platform)
    }

    /// The server alone, as peers know it.
    pub fn homeserver(&self) -> Homeserver {
        Homeserver { server: Rc::clone(&self.server), database: self.database.clone() }
    }

    /// A server of a deployment that has no place for media.
    pub fn without_media(world: &World, name: &str) -> Self {
        let database = Sqlite::in_memory();
        let platform = Platform { media: None, ..world.platform(name, database.clone()) };
        Self::over(world, name, &[("REGISTRATION", "open")], database, platform)
    }

    fn over(world: &World, name: &str, variables: &[(&str, &str)], database: Sqlite, platform: Platform) -> Self {
        let seed = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE";
        let config = Config::parse(|variable| {
            let given = variables.iter().find(|(name, _)| *name == variable).map(|(_, value)| (*value).to_owned());
            given.or_else(|| match variable {
                rate if RATES.contains(&rate) => Some("off".to_owned()),
                "FASTER_JOINS" => Some("off".to_owned()),
                "SERVER_NAME" => Some(name.to_owned()),
                "SIGNING_KEY" => Some(format!("ed25519 a_test {seed}")),
                _ => None,
            })
        })
        .unwrap();
        let server = Rc::new(Program::from(Server::new(Rc::new(config), platform)));
        world.connect_server(name, &server);
        Self { world: world.clone(), server, database }
    }

    /// Sends a request and reads the answer, with its headers.
    pub fn raw(&self, method: &str, target: &str, token: Option<&str>, body: impl Into<Bytes>) -> Response {
        self.world.run(self.server.handle(request(method, target, token, body)))
    }

    /// As [`Home::post`], beside what is running already. Gives the status.
    pub fn posting(&self, user: &User, path: &str, body: &Value) -> impl Future<Output = u16> + use<> {
        let server = Rc::clone(&self.server);
        let request = request_of(user, "POST", path, body.to_string());
        async move { server.handle(request).await.status().as_u16() }
    }

    /// Sends a request below `/_matrix/client/v3`.
    pub fn call(&self, token: Option<&str>, method: &str, path: &str, body: Option<Value>) -> Answer {
        let body = body.map_or_else(String::new, |body| body.to_string());
        let response = self.raw(method, &format!("/_matrix/client/v3{path}"), token, body);
        let value = serde_json::from_slice(response.body()).unwrap();
        (response.status().as_u16(), value)
    }

    /// Registers a user, who is then logged in.
    pub fn register(&self, name: &str) -> User {
        let body = json!({ "username": name, "password": format!("{name}'s"), "auth": { "type": "m.login.dummy" } });
        let (status, answer) = self.call(None, "POST", "/register", Some(body));
        assert_eq!(status, 200, "{answer}");
        User::of(&answer)
    }

    pub fn get(&self, user: &User, path: &str) -> Answer {
        self.call(Some(&user.token), "GET", path, None)
    }

    pub fn post(&self, user: &User, path: &str, body: Value) -> Answer {
        self.call(Some(&user.token), "POST", path, Some(body))
    }

    pub fn put(&self, user: &User, path: &str, body: Value) -> Answer {
        self.call(Some(&user.token), "PUT", path, Some(body))
    }

    /// Creates a room and returns its ID.
    pub fn room(&self, user: &User, body: Value) -> String {
        let (status, answer) = self.post(user, "/createRoom", body);
        assert_eq!(status, 200, "{answer}");
        answer["room_id"].as_str().unwrap().to_owned()
    }

    /// Sends a text message and returns its event ID.
    pub fn say(&self, user: &User, room: &str, text: &str, txn_id: &str) -> String {
        let body = json!({ "msgtype": "m.text", "body": text });
        let (status, answer) = self.put(user, &format!("/rooms/{}/send/m.room.message/{txn_id}", quote(room)), body);
        assert_eq!(status, 200, "{answer}");
        answer["event_id"].as_str().unwrap().to_owned()
    }

    /// Syncs and returns the whole answer.
    pub fn sync(&self, user: &User, query: &str) -> Value {
        let (status, answer) = self.get(user, &format!("/sync?{query}"));
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

impl User {
    pub fn of(answer: &Value) -> Self {
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        Self { id: text("user_id"), token: text("access_token"), device_id: text("device_id") }
    }
}

/// The query of the sync that goes on where this one ended.
pub fn next(answer: &Value) -> String {
    format!("since={}", answer["next_batch"].as_str().unwrap())
}

/// A request of the user below `/_matrix/client/v3`.
pub fn request_of(user: &User, method: &str, path: &str, body: impl Into<Bytes>) -> http::Request<Bytes> {
    request(method, &format!("/_matrix/client/v3{path}"), Some(&user.token), body)
}

fn request(method: &str, target: &str, token: Option<&str>, body: impl Into<Bytes>) -> http::Request<Bytes> {
    let mut request = http::Request::builder().method(method).uri(target);
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    request.body(body.into()).unwrap()
}

/// Percent-encodes a path segment, everything but letters and digits.
pub fn quote(segment: &str) -> String {
    percent_encoding::utf8_percent_encode(segment, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Asserts the status and `errcode` of an answer.
#[track_caller]
pub fn refused((status, answer): &Answer, expected: u16, errcode: &str) {
    assert_eq!((*status, answer["errcode"].as_str()), (expected, Some(errcode)), "{answer}");
    assert!(answer["error"].is_string(), "{answer}");
}
