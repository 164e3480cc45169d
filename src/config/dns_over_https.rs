//! The resolver that is asked for SRV records.

use super::variables::ConfigError;
use crate::matrix::server_name;

/// The resolver that is asked when `DNS_OVER_HTTPS` names none; it answers the JSON form of DNS over HTTPS.
pub(super) const DEFAULT_DNS_OVER_HTTPS: &str = "https://cloudflare-dns.com/dns-query";

/// The address of a resolver, such as `https://cloudflare-dns.com/dns-query` or `https://dns.google/resolve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOverHttps {
    /// The host to connect to: a DNS name or an IP literal (IPv6 without brackets).
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// Host and port as they are written.
    pub authority: String,
    /// The path, which needs no escaping.
    pub path: String,
}

impl DnsOverHttps {
    /// Reads an `https` URL without a query.
    ///
    /// # Errors
    /// A sentence that says what is wrong with `url`.
    pub fn parse(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("https://").ok_or("the resolver's URL must begin with https://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let parts = server_name::split(authority).filter(|parts| parts.port != Some(0));
        let host = parts.and_then(|parts| Some((parts.connect_host()?, parts.port)));
        let (host, port) = host.ok_or("the resolver's URL names no valid host")?;
        let path = if path.is_empty() { "/" } else { path };
        if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%".contains(&b)) {
            return Err("the resolver's URL must have a plain path and no query".to_owned());
        }
        Ok(Self { host, port: port.unwrap_or(443), authority: authority.to_owned(), path: path.to_owned() })
    }
}

pub(super) fn resolver(url: &str) -> Result<DnsOverHttps, ConfigError> {
    // A query may hold a token.
    let shown = url.split('?').next().unwrap_or_default();
    DnsOverHttps::parse(url).map_err(|why| ConfigError::new("DNS_OVER_HTTPS", format!("is {shown:?}, but {why}")))
}
