//! The cases: what there is in the world, what a server name leads to, and what was asked for it.

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) script: &'static [Step],
}

/// How to reach a server: what to connect to, the port, the certificate's name, the `Host` header.
pub(crate) type Route = (&'static str, u16, &'static str, &'static str);

pub(crate) enum Step {
    /// Our own name is this one, instead of `us.org`.
    We(&'static str),
    /// Our server has no resolver configured.
    NoResolver,
    /// `https://<host>/.well-known/matrix/server` delegates to this name.
    WellKnown(&'static str, &'static str),
    /// A page: URL, status, headers, body.
    Page(&'static str, u16, &'static [(&'static str, &'static str)], &'static str),
    /// The well-known of this host is this body, padded with spaces to a number of bytes.
    Padded(&'static str, &'static str, usize),
    /// The well-known of `from.org` leads to a delegation through so many redirects.
    RedirectChain(usize),
    /// The site cannot be reached any more.
    Off(&'static str),
    /// SRV records: name, `priority weight port target`.
    Srv(&'static str, &'static [&'static str]),
    /// The resolver answers a name with a DNS status.
    DnsStatus(&'static str, i64),
    /// The resolver answers everything with this.
    ResolverSays(u16, &'static str),
    /// The resolver cannot be reached.
    ResolverOff,
    /// The resolver can be reached again.
    ResolverOn,
    /// Every request takes so long.
    Slow(i64),
    /// Time passes.
    Wait(i64),
    /// Another isolate of the same server.
    NewIsolate,
    Finds(&'static str, &'static [Route]),
    Refuses(&'static str, Refusal),
    /// So many requests went to something that contains this.
    Asked(&'static str, usize),
    /// So many database calls were made.
    DatabaseCalls(u64),
}
use Step::*;

#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    InvalidName,
    Ourselves,
    Private,
    ServiceRefused,
    NoUsableTarget,
}

pub(crate) const SECOND: i64 = 1000;
pub(crate) const MINUTE: i64 = 60 * SECOND;
pub(crate) const HOUR: i64 = 60 * MINUTE;

/// What is found where nothing but the name is known.
pub(crate) const BY_NAME: &[Route] = &[("a.org", 8448, "a.org", "a.org")];
/// What is found through the delegation that most cases set up.
pub(crate) const DELEGATED: &[Route] = &[("b.org", 443, "b.org", "b.org:443")];
pub(crate) const WELL_KNOWN: &str = "a.org/.well-known/matrix/server";
pub(crate) const A: &str = "https://a.org/.well-known/matrix/server";
pub(crate) const TO_B: &str = r#"{"m.server": "b.org:443"}"#;

pub(crate) const CASES: &[Case] = &[
    // Steps 1 and 2.
    Case {
        name: "an IPv4 literal",
        script: &[Finds("1.2.3.4", &[("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4")]), Asked("", 0)],
    },
    Case {
        name: "an IPv4 literal with a port",
        script: &[Finds("1.2.3.4:80", &[("1.2.3.4", 80, "1.2.3.4", "1.2.3.4:80")]), Asked("", 0)],
    },
    Case {
        name: "an IPv6 literal",
        script: &[Finds("[2001:db8::1]", &[("2001:db8::1", 8448, "2001:db8::1", "[2001:db8::1]")]), Asked("", 0)],
    },
    Case {
        name: "an IPv6 literal with a port",
        script: &[Finds("[2001:db8::1]:1", &[("2001:db8::1", 1, "2001:db8::1", "[2001:db8::1]:1")]), Asked("", 0)],
    },
    Case {
        name: "an explicit port needs no lookup",
        script: &[
            WellKnown("a.org", "b.org:443"),
            Srv("_matrix-fed._tcp.a.org", &["0 0 1 c.org."]),
            Finds("a.org:8448", &[("a.org", 8448, "a.org", "a.org:8448")]),
            Asked("", 0),
            DatabaseCalls(0),
        ],
    },
    // Step 3.
    Case {
        name: "delegation to a name with a port",
        script: &[WellKnown("a.org", "b.org:443"), Finds("a.org", DELEGATED)],
    },
    Case {
        name: "delegation to a port needs no SRV",
        script: &[
            WellKnown("a.org", "b.org:443"),
            Srv("_matrix-fed._tcp.b.org", &["0 0 1 c.org."]),
            Finds("a.org", DELEGATED),
            Asked("SRV", 0),
        ],
    },
    Case {
        name: "delegation to an IPv4 literal",
        script: &[
            WellKnown("a.org", "1.2.3.4"),
            Finds("a.org", &[("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4")]),
            Asked("SRV", 0),
        ],
    },
    Case {
        name: "delegation to an IPv6 literal with a port",
        script: &[
            WellKnown("a.org", "[2001:db8::1]:1"),
            Finds("a.org", &[("2001:db8::1", 1, "2001:db8::1", "[2001:db8::1]:1")]),
        ],
    },
    Case {
        name: "delegation to a name with SRV",
        script: &[
            WellKnown("a.org", "b.org"),
            Srv("_matrix-fed._tcp.b.org", &["10 0 8449 c.org."]),
            Srv("_matrix-fed._tcp.a.org", &["10 0 8449 never.org."]),
            Finds("a.org", &[("c.org", 8449, "b.org", "b.org")]),
        ],
    },
    Case {
        name: "delegation to a name with deprecated SRV",
        script: &[
            WellKnown("a.org", "b.org"),
            Srv("_matrix._tcp.b.org", &["10 0 8449 c.org."]),
            Finds("a.org", &[("c.org", 8449, "b.org", "b.org")]),
        ],
    },
    Case {
        name: "delegation to a bare name",
        script: &[WellKnown("a.org", "b.org"), Finds("a.org", &[("b.org", 8448, "b.org", "b.org")])],
    },
    Case {
        name: "a delegated name does not delegate further",
        script: &[
            WellKnown("a.org", "b.org"),
            WellKnown("b.org", "c.org:443"),
            Finds("a.org", &[("b.org", 8448, "b.org", "b.org")]),
            Asked("b.org/.well-known", 0),
        ],
    },
    Case {
        name: "names are looked up in lower case",
        script: &[
            WellKnown("a.org", "B.org"),
            Finds("A.Org", &[("b.org", 8448, "b.org", "b.org")]),
            Asked(WELL_KNOWN, 1),
        ],
    },
    Case {
        name: "the content type does not matter",
        script: &[Page(A, 200, &[("content-type", "text/html")], TO_B), Finds("a.org", DELEGATED)],
    },
    // Redirects.
    Case {
        name: "a redirect to another host",
        script: &[
            Page(A, 301, &[("location", "https://www.a.org/matrix.json")], ""),
            Page("https://www.a.org/matrix.json", 200, &[], TO_B),
            Finds("a.org", DELEGATED),
        ],
    },
    Case {
        name: "a redirect to another port, by any scheme's case",
        script: &[
            Page(A, 308, &[("location", "HTTPS://a.org:8443?x#y")], ""),
            Page("https://a.org:8443/?x", 200, &[], TO_B),
            Finds("a.org", DELEGATED),
        ],
    },
    Case {
        name: "a redirect to a path",
        script: &[
            Page(A, 302, &[("location", "/server?of=a.org")], ""),
            Page("https://a.org/server?of=a.org", 200, &[], TO_B),
            Finds("a.org", DELEGATED),
        ],
    },
    Case {
        name: "a redirect to a relative path",
        script: &[
            Page(A, 303, &[("location", "../x/./server.json")], ""),
            Page("https://a.org/.well-known/x/server.json", 200, &[], TO_B),
            Finds("a.org", DELEGATED),
        ],
    },
    Case {
        name: "a redirect that keeps the scheme",
        script: &[
            Page(A, 307, &[("location", "//w.org/s")], ""),
            Page("https://w.org/s", 200, &[], TO_B),
            Finds("a.org", DELEGATED),
        ],
    },
    Case {
        name: "a redirect loop ends",
        script: &[
            Page(A, 302, &[("location", "https://b.org/x")], ""),
            Page("https://b.org/x", 302, &[("location", A)], ""),
            Finds("a.org", BY_NAME),
            Asked(WELL_KNOWN, 1),
            Asked("b.org/x", 1),
        ],
    },
    Case { name: "ten redirects are followed", script: &[RedirectChain(10), Finds("a.org", DELEGATED)] },
    Case { name: "eleven redirects are not", script: &[RedirectChain(11), Finds("a.org", BY_NAME), Asked("/hop", 10)] },
    Case {
        name: "a redirect away from https",
        script: &[
            Page(A, 301, &[("location", "http://a.org/x")], ""),
            Page("https://a.org/x", 200, &[], TO_B),
            Finds("a.org", BY_NAME),
        ],
    },
    Case { name: "a redirect without a location", script: &[Page(A, 301, &[], TO_B), Finds("a.org", BY_NAME)] },
    Case {
        name: "slow redirects end",
        script: &[
            RedirectChain(5),
            Slow(4 * SECOND),
            Finds("a.org", BY_NAME),
            // The request at 8 s has 2 s left, and the fourth is not made.
            Asked("/hop", 1),
        ],
    },
    // Invalid answers.
    Case { name: "not JSON", script: &[Page(A, 200, &[], "b.org:443"), Finds("a.org", BY_NAME)] },
    Case { name: "not an object", script: &[Page(A, 200, &[], r#"["b.org:443"]"#), Finds("a.org", BY_NAME)] },
    Case { name: "no m.server", script: &[Page(A, 200, &[], r#"{"server": "b.org:443"}"#), Finds("a.org", BY_NAME)] },
    Case {
        name: "m.server is no string",
        script: &[Page(A, 200, &[], r#"{"m.server": 443}"#), Finds("a.org", BY_NAME)],
    },
    Case { name: "m.server is empty", script: &[WellKnown("a.org", ""), Finds("a.org", BY_NAME)] },
    Case { name: "m.server is a URL", script: &[WellKnown("a.org", "https://b.org"), Finds("a.org", BY_NAME)] },
    Case {
        name: "m.server has a port that is none",
        script: &[WellKnown("a.org", "b.org:65536"), Finds("a.org", BY_NAME)],
    },
    Case { name: "m.server has a path", script: &[WellKnown("a.org", "b.org/x"), Finds("a.org", BY_NAME)] },
    Case { name: "another status than 200", script: &[Page(A, 404, &[], TO_B), Finds("a.org", BY_NAME)] },
    Case { name: "a failing web server", script: &[Page(A, 503, &[], TO_B), Finds("a.org", BY_NAME)] },
    Case { name: "50 KiB", script: &[Padded("a.org", TO_B, 51_200), Finds("a.org", DELEGATED)] },
    Case { name: "more than 50 KiB", script: &[Padded("a.org", TO_B, 51_201), Finds("a.org", BY_NAME)] },
    // How long answers hold.
    Case {
        name: "24 hours where the headers say nothing",
        script: &[
            WellKnown("a.org", "b.org:443"),
            Finds("a.org", DELEGATED),
            WellKnown("a.org", "c.org:443"),
            Wait(24 * HOUR - 1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 1),
            Wait(1),
            Finds("a.org", &[("c.org", 443, "c.org", "c.org:443")]),
        ],
    },
    Case {
        name: "as long as max-age says",
        script: &[
            Page(A, 200, &[("cache-control", "public, Max-Age=3600")], TO_B),
            Finds("a.org", DELEGATED),
            Wait(HOUR - 1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 1),
            Wait(1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 2),
        ],
    },
    Case {
        name: "at most 48 hours",
        script: &[
            Page(A, 200, &[("cache-control", "max-age=99999999999999999999")], TO_B),
            Finds("a.org", DELEGATED),
            Wait(48 * HOUR - 1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 1),
            Off(A),
            Wait(1),
            // Not even where the host cannot be asked.
            Finds("a.org", BY_NAME),
        ],
    },
    Case {
        name: "at least 5 minutes",
        script: &[
            Page(A, 200, &[("cache-control", "no-store")], TO_B),
            Finds("a.org", DELEGATED),
            Wait(5 * MINUTE - 1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 1),
            Wait(1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 2),
        ],
    },
    Case {
        name: "what a proxy has kept already counts",
        script: &[
            Page(A, 200, &[("cache-control", "max-age=7200"), ("age", "3600")], TO_B),
            Finds("a.org", DELEGATED),
            Wait(HOUR),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 2),
        ],
    },
    Case {
        name: "until the date that Expires gives",
        script: &[
            // The internet begins at Tue, 14 Nov 2023 22:13:20 GMT.
            Page(A, 200, &[("expires", "Wed, 15 Nov 2023 00:13:20 GMT")], TO_B),
            Finds("a.org", DELEGATED),
            Wait(2 * HOUR - 1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 1),
            Wait(1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 2),
        ],
    },
    Case {
        name: "until the date that Expires gives in RFC 850's form",
        script: &[
            Page(A, 200, &[("expires", "Wednesday, 15-Nov-23 00:13:20 GMT")], TO_B),
            Finds("a.org", DELEGATED),
            Wait(2 * HOUR - 1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 1),
        ],
    },
    Case {
        name: "until the date that Expires gives in asctime's form",
        script: &[
            Page(A, 200, &[("expires", "Wed Nov 15 00:13:20 2023")], TO_B),
            Finds("a.org", DELEGATED),
            Wait(2 * HOUR - 1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 1),
        ],
    },
    Case {
        name: "an invalid Expires lies in the past",
        script: &[
            Page(A, 200, &[("expires", "0")], TO_B),
            Finds("a.org", DELEGATED),
            Wait(5 * MINUTE),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 2),
        ],
    },
    Case {
        name: "max-age is stronger than Expires",
        script: &[
            Page(A, 200, &[("expires", "0"), ("cache-control", "max-age=3600")], TO_B),
            Finds("a.org", DELEGATED),
            Wait(HOUR - 1),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 1),
        ],
    },
    Case {
        name: "an absence holds for an hour",
        script: &[
            Page(A, 404, &[("cache-control", "max-age=86400")], ""),
            Finds("a.org", BY_NAME),
            WellKnown("a.org", "b.org:443"),
            Wait(HOUR - 1),
            Finds("a.org", BY_NAME),
            Asked(WELL_KNOWN, 1),
            Wait(1),
            Finds("a.org", DELEGATED),
        ],
    },
    Case {
        name: "a host that is down is asked again after 2, 4, 8 minutes",
        script: &[
            Finds("a.org", BY_NAME),
            Wait(2 * MINUTE - 1),
            Finds("a.org", BY_NAME),
            Asked(WELL_KNOWN, 1),
            Wait(1),
            Finds("a.org", BY_NAME),
            Asked(WELL_KNOWN, 2),
            Wait(4 * MINUTE - 1),
            Finds("a.org", BY_NAME),
            Asked(WELL_KNOWN, 2),
            Wait(1),
            Finds("a.org", BY_NAME),
            Asked(WELL_KNOWN, 3),
            Wait(8 * MINUTE - 1),
            Finds("a.org", BY_NAME),
            Asked(WELL_KNOWN, 3),
            Wait(1),
            WellKnown("a.org", "b.org:443"),
            Finds("a.org", DELEGATED),
        ],
    },
    Case {
        name: "a web server that fails is asked again soon",
        script: &[
            Page(A, 503, &[], ""),
            Finds("a.org", BY_NAME),
            WellKnown("a.org", "b.org:443"),
            Wait(2 * MINUTE),
            Finds("a.org", DELEGATED),
        ],
    },
    Case {
        name: "and at least once an hour",
        script: &[
            Page(A, 503, &[], ""),
            Finds("a.org", BY_NAME),
            Wait(HOUR),
            Finds("a.org", BY_NAME),
            Wait(HOUR),
            Finds("a.org", BY_NAME),
            Wait(HOUR),
            Finds("a.org", BY_NAME),
            Wait(HOUR),
            Finds("a.org", BY_NAME),
            Wait(HOUR),
            Finds("a.org", BY_NAME),
            Wait(HOUR),
            Finds("a.org", BY_NAME),
            Asked(WELL_KNOWN, 7),
        ],
    },
    Case {
        name: "a stale delegation is used for two hours where the host is down",
        script: &[
            Page(A, 200, &[("cache-control", "max-age=3600")], TO_B),
            Finds("a.org", DELEGATED),
            Off(A),
            Wait(HOUR),
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 2),
            Wait(2 * HOUR - 1),
            Finds("a.org", DELEGATED),
            Wait(1),
            Finds("a.org", BY_NAME),
        ],
    },
    Case {
        name: "a delegation that was withdrawn is not used any more",
        script: &[
            Page(A, 200, &[("cache-control", "max-age=3600")], TO_B),
            Finds("a.org", DELEGATED),
            Page(A, 404, &[], ""),
            Wait(HOUR),
            Finds("a.org", BY_NAME),
        ],
    },
    Case {
        name: "isolates share what they learned",
        script: &[
            WellKnown("a.org", "b.org:443"),
            Finds("a.org", DELEGATED),
            NewIsolate,
            Finds("a.org", DELEGATED),
            Asked(WELL_KNOWN, 1),
        ],
    },
    Case {
        name: "isolates share the backoff too",
        script: &[
            Finds("a.org", BY_NAME),
            Wait(2 * MINUTE),
            Finds("a.org", BY_NAME),
            NewIsolate,
            Wait(3 * MINUTE),
            Finds("a.org", BY_NAME),
            Asked(WELL_KNOWN, 2),
        ],
    },
    Case {
        name: "an isolate remembers what it knows",
        script: &[
            WellKnown("a.org", "b.org:443"),
            Finds("a.org", DELEGATED),
            DatabaseCalls(2),
            Finds("a.org", DELEGATED),
            DatabaseCalls(2),
        ],
    },
    // Steps 4 to 6.
    Case {
        name: "SRV without delegation",
        script: &[
            Srv("_matrix-fed._tcp.a.org", &["10 5 8449 c.org."]),
            Srv("_matrix._tcp.a.org", &["10 5 1 never.org."]),
            Finds("a.org", &[("c.org", 8449, "a.org", "a.org")]),
            Asked("_matrix._tcp", 0),
        ],
    },
    Case {
        name: "deprecated SRV without delegation",
        script: &[
            Srv("_matrix._tcp.a.org", &["10 5 8449 c.org."]),
            Finds("a.org", &[("c.org", 8449, "a.org", "a.org")]),
        ],
    },
    Case {
        name: "neither delegation nor SRV",
        script: &[
            Finds("a.org", BY_NAME),
            Asked("name=_matrix-fed._tcp.a.org&", 1),
            Asked("name=_matrix._tcp.a.org&", 1),
        ],
    },
    Case {
        name: "SRV targets in the order of their priorities",
        script: &[
            Srv("_matrix-fed._tcp.a.org", &["20 100 3 c.org.", "5 0 1 d.org.", "10 0 2 e.org."]),
            Finds(
                "a.org",
                &[("d.org", 1, "a.org", "a.org"), ("e.org", 2, "a.org", "a.org"), ("c.org", 3, "a.org", "a.org")],
            ),
        ],
    },
    Case {
        name: "at most eight SRV targets",
        script: &[
            Srv(
                "_matrix-fed._tcp.a.org",
                &[
                    "1 0 1 c.org",
                    "2 0 2 c.org",
                    "3 0 3 c.org",
                    "4 0 4 c.org",
                    "5 0 5 c.org",
                    "6 0 6 c.org",
                    "7 0 7 c.org",
                    "8 0 8 c.org",
                    "9 0 9 c.org",
                ],
            ),
            Finds(
                "a.org",
                &[
                    ("c.org", 1, "a.org", "a.org"),
                    ("c.org", 2, "a.org", "a.org"),
                    ("c.org", 3, "a.org", "a.org"),
                    ("c.org", 4, "a.org", "a.org"),
                    ("c.org", 5, "a.org", "a.org"),
                    ("c.org", 6, "a.org", "a.org"),
                    ("c.org", 7, "a.org", "a.org"),
                    ("c.org", 8, "a.org", "a.org"),
                ],
            ),
        ],
    },
    Case {
        name: "a target of `.` says that there is no such service",
        script: &[
            Srv("_matrix-fed._tcp.a.org", &["0 0 0 ."]),
            Srv("_matrix._tcp.a.org", &["0 0 8448 c.org."]),
            Refuses("a.org", Refusal::ServiceRefused),
        ],
    },
    Case {
        name: "malformed SRV records are passed over",
        script: &[
            Srv(
                "_matrix-fed._tcp.a.org",
                &[
                    "1 1 8448",
                    "-1 1 8448 c.org.",
                    "1 1 65536 c.org.",
                    "1 1 0 c.org.",
                    "1 1 8448 c.org. d.org.",
                    "1 1 8448 1.2.3.4.",
                    "1 1 8448 c_d.org.",
                    "+1 1 8448 c.org.",
                    "1  1 8448 c.org.",
                    "1 1 8448 ",
                    "",
                    "2 1 8449 Good.org.",
                ],
            ),
            Finds("a.org", &[("good.org", 8449, "a.org", "a.org")]),
        ],
    },
    Case {
        name: "records of other types are passed over",
        script: &[
            ResolverSays(
                200,
                r#"{"Status": 0, "Answer": [{"type": 5, "data": "1 1 1 alias.org."}, {"type": 33, "TTL": 60, "data": "1 1 8449 c.org."}]}"#,
            ),
            Finds("a.org", &[("c.org", 8449, "a.org", "a.org")]),
        ],
    },
    Case {
        name: "SRV records hold as long as they say",
        script: &[
            Srv("_matrix-fed._tcp.a.org", &["10 5 8449 c.org."]),
            Finds("a.org", &[("c.org", 8449, "a.org", "a.org")]),
            Srv("_matrix-fed._tcp.a.org", &["10 5 8449 d.org."]),
            Wait(300 * SECOND - 1),
            Finds("a.org", &[("c.org", 8449, "a.org", "a.org")]),
            Asked("SRV", 1),
            Wait(1),
            Finds("a.org", &[("d.org", 8449, "a.org", "a.org")]),
        ],
    },
    Case {
        name: "SRV records hold for a minute at least",
        script: &[
            ResolverSays(200, r#"{"Status": 0, "Answer": [{"type": 33, "TTL": 0, "data": "1 1 8449 c.org."}]}"#),
            Finds("a.org", &[("c.org", 8449, "a.org", "a.org")]),
            Wait(MINUTE - 1),
            Finds("a.org", &[("c.org", 8449, "a.org", "a.org")]),
            Asked("SRV", 1),
        ],
    },
    Case {
        name: "that there is no SRV record holds for 5 minutes",
        script: &[
            Finds("a.org", BY_NAME),
            Srv("_matrix-fed._tcp.a.org", &["10 5 8449 c.org."]),
            Wait(5 * MINUTE - 1),
            Finds("a.org", BY_NAME),
            Asked("SRV", 2),
            Wait(1),
            Finds("a.org", &[("c.org", 8449, "a.org", "a.org")]),
        ],
    },
    // The resolver.
    Case {
        name: "a resolver that is down is left alone for 30 s",
        script: &[
            Srv("_matrix-fed._tcp.a.org", &["10 5 8449 c.org."]),
            ResolverOff,
            Finds("a.org", BY_NAME),
            Asked("SRV", 1),
            Wait(30 * SECOND - 1),
            Finds("a.org", BY_NAME),
            Finds("d.org", &[("d.org", 8448, "d.org", "d.org")]),
            Asked("SRV", 1),
            ResolverOn,
            Wait(1),
            Finds("a.org", &[("c.org", 8449, "a.org", "a.org")]),
        ],
    },
    Case {
        name: "a resolver that fails",
        script: &[DnsStatus("_matrix-fed._tcp.a.org", 2), Finds("a.org", BY_NAME), Asked("SRV", 1)],
    },
    Case {
        name: "a name of which the resolver cannot say anything",
        script: &[
            DnsStatus("_matrix-fed._tcp.a.org", 2),
            Srv("_matrix-fed._tcp.d.org", &["10 5 8449 d.org."]),
            Finds("a.org", BY_NAME),
            Finds("d.org", &[("d.org", 8449, "d.org", "d.org")]),
            // It is asked of that name no more, for now.
            Asked("SRV", 2),
        ],
    },
    Case {
        name: "a resolver that refuses",
        script: &[ResolverSays(403, ""), Finds("a.org", BY_NAME), Asked("SRV", 1)],
    },
    Case { name: "a resolver that speaks no JSON", script: &[ResolverSays(200, "<html>"), Finds("a.org", BY_NAME)] },
    Case {
        name: "a resolver without a status",
        script: &[ResolverSays(200, r#"{"Answer": []}"#), Finds("a.org", BY_NAME)],
    },
    Case {
        name: "no resolver",
        script: &[
            NoResolver,
            Srv("_matrix-fed._tcp.a.org", &["1 1 1 c.org."]),
            Finds("a.org", BY_NAME),
            Asked("SRV", 0),
        ],
    },
    // What is refused.
    Case { name: "our own name", script: &[Refuses("us.org", Refusal::Ourselves)] },
    Case {
        name: "loopback",
        script: &[Refuses("127.0.0.1:8448", Refusal::Private), Refuses("[::1]", Refusal::Private)],
    },
    Case {
        name: "private networks",
        script: &[
            Refuses("10.0.0.1", Refusal::Private),
            Refuses("172.31.0.1", Refusal::Private),
            Refuses("192.168.0.1:443", Refusal::Private),
            Refuses("169.254.169.254:80", Refusal::Private),
            Refuses("100.64.0.1", Refusal::Private),
            Refuses("0.0.0.0", Refusal::Private),
            Refuses("[fe80::1]", Refusal::Private),
            Refuses("[fd00::1]", Refusal::Private),
        ],
    },
    Case {
        name: "private IPv4 addresses as IPv6",
        script: &[
            Refuses("[::ffff:127.0.0.1]", Refusal::Private),
            Refuses("[::7f00:1]", Refusal::Private),
            Refuses("[64:ff9b::10.0.0.1]", Refusal::Private),
            Refuses("[2002:a00:1::]", Refusal::Private),
        ],
    },
    Case {
        name: "names that URL parsers take for addresses",
        script: &[
            Refuses("2130706433:80", Refusal::InvalidName),
            Refuses("127.1:80", Refusal::InvalidName),
            Refuses("0x7f000001:80", Refusal::InvalidName),
            Refuses("a.0x1:80", Refusal::InvalidName),
            Refuses("127.0.0.1.:80", Refusal::InvalidName),
            Refuses("127.0.0.01:80", Refusal::InvalidName),
            Refuses("127.0.0.256:80", Refusal::InvalidName),
        ],
    },
    Case {
        name: "names in private networks",
        script: &[
            Refuses("localhost:8448", Refusal::Private),
            Refuses("database", Refusal::Private),
            Refuses("nas.local", Refusal::Private),
            Refuses("metadata.google.internal:443", Refusal::Private),
            Asked("", 0),
        ],
    },
    Case {
        name: "delegation into a private network",
        script: &[WellKnown("a.org", "10.0.0.1:443"), Refuses("a.org", Refusal::Private)],
    },
    Case {
        name: "a redirect into a private network",
        script: &[
            Page(A, 302, &[("location", "https://169.254.169.254/latest")], ""),
            Page("https://169.254.169.254/latest", 200, &[], TO_B),
            Finds("a.org", BY_NAME),
            Asked("169.254.169.254", 0),
        ],
    },
    Case {
        name: "SRV into a private network",
        script: &[Srv("_matrix-fed._tcp.a.org", &["1 1 8448 localhost."]), Refuses("a.org", Refusal::NoUsableTarget)],
    },
    Case {
        name: "a server in a private network reaches private names",
        script: &[
            We("localhost:8448"),
            WellKnown("hs1", "localhost:8449"),
            Finds("localhost:18448", &[("localhost", 18448, "localhost", "localhost:18448")]),
            Finds("127.0.0.2:8448", &[("127.0.0.2", 8448, "127.0.0.2", "127.0.0.2:8448")]),
            Finds("hs1", &[("localhost", 8449, "localhost", "localhost:8449")]),
        ],
    },
    Case {
        name: "ports that are none",
        script: &[
            Refuses("a.org:0", Refusal::InvalidName),
            Refuses("a.org:65536", Refusal::InvalidName),
            Refuses("a.org:", Refusal::InvalidName),
        ],
    },
    Case {
        name: "what is no server name",
        script: &[
            Refuses("", Refusal::InvalidName),
            Refuses("a.org/x", Refusal::InvalidName),
            Refuses("a.org@b.org", Refusal::InvalidName),
            Refuses("a..org", Refusal::InvalidName),
            Refuses("[::1", Refusal::InvalidName),
            Refuses("a_b.org", Refusal::InvalidName),
            Asked("", 0),
        ],
    },
];
