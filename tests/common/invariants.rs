//! What holds of a room after every commit. The tests' database asks for it each time that a room's row was written, in all tests.

use rusqlite::{Connection, types::Value};
use verge::{
    matrix::state_trie::NodeId,
    platform::{SqlValue, Statement},
};

/// What must not be: why, and the query of the room ?1 that finds it.
const BROKEN: [(&str, &str); 7] = [
    (
        "a forward extremity does not count",
        "SELECT x.value ->> 0 FROM rooms AS r CROSS JOIN json_each(r.extremities) AS x \
           LEFT JOIN events AS e ON e.event_id = x.value ->> 0 \
         WHERE r.room_id = ?1 AND (e.event_id IS NULL OR e.soft_failed OR e.state_after IS NULL \
           OR EXISTS (SELECT 1 FROM rejected_events AS rejected WHERE rejected.event_id = e.event_id))",
    ),
    (
        // But by one before which the state is only claimed, and might leave out what it cites.
        "a forward extremity is built upon",
        "WITH ends(event_id) AS MATERIALIZED ( \
           SELECT x.value ->> 0 FROM rooms AS r CROSS JOIN json_each(r.extremities) AS x WHERE r.room_id = ?1) \
         SELECT iif(p.type = 'array', p.value ->> 0, p.value) AS cited \
         FROM ends CROSS JOIN events AS e ON e.event_id = ends.event_id CROSS JOIN json_each(e.json, '$.prev_events') AS p \
         WHERE NOT e.claimed AND cited IN (SELECT event_id FROM ends)",
    ),
    (
        // Those of the first two versions cite others by pairs.
        "a forward extremity is not of the room's version",
        "SELECT e.event_id FROM rooms AS r CROSS JOIN json_each(r.extremities) AS x \
           CROSS JOIN events AS e ON e.event_id = x.value ->> 0 \
         WHERE r.room_id = ?1 AND json_array_length(e.json, '$.prev_events') > 0 \
           AND (json_type(e.json, '$.prev_events[0]') = 'array') <> (r.room_version IN ('1', '2'))",
    ),
    (
        "a state is not held",
        "WITH roots(root) AS ( \
           SELECT state FROM rooms WHERE room_id = ?1 \
           UNION SELECT e.state_after FROM rooms AS r CROSS JOIN json_each(r.extremities) AS x \
             CROSS JOIN events AS e ON e.event_id = x.value ->> 0 WHERE r.room_id = ?1) \
         SELECT root FROM roots WHERE NOT EXISTS (SELECT 1 FROM state_nodes AS n WHERE n.node_id = root)",
    ),
    (
        "the timeline does not end where the room says",
        "SELECT r.latest_pos FROM rooms AS r WHERE r.room_id = ?1 \
           AND r.latest_pos < (SELECT MAX(t.pos) FROM timeline AS t WHERE t.room_id = ?1)",
    ),
    (
        "what is hidden stands in the timeline",
        "SELECT e.event_id FROM (SELECT event_nid FROM timeline WHERE room_id = ?1 ORDER BY pos DESC LIMIT 60) AS t \
           CROSS JOIN events AS e ON e.event_nid = t.event_nid WHERE e.soft_failed OR e.outlier",
    ),
    (
        "fewer than nobody are members",
        "SELECT server FROM room_servers WHERE room_id = ?1 AND joined < 0 \
         UNION ALL SELECT 'all' FROM rooms WHERE room_id = ?1 AND (joined < 0 OR invited < 0)",
    ),
];

/// Fails where what these statements did to rooms left one as none may be.
pub fn assert_held(connection: &Connection, done: &[Statement]) {
    let writes_a_room = |statement: &&Statement| {
        let sql = statement.sql.trim_start();
        sql.starts_with("UPDATE rooms SET version") || sql.starts_with("INSERT INTO rooms")
    };
    for statement in done.iter().filter(writes_a_room) {
        let Some(SqlValue::Text(room_id)) = statement.parameters.first() else {
            panic!("no room in {}", statement.sql)
        };
        let broken: Vec<String> = BROKEN.iter().filter_map(|(why, sql)| found(connection, sql, room_id, why)).collect();
        assert!(broken.is_empty(), "after a commit, in {room_id}: {}", broken.join("; "));
    }
}

fn found(connection: &Connection, sql: &str, room_id: &str, why: &str) -> Option<String> {
    let mut query = connection.prepare_cached(sql).unwrap();
    let rows = query.query_map([room_id], |row| row.get::<_, Value>(0)).unwrap();
    // The state without entries has no node.
    let empty = Value::Text(NodeId::EMPTY.to_string());
    let found: Vec<Value> = rows.map(Result::unwrap).filter(|value| *value != empty).collect();
    (!found.is_empty()).then(|| format!("{why}: {found:?}"))
}
