//! SQL's values as the runtime's JavaScript values, and back: alike for both engines.

use worker::{js_sys::Array, wasm_bindgen::JsValue};

use super::runtime::Console;
use crate::{
    log::LogRecord,
    platform::{DatabaseError, Log, SqlValue},
};

/// Both engines take at most 2 MB in a parameter. The local runtime takes more; here all refuse it alike.
const MAX_PARAMETER_BYTES: usize = 2_000_000;
/// Both take at most 100 parameters in a statement.
const MAX_PARAMETERS: usize = 100;
/// Numbers travel as doubles, in both directions.
const MAX_INTEGER: i64 = (1 << 53) - 1;

/// The values to bind.
pub(super) fn parameters(values: &[SqlValue]) -> Result<Array, DatabaseError> {
    if values.len() > MAX_PARAMETERS {
        return Err(refused("at most 100 parameters are taken"));
    }
    values.iter().map(parameter).collect()
}

fn parameter(value: &SqlValue) -> Result<JsValue, DatabaseError> {
    match value {
        SqlValue::Null => Ok(JsValue::NULL),
        SqlValue::Integer(integer) if integer.unsigned_abs() <= MAX_INTEGER.unsigned_abs() => {
            Ok(JsValue::from_f64(*integer as f64))
        }
        SqlValue::Integer(_) => Err(refused("no integers beyond 2^53 are taken")),
        SqlValue::Text(text) if text.len() <= MAX_PARAMETER_BYTES => Ok(JsValue::from_str(text)),
        SqlValue::Text(_) => Err(refused("at most 2 MB are taken in a parameter")),
    }
}

/// One value of a row.
pub(super) fn column(value: &JsValue) -> Result<SqlValue, DatabaseError> {
    if value.is_null() {
        return Ok(SqlValue::Null);
    }
    if let Some(text) = value.as_string() {
        return Ok(SqlValue::Text(text));
    }
    match value.as_f64() {
        Some(number) if number.fract() == 0.0 && number.abs() <= MAX_INTEGER as f64 => {
            Ok(SqlValue::Integer(number as i64))
        }
        _ => Err(shape("a column is neither text nor an integer")),
    }
}

/// An answer that is not what the schema promises.
pub(super) fn shape(what: &str) -> DatabaseError {
    DatabaseError::Shape(what.to_owned())
}

fn refused(why: &str) -> DatabaseError {
    DatabaseError::Refused(why.to_owned())
}

/// Tells the operator of a batch that failed: the answer to the client says nothing of it. A lost race is no news.
pub(super) fn report(error: &DatabaseError, first_sql: &'static str) {
    if !matches!(error, DatabaseError::Constraint(_)) {
        Console.write(LogRecord::error("the database fails").statement(first_sql).because(error));
    }
}
