//! Receiving a transaction's PDUs (Server-Server API, "Transactions" and "Checks performed on receipt of a PDU").
//!
//! What can be judged is judged and committed with the transaction's answer in one batch. What cites events that we do
//! not hold is staged in the same batch, and judged when [`crate::federation`] has fetched them. So is what belongs to a
//! room that we are joining, and is judged when that room is ours.

mod one_room;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    fmt::Debug,
    ops::Range,
};

use serde_json::{Map, json};

use super::{
    Extent, Room, RoomError, Rooms,
    acl::acl_key,
    allowance::Allowance,
    checks::auth_keys,
    judge::Judgement,
    order::{by_room, in_order},
    policy::policy_key,
    strangers::Strangers,
    view::{TypeAndKey, View, type_and_key},
};
use crate::{
    log::LogRecord,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
        room_version::RoomVersion,
    },
    platform::{DatabaseError, Statement, turns::turn},
    store::{
        commit::Committed,
        edus::{EduQuestions, EduRooms},
        staging::{StagedAlready, wake},
        transactions::record_transaction,
    },
};

/// The most characters of the reason for which a PDU is refused: some quote the event, and all are kept together.
const MAX_REASON: usize = 500;

/// How many fetched events are judged and committed together.
const SLICE: usize = 100;

/// What a transaction begins with.
#[derive(Debug)]
pub struct Begun {
    /// Its answer, or its rooms.
    pub transaction: Transaction,
    /// What decides whether its EDUs count.
    pub edus: EduRooms,
    /// Whether its origin could not be reached, lacks something, and may be sent it now that it is heard from.
    pub origin_is_back: bool,
}

/// A transaction that begins: the answer that it got before, or the rooms that its PDUs are of.
#[derive(Debug)]
pub enum Transaction {
    /// It was answered before; this is the answer's body.
    Answered(String),
    /// It is new; this is known here of its rooms.
    New(KnownRooms),
}

/// What became of an attempt at receiving PDUs.
enum Attempt {
    /// It was committed, unless somebody else came first.
    Made(Committed<Received>),
    /// Nothing of it was committed: of these, more is kept already than is for who sent or gave them.
    TooMuch(HashSet<EventId>),
}

/// What is known here of rooms.
#[derive(Debug, Default)]
pub struct KnownRooms {
    rooms: HashMap<RoomId, Room>,
    joining: HashMap<RoomId, &'static RoomVersion>,
    /// What bounds how much of the transaction may be staged.
    staged: StagedAlready,
}

impl KnownRooms {
    /// The version of the room, which we are or were in, or are joining.
    pub fn version(&self, room_id: &RoomId) -> Option<&'static RoomVersion> {
        self.rooms.get(room_id).map(|room| room.room_version).or_else(|| self.joining.get(room_id).copied())
    }

    /// Whether we are joining the room.
    pub fn is_joining(&self, room_id: &RoomId) -> bool {
        self.joining.contains_key(room_id)
    }

    /// The room, if anybody here is in it.
    pub fn ours(&self, room_id: &RoomId) -> Option<&Room> {
        self.rooms.get(room_id).filter(|room| room.local_joined > 0)
    }
}

/// What became of received PDUs.
#[derive(Debug, Default)]
pub struct Received {
    /// The body of the transaction's answer: `{"pdus": {…}}`.
    pub answer: String,
    /// Rooms in which PDUs were staged, whose cited events must be fetched, or cite what has come now.
    pub to_look_at: Vec<RoomId>,
    /// Events that were accepted.
    pub accepted: usize,
    /// What became of each PDU: why it was refused, if it was.
    pub(super) results: HashMap<EventId, Option<String>>,
    /// What the log is told of it once it is committed.
    pub(super) notable: Vec<LogRecord>,
    /// Of events that were not staged because the caller fetches itself: what they cite and we lack.
    pub missing: Vec<Lacking>,
    /// Events that were not taken: as much is kept as may be for who has brought them.
    pub too_much: Vec<EventId>,
}

/// An event that cannot be judged yet.
#[derive(Debug, Clone)]
pub struct Lacking {
    /// The event.
    pub event: Event,
    /// Its previous events that we do not hold, or not the state after them.
    pub previous: Vec<EventId>,
    /// Its auth events that we do not hold.
    pub auth: Vec<EventId>,
}

/// What the EDUs of a transaction come to.
pub trait Effects: Debug {
    /// How many there are that can be had by themselves.
    fn count(&self) -> usize;

    /// What some of them come to, which takes effect in one batch or not at all.
    fn statements(&self, of: Range<usize>) -> Vec<Statement>;
}

impl dyn Effects + '_ {
    pub(super) fn all(&self) -> Vec<Statement> {
        self.statements(0..self.count())
    }
}

/// What came with a transaction.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Its sender.
    pub origin: &'a ServerName,
    /// Its id.
    pub txn_id: &'a str,
    /// What its EDUs come to, which takes effect with the answer that is recorded.
    pub edus: &'a dyn Effects,
    /// Whether only some of its PDUs are received now: its answer is recorded later.
    pub is_part: bool,
}

/// The receipt of PDUs, while it goes on.
struct Receipt<'r> {
    /// What they came with, unless they were fetched.
    record: Option<Record<'r>>,
    now: i64,
    /// How much more may be staged of what came.
    allowance: Allowance,
    received: Received,
}

/// What a room's PDUs come to.
#[derive(Default)]
struct OfRoom {
    /// Those that cannot be judged yet.
    lacking: Vec<Lacking>,
    /// Those that have been judged now.
    judged: Vec<EventId>,
    /// The room with them in it, if it is ours.
    judgement: Option<Judgement>,
}

impl Rooms {
    /// Begins transaction `txn_id` of `origin`, whose PDUs are of the rooms `room_ids`, and whose EDUs name what `edus` asks about.
    /// One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn begin(
        &self,
        origin: &ServerName,
        txn_id: &str,
        room_ids: &[RoomId],
        edus: &EduQuestions,
    ) -> Result<Begun, RoomError> {
        let now = self.clock.now_ms();
        let begun = self.store.transaction(self.server_name(), origin, txn_id, room_ids, edus, now).await?;
        let transaction = match begun.answer {
            Some(answer) => Transaction::Answered(answer),
            None => Transaction::New(KnownRooms {
                rooms: begun.rooms.into_iter().map(|room| (room.room_id.clone(), room)).collect(),
                joining: begun.joining.into_iter().collect(),
                staged: begun.staged,
            }),
        };
        Ok(Begun { transaction, edus: begun.edu_rooms, origin_is_back: begun.origin_is_back })
    }

    /// As [`Rooms::begin`], for a transaction whose EDUs have been judged.
    pub(super) async fn begin_again(&self, record: Record<'_>, room_ids: &[RoomId]) -> Result<Begun, RoomError> {
        self.begin(record.origin, record.txn_id, room_ids, &EduQuestions::default()).await
    }

    /// Judges the events of a transaction, whose signatures and hashes were checked, and commits the outcome together
    /// with the answer. `refused` are PDUs that failed before, with the reason for each.
    ///
    /// # Errors
    /// [`RoomError::Busy`] when other commits come first again and again, and where the database fails.
    pub async fn receive(
        &self,
        record: Record<'_>,
        rooms: KnownRooms,
        events: &[Event],
        refused: &[(EventId, String)],
    ) -> Result<Received, RoomError> {
        match self.receive_whole(record, rooms, events, refused).await {
            Err(RoomError::Database(DatabaseError::Refused(_))) => self.receive_in_parts(record, events, refused).await,
            outcome => outcome,
        }
    }

    pub(super) async fn receive_whole(
        &self,
        record: Record<'_>,
        rooms: KnownRooms,
        events: &[Event],
        refused: &[(EventId, String)],
    ) -> Result<Received, RoomError> {
        let mut rooms = Some(rooms);
        self.until_committed(async || {
            let rooms = match rooms.take() {
                Some(rooms) => rooms,
                None => {
                    let mut ids: Vec<RoomId> = events.iter().map(|event| event.room_id().clone()).collect();
                    ids.sort();
                    ids.dedup();
                    match self.begin_again(record, &ids).await?.transaction {
                        Transaction::Answered(answer) => {
                            return Ok(Committed::Done(Received { answer, ..Received::default() }));
                        }
                        Transaction::New(rooms) => rooms,
                    }
                }
            };
            self.try_receive(Some(record), rooms, events, refused, &HashMap::new()).await
        })
        .await
        .map(|received| self.logged(received))
    }

    /// Judges events of one room that were fetched because others cite them. Nothing is staged: what cannot be judged
    /// yet is named in the answer. `brought_by` says which servers sent or gave those that no server in the room did.
    ///
    /// # Errors
    /// [`RoomError::UnknownRoom`], [`RoomError::Busy`], and where the database fails.
    pub async fn receive_fetched(
        &self,
        room_id: &RoomId,
        events: &[Event],
        brought_by: &HashMap<EventId, ServerName>,
    ) -> Result<Received, RoomError> {
        let mut received = Received::default();
        // What is judged stays so, wherever the work is cut off.
        for (done, slice) in in_order(events.to_vec()).chunks(SLICE).enumerate() {
            turn(self.clock.as_ref(), done, 1).await;
            let of_slice = match self.receive_slice(room_id, slice, brought_by).await {
                Err(RoomError::Database(DatabaseError::Refused(_))) => {
                    self.part_by_part(slice, async |part| self.receive_slice(room_id, part, brought_by).await).await?
                }
                outcome => outcome?,
            };
            received.accepted += of_slice.accepted;
            received.missing.extend(of_slice.missing);
            received.too_much.extend(of_slice.too_much);
        }
        Ok(received)
    }

    async fn receive_slice(
        &self,
        room_id: &RoomId,
        events: &[Event],
        brought_by: &HashMap<EventId, ServerName>,
    ) -> Result<Received, RoomError> {
        self.until_committed(async || {
            let room = self.room(room_id).await?.ok_or(RoomError::UnknownRoom)?;
            let rooms = KnownRooms { rooms: HashMap::from([(room_id.clone(), room)]), ..KnownRooms::default() };
            self.try_receive(None, rooms, events, &[], brought_by).await
        })
        .await
        .map(|received| self.logged(received))
    }

    fn logged(&self, mut received: Received) -> Received {
        std::mem::take(&mut received.notable).into_iter().for_each(|record| self.log.write(record));
        received
    }

    /// What is too much to be kept is left out, and all else judged again: what is built upon it may be judged otherwise.
    async fn try_receive(
        &self,
        record: Option<Record<'_>>,
        rooms: KnownRooms,
        events: &[Event],
        refused: &[(EventId, String)],
        brought_by: &HashMap<EventId, ServerName>,
    ) -> Result<Committed<Received>, RoomError> {
        let (mut left, mut too_much) = (Cow::Borrowed(events), Vec::new());
        loop {
            match self.attempt(record, &rooms, &left, refused, brought_by, &too_much).await? {
                Attempt::Made(committed) => return Ok(committed),
                Attempt::TooMuch(ids) => {
                    too_much.extend(left.to_mut().extract_if(.., |event| ids.contains(event.event_id())));
                }
            }
        }
    }

    async fn attempt(
        &self,
        record: Option<Record<'_>>,
        rooms: &KnownRooms,
        events: &[Event],
        refused: &[(EventId, String)],
        brought_by: &HashMap<EventId, ServerName>,
        too_much: &[Event],
    ) -> Result<Attempt, RoomError> {
        let now = self.clock.now_ms();
        let mut view = View::new(&self.store, self.server_name());
        self.read_for(&mut view, rooms, events).await?;
        let results = refused.iter().map(|(id, why)| (id.clone(), Some(why.clone()))).collect();
        let received = Received { results, ..Received::default() };
        let mut receipt = Receipt { record, now, allowance: Allowance::new(&rooms.staged), received };
        receipt.refuse_what_is_too_much(too_much);
        let (mut commits, mut too_much_more) = (Vec::new(), HashSet::new());
        let mut others: Vec<Statement> = Vec::new();
        let mut waking: Vec<Statement> = Vec::new();
        for (room_id, events) in by_room(events) {
            let ours = rooms.ours(&room_id);
            let strangers = match ours {
                Some(room) => self.strangers(record, rooms, room, &events, brought_by).await?,
                None => Strangers::default(),
            };
            let of_room = match ours {
                Some(room) => receipt.judge_room(self, &mut view, room, events).await?,
                None => {
                    let is_joining = rooms.is_joining(&room_id);
                    let lacking = receipt.refuse_or_stage_unknown(&room_id, is_joining, events);
                    OfRoom { lacking, ..OfRoom::default() }
                }
            };
            others.extend(receipt.stage_what_waits(&room_id, ours.is_none(), of_room.lacking));
            if let Some(judgement) = of_room.judgement
                && !judgement.is_unchanged()
            {
                // What a look judges, it sees to itself.
                if record.is_some() && rooms.staged.rooms.get(&room_id).is_some_and(|room| room.has_any) {
                    waking.push(wake(&room_id, of_room.judged.iter().map(EventId::as_str), now));
                }
                let mut commit = self.commit_of(&mut view, judgement).await?;
                too_much_more.extend(strangers.charge(&mut commit));
                commits.push(commit);
            }
        }
        if !too_much_more.is_empty() {
            return Ok(Attempt::TooMuch(too_much_more));
        }
        let mut received = receipt.received;
        received.answer = answer(&received.results);
        if let Some(record) = record.filter(|record| !record.is_part) {
            others.push(record_transaction(record.origin, record.txn_id, &received.answer, now));
            others.extend(record.edus.all());
        }
        Ok(Attempt::Made(self.store.commit_and_wake(&commits, others, waking).await?.map(|woken| {
            received.to_look_at.extend(woken);
            received.to_look_at.sort();
            received.to_look_at.dedup();
            received
        })))
    }

    /// Which of the events of a room of ours were brought by servers that are not in it.
    async fn strangers(
        &self,
        record: Option<Record<'_>>,
        rooms: &KnownRooms,
        room: &Room,
        events: &[Event],
        brought_by: &HashMap<EventId, ServerName>,
    ) -> Result<Strangers, RoomError> {
        let ids = events.iter().map(Event::event_id);
        let Some(Record { origin, .. }) = record else {
            let brought = ids.filter_map(|id| Some((id.clone(), brought_by.get(id)?.clone()))).collect();
            return self.strangers_among(&room.room_id, brought).await;
        };
        Ok(match rooms.staged.rooms.get(&room.room_id) {
            Some(staged) if !staged.is_member && room.extent != Extent::Partial => Strangers {
                brought: ids.map(|id| (id.clone(), origin.clone())).collect(),
                kept: HashMap::from([(origin.clone(), staged.kept)]),
            },
            _ => Strangers::default(),
        })
    }

    /// Reads in one call what judging `events` will ask for, beside the rows of `rooms`.
    async fn read_for(&self, view: &mut View<'_>, rooms: &KnownRooms, events: &[Event]) -> Result<(), RoomError> {
        let known: Vec<&Event> = events.iter().filter(|event| rooms.ours(event.room_id()).is_some()).collect();
        if known.is_empty() {
            return Ok(());
        }
        let mut keys: HashSet<TypeAndKey> = HashSet::from([acl_key(), policy_key()]);
        let mut ids: Vec<EventId> = Vec::new();
        let mut previous: Vec<EventId> = Vec::new();
        for event in &known {
            keys.extend(auth_keys(event));
            keys.extend(event.state_key().map(|state_key| type_and_key(event.event_type(), state_key)));
            ids.push(event.event_id().clone());
            ids.extend(event.auth_events().iter().cloned());
            ids.extend(event.prev_events().iter().cloned());
            previous.extend(event.prev_events().iter().cloned());
            if event.version().room_id_is_create_hash {
                ids.push(event.room_id().create_event_id());
            }
        }
        previous.sort();
        previous.dedup();
        let of_events: HashSet<&RoomId> = known.iter().map(|event| event.room_id()).collect();
        let of_events: Vec<&Room> = of_events.into_iter().filter_map(|room_id| rooms.ours(room_id)).collect();
        ids.extend(of_events.iter().flat_map(|room| &room.extremities).map(|extremity| extremity.event_id.clone()));
        let roots = of_events.iter().map(|room| room.state).collect();
        let keys: Vec<TypeAndKey> = keys.into_iter().collect();
        view.load_around(roots, &keys, ids, previous).await
    }
}

/// What the log is told of a PDU that came with this transaction, if with any.
pub(super) fn about(record: Option<Record<'_>>, told: LogRecord) -> LogRecord {
    match record {
        Some(Record { origin, txn_id, .. }) => told.origin(origin).transaction(txn_id),
        None => told,
    }
}

/// The body of a transaction's answer.
pub(super) fn answer(results: &HashMap<EventId, Option<String>>) -> String {
    let pdus: Map<_, _> = results
        .iter()
        .map(|(id, error)| {
            let reason = |error: &String| error.chars().take(MAX_REASON).collect::<String>();
            let result = error.as_ref().map_or_else(|| json!({}), |error| json!({ "error": reason(error) }));
            (id.as_str().to_owned(), result)
        })
        .collect();
    json!({ "pdus": pdus }).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn reasons_that_quote_long_events_are_cut() {
        let id = |i: usize| EventId::parse(&format!("${i}")).unwrap();
        let results = (0..50).map(|i| (id(i), Some("\u{1}é".repeat(60_000)))).collect();
        let answer: serde_json::Value = serde_json::from_str(&answer(&results)).unwrap();
        assert_eq!(answer["pdus"]["$7"]["error"], "\u{1}é".repeat(MAX_REASON / 2));
    }
}
