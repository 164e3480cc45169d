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
        use State::{Arriving, Checking, Emptying, Leaving, Left, Live, Whole};
        let (source, target) = (Marker::read(self.source).await?, Marker::read(self.target).await?);
        let states = (source.as_ref().map(|marker| marker.state), target.as_ref().map(|marker| marker.state));
        let Some(target) = target.filter(|target| matches!(target.state, Emptying | Arriving | Checking | Whole))
        else {
            return Err(self.impossible(states));
        };
        // A step that is under way fails by either of these, whichever database it is about to change: also one that would freeze the
        // source, which is guarded by the source's row alone.
        let live = match source {
            None => vec![Marker::make(Live)],
            Some(source) => {
                let mut statements = match source.state {
                    Live => Vec::new(),
                    Leaving | Left => thaw(self.source).await?,
                    _ => return Err(self.impossible(states)),
                };
                statements.push(source.advance(Live, &Place::default()));
                statements
            }
        };
        // First the target is made unable to become live, then the source becomes so.
        self.target.batch(vec![target.advance(Emptying, &Place::default())]).await?;
        self.source.batch(live).await?;
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
mod tests;
