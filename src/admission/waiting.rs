//! Who waits for room for a part of a file.

use std::{collections::HashMap, rc::Rc};

use super::work::Work;

/// For so long, in milliseconds, who was refused is believed to wait: they ask more often.
const ASKED_MS: i64 = 1_000;
/// For so long, in milliseconds, nothing more gives way where something has: who waits finds its room meanwhile.
const FINDING_MS: i64 = 500;
/// For so long, in milliseconds, nothing gives way to who was late when something of theirs did: longer than another server's
/// file may take, so that those who are slow do not end one another's in turn.
const LATE_MS: i64 = 3 * 60 * 1_000;

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// For what, and who; since when, and when they have asked last.
    asked: HashMap<(Work, Rc<str>), (i64, i64)>,
    /// When something gave way to them.
    gave_way: HashMap<Work, i64>,
    /// Who was late when something of theirs gave way, and when it did: no more than can give way in that time.
    late: HashMap<(Work, Rc<str>), i64>,
}

impl Waiting {
    /// Notes whether somebody waits at `now`.
    pub(super) fn note(&mut self, work: Work, sender: &Rc<str>, waits: bool, now: i64) {
        self.forget_old(now);
        let key = (work, Rc::clone(sender));
        if waits {
            self.asked.entry(key).or_insert((now, now)).1 = now;
        } else {
            self.asked.remove(&key);
        }
    }

    /// Whether somebody else waits at `now`.
    pub(super) fn has_others(&mut self, work: Work, sender: &str, now: i64) -> bool {
        self.forget_old(now);
        self.asked.keys().any(|(what, who)| *what == work && **who != *sender)
    }

    /// Since when somebody else waits at `now` to whom something may give way.
    pub(super) fn others_since(&mut self, work: Work, sender: &str, now: i64) -> Option<i64> {
        self.forget_old(now);
        let others = self.asked.iter().filter(|(key, _)| key.0 == work && *key.1 != *sender);
        others.filter(|(key, _)| !self.late.contains_key(*key)).map(|(_, (since, _))| *since).min()
    }

    fn forget_old(&mut self, now: i64) {
        self.asked.retain(|_, (_, asked)| now - *asked < ASKED_MS);
        self.late.retain(|_, late| (0..LATE_MS).contains(&(now - *late)));
    }

    /// Notes that something of theirs that was late gives way at `now`.
    pub(super) fn was_late(&mut self, work: Work, sender: &Rc<str>, now: i64) {
        self.late.insert((work, Rc::clone(sender)), now);
    }

    /// Whether something may give way at `now`, which it then does.
    pub(super) fn has_way(&mut self, work: Work, now: i64) -> bool {
        let is_too_soon = self.gave_way.get(&work).is_some_and(|last| (0..FINDING_MS).contains(&(now - last)));
        if !is_too_soon {
            self.gave_way.insert(work, now);
        }
        !is_too_soon
    }
}
