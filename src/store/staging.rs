//! PDUs that wait: for what they cite, or for the room that we are joining.

use serde_json::json;

use super::{Store, json_list, json_lists};
use crate::{
    matrix::{
        event::{Event, PduError},
        identifiers::{RoomId, ServerName},
        room_version::RoomVersion,
    },
    platform::{DatabaseError, Statement},
};

/// A PDU to stage.
#[derive(Debug, Clone, Copy)]
pub struct StagedPdu<'a> {
    /// The event; its signatures and hash were checked.
    pub event: &'a Event,
    /// Who sent it.
    pub origin: &'a ServerName,
    /// When it came, in milliseconds.
    pub received_ts: i64,
}

/// A staged PDU as it is stored.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Its event id.
    pub event_id: String,
    /// Who sent it.
    pub origin: String,
    json: String,
    /// When it came, in milliseconds.
    pub received_ts: i64,
}

impl Waiting {
    /// The event, of a room of this version.
    ///
    /// # Errors
    /// Where what is stored is none.
    #[expect(clippy::disallowed_methods, reason = "only checked events are staged")]
    pub fn event(&self, version: &'static RoomVersion) -> Result<Event, PduError> {
        Event::from_store(&self.event_id, &self.json, version)
    }
}

const STAGE: &str = "\
    INSERT INTO staged_pdus (room_id, event_id, origin, json, received_ts) \
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?1) WHERE true \
    ON CONFLICT (room_id, event_id) DO NOTHING";

const ROOMS_WAITING: &str = "SELECT DISTINCT room_id FROM staged_pdus WHERE retry_at <= ?1 LIMIT 50";

const WAITING: &str = "\
    SELECT event_id, origin, json, received_ts FROM staged_pdus WHERE room_id = ?1 AND retry_at <= ?3 \
    ORDER BY received_ts LIMIT ?2";

const STAGED_BY: &str = "SELECT count(*) AS staged FROM staged_pdus WHERE origin = ?1";

const BEGIN_LOOK: &str = "\
    UPDATE staged_pdus SET attempts = attempts + 1, retry_at = ?3 \
    WHERE room_id = ?1 AND event_id IN (SELECT value FROM json_each(?2))";

const PAUSE: &str = "\
    UPDATE staged_pdus SET retry_at = ?3 + MIN(?4 * attempts * attempts, ?5) \
    WHERE room_id = ?1 AND event_id IN (SELECT value FROM json_each(?2))";

const DROP: &str = "DELETE FROM staged_pdus WHERE room_id = ?1 AND event_id IN (SELECT value FROM json_each(?2))";

/// ?1: the room, ?2: this server's name, ?3: now.
const ABANDON: &str = "\
    DELETE FROM staged_pdus WHERE room_id = ?1 \
      AND NOT EXISTS (SELECT 1 FROM room_servers WHERE room_id = ?1 AND server = ?2 AND to_pos IS NULL) \
      AND NOT EXISTS (SELECT 1 FROM pending_joins WHERE room_id = ?1 AND until_ts > ?3)";

/// Stages PDUs.
pub(crate) fn stage<'a>(pdus: impl Iterator<Item = StagedPdu<'a>>) -> Vec<Statement> {
    let rows = pdus.map(|pdu| {
        let event = pdu.event;
        json!([event.room_id().as_str(), event.event_id().as_str(), pdu.origin.as_str(), event.json(), pdu.received_ts])
            .to_string()
    });
    json_lists(rows).into_iter().map(|list| Statement::new(STAGE, [list.into()])).collect()
}

impl Store {
    /// Rooms with staged PDUs that are due at `now`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn rooms_waiting(&self, now: i64) -> Result<Vec<RoomId>, DatabaseError> {
        let rows = self.query(Statement::new(ROOMS_WAITING, [now.into()])).await?;
        let mut rooms = Vec::with_capacity(rows.len());
        for row in &rows {
            rooms.extend(RoomId::parse(row.text(0)?).ok());
        }
        Ok(rooms)
    }

    /// The staged PDUs of a room that are due at `now`, the oldest first, `limit` at most.
    ///
    /// # Errors
    /// As the database says.
    pub async fn waiting(&self, room_id: &RoomId, limit: i64, now: i64) -> Result<Vec<Waiting>, DatabaseError> {
        let rows = self.query(Statement::new(WAITING, [room_id.as_str().into(), limit.into(), now.into()])).await?;
        rows.iter()
            .map(|row| {
                Ok(Waiting {
                    event_id: row.text(0)?.to_owned(),
                    origin: row.text(1)?.to_owned(),
                    json: row.text(2)?.to_owned(),
                    received_ts: row.integer(3)?,
                })
            })
            .collect()
    }

    /// Counts one more look at staged PDUs, and keeps them from being looked at again before `retry_at`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn begin_look(&self, room_id: &RoomId, ids: &[&str], retry_at: i64) -> Result<(), DatabaseError> {
        let ids = json_list(ids.iter().copied());
        let parameters = [room_id.as_str().into(), ids.into(), retry_at.into()];
        self.query(Statement::new(BEGIN_LOOK, parameters)).await.map(|_| ())
    }

    /// Keeps staged PDUs from being looked at from `now` on for `pause_ms` after the first look at them, longer with the square
    /// of their looks, at most `longest_ms`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn pause(
        &self,
        room_id: &RoomId,
        ids: &[&str],
        now: i64,
        (pause_ms, longest_ms): (i64, i64),
    ) -> Result<(), DatabaseError> {
        let ids = json_list(ids.iter().copied());
        let parameters = [room_id.as_str().into(), ids.into(), now.into(), pause_ms.into(), longest_ms.into()];
        self.query(Statement::new(PAUSE, parameters)).await.map(|_| ())
    }

    /// How many PDUs that `origin` sent are staged.
    ///
    /// # Errors
    /// As the database says.
    pub async fn staged_by(&self, origin: &ServerName) -> Result<i64, DatabaseError> {
        let rows = self.query(Statement::new(STAGED_BY, [origin.as_str().into()])).await?;
        rows.first().map_or(Ok(0), |row| row.integer(0))
    }

    /// Gives staged PDUs up.
    ///
    /// # Errors
    /// As the database says.
    pub async fn unstage(&self, room_id: &RoomId, ids: &[String]) -> Result<(), DatabaseError> {
        let ids = json_list(ids.iter().map(String::as_str));
        self.query(Statement::new(DROP, [room_id.as_str().into(), ids.into()])).await.map(|_| ())
    }

    /// Gives up the staged PDUs of a room that nobody here is in, or is joining at `now`. `own` is this server's name.
    ///
    /// # Errors
    /// As the database says.
    pub async fn abandon(&self, own: &ServerName, room_id: &RoomId, now: i64) -> Result<(), DatabaseError> {
        let parameters = [room_id.as_str().into(), own.as_str().into(), now.into()];
        self.query(Statement::new(ABANDON, parameters)).await.map(drop)
    }
}
