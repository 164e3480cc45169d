//! What strangers send takes no more memory than there is: a Worker has 128 MB for all that goes on in it at one time.
//!
//! Allocations are counted, of each test by itself. A `Value` takes twice as much here as on wasm32 (pointers and lengths
//! are twice as long), a string as much; so what fits here twice fits there.

#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

#[path = "memory/clients.rs"]
mod clients;
#[path = "common/mod.rs"]
mod common;
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "client_api/home.rs"]
mod home;
#[path = "memory/images.rs"]
mod images;
#[path = "memory/media.rs"]
mod media;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use bytes::Bytes;
use common::{
    homeserver::object,
    large_room::LargeRoom,
    network::{Homeserver, World},
    peer::{Peer, encode, request, send},
    webp::FILES,
};
use futures_util::future::join_all;
use http::{Method, StatusCode};
use image::{
    ExtendedColorType, ImageEncoder,
    codecs::{png::PngEncoder, webp::WebPEncoder},
};
use serde_json::json;
use verge::{
    federation::outbound::membership,
    matrix::{
        event::MAX_EVENT_BYTES,
        identifiers::{RoomId, ServerName},
        json::{self, MAX_DEPTH, MAX_MEMORY, Object},
    },
    media::pixels::{self, Refusal, Smaller, Wanted},
    platform::Statement,
    room::Draft,
    router::{Request, Response, json_response},
    store::answer_texts::EventTexts,
};

const MIB: usize = 1024 * 1024;
const ROOM: &str = "!room:peer.example";

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    fn take(bytes: usize) {
        let held = HELD.get() + bytes;
        HELD.set(held);
        MOST.set(MOST.get().max(held));
    }

    fn give_back(bytes: usize) {
        HELD.set(HELD.get().saturating_sub(bytes));
    }
}

// SAFETY: all is done by the system's allocator; this only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        Self::give_back(layout.size());
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // As if the block were always copied.
        Self::take(size);
        Self::give_back(layout.size());
        unsafe { System.realloc(block, layout, size) }
    }
}

/// What `work` returns, how much memory it held at most, and how much of it stays.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = HELD.get();
    MOST.set(before);
    let result = work();
    (result, MOST.get() - before, HELD.get().saturating_sub(before))
}

/// Values that take much memory for their text: what is repeated, and how deep it can stand in itself.
const SHAPES: [(&str, &str, usize); 11] = [
    ("[", "]", MAX_DEPTH - 10),
    ("{\"\":", "}", MAX_DEPTH - 10),
    ("[0,", "]", MAX_DEPTH - 10),
    ("[[0],", "]", MAX_DEPTH - 10),
    ("[0]", "", 1),
    ("[]", "", 1),
    ("0", "", 1),
    ("1.5", "", 1),
    ("\"a\"", "", 1),
    ("{\"a\":0,\"b\":0}", "", 1),
    ("\"\\n\"", "", 1),
];

/// A list of at most `bytes` bytes that consists of nothing but this shape.
fn list((open, close, depth): (&str, &str, usize), bytes: usize) -> String {
    let innermost = if open.ends_with([',', ':']) { "0" } else { "" };
    let item = format!("{}{innermost}{}", open.repeat(depth), close.repeat(depth));
    let count = (bytes - 1) / (item.len() + 1);
    format!("[{}]", vec![item; count].join(","))
}

#[test]
fn fifty_pdus_are_read_whatever_they_consist_of() {
    for shape in SHAPES {
        let content = list(shape, MAX_EVENT_BYTES - 3);
        let text = format!("{{\"pdus\":[{}]}}", vec![content; 50].join(","));
        let read = json::parse(text.as_bytes());
        assert!(read.is_ok(), "{shape:?}: {}", read.unwrap_err());
    }
}

/// Answers with a state, which is never held more than twice: as the database gave it, and as it is answered.
fn is_in_memory_once(world: &World, server: &Homeserver, request: Request) {
    let (response, most, _) = measured(|| world.run(server.handle(request)));
    assert_eq!(response.status(), StatusCode::OK);
    let bytes = response.body().len();
    assert!(bytes > 8_000_000, "{bytes}");
    assert!(most < bytes * 9 / 4, "{} KiB for an answer of {} KiB", most / 1024, bytes / 1024);
}

/// A server, and a request of another one for a state of so many events more than the room has, each of so many bytes.
fn asked_for_a_state(events: usize, bytes: usize) -> (World, Homeserver, Request) {
    let world = World::new();
    let a = world.server("a.example");
    let alice = a.user(&world, "alice");
    let room = a.public_room(&world, &alice, "12");
    let peer = Peer::new(&world, "peer.example");
    peer.join(&a, room.as_str(), &peer.user("bob"));
    let last = a.say(&world, &room, &alice, "hello");
    a.give_state(&world, &last, events, bytes);
    let (room, last) = (encode(room.as_str()), encode(last.event_id().as_str()));
    let target = format!("/_matrix/federation/v1/state/{room}?event_id={last}");
    let request = peer.request(&a, Method::GET, &target, None);
    (world, a, request)
}

#[test]
fn a_state_is_in_memory_once_beside_what_is_read_of_it() {
    // Read at once, and in pieces.
    for (events, bytes) in [(2_000, 4_000), (6_000, 1_400)] {
        let (world, a, request) = asked_for_a_state(events, bytes);
        is_in_memory_once(&world, &a, request);
    }
}

/// A room may have so many long events in its state that no answer has room for them.
#[test]
fn a_state_of_long_events_takes_no_more_memory_than_there_is() {
    for (events, status) in [(600, StatusCode::OK), (2_400, StatusCode::SERVICE_UNAVAILABLE)] {
        let (world, a, request) = asked_for_a_state(events, 60_000);
        let (response, most, _) = measured(|| world.run(a.handle(request)));
        assert_eq!(response.status(), status);
        let bytes = if status == StatusCode::OK { response.body().len() } else { 0 };
        assert_eq!(bytes > events * 60_000, status == StatusCode::OK, "{bytes}");
        assert!(most < bytes + 24 * MIB, "{} KiB for an answer of {} KiB", most / 1024, bytes / 1024);
    }
}

/// Each is read in pieces, between which others have their turn.
#[test]
fn a_third_large_answer_is_refused_while_there_is_no_room_for_it() {
    let (world, a, request) = asked_for_a_state(300, 60_000);
    world.interleave();
    let all = join_all([(), (), ()].map(|()| a.handle(request.clone())));
    let (mut answers, most, _) = measured(|| world.run(all));
    answers.sort_by_key(Response::status);
    assert_eq!(answers.iter().map(|answer| answer.status().as_u16()).collect::<Vec<_>>(), [200, 200, 503]);
    assert_eq!(answers[2].headers()["retry-after"], "1");
    assert!(most < 2 * answers[0].body().len() + 24 * MIB, "{} KiB", most / 1024);
    // What is large has room when other work is done, and what is small beside it.
    let in_work = a.admission.reserve(11 * MIB, world.now_ms());
    assert_eq!(world.run(a.handle(request.clone())).status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(in_work);
    assert_eq!(world.run(a.handle(request)).status(), StatusCode::OK);
    let (world, a, small) = asked_for_a_state(30, 60_000);
    let _in_work = a.admission.reserve(11 * MIB, world.now_ms());
    assert_eq!(world.run(a.handle(small)).status(), StatusCode::OK);
}

/// What a join from elsewhere is answered to a room of so many events more than it needs, each of so many bytes, once `changes` were
/// made in the database, while bodies of so many bytes are worked on; how much memory that took, and what became of the membership.
fn joined_from_elsewhere(
    (count, bytes): (usize, usize),
    changes: &[&'static str],
    query: &str,
    in_work: usize,
) -> (Response, usize, Option<String>) {
    let world = World::new();
    let a = world.server("a.example");
    let alice = a.user(&world, "alice");
    let room = a.public_room(&world, &alice, "12");
    a.enlarge(&world, &room, &alice, count, bytes);
    world.run(a.store.batch(changes.iter().map(|sql| Statement::new(sql, [])).collect())).unwrap();
    let peer = Peer::new(&world, "peer.example");
    let bob = peer.user("bob");
    let request = join_of(&a, &peer, &room, &bob, query);
    let _in_work = a.admission.reserve(in_work, world.now_ms());
    let (response, most, _) = measured(|| world.run(a.handle(request)));
    (response, most, a.membership(&world, &room, &bob))
}

/// The join of a user of this peer, by the template that it is given.
fn join_of(a: &Homeserver, peer: &Peer, room: &RoomId, user: &str, query: &str) -> Request {
    let room = encode(room.as_str());
    let (status, template) = peer.get(a, &format!("/_matrix/federation/v1/make_join/{room}/{}?ver=12", encode(user)));
    assert_eq!(status, 200, "{template}");
    let (id, join) = peer.sign("12", template["event"].clone());
    let target = format!("/_matrix/federation/v2/send_join/{room}/{}{query}", encode(&id));
    peer.request(a, Method::PUT, &target, Some(&join))
}

/// Nobody is let in who could not be told of the room, in whichever way they ask to be told.
#[test]
fn nobody_joins_a_room_whose_state_is_more_than_an_answer() {
    let (long, many) = ((900, 60_000), (20_100, 2_600));
    for (events, query) in [(long, ""), (long, "?omit_members=true"), (many, "?omit_members=true")] {
        let (response, most, membership) = joined_from_elsewhere(events, &[], query, 0);
        assert_eq!(membership, None, "{events:?} {query}");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{:?}", response.body());
        assert!(most < 8 * MIB, "{} KiB", most / 1024);
    }
}

/// Nor who could not be told of it now.
#[test]
fn nobody_joins_a_room_while_there_is_no_room_for_the_answer() {
    for query in ["", "?omit_members=true"] {
        let join = |in_work| joined_from_elsewhere((300, 60_000), &[], query, in_work);
        let (refused, _, membership) = join(11 * MIB);
        assert_eq!((refused.status(), membership), (StatusCode::SERVICE_UNAVAILABLE, None), "{:?}", refused.body());
        assert_eq!(refused.headers()["retry-after"], "1");
        let (let_in, _, membership) = join(MIB);
        assert_eq!((let_in.status(), membership.as_deref()), (StatusCode::OK, Some("join")), "{:?}", let_in.body());
    }
}

/// What is to be told has its room until it is told, however little of it is written first.
#[test]
fn the_room_for_an_answer_is_kept_until_it_is_written() {
    let world = World::new();
    let a = world.server("a.example");
    let alice = a.user(&world, "alice");
    let room = a.public_room(&world, &alice, "12");
    let said = a.say(&world, &room, &alice, "hello");
    let held = a.store.room_for_answer(30 * MIB).unwrap();
    let texts = EventTexts::of(&room, std::slice::from_ref(said.event_id()), held.as_ref());
    assert!(world.run(a.store.write_texts(texts, &mut String::new())).unwrap());
    let another = || a.admission.reserve_memory(50 * MIB, world.now_ms());
    assert!(another().is_none());
    drop(held);
    assert!(another().is_some());
}

/// However nearly it is as long as an answer may be.
#[test]
fn a_large_room_is_joined_while_nothing_else_is_in_work() {
    let (response, _, membership) = joined_from_elsewhere((740, 60_000), &[], "", 0);
    assert_eq!(
        (response.status(), membership.as_deref()),
        (StatusCode::OK, Some("join")),
        "{:?}",
        response.body().len()
    );
}

#[test]
fn who_asks_for_no_members_joins_a_room_of_however_many() {
    let members = "UPDATE events SET event_type = 'm.room.member', json = \
         replace(json, '\"content\":{', '\"content\":{\"membership\":\"leave\",') WHERE event_type = 'm.large'";
    let (response, _, membership) = joined_from_elsewhere((900, 60_000), &[members], "?omit_members=true", 0);
    assert_eq!((response.status(), membership.as_deref()), (StatusCode::OK, Some("join")), "{:?}", response.body());
}

/// They are of one length, so that it shows where either is still held when the other is written.
#[test]
fn the_state_and_the_auth_chain_of_a_join_are_in_memory_once() {
    let world = World::new();
    let a = world.server("a.example");
    let alice = a.user(&world, "alice");
    let room = a.public_room(&world, &alice, "12");
    let long = "x".repeat(60_000);
    let sets = |event_type: &str, state_key: &str, n: i32| {
        let content = object(json!({ "n": n, "long": long }));
        a.send(&world, &room, &alice, Draft::state(event_type, state_key, content));
    };
    for n in 0..75 {
        sets("m.large", &n.to_string(), n);
        // Each cites the one before it.
        sets("m.room.power_levels", "", n);
    }
    let peer = Peer::new(&world, "peer.example");
    let bob = peer.user("bob");
    let (room, bob) = (encode(room.as_str()), encode(&bob));
    let (status, template) = peer.get(&a, &format!("/_matrix/federation/v1/make_join/{room}/{bob}?ver=12"));
    assert_eq!(status, 200, "{template}");
    let (id, join) = peer.sign("12", template["event"].clone());
    for version in ["v1", "v2"] {
        let target = format!("/_matrix/federation/{version}/send_join/{room}/{}", encode(&id));
        is_in_memory_once(&world, &a, peer.request(&a, Method::PUT, &target, Some(&join)));
    }
}

#[test]
fn a_text_takes_no_more_memory_than_is_given_to_it() {
    for shape in SHAPES {
        let text = list(shape, 13 * MIB);
        let (outcome, most, _) = measured(|| json::parse(text.as_bytes()));
        assert!(most <= 2 * MAX_MEMORY + 64 * 1024, "{shape:?} took {most}");
        assert!(outcome.is_ok() || most > MAX_MEMORY / 2, "{shape:?} was refused at {most}");
        // However little of it becomes values.
        for depth in [0, 2, 5] {
            let (outcome, most, stays) = measured(|| json::parse_to_depth(text.as_bytes(), depth));
            assert!(most <= 2 * MAX_MEMORY + 64 * 1024, "{shape:?} to the depth {depth} took {most}");
            assert!(outcome.is_err() || depth > 0 || stays <= 13 * MIB, "{shape:?} took {stays}");
        }
        // What is counted is what is taken.
        let text = list(shape, MIB);
        let mut left = MAX_MEMORY;
        let (outcome, _, stays) = measured(|| json::parse_within(text.as_bytes(), &mut left));
        outcome.unwrap();
        let counted = MAX_MEMORY - left;
        assert!(stays <= 2 * counted, "{shape:?} took {stays} and counted {counted}");
    }
    for (open, close) in [("[", "]"), ("{\"\":", "}"), ("{\"b\":0,\"a\":", "}"), ("[1e15,", "]")] {
        let depth = 13 * MIB / (open.len() + close.len()) - 1;
        let text = format!("{}0{}", open.repeat(depth), close.repeat(depth));
        let (outcome, most, _) = measured(|| json::parse_to_depth(text.as_bytes(), MAX_DEPTH));
        assert!(most <= 2 * MAX_MEMORY + 64 * 1024, "{open} took {most}");
        assert!(outcome.is_ok() || most > MAX_MEMORY / 2, "{open} was refused at {most}");
    }
    let long = format!("[\"{}\"]", "\\n".repeat(13 * MIB / 2));
    let (outcome, most, _) = measured(|| json::parse(long.as_bytes()));
    assert!(outcome.is_ok() && most <= 3 * 13 * MIB, "{most}");
}

#[test]
fn a_body_is_refused_before_it_takes_the_memory() {
    let world = World::new();
    let a = world.server("a.example");
    let peer = Peer::new(&world, "peer.example");
    let ask = |method: Method, target: &str, body: String| {
        let header = peer.authorization(method.as_str(), target, "a.example", Some(&json!({})));
        let request = request(method, target, &[&header], Bytes::from(body));
        measured(|| {
            let (status, answer) = send(&world, &a, request);
            (status, answer["errcode"].as_str().unwrap().to_owned())
        })
    };
    let too_large = (413, "M_TOO_LARGE".to_owned());
    for shape in SHAPES {
        let body = format!("{{\"pdus\":{}}}", list(shape, 12 * MIB));
        let (answer, most, _) = ask(Method::PUT, "/_matrix/federation/v1/send/1", body);
        // Refused for what it takes, or for its signature.
        assert!(answer == too_large || answer.0 == 401, "{shape:?}: {answer:?}");
        assert!(most <= 2 * MAX_MEMORY + 3 * 12 * MIB, "{shape:?} took {most}");
    }
    for shape in [SHAPES[1], SHAPES[3], SHAPES[9]] {
        // A transaction of another server's users is taken, as far as there is memory for it.
        let body = format!("{{\"edus\":[{}],\"pdus\":[]}}", vec![list(shape, 120_000); 100].join(","));
        let target = format!("/_matrix/federation/v1/send/{}", body.len());
        let authorization = peer.text_authorization(&a, &target, &body);
        let request = request(Method::PUT, &target, &[&authorization], body);
        let (answer, most, _) = measured(|| send(&world, &a, request));
        assert_eq!(answer, (200, json!({ "pdus": {} })), "{shape:?}");
        assert!(most <= 2 * MAX_MEMORY + 3 * 12 * MIB, "{shape:?} took {most}");
    }
    let body = || format!("{{\"pdus\":[],\"x\":\"{}\"}}", "x".repeat(2 * MIB));
    let join = "/_matrix/federation/v2/send_join/!room:a.example/$join";
    for (method, target) in [
        (Method::POST, "/_matrix/client/v3/login"),
        (Method::POST, "/_matrix/client/v3/register"),
        (Method::PUT, join),
        (Method::PUT, "/_matrix/federation/v2/invite/!room:a.example/$invite"),
    ] {
        let (answer, most, _) = ask(method, target, body());
        assert_eq!(answer, too_large, "{target}");
        assert!(most < MIB, "{target} took {most}");
    }
    let answer = ask(Method::PUT, "/_matrix/federation/v1/send/1", body()).0;
    assert_eq!(answer.0, 401, "a transaction may be long: {answer:?}");
}

/// What comes of joining a room whose state and auth chain are these, and the memory that it takes.
fn joins(state: &str, auth_chain: &str) -> (Result<(), (u16, &'static str)>, usize) {
    let world = &World::new();
    let b = world.server("b.example");
    let bob = b.user(world, "bob");
    let peer = Peer::new(world, "peer.example");
    let event = json!({
        "type": "m.room.member", "room_id": ROOM, "sender": bob.as_str(), "state_key": bob.as_str(), "depth": 1,
        "auth_events": [], "prev_events": [], "content": { "membership": "join" },
    });
    let template = json!({ "room_version": "10", "event": event });
    let answer = Bytes::from(format!("{{\"state\":[{state}],\"auth_chain\":[{auth_chain}]}}"));
    peer.answers(move |request| {
        let path = request.uri().path();
        if path.contains("/make_join/") {
            return Some(json_response(StatusCode::OK, &template));
        }
        path.contains("/send_join/").then(|| http::Response::new(answer.clone()))
    });
    let via = vec![ServerName::parse("peer.example").unwrap()];
    let room = RoomId::parse(ROOM).unwrap();
    let (joined, most, _) = measured(|| world.run(membership::join(&b, &bob, &room, via, Object::new())));
    (joined.map(drop).map_err(|error| (error.status.as_u16(), error.errcode)), most)
}

/// State events with `content`, each another.
fn state(count: usize, content: &str) -> String {
    let event = |at: usize| {
        format!(
            "{{\"auth_events\":[],\"content\":{{\"c\":{content}}},\"depth\":1,\"hashes\":{{\"sha256\":\"x\"}},\
             \"origin_server_ts\":{at},\"prev_events\":[],\"room_id\":\"!room:peer.example\",\"signatures\":{{}},\
             \"sender\":\"@bob:peer.example\",\"state_key\":\"{at}\",\"type\":\"x.state\"}}"
        )
    };
    (0..count).map(event).collect::<Vec<_>>().join(",")
}

/// Members as rooms have them.
fn members(count: usize) -> String {
    let member = |at: usize| {
        let (id, user) = ("x".repeat(43), format!("@somebody.{at}:homeserver.example"));
        json!({
            "auth_events": [format!("$a{id}"), format!("$b{id}"), format!("$c{id}")], "prev_events": [format!("$d{id}")],
            "content": { "membership": "join", "displayname": "Some Body", "avatar_url": "mxc://homeserver.example/x" },
            "depth": at, "hashes": { "sha256": id }, "origin_server_ts": 1_600_000_000_000_i64, "room_id": ROOM,
            "sender": user, "state_key": user, "type": "m.room.member",
            "signatures": { "homeserver.example": { "ed25519:a_AbCd": "x".repeat(86) } },
        })
    };
    (0..count).map(|at| member(at).to_string()).collect::<Vec<_>>().join(",")
}

#[test]
fn a_room_that_is_joined_takes_no_more_memory_than_there_is() {
    // Beside the answer itself, which a platform that cannot stream has whole.
    let bound = 2 * 32 * MIB;
    for shape in SHAPES {
        let state = state(9 * MIB / 65_000, &list(shape, 64_000));
        let (joined, most) = joins(&state, &state);
        // Too much, or no room: nobody has signed any of it.
        assert!(joined.is_err());
        assert!(most <= bound, "{shape:?} took {most}");
    }
    // The largest events, and as many small ones as fit into 20 MB.
    for state in [state(19 * MIB / 65_000, &list(SHAPES[0], 64_000)), state(19 * MIB / 250, "0")] {
        let (joined, most) = joins(&state, "");
        assert!(joined.is_err() && most <= bound, "{joined:?} {most}");
    }
    // What an honest room may have; this one is refused for something else.
    let (joined, _) = joins(&members(12_000), "");
    assert_ne!(joined, Err((413, "M_TOO_LARGE")));
}

#[test]
fn a_room_of_8_000_members_is_joined_in_half_the_memory_of_an_isolate() {
    let world = World::new();
    let b = world.server("b.example");
    let bob = b.user(&world, "bob");
    let room = LargeRoom::new(&Peer::new(&world, "peer.example"), 8_000);
    room.opens();
    let room_id = RoomId::parse(&room.room_id).unwrap();
    let via = vec![ServerName::parse("peer.example").unwrap()];
    let calls = b.database.calls.get();
    let (joined, most, _) = measured(|| world.run(membership::join(&b, &bob, &room_id, via, Object::new())));
    joined.unwrap();
    let calls = b.database.calls.get() - calls;
    assert_eq!(b.database.rows("SELECT joined FROM room_servers WHERE server = 'peer.example'"), [["8001"]]);
    assert!(most <= 2 * 40 * MIB, "{} KiB", most / 1024);
    assert!(calls <= 110, "{calls} calls");
    println!("{} KiB, {calls} calls", most / 1024);
}

/// Writes bits as a lossless WebP has them, the lowest of each byte first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    count: usize,
}

impl Bits {
    fn put(&mut self, number: u32, width: u32) {
        for bit in 0..width {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= u8::from(number >> bit & 1 == 1) << (self.count % 8);
            self.count += 1;
        }
    }

    /// A code's bits come from its first one on.
    fn put_code(&mut self, code: u32, width: u32) {
        (0..width).rev().for_each(|bit| self.put(code >> bit & 1, 1));
    }

    /// A prefix code of one symbol.
    fn put_one(&mut self, symbol: u32) {
        self.put(0b101, 3);
        self.put(symbol, 8);
    }

    /// A prefix code of eleven symbols, of which one has a bit, one two, and so on: its table has 1,024 entries.
    fn put_large(&mut self) {
        self.put(0, 1);
        self.put(15, 4);
        for symbol in [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
            self.put(if symbol < 13 { 4 } else { 5 }, 3);
        }
        self.put(1, 1);
        self.put(1, 3);
        self.put(9, 4);
        (1..=10).chain([10]).for_each(|length| self.put_code(length, 4));
    }
}

/// A lossless WebP of 64 by 48 pixels with so many groups of codes.
fn webp_of_codes(groups: u32) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.put(0x2f, 8);
    bits.put(63, 14);
    bits.put(47, 14);
    bits.put(0, 4);
    // No transform, no color cache, and a group for each block of four by four pixels: always the last one.
    bits.put(0, 2);
    bits.put(1, 1);
    bits.put(0, 3);
    bits.put(0, 1);
    let last = groups - 1;
    [last & 0xff, last >> 8, 0, 0, 0].into_iter().for_each(|symbol| bits.put_one(symbol));
    for _ in 0..groups {
        (0..5).for_each(|_| bits.put_large());
    }
    // Pixels, all of the symbol that has the code 0.
    for _ in 0..64 * 48 {
        bits.put(0, 4);
    }
    let length = u32::try_from(bits.bytes.len()).unwrap().to_le_bytes();
    [&b"RIFF\0\0\0\0WEBPVP8L"[..], &length, &bits.bytes].concat()
}

const SMALL: Wanted = Wanted { width: 32, height: 32, method: pixels::Method::Crop, may_move: false };

#[test]
fn the_tables_of_a_webp_count() {
    // Some 20 KB each.
    let (made, most, _) = measured(|| pixels::smaller(&webp_of_codes(1_000), SMALL));
    assert!(matches!(made, Ok(Smaller::Made { .. })), "{made:?}");
    assert!(most > 20_000_000, "it takes what it says: {most}");
    for groups in [3_000, 65_536] {
        let file = webp_of_codes(groups);
        assert!(file.len() < 5 * MIB, "{}", file.len());
        let (made, most, _) = measured(|| pixels::smaller(&file, SMALL));
        assert_eq!((made, most < MIB), (Err(Refusal::TooLarge), true), "{groups}: {most}");
    }
}

#[test]
fn an_image_takes_no_more_than_it_may_whatever_its_bits_are() {
    let mut seed = 1_u64;
    let mut dice = |sides: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % sides
    };
    let (mut made, mut refused) = (0, 0);
    for (name, file) in FILES {
        for round in 0..400 {
            let mut file = file.to_vec();
            // Most of what matters stands at the beginning.
            for _ in 0..round % 4 {
                let at = if dice(2) == 0 { dice(file.len()) } else { dice(file.len().min(120)) };
                file[at] ^= 1 << dice(8);
            }
            if round % 7 == 6 {
                file.truncate(dice(file.len()));
            }
            let (outcome, most, _) = measured(|| pixels::smaller(&file, SMALL));
            assert!(most < pixels::MAX_DECODING as usize + MIB, "{name} {round}: {most}");
            if outcome.is_ok() { made += 1 } else { refused += 1 }
        }
    }
    assert!(made > 600 && refused > 100, "{made} {refused}");
}

/// An image of one color, for a camera that was held on its side or not.
fn plain(mut encoder: impl ImageEncoder, (width, height): (u32, u32), is_on_its_side: bool) {
    if is_on_its_side {
        let exif = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
    }
    let pixels = vec![200; 3 * width as usize * height as usize];
    encoder.write_image(&pixels, width, height, ExtendedColorType::Rgb8).unwrap();
}

/// What is made of it is nearly as large as it is.
#[test]
fn a_long_image_takes_no_more_than_others() {
    let wanted = Wanted { width: 1_600, height: 1_200, method: pixels::Method::Scale, may_move: false };
    let smaller = |file: &[u8], name: &str| {
        let (outcome, most, _) = measured(|| pixels::smaller(file, wanted).unwrap());
        assert!(most < (pixels::MAX_DECODING + pixels::MAX_MADE) as usize + MIB, "{name}: {most}");
        outcome
    };
    for (size, is_on_its_side) in [((1_601, 10_400), false), ((1_201, 13_960), true)] {
        let mut file = Vec::new();
        plain(PngEncoder::new(&mut file), size, is_on_its_side);
        assert!(smaller(&file, "png") == Smaller::AsItIs("image/png"), "{size:?}");
        // Decoding a WebP takes more.
        let mut file = Vec::new();
        plain(WebPEncoder::new_lossless(&mut file), (size.0, size.1 / 3), is_on_its_side);
        assert!(smaller(&file, "webp") == Smaller::AsItIs("image/webp"), "{size:?}");
    }
    // As much as may be made.
    for (size, is_on_its_side, made) in
        [((3_200, 5_200), false, (1_600, 2_600)), ((5_200, 3_200), true, (1_600, 2_600))]
    {
        let mut file = Vec::new();
        plain(PngEncoder::new(&mut file), size, is_on_its_side);
        let Smaller::Made { bytes, .. } = smaller(&file, "png") else { panic!("{size:?} is given as it is") };
        let image = image::load_from_memory(&bytes).unwrap();
        assert_eq!((image.width(), image.height()), made);
    }
}

#[test]
fn what_must_not_move_is_made_no_larger_than_a_thumbnail() {
    // Two frames of one pixel each, in a picture of many.
    let (width, height) = (3_000_u16, 2_800_u16);
    let mut file = b"GIF89a".to_vec();
    file.extend([width.to_le_bytes(), height.to_le_bytes()].concat());
    file.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255]);
    for _ in 0..2 {
        file.extend([0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0]);
    }
    file.push(0x3b);
    for size in [u32::MAX, 2_900] {
        let wanted = Wanted { width: size, height: u32::MAX, method: pixels::Method::Scale, may_move: false };
        let (outcome, most, _) = measured(|| pixels::smaller(&file, wanted));
        let Ok(Smaller::Made { bytes, .. }) = outcome else { panic!("{outcome:?}") };
        let made = image::load_from_memory(&bytes).unwrap();
        assert!(made.width() <= 1_600 && made.height() <= 1_200 && made.height() > 1_100, "{made:?}");
        assert!(most < pixels::MAX_DECODING as usize + 20 * MIB, "{most}");
    }
}
