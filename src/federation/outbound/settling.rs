//! Settling rooms in which something rests on another server's claim of a state (`room/settling.rs`): what may be judged again is,
//! and where a verdict against somebody rests on a claim, the history that shows whether it is right is fetched.
//!
//! Nobody may give that, or hardly any of it: so others are asked as well what the state was that is known by a claim.
//!
//! Else nothing is fetched for it: where only states are claimed, that is settled when somebody pages back over the gap, or when
//! what is lacking comes by itself. Events that are held without their content are asked for along with it.

use std::collections::HashSet;

use super::{backfill::backfill, pauses};
use crate::{
    log::LogRecord,
    matrix::identifiers::{RoomId, ServerName},
    platform::Budget,
    room::{Extent, Left, Room, RoomError, Settled},
    server::Server,
    store::unsettled::Unsettled,
};

/// For so long, in milliseconds, a room is taken in hand.
const IN_HAND_MS: i64 = 2 * 60 * 1_000;

/// How often a room in which there is more to judge is taken in hand again at once; after that with pauses, as others are.
const MAX_TIMES_AT_ONCE: i64 = 200;

/// In each of how many such looks at once others are asked as well: members may see to it that there is always more.
const LOOKS_AT_ONCE: i64 = 16;

/// How often whole copies are asked for of events that are held without their content: over most of a day.
const MAX_TIMES_FOR_COPIES: i64 = 24;

/// How often other servers are asked for history each time, and for how many events.
const MAX_FETCHES: usize = 5;
const EVENTS_AT_ONCE: usize = 100;

/// How long the scheduled trigger may begin with further rooms, in milliseconds: it comes again after a minute.
const SWEEP_MS: i64 = 50_000;

/// How many rooms one run of the scheduled trigger settles.
const ROOMS_AT_ONCE: i64 = 20;

impl Server {
    /// Settles the room after the answer, if there is anything to settle now.
    pub fn settle(&self, room_id: &RoomId) {
        let (server, room_id) = (self.clone(), room_id.clone());
        self.platform.background.spawn(Box::pin(async move { server.settle_now(&room_id).await }));
    }

    /// Settles the rooms that are due, those first that have been so for longest, while `budget` lasts.
    pub async fn sweep_unsettled(&self, budget: &Budget) {
        let now = self.platform.clock.now_ms();
        let rooms = match self.store.unsettled_rooms(now, ROOMS_AT_ONCE).await {
            Ok(rooms) => rooms,
            Err(error) => {
                self.platform.log.write(LogRecord::error("the unsettled rooms cannot be read").because(&error));
                return;
            }
        };
        for room_id in rooms {
            if budget.is_spent() || self.platform.clock.now_ms() >= now + SWEEP_MS {
                return;
            }
            self.settle_now(&room_id).await;
        }
    }

    pub(super) async fn settle_now(&self, room_id: &RoomId) {
        if let Err(error) = self.try_settle(room_id).await {
            let record = LogRecord::error("a room cannot be settled").room(room_id);
            self.platform.log.write(record.because(&error));
        }
    }

    async fn try_settle(&self, room_id: &RoomId) -> Result<(), RoomError> {
        let clock = &self.platform.clock;
        let now = clock.now_ms();
        let until = now + IN_HAND_MS;
        let Some(unsettled) = self.store.begin_settling(room_id, now, until).await? else { return Ok(()) };
        let room = self.rooms.room(room_id).await?.filter(|room| room.local_joined > 0);
        let extent = room.as_ref().map(|room| room.extent);
        let settled = match &room {
            Some(room) => self.settle_room(room, unsettled, until).await,
            None => Ok((Left::Nothing, false)),
        };
        // What fails each time is done more and more seldom, as what leads to nothing.
        let (left, altered) = *settled.as_ref().unwrap_or(&(Left::States, false));
        let retry_at = retry_at(left, altered, unsettled, clock.now_ms());
        let is_settled = settled.is_ok() && left != Left::More;
        if extent == Some(Extent::Settling) && (is_settled || retry_at.is_none()) {
            self.rooms.partial_room_is_settled(room_id).await?;
        }
        self.store.end_settling(room_id, until, retry_at).await?;
        settled.map(|_| ())
    }

    /// What is left to settle of the room, and whether whole copies of events came.
    async fn settle_room(&self, room: &Room, unsettled: Unsettled, until: i64) -> Result<(Left, bool), RoomError> {
        let Unsettled { looks, attempts, .. } = unsettled;
        let left = match room.extent {
            // There is nothing to judge it by before the members are known.
            Extent::Partial => Left::States,
            Extent::Whole | Extent::Settling => self.settle_and_fetch(room, unsettled, until).await?,
        };
        Ok((left, attempts <= MAX_TIMES_FOR_COPIES && self.complete_copies(room, looks, until).await?))
    }

    async fn settle_and_fetch(&self, room: &Room, unsettled: Unsettled, until: i64) -> Result<Left, RoomError> {
        let room_id = &room.room_id;
        let look = usize::try_from(unsettled.looks).unwrap_or_default();
        let settled = self.rooms.settle(room_id, look).await?;
        let asking = Asking::of(settled.left, unsettled);
        if unsettled.looks == 1 {
            // As a rule, there is history at first.
            let settled = self.fetch_and_settle(room_id, settled, (asking, look), until - IN_HAND_MS / 2).await?;
            return Ok(self.ask_and_settle(room, settled, (asking, look), until).await?.left);
        }
        // Whoever gives little history each time, or gives it slowly, must not keep us from asking others; nor who says slowly what
        // the state was from history.
        let settled = self.ask_and_settle(room, settled, (asking, look), until - IN_HAND_MS / 2).await?;
        Ok(self.fetch_and_settle(room_id, settled, (asking, look), until).await?.left)
    }

    /// Fetches history for as long as verdicts against somebody are left and any comes, beginning with none after `until`.
    async fn fetch_and_settle(
        &self,
        room_id: &RoomId,
        mut settled: Settled,
        (asking, look): (Asking, usize),
        until: i64,
    ) -> Result<Settled, RoomError> {
        for _ in 0..MAX_FETCHES {
            if !asking.is_about(settled.left) || !self.fetch_history(room_id, &settled, until).await? {
                break;
            }
            settled = self.rooms.settle(room_id, look).await?;
        }
        Ok(settled)
    }

    /// Asks others what the states were that are known by claims alone, where verdicts against somebody are left: what is lacking nobody
    /// may give, as the rules forbid it, and its sender has built upon it.
    async fn ask_and_settle(
        &self,
        room: &Room,
        settled: Settled,
        (asking, look): (Asking, usize),
        until: i64,
    ) -> Result<Settled, RoomError> {
        if !asking.is_about(settled.left) {
            return Ok(settled);
        }
        let residents: HashSet<ServerName> = self.rooms.servers(&room.room_id).await?.into_iter().collect();
        let asked_about = settled.to_ask_about(asking.turn, |server| residents.contains(server));
        if !self.ask_for_claims_again(room, &asked_about, until).await? {
            return Ok(settled);
        }
        self.rooms.settle(&room.room_id, look).await
    }

    /// Fetches history into the gaps that lack what `settled` names, beginning with none after `until`. Whether any came.
    async fn fetch_history(&self, room_id: &RoomId, settled: &Settled, until: i64) -> Result<bool, RoomError> {
        let mut progress = false;
        for pos in self.store.gaps_at(room_id, &settled.lacking).await? {
            let now = self.platform.clock.now_ms();
            if now >= until {
                break;
            }
            let Some(room) = self.rooms.room(room_id).await? else { return Ok(false) };
            let Some(gap) = self.store.newest_gap(room_id, (pos.before(), pos), now).await? else { continue };
            match backfill(self, &room, &gap, EVENTS_AT_ONCE).await {
                Ok(filled) => progress |= filled,
                Err(error) => {
                    let record = LogRecord::warning("the history of a room could not be fetched").room(room_id);
                    self.platform.log.write(record.because(&error));
                }
            }
        }
        Ok(progress)
    }
}

/// Whether others are asked in a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asking {
    /// Whether also where there is more to judge than can be at a time.
    of_more: bool,
    /// Whose turn it is.
    turn: usize,
}

impl Asking {
    /// In a look that has found so much `left` at first. Where there is more, others are asked in some of the looks that come at once,
    /// or nobody ever would be who could put an end to that; and in all of those that come with pauses.
    fn of(left: Left, Unsettled { looks, attempts, .. }: Unsettled) -> Self {
        let is_at_once = left == Left::More && attempts <= MAX_TIMES_AT_ONCE;
        let turn = if is_at_once { looks / LOOKS_AT_ONCE } else { looks };
        Self {
            of_more: left == Left::More && (!is_at_once || looks % LOOKS_AT_ONCE == 0),
            turn: usize::try_from(turn).unwrap_or_default(),
        }
    }

    fn is_about(self, left: Left) -> bool {
        left == Left::Verdicts || self.of_more && left == Left::More
    }
}

/// When the room is looked at again, if at all. Claims that are left then are believed, until there is anything new to judge them by.
fn retry_at(left: Left, altered: bool, unsettled: Unsettled, now: i64) -> Option<i64> {
    match left {
        Left::Nothing if !altered => None,
        // Also where there is more each time: whoever keeps it so must not keep us at it.
        _ if now - unsettled.since > pauses::GIVE_UP_AFTER_MS => None,
        Left::More if unsettled.attempts <= MAX_TIMES_AT_ONCE => Some(now),
        Left::Nothing | Left::States | Left::Verdicts | Left::More => Some(now + pauses::after(unsettled.attempts)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_room_in_which_there_is_always_more_is_left_at_last() {
        let (mut now, mut attempts) = (1_000_000, 1);
        while let Some(at) = retry_at(Left::More, false, Unsettled { looks: attempts, attempts, since: 1_000_000 }, now)
        {
            // Each time takes a while.
            now = at + 1_000;
            attempts += 1;
            assert!(attempts < 1_000, "{attempts} times in {} s", (now - 1_000_000) / 1_000);
        }
        assert!(now - 1_000_000 > pauses::GIVE_UP_AFTER_MS && attempts > MAX_TIMES_AT_ONCE);
        assert_eq!(retry_at(Left::More, false, Unsettled { looks: 1, attempts: 1, since: 0 }, 5), Some(5));
        assert_eq!(
            retry_at(Left::Nothing, true, Unsettled { looks: 1, attempts: 1, since: 0 }, pauses::GIVE_UP_AFTER_MS + 1),
            None
        );
        assert!(retry_at(Left::Verdicts, false, Unsettled { looks: 1, attempts: 1, since: 0 }, 5).unwrap() > 5);
    }

    #[test]
    fn where_there_is_always_more_each_has_its_turn_to_be_asked_and_not_at_once() {
        // However often members see to it that the pauses begin anew.
        for begins_anew in [i64::MAX, 1, 7, 16, 100] {
            let asking = (1..=600).map(|looks| {
                let attempts = 1 + (looks - 1) % begins_anew;
                (attempts, Asking::of(Left::More, Unsettled { looks, attempts, since: 0 }))
            });
            let asking: Vec<(i64, Asking)> = asking.filter(|(_, asking)| asking.is_about(Left::More)).collect();
            let at_once = asking.iter().filter(|(attempts, _)| *attempts <= MAX_TIMES_AT_ONCE).count();
            let turns: Vec<usize> = asking.iter().take(at_once).map(|(_, asking)| asking.turn).collect();
            assert_eq!(turns, (1..=at_once).collect::<Vec<_>>(), "{begins_anew}");
            let with_pauses = if begins_anew == i64::MAX { 400 } else { 0 };
            assert_eq!((at_once, asking.len() - at_once), ((600 - with_pauses) / 16, with_pauses), "{begins_anew}");
        }
        // Where it ends with a pause each time, others are asked each time, and the rest of what came is judged at once.
        for looks in 1..40 {
            let asking = Asking::of(Left::Verdicts, Unsettled { looks, attempts: looks, since: 0 });
            assert_eq!((asking.is_about(Left::Verdicts), asking.is_about(Left::More)), (true, false));
            assert_eq!(i64::try_from(asking.turn), Ok(looks));
        }
        assert!(!Asking::of(Left::States, Unsettled { looks: 16, attempts: 16, since: 0 }).is_about(Left::States));
    }
}
