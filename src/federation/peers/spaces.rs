//! What other servers said of spaces lately. It lives in the isolate's memory, within bounds.

use std::{cell::RefCell, collections::BTreeMap};

use bytes::Bytes;

use crate::matrix::identifiers::RoomId;

/// How long an answer, or that there was none, is good for, in milliseconds.
const GOOD_FOR_MS: i64 = 5 * 60 * 1_000;
/// How many are kept, and how many bytes they are.
const MAX_ANSWERS: usize = 500;
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// What other servers said of spaces, for all requests of an isolate.
#[derive(Default)]
pub struct Spaces {
    answers: RefCell<BTreeMap<RoomId, Answer>>,
}

struct Answer {
    text: Option<Bytes>,
    until: i64,
}

impl Spaces {
    /// What was said of the space, if that is good still at `now`; `Some(None)`: nobody said anything.
    pub fn recall(&self, room_id: &RoomId, now: i64) -> Option<Option<Bytes>> {
        let answers = self.answers.borrow();
        answers.get(room_id).filter(|answer| answer.until > now).map(|answer| answer.text.clone())
    }

    /// Remembers what was said of the space.
    pub fn remember(&self, room_id: &RoomId, text: Option<Bytes>, now: i64) {
        let mut answers = self.answers.borrow_mut();
        answers.retain(|_, answer| answer.until > now);
        let held: usize = answers.values().filter_map(|answer| answer.text.as_ref()).map(Bytes::len).sum();
        if answers.len() >= MAX_ANSWERS || held + text.as_ref().map_or(0, Bytes::len) > MAX_BYTES {
            // Whoever needs them asks again.
            answers.clear();
        }
        answers.insert(room_id.clone(), Answer { text, until: now + GOOD_FOR_MS });
    }
}
