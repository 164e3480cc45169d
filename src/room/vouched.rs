//! Finding out from a room's history whether its state before our join was what a resident server vouched for.
//!
//! That state is firm, for all that we know of the room rests on it, and whoever joins must take somebody's word. But an honest
//! server may not know better at that moment, as it has been told something false itself. When the whole history is held, back to
//! the room's creation, nobody needs to be believed: all states follow from it. Then all of them are taken for claims, and
//! settled ([`super::settling`]). What was rejected for good by then stays so, as its text is not kept.

use super::{RoomError, Rooms, claimed_graph::Graph};
use crate::{
    matrix::identifiers::RoomId,
    store::{
        commit::{Committed, RoomCommit},
        unsettled::{Node, Standing},
        vouched_rooms::{VouchedHistory, take_for_claimed},
    },
};

impl Rooms {
    /// Takes all states in the room for claims, if they rest on what a resident server vouched for and the whole history is held.
    ///
    /// # Errors
    /// [`RoomError::UnknownRoom`], [`RoomError::Busy`], and where the database fails.
    pub(super) async fn doubt_vouched(&self, room_id: &RoomId) -> Result<(), RoomError> {
        self.until_committed(async || {
            let room = self.room(room_id).await?.ok_or(RoomError::UnknownRoom)?;
            let mut nodes = match self.store.vouched_history(room_id).await? {
                VouchedHistory::Unknown => return Ok(Committed::Done(())),
                VouchedHistory::TooLong => {
                    self.store.believe_vouched(room_id).await?;
                    return Ok(Committed::Done(()));
                }
                VouchedHistory::Held(nodes) => nodes,
            };
            self.know_creation(&room, &mut nodes).await?;
            let is_creation = |node: &Node| node.previous.is_empty() && node.state_after.is_some();
            // What was soft-failed by a firm state stays hidden, whatever the room is now: it is not to be judged again.
            let is_hidden = |node: &Node| node.standing == Standing::SoftFailed && !node.claimed;
            let is_judged_again = !nodes.iter().any(is_hidden);
            nodes.iter_mut().filter(|node| !is_creation(node)).for_each(|node| node.claimed = true);
            let graph = Graph::new(nodes, room.extremities.iter().map(|one| one.event_id.clone()), 0);
            if !is_judged_again || !graph.is_whole() {
                self.store.looked_at_vouched(room_id).await?;
                return Ok(Committed::Done(()));
            }
            let others = take_for_claimed(room_id, &graph.order);
            Ok(self.store.commit(&[RoomCommit::unchanged(&room)], others).await?)
        })
        .await
    }
}
