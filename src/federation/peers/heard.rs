//! When other servers were heard from.

use std::{cell::RefCell, collections::BTreeMap};

use crate::matrix::identifiers::ServerName;

/// For how long the database need not be told again that a server is there, in milliseconds.
const NEWS_AFTER_MS: i64 = 60_000;

/// How many servers are remembered; more are strangers of whom nothing is lost.
const MAX_REMEMBERED: usize = 5_000;

/// The servers of which this isolate has told the database that they are there, and when. Without it each request of another
/// server would cost a call more.
#[derive(Default)]
pub struct LastHeard(RefCell<BTreeMap<ServerName, i64>>);

impl LastHeard {
    /// Whether it is news at `now` that `server` is there. Then the caller tells the database.
    pub fn is_news(&self, server: &ServerName, now: i64) -> bool {
        let mut heard = self.0.borrow_mut();
        if heard.get(server).is_some_and(|at| now - at < NEWS_AFTER_MS) {
            return false;
        }
        if heard.len() >= MAX_REMEMBERED {
            heard.clear();
        }
        heard.insert(server.clone(), now);
        true
    }

    /// From now on it is news that `server` is there: it was not reached.
    pub fn forget(&self, server: &ServerName) {
        self.0.borrow_mut().remove(server);
    }
}
