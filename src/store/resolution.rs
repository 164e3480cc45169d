//! What state resolution reads, a step in one round trip.

use serde_json::json;

use super::{
    Store, event_id,
    event_text::read,
    events::cited,
    json_lists, parse_event_id,
    state_sql::{self, node_id, nodes_of_paths, paths},
    text_lists,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::EventId,
        state_resolution::{Citation, MAX_CITATIONS, Need, Outline, StateEvent, Supplied},
        state_trie::{NodeId, Nodes, StateKeyHash},
    },
    platform::{DatabaseError, Row, SqlValue, Statement},
};

/// The text of `events AS e` as far as the rules by which events are judged ever look at it. A member's own words are the one
/// part of a state event that takes no power and may be long.
macro_rules! body {
    () => {
        "CASE WHEN e.event_type = 'm.room.member' AND length(e.json) > 2048 THEN json_object( \
           'type', e.event_type, 'room_id', e.room_id, 'sender', e.sender, 'state_key', e.state_key, \
           'depth', json(e.json -> '$.depth'), 'origin_server_ts', json(e.json -> '$.origin_server_ts'), \
           'hashes', json('{}'), 'signatures', json('{}'), 'auth_events', json(e.json -> '$.auth_events'), \
           'prev_events', json(CASE json_array_length(e.json, '$.prev_events') WHEN 1 THEN e.json -> '$.prev_events' ELSE '[]' END), \
           'content', json((SELECT json_group_object(m.key, json(e.json -> m.fullkey)) \
             FROM json_each(e.json, '$.content') AS m \
             WHERE m.key IN ('membership', 'third_party_invite', 'join_authorised_via_users_server')))) ELSE e.json END"
    };
}

/// Selects whole events of a table `wanted` with a column `event_id`.
macro_rules! select_events {
    () => {
        concat!(
            " SELECT e.event_id, ",
            body!(),
            " AS body, e.outlier AND EXISTS (SELECT 1 FROM rejected_events AS x WHERE x.event_id = e.event_id) AS rejected, r.room_version FROM wanted CROSS JOIN events AS e ON e.event_id = wanted.event_id \
             CROSS JOIN rooms AS r ON r.room_id = e.room_id"
        )
    };
}

/// The events in ?1.
const EVENTS: &str = concat!("WITH wanted(event_id) AS ( SELECT value FROM json_each(?1) )", select_events!());

/// The events in ?1, and their auth events as far as these are not long.
const EVENTS_AND_CITED: &str = concat!(
    "WITH wanted(event_id) AS ( SELECT value FROM json_each(?1) UNION SELECT s.event_id \
       FROM json_each(?1) AS w CROSS JOIN events AS c ON c.event_id = w.value \
         CROSS JOIN json_each(c.json, '$.auth_events') AS a CROSS JOIN events AS s ON s.event_id = ",
    cited!("a"),
    " AND s.room_id = c.room_id AND length(s.json) <= 16384 )",
    select_events!()
);

/// Of up to how many events to read the auth events unasked.
const WITH_CITED: usize = 128;

/// Selects the outlines of the events of a table `chain`.
macro_rules! select_outlines {
    () => {
        concat!(
            " SELECT e.event_id, e.event_type, e.state_key, (SELECT json_group_array(",
            cited!("x"),
            ") FROM json_each(e.json, '$.auth_events') AS x) AS auth_events, length(CAST(",
            body!(),
            " AS BLOB)) AS bytes, e.room_id FROM chain CROSS JOIN events AS e ON e.event_id = chain.event_id"
        )
    };
}

/// `chain`: the events in ?1 and those of the same room in their auth events, and so on, as far as they are such as `$of`
/// says; ?2 at most.
macro_rules! chain {
    ($of:literal) => {
        concat!(
            "WITH RECURSIVE chain(event_id, room_id) AS ( \
               SELECT s.event_id, s.room_id FROM json_each(?1) AS w CROSS JOIN events AS s ON s.event_id = w.value \
               UNION SELECT s.event_id, s.room_id FROM chain CROSS JOIN events AS c ON c.event_id = chain.event_id \
                 CROSS JOIN json_each(c.json, '$.auth_events') AS a CROSS JOIN events AS s ON s.event_id = ",
            cited!("a"),
            " AND s.room_id = chain.room_id",
            $of,
            " LIMIT ?2 )"
        )
    };
}

/// Events with their auth chains.
const CHAINS: &str = concat!(chain!(""), select_outlines!());

/// `m.room.power_levels` events, those in their auth events, and so on.
const MAINLINES: &str = concat!(chain!(" AND s.event_type = 'm.room.power_levels'"), select_outlines!());

/// How far back a mainline is followed.
const MAX_MAINLINE: usize = 65_536;

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

/// The first ?2 citations of an event of `up`.
macro_rules! first_citations {
    () => {
        "c.cited = up.event_id AND c.citing <= COALESCE( \
           (SELECT citing FROM citations WHERE cited = up.event_id ORDER BY citing LIMIT 1 OFFSET ?2 - 1), '~')"
    };
}

/// `up`: the events in ?1, those that cite them, and so on; ?3 at most, and ?2 of those that cite one.
macro_rules! ascent {
    () => {
        concat!(
            "WITH RECURSIVE up(event_id) AS ( SELECT value FROM json_each(?1) \
               UNION SELECT c.citing FROM up CROSS JOIN citations AS c ON ",
            first_citations!(),
            " LIMIT ?3 )"
        )
    };
}

/// The events of an ascent, with the citations of each; ?4 at most.
const ASCENTS: &str = concat!(
    ascent!(),
    " SELECT up.event_id AS cited, c.citing, c.key FROM up LEFT JOIN citations AS c ON ",
    first_citations!(),
    " ORDER BY 1, 2 LIMIT ?4"
);

/// The nodes on the way from the root ?5 to the keys of those citing events.
const ASCENT_PATHS: &str = concat!(
    ascent!(),
    ", keys(key) AS ( SELECT DISTINCT key FROM ( SELECT c.key FROM up CROSS JOIN citations AS c ON ",
    first_citations!(),
    " LIMIT ?4 ) ), ",
    paths!("", "SELECT ?5, key, 0 FROM keys"),
    nodes_of_paths!()
);

const CITE: &str = "\
    INSERT INTO citations (cited, citing, key) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1) WHERE true \
    ON CONFLICT (cited, citing) DO NOTHING";

/// What the rows of a statement are.
enum Kind {
    Nodes,
    Events,
    Chains,
    Mainlines,
    Citations,
    Ascents,
}

impl Store {
    /// Reads what a step of a state resolution needs.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn supply(&self, need: &Need) -> Result<Supplied, DatabaseError> {
        let mut kinds = Vec::new();
        let mut statements = Vec::new();
        let mut ask = |kind: Kind, sql: &'static str, parameters: Vec<SqlValue>| {
            kinds.push(kind);
            statements.push(Statement::new(sql, parameters));
        };
        // Not to be cut, and short: a room has at most so many extremities.
        if !need.differing.is_empty() {
            let roots: Vec<String> = need.differing.iter().map(NodeId::to_string).collect();
            ask(Kind::Nodes, state_sql::DIFFERING, vec![json!(roots).to_string().into()]);
        }
        for list in text_lists(need.nodes.iter().map(NodeId::to_string)) {
            ask(Kind::Nodes, state_sql::NODES, vec![list.into()]);
        }
        for list in json_lists(need.paths.iter().map(|(root, key)| path(*root, key, 0))) {
            ask(Kind::Nodes, state_sql::PATHS, vec![list.into()]);
        }
        let sql = if need.events.len() > WITH_CITED { EVENTS } else { EVENTS_AND_CITED };
        for list in text_lists(&need.events) {
            ask(Kind::Events, sql, vec![list.into()]);
        }
        if let Some(chains) = &need.chains {
            for list in text_lists(&chains.from) {
                ask(Kind::Chains, CHAINS, vec![list.into(), number(chains.limit)]);
            }
        }
        for list in text_lists(&need.mainlines) {
            ask(Kind::Mainlines, MAINLINES, vec![list.into(), number(MAX_MAINLINE)]);
        }
        let limit = number(need.citations.iter().map(|wanted| wanted.limit).max().unwrap_or(1));
        let wanted = need.citations.iter().map(|wanted| {
            let after = wanted.after.as_ref().map(EventId::as_str);
            json!([wanted.cited.as_str(), after, wanted.root.to_string()]).to_string()
        });
        for list in json_lists(wanted) {
            ask(Kind::Citations, CITATIONS, vec![list.as_str().into(), limit.clone()]);
            ask(Kind::Nodes, CITED_PATHS, vec![list.into(), limit.clone()]);
        }
        if let Some(ascents) = &need.ascents {
            for list in text_lists(&ascents.from) {
                let mut parameters: Vec<SqlValue> =
                    vec![list.into(), number(ascents.page), number(ascents.limit), number(MAX_CITATIONS)];
                ask(Kind::Ascents, ASCENTS, parameters.clone());
                parameters.push(ascents.root.to_string().into());
                ask(Kind::Nodes, ASCENT_PATHS, parameters);
            }
        }
        let mut supplied = Supplied::default();
        if statements.is_empty() {
            return Ok(supplied);
        }
        for (kind, rows) in kinds.into_iter().zip(self.batch(statements).await?) {
            if let (Kind::Chains, Some(chains)) = (&kind, &need.chains) {
                supplied.is_cut |= rows.len() >= chains.limit;
            }
            for row in &rows {
                match kind {
                    Kind::Nodes => add_node(row, &mut supplied.nodes)?,
                    Kind::Events => supplied.events.push(state_event(row)?),
                    Kind::Chains | Kind::Mainlines => supplied.outlines.extend(outline(row)?),
                    Kind::Citations => supplied.citations.push(citation(row)?),
                    Kind::Ascents => {
                        let cited = event_id(row, 0)?;
                        if supplied.visited.last() != Some(&cited) {
                            supplied.visited.push(cited);
                        }
                        if row.optional_text(1)?.is_some() {
                            supplied.citations.push(citation(row)?);
                        }
                    }
                }
            }
        }
        Ok(supplied)
    }

    /// The nodes on the way to keys, from nodes at these levels on.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn paths_from(&self, starts: &[(NodeId, usize, StateKeyHash)]) -> Result<Nodes, DatabaseError> {
        let lists = json_lists(starts.iter().map(|(node, level, key)| path(*node, key, *level)));
        let mut nodes = Nodes::default();
        let statements = lists.into_iter().map(|list| Statement::new(state_sql::PATHS, [list.into()]));
        for row in self.batch(statements.collect()).await?.iter().flatten() {
            add_node(row, &mut nodes)?;
        }
        Ok(nodes)
    }
}

fn path(node: NodeId, key: &StateKeyHash, level: usize) -> String {
    json!([node.to_string(), key.to_string(), level]).to_string()
}

fn number(number: usize) -> SqlValue {
    i64::try_from(number).unwrap_or(i64::from(u32::MAX)).into()
}

fn add_node(row: &Row, nodes: &mut Nodes) -> Result<(), DatabaseError> {
    let id = node_id(row.text(0)?)?;
    let malformed = |_| DatabaseError::Shape(format!("the state node {id} is malformed"));
    nodes.insert_text(id, row.text(1)?).map_err(malformed)
}

fn state_event(row: &Row) -> Result<StateEvent, DatabaseError> {
    let event = read(row.text(0)?, row.text(1)?, row.text(3)?)?;
    Ok(StateEvent { event, rejected: row.integer(2)? != 0 })
}

/// The outline of a state event; nothing of another one.
fn outline(row: &Row) -> Result<Option<Outline>, DatabaseError> {
    let Some(state_key) = row.optional_text(2)? else { return Ok(None) };
    let auth_events: Vec<&str> = serde_json::from_str(row.text(3)?)
        .map_err(|_| DatabaseError::Shape("the auth events of a stored event are not a list of texts".to_owned()))?;
    Ok(Some(Outline {
        event_id: event_id(row, 0)?,
        room_id: row.text(5)?.into(),
        event_type: row.text(1)?.into(),
        state_key: state_key.into(),
        auth_events: auth_events.into_iter().map(parse_event_id).collect::<Result<_, _>>()?,
        length: usize::try_from(row.integer(4)?).unwrap_or(usize::MAX),
    }))
}

/// The rows of the table `citations` for new state events.
pub(super) fn cite<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<Statement> {
    let mut rows = Vec::new();
    for event in events {
        let Some(key) = StateKeyHash::of(event).map(|key| key.to_string()) else { continue };
        rows.extend(
            event.auth_events().iter().map(|cited| json!([cited.as_str(), event.event_id().as_str(), key]).to_string()),
        );
    }
    json_lists(rows).into_iter().map(|list| Statement::new(CITE, [list.into()])).collect()
}

fn citation(row: &Row) -> Result<Citation, DatabaseError> {
    let key = StateKeyHash::parse(row.text(2)?);
    Ok(Citation {
        cited: event_id(row, 0)?,
        citing: event_id(row, 1)?,
        key: key.ok_or_else(|| DatabaseError::Shape("a row of citations has no key".to_owned()))?,
    })
}
