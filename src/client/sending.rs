//! Sending events (Client-Server API, "Sending events to a room", "Redactions").
//!
//! A request is named by a transaction ID that is unique for the device and the endpoint, room and event type included. The ID is
//! committed together with the event: a repetition, even one at the same moment, makes no second event.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    auth,
    body::Body,
    membership::{self, not_in_room, room_id},
};
use crate::{
    error::MatrixError,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomAlias, RoomId, UserId},
        json::{Object, Value},
        power_levels::{Level, PowerLevels, creators},
        relation::{self, Relation},
        state_content::Membership,
    },
    platform::DatabaseError,
    room::Draft,
    router::{Call, Handled, ok},
    server::Server,
    store::account_data::ClientTransaction,
};

/// The longest transaction ID, in bytes.
const MAX_TXN_ID_BYTES: usize = 255;

/// `PUT /rooms/{roomId}/send/{eventType}/{txnId}`
pub(super) async fn send(server: &Server, call: &Call) -> Handled {
    let (room, event_type, txn_id) = (call.parameter(0), call.parameter(1), call.parameter(2));
    let draft = |body: Body| match event_type {
        "m.room.redaction" => given_redaction(body.into_object()),
        event_type => Ok(Draft::message(event_type, body.into_object())),
    };
    once(server, call, room, &format!("send {room} {event_type}"), txn_id, draft).await
}

/// `PUT /rooms/{roomId}/redact/{eventId}/{txnId}`
pub(super) async fn redact(server: &Server, call: &Call) -> Handled {
    let (room, redacts, txn_id) = (call.parameter(0), call.parameter(1), call.parameter(2));
    let draft = |body: Body| {
        let mut content = Object::new();
        if let Some(reason) = body.text("reason")? {
            content.insert("reason", Value::from(reason));
        }
        redaction(redacts.to_owned(), content)
    };
    once(server, call, room, &format!("redact {room} {redacts}"), txn_id, draft).await
}

/// A redaction that a client gives as an event, with `redacts` in its content in every room version.
fn given_redaction(mut content: Object) -> Result<Draft, MatrixError> {
    let redacts = content.remove("redacts").and_then(|redacts| redacts.as_str().map(str::to_owned));
    redaction(redacts.ok_or_else(|| MatrixError::missing_param("A redaction must say what it redacts."))?, content)
}

fn redaction(redacts: String, content: Object) -> Result<Draft, MatrixError> {
    EventId::parse(&redacts).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    Ok(Draft { event_type: "m.room.redaction".to_owned(), state_key: None, content, redacts: Some(redacts) })
}

/// Makes the event of a request that is named by a transaction ID, or finds the one that it made before.
async fn once(
    server: &Server,
    call: &Call,
    room: &str,
    endpoint: &str,
    txn_id: &str,
    draft: impl FnOnce(Body) -> Result<Draft, MatrixError>,
) -> Handled {
    let (session, before) = auth::session_and_transaction(server, call, endpoint, txn_id).await?;
    if let Some(event_id) = before {
        return ok(&json!({ "event_id": event_id }));
    }
    if txn_id.is_empty() || txn_id.len() > MAX_TXN_ID_BYTES {
        return Err(MatrixError::invalid_param("The transaction ID must have between 1 and 255 bytes."));
    }
    let room_id = room_id(room)?;
    let draft = draft(Body::optional(server, call).await?)?;
    check_replacement(&room_id, &draft.event_type, &draft.content)?;
    let transaction = ClientTransaction {
        user_id: session.user.as_str().to_owned(),
        device_id: session.device_id.clone(),
        endpoint: endpoint.to_owned(),
        txn_id: txn_id.to_owned(),
    };
    let now_ms = server.platform.clock.now_ms();
    let remember = |event: &Event| vec![transaction.remember(event.event_id().as_str(), now_ms)];
    let is_repetition = async || Ok(server.store.client_transaction(&transaction).await?.is_some());
    let annotation = Annotation::of(&draft);
    let is_duplicate = async || match &annotation {
        Some(annotation) => annotation.is_there(server, &room_id, &session.user).await,
        None => Ok(false),
    };
    let sent = async {
        if let Some(redacts) = &draft.redacts {
            let may = may_redact(server, &session.user, &room_id, redacts).await;
            told_inside(server, &session.user, &room_id, may).await?;
        }
        let may = may_relate(server, &room_id, &draft).await;
        told_inside(server, &session.user, &room_id, may).await?;
        let rooms = &server.rooms;
        let sent = rooms.send_with(&room_id, &session.user, draft, remember, is_repetition, is_duplicate).await;
        sent.map_err(not_in_room)
    };
    let event_id = match sent.await {
        Ok(event) => event.event_id().as_str().to_owned(),
        // The same request at the same moment may have come first, or this one's own commit whose answer was lost.
        Err(error) => server.store.client_transaction(&transaction).await?.ok_or(error)?,
    };
    server.flush(&room_id);
    ok(&json!({ "event_id": event_id }))
}

/// What is wrong with an event in its room is told only to users who are in the room. Others may not send anything, and are refused in the
/// same way whatever is there.
async fn told_inside(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    checked: Result<(), MatrixError>,
) -> Result<(), MatrixError> {
    match checked {
        Err(error) if server.store.membership(room_id, user).await? == Some(Membership::Join) => Err(error),
        _ => Ok(()),
    }
}

/// The rooms let everybody send redactions and then take no notice of those that are not allowed; users are told.
///
/// # Errors
/// 403 `M_FORBIDDEN` where the event is somebody else's and the user may not redact those, 404 where it is of another room.
/// An event that only others hold may be redacted: whether that takes effect they judge by its sender.
async fn may_redact(server: &Server, user: &UserId, room_id: &RoomId, redacts: &str) -> Result<(), MatrixError> {
    let unknown = || MatrixError::not_found("There is no such event in this room.");
    let event_id = EventId::parse(redacts).map_err(|_| unknown())?;
    let Some(stored) = server.rooms.event(&event_id).await? else { return Ok(()) };
    let event = stored.event;
    if event.room_id() != room_id {
        return Err(unknown());
    }
    if event.sender() == user {
        return Ok(());
    }
    let keys = [("m.room.create", ""), ("m.room.power_levels", "")];
    let state = server.rooms.current(room_id, &keys).await?.map(|(_, state)| state).unwrap_or_default();
    let find = |event_type| state.iter().find(|event| event.event_type() == event_type);
    let create = find("m.room.create").ok_or_else(unknown)?;
    let levels = PowerLevels::from_state(create, find("m.room.power_levels"));
    if levels.allow(user.as_str(), Level::Redact) {
        Ok(())
    } else {
        Err(MatrixError::forbidden("You may not redact other users' events in this room."))
    }
}

/// No thread begins with an event that relates to another one. Nothing is read for other events.
///
/// # Errors
/// 400 `M_UNKNOWN`.
async fn may_relate(server: &Server, room_id: &RoomId, draft: &Draft) -> Result<(), MatrixError> {
    let Some(Relation { rel_type: relation::THREAD, parent }) = Relation::of_content(&draft.content) else {
        return Ok(());
    };
    let Ok(root) = EventId::parse(parent) else { return Ok(()) };
    let root = server.rooms.event(&root).await?.map(|stored| stored.event);
    if root.is_some_and(|root| root.room_id() == room_id && Relation::of(&root).is_some()) {
        let message = "A thread cannot start from an event that relates to another event.";
        return Err(MatrixError::new(http::StatusCode::BAD_REQUEST, "M_UNKNOWN", message));
    }
    Ok(())
}

/// What nobody sends twice: an annotation of an event, of one type and with one key.
struct Annotation {
    parent: String,
    event_type: String,
    key: String,
}

impl Annotation {
    /// The one that an event is, if it is one.
    fn of(draft: &Draft) -> Option<Self> {
        let Relation { rel_type: relation::ANNOTATION, parent } = Relation::of_content(&draft.content)? else {
            return None;
        };
        let key = draft.content.get("m.relates_to")?.as_object()?.get("key")?.as_str()?;
        Some(Self { parent: parent.to_owned(), event_type: draft.event_type.clone(), key: key.to_owned() })
    }

    /// Whether `user` has sent it.
    async fn is_there(&self, server: &Server, room_id: &RoomId, user: &UserId) -> Result<bool, DatabaseError> {
        let Self { parent, event_type, key } = self;
        server.store.is_annotated(room_id, parent, user.as_str(), (event_type, key)).await
    }
}

/// `PUT /rooms/{roomId}/state/{eventType}/{stateKey}`; the state key may be missing.
pub(super) async fn put_state(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let room_id = room_id(call.parameter(0))?;
    let content = Body::of(server, call).await?.into_object();
    let (event_type, state_key) = (call.parameter(1), call.parameter(2));
    check_replacement(&room_id, event_type, &content)?;
    match event_type {
        "m.room.canonical_alias" => check_aliases(server, &session.user, &room_id, &content).await?,
        "m.room.create" => return Err(MatrixError::invalid_param("A room has one create event, its first.")),
        "m.room.power_levels" => {
            check_levels(&content)?;
            let create = server.rooms.current(&room_id, &[("m.room.create", "")]).await?;
            let create = create.as_ref().and_then(|(_, state)| state.first());
            if let Some(create) = create.filter(|create| create.version().privileged_creators) {
                let unnamed = check_creators_unnamed(&content, creators(create));
                told_inside(server, &session.user, &room_id, unnamed).await?;
            }
        }
        _ => {}
    }
    let draft = match event_type {
        "m.room.member" => {
            let event_id = membership::put(server, &session.user, &room_id, state_key, content).await?;
            return ok(&json!({ "event_id": event_id }));
        }
        // One with a state key redacts as any other.
        "m.room.redaction" => {
            let draft = given_redaction(content)?;
            if let Some(redacts) = &draft.redacts {
                let may = may_redact(server, &session.user, &room_id, redacts).await;
                told_inside(server, &session.user, &room_id, may).await?;
            }
            Draft { state_key: Some(state_key.to_owned()), ..draft }
        }
        _ => Draft::state(event_type, state_key, content),
    };
    let event_id = membership::send(server, &session.user, &room_id, draft).await?;
    ok(&json!({ "event_id": event_id }))
}

/// Refuses a tombstone that leads back into its own room: clients would go round in circles.
///
/// # Errors
/// 400 `M_INVALID_PARAM` for one.
fn check_replacement(room_id: &RoomId, event_type: &str, content: &Object) -> Result<(), MatrixError> {
    let replacement = content.get("replacement_room").filter(|_| event_type == "m.room.tombstone");
    match replacement.and_then(Value::as_str) {
        Some(replacement) if replacement == room_id.as_str() => {
            Err(MatrixError::invalid_param("No room is its own replacement."))
        }
        _ => Ok(()),
    }
}

/// The content of `m.room.power_levels` as clients must send it: every level an integer, in every room version. Some take
/// levels as strings, but only so that old rooms go on.
///
/// # Errors
/// 400 `M_BAD_JSON` for anything else.
pub(super) fn check_levels(content: &Object) -> Result<(), MatrixError> {
    const LEVELS: [&str; 7] = ["ban", "events_default", "invite", "kick", "redact", "state_default", "users_default"];
    let wrong = |name: &str| MatrixError::bad_json(format!("{name:?} in power levels must be an integer."));
    for name in LEVELS {
        if content.get(name).is_some_and(|level| level.as_i64().is_none()) {
            return Err(wrong(name));
        }
    }
    for name in ["events", "notifications", "users"] {
        let Some(levels) = content.get(name) else { continue };
        let levels = levels.as_object();
        let levels =
            levels.ok_or_else(|| MatrixError::bad_json(format!("{name:?} in power levels must be an object.")))?;
        if let Some((key, _)) = levels.iter().find(|(_, level)| level.as_i64().is_none()) {
            return Err(wrong(key));
        }
    }
    Ok(())
}

/// Where creators stand above all levels (from room version 12 on) no power levels name one.
///
/// # Errors
/// 400 `M_BAD_JSON` where they do.
pub(super) fn check_creators_unnamed<'a>(
    content: &Object,
    mut creators: impl Iterator<Item = &'a str>,
) -> Result<(), MatrixError> {
    let users = content.get("users").and_then(Value::as_object);
    match creators.find(|creator| users.is_some_and(|users| users.contains_key(creator))) {
        Some(creator) => {
            Err(MatrixError::bad_json(format!("{creator} created the room and stands above power levels.")))
        }
        None => Ok(()),
    }
}

/// Aliases of this server that a canonical alias event newly names must exist and stand for the room. Other servers' are taken as
/// they are: to ask would make every change wait for them. What the current event names may stay, so that an alias that is gone hinders no change;
/// only users in the room can see what that is.
async fn check_aliases(server: &Server, user: &UserId, room_id: &RoomId, content: &Object) -> Result<(), MatrixError> {
    fn named(content: &Object) -> impl Iterator<Item = &Value> {
        let others = content.get("alt_aliases").and_then(Value::as_array).into_iter().flatten();
        content.get("alias").into_iter().chain(others).filter(|alias| !matches!(alias, Value::Null))
    }
    let keys = [("m.room.canonical_alias", ""), ("m.room.member", user.as_str())];
    let state = server.rooms.current(room_id, &keys).await?.map(|(_, state)| state).unwrap_or_default();
    let find = |event_type| state.iter().find(|event| event.event_type() == event_type);
    let is_joined = find("m.room.member").and_then(Event::membership) == Some(Membership::Join);
    let current = find("m.room.canonical_alias").filter(|_| is_joined).map(Event::content);
    let present: BTreeSet<&str> = current.into_iter().flat_map(named).filter_map(Value::as_str).collect();
    let is_new = |alias: &&Value| alias.as_str().is_none_or(|alias| !present.contains(alias));
    for alias in named(content).filter(is_new).take(50) {
        let bad = || MatrixError::invalid_param("This is not a room alias.");
        let alias = RoomAlias::parse(alias.as_str().ok_or_else(bad)?).map_err(|_| bad())?;
        if alias.server_name() != server.config.server_name.as_str() {
            continue;
        }
        let row = server.store.alias(alias.as_str()).await?;
        if row.is_none_or(|row| row.room_id != room_id.as_str()) {
            let message = format!("The alias {alias} does not point to this room.");
            return Err(MatrixError::new(http::StatusCode::BAD_REQUEST, "M_BAD_ALIAS", message));
        }
    }
    Ok(())
}
