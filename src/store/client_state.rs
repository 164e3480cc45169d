//! Reading state snapshots for clients: of any number of rooms, in one round trip.
//!
//! The shape of the nodes is `matrix::state_trie`'s; the walks are here because they are SQL.

use std::collections::HashMap;

use serde_json::json;

use super::{
    Store,
    client_rooms::{SeenEvent, seen_columns, seen_joins},
    json_list, json_lists,
};
use crate::{
    matrix::state_trie::{NodeId, StateKeyHash},
    platform::{DatabaseError, Row, Rows, Statement},
};

/// What to read of snapshots.
#[derive(Debug, Default)]
pub struct StateReads {
    /// The event at one key of a snapshot.
    pub at: Vec<(NodeId, StateKeyHash)>,
    /// All events of a snapshot.
    pub whole: Vec<NodeId>,
    /// The events of the second snapshot that are not in the first.
    pub changes: Vec<(NodeId, NodeId)>,
    /// Who is in the room.
    pub members: Vec<NodeId>,
}

/// What was read; nothing where the snapshot has nothing.
#[derive(Debug, Default)]
pub struct StateFound {
    at: HashMap<(NodeId, StateKeyHash), SeenEvent>,
    whole: HashMap<NodeId, Vec<SeenEvent>>,
    changes: HashMap<(NodeId, NodeId), Vec<SeenEvent>>,
    members: HashMap<NodeId, Vec<Members>>,
}

/// The members of a room that share a membership.
#[derive(Debug, Clone)]
pub struct Members {
    /// `join`, `invite`, …
    pub membership: String,
    /// How many there are.
    pub count: i64,
    /// The first six of them.
    pub first: Vec<String>,
}

/// Pairs of root and key, as a JSON list, in ?1.
const AT: &str = concat!(
    "WITH RECURSIVE walk(root, node_id, key, depth) AS ( \
       SELECT value ->> 0, value ->> 0, value ->> 1, 1 FROM json_each(?1) \
       UNION \
       SELECT walk.root, \
         substr(n.node, 2 + 22 * (instr('0123456789abcdef', substr(walk.key, walk.depth, 1)) - 1), 22), \
         walk.key, walk.depth + 1 \
       FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id WHERE substr(n.node, 1, 1) = 'I' \
     ), found(root, key, event_id) AS ( \
       SELECT walk.root, walk.key, json_extract(n.node, '$.\"' || walk.key || '\"') FROM walk \
       JOIN state_nodes AS n ON n.node_id = walk.node_id WHERE substr(n.node, 1, 1) = '{' \
     ) SELECT ",
    seen_columns!(),
    ", found.root, found.key FROM found JOIN events AS e ON e.event_id = found.event_id ",
    seen_joins!()
);

/// Walks all nodes under the roots in ?1, a JSON list, to the entries of their leaves.
macro_rules! entries {
    () => {
        "WITH RECURSIVE walk(root, node_id) AS ( \
           SELECT value, value FROM json_each(?1) \
           UNION \
           SELECT walk.root, substr(n.node, 2 + 22 * slot.value, 22) \
           FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id AND substr(n.node, 1, 1) = 'I', \
             json_each('[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]') AS slot \
         ), leaves(root, node) AS ( \
           SELECT walk.root, n.node FROM walk JOIN state_nodes AS n ON n.node_id = walk.node_id \
           WHERE substr(n.node, 1, 1) = '{' \
         )"
    };
}

const WHOLE: &str = concat!(
    entries!(),
    " SELECT ",
    seen_columns!(),
    ", leaves.root FROM leaves, json_each(leaves.node) AS entry JOIN events AS e ON e.event_id = entry.value ",
    seen_joins!()
);

const MEMBERS: &str = concat!(
    entries!(),
    ", member(root, user_id, membership, event_nid) AS ( \
       SELECT leaves.root, e.state_key, json_extract(e.json, '$.content.membership'), e.event_nid \
       FROM leaves, json_each(leaves.node) AS entry JOIN events AS e ON e.event_id = entry.value \
       WHERE e.event_type = 'm.room.member' \
     ), ranked(root, membership, user_id, total, rank) AS ( \
       SELECT root, membership, user_id, count(*) OVER (PARTITION BY root, membership), \
         row_number() OVER (PARTITION BY root, membership ORDER BY event_nid) FROM member \
     ) SELECT root, membership, total, user_id FROM ranked WHERE rank <= 6 ORDER BY root, membership, rank"
);

/// Walks two snapshots side by side, past what they share. Pairs of roots, as a JSON list, in ?1. A subtree that is a
/// leaf in one and an inner node in the other is paired with each of the other's children.
const CHANGES: &str = concat!(
    "WITH RECURSIVE walk(old_root, new_root, old, new) AS ( \
       SELECT value ->> 0, value ->> 1, value ->> 0, value ->> 1 FROM json_each(?1) \
       UNION \
       SELECT w.old_root, w.new_root, \
         CASE WHEN substr(o.node, 1, 1) = 'I' THEN substr(o.node, 2 + 22 * slot.value, 22) ELSE w.old END AS old_child, \
         CASE WHEN substr(n.node, 1, 1) = 'I' THEN substr(n.node, 2 + 22 * slot.value, 22) ELSE w.new END AS new_child \
       FROM walk AS w LEFT JOIN state_nodes AS o ON o.node_id = w.old LEFT JOIN state_nodes AS n ON n.node_id = w.new, \
         json_each('[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]') AS slot \
       WHERE (substr(o.node, 1, 1) = 'I' OR substr(n.node, 1, 1) = 'I') AND old_child <> new_child \
     ), old_leaves(old_root, new_root, node) AS ( \
       SELECT w.old_root, w.new_root, n.node FROM walk AS w JOIN state_nodes AS n ON n.node_id = w.old \
       WHERE substr(n.node, 1, 1) = '{' \
     ), new_leaves(old_root, new_root, node) AS ( \
       SELECT w.old_root, w.new_root, n.node FROM walk AS w JOIN state_nodes AS n ON n.node_id = w.new \
       WHERE substr(n.node, 1, 1) = '{' \
     ), changed(old_root, new_root, event_id) AS ( \
       SELECT old_root, new_root, entry.value FROM new_leaves, json_each(new_leaves.node) AS entry \
       EXCEPT \
       SELECT old_root, new_root, entry.value FROM old_leaves, json_each(old_leaves.node) AS entry \
     ) SELECT ",
    seen_columns!(),
    ", changed.old_root, changed.new_root FROM changed JOIN events AS e ON e.event_id = changed.event_id ",
    seen_joins!()
);

/// How many columns [`seen_columns`] has.
const SEEN: usize = SeenEvent::COLUMNS;

impl StateReads {
    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.at.is_empty() && self.whole.is_empty() && self.changes.is_empty() && self.members.is_empty()
    }
}

impl StateFound {
    /// The event at `key` of `root`.
    pub fn at(&self, root: NodeId, key: StateKeyHash) -> Option<&SeenEvent> {
        self.at.get(&(root, key))
    }

    /// All events of `root`.
    pub fn whole(&self, root: NodeId) -> &[SeenEvent] {
        self.whole.get(&root).map_or(&[], Vec::as_slice)
    }

    /// The events of `new` that are not in `old`.
    pub fn changes(&self, old: NodeId, new: NodeId) -> &[SeenEvent] {
        self.changes.get(&(old, new)).map_or(&[], Vec::as_slice)
    }

    /// Who is in the room by `root`.
    pub fn members(&self, root: NodeId) -> &[Members] {
        self.members.get(&root).map_or(&[], Vec::as_slice)
    }
}

impl Store {
    /// Reads what is wanted of snapshots, in one round trip; none where nothing is wanted.
    ///
    /// # Errors
    /// As the database says.
    pub async fn read_states(&self, reads: &StateReads) -> Result<StateFound, DatabaseError> {
        let mut found = StateFound::default();
        if reads.is_empty() {
            return Ok(found);
        }
        let at = json_lists(reads.at.iter().map(|(root, key)| json!([root.to_string(), key.to_string()]).to_string()));
        let at_lists = at.len();
        let changes: Vec<_> =
            reads.changes.iter().map(|(old, new)| json!([old.to_string(), new.to_string()])).collect();
        let mut statements: Vec<Statement> = at.into_iter().map(|list| Statement::new(AT, [list.into()])).collect();
        statements.extend([
            Statement::new(WHOLE, [roots(&reads.whole).into()]),
            Statement::new(CHANGES, [json!(changes).to_string().into()]),
            Statement::new(MEMBERS, [roots(&reads.members).into()]),
        ]);
        let mut answers = self.batch(statements).await?.into_iter();
        for row in answers.by_ref().take(at_lists).flatten() {
            let key = StateKeyHash::parse(row.text(SEEN + 1)?)
                .ok_or_else(|| DatabaseError::Shape("a state key that is no hash".to_owned()))?;
            found.at.insert((node_id(&row, SEEN)?, key), SeenEvent::of_row(&row)?);
        }
        let mut next = || -> Rows { answers.next().unwrap_or_default() };
        for row in next() {
            found.whole.entry(node_id(&row, SEEN)?).or_default().push(SeenEvent::of_row(&row)?);
        }
        for row in next() {
            let pair = (node_id(&row, SEEN)?, node_id(&row, SEEN + 1)?);
            found.changes.entry(pair).or_default().push(SeenEvent::of_row(&row)?);
        }
        for row in next() {
            let groups = found.members.entry(node_id(&row, 0)?).or_default();
            let membership = row.optional_text(1)?.unwrap_or("leave");
            if groups.last().is_none_or(|group| group.membership != membership) {
                groups.push(Members { membership: membership.to_owned(), count: row.integer(2)?, first: Vec::new() });
            }
            if let Some(group) = groups.last_mut() {
                group.first.push(row.text(3)?.to_owned());
            }
        }
        Ok(found)
    }
}

fn roots(roots: &[NodeId]) -> String {
    let roots: Vec<String> = roots.iter().map(NodeId::to_string).collect();
    json_list(roots.iter().map(String::as_str))
}

fn node_id(row: &Row, column: usize) -> Result<NodeId, DatabaseError> {
    NodeId::parse(row.text(column)?).ok_or_else(|| DatabaseError::Shape("a state root that is no node ID".to_owned()))
}
