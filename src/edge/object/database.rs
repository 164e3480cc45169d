//! [`Database`] over the SQL storage of a Durable Object. The database stands beside the object, and a batch is done when the
//! call returns: nothing else of the object runs meanwhile.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use worker::{
    js_sys::{Array, JsString},
    wasm_bindgen::{self, JsCast, JsValue, prelude::wasm_bindgen},
};

use crate::{
    edge::{
        costs::Costs,
        object::reads::only_reads,
        runtime::WorkerClock,
        sql_error,
        sql_values::{column, parameters, report},
        stream::describe,
    },
    log::Cost,
    platform::{
        Database, DatabaseError, LocalBoxFuture, Row, Rows, SqlValue, Statement,
        turns::{one_by_one, turn_after},
    },
};

// The methods of the storage that are used. The `worker` crate has no `transactionSync`.
#[wasm_bindgen]
extern "C" {
    /// `ctx.storage` of the object.
    #[derive(Clone)]
    pub(super) type Storage;
    #[wasm_bindgen(method, structural, getter)]
    fn sql(this: &Storage) -> Sql;
    #[wasm_bindgen(method, structural, catch, js_name = transactionSync)]
    fn transaction_sync(this: &Storage, work: &mut dyn FnMut() -> Result<JsValue, JsValue>)
    -> Result<JsValue, JsValue>;

    type Sql;
    #[wasm_bindgen(method, structural, catch, variadic)]
    fn exec(this: &Sql, sql: &JsString, values: Array) -> Result<Cursor, JsValue>;

    type Cursor;
    #[wasm_bindgen(method, structural, catch)]
    fn raw(this: &Cursor) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, structural, getter, js_name = rowsRead)]
    fn rows_read(this: &Cursor) -> f64;
    #[wasm_bindgen(method, structural, getter, js_name = rowsWritten)]
    fn rows_written(this: &Cursor) -> f64;

    // Unlike js_sys's, this one catches: a statement may fail while its rows are read.
    #[wasm_bindgen(catch, js_namespace = Array, js_name = from)]
    fn array_from(iterable: &JsValue) -> Result<Array, JsValue>;
}

thread_local! {
    /// What is known of each SQL text, by where it lies.
    static TEXTS: RefCell<HashMap<(*const u8, usize), Text>> = RefCell::default();
}

struct Text {
    /// As a JavaScript string: the runtime finds a statement that it has compiled already by the identity of that.
    string: JsString,
    only_reads: bool,
}

/// The database of the object.
pub(super) struct ObjectDatabase {
    storage: Storage,
    sql: Sql,
    costs: Option<Rc<Costs>>,
}

impl ObjectDatabase {
    /// The database in this storage. What its calls cost is added to `costs`.
    pub(super) fn new(storage: Storage, costs: Option<Rc<Costs>>) -> Self {
        let sql = storage.sql();
        Self { storage, sql, costs }
    }

    /// Runs `work` as one transaction, which its failure rolls back.
    pub(super) fn atomically<T>(&self, work: impl FnOnce() -> Result<T, DatabaseError>) -> Result<T, DatabaseError> {
        let (mut work, mut outcome) = (Some(work), None);
        let ended = self.storage.transaction_sync(&mut || {
            let done = work.take().map(|work| work());
            let failed = matches!(done, Some(Err(_)) | None);
            outcome = done;
            // What it is does not matter: it is thrown, so that the runtime rolls back.
            if failed { Err(JsValue::from_str("rolled back")) } else { Ok(JsValue::UNDEFINED) }
        });
        match (ended, outcome) {
            (_, Some(Err(error))) => Err(error),
            (Ok(_), Some(Ok(value))) => Ok(value),
            (Err(error), _) => Err(failure(&error)),
            (Ok(_), None) => Err(DatabaseError::Unavailable("the transaction was not run".to_owned())),
        }
    }

    /// Runs a text of several statements without parameters.
    pub(super) fn script(&self, text: &str) -> Result<(), DatabaseError> {
        self.sql.exec(&text.into(), Array::new()).map(drop).map_err(|error| failure(&error))
    }

    /// Runs one statement.
    pub(super) fn run(&self, statement: &Statement) -> Result<Rows, DatabaseError> {
        self.exec(&text(statement.sql, |text| text.string.clone()), &statement.parameters)
    }

    /// Runs one statement, whose text is the caller's to keep.
    pub(super) fn exec(&self, sql: &JsString, values: &[SqlValue]) -> Result<Rows, DatabaseError> {
        let cursor = self.sql.exec(sql, parameters(values)?).map_err(|error| failure(&error))?;
        let rows = cursor.raw().and_then(|rows| array_from(&rows)).map_err(|error| failure(&error))?;
        if let Some(costs) = &self.costs {
            costs.add_rows(cursor.rows_read(), cursor.rows_written());
        }
        let row =
            |row: JsValue| row.unchecked_into::<Array>().iter().map(|value| column(&value)).collect::<Result<_, _>>();
        rows.iter().map(|values| row(values).map(Row)).collect()
    }

    fn run_all(&self, statements: &[Statement]) -> Result<Vec<Rows>, DatabaseError> {
        if let Some(costs) = &self.costs {
            costs.add_call();
        }
        match statements {
            [] => Ok(Vec::new()),
            // One statement is atomic by itself.
            [only] => Ok(vec![self.run(only)?]),
            // So are those of which none changes anything, as nothing comes between them; a transaction is for the runtime a write,
            // for which all answers have to wait.
            all if all.iter().all(|statement| text(statement.sql, |text| text.only_reads)) => {
                all.iter().map(|statement| self.run(statement)).collect()
            }
            all => self.atomically(|| all.iter().map(|statement| self.run(statement)).collect()),
        }
    }
}

impl Database for ObjectDatabase {
    fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        let outcome = self.run_all(&statements);
        if let Err(error) = &outcome {
            report(error, statements.first().map_or("", |statement| statement.sql));
        }
        Box::pin(async move {
            if let Ok(answers) = &outcome {
                turn_after(&WorkerClock, answers).await;
            }
            outcome
        })
    }

    fn batches(&self, batches: Vec<Vec<Statement>>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        Box::pin(one_by_one(self, &WorkerClock, batches))
    }

    fn cost(&self) -> Cost {
        self.costs.as_ref().map_or_else(Cost::default, |costs| costs.cost())
    }
}

fn text<T>(sql: &'static str, of: impl FnOnce(&Text) -> T) -> T {
    let new = || Text { string: sql.into(), only_reads: only_reads(sql) };
    TEXTS.with_borrow_mut(|texts| of(texts.entry((sql.as_ptr(), sql.len())).or_insert_with(new)))
}

fn failure(error: &JsValue) -> DatabaseError {
    sql_error::kind(describe(error))
}
