//! Local users who have come into a room and now share it with other servers, which must hear of their devices (Server-Server
//! API, "Device Management"). A server whose users come into a room asks for the devices of those there itself.
//!
//! A commit only notes who has come. What follows is done a slice at a time, each one batch: a room may have thousands of servers. Each
//! server gets one EDU, however many devices there are: its `prev_id` is a number that nobody has heard of, so that it asks for the
//! whole list.

use super::{Answers, Store, positions::count, rooms::server_names, text_lists};
use crate::{
    matrix::identifiers::{RoomId, ServerName},
    platform::{DatabaseError, Rows, Statement},
};

/// Whether anybody but our users is in the room of the local member `m`. They are counted, as many servers may have left it.
macro_rules! is_shared {
    () => {
        "(SELECT r.joined FROM rooms AS r WHERE r.room_id = m.room_id) > \
           COALESCE((SELECT s.joined FROM room_servers AS s WHERE s.room_id = m.room_id \
             AND s.server = substr(m.user_id, instr(m.user_id, ':') + 1) AND s.to_pos IS NULL), 0)"
    };
}

/// ?1: local users, ?2: the room, ?3: how many positions of the stream the commit has taken. Those who were not joined before it.
const NEW_MEMBERS: &str = concat!(
    "INSERT INTO new_shares (room_id, newcomer, after) \
     SELECT m.room_id, m.user_id, '' FROM json_each(?1) AS j CROSS JOIN local_memberships AS m \
       ON m.user_id = j.value AND m.room_id = ?2 AND m.membership = 'join' \
       AND m.pos > (SELECT position FROM streams WHERE name = 'events') - ?3 \
     WHERE EXISTS (SELECT 1 FROM device_keys AS k WHERE k.user_id = m.user_id) AND ",
    is_shared!(),
    " ON CONFLICT (room_id, newcomer) DO UPDATE SET after = ''"
);

/// Where all servers of the room ?1 are found anew, all its local members are noted as newcomers.
const ALL_MEMBERS: &str = concat!(
    "INSERT INTO new_shares (room_id, newcomer, after) \
     SELECT m.room_id, m.user_id, '' FROM local_memberships AS m WHERE m.room_id = ?1 AND m.membership = 'join' \
       AND EXISTS (SELECT 1 FROM device_keys AS k WHERE k.user_id = m.user_id) AND ",
    is_shared!(),
    " ON CONFLICT (room_id, newcomer) DO UPDATE SET after = ''"
);

const OF_ROOM: &str = "SELECT room_id, newcomer, after FROM new_shares WHERE room_id = ?1 ORDER BY newcomer LIMIT 1";

const ANY: &str =
    "SELECT room_id, newcomer, after FROM new_shares WHERE room_id > '' ORDER BY room_id, newcomer LIMIT 1";

/// `page`: the next ?5 servers of the room ?2, after the name ?4, that are to hear of the newcomer ?3, if that is still to be done. ?1: this
/// server's name.
macro_rules! page {
    () => {
        "WITH page(user_id, server) AS ( \
           SELECT n.newcomer, s.server FROM new_shares AS n CROSS JOIN local_memberships AS m \
             ON m.user_id = n.newcomer AND m.room_id = n.room_id AND m.membership = 'join' \
             CROSS JOIN room_servers AS s ON s.room_id = m.room_id AND s.server > ?4 AND s.to_pos IS NULL AND s.server <> ?1 \
           WHERE n.room_id = ?2 AND n.newcomer = ?3 AND n.after = ?4 ORDER BY s.server LIMIT ?5) "
    };
}

/// After `page`: `told`, those of it who share no other room. A room whose servers are still to be told does not count.
macro_rules! told {
    () => {
        ", told(user_id, server) AS (SELECT p.user_id, p.server FROM page AS p \
           WHERE EXISTS (SELECT 1 FROM device_keys AS k WHERE k.user_id = p.user_id) AND NOT EXISTS ( \
             SELECT 1 FROM local_memberships AS m CROSS JOIN room_servers AS s \
               ON s.room_id = m.room_id AND s.server = p.server AND s.to_pos IS NULL \
             WHERE m.user_id = p.user_id AND m.membership = 'join' AND m.room_id <> ?2 AND NOT EXISTS ( \
               SELECT 1 FROM new_shares AS n WHERE n.room_id = m.room_id AND n.newcomer = p.user_id))) "
    };
}

/// What waits to tell of the same user gives way; but not what is in flight.
const SUPERSEDE: &str = concat!(
    page!(),
    told!(),
    "DELETE FROM edu_outbox WHERE (destination, pos) IN ( \
       SELECT o.destination, o.pos FROM told AS t LEFT JOIN destinations AS d ON d.destination = t.server \
         CROSS JOIN edu_outbox AS o ON o.destination = t.server AND o.pos > COALESCE(d.txn_edus, 0) \
       WHERE o.about = t.user_id AND o.edu_type = 'm.device_list_update')"
);

/// `prev_id` is the number that the next change of anybody here will have: nobody can have heard of it.
const TELL: &str = concat!(
    page!(),
    told!(),
    "INSERT INTO edu_outbox (destination, pos, edu_type, about, content) \
     SELECT t.server, q.position + row_number() OVER (ORDER BY t.server, t.user_id), 'm.device_list_update', t.user_id, \
       json_object('user_id', t.user_id, 'device_id', k.device_id, 'keys', json(k.keys), 'stream_id', c.stream_id, \
         'prev_id', json_array(l.position + 1)) \
     FROM told AS t CROSS JOIN streams AS q ON q.name = 'edu_outbox' CROSS JOIN streams AS l ON l.name = 'device_lists' \
       CROSS JOIN device_list_changes AS c ON c.user_id = t.user_id AND c.stream_id IS NOT NULL \
       CROSS JOIN device_keys AS k ON k.user_id = t.user_id \
         AND k.device_id = (SELECT MIN(first.device_id) FROM device_keys AS first WHERE first.user_id = t.user_id) \
     RETURNING destination"
);

/// As many positions as there may have been.
const ADVANCE: &str = "UPDATE streams SET position = position + ?1 WHERE name = 'edu_outbox'";

/// A note that was made anew meanwhile stays.
const END: &str = concat!(
    page!(),
    "DELETE FROM new_shares WHERE room_id = ?2 AND newcomer = ?3 AND after = ?4 AND (SELECT count(*) FROM page) < ?5"
);

const GO_ON: &str = concat!(
    page!(),
    "UPDATE new_shares SET after = (SELECT MAX(server) FROM page) WHERE room_id = ?2 AND newcomer = ?3 AND after = ?4"
);

/// How many are told at a time.
const SLICE: i64 = 100;

/// Somebody who has come into a room, and the last of its servers, by name, that has been told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewShare {
    room_id: String,
    newcomer: String,
    after: String,
}

/// Statements that note who has come into the room, at the end of a commit that has taken so many `positions` of the stream. `users`:
/// local users who are joined; `comes_in`: whether we come into the room by it.
pub(super) fn note<'a>(
    room_id: &RoomId,
    users: impl Iterator<Item = &'a str>,
    positions: usize,
    comes_in: bool,
) -> Vec<Statement> {
    let room = || room_id.as_str().into();
    if comes_in {
        return vec![Statement::new(ALL_MEMBERS, [room()])];
    }
    let lists = text_lists(users).into_iter();
    lists.map(|list| Statement::new(NEW_MEMBERS, [list.into(), room(), count(positions).into()])).collect()
}

/// Somebody who has come into the room, or into any; [`read`] reads the answer.
pub(super) fn first(room_id: Option<&RoomId>) -> Statement {
    match room_id {
        Some(room_id) => Statement::new(OF_ROOM, [room_id.as_str().into()]),
        None => Statement::new(ANY, []),
    }
}

/// Reads the answer to [`first`].
pub(super) fn read(rows: &Rows) -> Result<Option<NewShare>, DatabaseError> {
    let Some(row) = rows.first() else { return Ok(None) };
    let [room_id, newcomer, after] = [0, 1, 2].map(|column| row.text(column).map(str::to_owned));
    Ok(Some(NewShare { room_id: room_id?, newcomer: newcomer?, after: after? }))
}

impl Store {
    /// Somebody who has come into a room whose devices are still to be told.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn new_share(&self) -> Result<Option<NewShare>, DatabaseError> {
        read(&self.query(first(None)).await?)
    }

    /// Leaves EDUs for the next servers that are to hear of `share`. Answers which, and what is next: of the same room, or of any where none
    /// is given. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn tell_new_share(
        &self,
        own: &ServerName,
        share: &NewShare,
        room_id: Option<&RoomId>,
    ) -> Result<(Vec<ServerName>, Option<NewShare>), DatabaseError> {
        let NewShare { room_id: room, newcomer, after } = share;
        let [tell, supersede, end, go_on] = [TELL, SUPERSEDE, END, GO_ON].map(|sql| {
            let page = [own.as_str(), room, newcomer, after].map(Into::into);
            let [own, room, newcomer, after] = page;
            Statement::new(sql, [own, room, newcomer, after, SLICE.into()])
        });
        let statements = vec![supersede, tell, Statement::new(ADVANCE, [SLICE.into()]), end, go_on, first(room_id)];
        let mut answers = Answers::new(self.batch(statements).await?);
        answers.rows()?;
        let mut servers = server_names(&answers.rows()?)?;
        servers.sort();
        servers.dedup();
        read(&answers.rest().last().unwrap_or_default()).map(|next| (servers, next))
    }
}
