//! One room over time: the receipt of PDUs, state snapshots, the event graph, local events, joins.
//!
//! Server-Server API, "PDUs" to "Backfilling and retrieving missing events". Everything here decides and commits; it
//! speaks to the database through [`Store`] and to no other server: what must be fetched from elsewhere is named in the
//! answer, and [`crate::federation`] fetches it and calls again.
//!
//! Every change follows one pattern: read the room ([`view`]), judge the new events on that view ([`judge`]), commit the
//! outcome as one batch guarded by the room's version; when another commit came first, read again and repeat.

mod changes;
mod draft;
mod error;
mod history;
mod judge;
mod local;
mod receipt;
mod remote;
mod resolve;
mod view;

use std::rc::Rc;

pub use draft::Draft;
pub use error::RoomError;
pub use local::NewRoom;
pub use receipt::{KnownRooms, Lacking, Received, Record, Transaction};
pub use remote::{Admitted, RemoteJoin};

pub use crate::store::{events::StoredEvent, rooms::Room};
use crate::{
    config::Config,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
        state_trie::{NodeId, StateKeyHash},
    },
    platform::{Clock, Platform, Random},
    store::{Store, events::Wanted},
};

/// How often a commit that lost to another one is tried anew before the caller is told to come back.
const ATTEMPTS: usize = 30;

/// The longest pause before the second attempt, in milliseconds; it doubles with each further one. About what a commit
/// takes.
const FIRST_PAUSE_MS: u32 = 8;

/// The longest pause before any attempt, in milliseconds. Short, because who has lost often must not come more seldom than
/// those who have just arrived.
const LONGEST_PAUSE_MS: u32 = 250;

/// The rooms of one server.
pub struct Rooms {
    store: Store,
    config: Rc<Config>,
    clock: Rc<dyn Clock>,
    random: Rc<dyn Random>,
}

impl Rooms {
    /// The rooms in `store`, for the server that `config` describes.
    pub fn new(store: Store, config: Rc<Config>, platform: &Platform) -> Self {
        Self { store, config, clock: platform.clock.clone(), random: platform.random.clone() }
    }

    fn server_name(&self) -> &ServerName {
        &self.config.server_name
    }

    /// Waits before another attempt, at random and longer each time. Without it those who lose to each other meet again
    /// at once, and the slowest of them, a transaction of many PDUs, loses for ever.
    async fn give_way(&self, attempt: usize) {
        let Some(doublings) = attempt.checked_sub(1) else { return };
        let doublings = u32::try_from(doublings).unwrap_or(u32::MAX);
        let longest = FIRST_PAUSE_MS.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST_PAUSE_MS);
        let mut random = [0; 4];
        self.random.fill(&mut random);
        self.clock.sleep(u32::from_le_bytes(random) % (longest + 1)).await;
    }

    /// The room, if we know it.
    ///
    /// # Errors
    /// As the database says.
    pub async fn room(&self, room_id: &RoomId) -> Result<Option<Room>, RoomError> {
        Ok(self.store.rooms(self.server_name(), std::slice::from_ref(room_id)).await?.pop())
    }

    /// The event, if we hold it.
    ///
    /// # Errors
    /// As the database says.
    pub async fn event(&self, event_id: &EventId) -> Result<Option<StoredEvent>, RoomError> {
        Ok(self.store.events(std::slice::from_ref(event_id)).await?.pop())
    }

    /// Those of the events that we hold, in no order.
    ///
    /// # Errors
    /// As the database says.
    pub async fn events(&self, event_ids: &[EventId]) -> Result<Vec<StoredEvent>, RoomError> {
        Ok(self.store.events(event_ids).await?)
    }

    /// The room, and those state events of `keys`, pairs of type and state key, that its current state has. One round
    /// trip.
    ///
    /// # Errors
    /// As the database says.
    pub async fn current(
        &self,
        room_id: &RoomId,
        keys: &[(&str, &str)],
    ) -> Result<Option<(Room, Vec<Event>)>, RoomError> {
        let wanted = Wanted {
            rooms: vec![room_id.clone()],
            keys: keys.iter().map(|(event_type, state_key)| StateKeyHash::new(event_type, state_key)).collect(),
            ..Wanted::default()
        };
        let found = self.store.find(self.server_name(), &wanted).await?;
        let Some(room) = found.rooms.into_iter().next() else { return Ok(None) };
        let extremities: Vec<&EventId> = room.extremities.iter().map(|(id, _)| id).collect();
        let events = found
            .events
            .into_values()
            .map(|stored| stored.event)
            .filter(|event| {
                keys.iter().any(|(event_type, state_key)| event.is_state(event_type, state_key))
                    // An extremity is read too, and may have the key of a state event that state resolution put aside.
                    && (!extremities.contains(&event.event_id()) || stands(&found.nodes, room.state, event))
            })
            .collect();
        Ok(Some((room, events)))
    }

    /// Every state event of the snapshot `root`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn whole_state(&self, root: NodeId) -> Result<Vec<Event>, RoomError> {
        Ok(self.store.whole_state(root).await?.into_iter().map(|stored| stored.event).collect())
    }

    /// The auth chain of `event_ids`, without those events themselves unless others of them cite them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn auth_chain(&self, event_ids: &[EventId]) -> Result<Vec<Event>, RoomError> {
        Ok(self.store.auth_chain(event_ids).await?.into_iter().map(|stored| stored.event).collect())
    }

    /// Whether `server` has joined members in the room.
    ///
    /// # Errors
    /// As the database says.
    pub async fn server_joined(&self, room_id: &RoomId, server: &ServerName) -> Result<bool, RoomError> {
        Ok(self.store.server_joined(room_id, server).await?)
    }

    /// The servers with joined members in the room, this one included.
    ///
    /// # Errors
    /// As the database says.
    pub async fn servers(&self, room_id: &RoomId) -> Result<Vec<ServerName>, RoomError> {
        Ok(self.store.servers(room_id).await?)
    }
}

/// Whether `event` is what the snapshot `root` has at the event's key, given the nodes on its path.
fn stands(nodes: &[(NodeId, String)], root: NodeId, event: &Event) -> bool {
    let mut at_hand = crate::matrix::state_trie::Nodes::default();
    for (id, text) in nodes {
        // A malformed node is then missing, which the lookup reports.
        let _ = at_hand.insert_text(*id, text);
    }
    let Some(state_key) = event.state_key() else { return false };
    let key = StateKeyHash::new(event.event_type(), state_key);
    crate::matrix::state_trie::lookup(root, &[key], &at_hand)
        .is_ok_and(|found| found.into_iter().flatten().any(|id| *id == *event.event_id().as_str()))
}
