//! Reading events and the state that snapshots hold.

use std::collections::HashMap;

use super::{
    Store, json_list,
    rooms::{Room, room, rooms_statement},
    state_sql, text_lists,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
        room_version::RoomVersion,
        state_trie::{NodeId, StateKeyHash},
    },
    platform::{DatabaseError, Row, SqlValue, Statement},
};

/// An event as we hold it, with what we think of it.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// The event.
    pub event: Event,
    /// Known only as an auth or state event; it stands nowhere in our graph.
    pub outlier: bool,
    /// Why it was rejected, if it was.
    pub rejected: Option<String>,
    /// Whether it was soft-failed (Server-Server API, "Soft failure").
    pub soft_failed: bool,
    /// The accepted redaction of it.
    pub redacted_by: Option<String>,
    /// The trie root of the state before it, where known.
    pub state_before: Option<NodeId>,
    /// The trie root of the state after it, where known.
    pub state_after: Option<NodeId>,
}

/// The columns that [`stored_event`] reads, of the tables `events AS e` and `rooms AS r`.
macro_rules! event_columns {
    () => {
        "e.event_id, e.json, e.outlier, e.rejected, e.soft_failed, e.redacted_by, e.state_before, e.state_after, \
         r.room_version"
    };
}

pub(super) use event_columns;

/// The events in ?1, a JSON list.
const BY_ID: &str = concat!(
    "SELECT ",
    event_columns!(),
    " FROM json_each(?1) AS wanted JOIN events AS e ON e.event_id = wanted.value JOIN rooms AS r ON r.room_id = e.room_id"
);

/// The forward extremities of the rooms in ?1, a JSON list.
const EXTREMITIES: &str = concat!(
    "SELECT ",
    event_columns!(),
    " FROM json_each(?1) AS wanted JOIN rooms AS r ON r.room_id = wanted.value, json_each(r.extremities) AS x \
     JOIN events AS e ON e.event_id = x.value ->> 0"
);

const AUTH_CHAIN: &str = concat!(
    "WITH RECURSIVE chain(event_id) AS ( \
       SELECT a.value FROM json_each(?1) AS start JOIN events AS s ON s.event_id = start.value, \
         json_each(s.json, '$.auth_events') AS j, json_each(json_array(CASE j.type WHEN 'array' THEN j.value ->> 0 ELSE j.value END)) AS a \
       UNION \
       SELECT a.value FROM chain JOIN events AS s ON s.event_id = chain.event_id, \
         json_each(s.json, '$.auth_events') AS j, json_each(json_array(CASE j.type WHEN 'array' THEN j.value ->> 0 ELSE j.value END)) AS a \
     ) SELECT ",
    event_columns!(),
    " FROM chain JOIN events AS e ON e.event_id = chain.event_id JOIN rooms AS r ON r.room_id = e.room_id"
);

/// The start of a walk down the paths of each key (a JSON list, ?2) under each root: the roots in ?1, the current states
/// of the rooms in ?3, and the states after the events in ?4 (all JSON lists).
macro_rules! walk {
    () => {
        "WITH RECURSIVE starts(node_id) AS ( \
          SELECT value FROM json_each(?1) \
          UNION SELECT rooms.state FROM json_each(?3) AS wanted JOIN rooms ON rooms.room_id = wanted.value \
          UNION SELECT events.state_after FROM json_each(?4) AS wanted JOIN events ON events.event_id = wanted.value \
            WHERE events.state_after IS NOT NULL \
        ), walk(node_id, key, depth) AS ( \
          SELECT starts.node_id, keys.value, 1 FROM starts, json_each(?2) AS keys \
          UNION \
          SELECT substr(n.node, 2 + 22 * (instr('0123456789abcdef', substr(walk.key, walk.depth, 1)) - 1), 22), \
            walk.key, walk.depth + 1 \
          FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id WHERE substr(n.node, 1, 1) = 'I' \
        )"
    };
}

/// The nodes on those paths.
const NODES: &str =
    concat!(walk!(), " SELECT DISTINCT n.node_id, n.node FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id");

/// The events that stand at the ends of those paths.
const AT_KEYS: &str = concat!(
    walk!(),
    ", found(event_id) AS ( \
      SELECT DISTINCT json_extract(n.node, '$.\"' || walk.key || '\"') FROM walk \
      JOIN state_nodes AS n ON n.node_id = walk.node_id WHERE substr(n.node, 1, 1) = '{' \
    ) SELECT ",
    event_columns!(),
    " FROM found JOIN events AS e ON e.event_id = found.event_id JOIN rooms AS r ON r.room_id = e.room_id"
);

/// All events in the snapshot ?1.
const WHOLE_STATE: &str = concat!(
    "WITH RECURSIVE walk(node_id) AS ( \
      SELECT ?1 \
      UNION \
      SELECT substr(n.node, 2 + 22 * slot.value, 22) \
      FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id AND substr(n.node, 1, 1) = 'I', \
        json_each('[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]') AS slot \
    ), leaves(node) AS ( \
      SELECT n.node FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id WHERE substr(n.node, 1, 1) = '{' \
    ) SELECT ",
    event_columns!(),
    " FROM leaves, json_each(leaves.node) AS entry JOIN events AS e ON e.event_id = entry.value \
      JOIN rooms AS r ON r.room_id = e.room_id"
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
    /// Roots: the nodes in which the first differs from the others.
    pub differing: Vec<NodeId>,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Found {
    /// The rooms that exist.
    pub rooms: Vec<Room>,
    /// The events that exist, by id or by key.
    pub events: HashMap<EventId, StoredEvent>,
    /// The nodes that exist.
    pub nodes: Vec<NodeText>,
}

impl Store {
    /// Reads rooms, events, and state by key, in one round trip. `own` is this server's name.
    ///
    /// # Errors
    /// As the database says.
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
                ask(Kind::Events, Statement::new(AT_KEYS, parameters.clone()));
                ask(Kind::Nodes, Statement::new(NODES, parameters));
            }
        }
        if !wanted.differing.is_empty() {
            ask(Kind::Nodes, Statement::new(state_sql::DIFFERING, [texts(&wanted.differing).into()]));
        }
        let mut found = Found::default();
        if statements.is_empty() {
            return Ok(found);
        }
        for (kind, rows) in kinds.into_iter().zip(self.batch(statements).await?) {
            for row in &rows {
                match kind {
                    Kind::Rooms => found.rooms.push(room(row)?),
                    Kind::Nodes => found.nodes.push((node_id(row.text(0)?)?, row.text(1)?.to_owned())),
                    Kind::Events => {
                        let stored = stored_event(row)?;
                        found.events.insert(stored.event.event_id().clone(), stored);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The events of `ids` that we hold, in no order.
    ///
    /// # Errors
    /// As the database says.
    pub async fn events(&self, ids: &[EventId]) -> Result<Vec<StoredEvent>, DatabaseError> {
        let lists = text_lists(ids);
        if lists.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.batch(lists.into_iter().map(|list| Statement::new(BY_ID, [list.into()])).collect()).await?;
        answers.iter().flatten().map(stored_event).collect()
    }

    /// The auth chain of `ids` (Server-Server API, "auth chain"): their auth events, those events' auth events, and so on.
    ///
    /// # Errors
    /// As the database says.
    pub async fn auth_chain(&self, ids: &[EventId]) -> Result<Vec<StoredEvent>, DatabaseError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.query(Statement::new(AUTH_CHAIN, [self::ids(ids).into()])).await?;
        rows.iter().map(stored_event).collect()
    }

    /// Every state event of the snapshot `root`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn whole_state(&self, root: NodeId) -> Result<Vec<StoredEvent>, DatabaseError> {
        let rows = self.query(Statement::new(WHOLE_STATE, [root.to_string().into()])).await?;
        rows.iter().map(stored_event).collect()
    }
}

/// What the rows of a statement of [`Store::find`] are.
enum Kind {
    Rooms,
    Events,
    Nodes,
}

/// The id of a trie node as it is stored.
pub(super) fn node_id(text: &str) -> Result<NodeId, DatabaseError> {
    NodeId::parse(text).ok_or_else(|| DatabaseError::Shape(format!("{text:?} is no id of a state node")))
}

fn texts(items: &[impl ToString]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    json_list(items.iter().map(String::as_str))
}

fn ids(events: &[EventId]) -> String {
    json_list(events.iter().map(EventId::as_str))
}

/// An event from a row of `event_columns`.
pub(crate) fn stored_event(row: &Row) -> Result<StoredEvent, DatabaseError> {
    let version = row.text(8)?;
    let version = RoomVersion::get(version)
        .ok_or_else(|| DatabaseError::Shape(format!("a stored room has the unknown version {version:?}")))?;
    let event_id = row.text(0)?;
    let event = Event::from_store(event_id, row.text(1)?, version)
        .map_err(|error| DatabaseError::Shape(format!("the stored event {event_id} cannot be read: {error}")))?;
    Ok(StoredEvent {
        event,
        outlier: row.integer(2)? != 0,
        rejected: row.optional_text(3)?.map(str::to_owned),
        soft_failed: row.integer(4)? != 0,
        redacted_by: row.optional_text(5)?.map(str::to_owned),
        state_before: row.optional_text(6)?.map(node_id).transpose()?,
        state_after: row.optional_text(7)?.map(node_id).transpose()?,
    })
}
