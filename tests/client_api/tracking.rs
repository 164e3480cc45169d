//! Whose device lists clients follow, where many users share a room with them.

use std::{collections::BTreeSet, rc::Rc};

use serde_json::{Map, Value, json};

use crate::{
    common::{
        large_room::LargeRoom,
        network::World,
        peer::{Peer, PeerRoom},
    },
    home::{Home, User, quote},
    keys::{ids, leave, lists, next, told},
    visited::{Visited, visited},
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

/// Alice's room on `home`, with Bob of another server, who may change its state.
struct Shared {
    home: Home,
    alice: User,
    room: String,
    peer: Rc<Peer>,
    bob: String,
    theirs: PeerRoom,
}

fn shared() -> Shared {
    let world = World::new();
    let home = Home::with(&world, "hs.test", &OPEN);
    let alice = home.register("alice");
    let peer = Peer::new(&world, "peer.example");
    let bob = peer.user("bob");
    let levels = json!({ "users": { &alice.id: 100, &bob: 50 } });
    let body = json!({ "preset": "public_chat", "room_version": "11", "power_level_content_override": levels });
    let room = home.room(&alice, body);
    let theirs = peer.join(&home.homeserver(), &room, &bob);
    world.settle();
    Shared { home, alice, room, peer, bob, theirs }
}

impl Shared {
    /// An event of Bob's upon what he knows of the room.
    fn sends(&self, txn_id: &str, fields: Value) {
        let draft = self.theirs.draft(self.home.world.now_ms(), &self.bob, fields);
        let (id, event) = self.peer.sign("11", draft);
        let (status, answer) = self.peer.send(&self.home.homeserver(), txn_id, &[event]);
        assert_eq!((status, &answer["pdus"][&id]), (200, &json!({})), "{answer}");
        self.home.world.settle();
    }

    /// More than a sync tells at once.
    fn alice_talks(&self) {
        (0..21).for_each(|n| drop(self.home.say(&self.alice, &self.room, "x", &format!("x{n}"))));
    }
}

/// While they shared no room, Bob's server told nobody here of his devices.
#[test]
fn who_left_and_came_back_between_two_syncs_is_new() {
    let shared = shared();
    let (home, alice) = (&shared.home, &shared.alice);
    let mut since = next(&home.sync(alice, ""));
    let before = since.clone();
    shared
        .sends("1", json!({ "type": "m.room.member", "state_key": shared.bob, "content": { "membership": "leave" } }));
    shared.peer.join(&home.homeserver(), &shared.room, &shared.bob);
    home.world.settle();
    let expected = (BTreeSet::from([shared.bob.clone()]), ids(&[]));
    for query in ["", "&use_state_after=true"] {
        assert_eq!(lists(&home.sync(alice, &format!("since={before}{query}"))), expected, "{query}");
    }
    shared.alice_talks();
    let answer = home.sync(alice, &format!("since={before}"));
    assert_eq!(answer["rooms"]["join"][&shared.room]["timeline"]["limited"], true);
    assert_eq!(told(home, alice, &mut since), expected);
    assert_eq!(told(home, alice, &mut since), (ids(&[]), ids(&[])));
}

/// Where the timeline has all that came between, it is seen that they were in the room all the time.
#[test]
fn who_has_a_new_name_is_not_new() {
    let shared = shared();
    let (home, alice) = (&shared.home, &shared.alice);
    let before = next(&home.sync(alice, ""));
    let content = json!({ "membership": "join", "displayname": "B" });
    shared.sends("1", json!({ "type": "m.room.member", "state_key": shared.bob, "content": content }));
    let answer = home.sync(alice, &format!("since={before}"));
    assert_eq!(answer["rooms"]["join"][&shared.room]["timeline"]["events"][0]["content"], content);
    assert_eq!(lists(&answer), (ids(&[]), ids(&[])));
}

#[test]
fn who_left_and_was_invited_again_has_left() {
    let shared = shared();
    let (home, alice) = (&shared.home, &shared.alice);
    let carol = home.register("carol");
    assert_eq!(home.post(&carol, &format!("/join/{}", quote(&shared.room)), json!({})).0, 200);
    let mut since = next(&home.sync(alice, ""));
    leave(home, &carol, &shared.room);
    let path = format!("/rooms/{}/invite", quote(&shared.room));
    assert_eq!(home.post(alice, &path, json!({ "user_id": carol.id })).0, 200);
    shared.alice_talks();
    assert_eq!(told(home, alice, &mut since), (ids(&[]), ids(&[&carol])));
}

/// Bob has closed the room before he knew of Zoe's join, which does not count then.
#[test]
fn whose_join_counts_no_more_has_left() {
    let shared = shared();
    let (home, alice) = (&shared.home, &shared.alice);
    let zoe = shared.peer.user("zoe");
    shared.peer.join(&home.homeserver(), &shared.room, &zoe);
    home.world.settle();
    let mut since = next(&home.sync(alice, ""));
    shared.sends("1", json!({ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "invite" } }));
    let member = format!("/rooms/{}/state/m.room.member/{}", quote(&shared.room), quote(&zoe));
    assert_eq!(home.get(alice, &member).0, 404, "there is nothing of her in the state");
    assert_eq!(told(home, alice, &mut since), (ids(&[]), BTreeSet::from([zoe])));
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

/// Moderators elsewhere ban whom no server could have. Clients cannot read a list of users that names one.
#[test]
fn whom_no_server_could_have_is_named_to_no_client() {
    for is_limited in [false, true] {
        let Visited { home, alice, room, peer, bob, mut theirs, server } = visited("11");
        let path = format!("/rooms/{}/state/m.room.power_levels", quote(&room));
        let (status, set) = home.put(&alice, &path, json!({ "users": { &alice.id: 100, &bob: 50 } }));
        assert_eq!(status, 200, "{set}");
        let levels = set["event_id"].as_str().unwrap().to_owned();
        theirs.advance(&levels);
        let since = next(&home.sync(&alice, ""));
        for (user, membership) in [("@spam:bad_host", "ban"), ("x:y", "invite")] {
            let content = json!({ "membership": membership });
            let mut draft = theirs.draft_member(home.world.now_ms(), &bob, user, content);
            draft["auth_events"][0] = json!(levels);
            let (id, event) = peer.sign("11", draft);
            assert_eq!(peer.send(&server, user, &[event]).1["pdus"][&id], json!({}));
            theirs.advance(&id);
            assert_eq!(home.get(&alice, &format!("/rooms/{}/event/{}", quote(&room), quote(&id))).0, 200, "{user}");
        }
        let filter = if is_limited { json!({ "room": { "timeline": { "limit": 1 } } }) } else { json!({}) };
        let synced = home.sync(&alice, &format!("since={since}&filter={}", quote(&filter.to_string())));
        assert_eq!(lists(&synced), (BTreeSet::new(), BTreeSet::new()), "{synced}");
        let (_, changes) = home.get(&alice, &format!("/keys/changes?from={since}&to={}", next(&synced)));
        assert_eq!((&changes["changed"], &changes["left"]), (&json!([]), &json!([])));
        let summary = &home.sync(&alice, "")["rooms"]["join"][&room]["summary"];
        assert_eq!(summary["m.heroes"], json!([bob]), "{summary}");
    }
}
