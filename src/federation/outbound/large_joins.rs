//! Joins of large rooms, from when their answer is staged: they go on in steps, here or, where the request that began them was cut
//! off, when the user asks again, or by the scheduled trigger.

use std::{convert::Infallible, pin::pin};

use futures_util::future::{Either, select};
use http::StatusCode;

use super::{
    countersigning::bad_answer,
    join_answers::{Answered, Attempt, JOIN_MS, Unread, begin_join, read_answer},
    leaving::leave_for_absent,
};
use crate::{
    error::MatrixError,
    federation::peers::requests::RequestError,
    log::LogRecord,
    matrix::identifiers::{EventId, RoomId, ServerName},
    platform::Budget,
    room::{LEASE_MS, Progress, RoomError},
    server::Server,
    store::{ended_joins::JoinUnderWay, large_joins::LargeJoin},
};

/// For so long, in milliseconds, a join that does not get on is tried again.
const PATIENCE_MS: i64 = 2 * 60 * 60 * 1_000;

/// How often whoever is at a join says so, in milliseconds.
const HOLD_MS: u32 = 6_000;

/// What became of a join.
pub(super) enum Joined {
    /// The user is in the room, by this event.
    In(EventId),
    /// There is more to do than one request may, or somebody else does it.
    Later,
    /// The user has left meanwhile, and this server may let them in all the same.
    Left(ServerName),
}

/// What came of another attempt at a join.
pub(super) enum Tried {
    /// So far it has got.
    Got(Progress),
    /// The resident server gave no answer, and may give one later.
    Unanswered(RequestError),
}

impl Server {
    /// Takes over a room whose answer is staged, with at most so many calls to the database.
    ///
    /// # Errors
    /// Where the answer is no room that our join could be in; what is staged is then forgotten.
    pub(super) async fn finish_large_join(&self, large: &LargeJoin, calls: u64) -> Result<Joined, MatrixError> {
        let server = self.counted_apart();
        match server.go_on_joining(large, &server.meter.budget(calls)).await? {
            Progress::Done => Ok(Joined::In(large.join.event_id().clone())),
            Progress::Unfinished => Ok(Joined::Later),
            Progress::GivenUp => Ok(Joined::Left(large.resident.clone())),
        }
    }

    /// Goes on with the join of a large room for the user who began it, with at most so many calls to the database. Where the resident
    /// server gives no answer, it waits; where it fails otherwise it is forgotten, and the user may try another server.
    ///
    /// # Errors
    /// As [`Server::finish_large_join`], and what the resident server says.
    pub(super) async fn resume_large_join(&self, large: &LargeJoin, calls: u64) -> Result<Tried, MatrixError> {
        let server = self.counted_apart();
        let work = async { server.try_again(large.clone(), &server.meter.budget(calls)).await };
        let record = || LogRecord::warning("the join of a large room makes no progress").room(large.room_id());
        match self.holding(large.room_id(), &large.join_id, work).await {
            Ok(Tried::Unanswered(error)) => {
                self.platform.log.write(record().destination(&large.resident).because(&error));
                let under_way = JoinUnderWay::staged(&large.join_id);
                match self.store.has_join_ended(large.room_id(), &under_way).await? {
                    true => self.give_up(large).await.map(Tried::Got),
                    false => Ok(Tried::Unanswered(error)),
                }
            }
            Ok(tried) => Ok(tried),
            // Nothing that the resident server says ends like that: what failed is here, and may well go better later.
            Err(error)
                if matches!(error.status, StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE) =>
            {
                self.platform.log.write(record().because(&error));
                Ok(Tried::Got(Progress::Unfinished))
            }
            Err(error) => self.fail(large, error).await.map(Tried::Got),
        }
    }

    /// Does `work` on a join, which nobody else begins with meanwhile.
    pub(super) async fn holding<T>(&self, room_id: &RoomId, join_id: &str, work: impl Future<Output = T>) -> T {
        match select(pin!(work), pin!(self.hold(room_id, join_id))).await {
            Either::Left((done, _)) => done,
            Either::Right((never, _)) => match never {},
        }
    }

    async fn hold(&self, room_id: &RoomId, join_id: &str) -> Infallible {
        let clock = &self.platform.clock;
        loop {
            clock.sleep(HOLD_MS).await;
            let now = clock.now_ms();
            if let Err(error) = self.store.hold_join(room_id, join_id, now + LEASE_MS, now + JOIN_MS).await {
                let record = LogRecord::warning("it cannot be noted that a join goes on").room(room_id);
                self.platform.log.write(record.because(&error));
            }
        }
    }

    /// Goes on with joins that nobody is at. Answers with those that are done.
    pub async fn sweep_large_joins(&self, budget: &Budget) -> Vec<LargeJoin> {
        let mut done = Vec::new();
        while !budget.is_spent() {
            let now = self.platform.clock.now_ms();
            let large = match self.store.take_large_join(now, now + LEASE_MS).await {
                Ok(Some(large)) => large,
                Ok(None) => break,
                Err(error) => {
                    self.platform.log.write(LogRecord::error("large joins cannot be read").because(&error));
                    break;
                }
            };
            let work = self.try_again(large.clone(), budget);
            let tried = match self.holding(large.room_id(), &large.join_id, work).await {
                Ok(Tried::Unanswered(error)) => Err(error.into()),
                Ok(Tried::Got(Progress::GivenUp)) => {
                    leave_for_absent(self, &large, true).await.map(|()| Progress::GivenUp)
                }
                // What is noted of a leave does not outlast a time in which nobody comes to this; nor is it known who has ended it.
                Ok(Tried::Got(progress)) if large.has_ended() => {
                    self.leave_what_has_failed(&large).await.map(|()| progress)
                }
                Ok(Tried::Got(progress)) => Ok(progress),
                Err(error) => self.leave_what_has_failed(&large).await.and(Err(error)),
            };
            match tried {
                Ok(Progress::Done) => done.push(large),
                Ok(_) => {}
                Err(error) => {
                    let record = LogRecord::warning("the join of a large room makes no progress").room(large.room_id());
                    self.platform.log.write(record.destination(&large.resident).because(&error));
                    self.pause(&large).await;
                }
            }
        }
        done
    }

    /// Leaves the room if its join is given up for good: its user was told that they would be in it, and could not leave it. Whoever has
    /// an invite can still accept or reject that.
    async fn leave_what_has_failed(&self, large: &LargeJoin) -> Result<(), MatrixError> {
        let (user, room_id) = (large.join.sender(), large.room_id());
        let is_given_up = self.store.has_join_ended(room_id, &JoinUnderWay::staged(&large.join_id)).await?;
        if large.completes || !is_given_up || self.store.invitation(user, room_id).await?.is_some() {
            return Ok(());
        }
        leave_for_absent(self, large, false).await
    }

    /// Leaves a join that has not got on alone for a while.
    async fn pause(&self, large: &LargeJoin) {
        let paused = self.store.pause_large_join(&large.join_id, self.platform.clock.now_ms()).await;
        if let Err(error) = paused {
            let record = LogRecord::error("the end of an attempt at a join cannot be noted").room(large.room_id());
            self.platform.log.write(record.because(&error));
        }
    }

    async fn try_again(&self, mut large: LargeJoin, budget: &Budget) -> Result<Tried, MatrixError> {
        if large.has_ended() {
            return self.give_up(&large).await.map(Tried::Got);
        }
        if large.completes {
            self.go_on_completing(large, budget).await?;
            return Ok(Tried::Got(Progress::Unfinished));
        }
        let now = self.platform.clock.now_ms();
        if now > large.begun_ts + PATIENCE_MS {
            return self.fail(&large, bad_answer("what could not be taken over for hours")).await.map(Tried::Got);
        }
        let join = large.join.clone();
        if !begin_join(self, &large.join_id, &join).await? {
            return self.give_up(&large).await.map(Tried::Got);
        }
        if !large.is_read {
            // The server lets the same join in again, and answers anew.
            let outlines = self.store.claimed_outlines(self.platform.clock.as_ref(), &large.join_id).await?;
            let staged = Some(outlines.into_iter().map(|outline| outline.event_id).collect());
            let federation = &self.federation;
            let asked = federation.send_join(&large.resident, join.room_id(), join.event_id(), join.json(), false);
            let answer = match asked.await {
                Err(error) if error.is_worth_retrying() => return Ok(Tried::Unanswered(error)),
                answer => answer?,
            };
            let LargeJoin { join_id, resident, begun_ts, .. } = &large;
            let attempt = Attempt { join_id, resident, begun_ts: *begun_ts, omits_members: false, staged, kept: None };
            let answered = match read_answer(self, attempt, join, answer).await {
                Err(Unread::BrokeOff(error)) => return Ok(Tried::Unanswered(error)),
                answered => answered?,
            };
            match answered {
                Answered::Staged(read) => large = read,
                Answered::Elsewhere => return self.give_up(&large).await.map(Tried::Got),
                Answered::Whole(_) | Answered::InPart(..) => return Ok(Tried::Got(Progress::Unfinished)),
                Answered::Unusable => return Err(bad_answer("members are left out of the room's state")),
            }
        }
        self.go_on_joining(&large, budget).await.map(Tried::Got)
    }

    async fn go_on_joining(&self, large: &LargeJoin, budget: &Budget) -> Result<Progress, MatrixError> {
        let progress = match self.rooms.go_on_joining(large, budget).await {
            Err(RoomError::MissingEvents(_)) => {
                self.judge_given(&large.resident, &large.join).await?;
                match self.store.has_join_ended(large.room_id(), &JoinUnderWay::taken(&large.join_id)).await? {
                    true => Ok(Progress::GivenUp),
                    false => Ok(Progress::Done),
                }
            }
            // It may well make progress later.
            Err(error @ (RoomError::Database(_) | RoomError::Busy)) => {
                let record = LogRecord::warning("the join of a large room makes no progress").room(large.room_id());
                self.platform.log.write(record.because(&error));
                return Ok(Progress::Unfinished);
            }
            progress => progress,
        };
        match progress {
            Ok(Progress::Unfinished) => Ok(Progress::Unfinished),
            Ok(Progress::GivenUp) => self.give_up(large).await,
            Ok(Progress::Done) => {
                if self.end_large_join(large).await? {
                    // They left when they were in the room.
                    self.store.forget_join(large.room_id(), &large.join_id).await?;
                }
                Ok(Progress::Done)
            }
            Err(error) => self.fail(large, error.into()).await,
        }
    }

    /// Ends a join that has failed. Of one whose user has left that is what counts.
    async fn fail(&self, large: &LargeJoin, error: MatrixError) -> Result<Progress, MatrixError> {
        if self.end_large_join(large).await? { Ok(Progress::GivenUp) } else { Err(error) }
    }

    /// Ends a join that somebody else has ended: the user, who has left, or whoever has done the rest of it.
    async fn give_up(&self, large: &LargeJoin) -> Result<Progress, MatrixError> {
        Ok(match self.end_large_join(large).await? {
            true => Progress::GivenUp,
            false => Progress::Unfinished,
        })
    }

    /// Forgets what is staged of a join that has ended, and judges what has come of the room meanwhile. Whether the user has left.
    async fn end_large_join(&self, large: &LargeJoin) -> Result<bool, MatrixError> {
        self.store.end_large_join(&large.join_id).await?;
        let has_left = self.store.end_join(large.room_id(), &large.join_id).await?;
        self.fetch_missing(large.room_id());
        Ok(has_left)
    }
}
