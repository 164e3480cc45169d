//! What rests on other servers' claims of a state, and the rooms in which something does.

use serde_json::Value;

use super::{
    Store, commit, event_graph::closed, events::cited, json_list, positions::TimelinePos, state_sql::node_id,
    text_lists,
};
use crate::{
    matrix::{
        identifiers::{EventId, RoomId, ServerName},
        state_trie::NodeId,
    },
    platform::{DatabaseError, Row, Statement},
};

/// How many events that rest on claims are looked at. A room that has gone on for longer than that keeps them.
const MAX_GRAPH: i64 = 20_000;

/// How many rejected state events are looked for in claimed states at a time.
const MAX_REJECTED_STATE: i64 = 100;

/// The graph from forward extremities, the edges of gaps, and what was soft-failed or provisionally rejected, back to what
/// rests on nothing that was claimed, or is not held; ?2 events at most. ?1: the room.
macro_rules! claimed_graph {
    ($extremities:expr) => {
        concat!(
            "WITH RECURSIVE graph(event_id) AS ( ",
            $extremities,
            "  UNION SELECT e.event_id FROM events AS e INDEXED BY events_claimed \
                 WHERE e.room_id = ?1 AND e.claimed AND (e.outlier OR e.soft_failed) \
               UNION SELECT x.event_id FROM rejected_events AS x INDEXED BY rejected_events_provisional \
                 WHERE x.room_id = ?1 AND x.provisional \
               UNION SELECT ",
            cited!("j"),
            "  FROM graph CROSS JOIN json_each(COALESCE( \
                 (SELECT x.graph FROM rejected_events AS x \
                   WHERE x.event_id = graph.event_id AND x.room_id = ?1 AND (x.claimed OR x.provisional)), \
                 (SELECT e.json FROM events AS e WHERE e.event_id = graph.event_id AND e.room_id = ?1 \
                   AND (e.claimed OR (e.state_after IS NULL AND NOT e.outlier)))), '$.prev_events') AS j \
               LIMIT ?2 ) "
        )
    };
}

/// What is read of each event of a graph, as [`node`] has it. ?1: the room.
macro_rules! nodes {
    () => {
        "SELECT graph.event_id, MIN(COALESCE(e.depth, x.depth, 0), 9007199254740991) AS depth, \
           e.event_id IS NOT NULL AND x.event_id IS NULL AS held, x.event_id IS NOT NULL AS rejected, \
           COALESCE(x.provisional, 0) AS provisional, x.json IS NOT NULL AS has_text, \
           COALESCE(x.claimed, e.claimed, 0) AS claimed, \
           COALESCE(e.outlier, 0) AS outlier, COALESCE(e.soft_failed, 0) AS soft_failed, \
           CASE WHEN x.event_id IS NULL THEN e.state_after ELSE x.state_before END AS state_after, \
           CASE WHEN x.event_id IS NULL THEN e.json ->> '$.prev_events' ELSE x.graph ->> '$.prev_events' END AS previous, \
           CASE WHEN x.event_id IS NULL THEN e.state_before ELSE x.state_before END AS state_before, \
           COALESCE(x.hash_wrong, 0) AS rejected_altered, b.state_before AS beside, \
           COALESCE(x.server, SUBSTR(e.sender, INSTR(e.sender, ':') + 1)) AS server \
         FROM graph LEFT JOIN events AS e ON e.event_id = graph.event_id AND e.room_id = ?1 \
           LEFT JOIN rejected_events AS x ON x.event_id = graph.event_id AND x.room_id = ?1 \
           LEFT JOIN claims_beside AS b ON b.room_id = ?1 AND b.event_id = graph.event_id"
    };
}
pub(super) use nodes;

/// What rests on claims, as far as the room is built upon it.
const GRAPH: &str = concat!(
    claimed_graph!(
        "SELECT x.value ->> 0 FROM rooms AS r CROSS JOIN json_each(r.extremities) AS x WHERE r.room_id = ?1"
    ),
    nodes!()
);

/// Before [`FORGET_CLAIMS`], from the events ?3, a JSON list, back: what was hidden because of a claim, and is cited by what is
/// shown, if only through what was rejected for good, gets a gap there. Nothing else would lead to it any more.
const LEAD_TO_HIDDEN: &str = concat!(
    claimed_graph!("SELECT value FROM json_each(?3)"),
    ", way(pos, event_id) AS ( SELECT e.pos, ",
    cited!("j"),
    " AS cited FROM graph CROSS JOIN events AS e ON e.event_id = graph.event_id \
         CROSS JOIN json_each(e.json, '$.prev_events') AS j \
       WHERE e.room_id = ?1 AND e.pos IS NOT NULL \
         AND (EXISTS (SELECT 1 FROM rejected_events AS x WHERE x.event_id = cited AND x.room_id = ?1) \
           OR EXISTS (SELECT 1 FROM events AS h \
             WHERE h.event_id = cited AND h.room_id = ?1 AND h.claimed AND h.soft_failed)) \
     UNION SELECT way.pos, ",
    cited!("j"),
    " FROM way CROSS JOIN rejected_events AS x ON x.event_id = way.event_id \
         CROSS JOIN json_each(x.graph, '$.prev_events') AS j \
       WHERE x.room_id = ?1 AND NOT x.provisional LIMIT ?2 ) \
     INSERT INTO gaps (room_id, pos, event_id) SELECT ?1, MIN(way.pos), way.event_id FROM way \
     WHERE COALESCE( \
       (SELECT x.provisional FROM rejected_events AS x WHERE x.event_id = way.event_id AND x.room_id = ?1), \
       (SELECT h.claimed AND h.soft_failed FROM events AS h WHERE h.event_id = way.event_id AND h.room_id = ?1), 0) \
     GROUP BY way.event_id ON CONFLICT (room_id, pos, event_id) DO NOTHING"
);

/// Forgets the states that rest on claims, from the events ?3, a JSON list, back. Nothing is judged by one of which the state after
/// it is not known. The state before what is shown stays: it says who may see it. What was hidden may be found to be good yet, and
/// has no place until then.
const FORGET_CLAIMS: &str = concat!(
    claimed_graph!("SELECT value FROM json_each(?3)"),
    "UPDATE events SET state_after = NULL, \
       state_before = CASE WHEN outlier OR soft_failed THEN NULL ELSE state_before END, \
       claimed = CASE WHEN outlier OR soft_failed THEN 0 ELSE claimed END, outlier = MAX(outlier, soft_failed), soft_failed = 0 \
     WHERE event_id IN (SELECT event_id FROM graph) AND room_id = ?1 AND claimed"
);

/// After [`FORGET_CLAIMS`], which finds its way by the verdicts.
const FORGET_PROVISIONAL: &str = "DELETE FROM rejected_events WHERE room_id = ?1 AND provisional";

/// The state ?3 was claimed before the event ?2 of the room ?1, beside what follows from what it cites.
const CLAIM_BESIDE: &str = "\
    INSERT INTO claims_beside (room_id, event_id, state_before) VALUES (?1, ?2, ?3) \
    ON CONFLICT (room_id, event_id) DO UPDATE SET state_before = excluded.state_before";

const FORGET_BESIDE: &str = "DELETE FROM claims_beside WHERE room_id = ?1";

/// What is sure by now needs no claim. ?1: the room.
const FORGET_BESIDE_WHAT_IS_SURE: &str = "\
    DELETE FROM claims_beside WHERE room_id = ?1 AND NOT EXISTS ( \
      SELECT 1 FROM events AS e WHERE e.event_id = claims_beside.event_id AND e.room_id = claims_beside.room_id AND e.claimed) \
    AND NOT EXISTS (SELECT 1 FROM rejected_events AS x \
      WHERE x.event_id = claims_beside.event_id AND x.room_id = claims_beside.room_id AND x.claimed)";

/// What was rejected for good stays so, at a state that is not known.
const UNPLACE_REJECTED: &str = "\
    UPDATE rejected_events SET state_before = NULL, claimed = 0 WHERE room_id = ?1 AND claimed";

/// State events of the room ?1 that may stand in claimed states, ?2 at most, though they were rejected for good.
const REJECTED_STATE: &str = "\
    SELECT e.event_id, e.event_type, e.state_key \
    FROM rejected_events AS x INDEXED BY rejected_events_that_may_stand CROSS JOIN events AS e ON e.event_id = x.event_id \
    WHERE x.room_id = ?1 AND x.may_stand AND NOT x.provisional AND NOT x.hash_wrong AND e.state_key IS NOT NULL LIMIT ?2";

/// ?1: a list of events, those of state among which stand nowhere any more, or (?2) may stand somewhere if they are rejected for good.
const MAY_STAND: &str = "\
    UPDATE rejected_events SET may_stand = ?2 WHERE event_id IN (SELECT value FROM json_each(?1)) AND NOT provisional \
      AND EXISTS (SELECT 1 FROM events AS e WHERE e.event_id = rejected_events.event_id AND e.state_key IS NOT NULL)";

/// The rooms that are due at ?1, those first that have been so for longest.
const DUE: &str = "SELECT room_id FROM unsettled_rooms WHERE retry_at <= ?1 ORDER BY retry_at LIMIT ?2";

/// Takes the room ?1 in hand at ?2 until ?3, if it is due: how often that was done, and since when.
const BEGIN: &str = "\
    UPDATE unsettled_rooms SET looks = looks + 1, attempts = attempts + 1, retry_at = ?3, \
      since = CASE since WHEN 0 THEN ?2 ELSE since END \
    WHERE room_id = ?1 AND retry_at <= ?2 RETURNING looks, attempts, since";

/// ?2 is what [`BEGIN`] has set: somebody else may have found something new meanwhile.
const PAUSE: &str = "UPDATE unsettled_rooms SET retry_at = ?3 WHERE room_id = ?1 AND retry_at = ?2";

const END: &str = "DELETE FROM unsettled_rooms WHERE room_id = ?1 AND retry_at = ?2";

/// A room with something new to settle is due at once (?2). One with something more to settle is due when it is, but whoever has it
/// in hand, and may have looked before, must not end it; a verdict against somebody (?3) is looked at for as long as any other.
const UNSETTLE: &str = "\
    INSERT INTO unsettled_rooms (room_id) VALUES (?1) ON CONFLICT (room_id) DO UPDATE SET \
      retry_at = CASE WHEN ?2 THEN 0 ELSE retry_at + 1 END, attempts = CASE WHEN ?2 THEN 0 ELSE attempts END, \
      since = CASE WHEN ?2 OR ?3 THEN 0 ELSE since END";

/// The positions of gaps of the room ?1 at whose newer end one of the events ?2, a JSON list, is lacking.
const GAPS_AT: &str = concat!(
    "SELECT DISTINCT g.pos FROM gaps AS g WHERE g.room_id = ?1 AND g.event_id IN (SELECT value FROM json_each(?2)) \
       AND g.attempts = 0 AND NOT ",
    closed!(),
    " ORDER BY g.pos DESC LIMIT 5"
);

/// The state after a rejected event is better known; ?1: its id, ?2: the trie root, ?3: whether it rests on a claim.
const PLACE_REJECTED: &str = "UPDATE rejected_events SET state_before = ?2, claimed = ?3 WHERE event_id = ?1";

/// An event of the part of a room's graph that rests on claims, or that such an event cites.
#[derive(Debug, Clone)]
pub struct Node {
    /// The event.
    pub event_id: EventId,
    /// Its depth.
    pub depth: i64,
    /// The events that it cites as previous ones.
    pub previous: Vec<EventId>,
    /// The trie root of the state before it, where known,
    pub state_before: Option<NodeId>,
    /// and of that after it.
    pub state_after: Option<NodeId>,
    /// Whether that state, or what was found of the event, rests on a claim.
    pub claimed: bool,
    /// What is thought of it.
    pub standing: Standing,
    /// Whether an altered copy of it was rejected: a whole one may not be.
    pub rejected_altered: bool,
    /// The trie root of what was claimed of the state before it, beside what follows from what it cites.
    pub beside: Option<NodeId>,
    /// The server of its sender.
    pub server: Option<ServerName>,
}

/// What is thought of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is not held.
    Unknown,
    /// It stands nowhere in our graph.
    Outlier,
    /// It is part of the room.
    Accepted,
    /// It is part of the graph, and shown to nobody.
    SoftFailed,
    /// It is rejected: whether its text is there, so that it can be judged again, as the verdict is provisional.
    Rejected {
        /// See above.
        provisional: bool,
    },
}

/// A state event that is held and was rejected for good.
#[derive(Debug, Clone)]
pub struct RejectedState {
    /// The event.
    pub event_id: EventId,
    /// Its type.
    pub event_type: String,
    /// Its state key.
    pub state_key: String,
}

/// A room that somebody has taken in hand.
#[derive(Debug, Clone, Copy)]
pub struct Unsettled {
    /// How often that was done since something rests on claims there.
    pub looks: i64,
    /// How often since there was last more to judge it by: members of the room have a say in that.
    pub attempts: i64,
    /// Since when, in milliseconds, as of that or of the last verdict against somebody.
    pub since: i64,
}

impl Store {
    /// The part of the room's graph that rests on claims, with the events that it ends at; so many events at most as are looked at.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn claimed_graph(&self, room_id: &RoomId) -> Result<Vec<Node>, DatabaseError> {
        let rows = self.query(Statement::new(GRAPH, [room_id.as_str().into(), MAX_GRAPH.into()])).await?;
        rows.iter().map(node).collect()
    }

    /// State events of the room that were rejected for good, and may stand in claimed states; not all of very many.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn rejected_state(&self, room_id: &RoomId) -> Result<Vec<RejectedState>, DatabaseError> {
        let statement = Statement::new(REJECTED_STATE, [room_id.as_str().into(), MAX_REJECTED_STATE.into()]);
        self.query(statement).await?.iter().map(rejected_state).collect()
    }

    /// Notes that these rejected events stand in no state any more.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn stand_nowhere(&self, ids: &[EventId]) -> Result<(), DatabaseError> {
        if ids.is_empty() {
            return Ok(());
        }
        self.batch(may_stand(ids, false)).await.map(drop)
    }

    /// Rooms that are due `now`, those first that have been so for longest, `limit` at most.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn unsettled_rooms(&self, now: i64, limit: i64) -> Result<Vec<RoomId>, DatabaseError> {
        let rows = self.query(Statement::new(DUE, [now.into(), limit.into()])).await?;
        let mut rooms = Vec::with_capacity(rows.len());
        for row in &rows {
            rooms.extend(RoomId::parse(row.text(0)?).ok());
        }
        Ok(rooms)
    }

    /// Takes a room in hand `now` that is due, until `until`; `None` where it is not, or there is nothing to settle.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn begin_settling(
        &self,
        room_id: &RoomId,
        now: i64,
        until: i64,
    ) -> Result<Option<Unsettled>, DatabaseError> {
        let rows = self.query(Statement::new(BEGIN, [room_id.as_str().into(), now.into(), until.into()])).await?;
        rows.first()
            .map(|row| Ok(Unsettled { looks: row.integer(0)?, attempts: row.integer(1)?, since: row.integer(2)? }))
            .transpose()
    }

    /// Lets a room be that was taken in hand until `until`: it is due again at `retry_at`, or never.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn end_settling(&self, room_id: &RoomId, until: i64, retry_at: Option<i64>) -> Result<(), DatabaseError> {
        let statements = match retry_at {
            Some(retry_at) => vec![Statement::new(PAUSE, [room_id.as_str().into(), until.into(), retry_at.into()])],
            None => vec![
                Statement::new(END, [room_id.as_str().into(), until.into()]),
                Statement::new(FORGET_BESIDE_WHAT_IS_SURE, [room_id.as_str().into()]),
            ],
        };
        self.batch(statements).await.map(drop)
    }

    /// The positions of gaps that end at one of the events, the newest first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn gaps_at(&self, room_id: &RoomId, ids: &[EventId]) -> Result<Vec<TimelinePos>, DatabaseError> {
        let ids = json_list(ids.iter().map(EventId::as_str));
        let rows = self.query(Statement::new(GAPS_AT, [room_id.as_str().into(), ids.into()])).await?;
        rows.iter().map(|row| TimelinePos::read(row, 0)).collect()
    }
}

/// Notes that something in the room is to be settled.
pub(super) fn unsettle(room_id: &RoomId, why: commit::Unsettled) -> Statement {
    let [known_better, against] = [commit::Unsettled::KnownBetter, commit::Unsettled::Against].map(|one| one == why);
    Statement::new(UNSETTLE, [room_id.as_str().into(), known_better.into(), against.into()])
}

/// Forgets what was claimed of the room so far, and all that was found by it; `extremities` are its forward extremities until now.
/// There may be gaps then that other ones make needless.
pub(super) fn forget_claims(room_id: &RoomId, extremities: &[EventId]) -> [Statement; 5] {
    let extremities = json_list(extremities.iter().map(EventId::as_str));
    let of_graph = |sql| Statement::new(sql, [room_id.as_str().into(), MAX_GRAPH.into(), extremities.as_str().into()]);
    [
        of_graph(LEAD_TO_HIDDEN),
        of_graph(FORGET_CLAIMS),
        Statement::new(FORGET_PROVISIONAL, [room_id.as_str().into()]),
        Statement::new(UNPLACE_REJECTED, [room_id.as_str().into()]),
        Statement::new(FORGET_BESIDE, [room_id.as_str().into()]),
    ]
}

/// Notes whether those of these events that are state, and rejected for good, may stand in claimed states.
pub(super) fn may_stand(ids: &[EventId], may: bool) -> Vec<Statement> {
    let lists = text_lists(ids).into_iter();
    lists.map(|list| Statement::new(MAY_STAND, [list.into(), may.into()])).collect()
}

/// Notes what was claimed of the state before an event of the room, beside what follows from what it cites.
pub(super) fn claim_beside(room_id: &RoomId, id: &EventId, root: NodeId) -> Statement {
    Statement::new(CLAIM_BESIDE, [room_id.as_str().into(), id.as_str().into(), root.to_string().into()])
}

/// Notes what state a rejected event stands at.
pub(super) fn place_rejected(id: &EventId, root: &str, claimed: bool) -> Statement {
    Statement::new(PLACE_REJECTED, [id.as_str().into(), root.into(), claimed.into()])
}

fn rejected_state(row: &Row) -> Result<RejectedState, DatabaseError> {
    let event_id = EventId::parse_any_length(row.text(0)?);
    Ok(RejectedState {
        event_id: event_id.map_err(|_| DatabaseError::Shape("a rejected state event has no event ID".to_owned()))?,
        event_type: row.text(1)?.to_owned(),
        state_key: row.text(2)?.to_owned(),
    })
}

pub(super) fn node(row: &Row) -> Result<Node, DatabaseError> {
    let shape = |what: &str| DatabaseError::Shape(format!("an event of a graph has {what}"));
    let id = |text: &str| EventId::parse_any_length(text).map_err(|_| shape("no event ID"));
    let is = |column: usize| Ok::<_, DatabaseError>(row.integer(column)? != 0);
    let standing = match (is(2)?, is(3)?) {
        (_, true) => Standing::Rejected { provisional: is(4)? && is(5)? },
        (true, false) if is(7)? => Standing::Outlier,
        (true, false) if is(8)? => Standing::SoftFailed,
        (true, false) => Standing::Accepted,
        (false, false) => Standing::Unknown,
    };
    let previous: Value = match row.optional_text(10)? {
        Some(text) => serde_json::from_str(text).map_err(|_| shape("no previous events"))?,
        None => Value::Array(Vec::new()),
    };
    // Room versions 1 and 2 have pairs of id and hashes.
    let of = |item: &Value| item.get(0).unwrap_or(item).as_str().map(str::to_owned);
    let previous = previous.as_array().into_iter().flatten().filter_map(of);
    Ok(Node {
        event_id: id(row.text(0)?)?,
        depth: row.integer(1)?,
        previous: previous.map(|text| id(&text)).collect::<Result<_, _>>()?,
        state_before: row.optional_text(11)?.map(node_id).transpose()?,
        state_after: row.optional_text(9)?.map(node_id).transpose()?,
        claimed: is(6)?,
        standing,
        rejected_altered: is(12)?,
        beside: row.optional_text(13)?.map(node_id).transpose()?,
        server: row.optional_text(14)?.and_then(|name| ServerName::parse(name).ok()),
    })
}
