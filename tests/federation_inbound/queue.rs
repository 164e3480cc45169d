//! The transaction queue against a destination that does not simply take what it is sent.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use verge::router::{Response, json_response};

use crate::{
    Scene,
    common::{
        network::{Homeserver, World},
        peer::event_id,
    },
    scene,
};

const HOUR_MS: i64 = 3_600_000;

/// One attempt to send a transaction to the peer.
#[derive(Debug, Clone, PartialEq)]
struct Attempt {
    at: i64,
    txn_id: String,
    pdus: Vec<String>,
    body: Bytes,
    status: u16,
}

/// A transaction, as the peer decides about it.
struct Sent<'a> {
    pdus: &'a [String],
    at: i64,
}

/// A scene whose peer decides about each transaction, and what it was sent.
struct Stubborn {
    scene: Scene,
    attempts: Rc<RefCell<Vec<Attempt>>>,
    /// Every event that was sent to it, in order.
    said: RefCell<Vec<String>>,
}

impl Stubborn {
    fn new(decide: impl Fn(&Sent<'_>) -> Response + 'static) -> Self {
        let scene = scene("12");
        let attempts: Rc<RefCell<Vec<Attempt>>> = Rc::default();
        let (seen, world) = (Rc::clone(&attempts), scene.world.clone());
        scene.peer.answers(move |request| {
            let txn_id = request.uri().path().strip_prefix("/_matrix/federation/v1/send/")?.to_owned();
            let body: Value = serde_json::from_slice(request.body()).unwrap();
            let pdus: Vec<String> = body["pdus"].as_array().unwrap().iter().map(|pdu| event_id("12", pdu)).collect();
            let at = world.now_ms();
            let response = decide(&Sent { pdus: &pdus, at });
            let status = response.status().as_u16();
            seen.borrow_mut().push(Attempt { at, txn_id, pdus, body: request.body().clone(), status });
            Some(response)
        });
        Self { scene, attempts, said: RefCell::default() }
    }

    /// Alice says something; the peer is told at once.
    fn say(&self, body: &str) -> String {
        let id = self.scene.a.say(&self.scene.world, &self.scene.room, &self.scene.alice, body).event_id().to_string();
        self.said.borrow_mut().push(id.clone());
        self.scene.world.settle();
        id
    }

    /// The scheduled trigger once a minute, for so many minutes.
    fn minutes(&self, minutes: usize) {
        (0..minutes).for_each(|_| self.scheduled_after(60_000));
    }

    /// The scheduled trigger every ten minutes, for so many hours.
    fn hours(&self, hours: usize) {
        (0..6 * hours).for_each(|_| self.scheduled_after(600_000));
    }

    /// The scheduled trigger after a while, of an isolate that knows nothing.
    fn scheduled_after(&self, ms: i64) {
        self.scene.world.advance(ms);
        let isolate = restarted(&self.scene.world, &self.scene.a);
        self.scene.world.run(isolate.scheduled());
        self.scene.world.settle();
    }

    /// The events that the peer has taken, in order.
    fn taken(&self) -> Vec<String> {
        let attempts = self.attempts.borrow();
        attempts.iter().filter(|attempt| attempt.status == 200).flat_map(|attempt| attempt.pdus.clone()).collect()
    }

    /// All that was said but these.
    fn said_but(&self, left_out: &[&str]) -> Vec<String> {
        self.said.borrow().iter().filter(|id| !left_out.contains(&id.as_str())).cloned().collect()
    }

    /// How many lines of the log say of events with this text in their ID that they are left out.
    fn left_out(&self, event_id: &str) -> usize {
        let logs = self.scene.world.logs();
        logs.iter().filter(|line| line.contains("is left out") && line.contains(event_id)).count()
    }

    /// One transaction has one content, whatever becomes of it.
    fn assert_one_content_for_each_id(&self) {
        let mut contents: BTreeMap<String, Bytes> = BTreeMap::new();
        for attempt in self.attempts.borrow().iter() {
            let known = contents.entry(attempt.txn_id.clone()).or_insert_with(|| attempt.body.clone());
            assert_eq!(*known, attempt.body, "{}", attempt.txn_id);
        }
    }

    /// Nothing is left to be sent, and the outbox holds nothing that has been seen to.
    fn assert_done(&self) {
        let next_hour = HOUR_MS - self.scene.world.now_ms() % HOUR_MS;
        self.scene.world.advance(next_hour);
        self.scene.world.run(self.scene.a.scheduled());
        self.scene.world.settle();
        assert_eq!(self.scene.a.database.rows("SELECT count(*) FROM outbox"), [["0"]]);
        self.assert_one_content_for_each_id();
    }
}

/// Another isolate of the same server.
fn restarted(world: &World, server: &Homeserver) -> Homeserver {
    world.server_over(server.config.server_name.as_str(), server.database.clone(), &[])
}

fn answer(status: u16) -> Response {
    json_response(StatusCode::from_u16(status).unwrap(), &json!({ "pdus": {} }))
}

#[test]
fn a_transaction_that_is_too_large_is_sent_in_parts() {
    let is_up = Rc::new(Cell::new(false));
    let up = Rc::clone(&is_up);
    // A proxy with a limit that 14 events exceed.
    let stubborn = Stubborn::new(move |sent| match (up.get(), sent.pdus.len()) {
        (false, _) => answer(502),
        (true, 0..14) => answer(200),
        (true, _) => answer(413),
    });
    (0..120).for_each(|n| drop(stubborn.say(&n.to_string())));
    is_up.set(true);
    stubborn.minutes(2);
    assert_eq!(stubborn.taken(), stubborn.said_but(&[]), "{:?}", stubborn.scene.world.logs());
    stubborn.assert_done();
    // What was large enough once is tried again, but not all the time.
    let attempts = stubborn.attempts.borrow();
    let sizes: Vec<usize> = attempts.iter().filter(|a| a.status != 502).map(|a| a.pdus.len()).collect();
    let refused = attempts.iter().filter(|attempt| attempt.status == 413).count();
    assert!(sizes.contains(&13) && sizes[2..].contains(&14), "{sizes:?}");
    assert!(refused <= 4, "{sizes:?}");
}

#[test]
fn an_event_that_is_too_large_by_itself_is_left_out() {
    let bad = Rc::new(RefCell::new(String::new()));
    let is_up = Rc::new(Cell::new(false));
    let (refused, up) = (Rc::clone(&bad), Rc::clone(&is_up));
    let stubborn = Stubborn::new(move |sent| match up.get() {
        false => answer(502),
        true if sent.pdus.contains(&refused.borrow()) => answer(413),
        true => answer(200),
    });
    for n in 0..50 {
        let id = stubborn.say(&n.to_string());
        if n == 29 {
            bad.replace(id);
        }
    }
    is_up.set(true);
    stubborn.minutes(2);
    let bad = bad.borrow().clone();
    assert_eq!(stubborn.taken(), stubborn.said_but(&[&bad]), "{:?}", stubborn.scene.world.logs());
    assert_eq!(stubborn.left_out(&bad), 1, "{:?}", stubborn.scene.world.logs());
    stubborn.assert_done();
    // The queue grows back.
    (0..60).for_each(|n| drop(stubborn.say(&n.to_string())));
    let size = "SELECT max_pdus FROM destinations WHERE destination = 'peer.example'";
    assert_eq!(stubborn.scene.a.database.rows(size), [["50"]]);
}

#[test]
fn an_event_that_is_refused_for_an_hour_is_left_out_and_nothing_else() {
    for position in [0, 1, 29, 49] {
        let bad = Rc::new(RefCell::new(String::new()));
        let is_up = Rc::new(Cell::new(false));
        let (refused, up) = (Rc::clone(&bad), Rc::clone(&is_up));
        let stubborn = Stubborn::new(move |sent| match up.get() {
            false => answer(502),
            true if sent.pdus.contains(&refused.borrow()) => answer(400),
            true => answer(200),
        });
        for n in 0..50 {
            let id = stubborn.say(&n.to_string());
            if n == position {
                bad.replace(id);
            }
        }
        // While it is down, and after it is up again, the same transaction comes again and again.
        stubborn.minutes(30);
        is_up.set(true);
        let up_since = stubborn.scene.world.now_ms();
        stubborn.minutes(59);
        let first_ones = |stubborn: &Stubborn| {
            let attempts = stubborn.attempts.borrow();
            attempts.iter().filter(|attempt| attempt.status == 400).cloned().collect::<Vec<_>>()
        };
        let early = first_ones(&stubborn);
        assert!(!early.is_empty() && early.iter().all(|attempt| attempt.txn_id == early[0].txn_id));
        // The first event was tried by itself, before there was another.
        assert_eq!(stubborn.taken(), stubborn.said.borrow()[..position.min(1)]);
        stubborn.hours(4);
        let bad = bad.borrow().clone();
        assert_eq!(stubborn.taken(), stubborn.said_but(&[&bad]), "{:?}", stubborn.scene.world.logs());
        assert_eq!(stubborn.left_out(&bad), 1);
        let refused = first_ones(&stubborn);
        let whole: Vec<_> = refused.iter().filter(|attempt| attempt.txn_id == early[0].txn_id).collect();
        assert!(whole.len() >= 3, "{whole:?}");
        let (first, last) = (whole[0].at, whole[whole.len() - 1].at);
        assert!(first >= up_since && last - first >= HOUR_MS, "after an hour of refusals, and not before");
        stubborn.assert_done();
    }
}

#[test]
fn who_refuses_everything_loses_little_of_it() {
    let is_up = Rc::new(Cell::new(false));
    let up = Rc::clone(&is_up);
    let stubborn = Stubborn::new(move |_| if up.get() { answer(200) } else { answer(400) });
    (0..20).for_each(|n| drop(stubborn.say(&n.to_string())));
    stubborn.hours(6);
    is_up.set(true);
    stubborn.hours(2);
    let lost = 20 - stubborn.taken().len();
    assert!((1..=6).contains(&lost), "an event for each hour of it at most, not {lost}");
    assert_eq!(stubborn.left_out("$"), lost);
    stubborn.assert_done();
}

/// A proxy's page that says that its server is being mended often comes with 200.
#[test]
fn a_200_without_an_answer_takes_nothing() {
    for page in ["<html>We are back soon.</html>", "", "[]", "null", "{\"pdus\":"] {
        let is_up = Rc::new(Cell::new(false));
        let up = Rc::clone(&is_up);
        let no_answer = move || http::Response::new(Bytes::from_static(page.as_bytes()));
        let stubborn = Stubborn::new(move |_| if up.get() { answer(200) } else { no_answer() });
        stubborn.say("hello");
        stubborn.hours(2);
        is_up.set(true);
        let before = stubborn.attempts.borrow().len();
        stubborn.hours(2);
        let attempts = stubborn.attempts.borrow().clone();
        assert_eq!(attempts.len(), before + 1, "{page}");
        assert!(attempts.iter().all(|attempt| attempt.txn_id == attempts[0].txn_id), "{page}");
        stubborn.assert_done();
    }
}

#[test]
fn other_errors_repeat_the_same_transaction() {
    for status in [204, 302, 401, 403, 404, 405, 408, 422, 429, 500, 501, 503, 526] {
        let is_up = Rc::new(Cell::new(false));
        let up = Rc::clone(&is_up);
        let stubborn = Stubborn::new(move |_| if up.get() { answer(200) } else { answer(status) });
        (0..10).for_each(|n| drop(stubborn.say(&n.to_string())));
        stubborn.hours(26);
        let attempts = stubborn.attempts.borrow().clone();
        assert!(attempts.len() > 20 && attempts.len() < 60, "{status}: {}", attempts.len());
        assert!(attempts.iter().all(|attempt| attempt.txn_id == attempts[0].txn_id), "{status}");
        is_up.set(true);
        stubborn.hours(2);
        assert_eq!(stubborn.taken(), stubborn.said_but(&[]), "{status}");
        stubborn.assert_done();
    }
}

/// A date as RFC 9110 wants it; `seconds` after the start of the world's clock, a Friday morning.
fn http_date(seconds: i64) -> String {
    let at = 8 * 3600 + seconds;
    format!("Fri, 15 Jan 2027 {:02}:{:02}:{:02} GMT", at / 3600, at / 60 % 60, at % 60)
}

#[test]
fn a_destination_that_asks_for_a_pause_gets_it() {
    type Answer = fn(&Sent<'_>) -> Response;
    let by_seconds: Answer = |_| with_header(429, "600");
    let by_date: Answer = |sent| with_header(503, &http_date((sent.at - 1_800_000_000_000) / 1000 + 600));
    let by_body: Answer = |_| json_response(StatusCode::TOO_MANY_REQUESTS, &json!({ "retry_after_ms": 600_000 }));
    for ask in [by_seconds, by_date, by_body] {
        let is_up = Rc::new(Cell::new(false));
        let up = Rc::clone(&is_up);
        let stubborn = Stubborn::new(move |sent| if up.get() { answer(200) } else { ask(sent) });
        stubborn.say("hello");
        let first = stubborn.attempts.borrow()[0].at;
        is_up.set(true);
        // Not even when it is heard from.
        for _ in 0..9 {
            stubborn.minutes(1);
            assert_eq!(
                stubborn.scene.peer.send(&stubborn.scene.a, &format!("{}", stubborn.scene.world.now_ms()), &[]).0,
                200
            );
            stubborn.scene.world.settle();
        }
        assert_eq!(stubborn.attempts.borrow().len(), 1, "{:?}", stubborn.scene.world.logs());
        stubborn.minutes(3);
        let attempts = stubborn.attempts.borrow();
        assert_eq!(attempts.len(), 2, "{:?}", stubborn.scene.world.logs());
        assert!(attempts[1].at - first >= 600_000);
    }
    // Nobody is left alone for ever for having asked to be.
    for ask in ["99999999999999999999", "Thu, 15 Jan 2099 08:00:00 GMT"] {
        let stubborn = Stubborn::new(move |_| with_header(503, ask));
        stubborn.say("hello");
        stubborn.minutes(58);
        assert_eq!(stubborn.attempts.borrow().len(), 1);
        stubborn.minutes(4);
        assert_eq!(stubborn.attempts.borrow().len(), 2);
    }
}

fn with_header(status: u16, retry_after: &str) -> Response {
    let mut response = answer(status);
    response.headers_mut().insert(http::header::RETRY_AFTER, retry_after.parse().unwrap());
    response
}

#[test]
fn who_fails_and_talks_all_the_same_is_not_tried_again_all_the_time() {
    let stubborn = Stubborn::new(|_| answer(500));
    stubborn.say("hello");
    for n in 0..600 {
        stubborn.scene.world.advance(1_000);
        assert_eq!(stubborn.scene.peer.send(&stubborn.scene.a, &n.to_string(), &[]).0, 200);
        stubborn.scene.world.settle();
        if n % 60 == 59 {
            stubborn.scene.world.run(stubborn.scene.a.scheduled());
        }
    }
    let tried = stubborn.attempts.borrow().len();
    assert!((5..=15).contains(&tried), "{tried} attempts in ten minutes");
}
