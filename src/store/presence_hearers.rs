//! Which other servers hear of a local user's presence: all that share a room with the user, or so many of them as are told at a time. Those
//! hear that the user comes, and all that follows until they have gone.

use serde_json::json;

use super::{Store, edus::MAX_HEARERS};
use crate::{
    matrix::identifiers::{ServerName, UserId},
    platform::{DatabaseError, Row, Rows, Statement},
};

/// The other servers in the rooms of the user ?1 that can be reached as far as we know, by room and name, that meet `$side` of the
/// place after which those are who hear of the user. ?2: this server's name, ?3: now, ?4: how many.
macro_rules! hearers {
    ($at:literal, $side:literal) => {
        concat!(
            "SELECT * FROM (SELECT ",
            $at,
            " AS side, m.room_id, s.server FROM presence AS p CROSS JOIN local_memberships AS m \
               ON m.user_id = p.user_id AND m.membership = 'join' \
               CROSS JOIN room_servers AS s ON s.room_id = m.room_id AND s.to_pos IS NULL \
               LEFT JOIN destinations AS d ON d.destination = s.server \
             WHERE p.user_id = ?1 AND s.server <> ?2 AND COALESCE(d.retry_at, 0) <= ?3 AND ",
            $side,
            " ORDER BY m.room_id, s.server LIMIT ?4)"
        )
    };
}

/// Those after the place, and then from the first one on: ?5 of them at most, each with the first of its places in that order. At the
/// end the last place that was looked at, if there may be more.
const HEARERS: &str = concat!(
    "WITH pair(at, room_id, server) AS MATERIALIZED ( \
       SELECT row_number() OVER (ORDER BY side, room_id, server), room_id, server FROM (",
    hearers!(
        "0",
        "m.room_id >= p.told_after ->> 0 AND (m.room_id > p.told_after ->> 0 OR s.server > p.told_after ->> 1)"
    ),
    " UNION ALL ",
    hearers!(
        "1",
        "m.room_id <= p.told_after ->> 0 AND (m.room_id < p.told_after ->> 0 OR s.server <= p.told_after ->> 1)"
    ),
    ")) SELECT * FROM (SELECT MIN(at) AS at, room_id, server FROM pair WHERE at <= ?4 GROUP BY server ORDER BY 1 LIMIT ?5) \
     UNION ALL SELECT at, room_id, server FROM pair WHERE at = ?4"
);

/// Notes up to which place others were told of the user ?1.
const TOLD: &str = "UPDATE presence SET told_until = ?2 WHERE user_id = ?1";

/// How many pairs of a room and a server in it are looked at for those who hear of a user: the same servers are in many rooms.
const MAX_PAIRS: i64 = 1_000;

/// So many more hear that a user has gone. Whoever was away when others were told that the user is there takes none of their places
/// when it is back.
const BACK_AGAIN: i64 = 50;

/// The other servers that hear of a user's presence.
#[derive(Debug)]
pub struct PresenceHearers {
    /// The servers, each once: so many as are told at a time.
    pub servers: Vec<ServerName>,
    /// The last one, where there may be more.
    pub last: Option<PresencePlace>,
}

/// A place in the order of a user's rooms and of the servers in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresencePlace {
    /// The room.
    pub room: String,
    /// The server.
    pub server: String,
}

impl PresencePlace {
    pub(super) fn text(&self) -> String {
        json!([self.room, self.server]).to_string()
    }
}

impl PresenceHearers {
    /// Asks who hears of a local user, or that they are gone.
    pub(super) fn ask(own: &ServerName, user: &UserId, is_gone: bool, now: i64) -> Statement {
        let count = if is_gone { MAX_HEARERS + BACK_AGAIN } else { MAX_HEARERS };
        let parameters = [user.as_str().into(), own.as_str().into(), now.into(), MAX_PAIRS.into(), count.into()];
        Statement::new(HEARERS, parameters)
    }

    /// Reads the answer.
    pub(super) fn read(found: &Rows) -> Result<Self, DatabaseError> {
        let mut servers = Vec::new();
        for row in found {
            servers.extend(ServerName::parse(row.text(2)?).ok());
        }
        servers.sort();
        servers.dedup();
        let most = usize::try_from(MAX_HEARERS).unwrap_or(0);
        let last = match found.get(most.saturating_sub(1)) {
            Some(last) => Some(last),
            None => found.last().filter(|last| last.integer(0).is_ok_and(|at| at >= MAX_PAIRS)),
        };
        let place = |row: &Row| Ok(PresencePlace { room: row.text(1)?.to_owned(), server: row.text(2)?.to_owned() });
        Ok(Self { servers, last: last.map(place).transpose()? })
    }
}

impl Store {
    /// Notes up to which place others were told of these users, which are there.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn told(&self, users: &[(&UserId, PresencePlace)]) -> Result<(), DatabaseError> {
        let told = users.iter().map(|(user, last)| Statement::new(TOLD, [user.as_str().into(), last.text().into()]));
        self.batch(told.collect()).await.map(drop)
    }
}
