//! What other servers said of spaces lately. It lives in the isolate's memory, within bounds.

use std::{cell::RefCell, collections::BTreeMap};

use bytes::Bytes;

use crate::matrix::identifiers::{RoomId, ServerName};

/// How long an answer is good for, in milliseconds.
const GOOD_FOR_MS: i64 = 5 * 60 * 1_000;
/// How many are kept, and how many bytes they are.
const MAX_ANSWERS: usize = 500;
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// What other servers said of spaces, for all requests of an isolate.
#[derive(Default)]
pub struct Spaces {
    /// By room, and by who said it: anybody may say anything of any room.
    answers: RefCell<BTreeMap<(RoomId, ServerName), Answer>>,
}

struct Answer {
    text: Bytes,
    until: i64,
}

impl Spaces {
    /// What this server said of the space, if that is good still at `now`.
    pub fn recall(&self, room_id: &RoomId, by: &ServerName, now: i64) -> Option<Bytes> {
        let answers = self.answers.borrow();
        answers
            .get(&(room_id.clone(), by.clone()))
            .filter(|answer| answer.until > now)
            .map(|answer| answer.text.clone())
    }

    /// Remembers what this server said of the space.
    pub fn remember(&self, room_id: &RoomId, by: &ServerName, text: Bytes, now: i64) {
        let mut answers = self.answers.borrow_mut();
        answers.retain(|_, answer| answer.until > now);
        let held: usize = answers.values().map(|answer| answer.text.len()).sum();
        if answers.len() >= MAX_ANSWERS || held + text.len() > MAX_BYTES {
            // Whoever needs them asks again.
            answers.clear();
        }
        answers.insert((room_id.clone(), by.clone()), Answer { text, until: now + GOOD_FOR_MS });
    }
}
