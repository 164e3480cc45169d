//! The servers, their users and their room, as they are before anything goes wrong.

use std::{cell::RefCell, rc::Rc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use verge::{
    platform::{Database, Statement},
    router::Request,
};

use crate::{
    common::{
        generator::Random,
        network::{Homeserver, World},
        peer::encode,
        sqlite::Sqlite,
    },
    dice::Dice,
    faults::Faults,
    wire::Network,
};

/// The servers that keep to the protocol. The first one made the room, and is never without a user in it.
pub const HONEST: [&str; 3] = ["a.example", "b.example", "c.example"];
/// The member's server that does not. Its events are as valid as any; what it does with them and with others' is not.
pub const EVIL: &str = "m.example";
/// A server that was in the room and is reached by nobody any more. The oracle is what it would have been without faults.
pub const ORACLE: &str = "o.example";
/// The room has so many state events besides those that its members make.
const FILLERS: usize = 150;
/// The users of each server: 0 with power level 100 and 1 with 50 (not those of the malicious server) are in the room from
/// its beginning, the others come later.
const USERS: usize = 4;

/// A user who is logged in.
#[derive(Debug, Clone)]
pub struct Person {
    pub id: String,
    pub token: String,
}

/// A server and its users.
pub struct Member {
    pub name: &'static str,
    pub home: Homeserver,
    pub people: Vec<Person>,
}

/// The databases of all servers when the room has just been made: each world begins with copies.
pub struct Image {
    pub version: &'static str,
    pub room: String,
    pub now_ms: i64,
    databases: Vec<(&'static str, Sqlite)>,
}

/// One world, with what happened in it.
pub struct Scene {
    pub world: World,
    pub room: String,
    pub faults: Faults,
    pub dice: Dice,
    /// Those of [`HONEST`], in their order, and then the other.
    pub members: Vec<Member>,
    pub network: Rc<Network>,
    pub story: Story,
    /// When it began, in milliseconds.
    pub began: i64,
    /// Events that the malicious server made without keeping them.
    pub by_hand: RefCell<Vec<(String, Value)>>,
}

/// What happened, in order.
#[derive(Clone)]
pub struct Story {
    world: World,
    lines: Rc<RefCell<Vec<String>>>,
}

impl Story {
    fn new(world: &World) -> Self {
        Self { world: world.clone(), lines: Rc::default() }
    }

    /// Adds a line.
    pub fn tell(&self, line: &str) {
        let at = self.world.now_ms() - 1_800_000_000_000;
        self.lines.borrow_mut().push(format!("{:>8}.{:03} {line}", at / 1_000, at % 1_000));
    }

    /// All lines.
    pub fn text(&self) -> String {
        self.lines.borrow().join("\n")
    }
}

impl Image {
    /// The room in this room version.
    pub fn new(version: &'static str) -> Self {
        let world = World::new();
        let names = HONEST.into_iter().chain([EVIL, ORACLE]);
        let members: Vec<Member> = names.map(|name| Member::new(&world, name, Sqlite::in_memory())).collect();
        members.iter().for_each(|member| member.log_in(&world));
        let first = &members[0];
        let mut users = json!({});
        for member in members.iter().filter(|member| HONEST.contains(&member.name)) {
            for (person, level) in member.people.iter().zip([100, 50]) {
                users[&person.id] = json!(level);
            }
        }
        if version == "12" {
            users.as_object_mut().unwrap().remove(&first.people[0].id);
        }
        let body = json!({
            "preset": "public_chat",
            "room_version": version,
            "power_level_content_override": { "users": users },
        });
        let (status, answer) = first.call(&world, 0, "POST", "/createRoom", Some(body));
        assert_eq!(status, 200, "{answer}");
        let room = answer["room_id"].as_str().unwrap().to_owned();
        for i in 0..FILLERS {
            let path = format!("/rooms/{}/state/x.filler/{i}", encode(&room));
            let (status, answer) = first.call(&world, 0, "PUT", &path, Some(json!({ "filler": i })));
            assert_eq!(status, 200, "{answer}");
        }
        for member in &members {
            for person in 0..2 {
                world.advance(1_000);
                if (member.name, person) != (first.name, 0) {
                    let path = format!("/join/{}?server_name={}", encode(&room), first.name);
                    let (status, answer) = member.call(&world, person, "POST", &path, Some(json!({})));
                    assert_eq!(status, 200, "{answer}");
                    world.settle();
                }
                // So that everybody has everybody's keys.
                member.say(&world, &room, person, "hello", &format!("hello{person}")).unwrap();
                world.settle();
            }
        }
        let databases = members.iter().map(|member| (member.name, member.home.database.copy())).collect();
        let image = Self { version, room, now_ms: world.now_ms(), databases };
        world.end();
        image
    }

    /// A copy of a server's database.
    pub fn database(&self, name: &str) -> Sqlite {
        self.databases.iter().find(|(known, _)| *known == name).unwrap().1.copy()
    }

    /// A world that has the time of this image.
    pub fn world(&self, seed: u64) -> World {
        let world = World::seeded(seed);
        world.advance(self.now_ms - world.now_ms() + 60_000);
        world
    }
}

impl Scene {
    /// The world of `seed`, in which some of the faults `allowed` happen.
    pub fn new(image: &Image, seed: u64, allowed: &Faults) -> Self {
        let world = image.world(seed);
        let mut random = Random::new(seed);
        let faults = allowed.some(&mut random);
        let names = HONEST.into_iter().chain([EVIL]);
        let members: Vec<Member> = names.map(|name| Member::new(&world, name, image.database(name))).collect();
        let story = Story::new(&world);
        story.tell(&format!("seed {seed}, room version {}, faults {faults}", image.version));
        let evil = members.last().unwrap().home.database.clone();
        let network = Network::new(&world, random.next(), faults.clone(), evil, story.clone());
        Rc::clone(&network).tap();
        if faults.has(crate::faults::Fault::Interleave) {
            world.interleave();
        }
        let (room, dice, began) = (image.room.clone(), Dice::new(random), world.now_ms());
        Self { began, world, room, faults, dice, members, network, story, by_hand: RefCell::default() }
    }

    /// The honest servers.
    pub fn honest(&self) -> &[Member] {
        &self.members[..HONEST.len()]
    }
}

impl Member {
    fn new(world: &World, name: &'static str, database: Sqlite) -> Self {
        let home = world.server_over(name, database, &[]);
        let person = |i: usize| {
            let id = format!("@{}{i}:{name}", &name[..1]);
            Person { token: format!("token of {id}"), id }
        };
        Self { name, home, people: (0..USERS).map(person).collect() }
    }

    /// Makes the users, without the passwords that would take long to hash.
    fn log_in(&self, world: &World) {
        let mut statements = Vec::new();
        for person in &self.people {
            let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(&person.token));
            let user = "INSERT INTO users (user_id, password, displayname, created_ts) VALUES (?1, 'a hash', NULL, 1)";
            let device =
                "INSERT INTO devices (user_id, device_id, token_hash, created_ts) VALUES (?1, 'device', ?2, 1)";
            statements.push(Statement::new(user, [person.id.as_str().into()]));
            statements.push(Statement::new(device, [person.id.as_str().into(), hash.into()]));
        }
        world.run(self.home.database.batch(statements)).unwrap();
    }

    /// What a user's client asks.
    pub fn call(&self, world: &World, person: usize, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let token = &self.people[person].token;
        let request: Request = http::Request::builder()
            .method(method)
            .uri(format!("/_matrix/client/v3{path}"))
            .header("Authorization", format!("Bearer {token}"))
            .body(body.map_or_else(String::new, |body| body.to_string()).into())
            .unwrap();
        let response = world.run(self.home.handle(request));
        let body = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        (response.status().as_u16(), body)
    }

    /// Sends a message; the event's ID, or the refusal.
    pub fn say(&self, world: &World, room: &str, person: usize, text: &str, txn_id: &str) -> Result<String, String> {
        let path = format!("/rooms/{}/send/m.room.message/{txn_id}", encode(room));
        let body = json!({ "msgtype": "m.text", "body": text });
        let (status, answer) = self.call(world, person, "PUT", &path, Some(body));
        let id = answer["event_id"].as_str().map(str::to_owned);
        id.filter(|_| status == 200).ok_or_else(|| format!("{status} {answer}"))
    }

    /// Which of its users are in the room, as this server sees it.
    pub fn joined(&self, room: &str) -> Vec<usize> {
        let rows = self
            .home
            .database
            .rows(&format!("SELECT user_id FROM local_memberships WHERE room_id = '{room}' AND membership = 'join'"));
        (0..USERS).filter(|i| rows.iter().any(|row| row[0] == self.people[*i].id)).collect()
    }
}
