//! Local users' memberships in rooms that we are not in.

use super::commit::MembershipChange;
use crate::{matrix::identifiers::RoomId, platform::Statement};

const ADVANCE: &str = "UPDATE streams SET position = position + 1 WHERE name = 'events'";

const REMEMBER: &str = "\
    INSERT INTO local_memberships (user_id, room_id, membership, event_id, pos, invite_state) \
    VALUES (?1, ?2, ?3, ?4, (SELECT position FROM streams WHERE name = 'events'), ?5) \
    ON CONFLICT (user_id, room_id) DO UPDATE SET membership = excluded.membership, event_id = excluded.event_id, \
      pos = excluded.pos, invite_state = excluded.invite_state WHERE local_memberships.membership <> 'join'";

/// Remembers what became of a local user's membership, at a new position of the stream that sync reads.
pub(crate) fn remember_membership(room_id: &RoomId, change: &MembershipChange) -> Vec<Statement> {
    vec![
        Statement::new(ADVANCE, []),
        Statement::new(
            REMEMBER,
            [
                change.user_id.as_str().into(),
                room_id.as_str().into(),
                change.membership.as_str().into(),
                change.event_id.as_str().into(),
                change.invite_state.clone().into(),
            ],
        ),
    ]
}
