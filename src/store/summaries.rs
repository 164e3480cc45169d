//! Rooms with how many members they have: one by one, and those of the published room directory in pages; and where spaces
//! lead.

use super::{
    Store, json_list,
    rooms::{Room, room, room_columns},
    state_sql::{entries, node_id},
    timeline::{SeenEvent, seen_columns, seen_joins},
};
use crate::{
    matrix::{
        identifiers::{RoomId, ServerName},
        json::{self, Object, Value},
        state_trie::NodeId,
    },
    platform::{DatabaseError, Row, Statement},
};

/// A room, and how many users of all servers are joined.
#[derive(Debug, Clone)]
pub struct CountedRoom {
    /// The room.
    pub room: Room,
    /// How many users are joined.
    pub joined: i64,
}

/// Where a room is in the published room directory: those with the most members come first, and of those with as many the
/// order is that of their IDs, from the last to the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPlace {
    /// How many users are joined.
    pub joined: i64,
    /// The room.
    pub room_id: String,
}

/// Where a page of the published room directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishedAt {
    /// The directory's beginning.
    Start,
    /// The rooms after this one.
    After(PublishedPlace),
    /// The rooms before this one, the nearest first.
    Before(PublishedPlace),
}

const COUNTED: &str = concat!(
    "SELECT ",
    room_columns!(),
    ", r.joined FROM json_each(?2) AS wanted CROSS JOIN rooms AS r ON r.room_id = wanted.value"
);

/// A published room, with the number of its members by which the directory is in order.
macro_rules! published {
    ($rest:literal) => {
        concat!(
            "SELECT ",
            room_columns!(),
            ", p.joined FROM published_rooms AS p CROSS JOIN rooms AS r ON r.room_id = p.room_id ",
            $rest
        )
    };
}

const PUBLISHED_AFTER: &str =
    published!("WHERE (p.joined, p.room_id) < (?2, ?3) ORDER BY p.joined DESC, p.room_id DESC LIMIT ?4");

const PUBLISHED_BEFORE: &str =
    published!("WHERE (p.joined, p.room_id) > (?2, ?3) ORDER BY p.joined, p.room_id LIMIT ?4");

/// The children of each of the roots in ?1, a JSON list: those that come first in the order in which clients show them
/// ([`crate::room::SpaceChild::sort`]), ?2 of each root at most, and ?3 characters of all together; of many roots each is given its first
/// ones. What was removed is none, and what is longer than any needs to be is left out.
const SPACE_CHILDREN: &str = concat!(
    "WITH RECURSIVE ",
    entries!("snapshot, ", "SELECT value, value FROM json_each(?1)"),
    ", child(snapshot, event_nid, length, ts, state_key, place) AS ( \
       SELECT entry.snapshot, e.event_nid, length(e.json), e.origin_server_ts, e.state_key, \
         CASE WHEN json_type(e.json, '$.content.order') = 'text' AND octet_length(e.json ->> '$.content.order') <= 50 \
           AND e.json ->> '$.content.order' NOT GLOB '*[^ -~]*' THEN e.json ->> '$.content.order' END \
       FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id \
       WHERE e.event_type = 'm.space.child' AND length(e.json) <= 8192 AND e.redacted_by IS NULL \
         AND json_array_length(e.json, '$.content.via') > 0 \
     ), placed(snapshot, event_nid, length, nth) AS ( \
       SELECT snapshot, event_nid, length, \
         ROW_NUMBER() OVER (PARTITION BY snapshot ORDER BY place IS NULL, place, ts, state_key) FROM child \
     ), upto(snapshot, event_nid, length) AS ( \
       SELECT snapshot, event_nid, SUM(length) OVER (ORDER BY nth, snapshot) FROM placed WHERE nth <= ?2 \
     ) SELECT ",
    seen_columns!(),
    ", upto.snapshot FROM upto CROSS JOIN events AS e ON e.event_nid = upto.event_nid ",
    seen_joins!(),
    " WHERE upto.length <= ?3"
);

/// How many children of a space are read, more than are told of, as some may name no room or no server; and how many characters at once.
const MAX_CHILDREN_READ: i64 = 1_000;
const MAX_CHILDREN_LENGTH: i64 = 8 * 1024 * 1024;

/// The children of the space whose root is ?1, each with its content: ?2 at most, none whose content has more than ?3 bytes, and ?4 bytes
/// of them. The shortest come first, so that as many as can be do. What names no room or no server is no child.
const CONTENTS_OF_CHILDREN: &str = concat!(
    "WITH RECURSIVE ",
    entries!("", "SELECT ?1"),
    ", child(event_nid, bytes) AS ( \
       SELECT e.event_nid, octet_length(e.json -> '$.content') AS bytes \
       FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id \
       WHERE e.event_type = 'm.space.child' AND e.redacted_by IS NULL AND substr(e.state_key, 1, 1) = '!' \
         AND json_array_length(e.json, '$.content.via') > 0 \
       ORDER BY bytes, e.event_nid LIMIT ?2 \
     ), upto(event_nid, bytes, upto) AS ( SELECT event_nid, bytes, SUM(bytes) OVER (ORDER BY bytes, event_nid) FROM child ) \
     SELECT e.state_key, e.json -> '$.content' AS content \
     FROM upto CROSS JOIN events AS e ON e.event_nid = upto.event_nid WHERE upto.bytes <= ?3 AND upto.upto <= ?4"
);

/// Of the root ?1; ?2 at most. Another server lets a reason be as long as an event: one of more than ?3 bytes is left out.
const BANS: &str = concat!(
    "WITH RECURSIVE ",
    entries!("", "SELECT ?1"),
    " SELECT e.state_key, CASE WHEN e.redacted_by IS NULL AND json_type(e.json, '$.content.reason') = 'text' \
        AND octet_length(e.json ->> '$.content.reason') <= ?3 THEN e.json ->> '$.content.reason' END AS reason \
      FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id \
      WHERE e.event_type = 'm.room.member' AND e.json ->> '$.content.membership' = 'ban' LIMIT ?2"
);

/// Those of the roots in ?1, a JSON list, by which a user of the server ?2 is invited; among so many events.
const INVITING: &str = concat!(
    "WITH RECURSIVE ",
    entries!("snapshot, ", "SELECT value, value FROM json_each(?1)"),
    ", looked_at(snapshot, event_id) AS (SELECT snapshot, event_id FROM entry LIMIT 20000) \
     SELECT DISTINCT looked_at.snapshot FROM looked_at CROSS JOIN events AS e ON e.event_id = looked_at.event_id \
     WHERE e.event_type = 'm.room.member' AND substr(e.state_key, instr(e.state_key, ':') + 1) = ?2 \
       AND e.json ->> '$.content.membership' = 'invite'"
);

/// Those of the rooms in ?2, a JSON list, in which this server, ?3, and the server ?1 are.
const JOINED_OF_SERVER: &str = "\
    SELECT DISTINCT wanted.value FROM json_each(?2) AS wanted \
    CROSS JOIN room_servers AS own ON own.room_id = wanted.value AND own.server = ?3 AND own.to_pos IS NULL \
    CROSS JOIN room_servers AS s ON s.room_id = wanted.value AND s.server = ?1 AND s.to_pos IS NULL";

/// No room has so many members. Exact as a number of JavaScript.
const MORE_THAN_ANY: i64 = 1 << 52;

/// How many columns [`room_columns`] has.
const ROOM: usize = 8;

/// Somebody who is banned from a room.
#[derive(Debug, Clone)]
pub struct Ban {
    /// Who.
    pub user_id: String,
    /// Why, where that is not too long.
    pub reason: Option<String>,
}

impl Store {
    /// Those of the rooms that we know, in no order. `own` is this server's name.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn counted_rooms(&self, own: &ServerName, ids: &[RoomId]) -> Result<Vec<CountedRoom>, DatabaseError> {
        let ids = json_list(ids.iter().map(RoomId::as_str));
        self.query(Statement::new(COUNTED, [own.as_str().into(), ids.into()])).await?.iter().map(counted).collect()
    }

    /// So many rooms of the published room directory, beginning at the nearest one.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn published_rooms(
        &self,
        own: &ServerName,
        at: &PublishedAt,
        limit: i64,
    ) -> Result<Vec<CountedRoom>, DatabaseError> {
        let (sql, joined, room_id) = match at {
            PublishedAt::Start => (PUBLISHED_AFTER, MORE_THAN_ANY, ""),
            PublishedAt::After(place) => (PUBLISHED_AFTER, place.joined, place.room_id.as_str()),
            PublishedAt::Before(place) => (PUBLISHED_BEFORE, place.joined, place.room_id.as_str()),
        };
        let parameters = [own.as_str().into(), joined.into(), room_id.into(), limit.into()];
        self.query(Statement::new(sql, parameters)).await?.iter().map(counted).collect()
    }

    /// The `m.space.child` events in these states that lead somewhere, with the state of each, in no order. Of very many, those that
    /// clients show first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn space_children(&self, roots: &[NodeId]) -> Result<Vec<(NodeId, SeenEvent)>, DatabaseError> {
        let parameters = [root_list(roots).into(), MAX_CHILDREN_READ.into(), MAX_CHILDREN_LENGTH.into()];
        let rows = self.query(Statement::new(SPACE_CHILDREN, parameters)).await?;
        rows.iter().map(|row| Ok((node_id(row.text(SeenEvent::COLUMNS)?)?, SeenEvent::of_row(row)?))).collect()
    }

    /// The children of the space with this state, by what says so: the state key and the content, which has no more than `longest` bytes.
    /// At most `limit`, and so many bytes of content.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn contents_of_children(
        &self,
        root: NodeId,
        limit: usize,
        longest: usize,
        bytes: usize,
    ) -> Result<Vec<(String, Object)>, DatabaseError> {
        let [limit, longest, bytes] = [limit, longest, bytes].map(|most| i64::try_from(most).unwrap_or(i64::MAX));
        let parameters = [root.to_string().into(), limit.into(), longest.into(), bytes.into()];
        let rows = self.query(Statement::new(CONTENTS_OF_CHILDREN, parameters)).await?;
        let child = |row: &Row| {
            let content = json::parse(row.text(1)?.as_bytes()).ok().and_then(Value::into_object);
            let content = content.ok_or_else(|| DatabaseError::Shape("a content that is no object".to_owned()))?;
            Ok((row.text(0)?.to_owned(), content))
        };
        rows.iter().map(child).collect()
    }

    /// The bans of a state, at most `limit`, without reasons of more than `reason_bytes`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn bans(&self, root: NodeId, limit: usize, reason_bytes: usize) -> Result<Vec<Ban>, DatabaseError> {
        let [limit, reason_bytes] = [limit, reason_bytes].map(|most| i64::try_from(most).unwrap_or(i64::MAX));
        let parameters = [root.to_string().into(), limit.into(), reason_bytes.into()];
        let rows = self.query(Statement::new(BANS, parameters)).await?;
        let ban =
            |row: &Row| Ok(Ban { user_id: row.text(0)?.to_owned(), reason: row.optional_text(1)?.map(str::to_owned) });
        rows.iter().map(ban).collect()
    }

    /// Those of these states by which a user of `server` is invited.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn inviting(&self, server: &ServerName, roots: &[NodeId]) -> Result<Vec<NodeId>, DatabaseError> {
        let parameters = [root_list(roots).into(), server.as_str().into()];
        self.query(Statement::new(INVITING, parameters)).await?.iter().map(|row| node_id(row.text(0)?)).collect()
    }

    /// Those of the rooms in which `server` has joined members, as far as we can tell: `own` is this server's name.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn joined_of_server(
        &self,
        own: &ServerName,
        server: &ServerName,
        rooms: &[RoomId],
    ) -> Result<Vec<RoomId>, DatabaseError> {
        let rooms_of = json_list(rooms.iter().map(RoomId::as_str));
        let rows = self
            .query(Statement::new(JOINED_OF_SERVER, [server.as_str().into(), rooms_of.into(), own.as_str().into()]))
            .await?;
        let known = |row: &Row| {
            let id = row.text(0)?;
            Ok(rooms.iter().find(|room| room.as_str() == id).cloned())
        };
        rows.iter().filter_map(|row| known(row).transpose()).collect()
    }
}

fn counted(row: &Row) -> Result<CountedRoom, DatabaseError> {
    Ok(CountedRoom { room: room(row)?, joined: row.integer(ROOM)? })
}

fn root_list(roots: &[NodeId]) -> String {
    let roots: Vec<String> = roots.iter().map(NodeId::to_string).collect();
    json_list(roots.iter().map(String::as_str))
}
