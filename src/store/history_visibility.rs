//! What tells which events of a room another server may see: `restricted_history`, `erased_users` and `server_members`.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    Store, json_lists, lacking,
    snapshots::{StateFound, ask_at},
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{RoomId, ServerName, UserId},
        state_content::{HistoryVisibility, Membership},
        state_trie::{NodeId, StateKeyHash},
    },
    platform::{DatabaseError, Rows, Statement},
};

/// A user of a server who was at some time invited to a room or joined.
#[derive(Debug, Clone)]
pub struct ServerMember {
    /// Who.
    pub user_id: UserId,
    /// No event of a lesser depth, as honest servers count it, can have been sent while they were.
    pub depth: i64,
}

/// The most members of one server that are looked at: no room that restricts its history has nearly as many.
const MOST_MEMBERS: i64 = 5_000;

/// What keeps events of a room from servers that are in it.
#[derive(Debug, Clone, Default)]
pub struct Restrictions {
    /// Whether the room restricts who may see its history, or did so at some time.
    pub history: bool,
    /// The erased users who were in the room.
    pub erased: BTreeSet<String>,
}

impl Restrictions {
    /// Those in the answer to [`RESTRICTIONS`].
    pub(super) fn of_rows(rows: &Rows) -> Result<Self, DatabaseError> {
        let mut restrictions = Self::default();
        for row in rows {
            match row.optional_text(0)? {
                Some(user) => drop(restrictions.erased.insert(user.to_owned())),
                None => restrictions.history = true,
            }
        }
        Ok(restrictions)
    }

    /// Whether there are none: then a server in the room may see every event.
    pub fn is_empty(&self) -> bool {
        !self.history && self.erased.is_empty()
    }
}

/// A row of NULL where the room ?1 restricts its history, or did, and a row for each erased user of the room.
pub(super) const RESTRICTIONS: &str = "\
    SELECT NULL AS user_id FROM restricted_history WHERE room_id = ?1 \
    UNION ALL SELECT user_id FROM erased_users WHERE room_id = ?1";

const RESTRICT: &str = "INSERT INTO restricted_history (room_id) VALUES (?1) ON CONFLICT (room_id) DO NOTHING";

/// ?1: a list of [server, user, depth].
const ADD_MEMBERS: &str = "\
    INSERT INTO server_members (room_id, server, user_id, depth) \
    SELECT ?2, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1) WHERE true \
    ON CONFLICT (room_id, server, user_id) DO UPDATE SET depth = excluded.depth WHERE excluded.depth < server_members.depth";

const MEMBERS: &str = "\
    SELECT user_id, MIN(depth, 9007199254740991) AS depth FROM server_members WHERE room_id = ?1 AND server = ?2 LIMIT ?3";

/// Notes what `events` of the room, which are written, mean for who may see its history: nothing is written for messages, nor for
/// a member whom we know.
pub(super) fn note<'e>(room_id: &RoomId, events: impl Iterator<Item = &'e Event>) -> Vec<Statement> {
    let (mut statements, mut members) = (Vec::new(), Vec::new());
    for event in events {
        if event.is_state("m.room.history_visibility", "")
            && matches!(
                HistoryVisibility::of(Some(event.content())),
                HistoryVisibility::Invited | HistoryVisibility::Joined
            )
            && statements.is_empty()
        {
            statements.push(Statement::new(RESTRICT, [room_id.as_str().into()]));
        }
        if event.event_type() == "m.room.member"
            && matches!(event.membership(), Some(Membership::Invite | Membership::Join))
            && let Some(Ok(user_id)) = event.state_key().map(UserId::parse)
        {
            members.push(json!([user_id.server_name(), user_id.as_str(), event.depth()]).to_string());
        }
    }
    let lists = json_lists(members).into_iter();
    statements.extend(lists.map(|list| Statement::new(ADD_MEMBERS, [list.into(), room_id.as_str().into()])));
    statements
}

impl Store {
    /// The history visibility in each of the snapshots `roots`, and the users of `server` by whose membership it may see events
    /// of the room. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn visibility_at(
        &self,
        room_id: &RoomId,
        server: &ServerName,
        roots: &[NodeId],
    ) -> Result<(StateFound, Vec<ServerMember>), DatabaseError> {
        let visibility = StateKeyHash::new("m.room.history_visibility", "");
        let mut statements = ask_at(roots.iter().map(|root| (*root, visibility)));
        statements
            .push(Statement::new(MEMBERS, [room_id.as_str().into(), server.as_str().into(), MOST_MEMBERS.into()]));
        let mut answers = self.batch(statements).await?;
        let rows = answers.pop().ok_or_else(lacking)?;
        let members = rows.iter().map(|row| {
            let user_id = UserId::parse(row.text(0)?);
            let user_id = user_id.map_err(|_| DatabaseError::Shape("a member who is not a user".to_owned()))?;
            Ok(ServerMember { user_id, depth: row.integer(1)? })
        });
        let members = members.collect::<Result<_, DatabaseError>>()?;
        let mut found = StateFound::default();
        answers.iter().try_for_each(|rows| found.read_at(rows))?;
        Ok((found, members))
    }
}
