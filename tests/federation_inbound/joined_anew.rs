//! What a claim had hidden comes to light when the room is joined anew, also where others have built upon it.

use std::{cell::Cell, rc::Rc};

use http::Method;
use serde_json::{Value, json};

use crate::{
    Scene,
    common::peer::{encode, request},
    extremities::empower,
    scene,
    settling::{Known, claims_what_is_old, lets_alice_in},
};

/// By what Bob's server claims before the edge of a gap, what Dave says is shown to nobody.
struct Hidden {
    scene: Scene,
    dave: String,
    /// What Bob says at the edge, and on top of it.
    edge: Known,
    heard: Known,
    /// What Dave says.
    said: Known,
    /// State events of before, and in the gap.
    old: Vec<Value>,
}

impl Hidden {
    /// Dave joined in the gap, and by the claim he has not.
    fn rejected(version: &str) -> Self {
        let mut scene = scene(version);
        let (mut old, bob, dave) = (scene.state(), scene.bob.clone(), scene.peer.user("dave"));
        let events = [scene.says(&bob, "lost"), scene.becomes(&dave, "join"), scene.says(&bob, "the edge")];
        claims_what_is_old(&scene, &events, &old, &Rc::new(Cell::new(false)));
        let heard = scene.says(&bob, "on top of it");
        scene.receives("heard", &heard);
        let said = scene.says(&dave, "am I heard?");
        scene.receives("said", &said);
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE provisional"), 1);
        let [_, join, edge] = events;
        old.push(join.1);
        Self { scene, dave, edge, heard, said, old }
    }

    /// In the gap Dave was banned, and came back, and by the claim he is banned. What he says goes on from before that.
    fn soft_failed(version: &str) -> Self {
        let mut scene = scene(version);
        empower(&mut scene);
        let (bob, dave) = (scene.bob.clone(), scene.peer.user("dave"));
        let first = scene.becomes(&dave, "join");
        scene.receives("join", &first);
        let mut before = scene.theirs.clone();
        let lost = scene.says(&bob, "lost");
        let mut old = scene.state();
        let ban = bobs_word(&mut scene, &dave, "ban");
        let claimed = scene.state();
        let events = [
            lost,
            ban,
            bobs_word(&mut scene, &dave, "leave"),
            scene.becomes(&dave, "join"),
            scene.says(&bob, "the edge"),
        ];
        claims_what_is_old(&scene, &events, &claimed, &Rc::new(Cell::new(false)));
        let heard = scene.says(&bob, "on top of it");
        scene.receives("heard", &heard);
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("ban"));
        let said = before.say(&scene.peer, &dave, "am I heard?");
        scene.receives("said", &said);
        assert_eq!(scene.rows("SELECT 1 FROM events WHERE soft_failed AND claimed"), 1);
        let [_, ban, unban, join, edge] = events;
        old.extend([ban.1, unban.1, join.1]);
        Self { scene, dave, edge, heard, said, old }
    }

    /// Bob says something on top of what is hidden, and of `cited`, which is shown.
    fn is_built_upon(&mut self, cited: &str) -> Known {
        let Self { scene, heard, .. } = self;
        let last = scene.theirs.say_upon(&scene.peer, &scene.bob, "on top of that", &[cited, &heard.0]);
        scene.theirs.advance(&last.0);
        scene.receives("last", &last);
        assert!(scene.a.shows(&last.0), "{:#?}", scene.world.logs());
        last
    }

    /// Alice, who is alone here, leaves and comes back, and somebody pages back through the room.
    fn is_found_when_alice_is_back(&mut self, last: &Known) {
        let Self { scene, dave, edge, heard, said, old } = self;
        let shown = [said, last].map(|event| scene.a.shows(&event.0));
        assert_eq!(shown, [false, true]);
        let leave = scene.alice_leaves(old);
        scene.theirs.advance(&leave);
        lets_alice_in(scene, &[last, said, heard, edge], old);
        scene.alice_comes_back();
        assert_eq!(scene.a.membership(&scene.world, &scene.room, dave).as_deref(), Some("join"));
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE provisional"), 0);
        let wanted = [&last.0, &said.0, &heard.0, &edge.0];
        let found: Vec<String> = zoe_reads(scene).into_iter().filter(|id| wanted.contains(&id)).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), wanted, "{:#?}", scene.world.logs());
    }
}

/// Bob makes Dave's membership this one.
pub(crate) fn bobs_word(scene: &mut Scene, dave: &str, membership: &str) -> Known {
    // Of two that conflict the later one counts.
    scene.world.advance(1_000);
    let fields = json!({ "type": "m.room.member", "state_key": dave, "content": { "membership": membership } });
    let mut draft = scene.theirs.draft(scene.world.now_ms(), &scene.bob, fields);
    let now = scene.theirs.state_id("m.room.member", dave).unwrap();
    draft["auth_events"].as_array_mut().unwrap().push(json!(now));
    let (id, event) = scene.peer.sign(&scene.theirs.version, draft);
    scene.theirs.state.insert(("m.room.member".to_owned(), dave.to_owned()), event.clone());
    scene.theirs.advance(&id);
    (id, event)
}

/// Zoe joins, and reads what was said in the room, the newest first: the IDs of the events.
fn zoe_reads(scene: &Scene) -> Vec<String> {
    let client = |method, path: String, token: &str, body: &str| {
        let authorization = format!("Bearer {token}");
        let authorizations: &[&str] = if token.is_empty() { &[] } else { &[&authorization] };
        let request = request(method, &format!("/_matrix/client/v3{path}"), authorizations, body.to_owned());
        let (status, answer) = scene.peer.ask(&scene.a, request);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    };
    let zoe = json!({ "username": "zoe", "password": "secret", "auth": { "type": "m.login.dummy" } }).to_string();
    let zoe = client(Method::POST, "/register".to_owned(), "", &zoe);
    let (token, room) = (zoe["access_token"].as_str().unwrap(), encode(scene.room.as_str()));
    client(Method::POST, format!("/rooms/{room}/join"), token, "{}");
    let page = client(Method::GET, format!("/rooms/{room}/messages?dir=b&limit=100"), token, "");
    scene.world.settle();
    let id = |event: &Value| event["event_id"].as_str().unwrap().to_owned();
    page["chunk"].as_array().unwrap().iter().map(id).collect()
}

#[test]
fn what_was_rejected_by_a_claim_is_found_below_what_is_built_upon_it() {
    for version in ["10", "12"] {
        let mut hidden = Hidden::rejected(version);
        let said = hidden.said.0.clone();
        let last = hidden.is_built_upon(&said);
        hidden.is_found_when_alice_is_back(&last);
    }
}

#[test]
fn what_was_soft_failed_by_a_claim_is_found_below_what_is_built_upon_it() {
    for version in ["10", "12"] {
        let mut hidden = Hidden::soft_failed(version);
        let said = hidden.said.0.clone();
        let last = hidden.is_built_upon(&said);
        hidden.is_found_when_alice_is_back(&last);
    }
}

/// What Bob says cites something of his own that nothing allows, and that cites what Dave said.
#[test]
fn what_was_rejected_by_a_claim_is_found_through_what_is_rejected_for_good() {
    for version in ["10", "12"] {
        let mut hidden = Hidden::rejected(version);
        let Hidden { scene, said, .. } = &hidden;
        let name =
            json!({ "type": "m.room.name", "state_key": "", "content": { "name": "Bob's" }, "prev_events": [said.0] });
        let name = scene.peer.sign(version, scene.theirs.draft(scene.world.now_ms(), &scene.bob, name));
        scene.receives("name", &name);
        assert_eq!(scene.rows("SELECT 1 FROM rejected_events WHERE NOT provisional"), 1);
        let last = hidden.is_built_upon(&name.0);
        hidden.is_found_when_alice_is_back(&last);
    }
}
