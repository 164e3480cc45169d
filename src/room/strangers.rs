//! What is kept of a room for good because servers sent it, or gave it when they were asked, that are not in the room by our state.
//!
//! What they bring and is accepted, such as the join of which we have not heard, is not bounded. All else is, for nothing else ends
//! it: soft-failed events, which the users of a server can go on making upon what was before they left, and events without a place.
//! Once a server has brought its share, only accepted events are taken from it, and what they are built upon.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Room, RoomError, Rooms};
use crate::{
    matrix::{
        identifiers::{EventId, RoomId, ServerName},
        state_trie::NodeId,
    },
    store::{
        commit::{NewEvent, RoomCommit},
        events::NodeText,
        kept_for_strangers::Kept,
        rooms::Extent,
    },
};

/// How many bytes are kept of a room for one server that is not in it, and for all of them.
const LIMIT: Kept = Kept { of_server: 1 << 20, of_room: 8 << 20 };

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
        let needed = needed(&commit.events);
        let nodes = bytes_of_nodes(&commit.nodes) / (commit.events.len() + commit.rejected.len()).max(1);
        let of_new = |new: &NewEvent| if new.is_in_timeline() { 0 } else { bytes_of(new.event.json()) };
        let new = commit.events.iter().map(|new| (new.event.event_id(), nodes + of_new(new)));
        // What is remembered of these has its own bounds; the state before them has not.
        let rejected = commit.rejected.iter().map(|new| (new.event.event_id(), nodes));
        let (mut charges, mut in_all): (BTreeMap<&ServerName, usize>, usize) = (BTreeMap::new(), 0);
        let mut too_much = HashSet::new();
        for (id, bytes) in new.chain(rejected) {
            let Some((server, kept)) = self.brought.get(id).and_then(|server| self.kept.get_key_value(server)) else {
                continue;
            };
            let charge = charges.entry(server).or_default();
            let of_server = kept.of_server + *charge + bytes;
            let sum = Kept { of_server, of_room: kept.of_room + in_all + bytes };
            if bytes == 0 || needed.contains(id) || sum.is_within(LIMIT) {
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
}

impl Rooms {
    /// What is kept so far for those of `brought`'s servers that are not in the room.
    pub(super) async fn strangers_among(
        &self,
        room: &Room,
        brought: HashMap<EventId, ServerName>,
    ) -> Result<Strangers, RoomError> {
        if brought.is_empty() || room.extent == Extent::Partial {
            return Ok(Strangers::default());
        }
        let servers: HashSet<&ServerName> = brought.values().collect();
        let kept = self.store.kept_for_strangers(&room.room_id, &Vec::from_iter(servers)).await?;
        Ok(Strangers { brought, kept })
    }

    /// Takes down that so many bytes more are kept of the room for good on the word of `stranger`. Whether they may be.
    pub(super) async fn may_keep(
        &self,
        room_id: &RoomId,
        stranger: &ServerName,
        bytes: usize,
    ) -> Result<bool, RoomError> {
        Ok(bytes == 0 || self.store.keep_for_stranger(room_id, stranger, bytes, LIMIT).await?)
    }

    /// How many bytes more are kept with these events and nodes, of which some may be kept already.
    pub(super) async fn bytes_more<'a>(
        &self,
        texts: impl Iterator<Item = &'a str>,
        nodes: impl Iterator<Item = &'a NodeText> + Clone,
    ) -> Result<usize, RoomError> {
        let of_texts: usize = texts.map(bytes_of).sum();
        if of_texts > LIMIT.of_server {
            return Ok(of_texts);
        }
        let lacking = self.store.lacking_nodes(nodes.clone().map(|(id, _)| *id)).await?;
        let lacking: HashSet<NodeId> = lacking.into_iter().collect();
        Ok(of_texts + nodes.filter(|(id, _)| lacking.contains(id)).map(|(_, node)| node.len()).sum::<usize>())
    }
}

/// Those of the events that are accepted, and those that these are built upon.
fn needed(events: &[NewEvent]) -> HashSet<EventId> {
    let by_id: HashMap<&EventId, &NewEvent> = events.iter().map(|new| (new.event.event_id(), new)).collect();
    let mut waiting: Vec<&NewEvent> = events.iter().filter(|new| new.is_in_timeline()).collect();
    let mut needed = HashSet::new();
    while let Some(new) = waiting.pop() {
        if needed.insert(new.event.event_id().clone()) {
            let cited = new.event.prev_events().iter().chain(new.event.auth_events());
            waiting.extend(cited.filter_map(|id| by_id.get(id).copied()));
        }
    }
    needed
}

fn bytes_of(text: &str) -> usize {
    text.len() + BESIDE_THE_TEXT
}

fn bytes_of_nodes(nodes: &[NodeText]) -> usize {
    nodes.iter().map(|(_, node)| node.len()).sum()
}
