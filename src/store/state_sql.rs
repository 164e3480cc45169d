//! SQL that walks the tries of state snapshots (`matrix::state_trie`) inside the database, so that a snapshot of any
//! size takes one round trip.
//!
//! The walks are common table expressions over `state_nodes(node_id, node)`; statements here and beside are made of them.
//! Each is given the select with which it starts, and a label: columns, each with its comma, that are carried along from
//! there, or none. Roots and keys (32 hex digits) travel in JSON parameters. A slot of an inner node that has no child names
//! no row, so the walks need no case for it.

use crate::{matrix::state_trie::NodeId, platform::DatabaseError};

/// `path`: the nodes on the way from roots to keys, which is what `state_trie::lookup` and `update` need. It starts with
/// label, root, key and 0.
///
/// An update that removes entries may have to merge a leaf with its siblings, which are not on the way; it then asks for
/// them ([`NODES`]).
macro_rules! paths {
    ($label:literal, $start:expr) => {
        concat!(
            "path(",
            $label,
            "node_id, key, level) AS ( ",
            $start,
            " UNION SELECT ",
            $label,
            "substr(node, 2 + 22 * (instr('0123456789abcdef', substr(key, level + 1, 1)) - 1), 22), key, level + 1 \
              FROM path CROSS JOIN state_nodes USING (node_id) WHERE substr(node, 1, 1) = 'I' )"
        )
    };
}
pub(super) use paths;

/// `found`: the events at the ends of `path`.
macro_rules! found {
    ($label:literal) => {
        concat!(
            "found(",
            $label,
            "event_id) AS ( SELECT DISTINCT ",
            $label,
            "node ->> ('$.' || key) FROM path CROSS JOIN state_nodes USING (node_id) WHERE substr(node, 1, 1) = '{' )"
        )
    };
}
pub(super) use found;

/// Selects the nodes of `path`.
macro_rules! nodes_of_paths {
    () => {
        " SELECT node_id, node FROM state_nodes WHERE node_id IN (SELECT node_id FROM path)"
    };
}
pub(super) use nodes_of_paths;

/// `slot`: where the slots of an inner node begin.
macro_rules! slots {
    () => {
        "slot(at) AS ( SELECT 2 UNION ALL SELECT at + 22 FROM slot WHERE at < 332 )"
    };
}
pub(super) use slots;

/// `entry`: all events of snapshots. It starts with label and root.
macro_rules! entries {
    ($label:literal, $start:expr) => {
        concat!(
            $crate::store::state_sql::slots!(),
            ", tree(",
            $label,
            "node_id) AS ( ",
            $start,
            " UNION SELECT ",
            $label,
            "substr(node, at, 22) FROM tree CROSS JOIN state_nodes USING (node_id) CROSS JOIN slot WHERE substr(node, 1, 1) = 'I' \
             ), entry(",
            $label,
            "event_id) AS ( SELECT ",
            $label,
            "item.value FROM tree CROSS JOIN state_nodes USING (node_id) CROSS JOIN json_each(node) AS item \
             WHERE substr(node, 1, 1) = '{' )"
        )
    };
}
pub(super) use entries;

/// `pair`: the nodes `a` and `b` in which two snapshots differ. The walk goes down in lockstep and stops where both sides
/// are the same node; below a leaf there is nothing on its side. It starts with label and two roots.
macro_rules! pairs {
    ($label:literal, $start:expr) => {
        concat!(
            $crate::store::state_sql::slots!(),
            ", pair(",
            $label,
            "a, b) AS ( ",
            $start,
            " UNION SELECT ",
            $label,
            "CASE substr(x.node, 1, 1) WHEN 'I' THEN substr(x.node, at, 22) ELSE '' END AS child_a, \
             CASE substr(y.node, 1, 1) WHEN 'I' THEN substr(y.node, at, 22) ELSE '' END AS child_b \
             FROM pair LEFT JOIN state_nodes AS x ON x.node_id = a LEFT JOIN state_nodes AS y ON y.node_id = b CROSS JOIN slot \
             WHERE child_a <> child_b )"
        )
    };
}
pub(super) use pairs;

/// The nodes on the way from nodes to keys.
///
/// `?1`: JSON list of `[node, key, level of the node]`. Rows: `node_id, node`.
pub const PATHS: &str = concat!(
    "WITH RECURSIVE ",
    paths!("", "SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1)"),
    nodes_of_paths!()
);

/// All events of one snapshot.
///
/// `?1`: its root. Rows: `event_id`.
pub const EVENT_IDS: &str = concat!("WITH RECURSIVE ", entries!("", "SELECT ?1"), " SELECT event_id FROM entry");

/// The nodes in which snapshots differ: what `state_trie::diff` needs to compare them, where
/// all of them are stored.
///
/// `?1`: JSON list of roots. Rows: `node_id, node`.
pub const DIFFERING: &str = concat!(
    "WITH RECURSIVE ",
    pairs!("", "SELECT ?1 ->> 0, value FROM json_each(?1) WHERE value <> ?1 ->> 0"),
    " SELECT node_id, node FROM state_nodes WHERE node_id IN (SELECT a FROM pair UNION SELECT b FROM pair)"
);

/// Nodes by id, for whatever the walks did not bring.
///
/// `?1`: JSON list of node ids. Rows: `node_id, node`.
pub const NODES: &str = "SELECT node_id, node FROM state_nodes WHERE node_id IN (SELECT value FROM json_each(?1))";

/// Stores nodes. Storing one again changes nothing and writes no row.
///
/// `?1`: JSON list of `[node_id, node]`.
pub const INSERT: &str = "\
    INSERT OR IGNORE INTO state_nodes (node_id, node) SELECT value ->> 0, value ->> 1 FROM json_each(?1)";

/// The id of a trie node as it is stored.
pub(super) fn node_id(text: &str) -> Result<NodeId, DatabaseError> {
    NodeId::parse(text).ok_or_else(|| DatabaseError::Shape(format!("{text:?} is not the id of a state node")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::collections::BTreeSet;

    use rusqlite::{Connection, params};
    use serde_json::json;

    use super::*;
    use crate::matrix::state_trie::{self, Entry, MissingNodes, NodeId, Nodes, StateKeyHash, Updated};

    fn database(snapshots: &[&Updated]) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE state_nodes (node_id TEXT PRIMARY KEY, node TEXT NOT NULL) WITHOUT ROWID")
            .unwrap();
        for snapshot in snapshots {
            store(&connection, snapshot);
        }
        connection
    }

    fn store(connection: &Connection, snapshot: &Updated) -> usize {
        let rows: Vec<_> = snapshot.nodes.iter().map(|(id, text)| json!([id.to_string(), text])).collect();
        connection.execute(INSERT, params![json!(rows).to_string()]).unwrap()
    }

    fn nodes(connection: &Connection, sql: &str, parameter: &serde_json::Value) -> Nodes {
        let mut nodes = Nodes::default();
        let mut statement = connection.prepare(sql).unwrap();
        let mut rows = statement.query(params![parameter.to_string()]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let id: String = row.get(0).unwrap();
            let text: String = row.get(1).unwrap();
            nodes.insert_text(NodeId::parse(&id).unwrap(), &text).unwrap();
        }
        nodes
    }

    /// All nodes of a snapshot, without the database.
    fn whole(snapshots: &[&Updated]) -> Nodes {
        let mut nodes = Nodes::default();
        for (id, text) in snapshots.iter().flat_map(|snapshot| &snapshot.nodes) {
            nodes.insert_text(*id, text).unwrap();
        }
        nodes
    }

    fn entries(range: std::ops::Range<usize>) -> Vec<Entry> {
        range.map(|n| (key(n), format!("$event{n}:örg\"").into())).collect()
    }

    fn key(n: usize) -> StateKeyHash {
        StateKeyHash::member(&format!("@user{n}:example.org"))
    }

    fn pairs(root: NodeId, keys: &[StateKeyHash]) -> serde_json::Value {
        keys.iter().map(|key| json!([root.to_string(), key.to_string()])).collect()
    }

    fn starts(root: NodeId, keys: &[StateKeyHash]) -> serde_json::Value {
        keys.iter().map(|key| json!([root.to_string(), key.to_string(), 0])).collect()
    }

    #[test]
    fn paths_bring_what_lookups_and_updates_need() {
        let all = entries(0..5000);
        let snapshot = state_trie::build(all.clone());
        let connection = database(&[&snapshot]);
        let keys: Vec<_> = [17, 4711, 999_999].into_iter().map(key).collect();
        let path = nodes(&connection, PATHS, &starts(snapshot.root, &keys));
        assert!(path.len() <= 9, "only what lies on the paths: {}", path.len());
        let found = state_trie::lookup(snapshot.root, &keys, &path).unwrap();
        assert_eq!(found, [Some(&*all[17].1), Some(&*all[4711].1), None]);

        let changes: Vec<_> = keys.iter().map(|key| (*key, Some("$new".into()))).collect();
        let updated = state_trie::update(snapshot.root, &changes, &path).unwrap();
        let written = store(&connection, &updated);
        assert_eq!(written, updated.nodes.len());
        assert_eq!(store(&connection, &updated), 0, "storing again writes nothing");
        let again = nodes(&connection, PATHS, &starts(updated.root, &keys));
        assert_eq!(state_trie::lookup(updated.root, &keys, &again).unwrap(), vec![Some("$new"); 3]);
    }

    #[test]
    fn lookup_finds_the_event_ids_themselves() {
        for size in [0, 3, 64, 65, 3000] {
            let all = entries(0..size);
            let snapshot = state_trie::build(all.clone());
            let connection = database(&[&snapshot]);
            let keys: Vec<_> = (0..size + 2).step_by(7).map(key).collect();
            let sql = concat!(
                "WITH RECURSIVE ",
                paths!("snapshot, ", "SELECT value ->> 0, value ->> 0, value ->> 1, 0 FROM json_each(?1)"),
                ", ",
                found!("snapshot, key, "),
                " SELECT snapshot, key, event_id FROM found WHERE event_id IS NOT NULL"
            );
            let mut statement = connection.prepare(sql).unwrap();
            let mut found: Vec<(String, String, String)> = statement
                .query_map(params![pairs(snapshot.root, &keys).to_string()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .unwrap()
                .map(Result::unwrap)
                .collect();
            found.sort();
            let mut expected: Vec<_> = all
                .iter()
                .step_by(7)
                .map(|(key, event_id)| (snapshot.root.to_string(), key.to_string(), event_id.to_string()))
                .collect();
            expected.sort();
            assert_eq!(found, expected, "{size} entries");
        }
    }

    #[test]
    fn whole_snapshots_come_in_one_call() {
        for size in [0, 1, 64, 65, 3000] {
            let all: BTreeSet<_> = entries(0..size).into_iter().collect();
            let snapshot = state_trie::build(all.clone());
            let connection = database(&[&snapshot]);
            let mut statement = connection.prepare(EVENT_IDS).unwrap();
            let rows = statement.query_map(params![snapshot.root.to_string()], |row| row.get::<_, String>(0)).unwrap();
            let event_ids: BTreeSet<_> = rows.map(Result::unwrap).collect();
            assert_eq!(event_ids, all.iter().map(|(_, event_id)| event_id.to_string()).collect());
        }
    }

    #[test]
    fn a_diff_reads_only_what_differs() {
        let base = state_trie::build(entries(0..5000));
        let mut connection = database(&[&base]);
        let whole = whole(&[&base]);
        let one = state_trie::update(base.root, &[(key(5), Some("$a".into()))], &whole).unwrap();
        let two = state_trie::update(base.root, &[(key(6), Some("$b".into())), (key(7000), Some("$c".into()))], &whole)
            .unwrap();
        store(&connection, &one);
        store(&connection, &two);
        let roots = [base.root, one.root, two.root];
        let some = nodes(&connection, DIFFERING, &json!(roots.map(|root| root.to_string())));
        assert!(some.len() <= 20, "{} nodes", some.len());
        let differing = |root| {
            state_trie::diff(&[base.root, root], &some).map(|all| all.iter().map(|(key, _)| key).collect::<Vec<_>>())
        };
        assert_eq!(differing(one.root).unwrap(), [key(5)]);
        let mut expected = [key(6), key(7000)];
        expected.sort();
        assert_eq!(differing(two.root).unwrap(), expected);

        // Snapshots of different depth, and the empty one, which is not stored.
        for (a, b) in [(0, 3000), (40, 3000), (3000, 64), (64, 65), (0, 10)] {
            let (a, b) = (state_trie::build(entries(0..a)), state_trie::build(entries(1..b)));
            connection = database(&[&a, &b]);
            let some = nodes(&connection, DIFFERING, &json!([a.root.to_string(), b.root.to_string()]));
            let whole = self::whole(&[&a, &b]);
            let found = state_trie::diff(&[a.root, b.root], &some).unwrap();
            assert_eq!(found, state_trie::diff(&[a.root, b.root], &whole).unwrap());
        }
    }

    #[test]
    fn a_merge_asks_for_the_siblings() {
        let full = state_trie::build(entries(0..65));
        let connection = database(&[&full]);
        let mut path = nodes(&connection, PATHS, &starts(full.root, &[key(64)]));
        let MissingNodes(missing) = state_trie::update(full.root, &[(key(64), None)], &path).unwrap_err();
        let ids: Vec<_> = missing.iter().map(NodeId::to_string).collect();
        let rest = nodes(&connection, NODES, &json!(ids));
        path.extend(rest);
        let merged = state_trie::update(full.root, &[(key(64), None)], &path).unwrap();
        assert_eq!(merged.root, state_trie::build(entries(0..64)).root);
    }
}
