//! Invites of local users that came by themselves, to rooms of which we need know nothing.
//!
//! Any server may send them: how much of that is remembered is bounded for each user and for each server. Names cost nothing, so
//! where a user's places are taken, the one who has most of them gives way to whoever has fewer.

use std::collections::BTreeMap;

use super::{
    Store,
    memberships::{MAX_INVITES, concerned, forget_ended, stored},
};
use crate::{
    matrix::{event::Event, identifiers::UserId, server_name::zone, state_content::Membership},
    platform::{DatabaseError, Row, SqlValue, Statement},
};

/// ?1 user, ?2 room, ?3 the invite, ?4 the state that came with it, ?5 the server that it came from, ?6 how many invites a user may
/// have that came by themselves, ?7 how many characters a server's may be together, ?8 the room of the invite that gives way to
/// it, if any does, ?9 where that stands, and ?10 the version of the room. At the next position of the stream. Where none gives way, a
/// server may have no more of a user's places than are free then; an invite in place of another of the same server takes none.
const INVITE: &str = "\
    INSERT INTO local_memberships (user_id, room_id, membership, event_id, pos, invite_state, outside_from, outside_bytes, \
      room_version) \
    SELECT ?1, ?2, 'invite', ?3, (SELECT position + 1 FROM streams WHERE name = 'events'), ?4, ?5, length(?4), ?10 \
    FROM (SELECT COALESCE(SUM(outside_bytes), 0) AS bytes, COALESCE(SUM(user_id = ?1), 0) AS places \
      FROM local_memberships \
      WHERE outside_from = ?5 AND membership = 'invite' AND NOT (user_id = ?1 AND room_id = ?2)) AS theirs \
    WHERE ?7 - length(?4) >= theirs.bytes \
      AND (?6 - CASE WHEN ?8 IS NULL THEN theirs.places ELSE 0 END > (SELECT count(*) FROM local_memberships \
          WHERE user_id = ?1 AND membership = 'invite' AND outside_from IS NOT NULL AND room_id <> ?2 \
          AND NOT (room_id IS ?8 AND pos IS ?9)) \
        OR EXISTS (SELECT 1 FROM local_memberships WHERE user_id = ?1 AND room_id = ?2 AND membership = 'invite' \
          AND outside_from = ?5)) \
    ON CONFLICT (user_id, room_id) DO UPDATE SET membership = excluded.membership, event_id = excluded.event_id, \
      pos = CASE WHEN membership = 'invite' AND event_id = excluded.event_id THEN pos ELSE excluded.pos END, \
      joined_until = CASE WHEN forgotten_ts IS NULL THEN joined_until END, forgotten_ts = NULL, \
      invite_state = excluded.invite_state, via = NULL, \
      outside_from = excluded.outside_from, outside_bytes = excluded.outside_bytes, \
      room_version = excluded.room_version \
    WHERE membership <> 'join'";

/// After [`INVITE`], where it was taken and is one too many: the invite to the room ?4 at the position ?5 has ended, by no event. ?6: how
/// many a user may have.
const GIVE_WAY: &str = "\
    UPDATE local_memberships SET membership = 'leave', invite_state = '[]', outside_bytes = 2, \
      pos = (SELECT position + 1 FROM streams WHERE name = 'events') \
    WHERE user_id = ?1 AND room_id = ?4 AND pos = ?5 AND membership = 'invite' \
      AND EXISTS (SELECT 1 FROM local_memberships AS m CROSS JOIN streams AS s ON s.name = 'events' \
        WHERE m.user_id = ?1 AND m.room_id = ?2 AND m.event_id = ?3 AND m.pos > s.position) \
      AND ?6 < (SELECT count(*) FROM local_memberships \
        WHERE user_id = ?1 AND membership = 'invite' AND outside_from IS NOT NULL)";

/// Moves the stream on where the invite was taken.
const INVITED: &str = "\
    UPDATE streams SET position = position + 1 WHERE name = 'events' AND EXISTS (SELECT 1 FROM local_memberships AS m \
      WHERE m.user_id = ?1 AND m.room_id = ?2 AND m.event_id = ?3 AND m.pos > position)";

const MEMBERSHIP: &str = "SELECT membership, event_id FROM local_memberships WHERE user_id = ?1 AND room_id = ?2";

/// The invites of the user ?1 that wait for an answer, but for one to the room ?2, the oldest first.
const WAITING: &str = "\
    SELECT room_id, pos, outside_from FROM local_memberships \
    WHERE user_id = ?1 AND membership = 'invite' AND outside_from IS NOT NULL AND room_id <> ?2 ORDER BY pos";

/// How many characters the invites of one server may be together, before they are answered.
const MAX_INVITES_OF_SERVER: i64 = 16 * 1024 * 1024;

/// How often an invite is tried that comes at the same time as others.
const TRIES: usize = 3;

/// What became of an invite that came by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invited {
    /// It is remembered.
    Done,
    /// The user, or the inviting server, has too many that nobody has answered.
    TooMany,
    /// The user is in the room.
    IsJoined,
}

/// An invite that waits for an answer.
#[derive(Debug, PartialEq, Eq)]
struct Waiting {
    room_id: String,
    pos: i64,
    server: String,
}

impl Store {
    /// Remembers an invite of a local user that came by itself from `server`, at a new position of the stream that sync reads.
    /// Where the user's places are taken, another one may end by it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn invite(
        &self,
        server: &str,
        user_id: &UserId,
        invite: &Event,
        invite_state: &str,
    ) -> Result<Invited, DatabaseError> {
        let (room_id, version) = (invite.room_id(), invite.version().id);
        let (user, room, event) = (user_id.as_str(), room_id.as_str(), invite.event_id().as_str());
        let this = || [user, room, event].map(SqlValue::from);
        let mut gives_way: Option<Waiting> = None;
        for _ in 0..TRIES {
            let other = || match &gives_way {
                Some(Waiting { room_id, pos, .. }) => [room_id.as_str().into(), (*pos).into()],
                None => [SqlValue::Null, SqlValue::Null],
            };
            let bounds = [invite_state.into(), server.into(), MAX_INVITES.into(), MAX_INVITES_OF_SERVER.into()];
            let invite: Vec<SqlValue> =
                this().into_iter().chain(bounds).chain(other()).chain([version.into()]).collect();
            let mut statements = vec![Statement::new(INVITE, invite)];
            if gives_way.is_some() {
                let gives_way: Vec<SqlValue> = this().into_iter().chain(other()).chain([MAX_INVITES.into()]).collect();
                statements.push(Statement::new(GIVE_WAY, gives_way));
                statements.push(forget_ended(user_id, Membership::Leave));
            }
            statements.push(Statement::new(INVITED, this()).concerning(concerned(room_id, user_id)));
            statements.push(Statement::new(MEMBERSHIP, [user.into(), room.into()]));
            let answers = self.batch(statements).await?;
            if let Some(row) = answers.last().and_then(|rows| rows.first()) {
                match stored(row.text(0)?)? {
                    Membership::Join => return Ok(Invited::IsJoined),
                    Membership::Invite if row.text(1)? == event => return Ok(Invited::Done),
                    _ => {}
                }
            }
            let waiting = self.query(Statement::new(WAITING, [user.into(), room.into()])).await?;
            let waiting = waiting.iter().map(Waiting::read).collect::<Result<Vec<_>, _>>()?;
            let next = who_gives_way(waiting, server);
            if next.is_none() || next == gives_way {
                break;
            }
            gives_way = next;
        }
        Ok(Invited::TooMany)
    }
}

impl Waiting {
    fn read(row: &Row) -> Result<Self, DatabaseError> {
        Ok(Self { room_id: row.text(0)?.to_owned(), pos: row.integer(1)?, server: row.text(2)?.to_owned() })
    }
}

/// Which of the invites that are `waiting`, the oldest first, gives way to another one of `server`, if no place is left: the oldest of
/// whoever has most in the zone that has most. `None` where that would be no fairer. A server's only invite gives way to another zone
/// alone, and only where no server in its own zone has more than one: the newest of them goes, as whoever came to the zone first is
/// none of those who fill it.
fn who_gives_way(waiting: Vec<Waiting>, server: &str) -> Option<Waiting> {
    let (mut of_zone, mut of_server): (BTreeMap<String, usize>, BTreeMap<&str, usize>) = Default::default();
    for invite in &waiting {
        *of_zone.entry(zone(&invite.server)).or_default() += 1;
        *of_server.entry(&invite.server).or_default() += 1;
    }
    let own_zone = zone(server);
    let (most, largest) = of_zone.iter().map(|(zone, count)| (*count, zone.as_str())).max()?;
    let is_fairer = |most: usize, own: Option<&usize>| most >= own.copied().unwrap_or_default() + 2;
    let own = of_zone.get(&own_zone);
    // Within its own zone it has as much of a right as its neighbours.
    let from = if is_fairer(most, own) { largest } else { own_zone.as_str() };
    let in_zone = |invite: &&Waiting| zone(&invite.server) == from;
    let of = |server: &str| of_server.get(server).copied().unwrap_or_default();
    let most = waiting.iter().filter(in_zone).map(|invite| of(&invite.server)).max()?;
    if from == own_zone && !is_fairer(most, of_server.get(server)) {
        return None;
    }
    let is_of_most = |invite: &Waiting| in_zone(&invite) && of(&invite.server) == most;
    let place = if most > 1 { waiting.iter().position(is_of_most) } else { waiting.iter().rposition(is_of_most) }?;
    waiting.into_iter().nth(place)
}
