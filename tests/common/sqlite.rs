//! The database trait over SQLite: the same SQL text and the same migrations as at the edge, in this process.

use std::{
    cell::{Cell, RefCell},
    fs,
    path::Path,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use rusqlite::{
    Connection, ErrorCode, StatementStatus,
    backup::Backup,
    config::DbConfig,
    functions::{Context, FunctionFlags},
    params_from_iter,
    types::ValueRef,
};
use verge::platform::{Database, DatabaseError, LocalBoxFuture, Row, Rows, SqlValue, Statement};
use verge::store::{Store, forgetting::WALKS};

use super::invariants;

/// An SQLite database that keeps count of what D1 would charge for.
#[derive(Clone)]
pub struct Sqlite {
    connection: Rc<RefCell<Connection>>,
    /// Round trips made.
    pub calls: Rc<Cell<u64>>,
    /// Steps of SQLite's virtual machine taken: what the statements cost, in proportion to the rows that they look at.
    pub steps: Rc<Cell<u64>>,
    /// How many bytes of text were read.
    pub read: Rc<Cell<usize>>,
    /// How many rows were changed,
    pub changed: Rc<Cell<u64>>,
    /// and the most that one statement has changed.
    pub most_changed: Rc<Cell<u64>>,
    /// A batch with this text in a parameter is refused, as D1 refuses what is too large.
    pub refuses: Rc<RefCell<Option<String>>>,
    /// Batches that broke a constraint: somebody else came first.
    pub lost: Rc<Cell<u64>>,
}

impl Sqlite {
    /// A new database in memory with all migrations applied.
    pub fn in_memory() -> Self {
        Self::over(Connection::open_in_memory().unwrap())
    }

    /// The database in `file`; the migrations are applied when it is new.
    pub fn open(file: &Path) -> Self {
        Self::over(Connection::open(file).unwrap())
    }

    fn over(connection: Connection) -> Self {
        connection.busy_timeout(std::time::Duration::from_secs(30)).unwrap();
        // All of the store's statements: by default 16 are kept, and all others compiled again each time.
        connection.set_prepared_statement_cache_capacity(500);
        // Plans that do not depend on parameters. Otherwise many a statement is compiled again for each new one.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).unwrap();
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_master WHERE name = 'events'", [], |r| r.get(0)).unwrap();
        if tables == 0 {
            // The package is this one, or the one of the fuzz targets in a folder of it.
            let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("migrations"));
            let folder = folders.into_iter().find(|folder| folder.is_dir()).unwrap();
            let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            for file in files {
                connection.execute_batch(&fs::read_to_string(file).unwrap()).unwrap();
            }
        }
        Self {
            connection: Rc::new(RefCell::new(connection)),
            calls: Rc::default(),
            steps: Rc::default(),
            read: Rc::default(),
            changed: Rc::default(),
            most_changed: Rc::default(),
            refuses: Rc::default(),
            lost: Rc::default(),
        }
    }

    /// A copy, which goes its own way.
    pub fn copy(&self) -> Self {
        let mut connection = Connection::open_in_memory().unwrap();
        Backup::new(&self.connection.borrow(), &mut connection).unwrap().step(-1).unwrap();
        Self::over(connection)
    }

    /// From now on its `unixepoch()` is `now`, in milliseconds, and not the time of this machine.
    pub fn take_time_from(&self, now: Arc<AtomicI64>) {
        let seconds = move |_: &mut Context<'_>| Ok(now.load(Ordering::Relaxed) / 1000);
        let flags = FunctionFlags::SQLITE_UTF8;
        self.connection.borrow().create_scalar_function("unixepoch", 0, flags, seconds).unwrap();
    }

    fn refuse(&self, statement: &Statement) -> Result<(), DatabaseError> {
        let marked = |value: &SqlValue| {
            let refuses = self.refuses.borrow();
            matches!((value, &*refuses), (SqlValue::Text(text), Some(marker)) if text.contains(marker))
        };
        if statement.parameters.iter().any(marked) {
            return Err(DatabaseError::Refused("string or blob too big".to_owned()));
        }
        Ok(())
    }

    /// Forgets all that is old at `now`, as the scheduled trigger does once an hour, slice by slice.
    pub fn forget_old(&self, now: i64) {
        let store = Store::new(Rc::new(self.clone()));
        futures_executor::block_on(async {
            let mut walked = store.walked().await.unwrap();
            for walk in &WALKS {
                store.walk_on(walk, &mut walked, now).await.unwrap();
                while walked.is_under_way(walk) {
                    store.walk_on(walk, &mut walked, now).await.unwrap();
                }
            }
        });
    }

    /// Rooms of which the numbers of members are not those of their current state, or not the same where the migration counts
    /// them in a database of before.
    pub fn wrong_member_counts(&self) -> Vec<String> {
        const KEPT: &str = "SELECT room_id, joined, invited FROM rooms ORDER BY room_id";
        const COUNTED: &str = "\
            WITH RECURSIVE slot(at) AS (SELECT 2 UNION ALL SELECT at + 22 FROM slot WHERE at < 332), \
              tree(room_id, node_id) AS ( \
                SELECT room_id, state FROM rooms \
                UNION SELECT room_id, substr(node, at, 22) FROM tree CROSS JOIN state_nodes USING (node_id) CROSS JOIN slot \
                WHERE substr(node, 1, 1) = 'I'), \
              member(room_id, membership) AS ( \
                SELECT tree.room_id, e.json ->> '$.content.membership' \
                FROM tree CROSS JOIN state_nodes USING (node_id) CROSS JOIN json_each(node) AS item \
                  CROSS JOIN events AS e ON e.event_id = item.value \
                WHERE substr(node, 1, 1) = '{' AND e.event_type = 'm.room.member') \
            SELECT room_id, (SELECT count(*) FROM member AS m WHERE m.room_id = r.room_id AND m.membership = 'join'), \
              (SELECT count(*) FROM member AS m WHERE m.room_id = r.room_id AND m.membership = 'invite') \
            FROM rooms AS r ORDER BY room_id";
        let migrated = self.copy();
        let migration = include_str!("../../migrations/0017_member_counts.sql");
        let undo = "ALTER TABLE rooms DROP COLUMN joined; ALTER TABLE rooms DROP COLUMN invited;";
        migrated.connection.borrow().execute_batch(&[undo, migration].concat()).unwrap();
        let kept = self.rows(KEPT);
        let all = kept.iter().zip(self.rows(COUNTED)).zip(migrated.rows(KEPT));
        all.filter(|((kept, counted), migrated)| *kept != counted || *kept != migrated)
            .map(|((kept, counted), migrated)| format!("kept {kept:?}, counted {counted:?}, migrated {migrated:?}"))
            .collect()
    }

    /// Runs one query outside the count and returns its rows; for what tests assert.
    pub fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        let connection = self.connection.borrow();
        let mut statement = connection.prepare(sql).unwrap();
        let columns = statement.column_count();
        let rows = statement
            .query_map([], |row| {
                (0..columns)
                    .map(|i| {
                        Ok(match row.get_ref(i)? {
                            ValueRef::Null => "NULL".to_owned(),
                            ValueRef::Integer(integer) => integer.to_string(),
                            ValueRef::Real(real) => real.to_string(),
                            ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into_owned(),
                        })
                    })
                    .collect()
            })
            .unwrap();
        rows.map(Result::unwrap).collect()
    }
}

impl Database for Sqlite {
    fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        Box::pin(async move {
            self.calls.set(self.calls.get() + 1);
            let mut connection = self.connection.borrow_mut();
            // Immediate: a batch at D1 has the one writer to itself from its start.
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failure)?;
            let mut answers = Vec::new();
            for statement in &statements {
                self.refuse(statement)?;
                let before = transaction.total_changes();
                assert!(statement.parameters.len() <= 100, "D1 allows 100 parameters");
                let (rows, steps) = run(&transaction, statement).inspect_err(|error| match error {
                    DatabaseError::Constraint(_) => self.lost.set(self.lost.get() + 1),
                    _ => eprintln!("sqlite: {error} in {}", statement.sql),
                })?;
                let texts = rows.iter().flat_map(|row| &row.0).filter_map(|value| match value {
                    SqlValue::Text(text) => Some(text.len()),
                    _ => None,
                });
                self.read.set(self.read.get() + texts.sum::<usize>());
                answers.push(rows);
                self.steps.set(self.steps.get() + steps);
                let changed = transaction.total_changes() - before;
                self.changed.set(self.changed.get() + changed);
                self.most_changed.set(self.most_changed.get().max(changed));
            }
            transaction.commit().map_err(failure)?;
            invariants::assert_held(&connection, &statements);
            Ok(answers)
        })
    }
}

/// The rows of a statement, and how many steps it took.
fn run(connection: &Connection, statement: &Statement) -> Result<(Rows, u64), DatabaseError> {
    let mut prepared = connection.prepare_cached(statement.sql).map_err(failure)?;
    let columns = prepared.column_count();
    let names: std::collections::BTreeSet<_> = prepared.column_names().collect();
    assert_eq!(names.len(), columns, "D1 answers with objects, which have each name once: {}", statement.sql);
    assert!(names.iter().all(|name| name.parse::<u32>().is_err()), "objects sort such names: {}", statement.sql);
    let parameters = statement.parameters.iter().map(|value| match value {
        SqlValue::Null => rusqlite::types::Value::Null,
        SqlValue::Integer(integer) => {
            assert_is_exact(*integer, statement);
            rusqlite::types::Value::Integer(*integer)
        }
        SqlValue::Text(text) => {
            assert!(text.len() <= 2_000_000, "D1 allows 2 MB a parameter");
            rusqlite::types::Value::Text(text.clone())
        }
    });
    let mut rows = prepared.query(params_from_iter(parameters)).map_err(failure)?;
    let mut answer = Vec::new();
    while let Some(row) = rows.next().map_err(failure)? {
        let values = (0..columns).map(|i| match row.get_ref(i).map_err(failure)? {
            ValueRef::Null => Ok(SqlValue::Null),
            ValueRef::Integer(integer) => {
                assert_is_exact(integer, statement);
                Ok(SqlValue::Integer(integer))
            }
            ValueRef::Text(text) => Ok(SqlValue::Text(String::from_utf8_lossy(text).into_owned())),
            other => Err(DatabaseError::Shape(format!("a column of type {}", other.data_type()))),
        });
        answer.push(Row(values.collect::<Result<_, _>>()?));
    }
    drop(rows);
    let steps = prepared.reset_status(StatementStatus::VmStep);
    Ok((answer, u64::try_from(steps).unwrap()))
}

fn assert_is_exact(integer: i64, statement: &Statement) {
    assert!(integer.abs() < 1 << 53, "D1 rounds integers beyond 2^53: {}", statement.sql);
}

fn failure(error: rusqlite::Error) -> DatabaseError {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => DatabaseError::Constraint(error.to_string()),
        Some(ErrorCode::TooBig | ErrorCode::TypeMismatch) => DatabaseError::Refused(error.to_string()),
        _ => DatabaseError::Unavailable(error.to_string()),
    }
}
