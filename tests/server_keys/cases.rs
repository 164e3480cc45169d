//! The cases: what servers and notaries say of keys, and what verifies then.

pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The notaries that are trusted, and the seed of the key `ed25519:n` where it is pinned.
    pub(crate) notaries: &'static [(&'static str, Option<u8>)],
    pub(crate) script: &'static [Step],
}

/// What a server, or a notary on its behalf, says of its keys. Times are milliseconds after the beginning of the case.
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    /// Key IDs and seeds.
    pub(crate) current: &'static [(&'static str, u8)],
    /// Key IDs, seeds, `expired_ts`.
    pub(crate) old: &'static [(&'static str, u8, i64)],
    pub(crate) valid_until: i64,
}

#[derive(Clone, Copy)]
pub(crate) enum Lie {
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

pub(crate) enum Step {
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

pub(crate) const SECOND: i64 = 1000;
pub(crate) const MINUTE: i64 = 60 * SECOND;
pub(crate) const HOUR: i64 = 60 * MINUTE;
pub(crate) const DAY: i64 = 24 * HOUR;
pub(crate) const WEEK: i64 = 7 * DAY;

pub(crate) const A: &str = "a.org:8448";
pub(crate) const N: &str = "n.org:8448";
pub(crate) const M: &str = "m.org:8448";
pub(crate) const TRUSTED: &[(&str, Option<u8>)] = &[(N, None)];
pub(crate) const PINNED: &[(&str, Option<u8>)] = &[(N, Some(100))];
pub(crate) const FROM_A: &str = "a.org:8448/_matrix/key/v2/server";
pub(crate) const FROM_N: &str = "n.org:8448/_matrix/key/v2/query";
pub(crate) const FROM_M: &str = "m.org:8448/_matrix/key/v2/query";

pub(crate) const KEY_1: &[(&str, u8)] = &[("ed25519:1", 1)];
pub(crate) const ONE_DAY: Keys = Keys { current: KEY_1, old: &[], valid_until: DAY };
pub(crate) const NOTARY_KEYS: Keys = Keys { current: &[("ed25519:n", 100)], old: &[], valid_until: WEEK };

pub(crate) const CASES: &[Case] = &[
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
        name: "a server that is there again is heard, however long it was silent when its events came",
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
            Publishes(A, ONE_DAY),
            RequestFails(A, "ed25519:1"),
            Asked(FROM_A, 7),
            Wait(MINUTE),
            RequestVerifies(A, "ed25519:1", 1),
            Asked(FROM_A, 8),
            // And its events are.
            NewIsolate,
            Publishes(A, Keys { current: &[("ed25519:2", 2)], ..ONE_DAY }),
            Verifies(A, "ed25519:2", 6 * HOUR, 2),
        ],
    },
    Case {
        name: "a request that fails because its server is not quite there yet does not count as hours of silence",
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
            RequestFails(A, "ed25519:1"),
            Publishes(A, ONE_DAY),
            Wait(MINUTE),
            RequestVerifies(A, "ed25519:1", 1),
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
