//! EDUs that must reach their destination, on their way through the transaction queue.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use http::StatusCode;
use ruma_federation_api::transactions::edu::Edu;
use serde_json::{Value, json};
use verge::{
    matrix::{edu::EduType, identifiers::ServerName},
    router::json_response,
    store::edu_outbox::{self, DurableEdu},
};

use crate::{Scene, common::homeserver::object, scene};

/// What the peer was sent: transaction ID, event count, EDUs; and with what it answered.
type Sent = (String, usize, Vec<Value>, u16);

struct Line {
    scene: Scene,
    sent: Rc<RefCell<Vec<Sent>>>,
    status: Rc<Cell<u16>>,
}

impl Line {
    fn new() -> Self {
        Self::deciding(|_, _| None)
    }

    /// The peer answers as `decide` says of events and EDUs, else with `status`.
    fn deciding(decide: impl Fn(usize, &[Value]) -> Option<u16> + 'static) -> Self {
        let scene = scene("12");
        let sent: Rc<RefCell<Vec<Sent>>> = Rc::default();
        let status = Rc::new(Cell::new(200));
        let (seen, answer) = (Rc::clone(&sent), Rc::clone(&status));
        scene.peer.answers(move |request| {
            let txn_id = request.uri().path().strip_prefix("/_matrix/federation/v1/send/")?.to_owned();
            let body: Value = serde_json::from_slice(request.body()).unwrap();
            let edus = body["edus"].as_array().cloned().unwrap_or_default();
            for edu in &edus {
                serde_json::from_value::<Edu>(edu.clone()).unwrap();
            }
            let pdus = body["pdus"].as_array().unwrap().len();
            let status = decide(pdus, &edus).unwrap_or(answer.get());
            seen.borrow_mut().push((txn_id, pdus, edus, status));
            Some(json_response(StatusCode::from_u16(status).unwrap(), &json!({ "pdus": {} })))
        });
        Self { scene, sent, status }
    }

    fn peer(&self) -> ServerName {
        ServerName::parse(&self.scene.peer.name).unwrap()
    }

    /// Leaves EDUs for the peer, as the commit of what they tell of does.
    fn leave(&self, edus: &[(EduType, Option<&str>, Value)]) {
        let edus: Vec<DurableEdu> = edus
            .iter()
            .map(|(edu_type, about, content)| DurableEdu {
                destination: self.peer(),
                edu_type: *edu_type,
                about: about.map(str::to_owned),
                content: object(content.clone()),
            })
            .collect();
        self.scene.world.run(self.scene.a.store.batch(edu_outbox::append(&edus))).unwrap();
    }

    fn message(&self, n: usize) {
        self.leave(&[(EduType::DirectToDevice, None, message(n))]);
    }

    /// An event, which the peer is to hear of.
    fn say(&self) {
        self.scene.a.say(&self.scene.world, &self.scene.room, &self.scene.alice, "hello");
    }

    /// How many events were taken.
    fn events(&self) -> usize {
        self.sent.borrow().iter().filter(|sent| sent.3 == 200).map(|sent| sent.1).sum()
    }

    fn flush(&self) {
        self.scene.a.flush_to_all(vec![self.peer()]);
        self.scene.world.settle();
    }

    fn minutes(&self, minutes: usize) {
        for _ in 0..minutes {
            self.scene.world.advance(60_000);
            self.scene.world.run(self.scene.a.scheduled());
            self.scene.world.settle();
        }
    }

    /// The IDs of the messages that were taken, in order.
    fn taken(&self) -> Vec<usize> {
        let sent = self.sent.borrow();
        let edus = sent.iter().filter(|sent| sent.3 == 200).flat_map(|(_, _, edus, _)| edus.clone());
        edus.filter_map(|edu| edu["content"]["message_id"].as_str()?.parse().ok()).collect()
    }

    fn waiting(&self) -> String {
        self.scene.a.database.rows("SELECT count(*) FROM edu_outbox")[0][0].clone()
    }

    /// One transaction has one content, whatever becomes of it.
    fn assert_one_content_for_each_id(&self) {
        let sent = self.sent.borrow();
        for (id, pdus, edus, _) in sent.iter() {
            assert!(*pdus <= 50 && edus.len() <= 100 && (*pdus == 0 || edus.is_empty()));
            let (_, first_pdus, first_edus, _) = sent.iter().find(|(other, ..)| other == id).unwrap();
            assert_eq!((first_pdus, first_edus), (pdus, edus));
        }
    }
}

fn message(n: usize) -> Value {
    json!({
        "sender": "@alice:a.example", "type": "m.test", "message_id": n.to_string(),
        "messages": { "@bob:peer.example": { "*": { "n": n } } },
    })
}

fn list_update(user: &str, stream_id: usize) -> Value {
    json!({ "user_id": user, "device_id": "A", "stream_id": stream_id, "prev_id": [] })
}

#[test]
fn messages_arrive_once_and_in_order_before_the_events_after_them() {
    let line = Line::new();
    (0..250).for_each(|n| line.message(n));
    line.scene.a.say(&line.scene.world, &line.scene.room, &line.scene.alice, "hello");
    line.scene.world.settle();
    assert_eq!(line.taken(), (0..250).collect::<Vec<_>>());
    let counts: Vec<_> = line.sent.borrow().iter().map(|(_, pdus, edus, _)| (*pdus, edus.len())).collect();
    assert_eq!(counts, [(0, 100), (0, 100), (0, 50), (1, 0)]);
    assert_eq!(line.waiting(), "0");
    line.assert_one_content_for_each_id();
}

#[test]
fn they_survive_an_outage_and_the_same_transaction_is_repeated() {
    let line = Line::new();
    line.status.set(503);
    line.message(0);
    line.flush();
    for n in 1..150 {
        line.message(n);
        line.flush();
    }
    line.minutes(200);
    let tries = line.sent.borrow().len();
    assert!((5..40).contains(&tries), "{tries}");
    assert!(line.sent.borrow().iter().all(|(id, _, edus, _)| *id == line.sent.borrow()[0].0 && edus.len() == 1));
    line.status.set(200);
    // The longest pause, an hour and a quarter at most, and a minute for the trigger to come.
    line.minutes(76);
    assert_eq!(line.taken(), (0..150).collect::<Vec<_>>());
    assert_eq!(line.waiting(), "0");
    line.assert_one_content_for_each_id();
}

#[test]
fn what_a_restart_cut_off_is_sent_by_the_scheduled_trigger() {
    let line = Line::new();
    // Committed, and then nothing more was done.
    line.message(1);
    line.minutes(1);
    assert_eq!(line.taken(), [1]);
    line.minutes(3);
    assert_eq!(line.sent.borrow().len(), 1);
}

#[test]
fn of_a_users_device_lists_the_newest_waits_and_what_is_in_flight_stays() {
    let line = Line::new();
    line.status.set(503);
    let update = |user: &str, n| (EduType::DeviceListUpdate, Some(user.to_owned()), list_update(user, n));
    let leave = |user: &str, n| {
        let (edu_type, about, content) = update(user, n);
        line.leave(&[(edu_type, about.as_deref(), content)]);
    };
    leave("@alice:a.example", 1);
    line.flush();
    for n in 2..20 {
        leave("@alice:a.example", n);
        leave("@ann:a.example", 100 + n);
        line.message(n);
    }
    assert_eq!(line.waiting(), (1 + 1 + 1 + 18).to_string());
    line.status.set(200);
    line.minutes(2);
    let sent = line.sent.borrow();
    let taken = sent.iter().filter(|sent| sent.3 == 200).flat_map(|(_, _, edus, _)| edus.clone());
    let lists: Vec<_> = taken.filter_map(|edu| edu["content"]["stream_id"].as_i64()).collect();
    assert_eq!(lists, [1, 19, 119]);
    drop(sent);
    assert_eq!(line.taken(), (2..20).collect::<Vec<_>>());
    line.assert_one_content_for_each_id();
}

#[test]
fn one_that_is_never_taken_holds_up_the_others_for_a_while_only() {
    // 413 at once, 400 after an hour.
    for status in [413, 400] {
        let line =
            Line::deciding(move |_, edus| edus.iter().any(|edu| edu["content"]["message_id"] == "7").then_some(status));
        (0..20).for_each(|n| line.message(n));
        line.flush();
        line.minutes(if status == 413 { 1 } else { 400 });
        assert_eq!(line.taken(), (0..20).filter(|n| *n != 7).collect::<Vec<_>>(), "{status}");
        assert_eq!(line.waiting(), "0");
        assert!(
            line.scene.world.logs().iter().any(|log| log.contains("is left out") && log.contains("m.direct_to_device"))
        );
        line.assert_one_content_for_each_id();
    }
}

/// Synapse fails with the whole transaction where it does not expect what an EDU holds. All others arrive within seven
/// hours: an hour, and what the pauses make of it, goes by with the first transaction that holds the EDU, with the second,
/// and with the EDU alone.
#[test]
fn one_over_which_a_server_fails_holds_up_the_others_for_a_while_only() {
    for bad in [0, 7, 49] {
        let name = json!(bad.to_string());
        let is_bad = move |edu: &Value| edu["content"]["message_id"] == name;
        let line = Line::deciding(move |_, edus| edus.iter().any(&is_bad).then_some(500));
        (0..50).for_each(|n| line.message(n));
        line.flush();
        (0..60).for_each(|_| line.say());
        line.minutes(55);
        assert!(line.events() == 0 && line.sent.borrow().iter().all(|sent| sent.0 == line.sent.borrow()[0].0), "{bad}");
        line.minutes(65);
        assert_eq!(line.events(), 60, "{bad}");
        for n in 1..=6_usize {
            line.say();
            line.minutes(48);
            // None waits for longer than two pauses between attempts to send the one.
            assert!(line.events() >= 60 + n.saturating_sub(4), "{bad}");
        }
        assert_eq!((line.taken(), line.waiting()), ((0..50).filter(|n| *n != bad).collect(), "0".to_owned()), "{bad}");
        assert_eq!(line.events(), 66, "{bad}");
        let logs = line.scene.world.logs();
        let left_out = logs.iter().filter(|log| log.contains("is left out") && log.contains("m.direct_to_device"));
        assert_eq!(left_out.count(), 1, "{bad}");
        line.assert_one_content_for_each_id();
    }
}

/// A server that fails over everything, a message to nobody and an empty transaction too, loses nothing by it.
#[test]
fn who_fails_over_everything_has_all_of_it_in_the_end() {
    let line = Line::new();
    line.status.set(500);
    line.message(0);
    line.flush();
    (1..30).for_each(|n| line.message(n));
    (0..60).for_each(|_| line.say());
    line.minutes(6 * 60);
    let (probes, full): (Vec<Sent>, Vec<Sent>) =
        line.sent.borrow().iter().cloned().partition(|sent| is_to_nobody(sent) || sent.1 == 0 && sent.2.is_empty());
    assert!((4..20).contains(&probes.len()), "it is found out whether it takes others: {}", probes.len());
    assert!(full.iter().all(|(id, _, edus, _)| *id == full[0].0 && edus.len() == 1));
    // Nor is one 400 among many 500s an hour of them.
    line.status.set(400);
    line.minutes(76);
    assert!(line.sent.borrow().iter().any(|sent| sent.3 == 400));
    line.status.set(500);
    line.minutes(76);
    line.status.set(200);
    line.minutes(76);
    assert_eq!((line.taken(), line.waiting()), ((0..30).collect(), "0".to_owned()));
    // The newest comes first, and once more in its turn.
    assert_eq!(line.events(), 61);
    assert!(!line.scene.world.logs().iter().any(|log| log.contains("is left out") || log.contains("is divided")));
    line.assert_one_content_for_each_id();
}

/// Whether it holds one message, to nobody.
fn is_to_nobody((_, pdus, edus, _): &Sent) -> bool {
    *pdus == 0 && edus.len() == 1 && edus[0]["content"]["messages"] == json!({})
}

/// A server that has no place for any message, though it answers, loses nothing by it.
#[test]
fn who_fails_over_all_messages_has_all_of_them_in_the_end() {
    let is_full = Rc::new(Cell::new(true));
    let of_peer = Rc::clone(&is_full);
    let line = Line::deciding(move |_, edus| (of_peer.get() && !edus.is_empty()).then_some(500));
    (0..30).for_each(|n| line.message(n));
    line.flush();
    for hours in 1..=6 {
        line.say();
        line.minutes(60);
        // They pass each time that this is found out anew.
        assert!(line.events() >= hours - hours.min(3), "{hours}");
    }
    assert!(line.sent.borrow().iter().any(is_to_nobody));
    is_full.set(false);
    line.minutes(76);
    assert_eq!((line.taken(), line.waiting(), line.events()), ((0..30).collect(), "0".to_owned(), 6));
}

/// As with two machines behind one name, of which one refuses what the other fails over.
#[test]
fn who_refuses_one_and_fails_over_it_in_turns_has_the_others() {
    let (times, name) = (Cell::new(0), json!("7"));
    let line = Line::deciding(move |_, edus| {
        let holds_it = edus.iter().any(|edu| edu["content"]["message_id"] == name);
        times.set(times.get() + i32::from(holds_it));
        holds_it.then_some([400, 500][times.get() as usize % 2])
    });
    (0..30).for_each(|n| line.message(n));
    line.flush();
    line.minutes(9 * 60);
    let others: Vec<usize> = (0..30).filter(|n| *n != 7).collect();
    assert_eq!((line.taken(), line.waiting()), (others, "0".to_owned()));
}

#[test]
fn who_says_that_it_is_away_is_waited_for_whatever_else_it_takes() {
    for status in [429, 501, 502, 503, 504, 520] {
        let is_away = Rc::new(Cell::new(true));
        let of_peer = Rc::clone(&is_away);
        let line = Line::deciding(move |_, edus| (of_peer.get() && !edus.is_empty()).then_some(status));
        (0..3).for_each(|n| line.message(n));
        line.flush();
        line.minutes(6 * 60);
        assert!(line.sent.borrow().iter().all(|sent| sent.0 == line.sent.borrow()[0].0), "{status}");
        is_away.set(false);
        line.minutes(76);
        assert_eq!(line.taken(), [0, 1, 2], "{status}");
    }
    // Also with 500 and a time.
    let scene = scene("12");
    let sent: Rc<RefCell<Vec<String>>> = Rc::default();
    let seen = Rc::clone(&sent);
    scene.peer.answers(move |request| {
        seen.borrow_mut().push(request.uri().path().strip_prefix("/_matrix/federation/v1/send/")?.to_owned());
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        let status = if body.get("edus").is_some() { 500 } else { 200 };
        let answer = json!({ "pdus": {}, "retry_after_ms": 60_000 });
        Some(json_response(StatusCode::from_u16(status).unwrap(), &answer))
    });
    let line = Line { scene, sent: Rc::default(), status: Rc::default() };
    line.message(0);
    line.flush();
    line.minutes(6 * 60);
    assert!(sent.borrow().len() > 5 && sent.borrow().iter().all(|id| *id == sent.borrow()[0]));
}

/// A peer that refuses each EDU has the events nevertheless, and hears of EDUs no less; from when it takes them, they come first again.
#[test]
fn events_do_not_wait_for_all_edus_that_are_refused() {
    let refuses = Rc::new(Cell::new(true));
    let of_peer = Rc::clone(&refuses);
    let line = Line::deciding(move |_, edus| (of_peer.get() && !edus.is_empty()).then_some(400));
    (0..20).for_each(|n| line.message(n));
    for n in 1..=3 {
        // More than one transaction of them.
        (0..60).for_each(|_| line.say());
        line.minutes(6 * 60);
        assert_eq!(line.events(), 60 * n);
    }
    let left: usize = line.waiting().parse().unwrap();
    assert!((8..20).contains(&left), "about one in an hour is left out: {left} of 20 are left");
    refuses.set(false);
    line.minutes(90);
    assert_eq!(line.taken(), (20 - left..20).collect::<Vec<_>>());
    let sent = line.sent.borrow().len();
    line.message(20);
    line.say();
    line.scene.world.settle();
    let last: Vec<_> = line.sent.borrow()[sent..].iter().map(|(_, pdus, edus, _)| (*pdus, edus.len())).collect();
    assert_eq!(last, [(0, 1), (1, 0)]);
    line.assert_one_content_for_each_id();
}

/// And one that refuses all events gets the EDUs, though it refused such before.
#[test]
fn edus_do_not_wait_for_all_events_that_are_refused() {
    let refuses = Rc::new(Cell::new(true));
    let of_peer = Rc::clone(&refuses);
    let line = Line::deciding(move |pdus, edus| (pdus > 0 || of_peer.get() && !edus.is_empty()).then_some(400));
    (0..20).for_each(|n| line.message(n));
    (0..20).for_each(|_| drop(line.scene.a.say(&line.scene.world, &line.scene.room, &line.scene.alice, "hello")));
    line.minutes(3 * 60);
    refuses.set(false);
    line.minutes(6 * 60);
    assert_eq!(line.waiting(), "0");
    assert!(line.taken().len() > 15, "{:?}", line.taken());
    line.assert_one_content_for_each_id();
}

#[test]
fn large_ones_travel_in_parts() {
    let line = Line::new();
    for n in 0..60 {
        let mut content = message(n);
        content["messages"]["@bob:peer.example"]["*"]["text"] = json!("x".repeat(60_000));
        line.leave(&[(EduType::DirectToDevice, None, content)]);
    }
    line.flush();
    assert_eq!(line.taken(), (0..60).collect::<Vec<_>>());
    let sizes: Vec<_> = line.sent.borrow().iter().map(|(_, _, edus, _)| json!(edus).to_string().len()).collect();
    assert!(sizes.iter().all(|size| *size < 2_100_000), "{sizes:?}");
}

#[test]
fn one_message_costs_few_rows() {
    let line = Line::new();
    line.message(0);
    line.flush();
    let before = line.scene.a.database.calls.get();
    line.message(1);
    line.flush();
    // The append; the claim; the outcome together with the next claim.
    assert_eq!(line.scene.a.database.calls.get() - before, 3);
}

/// A server that has taken nothing for a month is taken for dead, however often it was tried. Should it come back, it asks for no keys
/// again that it holds, of users with whom it shares a room.
#[test]
fn what_waits_for_a_dead_server_is_forgotten_but_for_what_is_in_flight() {
    const MONTH_MS: i64 = 30 * 24 * 60 * 60 * 1_000;
    let line = Line::new();
    line.status.set(503);
    let begun = line.scene.world.now_ms();
    (0..3).for_each(|n| line.message(n));
    line.flush();
    (3..8).for_each(|n| line.message(n));
    let keys = json!({ "user_id": "@alice:a.example" });
    line.leave(&[
        (EduType::DeviceListUpdate, Some("@alice:a.example"), list_update("@alice:a.example", 5)),
        (EduType::SigningKeyUpdate, Some("@alice:a.example"), keys.clone()),
        (EduType::DeviceListUpdate, Some("@ann:a.example"), list_update("@ann:a.example", 6)),
    ]);
    line.minutes(90);
    let forget = |now| line.scene.a.database.forget_old(now);
    forget(begun + MONTH_MS);
    assert_eq!(line.waiting(), "11");
    forget(begun + MONTH_MS + 1);
    assert_eq!(line.waiting(), "5");
    line.status.set(200);
    line.minutes(120);
    assert_eq!((line.taken(), line.waiting()), (vec![0, 1, 2], "0".to_owned()));
    let of_keys = line.sent.borrow().last().unwrap().2.clone();
    let of_keys: Vec<_> = of_keys.iter().map(|edu| (edu["edu_type"].as_str().unwrap(), &edu["content"])).collect();
    let list = list_update("@alice:a.example", 5);
    assert_eq!(of_keys, [("m.device_list_update", &list), ("m.signing_key_update", &keys)]);
    line.message(8);
    line.flush();
    // Nothing is in flight to a server that has taken everything.
    line.status.set(503);
    line.message(9);
    forget(begun + 2 * MONTH_MS);
    assert_eq!((line.taken(), line.waiting()), (vec![0, 1, 2, 8], "1".to_owned()));
    line.assert_one_content_for_each_id();
}

#[test]
fn so_many_messages_wait_for_a_destination_and_no_more() {
    let line = Line::new();
    line.status.set(503);
    line.scene.a.database.rows(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 19999) \
         INSERT INTO edu_outbox SELECT 'peer.example', n - 20000, 'm.direct_to_device', NULL, '{}' FROM n",
    );
    line.message(0);
    assert_eq!(line.waiting(), "20000");
    line.message(1);
    assert_eq!(line.waiting(), "20000");
    // A device list gives way to a newer one, so that there is one for each user at most.
    for n in 0..3 {
        line.leave(&[(EduType::DeviceListUpdate, Some("@alice:a.example"), list_update("@alice:a.example", n))]);
    }
    assert_eq!(line.waiting(), "20001");
    let other = DurableEdu {
        destination: ServerName::parse("other.example").unwrap(),
        edu_type: EduType::DirectToDevice,
        about: None,
        content: object(message(2)),
    };
    line.scene.world.run(line.scene.a.store.batch(edu_outbox::append(&[other]))).unwrap();
    assert_eq!(line.waiting(), "20002");
    line.scene.a.database.rows("DELETE FROM edu_outbox WHERE pos < -17000");
    line.message(3);
    let newest =
        line.scene.a.database.rows("SELECT content ->> 'message_id' FROM edu_outbox ORDER BY pos DESC LIMIT 1");
    assert_eq!(newest, [["3"]]);
}
