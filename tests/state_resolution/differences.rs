//! Where an oracle resolves states otherwise than this server: the spec decides, or where it is silent Synapse, because rooms
//! are full of Synapse. Generated rooms are not compared with an oracle where these apply.

use serde_json::json;

use crate::scene::{ALICE, BOB, EVE, Oracle, Scene, key, member, versions};

/// A room without join rules is invite-only. ruma lets nobody in.
#[test]
fn join_without_join_rules() {
    for version in versions(2..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.member("invited", &mut state, ALICE, BOB, "invite");
        let (mut one, mut other) = (state.clone(), state);
        room.join("bob", &mut one, BOB);
        room.topic("topic", &mut other, ALICE);
        let (states, expected) = ([&one, &other], [(member(BOB), Some("bob"))]);
        room.resolves_as_in(&[Oracle::Synapse], &states, &expected);
        room.resolves_unlike(Oracle::Ruma, &states, &expected);
    }
}

/// A level that is added has no value before, so that whoever may send power levels may set it up to their own power. ruma
/// judges by the default that held before, here the 50 of `redact`.
#[test]
fn level_that_is_added() {
    for version in versions(2..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create_with(json!({}));
        let mut levels = json!({ "users": { ALICE: 100, BOB: 10 }, "events": { "m.room.power_levels": 0 } });
        if version.privileged_creators {
            levels["users"] = json!({ BOB: 10 });
        }
        room.send("first", &mut state, "m.room.power_levels", "", ALICE, levels.clone());
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        let (mut one, mut other) = (state.clone(), state);
        levels["redact"] = json!(5);
        room.send("bob's", &mut one, "m.room.power_levels", "", BOB, levels);
        room.topic("topic", &mut other, ALICE);
        let (states, expected) = ([&one, &other], [(key("m.room.power_levels"), Some("bob's"))]);
        room.resolves_as_in(&[Oracle::Synapse], &states, &expected);
        room.resolves_unlike(Oracle::Ruma, &states, &expected);
    }
}

/// Before version 10 the rules ask only for the users of a room's first power levels. ruma asks that every level be one.
#[test]
fn first_power_levels_that_are_malformed() {
    for version in versions(2..=9) {
        for malformed in [json!({ "ban": "fifty" }), json!({ "notifications": { "room": [] } })] {
            let mut room = Scene::new(version);
            let mut state = room.create_with(json!({}));
            room.join_rules("public", &mut state, "public");
            let mut without = state.clone();
            let mut levels = malformed;
            levels["users"] = json!({ ALICE: 100 });
            room.send("first", &mut state, "m.room.power_levels", "", ALICE, levels);
            room.topic("topic", &mut without, ALICE);
            let (states, expected) = ([&state, &without], [(key("m.room.power_levels"), Some("first"))]);
            room.resolves_as_in(&[Oracle::Synapse], &states, &expected);
            room.resolves_unlike(Oracle::Ruma, &states, &expected);
        }
    }
}

/// An event that was rejected for the state before it may yet pass where states resolve ("Rejected events" of version 2's
/// algorithm). Synapse keeps it out, and says that it does not follow the spec in this.
#[test]
fn rejected_event_in_a_state() {
    for version in versions(2..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        let (mut one, mut other) = (state.clone(), state);
        room.topic("rejected", &mut one, ALICE);
        room.join("eve", &mut other, EVE);
        room.reject("rejected");
        let (states, expected) =
            ([&one, &other], [(key("m.room.topic"), Some("rejected")), (member(EVE), Some("eve"))]);
        room.resolves_as_in(&[Oracle::Ruma], &states, &expected);
        room.resolves_unlike(Oracle::Synapse, &states, &expected);
    }
}

/// In a room that is closed to other servers the rule is about who sends. Synapse refuses memberships for their target.
#[test]
fn member_of_another_server_in_a_closed_room() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create_with(json!({ "m.federate": false }));
        room.power_levels("first", &mut state, ALICE, &[]);
        room.join_rules("public", &mut state, "public");
        let (mut one, mut other) = (state.clone(), state);
        room.member("invited", &mut one, ALICE, BOB, "invite");
        room.member("banned", &mut other, ALICE, BOB, "ban");
        let (states, expected) = ([&one, &other], [(member(BOB), Some("banned"))]);
        if version.id != "1" {
            room.resolves_as_in(&[Oracle::Ruma], &states, &expected);
        }
        room.resolves_unlike(Oracle::Synapse, &states, &expected);
    }
}
