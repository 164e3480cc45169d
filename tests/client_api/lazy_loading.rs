//! `/sync` for clients that load members lazily.

use serde_json::{Value, json};

use crate::{
    home::{Home, next, quote},
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

#[test]
fn a_room_that_loses_its_name_is_called_after_its_members() {
    for (event_type, named, unnamed) in [
        ("m.room.name", json!({ "name": "Den" }), json!({ "name": "" })),
        ("m.room.canonical_alias", json!({ "alias": "#den:hs.test" }), json!({})),
    ] {
        let home = Home::new();
        let (alice, bob) = (home.register("alice"), home.register("bob"));
        let body = json!({ "preset": "public_chat", "room_alias_name": "den" });
        let room = home.room(&alice, body);
        home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
        let path = |event_type: &str| format!("/rooms/{}/state/{event_type}", quote(&room));
        assert_eq!(home.put(&alice, &path("m.room.canonical_alias"), json!({})).0, 200);
        assert_eq!(home.put(&alice, &path(event_type), named).0, 200);
        home.say(&bob, &room, "x", "t1");
        let filter = format!("filter={}", lazy("{}"));
        let first = home.sync(&alice, &filter);
        assert_eq!(first["rooms"]["join"][&room]["summary"]["m.heroes"], Value::Null, "{event_type}");
        assert_eq!(home.put(&alice, &path(event_type), unnamed).0, 200);
        let second = home.sync(&alice, &format!("{}&{filter}", next(&first)));
        let den = &second["rooms"]["join"][&room];
        assert_eq!(den["summary"]["m.heroes"], json!([bob.id]), "{event_type}: {den}");
        assert_eq!(members(den), [&*alice.id, &bob.id], "who speaks, and after whom it is called: {den}");
    }
}

#[test]
fn lazy_loading_sends_the_members_who_speak_later() {
    let home = Home::new();
    let (alice, bob, carol) = (home.register("alice"), home.register("bob"), home.register("carol"));
    let room = home.room(&alice, json!({ "preset": "public_chat", "name": "Den" }));
    for user in [&bob, &carol] {
        home.post(user, &format!("/join/{}", quote(&room)), json!({}));
    }
    home.say(&alice, &room, "nobody else speaks", "t0");
    let one = lazy(r#"{"limit":1}"#);
    let first = home.sync(&alice, &format!("filter={one}"));
    assert_eq!(members(&first["rooms"]["join"][&room]), [&*alice.id]);
    // One message after the other, ...
    home.say(&bob, &room, "one", "t1");
    let second = home.sync(&alice, &format!("{}&filter={one}", next(&first)));
    let den = &second["rooms"]["join"][&room];
    assert_eq!((den["timeline"]["limited"].as_bool(), members(den)), (Some(false), vec![&*bob.id]));
    // ... of which some are left out, ...
    home.say(&bob, &room, "two", "t2");
    home.say(&carol, &room, "three", "t3");
    let third = home.sync(&alice, &format!("{}&filter={one}", next(&second)));
    let den = &third["rooms"]["join"][&room];
    assert_eq!((den["timeline"]["limited"].as_bool(), members(den)), (Some(true), vec![&*carol.id]));
    // ... and by a client that asks for the state after them.
    let after = home.sync(&alice, &format!("{}&filter={one}&use_state_after=true", next(&second)));
    assert_eq!(after["rooms"]["join"][&room]["state_after"]["events"][0]["state_key"], json!(carol.id));
    // Who goes is told as they were when they spoke: the timeline tells the rest.
    home.say(&bob, &room, "four", "t4");
    home.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({}));
    let fourth = home.sync(&alice, &format!("{}&filter={}", next(&third), lazy("{}")));
    let den = &fourth["rooms"]["join"][&room];
    assert_eq!(members(den), [&*bob.id]);
    assert_eq!(state_of(den, "m.room.member")[0]["content"]["membership"], "join");
    // All others are told what has changed, and nothing else.
    let all = home.sync(&alice, &next(&first));
    assert_eq!(all["rooms"]["join"][&room]["state"]["events"], json!([]));
    let quiet = home.sync(&alice, &format!("{}&filter={one}", next(&fourth)));
    assert_eq!(quiet["rooms"]["join"], json!({}));
}
