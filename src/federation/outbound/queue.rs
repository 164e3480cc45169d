//! The transaction queue (Server-Server API, "Transactions"): at most one transaction in flight to each destination,
//! in the order of our commits, repeated until the destination has answered 200. It carries events, or EDUs that must arrive.
//!
//! A transaction that will never be taken must not hold up all that follows. What is too large (413), or is refused as
//! malformed (400) for an hour, is sent again in halves; a single event that is refused so is left out. Any other answer may be
//! a proxy's or a passing fault's, and the transaction is repeated as it is.
//!
//! But there are servers that fail (500) over an EDU that they do not expect, as Synapse does with the whole transaction.
//! Where a transaction of EDUs is answered so for an hour, and one with a message to nobody is taken, it counts as refused.
//! Who fails over that too takes no EDUs for now, or is out of order as a whole, and is waited for.
//!
//! Whoever was away and lacks much gets the newest event of each room before all others, and then all in order
//! (`store/catching_up.rs`).
//!
//! Sending starts at once after a commit ([`Server::flush`]) and is swept up by the scheduled trigger
//! ([`Server::sweep_queue`]): retries, what a restart cut off, destinations that came back.

use futures_util::{StreamExt, stream};
use http::StatusCode;

use super::residents::draw;
use crate::{
    federation::peers::{endpoints::Transaction, requests::RequestError},
    log::{LogRecord, Said},
    matrix::{
        edu::EduType,
        identifiers::{EventId, RoomId, ServerName},
        json::{self, Object, Value},
    },
    platform::{Budget, DatabaseError},
    server::Server,
    store::{
        new_shares::NewShare,
        queue::{Carried, Claim, Due, Failure, Outcome, OutgoingEdu, OutgoingTransaction, Refusal, Refused},
    },
};

/// How many destinations are sent to at the same time: the platform keeps six connections open for an event, and the
/// database needs one.
const CONCURRENT: usize = 5;

/// For so long, in milliseconds, one destination may keep the place from others before a next transaction to it is left to the
/// scheduled trigger. Below the 30 s for which work may go on after an answer, so that as a rule nothing is cut off.
const TURN_MS: i64 = 20 * 1_000;

/// For so long, in milliseconds, the scheduled trigger begins to send: it has 15 minutes, and the next one comes by anyway.
const SWEEP_MS: i64 = 10 * 60 * 1_000;

/// How many destinations of each kind the scheduled trigger looks for at a time.
const PAGE: i64 = 50;

/// How many calls to the database may be made after a request for the sake of the queue; the scheduled trigger does the rest. The
/// platform allows 1,000 for each request.
const FLUSH_CALLS: u64 = 400;

/// For so long, in milliseconds, it is begun to send to the servers of further rooms.
const FLUSH_MS: i64 = 60 * 1_000;

/// In how many slices servers are told of the devices of those who have come into a room, after a request and each time that the scheduled
/// trigger comes by.
const SHARES: usize = 20;

/// The first pause after a failure, in milliseconds; it doubles with each further one.
const FIRST_PAUSE_MS: i64 = 10_000;

/// The longest pause between two attempts, in milliseconds.
const LONGEST_PAUSE_MS: i64 = 60 * 60 * 1_000;

/// A destination that was tried in vain so often in a row was away, and not only busy for a moment: that takes
/// a minute.
const AWAY_FAILURES: i64 = 4;

/// How soon at the earliest a destination that answers, but with an error, or that could not be reached again, is tried again
/// because it was heard from, in milliseconds: that it is there was known before.
const PAUSE_IF_HEARD_MS: i64 = 60 * 1_000;

/// A transaction that is refused so often, and for so long in milliseconds, will never be taken. Fewer times may be a fault
/// that somebody is fixing.
const LASTING_REFUSALS: i64 = 3;
const LASTING_REFUSAL_MS: i64 = 60 * 60 * 1_000;

/// The database does not let the queue be read or written; that is logged.
struct QueueUnusable;

impl Server {
    /// Starts sending what the servers in the room have not had. Called after a commit that appended to the outbox, or by which a local
    /// user has come in.
    ///
    /// Not by work that has a wall ([`Server::with_wall`]): that would count against it, and end the sending midway, under leases that
    /// nobody gives back. What such work commits is sent by who began it ([`Server::flush_now`]), or by the scheduled trigger.
    pub fn flush(&self, room_id: &RoomId) {
        let (server, room_id) = (self.counted_apart(), room_id.clone());
        self.platform.background.spawn(Box::pin(async move {
            server.flush_now(&[room_id], &server.meter.budget(FLUSH_CALLS)).await;
        }));
    }

    /// Sends what the servers in these rooms have not had, those of one room after those of another, as far as `budget` and a minute
    /// reach; the rest is left to the scheduled trigger.
    pub async fn flush_now(&self, room_ids: &[RoomId], budget: &Budget) {
        let until = self.platform.clock.now_ms() + FLUSH_MS;
        for room_id in room_ids {
            if budget.is_spent() || self.platform.clock.now_ms() >= until {
                break;
            }
            if let Err(error) = self.flush_room(room_id, budget).await {
                self.platform.log.write(LogRecord::error("the outbox cannot be read").because(&error));
                break;
            }
        }
    }

    async fn flush_room(&self, room_id: &RoomId, budget: &Budget) -> Result<(), DatabaseError> {
        let now = self.platform.clock.now_ms();
        let Due { fresh, behind, share } = self.store.due(&self.config.server_name, now, room_id).await?;
        let mut told = self.tell_new_shares(share, Some(room_id), budget).await;
        told.sort();
        told.dedup();
        told.retain(|told| !fresh.contains(told) && !behind.contains(told));
        let due = [fresh, told, behind].map(|servers| self.in_turn(servers)).concat();
        let _ = self.drive_all(due, budget).await;
        Ok(())
    }

    /// Leaves EDUs for the servers of rooms that local users have come into, in slices: of this room, or of any. Returns those servers.
    async fn tell_new_shares(
        &self,
        mut share: Option<NewShare>,
        room_id: Option<&RoomId>,
        budget: &Budget,
    ) -> Vec<ServerName> {
        let mut told = Vec::new();
        for _ in 0..SHARES {
            let Some(next) = share.filter(|_| !budget.is_spent()) else { break };
            match self.store.tell_new_share(&self.config.server_name, &next, room_id).await {
                Ok((servers, after)) => {
                    told.extend(servers);
                    share = after;
                }
                Err(error) => {
                    // What there is to send goes out all the same.
                    let record = LogRecord::error("servers that newly share a room are not told of a user's devices");
                    self.platform.log.write(record.because(&error));
                    break;
                }
            }
        }
        told
    }

    /// Starts sending to a server that could not be reached and was heard from.
    pub fn flush_to(&self, destination: &ServerName) {
        self.flush_to_all(vec![destination.clone()]);
    }

    /// Starts sending to these servers, each once. Called after a commit that left EDUs for them
    /// ([`crate::store::edu_outbox`]).
    pub fn flush_to_all(&self, destinations: Vec<ServerName>) {
        let (server, destinations) = (self.counted_apart(), self.in_turn(destinations));
        self.platform.background.spawn(Box::pin(async move {
            let _ = server.drive_all(destinations, &server.meter.budget(FLUSH_CALLS)).await;
        }));
    }

    /// Notes, beside the request that says so, that `origin` is there: what it has not had is sent to it. Most often it is no
    /// news, and costs nothing.
    pub fn heard_from(&self, origin: &ServerName) {
        let now = self.platform.clock.now_ms();
        if !self.heard.is_news(origin, now) {
            return;
        }
        let (server, origin) = (self.counted_apart(), origin.clone());
        self.platform.background.spawn(Box::pin(async move {
            match server.store.heard_from(&origin, now).await {
                Ok(true) => drop(server.drive(&origin, &server.meter.budget(FLUSH_CALLS)).await),
                Ok(false) => {}
                Err(error) => {
                    server.heard.forget(&origin);
                    let record =
                        LogRecord::error("it cannot be stored that a server is reachable again").origin(&origin);
                    server.platform.log.write(record.because(&error));
                }
            }
        }));
    }

    /// Sends to whoever has not had everything, those who have waited for longest first, until nobody is left or the calls to the
    /// database that `budget` allows are made. What is left then comes first the next time.
    pub async fn sweep_queue(&self, budget: &Budget) {
        let until = self.platform.clock.now_ms() + SWEEP_MS;
        let own = &self.config.server_name;
        let outcome = async {
            self.tell_new_shares(self.store.new_share().await?, None, budget).await;
            while !budget.is_spent() && self.platform.clock.now_ms() < until {
                let due = self.store.overdue(own, self.platform.clock.now_ms(), PAGE).await?;
                if due.is_empty() || self.drive_all(due, budget).await.is_err() {
                    break;
                }
            }
            self.store.note_swept(own).await
        };
        if let Err(error) = outcome.await {
            self.platform.log.write(LogRecord::error("the outbox cannot be swept").because(&error));
        }
    }

    /// The order in which they are sent to after a request. It is drawn, as some could choose names that come before all others; those
    /// that have been slow lately come last. A few slow ones that kept their places would leave everybody else to the trigger.
    pub(super) fn in_turn(&self, mut servers: Vec<ServerName>) -> Vec<ServerName> {
        let (now, count) = (self.platform.clock.now_ms(), servers.len());
        if count > 1 {
            draw(&mut servers, count, &*self.platform.random);
        }
        let slow = [&*self.slow, &self.fleeting.slow];
        servers.sort_by_cached_key(|server| slow.iter().any(|slow| slow.takes_long(server, now)));
        servers
    }

    /// Sends to each of them; fails where the queue of one could not be read or written.
    async fn drive_all(&self, destinations: Vec<ServerName>, budget: &Budget) -> Result<(), QueueUnusable> {
        stream::iter(destinations)
            .map(|destination| async move { self.drive(&destination, budget).await })
            .buffer_unordered(CONCURRENT)
            .fold(Ok(()), |all, one| async move { all.and(one) })
            .await
    }

    /// Sends to one destination until it has had everything, or fails, or its turn is over, or somebody else is at it.
    async fn drive(&self, destination: &ServerName, budget: &Budget) -> Result<(), QueueUnusable> {
        let owner = self.random_id();
        let until = self.platform.clock.now_ms() + TURN_MS;
        let mut outcome = Outcome::None;
        loop {
            let new_txn_id = self.random_id();
            let now = self.platform.clock.now_ms();
            let claim = Claim { destination, owner: &owner, new_txn_id: &new_txn_id, now };
            let next = self.next_transaction(claim, &outcome, until, budget).await;
            let Some(transaction) = self.usable(destination, next)? else { return Ok(()) };
            self.slow.begin(destination, self.platform.clock.now_ms());
            let delivered = self.deliver(destination, &transaction).await;
            let lasting = match &delivered {
                Err(error) => self.lasting(destination, &transaction, error).await,
                Ok(()) => Lasting::No,
            };
            self.slow.end(destination, self.platform.clock.now_ms());
            outcome = match delivered {
                Ok(()) => {
                    Outcome::Taken { txn_id: transaction.txn_id, was_away: transaction.failures >= AWAY_FAILURES }
                }
                Err(error) if lasting == Lasting::Refused => self.make_smaller(destination, transaction, &error),
                Err(error) if lasting == Lasting::NoEdus => {
                    let record = LogRecord::warning("a server takes no EDUs for now, and gets events before them");
                    self.platform.log.write(record.destination(destination).because(&error));
                    let (txn_id, carried) = (transaction.txn_id, Carried::Edus);
                    Outcome::Halved { txn_id, at_most: 1, is_suspect: false, carried }
                }
                Err(error) => {
                    let noted = self.put_off(destination, &owner, &transaction, &error).await;
                    return self.usable(destination, noted);
                }
            };
        }
    }

    /// Logs where the queue could not be read or written: the lease runs out, and the scheduled trigger comes by.
    fn usable<T>(&self, destination: &ServerName, result: Result<T, DatabaseError>) -> Result<T, QueueUnusable> {
        result.map_err(|error| {
            let record = LogRecord::error("the queue to a server cannot be used").destination(destination);
            self.platform.log.write(record.because(&error));
            QueueUnusable
        })
    }

    /// What to send next, unless that is left to the scheduled trigger.
    async fn next_transaction(
        &self,
        claim: Claim<'_>,
        outcome: &Outcome,
        until: i64,
        budget: &Budget,
    ) -> Result<Option<OutgoingTransaction>, DatabaseError> {
        match outcome {
            Outcome::None if budget.is_spent() => Ok(None),
            Outcome::None => self.store.claim(claim, outcome).await,
            _ if budget.is_spent() || claim.now >= until => self.store.hand_over(claim, outcome).await.map(|()| None),
            _ => self.store.claim(claim, outcome).await,
        }
    }

    /// Whether the transaction will never be taken as it is. Where the destination has failed over it, a message to nobody
    /// tells whether it fails over all EDUs, and an empty transaction whether over everything.
    async fn lasting(
        &self,
        destination: &ServerName,
        transaction: &OutgoingTransaction,
        error: &RequestError,
    ) -> Lasting {
        let now = self.platform.clock.now_ms();
        if !is_lasting(error, transaction, now) {
            return Lasting::No;
        }
        let was_failing = || transaction.refused.is_some_and(|refused| refused.with == Refusal::Failing);
        let has_failed = match refusal(error, transaction) {
            Some(Refusal::Failing) => true,
            Some(Refusal::Malformed) => was_failing(),
            None => false,
        };
        if !has_failed {
            return Lasting::Refused;
        }
        match self.probe(destination, &[self.message_to_nobody()]).await {
            Ok(()) => Lasting::Refused,
            // What else went wrong says nothing of EDUs.
            Err(error) if refusal(&error, transaction).is_none() => Lasting::No,
            Err(_) if self.probe(destination, &[]).await.is_ok() => Lasting::NoEdus,
            Err(_) => Lasting::No,
        }
    }

    /// What comes of sending these EDUs, soon: the lease must last for all that is tried.
    async fn probe(&self, destination: &ServerName, edus: &[Value]) -> Result<(), RequestError> {
        self.federation.send_fleeting(destination, &self.random_id(), self.platform.clock.now_ms(), edus).await
    }

    fn message_to_nobody(&self) -> Value {
        let to_nobody = [
            ("sender", Value::from(format!("@verge:{}", self.config.server_name))),
            ("type", Value::from("m.dummy")),
            ("message_id", Value::from(self.random_id())),
            ("messages", Value::Object(Object::new())),
        ];
        EduType::DirectToDevice.with(to_nobody.into_iter().collect())
    }

    /// What follows on a transaction that will never be taken.
    fn make_smaller(
        &self,
        destination: &ServerName,
        transaction: OutgoingTransaction,
        error: &RequestError,
    ) -> Outcome {
        let OutgoingTransaction { txn_id, pdus, edus, is_newest, .. } = transaction;
        let count = pdus.len() + edus.len();
        let carried = if edus.is_empty() { Carried::Events } else { Carried::Edus };
        if is_newest {
            let record = LogRecord::warning("a server refuses the newest events of its rooms, and gets all in order");
            let record = record.destination(destination).transaction(&txn_id).count(count);
            self.platform.log.write(record.because(error));
            return Outcome::NewestRefused { txn_id };
        }
        if count > 1 {
            let record = LogRecord::warning("a transaction that a server refuses is divided").destination(destination);
            self.platform.log.write(record.transaction(&txn_id).count(count).because(error));
            let is_suspect = is_status(error, StatusCode::BAD_REQUEST);
            let at_most = match carried {
                Carried::Events => i64::try_from(count / 2).unwrap_or(1),
                // Each is then tried by itself: nothing tells which one is suspect.
                Carried::Edus => 1,
            };
            return Outcome::Halved { txn_id, at_most, is_suspect, carried };
        }
        let what = match carried {
            Carried::Events => "an event that a server refuses is left out",
            Carried::Edus => "an EDU that a server refuses is left out",
        };
        let record = LogRecord::warning(what).destination(destination).transaction(&txn_id).because(error);
        self.platform.log.write(match (pdus.first().map(|pdu| EventId::parse(&pdu.event_id)), edus.first()) {
            (Some(Ok(event_id)), _) => record.event(&event_id),
            (_, Some(edu)) => EduType::parse(&edu.edu_type).map_or(record.clone(), |edu_type| record.edu(edu_type)),
            _ => record,
        });
        Outcome::LeftOut { txn_id, carried }
    }

    /// Notes when the same transaction is to be sent again.
    async fn put_off(
        &self,
        destination: &ServerName,
        owner: &str,
        transaction: &OutgoingTransaction,
        error: &RequestError,
    ) -> Result<(), DatabaseError> {
        let now = self.platform.clock.now_ms();
        // From now on it is news that it is there.
        self.heard.forget(destination);
        let own_pause = pause(transaction.failures, self.random_part());
        let asked_for = asked_for(error);
        // Once it may be news. One that is heard from and still not reached is not away:
        // perhaps its answers are lost, as ours are.
        let is_news = is_away(error) && transaction.failures == 0;
        let if_heard = if is_news { 0 } else { own_pause.min(PAUSE_IF_HEARD_MS) }.max(asked_for);
        let failure = Failure {
            now,
            retry_at: now + own_pause.max(asked_for),
            not_before: if if_heard > 0 { now + if_heard } else { 0 },
            refusal: refusal(error, transaction),
        };
        let record = LogRecord::warning("a transaction was not taken").destination(destination);
        let record = record.transaction(&transaction.txn_id).count(transaction.pdus.len()).because(error);
        self.platform.log.write(record.retry_in(failure.retry_at - now));
        self.store.fail(destination, owner, failure).await
    }

    /// Sends one transaction. Only a 200 with an object counts; what it says about single PDUs is for the log.
    async fn deliver(&self, destination: &ServerName, transaction: &OutgoingTransaction) -> Result<(), RequestError> {
        let pdus: Vec<&str> = transaction.pdus.iter().map(|pdu| pdu.json.as_str()).collect();
        let edus: Vec<Value> = transaction.edus.iter().filter_map(edu).collect();
        let unreadable = transaction.edus.len() - edus.len();
        if unreadable > 0 {
            let record = LogRecord::error("EDUs that are stored cannot be read, and are left out").count(unreadable);
            self.platform.log.write(record.destination(destination).transaction(&transaction.txn_id));
        }
        let body = Transaction { origin_server_ts: transaction.origin_server_ts, pdus: &pdus, edus: &edus };
        let results = self.federation.send_transaction(destination, &transaction.txn_id, body).await?;
        for (event_id, error) in results {
            let record = LogRecord::info("a server did not take an event").destination(destination);
            let record = record.transaction(&transaction.txn_id).because(&Said(error));
            self.platform.log.write(match EventId::parse(&event_id) {
                Ok(event_id) => record.event(&event_id),
                Err(_) => record,
            });
        }
        Ok(())
    }

    /// 22 characters that nobody else has.
    pub(super) fn random_id(&self) -> String {
        let mut bytes = [0; 16];
        self.platform.random.fill(&mut bytes);
        crate::matrix::base64::encode_url_safe(&bytes)
    }

    /// A number from 0 to 255, to keep many senders from retrying in step.
    pub(super) fn random_part(&self) -> u8 {
        let mut byte = [0];
        self.platform.random.fill(&mut byte);
        byte[0]
    }
}

/// An EDU as transactions carry it. What is stored is what we wrote.
fn edu(edu: &OutgoingEdu) -> Option<Value> {
    let content = json::parse(edu.content.as_bytes()).ok()?.into_object()?;
    Some(EduType::parse(&edu.edu_type)?.with(content))
}

/// Whether a transaction will never be taken as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasting {
    /// It may be taken yet.
    No,
    /// It never will be.
    Refused,
    /// It may be, but the destination takes no EDUs for now, and events.
    NoEdus,
}

/// Whether the transaction will never be taken as it is, as far as its own answers say.
fn is_lasting(error: &RequestError, transaction: &OutgoingTransaction, now: i64) -> bool {
    match error {
        // A request that we cannot even make is none in an hour either.
        RequestError::Invalid(_) => true,
        RequestError::Status { status: StatusCode::PAYLOAD_TOO_LARGE, .. } => true,
        _ => {
            let has_lasted = |Refused { times, since, .. }: Refused| {
                times + 1 >= LASTING_REFUSALS && now - since >= LASTING_REFUSAL_MS
            };
            refusal(error, transaction).is_some()
                && (transaction.is_suspect || transaction.refused.is_some_and(has_lasted))
        }
    }
}

/// With what the destination refuses the transaction, if it may be for good.
fn refusal(error: &RequestError, transaction: &OutgoingTransaction) -> Option<Refusal> {
    match error {
        RequestError::Status { status: StatusCode::BAD_REQUEST, .. } => Some(Refusal::Malformed),
        // Each event has an answer of its own, so that no server fails over one. Who says when to come again is away as a
        // whole.
        RequestError::Status { status: StatusCode::INTERNAL_SERVER_ERROR, retry_after_ms: None, .. }
            if !transaction.edus.is_empty() =>
        {
            Some(Refusal::Failing)
        }
        _ => None,
    }
}

/// Whether the destination was not reached, so that hearing from it is news.
fn is_away(error: &RequestError) -> bool {
    match error {
        RequestError::Status { status, .. } => {
            matches!(*status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
        }
        _ => true,
    }
}

fn is_status(error: &RequestError, wanted: StatusCode) -> bool {
    matches!(error, RequestError::Status { status, .. } if *status == wanted)
}

/// For how long the destination asks to be left alone, within reason.
fn asked_for(error: &RequestError) -> i64 {
    match error {
        RequestError::Status { retry_after_ms: Some(ms), .. } => (*ms).clamp(0, LONGEST_PAUSE_MS),
        _ => 0,
    }
}

/// The pause after `failures` earlier failures in a row: doubling, with up to a quarter more or less at random.
fn pause(failures: i64, random: u8) -> i64 {
    let doublings = u32::try_from(failures.clamp(0, 20)).unwrap_or(20);
    let pause = FIRST_PAUSE_MS.saturating_mul(1 << doublings).min(LONGEST_PAUSE_MS);
    pause - pause / 4 + pause * i64::from(random) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_an_hour() {
        assert_eq!(pause(0, 128), 10_000);
        assert_eq!(pause(1, 128), 20_000);
        assert_eq!(pause(5, 128), 320_000);
        assert_eq!(pause(8, 128), 2_560_000);
        assert_eq!(pause(9, 128), 3_600_000);
        assert_eq!(pause(i64::MAX, 128), 3_600_000);
        assert_eq!(pause(0, 0), 7_500);
        assert!(pause(0, 255) <= 12_500);
    }
}
