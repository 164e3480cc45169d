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

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use super::{
    endpoints::KeyQuery,
    key_cache::KeyCache,
    key_questions::{Asked, BUDGET_MS, Found, KeyQuestions, Wanted, Whom, lacking, servers},
    requests::FederationClient,
};
use crate::{
    config::Config,
    log::{LogRecord, Why},
    matrix::{
        identifiers::ServerName,
        server_keys::{KeyRing, KnownKey, MAX_VALIDITY_MS, ServerKeys},
    },
    platform::{DatabaseError, Platform},
    store::{
        Store,
        known_keys::{KeyFetch, StoredKey},
    },
};

/// How long a server is left alone after the first fetch that did not bring what was needed, doubled by each further one
/// up to a limit: one for servers that answered, where a new key may appear, and one for those that did not.
const FIRST_BACKOFF_MS: i64 = 60_000;
const MAX_BACKOFF_ANSWERED_MS: i64 = 10 * 60_000;
const MAX_BACKOFF_SILENT_MS: i64 = 60 * 60_000;
/// A server that was asked in vain so often in a row is out of our reach, by the pauses between for half an hour and more.
const ASKED_IN_VAIN: i64 = 6;

/// How many current keys of one response are remembered that nobody has asked for, and how many old ones.
const MAX_UNASKED: usize = 8;

/// What came of asking a server in vain.
#[derive(Clone, Copy, Default)]
struct Attempts {
    /// What one more failure is added to.
    counted: KeyFetch,
    /// It is not asked before this time, in milliseconds since the epoch.
    not_before: i64,
}

/// For how long servers may be asked for the keys of events that are not held: of one request, or of all of an answer that comes in
/// batches. Whom there was no time to ask is not known to be silent.
pub struct AskingTime(Cell<i64>);

impl Default for AskingTime {
    /// As long as one round takes.
    fn default() -> Self {
        Self::of(BUDGET_MS)
    }
}

impl AskingTime {
    /// So many milliseconds.
    pub fn of(ms: i64) -> Self {
        Self(Cell::new(ms))
    }

    /// How many of them are left.
    pub fn left(&self) -> i64 {
        self.0.get()
    }
}

/// Finds keys.
pub struct KeyFetcher {
    platform: Platform,
    store: Store,
    client: Rc<FederationClient>,
    config: Rc<Config>,
    cache: Rc<KeyCache>,
}

/// What keys are wanted for.
#[derive(Clone, Copy)]
enum Purpose<'a> {
    /// A request, which anybody may send: whether others may be asked for the keys of a server that nobody has heard of.
    Request(&'a dyn Fn() -> bool),
    /// What a server has just answered us: it is there, however long it was not.
    Answer,
    /// Events, which somebody sent whose request was verified, or whom we asked.
    Events(&'a AskingTime),
}

impl KeyFetcher {
    /// A fetcher that asks through `client`, and the notaries of `config`.
    pub fn new(platform: Platform, client: Rc<FederationClient>, config: Rc<Config>, cache: Rc<KeyCache>) -> Self {
        Self { store: Store::new(platform.database.clone()), platform, client, config, cache }
    }

    /// The keys with which a request of `origin` may be signed now; to be given to
    /// [`crate::matrix::x_matrix::verify`]. Where they are not held, others are asked for them; of a server of
    /// which no key is held, if they `may_be_asked`.
    ///
    /// # Errors
    /// Where the database fails. A key that cannot be found is just not in the ring.
    pub async fn for_request(
        &self,
        origin: &ServerName,
        key_ids: &[&str],
        may_be_asked: &dyn Fn() -> bool,
    ) -> Result<KeyRing, DatabaseError> {
        self.find(&self.for_now(origin, key_ids), Purpose::Request(may_be_asked)).await
    }

    /// The keys with which `signer` may have signed now what it has just answered us. It is there: where they are not held, it is asked
    /// for them, whatever came of asking it before.
    ///
    /// # Errors
    /// As [`KeyFetcher::for_request`].
    pub async fn for_answer(&self, signer: &ServerName, key_ids: &[&str]) -> Result<KeyRing, DatabaseError> {
        self.find(&self.for_now(signer, key_ids), Purpose::Answer).await
    }

    fn for_now(&self, server: &ServerName, key_ids: &[&str]) -> Vec<KeyQuery> {
        let minimum_valid_until_ts = self.platform.clock.now_ms();
        let query =
            |key_id: &&str| KeyQuery { server: server.clone(), key_id: (*key_id).to_owned(), minimum_valid_until_ts };
        key_ids.iter().map(query).collect()
    }

    /// The keys `needed`, as far as they can be found in the time that there is to ask for them. One that is known, but not to
    /// be valid for long enough, is in the ring too: whoever verifies with it checks that. Where a room version ignores
    /// validity, `minimum_valid_until_ts` is 0.
    ///
    /// # Errors
    /// Where the database fails. A key that cannot be found is just not in the ring.
    pub async fn fetch(&self, needed: &[KeyQuery], time: &AskingTime) -> Result<KeyRing, DatabaseError> {
        self.find(needed, Purpose::Events(time)).await
    }

    /// Whether another server is asked for such a key at all.
    pub fn is_asked_for(&self, query: &KeyQuery) -> bool {
        let last = self.platform.clock.now_ms().saturating_add(MAX_VALIDITY_MS);
        query.server != self.config.server_name && is_plausible(&query.key_id) && query.minimum_valid_until_ts <= last
    }

    /// Those of these servers whose keys may come yet: they were not asked in vain for long.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn may_come(&self, mut servers: BTreeSet<String>) -> Result<BTreeSet<String>, DatabaseError> {
        if servers.is_empty() {
            return Ok(servers);
        }
        let stored = self.store.keys(&servers.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        for (server, _) in stored.fetches.iter().filter(|(_, fetch)| fetch.failures >= ASKED_IN_VAIN) {
            servers.remove(server);
        }
        Ok(servers)
    }

    /// Tells the database of those of these keys (server and key ID) that it does not know: they have verified what they were
    /// fetched for.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn have_verified(&self, keys: &[(&str, &str)]) -> Result<(), DatabaseError> {
        let (unstored, told) = (self.cache.unstored(keys), self.cache.take_told(keys));
        self.store.put_passing_keys(&unstored, &told).await?;
        self.cache.are_stored(unstored);
        Ok(())
    }

    async fn find(&self, needed: &[KeyQuery], purpose: Purpose<'_>) -> Result<KeyRing, DatabaseError> {
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
        let (mut found, mut left_out) = self.look(&wanted, purpose, Whom::All).await?;
        // In rounds, so that what has come of one is remembered when the next is cut off.
        while !left_out.is_empty()
            && let Purpose::Events(time) = purpose
            && time.left() > 0
        {
            let of_them = wanted.iter().filter(|((server, _), _)| left_out.contains(*server));
            let of_them = of_them.map(|(at, minimum)| (*at, *minimum)).collect();
            let (more, rest) = self.look(&of_them, purpose, Whom::Itself).await?;
            found.extend(more);
            left_out = rest;
        }
        for ((server, key_id), key) in found {
            ring.insert(&server, &key_id, key);
        }
        Ok(ring)
    }

    /// What `server` says of its own keys now; `None` where it says nothing that can be used. Whether it may be asked is for
    /// the caller to say.
    pub async fn ask_anew(&self, server: &ServerName) -> Option<ServerKeys> {
        let _under_way =
            self.cache.mark_under_way(&Wanted::from([((server.as_str(), ""), 0)]), self.platform.clock.now_ms());
        let answer = self.questions().ask_server(server).await;
        let told = |why: &Why| LogRecord::warning("no keys from a server").destination(server).because(why);
        answer.inspect_err(|why| self.platform.log.write(told(why))).ok()
    }

    /// Waits, where another request of this isolate is asking one of `servers` for its keys; says whether there was one.
    pub async fn wait_for_answers(&self, servers: &[&ServerName]) -> bool {
        self.cache
            .wait_for_others(&*self.platform.clock, &servers.iter().map(|server| ((server.as_str(), ""), 0)).collect())
            .await
    }

    /// Looks everywhere for what is wanted; says besides which servers there was no time to ask.
    async fn look(
        &self,
        wanted: &Wanted<'_>,
        purpose: Purpose<'_>,
        whom: Whom,
    ) -> Result<(Found, BTreeSet<String>), DatabaseError> {
        let mut found = self.cache.recall(wanted);
        let mut lacking = lacking(wanted, &found);
        if !lacking.is_empty() && self.cache.wait_for_others(&*self.platform.clock, &lacking).await {
            found = self.cache.recall(wanted);
            lacking = self::lacking(wanted, &found);
        }
        if lacking.is_empty() {
            return Ok((found, BTreeSet::new()));
        }
        let _under_way = self.cache.mark_under_way(&lacking, self.platform.clock.now_ms());

        // In the database.
        let stored = self.store.keys(&servers(&lacking)).await?;
        let held = held(stored.keys);
        for (at, (key, _)) in held.iter().filter(|(at, _)| wanted.contains_key(&(at.0.as_str(), at.1.as_str()))) {
            self.cache.remember(at, key.clone(), true);
            found.insert(at.clone(), key.clone());
        }
        let attempts = self.attempts(&servers(&lacking), stored.fetches, purpose);
        let now = self.platform.clock.now_ms();
        let mut lacking = self::lacking(wanted, &found);
        lacking.retain(|(server, _), minimum| {
            // No response makes a key valid for longer than 7 days.
            *minimum <= now.saturating_add(MAX_VALIDITY_MS)
                && attempts.get(*server).is_none_or(|attempts| attempts.not_before <= now)
        });
        let is_unknown = held.is_empty();
        if lacking.is_empty() || matches!(purpose, Purpose::Request(may_be_asked) if is_unknown && !may_be_asked()) {
            return Ok((found, BTreeSet::new()));
        }

        // On the network.
        // Those first that have not failed. How much depends on each does not count: whoever sends events can have much depend on many.
        let rank = |server: &str| attempts.contains_key(server);
        let within = if let Purpose::Events(time) = purpose { time.left().min(BUDGET_MS) } else { BUDGET_MS };
        let asked = self.questions().ask(&lacking, whom, rank, now.saturating_add(within)).await;
        if let Purpose::Events(time) = purpose {
            time.0.set(time.left() - (self.platform.clock.now_ms() - now));
        }
        let rest = asked.lacking(&lacking, &found);
        let outcomes = self.outcomes(&lacking, &rest, &asked, &attempts);
        self.take_over(wanted, &asked, &held, &mut found);
        let told_of = asked.told_of();
        let tells_of_kept =
            held.iter().any(|((server, _), (_, is_kept))| *is_kept && told_of.contains(server.as_str()));
        let (own_words, others_words): (&[ServerKeys], &[ServerKeys]) =
            if tells_of_kept { (&asked.from_servers, &asked.from_notaries) } else { (&[], &[]) };
        let renewed = held.iter().filter_map(|(at, (before, is_kept))| {
            let after = found.get(at).filter(|after| !is_kept && *after != before)?;
            Some((at.0.as_str(), at.1.as_str(), after.clone()))
        });
        let outcomes = match purpose {
            Purpose::Events(_) => outcomes,
            Purpose::Request(_) | Purpose::Answer => self.cache.note_failures(outcomes),
        };
        // Other isolates will not ask them either.
        let failed = outcomes.iter().filter(|(_, fetch)| fetch.failures > 0);
        let passing: Vec<_> =
            renewed.chain(failed.flat_map(|(server, _)| worth_keeping(&found, server, wanted))).collect();
        self.store.renew_keys(own_words, others_words, &passing, &outcomes).await?;
        Ok((found, asked.left_out))
    }

    /// What came of asking each of these servers in vain before, as far as that is remembered and counts for this purpose.
    fn attempts(
        &self,
        servers: &[&str],
        stored: Vec<(String, KeyFetch)>,
        purpose: Purpose<'_>,
    ) -> BTreeMap<String, Attempts> {
        let mut attempts: BTreeMap<String, Attempts> = BTreeMap::new();
        for (server, fetch) in stored.into_iter().filter(|(_, fetch)| fetch.failures > 0) {
            let of_it = match purpose {
                Purpose::Events(_) => Attempts { counted: fetch, not_before: fetch.retry_at },
                Purpose::Request(_) => Attempts { counted: KeyFetch::default(), not_before: soon_after(fetch) },
                Purpose::Answer => Attempts::default(),
            };
            attempts.insert(server, of_it);
        }
        for server in servers {
            let Some(failed) = self.cache.failed(server) else { continue };
            let known = attempts.entry((*server).to_owned()).or_default();
            if known.counted.retry_at < failed.retry_at {
                known.counted = failed;
            }
            if !matches!(purpose, Purpose::Answer) {
                known.not_before = known.not_before.max(failed.retry_at);
            }
        }
        attempts
    }

    /// When each server may be asked again, where that is news. One for which there was no time has not failed, and may be at once.
    fn outcomes<'a>(
        &self,
        lacking: &Wanted<'a>,
        rest: &Wanted<'_>,
        asked: &Asked,
        attempts: &BTreeMap<String, Attempts>,
    ) -> Vec<(&'a str, KeyFetch)> {
        let mut outcomes = Vec::new();
        let answered = asked.answered();
        for (server, is_complete) in completed(lacking, rest) {
            let before = attempts.get(server);
            if is_complete {
                outcomes.extend(before.map(|_| (server, KeyFetch::default())));
            } else if asked.was_asked(server) {
                let counted = before.map(|before| before.counted).unwrap_or_default();
                let now = self.platform.clock.now_ms();
                outcomes.push((server, after_failure(counted, answered.contains(server), now)));
            }
        }
        outcomes
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
        self.cache.hear(&asked.from_servers);
        let told = [(&asked.from_servers, true), (&asked.from_notaries, false)];
        let told =
            told.into_iter().flat_map(|(responses, own_word)| responses.iter().map(move |keys| (keys, own_word)));
        for (keys, own_word) in told {
            // The response may say something new of other keys too.
            self.cache.forget(&keys.server_name);
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
        let told_of = asked.told_of();
        for (at, key) in found.iter().filter(|(at, _)| told_of.contains(at.0.as_str())) {
            // What it holds the database learns anew at once, the rest when it has verified something.
            self.cache.remember(at, key.clone(), held.contains_key(at));
        }
    }

    fn questions(&self) -> KeyQuestions<'_> {
        let notaries = &self.cache.notaries;
        KeyQuestions { platform: &self.platform, client: &self.client, config: &self.config, notaries }
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
}

/// The servers of which something was lacking, and whether nothing of them is among the `rest` that is lacking still.
fn completed<'a>(lacking: &Wanted<'a>, rest: &Wanted<'_>) -> Vec<(&'a str, bool)> {
    let lack: BTreeSet<&str> = rest.keys().map(|(server, _)| *server).collect();
    servers(lacking).into_iter().map(|server| (server, !lack.contains(server))).collect()
}

/// Of what was found of a server's keys: the current ones, and those that were wanted.
fn worth_keeping<'a>(
    found: &'a Found,
    server: &'a str,
    wanted: &'a Wanted<'_>,
) -> impl Iterator<Item = (&'a str, &'a str, KnownKey)> {
    let is_worth = |key_id: &str, key: &KnownKey| key.expired_ts.is_none() || wanted.contains_key(&(server, key_id));
    let of_it = found.range((server.to_owned(), String::new())..).take_while(move |((name, _), _)| name == server);
    let of_it = of_it.filter(move |((_, key_id), key)| is_worth(key_id, key));
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

/// Whether a server might have such a key.
fn is_plausible(key_id: &str) -> bool {
    key_id.len() <= 255 && key_id.starts_with("ed25519:")
}

fn after_failure(before: KeyFetch, answered: bool, now: i64) -> KeyFetch {
    let limit = if answered { MAX_BACKOFF_ANSWERED_MS } else { MAX_BACKOFF_SILENT_MS };
    KeyFetch {
        failures: before.failures.saturating_add(1),
        retry_at: now.saturating_add(backoff(before.failures).min(limit)),
    }
}

/// How long a server is left alone that had failed so many times before, without a limit.
fn backoff(failures: i64) -> i64 {
    FIRST_BACKOFF_MS << failures.clamp(0, 16)
}

/// When a server that did not answer while events were checked may be asked for the sake of a request: after the shortest pause,
/// however often it has failed. Somebody has sent that request, and what is asked for requests has limits of its own.
fn soon_after(fetch: KeyFetch) -> i64 {
    let waits = backoff(fetch.failures.saturating_sub(1)).min(MAX_BACKOFF_SILENT_MS);
    fetch.retry_at.saturating_sub(waits).saturating_add(FIRST_BACKOFF_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each event of an answer may be of a server of its own. Were each looked for among all others, this would be billions of looks.
    #[test]
    fn what_became_of_very_many_servers_is_seen_at_once() {
        let names: Vec<String> = (0..100_000).map(|number| format!("{number:0>6}.test")).collect();
        let lacking: Wanted<'_> = names.iter().map(|name| ((name.as_str(), "ed25519:k"), 0)).collect();
        let rest: Wanted<'_> = names.iter().skip(1).map(|name| ((name.as_str(), "ed25519:k"), 0)).collect();
        let completed = completed(&lacking, &rest);
        assert_eq!(completed.iter().filter(|(_, is_complete)| *is_complete).count(), 1);
        assert_eq!((completed.len(), completed.first()), (names.len(), Some(&("000000.test", true))));
    }
}
