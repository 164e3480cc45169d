//! Texts of events as they go into answers: read so many at a time, and written as they are.

use std::{collections::VecDeque, rc::Rc};

use super::{Store, event_id, events::shown_text, json_list};
use crate::{
    admission::{MEMORY_FOR_A_BYTE, Reservation},
    matrix::identifiers::{EventId, RoomId},
    platform::{DatabaseError, Row, Rows, SqlValue, Statement},
};

/// How many texts of events are read at once, and how many bytes of them: what is read and what is made of it must be in memory
/// together.
const TEXTS_AT_ONCE: usize = 2_500;
pub(super) const BYTES_AT_ONCE: i64 = 8 << 20;
/// The same of what is read first, while it is not known how much there is.
pub(super) const FIRST_BYTES: i64 = 1 << 20;

/// What is read takes so much beside the answer: of two lists what is read first, and of a longer answer what is read at once.
const FIRST_READ: usize = 2 << 20;
const LATER_READ: usize = 10 << 20;

/// The most bytes of an answer: what is more does not fit into the memory that there is.
pub const MAX_ANSWER: usize = 48 << 20;

/// A local user's answer of so many bytes does not count with what else is in work: there are many, and few of them are long.
const LITTLE: usize = 1 << 20;

/// The texts of so many events of `numbered(event_id, number)`, of the room ?3, as are ?4 at most, and ?5 bytes at most; of the others
/// the IDs, to be read later. And how long each text is, as far as that is known.
macro_rules! texts_of_numbered {
    () => {
        "measured(event_id, number, nid, bytes, upto) AS ( \
           SELECT numbered.event_id, numbered.number, e.event_nid, octet_length(e.json), \
             SUM(octet_length(e.json)) OVER (ORDER BY numbered.number) \
           FROM numbered LEFT JOIN events AS e \
             ON numbered.number <= ?4 AND e.event_id = numbered.event_id AND e.room_id = ?3 ) \
         SELECT e.json, measured.event_id, CASE WHEN e.redacted_by IS NOT NULL THEN r.room_version END AS redact_by, \
           measured.number > ?4 OR COALESCE(measured.upto, 0) > ?5 AS later, measured.bytes \
         FROM measured LEFT JOIN events AS e ON e.event_nid = measured.nid AND measured.upto <= ?5 \
           LEFT JOIN rooms AS r ON r.room_id = e.room_id"
    };
}
pub(super) use texts_of_numbered;

/// Of the events ?1, a JSON list; ?2 is not used.
const TEXTS: &str =
    concat!("WITH numbered(event_id, number) AS ( SELECT value, key + 1 FROM json_each(?1) ), ", texts_of_numbered!());

/// Texts of events of one room, of which the first are read.
#[derive(Debug)]
pub struct EventTexts {
    pub(super) room_id: RoomId,
    pub(super) rows: Rows,
    /// What they, and the answer that they are written to, take of what may be in work.
    pub(super) held: Option<Rc<Reservation>>,
}

impl EventTexts {
    /// These events of the room, all of them still to be read.
    pub fn of(room_id: &RoomId, ids: &[EventId], held: Option<&Rc<Reservation>>) -> Self {
        let (none, later) = (SqlValue::Null, SqlValue::from(true));
        let row = |id: &EventId| Row(vec![none.clone(), id.as_str().into(), none.clone(), later.clone(), none.clone()]);
        Self { room_id: room_id.clone(), rows: ids.iter().map(row).collect(), held: held.cloned() }
    }
}

impl Store {
    /// Makes room for an answer of which the first texts are about to be read, or a whole one of which it is known how long it is.
    ///
    /// # Errors
    /// [`DatabaseError::NoRoom`]
    pub fn room_for_answer(&self, bytes: usize) -> Result<Option<Rc<Reservation>>, DatabaseError> {
        Ok(self.room_for(memory_of(bytes))?.map(Rc::new))
    }

    /// As [`Store::room_for_answer`], for one that a local user has asked for.
    ///
    /// # Errors
    /// [`DatabaseError::NoRoom`]
    pub(super) fn room_for_users_answer(&self, bytes: usize) -> Result<Option<Reservation>, DatabaseError> {
        if bytes <= LITTLE { Ok(None) } else { self.room_for(memory_of(bytes)) }
    }

    /// Makes room for states of so many bytes that are read at once.
    ///
    /// # Errors
    /// [`DatabaseError::NoRoom`]
    pub fn room_for_states(&self, bytes: i64) -> Result<Option<Reservation>, DatabaseError> {
        let bytes = usize::try_from(bytes).unwrap_or_default().saturating_mul(MEMORY_FOR_A_BYTE);
        if bytes <= LITTLE { Ok(None) } else { self.room_for(bytes) }
    }

    /// Makes what is held enough for an answer of so many bytes.
    ///
    /// # Errors
    /// [`DatabaseError::NoRoom`]
    pub(super) fn hold_for_answer(&self, held: Option<&Reservation>, bytes: usize) -> Result<(), DatabaseError> {
        match held.zip(self.now_ms()) {
            Some((held, now)) if !held.hold_at_least(memory_of(bytes), now) => Err(DatabaseError::NoRoom),
            _ => Ok(()),
        }
    }

    /// Appends a JSON list of the texts to `answer`, redacted ones as redacted. Each is let go of once it is written, so that
    /// there is one copy of them all, and never a second. `false` where the answer would be too large to be given.
    ///
    /// # Errors
    /// Where the database fails; [`DatabaseError::NoRoom`].
    pub async fn write_texts(&self, texts: EventTexts, answer: &mut String) -> Result<bool, DatabaseError> {
        let EventTexts { room_id, mut rows, held } = texts;
        let held = match held {
            Some(held) => Some(held),
            None => self.room_for_answer(answer.len())?,
        };
        let mut later = VecDeque::new();
        let mut list = List::begin(answer);
        loop {
            if !list.expect(&rows, held.as_deref().zip(self.now_ms()))? {
                return Ok(false);
            }
            // What is read next comes before what waits.
            let mut passed = VecDeque::new();
            for row in rows {
                if row.integer(3)? != 0 {
                    passed.push_back(event_id(&row, 1)?);
                } else if row.optional_text(0)?.is_some() {
                    list.push(&row)?;
                }
            }
            passed.append(&mut later);
            later = passed;
            let ids: Vec<EventId> = later.drain(..later.len().min(TEXTS_AT_ONCE)).collect();
            if ids.is_empty() {
                break;
            }
            let ids = json_list(ids.iter().map(EventId::as_str));
            let parameters = [ids.into(), SqlValue::Null, room_id.as_str().into()];
            rows = self.query(texts_at_once(TEXTS, parameters, BYTES_AT_ONCE)).await?;
        }
        list.end();
        Ok(true)
    }
}

/// A statement that ends in `texts_of_numbered`, the first of an answer.
pub(super) fn first_texts(sql: &'static str, parameters: [SqlValue; 3]) -> Statement {
    texts_at_once(sql, parameters, FIRST_BYTES)
}

fn texts_at_once(sql: &'static str, [one, other, room]: [SqlValue; 3], bytes: i64) -> Statement {
    let events = i64::try_from(TEXTS_AT_ONCE).unwrap_or(i64::MAX);
    Statement::new(sql, [one, other, room, events.into(), bytes.into()])
}

/// What an answer of so many bytes takes, together with what is read for it.
fn memory_of(bytes: usize) -> usize {
    bytes.saturating_add(if bytes <= FIRST_READ { FIRST_READ } else { LATER_READ })
}

/// How many bytes a list has beside its texts, together with the end of the answer.
const BESIDE_TEXTS: usize = 64;

/// A JSON list that is being written.
struct List<'a> {
    text: &'a mut String,
    is_empty: bool,
}

impl<'a> List<'a> {
    fn begin(text: &'a mut String) -> Self {
        text.push('[');
        Self { text, is_empty: true }
    }

    /// Makes room for the texts of `rows`, and no more: a text that grows by itself takes twice its length. `false` where they are
    /// too many for any answer.
    fn expect(&mut self, rows: &Rows, held: Option<(&Reservation, i64)>) -> Result<bool, DatabaseError> {
        let mut bytes = BESIDE_TEXTS;
        for row in rows {
            let text = row.optional_integer(4)?.and_then(|bytes| usize::try_from(bytes).ok());
            bytes += text.map_or(0, |bytes| bytes + 1);
        }
        if self.text.len() + bytes > MAX_ANSWER {
            return Ok(false);
        }
        if held.is_some_and(|(held, now)| !held.hold_at_least(memory_of(self.text.len() + bytes), now)) {
            return Err(DatabaseError::NoRoom);
        }
        self.text.reserve_exact(bytes);
        Ok(true)
    }

    /// Writes the text in a row of `texts_of_numbered`, which begins as one of `shown_columns` does.
    fn push(&mut self, row: &Row) -> Result<(), DatabaseError> {
        if !std::mem::take(&mut self.is_empty) {
            self.text.push(',');
        }
        self.text.push_str(&shown_text(row)?);
        Ok(())
    }

    fn end(self) {
        self.text.push(']');
    }
}
