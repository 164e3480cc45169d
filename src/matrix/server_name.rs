//! Server names: the grammar, and their parts.
//!
//! Spec: appendices, "Server Name". What a name resolves to is for `federation`.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest host of a server name, in bytes.
const MAX_HOST: usize = 255;

/// The host of a server name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host<'a> {
    /// An IPv4 literal.
    Ipv4(Ipv4Addr),
    /// An IPv6 literal, which stands in brackets in the name.
    Ipv6(Ipv6Addr),
    /// A DNS name.
    Dns(&'a str),
}

/// The parts of a server name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The host, as it is to be connected to.
    pub host: Host<'a>,
    /// The host as it is written, so with the brackets of an IPv6 literal.
    pub host_text: &'a str,
    /// The port, if the name has one.
    pub port: Option<u16>,
}

/// Splits a server name into host and port. `None` where it is not a server name.
///
/// Names are not normalised: servers treat them case-sensitively.
pub fn split(name: &str) -> Option<Parts<'_>> {
    let (host_text, port) = if name.starts_with('[') {
        let end = name.find(']')? + 1;
        (name.get(..end)?, name.get(end..)?)
    } else {
        name.split_at(name.find(':').unwrap_or(name.len()))
    };
    let port = match port.strip_prefix(':') {
        Some(port) => Some(parse_port(port)?),
        None if port.is_empty() => None,
        None => return None,
    };
    Some(Parts { host: parse_host(host_text)?, host_text, port })
}

fn parse_host(text: &str) -> Option<Host<'_>> {
    if let Some(literal) = text.strip_prefix('[') {
        return literal.strip_suffix(']')?.parse().ok().map(Host::Ipv6);
    }
    let of_dns_characters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
    if text.is_empty() || text.len() > MAX_HOST || !of_dns_characters {
        return None;
    }
    // The grammar does not mind numbers beyond an address's, such as `1.2.3.400`: they make a DNS name, if no host.
    Some(text.parse().map_or(Host::Dns(text), Host::Ipv4))
}

fn parse_port(text: &str) -> Option<u16> {
    if text.len() > 5 || !is_digits(text) { None } else { text.parse().ok() }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
