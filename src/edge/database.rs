//! [`Database`] over D1. A batch of statements is one call and one transaction.

use std::cell::Cell;

use worker::{
    Env, console_error,
    js_sys::{self, Array, Promise, Reflect},
    wasm_bindgen::{self, JsCast, JsValue, prelude::wasm_bindgen},
    wasm_bindgen_futures::JsFuture,
};

use super::{d1_error, stream::describe};
use crate::platform::{Database, DatabaseError, LocalBoxFuture, Row, Rows, SqlValue, Statement};

/// D1 takes at most 2 MB in a parameter. The local runtime takes more; here both refuse it alike.
const MAX_PARAMETER_BYTES: usize = 2_000_000;
/// D1 takes at most 100 parameters in a statement.
const MAX_PARAMETERS: usize = 100;
/// Numbers travel as doubles, in both directions.
const MAX_INTEGER: i64 = (1 << 53) - 1;

// The few methods of the binding that are used, with rows left as JavaScript values: the `worker` crate
// deserialises each row by its column names, which costs several times as much.
#[wasm_bindgen]
extern "C" {
    type D1Database;
    #[wasm_bindgen(method, structural, catch)]
    fn prepare(this: &D1Database, sql: &str) -> Result<D1Statement, JsValue>;
    #[wasm_bindgen(method, structural, catch)]
    fn batch(this: &D1Database, statements: Array) -> Result<Promise, JsValue>;

    type D1Statement;
    #[wasm_bindgen(method, structural, catch, variadic)]
    fn bind(this: &D1Statement, values: Array) -> Result<D1Statement, JsValue>;

    type D1Result;
    #[wasm_bindgen(method, structural, getter)]
    fn results(this: &D1Result) -> Option<Array>;
    #[wasm_bindgen(method, structural, getter)]
    fn meta(this: &D1Result) -> JsValue;
}

/// One D1 database, for the duration of one event.
pub(super) struct D1 {
    database: D1Database,
    count: bool,
    calls: Cell<u32>,
    rows_read: Cell<f64>,
    rows_written: Cell<f64>,
}

impl D1 {
    /// The database that is bound as `name`; the error is a sentence for the log. With `count` it adds up what the
    /// platform charges for.
    pub(super) fn binding(env: &Env, name: &str, count: bool) -> Result<Self, String> {
        let database = Reflect::get(env, &name.into()).unwrap_or(JsValue::UNDEFINED);
        if !database.is_object() {
            return Err(format!("There is no D1 database bound as {name}; wrangler.toml must bind one."));
        }
        Ok(Self {
            database: database.unchecked_into(),
            count,
            calls: Cell::new(0),
            rows_read: Cell::new(0.0),
            rows_written: Cell::new(0.0),
        })
    }

    /// One line: what the event that `label` names has cost so far.
    pub(super) fn costs(&self, label: &str) -> String {
        let (calls, read, written) = (self.calls.get(), self.rows_read.get(), self.rows_written.get());
        format!("cost d1_calls={calls} rows_read={read} rows_written={written} {label}")
    }

    async fn run(&self, statements: Vec<Statement>) -> Result<Vec<Rows>, DatabaseError> {
        let count = statements.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let prepared = statements.into_iter().map(|statement| self.prepare(statement)).collect::<Result<Array, _>>()?;
        self.calls.set(self.calls.get() + 1);
        let results = self.database.batch(prepared).map_err(|error| d1_error::kind(describe(&error)))?;
        let results = JsFuture::from(results).await.map_err(|error| d1_error::kind(describe(&error)))?;
        let results: Array = results.dyn_into().map_err(|_| shape("the answer is not a list"))?;
        if results.length() as usize != count {
            return Err(shape("the answer has another number of results than there were statements"));
        }
        results.iter().map(|result| self.rows(&result.unchecked_into())).collect()
    }

    fn prepare(&self, statement: Statement) -> Result<D1Statement, DatabaseError> {
        if statement.parameters.len() > MAX_PARAMETERS {
            return Err(DatabaseError::Refused(format!("D1 takes at most {MAX_PARAMETERS} parameters")));
        }
        let values = statement.parameters.iter().map(parameter).collect::<Result<Array, _>>()?;
        let prepared = self.database.prepare(statement.sql).map_err(|error| d1_error::kind(describe(&error)))?;
        prepared.bind(values).map_err(|error| d1_error::kind(describe(&error)))
    }

    fn rows(&self, result: &D1Result) -> Result<Rows, DatabaseError> {
        if self.count {
            let meta = result.meta();
            let number = |name: &str| Reflect::get(&meta, &name.into()).ok().and_then(|v| v.as_f64()).unwrap_or(0.0);
            self.rows_read.set(self.rows_read.get() + number("rows_read"));
            self.rows_written.set(self.rows_written.get() + number("rows_written"));
        }
        let Some(rows) = result.results() else { return Ok(Rows::new()) };
        // D1 builds each row in the order of the statement's columns, which must have distinct names for that.
        let row = |row: JsValue| {
            js_sys::Object::values(row.unchecked_ref()).iter().map(|value| column(&value)).collect::<Result<_, _>>()
        };
        rows.iter().map(|values| row(values).map(Row)).collect()
    }
}

impl Database for D1 {
    fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        Box::pin(async move {
            let first = statements.first().map_or("", |statement| statement.sql);
            let outcome = self.run(statements).await;
            if let Err(error) = &outcome
                && !matches!(error, DatabaseError::Constraint(_))
            {
                // The answer to the client says nothing of it. A lost race is no news.
                console_error!("{error}, in a batch that begins with: {first}");
            }
            outcome
        })
    }
}

fn parameter(value: &SqlValue) -> Result<JsValue, DatabaseError> {
    match value {
        SqlValue::Null => Ok(JsValue::NULL),
        SqlValue::Integer(integer) if integer.unsigned_abs() <= MAX_INTEGER.unsigned_abs() => {
            Ok(JsValue::from_f64(*integer as f64))
        }
        SqlValue::Integer(_) => Err(DatabaseError::Refused("D1 takes no integers beyond 2^53".to_owned())),
        SqlValue::Text(text) if text.len() <= MAX_PARAMETER_BYTES => Ok(JsValue::from_str(text)),
        SqlValue::Text(_) => Err(DatabaseError::Refused("D1 takes at most 2 MB in a parameter".to_owned())),
    }
}

fn column(value: &JsValue) -> Result<SqlValue, DatabaseError> {
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

fn shape(what: &str) -> DatabaseError {
    DatabaseError::Shape(what.to_owned())
}
