//! [`Database`] over D1. A batch of statements is one call and one transaction.

use std::{cell::Cell, rc::Rc};

use futures_util::future;
use worker::{
    Env,
    js_sys::{self, Array, Promise, Reflect},
    wasm_bindgen::{self, JsCast, JsValue, prelude::wasm_bindgen},
    wasm_bindgen_futures::JsFuture,
};

use super::{
    costs::Costs,
    events::Unusable,
    moving::{
        marker::GUARD,
        side::{Side, Sql},
    },
    sql_error,
    sql_values::{column, parameters, report, shape},
    stream::describe,
};
use crate::{
    log::{Cost, LogRecord},
    platform::{Database, DatabaseError, LocalBoxFuture, Row, Rows, SqlValue, Statement},
};

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

thread_local! {
    /// Whether this isolate has found the database live. A move that begins later freezes it, so that nothing can be written to it.
    static IS_LIVE: Cell<bool> = const { Cell::new(false) };
}

/// One D1 database, for the duration of one event.
pub(super) struct D1 {
    database: D1Database,
    costs: Option<Rc<Costs>>,
}

impl D1 {
    /// The database that is bound as `DB`; the error is for the log. What its calls cost is added to `costs`.
    pub(super) fn binding(env: &Env, costs: Option<Rc<Costs>>) -> Result<Self, Unusable> {
        let database = Reflect::get(env, &"DB".into()).unwrap_or(JsValue::UNDEFINED);
        if !database.is_object() {
            let what = "there is no D1 database bound as DB; wrangler.toml must bind one";
            return Err(Box::new(LogRecord::error(what)));
        }
        Ok(Self { database: database.unchecked_into(), costs })
    }

    async fn run(&self, statements: Vec<Statement>) -> Result<Vec<Rows>, DatabaseError> {
        let count = statements.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        // The first batch of an isolate fails as a whole where the data is elsewhere.
        let is_guarded = !IS_LIVE.get();
        let guard = is_guarded.then(|| self.prepare(GUARD, &[]));
        let prepared = statements.iter().map(|statement| self.prepare(statement.sql, &statement.parameters));
        let prepared = guard.into_iter().chain(prepared).collect::<Result<Array, _>>()?;
        if let Some(costs) = &self.costs {
            costs.add_call();
        }
        let mut results = self.send(prepared).await?;
        if is_guarded {
            IS_LIVE.set(true);
            results = results.slice(1, results.length());
        }
        if results.length() as usize != count {
            return Err(shape("the answer has another number of results than there were statements"));
        }
        results.iter().map(|result| self.rows(&result.unchecked_into())).collect()
    }

    async fn send(&self, prepared: Array) -> Result<Array, DatabaseError> {
        let results = self.database.batch(prepared).map_err(|error| sql_error::kind(describe(&error)))?;
        let results = JsFuture::from(results).await.map_err(|error| sql_error::kind(describe(&error)))?;
        results.dyn_into().map_err(|_| shape("the answer is not a list"))
    }

    fn prepare(&self, sql: &str, values: &[SqlValue]) -> Result<D1Statement, DatabaseError> {
        let values = parameters(values)?;
        let prepared = self.database.prepare(sql).map_err(|error| sql_error::kind(describe(&error)))?;
        prepared.bind(values).map_err(|error| sql_error::kind(describe(&error)))
    }

    fn rows(&self, result: &D1Result) -> Result<Rows, DatabaseError> {
        if let Some(costs) = &self.costs {
            let meta = result.meta();
            let number = |name: &str| Reflect::get(&meta, &name.into()).ok().and_then(|v| v.as_f64()).unwrap_or(0.0);
            costs.add_rows(number("rows_read"), number("rows_written"));
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
            if let Err(error) = &outcome {
                report(error, first);
            }
            outcome
        })
    }

    fn cost(&self) -> Cost {
        self.costs.as_ref().map_or_else(Cost::default, |costs| costs.cost())
    }
}

/// For a move, which makes its statements itself, and uses a database that is not live.
impl Side for D1 {
    fn batch(&self, statements: Vec<Sql>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        Box::pin(async move {
            if statements.is_empty() {
                return Ok(Vec::new());
            }
            let prepared = statements.iter().map(|sql| self.prepare(&sql.text, &sql.parameters));
            let results = self.send(prepared.collect::<Result<Array, _>>()?).await?;
            results.iter().map(|result| self.rows(&result.unchecked_into())).collect()
        })
    }

    /// They are wrangler's to apply.
    fn migrate(&self) -> LocalBoxFuture<'_, Result<(), DatabaseError>> {
        Box::pin(future::ready(Ok(())))
    }
}
