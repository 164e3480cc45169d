//! Joins through another server whose users leave before they are in.

use std::rc::Rc;

use futures_util::future::{self, join, join3};
use http::StatusCode;
use serde_json::{Value, json};
use verge::{platform::Clock, router::json_response};

use crate::{
    common::network::{World, yield_now},
    home::{Home, User, quote, request_of},
    joining::answer_late,
};

const OPEN: [(&str, &str); 1] = [("REGISTRATION", "open")];

/// How long the other server takes over a join.
const LATE_MS: u32 = 5_000;

struct Scene {
    world: World,
    one: Home,
    two: Home,
    alice: User,
    bob: User,
    room: String,
}

/// Alice's room, into which anybody may come, and which Bob of the other server knows by so much.
fn scene(known: &str) -> Scene {
    let world = World::new();
    let (one, two) = (Home::with(&world, "one.test", &OPEN), Home::with(&world, "two.test", &OPEN));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let invited = if known == "invited" { json!([bob.id]) } else { json!([]) };
    let room = one.room(&alice, json!({ "preset": "public_chat", "invite": invited }));
    let scene = Scene { world, one, two, alice, bob, room };
    if known == "was there" {
        assert_eq!(scene.two.post(&scene.bob, &scene.join(), json!({})).0, 200);
        assert_eq!(scene.two.post(&scene.bob, &scene.leave(), json!({})).0, 200);
    }
    scene.world.settle();
    scene
}

impl Scene {
    fn join(&self) -> String {
        format!("/join/{}?via=one.test", quote(&self.room))
    }

    fn leave(&self) -> String {
        format!("/rooms/{}/leave", quote(&self.room))
    }

    /// Bob's request after so many milliseconds: its status.
    async fn asks(&self, path: &str, after_ms: u32) -> u16 {
        self.world.sleep(after_ms).await;
        self.two.posting(&self.bob, path, &json!({})).await
    }

    /// Bob's leave as the state event that it is, after so many milliseconds: its status.
    async fn puts_leave(&self, after_ms: u32) -> u16 {
        self.world.sleep(after_ms).await;
        let path = format!("/rooms/{}/state/m.room.member/{}", quote(&self.room), quote(&self.bob.id));
        let request = request_of(&self.bob, "PUT", &path, json!({ "membership": "leave" }).to_string());
        self.two.server.handle(request).await.status().as_u16()
    }

    /// Alice says something after so many milliseconds: the status.
    async fn alice_speaks(&self, after_ms: u32) -> u16 {
        self.world.sleep(after_ms).await;
        let path = format!("/rooms/{}/send/m.room.message/t{after_ms}", quote(&self.room));
        let message = json!({ "msgtype": "m.text", "body": "hello" }).to_string();
        self.one.server.handle(request_of(&self.alice, "PUT", &path, message)).await.status().as_u16()
    }

    /// Alice invites, kicks or bans Bob after so many milliseconds: the status.
    async fn alice_does(&self, what: &str, after_ms: u32) -> u16 {
        self.world.sleep(after_ms).await;
        let path = format!("/rooms/{}/{what}", quote(&self.room));
        self.one.posting(&self.alice, &path, &json!({ "user_id": self.bob.id })).await
    }

    /// Carol of Bob's server comes into the room, and then only members of a club may, as Bob is; Alice alone may let them in.
    fn restricts_to_club(&self) -> User {
        let carol = self.two.register("carol");
        let club = self.one.room(&self.alice, json!({ "preset": "public_chat" }));
        for (user, room) in [(&carol, &self.room), (&self.bob, &club)] {
            let path = format!("/join/{}?via=one.test", quote(room));
            assert_eq!(self.two.post(user, &path, json!({})).0, 200);
        }
        let state = |kind: &str| format!("/rooms/{}/state/{kind}", quote(&self.room));
        let mut levels = self.one.get(&self.alice, &state("m.room.power_levels")).1;
        levels["invite"] = json!(50);
        let rules = json!({ "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": club }] });
        for (kind, content) in [("m.room.power_levels", levels), ("m.room.join_rules", rules)] {
            assert_eq!(self.one.put(&self.alice, &state(kind), content).0, 200);
        }
        self.world.settle();
        carol
    }

    /// From now on Alice's server lets users in late, and may fail to say so.
    fn lets_in_late(&self, says_so: bool) {
        let (server, clock) = (Rc::clone(&self.one.server), self.world.clone());
        self.world.connect(
            "one.test",
            Rc::new(move |request| {
                let (server, clock) = (Rc::clone(&server), clock.clone());
                Box::pin(async move {
                    if !request.uri().path().contains("/send_join/") {
                        return server.handle(request).await;
                    }
                    clock.sleep(LATE_MS).await;
                    let answer = server.handle(request).await;
                    if says_so { answer } else { json_response(StatusCode::GATEWAY_TIMEOUT, &json!({})) }
                })
            }),
        );
    }

    /// From now on Alice's server gives nobody an event that they lack.
    fn gives_nothing(&self) {
        self.fails_at(&["/get_missing_events/", "/event", "/state"]);
    }

    /// From now on Alice's server answers none of these.
    fn fails_at(&self, parts: &'static [&'static str]) {
        let server = Rc::clone(&self.one.server);
        self.world.connect(
            "one.test",
            Rc::new(move |request| {
                let server = Rc::clone(&server);
                Box::pin(async move {
                    if parts.iter().any(|part| request.uri().path().contains(part)) {
                        json_response(StatusCode::BAD_GATEWAY, &json!({}))
                    } else {
                        server.handle(request).await
                    }
                })
            }),
        );
    }

    /// What Bob is in the room, as this user of the server sees it.
    fn seen_by(&self, home: &Home, user: &User) -> Value {
        let member = format!("/rooms/{}/state/m.room.member/{}", quote(&self.room), quote(&self.bob.id));
        home.get(user, &member).1["membership"].clone()
    }

    /// What Bob is in the room, as Alice sees it, and the rooms that he is in, as he does.
    fn outcome(&self) -> (Value, Value) {
        self.world.settle();
        assert!(self.two.database.rows("SELECT 1 FROM pending_joins").is_empty());
        let membership = self.seen_by(&self.one, &self.alice);
        (membership, self.two.get(&self.bob, "/joined_rooms").1["joined_rooms"].clone())
    }
}

#[test]
fn who_leaves_while_they_join_is_not_in_the_room() {
    for known in ["nothing", "invited", "was there"] {
        for is_let_in in [true, false] {
            let scene = scene(known);
            // Whether the other server has let them in by then.
            match is_let_in {
                true => answer_late(&scene.one, "one.test", "/send_join/"),
                false => scene.lets_in_late(true),
            }
            let (join, leave) = (scene.join(), scene.leave());
            let asked = join3(scene.asks(&join, 0), scene.asks(&leave, 1_000), scene.asks(&leave, 10_000));
            let case = format!("{known}, {is_let_in}");
            assert_eq!(scene.world.run(asked), (403, 200, 200), "{case}");
            assert_eq!(scene.outcome(), (json!("leave"), json!([])), "{case} {:?}", scene.world.logs());
        }
    }
}

/// The leave has ended their join, and the invite came after it.
#[test]
fn who_leaves_while_they_join_and_is_invited_again_still_has_the_invite() {
    let scene = scene("invited");
    answer_late(&scene.one, "one.test", "/send_join/");
    let (join, leave) = (scene.join(), scene.leave());
    let inviting = scene.alice_does("invite", 2_000);
    let asked = scene.world.run(join3(scene.asks(&join, 0), scene.asks(&leave, 1_000), inviting));
    assert_eq!(asked, (403, 200, 200));
    assert_eq!(scene.outcome(), (json!("invite"), json!([])), "{:?}", scene.world.logs());
    // It alone lets them in now.
    let rules = format!("/rooms/{}/state/m.room.join_rules", quote(&scene.room));
    assert_eq!(scene.one.put(&scene.alice, &rules, json!({ "join_rule": "invite" })).0, 200);
    assert_eq!(scene.two.post(&scene.bob, &join, json!({})).0, 200);
    assert_eq!(scene.outcome(), (json!("join"), json!([scene.room])));
}

/// The server that lets them in does that only after it has invited them again: of what conflicts the late join counts, and is taken back.
#[test]
fn who_leaves_while_they_join_and_is_invited_before_that_is_not_in_the_room() {
    let scene = scene("nothing");
    scene.lets_in_late(true);
    let (join, leave) = (scene.join(), scene.leave());
    let inviting = scene.alice_does("invite", 2_000);
    let asked = scene.world.run(join3(scene.asks(&join, 0), scene.asks(&leave, 1_000), inviting));
    assert_eq!((asked.0, asked.2), (403, 200));
    let (membership, rooms) = scene.outcome();
    assert_ne!(membership, json!("join"), "{:?}", scene.world.logs());
    assert_eq!(rooms, json!([]));
}

/// Nobody is asked to let them in then, and nothing is staged or kept of the room.
#[test]
fn who_leaves_before_their_join_is_sent_is_not_in_the_room() {
    let left = || json!("leave");
    for (known, was, asked_to_leave) in [("nothing", Value::Null, 0), ("invited", left(), 1), ("was there", left(), 0)]
    {
        let scene = scene(known);
        answer_late(&scene.one, "one.test", "/make_join/");
        let before = scene.world.traffic().len();
        let (join, leave) = (scene.join(), scene.leave());
        let asked = join3(scene.asks(&join, 0), scene.asks(&leave, 1_000), scene.asks(&leave, 10_000));
        assert_eq!(scene.world.run(asked), (403, 200, 200), "{known}");
        assert_eq!(scene.outcome(), (was, json!([])), "{known} {:?}", scene.world.logs());
        let sent = scene.world.traffic().split_off(before);
        let count = |part: &str| sent.iter().filter(|sent| sent.line.contains(part)).count();
        // Only the invite is to be rejected, and that once.
        assert_eq!((count("/send_join/"), count("/make_leave/")), (0, asked_to_leave), "{known}");
    }
}

/// The state event does what the endpoint does, also where others of their server are in the room, and none may let them in.
#[test]
fn who_puts_a_leave_while_they_join_is_not_in_the_room() {
    let alone = ["nothing", "invited", "was there"].map(|known| (known, false));
    for (known, is_shared) in alone.into_iter().chain([("nothing", true), ("was there", true)]) {
        let scene = scene(known);
        if is_shared {
            scene.restricts_to_club();
        }
        scene.lets_in_late(true);
        let join = scene.join();
        let asked = join3(scene.asks(&join, 0), scene.puts_leave(1_000), scene.puts_leave(10_000));
        let case = format!("{known}, {is_shared}");
        // There is no second leave of which it could give the ID.
        assert_eq!(scene.world.run(asked), (403, 200, 403), "{case} {:?}", scene.world.logs());
        assert_eq!(scene.outcome().0, json!("leave"), "{case} {:?}", scene.world.logs());
    }
}

/// However little of it the server that let them in gets across.
#[test]
fn who_leaves_while_their_join_fails_is_not_in_the_room() {
    for known in ["nothing", "invited", "was there"] {
        let scene = scene(known);
        scene.lets_in_late(false);
        let (join, leave) = (scene.join(), scene.leave());
        let asked = scene.world.run(future::join(scene.asks(&join, 0), scene.asks(&leave, 1_000)));
        assert_eq!(asked, (403, 200), "{known}");
        assert_eq!(scene.outcome(), (json!("leave"), json!([])), "{known} {:?}", scene.world.logs());
    }
}

/// As clients do that get no answer: the first join is in, and the second one's answer still to come.
#[test]
fn who_joins_twice_and_leaves_is_not_in_the_room() {
    for known in ["nothing", "invited", "was there"] {
        let scene = scene(known);
        answer_late(&scene.one, "one.test", "/send_join/");
        let (join, leave) = (scene.join(), scene.leave());
        let asked = join3(scene.asks(&join, 0), scene.asks(&join, 2_000), scene.asks(&leave, 6_000));
        assert_eq!(scene.world.run(asked), (200, 403, 200), "{known}");
        assert_eq!(scene.outcome(), (json!("leave"), json!([])), "{known} {:?}", scene.world.logs());
    }
}

/// Two servers let them in, and the one that puts them out has not heard of the other's answer, which is late.
#[test]
fn who_is_put_out_between_the_answers_to_two_joins_is_not_in_the_room() {
    for (out, membership) in [("kick", "leave"), ("ban", "ban")] {
        let scene = scene("nothing");
        let three = Home::with(&scene.world, "three.test", &OPEN);
        let carol = three.register("carol");
        assert_eq!(three.post(&carol, &scene.join(), json!({})).0, 200);
        scene.world.settle();
        scene.world.cut("one.test", "three.test");
        answer_late(&three, "three.test", "/send_join/");
        let (join, late) = (scene.join(), scene.join().replace("one.test", "three.test"));
        let asked = join3(scene.asks(&late, 0), scene.asks(&join, 1_000), scene.alice_does(out, 2_000));
        let asked = scene.world.run(asked);
        scene.world.mend("one.test", "three.test");
        let outcome = (json!(membership), json!([]));
        assert_eq!((asked, scene.outcome()), ((403, 200, 200), outcome), "{out} {:?}", scene.world.logs());
    }
}

/// What they said before that counts no more.
#[test]
fn who_leaves_while_they_join_and_comes_back_is_in_the_room() {
    for known in ["nothing", "invited", "was there"] {
        let scene = scene(known);
        scene.lets_in_late(true);
        let (join, leave) = (scene.join(), scene.leave());
        let asked = join3(scene.asks(&join, 0), scene.asks(&leave, 1_000), scene.asks(&join, 2_000));
        assert_eq!(scene.world.run(asked), (403, 200, 200), "{known} {:?}", scene.world.logs());
        assert_eq!(scene.outcome(), (json!("join"), json!([scene.room])), "{known}");
    }
}

/// Whether that comes before their join or after it is for the room to say.
#[test]
fn who_is_put_out_while_they_join_is_not_in_the_room() {
    for known in ["nothing", "invited"] {
        for out in ["kick", "ban"] {
            let scene = scene(known);
            answer_late(&scene.one, "one.test", "/send_join/");
            let (_, put_out) = scene.world.run(join(scene.asks(&scene.join(), 0), scene.alice_does(out, 1_000)));
            let membership = if out == "ban" { "ban" } else { "leave" };
            assert_eq!((put_out, scene.outcome()), (200, (json!(membership), json!([]))), "{known}, {out}");
        }
    }
}

/// In a room that others of their server are in the kick is looked at when it comes, and their join, which it cites, is not there.
#[test]
fn what_puts_them_out_and_waits_for_their_join_is_taken_with_it() {
    for out in ["kick", "ban"] {
        let scene = scene("nothing");
        scene.restricts_to_club();
        let before = scene.two.get(&scene.bob, "/joined_rooms").1["joined_rooms"].clone();
        scene.gives_nothing();
        answer_late(&scene.one, "one.test", "/send_join/");
        let asked = scene.world.run(join(scene.asks(&scene.join(), 0), scene.alice_does(out, 1_000)));
        let membership = if out == "ban" { "ban" } else { "leave" };
        assert_eq!(
            (asked, scene.outcome()),
            ((200, 200), (json!(membership), before)),
            "{out} {:?}",
            scene.world.logs()
        );
    }
}

/// In a room that others of their server are in it comes with whatever is said there next, be it that its answer is lost.
#[test]
fn whose_join_comes_in_before_its_answer_and_after_they_have_left_is_not_in_the_room() {
    // Or while the server is asked for the leave.
    for (is_answered, late) in [(true, "/send_join/"), (false, "/send_join/"), (false, "/make_leave/")] {
        for speaks in [true, false] {
            let scene = scene("nothing");
            let carol = scene.restricts_to_club();
            let before = scene.two.get(&scene.bob, "/joined_rooms").1["joined_rooms"].clone();
            scene.lets_in_late(is_answered);
            scene.world.answer_late("one.test", late, LATE_MS);
            let speaking = async { if speaks { scene.alice_speaks(7_000).await } else { 200 } };
            let (join, leave) = (scene.join(), scene.leave());
            let asked = scene.world.run(join3(scene.asks(&join, 0), scene.asks(&leave, 1_000), speaking));
            let case = format!("{is_answered}, {late}, {speaks}");
            assert_eq!(asked, (403, 200, 200), "{case} {:?}", scene.world.logs());
            assert_eq!(scene.outcome(), (json!("leave"), before), "{case} {:?}", scene.world.logs());
            assert_eq!(scene.seen_by(&scene.two, &carol), json!("leave"), "{case}");
        }
    }
}

/// In a room that others of their server are in it may cite what is to be fetched first.
#[test]
fn who_leaves_while_their_join_is_judged_is_not_in_the_room() {
    let scene = scene("nothing");
    let carol = scene.restricts_to_club();
    let before = scene.two.get(&scene.bob, "/joined_rooms").1["joined_rooms"].clone();
    scene.world.cut("one.test", "two.test");
    assert_eq!(scene.world.run(scene.alice_speaks(0)), 200);
    scene.world.mend("one.test", "two.test");
    scene.fails_at(&["/make_leave/"]);
    scene.world.answer_late("one.test", "/get_missing_events/", LATE_MS);
    let (join, leave) = (scene.join(), scene.leave());
    let asked = scene.world.run(future::join(scene.asks(&join, 0), scene.asks(&leave, 1_000)));
    assert_eq!(asked, (403, 200), "{:?}", scene.world.logs());
    assert_eq!(scene.outcome(), (json!("leave"), before), "{:?}", scene.world.logs());
    assert_eq!(scene.seen_by(&scene.two, &carol), json!("leave"));
}

/// They are in it by that join then, and want to be.
#[test]
fn who_joins_again_when_their_join_has_come_in_is_in_the_room() {
    // Or the server is asked for the leave then.
    for (is_answered, late) in [(true, "/send_join/"), (false, "/send_join/"), (false, "/make_leave/")] {
        let scene = scene("nothing");
        let carol = scene.restricts_to_club();
        scene.lets_in_late(is_answered);
        scene.world.answer_late("one.test", late, LATE_MS);
        let (join, leave) = (scene.join(), scene.leave());
        let leaving = future::join(scene.asks(&leave, 1_000), scene.alice_speaks(6_000));
        let asked = scene.world.run(join3(scene.asks(&join, 0), leaving, scene.asks(&join, 8_000)));
        let case = format!("{is_answered}, {late}");
        assert_eq!((asked.1, asked.2), ((200, 200), 200), "{case} {:?}", scene.world.logs());
        assert_eq!(scene.outcome().0, json!("join"), "{case} {:?}", scene.world.logs());
        assert_eq!(scene.seen_by(&scene.two, &carol), json!("join"), "{case}");
    }
}

/// However close that is to the leave which takes their join back.
#[test]
fn who_joins_again_while_their_join_is_taken_back_is_told_what_they_are() {
    for turns in 0..30 {
        let scene = scene("nothing");
        let carol = scene.restricts_to_club();
        scene.lets_in_late(true);
        scene.world.answer_late("one.test", "/send_join/", LATE_MS);
        scene.world.interleave();
        let (join, leave) = (scene.join(), scene.leave());
        let leaving = future::join(scene.asks(&leave, 1_000), scene.alice_speaks(6_000));
        let joining_again = async {
            // When the answer to the first join has come.
            scene.world.sleep(2 * LATE_MS).await;
            for _ in 0..turns {
                yield_now().await;
            }
            scene.asks(&join, 0).await
        };
        let asked = scene.world.run(join3(scene.asks(&join, 0), leaving, joining_again));
        assert_eq!(asked.1, (200, 200), "{turns} {:?}", scene.world.logs());
        // A join that the leave comes before may be refused by the room.
        let membership = json!(if asked.2 == 200 { "join" } else { "leave" });
        assert_eq!(scene.outcome().0, membership, "{turns} {:?}", scene.world.logs());
        assert_eq!(scene.seen_by(&scene.two, &carol), membership, "{turns}");
    }
}

#[test]
fn who_has_nothing_to_do_with_a_room_cannot_leave_it() {
    let scene = scene("nothing");
    assert_eq!(scene.world.run(scene.asks(&scene.leave(), 0)), 403);
}
