//! Events that the rules forbid: a bounded memory of what later events that cite them take.

use serde_json::{Value, json};

use super::{
    Store,
    event_text::{content_hash, hash_wrong, read_as},
    json_lists, slices,
    state_sql::node_id,
    text_lists,
};
use crate::{
    matrix::{
        event::{ContentHash, Event, MAX_PREV_EVENTS},
        identifiers::{EventId, RoomId},
        state_trie::NodeId,
    },
    platform::{Clock, DatabaseError, Row, Statement, turns::SLICE},
};

/// How many rejected events of one room are remembered, and how many of one server's among them. `migrations/0008` has the
/// same numbers.
const MAX_OF_ROOM: i64 = 5_000;
const MAX_OF_SERVER: i64 = 500;

/// How many bytes of events with a provisional verdict are kept for one room. One that would be more is judged again only when
/// it comes again.
const MAX_BYTES_OF_ROOM: i64 = 4 << 20;

/// The most characters of a reason: some quote the event.
const MAX_REASON: usize = 500;

/// A rejected event, as we remember it.
#[derive(Debug, Clone)]
pub struct RejectedEvent {
    /// Its id.
    pub event_id: EventId,
    /// Its room.
    pub room_id: RoomId,
    /// Why it was rejected.
    pub reason: String,
    /// The events before it; at most as many as a PDU may name.
    pub prev_events: Vec<EventId>,
    /// The trie root of the state before it, which is also the state after it, where known.
    pub state_before: Option<NodeId>,
    /// Whether that state rests on another server's claim.
    pub claimed: bool,
    /// Whether the verdict does too.
    pub provisional: bool,
    /// Whether the copy that was judged was altered.
    pub content_hash: ContentHash,
    /// The event, where the verdict is provisional and there was room for it.
    pub event: Option<Event>,
}

impl RejectedEvent {
    /// Whether better evidence may overturn the verdict: on what was claimed, or on an altered copy.
    pub fn may_be_overturned(&self) -> bool {
        self.provisional || self.is_altered()
    }

    /// Whether an altered copy of `event` was judged, and this one is whole. In room versions 1 and 2 it may be another event, which is
    /// to be judged by itself.
    pub fn is_altered_copy_of(&self, event: &Event) -> bool {
        self.is_altered() && !event.is_altered() && self.event_id == *event.event_id()
    }

    /// Whether an altered copy was judged.
    pub fn is_altered(&self) -> bool {
        self.content_hash == ContentHash::Wrong
    }
}

/// A rejected event to remember.
#[derive(Debug, Clone)]
pub struct NewRejected {
    /// The event.
    pub event: Event,
    /// Why it was rejected.
    pub reason: String,
    /// The trie root of the state before it, where known.
    pub state_before: Option<NodeId>,
    /// Whether that state rests on another server's claim.
    pub claimed: bool,
    /// Whether the verdict does too.
    pub provisional: bool,
}

/// The columns that [`rejected_event`] reads, of the tables `rejected_events AS x` and `rooms AS r`.
macro_rules! rejected_columns {
    () => {
        "x.event_id, x.room_id, x.reason, x.graph, x.state_before, x.claimed, x.provisional, x.json, r.room_version, \
         x.hash_wrong"
    };
}

/// Those in ?1, a JSON list, as rows of [`rejected_event`].
pub(super) const BY_ID: &str = concat!(
    "SELECT ",
    rejected_columns!(),
    " FROM json_each(?1) AS wanted CROSS JOIN rejected_events AS x ON x.event_id = wanted.value \
     CROSS JOIN rooms AS r ON r.room_id = x.room_id"
);

/// Takes over a column of the text that `excluded` brings, unless there was no room for it: what is held stays then.
macro_rules! whole {
    ($column:literal) => {
        concat!(
            $column,
            " = CASE WHEN excluded.provisional AND rejected_events.json IS NOT NULL AND excluded.json IS NULL \
               THEN rejected_events.",
            $column,
            " ELSE excluded.",
            $column,
            " END"
        )
    };
}

/// ?1: a list of [event id, server, depth, reason, graph, state before, claimed, provisional, json, bytes, whether the json is of
/// an altered copy]. The verdict on a whole copy takes the place of one on an altered copy, never the other way round; and where the event is
/// held whole, as it may be since this was judged, none on an altered copy is right. A state that was claimed stays claimed.
const REMEMBER: &str = concat!(
    "WITH new AS ( SELECT key, value, \
        CASE WHEN value ->> 9 > 0 THEN SUM(value ->> 9) OVER (ORDER BY key) + (SELECT COALESCE(SUM(bytes), 0) \
          FROM rejected_events WHERE room_id = ?2 AND provisional) <= ?3 ELSE 0 END AS fits FROM json_each(?1) ) \
    INSERT INTO rejected_events (event_id, room_id, server, depth, reason, graph, state_before, claimed, provisional, json, \
      bytes, hash_wrong, of_room, of_server) \
    SELECT value ->> 0, ?2, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, \
      CASE WHEN fits THEN value ->> 8 END, CASE WHEN fits THEN value ->> 9 ELSE 0 END, value ->> 10, \
      COALESCE((SELECT MAX(of_room) FROM rejected_events WHERE room_id = ?2), 0) + row_number() OVER (ORDER BY key), \
      COALESCE((SELECT MAX(of_server) FROM rejected_events WHERE room_id = ?2 AND server = value ->> 1), 0) \
        + row_number() OVER (PARTITION BY value ->> 1 ORDER BY key) \
    FROM new WHERE NOT (value ->> 10 \
      AND EXISTS (SELECT 1 FROM events AS e WHERE e.event_id = value ->> 0 AND NOT e.hash_wrong)) \
    ON CONFLICT (event_id) DO UPDATE SET reason = excluded.reason, depth = excluded.depth, graph = excluded.graph, \
      state_before = COALESCE(excluded.state_before, state_before), \
      claimed = CASE WHEN excluded.state_before IS NULL THEN rejected_events.claimed ELSE excluded.claimed END, \
      provisional = excluded.provisional, ",
    whole!("json"),
    ", ",
    whole!("bytes"),
    ", ",
    whole!("hash_wrong"),
    " WHERE rejected_events.hash_wrong > excluded.hash_wrong OR rejected_events.hash_wrong = excluded.hash_wrong \
       AND (rejected_events.provisional OR rejected_events.state_before IS NULL)"
);

const EVICT: &str = "\
    DELETE FROM rejected_events WHERE room_id = ?1 \
      AND of_room <= (SELECT MAX(of_room) FROM rejected_events WHERE room_id = ?1) - ?2";

/// ?1: the servers of new rows, a JSON list.
const EVICT_OF_SERVERS: &str = "\
    DELETE FROM rejected_events WHERE event_id IN ( \
      SELECT x.event_id FROM json_each(?1) AS s CROSS JOIN rejected_events AS x \
      WHERE x.room_id = ?2 AND x.server = s.value AND x.of_server <= \
        (SELECT MAX(of_server) FROM rejected_events WHERE room_id = ?2 AND server = s.value) - ?3)";

/// What stood outside the graph keeps its row, for states that others vouch for may hold it; but it has no place.
const UNPLACE: &str = "\
    UPDATE events SET outlier = 1, state_before = NULL, state_after = NULL, claimed = 0, pos = NULL \
    WHERE event_id IN (SELECT value FROM json_each(?1))";

/// Before [`UNPLACE`], which forgets the positions.
const UNSHOW: &str = "\
    DELETE FROM timeline WHERE room_id = ?2 AND pos IN \
      (SELECT e.pos FROM json_each(?1) AS j CROSS JOIN events AS e ON e.event_id = j.value)";

const FORGET: &str = "DELETE FROM rejected_events WHERE event_id IN (SELECT value FROM json_each(?1))";

impl Store {
    /// Those of `ids` that were rejected, in no order.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn rejected(&self, clock: &dyn Clock, ids: &[EventId]) -> Result<Vec<RejectedEvent>, DatabaseError> {
        self.read_in_slices(clock, SLICE, slices::by_ids(ids, BY_ID), rejected_event).await
    }
}

/// Remembers rejected events of a room, and forgets what there is no room for.
pub(super) fn remember(room_id: &RoomId, rejected: &[NewRejected]) -> Vec<Statement> {
    let room = room_id.as_str();
    let mut statements = Vec::new();
    for list in json_lists(rejected.iter().map(row)) {
        statements.push(Statement::new(REMEMBER, [list.into(), room.into(), MAX_BYTES_OF_ROOM.into()]));
    }
    if statements.is_empty() {
        return statements;
    }
    statements.push(Statement::new(EVICT, [room.into(), MAX_OF_ROOM.into()]));
    let mut servers: Vec<&str> = rejected.iter().map(|new| new.event.sender().server_name()).collect();
    servers.sort_unstable();
    servers.dedup();
    for list in text_lists(servers) {
        statements.push(Statement::new(EVICT_OF_SERVERS, [list.into(), room.into(), MAX_OF_SERVER.into()]));
    }
    statements
}

/// Takes events that were in the graph, or outliers with a state around them, out of it.
pub(super) fn unplace(room_id: &RoomId, ids: &[EventId]) -> Vec<Statement> {
    let lists = text_lists(ids).into_iter();
    let of = |list: String| {
        [
            Statement::new(UNSHOW, [list.as_str().into(), room_id.as_str().into()]),
            Statement::new(UNPLACE, [list.into()]),
        ]
    };
    lists.flat_map(of).collect()
}

/// Forgets that events were rejected.
pub(super) fn forget(ids: &[EventId]) -> Vec<Statement> {
    text_lists(ids).into_iter().map(|list| Statement::new(FORGET, [list.into()])).collect()
}

fn row(new: &NewRejected) -> String {
    let event = &new.event;
    let previous: Vec<&str> = event.prev_events().iter().take(MAX_PREV_EVENTS).map(EventId::as_str).collect();
    let json = new.provisional.then(|| event.json());
    json!([
        event.event_id().as_str(),
        event.sender().server_name(),
        event.depth(),
        new.reason.chars().take(MAX_REASON).collect::<String>(),
        json!({ "prev_events": previous }).to_string(),
        new.state_before.map(|root| root.to_string()),
        i64::from(new.claimed),
        i64::from(new.provisional),
        json,
        json.map_or(0, str::len),
        hash_wrong(event),
    ])
    .to_string()
}

/// An event from a row of `rejected_columns`.
pub(super) fn rejected_event(row: &Row) -> Result<RejectedEvent, DatabaseError> {
    let shape = |what: &str| DatabaseError::Shape(format!("a rejected event has {what}"));
    let id = |text: &str| EventId::parse_any_length(text).map_err(|_| shape("no event ID"));
    let graph: Value = serde_json::from_str(row.text(3)?).map_err(|_| shape("no graph"))?;
    let previous = graph["prev_events"].as_array().ok_or_else(|| shape("no previous events"))?;
    let content_hash = content_hash(row.integer(9)?);
    let event = |json: &str| read_as(row.text(0)?, json, content_hash, row.text(8)?);
    Ok(RejectedEvent {
        event_id: id(row.text(0)?)?,
        room_id: RoomId::parse(row.text(1)?).map_err(|_| shape("no room ID"))?,
        reason: row.text(2)?.to_owned(),
        prev_events: previous.iter().map(|item| id(item.as_str().unwrap_or_default())).collect::<Result<_, _>>()?,
        state_before: row.optional_text(4)?.map(node_id).transpose()?,
        claimed: row.integer(5)? != 0,
        provisional: row.integer(6)? != 0,
        content_hash,
        event: row.optional_text(7)?.map(event).transpose()?,
    })
}
