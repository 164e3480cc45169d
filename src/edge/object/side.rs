//! The object's database as a move uses it, which makes its statements itself.

use futures_util::future;

use super::{database::ObjectDatabase, migrations::migrate};
use crate::{
    edge::moving::side::{Side, Sql},
    platform::{DatabaseError, LocalBoxFuture, Rows},
};

impl Side for ObjectDatabase {
    fn batch(&self, statements: Vec<Sql>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        let run = |sql: &Sql| self.exec(&sql.text.as_str().into(), &sql.parameters);
        let outcome = match &*statements {
            // Each request asks by one whether the data is here.
            [only] => run(only).map(|rows| vec![rows]),
            all => self.atomically(|| all.iter().map(run).collect()),
        };
        Box::pin(future::ready(outcome))
    }

    fn migrate(&self) -> LocalBoxFuture<'_, Result<(), DatabaseError>> {
        Box::pin(future::ready(migrate(self).map_err(|error| DatabaseError::Unavailable(error.to_string()))))
    }
}
