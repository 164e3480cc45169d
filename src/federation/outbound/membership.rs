//! Our users' memberships in rooms that other servers hold: joining, leaving without having joined, and inviting other
//! servers' users (Server-Server API, "Joining Rooms", "Leaving Rooms (Rejecting Invites)", "Inviting to a room"). For
//! knocks, see [`super::knocking`].

use std::cell::RefCell;

use super::{
    countersigning::{bad_answer, countersigned},
    directory::server_of,
    join_answers::{Answered, Attempt, Unread, begin_join, forget_kept, read_answer},
    large_joins::{Joined, Tried},
    leaving::{EndedJoins, leave_behind, leave_for_absent, leave_through_any, take_leave},
    refusals::{any_of, of_handshake, of_our_event},
    templates::complete,
};
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        auth_events::AUTHORISED_VIA,
        event::Event,
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::{Object, Value},
        room_version::RoomVersion,
        state_content::{Membership, STRIPPED_STATE},
    },
    platform::DatabaseError,
    room::{Draft, Installed, LEASE_MS, Progress, RoomError},
    server::Server,
    store::{
        accounts::Profile, ended_joins::JoinUnderWay, events::shown_list, held_joins::EarlierJoin,
        ignored::InvitePermission, members::Invitation,
    },
};

/// How many resident servers are tried.
const MAX_RESIDENTS: usize = 8;

/// How many calls to the database the join of a large room may make before it is left to the scheduled trigger. The platform
/// allows 1,000 for each request.
const LARGE_CALLS: u64 = 500;

/// How long the content of a membership is at most that gets its place in a room from another server, in bytes: the rest of the event is
/// that place.
const MAX_CONTENT_BYTES: usize = 60_000;

/// Joins `user` to a room that nobody here is in, or into which nobody here can let them, through one of the servers `via` or those that an invite or the room ID
/// points to. `content_extra` is what the membership says besides: display name, avatar, reason. It must run to its end
/// ([`crate::platform::Platform::to_the_end`]).
///
/// # Errors
/// What the servers say, 404 where none is known, 502 where none can be reached; as [`check_content`].
pub async fn join(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    via: Vec<ServerName>,
    content_extra: Object,
) -> Result<EventId, MatrixError> {
    check_content(&content_extra)?;
    let mut join_id = server.random_id();
    let now = server.platform.clock.now_ms();
    let (invitation, earlier) = server.store.before_join(user, room_id, &join_id, now, now + LEASE_MS).await?;
    if let EarlierJoin::UnderWay = earlier {
        return Err(later());
    }
    let mut residents = match residents_by(server, invitation.as_ref(), room_id, via).await {
        Ok(residents) => residents,
        Err(error) => {
            server.store.forget_join(room_id, &join_id).await?;
            return Err(error);
        }
    };
    let asking = Asking::default();
    let is_promised = matches!(earlier, EarlierJoin::Taken(_));
    if let EarlierJoin::Taken(large) = earlier {
        match server.resume_large_join(&large, LARGE_CALLS).await {
            Ok(Tried::Got(Progress::Done)) => return Ok(large.join.event_id().clone()),
            Ok(Tried::Got(Progress::Unfinished)) => return Err(later()),
            Ok(Tried::Got(Progress::GivenUp)) => {
                leave_for_absent(server, &large, true).await?;
                return Err(has_left());
            }
            // Others are asked for a place in the room beside it.
            Ok(Tried::Unanswered(_)) => {
                join_id.clone_from(&large.join_id);
                asking.kept.replace(Some(large.resident.clone()));
            }
            Err(error) => {
                let record = LogRecord::warning("a join is begun anew").room(room_id).user(user);
                server.platform.log.write(record.destination(&large.resident).because(&error));
                let until = server.platform.clock.now_ms() + LEASE_MS;
                server.store.note_join(user, room_id, &join_id, until).await?;
            }
        }
        // It has let the user in, and now others have their turn first.
        asking.sent.borrow_mut().push(large.join.event_id().clone());
        residents.retain(|resident| *resident != large.resident);
        residents.push(large.resident);
    }
    let work = any_of(&residents, "No server is known through which to join that room.", async |resident| {
        join_through(server, resident, &join_id, user, room_id, content_extra.clone(), &asking).await
    });
    let (mut outcome, through) = match server.holding(room_id, &join_id, work).await {
        Ok(Joined::In(event_id)) => {
            forget_kept(server, &asking.kept, &join_id).await?;
            (Ok(event_id), None)
        }
        // What is sent meanwhile is staged further on.
        Ok(Joined::Later) => return Err(later()),
        Ok(Joined::Left(resident)) => {
            forget_kept(server, &asking.kept, &join_id).await?;
            (Err(has_left()), Some(resident))
        }
        Err(error) if asking.kept.borrow().is_none() => (Err(error), None),
        // No other server has let them in, and the trigger goes on with what is kept, unless the user has left.
        Err(_) if !server.store.has_join_ended(room_id, &JoinUnderWay::staged(&join_id)).await? => {
            server.store.pause_large_join(&join_id, server.platform.clock.now_ms()).await?;
            return Err(later());
        }
        Err(_) => {
            server.store.end_large_join(&join_id).await?;
            (Err(later()), None)
        }
    };
    // What is staged for the room waits until the note counts no longer.
    let unnoted = |error: DatabaseError| {
        let record = LogRecord::error("the end of a join cannot be noted").room(room_id).user(user);
        server.platform.log.write(record.because(&error));
    };
    let ended = server.store.end_join(room_id, &join_id).await.unwrap_or_else(|error| {
        unnoted(error);
        through.is_some()
    });
    if outcome.is_err() && (through.is_some() || ended) {
        let sent = asking.sent.take();
        if !sent.is_empty() {
            // They may have come back since that was found.
            let ended = EndedJoins { joins: &sent, has_left: ended };
            let leaving = leave_behind(server, through.iter().chain(&residents), user, room_id, ended);
            server.holding(room_id, &join_id, leaving).await?;
        }
        outcome = Err(has_left());
    } else if outcome.is_err() && is_promised && invitation.is_none() {
        // Nobody goes on with the join that had let them in.
        let ended = EndedJoins { joins: &asking.sent.take(), has_left: false };
        leave_behind(server, residents.iter(), user, room_id, ended).await?;
    }
    if ended {
        server.store.forget_join(room_id, &join_id).await.unwrap_or_else(unnoted);
    }
    server.fetch_missing(room_id);
    outcome
}

/// What is known while servers are asked to let a user in.
#[derive(Default)]
struct Asking {
    /// The joins that were sent to them: by these, and no others, they can have let the user in.
    sent: RefCell<Vec<EventId>>,
    /// The server that has let them in and may answer yet: what is staged of its answer is kept until another one has let them in, too.
    kept: RefCell<Option<ServerName>>,
}

/// What a client is told whose join goes on.
fn later() -> MatrixError {
    MatrixError::gateway_timeout("The room is large: you will be in it in a few minutes.")
}

fn has_left() -> MatrixError {
    MatrixError::forbidden("You have left the room meanwhile.")
}

/// Makes `user` leave a room that nobody here is in, or that as we hold it does not know of their membership: rejects an
/// invite, retracts a knock, or ends a join that is under way. Where no resident server helps, it ends for the user all the
/// same, and only the room does not know. `content` is what the membership says besides: a reason. `None` where the user has no
/// invite or knock there and does not join it.
///
/// # Errors
/// Where the database fails; as [`check_content`].
pub async fn leave(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    content: Object,
) -> Result<Option<EventId>, MatrixError> {
    check_content(&content)?;
    let (leaving, user, room_id) = (server.clone(), user.clone(), room_id.clone());
    let work = async move { leave_all_the_way(&leaving, &user, &room_id, content).await };
    server.platform.to_the_end(work).await
}

async fn leave_all_the_way(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    content: Object,
) -> Result<Option<EventId>, MatrixError> {
    let invitation = server.store.invitation(user, room_id).await?;
    // What they say last counts, whatever the join comes to.
    let joining = server.store.end_joins_of(user, room_id).await?;
    if invitation.is_none() && joining.is_none() {
        return Ok(None);
    }
    // Those first that have let the user in while the invite is still shown.
    let residents = residents_by(server, invitation.as_ref(), room_id, joining.unwrap_or_default()).await?;
    let left = leave_through_any(server, residents.iter(), user, room_id, &content, None).await;
    let mut ended: Vec<EventId> = invitation.into_iter().map(|invitation| invitation.event_id).collect();
    let Some((resident, left)) = left else {
        // It has an ID of its own for clients, which tell events apart by it.
        let id = EventId::parse(&format!("${}", server.random_id())).map_err(|_| MatrixError::internal())?;
        let event = leave_for_clients(server, user, content);
        server.rooms.left_elsewhere(user, room_id, &id, &event, &ended).await?;
        return Ok(Some(id));
    };
    // It may be that of an invite which came only now.
    ended.extend_from_slice(left.auth_events());
    server.rooms.left_elsewhere(user, room_id, left.event_id(), left.object(), &ended).await?;
    take_leave(server, resident, &left).await?;
    Ok(Some(left.event_id().clone()))
}

/// What the clients of a user are told who left a room that has not heard of it.
fn leave_for_clients(server: &Server, user: &UserId, mut content: Object) -> Object {
    content.insert("membership", Membership::Leave.as_str());
    [
        ("type", Value::from("m.room.member")),
        ("state_key", Value::from(user.as_str())),
        ("sender", Value::from(user.as_str())),
        ("content", Value::Object(content)),
        ("origin_server_ts", Value::from(server.platform.clock.now_ms())),
    ]
    .into_iter()
    .collect()
}

/// The profile of a local user whom somebody invites.
///
/// # Errors
/// 404 where there is no such user, or none any more, 403 `M_INVITE_BLOCKED` where they do not want to be invited.
pub async fn local_invitee(server: &Server, user: &str) -> Result<Profile, MatrixError> {
    match server.store.invitee(user).await? {
        None => Err(MatrixError::not_found("There is no such user on this server.")),
        Some((_, InvitePermission::Blocked)) => Err(MatrixError::invite_blocked()),
        Some((profile, InvitePermission::Granted)) => Ok(profile),
    }
}

/// Invites another server's user: that server signs the invite before anybody else sees it.
///
/// # Errors
/// 403 where the room does not allow it or the user's server refuses, 502 where that server cannot be reached.
pub async fn invite(
    server: &Server,
    sender: &UserId,
    target: &UserId,
    room_id: &RoomId,
    content: Object,
) -> Result<EventId, MatrixError> {
    let inviting = server.clone();
    let (sender, target, room_id) = (sender.clone(), target.clone(), room_id.clone());
    let work = async move { invite_all_the_way(&inviting, &sender, &target, &room_id, content).await };
    server.platform.to_the_end(work).await
}

async fn invite_all_the_way(
    server: &Server,
    sender: &UserId,
    target: &UserId,
    room_id: &RoomId,
    content: Object,
) -> Result<EventId, MatrixError> {
    let destination = server_of(target.server_name())?;
    let draft = Draft::membership(target.as_str(), Membership::Invite, content);
    let drafted = async || server.rooms.draft_event(room_id, sender, &draft).await;
    let invite = server.with_members(room_id, drafted).await??;
    let mut keys: Vec<(&str, &str)> = STRIPPED_STATE.into_iter().map(|event_type| (event_type, "")).collect();
    keys.push(("m.room.member", sender.as_str()));
    let state = server.rooms.current_stored(room_id, &keys).await?.ok_or(RoomError::UnknownRoom)?.1;
    // The rules let a local user invite whom they would never let in.
    let create = state.iter().map(|stored| &stored.event).find(|event| event.event_type() == "m.room.create");
    if create.is_some_and(|create| create.content().get("m.federate") == Some(&Value::Bool(false))) {
        return Err(MatrixError::forbidden("Users of other servers cannot join this room."));
    }
    let state = shown_list(&state);
    let version = invite.version();
    let federation = &server.federation;
    let answer = federation.invite(&destination, room_id, invite.event_id(), version.id, invite.json(), &state).await?;
    let invite = countersigned(server, &invite, &destination, &answer).await?;
    server.rooms.commit_signed(&invite).await?;
    server.flush(room_id);
    Ok(invite.event_id().clone())
}

/// Where to ask about a room: the servers that the client names, the inviter's or that of a knock, the one in the room ID,
/// and, of a room that we are in, the others in it; each once.
///
/// # Errors
/// Where the database fails.
pub async fn residents(
    server: &Server,
    user: &UserId,
    room_id: &RoomId,
    via: Vec<ServerName>,
) -> Result<Vec<ServerName>, MatrixError> {
    let invitation = server.store.invitation(user, room_id).await?;
    residents_by(server, invitation.as_ref(), room_id, via).await
}

/// As [`residents`], where the user's invite or knock is known.
pub(super) async fn residents_by(
    server: &Server,
    invitation: Option<&Invitation>,
    room_id: &RoomId,
    via: Vec<ServerName>,
) -> Result<Vec<ServerName>, MatrixError> {
    let inviter = invitation.and_then(|invitation| Some(invitation.inviter.as_ref()?.server_name()));
    let knocked = invitation.and_then(|invitation| Some(invitation.via.as_ref()?.as_str()));
    let more = [inviter, knocked, room_id.server_name()];
    let more = more.into_iter().flatten().filter_map(|name| ServerName::parse(name).ok());
    let mut members = server.rooms.servers(room_id).await?;
    if !members.contains(&server.config.server_name) {
        // Who is in a room that we have left we cannot tell.
        members.clear();
    }
    let members = server.some_others(members, MAX_RESIDENTS);
    let mut residents: Vec<ServerName> = Vec::new();
    for name in via.into_iter().chain(more).chain(members) {
        if name != server.config.server_name && !residents.contains(&name) {
            residents.push(name);
        }
    }
    residents.truncate(MAX_RESIDENTS);
    Ok(residents)
}

async fn join_through(
    server: &Server,
    resident: &ServerName,
    join_id: &str,
    user: &UserId,
    room_id: &RoomId,
    mut content: Object,
    asking: &Asking,
) -> Result<Joined, MatrixError> {
    if asking.kept.borrow().as_ref() == Some(resident) {
        // It was asked for the same join a moment ago.
        return Err(later());
    }
    let versions: Vec<&str> = RoomVersion::all().iter().map(|version| version.id).collect();
    let template = server.federation.make_join(resident, room_id, user, &versions).await.map_err(of_handshake)?;
    // Who vouches for a restricted join; nothing else of the template's content is ours to sign.
    let authorised_via = template.event.get("content").and_then(|content| content.get(AUTHORISED_VIA));
    if let Some(authorised_via) = authorised_via {
        content.insert(AUTHORISED_VIA, authorised_via.clone());
    }
    let join = complete(server, template, user, room_id, Membership::Join, content)?;
    // From here on the room's servers may send us what happens in it.
    if !begin_join(server, join_id, &join).await? {
        return Ok(Joined::Left(resident.clone()));
    }
    asking.sent.borrow_mut().push(join.event_id().clone());
    let omits_members = server.config.faster_joins;
    let mut answered = answer_of(server, resident, join_id, &join, omits_members, asking).await?;
    if omits_members && matches!(answered, Answered::Unusable) {
        answered = answer_of(server, resident, join_id, &join, false, asking).await?;
    }
    let (joined, installed) = match answered {
        Answered::Whole(joined) => {
            let installed = server.rooms.install_join(&joined).await;
            (joined, installed)
        }
        Answered::InPart(joined, servers) => {
            let rest = server.rest_of_state(resident, &joined.join);
            let installed = server.rooms.install_partial_join(&joined, &servers, rest.clone()).await;
            if matches!(installed, Ok(Installed::InPart)) {
                server.complete(rest);
            }
            (joined, installed)
        }
        Answered::Staged(large) => return server.finish_large_join(&large, LARGE_CALLS).await,
        Answered::Elsewhere => {
            let has_left = server.store.end_join(room_id, join_id).await?;
            return Ok(if has_left { Joined::Left(resident.clone()) } else { Joined::Later });
        }
        Answered::Unusable => return Err(bad_answer("members are left out of the room's state")),
    };
    match installed {
        Err(RoomError::MissingEvents(_)) => {
            server.judge_given(resident, &joined.join).await?;
            if server.store.has_join_ended(room_id, &JoinUnderWay::taken(join_id)).await? {
                return Ok(Joined::Left(resident.clone()));
            }
        }
        Ok(Installed::GivenUp) => return Ok(Joined::Left(resident.clone())),
        installed => drop(installed?),
    }
    Ok(Joined::In(joined.join.event_id().clone()))
}

/// What a resident server answers to our join.
async fn answer_of(
    server: &Server,
    resident: &ServerName,
    join_id: &str,
    join: &Event,
    omits_members: bool,
    asking: &Asking,
) -> Result<Answered, MatrixError> {
    let federation = &server.federation;
    let answer = federation.send_join(resident, join.room_id(), join.event_id(), join.json(), omits_members).await;
    let answer = answer.map_err(of_our_event)?;
    let begun_ts = server.platform.clock.now_ms();
    let attempt = Attempt { join_id, resident, begun_ts, omits_members, staged: None, kept: Some(&asking.kept) };
    let answered = read_answer(server, attempt, join.clone(), answer).await;
    let is_kept = asking.kept.borrow().is_some();
    match &answered {
        Err(Unread::BrokeOff(_)) => drop(asking.kept.replace(Some(resident.clone()))),
        // What is staged is another server's, which may answer more than this one.
        Err(Unread::Unusable(_)) | Ok(Answered::Unusable | Answered::Elsewhere) if is_kept => {}
        // Another server may give a fuller or a different answer.
        Err(Unread::Unusable(_)) | Ok(Answered::Unusable | Answered::Elsewhere) => {
            server.store.end_large_join(join_id).await?;
        }
        Ok(_) => {}
    }
    Ok(answered?)
}

/// Refuses, before another server is asked for a place in the room, what can be no event.
///
/// # Errors
/// 400 `M_BAD_JSON` for numbers that events do not have, 413 `M_TOO_LARGE` for what is too long.
pub(super) fn check_content(content: &Object) -> Result<(), MatrixError> {
    let message = "A number in the content is no integer, or too large.";
    content.check_strict().map_err(|_| MatrixError::bad_json(message))?;
    if content.to_text().len() > MAX_CONTENT_BYTES {
        return Err(MatrixError::too_large("The content is too long."));
    }
    Ok(())
}
