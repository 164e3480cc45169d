//! What somebody may see of a room that they were put out of, that they left, or that they never were in.

use std::rc::Rc;

use serde_json::{Value, json};

use crate::{
    common::{
        network::World,
        peer::{Peer, PeerRoom},
    },
    home::{Home, User, quote, refused},
    typing::apart,
};

/// Alice's room with Carol in it; Bob, of another server, may put people out.
struct Scene {
    home: Home,
    alice: User,
    carol: User,
    room: String,
    peer: Rc<Peer>,
    bob: String,
    theirs: PeerRoom,
    transactions: u32,
}

fn scene() -> Scene {
    let world = World::new();
    let home = Home::with(&world, "hs.test", &[("REGISTRATION", "open")]);
    let (alice, carol) = (home.register("alice"), home.register("carol"));
    let peer = Peer::new(&world, "peer.example");
    let bob = peer.user("bob");
    let levels = json!({ "users": { &alice.id: 100, &bob: 50 }, "invite": 0 });
    let body = json!({ "preset": "public_chat", "room_version": "11", "power_level_content_override": levels });
    let room = home.room(&alice, body);
    assert_eq!(home.post(&carol, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let theirs = peer.join(&home.homeserver(), &room, &bob);
    world.settle();
    Scene { home, alice, carol, room, peer, bob, theirs, transactions: 0 }
}

impl Scene {
    /// Bob's event at the end of the room.
    fn event(&mut self, fields: Value) -> (String, Value) {
        let now = self.peer.world.now_ms();
        let mut draft = self.theirs.draft(now, &self.bob, fields.clone());
        if let Some(target) = fields["state_key"].as_str().filter(|key| key.starts_with('@')) {
            let target = self.theirs.state_id("m.room.member", target);
            draft["auth_events"].as_array_mut().unwrap().extend(target.map(Value::from));
        }
        let (id, event) = self.peer.sign("11", draft);
        self.theirs.advance(&id);
        if let Some(key) = event["state_key"].as_str() {
            let key = (event["type"].as_str().unwrap().to_owned(), key.to_owned());
            self.theirs.state.insert(key, event.clone());
        }
        (id, event)
    }

    fn says(&mut self, text: &str) -> (String, Value) {
        self.event(json!({ "type": "m.room.message", "content": { "msgtype": "m.text", "body": text } }))
    }

    fn makes(&mut self, user: &User, membership: &str) -> (String, Value) {
        let content = json!({ "membership": membership });
        self.event(json!({ "type": "m.room.member", "state_key": user.id, "content": content }))
    }

    fn sets_topic(&mut self, topic: &str) -> (String, Value) {
        self.event(json!({ "type": "m.room.topic", "state_key": "", "content": { "topic": topic } }))
    }

    /// All of it in one transaction, every event of which must be accepted.
    fn send(&mut self, events: &[&(String, Value)]) {
        self.transactions += 1;
        let pdus: Vec<Value> = events.iter().map(|(_, event)| event.clone()).collect();
        let (status, answer) = self.peer.send(&self.home.homeserver(), &self.transactions.to_string(), &pdus);
        assert_eq!(status, 200, "{answer}");
        for (id, _) in events {
            assert_eq!(answer["pdus"][id], json!({}), "{answer}");
        }
        self.home.world.settle();
    }

    fn path(&self, rest: &str) -> String {
        format!("/rooms/{}/{rest}", quote(&self.room))
    }

    /// The events that `user` finds going back from the end.
    fn history(&self, user: &User) -> Vec<String> {
        let (status, page) = self.home.get(user, &self.path("messages?dir=b&limit=100"));
        assert_eq!(status, 200, "{page}");
        ids(&page["chunk"])
    }
}

fn ids(events: &Value) -> Vec<String> {
    events.as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

fn types(events: &Value) -> Vec<&str> {
    events.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect()
}

fn since(answer: &Value) -> String {
    format!("since={}", answer["next_batch"].as_str().unwrap())
}

#[test]
fn who_is_put_out_does_not_see_what_comes_after_in_the_same_transaction() {
    let mut scene = scene();
    let carol = scene.carol.clone();
    let before = scene.home.sync(&carol, "");
    let said = scene.says("still here");
    let kick = scene.makes(&carol, "leave");
    let (topic, secret) = (scene.sets_topic("without Carol"), scene.says("she is gone"));
    scene.send(&[&said, &kick, &topic, &secret]);

    let after = scene.home.sync(&carol, &since(&before));
    let left = &after["rooms"]["leave"][&scene.room];
    assert_eq!(ids(&left["timeline"]["events"]), [said.0.as_str(), &kick.0]);
    assert_eq!(left["state"]["events"], json!([]));
    assert_eq!(scene.history(&carol)[..2], [kick.0.clone(), said.0.clone()]);
    let from = before["next_batch"].as_str().unwrap();
    let (_, forwards) = scene.home.get(&carol, &scene.path(&format!("messages?dir=f&from={from}")));
    assert_eq!(ids(&forwards["chunk"]), [said.0.as_str(), &kick.0]);
    for hidden in [&topic.0, &secret.0] {
        refused(&scene.home.get(&carol, &scene.path(&format!("event/{}", quote(hidden)))), 404, "M_NOT_FOUND");
    }
    assert_eq!(scene.home.get(&carol, &scene.path(&format!("event/{}", quote(&kick.0)))).0, 200);
    // The state is the one in which she left.
    refused(&scene.home.get(&carol, &scene.path("state/m.room.topic")), 404, "M_NOT_FOUND");
    let (_, members) = scene.home.get(&carol, &scene.path("members?membership=leave"));
    assert_eq!(ids(&members["chunk"]), [kick.0.as_str()]);
    // Alice sees all of it.
    assert_eq!(scene.history(&scene.alice)[..4], [secret.0, topic.0, kick.0, said.0]);
}

#[test]
fn who_is_banned_after_having_left_does_not_see_what_was_between() {
    let mut scene = scene();
    let carol = scene.carol.clone();
    let kick = scene.makes(&carol, "leave");
    scene.send(&[&kick]);
    let before = scene.home.sync(&carol, "");
    let (secret, topic, ban) = (scene.says("and never come back"), scene.sets_topic("x"), scene.makes(&carol, "ban"));
    let more = scene.says("she is banned");
    scene.send(&[&secret, &topic, &ban, &more]);
    let after = scene.home.sync(&carol, &since(&before));
    let left = &after["rooms"]["leave"][&scene.room];
    assert_eq!(ids(&left["timeline"]["events"]), [ban.0]);
    assert_eq!(left["state"]["events"], json!([]));
    assert_eq!(scene.history(&carol)[0], kick.0);
    refused(&scene.home.get(&carol, &scene.path("state/m.room.topic")), 404, "M_NOT_FOUND");

    // Once everybody may read the room, what was said before is still not for her.
    let world_readable = json!({ "history_visibility": "world_readable" });
    let path = scene.path("state/m.room.history_visibility/");
    assert_eq!(scene.home.put(&scene.alice, &path, world_readable).0, 200);
    let open = scene.home.say(&scene.alice, &scene.room, "for everybody", "t1");
    let seen = scene.history(&carol);
    assert!(seen.contains(&open) && seen.contains(&kick.0));
    assert!(!seen.contains(&secret.0) && !seen.contains(&more.0) && !seen.contains(&topic.0));
}

#[test]
fn who_rejects_an_invite_has_seen_nothing() {
    let mut scene = scene();
    let dave = scene.home.register("dave");
    let before = scene.home.sync(&dave, "");
    let (invite, secret) = (scene.makes(&dave, "invite"), scene.says("shall we tell Dave?"));
    let topic = scene.sets_topic("Dave");
    scene.send(&[&invite, &secret, &topic]);
    assert_eq!(scene.home.post(&dave, &scene.path("leave"), json!({})).0, 200);
    let after = scene.home.sync(&dave, &since(&before));
    let left = &after["rooms"]["leave"][&scene.room];
    let told = left["timeline"]["events"].as_array().unwrap();
    assert!(told.iter().all(|event| event["state_key"] == json!(dave.id)), "{left}");
    assert_eq!(told.last().unwrap()["content"]["membership"], "leave");
    assert_eq!(left["state"]["events"], json!([]));
    refused(&scene.home.get(&dave, &scene.path("messages?dir=b")), 403, "M_FORBIDDEN");
    let include = quote(r#"{"room":{"include_leave":true}}"#);
    let first = scene.home.sync(&dave, &format!("filter={include}"));
    assert_eq!(first["rooms"]["leave"][&scene.room]["state"]["events"], json!([]));
}

#[test]
fn a_first_sync_tells_whoever_was_put_out() {
    for (membership, told) in [("leave", true), ("ban", true), ("own leave", false)] {
        let mut scene = scene();
        let carol = scene.carol.clone();
        if membership == "own leave" {
            assert_eq!(scene.home.post(&carol, &scene.path("leave"), json!({})).0, 200);
        } else {
            let out = scene.makes(&carol, membership);
            scene.send(&[&out]);
        }
        let left = &scene.home.sync(&carol, "")["rooms"]["leave"][&scene.room];
        assert_eq!(left.is_object(), told, "{membership}");
        if told {
            let events = left["timeline"]["events"].as_array().unwrap();
            let last = events.last().unwrap();
            assert_eq!((&last["content"]["membership"], &last["sender"]), (&json!(membership), &json!(scene.bob)));
        }
    }
}

#[test]
fn account_data_of_a_room_is_told_to_who_is_in_it() {
    let scene = scene();
    let (carol, dave) = (scene.carol.clone(), scene.home.register("dave"));
    let tags = |user: &User| format!("/user/{}/rooms/{}/account_data/m.tag", quote(&user.id), quote(&scene.room));
    let before = scene.home.sync(&dave, "");
    assert_eq!(scene.home.post(&scene.alice, &scene.path("invite"), json!({ "user_id": dave.id })).0, 200);
    assert_eq!(scene.home.post(&carol, &scene.path("leave"), json!({})).0, 200);
    for user in [&carol, &dave] {
        assert_eq!(scene.home.put(user, &tags(user), json!({ "tags": { "u.work": {} } })).0, 200);
        assert_eq!(scene.home.sync(user, "")["rooms"]["join"], json!({}));
    }
    let invited = scene.home.sync(&dave, &since(&before));
    assert_eq!(invited["rooms"]["join"], json!({}), "{invited}");
    assert_eq!(scene.home.post(&dave, &scene.path("join"), json!({})).0, 200);
    let joined = scene.home.sync(&dave, &since(&invited));
    let data = &joined["rooms"]["join"][&scene.room]["account_data"]["events"];
    assert_eq!(data, &json!([{ "type": "m.tag", "content": { "tags": { "u.work": {} } } }]), "{joined}");
}

#[test]
fn account_data_of_a_room_is_not_told_to_who_has_left_it() {
    let scene = scene();
    let (carol, room) = (&scene.carol, &scene.room);
    let tag = |name: &str| {
        let path = format!("/user/{}/rooms/{}/account_data/m.tag", quote(&carol.id), quote(room));
        assert_eq!(scene.home.put(carol, &path, json!({ "tags": { name: {} } })).0, 200);
    };
    let before = scene.home.sync(carol, "");
    tag("u.work");
    assert_eq!(scene.home.post(carol, &scene.path("leave"), json!({})).0, 200);
    // Before she has heard that she left, and after.
    tag("u.old");
    let left = scene.home.sync(carol, &since(&before));
    assert_eq!(left["rooms"]["join"], json!({}), "{left}");
    assert_eq!(left["rooms"]["leave"][room]["account_data"]["events"], json!([]), "{left}");
    tag("u.older");
    for query in [since(&left), format!("{}&full_state=true", since(&left))] {
        let after = scene.home.sync(carol, &query);
        assert_eq!((&after["rooms"]["join"], &after["rooms"]["leave"]), (&json!({}), &json!({})), "{query}: {after}");
    }
}

#[test]
fn who_came_and_went_between_two_syncs_is_told_the_whole_state() {
    let scene = scene();
    let (home, dave) = (&scene.home, scene.home.register("dave"));
    assert_eq!(home.post(&scene.alice, &scene.path("invite"), json!({ "user_id": dave.id })).0, 200);
    let before = home.sync(&dave, "");
    assert_eq!(home.post(&dave, &scene.path("join"), json!({})).0, 200);
    assert_eq!(home.post(&dave, &scene.path("leave"), json!({})).0, 200);
    let after = home.sync(&dave, &since(&before));
    let left = &after["rooms"]["leave"][&scene.room];
    assert_eq!(types(&left["timeline"]["events"]), ["m.room.member", "m.room.member"], "{left}");
    let state = types(&left["state"]["events"]);
    for wanted in ["m.room.create", "m.room.power_levels", "m.room.join_rules"] {
        assert!(state.contains(&wanted), "{wanted}: {left}");
    }
    assert_eq!(left["timeline"]["limited"], json!(true), "he does not know what was before");
    // Whose keys he has never heard of he need not forget.
    assert_eq!(after["device_lists"]["left"], json!([]));
}

#[test]
fn who_was_in_came_back_and_left_is_told_what_has_changed() {
    let scene = scene();
    let (home, carol) = (&scene.home, &scene.carol);
    let before = home.sync(carol, "");
    for step in ["leave", "join", "leave"] {
        assert_eq!(home.post(carol, &scene.path(step), json!({})).0, 200);
    }
    let after = home.sync(carol, &since(&before));
    let left = &after["rooms"]["leave"][&scene.room];
    assert_eq!(ids(&left["timeline"]["events"]).len(), 3, "{left}");
    assert_eq!((&left["timeline"]["limited"], &left["state"]["events"]), (&json!(false), &json!([])), "{left}");
}

#[test]
fn a_room_that_is_left_and_forgotten_is_told_as_left_once() {
    let scene = scene();
    let (home, carol) = (&scene.home, &scene.carol);
    let before = home.sync(carol, "");
    for step in ["leave", "forget", "forget"] {
        assert_eq!(home.post(carol, &scene.path(step), json!({})).0, 200);
    }
    // The device that was offline meanwhile.
    let after = home.sync(carol, &since(&before));
    let left = &after["rooms"]["leave"][&scene.room]["timeline"]["events"];
    assert_eq!(types(left), ["m.room.member"], "{after}");
    assert_eq!(left[0]["content"]["membership"], "leave");
    let include = quote(r#"{"room":{"include_leave":true}}"#);
    let later = since(&after);
    for query in [&later, &format!("{later}&full_state=true"), &format!("filter={include}"), ""] {
        assert_eq!(home.sync(carol, query)["rooms"]["leave"], json!({}), "{query}");
    }
    // For all else it is as if she had never been there.
    for path in ["messages?dir=b", "state", "members"] {
        refused(&home.get(carol, &scene.path(path)), 403, "M_FORBIDDEN");
    }
    refused(&home.post(carol, &scene.path("leave"), json!({})), 403, "M_FORBIDDEN");
    let criteria = json!({ "search_categories": { "room_events": { "search_term": "x" } } });
    assert_eq!(home.post(carol, "/search", criteria).1["search_categories"]["room_events"]["count"], json!(0));
}

#[test]
fn a_forgotten_room_is_remembered_by_what_happens_next() {
    let scene = scene();
    let (home, alice, carol) = (&scene.home, &scene.alice, &scene.carol);
    let does = |user: &User, step: &str, body: Value| assert_eq!(home.post(user, &scene.path(step), body).0, 200);
    let told = |since_before: &Value, section: &str| {
        let answer = home.sync(carol, &since(since_before));
        assert!(answer["rooms"][section][&scene.room].is_object(), "{section}: {answer}");
        answer
    };
    let target = json!({ "user_id": carol.id });
    does(carol, "leave", json!({}));
    does(carol, "forget", json!({}));
    let forgotten = home.sync(carol, "");
    does(alice, "invite", target.clone());
    let invited = told(&forgotten, "invite");
    // Who rejects it may read no more than who was never there.
    does(carol, "leave", json!({}));
    let rejected = told(&invited, "leave");
    refused(&home.get(carol, &scene.path("messages?dir=b")), 403, "M_FORBIDDEN");
    does(carol, "forget", json!({}));
    does(alice, "ban", target.clone());
    let banned = told(&rejected, "leave");
    refused(&home.get(carol, &scene.path("messages?dir=b")), 403, "M_FORBIDDEN");
    does(carol, "forget", json!({}));
    does(alice, "unban", target);
    let back = told(&banned, "leave");
    does(carol, "join", json!({}));
    told(&back, "join");
    assert_eq!(home.get(carol, &scene.path("messages?dir=b")).0, 200);
}

#[test]
fn of_a_forgotten_room_nothing_is_kept_for_ever() {
    const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
    let scene = scene();
    let (home, carol) = (&scene.home, &scene.carol);
    let rooms = || home.database.rows("SELECT room_id FROM local_memberships WHERE user_id = '@carol:hs.test'");
    let kept = home.room(carol, json!({}));
    let left = home.room(carol, json!({}));
    assert_eq!(home.post(carol, &format!("/rooms/{}/leave", quote(&left)), json!({})).0, 200);
    for step in ["leave", "forget"] {
        assert_eq!(home.post(carol, &scene.path(step), json!({})).0, 200);
    }
    let now = home.world.now_ms();
    home.database.forget_old(now + 29 * DAY_MS);
    assert_eq!(rooms().len(), 3);
    home.database.forget_old(now + 31 * DAY_MS);
    let mut expected = [[kept], [left]];
    expected.sort();
    assert_eq!(rooms(), expected);
}

#[test]
fn who_comes_back_sees_what_is_shared() {
    let mut scene = scene();
    let carol = scene.carol.clone();
    let (kick, said) = (scene.makes(&carol, "leave"), scene.says("while she was away"));
    scene.send(&[&kick, &said]);
    assert_eq!(scene.home.post(&carol, &scene.path("join"), json!({})).0, 200);
    assert!(scene.history(&carol).contains(&said.0));
}

#[test]
fn who_is_banned_without_ever_having_been_in_is_told_that_and_nothing_else() {
    for (visibility, sees) in [("joined", false), ("invited", false), ("shared", false), ("world_readable", true)] {
        let home = Home::new();
        let (alice, dave) = (home.register("alice"), home.register("dave"));
        let content = json!({ "history_visibility": visibility });
        let state = json!([{ "type": "m.room.history_visibility", "content": content }]);
        let room = home.room(&alice, json!({ "initial_state": state }));
        let before = home.sync(&dave, "");
        let secret = home.say(&alice, &room, "before", "t1");
        let topic = format!("/rooms/{}/state/m.room.topic", quote(&room));
        assert_eq!(home.put(&alice, &topic, json!({ "topic": "without Dave" })).0, 200);
        let ban = format!("/rooms/{}/ban", quote(&room));
        assert_eq!(home.post(&alice, &ban, json!({ "user_id": dave.id })).0, 200);
        home.say(&alice, &room, "after", "t2");
        let include = quote(r#"{"room":{"include_leave":true}}"#);
        for query in [since(&before), format!("{}&full_state=true", since(&before)), format!("filter={include}")] {
            let answer = home.sync(&dave, &query);
            let left = &answer["rooms"]["leave"][&room];
            let told = left["timeline"]["events"].as_array().unwrap();
            assert_eq!(told.last().unwrap()["content"]["membership"], "ban", "{visibility}, {query}: {answer}");
            assert_eq!(told.iter().any(|event| event["event_id"] == json!(secret)), sees, "{visibility}, {query}");
            assert!(sees || told.len() == 1, "{visibility}, {query}: {left}");
            assert_eq!(left["state"]["events"], json!([]), "{visibility}, {query}");
        }
    }
}

/// As Synapse lets them: other servers' events may have brought such an ID into the room.
#[test]
fn an_id_that_no_server_could_have_is_banned_and_unbanned_but_not_invited() {
    let (one, alice, two, bob, room) = apart();
    let nobody = "@x:bad_host";
    let path = |what: &str| format!("/rooms/{}/{what}", quote(&room));
    let state = path(&format!("state/m.room.member/{}", quote(nobody)));
    let post = |action: &str, user_id: &str| one.post(&alice, &path(action), json!({ "user_id": user_id }));
    let put = |membership: &str| one.put(&alice, &state, json!({ "membership": membership }));
    refused(&post("kick", nobody), 403, "M_FORBIDDEN");
    let in_room = |membership: &str, (status, answer): (u16, Value)| {
        assert_eq!(status, 200, "{answer}");
        one.world.settle();
        for (home, user) in [(&one, &alice), (&two, &bob)] {
            assert_eq!(home.get(user, &state).1["membership"], membership);
        }
    };
    in_room("ban", post("ban", nobody));
    in_room("leave", post("unban", nobody));
    in_room("ban", put("ban"));
    in_room("leave", put("leave"));
    refused(&post("invite", nobody), 400, "M_INVALID_PARAM");
    for membership in ["invite", "join", "knock"] {
        refused(&put(membership), 400, "M_INVALID_PARAM");
    }
    // Nor is every text an ID.
    for text in ["x:bad_host", "@x", "@x\0:bad_host", "@x:bad\0host", &format!("@{}:a.org", "x".repeat(300))] {
        refused(&post("ban", text), 400, "M_INVALID_PARAM");
    }
}

#[test]
fn who_is_in_a_room_is_not_told_to_who_is_not() {
    let scene = scene();
    let [alice, carol] = [&scene.alice, &scene.carol];
    let [banned, invited, erin] = ["dave", "fay", "erin"].map(|name| scene.home.register(name));
    assert_eq!(scene.home.post(alice, &scene.path("ban"), json!({ "user_id": banned.id })).0, 200);
    assert_eq!(scene.home.post(alice, &scene.path("invite"), json!({ "user_id": invited.id })).0, 200);
    for asking in [&erin, &invited, &banned] {
        for action in ["kick", "unban", "ban"] {
            let told = |target: &User| scene.home.post(asking, &scene.path(action), json!({ "user_id": target.id }));
            let of_nobody = told(&User { id: "@nobody:hs.test".to_owned(), ..erin.clone() });
            refused(&of_nobody, 403, "M_FORBIDDEN");
            for target in [alice, carol, &banned, &invited, &erin] {
                assert_eq!(told(target), of_nobody, "{} {action} {}", asking.id, target.id);
            }
        }
    }
    // Who is there is told.
    let answer = scene.home.post(carol, &scene.path("kick"), json!({ "user_id": erin.id }));
    assert_eq!(answer.1["error"], "The user is not in the room.");
    // Nor which aliases it names, though they stand for no room any more: who has deleted this one may not change the room.
    let (alias, path) = ("/directory/room/%23old%3Ahs.test", scene.path("state/m.room.canonical_alias"));
    assert_eq!(scene.home.put(carol, alias, json!({ "room_id": scene.room })).0, 200);
    assert_eq!(scene.home.put(alice, &path, json!({ "alias": "#old:hs.test" })).0, 200);
    assert_eq!(scene.home.call(Some(&carol.token), "DELETE", alias, None).0, 200);
    for asking in [&erin, &invited, &banned] {
        let told = |alias: &str| scene.home.put(asking, &path, json!({ "alias": alias })).1["errcode"].clone();
        assert_eq!(told("#old:hs.test"), told("#none:hs.test"), "{}", asking.id);
    }
}

#[test]
fn what_is_in_a_room_is_not_told_to_who_sends_to_it_from_outside() {
    let scene = scene();
    let Scene { home, alice, carol, .. } = &scene;
    let erin = home.register("erin");
    let said = home.say(alice, &scene.room, "hello", "t1");
    let related = |parent: &str| json!({ "rel_type": "m.thread", "event_id": parent });
    let answer = json!({ "msgtype": "m.text", "body": "x", "m.relates_to": related(&said) });
    let (_, answer) = home.put(alice, &scene.path("send/m.room.message/t2"), answer);
    let (answer, unknown) = (answer["event_id"].as_str().unwrap(), format!("${}", "x".repeat(43)));
    // What is there, and what is not; and what they hear who are in the room.
    let redacts = |user: &User, event: &str| {
        let path = scene.path(&format!("redact/{}/r{}", quote(event), quote(&user.id)));
        home.put(user, &path, json!({}))
    };
    refused(&redacts(carol, &said), 403, "M_FORBIDDEN");
    assert_eq!(redacts(&erin, &said), redacts(&erin, &unknown));
    let redacts =
        |user: &User, event: &str| home.put(user, &scene.path("state/m.room.redaction/x"), json!({ "redacts": event }));
    refused(&redacts(carol, &said), 403, "M_FORBIDDEN");
    assert_eq!(redacts(&erin, &said), redacts(&erin, &unknown));
    let threads = |user: &User, root: &str| {
        let content = json!({ "msgtype": "m.text", "body": "x", "m.relates_to": related(root) });
        home.put(user, &scene.path(&format!("send/m.room.message/t{}", quote(root))), content)
    };
    refused(&threads(carol, answer), 400, "M_UNKNOWN");
    assert_eq!(threads(&erin, answer), threads(&erin, &unknown));
    let newer = home.room(alice, json!({ "room_version": "12" }));
    let levels = |user: &User, named: &str| {
        let path = format!("/rooms/{}/state/m.room.power_levels/", quote(&newer));
        home.put(user, &path, json!({ "users": { named: 50 } }))
    };
    refused(&levels(alice, &alice.id), 400, "M_BAD_JSON");
    assert_eq!(levels(&erin, &alice.id), levels(&erin, &carol.id));
}
