#![allow(clippy::unwrap_used, clippy::panic)]

use std::{cell::RefCell, fs};

use futures_util::{FutureExt, future};
use rusqlite::{Connection, params_from_iter, types::ValueRef};

use super::*;
use crate::{
    edge::moving::marker::GUARD,
    platform::{LocalBoxFuture, SqlValue},
};

/// A database; the server's to migrate, or not.
struct Db(RefCell<Connection>, bool);

impl Db {
    fn new(migrates: bool) -> Self {
        let db = Self(RefCell::new(Connection::open_in_memory().unwrap()), migrates);
        if !migrates {
            db.apply();
        }
        db
    }

    fn apply(&self) {
        let connection = self.0.borrow();
        connection
            .execute_batch("CREATE TABLE IF NOT EXISTS d1_migrations (id INTEGER PRIMARY KEY, name TEXT)")
            .unwrap();
        for (name, text) in migrations() {
            let known: i64 = connection
                .query_row("SELECT count(*) FROM d1_migrations WHERE name = ?1", [&name], |row| row.get(0))
                .unwrap();
            if known == 0 {
                connection.execute_batch(&text).unwrap();
                connection.execute("INSERT INTO d1_migrations (name) VALUES (?1)", [&name]).unwrap();
            }
        }
    }

    fn run(&self, sql: &str) -> Result<usize, rusqlite::Error> {
        self.0.borrow().execute(sql, [])
    }

    fn dump(&self) -> Vec<(Table, Vec<Row>)> {
        let tables = wait(Table::all(self)).unwrap();
        let rows = |table: &Table| {
            let all = Sql::new(format!("SELECT * FROM \"{}\"", table.name), []);
            let mut rows = wait(self.batch(vec![all])).unwrap().remove(0);
            rows.sort_by_key(|row| format!("{row:?}"));
            rows
        };
        tables.into_iter().map(|table| (table.clone(), rows(&table))).collect()
    }

    fn state(&self) -> Option<State> {
        wait(Marker::read(self)).unwrap().map(|marker| marker.state)
    }
}

impl Side for Db {
    fn batch(&self, statements: Vec<Sql>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        let mut connection = self.0.borrow_mut();
        let outcome = (|| {
            let transaction = connection.transaction()?;
            let mut results = Vec::new();
            for sql in &statements {
                let mut prepared = transaction.prepare(&sql.text)?;
                let width = prepared.column_count();
                let values = sql.parameters.iter().map(|value| match value {
                    SqlValue::Null => rusqlite::types::Value::Null,
                    SqlValue::Integer(integer) => (*integer).into(),
                    SqlValue::Text(text) => text.clone().into(),
                });
                let mut rows = prepared.query(params_from_iter(values))?;
                let mut read = Vec::new();
                while let Some(row) = rows.next()? {
                    let value = |index: usize| match row.get_ref(index).unwrap() {
                        ValueRef::Null => SqlValue::Null,
                        ValueRef::Integer(integer) => integer.into(),
                        ValueRef::Text(text) => std::str::from_utf8(text).unwrap().into(),
                        _ => unreachable!("no table has such a column"),
                    };
                    read.push(Row((0..width).map(value).collect()));
                }
                results.push(read);
            }
            transaction.commit()?;
            Ok::<_, rusqlite::Error>(results)
        })();
        Box::pin(future::ready(outcome.map_err(|error| DatabaseError::Unavailable(error.to_string()))))
    }

    fn migrate(&self) -> LocalBoxFuture<'_, Result<(), DatabaseError>> {
        if self.1 {
            self.apply();
        }
        Box::pin(future::ready(Ok(())))
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().unwrap()
}

fn migrations() -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap().collect();
    files.sort_by_key(|file| file.as_ref().unwrap().file_name());
    let read = |file: std::io::Result<fs::DirEntry>| {
        let file = file.unwrap();
        (file.file_name().into_string().unwrap(), fs::read_to_string(file.path()).unwrap())
    };
    files.into_iter().map(read).collect()
}

/// A server with something in many tables: rows in the order of other columns than the key, long ones, one with a zero.
fn server() -> Db {
    let db = Db::new(false);
    let long = "x".repeat(200_000);
    for (table, _) in db.dump() {
        let columns = wait(db.batch(vec![Sql::new(format!("PRAGMA table_info('{}')", table.name), [])])).unwrap();
        let values: Vec<_> = columns[0]
            .iter()
            .map(|column| match (column.text(2).unwrap(), column.text(1).unwrap()) {
                ("INTEGER", _) => "i".to_owned(),
                (_, "json") => format!("i || ' \"\u{e9}{long}'"),
                (_, name) => format!("'{name}' || (7919 * i % 3001)"),
            })
            .collect();
        let rows = if table.name == "rooms" || table.name == "users" { 2_500 } else { 3 };
        let fill = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
             INSERT OR IGNORE INTO \"{}\" SELECT {} FROM n",
            table.name,
            values.join(", ")
        );
        db.run(&fill).unwrap();
    }
    db.run("UPDATE users SET displayname = 'a' || char(0) || 'b' WHERE user_id LIKE '%1'").unwrap();
    db
}

fn moving<'m>(source: &'m Db, target: &'m Db, from: Engine, names: &'m [(String, String)]) -> Move<'m> {
    let migrations = names.iter().map(|(name, _)| &**name).collect();
    Move { from, configured: from, migrations, source, target }
}

#[test]
fn all_tables_get_to_the_other_side_and_back() {
    let (d1, object, names) = (server(), Db::new(true), migrations());
    let before = d1.dump();
    assert!(before.len() > 50 && before.iter().all(|(_, rows)| !rows.is_empty()), "every table has rows");
    let there = moving(&d1, &object, Engine::D1, &names);
    let mut steps = Vec::new();
    while !steps.last().is_some_and(Progress::is_done) {
        // At any time at most one of them takes writes and answers requests.
        let answers = [&d1, &object].into_iter().filter(|db| db.run(GUARD).is_ok()).count();
        assert!(answers <= if steps.is_empty() { 2 } else { 1 }, "{steps:?}");
        steps.push(wait(there.step()).unwrap());
    }
    assert_eq!((d1.state(), object.state()), (Some(State::Left), Some(State::Live)));
    assert_eq!(object.dump(), before);
    let hashed: Vec<_> =
        steps.iter().filter(|step| step.sha256.is_some()).map(|step| (&*step.table, step.rows)).collect();
    assert_eq!(hashed, before.iter().map(|(table, rows)| (&*table.name, rows.len() as i64)).collect::<Vec<_>>());
    assert!(d1.run("DELETE FROM users").is_err() && d1.run(GUARD).is_err(), "it is left");
    assert!(object.run(GUARD).is_ok());
    // To ask once more does no harm.
    assert!(wait(there.step()).unwrap().is_done());

    object.run("DELETE FROM users WHERE user_id LIKE '%7'").unwrap();
    let before = object.dump();
    let back = moving(&object, &d1, Engine::Object, &names);
    while !wait(back.step()).unwrap().is_done() {}
    assert_eq!((d1.state(), object.state()), (Some(State::Live), Some(State::Left)));
    assert_eq!(d1.dump(), before);
    d1.run("DELETE FROM users").unwrap();
}

#[test]
fn what_was_written_meanwhile_is_refused_and_a_copy_that_differs_is_found() {
    let (d1, object, names) = (server(), Db::new(true), migrations());
    let there = moving(&d1, &object, Engine::D1, &names);
    while wait(there.step()).unwrap().phase == "preparing" {}
    for change in [
        "UPDATE rooms SET version = version + 1",
        "DELETE FROM events",
        "INSERT INTO unsettled_rooms (room_id) VALUES ('!new:x')",
    ] {
        assert!(d1.run(change).unwrap_err().to_string().contains("not live"), "{change}");
    }
    while wait(there.step()).unwrap().phase == "copying" {}
    object.run("UPDATE rooms SET version = version + 1 WHERE room_id = 'room_id5'").unwrap();
    let error = loop {
        match wait(there.step()) {
            Ok(progress) => assert!(!progress.is_done(), "the difference is not seen"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("the table rooms differs"), "{error}");

    // Given up, the source is as it was; and another try gets through.
    wait(there.cancel()).unwrap();
    assert_eq!((d1.state(), object.state()), (Some(State::Live), Some(State::Emptying)));
    d1.run("UPDATE rooms SET version = version + 1").unwrap();
    assert!(d1.run(GUARD).is_ok() && object.run(GUARD).is_err());
    while !wait(there.step()).unwrap().is_done() {}
    assert_eq!(object.dump(), d1.dump());
    assert!(wait(there.cancel()).is_err(), "it has ended");
}

#[test]
fn a_step_that_somebody_else_has_made_changes_nothing() {
    let (d1, object, names) = (server(), Db::new(true), migrations());
    let there = moving(&d1, &object, Engine::D1, &names);
    while wait(there.step()).unwrap().table != "users" {}
    let late = wait(Marker::read(&object)).unwrap().unwrap();
    wait(there.step()).unwrap();
    let before = object.dump();
    assert!(wait(there.copy(late)).is_err());
    assert_eq!(object.dump(), before);
}

/// The source of a move, which somebody gives up just before it would be frozen.
struct GivenUp<'m> {
    source: &'m Db,
    cancel: RefCell<Option<Box<dyn FnOnce() + 'm>>>,
}

impl Side for GivenUp<'_> {
    fn batch(&self, statements: Vec<Sql>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        if statements.iter().any(|sql| sql.text.contains("CREATE TRIGGER"))
            && let Some(cancel) = self.cancel.take()
        {
            cancel();
        }
        self.source.batch(statements)
    }

    fn migrate(&self) -> LocalBoxFuture<'_, Result<(), DatabaseError>> {
        self.source.migrate()
    }
}

/// A source that no move has touched, and one that has been live again after one.
#[test]
fn a_move_that_is_given_up_freezes_nothing_any_more() {
    for was_moved in [false, true] {
        let (d1, object, names) = (server(), Db::new(true), migrations());
        let there = moving(&d1, &object, Engine::D1, &names);
        if was_moved {
            while wait(there.step()).unwrap().phase == "preparing" {}
            wait(there.cancel()).unwrap();
        }
        let cancel = || wait(there.cancel()).unwrap();
        let source = GivenUp { source: &d1, cancel: RefCell::new(Some(Box::new(cancel))) };
        let overtaken = Move { source: &source, ..moving(&d1, &object, Engine::D1, &names) };
        let error = loop {
            if let Err(error) = wait(overtaken.step()) {
                break error;
            }
            assert!(source.cancel.borrow().is_some(), "the step has gone on");
        };
        assert!(matches!(error, MoveError::Failed(_)), "{error}");
        assert_eq!((d1.state(), object.state()), (Some(State::Live), Some(State::Emptying)));
        assert!(d1.run(GUARD).is_ok());
        d1.run("UPDATE rooms SET version = version + 1").unwrap();
        // Another try gets through.
        while !wait(there.step()).unwrap().is_done() {}
        assert_eq!(object.dump(), d1.dump());
    }
}

/// Whoever has read long ago that the target is emptied deletes nothing of what has been copied since.
#[test]
fn what_was_copied_is_not_emptied_by_a_late_step() {
    let (d1, object, names) = (server(), Db::new(true), migrations());
    let there = moving(&d1, &object, Engine::D1, &names);
    assert_eq!(wait(there.step()).unwrap().phase, "preparing");
    let late = wait(Marker::read(&object)).unwrap().unwrap();
    assert_eq!(late.state, State::Emptying);
    while !wait(there.step()).unwrap().is_done() {}
    let before = object.dump();
    assert!(wait(there.empty(None, late)).is_err());
    assert_eq!(object.dump(), before);
}

#[test]
fn what_is_no_move_is_refused_with_a_sentence() {
    let (d1, names) = (server(), migrations());
    let refusal = |work: Move<'_>| match wait(work.step()) {
        Err(MoveError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    let target = Db::new(true);
    let elsewhere = Move { configured: Engine::Object, ..moving(&d1, &target, Engine::D1, &names) };
    assert!(refusal(elsewhere).contains("ENGINE is `object`"));
    let used = server();
    assert!(refusal(moving(&d1, &used, Engine::D1, &names)).contains("holds a server's data"));
    used.run("DELETE FROM d1_migrations WHERE name LIKE '0037%'").unwrap();
    assert!(refusal(moving(&d1, &used, Engine::D1, &names)).contains("0037_engine.sql"));
    let bare = Db(RefCell::new(Connection::open_in_memory().unwrap()), false);
    assert!(refusal(moving(&target, &bare, Engine::Object, &names)).contains("migrations of this version"));
    assert_eq!((d1.state(), used.state(), bare.state()), (None, None, None), "nothing has begun");

    let there = moving(&d1, &target, Engine::D1, &names);
    while !wait(there.step()).unwrap().is_done() {}
    let again = Move { configured: Engine::Object, ..moving(&target, &d1, Engine::D1, &names) };
    assert!(refusal(again).contains("ENGINE is"));
    let wrong = moving(&d1, &used, Engine::D1, &names);
    assert!(refusal(wrong).contains("there is no such move: `d1` is left"));
    target.run("CREATE TABLE keyless (name TEXT PRIMARY KEY)").unwrap();
    let error = wait(Table::all(&target)).unwrap_err();
    assert!(error.to_string().contains("keyless"));
}
