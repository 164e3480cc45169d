//! One room over time: the receipt of PDUs, state snapshots, the event graph, local events, joins.
//!
//! Server-Server API, "PDUs" to "Backfilling and retrieving missing events". Everything here decides and commits; it
//! speaks to the database through [`Store`] and to no other server: what must be fetched from elsewhere is named in the
//! answer, and [`crate::federation`] fetches it and calls again.
//!
//! Every change follows one pattern: read the room ([`view`]), judge the new events on that view ([`judge`]), commit the
//! outcome as one batch guarded by the room's version; when another commit came first, read again and repeat ([`attempts`]).

// What the others share
mod attempts;
mod changes;
mod draft;
mod error;
mod order;
mod view;

// Judging events
mod checks;
mod extremities;
mod judge;
mod policy;
mod policy_servers;
mod resolve;

// Events that other servers send, or give when asked
mod acl;
mod allowance;
mod copies;
mod filling;
mod halving;
mod history;
mod outliers;
mod receipt;
mod strangers;

// What rests on other servers' claims
mod believed;
mod claimed_graph;
mod claims;
mod settled;
mod settling;
mod vouched;
mod withdrawn;

// Events that are made here or passed on
mod local;
mod resident;
mod restricted;

// Memberships by way of other servers
mod large_joins;
mod partial;
mod remote;

// What is told of rooms
mod published;
mod reading;
mod remote_reading;
mod remote_visibility;
mod spaces;
mod summary;

use std::rc::Rc;

pub use believed::Claim;
pub use draft::Draft;
pub use error::{RoomError, Unsigned};
pub use large_joins::{LEASE_MS, Progress};
pub use local::{ChangedRooms, NewRoom};
pub use partial::others_may_give;
pub use policy_servers::PolicyServers;
pub use published::{Asker, PublishedQuery};
pub use receipt::{Begun, Effects, KnownRooms, Lacking, Received, Record, Transaction};
pub use remote::{Admitted, Installed, RemoteJoin};
pub use remote_reading::{ReadRefusal, RemoteReader};
pub use resident::ToldOfJoin;
pub use restricted::Entrance;
pub use settled::{AskedAbout, Left, Settled};
pub use spaces::{SpaceChild, SpaceRoom};
pub use summary::Summary;

pub use crate::store::{
    events::StoredEvent,
    rooms::{Extent, Room},
};
use crate::{
    config::Config,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
    },
    platform::{Clock, Log, Platform, Random},
    store::Store,
};

/// The rooms of one server.
pub struct Rooms {
    store: Store,
    config: Rc<Config>,
    clock: Rc<dyn Clock>,
    log: Rc<dyn Log>,
    random: Rc<dyn Random>,
    policy_servers: Rc<dyn PolicyServers>,
}

impl Rooms {
    /// The rooms in `store`, for the server that `config` describes, and what asks their policy servers.
    pub fn new(store: Store, config: Rc<Config>, platform: &Platform, policy_servers: Rc<dyn PolicyServers>) -> Self {
        let Platform { clock, log, random, .. } = platform.clone();
        Self { store, config, clock, log, random, policy_servers }
    }

    fn server_name(&self) -> &ServerName {
        &self.config.server_name
    }

    /// The room, if we know it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn room(&self, room_id: &RoomId) -> Result<Option<Room>, RoomError> {
        Ok(self.store.rooms(self.server_name(), std::slice::from_ref(room_id)).await?.pop())
    }

    /// The event, if we hold it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn event(&self, event_id: &EventId) -> Result<Option<StoredEvent>, RoomError> {
        Ok(self.store.events(self.clock.as_ref(), std::slice::from_ref(event_id)).await?.pop())
    }

    /// The event, if we hold it, be it that it was rejected for the time being.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn undecided_event(&self, event_id: &EventId) -> Result<Option<Event>, RoomError> {
        if let Some(held) = self.event(event_id).await? {
            return Ok(Some(held.event));
        }
        let rejected = self.store.rejected(self.clock.as_ref(), std::slice::from_ref(event_id)).await?.pop();
        Ok(rejected.filter(|rejected| rejected.provisional).and_then(|rejected| rejected.event))
    }

    /// Those of the events that we hold, in no order.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn events(&self, event_ids: &[EventId]) -> Result<Vec<StoredEvent>, RoomError> {
        Ok(self.store.events(self.clock.as_ref(), event_ids).await?)
    }

    /// The servers with joined members in the room, this one included.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn servers(&self, room_id: &RoomId) -> Result<Vec<ServerName>, RoomError> {
        Ok(self.store.servers(room_id).await?)
    }
}
