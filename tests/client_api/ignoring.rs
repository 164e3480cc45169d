//! Ignored users: what of theirs is not shown.

use serde_json::{Value, json};

use crate::{
    gaps::ids,
    home::{Home, User, next, quote},
    relating::Room,
    typing::{apart, together},
};

fn ignore(home: &Home, user: &User, ignored: &[&str]) {
    let users: serde_json::Map<String, Value> = ignored.iter().map(|id| ((*id).to_owned(), json!({}))).collect();
    let path = format!("/user/{}/account_data/m.ignored_user_list", quote(&user.id));
    assert_eq!(home.put(user, &path, json!({ "ignored_users": users })).0, 200);
}

fn bodies(events: &Value) -> Vec<&str> {
    events.as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

#[test]
fn messages_of_ignored_users_are_left_out_and_their_state_is_not() {
    let (home, alice, bob, room) = together();
    let carol = home.register("carol");
    home.post(&carol, &format!("/join/{}", quote(&room)), json!({}));
    let since = next(&home.sync(&bob, ""));
    ignore(&home, &bob, &[&alice.id, &bob.id]);
    let said = home.say(&alice, &room, "of alice", "1");
    home.say(&carol, &room, "of carol", "1");
    home.say(&bob, &room, "of bob", "1");
    let topic = format!("/rooms/{}/state/m.room.topic/", quote(&room));
    assert_eq!(home.put(&alice, &topic, json!({ "topic": "x" })).0, 200);
    for answer in [home.sync(&bob, &since), home.sync(&bob, "")] {
        let timeline = &answer["rooms"]["join"][&room]["timeline"]["events"];
        assert_eq!(bodies(timeline), ["of carol", "of bob"]);
        assert!(timeline.as_array().unwrap().iter().any(|event| event["content"]["topic"] == "x"));
    }
    let unread =
        |home: &Home| home.sync(&bob, "")["rooms"]["join"][&room]["unread_notifications"]["notification_count"].clone();
    assert_eq!(unread(&home), 0, "bob has spoken after carol");
    home.say(&alice, &room, "more of alice", "2");
    assert_eq!(unread(&home), 0);
    assert_eq!(home.get(&bob, "/notifications").1["notifications"].as_array().unwrap().len(), 1);
    // Pages, in both directions, and contexts.
    for query in ["dir=b&limit=3", "dir=f&limit=50"] {
        let (_, page) = home.get(&bob, &format!("/rooms/{}/messages?{query}", quote(&room)));
        let bodies = bodies(&page["chunk"]);
        assert!(bodies.contains(&"of bob") && !bodies.iter().any(|body| body.contains("alice")), "{page}");
    }
    let (_, all) = home.get(&bob, &format!("/rooms/{}/messages?dir=b&limit=3", quote(&room)));
    assert_eq!(all["chunk"].as_array().unwrap().len(), 3, "pages are as long as they can be");
    let (_, context) = home.get(&bob, &format!("/rooms/{}/context/{}", quote(&room), quote(&said)));
    assert!(!bodies(&context["events_after"]).iter().any(|body| body.contains("alice")), "{context}");
    // Nobody else is concerned, and it ends at once.
    assert_eq!(bodies(&home.sync(&carol, "")["rooms"]["join"][&room]["timeline"]["events"]).len(), 4);
    let since = next(&home.sync(&bob, ""));
    ignore(&home, &bob, &[]);
    home.say(&alice, &room, "again", "3");
    assert_eq!(bodies(&home.sync(&bob, &since)["rooms"]["join"][&room]["timeline"]["events"]), ["again"]);
    assert_eq!(bodies(&home.sync(&bob, "")["rooms"]["join"][&room]["timeline"]["events"]).len(), 5);
}

#[test]
fn what_ignored_users_send_is_shown_neither_among_relations_nor_around_what_is_found() {
    let room = Room::new();
    let carol = room.home.register("carol");
    room.join(&carol);
    let parent = room.says(&carol, "needle");
    let mut shown = vec![room.related(&room.bob, "of bob", "m.thread", &parent)];
    for text in ["of alice", "more of alice", "still more of alice"] {
        room.related(&room.alice, text, "m.thread", &parent);
    }
    shown.insert(0, room.related(&carol, "of carol", "m.thread", &parent));
    room.related(&room.alice, "to carol", "org.x", &shown[0]);
    room.related(&room.alice, "last", "m.thread", &parent);
    ignore(&room.home, &room.bob, &[&room.alice.id, &room.bob.id]);
    for query in ["limit=1", "limit=2", "recurse=true", "recurse=true&limit=1"] {
        let page = |more: &str| {
            let (status, page) = room.relations(&room.bob, &format!("{}?{query}{more}", quote(&parent)));
            assert_eq!(status, 200, "{page}");
            page
        };
        let first = page("");
        let mut found = ids(&first["chunk"]);
        if query.ends_with("limit=1") {
            assert_eq!(found, shown[..1], "{query}: pages are as long as they can be");
            found.extend(ids(&page(&format!("&from={}", first["next_batch"].as_str().unwrap()))["chunk"]));
        }
        assert_eq!(found, shown, "{query}");
    }
    assert_eq!(ids(&room.relations(&carol, &format!("{}?recurse=true", quote(&parent))).1["chunk"]).len(), 7);
    let around = |user: &User| {
        let limits = json!({ "before_limit": 0, "after_limit": 2 });
        let criteria = json!({ "search_term": "needle", "order_by": "recent", "event_context": limits });
        let body = json!({ "search_categories": { "room_events": criteria } });
        let (status, answer) = room.home.post(user, "/search", body);
        assert_eq!(status, 200, "{answer}");
        answer["search_categories"]["room_events"]["results"][0]["context"]["events_after"].clone()
    };
    assert_eq!(bodies(&around(&room.bob)), ["of bob", "of carol"]);
    assert_eq!(bodies(&around(&carol)), ["of bob", "of alice"]);
    // State is the same for all.
    let needle = room.says(&room.bob, "another needle");
    let topic = format!("/rooms/{}/state/m.room.topic/", quote(&room.id));
    assert_eq!(room.home.put(&room.alice, &topic, json!({ "topic": "x" })).0, 200);
    assert_eq!(around(&room.bob)[0]["content"]["topic"], "x", "behind {needle}");
}

#[test]
fn invites_of_ignored_users_are_not_shown() {
    let (one, alice, two, bob, _) = apart();
    let carol = two.register("carol");
    ignore(&two, &bob, &[&alice.id, &carol.id]);
    let since = next(&two.sync(&bob, ""));
    let from_afar = one.room(&alice, json!({ "invite": [bob.id] }));
    one.world.settle();
    let from_here = two.room(&carol, json!({ "invite": [bob.id] }));
    let dave = two.register("dave");
    let welcome = two.room(&dave, json!({ "invite": [bob.id] }));
    for answer in [two.sync(&bob, &since), two.sync(&bob, "")] {
        let invites = answer["rooms"]["invite"].as_object().unwrap();
        assert_eq!(invites.keys().collect::<Vec<_>>(), [&welcome]);
    }
    ignore(&two, &bob, &[]);
    let answer = two.sync(&bob, "");
    let invites = answer["rooms"]["invite"].as_object().unwrap();
    assert!(invites.contains_key(&from_afar) && invites.contains_key(&from_here), "{answer}");
}

/// What a client keeps there is its own affair.
#[test]
fn a_malformed_list_ignores_nobody() {
    let (home, alice, bob, room) = together();
    let path = format!("/user/{}/account_data/m.ignored_user_list", quote(&bob.id));
    for content in [
        json!({}),
        json!({ "ignored_users": [alice.id] }),
        json!({ "ignored_users": "x" }),
        json!({ "ignored_users": 1 }),
    ] {
        assert_eq!(home.put(&bob, &path, content.clone()).0, 200);
        let txn = format!("t{}", content.to_string().len());
        home.say(&alice, &room, "hello", &txn);
        let answer = home.sync(&bob, "");
        assert!(bodies(&answer["rooms"]["join"][&room]["timeline"]["events"]).contains(&"hello"), "{content}");
        assert_eq!(home.get(&bob, &format!("/rooms/{}/messages?dir=b", quote(&room))).0, 200);
    }
}
