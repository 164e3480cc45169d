//! Reading state snapshots for clients: of any number of rooms, in one round trip.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::{
    Answers, Store, json_list, json_lists, positions,
    state_sql::{entries, found, pairs, paths, slots},
    timeline::{SeenEvent, seen_columns, seen_joins},
};
use crate::{
    matrix::{
        identifiers::UserId,
        state_content::Membership,
        state_trie::{NodeId, StateKeyHash},
    },
    platform::{DatabaseError, Row, Rows, SqlValue, Statement},
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
    /// What of these is about members, or says that the room is encrypted; without the events themselves.
    pub member_changes: Vec<(NodeId, NodeId)>,
    /// Of `but_members` and of `changes`, each, no more than this many characters of events are read, in the order in which they
    /// are wanted; but one event in any case.
    pub most: Option<i64>,
    /// Where the one before was cut short: of this snapshot only the events after this one are read.
    pub after: Option<StateCut>,
    /// Some of those who are in the room: what a few of the snapshot's leaves hold, in a room of some hundred members all.
    pub members: Vec<NodeId>,
    /// As `members`, with their membership events, of which no more than `most` characters are read: whose do not fit are left out.
    pub member_events: Vec<NodeId>,
}

/// Where the reading of a snapshot's events was cut short: they are read in the order of their IDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateCut {
    /// The root of the snapshot.
    pub root: NodeId,
    /// The last event that was read, by its ID.
    pub event_id: String,
}

/// A membership, or the start of encryption, among what differs between two snapshots.
#[derive(Debug, Clone)]
pub struct MemberChange {
    /// `m.room.member` or `m.room.encryption`.
    pub event_type: String,
    /// The state key: of a membership, whose it is.
    pub state_key: String,
    /// The membership, if it is one.
    pub membership: Option<Membership>,
}

/// What was read; nothing where the snapshot has nothing.
#[derive(Debug, Default)]
pub struct StateFound {
    at: HashMap<(NodeId, StateKeyHash), SeenEvent>,
    whole: HashMap<NodeId, Vec<SeenEvent>>,
    but_members: HashMap<NodeId, Vec<SeenEvent>>,
    changes: HashMap<(NodeId, NodeId), Vec<SeenEvent>>,
    member_changes: HashMap<(NodeId, NodeId), Vec<MemberChange>>,
    cut: Vec<StateCut>,
    members: HashMap<NodeId, Vec<Members>>,
}

/// Members of a room that share a membership.
#[derive(Debug, Clone)]
pub struct Members {
    /// Which.
    pub membership: Membership,
    /// The first six that were found.
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

/// All events of the roots in ?1, a JSON list, each with its root.
const WHOLE: &str = concat!(
    "WITH RECURSIVE ",
    entries!("snapshot, ", "SELECT value, value FROM json_each(?1)"),
    " SELECT ",
    seen_columns!(),
    ", entry.snapshot FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id ",
    seen_joins!()
);

/// All events but those of members, of [root, the ID after which] in ?1, a JSON list; ?2 characters of them.
const BUT_MEMBERS: &str = concat!(
    "WITH RECURSIVE ",
    entries!("nth, snapshot, after, ", "SELECT key, value ->> 0, value ->> 1, value ->> 0 FROM json_each(?1)"),
    ", wanted(nth, snapshot, event_nid, bytes) AS ( \
       SELECT entry.nth, entry.snapshot, e.event_nid, SUM(length(e.json)) OVER (ORDER BY entry.nth, e.event_id) \
       FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id \
       WHERE e.event_type <> 'm.room.member' AND e.event_id > entry.after \
     ) SELECT ",
    seen_columns!(),
    ", wanted.snapshot, (SELECT MAX(bytes) FROM wanted) > ?2 AS is_cut \
      FROM wanted CROSS JOIN events AS e ON e.event_nid = wanted.event_nid ",
    seen_joins!(),
    " WHERE wanted.bytes <= ?2 OR wanted.bytes = (SELECT MIN(bytes) FROM wanted) ORDER BY wanted.nth, e.event_id"
);

/// How long the events of each of the roots in ?1 are together, in bytes.
const SIZES: &str = concat!(
    "WITH RECURSIVE ",
    entries!("snapshot, ", "SELECT value, value FROM json_each(?1)"),
    " SELECT entry.snapshot, SUM(octet_length(e.json)) AS size \
      FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id GROUP BY entry.snapshot"
);

/// `ranked`: some members of the roots in ?1, a JSON list: each child of a root is followed down to its first leaf.
macro_rules! ranked_members {
    () => {
        concat!(
            slots!(),
            ", tree(snapshot, node_id, level) AS ( \
               SELECT value, value, 0 FROM json_each(?1) \
               UNION ALL \
               SELECT snapshot, substr(node, slot.at, 22), level + 1 FROM tree CROSS JOIN state_nodes USING (node_id) CROSS JOIN slot \
               WHERE substr(node, 1, 1) = 'I' AND substr(node, slot.at, 1) <> '.' \
                 AND (level = 0 OR slot.at = (SELECT min(child.at) FROM slot AS child WHERE substr(node, child.at, 1) <> '.')) \
             ), entry(snapshot, event_id) AS ( \
               SELECT snapshot, item.value FROM tree CROSS JOIN state_nodes USING (node_id) CROSS JOIN json_each(node) AS item \
               WHERE substr(node, 1, 1) = '{' \
             ), member(snapshot, user_id, membership, event_nid) AS ( \
               SELECT entry.snapshot, e.state_key, json_extract(e.json, '$.content.membership'), e.event_nid \
               FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id WHERE e.event_type = 'm.room.member' \
             ), ranked(snapshot, membership, user_id, event_nid, rank) AS ( \
               SELECT snapshot, membership, user_id, event_nid, \
                 row_number() OVER (PARTITION BY snapshot, membership ORDER BY event_nid) \
               FROM member )"
        )
    };
}

const MEMBERS: &str = concat!(
    "WITH RECURSIVE ",
    ranked_members!(),
    " SELECT snapshot, membership, user_id FROM ranked WHERE rank <= 6 ORDER BY snapshot, membership, rank"
);

/// ?2: how many characters of events.
const MEMBER_EVENTS: &str = concat!(
    "WITH RECURSIVE ",
    ranked_members!(),
    ", wanted(snapshot, membership, event_nid, rank, bytes) AS ( \
       SELECT ranked.snapshot, ranked.membership, ranked.event_nid, ranked.rank, \
         SUM(length(e.json)) OVER (ORDER BY ranked.snapshot, ranked.membership, ranked.rank) \
       FROM ranked CROSS JOIN events AS e ON e.event_nid = ranked.event_nid WHERE ranked.rank <= 6 \
     ) SELECT ",
    seen_columns!(),
    ", wanted.snapshot, wanted.membership, e.state_key \
      FROM wanted CROSS JOIN events AS e ON e.event_nid = wanted.event_nid ",
    seen_joins!(),
    " WHERE wanted.bytes <= ?2 ORDER BY wanted.snapshot, wanted.membership, wanted.rank"
);

/// `changed`: what the second of two snapshots has and the first has not. Lists of two roots and the ID after which, in ?1.
macro_rules! changed {
    () => {
        concat!(
            pairs!(
                "nth, old, new, after, ",
                "SELECT key, value ->> 0, value ->> 1, value ->> 2, value ->> 0, value ->> 1 FROM json_each(?1)"
            ),
            ", changed(nth, old, new, after, event_id) AS ( \
               SELECT nth, old, new, after, item.value \
               FROM pair CROSS JOIN state_nodes ON node_id = b CROSS JOIN json_each(node) AS item \
               WHERE substr(node, 1, 1) = '{' \
               EXCEPT \
               SELECT nth, old, new, after, item.value \
               FROM pair CROSS JOIN state_nodes ON node_id = a CROSS JOIN json_each(node) AS item \
               WHERE substr(node, 1, 1) = '{' )"
        )
    };
}

/// ?2: how many characters of events.
const CHANGES: &str = concat!(
    "WITH RECURSIVE ",
    changed!(),
    ", wanted(nth, old, new, event_nid, bytes) AS ( \
       SELECT changed.nth, changed.old, changed.new, e.event_nid, SUM(length(e.json)) OVER (ORDER BY changed.nth, e.event_id) \
       FROM changed CROSS JOIN events AS e ON e.event_id = changed.event_id WHERE e.event_id > changed.after \
     ) SELECT ",
    seen_columns!(),
    ", wanted.old, wanted.new, (SELECT MAX(bytes) FROM wanted) > ?2 AS is_cut \
      FROM wanted CROSS JOIN events AS e ON e.event_nid = wanted.event_nid ",
    seen_joins!(),
    " WHERE wanted.bytes <= ?2 OR wanted.bytes = (SELECT MIN(bytes) FROM wanted) ORDER BY wanted.nth, e.event_id"
);

const MEMBER_CHANGES: &str = concat!(
    "WITH RECURSIVE ",
    changed!(),
    " SELECT changed.old, changed.new, e.event_type, e.state_key, e.json ->> '$.content.membership' AS membership \
      FROM changed CROSS JOIN events AS e ON e.event_id = changed.event_id \
      WHERE e.event_type = 'm.room.member' OR e.event_type = 'm.room.encryption' AND e.state_key = ''"
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
            && self.member_changes.is_empty()
            && self.members.is_empty()
            && self.member_events.is_empty()
    }

    /// The statements that read it; [`StateReads::found`] reads their answers.
    pub(super) fn statements(&self) -> Vec<Statement> {
        let mut statements = ask_at(self.at.iter().copied());
        let others = self.others().into_iter().filter(|(_, wanted, _)| *wanted);
        statements.extend(others.map(|(sql, _, parameters)| Statement::new(sql, parameters)));
        statements
    }

    /// What is asked for besides events at keys: the statement, whether it is asked, and its parameters.
    fn others(&self) -> [(&'static str, bool, Vec<SqlValue>); 6] {
        let after = |root: &NodeId| match &self.after {
            Some(cut) if cut.root == *root => cut.event_id.as_str(),
            _ => "",
        };
        let most: SqlValue = self.most.unwrap_or(positions::MAX).into();
        let but_members: Vec<_> =
            distinct(&self.but_members).map(|root| json!([root.to_string(), after(root)])).collect();
        let pair = |old: &NodeId, new: &NodeId, after| json!([old.to_string(), new.to_string(), after]);
        let changes: Vec<_> = distinct(&self.changes).map(|(old, new)| pair(old, new, after(new))).collect();
        let member_changes: Vec<_> = distinct(&self.member_changes).map(|(old, new)| pair(old, new, "")).collect();
        let bounded = |list: &[Value]| vec![json!(list).to_string().into(), most.clone()];
        [
            (WHOLE, !self.whole.is_empty(), vec![roots(&self.whole).into()]),
            (BUT_MEMBERS, !but_members.is_empty(), bounded(&but_members)),
            (CHANGES, !changes.is_empty(), bounded(&changes)),
            (MEMBER_CHANGES, !member_changes.is_empty(), vec![json!(member_changes).to_string().into()]),
            (MEMBERS, !self.members.is_empty(), vec![roots(&self.members).into()]),
            (MEMBER_EVENTS, !self.member_events.is_empty(), vec![roots(&self.member_events).into(), most]),
        ]
    }

    /// Reads the answers to [`StateReads::statements`].
    pub(super) fn found(&self, answers: Vec<Rows>) -> Result<StateFound, DatabaseError> {
        let mut found = StateFound::default();
        let asked = self.others().map(|(_, wanted, _)| wanted);
        let at_lists = answers.len().saturating_sub(asked.iter().filter(|wanted| **wanted).count());
        let mut answers = Answers::new(answers);
        for _ in 0..at_lists {
            found.read_at(&answers.rows()?)?;
        }
        let mut next = |asked: bool| if asked { answers.rows() } else { Ok(Rows::new()) };
        let [whole, but_members, changes, member_changes, members, member_events] = asked;
        for row in next(whole)? {
            found.whole.entry(node_id(&row, SEEN)?).or_default().push(SeenEvent::of_row(&row)?);
        }
        let but_members = next(but_members)?;
        found.cut.extend(cut(&but_members, SEEN)?);
        for row in but_members {
            found.but_members.entry(node_id(&row, SEEN)?).or_default().push(SeenEvent::of_row(&row)?);
        }
        let changes = next(changes)?;
        found.cut.extend(cut(&changes, SEEN + 1)?);
        for row in changes {
            let pair = (node_id(&row, SEEN)?, node_id(&row, SEEN + 1)?);
            found.changes.entry(pair).or_default().push(SeenEvent::of_row(&row)?);
        }
        for row in next(member_changes)? {
            let pair = (node_id(&row, 0)?, node_id(&row, 1)?);
            found.member_changes.entry(pair).or_default().push(MemberChange {
                event_type: row.text(2)?.to_owned(),
                state_key: row.text(3)?.to_owned(),
                membership: row.optional_text(4)?.and_then(Membership::parse),
            });
        }
        for row in next(members)? {
            found.read_member(&row, 0)?;
        }
        for row in next(member_events)? {
            found.read_member(&row, SEEN)?;
            let key = StateKeyHash::member(row.text(SEEN + 2)?);
            found.at.insert((node_id(&row, SEEN)?, key), SeenEvent::of_row(&row)?);
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
        self.member_changes.extend(other.member_changes);
        self.cut.extend(other.cut);
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

    /// Takes in a root, a membership and a user of `row`, from this column on.
    fn read_member(&mut self, row: &Row, column: usize) -> Result<(), DatabaseError> {
        let user = row.text(column + 2)?;
        if !UserId::is_valid(user) {
            return Ok(());
        }
        let groups = self.members.entry(node_id(row, column)?).or_default();
        let membership = row.optional_text(column + 1)?.and_then(Membership::parse).unwrap_or(Membership::Leave);
        if groups.last().is_none_or(|group| group.membership != membership) {
            groups.push(Members { membership, first: Vec::new() });
        }
        if let Some(group) = groups.last_mut() {
            group.first.push(user.to_owned());
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

    /// What of these is about members, or says that the room is encrypted.
    pub fn member_changes(&self, old: NodeId, new: NodeId) -> &[MemberChange] {
        self.member_changes.get(&(old, new)).map_or(&[], Vec::as_slice)
    }

    /// Where reading was cut short: nothing was read of what was wanted later.
    pub fn cut(&self) -> &[StateCut] {
        &self.cut
    }

    /// Some of those who are in the room by `root`.
    pub fn members(&self, root: NodeId) -> &[Members] {
        self.members.get(&root).map_or(&[], Vec::as_slice)
    }
}

impl Store {
    /// How long the events of snapshots are together, in bytes; empty ones are left out. No round trip for none.
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

/// Where these rows end, if there were more; the root is in this column, and behind it whether there were.
fn cut(rows: &Rows, root: usize) -> Result<Option<StateCut>, DatabaseError> {
    let Some(last) = rows.last() else { return Ok(None) };
    let cut = || Ok(StateCut { root: node_id(last, root)?, event_id: last.text(0)?.to_owned() });
    (last.integer(root + 1)? != 0).then(cut).transpose()
}

/// Each once, in the order in which they come.
fn distinct<T: Copy + Eq + std::hash::Hash>(items: &[T]) -> impl Iterator<Item = &T> {
    let mut seen = HashSet::new();
    items.iter().filter(move |item| seen.insert(**item))
}

fn roots(roots: &[NodeId]) -> String {
    let roots: Vec<String> = roots.iter().map(NodeId::to_string).collect();
    json_list(roots.iter().map(String::as_str))
}

fn node_id(row: &Row, column: usize) -> Result<NodeId, DatabaseError> {
    NodeId::parse(row.text(column)?)
        .ok_or_else(|| DatabaseError::Shape("a state root that is not a node ID".to_owned()))
}
