//! State resolution over stored snapshots.

use super::{RoomError, view::View};
use crate::matrix::{room_version::RoomVersion, state_trie::NodeId};

impl View<'_> {
    /// The resolution of the snapshots `roots`.
    pub(super) async fn resolve(
        &mut self,
        _version: &'static RoomVersion,
        mut roots: Vec<NodeId>,
    ) -> Result<NodeId, RoomError> {
        roots.sort();
        roots.dedup();
        Ok(roots.first().copied().unwrap_or(NodeId::EMPTY))
    }
}
