//! Checks 2 and 3 on received PDUs, signatures and hashes, with the keys that they take (Server-Server API, "Checks
//! performed on receipt of a PDU").
//!
//! Check 1 and the arithmetic are [`ReceivedPdu`]'s; the later checks are [`crate::room`]'s. Here is what both
//! directions need: the keys for any number of PDUs are fetched together.

use std::collections::BTreeSet;

use crate::{
    admission::Reservation,
    error::MatrixError,
    federation::peers::{endpoints::KeyQuery, key_fetcher::AskingTime},
    log::LogRecord,
    matrix::{
        event::{Ancestor, Event, PduError, ReceivedPdu, Unusable},
        identifiers::{RoomId, ServerName},
        json::{self, MAX_DEPTH},
        room_version::RoomVersion,
        server_keys::KeyRing,
    },
    platform::{
        DatabaseError,
        turns::{self, SLICE},
    },
    server::Server,
};

/// Checks PDUs, and returns the outcome for each in the order given.
///
/// # Errors
/// Where the database fails. A key that cannot be obtained is not an error: the PDU's own outcome says so.
pub async fn verify(server: &Server, pdus: Vec<ReceivedPdu>) -> Result<Vec<Result<Event, PduError>>, DatabaseError> {
    verify_within(server, pdus, &AskingTime::default()).await
}

/// As [`verify`], where servers may be asked for their keys for so long.
///
/// # Errors
/// As [`verify`].
pub async fn verify_within(
    server: &Server,
    pdus: Vec<ReceivedPdu>,
    time: &AskingTime,
) -> Result<Vec<Result<Event, PduError>>, DatabaseError> {
    let outcomes = verify_all(server, pdus, time).await?;
    Ok(outcomes.into_iter().map(|outcome| outcome.map_err(|refused| refused.error)).collect())
}

/// Why a PDU does not pass.
pub struct Refused {
    /// What is wrong with it.
    pub error: PduError,
    /// The server whose key is lacking, if that is asked for it.
    pub lacks_key_of: Option<String>,
}

/// As [`verify`], and tells whose keys are lacking.
///
/// # Errors
/// As [`verify`].
pub async fn verify_fetched(
    server: &Server,
    pdus: Vec<ReceivedPdu>,
) -> Result<Vec<Result<Event, Refused>>, DatabaseError> {
    verify_all(server, pdus, &AskingTime::default()).await
}

async fn verify_all(
    server: &Server,
    pdus: Vec<ReceivedPdu>,
    time: &AskingTime,
) -> Result<Vec<Result<Event, Refused>>, DatabaseError> {
    let mut needed = Vec::new();
    let mut needed_up_to = Vec::new();
    for pdu in &pdus {
        needed.extend(key_queries(pdu));
        needed_up_to.push(needed.len());
    }
    let keys = server.keys.fetch(&needed, time).await?;
    let mut outcomes = Vec::with_capacity(pdus.len());
    let mut have_verified = BTreeSet::new();
    let mut from = 0;
    for (pdu, to) in pdus.into_iter().zip(needed_up_to) {
        turn(server, outcomes.len()).await;
        let queries = needed.get(from..to).unwrap_or_default();
        from = to;
        let outcome = pdu.verify(&keys).map_err(|error| {
            let is_lacking = |query: &&KeyQuery| {
                matches!(&error, PduError::NotSigned(signer) if query.server.as_str() == &**signer)
                    && server.keys.is_asked_for(query)
            };
            let lacks_key_of = queries.iter().find(is_lacking).map(|query| query.server.to_string());
            Refused { error, lacks_key_of }
        });
        if outcome.is_ok() {
            have_verified.extend(queries.iter().map(|query| (query.server.as_str(), query.key_id.as_str())));
        }
        outcomes.push(outcome);
    }
    server.keys.have_verified(&have_verified.into_iter().collect::<Vec<_>>()).await?;
    Ok(outcomes)
}

/// The keys with which a PDU can be verified.
fn key_queries(pdu: &ReceivedPdu) -> Vec<KeyQuery> {
    // Where the room version ignores when a key was valid, any key that was ever valid will do.
    let minimum_valid_until_ts = if pdu.version().enforce_key_validity { pdu.origin_server_ts() } else { 0 };
    let mut queries = Vec::new();
    for (name, key_ids) in pdu.keys_to_fetch(&KeyRing::new()) {
        let Ok(server) = ServerName::parse(name) else { continue };
        queries.extend(key_ids.into_iter().map(|key_id| KeyQuery {
            server: server.clone(),
            key_id: key_id.to_owned(),
            minimum_valid_until_ts,
        }));
    }
    queries
}

/// Lets others have their turn after each slice, when so many PDUs are done.
pub async fn turn(server: &Server, done: usize) {
    turns::turn(server.platform.clock.as_ref(), done, SLICE).await;
}

/// Checks a PDU that is what a request is about.
///
/// # Errors
/// 400 `M_INVALID_PARAM` where it is not signed as it must be.
pub async fn verify_one(server: &Server, pdu: ReceivedPdu) -> Result<Event, MatrixError> {
    let outcome = verify(server, vec![pdu]).await?.pop().unwrap_or(Err(PduError::Format("event")));
    outcome.map_err(refused)
}

/// The memory, in bytes, that the PDUs of one answer may take.
const ANSWER_MEMORY: usize = 56 * 1024 * 1024;
/// Answers that take less do not count with what else is in work.
const LITTLE_MEMORY: usize = 1024 * 1024;

/// The memory that the PDUs of one answer may take, or of several whose PDUs are in memory together. What they take is in work for as
/// long as this lives.
#[derive(Debug)]
pub struct AnswerMemory {
    left: usize,
    held: Option<Reservation>,
}

impl Default for AnswerMemory {
    /// Nothing of it is taken.
    fn default() -> Self {
        Self { left: ANSWER_MEMORY, held: None }
    }
}

impl AnswerMemory {
    /// Takes so many bytes out of it; `false` where there are not so many left.
    ///
    /// # Errors
    /// [`DatabaseError::NoRoom`] where they have no room beside what else is in work: nobody's answer is to blame for that.
    pub fn take(&mut self, server: &Server, bytes: usize) -> Result<bool, DatabaseError> {
        let Some(left) = self.left.checked_sub(bytes) else { return Ok(false) };
        let taken = ANSWER_MEMORY - left;
        let now = || server.platform.clock.now_ms();
        let has_room = match &self.held {
            _ if taken <= LITTLE_MEMORY => true,
            Some(held) => held.hold(taken, now()),
            None => {
                self.held = server.admission.reserve_memory(taken, now());
                self.held.is_some()
            }
        };
        if !has_room {
            return Err(DatabaseError::NoRoom);
        }
        self.left = left;
        Ok(true)
    }

    /// Gives back what was taken since so many bytes were left.
    pub fn give_back(&mut self, left: usize) {
        self.left = left;
        if let Some(held) = &self.held {
            held.shrink(ANSWER_MEMORY - left);
        }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.left
    }

    /// As [`from_history`], out of this.
    ///
    /// # Errors
    /// As [`AnswerMemory::take`].
    pub fn parse(
        &mut self,
        server: &Server,
        text: &[u8],
        room_id: &RoomId,
        version: &'static RoomVersion,
    ) -> Result<Result<Option<ReceivedPdu>, json::Error>, DatabaseError> {
        let mut left = self.left;
        let pdu = from_history(text, room_id, version, &mut left);
        self.take(server, self.left - left)?;
        Ok(pdu)
    }
}

/// What a PDU takes besides its values: so many times the length of its text (as canonical text, as what is signed of it, and
/// as the members that were read), and so many bytes more.
const TEXTS: usize = 3;
const PDU_BYTES: usize = 512;

/// The most that the text of a parsed event is counted as, in multiples of its length; its values take as much again and more.
const PARSED: usize = 6;

/// The memory that an event takes which we hold, whose text has this many bytes.
pub fn memory_of_held(bytes: usize) -> usize {
    PARSED * bytes + PDU_BYTES
}

/// Parses and checks PDUs of one room that another server holds as part of its history or state; those that cannot be used
/// are left out, as the room must stand without them. `None` for an answer that takes more memory than there is. What they take is in
/// work while they are checked.
///
/// # Errors
/// Where the database fails, or there is no room for them.
pub async fn verify_history<T: AsRef<[u8]>>(
    server: &Server,
    room_id: &RoomId,
    version: &'static RoomVersion,
    texts: &[T],
) -> Result<Option<Vec<Event>>, DatabaseError> {
    let mut memory = AnswerMemory::default();
    let checked = verify_ancestors(server, room_id, version, texts, &mut memory).await?;
    Ok(checked.map(|checked| checked.into_iter().filter_map(Ancestor::into_event).collect()))
}

/// As [`verify_history`], but of what fails check 2 the place in the graph is kept. What the PDUs take is taken out of
/// `memory`; `None` for an answer that takes more than there is.
///
/// # Errors
/// Where the database fails, or there is no room for them.
pub async fn verify_ancestors<T: AsRef<[u8]>>(
    server: &Server,
    room_id: &RoomId,
    version: &'static RoomVersion,
    texts: &[T],
    memory: &mut AnswerMemory,
) -> Result<Option<Vec<Ancestor>>, DatabaseError> {
    let mut pdus: Vec<ReceivedPdu> = Vec::new();
    let mut malformed: Vec<Ancestor> = Vec::new();
    for (done, text) in texts.iter().enumerate() {
        turn(server, done).await;
        match memory.parse(server, text.as_ref(), room_id, version)? {
            Ok(Some(pdu)) => pdus.push(pdu),
            Ok(None) => {
                let place = place_of_malformed(text.as_ref(), room_id, version, memory.left());
                malformed.extend(place.map(Ancestor::Unusable));
            }
            Err(error) => {
                let record = LogRecord::warning("events that another server sent are not used").room(room_id);
                server.platform.log.write(record.because(&error));
                return Ok(None);
            }
        }
    }
    let places: Vec<Unusable> = pdus.iter().map(Unusable::of_pdu).collect();
    let checked = verify(server, pdus).await?.into_iter().zip(places);
    let checked = checked.map(|(event, place)| event.map_or(Ancestor::Unusable(place), Ancestor::Event));
    Ok(Some(checked.chain(malformed).collect()))
}

/// The place of a PDU that [`from_history`] refuses: other servers may have accepted it, and built upon it. Reading it takes no more
/// than so much memory.
pub fn place_of_malformed(
    text: &[u8],
    room_id: &RoomId,
    version: &'static RoomVersion,
    mut memory: usize,
) -> Option<Unusable> {
    let pdu = json::parse_to_depth_within(text, MAX_DEPTH, &mut memory).ok()?;
    Unusable::of_malformed(&pdu, room_id, version)
}

/// Parses a PDU that another server holds as part of the history or state of the room `room_id`; `None` where it is not one.
/// What it takes is taken out of `memory`.
///
/// # Errors
/// Where that is more than there is left.
pub fn from_history(
    text: &[u8],
    room_id: &RoomId,
    version: &'static RoomVersion,
    memory: &mut usize,
) -> Result<Option<ReceivedPdu>, json::Error> {
    let mut left = *memory;
    let value = match json::parse_within(text, &mut left) {
        Err(error) if error.is_too_large() => return Err(error),
        value => value,
    };
    let pdu = value.ok().and_then(|value| ReceivedPdu::from_history(value, version).ok());
    let pdu = pdu.filter(|pdu| pdu.room_id() == room_id);
    if pdu.is_some() {
        *memory = left.checked_sub(TEXTS * text.len() + PDU_BYTES).ok_or_else(json::Error::too_large)?;
    }
    Ok(pdu)
}

/// The answer to a request about a PDU that fails the checks.
pub fn refused(error: PduError) -> MatrixError {
    let message = format!("The event is refused: {error}.");
    match error {
        PduError::TooLarge(_) => MatrixError::too_large(message),
        // Room version 6, "Canonical JSON".
        PduError::Number(_) | PduError::TooDeep => MatrixError::bad_json(message),
        _ => MatrixError::invalid_param(message),
    }
}
