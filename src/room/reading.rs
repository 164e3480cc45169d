//! What a room's current state holds, for those who decide nothing about it.

use super::{
    Room, RoomError, Rooms, StoredEvent,
    view::{TypeAndKey, View, type_and_key},
};
use crate::matrix::{event::Event, identifiers::RoomId};

impl Rooms {
    /// The room, and those state events of `keys`, pairs of type and state key, that its current state has. One round
    /// trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn current(
        &self,
        room_id: &RoomId,
        keys: &[(&str, &str)],
    ) -> Result<Option<(Room, Vec<Event>)>, RoomError> {
        let current = self.current_stored(room_id, keys).await?;
        Ok(current.map(|(room, state)| (room, state.into_iter().map(|stored| stored.event).collect())))
    }

    /// What [`Rooms::current`] reads, with what is noted of each event: whether it is redacted, rejected, soft-failed.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn current_stored(
        &self,
        room_id: &RoomId,
        keys: &[(&str, &str)],
    ) -> Result<Option<(Room, Vec<StoredEvent>)>, RoomError> {
        let keys: Vec<TypeAndKey> =
            keys.iter().map(|(event_type, state_key)| type_and_key(event_type, state_key)).collect();
        let mut view = View::new(&self.store, self.server_name());
        let room = view.load_rooms(vec![room_id.clone()], &keys, Vec::new(), Vec::new()).await?.pop();
        let Some(room) = room else { return Ok(None) };
        let state = view.stored_state(room.state, &keys).await?.into_iter().cloned().collect();
        Ok(Some((room, state)))
    }
}
