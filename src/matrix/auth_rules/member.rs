//! Rule 5: `m.room.member`, by the membership that the event asks for.

use super::{AuthError, Room, third_party_invite};
use crate::matrix::{
    event::Event,
    json::Value,
    power_levels::{self, Level, PowerLevel},
    state_content::{JoinRule, Membership},
};

/// Judges a membership event. That the server of a restricted join's authorising user signed it was verified before.
pub(super) fn check(event: &Event, room: &Room<'_>) -> Result<(), AuthError> {
    let target = event.state_key().filter(|target| target.contains(':')).ok_or(AuthError::MemberWithoutTarget)?;
    match event.membership() {
        Some(Membership::Join) => join(event, target, room),
        Some(Membership::Invite) => match event.content().get("third_party_invite") {
            Some(invite) => third_party_invite::check(event, target, invite, room),
            None => invite(event, target, room),
        },
        Some(Membership::Leave) => leave(event, target, room),
        Some(Membership::Ban) => ban(event, target, room),
        Some(Membership::Knock) if event.version().knock => knock(event, target, room),
        _ => Err(AuthError::UnknownMembership),
    }
}

fn join(event: &Event, target: &str, room: &Room<'_>) -> Result<(), AuthError> {
    // Additional creators, who come after the first, have to be invited.
    if event.prev_events() == std::slice::from_ref(room.create.event_id())
        && power_levels::creators(room.create).next() == Some(target)
    {
        return Ok(());
    }
    if event.sender().as_str() != target {
        return Err(AuthError::SenderIsNotTarget);
    }
    let membership = room.membership(target);
    if membership == Membership::Ban {
        return Err(AuthError::TargetBanned);
    }
    let invited = matches!(membership, Membership::Invite | Membership::Join);
    match room.join_rule() {
        JoinRule::Public => Ok(()),
        JoinRule::Restricted | JoinRule::KnockRestricted => restricted_join(event, invited, room),
        JoinRule::Invite | JoinRule::Knock if invited => Ok(()),
        JoinRule::Invite | JoinRule::Knock | JoinRule::Private => Err(AuthError::NotInvited),
    }
}

/// A join by the rule `restricted`: of one who is invited, or let in by a member who may invite.
fn restricted_join(event: &Event, invited: bool, room: &Room<'_>) -> Result<(), AuthError> {
    if invited {
        return Ok(());
    }
    let authorising_user = event.content().get("join_authorised_via_users_server").and_then(Value::as_str);
    let authorising_user = authorising_user.ok_or(AuthError::NotInvited)?;
    if room.membership(authorising_user) != Membership::Join {
        return Err(AuthError::AuthorisingUserNotJoined);
    }
    let levels = room.levels();
    AuthError::unless_enough(&levels.user(authorising_user)?, &levels.level(Level::Invite)?)
}

fn invite(event: &Event, target: &str, room: &Room<'_>) -> Result<(), AuthError> {
    let sender = event.sender().as_str();
    if room.membership(sender) != Membership::Join {
        return Err(AuthError::SenderNotJoined);
    }
    match room.membership(target) {
        Membership::Join => return Err(AuthError::TargetJoined),
        Membership::Ban => return Err(AuthError::TargetBanned),
        _ => {}
    }
    let levels = room.levels();
    AuthError::unless_enough(&levels.user(sender)?, &levels.level(Level::Invite)?)
}

fn leave(event: &Event, target: &str, room: &Room<'_>) -> Result<(), AuthError> {
    let sender = event.sender().as_str();
    let membership = room.membership(sender);
    if sender == target {
        return match membership {
            Membership::Invite | Membership::Join => Ok(()),
            Membership::Knock if event.version().knock => Ok(()),
            _ => Err(AuthError::SenderNotJoined),
        };
    }
    if membership != Membership::Join {
        return Err(AuthError::SenderNotJoined);
    }
    let levels = room.levels();
    let power = levels.user(sender)?;
    if room.membership(target) == Membership::Ban {
        AuthError::unless_enough(&power, &levels.level(Level::Ban)?)?;
    }
    AuthError::unless_enough(&power, &levels.level(Level::Kick)?)?;
    outranks(&power, &levels.user(target)?)
}

fn ban(event: &Event, target: &str, room: &Room<'_>) -> Result<(), AuthError> {
    let sender = event.sender().as_str();
    if room.membership(sender) != Membership::Join {
        return Err(AuthError::SenderNotJoined);
    }
    let levels = room.levels();
    let power = levels.user(sender)?;
    AuthError::unless_enough(&power, &levels.level(Level::Ban)?)?;
    outranks(&power, &levels.user(target)?)
}

fn knock(event: &Event, target: &str, room: &Room<'_>) -> Result<(), AuthError> {
    if !matches!(room.join_rule(), JoinRule::Knock | JoinRule::KnockRestricted) {
        return Err(AuthError::KnockingNotAllowed);
    }
    if event.sender().as_str() != target {
        return Err(AuthError::SenderIsNotTarget);
    }
    match room.membership(target) {
        Membership::Ban => Err(AuthError::TargetBanned),
        Membership::Invite | Membership::Join => Err(AuthError::TargetJoined),
        _ => Ok(()),
    }
}

fn outranks(power: &PowerLevel, target: &PowerLevel) -> Result<(), AuthError> {
    if power > target { Ok(()) } else { Err(AuthError::TargetNotOutranked) }
}
