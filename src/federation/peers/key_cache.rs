//! What one isolate knows of keys, and of who is asked for them (Server-Server API, "Retrieving server keys"): plain values,
//! which all its events share.

use std::{cell::RefCell, collections::BTreeMap};

use super::key_questions::{BUDGET_MS, Found, Notaries, Wanted, servers};
use crate::{
    matrix::server_keys::{KnownKey, ServerKeys},
    platform::Clock,
    store::known_keys::KeyFetch,
};

/// How long to wait for another request of this isolate that is fetching the same server's keys.
const MAX_WAIT_MS: i64 = 3_000;
const WAIT_STEP_MS: u32 = 50;
/// How many keys this isolate remembers.
const MAX_REMEMBERED: usize = 8192;
/// How many responses this isolate remembers until one of their keys has verified something.
const MAX_TOLD: usize = 64;
/// How many servers this isolate remembers to have asked in vain.
const MAX_FAILED: usize = 4096;

/// What one isolate knows of keys, for the fetchers of all its events: plain values only.
#[derive(Default)]
pub struct KeyCache {
    remembered: RefCell<Remembered>,
    /// The servers whose keys some request of this isolate is fetching, and since when.
    under_way: RefCell<BTreeMap<String, i64>>,
    pub(super) notaries: Notaries,
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

impl KeyCache {
    /// What this isolate remembers of what is wanted.
    pub(super) fn recall(&self, wanted: &Wanted<'_>) -> Found {
        let remembered = self.remembered.borrow();
        let known = wanted.keys().filter_map(|(server, key_id)| {
            let known = remembered.servers.get(*server)?.get(*key_id)?;
            Some((((*server).to_owned(), (*key_id).to_owned()), known.key.clone()))
        });
        known.collect()
    }

    /// Remembers a key, and whether the database knows it as it is.
    pub(super) fn remember(&self, (server, key_id): &(String, String), key: KnownKey, is_stored: bool) {
        let mut remembered = self.remembered.borrow_mut();
        if remembered.count >= MAX_REMEMBERED {
            *remembered = Remembered::default();
        }
        let keys = remembered.servers.entry(server.clone()).or_default();
        if keys.insert(key_id.clone(), RememberedKey { key, is_stored }).is_none() {
            remembered.count += 1;
        }
    }

    /// Forgets all keys of a server.
    pub(super) fn forget(&self, server: &str) {
        let mut remembered = self.remembered.borrow_mut();
        let count = remembered.servers.remove(server).map_or(0, |keys| keys.len());
        remembered.count -= count;
    }

    /// Those of these keys (server and key ID) that the database does not know as they are.
    pub(super) fn unstored<'k>(&self, keys: &[(&'k str, &'k str)]) -> Vec<(&'k str, &'k str, KnownKey)> {
        let remembered = self.remembered.borrow();
        let unstored = keys.iter().filter_map(|(server, key_id)| {
            let known = remembered.servers.get(*server)?.get(*key_id)?;
            (!known.is_stored).then(|| (*server, *key_id, known.key.clone()))
        });
        unstored.collect()
    }

    /// Remembers that the database knows these keys now.
    pub(super) fn are_stored(&self, keys: Vec<(&str, &str, KnownKey)>) {
        let mut remembered = self.remembered.borrow_mut();
        for (server, key_id, key) in keys {
            let known = remembered.servers.get_mut(server).and_then(|keys| keys.get_mut(key_id));
            if let Some(known) = known.filter(|known| known.key == key) {
                known.is_stored = true;
            }
        }
    }

    /// Remembers what servers have said of themselves, until one of their keys has verified something.
    pub(super) fn hear(&self, responses: &[ServerKeys]) {
        for keys in responses {
            let mut told = self.told.borrow_mut();
            if told.len() >= MAX_TOLD {
                told.clear();
            }
            told.insert(keys.server_name.to_string(), keys.clone());
        }
    }

    /// What the servers of these keys have said of themselves, which is forgotten.
    pub(super) fn take_told(&self, keys: &[(&str, &str)]) -> Vec<ServerKeys> {
        let mut told = self.told.borrow_mut();
        keys.iter().filter_map(|(server, _)| told.remove(*server)).collect()
    }

    /// What came of asking this server in vain for the sake of a request.
    pub(super) fn failed(&self, server: &str) -> Option<KeyFetch> {
        self.failed.borrow().get(server).copied()
    }

    /// Waits while another request of this isolate fetches keys of the same servers; says whether there was one. Only
    /// plain values are shared with it, as requests must not wait for each other's promises.
    pub(super) async fn wait_for_others(&self, clock: &dyn Clock, lacking: &Wanted<'_>) -> bool {
        let begun = clock.now_ms();
        let mut waited = false;
        loop {
            let now = clock.now_ms();
            let busy = servers(lacking).into_iter().any(|server| {
                // One that began long ago was cut off.
                self.under_way.borrow().get(server).is_some_and(|since| now - since < 2 * BUDGET_MS)
            });
            if !busy || now - begun >= MAX_WAIT_MS {
                return waited;
            }
            waited = true;
            clock.sleep(WAIT_STEP_MS).await;
        }
    }

    /// Says that somebody fetches keys of these servers, until what it returns is dropped.
    pub(super) fn mark_under_way(&self, lacking: &Wanted<'_>, now: i64) -> UnderWay<'_> {
        let servers: Vec<_> = servers(lacking).into_iter().map(str::to_owned).collect();
        self.under_way.borrow_mut().extend(servers.iter().map(|server| (server.clone(), now)));
        UnderWay { cache: self, servers }
    }

    /// Remembers in this isolate alone what came of asking for the sake of a request; those that did not fail are left for the
    /// database.
    pub(super) fn note_failures<'a>(&self, outcomes: Vec<(&'a str, KeyFetch)>) -> Vec<(&'a str, KeyFetch)> {
        let mut failed = self.failed.borrow_mut();
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
}

/// Ends the marks when the fetch ends, however it does.
pub(super) struct UnderWay<'a> {
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
