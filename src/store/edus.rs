//! Whether an EDU about a room counts: who is joined by our state, and the room's server ACL. And who hears what a local user
//! does in a room.

use std::collections::{HashMap, HashSet};

use serde_json::json;

use super::{
    Answers, Store, json_lists,
    queue::names,
    state_sql::{found, paths},
    written,
};
use crate::{
    matrix::{
        identifiers::{RoomId, ServerName, UserId},
        json,
        server_acl::ServerAcl,
        state_trie::StateKeyHash,
    },
    platform::{DatabaseError, Rows, Statement},
};

/// The users of another server and the rooms that its EDUs name.
#[derive(Debug, Clone, Default)]
pub struct EduQuestions(Vec<(RoomId, UserId)>);

impl EduQuestions {
    /// Asks whether these users are in these rooms.
    pub fn new(mut of: Vec<(RoomId, UserId)>) -> Self {
        of.sort();
        of.dedup();
        Self(of)
    }
}

/// The answers, of rooms with local members.
#[derive(Debug, Default)]
pub struct EduRooms {
    joined: HashSet<(RoomId, UserId)>,
    acls: HashMap<RoomId, ServerAcl>,
}

impl EduRooms {
    /// Whether the user is joined to the room, which has local members.
    pub fn has(&self, room_id: &RoomId, user_id: &UserId) -> bool {
        self.joined.contains(&(room_id.clone(), user_id.clone()))
    }

    /// Whether the room's server ACL lets the server take part.
    pub fn allows(&self, room_id: &RoomId, server: &ServerName) -> bool {
        self.acls.get(room_id).is_none_or(|acl| acl.allows(server))
    }
}

/// ?1: a list of [room, key, user], the user being `null` for the ACL; ?2: this server's name. What an ACL says whose content was
/// altered is not known (`room/acl.rs`).
const FACTS: &str = concat!(
    "WITH RECURSIVE ",
    paths!(
        "room_id, user_id, ",
        "SELECT r.room_id, wanted.value ->> 2, r.state, wanted.value ->> 1, 0 FROM json_each(?1) AS wanted \
           CROSS JOIN rooms AS r ON r.room_id = wanted.value ->> 0 \
           CROSS JOIN room_servers AS s ON s.room_id = r.room_id AND s.server = ?2 AND s.to_pos IS NULL"
    ),
    ", ",
    found!("room_id, user_id, "),
    " SELECT found.room_id, found.user_id, CASE WHEN found.user_id IS NOT NULL THEN NULL WHEN e.redacted_by IS NOT NULL THEN '{}' \
        WHEN e.hash_wrong THEN NULL ELSE e.json -> '$.content' END AS acl \
      FROM found CROSS JOIN events AS e ON e.event_id = found.event_id \
      WHERE found.user_id IS NULL OR e.json ->> '$.content.membership' = 'join'"
);

/// Whether somebody else here is in the room. ?1: the room, ?2: the user.
const OTHERS_HERE: &str = "\
    SELECT user_id FROM local_memberships WHERE room_id = ?1 AND membership = 'join' AND user_id <> ?2 LIMIT 1";

const IS_JOINED: &str =
    "SELECT room_id FROM local_memberships WHERE user_id = ?2 AND room_id = ?1 AND membership = 'join'";

/// The other servers in the room that can be reached as far as we know, `$side` of the name ?4, by name. ?1: the room, ?2: this
/// server's name, ?3: now, ?5: how many.
macro_rules! hearers {
    ($side:literal) => {
        concat!(
            "SELECT * FROM (SELECT s.server FROM room_servers AS s LEFT JOIN destinations AS d ON d.destination = s.server \
             WHERE s.room_id = ?1 AND s.server ",
            $side,
            " ?4 AND s.to_pos IS NULL AND s.server <> ?2 AND COALESCE(d.retry_at, 0) <= ?3 ORDER BY s.server LIMIT ?5)"
        )
    };
}

/// Those after the name, and then from the first one on.
const HEARERS: &str = concat!("SELECT server FROM (", hearers!(">"), " UNION ALL ", hearers!("<="), ") LIMIT ?5");

/// How many other servers are told at a time of what a user does.
pub(super) const MAX_HEARERS: i64 = 200;

/// What a local user who does something in a room must know of it.
#[derive(Debug, Clone)]
pub struct Audience {
    /// Whether the user is in the room.
    pub is_joined: bool,
    /// Whether other local users are.
    pub others_here: bool,
    /// The other servers that are, and are not known to be away: so many of them as are told at a time.
    pub servers: Vec<ServerName>,
    /// The last of them, where there may be more.
    pub last: Option<ServerName>,
}

impl Store {
    /// Who hears what a local user does in a room: of the other servers those after the name `after`, in a circle. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn audience(
        &self,
        own: &ServerName,
        room_id: &RoomId,
        user: &UserId,
        now: i64,
        after: &str,
    ) -> Result<Audience, DatabaseError> {
        let of_user = || [room_id.as_str().into(), user.as_str().into()];
        let hearers = [room_id.as_str().into(), own.as_str().into(), now.into(), after.into(), MAX_HEARERS.into()];
        let answers = self
            .batch(vec![
                Statement::new(IS_JOINED, of_user()),
                Statement::new(OTHERS_HERE, of_user()),
                Statement::new(HEARERS, hearers),
            ])
            .await?;
        let mut answers = Answers::new(answers);
        let mut next = || answers.rows();
        let (is_joined, others_here) = (!next()?.is_empty(), !next()?.is_empty());
        let servers = names(&next()?)?;
        let last = servers.last().filter(|_| servers.len() >= usize::try_from(MAX_HEARERS).unwrap_or(0)).cloned();
        Ok(Audience { is_joined, others_here, servers, last })
    }
}

/// Asks; [`facts`] reads the answers. No statement where nothing is asked.
pub(super) fn ask(own: &ServerName, questions: &EduQuestions) -> Vec<Statement> {
    let mut rooms: Vec<&RoomId> = questions.0.iter().map(|(room_id, _)| room_id).collect();
    rooms.dedup();
    let members = questions.0.iter().map(|(room_id, user_id)| {
        let key = StateKeyHash::member(user_id.as_str());
        json!([room_id.as_str(), key.to_string(), user_id.as_str()]).to_string()
    });
    let acl = StateKeyHash::new("m.room.server_acl", "").to_string();
    let acls = rooms.into_iter().map(|room_id| json!([room_id.as_str(), acl, null]).to_string());
    let lists = json_lists(members.chain(acls));
    lists.into_iter().map(|list| Statement::new(FACTS, [list.into(), own.as_str().into()])).collect()
}

pub(super) fn facts(answers: impl Iterator<Item = Rows>) -> Result<EduRooms, DatabaseError> {
    let mut rooms = EduRooms::default();
    for row in answers.flatten() {
        let shape = |text: &str| DatabaseError::Shape(format!("{text:?} is no identifier"));
        let room_id = RoomId::parse(row.text(0)?).map_err(|_| shape("a stored room ID"))?;
        match row.optional_text(1)? {
            Some(user) => {
                rooms.joined.insert((room_id, UserId::parse(user).map_err(|_| shape(user))?));
            }
            None => {
                let acl =
                    row.optional_text(2)?.map(|text| written(text, |text| json::parse(text.as_bytes()))).transpose()?;
                let acl = acl.and_then(json::Value::into_object).map(|content| ServerAcl::from_content(&content));
                rooms.acls.extend(acl.map(|acl| (room_id, acl)));
            }
        }
    }
    Ok(rooms)
}
