//! Reading events and the state that snapshots hold.

use std::{borrow::Cow, collections::HashMap};

use super::{
    Store,
    event_text::{content_hash, read, read_as},
    json_list,
    rejected::{self, RejectedEvent, rejected_event},
    rooms::{Room, room, rooms_statement},
    slices::by_ids,
    state_sql::{found, node_id, nodes_of_paths, paths},
    text_lists,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
        state_trie::{NodeId, StateKeyHash},
    },
    platform::{Clock, DatabaseError, Row, SqlValue, Statement, turns::SLICE},
};

/// An event as we hold it, with what we think of it.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// The event.
    pub event: Event,
    /// Known only as an auth or state event; it stands nowhere in our graph.
    pub outlier: bool,
    /// It is an outlier that others vouch for as part of a state, but was rejected when it came by itself.
    pub rejected: bool,
    /// Whether it was soft-failed (Server-Server API, "Soft failure").
    pub soft_failed: bool,
    /// The accepted redaction of it.
    pub redacted_by: Option<String>,
    /// Whether the state around it rests on another server's claim.
    pub claimed: bool,
    /// The trie root of the state before it, where known.
    pub state_before: Option<NodeId>,
    /// The trie root of the state after it, where known.
    pub state_after: Option<NodeId>,
}

impl StoredEvent {
    /// Whether it stands in the room: it has a place in our graph, and is not hidden.
    pub fn stands(&self) -> bool {
        !self.outlier && !self.soft_failed
    }
}

impl StoredEvent {
    /// The event as others may see it, and as the rules read it: redacted where it was.
    #[must_use]
    pub fn shown_event(&self) -> Event {
        match self.redacted_by {
            Some(_) => self.event.redacted(),
            None => self.event.clone(),
        }
    }

    /// The event's text as others may see it: redacted where it was.
    #[must_use]
    pub fn shown(&self) -> Cow<'_, str> {
        match self.redacted_by {
            Some(_) => self.event.redacted().json().to_owned().into(),
            None => self.event.json().into(),
        }
    }
}

/// The columns that [`stored_event`] reads, of the tables `events AS e` and `rooms AS r`.
macro_rules! event_columns {
    () => {
        "e.event_id, e.json, e.outlier, e.claimed, e.soft_failed, e.redacted_by, e.state_before, e.state_after, \
         r.room_version, e.hash_wrong, \
         e.outlier AND EXISTS (SELECT 1 FROM rejected_events AS x WHERE x.event_id = e.event_id) AS rejected"
    };
}

pub(super) use event_columns;

/// How many columns those are.
pub(super) const EVENT_COLUMNS: usize = 11;

/// The events in ?1, a JSON list.
const BY_ID: &str = concat!(
    "SELECT ",
    event_columns!(),
    " FROM json_each(?1) AS wanted CROSS JOIN events AS e ON e.event_id = wanted.value \
      CROSS JOIN rooms AS r ON r.room_id = e.room_id"
);

/// The forward extremities of the rooms in ?1, a JSON list.
const EXTREMITIES: &str = concat!(
    "SELECT ",
    event_columns!(),
    " FROM json_each(?1) AS wanted CROSS JOIN rooms AS r ON r.room_id = wanted.value \
      CROSS JOIN json_each(r.extremities) AS x CROSS JOIN events AS e ON e.event_id = x.value ->> 0"
);

/// The id of an event that another one names, in the row of its `auth_events` or `prev_events` that is called so: room
/// versions 1 and 2 have pairs of id and hashes.
macro_rules! cited {
    ($entry:literal) => {
        concat!("CASE ", $entry, ".type WHEN 'array' THEN ", $entry, ".value ->> 0 ELSE ", $entry, ".value END")
    };
}
pub(super) use cited;

/// Selects the auth events of the events in a table of ids and rooms, with the room: what an event names of another room is
/// no auth event of it.
macro_rules! auth_events_of {
    ($table:literal) => {
        concat!(
            "SELECT ",
            cited!("a"),
            ", s.room_id FROM ",
            $table,
            " AS citing CROSS JOIN events AS s ON s.event_id = citing.event_id AND s.room_id = citing.room_id \
              CROSS JOIN json_each(s.json, '$.auth_events') AS a"
        )
    };
}
pub(super) use auth_events_of;

/// The columns that [`shown_text`] reads, of the tables `events AS e` and `rooms AS r`: of a redacted event also what its
/// redaction takes.
macro_rules! shown_columns {
    () => {
        "e.json, e.event_id, CASE WHEN e.redacted_by IS NOT NULL THEN r.room_version END AS redact_by"
    };
}
pub(super) use shown_columns;

/// The start of walks down to each key (a JSON list, ?2) from each root: the roots in ?1, the current states of the rooms
/// in ?3, and the states after the events in ?4 (all JSON lists).
macro_rules! paths_from_all {
    () => {
        concat!(
            "WITH RECURSIVE starts(node_id) AS ( \
               SELECT value FROM json_each(?1) \
               UNION SELECT rooms.state FROM json_each(?3) AS wanted CROSS JOIN rooms ON rooms.room_id = wanted.value \
               UNION SELECT events.state_after FROM json_each(?4) AS wanted CROSS JOIN events ON events.event_id = wanted.value \
                 WHERE events.state_after IS NOT NULL \
             ), ",
            paths!("", "SELECT starts.node_id, keys.value, 0 FROM starts, json_each(?2) AS keys")
        )
    };
}

/// Selects the events that stand at the ends of those paths.
macro_rules! at_keys {
    () => {
        concat!(
            paths_from_all!(),
            ", ",
            found!(""),
            " SELECT ",
            event_columns!(),
            " FROM found CROSS JOIN events AS e ON e.event_id = found.event_id CROSS JOIN rooms AS r ON r.room_id = e.room_id"
        )
    };
}

const AT_KEYS: &str = at_keys!();

/// As well the nodes on the paths: their id and their text, and nothing in the other columns. The way is walked once for both.
const AT_KEYS_AND_NODES: &str = concat!(
    at_keys!(),
    " UNION ALL SELECT node_id, node, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM (",
    nodes_of_paths!(),
    ")"
);

/// One trie node: its id and its text.
pub type NodeText = (NodeId, String);

/// What to read in one round trip.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Events by id.
    pub events: Vec<EventId>,
    /// Rooms: their rows and their forward extremities.
    pub rooms: Vec<RoomId>,
    /// Key hashes: the events at each of them, and the nodes on the way, in `roots`, in the current states of `rooms`, and
    /// in the states after `after`.
    pub keys: Vec<StateKeyHash>,
    /// Trie roots.
    pub roots: Vec<NodeId>,
    /// Events in the state after which to look.
    pub after: Vec<EventId>,
}

/// What there is of [`Wanted`].
#[derive(Debug, Default)]
pub struct Found {
    /// The rooms that exist.
    pub rooms: Vec<Room>,
    /// The events that exist, by id or by key.
    pub events: HashMap<EventId, StoredEvent>,
    /// Those asked for by id that were rejected.
    pub rejected: Vec<RejectedEvent>,
    /// The nodes that exist.
    pub nodes: Vec<NodeText>,
}

impl Store {
    /// Reads rooms, events, and state by key, in one round trip. `own` is this server's name.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn find(&self, own: &ServerName, wanted: &Wanted) -> Result<Found, DatabaseError> {
        let mut statements = Vec::new();
        let mut kinds = Vec::new();
        let mut ask = |kind: Kind, statement: Statement| {
            kinds.push(kind);
            statements.push(statement);
        };
        let room_ids = json_list(wanted.rooms.iter().map(RoomId::as_str));
        if !wanted.rooms.is_empty() {
            ask(Kind::Rooms, rooms_statement(own, &wanted.rooms));
            ask(Kind::Events, Statement::new(EXTREMITIES, [room_ids.as_str().into()]));
        }
        for list in text_lists(&wanted.events) {
            ask(Kind::Events, Statement::new(BY_ID, [list.into()]));
        }
        for statement in by_ids(&wanted.events, rejected::BY_ID).concat() {
            ask(Kind::Rejected, statement);
        }
        if !wanted.keys.is_empty() {
            let (mut roots, mut rooms) = (texts(&wanted.roots), room_ids);
            let mut after = text_lists(&wanted.after);
            if after.is_empty() {
                after.push("[]".to_owned());
            }
            for after in after {
                let parameters: [SqlValue; 4] = [roots.into(), texts(&wanted.keys).into(), rooms.into(), after.into()];
                // Once is enough.
                (roots, rooms) = ("[]".to_owned(), "[]".to_owned());
                ask(Kind::EventsAndNodes, Statement::new(AT_KEYS_AND_NODES, parameters));
            }
        }
        let mut found = Found::default();
        if statements.is_empty() {
            return Ok(found);
        }
        for (kind, rows) in kinds.into_iter().zip(self.batch(statements).await?) {
            for row in &rows {
                match kind {
                    Kind::Rooms => found.rooms.push(room(row)?),
                    Kind::Rejected => found.rejected.push(rejected_event(row)?),
                    Kind::EventsAndNodes if row.optional_integer(2)?.is_none() => {
                        found.nodes.push((node_id(row.text(0)?)?, row.text(1)?.to_owned()));
                    }
                    Kind::Events | Kind::EventsAndNodes => {
                        let stored = stored_event(row)?;
                        found.events.insert(stored.event.event_id().clone(), stored);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The events of `ids` that we hold and have not rejected, in no order.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn events(&self, clock: &dyn Clock, ids: &[EventId]) -> Result<Vec<StoredEvent>, DatabaseError> {
        let stored = self.read_in_slices(clock, SLICE, by_ids(ids, BY_ID), stored_event).await?;
        Ok(stored.into_iter().filter(|stored| !stored.rejected).collect())
    }
}

/// What the rows of a statement of [`Store::find`] are.
enum Kind {
    Rooms,
    Events,
    Rejected,
    EventsAndNodes,
}

/// Asks for the events at `keys` in the current state of a room, each a row of [`event_columns`].
pub(super) fn current_state(room_id: &RoomId, keys: &[StateKeyHash]) -> Statement {
    let room = json_list([room_id.as_str()]);
    Statement::new(AT_KEYS, ["[]".into(), texts(keys).into(), room.into(), "[]".into()])
}

fn texts(items: &[impl ToString]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    json_list(items.iter().map(String::as_str))
}

/// An event from a row of `event_columns`.
pub(crate) fn stored_event(row: &Row) -> Result<StoredEvent, DatabaseError> {
    Ok(StoredEvent {
        event: read_as(row.text(0)?, row.text(1)?, content_hash(row.integer(9)?), row.text(8)?)?,
        outlier: row.integer(2)? != 0,
        rejected: row.integer(10)? != 0,
        claimed: row.integer(3)? != 0,
        soft_failed: row.integer(4)? != 0,
        redacted_by: row.optional_text(5)?.map(str::to_owned),
        state_before: row.optional_text(6)?.map(node_id).transpose()?,
        state_after: row.optional_text(7)?.map(node_id).transpose()?,
    })
}

/// A JSON list of the events as others may see them: redacted where they were.
#[must_use]
pub fn shown_list(events: &[StoredEvent]) -> String {
    let texts: Vec<Cow<'_, str>> = events.iter().map(StoredEvent::shown).collect();
    format!("[{}]", texts.join(","))
}

/// The text of the event in a row of [`shown_columns`], as others may see it: redacted where it was.
pub(super) fn shown_text(row: &Row) -> Result<Cow<'_, str>, DatabaseError> {
    Ok(match row.optional_text(2)? {
        None => row.text(0)?.into(),
        Some(version) => read(row.text(1)?, row.text(0)?, version)?.redacted().json().to_owned().into(),
    })
}
