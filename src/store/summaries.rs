//! Rooms with how many members they have: one by one, and those of the published room directory in pages.

use super::{
    Store, json_list,
    rooms::{Room, room, room_columns},
};
use crate::{
    matrix::identifiers::{RoomId, ServerName},
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

/// Where a page of the published room directory is. Its order is that of the room IDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishedAt {
    /// The rooms after this one.
    After(String),
    /// The rooms before this one, the nearest first.
    Before(String),
}

/// After [`room_columns`]: how many users of all servers are joined.
macro_rules! joined_total {
    () => {
        ", COALESCE((SELECT SUM(s.joined) FROM room_servers AS s WHERE s.room_id = r.room_id AND s.to_pos IS NULL), 0)"
    };
}

const COUNTED: &str = concat!(
    "SELECT ",
    room_columns!(),
    joined_total!(),
    " FROM json_each(?2) AS wanted CROSS JOIN rooms AS r ON r.room_id = wanted.value"
);

const PUBLISHED_AFTER: &str = concat!(
    "SELECT ",
    room_columns!(),
    joined_total!(),
    " FROM published_rooms AS p CROSS JOIN rooms AS r ON r.room_id = p.room_id \
     WHERE p.room_id > ?2 ORDER BY p.room_id LIMIT ?3"
);

const PUBLISHED_BEFORE: &str = concat!(
    "SELECT ",
    room_columns!(),
    joined_total!(),
    " FROM published_rooms AS p CROSS JOIN rooms AS r ON r.room_id = p.room_id \
     WHERE p.room_id < ?2 ORDER BY p.room_id DESC LIMIT ?3"
);

/// How many columns [`room_columns`] has.
const ROOM: usize = 7;

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
        let (sql, room_id) = match at {
            PublishedAt::After(room_id) => (PUBLISHED_AFTER, room_id),
            PublishedAt::Before(room_id) => (PUBLISHED_BEFORE, room_id),
        };
        let parameters = [own.as_str().into(), room_id.as_str().into(), limit.into()];
        self.query(Statement::new(sql, parameters)).await?.iter().map(counted).collect()
    }
}

fn counted(row: &Row) -> Result<CountedRoom, DatabaseError> {
    Ok(CountedRoom { room: room(row)?, joined: row.integer(ROOM)? })
}
