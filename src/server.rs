//! One homeserver as a value: its configuration, its platform, and the routing of requests to the two APIs.

use std::rc::Rc;

use futures_util::future;

use crate::{
    client,
    config::Config,
    federation::{
        inbound,
        peers::{
            discovery::DiscoveryCache,
            key_fetcher::{KeyCache, KeyFetcher},
            looks::Looks,
            requests::FederationClient,
        },
    },
    platform::Platform,
    room::Rooms,
    router::{Request, Response},
    store::Store,
};

/// How long the answer to a transaction is kept for its sender to ask again, in milliseconds: two weeks.
const KEEP_TRANSACTIONS_MS: i64 = 14 * 24 * 60 * 60 * 1_000;

/// One homeserver. It holds no state of its own beyond caches of facts: any number of them may serve one database.
/// Cheap to clone, so that work which outlives a request may have it.
#[derive(Clone)]
pub struct Server {
    /// What its operator has set.
    pub config: Rc<Config>,
    /// All it needs of the world.
    pub platform: Platform,
    /// Its database.
    pub store: Store,
    /// Its rooms.
    pub rooms: Rc<Rooms>,
    /// Signed requests to other servers.
    pub federation: Rc<FederationClient>,
    /// Other servers' signing keys.
    pub keys: Rc<KeyFetcher>,
    /// The looks at staged PDUs that run.
    pub looks: Rc<Looks>,
}

/// What servers of the same configuration in one isolate know together of other servers, and have under way: plain values
/// only.
#[derive(Clone, Default)]
pub struct Caches {
    keys: Rc<KeyCache>,
    discovery: Rc<DiscoveryCache>,
    looks: Rc<Looks>,
}

impl Server {
    /// A server of this configuration on this platform, which remembers nothing of other servers yet.
    pub fn new(config: Rc<Config>, platform: Platform) -> Self {
        Self::with_caches(config, platform, Caches::default())
    }

    /// A server of this configuration on this platform, which shares what it knows of other servers with others of the
    /// same configuration.
    pub fn with_caches(config: Rc<Config>, platform: Platform, caches: Caches) -> Self {
        let store = Store::new(platform.database.clone());
        let rooms = Rc::new(Rooms::new(store.clone(), config.clone(), &platform));
        let federation = Rc::new(FederationClient::new(platform.clone(), config.clone(), caches.discovery));
        let keys = Rc::new(KeyFetcher::new(platform.clone(), federation.clone(), config.clone(), caches.keys));
        Self { config, platform, store, rooms, federation, keys, looks: caches.looks }
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request) -> Response {
        let path = request.uri().path();
        if path.starts_with("/_matrix/client/") || path.starts_with("/_matrix/media/") {
            return client::handle(self, request).await;
        }
        inbound::handle(self, request).await
    }

    /// Does what the scheduled trigger is for, once a minute: whatever a request began and could not finish.
    pub async fn scheduled(&self) {
        // Side by side: a server that answers slowly about missing events must not keep the queue from moving.
        future::join3(self.forget(), self.sweep_queue(), self.sweep_staged()).await;
    }

    /// Once an hour: forgets what nobody will ask for any more.
    async fn forget(&self) {
        let now = self.platform.clock.now_ms();
        if (now / 60_000) % 60 != 0 {
            return;
        }
        let transactions = self.store.forget_transactions(now - KEEP_TRANSACTIONS_MS).await;
        let outbox = self.store.forget_outbox(&self.config.server_name).await;
        let joins = self.store.forget_joins(now).await;
        for error in [transactions, outbox, joins].into_iter().filter_map(Result::err) {
            self.platform.log.warn(&format!("Old rows cannot be deleted: {error}"));
        }
    }
}
