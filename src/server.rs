//! One homeserver as a value: all that a handler needs. What answers requests and does the clock's work with it is in
//! [`crate::program`], above every handler.

use std::rc::Rc;

use crate::{
    admission::Admission,
    config::Config,
    federation::peers::{
        discovery::DiscoveryCache,
        fleeting::Fleeting,
        heard::LastHeard,
        key_cache::KeyCache,
        key_fetcher::KeyFetcher,
        looks::Looks,
        policy::{PolicyClient, PolicyMemory},
        requests::FederationClient,
        slow::SlowAnswers,
        spaces::Spaces,
    },
    platform::{Meter, Platform, news::Announcing},
    room::Rooms,
    store::Store,
};

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
    /// What this isolate lets in.
    pub admission: Rc<Admission>,
    /// Counts its calls to the database.
    pub meter: Rc<Meter>,
    /// What waits to be told to other servers and may be forgotten.
    pub fleeting: Rc<Fleeting>,
    /// Which servers were heard from lately.
    pub heard: Rc<LastHeard>,
    /// Which take long to answer our transactions.
    pub slow: Rc<SlowAnswers>,
    /// What other servers said of spaces.
    pub spaces: Rc<Spaces>,
    caches: Caches,
}

/// What servers of the same configuration in one isolate know together of other servers, and have under way: plain values
/// only.
#[derive(Clone, Default)]
pub struct Caches {
    keys: Rc<KeyCache>,
    discovery: Rc<DiscoveryCache>,
    looks: Rc<Looks>,
    admission: Rc<Admission>,
    heard: Rc<LastHeard>,
    slow: Rc<SlowAnswers>,
    policy: Rc<PolicyMemory>,
    spaces: Rc<Spaces>,
    fleeting: Rc<Fleeting>,
}

impl Caches {
    /// What the isolate lets in.
    pub fn admission(&self) -> Rc<Admission> {
        Rc::clone(&self.admission)
    }

    /// For a server that takes the place of one that was ended: it knows what that one knew of other servers, and begins with nothing
    /// under way. Of keys it knows what the database does: those that the other one had written need not be there, as it may have been
    /// ended because its writes failed.
    #[must_use]
    pub fn for_successor(&self) -> Self {
        let Self { discovery, policy, spaces, .. } = self.clone();
        Self { discovery, policy, spaces, ..Self::default() }
    }
}

impl Server {
    /// A server of this configuration on this platform, which remembers nothing of other servers yet.
    pub fn new(config: Rc<Config>, platform: Platform) -> Self {
        Self::with_caches(config, platform, Caches::default())
    }

    /// A server of this configuration on this platform, which shares what it knows of other servers with others of the
    /// same configuration.
    pub fn with_caches(config: Rc<Config>, platform: Platform, caches: Caches) -> Self {
        let meter = Meter::new(Rc::new(Announcing::new(platform.database.clone(), platform.news.clone())));
        Self::over(config, platform, caches, meter)
    }

    /// The same server, which makes no more than so many calls to the database. For one of several jobs of one event, which
    /// must not use up what the platform allows them all.
    #[must_use]
    pub fn with_wall(&self, calls: u64) -> Self {
        let meter = Meter::with_wall(self.platform.database.clone(), calls);
        Self::over(self.config.clone(), self.platform.clone(), self.caches.clone(), meter)
    }

    /// The same server, whose calls to the database are counted by themselves too: in an object all requests share one server, and
    /// what others call must not use up the budget of a job.
    #[must_use]
    pub fn counted_apart(&self) -> Self {
        let meter = Meter::new(self.platform.database.clone());
        Self::over(self.config.clone(), self.platform.clone(), self.caches.clone(), meter)
    }

    fn over(config: Rc<Config>, platform: Platform, caches: Caches, meter: Meter) -> Self {
        let meter = Rc::new(meter);
        let platform = Platform { database: meter.clone(), ..platform };
        let store = Store::new(platform.database.clone()).counting(caches.admission.clone(), platform.clock.clone());
        let federation = Rc::new(FederationClient::new(platform.clone(), config.clone(), caches.discovery.clone()));
        let (clock, log, known) = (platform.clock.clone(), platform.log.clone(), caches.policy.clone());
        let policy_servers = Rc::new(PolicyClient::new(federation.clone(), config.clone(), clock, log, known));
        let rooms = Rc::new(Rooms::new(store.clone(), config.clone(), &platform, policy_servers));
        let keys = KeyFetcher::new(platform.clone(), federation.clone(), config.clone(), caches.keys.clone());
        let Caches { admission, fleeting, heard, slow, looks, spaces, .. } = caches.clone();
        Self {
            config,
            platform,
            store,
            rooms,
            federation,
            keys: Rc::new(keys),
            looks,
            admission,
            meter,
            fleeting,
            heard,
            slow,
            spaces,
            caches,
        }
    }
}
