//! Whose device lists clients follow, where many users share a room with them.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{
    common::{large_room::LargeRoom, network::World, peer::Peer},
    home::{Home, quote},
    keys::{ids, leave, next, told},
};

const OPEN: [(&str, &str); 1] = [("REGISTRATION", "open")];

#[test]
fn who_shares_a_room_is_known_of_however_many() {
    let world = World::new();
    let home = Home::with(&world, "hs.test", &OPEN);
    let [alice, carol] = ["alice", "carol"].map(|name| home.register(name));
    let peer = Peer::new(&world, "peer.example");
    let shared = home.room(&alice, json!({ "preset": "public_chat", "room_version": "11" }));
    assert_eq!(home.post(&carol, &format!("/join/{}", quote(&shared)), json!({})).0, 200);
    let sharing = BTreeSet::from([carol.id, peer.user("member1"), peer.user("member29999")]);
    for member in sharing.iter().filter(|user| user.ends_with("peer.example")) {
        peer.join(&home.homeserver(), &shared, member);
    }
    let of = |name: &'static str, many: usize| (0..many).map(move |at| format!("@member{at}:{name}"));
    let asked: BTreeSet<String> =
        of("peer.example", 30_000).chain(of("hs.test", 100_000)).chain(sharing.clone()).collect();
    let found = world.run(home.server.store.sharing("hs.test", &alice.id, asked));
    assert_eq!(found.unwrap(), sharing);
}

/// Of the others it has no keys that it might take for current.
#[test]
fn who_leaves_a_large_room_is_told_of_those_whom_somebody_here_has_asked_for() {
    let world = World::new();
    let home = Home::with(&world, "hs.test", &OPEN);
    let [alice, carol] = ["alice", "carol"].map(|name| home.register(name));
    let peer = Peer::new(&world, "peer.example");
    let shared = home.room(&alice, json!({ "preset": "public_chat", "room_version": "11" }));
    peer.join(&home.homeserver(), &shared, &peer.user("member1"));
    let large = LargeRoom::new(&peer, 60);
    large.opens();
    let mut since = next(&home.sync(&alice, ""));
    for user in [&alice, &carol] {
        let path = format!("/join/{}?via=peer.example", quote(&large.room_id));
        assert_eq!(home.post(user, &path, json!({})).0, 200, "{:?}", world.logs());
    }
    world.settle();
    assert_eq!(told(&home, &alice, &mut since).0.len(), 60 + 3, "for who comes all are new");
    let wanted = json!({ peer.user("member0"): [], peer.user("member1"): [] });
    let (status, answer) = home.post(&alice, "/keys/query", json!({ "device_keys": wanted, "timeout": 2_000 }));
    assert_eq!(status, 200, "{answer}");
    leave(&home, &alice, &large.room_id);
    let (changed, left) = told(&home, &alice, &mut since);
    assert_eq!((changed, left), (ids(&[]), BTreeSet::from([carol.id, peer.user("member0")])));
}

/// Whoever is in a room with many users of other servers asks about all of them at once; they choose how long their names are.
#[test]
fn as_many_users_as_a_body_may_name_have_the_longest_names() {
    let home = Home::new();
    let alice = home.register("alice");
    let server = format!("{}.test", "a".repeat(244));
    let users: Map<String, Value> = (1_000..4_900).map(|n| (format!("@{n}:{server}"), json!([]))).collect();
    assert!(users.keys().all(|user| user.len() == 255));
    let calls = home.database.calls.get();
    let (status, answer) = home.post(&alice, "/keys/query", json!({ "device_keys": users }));
    assert_eq!((status, &answer["device_keys"]), (200, &json!({})), "{answer}");
    assert!(answer["failures"][&server].is_object(), "{answer}");
    assert!(home.database.calls.get() - calls <= 6);
}
