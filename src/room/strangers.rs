//! What is kept for good because servers sent it, or gave it when they were asked, that are not in its room by our state.
//!
//! What they bring and is accepted, such as the join of which we have not heard, is not bounded. All else is, for nothing else ends
//! it: soft-failed events, which the users of a server can go on making upon what was before they left, and events without a place.
//! Once a server has brought its share, only accepted events are taken from it, and what its join is built upon; of an auth chain only
//! the join.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
};

use super::{
    RoomError, Rooms,
    believed::{Examined, Known},
};
use crate::{
    matrix::{
        event::{Event, MAX_EVENT_BYTES},
        identifiers::{EventId, RoomId, ServerName},
        state_trie::NodeId,
    },
    store::{
        commit::{NewEvent, RoomCommit},
        events::NodeText,
        kept_for_strangers::Kept,
        rejected::NewRejected,
    },
};

/// How many bytes are kept at most: what is within any of these may be.
const LIMITS: [Kept; 2] = [LIMIT, OF_ANY_ROOM];

const LIMIT: Kept = Kept { of_server: 1 << 20, of_room: 8 << 20, of_server_anywhere: 16 << 20, of_all: 512 << 20 };

/// How many may always be kept, whatever is kept of other rooms: nobody can use up what is for this one in rooms of their own.
const OF_ANY_ROOM: Kept = Kept { of_server: 128 << 10, of_room: 1 << 20, of_all: i64::MAX, ..LIMIT };

/// How many may be kept of a server of which those in the room say that it was there: nobody else can use that up.
const OF_WHO_WAS_THERE: Kept = Kept { of_room: i64::MAX, of_all: i64::MAX, ..LIMIT };

/// How many bytes beside its text an event counts for: its row, its entries in indices, and what is noted of what it cites.
const BESIDE_THE_TEXT: usize = 1_024;

/// What strangers have brought.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// Who has brought an event; those that a server in the room sent or gave are not among them.
    pub(super) brought: HashMap<EventId, ServerName>,
    /// What is kept for them so far. A server that is not among these has come into the room meanwhile.
    pub(super) kept: HashMap<ServerName, Kept>,
}

impl Strangers {
    /// Charges a commit to those who have brought what is in it. Answers with what is more of that than may be kept for them: nothing of
    /// it may be committed.
    pub(super) fn charge(&self, commit: &mut RoomCommit) -> HashSet<EventId> {
        if self.kept.is_empty() {
            return HashSet::new();
        }
        let needed = self.needed(commit);
        // Nodes do not say whose they are. Those of accepted events are not counted.
        let nodes = bytes_of_nodes(&commit.nodes) / (commit.events.len() + commit.rejected.len()).max(1);
        let new = commit.events.iter().filter(|new| !new.is_in_timeline());
        let new = new.map(|new| (new.event.event_id(), nodes + bytes_of(&new.event)));
        let rejected = commit.rejected.iter().map(|new| (new.event.event_id(), nodes + bytes_of_rejected(new)));
        let (mut charges, mut in_all): (BTreeMap<&ServerName, usize>, usize) = (BTreeMap::new(), 0);
        let mut too_much = HashSet::new();
        for (id, bytes) in new.chain(rejected) {
            let Some((server, kept)) = self.brought.get(id).and_then(|server| self.kept.get_key_value(server)) else {
                continue;
            };
            let charge = charges.entry(server).or_default();
            let sum = kept.and(*charge + bytes, in_all + bytes);
            if bytes == 0 || needed.contains(id) || LIMITS.iter().any(|limit| sum.is_within(*limit)) {
                *charge += bytes;
                in_all += bytes;
            } else {
                too_much.insert(id.clone());
            }
        }
        let charges = charges.into_iter().filter(|(_, bytes)| *bytes > 0);
        commit.kept_for = charges.map(|(server, bytes)| (server.clone(), bytes)).collect();
        too_much
    }

    /// The accepted events of those who come into the room by the commit, and what these are built upon.
    fn needed(&self, commit: &RoomCommit) -> HashSet<EventId> {
        let of_who_comes_in = |id: &EventId| self.brought.get(id).is_some_and(|server| comes_in(commit, server));
        built_upon(commit, |new| new.is_in_timeline() && of_who_comes_in(new.event.event_id()))
    }
}

/// Leaves of a commit's new events those that are accepted, and what they are built upon, where `stranger` comes into the room by it.
/// Whether it does.
pub(super) fn leave_what_comes_in(commit: &mut RoomCommit, stranger: &ServerName) -> bool {
    let comes_in = comes_in(commit, stranger);
    if comes_in {
        let needed = built_upon(commit, NewEvent::is_in_timeline);
        commit.events.retain(|new| needed.contains(new.event.event_id()));
    }
    comes_in
}

/// Whether users of the server come into the room by a commit.
fn comes_in(commit: &RoomCommit, stranger: &ServerName) -> bool {
    commit.joined.iter().any(|(server, more)| server == stranger && *more > 0)
}

/// Some events of a commit, and those of its events that they are built upon.
fn built_upon(commit: &RoomCommit, some: impl Fn(&NewEvent) -> bool) -> HashSet<EventId> {
    let all = commit.events.iter().map(|new| &new.event).chain(commit.rejected.iter().map(|new| &new.event));
    let by_id: HashMap<&EventId, &Event> = all.map(|event| (event.event_id(), event)).collect();
    let mut waiting: Vec<&Event> = commit.events.iter().filter(|new| some(new)).map(|new| &new.event).collect();
    let mut reached = HashSet::new();
    while let Some(event) = waiting.pop() {
        if reached.insert(event.event_id().clone()) {
            let cited = event.prev_events().iter().chain(event.auth_events());
            waiting.extend(cited.filter_map(|id| by_id.get(id).copied()));
        }
    }
    reached
}

impl Rooms {
    /// What is kept so far for those of `brought`'s servers that are not in the room.
    pub(super) async fn strangers_among(
        &self,
        room_id: &RoomId,
        brought: HashMap<EventId, ServerName>,
    ) -> Result<Strangers, RoomError> {
        let servers: HashSet<&ServerName> = brought.values().collect();
        let kept = self.store.kept_for_strangers(room_id, &Vec::from_iter(servers)).await?;
        Ok(Strangers { brought, kept })
    }

    /// Takes down that what a commit brings beside accepted events is kept for `stranger`. Whether that may be.
    pub(super) async fn may_keep(&self, commit: &RoomCommit, stranger: &ServerName) -> Result<bool, RoomError> {
        let new = commit.events.iter().filter(|new| !new.is_in_timeline()).map(|new| bytes_of(&new.event));
        let bytes: usize = new.chain(commit.rejected.iter().map(bytes_of_rejected)).sum();
        let bytes = bytes + self.bytes_of_new(commit.nodes.iter()).await?;
        self.charge_to(&commit.room_id, stranger, bytes).await
    }

    /// Charges claims about the state before `event` to those strangers who make them, and the event itself, unless it `is_held`.
    /// Answers with the numbers of those that bring more than may be kept.
    pub(super) async fn charge_claims(
        &self,
        (event, is_held): (&Event, bool),
        known: Known,
        claims: &[Examined],
    ) -> Result<HashSet<usize>, RoomError> {
        let of_members = || claims.iter().filter(|claim| claim.stranger.is_none());
        let (mut seen, mut seen_nodes) = (HashSet::new(), HashSet::new());
        // What servers in the room bring too is free.
        for claim in of_members() {
            seen.extend(claim.brought());
            seen_nodes.extend(claim.snapshot.nodes.iter().map(|(id, _)| *id));
        }
        let mut of_event = if is_held || known == Known::Claim { 0 } else { bytes_of(event) };
        let mut refused = HashSet::new();
        if of_members().next().is_some() && !self.may_keep_of_its_server(event, mem::take(&mut of_event)).await? {
            return Ok((0..claims.len()).collect());
        }
        for (number, claim) in claims.iter().enumerate() {
            let is_kept = claim.is_kept_apart() || !claim.is_for_nothing(known);
            let Some(stranger) = claim.stranger.as_ref().filter(|_| is_kept) else { continue };
            let outliers = &claim.outliers;
            let is_new = |id: &EventId| !seen.contains(id);
            let new = outliers.new.iter().filter(|new| is_new(new.event.event_id())).map(|new| bytes_of(&new.event));
            let rejected = outliers.rejected.iter().filter(|new| is_new(new.event.event_id())).map(bytes_of_rejected);
            let nodes = claim.snapshot.nodes.iter().filter(|(id, _)| !seen_nodes.contains(id));
            let bytes = of_event + new.chain(rejected).sum::<usize>() + self.bytes_of_new(nodes).await?;
            if self.charge_to(event.room_id(), stranger, bytes).await? {
                of_event = 0;
                seen.extend(claim.brought());
                seen_nodes.extend(claim.snapshot.nodes.iter().map(|(id, _)| *id));
            } else {
                refused.insert(number);
            }
        }
        Ok(refused)
    }

    /// Takes down that so many bytes are kept of an event of which servers in the room say what the state before it was: they have it, but
    /// its own server may be in the room no more, and have made it later. Whether they may be.
    async fn may_keep_of_its_server(&self, event: &Event, bytes: usize) -> Result<bool, RoomError> {
        let Ok(server) = ServerName::parse(event.sender().server_name()) else { return Ok(true) };
        if bytes == 0 || server == *self.server_name() {
            return Ok(true);
        }
        let room_id = event.room_id();
        let is_stranger = !self.store.kept_for_strangers(room_id, &[&server]).await?.is_empty();
        Ok(!is_stranger || self.store.keep_for_stranger(room_id, &server, bytes, OF_WHO_WAS_THERE).await?)
    }

    async fn charge_to(&self, room_id: &RoomId, stranger: &ServerName, bytes: usize) -> Result<bool, RoomError> {
        let mut may = bytes == 0;
        for limit in LIMITS {
            may = may || self.store.keep_for_stranger(room_id, stranger, bytes, limit).await?;
        }
        Ok(may)
    }

    /// The bytes of those nodes that are not stored yet.
    async fn bytes_of_new<'n>(&self, nodes: impl Iterator<Item = &'n NodeText> + Clone) -> Result<usize, RoomError> {
        let lacking = self.store.lacking_nodes(nodes.clone().map(|(id, _)| *id)).await?;
        let lacking: HashSet<NodeId> = lacking.into_iter().collect();
        Ok(nodes.filter(|(id, _)| lacking.contains(id)).map(|(_, node)| node.len()).sum())
    }
}

impl Examined {
    /// The events that the claim brings.
    fn brought(&self) -> impl Iterator<Item = &EventId> {
        let rejected = self.outliers.rejected.iter().map(|new| new.event.event_id());
        self.outliers.new.iter().map(|new| new.event.event_id()).chain(rejected)
    }
}

/// An altered event can be made whole at any time.
fn bytes_of(event: &Event) -> usize {
    BESIDE_THE_TEXT + if event.is_altered() { MAX_EVENT_BYTES } else { event.json().len() }
}

/// What is remembered of a rejected event has bounds of its own; but one that may be judged again may come to be kept for good.
fn bytes_of_rejected(new: &NewRejected) -> usize {
    if new.provisional { bytes_of(&new.event) } else { 0 }
}

fn bytes_of_nodes(nodes: &[NodeText]) -> usize {
    nodes.iter().map(|(_, node)| node.len()).sum()
}
