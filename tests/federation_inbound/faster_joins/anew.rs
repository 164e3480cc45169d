//! Rooms that were left before their members were known, and joined anew by an answer that leaves out nothing.

use verge::{
    matrix::{json::Object, state_content::Membership},
    room::{Draft, Extent},
};

use super::{Answers, faster};

/// However far it was with the rest of the state, which nobody needs any more.
#[test]
fn a_room_that_was_left_in_part_is_joined_whole() {
    for begun in [None, Some("claimed_events WHERE verdict = 0"), Some("claimed_events WHERE verdict = 1")] {
        for next in ["bob", "erin"] {
            let mut faster = faster("12");
            let world = faster.world.clone();
            let next = if next == "bob" { faster.bob.clone() } else { faster.b.user(&world, next) };
            faster.join();
            faster.says(&faster.b, &faster.bob, "hello");
            let (_, said) = faster.theirs.say(&faster.peer, &faster.dave, "hello, Bob");
            for server in [&faster.a, &faster.b] {
                assert_eq!(faster.peer.send(server, "t1", std::slice::from_ref(&said)).0, 200);
            }
            world.settle();
            faster.answers.set(Answers::Truly);
            let mut rounds = 0;
            while begun.is_some_and(|begun| faster.count(begun) == 0) {
                world.advance(60 * 60 * 1_000);
                // As if the isolate were gone, each time a little later.
                let server = faster.b.with_wall(3 + rounds);
                world.run(server.sweep_large_joins(&server.meter.budget(1 + rounds)));
                rounds += 1;
                assert!(rounds < 80, "{:?}", world.logs());
            }
            assert_eq!(faster.extent(), Extent::Partial, "{begun:?}");
            let leave = Draft::membership(faster.bob.as_str(), Membership::Leave, Object::new());
            faster.b.send(&world, &faster.room, &faster.bob, leave);
            faster.says(&faster.a, &faster.alice, "he is gone");
            faster.alters(|answer| drop(answer.remove("servers_in_room")));
            faster.try_join(&next, "a.example").unwrap();
            world.settle();
            assert_eq!(faster.extent(), Extent::Whole, "{begun:?} {next}: {:?}", world.logs());
            let asked = |line: &str| line.contains("/_matrix/federation/v1/state/");
            let states = || world.traffic().iter().filter(|sent| sent.from == "b.example" && asked(&sent.line)).count();
            let before = states();
            faster.later();
            assert_eq!((faster.extent(), faster.count("partial_rooms"), states()), (Extent::Whole, 0, before));
            faster.is_whole();
            assert!(faster.a.shows(faster.says(&faster.b, &next, "here I am").event_id().as_str()));
            assert!(faster.b.shows(faster.says(&faster.a, &faster.member(3), "hello").event_id().as_str()));
        }
    }
}
