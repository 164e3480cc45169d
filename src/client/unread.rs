//! How much of a room a user has not read (Client-Server API, "Receiving notifications" and "Threaded read receipts").
//!
//! Nothing happens when an event comes: a sync that tells of a room counts the events behind what was counted before, by the push
//! rules of now. What was counted is remembered when the user has set a receipt since, or [`REMEMBERED_AFTER`] events were counted.
//! Where a redaction is among the events, or a receipt is new, the newest [`WINDOW`](crate::store::unread::WINDOW) events count.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
};

use super::account_data;
use crate::{
    error::MatrixError,
    matrix::{
        event::Event,
        identifiers::{RoomId, UserId},
        json::{self, Object, Value},
        power_levels::PowerLevels,
        push::{Rules, Surroundings, highlights, notifies},
        state_trie::{NodeId, StateKeyHash},
    },
    server::Server,
    store::{
        ignored::IgnoredUsers,
        positions::{ReceiptsPos, TimelinePos},
        snapshots::{StateFound, StateReads},
        unread::{Counted, Counts, RoomFacts, UnreadEvent, UnreadRoom},
    },
};

/// Of so many rooms is read at once.
const ROOMS: usize = 40;
/// When so many events were counted that is remembered.
const REMEMBERED_AFTER: usize = 20;
/// How many threads of a room are told apart; what is in others counts as being in none.
const MAX_THREADS: usize = 200;
/// The thread of events that are in none.
const MAIN: &str = "main";

/// What is not read of some rooms.
#[derive(Debug, Default)]
pub(super) struct Unread(HashMap<RoomId, Counts>);

/// What events of rooms are judged by.
pub(super) struct Judge<'a> {
    server: &'a Server,
    user: &'a UserId,
    /// What was read of the states of rooms whose power levels or display names rules have asked for.
    states: RefCell<StateFound>,
    /// Of which states that is.
    read: RefCell<BTreeSet<NodeId>>,
}

impl Unread {
    /// Counts what is not read of rooms that the user is in, up to the position `to`.
    pub(super) async fn count(
        server: &Server,
        user: &UserId,
        rooms: &[RoomId],
        to: TimelinePos,
    ) -> Result<Self, MatrixError> {
        let mut all = HashMap::new();
        for rooms in rooms.chunks(ROOMS) {
            let judge = Judge::new(server, user);
            let mut asked: Vec<(&RoomId, bool)> = rooms.iter().map(|room_id| (room_id, false)).collect();
            while !asked.is_empty() {
                let found = server.store.unread(user.as_str(), &asked, to).await?;
                let rules = account_data::push_rules(user.as_str(), found.settings.push_rules.as_deref())?;
                let rules = rules.prepared();
                let mut remembered = Vec::new();
                let rooms = asked.into_iter().filter_map(|(room_id, _)| Some((room_id, found.rooms.get(room_id)?)));
                let is_redaction = |event: &UnreadEvent| event.event_type == "m.room.redaction";
                let (again, rooms): (Vec<_>, Vec<_>) =
                    rooms.partition(|(_, room)| room.counted.is_some() && room.events.iter().any(is_redaction));
                let counts = |(room_id, room): &(&RoomId, &UnreadRoom)| {
                    judge.counts(room_id, room, &rules, &found.settings.ignored)
                };
                for ((room_id, room), counts) in judge.each(rooms, |(_, room)| room.facts, counts).await? {
                    let is_new_receipt = room.counted.is_none() && room.receipts_pos > ReceiptsPos::START;
                    if is_new_receipt || room.events.len() >= REMEMBERED_AFTER {
                        let upto = room.events.last().map_or(to, |event| event.pos);
                        let (room_id, receipts_pos) = (room_id.clone(), room.receipts_pos);
                        remembered.push(Counted { room_id, receipts_pos, upto, counts: counts.clone() });
                    }
                    all.insert(room_id.clone(), counts);
                }
                server.store.remember_counts(user.as_str(), &remembered).await?;
                asked = again.into_iter().map(|(room_id, _)| (room_id, true)).collect();
            }
        }
        Ok(Self(all))
    }

    /// What a sync tells of a room: `unread_notifications` and, where the client asks for threads and something is unread in some,
    /// `unread_thread_notifications`. Threads that are not named there have nothing unread.
    pub(super) fn told(&self, room_id: &RoomId, has_threads: bool) -> (Object, Option<Object>) {
        let none = Counts::new();
        let counts = self.0.get(room_id).unwrap_or(&none);
        let told = |(notifications, highlights): (i64, i64)| {
            Object::from_iter([("notification_count", notifications), ("highlight_count", highlights)])
        };
        if !has_threads {
            let sum = counts.values().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
            return (told(sum), None);
        }
        let threads = counts.iter().filter(|(thread, _)| *thread != MAIN);
        let threads: Object = threads.map(|(thread, count)| (thread.as_str(), told(*count))).collect();
        (told(counts.get(MAIN).copied().unwrap_or_default()), Some(threads).filter(|threads| !threads.is_empty()))
    }

    /// Whether it was counted for this room.
    pub(super) fn has(&self, room_id: &RoomId) -> bool {
        self.0.contains_key(room_id)
    }
}

impl<'a> Judge<'a> {
    pub(super) fn new(server: &'a Server, user: &'a UserId) -> Self {
        Self { server, user, states: RefCell::default(), read: RefCell::default() }
    }

    /// What `verdict` says of each of `rooms`. Those of which it can say nothing yet come after the others, once what the rules
    /// ask for has been read for all of them at once.
    pub(super) async fn each<R, V>(
        &self,
        rooms: Vec<R>,
        facts: impl Fn(&R) -> RoomFacts,
        verdict: impl Fn(&R) -> Option<V>,
    ) -> Result<Vec<(R, V)>, MatrixError> {
        let mut judged = Vec::new();
        let mut asking = Vec::new();
        for room in rooms {
            match verdict(&room) {
                Some(verdict) => judged.push((room, verdict)),
                None => asking.push(room),
            }
        }
        if !asking.is_empty() {
            let roots: BTreeSet<NodeId> = asking.iter().map(|room| facts(room).state).collect();
            let at = roots.iter().flat_map(|root| self.keys().map(|key| (*root, key))).collect();
            let found = self.server.store.read_states(&StateReads { at, ..StateReads::default() }).await?;
            self.states.borrow_mut().extend(found);
            self.read.borrow_mut().extend(roots);
            judged.extend(asking.into_iter().filter_map(|room| verdict(&room).map(|verdict| (room, verdict))));
        }
        Ok(judged)
    }

    /// How much of a room the user has not read; `None` where rules ask for something that is still to be loaded.
    fn counts(&self, room_id: &RoomId, room: &UnreadRoom, rules: &Rules<'_>, ignored: &IgnoredUsers) -> Option<Counts> {
        let is_shown = |event: &UnreadEvent| !ignored.hides(&event.sender, event.state_key.is_some());
        let judged = |event| if is_shown(event) { judged(room_id, event) } else { None };
        let events: Vec<(&UnreadEvent, Option<Object>)> =
            room.events.iter().map(|event| (event, judged(event))).collect();
        let objects: Vec<&Object> = events.iter().filter_map(|(_, object)| object.as_ref()).collect();
        let mut verdicts = self.actions(room.facts, rules, &objects)?.into_iter();
        let mut counts = room.counted.clone().unwrap_or_default();
        for (event, object) in &events {
            let thread = event.thread.as_deref().filter(|_| counts.len() < MAX_THREADS).unwrap_or(MAIN);
            let actions = if object.is_some() { verdicts.next().unwrap_or_default() } else { &[] };
            if notifies(actions) {
                let count = counts.entry(thread.to_owned()).or_default();
                *count = (count.0 + 1, count.1 + i64::from(highlights(actions)));
            }
            // Whoever sends an event has read what is before it. Their own membership is sent into all their rooms where they change
            // their profile, which says nothing of what they have read there.
            let user = self.user.as_str();
            let is_profile = event.event_type == "m.room.member" && event.state_key.as_deref() == Some(user);
            if event.sender == user && !is_profile {
                counts.remove(thread);
            }
            for (_, read) in room.receipts.iter().filter(|(event_id, _)| *event_id == event.event_id) {
                if read.is_empty() {
                    counts.clear();
                } else {
                    counts.remove(read);
                }
            }
        }
        Some(counts)
    }

    /// What the rules have done with each of the events of a room; `None` where they ask for what was not read yet.
    pub(super) fn actions<'r>(
        &self,
        facts: RoomFacts,
        rules: &Rules<'r>,
        events: &[&Object],
    ) -> Option<Vec<&'r [Value]>> {
        let asked = Cell::new(false);
        let states = self.states.borrow();
        let [create, levels, member] = self.keys().map(|key| states.at(facts.state, key).map(|seen| &seen.event));
        let levels = create.map(|create| PowerLevels::from_state(create, levels));
        let display_name = || {
            asked.set(true);
            Some(member?.content().get("displayname")?.as_str()?.to_owned())
        };
        let may_notify = |sender: &str, kind: &str| {
            asked.set(true);
            let levels = levels.as_ref();
            levels.is_some_and(|levels| match (levels.user(sender), levels.notification(kind)) {
                (Ok(has), Ok(needed)) => has >= needed,
                _ => false,
            })
        };
        let around = Surroundings {
            user_id: self.user.as_str(),
            member_count: u64::try_from(facts.member_count).unwrap_or(0),
            display_name: &display_name,
            may_notify: &may_notify,
        };
        let actions = events.iter().map(|event| rules.actions(event, &around)).collect();
        (!asked.get() || self.read.borrow().contains(&facts.state)).then_some(actions)
    }

    fn keys(&self) -> [StateKeyHash; 3] {
        [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", self.user.as_str())]
            .map(|(event_type, state_key)| StateKeyHash::new(event_type, state_key))
    }
}

/// The event as push rules see it; `None` for one that was redacted.
fn judged(room_id: &RoomId, event: &UnreadEvent) -> Option<Object> {
    let content = json::parse(event.content.as_deref()?.as_bytes()).ok()?;
    let texts = [("type", &event.event_type), ("sender", &event.sender), ("event_id", &event.event_id)];
    let mut object: Object = texts.into_iter().map(|(name, text)| (name, Value::from(text.as_str()))).collect();
    object.insert("room_id", room_id.as_str());
    object.insert("content", content);
    if let Some(state_key) = &event.state_key {
        object.insert("state_key", state_key.as_str());
    }
    Some(object)
}

/// An event of a timeline as push rules see it.
pub(super) fn seen(event: &Event) -> Object {
    let mut object = event.object().clone();
    object.insert("event_id", event.event_id().as_str());
    object.insert("room_id", event.room_id().as_str());
    object
}
