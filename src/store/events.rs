//! Reading events and the state that snapshots hold.

use std::collections::HashMap;

use super::{Store, json_list};
use crate::{
    matrix::{event::Event, identifiers::EventId, room_version::RoomVersion},
    platform::{DatabaseError, Row, Statement},
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
    pub state_before: Option<String>,
    /// The trie root of the state after it, where known.
    pub state_after: Option<String>,
}

/// The columns that [`stored_event`] reads, of the tables `events AS e` and `rooms AS r`.
macro_rules! event_columns {
    () => {
        "e.event_id, e.json, e.outlier, e.rejected, e.soft_failed, e.redacted_by, e.state_before, e.state_after, \
         r.room_version"
    };
}

const BY_ID: &str = concat!(
    "SELECT ",
    event_columns!(),
    " FROM json_each(?1) AS wanted JOIN events AS e ON e.event_id = wanted.value JOIN rooms AS r ON r.room_id = e.room_id"
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

/// The nodes on the paths of each key (a JSON list, ?2) under each root (a JSON list, ?1).
const NODES: &str = "\
    WITH RECURSIVE walk(node_id, key, depth) AS ( \
      SELECT roots.value, keys.value, 1 FROM json_each(?1) AS roots, json_each(?2) AS keys \
      UNION \
      SELECT substr(n.node, 2 + 22 * (instr('0123456789abcdef', substr(walk.key, walk.depth, 1)) - 1), 22), walk.key, \
        walk.depth + 1 \
      FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id WHERE substr(n.node, 1, 1) = 'I' \
    ) SELECT DISTINCT n.node_id, n.node FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id";

/// The events that stand at each key (a JSON list, ?2) under each root (a JSON list, ?1).
const AT_KEYS: &str = concat!(
    "WITH RECURSIVE walk(node_id, key, depth) AS ( \
      SELECT roots.value, keys.value, 1 FROM json_each(?1) AS roots, json_each(?2) AS keys \
      UNION \
      SELECT substr(n.node, 2 + 22 * (instr('0123456789abcdef', substr(walk.key, walk.depth, 1)) - 1), 22), walk.key, \
        walk.depth + 1 \
      FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id WHERE substr(n.node, 1, 1) = 'I' \
    ), found(event_id) AS ( \
      SELECT DISTINCT json_extract(n.node, '$.\"' || walk.key || '\"') FROM walk \
      JOIN state_nodes AS n ON n.node_id = walk.node_id WHERE substr(n.node, 1, 1) = '{' \
    ) SELECT ",
    event_columns!(),
    " FROM found JOIN events AS e ON e.event_id = found.event_id JOIN rooms AS r ON r.room_id = e.room_id"
);

/// All nodes under the roots in ?1, a JSON list.
const ALL_NODES: &str = "\
    WITH RECURSIVE walk(node_id) AS ( \
      SELECT value FROM json_each(?1) \
      UNION \
      SELECT substr(n.node, 2 + 22 * slot.value, 22) \
      FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id AND substr(n.node, 1, 1) = 'I', \
        json_each('[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]') AS slot \
    ) SELECT n.node_id, n.node FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id";

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
pub type NodeText = (String, String);

/// What to read in one round trip.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Events by id.
    pub events: Vec<EventId>,
    /// Trie roots, and
    pub roots: Vec<String>,
    /// key hashes: read the nodes on the path of each key under each root, and the events that stand there.
    pub keys: Vec<String>,
    /// Roots of which all nodes are read.
    pub whole: Vec<String>,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Found {
    /// The events that exist, by id or by key.
    pub events: HashMap<EventId, StoredEvent>,
    /// The nodes that exist.
    pub nodes: Vec<NodeText>,
}

impl Store {
    /// Reads events, and state by key, in one round trip.
    ///
    /// # Errors
    /// As the database says.
    pub async fn find(&self, wanted: &Wanted) -> Result<Found, DatabaseError> {
        let mut statements = Vec::new();
        if !wanted.events.is_empty() {
            statements.push(Statement::new(BY_ID, [json_list(wanted.events.iter().map(EventId::as_str)).into()]));
        }
        let events_first = statements.len();
        if !wanted.roots.is_empty() && !wanted.keys.is_empty() {
            let roots = json_list(wanted.roots.iter().map(String::as_str));
            let keys = json_list(wanted.keys.iter().map(String::as_str));
            statements.push(Statement::new(AT_KEYS, [roots.as_str().into(), keys.as_str().into()]));
            statements.push(Statement::new(NODES, [roots.into(), keys.into()]));
        }
        if !wanted.whole.is_empty() {
            statements.push(Statement::new(ALL_NODES, [json_list(wanted.whole.iter().map(String::as_str)).into()]));
        }
        let mut found = Found::default();
        if statements.is_empty() {
            return Ok(found);
        }
        let by_key = statements.len() > events_first && !wanted.roots.is_empty() && !wanted.keys.is_empty();
        let answers = self.batch(statements).await?;
        for (index, rows) in answers.into_iter().enumerate() {
            if index < events_first || (by_key && index == events_first) {
                for row in rows {
                    let stored = stored_event(&row)?;
                    found.events.insert(stored.event.event_id().clone(), stored);
                }
            } else {
                for row in rows {
                    found.nodes.push((row.text(0)?.to_owned(), row.text(1)?.to_owned()));
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
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.query(Statement::new(BY_ID, [json_list(ids.iter().map(EventId::as_str)).into()])).await?;
        rows.iter().map(stored_event).collect()
    }

    /// The auth chain of `ids` (Server-Server API, "auth chain"): their auth events, those events' auth events, and so on.
    ///
    /// # Errors
    /// As the database says.
    pub async fn auth_chain(&self, ids: &[EventId]) -> Result<Vec<StoredEvent>, DatabaseError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.query(Statement::new(AUTH_CHAIN, [json_list(ids.iter().map(EventId::as_str)).into()])).await?;
        rows.iter().map(stored_event).collect()
    }

    /// Every state event of the snapshot `root`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn whole_state(&self, root: &str) -> Result<Vec<StoredEvent>, DatabaseError> {
        let rows = self.query(Statement::new(WHOLE_STATE, [root.into()])).await?;
        rows.iter().map(stored_event).collect()
    }
}

/// An event from a row of [`event_columns`].
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
        state_before: row.optional_text(6)?.map(str::to_owned),
        state_after: row.optional_text(7)?.map(str::to_owned),
    })
}
