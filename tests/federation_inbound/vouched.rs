//! What a resident server says of a room when it lets a user in is believed until the whole history shows something else.

use http::StatusCode;
use serde_json::{Value, json};
use verge::router::json_response;

use crate::{
    Scene,
    extremities::empower,
    joined_anew::bobs_word,
    scene,
    settling::{Known, lets_alice_in},
};

/// While Alice, who made the room, is not in it, Bob bans Dave, and Dave does not hear of it. Then Bob's server lets Alice in by a
/// state from before the ban, as by what it has been told itself Bob had no power to do that.
struct Misled {
    scene: Scene,
    dave: String,
    ban: Known,
    /// What Bob says after the ban, and what Dave says after that.
    heard: Known,
    said: Known,
}

impl Misled {
    /// Before all that so many messages are sent.
    fn new(version: &str, messages: usize) -> Self {
        let mut scene = scene(version);
        empower(&mut scene);
        for (number, sent) in scene.say(messages).chunks(50).enumerate() {
            let pdus: Vec<Value> = sent.iter().map(|(_, event)| event.clone()).collect();
            assert_eq!(scene.peer.send(&scene.a, &number.to_string(), &pdus).0, 200);
        }
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let join = scene.becomes(&dave, "join");
        scene.receives("join", &join);
        let (mut old, before) = (Vec::new(), scene.theirs.state.clone());
        let leave = scene.alice_leaves(&mut old);
        scene.theirs.advance(&leave);
        let ban = bobs_word(&mut scene, &dave, "ban");
        let heard = scene.says(&bob, "Dave is gone");
        let of_dave = ("m.room.member".to_owned(), dave.clone());
        old.push(scene.theirs.state.insert(of_dave.clone(), before[&of_dave].clone()).unwrap());
        let said = scene.says(&dave, "am I?");
        lets_alice_in(&scene, &[&said, &heard, &ban], &old);
        scene.alice_comes_back();
        let misled = Self { scene, dave, ban, heard, said };
        assert_eq!(misled.membership().as_deref(), Some("join"));
        misled
    }

    fn membership(&self) -> Option<String> {
        self.scene.a.membership(&self.scene.world, &self.scene.room, &self.dave)
    }

    /// Whether these are shown: the ban, what Bob says after it, and what Dave does.
    fn shows(&self) -> [bool; 3] {
        [&self.ban, &self.heard, &self.said].map(|event| self.scene.a.shows(&event.0))
    }
}

#[test]
fn a_ban_that_the_resident_server_did_not_know_of_is_found_in_the_history() {
    for version in ["10", "12"] {
        let mut misled = Misled::new(version, 250);
        let after = misled.scene.say(2);
        after.iter().for_each(|event| misled.scene.receives(&event.0, event));
        let soon = misled.scene.says(&misled.dave.clone(), "I am still here");
        misled.scene.receives("soon", &soon);
        misled.scene.an_hour_passes();
        assert_eq!(misled.membership().as_deref(), Some("join"), "somebody's word counts");
        assert!(misled.scene.a.shows(&soon.0));

        misled.scene.pages_back();
        assert_eq!(misled.membership().as_deref(), Some("ban"), "{:#?}", misled.scene.world.logs());
        assert_eq!(misled.shows(), [true, true, false]);
        misled.scene.is_shown(&after);
        assert!(!misled.scene.a.shows(&soon.0));
        misled.scene.rests_on_nothing_claimed();
        assert_eq!(misled.scene.rows("SELECT 1 FROM vouched_rooms"), 0);
    }
}

/// Nothing has happened while Alice was away: her server holds all that her join cites.
#[test]
fn a_ban_that_the_resident_server_did_not_know_of_is_found_where_nothing_is_lacking() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        empower(&mut scene);
        let dave = scene.peer.user("dave");
        let join = scene.becomes(&dave, "join");
        let before = scene.theirs.state.clone();
        let ban = bobs_word(&mut scene, &dave, "ban");
        [&join, &ban].into_iter().for_each(|event| scene.receives(&event.0, event));
        let is = |scene: &Scene| scene.a.membership(&scene.world, &scene.room, &dave);
        assert_eq!(is(&scene).as_deref(), Some("ban"));
        let mut old = vec![ban.1];
        let leave = scene.alice_leaves(&mut old);
        scene.theirs.advance(&leave);
        let of_dave = ("m.room.member".to_owned(), dave.clone());
        scene.theirs.state.insert(of_dave.clone(), before[&of_dave].clone());
        lets_alice_in(&scene, &[], &old);
        scene.alice_comes_back();
        scene.an_hour_passes();
        assert_eq!(is(&scene).as_deref(), Some("ban"));
        scene.rests_on_nothing_claimed();
    }
}

/// Nobody gives what is behind what Dave says, so that it is not known what the state was there. Then that comes by itself, and
/// something else is to be settled.
#[test]
fn the_resident_server_is_believed_where_history_is_lacking() {
    for version in ["10", "12"] {
        let mut misled = Misled::new(version, 3);
        let said = misled.said.1.clone();
        misled.scene.peer.answers(move |request| {
            let is_asked = request.uri().path().contains("/backfill/");
            is_asked.then(|| json_response(StatusCode::OK, &json!({ "pdus": [said] })))
        });
        misled.scene.pages_back();
        misled.scene.an_hour_passes();
        assert_eq!((misled.membership().as_deref(), misled.shows()), (Some("join"), [false, false, true]));
        assert_eq!(misled.scene.rows("SELECT 1 FROM events WHERE claimed"), 0);

        let bob = misled.scene.bob.clone();
        let mut altered = misled.scene.says(&bob, "what I said");
        altered.1["content"]["body"] = json!("what I never said");
        let late = [&misled.ban, &misled.heard, &altered];
        late.into_iter().for_each(|event| misled.scene.receives(&event.0, event));
        misled.scene.an_hour_passes();
        assert_eq!((misled.membership().as_deref(), misled.shows()), (Some("ban"), [true, true, false]));
        assert_eq!(misled.scene.rows("SELECT 1 FROM events WHERE claimed"), 0);
        assert_eq!(misled.scene.rows("SELECT 1 FROM vouched_rooms"), 0);
    }
}

/// It was soft-failed by what was certain, others have built upon it, and its sender has come back since.
#[test]
fn what_was_soft_failed_before_stays_hidden() {
    for version in ["10", "12"] {
        let mut scene = scene(version);
        empower(&mut scene);
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let join = scene.becomes(&dave, "join");
        let mut before = scene.theirs.clone();
        let kick = bobs_word(&mut scene, &dave, "leave");
        [&join, &kick].into_iter().for_each(|event| scene.receives(&event.0, event));
        let late = before.say(&scene.peer, &dave, "and another thing");
        scene.receives("late", &late);
        let upon = scene.theirs.say_upon(&scene.peer, &bob, "he is gone", &[&late.0, &kick.0]);
        scene.theirs.advance(&upon.0);
        let back = scene.becomes(&dave, "join");
        [&upon, &back].into_iter().for_each(|event| scene.receives(&event.0, event));
        scene.is_shown(&[upon, back]);
        let leave = scene.alice_leaves(&mut Vec::new());
        scene.theirs.advance(&leave);
        lets_alice_in(&scene, &[], &[]);
        scene.alice_comes_back();
        for _ in 0..20 {
            scene.an_hour_passes();
        }
        assert!(!scene.a.shows(&late.0), "{:#?}", scene.world.logs());
        assert_eq!(scene.rows("SELECT 1 FROM events WHERE soft_failed"), 1);
    }
}

/// Going through it would take too long.
#[test]
fn the_resident_server_is_believed_where_the_history_is_long() {
    let misled = Misled::new("12", 2_000);
    misled.scene.pages_back();
    assert_eq!(misled.scene.rows("SELECT 1 FROM gaps"), 0);
    misled.scene.an_hour_passes();
    assert_eq!((misled.membership().as_deref(), misled.shows()), (Some("join"), [true, true, true]));
    assert_eq!(misled.scene.rows("SELECT 1 FROM events WHERE claimed"), 0);
    assert_eq!(misled.scene.rows("SELECT 1 FROM vouched_rooms"), 0);
}
