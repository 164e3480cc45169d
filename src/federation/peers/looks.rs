//! How many looks at staged PDUs run at a time. What one look has in memory may be half of what an isolate has, and what one
//! fetches another may wait for.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// The most looks at a time in one isolate.
const MAX_LOOKS: usize = 2;

/// The looks that run in one isolate. Plain values: a look that the platform cuts off is forgotten when its time is up.
#[derive(Default)]
pub struct Looks {
    running: RefCell<Vec<Running>>,
    next: Cell<u64>,
    wanted: Cell<bool>,
}

#[derive(Clone, Copy)]
struct Running {
    number: u64,
    until: i64,
}

/// A look that runs until this is dropped.
pub struct Slot {
    looks: Rc<Looks>,
    number: u64,
}

impl Looks {
    /// Begins a look that ends by `until` at the latest; `None` where enough are running.
    pub fn begin(self: &Rc<Self>, now: i64, until: i64) -> Option<Slot> {
        let mut running = self.running.borrow_mut();
        running.retain(|look| look.until > now);
        if running.len() >= MAX_LOOKS {
            return None;
        }
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        running.push(Running { number, until });
        Some(Slot { looks: Rc::clone(self), number })
    }

    /// Notes that there is more to look at than was begun.
    pub fn want_more(&self) {
        self.wanted.set(true);
    }

    /// Whether there is more to look at than was begun.
    pub fn is_more_wanted(&self) -> bool {
        self.wanted.get()
    }

    /// Notes that all was begun.
    pub fn want_no_more(&self) {
        self.wanted.set(false);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.looks.running.borrow_mut().retain(|look| look.number != self.number);
    }
}
