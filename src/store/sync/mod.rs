//! What `/sync` reads: everything new for one user since a position, in one round trip that costs next to nothing
//! while nothing is new on the whole server.

mod found;

use std::collections::HashMap;

use super::{
    Answers, Store,
    device_lists::{self, KeyChanges},
    event_graph::closed,
    ignored::{self, Unwanted},
    one_time_keys::{self, KeyCounts},
    positions::{AccountDataPos, DeviceListsPos, TimelinePos, ToDevicePos},
    sync_fleeting::{self, FleetingFound, FleetingRead},
    timeline::{PageFilter, TimelineEvent, is_let_through, seen_columns, seen_joins},
    to_device::{self, Inbox},
};
use crate::{
    matrix::{identifiers::RoomId, room_version::RoomVersion, state_content::Membership, state_trie::NodeId},
    platform::{DatabaseError, SqlValue, Statement},
};

/// What to read.
#[derive(Debug, Clone)]
pub struct SyncRead<'a> {
    /// The reading user,
    pub user_id: &'a str,
    /// and device.
    pub device_id: &'a str,
    /// The 'events' position up to which the client knows everything; [`TimelinePos::START`] when it knows nothing.
    pub since: TimelinePos,
    /// The 'account_data' position up to which the client knows everything.
    pub account_data_since: AccountDataPos,
    /// The 'device_lists' position up to which the client knows everything; `None` where it is told of none.
    pub device_lists_since: Option<DeviceListsPos>,
    /// The 'to_device' position up to which the device has taken its messages; `None` where it is told of none.
    pub to_device_since: Option<ToDevicePos>,
    /// Whether it is counted which keys the device has left.
    pub key_counts: bool,
    /// What is known of typing, receipts and presence; `None` where nothing of them is told.
    pub fleeting: Option<FleetingRead>,
    /// All joined rooms, whether there is anything new in them or not.
    pub all_joined: bool,
    /// The rooms that the user left long ago of their own will too, where the client knows nothing.
    pub include_leave: bool,
    /// The most timeline events of a room; one more is read, to tell whether there are more.
    pub limit: i64,
    /// Which timeline events.
    pub filter: &'a PageFilter,
    /// Where the answer before was cut: the rest of the rooms is read, and they as they were at that position.
    pub rest: Option<RestRead<'a>>,
}

/// The rooms that did not fit into the answer before.
#[derive(Debug, Clone, Copy)]
pub struct RestRead<'a> {
    /// The last room that did fit, by ID.
    pub after: &'a str,
    /// Whether that room is read again: its state did not fit whole.
    pub again: bool,
    /// The 'events' position at which that answer stood.
    pub to: TimelinePos,
}

/// What was read.
#[derive(Debug, Default)]
pub struct SyncFound {
    /// The newest 'events' position.
    pub events: TimelinePos,
    /// The newest 'account_data' position.
    pub account_data: AccountDataPos,
    /// The newest 'device_lists' position.
    pub device_lists: DeviceListsPos,
    /// Whose keys have changed, whether they share a room with the user or not.
    pub changed_keys: KeyChanges,
    /// The newest 'to_device' position.
    pub to_device: ToDevicePos,
    /// What waits for the device.
    pub inbox: Inbox,
    /// What keys the device has left.
    pub key_counts: KeyCounts,
    /// The rooms with something new, by ID; the first of them, where there are too many to be read at once.
    pub rooms: Vec<SyncRoom>,
    /// Whether there are more.
    pub is_cut: bool,
    /// By room, the new events.
    pub timelines: HashMap<RoomId, NewEvents>,
    /// What the user does not want to see, where there is any news of rooms.
    pub unwanted: Unwanted,
    /// New account data.
    pub changed_account_data: Vec<ChangedAccountData>,
    /// Typing, receipts and presence that are new.
    pub fleeting: FleetingFound,
}

/// One type of account data that is new to the client.
#[derive(Debug)]
pub struct ChangedAccountData {
    /// The room; empty for none.
    pub room_id: String,
    /// The type.
    pub event_type: String,
    /// The content.
    pub content: String,
    /// Whether the client knows the room already.
    pub is_known_room: bool,
}

/// The new events of a room since the last gap in its timeline.
#[derive(Debug, Default)]
pub struct NewEvents {
    /// The events, oldest first.
    pub events: Vec<TimelineEvent>,
    /// Whether there is a gap just before them.
    pub after_gap: bool,
}

/// A room with something new for the user.
#[derive(Debug)]
pub struct SyncRoom {
    /// The room.
    pub room_id: RoomId,
    /// The user's membership.
    pub membership: Membership,
    /// The membership event.
    pub event_id: String,
    /// The position at which the membership became so.
    pub pos: TimelinePos,
    /// For an invite to a room that we are not in: the state that came with it, a JSON list; once the invite has ended, the
    /// event that ended it.
    pub invite_state: Option<String>,
    /// The rules and the current state, where we know the room.
    pub room: Option<(&'static RoomVersion, NodeId)>,
    /// How many are joined by the current state, and how many are invited.
    pub counts: MemberCounts,
    /// The state as it was at the client's position; whether the user was in the room then is not looked at here.
    pub state_since: Option<NodeId>,
    /// For a user who was joined and is no longer: the position up to which they were, their leaving included.
    pub joined_until: Option<TimelinePos>,
    /// The state as it was at that position.
    pub state_when_left: Option<NodeId>,
    /// Whether it is known who is in the room.
    pub members: MembersKnown,
}

/// Whether it is known who is in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MembersKnown {
    /// From our join on.
    Always,
    /// From this position on.
    From(TimelinePos),
    /// They are not known yet.
    NotYet,
}

impl MembersKnown {
    /// Whether they have become known since: whoever loads all members was told nothing of the room before.
    pub fn since(self, since: TimelinePos) -> bool {
        matches!(self, Self::From(pos) if pos > since)
    }
}

/// How many members a room has.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemberCounts {
    /// Who is joined.
    pub joined: i64,
    /// Who is invited.
    pub invited: i64,
}

/// How many rooms are read at once.
const MAX_ROOMS: i64 = 300;
/// How long what came with the invites that are read at once, and the account data of new rooms, may be together, in characters;
/// and how long the events of their timelines. The first room is read whatever it has: D1's limits for single rows and what one
/// room's timeline may be are below it.
const MAX_INVITES: i64 = 3_000_000;
/// How long the account data is that is told at once, in characters.
const MAX_ACCOUNT_DATA: i64 = 3_000_000;
const MAX_TIMELINES: i64 = 6_000_000;
/// How many events of a room are looked at for those that a filter lets through.
const MAX_LOOKED_AT: i64 = 500;

/// The user's rooms with something new. ?1 user, ?2 since, ?3 all joined, ?4 include left; who was put out is
/// always told. A forgotten room is told as left, and only to devices that may know it.
/// Only rooms from ?5 on, and as they were at ?6, which is NULL for now. The stream comes first, so that nothing is
/// read while it has not moved.
macro_rules! rooms_with_news {
    () => {
        "FROM streams AS s CROSS JOIN local_memberships AS m LEFT JOIN rooms AS r ON r.room_id = m.room_id \
         WHERE s.name = 'events' AND (s.position > ?2 OR ?3) AND m.user_id = ?1 AND m.room_id >= ?5 \
           AND (m.pos > ?2 OR m.membership = 'join' AND (?3 OR r.latest_pos > ?2)) \
           AND (?6 IS NULL OR m.pos <= ?6 OR m.membership <> 'join') AND (?2 > 0 OR m.forgotten_ts IS NULL) \
           AND (?2 > 0 OR m.membership IN ('join', 'invite', 'knock') OR ?4 OR m.user_id <> COALESCE( \
             (SELECT k.sender FROM events AS k WHERE k.event_id = m.event_id), m.invite_state ->> '$[0].sender'))"
    };
}

/// The rooms that are read at once. ?7 how many, ?8 how much may come with invites, and be the account data of new rooms. An invite
/// to a room that we are in comes with what describes that: a few events, of which each may be long.
macro_rules! mine {
    () => {
        concat!(
            "picked(room_id, bytes, nth, total) AS ( \
               SELECT m.room_id, SUM(CASE WHEN m.membership IN ('invite', 'knock') \
                   THEN COALESCE(length(m.invite_state), 150000) ELSE COALESCE(length(m.invite_state), 0) END + \
                 CASE WHEN m.membership = 'join' AND m.pos > ?2 THEN COALESCE((SELECT SUM(length(a.content)) \
                   FROM account_data AS a WHERE a.user_id = ?1 AND a.room_id = m.room_id), 0) ELSE 0 END) \
                 OVER (ORDER BY m.room_id), \
                 row_number() OVER (ORDER BY m.room_id), count(*) OVER () ",
            rooms_with_news!(),
            " ), mine(room_id, total) AS ( \
               SELECT room_id, total FROM picked WHERE nth = 1 OR nth <= ?7 AND bytes <= ?8 ORDER BY room_id )"
        )
    };
}

const ROOMS: &str = concat!(
    "WITH ",
    mine!(),
    " SELECT m.room_id, m.membership, m.event_id, m.pos, m.invite_state, r.room_version, \
       CASE WHEN ?6 IS NULL THEN r.state ELSE \
         (SELECT x.state FROM room_states AS x WHERE x.room_id = m.room_id AND x.pos <= ?6 ORDER BY x.pos DESC LIMIT 1) \
       END AS state, \
       (SELECT x.state FROM room_states AS x WHERE x.room_id = m.room_id AND x.pos <= ?2 ORDER BY x.pos DESC LIMIT 1) \
         AS state_since, \
       m.joined_until, (SELECT x.state FROM room_states AS x WHERE x.room_id = m.room_id AND x.pos <= m.joined_until \
         ORDER BY x.pos DESC LIMIT 1) AS state_when_left, mine.total, r.joined, r.invited, \
       (SELECT p.stage FROM partial_rooms AS p WHERE p.room_id = m.room_id) AS stage, \
       (SELECT p.whole_pos FROM partial_rooms AS p WHERE p.room_id = m.room_id) AS whole_pos \
     FROM mine CROSS JOIN local_memberships AS m ON m.room_id = mine.room_id AND m.user_id = ?1 \
       LEFT JOIN rooms AS r ON r.room_id = m.room_id ORDER BY m.room_id"
);

/// Where the events are that are read of each room. A room that the user has newly joined is shown from before the join on.
macro_rules! stretch {
    () => {
        "stretch(room_id, low, high) AS ( \
           SELECT m.room_id, CASE WHEN m.membership = 'join' AND m.pos > ?2 THEN -9007199254740991 ELSE ?2 END, \
             CASE m.membership WHEN 'join' THEN COALESCE(?6, s.position) ELSE m.pos END \
           FROM mine CROSS JOIN streams AS s ON s.name = 'events' \
             CROSS JOIN local_memberships AS m ON m.room_id = mine.room_id AND m.user_id = ?1 \
           WHERE m.membership IN ('join', 'leave', 'ban') )"
    };
}

/// The events at each `place`, and what else is read of them.
macro_rules! events_of_places {
    ($rest:expr) => {
        concat!(
            ", fitting(room_id) AS ( \
               SELECT room_id FROM place GROUP BY room_id \
               HAVING max(bytes) <= ?11 OR room_id = (SELECT min(room_id) FROM place) \
             ) SELECT ",
            seen_columns!(),
            ", place.pos, txn.txn_id, place.room_id, \
               EXISTS (SELECT 1 FROM gaps AS g WHERE g.room_id = place.room_id AND g.pos = place.pos AND g.attempts = 0 AND NOT ",
            closed!(),
            ") AS after_gap, (SELECT min(room_id) FROM place WHERE room_id NOT IN (SELECT room_id FROM fitting)) AS next_room",
            $rest,
            " FROM place CROSS JOIN events AS e ON e.event_nid = place.event_nid ",
            seen_joins!(),
            "LEFT JOIN client_transactions AS txn \
               ON txn.event_id = e.event_id AND txn.user_id = ?1 AND txn.device_id = ?9 \
             WHERE place.room_id IN (SELECT room_id FROM fitting) ORDER BY place.room_id, place.pos"
        )
    };
}

/// ?9 the device, ?10 how many events of each room, ?11 how much of all rooms but the first. Where the events are comes first, and
/// what they are only of those that are read.
const TIMELINES: &str = concat!(
    "WITH ",
    mine!(),
    ", ",
    stretch!(),
    ", place(room_id, pos, event_nid, bytes) AS ( \
       SELECT t.room_id, t.pos, t.event_nid, SUM(length(e.json)) OVER (ORDER BY t.room_id, t.pos) \
       FROM stretch CROSS JOIN timeline AS t ON t.room_id = stretch.room_id AND t.pos <= stretch.high \
         AND t.pos > max(stretch.low, COALESCE((SELECT x.pos FROM timeline AS x WHERE x.room_id = stretch.room_id \
           AND x.pos <= stretch.high ORDER BY x.pos DESC LIMIT 1 OFFSET ?10), stretch.low)) \
         CROSS JOIN events AS e ON e.event_nid = t.event_nid )",
    events_of_places!("")
);

/// As [`TIMELINES`], of what the filter ?12 lets through. Of a room no more than ?13 events are looked at; where there are more, the
/// last of these is there in any case, as is what comes after a gap.
const FILTERED_TIMELINES: &str = concat!(
    "WITH ",
    mine!(),
    ", ",
    stretch!(),
    ", reach(room_id, low, high, floor) AS MATERIALIZED ( \
       SELECT room_id, low, high, (SELECT x.pos FROM timeline AS x WHERE x.room_id = stretch.room_id \
         AND x.pos > stretch.low AND x.pos <= stretch.high ORDER BY x.pos DESC LIMIT 1 OFFSET ?13) FROM stretch \
     ), span(room_id, low, high, floor) AS MATERIALIZED ( \
       SELECT room_id, COALESCE((SELECT x.pos FROM timeline AS x CROSS JOIN events AS e ON e.event_nid = x.event_nid \
         WHERE x.room_id = reach.room_id AND x.pos <= reach.high AND x.pos > max(reach.low, COALESCE(reach.floor, reach.low)) AND ",
    is_let_through!("?12"),
    " ORDER BY x.pos DESC LIMIT 1 OFFSET ?10), reach.floor - 1, reach.low), high, floor FROM reach \
     ), place(room_id, pos, event_nid, bytes, is_floor) AS ( \
       SELECT t.room_id, t.pos, t.event_nid, SUM(length(e.json)) OVER (ORDER BY t.room_id, t.pos), t.pos IS span.floor \
       FROM span CROSS JOIN timeline AS t ON t.room_id = span.room_id AND t.pos <= span.high AND t.pos > span.low \
         CROSS JOIN events AS e ON e.event_nid = t.event_nid \
       WHERE t.pos IS span.floor OR EXISTS (SELECT 1 FROM gaps AS g WHERE g.room_id = t.room_id AND g.pos = t.pos) OR ",
    is_let_through!("?12"),
    " )",
    events_of_places!(concat!(", place.is_floor, (", is_let_through!("?12"), ") AS is_wanted"))
);

const POSITIONS: &str = "SELECT name, position FROM streams \
    WHERE name IN ('events', 'account_data', 'device_lists', 'to_device', 'typing', 'receipts', 'presence')";

/// ?1 the user, ?2 the 'account_data' position, NULL for none; ?3 since, ?4 how many characters. Of rooms that the client knows, in
/// the order in which it became so.
const ACCOUNT_DATA: &str = "\
    SELECT room_id, event_type, content, pos, total > ?4 AS is_cut FROM ( \
      SELECT a.room_id, a.event_type, a.content, a.pos, SUM(length(a.content)) OVER (ORDER BY a.pos) AS bytes, \
        SUM(length(a.content)) OVER () AS total \
      FROM streams AS s CROSS JOIN account_data AS a \
        LEFT JOIN local_memberships AS m ON m.user_id = a.user_id AND m.room_id = a.room_id \
      WHERE s.name = 'account_data' AND s.position > ?2 AND a.user_id = ?1 AND a.pos > ?2 \
        AND (a.room_id = '' OR m.membership = 'join' AND m.pos <= ?3)) \
    WHERE bytes <= ?4 ORDER BY pos";

/// Of rooms that are new to the client, or told anew as their members are known, all that there is.
const ACCOUNT_DATA_OF_NEW_ROOMS: &str = concat!(
    "WITH ",
    mine!(),
    " SELECT a.room_id, a.event_type, a.content FROM mine \
        CROSS JOIN local_memberships AS m ON m.user_id = ?1 AND m.room_id = mine.room_id \
        CROSS JOIN account_data AS a ON a.user_id = m.user_id AND a.room_id = m.room_id \
      WHERE m.membership = 'join' AND (m.pos > ?2 OR EXISTS \
        (SELECT 1 FROM partial_rooms AS p WHERE p.room_id = m.room_id AND p.stage > 0 AND p.whole_pos > ?2))"
);

impl SyncRead<'_> {
    /// Whether the database leaves out what the filter does.
    fn is_filtered(&self) -> bool {
        !self.filter.is_empty() && !self.filter.is_too_complex()
    }

    /// The statements, in the order in which [`Store::sync`] takes their answers.
    fn statements(&self) -> Vec<Statement> {
        let after = self.rest.map_or("", |rest| rest.after);
        // No room's ID stands between a room's and that.
        let from = self.rest.map_or_else(String::new, |rest| match rest.again {
            true => rest.after.to_owned(),
            false => format!("{}\u{1}", rest.after),
        });
        let rooms: Vec<SqlValue> = vec![
            self.user_id.into(),
            self.since.into(),
            self.all_joined.into(),
            self.include_leave.into(),
            from.into(),
            self.rest.map(|rest| rest.to).into(),
            MAX_ROOMS.into(),
            MAX_INVITES.into(),
        ];
        let mut timelines = rooms.clone();
        timelines.extend([self.device_id.into(), SqlValue::from(self.limit.saturating_add(1)), MAX_TIMELINES.into()]);
        if self.is_filtered() {
            timelines.extend([self.filter.to_json().into(), SqlValue::from(MAX_LOOKED_AT)]);
        }
        // The answer before told of all account data that was not the rest's.
        let account_data_since = self.rest.is_none().then_some(self.account_data_since);
        let account_data =
            [self.user_id.into(), account_data_since.into(), self.since.into(), SqlValue::from(MAX_ACCOUNT_DATA)];
        let mut statements = vec![
            Statement::new(POSITIONS, []),
            Statement::new(ROOMS, rooms.clone()),
            Statement::new(if self.is_filtered() { FILTERED_TIMELINES } else { TIMELINES }, timelines),
            Statement::new(ACCOUNT_DATA, account_data),
            Statement::new(ACCOUNT_DATA_OF_NEW_ROOMS, rooms),
            ignored::ask(self.user_id, if self.all_joined { TimelinePos::START.before() } else { self.since }),
        ];
        statements.extend(self.device_lists_since.map(|since| device_lists::changes(self.user_id, since)));
        let inbox = self.to_device_since.map(|since| to_device::inbox(self.user_id, self.device_id, since));
        statements.extend(inbox.into_iter().flatten());
        statements
            .extend(self.key_counts.then(|| one_time_keys::counts(self.user_id, self.device_id)).into_iter().flatten());
        let fleeting = self.fleeting.map(|at| sync_fleeting::ask(&at, self.user_id, self.since, after));
        statements.extend(fleeting.into_iter().flatten());
        statements
    }
}

impl Store {
    /// Reads what is new for a user.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn sync(&self, read: &SyncRead<'_>) -> Result<SyncFound, DatabaseError> {
        let mut answers = Answers::new(self.batch(read.statements()).await?);
        let mut next = || answers.rows();
        let mut found = SyncFound::default();
        let fleeting = found.read_positions(next()?)?;
        found.read_rooms(next()?, read.rest)?;
        found.read_timelines(next()?, read.is_filtered())?;
        found.read_account_data(next()?, next()?)?;
        found.unwanted = ignored::read(read.user_id, &next()?)?;
        if read.device_lists_since.is_some() {
            found.changed_keys = device_lists::read_changes(&next()?)?;
        }
        if read.to_device_since.is_some() {
            next()?;
            found.inbox = to_device::read_inbox(&next()?)?;
        }
        if read.key_counts {
            found.key_counts = one_time_keys::read_counts(&next()?, &next()?)?;
        }
        if let Some(read) = &read.fleeting {
            found.fleeting = sync_fleeting::found(read, [next()?, next()?, next()?, next()?, next()?], fleeting)?;
        }
        Ok(found)
    }
}

pub(super) fn room_id(text: &str) -> Result<RoomId, DatabaseError> {
    RoomId::parse(text).map_err(|_| DatabaseError::Shape(format!("{text:?} is not a room ID")))
}
