//! Rows in slices, so that others have their turn while they are read or written.

use super::{Store, json_lists};
use crate::platform::{
    Clock, DatabaseError, Row, Statement,
    turns::{SLICE, turn},
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
        let answers = self.batches(batches).await?;
        let mut found = Vec::new();
        for row in answers.iter().flatten() {
            turn(clock, found.len(), slice).await;
            found.push(read(row)?);
        }
        Ok(found)
    }
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
