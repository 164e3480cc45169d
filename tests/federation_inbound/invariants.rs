//! The tests' database notices when a commit leaves a room as no room may be.

use std::panic::{AssertUnwindSafe, catch_unwind};

use verge::{
    matrix::{identifiers::ServerName, state_trie::NodeId},
    store::{
        commit::{NewEvent, Place, RoomCommit, StateFrom},
        positions::TimelinePos,
        rooms::Extremity,
    },
};

use crate::{Scene, scene};

/// What is said when `work` is done.
fn said(work: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(work)).expect_err("nothing is noticed");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

/// What is said to a commit that would leave the room as it is, but for what `change` makes of it.
fn commit(change: impl FnOnce(&Scene, &mut RoomCommit)) -> String {
    let scene = scene("12");
    ["one", "two"].iter().for_each(|text| drop(scene.a.say(&scene.world, &scene.room, &scene.alice, text)));
    let room = scene.world.run(scene.a.rooms.room(&scene.room)).unwrap().unwrap();
    let mut commit = RoomCommit::unchanged(&room);
    change(&scene, &mut commit);
    said(|| drop(scene.world.run(scene.a.store.commit(&[commit], Vec::new()))))
}

/// The room's event with this text, as the database has it.
fn event(scene: &Scene, text: &str) -> NewEvent {
    let sql = format!("SELECT event_id FROM events WHERE json ->> '$.content.body' = '{text}'");
    let id = verge::matrix::identifiers::EventId::parse(&scene.a.database.rows(&sql)[0][0]).unwrap();
    let stored = scene.world.run(scene.a.rooms.event(&id)).unwrap().unwrap();
    NewEvent {
        place: Place::Hidden,
        state_before: stored.state_before,
        state_after: stored.state_after,
        ..NewEvent::outlier(stored.event)
    }
}

#[test]
fn an_extremity_is_the_last_of_its_branch() {
    let said = commit(|scene, commit| commit.extremities.push(Extremity::of(&event(scene, "one").event)));
    assert!(said.contains("a forward extremity is built upon"), "{said}");
}

#[test]
fn an_extremity_counts() {
    let said = commit(|scene, commit| {
        let mut hidden = event(scene, "two");
        hidden.soft_failed = true;
        // So that it is taken over.
        scene.a.database.rows("UPDATE events SET claimed = 1");
        commit.events.push(hidden);
    });
    assert!(said.contains("a forward extremity does not count"), "{said}");
    assert!(said.contains("what is hidden stands in the timeline"), "{said}");
}

#[test]
fn an_extremity_is_of_the_version_of_the_room() {
    let said = commit(|scene, _| drop(scene.a.database.rows("UPDATE rooms SET room_version = '1'")));
    assert!(said.contains("a forward extremity is not of the room's version"), "{said}");
}

#[test]
fn states_are_held() {
    let nowhere = NodeId::parse("nowhere-nowhere-nowher").unwrap();
    let said = commit(|_, commit| {
        commit.states.push(StateFrom { later: 0, state: nowhere });
        commit.state = nowhere;
    });
    assert!(said.contains(&format!("a state is not held: [Text(\"{nowhere}\")]")), "{said}");
}

#[test]
fn the_timeline_ends_where_the_room_says() {
    let said = commit(|scene, commit| {
        let place = Place::Filled(TimelinePos::new(1 << 50));
        scene.a.database.rows("DELETE FROM timeline WHERE pos = (SELECT MAX(pos) FROM timeline)");
        commit.events.push(NewEvent { place, ..event(scene, "two") });
    });
    assert!(said.contains("the timeline does not end where the room says"), "{said}");
}

#[test]
fn nobody_leaves_twice() {
    let said = commit(|_, commit| commit.joined.push((ServerName::parse("peer.example").unwrap(), -2)));
    assert!(said.contains("fewer than nobody are members: [Text(\"peer.example\")]"), "{said}");
}
