//! Asking servers for their keys, and notaries for those of others (Server-Server API, "Retrieving server keys").
//!
//! What an answer is worth is decided in [`crate::matrix::server_keys`]; who may be asked, and when again, by whoever asks
//! ([`super::key_fetcher`]).

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use futures_util::stream::{self, StreamExt};

use super::{endpoints::KeyQuery, requests::FederationClient};
use crate::{
    config::{Config, TrustedKeyServer},
    log::{LogRecord, Why},
    matrix::{
        identifiers::ServerName,
        server_keys::{self, KeyRing, KnownKey, MAX_VALIDITY_MS, ServerKeys},
    },
    platform::Platform,
};

/// How many servers are asked at the same time: the platform has 6 connections for a request, and one is the database's.
const MAX_CONNECTIONS: usize = 5;
/// From how many servers on the notaries are asked before them.
const MANY_SERVERS: usize = 16;
/// No server is asked any more when looking took this long, in one round.
pub(super) const BUDGET_MS: i64 = 20_000;
/// How many keys one request to a notary asks for.
const MAX_QUERIES: usize = 500;
/// How long a notary that failed is left alone.
const NOTARY_BACKOFF_MS: i64 = 5 * 60_000;

/// Server and key ID, and until when the key must be valid.
pub(super) type Wanted<'a> = BTreeMap<(&'a str, &'a str), i64>;
/// By server and key ID.
pub(super) type Found = BTreeMap<(String, String), KnownKey>;

/// What an isolate knows of the notaries that its operator trusts.
#[derive(Default)]
pub(super) struct Notaries(RefCell<BTreeMap<ServerName, Notary>>);

/// What this isolate knows of a notary.
#[derive(Clone, Default)]
struct Notary {
    /// The keys it signs with, where they are not pinned.
    keys: KeyRing,
    keys_until: i64,
    retry_at: i64,
}

/// Who may be asked for the keys of a server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// Itself, and the notaries.
    All,
    /// Itself: the notaries were asked before.
    Itself,
}

/// Who asks, and what is known of whom.
pub(super) struct KeyQuestions<'a> {
    pub(super) platform: &'a Platform,
    pub(super) client: &'a FederationClient,
    pub(super) config: &'a Config,
    pub(super) notaries: &'a Notaries,
}

impl KeyQuestions<'_> {
    /// Asks servers and notaries for what is lacking; servers of the least rank first, and none after the deadline.
    pub(super) async fn ask<R: Ord>(
        &self,
        lacking: &Wanted<'_>,
        whom: Whom,
        rank: impl Fn(&str) -> R,
        deadline: i64,
    ) -> Asked {
        let nothing = Found::new();
        let mut asked = Asked::default();
        let many = servers(lacking).len() >= MANY_SERVERS;
        if many && whom == Whom::All {
            self.ask_notaries(lacking, &mut asked).await;
        }
        let rest = asked.lacking(lacking, &nothing);
        self.ask_servers(&self.in_turn(servers(&rest), rank), deadline, &mut asked).await;
        let rest = asked.lacking(lacking, &nothing);
        if !many && whom == Whom::All && !rest.is_empty() {
            self.ask_notaries(&rest, &mut asked).await;
        }
        asked
    }

    /// These servers in the order in which they are asked: by rank, and those of one rank drawn anew each time, as there may not be
    /// time for all. In any order that goes by their names, some could see to it that it is never others' turn.
    fn in_turn<'n, R: Ord>(&self, mut names: Vec<&'n str>, rank: impl Fn(&str) -> R) -> Vec<&'n str> {
        names.sort_by_cached_key(|name| {
            let mut drawn = [0; 4];
            self.platform.random.fill(&mut drawn);
            (rank(name), drawn)
        });
        names
    }

    /// Asks each of `names` for its own keys, a few at a time, and none after the deadline.
    async fn ask_servers(&self, names: &[&str], deadline: i64, asked: &mut Asked) {
        let answers =
            stream::iter(names.iter().filter_map(|name| ServerName::parse(name).ok())).map(|name| async move {
                let is_asked = self.platform.clock.now_ms() < deadline;
                let answer = if is_asked { Some(self.ask_server(&name).await) } else { None };
                (name, answer)
            });
        let mut answers = answers.buffer_unordered(MAX_CONNECTIONS);
        while let Some((name, answer)) = answers.next().await {
            let Some(answer) = answer else {
                asked.left_out.insert(name.to_string());
                continue;
            };
            asked.servers.insert(name.to_string());
            match answer {
                Ok(keys) => asked.from_servers.push(keys),
                Err(why) => {
                    self.platform
                        .log
                        .write(LogRecord::warning("no keys from a server").destination(&name).because(&why));
                }
            }
        }
        if !asked.left_out.is_empty() {
            let record = LogRecord::warning("servers are not asked for their keys, as others took too long");
            self.platform.log.write(record.count(asked.left_out.len()));
        }
    }

    /// Asks a server for its own keys.
    pub(super) async fn ask_server(&self, name: &ServerName) -> Result<ServerKeys, Why> {
        let object = self.client.server_keys(name).await.map_err(|error| Why::of(&error))?;
        let now = self.platform.clock.now_ms();
        ServerKeys::parse_and_check(object, name.as_str(), now).map_err(|error| Why::of(&error))
    }

    /// Asks one notary after the other for what is lacking still.
    async fn ask_notaries(&self, lacking: &Wanted<'_>, asked: &mut Asked) {
        for notary in &self.config.trusted_key_servers {
            let rest = asked.lacking(lacking, &Found::new());
            if rest.is_empty() || notary.name == self.config.server_name {
                continue;
            }
            let mut known = self.notaries.0.borrow().get(&notary.name).cloned().unwrap_or_default();
            if self.platform.clock.now_ms() < known.retry_at {
                continue;
            }
            if let Err(why) = self.ask_notary(notary, &mut known, &rest, asked).await {
                let record = LogRecord::warning("no keys from a notary").destination(&notary.name);
                self.platform.log.write(record.because(&why).retry_in(NOTARY_BACKOFF_MS));
                known.retry_at = self.platform.clock.now_ms() + NOTARY_BACKOFF_MS;
            }
            self.notaries.0.borrow_mut().insert(notary.name.clone(), known);
        }
    }

    async fn ask_notary(
        &self,
        notary: &TrustedKeyServer,
        known: &mut Notary,
        lacking: &Wanted<'_>,
        asked: &mut Asked,
    ) -> Result<(), Why> {
        let ring = self.notary_keys(notary, known).await?;
        let queries: Vec<_> = lacking
            .iter()
            .filter_map(|((server, key_id), minimum)| {
                let server = ServerName::parse(server).ok()?;
                Some(KeyQuery { server, key_id: (*key_id).to_owned(), minimum_valid_until_ts: *minimum })
            })
            .collect();
        for queries in queries.chunks(MAX_QUERIES) {
            let response = self.client.query_keys(&notary.name, queries).await.map_err(|error| Why::of(&error))?;
            let now = self.platform.clock.now_ms();
            let entries = server_keys::check_notary_response(response, notary.name.as_str(), &ring, now)
                .map_err(|error| Why::of(&error))?;
            for entry in entries {
                match entry {
                    // What nobody asked for is not taken from it.
                    Ok(keys) if queries.iter().any(|query| query.server.as_str() == &*keys.server_name) => {
                        asked.from_notaries.push(keys);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        let record = LogRecord::warning("an entry of a notary is refused");
                        self.platform.log.write(record.destination(&notary.name).because(&error));
                    }
                }
            }
        }
        Ok(())
    }

    /// The keys that the notary may sign with: those that the operator pinned, else those that it publishes.
    async fn notary_keys(&self, notary: &TrustedKeyServer, known: &mut Notary) -> Result<KeyRing, Why> {
        let now = self.platform.clock.now_ms();
        if !notary.verify_keys.is_empty() {
            let mut ring = KeyRing::new();
            for (key_id, key) in &notary.verify_keys {
                let key = KnownKey { key: key.clone(), valid_until_ts: i64::MAX, expired_ts: None, fetched_ts: now };
                ring.insert(notary.name.as_str(), key_id, key);
            }
            return Ok(ring);
        }
        if now >= known.keys_until {
            let keys = self.ask_server(&notary.name).await?;
            known.keys = KeyRing::new();
            known.keys.add(&keys);
            known.keys_until = keys.valid_until_ts.min(now.saturating_add(MAX_VALIDITY_MS));
        }
        Ok(known.keys.clone())
    }
}

/// What the network answered.
#[derive(Default)]
pub(super) struct Asked {
    /// The servers that were asked for their own keys, whether they answered or not.
    servers: BTreeSet<String>,
    /// Those that there was no time to ask.
    pub(super) left_out: BTreeSet<String>,
    pub(super) from_servers: Vec<ServerKeys>,
    pub(super) from_notaries: Vec<ServerKeys>,
}

impl Asked {
    /// What is lacking still, of `wanted`, beside what was known before.
    pub(super) fn lacking<'a>(&self, wanted: &Wanted<'a>, before: &Found) -> Wanted<'a> {
        let mut found = before.clone();
        for keys in self.from_notaries.iter().chain(&self.from_servers) {
            for (key_id, key) in &keys.keys {
                let at = (keys.server_name.to_string(), key_id.to_string());
                if found.get(&at).is_none_or(|known| reach(known) < reach(key)) {
                    found.insert(at, key.clone());
                }
            }
        }
        lacking(wanted, &found)
    }

    /// Whether this server was asked for its keys. Of one for which there was no time, what notaries do not know of it says nothing.
    pub(super) fn was_asked(&self, server: &str) -> bool {
        self.servers.contains(server)
    }

    /// The servers of whose keys somebody has told.
    pub(super) fn told_of(&self) -> BTreeSet<&str> {
        self.from_servers.iter().chain(&self.from_notaries).map(|keys| &*keys.server_name).collect()
    }

    /// Those that have themselves.
    pub(super) fn answered(&self) -> BTreeSet<&str> {
        self.from_servers.iter().map(|keys| &*keys.server_name).collect()
    }
}

/// What of `wanted` is not found, or not valid for long enough.
pub(super) fn lacking<'a>(wanted: &Wanted<'a>, found: &Found) -> Wanted<'a> {
    let lacks = |((server, key_id), minimum): &(&(&str, &str), &i64)| {
        let key = found.get(&((*server).to_owned(), (*key_id).to_owned()));
        key.is_none_or(|key| reach(key) < **minimum)
    };
    wanted.iter().filter(lacks).map(|(at, minimum)| (*at, *minimum)).collect()
}

/// Up to which time a key may have signed.
fn reach(key: &KnownKey) -> i64 {
    key.expired_ts.unwrap_or_else(|| key.valid_until())
}

/// The servers whose keys are wanted, each once.
pub(super) fn servers<'a>(wanted: &Wanted<'a>) -> Vec<&'a str> {
    let mut servers: Vec<_> = wanted.keys().map(|(server, _)| *server).collect();
    servers.dedup();
    servers
}
