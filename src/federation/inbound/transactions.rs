//! What other servers push to us (Server-Server API, "Transactions", "PDUs", "EDUs").
//!
//! Checks 1 to 3 on receipt of a PDU are made here, for all PDUs together; [`crate::room`] judges and commits
//! those that pass, together with the transaction's answer and what its EDUs come to ([`super::edus`]). Every PDU gets an answer
//! of its own under its event ID, and nothing but our own failure makes the sender repeat the transaction.

use std::cell::LazyCell;

use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{authentication::Signed, edus::Received, malformed, rescinding};
use crate::{
    error::MatrixError,
    federation::pdus,
    log::LogRecord,
    matrix::{
        event::{self, Event, ReceivedPdu},
        identifiers::{EventId, RoomId, ServerName},
        json::{self, MAX_DEPTH, MAX_MEMORY, Value},
    },
    platform::DatabaseError,
    room::{KnownRooms, Record, Transaction},
    router::{self, Handled},
    server::Server,
};

/// The most PDUs in a transaction.
const MAX_PDUS: usize = 50;
/// The most EDUs in a transaction.
const MAX_EDUS: usize = 100;
/// The longest transaction ID that is kept.
const MAX_TXN_ID: usize = 255;

/// `PUT /_matrix/federation/v1/send/{txnId}`
pub(super) async fn send(server: &Server, request: Signed) -> Handled {
    let txn_id = request.parameter(0).to_owned();
    if txn_id.is_empty() || txn_id.len() > MAX_TXN_ID {
        return Err(MatrixError::invalid_param("The transaction ID is empty or longer than 255 bytes."));
    }
    let body = request.call.bytes(&server.admission, server.platform.clock.as_ref()).await?;
    let (origin, mut transaction) = request.into_object()?;
    let mut pdus = transaction.remove("pdus").and_then(Value::into_array).ok_or_else(|| malformed("pdus"))?;
    let mut edus = match transaction.remove("edus") {
        Some(edus) => edus.into_array().ok_or_else(|| malformed("edus"))?,
        None => Vec::new(),
    };
    if pdus.len() > MAX_PDUS || edus.len() > MAX_EDUS {
        return Err(MatrixError::invalid_param("A transaction holds at most 50 PDUs and 100 EDUs."));
    }
    read_the_unread(&mut pdus, &mut edus);
    let edus = Received::read(server, origin.name(), &txn_id, edus);

    let room_ids = room_ids(&pdus);
    let begun = server.rooms.begin(origin.name(), &txn_id, &room_ids, &edus.questions()).await?;
    // The database knows by now.
    server.heard.is_news(origin.name(), server.platform.clock.now_ms());
    if begun.origin_is_back {
        server.flush_to(origin.name());
    }
    let rooms = match begun.transaction {
        Transaction::Answered(answer) => return Ok(router::raw_json_response(StatusCode::OK, answer)),
        Transaction::New(rooms) => rooms,
    };
    let edus = edus.judged(server, &begun.edus);
    rescinding::take(server, &rooms, &mut pdus).await?;
    let (events, refused) = check(server, origin.name(), &rooms, pdus, &body).await?;
    let record = Record { origin: origin.name(), txn_id: &txn_id, edus: &edus, is_part: false };
    let received = server.rooms.receive(record, rooms, &events, &refused).await?;
    received.to_look_at.iter().for_each(|room_id| server.fetch_missing(room_id));
    Ok(router::raw_json_response(StatusCode::OK, received.answer))
}

/// Reads PDUs and EDUs that were not read with the whole, as together they take more memory than there is, as far as there is: events
/// before all else, of which as many fit as there may be, and the short before the long, as no user shall lack what another takes.
/// What is too large remains unread.
fn read_the_unread(pdus: &mut [Value], edus: &mut [Value]) {
    let mut memory = MAX_MEMORY;
    for items in [pdus, edus] {
        let mut unread: Vec<(usize, &mut Value)> =
            items.iter_mut().filter_map(|item| Some((unread_length(item)?, item))).collect();
        unread.sort_by_key(|(length, _)| *length);
        for (_, item) in unread {
            if let Value::Unread(text) = &*item
                && let Ok(read) = json::parse_to_depth_within(text.as_bytes(), MAX_DEPTH, &mut memory)
            {
                *item = read;
            }
        }
    }
}

fn unread_length(item: &Value) -> Option<usize> {
    match item {
        Value::Unread(text) => Some(text.len()),
        _ => None,
    }
}

/// The rooms of the PDUs, each once, as far as the PDUs name them.
fn room_ids(pdus: &[Value]) -> Vec<RoomId> {
    let mut ids: Vec<RoomId> = pdus.iter().filter_map(room_id).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// A create event of room version 12 names no room, but nobody sends us one: we hold it before we hold its room.
fn room_id(pdu: &Value) -> Option<RoomId> {
    RoomId::parse(pdu.get("room_id")?.as_str()?).ok()
}

/// Checks 1 to 3: the events that pass, and the others' IDs with the reason.
async fn check(
    server: &Server,
    origin: &ServerName,
    rooms: &KnownRooms,
    pdus: Vec<Value>,
    body: &[u8],
) -> Result<(Vec<Event>, Vec<(EventId, String)>), DatabaseError> {
    let mut refused = Vec::new();
    let mut received = Vec::new();
    let mut drop_pdu = |id: EventId, room_id: Option<&RoomId>, error: &event::PduError| {
        let record = LogRecord::info("a PDU is dropped").origin(origin).event(&id).because(error);
        server.platform.log.write(match room_id {
            Some(room_id) => record.room(room_id),
            None => record,
        });
        refused.push((id, format!("The event was dropped: {error}.")));
    };
    let texts = LazyCell::new(|| pdu_texts(body));
    for (index, pdu) in pdus.into_iter().enumerate() {
        // Without the room's version there is neither a format nor an ID. Such a PDU gets no answer, as at other servers.
        let room_id = room_id(&pdu);
        let Some(version) = room_id.as_ref().and_then(|id| rooms.version(id)) else { continue };
        match ReceivedPdu::from_value(pdu, version) {
            Ok(pdu) => received.push(pdu),
            Err(error) => {
                // Reading the PDU has used it up.
                let text = texts.get(index).map(|text| text.get().as_bytes());
                let again = text.and_then(|text| json::parse_to_depth(text, MAX_DEPTH).ok());
                if let Some(id) = again.and_then(|pdu| event::id_of_malformed(&pdu, version)) {
                    drop_pdu(id, room_id.as_ref(), &error);
                }
            }
        }
    }
    let ids: Vec<(EventId, RoomId)> =
        received.iter().map(|pdu| (pdu.event_id().clone(), pdu.room_id().clone())).collect();
    let mut events = Vec::new();
    for ((id, room_id), outcome) in ids.into_iter().zip(pdus::verify(server, received).await?) {
        match outcome {
            Ok(event) => events.push(event),
            Err(error) => drop_pdu(id, Some(&room_id), &error),
        }
    }
    Ok((events, refused))
}

/// The text of each PDU in the body, which is scanned once for all of them; nothing of it is parsed.
fn pdu_texts(body: &[u8]) -> Vec<&RawValue> {
    #[derive(Deserialize)]
    struct Pdus<'a> {
        #[serde(borrow)]
        pdus: Vec<&'a RawValue>,
    }
    serde_json::from_slice::<Pdus<'_>>(body).map(|transaction| transaction.pdus).unwrap_or_default()
}
