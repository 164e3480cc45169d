//! What one isolate lets in: the bytes that it works on, and how often somebody may ask (Client-Server API, "Rate
//! limiting").
//!
//! All of it is bounded before any work is done, and lives in the isolate's memory as plain values: nothing of it costs a
//! row, and each isolate counts for itself.

mod waiting;
mod work;

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
};

use http::HeaderMap;

use waiting::Waiting;
use work::Work;

/// How many bytes of memory the requests in work may take together; an isolate has 128 MB for everything.
const IN_WORK_BYTES: usize = 80 * 1024 * 1024;
/// What a body takes for each of its bytes while it is worked on: its text, the values read of it, what is written of them.
pub const MEMORY_FOR_A_BYTE: usize = 6;
/// The same while it is read: where it grows, it is in two places.
const READING_A_BYTE: usize = 2;
/// How much of it what comes under one server's name may take, and from one network; a body beside which they have nothing else may
/// take more. Before its body was read nobody has proven who they are, and whoever says that they are another leaves room for that one too.
const MOST_OF_ORIGIN: usize = IN_WORK_BYTES / 2;
const MOST_OF_NETWORK: usize = IN_WORK_BYTES / 3;
/// How much of it answers may take together, those given and those read, so that bodies have room beside them: one may take all.
const MOST_OF_ANSWERS: usize = IN_WORK_BYTES / 4 * 3;
/// A file of no more takes little: most images do, and many are asked for at once.
pub const LITTLE_FILE: usize = 128 * 1024;
/// How much of it parts of files may take together, and the little ones beside them: what the longest answer leaves, however slowly
/// files come.
const MOST_OF_PARTS: usize = IN_WORK_BYTES / 16 * 3;
const MOST_OF_LITTLE: usize = IN_WORK_BYTES / 16;
/// How much of either who sends them may have of it while others wait who have less.
const SHARE_OF_PARTS: usize = MOST_OF_PARTS / 3;
const SHARE_OF_LITTLE: usize = MOST_OF_LITTLE / 3;
/// For so long, in milliseconds, others wait before what is more than a share gives way to them.
const OVER_A_SHARE_MS: i64 = 10_000;
/// For so long, in milliseconds, a part counts as one of those that look whether they must give way: all do so more often.
const LOOKED_MS: i64 = 3_000;
/// For so long, in milliseconds, a request is believed to be in work. One that the platform has cut off does not say so.
const LONGEST_WORK_MS: i64 = 5 * 60 * 1_000;
/// For so long, in milliseconds, a body may be read.
pub const READ_MS: u32 = 30_000;
/// For so long, in milliseconds, it is believed to be read: a little longer, so that it counts all that time.
const LONGEST_READ_MS: i64 = READ_MS as i64 + 5_000;
/// The same of the work on an answer that is made, or read, and on media, since it last took more.
const LONGEST_ANSWER_MS: i64 = 60 * 1_000;
/// Where the platform says that requests of others' Workers come from.
const ADDRESS_OF_WORKERS: &str = "2a06:98c0:3600::103";
/// How many of those who ask are remembered for each kind of request.
const MAX_BUCKETS: usize = 8_192;

/// What the servers of one isolate share of this.
#[derive(Default)]
pub struct Admission {
    in_work: InWork,
    buckets: [RefCell<HashMap<String, Bucket>>; Kind::ALL],
}

/// What is counted apart from all else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `POST /login`, by address and by account.
    Login,
    /// `POST /register`, by address.
    Registration,
    /// Whether a registration token is valid, by address.
    TokenValidity,
    /// Whether a user name is free, by address.
    NameQuery,
    /// `POST /refresh`, by address.
    Refresh,
    /// Signed requests, by origin.
    Federation,
    /// Origins whose keys are asked for as they are not held, by address.
    UnknownOrigin,
    /// Questions to other servers that a notary's askers cause, by address.
    Notary,
    /// The same, by the server that is asked.
    NotaryOrigin,
    /// One-time keys given out, by device and origin or local user.
    KeyClaims,
    /// Uploads of media, by user.
    Upload,
    /// Other servers' media that are fetched, by user.
    RemoteMedia,
    /// Other servers' users' profiles that are asked for without a token, by address.
    RemoteProfile,
    /// Pages of the room directory that are asked for without a token, by address.
    Directory,
    /// Third-party identifiers said to be bound, by address.
    Bindings,
    /// Syncs that have their user be there, by user and presence.
    Presence,
}

impl Kind {
    const ALL: usize = 16;
}

/// How often something may be asked: so many times at once, and as many again over so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many at once.
    pub burst: u32,
    /// In so many seconds as many again are allowed.
    pub seconds: u32,
}

impl Rate {
    /// How many milliseconds it takes until one more is allowed.
    pub fn ms_for_one(self) -> u32 {
        self.seconds.saturating_mul(1_000).div_ceil(self.burst)
    }
}

/// Whether a request may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Now.
    Now,
    /// After so many milliseconds.
    After(u32),
    /// Not at all; it may be asked again in so many milliseconds.
    Refused(u32),
}

/// Whom what is in work is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whose {
    /// The server that it is said to be from; empty for none.
    pub origin: String,
    /// Where it comes from, see [`network_of_request`]; empty where that is not known.
    pub network: String,
}

/// Bytes that a request works on, until it is dropped.
#[derive(Debug)]
pub struct Reservation {
    held: Rc<RefCell<HashMap<u64, Held>>>,
    waiting: Rc<RefCell<Waiting>>,
    id: u64,
    terms: Rc<Terms>,
}

/// What bytes are for, and so how many there may be of them.
#[derive(Debug)]
struct Terms {
    work: Work,
    whose: Whose,
    /// Of a part, who sends it; empty for all else.
    sender: Rc<str>,
}

impl Work {
    fn longest_ms(self) -> i64 {
        match self {
            Self::Body => LONGEST_WORK_MS,
            Self::Answer | Self::Part | Self::LittlePart => LONGEST_ANSWER_MS,
        }
    }

    /// How much of it there may be while others are in work, and one sender's share of it; `None` for all that there is.
    fn most(self) -> Option<(usize, usize)> {
        match self {
            Self::Body => None,
            Self::Answer => Some((MOST_OF_ANSWERS, MOST_OF_ANSWERS)),
            Self::Part => Some((MOST_OF_PARTS, SHARE_OF_PARTS)),
            Self::LittlePart => Some((MOST_OF_LITTLE, SHARE_OF_LITTLE)),
        }
    }
}

#[derive(Default)]
struct InWork {
    held: Rc<RefCell<HashMap<u64, Held>>>,
    waiting: Rc<RefCell<Waiting>>,
    last_id: Cell<u64>,
}

impl InWork {
    fn next_id(&self) -> u64 {
        self.last_id.get().wrapping_add(1)
    }
}

#[derive(Debug)]
struct Held {
    bytes: usize,
    until: i64,
    terms: Rc<Terms>,
    /// Of a part, since when more of it is due, and when it has looked whether it must give way.
    due: Option<(i64, i64)>,
}

/// A bucket that fills with tokens up to its rate's burst; below zero stand those who wait.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: i64,
}

impl Admission {
    /// Makes room for work on `body_bytes` at `now`; `None` where too much is in work. One body has room whatever its size.
    pub fn reserve(&self, body_bytes: usize, now: i64) -> Option<Reservation> {
        let terms = Terms::of(Work::Body);
        self.take_room(body_bytes.saturating_mul(MEMORY_FOR_A_BYTE), terms, now + LONGEST_WORK_MS, now)
    }

    /// Makes room for an answer of so many bytes of memory at `now`; `None` where too much is in work.
    pub fn reserve_memory(&self, bytes: usize, now: i64) -> Option<Reservation> {
        let terms = Terms::of(Work::Answer);
        self.take_room(bytes, terms, now + LONGEST_ANSWER_MS, now)
    }

    /// Makes room for so many bytes of a file that is on its way from `sender` at `now`; `None` where too much is in work, or where
    /// others wait who have less than they would. Who is refused waits as long as they ask again and again.
    pub fn reserve_for_part(&self, bytes: usize, sender: &Rc<str>, now: i64) -> Option<Reservation> {
        let work = if bytes <= LITTLE_FILE { Work::LittlePart } else { Work::Part };
        let terms = Terms { sender: Rc::clone(sender), ..Terms::of(work) };
        if !self.is_their_turn(&terms, bytes, now) {
            return None;
        }
        self.take_room(bytes, terms, now + LONGEST_ANSWER_MS, now)
    }

    /// Makes room to read a body of at most `body_bytes` at `now`; `None` where too much is in work, altogether or of theirs. What
    /// it takes once it is there says [`Reservation::is_read`].
    pub fn reserve_to_read(&self, body_bytes: usize, whose: Whose, now: i64) -> Option<Reservation> {
        let terms = Terms { whose, ..Terms::of(Work::Body) };
        self.take_room(body_bytes.saturating_mul(READING_A_BYTE), terms, now + LONGEST_READ_MS, now)
    }

    /// Whether a part has room among parts. Who waits without as much as a share comes before those who would have more than that.
    fn is_their_turn(&self, terms: &Terms, bytes: usize, now: i64) -> bool {
        let mut held = self.in_work.held.borrow_mut();
        held.retain(|_, held| held.until > now);
        let mut waiting = self.in_work.waiting.borrow_mut();
        let is_within_share = !terms.is_over_share(&held, bytes);
        let has_room = terms.have_room_among_their_kind(&held, self.in_work.next_id(), bytes);
        if is_within_share {
            waiting.note(terms.work, &terms.sender, !has_room, now);
        }
        has_room && (is_within_share || !waiting.has_others(terms.work, &terms.sender, now))
    }

    fn take_room(&self, bytes: usize, terms: Terms, until: i64, now: i64) -> Option<Reservation> {
        let mut held = self.in_work.held.borrow_mut();
        held.retain(|_, held| held.until > now);
        let id = self.in_work.next_id();
        if !terms.have_room(&held, id, bytes) {
            return None;
        }
        self.in_work.last_id.set(id);
        let terms = Rc::new(terms);
        held.insert(id, Held { bytes, until, terms: Rc::clone(&terms), due: None });
        let (held, waiting) = (Rc::clone(&self.in_work.held), Rc::clone(&self.in_work.waiting));
        Some(Reservation { held, waiting, id, terms })
    }

    /// Takes one of what `rate` allows `who`, at `now`. Those who would have to wait for at most `patience_ms` are told to,
    /// one after the other; all others are refused and cost nothing.
    pub fn take(&self, kind: Kind, who: &str, rate: Rate, patience_ms: u32, now: i64) -> Turn {
        let mut buckets = self.buckets[kind as usize].borrow_mut();
        let per_ms = f64::from(rate.burst) / (f64::from(rate.seconds) * 1_000.0);
        let full = f64::from(rate.burst);
        let filled = |bucket: &Bucket| (bucket.tokens + (now - bucket.at).max(0) as f64 * per_ms).min(full);
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(who) {
            buckets.retain(|_, bucket| filled(bucket) < full);
            if buckets.len() >= MAX_BUCKETS {
                // So many names at once are an attacker's: whom it forgets of them does not matter.
                buckets.clear();
            }
        }
        let bucket = buckets.entry(who.to_owned()).or_insert(Bucket { tokens: full, at: now });
        let tokens = filled(bucket) - 1.0;
        // Rounding up: who comes back at that time must find a token.
        let wait = if tokens >= 0.0 { 0 } else { (-tokens / per_ms).ceil() as u32 };
        if wait > patience_ms {
            return Turn::Refused(wait);
        }
        *bucket = Bucket { tokens, at: now };
        if wait == 0 { Turn::Now } else { Turn::After(wait) }
    }
}

impl Reservation {
    /// Makes it what work on the body takes from `now` on, when the body is there and has so many bytes. `false` where too much is
    /// in work.
    pub fn is_read(&self, body_bytes: usize, now: i64) -> bool {
        self.hold(body_bytes.saturating_mul(MEMORY_FOR_A_BYTE), now)
    }

    /// Makes it last, from `now` on, for as long as somebody else works on the body that was read. `false` where too much is in work.
    pub fn is_passed_on(&self, body_bytes: usize, now: i64) -> bool {
        self.hold(body_bytes.saturating_mul(READING_A_BYTE), now)
    }

    /// Makes it so many bytes of memory if it is less. `false` where too much is in work: then it stays what it was.
    pub fn hold_at_least(&self, bytes: usize, now: i64) -> bool {
        let held = self.held.borrow().get(&self.id).map_or(0, |held| held.bytes);
        self.hold(held.max(bytes), now)
    }

    /// Makes it so many bytes of memory, which count from `now` on. `false` where too much is in work: then it stays what it was.
    pub fn hold(&self, bytes: usize, now: i64) -> bool {
        let mut all = self.held.borrow_mut();
        all.retain(|_, held| held.until > now);
        // What has taken too long counted no more, and has to find room again.
        let is_less = all.get(&self.id).is_some_and(|held| bytes <= held.bytes);
        if !is_less && !self.terms.have_room(&all, self.id, bytes) {
            return false;
        }
        let until = now + self.terms.work.longest_ms();
        let due = all.get(&self.id).and_then(|held| held.due);
        all.insert(self.id, Held { bytes, until, terms: Rc::clone(&self.terms), due });
        true
    }

    /// Whether a part of which more should have come at `due` must give way at `now` to others who wait: it, or what its sender has
    /// more than their share, if nothing else should have given way before. Whatever holds a part has to ask every second.
    pub fn gives_way(&self, due: i64, now: i64) -> bool {
        let Self { held, waiting, id, terms } = self;
        let (mut held, mut waiting) = (held.borrow_mut(), waiting.borrow_mut());
        let since = waiting.others_since(terms.work, &terms.sender, now);
        let is_over_share = terms.is_over_share(&held, 0);
        let is_late = due <= now;
        let due = since.filter(|_| is_over_share).map_or(due, |since| due.min(since + OVER_A_SHARE_MS));
        if let Some(held) = held.get_mut(id) {
            // Only what could give way goes before others that could.
            held.due = since.map(|_| (due, now));
        }
        if since.is_none() || due > now {
            return false;
        }
        let is_first = held.iter().filter(|(_, held)| held.terms.work == terms.work).all(|(other, held)| {
            let looks = held.due.filter(|(_, looked)| now - looked < LOOKED_MS);
            looks.is_none_or(|(theirs, _)| (theirs, Reverse(other)) >= (due, Reverse(id)))
        });
        // One at a time: who waits for it needs a moment to find it.
        let gives_way = is_first && waiting.has_way(terms.work, now);
        if gives_way && is_late {
            waiting.was_late(terms.work, &terms.sender, now);
        }
        gives_way
    }

    /// Makes it so many bytes of memory at most.
    pub fn shrink(&self, bytes: usize) {
        if let Some(held) = self.held.borrow_mut().get_mut(&self.id) {
            held.bytes = held.bytes.min(bytes);
        }
    }
}

impl Terms {
    fn of(work: Work) -> Self {
        Self { work, whose: Whose::default(), sender: Rc::from("") }
    }

    /// Whether with so many bytes more the sender has more than their share.
    fn is_over_share(&self, held: &HashMap<u64, Held>, bytes: usize) -> bool {
        let theirs = held.values().filter(|held| held.terms.work == self.work && held.terms.sender == self.sender);
        let theirs: usize = theirs.map(|held| held.bytes).sum();
        self.work.most().is_some_and(|(_, share)| theirs.saturating_add(bytes) > share)
    }

    /// Whether there is room for so many bytes beside all others, and beside what else is theirs; where there is nothing else, there
    /// is. `id`: of what becomes so many.
    fn have_room(&self, held: &HashMap<u64, Held>, id: u64, bytes: usize) -> bool {
        let Whose { origin, network } = &self.whose;
        let fits = |most, counts: &dyn Fn(&Whose) -> bool| fits(held, id, bytes, most, &|other| counts(&other.whose));
        fits(IN_WORK_BYTES, &|_| true)
            && self.have_room_among_their_kind(held, id, bytes)
            && (origin.is_empty() || fits(MOST_OF_ORIGIN, &|other| other.origin == *origin))
            && (network.is_empty() || fits(MOST_OF_NETWORK, &|other| other.network == *network))
    }

    fn have_room_among_their_kind(&self, held: &HashMap<u64, Held>, id: u64, bytes: usize) -> bool {
        self.work.most().is_none_or(|(most, _)| fits(held, id, bytes, most, &|other| other.work == self.work))
    }
}

fn fits(held: &HashMap<u64, Held>, id: u64, bytes: usize, most: usize, counts: &dyn Fn(&Terms) -> bool) -> bool {
    let others = held.iter().filter(|(other, held)| **other != id && counts(&held.terms));
    let others: usize = others.map(|(_, held)| held.bytes).sum();
    others == 0 || others.saturating_add(bytes) <= most
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.held.borrow_mut().remove(&self.id);
    }
}

/// The network that a request comes from, as the platform says: it takes away whatever a client sends under that name. All Workers
/// ask others from one address; of them the platform says to whose zone each belongs.
pub fn network_of_request(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match (text("cf-connecting-ip"), text("cf-worker")) {
        (ADDRESS_OF_WORKERS, zone) if !zone.is_empty() => format!("worker of {zone}"),
        (address, _) => network_of(address),
    }
}

/// Whom an address stands for: a household has a whole /64 of IPv6.
pub fn network_of(address: &str) -> String {
    match address.trim().parse() {
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
        Ok(IpAddr::V4(address)) => address.to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests;
