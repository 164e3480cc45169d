//! Servers that a room's ACL keeps out (Server-Server API, "Server Access Control Lists (ACLs)").
//!
//! An ACL is about the server that makes a request, not about whoever made an event: it is asked where requests come in, and
//! no event is judged by it.

use std::collections::HashSet;

use super::{
    Room, RoomError, Rooms,
    view::{TypeAndKey, View, type_and_key},
};
use crate::{
    matrix::{
        identifiers::{RoomId, ServerName},
        policy_server::{POLICY, PolicyServer},
        server_acl::ServerAcl,
        state_trie::NodeId,
    },
    store::events::StoredEvent,
};

/// Where the ACL stands in a room's state.
pub(super) const ACL: (&str, &str) = ("m.room.server_acl", "");

/// The same as a key.
pub(super) fn acl_key() -> TypeAndKey {
    type_and_key(ACL.0, ACL.1)
}

/// What the ACL says that was found at [`ACL`]; redacted, it says nothing, and so allows no server.
///
/// One of which only an altered copy has come is not known. Until it comes whole it keeps nobody out: otherwise whoever alters a
/// copy cuts us off from the room, and from every server that could give us the ACL as it is. What is let in meanwhile could
/// as well have been relayed by whoever altered it.
pub(super) fn acl_of(stored: Option<&StoredEvent>) -> ServerAcl {
    match stored {
        Some(stored) if stored.redacted_by.is_some() => ServerAcl::of(Some(&stored.event.redacted())),
        Some(stored) if stored.event.is_altered() => ServerAcl::of(None),
        stored => ServerAcl::of(stored.map(|stored| &stored.event)),
    }
}

/// The ACL in the state `root`.
pub(super) async fn acl_in(view: &mut View<'_>, root: NodeId) -> Result<ServerAcl, RoomError> {
    let found = view.stored_state(root, &[acl_key()]).await?;
    Ok(acl_of(found.first().copied()))
}

impl Rooms {
    /// Those of `rooms` that we know and whose ACLs allow `server` now: where an EDU of it may have an effect. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn allowing(&self, server: &ServerName, rooms: &[RoomId]) -> Result<HashSet<RoomId>, RoomError> {
        let mut view = View::new(&self.store, self.server_name());
        let found = view.load_rooms(rooms.to_vec(), &[acl_key()], Vec::new(), Vec::new()).await?;
        let mut allowing = HashSet::with_capacity(found.len());
        for room in found {
            if acl_in(&mut view, room.state).await?.allows(server) {
                allowing.insert(room.room_id);
            }
        }
        Ok(allowing)
    }

    /// A room that somebody here is in, and its ACL. One round trip.
    ///
    /// # Errors
    /// [`RoomError::UnknownRoom`]
    pub async fn room_and_acl(&self, room_id: &RoomId) -> Result<(Room, ServerAcl), RoomError> {
        let found = self.current_stored(room_id, &[ACL]).await?.filter(|(room, _)| room.local_joined > 0);
        let (room, state) = found.ok_or(RoomError::UnknownRoom)?;
        Ok((room, acl_of(state.first())))
    }

    /// A room that somebody here is in, and that names this server as its policy server, for `server`, which is in it too. Two
    /// round trips.
    ///
    /// # Errors
    /// [`RoomError::UnknownRoom`], also for a room that names another policy server; [`RoomError::Denied`] for a server that the
    /// room's ACL keeps out; [`RoomError::NotAllowed`] for one that has no members there.
    pub async fn guarded_room(&self, server: &ServerName, room_id: &RoomId) -> Result<Room, RoomError> {
        let found = self.current_stored(room_id, &[ACL, (POLICY, "")]).await?.filter(|(room, _)| room.local_joined > 0);
        let (room, state) = found.ok_or(RoomError::UnknownRoom)?;
        let find = |event_type: &str| state.iter().find(|stored| stored.event.event_type() == event_type);
        let policy = find(POLICY).filter(|stored| stored.redacted_by.is_none());
        let policy = policy.and_then(|stored| PolicyServer::of(&stored.event));
        if policy.is_none_or(|policy| policy.via != *self.server_name()) {
            return Err(RoomError::UnknownRoom);
        }
        if !acl_of(find(ACL.0)).allows(server) {
            return Err(RoomError::Denied);
        }
        if !self.store.server_joined(room_id, server).await? {
            return Err(RoomError::NotAllowed("your server is not in the room".to_owned()));
        }
        Ok(room)
    }

    /// A room that somebody here is in, for `server` to take part in. One round trip.
    ///
    /// # Errors
    /// [`RoomError::UnknownRoom`]; [`RoomError::Denied`] where the room's ACL keeps the server out.
    pub async fn room_for(&self, server: &ServerName, room_id: &RoomId) -> Result<Room, RoomError> {
        let (room, acl) = self.room_and_acl(room_id).await?;
        if acl.allows(server) { Ok(room) } else { Err(RoomError::Denied) }
    }
}
