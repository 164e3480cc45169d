//! Servers and notaries that say what a case has them say.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use futures_executor::block_on;
use serde_json::{Value, json};
use verge::{
    config::Config,
    federation::peers::{
        endpoints::KeyQuery,
        key_cache::KeyCache,
        key_fetcher::{AskingTime, KeyFetcher},
        requests::FederationClient,
    },
    matrix::{identifiers::ServerName, room_version::RoomVersion, server_keys::KnownKey},
};

use crate::{
    cases::{DAY, Keys, Lie, WEEK},
    common::{
        internet::{Internet, RESOLVER, page},
        sqlite::Sqlite,
    },
};

pub(crate) struct World {
    pub(crate) internet: Rc<Internet>,
    pub(crate) database: Sqlite,
    pub(crate) config: Rc<Config>,
    pub(crate) started: i64,
    /// What each notary answers.
    pub(crate) entries: RefCell<BTreeMap<String, Rc<RefCell<Vec<Value>>>>>,
}

impl World {
    pub(crate) fn new(notaries: &[(&str, Option<u8>)]) -> Self {
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

    pub(crate) fn fetcher(&self) -> KeyFetcher {
        self.fetcher_with(Rc::default())
    }

    pub(crate) fn fetcher_with(&self, cache: Rc<KeyCache>) -> KeyFetcher {
        let platform = self.internet.platform(&self.database);
        let client = Rc::new(FederationClient::new(platform.clone(), self.config.clone(), Rc::default()));
        KeyFetcher::new(platform, client, self.config.clone(), cache)
    }

    /// How many rows a table has.
    pub(crate) fn count(&self, table: &str) -> u64 {
        self.database.rows(&format!("SELECT count(*) FROM {table}"))[0][0].parse().unwrap()
    }

    pub(crate) fn publish(&self, server: &str, lie: Lie, keys: Keys) {
        let body = self.response(server, lie, keys, None).to_string();
        self.internet.serve(&own_url(server), move |_| Ok(page(200, &[], &body)));
    }

    pub(crate) fn notarise(&self, notary: &str, lie: Lie, server: &str, keys: Keys) {
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
    pub(crate) fn event_key(
        &self,
        fetcher: &KeyFetcher,
        version: &str,
        server: &str,
        key_id: &str,
        sent: i64,
    ) -> Option<u8> {
        let version = RoomVersion::get(version).unwrap();
        let sent = self.started + sent;
        // Versions up to 4 need a key, whatever its validity.
        let minimum_valid_until_ts = if version.id == "4" { 0 } else { sent };
        let query =
            KeyQuery { server: ServerName::parse(server).unwrap(), key_id: key_id.to_owned(), minimum_valid_until_ts };
        let ring = block_on(fetcher.fetch(&[query], &AskingTime::default())).unwrap();
        let known = ring.get(server, key_id)?;
        Self::seed(fetcher, server, key_id, known.is_valid_for_event(sent, version).then_some(known)?)
    }

    pub(crate) fn request_key(&self, fetcher: &KeyFetcher, server: &str, key_id: &str) -> Option<u8> {
        let ring = block_on(fetcher.for_request(&ServerName::parse(server).unwrap(), &[key_id], &|| true)).unwrap();
        let known = ring.get(server, key_id)?;
        Self::seed(fetcher, server, key_id, known.is_valid_now(self.internet.now.get()).then_some(known)?)
    }

    /// The seed of a key that has verified something.
    fn seed(fetcher: &KeyFetcher, server: &str, key_id: &str, known: &KnownKey) -> Option<u8> {
        block_on(fetcher.have_verified(&[(server, key_id)])).unwrap();
        Some(seed_of(&known.key.to_base64()))
    }
}

pub(crate) fn own_url(server: &str) -> String {
    format!("https://{server}/_matrix/key/v2/server")
}

pub(crate) fn query_url(notary: &str) -> String {
    format!("https://{notary}/_matrix/key/v2/query")
}

pub(crate) fn public(seed: u8) -> String {
    STANDARD_NO_PAD.encode(SigningKey::from_bytes(&[seed; 32]).verifying_key().as_bytes())
}

pub(crate) fn seed_of(key: &str) -> u8 {
    (0..=u8::MAX).find(|seed| public(*seed) == key).unwrap()
}

/// `serde_json` sorts the members, so that for our plain responses its text is canonical JSON.
pub(crate) fn signature(seed: u8, text: &str) -> String {
    STANDARD_NO_PAD.encode(SigningKey::from_bytes(&[seed; 32]).sign(text.as_bytes()).to_bytes())
}
