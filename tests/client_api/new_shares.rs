//! Servers that come to share a room with a local user hear of the user's devices.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use serde_json::{Value, json};

use crate::{
    common::{devices::Device, network::World},
    home::{Home, User, quote},
};

/// A world of servers, and what they tell each other of devices: to whom, and the content.
struct Told {
    world: World,
    edus: Rc<RefCell<Vec<(String, Value)>>>,
}

impl Told {
    fn new() -> Self {
        let (world, edus) = (World::new(), Rc::new(RefCell::new(Vec::new())));
        let seen = Rc::clone(&edus);
        world.tap(Rc::new(move |passing| {
            if passing.request.uri().path().starts_with("/_matrix/federation/v1/send/") {
                let body: Value = serde_json::from_slice(passing.request.body()).unwrap();
                for edu in body["edus"].as_array().into_iter().flatten() {
                    if edu["edu_type"] == "m.device_list_update" {
                        seen.borrow_mut().push((passing.to.clone(), edu["content"].clone()));
                    }
                }
            }
            Box::pin(async move { Ok((passing.host)(passing.request).await) })
        }));
        Self { world, edus }
    }

    fn home(&self, name: &str) -> Home {
        Home::with(&self.world, name, &[("REGISTRATION", "open")])
    }

    /// What was told since the last call: to whom and of whom.
    fn since(&self) -> Vec<(String, Value)> {
        self.world.settle();
        let mut told = self.edus.take();
        told.sort_by_key(|(to, content)| (to.clone(), content["user_id"].to_string()));
        told
    }
}

fn of_whom(told: &[(String, Value)]) -> Vec<(&str, &str)> {
    told.iter().map(|(to, content)| (to.as_str(), content["user_id"].as_str().unwrap())).collect()
}

/// Publishes the keys of a device.
fn publish(home: &Home, user: &User) -> Device {
    let device = Device::new(&user.id, &user.device_id);
    assert_eq!(home.post(user, "/keys/upload", json!({ "device_keys": device.keys() })).0, 200);
    device
}

fn join(home: &Home, user: &User, room: &str) {
    let (status, answer) = home.post(user, &format!("/join/{}?server_name=one.test", quote(room)), json!({}));
    assert_eq!(status, 200, "{answer}");
}

fn minute(told: &Told, home: &Home) {
    told.world.settle();
    told.world.advance(60_000);
    told.world.run(home.server.scheduled());
    told.world.settle();
}

fn public(home: &Home, user: &User) -> String {
    home.room(user, json!({ "preset": "public_chat" }))
}

#[test]
fn who_joins_is_told_to_the_servers_that_shared_no_room_before() {
    let told = Told::new();
    let [one, two, three] = ["one.test", "two.test", "three.test"].map(|name| told.home(name));
    let (alice, bob, carol) = (one.register("alice"), two.register("bob"), three.register("carol"));
    let room = public(&one, &alice);
    join(&three, &carol, &room);
    let phone = publish(&two, &bob);
    let pad = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "bob" }, "password": "bob's",
        "device_id": "ZPAD",
    });
    publish(&two, &User::of(&two.call(None, "POST", "/login", Some(pad)).1));
    assert_eq!(told.since(), []);
    join(&two, &bob, &room);
    let first = told.since();
    assert_eq!(of_whom(&first), [("one.test", bob.id.as_str()), ("three.test", &bob.id)]);
    for (_, content) in &first {
        assert_eq!((&content["device_id"], &content["keys"]), (&json!(phone.id), &phone.keys()));
        let prev_id = content["prev_id"].as_array().unwrap();
        assert!(!prev_id.is_empty() && !prev_id.contains(&content["stream_id"]), "{content}");
    }
    // All of his devices are known there, and further changes follow on what is.
    assert_eq!(devices(&one, &alice, &bob), 2);
    assert_eq!(two.post(&bob, "/logout", json!({})).0, 200);
    told.since();
    assert_eq!(devices(&one, &alice, &bob), 1);
    // A profile is no join, and another room is none that is new to them.
    let bob = login(&two, "bob");
    publish(&two, &bob);
    told.since();
    assert_eq!(
        two.put(&bob, &format!("/profile/{}/displayname", quote(&bob.id)), json!({ "displayname": "B" })).0,
        200
    );
    join(&two, &bob, &public(&one, &alice));
    assert_eq!(told.since(), []);
    assert!(two.database.rows("SELECT * FROM new_shares").is_empty());
}

fn login(home: &Home, name: &str) -> User {
    let identifier = json!({ "type": "m.id.user", "user": name });
    let body = json!({ "type": "m.login.password", "identifier": identifier, "password": format!("{name}'s") });
    User::of(&home.call(None, "POST", "/login", Some(body)).1)
}

fn devices(home: &Home, by: &User, of: &User) -> usize {
    let (_, answer) = home.post(by, "/keys/query", json!({ "device_keys": { &of.id: [] } }));
    answer["device_keys"][&of.id].as_object().unwrap().len()
}

#[test]
fn who_comes_back_is_told_anew() {
    let told = Told::new();
    let [one, two] = ["one.test", "two.test"].map(|name| told.home(name));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = public(&one, &alice);
    publish(&two, &bob);
    join(&two, &bob, &room);
    assert_eq!(of_whom(&told.since()), [("one.test", bob.id.as_str())]);
    // What changed after all have left is told once they are back.
    assert_eq!(two.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
    told.since();
    publish(&two, &login(&two, "bob"));
    assert_eq!(told.since(), []);
    join(&two, &bob, &room);
    assert_eq!(of_whom(&told.since()), [("one.test", bob.id.as_str())]);
}

#[test]
fn a_room_of_many_servers_is_told_in_slices() {
    let told = Told::new();
    let home = told.home("one.test");
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    publish(&home, &bob);
    let room = public(&home, &alice);
    let servers = 2_450;
    home.database.rows(&format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {servers}) \
         INSERT INTO room_servers (room_id, server, from_pos, to_pos, joined) \
         SELECT '{room}', 's' || n || '.test', 1000, NULL, 1 FROM n"
    ));
    home.database.rows(&format!("UPDATE rooms SET joined = joined + {servers} WHERE room_id = '{room}'"));
    join(&home, &bob, &room);
    let waiting = || -> BTreeSet<String> {
        home.database.rows("SELECT destination FROM edu_outbox").into_iter().map(|row| row[0].clone()).collect()
    };
    told.world.settle();
    assert_eq!(waiting().len(), 2_000, "as many as one request sees to");
    minute(&told, &home);
    assert_eq!(waiting().len(), servers);
    assert!(home.database.rows("SELECT * FROM new_shares").is_empty());
}
