//! State resolution over stored snapshots: drives [`Resolution`], a round trip for each step.

use super::{Room, RoomError, view::View};
use crate::matrix::{
    state_resolution::{Resolution, ResolutionError, Step},
    state_trie::NodeId,
};

/// The most steps of one resolution: far beyond what any takes, so that damage in the store cannot keep us busy for ever.
const MAX_STEPS: usize = 100;

impl View<'_> {
    /// The resolution of the snapshots `roots` in `room`; none where they differ in more than we are willing to read.
    pub(super) async fn resolve(&mut self, room: &Room, mut roots: Vec<NodeId>) -> Result<Option<NodeId>, RoomError> {
        roots.sort_unstable();
        roots.dedup();
        match roots.as_slice() {
            [] => return Ok(Some(NodeId::EMPTY)),
            [root] => return Ok(Some(*root)),
            _ => {}
        }
        if let Some(root) = self.resolved(&roots) {
            return Ok(Some(root));
        }
        if let Some(facts) = self.take_facts(&room.room_id)
            && let Some(root) = self.drive(room, &roots, Resolution::with(room.room_version, &roots, facts)).await?
        {
            return Ok(Some(root));
        }
        // Without what was learnt before there is room for more.
        self.drive(room, &roots, Resolution::new(room.room_version, &room.room_id, &roots)).await
    }

    async fn drive(
        &mut self,
        room: &Room,
        roots: &[NodeId],
        mut resolution: Resolution,
    ) -> Result<Option<NodeId>, RoomError> {
        let mut supplied = self.at_hand();
        for _ in 0..MAX_STEPS {
            match resolution.step(supplied) {
                Ok(Step::Done(resolved)) => {
                    for (id, text) in resolved.nodes {
                        self.add_made(id, text)?;
                    }
                    self.note_resolved(roots.to_vec(), resolved.root);
                    self.note_facts(&room.room_id, resolution.into_facts());
                    return Ok(Some(resolved.root));
                }
                Ok(Step::Need(need)) => supplied = self.supply(&need).await?,
                Err(ResolutionError::TooLarge) => return Ok(None),
                Err(error) => return Err(RoomError::Corrupt(error.to_string())),
            }
        }
        Err(RoomError::Corrupt("a state resolution comes to no end".to_owned()))
    }
}
