//! Device lists of other servers' users: updates that name no number before them, so that nobody can tell what they follow,
//! and devices that nobody is told of.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use verge::router::json_response;

use crate::{
    Scene,
    abuse::{Cost, cost},
    common::devices::Device,
    device_edus::log_in,
    scene,
};

/// Bob and Carol, whose server tells of their devices.
struct Theirs {
    scene: Scene,
    carol: String,
    /// Bob's devices. Carol has one that never changes.
    devices: Rc<RefCell<Vec<String>>>,
    /// How often it was asked.
    asked: Rc<Cell<usize>>,
    /// The number with which it gives the list of one user; of several it gives none.
    stream_id: Rc<Cell<i64>>,
}

impl Theirs {
    fn new() -> Self {
        let scene = scene("12");
        log_in(&scene, "PHONE");
        let carol = scene.peer.user("carol");
        scene.peer.join(&scene.a, scene.room.as_str(), &carol);
        let devices = Rc::new(RefCell::new(vec!["FIRST".to_owned()]));
        let (asked, stream_id) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (held, count, number) = (Rc::clone(&devices), Rc::clone(&asked), Rc::clone(&stream_id));
        let (bob, other) = (scene.bob.clone(), carol.clone());
        scene.peer.answers(move |request| {
            let path = request.uri().path();
            let ids = held.borrow().clone();
            let keys = |user: &str, id: &str| Device::new(user, id).keys();
            let answer = if path.ends_with("/user/keys/query") {
                let bobs: serde_json::Map<_, _> = ids.iter().map(|id| (id.clone(), keys(&bob, id))).collect();
                json!({ "device_keys": { &bob: bobs, &other: { "CAROLS": keys(&other, "CAROLS") } } })
            } else if path.contains("/user/devices/") {
                let bobs: Vec<_> = ids.iter().map(|id| json!({ "device_id": id, "keys": keys(&bob, id) })).collect();
                json!({ "user_id": bob, "stream_id": number.get(), "devices": bobs })
            } else {
                return None;
            };
            count.set(count.get() + 1);
            Some(json_response(StatusCode::OK, &answer))
        });
        Self { scene, carol, devices, asked, stream_id }
    }

    /// The IDs of Bob's devices, as Alice hears of them when she asks about `users`.
    fn query(&self, users: &[&String]) -> Vec<String> {
        let asked: serde_json::Map<_, _> = users.iter().map(|user| (user.to_string(), json!([]))).collect();
        let request = http::Request::post("/_matrix/client/v3/keys/query").header("Authorization", "Bearer PHONE");
        let request = request.body(Bytes::from(json!({ "device_keys": asked }).to_string())).unwrap();
        let answer = self.scene.world.run(self.scene.a.handle(request));
        let answer: Value = serde_json::from_slice(answer.body()).unwrap();
        answer["device_keys"][&self.scene.bob].as_object().unwrap().keys().cloned().collect()
    }

    fn send(&self, txn_id: &str, updates: &[Value]) -> Cost {
        let edus: Vec<_> =
            updates.iter().map(|content| json!({ "edu_type": "m.device_list_update", "content": content })).collect();
        let (peer, at) = (&self.scene.peer, self.scene.world.now_ms());
        let body = json!({ "origin": peer.name, "origin_server_ts": at, "pdus": [], "edus": edus });
        cost(&self.scene.world, &self.scene.a, || {
            let answer = peer.put(&self.scene.a, &format!("/_matrix/federation/v1/send/{txn_id}"), &body);
            assert_eq!(answer, (200, json!({ "pdus": {} })));
        })
    }

    fn update(&self, stream_id: i64, prev_id: &[i64]) -> Value {
        json!({ "user_id": self.scene.bob, "device_id": "dummy", "stream_id": stream_id, "prev_id": prev_id })
    }

    /// What syncs go by.
    fn told_at(&self) -> Vec<Vec<String>> {
        self.scene.a.database.rows("SELECT user_id, pos FROM device_list_changes WHERE user_id LIKE '@bob:%'")
    }
}

/// As Conduit and its descendants do: each change has the number 1, and says nothing of what was before.
#[test]
fn a_server_that_gives_each_change_the_same_number_is_asked_after_each() {
    let theirs = Theirs::new();
    let (bob, carol) = (theirs.scene.bob.clone(), theirs.carol.clone());
    // Of both at once, so that their numbers are not known.
    assert_eq!((theirs.query(&[&bob, &carol]), theirs.asked.get()), (vec!["FIRST".to_owned()], 1));
    for n in 0..4 {
        let before = theirs.told_at();
        theirs.devices.borrow_mut().push(format!("NEW{n}"));
        let mut update = theirs.update(1, &[]);
        if n % 2 == 1 {
            update.as_object_mut().unwrap().remove("prev_id");
        }
        theirs.send(&format!("{n}"), &[update]);
        assert_ne!(theirs.told_at(), before, "clients hear of it, {n}");
        for _ in 0..2 {
            assert_eq!((theirs.query(&[&bob, &carol]), theirs.asked.get()), (theirs.devices.borrow().clone(), n + 2));
        }
    }
    // Together with one that would follow, too.
    theirs.devices.borrow_mut().push("TOGETHER".to_owned());
    theirs.send("both", &[theirs.update(2, &[1]), theirs.update(1, &[])]);
    assert_eq!((theirs.query(&[&bob]), theirs.asked.get()), (theirs.devices.borrow().clone(), 6));
}

/// Clients would send them messages together with those to others, and all of it would be refused.
#[test]
fn devices_whose_ids_others_cannot_store_are_told_to_nobody() {
    let theirs = Theirs::new();
    let (bob, carol) = (theirs.scene.bob.clone(), theirs.carol.clone());
    theirs.devices.borrow_mut().extend([String::new(), "A\u{7}".to_owned(), "x".repeat(256)]);
    assert_eq!(theirs.query(&[&bob, &carol]), ["FIRST"]);
    theirs.send("odd", &[theirs.update(2, &[])]);
    assert_eq!(theirs.query(&[&bob]), ["FIRST"]);
    let mut update = theirs.update(3, &[0]);
    update["device_id"] = json!("B\u{0}");
    update["keys"] = Device::new(&bob, "B\u{0}").keys();
    theirs.send("update", &[update]);
    assert_eq!(theirs.query(&[&bob, &carol]), ["FIRST"]);
}

/// However often the same comes, it costs what any other update costs that does not follow, and one request when somebody
/// asks.
#[test]
fn the_same_number_over_and_over_costs_no_more_than_others() {
    let theirs = Theirs::new();
    let (bob, carol) = (theirs.scene.bob.clone(), theirs.carol.clone());
    theirs.query(&[&bob, &carol]);
    let gap = theirs.send("gap", &[theirs.update(100, &[99])]);
    for n in 0..10 {
        let updates = vec![theirs.update(1, &[]); 100];
        assert_eq!(theirs.send(&format!("{n}"), &updates), gap);
    }
    theirs.query(&[&bob, &carol]);
    assert_eq!(theirs.asked.get(), 2);
}

/// As Synapse does with the first change of a user of which it tells a server. It is followed from there.
#[test]
fn a_first_change_has_the_list_fetched_and_those_after_it_are_applied() {
    let theirs = Theirs::new();
    let bob = theirs.scene.bob.clone();
    theirs.stream_id.set(5);
    assert_eq!((theirs.query(&[&bob]), theirs.asked.get()), (vec!["FIRST".to_owned()], 1));
    // There was another change, of which we were never told.
    theirs.devices.borrow_mut().extend(["TOLD".to_owned(), "UNTOLD".to_owned()]);
    theirs.stream_id.set(9);
    theirs.send("first", &[theirs.update(9, &[])]);
    assert_eq!((theirs.query(&[&bob]), theirs.asked.get()), (theirs.devices.borrow().clone(), 2));
    let mut next = theirs.update(10, &[9]);
    next["device_id"] = json!("NEXT");
    next["keys"] = Device::new(&bob, "NEXT").keys();
    theirs.send("next", &[next]);
    let expected = ["FIRST", "NEXT", "TOLD", "UNTOLD"].map(str::to_owned).to_vec();
    assert_eq!((theirs.query(&[&bob]), theirs.asked.get()), (expected, 2));
}
