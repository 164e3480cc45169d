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

impl Parts<'_> {
    /// What to connect to: a DNS name in lower case, or an IP literal without brackets. `None` for a DNS name that
    /// [`is_dns_name`] refuses.
    pub fn connect_host(&self) -> Option<String> {
        match self.host {
            Host::Ipv4(ip) => Some(ip.to_string()),
            Host::Ipv6(ip) => Some(ip.to_string()),
            Host::Dns(name) => is_dns_name(name).then(|| name.to_ascii_lowercase()),
        }
    }
}

/// Splits a server name into host and port. `None` where it is not a server name.
///
/// Names are not normalised: servers treat them case-sensitively.
pub fn split(name: &str) -> Option<Parts<'_>> {
    let host_length = if name.starts_with('[') {
        name.find(']')? + 1
    } else {
        name.bytes().position(|byte| !IN_DNS_NAMES[usize::from(byte)]).unwrap_or(name.len())
    };
    let (host_text, port) = name.split_at_checked(host_length)?;
    let port = match port.strip_prefix(':') {
        Some(port) => Some(parse_port(port)?),
        None if port.is_empty() => None,
        None => return None,
    };
    Some(Parts { host: parse_host(host_text)?, host_text, port })
}

/// What whoever has the name has all of: any number of names below two labels of DNS cost nothing, nor do ports, or addresses of
/// IPv6 that begin alike. Where others register below two labels too (`co.uk`), it is theirs together.
pub fn zone(name: &str) -> String {
    match split(name).map(|parts| parts.host) {
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => {
            let [a, b, c, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}::/48")
        }
        Some(Host::Dns(host)) => {
            let host = host.trim_end_matches('.');
            let mut dots = host.rmatch_indices('.').map(|(at, _)| at + 1);
            host.get(dots.nth(1).unwrap_or_default()..).unwrap_or(host).to_ascii_lowercase()
        }
        None => name.to_owned(),
    }
}

/// A host name of letters, digits and hyphens that no URL parser reads as an IP address: those take `127.1`,
/// `2130706433` and `0x7f000001` for 127.0.0.1, and go by the last label.
pub fn is_dns_name(host: &str) -> bool {
    let labels = host.strip_suffix('.').unwrap_or(host);
    let last = labels.rsplit('.').next().unwrap_or_default();
    labels.len() <= 253
        && labels.split('.').all(|label| {
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
        && !last.bytes().all(|b| b.is_ascii_digit())
        && !last.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("0x"))
}

/// The bytes of DNS names: letters, digits, hyphens and dots.
const IN_DNS_NAMES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let character = byte as u8;
        table[byte] = character.is_ascii_alphanumeric() || character == b'-' || character == b'.';
        byte += 1;
    }
    table
};

/// Of a text in brackets or of bytes of DNS names.
fn parse_host(text: &str) -> Option<Host<'_>> {
    if let Some(literal) = text.strip_prefix('[') {
        return literal.strip_suffix(']')?.parse().ok().map(Host::Ipv6);
    }
    if text.is_empty() || text.len() > MAX_HOST {
        return None;
    }
    // The grammar does not mind numbers beyond an address's, such as `1.2.3.400`: they make a DNS name, if no host.
    let may_be_address = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let address = if may_be_address { text.parse().ok() } else { None };
    Some(address.map_or(Host::Dns(text), Host::Ipv4))
}

fn parse_port(text: &str) -> Option<u16> {
    if text.len() > 5 || !is_digits(text) { None } else { text.parse().ok() }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
