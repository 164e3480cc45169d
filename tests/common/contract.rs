//! What every database behind the narrow waist must do alike: run natively over SQLite, and on the real runtime over D1 and over
//! an object's storage (`tests/waist`).

use futures_util::future::{LocalBoxFuture, join};
use verge::platform::{Database, DatabaseError, Rows, SqlValue, Statement};

/// What is wrong; nothing where it holds.
type Outcome = Result<(), String>;
type Case = for<'a> fn(&'a dyn Database) -> LocalBoxFuture<'a, Outcome>;

/// What a database must do whatever it is.
pub const CASES: &[(&str, Case)] = &[
    ("values come back as they went in", |d| Box::pin(values(d))),
    ("answers are in the order of the statements", |d| Box::pin(order(d))),
    ("long lists travel as JSON", |d| Box::pin(long_lists(d))),
    ("a broken constraint undoes the whole batch", |d| Box::pin(constraint(d))),
    ("the guard by version undoes the whole batch", |d| Box::pin(guard(d))),
    ("a table that is not there may come", |d| Box::pin(no_table(d))),
    ("batches at the same time are one after the other", |d| Box::pin(at_once(d))),
    ("of several batches each is atomic, and after one that fails comes none", |d| Box::pin(several(d))),
];

/// What the real ones refuse for ever, which the one of the native tests asserts that nobody asks of it.
pub const LIMITS: &[(&str, Case)] = &[
    ("integers beyond 2^53 are refused", |d| Box::pin(integers(d))),
    ("texts of more than 2 MB are refused", |d| Box::pin(long_text(d))),
    ("more than 100 parameters are refused", |d| Box::pin(many_parameters(d))),
    ("what is no JSON is refused, and undoes the whole batch", |d| Box::pin(no_json(d))),
    ("an error among the rows undoes the whole batch", |d| Box::pin(among_rows(d))),
    ("a pattern of more than 50 bytes is refused", |d| Box::pin(long_pattern(d))),
    ("a text in the place of a row's number is refused", |d| Box::pin(mismatch(d))),
];

/// Runs the cases, and returns those that do not hold, each with what is wrong.
pub async fn broken(database: &dyn Database, cases: &[(&str, Case)]) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, case) in cases {
        let outcome = match begin(database).await {
            Ok(()) => case(database).await,
            Err(error) => Err(error),
        };
        broken.extend(outcome.err().map(|why| format!("{name}: {why}")));
    }
    broken
}

const INSERT: &str = "INSERT INTO contract (id, text, version) VALUES (?1, ?2, 1)";
const MOVE: &str = "UPDATE contract SET version = CASE version WHEN ?2 THEN ?2 + 1 END WHERE id = ?1";
const ALL: &str = "SELECT id, text, version FROM contract ORDER BY id";

/// An empty table with one row.
async fn begin(database: &dyn Database) -> Outcome {
    const CREATE: &str = "CREATE TABLE IF NOT EXISTS contract (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, version INTEGER NOT NULL)";
    const EMPTY: &str = "DELETE FROM contract";
    let statements = vec![Statement::new(CREATE, []), Statement::new(EMPTY, []), insert(1, "one")];
    run(database, statements).await.map(drop)
}

fn insert(id: i64, text: &str) -> Statement {
    Statement::new(INSERT, [id.into(), text.into()])
}

async fn run(database: &dyn Database, statements: Vec<Statement>) -> Result<Vec<Rows>, String> {
    database.batch(statements).await.map_err(|error| error.to_string())
}

async fn query(database: &dyn Database, sql: &'static str, parameters: Vec<SqlValue>) -> Result<Rows, String> {
    let mut answers = run(database, vec![Statement::new(sql, parameters)]).await?;
    answers.pop().ok_or_else(|| "there is no answer".to_owned())
}

fn equal<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T) -> Outcome {
    if found == expected { Ok(()) } else { Err(format!("{found:?} is not {expected:?}")) }
}

/// Only the first row is there, as it was.
async fn untouched(database: &dyn Database) -> Outcome {
    let rows = query(database, ALL, Vec::new()).await?;
    equal(&rows.iter().map(|row| row.0.clone()).collect(), &vec![vec![1.into(), "one".into(), 1.into()]])
}

async fn values(database: &dyn Database) -> Outcome {
    let most = (1 << 53) - 1;
    let sent: Vec<SqlValue> = vec![
        SqlValue::Null,
        0.into(),
        most.into(),
        (-most).into(),
        "".into(),
        "'\"\\ \n\u{2028} ä 🦀 \u{10ffff}".into(),
        "12".into(),
    ];
    // In neither alphabetical nor any other order by name.
    let sql = "SELECT ?1 AS z, ?2 AS b, ?3 AS a, ?4 AS y, ?5 AS x, ?6 AS c, ?7 AS d";
    let rows = query(database, sql, sent.clone()).await?;
    equal(&rows.into_iter().map(|row| row.0).collect(), &vec![sent])
}

async fn order(database: &dyn Database) -> Outcome {
    equal(&run(database, Vec::new()).await?.len(), &0)?;
    let statements = vec![insert(2, "two"), Statement::new(ALL, []), insert(3, "three"), Statement::new(ALL, [])];
    let counts: Vec<usize> = run(database, statements).await?.iter().map(Vec::len).collect();
    equal(&counts, &vec![0, 2, 0, 3])
}

async fn several(database: &dyn Database) -> Outcome {
    let all = || Statement::new(ALL, []);
    let batches = vec![vec![insert(2, "two"), all()], Vec::new(), vec![all(), insert(3, "three")]];
    let answers = database.batches(batches).await.map_err(|error| error.to_string())?;
    equal(&answers.iter().map(Vec::len).collect(), &vec![0, 2, 2, 0])?;
    let batches = vec![vec![insert(4, "four")], vec![insert(5, "five"), insert(6, "one")], vec![insert(7, "seven")]];
    if database.batches(batches).await.is_ok() {
        return Err("a broken constraint is taken".to_owned());
    }
    let left = query(database, "SELECT id FROM contract WHERE id <> 4 ORDER BY id", Vec::new()).await?;
    equal(&left.into_iter().map(|row| row.0).collect(), &vec![vec![1.into()], vec![2.into()], vec![3.into()]])
}

async fn long_lists(database: &dyn Database) -> Outcome {
    let items: Vec<String> = (0..20_000).map(|number| format!("\"{number:>90}\"")).collect();
    let list = format!("[{}]", items.join(","));
    let rows = query(database, "SELECT value FROM json_each(?1)", vec![list.into()]).await?;
    equal(&rows.len(), &20_000)?;
    equal(&rows[19_999].0, &vec![format!("{:>90}", 19_999).into()])
}

/// A batch that must fail, with one statement before the one that does.
async fn fails(database: &dyn Database, last: Statement, is: fn(&DatabaseError) -> bool) -> Outcome {
    match database.batch(vec![insert(2, "two"), last]).await {
        Ok(_) => Err("it is taken".to_owned()),
        Err(error) if !is(&error) => Err(format!("it is said to be {error:?}")),
        Err(_) => untouched(database).await,
    }
}

async fn constraint(database: &dyn Database) -> Outcome {
    fails(database, insert(3, "one"), |error| {
        matches!(error, DatabaseError::Constraint(text) if text.contains("UNIQUE constraint failed: contract.text"))
    })
    .await?;
    // By itself, too.
    match database.batch(vec![insert(1, "other")]).await {
        Err(DatabaseError::Constraint(text)) if text.contains("contract.id") => untouched(database).await,
        other => Err(format!("the single statement: {other:?}")),
    }
}

async fn guard(database: &dyn Database) -> Outcome {
    fails(database, Statement::new(MOVE, [1.into(), 7.into()]), |error| {
        matches!(error, DatabaseError::Constraint(text) if text.contains("NOT NULL constraint failed: contract.version"))
    })
    .await?;
    run(database, vec![Statement::new(MOVE, [1.into(), 1.into()])]).await?;
    let rows = query(database, ALL, Vec::new()).await?;
    equal(&rows[0].0[2], &2.into())
}

async fn no_table(database: &dyn Database) -> Outcome {
    let last = Statement::new("SELECT 1 FROM no_such_table", []);
    fails(database, last, |error| matches!(error, DatabaseError::Unavailable(_))).await
}

async fn at_once(database: &dyn Database) -> Outcome {
    const ADD: &str = "UPDATE contract SET version = version + 1 WHERE id = 1";
    const VERSION: &str = "SELECT version FROM contract WHERE id = 1";
    let batch = || run(database, vec![Statement::new(ADD, []), Statement::new(ADD, []), Statement::new(VERSION, [])]);
    let (one, other) = join(batch(), batch()).await;
    let seen = |answers: Vec<Rows>| answers[2][0].integer(0).map_err(|error| error.to_string());
    let mut versions = vec![seen(one?)?, seen(other?)?];
    versions.sort_unstable();
    equal(&versions, &vec![3, 5])
}

fn refused(error: &DatabaseError) -> bool {
    matches!(error, DatabaseError::Refused(_))
}

async fn integers(database: &dyn Database) -> Outcome {
    fails(database, Statement::new("SELECT ?1 AS a", [(1_i64 << 53).into()]), refused).await
}

async fn long_text(database: &dyn Database) -> Outcome {
    let fits = query(database, "SELECT length(?1) AS a", vec!["x".repeat(2_000_000).into()]).await?;
    equal(&fits[0].0, &vec![2_000_000.into()])?;
    fails(database, Statement::new("SELECT length(?1) AS a", ["x".repeat(2_000_001).into()]), refused).await
}

async fn many_parameters(database: &dyn Database) -> Outcome {
    fails(database, Statement::new("SELECT ?101 AS a", vec![SqlValue::Null; 101]), refused).await
}

async fn no_json(database: &dyn Database) -> Outcome {
    fails(database, Statement::new("SELECT value FROM json_each(?1)", ["[1,".into()]), refused).await
}

async fn among_rows(database: &dyn Database) -> Outcome {
    let list = r#"["[1]","[2]","["]"#;
    fails(database, Statement::new("SELECT json(value) AS a FROM json_each(?1)", [list.into()]), refused).await
}

async fn long_pattern(database: &dyn Database) -> Outcome {
    fails(database, Statement::new("SELECT 'a' GLOB ?1 AS a", ["*a".repeat(26).into()]), refused).await
}

async fn mismatch(database: &dyn Database) -> Outcome {
    fails(database, Statement::new(INSERT, ["text".into(), "two".into()]), refused).await
}
