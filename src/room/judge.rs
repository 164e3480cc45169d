//! Judging events: the checks on receipt of a PDU from the fourth on, and what each verdict does to the room.
//!
//! Server-Server API, "Checks performed on receipt of a PDU". Checks 1 to 3 (format, signatures, content hash) made the
//! [`Event`]. Here, in the spec's order:
//!
//! 4. allowed by its auth events, else rejected;
//! 5. allowed by the state before it, else rejected;
//! 6. allowed by the room's current state, else soft-failed;
//! 7. signed by the room's policy server, if it uses one ([`super::policy`]), else soft-failed.
//!
//! A rejected event is remembered; the state after it is the state before it. A soft-failed one takes part in state
//! resolution. Neither becomes a forward extremity, and an event that cites one replaces the extremities behind it.

use std::collections::{HashMap, HashSet};

use super::{
    RoomError,
    view::{StateAt, TypeAndKey, View, type_and_key},
};
use crate::{
    log::Reason,
    matrix::{
        auth_rules::AuthState,
        event::Event,
        identifiers::{EventId, ServerName},
        policy_server::PolicyServer,
        power_levels::{Level, PowerLevels},
        room_version,
        state_trie::NodeId,
    },
    store::{
        commit::{Guard, NewEvent, Outgoing, Place, Redaction, RejectedAt, Unsettled},
        events::StoredEvent,
        rejected::NewRejected,
        rooms::{Extremity, Room},
    },
};

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is part of the room.
    Accepted,
    /// It is part of the graph, but neither shown nor built upon; the sentence says why.
    SoftFailed(String),
    /// The room's rules forbid it.
    Rejected(Rejection),
    /// It was judged before, with this outcome: accepted, or rejected for the reason in the sentence.
    Known(Option<String>),
    /// All that is lacking is the signature of the room's policy server, which must be asked for it.
    Unsigned(PolicyServer),
    /// It cites these events as previous ones, and we do not hold them or not the state after them, and these as auth
    /// events.
    Missing { previous: Vec<EventId>, auth: Vec<EventId> },
}

/// Why the room's rules forbid an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejection {
    /// A sentence without a full stop.
    pub(super) why: String,
    /// Whether the verdict rests on what another server claims of the room's state, or on altered auth events: better evidence may
    /// overturn it.
    pub(super) provisional: bool,
}

impl Reason for Rejection {
    fn reason(&self) -> String {
        self.why.clone()
    }
}

impl Rejection {
    pub(super) fn for_good(why: impl Into<String>) -> Self {
        Self { why: why.into(), provisional: false }
    }
}

/// A room while events are judged: its row, and what the commit will change.
pub(super) struct Judgement {
    pub(super) room: Room,
    pub(super) extremities: Vec<Extremity>,
    pub(super) state: NodeId,
    /// The current state after each of `new` that goes to the timeline.
    pub(super) states: Vec<NodeId>,
    pub(super) new: Vec<NewEvent>,
    /// Whole copies of events that are held without their content.
    pub(super) copies: Vec<Event>,
    pub(super) rejected: Vec<NewRejected>,
    /// Those of them that were held.
    pub(super) unplaced: Vec<EventId>,
    /// Those of `new` that were rejected before.
    pub(super) readmitted: Vec<EventId>,
    pub(super) redactions: Vec<Redaction>,
    /// States before events, as other servers claim them, where nobody gives what the events cite.
    pub(super) claimed_before: HashMap<EventId, NodeId>,
    /// Events that the room's policy server does not sign.
    pub(super) not_recommended: HashSet<EventId>,
    /// Previous events of `new`, or of `rejected`, that have no place: how many of `new` go to the timeline before the one that
    /// cites each.
    pub(super) missing: Vec<(usize, EventId)>,
    /// What state rejected events stand at, where that is better known now.
    pub(super) rejected_at: Vec<RejectedAt>,
    /// What is claimed of the states before events, beside what follows from what these cite.
    pub(super) beside: Vec<(EventId, NodeId)>,
    /// Whether something of the room is to be settled.
    pub(super) unsettled: Option<Unsettled>,
}

/// Who made an event, and so who else must hear of it.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A transaction of its own server, which tells everybody.
    Transaction,
    /// It is ours to pass on: made here, or given to us as a resident server by the server named.
    PassOn { given_by: Option<ServerName> },
}

impl Judgement {
    pub(super) fn new(room: Room) -> Self {
        Self {
            extremities: room.extremities.clone(),
            state: room.state,
            states: Vec::new(),
            room,
            new: Vec::new(),
            copies: Vec::new(),
            rejected: Vec::new(),
            unplaced: Vec::new(),
            readmitted: Vec::new(),
            redactions: Vec::new(),
            claimed_before: HashMap::new(),
            not_recommended: HashSet::new(),
            missing: Vec::new(),
            rejected_at: Vec::new(),
            beside: Vec::new(),
            unsettled: None,
        }
    }

    /// Whether there is anything to commit.
    pub(super) fn is_unchanged(&self) -> bool {
        self.new.is_empty()
            && self.copies.is_empty()
            && self.rejected.is_empty()
            && self.rejected_at.is_empty()
            && self.beside.is_empty()
    }

    /// What the commit rests on. A rejection rests on what was before the event, which does not change; every other verdict
    /// on the current state. Whoever sends what is rejected must not be able to keep others from committing.
    pub(super) fn guard(&self) -> Guard {
        if self.new.is_empty() && self.copies.is_empty() && self.redactions.is_empty() {
            Guard::Free
        } else if self.states.is_empty() && self.extremities == self.room.extremities {
            Guard::Holds(self.room.version)
        } else {
            Guard::Moves(self.room.version)
        }
    }

    /// Judges `event` and takes the outcome into the room.
    pub(super) async fn judge(
        &mut self,
        view: &mut View<'_>,
        event: &Event,
        source: &Source,
    ) -> Result<Verdict, RoomError> {
        let cited: Vec<EventId> = event.prev_events().iter().chain(event.auth_events()).cloned().collect();
        view.load_events(&cited).await?;
        view.load_events(std::slice::from_ref(event.event_id())).await?;
        self.complete(view, event).await?;
        if view.text(event.event_id()).is_some_and(|held| !event.is_copy_of(held)) {
            // Nor is it stored: what is held is what others cite by that ID.
            return Ok(Verdict::Known(Some("another event has its ID".to_owned())));
        }
        // An altered copy says nothing of what is held whole.
        let whole = view.text(event.event_id()).filter(|held| held.completes(event)).cloned();
        let event = whole.as_ref().unwrap_or(event);
        if let Some(known) = known(view, event) {
            return Ok(known);
        }
        if event.event_type() == "m.room.create" {
            // Every room that is known here was created already; ours never come this way.
            let held = view.stored(event.event_id()).is_some();
            return Ok(if held {
                Verdict::Known(None)
            } else {
                Verdict::Rejected(Rejection::for_good("the room exists already"))
            });
        }
        if event.prev_events().iter().filter_map(|id| view.room_of(id)).any(|room_id| room_id != event.room_id()) {
            // The state of another room has no say here: the event is rejected, on top of our own state.
            let rejection = Rejection::for_good("it cites an event of another room as a previous one");
            self.reject(view, event, StateAt { root: self.state, claimed: true }, &rejection);
            return Ok(Verdict::Rejected(rejection));
        }
        self.know_creation(view, event.prev_events()).await?;
        let claimed_before = self.claimed_before.get(event.event_id()).copied();
        let missing = missing(view, event, claimed_before.is_some());
        if let Some(missing) = missing {
            return Ok(missing);
        }
        let before = self.state_before(view, event.prev_events(), claimed_before).await?;
        // What has been put into a gap in the timeline, as its auth events allow it, is history: the current state has no say in it, and
        // nobody takes it away by what he claims of the state then.
        let is_history = view.stored(event.event_id()).is_some_and(StoredEvent::stands);
        if let Some(rejection) = self.broken_rule(view, event, before).await? {
            if is_history && rejection.provisional {
                return Ok(Verdict::Known(None));
            }
            self.reject(view, event, before, &rejection);
            return Ok(Verdict::Rejected(rejection));
        }
        let forbidden = match is_history {
            true => None,
            false => self.forbidden_now(view, event, before).await?,
        };
        let unsigned = match (is_history, &forbidden) {
            (false, None) => self.unsigned_by(view, event).await?,
            _ => None,
        };
        if let Some(policy) = &unsigned
            && !self.not_recommended.contains(event.event_id())
        {
            return Ok(Verdict::Unsigned(policy.clone()));
        }
        let soft_failed = forbidden.or(unsigned.as_ref().map(not_signed));
        self.take(view, event, before, soft_failed.is_some(), source).await?;
        Ok(soft_failed.map_or(Verdict::Accepted, Verdict::SoftFailed))
    }

    /// Makes known what the state is after the room's create event, if it is one of the previous events of another; these must have
    /// been read. Whoever joins a room holds its create event as a part of the state alone, and servers only say what was before
    /// it: nothing. An event that cites it must not hold up everything that is built on that event.
    pub(super) async fn know_creation(&self, view: &mut View<'_>, previous: &[EventId]) -> Result<(), RoomError> {
        let is_unplaced_create = |id: &&EventId| view.state_after(id).is_none() && view.is_create(id);
        let Some(id) = previous.iter().find(is_unplaced_create) else { return Ok(()) };
        if let Some((create, after)) = creation(view, self.state).await?.filter(|(create, _)| create == id) {
            view.know_states(&create, NodeId::EMPTY, after);
        }
        Ok(())
    }

    /// Takes the content of `event` where it is held without. What was thought of it stays, for all that the rules read of it
    /// was there (but the level for invites, up to room version 10). A redaction that stands in the room takes effect: up to
    /// that version, what it redacts was lost too.
    pub(super) async fn complete(&mut self, view: &mut View<'_>, event: &Event) -> Result<(), RoomError> {
        let held = view.stored(event.event_id()).filter(|held| event.completes(&held.event)).cloned();
        let Some(held) = held else { return Ok(()) };
        self.copies.push(event.clone());
        let stands = held.stands();
        let before = held.state_before;
        if lacks_what_is_read(&held.event) {
            // What was rejected by it is judged again.
            self.unsettled = Some(Unsettled::KnownBetter);
        }
        view.put(StoredEvent { event: event.clone(), ..held });
        if stands { self.redact(view, event, before).await } else { Ok(()) }
    }

    /// Remembers that `event` is rejected. Of an altered one a whole copy may take part in the state after it yet.
    pub(super) fn reject(&mut self, view: &mut View<'_>, event: &Event, before: StateAt, rejection: &Rejection) {
        let new = NewRejected {
            event: event.clone(),
            reason: rejection.why.clone(),
            state_before: Some(before.root),
            claimed: before.claimed || event.is_altered(),
            provisional: rejection.provisional,
        };
        let known = view.rejected(event.event_id());
        let is_new = known.is_none_or(|known| !known.provisional);
        if known.is_some_and(|known| known.is_altered_copy_of(event)) {
            // What was built upon it may count on what state is after it.
            self.unsettled = Some(Unsettled::KnownBetter);
        }
        if view.put_rejected(&new) {
            self.unplaced.push(event.event_id().clone());
            if event.state_key().is_some() && !rejection.provisional {
                // It may stand in states that were claimed.
                self.unsettled.get_or_insert(Unsettled::Claimed);
            }
        }
        self.rejected.push(new);
        if rejection.provisional {
            self.unsettled = self.unsettled.max(Some(if is_new { Unsettled::Against } else { Unsettled::Claimed }));
            self.note_edges(view, event);
        }
    }

    /// Notes the edges of gaps that `event` cites, which does not go to the timeline because of what is claimed there: what is held
    /// of the gap shows whether that is so.
    pub(super) fn note_edges(&mut self, view: &View<'_>, event: &Event) {
        self.note_missing(view, event.prev_events());
    }

    /// Notes those of `cited` that have no place in the timeline: there is a gap below what comes next. The create event is at the
    /// end of the gap that our join has left.
    fn note_missing(&mut self, view: &View<'_>, cited: &[EventId]) {
        let missing = cited.iter().filter(|id| !view.is_placed(id) && !view.is_create(id)).cloned();
        self.missing.extend(missing.map(|id| (self.states.len(), id)));
    }

    /// Whether the current state rests on another server's claim.
    pub(super) async fn rests_on_claims(&self, view: &mut View<'_>) -> Result<bool, RoomError> {
        let ids = self.load_extremities(view).await?;
        Ok(ids.iter().any(|id| view.state_after(id).is_some_and(|state| state.claimed)))
    }

    /// Takes `event`, which is accepted or soft-failed, into the room.
    pub(super) async fn take(
        &mut self,
        view: &mut View<'_>,
        event: &Event,
        before: StateAt,
        soft_failed: bool,
        source: &Source,
    ) -> Result<(), RoomError> {
        let held = view.stored(event.event_id());
        // Backfilled history has its place in the timeline, and is nothing new.
        let is_history = held.is_some_and(StoredEvent::stands);
        let was_hidden = held.is_some_and(|held| held.soft_failed);
        if held.is_some_and(|held| held.outlier && held.state_after.is_some()) {
            // What rests on the claim about the state before it may be judged by the true one.
            self.unsettled = Some(Unsettled::KnownBetter);
        }
        // A soft failure rests on the current state too.
        let claimed = before.claimed || (soft_failed && self.rests_on_claims(view).await?);
        if soft_failed && claimed {
            let why = if was_hidden { Unsettled::Claimed } else { Unsettled::Against };
            self.unsettled = self.unsettled.max(Some(why));
            self.note_edges(view, event);
        }
        let after = view.with_event(before.root, event).await?;
        self.copies.extend(view.copies([event].into_iter()));
        if view.rejected(event.event_id()).is_some_and(|rejected| rejected.is_altered_copy_of(event)) {
            // So may be what cites it.
            self.unsettled = Some(Unsettled::KnownBetter);
        }
        let was_rejected = view.put(StoredEvent {
            event: event.clone(),
            outlier: false,
            rejected: false,
            soft_failed,
            redacted_by: None,
            claimed,
            state_before: Some(before.root),
            state_after: Some(after),
        });
        if was_rejected {
            self.readmitted.push(event.event_id().clone());
        }
        let accepted = !soft_failed && !is_history;
        if accepted {
            let extremities = self.extremities.clone();
            let behind = self.extend(view, event, before.claimed).await?;
            // Known only by a claim about the state around them, if at all.
            self.note_missing(view, &behind);
            match self.state_of_extremities(view).await? {
                Some(state) => self.state = state,
                None => self.extremities = extremities,
            }
            self.states.push(self.state);
            self.redact(view, event, Some(before.root)).await?;
        }
        self.new.push(NewEvent {
            event: event.clone(),
            place: if accepted { Place::Newest } else { Place::Hidden },
            soft_failed,
            claimed,
            state_before: Some(before.root),
            state_after: Some(after),
            outbox: match source {
                Source::PassOn { given_by } if accepted => Some(Outgoing { exclude: given_by.clone(), also: None }),
                _ => None,
            },
        });
        Ok(())
    }

    /// The state before an event: the resolution of the states after its previous ones. Where some of them are lacking, a claim stands in
    /// for these; it does not take the place of what we hold, as it may leave out a ban that the event cites. Where all that is too much
    /// to be resolved, the current state takes its place, so that the room goes on.
    pub(super) async fn state_before(
        &self,
        view: &mut View<'_>,
        previous: &[EventId],
        claim: Option<NodeId>,
    ) -> Result<StateAt, RoomError> {
        let states: Vec<StateAt> = previous.iter().filter_map(|id| view.state_after(id)).collect();
        let claimed = claim.is_some() || states.iter().any(|state| state.claimed);
        let roots = states.iter().map(|state| state.root).chain(claim).collect();
        let root = view.resolve(&self.room, roots).await?;
        Ok(root.map_or(StateAt { root: self.state, claimed: true }, |root| StateAt { root, claimed }))
    }

    /// The room's current state: the resolution of the states after its forward extremities, unless that is too much to be
    /// resolved.
    pub(super) async fn state_of_extremities(&self, view: &mut View<'_>) -> Result<Option<NodeId>, RoomError> {
        let ids = self.load_extremities(view).await?;
        let roots = ids.iter().filter_map(|id| view.stored(id)?.state_after).collect();
        view.resolve(&self.room, roots).await
    }

    /// Notes what an accepted redaction redacts. From room version 3 on the redaction takes effect only where its sender
    /// has the power, or is of the same server as the sender of the redacted event (rooms v3, "Handling redactions"). `before`
    /// is the state before it, where that is known.
    pub(super) async fn redact(
        &mut self,
        view: &mut View<'_>,
        event: &Event,
        before: Option<NodeId>,
    ) -> Result<(), RoomError> {
        if event.event_type() != "m.room.redaction" {
            return Ok(());
        }
        let redaction = match before {
            Some(before) => {
                let keys = power_keys();
                let then = view.state(before, &keys).await?;
                // An old state could be cited at will.
                redaction(event, &[&then, &view.state(self.state, &keys).await?])
            }
            // As where history is put into a gap.
            None => redaction(event, &[&power_by_auth_events(view, event).await?]),
        };
        self.redactions.extend(redaction);
        Ok(())
    }
}

/// The auth events of an event of history, by which it was judged: the state before it is not known.
async fn power_by_auth_events(view: &mut View<'_>, event: &Event) -> Result<Vec<Event>, RoomError> {
    let cited: Vec<EventId> = event.auth_events().iter().cloned().chain([event.room_id().create_event_id()]).collect();
    view.load_events(&cited).await?;
    Ok(cited.iter().filter_map(|id| Some(view.stored(id)?.event.clone())).collect())
}

/// The keys of the state that says what power everybody has.
pub(super) fn power_keys() -> [TypeAndKey; 2] {
    [type_and_key("m.room.create", ""), type_and_key("m.room.power_levels", "")]
}

/// What the accepted event `event` redacts, if it is a redaction. The power to redact others' events must be there in each of
/// `states`.
pub(super) fn redaction(event: &Event, states: &[&[Event]]) -> Option<Redaction> {
    let redacts = event.redacts().filter(|_| event.event_type() == "m.room.redaction")?;
    Some(Redaction {
        redaction_id: event.event_id().clone(),
        redacts: redacts.to_owned(),
        any_sender: states.iter().all(|state| may_redact(event, state)),
        server: ServerName::parse(event.sender().server_name()).ok()?,
    })
}

/// Whether the sender of `event` has the power to redact anybody's events in `state`.
fn may_redact(event: &Event, state: &[Event]) -> bool {
    let Some(create) = AuthState::get(state, "m.room.create", "") else { return false };
    let levels = PowerLevels::from_state(create, AuthState::get(state, "m.room.power_levels", ""));
    levels.allow(event.sender().as_str(), Level::Redact)
}

/// What became of the event when it was judged by itself, if it was, and for good.
fn known(view: &View<'_>, event: &Event) -> Option<Verdict> {
    let event_id = event.event_id();
    if let Some(rejected) = view.rejected(event_id) {
        let is_judged = !rejected.provisional && rejected.state_before.is_some();
        // The rules may have read what an altered copy has lost.
        let is_final = is_judged && !rejected.is_altered_copy_of(event);
        return is_final.then(|| Verdict::Known(Some(rejected.reason.clone())));
    }
    let stored = view.stored(event_id).filter(|stored| !stored.outlier && stored.state_after.is_some())?;
    Some(match stored.soft_failed {
        true => Verdict::SoftFailed("it was soft-failed before".to_owned()),
        false => Verdict::Known(None),
    })
}

/// Why an event is soft-failed that the policy server has not signed.
fn not_signed(policy: &PolicyServer) -> String {
    format!("the room's policy server, {}, has not signed it", policy.via)
}

/// The create event in the room's current state, and the state after it.
pub(super) async fn creation(view: &mut View<'_>, state: NodeId) -> Result<Option<(EventId, NodeId)>, RoomError> {
    let current = view.state(state, &[type_and_key("m.room.create", "")]).await?;
    let Some(create) = current.first() else { return Ok(None) };
    Ok(Some((create.event_id().clone(), view.with_event(NodeId::EMPTY, create).await?)))
}

/// What `event` cites and cannot be judged without, if anything. Where the state before it is known otherwise, its previous
/// events are not needed.
fn missing(view: &View<'_>, event: &Event, has_state: bool) -> Option<Verdict> {
    let lacks = |id: &&EventId| !has_state && view.state_after(id).is_none();
    let previous: Vec<EventId> = event.prev_events().iter().filter(lacks).cloned().collect();
    let auth: Vec<EventId> = event.auth_events().iter().filter(|id| !view.knows(id)).cloned().collect();
    (!previous.is_empty() || !auth.is_empty()).then_some(Verdict::Missing { previous, auth })
}

/// Whether it is held without what the rules for memberships read of it: who may redeem an invite, or the level for invites.
pub(super) fn lacks_what_is_read(held: &Event) -> bool {
    held.is_altered()
        && match held.event_type() {
            "m.room.third_party_invite" => true,
            "m.room.power_levels" => held.version().redaction < room_version::Redaction::V11,
            _ => false,
        }
}
