//! What the room would be without faults: the same engine, fed every event in the order in which they were made.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use verge::matrix::identifiers::RoomId;

use crate::{
    common::peer::encode,
    signing,
    wire::SEND,
    world::{HONEST, Image, ORACLE, Scene},
};

/// An event that one of the servers made.
pub struct Made {
    pub id: String,
    pub sender: String,
    pub json: Value,
    made_at: i64,
}

/// What the oracle says.
pub struct Oracle {
    /// All events that lead to the last one, whoever made them.
    pub all: BTreeSet<String>,
    /// The honest servers' events that it accepts.
    pub accepted: Vec<Made>,
    /// Those that a server may hide, as it was away.
    excused: BTreeSet<(&'static str, String)>,
    /// The room's state in the end: type, state key, event ID.
    pub state: Vec<(String, String, String)>,
}

/// A page is no longer than a transaction.
const AT_ONCE: usize = 50;

impl Oracle {
    /// Of all that leads to the event `last`, at which all honest servers stand in the end. What does not was heard by nobody
    /// but its own server, which left the room and came back at another point of it, so that nothing cites what it said
    /// before: if that was lost on the way, no server can know of it.
    pub fn new(image: &Image, scene: &Scene, last: &str) -> Result<Self, String> {
        let world = image.world(1);
        world.advance(scene.world.now_ms() - world.now_ms());
        let home = world.server_over(ORACLE, image.database(ORACLE), &[]);
        let known: BTreeSet<String> = home.database.rows("SELECT event_id FROM events").concat().into_iter().collect();
        let made = ancestors(all_made(scene), last, &known);
        let mut refused = Vec::new();
        for (number, made) in made.chunks(AT_ONCE).enumerate() {
            let pdus: Vec<&Value> = made.iter().map(|made| &made.json).collect();
            let body = json!({ "origin": HONEST[0], "origin_server_ts": world.now_ms(), "pdus": pdus });
            let target = format!("{SEND}{number}");
            let response = world.run(home.handle(signing::request(HONEST[0], ORACLE, "PUT", &target, Some(&body))));
            if response.status() != 200 {
                return Err(format!("the oracle refuses: {:?}", response.body()));
            }
            let answer: Value = serde_json::from_slice(response.body()).unwrap();
            let results = answer["pdus"].as_object().unwrap().iter();
            refused.extend(
                results.filter(|(_, result)| result["error"].is_string()).map(|(id, why)| format!("{id} {why}")),
            );
        }
        let extremities =
            home.database.rows("SELECT x.value ->> 0 FROM rooms, json_each(rooms.extremities) AS x").concat();
        if extremities != [last] {
            let staged = home.database.rows("SELECT event_id FROM staged_pdus").concat();
            let hidden = home.database.rows("SELECT event_id FROM events WHERE soft_failed").concat();
            return Err(format!(
                "the oracle stands at {extremities:?}, not at {last}; refused {refused:#?}, staged {staged:#?}, soft-failed {hidden:#?}"
            ));
        }
        let shown = home
            .database
            .rows("SELECT e.event_id FROM timeline AS t JOIN events AS e USING (event_nid) WHERE NOT e.soft_failed");
        let shown: BTreeSet<String> = shown.concat().into_iter().collect();
        let excused = excused(&made, |join| {
            let target = format!("/_matrix/federation/v1/state_ids/{}?event_id={}", encode(&image.room), encode(join));
            let response = world.run(home.handle(signing::request(HONEST[0], ORACLE, "GET", &target, None)));
            assert_eq!(response.status(), 200, "{:?}", response.body());
            let answer: Value = serde_json::from_slice(response.body()).unwrap();
            let ids = answer["pdu_ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap());
            let ids = ids.map(|id| format!("'{id}'")).collect::<Vec<_>>().join(",");
            let joined = "event_type = 'm.room.member' AND json ->> '$.content.membership' = 'join'";
            let sql = format!("SELECT state_key FROM events WHERE {joined} AND event_id IN ({ids})");
            home.database.rows(&sql).concat().into_iter().collect()
        });
        let all = made.iter().map(|made| made.id.clone()).collect();
        let is_honest = |made: &Made| HONEST.iter().any(|name| made.sender.ends_with(&format!(":{name}")));
        let accepted = made.into_iter().filter(|made| is_honest(made) && shown.contains(&made.id)).collect();
        let state = home.state(&world, &RoomId::parse(&image.room).unwrap());
        world.end();
        Ok(Self { all, accepted, excused, state })
    }

    /// Whether the server may hide the event.
    pub fn excuses(&self, name: &'static str, made: &Made) -> bool {
        self.excused.contains(&(name, made.id.clone()))
    }
}

/// What a server may hide whose users had all left, until one came back through another server: of what was said meanwhile, or came
/// late, what is of users who had left by then. Whoever sends it to that server sends it something new, and by the specification's
/// check 6 it is the current state that counts. `joined` says who is in the room before an event.
fn excused(made: &[Made], joined: impl Fn(&str) -> BTreeSet<String>) -> BTreeSet<(&'static str, String)> {
    let of = |user: &str, name: &str| user.ends_with(&format!(":{name}"));
    let is_join = |made: &Made| {
        made.json["type"] == "m.room.member"
            && made.json["state_key"] == made.sender
            && made.json["content"]["membership"] == "join"
    };
    let mut excused = BTreeSet::new();
    for name in HONEST {
        let joins = made.iter().filter(|made| is_join(made) && of(&made.sender, name));
        let back = joins.map(|join| (join, joined(&join.id)));
        let Some((join, members)) = back.filter(|(_, members)| !members.iter().any(|user| of(user, name))).last()
        else {
            continue;
        };
        let mut after = BTreeSet::from([join.id.as_str()]);
        for made in made {
            if made.json["prev_events"].as_array().unwrap().iter().any(|id| after.contains(id.as_str().unwrap())) {
                after.insert(&made.id);
            } else if !members.contains(&made.sender) {
                excused.insert((name, made.id.clone()));
            }
        }
    }
    excused
}

/// All events by their IDs, each as the server has it that made it. What the malicious server made by hand it does not have.
fn all_made(scene: &Scene) -> BTreeMap<String, Made> {
    let mut all = BTreeMap::new();
    for made in scene.by_hand.borrow().iter() {
        let (id, json) = made.clone();
        let (sender, made_at) =
            (json["sender"].as_str().unwrap().to_owned(), json["origin_server_ts"].as_i64().unwrap());
        all.insert(id.clone(), Made { id, sender, json, made_at });
    }
    for member in &scene.members {
        let sql = format!(
            "SELECT event_id, sender, origin_server_ts, json FROM events WHERE sender LIKE '%:{}' AND room_id = '{}'",
            member.name, scene.room
        );
        for row in member.home.database.rows(&sql) {
            let [id, sender, made_at, json] = row.try_into().unwrap();
            let (made_at, json) = (made_at.parse().unwrap(), serde_json::from_str(&json).unwrap());
            all.insert(id.clone(), Made { id, sender, json, made_at });
        }
    }
    all
}

/// Those that lead to `last` and are not `known`, in the order in which they were made.
fn ancestors(mut all: BTreeMap<String, Made>, last: &str, known: &BTreeSet<String>) -> Vec<Made> {
    let mut found = Vec::new();
    let mut waiting = vec![last.to_owned()];
    while let Some(id) = waiting.pop() {
        let Some(made) = all.remove(&id).filter(|made| !known.contains(&made.id)) else { continue };
        for name in ["prev_events", "auth_events"] {
            waiting.extend(made.json[name].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()));
        }
        found.push(made);
    }
    // The clock moves with each event, whoever makes it.
    found.sort_by_key(|made| made.made_at);
    found
}
