//! Whole states of rooms as they go into answers to clients: read a piece at a time, and written as they are read.

use super::{
    Store,
    answer_texts::{BYTES_AT_ONCE, FIRST_BYTES, MAX_ANSWER},
    state_sql::entries,
    timeline::{SeenEvent, seen_columns, seen_joins},
};
use crate::{
    matrix::state_trie::NodeId,
    platform::{DatabaseError, Statement},
};

/// The events of the root ?1 after the event ?2, by ID, as are ?3 bytes at most with what has redacted them, but one in any case; and
/// how many bytes they have together with those that come after them.
const PIECE: &str = concat!(
    "WITH RECURSIVE ",
    entries!("", "SELECT ?1"),
    ", measured(event_id, event_nid, upto) AS ( \
       SELECT e.event_id, e.event_nid, \
         SUM(octet_length(e.json) + COALESCE(octet_length(redaction.json), 0)) OVER (ORDER BY e.event_id) \
       FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id \
         LEFT JOIN events AS redaction ON redaction.event_id = e.redacted_by WHERE e.event_id > ?2 \
     ) SELECT ",
    seen_columns!(),
    ", (SELECT MAX(upto) FROM measured) AS bytes FROM measured CROSS JOIN events AS e ON e.event_nid = measured.event_nid ",
    seen_joins!(),
    " WHERE measured.upto <= ?3 OR measured.upto = (SELECT MIN(upto) FROM measured) ORDER BY measured.event_id"
);

impl Store {
    /// Writes the events of a snapshot to `text`, each of which is let go of once it is written; several calls where they are long.
    /// `false` where they are more than an answer holds.
    ///
    /// # Errors
    /// Where the database fails; [`DatabaseError::NoRoom`].
    pub async fn write_state(
        &self,
        root: NodeId,
        text: &mut String,
        write: &mut dyn FnMut(&mut String, &SeenEvent),
    ) -> Result<bool, DatabaseError> {
        let mut held = None;
        let (mut last, mut at_once) = (String::new(), FIRST_BYTES);
        loop {
            let parameters = [root.to_string().into(), last.into(), at_once.into()];
            let rows = self.query(Statement::new(PIECE, parameters)).await?;
            let Some(row) = rows.first() else { return Ok(true) };
            let left = row.integer(SeenEvent::COLUMNS)?;
            let bytes = text.len().saturating_add(usize::try_from(left).unwrap_or_default());
            if bytes > MAX_ANSWER {
                return Ok(false);
            }
            if held.is_none() {
                held = self.room_for_users_answer(bytes)?;
            }
            self.hold_for_answer(held.as_ref(), bytes)?;
            // No more than is needed: a text that grows by itself takes twice its length.
            text.reserve_exact(bytes - text.len());
            last = String::new();
            for row in rows {
                let seen = SeenEvent::of_row(&row)?;
                write(text, &seen);
                last = row.text(0)?.to_owned();
            }
            if left <= at_once {
                return Ok(true);
            }
            at_once = BYTES_AT_ONCE;
        }
    }
}
