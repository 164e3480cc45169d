//! Several isolates of one server: three `Program` values over one database, and another server, take a thousand events
//! of one room while all their database calls and requests are interleaved at random. No update may be lost, no event
//! may be there twice, every transaction has one answer, and no sync may skip or repeat an event.
//!
//! Each seed is another interleaving. A failure names its seed; `ISOLATES_SEED=7 cargo test --test isolates` repeats it.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use bytes::Bytes;
use common::{contract, devices::Device, network::World, sqlite::Sqlite};
use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use verge::{
    config::Config,
    federation::outbound::membership,
    matrix::{
        identifiers::{RoomId, ServerName, UserId},
        json::{self, Object},
        state_content::Membership,
    },
    platform::{Clock, Random},
    program::Program,
    room::Draft,
    router::{Request, Response},
    server::Server,
};

/// The database of these tests does what those of the engines do, in so far as it has to: `tests/waist` asks those.
#[test]
fn the_database_keeps_the_contract_of_the_narrow_waist() {
    let database = Sqlite::in_memory();
    let broken = World::new().run(contract::broken(&database, contract::CASES));
    assert!(broken.is_empty(), "{broken:#?}");
}

/// What is sent on each side.
const EVENTS_OF_A_SIDE: usize = 500;
/// With those of users who come and go: 20 on this side, 21 on the other.
const ALL_EVENTS: usize = 2 * EVENTS_OF_A_SIDE + 20 + 21;
/// How many writers share them, and so how many requests of a side are under way at once.
const WRITERS: usize = 5;

#[test]
fn three_isolates_are_one_server() {
    let one = std::env::var("ISOLATES_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds = one.map_or_else(|| (1..=4).collect(), |seed: u64| vec![seed]);
    for seed in seeds {
        let _named = Named(seed);
        Scene::new(seed).play();
    }
}

#[test]
fn a_one_time_key_is_given_out_once_whichever_isolate_is_asked() {
    for seed in 1..=4 {
        let _named = Named(seed);
        let world = World::seeded(seed);
        let database = Sqlite::in_memory();
        let isolates: Vec<_> = (0..3).map(|_| server(&world, "a.example", &database)).collect();
        let register = async |name: String| {
            let body = json!({ "username": name, "password": "secret", "auth": { "type": "m.login.dummy" } });
            call(&isolates[0], "", "POST", "/register", Some(body)).await
        };
        let device = world.run(async {
            let answer = register("alice".to_owned()).await;
            let text = |name: &str| answer[name].as_str().unwrap().to_owned();
            let device = Device::new(&text("user_id"), &text("device_id"));
            let (fallback, key) = device.fallback_key("F");
            let body = json!({
                "device_keys": device.keys(), "one_time_keys": device.one_time_keys(150), "fallback_keys": { fallback: key },
            });
            call(&isolates[0], &text("access_token"), "POST", "/keys/upload", Some(body)).await;
            device
        });
        // So many that none of them asks for more of the device's keys than one user gets.
        let claimants: Vec<String> = (0..11)
            .map(|n| world.run(register(format!("claimant{n}")))["access_token"].as_str().unwrap().to_owned())
            .collect();
        world.interleave();
        let wanted = json!({ "one_time_keys": { &device.user: { &device.id: "signed_curve25519" } } });
        let claims = (0..200).map(|n| {
            let isolate = &isolates[random(&world, 3)];
            call(isolate, &claimants[n % claimants.len()], "POST", "/keys/claim", Some(wanted.clone()))
        });
        let answers = world.run(join_all(claims));
        let mut given: BTreeMap<String, usize> = BTreeMap::new();
        for answer in answers {
            let keys = answer["one_time_keys"][&device.user][&device.id].as_object().unwrap();
            assert_eq!(keys.len(), 1);
            *given.entry(keys.keys().next().unwrap().clone()).or_default() += 1;
        }
        assert_eq!(given.remove(&device.fallback_key("F").0), Some(50), "{given:?}");
        assert_eq!(given.len(), 150);
        assert!(given.values().all(|times| *times == 1), "{given:?}");
    }
}

#[test]
fn a_profile_loses_nothing_that_is_set_at_once_and_rooms_know_it_as_it_is() {
    for seed in 1..=4 {
        let _named = Named(seed);
        let world = World::seeded(seed);
        let database = Sqlite::in_memory();
        let isolates: Vec<_> = (0..2).map(|_| server(&world, "a.example", &database)).collect();
        let (user, token, rooms) = world.run(async {
            let body = json!({ "username": "alice", "password": "secret", "auth": { "type": "m.login.dummy" } });
            let answer = call(&isolates[0], "", "POST", "/register", Some(body)).await;
            let text = |name: &str| answer[name].as_str().unwrap().to_owned();
            let mut rooms = Vec::new();
            for _ in 0..2 {
                let answer = call(&isolates[0], &text("access_token"), "POST", "/createRoom", Some(json!({}))).await;
                rooms.push(answer["room_id"].as_str().unwrap().to_owned());
            }
            (text("user_id"), text("access_token"), rooms)
        });
        world.interleave();
        let get = |path: String| world.run(call(&isolates[0], &token, "GET", &path, None));
        let set = |n: usize, name: &'static str, value: String| {
            let (isolate, token) = (&isolates[n % 2], &token);
            let path = format!("/profile/{}/{name}", quote(&user));
            async move { call(isolate, token, "PUT", &path, Some(json!({ name: value }))).await }
        };
        let told = || {
            let profile = get(format!("/profile/{}", quote(&user)));
            let mut expected = profile.clone();
            expected["membership"] = json!("join");
            for room in &rooms {
                let member = get(format!("/rooms/{}/state/m.room.member/{}", quote(room), quote(&user)));
                assert_eq!(member, expected, "{room}");
            }
            profile
        };
        for round in 0..10 {
            let [name, picture] = [format!("Alice {round}"), format!("mxc://a.example/{round}")];
            world.run(join(set(0, "displayname", name.clone()), set(1, "avatar_url", picture.clone())));
            assert_eq!(told(), json!({ "displayname": name, "avatar_url": picture }));
            // Of several of one field any may be the last.
            world.run(join_all((0..6).map(|n| set(n, "displayname", format!("Anna {round} {n}")))));
            told();
        }
    }
}

/// Names the seed when the test fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with ISOLATES_SEED={}", self.0);
        }
    }
}

/// Three isolates of `a.example` and the server `b.example`, in one room.
struct Scene {
    world: World,
    isolates: Rc<Isolates>,
    a_database: Sqlite,
    b: Rc<Program>,
    b_database: Sqlite,
    /// The local users, with their access tokens.
    users: Vec<(UserId, String)>,
    room: RoomId,
    /// The IDs of all events that were acknowledged.
    acknowledged: RefCell<Vec<String>>,
    /// Writers that are not done.
    writing: Cell<usize>,
}

/// The isolates of one server, and the transactions that they took.
struct Isolates {
    world: World,
    servers: Vec<Rc<Program>>,
    turn: Cell<usize>,
    transactions: RefCell<BTreeMap<String, (Request, String)>>,
}

impl Isolates {
    fn any(&self) -> &Rc<Program> {
        &self.servers[random(&self.world, self.servers.len())]
    }

    /// Answers a request to the server's name. Transactions come twice at once at times, or again later, and at times
    /// their answer is lost.
    async fn answer(&self, request: Request) -> Response {
        self.turn.set(self.turn.get() + 1);
        let server = &self.servers[self.turn.get() % self.servers.len()];
        let path = request.uri().path().to_owned();
        if !path.starts_with("/_matrix/federation/v1/send/") {
            return server.handle(request).await;
        }
        let response = match random(&self.world, 3) {
            0 => {
                let (one, other) = join(server.handle(request.clone()), self.any().handle(request.clone())).await;
                assert_eq!(body(&one), body(&other), "one transaction has one answer");
                one
            }
            _ => server.handle(request.clone()).await,
        };
        assert_eq!(response.status(), 200, "{}", body(&response));
        let known = self.transactions.borrow_mut().insert(path, (request, body(&response)));
        if let Some((_, before)) = known {
            assert_eq!(body(&response), before, "a repeated transaction has the same answer");
        }
        let again = match random(&self.world, 10) {
            0 => {
                let transactions = self.transactions.borrow();
                transactions.values().nth(random(&self.world, transactions.len())).cloned()
            }
            _ => None,
        };
        if let Some((request, before)) = again {
            assert_eq!(body(&self.any().handle(request).await), before, "an old transaction has the same answer");
        }
        if random(&self.world, 20) == 0 {
            return http::Response::builder().status(502).body(Bytes::new()).unwrap();
        }
        response
    }
}

impl Scene {
    fn new(seed: u64) -> Self {
        let world = World::seeded(seed);
        let (a_database, b_database) = (Sqlite::in_memory(), Sqlite::in_memory());
        let servers = (0..3).map(|_| server(&world, "a.example", &a_database)).collect();
        let isolates =
            Rc::new(Isolates { world: world.clone(), servers, turn: Cell::new(0), transactions: RefCell::default() });
        let hosts = isolates.clone();
        world.connect(
            "a.example",
            Rc::new(move |request| {
                let isolates = hosts.clone();
                Box::pin(async move { isolates.answer(request).await })
            }),
        );
        let b = server(&world, "b.example", &b_database);
        world.connect_server("b.example", &b);
        let (users, room) = world.run(async {
            let mut users = Vec::new();
            for name in ["alice", "anna", "arthur", "dave"] {
                let body = json!({ "username": name, "password": "secret", "auth": { "type": "m.login.dummy" } });
                let answer = call(isolates.any(), "", "POST", "/register", Some(body)).await;
                let token = answer["access_token"].as_str().unwrap().to_owned();
                users.push((user(answer["user_id"].as_str().unwrap()), token));
            }
            let everybody = json!({ "state_default": 0, "events": {} });
            let body = json!({ "preset": "public_chat", "power_level_content_override": everybody });
            let answer = call(isolates.any(), &users[0].1, "POST", "/createRoom", Some(body)).await;
            let room = RoomId::parse(answer["room_id"].as_str().unwrap()).unwrap();
            for (_, token) in &users[1..] {
                call(isolates.any(), token, "POST", &format!("/join/{}", quote(room.as_str())), Some(json!({}))).await;
            }
            let via = vec![ServerName::parse("a.example").unwrap()];
            membership::join(&b, &user("@bob:b.example"), &room, via, Object::new()).await.unwrap();
            (users, room)
        });
        world.settle();
        let (acknowledged, writing) = (RefCell::default(), Cell::new(0));
        Self { world, isolates, a_database, b, b_database, users, room, acknowledged, writing }
    }

    fn play(&self) {
        self.world.interleave();
        let watchers: Vec<Watcher> =
            (0..3).map(|i| self.world.run(Watcher::new(self, &self.users[i].1, [3, 10, 100][i]))).collect();
        self.writing.set(2 * WRITERS + 2);
        let watchers = self.world.run(async {
            let locals = join_all((0..WRITERS).map(|writer| self.write_here(writer)));
            let remotes = join_all((0..WRITERS).map(|writer| self.write_there(writer)));
            let restless = join(self.come_and_go_here(), self.come_and_go_there());
            let watching = join_all(watchers.into_iter().map(|watcher| watcher.watch(self)));
            let (_, (_, (_, (watchers, ())))) =
                join(locals, join(remotes, join(restless, join(watching, self.let_time_pass())))).await;
            watchers
        });
        // Whatever a lost answer has put off.
        for _ in 0..3 {
            self.world.settle();
            self.world.advance(3_600_000);
            self.world.run(async {
                join_all(self.isolates.servers.iter().chain([&self.b]).map(|server| server.scheduled())).await;
            });
        }
        self.world.settle();
        self.check_events();
        self.check_transactions();
        self.world.run(self.check_state());
        for watcher in watchers {
            self.world.run(watcher.check(self));
        }
    }

    /// The clock goes on while everybody works, so that who sleeps is among those who do not.
    async fn let_time_pass(&self) {
        while self.writing.get() > 0 {
            self.world.advance(1);
            turn().await;
        }
    }

    /// A client of random isolates. Some of its requests are made twice at once, or once more later.
    async fn write_here(&self, writer: usize) {
        let (_, token) = &self.users[writer % 3];
        let room = quote(self.room.as_str());
        for n in 0..EVENTS_OF_A_SIDE / WRITERS {
            let (path, body) = if n % 25 == 7 {
                (format!("/rooms/{room}/state/m.room.topic"), json!({ "topic": format!("a {writer} {n}") }))
            } else {
                let body = json!({ "msgtype": "m.text", "body": format!("a {writer} {n}") });
                (format!("/rooms/{room}/send/m.room.message/{writer}-{n}"), body)
            };
            let send = || async {
                let answer = call(self.isolates.any(), token, "PUT", &path, Some(body.clone())).await;
                answer["event_id"].as_str().unwrap().to_owned()
            };
            let event_id = match random(&self.world, 5) {
                0 if n % 25 != 7 => {
                    let (one, other) = join(send(), send()).await;
                    assert_eq!(one, other, "one transaction ID makes one event");
                    assert_eq!(one, send().await, "also later");
                    one
                }
                _ => send().await,
            };
            self.acknowledged.borrow_mut().push(event_id);
        }
        self.writing.set(self.writing.get() - 1);
    }

    /// A user of the other server.
    async fn write_there(&self, writer: usize) {
        let bob = user("@bob:b.example");
        for n in 0..EVENTS_OF_A_SIDE / WRITERS {
            let text = format!("b {writer} {n}");
            let draft = if n % 25 == 13 {
                Draft::state("m.room.topic", "", object(json!({ "topic": text })))
            } else {
                Draft::message("m.room.message", object(json!({ "msgtype": "m.text", "body": text })))
            };
            self.say_there(&bob, draft).await;
        }
        self.writing.set(self.writing.get() - 1);
    }

    async fn say_there(&self, sender: &UserId, draft: Draft) {
        let event = self.b.rooms.send(&self.room, sender, draft).await.unwrap();
        self.b.flush(&self.room);
        self.acknowledged.borrow_mut().push(event.event_id().to_string());
    }

    /// A local user leaves and joins; the servers count their joined users.
    async fn come_and_go_here(&self) {
        let (_, token) = &self.users[3];
        let room = quote(self.room.as_str());
        for _ in 0..10 {
            call(self.isolates.any(), token, "POST", &format!("/rooms/{room}/leave"), Some(json!({}))).await;
            self.pause(20).await;
            call(self.isolates.any(), token, "POST", &format!("/join/{room}"), Some(json!({}))).await;
            self.pause(20).await;
        }
        self.writing.set(self.writing.get() - 1);
    }

    async fn come_and_go_there(&self) {
        let carol = user("@carol:b.example");
        for n in 0..21 {
            let membership = if n % 2 == 0 { Membership::Join } else { Membership::Leave };
            self.say_there(&carol, Draft::membership(carol.as_str(), membership, Object::new())).await;
            self.pause(20).await;
        }
        self.writing.set(self.writing.get() - 1);
    }

    async fn pause(&self, longest: usize) {
        let ms = 2 + random(&self.world, longest);
        self.world.sleep(u32::try_from(ms).unwrap()).await;
    }

    /// Both servers hold every event that was acknowledged, once, and no event that was not.
    fn check_events(&self) {
        let newest = format!(
            "SELECT e.event_id FROM (SELECT * FROM timeline ORDER BY pos DESC LIMIT {ALL_EVENTS}) \
             JOIN events AS e USING (event_nid) ORDER BY e.event_id"
        );
        assert_eq!(self.a_database.rows(&newest), self.b_database.rows(&newest), "{:#?}", self.world.logs());
        let mut acknowledged = self.acknowledged.borrow().clone();
        acknowledged.sort();
        for database in [&self.a_database, &self.b_database] {
            let logs = self.world.logs();
            let sent = "e.event_type IN ('m.room.message', 'm.room.topic') OR e.state_key = '@carol:b.example'";
            let rows = database.rows(&format!(
                "SELECT e.event_id FROM timeline AS t JOIN events AS e USING (event_nid) WHERE {sent} ORDER BY e.event_id"
            ));
            assert_eq!(rows.concat(), acknowledged, "{logs:#?}");
            assert_eq!(rows.len(), ALL_EVENTS - 20);
            let all = database.rows(&format!("SELECT count(*) FROM events AS e WHERE {sent}"));
            assert_eq!(all[0][0], acknowledged.len().to_string(), "{logs:#?}");
            let bad = "SELECT event_id FROM rejected_events UNION SELECT event_id FROM events WHERE soft_failed";
            assert_eq!(database.rows(bad), Vec::<Vec<String>>::new());
            assert_eq!(database.rows("SELECT event_id FROM staged_pdus"), Vec::<Vec<String>>::new(), "{logs:#?}");
        }
    }

    fn check_transactions(&self) {
        let stored = self.a_database.rows("SELECT txn_id, response FROM transactions ORDER BY txn_id");
        let mut answered: Vec<Vec<String>> = Vec::new();
        for (path, (_, answer)) in self.isolates.transactions.borrow().iter() {
            answered.push(vec![path.rsplit('/').next().unwrap().to_owned(), answer.clone()]);
        }
        // The last ones, of which each was answered with what is stored.
        assert!(stored.len() > 1 && stored.iter().all(|stored| answered.contains(stored)));
    }

    /// Both servers hold the same current state, stand at the same events, and count the joined users rightly.
    async fn check_state(&self) {
        let a = self.isolates.any();
        assert_eq!(state(a, &self.room).await, state(&self.b, &self.room).await);
        let extremities = |database: &Sqlite| -> BTreeSet<Vec<String>> {
            database.rows("SELECT x.value FROM rooms, json_each(rooms.extremities) AS x").into_iter().collect()
        };
        assert_eq!(extremities(&self.a_database), extremities(&self.b_database));
        for database in [&self.a_database, &self.b_database] {
            let counts = database.rows("SELECT server, joined FROM room_servers WHERE to_pos IS NULL ORDER BY server");
            assert_eq!(counts, [["a.example", "4"], ["b.example", "2"]]);
        }
        let memberships =
            self.a_database.rows("SELECT user_id, membership FROM local_memberships WHERE membership <> 'join'");
        assert_eq!(memberships, Vec::<Vec<String>>::new());
    }
}

/// A user who syncs from time to time.
struct Watcher {
    token: String,
    filter: String,
    since: String,
    /// The IDs of the events told, in order.
    told: Vec<String>,
    /// The state as the syncs told it.
    state: BTreeMap<(String, String), String>,
}

impl Watcher {
    async fn new(scene: &Scene, token: &str, limit: usize) -> Self {
        let filter = quote(&json!({ "room": { "timeline": { "limit": limit } } }).to_string());
        let (since, state) = (String::new(), BTreeMap::new());
        let mut watcher = Self { token: token.to_owned(), filter, since, told: Vec::new(), state };
        watcher.sync(scene, 0).await;
        watcher.told.clear();
        watcher
    }

    async fn watch(mut self, scene: &Scene) -> Self {
        while scene.writing.get() > 0 {
            let timeout = [0, 0, 1_000][random(&scene.world, 3)];
            self.sync(scene, timeout).await;
            scene.pause([5, 50, 500][random(&scene.world, 3)]).await;
        }
        self
    }

    /// One sync through any isolate; a gap in the timeline is filled from where it begins, through another.
    async fn sync(&mut self, scene: &Scene, timeout: u32) {
        let (since, filter) = (&self.since, &self.filter);
        let path = format!("/sync?since={since}&filter={filter}&timeout={timeout}&use_state_after=true");
        let answer = call(scene.isolates.any(), &self.token, "GET", &path, None).await;
        let room = &answer["rooms"]["join"][scene.room.as_str()];
        if room.is_object() {
            let mut events = ids(&room["timeline"]["events"]);
            if room["timeline"]["limited"] == true && !since.is_empty() {
                let before = room["timeline"]["prev_batch"].as_str().unwrap();
                events.splice(0..0, self.gap(scene, before).await);
            }
            self.told.extend(events);
            for event in room["state_after"]["events"].as_array().unwrap() {
                let text = |name: &str| event[name].as_str().unwrap().to_owned();
                self.state.insert((text("type"), text("state_key")), text("event_id"));
            }
        }
        self.since = answer["next_batch"].as_str().unwrap().to_owned();
    }

    async fn gap(&self, scene: &Scene, before: &str) -> Vec<String> {
        let room = quote(scene.room.as_str());
        let (mut from, mut newest_first) = (before.to_owned(), Vec::new());
        loop {
            let path = format!("/rooms/{room}/messages?dir=b&limit=20&from={from}&to={}", self.since);
            let page = call(scene.isolates.any(), &self.token, "GET", &path, None).await;
            newest_first.extend(ids(&page["chunk"]));
            match page["end"].as_str() {
                Some(end) => from = end.to_owned(),
                None => break,
            }
        }
        newest_first.reverse();
        newest_first
    }

    /// Everything was told, in the order of the commits, and nothing twice.
    async fn check(mut self, scene: &Scene) {
        self.sync(scene, 0).await;
        let newest = "SELECT e.event_id FROM timeline AS t JOIN events AS e USING (event_nid) ORDER BY t.pos DESC";
        let mut expected = scene.a_database.rows(&format!("{newest} LIMIT {ALL_EVENTS}")).concat();
        expected.reverse();
        assert_eq!(self.told.len(), expected.len());
        assert_eq!(self.told, expected);
        assert_eq!(self.state, state(scene.isolates.any(), &scene.room).await);
        let before = self.told.len();
        self.sync(scene, 0).await;
        assert_eq!(self.told.len(), before, "nothing is new");
    }
}

fn server(world: &World, name: &str, database: &Sqlite) -> Rc<Program> {
    // Any 32 bytes are a seed; each server has its own.
    let seed = format!("{:A<43}", name.replace('.', ""));
    let config = Config::parse(|variable| match variable {
        "SERVER_NAME" => Some(name.to_owned()),
        "SIGNING_KEY" => Some(format!("ed25519 a_test {seed}")),
        "REGISTRATION" => Some("open".to_owned()),
        "FEDERATION_RATE" | "REGISTRATION_RATE" | "LOGIN_RATE" => Some("off".to_owned()),
        _ => None,
    })
    .unwrap();
    Rc::new(Server::new(Rc::new(config), world.platform(name, database.clone())).into())
}

/// A request to the Client-Server API that succeeds.
async fn call(server: &Program, token: &str, method: &str, path: &str, body: Option<Value>) -> Value {
    let body = body.map_or_else(String::new, |body| body.to_string());
    let request = http::Request::builder()
        .method(method)
        .uri(format!("/_matrix/client/v3{path}"))
        .header("Authorization", format!("Bearer {token}"))
        .body(Bytes::from(body))
        .unwrap();
    let response = server.handle(request).await;
    let text = self::body(&response);
    assert_eq!(response.status(), 200, "{method} {path}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// The current state: event IDs by type and state key.
async fn state(server: &Server, room: &RoomId) -> BTreeMap<(String, String), String> {
    let row = server.rooms.room(room).await.unwrap().unwrap();
    let state = common::homeserver::state_events(server, row.state).await;
    let key =
        |event: &verge::matrix::event::Event| (event.event_type().to_owned(), event.state_key().unwrap().to_owned());
    state.iter().map(|event| (key(event), event.event_id().to_string())).collect()
}

fn ids(events: &Value) -> Vec<String> {
    events.as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

fn body(response: &Response) -> String {
    String::from_utf8(response.body().to_vec()).unwrap()
}

fn object(value: Value) -> Object {
    json::parse(value.to_string().as_bytes()).unwrap().into_object().unwrap()
}

fn user(id: &str) -> UserId {
    UserId::parse(id).unwrap()
}

/// Percent-encodes a path segment, everything but letters and digits.
fn quote(segment: &str) -> String {
    percent_encoding::utf8_percent_encode(segment, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A number below `end`.
fn random(world: &World, end: usize) -> usize {
    let mut bytes = [0; 4];
    world.fill(&mut bytes);
    u32::from_le_bytes(bytes) as usize % end
}

/// Lets others go on.
async fn turn() {
    let mut waited = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
