//! Reading a room's state and members (Client-Server API, "Getting events for a room").

use http::StatusCode;
use serde_json::json;

use super::{
    auth::{self, Session},
    events::{self, Telling},
    tokens::Token,
    visibility::{Reader, WholeReader},
};
use crate::{
    error::MatrixError,
    matrix::{
        json::Value,
        state_content::Membership,
        state_trie::{NodeId, StateKeyHash},
    },
    room::RoomError,
    router::{Call, Handled, raw_json_response},
    server::Server,
    store::{snapshots::StateReads, timeline::SeenEvent},
};

/// `GET /rooms/{roomId}/state`
pub(super) async fn whole(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let reader = WholeReader::enter(server, &session, call.parameter(0)).await?;
    let mut text = String::new();
    write_state(server, reader.state, &mut text, &|_| true).await?;
    Ok(raw_json_response(StatusCode::OK, text))
}

/// `GET /rooms/{roomId}/state/{eventType}/{stateKey}`; the state key may be missing.
pub(super) async fn one(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let format = call.query("format");
    let state = state_for(server, &session, call).await?;
    let key = StateKeyHash::new(call.parameter(1), call.parameter(2));
    let reads = StateReads { at: vec![(state, key)], ..StateReads::default() };
    let found = server.store.read_states(&reads).await?;
    let seen = found.at(state, key).ok_or_else(|| MatrixError::not_found("The room has no such state."))?;
    let text = match format.as_deref() {
        None | Some("content") => seen.event.content().to_text(),
        Some("event") => events::client_event(seen, telling(server)).to_text(),
        Some(_) => return Err(MatrixError::invalid_param("\"format\" must be content or event.")),
    };
    Ok(raw_json_response(StatusCode::OK, text))
}

/// The state in which the one event is that `call` asks for. Of other servers' users it must be known who is in the room.
async fn state_for(server: &Server, session: &Session, call: &Call) -> Result<NodeId, MatrixError> {
    let is_ours = || call.parameter(2).ends_with(&format!(":{}", server.config.server_name));
    if call.parameter(1) == "m.room.member" && !is_ours() {
        return Ok(WholeReader::enter(server, session, call.parameter(0)).await?.state);
    }
    Ok(Reader::enter(server, session, call.parameter(0)).await?.state)
}

/// `GET /rooms/{roomId}/members`
pub(super) async fn members(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let only = membership(call, "membership")?;
    let never = membership(call, "not_membership")?;
    let at = call.query("at").map(|at| Token::parse(&at)).transpose()?;
    let reader = WholeReader::enter(server, &session, call.parameter(0)).await?;
    let mut root = reader.state;
    if let Some(at) = at {
        let pos = at.events.min(reader.last);
        root = server.store.state_at_position(&reader.room_id, pos, reader.last).await?.unwrap_or(root);
        reader.check_sees(server, root, pos).await?;
    }
    let is_told = |seen: &SeenEvent| {
        let is = |membership| seen.event.membership() == Some(membership);
        let is_asked_for = match (only, never) {
            // Either is enough, as the spec has it.
            (Some(only), Some(never)) => is(only) || !is(never),
            (only, never) => only.is_none_or(is) && !never.is_some_and(is),
        };
        seen.event.event_type() == "m.room.member" && is_asked_for
    };
    let mut text = String::from("{\"chunk\":");
    write_state(server, root, &mut text, &is_told).await?;
    text.push('}');
    Ok(raw_json_response(StatusCode::OK, text))
}

/// `GET /rooms/{roomId}/joined_members`
pub(super) async fn joined_members(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let reader = WholeReader::enter(server, &session, call.parameter(0)).await?;
    if !reader.joined {
        return Err(MatrixError::forbidden("You are not in this room."));
    }
    let mut text = String::from("{\"joined\":{");
    let mut is_first = true;
    let mut write = |text: &mut String, seen: &SeenEvent| {
        let is_joined = seen.event.membership() == Some(Membership::Join);
        let Some(user) = seen.event.state_key().filter(|_| is_joined && seen.event.event_type() == "m.room.member")
        else {
            return;
        };
        let field = |name: &str| seen.event.content().get(name).and_then(Value::as_str);
        let profile = json!({ "display_name": field("displayname"), "avatar_url": field("avatar_url") });
        text.push_str(if std::mem::take(&mut is_first) { "" } else { "," });
        text.push_str(&format!("{}:{profile}", Value::from(user).to_text()));
    };
    write_each(server, reader.state, &mut text, &mut write).await?;
    text.push_str("}}");
    Ok(raw_json_response(StatusCode::OK, text))
}

/// Writes a list of those events of a state that are told, in the client format, as they are read: there may be megabytes.
pub(super) async fn write_state(
    server: &Server,
    root: NodeId,
    text: &mut String,
    is_told: &dyn Fn(&SeenEvent) -> bool,
) -> Result<(), MatrixError> {
    text.push('[');
    let mut is_first = true;
    let mut write = |text: &mut String, seen: &SeenEvent| {
        if is_told(seen) {
            text.push_str(if std::mem::take(&mut is_first) { "" } else { "," });
            text.push_str(&events::client_event(seen, telling(server)).to_text());
        }
    };
    write_each(server, root, text, &mut write).await?;
    text.push(']');
    Ok(())
}

async fn write_each(
    server: &Server,
    root: NodeId,
    text: &mut String,
    write: &mut dyn FnMut(&mut String, &SeenEvent),
) -> Result<(), MatrixError> {
    let fits = server.store.write_state(root, text, write).await?;
    Ok(fits.then_some(()).ok_or(RoomError::TooLarge)?)
}

fn telling(server: &Server) -> Telling<'static> {
    Telling::alone(server.platform.clock.now_ms(), true)
}

fn membership(call: &Call, name: &str) -> Result<Option<Membership>, MatrixError> {
    let Some(text) = call.query(name) else { return Ok(None) };
    let membership = Membership::parse(&text);
    membership.map(Some).ok_or_else(|| MatrixError::invalid_param(format!("{name:?} must be a membership.")))
}
