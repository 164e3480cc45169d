//! What asks other servers for the signatures of a room's policy server (Server-Server API, "Policy Servers").

use super::error::Unsigned;
use crate::{
    matrix::{event::Event, policy_server::PolicyServer},
    platform::LocalBoxFuture,
};

/// Asks policy servers.
pub trait PolicyServers {
    /// The event with the signature of the policy server, which is asked for it. The same question may be asked again at once.
    fn sign<'a>(&'a self, policy: &'a PolicyServer, event: &'a Event) -> LocalBoxFuture<'a, Result<Event, Unsigned>>;
}
