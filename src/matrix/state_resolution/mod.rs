//! State resolution: the one state of a room after a fork.
//!
//! Spec: rooms, "State resolution" of version 1 (algorithm 1), of version 2 (algorithm 2, up to version 11) and of
//! version 12 (algorithm 2.1). [`RoomVersion`] says which one applies.
//!
//! [`Resolution`] takes the snapshots after the previous events ([`state_trie`]) and gives one snapshot. It is pure: a
//! step either is the answer or says what it needs next ([`Need`]), which the caller reads in one round trip. What it
//! needs depends on what the forks differ in, not on the size of the room:
//!
//! | step | where |
//! |---|---|
//! | unconflicted state map, conflicted state set | [`state_trie::diff`], which skips what is equal |
//! | auth difference, conflicted state subgraph, full conflicted set | `full_conflicted_set` |
//! | "is it also in the auth chain of what the forks share?" | `citations` |
//! | reverse topological power ordering, mainline ordering | `ordering` |
//! | iterative auth checks, algorithms 2 and 2.1 | `v2` |
//! | algorithm 1 | `v1` |
//!
//! Where Synapse and the other homeservers agree on more than the spec says, this follows them, since servers that
//! resolve differently split the room:
//!
//! - The auth chain of a state includes the events of the state themselves.
//! - `m.room.create` counts as a power event; `m.room.power_levels` and `m.room.join_rules` do so with the empty state
//!   key only.
//! - The auth chain by which a power event enlarges the set *X* is followed inside the full conflicted set.
//! - Events that are not known, or that are of another room, are left out wherever they are cited.
//! - Algorithm 1: the memberships of one user are a list of their own; where a state has no event at a key there is no
//!   conflict; without any allowed event the one of least depth counts.
//!
//! Rejected events take part as the spec says (version 12, "Rejected events"), and as ruma does: they may be put into
//! the state, but no event is judged by one.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    event::Event,
    hash_map::HashMap,
    identifiers::{EventId, RoomId},
    room_version::{RoomVersion, StateResolution},
    state_trie::{self, Change, MissingNodes, NodeId, Nodes, StateKeyHash},
};

mod citations;
mod events;
mod full_conflicted_set;
pub mod memory;
mod ordering;
mod v1;
mod v2;

use citations::Citations;
use events::{Events, Index};
use full_conflicted_set::FullConflictedSet;

/// The most events of which to read where they stand.
const MAX_OUTLINES: usize = 65_536;
/// The most citations that a step may be supplied with. As many say that there may be more, and that it is too many.
pub const MAX_CITATIONS: usize = 150_000;

/// A state resolution under way.
///
/// Call [`Resolution::step`] with an empty [`Supplied`] first, and then with what the [`Need`] before asked for.
#[derive(Debug)]
pub struct Resolution {
    roots: Vec<NodeId>,
    world: World,
    citations: Citations,
    conflicts: Option<Conflicts>,
    full_conflicted_set: FullConflictedSet,
}

/// What a step came to.
#[derive(Debug)]
pub enum Step {
    /// Read this, and take the next step with it.
    Need(Need),
    /// The resolved state.
    Done(Resolved),
}

/// What the next step needs; everything can be read in one round trip. It does no harm to supply more.
///
/// What is asked for and not supplied does not exist. `store::state_sql` has a statement for each member.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Need {
    /// Roots: the nodes in which these snapshots differ, which spares asking for them level by level. May be left unanswered.
    pub differing: Vec<NodeId>,
    /// Nodes by id.
    pub nodes: Vec<NodeId>,
    /// Roots and keys: the nodes on the way to the key. The event that stands there will be needed next.
    pub paths: Vec<(NodeId, StateKeyHash)>,
    /// Events. Their auth events are likely to be needed next.
    pub events: Vec<EventId>,
    /// Events and their auth chains. Outlines will do.
    pub chains: Option<ChainsWanted>,
    /// `m.room.power_levels` events, the ones in their auth events, and so on. Outlines will do.
    pub mainlines: Vec<EventId>,
    /// Events of which it must be known which state events cite them.
    pub citations: Vec<CitationsWanted>,
    /// Events of which it must be known which state events cite them, directly or not.
    pub ascents: Option<Ascents>,
}

/// Asks for events and what stands in their `auth_events`, directly or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainsWanted {
    /// Where to begin.
    pub from: Vec<EventId>,
    /// At most this many events, the ones that are nearest to the beginning.
    pub limit: usize,
}

/// Asks for the state events that have `from` in their `auth_events`, for those that have these, and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ascents {
    /// Where to begin.
    pub from: Vec<EventId>,
    /// Of how many events to tell at most, the ones that are nearest to the beginning. Which they are is part of the answer.
    pub limit: usize,
    /// How many citations of each, those that sort first by citing event. Fewer mean that there are no more.
    pub page: usize,
    /// As [`CitationsWanted::root`].
    pub root: NodeId,
}

/// Asks which state events have an event in their `auth_events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CitationsWanted {
    /// The cited event.
    pub cited: EventId,
    /// Only citing events whose ids sort after this one.
    pub after: Option<EventId>,
    /// At most this many of them, sorted by event id. Fewer mean that there are no more.
    pub limit: usize,
    /// The snapshot in which the citing events will be looked up: the nodes on the way to their keys will be needed next.
    pub root: NodeId,
}

/// What was read for a [`Need`].
#[derive(Debug, Default)]
pub struct Supplied {
    /// Trie nodes.
    pub nodes: Nodes,
    /// Events.
    pub events: Vec<StateEvent>,
    /// What is to be known of events that are not needed whole.
    pub outlines: Vec<Outline>,
    /// Whether there is more to the chains that were asked for than their limit allowed.
    pub is_cut: bool,
    /// Citations, sorted by citing event for each cited one.
    pub citations: Vec<Citation>,
    /// The events of which an ascent tells.
    pub visited: Vec<EventId>,
}

/// Where a state event stands.
#[derive(Debug, Clone)]
pub struct Outline {
    /// The event.
    pub event_id: EventId,
    /// `room_id`
    pub room_id: Box<str>,
    /// `type`
    pub event_type: Box<str>,
    /// `state_key`
    pub state_key: Box<str>,
    /// `auth_events`
    pub auth_events: Vec<EventId>,
    /// How many bytes of text it will be when it is supplied whole.
    pub length: usize,
}

/// An event, with what became of it.
#[derive(Debug, Clone)]
pub struct StateEvent {
    /// The event.
    pub event: Event,
    /// Whether it was rejected when it was received.
    pub rejected: bool,
}

/// A state event that has another one in its `auth_events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Citation {
    /// The cited event.
    pub cited: EventId,
    /// The state event that cites it.
    pub citing: EventId,
    /// The citing event's key in the state.
    pub key: StateKeyHash,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The root of the resolved state.
    pub root: NodeId,
    /// The nodes to store for it. Some may be stored already.
    pub nodes: Vec<(NodeId, String)>,
    /// Whether the states differed at all.
    pub conflicted: bool,
}

/// Why a resolution failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolutionError {
    /// A node of a snapshot was asked for and not supplied.
    #[error("the node {0} of a state snapshot is missing")]
    MissingNode(NodeId),
    /// A snapshot holds something that is not an event id.
    #[error("a state snapshot holds {0:?} for an event id")]
    MalformedEventId(Rc<str>),
    /// There is no state to resolve.
    #[error("there is no state to resolve")]
    NoState,
    /// The states differ in more than we are willing to read.
    #[error("the states differ in too much")]
    TooLarge,
}

/// What a resolution has learnt of a room's events, for the next one in the same room.
#[derive(Debug)]
pub struct Facts {
    events: Events,
    citations: Citations,
}

impl Facts {
    /// Takes in an event that is new, so that nothing cites it yet, or of which it may have been thought otherwise.
    pub fn learn(&mut self, event: StateEvent, is_new: bool) {
        let Some(key) = StateKeyHash::of(&event.event) else { return };
        let index = self.events.index(event.event.event_id());
        self.events.put(index, event);
        let cited = self.events.auth_events(index).to_vec();
        self.citations.learn(index, key, &cited, &mut self.events);
        if is_new {
            self.citations.note_uncited(index);
        }
    }
}

impl Resolution {
    /// The resolution of the snapshots `roots` in a room. Their order does not matter, nor does it if some are the same.
    pub fn new(version: &'static RoomVersion, room_id: &RoomId, roots: &[NodeId]) -> Self {
        let facts = Facts { events: Events::new(version, room_id), citations: Citations::default() };
        Self::with(version, roots, facts)
    }

    /// As [`Resolution::new`], with what was learnt before of the events of the same room.
    pub fn with(version: &'static RoomVersion, roots: &[NodeId], facts: Facts) -> Self {
        let mut roots = roots.to_vec();
        roots.sort_unstable();
        roots.dedup();
        let base = roots.first().copied().unwrap_or(NodeId::EMPTY);
        Self {
            roots,
            world: World {
                version,
                base,
                nodes: Nodes::default(),
                asked_nodes: HashMap::default(),
                steps: 0,
                mainlines_supplied: false,
                is_cut: false,
                events: facts.events,
            },
            citations: facts.citations,
            conflicts: None,
            full_conflicted_set: FullConflictedSet::default(),
        }
    }

    /// Goes on with what was supplied.
    ///
    /// # Errors
    /// Where the store is damaged, and [`ResolutionError::TooLarge`].
    pub fn step(&mut self, supplied: Supplied) -> Result<Step, ResolutionError> {
        self.world.steps += 1;
        self.world.nodes.extend(supplied.nodes);
        self.world.is_cut = supplied.is_cut;
        self.world.events.accept(supplied.events, supplied.outlines);
        if supplied.citations.len() >= MAX_CITATIONS {
            return Err(ResolutionError::TooLarge);
        }
        self.citations.accept(supplied.citations, supplied.visited, &mut self.world.events);
        match self.advance() {
            Ok(resolved) => Ok(Step::Done(resolved)),
            Err(Interrupt::Need(need)) => Ok(Step::Need(*need)),
            Err(Interrupt::Failed(error)) => Err(error),
        }
    }

    /// What was learnt of the room's events by a resolution that is done.
    pub fn into_facts(self) -> Facts {
        Facts { events: self.world.events, citations: self.citations }
    }

    fn advance(&mut self) -> Result<Resolved, Interrupt> {
        if self.roots.len() < 2 {
            let root = self.roots.first().copied().ok_or(ResolutionError::NoState)?;
            return Ok(Resolved { root, nodes: Vec::new(), conflicted: false });
        }
        let conflicts = match &mut self.conflicts {
            Some(conflicts) => conflicts,
            none => none.insert(Conflicts::find(&self.roots, &mut self.world)?),
        };
        let outcome = if self.world.version.state_resolution == StateResolution::V1 {
            v1::resolve(&mut self.world, conflicts)?
        } else {
            let full_conflicted_set = self.full_conflicted_set.find(&mut self.world, &mut self.citations, conflicts)?;
            v2::resolve(&mut self.world, conflicts, full_conflicted_set)?
        };
        let (nearest, changes) = conflicts.nearest(&self.roots, &outcome, &self.world.events);
        let updated = state_trie::update(nearest, &changes, &self.world.nodes);
        let updated = updated.map_err(|missing| self.world.missing_nodes(missing))?;
        Ok(Resolved { root: updated.root, nodes: updated.nodes, conflicted: true })
    }
}

/// Why a step ends early.
#[derive(Debug)]
enum Interrupt {
    Need(Box<Need>),
    Failed(ResolutionError),
}

impl From<ResolutionError> for Interrupt {
    fn from(error: ResolutionError) -> Self {
        Self::Failed(error)
    }
}

impl Need {
    /// Whether nothing is needed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is known so far.
#[derive(Debug)]
struct World {
    version: &'static RoomVersion,
    /// One of the snapshots. Where there is no conflict it stands for all of them.
    base: NodeId,
    nodes: Nodes,
    /// The nodes asked for, and in which step.
    asked_nodes: HashMap<NodeId, u32>,
    steps: u32,
    /// Whether the power levels events before others were asked for, so that those not known do not exist.
    mainlines_supplied: bool,
    /// Whether the chains that were supplied last are not whole.
    is_cut: bool,
    events: Events,
}

/// Whether something is known already; if not, it is among what is needed.
enum Known<T> {
    Yes(T),
    NotYet,
}

impl World {
    /// The event at a key of the base snapshot.
    fn in_base(&mut self, key: StateKeyHash, need: &mut Need) -> Result<Known<Option<Index>>, ResolutionError> {
        match state_trie::lookup_one(self.base, &key, &self.nodes) {
            Ok(None) => Ok(Known::Yes(None)),
            Ok(Some(event_id)) => Ok(Known::Yes(Some(self.events.index_of_text(event_id)?))),
            Err(node) => {
                self.ask_node(node)?;
                need.paths.push((self.base, key));
                Ok(Known::NotYet)
            }
        }
    }

    /// Ends the step if anything is needed, the whole events that are wanted among it.
    fn ask(&mut self, mut need: Need) -> Result<(), Interrupt> {
        self.events.ask_wanted(&mut need)?;
        need.paths.sort_unstable();
        need.paths.dedup();
        if need.is_empty() { Ok(()) } else { Err(Interrupt::Need(Box::new(need))) }
    }

    fn missing_nodes(&mut self, MissingNodes(nodes): MissingNodes) -> Interrupt {
        match nodes.iter().try_for_each(|node| self.ask_node(*node)) {
            Ok(()) => Interrupt::Need(Box::new(Need { nodes, ..Need::default() })),
            Err(error) => error.into(),
        }
    }

    /// Notes that a node is asked for in this step, and fails if it was in an earlier one.
    fn ask_node(&mut self, node: NodeId) -> Result<(), ResolutionError> {
        match self.asked_nodes.insert(node, self.steps) {
            Some(step) if step < self.steps => Err(ResolutionError::MissingNode(node)),
            _ => Ok(()),
        }
    }
}

/// What stands at each key at which the states differ, and at those where none of them has an event and one was found.
type Outcome = BTreeMap<StateKeyHash, Option<Index>>;

/// The keys at which the states differ, with the event that each state has there.
#[derive(Debug)]
struct Conflicts {
    forks: usize,
    /// Sorted.
    keys: Vec<StateKeyHash>,
    /// For each key as many as there are forks.
    events: Vec<Option<Index>>,
}

impl Conflicts {
    fn find(roots: &[NodeId], world: &mut World) -> Result<Self, Interrupt> {
        let missing = match state_trie::diff(roots, &world.nodes) {
            Ok(differences) => {
                let mut conflicts = Self { forks: roots.len(), keys: Vec::new(), events: Vec::new() };
                for (key, event_ids) in differences.iter() {
                    conflicts.keys.push(key);
                    for event_id in event_ids {
                        conflicts.events.push(world.events.index_of_optional_text(*event_id)?);
                    }
                }
                return Ok(conflicts);
            }
            Err(missing) => missing,
        };
        let first = world.asked_nodes.is_empty();
        let mut interrupt = world.missing_nodes(missing);
        if let Interrupt::Need(need) = &mut interrupt
            && first
        {
            need.differing = roots.to_vec();
        }
        Err(interrupt)
    }

    /// The state that the outcome is nearest to, and what to change in it. Its nodes are at hand, as it shares them with the
    /// base or differs from it in them.
    fn nearest(&self, roots: &[NodeId], outcome: &Outcome, events: &Events) -> (NodeId, Vec<Change>) {
        let mut distances = vec![0; roots.len()];
        for (key, values) in self.by_key() {
            let outcome = outcome.get(&key).copied().flatten();
            for (distance, value) in distances.iter_mut().zip(values) {
                *distance += usize::from(*value != outcome);
            }
        }
        let (_, fork, root) = distances
            .into_iter()
            .zip(roots)
            .enumerate()
            .map(|(fork, (distance, root))| (distance, fork, *root))
            .min()
            .unwrap_or((0, 0, NodeId::EMPTY));
        let differs = |key: &StateKeyHash, event| self.at(key).and_then(|values| values.get(fork)) != Some(event);
        let event_id = |event: Index| events.event_id(event).map(|event_id| event_id.as_str().into());
        let changes = outcome
            .iter()
            .filter(|(key, event)| differs(key, event))
            .map(|(key, event)| (*key, event.and_then(event_id)));
        (root, changes.collect())
    }

    /// The keys, each with the event that each state has there.
    fn by_key(&self) -> impl Iterator<Item = (StateKeyHash, &[Option<Index>])> {
        self.keys.iter().copied().zip(self.events.chunks_exact(self.forks.max(1)))
    }

    fn at(&self, key: &StateKeyHash) -> Option<&[Option<Index>]> {
        let start = self.keys.binary_search(key).ok()? * self.forks;
        self.events.get(start..start + self.forks)
    }

    fn contains(&self, key: &StateKeyHash) -> bool {
        self.keys.binary_search(key).is_ok()
    }

    /// The conflicted state set, without duplicates.
    fn events(&self) -> Vec<Index> {
        let mut events: Vec<Index> = self.events.iter().flatten().copied().collect();
        events.sort_unstable();
        events.dedup();
        events
    }
}
