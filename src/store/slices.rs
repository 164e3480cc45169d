//! Rows in slices, so that others have their turn while they are read or written.

use super::{Store, json_lists, text_lists};
use crate::{
    matrix::identifiers::EventId,
    platform::{
        Clock, DatabaseError, Row, Statement,
        turns::{LIGHT_SLICE, SLICE, turn},
    },
};

impl Store {
    /// Runs `batches` as one call, and reads the rows of the answer in slices of so many.
    ///
    /// # Errors
    /// Where the database fails, or `read` cannot make anything of a row.
    pub(super) async fn read_in_slices<T>(
        &self,
        clock: &dyn Clock,
        slice: usize,
        batches: Vec<Vec<Statement>>,
        read: impl Fn(&Row) -> Result<T, DatabaseError>,
    ) -> Result<Vec<T>, DatabaseError> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.batches(batches).await?;
        let mut found = Vec::new();
        for row in answers.iter().flatten() {
            turn(clock, found.len(), slice).await;
            found.push(read(row)?);
        }
        Ok(found)
    }
}

/// The batches that ask `sql` for the events `ids`, of which it takes a JSON list.
pub(super) fn by_ids(ids: &[EventId], sql: &'static str) -> Vec<Vec<Statement>> {
    let ask =
        |slice: &[EventId]| text_lists(slice).into_iter().map(|list| Statement::new(sql, [list.into()])).collect();
    ids.chunks(LIGHT_SLICE).map(ask).collect()
}

/// What writes `items`, a batch for each slice, as JSON lists of what `row` makes of each.
pub(super) async fn in_slices<T>(
    clock: &dyn Clock,
    items: &[T],
    row: impl Fn(&T) -> String,
    statement: impl Fn(String) -> Statement,
) -> Vec<Vec<Statement>> {
    let mut batches = Vec::new();
    for slice in items.chunks(SLICE) {
        turn(clock, batches.len(), 1).await;
        batches.push(json_lists(slice.iter().map(&row)).into_iter().map(&statement).collect());
    }
    batches
}
