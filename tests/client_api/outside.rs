//! Invites to rooms that this server is in, which came before the events that they stand on.

use std::rc::Rc;

use http::StatusCode;
use serde_json::{Value, json};
use verge::router::json_response;

use crate::{
    common::network::World,
    home::{Home, User, quote, refused},
};

const OPEN: [(&str, &str); 1] = [("REGISTRATION", "open")];

/// Alice's private room at one.test with Bob of two.test in it, and Dave of two.test invited from one.test, of which
/// two.test has nothing but the invite itself.
struct Scene {
    one: Home,
    two: Home,
    alice: User,
    dave: User,
    room: String,
}

fn scene(version: &str, dave_was_in: bool) -> Scene {
    let world = World::new();
    let (one, two) = (Home::with(&world, "one.test", &OPEN), Home::with(&world, "two.test", &OPEN));
    let (alice, bob, dave) = (one.register("alice"), two.register("bob"), two.register("dave"));
    let room = one.room(&alice, json!({ "preset": "private_chat", "room_version": version, "invite": [bob.id] }));
    let path = |what: &str| format!("/rooms/{}/{what}", quote(&room));
    assert_eq!(two.post(&bob, &path("join"), json!({})).0, 200, "{:?}", world.logs());
    world.settle();
    if dave_was_in {
        assert_eq!(two.post(&bob, &path("invite"), json!({ "user_id": dave.id })).0, 200);
        assert_eq!(two.post(&dave, &path("join"), json!({})).0, 200);
        assert_eq!(two.post(&dave, &path("leave"), json!({})).0, 200);
        world.settle();
    }
    refuse(&two, "two.test", Some("/v1/send/"));
    one.say(&alice, &room, "lost on the way", "t1");
    world.settle();
    let (status, answer) = one.post(&alice, &path("invite"), json!({ "user_id": dave.id }));
    assert_eq!(status, 200, "{answer} {:?}", world.logs());
    world.settle();
    let scene = Scene { one, two, alice, dave, room };
    assert!(scene.invites()[&scene.room].is_object(), "{:?}", world.logs());
    scene
}

/// From now on `home` answers 503 to requests whose path holds `part`.
fn refuse(home: &Home, name: &str, part: Option<&'static str>) {
    let server = Rc::clone(&home.server);
    home.world.connect(
        name,
        Rc::new(move |request| {
            let server = Rc::clone(&server);
            Box::pin(async move {
                if part.is_some_and(|part| request.uri().path().contains(part)) {
                    return json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "errcode": "M_UNKNOWN" }));
                }
                server.handle(request).await
            })
        }),
    );
}

impl Scene {
    fn path(&self, what: &str) -> String {
        format!("/rooms/{}/{what}", quote(&self.room))
    }

    fn invites(&self) -> Value {
        self.two.sync(&self.dave, "")["rooms"]["invite"].clone()
    }

    /// Dave's membership as one.test has it.
    fn membership(&self) -> Value {
        self.one.get(&self.alice, &self.path(&format!("state/m.room.member/{}", quote(&self.dave.id)))).1["membership"]
            .clone()
    }

    /// Whatever was lost on the way arrives.
    fn mend(&self) {
        refuse(&self.two, "two.test", None);
        self.one.say(&self.alice, &self.room, "arrives again", "t2");
        for home in [&self.one, &self.two] {
            home.world.advance(3_600_000);
            home.world.run(home.server.scheduled());
            home.world.settle();
        }
    }
}

#[test]
fn an_invite_that_the_room_here_does_not_know_can_be_rejected() {
    for version in ["10", "12"] {
        for (was_in, away) in [(false, false), (true, false), (false, true), (true, true)] {
            let scene = scene(version, was_in);
            let case = format!("version {version}, was in: {was_in}, inviter's server away: {away}");
            let before = scene.two.sync(&scene.dave, "");
            if away {
                scene.two.world.disconnect("one.test");
            }
            let (status, answer) = scene.two.post(&scene.dave, &scene.path("leave"), json!({}));
            assert_eq!(status, 200, "{case}: {answer}");
            assert_eq!(scene.invites(), json!({}), "{case}");
            let since = before["next_batch"].as_str().unwrap();
            let after = scene.two.sync(&scene.dave, &format!("since={since}"));
            let told = after["rooms"]["leave"][&scene.room]["timeline"]["events"].as_array().unwrap().clone();
            let told = told.last().unwrap();
            assert_eq!((&told["content"]["membership"], &told["state_key"]), (&json!("leave"), &json!(scene.dave.id)));
            if !away {
                assert_eq!(scene.membership(), "leave", "{case}");
                scene.mend();
                assert_eq!(scene.invites(), json!({}), "{case}: the invite comes back {:?}", scene.one.world.logs());
            }
        }
    }
}

#[test]
fn an_invite_that_the_room_here_does_not_know_can_be_accepted() {
    for version in ["10", "12"] {
        for was_in in [false, true] {
            let scene = scene(version, was_in);
            let (status, answer) = scene.two.post(&scene.dave, &scene.path("join"), json!({}));
            assert_eq!(status, 200, "{version}, {was_in}: {answer} {:?}", scene.two.world.logs());
            scene.two.world.settle();
            assert_eq!(scene.membership(), "join");
            assert_eq!(scene.two.get(&scene.dave, "/joined_rooms").1["joined_rooms"], json!([scene.room]));
            assert_eq!(scene.invites(), json!({}));
        }
    }
}

#[test]
fn without_an_invite_nobody_comes_into_a_private_room_that_is_here() {
    let scene = scene("12", false);
    let erin = scene.two.register("erin");
    let join = format!("/join/{}?via=one.test", quote(&scene.room));
    refused(&scene.two.post(&erin, &join, json!({})), 403, "M_FORBIDDEN");
    let asked = scene.two.world.traffic();
    assert!(!asked.iter().any(|sent| sent.line.contains("make_join") && sent.line.contains("erin")));
}
