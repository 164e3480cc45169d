//! Presence: which users are there.
//!
//! Each row names rooms that the user is in: who is in one of them may see it. Those of a local user follow their memberships. For a user
//! of another server they are found when that server tells of them, in the rooms that we share with it, of which the first are looked at.

use serde_json::json;

use super::{
    Store, json_lists, lacking,
    positions::{PresencePos, TimelinePos},
    presence_hearers::{PresenceHearers, PresencePlace},
    state_sql::{found, paths},
    text_lists,
    typing::PAGE,
};
use crate::{
    matrix::{
        edu::{Presence, PresenceUpdate},
        identifiers::{ServerName, UserId},
        state_trie::StateKeyHash,
    },
    platform::{DatabaseError, Row, Rows, Statement, news::Subject},
};

/// Takes over what is news. That a user was active a little later is none; that they are in another room is news to those there.
/// What a client says is also news where a sync had said it:
/// it does not end by itself. And where a version from before migration 0068 has noted them, that is answering while this one is
/// deployed: others are to be told again of them. `$further`: what else is set.
macro_rules! unless_known {
    ($further:literal) => {
        concat!(
            " ON CONFLICT (user_id) DO UPDATE SET presence = excluded.presence, status_msg = excluded.status_msg, \
            last_active_ts = excluded.last_active_ts, currently_active = excluded.currently_active, \
            rooms = excluded.rooms, pos = excluded.pos, synced_until = excluded.synced_until, ",
            $further,
            " WHERE excluded.presence <> presence.presence OR excluded.status_msg IS NOT presence.status_msg \
            OR excluded.currently_active <> presence.currently_active \
            OR presence.synced_until IS NOT NULL AND excluded.synced_until IS NULL \
            OR presence.told_ts IS NULL AND excluded.told_ts IS NOT NULL \
            OR excluded.last_active_ts >= presence.last_active_ts + 60000 \
            OR EXISTS (SELECT 1 FROM json_each(excluded.rooms) AS n WHERE n.value NOT IN (SELECT value FROM json_each(presence.rooms)))"
        )
    };
}

/// ?1: a list of [user, key of the member event, presence, status, last active, currently active], ?2: the users' server, ?3:
/// this server's name, ?4: until when those who are there are taken to be. Whom nobody here shares a room with is not kept.
const NOTE: &str = concat!(
    "WITH RECURSIVE shared(room_id, state) AS ( \
       SELECT r.room_id, r.state FROM room_servers AS s CROSS JOIN room_servers AS own ON own.room_id = s.room_id \
           AND own.server = ?3 AND own.to_pos IS NULL CROSS JOIN rooms AS r ON r.room_id = s.room_id \
       WHERE s.server = ?2 AND s.to_pos IS NULL LIMIT 50 ), ",
    paths!(
        "room_id, user_id, ",
        "SELECT shared.room_id, new.value ->> 0, shared.state, new.value ->> 1, 0 FROM json_each(?1) AS new CROSS JOIN shared"
    ),
    ", ",
    found!("room_id, user_id, "),
    ", member(user_id, rooms) AS ( \
       SELECT f.user_id, json_group_array(f.room_id) FROM found AS f CROSS JOIN events AS e ON e.event_id = f.event_id \
       WHERE e.json ->> '$.content.membership' = 'join' GROUP BY f.user_id ) \
     INSERT INTO presence (user_id, presence, status_msg, last_active_ts, currently_active, rooms, pos, heard_until) \
     SELECT new.value ->> 0, new.value ->> 2, new.value ->> 3, new.value ->> 4, new.value ->> 5, member.rooms, \
       (SELECT position FROM streams WHERE name = 'presence') + new.key + 1, \
       CASE WHEN new.value ->> 2 <> 'offline' THEN ?4 END \
     FROM json_each(?1) AS new CROSS JOIN member ON member.user_id = new.value ->> 0 WHERE true",
    unless_known!("heard_until = excluded.heard_until")
);

/// Of the same, ?1, those who are there are taken to be until ?2 though it is no news. Within a minute it makes no difference, but to those
/// whom a version from before migration 0068 has noted.
const RENEW: &str = "\
    UPDATE presence SET heard_until = ?2 \
    WHERE user_id IN (SELECT j.value ->> 0 FROM json_each(?1) AS j WHERE j.value ->> 2 <> 'offline') \
      AND presence <> 'offline' AND COALESCE(heard_until, 0) <= ?2 - 60000";

/// ?2 users at most of other servers that have not told of them any more, ?1: now, are not there.
const END_HEARD: &str = "\
    WITH due(user_id, heard_until) AS MATERIALIZED ( \
      SELECT p.user_id, p.heard_until FROM presence AS p WHERE p.heard_until <= ?1 ORDER BY p.heard_until LIMIT ?2 \
    ), gone(number, user_id) AS MATERIALIZED (SELECT row_number() OVER (ORDER BY due.heard_until), due.user_id FROM due) \
    UPDATE presence SET presence = 'offline', currently_active = 0, heard_until = NULL, \
      pos = (SELECT position FROM streams WHERE name = 'presence') + gone.number \
    FROM gone WHERE presence.user_id IN (SELECT due.user_id FROM due) AND presence.user_id = gone.user_id RETURNING user_id";

/// The rooms of a local user.
macro_rules! own_rooms {
    ($user:literal) => {
        concat!(
            "(SELECT json_group_array(m.room_id) FROM local_memberships AS m WHERE m.user_id = ",
            $user,
            " AND m.membership = 'join')"
        )
    };
}

/// The same for a local user, ?1. ?2 to ?5: presence, status, last active, currently active. ?6: until when it holds without a further
/// sync, if it is by one. ?7: after which place those are who hear of a user who comes for the first time. When they come again those
/// hear who come next; before that, those who have heard that they are there. ?8: now. Whom a sync has be online, another one that was
/// there already has be idle.
const NOTE_OWN: &str = concat!(
    "INSERT INTO presence (user_id, presence, status_msg, last_active_ts, currently_active, synced_until, rooms, pos, told_after, told_ts) \
     SELECT ?1, ?2, ?3, ?4, ?5, ?6, ",
    own_rooms!("?1"),
    ", (SELECT position FROM streams WHERE name = 'presence') + 1, ?7, CASE WHEN ?2 <> 'offline' THEN ?8 END WHERE true",
    unless_known!(
        "idle_until = CASE WHEN excluded.synced_until IS NOT NULL AND excluded.presence = 'online' \
             AND presence.presence = 'unavailable' THEN presence.synced_until END, \
           told_ts = excluded.told_ts, told_after = COALESCE(CASE WHEN presence.presence = 'offline' AND excluded.presence <> 'offline' \
             THEN presence.told_until END, presence.told_after, excluded.told_after)"
    ),
    " RETURNING user_id"
);

/// ?1: a list of local users whose memberships have changed. In a room that they are new to, it is news that they are there. That
/// `user_id` is in the list is said twice: otherwise all rows would be read.
const FOLLOW: &str = concat!(
    "WITH now(number, user_id, rooms) AS MATERIALIZED (SELECT j.key, j.value, ",
    own_rooms!("j.value"),
    " FROM json_each(?1) AS j) UPDATE presence SET rooms = now.rooms, \
       pos = CASE WHEN presence.presence <> 'offline' AND json_array_length(presence.rooms) < json_array_length(now.rooms) \
         THEN (SELECT position FROM streams WHERE name = 'presence') + now.number + 1 ELSE pos END \
     FROM now WHERE presence.user_id IN (SELECT value FROM json_each(?1)) AND presence.user_id = now.user_id \
       AND presence.rooms <> now.rooms"
);

/// ?1 a local user, ?2 what a client of theirs has them be, ?3 until when, ?4 now. Answers where that is nothing new: they are that
/// already, and others are told again of them; or online by another client that syncs.
const STAY: &str = "\
    UPDATE presence SET synced_until = CASE WHEN presence = ?2 THEN ?3 ELSE synced_until END, \
      idle_until = CASE WHEN presence = ?2 THEN idle_until ELSE ?3 END \
    WHERE user_id = ?1 AND CASE presence WHEN ?2 THEN told_ts IS NOT NULL ELSE presence = 'online' AND synced_until > ?4 END \
    RETURNING user_id";

/// The local users whose clients have not synced any more, ?1: now; and until when others of theirs sync that are idle. ?2: how many.
const GONE: &str = "\
    SELECT 0 AS pos, 1 AS is_shown, p.user_id, p.presence, p.status_msg, p.last_active_ts, p.currently_active, \
      CASE WHEN p.idle_until > ?1 THEN p.idle_until END AS idle_until FROM presence AS p \
    WHERE p.synced_until <= ?1 ORDER BY p.synced_until LIMIT ?2";

/// The local users who are there and of whom others were last told at ?1 or before. ?2: how many.
const TOLD_LONG_AGO: &str = "SELECT p.user_id FROM presence AS p WHERE p.told_ts <= ?1 ORDER BY p.told_ts LIMIT ?2";

/// Notes that others are told again of the user ?1, at ?3, if they were last told at ?2 or before. It is no news here. Whom a version
/// from before migration 0068 has noted to be gone is told of for the last time.
const TELL_AGAIN: &str = "\
    UPDATE presence SET told_ts = CASE WHEN presence <> 'offline' THEN ?3 END WHERE user_id = ?1 AND told_ts <= ?2 \
    RETURNING 0 AS pos, 1 AS is_shown, user_id, presence, status_msg, last_active_ts, currently_active";

/// Notes of the users ?1, of whom others were to be told at ?2, that they were told at ?3.
const TELL_SOONER: &str = "\
    UPDATE presence SET told_ts = ?3 WHERE user_id IN (SELECT value FROM json_each(?1)) AND told_ts = ?2";

/// Moves the stream on to the last position that was taken.
const ADVANCE: &str = "\
    UPDATE streams SET position = (SELECT MAX(p.pos) FROM presence AS p WHERE p.pos > position) \
    WHERE name = 'presence' AND EXISTS (SELECT 1 FROM presence AS p WHERE p.pos > position) RETURNING position";

/// Whether the user ?1 may see the row `p`.
macro_rules! is_shown {
    () => {
        "(p.user_id = ?1 OR EXISTS (SELECT 1 FROM json_each(p.rooms) AS j CROSS JOIN local_memberships AS m \
            ON m.user_id = ?1 AND m.room_id = j.value AND m.membership = 'join'))"
    };
}

/// A page of the stream. ?1: the user, ?2: since, ?3: how many positions.
const NEWS: &str = concat!(
    "SELECT p.pos, ",
    is_shown!(),
    " AS is_shown, p.user_id, p.presence, p.status_msg, p.last_active_ts, p.currently_active \
     FROM streams AS s CROSS JOIN presence AS p ON p.pos > ?2 WHERE s.name = 'presence' AND s.position > ?2 \
     ORDER BY p.pos LIMIT ?3"
);

/// For a user who knows nothing: the newest of those who are there. ?1: the user, ?3: how many are looked at.
const NEWEST: &str = concat!(
    "SELECT p.pos, p.presence <> 'offline' AND ",
    is_shown!(),
    " AS is_shown, p.user_id, p.presence, p.status_msg, p.last_active_ts, p.currently_active \
     FROM presence AS p WHERE p.pos > ?2 ORDER BY p.pos DESC LIMIT ?3"
);

/// The rooms `m` that the user ?1 has joined since the 'events' position ?4, and after the room ?5.
macro_rules! new_rooms {
    () => {
        "streams AS s CROSS JOIN local_memberships AS m \
           ON m.user_id = ?1 AND m.membership = 'join' AND m.pos > ?4 AND m.room_id > ?5 \
         WHERE s.name = 'events' AND s.position > ?4"
    };
}

/// For a user who knows all up to ?2: of the newest of those who are there, those in rooms that the user ?1 has newly
/// joined. ?3: how many are looked at; none where there is no such room.
const OF_NEW_ROOMS: &str = concat!(
    "SELECT p.pos, p.presence <> 'offline' AND EXISTS ( \
         SELECT 1 FROM json_each(p.rooms) AS j WHERE j.value IN (SELECT m.room_id FROM ",
    new_rooms!(),
    ")) AS is_shown, \
       p.user_id, p.presence, p.status_msg, p.last_active_ts, p.currently_active \
     FROM presence AS p WHERE p.pos <= CASE WHEN EXISTS (SELECT 1 FROM ",
    new_rooms!(),
    ") THEN ?2 ELSE -1 END ORDER BY p.pos DESC LIMIT ?3"
);

/// ?1: the user who asks, ?2: about whom.
const ONE: &str = concat!(
    "SELECT 0 AS pos, ",
    is_shown!(),
    " AS is_shown, p.user_id, p.presence, p.status_msg, p.last_active_ts, p.currently_active \
     FROM presence AS p WHERE p.user_id = ?2"
);

/// The presence of a local user, to be noted.
#[derive(Debug, Clone, Copy)]
pub struct OwnPresence<'a> {
    /// What it is.
    pub row: &'a PresenceRow,
    /// Until when it holds, if a sync has brought it.
    pub synced_until: Option<i64>,
    /// Where those begin who hear of it, if the user is there for the first time.
    pub begin: &'a PresencePlace,
}

/// Whose presence the scheduled trigger has something to do with.
#[derive(Debug)]
pub struct PresenceDue {
    /// Local users who were there by syncs, which have ended: those first who have been gone for longest. Beside each, until when they
    /// are idle by syncs of another client.
    pub gone: Vec<(PresenceRow, Option<i64>)>,
    /// Local users who are there and of whom others have not been told for long.
    pub told_long_ago: Vec<UserId>,
    /// How many users of other servers have ended.
    pub ended: usize,
}

/// Somebody's presence, as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceRow {
    /// The user.
    pub user_id: UserId,
    /// Whether they are there.
    pub presence: Presence,
    /// What they say to it.
    pub status_msg: Option<String>,
    /// When they last did something, in milliseconds since the epoch.
    pub last_active_ts: i64,
    /// Whether they are at it just now.
    pub currently_active: bool,
}

/// Whose presence is new to a user.
#[derive(Debug, Default)]
pub struct PresenceNews {
    /// Up to which position of the stream it was read, where it is not at its end.
    pub page_end: Option<PresencePos>,
    /// Those who share a room with the user, and the user.
    pub users: Vec<PresenceRow>,
}

impl PresenceRow {
    /// The row that an update makes at `now`.
    pub fn of(update: PresenceUpdate, now: i64) -> Self {
        let PresenceUpdate { user_id, presence, status_msg, last_active_ago, currently_active } = update;
        Self {
            user_id,
            presence,
            status_msg,
            last_active_ts: now.saturating_sub(last_active_ago).max(0),
            currently_active,
        }
    }

    /// As others are told it at `now`.
    pub fn update(&self, now: i64) -> PresenceUpdate {
        let Self { user_id, presence, status_msg, last_active_ts, currently_active } = self.clone();
        let last_active_ago = now.saturating_sub(last_active_ts).max(0);
        PresenceUpdate { user_id, presence, status_msg, last_active_ago, currently_active }
    }

    fn read(row: &Row) -> Result<Self, DatabaseError> {
        let shape = |text: &str| DatabaseError::Shape(format!("{text:?} in presence"));
        let (user, presence) = (row.text(2)?, row.text(3)?);
        Ok(Self {
            user_id: UserId::parse(user).map_err(|_| shape(user))?,
            presence: Presence::parse(presence).ok_or_else(|| shape(presence))?,
            status_msg: row.optional_text(4)?.map(str::to_owned),
            last_active_ts: row.integer(5)?,
            currently_active: row.integer(6)? != 0,
        })
    }
}

/// For so long, in milliseconds, users of another server are taken to be there of whom that server tells nothing more. Others than ours
/// do the same, so that each repeats it in time.
const HEARD_MS: i64 = 30 * 60 * 1_000;

/// Statements that note, at `now`, the presence of users of the server `origin`.
pub fn note(own: &ServerName, origin: &ServerName, users: &[PresenceRow], now: i64) -> Vec<Statement> {
    let rows = users.iter().map(|row| {
        let key = StateKeyHash::member(row.user_id.as_str()).to_string();
        let active = i64::from(row.currently_active);
        json!([row.user_id.as_str(), key, row.presence.as_str(), row.status_msg, row.last_active_ts, active])
            .to_string()
    });
    let mut statements = Vec::new();
    let until = now + HEARD_MS;
    for list in json_lists(rows) {
        let of_origin = [list.as_str().into(), origin.as_str().into(), own.as_str().into(), until.into()];
        statements.push(Statement::new(NOTE, of_origin));
        statements.push(Statement::new(RENEW, [list.into(), until.into()]));
        statements.push(Statement::new(ADVANCE, []).concerning_if_any([Subject::Presence]));
    }
    statements
}

/// Statements by which the presence of local users follows what became of their memberships.
pub(super) fn follow<'a>(users: impl Iterator<Item = &'a str>) -> Vec<Statement> {
    let mut statements = Vec::new();
    for list in text_lists(users) {
        statements.push(Statement::new(FOLLOW, [list.into()]));
        statements.push(Statement::new(ADVANCE, []).concerning_if_any([Subject::Presence]));
    }
    statements
}

impl OwnPresence<'_> {
    fn put(&self, own: &ServerName, now: i64) -> [Statement; 3] {
        let Self { row, synced_until, begin } = *self;
        let note = [
            row.user_id.as_str().into(),
            row.presence.as_str().into(),
            row.status_msg.as_deref().into(),
            row.last_active_ts.into(),
            row.currently_active.into(),
            synced_until.into(),
            begin.text().into(),
            now.into(),
        ];
        [
            Statement::new(NOTE_OWN, note),
            Statement::new(ADVANCE, []).concerning_if_any([Subject::Presence]),
            PresenceHearers::ask(own, &row.user_id, row.presence == Presence::Offline, now),
        ]
    }

    /// Reads the answers to [`OwnPresence::put`].
    fn hearers(answers: &[Rows]) -> Result<Option<PresenceHearers>, DatabaseError> {
        let [noted, _, found] = answers else { return Err(lacking()) };
        if noted.is_empty() { Ok(None) } else { PresenceHearers::read(found).map(Some) }
    }
}

impl Store {
    /// Notes the presence of local users, in one call. For each: `None` where it is no news; else which other servers are to hear of it,
    /// those that share a room with the user and are not known to be away.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_presence(
        &self,
        own: &ServerName,
        users: &[OwnPresence<'_>],
        now: i64,
    ) -> Result<Vec<Option<PresenceHearers>>, DatabaseError> {
        let answers = self.batch(users.iter().flat_map(|user| user.put(own, now)).collect()).await?;
        answers.chunks(3).map(OwnPresence::hearers).collect()
    }

    /// Notes that a client of a local user has them be `presence` until a time. Whether that is what they are already.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn stays(
        &self,
        user: &UserId,
        presence: Presence,
        synced_until: i64,
        now: i64,
    ) -> Result<bool, DatabaseError> {
        let parameters = [user.as_str().into(), presence.as_str().into(), synced_until.into(), now.into()];
        Ok(!self.query(Statement::new(STAY, parameters)).await?.is_empty())
    }

    /// Ends the presence of users of other servers that have not told of them for long, `ended` at most; others than those here need not
    /// hear of it from us. And what there is to do at `now`: `limit` users at most who have gone, and `again` of whom others were last
    /// told at `told_ts` or before.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn presence_due(
        &self,
        now: i64,
        limit: i64,
        told_ts: i64,
        again: i64,
        ended: i64,
    ) -> Result<PresenceDue, DatabaseError> {
        let statements = vec![
            Statement::new(END_HEARD, [now.into(), ended.into()]),
            Statement::new(ADVANCE, []).concerning_if_any([Subject::Presence]),
            Statement::new(GONE, [now.into(), limit.into()]),
            Statement::new(TOLD_LONG_AGO, [told_ts.into(), again.into()]),
        ];
        let answers = self.batch(statements).await?;
        let [ended, _, gone, told] = answers.as_slice() else { return Err(lacking()) };
        let gone = gone.iter().map(|row| Ok((PresenceRow::read(row)?, row.optional_integer(7)?)));
        let shape = |text: &str| DatabaseError::Shape(format!("{text:?} in presence"));
        let told = told.iter().map(|row| UserId::parse(row.text(0)?).map_err(|_| shape("a user ID")));
        Ok(PresenceDue {
            gone: gone.collect::<Result<_, DatabaseError>>()?,
            told_long_ago: told.collect::<Result<_, _>>()?,
            ended: ended.len(),
        })
    }

    /// Notes that others are told again of those of these local users of whom they were last told at `told_ts` or before, in one call:
    /// what they are, and which servers are to hear of it. Clients here hear nothing of it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn tell_again(
        &self,
        own: &ServerName,
        users: &[UserId],
        told_ts: i64,
        now: i64,
    ) -> Result<Vec<(PresenceRow, Vec<ServerName>)>, DatabaseError> {
        let statements = users.iter().flat_map(|user| {
            let again = Statement::new(TELL_AGAIN, [user.as_str().into(), told_ts.into(), now.into()]);
            [again, PresenceHearers::ask(own, user, false, now)]
        });
        let answers = self.batch(statements.collect()).await?;
        let told = answers.chunks(2).filter_map(|answers| {
            let [noted, found] = answers else { return Some(Err(lacking())) };
            let row = noted.first()?;
            Some(PresenceRow::read(row).and_then(|row| Ok((row, PresenceHearers::read(found)?.servers))))
        });
        told.collect()
    }

    /// Notes that it was no use to tell others at `now` of these users, which are then due as if they had been told at `told_ts`. One
    /// call; none for nobody.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn tell_sooner(
        &self,
        users: impl Iterator<Item = &UserId>,
        now: i64,
        told_ts: i64,
    ) -> Result<(), DatabaseError> {
        let lists = text_lists(users.map(UserId::as_str));
        let sooner =
            lists.into_iter().map(|list| Statement::new(TELL_SOONER, [list.into(), now.into(), told_ts.into()]));
        self.batch(sooner.collect()).await.map(drop)
    }

    /// The presence of `of`, and whether `asking`, a local user, may see it; `None` where nothing is known.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn presence(&self, asking: &UserId, of: &UserId) -> Result<Option<(PresenceRow, bool)>, DatabaseError> {
        let rows = self.query(Statement::new(ONE, [asking.as_str().into(), of.as_str().into()])).await?;
        rows.first().map(|row| Ok((PresenceRow::read(row)?, row.integer(1)? != 0))).transpose()
    }
}

/// What a sync asks. `since` is `None` where nothing is known; `events` and `after` as for [`super::receipts::ask`].
pub(super) fn ask(user: &str, since: Option<PresencePos>, events: TimelinePos, after: &str) -> [Statement; 2] {
    let sql = if since.is_some() { NEWS } else { NEWEST };
    let at = since.unwrap_or_default();
    let of_new = [user.into(), at.into(), PAGE.into(), events.into(), after.into()];
    [Statement::new(sql, [user.into(), at.into(), PAGE.into()]), Statement::new(OF_NEW_ROOMS, of_new)]
}

pub(super) fn news(rows: &Rows, of_new_rooms: &Rows, is_first: bool) -> Result<PresenceNews, DatabaseError> {
    let is_full = !is_first && i64::try_from(rows.len()).is_ok_and(|rows| rows >= PAGE);
    let page_end = rows.last().filter(|_| is_full).map(|row| PresencePos::read(row, 0)).transpose()?;
    let mut users = Vec::new();
    for row in rows.iter().chain(of_new_rooms) {
        if row.integer(1)? != 0 {
            users.push(PresenceRow::read(row)?);
        }
    }
    Ok(PresenceNews { page_end, users })
}
