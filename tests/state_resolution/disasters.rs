//! What state resolution is there to prevent, case by case: each says who must win, and ruma and Synapse are asked too. Version
//! 1's algorithm prevents little of it: it takes what only one state has without asking, and the oldest of what it compares.

use serde_json::json;
use verge::matrix::room_version::StateResolution;

use crate::common::rooms::State;
use crate::scene::{ALICE, BOB, CAROL, EVE, MALLORY, Oracle, Scene, key, member, versions};

/// A join rule is in one state and its predecessor in the other; everybody else's membership cites either. Algorithm 2 loses
/// both (MSC4297, problem A).
#[test]
fn state_reset_by_an_unconflicted_departure() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("carol", &mut state, CAROL);
        let old = state.clone();
        room.join_rules("invite", &mut state, "invite");
        room.member("alice leaves", &mut state, ALICE, ALICE, "leave");
        let (mut one, mut other) = (state.clone(), state.clone());
        room.join("bob again", &mut one, BOB);
        room.join("carol again", &mut other, CAROL);
        one.insert(member(CAROL), old[&member(CAROL)]);
        other.insert(member(BOB), old[&member(BOB)]);
        other.insert(key("m.room.join_rules"), old[&key("m.room.join_rules")]);

        let join_rules = match version.state_resolution {
            // It goes back to the older rule, under which both may join again.
            StateResolution::V1 => Some("public"),
            StateResolution::V2 => None,
            StateResolution::V2_1 => Some("invite"),
        };
        room.resolves(
            &[&one, &other],
            &[
                (key("m.room.join_rules"), join_rules),
                (member(ALICE), Some("alice leaves")),
                (member(BOB), Some("bob again")),
                (member(CAROL), Some("carol again")),
            ],
        );
    }
}

/// One state still has the first power levels, the other the third; the second, which explains the third, is in neither.
/// Algorithm 2 goes back to the first (MSC4297, problem B).
#[test]
fn state_reset_to_power_levels_that_a_state_never_left() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("carol", &mut state, CAROL);
        let first = state[&key("m.room.power_levels")];
        room.power_levels("second", &mut state, ALICE, &[(BOB, 50)]);
        room.power_levels("third", &mut state, BOB, &[(BOB, 50), (CAROL, 50)]);
        let (mut one, mut other) = (state.clone(), state);
        room.join("zara", &mut one, "@zara:a.example");
        room.join("eve", &mut other, EVE);
        room.join("eve again", &mut other, EVE);
        other.insert(key("m.room.power_levels"), first);

        let power_levels = match version.state_resolution {
            StateResolution::V1 | StateResolution::V2 => "first",
            StateResolution::V2_1 => "third",
        };
        room.resolves(
            &[&one, &other],
            &[
                (key("m.room.power_levels"), Some(power_levels)),
                (member("@zara:a.example"), Some("zara")),
                (member(EVE), Some("eve again")),
            ],
        );
    }
}

/// A moderator who is being demoted promotes an accomplice on another branch, and dates it back.
#[test]
fn power_level_takeover() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[(BOB, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("eve", &mut state, EVE);
        let (mut one, mut other) = (state.clone(), state);
        room.power_levels("promotion", &mut other, BOB, &[(BOB, 50), (EVE, 50)]);
        room.topic("eve's topic", &mut other, EVE);
        room.member("carol banned", &mut other, EVE, CAROL, "ban");
        room.power_levels("demotion", &mut one, ALICE, &[(BOB, 0)]);
        let unchecked = |label| if version.state_resolution == StateResolution::V1 { Some(label) } else { None };
        room.resolves(
            &[&one, &other],
            &[
                (key("m.room.power_levels"), Some("demotion")),
                (key("m.room.topic"), unchecked("eve's topic")),
                (member(CAROL), unchecked("carol banned")),
                (member(EVE), Some("eve")),
            ],
        );
    }
}

/// Who was banned joins again on a branch that has not seen the ban, and does things there.
#[test]
fn banned_user_returns_through_a_fork() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[(EVE, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("eve", &mut state, EVE);
        room.topic("old topic", &mut state, ALICE);
        let (mut banned, mut unaware) = (state.clone(), state);
        room.join("eve again", &mut unaware, EVE);
        room.topic("eve's topic", &mut unaware, EVE);
        room.send("eve's setting", &mut unaware, "x.setting", "", EVE, json!({}));
        room.member("ban", &mut banned, ALICE, EVE, "ban");
        let setting = if version.state_resolution == StateResolution::V1 { Some("eve's setting") } else { None };
        room.resolves(
            &[&banned, &unaware],
            &[(member(EVE), Some("ban")), (key("m.room.topic"), Some("old topic")), (key("x.setting"), setting)],
        );
    }
}

/// The room is closed while somebody who has not heard of it joins.
#[test]
fn join_rules_change_races_a_join() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        let (mut closed, mut unaware) = (state.clone(), state);
        room.join("eve", &mut unaware, EVE);
        room.join_rules("invite", &mut closed, "invite");
        let joined = if version.state_resolution == StateResolution::V1 { Some("eve") } else { None };
        room.resolves(&[&closed, &unaware], &[(key("m.room.join_rules"), Some("invite")), (member(EVE), joined)]);
    }
}

/// Somebody on the creator's server claims to have created the room, and has a state to go with it.
#[test]
fn conflicting_create_events() {
    for version in versions(2..=11) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        let mut forged = State::new();
        let content = json!({ "room_version": version.id, "creator": MALLORY });
        room.send("forged", &mut forged, "m.room.create", "", MALLORY, content);
        room.member("mallory", &mut forged, MALLORY, MALLORY, "join");
        room.power_levels("mallory's levels", &mut forged, MALLORY, &[(MALLORY, 100)]);
        // Nothing in the algorithm tells the true one, so the later one stands. What keeps the forged one out is that it is
        // never accepted into a state (`tests/rooms.rs`). ruma takes the creator of whichever event it happens to look at
        // first.
        room.resolves_as_in(&[Oracle::Synapse], &[&state, &forged], &[(key("m.room.create"), Some("forged"))]);
    }
}

/// An event that is accepted cites one that was rejected; nothing may follow from the rejected one.
#[test]
fn accepted_event_cites_a_rejected_one() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        let (mut one, mut other) = (state.clone(), state);
        let real = one[&key("m.room.power_levels")];
        room.power_levels("usurpation", &mut one, BOB, &[(BOB, 100)]);
        room.reject("usurpation");
        room.topic("bob's topic", &mut one, BOB);
        one.insert(key("m.room.power_levels"), real);
        room.topic("alice's topic", &mut other, ALICE);
        room.resolves(
            &[&one, &other],
            &[(key("m.room.topic"), Some("alice's topic")), (key("m.room.power_levels"), Some("first"))],
        );
    }
}

/// An event that others cite was never received. It is as if they did not cite it. ruma cannot do without it.
#[test]
fn auth_chain_cut_short() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[(BOB, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.power_levels("second", &mut state, ALICE, &[(BOB, 50), (EVE, 10)]);
        let (mut one, mut other) = (state.clone(), state);
        room.power_levels("third", &mut one, ALICE, &[(BOB, 50), (EVE, 20)]);
        room.topic("bob's topic", &mut other, BOB);
        room.topic("alice's topic", &mut one, ALICE);
        room.lose("first");
        // By mainline ordering the topic that was set under the older power levels comes first, so the other one stays.
        room.resolves_as_in(
            &[Oracle::Synapse],
            &[&one, &other],
            &[(key("m.room.power_levels"), Some("third")), (key("m.room.topic"), Some("alice's topic"))],
        );
    }
}

/// Two moderators were each promoted on a branch of their own, and demoted the other there.
#[test]
fn mutual_demotion() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[(BOB, 50), (CAROL, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("carol", &mut state, CAROL);
        let (mut one, mut other) = (state.clone(), state);
        room.power_levels("bob promoted", &mut one, ALICE, &[(BOB, 90), (CAROL, 50)]);
        room.power_levels("carol promoted", &mut other, ALICE, &[(BOB, 50), (CAROL, 90)]);
        room.power_levels("carol demoted", &mut one, BOB, &[(BOB, 90), (CAROL, 0)]);
        room.power_levels("bob demoted", &mut other, CAROL, &[(BOB, 0), (CAROL, 90)]);
        room.topic("bob's topic", &mut one, BOB);
        room.topic("carol's topic", &mut other, CAROL);
        // Alice's second word takes back her first one, so that Bob had no right to his. Version 1 does not ask how either came
        // to stand in its state, and begins with the older one.
        let (levels, topic) = match version.state_resolution {
            StateResolution::V1 => ("carol demoted", "bob's topic"),
            StateResolution::V2 | StateResolution::V2_1 => ("bob demoted", "carol's topic"),
        };
        room.resolves(
            &[&one, &other],
            &[(key("m.room.power_levels"), Some(levels)), (key("m.room.topic"), Some(topic))],
        );
    }
}

/// Two moderators each add a friend of theirs. The later one, who had not heard of the first friend, would take them out.
#[test]
fn two_promotions_at_once() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[(BOB, 50), (CAROL, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("carol", &mut state, CAROL);
        let (mut one, mut other) = (state.clone(), state);
        room.power_levels("bob's friend", &mut one, BOB, &[(BOB, 50), (CAROL, 50), (EVE, 50)]);
        room.power_levels("carol's friend", &mut other, CAROL, &[(BOB, 50), (CAROL, 50), (MALLORY, 50)]);
        room.resolves(&[&one, &other], &[(key("m.room.power_levels"), Some("bob's friend"))]);
    }
}

/// A moderator who was demoted cites the levels that held before, to promote an accomplice.
#[test]
fn promotion_under_levels_of_the_past() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[(EVE, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("eve", &mut state, EVE);
        let mut past = state.clone();
        room.power_levels("promotion", &mut past, EVE, &[(EVE, 50), (BOB, 50)]);
        room.power_levels("demotion", &mut state, ALICE, &[(EVE, 0)]);
        room.join("bob", &mut state, BOB);
        room.resolves(&[&state, &past], &[(key("m.room.power_levels"), Some("demotion")), (member(BOB), Some("bob"))]);
    }
}

/// Bob leaves under the second power levels, and comes back where third ones, which have forked from the first, have taken their
/// place; elsewhere fourth ones go on from the second. His join cites his leave and is newer, and yet loses against it: memberships
/// are in the order of the power levels that they cite. Where he comes back under the fourth ones nothing is lost. Algorithm 1 takes
/// the deepest of memberships.
#[test]
fn a_return_that_loses_against_the_leave_before_it() {
    for version in versions(1..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create(&[(BOB, 50), (CAROL, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("carol", &mut state, CAROL);
        let mut other = state.clone();
        room.power_levels("second", &mut state, BOB, &[(BOB, 50), (CAROL, 50), (EVE, 10)]);
        room.power_levels("third", &mut other, ALICE, &[(BOB, 50), (CAROL, 50), (EVE, 20)]);
        room.member("bob leaves", &mut state, BOB, BOB, "leave");
        other.insert(member(BOB), state[&member(BOB)]);
        room.power_levels("fourth", &mut state, CAROL, &[(BOB, 50), (CAROL, 50), (EVE, 30)]);
        let (mut agreed, levels) = (state.clone(), key("m.room.power_levels"));
        room.join("bob returns", &mut other, BOB);
        room.join("bob returns under the fourth", &mut agreed, BOB);
        let last = match version.state_resolution {
            StateResolution::V1 => "bob returns",
            StateResolution::V2 | StateResolution::V2_1 => "bob leaves",
        };
        room.resolves(&[&state, &other], &[(levels.clone(), Some("fourth")), (member(BOB), Some(last))]);
        agreed.insert(levels.clone(), other[&levels]);
        let expected = [(levels, Some("fourth")), (member(BOB), Some("bob returns under the fourth"))];
        room.resolves(&[&state, &agreed], &expected);
    }
}

/// From version 12 on nobody gains power over a creator, whatever a state claims, and an additional creator is one.
#[test]
fn usurpation_of_creators() {
    for version in versions(12..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create_with(json!({ "additional_creators": [BOB] }));
        room.power_levels("first", &mut state, ALICE, &[(EVE, 100)]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("eve", &mut state, EVE);
        let (mut honest, mut usurped) = (state.clone(), state);
        room.power_levels("creators demoted", &mut usurped, EVE, &[(ALICE, 0), (BOB, 0), (EVE, 100)]);
        room.member("alice banned", &mut usurped, EVE, ALICE, "ban");
        room.member("bob kicked", &mut usurped, EVE, BOB, "leave");
        room.topic("eve's topic", &mut usurped, EVE);
        room.topic("bob's topic", &mut honest, BOB);
        room.power_levels("eve demoted", &mut honest, BOB, &[(EVE, 0)]);
        room.resolves(
            &[&honest, &usurped],
            &[
                (key("m.room.power_levels"), Some("eve demoted")),
                (key("m.room.topic"), Some("bob's topic")),
                (member(ALICE), Some("alice")),
                (member(BOB), Some("bob")),
                (member(EVE), Some("eve")),
            ],
        );
    }
}

/// Two creators of version 12, neither above the other, disagree about a moderator.
#[test]
fn creators_who_disagree() {
    for version in versions(12..=12) {
        let mut room = Scene::new(version);
        let mut state = room.create_with(json!({ "additional_creators": [BOB] }));
        room.power_levels("first", &mut state, ALICE, &[(EVE, 50)]);
        room.join_rules("public", &mut state, "public");
        room.join("bob", &mut state, BOB);
        room.join("eve", &mut state, EVE);
        let (mut one, mut other) = (state.clone(), state);
        room.power_levels("demotion", &mut one, ALICE, &[(EVE, 0)]);
        room.power_levels("promotion", &mut other, BOB, &[(EVE, 100)]);
        room.member("alice banned", &mut other, EVE, ALICE, "ban");
        room.resolves(
            &[&one, &other],
            &[(key("m.room.power_levels"), Some("promotion")), (member(ALICE), Some("alice"))],
        );
    }
}
