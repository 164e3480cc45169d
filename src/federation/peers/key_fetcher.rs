//! Fetching other servers' signing keys: Server-Server API, "Retrieving server keys".
//!
//! Keys are looked for in this isolate, in the database, at their own server, and at the notaries that the operator
//! trusts, in this order, until they are valid for long enough. Where very many servers are concerned at once, as
//! when a large room is joined, the notaries are asked first: one request to them saves one for each server.
//!
//! Anybody can make us need a key, by naming any server and any key ID in a request or an event. So a server that could
//! not give what was needed is left alone for a while, longer each time; and of the keys that were found the database is told
//! once they have verified something ([`KeyFetcher::have_verified`]), of no others than were wanted. What responses count is
//! decided in [`crate::matrix::server_keys`].

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use futures_util::stream::{self, StreamExt};

use super::{endpoints::KeyQuery, requests::FederationClient};
use crate::{
    config::{Config, TrustedKeyServer},
    log::{LogRecord, Why},
    matrix::{
        identifiers::ServerName,
        server_keys::{self, KeyRing, KnownKey, MAX_VALIDITY_MS, ServerKeys},
    },
    platform::{DatabaseError, Platform},
    store::{
        Store,
        known_keys::{KeyFetch, StoredKey},
    },
};

/// How many servers are asked at the same time: the platform has 6 connections for a request, and one is the database's.
const MAX_CONNECTIONS: usize = 5;
/// From how many servers on the notaries are asked before them.
const MANY_SERVERS: usize = 16;
/// No server is asked any more when looking took this long.
const BUDGET_MS: i64 = 20_000;
/// How many keys one request to a notary asks for.
const MAX_QUERIES: usize = 500;

/// How long a server is left alone after the first fetch that did not bring what was needed, doubled by each further one
/// up to a limit: one for servers that answered, where a new key may appear, and one for those that did not.
const FIRST_BACKOFF_MS: i64 = 60_000;
const MAX_BACKOFF_ANSWERED_MS: i64 = 10 * 60_000;
const MAX_BACKOFF_SILENT_MS: i64 = 60 * 60_000;
/// How long a notary that failed is left alone.
const NOTARY_BACKOFF_MS: i64 = 5 * 60_000;

/// How long to wait for another request of this isolate that is fetching the same server's keys.
const MAX_WAIT_MS: i64 = 3_000;
const WAIT_STEP_MS: u32 = 50;
/// How many keys this isolate remembers.
const MAX_REMEMBERED: usize = 8192;
/// How many responses this isolate remembers until one of their keys has verified something.
const MAX_TOLD: usize = 64;
/// How many current keys of one response are remembered that nobody has asked for, and how many old ones.
const MAX_UNASKED: usize = 8;
/// How many servers this isolate remembers to have asked in vain.
const MAX_FAILED: usize = 4096;

/// Finds keys.
pub struct KeyFetcher {
    platform: Platform,
    store: Store,
    client: Rc<FederationClient>,
    config: Rc<Config>,
    cache: Rc<KeyCache>,
}

/// What one isolate knows of keys, for the fetchers of all its events: plain values only.
#[derive(Default)]
pub struct KeyCache {
    remembered: RefCell<Remembered>,
    /// The servers whose keys some request of this isolate is fetching, and since when.
    under_way: RefCell<BTreeMap<String, i64>>,
    notaries: RefCell<BTreeMap<ServerName, Notary>>,
    /// What servers said of themselves, as long as no key of theirs has verified anything.
    told: RefCell<BTreeMap<String, ServerKeys>>,
    /// Who was asked in vain for the sake of a request, of which the database is not told: nobody has signed it.
    failed: RefCell<BTreeMap<String, KeyFetch>>,
}

#[derive(Default)]
struct Remembered {
    servers: BTreeMap<String, BTreeMap<String, RememberedKey>>,
    count: usize,
}

struct RememberedKey {
    key: KnownKey,
    /// Whether the database knows it as it is.
    is_stored: bool,
}

/// What keys are wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A request, which anybody may send.
    Request,
    /// Events, which somebody sent whose request was verified.
    Events,
}

/// What this isolate knows of a notary.
#[derive(Clone, Default)]
struct Notary {
    /// The keys it signs with, where they are not pinned.
    keys: KeyRing,
    keys_until: i64,
    retry_at: i64,
}

/// Server and key ID, and until when the key must be valid.
type Wanted<'a> = BTreeMap<(&'a str, &'a str), i64>;
/// By server and key ID.
type Found = BTreeMap<(String, String), KnownKey>;

impl KeyFetcher {
    /// A fetcher that asks through `client`, and the notaries of `config`.
    pub fn new(platform: Platform, client: Rc<FederationClient>, config: Rc<Config>, cache: Rc<KeyCache>) -> Self {
        Self { store: Store::new(platform.database.clone()), platform, client, config, cache }
    }

    /// The keys with which a request of `origin` may be signed now; to be given to
    /// [`crate::matrix::x_matrix::verify`].
    ///
    /// # Errors
    /// Where the database fails. A key that cannot be found is just not in the ring.
    pub async fn for_request(&self, origin: &ServerName, key_ids: &[&str]) -> Result<KeyRing, DatabaseError> {
        let minimum_valid_until_ts = self.platform.clock.now_ms();
        let query =
            |key_id: &&str| KeyQuery { server: origin.clone(), key_id: (*key_id).to_owned(), minimum_valid_until_ts };
        self.find(&key_ids.iter().map(query).collect::<Vec<_>>(), Purpose::Request).await
    }

    /// The keys `needed`, as far as they can be found. One that is known, but not to be valid for long enough, is in the
    /// ring too: whoever verifies with it checks that. Where a room version ignores validity, `minimum_valid_until_ts`
    /// is 0.
    ///
    /// # Errors
    /// Where the database fails. A key that cannot be found is just not in the ring.
    pub async fn fetch(&self, needed: &[KeyQuery]) -> Result<KeyRing, DatabaseError> {
        self.find(needed, Purpose::Events).await
    }

    /// Tells the database of those of these keys (server and key ID) that it does not know: they have verified what they were
    /// fetched for.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn have_verified(&self, keys: &[(&str, &str)]) -> Result<(), DatabaseError> {
        let unstored: Vec<(&str, &str, KnownKey)> = {
            let remembered = self.cache.remembered.borrow();
            let unstored = keys.iter().filter_map(|(server, key_id)| {
                let known = remembered.servers.get(*server)?.get(*key_id)?;
                (!known.is_stored).then(|| (*server, *key_id, known.key.clone()))
            });
            unstored.collect()
        };
        let told: Vec<ServerKeys> = {
            let mut told = self.cache.told.borrow_mut();
            keys.iter().filter_map(|(server, _)| told.remove(*server)).collect()
        };
        self.store.put_passing_keys(&unstored, &told).await?;
        let mut remembered = self.cache.remembered.borrow_mut();
        for (server, key_id, key) in unstored {
            let known = remembered.servers.get_mut(server).and_then(|keys| keys.get_mut(key_id));
            if let Some(known) = known.filter(|known| known.key == key) {
                known.is_stored = true;
            }
        }
        Ok(())
    }

    async fn find(&self, needed: &[KeyQuery], purpose: Purpose) -> Result<KeyRing, DatabaseError> {
        let mut ring = KeyRing::new();
        let mut wanted = Wanted::new();
        for query in needed {
            if query.server == self.config.server_name {
                self.add_own(&mut ring, &query.key_id);
            } else if is_plausible(&query.key_id) {
                let minimum = wanted.entry((query.server.as_str(), &query.key_id)).or_insert(i64::MIN);
                *minimum = (*minimum).max(query.minimum_valid_until_ts);
            }
        }
        for ((server, key_id), key) in self.look(&wanted, purpose).await? {
            ring.insert(&server, &key_id, key);
        }
        Ok(ring)
    }

    /// What `server` says of its own keys now; `None` where it says nothing that can be used. Whether it may be asked is for
    /// the caller to say.
    pub async fn ask_anew(&self, server: &ServerName) -> Option<ServerKeys> {
        let _under_way = self.mark_under_way(&Wanted::from([((server.as_str(), ""), 0)]));
        let answer = self.ask_server(server).await;
        let told = |why: &Why| LogRecord::warning("no keys from a server").destination(server).because(why);
        answer.inspect_err(|why| self.platform.log.write(told(why))).ok()
    }

    /// Waits, where another request of this isolate is asking one of `servers` for its keys; says whether there was one.
    pub async fn wait_for_answers(&self, servers: &[&ServerName]) -> bool {
        self.wait_for_others(&servers.iter().map(|server| ((server.as_str(), ""), 0)).collect()).await
    }

    /// Looks everywhere for what is wanted.
    async fn look(&self, wanted: &Wanted<'_>, purpose: Purpose) -> Result<Found, DatabaseError> {
        let mut found = self.recall(wanted);
        let mut lacking = lacking(wanted, &found);
        if !lacking.is_empty() && self.wait_for_others(&lacking).await {
            found = self.recall(wanted);
            lacking = self::lacking(wanted, &found);
        }
        if lacking.is_empty() {
            return Ok(found);
        }
        let _under_way = self.mark_under_way(&lacking);

        // In the database.
        let stored = self.store.keys(&servers(&lacking)).await?;
        let held = held(stored.keys);
        for (at, (key, _)) in held.iter().filter(|(at, _)| wanted.contains_key(&(at.0.as_str(), at.1.as_str()))) {
            self.remember(at, key.clone(), true);
            found.insert(at.clone(), key.clone());
        }
        let mut fetches: BTreeMap<String, KeyFetch> = stored.fetches.into_iter().collect();
        for server in servers(&lacking) {
            if let Some(failed) = self.cache.failed.borrow().get(server)
                && fetches.get(server).is_none_or(|fetch| fetch.retry_at < failed.retry_at)
            {
                fetches.insert(server.to_owned(), *failed);
            }
        }
        let now = self.platform.clock.now_ms();
        let mut lacking = self::lacking(wanted, &found);
        lacking.retain(|(server, _), minimum| {
            // No response makes a key valid for longer than 7 days.
            *minimum <= now.saturating_add(MAX_VALIDITY_MS)
                && fetches.get(*server).is_none_or(|fetch| fetch.retry_at <= now)
        });
        if lacking.is_empty() {
            return Ok(found);
        }

        // On the network.
        let asked = self.ask(&lacking, now).await;
        let rest = asked.lacking(&lacking, &found);
        let outcomes = self.outcomes(&lacking, &rest, &asked, &fetches);
        self.take_over(wanted, &asked, &held, &mut found);
        let tells_of_kept = held.iter().any(|((server, _), (_, is_kept))| *is_kept && asked.has_told_of(server));
        let (own_words, others_words): (&[ServerKeys], &[ServerKeys]) =
            if tells_of_kept { (&asked.from_servers, &asked.from_notaries) } else { (&[], &[]) };
        let renewed = held.iter().filter_map(|(at, (before, is_kept))| {
            let after = found.get(at).filter(|after| !is_kept && *after != before)?;
            Some((at.0.as_str(), at.1.as_str(), after.clone()))
        });
        let outcomes = if purpose == Purpose::Events { outcomes } else { self.note_failures(outcomes) };
        // Other isolates will not ask them either.
        let failed = outcomes.iter().filter(|(_, fetch)| fetch.failures > 0);
        let passing: Vec<_> =
            renewed.chain(failed.flat_map(|(server, _)| worth_keeping(&found, server, wanted))).collect();
        self.store.renew_keys(own_words, others_words, &passing, &outcomes).await?;
        Ok(found)
    }

    /// When each server may be asked again, where that is news.
    fn outcomes<'a>(
        &self,
        lacking: &Wanted<'a>,
        rest: &Wanted<'_>,
        asked: &Asked,
        fetches: &BTreeMap<String, KeyFetch>,
    ) -> Vec<(&'a str, KeyFetch)> {
        let mut outcomes = Vec::new();
        for server in servers(lacking) {
            let before = fetches.get(server).copied().unwrap_or_default();
            let after = if rest.keys().any(|(lacks, _)| *lacks == server) {
                after_failure(before, asked.has_answered(server), self.platform.clock.now_ms())
            } else {
                KeyFetch::default()
            };
            if after != before {
                outcomes.push((server, after));
            }
        }
        outcomes
    }

    /// Remembers in this isolate alone what came of asking for the sake of a request; those that did not fail are left for the
    /// database.
    fn note_failures<'a>(&self, outcomes: Vec<(&'a str, KeyFetch)>) -> Vec<(&'a str, KeyFetch)> {
        let mut failed = self.cache.failed.borrow_mut();
        let (failures, successes): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(_, fetch)| fetch.failures > 0);
        for (server, _) in &successes {
            failed.remove(*server);
        }
        for (server, fetch) in failures {
            if failed.len() >= MAX_FAILED {
                failed.clear();
            }
            failed.insert(server.to_owned(), fetch);
        }
        successes
    }

    /// Adds to `found` what was answered about keys that are wanted, and of others some current and some old ones, and remembers
    /// it until they have verified something.
    fn take_over(
        &self,
        wanted: &Wanted<'_>,
        asked: &Asked,
        held: &BTreeMap<(String, String), (KnownKey, bool)>,
        found: &mut Found,
    ) {
        for keys in &asked.from_servers {
            let mut told = self.cache.told.borrow_mut();
            if told.len() >= MAX_TOLD {
                told.clear();
            }
            told.insert(keys.server_name.to_string(), keys.clone());
        }
        let told = [(&asked.from_servers, true), (&asked.from_notaries, false)];
        let told =
            told.into_iter().flat_map(|(responses, own_word)| responses.iter().map(move |keys| (keys, own_word)));
        for (keys, own_word) in told {
            // The response may say something new of other keys too.
            self.forget(&keys.server_name);
            let mut unasked = [0; 2];
            for (key_id, key) in &keys.keys {
                let at = (keys.server_name.to_string(), key_id.to_string());
                let is_wanted = wanted.contains_key(&(at.0.as_str(), at.1.as_str()));
                // Whoever asks for keys that a server does not have must not keep its real ones from being known, be they
                // current or old: the server is not asked again for a while.
                let is_taken = is_wanted || held.contains_key(&at) || {
                    let of_its_kind = &mut unasked[usize::from(key.expired_ts.is_some())];
                    *of_its_kind += 1;
                    *of_its_kind <= MAX_UNASKED
                };
                let known = found.get(&at).or(held.get(&at).map(|(key, _)| key));
                let is_news = known.is_none_or(|known| known.gives_way_to(key, own_word));
                if is_taken && is_news {
                    // As the database will keep it.
                    let valid_until_ts = key.valid_until();
                    found.insert(at, KnownKey { valid_until_ts, ..key.clone() });
                }
            }
        }
        for (at, key) in found.iter().filter(|(at, _)| asked.has_told_of(&at.0)) {
            // What it holds the database learns anew at once, the rest when it has verified something.
            self.remember(at, key.clone(), held.contains_key(at));
        }
    }

    /// Asks servers and notaries for what is lacking.
    async fn ask(&self, lacking: &Wanted<'_>, now: i64) -> Asked {
        let nothing = Found::new();
        let mut asked = Asked::default();
        let many = servers(lacking).len() >= MANY_SERVERS;
        if many {
            self.ask_notaries(lacking, &mut asked).await;
        }
        let rest = asked.lacking(lacking, &nothing);
        self.ask_servers(&servers(&rest), now + BUDGET_MS, &mut asked).await;
        let rest = asked.lacking(lacking, &nothing);
        if !many && !rest.is_empty() {
            self.ask_notaries(&rest, &mut asked).await;
        }
        asked
    }

    /// Asks each of `names` for its own keys, a few at a time, and none after the deadline.
    async fn ask_servers(&self, names: &[&str], deadline: i64, asked: &mut Asked) {
        let answers =
            stream::iter(names.iter().filter_map(|name| ServerName::parse(name).ok())).map(|name| async move {
                if self.platform.clock.now_ms() >= deadline {
                    return None;
                }
                Some(self.ask_server(&name).await.map_err(|why| (name, why)))
            });
        let mut answers = answers.buffer_unordered(MAX_CONNECTIONS);
        let mut left_out = 0;
        while let Some(answer) = answers.next().await {
            match answer {
                Some(Ok(keys)) => asked.from_servers.push(keys),
                Some(Err((name, why))) => {
                    self.platform
                        .log
                        .write(LogRecord::warning("no keys from a server").destination(&name).because(&why));
                }
                None => left_out += 1,
            }
        }
        if left_out > 0 {
            let record = LogRecord::warning("servers are not asked for their keys, as others took too long");
            self.platform.log.write(record.count(left_out));
        }
    }

    async fn ask_server(&self, name: &ServerName) -> Result<ServerKeys, Why> {
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
            let mut known = self.cache.notaries.borrow().get(&notary.name).cloned().unwrap_or_default();
            if self.platform.clock.now_ms() < known.retry_at {
                continue;
            }
            if let Err(why) = self.ask_notary(notary, &mut known, &rest, asked).await {
                let record = LogRecord::warning("no keys from a notary").destination(&notary.name);
                self.platform.log.write(record.because(&why).retry_in(NOTARY_BACKOFF_MS));
                known.retry_at = self.platform.clock.now_ms() + NOTARY_BACKOFF_MS;
            }
            self.cache.notaries.borrow_mut().insert(notary.name.clone(), known);
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

    /// Our own keys need no looking for.
    fn add_own(&self, ring: &mut KeyRing, key_id: &str) {
        let (name, fetched_ts) = (self.config.server_name.as_str(), self.platform.clock.now_ms());
        let current = &self.config.signing_key;
        if key_id == current.key_id() {
            let key = current.verify_key();
            ring.insert(name, key_id, KnownKey { key, valid_until_ts: i64::MAX, expired_ts: None, fetched_ts });
        }
        for (_, old) in self.config.old_signing_keys.iter().filter(|(old_id, _)| **old_id == *key_id) {
            let (key, expired_ts) = (old.key.clone(), Some(old.expired_ts));
            ring.insert(name, key_id, KnownKey { key, valid_until_ts: old.expired_ts, expired_ts, fetched_ts });
        }
    }

    /// What this isolate remembers of what is wanted.
    fn recall(&self, wanted: &Wanted<'_>) -> Found {
        let remembered = self.cache.remembered.borrow();
        let known = wanted.keys().filter_map(|(server, key_id)| {
            let known = remembered.servers.get(*server)?.get(*key_id)?;
            Some((((*server).to_owned(), (*key_id).to_owned()), known.key.clone()))
        });
        known.collect()
    }

    fn remember(&self, (server, key_id): &(String, String), key: KnownKey, is_stored: bool) {
        let mut remembered = self.cache.remembered.borrow_mut();
        if remembered.count >= MAX_REMEMBERED {
            *remembered = Remembered::default();
        }
        let keys = remembered.servers.entry(server.clone()).or_default();
        if keys.insert(key_id.clone(), RememberedKey { key, is_stored }).is_none() {
            remembered.count += 1;
        }
    }

    fn forget(&self, server: &str) {
        let mut remembered = self.cache.remembered.borrow_mut();
        let count = remembered.servers.remove(server).map_or(0, |keys| keys.len());
        remembered.count -= count;
    }

    /// Waits while another request of this isolate fetches keys of the same servers; says whether there was one. Only
    /// plain values are shared with it, as requests must not wait for each other's promises.
    async fn wait_for_others(&self, lacking: &Wanted<'_>) -> bool {
        let begun = self.platform.clock.now_ms();
        let mut waited = false;
        loop {
            let now = self.platform.clock.now_ms();
            let busy = servers(lacking).into_iter().any(|server| {
                // One that began long ago was cut off.
                self.cache.under_way.borrow().get(server).is_some_and(|since| now - since < 2 * BUDGET_MS)
            });
            if !busy || now - begun >= MAX_WAIT_MS {
                return waited;
            }
            waited = true;
            self.platform.clock.sleep(WAIT_STEP_MS).await;
        }
    }

    fn mark_under_way(&self, lacking: &Wanted<'_>) -> UnderWay<'_> {
        let now = self.platform.clock.now_ms();
        let servers: Vec<_> = servers(lacking).into_iter().map(str::to_owned).collect();
        self.cache.under_way.borrow_mut().extend(servers.iter().map(|server| (server.clone(), now)));
        UnderWay { cache: &self.cache, servers }
    }
}

/// Ends the marks when the fetch ends, however it does.
struct UnderWay<'a> {
    cache: &'a KeyCache,
    servers: Vec<String>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut under_way = self.cache.under_way.borrow_mut();
        for server in &self.servers {
            under_way.remove(server);
        }
    }
}

/// What the network answered.
#[derive(Default)]
struct Asked {
    from_servers: Vec<ServerKeys>,
    from_notaries: Vec<ServerKeys>,
}

impl Asked {
    /// What is lacking still, of `wanted`, beside what was known before.
    fn lacking<'a>(&self, wanted: &Wanted<'a>, before: &Found) -> Wanted<'a> {
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

    fn has_told_of(&self, server: &str) -> bool {
        self.has_answered(server) || self.from_notaries.iter().any(|keys| &*keys.server_name == server)
    }

    fn has_answered(&self, server: &str) -> bool {
        self.from_servers.iter().any(|keys| &*keys.server_name == server)
    }
}

/// Of what was found of a server's keys: the current ones, and those that were wanted.
fn worth_keeping<'a>(
    found: &'a Found,
    server: &'a str,
    wanted: &'a Wanted<'_>,
) -> impl Iterator<Item = (&'a str, &'a str, KnownKey)> {
    let is_worth = |key_id: &str, key: &KnownKey| key.expired_ts.is_none() || wanted.contains_key(&(server, key_id));
    let of_it = found.iter().filter(move |((name, key_id), key)| *name == server && is_worth(key_id, key));
    of_it.map(|((name, key_id), key)| (name.as_str(), key_id.as_str(), key.clone()))
}

/// What the database holds, by server and key ID, and whether it is kept there.
fn held(stored: Vec<StoredKey>) -> BTreeMap<(String, String), (KnownKey, bool)> {
    let mut held = BTreeMap::new();
    for StoredKey { server, key_id, key, is_kept } in stored {
        let at = (server, key_id);
        // One may be among the passing ones still that is kept by now.
        if is_kept || !held.contains_key(&at) {
            held.insert(at, (key, is_kept));
        }
    }
    held
}

/// What of `wanted` is not found, or not valid for long enough.
fn lacking<'a>(wanted: &Wanted<'a>, found: &Found) -> Wanted<'a> {
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

fn servers<'a>(wanted: &Wanted<'a>) -> Vec<&'a str> {
    let mut servers: Vec<_> = wanted.keys().map(|(server, _)| *server).collect();
    servers.dedup();
    servers
}

/// Whether a server might have such a key.
fn is_plausible(key_id: &str) -> bool {
    key_id.len() <= 255 && key_id.starts_with("ed25519:")
}

fn after_failure(before: KeyFetch, answered: bool, now: i64) -> KeyFetch {
    let doublings = before.failures.clamp(0, 16);
    let limit = if answered { MAX_BACKOFF_ANSWERED_MS } else { MAX_BACKOFF_SILENT_MS };
    KeyFetch {
        failures: before.failures.saturating_add(1),
        retry_at: now.saturating_add((FIRST_BACKOFF_MS << doublings).min(limit)),
    }
}
