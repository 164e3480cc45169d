//! Joining, knocking, leaving, kicking and banning (Client-Server API, "Room membership"). The endpoint for invites is in
//! [`super::inviting`].
//!
//! Where this server is in the room, it makes the events itself; where it is not, or where another server's user is
//! invited, `federation::outbound::membership` asks another server. A membership that is put as a state event ([`put`]) goes
//! the same ways.

use serde_json::json;

use super::{
    auth::{self, Session},
    body::{Body, member_content, merged},
    directory, settings,
};
use crate::{
    error::MatrixError,
    federation::outbound::{knocking, membership as remote},
    matrix::{
        auth_events::AUTHORISED_VIA,
        event::Event,
        identifiers::{EventId, RoomAlias, RoomId, ServerName, UserId},
        json::{Object, Value},
        state_content::Membership,
    },
    platform::Statement,
    room::{Draft, Entrance, Extent, RoomError},
    router::{Call, Handled, ok},
    server::Server,
};

/// How many servers a client may name for a join.
const MAX_VIA: usize = 20;
/// The longest reason, in bytes.
pub(super) const MAX_REASON_BYTES: usize = 2_048;
/// How much a client may say of its join, in bytes: the rest of the event is its place in the room, and the user's profile.
const MAX_SAID_BYTES: usize = 50_000;
/// What no client says of its join: what it is, and who has a part in it.
const NOT_SAID: [&str; 4] = ["membership", AUTHORISED_VIA, "third_party_signed", "third_party_invite"];

/// `POST /join/{roomIdOrAlias}`
pub(super) async fn join_by_id_or_alias(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (room_id, via) = room_by_id_or_alias(server, call).await?;
    join(server, &session, call, room_id, via).await
}

/// `POST /knock/{roomIdOrAlias}`
pub(super) async fn knock(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (room_id, via) = room_by_id_or_alias(server, call).await?;
    let body = Body::optional(server, call).await?;
    let profile = server.store.own_profile(session.user.as_str()).await?;
    let content = with_reason(member_content(&profile), &body)?;
    knock_on(server, &session.user, &room_id, via, content).await?;
    ok(&json!({ "room_id": room_id }))
}

/// The room in the path, and the servers through which it may be reached: those that the client names first.
pub(super) async fn room_by_id_or_alias(
    server: &Server,
    call: &Call,
) -> Result<(RoomId, Vec<ServerName>), MatrixError> {
    let target = call.parameter(0);
    let (room_id, known) = if target.starts_with('#') {
        let alias = RoomAlias::parse(target).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
        directory::resolve(server, &alias).await?
    } else {
        (room_id(target)?, Vec::new())
    };
    // An alias may name more servers than are asked.
    let mut via = named_servers(call);
    via.extend(known);
    Ok((room_id, via))
}

/// `POST /rooms/{roomId}/join`
pub(super) async fn join_by_id(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    join(server, &session, call, room_id(call.parameter(0))?, named_servers(call)).await
}

/// `POST /rooms/{roomId}/leave`
pub(super) async fn leave(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let room_id = room_id(call.parameter(0))?;
    let content = with_reason(Object::new(), &Body::optional(server, call).await?)?;
    let membership = server.store.membership(&room_id, &session.user).await?;
    let left = leave_as(server, &session.user, &room_id, membership, content).await?;
    // A request that is repeated is answered as before.
    if left.is_none() && membership != Some(Membership::Leave) {
        return Err(nothing_to_leave());
    }
    ok(&json!({}))
}

/// `POST /rooms/{roomId}/forget`
pub(super) async fn forget(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let room_id = room_id(call.parameter(0))?;
    let membership = server.store.membership(&room_id, &session.user).await?;
    if let Some(Membership::Join | Membership::Invite | Membership::Knock) = membership {
        let message = "You must leave the room before you forget it.";
        return Err(MatrixError::new(http::StatusCode::BAD_REQUEST, "M_UNKNOWN", message));
    }
    server.store.forget_room(&room_id, &session.user, server.platform.clock.now_ms()).await?;
    ok(&json!({}))
}

/// `POST /rooms/{roomId}/kick`
pub(super) async fn kick(server: &Server, call: &Call) -> Handled {
    let only_from = [Membership::Join, Membership::Invite, Membership::Knock];
    change_other(server, call, Membership::Leave, &only_from, "The user is not in the room.").await
}

/// `POST /rooms/{roomId}/ban`
pub(super) async fn ban(server: &Server, call: &Call) -> Handled {
    change_other(server, call, Membership::Ban, &[], "").await
}

/// `POST /rooms/{roomId}/unban`
pub(super) async fn unban(server: &Server, call: &Call) -> Handled {
    change_other(server, call, Membership::Leave, &[Membership::Ban], "The user is not banned.").await
}

/// `GET /joined_rooms`
pub(super) async fn joined_rooms(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    ok(&json!({ "joined_rooms": server.store.rooms_of(&session.user, Membership::Join).await? }))
}

/// Makes the membership of the user `target` what `content` says, as the endpoint for that membership would.
///
/// # Errors
/// As that endpoint.
pub(super) async fn put(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    target: &str,
    mut content: Object,
) -> Result<EventId, MatrixError> {
    // Who vouches for a join is found by this server, and not said by who wants to join.
    content.remove(AUTHORISED_VIA);
    let body = Body::part(&content);
    let membership = Membership::parse(body.required_text("membership")?)
        .ok_or_else(|| MatrixError::bad_json("\"membership\" must be join, invite, knock, leave or ban."))?;
    if let Membership::Leave | Membership::Ban = membership
        && target != user.as_str()
    {
        check_form(target)?;
        return send(server, user, room_id, Draft::membership(target, membership, content)).await;
    }
    let target = UserId::parse(target).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    match membership {
        Membership::Join if target == *user => {
            let profile = server.store.own_profile(user.as_str()).await?;
            let content = merged(member_content(&profile), content);
            match join_room(server, user, room_id, Vec::new(), content.clone()).await? {
                Some(event_id) => Ok(event_id),
                // In the room already: what changes is what the room knows of them.
                None => send(server, user, room_id, Draft::membership(user.as_str(), Membership::Join, content)).await,
            }
        }
        Membership::Knock if target == *user => knock_on(server, user, room_id, Vec::new(), content).await,
        Membership::Leave if target == *user => {
            let membership = server.store.membership(room_id, user).await?;
            leave_as(server, user, room_id, membership, content).await?.ok_or_else(nothing_to_leave)
        }
        Membership::Invite => invite_user(server, user, &target, room_id, content).await,
        membership => send(server, user, room_id, Draft::membership(target.as_str(), membership, content)).await,
    }
}

/// Makes an event in a room that this server is in, and has the room's other servers told of it.
///
/// # Errors
/// What forbids it in the room; 403 where this server is not in the room.
pub(super) async fn send(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    draft: Draft,
) -> Result<EventId, MatrixError> {
    send_with(server, user, room_id, draft, |_| Vec::new()).await
}

/// As [`send`], with further statements that take effect if and only if the event is committed.
///
/// # Errors
/// As [`send`].
pub(super) async fn send_with(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    draft: Draft,
    others: impl Fn(&Event) -> Vec<Statement>,
) -> Result<EventId, MatrixError> {
    let no = async || Ok(false);
    let send = async || server.rooms.send_with(room_id, user, draft.clone(), &others, no, no).await;
    let event = server.with_members(room_id, send).await?.map_err(not_in_room)?;
    server.flush(room_id);
    Ok(event.event_id().clone())
}

/// Invites a user of this or another server, with `content` beside the membership.
///
/// # Errors
/// As the room and the user's server say.
pub(super) async fn invite_user(
    server: &Server,
    sender: &UserId,
    target: &UserId,
    room_id: &RoomId,
    content: Object,
) -> Result<EventId, MatrixError> {
    if target.server_name() == server.config.server_name.as_str() {
        let profile = remote::local_invitee(server, target.as_str()).await?;
        let content = merged(content, member_content(&profile));
        send(server, sender, room_id, Draft::membership(target.as_str(), Membership::Invite, content)).await
    } else {
        remote::invite(server, sender, target, room_id, content).await
    }
}

async fn join(server: &Server, session: &Session, call: &Call, room_id: RoomId, via: Vec<ServerName>) -> Handled {
    let body = Body::optional(server, call).await?;
    let profile = server.store.own_profile(session.user.as_str()).await?;
    let content = merged(member_content(&profile), said_of_join(body)?);
    join_room(server, &session.user, &room_id, via, content).await?;
    ok(&json!({ "room_id": room_id }))
}

/// What a client gives for its join: a reason, what it is called in this room, and whatever else.
fn said_of_join(body: Body) -> Result<Object, MatrixError> {
    with_reason(Object::new(), &body)?;
    for name in ["displayname", "avatar_url"] {
        body.text(name)?;
    }
    let given = body.into_object().into_iter();
    let said: Object =
        given.filter(|(name, value)| *value != Value::Null && !NOT_SAID.contains(&name.as_ref())).collect();
    // Otherwise other servers would be asked for a place in the room for what can be no event.
    said.check_strict().map_err(|_| MatrixError::bad_json("A number in the body is no integer, or too large."))?;
    if said.to_text().len() > MAX_SAID_BYTES {
        return Err(MatrixError::too_large("Too much is said of the join."));
    }
    Ok(said)
}

/// Joins `user` to a room, with `content` beside the membership; `None` where they are in it already. What follows a join is done
/// even where the client has hung up: who comes again is in the room already.
async fn join_room(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    via: Vec<ServerName>,
    content: Object,
) -> Result<Option<EventId>, MatrixError> {
    let (joining, user, room_id) = (server.clone(), user.clone(), room_id.clone());
    let work = async move { join_and_settle(&joining, &user, &room_id, via, content).await };
    server.platform.to_the_end(work).await
}

async fn join_and_settle(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    via: Vec<ServerName>,
    content: Object,
) -> Result<Option<EventId>, MatrixError> {
    let mut known = server.rooms.entrance(room_id, user).await?;
    if known.as_ref().is_some_and(Entrance::is_in) {
        if server.store.stay(user, room_id).await? {
            return Ok(None);
        }
        // They have come out of it since.
        known = server.rooms.entrance(room_id, user).await?;
    }
    let was_there = known.as_ref().is_some_and(|entrance| {
        matches!(entrance.membership(), Some(Membership::Join | Membership::Leave | Membership::Ban))
    });
    let here = match &known {
        Some(entrance) if entrance.is_in() => return Ok(None),
        Some(entrance) if entrance.room.local_joined > 0 && !entrance.is_unsure() => {
            match server.rooms.content_of_join(entrance).await {
                Ok(vouched) => {
                    let draft = Draft::membership(user.as_str(), Membership::Join, merged(content.clone(), vouched));
                    server.rooms.send(room_id, user, draft).await
                }
                Err(error) => Err(error),
            }
        }
        _ => Err(RoomError::UnknownRoom),
    };
    let (event_id, entered) = match here {
        Ok(event) => (event.event_id().clone(), Some(known)),
        Err(error) => {
            let may_be_let_in_elsewhere = match &error {
                // Another server may be able to vouch for the user where this one is not.
                RoomError::UnknownRoom | RoomError::CannotGrant | RoomError::CannotAuthorise => true,
                RoomError::NotAllowed(_) => is_invited_outside(server, user, room_id).await?,
                _ => false,
            };
            if !may_be_let_in_elsewhere {
                return Err(error.into());
            }
            (remote::join(server, user, room_id, via, content).await?, None)
        }
    };
    // The room's servers hear of the join, if it was made here, and of the user's devices.
    server.flush(room_id);
    server.tell_presence_in(room_id, user);
    if !was_there {
        let entered = match entered {
            Some(known) => Ok(known),
            None => server.rooms.entrance(room_id, user).await,
        };
        settings::has_entered(server, user, room_id, entered).await;
    }
    Ok(Some(event_id))
}

/// Does what follows a join that took longer than its request, when it is done.
pub async fn has_joined(server: &Server, user: &UserId, room_id: &RoomId) {
    server.tell_presence_in(room_id, user);
    settings::has_entered(server, user, room_id, server.rooms.entrance(room_id, user).await).await;
}

/// Has `user` knock on a room, with `content` beside the membership.
async fn knock_on(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    via: Vec<ServerName>,
    content: Object,
) -> Result<EventId, MatrixError> {
    match server.rooms.send(room_id, user, Draft::membership(user.as_str(), Membership::Knock, content.clone())).await {
        Ok(event) => {
            server.flush(room_id);
            Ok(event.event_id().clone())
        }
        Err(RoomError::UnknownRoom) => knocking::knock(server, user, room_id, via, content).await,
        Err(error) => Err(error.into()),
    }
}

/// Whether the user has an invite that the room as we hold it has not got: it came before the events that it stands on.
async fn is_invited_outside(server: &Server, user: &UserId, room_id: &RoomId) -> Result<bool, MatrixError> {
    Ok(server.store.invitation(user, room_id).await?.is_some_and(|invitation| invitation.is_outside))
}

/// As [`leave_room`], for a user with this membership of the room as it is here; where there is none to end, they may be on their way in.
async fn leave_as(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    membership: Option<Membership>,
    content: Object,
) -> Result<Option<EventId>, MatrixError> {
    match membership {
        Some(Membership::Join | Membership::Invite | Membership::Knock) => {
            leave_room(server, user, room_id, content).await.map(Some)
        }
        _ => remote::leave(server, user, room_id, content).await,
    }
}

/// Ends the membership of `user`, be it a join, an invite or a knock, with `content` beside it: also where this server is not in
/// the room, or the room as it is here does not know of the membership.
pub(super) async fn leave_room(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    content: Object,
) -> Result<EventId, MatrixError> {
    match leave_unsent(server, user, room_id, content).await? {
        Left::Here(event_id) => {
            server.flush(room_id);
            Ok(event_id)
        }
        Left::Elsewhere(event_id) => Ok(event_id),
    }
}

/// Where a membership has ended, and by which event.
pub(super) enum Left {
    /// In the room as it is here: its other servers are to hear of it.
    Here(EventId),
    /// Through another server, or for the user alone.
    Elsewhere(EventId),
}

/// As [`leave_room`], but others do not hear of it by this.
pub(super) async fn leave_unsent(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    content: Object,
) -> Result<Left, MatrixError> {
    // A leave of the room as it is here would end another membership, or be refused.
    if !is_invited_outside(server, user, room_id).await? {
        let draft = Draft::membership(user.as_str(), Membership::Leave, content.clone());
        match server.rooms.send(room_id, user, draft).await {
            Ok(event) => return Ok(Left::Here(event.event_id().clone())),
            Err(RoomError::UnknownRoom) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let left = remote::leave(server, user, room_id, content).await?;
    left.map(Left::Elsewhere).ok_or_else(nothing_to_leave)
}

fn nothing_to_leave() -> MatrixError {
    MatrixError::forbidden("You are not in that room.")
}

async fn change_other(
    server: &Server,
    call: &Call,
    membership: Membership,
    only_from: &[Membership],
    otherwise: &str,
) -> Handled {
    let session = auth::session(server, call).await?;
    let room_id = room_id(call.parameter(0))?;
    let body = Body::of(server, call).await?;
    let target = body.required_text("user_id")?;
    check_form(target)?;
    let content = with_reason(Object::new(), &body)?;
    if !only_from.is_empty() {
        let read = async || -> Result<_, RoomError> {
            let members = [session.user.as_str(), target].map(|user| ("m.room.member", user));
            let (room, state) = server.rooms.current(&room_id, &members).await?.ok_or(RoomError::UnknownRoom)?;
            let of = |user: &str| {
                let member = state.iter().find(|event| event.is_state("m.room.member", user));
                member.and_then(Event::membership)
            };
            // Who is not in the room is not told who is.
            let is_in = of(session.user.as_str()) == Some(Membership::Join);
            if is_in { Ok((room.extent, of(target))) } else { Err(RoomError::UnknownRoom) }
        };
        let mut current = read().await;
        if let Ok((Extent::Partial, None)) = current {
            server.until_whole(&room_id).await?;
            current = read().await;
        }
        let now = current.map_err(not_in_room)?.1.unwrap_or(Membership::Leave);
        if !only_from.contains(&now) {
            return Err(MatrixError::forbidden(otherwise));
        }
    }
    send(server, &session.user, &room_id, Draft::membership(target, membership, content)).await?;
    ok(&json!({}))
}

/// The servers through which a client asks to join: `via`, and `server_name` as older clients call it.
pub(super) fn named_servers(call: &Call) -> Vec<ServerName> {
    let names = call.queries("via").into_iter().chain(call.queries("server_name"));
    names.filter_map(|name| ServerName::parse(&name).ok()).take(MAX_VIA).collect()
}

/// A room that we do not know is one that the user is not in.
pub(super) fn not_in_room(error: RoomError) -> MatrixError {
    match error {
        RoomError::UnknownRoom => MatrixError::forbidden("You are not in this room."),
        error => error.into(),
    }
}

/// The room ID in a path.
pub(super) fn room_id(text: &str) -> Result<RoomId, MatrixError> {
    RoomId::parse(text).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}

/// The user whom a body names.
pub(super) fn user_id(body: &Body) -> Result<UserId, MatrixError> {
    UserId::parse(body.required_text("user_id")?).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}

/// Checks the ID of a user who is put out of a room, or may come back. It need not be one that a server could have: other servers'
/// events may have brought it in.
fn check_form(user_id: &str) -> Result<(), MatrixError> {
    UserId::check_form(user_id).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}

/// `content` with the reason that a body gives.
pub(super) fn with_reason(mut content: Object, body: &Body) -> Result<Object, MatrixError> {
    if let Some(reason) = body.text("reason")? {
        if reason.len() > MAX_REASON_BYTES {
            return Err(MatrixError::too_large("The reason is too long."));
        }
        content.insert("reason", Value::from(reason));
    }
    Ok(content)
}
