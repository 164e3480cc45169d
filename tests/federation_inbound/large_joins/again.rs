//! Joins of large rooms that their users ask for again, or leave, and that somebody is at.

use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::{join, join3};
use http::StatusCode;
use serde_json::json;
use verge::{
    federation::outbound::membership,
    matrix::{
        identifiers::{EventId, ServerName},
        json::Object,
    },
    platform::Clock,
    router::json_response,
    store::large_joins::ClaimedEvent,
};

use super::{Large, large};
use crate::common::peer::Peer;

/// Longer than a join waits for whoever was at it.
const CUT_OFF_MS: i64 = 21_000;

type Joined = Result<EventId, (u16, &'static str)>;

impl Large {
    async fn joins(&self) -> Joined {
        self.joins_through("peer.example").await
    }

    async fn joins_through(&self, server: &str) -> Joined {
        let via = vec![ServerName::parse(server).unwrap()];
        let joined = membership::join(&self.b, &self.bob, &self.room_id, via, Object::new()).await;
        joined.map_err(|error| (error.status.as_u16(), error.errcode))
    }

    /// How often the peer was asked to let somebody in.
    fn asked(&self) -> usize {
        self.world.traffic().iter().filter(|sent| sent.line.contains("/v2/send_join/")).count()
    }

    /// How often the peer was told that somebody leaves.
    fn left(&self) -> usize {
        self.world.traffic().iter().filter(|sent| sent.line.contains("/v2/send_leave/")).count()
    }

    fn is_in(&self) -> bool {
        self.b.membership(&self.world, &self.room_id, self.bob.as_str()).as_deref() == Some("join")
    }

    /// From now on an answer takes some minutes to come, of which that for what is not staged yet takes most of the first.
    fn drips(&self) {
        self.world.drip("peer.example", "/v2/send_join/", 64 * 1_024, 2_000);
    }

    /// From now on an answer comes at once, to the end or not.
    fn answers(&self, to_the_end: bool) {
        let (host, part, piece, ms) = ("peer.example", "/v2/send_join/", 64 * 1_024, 1);
        match to_the_end {
            true => self.world.drip(host, part, piece, ms),
            false => self.world.break_off(host, part, piece, ms),
        }
    }

    /// From now on the host lets whoever asks it wait for so many milliseconds, and then fails.
    fn fails_after(&self, host: &str, ms: u32) {
        let clock = self.world.clone();
        self.world.connect(
            host,
            Rc::new(move |_| {
                let clock = clock.clone();
                Box::pin(async move {
                    clock.sleep(ms).await;
                    json_response(StatusCode::BAD_GATEWAY, &json!({}))
                })
            }),
        );
    }

    /// From now on this is what the server answers whenever it is to let somebody in, be it that it has let them in.
    fn answers_joins(&self, server: &str, lets_in: bool, status: StatusCode, answer: &'static str) {
        let host = self.world.host(server).unwrap();
        self.world.connect(
            server,
            Rc::new(move |request| {
                let is_sent = request.uri().path().contains("/send_join/");
                let answering = (lets_in || !is_sent).then(|| host(request));
                Box::pin(async move {
                    match answering {
                        Some(answering) if !is_sent => return answering.await,
                        Some(answering) => drop(answering.await),
                        None => {}
                    }
                    let mut response = http::Response::new(Bytes::from_static(answer.as_bytes()));
                    *response.status_mut() = status;
                    response
                })
            }),
        );
    }

    /// Bob leaves while the peer is out of reach.
    fn leaves_unheard(&self) {
        self.world.cut("b.example", "peer.example");
        self.world.run(membership::leave(&self.b, &self.bob, &self.room_id, Object::new())).unwrap();
        self.world.mend("b.example", "peer.example");
    }

    async fn triggers(&self, minutes: u32) {
        for _ in 0..4 * minutes {
            self.world.sleep(15_000).await;
            self.b.scheduled().await;
        }
    }
}

/// A large room whose join was cut off while its answer was read.
fn cut_off() -> Large {
    cut_off_of(false)
}

/// The same, where the user has left since, and whoever comes into the room finds them in it.
fn left_and_found() -> Large {
    let mut large = cut_off();
    large.leaves_unheard();
    large.room.adds_who_came_in();
    large.room.opens();
    large
}

/// Carol of our server comes into the room.
async fn carol_joins(large: &Large) {
    let carol = large.b.user(&large.world, "carol");
    let via = vec![ServerName::parse("peer.example").unwrap()];
    membership::join(&large.b, &carol, &large.room_id, via, Object::new()).await.unwrap();
}

/// The same, where the user has joined upon an invite or without one.
fn cut_off_of(is_invited: bool) -> Large {
    let large = large(5_000);
    large.room.opens();
    if is_invited {
        large.room.invites(&large.b, large.bob.as_str());
    }
    assert!(large.join(&large.b.with_wall(if is_invited { 8 } else { 9 })).is_err());
    assert_eq!(large.count("large_joins WHERE NOT is_read"), 1);
    large
}

/// A room of which a batch of 1,000 members comes in some minutes.
fn slow() -> Large {
    let mut large = large(0);
    let auth = large.room.auth();
    let auth: Vec<&str> = auth.iter().map(String::as_str).collect();
    for at in 0..2_900 {
        let (user, reason) = (format!("@member{at}:peer.example"), "x".repeat(615));
        large.room.event(&user, "m.room.member", &user, json!({ "membership": "join", "reason": reason }), &auth);
    }
    large.room.opens();
    large.world.drip("peer.example", "/v2/send_join/", 8 * 1_024, 1_000);
    large
}

const LATER: Joined = Err((504, "M_UNKNOWN"));

/// Clients repeat what is answered by a 504, and what is cut off.
#[test]
fn who_asks_again_is_answered_by_the_join_that_goes_on() {
    let large = cut_off();
    let staged = large.count("claimed_events");
    // As far as can be told somebody is at it.
    assert_eq!((large.join(&large.b), large.asked()), (LATER, 1));
    large.world.advance(CUT_OFF_MS);
    // And now whoever asks is, without another beginning, until that is cut off as well.
    assert!(large.join(&large.b.with_wall(17)).is_err());
    assert_eq!((large.count("large_joins"), large.asked()), (1, 2));
    assert!((1..large.count("claimed_events")).contains(&staged), "{staged}");
    large.world.advance(CUT_OFF_MS);
    large.join(&large.b).unwrap();
    assert!(large.is_in());
    large.world.settle();
    assert_eq!(large.b.state(&large.world, &large.room_id).len(), 5_005);
    large.assert_nothing_left();
}

/// What is staged whole needs no server.
#[test]
fn who_asks_again_goes_on_with_what_was_answered() {
    let large = cut_off();
    while large.count("large_joins WHERE is_read") == 0 {
        large.world.advance(3 * 60 * 1_000);
        let server = large.b.with_wall(17);
        large.world.run(server.sweep_large_joins(&server.meter.budget(13)));
    }
    large.world.disconnect("peer.example");
    large.world.advance(CUT_OFF_MS);
    large.join(&large.b).unwrap();
    assert!(large.is_in());
}

/// It has let the user in: they would be in the room for all others, and what is staged be lost.
#[test]
fn a_join_whose_server_is_away_for_a_moment_is_kept() {
    let large = cut_off();
    let staged = large.count("claimed_events");
    large.world.cut("b.example", "peer.example");
    large.world.advance(CUT_OFF_MS);
    assert_eq!((large.join(&large.b), large.count("claimed_events")), (LATER, staged));
    large.world.mend("b.example", "peer.example");
    large.world.run(large.triggers(10));
    assert!(large.is_in());
    assert_eq!(large.asked(), 3);
    large.assert_nothing_left();
}

/// Nor is it lost where another server is known and helps no more: it is dead, or has no place in the room to give, or gives one and fails,
/// or answers what nobody can use.
#[test]
fn a_join_whose_server_is_away_is_kept_until_another_one_helps() {
    for other in ["dead", "without a place", "failing", "breaking off", "without a state", "of no room"] {
        let large = cut_off();
        match other {
            "dead" => {}
            "without a place" => large.fails_after("other.example", 1_000),
            _ => large.room.opens_at(&Peer::new(&large.world, "other.example")),
        }
        let answers = |status, answer| large.answers_joins("other.example", false, status, answer);
        match other {
            "failing" => answers(StatusCode::BAD_GATEWAY, "{}"),
            "breaking off" => {
                answers(StatusCode::OK, r#"{ "state": [], "auth_chain": [] }"#);
                large.world.break_off("other.example", "/v2/send_join/", 8, 1);
            }
            "without a state" => answers(StatusCode::OK, "{}"),
            "of no room" => answers(StatusCode::OK, r#"{ "state": [], "auth_chain": [] }"#),
            _ => {}
        }
        let (staged, asked_before) = (large.count("claimed_events"), large.asked());
        large.world.cut("b.example", "peer.example");
        large.world.advance(CUT_OFF_MS);
        let before = large.world.traffic().len();
        let asked = (large.join_via(&large.b, &["other.example"]), large.count("claimed_events"));
        assert_eq!(asked, (LATER, staged), "{other}");
        // Who is away is not asked twice.
        let sent = large.world.traffic().split_off(before);
        assert_eq!(sent.iter().filter(|sent| sent.to == "peer.example").count(), 1, "{other} {sent:?}");
        large.world.mend("b.example", "peer.example");
        large.world.run(large.triggers(10));
        assert!(large.is_in(), "{other}");
        let of_other = usize::from(!matches!(other, "dead" | "without a place"));
        assert_eq!(large.asked() - asked_before, 2 + of_other, "{other}");
        large.assert_nothing_left();
    }
}

/// Both an answer to who asks again and the first one.
#[test]
fn a_join_whose_server_goes_away_while_it_answers_is_kept() {
    for is_first in [false, true] {
        let large = if is_first { large(5_000) } else { cut_off() };
        large.room.opens();
        let staged = large.count("claimed_events");
        large.answers(false);
        large.world.advance(CUT_OFF_MS);
        assert_eq!(large.join(&large.b), LATER, "{is_first}");
        assert!(large.count("claimed_events") > staged, "{is_first}");
        large.answers(true);
        large.world.run(large.triggers(10));
        assert!(large.is_in(), "{is_first}");
        large.assert_nothing_left();
    }
}

/// Whether they are asked because the server did not answer again, or because its first answer broke off.
#[test]
fn a_join_whose_answer_breaks_off_gives_way_to_another_one() {
    for is_first in [false, true] {
        let large = if is_first { large(5_000) } else { cut_off() };
        large.room.opens();
        large.room.opens_at(&Peer::new(&large.world, "other.example"));
        large.answers(false);
        large.world.advance(CUT_OFF_MS);
        large.join_via(&large.b, &["peer.example", "other.example"]).unwrap();
        assert!(large.is_in(), "{is_first}");
        large.assert_nothing_left();
    }
}

/// A server that let the user in and then answers no more does not keep them from asking another one.
#[test]
fn a_join_that_gets_no_answer_gives_way_to_another_one() {
    let large = cut_off();
    large.room.opens_at(&Peer::new(&large.world, "other.example"));
    large.world.disconnect("peer.example");
    large.world.advance(CUT_OFF_MS);
    large.join_via(&large.b, &["other.example"]).unwrap();
    assert!(large.is_in());
    large.assert_nothing_left();
}

/// Also where the user names none: here the ID of the room does.
#[test]
fn a_join_that_gets_no_answer_gives_way_to_a_server_that_nobody_names() {
    let large = large(5_000);
    large.room.opens_at(&Peer::new(&large.world, "other.example"));
    // Cut off as in the others, by one call later: where this server is takes it.
    assert!(large.join_via(&large.b.with_wall(10), &["other.example"]).is_err());
    assert_eq!(large.count("large_joins WHERE NOT is_read"), 1);
    large.room.opens();
    large.world.disconnect("other.example");
    large.world.advance(CUT_OFF_MS);
    large.join_via(&large.b, &[]).unwrap();
    assert!(large.is_in());
    large.assert_nothing_left();
}

#[test]
fn another_user_s_join_is_their_own() {
    let large = cut_off();
    let erin = Large { bob: large.b.user(&large.world, "erin"), ..large };
    erin.join(&erin.b).unwrap();
    assert!(erin.is_in());
}

/// Those that begin before either is known to be large.
#[test]
fn of_two_joins_of_one_user_one_goes_on() {
    let large = large(5_000);
    large.room.opens();
    large.drips();
    let later = async {
        large.world.sleep(1_000).await;
        large.joins().await
    };
    let watching = async {
        let mut most = 0;
        while large.count("pending_joins") > 0 || most == 0 {
            most = most.max(large.count("large_joins"));
            large.world.sleep(1_000).await;
        }
        most
    };
    let (first, second, most) = large.world.run(join3(large.joins(), later, watching));
    assert_eq!((first.is_ok(), second, most), (true, LATER, 1));
    large.world.settle();
    assert!(large.is_in());
    large.assert_nothing_left();
}

/// Before its answer is known to be large, and after.
#[test]
fn who_leaves_while_a_large_answer_is_read_is_not_in_the_room() {
    for is_staged in [false, true] {
        for is_begun_twice in [false, true] {
            let large = large(5_000);
            large.room.opens();
            large.drips();
            let again = async {
                large.world.sleep(1_000).await;
                if is_begun_twice { large.joins().await } else { LATER }
            };
            let leaving = async {
                large.world.sleep(10_000).await;
                while is_staged && large.count("large_joins") == 0 {
                    large.world.sleep(1_000).await;
                }
                membership::leave(&large.b, &large.bob, &large.room_id, Object::new()).await.unwrap();
                for _ in 0..10 {
                    large.triggers(1).await;
                    // Nobody goes on with it, should whoever is at it be cut off.
                    assert_eq!(large.count("large_joins WHERE begun_ts > 0"), 0);
                }
            };
            let (first, second, ()) = large.world.run(join3(large.joins(), again, leaving));
            let case = format!("{is_staged}, {is_begun_twice}");
            assert_eq!(first, Err((403, "M_FORBIDDEN")), "{case}");
            assert!(second.is_err(), "{case}");
            large.world.settle();
            let membership = large.b.database.rows("SELECT membership FROM local_memberships");
            assert_eq!((membership, large.count("rooms")), (vec![vec!["leave".to_owned()]], 0), "{case}");
            large.assert_nothing_left();
        }
    }
}

/// What the server that let them in answers then, or does not, is no reason to ask another one.
#[test]
fn who_leaves_while_a_join_is_taken_up_again_is_not_in_the_room() {
    let large = cut_off();
    large.room.opens_at(&Peer::new(&large.world, "other.example"));
    large.world.advance(CUT_OFF_MS);
    large.fails_after("peer.example", 20_000);
    let leaving = async {
        large.world.sleep(10_000).await;
        membership::leave(&large.b, &large.bob, &large.room_id, Object::new()).await.unwrap();
    };
    let (joined, ()) = large.world.run(join(large.joins_through("other.example"), leaving));
    assert_eq!(joined, Err((403, "M_FORBIDDEN")), "{:?}", large.world.logs());
    large.world.settle();
    assert!(!large.is_in());
    assert_eq!(large.count("rooms"), 0);
    large.assert_nothing_left();
}

#[test]
fn who_leaves_while_others_are_asked_is_not_in_the_room() {
    let large = cut_off();
    large.world.cut("b.example", "peer.example");
    large.fails_after("other.example", 20_000);
    large.world.advance(CUT_OFF_MS);
    let leaving = async {
        large.world.sleep(10_000).await;
        large.world.mend("b.example", "peer.example");
        membership::leave(&large.b, &large.bob, &large.room_id, Object::new()).await.unwrap();
    };
    let (joined, ()) = large.world.run(join(large.joins_through("other.example"), leaving));
    assert_eq!(joined, Err((403, "M_FORBIDDEN")), "{:?}", large.world.logs());
    large.world.settle();
    assert_eq!((large.is_in(), large.count("rooms")), (false, 0));
    large.assert_nothing_left();
}

/// The server that has let them in hears of it, though it could not when they left. An invite that comes later is none of the join's.
#[test]
fn the_trigger_leaves_a_room_whose_user_has_left_while_they_join() {
    for is_invited_again in [false, true] {
        let large = cut_off();
        large.leaves_unheard();
        if is_invited_again {
            large.room.invites(&large.b, large.bob.as_str());
        }
        assert_eq!(large.left(), 0);
        large.world.run(large.triggers(10));
        assert_eq!(large.left(), usize::from(!is_invited_again), "{:?}", large.world.logs());
        assert_eq!(large.count("rooms"), 0);
        large.assert_nothing_left();
    }
}

/// Also where another server has let them in by another join, and did not say so: nobody remembers that.
#[test]
fn the_trigger_leaves_a_room_whose_user_came_in_by_another_join() {
    let large = cut_off();
    large.room.opens_at(&Peer::new(&large.world, "other.example"));
    large.answers_joins("other.example", true, StatusCode::BAD_GATEWAY, "{}");
    large.world.cut("b.example", "peer.example");
    large.world.advance(CUT_OFF_MS);
    assert_eq!(large.join_via(&large.b, &["other.example"]), LATER);
    large.leaves_unheard();
    assert_eq!(large.left(), 0);
    large.world.run(large.triggers(10));
    assert_eq!(large.left(), 1, "{:?}", large.world.logs());
    large.assert_nothing_left();
}

/// Also where somebody else here has come into the room meanwhile, and finds them in it by the join that they have left.
#[test]
fn the_trigger_has_a_user_leave_whom_others_have_found_in_the_room() {
    let large = left_and_found();
    large.world.run(carol_joins(&large));
    assert!(large.is_in());
    large.world.run(large.triggers(10));
    assert!(!large.is_in(), "{:?}", large.world.logs());
    large.assert_nothing_left();
}

/// But not where they are found there, and say that they want to be, while the server that let them in is asked for the leave.
#[test]
fn the_trigger_has_nobody_leave_who_comes_back_meanwhile() {
    let large = left_and_found();
    large.world.answer_late("peer.example", "/make_leave/", 20_000);
    let times_asked = || large.world.traffic().iter().filter(|sent| sent.line.contains("/make_leave/")).count();
    let before = times_asked();
    let coming_back = async {
        while times_asked() == before {
            large.world.sleep(1_000).await;
        }
        carol_joins(&large).await;
        assert!(large.b.store.stay(&large.bob, &large.room_id).await.unwrap());
    };
    large.world.run(join(large.triggers(10), coming_back));
    assert!(large.is_in(), "{:?}", large.world.logs());
    assert_eq!(large.left(), 0);
    large.assert_nothing_left();
}

/// However late the trigger comes to it: what is noted of a leave is forgotten after ten minutes.
#[test]
fn the_trigger_leaves_a_room_whose_user_left_long_ago() {
    let large = cut_off();
    large.leaves_unheard();
    large.world.advance(11 * 60 * 1_000);
    large.b.database.forget_old(large.world.now_ms());
    assert_eq!(large.count("pending_joins"), 0);
    large.world.run(large.triggers(1));
    assert_eq!(large.left(), 1, "{:?}", large.world.logs());
    large.assert_nothing_left();
}

/// They were told that they would be in it, and could not leave it. An invite is still theirs to answer.
#[test]
fn the_trigger_leaves_a_room_whose_join_is_given_up() {
    // And whether that was begun before, and not brought to its end.
    for (is_invited, is_begun) in [(false, false), (true, false), (false, true), (true, true)] {
        let large = cut_off_of(is_invited);
        large.world.advance(3 * 60 * 60 * 1_000);
        if is_begun {
            large.b.database.rows("UPDATE large_joins SET begun_ts = 0");
        }
        large.world.run(large.triggers(1));
        assert_eq!(large.left(), usize::from(!is_invited), "{:?}", large.world.logs());
        large.assert_nothing_left();
    }
}

/// Be it that the server answers late what they are in the room by.
#[test]
fn the_trigger_does_not_leave_a_room_into_which_its_user_has_come_meanwhile() {
    let large = cut_off();
    large.room.opens_at(&Peer::new(&large.world, "other.example"));
    large.world.answer_late("peer.example", "/make_leave/", 15_000);
    large.world.advance(3 * 60 * 60 * 1_000);
    let joining = async {
        large.world.sleep(5_000).await;
        large.joins_through("other.example").await
    };
    let ((), joined) = large.world.run(join(large.b.scheduled(), joining));
    joined.unwrap();
    large.world.run(large.triggers(10));
    assert_eq!((large.left(), large.is_in()), (0, true), "{:?}", large.world.logs());
    large.assert_nothing_left();
}

/// They were told that they would be in it, and nobody goes on with that.
#[test]
fn who_asks_again_and_is_let_in_by_nobody_is_not_in_the_room() {
    for is_invited in [false, true] {
        let large = cut_off_of(is_invited);
        large.answers_joins("peer.example", true, StatusCode::FORBIDDEN, "{}");
        large.world.advance(CUT_OFF_MS);
        let joined = large.join(&large.b);
        assert!(joined.is_err() && joined != LATER, "{joined:?}");
        large.world.run(large.triggers(10));
        assert_eq!(large.left(), usize::from(!is_invited), "{:?}", large.world.logs());
        large.assert_nothing_left();
    }
}

/// What one server has answered is not taken for another one's, should forgetting it have failed.
#[test]
fn a_join_that_is_not_forgotten_yet_is_not_begun_again() {
    let large = cut_off();
    large.world.advance(CUT_OFF_MS);
    let (store, now) = (&large.b.store, large.world.now_ms());
    large.world.run(async {
        let taken = store.take_large_join(now, now + CUT_OFF_MS).await.unwrap().unwrap();
        large.b.database.rows("UPDATE large_joins SET begun_ts = 0");
        assert!(!store.begin_large_join(&taken, now).await.unwrap());
    });
    assert_eq!(large.count("large_joins WHERE begun_ts > 0"), 0);
}

/// A server that lets its user wait leaves them time to ask another one.
#[test]
fn the_trigger_asks_a_server_that_does_not_answer_less_and_less_often() {
    let large = cut_off();
    large.fails_after("peer.example", 100_000);
    let before = large.asked();
    for minute in 0..60 {
        large.world.run(large.triggers(1));
        // What others send of the room is staged all the time.
        let now = large.world.now_ms();
        assert_eq!(large.count(&format!("pending_joins WHERE until_ts > {now}")), 1, "{minute}");
    }
    let asked = large.asked() - before;
    assert!((6..=15).contains(&asked), "{asked}");
}

/// Nor does one that lets itself be read for minutes and then breaks off: what it takes is no part of the pause, whoever asked it.
#[test]
fn between_two_attempts_there_is_time_to_ask_another_server() {
    for attempt in ["the first", "the user's next", "the trigger's"] {
        let is_first = attempt == "the first";
        let large = if is_first { large(5_000) } else { cut_off() };
        large.room.opens();
        large.room.opens_at(&Peer::new(&large.world, "other.example"));
        match is_first {
            true => large.answers(false),
            // A byte just before each would be too late.
            false => large.world.drip("peer.example", "/v2/send_join/", 1, 119_000),
        }
        large.world.advance(CUT_OFF_MS);
        match attempt {
            "the trigger's" => large.world.run(large.b.scheduled()),
            _ => assert_eq!(large.join(&large.b), LATER, "{attempt}"),
        }
        let asked = large.asked();
        large.world.run(large.triggers(1));
        assert_eq!(large.asked(), asked, "{attempt}");
        large.join_via(&large.b, &["other.example"]).unwrap();
        assert!(large.is_in(), "{attempt}");
        large.assert_nothing_left();
    }
}

/// Nobody else begins with it while bytes come, be it ever so slowly: a batch may take longer than any other step.
#[test]
fn an_answer_that_is_being_read_is_not_asked_for_again() {
    let large = slow();
    let (joined, ()) = large.world.run(join(large.joins(), large.triggers(10)));
    assert_eq!((joined.is_ok(), large.asked()), (true, 1), "{:?}", large.world.logs());
    large.world.settle();
    assert_eq!(large.b.state(&large.world, &large.room_id).len(), 2_905);
    large.assert_nothing_left();
}

/// Nobody would forget it.
#[test]
fn of_a_join_that_has_ended_no_more_is_staged() {
    let large = cut_off();
    large.world.advance(CUT_OFF_MS);
    let (store, now) = (&large.b.store, large.world.now_ms());
    large.world.run(async {
        let taken = store.take_large_join(now, now + CUT_OFF_MS).await.unwrap().unwrap();
        store.end_large_join(&taken.join_id).await.unwrap();
        let late = [ClaimedEvent { event: taken.join.clone(), is_state: true }];
        store.stage_claimed(&large.world, &taken.join_id, &late, &[]).await.unwrap();
    });
    assert_eq!(large.count("claimed_events"), 0);
}

/// However it comes to it that two read the answer, one of them takes the room over.
#[test]
fn whoever_is_overtaken_in_reading_an_answer_leaves_nothing_behind() {
    let large = slow();
    let overtaking = async {
        while large.count("large_joins") == 0 {
            large.world.sleep(1_000).await;
        }
        large.b.database.rows("UPDATE large_joins SET lease_until = 0");
        large.b.scheduled().await;
    };
    let (joined, ()) = large.world.run(join(large.joins(), overtaking));
    assert_eq!((joined.is_ok(), large.asked()), (true, 2));
    large.world.settle();
    assert!(large.is_in());
    assert_eq!(large.b.state(&large.world, &large.room_id).len(), 2_905, "{:?}", large.world.logs());
    large.assert_nothing_left();
}
