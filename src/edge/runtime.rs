//! Clock, randomness, background work and log, as the Workers runtime has them.

use std::time::Duration;

use worker::{Context, Delay, ScheduleContext, console_error, console_log, console_warn, js_sys};

use crate::{
    log::{Level, LogRecord},
    platform::{Background, Clock, LocalBoxFuture, Log, Random},
};

/// `Date.now()` and `setTimeout`. At the edge the time stands still between two I/O operations.
pub(super) struct WorkerClock;

impl Clock for WorkerClock {
    fn now_ms(&self) -> i64 {
        js_sys::Date::now() as i64
    }

    fn sleep(&self, ms: u32) -> LocalBoxFuture<'static, ()> {
        Box::pin(Delay::from(Duration::from_millis(ms.into())))
    }
}

/// `crypto.getRandomValues`.
pub(super) struct SystemRandom;

impl Random for SystemRandom {
    #[allow(clippy::expect_used)]
    fn fill(&self, bytes: &mut [u8]) {
        // Going on with bytes that are not random would be worse than ending the request.
        getrandom::fill(bytes).expect("the runtime has crypto.getRandomValues");
    }
}

/// How long one event, and the work spawned in it, may go on.
pub(super) struct EventLifetime(Event);

enum Event {
    Request(Context),
    Schedule(ScheduleContext),
}

impl EventLifetime {
    /// Work goes on for up to 30 s after the response, or after the client hung up.
    pub(super) fn of_request(context: Context) -> Self {
        Self(Event::Request(context))
    }

    /// Work goes on for up to 15 minutes.
    pub(super) fn of_schedule(context: ScheduleContext) -> Self {
        Self(Event::Schedule(context))
    }
}

impl Background for EventLifetime {
    fn spawn(&self, work: LocalBoxFuture<'static, ()>) {
        match &self.0 {
            Event::Request(context) => context.wait_until(work),
            Event::Schedule(context) => context.wait_until(work),
        }
    }
}

/// The Worker's log: `wrangler tail` and the dashboard show it.
pub(super) struct Console;

impl Log for Console {
    fn write(&self, record: LogRecord) {
        match record.level() {
            Level::Info => console_log!("{record}"),
            Level::Warning => console_warn!("{record}"),
            Level::Error => console_error!("{record}"),
        }
    }
}
