//! The database on one side of a move, which takes statements that are made for any table. Nothing that a remote server sent becomes part
//! of their text: the names in it are those of the schema.

use serde_json::Value;

use crate::platform::{DatabaseError, LocalBoxFuture, Row, Rows, SqlValue};

/// One statement with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::edge) struct Sql {
    pub(in crate::edge) text: String,
    pub(in crate::edge) parameters: Vec<SqlValue>,
}

impl Sql {
    pub(super) fn new(text: impl Into<String>, parameters: impl Into<Vec<SqlValue>>) -> Self {
        Self { text: text.into(), parameters: parameters.into() }
    }
}

/// One of the two databases.
pub(in crate::edge) trait Side {
    /// Runs statements as [`Database::batch`](crate::platform::Database::batch) does.
    fn batch(&self, statements: Vec<Sql>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>>;

    /// Applies the migrations that the database lacks, where that is for the server to do.
    fn migrate(&self) -> LocalBoxFuture<'_, Result<(), DatabaseError>>;
}

/// Statements as JSON, as they reach the object.
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
pub(in crate::edge) fn write_statements(statements: &[Sql]) -> Value {
    statements.iter().map(|sql| Value::from(vec![Value::from(&*sql.text), write_values(&sql.parameters)])).collect()
}

/// Statements out of their JSON; `None` where it is anything else.
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
pub(in crate::edge) fn read_statements(json: &Value) -> Option<Vec<Sql>> {
    let read = |sql: &Value| Some(Sql::new(sql.get(0)?.as_str()?, read_values(sql.get(1)?)?));
    json.as_array()?.iter().map(read).collect()
}

/// Rows as JSON, as they come back.
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
pub(in crate::edge) fn write_rows(results: &[Rows]) -> Value {
    results.iter().map(|rows| rows.iter().map(|row| write_values(&row.0)).collect::<Value>()).collect()
}

/// Rows out of their JSON; `None` where it is anything else.
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
pub(in crate::edge) fn read_rows(json: &Value) -> Option<Vec<Rows>> {
    let rows = |rows: &Value| rows.as_array()?.iter().map(|row| read_values(row).map(Row)).collect();
    json.as_array()?.iter().map(rows).collect()
}

/// Values as a JSON array.
pub(super) fn write_values(values: &[SqlValue]) -> Value {
    let write = |value: &SqlValue| match value {
        SqlValue::Null => Value::Null,
        SqlValue::Integer(integer) => (*integer).into(),
        SqlValue::Text(text) => text.as_str().into(),
    };
    values.iter().map(write).collect()
}

/// Values out of a JSON array; `None` where it is anything else.
pub(super) fn read_values(json: &Value) -> Option<Vec<SqlValue>> {
    let read = |value: &Value| match value {
        Value::Null => Some(SqlValue::Null),
        Value::String(text) => Some(SqlValue::Text(text.clone())),
        other => other.as_i64().map(SqlValue::Integer),
    };
    json.as_array()?.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_and_rows_survive_the_way() {
        let values = [SqlValue::Null, (-(1_i64 << 53) + 1).into(), "\"\0\u{1f600}\n".into(), "1".into(), "".into()];
        let statements = [Sql::new("SELECT ?1", values.clone()), Sql::new("SELECT 1", [])];
        assert_eq!(read_statements(&write_statements(&statements)), Some(statements.to_vec()));
        let rows = [vec![Row(values.to_vec()), Row(vec![])], vec![]];
        assert_eq!(read_rows(&write_rows(&rows)), Some(rows.to_vec()));
        assert_eq!(read_values(&serde_json::json!([1.5])), None);
    }
}
