//! Server names: accepted, and taken apart, as ruma does, or as the grammar says where ruma is more lenient.

use verge::matrix::{
    identifiers::{RoomAlias, ServerName, UserId},
    server_name,
};

/// Whether the text is a server name.
pub(crate) fn holds(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let ours = ServerName::parse(text);
    let theirs = <&ruma_common::ServerName>::try_from(text).ok().filter(|_| !ruma_is_lenient(text));
    assert_eq!(ours.is_ok(), theirs.is_some(), "{ours:?} here, {theirs:?} in ruma");
    // Nothing else ends an identifier.
    let identifiers = [UserId::parse(&format!("@a:{text}")).is_ok(), RoomAlias::parse(&format!("#a:{text}")).is_ok()];
    assert_eq!(identifiers, [ours.is_ok() && text.len() <= 252; 2]);
    let (Ok(ours), Some(theirs)) = (ours, theirs) else { return false };
    assert_eq!((ours.as_str(), ours.host(), ours.port()), (text, theirs.host(), theirs.port()));
    assert_eq!(ours.is_ip_literal(), theirs.is_ip_literal());
    assert_eq!(server_name::split(text), Some(ours.parts()));
    true
}

/// Whether ruma takes a name that the grammar does not have: a port is one to five digits, without a sign. Nor does it mind
/// that a name of more than 255 bytes fits into no identifier.
fn ruma_is_lenient(text: &str) -> bool {
    let port = text.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
    text.len() > 255 || port.is_some_and(|port| port.len() > 5 || port.starts_with('+'))
}
