//! What state resolution reads, a step in one round trip.

use serde_json::json;

use super::{
    Store,
    events::{auth_events_of, cited, event_columns, stored_event},
    json_lists,
    state_sql::{self, node_id, nodes_of_paths, paths},
    text_lists,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::EventId,
        state_resolution::{Citation, Need, StateEvent, Supplied},
        state_trie::{NodeId, StateKeyHash},
    },
    platform::{DatabaseError, Row, Statement},
};

/// `$table`: those of the events in ?1, a JSON list, that are held, each with its room. What they cite is looked for in that
/// room only.
macro_rules! held {
    ($table:literal) => {
        concat!(
            $table,
            "(event_id, room_id) AS ( SELECT held.event_id, held.room_id \
             FROM json_each(?1) AS given CROSS JOIN events AS held ON held.event_id = given.value )"
        )
    };
}

/// The events of a table of ids and rooms, for the columns of an event.
macro_rules! events_of {
    ($table:literal) => {
        concat!(
            " FROM ",
            $table,
            " AS wanted CROSS JOIN events AS e ON e.event_id = wanted.event_id AND e.room_id = wanted.room_id \
              CROSS JOIN rooms AS r ON r.room_id = e.room_id"
        )
    };
}

/// The events in ?1 and their auth events, JSON lists.
const EVENTS: &str = concat!(
    "WITH ",
    held!("first"),
    ", wanted(event_id, room_id) AS ( SELECT event_id, room_id FROM first UNION ",
    auth_events_of!("first"),
    " ) SELECT ",
    event_columns!(),
    events_of!("wanted")
);

/// The events in ?1 with their auth chains.
const CHAINS: &str = concat!(
    "WITH RECURSIVE ",
    held!("first"),
    ", chain(event_id, room_id) AS ( SELECT event_id, room_id FROM first UNION ",
    auth_events_of!("chain"),
    " ) SELECT ",
    event_columns!(),
    events_of!("chain")
);

/// The `m.room.power_levels` events in ?1, those in their auth events, and so on.
const MAINLINES: &str = concat!(
    "WITH RECURSIVE ",
    held!("first"),
    ", line(event_id, room_id) AS ( \
       SELECT event_id, room_id FROM first \
       UNION SELECT p.event_id, p.room_id \
         FROM line CROSS JOIN events AS s ON s.event_id = line.event_id CROSS JOIN json_each(s.json, '$.auth_events') AS a \
           CROSS JOIN events AS p ON p.event_id = ",
    cited!("a"),
    " AND p.room_id = line.room_id AND p.event_type = 'm.room.power_levels' ) SELECT ",
    event_columns!(),
    events_of!("line")
);

/// ?1: a list of [cited, after, root]; ?2: how many for each.
macro_rules! wanted_citations {
    () => {
        " FROM json_each(?1) AS wanted CROSS JOIN citations AS c ON c.cited = wanted.value ->> 0 AND c.citing IN ( \
            SELECT citing FROM citations WHERE cited = wanted.value ->> 0 AND citing > COALESCE(wanted.value ->> 1, '') \
            ORDER BY citing LIMIT ?2)"
    };
}

const CITATIONS: &str = concat!("SELECT c.cited, c.citing, c.key", wanted_citations!(), " ORDER BY c.cited, c.citing");

/// The nodes on the way to the keys of those citing events.
const CITED_PATHS: &str = concat!(
    "WITH RECURSIVE ",
    paths!("", concat!("SELECT wanted.value ->> 2, c.key, 0", wanted_citations!())),
    nodes_of_paths!()
);

const CITE: &str = "\
    INSERT INTO citations (cited, citing, key) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1) WHERE true \
    ON CONFLICT (cited, citing) DO NOTHING";

/// What the rows of a statement are.
enum Kind {
    Nodes,
    Events,
    Citations,
}

impl Store {
    /// Reads what a step of a state resolution needs.
    ///
    /// # Errors
    /// As the database says.
    pub async fn supply(&self, need: &Need) -> Result<Supplied, DatabaseError> {
        let mut kinds = Vec::new();
        let mut statements = Vec::new();
        let mut ask = |kind: Kind, sql: &'static str, list: String| {
            kinds.push(kind);
            statements.push(Statement::new(sql, [list.into()]));
        };
        // Not to be cut, and short: a room has at most so many extremities.
        if !need.differing.is_empty() {
            let roots: Vec<String> = need.differing.iter().map(NodeId::to_string).collect();
            ask(Kind::Nodes, state_sql::DIFFERING, json!(roots).to_string());
        }
        for list in text_lists(need.nodes.iter().map(NodeId::to_string)) {
            ask(Kind::Nodes, state_sql::NODES, list);
        }
        let paths = need.paths.iter().map(|(root, key)| json!([root.to_string(), key.to_string()]).to_string());
        for list in json_lists(paths) {
            ask(Kind::Nodes, state_sql::PATHS, list);
        }
        for (sql, ids) in [(EVENTS, &need.events), (CHAINS, &need.chains), (MAINLINES, &need.mainlines)] {
            for list in text_lists(ids) {
                ask(Kind::Events, sql, list);
            }
        }
        let limit = need.citations.iter().map(|wanted| wanted.limit).max().unwrap_or(1);
        let limit = i64::try_from(limit).unwrap_or(i64::from(u16::MAX));
        let wanted = need.citations.iter().map(|wanted| {
            let after = wanted.after.as_ref().map(EventId::as_str);
            json!([wanted.cited.as_str(), after, wanted.root.to_string()]).to_string()
        });
        for list in json_lists(wanted) {
            kinds.push(Kind::Citations);
            statements.push(Statement::new(CITATIONS, [list.as_str().into(), limit.into()]));
            kinds.push(Kind::Nodes);
            statements.push(Statement::new(CITED_PATHS, [list.into(), limit.into()]));
        }
        let mut supplied = Supplied::default();
        for (kind, rows) in kinds.into_iter().zip(self.batch(statements).await?) {
            for row in &rows {
                match kind {
                    Kind::Nodes => {
                        let id = node_id(row.text(0)?)?;
                        let malformed = |_| DatabaseError::Shape(format!("the state node {id} is malformed"));
                        supplied.nodes.insert_text(id, row.text(1)?).map_err(malformed)?;
                    }
                    Kind::Events => {
                        let stored = stored_event(row)?;
                        supplied.events.push(StateEvent { event: stored.event, rejected: stored.rejected.is_some() });
                    }
                    Kind::Citations => supplied.citations.push(citation(row)?),
                }
            }
        }
        Ok(supplied)
    }
}

/// The rows of the table `citations` for new state events.
pub(super) fn cite<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<Statement> {
    let mut rows = Vec::new();
    for event in events {
        let Some(state_key) = event.state_key() else { continue };
        let key = StateKeyHash::new(event.event_type(), state_key).to_string();
        rows.extend(
            event.auth_events().iter().map(|cited| json!([cited.as_str(), event.event_id().as_str(), key]).to_string()),
        );
    }
    json_lists(rows).into_iter().map(|list| Statement::new(CITE, [list.into()])).collect()
}

fn citation(row: &Row) -> Result<Citation, DatabaseError> {
    let shape = |what: &str| DatabaseError::Shape(format!("a row of citations has {what}"));
    let id = |index| EventId::parse_any_length(row.text(index)?).map_err(|_| shape("no event ID"));
    Ok(Citation {
        cited: id(0)?,
        citing: id(1)?,
        key: StateKeyHash::parse(row.text(2)?).ok_or_else(|| shape("no key"))?,
    })
}
