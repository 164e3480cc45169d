//! The row by which a database says whether it is live, and how far a move is.

use serde_json::{Value, json};

use super::side::{Side, Sql, read_values, write_values};
use crate::platform::{DatabaseError, SqlValue};

/// Fails, with the whole of its batch, on a database that is not live, and does nothing on one that is.
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
pub(in crate::edge) const GUARD: &str = "DELETE FROM engine WHERE state <> 'live'";

/// By what the refusal of [`GUARD`], and of a table that is frozen, is known.
pub(in crate::edge) const NOT_LIVE: &str = "this database is not live";

/// Whether there is such a row can be asked only where its table is.
const IS_THERE: &str = "SELECT 1 AS found FROM sqlite_master WHERE type = 'table' AND name = 'engine'";
const READ: &str = "SELECT state, step, place FROM engine WHERE one = 1";
const MAKE: &str = "INSERT INTO engine (one, state, step, place) VALUES (1, ?1, 0, ?2)";
/// A step that somebody else has made fails: its column is never null.
const ADVANCE: &str = "UPDATE engine SET step = CASE WHEN step = ?1 AND state = ?2 THEN step + 1 END, state = ?3, place = ?4 WHERE one = 1";

/// What a database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::edge) enum State {
    /// Where the server runs.
    Live,
    /// It takes no writes, while its data is copied.
    Leaving,
    /// Its data has been moved. It keeps it, and takes no writes.
    Left,
    /// It is about to take the other's data, and what it had is deleted.
    Emptying,
    /// It is being filled.
    Arriving,
    /// It has everything, which is being compared.
    Checking,
    /// It has everything that the other has.
    Whole,
}

impl State {
    const ALL: [Self; 7] =
        [Self::Live, Self::Leaving, Self::Left, Self::Emptying, Self::Arriving, Self::Checking, Self::Whole];

    /// As the row has it.
    pub(in crate::edge) fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Leaving => "leaving",
            Self::Left => "left",
            Self::Emptying => "emptying",
            Self::Arriving => "arriving",
            Self::Checking => "checking",
            Self::Whole => "whole",
        }
    }
}

/// How far a pass over all tables is.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Place {
    /// The table; empty before the first.
    pub(super) table: String,
    /// The key of its last row that is done.
    pub(super) after: Option<Vec<SqlValue>>,
    /// How many of its rows are done.
    pub(super) rows: i64,
    /// The hash over these on either side, where they are compared.
    pub(super) hashes: [String; 2],
}

impl Place {
    pub(super) fn start_of(table: &str) -> Self {
        Self { table: table.to_owned(), ..Self::default() }
    }

    fn write(&self) -> String {
        let after = self.after.as_deref().map(write_values);
        json!({ "table": self.table, "after": after, "rows": self.rows, "hashes": self.hashes }).to_string()
    }

    fn read(text: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(text).ok()?;
        let hash = |index: usize| json["hashes"][index].as_str().map(str::to_owned);
        let after = match &json["after"] {
            Value::Null => None,
            values => Some(read_values(values)?),
        };
        let (table, rows) = (json["table"].as_str()?.to_owned(), json["rows"].as_i64()?);
        Some(Self { table, after, rows, hashes: [hash(0)?, hash(1)?] })
    }
}

/// What the row says. Without one there is [`None`]: no move has touched the database.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::edge) struct Marker {
    pub(in crate::edge) state: State,
    pub(super) place: Place,
    step: i64,
}

impl Marker {
    /// The row, where there is one.
    pub(in crate::edge) async fn read(side: &dyn Side) -> Result<Option<Self>, DatabaseError> {
        let is_there = side.batch(vec![Sql::new(IS_THERE, [])]).await?;
        if is_there.iter().all(Vec::is_empty) {
            return Ok(None);
        }
        Self::read_there(side).await
    }

    /// The row of a database that is known to have the table.
    pub(in crate::edge) async fn read_there(side: &dyn Side) -> Result<Option<Self>, DatabaseError> {
        let rows = side.batch(vec![Sql::new(READ, [])]).await?;
        let Some(row) = rows.first().and_then(|rows| rows.first()) else { return Ok(None) };
        let state = row.text(0)?;
        let shape = |what: &str| DatabaseError::Shape(format!("{what} in the table engine is unknown"));
        let state = State::ALL.into_iter().find(|known| known.name() == state).ok_or_else(|| shape("a state"))?;
        let place = Place::read(row.text(2)?).ok_or_else(|| shape("a place"))?;
        Ok(Some(Self { state, place, step: row.integer(1)? }))
    }

    /// Makes the row of a database that has none; fails where it has one.
    pub(super) fn make(state: State) -> Sql {
        Sql::new(MAKE, [state.name().into(), Place::default().write().into()])
    }

    /// Goes on to a state and a place; fails where the row is not this one any more.
    pub(super) fn advance(&self, state: State, place: &Place) -> Sql {
        let parameters = [self.step.into(), self.state.name().into(), state.name().into(), place.write().into()];
        Sql::new(ADVANCE, parameters)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_place_survives_being_written() {
        let place = Place {
            table: "rooms".to_owned(),
            after: Some(vec!["!a\"b".into(), 7.into()]),
            rows: 12,
            hashes: ["a".to_owned(), "b".to_owned()],
        };
        for place in [place, Place::default(), Place::start_of("x")] {
            assert_eq!(Place::read(&place.write()), Some(place));
        }
    }

    #[test]
    fn the_migration_says_what_the_code_looks_for() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/0037_engine.sql");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(NOT_LIVE) && text.contains(GUARD));
        assert!(State::ALL.iter().all(|state| text.contains(state.name())));
    }
}
