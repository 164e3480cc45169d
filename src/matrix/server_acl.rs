//! Which servers may take part in a room (`m.room.server_acl`).
//!
//! Spec: Client-Server API, "Server Access Control Lists (ACLs) for rooms"; Server-Server API, "Server Access Control
//! Lists (ACLs)".

use super::{
    event::Event,
    glob,
    identifiers::ServerName,
    json::{Object, Value},
};

/// What a room's `m.room.server_acl` says, read once for all servers that are compared with it.
#[derive(Debug, Clone)]
pub struct ServerAcl(Option<Lists>);

#[derive(Debug, Clone)]
struct Lists {
    allow: Vec<Box<str>>,
    deny: Vec<Box<str>>,
    allows_ip_literals: bool,
}

impl ServerAcl {
    /// Reads the event that stands in the room's state; where there is none, all servers are allowed.
    pub fn of(event: Option<&Event>) -> Self {
        event.map_or(Self(None), |event| Self::from_content(event.content()))
    }

    /// Reads the content of such an event. What is malformed in it counts as missing.
    pub fn from_content(content: &Object) -> Self {
        let patterns = |name: &str| {
            let items = content.get(name).and_then(Value::as_array).unwrap_or_default();
            items.iter().filter_map(|item| item.as_str().map(Into::into)).collect()
        };
        Self(Some(Lists {
            allow: patterns("allow"),
            deny: patterns("deny"),
            allows_ip_literals: content.get("allow_ip_literals").and_then(Value::as_bool).unwrap_or(true),
        }))
    }

    /// Whether `server` may take part in the room. Its port does not matter, nor the case of its letters.
    pub fn allows(&self, server: &ServerName) -> bool {
        let Self(Some(lists)) = self else { return true };
        if !lists.allows_ip_literals && server.is_ip_literal() {
            return false;
        }
        // A server name is ASCII, and no longer than an identifier.
        let Some(host) = glob::Text::new(server.host()) else { return false };
        let names_it = |patterns: &[Box<str>]| patterns.iter().any(|pattern| host.matches(pattern));
        !names_it(&lists.deny) && names_it(&lists.allow)
    }
}
