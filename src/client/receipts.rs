//! Receipts and read markers (Client-Server API, "Receipts" and "Read and unread markers").

use serde_json::json;

use super::{
    auth::{self, Session},
    body::Body,
    typing::room_id,
};
use crate::{
    error::MatrixError,
    federation::peers::fleeting::FleetingEdu,
    matrix::{
        edu::{MAX_THREAD_ID, Receipt, ReceiptType},
        identifiers::{EventId, RoomId},
    },
    platform::Statement,
    router::{Call, Handled, ok},
    server::Server,
    store::receipts::{self, FULLY_READ},
};

/// What a request marks as read.
#[derive(Debug, Default)]
struct Marks {
    receipts: Vec<(ReceiptType, EventId)>,
    fully_read: Option<EventId>,
    thread_id: Option<String>,
}

/// `POST /rooms/{roomId}/receipt/{receiptType}/{eventId}`
pub(super) async fn post(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::optional(server, call).await?;
    let event_id = event_id(call.parameter(2))?;
    let mut marks = Marks { thread_id: thread_id(&body)?, ..Marks::default() };
    match call.parameter(1) {
        FULLY_READ if marks.thread_id.is_some() => {
            return Err(MatrixError::invalid_param("\"m.fully_read\" is of no thread."));
        }
        FULLY_READ => marks.fully_read = Some(event_id),
        "m.read" => marks.receipts.push((ReceiptType::Read, event_id)),
        "m.read.private" => marks.receipts.push((ReceiptType::ReadPrivate, event_id)),
        _ => return Err(MatrixError::invalid_param("There is no such type of receipts.")),
    }
    mark(server, session, room_id(call)?, marks).await
}

/// `POST /rooms/{roomId}/read_markers`
pub(super) async fn read_markers(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let read = |name: &str| body.text(name)?.map(event_id).transpose();
    let mut marks = Marks { fully_read: read(FULLY_READ)?, ..Marks::default() };
    for kind in [ReceiptType::Read, ReceiptType::ReadPrivate] {
        marks.receipts.extend(read(kind.as_str())?.map(|event_id| (kind, event_id)));
    }
    mark(server, session, room_id(call)?, marks).await
}

async fn mark(server: &Server, session: Session, room_id: RoomId, marks: Marks) -> Handled {
    let now = server.platform.clock.now_ms();
    let audience = server.audience(&room_id, &session.user, now).await?;
    if !audience.is_joined {
        return Err(MatrixError::forbidden("You are not in this room."));
    }
    let Marks { receipts, fully_read, thread_id } = marks;
    let receipts: Vec<Receipt> = receipts
        .into_iter()
        .map(|(receipt_type, event_id)| Receipt {
            room_id: room_id.clone(),
            user_id: session.user.clone(),
            receipt_type,
            thread_id: thread_id.clone(),
            event_id,
            ts: now,
        })
        .collect();
    let mut statements: Vec<Statement> = receipts::note(&receipts);
    if let Some(event_id) = fully_read {
        statements.extend(receipts::mark_fully_read(&session.user, &room_id, &event_id));
    }
    if !statements.is_empty() {
        server.store.batch(statements).await?;
    }
    let public = receipts.into_iter().filter(|receipt| receipt.receipt_type == ReceiptType::Read);
    let public: Vec<FleetingEdu> = public.map(FleetingEdu::Receipt).collect();
    if !public.is_empty() {
        server.tell(&audience.servers, &public);
    }
    ok(&json!({}))
}

fn event_id(text: &str) -> Result<EventId, MatrixError> {
    EventId::parse(text).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}

/// The thread that a receipt is of: an event's ID, or `main`.
fn thread_id(body: &Body) -> Result<Option<String>, MatrixError> {
    let invalid = |_| MatrixError::invalid_param("\"thread_id\" must be a string.");
    let Some(id) = body.text("thread_id").map_err(invalid)? else { return Ok(None) };
    if id != "main" && (EventId::parse(id).is_err() || id.len() > MAX_THREAD_ID) {
        return Err(MatrixError::invalid_param("\"thread_id\" must be \"main\" or the ID of an event."));
    }
    Ok(Some(id.to_owned()))
}
