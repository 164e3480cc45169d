//! What is told of the events that relate to others, with those: the newest event of a thread and how many there are, the newest
//! replacement, references.
//!
//! It is read in the batch that reads what decides who may see the events ([`Store::read_states_and_bundles`]). Where nothing
//! relates to them, that is a look at the index for each event and no call more.

use std::collections::HashSet;

use serde_json::json;

use super::{
    Store, json_lists,
    positions::TimelinePos,
    relations::ignored,
    snapshots::{StateFound, StateReads},
    timeline::{SeenEvent, TimelineEvent, root, seen_columns, seen_joins},
};
use crate::{
    matrix::{identifiers::RoomId, relation::Relation, state_trie::NodeId},
    platform::{DatabaseError, Rows, SqlValue, Statement},
};

/// How many references to an event are told.
const MAX_REFERENCES: i64 = 100;
/// How long the events are together that are told with others, in characters. What is more is left out.
const MAX_LENGTH: i64 = 4_000_000;

/// An event whose relations are told with it.
#[derive(Debug, Clone)]
pub struct Parent<'e> {
    room_id: &'e RoomId,
    event: &'e TimelineEvent,
    last: TimelinePos,
}

impl<'e> Parent<'e> {
    /// An event that is shown to somebody who sees its room up to the position `last`. None for a state event, of which no relations
    /// are told.
    pub fn of(room_id: &'e RoomId, event: &'e TimelineEvent, last: TimelinePos) -> Option<Self> {
        event.seen.event.state_key().is_none().then_some(Self { room_id, event, last })
    }

    fn row(&self) -> String {
        let seen = &self.event.seen;
        let event = &seen.event;
        let is_edit = Relation::of(event).is_some_and(|of| of.rel_type == "m.replace");
        let can_be_replaced = i64::from(!is_edit && seen.redaction.is_none());
        let (id, sender, kind) = (event.event_id().as_str(), event.sender().as_str(), event.event_type());
        json!([self.room_id.as_str(), id, self.last, sender, kind, can_be_replaced]).to_string()
    }
}

/// What relates to events that are shown.
#[derive(Debug, Default)]
pub struct BundlesFound {
    /// Those of their rooms that restrict their history, or did.
    pub restricted: HashSet<String>,
    /// The newest replacement of each event, and the newest event of each thread.
    pub newest: Vec<Newest>,
    /// How many events each thread has: in a room that restricts its history, those with the same state before them.
    pub counts: Vec<Count>,
    /// References.
    pub references: Vec<Reference>,
}

/// The newest of the events that relate to one.
#[derive(Debug)]
pub struct Newest {
    /// That one.
    pub parent: String,
    /// Whether this is an event of a thread; else it is a replacement.
    pub in_thread: bool,
    /// The event.
    pub event: TimelineEvent,
    /// Its room.
    pub room_id: RoomId,
}

/// How many events a thread has.
#[derive(Debug)]
pub struct Count {
    /// The event that it begins with.
    pub root: String,
    /// The state before them, in a room that restricts its history.
    pub state_before: Option<NodeId>,
    /// How many.
    pub count: i64,
    /// Whether one is the reader's.
    pub participated: bool,
    /// The position of the last of them.
    pub last: TimelinePos,
    /// The room.
    pub room_id: String,
}

/// An event that refers to another one.
#[derive(Debug)]
pub struct Reference {
    /// That one.
    pub parent: String,
    /// The event.
    pub event_id: String,
    /// The state before it.
    pub state_before: Option<NodeId>,
    /// Its position.
    pub pos: TimelinePos,
    /// The room.
    pub room_id: String,
}

impl BundlesFound {
    /// Whether nothing relates to any of the events.
    pub fn is_empty(&self) -> bool {
        self.newest.is_empty() && self.counts.is_empty() && self.references.is_empty()
    }
}

/// The rooms of the list ?1 that restrict their history, or did.
const RESTRICTED: &str = "\
    SELECT h.room_id FROM (SELECT DISTINCT value ->> 0 AS room_id FROM json_each(?1)) AS room \
      CROSS JOIN restricted_history AS h ON h.room_id = room.room_id";

/// ?1: a list of [room, event, last position, sender, type, whether it can be replaced], ?2 user, ?3 device, ?4 how long together.
/// A replacement is of the same sender and type.
const NEWEST: &str = concat!(
    "WITH ",
    ignored!("?2"),
    ", picked(room_id, rel_type, parent, pos) AS ( \
       SELECT p.value ->> 0, 'm.thread', p.value ->> 1, (SELECT r.pos FROM relations AS r WHERE r.room_id = p.value ->> 0 \
         AND r.rel_type = 'm.thread' AND r.parent = p.value ->> 1 AND r.pos <= p.value ->> 2 \
         AND r.sender NOT IN (SELECT user_id FROM ignored) ORDER BY r.pos DESC LIMIT 1) FROM json_each(?1) AS p \
       UNION ALL \
       SELECT p.value ->> 0, 'm.replace', p.value ->> 1, (SELECT r.pos FROM relations AS r \
         CROSS JOIN events AS x ON x.event_nid = r.event_nid WHERE r.room_id = p.value ->> 0 AND r.rel_type = 'm.replace' \
         AND r.parent = p.value ->> 1 AND r.pos <= p.value ->> 2 AND r.sender = p.value ->> 3 AND r.event_type = p.value ->> 4 \
         AND r.sender NOT IN (SELECT user_id FROM ignored) AND x.state_key IS NULL \
         AND (x.event_type = 'm.room.encrypted' OR json_type(x.json, '$.content.\"m.new_content\"') = 'object') \
         ORDER BY x.origin_server_ts DESC, x.event_id DESC LIMIT 1) FROM json_each(?1) AS p WHERE p.value ->> 5 \
     ), sized(room_id, rel_type, parent, pos, event_nid, length) AS ( \
       SELECT picked.room_id, picked.rel_type, picked.parent, r.pos, r.event_nid, \
         SUM(length(e.json)) OVER (ORDER BY picked.room_id, picked.parent, picked.rel_type) FROM picked \
         CROSS JOIN relations AS r ON r.room_id = picked.room_id AND r.rel_type = picked.rel_type \
           AND r.parent = picked.parent AND r.pos = picked.pos CROSS JOIN events AS e ON e.event_nid = r.event_nid \
     ) SELECT ",
    seen_columns!(),
    ", sized.pos, txn.txn_id, sized.parent, sized.rel_type = 'm.thread', sized.room_id \
     FROM sized CROSS JOIN events AS e ON e.event_nid = sized.event_nid ",
    seen_joins!(),
    "LEFT JOIN client_transactions AS txn ON txn.event_id = e.event_id AND txn.user_id = ?2 AND txn.device_id = ?3 \
     WHERE sized.length <= ?4"
);

/// ?1 as [`NEWEST`], ?2 user. Without what ignored users have sent.
const COUNTS: &str = concat!(
    "WITH ",
    ignored!("?2"),
    " SELECT p.value ->> 1, e.state_before, count(*), MAX(r.sender = ?2), MAX(r.pos), p.value ->> 0 FROM json_each(?1) AS p \
       CROSS JOIN relations AS r ON r.room_id = p.value ->> 0 AND r.rel_type = 'm.thread' AND r.parent = p.value ->> 1 \
         AND r.pos <= p.value ->> 2 \
       LEFT JOIN events AS e ON e.event_nid = r.event_nid \
         AND EXISTS (SELECT 1 FROM restricted_history AS h WHERE h.room_id = r.room_id) \
     WHERE r.sender NOT IN (SELECT user_id FROM ignored) GROUP BY p.key, e.state_before"
);

/// ?1 as [`NEWEST`], ?2 user, ?3 how many but one. The first that came.
const REFERENCES: &str = concat!(
    "WITH ",
    ignored!("?2"),
    " SELECT p.value ->> 1, e.event_id, e.state_before, r.pos, p.value ->> 0 FROM json_each(?1) AS p \
       CROSS JOIN relations AS r ON r.room_id = p.value ->> 0 AND r.rel_type = 'm.reference' AND r.parent = p.value ->> 1 \
         AND r.pos <= MIN(p.value ->> 2, COALESCE((SELECT x.pos FROM relations AS x WHERE x.room_id = p.value ->> 0 \
           AND x.rel_type = 'm.reference' AND x.parent = p.value ->> 1 ORDER BY x.pos LIMIT 1 OFFSET ?3), p.value ->> 2)) \
       CROSS JOIN events AS e ON e.event_nid = r.event_nid \
     WHERE r.sender NOT IN (SELECT user_id FROM ignored) ORDER BY p.key, r.pos"
);

/// Asks for what relates to events. [`read`] reads the answers, as many for each list.
fn ask(parents: &[Parent<'_>], (user_id, device_id): (&str, &str)) -> Vec<Statement> {
    let each = |list: String| {
        let with = |more: &[SqlValue]| -> Vec<SqlValue> {
            [SqlValue::from(list.as_str()), user_id.into()].into_iter().chain(more.iter().cloned()).collect()
        };
        [
            Statement::new(RESTRICTED, [list.as_str().into()]),
            Statement::new(NEWEST, with(&[device_id.into(), MAX_LENGTH.into()])),
            Statement::new(COUNTS, with(&[])),
            Statement::new(REFERENCES, with(&[SqlValue::from(MAX_REFERENCES - 1)])),
        ]
    };
    json_lists(parents.iter().map(Parent::row)).into_iter().flat_map(each).collect()
}

fn read(answers: &[Rows]) -> Result<BundlesFound, DatabaseError> {
    let mut found = BundlesFound::default();
    for list in answers.chunks(4) {
        let [restricted, newest, counts, references] = list else {
            return Err(DatabaseError::Shape("too few answers".to_owned()));
        };
        for row in restricted {
            found.restricted.insert(row.text(0)?.to_owned());
        }
        const MORE: usize = SeenEvent::COLUMNS + 2;
        for row in newest {
            let room_id = RoomId::parse(row.text(MORE + 2)?);
            found.newest.push(Newest {
                parent: row.text(MORE)?.to_owned(),
                in_thread: row.integer(MORE + 1)? != 0,
                event: TimelineEvent::of_row(row)?,
                room_id: room_id.map_err(|_| DatabaseError::Shape("a relation in no room".to_owned()))?,
            });
        }
        for row in counts {
            found.counts.push(Count {
                root: row.text(0)?.to_owned(),
                state_before: root(row, 1)?,
                count: row.integer(2)?,
                participated: row.integer(3)? != 0,
                last: TimelinePos::read(row, 4)?,
                room_id: row.text(5)?.to_owned(),
            });
        }
        for row in references {
            found.references.push(Reference {
                parent: row.text(0)?.to_owned(),
                event_id: row.text(1)?.to_owned(),
                state_before: root(row, 2)?,
                pos: TimelinePos::read(row, 3)?,
                room_id: row.text(4)?.to_owned(),
            });
        }
    }
    Ok(found)
}

impl Store {
    /// Reads what is wanted of snapshots, as [`Store::read_states`], and in the same round trip what relates to `parents`, for this
    /// user and device.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn read_states_and_bundles(
        &self,
        reads: &StateReads,
        parents: &[Parent<'_>],
        reader: (&str, &str),
    ) -> Result<(StateFound, BundlesFound), DatabaseError> {
        let mut statements = reads.statements();
        let of_states = statements.len();
        statements.extend(ask(parents, reader));
        if statements.is_empty() {
            return Ok(Default::default());
        }
        let mut answers = self.batch(statements).await?;
        let bundles = read(&answers.split_off(of_states.min(answers.len())))?;
        Ok((reads.found(answers)?, bundles))
    }
}
