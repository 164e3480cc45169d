//! What one commit changes about a room. Writing it is one atomic batch ([`super::committing`]).

use super::{
    events::NodeText,
    positions::{TimelinePos, from_end},
    rejected::NewRejected,
    rooms::{Extremity, Room},
};
use crate::matrix::{
    event::Event,
    identifiers::{EventId, RoomId, ServerName},
    room_version::RoomVersion,
    state_trie::NodeId,
};

pub use super::memberships::MembershipChange;

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Committed<T = ()> {
    /// It took effect.
    Done(T),
    /// Somebody else came first, and nothing of it took effect: read again, judge again, and try again.
    Lost,
}

impl Committed {
    /// With what the commit was for.
    pub fn with<T>(self, value: T) -> Committed<T> {
        self.map(|()| value)
    }
}

impl<T> Committed<T> {
    /// With what `make` makes of what the commit was for.
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Committed<U> {
        match self {
            Self::Done(value) => Committed::Done(make(value)),
            Self::Lost => Committed::Lost,
        }
    }
}

/// All that one commit changes about one room.
#[derive(Debug)]
pub struct RoomCommit {
    /// The room.
    pub room_id: RoomId,
    /// What the commit rests on, and so what may come between.
    pub guard: Guard,
    /// The rules of the room.
    pub room_version: &'static RoomVersion,
    /// The forward extremities after it.
    pub extremities: Vec<Extremity>,
    /// The trie root of the current state after it.
    pub state: NodeId,
    /// The current states that clients may be told of, in order; none where it does not change.
    pub states: Vec<StateFrom>,
    /// New events, or outliers that found their place.
    pub events: Vec<NewEvent>,
    /// Whole copies of events that are held without their content, each of which completes what is held; nothing else about those
    /// changes.
    pub copies: Vec<Event>,
    /// New trie nodes.
    pub nodes: Vec<NodeText>,
    /// How many users more (or fewer) of each server are joined.
    pub joined: Vec<(ServerName, i64)>,
    /// How many users more (or fewer) are invited.
    pub invited: i64,
    /// What became of local users' memberships, in order.
    pub memberships: Vec<MembershipChange>,
    /// Redactions that were accepted.
    pub redactions: Vec<Redaction>,
    /// Events that were rejected.
    pub rejected: Vec<NewRejected>,
    /// Those of them that were in the graph, or had a state around them.
    pub unplaced: Vec<EventId>,
    /// Events that were rejected before and are no more.
    pub readmitted: Vec<EventId>,
    /// What state rejected events stand at, where that is better known now.
    pub rejected_at: Vec<RejectedAt>,
    /// What is claimed of the states before events, beside what follows from what these cite.
    pub beside: Vec<(EventId, NodeId)>,
    /// Whether something of the room is to be settled.
    pub unsettled: Option<Unsettled>,
    /// Whether that is being done: who commits this has the room in hand, and looks at it again.
    pub is_settling: bool,
    /// The forward extremities before it, where all that rests on what was claimed of the room until now is forgotten.
    pub forgets_claims: Option<Vec<EventId>>,
    /// Events without a place that new events in the timeline cite as previous ones.
    pub missing: Vec<Missing>,
    /// The gap that history was filled into.
    pub filled: Option<Filled>,
    /// How many bytes of it are kept for servers that are not in the room.
    pub kept_for: Vec<(ServerName, usize)>,
    /// Whether this is a join to a room that other servers lead: `joined` and `invited` then count from nothing.
    pub joins_anew: bool,
}

impl RoomCommit {
    /// A commit that leaves the room as it is: what it changes is filled in.
    pub fn unchanged(room: &Room) -> Self {
        let Room { version, state, extremities, .. } = room;
        let new = Self::new(room.room_id.clone(), room.room_version, *state);
        Self { guard: Guard::Moves(*version), extremities: extremities.clone(), ..new }
    }

    /// A commit that makes the room with this current state, and no more: what else it brings is filled in.
    pub fn new(room_id: RoomId, room_version: &'static RoomVersion, state: NodeId) -> Self {
        Self {
            room_id,
            guard: Guard::New,
            room_version,
            extremities: Vec::new(),
            state,
            states: Vec::new(),
            events: Vec::new(),
            copies: Vec::new(),
            nodes: Vec::new(),
            joined: Vec::new(),
            invited: 0,
            memberships: Vec::new(),
            redactions: Vec::new(),
            rejected: Vec::new(),
            unplaced: Vec::new(),
            readmitted: Vec::new(),
            rejected_at: Vec::new(),
            beside: Vec::new(),
            unsettled: None,
            is_settling: false,
            forgets_claims: None,
            missing: Vec::new(),
            filled: None,
            kept_for: Vec::new(),
            joins_anew: false,
        }
    }
}

/// What a commit takes for granted about its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// That we do not hold the room yet.
    New,
    /// That it has this version, which is counted up.
    Moves(i64),
    /// That it has this version, which stays: what was found rests on the room's current state, and leaves it as it is.
    Holds(i64),
    /// Nothing: what was found rests on nothing that may change.
    Free,
}

/// An event to write, with what we think of it.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The event.
    pub event: Event,
    /// Where it stands.
    pub place: Place,
    /// Whether it was soft-failed.
    pub soft_failed: bool,
    /// Whether the state around it rests on another server's claim.
    pub claimed: bool,
    /// The trie root of the state before it, where known.
    pub state_before: Option<NodeId>,
    /// The trie root of the state after it, where known.
    pub state_after: Option<NodeId>,
    /// Whether the room's other servers must hear of it from us.
    pub outbox: Option<Outgoing>,
}

impl NewEvent {
    /// An event that is known only as an auth or state event.
    pub fn outlier(event: Event) -> Self {
        Self {
            event,
            place: Place::Outlier,
            soft_failed: false,
            claimed: false,
            state_before: None,
            state_after: None,
            outbox: None,
        }
    }

    /// Whether it has a place in the timeline.
    pub fn is_in_timeline(&self) -> bool {
        matches!(self.place, Place::Newest | Place::Filled(_))
    }
}

/// Where an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Known only as an auth or state event.
    Outlier,
    /// Known only for the state around it, for which another server vouches: what cites it can be judged, and it can itself
    /// when it comes.
    Edge,
    /// In the graph, but not for local users to see: soft-failed, or known only for the state at it.
    Hidden,
    /// At the new end of the timeline.
    Newest,
    /// At this position of the timeline, where there was a gap.
    Filled(TimelinePos),
}

impl Place {
    /// Whether the event stands nowhere in our graph.
    pub(super) fn is_outlier(self) -> bool {
        matches!(self, Self::Outlier | Self::Edge)
    }
}

/// An event that the room's other servers must hear of from us.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The server that gave it to us, if one did.
    pub exclude: Option<ServerName>,
    /// A server that must hear of it too, whether it is in the room or not.
    pub also: Option<ServerName>,
}

/// An event without a place, and the position of the event in the timeline that cites it.
#[derive(Debug, Clone)]
pub struct Missing {
    /// The event.
    pub event_id: EventId,
    /// Where it is missing.
    pub before: CommitPos,
    /// How many events in a row were passed over between the two.
    pub passed: i64,
}

/// What became of a gap.
#[derive(Debug)]
pub struct Filled {
    /// The position before which it was,
    pub from: TimelinePos,
    /// and that before which it is now.
    pub to: TimelinePos,
    /// Events that are no longer lacking, or are among `passed`.
    pub reached: Vec<EventId>,
    /// Events that were passed over, behind which history goes on.
    pub passed: Vec<PassedOver>,
}

/// An event that could not be used, so that history goes on behind it.
#[derive(Debug)]
pub struct PassedOver {
    /// The event.
    pub event_id: EventId,
    /// The position of the event after it.
    pub pos: TimelinePos,
    /// How often it was passed over.
    pub attempts: i64,
    /// When to ask for it again.
    pub retry_at: i64,
}

/// The state that a rejected event stands at.
#[derive(Debug, Clone)]
pub struct RejectedAt {
    /// The event.
    pub event_id: EventId,
    /// The trie root of the state before it.
    pub state_before: NodeId,
    /// Whether that rests on another server's claim.
    pub claimed: bool,
}

/// Why something of a room is to be settled, what matters more after what matters less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unsettled {
    /// Something rests on a claim.
    Claimed,
    /// So does a verdict against somebody.
    Against,
    /// There is more to judge it by.
    KnownBetter,
}

/// A position in the timeline as a commit says it: those of its own new events are given out when it is written.
#[derive(Debug, Clone, Copy)]
pub enum CommitPos {
    /// That of a new event, after which so many events of the commit come.
    FromEnd(usize),
    /// This one.
    At(TimelinePos),
}

impl CommitPos {
    /// How far from the end of the stream it is, or else the position itself.
    pub(super) fn to_json(self) -> [Option<i64>; 2] {
        match self {
            Self::FromEnd(later) => [Some(from_end(later)), None],
            Self::At(pos) => [None, Some(pos.get())],
        }
    }
}

/// The current state from a position on.
#[derive(Debug, Clone, Copy)]
pub struct StateFrom {
    /// How many events of the commit come later in the timeline than the one by which it became so.
    pub later: usize,
    /// The trie root.
    pub state: NodeId,
}

/// An accepted redaction.
#[derive(Debug, Clone)]
pub struct Redaction {
    /// The `m.room.redaction` event.
    pub redaction_id: EventId,
    /// What it redacts.
    pub redacts: String,
    /// Whether its sender had the power to redact anybody's events.
    pub any_sender: bool,
    /// The server of its sender, whose own events it may redact anyway.
    pub server: ServerName,
}
