//! The steps of a move.

use serde::Serialize;

use super::{
    marker::{Marker, Place, State},
    side::{Side, Sql},
    tables::{Table, TableError, filled, hash, thaw},
};
use crate::{
    edge::engine::Engine,
    platform::{DatabaseError, Row, Rows},
};

const APPLIED: &str = "SELECT name FROM d1_migrations ORDER BY name";
/// Whether there is anything in a database that nobody else could give back.
const IS_USED: &str = "SELECT EXISTS (SELECT 1 FROM users) OR EXISTS (SELECT 1 FROM rooms) AS used";
/// How many tables are emptied at a time.
const EMPTIED_AT_ONCE: usize = 10;

/// A move from one database to the other.
pub(super) struct Move<'m> {
    /// The engine whose data is moved.
    pub(super) from: Engine,
    /// The one that the settings name.
    pub(super) configured: Engine,
    /// The migrations that this version knows.
    pub(super) migrations: Vec<&'m str>,
    pub(super) source: &'m dyn Side,
    pub(super) target: &'m dyn Side,
}

/// How far a move is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Progress {
    /// `preparing`, `copying`, `checking` or `done`.
    pub(super) phase: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) table: String,
    /// How many rows of the table are done.
    pub(super) rows: i64,
    /// Of a table that was compared to its end, the hash over all its rows in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
}

impl Progress {
    fn phase(phase: &'static str) -> Self {
        Self { phase, table: String::new(), rows: 0, sha256: None }
    }

    fn at(phase: &'static str, place: &Place) -> Self {
        Self { phase, table: place.table.clone(), rows: place.rows, sha256: None }
    }

    /// Whether there is nothing left to do.
    pub(super) fn is_done(&self) -> bool {
        self.phase == "done"
    }
}

/// Why a move does not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum MoveError {
    /// Somebody must do something first.
    #[error("{0}")]
    Refused(String),
    /// It may work next time.
    #[error("{0}")]
    Failed(DatabaseError),
}

impl From<DatabaseError> for MoveError {
    fn from(error: DatabaseError) -> Self {
        Self::Failed(error)
    }
}

impl From<TableError> for MoveError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Database(error) => Self::Failed(error),
            TableError::NoKey(_) => refused(error.to_string()),
        }
    }
}

/// The answer to one statement. Where there is none, that is not a table's end.
fn only(answers: &[Rows]) -> Result<&[Row], DatabaseError> {
    match answers {
        [rows] => Ok(rows),
        _ => Err(DatabaseError::Shape(format!("{} answers to one statement", answers.len()))),
    }
}

fn refused(why: impl Into<String>) -> MoveError {
    MoveError::Refused(why.into())
}

impl Move<'_> {
    /// Does what comes next, and says how far the move is then.
    pub(super) async fn step(&self) -> Result<Progress, MoveError> {
        use State::{Arriving, Checking, Emptying, Leaving, Left, Live, Whole};
        let (source, target) = (Marker::read(self.source).await?, Marker::read(self.target).await?);
        let states = (source.as_ref().map(|marker| marker.state), target.as_ref().map(|marker| marker.state));
        if matches!(states, (None | Some(Live), None | Some(Left | Emptying))) && self.configured != self.from {
            let (from, configured) = (self.from.name(), self.configured.name());
            return Err(refused(format!("ENGINE is `{configured}`, so that `{from}` has nothing to move")));
        }
        match (source, target) {
            (None | Some(Marker { state: Live, .. }), None) => self.claim().await,
            (source, Some(target @ Marker { state: Left | Emptying, .. }))
                if matches!(states.0, None | Some(Live | Leaving)) =>
            {
                self.empty(source, target).await
            }
            (Some(Marker { state: Leaving, .. }), Some(target @ Marker { state: Arriving, .. })) => {
                self.copy(target).await
            }
            (Some(Marker { state: Leaving, .. }), Some(target @ Marker { state: Checking, .. })) => {
                self.check(target).await
            }
            (Some(source @ Marker { state: Leaving, .. }), Some(Marker { state: Whole, .. })) => {
                self.source.batch(vec![source.advance(Left, &Place::default())]).await?;
                Ok(Progress::phase("checking"))
            }
            (Some(Marker { state: Left, .. }), Some(target @ Marker { state: Whole, .. })) => {
                self.target.batch(vec![target.advance(Live, &Place::default())]).await?;
                Ok(Progress::phase("done"))
            }
            (Some(Marker { state: Left, .. }), Some(Marker { state: Live, .. })) => Ok(Progress::phase("done")),
            _ => Err(self.impossible(states)),
        }
    }

    /// Gives the move up: the source is live again. Not once the target is.
    pub(super) async fn cancel(&self) -> Result<(), MoveError> {
        use State::{Arriving, Checking, Emptying, Leaving, Left, Whole};
        let (source, target) = (Marker::read(self.source).await?, Marker::read(self.target).await?);
        let states = (source.as_ref().map(|marker| marker.state), target.as_ref().map(|marker| marker.state));
        let (Some(source), Some(target)) = (source, target) else { return Err(self.impossible(states)) };
        match target.state {
            // First the target is made unable to become live, then the source becomes so. A step that is under way fails by it.
            Emptying | Arriving | Checking | Whole => {
                self.target.batch(vec![target.advance(Emptying, &Place::default())]).await?;
            }
            _ => return Err(self.impossible(states)),
        }
        if matches!(source.state, Leaving | Left) {
            let mut statements = thaw(self.source).await?;
            statements.push(source.advance(State::Live, &Place::default()));
            self.source.batch(statements).await?;
        }
        Ok(())
    }

    fn impossible(&self, (source, target): (Option<State>, Option<State>)) -> MoveError {
        let name = |state: Option<State>| state.map_or("untouched by any move", State::name);
        let (from, to) = (self.from.name(), self.from.other().name());
        refused(format!("there is no such move: `{from}` is {}, and `{to}` is {}", name(source), name(target)))
    }

    /// Makes a database the target that was never one.
    async fn claim(&self) -> Result<Progress, MoveError> {
        self.target.migrate().await?;
        self.has_all_migrations(self.target, self.from.other()).await?;
        let used = self.target.batch(vec![Sql::new(IS_USED, [])]).await?;
        let used = used.first().and_then(|rows| rows.first());
        if used.map(|row| row.integer(0)).transpose()? != Some(0) {
            let to = self.from.other().name();
            return Err(refused(format!("`{to}` holds a server's data, which no move has left there; it is kept")));
        }
        self.target.batch(vec![Marker::make(State::Emptying)]).await?;
        Ok(Progress::phase("preparing"))
    }

    /// Deletes what the target has. When nothing is left, the source is frozen, and the copying begins.
    async fn empty(&self, source: Option<Marker>, target: Marker) -> Result<Progress, MoveError> {
        if target.state == State::Left {
            let mut statements = thaw(self.target).await?;
            statements.push(target.advance(State::Emptying, &Place::default()));
            self.target.batch(statements).await?;
            return Ok(Progress::phase("preparing"));
        }
        if self.is_emptied_further(&target).await? {
            return Ok(Progress::phase("preparing"));
        }
        // Only on empty tables: a migration that changes rows would cost as much as the rows.
        self.target.migrate().await?;
        if self.is_emptied_further(&target).await? {
            return Ok(Progress::phase("preparing"));
        }
        self.has_all_migrations(self.source, self.from).await?;
        self.has_all_migrations(self.target, self.from.other()).await?;
        let tables = Table::all(self.source).await?;
        let others = Table::all(self.target).await?;
        let differs = tables.iter().find(|table| !others.contains(table));
        if let Some(table) = differs.or_else(|| others.iter().find(|table| !tables.contains(table))) {
            return Err(refused(format!("the table {} is not alike in the two databases", table.name)));
        }
        let mark = match &source {
            None => Some(Marker::make(State::Leaving)),
            Some(source) if source.state == State::Live => Some(source.advance(State::Leaving, &Place::default())),
            Some(_) => None,
        };
        if let Some(mark) = mark {
            self.source.batch(tables.iter().flat_map(Table::freeze).chain([mark]).collect()).await?;
        }
        self.target.batch(vec![target.advance(State::Arriving, &Place::default())]).await?;
        Ok(Progress::phase("copying"))
    }

    /// Deletes some rows; whether there were any. Not if the move has gone on meanwhile, by whomever.
    async fn is_emptied_further(&self, target: &Marker) -> Result<bool, MoveError> {
        let tables = Table::all(self.target).await?;
        let filled = filled(self.target, &tables).await?;
        let emptied: Vec<_> = filled.into_iter().take(EMPTIED_AT_ONCE).map(Table::empty).collect();
        let is_any = !emptied.is_empty();
        if is_any {
            let guard = target.advance(State::Emptying, &Place::default());
            self.target.batch([guard].into_iter().chain(emptied).collect()).await?;
        }
        Ok(is_any)
    }

    async fn has_all_migrations(&self, side: &dyn Side, engine: Engine) -> Result<(), MoveError> {
        let applied = match side.batch(vec![Sql::new(APPLIED, [])]).await {
            Err(DatabaseError::Unavailable(why)) if why.contains("no such table") => Vec::new(),
            applied => applied?,
        };
        let applied = applied.iter().flatten().map(|row| row.text(0)).collect::<Result<Vec<_>, _>>()?;
        if applied == self.migrations {
            return Ok(());
        }
        let differs = self.migrations.iter().find(|name| !applied.contains(name));
        let differs = differs.or_else(|| applied.iter().find(|name| !self.migrations.contains(name)));
        let (engine, differs) = (engine.name(), differs.copied().unwrap_or_default());
        Err(refused(format!("`{engine}` does not have exactly the migrations of this version ({differs}); apply them")))
    }

    /// Copies a page of rows.
    async fn copy(&self, target: Marker) -> Result<Progress, MoveError> {
        let Some((table, next)) = current(&Table::all(self.source).await?, &target.place) else {
            return self.go_on(&target, State::Checking, Place::default(), "copying").await;
        };
        let rows = self.source.batch(vec![table.page(target.place.after.as_deref())]).await?;
        let rows = only(&rows)?;
        let Some(last) = rows.last() else {
            return match next {
                Some(next) => self.go_on(&target, State::Arriving, Place::start_of(&next), "copying").await,
                None => self.go_on(&target, State::Checking, Place::default(), "checking").await,
            };
        };
        let place = Place {
            table: table.name.clone(),
            after: Some(table.key_of(last)),
            rows: target.place.rows + rows.len() as i64,
            ..Place::default()
        };
        let mut statements = vec![target.advance(State::Arriving, &place)];
        statements.extend(table.insert(rows));
        self.target.batch(statements).await?;
        Ok(Progress::at("copying", &place))
    }

    /// Compares a page of rows.
    async fn check(&self, target: Marker) -> Result<Progress, MoveError> {
        let at = &target.place;
        let Some((table, next)) = current(&Table::all(self.source).await?, at) else {
            return self.go_on(&target, State::Whole, Place::default(), "checking").await;
        };
        let page = table.page(at.after.as_deref());
        let theirs = self.source.batch(vec![page.clone()]).await?;
        let ours = self.target.batch(vec![page]).await?;
        let (rows, copied) = (only(&theirs)?, only(&ours)?);
        let place = Place {
            table: table.name.clone(),
            after: rows.last().map(|row| table.key_of(row)),
            rows: at.rows + rows.len() as i64,
            hashes: [hash(&at.hashes[0], rows), hash(&at.hashes[1], copied)],
        };
        if rows != copied || place.hashes[0] != place.hashes[1] {
            let (name, done) = (&table.name, at.rows);
            let why = format!(
                "the table {name} differs on the two sides, after {done} rows that are alike; give the move up"
            );
            return Err(refused(why));
        }
        if !rows.is_empty() {
            return self.go_on(&target, State::Checking, place, "checking").await;
        }
        let progress = match next {
            Some(next) => self.go_on(&target, State::Checking, Place::start_of(&next), "checking").await?,
            None => self.go_on(&target, State::Whole, Place::default(), "checking").await?,
        };
        let [sha256, _] = place.hashes;
        Ok(Progress { table: place.table, rows: place.rows, sha256: Some(sha256), ..progress })
    }

    async fn go_on(
        &self,
        target: &Marker,
        state: State,
        place: Place,
        phase: &'static str,
    ) -> Result<Progress, MoveError> {
        self.target.batch(vec![target.advance(state, &place)]).await?;
        Ok(Progress::at(phase, &place))
    }
}

/// The table in which a pass is, and the name of the next one. `None` where there are no tables.
fn current(tables: &[Table], place: &Place) -> Option<(Table, Option<String>)> {
    let index = tables.iter().position(|table| table.name == place.table).unwrap_or(0);
    let next = tables.get(index + 1).map(|table| table.name.clone());
    tables.get(index).map(|table| (table.clone(), next))
}

#[cfg(test)]
mod tests {
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
}
