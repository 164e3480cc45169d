//! What the platform charges for, added up for one event where `LOG_COSTS` asks for it.

use std::cell::Cell;

use crate::log::Cost;

/// Calls to the database, and the rows that they read and wrote.
#[derive(Default)]
pub(super) struct Costs(Cell<Cost>);

impl Costs {
    /// Counts one more call.
    pub(super) fn add_call(&self) {
        let cost = self.0.get();
        self.0.set(Cost { calls: cost.calls + 1, ..cost });
    }

    /// Adds the rows of one statement: whole numbers.
    pub(super) fn add_rows(&self, read: f64, written: f64) {
        let Cost { calls, rows_read, rows_written } = self.0.get();
        self.0.set(Cost { calls, rows_read: rows_read + read as u64, rows_written: rows_written + written as u64 });
    }

    /// Adds what was counted elsewhere.
    pub(super) fn add(&self, more: Cost) {
        let Cost { calls, rows_read, rows_written } = self.0.get();
        self.0.set(Cost {
            calls: calls + more.calls,
            rows_read: rows_read + more.rows_read,
            rows_written: rows_written + more.rows_written,
        });
    }

    /// All of it so far.
    pub(super) fn cost(&self) -> Cost {
        self.0.get()
    }
}
