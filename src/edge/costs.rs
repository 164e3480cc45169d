//! What the platform charges for, added up for one event where `LOG_COSTS` asks for it.

use std::cell::Cell;

/// Calls to the database, and the rows that they read and wrote.
#[derive(Default)]
pub(super) struct Costs {
    calls: Cell<u32>,
    rows_read: Cell<f64>,
    rows_written: Cell<f64>,
}

impl Costs {
    /// Counts one more call.
    pub(super) fn add_call(&self) {
        self.calls.set(self.calls.get() + 1);
    }

    /// Adds the rows of one statement.
    pub(super) fn add_rows(&self, read: f64, written: f64) {
        self.rows_read.set(self.rows_read.get() + read);
        self.rows_written.set(self.rows_written.get() + written);
    }

    /// One line: what the event that `label` names has cost so far.
    pub(super) fn line(&self, label: &str) -> String {
        let (calls, read, written) = (self.calls.get(), self.rows_read.get(), self.rows_written.get());
        format!("cost calls={calls} rows_read={read} rows_written={written} {label}")
    }
}
