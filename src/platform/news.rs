//! Waiting until something of a room or a user has moved.
//!
//! Whoever waits makes a [`Listener`] before it reads, so that nothing is missed that comes between its read and its wait.
//! A statement that moves a stream says whom that concerns ([`Statement::concerning`](super::Statement::concerning)), and
//! [`Announcing`] tells it once the batch has taken effect. What is fleeting, and no row, is announced by hand.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    future::poll_fn,
    mem,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
};

use futures_util::future::select;

use super::{Clock, Database, DatabaseError, LocalBoxFuture, Rows, Statement};
pub use super::{Listener, News, Subject};
use crate::log::Cost;

/// The first pause between two looks, and the longest, in milliseconds.
const PAUSE_MS: (u32, u32) = (250, 5_000);

/// News from a database that many isolates write to, none of which can wake another: whoever waits looks again after a
/// pause, which doubles each time.
pub struct Polling(Rc<dyn Clock>);

impl Polling {
    /// Pauses by this clock.
    pub fn new(clock: Rc<dyn Clock>) -> Self {
        Self(clock)
    }
}

impl News for Polling {
    fn announce(&self, _: &[Subject]) {}

    fn listen(&self) -> Box<dyn Listener> {
        Box::new(Pauses { clock: self.0.clone(), next_ms: PAUSE_MS.0 })
    }
}

struct Pauses {
    clock: Rc<dyn Clock>,
    next_ms: u32,
}

impl Listener for Pauses {
    fn is_choosy(&self) -> bool {
        false
    }

    fn listen_to(&mut self, _: Vec<Subject>) {}

    fn next(&mut self, longest_ms: u32) -> LocalBoxFuture<'_, ()> {
        let pause = self.next_ms.min(longest_ms);
        self.next_ms = self.next_ms.saturating_mul(2).min(PAUSE_MS.1);
        self.clock.sleep(pause)
    }
}

/// News where everything that writes to the database lives in one place: a commit wakes those whom it concerns.
pub struct Waking {
    clock: Rc<dyn Clock>,
    sleepers: Rc<RefCell<Sleepers>>,
}

impl Waking {
    /// Ends waits by this clock.
    pub fn new(clock: Rc<dyn Clock>) -> Self {
        Self { clock, sleepers: Rc::default() }
    }
}

#[derive(Default)]
struct Sleepers {
    last: u64,
    all: BTreeMap<u64, Sleeper>,
    /// Those who listen to everything.
    to_all: BTreeSet<u64>,
    /// Those who listen to a subject.
    to: HashMap<Subject, BTreeSet<u64>>,
}

#[derive(Default)]
struct Sleeper {
    subjects: Vec<Subject>,
    has_heard: bool,
    waker: Option<Waker>,
}

impl Sleepers {
    /// Lets it listen to nothing.
    fn forget(&mut self, id: u64) {
        self.to_all.remove(&id);
        let subjects = self.all.get_mut(&id).map(|sleeper| mem::take(&mut sleeper.subjects)).unwrap_or_default();
        for subject in subjects {
            if let Some(ids) = self.to.get_mut(&subject) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.to.remove(&subject);
                }
            }
        }
    }
}

impl News for Waking {
    fn announce(&self, subjects: &[Subject]) {
        if subjects.is_empty() {
            return;
        }
        let mut sleepers = self.sleepers.borrow_mut();
        let Sleepers { all, to_all, to, .. } = &mut *sleepers;
        let mut woken = Vec::new();
        for id in to_all.iter().chain(subjects.iter().filter_map(|subject| to.get(subject)).flatten()) {
            if let Some(sleeper) = all.get_mut(id) {
                sleeper.has_heard = true;
                woken.extend(sleeper.waker.take());
            }
        }
        // A waker may run whatever it likes, a listener's end among that.
        drop(sleepers);
        woken.into_iter().for_each(Waker::wake);
    }

    fn listen(&self) -> Box<dyn Listener> {
        let mut sleepers = self.sleepers.borrow_mut();
        sleepers.last += 1;
        let id = sleepers.last;
        sleepers.all.insert(id, Sleeper::default());
        sleepers.to_all.insert(id);
        Box::new(Ears { clock: self.clock.clone(), sleepers: self.sleepers.clone(), id })
    }
}

struct Ears {
    clock: Rc<dyn Clock>,
    sleepers: Rc<RefCell<Sleepers>>,
    id: u64,
}

impl Listener for Ears {
    fn is_choosy(&self) -> bool {
        true
    }

    fn listen_to(&mut self, subjects: Vec<Subject>) {
        let mut sleepers = self.sleepers.borrow_mut();
        sleepers.forget(self.id);
        for subject in &subjects {
            sleepers.to.entry(subject.clone()).or_default().insert(self.id);
        }
        if let Some(sleeper) = sleepers.all.get_mut(&self.id) {
            sleeper.subjects = subjects;
        }
    }

    fn next(&mut self, longest_ms: u32) -> LocalBoxFuture<'_, ()> {
        Box::pin(async move {
            let heard = poll_fn(|context| {
                let mut sleepers = self.sleepers.borrow_mut();
                let Some(sleeper) = sleepers.all.get_mut(&self.id) else { return Poll::Ready(()) };
                if mem::take(&mut sleeper.has_heard) {
                    return Poll::Ready(());
                }
                sleeper.waker = Some(context.waker().clone());
                Poll::Pending
            });
            select(pin!(heard), self.clock.sleep(longest_ms)).await;
        })
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        let mut sleepers = self.sleepers.borrow_mut();
        sleepers.forget(self.id);
        sleepers.all.remove(&self.id);
    }
}

/// A database whose batches are announced.
pub struct Announcing {
    database: Rc<dyn Database>,
    news: Rc<dyn News>,
}

impl Announcing {
    /// Announces the batches of `database`.
    pub fn new(database: Rc<dyn Database>, news: Rc<dyn News>) -> Self {
        Self { database, news }
    }
}

impl Database for Announcing {
    fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        // The statements keep them: where the database is another's, those who wait there are told there.
        let concerns: Vec<(bool, Vec<Subject>)> =
            statements.iter().map(|statement| (statement.needs_row, statement.concerns.clone())).collect();
        Box::pin(async move {
            let outcome = self.database.batch(statements).await;
            let has_rows = |nth| match &outcome {
                Ok(answers) => answers.get(nth).is_some_and(|rows: &Rows| !rows.is_empty()),
                // Where nobody can tell whether it took effect, those who wait look.
                Err(_) => true,
            };
            if matches!(outcome, Ok(_) | Err(DatabaseError::Unavailable(_))) {
                let told =
                    concerns.into_iter().enumerate().filter(|(nth, (needs_row, _))| !needs_row || has_rows(*nth));
                let subjects: Vec<Subject> = told.flat_map(|(_, (_, subjects))| subjects).collect();
                self.news.announce(&subjects);
            }
            outcome
        })
    }

    fn batches(&self, batches: Vec<Vec<Statement>>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        let statements = batches.iter().flatten();
        let subjects: Vec<Subject> = statements.flat_map(|statement| statement.concerns.clone()).collect();
        Box::pin(async move {
            let outcome = self.database.batches(batches).await;
            // Of those that fail, some may have taken effect.
            self.news.announce(&subjects);
            outcome
        })
    }

    fn cost(&self) -> Cost {
        self.database.cost()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::platform::Statement;

    #[derive(Default)]
    struct Noting(RefCell<Vec<Subject>>);

    impl Database for Noting {
        fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
            self.0.borrow_mut().extend(statements.iter().flat_map(|statement| statement.concerns.clone()));
            Box::pin(async move { Ok(statements.iter().map(|_| Rows::new()).collect()) })
        }
    }

    impl News for Noting {
        fn announce(&self, subjects: &[Subject]) {
            self.0.borrow_mut().extend_from_slice(subjects);
        }

        fn listen(&self) -> Box<dyn Listener> {
            unreachable!("nobody listens")
        }
    }

    #[test]
    fn whom_a_batch_concerns_is_told_here_and_to_its_database() {
        let (database, news) = (Rc::new(Noting::default()), Rc::new(Noting::default()));
        let announcing = Announcing::new(database.clone(), news.clone());
        let batch = || {
            vec![
                Statement::new("a", []).concerning([Subject::Presence]),
                Statement::new("b", []).concerning_if_any([Subject::Keys]),
            ]
        };
        futures_executor::block_on(announcing.batch(batch())).unwrap();
        // The second one has returned no row.
        assert_eq!(news.0.take(), [Subject::Presence]);
        assert_eq!(database.0.take(), [Subject::Presence, Subject::Keys]);
        futures_executor::block_on(announcing.batches(vec![batch()])).unwrap();
        assert_eq!(news.0.take(), [Subject::Presence, Subject::Keys]);
        assert_eq!(database.0.take(), [Subject::Presence, Subject::Keys]);
    }
}
