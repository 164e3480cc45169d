//! Media whose length is not known, as the store takes them: in parts, each of which must be in memory as a whole. It counts with
//! what else is in work before it is there, since senders may be slow and many.

use std::{mem, rc::Rc};

use bytes::Bytes;
use futures_util::future::{Either, select};

use super::when_there_is_room;
use crate::{
    admission::{Admission, LITTLE_FILE, Reservation},
    platform::{
        Clock,
        media::{ByteStream, MediaError},
    },
};

/// The length of each part but the last: the least that R2 takes.
pub const PART_BYTES: usize = 5 * 1024 * 1024;
/// For so long, in milliseconds, nothing may come: what waits for longer would count no more. And in so long a part must be there, as
/// others may wait for its room.
const LONGEST_SILENCE_MS: u32 = 30_000;
const LONGEST_PART_MS: u32 = 120_000;
/// How fast a part must come while others wait for room, in bytes a millisecond, and what time it has beside, in milliseconds. How
/// often it is looked whether it must give way to them.
const LEAST_PACE: usize = 256;
const HEAD_START_MS: i64 = 5_000;
const LOOK_MS: u32 = 1_000;
/// For so long at most a part waits for room, while its sender is not read from, and how long between two looks.
const WAIT_MS: u32 = 20_000;
const PAUSE_MS: u32 = 200;

/// A stream in parts.
pub struct Parts {
    stream: Box<dyn ByteStream>,
    /// How many bytes may still come.
    left: u64,
    /// What has come and is in no part yet.
    piece: Bytes,
    part: Vec<u8>,
    /// Since when it is read, without the time in which it waited for room.
    begun: i64,
    /// Who sends it.
    sender: Rc<str>,
    /// What is held for a part, and of how many bytes that one may be.
    held: Option<(Reservation, usize)>,
    admission: Rc<Admission>,
    clock: Rc<dyn Clock>,
}

impl Parts {
    /// The parts of a stream of at most `limit` bytes from `sender`.
    pub fn new(
        stream: Box<dyn ByteStream>,
        limit: u64,
        sender: &str,
        admission: Rc<Admission>,
        clock: Rc<dyn Clock>,
    ) -> Self {
        let (piece, part, sender) = (Bytes::new(), Vec::new(), Rc::from(sender));
        Self { stream, left: limit, piece, part, begun: 0, sender, held: None, admission, clock }
    }

    /// The next part: of [`PART_BYTES`], but for the last; `None` at the end. Its memory counts until another is asked for, and from
    /// the first long part on as much counts until the end, so that what has begun goes on, unless it gives way to others.
    ///
    /// # Errors
    /// [`MediaError::TooLong`]; [`MediaError::Broken`], also where it comes too slowly; [`MediaError::NoRoom`]; [`MediaError::GaveWay`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, MediaError> {
        let next = self.read().await;
        if next.is_err() {
            // What is done about it takes time, in which others may have the room.
            (self.part, self.held) = (Vec::new(), None);
        }
        next
    }

    async fn read(&mut self) -> Result<Option<Vec<u8>>, MediaError> {
        self.begun = self.clock.now_ms();
        let until = self.begun + i64::from(LONGEST_PART_MS);
        while self.part.len() < PART_BYTES {
            if self.piece.is_empty() {
                match self.piece_until(until).await? {
                    Some(piece) => self.piece = piece,
                    None => break,
                }
            }
            let more = self.piece.split_to(self.piece.len().min(PART_BYTES - self.part.len()));
            self.left = self.left.checked_sub(more.len() as u64).ok_or(MediaError::TooLong)?;
            self.make_room(self.part.len() + more.len()).await?;
            self.part.extend_from_slice(&more);
        }
        Ok(Some(mem::take(&mut self.part)).filter(|part| !part.is_empty()))
    }

    /// The next piece, if it is there in time; `None` at the end.
    async fn piece_until(&mut self, until: i64) -> Result<Option<Bytes>, MediaError> {
        let until = until.min(self.clock.now_ms() + i64::from(LONGEST_SILENCE_MS));
        let due = self.due();
        let mut coming = self.stream.next();
        loop {
            let now = self.clock.now_ms();
            if self.held.as_ref().is_some_and(|(held, _)| held.gives_way(due, now)) {
                return Err(MediaError::GaveWay);
            }
            let left = u32::try_from(until - now).unwrap_or_default();
            match select(coming, self.clock.sleep(left.min(LOOK_MS))).await {
                Either::Left((piece, _)) => return Ok(piece.transpose()?),
                Either::Right(_) if left <= LOOK_MS => return Err(MediaError::Broken),
                Either::Right((_, later)) => coming = later,
            }
        }
    }

    /// When more than what has come of a part must be there, if others wait.
    fn due(&self) -> i64 {
        let in_ms = i64::try_from(self.part.len() / LEAST_PACE).unwrap_or(i64::MAX);
        self.begun.saturating_add(HEAD_START_MS).saturating_add(in_ms)
    }

    /// Makes room for so many bytes of a part. Who waits for the room of a long one holds little of what is counted apart, so that
    /// nobody waits for another who waits.
    async fn make_room(&mut self, bytes: usize) -> Result<(), MediaError> {
        let most = if bytes <= LITTLE_FILE { LITTLE_FILE } else { PART_BYTES };
        let clock = Rc::clone(&self.clock);
        let asked = clock.now_ms();
        let hold = |now| {
            if self.hold(most, now) {
                return Some(Ok(()));
            }
            // That no more of it comes is not its sender's doing.
            let gives_way = self.held.as_ref().is_some_and(|(held, _)| held.gives_way(i64::MAX, now));
            gives_way.then(|| Err(self.no_room()))
        };
        when_there_is_room(clock.as_ref(), WAIT_MS, PAUSE_MS, hold).await.unwrap_or_else(|| Err(self.no_room()))?;
        self.begun += clock.now_ms() - asked;
        if bytes > self.part.capacity() {
            // It is in two places while it grows, but only until the next await.
            let capacity = (2 * self.part.capacity()).max(bytes).min(most);
            self.part.reserve_exact(capacity - self.part.len());
        }
        Ok(())
    }

    /// Why what waits for room ends: of what has had that of a long part, much may have come.
    fn no_room(&self) -> MediaError {
        let is_long = self.held.as_ref().is_some_and(|(_, most)| *most > LITTLE_FILE);
        if is_long { MediaError::GaveWay } else { MediaError::NoRoom }
    }

    fn hold(&mut self, bytes: usize, now: i64) -> bool {
        match &self.held {
            Some((held, most)) if bytes <= *most => held.hold(*most, now),
            _ => {
                let more = self.admission.reserve_for_part(bytes, &self.sender, now);
                let fits = more.is_some();
                self.held = more.map(|held| (held, bytes)).or_else(|| self.held.take());
                fits
            }
        }
    }
}
