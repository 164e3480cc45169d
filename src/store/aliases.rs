//! Room aliases of this server, and its published room directory.

use super::{Store, races::Race};
use crate::{
    matrix::identifiers::RoomId,
    platform::{DatabaseError, Statement},
};

/// One alias of this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRow {
    /// The room that it stands for.
    pub room_id: String,
    /// The user who made it.
    pub creator: String,
}

impl Store {
    /// What `alias` stands for.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn alias(&self, alias: &str) -> Result<Option<AliasRow>, DatabaseError> {
        const SELECT: &str = "SELECT room_id, creator FROM room_aliases WHERE alias = ?1";
        let rows = self.query(Statement::new(SELECT, [alias.into()])).await?;
        rows.first()
            .map(|row| Ok(AliasRow { room_id: row.text(0)?.to_owned(), creator: row.text(1)?.to_owned() }))
            .transpose()
    }

    /// Makes an alias; `false` where it exists.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_alias(
        &self,
        alias: &str,
        room_id: &str,
        creator: &str,
        now_ms: i64,
    ) -> Result<bool, DatabaseError> {
        const INSERT: &str = "INSERT INTO room_aliases (alias, room_id, creator, created_ts) VALUES (?1, ?2, ?3, ?4)";
        let parameters = [alias.into(), room_id.into(), creator.into(), now_ms.into()];
        match self.query(Statement::new(INSERT, parameters)).await {
            Ok(_) => Ok(true),
            Err(error) if Race::AliasTaken.has_lost(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes an alias.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn remove_alias(&self, alias: &str) -> Result<(), DatabaseError> {
        self.query(Statement::new("DELETE FROM room_aliases WHERE alias = ?1", [alias.into()])).await.map(drop)
    }

    /// All aliases of a room on this server.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn aliases_of(&self, room_id: &str) -> Result<Vec<String>, DatabaseError> {
        const SELECT: &str = "SELECT alias FROM room_aliases WHERE room_id = ?1 ORDER BY alias";
        let rows = self.query(Statement::new(SELECT, [room_id.into()])).await?;
        rows.iter().map(|row| row.text(0).map(str::to_owned)).collect()
    }

    /// Puts a room into the published room directory, or takes it out.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn publish_room(&self, room_id: &str, published: bool) -> Result<(), DatabaseError> {
        let sql = if published {
            // From here on each commit that changes it keeps the number up to date.
            "INSERT INTO published_rooms (room_id, joined) SELECT room_id, joined FROM rooms WHERE room_id = ?1 \
             ON CONFLICT DO NOTHING"
        } else {
            "DELETE FROM published_rooms WHERE room_id = ?1"
        };
        self.query(Statement::new(sql, [room_id.into()])).await.map(drop)
    }

    /// Whether a room is in the published room directory.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn is_published(&self, room_id: &str) -> Result<bool, DatabaseError> {
        const SELECT: &str = "SELECT room_id FROM published_rooms WHERE room_id = ?1";
        Ok(!self.query(Statement::new(SELECT, [room_id.into()])).await?.is_empty())
    }
}

/// Statements that have the aliases of a room stand for its successor, which also takes its place in the published room directory.
pub fn move_to_successor(room_id: &RoomId, successor: &RoomId) -> Vec<Statement> {
    const ALIASES: &str = "UPDATE room_aliases SET room_id = ?2 WHERE room_id = ?1";
    const PUBLISHED: &str = "INSERT INTO published_rooms (room_id, joined) \
        SELECT r.room_id, r.joined FROM published_rooms AS p CROSS JOIN rooms AS r ON r.room_id = ?2 \
        WHERE p.room_id = ?1 ON CONFLICT DO NOTHING";
    const UNPUBLISHED: &str = "DELETE FROM published_rooms WHERE room_id = ?1";
    let rooms = || [room_id.as_str().into(), successor.as_str().into()];
    vec![
        Statement::new(ALIASES, rooms()),
        Statement::new(PUBLISHED, rooms()),
        Statement::new(UNPUBLISHED, [room_id.as_str().into()]),
    ]
}
