//! State resolution over stored snapshots: drives [`Resolution`], a round trip for each step.

use std::{cell::RefCell, collections::HashMap};

use super::{Room, RoomError, view::View};
use crate::matrix::{
    state_resolution::{Resolution, Step},
    state_trie::NodeId,
};

/// The most steps of one resolution: far beyond what any takes, so that damage in the store cannot keep us busy for ever.
const MAX_STEPS: usize = 1_000;

/// How many resolutions an isolate remembers.
const MAX_REMEMBERED: usize = 1_000;

/// The snapshots that were resolved: their room, and their roots, sorted.
pub(super) type Question = (String, Vec<NodeId>);

thread_local! {
    /// Resolutions already committed. The same snapshots always resolve to the same one: this is a fact, not a state.
    static REMEMBERED: RefCell<HashMap<Question, NodeId>> = RefCell::default();
}

impl View<'_> {
    /// The resolution of the snapshots `roots` in `room`.
    pub(super) async fn resolve(&mut self, room: &Room, mut roots: Vec<NodeId>) -> Result<NodeId, RoomError> {
        roots.sort();
        roots.dedup();
        match roots.as_slice() {
            [] => return Ok(NodeId::EMPTY),
            [root] => return Ok(*root),
            _ => {}
        }
        let question = (room.room_id.to_string(), roots);
        let remembered = REMEMBERED.with_borrow(|remembered| remembered.get(&question).copied());
        if let Some(root) = self.resolved(&question).or(remembered) {
            return Ok(root);
        }
        let mut resolution = Resolution::new(room.room_version, &room.room_id, &question.1);
        let mut supplied = self.at_hand();
        for _ in 0..MAX_STEPS {
            match resolution.step(supplied).map_err(|error| RoomError::Corrupt(error.to_string()))? {
                Step::Done(resolved) => {
                    for (id, text) in resolved.nodes {
                        self.add_made(id, text)?;
                    }
                    self.note_resolved(question, resolved.root);
                    return Ok(resolved.root);
                }
                Step::Need(need) => supplied = self.supply(&need).await?,
            }
        }
        Err(RoomError::Corrupt("a state resolution comes to no end".to_owned()))
    }
}

/// Remembers resolutions whose outcome is in the database now.
pub(super) fn remember(resolved: impl IntoIterator<Item = (Question, NodeId)>) {
    REMEMBERED.with_borrow_mut(|remembered| {
        if remembered.len() > MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.extend(resolved);
    });
}
