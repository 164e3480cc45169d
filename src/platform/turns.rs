//! Letting others have their turn in the middle of long work: one thread does all that an object, or an isolate, does.

use super::{Clock, Database, DatabaseError, Rows, Statement};

/// So many PDUs are parsed, checked or judged, or rows written, before others have their turn: some milliseconds of work. A
/// transaction never holds more.
pub const SLICE: usize = 50;

/// The same of what takes little for each: IDs put in order, short rows read.
pub const LIGHT_SLICE: usize = 500;

/// Lets others have their turn after each slice of so many, when `done` of them are done.
pub async fn turn(clock: &dyn Clock, done: usize, slice: usize) {
    if done > 0 && done.is_multiple_of(slice) {
        clock.pause().await;
    }
}

/// Lets others have their turn after a batch that was answered with many rows: whoever asked for them has work to do, and may ask
/// for more.
pub async fn turn_after(clock: &dyn Clock, answers: &[Rows]) {
    if answers.iter().map(Vec::len).sum::<usize>() >= LIGHT_SLICE {
        clock.pause().await;
    }
}

/// Does what [`Database::batches`] is for where a batch keeps all others waiting while it is run.
///
/// # Errors
/// The first failure of a batch; none after it is run.
pub async fn one_by_one(
    database: &dyn Database,
    clock: &dyn Clock,
    batches: Vec<Vec<Statement>>,
) -> Result<Vec<Rows>, DatabaseError> {
    let mut answers = Vec::new();
    for (done, batch) in batches.into_iter().enumerate() {
        turn(clock, done, 1).await;
        answers.extend(database.batch(batch).await?);
    }
    Ok(answers)
}

/// A clock that counts how often others have their turn.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Pausing(pub(crate) std::cell::Cell<usize>);

#[cfg(test)]
impl Clock for Pausing {
    fn now_ms(&self) -> i64 {
        0
    }

    fn sleep(&self, _: u32) -> super::LocalBoxFuture<'static, ()> {
        self.0.set(self.0.get() + 1);
        Box::pin(async {})
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;

    use super::*;
    use crate::platform::{LocalBoxFuture, Row};

    #[derive(Default)]
    struct Noting(RefCell<Vec<String>>);

    impl Database for Noting {
        fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
            let texts: Vec<&str> = statements.iter().map(|statement| statement.sql).collect();
            self.0.borrow_mut().push(texts.join(" "));
            let failed = texts.contains(&"fails").then(|| DatabaseError::Constraint(String::new()));
            Box::pin(async move { failed.map_or_else(|| Ok(texts.iter().map(|_| Rows::new()).collect()), Err) })
        }
    }

    fn batch(texts: &[&'static str]) -> Vec<Statement> {
        texts.iter().map(|text| Statement::new(text, [])).collect()
    }

    #[test]
    fn batches_are_run_one_by_one_until_one_fails() {
        let (database, clock) = (Noting::default(), Pausing::default());
        let run = |batches| futures_executor::block_on(one_by_one(&database, &clock, batches));
        assert_eq!(run(vec![batch(&["a", "b"]), batch(&["c"])]).unwrap().len(), 3);
        assert_eq!((database.0.take(), clock.0.take()), (vec!["a b".to_owned(), "c".to_owned()], 1));
        assert!(run(vec![batch(&["a"]), batch(&["fails", "b"]), batch(&["c"])]).is_err());
        assert_eq!((database.0.take(), clock.0.take()), (vec!["a".to_owned(), "fails b".to_owned()], 1));
    }

    #[test]
    fn a_turn_comes_after_many_rows() {
        let clock = Pausing::default();
        let rows = |count: usize| (0..count).map(|_| Row(Vec::new())).collect::<Rows>();
        for (answers, paused) in
            [(vec![], 0), (vec![rows(499)], 0), (vec![rows(499), rows(1)], 1), (vec![rows(501)], 1)]
        {
            futures_executor::block_on(turn_after(&clock, &answers));
            assert_eq!(clock.0.take(), paused);
        }
    }

    #[test]
    fn a_turn_comes_after_each_whole_slice() {
        let clock = Pausing::default();
        (0..=100).for_each(|done| futures_executor::block_on(turn(&clock, done, 50)));
        assert_eq!(clock.0.get(), 2);
    }
}
