//! An in-memory world: several whole servers, each over its own SQLite database, on a network whose links can be cut,
//! with one virtual clock that moves only when everybody waits. A test is a plain function:
//!
//! ```ignore
//! let world = World::new();
//! let (a, b) = (world.server("a.example"), world.server("b.example"));
//! world.run(async { … a.handle(request).await … });
//! world.settle();            // all background work done
//! world.cut("a.example", "b.example");
//! ```

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::{Future, poll_fn},
    ops::Deref,
    pin::{Pin, pin},
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use futures_util::{
    future::{Either, select},
    stream::{FuturesUnordered, StreamExt},
};
use sha2::{Digest, Sha256};
use verge::{
    config::Config,
    log::LogRecord,
    platform::{
        Background, BodyError, Clock, Database, DatabaseError, LocalBoxFuture, Log, OutboundRequest, Platform, Random,
        Rows, Statement, StreamedResponse, Transport, TransportError,
        media::ByteStream,
        news::{Polling, Waking},
        turns::{one_by_one, turn_after},
    },
    program::Program,
    router::{Request, Response},
    server::Server,
};

use super::{
    media::{PIECE, Pieces, Shelves},
    sqlite::Sqlite,
};

/// What answers requests that reach a host.
pub type Host = Rc<dyn Fn(Request) -> LocalBoxFuture<'static, Response>>;

/// What stands between two servers: it may lose, change, double or hold back what passes.
pub type Wire = Rc<dyn Fn(Passing) -> LocalBoxFuture<'static, Result<Response, TransportError>>>;

/// A request on its way.
pub struct Passing {
    /// The server name of the sender.
    pub from: String,
    /// The host it is sent to.
    pub to: String,
    /// The request as it was sent.
    pub request: Request,
    /// What would answer it.
    pub host: Host,
}

/// The world of one test. Cheap to clone.
#[derive(Clone)]
pub struct World(Rc<Inner>);

struct Inner {
    time: VirtualTime,
    hosts: RefCell<BTreeMap<String, Host>>,
    wire: RefCell<Option<Wire>>,
    down: RefCell<BTreeSet<(String, String)>>,
    deaf: RefCell<BTreeSet<(String, String)>>,
    traffic: RefCell<Vec<Sent>>,
    spawned: RefCell<Vec<LocalBoxFuture<'static, ()>>>,
    tasks: RefCell<FuturesUnordered<LocalBoxFuture<'static, ()>>>,
    random: Cell<u64>,
    interleave: Cell<bool>,
    wakes: Cell<bool>,
    is_patient: Cell<bool>,
    pauses: Cell<usize>,
    rows: Cell<Rowed>,
    most_rows: Cell<Rowed>,
    logs: RefCell<Vec<String>>,
    shelves: RefCell<BTreeMap<String, Shelves>>,
    drips: RefCell<BTreeMap<String, Drip>>,
}

/// How a host's answers come: those to requests whose line holds `part`, in pieces of so many bytes, one every `ms`, to the end or
/// not.
#[derive(Clone, Copy)]
struct Drip {
    part: &'static str,
    piece: usize,
    ms: u32,
    breaks_off: bool,
}

/// The variables that bound how often may be asked; tests ask as often as they like, unless they set one.
pub const RATES: [&str; 8] = [
    "LOGIN_RATE",
    "REGISTRATION_RATE",
    "TOKEN_VALIDITY_RATE",
    "FEDERATION_RATE",
    "NOTARY_RATE",
    "PROFILE_RATE",
    "UPLOAD_RATE",
    "REMOTE_MEDIA_RATE",
];

/// A server of this world.
#[derive(Clone)]
pub struct Homeserver {
    pub server: Rc<Program>,
    pub database: Sqlite,
}

impl Deref for Homeserver {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.server
    }
}

/// The signing key of the server `name`: as good as any other, and the same in every run.
pub fn signing_key(name: &str) -> String {
    format!("ed25519 auto {}", STANDARD_NO_PAD.encode(Sha256::digest(name)))
}

/// So many rows were read, and written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rowed {
    pub read: usize,
    pub written: u64,
}

/// One request that one server sent another, whether it arrived or not.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The server name of the sender.
    pub from: String,
    /// The host it was sent to.
    pub to: String,
    /// Method, then path and query.
    pub line: String,
}

impl World {
    /// An empty world at a fixed time, with a fixed seed.
    pub fn new() -> Self {
        Self::seeded(1)
    }

    /// An empty world whose randomness comes from `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(Rc::new(Inner {
            time: VirtualTime::default(),
            hosts: RefCell::default(),
            wire: RefCell::default(),
            down: RefCell::default(),
            deaf: RefCell::default(),
            traffic: RefCell::default(),
            spawned: RefCell::default(),
            tasks: RefCell::default(),
            random: Cell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            interleave: Cell::new(false),
            wakes: Cell::new(false),
            is_patient: Cell::new(true),
            pauses: Cell::new(0),
            rows: Cell::default(),
            most_rows: Cell::default(),
            logs: RefCell::default(),
            shelves: RefCell::default(),
            drips: RefCell::default(),
        }))
    }

    /// From now on, every database call and request waits a random number of turns first, so that whatever runs at the
    /// same time is interleaved at random.
    pub fn interleave(&self) {
        self.0.interleave.set(true);
    }

    /// From now on, requests that are not answered within their time end then, as at the edge. Before, they wait as long as it takes.
    pub fn time_out(&self) {
        self.0.is_patient.set(false);
    }

    /// How often work has let others have their turn.
    pub fn pauses(&self) -> usize {
        self.0.pauses.get()
    }

    /// The most rows that were read, and written, without letting others have their turn in between.
    pub fn most_rows(&self) -> Rowed {
        self.0.most_rows.get()
    }

    /// From now on, servers are made so that a commit wakes those who wait for it, as where one object holds the server and its
    /// database; before, they look again and again. Where work is several batches, others have their turn between them there.
    pub fn wake_by_commits(&self) {
        self.0.wakes.set(true);
    }

    /// A new homeserver called `name` over a database of its own, reached under its name.
    pub fn server(&self, name: &str) -> Homeserver {
        self.server_over(name, Sqlite::in_memory(), &[])
    }

    /// As [`World::server`], over a given database and with further configuration variables. Several of one name over one
    /// database are isolates of one server; the last one made is the one that is reached.
    pub fn server_over(&self, name: &str, database: Sqlite, variables: &[(&str, &str)]) -> Homeserver {
        database.take_time_from(self.0.time.0.borrow().told.clone());
        let signing_key = signing_key(name);
        let own = [("SERVER_NAME", name), ("SIGNING_KEY", &signing_key), ("REGISTRATION", "open")];
        // Where a test is not about it, a join is done when it is answered.
        let rates = RATES.into_iter().chain(["FASTER_JOINS"]).map(|name| (name, "off"));
        let rates: Vec<_> = rates.collect();
        let find = |wanted: &str| {
            let mut all = variables.iter().chain(&own).chain(&rates);
            all.find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned())
        };
        let config = Rc::new(Config::parse(find).unwrap());
        let server = Rc::new(Program::from(Server::new(config, self.platform(name, database.clone()))));
        self.connect_server(name.split(':').next().unwrap(), &server);
        Homeserver { server, database }
    }

    /// A platform for the server `name` over `database`, connected to this world.
    pub fn platform(&self, name: &str, database: Sqlite) -> Platform {
        Platform {
            database: Rc::new(Interleaved { world: self.clone(), database }),
            transport: Rc::new(Link { world: Rc::downgrade(&self.0), from: name.to_owned() }),
            news: match self.0.wakes.get() {
                true => Rc::new(Waking::new(Rc::new(self.clone()))),
                false => Rc::new(Polling::new(Rc::new(self.clone()))),
            },
            clock: Rc::new(self.clone()),
            random: Rc::new(self.clone()),
            background: Rc::new(self.clone()),
            log: Rc::new(Lines { world: Rc::downgrade(&self.0), name: name.to_owned() }),
            media: Some(Rc::new(self.shelves(name))),
        }
    }

    /// Lets requests to `host` be answered by `answer`: a server, or something that only looks like one.
    pub fn connect(&self, host: &str, answer: Host) {
        self.0.hosts.borrow_mut().insert(host.to_owned(), answer);
    }

    /// Lets requests to `host` reach `server`.
    pub fn connect_server(&self, host: &str, server: &Rc<Program>) {
        let server = Rc::clone(server);
        self.connect(
            host,
            Rc::new(move |request| {
                let server = Rc::clone(&server);
                Box::pin(async move { server.handle(request).await })
            }),
        );
    }

    /// From now on the answers of `host` to requests whose line holds `part` come in pieces of so many bytes, one every `ms`, where
    /// they are read as they come.
    pub fn drip(&self, host: &str, part: &'static str, piece: usize, ms: u32) {
        self.0.drips.borrow_mut().insert(host.to_owned(), Drip { part, piece, ms, breaks_off: false });
    }

    /// As [`World::drip`], and the last byte never comes: there the answers break off.
    pub fn break_off(&self, host: &str, part: &'static str, piece: usize, ms: u32) {
        self.0.drips.borrow_mut().insert(host.to_owned(), Drip { part, piece, ms, breaks_off: true });
    }

    /// From now on `host` answers so many milliseconds late to requests whose path holds `part`.
    pub fn answer_late(&self, host: &str, part: &str, ms: u32) {
        let (answer, clock, part) = (self.host(host).unwrap(), self.clone(), part.to_owned());
        self.connect(
            host,
            Rc::new(move |request| {
                let is_late = request.uri().path().contains(&part);
                let (answering, clock) = (answer(request), clock.clone());
                Box::pin(async move {
                    let response = answering.await;
                    if is_late {
                        clock.sleep(ms).await;
                    }
                    response
                })
            }),
        );
    }

    /// Takes the host off the network, as a server that is switched off.
    pub fn disconnect(&self, host: &str) {
        self.0.hosts.borrow_mut().remove(host);
    }

    /// What answers requests to `host`, if anything does.
    pub fn host(&self, host: &str) -> Option<Host> {
        self.0.hosts.borrow().get(host).cloned()
    }

    /// Lets everything that servers send each other pass through `wire`.
    pub fn tap(&self, wire: Wire) {
        *self.0.wire.borrow_mut() = Some(wire);
    }

    /// Lets go of all servers and of what they are at. They hold the world, and it them: without this a test of many worlds
    /// keeps them all.
    pub fn end(&self) {
        self.0.hosts.borrow_mut().clear();
        self.0.wire.borrow_mut().take();
        self.0.spawned.borrow_mut().clear();
        self.0.tasks.borrow_mut().clear();
    }

    /// Cuts the link between two servers, both ways.
    pub fn cut(&self, one: &str, other: &str) {
        self.0.down.borrow_mut().insert(link(one, other));
    }

    /// From now on requests between the two arrive, but their answers are lost.
    pub fn lose_answers(&self, one: &str, other: &str) {
        self.0.deaf.borrow_mut().insert(link(one, other));
    }

    /// Makes the link between two servers whole again.
    pub fn mend(&self, one: &str, other: &str) {
        self.0.down.borrow_mut().remove(&link(one, other));
        self.0.deaf.borrow_mut().remove(&link(one, other));
    }

    /// The requests sent so far, in order.
    pub fn traffic(&self) -> Vec<Sent> {
        self.0.traffic.borrow().clone()
    }

    /// The lines logged so far, each with the name of its server.
    pub fn logs(&self) -> Vec<String> {
        self.0.logs.borrow().clone()
    }

    /// Where the server `name` keeps its media.
    pub fn shelves(&self, name: &str) -> Shelves {
        self.0.shelves.borrow_mut().entry(name.to_owned()).or_default().clone()
    }

    /// The time now, in milliseconds since the epoch.
    pub fn now_ms(&self) -> i64 {
        self.0.time.0.borrow().now
    }

    /// Moves the clock forwards.
    pub fn advance(&self, ms: i64) {
        self.0.time.advance_to(self.now_ms() + ms);
    }

    /// Runs `future` to its end, and whatever is in the background beside it.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut result = None;
        self.drive(|context| match future.as_mut().poll(context) {
            Poll::Ready(value) => {
                result = Some(value);
                true
            }
            Poll::Pending => false,
        });
        result.unwrap()
    }

    /// Runs what is in the background until nothing is left, the clock moving as needed.
    pub fn settle(&self) {
        self.drive(|_| self.0.spawned.borrow().is_empty() && self.0.tasks.borrow().is_empty());
    }

    fn drive(&self, mut done: impl FnMut(&mut Context<'_>) -> bool) {
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        loop {
            woken.0.store(false, Ordering::SeqCst);
            if done(&mut context) {
                return;
            }
            let ended = self.poll_background(&mut context);
            let idle = !ended && !woken.0.load(Ordering::SeqCst) && self.0.spawned.borrow().is_empty();
            assert!(!idle || self.0.time.advance_to_next(), "everybody waits, and nobody for the clock");
        }
    }

    /// Polls the background once; says whether some of it ended.
    fn poll_background(&self, context: &mut Context<'_>) -> bool {
        let mut ended = false;
        loop {
            let spawned = std::mem::take(&mut *self.0.spawned.borrow_mut());
            let mut tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
            tasks.extend(spawned);
            let poll = tasks.poll_next_unpin(context);
            *self.0.tasks.borrow_mut() = tasks;
            if !matches!(poll, Poll::Ready(Some(()))) {
                return ended;
            }
            ended = true;
        }
    }

    fn next_random(&self) -> u64 {
        // xorshift64*: enough for tests.
        let mut x = self.0.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    async fn some_turns(&self) {
        if self.0.interleave.get() {
            for _ in 0..self.next_random() % 4 {
                yield_now().await;
            }
        }
    }

    async fn deliver(self, from: String, outbound: OutboundRequest) -> Result<Response, TransportError> {
        let to = outbound.connect_host;
        let target = outbound.request.uri().path_and_query().map_or("/", |target| target.as_str());
        let line = format!("{} {target}", outbound.request.method());
        self.0.traffic.borrow_mut().push(Sent { from: from.clone(), to: to.clone(), line });
        self.some_turns().await;
        if self.0.down.borrow().contains(&link(&from, &to)) {
            return Err(TransportError::Failed("the link is cut".to_owned()));
        }
        let Some(host) = self.host(&to) else {
            return Err(TransportError::Failed(format!("no host is called {to}")));
        };
        let wire = self.0.wire.borrow().clone();
        let answer: LocalBoxFuture<'_, _> = match wire {
            Some(wire) => wire(Passing { from: from.clone(), to: to.clone(), request: outbound.request, host }),
            None => Box::pin(async move { Ok(host(outbound.request).await) }),
        };
        let response = match self.0.is_patient.get() {
            true => answer.await?,
            false => match select(answer, self.sleep(outbound.timeout_ms)).await {
                Either::Left((response, _)) => response?,
                Either::Right(_) => return Err(TransportError::TimedOut),
            },
        };
        self.some_turns().await;
        let deaf = self.0.deaf.borrow().contains(&link(&from, &to)) || self.0.down.borrow().contains(&link(&from, &to));
        if deaf {
            return Err(TransportError::TimedOut);
        }
        if response.body().len() > outbound.max_response_bytes {
            return Err(TransportError::TooLarge);
        }
        Ok(response)
    }
}

fn link(one: &str, other: &str) -> (String, String) {
    let (one, other) = (one.to_owned(), other.to_owned());
    if one < other { (one, other) } else { (other, one) }
}

pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Link {
    world: Weak<Inner>,
    from: String,
}

impl Transport for Link {
    fn send(&self, request: OutboundRequest) -> LocalBoxFuture<'_, Result<http::Response<Bytes>, TransportError>> {
        let world = World(self.world.upgrade().unwrap());
        Box::pin(world.deliver(self.from.clone(), request))
    }

    fn open(&self, request: OutboundRequest) -> LocalBoxFuture<'_, Result<StreamedResponse, TransportError>> {
        Box::pin(async {
            let world = World(self.world.upgrade().unwrap());
            let drip = world.0.drips.borrow().get(&request.connect_host).copied();
            let drip = drip.filter(|drip| request.request.uri().path().contains(drip.part));
            let (head, body) = self.send(request).await?.into_parts();
            if let Some(Drip { piece, ms, breaks_off, .. }) = drip {
                let pieces = match breaks_off {
                    true => Pieces::cut_off(body.slice(..body.len().saturating_sub(1)), piece),
                    false => Pieces::new(body, piece),
                };
                let stream = Dripping { pieces, clock: Rc::new(world), ms };
                return Ok(http::Response::from_parts(head, Box::new(stream) as Box<dyn ByteStream>));
            }
            let is_json = head.headers.get(http::header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
            // Files come piece by piece.
            let piece = if is_json { body.len().max(1) } else { PIECE };
            Ok(http::Response::from_parts(head, Box::new(Pieces::new(body, piece)) as Box<dyn ByteStream>))
        })
    }
}

/// A body of which each piece takes its time.
struct Dripping {
    pieces: Pieces,
    clock: Rc<dyn Clock>,
    ms: u32,
}

impl ByteStream for Dripping {
    fn next(&mut self) -> LocalBoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async {
            self.clock.sleep(self.ms).await;
            self.pieces.next().await
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

struct Interleaved {
    world: World,
    database: Sqlite,
}

impl Database for Interleaved {
    fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        Box::pin(async move {
            self.world.some_turns().await;
            let written = self.database.changed.get();
            let answer = self.database.batch(statements).await;
            let inner = &self.world.0;
            let (rows, most) = (inner.rows.get(), inner.most_rows.get());
            let read = rows.read + answer.iter().flatten().map(Vec::len).sum::<usize>();
            let written = rows.written + self.database.changed.get() - written;
            inner.rows.set(Rowed { read, written });
            inner.most_rows.set(Rowed { read: most.read.max(read), written: most.written.max(written) });
            if let (true, Ok(answers)) = (inner.wakes.get(), &answer) {
                turn_after(&self.world, answers).await;
            }
            self.world.some_turns().await;
            answer
        })
    }

    fn batches(&self, batches: Vec<Vec<Statement>>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        match self.world.0.wakes.get() {
            true => Box::pin(one_by_one(self, &self.world, batches)),
            false => self.batch(batches.into_iter().flatten().collect()),
        }
    }
}

impl Clock for World {
    fn now_ms(&self) -> i64 {
        self.0.time.0.borrow().now
    }

    fn sleep(&self, ms: u32) -> LocalBoxFuture<'static, ()> {
        let time = self.0.time.clone();
        let deadline = self.now_ms() + i64::from(ms);
        Box::pin(Sleep { time, deadline, id: None })
    }

    fn pause(&self) -> LocalBoxFuture<'static, ()> {
        self.0.pauses.set(self.0.pauses.get() + 1);
        self.0.rows.set(Rowed::default());
        Box::pin(yield_now())
    }
}

impl Random for World {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = (self.next_random() >> 32) as u8;
        }
    }
}

impl Background for World {
    fn spawn(&self, work: LocalBoxFuture<'static, ()>) {
        self.0.spawned.borrow_mut().push(work);
    }
}

struct Lines {
    world: Weak<Inner>,
    name: String,
}

impl Log for Lines {
    fn write(&self, record: LogRecord) {
        if let Some(world) = self.world.upgrade() {
            world.logs.borrow_mut().push(format!("{}: {record}", self.name));
        }
    }
}

#[derive(Clone)]
struct VirtualTime(Rc<RefCell<Time>>);

struct Time {
    now: i64,
    /// The same for the databases, which ask for it by themselves.
    told: Arc<AtomicI64>,
    next_sleeper: u64,
    sleepers: BTreeMap<u64, (i64, Waker)>,
}

impl Default for VirtualTime {
    fn default() -> Self {
        let now = 1_800_000_000_000;
        let told = Arc::new(AtomicI64::new(now));
        Self(Rc::new(RefCell::new(Time { now, told, next_sleeper: 0, sleepers: BTreeMap::new() })))
    }
}

impl VirtualTime {
    /// Moves the clock to the moment for which somebody waits, unless nobody does.
    fn advance_to_next(&self) -> bool {
        let next = self.0.borrow().sleepers.values().map(|(deadline, _)| *deadline).min();
        if let Some(next) = next {
            self.advance_to(next);
        }
        next.is_some()
    }

    fn advance_to(&self, now: i64) {
        let mut time = self.0.borrow_mut();
        time.now = time.now.max(now);
        let now = time.now;
        time.told.store(now, Ordering::Relaxed);
        let due: Vec<Waker> = time.sleepers.values().filter(|(due, _)| *due <= now).map(|(_, w)| w.clone()).collect();
        time.sleepers.retain(|_, (deadline, _)| *deadline > now);
        drop(time);
        due.into_iter().for_each(Waker::wake);
    }
}

struct Sleep {
    time: VirtualTime,
    deadline: i64,
    id: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let time = self.time.clone();
        let mut time = time.0.borrow_mut();
        if time.now >= self.deadline {
            return Poll::Ready(());
        }
        let id = *self.id.get_or_insert_with(|| {
            time.next_sleeper += 1;
            time.next_sleeper
        });
        time.sleepers.insert(id, (self.deadline, context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.time.0.borrow_mut().sleepers.remove(&id);
        }
    }
}
