//! Identifiers: events, rooms, users, servers and room aliases.
//!
//! Spec: appendices, "Identifier Grammar". Receiving is lenient where the spec asks for it (historical user ids);
//! ids made here are shaped where they are made.

use std::{fmt, rc::Rc};

use super::server_name::{self, Host, Parts};

/// The longest identifier, in bytes.
pub const MAX_LENGTH: usize = 255;

/// Why a text is not an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentifierError {
    /// It does not begin with the sigil of its kind.
    #[error("the identifier does not begin with its sigil")]
    Sigil,
    /// It is longer than 255 bytes.
    #[error("the identifier is longer than 255 bytes")]
    TooLong,
    /// It has no domain, or a domain that is not a server name.
    #[error("the identifier does not end in a server name")]
    Domain,
    /// It is empty, or holds a character that it must not.
    #[error("the identifier holds a character that it must not")]
    Characters,
}

/// An event id: `$` and, by room version, a hash or a local part and the server's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Rc<str>);

/// A room id: `!` and, by room version, the create event's hash or a local part and a server's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomId(Rc<str>);

/// A user id, `@local:server`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Rc<str>);

/// A room alias, `#local:server`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomAlias(Rc<str>);

/// A server name: a host with an optional port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerName(Rc<str>);

impl EventId {
    /// Checks an event id of any room version.
    ///
    /// # Errors
    /// Where the sigil is missing, or it is too long, or empty but for the sigil.
    pub fn parse(text: &str) -> Result<Self, IdentifierError> {
        opaque(text, '$', MAX_LENGTH)?;
        Ok(Self(text.into()))
    }

    /// As [`EventId::parse`], for the members of events, whose length is judged apart.
    pub(crate) fn parse_any_length(text: &str) -> Result<Self, IdentifierError> {
        opaque(text, '$', usize::MAX)?;
        Ok(Self(text.into()))
    }

    /// As [`EventId::parse_any_length`], with the domain that ids of room versions 1 and 2 have.
    pub(super) fn parse_with_domain(text: &str) -> Result<Self, IdentifierError> {
        with_domain(text, '$', usize::MAX)?;
        Ok(Self(text.into()))
    }

    /// The server that made the id, in room versions 1 and 2.
    pub fn server_name(&self) -> Option<&str> {
        domain(&self.0)
    }
}

impl RoomId {
    /// Checks a room id of any room version.
    ///
    /// # Errors
    /// Where the sigil is missing, or it is too long, or empty but for the sigil.
    pub fn parse(text: &str) -> Result<Self, IdentifierError> {
        opaque(text, '!', MAX_LENGTH)?;
        Ok(Self(text.into()))
    }

    /// As [`RoomId::parse`], for the members of events, whose length is judged apart.
    pub(crate) fn parse_any_length(text: &str) -> Result<Self, IdentifierError> {
        opaque(text, '!', usize::MAX)?;
        Ok(Self(text.into()))
    }

    /// The id of the room that the event `create` makes, in room version 12 and later.
    pub fn of_create_event(create: &EventId) -> Self {
        Self(["!", create.0.get(1..).unwrap_or_default()].concat().into())
    }

    /// The id of the create event, in room version 12 and later.
    pub fn create_event_id(&self) -> EventId {
        EventId(["$", self.0.get(1..).unwrap_or_default()].concat().into())
    }

    /// The server that made the id, before room version 12.
    pub fn server_name(&self) -> Option<&str> {
        domain(&self.0)
    }
}

impl UserId {
    /// Checks a user id; the local part may be historical, so any characters but `:` and NUL, and empty.
    ///
    /// # Errors
    /// Where it is malformed or too long.
    pub fn parse(text: &str) -> Result<Self, IdentifierError> {
        with_domain(text, '@', MAX_LENGTH)?;
        Ok(Self(text.into()))
    }

    /// Whether [`UserId::parse`] would take it.
    pub fn is_valid(text: &str) -> bool {
        with_domain(text, '@', MAX_LENGTH).is_ok()
    }

    /// Checks that the text has the form of a user id, whether or not a server could have the name in it: such an id can be
    /// another server's member of a room, and then be put out of it.
    ///
    /// # Errors
    /// Where it has not, or is too long.
    pub fn check_form(text: &str) -> Result<(), IdentifierError> {
        opaque(text, '@', MAX_LENGTH)?;
        split_at_colon(text).map(drop).ok_or(IdentifierError::Domain)
    }

    /// As [`UserId::parse`], for the members of events, whose length is judged apart.
    pub(crate) fn parse_any_length(text: &str) -> Result<Self, IdentifierError> {
        with_domain(text, '@', usize::MAX)?;
        Ok(Self(text.into()))
    }

    /// What stands between `@` and the first colon.
    pub fn localpart(&self) -> &str {
        localpart(&self.0)
    }

    /// The name of the user's server.
    pub fn server_name(&self) -> &str {
        domain(&self.0).unwrap_or_default()
    }

    /// Whether the local part is one that may be given to new users: `a-z`, `0-9`, `._=-/+`, not empty.
    pub fn is_strict(&self) -> bool {
        let local = self.localpart();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._=-/+".contains(&b);
        !local.is_empty() && local.bytes().all(allowed)
    }
}

impl RoomAlias {
    /// Checks a room alias.
    ///
    /// # Errors
    /// Where it is malformed or too long.
    pub fn parse(text: &str) -> Result<Self, IdentifierError> {
        with_domain(text, '#', MAX_LENGTH)?;
        Ok(Self(text.into()))
    }

    /// What stands between `#` and the first colon.
    pub fn localpart(&self) -> &str {
        localpart(&self.0)
    }

    /// The name of the server that keeps the alias.
    pub fn server_name(&self) -> &str {
        domain(&self.0).unwrap_or_default()
    }
}

impl ServerName {
    /// Checks a server name.
    ///
    /// # Errors
    /// Where it is malformed, or too long to stand in any identifier.
    pub fn parse(text: &str) -> Result<Self, IdentifierError> {
        if text.len() > MAX_LENGTH {
            return Err(IdentifierError::TooLong);
        }
        server_name::split(text).ok_or(IdentifierError::Domain)?;
        Ok(Self(text.into()))
    }

    /// Host and port.
    pub fn parts(&self) -> Parts<'_> {
        // Parsing has found them.
        server_name::split(&self.0).unwrap_or(Parts { host: Host::Dns(&self.0), host_text: &self.0, port: None })
    }

    /// The host as it is written, so with the brackets of an IPv6 literal.
    pub fn host(&self) -> &str {
        self.parts().host_text
    }

    /// The port, if the name has one.
    pub fn port(&self) -> Option<u16> {
        self.parts().port
    }

    /// Whether the host is an IPv4 or IPv6 literal.
    pub fn is_ip_literal(&self) -> bool {
        !matches!(self.parts().host, Host::Dns(_))
    }
}

macro_rules! text_like {
    ($($name:ident),*) => { $(
        impl $name {
            /// The whole identifier.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        /// An identifier hashes and compares as its text, so that maps can be asked with a `&str`.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                *self.0 == *other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                *self.0 == **other
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl From<&$name> for super::json::Value {
            fn from(id: &$name) -> Self {
                Self::from(id.as_str())
            }
        }
    )* };
}

text_like!(EventId, RoomId, UserId, RoomAlias, ServerName);

/// What follows the first colon. Only server names hold colons too, so it is the domain.
fn domain(text: &str) -> Option<&str> {
    split_at_colon(text).map(|(_, domain)| domain)
}

/// What stands between the sigil and the first colon.
pub(super) fn localpart(text: &str) -> &str {
    split_at_colon(text).and_then(|(local, _)| local.get(1..)).unwrap_or_default()
}

/// What stands on either side of the first colon. As `split_once`, but faster in so short a text.
fn split_at_colon(text: &str) -> Option<(&str, &str)> {
    let colon = text.bytes().position(|byte| byte == b':')?;
    Some((text.get(..colon)?, text.get(colon + 1..)?))
}

fn opaque(text: &str, sigil: char, max_length: usize) -> Result<(), IdentifierError> {
    let rest = text.strip_prefix(sigil).ok_or(IdentifierError::Sigil)?;
    if text.len() > max_length {
        return Err(IdentifierError::TooLong);
    }
    if rest.is_empty() || rest.as_bytes().contains(&0) { Err(IdentifierError::Characters) } else { Ok(()) }
}

fn with_domain(text: &str, sigil: char, max_length: usize) -> Result<(), IdentifierError> {
    let rest = text.strip_prefix(sigil).ok_or(IdentifierError::Sigil)?;
    if text.len() > max_length {
        return Err(IdentifierError::TooLong);
    }
    let (local, domain) = split_at_colon(rest).ok_or(IdentifierError::Domain)?;
    if local.as_bytes().contains(&0) {
        return Err(IdentifierError::Characters);
    }
    server_name::split(domain).map(drop).ok_or(IdentifierError::Domain)
}
