//! How much of a room is kept for good on the word of servers that were not in it.

use std::collections::HashMap;

use serde_json::json;

use super::{Store, json_list, state_sql::node_id, text_lists, written};
use crate::{
    matrix::{
        identifiers::{RoomId, ServerName},
        state_trie::NodeId,
    },
    platform::{DatabaseError, Statement},
};

/// Under this name is what all servers together have brought.
const ALL: &str = "";

/// So many bytes are kept of one room, or may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// For one server.
    pub of_server: usize,
    /// For all.
    pub of_room: usize,
}

impl Kept {
    /// Whether it is no more than `limit`.
    pub fn is_within(self, limit: Self) -> bool {
        self.of_server <= limit.of_server && self.of_room <= limit.of_room
    }
}

/// ?1: the room, ?2: a list of [server, bytes more].
const KEEP: &str = "\
    INSERT INTO kept_for_strangers (room_id, server, bytes) SELECT ?1, value ->> 0, value ->> 1 FROM json_each(?2) WHERE true \
    ON CONFLICT (room_id, server) DO UPDATE SET bytes = bytes + excluded.bytes";

/// As [`KEEP`], where none of them then has more than its limit, the third of each in ?2. Answers with a row for each, or none.
const KEEP_WITHIN: &str = "\
    INSERT INTO kept_for_strangers (room_id, server, bytes) SELECT ?1, value ->> 0, value ->> 1 FROM json_each(?2) \
    WHERE NOT EXISTS (SELECT 1 FROM json_each(?2) AS one LEFT JOIN kept_for_strangers AS k \
      ON k.room_id = ?1 AND k.server = one.value ->> 0 \
      WHERE COALESCE(k.bytes, 0) + (one.value ->> 1) > one.value ->> 2) \
    ON CONFLICT (room_id, server) DO UPDATE SET bytes = bytes + excluded.bytes RETURNING server";

/// What is kept of the room ?1 for those of the servers ?2 that are not in it.
const KEPT: &str = "\
    SELECT one.value AS server, COALESCE(k.bytes, 0) AS of_server, \
      COALESCE((SELECT a.bytes FROM kept_for_strangers AS a WHERE a.room_id = ?1 AND a.server = ''), 0) AS of_room \
    FROM json_each(?2) AS one LEFT JOIN kept_for_strangers AS k ON k.room_id = ?1 AND k.server = one.value \
    WHERE NOT EXISTS \
      (SELECT 1 FROM room_servers AS r WHERE r.room_id = ?1 AND r.server = one.value AND r.to_pos IS NULL)";

/// Those of the nodes ?1 that are not stored.
const LACKING_NODES: &str = "\
    SELECT value AS node_id FROM json_each(?1) \
    WHERE NOT EXISTS (SELECT 1 FROM state_nodes AS n WHERE n.node_id = value)";

/// Adds what is kept of the room for servers that are not in it.
pub(super) fn keep(room_id: &RoomId, more: &[(ServerName, usize)]) -> Option<Statement> {
    let all: usize = more.iter().map(|(_, bytes)| bytes).sum();
    let rows = more.iter().map(|(server, bytes)| json!([server.as_str(), bytes])).chain([json!([ALL, all])]);
    let rows = serde_json::Value::from_iter(rows).to_string();
    (all > 0).then(|| Statement::new(KEEP, [room_id.as_str().into(), rows.into()]))
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
        let rows = json!([[server.as_str(), bytes, limit.of_server], [ALL, bytes, limit.of_room]]).to_string();
        let rows = self.query(Statement::new(KEEP_WITHIN, [room_id.as_str().into(), rows.into()])).await?;
        Ok(!rows.is_empty())
    }

    /// What is kept of the room for those of `servers` that are not in it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn kept_for_strangers(
        &self,
        room_id: &RoomId,
        servers: &[&ServerName],
    ) -> Result<HashMap<ServerName, Kept>, DatabaseError> {
        let servers = json_list(servers.iter().map(|server| server.as_str()));
        let rows = self.query(Statement::new(KEPT, [room_id.as_str().into(), servers.into()])).await?;
        let number = |number: i64| usize::try_from(number).unwrap_or(0);
        rows.iter()
            .map(|row| {
                let server = written(row.text(0)?, ServerName::parse)?;
                Ok((server, Kept { of_server: number(row.integer(1)?), of_room: number(row.integer(2)?) }))
            })
            .collect()
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
