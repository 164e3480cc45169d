//! Fetching signing keys (Server-Server API, "Retrieving server keys") from scripted servers and notaries: a table of
//! cases, each a small script. The responses are made and signed here with `serde_json` and `ed25519-dalek`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod world;

use std::rc::Rc;

use cases::{
    A, CASES, Case, DAY, FROM_A, FROM_N, HOUR, Keys, Lie, MINUTE, N, ONE_DAY, PINNED, SECOND, Step::*, TRUSTED,
};
use common::internet::page;
use futures_executor::block_on;
use futures_util::future::join;
use serde_json::{Value, json};
use verge::{
    federation::peers::{endpoints::KeyQuery, key_cache::KeyCache, key_fetcher::AskingTime},
    matrix::{identifiers::ServerName, server_keys::KnownKey, signing::VerifyKey},
    store::{Store, known_keys::KeyFetch},
};
use world::{World, own_url, public, query_url};

#[test]
fn every_case() {
    let mut failures = Vec::new();
    for case in CASES {
        if std::panic::catch_unwind(|| run(case)).is_err() {
            failures.push(case.name);
        }
    }
    assert!(CASES.len() >= 40);
    assert!(failures.is_empty(), "{failures:#?}");
}

fn run(case: &Case) {
    let world = World::new(case.notaries);
    let mut fetcher = world.fetcher();
    for (number, step) in case.script.iter().enumerate() {
        let at = format!("{}, step {number}", case.name);
        match step {
            Publishes(server, keys) => world.publish(server, Lie::Truth, *keys),
            Lies(server, lie, keys) => world.publish(server, *lie, *keys),
            Answers(server, status, body) => {
                world.internet.serve(&own_url(server), |_| Ok(page(*status, &[], body)));
            }
            Silent(server) => {
                world.internet.sites.borrow_mut().remove(&own_url(server));
            }
            Notary(notary, server, keys) => world.notarise(notary, Lie::Truth, server, *keys),
            NotaryLies(notary, lie, server, keys) => world.notarise(notary, *lie, server, *keys),
            NotarySilent(notary) => {
                world.internet.sites.borrow_mut().remove(&query_url(notary));
            }
            Wait(ms) => world.internet.now.set(world.internet.now.get() + ms),
            NewIsolate => fetcher = world.fetcher(),
            Verifies(server, key_id, sent, seed) => {
                assert_eq!(world.event_key(&fetcher, "10", server, key_id, *sent), Some(*seed), "{at}");
            }
            Fails(server, key_id, sent) => {
                assert_eq!(world.event_key(&fetcher, "10", server, key_id, *sent), None, "{at}");
            }
            VerifiesInVersion4(server, key_id, sent, seed) => {
                assert_eq!(world.event_key(&fetcher, "4", server, key_id, *sent), Some(*seed), "{at}");
            }
            RequestVerifies(server, key_id, seed) => {
                assert_eq!(world.request_key(&fetcher, server, key_id), Some(*seed), "{at}");
            }
            RequestFails(server, key_id) => assert_eq!(world.request_key(&fetcher, server, key_id), None, "{at}"),
            MadeUpKeys(server, count) => {
                for number in 0..*count {
                    let key_id = format!("ed25519:made_up_{number}");
                    assert_eq!(world.event_key(&fetcher, "10", server, &key_id, 0), None, "{at}");
                }
            }
            Asked(what, times) => {
                assert_eq!(world.internet.times_asked(what), *times, "{at}: {:#?}", world.internet.asked.borrow());
            }
            DatabaseCalls(calls) => assert_eq!(world.database.calls.get(), *calls, "{at}"),
        }
    }
}

/// Each request has a fetcher of its own. What one has found, the isolate's next one knows without any question.
#[test]
fn one_request_after_the_other() {
    let world = World::new(&[]);
    world.publish(A, Lie::Truth, ONE_DAY);
    let cache = Rc::<KeyCache>::default();
    assert_eq!(world.request_key(&world.fetcher_with(cache.clone()), A, "ed25519:1"), Some(1));
    let calls = world.database.calls.get();
    assert_eq!(world.request_key(&world.fetcher_with(cache), A, "ed25519:1"), Some(1));
    assert_eq!(world.database.calls.get(), calls);
    assert_eq!(world.internet.times_asked(FROM_A), 1);
}

/// Requests at the same time ask once, and the second has the key as soon as the first.
#[test]
fn requests_at_the_same_time() {
    let world = World::new(&[]);
    world.publish(A, Lie::Truth, ONE_DAY);
    let cache = Rc::<KeyCache>::default();
    let (one, other) = (world.fetcher_with(cache.clone()), world.fetcher_with(cache));
    let server = ServerName::parse(A).unwrap();
    let (first, second) = block_on(join(
        one.for_request(&server, &["ed25519:1"], &|| true),
        other.for_request(&server, &["ed25519:1", "ed25519:1"], &|| true),
    ));
    assert!(first.unwrap().get(A, "ed25519:1").is_some() && second.unwrap().get(A, "ed25519:1").is_some());
    assert_eq!(world.internet.times_asked(FROM_A), 1);
    assert!(world.internet.now.get() - world.started < SECOND);
}

/// A fetch that was cut off does not hold up the next.
#[test]
fn a_fetch_that_was_cut_off() {
    let world = World::new(&[]);
    world.publish(A, Lie::Truth, ONE_DAY);
    let fetcher = world.fetcher();
    let server = ServerName::parse(A).unwrap();
    {
        let mut cut_off = Box::pin(fetcher.for_request(&server, &["ed25519:1"], &|| true));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(cut_off.as_mut().poll(&mut context).is_pending());
    }
    assert_eq!(world.request_key(&fetcher, A, "ed25519:1"), Some(1));
    assert_eq!(world.internet.now.get(), world.started);
}

fn queries(count: usize) -> Vec<KeyQuery> {
    let query = |number| KeyQuery {
        server: ServerName::parse(&format!("s{number}.org:8448")).unwrap(),
        key_id: "ed25519:1".to_owned(),
        minimum_valid_until_ts: 0,
    };
    (0..count).map(query).collect()
}

/// Servers are asked side by side, but never on more connections than the platform has.
#[test]
fn a_dozen_servers() {
    let world = World::new(TRUSTED);
    let queries = queries(12);
    for query in &queries {
        world.publish(query.server.as_str(), Lie::Truth, ONE_DAY);
    }
    let fetcher = world.fetcher();
    let ring = block_on(fetcher.fetch(&queries, &AskingTime::default())).unwrap();
    assert!(queries.iter().all(|query| ring.get(query.server.as_str(), "ed25519:1").is_some()));
    assert_eq!(world.internet.under_way.get().1, 5);
    assert_eq!(world.internet.times_asked("n.org"), 0);
    // One to read; and one to write, when all of them have verified something.
    assert_eq!(world.database.calls.get(), 1);
    let pairs: Vec<_> = queries.iter().map(|query| (query.server.as_str(), "ed25519:1")).collect();
    block_on(fetcher.have_verified(&pairs)).unwrap();
    block_on(fetcher.have_verified(&pairs)).unwrap();
    assert_eq!(world.database.calls.get(), 2);
    assert_eq!(world.count("passing_keys"), 12);
}

/// Where very many servers are concerned, one request to a notary saves asking those that it knows.
#[test]
fn a_hundred_servers() {
    let world = World::new(PINNED);
    let queries = queries(100);
    for (number, query) in queries.iter().enumerate() {
        world.publish(query.server.as_str(), Lie::Truth, ONE_DAY);
        if number >= 10 {
            world.notarise(N, Lie::Truth, query.server.as_str(), ONE_DAY);
        }
    }
    let ring = block_on(world.fetcher().fetch(&queries, &AskingTime::default())).unwrap();
    assert!(queries.iter().all(|query| ring.get(query.server.as_str(), "ed25519:1").is_some()));
    assert_eq!(world.internet.times_asked(FROM_N), 1);
    assert_eq!(world.internet.times_asked("/_matrix/key/v2/server"), 10);
    assert_eq!(world.database.calls.get(), 1);
}

/// Servers that do not answer cost a bounded time altogether.
#[test]
fn a_hundred_silent_servers() {
    let world = World::new(&[]);
    world.internet.delay_ms.set(HOUR);
    let ring = block_on(world.fetcher().fetch(&queries(100), &AskingTime::default())).unwrap();
    assert!(ring.get("s0.org:8448", "ed25519:1").is_none());
    // The clock of the test counts the seconds of each, also of those that pass side by side.
    assert!(world.internet.now.get() - world.started <= 70 * SECOND);
}

/// Whom there was no time to ask has not failed: it is asked as soon as there is, and before those who have.
#[test]
fn who_was_not_asked_is_not_left_alone() {
    let world = World::new(&[]);
    world.internet.delay_ms.set(HOUR);
    let queries = queries(100);
    let times_asked = || {
        let logged = world.internet.logged.borrow();
        u64::try_from(logged.iter().filter(|line| line.contains("no keys from a server")).count()).unwrap()
    };
    block_on(world.fetcher().fetch(&queries, &AskingTime::default())).unwrap();
    let asked = times_asked();
    assert!((1..100).contains(&asked), "{asked}");
    assert_eq!(world.count("key_fetches"), asked);
    // When those who failed may be asked again, others come first.
    world.internet.now.set(world.internet.now.get() + MINUTE);
    block_on(world.fetcher().fetch(&queries, &AskingTime::default())).unwrap();
    assert!(times_asked() > asked);
    assert_eq!(world.count("key_fetches WHERE failures = 1"), times_asked());
    // Who comes to be there is not refused because others were not.
    world.internet.delay_ms.set(0);
    let failed = world.database.rows("SELECT server FROM key_fetches");
    let left_out: Vec<&str> = queries.iter().map(|query| query.server.as_str()).collect();
    let left_out: Vec<&str> = left_out.into_iter().filter(|name| failed.iter().all(|row| row[0] != *name)).collect();
    for server in [left_out[0], left_out[left_out.len() - 1]] {
        world.publish(server, Lie::Truth, ONE_DAY);
        assert_eq!(world.request_key(&world.fetcher(), server, "ed25519:1"), Some(1));
    }
}

/// Where there is time for it, as for a join, all are asked.
#[test]
fn a_hundred_silent_servers_in_rounds() {
    let world = World::new(&[]);
    world.internet.delay_ms.set(HOUR);
    let time = AskingTime::of(20 * MINUTE);
    block_on(world.fetcher().fetch(&queries(100), &time)).unwrap();
    let logged = world.internet.logged.borrow();
    assert_eq!(logged.iter().filter(|line| line.contains("no keys from a server")).count(), 100);
    // As the test's clock counts.
    assert_eq!(time.left(), 20 * MINUTE - (world.internet.now.get() - world.started));
}

/// Anybody can name a server in a request. Of one whose request was not verified nothing is stored, whether it has keys or not;
/// this isolate leaves alone all the same who did not answer.
#[test]
fn nothing_is_stored_before_a_request_is_verified() {
    let world = World::new(&[]);
    world.publish(A, Lie::Truth, ONE_DAY);
    let fetcher = world.fetcher();
    for _ in 0..3 {
        let silent = ServerName::parse("silent.org:8448").unwrap();
        assert!(
            block_on(fetcher.for_request(&silent, &["ed25519:1"], &|| true)).unwrap().get(A, "ed25519:1").is_none()
        );
        let ring = block_on(fetcher.for_request(&ServerName::parse(A).unwrap(), &["ed25519:1"], &|| true)).unwrap();
        assert!(ring.get(A, "ed25519:1").is_some());
    }
    assert_eq!((world.internet.times_asked("silent.org"), world.internet.times_asked(FROM_A)), (1, 1));
    assert_eq!(["passing_keys", "server_keys", "key_fetches"].map(|table| world.count(table)), [0, 0, 0]);
    block_on(fetcher.have_verified(&[(A, "ed25519:1"), (A, "ed25519:unknown")])).unwrap();
    assert_eq!(["passing_keys", "server_keys", "key_fetches"].map(|table| world.count(table)), [1, 0, 0]);
}

/// Of a response with many keys those are stored that were wanted, and of many that were wanted eight.
#[test]
fn a_server_of_many_keys() {
    let world = World::new(&[]);
    let current: Vec<(&'static str, u8)> =
        (1..=200).map(|seed| (&*Box::leak(format!("ed25519:k{seed}").into_boxed_str()), seed)).collect();
    world.publish(A, Lie::Truth, Keys { current: current.leak(), ..ONE_DAY });
    let fetcher = world.fetcher();
    assert_eq!(world.event_key(&fetcher, "10", A, "ed25519:k77", 0), Some(77));
    assert_eq!(world.count("passing_keys"), 1);
    for seed in 1..=200 {
        assert_eq!(world.request_key(&fetcher, A, &format!("ed25519:k{seed}")), Some(seed));
    }
    assert_eq!(world.count("passing_keys"), 8);
    // Other servers are not concerned.
    world.publish(N, Lie::Truth, ONE_DAY);
    assert_eq!(world.request_key(&world.fetcher(), N, "ed25519:1"), Some(1));
    assert_eq!(world.count("passing_keys"), 9);
}

/// Who asks for keys that a server does not have, or for longer than it has them, keeps no old key of it from being known.
#[test]
fn what_is_asked_for_in_vain_hides_no_old_key() {
    let world = World::new(&[]);
    world.publish(A, Lie::Truth, Keys { old: &[("ed25519:old", 2, -HOUR)], ..ONE_DAY });
    let fetcher = world.fetcher();
    for key_id in ["ed25519:old", "ed25519:none"] {
        assert_eq!(world.request_key(&fetcher, A, key_id), None);
    }
    assert_eq!(world.event_key(&fetcher, "10", A, "ed25519:old", -2 * HOUR), Some(2));
    // In another isolate, which asks for it anew.
    let fetcher = world.fetcher();
    assert_eq!(world.event_key(&fetcher, "10", A, "ed25519:none", 0), None);
    assert_eq!(world.event_key(&fetcher, "10", A, "ed25519:old", -2 * HOUR), Some(2));
}

/// However many servers somebody makes up that have keys, or that do not answer: what is remembered of them is bounded.
#[test]
fn a_flood_of_servers() {
    let world = World::new(&[]);
    let key = KnownKey {
        key: VerifyKey::from_base64(&public(1)).unwrap(),
        valid_until_ts: world.started + DAY,
        expired_ts: None,
        fetched_ts: world.started,
    };
    let names: Vec<String> = (0..60_000).map(|number| format!("s{number}.evil.example")).collect();
    let keys: Vec<_> = names.iter().map(|name| (name.as_str(), "ed25519:1", key.clone())).collect();
    let store = Store::new(Rc::new(world.database.clone()));
    block_on(store.put_passing_keys(&keys, &[])).unwrap();
    let failed = KeyFetch { failures: 1, retry_at: world.started + HOUR };
    let failed: Vec<_> = names.iter().map(|name| (name.as_str(), failed)).collect();
    block_on(store.renew_keys(&[], &[], &[], &failed)).unwrap();
    let counts = ["passing_keys", "key_fetches"].map(|table| world.count(table));
    assert!(counts[0] <= 32_768 && counts[1] <= 16_384, "{counts:?}");
    // The last ones are there, and nobody is taken for another.
    let stored = block_on(store.keys(&["s59999.evil.example", "s60000.evil.example"])).unwrap();
    let servers = |names: Vec<&String>| names.into_iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    assert_eq!(servers(stored.keys.iter().map(|key| &key.server).collect()), "s59999.evil.example");
    assert_eq!(servers(stored.fetches.iter().map(|(server, _)| server).collect()), "s59999.evil.example");
}

/// More keys than one parameter of the database holds.
#[test]
fn very_many_keys() {
    let world = World::new(&[]);
    world.internet.delay_ms.set(HOUR);
    let key_id = format!("ed25519:{}", "x".repeat(240));
    let queries: Vec<_> = queries(9000).into_iter().map(|query| KeyQuery { key_id: key_id.clone(), ..query }).collect();
    block_on(world.fetcher().fetch(&queries, &AskingTime::default())).unwrap();
    // One to read them, and one to remember who did not answer.
    assert_eq!(world.database.calls.get(), 2);
}

/// The notary is asked for what is needed, as the spec's example has it.
#[test]
fn the_query() {
    let world = World::new(PINNED);
    world.notarise(N, Lie::Truth, A, ONE_DAY);
    let fetcher = world.fetcher();
    assert_eq!(world.event_key(&fetcher, "10", A, "ed25519:1", HOUR), Some(1));
    let requests = world.internet.requests.borrow();
    let body: Value = serde_json::from_slice(requests.last().unwrap().request.body()).unwrap();
    let expected = json!({ "minimum_valid_until_ts": world.started + HOUR });
    assert_eq!(body, json!({ "server_keys": { A: { "ed25519:1": expected } } }));
}
