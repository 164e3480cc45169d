//! Threads.

use serde_json::{Value, json};

use crate::{
    gaps::ids,
    home::{Answer, User, quote, refused},
    relating::{Room, v1},
};

impl Room {
    fn threads(&self, user: &User, query: &str) -> Answer {
        v1(&self.home, user, &format!("/rooms/{}/threads{query}", quote(&self.id)))
    }

    fn replies(&self, user: &User, text: &str, root: &str) -> String {
        self.related(user, text, "m.thread", root)
    }

    fn leave(&self, user: &User) {
        assert_eq!(self.home.post(user, &format!("/rooms/{}/leave", quote(&self.id)), json!({})).0, 200);
    }
}

#[test]
fn a_thread_is_told_with_its_root() {
    let room = Room::new();
    let carol = room.home.register("carol");
    room.join(&carol);
    let root = room.says(&room.alice, "root");
    room.replies(&room.bob, "one", &root);
    let last = room.replies(&room.bob, "two", &root);
    let told = room.bundle(&carol, &root)["m.thread"].clone();
    assert_eq!((&told["count"], &told["current_user_participated"]), (&json!(2), &json!(false)));
    assert_eq!(
        (&told["latest_event"]["event_id"], &told["latest_event"]["content"]["body"]),
        (&json!(last), &json!("two"))
    );
    for user in [&room.alice, &room.bob] {
        assert_eq!(room.bundle(user, &root)["m.thread"]["current_user_participated"], true);
    }
    // What relates to the latest event is told with it.
    let edit = room.edits(&room.bob, "2", &last);
    let told = room.bundle(&carol, &root)["m.thread"].clone();
    assert_eq!(told["latest_event"]["unsigned"]["m.relations"]["m.replace"]["event_id"], json!(edit));
    // A redacted reply drops out.
    room.redact(&room.bob, &last);
    let told = room.bundle(&carol, &root)["m.thread"].clone();
    assert_eq!((&told["count"], &told["latest_event"]["content"]["body"]), (&json!(1), &json!("one")));
    // A redacted root still has its thread.
    room.redact(&room.alice, &root);
    assert_eq!(room.bundle(&carol, &root)["m.thread"]["count"], 1);
}

#[test]
fn no_thread_begins_with_an_event_that_relates_to_another() {
    let room = Room::new();
    let message = room.says(&room.alice, "first");
    let other = room.related(&room.alice, "x", "org.x", &message);
    let relates_to = json!({ "rel_type": "m.thread", "event_id": other });
    let content = json!({ "msgtype": "m.text", "body": "x", "m.relates_to": relates_to });
    refused(&room.try_send(&room.bob, "m.room.message", content), 400, "M_UNKNOWN");
    let reply = json!({ "m.in_reply_to": { "event_id": message } });
    let reply =
        room.send(&room.bob, "m.room.message", json!({ "msgtype": "m.text", "body": "x", "m.relates_to": reply }));
    room.replies(&room.bob, "a reply has no type of relation", &reply);
}

#[test]
fn threads_are_paged_the_newest_first() {
    let room = Room::new();
    let carol = room.home.register("carol");
    room.join(&carol);
    let roots: Vec<String> = (0..5).map(|n| room.says(&room.alice, &format!("root{n}"))).collect();
    for root in &roots {
        room.replies(&room.bob, "x", root);
    }
    room.replies(&carol, "y", &roots[1]);
    room.says(&room.alice, "no thread");
    let get = |user: &User, query: &str| {
        let (status, answer) = room.threads(user, query);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let order: Vec<String> = [1, 4, 3, 2, 0].map(|n: usize| roots[n].clone()).to_vec();
    let all = get(&carol, "");
    assert_eq!(ids(&all["chunk"]), order);
    assert!(all.get("next_batch").is_none());
    let thread = &all["chunk"][0]["unsigned"]["m.relations"]["m.thread"];
    assert_eq!((&thread["count"], &thread["current_user_participated"]), (&json!(2), &json!(true)));
    serde_json::from_value::<ruma_events::AnyTimelineEvent>(all["chunk"][0].clone()).unwrap();
    let (mut found, mut from) = (Vec::new(), String::new());
    loop {
        let page = get(&carol, &format!("?limit=2{from}"));
        found.extend(ids(&page["chunk"]));
        let Some(next) = page["next_batch"].as_str() else { break };
        from = format!("&from={next}");
    }
    assert_eq!(found, order);
    assert_eq!(ids(&get(&carol, "?include=participated")["chunk"]), [roots[1].clone()]);
    assert_eq!(ids(&get(&room.alice, "?include=participated")["chunk"]), order);
    assert_eq!(ids(&get(&room.alice, "?include=all&limit=1")["chunk"]), [roots[1].clone()]);
    // Redacted replies make no thread, and roots that nobody holds are left out.
    let short = room.says(&room.alice, "short");
    let only = room.replies(&room.bob, "x", &short);
    room.replies(&room.bob, "x", "$nothing");
    assert_eq!(ids(&get(&carol, "?limit=1")["chunk"]), [short]);
    room.redact(&room.bob, &only);
    assert_eq!(ids(&get(&carol, "")["chunk"]), order);
    // Of ignored users neither what they reply nor what they have begun is told.
    let ignored = json!({ "ignored_users": { carol.id.clone(): {}, room.alice.id.clone(): {} } });
    let path = format!("/user/{}/account_data/m.ignored_user_list", quote(&room.bob.id));
    assert_eq!(room.home.put(&room.bob, &path, ignored).0, 200);
    let told = get(&room.bob, "");
    let order: Vec<String> = [4, 3, 2, 1, 0].map(|n: usize| roots[n].clone()).to_vec();
    assert_eq!(ids(&told["chunk"]), order);
    assert_eq!(
        (&told["chunk"][3]["content"], &told["chunk"][3]["unsigned"]["m.relations"]["m.thread"]["count"]),
        (&json!({}), &json!(1))
    );
}

#[test]
fn threads_are_refused_as_documented() {
    let room = Room::new();
    let carol = room.home.register("carol");
    for query in ["?include=some", "?limit=0", "?limit=-1", "?limit=x", "?from=x"] {
        refused(&room.threads(&room.alice, query), 400, "M_INVALID_PARAM");
    }
    refused(&room.threads(&carol, ""), 403, "M_FORBIDDEN");
    refused(&v1(&room.home, &carol, "/rooms/!nowhere/threads"), 403, "M_FORBIDDEN");
    let response = room.home.raw("GET", &format!("/_matrix/client/v1/rooms/{}/threads", quote(&room.id)), None, "");
    assert_eq!(response.status(), 401);
}

#[test]
fn who_has_left_sees_the_threads_that_there_were() {
    let room = Room::new();
    let (first, second) = (room.says(&room.alice, "first"), room.says(&room.alice, "second"));
    let seen = room.replies(&room.alice, "x", &first);
    room.leave(&room.bob);
    room.replies(&room.alice, "y", &first);
    room.replies(&room.alice, "y", &second);
    let (status, told) = room.threads(&room.bob, "");
    assert_eq!((status, ids(&told["chunk"])), (200, vec![first.clone()]));
    let thread = &told["chunk"][0]["unsigned"]["m.relations"]["m.thread"];
    assert_eq!((&thread["count"], &thread["latest_event"]["event_id"]), (&json!(1), &json!(seen)));
}

/// A root that is sent after what replies to it is not shown to who had left in between.
#[test]
fn a_root_that_came_later_is_not_shown_to_who_had_left() {
    let room = Room::new();
    let root = room.says(&room.alice, "root");
    room.replies(&room.alice, "x", &root);
    room.leave(&room.bob);
    // As if the root had come last.
    room.home.database.rows("UPDATE events SET pos = pos + 1099511627776 WHERE event_nid = (SELECT event_nid FROM events WHERE json LIKE '%\"root\"%')");
    assert_eq!(room.threads(&room.bob, "").1["chunk"], json!([]));
    assert_eq!(ids(&room.threads(&room.alice, "").1["chunk"]), [root]);
}

#[test]
fn replies_that_a_reader_may_not_see_are_not_counted() {
    let history = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } }]);
    let room = Room::with(json!({ "preset": "public_chat", "initial_state": history }));
    let root = room.says(&room.alice, "root");
    room.replies(&room.alice, "seen", &root);
    room.leave(&room.bob);
    room.replies(&room.alice, "hidden", &root);
    room.replies(&room.alice, "hidden too", &root);
    room.join(&room.bob);
    let last = room.replies(&room.alice, "seen again", &root);
    let told = room.bundle(&room.bob, &root)["m.thread"].clone();
    assert_eq!((&told["count"], &told["latest_event"]["event_id"]), (&json!(2), &json!(last)));
    assert_eq!(room.bundle(&room.alice, &root)["m.thread"]["count"], 4);
    let bodies: Vec<Value> = room.relations(&room.bob, &format!("{}/m.thread", quote(&root))).1["chunk"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["content"]["body"].clone())
        .collect();
    assert_eq!(bodies, [json!("seen again"), json!("seen")]);
}
