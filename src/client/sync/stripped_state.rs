//! How a room is shown to users who are not in it, but invited to it or knocking (Client-Server API, "Stripped state").

use crate::{
    client::events::{self, events_object},
    error::MatrixError,
    matrix::{
        identifiers::UserId,
        json::{self, Object, Value},
        state_content::STRIPPED_STATE,
        state_trie::{NodeId, StateKeyHash},
    },
    platform::DatabaseError,
    store::{
        snapshots::{StateFound, StateReads},
        sync::SyncRoom,
        timeline::SeenEvent,
    },
};

pub(super) fn shown_outside_wants(room: &SyncRoom, user: &UserId, reads: &mut StateReads) {
    if let (None, Some((_, state))) = (&room.invite_state, room.room) {
        reads.at.extend(shown_outside_keys(user).map(|key| (state, key)));
    }
}

/// `inviter`: their membership, where they have invited the user to a room that we are in.
pub(super) fn shown_outside(
    room: &SyncRoom,
    user: &UserId,
    found: &StateFound,
    inviter: Option<&SeenEvent>,
) -> Result<Object, MatrixError> {
    let events = match (&room.invite_state, room.room) {
        (Some(text), _) => stored_events(text)?,
        (None, Some((_, state))) => {
            let seen = shown_outside_keys(user).filter_map(|key| found.at(state, key));
            seen.chain(inviter)
                .map(|seen| {
                    let mut event = seen.event.object().clone();
                    event.insert("event_id", seen.event.event_id().as_str());
                    events::stripped(&event)
                })
                .collect()
        }
        (None, None) => Vec::new(),
    };
    Ok(events_object(events))
}

/// Who has invited the user: the sender of the invite, which comes first of what came with it.
pub(super) fn inviter(room: &SyncRoom, user: &UserId, found: &StateFound) -> Option<String> {
    match (&room.invite_state, room.room) {
        (Some(text), _) => {
            let list = json::parse(text.as_bytes()).ok()?.into_array()?;
            Some(list.first()?.as_object()?.get("sender")?.as_str()?.to_owned())
        }
        (None, Some((_, state))) => {
            let invite = found.at(state, StateKeyHash::member(user.as_str()))?;
            Some(invite.event.sender().as_str().to_owned())
        }
        (None, None) => None,
    }
}

/// Where the membership stands of who has invited the user, where we know the room.
pub(super) fn inviter_at(room: &SyncRoom, user: &UserId, found: &StateFound) -> Option<(NodeId, StateKeyHash)> {
    let (_, state) = room.room.filter(|_| room.invite_state.is_none())?;
    Some((state, StateKeyHash::member(&inviter(room, user, found)?)))
}

/// The events of a JSON list that we have stored, as clients are told of rooms from outside.
pub(super) fn stored_events(text: &str) -> Result<Vec<Value>, MatrixError> {
    let stored = json::parse(text.as_bytes()).ok().and_then(Value::into_array);
    let list = stored.ok_or_else(|| DatabaseError::Shape("what a room is shown by is no list".to_owned()))?;
    Ok(list.iter().filter_map(|event| event.as_object().map(events::stripped)).collect())
}

/// Where the state stands that is shown to a user who is invited or knocks: what describes the room, and their membership.
fn shown_outside_keys(user: &UserId) -> impl Iterator<Item = StateKeyHash> {
    let keys = STRIPPED_STATE.iter().map(|kind| (*kind, "")).chain([("m.room.member", user.as_str())]);
    keys.map(|(kind, key)| StateKeyHash::new(kind, key))
}
