//! The object's database as the Worker in front of it uses it, for what the Worker does itself: bytes of media never reach the
//! object, and what is known of them never leaves it but as rows.
//!
//! A batch is one request to the object. It brings SQL, so it must not come from outside: the front forwards to the object what
//! is of a route, and this path is of none.

use std::{cell::RefCell, collections::HashSet};

use serde_json::{Value, json};
use worker::{
    js_sys,
    wasm_bindgen::{JsCast, JsValue},
    wasm_bindgen_futures::JsFuture,
    web_sys,
};

use super::stub::Stub;
use crate::{
    edge::stream::describe,
    platform::{Database, DatabaseError, LocalBoxFuture, Row, Rows, SqlValue, Statement},
};

/// The path by which batches reach the object.
pub(super) const BATCH: &str = "/batch";

/// The database of the object behind this stub.
pub(super) struct DistantDatabase(pub(super) Stub);

impl Database for DistantDatabase {
    fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        Box::pin(async move {
            let text = self.ask(&written(&statements)).await.map_err(|error| unavailable(&describe(&error)))?;
            read_answer(&text)
        })
    }
}

impl DistantDatabase {
    async fn ask(&self, batch: &str) -> Result<String, JsValue> {
        let init = web_sys::RequestInit::new();
        init.set_method("POST");
        init.set_body(&batch.into());
        let request = web_sys::Request::new_with_str_and_init(&format!("https://object{BATCH}"), &init)?;
        let response: web_sys::Response = JsFuture::from(self.0.fetch(&request)?).await?.unchecked_into();
        let text = JsFuture::from(response.text()?).await?;
        text.as_string().ok_or_else(|| js_sys::Error::new("the object answers with no text").into())
    }
}

/// Runs the batch that a request brings, and answers with its outcome as text.
pub(super) async fn run(database: &dyn Database, batch: &str) -> String {
    let outcome = match read(batch) {
        Some(statements) => database.batch(statements).await,
        None => Err(DatabaseError::Refused("the batch is malformed".to_owned())),
    };
    let answer = match outcome {
        Ok(answers) => json!({ "rows": answers.iter().map(written_rows).collect::<Vec<_>>() }),
        Err(error) => {
            let (kind, why) = match error {
                DatabaseError::Constraint(why) => ("constraint", why),
                DatabaseError::Refused(why) => ("refused", why),
                DatabaseError::Unavailable(why) => ("unavailable", why),
                DatabaseError::Shape(why) => ("shape", why),
            };
            json!({ "error": kind, "why": why })
        }
    };
    answer.to_string()
}

fn written(statements: &[Statement]) -> String {
    let statement = |statement: &Statement| json!([statement.sql, values(&statement.parameters)]);
    Value::Array(statements.iter().map(statement).collect()).to_string()
}

fn written_rows(rows: &Rows) -> Value {
    Value::Array(rows.iter().map(|row| values(&row.0)).collect())
}

fn values(values: &[SqlValue]) -> Value {
    let value = |value: &SqlValue| match value {
        SqlValue::Null => Value::Null,
        SqlValue::Integer(integer) => (*integer).into(),
        SqlValue::Text(text) => text.as_str().into(),
    };
    Value::Array(values.iter().map(value).collect())
}

fn read(batch: &str) -> Option<Vec<Statement>> {
    let batch: Vec<(String, Vec<Value>)> = serde_json::from_str(batch).ok()?;
    let statement = |(sql, parameters): (String, Vec<Value>)| {
        Some(Statement::new(constant(sql), parameters.into_iter().map(sql_value).collect::<Option<Vec<_>>>()?))
    };
    batch.into_iter().map(statement).collect()
}

fn sql_value(value: Value) -> Option<SqlValue> {
    match value {
        Value::Null => Some(SqlValue::Null),
        Value::String(text) => Some(SqlValue::Text(text)),
        Value::Number(number) => number.as_i64().map(SqlValue::Integer),
        _ => None,
    }
}

fn read_answer(text: &str) -> Result<Vec<Rows>, DatabaseError> {
    let mut answer: Value = serde_json::from_str(text).map_err(|_| unavailable("the object does not work"))?;
    if let Some(kind) = answer.get("error").and_then(Value::as_str) {
        let why = answer.get("why").and_then(Value::as_str).unwrap_or_default().to_owned();
        return Err(match kind {
            "constraint" => DatabaseError::Constraint(why),
            "refused" => DatabaseError::Refused(why),
            "shape" => DatabaseError::Shape(why),
            _ => DatabaseError::Unavailable(why),
        });
    }
    let answers: Vec<Vec<Vec<Value>>> = answer
        .get_mut("rows")
        .and_then(|rows| serde_json::from_value(rows.take()).ok())
        .ok_or_else(|| unavailable("the object does not work"))?;
    let row = |row: Vec<Value>| row.into_iter().map(sql_value).collect::<Option<Vec<_>>>().map(Row);
    let rows = |rows: Vec<Vec<Value>>| rows.into_iter().map(row).collect::<Option<Rows>>();
    answers.into_iter().map(rows).collect::<Option<_>>().ok_or_else(|| unavailable("the object does not work"))
}

fn unavailable(why: &str) -> DatabaseError {
    DatabaseError::Unavailable(why.to_owned())
}

thread_local! {
    /// The texts of the statements that have come. The Worker and the object are the same program, so these are its constants, as
    /// many as it has.
    static CONSTANTS: RefCell<HashSet<&'static str>> = RefCell::default();
}

fn constant(sql: String) -> &'static str {
    CONSTANTS.with_borrow_mut(|constants| match constants.get(sql.as_str()) {
        Some(constant) => *constant,
        None => {
            let constant: &'static str = Box::leak(sql.into_boxed_str());
            constants.insert(constant);
            constant
        }
    })
}
