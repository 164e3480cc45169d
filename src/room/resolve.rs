//! State resolution over stored snapshots: drives [`Resolution`], a round trip for each step.

use super::{Room, RoomError, view::View};
use crate::matrix::{
    state_resolution::{Resolution, Step},
    state_trie::NodeId,
};

/// The most steps of one resolution: far beyond what any takes, so that damage in the store cannot keep us busy for ever.
const MAX_STEPS: usize = 1_000;

impl View<'_> {
    /// The resolution of the snapshots `roots` in `room`.
    pub(super) async fn resolve(&mut self, room: &Room, mut roots: Vec<NodeId>) -> Result<NodeId, RoomError> {
        roots.sort_unstable();
        roots.dedup();
        match roots.as_slice() {
            [] => return Ok(NodeId::EMPTY),
            [root] => return Ok(*root),
            _ => {}
        }
        if let Some(root) = self.resolved(&roots) {
            return Ok(root);
        }
        let mut resolution = Resolution::new(room.room_version, &room.room_id, &roots);
        let mut supplied = self.at_hand();
        for _ in 0..MAX_STEPS {
            match resolution.step(supplied).map_err(|error| RoomError::Corrupt(error.to_string()))? {
                Step::Done(resolved) => {
                    for (id, text) in resolved.nodes {
                        self.add_made(id, text)?;
                    }
                    self.note_resolved(roots, resolved.root);
                    return Ok(resolved.root);
                }
                Step::Need(need) => supplied = self.supply(&need).await?,
            }
        }
        Err(RoomError::Corrupt("a state resolution comes to no end".to_owned()))
    }
}
