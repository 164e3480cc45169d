//! EDUs that are worth nothing when they are late (Server-Server API, "Typing Notifications", "Receipts", "Presence").
//!
//! They wait in the memory of the isolate until its one sender to a destination takes them, the newest of each kind, and are
//! forgotten whatever became of them. Plain values only: a sender that the platform cuts off is followed by the next one.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
};

use super::slow::SlowAnswers;
use crate::matrix::{
    edu::{PresenceUpdate, Receipt, Typing, receipt_edus},
    identifiers::{RoomId, ServerName, UserId},
    json::Value,
};

/// For how long what waits is worth sending, in milliseconds.
const FRESH_MS: i64 = 20_000;

/// The pause between two transactions to one destination, in milliseconds: what comes meanwhile travels together.
const PAUSE_MS: i64 = 1_000;

/// For how long a destination that was not reached is told nothing, in milliseconds.
const REST_MS: i64 = 60_000;

/// The longest that one sender works, in milliseconds: if it has not ended by then, it was cut off.
const LONGEST_MS: i64 = 90_000;

/// How many users' presence a transaction holds at most, and how much else. This software takes no more presences of one, and the
/// specification allows 100 EDUs.
const MAX_PRESENCES: usize = 50;
const MAX_OTHERS: usize = 99;

/// How much may wait for a destination, and how much of it where more comes that gives way: as many users as others are told again of
/// at a time. And for how many destinations.
const MAX_WAITING: usize = 200;
const MAX_GIVING_WAY: usize = 100;
const MAX_DESTINATIONS: usize = 2_000;

/// What may be told and forgotten.
#[derive(Debug, Clone, PartialEq)]
pub enum FleetingEdu {
    /// Whether somebody is typing.
    Typing(Typing),
    /// Up to where somebody has read.
    Receipt(Receipt),
    /// Whether somebody is there.
    Presence(PresenceUpdate),
    /// The same of somebody of whom it was told before. It gives way to all else, and to what is news of them.
    StillThere(PresenceUpdate),
}

/// What it is about: the newest about the same is enough.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Typing(RoomId, UserId),
    Receipt(RoomId, UserId, Option<String>),
    Presence(UserId),
}

impl FleetingEdu {
    fn about(&self) -> About {
        match self {
            Self::Typing(typing) => About::Typing(typing.room_id.clone(), typing.user_id.clone()),
            Self::Receipt(receipt) => {
                About::Receipt(receipt.room_id.clone(), receipt.user_id.clone(), receipt.thread_id.clone())
            }
            Self::Presence(update) | Self::StillThere(update) => About::Presence(update.user_id.clone()),
        }
    }

    /// How much may wait for a destination when it comes.
    fn most_waiting(&self) -> usize {
        match self {
            Self::StillThere(_) => MAX_GIVING_WAY,
            Self::Typing(_) | Self::Receipt(_) | Self::Presence(_) => MAX_WAITING,
        }
    }
}

/// For how long those hear what a user does who have heard of it before, in milliseconds: that somebody types, and that they have
/// ceased.
const STAY_MS: i64 = 60_000;

/// What waits in one isolate.
#[derive(Default)]
pub struct Fleeting {
    lines: RefCell<HashMap<ServerName, Line>>,
    /// Where telling goes on in large rooms.
    pub turns: Turns,
    /// Which servers take long to answer. Not those of the queue: one that is slow about events may be quick here.
    pub slow: SlowAnswers,
}

/// For each room with more servers than are told at a time, the server after which the next turn starts. All servers hear in turn, so
/// many each minute.
#[derive(Default)]
pub struct Turns(RefCell<HashMap<String, Turn>>);

struct Turn {
    since: i64,
    after: String,
    next: String,
}

/// Where to begin among names, which `random` decides.
pub fn anywhere(random: u8) -> String {
    const FIRST: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    FIRST.get(usize::from(random) % FIRST.len()).map_or('0', |byte| char::from(*byte)).to_string()
}

impl Turns {
    /// After which server those are who hear now of what is done in a room. In one that is not known they begin [`anywhere`].
    pub fn after(&self, room: &str, random: u8, now: i64) -> String {
        match self.0.borrow_mut().get_mut(room) {
            Some(turn) => {
                if now - turn.since >= STAY_MS {
                    turn.since = now;
                    turn.after = turn.next.clone();
                }
                turn.after.clone()
            }
            None => anywhere(random),
        }
    }

    /// Notes that those after the server `after` have been told, up to `last`; `None` where that was all of them.
    pub fn told(&self, room: &str, after: String, last: Option<String>, now: i64) {
        let mut turns = self.0.borrow_mut();
        let Some(next) = last else {
            turns.remove(room);
            return;
        };
        if turns.len() >= MAX_DESTINATIONS && !turns.contains_key(room) {
            turns.retain(|_, turn| now - turn.since < STAY_MS);
            if turns.len() >= MAX_DESTINATIONS {
                return;
            }
        }
        turns.entry(room.to_owned()).or_insert_with(|| Turn { since: now, after, next: String::new() }).next = next;
    }
}

/// What waits for one destination.
#[derive(Default)]
struct Line {
    waiting: BTreeMap<About, (i64, FleetingEdu)>,
    /// Until when the sender to it may be at work; 0 where there is none.
    sending_until: i64,
    /// Not before this time is it told anything.
    not_before: i64,
}

impl Line {
    fn is_idle(&self, now: i64) -> bool {
        self.sending_until <= now
            && self.not_before <= now
            && !self.waiting.values().any(|(since, _)| is_fresh(*since, now))
    }
}

/// Whether what waits since then is worth sending.
fn is_fresh(since: i64, now: i64) -> bool {
    since > now - FRESH_MS
}

impl Fleeting {
    /// Leaves EDUs for a destination. Whether nobody is sending to it: the caller is to [`Fleeting::begin`] when there is time for it.
    pub fn leave(&self, destination: &ServerName, edus: &[FleetingEdu], now: i64) -> bool {
        let mut lines = self.lines.borrow_mut();
        if lines.len() >= MAX_DESTINATIONS && !lines.contains_key(destination) {
            lines.retain(|_, line| !line.is_idle(now));
            if lines.len() >= MAX_DESTINATIONS {
                return false;
            }
        }
        let line = lines.entry(destination.clone()).or_default();
        if line.not_before > now + PAUSE_MS {
            return false;
        }
        line.waiting.retain(|_, (since, _)| is_fresh(*since, now));
        for edu in edus {
            let about = edu.about();
            let is_taken = match line.waiting.get(&about) {
                // It was read before what has changed since.
                Some((_, FleetingEdu::Presence(_))) => !matches!(edu, FleetingEdu::StillThere(_)),
                Some(_) => true,
                None => line.waiting.len() < edu.most_waiting(),
            };
            if is_taken {
                line.waiting.insert(about, (now, edu.clone()));
            }
        }
        !line.waiting.is_empty() && line.sending_until <= now
    }

    /// Whether the caller is now the sender to a destination, who calls [`Fleeting::take`] until there is nothing. Not before it is this
    /// destination's turn: whoever leaves something while it waits for others that hang would count on a sender who never comes.
    pub fn begin(&self, destination: &ServerName, now: i64) -> bool {
        let mut lines = self.lines.borrow_mut();
        let Some(line) = lines.get_mut(destination) else { return false };
        if line.waiting.is_empty() || line.sending_until > now {
            return false;
        }
        line.sending_until = now + LONGEST_MS;
        true
    }

    /// How long the sender to a destination waits before it takes what there is, in milliseconds. `None` where there is nothing: the
    /// caller is its sender no more, and keeps nobody else waiting.
    pub fn pause(&self, destination: &ServerName, now: i64) -> Option<u32> {
        let mut lines = self.lines.borrow_mut();
        let line = lines.get_mut(destination)?;
        if line.waiting.is_empty() {
            line.sending_until = 0;
            return None;
        }
        Some(u32::try_from((line.not_before - now).clamp(0, PAUSE_MS)).unwrap_or(0))
    }

    /// The EDUs for a destination, as many as a transaction holds; the rest waits on. With none the caller is its sender no more.
    pub fn take(&self, destination: &ServerName, now: i64) -> Vec<Value> {
        let mut lines = self.lines.borrow_mut();
        let Some(line) = lines.get_mut(destination) else { return Vec::new() };
        let (mut taken, mut presences, mut others) = (Vec::new(), 0, 0);
        for (about, (since, edu)) in std::mem::take(&mut line.waiting) {
            if !is_fresh(since, now) {
                continue;
            }
            let (count, most) = match about {
                About::Presence(_) => (&mut presences, MAX_PRESENCES),
                About::Typing(..) | About::Receipt(..) => (&mut others, MAX_OTHERS),
            };
            if *count < most {
                *count += 1;
                taken.push(edu);
            } else {
                line.waiting.insert(about, (since, edu));
            }
        }
        let edus = together(taken.into_iter());
        if edus.is_empty() {
            line.sending_until = 0;
        } else {
            line.not_before = now + PAUSE_MS;
        }
        edus
    }

    /// Notes that there was no time left to tell a destination. The caller is its sender no more, and whoever comes next is.
    pub fn leave_off(&self, destination: &ServerName) {
        if let Some(line) = self.lines.borrow_mut().get_mut(destination) {
            line.sending_until = 0;
        }
    }

    /// Notes that a destination was not reached. The caller is its sender no more.
    pub fn failed(&self, destination: &ServerName, now: i64) {
        if let Some(line) = self.lines.borrow_mut().get_mut(destination) {
            *line = Line { not_before: now + REST_MS, ..Line::default() };
        }
    }
}

/// As few EDUs as they take.
fn together(edus: impl Iterator<Item = FleetingEdu>) -> Vec<Value> {
    let (mut values, mut receipts, mut presence) = (Vec::new(), Vec::new(), Vec::new());
    for edu in edus {
        match edu {
            FleetingEdu::Typing(typing) => values.push(typing.edu()),
            FleetingEdu::Receipt(receipt) => receipts.push(receipt),
            FleetingEdu::Presence(update) | FleetingEdu::StillThere(update) => presence.push(update),
        }
    }
    values.extend(receipt_edus(&receipts));
    if !presence.is_empty() {
        values.push(PresenceUpdate::edu(&presence));
    }
    values
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::matrix::edu::Presence;

    fn typing(room: usize, is_typing: bool) -> FleetingEdu {
        FleetingEdu::Typing(Typing {
            room_id: RoomId::parse(&format!("!{room}:a.org")).unwrap(),
            user_id: UserId::parse("@u:a.org").unwrap(),
            is_typing,
        })
    }

    fn presence(n: usize, presence: Presence) -> FleetingEdu {
        let user_id = UserId::parse(&format!("@u{n}:a.org")).unwrap();
        let (status_msg, last_active_ago, currently_active) = (None, 0, false);
        FleetingEdu::Presence(PresenceUpdate { user_id, presence, status_msg, last_active_ago, currently_active })
    }

    #[test]
    fn the_newest_is_sent_once_by_one_sender() {
        let (fleeting, b) = (Fleeting::default(), ServerName::parse("b.org").unwrap());
        assert!(fleeting.leave(&b, &[typing(1, true)], 0));
        assert!(fleeting.begin(&b, 0));
        assert!(!fleeting.begin(&b, 0));
        assert!(!fleeting.leave(&b, &[typing(1, false), typing(2, true)], 10));
        let edus = fleeting.take(&b, 20);
        assert_eq!(edus.len(), 2);
        assert_eq!(
            edus.first().unwrap().to_text(),
            "{\"content\":{\"room_id\":\"!1:a.org\",\"typing\":false,\"user_id\":\"@u:a.org\"},\"edu_type\":\"m.typing\"}"
        );
        assert_eq!(fleeting.pause(&b, 30), None);
        assert!(!fleeting.begin(&b, 30), "there is nothing");
        assert!(fleeting.leave(&b, &[typing(3, true)], 40));
        assert!(fleeting.begin(&b, 40));
        assert_eq!(fleeting.pause(&b, 40), Some(980));
        // A sender that was cut off is followed by another, and what waited for it is stale.
        assert!(fleeting.leave(&b, &[typing(4, true)], 40 + LONGEST_MS));
        assert!(fleeting.begin(&b, 40 + LONGEST_MS));
        assert_eq!(fleeting.take(&b, 40 + LONGEST_MS).len(), 1);
    }

    /// How many users' presence is in these EDUs.
    fn told(edus: &[Value]) -> usize {
        edus.iter().map(|edu| edu.to_text().matches("last_active_ago").count()).sum()
    }

    #[test]
    fn a_transaction_holds_the_presence_of_as_many_as_servers_take() {
        let (fleeting, b) = (Fleeting::default(), ServerName::parse("b.org").unwrap());
        let many: Vec<_> = (0..100).map(|n| presence(n, Presence::Online)).collect();
        fleeting.leave(&b, &many, 0);
        fleeting.leave(&b, &[typing(1, true)], 0);
        assert!(fleeting.begin(&b, 0));
        let edus = fleeting.take(&b, 0);
        assert_eq!((edus.len(), told(&edus)), (2, 50));
        assert_eq!(fleeting.pause(&b, 0), Some(1_000));
        assert_eq!(told(&fleeting.take(&b, 1_000)), 50);
        assert_eq!(fleeting.pause(&b, 1_000), None);
    }

    #[test]
    fn who_is_still_there_leaves_room_for_who_goes() {
        let (fleeting, b) = (Fleeting::default(), ServerName::parse("b.org").unwrap());
        let still = (0..MAX_WAITING).map(|n| presence(n, Presence::Online)).map(|edu| match edu {
            FleetingEdu::Presence(update) => FleetingEdu::StillThere(update),
            other => other,
        });
        fleeting.leave(&b, &still.collect::<Vec<_>>(), 0);
        let gone: Vec<_> = (1_000..1_100).map(|n| presence(n, Presence::Offline)).collect();
        fleeting.leave(&b, &gone, 0);
        let taken: Vec<_> = (0..4).flat_map(|n| fleeting.take(&b, n * 1_000)).collect();
        let text: String = taken.iter().map(Value::to_text).collect();
        assert_eq!([told(&taken), text.matches("offline").count()], [200, 100]);
    }

    #[test]
    fn who_is_still_there_gives_way_to_what_has_become_of_them() {
        let (fleeting, b) = (Fleeting::default(), ServerName::parse("b.org").unwrap());
        let FleetingEdu::Presence(still) = presence(1, Presence::Online) else { unreachable!() };
        let still = [FleetingEdu::StillThere(still)];
        fleeting.leave(&b, &[presence(1, Presence::Offline)], 0);
        fleeting.leave(&b, &still, 10);
        let text: String = fleeting.take(&b, 20).iter().map(Value::to_text).collect();
        assert_eq!([text.matches("offline").count(), text.matches("online").count()], [1, 0], "{text}");
        // And the other way about the newer is told, too.
        fleeting.leave(&b, &still, 30);
        fleeting.leave(&b, &[presence(1, Presence::Offline)], 40);
        let text: String = fleeting.take(&b, 50).iter().map(Value::to_text).collect();
        assert_eq!([text.matches("offline").count(), text.matches("online").count()], [1, 0], "{text}");
    }

    #[test]
    fn who_is_not_reached_is_told_nothing_for_a_while() {
        let (fleeting, b) = (Fleeting::default(), ServerName::parse("b.org").unwrap());
        assert!(fleeting.leave(&b, &[typing(1, true)], 0));
        assert!(fleeting.begin(&b, 0));
        fleeting.failed(&b, 10);
        assert!(!fleeting.leave(&b, &[typing(1, true)], 20));
        assert!(fleeting.leave(&b, &[typing(1, true)], 10 + REST_MS));
    }

    #[test]
    fn who_was_not_tried_is_told_by_the_next_sender() {
        let (fleeting, b) = (Fleeting::default(), ServerName::parse("b.org").unwrap());
        assert!(fleeting.leave(&b, &[typing(1, true)], 0));
        // It was not its turn yet,
        assert!(fleeting.leave(&b, &[typing(2, true)], 10));
        assert!(fleeting.begin(&b, 20));
        // or there was no time left.
        fleeting.leave_off(&b);
        assert!(fleeting.leave(&b, &[typing(3, true)], 30));
        assert!(fleeting.begin(&b, 30));
        assert_eq!(fleeting.take(&b, 30).len(), 3);
    }

    #[test]
    fn memory_is_bounded() {
        let fleeting = Fleeting::default();
        let name = |n: usize| ServerName::parse(&format!("s{n}.org")).unwrap();
        let many: Vec<_> = (0..1_000).map(|room| typing(room, true)).collect();
        assert!(fleeting.leave(&name(0), &many, 0));
        let taken = [0, 1_000, 2_000, 3_000].map(|now| fleeting.take(&name(0), now).len());
        assert_eq!(taken, [MAX_OTHERS, MAX_OTHERS, MAX_WAITING - 2 * MAX_OTHERS, 0]);
        (1..3 * MAX_DESTINATIONS).for_each(|n| _ = fleeting.leave(&name(n), &many[..1], 0));
        assert_eq!(fleeting.lines.borrow().len(), MAX_DESTINATIONS);
        assert!(fleeting.leave(&name(9_999), &many[..1], LONGEST_MS));
        assert_eq!(fleeting.lines.borrow().len(), 1);
    }

    #[test]
    fn turns_go_on_after_a_minute_and_end_where_all_were_told() {
        let turns = Turns::default();
        let place = |server: &str| Some(server.to_owned());
        assert_eq!(turns.after("!r", 10, 0), "a");
        turns.told("!r", "a".to_owned(), place("k"), 0);
        assert_eq!(turns.after("!r", 0, STAY_MS - 1), "a");
        turns.told("!r", "a".to_owned(), place("m"), STAY_MS - 1);
        assert_eq!(turns.after("!r", 0, STAY_MS), "m");
        turns.told("!r", "m".to_owned(), None, STAY_MS);
        assert_eq!(turns.after("!r", 1, STAY_MS), "1");
        (0..3 * MAX_DESTINATIONS).for_each(|n| turns.told(&format!("!{n}"), String::new(), place("x"), STAY_MS));
        assert_eq!(turns.0.borrow().len(), MAX_DESTINATIONS);
    }
}
