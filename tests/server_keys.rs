//! Fetching signing keys (Server-Server API, "Retrieving server keys") from scripted servers and notaries: a table of
//! cases, each a small script. The responses are made and signed here with `serde_json` and `ed25519-dalek`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use common::{
    internet::{Internet, RESOLVER, page},
    sqlite::Sqlite,
};
use ed25519_dalek::{Signer, SigningKey};
use futures_executor::block_on;
use futures_util::future::join;
use serde_json::{Value, json};
use verge::{
    config::Config,
    federation::outbound::{
        endpoints::KeyQuery,
        keys::{KeyCache, KeyFetcher},
        requests::FederationClient,
    },
    matrix::{identifiers::ServerName, room_version::RoomVersion},
};

struct Case {
    name: &'static str,
    /// The notaries that are trusted, and the seed of the key `ed25519:n` where it is pinned.
    notaries: &'static [(&'static str, Option<u8>)],
    script: &'static [Step],
}

/// What a server, or a notary on its behalf, says of its keys. Times are milliseconds after the beginning of the case.
#[derive(Clone, Copy)]
struct Keys {
    /// Key IDs and seeds.
    current: &'static [(&'static str, u8)],
    /// Key IDs, seeds, `expired_ts`.
    old: &'static [(&'static str, u8, i64)],
    valid_until: i64,
}

#[derive(Clone, Copy)]
enum Lie {
    /// None: the truth.
    Truth,
    /// The response is another server's.
    Name(&'static str),
    /// The server itself has not signed.
    NotSelfSigned,
    /// The server's signature is by another key than the one it lists.
    SignedByStranger,
    /// Something was changed after signing.
    Tampered,
    /// The notary has not signed.
    NotNotarySigned,
    /// The notary's signature is by a key of this seed.
    NotarySeed(u8),
}

enum Step {
    /// The server answers for itself.
    Publishes(&'static str, Keys),
    /// The server answers for itself, wrongly.
    Lies(&'static str, Lie, Keys),
    /// The server answers this: status, body.
    Answers(&'static str, u16, &'static str),
    /// The server does not answer.
    Silent(&'static str),
    /// The notary answers every query with this entry about a server, beside those before.
    Notary(&'static str, &'static str, Keys),
    /// The same, wrongly.
    NotaryLies(&'static str, Lie, &'static str, Keys),
    /// The notary answers no query.
    NotarySilent(&'static str),
    Wait(i64),
    NewIsolate,
    /// An event of room version 10, sent at this time and signed with this key, verifies with the key of this seed.
    Verifies(&'static str, &'static str, i64, u8),
    /// It does not verify.
    Fails(&'static str, &'static str, i64),
    /// An event of room version 4, which ignores validity.
    VerifiesInVersion4(&'static str, &'static str, i64, u8),
    /// A request that is sent now verifies.
    RequestVerifies(&'static str, &'static str, u8),
    RequestFails(&'static str, &'static str),
    /// Keys of so many made-up IDs are looked for, one after the other.
    MadeUpKeys(&'static str, u32),
    Asked(&'static str, usize),
    DatabaseCalls(u64),
}
use Step::*;

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;

const A: &str = "a.org:8448";
const N: &str = "n.org:8448";
const M: &str = "m.org:8448";
const TRUSTED: &[(&str, Option<u8>)] = &[(N, None)];
const PINNED: &[(&str, Option<u8>)] = &[(N, Some(100))];
const FROM_A: &str = "a.org:8448/_matrix/key/v2/server";
const FROM_N: &str = "n.org:8448/_matrix/key/v2/query";
const FROM_M: &str = "m.org:8448/_matrix/key/v2/query";

const KEY_1: &[(&str, u8)] = &[("ed25519:1", 1)];
const ONE_DAY: Keys = Keys { current: KEY_1, old: &[], valid_until: DAY };
const NOTARY_KEYS: Keys = Keys { current: &[("ed25519:n", 100)], old: &[], valid_until: WEEK };

const CASES: &[Case] = &[
    Case {
        name: "a key from its server, remembered",
        notaries: &[],
        script: &[
            Publishes(A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            DatabaseCalls(2),
            Verifies(A, "ed25519:1", HOUR, 1),
            Asked(FROM_A, 1),
            DatabaseCalls(2),
        ],
    },
    Case {
        name: "a key that another isolate fetched",
        notaries: &[],
        script: &[
            Publishes(A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            NewIsolate,
            Silent(A),
            Verifies(A, "ed25519:1", HOUR, 1),
            Asked(FROM_A, 1),
            DatabaseCalls(3),
        ],
    },
    Case {
        name: "a key is fetched again for what was sent after valid_until_ts",
        notaries: &[],
        script: &[
            Publishes(A, ONE_DAY),
            Verifies(A, "ed25519:1", DAY, 1),
            Asked(FROM_A, 1),
            Publishes(A, Keys { valid_until: 2 * DAY, ..ONE_DAY }),
            Wait(DAY),
            Verifies(A, "ed25519:1", DAY + 1, 1),
            Asked(FROM_A, 2),
        ],
    },
    Case {
        name: "a key whose server does not renew it",
        notaries: &[],
        script: &[
            Publishes(A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            Wait(2 * DAY),
            Fails(A, "ed25519:1", DAY + 1),
            Asked(FROM_A, 2),
            Verifies(A, "ed25519:1", DAY, 1),
        ],
    },
    Case {
        name: "validity ends 7 days after the fetch, whatever the server says",
        notaries: &[],
        script: &[
            Publishes(A, Keys { valid_until: 365 * DAY, ..ONE_DAY }),
            Verifies(A, "ed25519:1", WEEK, 1),
            Fails(A, "ed25519:1", WEEK + 1),
            Asked(FROM_A, 1),
        ],
    },
    Case {
        name: "the 7 days are remembered",
        notaries: &[],
        script: &[
            Publishes(A, Keys { valid_until: 365 * DAY, ..ONE_DAY }),
            Verifies(A, "ed25519:1", 0, 1),
            NewIsolate,
            Wait(WEEK),
            RequestVerifies(A, "ed25519:1", 1),
            Asked(FROM_A, 1),
            Wait(1),
            RequestVerifies(A, "ed25519:1", 1),
            Asked(FROM_A, 2),
        ],
    },
    Case {
        name: "the 7 days hold for a notary's word too",
        notaries: TRUSTED,
        script: &[
            Silent(A),
            Publishes(N, NOTARY_KEYS),
            Notary(N, A, Keys { valid_until: 365 * DAY, ..ONE_DAY }),
            Verifies(A, "ed25519:1", WEEK, 1),
            Fails(A, "ed25519:1", WEEK + 1),
        ],
    },
    Case {
        name: "nobody is asked for what no answer could make valid",
        notaries: TRUSTED,
        script: &[
            Publishes(A, Keys { valid_until: 365 * DAY, ..ONE_DAY }),
            Publishes(N, NOTARY_KEYS),
            Notary(N, A, Keys { valid_until: 365 * DAY, ..ONE_DAY }),
            Fails(A, "ed25519:1", WEEK + 1),
            Asked("", 0),
        ],
    },
    Case {
        name: "a validity beyond any clock",
        notaries: &[],
        script: &[
            Publishes(A, Keys { current: KEY_1, old: &[("ed25519:0", 2, i64::MAX / 2)], valid_until: i64::MAX / 2 }),
            Verifies(A, "ed25519:1", WEEK, 1),
            Verifies(A, "ed25519:0", 0, 2),
        ],
    },
    Case {
        name: "room version 4 ignores validity",
        notaries: &[],
        script: &[
            Publishes(A, ONE_DAY),
            VerifiesInVersion4(A, "ed25519:1", 0, 1),
            Silent(A),
            Wait(30 * DAY),
            VerifiesInVersion4(A, "ed25519:1", 30 * DAY, 1),
            Asked(FROM_A, 1),
        ],
    },
    Case {
        name: "an old key verifies what was sent before it expired",
        notaries: &[],
        script: &[
            Publishes(A, Keys { current: KEY_1, old: &[("ed25519:0", 2, -DAY)], valid_until: DAY }),
            Verifies(A, "ed25519:0", -DAY, 2),
            Fails(A, "ed25519:0", -DAY + 1),
        ],
    },
    Case {
        name: "an old key signs no requests",
        notaries: &[],
        script: &[
            Publishes(A, Keys { current: KEY_1, old: &[("ed25519:0", 2, -DAY)], valid_until: DAY }),
            RequestFails(A, "ed25519:0"),
            RequestVerifies(A, "ed25519:1", 1),
        ],
    },
    Case {
        name: "an old key that expires in the future signs no requests either",
        notaries: &[],
        script: &[
            Publishes(A, Keys { current: KEY_1, old: &[("ed25519:0", 2, DAY)], valid_until: DAY }),
            RequestFails(A, "ed25519:0"),
        ],
    },
    Case {
        name: "a request needs a key that is valid now",
        notaries: &[],
        script: &[
            Publishes(A, ONE_DAY),
            RequestVerifies(A, "ed25519:1", 1),
            Wait(DAY + 1),
            RequestFails(A, "ed25519:1"),
            Publishes(A, Keys { valid_until: 2 * DAY, ..ONE_DAY }),
            Wait(MINUTE),
            RequestVerifies(A, "ed25519:1", 1),
        ],
    },
    Case {
        name: "a new key beside the old one",
        notaries: &[],
        script: &[
            Publishes(A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            Publishes(A, Keys { current: &[("ed25519:2", 2)], old: &[("ed25519:1", 1, HOUR)], valid_until: 2 * DAY }),
            Wait(2 * HOUR),
            Verifies(A, "ed25519:2", 2 * HOUR, 2),
            Verifies(A, "ed25519:1", HOUR, 1),
            Wait(DAY),
            Fails(A, "ed25519:1", HOUR + DAY),
            RequestFails(A, "ed25519:1"),
        ],
    },
    Case {
        name: "another key ID than the one that signed",
        notaries: &[],
        script: &[Publishes(A, ONE_DAY), Fails(A, "ed25519:2", 0), Verifies(A, "ed25519:1", 0, 1)],
    },
    Case {
        name: "a key of another algorithm",
        notaries: TRUSTED,
        script: &[Publishes(A, ONE_DAY), Fails(A, "rsa:1", 0), Asked("", 0), DatabaseCalls(0)],
    },
    Case {
        name: "our own keys",
        notaries: TRUSTED,
        script: &[
            Verifies("us.org", "ed25519:now", 0, 200),
            RequestVerifies("us.org", "ed25519:now", 200),
            Verifies("us.org", "ed25519:before", -DAY, 201),
            Fails("us.org", "ed25519:before", -DAY + 1),
            Fails("us.org", "ed25519:never", 0),
            Asked("", 0),
            DatabaseCalls(0),
        ],
    },
    // Responses that do not count.
    Case {
        name: "keys of another server",
        notaries: &[],
        script: &[Lies(A, Lie::Name("b.org"), ONE_DAY), Fails(A, "ed25519:1", 0), Fails("b.org:1", "ed25519:1", 0)],
    },
    Case {
        name: "keys that the server did not sign",
        notaries: &[],
        script: &[Lies(A, Lie::NotSelfSigned, ONE_DAY), Fails(A, "ed25519:1", 0)],
    },
    Case {
        name: "keys that another key signed",
        notaries: &[],
        script: &[Lies(A, Lie::SignedByStranger, ONE_DAY), Fails(A, "ed25519:1", 0)],
    },
    Case {
        name: "keys that were changed after signing",
        notaries: &[],
        script: &[Lies(A, Lie::Tampered, ONE_DAY), Fails(A, "ed25519:1", 0)],
    },
    Case { name: "no JSON", notaries: &[], script: &[Answers(A, 200, "<html>"), Fails(A, "ed25519:1", 0)] },
    Case { name: "a JSON list", notaries: &[], script: &[Answers(A, 200, "[]"), Fails(A, "ed25519:1", 0)] },
    Case { name: "an empty object", notaries: &[], script: &[Answers(A, 200, "{}"), Fails(A, "ed25519:1", 0)] },
    Case { name: "an error", notaries: &[], script: &[Answers(A, 404, "{}"), Fails(A, "ed25519:1", 0)] },
    // Notaries.
    Case {
        name: "a notary where the server is silent",
        notaries: TRUSTED,
        script: &[
            Silent(A),
            Publishes(N, NOTARY_KEYS),
            Notary(N, A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            Asked(FROM_A, 1),
            Asked(FROM_N, 1),
            NewIsolate,
            Verifies(A, "ed25519:1", DAY, 1),
            Asked(FROM_N, 1),
        ],
    },
    Case {
        name: "no notary where the server answers",
        notaries: TRUSTED,
        script: &[Publishes(A, ONE_DAY), Verifies(A, "ed25519:1", 0, 1), Asked("n.org", 0)],
    },
    Case {
        name: "a notary where the server has not got the key any more",
        notaries: TRUSTED,
        script: &[
            Publishes(A, Keys { current: &[("ed25519:2", 2)], ..ONE_DAY }),
            Publishes(N, NOTARY_KEYS),
            Notary(N, A, Keys { valid_until: -DAY, ..ONE_DAY }),
            Verifies(A, "ed25519:1", -DAY, 1),
        ],
    },
    Case {
        name: "a pinned notary is not asked for its own keys",
        notaries: PINNED,
        script: &[
            Silent(A),
            Notary(N, A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            Asked("n.org:8448/_matrix/key/v2/server", 0),
        ],
    },
    Case {
        name: "a pinned notary that signs with another key",
        notaries: PINNED,
        script: &[
            Silent(A),
            Publishes(N, Keys { current: &[("ed25519:n", 101)], ..NOTARY_KEYS }),
            NotaryLies(N, Lie::NotarySeed(101), A, ONE_DAY),
            Fails(A, "ed25519:1", 0),
        ],
    },
    Case {
        name: "a notary that does not sign",
        notaries: TRUSTED,
        script: &[
            Silent(A),
            Publishes(N, NOTARY_KEYS),
            NotaryLies(N, Lie::NotNotarySigned, A, ONE_DAY),
            Fails(A, "ed25519:1", 0),
        ],
    },
    Case {
        name: "a notary that signs with a key that it does not publish",
        notaries: TRUSTED,
        script: &[
            Silent(A),
            Publishes(N, NOTARY_KEYS),
            NotaryLies(N, Lie::NotarySeed(101), A, ONE_DAY),
            Fails(A, "ed25519:1", 0),
        ],
    },
    Case {
        name: "a notary that makes up keys",
        notaries: TRUSTED,
        script: &[
            Silent(A),
            Publishes(N, NOTARY_KEYS),
            NotaryLies(N, Lie::SignedByStranger, A, ONE_DAY),
            Fails(A, "ed25519:1", 0),
        ],
    },
    Case {
        name: "a notary that changes what the server signed",
        notaries: TRUSTED,
        script: &[
            Silent(A),
            Publishes(N, NOTARY_KEYS),
            NotaryLies(N, Lie::Tampered, A, ONE_DAY),
            Fails(A, "ed25519:1", 0),
        ],
    },
    Case {
        name: "a bad entry does not spoil the others",
        notaries: TRUSTED,
        script: &[
            Silent(A),
            Publishes(N, NOTARY_KEYS),
            NotaryLies(N, Lie::NotSelfSigned, "b.org:8448", ONE_DAY),
            Notary(N, A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
        ],
    },
    Case {
        name: "what a notary was not asked for",
        notaries: TRUSTED,
        script: &[
            Silent(A),
            Publishes(N, NOTARY_KEYS),
            Notary(N, "b.org:8448", Keys { current: &[("ed25519:1", 9)], ..ONE_DAY }),
            Fails(A, "ed25519:1", 0),
            Publishes("b.org:8448", ONE_DAY),
            Verifies("b.org:8448", "ed25519:1", 0, 1),
        ],
    },
    Case {
        name: "a notary does not exchange a key that is known",
        notaries: TRUSTED,
        script: &[
            Publishes(A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            Silent(A),
            Wait(2 * DAY),
            Publishes(N, NOTARY_KEYS),
            Notary(N, A, Keys { current: &[("ed25519:1", 9)], old: &[], valid_until: 5 * DAY }),
            Fails(A, "ed25519:1", 2 * DAY),
            Verifies(A, "ed25519:1", DAY, 1),
        ],
    },
    Case {
        name: "a notary does not revive an old key",
        notaries: TRUSTED,
        script: &[
            Publishes(A, Keys { current: &[("ed25519:2", 2)], old: &[("ed25519:1", 1, -DAY)], valid_until: DAY }),
            Verifies(A, "ed25519:2", 0, 2),
            Verifies(A, "ed25519:1", -DAY, 1),
            Silent(A),
            Publishes(N, NOTARY_KEYS),
            Notary(N, A, Keys { valid_until: 5 * DAY, ..ONE_DAY }),
            Fails(A, "ed25519:1", 0),
            Asked(FROM_N, 1),
            RequestFails(A, "ed25519:1"),
        ],
    },
    Case {
        name: "a notary makes a known key valid longer",
        notaries: TRUSTED,
        script: &[
            Publishes(A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            Silent(A),
            Wait(2 * DAY),
            Publishes(N, NOTARY_KEYS),
            Notary(N, A, Keys { valid_until: 3 * DAY, ..ONE_DAY }),
            Verifies(A, "ed25519:1", 2 * DAY, 1),
        ],
    },
    Case {
        name: "a notary tells that a key has expired",
        notaries: TRUSTED,
        script: &[
            Publishes(A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            Silent(A),
            Wait(2 * DAY),
            Publishes(N, NOTARY_KEYS),
            Notary(N, A, Keys { current: &[("ed25519:2", 2)], old: &[("ed25519:1", 1, HOUR)], valid_until: 3 * DAY }),
            Verifies(A, "ed25519:2", 2 * DAY, 2),
            Fails(A, "ed25519:1", HOUR + 1),
        ],
    },
    Case {
        name: "the second notary where the first does not know",
        notaries: &[(N, Some(100)), (M, Some(100))],
        script: &[
            Silent(A),
            Notary(N, "b.org", ONE_DAY),
            Notary(M, A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            Asked(FROM_N, 1),
            Asked(FROM_M, 1),
        ],
    },
    Case {
        name: "no second notary where the first knows",
        notaries: &[(N, Some(100)), (M, None)],
        script: &[
            Silent(A),
            Notary(N, A, ONE_DAY),
            Notary(M, A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            Asked("m.org", 0),
        ],
    },
    Case {
        name: "a notary that fails is left alone for 5 minutes",
        notaries: PINNED,
        script: &[
            NotarySilent(N),
            Fails(A, "ed25519:1", 0),
            Fails("b.org:8448", "ed25519:1", 0),
            Asked(FROM_N, 1),
            Wait(5 * MINUTE),
            Notary(N, A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            Asked(FROM_N, 2),
        ],
    },
    // Backoff.
    Case {
        name: "made-up key IDs do not make us ask again",
        notaries: TRUSTED,
        script: &[
            Publishes(A, ONE_DAY),
            Publishes(N, NOTARY_KEYS),
            Notary(N, "b.org", ONE_DAY),
            MadeUpKeys(A, 100),
            Asked(FROM_A, 1),
            Asked(FROM_N, 1),
            Verifies(A, "ed25519:1", 0, 1),
            Asked(FROM_A, 1),
            Wait(MINUTE - 1),
            MadeUpKeys(A, 100),
            Asked(FROM_A, 1),
            Wait(1),
            MadeUpKeys(A, 100),
            Asked(FROM_A, 2),
            Wait(2 * MINUTE - 1),
            MadeUpKeys(A, 100),
            Asked(FROM_A, 2),
            Wait(1),
            MadeUpKeys(A, 100),
            Asked(FROM_A, 3),
        ],
    },
    Case {
        name: "a server that answers is asked every 10 minutes at least",
        notaries: &[],
        script: &[
            Publishes(A, ONE_DAY),
            MadeUpKeys(A, 1),
            Wait(10 * MINUTE),
            MadeUpKeys(A, 1),
            Wait(10 * MINUTE),
            MadeUpKeys(A, 1),
            Wait(10 * MINUTE),
            MadeUpKeys(A, 1),
            Wait(10 * MINUTE),
            MadeUpKeys(A, 1),
            Wait(10 * MINUTE),
            MadeUpKeys(A, 1),
            Asked(FROM_A, 6),
            Wait(10 * MINUTE - 1),
            MadeUpKeys(A, 1),
            Asked(FROM_A, 6),
        ],
    },
    Case {
        name: "a silent server is asked every hour at least",
        notaries: &[],
        script: &[
            Silent(A),
            MadeUpKeys(A, 1),
            Wait(HOUR),
            MadeUpKeys(A, 1),
            Wait(HOUR),
            MadeUpKeys(A, 1),
            Wait(HOUR),
            MadeUpKeys(A, 1),
            Wait(HOUR),
            MadeUpKeys(A, 1),
            Wait(HOUR),
            MadeUpKeys(A, 1),
            Wait(HOUR),
            MadeUpKeys(A, 1),
            Asked(FROM_A, 7),
            Wait(HOUR - 1),
            MadeUpKeys(A, 1),
            Asked(FROM_A, 7),
            Publishes(A, ONE_DAY),
            Wait(1),
            Verifies(A, "ed25519:1", 0, 1),
        ],
    },
    Case {
        name: "isolates share the backoff",
        notaries: &[],
        script: &[Silent(A), MadeUpKeys(A, 1), NewIsolate, MadeUpKeys(A, 1), Asked(FROM_A, 1)],
    },
    Case {
        name: "a success ends the backoff",
        notaries: &[],
        script: &[
            Silent(A),
            Fails(A, "ed25519:1", 0),
            Wait(MINUTE),
            Fails(A, "ed25519:1", 0),
            Wait(2 * MINUTE),
            Publishes(A, ONE_DAY),
            Verifies(A, "ed25519:1", 0, 1),
            MadeUpKeys(A, 1),
            Asked(FROM_A, 4),
            Wait(MINUTE),
            MadeUpKeys(A, 1),
            Asked(FROM_A, 5),
        ],
    },
];

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

struct World {
    internet: Rc<Internet>,
    database: Sqlite,
    config: Rc<Config>,
    started: i64,
    /// What each notary answers.
    entries: RefCell<BTreeMap<String, Rc<RefCell<Vec<Value>>>>>,
}

impl World {
    fn new(notaries: &[(&str, Option<u8>)]) -> Self {
        let internet = Internet::new();
        let started = internet.now.get();
        let notaries: Vec<_> = notaries
            .iter()
            .map(|(name, pinned)| match pinned {
                None => json!(name),
                Some(seed) => json!({ "server_name": name, "verify_keys": { "ed25519:n": public(*seed) } }),
            })
            .collect();
        let old_keys = json!({ "ed25519:before": { "key": public(201), "expired_ts": started - DAY } });
        let config = Config::parse(|variable| match variable {
            "SERVER_NAME" => Some("us.org".to_owned()),
            "SIGNING_KEY" => Some(format!("ed25519 now {}", STANDARD_NO_PAD.encode([200; 32]))),
            "OLD_SIGNING_KEYS" => Some(old_keys.to_string()),
            "TRUSTED_KEY_SERVERS" => Some(json!(notaries).to_string()),
            "DNS_OVER_HTTPS" => Some(RESOLVER.to_owned()),
            _ => None,
        });
        let config = Rc::new(config.unwrap());
        Self { internet, database: Sqlite::in_memory(), config, started, entries: RefCell::default() }
    }

    fn fetcher(&self) -> KeyFetcher {
        self.fetcher_with(Rc::default())
    }

    fn fetcher_with(&self, cache: Rc<KeyCache>) -> KeyFetcher {
        let platform = self.internet.platform(&self.database);
        let client = Rc::new(FederationClient::new(platform.clone(), self.config.clone(), Rc::default()));
        KeyFetcher::new(platform, client, self.config.clone(), cache)
    }

    fn publish(&self, server: &str, lie: Lie, keys: Keys) {
        let body = self.response(server, lie, keys, None).to_string();
        self.internet.serve(&own_url(server), move |_| Ok(page(200, &[], &body)));
    }

    fn notarise(&self, notary: &str, lie: Lie, server: &str, keys: Keys) {
        let entries = self.entries.borrow_mut().entry(notary.to_owned()).or_default().clone();
        entries.borrow_mut().push(self.response(server, lie, keys, Some(notary)));
        self.internet.serve(&query_url(notary), move |request| {
            // The spec's example of the body.
            let body: Value = serde_json::from_slice(request.request.body()).unwrap();
            for (_, keys) in body["server_keys"].as_object().unwrap() {
                assert!(keys.as_object().unwrap().values().all(|query| query["minimum_valid_until_ts"].is_i64()));
            }
            Ok(page(200, &[], &json!({ "server_keys": *entries.borrow() }).to_string()))
        });
    }

    /// A key response about `server`.
    fn response(&self, server: &str, lie: Lie, keys: Keys, notary: Option<&str>) -> Value {
        let verify_keys: BTreeMap<_, _> =
            keys.current.iter().map(|(key_id, seed)| (key_id, json!({ "key": public(*seed) }))).collect();
        let old = |(key_id, seed, expired): &(&'static str, u8, i64)| {
            (*key_id, json!({ "key": public(*seed), "expired_ts": self.started.saturating_add(*expired) }))
        };
        let old_verify_keys: BTreeMap<_, _> = keys.old.iter().map(old).collect();
        let mut response = json!({
            "server_name": if let Lie::Name(name) = lie { name } else { server },
            "valid_until_ts": self.started.saturating_add(keys.valid_until),
            "verify_keys": verify_keys,
            "old_verify_keys": old_verify_keys,
        });
        let text = response.to_string();
        response["signatures"] = json!({});
        if !matches!(lie, Lie::NotSelfSigned) {
            let signed = |(key_id, seed): &(&'static str, u8)| {
                let seed = if matches!(lie, Lie::SignedByStranger) { 99 } else { *seed };
                (*key_id, signature(seed, &text))
            };
            response["signatures"][server] = json!(keys.current.iter().map(signed).collect::<BTreeMap<_, _>>());
        }
        if let Lie::Tampered = lie {
            response["valid_until_ts"] = json!(self.started + WEEK);
        }
        if let Some(notary) = notary.filter(|_| !matches!(lie, Lie::NotNotarySigned)) {
            let seed = if let Lie::NotarySeed(seed) = lie { seed } else { 100 };
            let mut bare = response.clone();
            bare.as_object_mut().unwrap().remove("signatures");
            response["signatures"][notary] = json!({ "ed25519:n": signature(seed, &bare.to_string()) });
        }
        response
    }

    /// The seed of the key that verifies an event of `server` sent at `sent`.
    fn event_key(&self, fetcher: &KeyFetcher, version: &str, server: &str, key_id: &str, sent: i64) -> Option<u8> {
        let version = RoomVersion::get(version).unwrap();
        let sent = self.started + sent;
        // Versions up to 4 need a key, whatever its validity.
        let minimum_valid_until_ts = if version.id == "4" { 0 } else { sent };
        let query =
            KeyQuery { server: ServerName::parse(server).unwrap(), key_id: key_id.to_owned(), minimum_valid_until_ts };
        let ring = block_on(fetcher.fetch(&[query])).unwrap();
        let known = ring.get(server, key_id)?;
        known.is_valid_for_event(sent, version).then(|| seed_of(&known.key.to_base64()))
    }

    fn request_key(&self, fetcher: &KeyFetcher, server: &str, key_id: &str) -> Option<u8> {
        let ring = block_on(fetcher.for_request(&ServerName::parse(server).unwrap(), &[key_id])).unwrap();
        let known = ring.get(server, key_id)?;
        known.is_valid_now(self.internet.now.get()).then(|| seed_of(&known.key.to_base64()))
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
        one.for_request(&server, &["ed25519:1"]),
        other.for_request(&server, &["ed25519:1", "ed25519:1"]),
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
        let mut cut_off = Box::pin(fetcher.for_request(&server, &["ed25519:1"]));
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
    let ring = block_on(world.fetcher().fetch(&queries)).unwrap();
    assert!(queries.iter().all(|query| ring.get(query.server.as_str(), "ed25519:1").is_some()));
    assert_eq!(world.internet.under_way.get().1, 5);
    assert_eq!(world.internet.times_asked("n.org"), 0);
    // One to read, one to write.
    assert_eq!(world.database.calls.get(), 2);
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
    let ring = block_on(world.fetcher().fetch(&queries)).unwrap();
    assert!(queries.iter().all(|query| ring.get(query.server.as_str(), "ed25519:1").is_some()));
    assert_eq!(world.internet.times_asked(FROM_N), 1);
    assert_eq!(world.internet.times_asked("/_matrix/key/v2/server"), 10);
    assert_eq!(world.database.calls.get(), 2);
}

/// Servers that do not answer cost a bounded time altogether.
#[test]
fn a_hundred_silent_servers() {
    let world = World::new(&[]);
    world.internet.delay_ms.set(HOUR);
    let ring = block_on(world.fetcher().fetch(&queries(100))).unwrap();
    assert!(ring.get("s0.org:8448", "ed25519:1").is_none());
    // The clock of the test counts the seconds of each, also of those that pass side by side.
    assert!(world.internet.now.get() - world.started <= 70 * SECOND);
}

/// Strangers choose the servers whose keys are looked for; those that never answered do not stay for ever.
#[test]
fn old_failures_are_forgotten() {
    let world = World::new(&[]);
    let fetcher = world.fetcher();
    let look = |kind: &str| {
        for number in 0..1500 {
            world.event_key(&fetcher, "10", &format!("{kind}{number}.org:1"), "ed25519:1", 0);
        }
    };
    look("old");
    world.internet.now.set(world.internet.now.get() + 2 * DAY);
    look("new");
    let count = |kind| world.database.rows(&format!("SELECT count(*) FROM key_fetches WHERE server LIKE '{kind}%'"));
    assert_eq!((count("old")[0][0].as_str(), count("new")[0][0].as_str()), ("0", "1500"));
}

/// More keys than one parameter of the database holds.
#[test]
fn very_many_keys() {
    let world = World::new(&[]);
    world.internet.delay_ms.set(HOUR);
    let key_id = format!("ed25519:{}", "x".repeat(240));
    let queries: Vec<_> = queries(9000).into_iter().map(|query| KeyQuery { key_id: key_id.clone(), ..query }).collect();
    block_on(world.fetcher().fetch(&queries)).unwrap();
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

fn own_url(server: &str) -> String {
    format!("https://{server}/_matrix/key/v2/server")
}

fn query_url(notary: &str) -> String {
    format!("https://{notary}/_matrix/key/v2/query")
}

fn public(seed: u8) -> String {
    STANDARD_NO_PAD.encode(SigningKey::from_bytes(&[seed; 32]).verifying_key().as_bytes())
}

fn seed_of(key: &str) -> u8 {
    (0..=u8::MAX).find(|seed| public(*seed) == key).unwrap()
}

/// `serde_json` sorts the members, so that for our plain responses its text is canonical JSON.
fn signature(seed: u8, text: &str) -> String {
    STANDARD_NO_PAD.encode(SigningKey::from_bytes(&[seed; 32]).sign(text.as_bytes()).to_bytes())
}
