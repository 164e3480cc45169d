//! Fetching what received events cite and we do not hold (Server-Server API, "Backfilling and retrieving missing
//! events"), so that staged PDUs can be judged.
//!
//! - [`look`]: one look at a room's staged PDUs, which judges and fetches in turns.
//! - [`between`]: the events between ours and those that lack previous events.
//! - [`state`]: the state before the far edge of a gap that is too wide to be filled.
//! - [`whom`]: which server is asked for what.
//!
//! Every fetched event is checked as a received one; what a server says about the room's state is judged by the room's
//! rules.

mod between;
mod look;
mod state;
mod whom;

use std::{cell::RefCell, collections::VecDeque};

use futures_util::future;

use self::look::{Look, Looked};
use super::pauses;
use crate::{
    federation::peers::looks::Slot,
    log::LogRecord,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
    },
    platform::Budget,
    room::{AskedAbout, Room, RoomError},
    server::Server,
    store::staging::{StagedBy, StagedPdu, stage},
};

/// How many staged PDUs of a room are looked at together.
const STAGED_AT_ONCE: i64 = 200;

/// While somebody looks, nobody else does, for this long in milliseconds.
const LOOK_MS: i64 = 2 * 60 * 1_000;

/// How long a look may take that a request begins, in milliseconds: the platform allows 30 s after the answer.
const AFTER_REQUEST_MS: i64 = 25_000;

/// How many further looks it goes on with that found others running.
const MAX_FURTHER: usize = 20;

/// How long the scheduled trigger may begin further looks, in milliseconds: it comes again after a minute.
const SWEEP_MS: i64 = 50_000;

/// How long a user's request waits for other looks to end, and how often it asks, in milliseconds.
const WAIT_MS: i64 = 10_000;
const WAIT_STEP_MS: u32 = 250;

impl Server {
    /// Starts judging the staged PDUs of the room, and fetching what they cite. Called after a commit that staged some,
    /// and when a join of the room has ended. Where enough looks are running, one of them goes on with the room.
    pub fn fetch_missing(&self, room_id: &RoomId) {
        let (server, room_id) = (self.clone(), room_id.clone());
        self.platform.background.spawn(Box::pin(async move {
            let until = server.platform.clock.now_ms() + AFTER_REQUEST_MS;
            let Some(_slot) = server.begin_look(until) else { return };
            server.judge_staged(&room_id, until).await;
            server.settle_now(&room_id).await;
            for _ in 0..MAX_FURTHER {
                if !server.looks.is_more_wanted() || server.platform.clock.now_ms() >= until {
                    return;
                }
                match server.rooms_due().await.into_iter().next() {
                    Some(room_id) => server.judge_staged(&room_id, until).await,
                    None => server.looks.want_no_more(),
                }
            }
        }));
    }

    /// Judges an event that `origin` has let into a room that we are in too, after fetching what it cites. Where that cannot
    /// be obtained now it is looked for later, as for any other event.
    ///
    /// # Errors
    /// [`RoomError::NotAllowed`] where the room does not allow it, and where the database fails.
    pub(super) async fn judge_given(&self, origin: &ServerName, event: &Event) -> Result<(), RoomError> {
        let received_ts = self.platform.clock.now_ms();
        let staged = StagedPdu { event, origin, by: StagedBy::Member, received_ts };
        self.store.batch(stage(std::iter::once(staged))).await?;
        let give_up = received_ts + WAIT_MS;
        loop {
            let now = self.platform.clock.now_ms();
            let until = now + LOOK_MS;
            if let Some(_slot) = self.begin_look(until) {
                self.judge_staged(event.room_id(), until).await;
                break;
            }
            if now >= give_up {
                break;
            }
            self.platform.clock.sleep(WAIT_STEP_MS).await;
        }
        match self.rooms.receive_own(event, None).await {
            Err(RoomError::MissingEvents(_)) => Ok(()),
            judged => judged,
        }
    }

    /// Asks other servers in the room what the states before these events were, which rest on claims, until `until`. Whether any is
    /// another one now.
    pub(super) async fn ask_for_claims_again(
        &self,
        room: &Room,
        asked_about: &[AskedAbout],
        until: i64,
    ) -> Result<bool, RoomError> {
        let Some(_slot) = self.looks.begin(self.platform.clock.now_ms(), until) else { return Ok(false) };
        let first_depth = self.store.first_depth(&room.room_id).await?;
        let mut look = Look::new(self, room.clone(), first_depth, until);
        let mut changed = false;
        for about in asked_about {
            if look.is_over() {
                break;
            }
            changed |= look.ask_again(about).await?;
        }
        Ok(changed)
    }

    /// Looks again at the staged PDUs that are due, those first that have been so for longest. What is left when the time is
    /// up, or the calls to the database that `budget` allows are made, is first in the next run.
    pub async fn sweep_staged(&self, budget: &Budget) {
        let stop = self.platform.clock.now_ms() + SWEEP_MS;
        let rooms = RefCell::new(VecDeque::from(self.rooms_due().await));
        let work = async || {
            while self.platform.clock.now_ms() < stop && !budget.is_spent() {
                let until = self.platform.clock.now_ms() + LOOK_MS;
                let Some(_slot) = self.begin_look(until) else { return };
                let Some(room_id) = rooms.borrow_mut().pop_front() else { return };
                self.judge_staged(&room_id, until).await;
            }
        };
        future::join(work(), work()).await;
    }

    async fn rooms_due(&self) -> Vec<RoomId> {
        let rooms = self.store.rooms_waiting(&self.config.server_name, self.platform.clock.now_ms()).await;
        rooms.unwrap_or_else(|error| {
            self.platform.log.write(LogRecord::error("the staged PDUs cannot be read").because(&error));
            Vec::new()
        })
    }

    fn begin_look(&self, until: i64) -> Option<Slot> {
        let slot = self.looks.begin(self.platform.clock.now_ms(), until);
        if slot.is_none() {
            self.looks.want_more();
        }
        slot
    }

    async fn judge_staged(&self, room_id: &RoomId, until: i64) {
        if let Err(error) = self.try_judge_staged(room_id, until).await {
            let record = LogRecord::error("the staged PDUs of a room cannot be judged").room(room_id);
            self.platform.log.write(record.because(&error));
        }
    }

    async fn try_judge_staged(&self, room_id: &RoomId, until: i64) -> Result<(), RoomError> {
        let now = self.platform.clock.now_ms();
        let (room, acl) = match self.rooms.room_and_acl(room_id).await {
            Ok(found) => found,
            // Nobody here is in the room any more, or yet.
            Err(RoomError::UnknownRoom) => {
                return Ok(self.store.abandon(&self.config.server_name, room_id, now).await?);
            }
            Err(error) => return Err(error),
        };
        let waiting = self.store.waiting(room_id, STAGED_AT_ONCE, now).await?;
        if waiting.is_empty() {
            // Another look may have them, which began before their last sender was known.
            self.looks.want_more();
            return Ok(());
        }
        // Before the work: one that is cut off must not be begun again at once, for ever.
        let ids: Vec<&str> = waiting.iter().map(|staged| staged.event_id.as_str()).collect();
        self.store.begin_look(room_id, &ids, now + LOOK_MS).await?;
        let first_depth = self.store.first_depth(room_id).await?;
        let mut look = Look::new(self, room, first_depth, until);
        let strangers = look.strangers_among(&waiting).await?;
        for staged in &waiting {
            let dropped = LogRecord::info("a staged PDU is dropped").room(room_id);
            let event = match staged.event(look.version()) {
                Ok(event) => event,
                Err(error) => {
                    self.platform.log.write(dropped.because(&error));
                    continue;
                }
            };
            // While we were joining the room we did not know its ACL. What was sent by none but servers that it keeps out is
            // dropped, unless it is our own event, which came back from a server that let it in.
            let is_own = event.sender().server_name() == self.config.server_name.as_str();
            if is_own || staged.senders.iter().any(|sender| acl.allows(sender)) {
                look.add_staged(event, staged, &strangers);
            } else {
                self.platform.log.write(dropped.event(event.event_id()).because(&RoomError::Denied));
            }
        }
        let outcome = look.run().await;
        let Looked { left, judged, too_much } = look.into_looked();
        let now = self.platform.clock.now_ms();
        let (mut done, mut left_waiting) = (Vec::new(), Vec::new());
        for staged in &waiting {
            let id = staged.event_id.as_str();
            if too_much.iter().any(|dropped| dropped.as_str() == id) {
                continue;
            } else if !left.iter().any(|left| left.as_str() == id) {
                done.push(id.to_owned());
            } else if now - staged.received_ts > pauses::GIVE_UP_AFTER_MS {
                let record = LogRecord::warning("a PDU is given up, as nobody gives what it cites").room(room_id);
                self.platform.log.write(match EventId::parse(id) {
                    Ok(id) => record.event(&id),
                    Err(_) => record,
                });
                done.push(id.to_owned());
            } else {
                left_waiting.push(id);
            }
        }
        if self.store.end_look(room_id, &done, &too_much, &judged, now).await? {
            self.looks.want_more();
        }
        if !left_waiting.is_empty() {
            self.store.pause(room_id, &left_waiting, now, pauses::BOUNDS_MS).await?;
        }
        outcome
    }
}
