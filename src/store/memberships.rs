//! Local users' memberships, as their syncs and room lists need them.

use serde_json::json;

use super::{
    departures::depart_at_once,
    json_lists,
    positions::{advance_for, from_end},
};
use crate::{
    matrix::{
        identifiers::{EventId, RoomId, ServerName, UserId},
        state_content::Membership,
    },
    platform::{DatabaseError, Statement, news::Subject},
};

/// What became of a local user's membership.
#[derive(Debug, Clone)]
pub struct MembershipChange {
    /// The user.
    pub user_id: UserId,
    /// What it became.
    pub membership: Membership,
    /// The membership event.
    pub event_id: EventId,
    /// Of a room that we are not in: the state that came with a knock, or the event that ended an invite, as a JSON list.
    pub invite_state: Option<String>,
    /// For a knock on a room that we are not in: the server through which it was made.
    pub via: Option<ServerName>,
    /// How many events of the commit come later in the timeline than the one by which it became so.
    pub later: usize,
}

/// ?1: a list of [user, membership, event id, invite state, how far from the end of the stream, via], ?3: whether it becomes so
/// in a room that we are in. Elsewhere nobody's join ends, and of invites only those in the list ?4 do: others
/// have come since. What is told already, and a new profile, leave `pos` as it is: by it sync tells a room that the user has just
/// joined. A room that was forgotten comes back as one in which the user never was, by another event than the one that is forgotten.
const MEMBERSHIPS: &str = "\
    INSERT INTO local_memberships (user_id, room_id, membership, event_id, pos, invite_state, via) \
    SELECT value ->> 0, ?2, value ->> 1, value ->> 2, \
      (SELECT position FROM streams WHERE name = 'events') - (value ->> 4), value ->> 3, value ->> 5 \
    FROM json_each(?1) WHERE true \
    ON CONFLICT (user_id, room_id) DO UPDATE SET membership = excluded.membership, event_id = excluded.event_id, \
      joined_until = CASE 'join' WHEN excluded.membership THEN NULL WHEN membership THEN excluded.pos \
        ELSE CASE WHEN forgotten_ts IS NULL OR event_id = excluded.event_id THEN joined_until END END, \
      forgotten_ts = CASE WHEN event_id = excluded.event_id THEN forgotten_ts END, \
      pos = CASE WHEN membership = excluded.membership AND (membership = 'join' OR event_id = excluded.event_id) \
        THEN pos ELSE excluded.pos END, \
      invite_state = excluded.invite_state, via = excluded.via, room_version = NULL, \
      outside_from = CASE WHEN NOT ?3 THEN outside_from END, \
      outside_bytes = CASE WHEN ?3 THEN 0 ELSE COALESCE(length(excluded.invite_state), 0) END \
    WHERE ?3 OR membership NOT IN ('join', 'invite') \
      OR membership = 'invite' AND event_id IN (SELECT value FROM json_each(?4))";

/// Changes nothing where the user has by now another invite or knock, or is in the room.
const END_INVITE: &str = "\
    UPDATE local_memberships SET membership = ?4, event_id = ?5, invite_state = ?6, via = NULL, outside_bytes = length(?6), \
      pos = (SELECT position FROM streams WHERE name = 'events') \
    WHERE user_id = ?1 AND room_id = ?2 AND membership IN ('invite', 'knock') AND event_id = ?3";

/// A membership as it is stored.
pub(super) fn stored(text: &str) -> Result<Membership, DatabaseError> {
    Membership::parse(text).ok_or_else(|| DatabaseError::Shape(format!("{text:?} is not a membership")))
}

/// Of invites that came by themselves and have ended the newest are told, ?3; of others nothing is remembered.
const FORGET_ENDED: &str = "\
    DELETE FROM local_memberships WHERE user_id = ?1 AND room_id IN (SELECT room_id FROM local_memberships \
      WHERE user_id = ?1 AND membership = ?2 AND outside_from IS NOT NULL AND joined_until IS NULL \
      ORDER BY pos DESC LIMIT -1 OFFSET ?3)";

/// How many invites a user may have that came by themselves, one server's being at most half of them, and how many that have
/// ended are remembered.
pub(super) const MAX_INVITES: i64 = 300;

/// What becomes of memberships in a room that we are in, in order.
pub(super) fn change(room_id: &RoomId, changes: &[MembershipChange]) -> Vec<Statement> {
    statements(room_id, changes, true, &[])
}

/// Remembers what became of a local user's membership in a room that we are not in, at a new position of the stream that
/// sync reads; unless the user has an invite by now that is not among `ended`.
pub(crate) fn remember_membership(room_id: &RoomId, change: &MembershipChange, ended: &[EventId]) -> Vec<Statement> {
    let mut statements = statements(room_id, std::slice::from_ref(change), false, ended);
    statements.insert(0, advance_for("events", 1, subjects(room_id, change)));
    statements.push(forget_ended(&change.user_id, change.membership));
    statements
}

/// Remembers what ended the invite, or the knock, `invite` of a local user, at a new position of the stream that sync reads.
pub(crate) fn end_invite(room_id: &RoomId, invite: &EventId, change: &MembershipChange) -> Vec<Statement> {
    let parameters = [
        change.user_id.as_str().into(),
        room_id.as_str().into(),
        invite.as_str().into(),
        change.membership.as_str().into(),
        change.event_id.as_str().into(),
        change.invite_state.as_deref().into(),
    ];
    let advance = advance_for("events", 1, subjects(room_id, change));
    vec![advance, Statement::new(END_INVITE, parameters), forget_ended(&change.user_id, change.membership)]
}

/// Forgets those of the user's ended invites that are too many.
pub(super) fn forget_ended(user_id: &UserId, ended: Membership) -> Statement {
    Statement::new(FORGET_ENDED, [user_id.as_str().into(), ended.as_str().into(), MAX_INVITES.into()])
}

/// Whom a change of a membership concerns.
fn subjects(room_id: &RoomId, change: &MembershipChange) -> [Subject; 2] {
    concerned(room_id, &change.user_id)
}

pub(super) fn concerned(room_id: &RoomId, user_id: &UserId) -> [Subject; 2] {
    [Subject::Room(room_id.to_string()), Subject::User(user_id.to_string())]
}

fn statements(room_id: &RoomId, changes: &[MembershipChange], in_room: bool, ended: &[EventId]) -> Vec<Statement> {
    let ended = json!(ended.iter().map(EventId::as_str).collect::<Vec<_>>()).to_string();
    let row = |change: &MembershipChange| {
        let MembershipChange { user_id, membership, event_id, invite_state, via, later } = change;
        json!([user_id.as_str(), membership.as_str(), event_id.as_str(), invite_state, from_end(*later), via])
            .to_string()
    };
    let lists = json_lists(changes.iter().map(row)).into_iter();
    let statements = lists.map(|list| {
        Statement::new(MEMBERSHIPS, [list.into(), room_id.as_str().into(), in_room.into(), ended.as_str().into()])
    });
    let is_entering = |membership| matches!(membership, Membership::Join | Membership::Invite | Membership::Knock);
    let entering = changes.iter().filter(|change| is_entering(change.membership));
    let entering = json_lists(entering.map(|change| json!(change.user_id.as_str()).to_string()));
    statements.chain(entering.into_iter().map(depart_at_once)).collect()
}
