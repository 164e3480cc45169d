//! A destination that was away for days gets the newest event of each room first, and then all that it lacks.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    federation::outbound::membership,
    matrix::{
        identifiers::{RoomId, ServerName, UserId},
        json::Object,
        state_content::Membership,
    },
    room::Draft,
    router::json_response,
};

use crate::common::{
    network::{Homeserver, World},
    peer::{Peer, event_id},
};

const HOUR_MS: i64 = 3_600_000;

/// A transaction as the peer got it.
struct Sent {
    txn_id: String,
    pdus: Vec<String>,
    status: u16,
}

/// The status of the answer to a transaction of so many events.
type Decides = fn(usize) -> u16;

/// Alice has made five rooms, and Bob on a peer is in all of them.
struct Away {
    world: World,
    a: Homeserver,
    alice: UserId,
    bob: String,
    rooms: Vec<RoomId>,
    status: Rc<Cell<Decides>>,
    /// All that it was sent, with its answers.
    sent: Rc<RefCell<Vec<Sent>>>,
}

impl Away {
    fn new() -> Self {
        let world = World::new();
        let a = world.server("a.example");
        let alice = a.user(&world, "alice");
        let peer = Peer::new(&world, "peer.example");
        let bob = peer.user("bob");
        let rooms: Vec<RoomId> = (0..5).map(|_| a.public_room(&world, &alice, "12")).collect();
        for room in &rooms {
            peer.join(&a, room.as_str(), &bob);
        }
        world.settle();
        let status: Rc<Cell<Decides>> = Rc::new(Cell::new(|_| 200));
        let sent: Rc<RefCell<Vec<Sent>>> = Rc::default();
        let (decides, seen) = (Rc::clone(&status), Rc::clone(&sent));
        peer.answers(move |request| {
            let txn_id = request.uri().path().strip_prefix("/_matrix/federation/v1/send/")?.to_owned();
            let body: Value = serde_json::from_slice(request.body()).unwrap();
            let pdus: Vec<String> = body["pdus"].as_array().unwrap().iter().map(|pdu| event_id("12", pdu)).collect();
            let status = decides.get()(pdus.len());
            seen.borrow_mut().push(Sent { txn_id, pdus, status });
            Some(json_response(StatusCode::from_u16(status).unwrap(), &json!({ "pdus": {} })))
        });
        Self { world, a, alice, bob, rooms, status, sent }
    }

    /// Alice says so much, in all rooms in turn.
    fn says(&self, count: usize) -> Vec<String> {
        let say = |n: usize| {
            let said = self.a.say(&self.world, &self.rooms[n % self.rooms.len()], &self.alice, &n.to_string());
            said.event_id().to_string()
        };
        (0..count).map(say).collect()
    }

    fn hours(&self, hours: i64) {
        for _ in 0..hours {
            self.world.advance(HOUR_MS);
            self.world.run(self.a.scheduled());
            self.world.settle();
        }
    }

    /// What the peer has taken, a list for each transaction.
    fn taken(&self) -> Vec<Vec<String>> {
        let sent = self.sent.borrow();
        sent.iter().filter(|sent| sent.status == 200).map(|sent| sent.pdus.clone()).collect()
    }

    /// Each transaction had one content.
    fn repeats_itself(&self) {
        let mut contents: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for Sent { txn_id, pdus, .. } in self.sent.borrow().iter() {
            assert_eq!(contents.entry(txn_id.clone()).or_insert_with(|| pdus.clone()), pdus, "{txn_id}");
        }
    }
}

#[test]
fn who_was_away_for_days_gets_the_newest_event_of_each_room_first() {
    let away = Away::new();
    away.status.set(|_| 503);
    let mut said = away.says(200);
    // What is said in a room after that Bob does not hear.
    let kick = Draft::membership(&away.bob, Membership::Leave, Object::new());
    let kick = away.a.send(&away.world, &away.rooms[0], &away.alice, kick).event_id().to_string();
    said.push(kick.clone());
    let later = away.says(200);
    let heard = later.iter().enumerate().filter(|(n, _)| n % 5 != 0).map(|(_, id)| id.clone());
    said.extend(heard);
    away.hours(72);
    let in_flight = away.sent.borrow().last().unwrap().pdus.clone();
    assert_eq!(in_flight, said[..in_flight.len()]);

    // It is back, but not for all that is sent to it.
    away.status.set(|count| if count == 5 { 503 } else { 200 });
    away.hours(2);
    let meanwhile = away.says(5);
    away.status.set(|_| 200);
    away.hours(2);
    let newest: Vec<String> = [vec![kick], later[196..].to_vec()].concat();
    let taken = away.taken();
    assert_eq!(taken[..2], [in_flight.clone(), newest]);
    said.extend(meanwhile[1..].iter().cloned());
    assert_eq!(taken[2..].concat(), said[in_flight.len()..]);
    away.repeats_itself();
    // From now on it is a destination like any other.
    let next = away.says(5);
    away.world.settle();
    assert_eq!(away.taken()[taken.len()..].concat(), next[1..]);
    assert_eq!(
        away.a.database.rows("SELECT catch_up_to, caught_up, txn_newest FROM destinations"),
        [["NULL", "NULL", "NULL"]]
    );
}

#[test]
fn who_lacks_little_gets_it_in_order() {
    let away = Away::new();
    away.status.set(|_| 503);
    let said = away.says(51);
    away.hours(72);
    let in_flight = away.sent.borrow().last().unwrap().pdus.len();
    assert!(in_flight > 0);
    away.status.set(|_| 200);
    away.hours(2);
    assert_eq!(away.taken().concat(), said);
    away.repeats_itself();
}

#[test]
fn who_refuses_the_newest_events_gets_all_in_order() {
    for status in [413, 400] {
        let away = Away::new();
        away.status.set(|_| 503);
        let said = away.says(200);
        away.hours(72);
        away.status.set(match status {
            413 => |count| if count == 5 { 413 } else { 200 },
            _ => |count| if count == 5 { 400 } else { 200 },
        });
        away.hours(24);
        assert_eq!(away.taken().concat(), said, "{status}");
        assert!(away.sent.borrow().iter().any(|sent| sent.status == status));
        away.repeats_itself();
    }
}

#[test]
fn all_that_was_said_meanwhile_is_seen() {
    let world = World::new();
    let (a, b) = (world.server("a.example"), world.server("b.example"));
    let (alice, bob) = (a.user(&world, "alice"), b.user(&world, "bob"));
    let rooms: Vec<RoomId> = (0..5).map(|_| a.public_room(&world, &alice, "12")).collect();
    for room in &rooms {
        let via = vec![ServerName::parse("a.example").unwrap()];
        world.run(membership::join(&b, &bob, room, via, Object::new())).unwrap();
        world.settle();
    }
    world.cut("a.example", "b.example");
    let said: Vec<String> =
        (0..400).map(|n| a.say(&world, &rooms[n % 5], &alice, &n.to_string()).event_id().to_string()).collect();
    let hours = |count: i64| {
        for _ in 0..count {
            world.advance(HOUR_MS);
            world.run(a.scheduled());
            world.run(b.scheduled());
            world.settle();
        }
    };
    hours(72);
    assert!(said.iter().all(|id| !b.shows(id)));
    world.mend("a.example", "b.example");
    hours(3);
    // Each is shown, and once.
    assert!(said.iter().all(|id| b.shows(id)));
    for room in &rooms {
        assert_eq!(a.state(&world, room), b.state(&world, room));
    }
}
