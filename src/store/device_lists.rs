//! When users' keys have changed, who must hear of it, and what is held of other servers' users' keys.
//!
//! A position in the stream `device_lists` is also the `stream_id` of a local user's list. Other servers' users' keys are held
//! from the first key query of a local user who shares a room with them on, for as long as a room is shared: only then do
//! updates come. Whether one was shared all the time is seen from the membership events: both users' are older than the list.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{
    Store, json_lists,
    positions::{DeviceListsPos, advance_for},
    state_sql::{entries, found, paths},
};
use crate::{
    matrix::{
        device_keys::{Usage, UserKeys, is_device_id},
        identifiers::UserId,
        json::{self, Object, Value},
        state_trie::{NodeId, StateKeyHash},
    },
    platform::{DatabaseError, Row, Rows, Statement, news::Subject, turns::LIGHT_SLICE},
};

/// Since when a room is shared with a user, as an `event_nid`: both were in it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(i64);

/// What another server says of the keys of its user.
#[derive(Debug, Clone)]
pub struct FetchedList {
    /// The user.
    pub user_id: String,
    /// The keys.
    pub keys: UserKeys,
    /// The number of the newest update that they hold, where that is known.
    pub stream_id: Option<i64>,
    /// The newest change that was known before they were asked for.
    pub seen: Seen,
}

/// Until when, in milliseconds, nobody else fetches a user's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchLease {
    /// They are being fetched.
    UnderWay(i64),
    /// They could not be had.
    PutOff(i64),
}

impl FetchLease {
    fn read(fetching_until: i64) -> Self {
        if fetching_until < 0 { Self::PutOff(-fetching_until) } else { Self::UnderWay(fetching_until) }
    }

    /// Until when.
    pub fn until(self) -> i64 {
        let (Self::UnderWay(until) | Self::PutOff(until)) = self;
        until
    }
}

/// Whose keys have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyChanges {
    /// Of whom the user is told in any case.
    pub own: BTreeSet<String>,
    /// Of whom they are told where they share a room.
    pub others: BTreeSet<String>,
}

/// Up to where changes of the keys of users were known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The position in the stream 'device_lists'.
    device_lists: DeviceListsPos,
    /// The newest `event_nid`.
    events: i64,
}

/// How much text is kept of one user's devices, in bytes.
pub const MAX_LIST_BYTES: usize = 1_000_000;

/// The other servers' users of ?1, a list of [user, hash of the key of their membership, server], who share a room with ?2.
macro_rules! shares {
    () => {
        concat!(
            paths!(
                "user_id, mine, ",
                "SELECT w.value ->> 0, m.event_id, r.state, w.value ->> 1, 0 FROM json_each(?1) AS w \
                   CROSS JOIN local_memberships AS m ON m.user_id = ?2 AND m.membership = 'join' \
                   CROSS JOIN room_servers AS s ON s.room_id = m.room_id AND s.server = w.value ->> 2 AND s.to_pos IS NULL \
                   CROSS JOIN rooms AS r ON r.room_id = m.room_id"
            ),
            ", ",
            found!("user_id, mine, ")
        )
    };
}

const SHARES: &str = concat!(
    "WITH RECURSIVE ",
    shares!(),
    " SELECT found.user_id, MIN(MAX(theirs.event_nid, COALESCE(own.event_nid, theirs.event_nid))) AS since FROM found \
        CROSS JOIN events AS theirs ON theirs.event_id = found.event_id \
        LEFT JOIN events AS own ON own.event_id = found.mine \
      WHERE theirs.json ->> '$.content.membership' = 'join' GROUP BY found.user_id"
);

/// Those of ?1, a list of local users, who share a room with ?2.
const LOCAL_SHARES: &str = "\
    SELECT w.value FROM json_each(?1) AS w WHERE EXISTS ( \
      SELECT 1 FROM local_memberships AS m CROSS JOIN local_memberships AS o ON o.user_id = w.value \
        AND o.room_id = m.room_id AND o.membership = 'join' \
      WHERE m.user_id = ?2 AND m.membership = 'join')";

/// Who is joined by the snapshots ?1, a list of roots, as far as `$whom` says.
macro_rules! joined {
    ($whom:literal) => {
        concat!(
            "WITH RECURSIVE ",
            entries!("", "SELECT value FROM json_each(?1)"),
            " SELECT DISTINCT e.state_key FROM entry CROSS JOIN events AS e ON e.event_id = entry.event_id \
              WHERE e.event_type = 'm.room.member' AND e.json ->> '$.content.membership' = 'join'",
            $whom,
            " LIMIT 50000"
        )
    };
}

const JOINED: &str = joined!("");

/// ?2: this server's name. The row of another server's user is there from when somebody who shares a room with them first asks for
/// their keys, and stays.
const FOLLOWED: &str = joined!(
    " AND (substr(e.state_key, instr(e.state_key, ':') + 1) = ?2 \
       OR EXISTS (SELECT 1 FROM remote_device_lists AS l WHERE l.user_id = e.state_key))"
);

/// ?1: users.
const HELD: &str = "\
    SELECT l.user_id, l.is_current, l.as_of, l.devices, l.master_key, l.self_signing_key, l.fetching_until FROM json_each(?1) AS w \
      CROSS JOIN remote_device_lists AS l ON l.user_id = w.value";

/// Whose keys have changed since ?2, for the user ?1, and whether they are told of it whether they share a room or not: of their
/// own keys, and of signatures that they have made. The stream comes first, so that nothing is read while it has not moved.
const CHANGES: &str = "\
    SELECT c.user_id, c.user_id = ?1 AS is_own FROM streams AS s CROSS JOIN device_list_changes AS c \
      WHERE s.name = 'device_lists' AND s.position > ?2 AND c.pos > ?2 \
    UNION ALL \
    SELECT k.user_id, 1 FROM streams AS s CROSS JOIN key_signatures AS k \
      WHERE s.name = 'device_lists' AND s.position > ?2 AND k.signer = ?1 AND k.pos > ?2";

/// ?1: the position before which the list was asked for, ?2: a list of [user, stream ID, devices, master key, self-signing key,
/// `as_of`].
const PUT_FETCHED: &str = "\
    INSERT INTO remote_device_lists (user_id, stream_id, is_current, as_of, devices, master_key, self_signing_key) \
    SELECT value ->> 0, value ->> 1, \
      NOT EXISTS (SELECT 1 FROM device_list_changes AS c WHERE c.user_id = value ->> 0 AND c.pos > ?1), \
      value ->> 5, value ->> 2, value ->> 3, value ->> 4 \
    FROM json_each(?2) WHERE true \
    ON CONFLICT (user_id) DO UPDATE SET stream_id = MAX(COALESCE(excluded.stream_id, stream_id), COALESCE(stream_id, excluded.stream_id)), \
      fetching_until = 0, is_current = excluded.is_current, as_of = excluded.as_of, devices = excluded.devices, \
      master_key = excluded.master_key, self_signing_key = excluded.self_signing_key";

/// ?1: users, ?2: now, ?3: until when. A list that was never fetched is as of nothing. `fetching_until` is negative where nobody
/// fetches a list, and nobody may before then.
const BEGIN_FETCH: &str = "\
    INSERT INTO remote_device_lists (user_id, is_current, as_of, devices, fetching_until) \
    SELECT value, 0, -1, '{}', ?3 FROM json_each(?1) WHERE true \
    ON CONFLICT (user_id) DO UPDATE SET fetching_until = excluded.fetching_until WHERE ABS(fetching_until) <= ?2 \
    RETURNING user_id";

const SEEN: &str = "\
    SELECT position, COALESCE((SELECT event_nid FROM events WHERE event_nid > 0 ORDER BY event_nid DESC LIMIT 1), 0) AS newest \
    FROM streams WHERE name = 'device_lists'";

const STREAM_ID: &str = "SELECT COALESCE(stream_id, 0) AS stream_id FROM device_list_changes WHERE user_id = ?1";

/// Moves the stream on for what concerns one local user alone.
pub(super) fn advance(user_id: &str) -> Statement {
    advance_for("device_lists", 1, [Subject::User(user_id.to_owned())])
}

/// What is held of other servers' users' keys, for a local user; [`read_held`] and [`read_shares`] read the answers.
pub(super) fn held(reader: &str, users: &[String]) -> [Statement; 2] {
    let list = super::json_list(users.iter().map(String::as_str));
    [Statement::new(HELD, [list.into()]), Statement::new(SHARES, [of_shares(users).into(), reader.into()])]
}

/// What is held of a user's keys.
#[derive(Debug)]
pub(super) struct Held {
    /// The user.
    pub(super) user_id: String,
    /// The keys; `None` while they are fetched for the first time.
    pub(super) keys: Option<UserKeys>,
    /// Whether they are the keys as they are now.
    pub(super) is_current: bool,
    /// Who may fetch them.
    pub(super) lease: FetchLease,
}

/// Reads the first answer to [`held`], for one who shares rooms.
pub(super) fn read_held(lists: &Rows, shares: &BTreeMap<String, Share>) -> Result<Vec<Held>, DatabaseError> {
    let mut held = Vec::new();
    for row in lists {
        let (user_id, as_of) = (row.text(0)?.to_owned(), row.integer(2)?);
        let keys = if as_of < 0 { None } else { Some(held_keys(row)?) };
        let is_shared = shares.get(&user_id).is_some_and(|share| share.0 <= as_of);
        let is_current = row.integer(1)? != 0 && is_shared;
        held.push(Held { user_id, keys, is_current, lease: FetchLease::read(row.integer(6)?) });
    }
    Ok(held)
}

fn held_keys(row: &Row) -> Result<UserKeys, DatabaseError> {
    let devices = object(row, 3)?;
    let devices = devices.into_iter().filter(|(id, _)| is_device_id(id));
    let devices = devices.filter_map(|(id, keys)| Some((id.into(), keys.into_object()?))).collect();
    let mut keys = UserKeys { devices, ..UserKeys::default() };
    for (usage, column) in [(Usage::Master, 4), (Usage::SelfSigning, 5)] {
        if row.optional_text(column)?.is_some() {
            keys.cross_signing.insert(usage, object(row, column)?);
        }
    }
    Ok(keys)
}

/// Reads the second answer to [`held`].
pub(super) fn read_shares(rows: &Rows) -> Result<BTreeMap<String, Share>, DatabaseError> {
    rows.iter().map(|row| Ok((row.text(0)?.to_owned(), Share(row.integer(1)?)))).collect()
}

/// Users as [`SHARES`] takes them.
fn of_shares(users: &[String]) -> String {
    let item = |user: &String| {
        let server = UserId::parse(user).map(|id| id.server_name().to_owned()).unwrap_or_default();
        json!([user, StateKeyHash::member(user).to_string(), server])
    };
    json!(users.iter().map(item).collect::<Vec<_>>()).to_string()
}

fn list_of(roots: &[NodeId]) -> String {
    let roots: Vec<String> = roots.iter().map(NodeId::to_string).collect();
    super::json_list(roots.iter().map(String::as_str))
}

impl Store {
    /// Those of `users` who share a room with the local user `with`. One call; none for nobody. A batch looks for so many as others can
    /// wait for: of each it may look into all rooms that `with` is in.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn sharing(
        &self,
        own_server: &str,
        with: &str,
        users: BTreeSet<String>,
    ) -> Result<BTreeSet<String>, DatabaseError> {
        let is_local = |user: &String| UserId::parse(user).is_ok_and(|id| id.server_name() == own_server);
        let (local, remote): (Vec<_>, Vec<_>) = users.into_iter().partition(is_local);
        let of_local = |users: &[String]| {
            let list = super::json_list(users.iter().map(String::as_str));
            vec![Statement::new(LOCAL_SHARES, [list.into(), with.into()])]
        };
        let of_remote = |users: &[String]| vec![Statement::new(SHARES, [of_shares(users).into(), with.into()])];
        let batches: Vec<_> =
            local.chunks(LIGHT_SLICE).map(of_local).chain(remote.chunks(LIGHT_SLICE).map(of_remote)).collect();
        if batches.is_empty() {
            return Ok(BTreeSet::new());
        }
        let rows = self.batches(batches).await?.concat();
        rows.iter().map(|row| row.text(0).map(str::to_owned)).collect()
    }

    /// The users who are joined by one of these snapshots; at most 50,000.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn joined_by(&self, roots: &[NodeId]) -> Result<BTreeSet<String>, DatabaseError> {
        self.users(Statement::new(JOINED, [list_of(roots).into()])).await
    }

    /// Those of them whose keys a client may hold: local users, and of others whom somebody here has asked for.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn followed_by(&self, roots: &[NodeId], own_server: &str) -> Result<BTreeSet<String>, DatabaseError> {
        self.users(Statement::new(FOLLOWED, [list_of(roots).into(), own_server.into()])).await
    }

    async fn users(&self, statement: Statement) -> Result<BTreeSet<String>, DatabaseError> {
        self.query(statement).await?.iter().map(|row| row.text(0).map(str::to_owned)).collect()
    }

    /// Whose keys have changed since a position, for the local user `user`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn device_list_changes(&self, user: &str, since: DeviceListsPos) -> Result<KeyChanges, DatabaseError> {
        read_changes(&self.query(changes(user, since)).await?)
    }

    /// Up to where changes are known now: for a list that is asked for from now on.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn seen(&self) -> Result<Seen, DatabaseError> {
        let rows = self.query(Statement::new(SEEN, [])).await?;
        let row = rows.first().ok_or_else(|| DatabaseError::Shape("there is no stream of device lists".to_owned()))?;
        Ok(Seen { device_lists: DeviceListsPos::read(row, 0)?, events: row.integer(1)? })
    }

    /// Begins to fetch the lists of these users until a time, and returns those that nobody else is fetching.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn begin_fetch(&self, users: &[String], now: i64, until: i64) -> Result<Vec<String>, DatabaseError> {
        let list = super::json_list(users.iter().map(String::as_str));
        let rows = self.query(Statement::new(BEGIN_FETCH, [list.into(), now.into(), until.into()])).await?;
        rows.iter().map(|row| row.text(0).map(str::to_owned)).collect()
    }

    /// Notes that lists could not be fetched: nobody tries again before a time; with 0 whoever wants them may.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_off_fetch(&self, users: &[String], until: i64) -> Result<(), DatabaseError> {
        const PUT_OFF: &str = "UPDATE remote_device_lists SET fetching_until = -?2 \
             WHERE user_id IN (SELECT value FROM json_each(?1))";
        let list = super::json_list(users.iter().map(String::as_str));
        self.query(Statement::new(PUT_OFF, [list.into(), until.into()])).await.map(drop)
    }

    /// Holds lists that were fetched. One that has changed while it was fetched is fetched again the next time.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_fetched(&self, lists: &[FetchedList]) -> Result<(), DatabaseError> {
        let Some(seen) = lists.iter().map(|list| list.seen).min_by_key(|seen| seen.device_lists) else { return Ok(()) };
        let item = |list: &FetchedList| {
            let devices: Object = list.keys.devices.iter().map(|(id, keys)| (id.as_str(), keys.clone())).collect();
            let cross = |usage| list.keys.cross_signing.get(&usage).map(Object::to_text);
            json!([
                list.user_id,
                list.stream_id,
                devices.to_text(),
                cross(Usage::Master),
                cross(Usage::SelfSigning),
                seen.events,
            ])
            .to_string()
        };
        let put = |list: String| Statement::new(PUT_FETCHED, [seen.device_lists.into(), list.into()]);
        self.batch(json_lists(lists.iter().map(item)).into_iter().map(put).collect()).await.map(drop)
    }
}

/// The number of a local user's list, as other servers know it; [`read_position`] reads the answer.
pub(super) fn position(user_id: &str) -> Statement {
    Statement::new(STREAM_ID, [user_id.into()])
}

/// Reads the answer to [`position`].
pub(super) fn read_position(rows: &Rows) -> Result<DeviceListsPos, DatabaseError> {
    rows.first().map_or(Ok(DeviceListsPos::START), |row| DeviceListsPos::read(row, 0))
}

/// The changes that may concern a user; [`read_changes`] reads the answer.
pub(super) fn changes(user: &str, since: DeviceListsPos) -> Statement {
    Statement::new(CHANGES, [user.into(), since.into()])
}

/// Reads the answer to [`changes`].
pub(super) fn read_changes(rows: &Rows) -> Result<KeyChanges, DatabaseError> {
    let mut changes = KeyChanges::default();
    for row in rows {
        let of = if row.integer(1)? != 0 { &mut changes.own } else { &mut changes.others };
        of.insert(row.text(0)?.to_owned());
    }
    Ok(changes)
}

impl KeyChanges {
    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.others.is_empty()
    }
}

/// A JSON object that this server has written.
pub(super) fn object(row: &Row, column: usize) -> Result<Object, DatabaseError> {
    let parsed = json::parse(row.text(column)?.as_bytes()).ok().and_then(Value::into_object);
    parsed.ok_or_else(|| DatabaseError::Shape(format!("column {column} is no JSON object")))
}
