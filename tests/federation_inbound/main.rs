//! The inbound Server-Server API, endpoint by endpoint, against a peer whose requests and events ruma signs; and whole
//! servers of ours with each other.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod abuse;
mod acl;
mod admission;
mod altered;
mod authentication;
mod by_time;
mod carried_on;
mod catching_up;
mod chains;
mod claims;
mod conformance;
mod costs;
mod device_edus;
mod edu_queue;
mod edus;
mod extremities;
mod failing;
mod false_claims;
mod faster_joins;
mod flooding;
mod gaps;
mod invariants;
mod inviting;
mod joined_anew;
mod joining;
mod knocking;
mod large_claims;
mod large_forks;
mod large_joins;
mod leaving;
mod logging;
mod looks;
mod media;
mod media_abuse;
mod missing;
mod notary;
mod pending_joins;
mod policy;
mod public;
mod public_rooms;
mod queries;
mod queue;
mod refusals;
mod rejected;
mod retrieving;
mod servers;
mod settling;
mod spaces;
mod storing;
mod strangers;
mod sweeping;
mod third_party_invites;
mod transactions;
mod unnumbered_lists;
mod user_keys;
mod visibility;
mod vouched;
mod withdrawn;

use std::rc::Rc;

use common::{
    network::{Homeserver, World},
    peer::{Peer, PeerRoom},
};
use verge::matrix::identifiers::{RoomId, UserId};

/// Alice on our server `a.example` has made a room that everybody may join, and Bob on a peer has joined it.
struct Scene {
    world: World,
    a: Homeserver,
    alice: UserId,
    room: RoomId,
    peer: Rc<Peer>,
    bob: String,
    theirs: PeerRoom,
}

fn scene(version: &str) -> Scene {
    scene_in(World::new(), version)
}

fn scene_in(world: World, version: &str) -> Scene {
    let a = world.server("a.example");
    let alice = a.user(&world, "alice");
    let room = a.public_room(&world, &alice, version);
    let peer = Peer::new(&world, "peer.example");
    let bob = peer.user("bob");
    let theirs = peer.join(&a, room.as_str(), &bob);
    world.settle();
    Scene { world, a, alice, room, peer, bob, theirs }
}

/// All that counts as accepted: what hostile input must not change.
fn accepted(server: &Homeserver) -> Vec<Vec<Vec<String>>> {
    [
        "SELECT event_id, json, soft_failed, redacted_by FROM events ORDER BY event_id",
        "SELECT room_id, extremities, state, latest_pos, outbox_pos FROM rooms ORDER BY room_id",
        "SELECT * FROM room_servers ORDER BY room_id, server, from_pos",
        "SELECT * FROM local_memberships ORDER BY user_id, room_id",
        "SELECT * FROM timeline ORDER BY room_id, pos",
        "SELECT * FROM outbox ORDER BY pos",
        "SELECT * FROM staged_pdus ORDER BY room_id, event_id",
    ]
    .into_iter()
    .map(|sql| server.database.rows(sql))
    .collect()
}
