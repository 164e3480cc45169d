//! What `/sync` reads besides events and account data: typing, receipts and presence. Nothing of it costs a row while nothing
//! is new in its stream.

use super::{
    positions::{PresencePos, ReceiptsPos, TimelinePos, TypingPos},
    presence::{self, PresenceNews},
    receipts::{self, ReceiptNews},
    typing::{self, TypingNews},
};
use crate::platform::{DatabaseError, Rows, Statement};

/// Positions in the streams of typing, receipts and presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FleetingAt {
    /// In typing.
    pub typing: TypingPos,
    /// Until when one of those is typing whom the client was told of, in milliseconds since the epoch: then it is told who is.
    /// 0 for nobody.
    pub typing_until: i64,
    /// In receipts.
    pub receipts: ReceiptsPos,
    /// In presence.
    pub presence: PresencePos,
}

/// What to read.
#[derive(Debug, Clone, Copy)]
pub struct FleetingRead {
    /// Up to where the client knows everything; `None` where it knows nothing.
    pub since: Option<FleetingAt>,
    /// Now, in milliseconds since the epoch.
    pub now: i64,
}

/// What there is of [`FleetingRead`], and up to where.
#[derive(Debug, Default)]
pub struct FleetingFound {
    /// Up to where.
    pub at: FleetingAt,
    /// Who is typing, by room.
    pub typing: TypingNews,
    /// Up to where users have read.
    pub receipts: ReceiptNews,
    /// Who is there.
    pub presence: PresenceNews,
}

/// How many answers [`ask`]'s statements have.
pub(super) const ANSWERS: usize = 5;

/// `events` and `after` as for [`receipts::ask`].
pub(super) fn ask(read: &FleetingRead, user: &str, events: TimelinePos, after: &str) -> [Statement; ANSWERS] {
    let (since, until) = of_typing(read);
    let [page, of_new_rooms] = receipts::ask(user, read.since.map(|at| at.receipts), events, after);
    let known = read.since.map(|at| at.presence);
    let [presence, of_new_room_mates] = presence::ask(user, known, events, after);
    [typing::ask(user, since, until, read.now), page, of_new_rooms, presence, of_new_room_mates]
}

/// Who knows nothing is told who is typing, but not who was.
fn of_typing(read: &FleetingRead) -> (TypingPos, Option<i64>) {
    match read.since {
        Some(at) => (at.typing, Some(at.typing_until).filter(|until| *until > 0)),
        None => (TypingPos::MAX, Some(0)),
    }
}

/// The answers to [`ask`]. `ends` are the ends of the streams.
pub(super) fn found(
    read: &FleetingRead,
    answers: [Rows; ANSWERS],
    ends: FleetingAt,
) -> Result<FleetingFound, DatabaseError> {
    let [typing, page, of_new_rooms, presence, of_new_room_mates] = answers;
    let (_, until) = of_typing(read);
    let typing = typing::news(&typing, until, read.now)?;
    let receipts = receipts::news(&page, &of_new_rooms)?;
    let presence = presence::news(&presence, &of_new_room_mates, read.since.is_none())?;
    let known = until.filter(|until| !typing.is_all && *until > read.now);
    let at = FleetingAt {
        typing: typing.page_end.unwrap_or(ends.typing),
        typing_until: [known, typing.until].into_iter().flatten().min().unwrap_or(0),
        receipts: receipts.page_end.unwrap_or(ends.receipts),
        presence: presence.page_end.unwrap_or(ends.presence),
    };
    Ok(FleetingFound { at, typing, receipts, presence })
}
