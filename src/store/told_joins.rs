//! What a server is told of a room that it joins: the state before the join with its auth chain, whole or without its members.

use std::rc::Rc;

use super::{
    Answers, Store,
    answer_texts::{EventTexts, MAX_ANSWER, first_texts, texts_of_numbered},
    events::{auth_events_of, cited},
    json_list,
    remote_reads::{StateTexts, auth_chain, event_ids, first_texts_of},
    rooms::{SERVERS, server_names},
    state_sql::entries,
};
use crate::{
    admission::Reservation,
    matrix::{
        identifiers::{EventId, RoomId, ServerName},
        state_trie::NodeId,
    },
    platform::{DatabaseError, Row, Rows, Statement},
};

/// An event has more bytes than this, for its hash and a signature alone take so many: more events than fit are not looked at.
const LEAST_BYTES: usize = 256;
const MOST_EVENTS: usize = MAX_ANSWER / LEAST_BYTES;

/// As a `LIMIT`: all rows.
const ALL: i64 = -1;

/// The text of an event in a list, with its comma.
macro_rules! bytes {
    () => {
        "octet_length(e.json) + 1 AS bytes"
    };
}

/// How long the texts of the state ?1, a trie root, of the room ?2 are together; with those of its auth chain, where the state alone
/// has not ?4 bytes. Of either at most ?3 events are looked at.
const LENGTH: &str = concat!(
    "WITH RECURSIVE ",
    entries!("", "SELECT ?1"),
    ", ",
    auth_chain!("SELECT event_id, ?2 FROM entry"),
    ", of_state(bytes) AS ( SELECT COALESCE(SUM(bytes), 0) FROM ( SELECT ",
    bytes!(),
    " FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id AND e.room_id = ?2 LIMIT ?3 ) \
     ) SELECT bytes + CASE WHEN bytes < ?4 THEN ( SELECT COALESCE(SUM(bytes), 0) FROM ( SELECT ",
    bytes!(),
    " FROM chain CROSS JOIN events AS e ON e.event_id = chain.event_id AND e.room_id = chain.room_id LIMIT ?3 ) ) \
      ELSE 0 END AS bytes FROM of_state"
);

/// The events of the state ?1, a trie root, but those of members; and those of the members ?2, a JSON list of user IDs. At most ?3.
const WITHOUT_MEMBERS: &str = concat!(
    "WITH RECURSIVE ",
    entries!("", "SELECT ?1"),
    " SELECT e.event_id, ",
    bytes!(),
    " FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id \
      WHERE e.event_type <> 'm.room.member' OR e.state_key IN (SELECT value FROM json_each(?2)) LIMIT ?3"
);

/// In the room ?2, of the events ?1, a JSON list. At most ?3.
const AUTH_CHAIN: &str = concat!(
    "WITH RECURSIVE ",
    auth_chain!("SELECT value, ?2 FROM json_each(?1)"),
    " SELECT e.event_id, ",
    bytes!(),
    " FROM chain CROSS JOIN events AS e ON e.event_id = chain.event_id AND e.room_id = chain.room_id LIMIT ?3"
);

/// ?1: the root; ?2 is not used.
const STATE_TEXTS: &str = concat!("WITH RECURSIVE ", entries!("", "SELECT ?1"), first_texts_of!("entry"));

/// Of the state ?1, a trie root, and of the event ?2.
const AUTH_CHAIN_TEXTS: &str = concat!(
    "WITH RECURSIVE ",
    entries!("", "SELECT ?1"),
    ", ",
    auth_chain!("SELECT event_id, ?3 FROM entry UNION SELECT ?2, ?3"),
    first_texts_of!("chain")
);

/// Events of one room, and how many bytes their texts have together.
#[derive(Debug)]
pub struct Measured {
    /// Their IDs.
    pub ids: Vec<EventId>,
    /// The bytes of the list that their texts make.
    pub bytes: usize,
}

impl Store {
    /// The servers in the room, and how many bytes the texts of the state `root` and of its auth chain have; where that is more than
    /// an answer has room for, not how many. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn length_of_state(
        &self,
        room_id: &RoomId,
        root: NodeId,
    ) -> Result<(Vec<ServerName>, usize), DatabaseError> {
        let (most, full) = (limit(MOST_EVENTS), limit(MAX_ANSWER));
        let length = [root.to_string().into(), room_id.as_str().into(), most.into(), full.into()];
        let statements = vec![servers(room_id), Statement::new(LENGTH, length)];
        let mut answers = Answers::new(self.batch(statements).await?);
        let servers = server_names(&answers.rows()?)?;
        Ok((servers, sum(&answers.rows()?, 0)?))
    }

    /// The servers in the room, and at most `most` events of the state `root`: of its member events those of the users `but` alone.
    /// One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn servers_and_state_without_members(
        &self,
        room_id: &RoomId,
        root: NodeId,
        but: &[String],
        most: usize,
    ) -> Result<(Vec<ServerName>, Measured), DatabaseError> {
        let mut answers =
            Answers::new(self.batch(vec![servers(room_id), without_members(root, but, limit(most))]).await?);
        Ok((server_names(&answers.rows()?)?, measured(&answers.rows()?)?))
    }

    /// The events of the state `root` but those of members.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn state_without_members(&self, root: NodeId) -> Result<Vec<EventId>, DatabaseError> {
        event_ids(&self.query(without_members(root, &[], ALL)).await?)
    }

    /// The auth chain of these events of the room; of more events than an answer has room for not all.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn auth_chain(&self, room_id: &RoomId, of: &[EventId]) -> Result<Measured, DatabaseError> {
        let ids = json_list(of.iter().map(EventId::as_str));
        let parameters = [ids.into(), room_id.as_str().into(), limit(MOST_EVENTS).into()];
        measured(&self.query(Statement::new(AUTH_CHAIN, parameters)).await?)
    }

    /// The texts of the state `root`, and of the auth chain of it and of an event, for an answer for which there is room. One round
    /// trip, and one more for each further stretch of them when they are written.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn state_texts(
        &self,
        room_id: &RoomId,
        root: NodeId,
        event: &EventId,
        held: Option<&Rc<Reservation>>,
    ) -> Result<StateTexts, DatabaseError> {
        let of = || [root.to_string().into(), event.as_str().into(), room_id.as_str().into()];
        let statements = [AUTH_CHAIN_TEXTS, STATE_TEXTS].map(|sql| first_texts(sql, of()));
        let mut answers = Answers::new(self.batch(statements.into()).await?);
        let mut next = || answers.rows().map(|rows| EventTexts { room_id: room_id.clone(), rows, held: held.cloned() });
        Ok(StateTexts { auth_chain: next()?, state: next()? })
    }
}

fn servers(room_id: &RoomId) -> Statement {
    Statement::new(SERVERS, [room_id.as_str().into()])
}

fn without_members(root: NodeId, but: &[String], most: i64) -> Statement {
    let but = json_list(but.iter().map(String::as_str));
    Statement::new(WITHOUT_MEMBERS, [root.to_string().into(), but.into(), most.into()])
}

fn limit(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The events in the first column, with the bytes in the second.
fn measured(rows: &Rows) -> Result<Measured, DatabaseError> {
    Ok(Measured { ids: event_ids(rows)?, bytes: sum(rows, 1)? })
}

/// The sum of bytes in a column.
fn sum(rows: &Rows, column: usize) -> Result<usize, DatabaseError> {
    let bytes = |row: &Row| Ok(usize::try_from(row.integer(column)?).unwrap_or(usize::MAX));
    rows.iter().try_fold(0_usize, |sum, row| Ok(sum.saturating_add(bytes(row)?)))
}
