//! How batches reach the object's database from the Worker in front, and what comes back: JSON.

use std::{cell::RefCell, collections::HashSet};

use serde_json::{Value, json};

use crate::{
    log::Cost,
    platform::{DatabaseError, Row, Rows, SqlValue, Statement, news::Subject},
};

/// What the database is asked for.
#[derive(Debug)]
pub(super) enum Work {
    /// One transaction.
    Batch(Vec<Statement>),
    /// Several, between which others have their turn.
    Batches(Vec<Vec<Statement>>),
}

impl Work {
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Batch(statements) => json!({ "batch": written(statements) }),
            Self::Batches(batches) => json!({ "batches": batches.iter().map(|one| written(one)).collect::<Vec<_>>() }),
        }
        .to_string()
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let mut work: Value = serde_json::from_str(text).ok()?;
        if let Some(batch) = work.get_mut("batch") {
            return read(batch.take()).map(Self::Batch);
        }
        let Value::Array(batches) = work.get_mut("batches")?.take() else { return None };
        batches.into_iter().map(read).collect::<Option<_>>().map(Self::Batches)
    }
}

/// A statement is its text, its parameters, whom it concerns, and whether it has done nothing where it returns no row: who waits
/// for news of it waits in the object.
fn written(statements: &[Statement]) -> Value {
    let statement = |statement: &Statement| {
        let Statement { sql, parameters, concerns, needs_row } = statement;
        json!([sql, values(parameters), concerns.iter().map(subject).collect::<Vec<_>>(), needs_row])
    };
    Value::Array(statements.iter().map(statement).collect())
}

fn read(batch: Value) -> Option<Vec<Statement>> {
    let batch: Vec<(String, Vec<Value>, Vec<Value>, bool)> = serde_json::from_value(batch).ok()?;
    let statement = |(sql, parameters, concerns, needs_row): (String, Vec<Value>, Vec<Value>, bool)| {
        let parameters = parameters.into_iter().map(sql_value).collect::<Option<Vec<_>>>()?;
        let concerns = concerns.iter().map(read_subject).collect::<Option<Vec<_>>>()?;
        Some(Statement { concerns, needs_row, ..Statement::new(constant(sql), parameters) })
    };
    batch.into_iter().map(statement).collect()
}

fn subject(subject: &Subject) -> Value {
    match subject {
        Subject::Room(id) => json!(["room", id]),
        Subject::User(id) => json!(["user", id]),
        Subject::Presence => json!(["presence"]),
        Subject::Keys => json!(["keys"]),
    }
}

fn read_subject(value: &Value) -> Option<Subject> {
    let id = || value.get(1)?.as_str().map(str::to_owned);
    match value.get(0)?.as_str()? {
        "room" => id().map(Subject::Room),
        "user" => id().map(Subject::User),
        "presence" => Some(Subject::Presence),
        "keys" => Some(Subject::Keys),
        _ => None,
    }
}

fn values(values: &[SqlValue]) -> Value {
    let value = |value: &SqlValue| match value {
        SqlValue::Null => Value::Null,
        SqlValue::Integer(integer) => (*integer).into(),
        SqlValue::Text(text) => text.as_str().into(),
    };
    Value::Array(values.iter().map(value).collect())
}

fn sql_value(value: Value) -> Option<SqlValue> {
    match value {
        Value::Null => Some(SqlValue::Null),
        Value::String(text) => Some(SqlValue::Text(text)),
        Value::Number(number) => number.as_i64().map(SqlValue::Integer),
        _ => None,
    }
}

/// The text of what came of it, and of how many rows it took; whoever sends it counts the calls.
pub(super) fn outcome(outcome: Result<Vec<Rows>, DatabaseError>, cost: Cost) -> String {
    let rows = |rows: &Rows| Value::Array(rows.iter().map(|row| values(&row.0)).collect());
    let cost = [cost.rows_read, cost.rows_written];
    let answer = match outcome {
        Ok(answers) => json!({ "rows": answers.iter().map(rows).collect::<Vec<_>>(), "cost": cost }),
        Err(error) => {
            let (kind, why) = match error {
                DatabaseError::Constraint(why) => ("constraint", why),
                DatabaseError::Refused(why) => ("refused", why),
                DatabaseError::Unavailable(why) => ("unavailable", why),
                DatabaseError::NoRoom => ("unavailable", error.to_string()),
                DatabaseError::Shape(why) => ("shape", why),
            };
            json!({ "error": kind, "why": why, "cost": cost })
        }
    };
    answer.to_string()
}

/// What came of it, and how many rows it took.
pub(super) fn read_outcome(text: &str) -> (Result<Vec<Rows>, DatabaseError>, Cost) {
    let answer: Value = serde_json::from_str(text).unwrap_or_default();
    let [rows_read, rows_written] = [0, 1].map(|index| answer["cost"][index].as_u64().unwrap_or(0));
    (read_answer(answer), Cost { calls: 0, rows_read, rows_written })
}

fn read_answer(mut answer: Value) -> Result<Vec<Rows>, DatabaseError> {
    let broken = || unavailable("the object does not work");
    if let Some(kind) = answer.get("error").and_then(Value::as_str) {
        let why = answer.get("why").and_then(Value::as_str).unwrap_or_default().to_owned();
        return Err(match kind {
            "constraint" => DatabaseError::Constraint(why),
            "refused" => DatabaseError::Refused(why),
            "shape" => DatabaseError::Shape(why),
            _ => DatabaseError::Unavailable(why),
        });
    }
    let answers: Vec<Vec<Vec<Value>>> =
        answer.get_mut("rows").and_then(|rows| serde_json::from_value(rows.take()).ok()).ok_or_else(broken)?;
    let row = |row: Vec<Value>| row.into_iter().map(sql_value).collect::<Option<Vec<_>>>().map(Row);
    let rows = |rows: Vec<Vec<Value>>| rows.into_iter().map(row).collect::<Option<Rows>>();
    answers.into_iter().map(rows).collect::<Option<_>>().ok_or_else(broken)
}

/// The database cannot be asked, for this reason.
pub(super) fn unavailable(why: &str) -> DatabaseError {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    fn statements() -> Vec<Statement> {
        let subjects =
            [Subject::Room("!r".to_owned()), Subject::User("@u".to_owned()), Subject::Presence, Subject::Keys];
        vec![
            Statement::new("first", [SqlValue::Null, 5.into(), "text".into()]).concerning(subjects),
            Statement::new("second", []).concerning_if_any([Subject::Keys]),
        ]
    }

    fn seen(statements: &[Statement]) -> String {
        format!("{statements:?}")
    }

    #[test]
    fn statements_arrive_with_all_that_is_said_of_them() {
        let Some(Work::Batch(arrived)) = Work::read(&Work::Batch(statements()).to_text()) else { panic!() };
        assert_eq!(seen(&arrived), seen(&statements()));
        let batches = vec![statements(), Vec::new(), statements()];
        let Some(Work::Batches(arrived)) = Work::read(&Work::Batches(batches.clone()).to_text()) else { panic!() };
        assert_eq!(format!("{arrived:?}"), format!("{batches:?}"));
        for malformed in
            ["", "{}", "[]", r#"{"batch":[["sql",[true],[],false]]}"#, r#"{"batches":[[["sql",[],[["x"]],false]]]}"#]
        {
            assert!(Work::read(malformed).is_none(), "{malformed}");
        }
    }

    #[test]
    fn rows_and_errors_come_back_as_they_were() {
        let rows = vec![vec![Row(vec![SqlValue::Null, (-1).into()]), Row(vec!["x".into()])], Vec::new()];
        let cost = Cost { calls: 0, rows_read: 7, rows_written: 1 };
        assert_eq!(read_outcome(&outcome(Ok(rows.clone()), cost)), (Ok(rows), cost));
        for error in
            [DatabaseError::Constraint, DatabaseError::Refused, DatabaseError::Unavailable, DatabaseError::Shape]
        {
            let error = error("why".to_owned());
            assert_eq!(read_outcome(&outcome(Err(error.clone()), cost)), (Err(error), cost));
        }
        for malformed in ["junk", r#"{"rows":[[[true]]]}"#, r#"{"cost":[1]}"#] {
            assert!(matches!(read_outcome(malformed).0, Err(DatabaseError::Unavailable(_))), "{malformed}");
        }
    }
}
