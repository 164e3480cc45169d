//! What other servers read of a room: events, states with their auth chains, and the graph walked back.
//!
//! Everything is of one room, which is named: an event can name one of another room, and what it names must not come along.
//! Texts leave as they are stored, without being parsed, except those of redacted events.

use super::{
    Store,
    answer_texts::{EventTexts, first_texts, texts_of_numbered},
    event_id,
    event_text::read,
    events::{
        EVENT_COLUMNS, StoredEvent, auth_events_of, cited, current_state, event_columns, shown_columns, shown_text,
        stored_event,
    },
    history_visibility::{RESTRICTIONS, Restrictions},
    json_list, lacking,
    rooms::Extent,
    state_sql::{self, entries},
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
        state_trie::{NodeId, StateKeyHash},
    },
    platform::{DatabaseError, Row, Rows, SqlValue, Statement},
};

/// The event ?1 of the room ?2.
const ONE: &str = concat!(
    "SELECT ",
    event_columns!(),
    " FROM events AS e CROSS JOIN rooms AS r ON r.room_id = e.room_id WHERE e.event_id = ?1 AND e.room_id = ?2"
);

/// Whether the server ?2 has joined members in the room ?1, and how much of its state is known.
const STANDING: &str = "\
    SELECT s.joined, (SELECT p.stage FROM partial_rooms AS p WHERE p.room_id = s.room_id) FROM room_servers AS s \
    WHERE s.room_id = ?1 AND s.server = ?2 AND s.to_pos IS NULL";

/// The event ?1, whether the server ?2 has joined members in its room, whether that restricts its history, and whether who sent the
/// event has been erased.
const ANYWHERE: &str = concat!(
    "SELECT ",
    event_columns!(),
    ", EXISTS (SELECT 1 FROM room_servers AS s WHERE s.room_id = e.room_id AND s.server = ?2 AND s.to_pos IS NULL) AS joined, \
       EXISTS (SELECT 1 FROM restricted_history AS h WHERE h.room_id = e.room_id) AS restricted, \
       EXISTS (SELECT 1 FROM erased_users AS x WHERE x.room_id = e.room_id AND x.user_id = e.sender) AS is_erased \
       FROM events AS e CROSS JOIN rooms AS r ON r.room_id = e.room_id WHERE e.event_id = ?1"
);

/// The root of the state before the event ?1 of the room ?3, for the server ?2 if it has joined members there: nothing is read for
/// another one.
macro_rules! state_before {
    () => {
        "SELECT e.state_before FROM room_servers AS s CROSS JOIN events AS e ON e.event_id = ?1 AND e.room_id = s.room_id \
           WHERE s.room_id = ?3 AND s.server = ?2 AND s.to_pos IS NULL"
    };
}

/// `chain`: the auth chain of the events that the select gives, each with its room.
macro_rules! auth_chain {
    ($first:literal) => {
        concat!(
            "first(event_id, room_id) AS ( ",
            $first,
            " ), chain(event_id, room_id) AS ( ",
            auth_events_of!("first"),
            " UNION ",
            auth_events_of!("chain"),
            " )"
        )
    };
}

pub(super) use auth_chain;

/// [`auth_chain`] of the state before the event ?1, for the server ?2.
macro_rules! auth_chain_before {
    () => {
        concat!(entries!("", state_before!()), ", ", auth_chain!("SELECT event_id, ?3 FROM entry"))
    };
}

macro_rules! ids_of_chain {
    () => {
        " SELECT e.event_id FROM chain CROSS JOIN events AS e ON e.event_id = chain.event_id AND e.room_id = chain.room_id"
    };
}

const AUTH_CHAIN_IDS_BEFORE: &str = concat!("WITH RECURSIVE ", auth_chain_before!(), ids_of_chain!());

const STATE_IDS_BEFORE: &str = concat!("WITH RECURSIVE ", entries!("", state_before!()), " SELECT event_id FROM entry");

/// The first texts of the events of a table.
macro_rules! first_texts_of {
    ($table:literal) => {
        concat!(
            ", numbered(event_id, number) AS ( SELECT event_id, row_number() OVER () FROM ",
            $table,
            " ), ",
            texts_of_numbered!()
        )
    };
}
pub(super) use first_texts_of;

const STATE_TEXTS_BEFORE: &str = concat!("WITH RECURSIVE ", entries!("", state_before!()), first_texts_of!("entry"));

const AUTH_CHAIN_TEXTS_BEFORE: &str = concat!("WITH RECURSIVE ", auth_chain_before!(), first_texts_of!("chain"));

/// Of the event ?1, for the server ?2 if it has joined members in the room.
const EVENT_AUTH_TEXTS: &str = concat!(
    "WITH RECURSIVE ",
    auth_chain!(
        "SELECT ?1, s.room_id FROM room_servers AS s WHERE s.room_id = ?3 AND s.server = ?2 AND s.to_pos IS NULL"
    ),
    first_texts_of!("chain")
);

/// The depth of an event of the room ?2 that is held, or was rejected.
macro_rules! depth_of {
    ($event_id:expr) => {
        concat!(
            "COALESCE((SELECT p.depth FROM events AS p WHERE p.event_id = ",
            $event_id,
            " AND p.room_id = ?2), (SELECT q.depth FROM rejected_events AS q WHERE q.event_id = ",
            $event_id,
            " AND q.room_id = ?2))"
        )
    };
}

/// The events ?1 (a JSON list) of the room ?2 and their ancestors, the deepest first, not past the events ?3 (a JSON
/// list), at most ?4, of at most ?5 that are walked over: `ORDER BY` in a recursive query makes its queue a priority queue, and
/// the walk ends when there are enough. Rejected events are walked over.
const WALK_BACK: &str = concat!(
    "WITH RECURSIVE walk(event_id, depth) AS ( \
       SELECT start.value, ",
    depth_of!("start.value"),
    " AS its_depth FROM json_each(?1) AS start \
         WHERE its_depth IS NOT NULL AND start.value NOT IN (SELECT value FROM json_each(?3)) \
       UNION \
       SELECT ",
    cited!("j"),
    " AS previous, ",
    depth_of!(cited!("j")),
    " AS its_depth FROM walk CROSS JOIN json_each(COALESCE( \
         (SELECT s.json FROM events AS s WHERE s.event_id = walk.event_id), \
         (SELECT x.graph FROM rejected_events AS x WHERE x.event_id = walk.event_id)), '$.prev_events') AS j \
         WHERE its_depth IS NOT NULL AND previous NOT IN (SELECT value FROM json_each(?3)) \
       ORDER BY 2 DESC LIMIT ?5 \
     ) SELECT ",
    shown_columns!(),
    ", MIN(e.depth, 9007199254740991) AS depth, e.state_before, r.room_version, e.outlier FROM walk CROSS JOIN events AS e ON e.event_id = walk.event_id \
      CROSS JOIN rooms AS r ON r.room_id = e.room_id \
      WHERE NOT EXISTS (SELECT 1 FROM rejected_events AS x WHERE x.event_id = e.event_id) LIMIT ?4"
);

/// How many rejected events are walked over, at most.
const MOST_REJECTED: i64 = 500;

/// What decides whether a server may read a room.
#[derive(Debug)]
pub struct Standing {
    /// Whether it has joined members in it.
    pub joined: bool,
    /// The room's `m.room.server_acl`.
    pub acl: Option<StoredEvent>,
    /// What it may not see.
    pub restrictions: Restrictions,
    /// Whether the states before its events are whole.
    pub extent: Extent,
}

/// An event as a server asks for it, with what decides whether the server may, and what was read with it in the same round trip.
/// For a server without joined members in the room that is empty.
#[derive(Debug)]
pub struct AtEvent<T> {
    /// What decides whether the server may read the room.
    pub standing: Standing,
    /// The event, if it is held and was not rejected.
    pub event: Option<StoredEvent>,
    /// What was read with it.
    pub read: T,
}

/// The ids of the events of a state and of its auth chain.
#[derive(Debug)]
pub struct StateIds {
    /// The events of the state.
    pub state: Vec<EventId>,
    /// Those of the auth chain.
    pub auth_chain: Vec<EventId>,
}

/// The texts of a state and of its auth chain, of which the first are read. [`Store::write_texts`] writes them.
#[derive(Debug)]
pub struct StateTexts {
    /// The events of the state.
    pub state: EventTexts,
    /// Those of the auth chain.
    pub auth_chain: EventTexts,
}

/// An event as other servers may see it, with its place in the graph.
#[derive(Debug, Clone)]
pub struct ShownEvent {
    /// Its ID.
    pub event_id: EventId,
    /// Its depth; the greatest that canonical JSON can say where it is deeper.
    pub depth: i64,
    /// Its text, redacted where it was.
    pub text: String,
    /// The root of the state before it, where known.
    pub state_before: Option<NodeId>,
    /// Whether it has no place in the room of its own.
    pub is_outlier: bool,
    version: String,
}

impl ShownEvent {
    /// The event itself.
    ///
    /// # Errors
    /// Where what is stored is none.
    pub fn event(&self) -> Result<Event, DatabaseError> {
        read(self.event_id.as_str(), &self.text, &self.version)
    }
}

impl Store {
    /// What decides whether `server` may read the room.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn standing(&self, server: &ServerName, room_id: &RoomId) -> Result<Standing, DatabaseError> {
        standing(&self.batch(ask_standing(server, room_id)).await?)
    }

    /// The event, whether `server` has joined members in its room, and whether that restricts who may see its history.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn event_and_joined(
        &self,
        server: &ServerName,
        event_id: &EventId,
    ) -> Result<Option<(StoredEvent, bool, Restrictions)>, DatabaseError> {
        let rows = self.query(Statement::new(ANYWHERE, [event_id.as_str().into(), server.as_str().into()])).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (found, joined) = (stored_event(row)?, row.integer(EVENT_COLUMNS)? != 0);
        let is_erased = row.integer(EVENT_COLUMNS + 2)? != 0;
        let erased = is_erased.then(|| found.event.sender().as_str().to_owned()).into_iter().collect();
        let restrictions = Restrictions { history: row.integer(EVENT_COLUMNS + 1)? != 0, erased };
        Ok((!found.rejected).then_some((found, joined, restrictions)))
    }

    /// The ids of the events of the state before an event, and of that state's auth chain (Server-Server API, "auth chain"): its
    /// events' auth events, those events' auth events, and so on. No event is read for it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn state_ids_before(&self, asked: Asked<'_>) -> Result<AtEvent<StateIds>, DatabaseError> {
        let statements = [STATE_IDS_BEFORE, AUTH_CHAIN_IDS_BEFORE].map(|sql| Statement::new(sql, asked.parameters()));
        let AtEvent { standing, event, read: [state, auth_chain] } = self.at_event(asked, statements).await?;
        Ok(AtEvent {
            standing,
            event,
            read: StateIds { state: event_ids(&state)?, auth_chain: event_ids(&auth_chain)? },
        })
    }

    /// The texts of what [`Store::state_ids_before`] names, of which [`Store::write_texts`] reads further ones.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn state_texts_before(&self, asked: Asked<'_>) -> Result<AtEvent<StateTexts>, DatabaseError> {
        let statements = [STATE_TEXTS_BEFORE, AUTH_CHAIN_TEXTS_BEFORE].map(|sql| asked.first_texts(sql));
        let AtEvent { standing, event, read } = self.at_event(asked, statements).await?;
        // Not before: whoever may ask for anything would take it away from others meanwhile.
        let held = self.room_for_answer(0)?;
        let texts = |rows| EventTexts { room_id: asked.room_id.clone(), rows, held: held.clone() };
        let [state, auth_chain] = read.map(texts);
        Ok(AtEvent { standing, event, read: StateTexts { state, auth_chain } })
    }

    /// The texts of an event's auth chain, of which [`Store::write_texts`] reads further ones.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn event_auth_texts(&self, asked: Asked<'_>) -> Result<AtEvent<EventTexts>, DatabaseError> {
        let AtEvent { standing, event, read: [rows] } =
            self.at_event(asked, [asked.first_texts(EVENT_AUTH_TEXTS)]).await?;
        let held = self.room_for_answer(0)?;
        Ok(AtEvent { standing, event, read: EventTexts { room_id: asked.room_id.clone(), rows, held } })
    }

    /// An event, with what decides whether the server may read it, and what the statements read. One round trip.
    async fn at_event<const N: usize>(
        &self,
        asked: Asked<'_>,
        statements: [Statement; N],
    ) -> Result<AtEvent<[Rows; N]>, DatabaseError> {
        let mut batch = ask_standing(asked.server, asked.room_id);
        let others = batch.len();
        batch.push(Statement::new(ONE, [asked.event_id.as_str().into(), asked.room_id.as_str().into()]));
        batch.extend(statements);
        let mut answers = self.batch(batch).await?;
        let read = answers.split_off((others + 1).min(answers.len())).try_into().map_err(|_| lacking())?;
        let event = answers.get(others).and_then(|rows| rows.first()).map(stored_event).transpose()?;
        Ok(AtEvent { standing: standing(&answers)?, event: event.filter(|event| !event.rejected), read })
    }

    /// The events `from` of a room and what precedes them in the graph, the deepest first: at most `limit`, and neither
    /// the events of `until` nor what only they lead to. Rejected events are walked over and left out. Outliers count
    /// too: they precede the others, and whoever asks may find nobody else who has them.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn walk_back(
        &self,
        room_id: &RoomId,
        from: &[EventId],
        until: &[EventId],
        limit: i64,
    ) -> Result<Vec<ShownEvent>, DatabaseError> {
        let ids = |ids: &[EventId]| json_list(ids.iter().map(EventId::as_str));
        let walked = limit.saturating_add(MOST_REJECTED);
        let parameters = [ids(from).into(), room_id.as_str().into(), ids(until).into(), limit.into(), walked.into()];
        let rows = self.query(Statement::new(WALK_BACK, parameters)).await?;
        let shown = |row: &Row| {
            Ok(ShownEvent {
                event_id: event_id(row, 1)?,
                depth: row.integer(3)?,
                text: shown_text(row)?.into_owned(),
                state_before: row.optional_text(4)?.map(state_sql::node_id).transpose()?,
                version: row.text(5)?.to_owned(),
                is_outlier: row.integer(6)? != 0,
            })
        };
        rows.iter().map(shown).collect()
    }
}

/// What a server asks for: an event of a room.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Who asks.
    pub server: &'a ServerName,
    /// The room.
    pub room_id: &'a RoomId,
    /// The event.
    pub event_id: &'a EventId,
}

impl Asked<'_> {
    fn parameters(&self) -> [SqlValue; 3] {
        [self.event_id.as_str().into(), self.server.as_str().into(), self.room_id.as_str().into()]
    }

    fn first_texts(&self, sql: &'static str) -> Statement {
        first_texts(sql, self.parameters())
    }
}

/// Asks for the [`Standing`] of a server.
fn ask_standing(server: &ServerName, room_id: &RoomId) -> Vec<Statement> {
    let acl = StateKeyHash::new("m.room.server_acl", "");
    vec![
        Statement::new(STANDING, [room_id.as_str().into(), server.as_str().into()]),
        current_state(room_id, &[acl]),
        Statement::new(RESTRICTIONS, [room_id.as_str().into()]),
    ]
}

/// The answer to [`ask_standing`], with which `answers` begin.
fn standing(answers: &[Rows]) -> Result<Standing, DatabaseError> {
    let [joined, acl, restrictions, ..] = answers else {
        return Err(lacking());
    };
    let acl = acl.first().map(stored_event).transpose()?.filter(|acl| !acl.rejected);
    let stage = joined.first().map(|row| row.optional_integer(1)).transpose()?.flatten();
    let restrictions = Restrictions::of_rows(restrictions)?;
    Ok(Standing { joined: !joined.is_empty(), acl, restrictions, extent: Extent::of(stage) })
}

/// The event IDs in the first column.
pub(super) fn event_ids(rows: &Rows) -> Result<Vec<EventId>, DatabaseError> {
    rows.iter().map(|row| event_id(row, 0)).collect()
}
