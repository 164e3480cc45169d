//! What is let in: nothing is read for strangers, bytes in work are bounded, and each origin has its turn.

use std::{cell::Cell, future::pending, rc::Rc};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use http::Method;
use serde_json::{Value, json};
use verge::{
    platform::{
        BodyError, LocalBoxFuture, UnreadBody,
        media::{ByteStream, Whole},
    },
    router::{Incoming, RequestBody, Response},
};

use crate::{
    Scene,
    common::{
        network::{Homeserver, World},
        peer::{Peer, encode, request},
        sqlite::Sqlite,
    },
    scene,
};

const SEND: &str = "/_matrix/federation/v1/send/t";
const MIB: usize = 1024 * 1024;

/// A body that counts how often it was read.
struct Watched {
    bytes: Bytes,
    reads: Rc<Cell<usize>>,
}

impl UnreadBody for Watched {
    fn read(self: Box<Self>, limit: usize) -> LocalBoxFuture<'static, Result<Bytes, BodyError>> {
        self.reads.set(self.reads.get() + 1);
        Box::pin(async move { if self.bytes.len() > limit { Err(BodyError::TooLong) } else { Ok(self.bytes) } })
    }

    fn stream(self: Box<Self>) -> Box<dyn ByteStream> {
        self.reads.set(self.reads.get() + 1);
        Box::new(Whole::new(self.bytes))
    }
}

/// A body of which nothing comes.
struct Dribbled;

impl UnreadBody for Dribbled {
    fn read(self: Box<Self>, _: usize) -> LocalBoxFuture<'static, Result<Bytes, BodyError>> {
        Box::pin(pending())
    }

    fn stream(self: Box<Self>) -> Box<dyn ByteStream> {
        Box::new(Whole::new(Bytes::new()))
    }
}

/// The longest transaction that there is, as somebody at this address says, of which nothing comes.
fn dribbled(header: &str, address: &str) -> Incoming {
    let mut incoming = request(Method::PUT, SEND, &[header], "").map(|_| RequestBody::Unread(Box::new(Dribbled)));
    incoming.headers_mut().insert(http::header::CONTENT_LENGTH, (13 * MIB).into());
    incoming.headers_mut().insert("cf-connecting-ip", address.parse().unwrap());
    incoming
}

fn world(variables: &[(&str, &str)]) -> (World, Homeserver, Rc<Peer>) {
    let world = World::new();
    let a = world.server_over("a.example", Sqlite::in_memory(), variables);
    let peer = Peer::new(&world, "peer.example");
    (world, a, peer)
}

/// A transaction with these `Authorization` headers whose body is watched.
fn watched(headers: &[&str], body: &Value, announced: Option<usize>) -> (Incoming, Rc<Cell<usize>>) {
    let reads = Rc::new(Cell::new(0));
    let bytes = Bytes::from(body.to_string());
    let mut incoming = request(Method::PUT, SEND, headers, "")
        .map(|_| RequestBody::Unread(Box::new(Watched { bytes, reads: Rc::clone(&reads) })));
    if let Some(length) = announced {
        incoming.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
    }
    (incoming, reads)
}

fn outcome(response: &Response) -> (u16, String) {
    let body: Value = serde_json::from_slice(response.body()).unwrap();
    (response.status().as_u16(), body["errcode"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn no_body_is_read_for_who_has_shown_no_key() {
    let (world, a, peer) = world(&[]);
    let body = json!({ "pdus": [] });
    let good = peer.authorization("PUT", SEND, "a.example", Some(&body));
    let elsewhere = peer.authorization("PUT", SEND, "b.example", Some(&body));
    let no_such_key = good.replace("ed25519:peer", "ed25519:other");
    let nobody = good.replace("peer.example", "nobody.example");
    let cases: [(&[&str], u16); 5] =
        [(&[], 401), (&["X-Matrix nonsense"], 400), (&[&elsewhere], 401), (&[&no_such_key], 401), (&[&nobody], 401)];
    for (headers, expected) in cases {
        let (incoming, reads) = watched(headers, &body, None);
        let response = world.run(a.handle(incoming));
        assert_eq!((outcome(&response), reads.get()), ((expected, "M_UNAUTHORIZED".to_owned()), 0), "{headers:?}");
    }
    let (incoming, reads) = watched(&[&good], &body, None);
    let response = world.run(a.handle(incoming));
    assert_eq!((response.status().as_u16(), reads.get()), (200, 1));
}

#[test]
fn no_body_of_a_client_is_read_without_a_token() {
    let (world, a, _) = world(&[]);
    let reads = Rc::new(Cell::new(0));
    let paths = [
        ("POST", "/_matrix/client/v3/createRoom"),
        ("PUT", "/_matrix/client/v3/rooms/!r:a.example/send/m.room.message/1"),
        ("PUT", "/_matrix/client/v3/user/@alice:a.example/account_data/x"),
        ("POST", "/_matrix/client/v3/user/@alice:a.example/filter"),
    ];
    for (method, path) in paths {
        let body = Watched { bytes: Bytes::from_static(b"{}"), reads: Rc::clone(&reads) };
        let incoming = http::Request::builder().method(method).uri(path);
        let incoming = incoming.header("Authorization", "Bearer wrong").body(RequestBody::Unread(Box::new(body)));
        let response = world.run(a.handle(incoming.unwrap()));
        assert_eq!((outcome(&response), reads.get()), ((401, "M_UNKNOWN_TOKEN".to_owned()), 0), "{path}");
    }
}

#[test]
fn what_is_too_much_at_once_is_refused_for_now() {
    let (world, a, peer) = world(&[]);
    let body = json!({ "pdus": [] });
    let good = peer.authorization("PUT", SEND, "a.example", Some(&body));
    // As if a large transaction were in work.
    let in_work = a.admission.reserve(12 * MIB, world.now_ms()).unwrap();
    let (incoming, reads) = watched(&[&good], &body, Some(12 * MIB));
    let response = world.run(a.handle(incoming));
    assert_eq!((outcome(&response), reads.get()), ((503, "M_UNKNOWN".to_owned()), 0));
    assert_eq!(response.headers()["retry-after"], "1");
    // A small one has room beside it, and the large one when the other is done.
    let (incoming, _) = watched(&[&good], &body, Some(body.to_string().len()));
    assert_eq!(world.run(a.handle(incoming)).status(), 200);
    drop(in_work);
    for _ in 0..20 {
        let (incoming, _) = watched(&[&good], &body, Some(12 * MIB));
        assert_eq!(world.run(a.handle(incoming)).status(), 200);
    }
}

/// Its PDUs may take keys that somebody gives only after a while.
#[test]
fn a_transaction_counts_until_it_is_answered() {
    let Scene { world, a, peer, theirs, .. } = scene("12");
    let slow = Peer::new(&world, "slow.example");
    let message = json!({ "type": "m.room.message", "content": { "msgtype": "m.text", "body": "hello" } });
    let (_, pdu) = slow.sign("12", theirs.draft(world.now_ms(), &slow.user("carol"), message));
    let (has_room, server) = (Rc::new(Cell::new(None)), a.clone());
    let (seen, clock) = (Rc::clone(&has_room), world.clone());
    slow.answers(move |_| {
        seen.set(Some(server.admission.reserve(2 * MIB, clock.now_ms()).is_some()));
        None
    });
    let body = json!({ "pdus": [pdu], "padding": "x".repeat(12 * MIB) });
    assert_eq!(peer.put(&a, SEND, &body).0, 200);
    assert_eq!(has_room.get(), Some(false));
    assert!(a.admission.reserve(13 * MIB, world.now_ms()).is_some());
    world.end();
}

/// Whoever asks for what there may be, or for what they may not see, takes nothing away from others while the database looks.
#[test]
fn who_asks_for_much_leaves_room_for_what_others_send() {
    let (world, a, peer) = world(&[]);
    let other = Peer::new(&world, "other.example");
    world.interleave();
    let (room, event) = (encode("!nowhere:a.example"), encode("$nothing"));
    let asks = (0..60).map(|_| {
        let target = format!("/_matrix/federation/v1/event_auth/{room}/{event}");
        a.handle(peer.request(&a, Method::GET, &target, None))
    });
    let sends = (0..60).map(|i| {
        let target = format!("/_matrix/federation/v1/send/{i}");
        a.handle(other.request(&a, Method::PUT, &target, Some(&json!({ "pdus": [] }))))
    });
    let (asked, sent) = world.run(join(join_all(asks), join_all(sends)));
    assert!(asked.iter().all(|answer| answer.status() == 403), "{:?}", asked[0]);
    assert!(sent.iter().all(|answer| answer.status() == 200), "{:?}", sent.iter().find(|one| one.status() != 200));
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let (world, a, peer) = world(&[]);
    let header = peer.authorization("PUT", SEND, "a.example", Some(&json!({})));
    let begun = world.now_ms();
    let response = world.run(a.handle(dribbled(&header, "192.0.2.1")));
    assert_eq!((outcome(&response), world.now_ms() - begun), ((408, "M_UNKNOWN".to_owned()), 30_000));
    assert_eq!(peer.put(&a, SEND, &json!({ "pdus": [], "padding": "x".repeat(12 * MIB) })).0, 200);
}

/// Anybody may say that they are whom they like; the signature is of the body, and so is checked when all of it is there.
#[test]
fn neither_a_name_nor_an_address_takes_all_the_room() {
    for is_one_name in [true, false] {
        let (world, a, other) = world(&[]);
        let target = "/_matrix/federation/v1/query/profile?user_id=%40nobody%3Aa.example";
        let peers: Vec<Rc<Peer>> = (0..8).map(|i| Peer::new(&world, &format!("{i}.example"))).collect();
        peers.iter().chain([&other]).for_each(|peer| assert_eq!(peer.get(&a, target).0, 404));
        let dribbles = (0..8).map(|i| {
            let (name, address) = if is_one_name { (0, i) } else { (i, 0) };
            let header = peers[name].authorization("PUT", SEND, "a.example", Some(&json!({})));
            a.handle(dribbled(&header, &format!("192.0.2.{address}")))
        });
        // Longer than most.
        let body = json!({ "pdus": [], "padding": "x".repeat(4 * MIB) });
        let begun = world.now_ms();
        let honest = async {
            let response = a.handle(other.request(&a, Method::PUT, SEND, Some(&body))).await;
            (response.status().as_u16(), world.now_ms() - begun)
        };
        let (dribbles, honest) = world.run(join(join_all(dribbles), honest));
        assert_eq!(honest, (200, 0));
        let statuses: Vec<u16> = dribbles.iter().map(|response| response.status().as_u16()).collect();
        assert_eq!(statuses, [408, 503, 503, 503, 503, 503, 503, 503]);
    }
}

#[test]
fn who_asks_too_often_does_not_wait_in_the_room_of_others() {
    let (world, a, peer) = world(&[("FEDERATION_RATE", "10/10")]);
    let other = Peer::new(&world, "other.example");
    let send = |peer: &Rc<Peer>, bytes: usize| {
        let body = json!({ "pdus": [], "padding": "x".repeat(bytes) });
        a.handle(peer.request(&a, Method::PUT, SEND, Some(&body)))
    };
    let counted = |flood: Vec<Response>| {
        [200, 429].map(|status| flood.iter().filter(|answer| answer.status().as_u16() == status).count())
    };
    assert_eq!(world.run(send(&other, 0)).status(), 200);
    // Whoever has to wait with much waits for one turn, and not for more.
    assert_eq!(counted(world.run(join_all((0..20).map(|_| send(&peer, 100_000))))), [11, 9]);
    world.advance(60_000);
    let begun = world.now_ms();
    let honest = async { (send(&other, 4 * MIB).await.status().as_u16(), world.now_ms() - begun) };
    let (flood, honest) = world.run(join(join_all((0..20).map(|_| send(&peer, 2 * MIB))), honest));
    assert_eq!(honest, (200, 0));
    assert_eq!(counted(flood), [11, 9]);
    // One at a time is let in, whatever its size.
    for _ in 0..15 {
        assert_eq!(world.run(send(&peer, 12 * MIB)).status(), 200);
    }
}

/// Each origin that nobody has heard of has us ask for its keys, and names cost nothing.
#[test]
fn an_address_names_so_many_unknown_origins_and_no_more() {
    let (world, a, peer) = world(&[("NOTARY_RATE", "3/60")]);
    let target = "/_matrix/federation/v1/query/profile?user_id=%40nobody%3Aa.example";
    let good = peer.authorization("GET", target, "a.example", None);
    let ask = |address: &str, header: &str| {
        let mut incoming = request(Method::GET, target, &[header], "");
        incoming.headers_mut().insert("cf-connecting-ip", address.parse().unwrap());
        outcome(&world.run(a.handle(incoming)))
    };
    let names = |name: &str| good.replace("peer.example", name);
    let others: Vec<Rc<Peer>> = (0..5).map(|i| Peer::new(&world, &format!("{i}.example"))).collect();
    let known = (404, "M_NOT_FOUND".to_owned());
    assert_eq!(ask("192.0.2.1", &good), known);
    let outcomes: Vec<u16> = (0..5).map(|i| ask("192.0.2.7", &names(&format!("{i}.example"))).0).collect();
    assert_eq!(outcomes, [401, 401, 401, 429, 429]);
    let was_asked = |peer: &Rc<Peer>| !peer.received.borrow().is_empty();
    assert_eq!(others.iter().map(was_asked).collect::<Vec<_>>(), [true, true, true, false, false]);
    // Whose keys are held is let in from there, and asked for a new one; and others may name whom they like.
    assert_eq!(ask("192.0.2.7", &good), known);
    let before = peer.received.borrow().len();
    assert_eq!(ask("192.0.2.7", &good.replace("ed25519:", "ed25519:new")).0, 401);
    assert_eq!(peer.received.borrow().len(), before + 1);
    assert_eq!(ask("192.0.2.8", &others[4].authorization("GET", target, "a.example", None)), known);
    world.advance(20_000);
    assert_eq!(ask("192.0.2.7", &others[3].authorization("GET", target, "a.example", None)), known);
}

#[test]
fn an_origin_that_asks_too_often_waits_and_is_refused_at_last() {
    let (world, a, peer) = world(&[("FEDERATION_RATE", "10/10")]);
    let other = Peer::new(&world, "other.example");
    let target = "/_matrix/federation/v1/query/profile?user_id=%40nobody%3Aa.example";
    let began = world.now_ms();
    // One at a time is never refused, however many there are.
    for _ in 0..30 {
        assert_eq!(peer.get(&a, target).0, 404);
    }
    assert_eq!(world.now_ms() - began, 20_000);
    let ask = |peer: &Rc<Peer>| {
        let header = peer.authorization("GET", target, "a.example", None);
        a.handle(request(Method::GET, target, &[&header], ""))
    };
    let answers = world.run(join_all((0..20).map(|_| ask(&peer))));
    let refused: Vec<&Response> = answers.iter().filter(|answer| answer.status() == 429).collect();
    // Five wait for their turns, a second each.
    assert_eq!((refused.len(), answers.iter().filter(|answer| answer.status() == 404).count()), (15, 5));
    let body: Value = serde_json::from_slice(refused[0].body()).unwrap();
    assert_eq!((body["errcode"].as_str(), body["retry_after_ms"].as_i64()), (Some("M_LIMIT_EXCEEDED"), Some(6_000)));
    assert_eq!(refused[0].headers()["retry-after"], "6");
    // Others are not concerned, and nobody can use up another's turns: they are counted once the signature is right.
    assert_eq!(other.get(&a, target).0, 404);
    let forged = other.authorization("GET", target, "a.example", None).replace("other.example", "peer.example");
    for _ in 0..50 {
        world.run(a.handle(request(Method::GET, target, &[&forged], "")));
    }
    world.advance(6_000);
    let before = world.now_ms();
    assert_eq!(peer.get(&a, target).0, 404);
    assert_eq!(world.now_ms(), before);
}
