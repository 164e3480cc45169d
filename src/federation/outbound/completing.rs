//! Faster joins (Server-Server API, "Joining Rooms", `members_omitted`): the rest of the state of a room that was joined by an
//! answer without its members (`room/partial.rs`) is fetched when the user is in it already. It is read, judged and
//! kept as the answer to the join of a large room is, in steps that the scheduled trigger goes on with.

use super::{
    countersigning::bad_answer,
    join_answers::{Rest, read_rest},
    pauses,
};
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        event::Event,
        identifiers::{RoomId, ServerName},
    },
    platform::Budget,
    room::{Extent, Progress, RoomError, others_may_give},
    server::Server,
    store::large_joins::LargeJoin,
};

/// How many calls to the database are made for it after the answer to the client. The platform allows 1,000 for each request.
const CALLS: u64 = 500;

/// How many servers are asked in a row.
const TRIES: usize = 3;

/// For so long, in milliseconds, nobody asks again: somewhat longer than an answer may take to begin, and its first events to be kept.
const READING_MS: i64 = 150 * 1_000;

/// How long a client's request waits for the members of a room, and how long it is until it looks again: at first, and at most.
const WAIT_MS: i64 = 25_000;
const LOOK_AGAIN_MS: (u32, u32) = (100, 2_000);

impl Server {
    /// What will complete the state of the room that `join` has entered through the server `resident`.
    pub(super) fn rest_of_state(&self, resident: &ServerName, join: &Event) -> LargeJoin {
        let now = self.platform.clock.now_ms();
        LargeJoin { completes: true, ..LargeJoin::begun(self.random_id(), resident.clone(), join.clone(), now) }
    }

    /// Begins to complete the state of a room, after the answer.
    pub(super) fn complete(&self, rest: LargeJoin) {
        let server = self.counted_apart();
        self.platform.background.spawn(Box::pin(async move {
            let budget = server.meter.budget(CALLS);
            let work = server.go_on_completing(rest.clone(), &budget);
            if let Err(error) = server.holding(rest.room_id(), &rest.join_id, work).await {
                let record = LogRecord::warning("the state of a room is not whole yet").room(rest.room_id());
                server.platform.log.write(record.because(&error));
            }
        }));
    }

    /// Goes on with completing the state of a room.
    ///
    /// # Errors
    /// What the servers say that were asked, where none has given what can be used, and where the database fails.
    pub(super) async fn go_on_completing(&self, mut large: LargeJoin, budget: &Budget) -> Result<(), MatrixError> {
        let mut refusal = MatrixError::bad_gateway("No server provided the room's state.");
        for _ in 0..TRIES {
            match self.try_to_complete(&mut large, budget).await {
                Ok(Progress::Unfinished) => return Ok(()),
                Ok(Progress::Done | Progress::GivenUp) => {
                    self.store.end_large_join(&large.join_id).await?;
                    self.fetch_missing(large.room_id());
                    return Ok(());
                }
                Err(error) => refusal = error,
            }
            large = LargeJoin { is_read: false, kept_to: String::new(), ..large };
            let until = self.platform.clock.now_ms() + pauses::after(large.attempts);
            self.store.put_off_large_join(&large, until).await?;
        }
        Err(refusal)
    }

    /// One try: done where the state is whole, or will never be.
    async fn try_to_complete(&self, large: &mut LargeJoin, budget: &Budget) -> Result<Progress, MatrixError> {
        if !self.rooms.is_completed_by(large).await? {
            return Ok(Progress::Done);
        }
        if !large.is_read {
            // What one server has given of it says nothing of what another one gives.
            let not_before = self.platform.clock.now_ms() + pauses::after(large.attempts + 1).max(READING_MS);
            let Some(begun) = self.store.read_anew(large, not_before).await? else { return Ok(Progress::Unfinished) };
            *large = begun;
            let giver = self.giver(large).await?;
            let record = LogRecord::info("the rest of a room's state is asked for").room(large.room_id());
            self.platform.log.write(record.destination(&giver));
            let answer = self.federation.open_state(&giver, large.room_id(), large.join.event_id()).await?;
            match read_rest(self, large.clone(), answer).await? {
                Rest::Staged(read) => *large = read,
                Rest::Elsewhere => return Ok(Progress::Unfinished),
                // Nor will it be smaller the next time. Others may give more than there is.
                Rest::TooLarge if giver == large.resident => {
                    let record = LogRecord::warning("the state of a room is too large to become whole");
                    self.platform.log.write(record.room(large.room_id()).destination(&giver));
                    self.rooms.give_up_completing(large).await?;
                    return Ok(Progress::Done);
                }
                Rest::TooLarge => return Err(bad_answer("more events than any room has")),
            }
        }
        match self.rooms.go_on_joining(large, budget).await {
            // It may well get on later.
            Err(error @ (RoomError::Database(_) | RoomError::Busy)) => {
                let record = LogRecord::warning("the state of a room is not whole yet").room(large.room_id());
                self.platform.log.write(record.because(&error));
                Ok(Progress::Unfinished)
            }
            progress => Ok(progress?),
        }
    }

    /// Whom to ask for the rest of a state: the server that let us in; where that has been in vain for long, every other time one
    /// of the others in the room, drawn.
    async fn giver(&self, large: &LargeJoin) -> Result<ServerName, MatrixError> {
        let is_others_turn = others_may_give(large) && large.attempts % 2 == 0;
        let drawn = match is_others_turn {
            true => self.some_residents(large.room_id(), 2).await?,
            false => Vec::new(),
        };
        let other = drawn.into_iter().find(|name| *name != large.resident);
        Ok(other.unwrap_or_else(|| large.resident.clone()))
    }

    /// What `act` comes to; again, when it is known who is in the room, where it takes that.
    ///
    /// # Errors
    /// As [`Server::until_whole`].
    pub async fn with_members<T>(
        &self,
        room_id: &RoomId,
        act: impl AsyncFn() -> Result<T, RoomError>,
    ) -> Result<Result<T, RoomError>, MatrixError> {
        match act().await {
            Err(RoomError::MembersUnknown) => {
                self.until_whole(room_id).await?;
                Ok(act().await)
            }
            outcome => Ok(outcome),
        }
    }

    /// Waits until it is known who is in the room.
    ///
    /// # Errors
    /// 504 where that takes longer than a client waits, and where the database fails.
    pub async fn until_whole(&self, room_id: &RoomId) -> Result<(), MatrixError> {
        let clock = &self.platform.clock;
        let (until, (mut pause, longest)) = (clock.now_ms() + WAIT_MS, LOOK_AGAIN_MS);
        loop {
            let is_given_up = match self.store.partial_room(room_id).await? {
                Some(room) if room.extent == Extent::Partial => room.is_given_up,
                _ => return Ok(()),
            };
            // When the last of our users has left, no more is going to be known than is.
            if self.rooms.room(room_id).await?.is_none_or(|room| room.local_joined == 0) {
                return Ok(());
            }
            if is_given_up || clock.now_ms() >= until {
                return Err(RoomError::MembersUnknown.into());
            }
            clock.sleep(pause).await;
            pause = (2 * pause).min(longest);
        }
    }
}
