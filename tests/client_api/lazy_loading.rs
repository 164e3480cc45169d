//! `/sync` for clients that load members lazily.

use serde_json::{Value, json};

use crate::{
    home::{Home, User, next, quote},
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

/// Bob's name and membership as they are told, if they are.
fn as_told<'a>(events: &'a Value, user: &User) -> Vec<(&'a str, &'a str)> {
    let of_user = events.as_array().unwrap().iter().filter(|event| event["state_key"] == user.id.as_str());
    let text = |value: &'a Value| value.as_str().unwrap_or_default();
    of_user.map(|event| (text(&event["content"]["membership"]), text(&event["content"]["displayname"]))).collect()
}

/// A room of Alice's that Bob has joined under the name of Bobby.
fn with_bobby(history_visibility: &str) -> (Home, User, User, String) {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    assert_eq!(rename(&home, &bob, "Bobby"), 200);
    let history = json!({ "history_visibility": history_visibility });
    let history = json!([{ "type": "m.room.history_visibility", "content": history }]);
    let room = home.room(&alice, json!({ "preset": "public_chat", "name": "Den", "initial_state": history }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    (home, alice, bob, room)
}

fn rename(home: &Home, user: &User, name: &str) -> u16 {
    let path = format!("/profile/{}/displayname", quote(&user.id));
    let status = home.put(user, &path, json!({ "displayname": name })).0;
    home.world.settle();
    status
}

fn leave(home: &Home, user: &User, room: &str) {
    assert_eq!(home.post(user, &format!("/rooms/{}/leave", quote(room)), json!({})).0, 200);
}

#[test]
fn pages_tell_senders_as_they_were() {
    let (home, alice, bob, room) = with_bobby("shared");
    home.say(&bob, &room, "x", "t1");
    let before = next(&home.sync(&alice, "")).replace("since=", "&from=");
    leave(&home, &bob, &room);
    home.say(&alice, &room, "he has gone", "t2");
    let filter = quote(r#"{"lazy_load_members":true}"#);
    let page = |query: &str| {
        let path = format!("/rooms/{}/messages?limit=50&filter={filter}&{query}", quote(&room));
        let (status, page) = home.get(&alice, &path);
        assert_eq!(status, 200, "{page}");
        page["state"].clone()
    };
    // From before he left, from the end and from the beginning.
    for query in [&format!("dir=b{before}"), "dir=b", "dir=f"] {
        let state = page(query);
        assert_eq!(as_told(&state, &bob), [("join", "Bobby")], "{query}: {state}");
        assert_eq!(as_told(&state, &alice).len(), 1, "{query}: {state}");
    }
    // From where he has left, he is told as the first event of the page finds him.
    assert_eq!(as_told(&page(&before.replace("&from", "dir=f&from")), &bob), [("join", "Bobby")]);
    // His old name goes with what he said under it, and the page has the change.
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let before = next(&home.sync(&alice, "")).replace("since=", "from=");
    home.say(&bob, &room, "y", "t3");
    assert_eq!(rename(&home, &bob, "Robert"), 200);
    home.say(&bob, &room, "z", "t4");
    assert_eq!(as_told(&page(&format!("dir=f&{before}")), &bob), [("join", "Bobby")]);
    assert_eq!(as_told(&page("dir=b"), &bob), [("join", "Robert")]);
}

#[test]
fn pages_tell_of_senders_what_the_reader_may_see() {
    let (home, alice, bob, room) = with_bobby("joined");
    let carol = home.register("carol");
    home.say(&bob, &room, "before Carol", "t1");
    assert_eq!(home.post(&carol, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    home.say(&alice, &room, "welcome", "t2");
    let filter = quote(r#"{"lazy_load_members":true}"#);
    let (_, page) = home.get(&carol, &format!("/rooms/{}/messages?dir=b&limit=50&filter={filter}", quote(&room)));
    assert_eq!(as_told(&page["state"], &bob), [], "she is shown nothing of his: {page}");
    assert_eq!(as_told(&page["state"], &alice).len(), 1, "{page}");
}

/// The state is that at the beginning of the timeline: who has left within it spoke there, too.
#[test]
fn a_room_told_whole_has_the_state_before_its_timeline() {
    let (home, alice, bob, room) = with_bobby("shared");
    let since = next(&home.sync(&alice, ""));
    home.say(&bob, &room, "one", "t1");
    leave(&home, &bob, &room);
    let two = r#"{"limit":2}"#;
    let all = quote(&format!(r#"{{"room":{{"timeline":{two}}}}}"#));
    for filter in [&lazy(two), &all] {
        for query in ["", "&full_state=true", &format!("&{since}&full_state=true")] {
            let answer = home.sync(&alice, &format!("filter={filter}{query}"));
            let den = &answer["rooms"]["join"][&room];
            assert_eq!(den["timeline"]["events"].as_array().unwrap().len(), 2, "{den}");
            assert_eq!(as_told(&den["state"]["events"], &bob), [("join", "Bobby")], "{filter}{query}: {den}");
        }
        let answer = home.sync(&alice, &format!("filter={filter}&use_state_after=true"));
        let after = &answer["rooms"]["join"][&room]["state_after"]["events"];
        assert_eq!(as_told(after, &bob), [("leave", "")], "{filter}: {after}");
    }
    // What the timeline does not tell is told as it is.
    let messages = home.sync(&alice, &format!("filter={}", lazy(r#"{"types":["m.room.message"]}"#)));
    assert_eq!(as_told(&messages["rooms"]["join"][&room]["state"]["events"], &bob), [("leave", "")]);
    // Nor is anything told that the timeline tells from its beginning on.
    let whole = home.sync(&alice, &format!("filter={}", quote(r#"{"room":{"timeline":{"limit":50}}}"#)));
    assert_eq!(whole["rooms"]["join"][&room]["state"]["events"], json!([]));
    // The same goes for all other state, whoever is told of it.
    for name in ["Lair", "Cave"] {
        let path = format!("/rooms/{}/state/m.room.name", quote(&room));
        assert_eq!(home.put(&alice, &path, json!({ "name": name })).0, 200);
    }
    let answer = home.sync(&alice, &format!("filter={}", lazy(two)));
    let names = state_of(&answer["rooms"]["join"][&room], "m.room.name");
    assert_eq!(names.iter().map(|event| event["content"]["name"].as_str().unwrap()).collect::<Vec<_>>(), ["Den"]);
    // Who comes in was invited before.
    let carol = home.register("carol");
    let since = next(&home.sync(&carol, ""));
    let invite = json!({ "user_id": carol.id });
    assert_eq!(home.post(&alice, &format!("/rooms/{}/invite", quote(&room)), invite).0, 200);
    assert_eq!(home.post(&carol, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let answer = home.sync(&carol, &format!("{since}&filter={}", lazy(r#"{"limit":1}"#)));
    assert_eq!(as_told(&answer["rooms"]["join"][&room]["state"]["events"], &carol), [("invite", "carol")]);
}

/// The same goes for what has changed, where not all of it is told: what came between, and was replaced in the timeline.
#[test]
fn a_timeline_that_is_cut_short_has_the_state_before_it() {
    let (home, alice, bob, room) = with_bobby("shared");
    leave(&home, &bob, &room);
    let since = next(&home.sync(&alice, ""));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    home.say(&bob, &room, "one", "t1");
    leave(&home, &bob, &room);
    let sync = |limit: usize| {
        let filter = quote(&format!(r#"{{"room":{{"timeline":{{"limit":{limit}}}}}}}"#));
        home.sync(&alice, &format!("{since}&filter={filter}"))["rooms"]["join"][&room].clone()
    };
    let (cut, whole) = (sync(2), sync(3));
    assert_eq!(as_told(&cut["state"]["events"], &bob), [("join", "Bobby")], "{cut}");
    assert_eq!(whole["state"]["events"], json!([]), "{whole}");
    // What the client knows already is not told again.
    assert_eq!(sync(1)["state"]["events"].as_array().unwrap().len(), 1);
    let since = next(&home.sync(&alice, ""));
    home.say(&alice, &room, "two", "t2");
    assert_eq!(
        home.put(&alice, &format!("/rooms/{}/state/m.room.name", quote(&room)), json!({ "name": "Cave" })).0,
        200
    );
    let filter = quote(r#"{"room":{"timeline":{"limit":1}}}"#);
    let cut = &home.sync(&alice, &format!("{since}&filter={filter}"))["rooms"]["join"][&room];
    assert_eq!((cut["timeline"]["limited"].as_bool(), &cut["state"]["events"]), (Some(true), &json!([])));
}
