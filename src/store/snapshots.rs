//! Reading state snapshots for clients: of any number of rooms, in one round trip.

use std::collections::HashMap;

use serde_json::json;

use super::{
    Store, json_list, json_lists,
    state_sql::{entries, found, pairs, paths},
    timeline::{SeenEvent, seen_columns, seen_joins},
};
use crate::{
    matrix::{
        state_content::Membership,
        state_trie::{NodeId, StateKeyHash},
    },
    platform::{DatabaseError, Row, Rows, Statement},
};

/// What to read of snapshots.
#[derive(Debug, Default)]
pub struct StateReads {
    /// The event at one key of a snapshot.
    pub at: Vec<(NodeId, StateKeyHash)>,
    /// All events of a snapshot.
    pub whole: Vec<NodeId>,
    /// All events of a snapshot but those of members.
    pub but_members: Vec<NodeId>,
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
    but_members: HashMap<NodeId, Vec<SeenEvent>>,
    changes: HashMap<(NodeId, NodeId), Vec<SeenEvent>>,
    members: HashMap<NodeId, Vec<Members>>,
}

/// The members of a room that share a membership.
#[derive(Debug, Clone)]
pub struct Members {
    /// Which.
    pub membership: Membership,
    /// How many there are.
    pub count: i64,
    /// The first six of them.
    pub first: Vec<String>,
}

/// Pairs of root and key, as a JSON list, in ?1.
const AT: &str = concat!(
    "WITH RECURSIVE ",
    paths!("snapshot, ", "SELECT value ->> 0, value ->> 0, value ->> 1, 0 FROM json_each(?1)"),
    ", ",
    found!("snapshot, key, "),
    " SELECT ",
    seen_columns!(),
    ", found.snapshot, found.key FROM found CROSS JOIN events AS e ON e.event_id = found.event_id ",
    seen_joins!()
);

/// Events of the roots in ?1, a JSON list, each with its root.
macro_rules! events_of_roots {
    ($rest:literal) => {
        concat!(
            "WITH RECURSIVE ",
            $crate::store::state_sql::entries!("snapshot, ", "SELECT value, value FROM json_each(?1)"),
            " SELECT ",
            $crate::store::timeline::seen_columns!(),
            ", entry.snapshot FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id ",
            $crate::store::timeline::seen_joins!(),
            $rest
        )
    };
}
pub(super) use events_of_roots;

/// All of them.
const WHOLE: &str = events_of_roots!("");

/// All but those of members.
const BUT_MEMBERS: &str = events_of_roots!(" WHERE e.event_type <> 'm.room.member'");

/// How long the events of each of the roots in ?1 are together, in characters.
const SIZES: &str = concat!(
    "WITH RECURSIVE ",
    entries!("snapshot, ", "SELECT value, value FROM json_each(?1)"),
    " SELECT entry.snapshot, SUM(length(e.json)) AS size \
      FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id GROUP BY entry.snapshot"
);

const MEMBERS: &str = concat!(
    "WITH RECURSIVE ",
    entries!("snapshot, ", "SELECT value, value FROM json_each(?1)"),
    ", member(snapshot, user_id, membership, event_nid) AS ( \
       SELECT entry.snapshot, e.state_key, json_extract(e.json, '$.content.membership'), e.event_nid \
       FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id WHERE e.event_type = 'm.room.member' \
     ), ranked(snapshot, membership, user_id, total, rank) AS ( \
       SELECT snapshot, membership, user_id, count(*) OVER (PARTITION BY snapshot, membership), \
         row_number() OVER (PARTITION BY snapshot, membership ORDER BY event_nid) FROM member \
     ) SELECT snapshot, membership, total, user_id FROM ranked WHERE rank <= 6 ORDER BY snapshot, membership, rank"
);

/// The events of the second of two snapshots that are not in the first. Pairs of roots, as a JSON list, in ?1.
const CHANGES: &str = concat!(
    "WITH RECURSIVE ",
    pairs!("old, new, ", "SELECT value ->> 0, value ->> 1, value ->> 0, value ->> 1 FROM json_each(?1)"),
    ", changed(old, new, event_id) AS ( \
       SELECT old, new, item.value FROM pair CROSS JOIN state_nodes ON node_id = b CROSS JOIN json_each(node) AS item \
       WHERE substr(node, 1, 1) = '{' \
       EXCEPT \
       SELECT old, new, item.value FROM pair CROSS JOIN state_nodes ON node_id = a CROSS JOIN json_each(node) AS item \
       WHERE substr(node, 1, 1) = '{' \
     ) SELECT ",
    seen_columns!(),
    ", changed.old, changed.new FROM changed CROSS JOIN events AS e ON e.event_id = changed.event_id ",
    seen_joins!()
);

/// How many columns [`seen_columns`] has.
const SEEN: usize = SeenEvent::COLUMNS;

impl StateReads {
    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
            && self.whole.is_empty()
            && self.but_members.is_empty()
            && self.changes.is_empty()
            && self.members.is_empty()
    }

    /// The statements that read it; [`StateReads::found`] reads their answers.
    pub(super) fn statements(&self) -> Vec<Statement> {
        let mut statements = ask_at(self.at.iter().copied());
        let others = self.others().into_iter().filter(|(_, wanted, _)| *wanted);
        statements.extend(others.map(|(sql, _, list)| Statement::new(sql, [list.into()])));
        statements
    }

    /// What is asked for besides events at keys: the statement, whether it is asked, and its list.
    fn others(&self) -> [(&'static str, bool, String); 4] {
        let changes: Vec<_> = self.changes.iter().map(|(old, new)| json!([old.to_string(), new.to_string()])).collect();
        [
            (WHOLE, !self.whole.is_empty(), roots(&self.whole)),
            (BUT_MEMBERS, !self.but_members.is_empty(), roots(&self.but_members)),
            (CHANGES, !changes.is_empty(), json!(changes).to_string()),
            (MEMBERS, !self.members.is_empty(), roots(&self.members)),
        ]
    }

    /// Reads the answers to [`StateReads::statements`].
    pub(super) fn found(&self, answers: Vec<Rows>) -> Result<StateFound, DatabaseError> {
        let mut found = StateFound::default();
        let asked = self.others().map(|(_, wanted, _)| wanted);
        let at_lists = answers.len().saturating_sub(asked.iter().filter(|wanted| **wanted).count());
        let mut answers = answers.into_iter();
        for rows in answers.by_ref().take(at_lists) {
            found.read_at(&rows)?;
        }
        let mut next = |asked: bool| -> Rows { asked.then(|| answers.next()).flatten().unwrap_or_default() };
        let [whole, but_members, changes, members] = asked;
        for row in next(whole) {
            found.whole.entry(node_id(&row, SEEN)?).or_default().push(SeenEvent::of_row(&row)?);
        }
        for row in next(but_members) {
            found.but_members.entry(node_id(&row, SEEN)?).or_default().push(SeenEvent::of_row(&row)?);
        }
        for row in next(changes) {
            let pair = (node_id(&row, SEEN)?, node_id(&row, SEEN + 1)?);
            found.changes.entry(pair).or_default().push(SeenEvent::of_row(&row)?);
        }
        for row in next(members) {
            let groups = found.members.entry(node_id(&row, 0)?).or_default();
            let membership = row.optional_text(1)?.and_then(Membership::parse).unwrap_or(Membership::Leave);
            if groups.last().is_none_or(|group| group.membership != membership) {
                groups.push(Members { membership, count: row.integer(2)?, first: Vec::new() });
            }
            if let Some(group) = groups.last_mut() {
                group.first.push(row.text(3)?.to_owned());
            }
        }
        Ok(found)
    }
}

impl StateFound {
    /// What was read of other snapshots, too.
    pub fn extend(&mut self, other: Self) {
        self.at.extend(other.at);
        self.whole.extend(other.whole);
        self.but_members.extend(other.but_members);
        self.changes.extend(other.changes);
        self.members.extend(other.members);
    }

    /// The event at `key` of `root`.
    pub fn at(&self, root: NodeId, key: StateKeyHash) -> Option<&SeenEvent> {
        self.at.get(&(root, key))
    }

    /// Takes in the answer to a statement of [`ask_at`].
    pub(super) fn read_at(&mut self, rows: &Rows) -> Result<(), DatabaseError> {
        for row in rows {
            let key = StateKeyHash::parse(row.text(SEEN + 1)?)
                .ok_or_else(|| DatabaseError::Shape("a state key that is not a hash".to_owned()))?;
            self.at.insert((node_id(row, SEEN)?, key), SeenEvent::of_row(row)?);
        }
        Ok(())
    }

    /// All events of `root`.
    pub fn whole(&self, root: NodeId) -> &[SeenEvent] {
        self.whole.get(&root).map_or(&[], Vec::as_slice)
    }

    /// All events of `root` but those of members.
    pub fn but_members(&self, root: NodeId) -> &[SeenEvent] {
        self.but_members.get(&root).map_or(&[], Vec::as_slice)
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
    /// How long the events of snapshots are together, in characters; empty ones are left out. No round trip for none.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn state_sizes(&self, of: impl Iterator<Item = NodeId>) -> Result<HashMap<NodeId, i64>, DatabaseError> {
        let of: Vec<NodeId> = of.collect();
        if of.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = self.query(Statement::new(SIZES, [roots(&of).into()])).await?;
        rows.iter().map(|row| Ok((node_id(row, 0)?, row.integer(1)?))).collect()
    }

    /// Reads what is wanted of snapshots, in one round trip; none where nothing is wanted.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn read_states(&self, reads: &StateReads) -> Result<StateFound, DatabaseError> {
        if reads.is_empty() {
            return Ok(StateFound::default());
        }
        reads.found(self.batch(reads.statements()).await?)
    }
}

/// Asks for the event at one key of each snapshot.
pub(super) fn ask_at(at: impl Iterator<Item = (NodeId, StateKeyHash)>) -> Vec<Statement> {
    let lists = json_lists(at.map(|(root, key)| json!([root.to_string(), key.to_string()]).to_string())).into_iter();
    lists.map(|list| Statement::new(AT, [list.into()])).collect()
}

fn roots(roots: &[NodeId]) -> String {
    let roots: Vec<String> = roots.iter().map(NodeId::to_string).collect();
    json_list(roots.iter().map(String::as_str))
}

fn node_id(row: &Row, column: usize) -> Result<NodeId, DatabaseError> {
    NodeId::parse(row.text(column)?)
        .ok_or_else(|| DatabaseError::Shape("a state root that is not a node ID".to_owned()))
}
