//! Judging events: the checks on receipt of a PDU from the fourth on, and what each verdict does to the room.
//!
//! Server-Server API, "Checks performed on receipt of a PDU". Checks 1 to 3 (format, signatures, content hash) made the
//! [`Event`]. Here, in the spec's order:
//!
//! 4. allowed by its auth events, else rejected;
//! 5. allowed by the state before it, else rejected;
//! 6. allowed by the room's current state, else soft-failed;
//! 7. validated by the room's policy server: belongs after check 6, in [`Judgement::judge`].
//!
//! A rejected event is remembered; the state after it is the state before it. A soft-failed one takes part in state
//! resolution. Neither becomes a forward extremity, and an event that cites one replaces the extremities behind it.

use super::{
    RoomError,
    view::{StateKey, View},
};
use crate::{
    matrix::{
        auth_events,
        auth_rules::{self, AuthEvent, AuthState},
        event::Event,
        identifiers::{EventId, ServerName},
        power_levels::{Level, PowerLevels},
        state_trie::NodeId,
    },
    store::{
        commit::{NewEvent, Outgoing, Place, Redaction},
        events::StoredEvent,
        rooms::Room,
    },
};

/// The most events to walk back through from one that cites rejected or soft-failed events.
const MAX_WALK: usize = 200;

/// The most forward extremities to keep. More would make each state resolution dearer; an event that would be one more is
/// accepted without becoming one.
const MAX_EXTREMITIES: usize = 40;

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is part of the room.
    Accepted,
    /// It is part of the graph, but neither shown nor built upon; the sentence says why.
    SoftFailed(String),
    /// The room's rules forbid it; the sentence says why.
    Rejected(String),
    /// It was judged before, with this outcome.
    Known(Option<String>),
    /// It cites these events as previous ones, and we do not hold them or not the state after them, and these as auth
    /// events.
    Missing { previous: Vec<EventId>, auth: Vec<EventId> },
}

/// A room while events are judged: its row, and what the commit will change.
pub(super) struct Judgement {
    pub(super) room: Room,
    pub(super) extremities: Vec<(EventId, i64)>,
    pub(super) state: NodeId,
    /// The current state after each of `new` that goes to the timeline.
    pub(super) states: Vec<NodeId>,
    pub(super) new: Vec<NewEvent>,
    /// Whole copies of events that are held without their content.
    pub(super) copies: Vec<Event>,
    pub(super) redactions: Vec<Redaction>,
    /// Previous events of `new` that have no place: how many of `new` go to the timeline before the one that cites each.
    pub(super) missing: Vec<(usize, EventId)>,
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
            redactions: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Whether there is anything to commit.
    pub(super) fn is_unchanged(&self) -> bool {
        self.new.is_empty() && self.copies.is_empty()
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
        if let Some(stored) = view.stored(event.event_id())
            && !stored.outlier
            && stored.state_after.is_some()
        {
            return Ok(match stored.soft_failed {
                true => Verdict::SoftFailed("it was soft-failed before".to_owned()),
                false => Verdict::Known(stored.rejected.clone()),
            });
        }
        if event.event_type() == "m.room.create" {
            // Every room that is known here was created already; ours never come this way.
            let held = view.stored(event.event_id()).is_some();
            return Ok(if held {
                Verdict::Known(None)
            } else {
                Verdict::Rejected("the room exists already".to_owned())
            });
        }
        let previous = event.prev_events().iter().filter_map(|id| view.stored(id));
        if previous.into_iter().any(|stored| stored.event.room_id() != event.room_id()) {
            // The state of another room has no say here: the event is rejected, on top of our own state.
            let verdict = Verdict::Rejected("it cites an event of another room as a previous one".to_owned());
            self.take(view, event, self.state, &verdict, source).await?;
            return Ok(verdict);
        }
        let missing = missing(view, event);
        if let Some(missing) = missing {
            return Ok(missing);
        }
        let before = self.state_before(view, event).await?;
        let verdict = match self.broken_rule(view, event, before).await? {
            Some(why) => Verdict::Rejected(why),
            None if before == self.state => Verdict::Accepted,
            None => match self.check_state(view, event, self.state).await? {
                Some(why) => Verdict::SoftFailed(why),
                None => Verdict::Accepted,
            },
        };
        self.take(view, event, before, &verdict, source).await?;
        Ok(verdict)
    }

    /// Takes the content of `event` where it is held without. What was thought of it stays, for all that the rules read of it
    /// was there (but the level for invites, up to room version 10). A redaction that stands in the room takes effect: up to
    /// that version, what it redacts was lost too.
    async fn complete(&mut self, view: &mut View<'_>, event: &Event) -> Result<(), RoomError> {
        let held = view.stored(event.event_id()).filter(|held| event.completes(&held.event)).cloned();
        let Some(held) = held else { return Ok(()) };
        self.copies.push(event.clone());
        let stands = !held.outlier && held.rejected.is_none() && !held.soft_failed;
        let before = held.state_before;
        view.put(StoredEvent { event: event.clone(), ..held });
        if stands && event.event_type() == "m.room.redaction" {
            let keys = REDACTION_KEYS.map(|(event_type, state_key)| key(event_type, state_key));
            let then = match before {
                Some(before) => view.state(before, &keys).await?,
                None => power_by_auth_events(view, event).await?,
            };
            let now = view.state(self.state, &keys).await?;
            self.redactions.extend(redaction(event, &then, &now));
        }
        Ok(())
    }

    /// Takes `event`, whose verdict is known, into the room.
    pub(super) async fn take(
        &mut self,
        view: &mut View<'_>,
        event: &Event,
        before: NodeId,
        verdict: &Verdict,
        source: &Source,
    ) -> Result<(), RoomError> {
        let rejected = match verdict {
            Verdict::Rejected(why) => Some(why.clone()),
            _ => None,
        };
        let soft_failed = matches!(verdict, Verdict::SoftFailed(_));
        // Backfilled history has its place in the timeline, and is nothing new.
        let is_history = view.stored(event.event_id()).is_some_and(|stored| !stored.outlier);
        let after = if rejected.is_some() { before } else { view.with_event(before, event).await? };
        view.put(StoredEvent {
            event: event.clone(),
            outlier: false,
            rejected: rejected.clone(),
            soft_failed,
            redacted_by: None,
            state_before: Some(before),
            state_after: Some(after),
        });
        let accepted = *verdict == Verdict::Accepted && !is_history;
        if accepted {
            // Known only by a claim about the state around them.
            let outliers = event.prev_events().iter().filter(|id| view.stored(id).is_some_and(|stored| stored.outlier));
            self.missing.extend(outliers.map(|id| (self.states.len(), id.clone())));
            let extremities = self.extremities.clone();
            self.extend(view, event).await?;
            match self.state_of_extremities(view).await? {
                Some(state) => self.state = state,
                None => self.extremities = extremities,
            }
            self.states.push(self.state);
            self.redact(view, event, before).await?;
        }
        self.new.push(NewEvent {
            event: event.clone(),
            place: if accepted { Place::Newest } else { Place::Hidden },
            rejected,
            soft_failed,
            state_before: Some(before),
            state_after: Some(after),
            outbox: match source {
                Source::PassOn { given_by } if accepted => Some(Outgoing { exclude: given_by.clone(), also: None }),
                _ => None,
            },
        });
        Ok(())
    }

    /// The state before `event`: the resolution of the states after its previous events. Where that is too much to be
    /// resolved, the current state takes its place, so that the room goes on.
    async fn state_before(&self, view: &mut View<'_>, event: &Event) -> Result<NodeId, RoomError> {
        let roots = event.prev_events().iter().filter_map(|id| view.stored(id)?.state_after).collect();
        Ok(view.resolve(&self.room, roots).await?.unwrap_or(self.state))
    }

    /// The room's current state: the resolution of the states after its forward extremities, unless that is too much to be
    /// resolved.
    async fn state_of_extremities(&self, view: &mut View<'_>) -> Result<Option<NodeId>, RoomError> {
        let ids: Vec<EventId> = self.extremities.iter().map(|(id, _)| id.clone()).collect();
        view.load_events(&ids).await?;
        let roots = ids.iter().filter_map(|id| view.stored(id)?.state_after).collect();
        view.resolve(&self.room, roots).await
    }

    /// Checks 4 and 5: which rule `event` breaks, if any.
    async fn broken_rule(
        &self,
        view: &mut View<'_>,
        event: &Event,
        before: NodeId,
    ) -> Result<Option<String>, RoomError> {
        if event.room_id() != &self.room.room_id {
            return Ok(Some("it is of another room".to_owned()));
        }
        if let Some(member) = event.oversized_member() {
            return Ok(Some(format!("`{member}` is too long")));
        }
        let mut needed = event.auth_events().to_vec();
        if event.version().room_id_is_create_hash {
            needed.push(event.room_id().create_event_id());
            view.load_events(&needed).await?;
        }
        let find = |id: &EventId| {
            let stored = view.stored(id)?;
            Some(AuthEvent { event: &stored.event, rejected: stored.rejected.is_some() })
        };
        if let Err(error) = auth_rules::check_auth_event_list(event, find) {
            return Ok(Some(error.to_string()));
        }
        let auth_events: Vec<Event> = needed.iter().filter_map(|id| Some(view.stored(id)?.event.clone())).collect();
        if let Err(error) = auth_rules::check(event, auth_events.as_slice()) {
            return Ok(Some(format!("{error} (by its auth events)")));
        }
        self.check_state(view, event, before).await
    }

    /// Which rule `event` breaks in the state `root`, if any.
    async fn check_state(&self, view: &mut View<'_>, event: &Event, root: NodeId) -> Result<Option<String>, RoomError> {
        let state = view.state(root, &auth_keys(event)).await?;
        Ok(auth_rules::check(event, state.as_slice()).err().map(|error| error.to_string()))
    }

    /// Makes `event` a forward extremity in place of those that it builds upon, also through rejected or soft-failed
    /// events.
    async fn extend(&mut self, view: &mut View<'_>, event: &Event) -> Result<(), RoomError> {
        let mut behind: Vec<EventId> = event.prev_events().to_vec();
        let mut next = 0;
        while let Some(id) = behind.get(next).cloned() {
            next += 1;
            if next > MAX_WALK {
                break;
            }
            let Some(stored) = view.stored(&id) else { continue };
            if stored.rejected.is_some() || stored.soft_failed {
                let further: Vec<EventId> = stored.event.prev_events().to_vec();
                view.load_events(&further).await?;
                behind.extend(further);
            }
        }
        let before = self.extremities.len();
        self.extremities.retain(|(id, _)| !behind.contains(id) && id != event.event_id());
        // What is held is never dropped for what claims to be newer: a flood of forks would roll the state back.
        if before < MAX_EXTREMITIES || self.extremities.len() < before {
            self.extremities.push((event.event_id().clone(), event.depth()));
        }
        Ok(())
    }

    /// Notes what an accepted redaction redacts. From room version 3 on the redaction takes effect only where its sender
    /// has the power, or is of the same server as the sender of the redacted event (rooms v3, "Handling redactions").
    async fn redact(&mut self, view: &mut View<'_>, event: &Event, before: NodeId) -> Result<(), RoomError> {
        if event.event_type() != "m.room.redaction" {
            return Ok(());
        }
        let keys = REDACTION_KEYS.map(|(event_type, state_key)| key(event_type, state_key));
        let then = view.state(before, &keys).await?;
        let now = view.state(self.state, &keys).await?;
        self.redactions.extend(redaction(event, &then, &now));
        Ok(())
    }
}

/// The auth events of an event of history, by which it was judged: the state before it is not known.
async fn power_by_auth_events(view: &mut View<'_>, event: &Event) -> Result<Vec<Event>, RoomError> {
    let cited: Vec<EventId> = event.auth_events().iter().cloned().chain([event.room_id().create_event_id()]).collect();
    view.load_events(&cited).await?;
    Ok(cited.iter().filter_map(|id| Some(view.stored(id)?.event.clone())).collect())
}

/// What of the state decides whom a redaction may redact.
pub(super) const REDACTION_KEYS: [(&str, &str); 2] = [("m.room.create", ""), ("m.room.power_levels", "")];

/// What the accepted event `event` redacts, if it is a redaction. The power to redact others' events must have been there
/// `then`, before the redaction, and must be there still `now`: an old state could be cited at will.
pub(super) fn redaction(event: &Event, then: &[Event], now: &[Event]) -> Option<Redaction> {
    let redacts = event.redacts().filter(|_| event.event_type() == "m.room.redaction")?;
    Some(Redaction {
        redaction_id: event.event_id().clone(),
        redacts: redacts.to_owned(),
        any_sender: may_redact(event, then) && may_redact(event, now),
        server: ServerName::parse(event.sender().server_name()).ok()?,
    })
}

/// Whether the sender of `event` has the power to redact anybody's events in `state`.
fn may_redact(event: &Event, state: &[Event]) -> bool {
    let Some(create) = AuthState::get(state, "m.room.create", "") else { return false };
    let levels = PowerLevels::from_state(create, AuthState::get(state, "m.room.power_levels", ""));
    match (levels.user(event.sender().as_str()), levels.level(Level::Redact)) {
        (Ok(user), Ok(needed)) => user >= needed,
        _ => false,
    }
}

/// What `event` cites and cannot be judged without, if anything.
fn missing(view: &View<'_>, event: &Event) -> Option<Verdict> {
    let previous: Vec<EventId> = event
        .prev_events()
        .iter()
        .filter(|id| view.stored(id).is_none_or(|stored| stored.state_after.is_none()))
        .cloned()
        .collect();
    let auth: Vec<EventId> = event.auth_events().iter().filter(|id| view.stored(id).is_none()).cloned().collect();
    (!previous.is_empty() || !auth.is_empty()).then_some(Verdict::Missing { previous, auth })
}

/// The keys of all state by which the rules judge `event`.
pub(super) fn auth_keys(event: &Event) -> Vec<StateKey> {
    let selected = auth_events::selection(
        event.version(),
        event.event_type(),
        event.sender().as_str(),
        event.state_key(),
        event.content(),
    );
    let implied = event.version().room_id_is_create_hash.then_some(("m.room.create", ""));
    selected.into_iter().chain(implied).map(|(event_type, state_key)| key(event_type, state_key)).collect()
}

/// A pair of event type and state key.
pub(super) fn key(event_type: &str, state_key: &str) -> StateKey {
    (event_type.to_owned(), state_key.to_owned())
}
