//! A part of what several lists hold.

use std::ops::Range;

/// A part of several lists, one after the other.
pub(super) struct Part {
    of: Range<usize>,
    passed: usize,
}

impl Part {
    pub(super) fn new(of: Range<usize>) -> Self {
        Self { of, passed: 0 }
    }

    /// What of the next list is in it.
    pub(super) fn take<'l, T>(&mut self, list: &'l [T]) -> &'l [T] {
        let place = |at: usize| at.saturating_sub(self.passed).min(list.len());
        let (start, end) = (place(self.of.start), place(self.of.end));
        self.passed += list.len();
        list.get(start..end).unwrap_or_default()
    }
}
