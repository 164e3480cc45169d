//! Server discovery (Server-Server API, "Resolving server names") against scripted web sites and DNS: a table of cases,
//! each a small script. What each must find was read out of the spec, step by step.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cases;
#[path = "../common/mod.rs"]
mod common;

use std::{collections::BTreeMap, rc::Rc};

use cases::{A, CASES, Case, HOUR, Refusal, Step::*, TO_B};
use common::{
    internet::{Internet, RESOLVER, page},
    sqlite::Sqlite,
};
use futures_executor::block_on;
use verge::{
    config::DnsOverHttps,
    federation::peers::{
        destination::DiscoveryError,
        discovery::{Discovery, DiscoveryCache},
    },
    store::{Store, well_known::WellKnownRow},
};

#[test]
fn every_case() {
    let mut failures = Vec::new();
    for case in CASES {
        let outcome = std::panic::catch_unwind(|| run(case));
        if outcome.is_err() {
            failures.push(case.name);
        }
    }
    assert!(CASES.len() >= 40);
    assert!(failures.is_empty(), "{failures:#?}");
}

fn run(case: &Case) {
    let internet = Internet::new();
    let database = Sqlite::in_memory();
    let mut own_name = "us.org";
    let mut resolver = Some(DnsOverHttps::parse(RESOLVER).unwrap());
    let isolate = |own_name, resolver: &Option<DnsOverHttps>| {
        Discovery::new(&internet.platform(&database), own_name, resolver.clone(), Rc::default())
    };
    let mut discovery = isolate(own_name, &resolver);
    for (number, step) in case.script.iter().enumerate() {
        let at = format!("{}, step {number}", case.name);
        match step {
            We(name) => {
                own_name = name;
                discovery = isolate(own_name, &resolver);
            }
            NoResolver => {
                resolver = None;
                discovery = isolate(own_name, &resolver);
            }
            NewIsolate => discovery = isolate(own_name, &resolver),
            WellKnown(host, delegated) => {
                let body = format!("{{\"m.server\": \"{delegated}\"}}");
                internet.serve(&well_known(host), move |_| Ok(page(200, &[], &body)));
            }
            Page(url, status, headers, body) => internet.serve(url, |_| Ok(page(*status, headers, body))),
            Padded(host, body, length) => {
                internet.serve(&well_known(host), move |_| Ok(page(200, &[], &format!("{body:length$}"))));
            }
            RedirectChain(length) => {
                let mut url = A.to_owned();
                for hop in 1..=*length {
                    let next = format!("https://a.org/hop{hop}");
                    let headers = next.clone();
                    internet.serve(&url, move |_| Ok(page(302, &[("location", &headers)], "")));
                    url = next;
                }
                internet.serve(&url, |_| Ok(page(200, &[], TO_B)));
            }
            Off(url) => {
                internet.sites.borrow_mut().remove(*url);
            }
            Srv(name, records) => {
                let records = records.iter().map(|record| (*record).to_owned()).collect();
                internet.srv.borrow_mut().insert((*name).to_owned(), Ok(records));
            }
            DnsStatus(name, status) => {
                internet.srv.borrow_mut().insert((*name).to_owned(), Err(*status));
            }
            ResolverSays(status, body) => {
                *internet.resolver.borrow_mut() = Some(Rc::new(|_| Ok(page(*status, &[], body))));
            }
            ResolverOff => {
                let down = || verge::platform::TransportError::Failed("down".to_owned());
                *internet.resolver.borrow_mut() = Some(Rc::new(move |_| Err(down())));
            }
            ResolverOn => *internet.resolver.borrow_mut() = None,
            Slow(ms) => internet.delay_ms.set(*ms),
            Wait(ms) => internet.now.set(internet.now.get() + ms),
            Finds(server, expected) => {
                let found = block_on(discovery.resolve(server));
                let found = found.unwrap_or_else(|error| panic!("{at}: {server} is refused: {error}"));
                let found: Vec<_> =
                    found.iter().map(|d| (&*d.connect_host, d.connect_port, &*d.tls_name, &*d.host_header)).collect();
                assert_eq!(found, *expected, "{at}");
            }
            Refuses(server, expected) => {
                let error = block_on(discovery.resolve(server)).expect_err(&at);
                assert_eq!(refusal(&error), *expected, "{at}");
                assert!(error.to_string().len() > 20, "{at}: `{error}` is a sentence");
            }
            Asked(what, times) => {
                assert_eq!(internet.times_asked(what), *times, "{at}: {:#?}", internet.asked.borrow());
            }
            DatabaseCalls(calls) => assert_eq!(database.calls.get(), *calls, "{at}"),
        }
    }
}

fn well_known(host: &str) -> String {
    format!("https://{host}/.well-known/matrix/server")
}

fn refusal(error: &DiscoveryError) -> Refusal {
    match error {
        DiscoveryError::InvalidName(_) => Refusal::InvalidName,
        DiscoveryError::Ourselves => Refusal::Ourselves,
        DiscoveryError::Private(_) => Refusal::Private,
        DiscoveryError::ServiceRefused(_) => Refusal::ServiceRefused,
        DiscoveryError::NoUsableTarget(_) => Refusal::NoUsableTarget,
        other => panic!("{other:?}"),
    }
}

/// RFC 2782: within one priority a target is drawn first as often as its weight says, and one of weight 0 rarely.
#[test]
fn srv_weights() {
    const DRAWS: i32 = 4000;
    let internet = Internet::new();
    let records = ["5 10 1 c.org.", "5 0 2 d.org.", "5 30 3 e.org."].map(str::to_owned).to_vec();
    internet.srv.borrow_mut().insert("_matrix-fed._tcp.a.org".to_owned(), Ok(records));
    let resolver = DnsOverHttps::parse(RESOLVER).ok();
    let discovery = Discovery::new(&internet.platform(&Sqlite::in_memory()), "us.org", resolver, Rc::default());
    let mut first: BTreeMap<u16, i32> = BTreeMap::new();
    for _ in 0..DRAWS {
        let ports: Vec<u16> = block_on(discovery.resolve("a.org")).unwrap().iter().map(|d| d.connect_port).collect();
        assert_eq!(ports.iter().sum::<u16>(), 6, "each stands there once");
        *first.entry(ports[0]).or_default() += 1;
    }
    // 41 equally likely numbers: one for the weight of 0, 10 and 30 for the others.
    let close = |port, share: i32| (first[&port] - DRAWS * share / 41).abs() < DRAWS / 50;
    assert!(close(1, 10) && close(2, 1) && close(3, 30), "{first:?}");
    assert_eq!(internet.times_asked("SRV"), 1);
}

/// At the edge each event has a discovery of its own, and all of an isolate's events one cache.
#[test]
fn what_one_event_finds_out_the_next_one_knows() {
    let internet = Internet::new();
    let database = Sqlite::in_memory();
    let cache = Rc::default();
    let event = |cache: &Rc<DiscoveryCache>| {
        let resolver = DnsOverHttps::parse(RESOLVER).ok();
        Discovery::new(&internet.platform(&database), "us.org", resolver, cache.clone())
    };
    internet.srv.borrow_mut().insert("_matrix-fed._tcp.a.org".to_owned(), Ok(vec!["5 10 1 c.org.".to_owned()]));
    let found = block_on(event(&cache).resolve("a.org"));
    let known = (internet.asked.borrow().len(), database.calls.get());
    assert_eq!(block_on(event(&cache).resolve("a.org")), found);
    assert_eq!((internet.asked.borrow().len(), database.calls.get()), known);
    // A resolver that is away is left alone by all of them.
    let down = || verge::platform::TransportError::Failed("down".to_owned());
    *internet.resolver.borrow_mut() = Some(Rc::new(move |_| Err(down())));
    for name in ["b.org", "d.org", "e.org"] {
        block_on(event(&cache).resolve(name)).unwrap();
    }
    assert_eq!(internet.times_asked("SRV"), 2);
    // Another isolate knows what the database does.
    block_on(event(&Rc::default()).resolve("a.org")).unwrap();
    assert_eq!((internet.times_asked("SRV"), internet.times_asked("a.org/.well-known")), (3, 1));
}

/// Strangers choose the names that are looked up, but not how much is remembered of them.
#[test]
fn a_flood_of_names() {
    let database = Sqlite::in_memory();
    let store = Store::new(Rc::new(database.clone()));
    let row = WellKnownRow { delegated: None, fresh_until_ts: HOUR, usable_until_ts: 0, failures: 1 };
    for number in 0..30_000 {
        block_on(store.put_well_known(&format!("n{number}.org"), &row)).unwrap();
    }
    let count: u64 = database.rows("SELECT count(*) FROM well_known")[0][0].parse().unwrap();
    assert!(count <= 16_384, "{count}");
    assert_eq!(block_on(store.well_known("n29999.org")).unwrap(), Some(row));
    assert_eq!(block_on(store.well_known("n30000.org")).unwrap(), None);
}

/// An answer that would not end is not read.
#[test]
fn a_resolver_that_floods() {
    let internet = Internet::new();
    *internet.resolver.borrow_mut() = Some(Rc::new(|request| {
        assert!(request.max_response_bytes <= 65_536 && request.timeout_ms <= 5_000);
        Err(verge::platform::TransportError::TooLarge)
    }));
    let resolver = DnsOverHttps::parse(RESOLVER).ok();
    let discovery = Discovery::new(&internet.platform(&Sqlite::in_memory()), "us.org", resolver, Rc::default());
    assert_eq!(block_on(discovery.resolve("a.org")).unwrap()[0].connect_port, 8448);
    assert!(internet.logged.borrow()[0].contains("too large"));
}

#[test]
fn resolver_urls() {
    for url in ["https://dns.google/resolve", "https://cloudflare-dns.com/dns-query", "https://10.0.0.1:8443", RESOLVER]
    {
        assert!(DnsOverHttps::parse(url).is_ok(), "{url}");
    }
    for url in
        ["http://dns.google/resolve", "dns.google", "https://", "https:///x", "https://a.org/x?y=z", "https://a@b/"]
    {
        assert!(DnsOverHttps::parse(url).is_err(), "{url}");
    }
}
