//! What relates to an event: the pages of it, and what is told of it with the event.

use ruma_events::AnySyncTimelineEvent;
use serde_json::{Value, json};

use crate::{
    gaps::{ids, scene},
    home::{Answer, Home, User, next, quote, refused},
};

/// Alice and Bob in a room of one server.
pub struct Room {
    pub home: Home,
    pub alice: User,
    pub bob: User,
    pub id: String,
}

impl Room {
    pub fn new() -> Self {
        Self::with(json!({ "preset": "public_chat" }))
    }

    pub fn with(body: Value) -> Self {
        let home = Home::new();
        let (alice, bob) = (home.register("alice"), home.register("bob"));
        let id = home.room(&alice, body);
        let room = Self { home, alice, bob, id };
        room.join(&room.bob);
        room
    }

    pub fn join(&self, user: &User) {
        assert_eq!(self.home.post(user, &format!("/join/{}", quote(&self.id)), json!({})).0, 200);
    }

    pub fn try_send(&self, user: &User, kind: &str, content: Value) -> Answer {
        // Nothing is sent twice with the same content in these tests but where a test means it.
        let count = &self.home.database.rows("SELECT count(*) FROM events")[0][0];
        self.home.put(user, &format!("/rooms/{}/send/{kind}/{count}", quote(&self.id)), content)
    }

    pub fn send(&self, user: &User, kind: &str, content: Value) -> String {
        let (status, answer) = self.try_send(user, kind, content);
        assert_eq!(status, 200, "{answer}");
        answer["event_id"].as_str().unwrap().to_owned()
    }

    pub fn says(&self, user: &User, text: &str) -> String {
        self.send(user, "m.room.message", json!({ "msgtype": "m.text", "body": text }))
    }

    pub fn related(&self, user: &User, text: &str, rel_type: &str, to: &str) -> String {
        let relates_to = json!({ "rel_type": rel_type, "event_id": to });
        self.send(user, "m.room.message", json!({ "msgtype": "m.text", "body": text, "m.relates_to": relates_to }))
    }

    pub fn edits(&self, user: &User, text: &str, of: &str) -> String {
        let new = json!({ "msgtype": "m.text", "body": text });
        let relates_to = json!({ "rel_type": "m.replace", "event_id": of });
        let content = json!({ "msgtype": "m.text", "body": "*", "m.new_content": new, "m.relates_to": relates_to });
        self.send(user, "m.room.message", content)
    }

    pub fn reacts(&self, user: &User, key: &str, to: &str) -> Answer {
        let relates_to = json!({ "rel_type": "m.annotation", "event_id": to, "key": key });
        self.try_send(user, "m.reaction", json!({ "m.relates_to": relates_to }))
    }

    pub fn redact(&self, user: &User, event: &str) {
        let path = format!("/rooms/{}/redact/{}/{}", quote(&self.id), quote(event), quote(event));
        assert_eq!(self.home.put(user, &path, json!({})).0, 200);
    }

    pub fn relations(&self, user: &User, rest: &str) -> Answer {
        v1(&self.home, user, &format!("/rooms/{}/relations/{rest}", quote(&self.id)))
    }

    pub fn event(&self, user: &User, id: &str) -> Value {
        let (status, event) = self.home.get(user, &format!("/rooms/{}/event/{}", quote(&self.id), quote(id)));
        assert_eq!(status, 200, "{event}");
        event
    }

    pub fn bundle(&self, user: &User, id: &str) -> Value {
        self.event(user, id)["unsigned"]["m.relations"].clone()
    }
}

pub fn v1(home: &Home, user: &User, path: &str) -> Answer {
    let response = home.raw("GET", &format!("/_matrix/client/v1{path}"), Some(&user.token), "");
    (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
}

#[test]
fn relations_are_paged_by_type_in_both_directions() {
    let room = Room::new();
    let parent = room.says(&room.alice, "parent");
    let sent: Vec<String> = (0..7).map(|n| room.related(&room.bob, &format!("r{n}"), "org.x", &parent)).collect();
    let edit = room.edits(&room.alice, "better", &parent);
    let reaction = room.reacts(&room.bob, "+1", &parent).1["event_id"].as_str().unwrap().to_owned();
    let newest_first: Vec<String> =
        [reaction.clone(), edit.clone()].into_iter().chain(sent.iter().rev().cloned()).collect();
    let get = |rest: &str| {
        let (status, answer) = room.relations(&room.bob, &format!("{}{rest}", quote(&parent)));
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let all = get("");
    assert_eq!(ids(&all["chunk"]), newest_first);
    assert!(all.get("next_batch").is_none() && all.get("prev_batch").is_none() && all.get("recursion_depth").is_none());
    let forwards: Vec<String> = newest_first.iter().rev().cloned().collect();
    assert_eq!(ids(&get("?dir=f")["chunk"]), forwards);
    assert_eq!(ids(&get("/m.replace")["chunk"]), vec![edit.clone()]);
    assert_eq!(ids(&get("/m.annotation/m.reaction")["chunk"]), vec![reaction.clone()]);
    assert_eq!(get("/m.annotation/m.room.message")["chunk"], json!([]));
    assert_eq!(get("/m.none")["chunk"], json!([]));
    for (dir, whole) in [("b", &newest_first), ("f", &forwards)] {
        let (mut found, mut from) = (Vec::new(), String::new());
        for page in 0.. {
            let answer = get(&format!("?dir={dir}&limit=4{from}"));
            assert_eq!(answer.get("prev_batch").is_some(), page > 0);
            assert!(ids(&answer["chunk"]).len() <= 4);
            found.extend(ids(&answer["chunk"]));
            let Some(next) = answer["next_batch"].as_str() else { break };
            from = format!("&from={next}");
        }
        assert_eq!(&found, whole, "{dir}");
    }
    // Up to where another page ended.
    let first = get("?limit=3")["next_batch"].as_str().unwrap().to_owned();
    assert_eq!(ids(&get(&format!("?to={first}"))["chunk"]), newest_first[..3]);
    assert_eq!(
        get(&format!("?from={first}&to={}", next(&room.home.sync(&room.bob, "")).replace("since=", "")))["chunk"],
        json!([])
    );
    for event in all["chunk"].as_array().unwrap() {
        serde_json::from_value::<ruma_events::AnyTimelineEvent>(event.clone()).unwrap();
    }
}

#[test]
fn relations_are_refused_as_documented() {
    let room = Room::with(json!({ "preset": "private_chat", "invite": ["@bob:hs.test"] }));
    let carol = room.home.register("carol");
    let parent = room.says(&room.alice, "parent");
    let path = quote(&parent);
    let cases = [
        ("?dir=x", "M_INVALID_PARAM"),
        ("?limit=x", "M_INVALID_PARAM"),
        ("?limit=0", "M_INVALID_PARAM"),
        ("?from=x", "M_INVALID_PARAM"),
        ("?to=x", "M_INVALID_PARAM"),
        ("?recurse=maybe", "M_INVALID_PARAM"),
    ];
    for (query, errcode) in cases {
        refused(&room.relations(&room.alice, &format!("{path}{query}")), 400, errcode);
    }
    refused(&room.relations(&carol, &path), 404, "M_NOT_FOUND");
    refused(&room.relations(&room.alice, "%24nothing"), 404, "M_NOT_FOUND");
    refused(&room.relations(&room.alice, "nothing"), 404, "M_NOT_FOUND");
    let elsewhere = room.home.room(&room.alice, json!({}));
    refused(
        &v1(&room.home, &room.alice, &format!("/rooms/{}/relations/{path}", quote(&elsewhere))),
        404,
        "M_NOT_FOUND",
    );
    let response =
        room.home.raw("GET", &format!("/_matrix/client/v1/rooms/{}/relations/{path}", quote(&room.id)), None, "");
    assert_eq!(response.status(), 401);
}

#[test]
fn a_plain_message_costs_no_row_and_a_relation_one() {
    let room = Room::new();
    let parent = room.says(&room.alice, "parent");
    let count = || room.home.database.rows("SELECT count(*) FROM relations")[0][0].clone();
    assert_eq!(count(), "0");
    let reply = json!({ "m.in_reply_to": { "event_id": parent } });
    room.send(&room.bob, "m.room.message", json!({ "msgtype": "m.text", "body": "x", "m.relates_to": reply }));
    // What is malformed relates to nothing.
    for relates_to in [
        json!(1),
        json!({ "rel_type": "m.thread" }),
        json!({ "rel_type": "", "event_id": parent }),
        json!({ "rel_type": "x".repeat(256), "event_id": parent }),
        json!({ "rel_type": "x", "event_id": "parent" }),
        json!({ "rel_type": 7, "event_id": parent }),
    ] {
        room.send(&room.bob, "m.room.message", json!({ "body": "x", "m.relates_to": relates_to }));
    }
    assert_eq!(count(), "0");
    let one = room.related(&room.bob, "x", "org.x", &parent);
    assert_eq!(count(), "1");
    room.redact(&room.bob, &one);
    assert_eq!(count(), "0");
    assert_eq!(room.relations(&room.bob, &quote(&parent)).1["chunk"], json!([]));
    // That the parent is redacted changes nothing.
    room.related(&room.bob, "x", "org.x", &parent);
    room.redact(&room.alice, &parent);
    assert_eq!(ids(&room.relations(&room.bob, &quote(&parent)).1["chunk"]).len(), 1);
}

#[test]
fn the_newest_valid_replacement_is_told_with_an_event() {
    let room = Room::new();
    let message = room.says(&room.alice, "first");
    assert_eq!(room.bundle(&room.bob, &message), Value::Null);
    let older = room.edits(&room.alice, "second", &message);
    room.home.world.advance(1_000);
    let newer = room.edits(&room.alice, "third", &message);
    // None of these is valid: of another user, of another type, without a new content.
    room.edits(&room.bob, "mine", &message);
    let relates_to = json!({ "rel_type": "m.replace", "event_id": message });
    room.send(&room.alice, "org.other", json!({ "m.new_content": {}, "m.relates_to": relates_to }));
    room.related(&room.alice, "no new content", "m.replace", &message);
    let told = room.bundle(&room.bob, &message)["m.replace"].clone();
    assert_eq!((&told["event_id"], &told["content"]["m.new_content"]["body"]), (&json!(newer), &json!("third")));
    assert_eq!((&told["sender"], &told["room_id"]), (&json!(room.alice.id), &json!(room.id)));
    assert!(told["origin_server_ts"].is_i64() && told["unsigned"]["membership"] == "join");
    assert_eq!(room.event(&room.bob, &message)["content"]["body"], "first", "the content is left as it was");
    // An edit of an edit is none.
    room.edits(&room.alice, "fourth", &newer);
    assert_eq!(room.bundle(&room.bob, &newer), Value::Null);
    // Redacting an edit leads back to the one before; redacting the event ends it.
    room.redact(&room.alice, &newer);
    assert_eq!(room.bundle(&room.bob, &message)["m.replace"]["event_id"], json!(older));
    room.redact(&room.alice, &message);
    assert_eq!(room.bundle(&room.bob, &message), Value::Null);
    // Of state nothing is told.
    let state =
        room.home.put(&room.alice, &format!("/rooms/{}/state/m.room.topic", quote(&room.id)), json!({ "topic": "x" }));
    let topic = state.1["event_id"].as_str().unwrap().to_owned();
    let relates_to = json!({ "rel_type": "m.replace", "event_id": topic });
    room.send(&room.alice, "m.room.topic", json!({ "m.new_content": {}, "m.relates_to": relates_to }));
    assert_eq!(room.bundle(&room.bob, &topic), Value::Null);
    // Of encrypted edits nobody sees the new content.
    let secret = room.send(&room.alice, "m.room.encrypted", json!({ "ciphertext": "x" }));
    let relates_to = json!({ "rel_type": "m.replace", "event_id": secret });
    let edit = room.send(&room.alice, "m.room.encrypted", json!({ "ciphertext": "y", "m.relates_to": relates_to }));
    assert_eq!(room.bundle(&room.bob, &secret)["m.replace"]["event_id"], json!(edit));
}

#[test]
fn of_edits_of_the_same_time_the_greatest_id_counts() {
    let room = Room::new();
    let message = room.says(&room.alice, "first");
    let edits: Vec<String> = (0..5).map(|n| room.edits(&room.alice, &n.to_string(), &message)).collect();
    let times = room
        .home
        .database
        .rows("SELECT DISTINCT e.origin_server_ts FROM relations AS r JOIN events AS e USING (event_nid)");
    assert_eq!(times.len(), 1, "the clock stands still");
    assert_eq!(room.bundle(&room.bob, &message)["m.replace"]["event_id"], json!(edits.iter().max().unwrap()));
}

#[test]
fn bundles_are_told_wherever_events_are() {
    let room = Room::new();
    let since = room.home.sync(&room.bob, "");
    let message = room.says(&room.alice, "first");
    let edit = room.edits(&room.alice, "second", &message);
    let reference = room.related(&room.bob, "see there", "m.reference", &message);
    let check = |event: &Value| {
        assert_eq!(event["event_id"], json!(message));
        let told = &event["unsigned"]["m.relations"];
        assert_eq!(told["m.replace"]["event_id"], json!(edit), "{event}");
        assert_eq!(told["m.reference"], json!({ "chunk": [{ "event_id": reference }] }));
        assert_eq!(told.as_object().unwrap().len(), 2);
        serde_json::from_value::<AnySyncTimelineEvent>(event.clone()).unwrap();
    };
    let of_message = |events: &Value| {
        let mut events = events.as_array().unwrap().iter();
        events.find(|event| event["event_id"] == json!(message)).cloned().unwrap()
    };
    check(&room.event(&room.bob, &message));
    let messages = room.home.get(&room.bob, &format!("/rooms/{}/messages?dir=b", quote(&room.id))).1;
    check(&of_message(&messages["chunk"]));
    let path = format!("/rooms/{}/context", quote(&room.id));
    let context = room.home.get(&room.bob, &format!("{path}/{}", quote(&message))).1;
    check(&context["event"]);
    check(&of_message(&room.home.get(&room.bob, &format!("{path}/{}", quote(&edit))).1["events_before"]));
    // In a sync where it does not tell all: of what relates to others in the answer, the client takes care itself.
    let synced = room.home.sync(&room.bob, &next(&since));
    let timeline = &synced["rooms"]["join"][&room.id]["timeline"];
    assert_eq!(timeline["limited"], false);
    assert!(of_message(&timeline["events"])["unsigned"].get("m.relations").is_none());
    let filter = quote(r#"{"room":{"timeline":{"limit":4}}}"#);
    room.home.put(&room.alice, &format!("/rooms/{}/state/m.room.topic", quote(&room.id)), json!({ "topic": "x" }));
    let synced = room.home.sync(&room.bob, &format!("filter={filter}"));
    let timeline = &synced["rooms"]["join"][&room.id]["timeline"];
    assert_eq!(timeline["limited"], true);
    check(&of_message(&timeline["events"]));
    // And with what relates to others itself.
    let parent = room.says(&room.bob, "parent");
    room.related(&room.bob, "x", "org.x", &parent);
    let child = ids(&room.relations(&room.bob, &format!("{}/org.x", quote(&parent))).1["chunk"]).remove(0);
    let of_child = room.edits(&room.bob, "y", &child);
    let told = room.relations(&room.bob, &format!("{}/org.x", quote(&parent))).1["chunk"][0].clone();
    assert_eq!(told["unsigned"]["m.relations"]["m.replace"]["event_id"], json!(of_child));
}

#[test]
fn nothing_is_told_of_what_ignored_users_have_sent() {
    let room = Room::new();
    let message = room.says(&room.alice, "first");
    room.related(&room.bob, "x", "m.reference", &message);
    let own = room.related(&room.alice, "y", "m.reference", &message);
    let ignored = json!({ "ignored_users": { room.bob.id.clone(): {} } });
    let path = format!("/user/{}/account_data/m.ignored_user_list", quote(&room.alice.id));
    assert_eq!(room.home.put(&room.alice, &path, ignored).0, 200);
    assert_eq!(room.bundle(&room.alice, &message)["m.reference"], json!({ "chunk": [{ "event_id": own }] }));
    // A list that is none ignores nobody.
    for broken in [json!({ "ignored_users": 1 }), json!({ "ignored_users": [1] }), json!({})] {
        assert_eq!(room.home.put(&room.alice, &path, broken).0, 200);
        assert_eq!(room.bundle(&room.alice, &message)["m.reference"]["chunk"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn what_a_reader_may_not_see_is_not_told_with_what_they_may() {
    let history = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } }]);
    let room = Room::with(json!({ "preset": "public_chat", "initial_state": history }));
    let message = room.says(&room.alice, "first");
    let seen = room.related(&room.alice, "x", "m.reference", &message);
    let before = room.edits(&room.alice, "before", &message);
    assert_eq!(room.home.post(&room.bob, &format!("/rooms/{}/leave", quote(&room.id)), json!({})).0, 200);
    room.home.world.advance(1_000);
    room.related(&room.alice, "y", "m.reference", &message);
    let while_away = room.edits(&room.alice, "while away", &message);
    // Who has left sees what there was.
    let told = room.bundle(&room.bob, &message);
    assert_eq!(
        (&told["m.replace"]["event_id"], &told["m.reference"]["chunk"]),
        (&json!(before), &json!([{ "event_id": seen }]))
    );
    let all = ids(&room.relations(&room.bob, &quote(&message)).1["chunk"]);
    assert_eq!(all, [before.clone(), seen.clone()]);
    room.join(&room.bob);
    let after = room.related(&room.alice, "z", "m.reference", &message);
    let told = room.bundle(&room.bob, &message);
    assert_eq!(told["m.reference"]["chunk"], json!([{ "event_id": seen }, { "event_id": after }]), "{while_away}");
    assert!(told.get("m.replace").is_none(), "the newest is not theirs to see: {told}");
    assert_eq!(ids(&room.relations(&room.bob, &quote(&message)).1["chunk"]), [after, before, seen]);
}

#[test]
fn related_history_of_another_server_is_indexed_too() {
    let scene = scene("10");
    let send = |number: usize, to: &str| {
        let relates_to = json!({ "rel_type": "org.x", "event_id": to });
        let path = format!("/rooms/{}/send/org.y/r{number}", quote(&scene.room));
        scene.one.put(&scene.alice, &path, json!({ "m.relates_to": relates_to })).1["event_id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let parent = scene.one.say(&scene.alice, &scene.room, "parent", "p");
    let live = send(0, &parent);
    scene.one.world.settle();
    let children = || {
        let path = format!("/rooms/{}/relations/{}", quote(&scene.room), quote(&parent));
        ids(&v1(&scene.two, &scene.bob, &path).1["chunk"])
    };
    assert_eq!(children(), vec![live.clone()]);
    scene.leave();
    let missed = send(1, &parent);
    scene.says(10..30);
    scene.join();
    let later = send(2, &parent);
    scene.one.world.settle();
    assert_eq!(children(), [later.clone(), live.clone()]);
    crate::gaps::back(&scene.two, &scene.bob, &scene.room, None, 50, "");
    assert_eq!(children(), [later, missed, live]);
}

#[test]
fn a_reaction_is_taken_once_and_again_when_it_was_redacted() {
    let room = Room::new();
    let message = room.says(&room.alice, "first");
    let (status, first) = room.reacts(&room.bob, "+1", &message);
    assert_eq!(status, 200);
    refused(&room.reacts(&room.bob, "+1", &message), 400, "M_DUPLICATE_ANNOTATION");
    assert_eq!(room.reacts(&room.bob, "-1", &message).0, 200);
    assert_eq!(room.reacts(&room.alice, "+1", &message).0, 200);
    room.redact(&room.bob, first["event_id"].as_str().unwrap());
    assert_eq!(room.reacts(&room.bob, "+1", &message).0, 200);
    assert_eq!(room.bundle(&room.bob, &message), Value::Null, "reactions are not bundled");
}

/// Whoever gets no answer asks again, while the first request may still be at work.
#[test]
fn the_same_reaction_twice_at_once_makes_one_event() {
    let room = Room::new();
    let message = room.says(&room.alice, "first");
    room.home.world.interleave();
    for round in 0..40 {
        let (one, other) = room.reacts_twice_at_once(&message, round, [0, 0]);
        assert_eq!(one, other, "{round}");
        assert_eq!(one.0, 200, "{round}");
    }
    assert_eq!(room.home.database.rows("SELECT count(*) FROM events WHERE event_type = 'm.reaction'"), [["40"]]);
}

/// Two devices, or two clicks: neither request knows of the other.
#[test]
fn of_two_like_reactions_at_once_one_is_refused() {
    let room = Room::new();
    let message = room.says(&room.alice, "first");
    room.home.world.interleave();
    for round in 0..40 {
        let (one, other) = room.reacts_twice_at_once(&message, round, [1, 2]);
        let (taken, duplicate) = if one.0 == 200 { (one, other) } else { (other, one) };
        assert_eq!(taken.0, 200, "{round} {taken:?}");
        refused(&duplicate, 400, "M_DUPLICATE_ANNOTATION");
    }
}

#[test]
fn where_nothing_relates_reading_takes_no_call_more() {
    let room = Room::new();
    let parent = room.says(&room.alice, "parent");
    let cost = || {
        let before = room.home.database.calls.get();
        room.home.get(&room.bob, &format!("/rooms/{}/messages?dir=b&limit=5", quote(&room.id)));
        room.home.database.calls.get() - before
    };
    assert_eq!(cost(), 5, "the token, the room, its newest position, the page, and the state around it");
    room.edits(&room.alice, "x", &parent);
    assert_eq!(cost(), 6, "whether the edit is to be seen");
}

/// What was there before there was an index is found as what came after it.
#[test]
fn the_index_is_made_of_what_is_there() {
    let room = Room::new();
    let parent = room.says(&room.alice, "parent");
    room.replies_of_all_kinds(&parent);
    let rows = || room.home.database.rows("SELECT * FROM relations ORDER BY pos");
    let noted = rows();
    assert_eq!(noted.len(), 4);
    room.home.database.rows("DELETE FROM relations");
    let migration = include_str!("../../migrations/0032_relations.sql");
    room.home.database.rows(&migration[migration.find("INSERT").unwrap()..]);
    assert_eq!(rows(), noted);
}

impl Room {
    /// Bob reacts to the message twice with one key, by two transaction IDs or one.
    fn reacts_twice_at_once(&self, message: &str, round: usize, txn_ids: [usize; 2]) -> (Answer, Answer) {
        let relates_to = json!({ "rel_type": "m.annotation", "event_id": message, "key": round.to_string() });
        let body = json!({ "m.relates_to": relates_to }).to_string();
        let [one, other] = txn_ids.map(|txn_id| {
            let path = format!("/_matrix/client/v3/rooms/{}/send/m.reaction/r{round}.{txn_id}", quote(&self.id));
            let request = http::Request::put(path).header("Authorization", format!("Bearer {}", self.bob.token));
            self.home.server.handle(request.body(bytes::Bytes::from(body.clone())).unwrap())
        });
        let (one, other) = self.home.world.run(futures_util::future::join(one, other));
        let answer = |response: verge::router::Response| {
            (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
        };
        (answer(one), answer(other))
    }

    fn replies_of_all_kinds(&self, parent: &str) {
        for kind in ["m.thread", "m.reference", "org.\"x\""] {
            self.related(&self.bob, "x", kind, parent);
        }
        self.edits(&self.alice, "x", parent);
        let redacted = self.related(&self.bob, "x", "org.y", parent);
        self.redact(&self.bob, &redacted);
        let relates_to = json!({ "rel_type": 5, "event_id": parent });
        self.send(&self.bob, "m.room.message", json!({ "body": "x", "m.relates_to": relates_to }));
    }
}
