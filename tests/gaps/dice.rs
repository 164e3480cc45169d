//! What chance decides in a world, and numbers to tell things apart by.

use std::cell::{Cell, RefCell};

use crate::common::generator::Random;

/// Seeded randomness that is shared.
pub struct Dice {
    random: RefCell<Random>,
    counter: Cell<u64>,
}

impl Dice {
    pub fn new(random: Random) -> Self {
        Self { random: RefCell::new(random), counter: Cell::new(0) }
    }

    /// A number below `bound`.
    pub fn below(&self, bound: usize) -> usize {
        self.random.borrow_mut().below(bound)
    }

    /// True in this many of a hundred cases.
    pub fn percent(&self, chance: usize) -> bool {
        self.random.borrow_mut().percent(chance)
    }

    /// A number that was not there before.
    pub fn count(&self) -> u64 {
        self.counter.set(self.counter.get() + 1);
        self.counter.get()
    }
}
