//! Which of a room's other servers are asked.

use crate::{
    matrix::identifiers::{RoomId, ServerName},
    platform::Random,
    room::RoomError,
    server::Server,
};

impl Server {
    /// At most `count` of the other servers in the room, drawn anew each time: in any order that goes by their names, some could see to
    /// it that they are the ones whom everybody asks.
    ///
    /// # Errors
    /// Where the database fails.
    pub(super) async fn some_residents(&self, room_id: &RoomId, count: usize) -> Result<Vec<ServerName>, RoomError> {
        Ok(self.some_others(self.rooms.servers(room_id).await?, count))
    }

    /// At most `count` of these servers besides this one, drawn.
    pub(super) fn some_others(&self, mut servers: Vec<ServerName>, count: usize) -> Vec<ServerName> {
        servers.retain(|name| *name != self.config.server_name);
        draw(&mut servers, count, &*self.platform.random);
        servers
    }
}

/// Leaves at most `count` of `names`, in random order.
pub(super) fn draw(names: &mut Vec<ServerName>, count: usize, random: &dyn Random) {
    let count = count.min(names.len());
    for at in 0..count {
        let mut bytes = [0; 4];
        random.fill(&mut bytes);
        let left = names.len() - at;
        let drawn = usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(0) % left;
        names.swap(at, at + drawn);
    }
    names.truncate(count);
}
