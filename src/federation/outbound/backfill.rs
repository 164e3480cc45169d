//! Fetching a room's history from other servers when local users page back beyond what we hold (Server-Server API,
//! "Backfilling and retrieving missing events").

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::future::join_all;

use super::standing::Standing;
use crate::{
    error::MatrixError,
    federation::{
        pdus::{self, AnswerMemory, memory_of_held},
        peers::requests::within,
    },
    log::LogRecord,
    matrix::{
        event::{Ancestor, ContentHash, Event, Unusable},
        identifiers::{EventId, ServerName},
        room_version::{EventIds, RoomVersion},
    },
    platform::{
        Clock, DatabaseError,
        turns::{LIGHT_SLICE, turn},
    },
    room::{Room, RoomError},
    server::Server,
    store::event_graph::Gap,
};

/// How many events to ask for at once; other servers answer with no more.
const MAX_LIMIT: usize = 100;
/// How many servers to ask before giving up for now.
const MAX_SERVERS: usize = 4;
/// How often to ask for auth events that turn out to be lacking, and for how many each time.
const AUTH_ROUNDS: usize = 12;
const AUTH_EACH_TIME: usize = 8;
/// So long, in milliseconds, they are asked for of all servers together; so long the last of them is waited for.
const AUTH_MS: i64 = 60 * 1_000;

/// So long, in milliseconds, nobody is asked again for an event that was passed over, where nobody has answered.
const DEFER_MS: i64 = 10 * 60 * 1_000;

/// Fetches up to `limit` events into a gap in the room's timeline, from its newer end on. Says whether the gap is now another
/// one; if not, no server could help, and next time other events that are lacking there are asked for.
///
/// An answer that holds events with a wrong signature or a wrong content hash is not taken before others were asked for better
/// copies of them. What nobody gives any better is passed over, or kept without its content. Nor is an event passed over for the
/// lack of its auth events before others were asked for these.
///
/// # Errors
/// As [`Rooms::fill`](crate::room::Rooms::fill). Servers that do not answer are not an error.
pub async fn backfill(server: &Server, room: &Room, gap: &Gap, limit: usize) -> Result<bool, MatrixError> {
    // Behind an event that was passed over, history is known.
    let limit = if gap.is_open() { limit.clamp(1, MAX_LIMIT) } else { gap.missing.len() };
    let (ids, mut memory) = (gap.ids(), AnswerMemory::default());
    let mut copies = Copies::new(room.room_version);
    let mut residents = candidates(server, room).await?.into_iter();
    while let Some(resident) = residents.next() {
        let mut texts = match server.federation.backfill(&resident, &room.room_id, &ids, limit).await {
            Ok(texts) => texts,
            Err(error) => {
                let record = LogRecord::warning("no history from a server").room(&room.room_id);
                server.platform.log.write(record.destination(&resident).because(&error));
                continue;
            }
        };
        texts.truncate(limit);
        let (room_id, version) = (&room.room_id, room.room_version);
        let given = match pdus::verify_ancestors(server, room_id, version, &texts, &mut memory).await {
            Err(DatabaseError::NoRoom) => return Ok(false),
            given => given?,
        };
        copies.take(resident, given.unwrap_or_default());
        let left = memory.left();
        if copies.are_good(server, room).await?
            && place(server, room, gap, &copies, residents.as_slice(), &mut memory).await?
        {
            return Ok(true);
        }
        memory.give_back(left);
    }
    if !copies.are_good(server, room).await? && place(server, room, gap, &copies, &[], &mut memory).await? {
        return Ok(true);
    }
    if copies.servers.is_empty() {
        let now = server.platform.clock.now_ms();
        server.store.defer_passed(&room.room_id, gap, now, now + DEFER_MS).await?;
    } else {
        server.store.asked_in_vain(&room.room_id, gap).await?;
    }
    Ok(false)
}

/// What servers have given of a room's past: of each event the best copy.
struct Copies {
    version: &'static RoomVersion,
    by_id: HashMap<EventId, Ancestor>,
    /// Of events that cannot be used: the places in the graph that servers have given, and how many gave each.
    places: HashMap<EventId, Vec<(Unusable, usize)>>,
    /// The servers that have answered.
    servers: Vec<ServerName>,
}

impl Copies {
    fn new(version: &'static RoomVersion) -> Self {
        Self { version, by_id: HashMap::new(), places: HashMap::new(), servers: Vec::new() }
    }

    fn take(&mut self, server: ServerName, given: Vec<Ancestor>) {
        self.servers.push(server);
        let mut seen = HashSet::new();
        for ancestor in given.into_iter().filter(|ancestor| seen.insert(ancestor.event_id().clone())) {
            if let Ancestor::Unusable(place) = &ancestor {
                let places = self.places.entry(ancestor.event_id().clone()).or_default();
                match places.iter_mut().find(|(known, _)| known == place) {
                    Some((_, servers)) => *servers += 1,
                    None => places.push((place.clone(), 1)),
                }
            }
            match self.by_id.get(ancestor.event_id()) {
                Some(held) if worth(held) >= worth(&ancestor) => {}
                _ => {
                    self.by_id.insert(ancestor.event_id().clone(), ancestor);
                }
            }
        }
    }

    /// Whether there is nothing of which another server might have a better copy. What the room's redactions name is given
    /// without its content by every server, and is no reason to ask on.
    async fn are_good(&self, server: &Server, room: &Room) -> Result<bool, MatrixError> {
        let events = || self.by_id.values().filter_map(Ancestor::event);
        if events().count() < self.by_id.len() {
            return Ok(false);
        }
        let redacted: HashSet<&str> = events().filter_map(Event::redacts).collect();
        let stripped = events().filter(|event| event.is_altered());
        let stripped = stripped.filter(|event| !redacted.contains(event.event_id().as_str()));
        let stripped: Vec<EventId> = stripped.map(|event| event.event_id().clone()).collect();
        if stripped.is_empty() {
            return Ok(true);
        }
        let named = server.store.named_by_redactions(&room.room_id, &stripped).await?;
        Ok(stripped.iter().all(|id| named.contains(id.as_str())))
    }

    /// The best copies. In room versions 1 and 2 nothing binds an ID to what the event cites: where no signature does, two
    /// servers must say the same.
    fn best(&self) -> Vec<Ancestor> {
        let bound = self.version.event_ids != EventIds::Given;
        let best = self.by_id.values().filter_map(|ancestor| match ancestor {
            Ancestor::Unusable(_) if !bound => {
                let places = self.places.get(ancestor.event_id()).into_iter().flatten();
                let vouched_for = places.filter(|(_, servers)| *servers > 1).map(|(place, _)| place).next();
                vouched_for.map(|place| Ancestor::Unusable(place.clone()))
            }
            other => Some(other.clone()),
        });
        best.collect()
    }
}

/// What a copy is worth beside another one of the same event.
fn worth(ancestor: &Ancestor) -> u8 {
    match ancestor.event().map(Event::content_hash) {
        Some(ContentHash::Right) => 2,
        Some(ContentHash::Wrong) => 1,
        None => 0,
    }
}

/// The servers to ask: whoever made the room knows most of it, and of the others each may be the one that gives what none of the
/// rest does.
async fn candidates(server: &Server, room: &Room) -> Result<Vec<ServerName>, MatrixError> {
    let mut servers = server.some_residents(&room.room_id, usize::MAX).await?;
    if let Some(at) = servers.iter().position(|name| Some(name.as_str()) == room.room_id.server_name()) {
        servers.swap(0, at);
    }
    servers.truncate(MAX_SERVERS);
    Ok(servers)
}

/// The servers that are asked for auth events, one after the other. Each leaves those after it some of the rounds and of the time.
struct Turns<'a> {
    asked: Option<Asked<'a>>,
    /// Those after it.
    next: std::vec::IntoIter<&'a ServerName>,
    rounds: usize,
    /// Until then any of them is asked.
    stop: i64,
}

/// A server that is asked for auth events, and until when.
struct Asked<'a> {
    name: &'a ServerName,
    until: i64,
    /// Whether it has failed to give an auth chain.
    failed: bool,
}

impl<'a> Turns<'a> {
    fn new(servers: Vec<&'a ServerName>, now: i64) -> Self {
        let mut turns = Self { asked: None, next: servers.into_iter(), rounds: AUTH_ROUNDS, stop: now + AUTH_MS };
        turns.pass(now);
        turns
    }

    /// From now on the next server is asked.
    fn pass(&mut self, now: i64) {
        let name = self.next.next();
        let until = if self.next.len() == 0 { self.stop } else { now + (self.stop - now) / 2 };
        self.asked = name.map(|name| Asked { name, until, failed: false });
    }

    /// Whom to ask in the next round. The last of them is waited for, for nobody else needs the time.
    fn take(&mut self, now: i64) -> Option<&mut Asked<'a>> {
        let is_over = |asked: &Option<Asked<'_>>| asked.as_ref().is_none_or(|asked| now >= asked.until);
        while self.next.len() > 0 && (self.rounds <= self.next.len() || is_over(&self.asked)) {
            self.pass(now);
        }
        let asked = self.asked.as_mut().filter(|_| self.rounds > 0 && now < self.stop)?;
        self.rounds -= 1;
        if self.next.len() == 0 {
            asked.until = now + AUTH_MS;
        }
        Some(asked)
    }
}

/// Gives the copies their place in the room, with the auth events that they take; says whether the gap is now another one.
/// Those whose auth events neither the servers that gave copies nor the `others` give us are passed over. What the auth events take
/// is taken out of `memory`.
async fn place(
    server: &Server,
    room: &Room,
    gap: &Gap,
    copies: &Copies,
    others: &[ServerName],
    memory: &mut AnswerMemory,
) -> Result<bool, MatrixError> {
    let mut ancestors = copies.best();
    let mut auth_events: Vec<Event> = Vec::new();
    let now = || server.platform.clock.now_ms();
    let mut turns = Turns::new(copies.servers.iter().rev().chain(others).collect(), now());
    loop {
        let missing = match server.rooms.fill(&room.room_id, gap.pos, &ancestors, &auth_events).await {
            Err(RoomError::MissingEvents(missing)) => missing,
            placed => return Ok(placed?),
        };
        let missing: HashSet<EventId> = missing.into_iter().collect();
        if let Some(asked) = turns.take(now()) {
            let known = auth_events.iter().map(|event| event.event_id().clone()).collect();
            let citing = ancestors.iter().filter_map(Ancestor::event).chain(&auth_events);
            let citing: Vec<&Event> = citing.filter(|event| cites(event, &missing)).take(AUTH_EACH_TIME).collect();
            let mut more = match fetch_auth_events(server, room, asked, &citing, &missing, known, memory).await {
                Err(DatabaseError::NoRoom) => return Ok(false),
                more => more?,
            };
            if more.is_empty() {
                turns.pass(now());
            }
            auth_events.append(&mut more);
        } else {
            let clock = server.platform.clock.as_ref();
            pass_over(clock, &mut ancestors, &mut auth_events, missing).await;
        }
    }
}

/// Passes over what cites events that nobody gives us, and what takes those as auth events that do.
async fn pass_over(
    clock: &dyn Clock,
    ancestors: &mut [Ancestor],
    auth_events: &mut Vec<Event>,
    mut missing: HashSet<EventId>,
) {
    let mut citing: HashMap<&EventId, Vec<&EventId>> = HashMap::new();
    for (done, event) in ancestors.iter().filter_map(Ancestor::event).chain(&*auth_events).enumerate() {
        turn(clock, done, LIGHT_SLICE).await;
        for cited in event.auth_events() {
            citing.entry(cited).or_default().push(event.event_id());
        }
    }
    let (mut waiting, mut done): (Vec<EventId>, usize) = (missing.iter().cloned().collect(), 0);
    while let Some(id) = waiting.pop() {
        turn(clock, done, LIGHT_SLICE).await;
        done += 1;
        for id in citing.remove(&id).into_iter().flatten() {
            if missing.insert(id.clone()) {
                waiting.push(id.clone());
            }
        }
    }
    auth_events.retain(|event| !cites(event, &missing));
    for ancestor in ancestors {
        if let Ancestor::Event(event) = ancestor
            && cites(event, &missing)
        {
            *ancestor = Ancestor::Unusable(Unusable::of_event(event));
        }
    }
}

fn cites(event: &Event, missing: &HashSet<EventId>) -> bool {
    event.auth_events().iter().any(|id| missing.contains(id))
}

/// Asks a server for what is `missing` of the auth events of those `citing`, and answers with what is not `known`: for the auth chain
/// of one of them, which may be as long as an answer may be, and for some of what that does not hold by its ID. Of a server that
/// fails to give a chain no other one is asked for.
async fn fetch_auth_events(
    server: &Server,
    room: &Room,
    asked: &mut Asked<'_>,
    citing: &[&Event],
    missing: &HashSet<EventId>,
    mut known: HashSet<EventId>,
    memory: &mut AnswerMemory,
) -> Result<Vec<Event>, DatabaseError> {
    let (clock, until) = (server.platform.clock.as_ref(), asked.until);
    let citing = if asked.failed { &[] } else { citing };
    let mut given = Vec::new();
    for event in citing {
        let chain = server.federation.event_auth(asked.name, &room.room_id, event.event_id());
        match within(clock, until - clock.now_ms(), chain).await {
            Ok(texts) => given = check(server, room, &texts, &mut known, memory).await?,
            Err(error) => match Standing::of(&error) {
                // It may well answer for another one.
                Standing::Answered => {}
                // Its chains may be too long for it, and it may have single events nevertheless.
                Standing::Failed => {
                    asked.failed = true;
                    break;
                }
                Standing::Away => return Ok(given),
            },
        }
        if !given.is_empty() {
            break;
        }
    }
    let by_id = missing.iter().filter(|id| !known.contains(*id)).take(AUTH_EACH_TIME);
    let texts =
        join_all(by_id.map(|id| within(clock, until - clock.now_ms(), server.federation.event(asked.name, id)))).await;
    let texts: Vec<Bytes> = texts.into_iter().flatten().collect();
    let by_id = check(server, room, &texts, &mut known, memory).await?;
    given.extend(by_id.into_iter().filter(|event| missing.contains(event.event_id())));
    Ok(given)
}

/// What of an answer can be used and is not `known` yet. What that takes stays taken out of `memory`.
async fn check(
    server: &Server,
    room: &Room,
    texts: &[Bytes],
    known: &mut HashSet<EventId>,
    memory: &mut AnswerMemory,
) -> Result<Vec<Event>, DatabaseError> {
    let left = memory.left();
    let checked = pdus::verify_ancestors(server, &room.room_id, room.room_version, texts, memory).await?;
    let events = checked.unwrap_or_default().into_iter().filter_map(Ancestor::into_event);
    let new: Vec<Event> = events.filter(|event| known.insert(event.event_id().clone())).collect();
    let kept: usize = new.iter().map(|event| memory_of_held(event.json().len())).sum();
    memory.give_back(left.saturating_sub(kept));
    Ok(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::platform::turns::Pausing;

    fn id(name: impl std::fmt::Display) -> EventId {
        EventId::parse(&format!("${name}:a.example")).unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "nothing here is checked")]
    fn event(name: impl std::fmt::Display, cited: &[EventId]) -> Event {
        let cited: Vec<_> = cited.iter().map(|id| serde_json::json!([id.as_str(), {}])).collect();
        let text = serde_json::json!({
            "type": "m.room.message", "content": {}, "room_id": "!r:a.example", "sender": "@u:a.example",
            "event_id": id(&name).as_str(), "auth_events": cited, "prev_events": [], "depth": 1, "origin_server_ts": 1,
        });
        Event::from_store(id(name).as_str(), &text.to_string(), RoomVersion::get("1").unwrap()).unwrap()
    }

    /// Whatever they give, and however long they take.
    #[test]
    fn a_server_leaves_those_after_it_rounds_and_time() {
        let names = ["a.example", "b.example", "c.example", "d.example"].map(|name| ServerName::parse(name).unwrap());
        let asked = |ms: i64, names: &[ServerName]| {
            let (mut turns, mut now, mut asked) = (Turns::new(names.iter().collect(), 0), 0, Vec::new());
            while let Some(one) = turns.take(now) {
                asked.push(one.name.as_str().as_bytes()[0]);
                now = (now + ms).min(one.until);
            }
            (String::from_utf8(asked).unwrap(), now)
        };
        assert_eq!(asked(1, &names).0, "aaaaaaaaabcd");
        assert_eq!(asked(AUTH_MS, &names), ("abcd".to_owned(), AUTH_MS * 7 / 8 + AUTH_MS));
        assert_eq!(asked(1, &names[..1]).0, "a".repeat(AUTH_ROUNDS));
        assert_eq!(asked(AUTH_MS, &names[..1]), ("a".to_owned(), AUTH_MS));
        assert_eq!(asked(1, &[]).0, "");
    }

    /// Each of them passed over in its turn, with all others looked at, would take hundreds of millions of looks.
    #[test]
    fn a_long_chain_from_what_nobody_gives_is_passed_over_at_once() {
        let length = 20_000;
        let clock = Pausing::default();
        let cited = |number: usize| if number == 0 { id("nobody's") } else { id(number - 1) };
        // The last first.
        let mut auth_events: Vec<Event> = (0..length).rev().map(|number| event(number, &[cited(number)])).collect();
        auth_events.push(event("good", &[]));
        let mut ancestors = [
            Ancestor::Event(event("said", &[id("good")])),
            Ancestor::Event(event("lost", &[id("good"), id(length - 1)])),
        ];
        auth_events.push(event("of a lost one", &[id("lost")]));
        let missing = HashSet::from([id("nobody's")]);
        futures_executor::block_on(pass_over(&clock, &mut ancestors, &mut auth_events, missing));
        let kept: Vec<&EventId> = auth_events.iter().map(Event::event_id).collect();
        assert_eq!(kept, [&id("good")]);
        assert!(matches!(&ancestors, [Ancestor::Event(_), Ancestor::Unusable(_)]));
        assert_eq!(ancestors[1].event_id(), &id("lost"));
        assert!(clock.0.get() >= 2 * length / LIGHT_SLICE, "{} pauses", clock.0.get());
    }
}
