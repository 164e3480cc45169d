//! Ways to reach a server (Server-Server API, "Resolving server names"), and which of them this one may take.
//!
//! A server name comes from strangers, so it must not become a way into somebody's own network: a server whose own name
//! is public never connects to private addresses and names, whichever step they came from. A server whose own name is
//! itself private (`localhost:8448`, `hs1`, `verge.test`) lives in such a network and may.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;

use crate::{
    matrix::server_name::{self, Host},
    platform::OutboundRequest,
};

/// The port of a server whose name, well-known and DNS name none.
pub(super) const DEFAULT_PORT: u16 = 8448;

/// One way to reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// What to connect to: a DNS name or an IP literal (IPv6 without brackets).
    pub connect_host: String,
    /// The TCP port.
    pub connect_port: u16,
    /// The name its certificate must be valid for (IPv6 without brackets). Differs from `connect_host` after SRV.
    pub tls_name: String,
    /// The `Host` header.
    pub host_header: String,
}

impl Destination {
    /// The web server of this name.
    pub(super) fn of_web(name: &Name) -> Self {
        Self {
            connect_host: name.host.clone(),
            connect_port: name.port.unwrap_or(443),
            tls_name: name.host.clone(),
            host_header: name.written.clone(),
        }
    }

    /// `request` (method, path and query, headers, body) sent this way.
    pub fn request(
        &self,
        request: http::Request<Bytes>,
        timeout_ms: u32,
        max_response_bytes: usize,
    ) -> OutboundRequest {
        OutboundRequest {
            connect_host: self.connect_host.clone(),
            connect_port: self.connect_port,
            tls_name: self.tls_name.clone(),
            host_header: self.host_header.clone(),
            request,
            timeout_ms,
            max_response_bytes,
        }
    }

    /// The nearest thing for a platform that cannot ask for a certificate of another name than it connects to: the
    /// server's own name on the SRV record's port, which works where both names resolve alike. The certificate is
    /// verified either way. `None` where that would change nothing.
    pub fn under_its_own_name(&self) -> Option<Self> {
        (self.connect_host != self.tls_name).then(|| Self { connect_host: self.tls_name.clone(), ..self.clone() })
    }
}

/// Why a server name leads nowhere. What cannot be known before connecting (that the platform refuses an IP literal,
/// say) is a [`crate::platform::TransportError`] instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// Not a server name, or one with a port that does not exist.
    #[error("`{0}` is not a server name")]
    InvalidName(String),
    /// The server's own name: nobody federates with themselves.
    #[error("this is the server's own name")]
    Ourselves,
    /// A private name or address, which a server with a public name does not connect to.
    #[error("`{0}` is in a private network, which this server does not connect to")]
    Private(String),
    /// An SRV record says that this host runs no such service (RFC 2782: the target is `.`).
    #[error("the DNS says that `{0}` runs no Matrix server")]
    ServiceRefused(String),
    /// SRV records exist, and none of them can be used.
    #[error("no SRV record of `{0}` can be used")]
    NoUsableTarget(String),
}

/// Which networks a server may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Public names and addresses only.
    Public,
    /// Private ones too.
    Private,
}

impl Scope {
    /// Whether a server of this scope may connect to `name`.
    pub(super) fn check(self, name: &Name) -> Result<(), DiscoveryError> {
        match (self, name.scope()) {
            (Self::Public, Self::Private) => Err(DiscoveryError::Private(name.written.clone())),
            _ => Ok(()),
        }
    }
}

/// A server name taken apart (Appendices, "Server Name").
#[derive(Debug, Clone)]
pub(super) struct Name {
    /// As it was written.
    written: String,
    /// A DNS name in lower case, or an IP literal without brackets.
    pub(super) host: String,
    ip: Option<IpAddr>,
    /// The explicit port.
    pub(super) port: Option<u16>,
}

impl Name {
    pub(super) fn parse(written: &str) -> Result<Self, DiscoveryError> {
        let invalid = || DiscoveryError::InvalidName(written.chars().take(255).collect());
        let parts = server_name::split(written).ok_or_else(invalid)?;
        let host = parts.connect_host().ok_or_else(invalid)?;
        let ip = match parts.host {
            Host::Ipv4(ip) => Some(IpAddr::V4(ip)),
            Host::Ipv6(ip) => Some(IpAddr::V6(ip)),
            Host::Dns(_) => None,
        };
        if parts.port == Some(0) {
            return Err(invalid());
        }
        let port = parts.port;
        Ok(Self { written: written.to_owned(), host, ip, port })
    }

    /// Steps 1 and 2, or 3.1 and 3.2: an IP literal, or an explicit port.
    pub(super) fn without_lookup(&self) -> Option<Destination> {
        (self.ip.is_some() || self.port.is_some()).then(|| Destination {
            connect_host: self.host.clone(),
            connect_port: self.port.unwrap_or(DEFAULT_PORT),
            tls_name: self.host.clone(),
            host_header: self.written.clone(),
        })
    }

    pub(super) fn scope(&self) -> Scope {
        let private = match self.ip {
            Some(IpAddr::V4(ip)) => is_private_v4(ip),
            Some(IpAddr::V6(ip)) => is_private_v6(ip),
            None => is_private_name(&self.host),
        };
        if private { Scope::Private } else { Scope::Public }
    }
}

/// Names that mean something in a private network only (RFC 2606, RFC 6761, RFC 6762, RFC 8375), and names without a dot.
fn is_private_name(host: &str) -> bool {
    const SUFFIXES: [&str; 8] =
        ["localhost", "local", "internal", "home.arpa", "test", "example", "invalid", "localdomain"];
    let host = host.strip_suffix('.').unwrap_or(host);
    !host.contains('.')
        || SUFFIXES.iter().any(|suffix| host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.')))
}

/// The IANA special-purpose registry's addresses that are not globally reachable, without those for documentation.
fn is_private_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || a == 0
        || a >= 224
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0xfe == 18)
}

fn is_private_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    // IPv4 addresses in other clothes: mapped, compatible, NAT64, 6to4.
    let [.., high, low] = segments;
    let last_v4 = Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    let v4 = match segments {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(last_v4),
        [0x2002, high, low, ..] => Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        _ => None,
    };
    ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || ip.is_unique_local()
        || ip.is_unicast_link_local()
        || v4.is_some_and(is_private_v4)
}
