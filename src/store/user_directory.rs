//! Finding users by name among the members of rooms.

use super::{Store, json_list, state_sql::slots, timeline::root};
use crate::{
    matrix::{identifiers::ServerName, state_trie::NodeId},
    platform::{DatabaseError, Row, SqlValue, Statement},
};

/// How many rooms are considered, those of the user first.
const MAX_ROOMS: i64 = 300;
/// How many nodes of their states are looked at; those near the roots first, so that all rooms get their turn.
const MAX_NODES: i64 = 10_000;
/// How many of the users found are told apart by how well they fit.
const MAX_FOUND: i64 = 500;

/// A user who was found.
#[derive(Debug, Clone)]
pub struct FoundUser {
    /// The user.
    pub user_id: String,
    /// What they call themselves.
    pub displayname: Option<String>,
    /// Their picture.
    pub avatar_url: Option<String>,
}

/// Rooms in which the user ?1 is, ?2 at most.
const ROOMS: &str = "\
    SELECT r.state FROM local_memberships AS m CROSS JOIN rooms AS r ON r.room_id = m.room_id \
    WHERE m.user_id = ?1 AND m.membership = 'join' LIMIT ?2";

/// Rooms in which the server ?1 is, ?2 at most.
const OTHER_ROOMS: &str = "\
    SELECT r.state FROM room_servers AS s CROSS JOIN rooms AS r ON r.room_id = s.room_id \
    WHERE s.server = ?1 AND s.to_pos IS NULL LIMIT ?2";

/// The joined members by the states ?1, a JSON list, whose ID or name has one of the texts ?2 to ?4, as [`super::search`] has them.
/// Those of this server are told as their profiles have them, whatever they are called in some of the rooms.
/// ?5: how many rows of the walk, ?6: how many users, ?7: who is left out.
const MEMBERS: &str = concat!(
    "WITH RECURSIVE ",
    slots!(),
    ", tree(node_id) AS ( SELECT value FROM json_each(?1) UNION SELECT substr(node, at, 22) FROM tree \
         CROSS JOIN state_nodes USING (node_id) CROSS JOIN slot WHERE substr(node, 1, 1) = 'I' LIMIT ?5 ), \
       entry(event_id) AS ( SELECT DISTINCT item.value FROM tree CROSS JOIN state_nodes USING (node_id) \
         CROSS JOIN json_each(node) AS item WHERE substr(node, 1, 1) = '{' ), \
       member(user_id, displayname, avatar_url, ts) AS ( \
         SELECT e.state_key, CASE WHEN e.redacted_by IS NULL AND json_type(e.json, '$.content.displayname') = 'text' \
             THEN e.json ->> '$.content.displayname' END, \
           CASE WHEN e.redacted_by IS NULL AND json_type(e.json, '$.content.avatar_url') = 'text' \
             THEN e.json ->> '$.content.avatar_url' END, e.origin_server_ts \
         FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id \
         WHERE e.event_type = 'm.room.member' AND e.json ->> '$.content.membership' = 'join' AND e.state_key <> ?7 ), \
       found AS ( SELECT user_id, displayname, avatar_url, MAX(ts) AS ts FROM member \
         WHERE instr(lower(user_id), ?2) OR instr(lower(displayname), ?2) OR instr(lower(displayname), ?3) \
           OR instr(lower(displayname), ?4) GROUP BY user_id ORDER BY user_id LIMIT ?6 ) \
     SELECT f.user_id, CASE WHEN u.user_id IS NULL THEN f.displayname ELSE u.displayname END, \
       CASE WHEN u.user_id IS NULL THEN f.avatar_url ELSE u.avatar_url END \
     FROM found AS f LEFT JOIN users AS u ON u.user_id = f.user_id"
);

impl Store {
    /// The states of the rooms that the user is in, and of others that this server is in.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn rooms_to_search(
        &self,
        own: &ServerName,
        user_id: &str,
    ) -> Result<(Vec<NodeId>, Vec<NodeId>), DatabaseError> {
        let own_rooms = Statement::new(ROOMS, [user_id.into(), MAX_ROOMS.into()]);
        let others = Statement::new(OTHER_ROOMS, [own.as_str().into(), MAX_ROOMS.into()]);
        let answers = self.batch(vec![own_rooms, others]).await?;
        let mut lists = answers.iter().map(|rows| {
            let roots = rows.iter().map(|row| root(row, 0));
            roots.filter_map(Result::transpose).collect::<Result<Vec<NodeId>, _>>()
        });
        let mut next = || lists.next().unwrap_or(Ok(Vec::new()));
        Ok((next()?, next()?))
    }

    /// The joined members by these states whose ID or name has one of three texts, but for one user.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn members_named(
        &self,
        roots: &[NodeId],
        texts: &[String; 3],
        but: &str,
    ) -> Result<Vec<FoundUser>, DatabaseError> {
        let roots: Vec<String> = roots.iter().map(NodeId::to_string).collect();
        let [first, second, third] = texts.each_ref().map(|text| SqlValue::from(text.as_str()));
        let roots: SqlValue = json_list(roots.iter().map(String::as_str)).into();
        let parameters = [roots, first, second, third, MAX_NODES.into(), MAX_FOUND.into(), but.into()];
        let found = self.query(Statement::new(MEMBERS, parameters)).await?;
        let text = |value: Option<&str>| value.map(str::to_owned);
        let user = |row: &Row| {
            let (displayname, avatar_url) = (text(row.optional_text(1)?), text(row.optional_text(2)?));
            Ok(FoundUser { user_id: row.text(0)?.to_owned(), displayname, avatar_url })
        };
        found.iter().map(user).collect()
    }
}
