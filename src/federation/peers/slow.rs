//! Which servers take long to answer our transactions.

use std::{cell::RefCell, collections::BTreeMap};

use crate::matrix::identifiers::ServerName;

/// A server that has not answered after so many milliseconds is slow.
const LONG_MS: i64 = 5_000;

/// For so many after the transaction began it counts as slow.
const REMEMBERED_MS: i64 = 60 * 60 * 1_000;

/// How many servers are remembered; others are taken to be as fast as any.
const MAX_REMEMBERED: usize = 5_000;

/// The servers to which a transaction is under way or took long in this isolate, and when it began. Noted before it is sent, as the
/// platform may cut off the work that waits for the answer, and then nobody is left to note it.
#[derive(Default)]
pub struct SlowAnswers(RefCell<BTreeMap<ServerName, i64>>);

impl SlowAnswers {
    /// A transaction to `server` begins at `now`.
    pub fn begin(&self, server: &ServerName, now: i64) {
        let mut begun = self.0.borrow_mut();
        if begun.len() >= MAX_REMEMBERED {
            begun.retain(|_, at| now - *at < REMEMBERED_MS);
        }
        if begun.len() >= MAX_REMEMBERED {
            begun.clear();
        }
        begun.insert(server.clone(), now);
    }

    /// The transaction to `server` has come to an end at `now`, whatever its answer.
    pub fn end(&self, server: &ServerName, now: i64) {
        let mut begun = self.0.borrow_mut();
        if begun.get(server).is_some_and(|at| now - at < LONG_MS) {
            begun.remove(server);
        }
    }

    /// Whether `server` has taken long lately.
    pub fn takes_long(&self, server: &ServerName, now: i64) -> bool {
        self.0.borrow().get(server).is_some_and(|at| (LONG_MS..REMEMBERED_MS).contains(&(now - at)))
    }
}
