//! What becomes a forward extremity, and what it replaces.

use serde_json::{Value, json};
use verge::{
    matrix::state_content::Membership,
    room::{Draft, RoomError},
};

use crate::{
    Scene,
    common::{homeserver::object, peer::Peer},
    scene,
};

fn pdus(events: &[(String, Value)]) -> Vec<Value> {
    events.iter().map(|(_, event)| event.clone()).collect()
}

/// Gives Bob the power to ban.
pub(crate) fn empower(scene: &mut Scene) {
    let users = match scene.theirs.version.as_str() {
        "12" => json!({ &scene.bob: 50 }),
        _ => json!({ scene.alice.as_str(): 100, &scene.bob: 50 }),
    };
    scene.alice_sets("m.room.power_levels", json!({ "users": users }));
}

/// Mallory's forks fill the room's forward extremities, each with a state of its own or all with one. Bob's ban counts at once.
#[test]
fn forks_of_an_attacker_do_not_keep_a_ban_away() {
    for (version, profiles) in [("10", true), ("12", true), ("12", false)] {
        let mut scene = scene(version);
        empower(&mut scene);
        let mallory = Peer::new(&scene.world, "mallory.example");
        let user = mallory.user("mallory");
        let theirs = mallory.join(&scene.a, scene.room.as_str(), &user);
        let join = theirs.state[&("m.room.member".to_owned(), user.clone())].clone();
        scene.theirs.state.insert(("m.room.member".to_owned(), user.clone()), join);
        scene.theirs.advance(&theirs.last);
        scene.world.settle();
        let forks: Vec<(String, Value)> = (0..45)
            .map(|n| {
                let content = json!({ "membership": "join", "displayname": n.to_string() });
                let draft = match profiles {
                    true => theirs.draft_member(scene.world.now_ms(), &user, &user, content),
                    false => {
                        let fields = json!({ "type": "m.room.message", "content": content });
                        theirs.draft(scene.world.now_ms(), &user, fields)
                    }
                };
                mallory.sign(version, draft)
            })
            .collect();
        let (_, answer) = mallory.send(&scene.a, "1", &pdus(&forks));
        assert!(forks.iter().all(|(id, _)| answer["pdus"][id] == json!({})), "{answer}");
        let extremities = "SELECT json_array_length(extremities) FROM rooms";
        assert_eq!(scene.a.database.rows(extremities), [["40"]]);

        let ban = json!({ "type": "m.room.member", "state_key": user, "content": { "membership": "ban" } });
        let mut ban = scene.theirs.draft(scene.world.now_ms(), &scene.bob, ban);
        let target = scene.theirs.state_id("m.room.member", &user).unwrap();
        ban["auth_events"].as_array_mut().unwrap().push(json!(target));
        let (id, event) = scene.peer.sign(version, ban);
        let (_, answer) = scene.peer.send(&scene.a, "2", &[event]);
        assert_eq!(answer["pdus"][&id], json!({}));
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &user).as_deref(), Some("ban"), "version {version}");
        let kept = if profiles { "41" } else { "40" };
        assert_eq!(scene.a.database.rows(extremities), [[kept]]);
    }
}

/// Alice bans Eve, who is here as well, behind or before forks that are more than an event cites.
#[test]
fn whoever_is_banned_sends_nothing_however_many_forks_there_are() {
    for is_first in [false, true] {
        let mut scene = scene("11");
        let eve = scene.a.user(&scene.world, "eve");
        scene.a.send(
            &scene.world,
            &scene.room,
            &eve,
            Draft::membership(eve.as_str(), Membership::Join, object(json!({}))),
        );
        scene.world.settle();
        scene.theirs.last = scene.a.database.rows("SELECT extremities ->> '$[0][0]' FROM rooms")[0][0].clone();
        let forks: Vec<(String, Value)> = (0..40)
            .map(|n| scene.theirs.say_upon(&scene.peer, &scene.bob, &n.to_string(), &[&scene.theirs.last]))
            .collect();
        let bans = || {
            let ban = Draft::membership(eve.as_str(), Membership::Ban, object(json!({})));
            scene.a.send(&scene.world, &scene.room, &scene.alice, ban)
        };
        let floods = || {
            let (_, answer) = scene.peer.send(&scene.a, "1", &pdus(&forks));
            assert!(forks.iter().all(|(id, _)| answer["pdus"][id] == json!({})), "{answer}");
        };
        let ban = if is_first {
            let ban = bans();
            floods();
            ban
        } else {
            floods();
            bans()
        };
        let many = scene.a.database.rows("SELECT json_array_length(extremities) FROM rooms");
        assert_eq!(many, [[if is_first { "40" } else { "21" }]]);
        let says = |user| {
            let content = object(json!({ "msgtype": "m.text", "body": "hello" }));
            let draft = Draft::message("m.room.message", content);
            scene.world.run(scene.a.rooms.send(&scene.room, user, draft))
        };
        let refused = says(&eve);
        assert!(matches!(refused, Err(RoomError::NotAllowed(_))), "{is_first}: {refused:?}");
        let said = says(&scene.alice).unwrap();
        assert_eq!(said.prev_events().len(), 20);
        assert_eq!(said.prev_events().contains(ban.event_id()), !is_first);
    }
}

/// However many soft-failed events an event cites its way through, it costs one call more.
#[test]
fn the_way_back_through_soft_failed_events_is_one_call() {
    let mut scene = scene("12");
    let other = Peer::new(&scene.world, "other.example");
    let zoe = other.user("zoe");
    let theirs = other.join(&scene.a, scene.room.as_str(), &zoe);
    scene.theirs.advance(&theirs.last);
    scene.world.settle();
    let base = scene.theirs.last.clone();
    scene.a.send(
        &scene.world,
        &scene.room,
        &scene.alice,
        Draft::membership(&scene.bob, Membership::Ban, object(json!({}))),
    );
    scene.world.settle();
    let chain: Vec<(String, Value)> =
        (0..100).map(|n| scene.theirs.say(&scene.peer, &scene.bob, &n.to_string())).collect();
    for (n, part) in chain.chunks(50).enumerate() {
        scene.peer.send(&scene.a, &n.to_string(), &pdus(part));
    }
    assert_eq!(scene.a.database.rows("SELECT count(*) FROM events WHERE soft_failed"), [["100"]]);
    let ban = scene.a.database.rows("SELECT extremities ->> '$[0][0]' FROM rooms")[0][0].clone();
    let fields = json!({
        "type": "m.room.message", "content": { "body": "on top" }, "prev_events": [chain[99].0, ban],
        "depth": scene.theirs.depth + 1,
    });
    let (id, event) = other.sign("12", theirs.draft(scene.world.now_ms(), &zoe, fields));
    let calls = scene.a.database.calls.get();
    let (_, answer) = other.send(&scene.a, "top", &[event]);
    let calls = scene.a.database.calls.get() - calls;
    assert_eq!(answer["pdus"][&id], json!({}));
    assert!(scene.a.shows(&id));
    assert_eq!(
        scene.a.database.rows("SELECT extremities ->> '$[0][0]', json_array_length(extremities) FROM rooms"),
        [[id, "1".to_owned()]]
    );
    assert!(calls <= 12, "{calls} calls, {base}");
}
