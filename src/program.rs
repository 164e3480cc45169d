//! The program on top: it routes requests to the two APIs, and does what is due by the clock. Nothing that it calls knows it.

use std::ops::Deref;

use futures_util::future;

use crate::{
    client,
    error::MatrixError,
    federation::inbound,
    log::LogRecord,
    media::tidying::tidy,
    platform::{Budget, Database, DatabaseError, LocalBoxFuture},
    router::{self, Answer, RequestBody, Response},
    server::Server,
    store::{
        forgetting::{WALKS, Walk, Walked},
        positions::OutboxPos,
    },
};

/// How many calls to the database each job of the scheduled trigger may make. The platform allows 1,000 for all of them.
const FORGET_CALLS: u64 = 80;
const QUEUE_CALLS: u64 = 280;
const DEPARTURE_CALLS: u64 = 70;
const PRESENCE_CALLS: u64 = 60;
const STAGED_CALLS: u64 = 500;

/// How many of the calls for what is staged may go to joins of large rooms; all else begins beside them with the rest.
const JOINS_CALLS: u64 = 300;

/// How many calls of a job are kept for what is under way when it should end.
const RESERVE: u64 = 30;

/// The same for looks at staged PDUs, each of which makes many.
const LOOKS_RESERVE: u64 = 100;

/// Of the calls for what is forgotten, how many may have been made when the tables have had their turn, where others wait for theirs,
/// and when the outbox has. The rest is for media.
const TABLES_CALLS: u64 = 30;
const OUTBOX_CALLS: u64 = 42;

/// How many rows of the outbox are deleted at a time.
const SLICE: i64 = 1_000;

/// How many slices of each other table are looked through in a minute.
const SLICES: usize = 5;

/// A server that answers requests and does its clock's work.
#[derive(Clone)]
pub struct Program(Server);

impl From<Server> for Program {
    fn from(server: Server) -> Self {
        Self(server)
    }
}

impl Deref for Program {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Program {
    /// Answers one request, with the whole of the answer's body.
    ///
    /// Boxed, as are [`Program::respond`] and [`Program::scheduled`]: what they await is then compiled with this crate, and not
    /// again with each that calls them. That is half a minute for every test binary.
    pub fn handle(&self, request: http::Request<impl Into<RequestBody>>) -> LocalBoxFuture<'_, Response> {
        self.whole(request.map(Into::into))
    }

    /// Answers one request.
    pub fn respond(&self, request: http::Request<RequestBody>) -> LocalBoxFuture<'_, Answer> {
        Box::pin(self.route(request))
    }

    fn whole(&self, request: http::Request<RequestBody>) -> LocalBoxFuture<'_, Response> {
        Box::pin(async move {
            let (parts, body) = self.respond(request).await.into_parts();
            match body.whole().await {
                Ok(bytes) => Response::from_parts(parts, bytes),
                Err(_) => router::error_response(&MatrixError::internal()),
            }
        })
    }

    async fn route(&self, request: http::Request<RequestBody>) -> Answer {
        let (begun, before) = (self.platform.clock.now_ms(), self.meter.cost());
        let record = LogRecord::info("request");
        let (response, record) = match client::is_of_clients(request.uri().path()) {
            true => client::handle(&self.0, request, record).await,
            false => inbound::handle(&self.0, request, record).await,
        };
        let record = record.duration(self.platform.clock.now_ms() - begun).cost(self.meter.cost().since(before));
        self.answered(&response, record);
        response
    }

    /// Refuses a request that the platform cannot represent.
    pub fn refuse(&self, error: &MatrixError) -> Answer {
        let (response, record) = router::answer(Err(error.clone()), LogRecord::info("request"));
        self.answered(&response, record);
        response
    }

    /// Logs the request, if it failed or all are logged.
    fn answered(&self, response: &Answer, record: LogRecord) {
        if self.config.log_costs || response.status().is_server_error() {
            self.platform.log.write(record.status(response.status()));
        }
    }

    /// Does what the scheduled trigger is for, once a minute: whatever a request began and could not finish.
    pub fn scheduled(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.do_and_log_what_is_due())
    }

    async fn do_and_log_what_is_due(&self) {
        let (begun, before) = (self.platform.clock.now_ms(), self.meter.cost());
        self.do_what_is_due().await;
        if self.config.log_costs {
            let record = LogRecord::info("scheduled").duration(self.platform.clock.now_ms() - begun);
            self.platform.log.write(record.cost(self.meter.cost().since(before)));
        }
    }

    async fn do_what_is_due(&self) {
        let [forgetting, queue, staged] = [FORGET_CALLS, QUEUE_CALLS, STAGED_CALLS].map(|calls| self.with_wall(calls));
        let [departing, presence] = [DEPARTURE_CALLS, PRESENCE_CALLS].map(|calls| self.with_wall(calls));
        let departure_budget = departing.meter.budget(DEPARTURE_CALLS - RESERVE);
        let presence_budget = presence.meter.budget(PRESENCE_CALLS - RESERVE);
        let forget_budget = forgetting.meter.budget(FORGET_CALLS - RESERVE);
        let queue_budget = queue.meter.budget(QUEUE_CALLS - RESERVE);
        let staged_budget = staged.meter.budget(STAGED_CALLS - LOOKS_RESERVE);
        let settling_budget = staged.meter.budget(STAGED_CALLS - RESERVE);
        // The joins' calls are theirs, whatever the looks begin.
        let (joins, beside) = (staged.counted_apart(), staged.with_wall(STAGED_CALLS - JOINS_CALLS));
        let joins_budget = joins.meter.budget(JOINS_CALLS);
        let [beside_staged, beside_settling] =
            [LOOKS_RESERVE, RESERVE].map(|reserve| beside.meter.budget(STAGED_CALLS - JOINS_CALLS - reserve));
        // Side by side: a server that answers slowly about missing events, or with the state of a large room, must not keep the rest
        // from moving.
        let looks = async {
            let joining = async {
                for large in joins.sweep_large_joins(&joins_budget).await {
                    client::has_joined(&joins, large.join.sender(), large.room_id()).await;
                }
            };
            future::join(joining, async {
                beside.sweep_staged(&beside_staged).await;
                beside.sweep_unsettled(&beside_settling).await;
            })
            .await;
            // What the joins have left over.
            if beside_staged.is_spent() || beside_settling.is_spent() {
                staged.sweep_staged(&staged_budget).await;
                staged.sweep_unsettled(&settling_budget).await;
            }
        };
        let departures = async {
            let left = client::sweep_departures(&departing, &departure_budget).await;
            // By the calls of the queue, which end no sending midway.
            queue.flush_now(&left, &queue_budget).await;
        };
        let users = future::join(departures, presence.sweep_presence(&presence_budget));
        future::join4(forget(&forgetting, &forget_budget), queue.sweep_queue(&queue_budget), looks, users).await;
    }
}

/// What was looked through of the outbox as it came to be heard by all.
const OUTBOX: &str = "outbox";
/// What was looked through again of what that has left.
const KEPT_OUTBOX: &str = "outbox_kept";

/// Something of the outbox is left to be looked through in this hour.
const OUTBOX_LEFT: &str = "outbox_left";
/// Something of media is left to be forgotten in this hour.
const MEDIA_LEFT: &str = "media_left";

/// Forgets what all have heard of the outbox since it was looked through last; and of what stayed then, what has become of no use since:
/// a slice where the hour begins, as that may be much of which little goes, and as many more as there were of what is new, so that no more
/// stays than goes. Whether there is no more of what is new.
async fn forget_outbox(
    server: &Server,
    walked: &Walked,
    is_hour: bool,
    now: i64,
    budget: &Budget,
) -> Result<bool, DatabaseError> {
    let last = server.store.heard_by_all(now).await?;
    let (front, kept) = (walked.of_outbox(OUTBOX), walked.of_outbox(KEPT_OUTBOX));
    let mut next = Some(kept);
    if is_hour {
        next = server.store.forget_outbox(kept, front.min(last), SLICE).await?;
    }
    let (mut reached, mut after) = (front, Some(front));
    while let Some(position) = after.filter(|_| !budget.is_spent()) {
        after = server.store.forget_outbox(position, last, SLICE).await?;
        reached = after.unwrap_or(last).max(reached);
        if let (Some(_), Some(kept)) = (after, next) {
            next = server.store.forget_outbox(kept, front.min(last), SLICE).await?;
        }
    }
    server.store.note_of_outbox(KEPT_OUTBOX, next.unwrap_or(OutboxPos::START)).await?;
    server.store.note_of_outbox(OUTBOX, reached).await?;
    Ok(after.is_none())
}

/// Goes on with the walks through tables, or begins them all, where the hour does: a slice of each in turn.
async fn walk_on(
    server: &Server,
    walked: &mut Walked,
    is_hour: bool,
    now: i64,
    budget: &Budget,
) -> Result<(), DatabaseError> {
    let mut walks: Vec<&Walk> = WALKS.iter().filter(|walk| is_hour || walked.is_under_way(walk)).collect();
    for _ in 0..SLICES {
        for walk in std::mem::take(&mut walks) {
            if budget.is_spent() {
                return Ok(());
            }
            server.store.walk_on(walk, walked, now).await?;
            walks.extend(Some(walk).filter(|walk| walked.is_under_way(walk)));
        }
    }
    Ok(())
}

/// Begins once an hour to forget what nobody will ask for any more, a slice at a time, and goes on with what is not done.
async fn forget(server: &Server, budget: &Budget) {
    let now = server.platform.clock.now_ms();
    let is_hour = (now / 60_000) % 60 == 0;
    let [of_tables, of_outbox] = [TABLES_CALLS, OUTBOX_CALLS].map(|calls| server.meter.budget(calls));
    let mut walked = Walked::default();
    let outcome = async {
        walked = server.store.walked().await?;
        let is_outbox_due = is_hour || walked.is_left(OUTBOX_LEFT);
        let is_shared = is_outbox_due || walked.is_left(MEDIA_LEFT);
        walk_on(server, &mut walked, is_hour, now, if is_shared { &of_tables } else { budget }).await?;
        if is_outbox_due {
            let is_done = forget_outbox(server, &walked, is_hour, now, &of_outbox).await?;
            server.store.note_left(OUTBOX_LEFT, &walked, !is_done).await?;
        }
        Ok::<_, DatabaseError>(())
    };
    if let Err(error) = outcome.await {
        server.platform.log.write(LogRecord::error("old rows cannot be deleted").because(&error));
    }
    if (is_hour || walked.is_left(MEDIA_LEFT))
        && let Err(error) = tidy_on(server, &walked, budget).await
    {
        server.platform.log.write(LogRecord::error("unused media cannot be deleted").because(&error));
    }
}

/// Goes on with media that nobody asks for. Where that fails it is begun anew in the next hour.
async fn tidy_on(server: &Server, walked: &Walked, budget: &Budget) -> Result<(), MatrixError> {
    let outcome = tidy(server, budget).await;
    server.store.note_left(MEDIA_LEFT, walked, matches!(outcome, Ok(false))).await?;
    outcome.map(drop)
}
