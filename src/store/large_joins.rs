//! Joins of large rooms: what the resident server answered, from when it was checked until the room's state is made of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Store,
    event_text::{content_hash, hash_wrong, read, read_as},
    slices::in_slices,
    text_lists,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName, UserId},
        state_content::Membership,
        state_trie::StateKeyHash,
    },
    platform::{
        Clock, DatabaseError, Row, Statement,
        turns::{LIGHT_SLICE, SLICE},
    },
};

/// A join that goes on over several steps.
#[derive(Debug, Clone)]
pub struct LargeJoin {
    /// The name of the attempt.
    pub join_id: String,
    /// The server through which the user joins.
    pub resident: ServerName,
    /// Our join.
    pub join: Event,
    /// When it began, in milliseconds; 0 where it has ended.
    pub begun_ts: i64,
    /// Whether the whole answer is staged.
    pub is_read: bool,
    /// What was judged is kept up to this event ID.
    pub kept_to: String,
    /// Whether the user is in the room already, and what is staged is the rest of its state ([`super::partial_rooms`]).
    pub completes: bool,
    /// How often other servers were asked for that rest.
    pub attempts: i64,
}

impl LargeJoin {
    /// A join that begins now, of whose answer nothing is kept yet.
    pub fn begun(join_id: String, resident: ServerName, join: Event, begun_ts: i64) -> Self {
        let (is_read, kept_to, completes, attempts) = (false, String::new(), false, 0);
        Self { join_id, resident, join, begun_ts, is_read, kept_to, completes, attempts }
    }
}

/// An event that came with the answer, checked and not judged.
#[derive(Debug, Clone)]
pub struct ClaimedEvent {
    /// The event.
    pub event: Event,
    /// Whether it is part of the state.
    pub is_state: bool,
}

/// What became of a claimed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimVerdict {
    /// Not judged yet.
    Open,
    /// Its auth events allow it.
    Allowed,
    /// They do not, and why.
    Rejected(String),
    /// It lacks some of them, or was rejected before.
    LeftOut,
}

/// What a claimed event cites.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Its ID.
    pub event_id: EventId,
    /// Its auth events.
    pub auth_events: Vec<EventId>,
    /// How long it is, in characters.
    pub length: usize,
    /// What became of it.
    pub verdict: ClaimVerdict,
}

/// An entry of the claimed state.
#[derive(Debug, Clone)]
pub struct ClaimedEntry {
    /// The event's ID.
    pub event_id: EventId,
    /// Its key, if it is a state event at all.
    pub key: Option<StateKeyHash>,
    /// Whose membership it is, and which, if it is one.
    pub member: Option<(UserId, Membership)>,
}

/// How many pages of claimed events are read at once, where little of each event is.
const PAGES: usize = 10;

/// Unless another join of the user goes on, or one of that name is not forgotten yet. Where the user has left since it began, it has ended.
const BEGIN: &str = "\
    INSERT INTO large_joins (join_id, room_id, room_version, resident, event_id, json, begun_ts, lease_until, completes) \
    SELECT ?1, ?2, ?3, ?4, ?5, ?6, \
      CASE WHEN EXISTS (SELECT 1 FROM pending_joins AS p WHERE p.room_id = ?2 AND p.join_id = ?1 AND p.has_left) \
        THEN 0 ELSE ?7 END, ?8, ?9 \
    WHERE ?9 OR NOT EXISTS (SELECT 1 FROM large_joins AS j WHERE j.room_id = ?2 AND j.join_id <> ?1 \
      AND NOT j.completes AND j.begun_ts > 0 AND j.json ->> '$.sender' = ?6 ->> '$.sender') \
    ON CONFLICT (join_id) DO UPDATE SET lease_until = excluded.lease_until, begun_ts = excluded.begun_ts \
      WHERE large_joins.event_id = excluded.event_id AND large_joins.begun_ts > 0 \
    RETURNING join_id";

/// Unless the join has ended. ?1: a list of [event id, whether it is state, key, member, membership, json, whether the hash is wrong].
const STAGE: &str = "\
    INSERT INTO claimed_events (join_id, event_id, is_state, key, member, membership, json, hash_wrong) \
    SELECT ?2, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6 \
    FROM json_each(?1) WHERE EXISTS (SELECT 1 FROM large_joins AS j WHERE j.join_id = ?2 AND j.begun_ts > 0) \
    ON CONFLICT (join_id, event_id) DO UPDATE SET is_state = MAX(is_state, excluded.is_state)";

/// ?1: a list of event ids that came before as auth events.
const IN_STATE: &str = "\
    UPDATE claimed_events SET is_state = 1 WHERE join_id = ?2 AND event_id IN (SELECT value FROM json_each(?1))";

/// Unless it has ended, or somebody else has begun to read it anew.
const IS_READ: &str = "\
    UPDATE large_joins SET is_read = 1, json = ?2, not_before = 0 \
    WHERE join_id = ?1 AND attempts = ?3 AND begun_ts > 0 RETURNING attempts";

/// Unless somebody else has. ?3: when whoever finds it cut off may begin.
const READ_ANEW: &str = "\
    UPDATE large_joins SET attempts = attempts + 1, not_before = ?3 \
    WHERE join_id = ?1 AND attempts = ?2 AND NOT is_read RETURNING attempts";

/// The rest of a room's state could not be had: what has come of it counts for nothing.
const PUT_OFF: &str = "\
    UPDATE large_joins SET is_read = 0, kept_to = '', lease_until = ?2, not_before = ?2 WHERE join_id = ?1 AND attempts = ?3";

/// The last event of each page of so many.
const PAGE_ENDS: &str = "\
    SELECT event_id FROM \
      (SELECT event_id, row_number() OVER (ORDER BY event_id) AS nth FROM claimed_events WHERE join_id = ?1) \
    WHERE nth % ?2 = 0";

/// Those after ?2, up to ?3.
const OUTLINES: &str = "\
    SELECT event_id, json ->> '$.auth_events', verdict, length(json) FROM claimed_events \
    WHERE join_id = ?1 AND event_id > ?2 AND event_id <= ?3";

/// Those in ?1, a JSON list.
const BY_ID: &str = "\
    SELECT c.event_id, c.json, c.hash_wrong, c.verdict, c.reason FROM json_each(?1) AS wanted \
      CROSS JOIN claimed_events AS c ON c.join_id = ?2 AND c.event_id = wanted.value";

/// Those after ?2, up to ?3.
const NEXT: &str = "\
    SELECT event_id, json, hash_wrong, verdict, reason FROM claimed_events \
    WHERE join_id = ?1 AND event_id > ?2 AND event_id <= ?3 ORDER BY event_id";

/// The allowed state events at the keys in ?1, a JSON list.
const BY_KEY: &str = "\
    SELECT event_id, json, hash_wrong, verdict, reason FROM claimed_events \
    WHERE join_id = ?2 AND is_state AND verdict = 1 AND key IN (SELECT value FROM json_each(?1))";

/// ?1: a list of event ids. Joined with a list, an UPDATE would walk the list for each event of the join.
const JUDGE: &str = "\
    UPDATE claimed_events SET verdict = ?3, reason = ?4 \
    WHERE join_id = ?2 AND event_id IN (SELECT value FROM json_each(?1))";

const LENGTHS: &str = "\
    SELECT event_id, length(json) FROM claimed_events WHERE join_id = ?1 AND event_id > ?2 ORDER BY event_id LIMIT ?3";

const KEPT: &str = "UPDATE large_joins SET kept_to = ?2 WHERE join_id = ?1";

/// Those after ?2, up to ?3.
pub(super) const FORGET_PAGE: &str =
    "DELETE FROM claimed_events WHERE join_id = ?1 AND event_id > ?2 AND event_id <= ?3";

/// Those after ?2, up to ?3.
const ENTRIES: &str = "\
    SELECT event_id, key, member, membership FROM claimed_events \
    WHERE join_id = ?1 AND event_id > ?2 AND event_id <= ?3 AND is_state AND verdict = 1";

impl Store {
    /// Notes a join that goes on over several steps, by whoever is at it until `lease_until`. `false`, and nothing, where another one
    /// of the user into the room does.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn begin_large_join(&self, large: &LargeJoin, lease_until: i64) -> Result<bool, DatabaseError> {
        Ok(!self.query(begin(large, lease_until)).await?.is_empty())
    }

    /// Notes that the rest of a room's state could not be had, and is to be asked for again at `until`.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_off_large_join(&self, large: &LargeJoin, until: i64) -> Result<(), DatabaseError> {
        let parameters = [large.join_id.as_str().into(), until.into(), large.attempts.into()];
        self.query(Statement::new(PUT_OFF, parameters)).await.map(drop)
    }

    /// Begins to read the rest of a room's state: what was read of it before counts for nothing. Where that is cut off, nobody begins
    /// again before the time `not_before`. The work as it is then; `None` where somebody else is at it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn read_anew(&self, large: &LargeJoin, not_before: i64) -> Result<Option<LargeJoin>, DatabaseError> {
        let parameters = [large.join_id.as_str().into(), large.attempts.into(), not_before.into()];
        if self.query(Statement::new(READ_ANEW, parameters)).await?.is_empty() {
            return Ok(None);
        }
        let pages = self.pages_of_join(&large.join_id, &[FORGET_PAGE]).await?;
        self.batches(pages).await?;
        Ok(Some(LargeJoin { attempts: large.attempts + 1, ..large.clone() }))
    }

    /// Stages events of the answer, unless the join has ended. Those of `in_state`, which are staged already, turn out to be part of the state.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn stage_claimed(
        &self,
        clock: &dyn Clock,
        join_id: &str,
        events: &[ClaimedEvent],
        in_state: &[EventId],
    ) -> Result<(), DatabaseError> {
        let stage = |list: String| Statement::new(STAGE, [list.into(), join_id.into()]);
        let mut batches = in_slices(clock, events, claimed_row, stage).await;
        let flip = |list: String| Statement::new(IN_STATE, [list.into(), join_id.into()]);
        batches.extend(in_state.chunks(SLICE).map(|ids| text_lists(ids).into_iter().map(flip).collect()));
        self.batches(batches).await.map(drop)
    }

    /// Notes that the whole answer is staged, with our join as others will see it. `false` where the join has ended, or somebody else
    /// reads it anew.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn large_join_is_read(&self, large: &LargeJoin) -> Result<bool, DatabaseError> {
        let parameters = [large.join_id.as_str().into(), large.join.json().into(), large.attempts.into()];
        Ok(!self.query(Statement::new(IS_READ, parameters)).await?.is_empty())
    }

    /// What all the claimed events cite.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn claimed_outlines(&self, clock: &dyn Clock, join_id: &str) -> Result<Vec<Outline>, DatabaseError> {
        self.read_pages(clock, join_id, OUTLINES, outline).await
    }

    /// Claimed events by their IDs.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn claimed_events(
        &self,
        clock: &dyn Clock,
        join: &LargeJoin,
        ids: &[EventId],
    ) -> Result<Vec<(Event, ClaimVerdict)>, DatabaseError> {
        let by_id = |list: String| Statement::new(BY_ID, [list.into(), join.join_id.as_str().into()]);
        let batches = ids.chunks(SLICE).map(|ids| text_lists(ids).into_iter().map(by_id).collect()).collect();
        self.read_in_slices(clock, SLICE, batches, |row| claimed(row, join)).await
    }

    /// The allowed events of the claimed state at these keys.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn claimed_state(&self, join: &LargeJoin, keys: &[StateKeyHash]) -> Result<Vec<Event>, DatabaseError> {
        let keys = json!(keys.iter().map(StateKeyHash::to_string).collect::<Vec<_>>()).to_string();
        let rows = self.query(Statement::new(BY_KEY, [keys.into(), join.join_id.as_str().into()])).await?;
        rows.iter().map(|row| Ok(claimed(row, join)?.0)).collect()
    }

    /// Remembers what became of claimed events.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn judge_claimed(
        &self,
        join_id: &str,
        verdicts: &[(EventId, ClaimVerdict)],
    ) -> Result<(), DatabaseError> {
        let batches = verdicts.chunks(SLICE).map(|slice| verdict_statements(join_id, slice)).collect();
        self.batches(batches).await.map(drop)
    }

    /// The next claimed events after those that are kept, at most `count`, and more than one only within `length` characters.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn next_claimed(
        &self,
        clock: &dyn Clock,
        join: &LargeJoin,
        after: &str,
        count: usize,
        length: usize,
    ) -> Result<Vec<(Event, ClaimVerdict)>, DatabaseError> {
        let join_id = join.join_id.as_str();
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let rows = self.query(Statement::new(LENGTHS, [join_id.into(), after.into(), count.into()])).await?;
        let (mut ids, mut sum) = (Vec::new(), 0_usize);
        for row in &rows {
            sum = sum.saturating_add(length_of(row, 1)?);
            if !ids.is_empty() && sum > length {
                break;
            }
            ids.push(row.text(0)?);
        }
        let (mut after, mut batches) = (after, Vec::new());
        for last in ids.chunks(SLICE).filter_map(<[&str]>::last) {
            batches.push(vec![Statement::new(NEXT, [join_id.into(), after.into(), (*last).into()])]);
            after = last;
        }
        self.read_in_slices(clock, SLICE, batches, |row| claimed(row, join)).await
    }

    /// The entries of the claimed state that are allowed.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn claimed_entries(&self, clock: &dyn Clock, join_id: &str) -> Result<Vec<ClaimedEntry>, DatabaseError> {
        self.read_pages(clock, join_id, ENTRIES, entry).await
    }

    /// What `read` makes of each row that `sql` finds among the claimed events.
    async fn read_pages<T>(
        &self,
        clock: &dyn Clock,
        join_id: &str,
        sql: &'static str,
        read: fn(&Row) -> Result<T, DatabaseError>,
    ) -> Result<Vec<T>, DatabaseError> {
        let mut found = Vec::new();
        for pages in self.pages_of_join(join_id, &[sql]).await?.chunks(PAGES) {
            found.extend(self.read_in_slices(clock, LIGHT_SLICE, pages.to_vec(), read).await?);
        }
        Ok(found)
    }

    /// What runs these for each page of a join's claimed events.
    pub(super) async fn pages_of_join(
        &self,
        join_id: &str,
        texts: &[&'static str],
    ) -> Result<Vec<Vec<Statement>>, DatabaseError> {
        let size = i64::try_from(LIGHT_SLICE).unwrap_or(i64::MAX);
        let rows = self.query(Statement::new(PAGE_ENDS, [join_id.into(), size.into()])).await?;
        let ends = rows.iter().map(|row| row.text(0)).collect::<Result<Vec<_>, _>>()?;
        // All IDs begin with a `$`.
        let from = ["$"].into_iter().chain(ends.iter().copied());
        let to = ends.iter().copied().chain(["%"]);
        let page = |(from, to): (&str, &str)| {
            texts.iter().map(|text| Statement::new(text, [join_id.into(), from.into(), to.into()])).collect()
        };
        Ok(from.zip(to).map(page).collect())
    }
}

/// Notes a join that goes on over several steps, by whoever is at it until `lease_until`.
pub(crate) fn begin(large: &LargeJoin, lease_until: i64) -> Statement {
    let join = &large.join;
    let parameters = [
        large.join_id.as_str().into(),
        join.room_id().as_str().into(),
        join.version().id.into(),
        large.resident.as_str().into(),
        join.event_id().as_str().into(),
        join.json().into(),
        large.begun_ts.into(),
        lease_until.into(),
        large.completes.into(),
    ];
    Statement::new(BEGIN, parameters)
}

/// Notes how far what was judged is kept.
pub fn kept_to(join_id: &str, event_id: &EventId) -> Statement {
    Statement::new(KEPT, [join_id.into(), event_id.as_str().into()])
}

fn verdict_statements(join_id: &str, verdicts: &[(EventId, ClaimVerdict)]) -> Vec<Statement> {
    let mut alike: BTreeMap<(i64, Option<&str>), Vec<&EventId>> = BTreeMap::new();
    for (id, verdict) in verdicts {
        let verdict = match verdict {
            ClaimVerdict::Open => (0, None),
            ClaimVerdict::Allowed => (1, None),
            ClaimVerdict::Rejected(why) => (2, Some(why.as_str())),
            ClaimVerdict::LeftOut => (3, None),
        };
        alike.entry(verdict).or_default().push(id);
    }
    let mut statements = Vec::new();
    for ((verdict, reason), ids) in alike {
        let judge = |list: String| Statement::new(JUDGE, [list.into(), join_id.into(), verdict.into(), reason.into()]);
        statements.extend(text_lists(ids).into_iter().map(judge));
    }
    statements
}

fn claimed_row(claimed: &ClaimedEvent) -> String {
    let event = &claimed.event;
    let key = StateKeyHash::of(event).map(|key| key.to_string());
    let member = event.state_key().filter(|_| event.event_type() == "m.room.member");
    let membership = member.and_then(|_| event.membership()).map(Membership::as_str);
    json!([
        event.event_id().as_str(),
        i64::from(claimed.is_state),
        key,
        member,
        membership,
        event.json(),
        hash_wrong(event),
    ])
    .to_string()
}

pub(super) fn large_join(row: &Row) -> Result<LargeJoin, DatabaseError> {
    Ok(LargeJoin {
        join_id: row.text(0)?.to_owned(),
        resident: ServerName::parse(row.text(2)?).map_err(|_| shape("a large join through no server"))?,
        join: read(row.text(3)?, row.text(4)?, row.text(1)?)?,
        begun_ts: row.integer(5)?,
        is_read: row.integer(6)? != 0,
        kept_to: row.text(7)?.to_owned(),
        completes: row.integer(8)? != 0,
        attempts: row.integer(9)?,
    })
}

fn claimed(row: &Row, join: &LargeJoin) -> Result<(Event, ClaimVerdict), DatabaseError> {
    let event = read_as(row.text(0)?, row.text(1)?, content_hash(row.integer(2)?), join.join.version().id)?;
    Ok((event, verdict(row.integer(3)?, row.optional_text(4)?)?))
}

fn verdict(number: i64, reason: Option<&str>) -> Result<ClaimVerdict, DatabaseError> {
    Ok(match (number, reason) {
        (0, _) => ClaimVerdict::Open,
        (1, _) => ClaimVerdict::Allowed,
        (2, Some(reason)) => ClaimVerdict::Rejected(reason.to_owned()),
        (3, _) => ClaimVerdict::LeftOut,
        _ => return Err(shape("a verdict on a claimed event that is none")),
    })
}

fn entry(row: &Row) -> Result<ClaimedEntry, DatabaseError> {
    let key = row.optional_text(1)?.and_then(StateKeyHash::parse);
    let member = row.optional_text(2)?.and_then(|user| UserId::parse(user).ok());
    let membership = row.optional_text(3)?.and_then(Membership::parse);
    let member = member.map(|member| (member, membership.unwrap_or(Membership::Leave)));
    Ok(ClaimedEntry { event_id: event_id(row.text(0)?)?, key, member })
}

/// An event names others by their IDs, and up to room version 2 by pairs of those and hashes.
fn outline(row: &Row) -> Result<Outline, DatabaseError> {
    let cited: Vec<Value> = serde_json::from_str(row.text(1)?).map_err(|_| shape("a claimed event of no form"))?;
    let cited = cited.iter().filter_map(|cited| cited.as_str().or_else(|| cited.get(0)?.as_str()));
    Ok(Outline {
        event_id: event_id(row.text(0)?)?,
        auth_events: cited.map(event_id).collect::<Result<_, _>>()?,
        length: length_of(row, 3)?,
        // Why something was rejected is not read here.
        verdict: verdict(row.integer(2)?, Some(""))?,
    })
}

fn length_of(row: &Row, column: usize) -> Result<usize, DatabaseError> {
    Ok(usize::try_from(row.integer(column)?).unwrap_or(usize::MAX))
}

fn event_id(text: &str) -> Result<EventId, DatabaseError> {
    EventId::parse_any_length(text).map_err(|_| shape("a claimed event without an ID"))
}

fn shape(what: &str) -> DatabaseError {
    DatabaseError::Shape(what.to_owned())
}

impl LargeJoin {
    /// The room.
    pub fn room_id(&self) -> &RoomId {
        self.join.room_id()
    }

    /// Whether it is only to be forgotten.
    pub fn has_ended(&self) -> bool {
        self.begun_ts == 0
    }
}
