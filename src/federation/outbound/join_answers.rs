//! Reading what a resident server answers to our join (Server-Server API, "Joining Rooms"), event by event: each is checked in a
//! batch with others, and none of the answer is in memory but a batch and, as long as it is little, what was checked. What is
//! more is staged.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
};

use super::countersigning::{bad_answer, vouched_for};
use crate::{
    error::MatrixError,
    federation::{
        pdus,
        peers::{
            key_fetcher::AskingTime,
            requests::RequestError,
            room_before::{JoinPiece, RoomBefore},
        },
    },
    log::LogRecord,
    matrix::{
        event::{Event, ReceivedPdu},
        identifiers::{EventId, ServerName},
    },
    room::{Claim, LEASE_MS, RemoteJoin},
    server::Server,
    store::{
        large_joins::{ClaimedEvent, LargeJoin},
        pending_joins::BegunJoin,
    },
};

/// How long one server may let us wait until it has let us in, in milliseconds, and how long its answer may keep us at work then. For as
/// long, what others send us of the room is staged.
pub(super) const JOIN_MS: i64 = 10 * 60 * 1_000;

/// For how long of that servers may be asked for the keys of one answer's events: whoever answers can name servers that never answer, as
/// many as it likes. So long for users' own memberships,
const ASKING_FOR_MEMBERS_MS: i64 = 200_000;
/// and so long for everything else, whatever the members' servers do.
const ASKING_FOR_REST_MS: i64 = 100_000;
/// For the rules that the room goes by there is a time of their own, and they come first: without them there is no room, and nobody
/// who may send only other events can put servers before those that they need.
const ASKING_FOR_RULES_MS: i64 = 60_000;
/// A batch has a fourth of what is left, or so long: the servers that it names may be dead while those of the next are not.
const LEAST_ASKING_MS: i64 = 20_000;

/// The memory, in bytes, that the events may take which wait to be checked together,
const BATCH_MEMORY: usize = 8 * 1024 * 1024;
/// and how many those may be.
const MAX_BATCH: usize = 1_000;
/// The memory that checked events may take before they are staged.
const WHOLE_MEMORY: usize = 12 * 1024 * 1024;
/// The most events of one answer: what each cites is in memory when they are put in order. As many may fail the checks.
const MAX_EVENTS: usize = 60_000;
/// The most servers that an answer without members may name: each takes a row until it is known who is in the room.
const MAX_SERVERS: usize = 20_000;

/// A join that a resident server has let in.
pub(super) struct Attempt<'a> {
    /// Its name.
    pub(super) join_id: &'a str,
    /// That server.
    pub(super) resident: &'a ServerName,
    /// When it began, in milliseconds.
    pub(super) begun_ts: i64,
    /// Whether it was asked to leave members out.
    pub(super) omits_members: bool,
    /// What is staged of the answer since it was read before, where it was.
    pub(super) staged: Option<Vec<EventId>>,
    /// The server whose answer is staged under that name instead, until this one's is.
    pub(super) kept: Option<&'a RefCell<Option<ServerName>>>,
}

/// What a resident server answered to our join, with every event checked.
pub(super) enum Answered {
    /// It is little.
    Whole(RemoteJoin),
    /// It is little, and members are left out of the state; these servers are in the room.
    InPart(RemoteJoin, Vec<ServerName>),
    /// It is staged.
    Staged(LargeJoin),
    /// Members are left out of the state, and what there is cannot be used so: the whole of it must be asked for, or was.
    Unusable,
    /// It is left, as the user has left meanwhile, or another join of theirs goes on.
    Elsewhere,
}

/// Why an answer cannot be used.
pub(super) enum Unread {
    /// It broke off, and may come whole the next time. What has come of it is staged.
    BrokeOff(RequestError),
    /// What the user is told.
    Unusable(MatrixError),
}

impl From<RequestError> for Unread {
    fn from(error: RequestError) -> Self {
        if error.is_worth_retrying() { Self::BrokeOff(error) } else { Self::Unusable(error.into()) }
    }
}

impl From<MatrixError> for Unread {
    fn from(error: MatrixError) -> Self {
        Self::Unusable(error)
    }
}

impl From<Unread> for MatrixError {
    fn from(error: Unread) -> Self {
        match error {
            Unread::BrokeOff(error) => error.into(),
            Unread::Unusable(error) => error,
        }
    }
}

/// Has PDUs of the room that is being joined staged from now on. `false` where the user has left since the join began.
///
/// # Errors
/// 502 where the room that is held is of another version: nobody can read the events of one version by the rules of another.
pub(super) async fn begin_join(server: &Server, join_id: &str, join: &Event) -> Result<bool, MatrixError> {
    let until = server.platform.clock.now_ms() + JOIN_MS;
    match server.store.begin_join(join.sender(), join.room_id(), join_id, join.version(), until).await? {
        BegunJoin::Begun => Ok(true),
        BegunJoin::HasLeft => Ok(false),
        BegunJoin::OtherVersion => Err(bad_answer("another version than the room has")),
    }
}

/// Forgets what is staged under this name of another server's answer, if any is [`kept`](Attempt::kept): it is of no use any more.
pub(super) async fn forget_kept(
    server: &Server,
    kept: &RefCell<Option<ServerName>>,
    join_id: &str,
) -> Result<(), MatrixError> {
    if kept.borrow().is_some() {
        server.store.end_large_join(join_id).await?;
        kept.take();
    }
    Ok(())
}

/// Reads the answer to `join`, and checks it.
///
/// # Errors
/// Where it breaks off or is none, where it holds more events than any room, and where the database fails.
pub(super) async fn read_answer(
    server: &Server,
    attempt: Attempt<'_>,
    join: Event,
    answer: RoomBefore,
) -> Result<Answered, Unread> {
    let large = LargeJoin::begun(attempt.join_id.to_owned(), attempt.resident.clone(), join, attempt.begun_ts);
    let is_staged = attempt.staged.is_some();
    let mut reading = Reading::new(server, large, is_staged);
    reading.kept = attempt.kept;
    reading.may_omit_members = attempt.omits_members;
    // What is staged came as one or the other; that it is state is said again.
    reading.known = attempt.staged.into_iter().flatten().map(|id| (id, false)).collect();
    let read = match reading.read(answer).await {
        Err(Unread::BrokeOff(error)) if !reading.is_staged => return Err(Unread::Unusable(error.into())),
        read => read?,
    };
    match read {
        Some(read) => Ok(reading.end(read).await?),
        None if reading.is_elsewhere => Ok(Answered::Elsewhere),
        None => Err(MatrixError::too_large("The room's state is too large for this server.").into()),
    }
}

/// What has become of the rest of a room's state.
pub(super) enum Rest {
    /// It is read, checked and staged.
    Staged(LargeJoin),
    /// Somebody else reads it.
    Elsewhere,
    /// It holds more events than any room that this server takes.
    TooLarge,
}

/// Reads the rest of the state of a room that the user is in already, and checks and stages it.
///
/// # Errors
/// Where the answer breaks off or is none, and where the database fails.
pub(super) async fn read_rest(server: &Server, large: LargeJoin, answer: RoomBefore) -> Result<Rest, MatrixError> {
    let mut reading = Reading::new(server, large, true);
    let Some(read) = reading.read(answer).await? else { return Ok(Rest::TooLarge) };
    if read.omits_members {
        return Err(bad_answer("members are left out of the room's state"));
    }
    reading.stage().await?;
    let large = LargeJoin { is_read: true, ..reading.large };
    Ok(match server.store.large_join_is_read(&large).await? {
        true => Rest::Staged(large),
        false => Rest::Elsewhere,
    })
}

/// What an answer says besides the events.
#[derive(Default)]
struct ReadAnswer {
    /// The join as the resident server has it.
    joined: Option<Vec<u8>>,
    omits_members: bool,
    /// The servers in the room.
    servers: Vec<ServerName>,
}

struct Reading<'a> {
    server: &'a Server,
    large: LargeJoin,
    is_staged: bool,
    /// See [`Attempt::kept`].
    kept: Option<&'a RefCell<Option<ServerName>>>,
    /// Another join of the user goes on.
    is_elsewhere: bool,
    /// Whether an answer without members was asked for.
    may_omit_members: bool,
    /// What has come, and whether as state.
    known: HashMap<EventId, bool>,
    batch: Vec<ReceivedPdu>,
    batch_memory: usize,
    /// What is checked and not staged.
    checked: Vec<Event>,
    checked_memory: usize,
    /// What is staged, and turns out to be state.
    in_state: Vec<EventId>,
    /// How many events have come, how many of them are checked, and how many have failed that.
    taken: usize,
    count: usize,
    failed: usize,
    /// Until when it is read, in milliseconds since the epoch. The rest of a state, for which nobody waits, may take longer.
    until: Option<i64>,
    /// What is left of the time for asking servers for the keys of users' own memberships, in milliseconds, of the
    /// rest, and of the rules that the room goes by.
    for_members_ms: i64,
    for_rest_ms: i64,
    for_rules_ms: i64,
}

impl<'a> Reading<'a> {
    fn new(server: &'a Server, large: LargeJoin, is_staged: bool) -> Self {
        let until = (!large.completes).then(|| server.platform.clock.now_ms() + JOIN_MS);
        Self {
            server,
            large,
            is_staged,
            kept: None,
            is_elsewhere: false,
            may_omit_members: false,
            known: HashMap::new(),
            batch: Vec::new(),
            batch_memory: 0,
            checked: Vec::new(),
            checked_memory: 0,
            in_state: Vec::new(),
            taken: 0,
            count: 0,
            failed: 0,
            until,
            for_members_ms: ASKING_FOR_MEMBERS_MS,
            for_rest_ms: ASKING_FOR_REST_MS,
            for_rules_ms: ASKING_FOR_RULES_MS,
        }
    }

    /// Reads all of an answer, and checks its events; `None` where it holds more of them than any room that this server takes, or is left
    /// to another join.
    async fn read(&mut self, mut answer: RoomBefore) -> Result<Option<ReadAnswer>, Unread> {
        let mut read = ReadAnswer::default();
        let mut counted = self.count;
        while let Some(piece) = answer.next().await? {
            match piece {
                JoinPiece::State(text) => self.take(&text, true).await?,
                JoinPiece::AuthChain(text) => self.take(&text, false).await?,
                JoinPiece::Join(text) => read.joined = Some(text),
                JoinPiece::MembersOmitted => read.omits_members = true,
                JoinPiece::Servers(servers) => read.servers = servers,
            }
            if self.left() <= 0 {
                return Err(bad_answer("more than can be read and checked in time").into());
            }
            if self.is_elsewhere || self.known.len() > MAX_EVENTS {
                return Ok(None);
            }
            // A join may go on with the next server; the rest of a state is worth waiting for as long as more of it comes. A batch
            // of which nothing is new renews nothing, and there is an end to what may be new.
            if self.large.completes && self.count > counted {
                counted = self.count;
                answer.go_on();
            }
        }
        self.check_batch().await?;
        Ok((!self.is_elsewhere).then_some(read))
    }

    /// Takes one event. Events of other rooms are ignored.
    async fn take(&mut self, text: &[u8], is_state: bool) -> Result<(), MatrixError> {
        self.taken += 1;
        pdus::turn(self.server, self.taken).await;
        if self.batch.len() >= MAX_BATCH {
            self.check_batch().await?;
        }
        let mut pdu = self.parse(text);
        if pdu.is_err() {
            self.check_batch().await?;
            pdu = self.parse(text);
        }
        // One that takes more memory than a whole batch may is left out too.
        let Ok(Some((pdu, memory))) = pdu else { return Ok(()) };
        let id = pdu.event_id().clone();
        match self.known.entry(id.clone()) {
            // Most of the auth chain is in the state too, and need be checked only once.
            Entry::Occupied(mut known) => {
                if is_state && !known.insert(true) {
                    self.in_state.push(id);
                }
            }
            Entry::Vacant(place) => {
                place.insert(is_state);
                self.batch.push(pdu);
                self.batch_memory += memory;
            }
        }
        Ok(())
    }

    /// The event, if it is one of the room, and the memory that it takes.
    fn parse(&self, text: &[u8]) -> Result<Option<(ReceivedPdu, usize)>, ()> {
        let before = BATCH_MEMORY.saturating_sub(self.batch_memory);
        let mut left = before;
        let join = &self.large.join;
        let pdu = pdus::from_history(text, join.room_id(), join.version(), &mut left).map_err(|_| ())?;
        Ok(pdu.map(|pdu| (pdu, before - left)))
    }

    /// How many milliseconds there are left for the answer.
    fn left(&self) -> i64 {
        self.until.map_or(i64::MAX, |until| until - self.server.platform.clock.now_ms())
    }

    /// Checks what waits for it; what fails may come again in a better copy.
    async fn check_batch(&mut self) -> Result<(), MatrixError> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_memory = 0;
        let (members, others): (Vec<_>, Vec<_>) = batch.into_iter().partition(ReceivedPdu::is_own_membership);
        let (rules, rest): (Vec<_>, Vec<_>) = others.into_iter().partition(ReceivedPdu::is_rule_of_room);
        // Theirs is spent first, and then that of the rest.
        let left = self.check(rules, self.for_rules_ms + self.for_rest_ms).await?;
        (self.for_rules_ms, self.for_rest_ms) = ((left - self.for_rest_ms).max(0), self.for_rest_ms.min(left));
        self.for_rest_ms = self.check(rest, self.for_rest_ms).await?;
        self.for_members_ms = self.check(members, self.for_members_ms).await?;
        if self.failed > MAX_EVENTS {
            return Err(bad_answer("more events that fail the checks than any room has"));
        }
        if !self.is_staged && self.checked_memory > WHOLE_MEMORY {
            if let Some(kept) = self.kept {
                forget_kept(self.server, kept, &self.large.join_id).await?;
            }
            let until = self.server.platform.clock.now_ms() + LEASE_MS;
            self.is_staged = self.server.store.begin_large_join(&self.large, until).await?;
            self.is_elsewhere = !self.is_staged;
        }
        if self.is_staged { self.stage().await } else { Ok(()) }
    }

    /// Checks these PDUs; says how many of so many milliseconds for asking servers are left.
    async fn check(&mut self, pdus: Vec<ReceivedPdu>, asking_ms: i64) -> Result<i64, MatrixError> {
        let ids: Vec<EventId> = pdus.iter().map(|pdu| pdu.event_id().clone()).collect();
        let share = asking_ms.min((asking_ms / 4).max(LEAST_ASKING_MS)).min(self.left());
        let time = AskingTime::of(share);
        let outcomes = pdus::verify_within(self.server, pdus, &time).await?;
        for (outcome, id) in outcomes.into_iter().zip(ids) {
            match outcome {
                Ok(event) => {
                    self.checked_memory += pdus::memory_of_held(event.json().len());
                    self.checked.push(event);
                    self.count += 1;
                }
                Err(_) => {
                    self.known.remove(&id);
                    self.failed += 1;
                }
            }
        }
        Ok(asking_ms - (share - time.left()))
    }

    async fn stage(&mut self) -> Result<(), MatrixError> {
        let events = std::mem::take(&mut self.checked).into_iter();
        let is_state = |event: &Event| self.known.get(event.event_id()).copied().unwrap_or_default();
        let events: Vec<_> = events.map(|event| ClaimedEvent { is_state: is_state(&event), event }).collect();
        let in_state = std::mem::take(&mut self.in_state);
        self.checked_memory = 0;
        let Server { platform, store, .. } = self.server;
        store.stage_claimed(platform.clock.as_ref(), &self.large.join_id, &events, &in_state).await?;
        let record = LogRecord::info("events of a large room are checked").room(self.large.room_id());
        platform.log.write(record.count(self.count));
        Ok(())
    }

    async fn end(mut self, read: ReadAnswer) -> Result<Answered, MatrixError> {
        let ReadAnswer { joined, omits_members, servers } = read;
        if omits_members
            && (!self.may_omit_members || self.is_staged || servers.is_empty() || servers.len() > MAX_SERVERS)
        {
            return Ok(Answered::Unusable);
        }
        let join = vouched_for(self.server, self.large.join.clone(), joined).await?;
        if !self.is_staged {
            let is_state = |event: &Event| self.known.get(event.event_id()).copied().unwrap_or_default();
            let (state, auth_chain) = self.checked.into_iter().partition(is_state);
            let answer =
                RemoteJoin { join, join_id: self.large.join_id, claim: Claim { state, auth_chain, stranger: None } };
            return Ok(match omits_members {
                true => Answered::InPart(answer, servers),
                false => Answered::Whole(answer),
            });
        }
        self.stage().await?;
        let large = LargeJoin { join, is_read: true, ..self.large };
        Ok(match self.server.store.large_join_is_read(&large).await? {
            true => Answered::Staged(large),
            false => Answered::Elsewhere,
        })
    }
}
