//! Rooms as a local user sees them: their membership, and pages of the timeline.

use serde_json::json;

use super::{
    Answers, Store,
    event_graph::{Gap, gap, newest_gap_statement},
    event_text,
    ignored::is_ignored,
    memberships::stored,
    positions::TimelinePos,
    rooms::Extent,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, UserId},
        room_version::RoomVersion,
        state_content::Membership,
        state_trie::NodeId,
    },
    platform::{DatabaseError, Row, SqlValue, Statement},
};

/// An event as clients see it: redacted where it was.
#[derive(Debug, Clone)]
pub struct SeenEvent {
    /// The event, redacted where it was.
    pub event: Event,
    /// The event that redacted it.
    pub redaction: Option<Event>,
    /// The root of the state before it, where known.
    pub state_before: Option<NodeId>,
    /// The root of the state after it, where known.
    pub state_after: Option<NodeId>,
    /// Whether it is a redaction without effect: of an event that we hold, and that is of another room, or of another server's user
    /// while the sender has not the power. Clients would believe it.
    pub is_powerless: bool,
    /// Whether who sent it has been erased, so that it has no content for those who were not in the room.
    pub is_erased: bool,
}

/// An event in the timeline.
#[derive(Debug, Clone)]
pub struct TimelineEvent {
    /// Its position.
    pub pos: TimelinePos,
    /// The event.
    pub seen: SeenEvent,
    /// The transaction ID with which the reading device sent it.
    pub txn_id: Option<String>,
}

/// What a user has to do with a room that we know.
#[derive(Debug, Clone)]
pub struct RoomView {
    /// The rules of the room.
    pub version: &'static RoomVersion,
    /// The root of the current state.
    pub state: NodeId,
    /// The user's membership, where they have or had one.
    pub membership: Option<LocalMembership>,
    /// How much of the state is known.
    pub extent: Extent,
}

/// A local user's membership in a room.
#[derive(Debug, Clone)]
pub struct LocalMembership {
    /// What it is.
    pub membership: Membership,
    /// For a user who was joined and is no longer: the position up to which they were, their leaving included.
    pub joined_until: Option<TimelinePos>,
    /// The root of the room's state at that position.
    pub state: Option<NodeId>,
}

/// Which events a page may hold; empty lists hold all.
#[derive(Debug, Clone, Default)]
pub struct PageFilter {
    /// Types, with `*` as a wildcard.
    pub types: Option<Vec<String>>,
    /// Types to leave out, with `*` as a wildcard.
    pub not_types: Vec<String>,
    /// Senders.
    pub senders: Option<Vec<String>>,
    /// Senders to leave out.
    pub not_senders: Vec<String>,
    /// Whether the content has a `url`.
    pub contains_url: Option<bool>,
}

/// Which events of a room to read.
#[derive(Debug, Clone, Copy)]
pub struct PageRead<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// Events after this position,
    pub after: TimelinePos,
    /// up to this one and with it.
    pub to: TimelinePos,
    /// The newest first.
    pub backwards: bool,
    /// The last position at which a gap may end; none after it counts.
    pub gaps_to: TimelinePos,
    /// Gaps for which there is to be asked at this time count, in milliseconds.
    pub now: i64,
    /// The most events.
    pub limit: i64,
    /// The reading user,
    pub user_id: &'a str,
    /// and device.
    pub device_id: &'a str,
    /// What they want.
    pub filter: &'a PageFilter,
}

/// The columns of [`SeenEvent::of_row`], of `events AS e` with [`seen_joins`].
macro_rules! seen_columns {
    () => {
        "e.event_id, e.json, version_of.room_version, e.redacted_by, redaction.json AS redaction_json, \
          e.state_before, e.state_after, e.event_type = 'm.room.redaction' AND EXISTS (SELECT 1 FROM redactions AS r \
            CROSS JOIN events AS target ON target.event_id = r.redacts \
            WHERE r.redacts IN (e.json ->> '$.redacts', e.json ->> '$.content.redacts') AND r.redaction_id = e.event_id \
              AND (target.room_id <> r.room_id OR NOT r.any_sender \
                AND substr(target.sender, instr(target.sender, ':') + 1) <> r.server)) AS is_powerless, \
          EXISTS (SELECT 1 FROM erased_users AS x WHERE x.room_id = e.room_id AND x.user_id = e.sender) AS is_erased"
    };
}
pub(super) use seen_columns;

/// What [`seen_columns`] needs beside `events AS e`.
macro_rules! seen_joins {
    () => {
        " CROSS JOIN rooms AS version_of ON version_of.room_id = e.room_id \
          LEFT JOIN events AS redaction ON redaction.event_id = e.redacted_by "
    };
}
pub(super) use seen_joins;

/// Whether this filter, as JSON, lets `events AS e` through.
macro_rules! is_let_through {
    ($filter:literal) => {
        concat!(
            "(",
            $filter,
            " ->> 'types' IS NULL OR e.event_type IN (SELECT value FROM json_each(",
            $filter,
            ", '$.types')) OR EXISTS \
                 (SELECT 1 FROM json_each(",
            $filter,
            ", '$.type_globs') AS f WHERE e.event_type GLOB f.value)) \
               AND e.event_type NOT IN (SELECT value FROM json_each(",
            $filter,
            ", '$.not_types')) AND NOT EXISTS \
                 (SELECT 1 FROM json_each(",
            $filter,
            ", '$.not_type_globs') AS f WHERE e.event_type GLOB f.value) \
               AND (",
            $filter,
            " ->> 'senders' IS NULL OR e.sender IN (SELECT value FROM json_each(",
            $filter,
            ", '$.senders'))) \
               AND e.sender NOT IN (SELECT value FROM json_each(",
            $filter,
            ", '$.not_senders')) \
               AND (",
            $filter,
            " ->> 'contains_url' IS NULL \
                 OR (json_type(e.json, '$.content.url') IS NOT NULL) = (",
            $filter,
            " ->> 'contains_url'))"
        )
    };
}
pub(super) use is_let_through;

/// ?1 the room, ?2 and ?3 the positions (after, up to and with), ?4 the limit, ?5 user, ?6 device, ?7 the filter as JSON.
macro_rules! page {
    ($order:literal) => {
        concat!(
            "SELECT ",
            seen_columns!(),
            ", t.pos, txn.txn_id FROM timeline AS t CROSS JOIN events AS e ON e.event_nid = t.event_nid ",
            seen_joins!(),
            "LEFT JOIN client_transactions AS txn \
               ON txn.event_id = e.event_id AND txn.user_id = ?5 AND txn.device_id = ?6 \
             WHERE t.room_id = ?1 AND t.pos > ?2 AND t.pos <= ?3 AND NOT ",
            is_ignored!(),
            " AND ",
            is_let_through!("?7"),
            " ORDER BY t.pos ",
            $order,
            " LIMIT ?4"
        )
    };
}

const OLDER: &str = page!("DESC");
const NEWER: &str = page!("ASC");

const ONE: &str = concat!(
    "SELECT ",
    seen_columns!(),
    ", t.pos, txn.txn_id FROM events AS e \
       CROSS JOIN timeline AS t ON t.room_id = e.room_id AND t.pos = e.pos ",
    seen_joins!(),
    "LEFT JOIN client_transactions AS txn ON txn.event_id = e.event_id AND txn.user_id = ?3 AND txn.device_id = ?4 \
     WHERE e.event_id = ?1 AND e.room_id = ?2"
);

const VIEW: &str = "\
    SELECT r.room_version, r.state, m.membership, m.joined_until, (SELECT s.state FROM room_states AS s \
      WHERE s.room_id = r.room_id AND s.pos <= m.joined_until ORDER BY s.pos DESC LIMIT 1), \
      (SELECT p.stage FROM partial_rooms AS p WHERE p.room_id = r.room_id) \
    FROM rooms AS r LEFT JOIN local_memberships AS m ON m.room_id = r.room_id AND m.user_id = ?2 AND m.forgotten_ts IS NULL \
    WHERE r.room_id = ?1";

impl SeenEvent {
    /// How many columns [`seen_columns`] has.
    pub(super) const COLUMNS: usize = 9;

    /// The event in the first columns of `row`.
    pub(super) fn of_row(row: &Row) -> Result<Self, DatabaseError> {
        let version = row.text(2)?;
        let event = event_text::read(row.text(0)?, row.text(1)?, version)?;
        let redaction = match (row.optional_text(3)?, row.optional_text(4)?) {
            (Some(id), Some(json)) => Some(event_text::read(id, json, version)?),
            _ => None,
        };
        let event = if row.optional_text(3)?.is_some() { event.redacted() } else { event };
        let (state_before, state_after) = (root(row, 5)?, root(row, 6)?);
        let (is_powerless, is_erased) = (row.integer(7)? != 0, row.integer(8)? != 0);
        Ok(Self { event, redaction, state_before, state_after, is_powerless, is_erased })
    }
}

impl TimelineEvent {
    /// The event in a row of [`seen_columns`], position and transaction ID.
    pub(super) fn of_row(row: &Row) -> Result<Self, DatabaseError> {
        Ok(Self {
            pos: TimelinePos::read(row, SeenEvent::COLUMNS)?,
            seen: SeenEvent::of_row(row)?,
            txn_id: row.optional_text(SeenEvent::COLUMNS + 1)?.map(str::to_owned),
        })
    }
}

/// The longest pattern that D1 matches, in bytes.
const MAX_GLOB_BYTES: usize = 50;

impl PageFilter {
    /// Whether it holds a pattern that is too long for the database. Types without a wildcard may have any length.
    pub fn is_too_complex(&self) -> bool {
        let mut patterns = self.types.iter().flatten().chain(&self.not_types).filter(|text| text.contains('*'));
        patterns.any(|pattern| glob(pattern).len() > MAX_GLOB_BYTES)
    }

    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        let Self { types, not_types, senders, not_senders, contains_url } = self;
        types.is_none() && not_types.is_empty() && senders.is_none() && not_senders.is_empty() && contains_url.is_none()
    }

    pub(super) fn to_json(&self) -> String {
        let exact = |types: &[String]| types.iter().filter(|text| !text.contains('*')).cloned().collect::<Vec<_>>();
        let globs = |types: &[String]| -> Vec<String> {
            types.iter().filter(|text| text.contains('*')).map(|text| glob(text)).collect()
        };
        json!({
            "types": self.types.as_deref().map(exact),
            "type_globs": globs(self.types.as_deref().unwrap_or_default()),
            "not_types": exact(&self.not_types),
            "not_type_globs": globs(&self.not_types),
            "senders": self.senders,
            "not_senders": self.not_senders,
            "contains_url": self.contains_url.map(i64::from),
        })
        .to_string()
    }
}

/// A filter's pattern, in which only `*` is special, as SQL's GLOB, in which `?` and `[` are too.
fn glob(pattern: &str) -> String {
    pattern.replace('[', "[[]").replace('?', "[?]")
}

impl Store {
    /// What `user_id` has to do with `room_id`; `None` where we do not know the room.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn room_view(&self, room_id: &RoomId, user_id: &UserId) -> Result<Option<RoomView>, DatabaseError> {
        let rows = self.query(Statement::new(VIEW, [room_id.as_str().into(), user_id.as_str().into()])).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let membership = match row.optional_text(2)? {
            Some(membership) => Some(LocalMembership {
                membership: stored(membership)?,
                joined_until: TimelinePos::read_optional(row, 3)?,
                state: root(row, 4)?,
            }),
            None => None,
        };
        let state = root(row, 1)?.ok_or_else(|| DatabaseError::Shape("a room without state".to_owned()))?;
        let extent = Extent::of(row.optional_integer(5)?);
        Ok(Some(RoomView { version: room_version(row.text(0)?)?, state, membership, extent }))
    }

    /// Events of a room; and the newest gap among them or just before them. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn page(&self, read: &PageRead<'_>) -> Result<(Vec<TimelineEvent>, Option<Gap>), DatabaseError> {
        let parameters: [SqlValue; 7] = [
            read.room_id.as_str().into(),
            read.after.into(),
            read.to.into(),
            read.limit.into(),
            read.user_id.into(),
            read.device_id.into(),
            read.filter.to_json().into(),
        ];
        let page = Statement::new(if read.backwards { OLDER } else { NEWER }, parameters);
        let answers =
            self.batch(vec![page, newest_gap_statement(read.room_id, (read.after, read.gaps_to), read.now)]).await?;
        let mut answers = Answers::new(answers);
        let events = answers.rows()?.iter().map(TimelineEvent::of_row).collect::<Result<_, _>>()?;
        Ok((events, gap(&answers.rows()?)?))
    }

    /// One event of a room's timeline.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn timeline_event(
        &self,
        room_id: &RoomId,
        event_id: &EventId,
        (user_id, device_id): (&str, &str),
    ) -> Result<Option<TimelineEvent>, DatabaseError> {
        let parameters = [event_id.as_str().into(), room_id.as_str().into(), user_id.into(), device_id.into()];
        self.query(Statement::new(ONE, parameters)).await?.first().map(TimelineEvent::of_row).transpose()
    }

    /// The newest position that was given out.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn newest_position(&self) -> Result<TimelinePos, DatabaseError> {
        let rows = self.query(Statement::new("SELECT position FROM streams WHERE name = 'events'", [])).await?;
        rows.first().map_or(Ok(TimelinePos::START), |row| TimelinePos::read(row, 0))
    }

    /// The state of a room as it was at a position. Where none was known then, or not its members, it is the first state after that
    /// in which they are, unless that comes after `last`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn state_at_position(
        &self,
        room_id: &RoomId,
        pos: TimelinePos,
        last: TimelinePos,
    ) -> Result<Option<NodeId>, DatabaseError> {
        const SELECT: &str = "\
            SELECT state FROM room_states WHERE room_id = ?1 AND pos <= (SELECT max(pos) FROM (SELECT ?2 AS pos \
              UNION ALL SELECT MIN(s.pos) FROM room_states AS s WHERE s.room_id = ?1 AND s.pos <= ?3 \
              UNION ALL SELECT p.whole_pos FROM partial_rooms AS p WHERE p.room_id = ?1 AND p.whole_pos <= ?3)) \
            ORDER BY pos DESC LIMIT 1";
        let parameters = [room_id.as_str().into(), pos.into(), last.into()];
        let rows = self.query(Statement::new(SELECT, parameters)).await?;
        rows.first().map_or(Ok(None), |row| root(row, 0))
    }

    /// The rooms in which `user_id` has the membership `membership`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn rooms_of(&self, user_id: &UserId, membership: Membership) -> Result<Vec<RoomId>, DatabaseError> {
        const SELECT: &str = "SELECT room_id FROM local_memberships \
             WHERE user_id = ?1 AND membership = ?2 AND forgotten_ts IS NULL";
        let rows = self.query(Statement::new(SELECT, [user_id.as_str().into(), membership.as_str().into()])).await?;
        rows.iter()
            .map(|row| {
                RoomId::parse(row.text(0)?).map_err(|_| DatabaseError::Shape("a membership in no room".to_owned()))
            })
            .collect()
    }

    /// The membership of `user_id` in a room that we may not know; none where they have forgotten it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn membership(&self, room_id: &RoomId, user_id: &UserId) -> Result<Option<Membership>, DatabaseError> {
        const SELECT: &str = "SELECT membership FROM local_memberships \
             WHERE user_id = ?1 AND room_id = ?2 AND forgotten_ts IS NULL";
        let rows = self.query(Statement::new(SELECT, [user_id.as_str().into(), room_id.as_str().into()])).await?;
        rows.first().map(|row| stored(row.text(0)?)).transpose()
    }

    /// Whether `user_id` is or was in a room.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn was_in(&self, room_id: &RoomId, user_id: &UserId) -> Result<bool, DatabaseError> {
        const SELECT: &str = "SELECT room_id FROM local_memberships WHERE user_id = ?1 AND room_id = ?2 \
               AND (membership = 'join' OR joined_until IS NOT NULL) \
             UNION ALL SELECT room_id FROM forgotten_rooms WHERE user_id = ?1 AND room_id = ?2";
        let rows = self.query(Statement::new(SELECT, [user_id.as_str().into(), room_id.as_str().into()])).await?;
        Ok(!rows.is_empty())
    }

    /// Forgets at `now` a room that the user has left, but that they were there, for their erasure; and for a while that they left,
    /// for those of their devices that are still to hear of it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn forget_room(&self, room_id: &RoomId, user_id: &UserId, now: i64) -> Result<(), DatabaseError> {
        const REMEMBER: &str = "INSERT INTO forgotten_rooms (user_id, room_id) SELECT user_id, room_id \
             FROM local_memberships WHERE user_id = ?1 AND room_id = ?2 AND joined_until IS NOT NULL \
             ON CONFLICT (user_id, room_id) DO NOTHING";
        const FORGET: &str = "UPDATE local_memberships SET forgotten_ts = ?3 WHERE user_id = ?1 AND room_id = ?2 \
             AND membership IN ('leave', 'ban') AND forgotten_ts IS NULL";
        let (user, room) = (user_id.as_str(), room_id.as_str());
        let statements = vec![
            Statement::new(REMEMBER, [user.into(), room.into()]),
            Statement::new(FORGET, [user.into(), room.into(), now.into()]),
        ];
        self.batch(statements).await.map(drop)
    }
}

pub(super) fn room_version(id: &str) -> Result<&'static RoomVersion, DatabaseError> {
    RoomVersion::get(id).ok_or_else(|| DatabaseError::Shape(format!("a stored room has the unknown version {id:?}")))
}

/// The trie root in a column.
pub(super) fn root(row: &Row, column: usize) -> Result<Option<NodeId>, DatabaseError> {
    let Some(text) = row.optional_text(column)? else { return Ok(None) };
    NodeId::parse(text).map(Some).ok_or_else(|| DatabaseError::Shape(format!("{text:?} is not a state root")))
}
