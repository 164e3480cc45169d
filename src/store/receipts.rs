//! Up to where users have read: the newest receipt of each user, type and thread in a room.

use serde_json::json;

use super::{
    Store, json_list, json_lists,
    positions::{ReceiptsPos, TimelinePos, advance_for},
    typing::{PAGE, room_id},
};
use crate::{
    matrix::{
        edu::{Receipt, ReceiptType},
        identifiers::{EventId, RoomId, UserId},
    },
    platform::{DatabaseError, Rows, SqlValue, Statement, news::Subject},
};

/// Whether the event `e` stands before the event `old`: in the timeline, by which it is counted what is not read, and by the depths of
/// events that are held and stand in no timeline.
macro_rules! is_before {
    () => {
        "CASE WHEN e.pos IS NULL OR old.pos IS NULL THEN e.depth < old.depth ELSE e.pos < old.pos END"
    };
}

/// ?1: a list of [room, user, type, thread, event, time]. A receipt moves forwards only. Threads are those whose first event is
/// held, or one that is in them: others may have begun them before we came.
const NOTE: &str = concat!(
    "\
    INSERT INTO receipts (room_id, user_id, receipt_type, thread_id, event_id, ts, pos) \
    SELECT new.value ->> 0, new.value ->> 1, new.value ->> 2, new.value ->> 3, new.value ->> 4, new.value ->> 5, \
      (SELECT position FROM streams WHERE name = 'receipts') + new.key + 1 \
    FROM json_each(?1) AS new WHERE new.value ->> 3 IN ('', 'main') OR EXISTS \
      (SELECT 1 FROM events AS e WHERE e.event_id = new.value ->> 3 AND e.room_id = new.value ->> 0) OR EXISTS \
      (SELECT 1 FROM relations AS r \
       WHERE r.room_id = new.value ->> 0 AND r.rel_type = 'm.thread' AND r.parent = new.value ->> 3) \
    ON CONFLICT (room_id, user_id, receipt_type, thread_id) DO UPDATE \
      SET event_id = excluded.event_id, ts = excluded.ts, pos = excluded.pos \
      WHERE excluded.event_id <> receipts.event_id AND NOT EXISTS \
        (SELECT 1 FROM events AS old CROSS JOIN events AS e ON e.event_id = excluded.event_id \
         WHERE old.event_id = receipts.event_id AND ",
    is_before!(),
    ")"
);

/// ?1 user, ?2 room, ?3 type, ?4 content with the event's ID. The marker moves forwards only, as receipts do, and from an event
/// that is not held to any.
const MOVE_MARKER: &str = concat!(
    "\
    INSERT INTO account_data (user_id, room_id, event_type, content, pos) \
    SELECT ?1, ?2, ?3, ?4, position FROM streams WHERE name = 'account_data' \
    ON CONFLICT (user_id, room_id, event_type) DO UPDATE SET content = excluded.content, pos = excluded.pos \
      WHERE excluded.content <> account_data.content AND NOT EXISTS \
        (SELECT 1 FROM events AS old CROSS JOIN events AS e ON e.event_id = excluded.content ->> '$.event_id' \
         WHERE old.event_id = account_data.content ->> '$.event_id' AND ",
    is_before!(),
    ")"
);

/// Moves the stream on to the last position that was taken.
const ADVANCE: &str = "\
    UPDATE streams SET position = (SELECT MAX(r.pos) FROM receipts AS r WHERE r.pos > position) \
    WHERE name = 'receipts' AND EXISTS (SELECT 1 FROM receipts AS r WHERE r.pos > position) RETURNING position";

/// What is shown of a receipt `r` to the user `m` in its room.
macro_rules! shown {
    () => {
        "m.room_id IS NOT NULL AND (r.receipt_type = 'm.read' OR r.user_id = m.user_id)"
    };
}

/// What is read of a receipt `r`, after its position and whether it is shown.
macro_rules! columns {
    () => {
        "r.room_id, r.user_id, r.receipt_type, r.thread_id, r.event_id, r.ts"
    };
}

/// The receipts `r` for which this holds, of rooms that the user has newly joined; see [`OF_NEW_ROOMS`].
macro_rules! of_new_rooms {
    ($which:expr) => {
        concat!(
            "SELECT 0 AS pos, 1 AS is_shown, ",
            columns!(),
            " FROM streams AS s CROSS JOIN local_memberships AS m CROSS JOIN receipts AS r ON r.room_id = m.room_id AND ",
            $which,
            " WHERE s.name = 'events' AND s.position > ?2 AND m.user_id = ?1 AND m.membership = 'join' AND m.pos > ?2 \
               AND m.room_id > ?3"
        )
    };
}

/// The receipts `r` for which this holds, of the rooms in ?2; see [`OF_ROOMS`].
macro_rules! of_rooms {
    ($which:expr) => {
        concat!(
            "SELECT 0 AS pos, 1 AS is_shown, ",
            columns!(),
            " FROM json_each(?2) AS wanted CROSS JOIN receipts AS r ON r.room_id = wanted.value AND ",
            $which
        )
    };
}

/// Whether the receipt `r` is one of the first so many of others in its room, and of one at least. The share is made a whole number, as D1
/// binds numbers as doubles.
macro_rules! first_of {
    ($room:literal, $share:literal) => {
        concat!(
            "r.receipt_type = 'm.read' AND (r.user_id, r.thread_id) IN ( \
               SELECT f.user_id, f.thread_id FROM receipts AS f \
               WHERE f.room_id = ",
            $room,
            " AND f.user_id <> ?1 AND f.receipt_type = 'm.read' ORDER BY f.user_id, f.thread_id LIMIT MAX(1, CAST(",
            $share,
            " AS INTEGER)))"
        )
    };
}

/// A page of the stream, of which the user is told what is of rooms that they know. ?1: the user, ?2: since, NULL for nothing;
/// ?3: the 'events' position up to which rooms are known, ?4: how many positions.
const NEWS: &str = concat!(
    "SELECT r.pos, ",
    shown!(),
    " AS is_shown, ",
    columns!(),
    " FROM streams AS s CROSS JOIN receipts AS r ON r.pos > ?2 \
       LEFT JOIN local_memberships AS m ON m.user_id = ?1 AND m.room_id = r.room_id AND m.membership = 'join' AND m.pos <= ?3 \
     WHERE s.name = 'receipts' AND s.position > ?2 ORDER BY r.pos LIMIT ?4"
);

/// Of rooms that the user has newly joined: the user's own, those of others, room after room, and the first of each room, so that no
/// large room leaves nothing to those after it. ?2: the 'events' position up to which rooms are known, ?3: the room after
/// which, ?4: how many of either, ?5: how many are shared out among the rooms.
const OF_NEW_ROOMS: &str = concat!(
    "SELECT * FROM (",
    of_new_rooms!("r.user_id = ?1"),
    " LIMIT ?4) UNION SELECT * FROM (",
    of_new_rooms!("r.user_id <> ?1 AND r.receipt_type = 'm.read'"),
    " LIMIT ?4) UNION SELECT * FROM (",
    of_new_rooms!(first_of!(
        "m.room_id",
        "?5 / (SELECT COUNT(*) FROM local_memberships AS n \
               WHERE n.user_id = ?1 AND n.membership = 'join' AND n.pos > ?2 AND n.room_id > ?3)"
    )),
    " LIMIT ?5)"
);

/// As [`OF_NEW_ROOMS`], of the rooms in ?2, a JSON list. ?3: how many of either, ?4: how many are shared out among the rooms.
const OF_ROOMS: &str = concat!(
    "SELECT * FROM (",
    of_rooms!("r.user_id = ?1"),
    " LIMIT ?3) UNION SELECT * FROM (",
    of_rooms!("r.user_id <> ?1 AND r.receipt_type = 'm.read'"),
    " LIMIT ?3) UNION SELECT * FROM (",
    of_rooms!(first_of!("wanted.value", "?4 / json_array_length(?2)")),
    " LIMIT ?4)"
);

/// How many receipts of others in newly joined rooms a sync is told, room after room, and how many of the user's own.
const MAX_OF_NEW_ROOMS: i64 = 5_000;
/// How many of others are shared out among these rooms, whatever is told of those before.
const MAX_SHARED_OUT: i64 = 2_500;

/// A receipt that a client is told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptRow {
    /// The room.
    pub room_id: RoomId,
    /// The user.
    pub user_id: String,
    /// `m.read` or `m.read.private`.
    pub receipt_type: String,
    /// The thread; `None` for a receipt that is of no thread.
    pub thread_id: Option<String>,
    /// The event.
    pub event_id: String,
    /// When.
    pub ts: i64,
}

/// The receipts that are new to a user.
#[derive(Debug, Default)]
pub struct ReceiptNews {
    /// Up to which position of the stream it was read, where it is not at its end.
    pub page_end: Option<ReceiptsPos>,
    /// In rooms that the client knows.
    pub known: Vec<ReceiptRow>,
    /// In rooms that the user has newly joined.
    pub of_new_rooms: Vec<ReceiptRow>,
}

/// Statements that note receipts.
pub fn note(receipts: &[Receipt]) -> Vec<Statement> {
    let rows = receipts.iter().map(|receipt| {
        let Receipt { room_id, user_id, receipt_type, thread_id, event_id, ts } = receipt;
        let thread = thread_id.as_deref().unwrap_or_default();
        json!([room_id.as_str(), user_id.as_str(), receipt_type.as_str(), thread, event_id.as_str(), ts]).to_string()
    });
    let concerned = || {
        receipts.iter().map(|receipt| match receipt.receipt_type {
            ReceiptType::Read => Subject::Room(receipt.room_id.to_string()),
            ReceiptType::ReadPrivate => Subject::User(receipt.user_id.to_string()),
        })
    };
    let mut statements = Vec::new();
    for list in json_lists(rows) {
        statements.push(Statement::new(NOTE, [list.into()]));
        statements.push(Statement::new(ADVANCE, []).concerning_if_any(concerned()));
    }
    statements
}

/// The account data that says up to where a user has read everything. It moves forwards only.
pub const FULLY_READ: &str = "m.fully_read";

/// Statements that move the marker of a user on to this event.
pub fn mark_fully_read(user: &UserId, room_id: &RoomId, event_id: &EventId) -> Vec<Statement> {
    let content = json!({ "event_id": event_id.as_str() }).to_string();
    let parameters = [user.as_str().into(), room_id.as_str().into(), FULLY_READ.into(), content.into()];
    let advance = advance_for("account_data", 1, [Subject::User(user.to_string())]);
    vec![advance, Statement::new(MOVE_MARKER, parameters)]
}

/// What a sync asks. `since` is `None` where nothing is known; `events` is the position up to which rooms are known, `after`
/// the room after which new ones are told.
pub(super) fn ask(user: &str, since: Option<ReceiptsPos>, events: TimelinePos, after: &str) -> [Statement; 2] {
    let of_new: [SqlValue; 5] =
        [user.into(), events.into(), after.into(), MAX_OF_NEW_ROOMS.into(), MAX_SHARED_OUT.into()];
    [
        Statement::new(NEWS, [user.into(), since.into(), events.into(), PAGE.into()]),
        Statement::new(OF_NEW_ROOMS, of_new),
    ]
}

impl Store {
    /// The receipts in rooms that the user is in, of which a sync tells as of newly joined ones.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn receipts_in(&self, user: &UserId, rooms: &[RoomId]) -> Result<Vec<ReceiptRow>, DatabaseError> {
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        let rooms = json_list(rooms.iter().map(RoomId::as_str));
        let parameters: [SqlValue; 4] =
            [user.as_str().into(), rooms.into(), MAX_OF_NEW_ROOMS.into(), MAX_SHARED_OUT.into()];
        shown(&self.query(Statement::new(OF_ROOMS, parameters)).await?)
    }
}

pub(super) fn news(page: &Rows, of_new_rooms: &Rows) -> Result<ReceiptNews, DatabaseError> {
    let is_full = i64::try_from(page.len()).is_ok_and(|rows| rows >= PAGE);
    let page_end = page.last().filter(|_| is_full).map(|row| ReceiptsPos::read(row, 0)).transpose()?;
    Ok(ReceiptNews { page_end, known: shown(page)?, of_new_rooms: shown(of_new_rooms)? })
}

fn shown(rows: &Rows) -> Result<Vec<ReceiptRow>, DatabaseError> {
    let mut shown = Vec::new();
    for row in rows {
        if row.integer(1)? == 0 {
            continue;
        }
        let text = |column| row.text(column).map(str::to_owned);
        shown.push(ReceiptRow {
            room_id: room_id(row, 2)?,
            user_id: text(3)?,
            receipt_type: text(4)?,
            thread_id: Some(text(5)?).filter(|thread| !thread.is_empty()),
            event_id: text(6)?,
            ts: row.integer(7)?,
        });
    }
    Ok(shown)
}
