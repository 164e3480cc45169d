//! Answers that leave out members although nobody asked for that: with `FASTER_JOINS = "off"` nobody does.

use verge::{
    federation::outbound::membership,
    matrix::{
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::Object,
    },
    room::Extent,
};

use crate::common::{
    large_room::LargeRoom,
    network::{Homeserver, World},
    peer::Peer,
};

/// A room whose server leaves out its members whether it is asked to or not.
struct Unasked {
    world: World,
    b: Homeserver,
    bob: UserId,
    room: LargeRoom,
    room_id: RoomId,
}

fn unasked() -> Unasked {
    let world = World::new();
    let b = world.server("b.example");
    let bob = b.user(&world, "bob");
    let room = LargeRoom::new(&Peer::new(&world, "peer.example"), 10);
    room.opens_in_part();
    let room_id = RoomId::parse(&room.room_id).unwrap();
    Unasked { world, b, bob, room, room_id }
}

impl Unasked {
    fn join_via(&self, via: &[&str]) -> Result<EventId, u16> {
        let via = via.iter().map(|name| ServerName::parse(name).unwrap()).collect();
        let joined = self.world.run(membership::join(&self.b, &self.bob, &self.room_id, via, Object::new()));
        self.world.settle();
        joined.map_err(|error| error.status.as_u16())
    }

    /// The servers that were asked to let Bob in, in order.
    fn asked(&self) -> Vec<String> {
        let sent = self.world.traffic().into_iter().filter(|sent| sent.line.contains("/send_join/"));
        sent.inspect(|sent| assert!(!sent.line.contains("omit_members"), "{}", sent.line)).map(|sent| sent.to).collect()
    }
}

#[test]
fn who_leaves_out_members_unasked_is_not_joined_through() {
    let unasked = unasked();
    unasked.room.opens_at(&Peer::new(&unasked.world, "other.example"));
    unasked.join_via(&["peer.example", "other.example"]).unwrap();
    // It would answer the same again.
    assert_eq!(unasked.asked(), ["peer.example", "other.example"]);
    let room = unasked.world.run(unasked.b.rooms.room(&unasked.room_id)).unwrap().unwrap();
    assert_eq!(room.extent, Extent::Whole);
    // Creation, power levels, join rules, who made it, ten members, and Bob.
    assert_eq!(unasked.b.state(&unasked.world, &unasked.room_id).len(), 15);
}

#[test]
fn where_no_other_server_is_known_the_join_fails() {
    let unasked = unasked();
    assert_eq!((unasked.join_via(&["peer.example"]), unasked.asked().len()), (Err(502), 1));
    for table in ["rooms", "partial_rooms", "pending_joins", "large_joins", "claimed_events"] {
        assert_eq!(unasked.b.database.rows(&format!("SELECT COUNT(*) FROM {table}")), [["0"]], "{table}");
    }
}
