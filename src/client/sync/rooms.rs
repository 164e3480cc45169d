//! The rooms of a sync's answer, each with its timeline, its state and its account data.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    plan::{Answer, Plan, StateSource, has_name},
    stripped_state::stored_events,
};
use crate::{
    client::{
        account_data,
        bundles::Bundles,
        events::{self, Telling, events_object},
        tokens::Token,
        unread::Unread,
        visibility,
    },
    error::MatrixError,
    log::LogRecord,
    matrix::{
        identifiers::{RoomId, UserId},
        json::{Object, Value},
        state_content::Membership,
        state_trie::StateKeyHash,
    },
    store::{
        positions::TimelinePos,
        snapshots::{Members, StateFound},
        sync::{MemberCounts, SyncFound, SyncRoom},
        timeline::SeenEvent,
    },
};

/// What was read for an answer.
#[derive(Clone, Copy)]
pub(super) struct Read<'a> {
    pub(super) found: &'a SyncFound,
    pub(super) state: &'a StateFound,
    /// Of rooms without a name, some members.
    pub(super) heroes: &'a StateFound,
    pub(super) bundles: &'a Bundles,
    pub(super) unread: &'a Unread,
}

impl Answer<'_> {
    pub(super) fn joined(&self, plan: Plan, read: &Read<'_>) -> Value {
        let Read { state, heroes, found, unread, .. } = *read;
        let room_id = plan.room.room_id.as_str();
        let mut answer = Object::new();
        let mut named_after = Vec::new();
        if plan.summary {
            let counts = plan.room.counts;
            let is_named = has_name(plan.state, state);
            if !is_named {
                named_after = chosen(counts, heroes.members(plan.state), &self.session.user);
            }
            answer.insert("summary", summary(counts, (!is_named).then_some(&named_after)));
        }
        answer.insert("account_data", events_object(self.account_data(room_id, found)));
        answer.insert("ephemeral", events_object(self.fleeting.events(&plan.room.room_id)));
        self.unread(&mut answer, &plan.room.room_id, unread);
        self.timeline_and_state(&mut answer, plan, &named_after, read);
        Value::Object(answer)
    }

    pub(super) fn left(&self, plan: Plan, read: &Read<'_>) -> Value {
        let mut answer = Object::new();
        answer.insert("account_data", events_object(Vec::new()));
        self.timeline_and_state(&mut answer, plan, &[], read);
        Value::Object(answer)
    }

    /// A room that the user left when we were not in it: an invite that was rejected or taken back.
    pub(super) fn left_elsewhere(&self, room: &SyncRoom) -> Result<Value, MatrixError> {
        let room_id = room.room_id.as_str();
        let events = match &room.invite_state {
            Some(text) => stored_events(text)?,
            None => Vec::new(),
        };
        let mut timeline = Object::new();
        timeline.insert("events", Value::Array(if self.filter.timeline.room(room_id) { events } else { Vec::new() }));
        timeline.insert("limited", false);
        timeline.insert("prev_batch", Token::at(TimelinePos::START).to_string());
        let mut answer = Object::new();
        answer.insert("account_data", events_object(Vec::new()));
        answer.insert(if self.state_after { "state_after" } else { "state" }, events_object(Vec::new()));
        answer.insert("timeline", timeline);
        Ok(Value::Object(answer))
    }

    /// A joined room in which nothing happened.
    pub(super) fn quiet_room(&self, room_id: &RoomId, found: &SyncFound, unread: &Unread) -> Value {
        let mut timeline = Object::new();
        timeline.insert("events", Value::Array(Vec::new()));
        timeline.insert("limited", false);
        timeline.insert("prev_batch", Token::at(found.events).to_string());
        let mut answer = Object::new();
        answer.insert("account_data", events_object(self.account_data(room_id.as_str(), found)));
        answer.insert("ephemeral", events_object(self.fleeting.events(room_id)));
        self.unread(&mut answer, room_id, unread);
        answer.insert(if self.state_after { "state_after" } else { "state" }, events_object(Vec::new()));
        answer.insert("timeline", timeline);
        Value::Object(answer)
    }

    /// `named_after`: the heroes whom the summary tells of.
    fn timeline_and_state(&self, answer: &mut Object, plan: Plan, named_after: &[&str], read: &Read<'_>) {
        let Read { state: found, heroes, bundles, found: SyncFound { unwanted, .. }, .. } = *read;
        let room_id = plan.room.room_id.as_str();
        let now_ms = self.server.platform.clock.now_ms();
        let (mut shown, mut sent) = (BTreeSet::new(), Vec::new());
        // What stood where the timeline's first event of each type and state key stands now, and whether its content is told.
        let mut before: BTreeMap<(&str, &str), Option<(&SeenEvent, bool)>> = BTreeMap::new();
        let mut senders = BTreeSet::from([self.session.user.as_str().to_owned()]);
        let of_interest = plan.members_of_interest();
        let mut timeline = plan.timeline;
        timeline.retain(|event| if plan.judged { plan.reader.sees(event, found) } else { !event.seen.is_powerless });
        timeline.retain(|event| !unwanted.hides(&event.seen.event));
        for event in &timeline {
            if !self.filter.timeline.event(room_id, &event.seen.event) {
                continue;
            }
            shown.insert(event.seen.event.event_id().clone());
            senders.insert(event.seen.event.sender().as_str().to_owned());
            // Who sees all that there is was joined all the time.
            let joined = Some(Membership::Join);
            let membership = if plan.judged { plan.reader.membership_at(event, found) } else { joined };
            let (replaces, relations) = (visibility::replaced(event, found), bundles.of(event));
            let erased = !plan.judged || plan.reader.reads(event, found);
            if let Some(key) = state_key(&event.seen) {
                before.entry(key).or_insert(replaces.map(|replaced| (replaced, erased)));
            }
            let telling = Telling { now_ms, room_id: false, replaces, membership, erased, relations };
            sent.push(events::timeline_event(event, telling));
        }
        let candidates: Vec<&SeenEvent> = match plan.source {
            StateSource::Whole if plan.lazy => found.but_members(plan.state).iter().collect(),
            StateSource::Whole => found.whole(plan.state).iter().collect(),
            StateSource::Since(known) => found.changes(known, plan.state).iter().collect(),
            StateSource::Timeline => Vec::new(),
        };
        let hidden = timeline
            .iter()
            .filter(|event| matches!(plan.source, StateSource::Timeline) && event.seen.event.state_key().is_some());
        let is_told = |seen: &&SeenEvent| {
            (self.state_after || !shown.contains(seen.event.event_id()))
                && self.filter.state.event(room_id, &seen.event)
        };
        let mut state: Vec<&SeenEvent> =
            candidates.into_iter().chain(hidden.map(|event| &event.seen)).filter(is_told).collect();
        if plan.lazy {
            // Those who matter, each once.
            let mut told: BTreeSet<&str> = state.iter().filter_map(|seen| member(seen)).collect();
            let of_interest = of_interest.iter().filter_map(|(root, key)| found.at(*root, *key));
            let of_interest = of_interest.filter(|seen| member(seen).is_some_and(|user| senders.contains(user)));
            let named_after = named_after.iter().map(|user| StateKeyHash::member(user));
            let named_after = named_after.filter_map(|key| heroes.at(plan.state, key));
            let who_matter = of_interest.chain(named_after).filter(is_told);
            state.extend(who_matter.filter(|seen| member(seen).is_some_and(|user| told.insert(user))));
        }
        // Of what is told as it is now the client needs to know nothing older.
        for key in state.iter().filter_map(|seen| state_key(seen)) {
            before.remove(&key);
        }
        let matters = |seen: &SeenEvent| {
            let is_beside = plan.lazy && member(seen).is_some_and(|user| !senders.contains(user));
            !is_beside && plan.known_before.lacks(seen, found)
        };
        let before = before.into_values().flatten().filter(|(seen, _)| matters(seen) && is_told(seen));
        let telling = Telling::alone(now_ms, false);
        let state = state.into_iter().map(|seen| (seen, true)).chain(before);
        let state = state.map(|(seen, erased)| events::client_event(seen, Telling { erased, ..telling })).collect();
        answer.insert(if self.state_after { "state_after" } else { "state" }, events_object(state));
        let mut told = Object::new();
        told.insert("events", Value::Array(sent));
        told.insert("limited", plan.limited);
        told.insert("prev_batch", Token::at(plan.prev_batch).to_string());
        answer.insert("timeline", told);
    }

    /// How much of a room is not read, where that was counted.
    fn unread(&self, answer: &mut Object, room_id: &RoomId, unread: &Unread) {
        if !unread.has(room_id) {
            return;
        }
        let (all, by_thread) = unread.told(room_id, self.filter.timeline.unread_thread_notifications);
        answer.insert("unread_notifications", all);
        if let Some(by_thread) = by_thread {
            answer.insert("unread_thread_notifications", by_thread);
        }
    }

    pub(super) fn account_data(&self, room_id: &str, found: &SyncFound) -> Vec<Value> {
        let filter = if room_id.is_empty() { &self.filter.account_data } else { &self.filter.room_account_data };
        let changed = found.changed_account_data.iter().filter(|changed| changed.room_id == room_id);
        let mut changed: Vec<(&str, Option<&str>)> =
            changed.map(|changed| (changed.event_type.as_str(), Some(changed.content.as_str()))).collect();
        // Everybody has push rules, and clients wait to be told of them at first.
        let has_rules = changed.iter().any(|(event_type, _)| *event_type == account_data::PUSH_RULES);
        if room_id.is_empty() && self.is_first && !has_rules {
            changed.push((account_data::PUSH_RULES, None));
        }
        let mut told = Vec::new();
        for (event_type, content) in changed.into_iter().filter(|(event_type, _)| filter.event_type(event_type)) {
            match account_data::told(self.session.user.as_str(), (room_id, event_type), content) {
                Ok(Some(content)) => {
                    let members = [("type", Value::from(event_type)), ("content", Value::Object(content))];
                    told.push(Value::Object(members.into_iter().collect()));
                }
                Ok(None) => {}
                // All else must not wait for it.
                Err(error) => {
                    let record =
                        LogRecord::error("a client is not told of account data: what is stored cannot be read");
                    self.server.platform.log.write(record.because(&error));
                }
            }
        }
        told
    }
}

/// Where the event stands in the state, if it is of it.
fn state_key(seen: &SeenEvent) -> Option<(&str, &str)> {
    Some((seen.event.event_type(), seen.event.state_key()?))
}

/// Whose membership the event is, if it is one.
fn member(seen: &SeenEvent) -> Option<&str> {
    seen.event.state_key().filter(|_| seen.event.event_type() == "m.room.member")
}

/// Who a room without a name can be named after, of some of its `members`.
fn chosen<'a>(counts: MemberCounts, members: &'a [Members], user: &UserId) -> Vec<&'a str> {
    let is_alone = counts.joined + counts.invited <= 1;
    let wanted = if is_alone { [Membership::Leave, Membership::Ban] } else { [Membership::Join, Membership::Invite] };
    let groups = wanted.iter().flat_map(|wanted| members.iter().filter(move |group| group.membership == *wanted));
    let users = groups.flat_map(|group| &group.first).map(String::as_str);
    users.filter(|other| *other != user.as_str()).take(5).collect()
}

/// The numbers of members and, where the room has no name, who it can be named after.
fn summary(counts: MemberCounts, heroes: Option<&Vec<&str>>) -> Object {
    let mut summary = Object::new();
    summary.insert("m.joined_member_count", counts.joined);
    summary.insert("m.invited_member_count", counts.invited);
    if let Some(heroes) = heroes {
        summary.insert("m.heroes", heroes.iter().map(|user| Value::from(*user)).collect::<Vec<_>>());
    }
    summary
}
