//! How much of a room is kept for good on the word of servers that were not in it.

use std::collections::HashMap;

use serde_json::json;

use super::{Store, json_list, state_sql::node_id, text_lists, written};
use crate::{
    matrix::{
        identifiers::{RoomId, ServerName},
        state_trie::NodeId,
    },
    platform::{DatabaseError, Row, Statement},
};

/// The name under which is what all servers together have brought, and that of all rooms together.
const ALL: &str = "";

/// So many bytes are kept, or may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Of one room, for one server.
    pub of_server: i64,
    /// Of the room, for all servers.
    pub of_room: i64,
    /// Of all rooms, for the server.
    pub of_server_anywhere: i64,
    /// Of all rooms, for all servers.
    pub of_all: i64,
}

impl Kept {
    /// This, and so many bytes more for the server, and so many for all.
    #[must_use]
    pub fn and(self, for_server: usize, for_all: usize) -> Self {
        let [for_server, for_all] = [for_server, for_all].map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        Self {
            of_server: self.of_server.saturating_add(for_server),
            of_room: self.of_room.saturating_add(for_all),
            of_server_anywhere: self.of_server_anywhere.saturating_add(for_server),
            of_all: self.of_all.saturating_add(for_all),
        }
    }

    /// Whether it is no more than `limit`.
    pub fn is_within(self, limit: Self) -> bool {
        self.of_server <= limit.of_server
            && self.of_room <= limit.of_room
            && self.of_server_anywhere <= limit.of_server_anywhere
            && self.of_all <= limit.of_all
    }

    /// From four columns of a row, in the order of [`kept_columns`].
    pub(super) fn of(row: &Row, first: usize) -> Result<Self, DatabaseError> {
        Ok(Self {
            of_server: row.integer(first)?,
            of_room: row.integer(first + 1)?,
            of_server_anywhere: row.integer(first + 2)?,
            of_all: row.integer(first + 3)?,
        })
    }
}

/// What is kept of a room for a server, both SQL expressions.
macro_rules! kept_columns {
    ($room:literal, $server:literal) => {
        concat!(
            $crate::store::kept_for_strangers::kept!($room, $server),
            " AS of_server, ",
            $crate::store::kept_for_strangers::kept!($room, "''"),
            " AS of_room, ",
            $crate::store::kept_for_strangers::kept!("''", $server),
            " AS of_server_anywhere, ",
            $crate::store::kept_for_strangers::kept!("''", "''"),
            " AS of_all"
        )
    };
}
pub(super) use kept_columns;

macro_rules! kept {
    ($room:literal, $server:literal) => {
        concat!(
            "COALESCE((SELECT k.bytes FROM kept_for_strangers AS k WHERE k.room_id = ",
            $room,
            " AND k.server = ",
            $server,
            "), 0)"
        )
    };
}
pub(super) use kept;

/// ?1: a list of [room, server, bytes more].
const KEEP: &str = "\
    INSERT INTO kept_for_strangers (room_id, server, bytes) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1) \
    WHERE true ON CONFLICT (room_id, server) DO UPDATE SET bytes = bytes + excluded.bytes";

/// As [`KEEP`], where none of them then has more than its limit, the fourth of each. Answers with a row for each, or none.
const KEEP_WITHIN: &str = "\
    INSERT INTO kept_for_strangers (room_id, server, bytes) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1) \
    WHERE NOT EXISTS (SELECT 1 FROM json_each(?1) AS one LEFT JOIN kept_for_strangers AS k \
      ON k.room_id = one.value ->> 0 AND k.server = one.value ->> 1 \
      WHERE COALESCE(k.bytes, 0) + (one.value ->> 2) > one.value ->> 3) \
    ON CONFLICT (room_id, server) DO UPDATE SET bytes = bytes + excluded.bytes RETURNING server";

/// What is kept of the room ?1 for those of the servers ?2 that are not in it, as far as it is known who is.
const KEPT: &str = concat!(
    "SELECT one.value AS server, ",
    kept_columns!("?1", "one.value"),
    " FROM json_each(?2) AS one \
      WHERE NOT EXISTS (SELECT 1 FROM room_servers AS r WHERE r.room_id = ?1 AND r.server = one.value AND r.to_pos IS NULL) \
        AND NOT EXISTS (SELECT 1 FROM partial_rooms AS p WHERE p.room_id = ?1 AND p.stage IN (0, 3))"
);

/// Those of the nodes ?1 that are not stored.
const LACKING_NODES: &str = "\
    SELECT value AS node_id FROM json_each(?1) \
    WHERE NOT EXISTS (SELECT 1 FROM state_nodes AS n WHERE n.node_id = value)";

/// Adds what is kept of the room for servers that are not in it.
pub(super) fn keep(room_id: &RoomId, more: &[(ServerName, usize)]) -> Option<Statement> {
    let all: usize = more.iter().map(|(_, bytes)| bytes).sum();
    let rooms = [room_id.as_str(), ALL];
    let each = more.iter().map(|(server, bytes)| (server.as_str(), bytes)).chain([(ALL, &all)]);
    let rows = each.flat_map(|(server, bytes)| rooms.map(|room| json!([room, server, bytes])));
    (all > 0).then(|| Statement::new(KEEP, [serde_json::Value::from_iter(rows).to_string().into()]))
}

impl Store {
    /// Takes down that so many bytes more are kept of the room for a server that is not in it, unless they are more than `limit`.
    /// Whether they are within it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn keep_for_stranger(
        &self,
        room_id: &RoomId,
        server: &ServerName,
        bytes: usize,
        limit: Kept,
    ) -> Result<bool, DatabaseError> {
        let (room, server) = (room_id.as_str(), server.as_str());
        let rows = json!([
            [room, server, bytes, limit.of_server],
            [room, ALL, bytes, limit.of_room],
            [ALL, server, bytes, limit.of_server_anywhere],
            [ALL, ALL, bytes, limit.of_all],
        ]);
        let rows = self.query(Statement::new(KEEP_WITHIN, [rows.to_string().into()])).await?;
        Ok(!rows.is_empty())
    }

    /// What is kept of the room for those of `servers` that are not in it; for none while it is not known who is.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn kept_for_strangers(
        &self,
        room_id: &RoomId,
        servers: &[&ServerName],
    ) -> Result<HashMap<ServerName, Kept>, DatabaseError> {
        if servers.is_empty() {
            return Ok(HashMap::new());
        }
        let servers = json_list(servers.iter().map(|server| server.as_str()));
        let rows = self.query(Statement::new(KEPT, [room_id.as_str().into(), servers.into()])).await?;
        rows.iter().map(|row| Ok((written(row.text(0)?, ServerName::parse)?, Kept::of(row, 1)?))).collect()
    }

    /// Those of these nodes of snapshots that are not stored.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn lacking_nodes(&self, ids: impl Iterator<Item = NodeId>) -> Result<Vec<NodeId>, DatabaseError> {
        let mut lacking = Vec::new();
        for list in text_lists(ids.map(|id| id.to_string())) {
            let rows = self.query(Statement::new(LACKING_NODES, [list.into()])).await?;
            lacking.extend(rows.iter().map(|row| node_id(row.text(0)?)).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(lacking)
    }
}
