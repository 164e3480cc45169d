//! The tables of a database, as it says itself, and the statements that a move needs of each.

use sha2::{Digest, Sha256};

use super::{
    marker::NOT_LIVE,
    side::{Side, Sql, write_values},
};
use crate::platform::{DatabaseError, Row, SqlValue};

/// The tables that a move looks at, with their columns: not those that say which migrations and which engine a database has, nor the
/// runtime's own.
const COLUMNS: &str = "SELECT m.name AS table_name, c.name AS column_name, c.type AS kind, c.pk AS place \
    FROM sqlite_master AS m CROSS JOIN pragma_table_info(m.name) AS c \
    WHERE m.type = 'table' AND m.name NOT GLOB 'sqlite_*' AND m.name NOT GLOB '_cf_*' AND m.name NOT GLOB '__*' AND m.name NOT IN ('engine', 'd1_migrations') \
    ORDER BY m.name, c.cid";
const WITHOUT_ROWID: &str = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND wr = 1";
const FROZEN: &str = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'frozen_*'";

/// How many rows a page has at most, and how many bytes of values, but for its first row.
const PAGE: (usize, usize) = (1_000, 500_000);
/// How many bytes of JSON carry several rows into a statement. Both engines take 2 MB.
const MAX_JSON_BYTES: usize = 1_500_000;
/// How many tables are asked about in a statement, which has at most 100 columns.
const ASKED_AT_ONCE: usize = 50;
/// How many rows are deleted at a time.
const SLICE: usize = 2_000;

/// A table whose rows have a key by which they are found in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    columns: Vec<String>,
    /// Which columns are its key, in order.
    key: Vec<usize>,
}

/// A column's place in its table's key, from 1; which of the table's columns it is; and whether it holds integers.
type KeyColumn = (i64, usize, bool);

/// Why the tables cannot be moved.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("the rows of the table {0} have no key by which they can be moved")]
    NoKey(String),
}

impl Table {
    /// All tables, in the order of their names.
    pub(super) async fn all(side: &dyn Side) -> Result<Vec<Self>, TableError> {
        let results = side.batch(vec![Sql::new(COLUMNS, []), Sql::new(WITHOUT_ROWID, [])]).await?;
        let [columns, without_rowid] = &results[..] else {
            return Err(DatabaseError::Shape("two results were asked for".to_owned()).into());
        };
        let without_rowid = without_rowid.iter().map(|row| row.text(0)).collect::<Result<Vec<_>, _>>()?;
        let mut tables: Vec<(Self, Vec<KeyColumn>)> = Vec::new();
        for row in columns {
            let (table, column, is_integer) = (row.text(0)?, row.text(1)?, row.text(2)? == "INTEGER");
            if tables.last().is_none_or(|(last, _)| last.name != table) {
                tables.push((Self { name: table.to_owned(), columns: Vec::new(), key: Vec::new() }, Vec::new()));
            }
            let Some((last, key)) = tables.last_mut() else { continue };
            let place = row.integer(3)?;
            if place > 0 {
                key.push((place, last.columns.len(), is_integer));
            }
            last.columns.push(column.to_owned());
        }
        let finish = |(mut table, mut key): (Self, Vec<KeyColumn>)| {
            key.sort_unstable();
            // Of all others the rows have a number of their own, which no column shows.
            let is_rowid = matches!(key[..], [(_, _, true)]);
            if key.is_empty() || !is_rowid && !without_rowid.contains(&&*table.name) {
                return Err(TableError::NoKey(table.name));
            }
            table.key = key.into_iter().map(|(_, column, _)| column).collect();
            Ok(table)
        };
        tables.into_iter().map(finish).collect()
    }

    /// The next rows in the order of the key.
    pub(super) fn page(&self, after: Option<&[SqlValue]>) -> Sql {
        let (table, columns, key) = (quoted(&self.name), list(&self.columns), self.key_columns());
        let after_key = match after {
            Some(key_values) => format!(" WHERE ({key}) > ({})", places(key_values.len())),
            None => String::new(),
        };
        let size: Vec<_> =
            self.columns.iter().map(|column| format!("coalesce(octet_length({}), 0)", quoted(column))).collect();
        let (size, (rows, bytes)) = (size.join(" + "), PAGE);
        let text = format!(
            "SELECT {columns} FROM (SELECT *, sum({size}) OVER (ORDER BY {key}) AS \"~bytes\", \
             row_number() OVER (ORDER BY {key}) AS \"~number\" \
             FROM (SELECT {columns} FROM {table}{after_key} ORDER BY {key} LIMIT {rows})) \
             WHERE \"~number\" = 1 OR \"~bytes\" <= {bytes} ORDER BY {key}"
        );
        Sql::new(text, after.unwrap_or_default())
    }

    /// The key of a row.
    pub(super) fn key_of(&self, row: &Row) -> Vec<SqlValue> {
        self.key.iter().filter_map(|column| row.0.get(*column).cloned()).collect()
    }

    /// Puts these rows in.
    pub(super) fn insert(&self, rows: &[Row]) -> Vec<Sql> {
        let (mut statements, mut carried, mut bytes) = (Vec::new(), Vec::new(), 0);
        for row in rows {
            let json = write_values(&row.0).to_string();
            // JSON in SQL cuts texts at a zero; and what alone is too long in JSON may not be so as it is.
            if json.len() > MAX_JSON_BYTES || json.contains("\\u0000") {
                statements.push(self.insert_one(row));
                continue;
            }
            if bytes + json.len() + 1 > MAX_JSON_BYTES {
                statements.push(self.insert_json(&carried));
                (carried, bytes) = (Vec::new(), 0);
            }
            bytes += json.len() + 1;
            carried.push(json);
        }
        if !carried.is_empty() {
            statements.push(self.insert_json(&carried));
        }
        statements
    }

    fn insert_one(&self, row: &Row) -> Sql {
        let (table, columns) = (quoted(&self.name), list(&self.columns));
        Sql::new(format!("INSERT INTO {table} ({columns}) VALUES ({})", places(row.0.len())), row.0.clone())
    }

    fn insert_json(&self, rows: &[String]) -> Sql {
        let (table, columns) = (quoted(&self.name), list(&self.columns));
        let values: Vec<_> =
            (0..self.columns.len()).map(|index| format!("json_extract(value, '$[{index}]')")).collect();
        let text = format!("INSERT INTO {table} ({columns}) SELECT {} FROM json_each(?1)", values.join(", "));
        Sql::new(text, [format!("[{}]", rows.join(",")).into()])
    }

    /// Deletes some of its rows.
    pub(super) fn empty(&self) -> Sql {
        let (table, key) = (quoted(&self.name), self.key_columns());
        let text =
            format!("DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} ORDER BY {key} LIMIT {SLICE})");
        Sql::new(text, [])
    }

    /// Lets it take no change any more.
    pub(super) fn freeze(&self) -> impl Iterator<Item = Sql> {
        ["INSERT", "UPDATE", "DELETE"].into_iter().map(|change| {
            let trigger = quoted(&format!("frozen_{}_{}", change.to_lowercase(), self.name));
            let table = quoted(&self.name);
            let refuse = format!("BEGIN SELECT RAISE(ABORT, '{NOT_LIVE}'); END");
            Sql::new(format!("CREATE TRIGGER IF NOT EXISTS {trigger} BEFORE {change} ON {table} {refuse}"), [])
        })
    }

    fn key_columns(&self) -> String {
        list(self.key.iter().filter_map(|column| self.columns.get(*column)))
    }
}

/// Those of the tables that have rows.
pub(super) async fn filled<'t>(side: &dyn Side, tables: &'t [Table]) -> Result<Vec<&'t Table>, DatabaseError> {
    let ask = |tables: &[Table]| {
        let exists = |(number, table): (usize, &Table)| {
            format!("EXISTS (SELECT 1 FROM {}) AS filled_{number}", quoted(&table.name))
        };
        let columns: Vec<_> = tables.iter().enumerate().map(exists).collect();
        Sql::new(format!("SELECT {}", columns.join(", ")), [])
    };
    let answers = side.batch(tables.chunks(ASKED_AT_ONCE).map(ask).collect()).await?;
    let answers = answers.iter().flatten().flat_map(|row| &row.0);
    let filled = tables.iter().zip(answers).filter(|(_, answer)| **answer != SqlValue::Integer(0));
    Ok(filled.map(|(table, _)| table).collect())
}

/// What lets all tables of a database take changes again.
pub(super) async fn thaw(side: &dyn Side) -> Result<Vec<Sql>, DatabaseError> {
    let rows = side.batch(vec![Sql::new(FROZEN, [])]).await?;
    let drop = |row: &Row| Ok(Sql::new(format!("DROP TRIGGER IF EXISTS {}", quoted(row.text(0)?)), []));
    rows.iter().flatten().map(drop).collect()
}

/// A hash that stands for all rows before these, and these.
pub(super) fn hash(before: &str, rows: &[Row]) -> String {
    let mut hash = before.to_owned();
    for row in rows {
        let mut hasher = Sha256::new();
        hasher.update(hash.as_bytes());
        for value in &row.0 {
            let text = match value {
                SqlValue::Null => "n".to_owned(),
                SqlValue::Integer(integer) => format!("i{integer}"),
                SqlValue::Text(text) => format!("t{}:{text}", text.len()),
            };
            hasher.update(text.as_bytes());
            hasher.update(b",");
        }
        hash = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    }
    hash
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn list<'n>(names: impl IntoIterator<Item = &'n String>) -> String {
    names.into_iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}

fn places(count: usize) -> String {
    (1..=count).map(|place| format!("?{place}")).collect::<Vec<_>>().join(", ")
}
