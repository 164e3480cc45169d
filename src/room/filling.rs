//! History that a local user pages back to: what other servers tell of a gap in the timeline is judged and put there.
//!
//! Server-Server API, "Backfilling and retrieving missing events".

use std::collections::{HashMap, HashSet};

use super::{
    RoomError, Rooms,
    judge::redaction,
    outliers::{Held, Outlier, Outliers, judge_outliers},
    view::{View, type_and_key},
};
use crate::{
    matrix::{
        event::{Ancestor, Event},
        identifiers::{EventId, RoomId},
    },
    platform::Clock,
    store::{
        commit::{
            CommitPos, Committed, Filled, Missing, NewEvent, PassedOver, Place, Redaction, RoomCommit, Unsettled,
        },
        event_graph::{Gap, Lack},
        positions::TimelinePos,
        rejected::NewRejected,
    },
};

/// After so many events in a row that cannot be used, history is not followed further: another server could make them up
/// without end.
const MAX_PASSED_IN_A_ROW: i64 = 500;

/// How often an event that cannot be used is asked for: over about two weeks.
const MAX_ATTEMPTS: i64 = 8;

/// The pause after the first time in milliseconds; four times as long with each further one.
const FIRST_RETRY_MS: i64 = 60 * 1_000;

impl Rooms {
    /// Puts history into the gap that ends at the position `gap_pos` of the room's timeline. `ancestors` were asked for
    /// because events after the gap cite them; what does not lead there from the gap's newer end is left out. Each event is
    /// judged by its auth events; `auth_events` are those that came with them. What cannot be used is passed over: it keeps a place
    /// in case that it comes yet.
    ///
    /// Says whether the gap is now another one.
    ///
    /// # Errors
    /// [`RoomError::MissingEvents`] where auth events are lacking, [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn fill(
        &self,
        room_id: &RoomId,
        gap_pos: TimelinePos,
        ancestors: &[Ancestor],
        auth_events: &[Event],
    ) -> Result<bool, RoomError> {
        let now = self.clock.now_ms();
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let mut ids: Vec<EventId> = vec![room_id.create_event_id()];
            ids.extend(ancestors.iter().flat_map(|one| one.prev_events().iter().chain([one.event_id()])).cloned());
            let judged = ancestors.iter().filter_map(Ancestor::event).chain(auth_events);
            ids.extend(judged.flat_map(|event| event.auth_events().iter().chain([event.event_id()])).cloned());
            let keys = [type_and_key("m.room.create", "")];
            let room = view.load_rooms(vec![room_id.clone()], &keys, ids, Vec::new()).await?.pop();
            let room = room.ok_or(RoomError::UnknownRoom)?;
            // It is known by that where a gap leads to it.
            view.state(room.state, &keys).await?;
            let ancestors = with_held(&mut view, ancestors).await?;
            let gap = self.store.newest_gap(room_id, (gap_pos.before(), gap_pos), now).await?;
            let Some(gap) = gap else { return Ok(Committed::Done(false)) };
            let clock = self.clock.as_ref();
            let filling = Filling { clock, gap: &gap, view: &view, room_id, now };
            let filled = filling.fill(&ancestors, auth_events).await?;
            let changed = filled.changed;
            if !changed && filled.is_nothing() {
                return Ok(Committed::Done(false));
            }
            let commit = RoomCommit {
                events: filled.new,
                rejected: filled.rejected,
                readmitted: filled.readmitted,
                copies: filled.copies,
                // Where nothing is lacking any more, the gap is closed: the states around it can be known.
                unsettled: (changed && filled.missing.is_empty()).then_some(Unsettled::KnownBetter),
                missing: filled.missing,
                redactions: filled.redactions,
                filled: Some(filled.gap),
                ..RoomCommit::unchanged(&room)
            };
            Ok(self.store.commit(&[commit], Vec::new()).await?.with(changed))
        })
        .await
    }
}

/// The ancestors, with what we hold of them in place of worse copies, and of other events that have their IDs.
async fn with_held(view: &mut View<'_>, ancestors: &[Ancestor]) -> Result<Vec<Ancestor>, RoomError> {
    let better = |view: &View<'_>, one: &Ancestor| {
        let held = view.stored(one.event_id()).map(|stored| &stored.event)?;
        one.event().is_none_or(|given| held.completes(given) || !given.is_copy_of(held)).then(|| held.clone())
    };
    let held: Vec<Event> = ancestors.iter().filter_map(|one| better(view, one)).collect();
    let cited: Vec<EventId> = held.iter().flat_map(|event| event.auth_events().iter().cloned()).collect();
    view.load_events(&cited).await?;
    let judgeable = |event: &Event| event.auth_events().iter().all(|id| view.stored(id).is_some());
    let best = |one: &Ancestor| better(view, one).filter(judgeable).map_or_else(|| one.clone(), Ancestor::Event);
    Ok(ancestors.iter().map(best).collect())
}

/// What history is put into a gap by.
struct Filling<'a> {
    clock: &'a dyn Clock,
    gap: &'a Gap,
    view: &'a View<'a>,
    room_id: &'a RoomId,
    now: i64,
}

/// What a commit must write for it.
struct Outcome {
    new: Vec<NewEvent>,
    rejected: Vec<NewRejected>,
    readmitted: Vec<EventId>,
    copies: Vec<Event>,
    redactions: Vec<Redaction>,
    missing: Vec<Missing>,
    gap: Filled,
    /// Whether the gap is now another one.
    changed: bool,
}

impl Outcome {
    fn is_nothing(&self) -> bool {
        self.copies.is_empty() && self.rejected.is_empty() && self.gap.reached.is_empty()
    }
}

/// What history has come to, from the newer end of a gap down.
struct Placed<'h> {
    new: Vec<NewEvent>,
    redactions: Vec<Redaction>,
    passed: Vec<PassedOver>,
    reached: Vec<EventId>,
    /// How many events in a row have been passed over before those that history cites, at least.
    in_a_row: HashMap<&'h EventId, i64>,
    /// The last place that was taken,
    pos: TimelinePos,
    /// and the last that an event stands at.
    after: TimelinePos,
    /// Whether the gap is now another one.
    changed: bool,
}

impl Filling<'_> {
    async fn fill(&self, ancestors: &[Ancestor], auth_events: &[Event]) -> Result<Outcome, RoomError> {
        let gap = self.gap;
        let given: HashSet<&EventId> = ancestors.iter().map(Ancestor::event_id).collect();
        // Asked for again in vain.
        let still: Vec<&Lack> =
            gap.missing.iter().filter(|lack| lack.attempts > 0 && !given.contains(&lack.event_id)).collect();
        // At the oldest end of the timeline there is room without end.
        let end = if gap.below.is_some() { gap.pos } else { gap.pos.min(TimelinePos::START) };
        let end = end.back_by(gap.reserved + i64::try_from(still.len()).unwrap_or(i64::MAX));
        let history = self.history(ancestors, end);
        let judged = self.judge(&history, auth_events).await?;

        let placed = self.place(&history, &judged, &still, end);
        let done: HashSet<&EventId> = placed.reached.iter().collect();
        let missing = self.missing(&history, &placed, &done);
        let lacks =
            |lack: &Lack| lack.attempts == 0 && !done.contains(&lack.event_id) && !self.is_placed(&lack.event_id);
        let is_closed = missing.is_empty() && !gap.has_more && !gap.missing.iter().any(lacks);
        let Placed { mut new, mut redactions, passed, reached, pos, after, changed, .. } = placed;
        if changed
            && is_closed
            && gap.below.is_none()
            && let Some(create) = self.create_without_place(&history)
        {
            new.push(self.new_event(create, pos.before()));
        }
        let history_ids: HashSet<&EventId> = history.iter().map(|one| one.event_id()).collect();
        let Outliers { new: judged_new, rejected, readmitted, .. } = judged;
        new.extend(judged_new.into_iter().filter(|new| !history_ids.contains(new.event.event_id())));
        let (copies, of_copies) = self.copies(ancestors.iter().filter_map(Ancestor::event).chain(auth_events));
        redactions.extend(of_copies);
        let gap = Filled { from: gap.pos, to: after, reached, passed };
        Ok(Outcome { new, rejected, readmitted, copies, redactions, missing, gap, changed })
    }

    /// What of `ancestors` leads back from the gap, as much as there are places for below `end`.
    fn history<'h>(&'h self, ancestors: &'h [Ancestor], end: TimelinePos) -> Vec<&'h Ancestor> {
        let missing = self.gap.missing.iter().map(|lack| &lack.event_id);
        let mut history = connected(missing, ancestors, |id| self.is_placed(id));
        self.leave_create_event_to_the_end(&mut history);
        let room_left = self.gap.below.map_or(i64::MAX, |below| end.places_after(below));
        history.truncate(usize::try_from(room_left).unwrap_or(usize::MAX));
        history
    }

    /// Gives each event of `history` its place, downwards from `end`. What cannot be used is passed over, and so is what was asked
    /// for again in vain, `still`.
    fn place<'h>(
        &'h self,
        history: &[&'h Ancestor],
        judged: &Outliers,
        still: &[&Lack],
        end: TimelinePos,
    ) -> Placed<'h> {
        let gap = self.gap;
        let mut placed = Placed {
            new: Vec::new(),
            redactions: Vec::new(),
            passed: still.iter().filter_map(|lack| self.passed_over(&lack.event_id, gap.pos)).collect(),
            reached: still.iter().map(|lack| lack.event_id.clone()).collect(),
            in_a_row: gap.missing.iter().map(|lack| (&lack.event_id, lack.passed)).collect(),
            pos: end,
            after: gap.pos,
            changed: false,
        };
        for ancestor in history {
            let id = ancestor.event_id();
            let row = match (ancestor, judged.by_id.get(id)) {
                (Ancestor::Event(event), Some(Outlier::Accepted(_))) => {
                    placed.changed = true;
                    placed.pos = placed.pos.before();
                    placed.after = placed.pos;
                    placed.redactions.extend(redaction(event, &[&self.power_then(event, judged)]));
                    placed.new.push(self.new_event(event, placed.pos));
                    0
                }
                (Ancestor::Event(_), Some(Outlier::Rejected { .. })) => {
                    placed.changed = true;
                    0
                }
                // It has been passed over, or lacks an auth event.
                _ => {
                    placed.changed |= self.attempts_so_far(id) == 0;
                    placed.pos = placed.pos.before();
                    placed.passed.extend(self.passed_over(id, placed.after));
                    placed.in_a_row.get(id).copied().unwrap_or_default() + 1
                }
            };
            placed.reached.push(id.clone());
            for id in ancestor.prev_events() {
                let least = placed.in_a_row.entry(id).or_insert(row);
                *least = (*least).min(row);
            }
        }
        if gap.below.is_some() {
            let creates = gap.missing.iter().map(|lack| &lack.event_id).filter(|id| self.view.is_create(id));
            placed.reached.extend(creates.cloned());
        }
        placed
    }

    fn attempts_so_far(&self, id: &EventId) -> i64 {
        let lack = self.gap.missing.iter().find(|lack| lack.event_id == *id);
        lack.map_or(0, |lack| lack.attempts)
    }

    /// An event that cannot be used, if it is to be asked for again.
    fn passed_over(&self, event_id: &EventId, pos: TimelinePos) -> Option<PassedOver> {
        let attempts = self.attempts_so_far(event_id) + 1;
        let pause = FIRST_RETRY_MS << (2 * (attempts - 1)).clamp(0, 32);
        let passed = PassedOver { event_id: event_id.clone(), pos, attempts, retry_at: self.now + pause };
        (attempts <= MAX_ATTEMPTS).then_some(passed)
    }

    /// What `history` cites and is lacking, but for what too many events in a row that could not be used lead to.
    fn missing(&self, history: &[&Ancestor], placed: &Placed<'_>, done: &HashSet<&EventId>) -> Vec<Missing> {
        let cited: HashSet<&EventId> = history.iter().flat_map(|one| one.prev_events()).collect();
        let is_further_down = |id: &EventId| self.gap.below.is_some() && self.view.is_create(id);
        let lacking = cited.into_iter().filter(|id| !done.contains(*id) && !self.is_placed(id) && !is_further_down(id));
        let missing = lacking.filter_map(|id| {
            let passed = placed.in_a_row.get(id).copied().unwrap_or_default();
            let missing = Missing { event_id: id.clone(), before: CommitPos::At(placed.after), passed };
            (passed <= MAX_PASSED_IN_A_ROW).then_some(missing)
        });
        missing.collect()
    }

    /// Takes the create event out of `history` unless the timeline begins there: whoever cites it late does not move it. It comes
    /// with the last events of the oldest gap, or after them, where there is something that nobody gives.
    fn leave_create_event_to_the_end(&self, history: &mut Vec<&Ancestor>) {
        let Some(at) = history.iter().position(|one| self.view.is_create(one.event_id())) else { return };
        let reached: HashSet<&EventId> = history.iter().map(|one| one.event_id()).collect();
        let not_asked_for = self.gap.missing.iter().filter(|lack| lack.attempts == 0).map(|lack| &lack.event_id);
        let mut cited = history.iter().flat_map(|one| one.prev_events()).chain(not_asked_for);
        let is_lacking = |id: &EventId| !reached.contains(id) && !self.is_placed(id);
        let goes_on = history.len() > 1 && (self.gap.has_more || cited.any(is_lacking));
        if self.gap.below.is_some() || goes_on {
            history.remove(at);
        }
    }

    /// The event that created the room, where it has no place and `history` does not hold it: what leads to it was cited late, and has a
    /// place further up.
    fn create_without_place(&self, history: &[&Ancestor]) -> Option<&Event> {
        let by_id = self.room_id.create_event_id();
        let mut cited =
            history.iter().filter_map(|one| one.event()).flat_map(|event| event.auth_events()).chain([&by_id]);
        let id = cited.find(|id| self.view.is_create(id))?;
        let is_here = self.is_placed(id) || history.iter().any(|one| one.event_id() == id);
        self.stored(id).filter(|_| !is_here)
    }

    /// Whether the event has its place already. What came late, and was soft-failed by what the room is now, has none in the history from
    /// before we came into it.
    fn is_placed(&self, id: &EventId) -> bool {
        let is_late = || self.view.stored(id).is_some_and(|held| held.soft_failed);
        self.view.is_placed(id) && !(self.gap.before_join && is_late())
    }

    /// Judges the events of history by the auth events of each, which are here, among them, or among `auth_events`.
    async fn judge(&self, history: &[&Ancestor], auth_events: &[Event]) -> Result<Outliers, RoomError> {
        let history = || history.iter().filter_map(|one| one.event());
        let mut missing: Vec<EventId> = Vec::new();
        let given: HashSet<&EventId> = history().chain(auth_events).map(Event::event_id).collect();
        let mut cited: Vec<EventId> = vec![self.room_id.create_event_id()];
        for event in history().chain(auth_events) {
            for id in event.auth_events() {
                if self.view.knows(id) {
                    cited.push(id.clone());
                } else if !given.contains(id) {
                    missing.push(id.clone());
                }
            }
        }
        if !missing.is_empty() {
            missing.sort();
            missing.dedup();
            return Err(RoomError::MissingEvents(missing));
        }
        let held = Held::in_view(self.view, cited.iter());
        Ok(judge_outliers(self.clock, self.room_id, held, history().chain(auth_events)).await)
    }

    fn new_event(&self, event: &Event, pos: TimelinePos) -> NewEvent {
        // The state around it may be known, as another server vouched for it.
        let stored = self.view.stored(event.event_id());
        NewEvent {
            event: event.clone(),
            place: Place::Filled(pos),
            soft_failed: false,
            claimed: stored.is_some_and(|stored| stored.claimed),
            state_before: stored.and_then(|stored| stored.state_before),
            state_after: stored.and_then(|stored| stored.state_after),
            outbox: None,
        }
    }

    /// What says which power the sender of an event of history had then: its auth events, as the state before it is not known. What
    /// power they have now has no say, as with Synapse: moderators lose it, and what they took away stays away.
    fn power_then(&self, event: &Event, judged: &Outliers) -> Vec<Event> {
        let create = self.room_id.create_event_id();
        let cited = event.auth_events().iter().chain([&create]);
        cited.filter_map(|id| Some(judged.accepted(id).or(self.stored(id))?.clone())).collect()
    }

    fn stored(&self, id: &EventId) -> Option<&Event> {
        self.view.stored(id).map(|stored| &stored.event)
    }

    /// Whole copies of events that are held without their content, and what they redact.
    fn copies<'e>(&self, events: impl Iterator<Item = &'e Event>) -> (Vec<Event>, Vec<Redaction>) {
        let none = Outliers::default();
        let (mut copies, mut redactions) = (Vec::new(), Vec::new());
        for event in events {
            let Some(held) = self.view.stored(event.event_id()).filter(|held| event.completes(&held.event)) else {
                continue;
            };
            copies.push(event.clone());
            if held.stands() {
                redactions.extend(redaction(event, &[&self.power_then(event, &none)]));
            }
        }
        (copies, redactions)
    }
}

/// Those of `ancestors` that `missing` lead back to, newest first, not past those that have a place already.
fn connected<'a>(
    missing: impl Iterator<Item = &'a EventId>,
    ancestors: &'a [Ancestor],
    is_placed: impl Fn(&EventId) -> bool,
) -> Vec<&'a Ancestor> {
    let mut reached: HashSet<&EventId> = missing.collect();
    let mut waiting: Vec<&Ancestor> = ancestors.iter().filter(|one| !is_placed(one.event_id())).collect();
    // Of what is reached the greatest depth comes first: depth orders honest history, and orders only the view of it.
    waiting.sort_by_key(|one| std::cmp::Reverse(one.age()));
    let mut connected = Vec::new();
    while let Some(index) = waiting.iter().position(|one| reached.contains(one.event_id())) {
        let next = waiting.remove(index);
        reached.extend(next.prev_events());
        connected.push(next);
    }
    connected
}
