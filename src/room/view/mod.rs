//! What one piece of work has read of rooms so far: a cache that lives as long as the work, and fills itself from the
//! database in as few calls as it can.

mod supply;

use std::collections::{HashMap, HashSet};

use super::RoomError;
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
        state_resolution::{Facts, Need, StateEvent},
        state_trie::{self, Change, MissingNodes, NodeId, Nodes, StateKeyHash},
    },
    platform::turns::LIGHT_SLICE,
    store::{
        Store,
        events::{NodeText, StoredEvent, Wanted},
        rejected::{NewRejected, RejectedEvent},
        rooms::Room,
    },
};

/// An event type and a state key: where an event stands in a room's state.
pub(super) type TypeAndKey = (String, String);

pub(super) fn type_and_key(event_type: &str, state_key: &str) -> TypeAndKey {
    (event_type.to_owned(), state_key.to_owned())
}

/// The state at a place in the graph.
#[derive(Debug, Clone, Copy)]
pub(super) struct StateAt {
    /// Its trie root.
    pub(super) root: NodeId,
    /// Whether it rests on another server's claim.
    pub(super) claimed: bool,
}

/// The events that stand at one key in two snapshots.
pub(super) type EventPair = (Option<EventId>, Option<EventId>);

/// The most times that one question may go back to the database: the depth of a trie is bounded, so more is a loop.
const MAX_READS: usize = 64;

/// See the module.
pub(super) struct View<'s> {
    store: &'s Store,
    own: &'s ServerName,
    nodes: Nodes,
    events: HashMap<EventId, StoredEvent>,
    rejected: HashMap<EventId, RejectedEvent>,
    absent: HashSet<EventId>,
    /// Nodes made by this work, until one of its commits takes them to write.
    made: HashMap<NodeId, String>,
    /// Events judged by this work, which its commit must write: the database does not know what they cite.
    judged: HashMap<EventId, Event>,
    /// Those of them of which the database knows nothing at all.
    unheld: HashSet<EventId>,
    /// What the last resolution has learnt of its room's events.
    facts: Option<(RoomId, Facts)>,
    /// Whether servers have joined members in rooms, as the database has it.
    members: HashMap<(RoomId, ServerName), bool>,
    /// Resolutions made by this work: the snapshots, sorted, and what they resolve to.
    resolved: HashMap<Vec<NodeId>, NodeId>,
}

impl<'s> View<'s> {
    pub(super) fn new(store: &'s Store, own: &'s ServerName) -> Self {
        Self {
            store,
            own,
            nodes: Nodes::default(),
            events: HashMap::new(),
            rejected: HashMap::new(),
            absent: HashSet::new(),
            made: HashMap::new(),
            judged: HashMap::new(),
            unheld: HashSet::new(),
            facts: None,
            members: HashMap::new(),
            resolved: HashMap::new(),
        }
    }

    /// Reads what is wanted, in one call unless it is very many events, and returns the rooms.
    pub(super) async fn load(&mut self, mut wanted: Wanted) -> Result<Vec<Room>, RoomError> {
        wanted.events.retain(|id| !self.is_read(id));
        wanted.events.sort();
        wanted.events.dedup();
        wanted.keys.sort();
        wanted.keys.dedup();
        if !wanted.rooms.is_empty() {
            // What others have committed meanwhile may cite what was known before.
            self.facts = None;
        }
        // What is read of many events at once takes long, and others wait.
        let further = wanted.events.split_off(wanted.events.len().min(LIGHT_SLICE));
        let rooms = self.load_at_once(wanted).await?;
        for events in further.chunks(LIGHT_SLICE) {
            self.load_at_once(Wanted { events: events.to_vec(), ..Wanted::default() }).await?;
        }
        Ok(rooms)
    }

    async fn load_at_once(&mut self, wanted: Wanted) -> Result<Vec<Room>, RoomError> {
        let found = self.store.find(self.own, &wanted).await?;
        self.absent.extend(wanted.events.into_iter().filter(|id| !found.events.contains_key(id)));
        for (id, stored) in found.events {
            self.absent.remove(&id);
            self.events.entry(id).or_insert(stored);
        }
        for rejected in found.rejected {
            self.absent.remove(&rejected.event_id);
            self.rejected.entry(rejected.event_id.clone()).or_insert(rejected);
        }
        for (id, text) in found.nodes {
            self.add_node(id, &text)?;
        }
        Ok(found.rooms)
    }

    /// Reads those of `ids` that were not read before.
    pub(super) async fn load_events(&mut self, ids: &[EventId]) -> Result<(), RoomError> {
        if ids.iter().all(|id| self.is_read(id)) {
            return Ok(());
        }
        self.load(Wanted { events: ids.to_vec(), ..Wanted::default() }).await.map(|_| ())
    }

    /// Whether it is known what there is to know of the event.
    pub(super) fn is_read(&self, id: &EventId) -> bool {
        // What is read by its key in a state comes without the reason for which it was rejected.
        self.absent.contains(id)
            || self.rejected.contains_key(id)
            || self.events.get(id).is_some_and(|stored| !stored.rejected)
    }

    /// The events `ids` and those behind them, through rejected and soft-failed ones of the room.
    pub(super) async fn behind(&self, room_id: &RoomId, ids: &[EventId]) -> Result<Vec<EventId>, RoomError> {
        Ok(self.store.behind(room_id, ids).await?)
    }

    /// Those of `events` that `above`, or others of them, are built upon, as the database shows it.
    pub(super) async fn built_upon(
        &self,
        room_id: &RoomId,
        above: &[EventId],
        events: &[StoredEvent],
    ) -> Result<HashSet<String>, RoomError> {
        let ids: Vec<EventId> = events.iter().map(|stored| stored.event.event_id().clone()).collect();
        let depth = events.iter().map(|stored| stored.event.depth()).min().unwrap_or_default();
        let above = [above, &ids].concat();
        Ok(self.store.built_upon(room_id, &above, (&ids, depth)).await?)
    }

    /// The event, if we hold it and have not rejected it; it must have been read.
    pub(super) fn stored(&self, id: &EventId) -> Option<&StoredEvent> {
        self.events.get(id).filter(|stored| !stored.rejected && !self.rejected.contains_key(id))
    }

    /// The event, even if it was rejected; it must have been read.
    pub(super) fn event(&self, id: &EventId) -> Option<&Event> {
        self.events.get(id).map(|stored| &stored.event)
    }

    /// The event as it is judged again, even if it was rejected, where its text is at hand; it must have been read.
    pub(super) fn text(&self, id: &EventId) -> Option<&Event> {
        self.rejected(id).and_then(|rejected| rejected.event.as_ref()).or_else(|| self.event(id))
    }

    /// Those of `events` that complete what we hold, even if it was rejected; it must have been read.
    pub(super) fn copies<'e>(&self, events: impl Iterator<Item = &'e Event>) -> Vec<Event> {
        events.filter(|event| self.event(event.event_id()).is_some_and(|held| event.completes(held))).cloned().collect()
    }

    /// What is remembered of the event, if we have rejected it; it must have been read.
    pub(super) fn rejected(&self, id: &EventId) -> Option<&RejectedEvent> {
        self.rejected.get(id)
    }

    /// Whether the event is the room's first one, which is held as a part of the state alone where the room was joined later; it must
    /// have been read.
    pub(super) fn is_create(&self, id: &EventId) -> bool {
        self.stored(id).is_some_and(|held| held.event.is_state("m.room.create", ""))
    }

    /// Whether we hold the event, or have rejected it; it must have been read.
    pub(super) fn knows(&self, id: &EventId) -> bool {
        self.stored(id).is_some() || self.rejected.contains_key(id)
    }

    /// Whether the event has a place in our graph, or would have one; it must have been read.
    pub(super) fn is_placed(&self, id: &EventId) -> bool {
        self.rejected.contains_key(id) || self.stored(id).is_some_and(|stored| !stored.outlier)
    }

    /// The room of the event, if we know the event; it must have been read.
    pub(super) fn room_of(&self, id: &EventId) -> Option<&RoomId> {
        self.rejected(id).map(|rejected| &rejected.room_id).or_else(|| self.event(id).map(Event::room_id))
    }

    /// The state after the event, where known; it must have been read.
    pub(super) fn state_after(&self, id: &EventId) -> Option<StateAt> {
        if let Some(rejected) = self.rejected(id) {
            return Some(StateAt { root: rejected.state_before?, claimed: rejected.claimed });
        }
        let stored = self.stored(id)?;
        Some(StateAt { root: stored.state_after?, claimed: stored.claimed })
    }

    /// Makes the states around an event that is held known to this work; they are not committed.
    pub(super) fn know_states(&mut self, id: &EventId, before: NodeId, after: NodeId) {
        if let Some(held) = self.events.get_mut(id) {
            (held.state_before, held.state_after) = (Some(before), Some(after));
        }
    }

    /// Makes the rejection of an event known to this work, before it is committed. Whether we held the event.
    pub(super) fn put_rejected(&mut self, new: &NewRejected) -> bool {
        let id = new.event.event_id();
        self.absent.remove(id);
        self.judged.remove(id);
        let rejected = RejectedEvent {
            event_id: id.clone(),
            room_id: new.event.room_id().clone(),
            reason: new.reason.clone(),
            prev_events: new.event.prev_events().to_vec(),
            state_before: new.state_before,
            claimed: new.claimed,
            provisional: new.provisional,
            content_hash: new.event.content_hash(),
            event: new.provisional.then(|| new.event.clone()),
        };
        self.rejected.insert(id.clone(), rejected);
        let Some(held) = self.events.get_mut(id) else { return false };
        held.rejected = true;
        if let Some((room_id, facts)) = &mut self.facts
            && room_id == held.event.room_id()
        {
            facts.learn(state_event(held), false);
        }
        true
    }

    /// Makes known to this work what state a rejected event stands at, before it is committed.
    pub(super) fn place_rejected(&mut self, id: &EventId, before: StateAt) {
        if let Some(rejected) = self.rejected.get_mut(id) {
            rejected.state_before = Some(before.root);
            rejected.claimed = before.claimed;
        }
    }

    /// Makes known to this work that an event is rejected no more, before that is committed.
    pub(super) fn readmit(&mut self, id: &EventId) {
        self.rejected.remove(id);
        if let Some(held) = self.events.get(id).cloned() {
            self.put(StoredEvent { rejected: false, ..held });
        }
    }

    /// Makes `stored` known to this work, before it is committed. Whether it was rejected before.
    pub(super) fn put(&mut self, stored: StoredEvent) -> bool {
        let id = stored.event.event_id();
        let was_rejected = self.rejected.remove(id).is_some();
        self.absent.remove(id);
        let is_new = !self.events.contains_key(id);
        if is_new {
            self.unheld.insert(id.clone());
        }
        if let Some((room_id, facts)) = &mut self.facts
            && room_id == stored.event.room_id()
        {
            facts.learn(state_event(&stored), is_new);
        }
        self.judged.insert(stored.event.event_id().clone(), stored.event.clone());
        self.events.insert(stored.event.event_id().clone(), stored);
        was_rejected
    }

    /// Whether `server` has joined members in the room.
    pub(super) async fn has_members(&mut self, room_id: &RoomId, server: &ServerName) -> Result<bool, RoomError> {
        let asked = (room_id.clone(), server.clone());
        if let Some(known) = self.members.get(&asked) {
            return Ok(*known);
        }
        let joined = self.store.server_joined(room_id, server).await?;
        self.members.insert(asked, joined);
        Ok(joined)
    }

    /// The events that stand at `keys` in the snapshot `root`.
    pub(super) async fn state(&mut self, root: NodeId, keys: &[TypeAndKey]) -> Result<Vec<Event>, RoomError> {
        Ok(self.stored_state(root, keys).await?.into_iter().map(|stored| stored.event.clone()).collect())
    }

    /// The events that stand at `keys` in the snapshot `root`, with what is noted of each. What was rejected counts for
    /// nothing: another server has vouched for it as part of a state.
    pub(super) async fn stored_state(
        &mut self,
        root: NodeId,
        keys: &[TypeAndKey],
    ) -> Result<Vec<&StoredEvent>, RoomError> {
        let ids: Vec<EventId> = self.state_ids(root, keys).await?.into_iter().map(|(_, id)| id).collect();
        self.load_events(&ids).await?;
        let accepted = ids.iter().filter(|id| !self.rejected.contains_key(*id));
        accepted.map(|id| self.events.get(id).ok_or_else(|| corrupt(format!("{id} is not held")))).collect()
    }

    /// Reads of many snapshots what stands at `keys`, in one call.
    pub(super) async fn load_states(&mut self, roots: &[NodeId], keys: &[TypeAndKey]) -> Result<(), RoomError> {
        let roots = roots.iter().copied().filter(|root| !self.made.contains_key(root)).collect();
        let keys = keys.iter().map(|(t, k)| StateKeyHash::new(t, k)).collect();
        self.load(Wanted { roots, keys, ..Wanted::default() }).await.map(drop)
    }

    /// The ids that stand at `keys` in the snapshot `root`, with the keys, as far as there are any; those of rejected events too.
    pub(super) async fn state_ids(
        &mut self,
        root: NodeId,
        keys: &[TypeAndKey],
    ) -> Result<Vec<(TypeAndKey, EventId)>, RoomError> {
        let hashes: Vec<StateKeyHash> = keys.iter().map(|(t, k)| StateKeyHash::new(t, k)).collect();
        for _ in 0..MAX_READS {
            match state_trie::lookup(root, &hashes, &self.nodes) {
                Ok(found) => {
                    let found = keys.iter().cloned().zip(found);
                    let found = found.filter_map(|(key, id)| Some(event_id(id?).map(|id| (key, id))));
                    return found.collect();
                }
                Err(missing) => self.read_state(root, &hashes, missing).await?,
            }
        }
        Err(corrupt(format!("the snapshot {root} has missing nodes")))
    }

    /// The snapshot `root` with `event` in it.
    pub(super) async fn with_event(&mut self, root: NodeId, event: &Event) -> Result<NodeId, RoomError> {
        let Some(key) = StateKeyHash::of(event) else { return Ok(root) };
        self.update(root, &[(key, Some(event.event_id().as_str().into()))]).await
    }

    /// The snapshot `root` with `changes`.
    pub(super) async fn update(&mut self, root: NodeId, changes: &[Change]) -> Result<NodeId, RoomError> {
        for _ in 0..MAX_READS {
            match state_trie::update(root, changes, &self.nodes) {
                Ok(updated) => {
                    for (id, text) in updated.nodes {
                        self.add_made(id, text)?;
                    }
                    return Ok(updated.root);
                }
                Err(missing) => {
                    let keys: Vec<StateKeyHash> = changes.iter().map(|(key, _)| *key).collect();
                    self.read_state(root, &keys, missing).await?;
                }
            }
        }
        Err(corrupt(format!("the snapshot {root} has missing nodes")))
    }

    /// What differs between two snapshots: the events that stand at one key, in either.
    pub(super) async fn diff(&mut self, before: NodeId, after: NodeId) -> Result<Vec<EventPair>, RoomError> {
        for _ in 0..MAX_READS {
            match state_trie::diff(&[before, after], &self.nodes) {
                Ok(differences) => {
                    let id = |text: Option<&Option<&str>>| text.copied().flatten().map(event_id).transpose();
                    return differences.iter().map(|(_, ids)| Ok((id(ids.first())?, id(ids.last())?))).collect();
                }
                Err(missing) => self.read_differing(before, after, missing).await?,
            }
        }
        Err(corrupt(format!("the snapshots {before} and {after} have missing nodes")))
    }

    /// The snapshot `onto`, with what is different in `root` from `base`.
    pub(super) async fn transplant(&mut self, base: NodeId, root: NodeId, onto: NodeId) -> Result<NodeId, RoomError> {
        let changes = self.changes(base, root, |_| true).await?;
        self.update(onto, &changes).await
    }

    /// The snapshot `root`, with what stands in `other` under keys that it has nothing under.
    pub(super) async fn filled_in(&mut self, root: NodeId, other: NodeId) -> Result<NodeId, RoomError> {
        let changes = self.changes(root, other, |before| before.is_none()).await?;
        self.update(root, &changes).await
    }

    /// What differs between two snapshots, as a change to what there is after, at the keys that `choose` takes by what was there before.
    async fn changes(
        &mut self,
        before: NodeId,
        after: NodeId,
        choose: impl Fn(Option<&str>) -> bool,
    ) -> Result<Vec<Change>, RoomError> {
        for _ in 0..MAX_READS {
            match state_trie::diff(&[before, after], &self.nodes) {
                Ok(differences) => {
                    let chosen = differences.iter().filter(|(_, ids)| choose(ids.first().copied().flatten()));
                    return Ok(chosen.map(|(key, ids)| (key, ids.last().copied().flatten().map(Into::into))).collect());
                }
                Err(missing) => self.read_differing(before, after, missing).await?,
            }
        }
        Err(corrupt(format!("the snapshots {before} and {after} have missing nodes")))
    }

    async fn read_differing(
        &mut self,
        before: NodeId,
        after: NodeId,
        MissingNodes(missing): MissingNodes,
    ) -> Result<(), RoomError> {
        let need = self.of_stored(Need { differing: vec![before, after], nodes: missing, ..Need::default() });
        let found = self.store.supply(&need).await?;
        self.nodes.extend(found.nodes);
        Ok(())
    }

    /// Whether this work has made the snapshot: it may not be stored before the commit.
    pub(super) fn has_made(&self, root: NodeId) -> bool {
        self.made.contains_key(&root)
    }

    /// Adds a node that this work made, which its commit must write.
    pub(super) fn add_made(&mut self, id: NodeId, text: String) -> Result<(), RoomError> {
        self.add_node(id, &text)?;
        self.made.insert(id, text);
        Ok(())
    }

    /// The root of a snapshot that this work has made, whose nodes are at hand then.
    pub(super) fn add_snapshot(&mut self, made: &state_trie::Updated) -> Result<NodeId, RoomError> {
        for (id, text) in &made.nodes {
            self.add_made(*id, text.clone())?;
        }
        Ok(made.root)
    }

    /// The nodes that the commit must write. All commits of this work are one batch, so the first takes them all.
    pub(super) fn take_made(&mut self) -> Vec<NodeText> {
        std::mem::take(&mut self.made).into_iter().collect()
    }

    /// Rooms that were read, with the current state at `keys` and `events`, in one call.
    pub(super) async fn load_rooms(
        &mut self,
        rooms: Vec<RoomId>,
        keys: &[TypeAndKey],
        events: Vec<EventId>,
        after: Vec<EventId>,
    ) -> Result<Vec<Room>, RoomError> {
        let keys = keys.iter().map(|(t, k)| StateKeyHash::new(t, k)).collect();
        self.load(Wanted { rooms, keys, events, after, ..Wanted::default() }).await
    }

    /// Of rooms whose rows are known, the state at `keys` in `roots` and after the events `after`, and `events`, in one call.
    pub(super) async fn load_around(
        &mut self,
        roots: Vec<NodeId>,
        keys: &[TypeAndKey],
        events: Vec<EventId>,
        after: Vec<EventId>,
    ) -> Result<(), RoomError> {
        let keys = keys.iter().map(|(t, k)| StateKeyHash::new(t, k)).collect();
        self.load(Wanted { roots, keys, events, after, ..Wanted::default() }).await.map(drop)
    }

    /// Reads the nodes on the way from a root to keys, which `missing` are among. The database walks from a root that it
    /// has; below one that this work made, and for the siblings that a merge of leaves needs, it is asked by id.
    async fn read_state(
        &mut self,
        root: NodeId,
        keys: &[StateKeyHash],
        MissingNodes(missing): MissingNodes,
    ) -> Result<(), RoomError> {
        if !self.nodes.contains(root) {
            self.load(Wanted { roots: vec![root], keys: keys.to_vec(), ..Wanted::default() }).await?;
        }
        let missing: Vec<NodeId> = missing.into_iter().filter(|id| !self.nodes.contains(*id)).collect();
        if missing.is_empty() { Ok(()) } else { self.read_nodes(missing).await }
    }

    async fn read_nodes(&mut self, mut missing: Vec<NodeId>) -> Result<(), RoomError> {
        missing.sort_unstable();
        missing.dedup();
        let found = self.store.supply(&Need { nodes: missing, ..Need::default() }).await?;
        self.nodes.extend(found.nodes);
        Ok(())
    }

    fn add_node(&mut self, id: NodeId, text: &str) -> Result<(), RoomError> {
        self.nodes.insert_text(id, text).map_err(|_| corrupt(format!("the state node {id} is malformed")))
    }
}

/// An event id that a snapshot holds.
pub(super) fn event_id(text: &str) -> Result<EventId, RoomError> {
    EventId::parse_any_length(text).map_err(|_| corrupt(format!("{text:?} in a snapshot is not an event ID")))
}

fn state_event(stored: &StoredEvent) -> StateEvent {
    StateEvent { event: stored.event.clone(), rejected: stored.rejected }
}

fn corrupt(why: String) -> RoomError {
    RoomError::Corrupt(why)
}
