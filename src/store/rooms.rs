//! The row of a room, and which servers are in it.

use serde_json::Value;

use super::{Store, event_id, json_list, positions::TimelinePos, state_sql::node_id};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
        room_version::RoomVersion,
        state_trie::NodeId,
    },
    platform::{DatabaseError, Row, Rows, Statement},
};

/// A forward extremity of a room: an event in its timeline that no other there cites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extremity {
    /// The event.
    pub event_id: EventId,
    /// Its depth, from which that of the events that cite it follows.
    pub depth: i64,
}

impl Extremity {
    /// The event as an extremity.
    pub fn of(event: &Event) -> Self {
        Self { event_id: event.event_id().clone(), depth: event.depth() }
    }
}

/// What may change about a room, as it was when read.
#[derive(Debug, Clone)]
pub struct Room {
    /// Its id.
    pub room_id: RoomId,
    /// The rules it follows.
    pub room_version: &'static RoomVersion,
    /// Moved by every commit; a commit made from this row holds only while the room still has this value.
    pub version: i64,
    /// The forward extremities.
    pub extremities: Vec<Extremity>,
    /// The trie root of the current state.
    pub state: NodeId,
    /// The newest position in the timeline.
    pub latest_pos: TimelinePos,
    /// How many local users are joined.
    pub local_joined: i64,
    /// How much of its state is known.
    pub extent: Extent,
}

/// How much of a room's state is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// All of the current state; states before older events are still being settled.
    Settling,
    /// We joined it by an answer without its members, and who is in it is not known.
    Partial,
}

impl Extent {
    /// Of a room by its `stage` in `partial_rooms`, if it is there.
    pub(super) fn of(stage: Option<i64>) -> Self {
        match stage {
            Some(0 | 3) => Self::Partial,
            Some(1) => Self::Settling,
            _ => Self::Whole,
        }
    }
}

/// The columns that [`room`] reads, of `rooms AS r`; ?1 is this server's name.
macro_rules! room_columns {
    () => {
        "r.room_id, r.room_version, r.version, r.extremities, r.state, r.latest_pos, \
         COALESCE((SELECT joined FROM room_servers AS s WHERE s.room_id = r.room_id AND s.server = ?1 AND s.to_pos IS NULL), 0), \
         (SELECT p.stage FROM partial_rooms AS p WHERE p.room_id = r.room_id)"
    };
}
pub(super) use room_columns;

const ROOMS: &str =
    concat!("SELECT ", room_columns!(), " FROM json_each(?2) AS wanted JOIN rooms AS r ON r.room_id = wanted.value");

pub(super) const SERVERS: &str =
    "SELECT server FROM room_servers WHERE room_id = ?1 AND to_pos IS NULL ORDER BY server";

/// The event by which we came into the room, the last time. Old rooms have depths that D1 cannot tell.
const FIRST_DEPTH: &str = "\
    SELECT MIN(e.depth, 9007199254740991) FROM timeline AS t JOIN events AS e ON e.event_nid = t.event_nid \
    WHERE t.room_id = ?1 AND t.pos >= max((SELECT joined_pos FROM rooms WHERE room_id = ?1), 1) ORDER BY t.pos LIMIT 1";

/// ?1: the room, ?2: event ids as a JSON list.
const SINCE_WE_CAME: &str = "\
    SELECT e.event_id FROM json_each(?2) AS wanted CROSS JOIN events AS e ON e.event_id = wanted.value \
    WHERE e.room_id = ?1 AND e.pos >= max((SELECT r.joined_pos FROM rooms AS r WHERE r.room_id = ?1), 1)";

/// Whether the server ?2 has joined members in the room ?1.
pub(super) const SERVER_JOINED: &str =
    "SELECT joined FROM room_servers WHERE room_id = ?1 AND server = ?2 AND to_pos IS NULL";

impl Store {
    /// The rooms of `ids` that we know. `own` is this server's name.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn rooms(&self, own: &ServerName, ids: &[RoomId]) -> Result<Vec<Room>, DatabaseError> {
        self.query(rooms_statement(own, ids)).await?.iter().map(room).collect()
    }

    /// The servers with joined members in the room.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn servers(&self, room_id: &RoomId) -> Result<Vec<ServerName>, DatabaseError> {
        server_names(&self.query(Statement::new(SERVERS, [room_id.as_str().into()])).await?)
    }

    /// The depth of the oldest event in the timeline that was not backfilled: what is deeper in the past is history.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn first_depth(&self, room_id: &RoomId) -> Result<i64, DatabaseError> {
        let rows = self.query(Statement::new(FIRST_DEPTH, [room_id.as_str().into()])).await?;
        rows.first().map_or(Ok(0), |row| row.integer(0))
    }

    /// Those of `ids` that have come into the room's timeline since we came into the room, the event by which we did included.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn since_we_came(&self, room_id: &RoomId, ids: &[EventId]) -> Result<Vec<EventId>, DatabaseError> {
        let parameters = [room_id.as_str().into(), json_list(ids.iter().map(EventId::as_str)).into()];
        let rows = self.query(Statement::new(SINCE_WE_CAME, parameters)).await?;
        rows.iter().map(|row| event_id(row, 0)).collect()
    }

    /// Whether `server` has joined members in the room.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn server_joined(&self, room_id: &RoomId, server: &ServerName) -> Result<bool, DatabaseError> {
        let rows = self.query(Statement::new(SERVER_JOINED, [room_id.as_str().into(), server.as_str().into()])).await?;
        Ok(!rows.is_empty())
    }
}

pub(super) fn rooms_statement(own: &ServerName, ids: &[RoomId]) -> Statement {
    Statement::new(ROOMS, [own.as_str().into(), json_list(ids.iter().map(RoomId::as_str)).into()])
}

/// The answer to [`SERVERS`].
pub(super) fn server_names(rows: &Rows) -> Result<Vec<ServerName>, DatabaseError> {
    let name = |row: &Row| {
        let name = row.text(0)?;
        let shape = |_| DatabaseError::Shape(format!("{name:?} in room_servers is not a server name"));
        ServerName::parse(name).map_err(shape)
    };
    rows.iter().map(name).collect()
}

/// A room from a row of [`room_columns`].
pub(super) fn room(row: &Row) -> Result<Room, DatabaseError> {
    let shape = |what: &str| DatabaseError::Shape(format!("a stored room has {what}"));
    let version = row.text(1)?;
    let extremities: Vec<Value> = serde_json::from_str(row.text(3)?).map_err(|_| shape("unreadable extremities"))?;
    let extremities = extremities
        .iter()
        .map(|pair| {
            let event_id = EventId::parse(pair.get(0)?.as_str()?).ok()?;
            Some(Extremity { event_id, depth: pair.get(1)?.as_i64()? })
        })
        .collect::<Option<_>>()
        .ok_or_else(|| shape("extremities of the wrong shape"))?;
    Ok(Room {
        room_id: RoomId::parse(row.text(0)?).map_err(|_| shape("an invalid room ID"))?,
        room_version: RoomVersion::get(version).ok_or_else(|| shape("an unknown version"))?,
        version: row.integer(2)?,
        extremities,
        state: node_id(row.text(4)?)?,
        latest_pos: TimelinePos::read(row, 5)?,
        local_joined: row.integer(6)?,
        extent: Extent::of(row.optional_integer(7)?),
    })
}
