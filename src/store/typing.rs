//! Who is typing.
//!
//! A row says until when. That somebody began or ceased takes a new position, that they go on takes none: nobody need be told.
//! When a row's time is over nothing is written: who was told of it knows until when it counts (the `u` of a sync token).

use std::collections::BTreeMap;

use serde_json::json;

use super::{json_lists, positions::TypingPos};
use crate::{
    matrix::{edu::Typing, identifiers::RoomId},
    platform::{DatabaseError, Row, Rows, Statement, news::Subject},
};

/// ?1: a list of [room, user, until], ?2: now. Who was not typing and is not is no news.
const NOTE: &str = "\
    INSERT INTO typing (room_id, user_id, until_ts, pos) \
    SELECT value ->> 0, value ->> 1, value ->> 2, (SELECT position FROM streams WHERE name = 'typing') + key + 1 \
    FROM json_each(?1) WHERE value ->> 2 > ?2 OR EXISTS \
      (SELECT 1 FROM typing AS t WHERE t.room_id = value ->> 0 AND t.user_id = value ->> 1 AND t.until_ts > ?2) \
    ON CONFLICT (room_id, user_id) DO UPDATE SET until_ts = excluded.until_ts, \
      pos = CASE WHEN (excluded.until_ts > ?2) = (typing.until_ts > ?2) THEN typing.pos ELSE excluded.pos END";

/// Moves the stream on to the last position that was taken.
const ADVANCE: &str = "\
    UPDATE streams SET position = (SELECT MAX(t.pos) FROM typing AS t WHERE t.pos > position) \
    WHERE name = 'typing' AND EXISTS (SELECT 1 FROM typing AS t WHERE t.pos > position) RETURNING position";

/// The rooms that the page of the stream is about, and, where the time of somebody who was told is over, all rooms of the user
/// in which somebody was typing lately. ?1: the user, ?2: since, ?3: until when those whom the user was told of are typing, NULL
/// for nobody, ?4: now, ?5: how many positions.
const NEWS: &str = "\
    WITH page(room_id, pos) AS ( \
      SELECT t.room_id, t.pos FROM streams AS s CROSS JOIN typing AS t ON t.pos > ?2 \
      WHERE s.name = 'typing' AND s.position > ?2 ORDER BY t.pos LIMIT ?5 \
    ), told(room_id, pos) AS ( \
      SELECT p.room_id, p.pos FROM page AS p UNION ALL \
      SELECT DISTINCT t.room_id, 0 FROM local_memberships AS m CROSS JOIN typing AS t ON t.room_id = m.room_id \
      WHERE ?3 <= ?4 AND m.user_id = ?1 AND m.membership = 'join' AND t.until_ts >= ?3 \
    ) SELECT told.room_id, told.pos, m.room_id IS NOT NULL AS is_mine, \
        (SELECT json_group_array(x.user_id) FROM typing AS x WHERE x.room_id = m.room_id AND x.until_ts > ?4) AS users, \
        (SELECT MIN(x.until_ts) FROM typing AS x WHERE x.room_id = m.room_id AND x.until_ts > ?4) AS until, \
        (SELECT 1 FROM typing AS x WHERE x.room_id = m.room_id AND x.until_ts BETWEEN ?3 AND ?4 LIMIT 1) AS has_ended \
      FROM told LEFT JOIN local_memberships AS m ON m.user_id = ?1 AND m.room_id = told.room_id AND m.membership = 'join'";

/// How many positions are read at once.
pub(super) const PAGE: i64 = 1_000;

/// Who is typing, as far as a user need be told.
#[derive(Debug, Default)]
pub struct TypingNews {
    /// Up to which position of the stream it was read, where it is not at its end.
    pub page_end: Option<TypingPos>,
    /// By room, those who are typing, where that has changed.
    pub rooms: BTreeMap<RoomId, Vec<String>>,
    /// The first time after now at which one of those who are typing will have ceased if nothing more comes, in the rooms read.
    pub until: Option<i64>,
    /// Whether all rooms were read in which somebody is typing.
    pub is_all: bool,
}

/// Statements that note who is typing at `now` and until when; until now, where they have ceased.
pub fn note(typing: &[(Typing, i64)], now: i64) -> Vec<Statement> {
    // Of several about the same the last.
    let newest: BTreeMap<_, _> =
        typing.iter().map(|(typing, until)| ((typing.room_id.as_str(), typing.user_id.as_str()), until)).collect();
    let rows = newest.iter().map(|((room, user), until)| json!([room, user, until]).to_string());
    let rooms = || newest.keys().map(|(room, _)| Subject::Room((*room).to_owned()));
    let mut statements = Vec::new();
    for list in json_lists(rows) {
        statements.push(Statement::new(NOTE, [list.into(), now.into()]));
        statements.push(Statement::new(ADVANCE, []).concerning_if_any(rooms()));
    }
    statements
}

/// What a sync asks: what is new since a position, and what has ended of those who were told to be typing `until`; with 0 for
/// `until` who is typing at all.
pub(super) fn ask(user: &str, since: TypingPos, until: Option<i64>, now: i64) -> Statement {
    Statement::new(NEWS, [user.into(), since.into(), until.into(), now.into(), PAGE.into()])
}

pub(super) fn news(rows: &Rows, until: Option<i64>, now: i64) -> Result<TypingNews, DatabaseError> {
    let is_first = until == Some(0);
    let mut news = TypingNews { is_all: until.is_some_and(|until| until <= now), ..TypingNews::default() };
    let mut in_page = 0;
    for row in rows {
        let pos = TypingPos::read(row, 1)?;
        let is_in_page = pos > TypingPos::START;
        in_page += i64::from(is_in_page);
        news.page_end = news.page_end.max(Some(pos));
        if row.integer(2)? == 0 {
            continue;
        }
        let ends = row.optional_integer(4)?;
        news.until = [news.until, ends].into_iter().flatten().min();
        let users = users(row, 3)?;
        if if is_first { !users.is_empty() } else { is_in_page || row.optional_integer(5)?.is_some() } {
            news.rooms.insert(room_id(row, 0)?, users);
        }
    }
    news.page_end = news.page_end.filter(|_| in_page >= PAGE);
    Ok(news)
}

fn users(row: &Row, column: usize) -> Result<Vec<String>, DatabaseError> {
    let text = row.optional_text(column)?.unwrap_or("[]");
    serde_json::from_str(text).map_err(|_| DatabaseError::Shape(format!("{text:?} is no list of users")))
}

pub(super) fn room_id(row: &Row, column: usize) -> Result<RoomId, DatabaseError> {
    let text = row.text(column)?;
    RoomId::parse(text).map_err(|_| DatabaseError::Shape(format!("{text:?} is no room ID")))
}
