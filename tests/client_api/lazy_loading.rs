//! `/sync` for clients that load members lazily.

use serde_json::{Value, json};

use crate::{
    home::{Home, quote},
    syncing::state_of,
};

/// Whose memberships the state tells, in order.
fn members(room: &Value) -> Vec<&str> {
    let mut members: Vec<&str> =
        state_of(room, "m.room.member").iter().map(|event| event["state_key"].as_str().unwrap()).collect();
    members.sort_unstable();
    members
}

/// A filter that loads members lazily, with this for the timeline.
fn lazy(timeline: &str) -> String {
    quote(&format!(r#"{{"room":{{"state":{{"lazy_load_members":true}},"timeline":{timeline}}}}}"#))
}

#[test]
fn lazy_loading_sends_the_members_that_matter() {
    let home = Home::new();
    let (alice, bob, carol) = (home.register("alice"), home.register("bob"), home.register("carol"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    for user in [&bob, &carol] {
        home.post(user, &format!("/join/{}", quote(&room)), json!({}));
    }
    for i in 0..10 {
        home.say(&carol, &room, "x", &format!("t{i}"));
    }
    let answer = home.sync(&alice, &format!("filter={}", lazy("{}")));
    let den = &answer["rooms"]["join"][&room];
    assert_eq!(den["summary"]["m.heroes"], json!([bob.id, carol.id]));
    assert_eq!(
        members(den),
        [&*alice.id, &bob.id, &carol.id],
        "the user, whoever speaks, and after whom the room is called"
    );
    // With a name it is called after nobody.
    home.put(&alice, &format!("/rooms/{}/state/m.room.name", quote(&room)), json!({ "name": "Den" }));
    home.say(&carol, &room, "x", "t10");
    let named = home.sync(&alice, &format!("filter={}", lazy(r#"{"limit":1}"#)));
    assert_eq!(members(&named["rooms"]["join"][&room]), [&*alice.id, &carol.id]);
}
