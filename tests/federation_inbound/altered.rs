//! Altered copies of events of which the rules read what is lost: they keep nobody out once a whole copy comes.

use std::rc::Rc;

use serde_json::{Value, json};
use verge::room::Draft;

use crate::{
    Scene,
    common::{homeserver::object, peer::Peer},
    missing::takes,
    scene,
};

/// An event and its ID.
type Known = (String, Value);

/// A room of version 8 that nobody joins but whom Carol of a third server lets in. There redaction drops who has let somebody in.
struct Restricted {
    scene: Scene,
    third: Rc<Peer>,
    carol: String,
}

fn restricted() -> Restricted {
    let mut scene = scene("8");
    let (third, hers) = scene.member("third.example", "carol");
    let carol = third.user("carol");
    let key = ("m.room.member".to_owned(), carol.clone());
    scene.theirs.state.insert(key.clone(), hers.state[&key].clone());
    let allow = json!([{ "type": "m.room_membership", "room_id": "!elsewhere:third.example" }]);
    let rules = json!({ "join_rule": "restricted", "allow": allow });
    let draft = Draft::state("m.room.join_rules", "", object(rules));
    let rules = scene.a.send(&scene.world, &scene.room, &scene.alice, draft);
    let key = ("m.room.join_rules".to_owned(), String::new());
    scene.theirs.state.insert(key, serde_json::from_str(rules.json()).unwrap());
    scene.theirs.advance(rules.event_id().as_str());
    scene.world.settle();
    Restricted { scene, third, carol }
}

impl Restricted {
    /// Somebody on Bob's server, and how they join, as Carol lets them.
    fn let_in(&mut self, name: &str) -> (String, Known) {
        let Self { scene, third, carol } = self;
        let user = scene.peer.user(name);
        let content = json!({ "membership": "join", "join_authorised_via_users_server": carol });
        let fields = json!({ "type": "m.room.member", "state_key": user, "content": content });
        let mut draft = scene.theirs.draft(scene.world.now_ms(), &user, fields);
        for (event_type, state_key) in [("m.room.join_rules", ""), ("m.room.member", carol.as_str())] {
            let id = scene.theirs.state_id(event_type, state_key).unwrap();
            draft["auth_events"].as_array_mut().unwrap().push(json!(id));
        }
        let (_, join) = scene.peer.sign("8", draft);
        let (id, join) = third.sign_only("8", join);
        scene.theirs.state.insert(("m.room.member".to_owned(), user.clone()), join.clone());
        scene.theirs.advance(&id);
        (user, (id, join))
    }

    fn membership(&self, user: &str) -> Option<String> {
        self.scene.a.membership(&self.scene.world, &self.scene.room, user)
    }

    fn rejected(&self) -> Vec<Vec<String>> {
        self.scene.a.database.rows("SELECT event_id FROM rejected_events")
    }
}

fn altered((id, event): &Known) -> Known {
    let mut event = event.clone();
    event["content"]["displayname"] = json!("altered");
    (id.clone(), event)
}

/// Who relays an event may do so before its own server does.
#[test]
fn who_was_let_in_is_in_though_an_altered_copy_came_first() {
    let mut room = restricted();
    let (dave, join) = room.let_in("dave");
    let said = ["one", "two"].map(|text| room.scene.theirs.say(&room.scene.peer, &dave, text));
    let refused = |answer: (u16, Value), id: &str| assert!(answer.1["pdus"][id]["error"].is_string(), "{answer:?}");
    refused(room.third.send(&room.scene.a, "1", &[altered(&join).1]), &join.0);
    // Nor does it come in again and again.
    refused(room.third.send(&room.scene.a, "2", &[altered(&join).1]), &join.0);
    refused(room.scene.peer.send(&room.scene.a, "1", &[said[0].1.clone()]), &said[0].0);
    room.scene.world.settle();
    assert_eq!(room.membership(&dave), None);
    takes(&room.scene.peer, &room.scene, "2", &join);
    room.scene.world.settle();
    assert_eq!(room.membership(&dave).as_deref(), Some("join"));
    room.scene.peer.send(&room.scene.a, "3", &[said[1].1.clone()]);
    room.scene.world.settle();
    room.scene.world.run(room.scene.a.scheduled());
    room.scene.world.settle();
    room.scene.is_shown(&said);
    assert!(room.rejected().is_empty());
}

/// Carol has the whole copy, and builds upon it. Dave builds upon that alone.
#[test]
fn what_was_built_upon_an_altered_copy_is_judged_by_the_whole_one() {
    let mut room = restricted();
    let (dave, join) = room.let_in("dave");
    let hers = room.scene.theirs.say(&room.third, &room.carol, "welcome");
    let his = room.scene.theirs.say(&room.scene.peer, &dave, "thanks");
    let (_, answer) = room.third.send(&room.scene.a, "1", &[altered(&join).1]);
    assert!(answer["pdus"][&join.0]["error"].is_string(), "{answer}");
    takes(&room.third, &room.scene, "2", &hers);
    room.scene.world.settle();
    room.scene.world.run(room.scene.a.scheduled());
    for (txn_id, event) in [("1", &join), ("2", &his)] {
        room.scene.peer.send(&room.scene.a, txn_id, &[event.1.clone()]);
        room.scene.world.settle();
    }
    room.scene.world.run(room.scene.a.scheduled());
    room.scene.world.settle();
    room.scene.is_shown(&[join, hers, his]);
    assert_eq!(room.membership(&dave).as_deref(), Some("join"));
    assert!(room.rejected().is_empty());
    assert_eq!(room.scene.a.database.rows("SELECT SUM(claimed) FROM events"), [["0"]]);
    assert!(room.scene.a.database.rows("SELECT room_id FROM unsettled_rooms").is_empty());
}
