//! PDUs that wait: for what they cite, or for the room that we are joining.

use std::collections::HashMap;

use serde_json::json;

use super::{
    Store,
    event_text::{content_hash, hash_wrong},
    json_list, json_lists,
    kept_for_strangers::{Kept, kept_columns},
    written,
};
use crate::{
    matrix::{
        event::{ContentHash, Event, PduError},
        identifiers::{EventId, RoomId, ServerName},
        room_version::RoomVersion,
    },
    platform::{DatabaseError, Rows, Statement},
};

/// A PDU to stage.
#[derive(Debug, Clone, Copy)]
pub struct StagedPdu<'a> {
    /// The event; its signatures and hash were checked.
    pub event: &'a Event,
    /// Who sent it.
    pub origin: &'a ServerName,
    /// What that server is to the room.
    pub by: StagedBy,
    /// When it came, in milliseconds.
    pub received_ts: i64,
}

/// What the server that sent a PDU is to its room, by our state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StagedBy {
    /// It is in the room.
    Member,
    /// It is not, or we cannot tell as we are joining the room.
    Stranger,
}

/// So much is staged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many PDUs.
    pub pdus: usize,
    /// How many bytes they are long.
    pub bytes: usize,
}

/// What bounds how much more a server may stage.
#[derive(Debug, Clone, Default)]
pub struct StagedAlready {
    /// What it has staged.
    pub by_origin: Amount,
    /// What of that it has staged in rooms that it is not in.
    pub as_stranger: Amount,
    /// The rooms that were asked about.
    pub rooms: HashMap<RoomId, StagedOfRoom>,
}

/// The same of one room.
#[derive(Debug, Clone, Copy, Default)]
pub struct StagedOfRoom {
    /// Whether the server is in the room by our state.
    pub is_member: bool,
    /// What servers have staged of it that are not.
    pub by_strangers: Amount,
    /// Whether anybody has staged anything of it.
    pub has_any: bool,
    /// What is kept of it for good for the server, which counts while that is not in the room.
    pub kept: Kept,
}

/// A staged PDU as it is stored.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Its event id.
    pub event_id: String,
    /// Who sent it, the first first.
    pub senders: Vec<ServerName>,
    json: String,
    content_hash: ContentHash,
    /// The version by which it was checked, where that was noted.
    checked_as: Option<String>,
    /// When it came, in milliseconds.
    pub received_ts: i64,
    /// What those who sent it are to the room.
    pub by: StagedBy,
}

impl Waiting {
    /// The event, of a room of this version.
    ///
    /// # Errors
    /// Where what is stored was not checked as an event of this version: while the room was being joined it may have been said to have
    /// another.
    #[expect(clippy::disallowed_methods, reason = "only checked events are staged")]
    pub fn event(&self, version: &'static RoomVersion) -> Result<Event, PduError> {
        let event = Event::from_store_as(&self.event_id, &self.json, self.content_hash, version)?;
        let was_checked = match self.checked_as.as_deref() {
            Some(checked_as) => checked_as == version.id,
            None => event.has_its_id(),
        };
        if was_checked { Ok(event) } else { Err(PduError::Format("room_version")) }
    }
}

/// How many PDUs that are due are looked for at once: of that many the rooms are named.
const MAX_DUE: i64 = 2_000;

/// Whether the server that sends a PDU which waits already is one more to ask.
macro_rules! one_more {
    () => {
        "(excluded.stranger = staged_pdus.stranger AND excluded.origin <> staged_pdus.origin \
          AND json_array_length(staged_pdus.also) < 4 \
          AND NOT EXISTS (SELECT 1 FROM json_each(staged_pdus.also) AS a WHERE a.value = excluded.origin))"
    };
}

/// Whether a PDU that comes again is to be taken for the copy that waits.
macro_rules! better {
    () => {
        "(staged_pdus.hash_wrong > excluded.hash_wrong OR staged_pdus.room_version IS NOT excluded.room_version) "
    };
}

/// A PDU that waits already is remembered to have been sent by one more server, and looked at anew: that server may give what
/// the others do not. Strangers give way to a server in the room, a copy without its content to a whole one, and one that was checked
/// by another version to one that comes later.
const STAGE: &str = concat!(
    "INSERT INTO staged_pdus (room_id, event_id, origin, json, received_ts, stranger, bytes, retry_at, hash_wrong, room_version) \
     SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 4, \
       value ->> 7, value ->> 8 FROM json_each(?1) WHERE true \
     ON CONFLICT (room_id, event_id) DO UPDATE SET \
       json = CASE WHEN ",
    better!(),
    "    THEN excluded.json ELSE staged_pdus.json END, \
       bytes = CASE WHEN ",
    better!(),
    "    THEN excluded.bytes ELSE staged_pdus.bytes END, \
       hash_wrong = CASE WHEN ",
    better!(),
    "    THEN excluded.hash_wrong ELSE staged_pdus.hash_wrong END, \
       room_version = excluded.room_version, \
       origin = CASE WHEN staged_pdus.stranger > excluded.stranger THEN excluded.origin ELSE staged_pdus.origin END, \
       also = CASE WHEN staged_pdus.stranger > excluded.stranger THEN '[]' WHEN ",
    one_more!(),
    "    THEN json_insert(staged_pdus.also, '$[#]', excluded.origin) ELSE staged_pdus.also END, \
       stranger = MIN(staged_pdus.stranger, excluded.stranger), attempts = 0, \
       retry_at = MAX(staged_pdus.look_until, excluded.received_ts) \
     WHERE excluded.stranger < staged_pdus.stranger OR ",
    better!(),
    " OR ",
    one_more!()
);

/// What server ?1 has staged, and of each room in ?2, a JSON list, what strangers have, whether the server is in it, and whether
/// anything is staged.
const STAGED_ALREADY: &str = concat!(
    "SELECT NULL AS room_id, 0 AS is_member, count(*) AS pdus, COALESCE(SUM(bytes), 0) AS bytes, \
      COALESCE(SUM(stranger), 0) AS as_stranger, COALESCE(SUM(bytes * stranger), 0) AS as_stranger_bytes, 0 AS has_any, \
      0 AS of_server, 0 AS of_room, 0 AS of_server_anywhere, 0 AS of_all \
    FROM staged_pdus WHERE origin = ?1 \
    UNION ALL \
    SELECT wanted.value, \
      EXISTS (SELECT 1 FROM room_servers AS r WHERE r.room_id = wanted.value AND r.server = ?1 AND r.to_pos IS NULL), \
      0, 0, \
      (SELECT count(*) FROM staged_pdus AS s INDEXED BY staged_pdus_of_strangers \
        WHERE s.room_id = wanted.value AND s.stranger), \
      (SELECT COALESCE(SUM(s.bytes), 0) FROM staged_pdus AS s INDEXED BY staged_pdus_of_strangers \
        WHERE s.room_id = wanted.value AND s.stranger), \
      EXISTS (SELECT 1 FROM staged_pdus AS s WHERE s.room_id = wanted.value), ",
    kept_columns!("wanted.value", "?1"),
    " FROM json_each(?2) AS wanted"
);

/// The rooms of those ?2 PDUs that have been due for longest. What waits for a join is not due before it has ended; in a room that
/// we are in nothing does.
const ROOMS_WAITING: &str = "\
    SELECT room_id FROM ( \
      SELECT s.room_id, s.retry_at FROM staged_pdus AS s WHERE s.retry_at <= ?1 AND NOT EXISTS \
        (SELECT 1 FROM pending_joins AS j WHERE j.room_id = s.room_id AND j.until_ts > ?1 AND j.room_version <> '' \
          AND NOT EXISTS (SELECT 1 FROM room_servers AS r WHERE r.room_id = s.room_id AND r.server = ?3 AND r.to_pos IS NULL)) \
      ORDER BY s.retry_at LIMIT ?2) \
    GROUP BY room_id ORDER BY MIN(retry_at), room_id";

const WAITING: &str = "\
    SELECT event_id, origin, json, received_ts, also, hash_wrong, room_version, stranger FROM staged_pdus \
    WHERE room_id = ?1 AND retry_at <= ?3 \
    ORDER BY stranger, received_ts LIMIT ?2";

const BEGIN_LOOK: &str = "\
    UPDATE staged_pdus SET attempts = attempts + 1, retry_at = ?3, look_until = ?3 \
    WHERE room_id = ?1 AND event_id IN (SELECT value FROM json_each(?2))";

const PAUSE: &str = "\
    UPDATE staged_pdus SET retry_at = ?3 + MIN(?4 * attempts * attempts, ?5), look_until = 0 \
    WHERE room_id = ?1 AND event_id IN (SELECT value FROM json_each(?2))";

/// Makes those PDUs of room ?1 due at ?3 that cite one of the events ?2, but for those that a look has. In the format of the first
/// room versions an event is cited by a list that begins with its ID.
const WAKE: &str = "\
    UPDATE staged_pdus SET retry_at = ?3 WHERE room_id = ?1 AND retry_at > ?3 AND look_until <= ?3 \
      AND EXISTS (SELECT 1 FROM \
          json_each(json_array(staged_pdus.json -> '$.prev_events', staged_pdus.json -> '$.auth_events')) AS l \
        CROSS JOIN json_each(l.value) AS c \
        WHERE CASE c.type WHEN 'array' THEN c.value ->> 0 ELSE c.value END IN (SELECT value FROM json_each(?2))) \
    RETURNING room_id";

const DROP: &str = "DELETE FROM staged_pdus WHERE room_id = ?1 AND event_id IN (SELECT value FROM json_each(?2))";

/// As [`DROP`], but for what a server in the room has sent as well by now.
const DROP_OF_STRANGERS: &str = "\
    DELETE FROM staged_pdus WHERE room_id = ?1 AND event_id IN (SELECT value FROM json_each(?2)) AND stranger";

/// ?1: the room, ?2: this server's name, ?3: now.
const ABANDON: &str = "\
    DELETE FROM staged_pdus WHERE room_id = ?1 \
      AND NOT EXISTS (SELECT 1 FROM room_servers WHERE room_id = ?1 AND server = ?2 AND to_pos IS NULL) \
      AND NOT EXISTS (SELECT 1 FROM pending_joins WHERE room_id = ?1 AND until_ts > ?3 AND room_version <> '')";

/// Stages PDUs.
pub(crate) fn stage<'a>(pdus: impl Iterator<Item = StagedPdu<'a>>) -> Vec<Statement> {
    let rows = pdus.map(|pdu| {
        let event = pdu.event;
        json!([
            event.room_id().as_str(),
            event.event_id().as_str(),
            pdu.origin.as_str(),
            event.json(),
            pdu.received_ts,
            i64::from(pdu.by == StagedBy::Stranger),
            event.json().len(),
            hash_wrong(event),
            event.version().id,
        ])
        .to_string()
    });
    json_lists(rows).into_iter().map(|list| Statement::new(STAGE, [list.into()])).collect()
}

/// Makes staged PDUs of the room due at `now` that cite one of `events`, which are known from now on; [`woken`] reads the answer.
pub(crate) fn wake<'a>(room_id: &RoomId, events: impl Iterator<Item = &'a str>, now: i64) -> Statement {
    Statement::new(WAKE, [room_id.as_str().into(), json_list(events).into(), now.into()])
}

/// The answer to [`wake`]: the room, where there are any.
pub(super) fn woken(rows: &Rows) -> Result<Option<RoomId>, DatabaseError> {
    Ok(rows.first().map(|row| row.text(0)).transpose()?.and_then(|id| RoomId::parse(id).ok()))
}

/// Asks what bounds how much `origin` may stage in the rooms `room_ids`; [`staged_already`] reads the answer.
pub(super) fn ask_staged_already(origin: &ServerName, room_ids: &[RoomId]) -> Statement {
    let room_ids = json_list(room_ids.iter().map(RoomId::as_str));
    Statement::new(STAGED_ALREADY, [origin.as_str().into(), room_ids.into()])
}

/// The answer to [`ask_staged_already`].
pub(super) fn staged_already(rows: &Rows) -> Result<StagedAlready, DatabaseError> {
    let mut already = StagedAlready::default();
    for row in rows {
        let number = |index| Ok::<_, DatabaseError>(usize::try_from(row.integer(index)?).unwrap_or(0));
        let of_strangers = Amount { pdus: number(4)?, bytes: number(5)? };
        match row.optional_text(0)? {
            None => {
                already.by_origin = Amount { pdus: number(2)?, bytes: number(3)? };
                already.as_stranger = of_strangers;
            }
            Some(room_id) => {
                let Ok(room_id) = RoomId::parse(room_id) else { continue };
                let (is_member, has_any) = (row.integer(1)? != 0, row.integer(6)? != 0);
                let kept = Kept::of(row, 7)?;
                let of_room = StagedOfRoom { is_member, by_strangers: of_strangers, has_any, kept };
                already.rooms.insert(room_id, of_room);
            }
        }
    }
    Ok(already)
}

impl Store {
    /// Rooms with staged PDUs that are due at `now` on this server, `own`, those first that have been so for longest.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn rooms_waiting(&self, own: &ServerName, now: i64) -> Result<Vec<RoomId>, DatabaseError> {
        let rows = self.query(Statement::new(ROOMS_WAITING, [now.into(), MAX_DUE.into(), own.as_str().into()])).await?;
        let mut rooms = Vec::with_capacity(rows.len());
        for row in &rows {
            rooms.extend(RoomId::parse(row.text(0)?).ok());
        }
        Ok(rooms)
    }

    /// The staged PDUs of a room that are due at `now`, the oldest first, `limit` at most.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn waiting(&self, room_id: &RoomId, limit: i64, now: i64) -> Result<Vec<Waiting>, DatabaseError> {
        let rows = self.query(Statement::new(WAITING, [room_id.as_str().into(), limit.into(), now.into()])).await?;
        rows.iter()
            .map(|row| {
                let also: Vec<String> = serde_json::from_str(row.text(4)?)
                    .map_err(|_| DatabaseError::Shape("a staged PDU with an unreadable list of senders".to_owned()))?;
                let senders = [row.text(1)?].into_iter().chain(also.iter().map(String::as_str));
                Ok(Waiting {
                    event_id: row.text(0)?.to_owned(),
                    senders: senders.map(|name| written(name, ServerName::parse)).collect::<Result<_, _>>()?,
                    json: row.text(2)?.to_owned(),
                    received_ts: row.integer(3)?,
                    content_hash: content_hash(row.integer(5)?),
                    checked_as: row.optional_text(6)?.map(str::to_owned),
                    by: if row.integer(7)? == 0 { StagedBy::Member } else { StagedBy::Stranger },
                })
            })
            .collect()
    }

    /// Counts one more look at staged PDUs, and keeps them from being looked at again before `retry_at`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn begin_look(&self, room_id: &RoomId, ids: &[&str], retry_at: i64) -> Result<(), DatabaseError> {
        let ids = json_list(ids.iter().copied());
        let parameters = [room_id.as_str().into(), ids.into(), retry_at.into()];
        self.query(Statement::new(BEGIN_LOOK, parameters)).await.map(|_| ())
    }

    /// Keeps staged PDUs from being looked at from `now` on for `pause_ms` after the first look at them, longer with the square
    /// of their looks, at most `longest_ms`.
    ///
    /// # Errors
    /// Where the database fails.
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

    /// Ends a look at `now`: gives the staged PDUs `done` up, and those that are `too_much` where none but strangers sent them, and makes
    /// others due that cite what was `judged`. Whether there are such.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn end_look(
        &self,
        room_id: &RoomId,
        done: &[String],
        too_much: &[EventId],
        judged: &[EventId],
        now: i64,
    ) -> Result<bool, DatabaseError> {
        let drop = |sql, ids: String| Statement::new(sql, [room_id.as_str().into(), ids.into()]);
        let mut statements = vec![drop(DROP, json_list(done.iter().map(String::as_str)))];
        if !too_much.is_empty() {
            statements.push(drop(DROP_OF_STRANGERS, json_list(too_much.iter().map(EventId::as_str))));
        }
        statements.push(wake(room_id, judged.iter().map(EventId::as_str), now));
        let answers = self.batch(statements).await?;
        Ok(answers.last().map(woken).transpose()?.flatten().is_some())
    }

    /// Makes staged PDUs of the room due at `now` that cite `event`, which is known from now on.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn wake_upon(&self, room_id: &RoomId, event: &EventId, now: i64) -> Result<(), DatabaseError> {
        self.query(wake(room_id, std::iter::once(event.as_str()), now)).await.map(drop)
    }

    /// Gives up the staged PDUs of a room that nobody here is in, or is joining at `now`. `own` is this server's name.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn abandon(&self, own: &ServerName, room_id: &RoomId, now: i64) -> Result<(), DatabaseError> {
        let parameters = [room_id.as_str().into(), own.as_str().into(), now.into()];
        self.query(Statement::new(ABANDON, parameters)).await.map(drop)
    }
}
