//! Where a server is reached: Server-Server API, "Resolving server names", all its steps.
//!
//! [`Discovery::resolve`] turns a server name into the [`Destination`]s to try, in order. The steps that ask somebody
//! are in [`super::well_known`] (step 3) and [`super::dns`] (steps 3.3, 3.4, 4 and 5). Turning a host name into an IP
//! address is left to the transport.
//!
//! Which of them a server may connect to is decided in [`super::destination`].

use std::rc::Rc;

use super::{
    destination::{DEFAULT_PORT, Destination, DiscoveryError, Name, Scope},
    dns::{Resolver, SrvAnswer, SrvCache},
    well_known::{WellKnown, WellKnownCache},
};
use crate::{config::DnsOverHttps, platform::Platform};

/// What one isolate knows of where servers are, for the discoveries of all its events: plain values only.
#[derive(Default)]
pub struct DiscoveryCache {
    well_known: Rc<WellKnownCache>,
    srv: Rc<SrvCache>,
}

/// Finds servers.
pub struct Discovery {
    own_name: String,
    scope: Scope,
    well_known: WellKnown,
    resolver: Resolver,
}

impl Discovery {
    /// For the server `own_name`, asking `dns_over_https` for SRV records; without it no server has any.
    pub fn new(
        platform: &Platform,
        own_name: &str,
        dns_over_https: Option<DnsOverHttps>,
        cache: Rc<DiscoveryCache>,
    ) -> Self {
        let scope = Name::parse(own_name).map_or(Scope::Public, |name| name.scope());
        Self {
            own_name: own_name.to_owned(),
            scope,
            well_known: WellKnown::new(platform.clone(), scope, cache.well_known.clone()),
            resolver: Resolver::new(platform.clone(), dns_over_https, cache.srv.clone()),
        }
    }

    /// Learns in one call what the database knows of the delegations of servers that are to be reached soon.
    pub async fn look_up(&self, servers: impl IntoIterator<Item = &str>) {
        let names = servers.into_iter().filter_map(|server| Name::parse(server).ok());
        let delegating = names.filter(|name| name.without_lookup().is_none() && self.scope.check(name).is_ok());
        self.well_known.look_up(delegating.map(|name| name.host).collect()).await;
    }

    /// The ways to reach `server_name`, at least one, in the order in which to try them.
    ///
    /// # Errors
    /// Where there is none, or none that may be used. Where somebody could not be asked that is not an error: the next step
    /// applies.
    pub async fn resolve(&self, server_name: &str) -> Result<Vec<Destination>, DiscoveryError> {
        if server_name == self.own_name {
            return Err(DiscoveryError::Ourselves);
        }
        // Steps 1 and 2.
        let name = Name::parse(server_name)?;
        self.scope.check(&name)?;
        if let Some(destination) = name.without_lookup() {
            return Ok(vec![destination]);
        }
        // Step 3.
        let Some(delegated) = self.well_known.delegation(&name.host).await else {
            return self.by_srv(&name.host).await;
        };
        let name = Name::parse(&delegated)?;
        self.scope.check(&name)?;
        match name.without_lookup() {
            Some(destination) => Ok(vec![destination]),
            None => self.by_srv(&name.host).await,
        }
    }

    /// The way to a host of the web, with or without a port, that another server names.
    ///
    /// # Errors
    /// Where it is none, or may not be connected to.
    pub(super) fn web(&self, authority: &str) -> Result<Destination, DiscoveryError> {
        let name = Name::parse(authority)?;
        self.scope.check(&name)?;
        Ok(Destination::of_web(&name))
    }

    /// Steps 3.3 to 3.5, or 4 to 6: SRV records, then port 8448.
    async fn by_srv(&self, host: &str) -> Result<Vec<Destination>, DiscoveryError> {
        let at = |connect_host: String, connect_port| Destination {
            connect_host,
            connect_port,
            tls_name: host.to_owned(),
            host_header: host.to_owned(),
        };
        match self.resolver.matrix_srv(host).await {
            SrvAnswer::Targets(targets) => {
                let usable: Vec<_> = targets
                    .into_iter()
                    .filter(|target| Name::parse(&target.host).is_ok_and(|name| self.scope.check(&name).is_ok()))
                    .map(|target| at(target.host, target.port))
                    .collect();
                if usable.is_empty() { Err(DiscoveryError::NoUsableTarget(host.to_owned())) } else { Ok(usable) }
            }
            SrvAnswer::Refused => Err(DiscoveryError::ServiceRefused(host.to_owned())),
            SrvAnswer::None | SrvAnswer::Unknown => Ok(vec![at(host.to_owned(), DEFAULT_PORT)]),
        }
    }
}
