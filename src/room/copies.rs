//! Taking whole copies of events that are held without their content.

use super::{RoomError, Rooms, judge::Judgement, view::View};
use crate::{
    matrix::{event::Event, identifiers::RoomId},
    store::commit::Committed,
};

impl Rooms {
    /// Takes the content of events of the room that are held without it, and nothing else of them: what is held for a state or an auth
    /// chain alone gets no place in the room, of which it has long been a part.
    ///
    /// # Errors
    /// [`RoomError::UnknownRoom`], [`RoomError::Busy`], and where the database fails.
    pub async fn take_copies(&self, room_id: &RoomId, copies: &[Event]) -> Result<(), RoomError> {
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let ids = copies.iter().map(|copy| copy.event_id().clone()).collect();
            let room = view.load_rooms(vec![room_id.clone()], &[], ids, Vec::new()).await?.pop();
            let mut judgement = Judgement::new(room.ok_or(RoomError::UnknownRoom)?);
            for copy in copies {
                judgement.complete(&mut view, copy).await?;
            }
            if judgement.is_unchanged() {
                return Ok(Committed::Done(()));
            }
            let commit = self.commit_of(&mut view, judgement).await?;
            Ok(self.store.commit(&[commit], Vec::new()).await?)
        })
        .await
    }
}
